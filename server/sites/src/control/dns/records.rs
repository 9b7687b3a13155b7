//! Decides the next job from what is wanted and what was acknowledged. No clock and no network.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use textnlp_control::Millis;
use textnlp_net::retry::Backoff;

use super::failed::Failed;
use super::message::Wanted;

/// Interval between two checks of the server.
const CHECK_INTERVAL: Millis = 60_000;
/// An update is retried for as long as it is wanted, one at a time; only the wait between two attempts is bounded.
const RETRY_INTERVAL: Backoff = Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(30) };

/// A job to carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Job {
    /// Replace the records, and check.
    Update(Wanted),
    /// Check only.
    Check(Wanted),
}

/// The outcome of a job.
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
    /// The records expected at the server, unless another client changed them; `None` when unknown.
    there: Option<Wanted>,
    /// When the server last confirmed them.
    confirmed: Option<Millis>,
    not_before: Millis,
    failures_in_a_row: u32,
    failures: u64,
    error: Option<Failed>,
}

impl State {
    /// Sets the wanted records; returns whether they changed. Without any site the last ones stay: an empty answer
    /// helps no client.
    pub(super) fn want(&mut self, wanted: Option<Wanted>) -> bool {
        if wanted.is_none() || wanted == self.wanted {
            return false;
        }
        self.wanted = wanted;
        // The failures concerned other records.
        (self.failures_in_a_row, self.not_before) = (0, 0);
        true
    }

    pub(super) fn due(&self, now: Millis) -> Option<Job> {
        let wanted = self.wanted.clone().filter(|_| now >= self.not_before)?;
        if self.there.as_ref() != Some(&wanted) {
            return Some(Job::Update(wanted));
        }
        let confirmed = self.confirmed.filter(|_| self.error.is_none());
        confirmed.is_none_or(|at| now >= at + CHECK_INTERVAL).then_some(Job::Check(wanted))
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
                self.not_before = now + RETRY_INTERVAL.pause(self.failures_in_a_row, 1.0).as_millis() as u64;
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

    /// Whether the records are as wanted, as far as known.
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
