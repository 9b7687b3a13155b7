//! Exports of the state and of wanted resources in the formats of other tools.
//!
//! What a provider declares for a tool ([`Provider::declare`]) is written by one module for each tool: `terraform`, `cloudformation` and
//! `bicep`. References between objects, names, variables for secrets and the protection of data are the same for all of them. `planned`
//! adds wanted resources without a record. Records of providers without a form for Terraform are written by `documentation`.

mod bicep;
mod cloudformation;
mod documentation;
mod planned;
mod readme;
mod terraform;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use textnlp_provider::declare::{Piece, pieces};
use textnlp_provider::operations::ExportFile;
use textnlp_provider::{
    DataClass, Declaration, Declare, EnvironmentName, Lineage, Object, Observed, Outputs, Ownership, Placeholder,
    Provider, Recorded, ResourceId, SecretRef, Tool,
};

pub use documentation::terraform;
pub use planned::proposed_lineage;

use crate::plan::{Facts, SiteFacts};

/// What an environment has, or has and wants, as files for a tool.
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

/// A resource that an export does not declare.
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
    /// The names of other entries of its resource that are created before it.
    after: BTreeSet<String>,
    protected: bool,
    /// Whether the tool creates it. Otherwise it imports it.
    is_planned: bool,
}

/// What is known of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Knowledge {
    /// It is recorded, and its provider shows it.
    Shown,
    /// It is recorded, and its provider does not show it.
    Hidden,
    /// It is wanted, and not recorded.
    Planned,
}

/// Why an object in a cluster is not declared.
const INSIDE: &str = "it is inside a cluster: `export helm`, `kustomize` or `yaml` write it";
/// Why an external object is not declared.
const EXTERNAL: &str = "it is external: it keeps its owner";
/// Why an object of other providers is not declared.
const NO_FORM: &str = "its provider has no form for this tool";

/// The characters that mark references.
const MARKS: [char; 4] = ['\u{e000}', '\u{e001}', '\u{e002}', '\u{e003}'];

/// Why a file of an export cannot be written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFile {
    /// It has characters that mark references.
    #[error("{0} would contain the private characters U+E000 to U+E003, which mark references")]
    PrivateCharacters(String),
    /// No service takes a template of this size.
    #[error("{0} would have {1} bytes, and CloudFormation takes at most {max}, from a bucket too", max = cloudformation::MAX_IN_BUCKET)]
    TooLarge(String, usize),
}

/// The declarations of an environment, and what is left out.
struct Declared<'a> {
    environment: &'a EnvironmentName,
    /// The flags that select it in the commands of the README: ` --env staging`.
    flags: &'a str,
    lineage: Lineage,
    entries: Vec<Entry>,
    left: Vec<LeftOut>,
    /// What the tool may have created, and does not keep: its types and names.
    released: BTreeSet<(String, String)>,
}

/// The files of what an environment has, for a tool. `flags`: those that select it in commands, ` --env staging`.
pub fn declared(facts: &Facts, flags: &str, tool: Tool) -> Result<Exported, InvalidFile> {
    exported(Declared::recorded(facts, flags, tool), tool)
}

/// The files of what an environment has and wants, for a tool. A recorded resource is declared as it is.
pub fn planned(facts: &Facts, flags: &str, tool: Tool) -> Result<Exported, InvalidFile> {
    let mut declared = Declared::recorded(facts, flags, tool);
    planned::add(&mut declared, facts, tool);
    exported(declared, tool)
}

fn exported(declared: Declared<'_>, tool: Tool) -> Result<Exported, InvalidFile> {
    let (mut files, variables) = match tool {
        Tool::Terraform => terraform::files(&declared),
        Tool::CloudFormation => cloudformation::files(&declared),
        Tool::Bicep => bicep::files(&declared),
    };
    files.push(ExportFile { path: "README.md".to_owned(), text: readme::text(&declared, tool, &files, &variables) });
    files.sort_by(|a, b| a.path.cmp(&b.path));
    if let Some(file) = files.iter().find(|file| file.text.contains(MARKS)) {
        return Err(InvalidFile::PrivateCharacters(file.path.clone()));
    }
    let is_too_large = |file: &&ExportFile| {
        tool == Tool::CloudFormation && file.path.ends_with(".json") && file.text.len() > cloudformation::MAX_IN_BUCKET
    };
    if let Some(file) = files.iter().find(is_too_large) {
        return Err(InvalidFile::TooLarge(file.path.clone(), file.text.len()));
    }
    let Declared { entries, left, .. } = declared;
    Ok(Exported { files, declared: entries.into_iter().map(|entry| entry.resource).collect(), left, variables })
}

