//! Terraform and OpenTofu, in their JSON syntax, with an import of each object that exists.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use textnlp_provider::Plugin;
use textnlp_provider::operations::ExportFile;

use super::{Declared, Entry, Form, TextPart, json_text, written};

/// The oldest version of both tools with attributes that are written and not stored in their state: passwords are such attributes.
const VERSION: &str = ">= 1.11";

struct Hcl;

impl Form for Hcl {
    fn literal(&self, text: &str) -> Value {
        plain(text).into()
    }

    fn reference(&self, to: &Entry, attribute: &str) -> Value {
        format!("${{{}.{}.{attribute}}}", to.declaration.kind, to.name).into()
    }

    fn key(&self, _to: &Entry, _attribute: &str) -> Option<String> {
        None
    }

    fn variable(&self, name: &str) -> Value {
        format!("${{var.{name}}}").into()
    }

    fn joined(&self, parts: &[TextPart<'_>]) -> Value {
        let text = parts.iter().map(|part| match part {
            TextPart::Literal(text) => plain(text),
            TextPart::Reference(to, attribute) => format!("${{{}.{}.{attribute}}}", to.declaration.kind, to.name),
        });
        text.collect::<String>().into()
    }
}

/// The files, and the variables without a default.
pub(super) fn files(declared: &Declared<'_>) -> (Vec<ExportFile>, BTreeSet<String>) {
    let plugins = Plugins::of(declared);
    let mut secrets = BTreeSet::new();
    let mut resources = Map::new();
    let mut imports = Vec::new();
    let mut settings = BTreeMap::new();
    for entry in &declared.entries {
        let mut referenced = BTreeSet::new();
        let body = Value::Object(entry.declaration.body.clone());
        let mut resource = written(declared, entry, &Hcl, &body, (&mut referenced, &mut secrets));
        settings.extend(set_by_variables(entry, &mut resource));
        let mut needs: Vec<String> = declared.unreferenced(entry, &referenced).into_iter().map(address).collect();
        needs.sort();
        if !needs.is_empty() {
            resource["depends_on"] = json!(needs);
        }
        if entry.protected {
            resource["lifecycle"]["prevent_destroy"] = json!(true);
        }
        if !entry.declaration.ignored.is_empty() {
            resource["lifecycle"]["ignore_changes"] = json!(entry.declaration.ignored);
        }
        if let Some(alias) = entry.declaration.plugin.as_ref().and_then(|plugin| plugins.alias(plugin)) {
            resource["provider"] = json!(alias);
        }
        let kind = resources.entry(entry.declaration.kind.clone()).or_insert_with(|| json!({}));
        kind[&entry.name] = resource;
        if !entry.is_planned {
            imports.push(json!({ "to": address(entry), "id": plain(&entry.declaration.id) }));
        }
    }
    let about = format!(
        "environment {}, lineage {}: by textnlp-deploy; README.md says how to use it",
        declared.environment, declared.lineage
    );
    let mut main = json!({
        "//": about,
        "terraform": { "required_version": VERSION, "required_providers": plugins.required() },
        "provider": plugins.configurations(),
        "resource": resources,
    });
    if !imports.is_empty() {
        main["import"] = imports.into();
    }
    let (variables, values) = variables(&secrets, &plugins, &settings);
    let file = |path: String, text: String| ExportFile { path, text };
    let files = vec![
        file("main.tf.json".to_owned(), json_text(&main)),
        file("variables.tf.json".to_owned(), json_text(&json!({ "variable": variables }))),
        file(format!("{}.tfvars", declared.environment), values),
    ];
    (files, secrets)
}

fn address(entry: &Entry) -> String {
    format!("{}.{}", entry.declaration.kind, entry.name)
}

/// Replaces the attributes that operators set for each environment by variables, and returns their values.
fn set_by_variables(entry: &Entry, resource: &mut Value) -> BTreeMap<String, Value> {
    let mut values = BTreeMap::new();
    for (name, place) in entry.declaration.settings {
        // A reference is none of an operator's settings.
        let is_setting = |value: &&mut Value| match &**value {
            Value::String(text) => !text.contains("${"),
            other => other.is_number(),
        };
        let attribute = resource.pointer_mut(place).filter(is_setting);
        if let Some(attribute) = attribute {
            let variable = format!("{}_{name}", entry.name);
            values.insert(variable.clone(), std::mem::replace(attribute, Hcl.variable(&variable)));
        }
    }
    values
}

/// The variables, and the values of those that are no secrets.
fn variables(
    secrets: &BTreeSet<String>,
    plugins: &Plugins<'_>,
    settings: &BTreeMap<String, Value>,
) -> (Map<String, Value>, String) {
    let (mut all, mut values) = (Map::new(), String::new());
    for secret in secrets {
        let about = "A secret of the deployment, which no export contains";
        all.insert(secret.clone(), json!({ "type": "string", "sensitive": true, "description": about }));
    }
    for (variable, value) in plugins.settings() {
        let about = "Where the objects are";
        all.insert(variable.clone(), json!({ "type": "string", "description": about }));
        values += &format!("{variable} = {}\n", Value::from(plain(value)));
    }
    for (variable, value) in settings {
        let kind = if value.is_number() { "number" } else { "string" };
        let about = "A setting of this environment";
        all.insert(variable.clone(), json!({ "type": kind, "description": about }));
        values += &format!("{variable} = {value}\n");
    }
    for secret in secrets {
        values += &format!("# {secret}: a secret; set it by TF_VAR_{secret}\n");
    }
    (all, values)
}

/// The providers of Terraform, each with the settings that objects of it need.
struct Plugins<'a>(BTreeMap<&'static str, BTreeSet<&'a Plugin>>);

impl<'a> Plugins<'a> {
    fn of(declared: &'a Declared<'_>) -> Self {
        let mut all: BTreeMap<&'static str, BTreeSet<&Plugin>> = BTreeMap::new();
        for plugin in declared.entries.iter().filter_map(|entry| entry.declaration.plugin.as_ref()) {
            all.entry(plugin.name).or_default().insert(plugin);
        }
        Self(all)
    }

