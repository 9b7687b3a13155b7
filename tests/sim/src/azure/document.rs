//! The models of Azure's management libraries, against which requests and answers are held.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::kinds;

/// How deep bodies nest.
const MAX_DEPTH: usize = 24;

/// A model: the module below `azure.mgmt` and the class, such as `network.models VirtualNetwork`. An empty one has no
/// contract.
pub(crate) type Model = &'static str;

/// What is wrong with a body.
#[derive(Debug, Default)]
pub(crate) struct Problems(pub(crate) Vec<String>);

type Models = BTreeMap<String, Map<String, Value>>;

/// The models that the simulated types reach, read once.
fn models() -> Result<&'static Models, String> {
    static MODELS: OnceLock<Result<Models, String>> = OnceLock::new();
    MODELS.get_or_init(extract).as_ref().map_err(Clone::clone)
}

fn extract() -> Result<Models, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../environments");
    let said = Command::new("bash").arg(&script).args(["python", "azure"]).output();
    let said = said.map_err(|e| format!("run {}: {e}", script.display()))?;
    let python = String::from_utf8_lossy(&said.stdout).trim().to_owned();
    if !said.status.success() || python.is_empty() {
        return Err(format!("install Python packages: {}", String::from_utf8_lossy(&said.stderr).trim()));
    }
    let mut command = Command::new(python);
    command.args(["-c", include_str!("models.py")]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("start the interpreter: {e}"))?;
    let mut wanted: Vec<Model> = kinds::models();
    wanted.sort_unstable();
    wanted.dedup();
    if let Some(mut input) = child.stdin.take() {
        input.write_all(wanted.join("\n").as_bytes()).map_err(|e| format!("write to the interpreter: {e}"))?;
    }
    let said = child.wait_with_output().map_err(|e| format!("read from the interpreter: {e}"))?;
    if !said.status.success() {
        return Err(format!("read the models: {}", String::from_utf8_lossy(&said.stderr).trim()));
    }
    serde_json::from_slice(&said.stdout).map_err(|e| format!("parse the models: {e}"))
}

/// Whether there is such a model.
///
/// # Errors
/// The models cannot be read.
pub fn has(model: &str) -> Result<bool, String> {
    Ok(models()?.contains_key(model))
}

/// What is wrong with a request's body. Members that are read-only are ignored, as Azure does.
pub(crate) fn check_request(model: Model, body: &Value) -> Result<Problems, String> {
    check(model, body, true)
}

/// What is wrong with an answer's body.
pub(crate) fn check_answer(model: Model, body: &Value) -> Result<Problems, String> {
    check(model, body, false)
}

fn check(model: Model, body: &Value, is_request: bool) -> Result<Problems, String> {
    let mut problems = Problems::default();
    if !model.is_empty() {
        let walk = Walk { models: models()?, is_request };
        walk.class(model, body, "", "", &mut problems, 0);
        if is_request {
            walk.required(model, body, &mut problems);
        }
    }
    Ok(problems)
}

/// Removes members that are read-only, as Azure ignores them.
pub(crate) fn strip(model: Model, body: &mut Value) {
    let Some(members) = models().ok().and_then(|models| models.get(model)) else { return };
    for (key, member) in members {
        let parts: Vec<&str> = key.split('.').collect();
        let Some((last, parents)) = parts.split_last().filter(|_| member["readonly"] == true) else { continue };
        let parent = parents.iter().try_fold(&mut *body, |place, part| place.get_mut(*part));
        if let Some(parent) = parent.and_then(Value::as_object_mut) {
            parent.shift_remove(*last);
        }
    }
}

struct Walk {
    models: &'static Models,
    is_request: bool,
}

