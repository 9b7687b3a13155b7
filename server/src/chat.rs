//! Chat templates: Jinja of a model's author, which makes a prompt of messages. A template can take all memory, never
//! end or overflow the stack, so it is compiled and rendered in a process of its own with limits, and that process is
//! killed when it takes too long. What it does to its process fails one request.

mod functions;
mod renderer;
mod renderings;
mod template;
mod tools;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use textnlp_inference::text::{MARKS, Tokenizer};
use textnlp_process::LineLimit;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::config;
use crate::error::ApiError;
use crate::record::Record;
use crate::workers::Workers;
use renderer::Renderer;
pub(crate) use renderings::serve as serve_renderings;
use template::Definition;
pub(crate) use tools::{CalledFunction, Function, Tool, ToolCall, ToolFormat, ToolSupport};

/// What a template makes a prompt of.
#[derive(Debug, Serialize)]
pub(crate) struct Conversation<'a> {
    /// From the first on.
    pub messages: &'a [Message],
    /// Those that the model may call; none where it may not.
    pub tools: Option<&'a [Tool]>,
}

/// One message of a conversation.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: &'static str,
    /// The text of the message.
    pub content: String,
    /// The calls of an assistant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call whose result this is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The function of that call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Message {
    /// The bytes of its texts.
    pub(crate) fn length(&self) -> usize {
        let calls = self.tool_calls.iter().map(|call| call.function.arguments.get().len());
        self.content.len() + calls.sum::<usize>()
    }
}

/// A prompt that a template made.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rendered {
    /// Its text.
    pub text: String,
    /// What is within special tokens that clients wrote: it is no part of the text.
    pub mark: Option<char>,
}

/// The longest prompt that a rendering may make.
const MAX_PROMPT: usize = 16 << 20;
/// The longest template.
const MAX_SOURCE: usize = 1 << 20;
/// Renderings of a template at once, each in a process.
const MAX_RENDERERS: usize = 2;
/// Requests that wait for a rendering or are rendered; a tenant has its part of them in any case.
const MAX_REQUESTS: usize = 256;
/// An unused process ends after this time, and at the latest after twice.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Failures of a key in a row after which the template is not rendered for it for a while.
const MAX_FAILURES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(10);
/// A failure counts for this time after the last one.
const FAILURES_KEPT: Duration = Duration::from_secs(60);
/// Keys whose failures are counted.
const MAX_FAILING: usize = 1024;
/// Log lines in ten seconds.
const MAX_LINES: usize = 5;

/// A model's template, and the processes that render it. They end with it.
pub(crate) struct ChatTemplate {
    model: String,
    /// What it does with tools.
    pub(crate) tools: ToolSupport,
    /// Knows the special tokens that are text in messages; none if clients may write them.
    tokenizer: Option<Arc<Tokenizer>>,
    process: config::Renderer,
    /// What a process gets first.
    definition: Vec<u8>,
    idle: Arc<Mutex<Vec<Renderer>>>,
    _end_of_idle: AbortOnDropHandle<()>,
    turns: Workers,
    failures: Mutex<HashMap<Owner, Failures>>,
    lines: LineLimit,
}

/// A tenant and a key.
type Owner = (String, String);

/// Failures of a key since the last rendering that worked, and since its last pause began.
struct Failures {
    count: u32,
    last_at: Instant,
    paused_until: Option<Instant>,
    last: String,
}

/// Why there is no prompt.
enum Problem {
    /// The template does not compile or refuses the messages; with its own words.
    Refusal(String),
    /// Its process was killed or ended.
    Stop(String),
    /// No process can be started.
    Start(std::io::Error),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ChatTemplate {
    /// The template of a model, with the texts of its special tokens. Needs a runtime.
    pub(crate) fn new(
        model: &str,
        process: config::Renderer,
        source: &str,
        bos: Option<String>,
        eos: Option<String>,
    ) -> Result<Self, String> {
        if source.len() > MAX_SOURCE {
            return Err(format!("it is longer than {MAX_SOURCE} bytes"));
        }
        let definition =
            Definition { source: source.to_owned(), bos: bos.unwrap_or_default(), eos: eos.unwrap_or_default() };
        let idle = Arc::default();
        Ok(Self {
            model: model.to_owned(),
            tools: ToolSupport::of(source),
            tokenizer: None,
            process,
            definition: serde_json::to_vec(&definition).map_err(|error| error.to_string())?,
            _end_of_idle: end_unused(&idle),
            idle,
            turns: Workers::new(MAX_RENDERERS, &Arc::default()).with_most_jobs(MAX_REQUESTS),
            failures: Mutex::default(),
            lines: LineLimit::new(MAX_LINES, MAX_LINES),
        })
    }

    /// The same template, with special tokens of this tokenizer as text in messages.
    #[must_use]
    pub(crate) fn with_plain_messages(self, tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer: Some(tokenizer), ..self }
    }

