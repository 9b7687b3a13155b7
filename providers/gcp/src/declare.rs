//! Objects as Terraform's provider `google` declares them: its attributes are the members of the REST documents in snake case, with
//! nested messages as blocks. A kind's [`Terraform`] has what differs
//! (<https://registry.terraform.io/providers/hashicorp/google/latest/docs>).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use textnlp_cloud::document::{capture, last, set};
use textnlp_cloud::tags::{self, Tags};
use textnlp_provider::{Declaration, Declare, Plugin, Tool};

use crate::api::Api;
use crate::row::{Rest, RestKind, snake};

/// How Terraform declares the objects of a kind.
pub(crate) struct Terraform {
    pub(crate) kind: &'static str,
    /// Parts of the id, or of the spec, and the places of their attributes.
    pub(crate) named: &'static [(&'static str, &'static str)],
    /// Members of the document whose attributes are in another place; an empty one is that of no attribute.
    pub(crate) moved: &'static [(&'static str, &'static str)],
    /// Attributes that no document has, as JSON.
    pub(crate) constants: &'static [(&'static str, &'static str)],
    /// Attributes that others change, or that would replace the object.
    pub(crate) ignored: &'static [&'static str],
    /// The id of an import, by the id and the attributes of the object.
    pub(crate) import: fn(&str, &Value) -> String,
    /// The outputs that others refer to, and their attributes.
    pub(crate) outputs: &'static [(&'static str, &'static str)],
    /// See [`Declaration::settings`].
    pub(crate) settings: &'static [(&'static str, &'static str)],
}

impl Terraform {
    /// A form with the usual values.
    pub(crate) const USUAL: Self = Self {
        kind: "",
        named: &[],
        moved: &[],
        constants: &[],
        ignored: &[],
        import: |id, _| id.to_owned(),
        outputs: &[],
        settings: &[],
    };
}

/// The attribute with the id of this program.
pub(crate) const ID: (&str, &str) = ("id", "id");
/// The attribute with the name.
pub(crate) const NAME: (&str, &str) = ("name", "name");
/// A description, which has the tags of an object. Most are immutable: another one would replace the object.
pub(crate) const NO_DESCRIPTION: (&str, &str) = ("/description", "");

/// The declarations of an object.
pub(crate) fn declarations<K: RestKind>(
    api: Option<&Api>,
    request: &Declare<'_>,
) -> Option<Result<Vec<Declaration>, String>> {
    (request.tool == Tool::Terraform).then(|| declared::<K>(api, request))
}

fn declared<K: RestKind>(api: Option<&Api>, request: &Declare<'_>) -> Result<Vec<Declaration>, String> {
    let form = &K::TABLE.terraform;
    let (id, spec) = (request.object.cloud_id.as_str(), &request.object.spec);
    let mut document = Rest::<K>::body(spec, &tags(request)).map_err(|error| error.to_string())?;
    K::declared(api, request, &mut document)?;
    let mut moved = Vec::new();
    for (from, to) in form.moved {
        // A new object gets the description with its tags.
        if request.is_planned && (*from, *to) == NO_DESCRIPTION {
            continue;
        }
        if let Some(value) = take(&mut document, from) {
            moved.push((*to, value));
        }
    }
    let mut all = attributes(&document);
    for (to, value) in moved.into_iter().filter(|(to, value)| !to.is_empty() && !is_empty(value)) {
        set(&mut all, to, attributes(&value));
    }
    let parts = capture(K::TABLE.path, id).unwrap_or_default();
    for (name, to) in form.named {
        let value = parts.get(name).map(|part| json!(part)).or_else(|| spec.get(name).cloned());
        if let Some(value) = value.filter(|value| !value.is_null()) {
            set(&mut all, to, value);
        }
    }
    for (to, text) in form.constants {
        set(&mut all, to, serde_json::from_str(text).unwrap_or_default());
    }
    let main = declaration(api, form.kind, &all, (form.import)(id, &all), form.outputs);
    Ok(K::declarations(api, request, Declaration { ignored: form.ignored, settings: form.settings, ..main }))
}

