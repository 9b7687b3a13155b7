//! A file of a bundle as a response: complete or a range, block by block, each verified before it is sent.

use std::io;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use textnlp_bundle::file_source::{Entry, FileSource};

use super::Call;

/// Block size in bytes.
const BLOCK: u64 = 1 << 20;

/// A file to send.
pub(super) struct Sent {
    pub(super) path: String,
    pub(super) entry: Entry,
    pub(super) content_type: &'static str,
    /// In quotes.
    pub(super) etag: String,
    pub(super) headers: Vec<(HeaderName, String)>,
}

/// Sends a file. `Err`: it is damaged or unreadable at the start, before anything was sent. Later errors abort the
/// connection, so that a client never takes a part for the whole.
pub(super) async fn send(call: &Call<'_>, sent: Sent) -> io::Result<Response> {
    let size = sent.entry.size;
    let mut headers = HeaderMap::new();
    let mut put = |name: HeaderName, text: &str| {
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    };
    put(header::CONTENT_TYPE, sent.content_type);
    put(header::ETAG, &sent.etag);
    put(header::ACCEPT_RANGES, "bytes");
    for (name, text) in &sent.headers {
        put(name.clone(), text);
    }
    if asked(call.headers, header::IF_NONE_MATCH).is_some_and(|tags| matches(tags, &sent.etag)) {
        return Ok(respond(StatusCode::NOT_MODIFIED, headers, Body::empty()));
    }
    let same = asked(call.headers, header::IF_RANGE).is_none_or(|tag| tag == sent.etag);
    let range = asked(call.headers, header::RANGE).filter(|_| same).and_then(|text| range(text, size));
    let (status, start, end) = match range {
        None => (StatusCode::OK, 0, size),
        Some(Some((start, end))) => {
            put(header::CONTENT_RANGE, &format!("bytes {start}-{}/{size}", end - 1));
            (StatusCode::PARTIAL_CONTENT, start, end)
        }
        Some(None) => {
            put(header::CONTENT_RANGE, &format!("bytes */{size}"));
            return Ok(respond(StatusCode::RANGE_NOT_SATISFIABLE, headers, Body::empty()));
        }
    };
    put(header::CONTENT_LENGTH, &(end - start).to_string());
    if call.head || start == end {
        return Ok(respond(status, headers, Body::empty()));
    }
    let reading = TransferReader { source: call.desk.source.clone(), path: sent.path.into(), at: start, end };
    // The first block is read before the response starts, so that damage there can still be reported as an error.
    let (first, rest) = reading.block().await?;
    let blocks = futures::stream::unfold((Some(first), Some(rest)), async |(ready, reading)| match (ready, reading) {
        (Some(block), reading) => Some((Ok(block), (None, reading))),
        (None, Some(reading)) if reading.at < reading.end => match reading.block().await {
            Ok((block, reading)) => Some((Ok(block), (None, Some(reading)))),
            Err(error) => Some((Err(error), (None, None))),
        },
        _ => None,
    });
    Ok(respond(status, headers, Body::from_stream(blocks)))
}

/// The rest of a transfer.
struct TransferReader {
    source: Arc<dyn FileSource>,
    path: Arc<str>,
    at: u64,
    end: u64,
}

impl TransferReader {
    async fn block(self) -> io::Result<(Bytes, TransferReader)> {
        let job = move || {
            let size = (self.end - self.at).min(BLOCK);
            let mut block = vec![0; size as usize];
            let mut filled = 0;
            while filled < block.len() {
                match self.source.read_at(&self.path, self.at + filled as u64, &mut block[filled..])? {
                    0 => {
                        let why = format!("{} is shorter than it should be", self.path);
                        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                    }
                    n => filled += n,
                }
            }
            Ok((block.into(), TransferReader { at: self.at + size, ..self }))
        };
        let read = tokio::task::spawn_blocking(job).await.map_err(io::Error::other).and_then(|read| read);
        if let Err(error) = &read {
            tracing::error!(%error, "a file of the bundle cannot be served");
        }
        read
    }
}

fn respond(status: StatusCode, headers: HeaderMap, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn asked(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn matches(tags: &str, own: &str) -> bool {
    tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.trim_start_matches("W/") == own)
}

/// One byte range as `start..end`. Outer `None`: not understood and ignored, as HTTP requires; inner `None`: not
/// satisfiable.
fn range(text: &str, size: u64) -> Option<Option<(u64, u64)>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| text.trim().parse::<u64>().ok();
    Some(
        match (first.trim(), last.trim()) {
            ("", _) => Some((size.saturating_sub(number(last)?), size)),
            (_, "") => Some((number(first)?, size)),
            _ => {
                let (first, last) = (number(first)?, number(last)?);
                if last < first {
                    return None;
                }
                Some((first, size.min(last.saturating_add(1))))
            }
        }
        .filter(|(start, end)| start < end),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_ranges_are_parsed_as_specified() {
        for (text, expected) in [
            ("bytes=0-", Some(Some((0, 10)))),
            ("bytes=2-3", Some(Some((2, 4)))),
            ("bytes=2-99", Some(Some((2, 10)))),
            ("bytes=-3", Some(Some((7, 10)))),
            ("bytes=-99", Some(Some((0, 10)))),
            ("bytes=10-", Some(None)),
            ("bytes=-0", Some(None)),
            ("bytes=99-18446744073709551615", Some(None)),
            ("bytes=3-2", None),
            ("bytes=0-1,3-4", None),
            ("lines=1-2", None),
            ("bytes=x-", None),
        ] {
            assert_eq!(range(text, 10), expected, "{text}");
        }
        assert_eq!(range("bytes=0-", 0), Some(None));
    }
}