    fn required(&self) -> Value {
        let first = |all: &BTreeSet<&Plugin>| {
            all.first().map_or(Value::Null, |one| json!({ "source": one.source, "version": one.version }))
        };
        self.0.iter().map(|(name, all)| ((*name).to_owned(), first(all))).collect::<Map<_, _>>().into()
    }

    /// The first settings are those without an alias.
    fn place(&self, plugin: &Plugin) -> usize {
        self.0.get(plugin.name).and_then(|all| all.iter().position(|one| *one == plugin)).unwrap_or_default()
    }

    fn alias(&self, plugin: &Plugin) -> Option<String> {
        match self.place(plugin) {
            0 => None,
            place => Some(format!("{}.{}", plugin.name, alias_at(place))),
        }
    }

    fn configurations(&self) -> Value {
        let one = |plugin: &Plugin| {
            let place = self.place(plugin);
            let mut all: Map<String, Value> = plugin
                .settings
                .keys()
                .map(|setting| ((*setting).to_owned(), json!(format!("${{var.{}}}", variable(plugin, place, setting)))))
                .collect();
            if place > 0 {
                all.insert("alias".to_owned(), json!(alias_at(place)));
            }
            Value::Object(all)
        };
        let all = self.0.iter().map(|(name, all)| ((*name).to_owned(), all.iter().map(|plugin| one(plugin)).collect()));
        all.collect::<Map<String, Value>>().into()
    }

    /// The variables of all settings with their values.
    fn settings(&self) -> BTreeMap<String, &str> {
        let plugins = self.0.values().flatten().map(|plugin| (*plugin, self.place(plugin)));
        let of = |(plugin, place): (&'a Plugin, usize)| {
            let named =
                move |(setting, value): (&&'static str, &'a String)| (variable(plugin, place, setting), value.as_str());
            plugin.settings.iter().map(named).collect::<Vec<_>>()
        };
        plugins.flat_map(of).collect()
    }
}

fn alias_at(place: usize) -> String {
    format!("at{}", place + 1)
}

fn variable(plugin: &Plugin, place: usize, setting: &str) -> String {
    match place {
        0 => format!("{}_{setting}", plugin.name),
        place => format!("{}_{}_{setting}", plugin.name, alias_at(place)),
    }
}

/// Every string is a template in this syntax, so template markers are escaped.
pub(super) fn literal(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(plain(&text)),
        Value::Array(items) => Value::Array(items.into_iter().map(literal).collect()),
        Value::Object(members) => {
            Value::Object(members.into_iter().map(|(name, member)| (plain(&name), literal(member))).collect())
        }
        other => other,
    }
}

fn plain(text: &str) -> String {
    text.replace("${", "$${").replace("%{", "%%{")
}
