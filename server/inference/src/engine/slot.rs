//! One loaded model: its executor, those that wait for room and those that have it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::admission::SlotId;
use super::books::Books;
use super::handle::{EngineOptions, LoadedModel};
use super::isolate::{self, Outcome};
use super::pace::Pace;
use super::plan::{DECODE_WEIGHT, PROMPT_WEIGHT, Part, plan};
use super::request::Failure;
use super::run::{End, LogitResult, Run};
use super::stats::ModelStats;
use crate::executor::{Executor, RowSpan};
use crate::sample::Scratch;
use crate::text::Tokenizer;

/// After this time without reading, a client may lose its memory to a waiting one.
const PATIENCE_WITH_READERS: Duration = Duration::from_secs(1);

/// How much more a tenant must have been served before it is preempted, in addition to the cost of recomputation.
const LEAD: f64 = 1024.0;

/// A request that finds no room although nothing runs is tried again this often, and given up after that long.
const ROOM_AGAIN: Duration = Duration::from_millis(50);
const ROOM_PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Slot {
    pub(super) id: SlotId,
    name: String,
    executor: Box<dyn Executor>,
    tokenizer: Arc<Tokenizer>,
    context: usize,
    /// Without room, by age.
    pub(super) waiting: Vec<Run>,
    /// With room.
    pub(super) running: Vec<Run>,
    pace: Pace,
    /// Accepts no more requests.
    pub(super) retired: bool,
    /// Had rows to compute at the last check.
    pub(super) active: bool,
    /// A request waits for memory.
    blocked: bool,
    busy: Duration,
}

