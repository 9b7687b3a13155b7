//! The lifecycle that all types of resources share. What differs is a row ([`Kind`]) for each type.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::azure_cloud::ARM;
use super::cloud::{Cloud, Object, Operation, put, put_missing, text};
use super::document::Model;
use super::problem::{Problem, bad, conflict, group_missing, missing};
use super::{
    NAMESPACES, budgets, compute, container, costs, dns, identity, machine_learning, monitoring, network, policies,
    postgres, redis, resources, storage, traffic, vault,
};
use crate::clock::later;

/// Parameters that queries may have.
pub(crate) const PARAMETERS: &[&str] = &[
    "api-version",
    "$filter",
    "$top",
    "$expand",
    "$skipToken",
    "$skiptoken",
    "format",
    "server-fqdn",
    "t",
    "c",
    "s",
    "h",
    "monitor",
    "forceDeletionTypes",
    "forceToPurge",
    "canFetchContent",
    "category",
];
/// Namespaces that every subscription has without registration.
const BUILT_IN: &[&str] = &["microsoft.resources", "microsoft.authorization", "microsoft.features"];
/// Parts of paths that name results of operations rather than their states.
const RESULTS: &[&str] = &["operationresults", "privatednsoperationresults", "asyncoperations", "mfeoperationresults"];
const STATES: &[&str] = &[
    "operations",
    "operationsstatus",
    "operationstatuses",
    "azureasyncoperation",
    "privatednsoperationstatuses",
    "mfeoperationsstatus",
    "workspaceoperationsstatus",
];
/// Types that actions call otherwise:
/// <https://learn.microsoft.com/azure/role-based-access-control/resource-provider-operations>.
const ACTIONS: &[(&str, &str)] = &[
    (
        "Microsoft.ContainerRegistry/locations/operationStatuses",
        "Microsoft.ContainerRegistry/registries/operationStatuses",
    ),
    ("Microsoft.Resources/locations", "Microsoft.Resources/subscriptions/locations"),
    ("Microsoft.Resources/operationresults", "Microsoft.Resources/subscriptions/operationresults"),
    ("Microsoft.Resources/providers", "Microsoft.Resources/subscriptions/providers"),
    ("Microsoft.Resources/resourceGroups", "Microsoft.Resources/subscriptions/resourceGroups"),
    ("Microsoft.Resources/resources", "Microsoft.Resources/subscriptions/resources"),
    ("Microsoft.Storage/locations/asyncoperations", "Microsoft.Storage/operations"),
];
/// Namespaces whose check of a name is a read.
const READ_CHECKS: &[&str] = &["Microsoft.ContainerRegistry", "Microsoft.KeyVault", "Microsoft.Storage"];
/// Namespaces whose only action is a read.
const READ_POSTS: &[&str] = &["Microsoft.CostManagement", "Microsoft.PolicyInsights"];
/// What a write needs where its body names something: the type, the place in the body, and the action on what is named.
const LINKED: &[(&str, &str, &str)] = &[
    (
        "Microsoft.ContainerService/managedClusters",
        "/identity/userAssignedIdentities",
        "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action",
    ),
    (
        "Microsoft.ContainerService/managedClusters",
        "/properties/agentPoolProfiles/0/vnetSubnetID",
        "Microsoft.Network/virtualNetworks/subnets/join/action",
    ),
    (
        "Microsoft.ContainerService/managedClusters/agentPools",
        "/properties/vnetSubnetID",
        "Microsoft.Network/virtualNetworks/subnets/join/action",
    ),
    (
        "Microsoft.DBforPostgreSQL/flexibleServers",
        "/properties/network/delegatedSubnetResourceId",
        "Microsoft.Network/virtualNetworks/subnets/join/action",
    ),
    (
        "Microsoft.DBforPostgreSQL/flexibleServers",
        "/properties/network/privateDnsZoneArmResourceId",
        "Microsoft.Network/privateDnsZones/join/action",
    ),
    (
        "Microsoft.MachineLearningServices/workspaces/onlineEndpoints",
        "/identity/userAssignedIdentities",
        "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action",
    ),
    (
        "Microsoft.Network/natGateways",
        "/properties/publicIpAddresses/0/id",
        "Microsoft.Network/publicIPAddresses/join/action",
    ),
    (
        "Microsoft.Network/privateDnsZones/virtualNetworkLinks",
        "/properties/virtualNetwork/id",
        "Microsoft.Network/virtualNetworks/join/action",
    ),
    (
        "Microsoft.Network/privateEndpoints",
        "/properties/subnet/id",
        "Microsoft.Network/virtualNetworks/subnets/join/action",
    ),
    (
        "Microsoft.Network/privateEndpoints",
        "/properties/privateLinkServiceConnections/0/properties/privateLinkServiceId",
        "Microsoft.Cache/redisEnterprise/PrivateEndpointConnectionsApproval/action",
    ),
    (
        "Microsoft.Network/privateEndpoints/privateDnsZoneGroups",
        "/properties/privateDnsZoneConfigs/0/properties/privateDnsZoneId",
        "Microsoft.Network/privateDnsZones/join/action",
    ),
    (
        "Microsoft.Network/virtualNetworks/virtualNetworkPeerings",
        "/properties/remoteVirtualNetwork/id",
        "Microsoft.Network/virtualNetworks/peer/action",
    ),
    (
        "Microsoft.Network/virtualNetworks/subnets",
        "/properties/natGateway/id",
        "Microsoft.Network/natGateways/join/action",
    ),
];

/// An answer: its headers are added to the usual ones.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
    pub(crate) headers: Vec<(&'static str, String)>,
}

impl Answer {
    pub(crate) fn ok(body: Value) -> Self {
        Self::with(200, body)
    }

    pub(crate) fn with(status: u16, body: Value) -> Self {
        Self { status, body, headers: Vec::new() }
    }
}

pub(crate) type Handler = fn(&mut Cloud, &Call) -> Result<Answer, Problem>;

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: String,
    /// The path: the id of what it is about, and an action's name at its end.
    pub(crate) path: String,
    /// The id of what it is about.
    pub(crate) id: String,
    /// The lower-case id.
    pub(crate) key: String,
    pub(crate) subscription: String,
    pub(crate) group: String,
    pub(crate) namespace: String,
    /// The type, such as `Microsoft.Network/virtualNetworks/subnets`.
    pub(crate) kind: String,
    /// The names, one for each part of the type.
    pub(crate) names: Vec<String>,
    pub(crate) is_collection: bool,
    /// The action of POST.
    pub(crate) post: Option<String>,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) body: Value,
    /// The caller's object id.
    pub(crate) user: String,
    pub(crate) if_match: Option<String>,
    pub(crate) if_none_match: Option<String>,
}

