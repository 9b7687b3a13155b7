//! What `export` writes of a site that is up, read by the schemas of the tools that it is for.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Map, Value, json};
use textnlp_tests::Said;

/// The attributes of Terraform's provider `google`.
const GOOGLE: &str = include_str!("../../../schemas/google.json");

/// A folder with an export of a tool, and the document of the command.
fn exported(run: impl Fn(&[&str]) -> Said, folder: &Utf8Path, tool: &str) -> (Utf8PathBuf, Value) {
    let out = folder.join(tool);
    let said = run(&["export", tool, "--out", out.as_str(), "-o", "json"]).expect(0).json();
    let declared = said["declared"].as_array().map_or(0, Vec::len);
    eprintln!("export {tool}: {declared} declared, {} left out", said["left"].as_array().map_or(0, Vec::len));
    assert!(declared >= 10, "{said:#}");
    assert!(out.join("README.md").is_file());
    (out, said)
}

fn document(path: &Utf8Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Each resource is imported, every reference leads to one, and no secret is in a file. Gives the configuration.
pub(super) fn terraform(run: impl Fn(&[&str]) -> Said, folder: &Utf8Path) -> Value {
    let (out, _) = exported(&run, folder, "terraform");
    let main = document(&out.join("main.tf.json"));
    let resources = main["resource"].as_object().unwrap();
    let each = |(kind, all): (&String, &Value)| {
        let names = all.as_object().into_iter().flatten().map(|(name, _)| format!("{kind}.{name}"));
        names.collect::<Vec<_>>()
    };
    let addresses: Vec<String> = resources.iter().flat_map(each).collect();
    let imports = main["import"].as_array().unwrap();
    assert_eq!(imports.len(), addresses.len());
    for import in imports {
        assert!(addresses.iter().any(|address| import["to"] == address.as_str()), "{import}");
        assert!(import["id"].as_str().is_some_and(|id| !id.is_empty()), "{import}");
    }
    let text = main.to_string();
    assert!(!text.contains("$secret"), "{text}");
    let references: Vec<&str> = text.split("\"${").skip(1).filter_map(|rest| rest.split('}').next()).collect();
    for reference in &references {
        let target = reference.split('.').take(2).collect::<Vec<_>>().join(".");
        assert!(reference.starts_with("var.") || addresses.contains(&target), "{reference}");
    }
    assert!(references.iter().filter(|reference| !reference.starts_with("var.")).count() >= 5, "{references:?}");
    let variables = document(&out.join("variables.tf.json"));
    for name in references.iter().filter_map(|reference| reference.strip_prefix("var.")) {
        assert!(variables["variable"].get(name).is_some(), "{name}: {variables:#}");
    }
    assert!(out.join("staging.tfvars").is_file());
    // Another export replaces its files.
    exported(&run, folder, "terraform");
    main
}

/// The models of Azure's libraries take each document.
pub(super) fn azure(main: &Value, check: impl Fn(&str, &Value) -> Result<Vec<String>, String>) {
    let imports = main["import"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ids = imports.map(|import| (text(&import["to"]), text(&import["id"])));
    let ids: BTreeMap<String, String> =
        ids.map(|(to, id)| (to, id.split('?').next().unwrap_or_default().to_owned())).collect();
    let mut problems = Vec::new();
    for (name, resource) in main["resource"]["azapi_resource"].as_object().into_iter().flatten() {
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

/// The attributes are those of the provider's schema.
pub(super) fn google(main: &Value) {
    let schema: Value = serde_json::from_str(GOOGLE).unwrap();
    let mut problems = Vec::new();
    for (kind, all) in main["resource"].as_object().into_iter().flatten() {
        for (name, resource) in all.as_object().into_iter().flatten() {
            compare(&format!("{kind}.{name}"), &schema["resources"][kind], resource, &mut problems);
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
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

/// cfn-lint, which has the schemas of the registry, finds no error in the templates, and each object is imported.
pub(super) fn cloudformation(run: impl Fn(&[&str]) -> Said, folder: &Utf8Path, region: &str) {
    let (out, said) = exported(run, folder, "cloudformation");
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

/// A file for each scope, with a resource for each declaration and balanced braces.
pub(super) fn bicep(run: impl Fn(&[&str]) -> Said, folder: &Utf8Path) {
    let (out, said) = exported(run, folder, "bicep");
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
