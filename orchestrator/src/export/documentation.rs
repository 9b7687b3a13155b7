//! The state as documentation for Terraform and OpenTofu, in their JSON syntax (`.tf.json`).
//!
//! Every resource is a `terraform_data` of the built-in provider, with its record as input and its dependencies as
//! `depends_on`. It can be validated, planned and queried; it creates nothing.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use textnlp_provider::{EnvironmentName, Lineage, ResourceId};

use super::names;
use super::terraform::literal;
use crate::state::RecordedObjects;

/// The Terraform configuration of a state.
pub fn terraform(
    environment: &EnvironmentName,
    lineage: Lineage,
    holdings: &BTreeMap<ResourceId, RecordedObjects>,
) -> Value {
    let names = names(holdings.keys());
    let mut resources = Map::new();
    for (id, holding) in holdings {
        let Some(recorded) = &holding.current else { continue };
        let hosts = recorded.via.iter().map(|host| &host.0);
        let mut needs: Vec<String> = hosts
            .chain(recorded.needs.iter().map(|need| &need.on))
            .filter_map(|need| Some(format!("terraform_data.{}", names.get(need)?)))
            .collect();
        needs.sort();
        needs.dedup();
        let input = json!({
            "resource": id, "lineage": lineage, "kind": recorded.kind, "site": recorded.site, "id": recorded.cloud_id, "spec": recorded.spec,
            "outputs": recorded.outputs, "protected": recorded.protected,
        });
        let mut resource = json!({ "input": literal(input) });
        if !needs.is_empty() {
            resource["depends_on"] = json!(needs);
        }
        if recorded.protected {
            resource["lifecycle"] = json!({ "prevent_destroy": true });
        }
        resources.insert(names[id].clone(), resource);
    }
    let mut document = json!({
        "//": format!("environment {environment}, lineage {lineage}: recorded by textnlp-deploy, as documentation: it creates nothing"),
        "terraform": { "required_version": ">= 1.4" },
        "locals": { "environment": environment, "lineage": lineage },
    });
    if !resources.is_empty() {
        document["resource"] = json!({ "terraform_data": resources });
    }
    document
}
