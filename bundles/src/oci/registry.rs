//! Images from a registry, by digest: a tag is resolved once, shown and pinned. Blobs are stored in a folder with the
//! shape of an OCI layout. A kept folder is a cache, and interrupted downloads are resumed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};

use camino::{Utf8Path, Utf8PathBuf};
use reqwest::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LINK, RANGE};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use textnlp_files::{Hashing, Lock};
use textnlp_models::{Attempts, Digest, Event, Progress};
use textnlp_net::error_chain;
use textnlp_net::retry::Transient;
use tokio::io::AsyncWriteExt as _;

pub use super::net::{Credentials, Options, PlainHttp, Secret};

use super::content::{Blob, Content, blob_path};
use super::document::{Descriptor, Document, ImageConfig, MOST_CONFIG, MOST_DOCUMENT, Platform, media};
use super::error::{Error, Result};
use super::layout::agree;
use super::net::{Fault, RepositoryClient, shown};
use super::reference::is_tag;
use super::{Image, Reference};

/// Lists of lists: registries have one level.
const MOST_DEPTH: usize = 2;
/// Far above the size of a usual layer.
const MOST_BLOB: u64 = 1 << 40;
/// Tags that are asked for in one request; registries may answer with fewer.
const TAGS_OF_PAGE: &str = "1000";
/// Requests for the tags of one repository.
const MOST_PAGES: usize = 40;

/// The tags of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagList {
    /// In the registry's order.
    pub tags: Vec<String>,
    /// Whether these are all of them.
    pub is_complete: bool,
}

/// Resolves a tag now. Returns a reference with a digest, to be shown and stored. A reference with a digest is returned
/// without a request.
pub async fn resolve(reference: &Reference, options: &Options, progress: &Progress<'_>) -> Result<Reference> {
    if reference.digest.is_some() {
        return Ok(reference.clone());
    }
    progress(Event::Resolving { what: reference.to_string() });
    let line = RepositoryClient::new(&reference.host, &reference.repository, options)?;
    let tag = reference.tag.as_deref().unwrap_or("latest");
    let (headers, text) = ask(&line, reference, tag, progress).await?;
    let digest = Digest::of(&text);
    if let Some(reported) = headers.get("docker-content-digest").and_then(|v| v.to_str().ok())
        && reported != digest.to_string()
    {
        let reported = reported.chars().take(100).collect();
        return Err(Error::Mismatch { what: reference.to_string(), expected: reported, found: digest.to_string() });
    }
    // It must be an image or a list of images before it is pinned.
    Document::parse(&reference.to_string(), &media_type(&headers), &text)?;
    Ok(reference.pin(digest))
}

/// Lists the tags of a reference's repository
/// (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md#listing-tags>).
pub async fn tags(reference: &Reference, options: &Options, progress: &Progress<'_>) -> Result<TagList> {
    #[derive(Deserialize)]
    struct Page {
        tags: Option<Vec<String>>,
    }
    let what = format!("the tags of {}/{}", reference.host, reference.repository);
    progress(Event::Resolving { what: what.clone() });
    let line = RepositoryClient::new(&reference.host, &reference.repository, options)?;
    let mut url = line.address("tags", "list")?;
    url.query_pairs_mut().append_pair("n", TAGS_OF_PAGE);
    let mut found = TagList::default();
    for _ in 0..MOST_PAGES {
        let page = line.get_small(&url, &HeaderMap::new(), MOST_DOCUMENT as usize, progress).await;
        let (headers, text) = page.map_err(|fault| explain(fault, what.clone()))?;
        let page: Page =
            serde_json::from_slice(&text).map_err(|error| Error::malformed(what.clone(), error.to_string()))?;
        found.tags.extend(page.tags.unwrap_or_default().into_iter().filter(|tag| is_tag(tag)));
        match next_page(&headers, &url) {
            Some(next) if next.origin() == url.origin() && next != url => url = next,
            // The rest is at an address that is not the registry's.
            Some(_) => return Ok(found),
            None => return Ok(TagList { is_complete: true, ..found }),
        }
    }
    Ok(found)
}

