//! Objects as Terraform's provider `azapi` and Bicep declare them: both take the documents of Resource Manager.
//!
//! <https://registry.terraform.io/providers/Azure/azapi/latest/docs/resources/resource>,
//! <https://learn.microsoft.com/azure/azure-resource-manager/bicep/resource-declaration>.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use textnlp_cloud::document::{get, last, mask, set};
use textnlp_cloud::tags::{self, Tags};
use textnlp_provider::{Declaration, Declare, Plugin, SUBSCRIPTION_SCOPE, Tool, Within};

use crate::api::Api;
use crate::row::{Rest, RestKind, Table};

/// The type of every object in Terraform.
const RESOURCE: &str = "azapi_resource";
/// The members of a document that Terraform has outside of the body.
const OUTSIDE: [&str; 2] = ["location", "tags"];

/// The declarations of an object.
pub(crate) fn declarations<K: RestKind>(
    api: Option<&Api>,
    request: &Declare<'_>,
) -> Option<Result<Vec<Declaration>, String>> {
    let write = match request.tool {
        Tool::Terraform => terraform,
        Tool::Bicep => bicep,
        Tool::CloudFormation => return None,
    };
    if let Some(why) = K::TABLE.undeclared {
        return Some(Err(why.to_owned()));
    }
    let mut document = Rest::<K>::body(&request.object.spec, &tags(request));
    let id = request.object.cloud_id.as_str();
    let place = Place::of(id);
    if let Some(Within::Scope(scope)) = &place.within {
        let is_declared = request.beside.iter().any(|other| other.cloud_id.as_str() == scope);
        if request.tool == Tool::Bicep && !is_declared {
            return Some(Err("its scope is an object of another owner".to_owned()));
        }
    }
    if let Err(why) = K::declared(api, request, &mut document) {
        return Some(Err(why));
    }
    let mut all = vec![write(K::TABLE, id, document)];
    for part in K::parts(&request.object.spec) {
        let table = Table { arm: part.arm, version: K::TABLE.version, ..Table::USUAL };
        all.push(write(&table, &format!("{id}{}", part.end), part.document));
    }
    Some(Ok(all))
}

/// The tags of a declared object.
pub(crate) fn tags(request: &Declare<'_>) -> Tags {
    let Declare { environment, lineage, object, .. } = request;
    tags::of_object::<Api>(*lineage, environment, &object.id, &tags::in_spec(&object.spec))
}

/// Where an object is, by its id.
struct Place {
    parent: String,
    within: Option<Within>,
    file: String,
}

impl Place {
    fn of(id: &str) -> Self {
        let group = group_of(id);
        let file = group.map_or_else(|| SUBSCRIPTION_SCOPE.to_owned(), str::to_owned);
        let Some((scope, own)) = id.rsplit_once("/providers/") else {
            // `/subscriptions/ID/resourceGroups/NAME`.
            return Self { parent: up(id, 2).to_owned(), within: None, file: SUBSCRIPTION_SCOPE.to_owned() };
        };
        // The namespace, then types and names.
        let names: Vec<&str> = own.split('/').skip(2).step_by(2).collect();
        if let [above @ .., _] = names.as_slice()
            && !above.is_empty()
        {
            let parent = up(id, 2).to_owned();
            let within = Within::Parent { id: parent.clone(), name: above.join("/") };
            return Self { parent, within: Some(within), file };
        }
        let within = scope.contains("/providers/").then(|| Within::Scope(scope.to_owned()));
        Self { parent: scope.to_owned(), within, file }
    }
}

/// An id without its last segments.
fn up(id: &str, segments: usize) -> &str {
    id.rsplitn(segments + 1, '/').nth(segments).unwrap_or_default()
}

fn group_of(id: &str) -> Option<&str> {
    let (_, rest) = id.split_once("/resourceGroups/")?;
    rest.split('/').next()
}

/// The outputs of a kind and their attributes, which have this before them.
fn outputs(table: &Table, before: &str) -> BTreeMap<String, String> {
    let own = table.outputs.iter().map(|(name, member)| ((*name).to_owned(), format!("{before}{}", mask(member))));
    std::iter::once(("id".to_owned(), "id".to_owned())).chain(own).collect()
}