impl Walk {
    /// Checks the members of an object. `inner` is where it lies within the model, which flattens some objects.
    fn class(&self, model: &str, body: &Value, inner: &str, path: &str, problems: &mut Problems, depth: usize) {
        let Some(members) = self.models.get(model) else { return };
        let Some(object) = body.as_object().filter(|_| depth < MAX_DEPTH) else {
            return problems.0.push(format!("{path}: it is no object"));
        };
        for (name, value) in object {
            let (key, place) = (format!("{inner}{name}"), format!("{path}.{name}"));
            let below = format!("{key}.");
            if let Some(member) = members.get(&key) {
                if !(self.is_request && member["readonly"] == true) {
                    self.value(model, member, value, &place, problems, depth);
                }
            } else if members.keys().any(|one| one.starts_with(&below)) {
                // Clients send null for what they leave out.
                if !value.is_null() {
                    self.class(model, value, &below, &place, problems, depth + 1);
                }
            } else if !members.contains_key("") {
                problems.0.push(format!("{place}: the model has no such member"));
            }
        }
    }

    fn required(&self, model: &str, body: &Value, problems: &mut Problems) {
        for (key, member) in self.models.get(model).into_iter().flatten() {
            let found = body.pointer(&format!("/{}", key.replace('.', "/")));
            let is_missing = member["required"] == true && member["readonly"] != true && found.is_none();
            if is_missing {
                problems.0.push(format!(".{key}: it is required"));
            }
        }
    }

    fn value(&self, model: &str, member: &Value, value: &Value, path: &str, problems: &mut Problems, depth: usize) {
        let kind = member["type"].as_str().unwrap_or_default();
        self.typed(model, kind, value, path, problems, depth);
        let Some(text) = value.as_str() else { return };
        let values = member["values"].as_array();
        let is_known =
            |values: &Vec<Value>| values.iter().filter_map(Value::as_str).any(|one| one.eq_ignore_ascii_case(text));
        if values.is_some_and(|values| !is_known(values)) && kind == "str" {
            problems.0.push(format!("{path}: {text:?} is none of the model's values"));
        }
        let most = member["max_length"].as_u64().is_some_and(|most| text.chars().count() as u64 > most);
        let least = member["min_length"].as_u64().is_some_and(|least| (text.chars().count() as u64) < least);
        if self.is_request && (most || least) {
            problems.0.push(format!("{path}: {text:?} has a length that the model does not allow"));
        }
    }

    fn typed(&self, model: &str, kind: &str, value: &Value, path: &str, problems: &mut Problems, depth: usize) {
        let list = kind.strip_prefix('[').and_then(|kind| kind.strip_suffix(']'));
        let map = kind.strip_prefix('{').and_then(|kind| kind.strip_suffix('}'));
        let is_right = match (kind, value) {
            (_, Value::Null) if self.is_request => true,
            (_, Value::Array(items)) if list.is_some() => {
                let inner = list.unwrap_or_default();
                let one = |(index, item): (usize, &Value)| {
                    self.typed(model, inner, item, &format!("{path}[{index}]"), problems, depth + 1);
                };
                items.iter().enumerate().for_each(one);
                true
            }
            (_, Value::Object(items)) if map.is_some() => {
                let inner = map.unwrap_or_default();
                let one = |(name, item): (&String, &Value)| {
                    self.typed(model, inner, item, &format!("{path}.{name}"), problems, depth + 1);
                };
                items.iter().for_each(one);
                true
            }
            ("object", _) => true,
            ("str" | "duration" | "base64" | "bytearray", Value::String(_)) => true,
            ("bool", Value::Bool(_)) | ("float", Value::Number(_)) => true,
            ("int" | "long" | "unix-time", Value::Number(number)) => number.is_i64() || number.is_u64(),
            ("date", Value::String(text)) => text.parse::<jiff::civil::Date>().is_ok(),
            ("iso-8601", Value::String(text)) => text.parse::<jiff::Timestamp>().is_ok(),
            (class, Value::Object(_)) if list.is_none() && map.is_none() => {
                let module = model.split_once(' ').map_or("", |(module, _)| module);
                let name = format!("{module} {class}");
                let is_class = self.models.contains_key(&name);
                if is_class {
                    self.class(&name, value, "", path, problems, depth + 1);
                }
                is_class
            }
            _ => false,
        };
        if !is_right {
            problems.0.push(format!("{path}: it is no {kind}"));
        }
    }
}