/// The recorded objects of a site, with the attributes and outputs that the provider shows.
fn records(site: &SiteFacts) -> Vec<Recorded> {
    let current = site.holdings.values().filter_map(|holding| holding.current.as_ref());
    current.map(|recorded| as_observed(recorded, site)).collect()
}

fn as_observed(recorded: &Recorded, site: &SiteFacts) -> Recorded {
    let mut recorded = recorded.clone();
    let Some(seen) = shown(&recorded, &site.observed) else { return recorded };
    let kind = site.provider.kinds().iter().find(|kind| kind.name == recorded.kind.as_str());
    let shared = kind.map_or(&[][..], |kind| kind.shared);
    let mut spec: Map<String, Value> = recorded.spec.applied().fields().map(|(k, v)| (k.clone(), v.clone())).collect();
    // What the provider does not show is as recorded, such as a secret.
    let seen_spec = seen.spec.applied();
    let shows = |(field, value): &(&String, &Value)| !value.is_null() && !shared.contains(&field.as_str());
    spec.extend(seen_spec.fields().filter(shows).map(|(k, v)| (k.clone(), v.clone())));
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

impl<'f> Declared<'f> {
    fn by_file(&self) -> BTreeMap<&str, Vec<&Entry>> {
        let mut all: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
        for entry in &self.entries {
            all.entry(&entry.declaration.file).or_default().push(entry);
        }
        all
    }

    fn recorded(facts: &'f Facts, flags: &'f str, tool: Tool) -> Self {
        let (environment, lineage) = (&facts.environment, facts.lineage);
        let mut declared =
            Self { environment, flags, lineage, entries: Vec::new(), left: Vec::new(), released: BTreeSet::new() };
        for site in facts.sites.values() {
            let all = records(site);
            for object in &all {
                let is_shown = shown(object, &site.observed).is_some();
                let known = if is_shown { Knowledge::Shown } else { Knowledge::Hidden };
                declared.add(&site.provider, tool, (object, known), &all);
                declared.release(&site.provider, tool, object, &all);
            }
        }
        declared
    }

    /// Releases what a declaration of a recorded object had before its creation: what of it is declared now keeps its name.
    fn release(&mut self, provider: &Arc<dyn Provider>, tool: Tool, object: &Recorded, beside: &[Recorded]) {
        if tool != Tool::Terraform || object.ownership != Ownership::Ours {
            return;
        }
        let (environment, lineage) = (self.environment, self.lineage);
        let request = Declare { tool, environment, lineage, object, beside, is_planned: true };
        let Some(Ok(declarations)) = provider.declare(&request) else { return };
        let names = part_names(&plain_name(object.id.as_str()), &declarations);
        let created = declarations.into_iter().zip(names).filter(|(declaration, _)| !declaration.is_read);
        self.released.extend(created.map(|(declaration, name)| (declaration.kind, name)));
    }

    fn leave(&mut self, resource: &ResourceId, because: impl Into<String>) {
        self.left.push(LeftOut { resource: resource.clone(), because: because.into() });
    }

    /// Why a new object cannot be declared: it refers to what no declaration before it has.
    fn unresolved(&self, object: &Recorded, tool: Tool, declarations: &[Declaration]) -> Option<String> {
        declarations.iter().enumerate().find_map(|one| self.unresolved_in(object, tool, one))
    }

    fn unresolved_in(
        &self,
        object: &Recorded,
        tool: Tool,
        (place, declaration): (usize, &Declaration),
    ) -> Option<String> {
        let body = Value::Object(declaration.body.clone());
        let mut found = BTreeSet::new();
        placeholders(&body, &mut found);
        found.iter().find_map(|text| {
            let Some(Placeholder { resource, output, .. }) = Placeholder::read(text) else {
                return Some("one of its texts has private characters".to_owned());
            };
            // A part refers to its object.
            if place > 0 && resource == object.id.as_str() && object.outputs.contains_key(output) {
                return None;
            }
            let is_it =
                |entry: &&Entry| entry.resource.as_str() == resource && entry.declaration.outputs.contains_key(output);
            match self.entries.iter().find(is_it) {
                None => Some(needed(resource, output)),
                Some(entry) if tool != Tool::Terraform && entry.declaration.file != declaration.file => {
                    Some(format!("{}, and another file declares that", needed(resource, output)))
                }
                Some(_) => None,
            }
        })
    }

    fn add(
        &mut self,
        provider: &Arc<dyn Provider>,
        tool: Tool,
        (object, known): (&Recorded, Knowledge),
        beside: &[Recorded],
    ) {
        let left = |because: &str| LeftOut { resource: object.id.clone(), because: because.to_owned() };
        if object.ownership != Ownership::Ours {
            self.left.push(left(EXTERNAL));
            return;
        }
        let is_planned = known == Knowledge::Planned;
        let (environment, lineage) = (self.environment, self.lineage);
        let request = Declare { tool, environment, lineage, object, beside, is_planned };
        let declarations = match provider.declare(&request) {
            // Its attributes may have changed since, and a tool cannot import what does not exist.
            Some(Ok(_)) if known == Knowledge::Hidden => return self.left.push(left("its provider does not show it")),
            Some(Ok(declarations)) => declarations,
            Some(Err(because)) => return self.left.push(left(&because)),
            None if object.via.is_some() => return self.left.push(left(INSIDE)),
            None => return self.left.push(left(NO_FORM)),
        };
        if let Some(because) = self.unresolved(object, tool, &declarations).filter(|_| is_planned) {
            return self.left.push(left(&because));
        }
        let plain = plain_name(object.id.as_str());
        let mut kinds = provider.kinds().iter().filter(|kind| kind.name == object.kind.as_str());
        let is_precious = kinds.any(|kind| kind.data == DataClass::Precious);
        let names = part_names(&plain, &declarations);
        let mut before: BTreeSet<String> = BTreeSet::new();
        let mut main: Option<String> = None;
        for (declaration, part) in declarations.into_iter().zip(names) {
            if !declaration.without.is_empty() {
                self.left.push(left(&format!("no declaration changes {}", declaration.without)));
            }
            let taken = |name: &str| self.entries.iter().any(|entry| entry.name == name);
            let numbered = (2..).map(|number| format!("{part}__{number}"));
            let name = std::iter::once(part.clone()).chain(numbered).find(|name| !taken(name)).unwrap_or_default();
            let is_before = main.is_none() && declaration.is_new_only;
            // A part refers to what it is a part of, and comes after it.
            let own = main.as_ref().map(|_| object.id.clone());
            let after = match &main {
                Some(main) => BTreeSet::from([main.clone()]),
                None if is_before => BTreeSet::new(),
                None => before.clone(),
            };
            if is_before {
                before.insert(name.clone());
            } else if main.is_none() {
                main = Some(name.clone());
            }
            let hosts = object.via.iter().map(|host| host.0.clone());
            self.entries.push(Entry {
                resource: object.id.clone(),
                name,
                declaration,
                outputs: object.outputs.clone(),
                needs: object.needs.iter().map(|need| need.on.clone()).chain(hosts).chain(own).collect(),
                after,
                protected: object.protected || is_precious,
                is_planned,
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

    /// The needed entries that no reference leads to. What needs a new object needs its parts too.
    fn unreferenced(&self, from: &Entry, referenced: &BTreeSet<String>) -> Vec<&Entry> {
        let mut seen = BTreeSet::new();
        let needed = self.entries.iter().filter(|entry| match entry.resource == from.resource {
            true => from.is_planned && from.after.contains(&entry.name),
            false => from.needs.contains(&entry.resource) && (seen.insert(&entry.resource) || entry.is_planned),
        });
        needed.filter(|entry| !referenced.contains(&entry.name)).collect()
    }
}

/// The names of an object's declarations. Those that only a new object has are counted apart, so that the others keep their names.
fn part_names(plain: &str, declarations: &[Declaration]) -> Vec<String> {
    let (mut new, mut usual) = (0, 0);
    let name = |declaration: &Declaration| {
        if declaration.is_new_only {
            new += 1;
            return format!("{plain}_new{new}");
        }
        usual += 1;
        if usual == 1 { plain.to_owned() } else { format!("{plain}_part{}", usual - 1) }
    };
    declarations.iter().map(name).collect()
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
    /// Texts and references as one text.
    fn joined(&self, parts: &[TextPart<'_>]) -> Value;
}

/// A part of a text.
enum TextPart<'d> {
    /// Without a reference.
    Literal(&'d str),
    /// An attribute of another entry.
    Reference(&'d Entry, &'d str),
}

/// The output that a new object needs.
fn needed(resource: &str, output: &str) -> String {
    format!("it needs `{output}` of `{resource}`, which is not declared")
}

/// The placeholders in the texts of a value.
fn placeholders(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            let all = pieces(text).into_iter().filter_map(|piece| match piece {
                Piece::Placeholder(text) => Some(text.to_owned()),
                Piece::Text(_) => None,
            });
            found.extend(all);
        }
        Value::Array(items) => items.iter().for_each(|item| placeholders(item, found)),
        Value::Object(members) => members.iter().for_each(|(name, member)| {
            // No tool takes references in all names of members.
            let key = pieces(name).into_iter().any(|piece| matches!(piece, Piece::Placeholder(_)));
            found.extend(key.then(|| name.clone()));
            placeholders(member, found);
        }),
        _ => {}
    }
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
            None => {
                let parts: Vec<TextPart<'_>> =
                    pieces(text).into_iter().map(|piece| part(declared, from, piece)).collect();
                let names = parts.iter().filter_map(|part| match part {
                    TextPart::Reference(to, _) => Some(to.name.clone()),
                    TextPart::Literal(_) => None,
                });
                let names: Vec<String> = names.collect();
                match names.is_empty() {
                    true => form.literal(text),
                    false => {
                        referenced.extend(names);
                        form.joined(&parts)
                    }
                }
            }
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

fn part<'d>(declared: &'d Declared<'_>, from: &Entry, piece: Piece<'d>) -> TextPart<'d> {
    match piece {
        Piece::Text(text) => TextPart::Literal(text),
        Piece::Placeholder(text) => match declared.reference(from, text) {
            Some((to, attribute)) => TextPart::Reference(to, attribute),
            None => TextPart::Literal(text),
        },
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
            name: "thing",
            source: "example/thing",
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
            after: BTreeSet::new(),
            protected: false,
            is_planned: false,
        }
    }

    fn declared_of(environment: &EnvironmentName, entries: Vec<Entry>) -> Declared<'_> {
        let (lineage, flags) = (Lineage(Uuid::nil()), " --env staging");
        Declared { environment, flags, lineage, entries, left: Vec::new(), released: BTreeSet::new() }
    }

    /// What a tool gets of a network, a server that refers to it, and one that only comes after the first.
    /// Its secret is the variable of that name.
    fn checked(
        secret_name: &str,
        write: impl Fn(&Declared<'_>) -> (Vec<ExportFile>, BTreeSet<String>),
    ) -> BTreeMap<String, String> {
        let environment = EnvironmentName::new("staging").unwrap();
        let secret = json!({ "$secret": "here/db", "version": "1" });
        let body = json!({ "network": "ids/net", "elsewhere": "ids/other", "text": "${x}", "password": secret });
        let mut server = entry("server", "thing", body, &["net"]);
        server.protected = true;
        server.declaration.within = Some(Within::Parent { id: "ids/net".to_owned(), name: "net".to_owned() });
        let entries =
            vec![entry("net", "thing", json!({}), &[]), server, entry("last", "thing", json!({}), &["server"])];
        let (files, variables) = write(&declared_of(&environment, entries));
        assert_eq!(variables, BTreeSet::from([secret_name.to_owned()]));
        files.into_iter().map(|file| (file.path, file.text)).collect()
    }

    #[test]
    fn terraform_imports_each_object_and_refers_to_it() {
        let files = checked("here_db", terraform::files);
        let main: Value = serde_json::from_str(&files["main.tf.json"]).unwrap();
        let server = json!({
            "network": "${thing.here_net.id}", "elsewhere": "ids/other", "text": "$${x}", "password": "${var.here_db}",
            "lifecycle": { "prevent_destroy": true },
        });
        assert_eq!(main["resource"]["thing"]["here_server"], server);
        assert_eq!(main["resource"]["thing"]["here_last"], json!({ "depends_on": ["thing.here_server"] }));
        assert_eq!(main["import"][1], json!({ "to": "thing.here_server", "id": "ids/server" }));
        assert_eq!(main["provider"]["thing"], json!([{ "region": "${var.thing_region}" }]));
        let variables: Value = serde_json::from_str(&files["variables.tf.json"]).unwrap();
        assert_eq!(variables["variable"]["here_db"]["sensitive"], true);
        let values = "thing_region = \"here\"\n# here_db: a secret; set it by TF_VAR_here_db\n";
        assert_eq!(files["staging.tfvars"], values);
    }

    #[test]
    fn templates_retain_each_object_and_list_it() {
        let files = checked("SecretHereDb", cloudformation::files);
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
        let files = checked("here_db", bicep::files);
        let text = &files["one.bicep"];
        let server = "resource here_server 'thing' = {\n  network: here_net.id\n  elsewhere: 'ids/other'\n  text: '\\${x}'\n  \
                      password: here_db\n  name: null\n  parent: here_net\n}\n";
        assert!(text.contains(server), "{text}");
        assert!(text.contains("@secure()\nparam here_db string\n"), "{text}");
        assert!(text.contains("  dependsOn: [\n    here_server\n  ]\n"), "{text}");
    }

    /// A network, and a server that refers to it before it exists.
    fn new(is_planned: bool) -> Vec<Entry> {
        let id = Placeholder { kind: "thing", resource: "here/net", output: "id" }.to_string();
        let mut net = entry("net", "thing", json!({}), &[]);
        net.outputs = Outputs::from([("id".to_owned(), json!(id))]);
        net.is_planned = is_planned;
        let rule = format!("allow ${{x}} from {id}!");
        let mut server = entry("server", "thing", json!({ "network": id, "rule": rule, "size": 3 }), &["net"]);
        server.is_planned = true;
        server.declaration.settings = &[("size", "/size"), ("network", "/network")];
        vec![net, server]
    }

    fn files_of(
        entries: Vec<Entry>,
        write: impl Fn(&Declared<'_>) -> (Vec<ExportFile>, BTreeSet<String>),
    ) -> BTreeMap<String, String> {
        let environment = EnvironmentName::new("staging").unwrap();
        write(&declared_of(&environment, entries)).0.into_iter().map(|file| (file.path, file.text)).collect()
    }

    #[test]
    fn terraform_creates_what_does_not_exist() {
        let files = files_of(new(true), terraform::files);
        let main: Value = serde_json::from_str(&files["main.tf.json"]).unwrap();
        let server = json!({
            "network": "${thing.here_net.id}", "rule": "allow $${x} from ${thing.here_net.id}!",
            "size": "${var.here_server_size}",
        });
        assert_eq!(main["resource"]["thing"]["here_server"], server);
        assert_eq!(main.get("import"), None);
        assert_eq!(files["staging.tfvars"], "thing_region = \"here\"\nhere_server_size = 3\n");
        let variables: Value = serde_json::from_str(&files["variables.tf.json"]).unwrap();
        assert_eq!(variables["variable"]["here_server_size"]["type"], "number");
        assert_eq!(variables["variable"].get("here_server_network"), None, "a reference is no setting");
    }

    #[test]
    fn terraform_forgets_what_only_new_objects_have() {
        let environment = EnvironmentName::new("staging").unwrap();
        let mut declared = declared_of(&environment, vec![entry("net", "thing", json!({}), &[])]);
        declared.released =
            BTreeSet::from(["here_net", "here_net_new1"].map(|name| ("thing".to_owned(), name.to_owned())));
        let (files, _) = terraform::files(&declared);
        let main = files.iter().find(|file| file.path == "main.tf.json").unwrap();
        let main: Value = serde_json::from_str(&main.text).unwrap();
        let removed = json!([{ "from": "thing.here_net_new1", "lifecycle": { "destroy": false } }]);
        assert_eq!(main["removed"], removed);
    }

    #[test]
    fn terraform_names_the_provider_that_no_type_names() {
        let mut agent = entry("agent", "thing_agent", json!({}), &[]);
        if let Some(plugin) = &mut agent.declaration.plugin {
            plugin.name = "thing-beta";
        }
        let files = files_of(vec![agent, entry("net", "thing", json!({}), &[])], terraform::files);
        let main: Value = serde_json::from_str(&files["main.tf.json"]).unwrap();
        assert_eq!(main["resource"]["thing_agent"]["here_agent"], json!({ "provider": "thing-beta" }));
        assert_eq!(main["resource"]["thing"]["here_net"], json!({}));
    }

    #[test]
    fn no_file_has_a_mark_of_a_reference() {
        let environment = EnvironmentName::new("staging").unwrap();
        let id = Placeholder { kind: "thing", resource: "here/gone", output: "id" }.to_string();
        let declared = declared_of(&environment, vec![entry("net", "thing", json!({ "in": id }), &[])]);
        let refused = exported(declared, Tool::Terraform).unwrap_err();
        assert_eq!(refused, InvalidFile::PrivateCharacters("main.tf.json".to_owned()));
    }

    #[test]
    fn large_templates_are_passed_by_a_bucket() {
        let environment = EnvironmentName::new("staging").unwrap();
        let readme = |bytes: usize, is_planned: bool| -> Result<String, InvalidFile> {
            let mut net = entry("net", "thing", json!({ "text": "x".repeat(bytes) }), &[]);
            net.is_planned = is_planned;
            let files = exported(declared_of(&environment, vec![net]), Tool::CloudFormation)?.files;
            Ok(files.into_iter().find(|file| file.path == "README.md").map(|file| file.text).unwrap_or_default())
        };
        let by_bucket =
            ["--s3-bucket BUCKET", "--template-url https://BUCKET.s3.REGION.amazonaws.com/one.template.json"];
        for (is_planned, option) in [true, false].into_iter().zip(by_bucket) {
            let (small, large) = (readme(1_000, is_planned).unwrap(), readme(60_000, is_planned).unwrap());
            assert!(!small.contains("BUCKET"), "{small}");
            assert!(large.contains(option) && large.contains("51,200 bytes"), "{large}");
        }
        let refused = readme(1_000_000, true).unwrap_err();
        assert!(matches!(&refused, InvalidFile::TooLarge(file, _) if file == "one.template.json"), "{refused}");
    }

    #[test]
    fn templates_create_what_does_not_exist() {
        let files = files_of(new(true), cloudformation::files);
        assert_eq!(files.keys().collect::<Vec<_>>(), ["one.template.json"]);
        let template: Value = serde_json::from_str(&files["one.template.json"]).unwrap();
        let server = &template["Resources"]["HereServer"];
        let id = json!({ "Fn::GetAtt": ["HereNet", "id"] });
        assert_eq!(server["Properties"]["rule"], json!({ "Fn::Join": ["", ["allow ${x} from ", id, "!"]] }));
        assert_eq!(server["DeletionPolicy"], "RetainExceptOnCreate");
        // An import takes only what exists.
        let files = files_of(new(false), cloudformation::files);
        let existing: Value = serde_json::from_str(&files["one.existing.json"]).unwrap();
        assert_eq!(existing["Resources"].as_object().unwrap().keys().collect::<Vec<_>>(), ["HereNet"]);
        let imports: Value = serde_json::from_str(&files["one.import.json"]).unwrap();
        assert_eq!(imports.as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn bicep_creates_what_does_not_exist() {
        let files = files_of(new(true), bicep::files);
        let text = &files["one.bicep"];
        assert!(text.contains("  network: here_net.id\n"), "{text}");
        assert!(text.contains("  rule: 'allow \\${x} from ${here_net.id}!'\n"), "{text}");
    }
}
