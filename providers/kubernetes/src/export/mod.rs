//! The objects of a site for other tools: one stream of YAML, a Kustomize folder, a Helm chart.
//!
//! What they share is made here: objects in the order of the graph, digests of configuration filled in, and a list of the secrets that
//! somebody has to bring, since an export holds none. A job of Kubernetes cannot be changed, so each has the digest of what it does in its name.

mod helm;
mod kustomize;
mod notes;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use textnlp_provider::{OutputRef, Outputs, Ownership, ResourceId, Wanted};

use crate::canary::SECRET;
use crate::lower::AUTHORITY;
use crate::manifest;
use crate::table::{self, Row};

/// Which tool reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One stream of documents, for `kubectl apply`.
    Yaml,
    /// A folder with a `kustomization.yaml`, for `kubectl apply -k`.
    Kustomize,
    /// A folder that is a chart, for `helm install`.
    Helm,
}

/// One file of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportFile {
    /// Below the folder of the export, with `/`.
    pub path: String,
    /// What it holds.
    pub text: String,
}

/// A Secret that has to be in the namespace before pods begin, which no export holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeededSecret {
    /// Its name.
    pub name: String,
    /// `Opaque`, `kubernetes.io/tls`.
    pub kind: String,
    /// Its keys; none where others make it.
    pub keys: BTreeSet<String>,
}

/// Files for a tool, and what they do not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// In the order of their paths.
    pub files: Vec<ExportFile>,
    /// In the order of their names, those of others last.
    pub secrets: Vec<NeededSecret>,
}

const TLS: &str = "kubernetes.io/tls";
/// The Secret of the first API key: who it is and its digest, never the key.
const FIRST_KEY: &str = "textnlp-first-key";
const FIRST_KEY_ID: &str = "first-key-id";
const FIRST_KEY_DIGEST: &str = "first-key-sha256";

/// What is wanted of one site in a cluster, as files; `environment` names it. An error is an object that cannot be written so: which, and why.
pub fn export(wanted: &[Wanted], environment: &str, form: Form) -> Result<Export, String> {
    let site = SiteObjects::of(wanted)?;
    let mut files = match form {
        Form::Yaml => vec![ExportFile { path: "textnlp.yaml".to_owned(), text: site.stream(environment)? }],
        Form::Kustomize => kustomize::files(&site, environment)?,
        Form::Helm => helm::files(&site, environment)?,
    };
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let given = site.given.into_iter().map(|name| NeededSecret { name, kind: TLS.to_owned(), keys: BTreeSet::new() });
    Ok(Export { files, secrets: site.secrets.into_iter().chain(given).collect() })
}

/// One object on its way into a file.
struct Item {
    row: &'static Row,
    name: String,
    manifest: Value,
}

impl Item {
    /// `deployment-textnlp-api.yaml`.
    fn file(&self) -> String {
        format!("{}-{}.yaml", self.row.kind.to_lowercase(), self.name)
    }

    /// The manifest where nothing fills it in later: a job has its digest in its name.
    fn fixed(&self) -> Value {
        let mut manifest = self.manifest.clone();
        if self.row.kind == "Job" {
            manifest["metadata"]["name"] = json!(format!("{}-{}", self.name, short_digest(&manifest)));
        }
        manifest
    }
}

struct SiteObjects {
    /// Each after what it needs; secrets are not among them.
    items: Vec<Item>,
    secrets: Vec<NeededSecret>,
    /// Secrets that others make and renew in the namespace: only certificates are.
    given: Vec<String>,
    /// Maps of what a certificate that somebody brings is known by, which only an `up` knows of its own: their names, and their keys.
    maps: Vec<(String, Vec<String>)>,
    namespace: String,
    /// Whether the namespace is made with the rest.
    own_namespace: bool,
}

