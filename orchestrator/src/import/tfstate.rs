//! A state file of Terraform or OpenTofu, version 4, read as a list of objects.
//!
//! What is read of an object is its address and the attributes that are asked for by name. An attribute that the file marks as sensitive is
//! never given out, outputs and private data are not read at all, and nothing here can be printed but addresses.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value};
use textnlp_provider::{Problem, Problems};

/// The version that is read. Terraform has written it since 0.12, and OpenTofu always.
pub const VERSION: u64 = 4;

/// The longest file that is read, in bytes.
pub const LONGEST: u64 = 256 << 20;

/// Problems after which a report ends: a file with more of them is something else.
const MOST: usize = 40;

/// A state file.
#[derive(Debug)]
pub struct TerraformState {
    /// Which tool wrote it last, as it says.
    pub tool: String,
    /// The file's own lineage: another idea than ours.
    pub lineage: String,
    /// How often it was written.
    pub serial: u64,
    /// Every object, in the file's order.
    pub objects: Vec<TerraformObject>,
}

/// One object of a state file.
pub struct TerraformObject {
    /// As `terraform state list` shows it: `module.a["x"].aws_vpc.main[0]`.
    pub address: String,
    /// Its type: `aws_vpc`.
    pub kind: String,
    /// What sets it apart from one that is managed and whole.
    pub standing: TerraformStanding,
    attributes: Map<String, Value>,
    sensitive: BTreeSet<String>,
}

/// How an object stands in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TerraformStanding {
    /// Managed and whole.
    Managed,
    /// Only read.
    Data,
    /// Its creation went wrong half-way.
    Tainted,
    /// Replaced, and still to be removed.
    Deposed,
}

impl TerraformObject {
    /// An attribute that is not sensitive.
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

/// Reads a file. Everything that is wrong with it is in one report.
pub fn read(bytes: &[u8]) -> Result<TerraformState, Problems> {
    let whole = |cause: String, fix: &str| Problems(vec![Problem::new("the file", cause, fix)]);
    const GIVE: &str = "give the state itself: `terraform state pull > state.json`";
    for (starts, what) in [
        (&b"PK\x03\x04"[..], "it is a saved plan, which only Terraform reads"),
        (b"age-encryption.org/", "it is encrypted with age"),
        (b"-----BEGIN", "it is encrypted, or a key"),
        (b"\x1f\x8b", "it is compressed"),
        (b"Salted__", "it is encrypted with openssl"),
    ] {
        if bytes.starts_with(starts) {
            return Err(whole(what.to_owned(), "open it with the tool that made it, then give what comes out"));
        }
    }
    let document: Value =
        serde_json::from_slice(bytes).map_err(|error| whole(format!("it is no JSON: {error}"), GIVE))?;
    let Value::Object(document) = document else {
        return Err(whole("it is JSON and no state: a state is an object".to_owned(), GIVE));
    };
    if document.contains_key("encrypted_data") || document.contains_key("sops") {
        return Err(whole(
            "it is encrypted".to_owned(),
            "let the tool that sealed it open it: `tofu state pull > state.json`",
        ));
    }
    if document.contains_key("format_version") {
        return Err(whole("it is what `terraform show -json` prints, and no state".to_owned(), GIVE));
    }
    match document.get("version") {
        Some(Value::Number(version)) if version.as_u64() == Some(VERSION) => {}
        Some(Value::Number(version)) if version.as_u64().is_some_and(|version| version < VERSION) => {
            let fix = "let Terraform 0.12 or newer write it again: `terraform state pull > state.json`";
            return Err(whole(format!("its version is {version}, and this program reads {VERSION}"), fix));
        }
        Some(Value::Number(version)) => {
            let fix = "a newer textnlp-deploy may read it";
            return Err(whole(format!("its version is {version}, and this program reads {VERSION}"), fix));
        }
        _ => return Err(whole("it has no `version`: no state of Terraform's".to_owned(), GIVE)),
    }
    let mut reader = Reader::default();
    let tool = reader.text(&document, "terraform_version", "");
    let lineage = reader.text(&document, "lineage", "");
    let serial = document.get("serial").and_then(Value::as_u64).unwrap_or_else(|| {
        reader.wrong("serial", "it is no whole number");
        0
    });
    match document.get("resources") {
        Some(Value::Array(resources)) => {
            for (i, resource) in resources.iter().enumerate() {
                reader.resource(&format!("resources[{i}]"), resource);
            }
        }
        _ => reader.wrong("resources", "it is no list"),
    }
    if reader.problems.is_empty() {
        return Ok(TerraformState { tool, lineage, serial, objects: reader.objects });
    }
    if reader.problems.len() > MOST {
        let more = reader.problems.len() - MOST;
        reader.problems.truncate(MOST);
        reader.problems.push(Problem::new(
            "the file",
            format!("{more} more of its parts are not as they must be"),
            GIVE,
        ));
    }
    Err(Problems(reader.problems))
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control)
}

/// What was read so far, and what is wrong with it.
#[derive(Default)]
struct Reader {
    objects: Vec<TerraformObject>,
    addresses: BTreeSet<String>,
    problems: Vec<Problem>,
}

impl Reader {
    fn wrong(&mut self, place: &str, cause: impl Into<String>) {
        self.problems.push(Problem::new(place, cause, "write the file anew: `terraform state pull > state.json`"));
    }

