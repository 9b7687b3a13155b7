//! Export of a site's objects for other tools: a YAML stream, a Kustomize base, a Helm chart, or a folder that
//! a GitOps controller applies.
//!
//! This module prepares what the formats share: objects in dependency order, resolved digests of the configuration, and
//! the list of Secrets that the operator must create. An export contains no secrets. A Kubernetes Job is immutable, so
//! each one has the digest of its content in its name.

mod gitops;
mod helm;
mod kustomize;
mod notes;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use textnlp_provider::operations::{Export, ExportFile, ExportFormat, NeededSecret};
use textnlp_provider::{OutputRef, Outputs, Ownership, ResourceId, Wanted};

use crate::canary::SECRET;
use crate::lower::AUTHORITY;
use crate::manifest;
use crate::table::{self, Row};

const TLS: &str = "kubernetes.io/tls";
/// The Secret of the first API key: its public id and digest, never the key.
const FIRST_KEY: &str = "textnlp-first-key";
const FIRST_KEY_ID: &str = "first-key-id";
const FIRST_KEY_DIGEST: &str = "first-key-sha256";

/// The objects of one site as files; `environment` names it. An error names an object that cannot be exported, and the
/// reason.
pub fn export(wanted: &[Wanted], environment: &str, format: ExportFormat<'_>) -> Result<Export, String> {
    let site = SiteObjects::of(wanted)?;
    let mut files = match format {
        ExportFormat::Yaml => vec![ExportFile { path: "textnlp.yaml".to_owned(), text: site.stream(environment)? }],
        ExportFormat::Kustomize => kustomize::files(&site, environment)?,
        ExportFormat::Helm => helm::files(&site, environment)?,
        ExportFormat::Delivery(delivery) => {
            let name = wanted.first().map_or("", |one| one.site.as_str());
            gitops::files(&site, delivery, environment, name)?
        }
    };
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let given = site.given.into_iter().map(|name| NeededSecret { name, kind: TLS.to_owned(), keys: BTreeSet::new() });
    Ok(Export { files, secrets: site.secrets.into_iter().chain(given).collect() })
}

/// One object of an export.
struct Item {
    id: ResourceId,
    needs: Vec<ResourceId>,
    row: &'static Row,
    name: String,
    manifest: Value,
}

impl Item {
    /// The file name, such as `deployment-textnlp-api.yaml`.
    fn file(&self) -> String {
        format!("{}-{}.yaml", self.row.kind.to_lowercase(), self.name)
    }

    /// The manifest for formats without templating: a job gets its digest in its name.
    fn fixed(&self) -> Value {
        let mut manifest = self.manifest.clone();
        if self.row.kind == "Job" {
            manifest["metadata"]["name"] = json!(format!("{}-{}", self.name, short_digest(&manifest)));
        }
        manifest
    }
}

struct SiteObjects {
    /// The objects in dependency order, without Secrets.
    items: Vec<Item>,
    secrets: Vec<NeededSecret>,
    /// External Secrets that already exist in the namespace: only certificates.
    given: Vec<String>,
    /// Config maps with the authority of an external certificate, which only an `up` can fill: their names and keys.
    maps: Vec<(String, Vec<String>)>,
    namespace: String,
    /// Whether the namespace is part of the export.
    own_namespace: bool,
}

impl SiteObjects {
    fn of(wanted: &[Wanted]) -> Result<Self, String> {
        let ordered = in_order(wanted);
        let rows: Vec<(&Wanted, &'static Row)> =
            ordered.into_iter().filter_map(|one| Some((one, table::row(&one.kind)?))).collect();
        // Outputs that depend only on the object itself are known without a cluster.
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
            // External objects are not exported.
            if matches!(one.ownership, Ownership::External(_)) {
                match row.kind {
                    "Secret" => site.given.push(name),
                    _ => site.own_namespace = false,
                }
                continue;
            }
            if row.kind == table::API_SERVICE {
                let cause =
                    "`scaling.adapter` needs a certificate and its authority in one object, which only `up` creates";
                return Err(format!(
                    "{cause}: remove it, and use prometheus-adapter with the rule in docs/guide/kubernetes.md"
                ));
            }
            // Only the rollout job of an `up` reads it.
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
            let mut needs_key = false;
            later(&mut manifest, &mut needs_key);
            if row.kind == "Job" {
                // The notes select jobs by this label, to delete them before the next apply.
                manifest["metadata"]["labels"]["app.kubernetes.io/part-of"] = json!("textnlp");
            }
            if row.kind == "ConfigMap" && name == AUTHORITY && first_output(&manifest).is_some() {
                let keys = manifest["data"].as_object().into_iter().flatten().map(|(key, _)| key.clone());
                site.maps.push((name, keys.collect()));
                continue;
            }
            if let Some(left) = first_output(&manifest) {
                return Err(format!("{} needs {}#{}, which only `up` knows", one.id, left.resource, left.field));
            }
            if needs_key && site.secrets.iter().all(|secret| secret.name != FIRST_KEY) {
                let keys = [FIRST_KEY_ID, FIRST_KEY_DIGEST].map(str::to_owned).into();
                site.secrets.push(NeededSecret { name: FIRST_KEY.to_owned(), kind: "Opaque".to_owned(), keys });
            }
            let needs = one.needs.iter().map(|need| need.on.clone()).collect();
            site.items.push(Item { id: one.id.clone(), needs, row, name, manifest });
        }
        site.secrets.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(site)
    }

