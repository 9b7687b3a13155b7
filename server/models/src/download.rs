//! One file from the network into the store: resumed, bounded, checked.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::time::Instant;

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use camino::{Utf8Path, Utf8PathBuf};
use futures::StreamExt;
use futures::stream::BoxStream;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use serde::{Deserialize, Serialize};
use textnlp_net::error_chain;
use textnlp_net::retry::Transient;
use tokio::io::AsyncWriteExt;

use crate::attempts::Attempts;
use crate::bucket::Bucket;
use crate::chunks::{Recorded, Recorder};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::local;
use crate::manifest::FileEntry;
use crate::options::Limits;
use crate::progress::{Event, Progress};
use crate::store::Assembly;
use crate::transport::{Fault, Reply, Transport, shown};

/// Where files come from.
#[derive(Clone, Copy)]
pub(crate) enum Origin<'a> {
    /// Servers of the web.
    Web(&'a Transport),
    /// A bucket.
    Bucket(&'a Bucket),
}

impl Origin<'_> {
    fn limits(&self) -> &Limits {
        match self {
            Origin::Web(transport) => &transport.limits,
            Origin::Bucket(bucket) => &bucket.limits,
        }
    }
}

/// The content of a file from its byte `from` on.
pub(crate) struct Opened {
    pub(crate) from: u64,
    /// Bytes of the whole file, if known.
    pub(crate) total: Option<u64>,
    pub(crate) etag: Option<String>,
    pub(crate) body: Body,
}

/// The bytes that are coming.
pub(crate) enum Body {
    Web(reqwest::Response),
    Bucket(BoxStream<'static, object_store::Result<bytes::Bytes>>),
}

impl Body {
    async fn chunk(&mut self) -> Result<Option<bytes::Bytes>, String> {
        match self {
            Body::Web(response) => response.chunk().await.map_err(|error| error_chain(&error.without_url())),
            Body::Bucket(stream) => stream.next().await.transpose().map_err(|error| error_chain(&error)),
        }
    }
}

/// A file to download, with what is known about it beforehand.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    pub(crate) url: reqwest::Url,
    pub(crate) bytes: Option<u64>,
    pub(crate) check: Check,
}

/// How the content is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    /// By its SHA-256.
    Sha256(Digest),
    /// By the SHA-1 of a git blob, all that a hub has for small files.
    GitBlob([u8; 20]),
    /// No digest is known: only TLS and the size protect it; the digest is recorded at this first pull.
    Nothing,
}

/// What a partial download continues, written beside it.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct PartialState {
    url: String,
    etag: Option<String>,
    bytes: Option<u64>,
}

struct Partial {
    data: Utf8PathBuf,
    state: Utf8PathBuf,
    lock: Utf8PathBuf,
}

/// Why an attempt ended without the whole file.
enum AttemptError {
    Again(Transient),
    Refused(Fault),
    Error(Error),
}

impl From<Fault> for AttemptError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Again(failure) => AttemptError::Again(failure),
            Fault::Fatal(error) => AttemptError::Error(error),
            refused @ Fault::Refused { .. } => AttemptError::Refused(refused),
        }
    }
}

impl From<Error> for AttemptError {
    fn from(error: Error) -> Self {
        AttemptError::Error(error)
    }
}

/// Downloads the file into the assembly. The outer error is local, the inner one is the server's refusal.
pub(crate) async fn download(
    origin: Origin<'_>,
    assembly: &Assembly<'_>,
    wanted: &Wanted,
    progress: &Progress<'_>,
) -> Result<Result<FileEntry, Fault>> {
    if let Check::Sha256(digest) = wanted.check
        && let Some(entry) = assembly.reuse(&wanted.name, digest).await?
    {
        progress(Event::File { name: wanted.name.clone(), done: entry.bytes, total: Some(entry.bytes) });
        return Ok(Ok(entry));
    }

    let partial = Partial::of(assembly, wanted);
    let waits = || progress(Event::Waiting { for_what: format!("another download of {}", wanted.name), seconds: 0 });
    let _held = local::lock(&partial.lock, false, origin.limits().lock_wait, &wanted.name, waits).await?;

    let mut attempts = Attempts::new(origin.limits());
    let mut fresh_tries = 0;
    loop {
        let before = length(&partial.data);
        match attempt(origin, assembly, wanted, &partial, progress).await {
            Ok((check, file)) => {
                progress(Event::Verifying { name: wanted.name.clone() });
                match checked(&wanted.name, &partial.data, file, check).await? {
                    Ok((found, file)) => {
                        let entry = assembly.take(&wanted.name, found, file, &partial.data).await?;
                        local::remove_file(&partial.state)?;
                        return Ok(Ok(entry));
                    }
                    Err(found) => {
                        // The partial file may be damaged by a power failure, or be of another version; the next
                        // attempt starts from zero. Two complete downloads with a wrong digest are no coincidence.
                        partial.clear()?;
                        fresh_tries += 1;
                        if fresh_tries > 1 {
                            return Err(Error::Mismatch { what: wanted.name.clone(), expected: check.text(), found });
                        }
                        progress(Event::Retrying { attempt: 2, why: format!("{} was damaged", wanted.name) });
                    }
                }
            }
            Err(AttemptError::Again(failure)) => {
                let progressed = length(&partial.data) > before;
                let paused = attempts.pause(&shown(&wanted.url), failure, progressed, progress).await;
                paused.map_err(|gave_up| Error::gave_up(&wanted.url, gave_up))?;
            }
            Err(AttemptError::Refused(fault)) => return Ok(Err(fault)),
            Err(AttemptError::Error(error)) => return Err(error),
        }
    }
}

