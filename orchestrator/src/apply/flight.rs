//! One operation in the air: its next call, and what an answer comes to.

use std::borrow::Cow;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use textnlp_provider::{
    Error, Handle, Object, Operation, Progress, Provider, Recorded, Result as Answered, Sort, Verb,
};
use tokio_util::sync::CancellationToken;

use super::Limits;
use crate::clock::Clock;
use crate::state::{Intent, Lease};

/// An operation in the air.
pub(super) struct Flight {
    pub(super) intent: Arc<Intent>,
    /// Where it stands, as written down.
    pub(super) handle: Option<Handle>,
    /// Calls that failed in a row.
    failures: u32,
    /// A call may have arrived whose answer nobody got.
    uncertain: bool,
    /// By the steady clock.
    pub(super) began: Duration,
    /// What went wrong or was waited for last.
    pub(super) last: String,
}

/// What a call came back with; nothing if it was not made: somebody asked to stop while it was waiting for its turn, or the lock
/// would not outlive it.
pub(super) type Landing = Option<Answered<Progress>>;

/// What an answer comes to.
pub(super) enum Verdict {
    Done(Object),
    /// It stands further on: write the handle down if it is another one, then look again.
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
    },
    /// Nobody knows what came of it, or it takes longer than it may: the next run finds out.
    LeaveOpen {
        error: Option<Error>,
        because: String,
    },
}

impl Flight {
    pub(super) fn new(intent: Intent, handle: Option<Handle>, began: Duration) -> Self {
        // An operation that is begun again may have been called before.
        Self { intent: Arc::new(intent), handle, failures: 0, uncertain: false, began, last: String::new() }
    }

    pub(super) fn resumed(mut self) -> Self {
        self.uncertain = true;
        self
    }

    pub(super) fn operation(&self) -> &Operation {
        &self.intent.operation
    }

    /// The next call, after a pause, by this provider and through `host` where the operation goes through one.
    pub(super) fn call(
        &self,
        (provider, host): (Arc<dyn Provider>, Option<Recorded>),
        clock: Arc<dyn Clock>,
        stop: CancellationToken,
        lease: Option<Arc<dyn Lease>>,
        pause: Duration,
        limits: Limits,
    ) -> BoxFuture<'static, Landing> {
        let (intent, handle) = (self.intent.clone(), self.handle.clone());
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
            let op = match host {
                Some(host) => Cow::Owned(Operation { host: Some(Box::new(host)), ..intent.operation.clone() }),
                None => Cow::Borrowed(&intent.operation),
            };
            let op = op.as_ref();
            let call = async {
                match &handle {
                    Some(handle) => provider.advance(op, handle).await,
                    None => provider.begin(op).await,
                }
            };
            let overdue = overdue(clock.as_ref(), limits.call);
            // A machine that stood still in the middle of a call must not send it when it wakes up: somebody else may be at work by then.
            tokio::select! {
                biased;
                () = overdue => {
                    let error = Error::new(Sort::Unavailable, op.verb.to_string(), op.resource.as_str());
                    Some(Err(error.because(format!("no answer within {} s", limits.call.as_secs()))))
                }
                answer = call => Some(answer),
            }
        })
    }

    /// Judges an answer. `late`: the kind's deadline has passed.
    pub(super) fn judge(&mut self, answer: Answered<Progress>, late: bool, limits: Limits) -> Verdict {
        match answer {
            Ok(Progress::Done(object)) => Verdict::Done(object),
            Ok(Progress::Failed { left, error }) => Verdict::Failed { left, error },
            Ok(Progress::Pending { handle, says, again_in }) => {
                self.failures = 0;
                self.last.clone_from(&says);
                if late {
                    return Verdict::LeaveOpen { error: None, because: format!("it takes longer than it may: {says}") };
                }
                let moved = self.handle.as_ref() != Some(&handle);
                self.handle = Some(handle.clone());
                Verdict::Pending { handle, says, again_in: again_in.min(limits.longest_pause), moved }
            }
            Err(error) => self.judge_error(error, late, limits),
        }
    }

    fn judge_error(&mut self, error: Error, late: bool, limits: Limits) -> Verdict {
        self.failures += 1;
        self.uncertain |= error.sort == Sort::Unavailable;
        if error.sort.may_pass() {
            self.last = error.to_string();
            if self.failures < limits.attempts && !late {
                let after = self.pause(&error, limits);
                return Verdict::Retry { after, because: error.to_string() };
            }
            // A delete that is refused has its record still. Left open, it would keep from going whatever has to go first.
            let refused = error.sort == Sort::Conflict && self.operation().verb == Verb::Delete;
            // Ending it as failed would forget an object that may be there.
            if (self.uncertain || self.handle.is_some()) && !refused {
                let because = format!("nobody knows what came of it: {error}");
                return Verdict::LeaveOpen { error: Some(error), because };
            }
        }
        Verdict::Failed { left: None, error }
    }

    /// Doubles each time; the token shifts it a little, so that operations that failed together do not return together.
    fn pause(&self, error: &Error, limits: Limits) -> Duration {
        if let Sort::Throttled { after: Some(after) } = error.sort {
            return after.min(limits.longest_pause);
        }
        let doubled = limits.pause.saturating_mul(1 << (self.failures - 1).min(16));
        let shift = self.operation().token.as_str().bytes().next().unwrap_or_default();
        (doubled + doubled.mul_f64(f64::from(shift) / 1024.0)).min(limits.longest_pause)
    }
}

/// Ends when this much time has passed, also when the machine slept through it and its timers did not see it.
async fn overdue(clock: &dyn Clock, time: Duration) {
    let (until, mut sleep) = (clock.steady() + time, clock.sleep(time));
    std::future::poll_fn(|cx| if clock.steady() >= until { Poll::Ready(()) } else { sleep.poll_unpin(cx) }).await;
}
