//! Isolates the sequences that make a step fail.
//!
//! An executor commits nothing when a step fails, so the same rows can be retried in smaller batches. Sequences named
//! by the error are left out; otherwise the batch is halved until the failing one is alone. The others are not
//! affected.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::executor::{Executor, LogitRows, RowSpan, SeqId, StepError};

/// What a step says about a span.
#[derive(Debug, Clone, Copy)]
pub(super) enum SpanOutput<'a> {
    /// Rows of `vocab` values each, as far as it asked for them.
    Logits(&'a [f32]),
    /// The token that its executor drew.
    Token(u32),
}

impl<'a> SpanOutput<'a> {
    /// The logits that are left to read.
    pub(super) fn logits(self) -> &'a [f32] {
        match self {
            SpanOutput::Logits(logits) => logits,
            SpanOutput::Token(_) => &[],
        }
    }
}

/// The results of a step's spans.
pub(super) trait Outcome {
    /// Spans are computed: their indices in the order of the plan, and what the step says about them.
    fn computed(&mut self, spans: &[(usize, SpanOutput<'_>)]);
    /// Span `index` cannot be computed.
    fn failed(&mut self, index: usize, why: String);
}

/// Computes all spans that can be computed. Answers how many steps succeeded and how many failed.
pub(super) fn step(executor: &mut dyn Executor, spans: &[RowSpan<'_>], outcome: &mut dyn Outcome) -> (u64, u64) {
    let mut steps = (0, 0);
    let mut batches: Vec<Vec<usize>> = vec![(0..spans.len()).collect()];
    while let Some(batch) = batches.pop() {
        if batch.is_empty() {
            continue;
        }
        let rows: Vec<RowSpan<'_>> = batch.iter().map(|&index| spans[index]).collect();
        match attempt(executor, &rows) {
            Ok(()) => {
                steps.0 += 1;
                let vocab = executor.shape().vocab;
                let mut rest = executor.logits();
                let mut drawn = executor.drawn().iter();
                let mut computed = Vec::with_capacity(batch.len());
                for &index in &batch {
                    if let LogitRows::Drawn(_) = spans[index].logits
                        && let Some(Some(token)) = drawn.next()
                    {
                        computed.push((index, SpanOutput::Token(*token)));
                        continue;
                    }
                    match rest.split_at_checked(vocab * spans[index].count_wanted()) {
                        Some((own, others)) => {
                            rest = others;
                            computed.push((index, SpanOutput::Logits(own)));
                        }
                        None => outcome.failed(index, "the step returned too few logits".to_owned()),
                    }
                }
                outcome.computed(&computed);
            }
            Err(failed) => {
                steps.1 += 1;
                let guilty = failed.guilty.and_then(|seq| batch.iter().position(|&index| spans[index].seq == seq));
                match (guilty, batch.as_slice()) {
                    (_, &[only]) => outcome.failed(only, failed.why),
                    (Some(culprit), _) => {
                        outcome.failed(batch[culprit], failed.why);
                        batches.push(batch.iter().copied().filter(|&index| index != batch[culprit]).collect());
                    }
                    (None, _) => {
                        let (first, second) = batch.split_at(batch.len() / 2);
                        // The last pushed is processed first: this keeps the order of the plan.
                        batches.push(second.to_vec());
                        batches.push(first.to_vec());
                    }
                }
            }
        }
    }
    steps
}

struct Failed {
    guilty: Option<SeqId>,
    why: String,
}

fn attempt(executor: &mut dyn Executor, rows: &[RowSpan<'_>]) -> Result<(), Failed> {
    match catch_unwind(AssertUnwindSafe(|| executor.step(rows))) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            let guilty = match error {
                StepError::NotThere(seq, _) | StepError::NotFinite(seq) | StepError::UnknownToken(seq, _) => Some(seq),
                StepError::NoRoom | StepError::Device(_) => None,
            };
            Err(Failed { guilty, why: error.to_string() })
        }
        Err(panic) => Err(Failed { guilty: None, why: format!("panic: {}", message(&*panic)) }),
    }
}

/// The message of a panic.
pub(super) fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}
