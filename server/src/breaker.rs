//! A circuit breaker: after several failures in a row calls fail at once, until a trial after a pause succeeds.
//!
//! Pure: `now` is an argument, and what counts as a failure is the caller's business.

use std::time::{Duration, Instant};

/// When it opens, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct BreakerOptions {
    /// Failures in a row that open it.
    pub failure_threshold: u32,
    /// How long it stays open before one call may try.
    pub recovery_timeout: Duration,
}

impl Default for BreakerOptions {
    fn default() -> Self {
        Self { failure_threshold: 5, recovery_timeout: Duration::from_secs(60) }
    }
}

/// The state of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Calls pass.
    Closed,
    /// Calls fail at once.
    Open,
    /// One call is trying.
    HalfOpen,
}

/// Guards one thing that may fail.
#[derive(Debug)]
pub struct Breaker {
    options: BreakerOptions,
    failures: u32,
    opened: Option<Instant>,
    trial: Option<Instant>,
}

impl Breaker {
    /// A closed one.
    pub fn new(options: BreakerOptions) -> Self {
        Self { options, failures: 0, opened: None, trial: None }
    }

    /// Whether a call may be made now; the error is the time to wait. Every permitted call must be followed by
    /// [`Breaker::succeeded`], [`Breaker::failed`] or [`Breaker::abandoned`].
    pub fn permit(&mut self, now: Instant) -> Result<(), Duration> {
        let Some(opened) = self.opened else { return Ok(()) };
        let pause = self.options.recovery_timeout;
        // A trial that never reports (its task died) must not keep the breaker half open for ever.
        if let Some(trial) = self.trial.filter(|trial| now.duration_since(*trial) < pause) {
            return Err(pause - now.duration_since(trial));
        }
        let passed = now.duration_since(opened);
        if passed < pause {
            return Err(pause - passed);
        }
        self.trial = Some(now);
        Ok(())
    }

    /// A call worked: closed, and the count is cleared.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.opened = None;
        self.trial = None;
    }

    /// A call failed.
    pub fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if self.trial.take().is_some() || self.failures >= self.options.failure_threshold {
            self.opened = Some(now);
        }
    }

    /// A call ended without success or failure: its client disconnected, or its deadline passed.
    pub fn abandoned(&mut self) {
        self.trial = None;
    }

    /// The current state.
    pub fn state(&self) -> State {
        match (self.opened, self.trial) {
            (None, _) => State::Closed,
            (Some(_), None) => State::Open,
            (Some(_), Some(_)) => State::HalfOpen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(BreakerOptions::default());
        for _ in 0..5 {
            breaker.permit(now).unwrap();
            breaker.failed(now);
        }
        breaker
    }

    #[test]
    fn breaker_opens_after_five_consecutive_failures() {
        let now = Instant::now();
        let mut breaker = Breaker::new(BreakerOptions::default());
        for _ in 0..4 {
            breaker.failed(now);
        }
        breaker.succeeded();
        for _ in 0..4 {
            breaker.failed(now);
            assert_eq!(breaker.state(), State::Closed);
        }
        breaker.failed(now);
        assert_eq!(breaker.state(), State::Open);
        assert_eq!(breaker.permit(now + Duration::from_secs(20)), Err(Duration::from_secs(40)));
    }

    #[test]
    fn breaker_allows_one_trial_after_the_pause_and_closes_on_success() {
        let now = Instant::now();
        let mut breaker = open(now);
        let later = now + Duration::from_secs(60);
        assert_eq!(breaker.permit(later), Ok(()));
        assert_eq!(breaker.state(), State::HalfOpen);
        assert!(breaker.permit(later).is_err(), "only one tries");
        breaker.succeeded();
        assert_eq!(breaker.state(), State::Closed);
        breaker.failed(later);
        assert_eq!(breaker.state(), State::Closed, "the count was cleared");
    }

    #[test]
    fn failed_trial_reopens_the_breaker_and_an_abandoned_one_frees_the_trial() {
        let now = Instant::now();
        let mut breaker = open(now);
        let later = now + Duration::from_secs(61);
        breaker.permit(later).unwrap();
        breaker.abandoned();
        breaker.permit(later).unwrap();
        breaker.failed(later);
        assert_eq!(breaker.state(), State::Open);
        assert_eq!(breaker.permit(later), Err(Duration::from_secs(60)));
    }

    #[test]
    fn trial_that_never_reports_expires() {
        let now = Instant::now();
        let mut breaker = open(now);
        breaker.permit(now + Duration::from_secs(60)).unwrap();
        assert_eq!(breaker.permit(now + Duration::from_secs(121)), Ok(()));
    }
}
