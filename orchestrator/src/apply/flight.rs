//! One operation in flight: its next call, and the verdict on each answer.

use std::borrow::Cow;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use textnlp_provider::{
    Error, ErrorKind, Handle, Object, Operation, Progress, Provider, Recorded, Result as Answered, Verb,
};
use tokio_util::sync::CancellationToken;

use super::Limits;
use crate::clock::Clock;
use crate::state::{Intent, Lease};

/// An operation in flight.
pub(super) struct Flight {
    pub(super) intent: Arc<Intent>,
    /// The provider's handle, as recorded.
    pub(super) handle: Option<Handle>,
    /// Consecutive failed calls.
    failures: u32,
    /// Whether a call without an answer may have taken effect.
    uncertain: bool,
    /// Whether the provider refused every call so far, so that none changed anything.
    refused: bool,
    /// The start, by the monotonic clock.
    pub(super) began: Duration,
    /// The last error, or what the operation last waited for.
    pub(super) last: String,
}

/// The answer of a call. `None` if the call was not made: the operator asked to stop while it was queued, or the lease
/// would have expired during the call.
pub(super) type CallAnswer = Option<Answered<Progress>>;

/// What follows from an answer.
pub(super) enum Verdict {
    Done(Object),
    /// Not finished: record the handle if it changed, then poll again.
    Pending {
        handle: Handle,
        says: String,
        again_in: Duration,
        moved: bool,
    },
    Retry {
        after: Duration,
        because: String,
    },
    Failed {
        left: Option<Object>,
        error: Error,
        /// Whether it certainly changed nothing.
        refused: bool,
    },
    /// The result is unknown, or the operation exceeded its deadline. The next run recovers it.
    LeaveOpen {
        error: Option<Error>,
        because: String,
    },
}

impl Flight {
    pub(super) fn new(intent: Intent, handle: Option<Handle>, began: Duration) -> Self {
        // An operation that is resumed may have been called before.
        Self {
            intent: Arc::new(intent),
            handle,
            failures: 0,
            uncertain: false,
            refused: true,
            began,
            last: String::new(),
        }
    }

    pub(super) fn resumed(mut self) -> Self {
        (self.uncertain, self.refused) = (true, false);
        self
    }

    pub(super) fn operation(&self) -> &Operation {
        &self.intent.operation
    }

    /// The next call to this provider, after a pause. It goes through `host` if the operation does.
    pub(super) fn call(
        &self,
        (provider, host): (Arc<dyn Provider>, Option<Recorded>),
        clock: Arc<dyn Clock>,
        stop: CancellationToken,
        lease: Option<Arc<dyn Lease>>,
        pause: Duration,
        limits: Limits,
    ) -> BoxFuture<'static, CallAnswer> {
        let (intent, handle, is_repeated) = (self.intent.clone(), self.handle.clone(), self.uncertain);
        Box::pin(async move {
            if !pause.is_zero() {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return None,
                    () = clock.sleep(pause) => {}
                }
            }
            if let Some(lease) = lease
                && !lease.outlives(limits.call).await
            {
                return None;
            }
            let op = if host.is_some() || is_repeated {
                Cow::Owned(Operation { host: host.map(Box::new), is_repeated, ..intent.operation.clone() })
            } else {
                Cow::Borrowed(&intent.operation)
            };
            let op = op.as_ref();
            let call = async {
                match &handle {
                    Some(handle) => provider.advance(op, handle).await,
                    None => provider.begin(op).await,
                }
            };
            let overdue = overdue(clock.as_ref(), limits.call);
            // A machine that was suspended before the call must not send it on wake-up: another run may hold the lock
            // by then.
            tokio::select! {
                biased;
                () = overdue => {
                    let error = Error::new(ErrorKind::Unavailable, op.verb.to_string(), op.resource.as_str());
                    Some(Err(error.because(format!("no answer within {} s", limits.call.as_secs()))))
                }
                answer = call => Some(answer),
            }
        })
    }

    /// Returns the verdict on an answer. `late`: the deadline of the kind has passed. `is_part`: no tags say whose the object is.
    pub(super) fn judge(&mut self, answer: Answered<Progress>, late: bool, is_part: bool, limits: Limits) -> Verdict {
        match answer {
            Ok(Progress::Done(object)) => Verdict::Done(object),
            Ok(Progress::Failed { left, error }) => Verdict::Failed { left, error, refused: false },
            Ok(Progress::Pending { handle, says, again_in }) => {
                (self.failures, self.refused) = (0, false);
                self.last.clone_from(&says);
                if late {
                    return Verdict::LeaveOpen { error: None, because: format!("it exceeded its time limit: {says}") };
                }
                let moved = self.handle.as_ref() != Some(&handle);
                self.handle = Some(handle.clone());
                Verdict::Pending { handle, says, again_in: again_in.min(limits.longest_pause), moved }
            }
            Err(error) => self.judge_error(error, late, is_part, limits),
        }
    }

    fn judge_error(&mut self, error: Error, late: bool, is_part: bool, limits: Limits) -> Verdict {
        self.failures += 1;
        self.uncertain |= error.kind == ErrorKind::Unavailable && !error.refused;
        self.refused &= error.refused;
        if error.kind.may_pass() {
            self.last = error.to_string();
            if self.failures < limits.attempts && !late {
                let after = self.pause(&error, limits);
                return Verdict::Retry { after, because: error.to_string() };
            }
            // A rejected delete leaves its record in place. Left open, it would block the resources that must be
            // deleted first.
            let rejected = error.kind == ErrorKind::Conflict && self.operation().verb == Verb::Delete;
            if (self.uncertain || self.handle.is_some()) && !rejected {
                return self.leave_open(error);
            }
        }
        // Credentials that expired after an unanswered call: the object may exist. One without tags, such as a member of a
        // policy, is found only by its open operation.
        if is_part && error.kind == ErrorKind::Denied && self.uncertain && self.operation().verb == Verb::Create {
            return self.leave_open(error);
        }
        Verdict::Failed { left: None, error, refused: self.refused }
    }

    /// Marking it as failed would forget an object that may exist.
    fn leave_open(&self, error: Error) -> Verdict {
        let because = format!("the outcome of the call is unknown: {error}");
        Verdict::LeaveOpen { error: Some(error), because }
    }

    /// Exponential backoff, with jitter from the token so that operations that failed together do not retry together.
    fn pause(&self, error: &Error, limits: Limits) -> Duration {
        if let ErrorKind::Throttled { after: Some(after) } = error.kind {
            return after.min(limits.longest_pause);
        }
        let doubled = limits.pause.saturating_mul(1 << (self.failures - 1).min(16));
        let shift = self.operation().token.as_str().bytes().next().unwrap_or_default();
        (doubled + doubled.mul_f64(f64::from(shift) / 1024.0)).min(limits.longest_pause)
    }
}

/// Ends after this time, including time in which the machine slept and its timers did not run.
async fn overdue(clock: &dyn Clock, time: Duration) {
    let (until, mut sleep) = (clock.steady() + time, clock.sleep(time));
    std::future::poll_fn(|cx| if clock.steady() >= until { Poll::Ready(()) } else { sleep.poll_unpin(cx) }).await;
}