/// Bytes that will still have to come.
pub(crate) fn remaining(assembly: &Assembly<'_>, wanted: &Wanted) -> u64 {
    if let Check::Sha256(digest) = wanted.check
        && assembly.store().has_blob(digest)
    {
        return 0;
    }
    wanted.bytes.unwrap_or(0).saturating_sub(length(&Partial::of(assembly, wanted).data))
}

/// One request; goes on where the partial file ends. On success the partial file is whole, and returned open: its path may lead elsewhere
/// by then.
async fn attempt(
    origin: Origin<'_>,
    assembly: &Assembly<'_>,
    wanted: &Wanted,
    partial: &Partial,
    progress: &Progress<'_>,
) -> Result<(Check, File), AttemptError> {
    // Without a digest, what other users may have left there would become the model.
    if wanted.check == Check::Nothing && assembly.store().is_shared()? {
        partial.clear()?;
    }
    let begun = partial.begun(wanted)?;
    let mut offset = length(&partial.data);
    // Weak tags do not promise equal bytes, so they cannot be asked for by If-Range. With a known digest the
    // end is checked anyway and a range is safe without; otherwise we begin again.
    let strong = begun.etag.filter(|tag| offset > 0 && !tag.starts_with("W/"));
    if offset > 0 && strong.is_none() && wanted.check == Check::Nothing {
        partial.clear()?;
        offset = 0;
    }
    let answered = match origin {
        Origin::Web(transport) => ask(transport, wanted, strong.as_deref(), offset).await?,
        Origin::Bucket(bucket) => (wanted.check, bucket.ask(wanted, strong.as_deref(), offset).await?),
    };
    let (check, opened) = match answered {
        (check, Placed::Go(opened)) => (check, opened),
        (check, Placed::Whole) => {
            let file = local::open_to_read(&partial.data).map_err(Error::io("open", &partial.data))?;
            return Ok((check, file));
        }
        (_, Placed::Elsewhere) => {
            partial.clear()?;
            let why = "it answered with another range than was requested";
            return Err(AttemptError::Again(Transient::connection(why)));
        }
    };
    let Opened { from, total, etag, body } = opened;
    let total = agreed_size(&wanted.name, &[wanted.bytes, total])?;
    assembly.make_room(&wanted.name, total.unwrap_or(0).saturating_sub(from))?;
    partial.remember(&PartialState { url: shown(&wanted.url), etag, bytes: total })?;
    let file = receive(origin.limits(), assembly, wanted, partial, from, total, body, progress).await?;
    Ok((check, file))
}

/// Asks a server of the web for the bytes from `offset` on; `tag` is the version that the partial file is of.
async fn ask(
    transport: &Transport,
    wanted: &Wanted,
    tag: Option<&str>,
    offset: u64,
) -> Result<(Check, Placed), AttemptError> {
    let mut headers = HeaderMap::new();
    if offset > 0 {
        if let Some(tag) = tag.and_then(|tag| HeaderValue::from_str(tag).ok()) {
            headers.insert(IF_RANGE, tag);
        }
        if let Ok(range) = HeaderValue::from_str(&format!("bytes={offset}-")) {
            headers.insert(RANGE, range);
        }
    }
    let reply = transport.get(&wanted.url, &headers).await?;
    let check = match wanted.check {
        Check::Nothing => promised_check(&reply.first),
        known => known,
    };
    Ok((check, placed(reply, offset, &wanted.name)?))
}

