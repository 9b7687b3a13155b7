//! The client from outside: it keeps asking for texts through the front and keeps writing control data, whatever happens meanwhile.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::ledger::{Event, Is, Ledger, key, request_id};
use super::talk::{TalkError, Watch};
use crate::load::{Answer, Ask, Failure, Key, Wire};

/// A client of a service that stands still waits this long, and no longer.
pub const REQUEST_WITHIN: Duration = Duration::from_secs(3);
/// One site may take this long for a write; then the next one is asked.
const WRITE_WITHIN: Duration = Duration::from_millis(1200);
/// Codes of errors are words.
const LONGEST_CODE: usize = 64;
/// Requests on their way at most: what the rate and the time allow, and some.
const MOST_FLYING: usize = 256;

/// A client, before it begins.
pub struct Outside {
    /// Which drill.
    pub drill: String,
    /// The address that clients use.
    pub front: Arc<dyn Wire>,
    /// Who asks.
    pub key: Option<Key>,
    /// What is asked.
    pub body: Value,
    /// Whom control data is given to; each write goes to the one that answered last, then to the others.
    pub watches: Vec<Watch>,
    /// Where everything is written down.
    pub ledger: Arc<Ledger>,
    /// Requests per second.
    pub requests_per_second: u32,
    /// Writes per second.
    pub writes_per_second: u32,
}

impl Outside {
    /// Asks until it is told to stop, then waits for what is on its way.
    pub async fn run(self, stop: CancellationToken) {
        let every = |rate: u32| {
            let mut ticks = tokio::time::interval_at(Instant::now(), Duration::from_secs(1) / rate.clamp(1, 1000));
            // After a pause of this machine nothing is made up for: a burst would be a load test.
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
        let ask = Ask {
            key: self.key.clone(),
            timeout: REQUEST_WITHIN,
            request_id: Some(request_id(&self.drill, n)),
            ..Ask::post("/v1/generate", self.body.clone())
        };
        let put = |is, why| self.ledger.put(Event::Request { t: self.ledger.now(), n, is, why });
        put(Is::Sent, None);
        match self.front.send(ask).await {
            Ok(answer) if answer.status == 200 => put(Is::Ok, None),
            Ok(answer) => put(Is::Failed, Some(refused(&answer))),
            Err(Failure::Timeout) => put(Is::Timeout, None),
            Err(failure) => put(Is::Failed, Some(failure.to_string())),
        }
    }

    /// Writes one key, at the site that answered last or at another one that does: the same key and value, so twice is once. Says
    /// which of them it was.
    async fn write(&self, n: u64, first: usize) -> Option<usize> {
        let writes = [(key(&self.drill, n), json!({ "n": n }))];
        let put =
            |is, epoch, site, why| self.ledger.put(Event::Write { t: self.ledger.now(), n, is, epoch, site, why });
        put(Is::Sent, None, None, None);
        let (mut silent, mut says) = (false, String::new());
        for turn in 0..self.watches.len() {
            let at = (first + turn) % self.watches.len();
            let watch = &self.watches[at];
            match watch.write(&writes, WRITE_WITHIN).await {
                Ok(acknowledged) => {
                    put(Is::Ok, Some(acknowledged.epoch), Some(watch.site.clone()), None);
                    return Some(at);
                }
                Err(error) => {
                    silent |= matches!(error, TalkError::Silent { .. });
                    says = error.to_string();
                }
            }
        }
        put(if silent { Is::Timeout } else { Is::Failed }, None, None, Some(says));
        None
    }
}

/// The status, and the word for it that whoever answered has.
fn refused(answer: &Answer) -> String {
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
    fn an_answer_that_is_a_refusal_says_which() {
        let said = |body: &str| refused(&Answer { status: 503, body: body.into() });
        assert_eq!(said(r#"{"error": {"code": "no_backend"}}"#), "status 503 (no_backend)");
        assert_eq!(said("<html>"), "status 503");
        assert_eq!(said(&json!({ "error": { "code": "x".repeat(99) } }).to_string()), "status 503");
    }
}
