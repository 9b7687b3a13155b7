//! Steps: which rows go through the model together, and the sequences that they continue.

use crate::Candle;
#[cfg(feature = "cuda")]
use crate::kernels::{Drawing, Pinned};
use crate::layer::{Cache, Pass, Piece, Stream, capped, scaled};
use candle_core::{DType, Device, Result as Computed, Tensor};
use std::collections::HashMap;
use std::ops::Deref;
use textnlp_inference::decoder::{Position, Spec};
use textnlp_inference::executor::{LogitRows, RowSpan, SeqId, StepError};
use textnlp_inference::sample::{Draw, NotFinite};

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
struct Row<'a> {
    seq: SeqId,
    position: usize,
    token: u32,
    wanted: Wanted<'a>,
}

/// What is wanted of a row.
#[derive(Clone, Copy, PartialEq)]
enum Wanted<'a> {
    Nothing,
    Logits,
    /// The token that is drawn from its logits.
    Token(Draw<'a>),
}

impl<'a> Wanted<'a> {
    fn of(span: &RowSpan<'a>, row: usize) -> Wanted<'a> {
        match span.logits {
            _ if !span.wants(row) => Wanted::Nothing,
            LogitRows::Drawn(draw) => Wanted::Token(draw),
            LogitRows::None | LogitRows::Last | LogitRows::All => Wanted::Logits,
        }
    }
}

/// What a step says.
#[derive(Default)]
pub(crate) struct Answers {
    logits: Logits,
    /// The count of logits.
    count: usize,
    /// Of each row whose token is wanted; `None` where the logits have the row.
    drawn: Vec<Option<u32>>,
    /// Whose logits are not finite, of the rows whose tokens were drawn.
    broken: Option<SeqId>,
}

impl Answers {
    pub(crate) fn logits(&self) -> &[f32] {
        self.logits.get(..self.count).unwrap_or_default()
    }

    pub(crate) fn drawn(&self) -> &[Option<u32>] {
        &self.drawn
    }

    /// Bytes of the buffer of logits.
    pub(crate) fn room(&self) -> u64 {
        size_of_val(&self.logits[..]) as u64
    }

    fn clear(&mut self) {
        (self.count, self.broken) = (0, None);
        self.drawn.clear();
    }

