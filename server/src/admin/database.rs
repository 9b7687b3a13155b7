//! `admin database`: maintenance of the database by JSON: a command on standard input, an answer on standard output.

use serde::Deserialize;
use serde_json::{Value, json};
use textnlp_store::{Maintenance, MaintenanceError, Store};

use super::keys::KeysError;
use crate::config::Config;

/// A command.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Command {
    #[serde(rename = "do")]
    task: Maintenance,
}

/// Maintains the database. Answers with `site`, and with the sizes before and after or why there is nothing to do.
pub(crate) async fn database(config: &Config, command: &str) -> Result<Value, KeysError> {
    let command: Command = serde_json::from_str(command).map_err(|error| KeysError::Command {
        message: format!("the command cannot be read: {error}"),
        hint: Some(r#"{"do": "vacuum"} or {"do": "analyze"}"#.to_owned()),
    })?;
    let store = Store::open(&config.database).await?;
    let done = store.maintain(command.task).await;
    store.close().await;
    let mut answer = match done {
        Ok(done) => json!(done),
        Err(MaintenanceError::Standby) => json!({ "skipped": "it is a standby, and follows its primary" }),
        Err(MaintenanceError::Refused(message)) => return Err(KeysError::Command { message, hint: None }),
        Err(MaintenanceError::Store(error)) => return Err(error.into()),
    };
    answer["site"] = json!(config.site);
    Ok(answer)
}
