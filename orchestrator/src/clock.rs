//! Time, injected: the wall clock for records, a steady clock for deadlines, and sleeping.
//!
//! The engine asks nothing else for the time, so a test runs hours of it in a moment and lets the wall clock jump.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};

/// Where time comes from.
pub trait Clock: Send + Sync {
    /// The wall clock: for records and for people. It may jump; nothing is decided by a difference of two of these alone.
    fn now(&self) -> Timestamp;
    /// Time since some fixed moment of this run; it never goes back.
    fn steady(&self) -> Duration;
    /// Returns after this long.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;
}

/// The machine's clocks; sleeps on tokio's timer.
#[derive(Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn steady(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time))
    }
}

/// A clock that stands still until everybody waits, then goes to the next thing that anybody waits for.
///
/// [`VirtualClock::run`] drives a future by itself, without a runtime: same program, same order, every time.
#[derive(Clone)]
pub struct VirtualClock(Arc<Mutex<Virtual>>);

struct Virtual {
    wall: Timestamp,
    steady: Duration,
    next: u64,
    sleepers: BTreeMap<(Duration, u64), Option<Waker>>,
}

impl VirtualClock {
    /// A clock whose wall time begins here.
    pub fn at(wall: Timestamp) -> Self {
        Self(Arc::new(Mutex::new(Virtual { wall, steady: Duration::ZERO, next: 0, sleepers: BTreeMap::new() })))
    }

    /// Somebody sets the wall clock; the steady one does not notice.
    pub fn jump(&self, by: SignedDuration) {
        let mut inner = self.lock();
        inner.wall = inner.wall.saturating_add(by).unwrap_or(inner.wall);
    }

    /// Time passes while nobody works.
    pub fn pass(&self, time: Duration) {
        let mut inner = self.lock();
        inner.go(time);
    }

    /// Drives a future to its end. `None` when it waits for something that no passing of time brings: then it is dropped,
    /// as a process is that was killed.
    pub fn run<F: Future>(&self, future: F) -> Option<F::Output> {
        self.run_while(future, || true)
    }

    /// Like [`run`](Self::run), but the future is dropped as soon as `alive` says no: time does not help a dead process.
    pub fn run_while<F: Future>(&self, future: F, alive: impl Fn() -> bool) -> Option<F::Output> {
        struct Flag(AtomicBool);
        impl Wake for Flag {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        let waker = Waker::from(flag.clone());
        let mut future = pin!(future);
        loop {
            while flag.0.swap(false, Ordering::SeqCst) {
                if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                    return Some(output);
                }
            }
            if !alive() || !self.to_next_sleeper() {
                return None;
            }
        }
    }

    /// Lets time pass until the first sleeper wakes. Says whether there was one.
    fn to_next_sleeper(&self) -> bool {
        let wakers: Vec<Waker> = {
            let mut inner = self.lock();
            let Some((&(until, _), _)) = inner.sleepers.first_key_value() else { return false };
            let time = until.saturating_sub(inner.steady);
            inner.go(time);
            let now = (inner.steady, u64::MAX);
            let later = inner.sleepers.split_off(&now);
            std::mem::replace(&mut inner.sleepers, later).into_values().flatten().collect()
        };
        wakers.into_iter().for_each(Waker::wake);
        true
    }

    fn lock(&self) -> MutexGuard<'_, Virtual> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Virtual {
    fn go(&mut self, time: Duration) {
        self.steady += time;
        let time = SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
        self.wall = self.wall.saturating_add(time).unwrap_or(self.wall);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        self.lock().wall
    }

    fn steady(&self) -> Duration {
        self.lock().steady
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        let key = {
            let mut inner = self.lock();
            inner.next += 1;
            let key = (inner.steady + time, inner.next);
            inner.sleepers.insert(key, None);
            key
        };
        Box::pin(Sleep { clock: self.clone(), key })
    }
}

struct Sleep {
    clock: VirtualClock,
    key: (Duration, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.clock.lock();
        if inner.steady >= self.key.0 {
            return Poll::Ready(());
        }
        inner.sleepers.insert(self.key, Some(cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.clock.lock().sleepers.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleepers_wake_in_order_and_dead_futures_are_seen() {
        let clock = VirtualClock::at(Timestamp::UNIX_EPOCH);
        let order = Mutex::new(Vec::new());
        let nap = async |seconds: u64| {
            clock.sleep(Duration::from_secs(seconds)).await;
            order.lock().unwrap().push(seconds);
        };
        let all = async { tokio::join!(nap(3), nap(1), nap(2)) };
        assert!(clock.run(all).is_some());
        assert_eq!(*order.lock().unwrap(), [1, 2, 3]);
        assert_eq!(clock.steady(), Duration::from_secs(3));
        assert!(clock.run(std::future::pending::<()>()).is_none());
    }

    #[test]
    fn a_jump_of_the_wall_clock_leaves_the_steady_one_alone() {
        let clock = VirtualClock::at(Timestamp::UNIX_EPOCH);
        clock.jump(SignedDuration::from_hours(-5));
        assert_eq!(clock.steady(), Duration::ZERO);
        assert!(clock.now() < Timestamp::UNIX_EPOCH);
    }
}
