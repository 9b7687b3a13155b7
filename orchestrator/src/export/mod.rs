//! Exports of the state in the formats of other tools.
//!
//! What a provider declares for a tool ([`Provider::declare`]) is written by one module for each tool: `terraform`, `cloudformation` and
//! `bicep`. References between objects, names, variables for secrets and the protection of data are the same for all of them. Records of
//! providers without a form for Terraform are written by `documentation`.

mod bicep;
mod cloudformation;
mod documentation;
mod readme;
mod terraform;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use textnlp_provider::operations::ExportFile;
use textnlp_provider::{
    DataClass, Declaration, Declare, EnvironmentName, Lineage, Object, Observed, Outputs, Ownership, Provider,
    Recorded, ResourceId, SecretRef, Tool,
};

pub use documentation::terraform;

use crate::plan::{Facts, SiteFacts};

/// What an environment has, as files for a tool.
#[derive(Debug, Clone)]
pub struct Exported {
    /// In the order of their paths.
    pub files: Vec<ExportFile>,
    /// The resources that the files declare.
    pub declared: BTreeSet<ResourceId>,
    /// The resources that they do not declare.
    pub left: Vec<LeftOut>,
    /// The variables without a default: secrets, which no export contains.
    pub variables: BTreeSet<String>,
}

/// A recorded resource that an export does not declare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The resource.
    pub resource: ResourceId,
    /// Why the tool cannot declare it.
    pub because: String,
}

/// One declaration with what the files say of it.
struct Entry {
    resource: ResourceId,
    /// Its name in the tool, unique in the export.
    name: String,
    declaration: Declaration,
    /// The outputs of its resource.
    outputs: Outputs,
    /// The resources whose outputs it may have.
    needs: BTreeSet<ResourceId>,
    protected: bool,
}

/// The declarations of an environment, and what is left out.
struct Declared<'a> {
    environment: &'a EnvironmentName,
    lineage: Lineage,
    entries: Vec<Entry>,
    left: Vec<LeftOut>,
}

/// The files of an environment for a tool.
pub fn declared(facts: &Facts, tool: Tool) -> Exported {
    let mut declared =
        Declared { environment: &facts.environment, lineage: facts.lineage, entries: Vec::new(), left: Vec::new() };
    for site in facts.sites.values() {
        let all = records(site);
        for object in &all {
            let is_shown = shown(object, &site.observed).is_some();
            declared.add(&site.provider, tool, (object, is_shown), &all);
        }
    }
    let (mut files, variables) = match tool {
        Tool::Terraform => terraform::files(&declared),
        Tool::CloudFormation => cloudformation::files(&declared),
        Tool::Bicep => bicep::files(&declared),
    };
    files.push(ExportFile { path: "README.md".to_owned(), text: readme::text(&declared, tool, &files, &variables) });
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let Declared { entries, left, .. } = declared;
    Exported { files, declared: entries.into_iter().map(|entry| entry.resource).collect(), left, variables }
}

/// The recorded objects of a site, with the attributes and outputs that the provider shows.
fn records(site: &SiteFacts) -> Vec<Recorded> {
    let current = site.holdings.values().filter_map(|holding| holding.current.as_ref());
    current.map(|recorded| as_observed(recorded, &site.observed)).collect()
}

fn as_observed(recorded: &Recorded, observed: &[(ResourceId, Observed)]) -> Recorded {
    let mut recorded = recorded.clone();
    let Some(seen) = shown(&recorded, observed) else { return recorded };
    let mut spec: Map<String, Value> = recorded.spec.applied().fields().map(|(k, v)| (k.clone(), v.clone())).collect();
    // What the provider does not show is as recorded, such as a secret.
    let shown = seen.spec.applied();
    spec.extend(shown.fields().filter(|(_, value)| !value.is_null()).map(|(k, v)| (k.clone(), v.clone())));
    recorded.spec = textnlp_provider::Spec::of(&Value::Object(spec));
    recorded.outputs.extend(seen.outputs.iter().map(|(name, value)| (name.clone(), value.clone())));
    recorded
}

