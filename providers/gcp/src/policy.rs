//! The custom role of a plan, as `gcloud iam roles create ROLE --file` reads it
//! (<https://cloud.google.com/iam/docs/creating-custom-roles>). Pure.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use textnlp_cloud::policy::documents;
use textnlp_provider::{PolicyDocument, PolicyRequest};

use crate::table;

/// The most bytes of a role, of which its title and its description need some
/// (<https://cloud.google.com/iam/quotas>).
const MOST: usize = 60_000;

/// What preflight and the search for forgotten objects read, besides the objects themselves.
pub(crate) const ALWAYS: &[&str] = &[
    "compute.acceleratorTypes.get",
    "compute.machineTypes.get",
    "compute.projects.get",
    "compute.regions.get",
    "compute.subnetworks.list",
    "compute.disks.list",
    "resourcemanager.projects.get",
    "serviceusage.services.get",
    "serviceusage.services.list",
    "serviceusage.services.use",
];

/// The role that allows what a plan needs.
pub(crate) fn policies(request: &PolicyRequest) -> Vec<PolicyDocument> {
    let parts: Vec<Value> = permissions(request).into_iter().map(Value::from).collect();
    let environment = &request.environment;
    documents("Google Cloud custom role", parts, MOST, |permissions| {
        json!({
            "title": format!("textnlp {environment}"),
            "description": format!("What textnlp-deploy needs for the environment {environment}"),
            "stage": "GA",
            "includedPermissions": permissions,
        })
    })
}

/// The permissions of a request, with those that every plan needs.
pub(crate) fn permissions(request: &PolicyRequest) -> BTreeSet<String> {
    let needed = request.permissions(table::kinds(), |_| None).into_keys().map(|permission| permission.action);
    needed.chain(ALWAYS.iter().map(|action| (*action).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use textnlp_provider::{EnvironmentName, PolicyResource, Spec, Verb};

    use super::*;

    #[test]
    fn role_has_the_permissions_of_the_plan() {
        let resource = |verbs: &[Verb]| PolicyResource {
            id: "main/network/vpc".parse().unwrap(),
            kind: "gcp.network".parse().unwrap(),
            cloud_id: None,
            spec: Spec::of(&json!({})),
            verbs: verbs.iter().copied().collect(),
        };
        let request = |verbs: &[Verb]| PolicyRequest {
            lineage: None,
            environment: EnvironmentName::new("staging").unwrap(),
            site: "main".parse().unwrap(),
            resources: vec![resource(verbs)],
        };
        let has = |verbs: &[Verb], action: &str| permissions(&request(verbs)).contains(action);
        assert!(has(&[Verb::Create], "compute.networks.create") && !has(&[Verb::Create], "compute.networks.delete"));
        assert!(has(&[], "compute.networks.get") && !has(&[], "compute.networks.create"));
        let role: Value = serde_json::from_str(&policies(&request(&[Verb::Delete]))[0].text).unwrap();
        assert_eq!(role["stage"], "GA");
        assert!(role["includedPermissions"].as_array().unwrap().contains(&json!("compute.firewalls.delete")));
    }
}
