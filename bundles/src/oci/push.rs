//! Pushes images to a registry, by the distribution specification
//! (<https://github.com/opencontainers/distribution-spec/blob/main/spec.md#push>). Existing blobs are not sent again.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use reqwest::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION,
};
use reqwest::{Body, Method, Response, StatusCode, Url};
use textnlp_models::{Attempts, Digest, Event, Limits, Progress};
use textnlp_net::retry::Transient;
use tokio::sync::mpsc::Receiver;

use super::content::Blob;
use super::document::MOST_DOCUMENT;
use super::error::{Error, Result};
use super::net::{Fault, Options, RepositoryClient, shown};
use super::{Image, Reference};

/// How much of a blob is read at once.
const CHUNK: usize = 256 << 10;
/// The count of chunks in memory.
const CHUNKS: usize = 4;
/// A part of a blob, for registries that refuse it whole: Azure's refused 29 MB (goharbor/harbor#23015). A slow network sends one within
/// [`CHECK_TIMEOUT`].
const PART: usize = 4 << 20;
/// The client's idle timeout also applies while a body is sent. A blob needs a longer timeout, and aborts if nothing is sent.
const LONGEST_UPLOAD: Duration = Duration::from_secs(6 * 3600);
/// The time between two reports of progress.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// The timeout for the answer after the last byte of a blob, when the registry computes its digest.
const CHECK_TIMEOUT: Duration = Duration::from_secs(300);

/// Pushes an image under the tag of `reference`, and reads its manifest back. Nothing is sent if the tag has this image.
///
/// # Errors
/// The registry refuses, it is not reached, or the tag has another image and is immutable.
pub async fn push(image: &Image, reference: &Reference, options: &Options, progress: &Progress<'_>) -> Result<()> {
    let limits = Limits { idle: LONGEST_UPLOAD, ..options.limits.clone() };
    let idle = options.limits.idle;
    let line = RepositoryClient::new(&reference.host, &reference.repository, &Options { limits, ..options.clone() })?;
    let tag = reference.tag.as_deref().unwrap_or("latest");
    let manifests = line.address("manifests", tag)?;
    let expected = image.manifest.digest;
    progress(Event::Resolving { what: reference.to_string() });
    if pushed(&line, &manifests, image, idle, progress).await? == Some(expected) {
        return Ok(());
    }
    for blob in image.blobs.iter().filter(|blob| blob.digest != expected) {
        upload(&line, blob, idle, progress).await?;
    }
    let manifest = image.blobs.iter().find(|blob| blob.digest == expected);
    let manifest = manifest.ok_or_else(|| Error::malformed(&image.name, "it has no manifest"))?;
    let body = bytes(manifest)?;
    let headers = header(CONTENT_TYPE, &image.manifest.media_type)?;
    retried(&line, &manifests, progress, || {
        let put = line.send(Method::PUT, &manifests, &headers, || Body::from(body.clone()), progress);
        Box::pin(within(idle, put))
    })
    .await?;
    progress(Event::Verifying { name: reference.to_string() });
    match pushed(&line, &manifests, image, idle, progress).await? {
        Some(found) if found == expected => Ok(()),
        found => Err(Error::Mismatch {
            what: reference.to_string(),
            expected: expected.to_string(),
            found: found.map_or_else(|| "nothing".to_owned(), |found| found.to_string()),
        }),
    }
}