impl Call {
    pub(crate) fn parse(method: &str, path: &str, query: &[(String, String)], user: String) -> Option<Self> {
        let path = format!("/{}", path.trim_matches('/'));
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let is = |index: usize, name: &str| parts.get(index).is_some_and(|part| part.eq_ignore_ascii_case(name));
        let part = |index: usize| parts.get(index).copied().unwrap_or_default().to_owned();
        let provider = parts.iter().rposition(|part| part.eq_ignore_ascii_case("providers"));
        let rest: Vec<&str> = match provider {
            Some(at)
                if parts.len() > at + 2 && !(parts.len() == at + 3 && method == "POST" && is(at + 2, "register")) =>
            {
                parts[at + 1..].to_vec()
            }
            // What Azure Resource Manager answers itself.
            Some(at) => [&["Microsoft.Resources", "providers"], &parts[at + 1..]].concat(),
            None if is(0, "subscriptions") && parts.len() <= 2 => [&["Microsoft.Resources"], &parts[..]].concat(),
            None if is(2, "resourceGroups") && parts.len() > 4 => [&["Microsoft.Resources"], &parts[4..]].concat(),
            None if is(0, "subscriptions") => [&["Microsoft.Resources"], &parts[2..]].concat(),
            None => return None,
        };
        let (namespace, mut rest) = rest.split_first().map(|(first, rest)| (*first, rest))?;
        let namespace =
            NAMESPACES.iter().find(|row| row.0.eq_ignore_ascii_case(namespace)).map_or(namespace, |row| row.0);
        let mut post = None;
        if let (true, "POST", Some((last, others))) = (rest.len() % 2 == 1, method, rest.split_last()) {
            (post, rest) = (Some((*last).to_owned()), others);
        }
        let types: Vec<&str> = rest.iter().step_by(2).copied().collect();
        let names: Vec<String> = rest.iter().skip(1).step_by(2).map(|name| (*name).to_owned()).collect();
        let kind = std::iter::once(namespace).chain(types).collect::<Vec<_>>().join("/");
        let end = post.as_ref().map_or(path.len(), |post| path.len() - post.len() - 1);
        Some(Self {
            method: method.to_owned(),
            id: path[..end].to_owned(),
            key: path[..end].to_lowercase(),
            subscription: if is(0, "subscriptions") { part(1) } else { String::new() },
            group: if is(2, "resourceGroups") { part(3) } else { String::new() },
            namespace: namespace.to_owned(),
            kind: row(&kind).map_or(kind, |row| row.kind.to_owned()),
            is_collection: rest.len() % 2 == 1,
            names,
            post,
            query: query.to_vec(),
            body: Value::Null,
            user,
            if_match: None,
            if_none_match: None,
            path,
        })
    }

    pub(crate) fn is_read(&self) -> bool {
        ["GET", "HEAD"].contains(&self.method.as_str())
    }

    /// The action that a role has to allow:
    /// <https://learn.microsoft.com/azure/role-based-access-control/role-definitions>.
    pub(crate) fn action(&self) -> String {
        let named = ACTIONS.iter().find(|(kind, _)| *kind == self.kind).map(|(_, named)| *named);
        let kind = match named {
            Some("Microsoft.Resources/subscriptions/resources") if !self.group.is_empty() => {
                "Microsoft.Resources/subscriptions/resourceGroups/resources"
            }
            named => named.unwrap_or(&self.kind),
        };
        match (self.method.as_str(), &self.post) {
            // Registration is an action of the namespace itself.
            (_, Some(post)) if self.kind == "Microsoft.Resources/providers" => format!("{}/{post}/action", self.name()),
            (_, Some(post)) if post == "checkNameAvailability" && READ_CHECKS.contains(&kind) => {
                format!("{kind}/{post}/read")
            }
            // <https://learn.microsoft.com/azure/role-based-access-control/permissions/management-and-governance>
            (_, Some(post)) if READ_POSTS.contains(&kind) => format!("{kind}/{post}/read"),
            (_, Some(post)) => format!("{kind}/{post}/action"),
            ("PUT" | "PATCH", None) => format!("{kind}/write"),
            ("DELETE", None) => format!("{kind}/delete"),
            _ => format!("{kind}/read"),
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.names.last().map_or("", String::as_str)
    }

    /// The id without the last type and name.
    pub(crate) fn parent(&self) -> String {
        parent(&self.key)
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The scope at which rights are looked up.
    pub(crate) fn scope(&self) -> String {
        self.key.clone()
    }

    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(one, _)| one == name).map(|(_, value)| value.as_str())
    }
}

/// The actions on what the body of a write names, each with the place that names it.
pub(crate) fn linked(call: &Call) -> impl Iterator<Item = (&'static str, String)> {
    let is_write = call.post.is_none() && ["PUT", "PATCH"].contains(&call.method.as_str());
    let rows = LINKED.iter().filter(move |(kind, ..)| is_write && *kind == call.kind);
    rows.filter_map(move |(_, place, action)| {
        let named = call.body.pointer(place).filter(|named| !named.is_null())?;
        Some((*action, named.as_str().map_or_else(|| named.to_string(), str::to_owned)))
    })
}

/// The key without its last type and name.
pub(crate) fn parent(key: &str) -> String {
    let mut parts: Vec<&str> = key.split('/').collect();
    parts.truncate(parts.len().saturating_sub(2));
    parts.join("/")
}

/// The key of the resource group that holds something.
pub(crate) fn group_of(key: &str) -> String {
    key.to_lowercase().split('/').take(5).collect::<Vec<_>>().join("/")
}

/// The type of an id.
pub(crate) fn kind_of(id: &str) -> String {
    Call::parse("GET", id, &[], String::new()).map_or_else(String::new, |call| call.kind)
}

