//! Steps: which rows go through the model together, and the sequences that they continue.

use crate::Candle;
use crate::layer::{Cache, Pass, Piece};
use candle_core::{DType, Device, Result as Computed, Tensor};
use std::collections::HashMap;
use textnlp_inference::decoder::{Position, Spec};
use textnlp_inference::executor::{RowSpan, SeqId, StepError};

/// The most rows that go through the model at once: a bound of the memory for activations.
const MOST_ROWS: usize = 256;

/// The open sequences, with a limit of positions of all together.
pub(crate) struct Sequences {
    open: HashMap<SeqId, Sequence>,
    next: u32,
    pub(crate) limit: usize,
    pub(crate) free: usize,
}

struct Sequence {
    /// One for each layer.
    caches: Vec<Cache>,
    limit: usize,
    length: usize,
}

impl Sequences {
    pub(crate) fn new(limit: usize) -> Sequences {
        Sequences { open: HashMap::new(), next: 0, limit, free: limit }
    }

    pub(crate) fn open(&mut self, spec: &Spec, kv_type: DType, device: &Device, positions: usize) -> Option<SeqId> {
        if positions > self.free {
            return None;
        }
        let shape = (spec.kv_heads, positions.max(1), spec.head_dim);
        let cache = |_| {
            Some(Cache {
                keys: Tensor::zeros(shape, kv_type, device).ok()?,
                values: Tensor::zeros(shape, kv_type, device).ok()?,
            })
        };
        // Where the device has no room, nothing is kept.
        let caches = (0..spec.shape.layers).map(cache).collect::<Option<Vec<_>>>()?;
        while self.open.contains_key(&SeqId(self.next)) {
            self.next = self.next.wrapping_add(1);
        }
        let seq = SeqId(self.next);
        self.next = self.next.wrapping_add(1);
        self.free -= positions;
        self.open.insert(seq, Sequence { caches, limit: positions, length: 0 });
        Some(seq)
    }

    pub(crate) fn close(&mut self, seq: SeqId) {
        if let Some(sequence) = self.open.remove(&seq) {
            self.free += sequence.limit;
        }
    }
}

/// A row of a pass.
struct Row {
    seq: SeqId,
    position: usize,
    token: u32,
    wanted: bool,
}

impl Candle {
    /// Computes one step; see [`textnlp_inference::executor::Executor::step`].
    pub(crate) fn run(&mut self, spans: &[RowSpan<'_>]) -> Result<(), StepError> {
        self.logits.clear();
        self.check(spans)?;
        let mut logits = Vec::new();
        let mut rows = Vec::new();
        for span in spans {
            for (i, token) in span.tokens.iter().enumerate() {
                rows.push(Row { seq: span.seq, position: span.start + i, token: *token, wanted: span.wants(i) });
            }
        }
        for rows in rows.chunks(MOST_ROWS) {
            self.pass(rows, &mut logits).map_err(|error| StepError::Device(error.to_string()))?;
        }
        let mut rest = &logits[..];
        for span in spans {
            let (own, others) = rest.split_at(span.count_wanted() * self.spec.shape.vocab);
            if !own.iter().all(|logit| logit.is_finite()) {
                return Err(StepError::NotFinite(span.seq));
            }
            rest = others;
        }
        for span in spans {
            if let Some(sequence) = self.sequences.open.get_mut(&span.seq) {
                sequence.length = span.start + span.tokens.len();
            }
        }
        self.logits = logits;
        Ok(())
    }

    /// Checks a step before anything is written.
    fn check(&self, spans: &[RowSpan<'_>]) -> Result<(), StepError> {
        for (i, span) in spans.iter().enumerate() {
            let not_there = StepError::NotThere(span.seq, span.start);
            let Some(sequence) = self.sequences.open.get(&span.seq) else { return Err(not_there) };
            // A sequence may stand in several spans only if they follow one another.
            let follows = match spans[..i].iter().rev().find(|before| before.seq == span.seq) {
                Some(before) => span.start == before.start + before.tokens.len(),
                None => span.start <= sequence.length,
            };
            if !follows || span.tokens.is_empty() {
                return Err(not_there);
            }
            if span.start.saturating_add(span.tokens.len()) > sequence.limit {
                return Err(StepError::NoRoom);
            }
            if let Some(token) = span.tokens.iter().find(|token| **token as usize >= self.spec.shape.vocab) {
                return Err(StepError::UnknownToken(span.seq, *token));
            }
        }
        Ok(())
    }

    /// Takes rows through the model and adds the logits that are wanted.
    fn pass(&self, rows: &[Row], logits: &mut Vec<f32>) -> Computed<()> {
        let (spec, weights, device) = (&self.spec, &self.weights, &self.device);
        let mut pieces: Vec<Piece> = Vec::new();
        let mut sequences = Vec::new();
        let mut row = 0;
        for run in rows.chunk_by(|a, b| a.seq == b.seq && a.position + 1 == b.position) {
            let Some(sequence) = run.first().and_then(|first| self.sequences.open.get(&first.seq)) else {
                candle_core::bail!("a row of a sequence that is not open")
            };
            pieces.push(Piece { row, rows: run.len(), start: run[0].position });
            sequences.push(sequence);
            row += run.len();
        }
        let numbers = |values: Vec<u32>| {
            let count = values.len();
            Tensor::from_vec(values, count, device)
        };
        let tokens = numbers(rows.iter().map(|row| row.token).collect())?;
        let mut x = weights.token.index_select(&tokens, 0)?.to_dtype(DType::F32)?;
        if let (Some(table), Position::Learned { offset, .. }) = (&weights.positions, spec.position) {
            let positions = numbers(rows.iter().map(|row| (row.position + offset) as u32).collect())?;
            x = (x + table.index_select(&positions, 0)?)?;
        }
        let pass = Pass::new(spec, device, &pieces)?;
        for (number, layer) in weights.layers.iter().enumerate() {
            let caches: Vec<&Cache> = sequences.iter().map(|sequence| &sequence.caches[number]).collect();
            x = pass.layer(number, layer, &caches, &x)?;
        }
        let wanted: Vec<u32> = (0..).zip(rows).filter(|(_, row)| row.wanted).map(|(i, _)| i).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let x = weights.norm.forward(&x.index_select(&numbers(wanted)?, 0)?)?;
        logits.extend(weights.head.forward(&x)?.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    }
}
