//! Keys and values of ended requests, for requests of the same tenant that begin with the same tokens.
//!
//! The memory is that of the executor, which takes it back when an open sequence needs it. Tenants never have rows in
//! common: the time to the first token would tell one which prompts another has sent.

use std::sync::Arc;

use super::run::Run;
use crate::executor::{Executor, SeqId};

/// The most retained sequences of a model: each admission compares its tokens with all of its tenant.
const MOST_RETAINED: usize = 64;

/// The retained sequences of a model.
#[derive(Default)]
pub(super) struct Prefixes {
    /// Least recently used first.
    entries: Vec<Prefix>,
}

struct Prefix {
    tenant: Arc<str>,
    /// Those of the rows that are retained.
    tokens: Vec<u32>,
    seq: SeqId,
}

impl Prefixes {
    /// The sequence that has most rows in common with a run, and how many: more than the run has computed, and in whole
    /// units. The last token is always left, because its logits are needed.
    pub(super) fn source(&self, unit: usize, run: &Run, running: &[Run]) -> Option<(SeqId, usize)> {
        let wanted = &run.tokens[..run.shareable()];
        let retained = self.entries.iter().filter(|entry| entry.tenant == run.tenant);
        let retained = retained.map(|entry| (entry.seq, &entry.tokens[..]));
        let others = running.iter().filter(|other| other.id != run.id && other.tenant == run.tenant);
        let others = others.filter_map(|other| Some((other.seq?, &other.tokens[..other.computed])));
        let mut best = (None, run.computed / unit * unit);
        for (seq, tokens) in retained.chain(others) {
            let next = best.1..best.1 + unit;
            // Most sequences differ where they would have to be better, so only few are compared from the beginning.
            if tokens.get(next.clone()).is_none_or(|rows| wanted.get(next) != Some(rows)) {
                continue;
            }
            let rows = wanted.iter().zip(tokens).take_while(|(a, b)| a == b).count() / unit * unit;
            if rows > best.1 {
                best = (Some(seq), rows);
            }
        }
        best.0.map(|seq| (seq, best.1))
    }

    /// Opens a sequence for a run, and answers how many rows it has already.
    pub(super) fn open(
        &mut self,
        executor: &mut dyn Executor,
        unit: Option<usize>,
        run: &Run,
        running: &[Run],
        positions: usize,
    ) -> Option<(SeqId, usize)> {
        if let Some(unit) = unit {
            self.entries.retain(|entry| executor.is_retained(entry.seq));
            if let Some((from, rows)) = self.source(unit, run, running)
                && let Some(seq) = executor.fork(from, rows, positions)
            {
                if let Some(index) = self.entries.iter().position(|entry| entry.seq == from) {
                    self.entries[index..].rotate_left(1);
                }
                return Some((seq, rows));
            }
        }
        Some((executor.open(positions)?, 0))
    }

    /// Closes a run's sequence, and keeps its rows as long as there is room for them.
    pub(super) fn retain(&mut self, executor: &mut dyn Executor, run: &Run, seq: SeqId) {
        self.entries.retain(|entry| executor.is_retained(entry.seq));
        let tokens = &run.tokens[..run.computed];
        let of_tenant = |entry: &&Prefix| entry.tenant == run.tenant;
        if self.entries.iter().filter(of_tenant).any(|entry| entry.tokens.starts_with(tokens)) {
            return executor.close(seq);
        }
        let rows = executor.retain(seq, tokens.len());
        if rows == 0 {
            return;
        }
        let tokens = tokens[..rows].to_vec();
        let covered = |entry: &Prefix| entry.tenant == run.tenant && tokens.starts_with(&entry.tokens);
        for entry in self.entries.extract_if(.., |entry| covered(entry)) {
            executor.close(entry.seq);
        }
        if self.entries.len() == MOST_RETAINED {
            executor.close(self.entries.remove(0).seq);
        }
        self.entries.push(Prefix { tenant: Arc::clone(&run.tenant), tokens, seq });
    }
}