/// The digest of the manifest that the tag has.
async fn pushed(
    line: &RepositoryClient,
    url: &Url,
    image: &Image,
    idle: Duration,
    progress: &Progress<'_>,
) -> Result<Option<Digest>> {
    let headers = header(ACCEPT, &image.manifest.media_type)?;
    match within(idle, line.get_small(url, &headers, MOST_DOCUMENT as usize, progress)).await {
        Ok((_, text)) => Ok(Some(Digest::of(&text))),
        Err(Fault::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
        Err(fault) => Err(explain(fault, url)),
    }
}

/// Sends one blob, unless the registry has it.
async fn upload(line: &RepositoryClient, blob: &Blob, idle: Duration, progress: &Progress<'_>) -> Result<()> {
    let url = line.address("blobs", &blob.digest.to_string())?;
    let uploads = line.address("blobs", "uploads/")?;
    if retried(line, &url, progress, || Box::pin(is_there(line, &url, idle, progress))).await? {
        return Ok(());
    }
    retried(line, &uploads, progress, || {
        Box::pin(async {
            match send(line, &uploads, blob, idle, progress).await {
                // Not at first: Google's registry takes no parts.
                Err(Fault::Refused { status: StatusCode::PAYLOAD_TOO_LARGE, .. }) => {
                    send_in_parts(line, &uploads, blob, idle, progress).await
                }
                sent => sent,
            }
        })
    })
    .await
}

/// One attempt to find a blob.
async fn is_there(line: &RepositoryClient, url: &Url, idle: Duration, progress: &Progress<'_>) -> Result<bool, Fault> {
    let headers = HeaderMap::new();
    match within(idle, line.send(Method::HEAD, url, &headers, Body::default, progress)).await {
        Ok(_) => Ok(true),
        Err(Fault::Refused { status, .. }) if status == StatusCode::NOT_FOUND => Ok(false),
        // The blob exists; the registry redirects to its storage.
        Err(Fault::Refused { status, .. }) if status.is_redirection() => Ok(true),
        Err(fault) => Err(fault),
    }
}

/// Begins an upload: its address.
async fn begin(line: &RepositoryClient, uploads: &Url, idle: Duration, progress: &Progress<'_>) -> Result<Url, Fault> {
    let empty = HeaderMap::new();
    let started = within(idle, line.send(Method::POST, uploads, &empty, Body::default, progress)).await?;
    next(uploads, &started)
}

/// Where an upload goes on.
fn next(at: &Url, answer: &Response) -> Result<Url, Fault> {
    let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let next = location.and_then(|location| at.join(location).ok());
    next.ok_or_else(|| Fault::Fatal(Error::malformed(shown(at), "it names no address for an upload")))
}

/// One attempt to send a blob in parts.
async fn send_in_parts(
    line: &RepositoryClient,
    uploads: &Url,
    blob: &Blob,
    idle: Duration,
    progress: &Progress<'_>,
) -> Result<(), Fault> {
    let mut at = begin(line, uploads, idle, progress).await?;
    let name = blob.digest.hex()[..12].to_owned();
    let mut parts = parts(blob.clone(), PART, 1);
    let mut done = 0;
    while let Some(part) = parts.recv().await {
        let part = part.map_err(|error| Fault::Fatal(Error::io("read", &blob.path)(error)))?;
        progress(Event::File { name: name.clone(), done, total: Some(blob.size) });
        let end = done + part.len() as u64;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(part.len()));
        if let Ok(range) = HeaderValue::try_from(format!("{done}-{}", end.saturating_sub(1))) {
            headers.insert(CONTENT_RANGE, range);
        }
        let sent = line.send(Method::PATCH, &at, &headers, || Body::from(part.clone()), progress);
        at = next(&at, &within(CHECK_TIMEOUT, sent).await?)?;
        done = end;
    }
    at.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
    let headers = HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from(0))]);
    within(CHECK_TIMEOUT, line.send(Method::PUT, &at, &headers, Body::default, progress)).await?;
    progress(Event::File { name, done, total: Some(blob.size) });
    Ok(())
}

