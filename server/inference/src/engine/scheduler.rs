//! The engine without its thread: commands in, one turn at a time.
//!
//! A turn serves clients, admits waiting requests, and computes one step of the model that has had the least
//! time. It has no clock of its own, so a test can run a day in a second.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use super::admission::{AdmissionQueue, SlotId};
use super::books::Books;
use super::handle::{EngineOptions, LoadedModel};
use super::readers::Readers;
use super::request::{Failure, Finish};
use super::run::{End, Run};
use super::shares::Shares;
use super::slot::Slot;
use super::stats::Stats;

/// Without streaming clients, a step may take this many times the target: longer steps are more efficient.
const UNWATCHED: u32 = 3;

pub(super) enum Command {
    Load {
        slot: SlotId,
        name: String,
        context: usize,
        model: Box<LoadedModel>,
    },
    Unload(SlotId),
    Add {
        slot: SlotId,
        model: String,
        displaces: bool,
        run: Box<Run>,
    },
    /// External state changed: a ticket was cancelled.
    Look,
    Drain {
        deadline: Instant,
        reply: SyncSender<bool>,
    },
    Stop,
}

/// What to do after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// There is more.
    Now,
    /// Nothing until then, unless a command comes.
    At(Instant),
    /// Nothing until a command comes.
    Idle,
}

pub(super) struct Scheduler<C> {
    options: EngineOptions,
    clock: C,
    door: Arc<AdmissionQueue>,
    pub(super) slots: Vec<Slot>,
    pub(super) books: Books,
    /// Whose milliseconds: fairness between models.
    turns: Shares<SlotId>,
    pub(super) readers: Readers,
    drains: Vec<(Instant, SyncSender<bool>)>,
    /// Drained or stopped: nothing runs any more.
    over: bool,
    next_run: u64,
    published_tokens: u64,
}

impl<C: Fn() -> Instant> Scheduler<C> {
    pub(super) fn new(options: EngineOptions, door: Arc<AdmissionQueue>, clock: C) -> Self {
        Scheduler {
            readers: Readers::of(options.threads),
            options,
            clock,
            books: Books::new(Arc::clone(&door)),
            door,
            slots: Vec::new(),
            turns: Shares::default(),
            drains: Vec::new(),
            over: false,
            next_run: 0,
            published_tokens: 0,
        }
    }

    /// Handles a command; `false` means stop.
    pub(super) fn command(&mut self, command: Command) -> bool {
        let now = (self.clock)();
        match command {
            Command::Load { slot, name, context, model } => {
                self.slots.push(Slot::new(slot, name, *model, context, &self.options))
            }
            Command::Unload(id) => {
                self.slots.iter_mut().filter(|slot| slot.id == id).for_each(|slot| slot.retired = true)
            }
            Command::Add { slot, model, displaces, run } => self.add(slot, model, displaces, *run, now),
            Command::Look => {}
            Command::Drain { deadline, reply } => self.drains.push((deadline, reply)),
            Command::Stop => {
                self.over = true;
                self.end_all(now);
                self.publish(now);
                return false;
            }
        }
        true
    }

    fn add(&mut self, id: SlotId, model: String, displaces: bool, mut run: Run, now: Instant) {
        run.id = self.next_run;
        self.next_run += 1;
        self.books.begin(&run);
        if self.over {
            return self.books.end(run, End::Fail(Failure::Draining), now);
        }
        let Some(index) = self.slots.iter().position(|slot| slot.id == id) else {
            return self.books.end(run, End::Fail(Failure::NoModel(model)), now);
        };
        if run.is_complete() {
            return self.books.end(run, End::Finish(Finish::Length), now);
        }
        if displaces {
            self.displace(&run.tenant, now);
        }
        self.slots[index].waiting.push(run);
    }

    /// Sends the youngest request away of the tenant that has most in the queue.
    fn displace(&mut self, by: &Arc<str>, now: Instant) {
        let waiting = || self.slots.iter().flat_map(|slot| &slot.waiting).filter(|run| run.queued && run.tenant != *by);
        let count = |tenant: &Arc<str>| waiting().filter(|run| run.tenant == *tenant).count();
        let Some(id) = waiting().max_by_key(|run| (count(&run.tenant), run.id)).map(|run| run.id) else { return };
        for slot in &mut self.slots {
            if let Some(index) = slot.waiting.iter().position(|run| run.id == id) {
                let run = slot.waiting.remove(index);
                let retry_after_ms = self.door.retry_after(now);
                self.books.end(run, End::Fail(Failure::Busy { retry_after_ms }), now);
            }
        }
    }

