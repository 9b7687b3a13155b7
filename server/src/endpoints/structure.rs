//! Answers that are JSON of a schema: `response_format`, and calls of tools.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use textnlp_inference::guide::{Guide, GuideError, Guides, MAX_MEMORY, check, is_too_large};

use crate::error::ApiError;
use crate::http::{Call, Fields, HeldMemory, exhausted, mistakes};
use crate::models::Ready;

/// The longest name of a schema or of a function.
const MAX_NAME: usize = 64;

/// Why [`name`] finds none.
pub(super) const WRONG_NAME: &str = "must have 1 to 64 letters, digits, `_` and `-`";

const SCHEMA: &str = "response_format.json_schema.schema";

/// A schema that answers must satisfy.
pub(super) struct Structure {
    pub(super) schema: Value,
    /// The field that holds it.
    pub(super) param: &'static str,
    /// Fields with the schemas of which it was made, where it is not the client's.
    pub(super) parts: Vec<(String, Value)>,
}

impl Structure {
    fn new(schema: Value, param: &'static str) -> Self {
        Self { schema, param, parts: Vec::new() }
    }

    /// Compiles it after its rehearsal. If one fails, all parts are checked, so that each of them is reported with its
    /// field.
    fn compile(&self, rehearsal: Result<(), GuideError>, guides: &Guides, model: &str) -> Result<Guide, ApiError> {
        let error = match rehearsal.and_then(|()| guides.compile(&self.schema)) {
            Ok(guide) => return Ok(guide),
            Err(error) => error,
        };
        let refusal = |(param, part): &(String, Value)| match check(part) {
            Err(GuideError::Schema { at, problem }) => Some((format!("{param}{at}"), problem, None)),
            _ => None,
        };
        let wrong: Vec<_> = self.parts.iter().filter_map(refusal).collect();
        let param = self.param;
        Err(mistakes(&wrong).unwrap_or_else(|| match error {
            GuideError::Schema { at, problem } => {
                let place = self.place(&at);
                ApiError::invalid(format!("`{place}` {problem}")).param(place)
            }
            complex @ GuideError::TooComplex(_) => too_complex(&complex).param(param),
            GuideError::Tokens => {
                ApiError::invalid(format!(
                    "no JSON of this schema can be written: it refers to itself without an end, or the tokens of model `{model}` lack a character"
                ))
                .param(param)
            }
            GuideError::Vocabulary => ApiError::invalid(format!(
                "model `{model}` does not support structured output: {}",
                GuideError::Vocabulary
            ))
            .param(param),
            GuideError::Thread(error) => {
                tracing::warn!(%error, "a schema could not be compiled");
                let message = "the server has no thread or process to compile the schema";
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "compiler_unavailable", message)
                    .hint("try again in a moment; operators: see the server's log")
                    .retry_after(Duration::from_secs(2))
            }
        }))
    }

    /// The field of a place in the schema. Parts are at `/anyOf/NUMBER/properties/FIELD`.
    fn place(&self, at: &str) -> String {
        if self.parts.is_empty() {
            return format!("{}{at}", self.param);
        }
        let mut steps = at.split_inclusive('/').skip(2);
        let number = steps.next().and_then(|number| number.trim_end_matches('/').parse::<usize>().ok());
        match number.and_then(|number| self.parts.get(number)) {
            Some((param, _)) => {
                let rest: String = steps.skip(2).collect();
                if rest.is_empty() { param.clone() } else { format!("{param}/{rest}") }
            }
            None => self.param.to_owned(),
        }
    }
}

/// The structure that a request wants; none for plain text.
pub(super) fn structure(fields: &Fields) -> Option<Structure> {
    let wrong = |at: &str, message: &str| {
        fields.wrong(at, message, Some("{\"type\": \"json_schema\", \"json_schema\": {\"name\": …, \"schema\": …}}"));
        None
    };
    let Value::Object(format) = fields.get("response_format")? else {
        return wrong("response_format", "must be an object");
    };
    let known: &[&str] = match format.get("type").and_then(Value::as_str) {
        Some("text" | "json_object") => &["type"],
        Some("json_schema") => &["type", "json_schema"],
        _ => return wrong("response_format.type", "must be `text`, `json_object` or `json_schema`"),
    };
    if let Some(key) = other(format, known) {
        return wrong(&format!("response_format.{key}"), "is not a known field");
    }
    match format.get("type").and_then(Value::as_str) {
        Some("text") => None,
        Some("json_object") => Some(Structure::new(json!({ "type": "object" }), "response_format")),
        _ => {
            let Some(Value::Object(inner)) = format.get("json_schema") else {
                return wrong("response_format.json_schema", "must be an object");
            };
            // A schema is guaranteed in any case: `strict` changes nothing.
            if let Some(key) = other(inner, &["name", "description", "strict", "schema"]) {
                return wrong(&format!("response_format.json_schema.{key}"), "is not a known field");
            }
            if name(inner).is_none() {
                return wrong("response_format.json_schema.name", WRONG_NAME);
            }
            if !inner.get("strict").is_none_or(|strict| strict.is_boolean() || strict.is_null()) {
                return wrong("response_format.json_schema.strict", "must be true or false");
            }
            match inner.get("schema").filter(|schema| !schema.is_null()) {
                None => wrong(SCHEMA, "is missing"),
                // The memory of the body is counted until its fields are dropped, that of the copy is not.
                Some(schema) if is_too_large(schema) => wrong(SCHEMA, "has more than 128 KiB"),
                Some(schema) => Some(Structure::new(schema.clone(), SCHEMA)),
            }
        }
    }
}

/// The name of a schema or of a function.
pub(super) fn name(map: &Map<String, Value>) -> Option<&str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let name = map.get("name")?.as_str()?;
    (!name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(plain)).then_some(name)
}

/// The first key besides those that are known. One that is null counts as absent.
pub(super) fn other(map: &Map<String, Value>, known: &[&str]) -> Option<String> {
    let unknown = |(key, value): &(&String, &Value)| !value.is_null() && !known.contains(&key.as_str());
    map.iter().find(unknown).map(|(key, _)| key.chars().take(64).collect())
}

/// What an answer must be, with the memory of the guides of all answers of a request.
#[derive(Debug, Clone)]
pub(crate) struct AnswerGuide {
    pub(crate) guide: Guide,
    pub(crate) memory: Arc<HeldMemory>,
}

/// Compiles a structure of `answers` answers for a model, on a thread for long work.
pub(super) async fn guide(
    call: &Call,
    model: &Ready,
    structure: Option<Structure>,
    answers: usize,
) -> Result<Option<AnswerGuide>, ApiError> {
    let Some(structure) = structure else { return Ok(None) };
    let (tenant, key) = call.record.owner();
    let memory = call.app.guides.hold(&tenant, &key, answers * MAX_MEMORY).await;
    let memory = Arc::new(memory.map_err(exhausted)?);
    let (guides, name) = (model.info.guides.clone(), model.info.name.clone());
    let schemas = &call.app.schemas;
    let turn = schemas.workers.turn(&call.record).await?;
    let rehearsal = schemas.rehearse(&structure.schema, &call.app.config.renderer).await;
    let compile = move || structure.compile(rehearsal, &guides, &name);
    let guide = schemas.workers.run_in_turn(turn, compile).await??;
    Ok(Some(AnswerGuide { guide, memory }))
}

/// 422: the parser of a schema reached its limits.
pub(crate) fn too_complex(error: &GuideError) -> ApiError {
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "schema_too_complex", error.to_string())
        .param("response_format")
        .hint("use fewer alternatives, simpler patterns, and a smaller `minLength` and `maxLength`")
}
