//! Retries with exponential backoff and jitter, bounded in number and in time.

use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _};
use std::pin::Pin;
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// Exponential pauses between attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The pause after the first failure; it doubles each time.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
}

impl Backoff {
    /// The pause after this many failures. `jitter` (0 to 1) spreads it over its upper half, so that processes that failed together do
    /// not retry together.
    pub fn pause(&self, failures: u32, jitter: f64) -> Duration {
        let factor = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.longest).mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

/// How long something is retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in a row that made no progress, at least one.
    pub attempts: u32,
    /// Attempts in all. It bounds a transfer that is cut every few bytes.
    pub attempts_total: u32,
    /// Pauses, where the other side asks for none.
    pub backoff: Backoff,
    /// The longest `Retry-After` that is waited for.
    pub longest_retry_after: Duration,
    /// No attempt starts when this time has passed without progress.
    pub timeout: Duration,
}

impl RetryPolicy {
    /// This many attempts with these pauses, for work that has neither partial progress nor `Retry-After`.
    pub const fn new(attempts: u32, backoff: Backoff) -> Self {
        let (longest_retry_after, timeout) = (Duration::ZERO, Duration::MAX);
        Self { attempts, attempts_total: attempts, backoff, longest_retry_after, timeout }
    }

    /// The same, but no attempt starts after this time.
    #[must_use]
    pub const fn within(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }
}

/// A failure that another attempt may not meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transient {
    /// What failed.
    pub reason: String,
    /// How long the other side asks to wait.
    pub retry_after: Option<Duration>,
    /// The server limits the request rate.
    pub is_throttled: bool,
}

impl Transient {
    /// A failure below HTTP: the connection was refused, cut or silent.
    pub fn connection(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry_after: None, is_throttled: false }
    }

    /// A status and its `Retry-After`; `None` for a status that another attempt would meet again.
    pub fn status(status: u16, retry_after: Option<&str>, now: Timestamp) -> Option<Self> {
        if !is_retryable(status) {
            return None;
        }
        let retry_after = retry_after.and_then(|text| parse_retry_after(text, now));
        let is_throttled = status == 429 || retry_after.is_some();
        Some(Self { reason: format!("status {status}"), retry_after, is_throttled })
    }
}

/// Whether a request with this status is worth another attempt.
pub fn is_retryable(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// A `Retry-After` header (RFC 9110, 10.2.3): seconds or a date. A date that has passed means now.
pub fn parse_retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO))
}

/// Why no further attempt is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GaveUp {
    /// The server limits the request rate, or requests a longer wait than allowed.
    Throttled {
        /// The last requested wait.
        retry_after: Option<Duration>,
    },
    /// Every attempt failed.
    Exhausted {
        /// How many there were.
        attempts: u32,
        /// Why the last one failed.
        reason: String,
    },
}

/// Time, as retries see it.
pub trait RetryClock: Send + Sync {
    /// The time since some fixed point.
    fn now(&self) -> Duration;
    /// Waits.
    fn sleep(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
    /// A number from 0 to 1.
    fn jitter(&self) -> f64 {
        jitter()
    }
}

/// The clock of this machine.
#[derive(Debug, Clone, Copy)]
pub struct MonotonicClock(Instant);

impl MonotonicClock {
    /// Starts at zero.
    pub fn start() -> Self {
        Self(Instant::now())
    }
}

impl RetryClock for MonotonicClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(tokio::time::sleep(time))
    }
}

/// A random number from 0 to 1.
pub fn jitter() -> f64 {
    // Each `RandomState` has keys of its own.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    f64::from((random >> 32) as u32) / f64::from(u32::MAX)
}

/// Counts the failures of one piece of work.
pub struct Retry<C = MonotonicClock> {
    policy: RetryPolicy,
    clock: C,
    in_a_row: u32,
    total: u32,
    progressed_at: Duration,
}

impl Retry {
    /// Starts now.
    pub fn new(policy: RetryPolicy) -> Self {
        Self::with_clock(policy, MonotonicClock::start())
    }
}