fn shown<'o>(recorded: &Recorded, observed: &'o [(ResourceId, Observed)]) -> Option<&'o Object> {
    observed.iter().find_map(|(id, seen)| match seen {
        Observed::Present(object) if *id == recorded.id && object.cloud_id == recorded.cloud_id => Some(object),
        _ => None,
    })
}

impl Declared<'_> {
    fn by_file(&self) -> BTreeMap<&str, Vec<&Entry>> {
        let mut all: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
        for entry in &self.entries {
            all.entry(&entry.declaration.file).or_default().push(entry);
        }
        all
    }

    fn add(
        &mut self,
        provider: &Arc<dyn Provider>,
        tool: Tool,
        (object, is_shown): (&Recorded, bool),
        beside: &[Recorded],
    ) {
        let left = |because: &str| LeftOut { resource: object.id.clone(), because: because.to_owned() };
        if object.ownership != Ownership::Ours {
            self.left.push(left("it is external: it keeps its owner"));
            return;
        }
        let request = Declare { tool, environment: self.environment, lineage: self.lineage, object, beside };
        let declarations = match provider.declare(&request) {
            // Its attributes may have changed since, and a tool cannot import what does not exist.
            Some(Ok(_)) if !is_shown => return self.left.push(left("its provider does not show it")),
            Some(Ok(declarations)) => declarations,
            Some(Err(because)) => return self.left.push(left(&because)),
            None if object.via.is_some() => {
                return self.left.push(left("it is inside a cluster: `export helm`, `kustomize` or `yaml` write it"));
            }
            None => return self.left.push(left("its provider has no form for this tool")),
        };
        let plain = plain_name(object.id.as_str());
        let mut kinds = provider.kinds().iter().filter(|kind| kind.name == object.kind.as_str());
        let is_precious = kinds.any(|kind| kind.data == DataClass::Precious);
        for (place, declaration) in declarations.into_iter().enumerate() {
            if !declaration.without.is_empty() {
                self.left
                    .push(left(&format!("declared without {}, which no declaration changes", declaration.without)));
            }
            let part = if place == 0 { plain.clone() } else { format!("{plain}_part{place}") };
            let taken = |name: &str| self.entries.iter().any(|entry| entry.name == name);
            let numbered = (2..).map(|number| format!("{part}__{number}"));
            let name = std::iter::once(part.clone()).chain(numbered).find(|name| !taken(name)).unwrap_or_default();
            // A part refers to what it is a part of.
            let own = (place > 0).then(|| object.id.clone());
            let hosts = object.via.iter().map(|host| host.0.clone());
            self.entries.push(Entry {
                resource: object.id.clone(),
                name,
                declaration,
                outputs: object.outputs.clone(),
                needs: object.needs.iter().map(|need| need.on.clone()).chain(hosts).chain(own).collect(),
                protected: object.protected || is_precious,
            });
        }
    }

    /// The entry and its attribute whose value a text is, among what an entry needs.
    fn reference(&self, from: &Entry, text: &str) -> Option<(&Entry, &str)> {
        // Several objects of a site may have the same name. A part names what it is a part of.
        let is_own_name = from.outputs.get("name").and_then(Value::as_str) == Some(text);
        if is_own_name && !from.needs.contains(&from.resource) {
            return None;
        }
        let mut needed = self.entries.iter().filter(|entry| {
            from.needs.contains(&entry.resource) && (entry.resource != from.resource || entry.name != from.name)
        });
        needed.find_map(|entry| {
            let is_it =
                |(output, _): &(&String, &String)| entry.outputs.get(*output).and_then(Value::as_str) == Some(text);
            let (_, attribute) = entry.declaration.outputs.iter().find(is_it)?;
            Some((entry, attribute.as_str()))
        })
    }

    /// The names of the needed entries that no reference leads to.
    fn unreferenced(&self, from: &Entry, referenced: &BTreeSet<String>) -> Vec<&Entry> {
        let mut seen = BTreeSet::new();
        let needed = self.entries.iter().filter(|entry| {
            from.needs.contains(&entry.resource) && entry.resource != from.resource && seen.insert(&entry.resource)
        });
        needed.filter(|entry| !referenced.contains(&entry.name)).collect()
    }
}

