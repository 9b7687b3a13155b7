//! The custom role of a plan, as `gcloud iam roles create ROLE --file` reads it
//! (<https://cloud.google.com/iam/docs/creating-custom-roles>). Pure.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use textnlp_cloud::policy::{documents, note_on};
use textnlp_provider::{PolicyDocument, PolicyRequest};

use crate::table;

/// The most bytes of a role, of which its title and its description need some
/// (<https://cloud.google.com/iam/quotas>).
const MOST: usize = 60_000;

/// What preflight and the search for forgotten objects read, besides the objects themselves.
pub(crate) const ALWAYS: &[&str] = &[
    "aiplatform.endpoints.list",
    "aiplatform.models.list",
    "compute.acceleratorTypes.get",
    "compute.healthChecks.list",
    "compute.machineTypes.get",
    "compute.projects.get",
    "compute.regions.get",
    "compute.routers.list",
    "compute.subnetworks.list",
    "compute.disks.list",
    "orgpolicy.policy.get",
    "redis.instances.list",
    "resourcemanager.projects.get",
    "run.services.list",
    "serviceusage.services.get",
    "serviceusage.services.list",
    "serviceusage.services.use",
];

/// The roles that allow what a plan needs: that of the project, and that of the billing account if the plan needs one.
pub(crate) fn policies(request: &PolicyRequest) -> Vec<PolicyDocument> {
    let (of_account, of_project): (Vec<String>, Vec<String>) =
        permissions(request).into_iter().partition(|permission| is_of_account(permission));
    let mut roles = role(request, "Google Cloud custom role", of_project);
    note_on(&mut roles, &["resourcemanager.projects.setIamPolicy"], OWNER);
    if !of_account.is_empty() {
        roles.extend(role(request, "Google Cloud custom role for the billing account", of_account));
    }
    roles
}

/// The note on roles that let their holder grant any role.
const OWNER: &str = "an identity with this role can grant any role in the project, also Owner to itself: grant it to the identity that \
                     deploys alone, and limit the roles that it may grant by a condition \
                     (https://cloud.google.com/iam/docs/setting-limits-on-granting-roles)";

/// Whether a permission is one on the billing account: no role of a project has it (tranquilitybase-io/tb-gcp#200).
pub(crate) fn is_of_account(permission: &str) -> bool {
    permission.starts_with("billing.")
}

fn role(request: &PolicyRequest, title: &str, permissions: Vec<String>) -> Vec<PolicyDocument> {
    let parts: Vec<Value> = permissions.into_iter().map(Value::from).collect();
    let environment = &request.environment;
    documents(title, parts, MOST, |permissions| {
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
        let resource = |kind: &str, verbs: &[Verb]| PolicyResource {
            id: "main/network/vpc".parse().unwrap(),
            kind: kind.parse().unwrap(),
            cloud_id: None,
            spec: Spec::of(&json!({})),
            verbs: verbs.iter().copied().collect(),
        };
        let of = |kind: &str, verbs: &[Verb]| PolicyRequest {
            lineage: None,
            environment: EnvironmentName::new("staging").unwrap(),
            site: "main".parse().unwrap(),
            resources: vec![resource(kind, verbs)],
        };
        let request = |verbs: &[Verb]| of("gcp.network", verbs);
        let has = |verbs: &[Verb], action: &str| permissions(&request(verbs)).contains(action);
        assert!(has(&[Verb::Create], "compute.networks.create") && !has(&[Verb::Create], "compute.networks.delete"));
        assert!(has(&[], "compute.networks.get") && !has(&[], "compute.networks.create"));
        let role: Value = serde_json::from_str(&policies(&request(&[Verb::Delete]))[0].text).unwrap();
        assert_eq!(role["stage"], "GA");
        assert!(role["includedPermissions"].as_array().unwrap().contains(&json!("compute.firewalls.delete")));
        let notes = |verbs: &[Verb]| policies(&of("gcp.project-binding", verbs))[0].notes.len();
        assert_eq!((notes(&[Verb::Create]), notes(&[])), (1, 0), "only a role that may grant others");
        let roles = policies(&of("gcp.budget", &[Verb::Create]));
        let [project, account] = roles.as_slice() else { panic!("{roles:?}") };
        assert!(!project.text.contains("billing."), "{}", project.text);
        let account: Value = serde_json::from_str(&account.text).unwrap();
        let held = json!(["billing.accounts.get", "billing.budgets.create", "billing.budgets.list"]);
        assert_eq!(account["includedPermissions"], held);
    }
}