/// One declaration.
pub(crate) fn declaration(
    api: Option<&Api>,
    kind: &str,
    attributes: &Value,
    id: String,
    outputs: &[(&'static str, &'static str)],
) -> Declaration {
    let settings = api.map(|api| BTreeMap::from([("project", api.project().to_owned())])).unwrap_or_default();
    Declaration {
        kind: kind.to_owned(),
        body: attributes.as_object().cloned().unwrap_or_default(),
        id,
        outputs: outputs.iter().map(|(output, attribute)| ((*output).to_owned(), (*attribute).to_owned())).collect(),
        plugin: Some(Plugin { name: "google", source: "hashicorp/google", version: "~> 7.0", settings }),
        ..Declaration::default()
    }
}

/// The tags of a declared object.
fn tags(request: &Declare<'_>) -> Tags {
    let Declare { environment, lineage, object, .. } = request;
    tags::of_object::<Api>(*lineage, environment, &object.id, &tags::in_spec(&object.spec))
}

/// Takes the member at a JSON pointer out of a document.
fn take(document: &mut Value, pointer: &str) -> Option<Value> {
    let (parent, name) = pointer.rsplit_once('/')?;
    document.pointer_mut(parent)?.as_object_mut()?.shift_remove(name)
}

/// A document as attributes: names in snake case, without what is empty. Keys of operators, such as labels, stay as they are.
fn attributes(document: &Value) -> Value {
    match document {
        Value::Object(members) => {
            let named = |(name, member): (&String, &Value)| {
                let is_member = name.chars().all(|c| c.is_ascii_alphanumeric());
                (if is_member { snake(name) } else { name.clone() }, attributes(member))
            };
            Value::Object(members.iter().map(named).filter(|(_, member)| !is_empty(member)).collect())
        }
        Value::Array(items) => items.iter().map(attributes).collect(),
        other => other.clone(),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(members) => members.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// What is in a path after a segment: `p` in `projects/p/locations/l` after `projects`.
pub(crate) fn segment<'p>(path: &'p str, after: &str) -> &'p str {
    let mut parts = path.split('/').skip_while(|part| *part != after);
    parts.nth(1).unwrap_or_default()
}

/// The members of a document that say in which server of Cloud SQL a part is.
pub(crate) fn in_instance(id: &str, document: &mut Value) {
    document["instance"] = json!(segment(id, "instances"));
    document["project"] = json!(segment(id, "projects"));
}

