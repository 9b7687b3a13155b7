//! The load generator: many users who think, send a request, read the whole response and think again; or requests at a
//! fixed [`Rate`], which do not wait for earlier ones.
//!
//! It measures from outside through the [`Wire`] that any client uses, and reads time only from its [`Clock`]. One task
//! drives all users, so the count of users bounds a run.

mod histogram;
mod limit;
mod mix;
mod rate;
mod sessions;
mod tally;
mod wire;

use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, select};
use futures::stream::{FuturesUnordered, StreamExt};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub use histogram::Percentiles;
pub use limit::{FindLimit, Limit, Probe, find_limit};
pub use mix::{KindResult, Mix, ServedModel, Unserved};
pub use rate::{Arrivals, MOST_ERRORS, Rate, RateResult, RateSecond, run_rate};
pub use sessions::{SessionProgress, SessionResult, Sessions, hold};
pub use tally::{Latencies, Measured, Second};
pub use wire::{
    HttpWire, Key, LoadRequest, LoadResponse, RequestFailure, Session, SessionOpener, Wire, WireError, base_address,
};

use crate::clock::Clock;
use crate::environment::model::Gates;
use tally::{Sample, Tally};

/// The parameters of a load test.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Load {
    /// Concurrent users.
    pub users: u32,
    /// New users per second during the ramp-up.
    pub ramp: u32,
    /// The shortest think time before each request.
    pub think_min: Duration,
    /// The longest think time.
    pub think_max: Duration,
    /// The duration after the ramp-up.
    pub hold: Duration,
    /// The fewest tokens of a request.
    pub tokens_min: u32,
    /// The most tokens of a request.
    pub tokens_max: u32,
    /// The share of requests that validate a text instead of generating one, from 0 to 1.
    pub validate_share: f64,
    /// The model; by default the server's.
    pub model: Option<String>,
    /// Requests are for embeddings instead of generated texts.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub embeds: bool,
    /// The requests, instead of those of `tokens_min`, `tokens_max`, `validate_share`, `model` and `embeds`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mix: Option<Mix>,
    /// The timeout of a request.
    pub timeout: Duration,
    /// The same seed gives the same requests and think times.
    pub seed: u64,
}

impl Load {
    /// The load that the gates of an environment require.
    pub fn of(gates: &Gates) -> Self {
        Self {
            users: gates.users,
            ramp: gates.ramp.max(1),
            think_min: gates.think_min.0,
            think_max: gates.think_max.0,
            hold: gates.hold.0,
            tokens_min: gates.tokens_min,
            tokens_max: gates.tokens_max,
            validate_share: 0.1,
            model: None,
            embeds: false,
            mix: None,
            timeout: Duration::from_secs(60),
            seed: 1,
        }
    }

    /// The duration of the ramp-up.
    pub fn ramp_time(&self) -> Duration {
        Duration::from_secs_f64(f64::from(self.users) / f64::from(self.ramp.max(1)))
    }

    /// The tokens per second that a service must generate to answer these users in exactly `p95`.
    pub fn tokens_per_second_needed(&self, p95: Duration) -> f64 {
        let mean_think = (self.think_min + self.think_max).as_secs_f64() / 2.0;
        let mean_tokens = f64::from(self.tokens_min + self.tokens_max) / 2.0;
        let rate = f64::from(self.users) / (mean_think + p95.as_secs_f64()).max(0.001);
        rate * (1.0 - self.validate_share.clamp(0.0, 1.0)) * mean_tokens
    }
}

/// The most requests of one run: a service that answers in microseconds must not exhaust memory.
const MOST_REQUESTS: u64 = 2_000_000;

/// Runs the load and measures. `each_second` receives each finished second until the load ends; `stop` ends the run early,
/// with the measurements so far.
pub async fn run(
    wire: &dyn Wire,
    key: Option<&Key>,
    load: &Load,
    clock: &dyn Clock,
    stop: &CancellationToken,
    each_second: &mut (dyn FnMut(&Second) + Send),
) -> Measured {
    let start = clock.steady();
    let ramp = load.ramp_time();
    let end = start + ramp + load.hold;
    let mut tally = Tally::new(load, ramp);
    let mix = load.mix.clone().unwrap_or_else(|| Mix::of(load));
    let mut flying: FuturesUnordered<BoxFuture<'_, (User, Option<Sample>)>> = FuturesUnordered::new();
    for number in 0..load.users {
        let start_delay = Duration::from_secs_f64(f64::from(number) / f64::from(load.ramp.max(1)));
        let user = User { random: Random::new(load.seed, u64::from(number)) };
        flying.push(user.turn(wire, key, (load, &mix), clock, (start, end), Some(start_delay)).boxed());
    }
    let mut stopped = Box::pin(stop.cancelled());
    loop {
        let next = match select(flying.next(), &mut stopped).await {
            futures::future::Either::Left((next, _)) => next,
            futures::future::Either::Right(_) => {
                tally.stopped = true;
                break;
            }
        };
        let Some((user, sample)) = next else { break };
        let Some(sample) = sample else { continue };
        tally.add(sample, each_second);
        if tally.requests() < MOST_REQUESTS {
            flying.push(user.turn(wire, key, (load, &mix), clock, (start, end), None).boxed());
        }
    }
    tally.finish(clock.steady().saturating_sub(start), each_second)
}

/// One user.
struct User {
    random: Random,
}

/// Prompts in the bundled model's domain; larger models accept them as well.
const PROMPTS: [&str; 8] = [
    "Once upon a time, a small fox lived near the river.",
    "Mara wanted to find the lost key before evening.",
    "The old baker opened the door of the shop and",
    "Write a short story about a boat in the rain.",
    "Tom and Lena walked to the market because",
    "In the quiet village there was a clock that",
    "What happened after the storm? The children",
    "The teacher gave every child a map, and then",
];

impl User {
    /// Thinks, sends a request and reads the whole response. `None` if the run ended during the think time.
    async fn turn(
        mut self,
        wire: &dyn Wire,
        key: Option<&Key>,
        (load, mix): (&Load, &Mix),
        clock: &dyn Clock,
        (start, end): (Duration, Duration),
        start_delay: Option<Duration>,
    ) -> (Self, Option<Sample>) {
        let now = clock.steady();
        let wait = start_delay.unwrap_or_else(|| self.random.between(load.think_min, load.think_max));
        if now + wait >= end {
            return (self, None);
        }
        if !wait.is_zero() {
            clock.sleep(wait).await;
        }
        let (ask, kind) = mix.request(&mut self.random, key, load.timeout);
        let started = clock.steady();
        let answer = wire.send(ask).await;
        let latency = clock.steady().saturating_sub(started);
        let sample = Sample::of(started.saturating_sub(start), latency, (kind, mix.generates(kind)), &answer);
        (self, Some(sample))
    }
}

/// Reproducible pseudorandom numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn new(seed: u64, user: u64) -> Self {
        let mut random = Self(seed ^ user.wrapping_mul(0xA076_1D64_78BD_642F));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn between(&mut self, least: Duration, most: Duration) -> Duration {
        least + most.saturating_sub(least).mul_f64(self.share())
    }
}
