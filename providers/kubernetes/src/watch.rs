//! Waiting for a change of one object by a watch: it is seen when it comes, and nothing is asked again and again meanwhile.
//!
//! A watch goes on from a version of the object; the API server keeps the changes of a few minutes, tells by bookmarks how far an
//! object that does not change has come, and answers 410 to whoever asks for older ones: then one looks anew
//! (<https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes>).

use std::time::Duration;

use http_body_util::BodyExt;
use serde_json::Value;
use textnlp_provider::{Error, Result, Sort};
use tokio::time::Instant;

use crate::api::Api;
use crate::error::Call;

/// The longest line of a watch that is read: etcd takes objects of 1.5 MiB, with who owns what in them.
const LONGEST: usize = 8 << 20;
/// A server that ends each watch at once is not asked faster than this.
const BREATH: Duration = Duration::from_millis(100);

/// What a watch has shown.
#[derive(Debug, PartialEq)]
pub(crate) enum Change {
    /// The object as it is now, which may be another one of its name.
    Is(Value),
    /// It was removed.
    Gone,
    /// Nothing has changed.
    Nothing,
    /// What came after the version that was known is not kept any more: one looks anew.
    TooOld,
}

/// The next change of an object after `version`, for as long as `patience` lasts.
///
/// # Errors
/// Where it may not be watched, and where the way to the API server is lost.
pub(crate) async fn next(api: &Api, call: &Call<'_>, version: &str, patience: Duration) -> Result<Change> {
    let (until, mut version) = (Instant::now() + patience, version.to_owned());
    loop {
        let began = Instant::now();
        match tokio::time::timeout_at(until, one(api, call, &mut version, until)).await {
            Err(_) => return Ok(Change::Nothing),
            Ok(Err(error)) if matches!(error.code.as_deref(), Some("Expired" | "Gone")) => return Ok(Change::TooOld),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(Some(change))) => return Ok(change),
            // The server ended it, as it does with each one day.
            Ok(Ok(None)) => tokio::time::sleep_until((began + BREATH).min(until)).await,
        }
    }
}

/// One watch, until it shows a change or ends; bookmarks move `version`.
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
        let frame = frame.map_err(|source| call.error(Sort::Unavailable).because(source))?;
        read.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        while let Some(end) = read.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = read.drain(..=end).collect();
            if let Some(change) = event(call, &line, version)? {
                return Ok(Some(change));
            }
        }
        if read.len() > LONGEST {
            return Err(call.error(Sort::Unavailable).because(format!("a change is longer than {LONGEST} bytes")));
        }
    }
    Ok(None)
}

/// What one line says.
fn event(call: &Call<'_>, line: &[u8], version: &mut String) -> Result<Option<Change>> {
    let unreadable = |why: String| call.error(Sort::Unavailable).because(why);
    let mut event: Value =
        serde_json::from_slice(line).map_err(|source| unreadable(format!("a change is no JSON: {source}")))?;
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
            Err(Error::new(Sort::Unavailable, call.action, call.subject())
                .because(text("message"))
                .code(text("reason")))
        }
        other => Err(unreadable(format!("a change of a kind that is not known: {other:?}"))),
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
        let said = event(&call, line.as_bytes(), &mut version);
        match (said, expect) {
            (Ok(said), Ok(expect)) => assert_eq!(said, expect, "{line}"),
            (Err(error), Err(code)) => assert_eq!(error.code.as_deref().unwrap_or_default(), code, "{line}"),
            (said, expect) => panic!("{line}: {said:?} and not {expect:?}"),
        }
        version
    }

    #[test]
    fn every_kind_of_line_is_understood() {
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
