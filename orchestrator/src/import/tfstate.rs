//! A state file of Terraform or OpenTofu, version 4, parsed into a list of objects.
//!
//! Only addresses and requested attributes are read. Attributes marked as sensitive are never returned. Outputs and
//! private data are not read, and only addresses can be printed.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value};
use textnlp_provider::{Problem, Problems};

/// The supported version: Terraform's since 0.12, and always OpenTofu's.
pub const VERSION: u64 = 4;

/// The largest file, in bytes.
pub const MAX_FILE_BYTES: u64 = 256 << 20;

/// The most problems in a report; a file with more is not a state file.
const MAX_PROBLEMS: usize = 40;

/// A state file.
#[derive(Debug)]
pub struct TerraformState {
    /// The tool that wrote it last, by its own statement.
    pub tool: String,
    /// The file's own lineage; unrelated to [`Lineage`](textnlp_provider::Lineage).
    pub lineage: String,
    /// The serial: how often it was written.
    pub serial: u64,
    /// Every object, in the file's order.
    pub objects: Vec<TerraformObject>,
}

/// One object of a state file.
pub struct TerraformObject {
    /// Its address, as in `terraform state list`: `module.a["x"].aws_vpc.main[0]`.
    pub address: String,
    /// Its type: `aws_vpc`.
    pub kind: String,
    /// Its status.
    pub standing: TerraformStatus,
    attributes: Map<String, Value>,
    sensitive: BTreeSet<String>,
}

/// The status of an object in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TerraformStatus {
    /// Managed and complete.
    Managed,
    /// A data source.
    Data,
    /// Its creation failed halfway.
    Tainted,
    /// Replaced and yet to be destroyed.
    Deposed,
}

impl TerraformObject {
    /// The value of an attribute that is not sensitive.
    pub(super) fn attribute(&self, name: &str) -> Result<&Value, String> {
        if self.sensitive.contains(name) {
            return Err(format!("its `{name}` is marked as sensitive, and is not read"));
        }
        match self.attributes.get(name) {
            None | Some(Value::Null) => Err(format!("it has no `{name}`")),
            Some(value) => Ok(value),
        }
    }
}

impl fmt::Debug for TerraformObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

/// Parses a file. The report lists every problem.
pub fn read(bytes: &[u8]) -> Result<TerraformState, Problems> {
    let whole = |cause: String, fix: &str| Problems(vec![Problem::new("the file", cause, fix)]);
    const GIVE: &str = "give the state: `terraform state pull > state.json`";
    for (starts, what) in [
        (&b"PK\x03\x04"[..], "it is a saved plan, which only Terraform reads"),
        (b"age-encryption.org/", "it is encrypted with age"),
        (b"-----BEGIN", "it is encrypted, or a key"),
        (b"\x1f\x8b", "it is compressed"),
        (b"Salted__", "it is encrypted with openssl"),
    ] {
        if bytes.starts_with(starts) {
            return Err(whole(
                what.to_owned(),
                "decrypt or unpack it with the tool that wrote it, then give the result",
            ));
        }
    }
    let document: Value =
        serde_json::from_slice(bytes).map_err(|error| whole(format!("it is not JSON: {error}"), GIVE))?;
    let Value::Object(document) = document else {
        return Err(whole("it is not a Terraform state: the JSON is not an object".to_owned(), GIVE));
    };
    if document.contains_key("encrypted_data") || document.contains_key("sops") {
        return Err(whole(
            "it is encrypted".to_owned(),
            "decrypt it with the tool that encrypted it: `tofu state pull > state.json`",
        ));
    }
    if document.contains_key("format_version") {
        return Err(whole("it is the output of `terraform show -json`, not a state".to_owned(), GIVE));
    }
    match document.get("version") {
        Some(Value::Number(version)) if version.as_u64() == Some(VERSION) => {}
        Some(Value::Number(version)) if version.as_u64().is_some_and(|version| version < VERSION) => {
            let fix = "let Terraform 0.12 or newer write it again: `terraform state pull > state.json`";
            return Err(whole(format!("its version is {version}; this program reads {VERSION}"), fix));
        }
        Some(Value::Number(version)) => {
            let fix = "a newer textnlp-deploy may read it";
            return Err(whole(format!("its version is {version}; this program reads {VERSION}"), fix));
        }
        _ => return Err(whole("it has no `version`: it is not a Terraform state".to_owned(), GIVE)),
    }
    let mut reader = Reader::default();
    let tool = reader.text(&document, "terraform_version", "");
    let lineage = reader.text(&document, "lineage", "");
    let serial = document.get("serial").and_then(Value::as_u64).unwrap_or_else(|| {
        reader.wrong("serial", "it is not a whole number");
        0
    });
    match document.get("resources") {
        Some(Value::Array(resources)) => {
            for (i, resource) in resources.iter().enumerate() {
                reader.resource(&format!("resources[{i}]"), resource);
            }
        }
        _ => reader.wrong("resources", "it is not a list"),
    }
    if reader.problems.is_empty() {
        return Ok(TerraformState { tool, lineage, serial, objects: reader.objects });
    }
    if reader.problems.len() > MAX_PROBLEMS {
        let more = reader.problems.len() - MAX_PROBLEMS;
        reader.problems.truncate(MAX_PROBLEMS);
        reader.problems.push(Problem::new("the file", format!("{more} more of its entries are invalid"), GIVE));
    }
    Err(Problems(reader.problems))
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control)
}

