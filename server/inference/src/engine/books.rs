//! State shared by all models: fairness counters, statistics, and final events that could not be delivered yet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::admission::AdmissionQueue;
use super::outlet::{Flow, Outlet};
use super::request::Finish;
use super::run::{End, Run};
use super::shares::Shares;

pub(super) struct Books {
    door: Arc<AdmissionQueue>,
    pub(super) tenants: Shares<Arc<str>>,
    /// Ended requests whose client had no room for the final event.
    leaving: Vec<Outlet>,
    pub(super) counts: Counts,
    pub(super) last_step: Option<Instant>,
    pub(super) last_step_ms: f64,
    /// Why a model's device computes nothing more.
    pub(super) fault: Option<String>,
}

#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    pub(super) steps: u64,
    pub(super) failed_steps: u64,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) generated_tokens: u64,
    pub(super) drafted_tokens: u64,
    pub(super) accepted_tokens: u64,
    pub(super) completed: u64,
    pub(super) cancelled: u64,
    pub(super) failed: u64,
    pub(super) preempted: u64,
}

impl Books {
    pub(super) fn new(door: Arc<AdmissionQueue>) -> Books {
        Books {
            door,
            tenants: Shares::default(),
            leaving: Vec::new(),
            counts: Counts::default(),
            last_step: None,
            last_step_ms: 0.0,
            fault: None,
        }
    }

    /// Registers a run.
    pub(super) fn begin(&mut self, run: &Run) {
        self.tenants.enter(&run.tenant);
    }

    /// Sends a run's final event; its memory is already released.
    pub(super) fn end(&mut self, mut run: Run, end: End, now: Instant) {
        self.leaves_queue(&mut run, false, now);
        self.tenants.leave(&run.tenant);
        match &end {
            End::Finish(Finish::Cancelled) | End::Gone => self.counts.cancelled += 1,
            End::Finish(_) => self.counts.completed += 1,
            End::Fail(_) => self.counts.failed += 1,
        }
        self.leaving.extend(run.end(end, now));
    }

    /// Releases a run's place in the queue, once.
    pub(super) fn leaves_queue(&mut self, run: &mut Run, blocked: bool, now: Instant) {
        if std::mem::take(&mut run.queued) {
            self.door.leave(&run.tenant, blocked, now);
        }
    }

    /// Retries final events; those that are not accepted for too long are dropped.
    pub(super) fn see_off(&mut self, stall: Duration, now: Instant) {
        self.leaving.retain_mut(|outlet| {
            outlet.retry(now) == Flow::Paused && outlet.paused_since().is_some_and(|since| now < since + stall)
        });
    }

    /// Retries final events once and drops them.
    pub(super) fn see_all_off(&mut self, now: Instant) {
        for mut outlet in std::mem::take(&mut self.leaving) {
            outlet.empty(now);
        }
    }

    pub(super) fn all_left(&self) -> bool {
        self.leaving.is_empty()
    }

    pub(super) fn look_at(&self) -> Option<Instant> {
        self.leaving.iter().filter_map(Outlet::again_at).min()
    }
}
