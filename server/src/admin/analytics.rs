//! `admin analytics`: runs usage analytics, or reads its results, by JSON: a command on standard input, an answer on standard
//! output. The scheduled job of a cluster runs it.

use serde::Deserialize;
use serde_json::{Value, json};
use textnlp_net::retry::retry;
use textnlp_store::analytics::{InsightKind, InsightQuery, KINDS, MAX_INSIGHTS, settles_in};
use textnlp_store::{RETRIES, Store, StoreError, now_ms};

use super::keys::KeysError;
use crate::config::Config;

/// A command.
#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
enum Command {
    /// Analyzes the hours that were not analyzed yet.
    Run {},
    /// Lists insights of all tenants.
    List {
        /// Of hours that end after this, in milliseconds since 1970.
        #[serde(default)]
        since: i64,
        kind: Option<String>,
        #[serde(default = "max_insights")]
        limit: u32,
    },
    /// When the last run was, and how many insights it wrote.
    Status {},
}

fn max_insights() -> u32 {
    MAX_INSIGHTS
}

/// Answers with `site` and with what the command did or read.
pub async fn analytics(config: &Config, command: &str) -> Result<Value, KeysError> {
    let wrong = |message: String, hint: String| KeysError::Command { message, hint: Some(hint) };
    let command: Command = serde_json::from_str(command).map_err(|error| {
        wrong(format!("the command cannot be read: {error}"), r#"{"do": "list", "since": 0, "limit": 100}"#.to_owned())
    })?;
    // One more, to know whether there are more.
    let mut query = InsightQuery { since_ms: 0, kind: None, limit: MAX_INSIGHTS + 1 };
    if let Command::List { since, kind, limit } = &command {
        if !(1..=MAX_INSIGHTS).contains(limit) {
            let hint = format!("a number from 1 to {MAX_INSIGHTS}");
            return Err(wrong(format!("`limit` is {limit}; it must be from 1 to {MAX_INSIGHTS}"), hint));
        }
        (query.since_ms, query.limit) = (*since, *limit + 1);
        if let Some(name) = kind {
            let known = KINDS.map(|definition| definition.name).join(", ");
            let kind =
                InsightKind::named(name).ok_or_else(|| wrong("`kind` is not a kind of insights".to_owned(), known))?;
            query.kind = Some(kind);
        }
    }
    let is_run = matches!(command, Command::Run {});
    if is_run && config.analytics.is_none() {
        let hint = "set `server.analytics.enabled: true`, then `up`".to_owned();
        return Err(wrong("usage analytics is off".to_owned(), hint));
    }
    if is_run {
        // A job that starts on the hour: the last requests of the hour are still written.
        tokio::time::sleep(settles_in(now_ms())).await;
    }
    let store = Store::open_existing(&config.database).await?;
    let answer = answer(&store, &command, query, config.analytics.is_some()).await;
    store.close().await;
    let mut answer = answer?;
    answer["site"] = json!(config.site);
    Ok(answer)
}

async fn answer(store: &Store, command: &Command, query: InsightQuery, is_enabled: bool) -> Result<Value, StoreError> {
    store.prepare().await?;
    let now = now_ms();
    match command {
        Command::Run {} => {
            let done = retry(RETRIES, StoreError::may_be_repeated, || store.analyze(now)).await?;
            Ok(json!({ "run": done }))
        }
        Command::List { .. } => {
            let mut insights = store.insights(query).await?;
            let has_more = insights.len() == query.limit as usize;
            insights.truncate(query.limit as usize - 1);
            Ok(json!({ "enabled": is_enabled, "has_more": has_more, "insights": insights }))
        }
        Command::Status {} => {
            let status = store.analytics_status(now).await?;
            let last_run = status.last_run_ms.map(|ms| ms / 1000);
            Ok(json!({ "enabled": is_enabled, "last_run": last_run, "count": status.insights }))
        }
    }
}
