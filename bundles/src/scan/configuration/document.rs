//! Configuration files as data: parsed, classified by their content, with a path for every value.

use serde::Deserialize as _;
use serde_json::{Map, Value};

/// No configuration is longer; what is, is data.
pub(crate) const MOST_BYTES: u64 = 2 << 20;

/// What a document configures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DocumentKind {
    /// An environment, as a person writes it or rendered.
    Environment,
    /// `server.yaml`.
    Server,
    /// `gateway.yaml`.
    Gateway,
    /// A compose file.
    Compose,
    /// An object of Kubernetes.
    Kubernetes,
    /// Something else: looked through for passwords only.
    Other,
}

/// One document of a file.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    /// The file.
    pub(crate) file: String,
    pub(crate) of: DocumentKind,
    pub(crate) value: Value,
    /// `staging`; where the document does not say, of another in the same folder.
    pub(crate) phase: Option<String>,
}

impl Document {
    /// All documents of a file.
    pub(crate) fn read(file: &str, bytes: &[u8]) -> Result<Vec<Document>, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
        let values = if file.ends_with(".json") {
            vec![serde_json::from_str(text).map_err(|e| e.to_string())?]
        } else {
            let mut values = Vec::new();
            for document in serde_yaml::Deserializer::from_str(text) {
                let mut value = serde_yaml::Value::deserialize(document).map_err(|e| e.to_string())?;
                value.apply_merge().map_err(|e| e.to_string())?;
                values.push(json(value));
            }
            values
        };
        let lists = values.into_iter().flat_map(|mut value| match value.get("kind").and_then(Value::as_str) {
            Some("List") => match value.get_mut("items").map(Value::take) {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            },
            _ => vec![value],
        });
        let documents = lists.filter(|value| !value.is_null()).map(|value| {
            let of = document_kind(&value);
            let phase = match of {
                DocumentKind::Environment => value.get("phase").and_then(Value::as_str).or(Some("development")),
                DocumentKind::Server => value.pointer("/textnlp/phase").and_then(Value::as_str),
                _ => None,
            };
            Document { file: file.to_owned(), of, phase: phase.map(str::to_owned), value }
        });
        Ok(documents.collect())
    }

    /// Whether it is for production. A document without a phase counts as production.
    pub(crate) fn in_production(&self) -> bool {
        !matches!(self.phase.as_deref(), Some("development" | "staging"))
    }

    /// Whether it is for a developer's machine.
    pub(crate) fn in_development(&self) -> bool {
        self.phase.as_deref() == Some("development")
    }

    /// `server.api` of an environment, `textnlp.api` of a server's file: the subtree and its path.
    pub(crate) fn served(&self, part: &str) -> Option<(String, &Value)> {
        let root = match self.of {
            DocumentKind::Environment => "server",
            DocumentKind::Server => "textnlp",
            _ => return None,
        };
        Some((format!("{root}.{part}"), self.value.get(root)?.get(part)?))
    }

    /// The containers it runs, with their paths.
    pub(crate) fn containers(&self) -> Vec<Container<'_>> {
        match self.of {
            DocumentKind::Compose => {
                let services = self.value.get("services").and_then(Value::as_object);
                let container = |(name, value)| Container { path: format!("services.{name}"), value, pod: None };
                services.into_iter().flatten().map(container).collect()
            }
            DocumentKind::Kubernetes => self.pod().map(|(path, pod)| containers_of(&path, pod)).unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// The pod that an object of Kubernetes makes.
    pub(crate) fn pod(&self) -> Option<(String, &Value)> {
        let path = match self.value.get("kind").and_then(Value::as_str)? {
            _ if self.of != DocumentKind::Kubernetes => return None,
            "Pod" => "spec",
            "CronJob" => "spec.jobTemplate.spec.template.spec",
            "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Job" => "spec.template.spec",
            _ => return None,
        };
        let value = path.split('.').try_fold(&self.value, |value, key| value.get(key))?;
        Some((path.to_owned(), value))
    }
}

fn containers_of<'a>(path: &str, pod: &'a Value) -> Vec<Container<'a>> {
    let mut all = Vec::new();
    for key in ["initContainers", "containers"] {
        for (at, value) in pod.get(key).and_then(Value::as_array).into_iter().flatten().enumerate() {
            all.push(Container { path: format!("{path}.{key}[{at}]"), value, pod: Some(pod) });
        }
    }
    all
}

/// A container of a compose file or of a pod.
pub(crate) struct Container<'a> {
    pub(crate) path: String,
    pub(crate) value: &'a Value,
    /// None in a compose file.
    pub(crate) pod: Option<&'a Value>,
}

impl Container<'_> {
    /// A setting of the container's security context, or else of its pod's.
    pub(crate) fn security(&self, key: &str) -> Option<&Value> {
        let of =
            |value: Option<&'_ Value>| value.and_then(|v| v.get("securityContext")).and_then(|s| s.get(key)).is_some();
        let holder = if of(Some(self.value)) { Some(self.value) } else { self.pod };
        holder?.get("securityContext")?.get(key)
    }

    /// Strings of a list under a key.
    pub(crate) fn strings(&self, key: &str) -> Vec<String> {
        let list = self.value.get(key).and_then(Value::as_array);
        list.into_iter().flatten().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect()
    }
}

fn document_kind(value: &Value) -> DocumentKind {
    let has = |key: &str| value.get(key).is_some();
    let object = |key: &str| value.get(key).is_some_and(Value::is_object);
    if has("apiVersion") && has("kind") {
        DocumentKind::Kubernetes
    } else if object("services") {
        DocumentKind::Compose
    } else if object("textnlp") {
        DocumentKind::Server
    } else if object("gateway") {
        DocumentKind::Gateway
    } else if has("environment") && (has("sites") || has("phase") || has("extends")) {
        DocumentKind::Environment
    } else {
        DocumentKind::Other
    }
}

fn json(value: serde_yaml::Value) -> Value {
    use serde_yaml::Value as Yaml;
    match value {
        Yaml::Null => Value::Null,
        Yaml::Bool(b) => Value::Bool(b),
        Yaml::Number(n) => {
            let integer = n.as_u64().map(Value::from).or_else(|| n.as_i64().map(Value::from));
            integer.or_else(|| n.as_f64().map(Value::from)).unwrap_or(Value::Null)
        }
        Yaml::String(text) => Value::String(text),
        Yaml::Sequence(list) => Value::Array(list.into_iter().map(json).collect()),
        Yaml::Mapping(map) => {
            let mut object = Map::new();
            for (key, value) in map {
                let key = match json(key) {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                object.insert(key, json(value));
            }
            Value::Object(object)
        }
        Yaml::Tagged(tagged) => json(tagged.value),
    }
}

/// Calls for every value, with its path and the key it stands under.
pub(crate) fn walk<'a>(value: &'a Value, visit: &mut dyn FnMut(&str, &str, &'a Value)) {
    walk_from(value, "", "", visit);
}

fn walk_from<'a>(value: &'a Value, path: &str, key: &str, visit: &mut dyn FnMut(&str, &str, &'a Value)) {
    visit(path, key, value);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk_from(value, &path, key, visit);
            }
        }
        Value::Array(list) => {
            for (at, value) in list.iter().enumerate() {
                walk_from(value, &format!("{path}[{at}]"), key, visit);
            }
        }
        _ => {}
    }
}
