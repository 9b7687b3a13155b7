//! One accepted request: a cursor over its tokens, from the prompt's first row to its only terminal event.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::draft::{self, Draft};
use super::handle::{Score, Scored};
use super::isolate::SpanOutput;
use super::outlet::{Flow, Outlet};
use super::plan::Candidate;
use super::request::{Done, Event, Failure, Finish, Request, Sink, Token};
use crate::executor::{LogitRows, SeqId};
use crate::guide::{Guide, Progress};
use crate::sample::{self, Draw, NotFinite, SampledToken, Sampler, Scratch, TokenSet};
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
    /// Rows of the prompt that it never had to compute.
    cached: usize,
    pub(super) seq: Option<SeqId>,
    /// Has room of those that are reserved for tenants without any.
    pub(super) uses_reserve: bool,
    /// Still holds a place in the queue.
    pub(super) queued: bool,
    /// Since when it does not fit into memory although nothing else runs.
    pub(super) homeless_since: Option<Instant>,
    pub(super) deadline: Option<Instant>,
    cancelled: Arc<AtomicBool>,
    arrived: Instant,
    pub(super) started: Option<Instant>,
    /// The time that the guide took for the last mask, and the step of it.
    pub(super) last_mask: (Duration, u64),
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
    guide: Option<Guide>,
    /// The time that the guide took so far.
    guide_time: Duration,
    max_tokens: usize,
    ignore_end: bool,
    logprobs: Option<u8>,
    generated: usize,
    first_token: Option<Instant>,
    /// The share of its drafts' guesses that are right; `None` when it makes no more drafts.
    draft_rate: Option<f64>,
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
    /// A token, and those after right guesses.
    Choices(Vec<SampledToken>),
    Logprobs(Vec<f32>),
}

/// What choosing depends on. Unlike a run, which has its client's code, several threads may see it.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    tokens: &'a [u32],
    start: usize,
    wants: Wants<'a>,
}