impl Slot {
    pub(super) fn new(id: SlotId, name: String, model: LoadedModel, context: usize) -> Slot {
        Slot {
            id,
            name,
            executor: model.executor,
            tokenizer: model.tokenizer,
            context,
            waiting: Vec::new(),
            running: Vec::new(),
            pace: Pace::default(),
            retired: false,
            active: false,
            blocked: false,
            busy: Duration::ZERO,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    pub(super) fn stats(&self) -> ModelStats {
        ModelStats {
            name: self.name.clone(),
            queued: self.waiting.len(),
            running: self.running.len(),
            memory: self.executor.memory(),
            busy_ms: self.busy.as_secs_f64() * 1e3,
            retired: self.retired,
        }
    }

    /// Whether any run has a row to compute now.
    pub(super) fn has_rows(&self) -> bool {
        self.running.iter().any(|run| !run.is_paused())
    }

    /// Whether any run is decoding for a client.
    pub(super) fn decodes(&self) -> bool {
        self.running.iter().any(|run| !run.is_paused() && run.generated() > 0)
    }

    /// Ends runs that are cancelled, late or without a client.
    pub(super) fn reap(&mut self, books: &mut Books, stall: Duration, now: Instant) {
        for index in (0..self.waiting.len()).rev() {
            if let Some(end) = self.waiting[index].look(now, stall) {
                let run = self.waiting.remove(index);
                books.end(run, end, now);
            }
        }
        for index in (0..self.running.len()).rev() {
            if let Some(end) = self.running[index].look(now, stall) {
                self.end(index, end, books, now);
            }
        }
    }

    /// Ends all runs.
    pub(super) fn end_all(&mut self, failure: &Failure, books: &mut Books, now: Instant) {
        for run in std::mem::take(&mut self.waiting) {
            books.end(run, End::Fail(failure.clone()), now);
        }
        while let Some(index) = self.running.len().checked_sub(1) {
            self.end(index, End::Fail(failure.clone()), books, now);
        }
    }

    /// Admits waiting requests, the least served tenant first, while there is memory.
    ///
    /// If the next in turn does not fit, no other is admitted: a long request must not starve behind short ones. Only
    /// if nothing runs at all, so that waiting frees no memory, the others are tried.
    pub(super) fn admit(&mut self, books: &mut Books, options: &EngineOptions, now: Instant) {
        let was_blocked = std::mem::replace(&mut self.blocked, false);
        if !self.running.is_empty() {
            // From now on they wait for other runs, not because they cannot fit at all.
            self.waiting.iter_mut().for_each(|run| run.homeless_since = None);
        }
        let mut passed_over: Vec<u64> = Vec::new();
        loop {
            let able = |run: &&Run| !run.is_paused() && !passed_over.contains(&run.id);
            let next = self.waiting.iter().filter(able).min_by(|a, b| {
                books.tenants.served(&a.tenant).total_cmp(&books.tenants.served(&b.tenant)).then(a.id.cmp(&b.id))
            });
            let Some(id) = next.map(|run| run.id) else { return };
            let Some(index) = self.waiting.iter().position(|run| run.id == id) else { return };
            let positions = self.waiting[index].positions(self.context);
            if self.running.len() < options.max_running {
                match catch_unwind(AssertUnwindSafe(|| self.executor.open(positions))) {
                    Ok(Some(seq)) => {
                        let mut run = self.waiting.remove(index);
                        run.seq = Some(seq);
                        run.homeless_since = None;
                        run.started.get_or_insert(now);
                        books.leaves_queue(&mut run, was_blocked, now);
                        self.running.push(run);
                        continue;
                    }
                    Ok(None) => {}
                    Err(panic) => {
                        let why = format!("panic: {}", isolate::message(&*panic));
                        let run = self.waiting.remove(index);
                        books.end(run, End::Fail(Failure::Model(why)), now);
                        continue;
                    }
                }
            }
            if let Some(victim) = self.victim(&self.waiting[index], books, now) {
                self.preempt(victim, books);
                continue;
            }
            self.blocked = true;
            if !self.running.is_empty() {
                return;
            }
            let since = *self.waiting[index].homeless_since.get_or_insert(now);
            if now >= since + ROOM_PATIENCE {
                let run = self.waiting.remove(index);
                let why = format!("there is no room for {positions} tokens of keys and values");
                books.end(run, End::Fail(Failure::Model(why)), now);
            } else {
                passed_over.push(id);
            }
        }
    }

    /// The run to preempt for `next`: a client that does not read, else the youngest run of the most served tenant.
    fn victim(&self, next: &Run, books: &Books, now: Instant) -> Option<usize> {
        let paused = |run: &Run| run.paused_since().is_some_and(|since| now >= since + PATIENCE_WITH_READERS);
        if let Some(index) = self.running.iter().position(paused) {
            return Some(index);
        }
        let level = books.tenants.served(&next.tenant);
        let ahead = |run: &Run| books.tenants.served(&run.tenant) - level;
        let behind = self
            .running
            .iter()
            .enumerate()
            .filter(|(_, run)| run.tenant != next.tenant && ahead(run) > LEAD + run.computed as f64);
        behind.max_by(|(_, a), (_, b)| ahead(a).total_cmp(&ahead(b)).then(a.id.cmp(&b.id))).map(|(index, _)| index)
    }

    /// Preempts a run; its results are recomputed later, bit for bit.
    fn preempt(&mut self, index: usize, books: &mut Books) {
        let mut run = self.running.swap_remove(index);
        self.close(&mut run);
        run.computed = 0;
        books.counts.preempted += 1;
        let insert_at = self.waiting.partition_point(|other| other.id < run.id);
        self.waiting.insert(insert_at, run);
    }

    /// Computes one step and distributes the results.
    pub(super) fn step(
        &mut self,
        books: &mut Books,
        scratch: &mut Scratch,
        target: Duration,
        clock: &dyn Fn() -> Instant,
    ) -> Duration {
        let begin = clock();
        let able: Vec<usize> = (0..self.running.len()).filter(|&index| !self.running[index].is_paused()).collect();
        let mut tenants: Vec<Arc<str>> = Vec::new();
        let candidates: Vec<_> = able
            .iter()
            .map(|&index| {
                let run = &self.running[index];
                let known = tenants.iter().position(|tenant| *tenant == run.tenant);
                let tenant = known.unwrap_or_else(|| {
                    tenants.push(Arc::clone(&run.tenant));
                    tenants.len() - 1
                });
                run.candidate(tenant)
            })
            .collect();
        let served = tenants.iter().map(|tenant| books.tenants.served(tenant)).collect();
        let (parts, size) = plan(&candidates, served, &self.pace, target.as_secs_f64());
        let parts: Vec<Part> = parts.into_iter().map(|part| Part { candidate: able[part.candidate], ..part }).collect();

        let runs = &self.running;
        let spans = parts.iter().filter_map(|part| {
            let run = &runs[part.candidate];
            let tokens = &run.tokens[part.start..part.start + part.rows];
            Some(RowSpan { seq: run.seq?, start: part.start, tokens, logits: run.logits(part.start, part.rows) })
        });
        let spans: Vec<RowSpan<'_>> = spans.collect();
        let vocab = self.executor.architecture().vocab;
        let mut gather = Gather { runs, parts: &parts, vocab, scratch, fruits: Vec::new() };
        let (ok, failed) = isolate::step(&mut *self.executor, &spans, &mut gather);
        let fruits = gather.fruits;
        let end = clock();

        let took = end.saturating_duration_since(begin);
        self.busy += took;
        books.counts.steps += ok;
        books.counts.failed_steps += failed;
        books.last_step_ms = took.as_secs_f64() * 1e3;
        if ok > 0 {
            books.last_step = Some(end);
        }
        if failed == 0 {
            self.pace.learn(size, took.as_secs_f64());
        }
        self.hand_out(&parts, fruits, books, end);
        took
    }

    fn hand_out(
        &mut self,
        parts: &[Part],
        fruits: Vec<(usize, Result<LogitResult, String>)>,
        books: &mut Books,
        now: Instant,
    ) {
        let mut ended: Vec<(usize, End)> = Vec::new();
        for (index, fruit) in fruits {
            let Part { candidate, start, rows } = parts[index];
            let run = &mut self.running[candidate];
            let end = match fruit {
                Ok(fruit) => {
                    let (prompt, answer) = run.uncharged(start, rows);
                    books.tenants.charge(&run.tenant, PROMPT_WEIGHT * prompt as f64 + DECODE_WEIGHT * answer as f64);
                    books.counts.prompt_tokens += prompt as u64;
                    run.computed = start + rows;
                    run.charged = run.charged.max(run.computed);
                    let before = run.generated();
                    let end = run.take(fruit, &self.tokenizer, self.context, now);
                    books.counts.generated_tokens += (run.generated() - before) as u64;
                    end
                }
                Err(why) => Some(End::Fail(Failure::Model(why))),
            };
            ended.extend(end.map(|end| (candidate, end)));
        }
        // From the back, so that the indices before stay true.
        ended.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
        for (index, end) in ended {
            self.end(index, end, books, now);
        }
    }

    /// The next time something may be due although no rows are to be computed now.
    pub(super) fn look_at(&self, stall: Duration, now: Instant) -> Option<Instant> {
        let runs = self.waiting.iter().chain(&self.running);
        let homeless = self.waiting.iter().any(|run| run.homeless_since.is_some()).then_some(now + ROOM_AGAIN);
        runs.filter_map(|run| run.look_at(stall)).chain(homeless).min()
    }

    fn end(&mut self, index: usize, end: End, books: &mut Books, now: Instant) {
        let mut run = self.running.remove(index);
        self.close(&mut run);
        books.end(run, end, now);
    }

    fn close(&mut self, run: &mut Run) {
        if let Some(seq) = run.seq.take() {
            // A broken executor is detected at its next step; here the error cannot be reported.
            let _caught = catch_unwind(AssertUnwindSafe(|| self.executor.close(seq)));
        }
    }
}

/// Reads logits while they are there; changes nothing, because the spans still borrow the runs.
struct Gather<'a> {
    runs: &'a [Run],
    parts: &'a [Part],
    vocab: usize,
    scratch: &'a mut Scratch,
    fruits: Vec<(usize, Result<LogitResult, String>)>,
}

impl Outcome for Gather<'_> {
    fn computed(&mut self, index: usize, logits: &[f32]) {
        let part = self.parts[index];
        let run = &self.runs[part.candidate];
        let fruit = run.read(part.start, logits, self.vocab, self.scratch).map_err(|error| error.to_string());
        self.fruits.push((index, fruit));
    }

    fn failed(&mut self, index: usize, why: String) {
        self.fruits.push((index, Err(why)));
    }
}
