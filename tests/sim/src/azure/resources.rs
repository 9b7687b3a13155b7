//! Azure Resource Manager itself: the subscription, namespaces, resource groups, locks and permissions.

use serde_json::{Value, json};

use super::NAMESPACES;
use super::cloud::{Cloud, text};
use super::kinds::{
    Answer, Call, KIND, Kind, Special, Style, is_name, kind_of, listed, page, parent, passes, row, users,
};
use super::problem::{Problem, bad};
use crate::{Behaviour, Source};

/// Regions: the name, the title and whether it has zones.
pub(crate) const REGIONS: &[(&str, &str, bool)] = &[
    ("westeurope", "West Europe", true),
    ("northeurope", "North Europe", true),
    ("germanywestcentral", "Germany West Central", true),
    ("swedencentral", "Sweden Central", true),
    ("eastus", "East US", true),
    ("eastus2", "East US 2", true),
    ("westus2", "West US 2", true),
    ("westus", "West US", false),
];

pub(crate) const KINDS: &[Kind] = &[Kind {
    kind: "Microsoft.Resources/resourceGroups",
    version: "2021-04-01",
    models: [
        "resource.resources.v2021_04_01.models ResourceGroup",
        "resource.resources.v2021_04_01.models ResourceGroupPatchable",
        "resource.resources.v2021_04_01.models ResourceGroup",
        "resource.resources.v2021_04_01.models ResourceGroupListResult",
    ],
    styles: [Style::Sync, Style::Sync, Style::Location],
    seconds: [0, 0, 120],
    is_name: |name| is_name(name, 1..=90, "-_.()") && !name.ends_with('.'),
    accept: accept_group,
    end: end_group,
    ..KIND
}];

pub(crate) const SPECIALS: &[Special] = &[
    get(
        "Microsoft.Resources/subscriptions",
        "2022-12-01",
        "resource.subscriptions.v2022_12_01.models Subscription",
        subscription,
    ),
    get(
        "Microsoft.Resources/subscriptions[]",
        "2022-12-01",
        "resource.subscriptions.v2022_12_01.models SubscriptionListResult",
        subscriptions,
    ),
    get(
        "Microsoft.Resources/locations[]",
        "2022-12-01",
        "resource.subscriptions.v2022_12_01.models LocationListResult",
        locations,
    ),
    get(
        "Microsoft.Resources/resources[]",
        "2021-04-01",
        "resource.resources.v2021_04_01.models ResourceListResult",
        resources,
    ),
    get("Microsoft.Resources/providers", "2021-04-01", "resource.resources.v2021_04_01.models Provider", provider),
    get(
        "Microsoft.Resources/providers[]",
        "2021-04-01",
        "resource.resources.v2021_04_01.models ProviderListResult",
        providers,
    ),
    Special {
        method: "POST",
        path: "Microsoft.Resources/providers/register",
        version: "2021-04-01",
        request: "",
        answer: "resource.resources.v2021_04_01.models Provider",
        handler: register,
    },
    get(
        "Microsoft.Authorization/locks[]",
        "2020-05-01 2016-09-01",
        "resource.locks.v2016_09_01.models ManagementLockListResult",
        locks,
    ),
    get(
        "Microsoft.Authorization/permissions[]",
        "2022-04-01",
        "authorization.v2022_04_01.models PermissionGetResult",
        permissions,
    ),
];

