//! Turns of TLS handshakes: few compute at once, so that requests on open connections do not wait for the handshakes of many.
//!
//! A handshake computes for a fraction of a millisecond, a hundred times as long as what a request takes, and clients may
//! start as many as they like. Without turns, all that are ready are in the queues of the runtime, before requests.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::ready;

use tokio::sync::Semaphore;

/// Half of the runtime's threads may compute handshakes, at least one.
#[derive(Debug)]
pub(super) struct Turns(Semaphore);

impl Turns {
    /// For the runtime that this is called in.
    pub(super) fn new() -> Turns {
        let threads = tokio::runtime::Handle::current().metrics().num_workers();
        Turns(Semaphore::new((threads / 2).max(1)))
    }

    /// Runs a future that takes a turn for each of its steps, in the order in which they became ready. It has none while it
    /// waits for its client.
    pub(super) async fn run<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut turn = pin!(self.0.acquire());
        poll_fn(|context| {
            let permit = ready!(turn.as_mut().poll(context));
            let step = future.as_mut().poll(context);
            drop(permit);
            if step.is_pending() {
                turn.set(self.0.acquire());
            }
            step
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Poll;
    use std::time::Duration;

    use tokio::sync::Notify;

    use super::*;

    /// A future that is ready after `steps` polls, each of which takes a while, and wakes itself.
    async fn steps(steps: usize, (now, most): (&AtomicUsize, &AtomicUsize)) {
        let mut left = steps;
        poll_fn(|context| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
            now.fetch_sub(1, Ordering::SeqCst);
            left -= 1;
            context.waker().wake_by_ref();
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn half_of_the_threads_compute_at_once() {
        let turns = Arc::new(Turns::new());
        let counts = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
        let start = || {
            let (turns, counts) = (turns.clone(), counts.clone());
            tokio::spawn(async move { turns.run(steps(5, (&counts.0, &counts.1))).await })
        };
        for task in (0..20).map(|_| start()).collect::<Vec<_>>() {
            task.await.unwrap();
        }
        assert_eq!(counts.1.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn one_that_waits_for_its_client_keeps_no_turn() {
        let turns = Turns::new();
        let came = Notify::new();
        let mut silent = pin!(turns.run(came.notified()));
        assert!(poll_fn(|context| Poll::Ready(silent.as_mut().poll(context))).await.is_pending());
        assert_eq!(turns.run(async { 7 }).await, 7);
        came.notify_one();
        silent.await;
    }
}
