//! State shared by handles and the engine thread: the list of models, the queue length, the last statistics.
//!
//! One lock, held for a few assignments on either side: a handle never waits for a step.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::handle::ModelInfo;
use super::request::Failure;
use super::stats::{Rate, Stats};

/// One loading of a model; a name loaded again is another slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SlotId(pub(super) u64);

/// An admission to the queue.
pub(super) struct Entry {
    pub(super) slot: SlotId,
    pub(super) tenant: Arc<str>,
    /// The queue was full: a request of a tenant above its fair share must be evicted.
    pub(super) displaces: bool,
}

/// Bounds of the suggested retry delay, and its value before the throughput was measured.
const LEAST_RETRY: Duration = Duration::from_millis(10);
const MOST_RETRY: Duration = Duration::from_secs(60);
const UNKNOWN_RETRY: Duration = Duration::from_secs(1);

pub(super) struct AdmissionQueue {
    state: Mutex<State>,
    queue: usize,
}

struct State {
    models: Vec<(SlotId, ModelInfo)>,
    next_slot: u64,
    /// Queued requests per tenant; tenants without any are absent.
    queued: HashMap<Arc<str>, usize>,
    total: usize,
    closed: bool,
    left_at: Instant,
    /// Seconds between departures from the queue while there was no room, averaged.
    interval: Option<f64>,
    /// Rejected requests whose suggested retry time has not come yet.
    refused: usize,
    stats: Stats,
    rate: Rate,
}

impl AdmissionQueue {
    pub(super) fn new(queue: usize, now: Instant) -> Self {
        let state = State {
            models: Vec::new(),
            next_slot: 0,
            queued: HashMap::new(),
            total: 0,
            closed: false,
            left_at: now,
            interval: None,
            refused: 0,
            stats: Stats::default(),
            rate: Rate::new(now),
        };
        AdmissionQueue { state: Mutex::new(state), queue }
    }

    /// Takes a place in the queue of `model`.
    pub(super) fn enter(&self, model: &str, tenant: &str, now: Instant) -> Result<Entry, Failure> {
        let mut state = self.lock();
        if state.closed {
            return Err(Failure::Draining);
        }
        let slot = state.models.iter().find(|(_, info)| info.name == model).map(|(slot, _)| *slot);
        let slot = slot.ok_or_else(|| Failure::NoModel(model.to_owned()))?;
        let own = state.queued.get(tenant).copied().unwrap_or(0);
        let displaces = state.total >= self.queue;
        if displaces {
            // A full queue still has room for a tenant below its fair part, at the cost of one above.
            let tenants = state.queued.len() + usize::from(own == 0);
            let fair = self.queue / tenants;
            let most = state.queued.values().copied().max().unwrap_or(0);
            if own >= fair || most <= fair.max(1) || state.total >= 2 * self.queue {
                state.refused = (state.refused + 1).min(self.queue);
                return Err(Failure::Busy { retry_after_ms: state.retry_after(now) });
            }
        }
        let tenant: Arc<str> = match state.queued.get_key_value(tenant) {
            Some((name, _)) => Arc::clone(name),
            None => tenant.into(),
        };
        *state.queued.entry(Arc::clone(&tenant)).or_insert(0) += 1;
        state.total += 1;
        Ok(Entry { slot, tenant, displaces })
    }

    /// Releases a place. `blocked`: the request waited for memory, so the wait measures the throughput.
    pub(super) fn leave(&self, tenant: &Arc<str>, blocked: bool, now: Instant) {
        let mut state = self.lock();
        if let Some(count) = state.queued.get_mut(tenant) {
            *count -= 1;
            if *count == 0 {
                state.queued.remove(tenant);
            }
            state.total -= 1;
        }
        if blocked {
            let seconds = now.saturating_duration_since(state.left_at).as_secs_f64();
            state.interval = Some(state.interval.map_or(seconds, |interval| interval + 0.2 * (seconds - interval)));
        }
        state.left_at = now;
        state.refused = state.refused.saturating_sub(1);
    }

    pub(super) fn retry_after(&self, now: Instant) -> u64 {
        self.lock().retry_after(now)
    }

    /// A slot for a model that is about to be loaded.
    pub(super) fn next_slot(&self) -> Result<SlotId, Failure> {
        let mut state = self.lock();
        if state.closed {
            return Err(Failure::Draining);
        }
        state.next_slot += 1;
        Ok(SlotId(state.next_slot))
    }

    /// Lists a model; returns the slot that had the name before.
    pub(super) fn list(&self, slot: SlotId, info: ModelInfo) -> Option<SlotId> {
        let mut state = self.lock();
        let before = state.unlist(&info.name);
        state.models.push((slot, info));
        state.models.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
        before
    }

    /// Places taken in the queue, including requests that are still on their way to the engine.
    pub(super) fn queued(&self) -> usize {
        self.lock().total
    }

    pub(super) fn unlist(&self, name: &str) -> Option<SlotId> {
        self.lock().unlist(name)
    }

    pub(super) fn models(&self) -> Vec<ModelInfo> {
        self.lock().models.iter().map(|(_, info)| info.clone()).collect()
    }

    pub(super) fn model(&self, name: &str) -> Option<ModelInfo> {
        self.lock().models.iter().find(|(_, info)| info.name == name).map(|(_, info)| info.clone())
    }

    /// Rejects all further requests.
    pub(super) fn close(&self) {
        self.lock().closed = true;
    }

    /// Publishes the engine's statistics, with the number of `generated` tokens.
    pub(super) fn publish(&self, stats: Stats, generated: u64, now: Instant) {
        let mut state = self.lock();
        if generated > 0 {
            state.rate.add(generated, now);
        }
        state.stats = stats;
    }

    pub(super) fn stats(&self, now: Instant) -> Stats {
        let state = self.lock();
        Stats {
            queued: state.total + state.stats.queued,
            draining: state.closed,
            tokens_per_second: state.rate.at(now),
            retry_after_ms: state.retry_after(now),
            ..state.stats.clone()
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No operation under this lock leaves it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn unlist(&mut self, name: &str) -> Option<SlotId> {
        let index = self.models.iter().position(|(_, info)| info.name == name)?;
        Some(self.models.remove(index).0)
    }

    /// Milliseconds until a place is expected for the last rejected request: places become free at the measured
    /// interval, and earlier rejected ones come first.
    fn retry_after(&self, now: Instant) -> u64 {
        let waited = now.saturating_duration_since(self.left_at).as_secs_f64();
        let interval = match self.interval {
            Some(interval) => interval.max(if self.total > 0 { waited } else { 0.0 }),
            None => waited.max(UNKNOWN_RETRY.as_secs_f64()),
        };
        let seconds = (interval * self.refused.max(1) as f64).min(MOST_RETRY.as_secs_f64());
        (seconds.max(LEAST_RETRY.as_secs_f64()) * 1e3).ceil() as u64
    }
}