    /// All objects as one stream; the notes on required Secrets are comments at its head.
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

/// YAML for tools that read version 1.1, where `off` is a boolean and `1:30` a number. Ambiguous strings are quoted.
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
    let mut apart = |text: &mut String| {
        if is_ambiguous(text) {
            let apart = placeholder(texts.len());
            texts.push(std::mem::replace(text, apart));
        }
    };
    match value {
        Value::Object(fields) => {
            let entries = std::mem::take(fields).into_iter().map(|(mut name, value)| {
                apart(&mut name);
                (name, value)
            });
            *fields = entries.collect();
            fields.values_mut().for_each(|value| set_apart(value, texts));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| set_apart(value, texts)),
        Value::String(text) => apart(text),
        _ => {}
    }
}

/// Whether a reader of YAML 1.1 takes a plain text for a boolean, a number, null or a merge key.
fn is_ambiguous(text: &str) -> bool {
    const WORDS: [&str; 12] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "~", "<<", "="];
    let begins_as_a_number = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    !text.contains('\n') && (begins_as_a_number || WORDS.contains(&text.to_lowercase().as_str()))
}

/// A short text, such as a key, quoted if it is ambiguous.
fn yaml_text(text: &str) -> String {
    if is_ambiguous(text) { json!(text).to_string() } else { text.to_owned() }
}

/// A word that needs no quotes and occurs nowhere else.
fn placeholder(number: usize) -> String {
    format!("textnlp⟨{number}⟩")
}

/// The objects in dependency order, otherwise in their original order.
fn in_order(wanted: &[Wanted]) -> Vec<&Wanted> {
    let (mut ordered, mut left): (Vec<&Wanted>, Vec<&Wanted>) = (Vec::new(), wanted.iter().collect());
    while !left.is_empty() {
        let waits: BTreeSet<&ResourceId> = left.iter().map(|one| &one.id).collect();
        let (ready, rest): (Vec<_>, Vec<_>) =
            left.iter().copied().partition(|one| one.needs.iter().all(|need| !waits.contains(&need.on)));
        // Cycles are rejected during planning; the guard only prevents an endless loop.
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

/// Prepares fields that depend on secrets: digests are removed, and variables refer to the operator's Secret.
fn later(value: &mut Value, needs_key: &mut bool) {
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
                *needs_key = true;
            }
            fields.values_mut().for_each(|value| later(value, needs_key));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| later(value, needs_key)),
        // The job runs again with the next release, and must not reinstate a key that was revoked since.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_that_yaml_1_1_reads_otherwise_are_quoted() {
        let words = ["n", "on", "Yes", "NULL", "~", "1_000", "1:30", "0x1f", ".inf", "-", "<<", "=", "true", "12e3"];
        let ambiguous: Map<String, Value> = words.iter().map(|word| ((*word).to_owned(), json!(word))).collect();
        let plain = json!({ "name": "a", "off-peak": "nothing", "": "", "é": "x: y # z" });
        let value = json!({ "selector": ambiguous, "list": [ambiguous], "plain": plain });
        let text = yaml(&value).unwrap();
        for word in words {
            assert!(text.contains(&format!("\"{word}\": \"{word}\"")), "{word}: {text}");
        }
        assert!(text.contains("off-peak: nothing"), "{text}");
        assert_eq!(serde_yaml::from_str::<Value>(&text).unwrap(), value);
    }
}
