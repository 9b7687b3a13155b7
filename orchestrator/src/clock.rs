//! Injected time: the wall clock for records, a monotonic clock for deadlines, and sleeping.
//!
//! Nothing else in the engine reads the time, so a test runs hours of it at once and can make the wall clock jump.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};

/// A source of time.
pub trait Clock: Send + Sync {
    /// The wall clock, for records and display. It may jump, so no decision uses a difference of two of its readings
    /// alone.
    fn now(&self) -> Timestamp;
    /// Monotonic time since a fixed instant. It continues while the machine sleeps.
    fn steady(&self) -> Duration;
    /// Sleeps for this long.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;
    /// Runs `work` in the background until it ends or the returned handle is dropped.
    fn spawn(&self, work: BoxFuture<'static, ()>) -> BackgroundTask;
}

/// The handle of background work; dropping it ends the work.
pub struct BackgroundTask(Option<Box<dyn FnOnce() + Send + Sync>>);

impl BackgroundTask {
    /// A handle that calls `end` when it is dropped.
    pub fn new(end: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(end)))
    }
}

impl Drop for BackgroundTask {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end();
        }
    }
}

/// The machine's clocks; sleeps and background work use the tokio runtime.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn steady(&self) -> Duration {
        // `Instant` stops while a laptop sleeps. With it, a run would take a lease for fresh that others saw expire.
        let since_boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(since_boot.tv_sec as u64, since_boot.tv_nsec as u32)
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time))
    }

    fn spawn(&self, work: BoxFuture<'static, ()>) -> BackgroundTask {
        let task = tokio::spawn(work);
        BackgroundTask::new(move || task.abort())
    }
}

/// A clock that stops until every task waits, then jumps to the next wake-up time.
///
/// [`VirtualClock::run`] drives a future without a runtime. The same program gives the same order of events every time.
#[derive(Clone)]
pub struct VirtualClock(Arc<Mutex<Virtual>>);

struct Virtual {
    wall: Timestamp,
    steady: Duration,
    next: u64,
    sleepers: BTreeMap<(Duration, u64), Option<Waker>>,
    tasks: BTreeMap<u64, BoxFuture<'static, ()>>,
}

impl VirtualClock {
    /// A clock whose wall time starts here.
    pub fn at(wall: Timestamp) -> Self {
        let (sleepers, tasks) = (BTreeMap::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(Virtual { wall, steady: Duration::ZERO, next: 0, sleepers, tasks })))
    }

    /// Sets the wall clock; the monotonic one is unaffected.
    pub fn jump(&self, by: SignedDuration) {
        let mut inner = self.lock();
        inner.wall = inner.wall.saturating_add(by).unwrap_or(inner.wall);
    }

    /// Advances the time while no task runs.
    pub fn pass(&self, time: Duration) {
        let mut inner = self.lock();
        inner.go(time);
    }

    /// Drives a future to its end. `None` when it waits for something that time alone cannot bring. It is then dropped,
    /// like a killed process.
    pub fn run<F: Future>(&self, future: F) -> Option<F::Output> {
        self.run_while(future, || true)
    }

    /// Like [`run`](Self::run), but the future is dropped as soon as `alive` returns false.
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
                let cx = &mut Context::from_waker(&waker);
                if let Poll::Ready(output) = future.as_mut().poll(cx) {
                    return Some(output);
                }
                self.poll_tasks(cx);
            }
            if !alive() || !self.to_next_sleeper() {
                return None;
            }
        }
    }

    /// The work may read this clock, so it is taken out while it is polled. Work that ended meanwhile is not put back.
    fn poll_tasks(&self, cx: &mut Context<'_>) {
        let keys: Vec<u64> = self.lock().tasks.keys().copied().collect();
        for key in keys {
            let Some(work) =
                self.lock().tasks.get_mut(&key).map(|work| std::mem::replace(work, Box::pin(std::future::pending())))
            else {
                continue;
            };
            let mut work = work;
            let over = work.as_mut().poll(cx).is_ready();
            let mut inner = self.lock();
            if over {
                inner.tasks.remove(&key);
            } else if let Some(slot) = inner.tasks.get_mut(&key) {
                *slot = work;
            }
        }
    }

    /// Advances to the first sleeper's wake-up time. Returns whether there was a sleeper.
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

    fn spawn(&self, work: BoxFuture<'static, ()>) -> BackgroundTask {
        let key = {
            let mut inner = self.lock();
            inner.next += 1;
            let key = inner.next;
            inner.tasks.insert(key, work);
            key
        };
        let clock = self.clone();
        BackgroundTask::new(move || {
            // Dropped outside of the lock: dropping the work may call this clock.
            let ended = clock.lock().tasks.remove(&key);
            drop(ended);
        })
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
    fn virtual_clock_wakes_sleepers_in_order_and_detects_deadlock() {
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
    fn spawned_task_runs_until_its_handle_is_dropped() {
        let clock = VirtualClock::at(Timestamp::UNIX_EPOCH);
        let count = Arc::new(Mutex::new(0));
        let work = {
            let (clock, count) = (clock.clone(), count.clone());
            async move {
                loop {
                    clock.sleep(Duration::from_secs(5)).await;
                    *count.lock().unwrap() += 1;
                }
            }
        };
        let beside = clock.spawn(Box::pin(work));
        clock.run(clock.sleep(Duration::from_secs(21))).unwrap();
        assert_eq!(*count.lock().unwrap(), 4);
        drop(beside);
        clock.run(clock.sleep(Duration::from_secs(21))).unwrap();
        assert_eq!(*count.lock().unwrap(), 4);
    }

    #[test]
    fn wall_clock_jump_does_not_affect_the_monotonic_clock() {
        let clock = VirtualClock::at(Timestamp::UNIX_EPOCH);
        clock.jump(SignedDuration::from_hours(-5));
        assert_eq!(clock.steady(), Duration::ZERO);
        assert!(clock.now() < Timestamp::UNIX_EPOCH);
    }
}
