//! Virtual time, and ids that follow from a seed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// Time of a simulated cloud. It starts at the real time and moves only by requests and by [`World::advance`].
///
/// [`World::advance`]: crate::World::advance
#[derive(Clone, Debug)]
pub struct Clock {
    now: Timestamp,
}

impl Clock {
    pub(crate) fn new() -> Self {
        // Whole seconds, because most answers are in them.
        Self { now: Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH) }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.now
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        self.now = later(self.now, by);
    }
}

/// A time after another.
#[must_use]
pub fn later(time: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| time.checked_add(by).ok()).unwrap_or(Timestamp::MAX)
}

/// A time as inputs and outputs carry it: RFC 3339.
#[must_use]
pub fn timestamp(time: Timestamp) -> Value {
    Value::String(time.to_string())
}

/// A state that changes as time passes, such as `pending`, and `available` from a due time on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stages {
    first: &'static str,
    next: Vec<(Timestamp, &'static str)>,
}

impl Stages {
    /// A state that stays.
    #[must_use]
    pub fn settled(state: &'static str) -> Self {
        Self { first: state, next: Vec::new() }
    }

    /// A first state, and those that follow at their times. [`Call::stages`] counts the times from now.
    ///
    /// [`Call::stages`]: crate::Call::stages
    #[must_use]
    pub fn new(first: &'static str, next: Vec<(Timestamp, &'static str)>) -> Self {
        Self { first, next }
    }

    /// The state at a time.
    #[must_use]
    pub fn at(&self, now: Timestamp) -> &'static str {
        self.next.iter().rev().find(|(due, _)| *due <= now).map_or(self.first, |(_, state)| state)
    }

    /// The last state, and the time from which it holds.
    #[must_use]
    pub fn last(&self) -> (&'static str, Option<Timestamp>) {
        self.next.last().map_or((self.first, None), |(due, state)| (state, Some(*due)))
    }
}

/// Numbers that follow from a seed, the same in every run with the same order of requests.
#[derive(Clone, Debug)]
pub struct Random {
    seed: u64,
    drawn: Arc<AtomicU64>,
}

impl Random {
    /// The numbers of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed, drawn: Arc::default() }
    }

    /// The next number.
    #[must_use]
    pub fn number(&self) -> u64 {
        // SplitMix64 of the seed and the count.
        let step = self.drawn.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let mut z = self.seed.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 on, and below 1.
    #[must_use]
    pub fn fraction(&self) -> f64 {
        // 53 bits are what a double holds.
        ((self.number() >> 11) as f64) / ((1_u64 << 53) as f64)
    }

    /// So many hexadecimal digits.
    #[must_use]
    pub fn hex(&self, digits: usize) -> String {
        let mut text = String::with_capacity(digits + 16);
        while text.len() < digits {
            text.push_str(&format!("{:016x}", self.number()));
        }
        text.truncate(digits);
        text
    }

    /// So many of `A-Z` and `2-7`, as in access keys and ids of roles.
    #[must_use]
    pub fn base32(&self, characters: usize) -> String {
        const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        (0..characters).map(|_| char::from(LETTERS[(self.number() % 32) as usize])).collect()
    }

    /// A UUID of version 4.
    #[must_use]
    pub fn uuid(&self) -> String {
        let (a, b) = (self.number(), self.number());
        let (a, b) = ((a & !0xf000) | 0x4000, (b & !(0b11 << 62)) | (0b10 << 62));
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            a >> 32,
            (a >> 16) & 0xffff,
            a & 0xffff,
            b >> 48,
            b & 0xffff_ffff_ffff
        )
    }
}
