//! `admin usage`: the usage of a period by JSON, for the operator's reports: a command on standard input, an answer on
//! standard output.

use serde::Deserialize;
use serde_json::{Value, json};
use textnlp_store::{DAY_MS, MAX_REPORT_DAYS, Store};

use super::keys::KeysError;
use crate::config::Config;

/// A query: the period in milliseconds since 1970.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Command {
    from: i64,
    until: i64,
}

/// Answers with `site`, and with the usage by day and by tenant and model.
pub(crate) async fn usage(config: &Config, command: &str) -> Result<Value, KeysError> {
    let wrong = |message: String| KeysError::Command {
        message,
        hint: Some(r#"{"from": 1793491200000, "until": 1796083200000}"#.to_owned()),
    };
    let Command { from, until } =
        serde_json::from_str(command).map_err(|error| wrong(format!("the command cannot be read: {error}")))?;
    if from < 0 || until <= from || until - from > MAX_REPORT_DAYS * DAY_MS {
        return Err(wrong(format!("`until` must be after `from`, at most {MAX_REPORT_DAYS} days")));
    }
    let store = Store::open_existing(&config.database).await?;
    let report = store.usage_report(from, until).await;
    store.close().await;
    let mut answer = json!(report?);
    answer["site"] = json!(config.site);
    Ok(answer)
}