    /// Compiles the template. The error is why that fails; each rendering tries again what was not the template's fault.
    pub(crate) async fn check(&self) -> Result<(), String> {
        match self.start(Instant::now() + self.process.timeout).await {
            Ok(renderer) => lock(&self.idle).push(renderer),
            Err(Problem::Refusal(reason)) => return Err(reason),
            Err(Problem::Stop(reason)) => self.log(&reason),
            Err(Problem::Start(error)) => self.log(&error.to_string()),
        }
        Ok(())
    }

    /// The prompt of a conversation, up to the assistant's turn. Requests of a tenant and of a key take turns. When this
    /// future is dropped, the process that renders is killed.
    pub(crate) async fn render(&self, record: &Record, conversation: &Conversation<'_>) -> Result<Rendered, ApiError> {
        let _turn = self.turns.turn(record).await?;
        let owner = record.owner();
        self.check_pause(&owner)?;
        let (conversation, mark) = self.marked(conversation)?;
        let rendered = self.rendered(conversation.as_bytes()).await;
        match rendered {
            Ok(text) => {
                lock(&self.failures).remove(&owner);
                Ok(Rendered { text, mark })
            }
            Err(Problem::Refusal(reason)) => {
                lock(&self.failures).remove(&owner);
                let message = format!("the model's chat template refuses these messages: {reason}");
                Err(ApiError::invalid(message).param("messages"))
            }
            Err(Problem::Stop(reason)) => {
                self.log(&reason);
                Err(self.failed(owner, reason))
            }
            Err(Problem::Start(error)) => {
                self.log(&error.to_string());
                let message = "the process that renders chat templates cannot be started";
                Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "renderer_unavailable", message)
                    .hint("try again in a moment; operators: see the server's log")
                    .retry_after(Duration::from_secs(2)))
            }
        }
    }

    /// A conversation as JSON, with a mark within each special token that its texts spell.
    fn marked(&self, conversation: &Conversation<'_>) -> Result<(String, Option<char>), ApiError> {
        let invalid = |error: serde_json::Error| ApiError::invalid(error.to_string()).param("messages");
        let document = serde_json::to_string(conversation).map_err(invalid)?;
        let spells = |tokenizer: &&Arc<Tokenizer>| tokenizer.may_spell_special(&document);
        let Some(tokenizer) = self.tokenizer.as_ref().filter(spells) else { return Ok((document, None)) };
        let mut value: Value = serde_json::from_str(&document).map_err(invalid)?;
        // Without escapes.
        let document = value.to_string();
        let mut marks = MARKS;
        let Some(mark) = marks.find(|mark| !document.contains(*mark)) else {
            let message = "the messages have all noncharacters from U+FDD0 to U+FDEF";
            return Err(ApiError::invalid(message).param("messages"));
        };
        let is_marked = mark_texts(&mut value, &|text| tokenizer.mark_special(text, mark));
        Ok(if is_marked { (value.to_string(), Some(mark)) } else { (document, None) })
    }

    /// A prompt from an idle process, or from a new one.
    async fn rendered(&self, conversation: &[u8]) -> Result<String, Problem> {
        let deadline = Instant::now() + self.process.timeout;
        let renderer = match self.take_idle() {
            Some(renderer) => renderer,
            None => self.start(deadline).await?,
        };
        let (renderer, answer) = self.ask(renderer, conversation, deadline).await?;
        lock(&self.idle).push(renderer);
        answer.map_err(Problem::Refusal)
    }

    fn take_idle(&self) -> Option<Renderer> {
        let mut idle = lock(&self.idle);
        while let Some(mut renderer) = idle.pop() {
            if renderer.is_running() {
                return Some(renderer);
            }
        }
        None
    }

    /// A new process that has compiled the template.
    async fn start(&self, deadline: Instant) -> Result<Renderer, Problem> {
        let renderer = Renderer::start(&self.process.program).map_err(Problem::Start)?;
        let (renderer, answer) = self.ask(renderer, &self.definition, deadline).await?;
        answer.map(|_| renderer).map_err(Problem::Refusal)
    }

    /// The answer of a process, which goes on; without an answer it is ended.
    async fn ask(
        &self,
        mut renderer: Renderer,
        request: &[u8],
        deadline: Instant,
    ) -> Result<(Renderer, Result<String, String>), Problem> {
        match tokio::time::timeout_at(deadline, renderer.ask(request)).await {
            Ok(Ok(answer)) => Ok((renderer, answer)),
            Ok(Err(_)) => Err(Problem::Stop(format!("its process ended: {}", renderer.end().await))),
            Err(_) => {
                renderer.end().await;
                Err(Problem::Stop(format!("it took more than {} seconds", self.process.timeout.as_secs())))
            }
        }
    }

    fn check_pause(&self, owner: &Owner) -> Result<(), ApiError> {
        let failures = lock(&self.failures);
        let Some(own) = failures.get(owner) else { return Ok(()) };
        let left = own.paused_until.map(|until| until.saturating_duration_since(Instant::now()));
        match left.filter(|left| !left.is_zero()) {
            Some(left) => Err(self.stopped(&own.last).retry_after(left)),
            None => Ok(()),
        }
    }

    fn failed(&self, owner: Owner, reason: String) -> ApiError {
        let (now, error) = (Instant::now(), self.stopped(&reason));
        let mut failures = lock(&self.failures);
        failures.retain(|_, own| now.saturating_duration_since(own.last_at) < FAILURES_KEPT);
        // Beyond that many, keys fail without a pause.
        if failures.len() < MAX_FAILING || failures.contains_key(&owner) {
            let none = || Failures { count: 0, last_at: now, paused_until: None, last: String::new() };
            let own = failures.entry(owner).or_insert_with(none);
            (own.count, own.last_at, own.last) = (own.count + 1, now, reason);
            if own.count >= MAX_FAILURES {
                (own.count, own.paused_until) = (0, Some(now + PAUSE));
            }
        }
        error
    }

    fn stopped(&self, reason: &str) -> ApiError {
        let message = format!("the chat template of model `{}` was stopped: {reason}", self.model);
        ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "chat_template_failed", message)
            .param("messages")
            .hint("send fewer messages, or use POST /v1/completions")
    }

    fn log(&self, reason: &str) {
        if let Some(suppressed) = self.lines.next(None) {
            tracing::warn!(model = %self.model, reason, suppressed, "chat template stopped");
        }
    }
}

/// Marks all texts and keys of a value; whether any was. Its depth is limited where it was parsed.
fn mark_texts(value: &mut Value, mark: &impl Fn(&str) -> Option<String>) -> bool {
    match value {
        Value::String(text) => match mark(text) {
            Some(marked) => {
                *text = marked;
                true
            }
            None => false,
        },
        Value::Array(list) => list.iter_mut().fold(false, |any, value| mark_texts(value, mark) | any),
        Value::Object(map) => {
            let mut any = false;
            *map = std::mem::take(map)
                .into_iter()
                .map(|(key, mut value)| {
                    let marked = mark(&key);
                    any |= mark_texts(&mut value, mark) | marked.is_some();
                    (marked.unwrap_or(key), value)
                })
                .collect();
            any
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Ends processes that were not used for a while.
fn end_unused(idle: &Arc<Mutex<Vec<Renderer>>>) -> AbortOnDropHandle<()> {
    let idle = idle.clone();
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            tokio::time::sleep(IDLE_TIMEOUT).await;
            lock(&idle).retain(|renderer| renderer.used.elapsed() < IDLE_TIMEOUT);
        }
    }))
}
