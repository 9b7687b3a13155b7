//! Usage analytics of a running server: it runs once an hour, and its results are metrics.
//!
//! In clusters a scheduled job runs it at the start of the hour; servers run it where that did not happen. Two runs at once do
//! no harm.

use std::time::Duration;

use textnlp_net::error_chain;
use textnlp_net::retry::jitter;
use textnlp_store::analytics::HOUR_MS;
use textnlp_store::{StoreError, now_ms};
use tokio_util::sync::CancellationToken;

use crate::app::App;

/// Interval between two looks at the last run, at most.
const POLL_INTERVAL: Duration = Duration::from_secs(60);

/// A server waits this long after the start of an hour for the run of a scheduled job, in milliseconds.
const SCHEDULED_MS: i64 = 5 * 60_000;

/// Runs until shutdown, if the configuration turns analytics on.
pub(crate) async fn keep(app: &App, stop: &CancellationToken) {
    if app.config.analytics.is_none() {
        return;
    }
    let poll = async {
        loop {
            match run_if_due(app).await {
                Ok(()) => {}
                Err(StoreError::Busy(_)) => tracing::debug!("another replica analyzes the usage"),
                Err(error) => tracing::warn!(error = %error_chain(&error), "the usage could not be analyzed"),
            }
            // Jitter, so that one replica finds what another one did.
            tokio::time::sleep(POLL_INTERVAL.mul_f64(0.5 + jitter() / 2.0)).await;
        }
    };
    // A database that does not answer must not delay the drain.
    stop.run_until_cancelled(poll).await;
}

async fn run_if_due(app: &App) -> Result<(), StoreError> {
    let now = now_ms();
    let mut status = app.store.analytics_status(now).await?;
    if is_due(status.last_run_ms, now) {
        let done = app.store.analyze(now).await?;
        tracing::info!(hours = done.hours, insights = done.insights, "usage analyzed");
        status = app.store.analytics_status(now).await?;
    }
    app.metrics.analyzed(&status);
    Ok(())
}

/// Whether there was no run since the start of this hour, and a scheduled job would be done. A service has its first run at once.
fn is_due(last_run_ms: Option<i64>, now_ms: i64) -> bool {
    let into_hour = now_ms.rem_euclid(HOUR_MS);
    last_run_ms.is_none_or(|last| last < now_ms - into_hour && into_hour >= SCHEDULED_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_runs_once_an_hour_after_a_scheduled_job_would_have() {
        let hour = 500_000 * HOUR_MS;
        assert!(is_due(None, hour), "the first run");
        let due = hour + SCHEDULED_MS;
        assert!(!is_due(Some(hour - HOUR_MS), due - 1), "the job may still run");
        assert!(is_due(Some(hour - 1), due));
        for last in [hour, hour + 10_000, due] {
            assert!(!is_due(Some(last), hour + HOUR_MS - 1), "it was done in this hour");
            assert!(is_due(Some(last), due + HOUR_MS));
        }
    }
}
