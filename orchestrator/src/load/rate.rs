//! A load of requests at a fixed rate: they are sent when they are due, whether or not earlier ones were answered.
//!
//! Users of a [`Load`](super::Load) wait for their answers, so a service that stalls gets fewer requests and the stall
//! is hardly measured (coordinated omission). Here latency begins when a request was due.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::histogram::Histogram;
use super::mix::KindTally;
use super::tally::{MOST_SECONDS, outcome};
use super::{Key, KindResult, LoadRequest, Mix, Percentiles, Random, RequestFailure, Wire};
use crate::clock::Clock;

/// The largest share of failed requests of a load that the service sustains.
pub const MOST_ERRORS: f64 = 0.01;
/// A load generator that sends 1 % of its requests later than this measures itself.
const MOST_LAG_MS: f64 = 1000.0;

/// The parameters of a load at a fixed rate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rate {
    /// Requests per second.
    pub per_second: f64,
    /// The times between requests.
    pub arrivals: Arrivals,
    /// The duration of the ramp-up, in which the rate grows linearly from zero.
    pub ramp: Duration,
    /// The duration after the ramp-up.
    pub hold: Duration,
    /// The most requests in flight. A request that is due then is dropped.
    pub in_flight: u32,
    /// The requests.
    pub mix: Mix,
    /// The timeout of a request.
    pub timeout: Duration,
    /// The same seed gives the same requests at the same times.
    pub seed: u64,
}

/// The times between requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Random, as of many independent clients.
    Poisson,
    /// All the same.
    Uniform,
}

/// One second of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RateSecond {
    /// Its number since the start.
    pub second: u32,
    /// Requests that were due in it.
    pub due: u32,
    /// Those of them that were dropped.
    pub dropped: u32,
    /// Requests that ended in it.
    pub requests: u32,
    /// Failed requests.
    pub errors: u32,
    /// Tokens of its responses.
    pub tokens: u64,
    /// Requests in flight at its end.
    pub in_flight: u32,
    /// The median latency of the requests that ended in it, in milliseconds; 0 without any.
    pub p50_ms: f64,
    /// The 95th percentile of the same.
    pub p95_ms: f64,
    /// The 99th percentile of the same.
    pub p99_ms: f64,
}

/// The measurements of a load at a fixed rate.
///
/// Latencies are those of successful requests and of timeouts, until the timeout. Other failures may be fast, and are only
/// counted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RateResult {
    /// The parameters.
    pub rate: Rate,
    /// The duration in seconds, with the wait for the last responses.
    pub seconds: f64,
    /// Whether it was stopped before its end.
    pub stopped: bool,
    /// Requests that were due.
    pub due: u64,
    /// Those of them that were dropped, because too many were in flight.
    pub dropped: u64,
    /// Requests that were in flight when the run was stopped.
    pub unfinished: u64,
    /// Finished requests.
    pub requests: u64,
    /// Failed requests.
    pub errors: u64,
    /// Finished requests that were due after the ramp-up.
    pub held_requests: u64,
    /// Those of them that failed.
    pub held_errors: u64,
    /// Failures by kind.
    pub errors_by_kind: BTreeMap<String, u64>,
    /// The latency of requests that were due after the ramp-up, from the time at which they were due.
    pub latency: Percentiles,
    /// How long after they were due requests were sent.
    pub send_lag: Percentiles,
    /// The kinds of requests.
    pub kinds: Vec<KindResult>,
    /// Requests per second after the ramp-up that were sent.
    pub sent_per_second: f64,
    /// Requests per second after the ramp-up that succeeded.
    pub answered_per_second: f64,
    /// Tokens per second after the ramp-up.
    pub tokens_per_second: f64,
    /// The most requests in flight.
    pub in_flight_max: u32,
    /// Requests in flight in the middle of the time after the ramp-up.
    pub in_flight_half: u32,
    /// Requests in flight when the last one was due.
    pub in_flight_end: u32,
    /// The seconds of the run.
    pub series: Vec<RateSecond>,
    /// The latencies of `latency`: (upper bound in ms, count).
    pub histogram: Vec<(f64, u64)>,
}

impl RateResult {
    /// The share of failed requests; 1 if there were none at all.
    pub fn error_rate(&self) -> f64 {
        if self.requests == 0 { 1.0 } else { self.errors as f64 / self.requests as f64 }
    }

