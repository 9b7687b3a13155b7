//! Google's discovery documents, as google-api-python-client carries them, and whether a message is what they allow.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::aws::model::{lock, python};

/// The most levels of nesting that are checked: schemas may refer to themselves.
const MAX_DEPTH: usize = 32;

/// A method of an API.
#[derive(Clone, Debug)]
pub struct Method {
    /// Its id, such as `compute.networks.insert`.
    pub id: String,
    /// The HTTP method.
    pub http: String,
    /// The parts of the path.
    segments: Vec<Segment>,
    /// The custom verb after the last part, such as `setIamPolicy`.
    pub verb: Option<String>,
    /// Its parameters by name.
    parameters: HashMap<String, Value>,
    /// The schema of the request's body.
    pub request: Option<String>,
    /// The schema of the answer's body.
    pub response: Option<String>,
}

#[derive(Clone, Debug)]
enum Segment {
    Literal(String),
    Parameter,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMethod {
    id: String,
    http_method: String,
    path: String,
    #[serde(default)]
    flat_path: Option<String>,
    #[serde(default)]
    parameters: HashMap<String, Value>,
    #[serde(default)]
    request: Option<Reference>,
    #[serde(default)]
    response: Option<Reference>,
}

#[derive(Deserialize)]
struct Reference {
    #[serde(rename = "$ref")]
    name: String,
}

#[derive(Deserialize)]
struct RawResource {
    #[serde(default)]
    methods: HashMap<String, RawMethod>,
    #[serde(default)]
    resources: HashMap<String, RawResource>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument<'a> {
    #[serde(default)]
    service_path: String,
    #[serde(default)]
    parameters: HashMap<String, Value>,
    #[serde(borrow)]
    schemas: HashMap<&'a str, &'a RawValue>,
    #[serde(default)]
    resources: HashMap<String, RawResource>,
    #[serde(default)]
    methods: HashMap<String, RawMethod>,
}

impl RawMethod {
    fn method(self, service_path: &str) -> Method {
        let path = format!("{service_path}{}", self.flat_path.as_deref().unwrap_or(&self.path));
        let (path, verb) = match path.rsplit_once(':') {
            Some((path, verb)) if !verb.contains(['/', '}']) => (path.to_owned(), Some(verb.to_owned())),
            _ => (path, None),
        };
        let segment = |part: &str| match part.starts_with('{') {
            true => Segment::Parameter,
            false => Segment::Literal(part.to_owned()),
        };
        Method {
            segments: path.split('/').map(segment).collect(),
            id: self.id,
            http: self.http_method,
            verb,
            parameters: self.parameters,
            request: self.request.map(|one| one.name),
            response: self.response.map(|one| one.name),
        }
    }
}

impl RawResource {
    fn collect(self, service_path: &str, methods: &mut Vec<Method>) {
        methods.extend(self.methods.into_values().map(|one| one.method(service_path)));
        self.resources.into_values().for_each(|one| one.collect(service_path, methods));
    }
}

impl Method {
    /// Whether a path, without its custom verb, is one of this method.
    fn is_of(&self, parts: &[&str], verb: Option<&str>) -> bool {
        let fits = |(segment, part): (&Segment, &&str)| match segment {
            Segment::Literal(text) => text == part,
            Segment::Parameter => !part.is_empty(),
        };
        self.verb.as_deref() == verb && self.segments.len() == parts.len() && self.segments.iter().zip(parts).all(fits)
    }

    /// How many parts of the path are literal: of two methods that match, the one with more is meant.
    fn literals(&self) -> usize {
        self.segments.iter().filter(|segment| matches!(segment, Segment::Literal(_))).count()
    }
}

/// A discovery document. It is loaded once in a process and stays.
pub struct Document {
    parameters: HashMap<String, Value>,
    methods: Vec<Method>,
    schemas: HashMap<&'static str, &'static RawValue>,
    parsed: Mutex<HashMap<String, Arc<Value>>>,
}

impl Document {
    /// A document by its name, such as `compute.v1`.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn of(name: &str) -> Result<&'static Self, String> {
        static DOCUMENTS: OnceLock<Mutex<HashMap<String, &'static Document>>> = OnceLock::new();
        let mut documents = lock(DOCUMENTS.get_or_init(Mutex::default));
        if let Some(document) = documents.get(name) {
            return Ok(document);
        }
        let document: &'static Self = Box::leak(Box::new(Self::read(name)?));
        documents.insert(name.to_owned(), document);
        Ok(document)
    }

    fn read(name: &str) -> Result<Self, String> {
        let path = folder()?.join(format!("{name}.json"));
        let text = std::fs::read_to_string(&path).map_err(|e| format!("read {}: {e}", path.display()))?;
        let text: &'static str = Box::leak(text.into_boxed_str());
        let raw: RawDocument<'static> =
            serde_json::from_str(text).map_err(|e| format!("parse {}: {e}", path.display()))?;
        let mut methods = Vec::new();
        let top = RawResource { methods: raw.methods, resources: raw.resources };
        top.collect(&raw.service_path, &mut methods);
        Ok(Self { parameters: raw.parameters, methods, schemas: raw.schemas, parsed: Mutex::default() })
    }

