//! Runs the requests of batches: few at once, and none while requests of clients wait for the engine.
//!
//! Every server takes requests from the queue in the database. What a server has taken is due again after a time, in case it is gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use textnlp_net::error_chain;
use textnlp_store::batches::{Batch, BatchState, ClaimedBatch, ClaimedRequest, EndReason, RequestResult};
use textnlp_store::{StoreError, now_ms};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::auth;
use crate::embed;
use crate::endpoints::{BatchEndpoint, is_transient, pause, reason_message, run};

/// Interval between two looks at the queue while nothing is due.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The same without batches in the configuration: earlier ones may expire.
const OFF_POLL_INTERVAL: Duration = Duration::from_secs(60);

/// Interval between two counts of the unfinished batches, for metrics.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// What is left of a lease after the time limit of a request: to store its result.
const LEASE_GRACE: Duration = Duration::from_secs(60);

/// How long a claim may go on after the server is told to stop.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// How often a request runs that never has a result: it may be the reason why servers end.
const MAX_ATTEMPTS: i64 = 5;

/// Runs requests until shutdown. If the configuration turns batches off, none runs, but unfinished batches expire: the retention deletes
/// only texts of finished ones.
pub(crate) async fn keep(app: &Arc<App>, stop: &CancellationToken) {
    let settings = app.config.batch.as_ref();
    let (most, poll) = settings.map_or((0, OFF_POLL_INTERVAL), |on| (on.concurrency as usize, POLL_INTERVAL));
    let mut running: JoinSet<()> = JoinSet::new();
    let mut counted: Option<Instant> = None;
    while !stop.is_cancelled() {
        while running.try_join_next().is_some() {}
        if counted.is_none_or(|at| at.elapsed() >= COUNT_INTERVAL) {
            stop.run_until_cancelled(count(app)).await;
            counted = Some(Instant::now());
        }
        let room = if may_take(app) { most.saturating_sub(running.len()) } else { 0 };
        match finish(claim(app, room), stop).await.flatten() {
            Some(claimed) if claimed.batch.state == BatchState::InProgress => {
                let (batch, claim) = (Arc::new(claimed.batch), claimed.claim);
                for request in claimed.requests {
                    let claimed = Claimed { batch: batch.clone(), claim: claim.clone(), request };
                    running.spawn(claimed.run(app.clone(), stop.clone()));
                }
            }
            Some(claimed) => end_rest(app, &claimed).await,
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

/// Waits for work. A database that does not answer must not delay the drain, and a claim that is cut off is lost for as long as a lease.
pub(crate) async fn finish<T>(work: impl Future<Output = T>, stop: &CancellationToken) -> Option<T> {
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => Some(done),
        () = stop.cancelled() => tokio::time::timeout(STOP_GRACE, work).await.ok(),
    }
}

/// Whether no request of a client waits.
fn may_take(app: &App) -> bool {
    !app.is_stopping() && embed::stats(app).queued == 0
}

async fn claim(app: &App, room: usize) -> Option<ClaimedBatch> {
    let lease = app.config.api.timeout + LEASE_GRACE;
    match app.store.claim_requests(now_ms(), lease.as_millis() as i64, room as u32).await {
        Ok(claimed) => claimed,
        Err(StoreError::Busy(_)) => None,
        Err(error) => {
            tracing::warn!(error = %error_chain(&error), "requests of batches could not be taken");
            None
        }
    }
}

async fn count(app: &App) {
    match app.store.batch_counts().await {
        Ok(counts) => app.metrics.batches(&counts, now_ms()),
        Err(error) => tracing::debug!(error = %error_chain(&error), "batches could not be counted"),
    }
}

/// A request that this server runs.
struct Claimed {
    batch: Arc<Batch>,
    claim: String,
    request: ClaimedRequest,
}

/// What became of a request.
enum Outcome {
    Done(RequestResult),
    /// It runs again after a pause. Whether it has run.
    Later(Duration, bool),
}

/// A line of a file of requests, which was checked when it was stored.
#[derive(Deserialize)]
struct Line {
    custom_id: String,
    body: Value,
}

impl Claimed {
    async fn run(self, app: Arc<App>, stop: CancellationToken) {
        let outcome = stop.run_until_cancelled(self.outcome(&app)).await;
        match outcome.unwrap_or(Outcome::Later(Duration::ZERO, false)) {
            Outcome::Done(result) => store(&app, &self.batch, &self.claim, &[result]).await,
            Outcome::Later(pause, is_attempt) => {
                let until = now_ms().saturating_add(pause.as_millis() as i64);
                let (batch, number) = (&self.batch, self.request.number);
                let released = textnlp_store::change(StoreError::passes, || {
                    app.store.release_request(batch, &self.claim, number, until, is_attempt)
                });
                if let Err(error) = released.await {
                    // Its lease ends.
                    tracing::warn!(batch = %batch.id, error = %error_chain(&error), "a request could not be given back");
                }
            }
        }
    }

    async fn outcome(&self, app: &Arc<App>) -> Outcome {
        let (batch, request) = (&self.batch, &self.request);
        if request.attempts > MAX_ATTEMPTS {
            let message = format!("the request had no result {MAX_ATTEMPTS} times");
            return Outcome::Done(ended(request, "batch_request_interrupted", &message));
        }
        let caller = match auth::of_batch(app, &batch.user, &batch.tenant).await {
            Ok(Some(caller)) => caller,
            Ok(None) => {
                // Taken again, it gets the error with the rest.
                let failed = app.store.fail_batch(&batch.id, EndReason::KeyInvalid).await;
                let pause = if failed.is_ok() { Duration::ZERO } else { POLL_INTERVAL };
                return Outcome::Later(pause, false);
            }
            Err(_) => return Outcome::Later(POLL_INTERVAL, false),
        };
        let line = serde_json::from_str::<Line>(&request.content).ok();
        let (Some(line), Some(endpoint)) = (line, BatchEndpoint::named(&batch.endpoint)) else {
            return Outcome::Done(ended(request, "batch_request_unreadable", "the stored request cannot be read"));
        };
        let id = new_id();
        let (status, body) = match run(app, endpoint, &caller, &id, line.body).await {
            Ok(body) => (200, body),
            // A time limit may be that of a model which is being loaded, or of this request: it is not tried for ever.
            Err(error) if is_transient(&error) => return Outcome::Later(pause(&error), error.code == "timeout"),
            Err(error) => (error.status.as_u16(), error.body()),
        };
        let content = json!({
            "id": id,
            "custom_id": line.custom_id,
            "response": { "status_code": status, "request_id": id, "body": body },
            "error": null,
        });
        Outcome::Done(RequestResult { number: request.number, is_success: status == 200, content: content.to_string() })
    }
}

/// Gives the requests of a batch whose rest ends their errors.
async fn end_rest(app: &App, claimed: &ClaimedBatch) {
    let reason = claimed.batch.reason.unwrap_or(EndReason::Cancelled);
    let end = |request: &ClaimedRequest| ended(request, reason.code(), reason_message(reason));
    let results: Vec<RequestResult> = claimed.requests.iter().map(end).collect();
    store(app, &claimed.batch, &claimed.claim, &results).await;
}

/// The result of a request without an answer.
fn ended(request: &ClaimedRequest, code: &str, message: &str) -> RequestResult {
    let custom_id = serde_json::from_str::<Line>(&request.content).map_or(Value::Null, |line| json!(line.custom_id));
    let error = json!({ "code": code, "message": message });
    let content = json!({ "id": new_id(), "custom_id": custom_id, "response": null, "error": error });
    RequestResult { number: request.number, is_success: false, content: content.to_string() }
}

fn new_id() -> String {
    format!("batch_req_{}", uuid::Uuid::now_v7().simple())
}

async fn store(app: &App, batch: &Batch, claim: &str, results: &[RequestResult]) {
    let webhooks = app.webhooks.of_tenant(&batch.tenant);
    let stored = textnlp_store::change(StoreError::may_be_repeated, || {
        app.store.complete_requests(batch, claim, results, &webhooks)
    });
    match stored.await {
        Ok(0) => {}
        Ok(_) => results.iter().for_each(|result| app.metrics.batch_request(result.is_success)),
        // Its lease ends, and it runs again.
        Err(error) => {
            tracing::warn!(batch = %batch.id, error = %error_chain(&error), "results of a batch could not be stored");
        }
    }
}
