//! Managed identities, federated credentials and role assignments.

use std::time::Duration;

use serde_json::{Value, json};

use super::cloud::{Cloud, Object, Principal, put, text};
use super::kinds::{Answer, Call, KIND, Kind, Special, find, is_name, listed, page, parent, passes};
use super::problem::{Problem, bad, conflict, missing};
use super::resources::get;
use crate::clock::later;
use crate::{Behaviour, Source};

/// By how much a request with `principalType` shortens the time in which a new principal is not known.
const HINT: Duration = Duration::from_secs(60);
/// Role assignments of a subscription:
/// <https://learn.microsoft.com/azure/role-based-access-control/troubleshoot-limits>.
const MAX_ASSIGNMENTS: usize = 4_000;
/// Federated credentials of an identity.
const MAX_CREDENTIALS: usize = 20;

/// Built-in roles: <https://learn.microsoft.com/azure/role-based-access-control/built-in-roles>.
pub(crate) const ROLES: &[(&str, &str)] = &[
    ("Owner", "8e3af657-a8ff-443c-a75c-2fe8c4bcb635"),
    ("Contributor", "b24988ac-6180-42a0-ab88-20f7382dd24c"),
    ("Reader", "acdd72a7-3385-48ef-bd42-f606fba81ae7"),
    ("User Access Administrator", "18d7d88d-d35e-4fb5-a5c3-7773c20a72d9"),
    ("Network Contributor", NETWORK_CONTRIBUTOR),
    ("Managed Identity Operator", IDENTITY_OPERATOR),
    ("Managed Identity Contributor", "e40ec5ca-96e0-45a2-b4ff-59039f2c2b59"),
    ("Private DNS Zone Contributor", ZONE_CONTRIBUTOR),
    ("AcrPull", ACR_PULL),
    ("AcrPush", "8311e382-0749-4cb8-b61a-304f252e45ec"),
    ("Storage Blob Data Owner", "b7e6dc6d-f1e8-4753-8033-0f276bb0955b"),
    ("Storage Blob Data Contributor", "ba92f5b4-2d11-453d-a403-e96b0029c9fe"),
    ("Storage Blob Data Reader", "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1"),
    ("Key Vault Administrator", "00482a5a-887f-4fb3-b363-3b7fe8e74483"),
    ("Key Vault Crypto Officer", "14b46e9e-c2b7-41b4-b07b-48a6ebf60603"),
    ("Key Vault Crypto User", "12338af0-0e69-4776-bea7-57ae8d297424"),
    ("Key Vault Crypto Service Encryption User", "e147488a-f6f5-4113-8e2d-b22465e65bf6"),
    ("Key Vault Secrets Officer", "b86a8fe4-44ce-4948-aee5-eccb2c155cd7"),
    ("Key Vault Secrets User", "4633458b-17de-408a-b874-0445c86b69e6"),
    ("Azure Kubernetes Service RBAC Cluster Admin", CLUSTER_ADMIN),
    ("Azure Kubernetes Service RBAC Admin", "3498e952-d568-435e-9b2c-8d77e338d7f7"),
    ("Azure Kubernetes Service Cluster User Role", "4abbcc35-e782-43d8-92c5-2d3f1bd2253f"),
    ("Azure Kubernetes Service Cluster Admin Role", "0ab0b1a8-8aac-4efd-b8c2-3ee1fb270be8"),
    ("Azure Kubernetes Service Contributor Role", "ed7f3fbd-7b88-4dd4-9017-9adb7ce333f8"),
    ("Monitoring Metrics Publisher", "3913510d-42f4-4e42-8a64-420c390055eb"),
    ("Log Analytics Contributor", "92aaf0da-9dab-42b6-94a3-d43ce8d16293"),
];
pub(crate) const NETWORK_CONTRIBUTOR: &str = "4d97b98b-1d4f-4787-a291-c67834d212e7";
pub(crate) const IDENTITY_OPERATOR: &str = "f1a07417-d97a-45cb-824c-7a7467783830";
pub(crate) const ZONE_CONTRIBUTOR: &str = "b12aa53e-6015-4669-85d0-8515ebb3ae7f";
pub(crate) const CLUSTER_ADMIN: &str = "b1ff04bb-8a4e-4dc4-8eb5-8693973ce19b";
pub(crate) const ACR_PULL: &str = "7f951dda-4ed3-4680-a7ca-43fe172d538d";

