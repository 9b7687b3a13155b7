//! Many open sessions: clients that come, stay connected and ask now and then.
//!
//! A run of [`Load`](super::Load) asks how fast a service is; this one asks how many clients it holds. Each session has a connection of its
//! own, so that what is counted is what a gateway has to keep.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, select};
use futures::stream::{FuturesUnordered, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::tally::latencies;
use super::wire::{Entrance, Session};
use super::{Ask, Failure, Key, Latencies, PROMPTS, Random};
use crate::clock::Clock;

/// How many clients come, and what they do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sessions {
    /// Sessions at the same time.
    pub count: u32,
    /// New sessions per second until all are there.
    pub ramp: u32,
    /// How long all of them stay after the last one came.
    pub hold: Duration,
    /// What lies between two questions of one session; each keeps to it but for a tenth.
    pub every: Duration,
    /// The tokens that a question asks for.
    pub tokens: u32,
    /// After this long without a whole answer a question has failed.
    pub timeout: Duration,
    /// The same seed asks the same questions at the same times.
    pub seed: u64,
}

impl Sessions {
    /// How long it takes until all are there.
    pub fn ramp_time(&self) -> Duration {
        Duration::from_secs_f64(f64::from(self.count) / f64::from(self.ramp.max(1)))
    }
}

/// Latencies that are remembered at most: a run of days must not fill our memory.
const MOST_ANSWERS: usize = 2_000_000;

/// What became of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// What was asked for.
    pub sessions: Sessions,
    /// How long it ran, in seconds.
    pub seconds: f64,
    /// Whether somebody stopped it before its end.
    pub stopped: bool,
    /// Sessions that were open when it ended.
    pub open: u32,
    /// Connections that the service closed, or that broke off, while their session wanted them.
    pub dropped: u64,
    /// Sessions that could not be opened when they wanted to be, by why.
    pub refused: BTreeMap<String, u64>,
    /// Questions that ended.
    pub requests: u64,
    /// How many of them failed.
    pub errors: u64,
    /// Failures by kind.
    pub errors_by_kind: BTreeMap<String, u64>,
    /// How long it took to open a session, with its handshake.
    pub opening: Latencies,
    /// How long whole answers took while all sessions were open.
    pub answers: Latencies,
    /// Tokens per second while all sessions were open.
    pub tokens_per_second: f64,
}

impl Held {
    /// The share of questions that failed; 1 when there were none.
    pub fn error_rate(&self) -> f64 {
        if self.requests == 0 { 1.0 } else { self.errors as f64 / self.requests as f64 }
    }

    /// Whether every session was opened at once and kept.
    pub fn kept_all(&self) -> bool {
        !self.stopped && self.open == self.sessions.count && self.dropped == 0 && self.refused.is_empty()
    }
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Standing {
    /// Seconds since it began.
    pub second: u32,
    /// Sessions that are open.
    pub open: u32,
    /// Questions that have ended.
    pub requests: u64,
    /// How many of them failed.
    pub errors: u64,
    /// Connections that were dropped, or refused.
    pub lost: u64,
}

/// Opens the sessions, keeps them and measures. `each_second` hears where it stands; `stop` ends it early.
pub async fn hold(
    entrance: &dyn Entrance,
    key: Option<&Key>,
    sessions: &Sessions,
    clock: &dyn Clock,
    stop: &CancellationToken,
    each_second: &mut (dyn FnMut(&Standing) + Send),
) -> Held {
    let begun = clock.steady();
    let tally = Mutex::new(Tally::default());
    let run = Run { entrance, key, sessions, clock, begun, tally: &tally };
    let mut there: FuturesUnordered<BoxFuture<'_, ()>> =
        (0..sessions.count).map(|number| run.session(number).boxed()).collect();
    let mut second = 0;
    let mut stopped = false;
    let mut tick = clock.sleep(Duration::from_secs(1)).boxed();
    let mut told_to_stop = Box::pin(stop.cancelled());
    loop {
        let waits = select(&mut tick, &mut told_to_stop);
        match select(there.next(), waits).await {
            futures::future::Either::Left((Some(()), _)) => {}
            futures::future::Either::Left((None, _)) => break,
            futures::future::Either::Right((futures::future::Either::Left(_), _)) => {
                second += 1;
                each_second(&locked(&tally).standing(second));
                tick = clock.sleep(Duration::from_secs(1)).boxed();
            }
            futures::future::Either::Right((futures::future::Either::Right(_), _)) => {
                stopped = true;
                break;
            }
        }
    }
    drop(there);
    let ran = clock.steady().saturating_sub(begun);
    let mut tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    let held = ran.saturating_sub(sessions.ramp_time()).min(sessions.hold).as_secs_f64();
    Held {
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
    entrance: &'a dyn Entrance,
    key: Option<&'a Key>,
    sessions: &'a Sessions,
    clock: &'a dyn Clock,
    begun: Duration,
    tally: &'a Mutex<Tally>,
}

impl Run<'_> {
    /// One client, from when it comes to the end of the run.
    async fn session(self, number: u32) {
        let Self { sessions, clock, .. } = self;
        let all_here = self.begun + sessions.ramp_time();
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

    fn question(&self, random: &mut Random) -> Ask {
        let opening = PROMPTS[random.below(PROMPTS.len() as u64) as usize];
        let body = json!({
            "prompt": opening, "max_tokens": self.sessions.tokens, "temperature": 0.8, "seed": random.next() >> 33,
            "ignore_end": true,
        });
        Ask { key: self.key.cloned(), timeout: self.sessions.timeout, ..Ask::post("/v1/generate", body) }
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

    fn answered(&mut self, answer: &Result<super::Answer, Failure>, took: Duration, all_here: bool) {
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

    fn standing(&self, second: u32) -> Standing {
        Standing {
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
