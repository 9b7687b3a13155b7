//! One generation, from the validated request to its settlement.
//!
//! A separate task between the engine and the client forwards events, notices when the client disconnects (streaming or
//! not), cancels the work then, and always settles what was used.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use textnlp_inference::engine::{Done, Event, Failure, Finish, Request, Sampling, Ticket, Token};
use textnlp_inference::text::TextError;
use textnlp_store::Reservation;
use tokio::sync::mpsc;

use crate::allowance;
use crate::app::App;
use crate::auth::Caller;
use crate::chat::Rendered;
use crate::endpoints::AnswerGuide;
use crate::error::ApiError;
use crate::http::HeldMemory;
use crate::models::Ready;
use crate::record::Record;
use crate::traces::{ModelCall, of_millis};

/// The input of a generation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Prompt {
    /// A text, with whatever the model wants around it.
    Text(String),
    /// A rendered chat, which contains all special tokens already.
    Rendered(Rendered),
    /// Tokens.
    Tokens(Vec<u32>),
}

/// The parameters of a generation.
#[derive(Debug, Clone)]
pub(crate) struct GenerationParameters {
    pub(crate) prompt: Prompt,
    /// `None`: as many as the context and the server's limit allow.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) sampling: Sampling,
    pub(crate) stop: Vec<String>,
    /// What the answer must be.
    pub(crate) guide: Option<AnswerGuide>,
    pub(crate) logprobs: Option<u8>,
    pub(crate) ignore_end: bool,
    /// A further answer to a prompt: the prompt's tokens count once.
    pub(crate) again: bool,
}

/// A running generation. Dropping it cancels the work.
pub(crate) struct Running {
    pub(crate) model: Arc<Ready>,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) seed: u64,
    /// Held so that the request's record is written only after the answer.
    pub(crate) record: Arc<Record>,
}

/// Queue length between engine and task, and between task and client. A slow client delays only itself.
const EVENTS: usize = 64;

/// How long a client may not accept data before the generation is given up. Longer than the engine's own timeout, so
/// that the engine ends it first and reports it.
const CLIENT_PATIENCE: Duration = Duration::from_secs(75);

/// How long the engine may take to report the usage of a cancelled generation.
const LAST_WORD: Duration = Duration::from_secs(5);

/// Starts a generation.
pub(crate) async fn start(
    app: &Arc<App>,
    record: &Arc<Record>,
    caller: &Caller,
    model: Arc<Ready>,
    ask: GenerationParameters,
) -> Result<Running, ApiError> {
    let deadline = record.deadline();
    let name = model.info.name.clone();
    record.note(|known| known.model = Some(name.clone()));
    let prompt = tokens(app, record, &model, ask.prompt).await?;
    let prompt_tokens = prompt.len();
    if prompt_tokens >= model.info.context {
        return Err(Failure::TooLong { prompt: prompt_tokens, context: model.info.context }.into());
    }
    let room = model.info.context - prompt_tokens;
    let max_tokens = ask.max_tokens.unwrap_or(app.config.api.max_tokens).min(room);
    let seed = ask.sampling.seed;
    let (guide, guide_memory) = ask.guide.map(|AnswerGuide { guide, memory }| (guide, memory)).unzip();
    let request = Request {
        model: name.clone(),
        tenant: caller.tenant.clone(),
        prompt,
        max_tokens,
        sampling: ask.sampling,
        stop: ask.stop,
        guide,
        ignore_end: ask.ignore_end,
        logprobs: ask.logprobs,
        deadline: Some(deadline),
    };
    let counted = if ask.again { 0 } else { prompt_tokens as u64 };
    let (out, events) = mpsc::channel(EVENTS);
    // A task of its own from here on: a client that leaves now must find its tokens neither set aside for ever nor unpaid.
    let submitting = Submission { request, prompt_tokens: counted, guide_memory, out };
    let submitted = app.tasks.spawn(submit(app.clone(), record.clone(), caller.clone(), submitting));
    let gone = |_| ApiError::from(Failure::Model("the request was aborted".into()));
    submitted.await.map_err(gone)??;
    Ok(Running { model, events, seed, record: record.clone() })
}

/// What goes to the engine, and where its events go.
struct Submission {
    request: Request,
    /// Those that count.
    prompt_tokens: u64,
    guide_memory: Option<Arc<HeldMemory>>,
    out: mpsc::Sender<Event>,
}