/// How the end of a change is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// It is done with the answer.
    Sync,
    /// `Azure-AsyncOperation`.
    Async,
    /// `Azure-AsyncOperation` and `Location`.
    Both,
    /// `Location`.
    Location,
    /// The resource's own `provisioningState`.
    State,
}

/// A type of resource.
pub(crate) struct Kind {
    /// The type.
    pub(crate) kind: &'static str,
    pub(crate) version: &'static str,
    /// The models of a creation, an update by PATCH, an answer and a list.
    pub(crate) models: [Model; 4],
    /// How the ends of creations, updates and deletions are announced.
    pub(crate) styles: [Style; 3],
    /// How many seconds they take.
    pub(crate) seconds: [u64; 3],
    /// The status of an answer to a creation that is not done.
    pub(crate) accepted: u16,
    /// The states of one that is being created, changed and deleted.
    pub(crate) words: [&'static str; 3],
    /// Whether it has a `provisioningState`.
    pub(crate) has_state: bool,
    pub(crate) is_name: fn(&str) -> bool,
    /// How many tags it may have; none if it has no location and no tags.
    pub(crate) tags: usize,
    pub(crate) has_etag: bool,
    /// Pointers to ids of other resources; `*` is any item.
    pub(crate) references: &'static [&'static str],
    /// The status, code and text of a deletion's refusal while something refers to it.
    pub(crate) in_use: Option<(u16, &'static str)>,
    /// Members that stay as they were if a PUT leaves them out.
    pub(crate) kept: &'static [&'static str],
    /// Members that the service sets unasked, as pointers and JSON.
    pub(crate) defaults: &'static [(&'static str, &'static str)],
    /// Members that cannot change.
    pub(crate) fixed: &'static [&'static str],
    /// Whether a failed creation takes the resource away.
    pub(crate) is_rolled_back: bool,
    /// Whose writers wait for each other, from the key.
    pub(crate) holds: fn(&str) -> String,
    /// Refuses a write or fills members: it is given the resource before and after.
    pub(crate) accept: fn(&mut Cloud, &Call, Option<&Value>, &mut Value) -> Result<(), Problem>,
    /// The end of a creation or change; it is given whether it is a creation.
    pub(crate) finish: fn(&mut Cloud, &str, bool) -> Result<(), Value>,
    pub(crate) refuse_delete: fn(&Cloud, &str) -> Result<(), Problem>,
    /// The end of a deletion, before the resource goes.
    pub(crate) end: fn(&mut Cloud, &str) -> Result<(), Value>,
    /// Fills what is computed for each read.
    pub(crate) show: fn(&Cloud, &str, &mut Value),
}

/// A row with nothing special.
pub(crate) const KIND: Kind = Kind {
    kind: "",
    version: "",
    models: ["", "", "", ""],
    styles: [Style::Sync, Style::Sync, Style::Sync],
    seconds: [10, 10, 10],
    accepted: 201,
    words: ["Creating", "Updating", "Deleting"],
    has_state: true,
    is_name: |name| is_name(name, 1..=80, "-_."),
    tags: 50,
    has_etag: false,
    references: &[],
    in_use: None,
    kept: &[],
    defaults: &[],
    fixed: &[],
    is_rolled_back: false,
    holds: str::to_owned,
    accept: |_, _, _, _| Ok(()),
    finish: |_, _, _| Ok(()),
    refuse_delete: |_, _| Ok(()),
    end: |_, _| Ok(()),
    show: |_, _, _| {},
};

/// A method that is not one of a resource's lifecycle.
pub(crate) struct Special {
    pub(crate) method: &'static str,
    /// The type, or the type and the action of POST.
    pub(crate) path: &'static str,
    pub(crate) version: &'static str,
    pub(crate) request: Model,
    pub(crate) answer: Model,
    pub(crate) handler: Handler,
}

/// What answers a request.
pub(crate) struct Route {
    pub(crate) version: &'static str,
    pub(crate) request: Model,
    pub(crate) answer: Model,
    pub(crate) handler: Handler,
}

/// The rows of all types.
pub(crate) fn all() -> impl Iterator<Item = &'static Kind> {
    [
        resources::KINDS,
        network::KINDS,
        dns::KINDS,
        traffic::KINDS,
        monitoring::KINDS,
        budgets::KINDS,
        identity::KINDS,
        container::KINDS,
        storage::KINDS,
        postgres::KINDS,
        redis::KINDS,
        vault::KINDS,
        machine_learning::KINDS,
    ]
    .into_iter()
    .flatten()
}

pub(crate) fn specials() -> impl Iterator<Item = &'static Special> {
    let tables = [
        resources::SPECIALS,
        network::SPECIALS,
        identity::SPECIALS,
        container::SPECIALS,
        storage::SPECIALS,
        postgres::SPECIALS,
        redis::SPECIALS,
        vault::SPECIALS,
        compute::SPECIALS,
        costs::SPECIALS,
        policies::SPECIALS,
        monitoring::SPECIALS,
        machine_learning::SPECIALS,
    ];
    tables.into_iter().flatten()
}

/// The models of all rows.
pub(crate) fn models() -> Vec<Model> {
    let of_kinds = all().flat_map(|kind| kind.models);
    of_kinds.chain(specials().flat_map(|one| [one.request, one.answer])).filter(|model| !model.is_empty()).collect()
}

/// The row of a type.
pub(crate) fn row(kind: &str) -> Option<&'static Kind> {
    all().find(|one| one.kind.eq_ignore_ascii_case(kind))
}

pub(crate) fn route(call: &Call) -> Option<Route> {
    let path = match (&call.post, call.is_collection) {
        (Some(post), _) => format!("{}/{post}", call.kind),
        (None, true) => format!("{}[]", call.kind),
        (None, false) => call.kind.clone(),
    };
    let is_one = |one: &&Special| one.method == call.method && one.path.eq_ignore_ascii_case(&path);
    if let Some(special) = specials().find(is_one) {
        let Special { version, request, answer, handler, .. } = *special;
        return Some(Route { version, request, answer, handler });
    }
    let kind = row(&call.kind).filter(|_| call.post.is_none())?;
    let [create, patch, answer, list_answer] = kind.models;
    let (request, answer, handler): (Model, Model, Handler) = match (call.method.as_str(), call.is_collection) {
        ("PUT", false) => (create, answer, write),
        ("PATCH", false) if !patch.is_empty() => (patch, answer, update),
        ("GET", false) => ("", answer, read),
        ("HEAD", false) => ("", "", head),
        ("DELETE", false) => ("", "", delete),
        ("GET", true) => ("", list_answer, list),
        _ => return None,
    };
    Some(Route { version: kind.version, request, answer, handler })
}

