//! What callers hand in and what they get back.

use std::time::Instant;

/// What a request asks for. Everything was checked by the caller but what only the model knows.
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
    /// Goes on past the end token: for measurements.
    pub ignore_end: bool,
    /// How many log-probabilities of alternatives each token carries; `None` for no log-probabilities at all.
    pub logprobs: Option<u8>,
    /// When to give up.
    pub deadline: Option<Instant>,
}

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the `k` likeliest; 0 keeps all.
    pub top_k: usize,
    /// Keep the likeliest that make up this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep what is at least this likely relative to the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides (or multiplies) the logits of tokens seen in prompt and answer; 1 changes nothing (CTRL, Keskar et al. 2019).
    pub repetition_penalty: f32,
    /// Subtracted once from logits of tokens that the answer holds.
    pub presence_penalty: f32,
    /// Subtracted for each time the answer holds the token.
    pub frequency_penalty: f32,
    /// The same seed gives the same text, whatever else runs.
    pub seed: u64,
}

/// What happens to a request, in order: any number of `Token`, then exactly one `Done` or `Failed`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// One generated token.
    Token(Token),
    /// It ended well.
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

/// How a request ended well.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    /// The rest of the text that was held back.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
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
    /// The end token or a stop string.
    Stop,
    /// The most tokens, or the end of the context.
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
    /// The prompt holds nothing, or tokens that the model does not know.
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
    #[error("the request took longer than it may")]
    Deadline,
    /// The model's numbers broke.
    #[error("the model failed: {0}")]
    Model(String),
}

/// Where the events of one request go. Called on the engine's thread: it must not block.
pub trait Sink: Send {
    /// Takes an event, or says that it cannot.
    fn push(&mut self, event: Event) -> Push;
}

/// What became of an event.
#[derive(Debug, Clone, PartialEq)]
pub enum Push {
    /// Taken.
    Ok,
    /// No room now: the event comes back, the request is paused and the push tried again.
    Full(Event),
    /// Nobody listens any more: the request is cancelled.
    Gone,
}