pub(crate) const KINDS: &[Kind] = &[
    Kind {
        kind: "Microsoft.ManagedIdentity/userAssignedIdentities",
        version: "2023-01-31",
        models: [
            "msi.v2023_01_31.models Identity",
            "msi.v2023_01_31.models IdentityUpdate",
            "msi.v2023_01_31.models Identity",
            "msi.v2023_01_31.models UserAssignedIdentitiesListResult",
        ],
        has_state: false,
        is_name: |name| is_name(name, 3..=128, "-_"),
        kept: &["/properties/tenantId", "/properties/principalId", "/properties/clientId"],
        accept: accept_identity,
        end: end_identity,
        ..KIND
    },
    Kind {
        kind: "Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials",
        version: "2023-01-31",
        models: [
            "msi.v2023_01_31.models FederatedIdentityCredential",
            "",
            "msi.v2023_01_31.models FederatedIdentityCredential",
            "msi.v2023_01_31.models FederatedIdentityCredentialsListResult",
        ],
        has_state: false,
        tags: 0,
        is_name: |name| is_name(name, 3..=120, "-_"),
        accept: accept_credential,
        refuse_delete: |cloud, key| writer(cloud, &parent(key)),
        ..KIND
    },
    Kind {
        kind: "Microsoft.Authorization/roleAssignments",
        version: "2022-04-01",
        models: [
            "authorization.v2022_04_01.models RoleAssignmentCreateParameters",
            "",
            "authorization.v2022_04_01.models RoleAssignment",
            "authorization.v2022_04_01.models RoleAssignmentListResult",
        ],
        has_state: false,
        tags: 0,
        ..KIND
    },
];

const ASSIGNMENT: &str = "authorization.v2022_04_01.models RoleAssignment";

pub(crate) const SPECIALS: &[Special] = &[
    Special {
        method: "PUT",
        path: "Microsoft.Authorization/roleAssignments",
        version: "2022-04-01",
        request: "authorization.v2022_04_01.models RoleAssignmentCreateParameters",
        answer: ASSIGNMENT,
        handler: assign,
    },
    Special {
        method: "DELETE",
        path: "Microsoft.Authorization/roleAssignments",
        version: "2022-04-01",
        request: "",
        answer: ASSIGNMENT,
        handler: unassign,
    },
    get(
        "Microsoft.Authorization/roleAssignments[]",
        "2022-04-01",
        "authorization.v2022_04_01.models RoleAssignmentListResult",
        assignments,
    ),
    get(
        "Microsoft.Authorization/roleDefinitions",
        "2022-04-01",
        "authorization.v2022_04_01.models RoleDefinition",
        role,
    ),
    get(
        "Microsoft.Authorization/roleDefinitions[]",
        "2022-04-01",
        "authorization.v2022_04_01.models RoleDefinitionListResult",
        roles,
    ),
];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "a role for a principal that is unknown, or too new, is 400 PrincipalNotFound",
        Source::Report("hashicorp/terraform-provider-azurerm#11417"),
    ),
    rule(
        "principalType shortens the time in which a new principal is unknown",
        Source::Report("MicrosoftDocs/azure-docs#103085"),
    ),
    rule("an identity has its ids before the directory knows it", Source::Report("Azure/azure-cli#8530")),
    rule("a role has no effect for a while", Source::Report("Azure/azure-rest-api-specs#9467")),
    rule(
        "a second assignment of the same scope, role and principal is 409 RoleAssignmentExists",
        Source::Report("hashicorp/terraform-provider-azurerm#28694"),
    ),
    rule("the same name with the same body succeeds", Source::Report("Azure/azure-cli#8599")),
    rule(
        "scope, role and principal of a name cannot change: 400 RoleAssignmentUpdateNotPermitted",
        Source::Report("Azure/azure-service-operator#4206"),
    ),
    rule("names of assignments count in the whole tenant", Source::Report("Azure/azure-service-operator#3637")),
    rule(
        "a deleted assignment still shows for a while, and keeps its name",
        Source::Report("Azure/terraform-azurerm-avm-ptn-alz#345"),
    ),
    rule(
        "a new assignment with a random name is refused at times",
        Source::LeftOut(
            "Azure/azure-cli#24324 shows no code; a plan chooses the name, and the same one each time, which helps",
        ),
    ),
    rule(
        "a role on the group of an identity does not count as one on the identity",
        Source::LeftOut("Azure/azure-cli-extensions#3679: a check of that client, not of the service"),
    ),
    rule(
        "a name that is no GUID is 400 InvalidRoleAssignmentId, for deletions too",
        Source::Report("Azure/azure-service-operator#2586"),
    ),
    rule("one write of federated credentials an identity at a time", Source::Report("pulumi/pulumi-azure-native#4343")),
    rule(
        "an exchange of a token that comes too early for a federated credential makes it fail longer",
        Source::Report("Azure/azure-workload-identity#576"),
    ),
    rule(
        "an identity has 20 federated credentials",
        Source::Documentation(
            "https://learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations",
        ),
    ),
    rule("assignments of deleted identities stay", Source::Report("Azure/bellhop#38")),
    rule(
        "a subscription has 4000 role assignments",
        Source::Documentation("https://learn.microsoft.com/azure/role-based-access-control/troubleshoot-limits"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "Microsoft.Authorization", what, source }
}

