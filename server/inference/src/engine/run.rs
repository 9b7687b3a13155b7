//! One accepted request: a cursor over its tokens, from the prompt's first row to its only terminal event.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::handle::{Score, Scored};
use super::outlet::{Flow, Outlet};
use super::plan::Candidate;
use super::request::{Done, Event, Failure, Finish, Request, Sink, Token};
use crate::executor::{LogitRows, SeqId};
use crate::sample::{self, NotFinite, SampledToken, Sampler, Scratch};
use crate::text::{Stream, Tokenizer};

/// The callback of a score request.
pub(super) type Then = Box<dyn FnOnce(Result<Scored, Failure>) + Send>;

pub(super) struct Run {
    /// In the order of arrival.
    pub(super) id: u64,
    pub(super) tenant: Arc<str>,
    /// Prompt and answer.
    pub(super) tokens: Vec<u32>,
    prompt: usize,
    /// Rows whose keys and values the executor holds.
    pub(super) computed: usize,
    /// Rows charged to the tenant: rows computed again after a preemption are free.
    pub(super) charged: usize,
    pub(super) seq: Option<SeqId>,
    /// Still holds a place in the queue.
    pub(super) queued: bool,
    /// Since when it does not fit into memory although nothing else runs.
    pub(super) homeless_since: Option<Instant>,
    pub(super) deadline: Option<Instant>,
    cancelled: Arc<AtomicBool>,
    arrived: Instant,
    pub(super) started: Option<Instant>,
    work: Work,
}

enum Work {
    Answer(Box<Answer>),
    Score(Scoring),
}

struct Answer {
    outlet: Outlet,
    sampler: Sampler,
    stream: Stream,
    max_tokens: usize,
    ignore_end: bool,
    logprobs: Option<u8>,
    generated: usize,
    first_token: Option<Instant>,
}

struct Scoring {
    then: Then,
    logprobs: Vec<f32>,
}

/// How a run ends.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum End {
    Finish(Finish),
    Fail(Failure),
    /// The client is gone.
    Gone,
}

/// The result of a run's logits.
pub(super) enum LogitResult {
    /// No logits were wanted.
    Nothing,
    Choice(SampledToken),
    Logprobs(Vec<f32>),
}

impl Run {
    pub(super) fn answer(
        request: Request,
        sink: Box<dyn Sink>,
        tenant: Arc<str>,
        cancelled: Arc<AtomicBool>,
        now: Instant,
    ) -> Run {
        let work = Work::Answer(Box::new(Answer {
            outlet: Outlet::new(sink, now),
            sampler: Sampler::new(request.sampling, &request.prompt),
            stream: Stream::new(&request.stop),
            max_tokens: request.max_tokens,
            ignore_end: request.ignore_end,
            logprobs: request.logprobs,
            generated: 0,
            first_token: None,
        }));
        Run::new(request.prompt, tenant, request.deadline, cancelled, now, work)
    }

    pub(super) fn score(score: Score, then: Then, tenant: Arc<str>, cancelled: Arc<AtomicBool>, now: Instant) -> Run {
        let work = Work::Score(Scoring { then, logprobs: Vec::with_capacity(score.tokens.len()) });
        Run::new(score.tokens, tenant, score.deadline, cancelled, now, work)
    }

    fn new(
        tokens: Vec<u32>,
        tenant: Arc<str>,
        deadline: Option<Instant>,
        cancelled: Arc<AtomicBool>,
        now: Instant,
        work: Work,
    ) -> Run {
        Run {
            id: 0,
            tenant,
            prompt: tokens.len(),
            tokens,
            computed: 0,
            charged: 0,
            seq: None,
            queued: true,
            homeless_since: None,
            deadline,
            cancelled,
            arrived: now,
            started: None,
            work,
        }
    }

    /// Whether nothing is left to compute.
    pub(super) fn is_complete(&self) -> bool {
        match &self.work {
            Work::Answer(answer) => answer.max_tokens == 0,
            Work::Score(_) => self.known() == 0,
        }
    }

    /// The most rows it will ever have.
    pub(super) fn positions(&self, context: usize) -> usize {
        match &self.work {
            Work::Answer(answer) => (self.prompt.saturating_add(answer.max_tokens)).min(context).max(self.prompt),
            Work::Score(_) => self.known(),
        }
    }