    /// Takes what is wanted of rows whose logits, rows × vocabulary, are on the device, which drew these tokens.
    fn take(&mut self, logits: &Tensor, rows: &[&Row<'_>], drawn: &[DrawnRow]) -> Computed<()> {
        let of_row = |index: usize| drawn.get(index).copied().flatten();
        for (index, row) in rows.iter().enumerate() {
            match (row.wanted, of_row(index)) {
                (Wanted::Nothing | Wanted::Logits, _) => {}
                (Wanted::Token(_), Some(Err(NotFinite))) => self.broken = self.broken.or(Some(row.seq)),
                (Wanted::Token(_), token) => self.drawn.push(token.and_then(Result::ok)),
            }
        }
        let read: Vec<usize> = (0..rows.len()).filter(|index| of_row(*index).is_none()).collect();
        for run in read.chunk_by(|a, b| a + 1 == *b) {
            self.count = self.logits.take(&logits.narrow(0, run[0], run.len())?, self.count)?;
        }
        Ok(())
    }
}

/// The token that the device drew from a row, if it did.
pub(crate) type DrawnRow = Option<Result<u32, NotFinite>>;

impl Candle {
    /// Computes one step; see [`textnlp_inference::executor::Executor::step`].
    pub(crate) fn run(&mut self, spans: &[RowSpan<'_>]) -> Result<(), StepError> {
        let mut answers = std::mem::take(&mut self.answers);
        answers.clear();
        let computed = self.compute(spans, &mut answers);
        if computed.is_err() {
            answers.clear();
        }
        self.answers = answers;
        computed?;
        for span in spans {
            if let Some(sequence) = self.sequences.open.get_mut(&span.seq) {
                sequence.length = span.start + span.tokens.len();
            }
        }
        Ok(())
    }

    fn compute(&self, spans: &[RowSpan<'_>], answers: &mut Answers) -> Result<(), StepError> {
        self.check(spans)?;
        let mut rows = Vec::new();
        for span in spans {
            for (i, token) in span.tokens.iter().enumerate() {
                rows.push(Row { seq: span.seq, position: span.start + i, token: *token, wanted: Wanted::of(span, i) });
            }
        }
        let passed = rows.chunks(MOST_ROWS).try_for_each(|rows| self.pass(rows, answers));
        passed.map_err(|error| StepError::Device(error.to_string()))?;
        if let Some(seq) = answers.broken {
            return Err(StepError::NotFinite(seq));
        }
        let (mut rest, mut drawn) = (answers.logits(), answers.drawn().iter());
        for span in spans {
            let is_drawn = matches!(span.logits, LogitRows::Drawn(_)) && drawn.next().is_some_and(Option::is_some);
            let rows = if is_drawn { 0 } else { span.count_wanted() };
            let (own, others) = rest.split_at(rows * self.spec.shape.vocab);
            if !are_finite(own) {
                return Err(StepError::NotFinite(span.seq));
            }
            rest = others;
        }
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

    /// Takes rows through the model, and what is wanted of them into the answers.
    fn pass(&self, rows: &[Row<'_>], answers: &mut Answers) -> Computed<()> {
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
        let wanted: Vec<&Row<'_>> = rows.iter().filter(|row| row.wanted != Wanted::Nothing).collect();
        #[cfg(feature = "cuda")]
        if pieces.len() == rows.len() && wanted.len() == rows.len() {
            let mut graphs = self.graphs.borrow_mut();
            if graphs.takes(rows.len()) {
                let tokens: Vec<u32> = rows.iter().map(|row| row.token).collect();
                let (logits, drawn) = graphs.run(self, &pieces, &caches, &tokens, &draws_of(&wanted))?;
                return answers.take(&logits, &wanted, &drawn);
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
        let mut stream = Stream::from(x);
        for (number, layer) in weights.layers.iter().enumerate() {
            stream = pass.layer(number, layer, stream)?;
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let places = (0..).zip(rows).filter(|(_, row)| row.wanted != Wanted::Nothing).map(|(i, _)| i).collect();
        let x = weights.norm.forward(&pass.sum(stream)?.index_select(&numbers(places)?, 0)?)?;
        // A cap makes three more tensors of them.
        let at_once = if spec.logit_cap.is_some() { CAPPED_ROWS } else { wanted.len() };
        let mut first = 0;
        for part in wanted.chunks(at_once) {
            let rows = x.narrow(0, first, part.len())?;
            let logits = capped(weights.head.forward(&rows)?, spec.logit_cap)?;
            answers.take(&logits, part, &self.draw(&logits, part)?)?;
            first += part.len();
        }
        Ok(())
    }

    /// Draws the tokens of rows that want them from their logits on a GPU.
    #[cfg(feature = "cuda")]
    fn draw(&self, logits: &Tensor, rows: &[&Row<'_>]) -> Computed<Vec<DrawnRow>> {
        let draws = draws_of(rows);
        if !logits.device().is_cuda() || draws.iter().all(Option::is_none) {
            return Ok(Vec::new());
        }
        let changed = draws.iter().flatten().map(|draw| draw.penalties.changed.len()).sum();
        let drawing = Drawing::new(rows.len(), self.spec.shape.vocab, changed, logits.device())?;
        drawing.set(&draws)?;
        drawing.launch(logits, rows.len())?;
        drawing.drawn(rows.len())
    }

    /// The processor chooses all tokens.
    #[cfg(not(feature = "cuda"))]
    fn draw(&self, _logits: &Tensor, _rows: &[&Row<'_>]) -> Computed<Vec<DrawnRow>> {
        Ok(Vec::new())
    }
}

#[cfg(feature = "cuda")]
fn draws_of<'a>(rows: &[&Row<'a>]) -> Vec<Option<Draw<'a>>> {
    let draw = |row: &&Row<'a>| match row.wanted {
        Wanted::Token(draw) => Some(draw),
        Wanted::Nothing | Wanted::Logits => None,
    };
    rows.iter().map(draw).collect()
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
