//! The document itself, in CycloneDX 1.6, written so that the same content gives the same bytes.

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::Subject;

/// A list of software.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sbom(Value);

impl Sbom {
    /// As it is written in a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(&self.0).expect("a document is plain data");
        bytes.push(b'\n');
        bytes
    }

    /// The document.
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// How many components it lists.
    pub fn components(&self) -> usize {
        self.0["components"].as_array().map_or(0, Vec::len)
    }
}

/// One line of the list.
pub(super) struct Component {
    kind: &'static str,
    name: String,
    version: String,
    pub(super) reference: String,
    pub(super) purl: Option<String>,
    pub(super) sha256: Option<String>,
    pub(super) license: Option<String>,
    pub(super) properties: Vec<(&'static str, String)>,
    pub(super) card: Option<Value>,
}

impl Component {
    pub(super) fn new(kind: &'static str, name: &str, version: &str, reference: String) -> Component {
        Component {
            kind,
            name: name.to_owned(),
            version: version.to_owned(),
            reference,
            purl: None,
            sha256: None,
            license: None,
            properties: Vec::new(),
            card: None,
        }
    }

    fn value(&self) -> Value {
        let mut value = Map::new();
        let mut put = |key: &str, part: Value| value.insert(key.to_owned(), part);
        put("type", json!(self.kind));
        put("bom-ref", json!(self.reference));
        put("name", json!(self.name));
        if !self.version.is_empty() {
            put("version", json!(self.version));
        }
        if let Some(sha256) = &self.sha256 {
            put("hashes", json!([{"alg": "SHA-256", "content": sha256}]));
        }
        if let Some(license) = &self.license {
            put("licenses", json!([{"expression": license}]));
        }
        if let Some(purl) = &self.purl {
            put("purl", json!(purl));
        }
        if let Some(card) = &self.card {
            put("modelCard", card.clone());
        }
        if !self.properties.is_empty() {
            put("properties", properties(&self.properties));
        }
        Value::Object(value)
    }
}

fn properties(list: &[(&'static str, String)]) -> Value {
    list.iter().map(|(name, value)| json!({"name": name, "value": value})).collect()
}

/// What a document is made of.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) components: Vec<Component>,
    /// Dependencies, by reference.
    pub(super) needs: Vec<(String, Vec<String>)>,
    /// The dependencies of the subject.
    pub(super) top: Vec<String>,
    pub(super) properties: Vec<(&'static str, String)>,
}

pub(super) fn make(subject: &Subject, kind: &str, mut parts: Parts) -> Sbom {
    parts.components.sort_by(|a, b| a.reference.cmp(&b.reference));
    parts.needs.sort();
    parts.top.sort();
    parts.top.dedup();
    let own = format!("subject:{}@{}", subject.name, subject.version);
    let mut dependencies = vec![json!({"ref": own, "dependsOn": parts.top})];
    dependencies.extend(parts.needs.iter().map(|(from, to)| json!({"ref": from, "dependsOn": to})));
    let mut metadata = json!({
        "tools": {"components": [{"type": "application", "name": "textnlp-deploy"}]},
        "component": {"type": kind, "bom-ref": own, "name": subject.name, "version": subject.version},
    });
    if let Some(epoch) = subject.epoch {
        let second = i64::try_from(epoch).ok().and_then(|s| Timestamp::from_second(s).ok());
        metadata["timestamp"] = json!(second.unwrap_or(Timestamp::UNIX_EPOCH).to_string());
        metadata["tools"]["components"][0]["version"] = json!(env!("CARGO_PKG_VERSION"));
    }
    if !parts.properties.is_empty() {
        metadata["properties"] = properties(&parts.properties);
    }
    let components: Vec<Value> = parts.components.iter().map(Component::value).collect();
    let serial = serial(&json!([metadata, components, dependencies]));
    Sbom(json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": serial,
        "version": 1,
        "metadata": metadata,
        "components": components,
        "dependencies": dependencies,
    }))
}

/// A UUID (version 8) from the content's SHA-256, so that equal documents have equal numbers.
fn serial(content: &Value) -> String {
    let digest = Sha256::digest(serde_json::to_vec(content).expect("a document is plain data"));
    let mut bytes = [0_u8; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes[6] = 0x80 | (bytes[6] & 0x0f);
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    let hex = hex::encode(bytes);
    format!("urn:uuid:{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