    /// Rows that can be computed. A score has no use for the last token's.
    pub(super) fn known(&self) -> usize {
        match self.work {
            Work::Answer(_) => self.tokens.len(),
            Work::Score(_) => self.tokens.len().saturating_sub(1),
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        matches!(&self.work, Work::Answer(answer) if answer.outlet.flow() == Flow::Paused)
    }

    pub(super) fn paused_since(&self) -> Option<Instant> {
        match &self.work {
            Work::Answer(answer) => answer.outlet.paused_since(),
            Work::Score(_) => None,
        }
    }

    pub(super) fn candidate(&self, tenant: usize) -> Candidate {
        let scores = matches!(self.work, Work::Score(_));
        Candidate { tenant, age: self.id, computed: self.computed, known: self.known(), scores }
    }

    /// For which of the next `rows` logits are wanted.
    pub(super) fn logits(&self, start: usize, rows: usize) -> LogitRows {
        match self.work {
            Work::Score(_) => LogitRows::All,
            Work::Answer(_) if start + rows == self.known() => LogitRows::Last,
            Work::Answer(_) => LogitRows::None,
        }
    }

    /// The counts of uncharged rows from `start` in the prompt and in the answer.
    pub(super) fn uncharged(&self, start: usize, rows: usize) -> (usize, usize) {
        let (from, to) = (start.max(self.charged), start + rows);
        let prompt = self.prompt.min(to).saturating_sub(from);
        (prompt, to.saturating_sub(from) - prompt)
    }

    /// Retries events that the client had no room for; returns whether the run must end.
    pub(super) fn look(&mut self, now: Instant, stall: Duration) -> Option<End> {
        if let Work::Answer(answer) = &mut self.work {
            let flow = answer.outlet.retry(now);
            let stalled = answer.outlet.paused_since().is_some_and(|since| now >= since + stall);
            if flow == Flow::Gone || stalled {
                return Some(End::Gone);
            }
        }
        if self.cancelled.load(Ordering::Relaxed) {
            return Some(End::Finish(Finish::Cancelled));
        }
        self.deadline.filter(|&deadline| now >= deadline).map(|_| End::Fail(Failure::Deadline))
    }

    /// When [`Run::look`] must be called again.
    pub(super) fn look_at(&self, stall: Duration) -> Option<Instant> {
        let again = match &self.work {
            Work::Answer(answer) => answer.outlet.again_at(),
            Work::Score(_) => None,
        };
        let stalled = self.paused_since().map(|since| since + stall);
        [again, stalled, self.deadline].into_iter().flatten().min()
    }

    /// Evaluates the logits of rows from `start`. Changes nothing, because the step is not committed.
    pub(super) fn read(
        &self,
        start: usize,
        logits: &[f32],
        vocab: usize,
        scratch: &mut Scratch,
    ) -> Result<LogitResult, NotFinite> {
        if logits.is_empty() {
            return Ok(LogitResult::Nothing);
        }
        match &self.work {
            Work::Answer(answer) => {
                let position = self.tokens.len() as u64;
                answer.sampler.choose(logits, position, answer.logprobs, scratch).map(LogitResult::Choice)
            }
            Work::Score(_) => {
                let next = self.tokens[start + 1..].iter();
                let logprobs = logits.chunks_exact(vocab).zip(next).map(|(row, &token)| sample::logprob(row, token));
                logprobs.collect::<Result<Vec<f32>, _>>().map(LogitResult::Logprobs)
            }
        }
    }

    /// Applies the result of a step; `Some` when that was the last.
    pub(super) fn take(
        &mut self,
        fruit: LogitResult,
        tokenizer: &Tokenizer,
        context: usize,
        now: Instant,
    ) -> Option<End> {
        match (&mut self.work, fruit) {
            (_, LogitResult::Nothing) => None,
            (Work::Score(scoring), LogitResult::Logprobs(logprobs)) => {
                scoring.logprobs.extend(logprobs);
                (scoring.logprobs.len() + 1 >= self.tokens.len()).then_some(End::Finish(Finish::Stop))
            }
            (Work::Answer(answer), LogitResult::Choice(choice)) => {
                answer.generated += 1;
                answer.first_token.get_or_insert(now);
                let id = choice.token;
                if !answer.ignore_end && tokenizer.end_tokens().contains(&id) {
                    return Some(End::Finish(Finish::Stop));
                }
                answer.sampler.accept(id);
                self.tokens.push(id);
                let text = answer.stream.push(tokenizer.bytes(id));
                let token = Token { id, text, logprob: choice.logprob, top: choice.top };
                if answer.outlet.push(Event::Token(token), now) == Flow::Gone {
                    Some(End::Gone)
                } else if answer.stream.stopped() {
                    Some(End::Finish(Finish::Stop))
                } else if answer.generated >= answer.max_tokens || self.tokens.len() >= context {
                    Some(End::Finish(Finish::Length))
                } else {
                    None
                }
            }
            (_, LogitResult::Choice(_) | LogitResult::Logprobs(_)) => {
                Some(End::Fail(Failure::Model("the step mixed its rows up".to_owned())))
            }
        }
    }

    /// Tokens generated so far.
    pub(super) fn generated(&self) -> usize {
        match &self.work {
            Work::Answer(answer) => answer.generated,
            Work::Score(_) => 0,
        }
    }

    /// Sends the final event. The outlet is returned when the client has no room for it.
    pub(super) fn end(self, end: End, now: Instant) -> Option<Outlet> {
        let millis = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1e3;
        match self.work {
            Work::Answer(mut answer) => {
                let started = self.started.unwrap_or(now);
                let event = match end {
                    End::Gone => return None,
                    End::Fail(failure) => Event::Failed(failure),
                    End::Finish(finish) => Event::Done(Done {
                        text: answer.stream.finish(),
                        finish,
                        prompt_tokens: self.prompt,
                        generated_tokens: answer.generated,
                        queued_ms: millis(self.arrived, started),
                        first_token_ms: answer.first_token.map_or(0.0, |first| millis(started, first)),
                        total_ms: millis(started, now),
                    }),
                };
                (answer.outlet.push(event, now) == Flow::Paused).then_some(answer.outlet)
            }
            Work::Score(scoring) => {
                let result = match end {
                    End::Finish(Finish::Cancelled) | End::Gone => return None,
                    End::Fail(failure) => Err(failure),
                    End::Finish(_) => {
                        let sum = scoring.logprobs.iter().map(|&logprob| f64::from(logprob)).sum();
                        Ok(Scored { logprobs: scoring.logprobs, sum })
                    }
                };
                let then = scoring.then;
                // The caller's code: its panic must not take the engine down.
                let _caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| then(result)));
                None
            }
        }
    }
}
