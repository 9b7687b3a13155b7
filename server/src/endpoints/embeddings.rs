//! `/v1/embeddings`, as OpenAI has it.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use axum::response::Response;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::{Value, json};
use textnlp_inference::cpu::normalize;

use crate::auth::Caller;
use crate::embed::{self, Embedder};
use crate::error::{ApiError, chain};
use crate::http::{AnswerMemory, Call, Fields, SMALL, json_response};
use crate::models::{Kind, Ready};
use crate::work;

/// The most texts of a request, and tokens of all of them: OpenAI's limits.
const MAX_TEXTS: usize = 2048;
const MAX_TOKENS: usize = 300_000;

/// The most bytes of all texts: more than `MAX_TOKENS` tokens have.
const MAX_BYTES: usize = 16 * MAX_TOKENS;

/// Bytes of texts that are cut into tokens in one turn.
const TURN_BYTES: usize = 64 << 10;

/// The most numbers of all vectors: with the tokens they fit into a key's share of the memory of answers.
const MAX_NUMBERS: usize = 3 << 20;

/// A text of a request.
enum Input {
    Text(String),
    /// As the model wants them, special tokens included.
    Tokens(Vec<u32>),
}

/// The texts of a request.
#[derive(Default)]
struct Inputs {
    items: Vec<Input>,
    place: Place,
}

/// How errors name a text.
#[derive(Clone, Copy, Default)]
enum Place {
    /// `input`: the request has one text, outside of a list.
    #[default]
    Field,
    /// `input[INDEX]`.
    Item,
}

impl Place {
    fn of(self, index: usize) -> String {
        match self {
            Place::Field => "input".to_owned(),
            Place::Item => format!("input[{index}]"),
        }
    }
}

/// How a vector is written.
#[derive(Clone, Copy)]
enum Encoding {
    Float,
    /// The bytes of 32-bit floats, least significant first.
    Base64,
}

#[derive(Serialize)]
struct Embedding<'a> {
    object: &'static str,
    index: usize,
    embedding: Vector<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector<'a> {
    Float(&'a [f32]),
    Base64(String),
}

pub(super) async fn embeddings(mut call: Call) -> Result<Response, ApiError> {
    let caller = call.enter("embeddings").await?;
    let fields = call.fields().await?;
    answer(&call, &caller, fields).await
}

/// The answer to a body for an authorized caller.
pub(super) async fn answer(call: &Call, caller: &Caller, fields: Fields) -> Result<Response, ApiError> {
    let input = match fields.get("input") {
        Some(value) => inputs(&fields, value),
        None => fields.needed("input", None),
    };
    let input = input.unwrap_or_default();
    let model = fields.text("model").map(str::to_owned);
    let encoding = match fields.text("encoding_format") {
        None | Some("float") => Encoding::Float,
        Some("base64") => Encoding::Base64,
        Some(_) => {
            fields.wrong("encoding_format", "must be `float` or `base64`", None);
            Encoding::Float
        }
    };
    let dimensions = fields.integer("dimensions", 1..=1 << 16).map(|count| count as usize);
    let truncate = fields.flag("truncate").unwrap_or(false);
    let prompt_name = fields.text("prompt_name").map(str::to_owned);
    if prompt_name.is_some() && input.items.iter().any(|one| matches!(one, Input::Tokens(_))) {
        fields.wrong("prompt_name", "cannot be combined with token ids", Some("send texts"));
    }
    fields.neutral(&["user"]);
    fields.finish()?;
    let memory = fields.into_memory();
    let model = call.model_of(caller, Kind::Embedding, model.as_deref()).await?;
    let name = model.info.name.clone();
    call.record.note(|known| known.model = Some(name.clone()));
    let embedder = model.embedder.as_ref().ok_or_else(|| call.unsupported(caller, Kind::Embedding, &name))?;
    let dimensions = shortened(embedder, &name, dimensions)?;
    let prompt = embedder.prompt(prompt_name.as_deref())?;
    check_numbers(input.items.len(), embedder.width, &name)?;
    let texts = tokens(call, &model, embedder, prompt, input, truncate).await?;
    let used: usize = texts.iter().map(Vec::len).sum();
    let is_cached = !is_uncached(&call.headers);
    // Vectors that are cached are copied.
    let copies = if is_cached && call.app.cache.is_some() { 2 } else { 1 };
    // The vectors of all texts, 32 bits for a number and for a token.
    let bytes = 4 * (texts.len() * (copies * embedder.width + 2 * VECTOR_WORDS) + used);
    let answer_memory = AnswerMemory::hold(&call.app, &call.record, bytes).await?;
    // The texts are tokens now, which count as a part of the answer.
    drop(memory);
    let embedded = embed::embed(&call.app, &call.record, caller, model.clone(), texts, is_cached).await?;
    let tail = json!({ "model": name, "usage": { "prompt_tokens": used, "total_tokens": used } }).to_string();
    let pieces = Pieces {
        vectors: embedded.vectors.into_iter().enumerate(),
        dimensions,
        encoding,
        tail: Some(tail),
        is_first: true,
        _memory: answer_memory,
    };
    Ok(json_response(Body::from_stream(futures::stream::iter(pieces))))
}

