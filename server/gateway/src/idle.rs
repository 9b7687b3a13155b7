//! Closing a client's connection without losing a request.
//!
//! Closing an idle connection races with the client's next request on it. So during shutdown every response says that
//! it is the connection's last, and an idle connection is closed only after a while.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

/// The activity of one connection.
#[derive(Debug, Default)]
pub(super) struct Activity {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// A request that is being answered.
pub(super) struct ActiveRequest(Arc<Activity>);

impl Activity {
    pub(super) fn asked(self: &Arc<Self>) -> ActiveRequest {
        self.begun.fetch_add(1, SeqCst);
        ActiveRequest(self.clone())
    }

    /// Whether there was any request.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(SeqCst) > 0
    }

    /// Waits until there was no request or response for `long`, counted from now at the earliest.
    pub(super) async fn is_quiet_for(&self, long: Duration) {
        let look_every = (long / 5).max(Duration::from_millis(10));
        let (mut since, mut seen) = (Instant::now(), self.begun.load(SeqCst));
        loop {
            let begun = self.begun.load(SeqCst);
            if begun != seen || self.ended.load(SeqCst) != begun {
                (since, seen) = (Instant::now(), begun);
            } else if since.elapsed() >= long {
                return;
            }
            tokio::time::sleep(look_every).await;
        }
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, SeqCst);
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
    use super::*;

    #[tokio::test]
    async fn a_connection_is_not_quiet_while_something_is_answered() {
        let activity = Arc::new(Activity::default());
        let long = Duration::from_millis(10);
        let asked = activity.asked();
        let soon = tokio::time::timeout(Duration::from_millis(100), activity.is_quiet_for(long));
        assert!(soon.await.is_err() && activity.has_begun());
        drop(asked);
        activity.is_quiet_for(long).await;
    }

    #[tokio::test]
    async fn each_question_begins_the_wait_anew() {
        let activity = Arc::new(Activity::default());
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