/// Reserves tokens, submits the request to the engine and spawns the task that drives it.
async fn submit(app: Arc<App>, record: Arc<Record>, caller: Caller, submission: Submission) -> Result<(), ApiError> {
    let Submission { request, prompt_tokens, guide_memory, out } = submission;
    let name = request.model.clone();
    let reservation = allowance::reserve(&app, &caller, prompt_tokens + request.max_tokens as u64).await?;
    let (outlet, inbox) = mpsc::channel(EVENTS);
    let began = Instant::now();
    let submitted = app.models.may_ask(&name).and_then(|()| {
        app.engine.submit(request, app.delivery.outlet(outlet)).map_err(|failure| {
            app.models.no_outcome(&name);
            match failure {
                // It was evicted between lookup and submission.
                Failure::NoModel(_) => {
                    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "model_unavailable", "the model was just unloaded")
                        .param("model")
                        .hint("try again: it is loaded again")
                        .retry_after(Duration::from_secs(1))
                }
                other => other.into(),
            }
        })
    });
    let ticket = match submitted {
        Ok(ticket) => ticket,
        Err(error) => {
            allowance::settle(&app, reservation, 0).await;
            return Err(error);
        }
    };
    record.note(|known| known.prompt_tokens += prompt_tokens);
    let tasks = app.tasks.clone();
    let user = caller.user;
    let drive = Drive { app, record, model: name, user, began, prompt_tokens, reservation, ticket, guide_memory };
    tasks.spawn(drive.run(inbox, out));
    Ok(())
}

/// Starts `count` answers to a prompt. The prompt is tokenized once.
pub(crate) async fn start_several(
    app: &Arc<App>,
    record: &Arc<Record>,
    caller: &Caller,
    model: &Arc<Ready>,
    ask: GenerationParameters,
    count: usize,
    of_answer: impl Fn(&Sampling, usize) -> Sampling,
) -> Result<Vec<Running>, ApiError> {
    let prompt = tokens(app, record, model, ask.prompt).await?;
    let mut running = Vec::with_capacity(count);
    let sampling = ask.sampling.clone();
    let mut all = Some(GenerationParameters { prompt: Prompt::Tokens(prompt), ..ask });
    for number in 0..count {
        // Guides and prompts are large: the last answer takes them.
        let next = if number + 1 < count { all.clone() } else { all.take() };
        let Some(next) = next else { break };
        let parameters = GenerationParameters { sampling: of_answer(&sampling, number), again: number > 0, ..next };
        // Dropped with an error, those that are running already are cancelled.
        running.push(start(app, record, caller, model.clone(), parameters).await?);
    }
    Ok(running)
}

/// Turns a prompt into tokens; long texts on a thread of their own, few at a time.
async fn tokens(app: &App, record: &Record, model: &Arc<Ready>, prompt: Prompt) -> Result<Vec<u32>, ApiError> {
    check_prompt(model, &prompt)?;
    let mut tokens = match prompt {
        Prompt::Tokens(tokens) => return Ok(tokens),
        Prompt::Text(text) => encode(app, record, model, text, true).await?,
        Prompt::Rendered(Rendered { text, mark: None }) => encode(app, record, model, text, false).await?,
        Prompt::Rendered(Rendered { text, mark: Some(mark) }) => {
            let tokenizer = model.info.tokenizer.clone();
            tokenized(tokenize(app, record, model, text.len(), move || tokenizer.encode_marked(&text, mark)).await?)?
        }
    };
    if tokens.is_empty() {
        let first = model.info.tokenizer.bos().or_else(|| model.info.tokenizer.eos());
        let missing =
            || ApiError::invalid("`prompt` is empty, but this model requires at least one token").param("prompt");
        tokens.push(first.ok_or_else(missing)?);
    }
    Ok(tokens)
}

/// Refuses a prompt that is too long, without tokenizing its text.
pub(crate) fn check_prompt(model: &Ready, prompt: &Prompt) -> Result<(), ApiError> {
    let (Prompt::Text(text) | Prompt::Rendered(Rendered { text, .. })) = prompt else { return Ok(()) };
    // Reject texts that obviously exceed the context without tokenizing them. The factor allows for tokenizers that
    // normalize to a shorter text first.
    let context = model.info.context;
    if text.len() / 4 > context.saturating_mul(model.longest_token) {
        let least = text.len() / 4 / model.longest_token;
        let message = format!("the prompt has at least {least} tokens, the model's context is {context}");
        let counts = if text.len() <= model.max_text() { "; POST /v1/tokenize counts them" } else { "" };
        let error = ApiError::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message).param("prompt");
        return Err(error.hint(format!("shorten it to fewer than {context} tokens{counts}")));
    }
    check_length(model, "prompt", text.len())
}

