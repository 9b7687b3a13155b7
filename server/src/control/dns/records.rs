//! What is wanted, what was acknowledged, and what is to be done next. No clock and no network.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use textnlp_control::Millis;

use super::failed::Failed;
use super::message::Wanted;
use crate::retry::Backoff;

/// Between two looks at what the server has.
const CHECK_EVERY: Millis = 60_000;
/// An update is tried again for as long as it is wanted, one at a time; the wait between two is what has a bound.
const AGAIN: Backoff = Backoff { tries: u32::MAX, first: Duration::from_millis(500), most: Duration::from_secs(30) };

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Job {
    /// Replace what is there, and look.
    Update(Wanted),
    /// Look.
    Check(Wanted),
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Done {
    /// Whether the server took an update.
    pub(super) acknowledged: bool,
    pub(super) outcome: Result<(), Failed>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    wanted: Option<Wanted>,
    acknowledged: Option<Wanted>,
    /// When that was, in milliseconds since 1970.
    acknowledged_at_ms: Option<i64>,
    /// What should be at the server unless somebody else changed it; nothing when it is not known.
    there: Option<Wanted>,
    /// When the server last said that it is.
    confirmed: Option<Millis>,
    not_before: Millis,
    failures_in_a_row: u32,
    failures: u64,
    error: Option<Failed>,
}

impl State {
    /// Whether this is news. With nobody left, what was wanted last stays: an empty answer would help nobody.
    pub(super) fn want(&mut self, wanted: Option<Wanted>) -> bool {
        if wanted.is_none() || wanted == self.wanted {
            return false;
        }
        self.wanted = wanted;
        // What failed was something else.
        (self.failures_in_a_row, self.not_before) = (0, 0);
        true
    }

    pub(super) fn due(&self, now: Millis) -> Option<Job> {
        let wanted = self.wanted.clone().filter(|_| now >= self.not_before)?;
        if self.there.as_ref() != Some(&wanted) {
            return Some(Job::Update(wanted));
        }
        let confirmed = self.confirmed.filter(|_| self.error.is_none());
        confirmed.is_none_or(|at| now >= at + CHECK_EVERY).then_some(Job::Check(wanted))
    }

    pub(super) fn done(&mut self, job: Job, done: Done, now: Millis, wall_ms: i64) {
        let (Job::Update(wanted) | Job::Check(wanted)) = job;
        if done.acknowledged {
            self.acknowledged = Some(wanted.clone());
            self.acknowledged_at_ms = Some(wall_ms);
            self.there = Some(wanted.clone());
        }
        match done.outcome {
            Ok(()) => {
                self.there = Some(wanted);
                self.confirmed = Some(now);
                (self.failures_in_a_row, self.not_before) = (0, 0);
                self.error = None;
            }
            Err(error) => {
                if error.tells_difference() {
                    self.there = None;
                }
                self.failures += 1;
                self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
                self.not_before = now + AGAIN.wait(self.failures_in_a_row, 1.0).as_millis() as u64;
                self.error = Some(error);
            }
        }
    }

    pub(super) fn wanted(&self) -> Option<&BTreeSet<IpAddr>> {
        self.wanted.as_ref().map(Wanted::addresses)
    }

    pub(super) fn acknowledged(&self) -> Option<(&BTreeSet<IpAddr>, i64)> {
        self.acknowledged.as_ref().map(Wanted::addresses).zip(self.acknowledged_at_ms)
    }

    /// Whether the name is, as far as is known, as it should be.
    pub(super) fn is_right(&self) -> bool {
        self.wanted.is_some() && self.wanted == self.there
    }

    pub(super) fn confirmed(&self) -> Option<Millis> {
        self.confirmed
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures
    }

    pub(super) fn error(&self) -> Option<&Failed> {
        self.error.as_ref()
    }
}
