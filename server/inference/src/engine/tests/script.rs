//! An executor whose logits are a hash of the tokens before: a model for tests that check who computes what when.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::executor::{Executor, LogitRows, Memory, Positions, RowSpan, SeqId, Shape, StepError};
use crate::sample::Draw;

pub(super) const VOCAB: usize = 304;
pub(super) const END: u32 = 256;

/// Tokens that break a step in the four ways that there are; they are never generated.
pub(super) const PANICS: u32 = 300;
pub(super) const NAMES_ITSELF: u32 = 301;
pub(super) const BREAKS_LOGITS: u32 = 302;
pub(super) const FAILS_NAMELESS: u32 = 303;

/// What a test sees of a script that the engine owns, and how it meddles.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Moved on by each step.
    pub(super) time: Option<Arc<Mutex<Instant>>>,
    pub(super) open: usize,
    pub(super) reserved: usize,
    /// Positions of retained sequences.
    pub(super) retained: usize,
    pub(super) steps: usize,
    pub(super) rows: usize,
    pub(super) logit_rows: usize,
    /// Tokens that the script drew itself.
    pub(super) drawn: usize,
    /// Rows of the last step by sequence, and where they began.
    pub(super) last: Vec<(SeqId, usize, usize)>,
    /// So many steps with company fail without naming anybody.
    pub(super) flaky: usize,
    /// Each step with a draft fails.
    pub(super) breaks_drafts: bool,
    /// So many times there is no room.
    pub(super) full: usize,
    /// Why each further step fails.
    pub(super) fault: Option<&'static str>,
}

pub(super) struct Script {
    pub(super) context: usize,
    /// Positions that all open sequences may reserve together.
    pub(super) capacity: usize,
    /// Whether callers can know that.
    pub(super) is_limited: bool,
    /// In which unit sequences can begin with rows of others.
    pub(super) unit: Option<usize>,
    /// Whether it draws tokens, but for every third one.
    pub(super) draws: bool,
    /// How many of the last tokens the next one depends on: with few of them texts repeat.
    pub(super) window: usize,
    pub(super) step_cost: Duration,
    pub(super) row_cost: Duration,
    pub(super) watch: Arc<Mutex<Watch>>,
    pub(super) state: State,
}

#[derive(Default)]
pub(super) struct State {
    shape: OnceLock<Shape>,
    sequences: HashMap<SeqId, (usize, Vec<u32>)>,
    /// Least recently used first.
    retained: Vec<(SeqId, Vec<u32>)>,
    logits: Vec<f32>,
    drawn: Vec<Option<u32>>,
    next: u32,
}

impl Default for Script {
    fn default() -> Self {
        Script {
            context: 1024,
            capacity: 1 << 20,
            is_limited: false,
            unit: None,
            draws: false,
            window: usize::MAX,
            step_cost: Duration::from_millis(1),
            row_cost: Duration::from_micros(250),
            watch: Arc::default(),
            state: State::default(),
        }
    }
}

/// The last `count` tokens.
pub(super) fn last(tokens: &[u32], count: usize) -> &[u32] {
    &tokens[tokens.len().saturating_sub(count)..]
}

/// Logits after `tokens`: the bytes and the end token are all possible, the rest is not.
pub(super) fn logits_of(tokens: &[u32]) -> Vec<f32> {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for &token in tokens {
        hash = (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3);
        hash ^= hash >> 29;
    }
    let logit = |id: usize| {
        let mixed = (hash ^ id as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed >> 40) as f32 / (1u64 << 24) as f32 * 8.0
    };
    (0..VOCAB).map(|id| if id <= END as usize { logit(id) } else { -60.0 }).collect()
}

impl Script {
    fn begin(&mut self, positions: usize, tokens: Vec<u32>) -> Option<SeqId> {
        let mut watch = self.watch.lock().unwrap();
        if positions > self.context || watch.reserved + positions > self.capacity {
            return None;
        }
        while watch.reserved + watch.retained + positions > self.capacity {
            watch.retained -= self.state.retained.remove(0).1.len();
        }
        watch.reserved += positions;
        watch.open += 1;
        self.state.next += 1;
        let seq = SeqId(self.state.next);
        self.state.sequences.insert(seq, (positions, tokens));
        Some(seq)
    }
}

impl Executor for Script {
    fn shape(&self) -> &Shape {
        self.state.shape.get_or_init(|| Shape {
            family: "script".to_owned(),
            layers: 1,
            width: 1,
            heads: 1,
            vocab: VOCAB,
            context: self.context,
        })
    }

    fn positions(&self) -> Option<Positions> {
        let reserved = self.watch.lock().unwrap().reserved;
        self.is_limited.then_some(Positions { total: self.capacity, free: self.capacity - reserved })
    }

    fn open(&mut self, positions: usize) -> Option<SeqId> {
        {
            let mut watch = self.watch.lock().unwrap();
            if watch.full > 0 {
                watch.full -= 1;
                return None;
            }
        }
        self.begin(positions, Vec::new())
    }