/// Where an answer continues the partial file.
pub(crate) enum Placed {
    /// The content comes.
    Go(Opened),
    /// The partial file is complete.
    Whole,
    /// The answer does not continue the partial file.
    Elsewhere,
}

fn placed(reply: Reply, offset: u64, name: &str) -> Result<Placed> {
    let Reply { response, first } = reply;
    let range = header(response.headers(), CONTENT_RANGE.as_str()).and_then(|text| text.strip_prefix("bytes "));
    let (from, total) = match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let parsed = range.and_then(|text| {
                let (span, total) = text.split_once('/')?;
                Some((span.split_once('-')?.0.parse::<u64>().ok()?, total.parse::<u64>().ok()))
            });
            match parsed {
                Some((from, total)) if from == offset && offset > 0 => (from, total),
                _ => return Ok(Placed::Elsewhere),
            }
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            let total = range.and_then(|text| text.strip_prefix("*/")).and_then(|text| text.parse::<u64>().ok());
            return Ok(if offset > 0 && total == Some(offset) { Placed::Whole } else { Placed::Elsewhere });
        }
        _ => (0, response.content_length()),
    };
    let linked = header(&first, "x-linked-size").and_then(|text| text.parse().ok());
    let total = agreed_size(name, &[linked, total])?;
    let etag = header(response.headers(), ETAG.as_str()).map(str::to_owned);
    Ok(Placed::Go(Opened { from, total, etag, body: Body::Web(response) }))
}

/// Every side that names a size must name the same one.
fn agreed_size(name: &str, sizes_given: &[Option<u64>]) -> Result<Option<u64>> {
    let mut sizes = sizes_given.iter().flatten();
    let Some(first) = sizes.next() else { return Ok(None) };
    match sizes.find(|size| *size != first) {
        None => Ok(Some(*first)),
        Some(other) => Err(Error::Mismatch {
            what: name.to_owned(),
            expected: format!("{first} bytes"),
            found: format!("{other} bytes"),
        }),
    }
}

#[expect(clippy::too_many_arguments, reason = "one call, from `attempt`, which is split here to be readable")]
async fn receive(
    limits: &Limits,
    assembly: &Assembly<'_>,
    wanted: &Wanted,
    partial: &Partial,
    offset: u64,
    total: Option<u64>,
    mut body: Body,
    progress: &Progress<'_>,
) -> Result<File, AttemptError> {
    let fail = |error: std::io::Error| AttemptError::Error(Error::io("write", &partial.data)(error));
    let mut file = tokio::fs::File::from_std(local::open_to_write(&partial.data, offset)?);
    let mut done = offset;
    let mut window = (Instant::now(), done);
    let mut shown_at = done;
    progress(Event::File { name: wanted.name.clone(), done, total });
    let end = loop {
        let chunk = match body.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break Ok(()),
            Err(why) => break Err(why),
        };
        done += chunk.len() as u64;
        if total.is_some_and(|total| done > total) {
            drop(file);
            partial.clear()?;
            return Err(AttemptError::Error(Error::Mismatch {
                what: wanted.name.clone(),
                expected: format!("{} bytes", total.unwrap_or_default()),
                found: "more".to_owned(),
            }));
        }
        file.write_all(&chunk).await.map_err(fail)?;
        if done - shown_at >= 1 << 20 {
            shown_at = done;
            progress(Event::File { name: wanted.name.clone(), done, total });
            // The total size is unknown, so free space is checked during the download.
            if total.is_none() && done % (64 << 20) < (1 << 20) {
                assembly.make_room(&wanted.name, 64 << 20)?;
            }
        }
        if window.0.elapsed() >= limits.slow_window {
            if done - window.1 < limits.slow_bytes {
                break Err("the transfer is too slow".to_owned());
            }
            window = (Instant::now(), done);
        }
    };
    // Received bytes are kept after any error: the next attempt resumes there.
    file.flush().await.map_err(fail)?;
    file.sync_all().await.map_err(fail)?;
    progress(Event::File { name: wanted.name.clone(), done, total });
    match end {
        Err(why) => Err(AttemptError::Again(Transient::connection(why))),
        Ok(()) if total.is_some_and(|total| done < total) => {
            Err(AttemptError::Again(Transient::connection(format!("it ended after {done} bytes"))))
        }
        Ok(()) => Ok(file.into_std().await),
    }
}

