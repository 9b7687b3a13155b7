//! A process on a machine that may be paused: while it is, nothing of it runs, and time goes on for everybody else.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use textnlp_orchestrator::clock::{BackgroundTask, Clock, VirtualClock};

#[derive(Clone)]
pub struct Person {
    clock: VirtualClock,
    /// How much faster its clock runs, in thousandths.
    fast: i32,
    paused: Arc<AtomicBool>,
    work: Arc<Mutex<BTreeMap<u64, BoxFuture<'static, ()>>>>,
    next: Arc<AtomicU64>,
}

impl Person {
    /// Paused for as long as `paused` says so.
    pub fn new(clock: &VirtualClock, paused: Arc<AtomicBool>) -> Self {
        Self { clock: clock.clone(), fast: 0, paused, work: Arc::default(), next: Arc::default() }
    }

    /// With a clock that runs faster than the others by so many thousandths.
    #[must_use]
    pub fn fast(self, fast: i32) -> Self {
        Self { fast, ..self }
    }

    fn rate(&self) -> f64 {
        1.0 + f64::from(self.fast) / 1000.0
    }

    /// Runs a program on this machine, with everything that goes on beside it.
    pub async fn runs<F: Future>(&self, program: F) -> F::Output {
        let mut program = pin!(program);
        std::future::poll_fn(|cx| {
            if self.paused.load(Ordering::SeqCst) {
                return Poll::Pending;
            }
            if let Poll::Ready(output) = program.as_mut().poll(cx) {
                return Poll::Ready(output);
            }
            let keys: Vec<u64> = self.work.lock().unwrap().keys().copied().collect();
            for key in keys {
                let Some(mut work) = self.work.lock().unwrap().remove(&key) else { continue };
                if !self.paused.load(Ordering::SeqCst) && work.as_mut().poll(cx).is_ready() {
                    continue;
                }
                self.work.lock().unwrap().insert(key, work);
            }
            Poll::Pending
        })
        .await
    }
}

impl Clock for Person {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn steady(&self) -> Duration {
        if self.fast == 0 { self.clock.steady() } else { self.clock.steady().mul_f64(self.rate()) }
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        if self.fast == 0 {
            return self.clock.sleep(time);
        }
        // Never a moment too early by its own clock.
        self.clock.sleep(time.div_f64(self.rate()) + Duration::from_nanos(1))
    }

    fn spawn(&self, work: BoxFuture<'static, ()>) -> BackgroundTask {
        let key = self.next.fetch_add(1, Ordering::SeqCst);
        self.work.lock().unwrap().insert(key, work);
        let all = self.work.clone();
        BackgroundTask::new(move || {
            let ended = all.lock().unwrap().remove(&key);
            drop(ended);
        })
    }
}