/// The value of the output behind an attribute.
fn value_of<'e>(entry: &'e Entry, attribute: &str) -> &'e str {
    let output = entry.declaration.outputs.iter().find(|(_, path)| *path == attribute);
    output.and_then(|(output, _)| entry.outputs.get(output)).and_then(Value::as_str).unwrap_or_default()
}

/// What the texts of a body become in a tool.
trait Form {
    /// A text without a reference.
    fn literal(&self, text: &str) -> Value;
    /// An attribute of another entry.
    fn reference(&self, to: &Entry, attribute: &str) -> Value;
    /// The same as a key of an object; `None` where the tool has no such keys.
    fn key(&self, to: &Entry, attribute: &str) -> Option<String>;
    /// The variable of a secret.
    fn variable(&self, name: &str) -> Value;
}

/// A value in the terms of a tool. `referenced` gets the names of the entries it refers to, and `variables` those of its secrets.
fn written(
    declared: &Declared<'_>,
    from: &Entry,
    form: &dyn Form,
    value: &Value,
    (referenced, variables): (&mut BTreeSet<String>, &mut BTreeSet<String>),
) -> Value {
    if let Some(secret) = SecretRef::from_value(value) {
        let name = plain_name(&secret.name.0);
        variables.insert(name.clone());
        return form.variable(&name);
    }
    match value {
        Value::String(text) => match declared.reference(from, text) {
            Some((to, attribute)) => {
                referenced.insert(to.name.clone());
                form.reference(to, attribute)
            }
            None => form.literal(text),
        },
        Value::Array(items) => {
            let item = |item| written(declared, from, form, item, (&mut *referenced, &mut *variables));
            Value::Array(items.iter().map(item).collect())
        }
        Value::Object(members) => {
            let mut all = Map::new();
            for (name, member) in members {
                let found = declared.reference(from, name).and_then(|(to, attribute)| {
                    let key = form.key(to, attribute)?;
                    referenced.insert(to.name.clone());
                    Some(key)
                });
                let key = found.or_else(|| form.literal(name).as_str().map(str::to_owned)).unwrap_or_default();
                all.insert(key, written(declared, from, form, member, (&mut *referenced, &mut *variables)));
            }
            Value::Object(all)
        }
        other => other.clone(),
    }
}

/// A unique name for each resource: letters, digits and underscores.
fn names<'a>(ids: impl Iterator<Item = &'a ResourceId>) -> BTreeMap<ResourceId, String> {
    let mut taken = BTreeMap::new();
    let mut names = BTreeMap::new();
    for id in ids {
        let plain = plain_name(id.as_str());
        let count = taken.entry(plain.clone()).or_insert(0);
        *count += 1;
        // Plain names have no double underscore, so the suffix is unambiguous.
        let name = if *count == 1 { plain } else { format!("{plain}__{count}") };
        names.insert(id.clone(), name);
    }
    names
}

fn plain_name(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    // No tool's name starts with a digit.
    if plain.starts_with(|c: char| c.is_ascii_digit()) { format!("_{plain}") } else { plain }
}

