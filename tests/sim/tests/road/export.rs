//! What `export` writes of a site before and after its first `up`, read by the schemas of the tools that it is for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Map, Value, json};
use textnlp_tests::Said;

/// The attributes of Terraform's provider `google`.
const GOOGLE: &str = include_str!("../../../schemas/google.json");

/// The private characters of what only a creation shows: none is in a file.
const PRIVATE: [char; 3] = ['\u{e001}', '\u{e002}', '\u{e003}'];

/// A folder with an export of a tool, and the document of the command. `more` are flags.
fn exported(run: impl Fn(&[&str]) -> Said, folder: &Utf8Path, tool: &str, more: &[&str]) -> (Utf8PathBuf, Value) {
    let out = folder.join(format!("{tool}{}", more.concat()));
    let args: &[&str] = &["export", tool, "--out", out.as_str(), "-o", "json"];
    let said = run(&[args, more].concat()).expect(0).json();
    let declared = said["declared"].as_array().map_or(0, Vec::len);
    eprintln!("export {tool}: {declared} declared, {} left out", said["left"].as_array().map_or(0, Vec::len));
    assert!(declared >= 10, "{said:#}");
    let readme = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert_eq!(readme.contains("state import"), more == PLANNED, "{readme}");
    for file in said["files"].as_array().unwrap().iter().filter_map(Value::as_str) {
        let text = std::fs::read_to_string(out.join(file)).unwrap();
        assert!(!text.contains(PRIVATE), "{file}: {text}");
    }
    (out, said)
}