/// Fills the ids of an identity that is new, and lets the directory know of it.
pub(crate) fn add_principal(cloud: &mut Cloud, body: &mut Value) {
    let (principal, client) = (cloud.random.uuid(), cloud.random.uuid());
    put(body, "/properties/tenantId", cloud.tenant.clone().into());
    put(body, "/properties/principalId", principal.clone().into());
    put(body, "/properties/clientId", client.clone().into());
    let known_from = cloud.lagged(&cloud.conduct.principal_lag);
    cloud.principals.insert(principal, Principal { kind: "ServicePrincipal", client, known_from });
}

fn accept_identity(cloud: &mut Cloud, _: &Call, before: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    if before.is_none() {
        add_principal(cloud, body);
    }
    Ok(())
}

fn end_identity(cloud: &mut Cloud, key: &str) -> Result<(), Value> {
    let principal = cloud.objects.get(key).map(|one| text(&one.body, "/properties/principalId").to_owned());
    cloud.principals.remove(&principal.unwrap_or_default());
    Ok(())
}

/// Refuses a write while another one of the same identity counts.
fn writer(cloud: &Cloud, identity: &str) -> Result<(), Problem> {
    match cloud.busy.get(identity).is_some_and(|until| *until > cloud.now()) {
        false => Ok(()),
        true => Err(conflict(
            "ConcurrentFederatedIdentityCredentialsWritesForSingleManagedIdentity",
            "Too many Federated Identity Credentials are written concurrently for the managed identity.",
        )),
    }
}

fn accept_credential(cloud: &mut Cloud, call: &Call, before: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let identity = call.parent();
    writer(cloud, &identity)?;
    let below = format!("{identity}/federatedidentitycredentials/");
    if before.is_none() && cloud.objects.keys().filter(|key| key.starts_with(&below)).count() >= MAX_CREDENTIALS {
        return Err(bad("BadRequest", "The identity has the most credentials that are allowed."));
    }
    for member in ["/properties/issuer", "/properties/subject"] {
        if text(body, member).is_empty() {
            return Err(bad("BadRequest", format!("The property '{member}' is required.")));
        }
    }
    let (until, from) = (cloud.lagged(&cloud.conduct.federation_busy), cloud.lagged(&cloud.conduct.read_lag));
    cloud.busy.insert(identity, until);
    cloud.grants.insert(call.key.clone(), from);
    Ok(())
}

