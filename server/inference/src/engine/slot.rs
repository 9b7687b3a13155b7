//! One loaded model: its executor, those that wait for room and those that have it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::admission::SlotId;
use super::books::Books;
use super::draft::{self, Draft, MOST_LOGITS};
use super::handle::{EngineOptions, LoadedModel};
use super::isolate::{self, Outcome, SpanOutput};
use super::pace::{Pace, Size};
use super::plan::{DECODE_WEIGHT, PROMPT_WEIGHT, Part, plan};
use super::prefix::Prefixes;
use super::readers::{Gathered, Readers, Unread};
use super::request::Failure;
use super::run::{End, Run};
use super::stats::ModelStats;
use crate::executor::{Executor, LogitRows, RowSpan, reserve};
use crate::text::Tokenizer;

/// After this time without reading, a client may lose its memory to a waiting one.
const PATIENCE_WITH_READERS: Duration = Duration::from_secs(1);

/// How much more a tenant must have been served before it is preempted, in addition to the cost of recomputation.
const LEAD: f64 = 1024.0;

/// A request that finds no room although nothing runs is tried again this often, and given up after that long.
const ROOM_AGAIN: Duration = Duration::from_millis(50);
const ROOM_PATIENCE: Duration = Duration::from_secs(10);

/// Bounds what a tenant is charged for the time of masks while steps are predicted to take next to none.
const SHORTEST_STEP: f64 = 1e-5;

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
    prefixes: Prefixes,
    /// In which unit runs have rows in common, if they can and may.
    unit: Option<usize>,
    /// Positions that only tenants without any may take.
    reserve: usize,
    /// In which unit the executor takes positions.
    block: usize,
    /// The most that run at once.
    max_running: usize,
    /// The most guesses of a draft.
    draft_tokens: usize,
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
    pub(super) fn new(id: SlotId, name: String, model: LoadedModel, context: usize, options: &EngineOptions) -> Slot {
        let unit = model.executor.share_unit();
        // An executor whose rows depend on what they are computed with would change the text.
        let draft_tokens = unit.map_or(0, |_| options.draft_tokens);
        let unit = unit.filter(|_| options.prefix_cache);
        // Executors take room in whole blocks, and the longest request has to fit beside the reserve.
        let block = model.executor.share_unit().unwrap_or(1);
        let total = model.executor.positions().map_or(0, |positions| positions.total);
        let reserve = reserve(context).min(total.saturating_sub(context.next_multiple_of(block)));
        Slot {
            reserve,
            block,
            max_running: options.batch_size(model.executor.most_sequences()),
            id,
            name,
            executor: model.executor,
            tokenizer: model.tokenizer,
            context,
            waiting: Vec::new(),
            running: Vec::new(),
            prefixes: Prefixes::default(),
            unit,
            draft_tokens,
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
            id: self.id.0,
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
    /// if nothing runs at all, so that waiting frees no memory, the others are tried. Reserved positions are apart: they
    /// are for tenants of which nothing runs, and the next in turn does not wait for them.
    pub(super) fn admit(&mut self, books: &mut Books, now: Instant) {
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
            let kept = if self.running.is_empty() { 0 } else { self.reserve - self.reserve_used() };
            if self.running.len() < self.max_running && self.begin(index, kept, false, was_blocked, books, now) {
                continue;
            }
            if let Some(victim) = self.victim(&self.waiting[index], books, now) {
                self.preempt(victim, books);
                continue;
            }
            self.blocked = true;
            if !self.running.is_empty() {
                match self.for_reserve(books).is_some_and(|index| self.begin(index, 0, true, was_blocked, books, now)) {
                    true => continue,
                    false => return,
                }
            }
            let positions = self.waiting[index].positions(self.context);
            let since = *self.waiting[index].homeless_since.get_or_insert(now);
            if now >= since + ROOM_PATIENCE {
                // A device that fails has no room either.
                self.find_fault(books);
                let run = self.waiting.remove(index);
                let why = format!("there is no room for {positions} tokens of keys and values");
                books.end(run, End::Fail(Failure::Model(why)), now);
            } else {
                passed_over.push(id);
            }
        }
    }

    /// Opens a sequence for a waiting request and lets it run, if `kept` positions stay free. `false`: there is no room.
    fn begin(
        &mut self,
        index: usize,
        kept: usize,
        uses_reserve: bool,
        was_blocked: bool,
        books: &mut Books,
        now: Instant,
    ) -> bool {
        let Slot { executor, prefixes, waiting, running, unit, context, block, .. } = &mut *self;
        let run = &waiting[index];
        let positions = run.positions(*context);
        // Rows in common with others take no room of their own. What does not fit is not opened: that would reclaim rows.
        let common = unit.filter(|_| kept > 0).and_then(|unit| prefixes.source(unit, run, running));
        let least = positions.next_multiple_of(*block) - common.map_or(0, |(_, rows)| rows);
        let leaves = |executor: &dyn Executor, room: usize| {
            kept == 0 || executor.positions().is_none_or(|positions| positions.free >= room)
        };
        if !leaves(&**executor, kept.saturating_add(least)) {
            return false;
        }
        let open = || {
            let (seq, rows) = prefixes.open(&mut **executor, *unit, run, running, positions)?;
            if leaves(&**executor, kept) {
                return Some((seq, rows));
            }
            executor.close(seq);
            None
        };
        match catch_unwind(AssertUnwindSafe(open)) {
            Ok(Some((seq, rows))) => {
                let mut run = self.waiting.remove(index);
                books.counts.cached_tokens += run.opened(seq, rows) as u64;
                run.homeless_since = None;
                run.uses_reserve = uses_reserve;
                run.started.get_or_insert(now);
                books.leaves_queue(&mut run, was_blocked, now);
                self.running.push(run);
                true
            }
            Ok(None) => false,
            Err(panic) => {
                let why = format!("panic: {}", isolate::message(&*panic));
                let run = self.waiting.remove(index);
                books.end(run, End::Fail(Failure::Model(why)), now);
                true
            }
        }
    }

    /// Notes whether the device failed for good.
    fn find_fault(&self, books: &mut Books) {
        if books.fault.is_none() {
            books.fault = self.executor.fault();
        }
    }

    /// The reserved positions that are taken.
    fn reserve_used(&self) -> usize {
        let reserved = self.running.iter().filter(|run| run.uses_reserve);
        reserved.map(|run| self.taken(run)).sum::<usize>().min(self.reserve)
    }

    /// The positions that a run takes.
    fn taken(&self, run: &Run) -> usize {
        run.positions(self.context).next_multiple_of(self.block)
    }

    /// The waiting request that may take reserved positions: of the least served tenant that has none at all.
    fn for_reserve(&self, books: &Books) -> Option<usize> {
        let room = self.reserve - self.reserve_used();
        if room == 0 || self.running.len() >= self.max_running {
            return None;
        }
        let may = |run: &Run| {
            let holds = self.running.iter().any(|other| other.tenant == run.tenant);
            !run.is_paused() && !holds && self.taken(run) <= room
        };
        let able = self.waiting.iter().enumerate().filter(|(_, run)| may(run));
        let order = |run: &Run| books.tenants.served(&run.tenant);
        able.min_by(|(_, a), (_, b)| order(a).total_cmp(&order(b)).then(a.id.cmp(&b.id))).map(|(index, _)| index)
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
        self.close(&mut run, true);
        books.counts.preempted += 1;
        self.wait(run);
    }

    /// Puts a run without a sequence back among those that wait.
    fn wait(&mut self, mut run: Run) {
        run.computed = 0;
        let insert_at = self.waiting.partition_point(|other| other.id < run.id);
        self.waiting.insert(insert_at, run);
    }

    /// Gives runs the rows that another one of their tenant has computed since they were admitted: several answers to one
    /// prompt compute it once. There is room, because a run's own sequence is closed first.
    fn share(&mut self, books: &mut Books) {
        let Some(unit) = self.unit else { return };
        for index in (0..self.running.len()).rev() {
            let Slot { executor, prefixes, running, context, .. } = &mut *self;
            let run = &running[index];
            if run.known() - run.computed <= 1 || prefixes.source(unit, run, running).is_none() {
                continue;
            }
            let positions = run.positions(*context);
            let Some(seq) = running[index].seq.take() else { continue };
            let open = || {
                executor.close(seq);
                prefixes.open(&mut **executor, Some(unit), &running[index], running, positions)
            };
            match catch_unwind(AssertUnwindSafe(open)) {
                Ok(Some((seq, rows))) => books.counts.cached_tokens += running[index].opened(seq, rows) as u64,
                Ok(None) | Err(_) => {
                    let run = self.running.remove(index);
                    self.wait(run);
                }
            }
        }
    }

    /// Computes one step and distributes the results.
    pub(super) fn step(
        &mut self,
        books: &mut Books,
        readers: &mut Readers,
        target: Duration,
        clock: &dyn Fn() -> Instant,
    ) -> Duration {
        let begin = clock();
        self.share(books);
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

        let (drafts, size) = self.drafts(&parts, size, target.as_secs_f64());

        let (runs, executor) = (&self.running, &*self.executor);
        let spans = parts.iter().zip(&drafts).filter_map(|(part, draft)| {
            let run = &runs[part.candidate];
            let (tokens, logits) = match draft {
                Some(draft) if !draft.guesses().is_empty() => (draft.rows(), LogitRows::All),
                _ => {
                    let logits = run.logits(part.start, part.rows, |draw| executor.draws(draw));
                    (&run.tokens[part.start..part.start + part.rows], logits)
                }
            };
            Some(RowSpan { seq: run.seq?, start: part.start, tokens, logits })
        });
        let spans: Vec<RowSpan<'_>> = spans.collect();
        let vocab = self.executor.shape().vocab;
        let mut gather = Gather {
            runs,
            parts: &parts,
            drafts: &drafts,
            vocab,
            readers,
            clock,
            fruits: Vec::new(),
            slow: Duration::ZERO,
        };
        let (ok, failed) = isolate::step(&mut *self.executor, &spans, &mut gather);
        let Gather { fruits, slow, .. } = gather;
        let end = clock();

        let took = end.saturating_duration_since(begin);
        books.counts.steps += ok;
        books.counts.failed_steps += failed;
        books.last_step_ms = took.as_secs_f64() * 1e3;
        if ok > 0 {
            books.last_step = Some(end);
        }
        if failed > 0 {
            self.find_fault(books);
        }
        if failed == 0 {
            self.pace.learn(size, took.saturating_sub(slow).as_secs_f64());
        }
        let took = took + self.hand_out(&parts, &drafts, fruits, books, end, clock);
        self.busy += took;
        took
    }

    /// The drafts of a step, one for each part, and its size with them. Prompts and full steps leave no room for drafts.
    fn drafts(&self, parts: &[Part], size: Size, target: f64) -> (Vec<Option<Draft>>, Size) {
        if self.draft_tokens == 0 || size.rows > parts.len() || parts.len() >= MOST_LOGITS {
            return (parts.iter().map(|_| None).collect(), size);
        }
        let of_part = |part: &Part| self.running[part.candidate].draft(self.draft_tokens, self.context);
        let mut drafts: Vec<_> = parts.iter().map(of_part).collect();
        let size = draft::fill(&mut drafts, size, &self.pace, target);
        (drafts, size)
    }

    /// Applies the results of a step. Returns the time that the guides of the answers took.
    fn hand_out(
        &mut self,
        parts: &[Part],
        drafts: &[Option<Draft>],
        fruits: Vec<Gathered>,
        books: &mut Books,
        now: Instant,
        clock: &dyn Fn() -> Instant,
    ) -> Duration {
        let mut ended: Vec<(usize, End)> = Vec::new();
        let mut masks = Duration::ZERO;
        let row_alone = self.pace.predict(Size::of(0, 1)).max(SHORTEST_STEP);
        for Gathered { index, fruit, slow } in fruits {
            let Part { candidate, start, rows } = parts[index];
            let run = &mut self.running[candidate];
            let draft = drafts[index].as_ref();
            let end = match fruit {
                Ok(fruit) => {
                    let (before, known, guided) = (run.generated(), run.tokens.len(), run.guide_time());
                    let end = run.take(fruit, &self.tokenizer, self.context, now, clock);
                    let guide = run.guide_time().saturating_sub(guided);
                    masks += guide;
                    let mask = guide + slow;
                    if !mask.is_zero() {
                        run.last_mask = (mask, books.counts.steps);
                        // All others wait for a mask as for a step: it costs as many rows as such steps compute.
                        books.tenants.charge(&run.tenant, DECODE_WEIGHT * mask.as_secs_f64() / row_alone);
                    }
                    if let Some(draft) = draft {
                        // Guesses behind the last token that a client had room for are verified again.
                        let (rate, right) = draft.verify(run.tokens[known..].iter().copied());
                        run.set_draft_rate(Some(rate));
                        books.counts.drafted_tokens += draft.guesses().len() as u64;
                        books.counts.accepted_tokens += right as u64;
                    }
                    books.counts.generated_tokens += (run.generated() - before) as u64;
                    // Rows of wrong guesses are computed again.
                    let rows = rows.max(run.tokens.len() - known);
                    let (prompt, answer) = run.uncharged(start, rows);
                    books.tenants.charge(&run.tenant, PROMPT_WEIGHT * prompt as f64 + DECODE_WEIGHT * answer as f64);
                    books.counts.prompt_tokens += prompt as u64;
                    run.computed = start + rows;
                    run.charged = run.charged.max(run.computed);
                    end
                }
                Err(_) if draft.is_some_and(|draft| !draft.guesses().is_empty()) => {
                    run.set_draft_rate(None);
                    None
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
        masks
    }

    /// The next time something may be due although no rows are to be computed now.
    pub(super) fn look_at(&self, stall: Duration, now: Instant) -> Option<Instant> {
        let runs = self.waiting.iter().chain(&self.running);
        let homeless = self.waiting.iter().any(|run| run.homeless_since.is_some()).then_some(now + ROOM_AGAIN);
        runs.filter_map(|run| run.look_at(stall)).chain(homeless).min()
    }

    fn end(&mut self, index: usize, end: End, books: &mut Books, now: Instant) {
        let mut run = self.running.remove(index);
        self.close(&mut run, !matches!(end, End::Fail(_)));
        books.end(run, end, now);
    }

    /// Closes a run's sequence. `retain`: its rows may serve another run.
    fn close(&mut self, run: &mut Run, retain: bool) {
        let Slot { executor, prefixes, unit, .. } = self;
        if let Some(seq) = run.seq.take() {
            let close = || match unit {
                Some(_) if retain => prefixes.retain(&mut **executor, run, seq),
                _ => executor.close(seq),
            };
            // A broken executor is detected at its next step; here the error cannot be reported.
            let _caught = catch_unwind(AssertUnwindSafe(close));
        }
    }
}

/// Reads logits while they are there; changes nothing, because the spans still borrow the runs.
struct Gather<'a> {
    runs: &'a [Run],
    parts: &'a [Part],
    drafts: &'a [Option<Draft>],
    vocab: usize,
    readers: &'a mut Readers,
    clock: &'a dyn Fn() -> Instant,
    fruits: Vec<Gathered>,
    /// The time of the step that unusually slow choices took.
    slow: Duration,
}

impl Outcome for Gather<'_> {
    fn computed(&mut self, spans: &[(usize, SpanOutput<'_>)]) {
        let unread = spans.iter().map(|&(index, output)| {
            let part = self.parts[index];
            let guesses = self.drafts[index].as_ref().map_or(&[][..], Draft::guesses);
            Unread { index, reader: self.runs[part.candidate].reader(part.start), guesses, output }
        });
        let (fruits, slow) = self.readers.read(&unread.collect::<Vec<_>>(), self.vocab, self.clock);
        self.fruits.extend(fruits);
        self.slow += slow;
    }

    fn failed(&mut self, index: usize, why: String) {
        self.fruits.push(Gathered { index, fruit: Err(why), slow: Duration::ZERO });
    }
}