fn document(path: &Utf8Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Why other objects are not declared: those in clusters, those of other providers, and external ones.
const NOT_OF_CLOUD: [&str; 3] = ["it is inside a cluster", "its provider has no form", "it is external"];

/// The flag of an export of what does not exist.
const PLANNED: &[&str] = &["--planned"];

/// Each resource is imported, every reference leads to one, and no secret is in a file. Gives the configuration.
pub(super) fn terraform(run: impl Fn(&[&str]) -> Said, folder: &Utf8Path) -> Value {
    let (main, _) = configuration(&run, folder, &[]);
    let addresses = addresses(&main);
    let imports = main["import"].as_array().unwrap();
    assert_eq!(imports.len(), addresses.len());
    for import in imports {
        assert!(addresses.iter().any(|address| import["to"] == address.as_str()), "{import}");
        assert!(import["id"].as_str().is_some_and(|id| !id.is_empty()), "{import}");
    }
    // Another export replaces its files.
    exported(&run, folder, "terraform", &[]);
    main
}

/// What is exported before the first `up`: the configuration, and the document of the command.
pub(super) struct FirstExport {
    pub(super) main: Value,
    said: Value,
}

/// Nothing is imported, and every reference leads to a resource. `left` are the objects of the cloud that are not declared, or not
/// completely.
pub(super) fn planned(run: impl Fn(&[&str]) -> Said, folder: &Utf8Path, left: &[&str]) -> FirstExport {
    let refused = run(&["export", "terraform", "--out", folder.join("none").as_str()]);
    assert!(refused.exit == 2 && refused.err.contains("--planned"), "{refused:?}");
    let (main, said) = configuration(&run, folder, PLANNED);
    assert_eq!(main.get("import"), None);
    let (again, _) = configuration(&run, folder, PLANNED);
    assert_eq!(main, again, "names and tags are the same again");
    let is_of_cloud = |one: &&Value| {
        let because = one["because"].as_str().unwrap_or_default();
        !NOT_OF_CLOUD.iter().any(|start| because.starts_with(start))
    };
    let found = said["left"].as_array().into_iter().flatten().filter(is_of_cloud);
    let found: BTreeSet<&str> = found.filter_map(|one| one["resource"].as_str()).collect();
    // The certificate of the local CA is of no cloud, and needs that CA.
    let left: BTreeSet<&str> = left.iter().copied().chain(["here/certificate/leaf"]).collect();
    assert_eq!(found, left, "{:#}", said["left"]);
    FirstExport { main, said }
}

/// After `up` exactly the same resources are declared. Each object that Terraform may have created is imported by the name that it
/// has, or released.
pub(super) fn same(before: &FirstExport, run: impl Fn(&[&str]) -> Said, folder: &Utf8Path, main: &Value) {
    let (_, after) = exported(&run, folder, "terraform", &[]);
    let declared = |said: &Value| -> BTreeSet<String> {
        said["declared"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let (was, is) = (declared(&before.said), declared(&after));
    assert_eq!(was.symmetric_difference(&is).collect::<Vec<_>>(), Vec::<&String>::new(), "{:#}", before.said["left"]);
    let [created, kept]: [BTreeSet<String>; 2] = [&before.main, main].map(|main| addresses(main).into_iter().collect());
    assert_eq!(kept.difference(&created).collect::<Vec<_>>(), Vec::<&String>::new());
    let released = main["removed"].as_array().into_iter().flatten();
    let released: BTreeSet<String> = released.filter_map(|one| one["from"].as_str()).map(str::to_owned).collect();
    assert_eq!(created.difference(&kept).cloned().collect::<BTreeSet<_>>(), released);
}

fn addresses(main: &Value) -> Vec<String> {
    let each = |(kind, all): (&String, &Value)| {
        let names = all.as_object().into_iter().flatten().map(|(name, _)| format!("{kind}.{name}"));
        names.collect::<Vec<_>>()
    };
    main["resource"].as_object().into_iter().flatten().flat_map(each).collect()
}

/// The configuration with the values of its variables, and the document of the command.
fn configuration(run: impl Fn(&[&str]) -> Said, folder: &Utf8Path, more: &[&str]) -> (Value, Value) {
    let (out, said) = exported(run, folder, "terraform", more);
    let main = document(&out.join("main.tf.json"));
    let addresses = addresses(&main);
    let text = main.to_string();
    assert!(!text.contains("$secret"), "{text}");
    // `$${` is a text.
    let plain = text.replace("$${", "");
    let references: Vec<&str> = plain.split("${").skip(1).filter_map(|rest| rest.split('}').next()).collect();
    for reference in &references {
        let target = reference.split('.').take(2).collect::<Vec<_>>().join(".");
        assert!(reference.starts_with("var.") || addresses.contains(&target), "{reference}");
    }
    assert!(references.iter().filter(|reference| !reference.starts_with("var.")).count() >= 5, "{references:?}");
    let variables = document(&out.join("variables.tf.json"));
    for name in references.iter().filter_map(|reference| reference.strip_prefix("var.")) {
        assert!(variables["variable"].get(name).is_some(), "{name}: {variables:#}");
    }
    let values = std::fs::read_to_string(out.join("staging.tfvars")).unwrap();
    assert!(more != PLANNED || values.contains("_min_nodes = "), "{values}");
    let settings = values.lines().filter_map(|line| line.split_once(" = "));
    let text = settings.fold(text, |text, (name, value)| text.replace(&format!("\"${{var.{name}}}\""), value));
    (serde_json::from_str(&text).unwrap(), said)
}

/// The models of Azure's libraries take each document.
pub(super) fn azure(main: &Value, check: impl Fn(&str, &Value) -> Result<Vec<String>, String>) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let resources = &main["resource"]["azapi_resource"];
    let names = resources.as_object().into_iter().flatten().map(|(name, _)| name);
    let ids: BTreeMap<String, String> =
        names.map(|name| (format!("azapi_resource.{name}"), id_of(resources, name))).collect();
    for import in main["import"].as_array().into_iter().flatten() {
        let id = text(&import["id"]);
        assert_eq!(id.split('?').next(), ids.get(&text(&import["to"])).map(String::as_str));
    }
    let mut problems = Vec::new();
    for (name, resource) in resources.as_object().into_iter().flatten() {
        let literal =
            ids.iter().fold(resource.to_string(), |text, (to, id)| text.replace(&format!("${{{to}.id}}"), id));
        let resource: Value = serde_json::from_str(&literal).unwrap();
        let mut body = resource["body"].clone();
        for member in ["location", "tags"] {
            if let Some(value) = resource.get(member) {
                body[member] = value.clone();
            }
        }
        if let Some(identity) = resource.get("identity") {
            let all = identity[0]["identity_ids"].as_array().into_iter().flatten();
            let all: Map<String, Value> = all.map(|id| (text(id), json!({}))).collect();
            body["identity"] = json!({ "type": identity[0]["type"], "userAssignedIdentities": all });
        }
        let found = check(&ids[&format!("azapi_resource.{name}")], &body).unwrap();
        problems.extend(found.into_iter().map(|problem| format!("{name}: {problem}")));
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

/// The id that a resource of `azapi` has, or gets.
fn id_of(resources: &Value, name: &str) -> String {
    let text = |member: &str| resources[name][member].as_str().unwrap_or_default();
    let parent = text("parent_id");
    let reference = parent.strip_prefix("${azapi_resource.").and_then(|rest| rest.strip_suffix(".id}"));
    let parent = reference.map_or_else(|| parent.to_owned(), |other| id_of(resources, other));
    let (kind, own) = (text("type").split('@').next().unwrap_or_default(), text("name"));
    match kind.split('/').collect::<Vec<_>>().as_slice() {
        ["Microsoft.Resources", word] | [_, _, .., word] => format!("{parent}/{word}/{own}"),
        _ => format!("{parent}/providers/{kind}/{own}"),
    }
}

/// The attributes are those of the provider's schema.
pub(super) fn google(main: &Value) {
    let schema: Value = serde_json::from_str(GOOGLE).unwrap();
    let mut problems = Vec::new();
    for (section, types) in [("resource", "resources"), ("data", "data")] {
        for (kind, all) in main[section].as_object().into_iter().flatten() {
            for (name, resource) in all.as_object().into_iter().flatten() {
                compare(&format!("{kind}.{name}"), &schema[types][kind], resource, &mut problems);
            }
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
}

/// The service agents that use a key exist before their roles on it, and these before what they encrypt.
pub(super) fn google_keys(main: &Value) {
    google(main);
    let members = main["resource"]["google_kms_crypto_key_iam_member"].as_object().unwrap();
    let agents = ["gs-project-accounts", "container-engine-robot", "compute-system"];
    assert_eq!(members.len(), agents.len(), "{members:#?}");
    for agent in agents {
        let is_of = |one: &Value| one["member"].as_str().is_some_and(|member| member.contains(&format!("@{agent}.")));
        assert!(members.values().any(is_of), "{agent}: {members:#?}");
    }
    let needs = |resource: &Value, on: &str| {
        let mut all = resource["depends_on"].as_array().into_iter().flatten().filter_map(Value::as_str);
        all.any(|one| one.starts_with(on))
    };
    let agent = "data.google_storage_project_service_account.";
    assert!(members.values().any(|one| needs(one, agent)), "{members:#?}");
    for kind in ["google_storage_bucket", "google_container_cluster", "google_container_node_pool"] {
        let all = main["resource"][kind].as_object().unwrap();
        assert!(all.values().all(|one| needs(one, "google_kms_crypto_key_iam_member.")), "{all:#?}");
    }
}

/// What Terraform has for every resource.
const META: [&str; 3] = ["depends_on", "lifecycle", "provider"];

fn compare(place: &str, schema: &Value, block: &Value, problems: &mut Vec<String>) {
    for (name, value) in block.as_object().into_iter().flatten().filter(|(name, _)| !META.contains(&name.as_str())) {
        match &schema[name] {
            Value::Null => problems.push(format!("{place}.{name} is unknown")),
            found @ Value::Object(_) => {
                let items = value.as_array().map_or_else(|| vec![value], |all| all.iter().collect());
                for item in items {
                    compare(&format!("{place}.{name}"), found, item, problems);
                }
            }
            _ => {}
        }
    }
    for (name, one) in schema.as_object().into_iter().flatten().filter(|(name, _)| *name != "*") {
        if (*one == true || one["*"] == true) && block.get(name).is_none() {
            problems.push(format!("{place}.{name} is missing"));
        }
    }
}

/// See [`templates`].
pub(super) fn cloudformation(run: impl Fn(&[&str]) -> Said, folder: &Utf8Path, region: &str) {
    templates(run, folder, region, &[]);
}

/// The same before the first `up`: nothing is imported.
pub(super) fn planned_cloudformation(run: impl Fn(&[&str]) -> Said, folder: &Utf8Path, region: &str) {
    templates(run, folder, region, PLANNED);
}

/// cfn-lint, which has the schemas of the registry, finds no error in the templates, and each object that exists is imported.
fn templates(run: impl Fn(&[&str]) -> Said, folder: &Utf8Path, region: &str, more: &[&str]) {
    let (out, said) = exported(run, folder, "cloudformation", more);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../environments");
    let python = Command::new("bash").arg(script).args(["python", "cfn"]).output().unwrap();
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    let lint = Path::new(String::from_utf8(python.stdout).unwrap().trim()).with_file_name("cfn-lint");
    let files = said["files"].as_array().unwrap().iter().filter_map(Value::as_str);
    let names: Vec<&str> = files.filter_map(|file| file.strip_suffix(".template.json")).collect();
    assert!(!names.is_empty(), "{said:#}");
    for name in names {
        let template = out.join(format!("{name}.template.json"));
        let said = Command::new(&lint).args(["-i", "W", "I", "-r", region, "--", template.as_str()]).output().unwrap();
        assert!(
            said.status.success(),
            "{}{}",
            String::from_utf8_lossy(&said.stdout),
            String::from_utf8_lossy(&said.stderr)
        );
        if more == PLANNED {
            assert!(!out.join(format!("{name}.import.json")).exists());
            continue;
        }
        let (template, imports) = (document(&template), document(&out.join(format!("{name}.import.json"))));
        let resources = template["Resources"].as_object().unwrap();
        assert_eq!(imports.as_array().map(Vec::len), Some(resources.len()));
        for import in imports.as_array().into_iter().flatten() {
            let resource = &resources[import["LogicalResourceId"].as_str().unwrap()];
            assert_eq!(
                (&resource["Type"], &resource["DeletionPolicy"]),
                (&import["ResourceType"], &Value::from("Retain"))
            );
            assert!(import["ResourceIdentifier"].as_object().is_some_and(|all| !all.is_empty()), "{import}");
        }
    }
}

/// See [`files`].
pub(super) fn bicep(run: impl Fn(&[&str]) -> Said, folder: &Utf8Path) {
    files(run, folder, &[]);
}

/// The same before the first `up`.
pub(super) fn planned_bicep(run: impl Fn(&[&str]) -> Said, folder: &Utf8Path) {
    files(run, folder, PLANNED);
}

/// A file for each scope, with a resource for each declaration and balanced braces.
fn files(run: impl Fn(&[&str]) -> Said, folder: &Utf8Path, more: &[&str]) {
    let (out, said) = exported(run, folder, "bicep", more);
    let files = said["files"].as_array().unwrap().iter().filter_map(Value::as_str);
    let mut count = 0;
    for file in files.filter(|file| file.ends_with(".bicep")) {
        let text = std::fs::read_to_string(out.join(file)).unwrap();
        assert!(
            text.contains("\ntargetScope = '") && !text.contains('\u{e000}') && !text.contains("$secret"),
            "{text}"
        );
        let of = |c: char| text.chars().filter(|one| *one == c).count();
        assert_eq!((of('{'), of('[')), (of('}'), of(']')), "{text}");
        count += text.lines().filter(|line| line.starts_with("resource ")).count();
    }
    assert!(count >= said["declared"].as_array().map_or(0, Vec::len), "{said:#}");
}