fn is_guid(name: &str) -> bool {
    let lengths: Vec<usize> = name.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && name.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

fn check_name(call: &Call) -> Result<(), Problem> {
    let message =
        format!("The role assignment ID '{}' is not valid. The role assignment ID must be a GUID.", call.name());
    if is_guid(call.name()) { Ok(()) } else { Err(bad("InvalidRoleAssignmentId", message)) }
}

fn is_assignment(key: &str) -> bool {
    key.contains("/microsoft.authorization/roleassignments/")
}

fn assign(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    check_name(call)?;
    let at = call.key.rfind("/providers/").unwrap_or(0);
    let scope = call.path.get(..at).unwrap_or_default().to_owned();
    let wanted = &call.body["properties"];
    let principal = text(wanted, "/principalId").to_owned();
    let role = text(wanted, "/roleDefinitionId").rsplit('/').next().unwrap_or_default().to_lowercase();
    if !ROLES.iter().any(|row| row.1 == role) {
        let message = format!("The specified role definition with ID '{role}' does not exist.");
        return Err(Problem::new(404, "RoleDefinitionDoesNotExist", message));
    }
    if scope.to_lowercase().contains("/providers/") && find(cloud, &scope.to_lowercase()).is_none() {
        return Err(missing(&scope));
    }
    let hinted = if text(wanted, "/principalType").is_empty() { Duration::ZERO } else { HINT };
    let now = cloud.now();
    let known = cloud.principals.get(&principal).filter(|one| one.known_from <= later(now, hinted));
    let Some(kind) = known.map(|one| one.kind) else {
        let message = format!(
            "Principal {principal} does not exist in the directory {}. Check that you have the correct principal ID. \
             If you are creating this principal and then immediately assigning a role, this error might be related to \
             a replication delay. In this case, set the role assignment principalType property to a value, such as \
             ServicePrincipal, User, or Group.",
            cloud.tenant
        );
        return Err(bad("PrincipalNotFound", message));
    };
    let triple = |body: &Value| {
        let one = |pointer: &str| text(body, pointer).to_lowercase();
        let role = one("/properties/roleDefinitionId");
        (
            one("/properties/scope"),
            role.rsplit('/').next().unwrap_or_default().to_owned(),
            one("/properties/principalId"),
        )
    };
    let own = (scope.to_lowercase(), role.clone(), principal.to_lowercase());
    let mut all = cloud.objects.iter().filter(|(key, _)| is_assignment(key));
    let name = call.name().to_lowercase();
    if let Some((key, object)) = all.clone().find(|(key, _)| key.rsplit('/').next() == Some(name.as_str())) {
        let is_same = triple(&object.body) == own && *key == call.key;
        if is_same && object.ghost_until.is_none() {
            return Ok(Answer::ok(object.body.clone()));
        }
        if !is_same {
            let message = "Tenant ID, application ID, principal ID, and scope are not allowed to be updated.";
            return Err(bad("RoleAssignmentUpdateNotPermitted", message));
        }
    }
    if let Some((key, _)) = all.find(|(_, object)| triple(&object.body) == own && object.ghost_until.is_none()) {
        let id = key.rsplit('/').next().unwrap_or_default().replace('-', "");
        let message = format!("The role assignment already exists. The ID of the existing role assignment is {id}.");
        return Err(conflict("RoleAssignmentExists", message));
    }
    if cloud.objects.keys().filter(|key| is_assignment(key)).count() >= MAX_ASSIGNMENTS {
        return Err(bad("RoleAssignmentLimitExceeded", "No more role assignments can be created."));
    }
    let mut body = json!({ "id": call.id(), "name": call.name(), "type": "Microsoft.Authorization/roleAssignments",
        "properties": wanted });
    let definition =
        format!("/subscriptions/{}/providers/Microsoft.Authorization/roleDefinitions/{role}", cloud.subscription);
    put(&mut body, "/properties/roleDefinitionId", definition.into());
    put(&mut body, "/properties/scope", scope.into());
    put(&mut body, "/properties/principalType", kind.into());
    put(&mut body, "/properties/createdOn", now.to_string().into());
    put(&mut body, "/properties/updatedOn", now.to_string().into());
    let lag = (cloud.lagged(&cloud.conduct.read_lag), cloud.lagged(&cloud.conduct.list_lag));
    let object = Object { id: call.id().to_owned(), body: body.clone(), lag, ghost_until: None };
    cloud.objects.insert(call.key.clone(), object);
    let from = cloud.lagged(&cloud.conduct.grant_lag);
    cloud.grants.insert(call.key.clone(), from);
    Ok(Answer::with(201, body))
}

fn unassign(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    check_name(call)?;
    let until = cloud.lagged(&cloud.conduct.assignment_ghost);
    let now = cloud.now();
    let Some(object) = cloud.objects.get_mut(&call.key).filter(|one| one.ghost_until.is_none()) else {
        return Ok(Answer::with(204, Value::Null));
    };
    object.ghost_until = Some(until);
    let body = object.body.clone();
    if until <= now {
        cloud.objects.remove(&call.key);
    }
    Ok(Answer::ok(body))
}

fn assignments(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let scope = call.key[..call.key.rfind("/providers/").unwrap_or(0)].to_owned();
    let at_scope = call.parameter("$filter").is_some_and(|filter| filter.contains("atScope()"));
    let all = listed(cloud, "/");
    let one = |(key, object): (&String, &Object)| {
        let at = format!("{}/", text(&object.body, "/properties/scope").to_lowercase());
        let own = format!("{scope}/");
        let fits = own.starts_with(&at) || !at_scope && at.starts_with(&own);
        (is_assignment(key) && fits && passes(call, &object.body)).then(|| object.body.clone())
    };
    let rows = all.into_iter().filter_map(one).collect();
    Ok(page(cloud, call, rows))
}

fn role_body(cloud: &Cloud, (name, id): &(&str, &str)) -> Value {
    let base = format!("/subscriptions/{}/providers/Microsoft.Authorization", cloud.subscription);
    json!({ "id": format!("{base}/roleDefinitions/{id}"),
        "name": id, "type": "Microsoft.Authorization/roleDefinitions",
        "properties": { "roleName": name, "type": "BuiltInRole", "assignableScopes": ["/"] } })
}

fn role(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let row = ROLES.iter().find(|row| row.1.eq_ignore_ascii_case(call.name()));
    let message = format!("The specified role definition with ID '{}' does not exist.", call.name());
    row.map(|row| Answer::ok(role_body(cloud, row)))
        .ok_or_else(|| Problem::new(404, "RoleDefinitionDoesNotExist", message))
}

fn roles(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let rows = ROLES.iter().map(|row| role_body(cloud, row)).filter(|body| passes(call, body)).collect();
    Ok(page(cloud, call, rows))
}