/// Whether a request asks for computed vectors that are not kept: `Cache-Control: no-store`, or `no-cache` (RFC 9111, 5.2.1). What
/// measures the service asks so.
fn is_uncached(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CACHE_CONTROL).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|directive| {
        let directive = directive.trim();
        directive.eq_ignore_ascii_case("no-store") || directive.eq_ignore_ascii_case("no-cache")
    })
}

/// The words of 32 bits that a list has besides its items.
const VECTOR_WORDS: usize = 6;

fn check_numbers(texts: usize, width: usize, name: &str) -> Result<(), ApiError> {
    let most = MAX_NUMBERS / width.max(1);
    if texts <= most {
        return Ok(());
    }
    let message = format!("`input` has {texts} texts; one request may have {most} with model `{name}`");
    let hint = format!("its vectors have {width} numbers: send the rest in more requests");
    Err(ApiError::invalid(message).param("input").hint(hint))
}

/// An answer, written as the client takes it: its text is several times as long as its vectors.
struct Pieces {
    vectors: std::iter::Enumerate<std::vec::IntoIter<Vec<f32>>>,
    dimensions: Option<usize>,
    encoding: Encoding,
    /// The fields after the vectors.
    tail: Option<String>,
    is_first: bool,
    _memory: AnswerMemory,
}

impl Iterator for Pieces {
    type Item = Result<Bytes, Infallible>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut piece = Vec::new();
        if std::mem::take(&mut self.is_first) {
            piece.extend_from_slice(br#"{"object":"list","data":["#);
        }
        while piece.len() < SMALL {
            let Some((index, vector)) = self.vectors.next() else {
                // The fields of an object after its first ones.
                let tail = self.tail.take()?;
                piece.extend_from_slice(b"],");
                piece.extend_from_slice(tail.strip_prefix('{').unwrap_or(&tail).as_bytes());
                break;
            };
            if index > 0 {
                piece.push(b',');
            }
            self.write(index, vector, &mut piece);
        }
        Some(Ok(piece.into()))
    }
}

impl Pieces {
    fn write(&self, index: usize, mut vector: Vec<f32>, piece: &mut Vec<u8>) {
        if let Some(dimensions) = self.dimensions {
            vector.truncate(dimensions);
            normalize(&mut vector);
        }
        let embedding = match self.encoding {
            Encoding::Float => Vector::Float(&vector),
            Encoding::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
                Vector::Base64(BASE64_STANDARD.encode(bytes))
            }
        };
        // Numbers and texts have a JSON form, and memory takes every byte.
        let _written = serde_json::to_writer(piece, &Embedding { object: "embedding", index, embedding });
    }
}

/// To how many numbers vectors are shortened, if they are.
fn shortened(embedder: &Embedder, name: &str, dimensions: Option<usize>) -> Result<Option<usize>, ApiError> {
    let Some(dimensions) = dimensions.filter(|count| *count != embedder.width) else { return Ok(None) };
    let width = embedder.width;
    let refused = |message: String, hint: &str| Err(ApiError::invalid(message).param("dimensions").hint(hint));
    if !embedder.matryoshka {
        let message = format!("model `{name}` does not support `dimensions`: its vectors have {width} numbers");
        return refused(message, "operators: a model that was trained for it is served with `matryoshka: true`");
    }
    if dimensions > width {
        return refused(format!("`dimensions` is {dimensions}; model `{name}` has {width}"), "ask for fewer");
    }
    Ok(Some(dimensions))
}

