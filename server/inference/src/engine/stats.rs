//! Statistics of the engine.

use std::time::Instant;

use crate::executor::Memory;

/// A snapshot of the engine, at most one step old.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Requests that were accepted and have no room yet.
    pub queued: usize,
    /// Requests that hold keys and values.
    pub running: usize,
    /// Those of them whose client does not read.
    pub paused: usize,
    /// No more requests are accepted.
    pub draining: bool,
    /// Generated tokens per second of all requests together, decayed over about five seconds.
    pub tokens_per_second: f64,
    /// Milliseconds that the last step took.
    pub last_step_ms: f64,
    /// When the last step succeeded.
    pub last_step: Option<Instant>,
    /// Steps that succeeded.
    pub steps: u64,
    /// Steps that failed; the requests of one may still have succeeded in another.
    pub failed_steps: u64,
    /// Rows of prompts that were computed.
    pub prompt_tokens: u64,
    /// Rows of prompts that were there already: another request of the tenant began with the same tokens.
    pub cached_tokens: u64,
    /// Tokens that were generated.
    pub generated_tokens: u64,
    /// Tokens that were guessed and computed ahead.
    pub drafted_tokens: u64,
    /// Those of them that were right.
    pub accepted_tokens: u64,
    /// Completed requests.
    pub completed: u64,
    /// Requests whose client went away or cancelled.
    pub cancelled: u64,
    /// Requests that failed after they were accepted.
    pub failed: u64,
    /// Requests that lost their room to a tenant served less, and computed their rows again later.
    pub preempted: u64,
    /// The retry delay that a rejected request would get now.
    pub retry_after_ms: u64,
    /// Why a model's device computes nothing more in this process.
    pub fault: Option<String>,
    /// Each loaded model, including retired ones that finish their requests.
    pub models: Vec<ModelStats>,
}

/// One loaded model.
#[derive(Debug, Clone, Default)]
pub struct ModelStats {
    /// Which loading it is: a model that is loaded again gets another number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Requests without room yet.
    pub queued: usize,
    /// Requests with room.
    pub running: usize,
    /// Bytes held.
    pub memory: Memory,
    /// Milliseconds of steps so far.
    pub busy_ms: f64,
    /// Accepts no more requests and is removed when the last one ends.
    pub retired: bool,
}

/// A rate that forgets: about the last five seconds count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    per_second: f64,
    at: Instant,
}

const MEMORY_SECONDS: f64 = 5.0;

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Rate { per_second: 0.0, at: now }
    }

    pub(super) fn add(&mut self, count: u64, now: Instant) {
        self.per_second = self.at(now) + count as f64 / MEMORY_SECONDS;
        self.at = now;
    }

    pub(super) fn at(&self, now: Instant) -> f64 {
        self.per_second * (-now.saturating_duration_since(self.at).as_secs_f64() / MEMORY_SECONDS).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn token_rate_converges_and_decays() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        let mut now = start;
        for _ in 0..3000 {
            now += Duration::from_millis(10);
            rate.add(2, now);
        }
        assert!((rate.at(now) - 200.0).abs() < 2.0);
        assert!(rate.at(now + Duration::from_secs(30)) < 1.0);
    }
}