    /// The method of a request, and the path without the custom verb. The path has no leading `/`.
    #[must_use]
    pub fn route<'p>(&self, http: &str, path: &'p str) -> Option<(&Method, &'p str)> {
        let last = path.rfind('/').map_or(0, |slash| slash + 1);
        let (plain, verb) = match path[last..].rfind(':') {
            Some(colon) => (&path[..last + colon], Some(&path[last + colon + 1..])),
            None => (path, None),
        };
        let parts: Vec<&str> = plain.split('/').collect();
        let fits = self.methods.iter().filter(|method| method.http == http && method.is_of(&parts, verb));
        fits.max_by_key(|method| method.literals()).map(|method| (method, plain))
    }

    /// A method by its id.
    #[must_use]
    pub fn method(&self, id: &str) -> Option<&Method> {
        self.methods.iter().find(|method| method.id == id)
    }

    fn schema(&self, name: &str) -> Option<Arc<Value>> {
        if let Some(schema) = lock(&self.parsed).get(name) {
            return Some(schema.clone());
        }
        let schema: Arc<Value> = Arc::new(serde_json::from_str(self.schemas.get(name)?.get()).ok()?);
        lock(&self.parsed).insert(name.to_owned(), schema.clone());
        Some(schema)
    }

    /// What of a request its method does not allow, each with the path of the member.
    #[must_use]
    pub fn check_request(&self, method: &Method, query: &[(String, String)], body: Option<&Value>) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, text) in query {
            let known = method.parameters.get(name).filter(|one| one["location"] != "path");
            match known.or_else(|| self.parameters.get(name)) {
                Some(parameter) => check_parameter(parameter, name, text, &mut problems),
                None => problems.push(format!("{name}: the method has no such parameter")),
            }
        }
        for (name, parameter) in &method.parameters {
            let is_missing = parameter["location"] == "query" && !query.iter().any(|(one, _)| one == name);
            if is_missing && parameter["required"] == true {
                problems.push(format!("{name}: the parameter is required"));
            }
        }
        match (&method.request, body) {
            (Some(schema), Some(value)) => {
                let check = Check { document: self, method: &method.id, is_request: true };
                check.reference(schema, value, "body", &mut problems, 0);
            }
            (None, Some(value)) if value.as_object().is_none_or(|members| !members.is_empty()) => {
                problems.push("body: the method has none".to_owned());
            }
            (Some(_) | None, _) => {}
        }
        problems
    }

    /// Writes a request's numbers of 64 bits as text, as Google answers them.
    pub fn normalise(&self, method: &Method, body: &mut Value) {
        if let Some(schema) = method.request.as_ref().and_then(|name| self.schema(name)) {
            self.normalise_value(&schema, body, 0);
        }
    }

    fn normalise_value(&self, schema: &Value, value: &mut Value, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        if let Some(schema) = schema["$ref"].as_str().and_then(|name| self.schema(name)) {
            return self.normalise_value(&schema, value, depth + 1);
        }
        match value {
            Value::Number(number) if schema["type"] == "string" => *value = number.to_string().into(),
            Value::Array(items) => {
                items.iter_mut().for_each(|item| self.normalise_value(&schema["items"], item, depth + 1));
            }
            Value::Object(members) => {
                for (name, member) in members {
                    let inner = schema["properties"].get(name).unwrap_or(&schema["additionalProperties"]);
                    self.normalise_value(inner, member, depth + 1);
                }
            }
            _ => {}
        }
    }

    /// What of an answer its method does not allow.
    #[must_use]
    pub fn check_answer(&self, method: &Method, answer: &Value) -> Vec<String> {
        let mut problems = Vec::new();
        let check = Check { document: self, method: &method.id, is_request: false };
        match &method.response {
            Some(schema) => check.reference(schema, answer, "answer", &mut problems, 0),
            None if answer.as_object().is_some_and(|members| !members.is_empty()) => {
                problems.push("answer: the method has none".to_owned());
            }
            None => {}
        }
        problems
    }
}

fn check_parameter(parameter: &Value, name: &str, text: &str, problems: &mut Vec<String>) {
    let is_right = match parameter["type"].as_str() {
        Some("boolean") => ["true", "false"].contains(&text),
        Some("integer") => text.parse::<i64>().is_ok(),
        Some("number") => text.parse::<f64>().is_ok(),
        _ => true,
    };
    if !is_right {
        problems.push(format!("{name}: {text:?} is no {}", parameter["type"]));
    }
    if let Some(allowed) = parameter["enum"].as_array().filter(|allowed| !allowed.iter().any(|one| one == text)) {
        problems.push(format!("{name}: {text:?} is none of {} values", allowed.len()));
    }
}