/// The parsed objects and problems so far.
#[derive(Default)]
struct Reader {
    objects: Vec<TerraformObject>,
    addresses: BTreeSet<String>,
    problems: Vec<Problem>,
}

impl Reader {
    fn wrong(&mut self, location: &str, cause: impl Into<String>) {
        self.problems.push(Problem::new(location, cause, "write the file again: `terraform state pull > state.json`"));
    }

    /// A member that must be a non-empty string without control characters.
    fn text(&mut self, within: &Map<String, Value>, name: &str, location: &str) -> String {
        match within.get(name) {
            Some(Value::String(text)) if is_plain(text) => text.clone(),
            _ => {
                let dot = if location.is_empty() { "" } else { "." };
                self.wrong(&format!("{location}{dot}{name}"), "it is empty, too long or not text");
                String::new()
            }
        }
    }

    fn resource(&mut self, location: &str, resource: &Value) {
        let Value::Object(resource) = resource else { return self.wrong(location, "it is not an object") };
        let before = self.problems.len();
        let kind = self.text(resource, "type", location);
        let name = self.text(resource, "name", location);
        let data = match self.text(resource, "mode", location).as_str() {
            "managed" => false,
            "data" => true,
            "" => false,
            other => {
                self.wrong(
                    &format!("{location}.mode"),
                    format!("`{}` is neither `managed` nor `data`", crate::state::cut(other, 40)),
                );
                false
            }
        };
        let module = match resource.get("module") {
            None => String::new(),
            Some(Value::String(module)) if module.starts_with("module.") && is_plain(module) => format!("{module}."),
            Some(_) => {
                self.wrong(&format!("{location}.module"), "it is not a module address");
                String::new()
            }
        };
        let Some(Value::Array(instances)) = resource.get("instances") else {
            return self.wrong(&format!("{location}.instances"), "it is not a list");
        };
        if self.problems.len() > before {
            return;
        }
        let address = format!("{module}{}{kind}.{name}", if data { "data." } else { "" });
        for (i, instance) in instances.iter().enumerate() {
            self.instance(&format!("{location}.instances[{i}]"), instance, &address, &kind, data);
        }
    }

    fn instance(&mut self, location: &str, instance: &Value, address: &str, kind: &str, data: bool) {
        let Value::Object(instance) = instance else { return self.wrong(location, "it is not an object") };
        let before = self.problems.len();
        let key = match instance.get("index_key") {
            None | Some(Value::Null) => String::new(),
            Some(Value::Number(number)) if number.is_u64() => format!("[{number}]"),
            Some(Value::String(key)) => format!("[{}]", Value::from(key.as_str())),
            Some(_) => {
                self.wrong(&format!("{location}.index_key"), "it is neither a number nor a text");
                String::new()
            }
        };
        if instance.get("schema_version").and_then(Value::as_u64).is_none() {
            self.wrong(&format!("{location}.schema_version"), "it is not a whole number");
        }
        let deposed = match instance.get("deposed") {
            None | Some(Value::Null) => None,
            Some(Value::String(deposed)) if is_plain(deposed) => Some(deposed.as_str()),
            Some(_) => {
                self.wrong(&format!("{location}.deposed"), "it is not a key");
                None
            }
        };
        let tainted = match instance.get("status") {
            None | Some(Value::Null) => false,
            Some(Value::String(status)) if status == "tainted" => true,
            Some(_) => {
                self.wrong(&format!("{location}.status"), "it is not `tainted`, the only one there is");
                false
            }
        };
        let attributes = match instance.get("attributes") {
            Some(Value::Object(attributes)) => attributes.clone(),
            _ if instance.contains_key("attributes_flat") => {
                self.wrong(location, "its attributes have the format of Terraform before 0.12");
                Map::new()
            }
            _ => {
                self.wrong(&format!("{location}.attributes"), "it is not an object");
                Map::new()
            }
        };
        let sensitive =
            self.sensitive(&format!("{location}.sensitive_attributes"), instance.get("sensitive_attributes"));
        let deposed_mark = deposed.map(|key| format!(" (deposed {key})")).unwrap_or_default();
        let address = format!("{address}{key}{deposed_mark}");
        if !self.addresses.insert(address.clone()) {
            self.wrong(location, format!("`{}` is in the file twice", crate::state::cut(&address, 200)));
        }
        if self.problems.len() > before {
            return;
        }
        let standing = match (data, deposed.is_some(), tainted) {
            (true, ..) => TerraformStatus::Data,
            (_, true, _) => TerraformStatus::Deposed,
            (.., true) => TerraformStatus::Tainted,
            _ => TerraformStatus::Managed,
        };
        self.objects.push(TerraformObject { address, kind: kind.to_owned(), standing, attributes, sensitive });
    }

    /// The attributes that contain a sensitive value at any depth. Each path is a list of steps; the first one names
    /// the attribute.
    fn sensitive(&mut self, location: &str, paths: Option<&Value>) -> BTreeSet<String> {
        let paths = match paths {
            None | Some(Value::Null) => return BTreeSet::new(),
            Some(Value::Array(paths)) => paths,
            Some(_) => {
                self.wrong(location, "it is not a list");
                return BTreeSet::new();
            }
        };
        let mut names = BTreeSet::new();
        for path in paths {
            let first = path.get(0).filter(|step| step["type"] == "get_attr");
            match first.and_then(|step| step["value"].as_str()) {
                Some(name) => drop(names.insert(name.to_owned())),
                // Which attribute is sensitive is unknown, so the file is rejected.
                None => self.wrong(location, "it has a path without an attribute"),
            }
        }
        names
    }
}
