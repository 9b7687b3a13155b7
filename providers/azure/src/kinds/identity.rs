//! Managed identities, their federated credentials, and role assignments: <https://learn.microsoft.com/rest/api/managedidentity/>,
//! <https://learn.microsoft.com/rest/api/authorization/role-assignments>.

use async_trait::async_trait;
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_cloud::document::last;
use textnlp_provider::{ErrorKind, Identity as KindIdentity, Kind, Lineage, Result, Spec, Wanted};

use super::{create, delete, put, read};
use crate::api::{Api, Call};
use crate::names;
use crate::row::{Field, LOCATION, Marks, Rest, RestKind, Table, Update};
use crate::table::{MINUTE, Row, kind};

const IDENTITY: &str = "2023-01-31";
const ASSIGNMENT: &str = "2022-04-01";

/// Built-in roles: <https://learn.microsoft.com/azure/role-based-access-control/built-in-roles>.
pub(crate) const NETWORK_CONTRIBUTOR: &str = "4d97b98b-1d4f-4787-a291-c67834d212e7";
pub(crate) const ACR_PULL: &str = "7f951dda-4ed3-4680-a7ca-43fe172d538d";
pub(crate) const CLUSTER_ADMIN: &str = "b1ff04bb-8a4e-4dc4-8eb5-8693973ce19b";
pub(crate) const BLOB_READER: &str = "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1";
pub(crate) const KEY_USER: &str = "12338af0-0e69-4776-bea7-57ae8d297424";

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            permissions: &[
                read("Microsoft.ManagedIdentity/userAssignedIdentities/read"),
                put("Microsoft.ManagedIdentity/userAssignedIdentities/write"),
                delete("Microsoft.ManagedIdentity/userAssignedIdentities/delete"),
            ],
            terraform: &[("azurerm_user_assigned_identity", "id")],
            ..kind("azure.identity", "a managed identity", KindIdentity::Named)
        },
        service: "Microsoft.ManagedIdentity",
        resource: &Rest::<Managed>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            permissions: &[
                read("Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials/read"),
                put("Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials/write"),
                delete("Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials/delete"),
            ],
            terraform: &[("azurerm_federated_identity_credential", "id")],
            ..kind("azure.federated-credential", "a service account that is an identity", KindIdentity::Part)
        },
        service: "Microsoft.ManagedIdentity",
        resource: &Rest::<Federated>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            // A new principal is known everywhere after minutes (hashicorp/terraform-provider-azurerm#11417,
            // MicrosoftDocs/azure-docs#103085).
            deadline: MINUTE.saturating_mul(20),
            permissions: &[
                read("Microsoft.Authorization/roleAssignments/read"),
                create("Microsoft.Authorization/roleAssignments/write"),
                delete("Microsoft.Authorization/roleAssignments/delete"),
            ],
            terraform: &[("azurerm_role_assignment", "id")],
            ..kind("azure.assignment", "a role of an identity", KindIdentity::Part)
        },
        service: "Microsoft.Authorization",
        resource: &Rest::<Assignment>::kind(),
        refused: &[],
    },
];

/// A managed identity. Outputs: `id`, `name`, `principal`, `client`, `tenant`.
struct Managed;

impl RestKind for Managed {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.ManagedIdentity/userAssignedIdentities",
        version: IDENTITY,
        path: "{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}",
        fields: &[LOCATION],
        update: Update::Patch,
        outputs: &[
            ("principal", "/properties/principalId"),
            ("client", "/properties/clientId"),
            ("tenant", "/properties/tenantId"),
        ],
        ..Table::USUAL
    };
}

/// Tokens of an issuer for a subject, with which a service account of a cluster signs in as an identity. Outputs: `id`, `name`.
struct Federated;

impl RestKind for Federated {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials",
        version: IDENTITY,
        path: "{identity}/federatedIdentityCredentials/{name}",
        fields: &[
            Field::plain("issuer", "/properties/issuer").changed(),
            Field::plain("subject", "/properties/subject").changed(),
            Field::plain("audiences", "/properties/audiences").changed(),
        ],
        in_place: &["issuer", "subject", "audiences"],
        marks: Marks::Part,
        ..Table::USUAL
    };
}

/// A role that a principal has on a scope. It is unique and immutable, so that its name follows from the three
/// (hashicorp/terraform-provider-azurerm#28694, Azure/azure-cli#8599).
/// Outputs: `id`, `name`.
struct Assignment;

