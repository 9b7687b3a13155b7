//! The queue of events for webhooks: every server sends those that are due.

use std::sync::Arc;
use std::time::{Duration, Instant};

use textnlp_net::error_chain;
use textnlp_store::webhooks::{Delivery, FailedDelivery, MAX_WAITING};
use textnlp_store::{StoreError, now_ms};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Attempt;
use crate::app::App;
use crate::batches::finish;

/// How long a claim holds: an attempt, and the time to store its result.
const LEASE: Duration = Duration::from_secs(60);

/// Interval between two looks at the queue while nothing is due.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The same without webhooks in the configuration: earlier events are given up.
const OFF_POLL_INTERVAL: Duration = Duration::from_secs(60);

/// Interval between two looks at the age of waiting events.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Sends events until shutdown: at most one of each webhook at a time. Without webhooks, it only gives up earlier events.
pub(crate) async fn keep(app: &Arc<App>, stop: &CancellationToken) {
    let ids: Vec<String> = app.webhooks.receivers.iter().map(|receiver| receiver.id.clone()).collect();
    let poll = if ids.is_empty() { OFF_POLL_INTERVAL } else { POLL_INTERVAL };
    let mut running: JoinSet<()> = JoinSet::new();
    let mut swept: Option<Instant> = None;
    while !stop.is_cancelled() {
        while running.try_join_next().is_some() {}
        if swept.is_none_or(|at| at.elapsed() >= SWEEP_INTERVAL) {
            stop.run_until_cancelled(sweep(app)).await;
            swept = Some(Instant::now());
        }
        match finish(claim(app, &ids), stop).await.flatten() {
            Some(delivery) => {
                running.spawn(deliver(app.clone(), delivery, stop.clone()));
            }
            None => {
                tokio::select! {
                    () = stop.cancelled() => {}
                    _ = running.join_next(), if !running.is_empty() => {}
                    () = tokio::time::sleep(poll) => {}
                }
            }
        }
    }
    while running.join_next().await.is_some() {}
}

/// The claim of a webhook keeps all servers from its other events, which bounds the attempts of this one.
async fn claim(app: &App, ids: &[String]) -> Option<Delivery> {
    match app.store.claim_delivery(ids, now_ms(), LEASE.as_millis() as i64).await {
        Ok(delivery) => delivery,
        Err(StoreError::Busy(_)) => None,
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), "events of webhooks could not be taken");
            None
        }
    }
}

/// Notes the age of the oldest event, and gives up those that waited for too long.
async fn sweep(app: &App) {
    let swept = async {
        let given_up = app.store.give_up_deliveries(now_ms(), MAX_WAITING).await?;
        Ok::<_, StoreError>((given_up, app.store.delivery_status().await?))
    };
    match swept.await {
        Ok((given_up, status)) => {
            app.metrics.webhook_age(status.oldest_ms, now_ms());
            if given_up > 0 {
                app.metrics.webhook_deliveries("given_up", given_up);
                tracing::warn!(events = given_up, "events of webhooks waited for too long, and are given up");
            }
        }
        Err(error) => tracing::debug!(error = %error_chain(&error), "events of webhooks could not be counted"),
    }
}

async fn deliver(app: Arc<App>, delivery: Delivery, stop: CancellationToken) {
    let Some(receiver) = app.webhooks.receivers.iter().find(|receiver| receiver.id == delivery.webhook) else { return };
    let attempt = stop.run_until_cancelled(app.webhooks.send(receiver, &delivery)).await;
    let (batch, host) = (&delivery.object, receiver.host());
    let stored = match attempt {
        None => store(|| app.store.release_delivery(&delivery, now_ms())).await,
        Some(Attempt::Delivered) => {
            app.metrics.webhook_deliveries("delivered", 1);
            store(|| app.store.end_delivery(&delivery)).await.map(drop)
        }
        Some(Attempt::Gone) => {
            app.metrics.webhook_deliveries("given_up", 1);
            tracing::warn!(%batch, host, "the webhook is gone (status 410): its event is given up");
            store(|| app.store.end_delivery(&delivery)).await.map(drop)
        }
        Some(Attempt::Failed(why)) => {
            app.metrics.webhook_deliveries("failed", 1);
            let attempts = delivery.attempts;
            tracing::warn!(%batch, host, attempts, reason = %why, "the webhook did not accept an event");
            match store(|| app.store.fail_delivery(&delivery, now_ms())).await {
                Ok(FailedDelivery::GivenUp) => {
                    app.metrics.webhook_deliveries("given_up", 1);
                    tracing::warn!(%batch, host, "the webhook did not accept an event for too long: it is given up");
                    Ok(())
                }
                Ok(FailedDelivery::Later(_) | FailedDelivery::Lost) => Ok(()),
                Err(error) => Err(error),
            }
        }
    };
    if let Err(error) = stored {
        // Its lease ends, and it is sent again.
        tracing::warn!(%batch, error = %error_chain(&error), "the result of a webhook could not be stored");
    }
}

/// Stores what became of an event. Repeated, it has no effect: the claim is over.
async fn store<T, F>(work: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    textnlp_store::change(StoreError::may_be_repeated, work).await
}
