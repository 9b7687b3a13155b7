//! A test of many open sessions: clients that connect, stay connected and send requests from time to time.
//!
//! A run of [`Load`](super::Load) measures how fast a service is; this one measures how many clients it holds. Each
//! session has its own connection, as at a gateway.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, select};
use futures::stream::{FuturesUnordered, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::tally::latencies;
use super::wire::{Session, SessionOpener};
use super::{Key, Latencies, LoadRequest, PROMPTS, Random, RequestFailure};
use crate::clock::Clock;

/// The parameters of a session test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sessions {
    /// Concurrent sessions.
    pub count: u32,
    /// New sessions per second during the ramp-up.
    pub ramp: u32,
    /// The duration after the ramp-up.
    pub hold: Duration,
    /// The interval of a session's requests, with a jitter of a tenth.
    pub every: Duration,
    /// The tokens of a request.
    pub tokens: u32,
    /// The timeout of a request.
    pub timeout: Duration,
    /// The same seed gives the same requests at the same times.
    pub seed: u64,
}

impl Sessions {
    /// The duration of the ramp-up.
    pub fn ramp_time(&self) -> Duration {
        Duration::from_secs_f64(f64::from(self.count) / f64::from(self.ramp.max(1)))
    }
}

/// The most latencies that are stored: a run of days must not exhaust memory.
const MOST_ANSWERS: usize = 2_000_000;

/// The result of a session test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionResult {
    /// The parameters.
    pub sessions: Sessions,
    /// The duration in seconds.
    pub seconds: f64,
    /// Whether it was stopped before its end.
    pub stopped: bool,
    /// Sessions that were open at the end.
    pub open: u32,
    /// Connections that the service closed or that broke while their session used them.
    pub dropped: u64,
    /// Failed attempts to open a session, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Finished requests.
    pub requests: u64,
    /// Failed requests.
    pub errors: u64,
    /// Failures by kind.
    pub errors_by_kind: BTreeMap<String, u64>,
    /// The time to open a session, with its handshake.
    pub opening: Latencies,
    /// The latency of whole responses after the ramp-up.
    pub answers: Latencies,
    /// Tokens per second after the ramp-up.
    pub tokens_per_second: f64,
}

impl SessionResult {
    /// The share of failed requests; 1 if there were none at all.
    pub fn error_rate(&self) -> f64 {
        if self.requests == 0 { 1.0 } else { self.errors as f64 / self.requests as f64 }
    }

    /// Whether every session is open, and none was refused or dropped.
    pub fn kept_all(&self) -> bool {
        !self.stopped && self.open == self.sessions.count && self.dropped == 0 && self.refused.is_empty()
    }
}

/// The progress of a session test.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SessionProgress {
    /// Seconds since the start.
    pub second: u32,
    /// Open sessions.
    pub open: u32,
    /// Finished requests.
    pub requests: u64,
    /// Failed requests.
    pub errors: u64,
    /// Dropped and refused connections.
    pub lost: u64,
}

/// Opens the sessions, holds them and measures. `each_second` receives the progress; `stop` ends the test early.
pub async fn hold(
    entrance: &dyn SessionOpener,
    key: Option<&Key>,
    sessions: &Sessions,
    clock: &dyn Clock,
    stop: &CancellationToken,
    each_second: &mut (dyn FnMut(&SessionProgress) + Send),
) -> SessionResult {
    let start = clock.steady();
    let tally = Mutex::new(Tally::default());
    let run = Run { entrance, key, sessions, clock, start, tally: &tally };
    let mut there: FuturesUnordered<BoxFuture<'_, ()>> =
        (0..sessions.count).map(|number| run.session(number).boxed()).collect();
    let mut second = 0;
    let mut stopped = false;
    let mut tick = clock.sleep(Duration::from_secs(1)).boxed();
    let mut cancellation = Box::pin(stop.cancelled());
    loop {
        let waits = select(&mut tick, &mut cancellation);
        match select(there.next(), waits).await {
            futures::future::Either::Left((Some(()), _)) => {}
            futures::future::Either::Left((None, _)) => break,
            futures::future::Either::Right((futures::future::Either::Left(_), _)) => {
                second += 1;
                each_second(&locked(&tally).progress(second));
                tick = clock.sleep(Duration::from_secs(1)).boxed();
            }
            futures::future::Either::Right((futures::future::Either::Right(_), _)) => {
                stopped = true;
                break;
            }
        }
    }
    drop(there);
    let ran = clock.steady().saturating_sub(start);
    let mut tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    let held = ran.saturating_sub(sessions.ramp_time()).min(sessions.hold).as_secs_f64();
    SessionResult {
        sessions: sessions.clone(),
        seconds: ran.as_secs_f64(),
        stopped,
        open: if stopped { tally.open } else { tally.kept },
        dropped: tally.dropped,
        refused: tally.refused,
        requests: tally.requests,
        errors: tally.errors.values().sum(),
        errors_by_kind: tally.errors,
        opening: latencies(&mut tally.opening),
        answers: Latencies { count: tally.measured, ..latencies(&mut tally.answers) },
        tokens_per_second: if held > 0.0 { tally.tokens as f64 / held } else { 0.0 },
    }
}

