//! What is recorded, read by the tools that it is written for.

use std::collections::BTreeMap;

use camino::Utf8Path;
use jiff::Timestamp;
use serde_json::{Value, json};
use textnlp_orchestrator::export::terraform;
use textnlp_orchestrator::state::RecordedObjects;
use textnlp_provider::{
    CloudId, EnvironmentName, KindName, Lineage, Need, Ownership, Recorded, ResourceId, SiteName, Spec,
};
use uuid::Uuid;

use super::Tool;

fn holding(name: &str, needs: &[&str], spec: Value) -> (ResourceId, RecordedObjects) {
    let id = ResourceId::new(name).unwrap();
    let recorded = Recorded {
        id: id.clone(),
        kind: KindName::new("memory.thing").unwrap(),
        site: SiteName::new("here").unwrap(),
        via: None,
        spec: Spec::of(&spec),
        needs: needs.iter().map(|need| Need::on(ResourceId::new(*need).unwrap())).collect(),
        ownership: Ownership::Ours,
        schema: 1,
        cloud_id: CloudId::new(format!("thing:{name}")).unwrap(),
        outputs: BTreeMap::from([("address".to_owned(), json!("10.0.0.1"))]),
        protected: name.ends_with("db"),
        tainted: false,
        created: None,
    };
    (
        id,
        RecordedObjects {
            current: Some(recorded),
            sha256: None,
            old: Vec::new(),
            since: Timestamp::UNIX_EPOCH,
            by: None,
        },
    )
}

fn document() -> Value {
    let hostile = json!({ "text": "${file(\"/etc/passwd\")} %{ if true }x%{ endif } $${y} \"quoted\" \\ \u{1f980}\n", "${k}": [1, null, true] });
    let holdings = BTreeMap::from([
        holding("here/db", &[], json!({ "size": 1 })),
        holding("here/server/a-b", &["here/db", "here/gone"], hostile),
        holding("here/server-a/b", &["here/server/a-b"], json!({})),
    ]);
    terraform(&EnvironmentName::new("staging").unwrap(), Lineage(Uuid::nil()), &holdings)
}

#[test]
fn terraform_names_are_unique_and_depends_on_lists_existing_resources() {
    let document = document();
    let all = document["resource"]["terraform_data"].as_object().unwrap();
    let names: Vec<&String> = all.keys().collect();
    assert_eq!(names, ["here_db", "here_server_a_b", "here_server_a_b__2"]);
    let needs = |name: &str| all[name]["depends_on"].clone();
    let one = all.iter().find(|(_, resource)| resource["input"]["resource"] == "here/server/a-b").unwrap().0;
    let other = all.iter().find(|(_, resource)| resource["input"]["resource"] == "here/server-a/b").unwrap().0;
    assert_eq!(needs(one), json!(["terraform_data.here_db"]));
    assert_eq!(needs(other), json!([format!("terraform_data.{one}")]));
    assert_eq!(all["here_db"]["lifecycle"]["prevent_destroy"], true);
}

#[test]
fn terraform_accepts_the_export_and_reads_every_string_literally() {
    let folder = tempfile::tempdir().unwrap();
    let Some(tool) = Tool::find(Utf8Path::from_path(folder.path()).unwrap()) else { return };
    std::fs::write(folder.path().join("staging.tf.json"), document().to_string()).unwrap();
    let run = |args: &[&str]| tool.run(args);
    run(&["init", "-input=false", "-no-color"]);
    let valid: Value = serde_json::from_str(&run(&["validate", "-json"])).unwrap();
    assert_eq!((&valid["valid"], &valid["warning_count"]), (&json!(true), &json!(0)), "{valid:#}");
    run(&["plan", "-input=false", "-no-color", "-out=plan"]);
    let plan: Value = serde_json::from_str(&run(&["show", "-json", "plan"])).unwrap();
    let planned = plan["planned_values"]["root_module"]["resources"].as_array().unwrap();
    assert_eq!(planned.len(), 3);
    let input =
        |id: &str| planned.iter().map(|one| &one["values"]["input"]).find(|input| input["resource"] == id).unwrap();
    let text = &input("here/server/a-b")["spec"];
    assert_eq!(text["text"], "${file(\"/etc/passwd\")} %{ if true }x%{ endif } $${y} \"quoted\" \\ \u{1f980}\n");
    assert_eq!(text["${k}"], json!([1, null, true]));
}