/// One attempt to send a blob.
async fn send(
    line: &RepositoryClient,
    uploads: &Url,
    blob: &Blob,
    idle: Duration,
    progress: &Progress<'_>,
) -> Result<(), Fault> {
    let mut at = begin(line, uploads, idle, progress).await?;
    at.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
    let name = blob.digest.hex()[..12].to_owned();
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(blob.size));
    let sent = Arc::new(AtomicU64::new(0));
    let send = line.send(Method::PUT, &at, &headers, || stream(blob.clone(), sent.clone()), progress);
    let mut send = std::pin::pin!(send);
    let (mut before, mut since) = (0, Instant::now());
    loop {
        let done = sent.load(Ordering::Relaxed);
        progress(Event::File { name: name.clone(), done, total: Some(blob.size) });
        if done > before {
            (before, since) = (done, Instant::now());
        }
        if since.elapsed() > if done < blob.size { idle } else { CHECK_TIMEOUT } {
            return Err(Fault::Again(Transient::connection("the upload does not go on")));
        }
        if let Ok(answer) = tokio::time::timeout(REPORT_INTERVAL, &mut send).await {
            progress(Event::File { name, done: blob.size, total: Some(blob.size) });
            return answer.map(drop);
        }
    }
}

/// A blob as the body of a request. A file that cannot be read ends the request.
fn stream(blob: Blob, sent: Arc<AtomicU64>) -> Body {
    let received = parts(blob, CHUNK, CHUNKS);
    Body::wrap_stream(futures::stream::unfold((received, sent), |(mut received, sent)| async {
        let chunk = received.recv().await?;
        sent.fetch_add(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64), Ordering::Relaxed);
        Some((chunk, (received, sent)))
    }))
}

/// The parts of a blob, read in the background, of which some wait in memory.
fn parts(blob: Blob, size: usize, waiting: usize) -> Receiver<std::io::Result<Vec<u8>>> {
    let (parts, received) = tokio::sync::mpsc::channel(waiting);
    tokio::task::spawn_blocking(move || {
        let mut reader = blob.content.reader();
        loop {
            let mut part = Vec::with_capacity(size);
            let read = reader.by_ref().take(size as u64).read_to_end(&mut part);
            let is_error = read.is_err();
            let next = match read {
                Ok(0) => return,
                read => read.map(|_| part),
            };
            // The request has ended if nothing receives.
            if parts.blocking_send(next).is_err() || is_error {
                return;
            }
        }
    });
    received
}

async fn within<T>(idle: Duration, answer: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let silent = |_| Err(Fault::Again(Transient::connection(format!("no answer within {} s", idle.as_secs()))));
    tokio::time::timeout(idle, answer).await.unwrap_or_else(silent)
}

/// Tries again what may pass.
async fn retried<'a, T>(
    line: &RepositoryClient,
    url: &Url,
    progress: &Progress<'_>,
    attempt: impl Fn() -> BoxFuture<'a, Result<T, Fault>>,
) -> Result<T> {
    let mut attempts = Attempts::new(line.limits());
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(Fault::Again(failure)) => attempts
                .pause(&shown(url), failure, false, progress)
                .await
                .map_err(|gave_up| Error::gave_up(url, gave_up))?,
            Err(fault) => return Err(explain(fault, url)),
        }
    }
}

fn explain(fault: Fault, url: &Url) -> Error {
    let what = shown(url);
    match fault {
        Fault::Fatal(error) => error,
        Fault::Again(Transient { reason, .. }) => Error::Network { what, attempts: 1, why: reason },
        Fault::Refused { status, says } => {
            let says = if says.is_empty() { String::new() } else { format!(": {says}") };
            let hint = "check that the repository exists, and that the account may push to it".to_owned();
            Error::Denied { what, why: format!("the registry answered {status}{says}"), hint }
        }
    }
}

fn header(name: HeaderName, value: &str) -> Result<HeaderMap> {
    let invalid = |_| Error::malformed(value, "it cannot be a header of a request");
    Ok(HeaderMap::from_iter([(name, HeaderValue::from_str(value).map_err(invalid)?)]))
}

fn bytes(blob: &Blob) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = blob.content.reader().take(MOST_DOCUMENT).read_to_end(&mut bytes);
    read.map_err(Error::io("read", &blob.path))?;
    Ok(bytes)
}