    /// Whether admitted requests have not arrived yet.
    pub(super) fn is_awaited(&self) -> bool {
        self.door.queued() > 0
    }

    pub(super) fn turn(&mut self) -> Next {
        let now = (self.clock)();
        self.books.see_off(self.options.stall, now);
        for slot in &mut self.slots {
            slot.reap(&mut self.books, self.options.stall, now);
            slot.admit(&mut self.books, now);
            let active = slot.has_rows();
            match (slot.active, active) {
                (false, true) => self.turns.enter(&slot.id),
                (true, false) => self.turns.leave(&slot.id),
                _ => {}
            }
            slot.active = active;
        }
        let watched = self.slots.iter().any(Slot::decodes);
        let target = if watched { self.options.step_target } else { self.options.step_target * UNWATCHED };
        let turns = &self.turns;
        let next = self.slots.iter_mut().filter(|slot| slot.active);
        let stepped = match next.min_by(|a, b| turns.served(&a.id).total_cmp(&turns.served(&b.id))) {
            Some(slot) => {
                let took = slot.step(&mut self.books, &mut self.readers, target, &self.clock);
                let id = slot.id;
                self.turns.charge(&id, took.as_secs_f64());
                true
            }
            None => false,
        };
        let now = (self.clock)();
        let turns = &mut self.turns;
        self.slots.retain(|slot| {
            let stays = !(slot.retired && slot.is_empty());
            if !stays && slot.active {
                turns.leave(&slot.id);
            }
            stays
        });
        self.finish_drains(now);
        self.publish(now);
        if stepped { Next::Now } else { self.next(now) }
    }

    fn next(&self, now: Instant) -> Next {
        let slots = self.slots.iter().filter_map(|slot| slot.look_at(self.options.stall, now));
        let drains = self.drains.iter().map(|(deadline, _)| *deadline);
        match slots.chain(drains).chain(self.books.look_at()).min() {
            Some(at) if at <= now => Next::Now,
            Some(at) => Next::At(at),
            None => Next::Idle,
        }
    }

    fn finish_drains(&mut self, now: Instant) {
        if self.drains.is_empty() {
            return;
        }
        let done = self.slots.iter().all(Slot::is_empty) && self.books.all_left() && self.door.queued() == 0;
        if !done {
            if self.drains.iter().all(|(deadline, _)| now < *deadline) {
                return;
            }
            self.end_all(now);
        }
        self.over = true;
        for (_, reply) in self.drains.drain(..) {
            // The receiver may be gone.
            let _unheard = reply.try_send(done);
        }
    }

    fn end_all(&mut self, now: Instant) {
        for slot in &mut self.slots {
            slot.end_all(&Failure::Draining, &mut self.books, now);
        }
        self.books.see_all_off(now);
    }

    fn publish(&mut self, now: Instant) {
        let counts = self.books.counts;
        let runs = || self.slots.iter().flat_map(|slot| slot.waiting.iter().chain(&slot.running));
        let stats = Stats {
            // Preempted ones; the door counts the others.
            queued: runs().filter(|run| !run.queued && run.seq.is_none()).count(),
            running: self.slots.iter().map(|slot| slot.running.len()).sum(),
            paused: runs().filter(|run| run.is_paused()).count(),
            last_step_ms: self.books.last_step_ms,
            last_step: self.books.last_step,
            steps: counts.steps,
            failed_steps: counts.failed_steps,
            prompt_tokens: counts.prompt_tokens,
            cached_tokens: counts.cached_tokens,
            generated_tokens: counts.generated_tokens,
            drafted_tokens: counts.drafted_tokens,
            accepted_tokens: counts.accepted_tokens,
            completed: counts.completed,
            cancelled: counts.cancelled,
            failed: counts.failed,
            preempted: counts.preempted,
            fault: self.books.fault.clone(),
            models: self.slots.iter().map(Slot::stats).collect(),
            // The door knows the rest.
            ..Stats::default()
        };
        let generated = counts.generated_tokens - self.published_tokens;
        self.published_tokens = counts.generated_tokens;
        self.door.publish(stats, generated, now);
    }
}

/// Maximum sleep of the thread, in case a wake-up is lost to a full channel.
pub(super) const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
