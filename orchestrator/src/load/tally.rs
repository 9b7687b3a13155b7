//! The measurements of a load test.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::mix::KindTally;
use super::wire::{LoadResponse, RequestFailure};
use super::{KindResult, Load};

/// One finished request.
pub(super) struct Sample {
    start: Duration,
    latency: Duration,
    kind: usize,
    generates: bool,
    tokens: u64,
    error: Option<String>,
}

impl Sample {
    pub(super) fn of(
        start: Duration,
        latency: Duration,
        (kind, generates): (usize, bool),
        answer: &Result<LoadResponse, RequestFailure>,
    ) -> Self {
        let (tokens, error) = outcome(answer, generates);
        Self { start, latency, kind, generates, tokens, error }
    }
}

/// The tokens of a response, and the kind of its error.
pub(super) fn outcome(answer: &Result<LoadResponse, RequestFailure>, generates: bool) -> (u64, Option<String>) {
    match answer {
        Err(failure) => (0, Some(failure.kind().to_owned())),
        Ok(answer) if answer.status != 200 => (0, Some(format!("status {}", answer.status))),
        Ok(answer) => match answer.json() {
            Some(body) if generates => {
                let tokens = body["usage"]["completion_tokens"].as_u64().unwrap_or(0);
                let vector = body["data"][0]["embedding"].is_array();
                let nothing = body["text"].as_str().is_none_or(str::is_empty) && tokens == 0 && !vector;
                (tokens, nothing.then(|| "empty answer".to_owned()))
            }
            Some(_) => (0, None),
            None => (0, Some("not JSON".to_owned())),
        },
    }
}

/// One second of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Second {
    /// Its number since the start.
    pub second: u32,
    /// Users that had arrived by its end.
    pub users: u32,
    /// Requests that ended in it.
    pub requests: u32,
    /// Failed requests.
    pub errors: u32,
    /// Tokens of its responses.
    pub tokens: u64,
    /// The median latency of its successful requests in milliseconds; 0 without any.
    pub p50_ms: f64,
    /// The 95th percentile of the same.
    pub p95_ms: f64,
}

/// Latencies of whole responses, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    /// The count of responses.
    pub count: u64,
    /// The median.
    pub p50_ms: f64,
    /// The 95th percentile.
    pub p95_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// The mean.
    pub mean_ms: f64,
    /// The maximum.
    pub max_ms: f64,
}

/// The measurements of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// The parameters.
    pub load: Load,
    /// The duration in seconds.
    pub seconds: f64,
    /// Whether it was stopped before its end.
    pub stopped: bool,
    /// Finished requests.
    pub requests: u64,
    /// Failed requests.
    pub errors: u64,
    /// Failures by kind.
    pub errors_by_kind: BTreeMap<String, u64>,
    /// Generations after the ramp-up.
    pub generate: Latencies,
    /// Validations after the ramp-up.
    pub validate: Latencies,
    /// Requests per second after the ramp-up.
    pub rps: f64,
    /// Tokens per second after the ramp-up.
    pub tokens_per_second: f64,
    /// The seconds of the run.
    pub series: Vec<Second>,
    /// Generations of the whole run by latency: (upper bound in ms, count). Bounds double from 1 ms; the last bucket
    /// has none.
    pub histogram: Vec<(f64, u64)>,
    /// The kinds of requests of a mix.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<KindResult>,
}

impl Measured {
    /// The share of failed requests; 1 if there were none at all.
    pub fn error_rate(&self) -> f64 {
        if self.requests == 0 { 1.0 } else { self.errors as f64 / self.requests as f64 }
    }
}

/// The most seconds of a series: a day.
pub(super) const MOST_SECONDS: usize = 86_400;

pub(super) struct Tally {
    load: Load,
    ramp: Duration,
    pub(super) stopped: bool,
    requests: u64,
    errors: BTreeMap<String, u64>,
    generate: Vec<f32>,
    generate_in_ramp: Vec<f32>,
    validate: Vec<f32>,
    kinds: Vec<KindTally>,
    held_requests: u64,
    held_tokens: u64,
    seconds: Vec<(Second, Vec<f32>)>,
    reported: usize,
}

impl Tally {
    pub(super) fn new(load: &Load, ramp: Duration) -> Self {
        Self {
            load: load.clone(),
            ramp,
            stopped: false,
            requests: 0,
            errors: BTreeMap::new(),
            generate: Vec::new(),
            generate_in_ramp: Vec::new(),
            validate: Vec::new(),
            kinds: load.mix.as_ref().map(KindTally::all).unwrap_or_default(),
            held_requests: 0,
            held_tokens: 0,
            seconds: Vec::new(),
            reported: 0,
        }
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests
    }