pub(crate) fn check_version(call: &Call, route: &Route) -> Result<(), Problem> {
    let Some(version) = call.parameter("api-version") else {
        let message = "The api-version query parameter (?api-version=) is required for all requests.";
        return Err(bad("MissingApiVersionParameter", message));
    };
    let date = version.get(..10).unwrap_or_default();
    if date.parse::<jiff::civil::Date>().is_err() {
        return Err(bad("InvalidApiVersionParameter", format!("The api-version '{version}' is invalid.")));
    }
    if !route.version.split(' ').any(|known| known == version) {
        let message = format!(
            "No registered resource provider found for API version '{version}' for type '{}'. The supported \
             api-versions are '{}'.",
            call.kind.split_once('/').map_or("", |(_, kind)| kind),
            route.version
        );
        return Err(bad("NoRegisteredProviderFound", message));
    }
    Ok(())
}

/// Refuses what Azure Resource Manager does not pass on.
pub(crate) fn admit(cloud: &mut Cloud, call: &Call) -> Result<(), Problem> {
    let is_built_in = BUILT_IN.contains(&call.namespace.to_lowercase().as_str());
    if !call.is_read() && !is_built_in && !cloud.is_registered(&call.namespace) {
        let message = format!(
            "The subscription is not registered to use namespace '{}'. See https://aka.ms/rps-not-found for how to \
             register subscriptions.",
            call.namespace
        );
        return Err(conflict("MissingSubscriptionRegistration", message).target(&call.namespace));
    }
    let group = group_of(&call.key);
    let is_group = call.kind == "Microsoft.Resources/resourceGroups";
    if !call.group.is_empty() && !is_group && find(cloud, &group).is_none() {
        return Err(group_missing(&call.group));
    }
    let is_write = ["PUT", "PATCH", "POST"].contains(&call.method.as_str());
    let state = cloud.objects.get(&group).map(|one| text(&one.body, "/properties/provisioningState"));
    let is_refused = state == Some("Deleting") && !resources::is_recreation(cloud, call);
    if is_write && !call.group.is_empty() && is_refused {
        let message = format!(
            "The resource group '{}' is in deprovisioning state and cannot perform this operation.",
            call.group
        );
        return Err(conflict("ResourceGroupBeingDeleted", message));
    }
    let now = cloud.now();
    let own = format!("{}/", call.key);
    let counts = |scope: &str, level: &str| {
        let scope = format!("{scope}/");
        // A lock of a resource also keeps the group that holds it.
        let is_around = own.starts_with(&scope) || call.method == "DELETE" && scope.starts_with(&own);
        is_around && (call.method == "DELETE" || level == "ReadOnly" && is_write)
    };
    let mut locks = cloud.locks.iter().filter(|(_, (_, until))| until.is_none_or(|until| until > now));
    if let Some((scope, _)) = locks.find(|(scope, (level, _))| counts(scope, level)) {
        let message = format!(
            "The scope '{}' cannot perform {} operation because following scope(s) are locked: '{scope}'. Please \
             remove the lock and try again.",
            call.path,
            if call.method == "DELETE" { "delete" } else { "write" }
        );
        return Err(conflict("ScopeLocked", message));
    }
    Ok(())
}

/// A resource as a read finds it: a new one may be missed.
pub(crate) fn find<'c>(cloud: &'c Cloud, key: &str) -> Option<&'c Object> {
    let object = cloud.objects.get(key)?;
    // Reads go to one of several replicas.
    (object.lag.0 <= cloud.now() || cloud.random.number().is_multiple_of(2)).then_some(object)
}

pub(crate) fn shown(cloud: &Cloud, key: &str, object: &Object) -> Value {
    let mut body = object.body.clone();
    if let Some(kind) = row(&kind_of(key)) {
        (kind.show)(cloud, key, &mut body);
    }
    body
}

fn kind_row(call: &Call) -> Result<&'static Kind, Problem> {
    row(&call.kind).ok_or_else(|| bad("InvalidResourceType", format!("{} is not simulated.", call.kind)))
}

/// A resource that is not there, or whose parent is not.
fn not_there(cloud: &Cloud, call: &Call) -> Problem {
    if call.kind == "Microsoft.Resources/resourceGroups" {
        return group_missing(call.name());
    }
    if call.names.len() > 1 && !cloud.objects.contains_key(&call.parent()) {
        let parent = call.names.get(call.names.len() - 2).map_or("", String::as_str);
        let message =
            format!("Can not perform requested operation on nested resource. Parent resource '{parent}' not found.");
        return Problem::new(404, "ParentResourceNotFound", message);
    }
    missing(call.id())
}

pub(crate) fn read(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let object = find(cloud, &call.key).ok_or_else(|| not_there(cloud, call))?;
    Ok(Answer::ok(shown(cloud, &call.key, object)))
}

fn head(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let status = if find(cloud, &call.key).is_some() { 204 } else { 404 };
    Ok(Answer::with(status, Value::Null))
}

/// Resources below a scope, without those that lists do not have yet.
pub(crate) fn listed<'c>(cloud: &'c Cloud, prefix: &str) -> Vec<(&'c String, &'c Object)> {
    let (prefix, now) = (prefix.to_lowercase(), cloud.now());
    let is_shown = |(key, one): &(&String, &Object)| key.starts_with(&prefix) && one.lag.1 <= now;
    cloud.objects.iter().filter(is_shown).collect()
}

fn list(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    if !call.names.is_empty() && !cloud.objects.contains_key(&call.key[..call.key.rfind('/').unwrap_or(0)]) {
        return Err(not_there(cloud, call));
    }
    // A list of a subscription has what is in its groups.
    let scope = match call.key.rfind("/providers/") {
        Some(at) if call.names.is_empty() => call.key[..at].to_owned(),
        _ => call.key.clone(),
    };
    let is_one = |key: &str| kind_of(key).eq_ignore_ascii_case(&call.kind);
    let rows = listed(cloud, &format!("{scope}/"));
    let rows = rows.into_iter().filter(|(key, _)| is_one(key)).map(|(key, one)| shown(cloud, key, one));
    Ok(page(cloud, call, rows.filter(|body| passes(call, body)).collect()))
}