    /// A member that must be a text with something in it, and nothing that a terminal would obey.
    fn text(&mut self, within: &Map<String, Value>, name: &str, place: &str) -> String {
        match within.get(name) {
            Some(Value::String(text)) if is_plain(text) => text.clone(),
            _ => {
                let dot = if place.is_empty() { "" } else { "." };
                self.wrong(&format!("{place}{dot}{name}"), "it is no text, or an empty or a strange one");
                String::new()
            }
        }
    }

    fn resource(&mut self, place: &str, resource: &Value) {
        let Value::Object(resource) = resource else { return self.wrong(place, "it is no object") };
        let before = self.problems.len();
        let kind = self.text(resource, "type", place);
        let name = self.text(resource, "name", place);
        let data = match self.text(resource, "mode", place).as_str() {
            "managed" => false,
            "data" => true,
            "" => false,
            other => {
                self.wrong(
                    &format!("{place}.mode"),
                    format!("`{}` is neither `managed` nor `data`", crate::state::cut(other, 40)),
                );
                false
            }
        };
        let module = match resource.get("module") {
            None => String::new(),
            Some(Value::String(module)) if module.starts_with("module.") && is_plain(module) => format!("{module}."),
            Some(_) => {
                self.wrong(&format!("{place}.module"), "it is no address of a module");
                String::new()
            }
        };
        let Some(Value::Array(instances)) = resource.get("instances") else {
            return self.wrong(&format!("{place}.instances"), "it is no list");
        };
        if self.problems.len() > before {
            return;
        }
        let address = format!("{module}{}{kind}.{name}", if data { "data." } else { "" });
        for (i, instance) in instances.iter().enumerate() {
            self.instance(&format!("{place}.instances[{i}]"), instance, &address, &kind, data);
        }
    }

    fn instance(&mut self, place: &str, instance: &Value, address: &str, kind: &str, data: bool) {
        let Value::Object(instance) = instance else { return self.wrong(place, "it is no object") };
        let before = self.problems.len();
        let key = match instance.get("index_key") {
            None | Some(Value::Null) => String::new(),
            Some(Value::Number(number)) if number.is_u64() => format!("[{number}]"),
            Some(Value::String(key)) => format!("[{}]", Value::from(key.as_str())),
            Some(_) => {
                self.wrong(&format!("{place}.index_key"), "it is neither a number nor a text");
                String::new()
            }
        };
        if instance.get("schema_version").and_then(Value::as_u64).is_none() {
            self.wrong(&format!("{place}.schema_version"), "it is no whole number");
        }
        let deposed = match instance.get("deposed") {
            None | Some(Value::Null) => None,
            Some(Value::String(deposed)) if is_plain(deposed) => Some(deposed.as_str()),
            Some(_) => {
                self.wrong(&format!("{place}.deposed"), "it is no key");
                None
            }
        };
        let tainted = match instance.get("status") {
            None | Some(Value::Null) => false,
            Some(Value::String(status)) if status == "tainted" => true,
            Some(_) => {
                self.wrong(&format!("{place}.status"), "it is not `tainted`, the only one there is");
                false
            }
        };
        let attributes = match instance.get("attributes") {
            Some(Value::Object(attributes)) => attributes.clone(),
            _ if instance.contains_key("attributes_flat") => {
                self.wrong(place, "its attributes are in the form of before Terraform 0.12");
                Map::new()
            }
            _ => {
                self.wrong(&format!("{place}.attributes"), "it is no object");
                Map::new()
            }
        };
        let sensitive = self.sensitive(&format!("{place}.sensitive_attributes"), instance.get("sensitive_attributes"));
        let deposed_mark = deposed.map(|key| format!(" (deposed {key})")).unwrap_or_default();
        let address = format!("{address}{key}{deposed_mark}");
        if !self.addresses.insert(address.clone()) {
            self.wrong(place, format!("`{}` is in the file twice", crate::state::cut(&address, 200)));
        }
        if self.problems.len() > before {
            return;
        }
        let standing = match (data, deposed.is_some(), tainted) {
            (true, ..) => TerraformStanding::Data,
            (_, true, _) => TerraformStanding::Deposed,
            (.., true) => TerraformStanding::Tainted,
            _ => TerraformStanding::Managed,
        };
        self.objects.push(TerraformObject { address, kind: kind.to_owned(), standing, attributes, sensitive });
    }

    /// The attributes that hold something sensitive anywhere below them: each path is a list of steps, the first one names the attribute.
    fn sensitive(&mut self, place: &str, paths: Option<&Value>) -> BTreeSet<String> {
        let paths = match paths {
            None | Some(Value::Null) => return BTreeSet::new(),
            Some(Value::Array(paths)) => paths,
            Some(_) => {
                self.wrong(place, "it is no list");
                return BTreeSet::new();
            }
        };
        let mut names = BTreeSet::new();
        for path in paths {
            let first = path.get(0).filter(|step| step["type"] == "get_attr");
            match first.and_then(|step| step["value"].as_str()) {
                Some(name) => drop(names.insert(name.to_owned())),
                // Nobody knows what it hides, so it is not guessed.
                None => self.wrong(place, "it has a path that names no attribute"),
            }
        }
        names
    }
}