pub(crate) const fn get(
    path: &'static str,
    version: &'static str,
    answer: &'static str,
    handler: super::kinds::Handler,
) -> Special {
    Special { method: "GET", path, version, request: "", answer, handler }
}

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "a new group is missed by some reads for a while",
        Source::Report("hashicorp/terraform-provider-azurerm#18268"),
    ),
    rule(
        "new resources, those of other services too, are missed by some reads for a while",
        Source::Report("hashicorp/terraform-provider-azurerm#32331"),
    ),
    rule(
        "the first reads of a resource that is being created may be 404",
        Source::Report("hashicorp/go-azure-sdk#740"),
    ),
    rule("lists miss new resources longer than reads do", Source::Report("cloudfoundry/bosh-azure-cpi-release#765")),
    rule(
        "a write of a namespace that is not registered is 409 MissingSubscriptionRegistration",
        Source::Report("nforgeio/neonKUBE#1670"),
    ),
    rule("registration takes a while", Source::Report("Azure/azure-cli#21899")),
    rule("a new subscription has few namespaces", Source::Report("Azure/caf-terraform-landingzones#398")),
    rule(
        "a write in a group that is being deleted is 409 ResourceGroupBeingDeleted",
        Source::Report("skypilot-org/skypilot#3712"),
    ),
    rule(
        "a group that is created again during its deletion may be accepted, and ends with that deletion",
        Source::Report("Azure/azure-sdk-for-java#2022"),
    ),
    rule(
        "a deployment that goes on creates its group again after the deletion",
        Source::LeftOut("Azure/azure-sdk-tools#611: no plan makes deployments of templates"),
    ),
    rule(
        "a removed lock counts for a while: 409 ScopeLocked",
        Source::Report("hashicorp/terraform-provider-azurerm#17478"),
    ),
    rule(
        "a lock of a resource keeps its group from being deleted",
        Source::Documentation("https://learn.microsoft.com/azure/azure-resource-manager/management/lock-resources"),
    ),
    rule(
        "deleting a group deletes all that is in it, and moves its vaults to the deleted ones",
        Source::Report("microsoft/aspire#16102"),
    ),
    rule(
        "the roles on a scope end with it: what was in it is 403 then for those who had no other role",
        Source::Report("Azure/azure-service-operator#5009"),
    ),
    rule(
        "a group that something outside refers to is not deleted: ResourceGroupDeletionBlocked",
        Source::Report("Azure/AKS#2443"),
    ),
    rule(
        "a busy subnet ends a group's deletion with ResourceGroupDeletionTimeout",
        Source::Report("hashicorp/terraform-provider-azurerm#15728"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "Microsoft.Resources", what, source }
}

/// Whether a write creates a group again while its deletion goes on, and the service accepts it.
pub(crate) fn is_recreation(cloud: &Cloud, call: &Call) -> bool {
    cloud.conduct.recreates_groups && call.method == "PUT" && call.kind == KINDS[0].kind
}

fn accept_group(_: &mut Cloud, _: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let location = text(body, "/location").replace(' ', "").to_lowercase();
    if !REGIONS.iter().any(|region| region.0 == location) {
        let message = format!("The provided location '{location}' is not available for resource group.");
        return Err(bad("LocationNotAvailableForResourceGroup", message));
    }
    body["location"] = location.into();
    Ok(())
}

fn end_group(cloud: &mut Cloud, key: &str) -> Result<(), Value> {
    let below = format!("{key}/");
    if cloud.conduct.links_stay && cloud.links.keys().any(|subnet| subnet.starts_with(&below)) {
        let message = "Deletion of the resource group did not finish within the allowed time.";
        return Err(json!({ "code": "ResourceGroupDeletionTimeout", "message": message }));
    }
    let keys: Vec<String> = cloud.objects.keys().filter(|one| one.starts_with(&below)).cloned().collect();
    let blocked = |one: &str, user: &str| {
        let message =
            format!("Deletion of resource group failed as resources could not be deleted: {one} is in use by {user}.");
        Problem::new(409, "ResourceGroupDeletionBlocked", message).detail("InUse", one).error()
    };
    for one in keys.iter().filter(|one| row(&kind_of(one)).is_some_and(|kind| kind.in_use.is_some())) {
        if let Some(user) = users(cloud, one).into_iter().find(|id| !id.to_lowercase().starts_with(&below)) {
            return Err(blocked(one, &user));
        }
    }
    for one in &keys {
        if let Some(kind) = row(&kind_of(one)) {
            (kind.end)(cloud, one)?;
        }
    }
    cloud.links.retain(|subnet, _| !subnet.starts_with(&below));
    Ok(())
}

fn subscription_body(cloud: &Cloud) -> Value {
    json!({ "id": format!("/subscriptions/{}", cloud.subscription), "subscriptionId": cloud.subscription,
        "tenantId": cloud.tenant, "displayName": "Simulated", "state": cloud.state,
        "authorizationSource": "RoleBased", "subscriptionPolicies": { "quotaId": "PayAsYouGo_2014-09-01",
        "spendingLimit": "Off" } })
}

fn subscription(cloud: &mut Cloud, _: &Call) -> Result<Answer, Problem> {
    Ok(Answer::ok(subscription_body(cloud)))
}