impl<C: RetryClock> Retry<C> {
    /// The same with another clock.
    pub fn with_clock(policy: RetryPolicy, clock: C) -> Self {
        let progressed_at = clock.now();
        Self { policy, clock, in_a_row: 0, total: 0, progressed_at }
    }

    /// The attempts that failed.
    pub fn failures(&self) -> u32 {
        self.total
    }

    /// Counts a failed attempt: the pause before the next one, or why there is none. `progressed`: the attempt failed, but brought
    /// something that the next one does not repeat.
    pub fn failed(&mut self, failure: Transient, progressed: bool) -> Result<Duration, GaveUp> {
        let now = self.clock.now();
        self.total += 1;
        self.in_a_row = if progressed { 1 } else { self.in_a_row + 1 };
        if progressed {
            self.progressed_at = now;
        }
        let Transient { reason, retry_after, is_throttled } = failure;
        let too_long = retry_after.is_some_and(|after| after > self.policy.longest_retry_after);
        let pause = retry_after.unwrap_or_else(|| self.policy.backoff.pause(self.in_a_row, self.clock.jitter()));
        let is_late = now.saturating_sub(self.progressed_at).saturating_add(pause) > self.policy.timeout;
        let is_last = self.in_a_row >= self.policy.attempts || self.total >= self.policy.attempts_total || is_late;
        match (too_long || (is_last && is_throttled), is_last) {
            (true, _) => Err(GaveUp::Throttled { retry_after }),
            (false, true) => Err(GaveUp::Exhausted { attempts: self.total, reason }),
            (false, false) => Ok(pause),
        }
    }

    /// Waits, by this clock.
    pub async fn sleep(&self, pause: Duration) {
        self.clock.sleep(pause).await;
    }
}

/// Runs `work` until it succeeds, fails with an error that is not retryable, or the policy ends it; then the last error is returned.
pub async fn retry<T, E, F>(
    policy: RetryPolicy,
    is_retryable: impl Fn(&E) -> bool,
    work: impl FnMut() -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    retry_with_clock(policy, MonotonicClock::start(), is_retryable, work).await
}