/// The tokens of all texts, in their order.
async fn tokens(
    call: &Call,
    model: &Ready,
    embedder: &Embedder,
    prompt: String,
    input: Inputs,
    truncate: bool,
) -> Result<Vec<Vec<u32>>, ApiError> {
    let (most, vocab, name) = (model.info.context, model.info.shape.vocab, model.info.name.clone());
    let Inputs { mut items, place } = input;
    if truncate {
        // What is longer would be cut after it is tokenized.
        let most = model.max_text().saturating_sub(prompt.len());
        for one in &mut items {
            if let Input::Text(text) = one {
                text.truncate(text.floor_char_boundary(most));
            }
        }
    }
    let length = |one: &Input| match one {
        Input::Text(text) => prompt.len() + text.len(),
        Input::Tokens(_) => 0,
    };
    for (index, one) in items.iter().enumerate() {
        let param = place.of(index);
        match one {
            Input::Text(_) => work::check_length(model, &param, length(one))?,
            Input::Tokens(ids) => {
                if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
                    let message = format!("`{param}` has the token {id}; model `{name}` knows {vocab}");
                    return Err(ApiError::invalid(message).param(param));
                }
            }
        }
    }
    let bytes: usize = items.iter().map(length).sum();
    if bytes > MAX_BYTES {
        let message = format!("`input` has {bytes} bytes in all, with prompts; one request may have {MAX_BYTES}");
        return Err(ApiError::invalid(message).param("input").hint("send the rest in more requests"));
    }
    let mut ids: Vec<Vec<u32>> = Vec::with_capacity(items.len());
    let mut total = 0;
    let mut rest = items.into_iter().enumerate().peekable();
    // In turns with other requests.
    while rest.peek().is_some() {
        let (mut turn, mut size) = (Vec::new(), 0);
        while let Some((index, one)) = rest.next_if(|(_, one)| size == 0 || size + length(one) <= TURN_BYTES) {
            size += length(&one);
            turn.push((place.of(index), one));
        }
        let (splitter, prompt, name) = (embedder.text.clone(), prompt.clone(), name.clone());
        let split = move || -> Result<Vec<Vec<u32>>, ApiError> {
            turn.into_iter()
                .map(|(param, one)| {
                    let ids = match one {
                        Input::Tokens(ids) => ids,
                        Input::Text(text) => splitter.encode(&prompt, &text, truncate).map_err(|error| {
                            let message = format!("`{param}` cannot be tokenized: {}", chain(&error));
                            ApiError::invalid(message).param(param.clone())
                        })?,
                    };
                    within(ids, most, truncate, &name, param)
                })
                .collect()
        };
        let more = work::tokenize(&call.app, &call.record, model, size, split).await??;
        total += more.iter().map(Vec::len).sum::<usize>();
        if total > MAX_TOKENS {
            let message = format!("`input` has more than {MAX_TOKENS} tokens in all, the limit of one request");
            return Err(ApiError::invalid(message).param("input").hint("send the rest in more requests"));
        }
        ids.extend(more);
    }
    Ok(ids)
}

/// The tokens of a text if they are not too many, or cut at their end.
fn within(mut ids: Vec<u32>, most: usize, truncate: bool, name: &str, param: String) -> Result<Vec<u32>, ApiError> {
    if truncate {
        ids.truncate(most);
    }
    if ids.len() > most {
        let message = format!("`{param}` has {} tokens; model `{name}` takes up to {most}", ids.len());
        let error = ApiError::new(axum::http::StatusCode::BAD_REQUEST, "context_length_exceeded", message);
        return Err(error.param(param).hint("shorten it, or send `truncate: true` to cut it at its end"));
    }
    // What was cut, and what the list has kept in reserve, is not counted.
    ids.shrink_to_fit();
    Ok(ids)
}

/// A text, tokens, or a list of either.
fn inputs(fields: &Fields, value: &Value) -> Option<Inputs> {
    let text = |item: &Value| item.as_str().filter(|text| !text.is_empty()).map(|text| Input::Text(text.to_owned()));
    let tokens = |item: &Value| ids(item.as_array()?).map(Input::Tokens);
    let (list, place) = match value {
        Value::Array(list) if list.first().is_some_and(|item| item.is_string() || item.is_array()) => {
            (list.as_slice(), Place::Item)
        }
        _ => (std::slice::from_ref(value), Place::Field),
    };
    if list.len() > MAX_TEXTS {
        let message = format!("has {} texts; one request may have {MAX_TEXTS}", list.len());
        fields.wrong("input", message, Some("send the rest in more requests"));
        return None;
    }
    let are_texts = list.first().is_some_and(Value::is_string);
    let mut items = Vec::with_capacity(list.len());
    for (index, item) in list.iter().enumerate() {
        let Some(input) = (if are_texts { text(item) } else { tokens(item) }) else {
            let message = match item == &json!("") {
                true => "is empty",
                false => "must be a text, a list of token ids, or a list of either",
            };
            fields.wrong(&place.of(index), message, None);
            return None;
        };
        items.push(input);
    }
    Some(Inputs { items, place })
}

/// A list of token ids, at least one.
fn ids(list: &[Value]) -> Option<Vec<u32>> {
    if list.is_empty() {
        return None;
    }
    list.iter().map(|item| item.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}