    /// Requests that were sent.
    pub fn sent(&self) -> u64 {
        self.due - self.dropped
    }

    /// Why the rate was not sustained; empty if it was. The largest p95 counts if there is one.
    pub fn problems(&self, p95_ms: Option<f64>) -> Vec<String> {
        let mut problems = Vec::new();
        if self.held_requests == 0 && !self.stopped {
            problems.push("no request after the ramp-up was measured".to_owned());
        }
        if self.stopped {
            problems.push("the run was stopped before its end".to_owned());
        }
        if self.dropped > 0 {
            let most = self.rate.in_flight;
            problems.push(format!("{} of {} requests were dropped at {most} in flight", self.dropped, self.due));
        }
        // A long ramp-up must not hide the failures after it.
        let counts = [(self.errors, self.requests), (self.held_errors, self.held_requests)];
        let failed = counts.into_iter().find(|(errors, all)| *errors as f64 > MOST_ERRORS * *all as f64);
        if let Some((errors, all)) = failed {
            problems.push(format!("{errors} of {all} requests failed"));
        }
        if let Some(most) = p95_ms.filter(|most| self.latency.p95_ms > *most) {
            problems.push(format!("p95 of {:.0} ms is above {most:.0} ms", self.latency.p95_ms));
        }
        // The count of random arrivals in this time varies by its root: three of them are noise.
        let due = self.rate.per_second * self.rate.hold.as_secs_f64() / 2.0;
        let grown = f64::from(self.in_flight_end) - f64::from(self.in_flight_half);
        if !self.stopped && due > 0.0 && grown > 0.05 * due + 3.0 * due.sqrt() {
            problems.push(format!(
                "requests in flight grew from {} to {} in the second half",
                self.in_flight_half, self.in_flight_end
            ));
        }
        if self.send_lag.p99_ms > MOST_LAG_MS {
            problems.push(format!("this machine sent 1 % of the requests {:.0} ms late or more", self.send_lag.p99_ms));
        }
        problems
    }
}

/// The times since the start at which requests are due.
struct Schedule {
    random: Random,
    arrivals: Arrivals,
    per_second: f64,
    ramp: f64,
    end: f64,
    /// The count of requests that a constant flow would have sent before the next one.
    before: f64,
}

impl Schedule {
    fn new(rate: &Rate) -> Self {
        let (ramp, hold) = (rate.ramp.as_secs_f64(), rate.hold.as_secs_f64());
        let mut schedule = Self {
            random: Random::new(rate.seed, u64::MAX),
            arrivals: rate.arrivals,
            per_second: rate.per_second,
            ramp,
            end: ramp + hold,
            before: 0.0,
        };
        if rate.arrivals == Arrivals::Poisson {
            schedule.before = schedule.step();
        }
        schedule
    }

    fn step(&mut self) -> f64 {
        match self.arrivals {
            Arrivals::Uniform => 1.0,
            Arrivals::Poisson => -(1.0 - self.random.share()).ln(),
        }
    }

    /// When a constant flow has sent this count.
    fn time_of(&self, count: f64) -> f64 {
        let in_ramp = self.per_second * self.ramp / 2.0;
        if count < in_ramp {
            (2.0 * self.ramp * count / self.per_second).sqrt()
        } else {
            self.ramp + (count - in_ramp) / self.per_second
        }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let due = self.time_of(self.before);
        self.before += self.step();
        (due < self.end).then(|| Duration::from_secs_f64(due))
    }
}

