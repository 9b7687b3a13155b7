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
use tokio_util::sync::CancellationToken;

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
    /// Those of them that wait for a backend.
    waiting: u64,
    have_begun: bool,
    /// When the last one ended.
    ended: Instant,
}

/// A request that is being received or answered.
pub(super) struct ActiveRequest {
    activity: Arc<Activity>,
    number: u64,
    of_address: usize,
    is_waiting: bool,
    /// Cancelled at the end of the request's body; `None` before the request is read.
    body_end: Option<CancellationToken>,
}

impl Activity {
    pub(super) fn new(place: Place) -> Arc<Activity> {
        let requests =
            Requests { next: 0, open: BTreeMap::new(), waiting: 0, have_begun: false, ended: Instant::now() };
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
        ActiveRequest { activity: self.clone(), number, of_address, is_waiting: false, body_end: None }
    }

    /// Whether there was any request.
    pub(super) fn has_begun(&self) -> bool {
        self.requests().have_begun
    }

    /// Whether a request waits for a backend.
    pub(super) fn is_waiting(&self) -> bool {
        self.requests().waiting > 0
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
    /// The token that is cancelled at the end of the request's body.
    pub(super) fn set_body_end(&mut self, body_end: CancellationToken) {
        self.body_end = Some(body_end);
    }

    /// Whether the request waits for a backend, and not for its client to send or to take something. Meanwhile no other
    /// connection takes the place. Before the end of the body it never does: the backend waits for the client, who could
    /// hold the place for as long as it likes.
    pub(super) fn set_waiting(&mut self, is_waiting: bool) {
        let is_waiting = is_waiting && self.body_end.as_ref().is_none_or(CancellationToken::is_cancelled);
        if std::mem::replace(&mut self.is_waiting, is_waiting) == is_waiting {
            return;
        }
        let mut requests = self.activity.requests();
        let before = requests.waiting;
        requests.waiting = if is_waiting { before + 1 } else { before - 1 };
        if before == 0 || requests.waiting == 0 {
            self.activity.place.set_idle(!is_waiting);
        }
    }

    /// The open requests of the client's address when it began, with this one.
    pub(super) fn of_address(&self) -> usize {
        self.of_address
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.set_waiting(false);
        let mut requests = self.activity.requests();
        requests.open.remove(&self.number);
        requests.ended = Instant::now();
        drop(requests);
        self.activity.place.end_request();
    }
}

/// An answer's body; the request is over when it is.
pub(super) struct Answering<B> {
    body: B,
    asked: ActiveRequest,
}

impl<B> Answering<B> {
    pub(super) fn new(body: B, mut asked: ActiveRequest) -> Answering<B> {
        asked.set_waiting(false);
        Answering { body, asked }
    }
}

impl<B: Body + Unpin> Body for Answering<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        self.asked.set_waiting(frame.is_pending());
        frame
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
    async fn request_waits_once_it_is_whole_and_is_overdue_after_its_time() {
        let activity = activity();
        let mut asked = activity.asked();
        assert!(!activity.is_waiting());
        for is_waiting in [true, true, false, true] {
            asked.set_waiting(is_waiting);
            assert_eq!(activity.is_waiting(), is_waiting);
        }
        activity.is_overdue(Duration::from_millis(20)).await;
        drop(asked);
        assert!(!activity.is_waiting());
        let soon = tokio::time::timeout(Duration::from_millis(100), activity.is_overdue(Duration::from_millis(20)));
        assert!(soon.await.is_err(), "nothing is open");
    }

    #[tokio::test]
    async fn request_does_not_wait_for_a_backend_before_the_end_of_its_body() {
        let activity = activity();
        let mut asked = activity.asked();
        let end = CancellationToken::new();
        asked.set_body_end(end.clone());
        asked.set_waiting(true);
        assert!(!activity.is_waiting());
        end.cancel();
        asked.set_waiting(true);
        assert!(activity.is_waiting());
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