    pub(super) fn add(&mut self, sample: Sample, each_second: &mut (dyn FnMut(&Second) + Send)) {
        self.requests += 1;
        let ended = sample.start + sample.latency;
        let at = (ended.as_secs() as usize).min(MOST_SECONDS);
        while self.seconds.len() <= at {
            let second = self.seconds.len() as u32;
            let started = u64::from(second + 1) * u64::from(self.load.ramp.max(1));
            let users = started.min(u64::from(self.load.users)) as u32;
            self.seconds.push((Second { second, users, ..Second::default() }, Vec::new()));
        }
        let (second, latencies) = &mut self.seconds[at];
        second.requests += 1;
        second.tokens += sample.tokens;
        let ms = sample.latency.as_secs_f64() as f32 * 1000.0;
        // Requests that ended after the ramp-up count as throughput; those that also started after it count as latency.
        if ended >= self.ramp && ended < self.ramp + self.load.hold {
            self.held_requests += 1;
            self.held_tokens += sample.tokens;
        }
        if let Some(kind) = self.kinds.get_mut(sample.kind) {
            let counts = sample.error.is_none() && sample.start >= self.ramp;
            kind.add(sample.error.is_some(), counts.then_some(sample.latency));
        }
        if let Some(kind) = sample.error {
            second.errors += 1;
            *self.errors.entry(kind).or_default() += 1;
        } else if sample.generates {
            latencies.push(ms);
            let all_here = sample.start >= self.ramp;
            if all_here { &mut self.generate } else { &mut self.generate_in_ramp }.push(ms);
        } else if sample.start >= self.ramp {
            self.validate.push(ms);
        }
        self.tell(at, each_second);
    }

    /// Reports finished seconds of the load. A response counts in the second in which it ended, so finished seconds never
    /// change. The seconds after the load, in which the last responses end, would look like a collapse.
    fn tell(&mut self, until: usize, each_second: &mut (dyn FnMut(&Second) + Send)) {
        let end = self.ramp + self.load.hold;
        while self.reported < until.min(self.seconds.len()) {
            let (second, latencies) = &mut self.seconds[self.reported];
            latencies.sort_by(f32::total_cmp);
            second.p50_ms = quantile(latencies, 0.50);
            second.p95_ms = quantile(latencies, 0.95);
            if Duration::from_secs(u64::from(second.second) + 1) <= end {
                each_second(second);
            }
            self.reported += 1;
        }
    }

    pub(super) fn finish(mut self, ran: Duration, each_second: &mut (dyn FnMut(&Second) + Send)) -> Measured {
        self.tell(usize::MAX, each_second);
        let mut histogram: Vec<(f64, u64)> = (0..18).map(|i| (f64::from(1_u32 << i), 0)).collect();
        for ms in self.generate.iter().chain(&self.generate_in_ramp) {
            let bucket =
                histogram.iter().position(|(bound, _)| f64::from(*ms) <= *bound).unwrap_or(histogram.len() - 1);
            histogram[bucket].1 += 1;
        }
        // A run that was stopped during the ramp-up has only those.
        let mut generate = if self.generate.is_empty() { self.generate_in_ramp } else { self.generate };
        let held = ran.saturating_sub(self.ramp).min(self.load.hold).as_secs_f64();
        let per_second = |n: u64| if held > 0.0 { n as f64 / held } else { 0.0 };
        Measured {
            seconds: ran.as_secs_f64(),
            stopped: self.stopped,
            requests: self.requests,
            errors: self.errors.values().sum(),
            errors_by_kind: self.errors,
            generate: latencies(&mut generate),
            validate: latencies(&mut self.validate),
            rps: per_second(self.held_requests),
            tokens_per_second: per_second(self.held_tokens),
            series: self.seconds.into_iter().map(|(second, _)| second).collect(),
            histogram,
            kinds: self.kinds.into_iter().map(KindTally::finish).collect(),
            load: self.load,
        }
    }
}

pub(super) fn latencies(ms: &mut [f32]) -> Latencies {
    ms.sort_by(f32::total_cmp);
    let count = ms.len() as u64;
    let sum: f64 = ms.iter().map(|ms| f64::from(*ms)).sum();
    Latencies {
        count,
        p50_ms: quantile(ms, 0.50),
        p95_ms: quantile(ms, 0.95),
        p99_ms: quantile(ms, 0.99),
        mean_ms: if count == 0 { 0.0 } else { sum / count as f64 },
        max_ms: ms.last().copied().map_or(0.0, f64::from),
    }
}

/// The smallest value that at least this share of all values does not exceed.
fn quantile(sorted: &[f32], share: f64) -> f64 {
    if sorted.is_empty() {
        return 0.0;
    }
    let rank = (share * sorted.len() as f64).ceil().max(1.0) as usize;
    f64::from(sorted[rank.min(sorted.len()) - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_measured_values() {
        let values: Vec<f32> = (1..=100).map(|n| n as f32).collect();
        assert_eq!([0.5, 0.95, 0.99, 1.0].map(|share| quantile(&values, share)), [50.0, 95.0, 99.0, 100.0]);
        assert_eq!(quantile(&[7.0], 0.95), 7.0);
        assert_eq!(quantile(&[], 0.95), 0.0);
    }
}
