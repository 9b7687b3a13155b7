//! One step of a model: a ragged batch of rows in, logits out.
//!
//! Three executors share this trait: `cpu` (our kernels), the crate `textnlp-candle` (more families, other devices) and a
//! scripted one for the scheduler's tests. An executor owns the keys and values of the sequences it has open.

use crate::sample::Draw;

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
    pub logits: LogitRows<'a>,
}

impl RowSpan<'_> {
    /// Whether logits are wanted for a row.
    pub fn wants(&self, row: usize) -> bool {
        match self.logits {
            LogitRows::None => false,
            LogitRows::Last | LogitRows::Drawn(_) => row + 1 == self.tokens.len(),
            LogitRows::All => row < self.tokens.len(),
        }
    }

    /// For how many rows logits are wanted.
    pub fn count_wanted(&self) -> usize {
        match self.logits {
            LogitRows::None => 0,
            LogitRows::Last | LogitRows::Drawn(_) => 1,
            LogitRows::All => self.tokens.len(),
        }
    }
}

/// For which rows of a span logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LogitRows<'a> {
    /// None: a part of a prompt.
    None,
    /// The last row: the end of a prompt, or one decoded token.
    Last,
    /// The last row, of which only the token is wanted that is drawn from it; of executors whose [`Executor::draws`]
    /// says so.
    Drawn(Draw<'a>),
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
    /// The device failed, with its own message.
    #[error("the device failed: {0}")]
    Device(String),
}

/// What callers of an executor know about its model, whatever its layers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// `gpt2`, `llama`, `mixtral`, …
    pub family: String,
    /// Number of layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Number of tokens known.
    pub vocab: usize,
    /// The longest sequence in tokens.
    pub context: usize,
}

/// Default limit for keys and values when the number of positions is not configured, in bytes of the machine's memory.
pub const USUAL_KV_BYTES: usize = 512 << 20;
/// Default limit in full contexts.
const USUAL_CONTEXTS: usize = 32;

/// The longest requests for which room is reserved, in positions; less for short contexts.
const RESERVE: usize = 2048;

/// Positions for tenants that hold no others: a quarter of a context, at most 2,048. Otherwise long requests of one tenant
/// would keep all others waiting until they end.
pub fn reserve(context: usize) -> usize {
    (context / 4).min(RESERVE)
}

/// Positions of all open sequences together, unless something else is configured: as many blocks as fit in `limit` bytes, at
/// least one context and its [`reserve`], at most 32 contexts. A block has `positions` positions, whose keys and values take
/// `bytes`.
pub fn usual_positions(context: usize, positions: usize, bytes: usize, limit: usize) -> usize {
    let fitting = (limit / bytes.max(1)).saturating_mul(positions);
    fitting.clamp(context.saturating_add(reserve(context)), context.saturating_mul(USUAL_CONTEXTS))
}

/// The longest sequence: what is requested, at most the model's own. A request for more is noted.
pub fn limit_context(own: usize, requested: Option<usize>, notes: &mut Vec<String>) -> usize {
    let Some(requested) = requested else { return own };
    if requested > own {
        notes.push(format!("a context of {requested} was requested, but the model's is {own}, which is used"));
    }
    requested.clamp(1, own)
}

/// Room for keys and values, in positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positions {
    /// All.
    pub total: usize,
    /// Those that a sequence could be opened with now.
    pub free: usize,
}

/// Runs steps of one model.
pub trait Executor: Send {
    /// The model's shape.
    fn shape(&self) -> &Shape;

    /// Positions that all open sequences can have together, and those that are free; `None` if nothing limits them.
    fn positions(&self) -> Option<Positions> {
        None
    }

    /// The most sequences of a step that it is made for, unless it is the engine's usual number.
    fn most_sequences(&self) -> Option<usize> {
        None
    }

    /// Allocates a sequence of at most `positions` tokens; `None` when there is no memory now.
    fn open(&mut self, positions: usize) -> Option<SeqId>;

    /// Releases the memory of a sequence.
    fn close(&mut self, seq: SeqId);

    /// In which unit sequences can have rows in common, in rows. `None` if they cannot: [`Executor::fork`] and
    /// [`Executor::retain`] are not called then. One that can computes the same bits for a row however its sequence was
    /// cut into steps.
    fn share_unit(&self) -> Option<usize> {
        None
    }

    /// Opens a sequence of at most `positions` tokens that begins with the first `rows` rows of another one, which is
    /// open or retained. `rows` is a multiple of the unit. `None` when `from` is gone, or when there is no memory now.
    /// Rows that two sequences have are not rewound: a step that starts within them fails.
    fn fork(&mut self, _from: SeqId, _rows: usize, _positions: usize) -> Option<SeqId> {
        None
    }

    /// Closes a sequence but keeps its first `rows` rows, in whole units, until an open sequence needs their memory; what
    /// was used longest ago goes first. The answer is how many rows are kept; at 0 the sequence is closed.
    fn retain(&mut self, seq: SeqId, _rows: usize) -> usize {
        self.close(seq);
        0
    }

    /// Whether the rows of a retained sequence are still there.
    fn is_retained(&self, _seq: SeqId) -> bool {
        false
    }

    /// Computes one step. On success the sequences hold the spans' keys and values. A sequence may be rewound by a span
    /// that starts before its end.
    fn step(&mut self, rows: &[RowSpan<'_>]) -> Result<(), StepError>;

    /// Logits of the last step: one slice of `vocab` values for each row that asked, in the order of the spans, without
    /// the rows whose tokens were drawn.
    fn logits(&self) -> &[f32];

    /// Whether it draws tokens so on its device, and spans may ask for [`LogitRows::Drawn`]: the token is that of
    /// [`Draw::token`] for the logits.
    fn draws(&self, _draw: &Draw<'_>) -> bool {
        false
    }

    /// For each span of the last step that asked for it, the token that was drawn; `None` where [`Executor::logits`] has
    /// the row instead, because a filter keeps more tokens than the device sorts.
    fn drawn(&self) -> &[Option<u32>] {
        &[]
    }

    /// Why its device computes nothing more in this process, so that only a restart helps; `None` after an error of one step.
    fn fault(&self) -> Option<String> {
        None
    }

    /// Bytes held.
    fn memory(&self) -> Memory;
}

/// Bytes that an executor holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// For weights.
    pub weights: u64,
    /// For keys and values.
    pub kv: u64,
    /// What of `kv` open sequences have allocated; 0 where all of it is allocated with the model.
    pub kv_on_demand: u64,
    /// For activations, scores and logits: grows with the longest sequence and the most sequences of a step.
    pub workspace: u64,
}
