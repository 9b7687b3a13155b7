//! Structured output: which tokens may come next so that an answer is JSON of a schema.
//!
//! [`schema`] refuses what the grammar cannot guarantee, and names its place. llguidance (an Earley parser with a lexer of
//! derivatives) does the rest: it walks a trie of the vocabulary's bytes, so it works with tokenizers of every family.
//! A guide belongs to one answer. Its limits count steps of the parser and not time, so they are the same on every machine.

mod schema;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use llguidance::api::{ParserLimits, StopReason, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
pub use schema::{call_schema, is_too_large};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::sample::TokenSet;
use crate::text::Tokenizer;

/// Longer tokens are never part of a structured answer: the trie is 1,024 bytes deep at most.
const MAX_TOKEN: usize = 512;

/// Bytes of all tokens together: the trie has at most a node of 8 bytes for each. Vocabularies of 256,000 tokens have 2 MB.
const MAX_VOCABULARY: usize = 8 << 20;

/// Stack of the thread that compiles a schema: 64 KiB for each level that [`schema`] allows.
const STACK: usize = 64 << 20;

/// At most this much space between two parts of JSON: models that get lost write spaces until their answer ends.
const SPACE: &str = r"[\x20\x0A\x0D\x09]{1,32}";

/// Why there is no guide, or why one cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuideError {
    /// The schema has something that cannot be guaranteed.
    #[error("{problem}")]
    Schema {
        /// Where, as a JSON pointer; empty for the whole schema.
        at: String,
        /// What is wrong there.
        problem: String,
    },
    /// The parser reached a limit, in the schema or at a place of the answer: which, with the place in the schema if known.
    #[error("the schema is too complex: {0}")]
    TooComplex(String),
    /// No token continues the answer: the tokenizer cannot spell JSON, or a place of the schema allows nothing.
    #[error("no token of the model continues the answer")]
    Tokens,
    /// The vocabulary is too large for a trie of its bytes.
    #[error("the tokens of the model have more than {} MiB together", MAX_VOCABULARY >> 20)]
    Vocabulary,
    /// The system has no thread or process for the compiler now.
    #[error("the schema cannot be compiled now: {0}")]
    Thread(String),
}

/// Refuses a schema that no model's guide can guarantee. Cheap: what only the compiler finds is not found.
pub fn check(schema: &Value) -> Result<(), GuideError> {
    schema::check(schema).map(drop)
}

/// Compiles a schema for tokens of single bytes, and drops the guide. That takes as much time and memory as
/// [`Guides::compile`] does besides the vocabulary, and no bound of a schema's parts bounds it in all cases: a process with
/// limits rehearses what the server compiles.
pub fn rehearse(schema: &Value) -> Result<(), GuideError> {
    let words = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    compile_checked(&factory(words)?, schema).map(drop)
}

/// Compiles schemas for the tokens of one model. The vocabulary is read at the first schema.
pub struct Guides {
    tokenizer: Arc<Tokenizer>,
    vocab: usize,
    factory: OnceLock<Result<ParserFactory, GuideError>>,
}

impl std::fmt::Debug for Guides {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guides").field("vocab", &self.vocab).finish_non_exhaustive()
    }
}

impl Guides {
    /// `vocab` is the width of the model's logits: tokens beyond are never chosen.
    pub fn new(tokenizer: &Arc<Tokenizer>, vocab: usize) -> Arc<Guides> {
        let vocab = vocab.min(tokenizer.vocab());
        Arc::new(Guides { tokenizer: Arc::clone(tokenizer), vocab, factory: OnceLock::new() })
    }

    /// Compiles a JSON Schema. Takes milliseconds, the first one of a model up to a second: not for threads that serve.
    pub fn compile(&self, schema: &Value) -> Result<Guide, GuideError> {
        let factory = self.factory.get_or_init(|| self.factory()).as_ref().map_err(Clone::clone)?;
        let mut guide = Guide {
            matcher: compile_checked(factory, schema)?,
            end: self.tokenizer.end_tokens().into(),
            end_bit: self.vocab as u32,
            allowed: TokenSet::default(),
        };
        match guide.refresh()? {
            Progress::Going => Ok(guide),
            Progress::Complete => Err(whole("allows nothing but an empty answer")),
        }
    }

    fn factory(&self) -> Result<ParserFactory, GuideError> {
        let end = self.tokenizer.end_tokens();
        let spelling = |id: u32| {
            // An end token may be spelled as text; within a string of the answer it would end it.
            let bytes = if end.contains(&id) { &[][..] } else { self.tokenizer.bytes(id) };
            if bytes.len() > MAX_TOKEN || bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) { &[] } else { bytes }
        };
        if (0..self.vocab as u32).map(|id| spelling(id).len()).sum::<usize>() > MAX_VOCABULARY {
            return Err(GuideError::Vocabulary);
        }
        factory((0..self.vocab as u32).map(|id| spelling(id).to_vec()).collect())
    }
}

