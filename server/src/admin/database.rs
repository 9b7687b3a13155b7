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
    task: Task,
}

/// What to do.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Task {
    Vacuum,
    Analyze,
    /// Writes rows while the primary fails.
    Rehearse,
    /// Counts the rows of a rehearsal that runs, and names the last one.
    RehearsalRows,
    /// Removes them.
    EndRehearsal,
    /// Reports the server of PostgreSQL that answers.
    Server,
}

/// Maintains the database, or rehearses the failure of its primary. Answers with `site`, and with the result or why there
/// is nothing to do.
pub(crate) async fn database(config: &Config, command: &str) -> Result<Value, KeysError> {
    let command: Command = serde_json::from_str(command).map_err(|error| KeysError::Command {
        message: format!("the command cannot be read: {error}"),
        hint: Some(r#"{"do": "vacuum"} or {"do": "analyze"}"#.to_owned()),
    })?;
    let store = Store::open(&config.database).await?;
    let done = perform(&store, command.task).await;
    store.close().await;
    let mut answer = match done {
        Ok(done) => done,
        Err(MaintenanceError::Standby) => json!({ "skipped": "it is a standby, and follows its primary" }),
        Err(MaintenanceError::Refused(message)) => return Err(KeysError::Command { message, hint: None }),
        Err(MaintenanceError::Store(error)) => return Err(error.into()),
    };
    answer["site"] = json!(config.site);
    Ok(answer)
}

async fn perform(store: &Store, task: Task) -> Result<Value, MaintenanceError> {
    Ok(match task {
        Task::Vacuum => json!(store.maintain(Maintenance::Vacuum).await?),
        Task::Analyze => json!(store.maintain(Maintenance::Analyze).await?),
        Task::Rehearse => json!(store.rehearse().await?),
        Task::RehearsalRows => {
            let rows = store.rehearsal_rows().await?;
            json!({ "rows": rows.len(), "last": rows.last() })
        }
        Task::EndRehearsal => {
            store.end_rehearsal().await?;
            json!({})
        }
        Task::Server => json!(store.server().await?),
    })
}