impl Partial {
    /// By address and check, so that two versions of one file never share a partial download.
    fn of(assembly: &Assembly<'_>, wanted: &Wanted) -> Partial {
        let key = Digest::of(format!("{} {:?}", shown(&wanted.url), wanted.check).as_bytes()).hex();
        let base = assembly.store().folder("partial").join(&key[..32]);
        let file = |end: &str| Utf8PathBuf::from(format!("{base}.{end}"));
        Partial { data: file("part"), state: file("json"), lock: file("lock") }
    }

    /// What the partial file continues. A different address or nothing recorded means it continues nothing.
    fn begun(&self, wanted: &Wanted) -> Result<PartialState> {
        let text = local::read_bounded(&self.state, 64 << 10)?.unwrap_or_default();
        let begun: PartialState = serde_json::from_slice(&text).unwrap_or_default();
        if begun.url != shown(&wanted.url) {
            self.clear()?;
            return Ok(PartialState::default());
        }
        Ok(begun)
    }

    fn remember(&self, begun: &PartialState) -> Result<()> {
        let text = serde_json::to_vec(begun).expect("texts and numbers");
        if local::read_bounded(&self.state, 64 << 10)?.is_some_and(|old| old == text) {
            return Ok(());
        }
        local::write_durably(&self.state, &text)
    }

    fn clear(&self) -> Result<()> {
        local::remove_file(&self.data)?;
        local::remove_file(&self.state)
    }
}

fn length(path: &Utf8Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The digest from the hub's headers: `X-Linked-Etag` is the SHA-256 of a large file, `ETag` the git SHA-1 of a small
/// one. Only hubs define this. Another server's tag may have 64 hex digits by coincidence, which is acceptable: a wrong
/// digest fails the pull with a reason.
fn promised_check(first: &HeaderMap) -> Check {
    let bare = |name: &str| header(first, name).map(|tag| tag.trim_start_matches("W/").trim_matches('"').to_owned());
    if let Some(digest) = bare("x-linked-etag").and_then(|tag| tag.parse().ok()) {
        return Check::Sha256(digest);
    }
    if first.contains_key("x-repo-commit")
        && let Some(tag) = bare("etag")
    {
        return git_blob(&tag).unwrap_or_else(|| tag.parse().map_or(Check::Nothing, Check::Sha256));
    }
    Check::Nothing
}

/// A git blob's id as a check.
pub(crate) fn git_blob(id: &str) -> Option<Check> {
    let mut sha = [0u8; 20];
    hex::decode_to_slice(id, &mut sha).ok()?;
    Some(Check::GitBlob(sha))
}

impl Check {
    fn text(&self) -> String {
        match self {
            Check::Sha256(digest) => digest.to_string(),
            Check::GitBlob(sha) => format!("git blob {}", hex::encode(sha)),
            Check::Nothing => "anything".to_owned(),
        }
    }
}

/// Reads the whole file and compares. The inner error says what was found instead.
async fn checked(name: &str, path: &Utf8Path, file: File, check: Check) -> Result<Result<(Recorded, File), String>> {
    let (name, path) = (name.to_owned(), path.to_owned());
    tokio::task::spawn_blocking(move || check_file(&name, &path, file, check)).await.map_err(|error| {
        Error::Unusable { what: "the check".to_owned(), why: error.to_string(), hint: "repeat".to_owned() }
    })?
}

fn check_file(name: &str, path: &Utf8Path, mut file: File, check: Check) -> Result<Result<(Recorded, File), String>> {
    let fail = |error| Error::io("read", path)(error);
    let length = file.seek(std::io::SeekFrom::End(0)).and_then(|n| file.rewind().map(|()| n)).map_err(fail)?;
    let mut sha256 = Recorder::of(name, &file);
    let mut sha1 = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(format!("blob {length}\0").as_bytes());
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(fail)?;
        if n == 0 {
            break;
        }
        sha256.update(&buffer[..n]);
        if matches!(check, Check::GitBlob(_)) {
            sha1.update(&buffer[..n]);
        }
    }
    let found = sha256.finish();
    Ok(match check {
        Check::Sha256(expected) if expected != found.digest => Err(found.digest.to_string()),
        Check::GitBlob(expected) => {
            let sha1 = sha1.finish();
            if sha1.as_ref() == expected { Ok((found, file)) } else { Err(format!("git blob {}", hex::encode(sha1))) }
        }
        _ => Ok((found, file)),
    })
}