fn subscriptions(cloud: &mut Cloud, _: &Call) -> Result<Answer, Problem> {
    Ok(Answer::ok(json!({ "value": [subscription_body(cloud)] })))
}

fn locations(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let one = |(name, title, has_zones): &(&str, &str, bool)| {
        let zones =
            ["1", "2", "3"].map(|zone| json!({ "logicalZone": zone, "physicalZone": format!("{name}-az{zone}") }));
        let mut body = json!({ "id": format!("/subscriptions/{}/locations/{name}", cloud.subscription), "name": name,
            "type": "Region", "displayName": title });
        if *has_zones {
            body["availabilityZoneMappings"] = json!(zones);
        }
        body
    };
    Ok(page(cloud, call, REGIONS.iter().map(one).collect()))
}

/// The resources of the subscription or a group, as lists of any type have them: those at the top, and below them those with a location,
/// which Azure Resource Manager tracks: <https://github.com/Azure/azure-resource-manager-rpc/blob/master/v1.0/resource-api-reference.md>.
fn resources(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let scope = call.key.rsplit_once('/').map_or("", |(scope, _)| scope).to_owned();
    let is_shown = |key: &str, body: &Value| {
        key.contains("/providers/") && (key.split('/').count() == 9 || body["location"].is_string())
    };
    let rows = listed(cloud, &format!("{scope}/")).into_iter().filter(|(key, object)| is_shown(key, &object.body));
    let one = |body: &Value| {
        let kept = ["id", "name", "type", "location", "tags"].into_iter();
        Value::Object(kept.filter_map(|name| Some((name.to_owned(), body.get(name)?.clone()))).collect())
    };
    let items = rows.filter(|(_, object)| passes(call, &object.body)).map(|(_, object)| one(&object.body)).collect();
    Ok(page(cloud, call, items))
}

fn provider_body(cloud: &Cloud, name: &str) -> Value {
    let key = name.to_lowercase();
    let state = match cloud.namespaces.get(&key) {
        None => "NotRegistered",
        Some(from) if *from > cloud.now() => "Registering",
        Some(_) => "Registered",
    };
    json!({ "id": format!("/subscriptions/{}/providers/{name}", cloud.subscription), "namespace": name,
        "registrationState": state, "registrationPolicy": "RegistrationRequired", "resourceTypes": [] })
}

fn provider_name(call: &Call) -> Result<&'static str, Problem> {
    let known = NAMESPACES.iter().find(|row| row.0.eq_ignore_ascii_case(call.name()));
    let message = format!("The resource namespace '{}' is invalid.", call.name());
    known.map(|row| row.0).ok_or_else(|| Problem::new(404, "InvalidResourceNamespace", message))
}

fn provider(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    Ok(Answer::ok(provider_body(cloud, provider_name(call)?)))
}

fn providers(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let rows = NAMESPACES.iter().map(|(name, _)| provider_body(cloud, name)).collect();
    Ok(page(cloud, call, rows))
}

fn register(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let name = provider_name(call)?;
    let from = cloud.lagged(&cloud.conduct.registration);
    cloud.namespaces.entry(name.to_lowercase()).or_insert(from);
    Ok(Answer::ok(provider_body(cloud, name)))
}

fn locks(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let scope = parent(&call.key[..call.key.rfind('/').unwrap_or(0)]);
    let one = |(at, (level, until)): (&String, &(String, Option<jiff::Timestamp>))| {
        let is_below = format!("{at}/").starts_with(&format!("{scope}/"));
        (is_below && until.is_none()).then(|| {
            json!({ "id": format!("{at}/providers/Microsoft.Authorization/locks/lock"), "name": "lock",
                "type": "Microsoft.Authorization/locks", "properties": { "level": level } })
        })
    };
    Ok(Answer::ok(json!({ "value": cloud.locks.iter().filter_map(one).collect::<Vec<_>>() })))
}

fn permissions(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let actions = match (call.user == cloud.operator, &cloud.allowed) {
        (true, Some(allowed)) => json!(allowed),
        (true, None) => json!(["*"]),
        (false, _) => json!(["*/read"]),
    };
    let denied: Vec<&String> = cloud.denied.iter().collect();
    Ok(Answer::ok(
        json!({ "value": [{ "actions": actions, "notActions": denied, "dataActions": [], "notDataActions": [] }] }),
    ))
}
