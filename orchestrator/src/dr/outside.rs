//! The external client of a drill. It sends generation requests through the global endpoint and writes control data
//! throughout the drill.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::control_client::{ControlClientError, SiteAgentClient};
use super::ledger::{Ledger, LedgerEvent, RequestStatus, key, request_id};
use crate::load::{Key, LoadRequest, LoadResponse, RequestFailure, Wire};

/// The timeout of a request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// The timeout of a write at one site; then the next site is tried.
const WRITE_TIMEOUT: Duration = Duration::from_millis(1200);
/// The longest error code, in characters.
const LONGEST_CODE: usize = 64;
/// The most requests in flight: above what the rate and the timeout allow.
const MOST_FLYING: usize = 256;

/// The configuration of a client.
pub struct DrillClient {
    /// The drill's id.
    pub drill: String,
    /// The address that clients use.
    pub front: Arc<dyn Wire>,
    /// The API key.
    pub key: Option<Key>,
    /// The request body.
    pub body: Value,
    /// The site agents for writes. Each write goes to the agent that answered last, then to the others.
    pub watches: Vec<SiteAgentClient>,
    /// Records every event.
    pub ledger: Arc<Ledger>,
    /// Requests per second.
    pub requests_per_second: u32,
    /// Writes per second.
    pub writes_per_second: u32,
}

impl DrillClient {
    /// Sends requests until `stop`, then waits for those in flight.
    pub async fn run(self, stop: CancellationToken) {
        let every = |rate: u32| {
            let mut ticks = tokio::time::interval_at(Instant::now(), Duration::from_secs(1) / rate.clamp(1, 1000));
            // Missed ticks are dropped after a pause of this machine: a burst would be a load test.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        };
        let (mut requests, mut writes) = (every(self.requests_per_second), every(self.writes_per_second));
        let (mut request, mut write) = (0, 0);
        let mut flying: FuturesUnordered<BoxFuture<'_, Option<usize>>> = FuturesUnordered::new();
        let mut answered_last = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = requests.tick(), if flying.len() < MOST_FLYING => {
                    flying.push(self.request(request).map(|()| None).boxed());
                    request += 1;
                }
                _ = writes.tick(), if flying.len() < MOST_FLYING && !self.watches.is_empty() => {
                    flying.push(self.write(write, answered_last).boxed());
                    write += 1;
                }
                Some(by) = flying.next(), if !flying.is_empty() => answered_last = by.unwrap_or(answered_last),
            }
        }
        while flying.next().await.is_some() {}
    }

    async fn request(&self, n: u64) {
        let load_request = LoadRequest {
            key: self.key.clone(),
            timeout: REQUEST_TIMEOUT,
            request_id: Some(request_id(&self.drill, n)),
            ..LoadRequest::post("/v1/generate", self.body.clone())
        };
        let put = |is, why| self.ledger.put(LedgerEvent::Request { t: self.ledger.now(), n, is, why });
        put(RequestStatus::Sent, None);
        match self.front.send(load_request).await {
            Ok(answer) if answer.status == 200 => put(RequestStatus::Ok, None),
            Ok(answer) => put(RequestStatus::Failed, Some(refused(&answer))),
            Err(RequestFailure::Timeout) => put(RequestStatus::Timeout, None),
            Err(failure) => put(RequestStatus::Failed, Some(failure.to_string())),
        }
    }

    /// Writes one key at the site that answered last, or at another one. Retries use the same key and value, so they
    /// are idempotent. Returns the index of the site.
    async fn write(&self, n: u64, first: usize) -> Option<usize> {
        let writes = [(key(&self.drill, n), json!({ "n": n }))];
        let put = |is, epoch, site, why| {
            self.ledger.put(LedgerEvent::Write { t: self.ledger.now(), n, is, epoch, site, why })
        };
        put(RequestStatus::Sent, None, None, None);
        let (mut silent, mut says) = (false, String::new());
        for turn in 0..self.watches.len() {
            let at = (first + turn) % self.watches.len();
            let watch = &self.watches[at];
            match watch.write(&writes, WRITE_TIMEOUT).await {
                Ok(acknowledged) => {
                    put(RequestStatus::Ok, Some(acknowledged.epoch), Some(watch.site.clone()), None);
                    return Some(at);
                }
                Err(error) => {
                    silent |= matches!(error, ControlClientError::Silent { .. });
                    says = error.to_string();
                }
            }
        }
        put(if silent { RequestStatus::Timeout } else { RequestStatus::Failed }, None, None, Some(says));
        None
    }
}

/// The status and the error code of an answer.
fn refused(answer: &LoadResponse) -> String {
    let body = answer.json().unwrap_or_default();
    let code = body["error"]["code"].as_str().filter(|code| code.len() <= LONGEST_CODE);
    match code {
        Some(code) => format!("status {} ({code})", answer.status),
        None => format!("status {}", answer.status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_answer_includes_its_error_code() {
        let refusal = |body: &str| refused(&LoadResponse { status: 503, body: body.into() });
        assert_eq!(refusal(r#"{"error": {"code": "no_backend"}}"#), "status 503 (no_backend)");
        assert_eq!(refusal("<html>"), "status 503");
        assert_eq!(refusal(&json!({ "error": { "code": "x".repeat(99) } }).to_string()), "status 503");
    }
}