#[async_trait]
impl RestKind for Assignment {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Authorization/roleAssignments",
        version: ASSIGNMENT,
        path: "{scope}/providers/Microsoft.Authorization/roleAssignments/{name}",
        fields: &[
            Field::plain("principal", "/properties/principalId"),
            Field::code(
                "role",
                "",
                |_| Value::Null,
                |one| one["properties"]["roleDefinitionId"].as_str().map_or(Value::Null, |id| last(id).into()),
            ),
            // It tells Azure not to look the principal up in a directory that may not know it yet (MicrosoftDocs/azure-docs#103085).
            Field::plain("principal_type", "/properties/principalType"),
        ],
        marks: Marks::Part,
        ..Table::USUAL
    };

    fn id(spec: &Spec) -> Option<String> {
        let text = |field: &str| spec.get(field)?.as_str();
        Some(assignment(text("scope")?, text("role")?, text("principal")?))
    }

    /// Only the creation of an identity shows its principal, so that the resource stands for it: in each export the same.
    fn planned_id(wanted: &Wanted, lineage: Lineage) -> Option<String> {
        let text = |field: &str| wanted.spec.get(field)?.as_str();
        Some(assignment(text("scope")?, text("role")?, &format!("{lineage}/{}", wanted.id)))
    }

    fn fits(field: &str, _wanted: &Value, seen: &Value) -> bool {
        field == "principal_type" && seen.is_null()
    }

    fn complete(spec: &Spec, document: &mut Value) {
        let text = |field: &str| spec.get(field).and_then(Value::as_str).unwrap_or_default();
        // `/subscriptions/ID` of the scope: an existing container may be in another subscription than the site.
        let subscription: Vec<&str> = text("scope").split('/').take(3).collect();
        let definition =
            format!("{}/providers/Microsoft.Authorization/roleDefinitions/{}", subscription.join("/"), text("role"));
        document["properties"]["roleDefinitionId"] = definition.into();
    }

    /// The same role of the same principal under another name.
    async fn existing(api: &Api, id: &str, spec: &Spec) -> Result<Option<String>> {
        let text = |field: &str| spec.get(field).and_then(Value::as_str).unwrap_or_default();
        let (scope, role, principal) = (text("scope"), text("role"), text("principal"));
        let call = Call::get(format!("{scope}/providers/Microsoft.Authorization/roleAssignments"), ASSIGNMENT);
        let all = api.list(call.query("$filter", format!("principalId eq '{principal}'"))).await?;
        let is_same = |one: &&Value| {
            let of = |member: &str| one["properties"][member].as_str().unwrap_or_default();
            last(of("roleDefinitionId")).eq_ignore_ascii_case(role) && of("scope").eq_ignore_ascii_case(scope)
        };
        let found = all.iter().find(is_same).and_then(|one| one["name"].as_str());
        let collection = id.rsplit_once('/').map(|(start, _)| start);
        Ok(found.zip(collection).map(|(name, start)| format!("{start}/{}", name.to_ascii_lowercase())))
    }
}

/// Whether the identity that deploys has a role on a scope, or on what the scope is in.
pub(super) async fn is_granted(api: &Api, scope: &str, role: &str) -> Result<bool> {
    let principal = &api.session.identity.object;
    let call = Call::get(format!("{scope}/providers/Microsoft.Authorization/roleAssignments"), ASSIGNMENT);
    let all = api.list(call.query("$filter", format!("principalId eq '{principal}'"))).await?;
    let role_of = |one: &Value| one["properties"]["roleDefinitionId"].as_str().map(|id| last(id).to_owned());
    Ok(all.iter().filter_map(role_of).any(|found| found.eq_ignore_ascii_case(role)))
}

/// Gives the identity that deploys a role on a scope.
pub(super) async fn grant(api: &Api, scope: &str, role: &str) -> Result<()> {
    let identity = &api.session.identity;
    let definition = api.of_subscription(&format!("/providers/Microsoft.Authorization/roleDefinitions/{role}"));
    let kind = if identity.is_application { "ServicePrincipal" } else { "User" };
    let body = json!({ "properties": {
        "roleDefinitionId": definition, "principalId": identity.object, "principalType": kind,
    } });
    let path = assignment(scope, role, &identity.object);
    match api.send(Call::new(Method::PUT, path, ASSIGNMENT).body(body).saying("give access to", last(scope))).await {
        Err(error) if error.kind != ErrorKind::Exists => Err(error),
        _ => Ok(()),
    }
}

/// The id of an assignment on a scope.
fn assignment(scope: &str, role: &str, principal: &str) -> String {
    format!("{scope}/providers/Microsoft.Authorization/roleAssignments/{}", name(scope, role, principal))
}

/// The name of an assignment, from its whole scope, its role and the object id of its principal.
fn name(scope: &str, role: &str, principal: &str) -> String {
    names::guid(&json!([scope.to_ascii_lowercase(), role, principal]).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_from_scope_role_and_principal() {
        let first = name("/subscriptions/S/resourceGroups/g", ACR_PULL, "p");
        assert_eq!(first, name("/subscriptions/s/resourcegroups/g", ACR_PULL, "p"));
        assert_ne!(first, name("/subscriptions/s/resourcegroups/g", ACR_PULL, "q"));
        assert!(uuid::Uuid::parse_str(&first).is_ok());
        let spec = json!({ "scope": "/subscriptions/S/resourceGroups/g", "role": ACR_PULL, "principal": "p" });
        assert!(Assignment::id(&Spec::of(&spec)).unwrap().ends_with(&first));
        let unknown = json!({ "scope": "/subscriptions/s", "role": ACR_PULL, "principal": { "$output": "a/b#c" } });
        assert!(Assignment::id(&Spec::of(&unknown)).is_none());
    }
}
