//! The custom role of a plan, as `az role definition create --role-definition @FILE` reads it
//! (<https://learn.microsoft.com/azure/role-based-access-control/custom-roles>). Pure.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use textnlp_cloud::policy::{documents, note_on};
use textnlp_provider::{PolicyDocument, PolicyRequest};

use crate::kinds::cluster::INSIDE;
use crate::table::{self, CLUSTER};

/// The most characters of a role's permissions: a role has 2048 of them
/// (<https://learn.microsoft.com/azure/role-based-access-control/troubleshoot-limits>).
const MOST: usize = 60_000;

/// What preflight and the search for forgotten objects read, besides the objects themselves.
const ALWAYS: &[&str] = &[
    "Microsoft.Authorization/locks/read",
    "Microsoft.Authorization/permissions/read",
    "Microsoft.Compute/locations/usages/read",
    "Microsoft.Compute/skus/read",
    "Microsoft.DBforPostgreSQL/locations/capabilities/read",
    "Microsoft.KeyVault/deletedVaults/read",
    "Microsoft.Network/natGateways/read",
    "Microsoft.Network/publicIPAddresses/read",
    "Microsoft.Network/routeTables/read",
    "Microsoft.PolicyInsights/checkPolicyRestrictions/read",
    "Microsoft.Resources/subscriptions/providers/read",
    "Microsoft.Resources/subscriptions/read",
    "Microsoft.Resources/subscriptions/resourceGroups/read",
    "Microsoft.Resources/subscriptions/resources/read",
];

/// The role that allows what a plan needs. `subscription` is the scope at which it can be assigned.
pub(crate) fn policies(request: &PolicyRequest, subscription: &str) -> Vec<PolicyDocument> {
    let parts: Vec<Value> = actions(request).into_iter().map(Value::from).collect();
    let environment = &request.environment;
    let scope = if subscription.is_empty() { "SUBSCRIPTION" } else { subscription };
    let data = data_actions(request);
    let mut roles = documents("Azure custom role", parts, MOST, |actions| {
        json!({
            "Name": format!("textnlp {environment}"),
            "IsCustom": true,
            "Description": format!("What textnlp-deploy needs for the environment {environment}"),
            "Actions": actions,
            "NotActions": [],
            "DataActions": data,
            "NotDataActions": [],
            "AssignableScopes": [format!("/subscriptions/{scope}")],
        })
    });
    note_on(&mut roles, &["Microsoft.Authorization/roleAssignments/write"], OWNER);
    roles
}

/// The note on roles that let their holder assign any role.
const OWNER: &str = "an identity with this role can assign any role in the subscription, also Owner to itself: give it to the identity \
                     that deploys alone, and limit the roles that it may assign by a condition of its assignment \
                     (https://learn.microsoft.com/azure/role-based-access-control/delegate-role-assignments-overview)";

/// The actions of a request, with those that every plan needs.
pub(crate) fn actions(request: &PolicyRequest) -> BTreeSet<String> {
    let needed = request.permissions(table::kinds(), |_| None).into_keys().map(|permission| permission.action);
    needed.chain(ALWAYS.iter().map(|action| (*action).to_owned())).collect()
}

/// What it does inside of clusters, with the role that `up` assigns; a cluster of another owner needs it beforehand.
fn data_actions(request: &PolicyRequest) -> Vec<&'static str> {
    request.resources.iter().any(|one| one.kind.as_str() == CLUSTER).then_some(INSIDE).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use textnlp_provider::{EnvironmentName, PolicyResource, Spec, Verb};

    use super::*;

    #[test]
    fn role_has_the_actions_of_the_plan() {
        let resource = |kind: &str, verbs: &[Verb]| PolicyResource {
            id: "main/network/one".parse().unwrap(),
            kind: kind.parse().unwrap(),
            cloud_id: None,
            spec: Spec::of(&json!({ "name": "Microsoft.Network" })),
            verbs: verbs.iter().copied().collect(),
        };
        let request = |kind: &str, verbs: &[Verb]| PolicyRequest {
            lineage: None,
            environment: EnvironmentName::new("staging").unwrap(),
            site: "main".parse().unwrap(),
            resources: vec![resource(kind, verbs)],
        };
        let has = |kind, verbs: &[Verb], action: &str| actions(&request(kind, verbs)).contains(action);
        let (write, delete) = ("Microsoft.Network/virtualNetworks/write", "Microsoft.Network/virtualNetworks/delete");
        assert!(has("azure.network", &[Verb::Create], write) && !has("azure.network", &[Verb::Create], delete));
        assert!(has("azure.provider", &[Verb::Create], "Microsoft.Network/register/action"));
        let role: Value = serde_json::from_str(&policies(&request(CLUSTER, &[Verb::Delete]), "s")[0].text).unwrap();
        assert_eq!(role["DataActions"], json!([INSIDE]));
        assert_eq!(role["AssignableScopes"], json!(["/subscriptions/s"]));
        let notes = |verbs: &[Verb]| policies(&request("azure.assignment", verbs), "s")[0].notes.len();
        assert_eq!((notes(&[Verb::Create]), notes(&[])), (1, 0), "only a role that may assign others");
    }
}
