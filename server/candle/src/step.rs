//! Steps: which rows go through the model together, and the sequences that they continue.

use crate::Candle;
#[cfg(feature = "cuda")]
use crate::kernels::Pinned;
use crate::layer::{Cache, Pass, Piece, capped, scaled};
use candle_core::{DType, Device, Result as Computed, Tensor};
use std::collections::HashMap;
use std::ops::Deref;
use textnlp_inference::decoder::{Position, Spec};
use textnlp_inference::executor::{RowSpan, SeqId, StepError};

/// The most rows that go through the model at once: a bound of the memory for activations.
const MOST_ROWS: usize = 256;

/// The most rows whose logits are capped at once.
const CAPPED_ROWS: usize = 32;

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
        let cache = |_| Cache::new(shape, kv_type, device).ok();
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
        self.logits_count = 0;
        self.check(spans)?;
        let mut rows = Vec::new();
        for span in spans {
            for (i, token) in span.tokens.iter().enumerate() {
                rows.push(Row { seq: span.seq, position: span.start + i, token: *token, wanted: span.wants(i) });
            }
        }
        let mut logits = std::mem::take(&mut self.logits);
        let passed = rows.chunks(MOST_ROWS).try_fold(0, |count, rows| self.pass(rows, &mut logits, count));
        self.logits = logits;
        let count = passed.map_err(|error| StepError::Device(error.to_string()))?;
        let mut rest = self.logits.get(..count).unwrap_or_default();
        for span in spans {
            let (own, others) = rest.split_at(span.count_wanted() * self.spec.shape.vocab);
            if !are_finite(own) {
                return Err(StepError::NotFinite(span.seq));
            }
            rest = others;
        }
        for span in spans {
            if let Some(sequence) = self.sequences.open.get_mut(&span.seq) {
                sequence.length = span.start + span.tokens.len();
            }
        }
        self.logits_count = count;
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

    /// Takes rows through the model and writes the logits that are wanted behind the first `count`; the answer is how
    /// many there are then.
    fn pass(&self, rows: &[Row], logits: &mut Logits, count: usize) -> Computed<usize> {
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
        let caches: Vec<&[Cache]> = sequences.iter().map(|sequence| &sequence.caches[..]).collect();
        #[cfg(feature = "cuda")]
        if pieces.len() == rows.len() && rows.iter().all(|row| row.wanted) {
            let mut graphs = self.graphs.borrow_mut();
            if graphs.takes(rows.len()) {
                let tokens: Vec<u32> = rows.iter().map(|row| row.token).collect();
                return logits.take(&graphs.run(self, &pieces, &caches, &tokens)?, count);
            }
        }
        let numbers = |values: Vec<u32>| {
            let count = values.len();
            Tensor::from_vec(values, count, device)
        };
        let tokens = numbers(rows.iter().map(|row| row.token).collect())?;
        let mut x = scaled(weights.token.index_select(&tokens, 0)?.to_dtype(DType::F32)?, spec.embedding_scale)?;
        if let (Some(table), Position::Learned { offset, .. }) = (&weights.positions, &spec.position) {
            let positions = numbers(rows.iter().map(|row| (row.position + offset) as u32).collect())?;
            x = (x + table.index_select(&positions, 0)?)?;
        }
        let pass = Pass::new(spec, device, &self.rotations, &pieces, &caches)?;
        for (number, layer) in weights.layers.iter().enumerate() {
            x = pass.layer(number, layer, &x)?;
        }
        let wanted: Vec<u32> = (0..).zip(rows).filter(|(_, row)| row.wanted).map(|(i, _)| i).collect();
        if wanted.is_empty() {
            return Ok(count);
        }
        let x = weights.norm.forward(&x.index_select(&numbers(wanted)?, 0)?)?;
        // A cap makes three more tensors of them.
        let rows = x.dim(0)?;
        let at_once = if spec.logit_cap.is_some() { CAPPED_ROWS } else { rows };
        let mut count = count;
        for first in (0..rows).step_by(at_once) {
            let part = x.narrow(0, first, at_once.min(rows - first))?;
            count = logits.take(&capped(weights.head.forward(&part)?, spec.logit_cap)?, count)?;
        }
        Ok(count)
    }
}

/// The logits of a step, in the beginning of a buffer that is not cleared.
pub(crate) enum Logits {
    Plain(Vec<f32>),
    /// Those of a GPU.
    #[cfg(feature = "cuda")]
    Pinned(Pinned),
}

impl Default for Logits {
    fn default() -> Logits {
        Logits::Plain(Vec::new())
    }
}

impl Deref for Logits {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Logits::Plain(numbers) => numbers,
            #[cfg(feature = "cuda")]
            Logits::Pinned(numbers) => numbers,
        }
    }
}

impl Logits {
    /// Takes the numbers of a tensor behind the first `count`; the answer is how many there are then.
    fn take(&mut self, from: &Tensor, count: usize) -> Computed<usize> {
        let end = count + from.elem_count();
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = from.device() {
            if self.len() < end {
                let mut more = Pinned::new(device, end.next_power_of_two())?;
                more[..count].copy_from_slice(&self[..count]);
                *self = Logits::Pinned(more);
            }
            if let Logits::Pinned(numbers) = self {
                crate::kernels::copy(from, &mut numbers[count..end])?;
            }
            return Ok(end);
        }
        let numbers = from.flatten_all()?.to_vec1::<f32>()?;
        *self = match std::mem::take(self) {
            Logits::Plain(mut all) => {
                all.truncate(count);
                all.extend_from_slice(&numbers);
                Logits::Plain(all)
            }
            #[cfg(feature = "cuda")]
            other => other,
        };
        Ok(end)
    }
}

/// Whether all numbers are finite. Parts without a way out are checked several numbers at a time.
fn are_finite(numbers: &[f32]) -> bool {
    numbers.chunks(4096).all(|part| part.iter().fold(true, |all, number| all & number.is_finite()))
}
