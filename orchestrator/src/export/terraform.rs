//! Terraform and OpenTofu, in their JSON syntax, with an import of each object.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use textnlp_provider::Plugin;
use textnlp_provider::operations::ExportFile;

use super::{Declared, Entry, Form, json_text, written};

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
}

/// The files, and the variables without a default.
pub(super) fn files(declared: &Declared<'_>) -> (Vec<ExportFile>, BTreeSet<String>) {
    let plugins = Plugins::of(declared);
    let mut secrets = BTreeSet::new();
    let mut resources = Map::new();
    let mut imports = Vec::new();
    for entry in &declared.entries {
        let mut referenced = BTreeSet::new();
        let body = Value::Object(entry.declaration.body.clone());
        let mut resource = written(declared, entry, &Hcl, &body, (&mut referenced, &mut secrets));
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
        imports.push(json!({ "to": address(entry), "id": plain(&entry.declaration.id) }));
    }
    let about = format!(
        "environment {}, lineage {}: what textnlp-deploy recorded; README.md says how to use it",
        declared.environment, declared.lineage
    );
    let main = json!({
        "//": about,
        "terraform": { "required_version": VERSION, "required_providers": plugins.required() },
        "provider": plugins.configurations(),
        "resource": resources,
        "import": imports,
    });
    let (variables, values) = variables(&secrets, &plugins);
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

/// The variables, and the values of those that are no secrets.
fn variables(secrets: &BTreeSet<String>, plugins: &Plugins<'_>) -> (Map<String, Value>, String) {
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