/// Sends requests at the rate and measures. `each_second` receives each finished second; `stop` ends the run early, with
/// the measurements so far.
pub async fn run_rate(
    wire: &dyn Wire,
    key: Option<&Key>,
    rate: &Rate,
    clock: &dyn Clock,
    stop: &CancellationToken,
    each_second: &mut (dyn FnMut(&RateSecond) + Send),
) -> RateResult {
    let start = clock.steady();
    let end = rate.ramp + rate.hold;
    let mut schedule = Schedule::new(rate);
    let mut next = schedule.next();
    let mut tally = Tally::new(rate);
    let mut flying: FuturesUnordered<BoxFuture<'_, Finished>> = FuturesUnordered::new();
    let mut timer = clock.sleep(Duration::ZERO);
    let mut timer_until = None;
    let sending = loop {
        let now = clock.steady().saturating_sub(start);
        while let Some(due) = next.filter(|due| *due <= now) {
            tally.roll(due, flying.len(), each_second);
            next = schedule.next();
            let number = tally.due;
            let full = flying.len() >= rate.in_flight as usize;
            tally.add_due(due, full);
            if !full {
                let (request, kind) = rate.mix.request(&mut Random::new(rate.seed, number), key, rate.timeout);
                let sent = Sent { due, kind, generates: rate.mix.generates(kind) };
                flying.push(sent.request(wire, clock, start, request).boxed());
                tally.in_flight_max = tally.in_flight_max.max(count(flying.len()));
            }
        }
        tally.roll(now, flying.len(), each_second);
        if now >= end {
            break now;
        }
        let until = next.unwrap_or(end);
        if timer_until != Some(until) {
            timer = clock.sleep(until.saturating_sub(now));
            timer_until = Some(until);
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                tally.stopped = true;
                break clock.steady().saturating_sub(start);
            }
            Some(finished) = flying.next(), if !flying.is_empty() => {
                tally.roll(finished.ended, flying.len() + 1, each_second);
                tally.add(finished);
            }
            () = &mut timer => timer_until = None,
        }
    };
    tally.in_flight_end = count(flying.len());
    while !tally.stopped && !flying.is_empty() {
        tokio::select! {
            biased;
            () = stop.cancelled() => tally.stopped = true,
            Some(finished) = flying.next() => {
                tally.roll(finished.ended, flying.len() + 1, each_second);
                tally.add(finished);
            }
            () = clock.sleep(Duration::from_secs(1)) => {}
        }
        tally.roll(clock.steady().saturating_sub(start), flying.len(), each_second);
    }
    let unfinished = flying.len();
    drop(flying);
    tally.finish((clock.steady().saturating_sub(start), sending), unfinished, each_second)
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A request that is sent.
struct Sent {
    /// When it was due, since the start.
    due: Duration,
    kind: usize,
    generates: bool,
}

/// A request that ended.
struct Finished {
    due: Duration,
    /// How long after that it was sent.
    lag: Duration,
    ended: Duration,
    kind: usize,
    tokens: u64,
    error: Option<String>,
    timed_out: bool,
}

impl Sent {
    async fn request(self, wire: &dyn Wire, clock: &dyn Clock, start: Duration, request: LoadRequest) -> Finished {
        let Self { due, kind, generates } = self;
        let lag = clock.steady().saturating_sub(start + due);
        let answer = wire.send(request).await;
        let ended = clock.steady().saturating_sub(start);
        let (tokens, error) = outcome(&answer, generates);
        let timed_out = matches!(answer, Err(RequestFailure::Timeout));
        Finished { due, lag, ended, kind, tokens, error, timed_out }
    }
}

struct Tally<'a> {
    rate: &'a Rate,
    stopped: bool,
    due: u64,
    dropped: u64,
    requests: u64,
    held_requests: u64,
    held_errors: u64,
    errors: BTreeMap<String, u64>,
    latency: Histogram,
    latency_in_ramp: Histogram,
    lag: Histogram,
    kinds: Vec<KindTally>,
    held_sent: u64,
    held_answered: u64,
    held_tokens: u64,
    in_flight_max: u32,
    in_flight_half: Option<u32>,
    in_flight_end: u32,
    second: RateSecond,
    second_latency: Histogram,
    series: Vec<RateSecond>,
}

impl<'a> Tally<'a> {
    fn new(rate: &'a Rate) -> Self {
        Self {
            rate,
            stopped: false,
            due: 0,
            dropped: 0,
            requests: 0,
            held_requests: 0,
            held_errors: 0,
            errors: BTreeMap::new(),
            latency: Histogram::default(),
            latency_in_ramp: Histogram::default(),
            lag: Histogram::default(),
            kinds: KindTally::all(&rate.mix),
            held_sent: 0,
            held_answered: 0,
            held_tokens: 0,
            in_flight_max: 0,
            in_flight_half: None,
            in_flight_end: 0,
            second: RateSecond::default(),
            second_latency: Histogram::default(),
            series: Vec::new(),
        }
    }