#[derive(Clone, Copy)]
struct Run<'a> {
    entrance: &'a dyn SessionOpener,
    key: Option<&'a Key>,
    sessions: &'a Sessions,
    clock: &'a dyn Clock,
    start: Duration,
    tally: &'a Mutex<Tally>,
}

impl Run<'_> {
    /// One client, from its arrival to the end of the test.
    async fn session(self, number: u32) {
        let Self { sessions, clock, .. } = self;
        let all_here = self.start + sessions.ramp_time();
        let end = all_here + sessions.hold;
        let mut random = Random::new(sessions.seed, u64::from(number));
        clock.sleep(Duration::from_secs_f64(f64::from(number) / f64::from(sessions.ramp.max(1)))).await;
        let mut line: Option<Box<dyn Session>> = None;
        loop {
            if line.as_ref().is_some_and(|line| line.is_closed()) {
                locked(self.tally).lost();
                line = None;
            }
            if line.is_none() {
                line = self.open().await;
            }
            if let Some(open) = &mut line {
                let began = clock.steady();
                let answer = open.send(self.question(&mut random)).await;
                let took = clock.steady().saturating_sub(began);
                locked(self.tally).answered(&answer, took, began >= all_here);
                if answer.is_err() {
                    locked(self.tally).lost();
                    line = None;
                }
            }
            let now = clock.steady();
            let next = now + random.between(sessions.every.mul_f64(0.9), sessions.every.mul_f64(1.1));
            if next >= end {
                clock.sleep(end.saturating_sub(now)).await;
                break;
            }
            clock.sleep(next - now).await;
        }
        match line {
            Some(line) if line.is_closed() => locked(self.tally).lost(),
            Some(_) => locked(self.tally).kept += 1,
            None => {}
        }
    }

    async fn open(&self) -> Option<Box<dyn Session>> {
        let began = self.clock.steady();
        let opened = self.entrance.open().await;
        let took = self.clock.steady().saturating_sub(began);
        let mut tally = locked(self.tally);
        match opened {
            Ok(line) => {
                tally.open += 1;
                tally.opening.push(milliseconds(took));
                Some(line)
            }
            Err(failure) => {
                *tally.refused.entry(failure.kind().to_owned()).or_default() += 1;
                None
            }
        }
    }

    fn question(&self, random: &mut Random) -> LoadRequest {
        let opening = PROMPTS[random.below(PROMPTS.len() as u64) as usize];
        let body = json!({
            "prompt": opening, "max_tokens": self.sessions.tokens, "temperature": 0.8, "seed": random.next() >> 33,
            "ignore_end": true,
        });
        LoadRequest {
            key: self.key.cloned(),
            timeout: self.sessions.timeout,
            ..LoadRequest::post("/v1/generate", body)
        }
    }
}

#[derive(Default)]
struct Tally {
    open: u32,
    kept: u32,
    dropped: u64,
    refused: BTreeMap<String, u64>,
    requests: u64,
    errors: BTreeMap<String, u64>,
    opening: Vec<f32>,
    answers: Vec<f32>,
    measured: u64,
    tokens: u64,
}

impl Tally {
    fn lost(&mut self) {
        self.open = self.open.saturating_sub(1);
        self.dropped += 1;
    }

    fn answered(&mut self, answer: &Result<super::LoadResponse, RequestFailure>, took: Duration, all_here: bool) {
        self.requests += 1;
        let failed = match answer {
            Err(failure) => Some(failure.kind().to_owned()),
            Ok(answer) if answer.status != 200 => Some(format!("status {}", answer.status)),
            Ok(answer) => match answer.json().and_then(|body| body["usage"]["completion_tokens"].as_u64()) {
                Some(tokens) if all_here => {
                    self.tokens += tokens;
                    self.measured += 1;
                    if self.answers.len() < MOST_ANSWERS {
                        self.answers.push(milliseconds(took));
                    }
                    None
                }
                Some(_) => None,
                None => Some("not an answer".to_owned()),
            },
        };
        if let Some(kind) = failed {
            *self.errors.entry(kind).or_default() += 1;
        }
    }

    fn progress(&self, second: u32) -> SessionProgress {
        SessionProgress {
            second,
            open: self.open,
            requests: self.requests,
            errors: self.errors.values().sum(),
            lost: self.dropped + self.refused.values().sum::<u64>(),
        }
    }
}

fn milliseconds(took: Duration) -> f32 {
    took.as_secs_f32() * 1000.0
}

fn locked(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}