impl SiteObjects {
    fn of(wanted: &[Wanted]) -> Result<Self, String> {
        let ordered = in_order(wanted);
        let rows: Vec<(&Wanted, &'static Row)> =
            ordered.into_iter().filter_map(|one| Some((one, table::row(&one.kind)?))).collect();
        // What only depends on the object itself is known before there is a cluster.
        let digests: BTreeMap<&ResourceId, Outputs> = rows
            .iter()
            .filter(|(_, row)| row.kind == "ConfigMap")
            .map(|(one, row)| (&one.id, manifest::outputs(row, one.spec.as_value())))
            .collect();
        let mut site = Self {
            items: Vec::new(),
            secrets: Vec::new(),
            given: Vec::new(),
            maps: Vec::new(),
            namespace: String::new(),
            own_namespace: true,
        };
        for (one, row) in rows {
            let spec = one.spec.resolve_known(|id| digests.get(id));
            let name = spec.as_value()["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            if row.kind == "Namespace" {
                name.clone_into(&mut site.namespace);
            }
            // What exists already is brought by whoever made it.
            if matches!(one.ownership, Ownership::External(_)) {
                match row.kind {
                    "Secret" => site.given.push(name),
                    _ => site.own_namespace = false,
                }
                continue;
            }
            if row.kind == table::API_SERVICE {
                let cause =
                    "`scaling.adapter` needs a certificate and its authority in one object, which only an `up` makes";
                return Err(format!(
                    "{cause}: leave it out, and use prometheus-adapter with the rule in docs/guide/kubernetes.md"
                ));
            }
            // Only the job of an `up` reads it.
            if row.kind == "Secret" && name == SECRET {
                continue;
            }
            if row.kind == "Secret" {
                site.secrets.push(needed(&name, spec.as_value()));
                continue;
            }
            let mut manifest = Map::from_iter([
                ("apiVersion".to_owned(), json!(row.api_version())),
                ("kind".to_owned(), json!(row.kind)),
            ]);
            manifest.extend(spec.fields().map(|(name, value)| (name.clone(), value.clone())));
            let mut manifest = Value::Object(manifest);
            let mut asks_for_key = false;
            later(&mut manifest, &mut asks_for_key);
            if row.kind == "Job" {
                // By which both are removed before they are applied anew.
                manifest["metadata"]["labels"]["app.kubernetes.io/part-of"] = json!("textnlp");
            }
            if row.kind == "ConfigMap" && name == AUTHORITY && first_output(&manifest).is_some() {
                let keys = manifest["data"].as_object().into_iter().flatten().map(|(key, _)| key.clone());
                site.maps.push((name, keys.collect()));
                continue;
            }
            if let Some(left) = first_output(&manifest) {
                return Err(format!("{} needs {}#{}, which only an `up` knows", one.id, left.resource, left.field));
            }
            if asks_for_key && site.secrets.iter().all(|secret| secret.name != FIRST_KEY) {
                let keys = [FIRST_KEY_ID, FIRST_KEY_DIGEST].map(str::to_owned).into();
                site.secrets.push(NeededSecret { name: FIRST_KEY.to_owned(), kind: "Opaque".to_owned(), keys });
            }
            site.items.push(Item { row, name, manifest });
        }
        site.secrets.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(site)
    }

    /// All of them as one stream, with what has to be there before at its head.
    fn stream(&self, environment: &str) -> Result<String, String> {
        let mut text = notes::commented(&notes::yaml(self, environment));
        for item in &self.items {
            text += "---\n";
            text += &yaml(&item.fixed())?;
        }
        Ok(text)
    }
}

fn short_digest(manifest: &Value) -> String {
    hex::encode(&Sha256::digest(manifest.to_string())[..4])
}

/// As the tools read it, whose YAML is that of version 1.1: there `off` is no text, nor is `1:30`. What could be taken for something else is
/// written with quotes.
fn yaml(manifest: &Value) -> Result<String, String> {
    let (mut manifest, mut texts) = (manifest.clone(), Vec::new());
    set_apart(&mut manifest, &mut texts);
    let mut written = serde_yaml::to_string(&manifest).map_err(|why| why.to_string())?;
    for (number, text) in texts.iter().enumerate() {
        written = written.replace(&placeholder(number), &json!(text).to_string());
    }
    Ok(written)
}

fn set_apart(value: &mut Value, texts: &mut Vec<String>) {
    const WORDS: [&str; 10] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "~"];
    match value {
        Value::Object(fields) => fields.values_mut().for_each(|value| set_apart(value, texts)),
        Value::Array(items) => items.iter_mut().for_each(|value| set_apart(value, texts)),
        Value::String(text) => {
            let begins_as_a_number = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
            let is_short = !text.contains('\n');
            if is_short && (begins_as_a_number || WORDS.contains(&text.to_lowercase().as_str())) {
                let apart = placeholder(texts.len());
                texts.push(std::mem::replace(text, apart));
            }
        }
        _ => {}
    }
}

/// A word that needs no quotes and is nowhere else.
fn placeholder(number: usize) -> String {
    format!("textnlp⟨{number}⟩")
}

/// Each after what it needs, and otherwise as they came.
fn in_order(wanted: &[Wanted]) -> Vec<&Wanted> {
    let (mut ordered, mut left): (Vec<&Wanted>, Vec<&Wanted>) = (Vec::new(), wanted.iter().collect());
    while !left.is_empty() {
        let waits: BTreeSet<&ResourceId> = left.iter().map(|one| &one.id).collect();
        let (ready, rest): (Vec<_>, Vec<_>) =
            left.iter().copied().partition(|one| one.needs.iter().all(|need| !waits.contains(&need.on)));
        // A circle is refused long before; it must not be an endless loop here.
        left = if ready.is_empty() { Vec::new() } else { rest.clone() };
        ordered.extend(if ready.is_empty() { rest } else { ready });
    }
    ordered
}

fn needed(name: &str, spec: &Value) -> NeededSecret {
    NeededSecret {
        name: name.to_owned(),
        kind: spec["type"].as_str().unwrap_or("Opaque").to_owned(),
        keys: spec["data"].as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect(),
    }
}

/// What depends on secrets: their digests are left out, and variables are read from the Secret that somebody brings.
fn later(value: &mut Value, asks_for_key: &mut bool) {
    match value {
        Value::Object(fields) => {
            let output = |value: &Value| OutputRef::from_value(value).map(|output| output.field);
            fields.retain(|_, value| output(value).as_deref() != Some("digest"));
            let key = match fields.get("value").and_then(output).as_deref() {
                Some("public_id") => Some(FIRST_KEY_ID),
                Some("sha256") => Some(FIRST_KEY_DIGEST),
                _ => None,
            };
            if let Some(key) = key {
                fields.shift_remove("value");
                let from = json!({ "secretKeyRef": { "name": FIRST_KEY, "key": key } });
                fields.insert("valueFrom".to_owned(), from);
                *asks_for_key = true;
            }
            fields.values_mut().for_each(|value| later(value, asks_for_key));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| later(value, asks_for_key)),
        // A job that runs again with the next release must not let a key in that was taken back since.
        Value::String(text) => *text = text.replace(",\"reinstate\":true", ""),
        _ => {}
    }
}

fn first_output(value: &Value) -> Option<OutputRef> {
    OutputRef::from_value(value).or_else(|| match value {
        Value::Object(fields) => fields.values().find_map(first_output),
        Value::Array(items) => items.iter().find_map(first_output),
        _ => None,
    })
}
