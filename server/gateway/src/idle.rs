//! Closing a client's connection without losing a request.
//!
//! Closing an idle connection races with the client's next request on it. So during shutdown every response says that
//! it is the connection's last, and an idle connection is closed only after a while.

use std::collections::BTreeMap;
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
    /// The number of the next one.
    next: u64,
    /// When each of them began.
    open: BTreeMap<u64, Instant>,
    /// Those of them that are here as a whole.
    received: u64,
    have_begun: bool,
    /// When the last one ended.
    ended: Instant,
}

/// A request that is being received or answered.
pub(super) struct ActiveRequest {
    activity: Arc<Activity>,
    number: u64,
    of_address: usize,
    is_received: bool,
}

impl Activity {
    pub(super) fn new(place: Place) -> Arc<Activity> {
        let requests =
            Requests { next: 0, open: BTreeMap::new(), received: 0, have_begun: false, ended: Instant::now() };
        Arc::new(Activity { place, requests: Mutex::new(requests) })
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn asked(self: &Arc<Self>) -> ActiveRequest {
        let mut requests = self.requests();
        requests.have_begun = true;
        let number = requests.next;
        requests.next += 1;
        requests.open.insert(number, Instant::now());
        drop(requests);
        let of_address = self.place.begin_request();
        ActiveRequest { activity: self.clone(), number, of_address, is_received: false }
    }

    /// Whether there was any request.
    pub(super) fn has_begun(&self) -> bool {
        self.requests().have_begun
    }

    /// Whether a whole request waits for its answer.
    pub(super) fn is_answering(&self) -> bool {
        self.requests().received > 0
    }

    /// Waits until a request is open for longer than `most`.
    pub(super) async fn is_overdue(&self, most: Duration) {
        loop {
            let rest = {
                let oldest = self.requests().open.first_key_value().map(|(_, began)| *began);
                oldest.map_or(most, |began| (began + most).saturating_duration_since(Instant::now()))
            };
            if rest.is_zero() {
                return;
            }
            // One may begin meanwhile.
            tokio::time::sleep(rest.min(most / 4)).await;
        }
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
                match requests.open.len() {
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

impl ActiveRequest {
    /// The request is here as a whole, or the backend reads its body: from now on another connection does not take the
    /// place.
    pub(super) fn received(&mut self) {
        if !std::mem::replace(&mut self.is_received, true) {
            let mut requests = self.activity.requests();
            requests.received += 1;
            if requests.received == 1 {
                self.activity.place.set_idle(false);
            }
        }
    }

    /// The open requests of the client's address when it began, with this one.
    pub(super) fn of_address(&self) -> usize {
        self.of_address
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let mut requests = self.activity.requests();
        requests.open.remove(&self.number);
        requests.ended = Instant::now();
        if self.is_received {
            requests.received -= 1;
            if requests.received == 0 {
                self.activity.place.set_idle(true);
            }
        }
        drop(requests);
        self.activity.place.end_request();
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
    async fn request_counts_as_answered_once_it_is_whole_and_is_overdue_after_its_time() {
        let activity = activity();
        let mut asked = activity.asked();
        assert!(!activity.is_answering());
        asked.received();
        asked.received();
        assert!(activity.is_answering());
        activity.is_overdue(Duration::from_millis(20)).await;
        drop(asked);
        assert!(!activity.is_answering());
        let soon = tokio::time::timeout(Duration::from_millis(100), activity.is_overdue(Duration::from_millis(20)));
        assert!(soon.await.is_err(), "nothing is open");
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
