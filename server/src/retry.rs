//! Trying again what may work a moment later, a bounded number of times.

use std::future::Future;
use std::time::{Duration, Instant};

/// How often, and how long between.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// Tries in all, at least one.
    pub tries: u32,
    /// The wait after the first failure; doubles each time.
    pub first: Duration,
    /// The longest wait.
    pub most: Duration,
}

impl Backoff {
    /// For a database that another process has locked: 0.3 to 0.6 seconds in all, and what the tries take.
    pub const DATABASE: Self = Self { tries: 6, first: Duration::from_millis(20), most: Duration::from_millis(640) };

    /// The wait after so many failures, spread by `spread` (0 to 1) over its upper half, so that processes that failed
    /// together do not come back together.
    pub fn wait(&self, failures: u32, spread: f64) -> Duration {
        let full =
            self.first.saturating_mul(1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX)).min(self.most);
        full.mul_f64(0.5 + spread.clamp(0.0, 1.0) / 2.0)
    }
}

/// Runs `work` until it succeeds, fails for good, or the tries are used up; the last error is returned.
pub async fn retry<T, E, F>(backoff: Backoff, passes: impl Fn(&E) -> bool, mut work: impl FnMut() -> F) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let mut failures = 0;
    loop {
        match work().await {
            Ok(value) => return Ok(value),
            Err(error) => {
                failures += 1;
                if failures >= backoff.tries || !passes(&error) {
                    return Err(error);
                }
                tokio::time::sleep(backoff.wait(failures, spread())).await;
            }
        }
    }
}

/// The same, but that nothing is tried again after this time.
pub async fn retry_within<T, E, F>(
    within: Duration,
    backoff: Backoff,
    passes: impl Fn(&E) -> bool,
    work: impl FnMut() -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let began = Instant::now();
    retry(backoff, |error| passes(error) && began.elapsed() < within, work).await
}

/// A number from 0 to 1, another one each time.
pub(crate) fn spread() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / 255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Backoff = Backoff { tries: 3, first: Duration::from_micros(1), most: Duration::from_micros(4) };

    #[tokio::test]
    async fn tries_again_until_it_works_or_the_tries_are_used_up() {
        let mut calls = 0;
        let worked: Result<u32, &str> = retry(
            QUICK,
            |_| true,
            || {
                calls += 1;
                let now = calls;
                async move { if now < 3 { Err("busy") } else { Ok(now) } }
            },
        )
        .await;
        assert_eq!(worked, Ok(3));
        let mut calls = 0;
        let failed: Result<(), &str> = retry(
            QUICK,
            |_| true,
            || {
                calls += 1;
                async { Err("busy") }
            },
        )
        .await;
        assert_eq!((failed, calls), (Err("busy"), 3));
    }

    #[tokio::test]
    async fn an_error_that_will_not_pass_is_not_tried_again() {
        let mut calls = 0;
        let failed: Result<(), &str> = retry(
            QUICK,
            |error| *error != "wrong",
            || {
                calls += 1;
                async { Err("wrong") }
            },
        )
        .await;
        assert_eq!((failed, calls), (Err("wrong"), 1));
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let backoff = Backoff { tries: 9, first: Duration::from_millis(20), most: Duration::from_millis(100) };
        let waits: Vec<_> = (1..6).map(|n| backoff.wait(n, 1.0).as_millis()).collect();
        assert_eq!(waits, [20, 40, 80, 100, 100]);
        assert_eq!(backoff.wait(1, 0.0).as_millis(), 10);
        assert_eq!(backoff.wait(200, 1.0).as_millis(), 100);
    }
}
