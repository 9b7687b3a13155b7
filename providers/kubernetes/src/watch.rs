//! Waiting for a change of one object by a watch instead of polling.
//!
//! A watch resumes from a `resourceVersion`. The API server retains the changes of a few minutes, reports progress
//! without changes by bookmarks, and answers 410 to an older version: then the object is read again
//! (<https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes>).

use std::time::Duration;

use http_body_util::BodyExt;
use serde_json::Value;
use textnlp_provider::{Error, ErrorKind, Result};
use tokio::time::Instant;

use crate::api::Api;
use crate::error::Call;

/// The limit of one watch event in bytes: etcd stores objects up to 1.5 MiB, and the API adds field ownership.
const MAX_EVENT_BYTES: usize = 8 << 20;
/// The minimum interval between two watches, for a server that ends each one at once.
const BREATH: Duration = Duration::from_millis(100);

/// The result of a watch.
#[derive(Debug, PartialEq)]
pub(crate) enum Change {
    /// The current object, which may be a new one of the same name.
    Is(Value),
    /// It was deleted.
    Gone,
    /// No change.
    Nothing,
    /// The version is too old to resume from: the object must be read again.
    TooOld,
}

/// The next change of an object after `version`, within `patience`.
///
/// # Errors
/// If watching is not permitted, or the connection to the API server is lost.
pub(crate) async fn next(api: &Api, call: &Call<'_>, version: &str, patience: Duration) -> Result<Change> {
    let (until, mut version) = (Instant::now() + patience, version.to_owned());
    loop {
        let began = Instant::now();
        match tokio::time::timeout_at(until, one(api, call, &mut version, until)).await {
            Err(_) => return Ok(Change::Nothing),
            Ok(Err(error)) if matches!(error.code.as_deref(), Some("Expired" | "Gone")) => return Ok(Change::TooOld),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(Some(change))) => return Ok(change),
            // The server ends every watch after some time.
            Ok(Ok(None)) => tokio::time::sleep_until((began + BREATH).min(until)).await,
        }
    }
}

/// One watch, until a change or its end; bookmarks update `version`.
async fn one(api: &Api, call: &Call<'_>, version: &mut String, until: Instant) -> Result<Option<Change>> {
    let seconds = until.saturating_duration_since(Instant::now()).as_secs() + 1;
    let path = format!(
        "{}?watch=1&allowWatchBookmarks=true&fieldSelector=metadata.name%3D{}&resourceVersion={version}&timeoutSeconds={seconds}",
        call.row.path(call.namespace),
        call.name.unwrap_or_default(),
    );
    let mut body = api.stream(call, &path).await?;
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|source| call.error(ErrorKind::Unavailable).because(source))?;
        read.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = read.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = read.drain(..=end).collect();
            if let Some(change) = event(call, &line, version)? {
                return Ok(Some(change));
            }
        }
        if read.len() > MAX_EVENT_BYTES {
            return Err(call
                .error(ErrorKind::Unavailable)
                .because(format!("a watch event is longer than {MAX_EVENT_BYTES} bytes")));
        }
    }
    Ok(None)
}

/// Parses one watch event.
fn event(call: &Call<'_>, line: &[u8], version: &mut String) -> Result<Option<Change>> {
    let unreadable = |why: String| call.error(ErrorKind::Unavailable).because(why);
    let mut event: Value =
        serde_json::from_slice(line).map_err(|source| unreadable(format!("a watch event is not JSON: {source}")))?;
    let object = event["object"].take();
    match event["type"].as_str() {
        Some("ADDED" | "MODIFIED") => Ok(Some(Change::Is(object))),
        Some("DELETED") => Ok(Some(Change::Gone)),
        Some("BOOKMARK") => {
            if let Some(bookmark) = object["metadata"]["resourceVersion"].as_str() {
                bookmark.clone_into(version);
            }
            Ok(None)
        }
        Some("ERROR") => {
            let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
            Err(Error::new(ErrorKind::Unavailable, call.action, call.subject())
                .because(text("message"))
                .code(text("reason")))
        }
        other => Err(unreadable(format!("a watch event of an unknown type: {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::table::ROWS;

    fn check(line: &str, expect: std::result::Result<Option<Change>, &str>) -> String {
        let call = Call { action: "wait for", verb: "watch", row: &ROWS[0], namespace: None, name: Some("a") };
        let mut version = "7".to_owned();
        let parsed = event(&call, line.as_bytes(), &mut version);
        match (parsed, expect) {
            (Ok(parsed), Ok(expect)) => assert_eq!(parsed, expect, "{line}"),
            (Err(error), Err(code)) => assert_eq!(error.code.as_deref().unwrap_or_default(), code, "{line}"),
            (parsed, expect) => panic!("{line}: {parsed:?} and not {expect:?}"),
        }
        version
    }

    #[test]
    fn every_watch_event_type_is_parsed() {
        let object = json!({ "metadata": { "name": "a" } });
        check(r#"{"type":"ADDED","object":{"metadata":{"name":"a"}}}"#, Ok(Some(Change::Is(object.clone()))));
        check(r#"{"type":"MODIFIED","object":{"metadata":{"name":"a"}}}"#, Ok(Some(Change::Is(object))));
        check(r#"{"type":"DELETED","object":{}}"#, Ok(Some(Change::Gone)));
        let bookmark = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}"#;
        assert_eq!(check(bookmark, Ok(None)), "9");
        assert_eq!(check(r#"{"type":"BOOKMARK","object":{}}"#, Ok(None)), "7");
        check(r#"{"type":"ERROR","object":{"reason":"Expired","message":"too old"}}"#, Err("Expired"));
        check(r#"{"type":"NEWS"}"#, Err(""));
        check("not JSON", Err(""));
    }
}