/// A page of items; the next one is an address.
pub(crate) fn page(cloud: &Cloud, call: &Call, items: Vec<Value>) -> Answer {
    let start: usize = call.parameter("$skipToken").and_then(|token| token.parse().ok()).unwrap_or(0);
    let top = call.parameter("$top").and_then(|top| top.parse().ok()).unwrap_or(cloud.timing.page);
    let size = top.clamp(1, cloud.timing.page);
    let mut body = json!({});
    if items.len() > start.saturating_add(size) {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        let kept = call.query.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("$skipToken"));
        query.extend_pairs(kept).append_pair("$skipToken", &(start + size).to_string());
        body["nextLink"] = format!("{ARM}{}?{}", call.path, query.finish()).into();
    }
    body["value"] = items.into_iter().skip(start).take(size).collect();
    Answer::ok(body)
}

/// The filters of lists: `tagName eq 'a' and tagValue eq 'b'`, `resourceType eq 'a'`, `roleName eq 'a'`.
pub(crate) fn passes(call: &Call, body: &Value) -> bool {
    let Some(filter) = call.parameter("$filter") else { return true };
    let terms: Vec<(&str, &str)> = filter
        .split(" and ")
        .filter_map(|term| term.split_once(" eq "))
        .map(|(name, value)| (name.trim(), value.trim().trim_matches('\'')))
        .collect();
    let wanted = |name: &str| terms.iter().find(|(one, _)| one.eq_ignore_ascii_case(name)).map(|(_, value)| *value);
    terms.iter().all(|(name, value)| match name.to_lowercase().as_str() {
        "tagname" => {
            let tags = body["tags"].as_object();
            let tag = tags.and_then(|tags| tags.iter().find(|(name, _)| name.eq_ignore_ascii_case(value)));
            tag.is_some_and(|(_, one)| wanted("tagValue").is_none_or(|wanted| one == wanted))
        }
        "tagvalue" => true,
        "resourcetype" => text(body, "/type").eq_ignore_ascii_case(value),
        "rolename" => text(body, "/properties/roleName") == *value,
        "principalid" => text(body, "/properties/principalId").eq_ignore_ascii_case(value),
        "location" => text(body, "/location").eq_ignore_ascii_case(value),
        _ => true,
    })
}

/// The ids that a resource's members name.
pub(crate) fn referred(kind: &Kind, body: &Value) -> Vec<String> {
    fn collect(body: &Value, parts: &[&str], found: &mut Vec<String>) {
        match parts.split_first() {
            None => found.extend(body.as_str().filter(|id| id.starts_with('/')).map(str::to_owned)),
            Some((&"*", rest)) => body.as_array().into_iter().flatten().for_each(|item| collect(item, rest, found)),
            Some((name, rest)) => {
                if let Some(member) = body.get(*name) {
                    collect(member, rest, found);
                }
            }
        }
    }
    let mut found = Vec::new();
    for pointer in kind.references {
        collect(body, &pointer.split('/').skip(1).collect::<Vec<_>>(), &mut found);
    }
    found
}

/// The ids of resources that refer to one, without what lies below it.
pub(crate) fn users(cloud: &Cloud, key: &str) -> Vec<String> {
    let below = format!("{key}/");
    let refers = |(one, object): &(&String, &Object)| {
        let kind = row(&kind_of(one)).filter(|kind| !kind.references.is_empty());
        let is_other = *one != key && !one.starts_with(&below) && object.ghost_until.is_none();
        is_other && kind.is_some_and(|kind| referred(kind, &object.body).iter().any(|id| id.eq_ignore_ascii_case(key)))
    };
    cloud.objects.iter().filter(refers).map(|(_, object)| object.id.clone()).collect()
}