fn terraform(table: &Table, id: &str, mut document: Value) -> Declaration {
    let place = Place::of(id);
    let mut body = Map::new();
    body.insert("type".to_owned(), json!(format!("{}@{}", table.arm, table.version)));
    body.insert("parent_id".to_owned(), json!(place.parent));
    body.insert("name".to_owned(), json!(last(id)));
    let mut hidden = json!({});
    for field in table.secrets() {
        // It is sent, and neither stored nor compared.
        if let Some(secret) = get(&document, field.member).cloned() {
            set(&mut hidden, field.member, secret);
            remove(&mut document, field.member);
        }
    }
    if let Value::Object(members) = &mut document {
        for name in OUTSIDE {
            if let Some(value) = members.shift_remove(name) {
                body.insert(name.to_owned(), value);
            }
        }
        if let Some(identity) = members.shift_remove("identity") {
            let ids: Vec<&String> =
                identity["userAssignedIdentities"].as_object().into_iter().flat_map(|all| all.keys()).collect();
            body.insert("identity".to_owned(), json!([{ "type": identity["type"], "identity_ids": ids }]));
        }
    }
    body.insert("body".to_owned(), document);
    if hidden != json!({}) {
        body.insert("sensitive_body".to_owned(), hidden);
    }
    let exported: Vec<String> = table.outputs.iter().map(|(_, member)| mask(member)).collect();
    body.insert("response_export_values".to_owned(), json!(exported));
    let plugin = Plugin { name: "azapi", source: "Azure/azapi", version: "~> 2.4", settings: BTreeMap::new() };
    Declaration {
        kind: RESOURCE.to_owned(),
        body,
        // Without the version it is the newest one (Azure/terraform-provider-azapi, "Import").
        id: format!("{id}?api-version={}", table.version),
        outputs: outputs(table, "output."),
        plugin: Some(plugin),
        without: table.without,
        ignored: table.ignored,
        settings: table.settings,
        ..Declaration::default()
    }
}

fn bicep(table: &Table, id: &str, document: Value) -> Declaration {
    let place = Place::of(id);
    let mut body = Map::new();
    body.insert("name".to_owned(), json!(last(id)));
    if let Value::Object(members) = document {
        body.extend(members);
    }
    Declaration {
        kind: format!("{}@{}", table.arm, table.version),
        body,
        id: id.to_owned(),
        outputs: outputs(table, ""),
        within: place.within,
        file: place.file,
        without: table.without,
        ..Declaration::default()
    }
}

/// Removes the member at a JSON pointer.
fn remove(document: &mut Value, pointer: &str) {
    let Some((parent, name)) = pointer.rsplit_once('/') else { return };
    if let Some(members) = document.pointer_mut(parent).and_then(Value::as_object_mut) {
        members.shift_remove(name);
    }
}

#[cfg(test)]
mod tests {
    use textnlp_provider::{
        CloudId, EnvironmentName, KindName, Lineage, Outputs, Ownership, Placeholder, PlannedObject, Recorded,
        ResourceId, SiteName, Spec, Wanted,
    };
    use uuid::Uuid;

    use super::*;
    use crate::table;

    const GROUP: &str = "/subscriptions/s/resourceGroups/g";

    fn recorded(kind: &str, id: &str, spec: Value) -> Recorded {
        Recorded {
            id: ResourceId::new("here/one").unwrap(),
            kind: KindName::new(kind).unwrap(),
            site: SiteName::new("here").unwrap(),
            via: None,
            spec: Spec::of(&spec),
            needs: Vec::new(),
            ownership: Ownership::Ours,
            schema: 1,
            cloud_id: CloudId::new(id).unwrap(),
            created: None,
            outputs: Outputs::new(),
            protected: false,
            tainted: false,
        }
    }

    fn declared(tool: Tool, object: &Recorded, beside: &[Recorded]) -> Result<Vec<Declaration>, String> {
        let environment = EnvironmentName::new("staging").unwrap();
        let request = Declare {
            tool,
            environment: &environment,
            lineage: Lineage(Uuid::nil()),
            object,
            beside,
            is_planned: false,
        };
        table::row(&object.kind).unwrap().resource.declare(None, &request).unwrap()
    }

    #[test]
    fn every_kind_is_declared_or_refused_with_a_reason() {
        for row in table::rows() {
            let object = recorded(row.kind.name, &format!("{GROUP}/providers/N/t/n"), json!({ "name": "n" }));
            for tool in [Tool::Terraform, Tool::Bicep] {
                match declared(tool, &object, &[]) {
                    Ok(all) => assert!(!all.is_empty() && all[0].kind.contains(['@', '_']), "{all:?}"),
                    Err(why) => assert!(!why.is_empty(), "{}", row.kind.name),
                }
            }
        }
    }