/// Refuses a text that is too long to be tokenized.
pub(crate) fn check_length(model: &Ready, param: &str, bytes: usize) -> Result<(), ApiError> {
    let (name, most) = (&model.info.name, model.max_text());
    if bytes <= most {
        return Ok(());
    }
    let message = format!("`{param}` has {bytes} bytes; model `{name}` takes texts of up to {most} bytes");
    Err(ApiError::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message).param(param).hint(
        match (model.info.tokenizer.is_fast(), model.info.tokenizer.splits_in_parts()) {
            (true, true) => "the limit is 16 bytes for each token of the model's context, at least 65536",
            (true, false) => "this model's tokenizer takes a text at once: send less in one request",
            (false, _) => "this model's tokenizer may take long for a text: send less in one request",
        },
    ))
}

/// Texts up to this many bytes are processed on the current thread: a thread switch takes longer.
const SHORT_TEXT_BYTES: usize = 4096;

/// Processes a text of this length, or as many tokens.
pub(crate) async fn process<T: Send + 'static>(
    app: &App,
    record: &Record,
    length: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    if length <= SHORT_TEXT_BYTES { Ok(work()) } else { app.texts.run(record, work).await }
}

/// Cuts texts of this length into tokens. Where the time that this takes is not known, one thread of the model does it.
pub(crate) async fn tokenize<T: Send + 'static>(
    app: &App,
    record: &Record,
    model: &Ready,
    length: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let slow = app.slow_texts.get(&model.info.name).filter(|_| length > 0 && !model.info.tokenizer.is_fast());
    if let Some(workers) = slow { workers.run(record, work).await } else { process(app, record, length, work).await }
}

/// Cuts a text into tokens.
pub(crate) async fn encode(
    app: &App,
    record: &Record,
    model: &Arc<Ready>,
    text: String,
    special: bool,
) -> Result<Vec<u32>, ApiError> {
    let tokenizer = model.info.tokenizer.clone();
    tokenized(tokenize(app, record, model, text.len(), move || tokenizer.encode(&text, special)).await?)
}

fn tokenized(tokens: Result<Vec<u32>, TextError>) -> Result<Vec<u32>, ApiError> {
    tokens.map_err(|error| ApiError::invalid(format!("the text cannot be tokenized: {}", crate::error::chain(&error))))
}

struct Drive {
    app: Arc<App>,
    record: Arc<Record>,
    model: String,
    user: String,
    /// When the engine got it.
    began: Instant,
    prompt_tokens: u64,
    reservation: Option<Reservation>,
    ticket: Ticket,
    /// Held until the engine is done with the guide.
    guide_memory: Option<Arc<HeldMemory>>,
}

impl Drive {
    async fn run(self, mut inbox: mpsc::Receiver<Event>, out: mpsc::Sender<Event>) {
        let mut seen = 0u64;
        let mut end = None;
        loop {
            let event = tokio::select! {
                // Notices a disconnect even without events: in the queue, or before the first token.
                () = out.closed() => break,
                event = inbox.recv() => event,
            };
            let Some(event) = event else { break };
            match &event {
                Event::Token(_) => seen += 1,
                Event::Done(_) | Event::Failed(_) => {
                    end = Some(event);
                    break;
                }
            }
            if !matches!(tokio::time::timeout(CLIENT_PATIENCE, out.send(event)).await, Ok(Ok(()))) {
                break;
            }
        }
        if end.is_none() {
            self.ticket.cancel();
            end = tokio::time::timeout(LAST_WORD, last_word(&mut inbox, &mut seen)).await.unwrap_or(None);
        }
        drop(inbox);
        let used = self.finish(end.as_ref(), seen);
        drop(self.guide_memory);
        // Settled before the client sees the end, so that its next request finds the remaining budget.
        allowance::settle(&self.app, self.reservation, used).await;
        if let Some(end) = end {
            let _ = tokio::time::timeout(CLIENT_PATIENCE, out.send(end)).await;
        }
    }