/// A JSON document as the text of a file.
fn json_text(document: &Value) -> String {
    format!("{document:#}\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use textnlp_provider::{Plugin, Within};
    use uuid::Uuid;

    use super::*;

    fn entry(name: &str, kind: &str, body: Value, needs: &[&str]) -> Entry {
        let id = format!("ids/{name}");
        let plugin = Plugin {
            name: "cloud",
            source: "example/cloud",
            version: "~> 1.0",
            settings: BTreeMap::from([("region", "here".to_owned())]),
        };
        Entry {
            resource: ResourceId::new(format!("here/{name}")).unwrap(),
            name: format!("here_{name}"),
            declaration: Declaration {
                kind: kind.to_owned(),
                body: body.as_object().cloned().unwrap_or_default(),
                id: id.clone(),
                identifiers: BTreeMap::from([("Id".to_owned(), id.clone())]),
                outputs: BTreeMap::from([("id".to_owned(), "id".to_owned())]),
                plugin: Some(plugin),
                file: "one".to_owned(),
                ..Declaration::default()
            },
            outputs: Outputs::from([("id".to_owned(), json!(id))]),
            needs: needs.iter().map(|need| ResourceId::new(format!("here/{need}")).unwrap()).collect(),
            protected: false,
        }
    }

    /// What a tool gets of a network, a server that refers to it, and one that only comes after the first.
    fn checked(write: impl Fn(&Declared<'_>) -> (Vec<ExportFile>, BTreeSet<String>)) -> BTreeMap<String, String> {
        let environment = EnvironmentName::new("staging").unwrap();
        let secret = json!({ "$secret": "here/db", "version": "1" });
        let body = json!({ "network": "ids/net", "elsewhere": "ids/other", "text": "${x}", "password": secret });
        let mut server = entry("server", "thing", body, &["net"]);
        server.protected = true;
        server.declaration.within = Some(Within::Parent { id: "ids/net".to_owned(), name: "net".to_owned() });
        let entries =
            vec![entry("net", "thing", json!({}), &[]), server, entry("last", "thing", json!({}), &["server"])];
        let declared = Declared { environment: &environment, lineage: Lineage(Uuid::nil()), entries, left: Vec::new() };
        let (files, variables) = write(&declared);
        assert_eq!(variables, BTreeSet::from(["here_db".to_owned()]));
        files.into_iter().map(|file| (file.path, file.text)).collect()
    }

    #[test]
    fn terraform_imports_each_object_and_refers_to_it() {
        let files = checked(terraform::files);
        let main: Value = serde_json::from_str(&files["main.tf.json"]).unwrap();
        let server = json!({
            "network": "${thing.here_net.id}", "elsewhere": "ids/other", "text": "$${x}", "password": "${var.here_db}",
            "lifecycle": { "prevent_destroy": true },
        });
        assert_eq!(main["resource"]["thing"]["here_server"], server);
        assert_eq!(main["resource"]["thing"]["here_last"], json!({ "depends_on": ["thing.here_server"] }));
        assert_eq!(main["import"][1], json!({ "to": "thing.here_server", "id": "ids/server" }));
        assert_eq!(main["provider"]["cloud"], json!([{ "region": "${var.cloud_region}" }]));
        let variables: Value = serde_json::from_str(&files["variables.tf.json"]).unwrap();
        assert_eq!(variables["variable"]["here_db"]["sensitive"], true);
        assert_eq!(files["staging.tfvars"], "cloud_region = \"here\"\n");
    }

    #[test]
    fn templates_retain_each_object_and_list_it() {
        let files = checked(cloudformation::files);
        let template: Value = serde_json::from_str(&files["one.template.json"]).unwrap();
        let server = json!({
            "Type": "thing", "DeletionPolicy": "Retain", "UpdateReplacePolicy": "Retain",
            "Properties": {
                "network": { "Fn::GetAtt": ["HereNet", "id"] }, "elsewhere": "ids/other", "text": "${x}",
                "password": { "Ref": "SecretHereDb" },
            },
        });
        assert_eq!(template["Resources"]["HereServer"], server);
        assert_eq!(template["Resources"]["HereLast"]["DependsOn"], json!(["HereServer"]));
        assert_eq!(template["Parameters"]["SecretHereDb"]["NoEcho"], true);
        let imports: Value = serde_json::from_str(&files["one.import.json"]).unwrap();
        let first = json!({ "ResourceType": "thing", "LogicalResourceId": "HereNet", "ResourceIdentifier": { "Id": "ids/net" } });
        assert_eq!(imports[0], first);
    }

    #[test]
    fn bicep_names_parents_and_secrets() {
        let files = checked(bicep::files);
        let text = &files["one.bicep"];
        let server = "resource here_server 'thing' = {\n  network: here_net.id\n  elsewhere: 'ids/other'\n  text: '\\${x}'\n  \
                      password: here_db\n  name: null\n  parent: here_net\n}\n";
        assert!(text.contains(server), "{text}");
        assert!(text.contains("@secure()\nparam here_db string\n"), "{text}");
        assert!(text.contains("  dependsOn: [\n    here_server\n  ]\n"), "{text}");
    }
}