    /// The members of a declaration are those of the request of a creation. These fields have no member: their kind, and what stands
    /// for them.
    const BESIDE: &[(&str, &str, &str)] = &[
        ("azure.cluster", "subnet", "`complete` has it in the system pool"),
        ("azure.cluster", "machine", "`complete` has it in the system pool"),
        ("azure.cluster", "count", "`complete` has it in the system pool"),
        ("azure.cluster", "deployer_access", "who applies the file is not known: the README says how to give access"),
        ("azure.pool", "scaling", "`complete` sets the counts"),
        ("azure.pool", "zones", "`declared` sets the zone that Azure shows"),
        ("azure.pool", "markets", "`declared` sets the first one"),
        ("azure.storage", "shared_key", "`declared` sets it"),
        ("azure.storage", "versioned", "a part: the settings of its blobs"),
        ("azure.storage", "soft_delete_days", "a part: the settings of its blobs"),
        ("azure.storage", "change_feed", "a part: the settings of its blobs"),
        ("azure.replication-policy", "container", "it is not declared"),
        ("azure.replication-policy", "rule", "it is not declared"),
        ("azure.lifecycle", "rule", "`complete` has it in the policy"),
        ("azure.assignment", "role", "`complete` sets the id of the role"),
        ("azure.peering", "connected", "only an answer has it"),
        ("azure.dns-record", "values", "`complete` sets the addresses or the target"),
        ("azure.ml-deployment", "start_seconds", "`complete` sets the probes"),
        ("azure.ml-traffic", "deployment", "it is not declared"),
        ("azure.budget", "currency", "only an answer has it"),
        ("azure.redis-database", "rotation", "it requests another key"),
    ];

    #[test]
    fn every_field_has_a_member_or_is_declared_by_code() {
        let mut left = Vec::new();
        for row in table::rows() {
            let fields = row.resource.example();
            let lost = fields.as_object().into_iter().flatten().filter(|(_, member)| **member == "");
            left.extend(lost.map(|(name, _)| (row.kind.name, name.clone())));
        }
        let known: Vec<(&str, String)> = BESIDE.iter().map(|(kind, name, _)| (*kind, (*name).to_owned())).collect();
        let differ = |all: &[(&'static str, String)], from: &[(&'static str, String)]| -> Vec<(&'static str, String)> {
            all.iter().filter(|one| !from.contains(one)).cloned().collect()
        };
        assert_eq!((differ(&left, &known), differ(&known, &left)), (Vec::new(), Vec::new()));
    }

    #[test]
    fn a_tool_is_told_how_to_reach_a_new_cluster() {
        let id = format!("{GROUP}/providers/Microsoft.ContainerService/managedClusters/n");
        let cluster = recorded("azure.cluster", &id, json!({ "name": "n", "count": 2, "machine": "m" }));
        for tool in [Tool::Terraform, Tool::Bicep] {
            let without = declared(tool, &cluster, &[]).unwrap().remove(0).without;
            assert!(without.contains("az role assignment create"), "{without}");
        }
    }

    #[test]
    fn documents_are_those_of_a_create() {
        let id = format!("{GROUP}/providers/Microsoft.Network/virtualNetworks/n/subnets/nodes");
        let spec = json!({ "network": format!("{GROUP}/providers/Microsoft.Network/virtualNetworks/n"), "name": "nodes",
            "cidr": "10.0.0.0/24", "nat": "nat", "delegation": null });
        let subnet = recorded("azure.subnet", &id, spec);
        let all = declared(Tool::Terraform, &subnet, &[]).unwrap();
        let body = &all[0].body;
        assert_eq!(body["type"], "Microsoft.Network/virtualNetworks/subnets@2024-05-01");
        assert_eq!(body["parent_id"], format!("{GROUP}/providers/Microsoft.Network/virtualNetworks/n"));
        let properties =
            json!({ "defaultOutboundAccess": false, "addressPrefix": "10.0.0.0/24", "natGateway": { "id": "nat" } });
        assert_eq!((&body["name"], &body["body"]["properties"]), (&json!("nodes"), &properties));
        assert_eq!(all[0].id, format!("{id}?api-version=2024-05-01"));
        let bicep = declared(Tool::Bicep, &subnet, &[]).unwrap().remove(0);
        assert_eq!((bicep.file.as_str(), &bicep.body["properties"]), ("g", &properties));
        let parent = Within::Parent { id: up(&id, 2).to_owned(), name: "n".to_owned() };
        assert_eq!(bicep.within, Some(parent));
    }