    /// Writes down how it ended; the answer is the tokens that it used.
    fn finish(&self, end: Option<&Event>, seen: u64) -> u64 {
        self.record.called(|| self.call(end, seen));
        let models = &self.app.models;
        let generated = match end {
            Some(Event::Done(done)) => {
                if done.finish == Finish::Cancelled {
                    models.no_outcome(&self.model)
                } else {
                    models.answered(&self.model, true)
                }
                if done.generated_tokens > 0 {
                    let first = of_millis(done.first_token_ms);
                    self.app.metrics.record_first_token(&self.model, first);
                }
                // A request may have several generations: the slowest first token counts.
                self.record.note(|known| {
                    known.queued_ms = Some(known.queued_ms.unwrap_or(0.0).max(done.queued_ms));
                    known.first_token_ms = Some(known.first_token_ms.unwrap_or(0.0).max(done.first_token_ms));
                });
                done.generated_tokens as u64
            }
            Some(Event::Failed(failure)) => {
                if matches!(failure, Failure::Model(_)) {
                    models.answered(&self.model, false)
                } else {
                    models.no_outcome(&self.model)
                }
                seen
            }
            Some(Event::Token(_)) | None => {
                models.no_outcome(&self.model);
                seen
            }
        };
        let took = match end {
            Some(Event::Done(done)) => of_millis(done.total_ms),
            _ => self.record.began.elapsed(),
        };
        self.app.metrics.record_generation(&self.model, &self.user, self.prompt_tokens, generated, took);
        self.record.note(|known| known.generated_tokens += generated);
        // A prompt that was rejected or never started costs nothing.
        if generated == 0 && !matches!(end, Some(Event::Done(_))) { 0 } else { self.prompt_tokens + generated }
    }

    /// What a trace says of it. Only a generation that ended knows how long it waited and computed.
    fn call(&self, end: Option<&Event>, seen: u64) -> ModelCall {
        let call = ModelCall {
            model: self.model.clone(),
            began: self.began,
            ended: Instant::now(),
            parts: Vec::new(),
            input_tokens: self.prompt_tokens,
            cached_tokens: 0,
            output_tokens: seen,
            finish: None,
            error: None,
        };
        match end {
            Some(Event::Done(done)) => {
                let (queued, total) = (of_millis(done.queued_ms), of_millis(done.total_ms));
                let prefill = if done.generated_tokens > 0 { of_millis(done.first_token_ms).min(total) } else { total };
                let mut parts = vec![("queue", queued), ("prefill", prefill)];
                if done.generated_tokens > 0 {
                    parts.push(("decode", total - prefill));
                }
                ModelCall {
                    ended: self.began + queued + total,
                    parts,
                    input_tokens: done.prompt_tokens as u64,
                    cached_tokens: done.cached_tokens as u64,
                    output_tokens: done.generated_tokens as u64,
                    finish: Some(finish_reason(done.finish)),
                    ..call
                }
            }
            Some(Event::Failed(failure)) => ModelCall { error: Some(ApiError::from(failure.clone()).code), ..call },
            Some(Event::Token(_)) | None => ModelCall { error: Some("interrupted"), ..call },
        }
    }
}

async fn last_word(inbox: &mut mpsc::Receiver<Event>, seen: &mut u64) -> Option<Event> {
    loop {
        match inbox.recv().await? {
            Event::Token(_) => *seen += 1,
            end => return Some(end),
        }
    }
}

/// A whole answer.
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) tokens: Vec<Token>,
    pub(crate) done: Done,
}

/// Waits for the whole answer.
pub(crate) async fn collect(running: &mut Running, keep_tokens: bool) -> Result<Answer, ApiError> {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    while let Some(event) = running.events.recv().await {
        match event {
            Event::Token(token) => {
                text.push_str(&token.text);
                if keep_tokens {
                    tokens.push(token);
                }
            }
            Event::Done(done) => {
                text.push_str(&done.text);
                return Ok(Answer { text, tokens, done });
            }
            Event::Failed(failure) => return Err(failure.into()),
        }
    }
    Err(interrupted())
}

/// Collects several answers concurrently: one that is not read would block its place in the engine. The first failure
/// ends all.
pub(crate) async fn collect_all(running: &mut [Running], keep_tokens: bool) -> Result<Vec<Answer>, ApiError> {
    futures::future::try_join_all(running.iter_mut().map(|one| collect(one, keep_tokens))).await
}

/// The engine dropped a request without a final event.
pub(crate) fn interrupted() -> ApiError {
    ApiError::from(Failure::Model("the answer was aborted".into()))
}

/// The finish reason in OpenAI's terms.
pub(crate) fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Cancelled => "cancelled",
    }
}