/// A compiler for tokens of these bytes.
fn factory(mut words: Vec<Vec<u8>>) -> Result<ParserFactory, GuideError> {
    let end = words.len() as u32;
    // The end of the text has a bit of its own: models have several end tokens, or none.
    words.push(Vec::new());
    let trie = TokTrie::from(&TokRxInfo::new(words.len() as u32, end), &words);
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let slices = SlicedBiasComputer::json_slices();
    let factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices);
    let mut factory = factory.map_err(|_| GuideError::Tokens)?;
    factory.quiet();
    *factory.limits_mut() = limits();
    Ok(factory)
}

/// States of the lexer of one answer.
const MAX_LEXER_STATES: usize = 10_240;

/// The most memory that a guide's lexer takes, in bytes: 20,000 states were measured with 9 MB.
pub const MAX_MEMORY: usize = MAX_LEXER_STATES * 450;

/// Bounds of one answer's parser. Measured with 100,000 tokens: 0.03 ms for a mask, 1 ms with the worst patterns and 20 ms
/// at once.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2_000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 50_000,
        step_max_items: 25_000,
        max_lexer_states: MAX_LEXER_STATES,
        max_grammar_size: 100_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

fn whole(problem: &str) -> GuideError {
    GuideError::Schema { at: String::new(), problem: problem.to_owned() }
}

/// Checks and compiles a schema. References nest the compiler deeper than the schema is: a stack of its own has room for
/// all of them.
fn compile_checked(factory: &ParserFactory, schema: &Value) -> Result<Matcher, GuideError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("schema".to_owned()).stack_size(STACK);
        let thread = thread.spawn_scoped(scope, || {
            let valid = schema::check(schema)?;
            compile(factory, valid.schema.clone()).map_err(|message| valid.located(&message))
        });
        let thread = thread.map_err(|error| GuideError::Thread(error.to_string()))?;
        thread.join().unwrap_or_else(|_| Err(whole("cannot be compiled")))
    })
}

fn compile(factory: &ParserFactory, mut schema: Value) -> Result<Matcher, String> {
    let options = JsonCompileOptions {
        whitespace_pattern: Some(SPACE.to_owned()),
        // Without `\u` a key has one spelling, so an additional one cannot repeat a named one in disguise.
        json_allowed_escapes: Some("nrbtf\\\"".to_owned()),
        ..JsonCompileOptions::default()
    };
    if schema.is_object() {
        options.apply_to(&mut schema);
    }
    let parser = factory.create_parser(TopLevelGrammar::from_json_schema(schema));
    parser.map(|parser| Matcher::new(Ok(parser))).map_err(|error| format!("{error:#}"))
}

/// What follows an accepted token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The answer goes on.
    Going,
    /// The answer is complete, and nothing can follow.
    Complete,
}

/// Knows at each place of one answer which tokens may follow.
pub struct Guide {
    matcher: Matcher,
    /// The model's end tokens.
    end: Arc<[u32]>,
    /// The bit of the parser's masks that stands for the end.
    end_bit: u32,
    allowed: TokenSet,
}

impl Clone for Guide {
    /// Shares no state: what one answer costs does not depend on another.
    fn clone(&self) -> Self {
        Guide {
            matcher: self.matcher.deep_clone(),
            end: Arc::clone(&self.end),
            end_bit: self.end_bit,
            allowed: self.allowed.clone(),
        }
    }
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guide").finish_non_exhaustive()
    }
}

impl Guide {
    /// The tokens that may come next; never none.
    pub(crate) fn allowed(&self) -> &TokenSet {
        &self.allowed
    }

    /// Takes a token of [`Guide::allowed`], but no end token, into the answer.
    pub(crate) fn accept(&mut self, token: u32) -> Result<Progress, GuideError> {
        self.matcher.consume_token(token).map_err(|error| too_complex(&error.to_string()))?;
        self.refresh()
    }

    fn refresh(&mut self) -> Result<Progress, GuideError> {
        match self.matcher.stop_reason() {
            StopReason::NotStopped => {}
            reason if reason.is_ok() => return Ok(Progress::Complete),
            reason => return Err(too_complex(&reason.to_string())),
        }
        let mask = match self.matcher.compute_mask() {
            Ok(mask) => mask,
            Err(error) => {
                let message = error.to_string();
                let is_stuck = message.starts_with(&StopReason::NoExtensionBias.to_string());
                return Err(if is_stuck { GuideError::Tokens } else { too_complex(&message) });
            }
        };
        let can_end = mask.is_allowed(self.end_bit);
        self.allowed.refill(mask.as_slice(), self.end_bit);
        if can_end {
            if self.allowed.is_empty() {
                return Ok(Progress::Complete);
            }
            self.end.iter().for_each(|&id| self.allowed.insert(id));
        }
        if self.allowed.is_empty() { Err(GuideError::Tokens) } else { Ok(Progress::Going) }
    }
}

/// The limit that a message of the parser is about. The message itself has parts of the schema in the library's notation.
fn too_complex(message: &str) -> GuideError {
    let is_lexer = message.contains("exer");
    let limit =
        if is_lexer { "its patterns and lengths have" } else { "the alternatives that fit the answer so far have" };
    GuideError::TooComplex(format!("{limit} too many states"))
}
