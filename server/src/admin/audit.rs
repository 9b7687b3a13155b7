//! `admin audit`: pages of the audit log by JSON, for the operator's export: a command on standard input, an answer on standard output.

use serde::Deserialize;
use serde_json::{Value, json};
use textnlp_store::{Action, Actor, AuditEvent, AuditPage, Store, StoreError};

use super::keys::{KeysError, operator};
use crate::config::Config;

/// The most rows of one answer.
const MAX_ROWS: u32 = 5000;

/// A query.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Command {
    /// Rows after this number; left out, from the first row.
    #[serde(default)]
    after: i64,
    /// Rows whose last event is not older, in milliseconds since 1970.
    #[serde(default)]
    since: i64,
    #[serde(default = "max_rows")]
    limit: u32,
    /// The exporting operator.
    operator: Option<String>,
}

fn max_rows() -> u32 {
    MAX_ROWS
}

/// Answers one page: `site`, `events`, and `next`, the `after` of the next page, if any. The first page records the
/// export.
pub async fn audit(config: &Config, command: &str) -> Result<Value, KeysError> {
    let wrong = |message: String| KeysError::Command {
        message,
        hint: Some(r#"{"after": 0, "since": 0, "limit": 1000, "operator": "NAME"}"#.to_owned()),
    };
    let command: Command =
        serde_json::from_str(command).map_err(|error| wrong(format!("the command cannot be read: {error}")))?;
    if !(1..=MAX_ROWS).contains(&command.limit) {
        return Err(wrong(format!("`limit` is {}; it must be from 1 to {MAX_ROWS}", command.limit)));
    }
    let by = operator(command.operator.as_deref())?;
    let store = Store::open_existing(&config.database).await?;
    let answer = page(&store, &command, &by).await;
    store.close().await;
    let mut answer = answer?;
    answer["site"] = json!(config.site);
    Ok(answer)
}

async fn page(store: &Store, command: &Command, by: &Actor) -> Result<Value, StoreError> {
    store.prepare().await?;
    if command.after == 0 {
        let export = AuditEvent::new(by, Action::AuditExport).detail(json!({ "since": command.since }));
        store.append_audit(&[export]).await?;
    }
    let wanted = AuditPage { after: command.after, since_ms: command.since, limit: command.limit };
    let events = store.audit_page(wanted).await?;
    let next = events.last().filter(|_| events.len() == command.limit as usize).map(|last| last.number);
    Ok(json!({ "events": events, "next": next }))
}
