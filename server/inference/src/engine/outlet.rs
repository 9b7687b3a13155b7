//! The output of one request: its sink, and events that the sink had no room for.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::request::{Event, Push, Sink};

/// The first pause before a push is tried again; each further one is twice as long, up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(32);

/// Whether events can leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// All have left.
    Open,
    /// Some wait: the request is paused.
    Paused,
    /// The client is gone.
    Gone,
}

pub(super) struct Outlet {
    sink: Box<dyn Sink>,
    /// Never more than a token and the end: a paused request makes no more.
    held: VecDeque<Event>,
    gone: bool,
    paused_since: Option<Instant>,
    again_at: Instant,
    pause: Duration,
}

impl Outlet {
    pub(super) fn new(sink: Box<dyn Sink>, now: Instant) -> Self {
        Outlet { sink, held: VecDeque::new(), gone: false, paused_since: None, again_at: now, pause: FIRST_PAUSE }
    }

    pub(super) fn push(&mut self, event: Event, now: Instant) -> Flow {
        let waits = !self.held.is_empty();
        self.held.push_back(event);
        if waits { self.flow() } else { self.empty(now) }
    }

    /// Tries again, if it is time.
    pub(super) fn retry(&mut self, now: Instant) -> Flow {
        if !self.held.is_empty() && now >= self.again_at { self.empty(now) } else { self.flow() }
    }

    pub(super) fn flow(&self) -> Flow {
        if self.gone {
            Flow::Gone
        } else if self.held.is_empty() {
            Flow::Open
        } else {
            Flow::Paused
        }
    }

    pub(super) fn paused_since(&self) -> Option<Instant> {
        self.paused_since
    }

    /// When a retry makes sense.
    pub(super) fn again_at(&self) -> Option<Instant> {
        (self.flow() == Flow::Paused).then_some(self.again_at)
    }

    /// Tries the sink whatever the time: before giving up on it.
    pub(super) fn empty(&mut self, now: Instant) -> Flow {
        while let Some(event) = self.held.pop_front() {
            if self.gone {
                continue;
            }
            // A sink is the caller's code: its panic must not take the engine down.
            match catch_unwind(AssertUnwindSafe(|| self.sink.push(event))) {
                Ok(Push::Ok) => self.pause = FIRST_PAUSE,
                Ok(Push::Full(event)) => {
                    self.held.push_front(event);
                    self.paused_since.get_or_insert(now);
                    self.again_at = now + self.pause;
                    self.pause = (self.pause * 2).min(LAST_PAUSE);
                    return Flow::Paused;
                }
                Ok(Push::Gone) | Err(_) => self.gone = true,
            }
        }
        self.paused_since = None;
        self.flow()
    }
}