    fn close(&mut self, seq: SeqId) {
        let mut watch = self.watch.lock().unwrap();
        if let Some(index) = self.state.retained.iter().position(|(retained, _)| *retained == seq) {
            watch.retained -= self.state.retained.remove(index).1.len();
            return;
        }
        let (positions, _) = self.state.sequences.remove(&seq).expect("closed what was open");
        watch.open -= 1;
        watch.reserved -= positions;
    }

    fn share_unit(&self) -> Option<usize> {
        self.unit
    }

    fn fork(&mut self, from: SeqId, rows: usize, positions: usize) -> Option<SeqId> {
        assert!(rows > 0 && rows.is_multiple_of(self.unit.expect("only one that shares is asked")));
        let tokens = match self.state.retained.iter().position(|(retained, _)| *retained == from) {
            Some(index) => {
                self.state.retained[index..].rotate_left(1);
                self.state.retained.last()?.1[..rows].to_vec()
            }
            None => self.state.sequences.get(&from)?.1[..rows].to_vec(),
        };
        self.begin(positions, tokens)
    }

    fn retain(&mut self, seq: SeqId, rows: usize) -> usize {
        let unit = self.unit.expect("only one that shares is asked");
        let (_, mut tokens) = self.state.sequences.get(&seq).cloned().expect("retained what was open");
        assert!(rows <= tokens.len());
        tokens.truncate(rows / unit * unit);
        self.close(seq);
        let rows = tokens.len();
        if rows > 0 {
            self.watch.lock().unwrap().retained += rows;
            self.state.retained.push((seq, tokens));
        }
        rows
    }

    fn is_retained(&self, seq: SeqId) -> bool {
        self.state.retained.iter().any(|(retained, _)| *retained == seq)
    }

    fn step(&mut self, rows: &[RowSpan<'_>]) -> Result<(), StepError> {
        let mut watch = self.watch.lock().unwrap();
        assert!(!rows.is_empty() && rows.iter().all(|span| !span.tokens.is_empty()), "an empty step");
        let count: usize = rows.iter().map(|span| span.tokens.len()).sum();
        if let Some(time) = &watch.time {
            *time.lock().unwrap() += self.step_cost + self.row_cost * count as u32;
        }
        if let Some(fault) = watch.fault {
            return Err(StepError::Device(fault.to_owned()));
        }
        if rows.len() > 1 && watch.flaky > 0 {
            watch.flaky -= 1;
            return Err(StepError::NoRoom);
        }
        for span in rows {
            let (positions, tokens) =
                self.state.sequences.get(&span.seq).ok_or(StepError::NotThere(span.seq, span.start))?;
            assert!(span.start + span.tokens.len() <= *positions, "more rows than reserved");
            if span.start > tokens.len() {
                return Err(StepError::NotThere(span.seq, span.start));
            }
            if span.tokens.contains(&NAMES_ITSELF) || (watch.breaks_drafts && span.logits == LogitRows::All) {
                return Err(StepError::NotFinite(span.seq));
            }
            if span.tokens.contains(&FAILS_NAMELESS) {
                return Err(StepError::NoRoom);
            }
            if span.tokens.contains(&PANICS) {
                drop(watch);
                panic!("the kernel broke");
            }
        }
        self.state.logits.clear();
        self.state.drawn.clear();
        watch.steps += 1;
        watch.rows += count;
        watch.last = rows.iter().map(|span| (span.seq, span.start, span.tokens.len())).collect();
        for span in rows {
            let (_, tokens) = self.state.sequences.get_mut(&span.seq).expect("looked up above");
            tokens.truncate(span.start);
            for (index, &token) in span.tokens.iter().enumerate() {
                tokens.push(token);
                if span.wants(index) {
                    watch.logit_rows += 1;
                    let mut logits = logits_of(last(tokens, self.window));
                    if tokens.contains(&BREAKS_LOGITS) {
                        logits[3] = f32::NAN;
                    }
                    if let LogitRows::Drawn(draw) = span.logits {
                        assert!(self.draws, "only one that draws is asked");
                        let token = draw.token(&logits).map_err(|_| StepError::NotFinite(span.seq))?;
                        let drawn = Some(token).filter(|token| token % 3 > 0);
                        self.state.drawn.push(drawn);
                        if drawn.is_some() {
                            watch.drawn += 1;
                            continue;
                        }
                    }
                    self.state.logits.extend(logits);
                }
            }
        }
        Ok(())
    }

    fn logits(&self) -> &[f32] {
        &self.state.logits
    }

    fn draws(&self, _draw: &Draw<'_>) -> bool {
        self.draws
    }

    fn drawn(&self) -> &[Option<u32>] {
        &self.state.drawn
    }

    fn fault(&self) -> Option<String> {
        self.watch.lock().unwrap().fault.map(str::to_owned)
    }

    fn memory(&self) -> Memory {
        Memory { weights: 1, kv: 1, kv_on_demand: self.watch.lock().unwrap().reserved as u64, workspace: 1 }
    }
}

/// Whether the engine has dropped the model.
pub(super) fn is_gone(watch: &Arc<Mutex<Watch>>) -> bool {
    Arc::strong_count(watch) == 1
}