    #[test]
    fn passwords_are_neither_stored_nor_written() {
        let id = format!("{GROUP}/providers/Microsoft.DBforPostgreSQL/flexibleServers/n");
        let secret = json!({ "$secret": "database", "version": "1" });
        let server =
            recorded("azure.database-server", &id, json!({ "name": "n", "sku": "Standard_B1ms", "password": secret }));
        let body = declared(Tool::Terraform, &server, &[]).unwrap().remove(0).body;
        assert_eq!(body["sensitive_body"]["properties"]["administratorLoginPassword"], secret);
        assert_eq!(body["body"].pointer("/properties/administratorLoginPassword"), None);
    }

    #[test]
    fn a_cluster_repeats_its_pools() {
        let id = format!("{GROUP}/providers/Microsoft.ContainerService/managedClusters/n");
        let cluster = recorded("azure.cluster", &id, json!({ "name": "n", "count": 2, "machine": "m" }));
        let spec = json!({ "cluster": id, "name": "cpu", "machine": "m", "zones": ["1"], "markets": ["spot"], "scaling": { "min": 1, "max": 3 } });
        let pool = recorded("azure.pool", &format!("{id}/agentPools/cpu"), spec);
        let body = declared(Tool::Bicep, &cluster, &[cluster.clone(), pool]).unwrap().remove(0).body;
        let pools = body["properties"]["agentPoolProfiles"].as_array().unwrap();
        assert_eq!((&pools[1]["name"], &pools[1]["availabilityZones"]), (&json!("cpu"), &json!(["1"])));
        assert_eq!(pools.len(), 2);
    }

    fn planned_by(lineage: Uuid, kind: &str, spec: &Value) -> PlannedObject {
        let wanted = Wanted {
            id: ResourceId::new("here/one").unwrap(),
            kind: KindName::new(kind).unwrap(),
            site: SiteName::new("here").unwrap(),
            via: None,
            spec: Spec::of(spec),
            needs: Vec::new(),
            ownership: Ownership::Ours,
            protected: false,
        };
        table::row(&wanted.kind).unwrap().resource.planned(&wanted, Lineage(lineage)).unwrap()
    }

    #[test]
    fn names_of_new_role_assignments_are_those_of_a_deployment() {
        let of = |lineage: Uuid, principal: &str| {
            let spec = json!({ "scope": GROUP, "role": "r", "principal": principal });
            planned_by(lineage, "azure.assignment", &spec).cloud_id
        };
        let first = of(Uuid::nil(), "of an identity that does not exist");
        assert_eq!(first, of(Uuid::nil(), "p"), "the creation of the identity changes no name");
        assert_ne!(first, of(Uuid::from_u128(1), "p"), "two environments may share a scope");
    }

    #[test]
    fn new_objects_have_the_ids_of_their_names() {
        let planned = |kind: &str, spec: Value| planned_by(Uuid::nil(), kind, &spec);
        let identity = planned("azure.identity", json!({ "group": GROUP, "name": "cluster" }));
        let id = format!("{GROUP}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/cluster");
        assert_eq!((identity.cloud_id.as_str(), &identity.outputs["id"]), (id.as_str(), &json!(id)));
        let principal = identity.outputs["principal"].as_str().and_then(Placeholder::read);
        assert_eq!(principal.map(|one| one.output), Some("principal"));
        let vault = planned("azure.vault", json!({ "group": GROUP, "name": "tn-1" })).cloud_id;
        let name = last(vault.as_str());
        // The name of a deleted vault stays taken: the next one gets another end.
        assert_eq!((textnlp_cloud::names::unsuffixed(name), name.len()), ("tn-1", 13));
    }

    #[test]
    fn new_pools_are_bought_as_the_first_alternative_in_no_zone() {
        let id = format!("{GROUP}/providers/Microsoft.ContainerService/managedClusters/n/agentPools/gpu");
        let spec = json!({ "name": "gpu", "machine": "m", "zones": ["1", "2"], "markets": ["spot", "on-demand"], "scaling": { "min": 1, "max": 3 } });
        let pool = recorded("azure.pool", &id, spec);
        assert!(declared(Tool::Bicep, &pool, &[]).is_err(), "the zone of an existing pool is not shown");
        let environment = EnvironmentName::new("staging").unwrap();
        let (tool, lineage) = (Tool::Bicep, Lineage(Uuid::nil()));
        let request =
            Declare { tool, environment: &environment, lineage, object: &pool, beside: &[], is_planned: true };
        let all = table::row(&pool.kind).unwrap().resource.declare(None, &request).unwrap().unwrap();
        let properties = &all[0].body["properties"];
        assert_eq!((&properties["availabilityZones"], &properties["scaleSetPriority"]), (&Value::Null, &json!("Spot")));
    }
}