struct Check<'a> {
    document: &'a Document,
    method: &'a str,
    is_request: bool,
}

impl Check<'_> {
    fn reference(&self, name: &str, value: &Value, path: &str, problems: &mut Vec<String>, depth: usize) {
        match self.document.schema(name) {
            Some(schema) => self.value(&schema, value, path, problems, depth),
            None => problems.push(format!("{path}: there is no schema {name}")),
        }
    }

    fn value(&self, schema: &Value, value: &Value, path: &str, problems: &mut Vec<String>, depth: usize) {
        if depth > MAX_DEPTH {
            return problems.push(format!("{path}: nested too deep"));
        }
        if let Some(name) = schema["$ref"].as_str() {
            return self.reference(name, value, path, problems, depth + 1);
        }
        // Null is how a patch removes a member.
        if value.is_null() && self.is_request {
            return;
        }
        let format = schema["format"].as_str().unwrap_or_default();
        let mut wrong = |what: &str| problems.push(format!("{path}: {} is no {what}", brief(value)));
        match (schema["type"].as_str().unwrap_or("any"), value) {
            ("any", _) => {}
            ("object", Value::Object(members)) => self.object(schema, members, path, problems, depth),
            ("array", Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    self.value(&schema["items"], item, &format!("{path}[{index}]"), problems, depth + 1);
                }
            }
            ("string", Value::String(text)) => {
                if let Some(allowed) = schema["enum"].as_array()
                    && !allowed.iter().any(|one| one == text.as_str())
                {
                    return problems.push(format!("{path}: {text:?} is none of the document's values"));
                }
                if !is_formatted(format, text) {
                    wrong(format);
                }
            }
            // JSON of protocol buffers takes 64-bit numbers in both forms; Google answers with text.
            ("string", Value::Number(number))
                if self.is_request && format.contains("int64") && (number.is_i64() || number.is_u64()) => {}
            ("integer", Value::Number(number)) if number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {}
            ("integer", Value::Number(number)) if format == "uint32" && number.is_u64() => {}
            ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => {}
            (kind, _) => wrong(kind),
        }
    }

    fn object(
        &self,
        schema: &Value,
        members: &Map<String, Value>,
        path: &str,
        problems: &mut Vec<String>,
        depth: usize,
    ) {
        let more = &schema["additionalProperties"];
        for (name, value) in members {
            let place = format!("{path}.{name}");
            match schema["properties"].get(name) {
                Some(member) => self.value(member, value, &place, problems, depth + 1),
                // The type of a message in a member of any type.
                None if more.is_object() => self.value(more, value, &place, problems, depth + 1),
                None => problems.push(format!("{place}: the document has no such member")),
            }
        }
        if !self.is_request {
            return;
        }
        for (name, member) in schema["properties"].as_object().into_iter().flatten() {
            let required = member["annotations"]["required"].as_array();
            let is_required = required.is_some_and(|methods| methods.iter().any(|one| one == self.method));
            if is_required && members.get(name).is_none_or(|value| value == "") {
                problems.push(format!("{path}.{name}: it is required"));
            }
        }
    }
}

fn is_formatted(format: &str, text: &str) -> bool {
    use base64::Engine;
    match format {
        "int64" => text.parse::<i64>().is_ok(),
        "uint64" => text.parse::<u64>().is_ok(),
        "byte" => {
            let text = text.trim_end_matches('=').replace('-', "+").replace('_', "/");
            base64::engine::general_purpose::STANDARD_NO_PAD.decode(text).is_ok()
        }
        "google-datetime" | "date-time" => text.parse::<jiff::Timestamp>().is_ok(),
        "google-duration" => text.strip_suffix('s').is_some_and(|number| number.parse::<f64>().is_ok()),
        _ => true,
    }
}

fn brief(value: &Value) -> String {
    let mut text = value.to_string();
    if let Some((end, _)) = text.char_indices().nth(40) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The folder of the documents in the tests' Python packages, which are installed if they are missing.
fn folder() -> Result<&'static Path, String> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = FOLDER.get_or_init(|| {
        let python = python()?;
        let library = python.parent().and_then(Path::parent).ok_or("the interpreter has no folder")?.join("lib");
        let entries = std::fs::read_dir(&library).map_err(|e| format!("read {}: {e}", library.display()))?;
        let inner = "site-packages/googleapiclient/discovery_cache/documents";
        let folders = entries.filter_map(|entry| Some(entry.ok()?.path().join(inner)));
        let found = folders.into_iter().find(|folder| folder.is_dir());
        found.ok_or(format!("google-api-python-client is not in {}", library.display()))
    });
    found.as_deref().map_err(Clone::clone)
}
