//! Closing a client's connection without losing a request.
//!
//! Closing an idle connection races with the client's next request on it. So during shutdown every response says that
//! it is the connection's last, and an idle connection is closed only after a while.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::admission::Place;

/// The activity of one connection, in its place.
#[derive(Debug)]
pub(super) struct Activity {
    place: Place,
    requests: Mutex<Requests>,
}

#[derive(Debug)]
struct Requests {
    open: u64,
    have_begun: bool,
    /// When the last one ended.
    ended: Instant,
}

/// A request that is being answered.
pub(super) struct ActiveRequest(Arc<Activity>);

impl Activity {
    pub(super) fn new(place: Place) -> Arc<Activity> {
        let requests = Requests { open: 0, have_begun: false, ended: Instant::now() };
        Arc::new(Activity { place, requests: Mutex::new(requests) })
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn asked(self: &Arc<Self>) -> ActiveRequest {
        let mut requests = self.requests();
        requests.have_begun = true;
        requests.open += 1;
        if requests.open == 1 {
            self.place.set_idle(false);
        }
        ActiveRequest(self.clone())
    }

    /// Whether there was any request.
    pub(super) fn has_begun(&self) -> bool {
        self.requests().have_begun
    }

    /// Waits until another connection takes the place.
    pub(super) async fn evicted(&self) {
        self.place.evicted().await;
    }

    /// Waits until there was no request or response for `long`, counted from now at the earliest.
    pub(super) async fn is_quiet_for(&self, long: Duration) {
        let from = Instant::now();
        loop {
            let rest = {
                let requests = self.requests();
                match requests.open {
                    0 => (requests.ended.max(from) + long).saturating_duration_since(Instant::now()),
                    _ => long.max(Duration::from_millis(10)),
                }
            };
            if rest.is_zero() {
                return;
            }
            tokio::time::sleep(rest).await;
        }
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let mut requests = self.0.requests();
        requests.open -= 1;
        requests.ended = Instant::now();
        if requests.open == 0 {
            self.0.place.set_idle(true);
        }
    }
}

/// An answer's body; the request is over when it is.
pub(super) struct Answering<B> {
    body: B,
    _asked: ActiveRequest,
}

impl<B> Answering<B> {
    pub(super) fn new(body: B, asked: ActiveRequest) -> Answering<B> {
        Answering { body, _asked: asked }
    }
}

impl<B: Body + Unpin> Body for Answering<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::super::admission::{Admission, Bounds};
    use super::*;

    fn activity() -> Arc<Activity> {
        let bounds = Bounds { total: 1, per_address: 1 };
        Activity::new(Arc::new(Admission::default()).admit(None, bounds).unwrap())
    }

    #[tokio::test]
    async fn connection_is_not_idle_during_a_response() {
        let activity = activity();
        let long = Duration::from_millis(10);
        let asked = activity.asked();
        let soon = tokio::time::timeout(Duration::from_millis(100), activity.is_quiet_for(long));
        assert!(soon.await.is_err() && activity.has_begun());
        drop(asked);
        activity.is_quiet_for(long).await;
    }

    #[tokio::test]
    async fn each_request_restarts_the_idle_timer() {
        let activity = activity();
        let asking = async {
            for _ in 0..40 {
                drop(activity.asked());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            biased;
            () = asking => {}
            () = activity.is_quiet_for(Duration::from_millis(300)) => panic!("it was not quiet"),
        }
        activity.is_quiet_for(Duration::from_millis(10)).await;
    }
}
