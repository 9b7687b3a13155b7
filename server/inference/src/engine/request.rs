//! Requests and events of the engine.

use std::time::Instant;

use crate::guide::{Guide, GuideError};

/// A generation request. The caller has validated everything except what only the model knows.
#[derive(Debug, Clone)]
pub struct Request {
    /// Which loaded model.
    pub model: String,
    /// Whose work it is: fairness is between tenants.
    pub tenant: String,
    /// Token ids of the prompt, at least one.
    pub prompt: Vec<u32>,
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// What the answer must be. It then ends with [`Finish::Stop`] when it is complete, and only then.
    pub guide: Option<Guide>,
    /// Continues after the end token: for benchmarks.
    pub ignore_end: bool,
    /// How many log-probabilities of alternatives each token carries; `None` for no log-probabilities at all.
    pub logprobs: Option<u8>,
    /// The deadline.
    pub deadline: Option<Instant>,
}

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the `k` most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most likely tokens up to this cumulative probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the most likely; 0 keeps all.
    pub min_p: f32,
    /// Divides (or multiplies) the logits of tokens in prompt and answer; 1 has no effect (CTRL, Keskar et al. 2019).
    pub repetition_penalty: f32,
    /// Subtracted once from logits of tokens that the answer holds.
    pub presence_penalty: f32,
    /// Subtracted for each time the answer holds the token.
    pub frequency_penalty: f32,
    /// Added to the logits of tokens, before penalties.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same text, independently of other requests.
    pub seed: u64,
}

/// The events of a request, in order: any number of `Token`, then exactly one `Done` or `Failed`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// One generated token.
    Token(Token),
    /// It completed.
    Done(Done),
    /// It failed.
    Failed(Failure),
}

/// One generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// The text that has become certain with it: whole characters, never part of a stop string; may be empty.
    pub text: String,
    /// Its natural logarithm of probability before penalties and temperature, when asked for.
    pub logprob: Option<f32>,
    /// The likeliest alternatives with theirs, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// The result of a completed request.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    /// The rest of the text that was held back.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them whose keys and values were there already.
    pub cached_tokens: usize,
    /// Tokens generated, the end token included.
    pub generated_tokens: usize,
    /// Milliseconds in the queue.
    pub queued_ms: f64,
    /// Milliseconds from the start of the work to the first token.
    pub first_token_ms: f64,
    /// Milliseconds from the start of the work to the end.
    pub total_ms: f64,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The end token or a stop string; with a guide, the answer is complete.
    Stop,
    /// The most tokens, or the end of the context; with a guide, also a stop string.
    Length,
    /// The client went away or cancelled.
    Cancelled,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Failure {
    /// No loaded model of that name.
    #[error("no model `{0}` is loaded")]
    NoModel(String),
    /// The prompt is empty, or contains tokens unknown to the model.
    #[error("{0}")]
    BadPrompt(String),
    /// The prompt alone is longer than the context.
    #[error("the prompt has {prompt} tokens, the model's context is {context}")]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// The model's context in tokens.
        context: usize,
    },
    /// The queue is full; try again after this many milliseconds.
    #[error("the queue is full")]
    Busy {
        /// A guess from the measured pace.
        retry_after_ms: u64,
    },
    /// The server is going away.
    #[error("the server is shutting down")]
    Draining,
    /// The deadline passed.
    #[error("the request exceeded its time limit")]
    Deadline,
    /// The request's guide cannot go on.
    #[error("{0}")]
    Guide(GuideError),
    /// The model's numbers broke.
    #[error("the model failed: {0}")]
    Model(String),
}

/// Receives the events of one request. Called on the engine's thread: it must not block.
pub trait Sink: Send {
    /// Accepts an event, or reports that it cannot.
    fn push(&mut self, event: Event) -> Push;
}

/// The result of a push.
#[derive(Debug, Clone, PartialEq)]
pub enum Push {
    /// Taken.
    Ok,
    /// No room now: the event is returned, the request is paused and the push retried.
    Full(Event),
    /// The client is gone: the request is cancelled.
    Gone,
}