/// The address in `Link: </v2/x/tags/list?last=b>; rel="next"`.
fn next_page(headers: &HeaderMap, at: &Url) -> Option<Url> {
    let (target, rest) = headers.get(LINK)?.to_str().ok()?.trim().strip_prefix('<')?.split_once('>')?;
    if rest.contains("next") { at.join(target).ok() } else { None }
}

/// Whether the registry has the manifest of a pinned reference.
pub async fn has(reference: &Reference, options: &Options, progress: &Progress<'_>) -> Result<bool> {
    let Some(digest) = reference.digest else {
        return Err(Error::Unpinned { reference: reference.to_string() });
    };
    let line = RepositoryClient::new(&reference.host, &reference.repository, options)?;
    match ask(&line, reference, &digest.to_string(), progress).await {
        Ok(_) => Ok(true),
        Err(Error::Missing { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Downloads the image of a pinned reference into `folder`: its manifest, configuration and layers, each verified by
/// its digest. A reference without a digest is refused. `folder` can be shared by several images and reused.
pub async fn pull(
    reference: &Reference,
    platform: &Platform,
    folder: &Utf8Path,
    options: &Options,
    progress: &Progress<'_>,
) -> Result<Image> {
    let Some(pinned) = reference.digest else {
        return Err(Error::Unpinned { reference: reference.to_string() });
    };
    progress(Event::Resolving { what: reference.to_string() });
    let line = RepositoryClient::new(&reference.host, &reference.repository, options)?;
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(Error::io("create", &blobs))?;
    // Two pulls into one folder would write the same parts. The lock is released with the file.
    let path = folder.join(".lock");
    let lock = joined(tokio::task::spawn_blocking(move || Ok(Lock::exclusive(&path, 0o666)?)).await)?;
    let image = fetch(&line, reference, pinned, platform, folder, progress).await;
    drop(lock);
    image
}

async fn fetch(
    line: &RepositoryClient,
    reference: &Reference,
    pinned: Digest,
    platform: &Platform,
    folder: &Utf8Path,
    progress: &Progress<'_>,
) -> Result<Image> {
    let what = reference.to_string();
    let mut digest = pinned;
    let mut promised: Option<Descriptor> = None;
    for _ in 0..=MOST_DEPTH {
        let (headers, text) = ask(line, reference, &digest.to_string(), progress).await?;
        let media_type = promised.as_ref().map_or_else(|| media_type(&headers), |p| p.media_type.clone());
        let size = promised.as_ref().map_or(text.len() as u64, |p| p.size);
        let descriptor = Descriptor { media_type, digest, size, ..Descriptor::default() };
        agree(&format!("{what} ({digest})"), &descriptor, (Digest::of(&text), text.len() as u64))?;
        match Document::parse(&what, &descriptor.media_type, &text)? {
            Document::Index(index) => {
                let chosen = index.choose(&what, platform)?.clone();
                digest = chosen.digest;
                promised = Some(chosen);
            }
            Document::Manifest(manifest) => {
                let total =
                    manifest.layers.iter().map(|layer| layer.size).try_fold(manifest.config.size, u64::checked_add);
                let most = Some(line.most_bytes()).filter(|most| *most > 0).unwrap_or(MOST_BLOB);
                if total.is_none_or(|total| total > most) || manifest.config.size > MOST_CONFIG {
                    return Err(Error::malformed(what, format!("its declared size is larger than {most} bytes")));
                }
                let mut blobs = BTreeMap::new();
                for wanted in [&manifest.config].into_iter().chain(&manifest.layers) {
                    if blobs.contains_key(&wanted.digest) {
                        continue;
                    }
                    let path = download(line, wanted, folder, progress).await?;
                    if wanted.digest == manifest.config.digest {
                        // Checked before gigabytes of layers for another platform are downloaded.
                        let text = fs::read(&path).map_err(Error::io("read", &path))?;
                        ImageConfig::platform(&what, &text, platform)?;
                    }
                    let content = Content::file(&path, wanted.size);
                    let blob =
                        Blob { path: blob_path(wanted.digest), size: wanted.size, digest: wanted.digest, content };
                    blobs.insert(wanted.digest, blob);
                }
                let config =
                    fs::read(folder.join(blob_path(manifest.config.digest))).map_err(Error::io("read", folder))?;
                let runs = ImageConfig::platform(&what, &config, platform)?;
                blobs.insert(
                    digest,
                    Blob { path: blob_path(digest), size: descriptor.size, digest, content: Content::bytes(text) },
                );
                let blobs = blobs.into_values().collect();
                return Ok(Image { name: reference.name(), platform: runs, manifest: descriptor, pinned, blobs });
            }
        }
    }
    Err(Error::malformed(what, "its image indexes are nested too deeply"))
}

/// A manifest by tag or digest.
async fn ask(
    line: &RepositoryClient,
    reference: &Reference,
    which: &str,
    progress: &Progress<'_>,
) -> Result<(HeaderMap, Vec<u8>)> {
    let url = line.address("manifests", which)?;
    let mut headers = HeaderMap::new();
    for accepted in media::ALL {
        headers.append(ACCEPT, HeaderValue::from_static(accepted));
    }
    let refused = |fault| explain(fault, format!("{}/{} {which}", reference.host, reference.repository));
    line.get_small(&url, &headers, MOST_DOCUMENT as usize, progress).await.map_err(refused)
}

fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_owned()
}

fn explain(fault: Fault, what: String) -> Error {
    match fault {
        Fault::Fatal(error) => error,
        Fault::Again(failure) => Error::Network { what, attempts: 1, why: failure.reason },
        Fault::Refused { status: StatusCode::NOT_FOUND, .. } => {
            Error::Missing { what, why: "the registry has no such repository, tag or digest".to_owned() }
        }
        Fault::Refused { status, .. } => {
            let hint = "check the name, and whether the account may pull from this repository".to_owned();
            Error::Denied { what, why: format!("the registry answered {status}"), hint }
        }
    }
}

/// Why one attempt at a blob ended.
enum AttemptError {
    Again(Transient),
    Error(Error),
}

async fn download(
    line: &RepositoryClient,
    wanted: &Descriptor,
    folder: &Utf8Path,
    progress: &Progress<'_>,
) -> Result<Utf8PathBuf> {
    let path = folder.join(blob_path(wanted.digest));
    if let Ok(file) = File::open(&path) {
        // A cached blob is verified before use.
        let found = hash(file, &path).await?;
        if found == (wanted.digest, wanted.size) {
            return Ok(path);
        }
        fs::remove_file(&path).map_err(Error::io("remove", &path))?;
    }
    let part = Utf8PathBuf::from(format!("{path}.part"));
    let url = line.address("blobs", &wanted.digest.to_string())?;
    let mut attempts = Attempts::new(line.limits());
    let mut damaged = 0;
    loop {
        let before = length(&part);
        match attempt(line, wanted, &url, &part, progress).await {
            Ok(found) if found == wanted.digest => {
                fs::rename(&part, &path).map_err(Error::io("write", &path))?;
                return Ok(path);
            }
            Ok(found) => {
                // The part may be from before a power failure. Two complete downloads with a wrong digest are an error.
                fs::remove_file(&part).map_err(Error::io("remove", &part))?;
                damaged += 1;
                if damaged > 1 {
                    return Err(Error::Mismatch {
                        what: shown(&url),
                        expected: wanted.digest.to_string(),
                        found: found.to_string(),
                    });
                }
                progress(Event::Retrying { attempt: 2, why: format!("{} was damaged", wanted.digest) });
            }
            Err(AttemptError::Again(failure)) => {
                let paused = attempts.pause(&shown(&url), failure, length(&part) > before, progress).await;
                paused.map_err(|gave_up| Error::gave_up(&url, gave_up))?;
            }
            Err(AttemptError::Error(error)) => return Err(error),
        }
    }
}

/// One request, which resumes at the end of the part. The digest is that of the whole part.
async fn attempt(
    line: &RepositoryClient,
    wanted: &Descriptor,
    url: &Url,
    part: &Utf8Path,
    progress: &Progress<'_>,
) -> Result<Digest, AttemptError> {
    let fatal = |action| move |error| AttemptError::Error(Error::io(action, part)(error));
    if length(part) > wanted.size {
        fs::remove_file(part).map_err(fatal("remove"))?;
    }
    let mut offset = length(part);
    let mut hasher = Hashing::new(io::sink());
    if offset > 0 {
        hasher = resume(part.to_owned()).await.map_err(AttemptError::Error)?;
    }
    if offset < wanted.size || wanted.size == 0 {
        let mut headers = HeaderMap::new();
        if offset > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={offset}-"))
        {
            headers.insert(RANGE, range);
        }
        let mut response = match line.get(url, &headers, progress).await {
            Ok(response) => response,
            Err(Fault::Again(failure)) => return Err(AttemptError::Again(failure)),
            Err(fault) => return Err(AttemptError::Error(explain(fault, shown(url)))),
        };
        match response.status() {
            StatusCode::PARTIAL_CONTENT if begins_at(response.headers(), offset) => {}
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                fs::remove_file(part).or_else(ignore_missing).map_err(fatal("remove"))?;
                let why = "it answered with another byte range than requested";
                return Err(AttemptError::Again(Transient::connection(why)));
            }
            // The registry does not support ranges: restart.
            _ => {
                offset = 0;
                hasher = Hashing::new(io::sink());
            }
        }
        let mut file =
            tokio::fs::OpenOptions::new().create(true).append(true).open(part).await.map_err(fatal("write"))?;
        file.set_len(offset).await.map_err(fatal("write"))?;
        let mut last_reported = offset;
        let name = wanted.digest.hex()[..12].to_owned();
        let end = loop {
            let chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error_chain(&error.without_url())),
            };
            offset += chunk.len() as u64;
            if offset > wanted.size {
                drop(file);
                fs::remove_file(part).or_else(ignore_missing).map_err(fatal("remove"))?;
                let expected = format!("{} bytes", wanted.size);
                return Err(AttemptError::Error(Error::Mismatch {
                    what: shown(url),
                    expected,
                    found: "more".to_owned(),
                }));
            }
            hasher.write_all(&chunk).map_err(fatal("write"))?;
            file.write_all(&chunk).await.map_err(fatal("write"))?;
            if offset - last_reported >= 1 << 20 {
                last_reported = offset;
                progress(Event::File { name: name.clone(), done: offset, total: Some(wanted.size) });
            }
        };
        // Received bytes are kept after any error: the next attempt resumes there.
        file.flush().await.map_err(fatal("write"))?;
        file.sync_all().await.map_err(fatal("write"))?;
        progress(Event::File { name, done: offset, total: Some(wanted.size) });
        if let Err(why) = end {
            return Err(AttemptError::Again(Transient::connection(why)));
        }
        if offset < wanted.size {
            let why = format!("the download ended after {offset} of {} bytes", wanted.size);
            return Err(AttemptError::Again(Transient::connection(why)));
        }
    }
    Ok(Digest::from(hasher.finish().1.sha256))
}

fn ignore_missing(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn begins_at(headers: &HeaderMap, offset: u64) -> bool {
    let range = headers.get(CONTENT_RANGE).and_then(|v| v.to_str().ok()).and_then(|text| text.strip_prefix("bytes "));
    range.and_then(|text| text.split_once('-')?.0.trim().parse::<u64>().ok()) == Some(offset)
}

fn length(path: &Utf8Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len())
}

/// The digest of an incomplete blob so far.
async fn resume(path: Utf8PathBuf) -> Result<Hashing<io::Sink>> {
    let job = move || {
        let mut file = File::open(&path).map_err(Error::io("open", &path))?;
        let mut hasher = Hashing::new(io::sink());
        io::copy(&mut file, &mut hasher).map_err(Error::io("read", &path))?;
        Ok(hasher)
    };
    joined(tokio::task::spawn_blocking(job).await)
}

async fn hash(file: File, path: &Utf8Path) -> Result<(Digest, u64)> {
    let path = path.to_owned();
    joined(tokio::task::spawn_blocking(move || Digest::of_reader(file).map_err(Error::io("read", &path))).await)
}

fn joined<T>(joined: Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    joined.unwrap_or_else(|error| Err(Error::Setting { what: "a thread".to_owned(), why: error.to_string() }))
}