    /// Reports the seconds that ended.
    fn roll(&mut self, now: Duration, in_flight: usize, each_second: &mut (dyn FnMut(&RateSecond) + Send)) {
        while u64::from(self.second.second) < now.as_secs() {
            self.end_second(in_flight, each_second);
        }
        if now >= self.rate.ramp + self.rate.hold / 2 {
            self.in_flight_half = self.in_flight_half.or(Some(count(in_flight)));
        }
    }

    fn end_second(&mut self, in_flight: usize, each_second: &mut (dyn FnMut(&RateSecond) + Send)) {
        let Percentiles { p50_ms, p95_ms, p99_ms, .. } = std::mem::take(&mut self.second_latency).percentiles();
        let next = RateSecond { second: self.second.second + 1, ..RateSecond::default() };
        let ended = std::mem::replace(&mut self.second, next);
        let ended = RateSecond { in_flight: count(in_flight), p50_ms, p95_ms, p99_ms, ..ended };
        each_second(&ended);
        if self.series.len() < MOST_SECONDS {
            self.series.push(ended);
        }
    }

    fn add_due(&mut self, due: Duration, drops: bool) {
        self.due += 1;
        self.dropped += u64::from(drops);
        self.held_sent += u64::from(!drops && due >= self.rate.ramp);
        self.second.due += 1;
        self.second.dropped += u32::from(drops);
    }

    fn add(&mut self, finished: Finished) {
        let Finished { due, lag, ended, kind, tokens, error, timed_out } = finished;
        let (ramp, end) = (self.rate.ramp, self.rate.ramp + self.rate.hold);
        self.requests += 1;
        self.second.requests += 1;
        self.second.tokens += tokens;
        self.lag.add(lag);
        if ended >= ramp && ended < end {
            self.held_answered += u64::from(error.is_none());
            self.held_tokens += tokens;
        }
        let latency = (error.is_none() || timed_out).then(|| ended.saturating_sub(due));
        let held = due >= ramp;
        self.held_requests += u64::from(held);
        self.held_errors += u64::from(held && error.is_some());
        self.kinds[kind].add(error.is_some(), latency.filter(|_| held));
        if let Some(latency) = latency {
            self.second_latency.add(latency);
            if held { &mut self.latency } else { &mut self.latency_in_ramp }.add(latency);
        }
        if let Some(error) = error {
            self.second.errors += 1;
            *self.errors.entry(error).or_default() += 1;
        }
    }

    /// `ran` is the duration of the run, `sending` that until the last request was due.
    fn finish(
        mut self,
        (ran, sending): (Duration, Duration),
        unfinished: usize,
        each_second: &mut (dyn FnMut(&RateSecond) + Send),
    ) -> RateResult {
        self.roll(ran, unfinished, each_second);
        if self.second.due > 0 || self.second.requests > 0 {
            self.end_second(unfinished, each_second);
        }
        // A run that was stopped during the ramp-up has only those.
        let latency = if self.latency.is_empty() { self.latency_in_ramp } else { self.latency };
        let held = sending.saturating_sub(self.rate.ramp).min(self.rate.hold).as_secs_f64();
        let per_second = |n: u64| if held > 0.0 { n as f64 / held } else { 0.0 };
        RateResult {
            rate: self.rate.clone(),
            seconds: ran.as_secs_f64(),
            stopped: self.stopped,
            due: self.due,
            dropped: self.dropped,
            unfinished: unfinished as u64,
            requests: self.requests,
            errors: self.errors.values().sum(),
            held_requests: self.held_requests,
            held_errors: self.held_errors,
            errors_by_kind: self.errors,
            latency: latency.percentiles(),
            send_lag: self.lag.percentiles(),
            kinds: self.kinds.into_iter().map(KindTally::finish).collect(),
            sent_per_second: per_second(self.held_sent),
            answered_per_second: per_second(self.held_answered),
            tokens_per_second: per_second(self.held_tokens),
            in_flight_max: self.in_flight_max,
            in_flight_half: self.in_flight_half.unwrap_or_default(),
            in_flight_end: self.in_flight_end,
            series: self.series,
            histogram: latency.buckets(),
        }
    }
}