#[derive(Clone, Copy)]
enum Wants<'a> {
    /// The next token.
    Token { sampler: &'a Sampler, allowed: Option<&'a TokenSet>, logprobs: Option<u8> },
    /// How likely the tokens are that are there.
    Logprobs,
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
            // What a guide allows after a guess is not known.
            draft_rate: request.guide.is_none().then_some(draft::FIRST_RATE),
            guide: request.guide,
            guide_time: Duration::ZERO,
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
            cached: 0,
            seq: None,
            uses_reserve: false,
            queued: true,
            homeless_since: None,
            deadline,
            cancelled,
            arrived: now,
            started: None,
            last_mask: (Duration::ZERO, 0),
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

    /// Rows that need not be computed if another run has: all but the last, whose logits are wanted.
    pub(super) fn shareable(&self) -> usize {
        match self.work {
            Work::Answer(_) => self.tokens.len().saturating_sub(1),
            Work::Score(_) => 0,
        }
    }

    /// Notes its sequence, which has the first `rows` rows. The answer is how many rows of the prompt that saves.
    pub(super) fn opened(&mut self, seq: SeqId, rows: usize) -> usize {
        let saved = rows.min(self.prompt).saturating_sub(self.charged);
        self.seq = Some(seq);
        self.computed = rows;
        self.charged = self.charged.max(rows);
        self.cached += saved;
        saved
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
        let (mask, masked) = self.last_mask;
        let (computed, known, mask) = (self.computed, self.known(), mask.as_secs_f64());
        Candidate { tenant, age: self.id, computed, known, scores, mask, masked }
    }

    /// For which of the next `rows` logits are wanted; where `draws` says that the executor can, only the token.
    pub(super) fn logits(&self, start: usize, rows: usize, draws: impl Fn(&Draw<'_>) -> bool) -> LogitRows<'_> {
        match &self.work {
            Work::Score(_) => LogitRows::All,
            Work::Answer(answer) if start + rows == self.known() => {
                let draw = answer.draw(self.tokens.len()).filter(draws);
                draw.map_or(LogitRows::Last, LogitRows::Drawn)
            }
            Work::Answer(_) => LogitRows::None,
        }
    }

    /// A draft of at most `most` guesses, of which none is computed yet.
    pub(super) fn draft(&self, most: usize, context: usize) -> Option<Draft> {
        let Work::Answer(answer) = &self.work else { return None };
        // The last token of an answer is never computed.
        let room = self.positions(context).saturating_sub(self.tokens.len() + 1);
        Draft::of(&self.tokens, most.min(room), answer.draft_rate?)
    }

    /// Notes the share of right guesses. `None`: the model failed at a guess, which must not end the answer.
    pub(super) fn set_draft_rate(&mut self, rate: Option<f64>) {
        if let Work::Answer(answer) = &mut self.work {
            answer.draft_rate = rate;
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

    /// What reads the logits of its rows from `start`.
    pub(super) fn reader(&self, start: usize) -> Reader<'_> {
        let wants = match &self.work {
            Work::Answer(answer) => Wants::Token {
                sampler: &answer.sampler,
                allowed: answer.guide.as_ref().map(Guide::allowed),
                logprobs: answer.logprobs,
            },
            Work::Score(_) => Wants::Logprobs,
        };
        Reader { tokens: &self.tokens, start, wants }
    }

    /// Applies the result of a step; `Some` when that was the last.
    pub(super) fn take(
        &mut self,
        fruit: LogitResult,
        tokenizer: &Tokenizer,
        context: usize,
        now: Instant,
        clock: &dyn Fn() -> Instant,
    ) -> Option<End> {
        match (&mut self.work, fruit) {
            (_, LogitResult::Nothing) => None,
            (Work::Score(scoring), LogitResult::Logprobs(logprobs)) => {
                scoring.logprobs.extend(logprobs);
                (scoring.logprobs.len() + 1 >= self.tokens.len()).then_some(End::Finish(Finish::Stop))
            }
            (Work::Answer(answer), LogitResult::Choices(choices)) => {
                for choice in choices {
                    let end = answer.take(choice, &mut self.tokens, tokenizer, context, now, clock);
                    // What a paused client has no room for is chosen again, alike.
                    if end.is_some() || answer.outlet.flow() == Flow::Paused {
                        return end;
                    }
                }
                None
            }
            (_, LogitResult::Choices(_) | LogitResult::Logprobs(_)) => {
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

    /// The time that its guide took so far.
    pub(super) fn guide_time(&self) -> Duration {
        match &self.work {
            Work::Answer(answer) => answer.guide_time,
            Work::Score(_) => Duration::ZERO,
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
                        cached_tokens: self.cached,
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

impl Reader<'_> {
    /// Evaluates what a step says, of whose rows the last are `guesses`. Changes nothing, because the step is not
    /// committed.
    pub(super) fn read(
        &self,
        guesses: &[u32],
        output: SpanOutput<'_>,
        vocab: usize,
        scratch: &mut Scratch,
    ) -> Result<LogitResult, NotFinite> {
        let logits = match output {
            SpanOutput::Logits(logits) => logits,
            SpanOutput::Token(token) => {
                return Ok(LogitResult::Choices(vec![SampledToken { token, logprob: None, top: Vec::new() }]));
            }
        };
        if logits.is_empty() {
            return Ok(LogitResult::Nothing);
        }
        match self.wants {
            Wants::Token { sampler, allowed, logprobs } => {
                let mut choices = Vec::with_capacity(1);
                for (index, row) in logits.chunks_exact(vocab).enumerate() {
                    let position = (self.tokens.len() + index) as u64;
                    let choice = sampler.choose_after(&guesses[..index], row, position, logprobs, allowed, scratch)?;
                    let is_right = guesses.get(index) == Some(&choice.token);
                    choices.push(choice);
                    if !is_right {
                        break;
                    }
                }
                Ok(LogitResult::Choices(choices))
            }
            Wants::Logprobs => {
                let next = self.tokens[self.start + 1..].iter();
                let logprobs = logits.chunks_exact(vocab).zip(next).map(|(row, &token)| sample::logprob(row, token));
                logprobs.collect::<Result<Vec<f32>, _>>().map(LogitResult::Logprobs)
            }
        }
    }
}

impl Answer {
    /// How its token at a position is drawn, if no guide says which are allowed and nothing else is wanted of the logits.
    fn draw(&self, position: usize) -> Option<Draw<'_>> {
        let is_plain = self.guide.is_none() && self.logprobs.is_none();
        is_plain.then(|| self.sampler.draw(position as u64))
    }

    /// Adds a token to the answer; `Some` when that was the last.
    fn take(
        &mut self,
        choice: SampledToken,
        tokens: &mut Vec<u32>,
        tokenizer: &Tokenizer,
        context: usize,
        now: Instant,
        clock: &dyn Fn() -> Instant,
    ) -> Option<End> {
        self.generated += 1;
        self.first_token.get_or_insert(now);
        let id = choice.token;
        // A guide allows an end token only where the answer is complete.
        if (self.guide.is_some() || !self.ignore_end) && tokenizer.end_tokens().contains(&id) {
            return Some(End::Finish(Finish::Stop));
        }
        self.sampler.accept(id);
        let progress = self.guide.as_mut().map(|guide| {
            let begin = clock();
            let progress = guide.accept(id);
            self.guide_time += clock().saturating_duration_since(begin);
            progress
        });
        tokens.push(id);
        let text = self.stream.push(tokenizer.bytes(id));
        let token = Token { id, text, logprob: choice.logprob, top: choice.top };
        if self.outlet.push(Event::Token(token), now) == Flow::Gone {
            Some(End::Gone)
        } else if let Some(Err(error)) = progress {
            Some(End::Fail(Failure::Guide(error)))
        } else if self.stream.stopped() {
            // What is left is a part of a guided answer.
            Some(End::Finish(if progress.is_some() { Finish::Length } else { Finish::Stop }))
        } else if let Some(Ok(Progress::Complete)) = progress {
            Some(End::Finish(Finish::Stop))
        } else if self.generated >= self.max_tokens || tokens.len() >= context {
            Some(End::Finish(Finish::Length))
        } else {
            None
        }
    }
}