/// The same with another clock.
pub async fn retry_with_clock<T, E, F>(
    policy: RetryPolicy,
    clock: impl RetryClock,
    is_retryable: impl Fn(&E) -> bool,
    mut work: impl FnMut() -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let mut retry = Retry::with_clock(policy, clock);
    loop {
        let error = match work().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if !is_retryable(&error) {
            return Err(error);
        }
        match retry.failed(Transient::connection(String::new()), false) {
            Ok(pause) => retry.sleep(pause).await,
            Err(_) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Time passes only while something sleeps.
    #[derive(Default)]
    struct FakeClock(Mutex<Duration>);

    impl RetryClock for &FakeClock {
        fn now(&self) -> Duration {
            *self.0.lock().unwrap()
        }

        fn sleep(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
            *self.0.lock().unwrap() += time;
            Box::pin(std::future::ready(()))
        }

        fn jitter(&self) -> f64 {
            1.0
        }
    }

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    const POLICY: RetryPolicy = RetryPolicy {
        attempts: 4,
        attempts_total: 6,
        backoff: Backoff { first: ms(100), longest: ms(300) },
        longest_retry_after: ms(5000),
        timeout: ms(60_000),
    };

    fn cut() -> Transient {
        Transient::connection("cut")
    }

    fn throttled(seconds: &str) -> Transient {
        Transient::status(429, Some(seconds), Timestamp::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn backoff_doubles_up_to_the_maximum_and_jitter_halves_at_most() {
        let backoff = Backoff { first: ms(20), longest: ms(100) };
        let pauses: Vec<_> = (1..6).map(|failures| backoff.pause(failures, 1.0).as_millis()).collect();
        assert_eq!(pauses, [20, 40, 80, 100, 100]);
        assert_eq!(backoff.pause(1, 0.0), ms(10));
        assert_eq!(backoff.pause(200, 1.0), ms(100));
        let random: Vec<f64> = (0..100).map(|_| jitter()).collect();
        assert!(
            random.iter().all(|jitter| (0.0..=1.0).contains(jitter))
                && random.iter().any(|jitter| *jitter != random[0])
        );
    }

    #[test]
    fn retry_after_is_parsed_as_seconds_and_as_a_date() {
        let now: Timestamp = "2015-10-21T07:28:00Z".parse().unwrap();
        let after = |text: &str| parse_retry_after(text, now);
        assert_eq!(after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(after("Wed, 21 Oct 2015 07:29:30 GMT"), Some(Duration::from_secs(90)));
        assert_eq!(after("Wed, 21 Oct 2015 07:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!((after("soon"), after("-1"), after("")), (None, None, None));
    }

    #[test]
    fn retryable_statuses_are_defined_in_one_list() {
        let retried: Vec<u16> = (100..600).filter(|status| is_retryable(*status)).collect();
        assert_eq!(retried, [408, 425, 429, 500, 502, 503, 504]);
        assert_eq!(Transient::status(404, Some("1"), Timestamp::UNIX_EPOCH), None);
    }

    #[test]
    fn retry_limits_consecutive_and_total_failures() {
        let clock = FakeClock::default();
        let mut retry = Retry::with_clock(POLICY, &clock);
        let pauses: Vec<_> = (0..3).map(|_| retry.failed(cut(), false).unwrap().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 300]);
        let reason = "cut".to_owned();
        assert_eq!(retry.failed(cut(), false), Err(GaveUp::Exhausted { attempts: 4, reason: reason.clone() }));
        // Progress starts the row again, and does not make it endless.
        let mut retry = Retry::with_clock(POLICY, &clock);
        for _ in 0..5 {
            assert_eq!(retry.failed(cut(), true), Ok(ms(100)));
        }
        assert_eq!(retry.failed(cut(), true), Err(GaveUp::Exhausted { attempts: 6, reason }));
    }

    #[test]
    fn retry_after_replaces_the_backoff_and_too_long_a_wait_gives_up() {
        let clock = FakeClock::default();
        let mut retry = Retry::with_clock(POLICY, &clock);
        assert_eq!(retry.failed(throttled("2"), false), Ok(ms(2000)));
        let retry_after = Some(ms(6000));
        assert_eq!(retry.failed(throttled("6"), false), Err(GaveUp::Throttled { retry_after }));
    }

    #[test]
    fn persistent_429_is_throttling_with_and_without_retry_after() {
        for header in [None, Some("1")] {
            let clock = FakeClock::default();
            let mut retry = Retry::with_clock(POLICY, &clock);
            let failure = || Transient::status(429, header, Timestamp::UNIX_EPOCH).unwrap();
            let last = (0..4).map(|_| retry.failed(failure(), false)).last().unwrap();
            assert_eq!(last, Err(GaveUp::Throttled { retry_after: header.map(|_| ms(1000)) }));
        }
    }

    #[test]
    fn no_attempt_starts_after_the_deadline() {
        let clock = FakeClock::default();
        let mut retry =
            Retry::with_clock(RetryPolicy { attempts: 100, attempts_total: 100, ..POLICY }.within(ms(250)), &clock);
        let pause = retry.failed(cut(), false).unwrap();
        *clock.0.lock().unwrap() += pause;
        assert!(matches!(retry.failed(cut(), false), Err(GaveUp::Exhausted { attempts: 2, .. })));
    }

    #[tokio::test]
    async fn retry_runs_until_success_a_permanent_error_or_exhaustion() {
        let check = async |errors: &'static [&'static str]| {
            let (clock, mut calls) = (FakeClock::default(), 0);
            let policy = RetryPolicy::new(3, POLICY.backoff);
            let work = || {
                let result = errors.get(calls).map_or(Ok("done"), |error| Err(*error));
                calls += 1;
                async move { result }
            };
            let result = retry_with_clock(policy, &clock, |error: &&str| *error != "wrong", work).await;
            (result, calls, (&clock).now().as_millis())
        };
        assert_eq!(check(&["busy", "busy"]).await, (Ok("done"), 3, 300));
        assert_eq!(check(&["busy", "busy", "busy"]).await, (Err("busy"), 3, 300));
        assert_eq!(check(&["wrong"]).await, (Err("wrong"), 1, 0));
    }
}
