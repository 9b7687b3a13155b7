//! `admin database`: maintenance of the database by JSON: a command on standard input, an answer on standard output.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use textnlp_store::{BenchmarkLength, BenchmarkPlan, Database, Maintenance, MaintenanceError, Store};
use tokio::signal::unix::{SignalKind, signal};

use super::keys::KeysError;
use crate::config::Config;

/// A command.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Command {
    #[serde(rename = "do")]
    task: Task,
    /// The clients of a benchmark.
    clients: Option<u32>,
    /// Its duration, or how long a rehearsal waits for the failure of the primary, and then for writes that succeed.
    seconds: Option<u64>,
    /// The transactions of each client of a benchmark, in place of its duration.
    transactions: Option<u64>,
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
    /// Measures the database.
    Bench,
    /// Removes what a benchmark left.
    EndBench,
}

/// Maintains or measures the database, or rehearses the failure of its primary. Answers with `site`, and with the result
/// or why there is nothing to do.
pub(crate) async fn database(config: &Config, command: &str) -> Result<Value, KeysError> {
    let command: Command = serde_json::from_str(command).map_err(|error| KeysError::Command {
        message: format!("the command cannot be read: {error}"),
        hint: Some(r#"{"do": "vacuum"}, {"do": "analyze"} or {"do": "bench", "clients": 4, "seconds": 10}"#.to_owned()),
    })?;
    let store = Store::open_existing(&config.database).await?;
    let done = perform(&store, &config.database, &command).await;
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

async fn perform(store: &Store, database: &Database, command: &Command) -> Result<Value, MaintenanceError> {
    Ok(match command.task {
        Task::Vacuum => json!(store.maintain(Maintenance::Vacuum).await?),
        Task::Analyze => json!(store.maintain(Maintenance::Analyze).await?),
        Task::Rehearse => json!(store.rehearse(command.seconds.map(Duration::from_secs)).await?),
        Task::RehearsalRows => {
            let rows = store.rehearsal_rows().await?;
            json!({ "rows": rows.len(), "last": rows.last() })
        }
        Task::EndRehearsal => {
            store.end_rehearsal().await?;
            json!({})
        }
        Task::Server => json!(store.server().await?),
        Task::Bench => {
            let usual = BenchmarkPlan::default();
            let length = match (command.seconds, command.transactions) {
                (None, None) => usual.length,
                (Some(seconds), None) => BenchmarkLength::Duration(Duration::from_secs(seconds)),
                (None, Some(each)) => BenchmarkLength::Transactions(each),
                (Some(_), Some(_)) => {
                    let why = "a benchmark ends by `seconds` or by `transactions`, not by both";
                    return Err(MaintenanceError::Refused(why.to_owned()));
                }
            };
            let plan = BenchmarkPlan { clients: command.clients.unwrap_or(usual.clients), length };
            json!(store.benchmark(database, plan, stopped()).await?)
        }
        Task::EndBench => {
            store.end_benchmark(database).await?;
            json!({})
        }
    })
}

/// Ends with a signal that asks this process to stop. From this call on, these signals do not end the process.
fn stopped() -> impl Future<Output = ()> {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let mut signals = kinds.map(|kind| signal(kind).ok());
    poll_fn(move |context| {
        let is_stopped = signals.iter_mut().flatten().any(|signal| signal.poll_recv(context).is_ready());
        if is_stopped { Poll::Ready(()) } else { Poll::Pending }
    })
}