/// A binding of IAM.
pub(crate) fn binding(id: &str, member: String, attribute: &str, target: &str) -> Map<String, Value> {
    let role = id.split('#').nth(1).unwrap_or_default();
    let pairs = [(attribute, json!(target)), ("role", json!(role)), ("member", json!(member))];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The id by which a binding is imported: what the policy is of, the role and the member.
pub(crate) fn binding_id(target: &str, attributes: &Value) -> String {
    let of = |name: &str| attributes[name].as_str().unwrap_or_default();
    format!("{target} {} {}", of("role"), of("member"))
}

/// The last segment of an id, as an import takes it.
pub(crate) fn by_name(id: &str, _attributes: &Value) -> String {
    last(id).to_owned()
}

#[cfg(test)]
mod tests {
    use textnlp_provider::{
        CloudId, EnvironmentName, KindName, Lineage, Outputs, Ownership, Recorded, ResourceId, SiteName, Spec, Wanted,
    };
    use uuid::Uuid;

    use super::*;
    use crate::table;

    /// The attributes of the types, from the provider's schema: see the script beside it.
    const SCHEMA: &str = include_str!("../../../tests/schemas/google.json");
    const PROJECT: &str = "projects/p";

    fn declared(kind: &str, id: &str, spec: Value) -> Result<Vec<Declaration>, String> {
        declared_as(kind, id, spec, false)
    }

    fn declared_as(kind: &str, id: &str, spec: Value, is_planned: bool) -> Result<Vec<Declaration>, String> {
        let object = Recorded {
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
        };
        let environment = EnvironmentName::new("staging").unwrap();
        let (tool, lineage) = (Tool::Terraform, Lineage(Uuid::nil()));
        let request = Declare { tool, environment: &environment, lineage, object: &object, beside: &[], is_planned };
        table::row(&object.kind).unwrap().resource.declare(None, &request).unwrap()
    }

    /// An object of each kind that is declared: its id and its spec.
    fn examples() -> Vec<(&'static str, String, Value)> {
        let at = |path: &str| format!("{PROJECT}/{path}");
        let network = at("global/networks/n");
        let cluster = at("locations/europe-west4/clusters/c");
        let instance = at("instances/db-0a1b");
        let ring = at("locations/europe-west4/keyRings/r");
        let secret = json!({ "$secret": "database", "version": "1" });
        let location = "europe-west4";
        vec![
            ("gcp.network", network.clone(), json!({ "auto_subnets": false, "routing": "REGIONAL" })),
            (
                "gcp.subnetwork",
                at("regions/europe-west4/subnetworks/s"),
                json!({
                    "location": location, "network": network, "cidr": "10.0.0.0/20", "ranges": { "pods": "10.4.0.0/14" },
                    "private_google_access": true, "flow_logs": true,
                }),
            ),
            (
                "gcp.router",
                at("regions/europe-west4/routers/r"),
                json!({
                    "location": location, "network": network,
                    "nat": { "name": "nat", "subnetwork": at("regions/europe-west4/subnetworks/s"), "log": "ERRORS_ONLY" },
                }),
            ),
            ("gcp.address-range", at("global/addresses/a"), json!({ "network": network, "prefix_length": 20 })),
            (
                "gcp.service-connection",
                format!("{network}/connections/servicenetworking-googleapis-com"),
                json!({
                    "network": network, "ranges": ["a"],
                }),
            ),
            (
                "gcp.service-account",
                at("serviceAccounts/a@p.iam.gserviceaccount.com"),
                json!({ "display_name": "Nodes" }),
            ),
            (
                "gcp.project-binding",
                format!("{PROJECT}#roles/logging.logWriter#serviceAccount:a@p.iam.gserviceaccount.com"),
                json!({}),
            ),
            ("gcp.key-binding", format!("{ring}/cryptoKeys/k#roles/x#user:a@example.com"), json!({})),
            ("gcp.bucket-binding", "projects/_/buckets/b#roles/x#user:a@example.com".to_owned(), json!({})),
            (
                "gcp.gke-cluster",
                cluster.clone(),
                json!({
                    "location": location, "version": "1.34", "network": network, "subnetwork": at("regions/europe-west4/subnetworks/s"),
                    "pods": "pods", "services": "services", "private_nodes": true, "allow_from": ["203.0.113.0/24"], "channel": "REGULAR",
                    "shielded_nodes": true, "workload_identity": true, "key": format!("{ring}/cryptoKeys/k"), "node_account": "a",
                    "maintenance": {
                        "window": { "startTime": "2024-01-07T03:00:00Z", "endTime": "2024-01-07T15:00:00Z" },
                        "recurrence": "FREQ=WEEKLY;BYDAY=SU",
                    },
                }),
            ),
            (
                "gcp.node-pool",
                format!("{cluster}/nodePools/gpu"),
                json!({
                    "cluster": cluster, "machine": "g2-standard-8", "accelerator": { "type": "nvidia-l4", "count": 1 }, "disk_gb": 100,
                    "disk_type": "pd-balanced", "account": "a@p.iam.gserviceaccount.com", "secure_boot": true, "labels": { "pool": "gpu" },
                    "disk_key": format!("{ring}/cryptoKeys/k"),
                    "scaling": { "min": 1, "max": 3 }, "zones": ["europe-west4-a"], "markets": ["spot"], "nodes": 1,
                    "upgrade": { "strategy": "BLUE_GREEN", "batch_nodes": 1, "batch_soak": "0s", "soak": "3600s" },
                }),
            ),
            (
                "gcp.bucket",
                "projects/_/buckets/b".to_owned(),
                json!({
                    "location": "eu", "regions": ["europe-west1", "europe-west4"], "rpo": "ASYNC_TURBO",
                    "storage_class": "STANDARD", "access": "private", "versioned": true, "soft_delete_days": 7,
                    "lifecycle": [{ "action": "SetStorageClass", "class": "ARCHIVE", "age_days": 90 }, { "action": "Delete", "noncurrent_days": 30 }],
                    "key": format!("{ring}/cryptoKeys/k"),
                }),
            ),
            (
                "gcp.repository",
                at("locations/europe-west4/repositories/r"),
                json!({
                    "immutable": true, "untagged_days": 14, "key": format!("{ring}/cryptoKeys/k"), "images": [],
                }),
            ),
            ("gcp.key-ring", ring.clone(), json!({})),
            ("gcp.key", format!("{ring}/cryptoKeys/k"), json!({ "ring": ring, "rotation_days": 90 })),
            (
                "gcp.sql-instance",
                instance.clone(),
                json!({
                    "location": location, "version": "POSTGRES_17", "tier": "db-custom-2-8192", "edition": "ENTERPRISE",
                    "availability": "REGIONAL", "disk_gb": 20, "disk_type": "PD_SSD", "network": network, "range": "a", "public": false,
                    "tls": "ENCRYPTED_ONLY", "backup_days": 7, "deletion_protection": true, "key": format!("{ring}/cryptoKeys/k"),
                    "database": "texts", "source": null, "maintenance": { "day": 7, "hour": 3 },
                }),
            ),
            (
                "gcp.redis-instance",
                at("locations/europe-west4/instances/i"),
                json!({
                    "tier": "STANDARD_HA", "version": "REDIS_7_2", "memory_gb": 5, "replicas": 2,
                    "read_replicas": "READ_REPLICAS_ENABLED", "network": network, "connection": "PRIVATE_SERVICE_ACCESS",
                    "range": "a", "auth": true, "tls": "SERVER_AUTHENTICATION",
                }),
            ),
            (
                "gcp.sql-database",
                format!("{instance}/databases/texts"),
                json!({ "instance": instance, "charset": "UTF8" }),
            ),
            ("gcp.sql-user", format!("{instance}/users/textnlp"), json!({ "instance": instance, "password": secret })),
            (
                "gcp.notification-channel",
                at("notificationChannels/1"),
                json!({ "name": "mailbox", "email": "oncall@example.com", "enabled": true }),
            ),
            (
                "gcp.alert-policy",
                at("alertPolicies/1"),
                json!({
                    "name": "connections", "enabled": true, "channels": [at("notificationChannels/1")],
                    "condition": {
                        "says": "few are left", "filter": ["metric.type=\"m\" AND resource.type=\"r\""], "aligner": "ALIGN_MEAN",
                        "sum_by": "resource.label.n", "above": 90.0, "period_seconds": 60, "lasting_seconds": 300,
                    },
                }),
            ),
            (
                "gcp.uptime-check",
                at("uptimeCheckConfigs/1"),
                json!({
                    "name": "uptime", "host": "text.example.com", "target": { "port": 8443, "path": "/health" }, "period": 60,
                    "timeout": 10, "regions": [], "matchers": [], "enabled": true,
                }),
            ),
            (
                "gcp.dashboard",
                at("dashboards/1"),
                json!({
                    "name": "overview",
                    "charts": [{
                        "says": "few are left", "filter": ["metric.type=\"m\" AND resource.type=\"r\""], "aligner": "ALIGN_MEAN",
                        "sum_by": null, "above": 90.0, "period_seconds": 60,
                    }],
                }),
            ),
            (
                "gcp.services",
                at("services"),
                json!({ "services": ["compute.googleapis.com", "container.googleapis.com"] }),
            ),
            (
                "gcp.dns-record",
                at("managedZones/z/rrsets/api.example.com/A"),
                json!({
                    "zone": at("managedZones/z"), "name": "api.example.com", "type": "A", "ttl": 60, "values": ["192.0.2.1"],
                }),
            ),
        ]
    }

    #[test]
    fn every_kind_is_declared_or_refused_with_a_reason() {
        let examples = examples();
        for row in table::rows() {
            match examples.iter().find(|(kind, ..)| *kind == row.kind.name) {
                Some((kind, id, spec)) => assert!(declared(kind, id, spec.clone()).is_ok(), "{kind}"),
                None => assert!(!declared(row.kind.name, "projects/p/x/y", json!({})).unwrap_err().is_empty()),
            }
        }
    }

    /// The fields of a document are attributes, because a declaration begins with the request of a creation. These are in no
    /// request or no attribute: their kind, and what stands for them.
    const BESIDE: &[(&str, &str, &str)] = &[
        ("gcp.network", "auto_subnets", "a constant of the table: no network has them"),
        ("gcp.router", "nat", "a resource of its own"),
        ("gcp.gke-cluster", "workload_identity", "`declared` sets the pool"),
        ("gcp.gke-cluster", "node_account", "`declared` sets that of the first pool"),
        ("gcp.gke-cluster", "first_pool_removed", "`remove_default_node_pool`"),
        ("gcp.node-pool", "gpu_taint", "GKE adds the taint itself"),
        ("gcp.node-pool", "nodes", "`declared` sets the first count, and then the autoscaler"),
        ("gcp.node-pool", "zones", "`declared` sets them"),
        ("gcp.node-pool", "markets", "`declared` sets the first one"),
        ("gcp.repository", "images", "the provider has no resource for images"),
        ("gcp.run-service", "serving", "services of Cloud Run are not exported"),
        ("gcp.uptime-check", "enabled", "the provider has no attribute for it"),
    ];

    #[test]
    fn every_field_of_a_request_is_an_attribute_or_left_out_with_a_reason() {
        let mut left = Vec::new();
        // They have no table: their own code declares them.
        let by_code = ["gcp.dns-record", "gcp.budget", "gcp.vertex-deployment"];
        for row in table::rows().filter(|row| !by_code.contains(&row.kind.name)) {
            let fields = row.resource.example();
            assert!(fields.is_object(), "{}: {fields}", row.kind.name);
            let lost = fields.as_object().into_iter().flatten().filter(|(_, member)| **member == "");
            left.extend(lost.map(|(name, _)| (row.kind.name, name.clone())));
        }
        let known: Vec<(&str, String)> = BESIDE.iter().map(|(kind, name, _)| (*kind, (*name).to_owned())).collect();
        let differ = |all: &[(&'static str, String)], from: &[(&'static str, String)]| -> Vec<(&'static str, String)> {
            all.iter().filter(|one| !from.contains(one)).cloned().collect()
        };
        assert_eq!((differ(&left, &known), differ(&known, &left)), (Vec::new(), Vec::new()));
    }

    /// Compares a block with the schema in both directions.
    fn check(place: &str, schema: &Value, block: &Map<String, Value>, problems: &mut Vec<String>) {
        for (name, value) in block {
            let found = &schema[name];
            let items: Vec<&Value> = value.as_array().map_or_else(|| vec![value], |all| all.iter().collect());
            match found {
                Value::Null => problems.push(format!("{place}.{name} is unknown")),
                Value::Object(_) => {
                    for item in items {
                        match item.as_object() {
                            Some(inner) => check(&format!("{place}.{name}"), found, inner, problems),
                            None => problems.push(format!("{place}.{name} is a block")),
                        }
                    }
                }
                _ => {}
            }
        }
        for (name, one) in schema.as_object().into_iter().flatten().filter(|(name, _)| *name != "*") {
            let is_required = *one == true || one["*"] == true;
            if is_required && !block.contains_key(name) {
                problems.push(format!("{place}.{name} is missing"));
            }
        }
    }

    #[test]
    fn attributes_are_those_of_the_provider() {
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        let mut problems = Vec::new();
        for (kind, id, spec) in examples() {
            for one in declared(kind, &id, spec).unwrap() {
                check(&one.kind, &schema["resources"][&one.kind], &one.body, &mut problems);
                let ignored = one.ignored.iter().map(|name| name.split('[').next().unwrap_or_default());
                problems.extend(
                    ignored
                        .filter(|name| schema["resources"][&one.kind].get(name).is_none())
                        .map(|name| format!("{}.{name} is unknown", one.kind)),
                );
            }
        }
        assert!(problems.is_empty(), "{problems:#?}");
    }

    /// The attributes of the example of a kind, with another value of a field.
    fn attributes_with(kind: &str, field: &str, value: Value, is_planned: bool) -> Map<String, Value> {
        let (kind, id, mut spec) = examples().into_iter().find(|(of, ..)| *of == kind).unwrap();
        spec[field] = value;
        declared_as(kind, &id, spec, is_planned).unwrap().remove(0).body
    }

    #[test]
    fn terraform_protects_and_creates_as_up_does() {
        for is_on in [true, false] {
            let server = attributes_with("gcp.sql-instance", "deletion_protection", json!(is_on), true);
            assert_eq!(server["deletion_protection"], is_on);
            assert_eq!(server["settings"]["deletion_protection_enabled"], is_on);
        }
        let cluster = attributes_with("gcp.gke-cluster", "version", json!("1.33"), true);
        assert_eq!(cluster["min_master_version"], "1.33");
        // An empty list lets no network in, and null every one.
        let block = "master_authorized_networks_config";
        let closed = attributes_with("gcp.gke-cluster", "allow_from", json!([]), true);
        assert_eq!(closed[block], json!({ "gcp_public_cidrs_access_enabled": false }));
        assert_eq!(attributes_with("gcp.gke-cluster", "allow_from", Value::Null, true).get(block), None);
        let pool = |zones: Value, is_planned| {
            let (kind, id, mut spec) = examples().into_iter().find(|(of, ..)| *of == "gcp.node-pool").unwrap();
            (spec["zones"], spec["nodes"]) = (zones, json!(3));
            declared_as(kind, &id, spec, is_planned).unwrap().remove(0).body.shift_remove("initial_node_count")
        };
        assert_eq!(pool(json!(["europe-west4-a"]), true), Some(json!(3)));
        assert_eq!(pool(json!([]), true), Some(json!(1)), "it is the count of each zone");
        assert_eq!(pool(json!(["europe-west4-a"]), false), None, "another count would replace the pool");
    }

    #[test]
    fn imports_are_named_as_the_provider_reads_them() {
        let ids: Vec<String> = examples()
            .into_iter()
            .filter(|(kind, ..)| ["gcp.node-pool", "gcp.bucket-binding", "gcp.sql-user", "gcp.router"].contains(kind))
            .flat_map(|(kind, id, spec)| declared(kind, &id, spec).unwrap())
            .map(|one| one.id)
            .collect();
        assert_eq!(
            ids,
            [
                "projects/p/regions/europe-west4/routers/r",
                "projects/p/regions/europe-west4/routers/r/nat",
                "b/b roles/x user:a@example.com",
                "p/europe-west4/c/gpu",
                "p/db-0a1b/textnlp",
            ]
        );
    }

    #[test]
    fn new_objects_have_the_ids_of_their_names() {
        let planned = |kind: &str, spec: Value| {
            let wanted = Wanted {
                id: ResourceId::new("here/one").unwrap(),
                kind: KindName::new(kind).unwrap(),
                site: SiteName::new("here").unwrap(),
                via: None,
                spec: Spec::of(&spec),
                needs: Vec::new(),
                ownership: Ownership::Ours,
                protected: false,
            };
            table::row(&wanted.kind).unwrap().resource.planned(&wanted, Lineage(Uuid::nil())).unwrap()
        };
        let account = planned("gcp.service-account", json!({ "project": "p", "name": "nodes" }));
        assert_eq!(account.outputs["member"], "serviceAccount:nodes@p.iam.gserviceaccount.com");
        // Google names it.
        let channel = planned("gcp.notification-channel", json!({ "project": "p", "name": "mailbox" }));
        let id = channel.outputs["id"].as_str().and_then(textnlp_provider::Placeholder::read);
        assert_eq!(id.map(|id| (id.resource, id.output)), Some(("here/one", "id")));
        let server = planned("gcp.sql-instance", json!({ "project": "p", "name": "db" }));
        let name = server.outputs["name"].as_str().unwrap();
        // The next object of the name gets another end.
        assert_eq!((textnlp_cloud::names::unsuffixed(name), name.len()), ("db", 11));
        assert_eq!(server.cloud_id.as_str(), format!("projects/p/instances/{name}"));
        let pool = json!({ "cluster": "projects/p/locations/l/clusters/c", "name": "gpu" });
        assert_eq!(planned("gcp.node-pool", pool).cloud_id.as_str(), "projects/p/locations/l/clusters/c/nodePools/gpu");
    }
}
