//! Reads the logits of a step, on several threads where one would hold up the next step.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::isolate::SpanOutput;
use super::run::{LogitResult, Reader};
use crate::sample::Scratch;

/// From this number of logits on, several threads read them. One reads about a thousand in a microsecond, and starting
/// another takes it about twenty.
const MANY_LOGITS: usize = 1 << 20;
/// More threads wait for memory, not for each other.
const MOST_READERS: usize = 8;
/// Choosing a token takes less with a model of 150,000 tokens. What takes longer, such as sorting most of them, is charged
/// to the tenant and takes turns, as the masks of guides do.
const ORDINARY_CHOICE: Duration = Duration::from_millis(1);

/// The threads that may read the logits of one step, the caller's first.
pub(super) struct Readers {
    scratch: Vec<Scratch>,
    /// See [`MANY_LOGITS`].
    many: usize,
}

/// What a step says about one part.
#[derive(Clone, Copy)]
pub(super) struct Unread<'a> {
    /// The part.
    pub(super) index: usize,
    pub(super) reader: Reader<'a>,
    /// The tokens of the last rows, which may be wrong.
    pub(super) guesses: &'a [u32],
    /// What the step says: of logits, rows of `vocab` values each.
    pub(super) output: SpanOutput<'a>,
}

/// What a run reads from its logits.
pub(super) struct Gathered {
    pub(super) index: usize,
    pub(super) fruit: Result<LogitResult, String>,
    /// How much longer than [`ORDINARY_CHOICE`] it took.
    pub(super) slow: Duration,
}

fn slow_of(gathered: &[Gathered]) -> Duration {
    gathered.iter().map(|part| part.slow).sum()
}

impl Readers {
    /// At most this number of threads; 0 for all cores.
    pub(super) fn of(threads: usize) -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let threads = if threads == 0 { cores } else { threads.min(cores) };
        Readers::new(threads.min(MOST_READERS), MANY_LOGITS)
    }

    pub(super) fn new(threads: usize, many: usize) -> Self {
        Readers { scratch: (0..threads.max(1)).map(|_| Scratch::default()).collect(), many }
    }

    /// Reads all parts. The answers are the same, and in the same order, for any number of threads. The time is what slow
    /// choices added: that of the thread with most of them.
    pub(super) fn read(
        &mut self,
        parts: &[Unread<'_>],
        vocab: usize,
        clock: &dyn Fn() -> Instant,
    ) -> (Vec<Gathered>, Duration) {
        let logits: usize = parts.iter().map(|part| part.output.logits().len()).sum();
        let threads = if logits < self.many { 1 } else { self.scratch.len().min(parts.len()) };
        let Some((own, others)) = self.scratch.split_first_mut().filter(|_| threads > 1) else {
            let scratch = &mut self.scratch[0];
            let gathered: Vec<Gathered> = parts.iter().map(|part| part.read(vocab, scratch, clock)).collect();
            let slow = slow_of(&gathered);
            return (gathered, slow);
        };
        // Parts may differ in their rows and in what their sampling takes.
        let next = AtomicUsize::new(0);
        let take = || parts.get(next.fetch_add(1, Ordering::Relaxed));
        // The scheduler's clock belongs to its thread.
        let read = |scratch: &mut Scratch| -> Vec<Gathered> {
            std::iter::from_fn(take).map(|part| part.read(vocab, scratch, &Instant::now)).collect()
        };
        let read = &read;
        let (mut gathered, slow) = thread::scope(|scope| {
            let start = |scratch| {
                let thread = thread::Builder::new().name("logits".to_owned());
                // Without another thread, those that are there read more.
                thread.spawn_scoped(scope, move || read(scratch)).ok()
            };
            let started: Vec<_> = others.iter_mut().take(threads - 1).filter_map(start).collect();
            let mut gathered = read(own);
            let mut slow = slow_of(&gathered);
            for thread in started {
                match thread.join() {
                    Ok(more) => {
                        slow = slow.max(slow_of(&more));
                        gathered.extend(more);
                    }
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            (gathered, slow)
        });
        gathered.sort_by_key(|part| part.index);
        (gathered, slow)
    }
}

impl Unread<'_> {
    fn read(&self, vocab: usize, scratch: &mut Scratch, clock: &dyn Fn() -> Instant) -> Gathered {
        let begin = clock();
        let fruit = self.reader.read(self.guesses, self.output, vocab, scratch).map_err(|error| error.to_string());
        let slow = clock().saturating_duration_since(begin).saturating_sub(ORDINARY_CHOICE);
        Gathered { index: self.index, fruit, slow }
    }
}
