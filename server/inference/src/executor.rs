//! One step of a model: a ragged batch of rows in, logits out.
//!
//! Three executors share this trait: `cpu` (serving, our kernels), the training crate's (candle, f32) and a scripted one for
//! the scheduler's tests. An executor owns the keys and values of the sequences it has open.

use crate::family::Architecture;

/// A sequence that an executor holds keys and values for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u32);

/// A run of consecutive tokens of one sequence within a step.
#[derive(Debug, Clone, Copy)]
pub struct RowSpan<'a> {
    /// Which sequence.
    pub seq: SeqId,
    /// The position of the first token; everything before it was computed in earlier steps.
    pub start: usize,
    /// The tokens.
    pub tokens: &'a [u32],
    /// For which of the rows logits are wanted.
    pub logits: LogitRows,
}

/// For which rows of a span logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitRows {
    /// None: a part of a prompt.
    None,
    /// The last row: the end of a prompt, or one decoded token.
    Last,
    /// Every row: perplexity.
    All,
}

/// Why a step failed. Nothing was committed: the same rows can be retried.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The sequence is not open, or the rows do not follow what it holds.
    #[error("sequence {0:?} does not continue at position {1}")]
    NotThere(SeqId, usize),
    /// A token that the vocabulary does not have.
    #[error("token {1} of sequence {0:?} is not in the vocabulary")]
    UnknownToken(SeqId, u32),
    /// No room for more keys and values.
    #[error("no room for more keys and values")]
    NoRoom,
    /// The numbers are not finite: a broken model.
    #[error("logits of sequence {0:?} are not finite")]
    NotFinite(SeqId),
}

/// Runs steps of one model.
pub trait Executor: Send {
    /// The model's shape.
    fn architecture(&self) -> &Architecture;

    /// Allocates a sequence of at most `positions` tokens; `None` when there is no memory now.
    fn open(&mut self, positions: usize) -> Option<SeqId>;

    /// Releases the memory of a sequence.
    fn close(&mut self, seq: SeqId);

    /// Computes one step. On success the sequences hold the spans' keys and values. A sequence may be rewound by a span
    /// that starts before its end.
    fn step(&mut self, rows: &[RowSpan<'_>]) -> Result<(), StepError>;

    /// Logits of the last step: one slice of `vocab` values for each row that asked, in the order of the spans.
    fn logits(&self) -> &[f32];

    /// Bytes held for weights and for keys and values.
    fn memory(&self) -> Memory;
}

/// Bytes that an executor holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// For weights.
    pub weights: u64,
    /// For keys and values.
    pub kv: u64,
}