/// Whether a text has a length and consists of letters, digits and these.
pub(crate) fn is_name(name: &str, length: std::ops::RangeInclusive<usize>, more: &str) -> bool {
    length.contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

fn check_tags(kind: &Kind, body: &Value) -> Result<(), Problem> {
    let tags = body["tags"].as_object();
    let count = tags.map_or(0, Map::len);
    if count > kind.tags {
        let message = format!("The resource has {count} tags, more than the {} that its type allows.", kind.tags);
        return Err(bad("BadRequest", message));
    }
    // <https://learn.microsoft.com/azure/azure-resource-manager/management/tag-resources#limitations>
    let is_right = |(name, value): (&String, &Value)| {
        let is_name = name.len() <= 512 && !name.contains(['<', '>', '%', '&', '\\', '?', '/']);
        // DNS zones allow no more: hashicorp/terraform-provider-azurerm#21749.
        let is_dns = kind.tags > 15
            || !name.contains([' ', '(', ')', '[', ']']) && !name.starts_with(|c: char| c.is_ascii_digit());
        is_name && is_dns && value.as_str().is_some_and(|value| value.len() <= 256)
    };
    match tags.into_iter().flatten().all(is_right) {
        true => Ok(()),
        false => {
            Err(bad("InvalidTagNameCharacters", "The tag names have reserved characters, or a value is too long."))
        }
    }
}

/// Why another write is refused while an operation runs.
pub(crate) fn busy(cloud: &Cloud, call: &Call, running: &Operation) -> Problem {
    match call.namespace.as_str() {
        "Microsoft.Network" => {
            let message = format!(
                "Another operation on this or dependent resource is in progress. To retrieve status of the operation \
                 use uri: {}.",
                running.address
            );
            conflict("AnotherOperationInProgress", message)
        }
        "Microsoft.ContainerService" => conflict(
            "OperationNotAllowed",
            "Operation is not allowed: Another operation is in progress, please wait for it to finish before starting \
             a new operation. See https://aka.ms/aks-pending-operation for more details",
        ),
        "Microsoft.DBforPostgreSQL" => {
            let state = cloud.objects.get(&running.holds).map_or("", |one| text(&one.body, "/properties/state"));
            match state {
                "Ready" => {
                    conflict("ServerBusy", "Server is busy processing another operation. Please try again later.")
                }
                _ => conflict("ServerIsNotReady", "The server is not ready for this operation."),
            }
        }
        _ => conflict("Conflict", "Another operation on the resource is in progress."),
    }
}

/// Answers PUT.
pub(crate) fn write(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let kind = kind_row(call)?;
    let known = cloud.objects.get(&call.key).filter(|one| one.ghost_until.is_none());
    let before = known.map(|one| one.body.clone());
    if !(kind.is_name)(call.name()) {
        let message = format!("Resource name {} is invalid for type {}.", call.name(), kind.kind);
        return Err(bad("InvalidResourceName", message));
    }
    // <https://learn.microsoft.com/azure/azure-resource-manager/management/async-operations>, RFC 9110.
    let etag = before.as_ref().map(|body| [text(body, "/etag"), text(body, "/properties/eTag")].concat());
    let is_stale = call.if_match.as_ref().is_some_and(|sent| sent != "*" && etag.as_ref() != Some(sent));
    if is_stale || call.if_none_match.as_deref() == Some("*") && before.is_some() {
        return Err(Problem::new(412, "PreconditionFailed", "Precondition specified in the request was not met."));
    }
    if call.names.len() > 1 && find(cloud, &call.parent()).is_none() {
        return Err(not_there(cloud, call));
    }
    check_tags(kind, &call.body)?;
    if let Some(before) = before.as_ref() {
        let at = |body: &Value| text(body, "/location").replace(' ', "").to_lowercase();
        if !at(&call.body).is_empty() && at(before) != at(&call.body) {
            let message = format!(
                "The resource '{}' already exists in location '{}' in resource group '{}'. A resource with the same \
                 name cannot be created in location '{}'. Please select a new resource name.",
                call.name(),
                at(before),
                call.group,
                at(&call.body)
            );
            return Err(conflict("InvalidResourceLocation", message));
        }
    }
    let mut body = if call.body.is_null() { json!({}) } else { call.body.clone() };
    for pointer in kind.kept {
        if let Some(value) = before.as_ref().and_then(|before| before.pointer(pointer)) {
            put_missing(&mut body, pointer, value.clone());
        }
    }
    let style = kind.styles[usize::from(before.is_some())];
    store(cloud, call, kind, style, before, body)
}

/// Answers PATCH.
pub(crate) fn update(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let kind = kind_row(call)?;
    check_tags(kind, &call.body)?;
    let before = cloud.objects.get(&call.key).map(|one| one.body.clone());
    let before = before.ok_or_else(|| not_there(cloud, call))?;
    let mut body = before.clone();
    for (name, value) in call.body.as_object().into_iter().flatten() {
        match name.as_str() {
            "properties" => merge(&mut body["properties"], value),
            // Tags are replaced as a whole:
            // <https://learn.microsoft.com/azure/azure-resource-manager/management/tag-resources>
            name => body[name] = value.clone(),
        }
    }
    // Tags of a network's resources are changed at once.
    let style = if kind.models[1] == "network.models TagsObject" { Style::Sync } else { kind.styles[1] };
    store(cloud, call, kind, style, Some(before), body)
}

fn merge(body: &mut Value, patch: &Value) {
    match patch.as_object() {
        Some(members) if body.is_object() => {
            members.iter().for_each(|(name, value)| merge(&mut body[name.as_str()], value))
        }
        _ => *body = patch.clone(),
    }
}

/// Stores a new or changed resource.
fn store(
    cloud: &mut Cloud,
    call: &Call,
    kind: &'static Kind,
    style: Style,
    before: Option<Value>,
    mut body: Value,
) -> Result<Answer, Problem> {
    if let Some(problem) = policies::disallowed(cloud, call.id(), &body) {
        return Err(problem);
    }
    for id in referred(kind, &body) {
        let key = id.to_lowercase();
        let Some(object) = cloud.objects.get(&key) else {
            let message = format!("Resource {id} referenced by resource {} was not found.", call.id());
            return Err(match call.namespace.as_str() {
                "Microsoft.Network" => bad("InvalidResourceReference", message),
                _ => missing(&id),
            });
        };
        let state = text(&object.body, "/properties/provisioningState");
        if call.namespace == "Microsoft.Network" && !["Succeeded", ""].contains(&state) {
            let message = format!(
                "Cannot proceed with operation because resource {id} used by resource {} is not in Succeeded state. \
                 Resource is in {state} state.",
                call.id()
            );
            let problem = Problem::new(429, "RetryableError", "A retryable error occurred.").after(10);
            return Err(problem.detail("ReferencedResourceNotProvisioned", message));
        }
    }
    let holds = (kind.holds)(&call.key);
    if let Some(running) = cloud.running(&holds).cloned().filter(|_| !resources::is_recreation(cloud, call)) {
        let is_preempted = cloud.conduct.preempts && running.target == call.key && call.kind.ends_with("/agentPools");
        if !is_preempted {
            return Err(busy(cloud, call, &running));
        }
        let error = json!({ "code": "OperationPreempted",
            "message": "The operation has been overridden and canceled by a later operation." });
        let now = cloud.now();
        if let Some(operation) = cloud.operations.get_mut(&running.id) {
            (operation.end, operation.error) = (Some(now), Some(error));
        }
    }
    for pointer in kind.fixed {
        let (old, new) = (before.as_ref().and_then(|body| body.pointer(pointer)), body.pointer(pointer));
        if before.is_some() && new.is_some() && old != new {
            let name = pointer.trim_start_matches("/properties/").replace('/', ".");
            let message =
                format!("Changing property '{}' is not allowed.", pointer.trim_start_matches('/').replace('/', "."));
            return Err(bad("PropertyChangeNotAllowed", message).target(&name));
        }
    }
    put(&mut body, "/id", call.id().into());
    put(&mut body, "/name", call.name().into());
    put(&mut body, "/type", kind.kind.into());
    if kind.has_etag {
        put(&mut body, "/etag", cloud.etag().into());
    }
    for (pointer, default) in kind.defaults {
        put_missing(&mut body, pointer, serde_json::from_str(default).unwrap_or_default());
    }
    (kind.accept)(cloud, call, before.as_ref(), &mut body)?;
    let is_new = before.is_none();
    let index = usize::from(!is_new);
    if kind.has_state {
        let state = if style == Style::Sync { "Succeeded" } else { kind.words[index] };
        put(&mut body, "/properties/provisioningState", state.into());
    }
    let now = cloud.now();
    let lag = match is_new {
        true => (cloud.lagged(&cloud.conduct.read_lag), cloud.lagged(&cloud.conduct.list_lag)),
        false => cloud.objects.get(&call.key).map_or((now, now), |one| one.lag),
    };
    let object = Object { id: call.id().to_owned(), body, lag, ghost_until: None };
    let answer = shown(cloud, &call.key, &object);
    cloud.objects.insert(call.key.clone(), object);
    if style == Style::Sync {
        let _ = (kind.finish)(cloud, &call.key, is_new);
        let body = cloud.objects.get(&call.key).map_or(Value::Null, |one| shown(cloud, &call.key, one));
        return Ok(Answer::with(if is_new { kind.accepted } else { 200 }, body));
    }
    let key = call.key.clone();
    let effect = move |cloud: &mut Cloud| match (kind.finish)(cloud, &key, is_new) {
        Ok(()) => {
            let gap = cloud.lagged(&cloud.conduct.state_gap);
            match gap > cloud.now() && kind.has_state {
                true => cloud.defer(gap, move |cloud| cloud.set_state(&key, "Succeeded")),
                false if kind.has_state => cloud.set_state(&key, "Succeeded"),
                false => {}
            }
            Ok(())
        }
        Err(error) => {
            match is_new && kind.is_rolled_back {
                true => drop(cloud.objects.remove(&key)),
                false => cloud.set_state(&key, "Failed"),
            }
            Err(error)
        }
    };
    let is_endless = match is_new {
        // An invalid name of a database server shows in an operation that never ends.
        true => kind.kind == "Microsoft.DBforPostgreSQL/flexibleServers" && !postgres::is_name(call.name()),
        false => kind.kind == "Microsoft.ContainerService/managedClusters" && cloud.conduct.updates_stay,
    };
    let takes = (!is_endless).then(|| Duration::from_secs(kind.seconds[index]));
    let headers = start(cloud, call, style, &holds, false, takes, Box::new(effect));
    let status = if is_new || kind.accepted == 202 { kind.accepted } else { 200 };
    Ok(Answer { status, body: if status == 202 { json!({}) } else { answer }, headers })
}

/// Starts an operation. Gives the headers that announce it.
pub(crate) fn start(
    cloud: &mut Cloud,
    call: &Call,
    style: Style,
    holds: &str,
    is_deletion: bool,
    takes: Option<Duration>,
    effect: super::cloud::Effect,
) -> Vec<(&'static str, String)> {
    let id = cloud.random.uuid();
    let location =
        cloud.objects.get(&call.key).map_or("", |one| text(&one.body, "/location")).replace(' ', "").to_lowercase();
    let location = if location.is_empty() || location == "global" { "westeurope".to_owned() } else { location };
    let (state, result) = addresses(cloud, call, &location, &id);
    let operation = Operation {
        id,
        target: call.key.clone(),
        holds: holds.to_owned(),
        is_deletion,
        is_internal: false,
        start: cloud.now(),
        end: None,
        error: None,
        address: result.clone(),
    };
    let due = takes.map(|takes| cloud.due(takes));
    cloud.begin(operation, due, effect);
    let after = ("Retry-After", retry_after(cloud).to_string());
    match style {
        Style::Async => vec![("Azure-AsyncOperation", state), after],
        Style::Both => vec![("Azure-AsyncOperation", state), ("Location", result), after],
        Style::Location => vec![("Location", result), after],
        Style::Sync | Style::State => Vec::new(),
    }
}

fn retry_after(cloud: &Cloud) -> u64 {
    if cloud.timing.zero_latency { 0 } else { 10 }
}

/// The addresses of an operation's state and of its result.
fn addresses(cloud: &Cloud, call: &Call, location: &str, id: &str) -> (String, String) {
    let base = format!("{ARM}/subscriptions/{}/providers/{}/locations/{location}", cloud.subscription, call.namespace);
    let version = call.parameter("api-version").unwrap_or_default();
    let of = |state: &str, result: &str| {
        (format!("{base}/{state}/{id}?api-version={version}"), format!("{base}/{result}/{id}?api-version={version}"))
    };
    match call.namespace.as_str() {
        "Microsoft.Resources" => {
            let address =
                format!("{ARM}/subscriptions/{}/operationresults/{id}?api-version={version}", cloud.subscription);
            (address.clone(), address)
        }
        "Microsoft.Network" if call.kind.contains("privateDnsZones") => {
            let base = format!(
                "{ARM}/subscriptions/{}/resourceGroups/{}/providers/Microsoft.Network",
                cloud.subscription, call.group
            );
            let of = |what: &str| format!("{base}/{what}/{id}?api-version={version}");
            (of("privateDnsOperationStatuses"), of("privateDnsOperationResults"))
        }
        // Its addresses have another version, and a signed query of several kilobytes.
        "Microsoft.ContainerService" => {
            let signature = cloud.random.hex(2048);
            let of = |what: &str| format!("{base}/{what}/{id}?api-version=2016-03-30&t=1&c={signature}&s=0&h=0");
            (of("operations"), of("operationresults"))
        }
        "Microsoft.DBforPostgreSQL" => of("azureAsyncOperation", "operationResults"),
        "Microsoft.Cache" => of("operationsStatus", "operationResults"),
        "Microsoft.Storage" => of("asyncoperations", "asyncoperations"),
        "Microsoft.ContainerRegistry" => of("operationStatuses", "operationResults"),
        "Microsoft.MachineLearningServices" if call.names.len() == 1 => {
            of("workspaceOperationsStatus", "workspaceOperationsStatus")
        }
        "Microsoft.MachineLearningServices" => of("mfeOperationsStatus", "mfeOperationResults"),
        _ => of("operations", "operationResults"),
    }
}

/// Answers an operation's address, if the path is one.
pub(crate) fn poll(cloud: &mut Cloud, path: &str, method: &str) -> Option<Result<Answer, Problem>> {
    let mut parts = path.trim_matches('/').rsplit('/');
    let (id, what) = (parts.next()?, parts.next()?.to_lowercase());
    if method != "GET" || !RESULTS.contains(&what.as_str()) && !STATES.contains(&what.as_str()) {
        return None;
    }
    let gone = || Problem::new(404, "ResourceNotFound", format!("The operation '{id}' was not found."));
    let Some(operation) = cloud.operations.get(id).filter(|one| !one.is_internal).cloned() else {
        return Some(Err(gone()));
    };
    let is_ended = operation.end.is_some();
    if operation.is_deletion && is_ended && operation.error.is_none() && cloud.conduct.operations_vanish {
        return Some(Err(gone()));
    }
    let after = ("Retry-After", retry_after(cloud).to_string());
    if STATES.contains(&what.as_str()) {
        let pending = if cloud.conduct.odd_states { "Accepted" } else { "InProgress" };
        let status = match (is_ended, &operation.error) {
            (false, _) => pending,
            (true, None) if cloud.conduct.odd_states => "Success",
            (true, None) => "Succeeded",
            (true, Some(error)) if error["code"] == "OperationPreempted" => "Canceled",
            (true, Some(_)) => "Failed",
        };
        let mut body = json!({ "name": id, "status": status, "startTime": operation.start.to_string() });
        if let Some(end) = operation.end {
            body["endTime"] = end.to_string().into();
        }
        if let Some(error) = &operation.error {
            body["error"] = error.clone();
        }
        if !is_ended && cloud.conduct.bare_polls {
            body = json!({});
        }
        let headers = if is_ended { Vec::new() } else { vec![after] };
        return Some(Ok(Answer { status: 200, body, headers }));
    }
    Some(Ok(match (is_ended, &operation.error) {
        (false, _) => {
            Answer { status: 202, body: Value::Null, headers: vec![("Location", operation.address.clone()), after] }
        }
        (true, Some(error)) if cloud.conduct.failed_in_success => {
            Answer::ok(json!({ "status": "Failed", "error": error }))
        }
        (true, Some(error)) => Answer::with(409, json!({ "error": error })),
        // A deletion ends with 200 or 204.
        (true, None) if operation.is_deletion => {
            Answer::with(if id.starts_with(|digit: char| digit.is_ascii_alphabetic()) { 204 } else { 200 }, Value::Null)
        }
        (true, None) => {
            let object = cloud.objects.get(&operation.target);
            Answer::ok(object.map_or(Value::Null, |one| shown(cloud, &operation.target, one)))
        }
    }))
}

/// Answers DELETE.
pub(crate) fn delete(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let kind = kind_row(call)?;
    let known = cloud.objects.get(&call.key).filter(|one| one.ghost_until.is_none());
    if known.is_none() {
        return match call.kind.as_str() {
            "Microsoft.Resources/resourceGroups" => Err(group_missing(call.name())),
            _ => Ok(Answer::with(204, Value::Null)),
        };
    }
    let etag = known.map(|one| text(&one.body, "/etag"));
    if call.if_match.as_deref().is_some_and(|sent| sent != "*" && etag != Some(sent)) {
        return Err(Problem::new(412, "PreconditionFailed", "Precondition specified in the request was not met."));
    }
    let holds = (kind.holds)(&call.key);
    if let Some(running) = cloud.running(&holds).cloned() {
        // A deletion that runs already is the same deletion.
        let is_same = running.is_deletion && running.target == call.key;
        match is_same {
            true => {
                return Ok(Answer {
                    status: 202,
                    body: Value::Null,
                    headers: vec![("Location", running.address), ("Retry-After", retry_after(cloud).to_string())],
                });
            }
            false => return Err(busy(cloud, call, &running)),
        }
    }
    (kind.refuse_delete)(cloud, &call.key)?;
    refuse_use(cloud, kind, &call.key)?;
    let style = kind.styles[2];
    if style == Style::Sync {
        let _ = (kind.end)(cloud, &call.key);
        remove(cloud, &call.key);
        return Ok(Answer::with(200, Value::Null));
    }
    if kind.has_state {
        cloud.set_state(&call.key, kind.words[2]);
    }
    let key = call.key.clone();
    let effect = move |cloud: &mut Cloud| match (kind.end)(cloud, &key) {
        Ok(()) => {
            remove(cloud, &key);
            Ok(())
        }
        Err(error) => {
            let state = if kind.kind.ends_with("resourceGroups") { "Succeeded" } else { "Failed" };
            cloud.set_state(&key, state);
            Err(error)
        }
    };
    let takes = Duration::from_secs(kind.seconds[2]);
    let headers = start(cloud, call, style, &holds, true, Some(takes), Box::new(effect));
    Ok(Answer { status: 202, body: Value::Null, headers })
}

/// Refuses a deletion of what others refer to.
pub(crate) fn refuse_use(cloud: &Cloud, kind: &Kind, key: &str) -> Result<(), Problem> {
    let Some((status, code)) = kind.in_use else { return Ok(()) };
    let Some(user) = users(cloud, key).into_iter().next() else { return Ok(()) };
    let id = cloud.objects.get(key).map_or(key, |object| &object.id);
    let message = format!(
        "{id} is in use by {user} and cannot be deleted. In order to delete it, delete or detach what uses it."
    );
    Err(Problem::new(status, code, message))
}

/// Removes a resource and what lies below it.
pub(crate) fn remove(cloud: &mut Cloud, key: &str) {
    let below = format!("{key}/");
    cloud.objects.retain(|one, _| one != key && !one.starts_with(&below));
}

/// Adds an operation that a service starts without a request, which keeps writers out.
pub(crate) fn keep_busy(cloud: &mut Cloud, holds: &str, until: jiff::Timestamp, state: &'static str) {
    if until <= cloud.now() || !cloud.objects.contains_key(holds) || cloud.running(holds).is_some() {
        return;
    }
    let id = cloud.random.uuid();
    let address = format!(
        "{ARM}/subscriptions/{}/providers/Microsoft.Network/locations/westeurope/operations/{id}",
        cloud.subscription
    );
    let operation = Operation {
        id,
        target: holds.to_owned(),
        holds: holds.to_owned(),
        is_deletion: false,
        is_internal: true,
        start: cloud.now(),
        end: None,
        error: None,
        address,
    };
    cloud.set_state(holds, state);
    let key = holds.to_owned();
    cloud.begin(
        operation,
        Some(later(until, Duration::from_millis(1))),
        Box::new(move |cloud| {
            cloud.set_state(&key, "Succeeded");
            Ok(())
        }),
    );
}
