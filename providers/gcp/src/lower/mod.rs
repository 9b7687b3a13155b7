//! Expansion of components into resources of Google Cloud. Pure: addresses and ids that only Google knows are references.
//!
//! | component | resources |
//! |---|---|
//! | network | `SITE/network/services`: the enabled services of the project; `vpc`, `subnet` with the ranges of pods and services,
//! `router` with its NAT. With an existing network `services`, and `vpc` and `subnet` are existing too |
//! | model store | `SITE/models/bucket`: the bucket of your models, which may be an existing one; where data is protected `key-ring`, `key` and `key-access`,
//! and for a bucket in two regions `replica-key-ring`, `replica-key` and `replica-key-access` in place of `key-access`; `reader` for
//! pods that read models of it |
//! | cluster | `SITE/cluster`: the control plane; `nodes`, `nodes-role` and `nodes-images`: the account of the nodes and its roles;
//! `key-access` and `disk-key-access` where data is protected; `system-nodes`, of other machines than the usual ones
//! `system-medium-nodes` and the like; `gpu-nodes` with GPUs. An existing cluster is read only |
//! | registry | `SITE/registry/repository`, if its address is that of this project and region; `key-access` where data is protected |
//! | database | `SITE/database/range`, `connection`: private services access; `server`, `database`, `instance`: the PostgreSQL, its
//! database, and the user that the service connects as; `replica-N`; `remote`: the replica in another region; `key-access` where data is
//! protected, and with a replica in another region `remote-key-ring`, `remote-key`, `remote-key-access`. With an existing network
//! neither `range` nor `connection` |
//! | cache | `SITE/cache/services`, `instance` as `group`: a managed cache of vectors; `range`, `connection` without a managed database.
//! With an existing network neither of these |
//! | inference endpoint | `SITE/server/service`: the service of Cloud Run; `services`: the enabled services of the project; `account`, as
//! which it runs; `caller` and `invoker`: the account that may call it, and its role; `key-access` where data is protected. Of Vertex
//! AI: `SITE/server/endpoint`; `model`, `deployment`: the image, and it at the endpoint; `services`, `account`, `key-access` |
//! | endpoint | `SITE/gateway/record`, `tenants-record`: the names that clients use, in an existing zone; with several sites `health`, a
//! health check, and `name`, the site's own name |
//! | monitoring | `SITE/monitoring/services`: the enabled services; `mailbox-N`: a channel for each mailbox; `alert-NAME`: alert policies;
//! `uptime`, a check of the service from the internet, if it has a name; `overview`, a dashboard, with a stack; `budget`: the cost budget, if there is one |

mod cache;
mod cluster;
mod database;
mod dns;
mod models;
mod monitoring;
mod network;
mod registry;
mod run;
mod vertex;

pub(crate) use cache::PORT as CACHE_PORT;
pub(crate) use cluster::SYSTEM;
pub(crate) use dns::NOTICES_AFTER;
pub(crate) use models::bucket_identity;
pub use models::models_bucket;
use serde_json::{Value, json};
use textnlp_cloud::REGION;
use textnlp_provider::component::ComponentSpec;
use textnlp_provider::settings::Runtime;
use textnlp_provider::spec::OutputRef;
use textnlp_provider::{
    Component, ComponentName, DataClass, KindName, Need, Ownership, Problem, Problems, ResourceId, Site, Spec, Wanted,
};

use crate::kinds::monitoring::{CHANNEL, DASHBOARD, POLICY, UPTIME};
use crate::kinds::redis::REDIS;
use crate::kinds::run::SERVICE;
use crate::kinds::vertex::{ENDPOINT, MODEL};
use crate::{labels, names, table};

/// The kinds whose objects have labels, which the tags of the environment become.
pub(crate) const LABELLED: [&str; 14] = [
    "gcp.gke-cluster",
    "gcp.node-pool",
    "gcp.bucket",
    "gcp.repository",
    "gcp.key",
    "gcp.sql-instance",
    REDIS,
    CHANNEL,
    POLICY,
    UPTIME,
    DASHBOARD,
    SERVICE,
    MODEL,
    ENDPOINT,
];
/// The components that others refer to.
const NETWORK: &str = "network";
const MODELS: &str = "models";
const SERVER: &str = "server";
/// The role that encrypts and decrypts with a key.
const KEY_ROLE: &str = "roles/cloudkms.cryptoKeyEncrypterDecrypter";
/// The longest name of a ring.
const MOST_OF_RING: usize = 63;
/// Days between two rotations of a key.
const ROTATION_DAYS: u32 = 90;

/// Expands a component into the resources of its site's project and region.
pub(crate) fn lower(component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
    let mut lowering = Lowering { component, site, is_elsewhere: false, wanted: Vec::new(), problems: Vec::new() };
    match &component.part {
        ComponentSpec::Network(network) => lowering.network(network),
        ComponentSpec::ModelStore(store) => lowering.models(store),
        ComponentSpec::Database(database) => lowering.database(database),
        ComponentSpec::Cache(cache) => lowering.cache(cache),
        ComponentSpec::Registry(registry) => lowering.registry(registry),
        ComponentSpec::Cluster(cluster) => lowering.cluster(cluster),
        ComponentSpec::Endpoint(endpoint) => lowering.endpoint(endpoint),
        ComponentSpec::InferenceEndpoint(endpoint) if site.runtime == Runtime::Vertex => lowering.vertex(endpoint),
        ComponentSpec::InferenceEndpoint(endpoint) => lowering.cloud_run(endpoint),
        ComponentSpec::Monitoring(monitoring) => lowering.monitoring(monitoring),
        // Objects inside of the cluster, and secrets and certificates on the operator's machine, are other providers'.
        _ => {}
    }
    if !lowering.wanted.is_empty() && !table::is_bound(site) {
        lowering.problem(
            "account",
            "the project is a part of every id, and it is not known",
            "set `sites[].account` to the project id",
        );
    }
    if lowering.problems.is_empty() { Ok(lowering.wanted) } else { Err(Problems(lowering.problems)) }
}

/// Expands the records of a site that is at another provider, in a zone of Cloud DNS.
pub(crate) fn lower_records(component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
    let mut lowering = Lowering { component, site, is_elsewhere: true, wanted: Vec::new(), problems: Vec::new() };
    if let ComponentSpec::Endpoint(endpoint) = &component.part {
        lowering.endpoint(endpoint);
    }
    if lowering.problems.is_empty() { Ok(lowering.wanted) } else { Err(Problems(lowering.problems)) }
}

/// The state of one component's expansion.
struct Lowering<'a> {
    component: &'a Component,
    site: &'a Site,
    /// Whether the site is at another provider: it has no project, and enables no services.
    is_elsewhere: bool,
    wanted: Vec<Wanted>,
    problems: Vec<Problem>,
}

impl Lowering<'_> {
    /// Adds the resource `SITE/COMPONENT`, which may be an existing object.
    fn main(&mut self, kind: &'static str, spec: Value) -> ResourceId {
        let id = ResourceId::of(&self.site.name, &self.component.name);
        let ownership = self.component.existing.clone().map_or(Ownership::Ours, Ownership::External);
        self.push(id.clone(), kind, spec, ownership);
        id
    }

    /// Adds the resource `SITE/COMPONENT/PART`.
    fn part(&mut self, part: &str, kind: &'static str, spec: Value) -> Option<ResourceId> {
        self.owned_part(part, kind, spec, Ownership::Ours)
    }

    /// The same, which may be an existing object.
    fn owned_part(&mut self, part: &str, kind: &'static str, spec: Value, ownership: Ownership) -> Option<ResourceId> {
        match ResourceId::part(&self.site.name, &self.component.name, part) {
            Ok(id) => {
                self.push(id.clone(), kind, spec, ownership);
                Some(id)
            }
            Err(error) => {
                self.problem("", error.to_string(), "give it another name");
                None
            }
        }
    }

    fn push(&mut self, id: ResourceId, kind: &'static str, mut spec: Value, ownership: Ownership) {
        let is_labelled = LABELLED.contains(&kind);
        spec["tags"] = if is_labelled { json!(self.site.tags) } else { json!({}) };
        let spec = Spec::of(&spec);
        let needs = spec.outputs_needed().iter().map(|output| Need::on(output.resource.clone())).collect();
        let kind = KindName::new(kind).expect("the names in the table are kind names");
        let is_precious = table::row(&kind).is_some_and(|row| row.kind.data == DataClass::Precious);
        let (site, protected) = (self.site.name.clone(), is_precious && self.site.protect_data);
        self.wanted.push(Wanted { id, kind, site, via: None, spec, needs, ownership, protected });
        if is_labelled && self.problems.is_empty() {
            self.problems.extend(labels::problems(&self.site.tags));
        }
        // Every service is enabled first. A site whose servers Google Cloud runs as containers has no network.
        let of = if runs_containers(self.site) { SERVER } else { NETWORK };
        let services = self.part_of(of, "services").filter(|_| !self.is_elsewhere);
        if self.wanted.last().is_some_and(|last| Some(&last.id) != services.as_ref()) {
            self.after(services);
        }
    }

    /// Adds a dependency of the last resource that no reference in its spec states.
    fn after(&mut self, on: Option<ResourceId>) {
        if let (Some(last), Some(on)) = (self.wanted.last_mut(), on) {
            last.needs.push(Need::on(on));
            last.needs.sort();
            last.needs.dedup();
        }
    }

    fn problem(&mut self, field: &str, cause: impl Into<String>, fix: impl Into<String>) {
        let place = format!("{}/{} {field}", self.site.name, self.component.name);
        self.problems.push(Problem::new(place.trim_end(), cause, fix));
    }

    /// Attributes of an object of the project.
    fn of_project(&self, mut spec: Value) -> Value {
        spec["project"] = json!(self.site.account);
        spec
    }

    /// Attributes of an object of the region.
    fn of_region(&self, spec: Value) -> Value {
        let mut spec = self.of_project(spec);
        spec["location"] = json!(self.site.region);
        spec
    }

    /// A part of another component.
    fn part_of(&self, component: &str, part: &str) -> Option<ResourceId> {
        ResourceId::part(&self.site.name, &ComponentName::new(component).ok()?, part).ok()
    }

    /// A reference to an output of a part of another component.
    fn output_of(&self, component: &str, part: &str, field: &str) -> Value {
        self.part_of(component, part).map_or(Value::Null, |id| output(&id, field))
    }

    /// The key that data of a protected site is encrypted with, for a service agent that gets its role on it; null elsewhere: Google
    /// encrypts with keys of its own then.
    fn data_key(&mut self, agent: &str) -> (Value, Option<ResourceId>) {
        self.data_key_by("key-access", agent)
    }

    /// The same, whose role is this part.
    fn data_key_by(&mut self, part: &str, agent: &str) -> (Value, Option<ResourceId>) {
        if !self.site.protect_data {
            return (Value::Null, None);
        }
        let key = self.output_of(MODELS, "key", "id");
        let spec = json!({ "target": key, "role": KEY_ROLE, "member": agent });
        let access = self.part(part, "gcp.key-binding", spec);
        (key, access)
    }

    /// The same for data in another location, which has a key of its own there, in parts with this start.
    fn key_in(&mut self, location: &str, part: &str, name: &str, agent: &str) -> (Value, Option<ResourceId>) {
        if !self.site.protect_data {
            return (Value::Null, None);
        }
        let ring = names::of(self.site, "data", MOST_OF_RING);
        let ring = self.of_project(json!({ "name": ring, "location": location }));
        let ring = self.part(&format!("{part}-key-ring"), "gcp.key-ring", ring);
        let ring = ring.map_or(Value::Null, |ring| output(&ring, "id"));
        let key = json!({ "name": name, "ring": ring, "rotation_days": ROTATION_DAYS, REGION: location });
        let Some(key) = self.part(&format!("{part}-key"), "gcp.key", key) else { return (Value::Null, None) };
        let access = json!({ "target": output(&key, "id"), "role": KEY_ROLE, "member": agent });
        (output(&key, "id"), self.part(&format!("{part}-key-access"), "gcp.key-binding", access))
    }
}

/// Whether Google Cloud runs the servers of a site as containers, without a cluster.
fn runs_containers(site: &Site) -> bool {
    matches!(site.runtime, Runtime::CloudRun | Runtime::Vertex)
}

/// A reference to an output.
fn output(resource: &ResourceId, field: &str) -> Value {
    json!(OutputRef::new(resource.clone(), field))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use textnlp_provider::CloudId;
    use textnlp_provider::cluster::{Capacity, ClusterSite, NodeChoice};
    use textnlp_provider::component::{
        Cluster, GpuPool, MaintenanceWindow, Model, ModelReplica, ModelStore, Network, Registry,
    };
    use textnlp_provider::settings::{GpuSize, NodeUpgrade, Spot, Weekday};
    use textnlp_provider::units::{Bytes, Cores, TimeOfDay};

    use super::*;

    pub(crate) fn site(protect_data: bool) -> Site {
        Site {
            environment: "staging".parse().unwrap(),
            name: "main".parse().unwrap(),
            account: "my-project".to_owned(),
            region: "europe-west1".to_owned(),
            runtime: Runtime::Kubernetes,
            role: None,
            tags: BTreeMap::from([("team".to_owned(), "text".to_owned())]),
            protect_data,
            cluster: None,
            subnets: Vec::new(),
            maintenance: None,
        }
    }

    pub(crate) fn component(name: &str, part: ComponentSpec) -> Component {
        Component { name: name.parse().unwrap(), existing: None, part }
    }

    fn expand(part: ComponentSpec, name: &str, protect_data: bool) -> BTreeMap<String, Wanted> {
        let wanted = lower(&component(name, part), &site(protect_data)).unwrap();
        wanted.into_iter().map(|one| (one.id.to_string(), one)).collect()
    }

    #[test]
    fn gke_needs_half_a_day_of_maintenance_a_week() {
        let lower_with = |hours| {
            let maintenance = Some(MaintenanceWindow { day: Weekday::Sunday, at: TimeOfDay(180), hours });
            let cluster = Cluster::of("network".parse().unwrap());
            lower(&component("cluster", ComponentSpec::Cluster(cluster)), &Site { maintenance, ..site(false) })
        };
        lower_with(12).unwrap();
        let problems = lower_with(4).unwrap_err().to_string();
        assert!(problems.contains("set `maintenance.hours: 12` or more"), "{problems}");
    }

    #[test]
    fn network_has_ranges_and_a_nat() {
        let all = expand(ComponentSpec::Network(Network::default()), "network", false);
        let ids: Vec<&str> = all.keys().map(String::as_str).collect();
        assert_eq!(ids, ["main/network/router", "main/network/services", "main/network/subnet", "main/network/vpc"]);
        let subnet = all["main/network/subnet"].spec.as_value();
        assert_eq!(subnet["cidr"], "10.42.0.0/20");
        assert_eq!(subnet["ranges"], json!({ "pods": "10.42.128.0/17", "services": "10.42.16.0/20" }));
        assert_eq!(subnet["network"], json!({ "$output": "main/network/vpc#id" }));
        assert_eq!(all["main/network/vpc"].spec.as_value()["tags"], json!({}), "a network has no labels");
        assert!(all["main/network/vpc"].needs.iter().any(|need| need.on.as_str() == "main/network/services"));
    }

    #[test]
    fn an_existing_network_is_one_of_the_project() {
        let of = |existing: Option<&str>, subnets: &[&str], cidr: Option<&str>| {
            let network = Network { cidr: cidr.map(str::to_owned), ..Network::default() };
            let existing = existing.map(|id| CloudId::new(id).unwrap());
            let component = Component { existing, ..component("network", ComponentSpec::Network(network)) };
            let subnets = subnets.iter().map(|id| CloudId::new(*id).unwrap()).collect();
            lower(&component, &Site { subnets, ..site(false) })
        };
        let vpc = "projects/my-project/global/networks/company";
        let subnet = "projects/my-project/regions/europe-west1/subnetworks/nodes";
        let external = |id: &str| Ownership::External(CloudId::new(id).unwrap());
        for (network, subnetwork) in [("company", "nodes"), (vpc, subnet), ("company", "nodes:gke-pods:gke-services")] {
            let all = of(Some(network), &[subnetwork], None).unwrap();
            let found: Vec<_> = all.iter().map(|one| (one.id.to_string(), one.ownership.clone())).collect();
            let expected = [("services", Ownership::Ours), ("vpc", external(vpc)), ("subnet", external(subnet))];
            assert_eq!(found, expected.map(|(part, ownership)| (format!("main/network/{part}"), ownership)));
        }
        let elsewhere = "projects/my-project/regions/us-east1/subnetworks/nodes";
        for (existing, subnets, cidr, says) in [
            (Some("projects/host/global/networks/company"), vec!["nodes"], None, "Shared VPC"),
            (Some("company"), vec![], None, "0 are set"),
            (Some("company"), vec!["nodes", "pods"], None, "2 are set"),
            (Some("company"), vec![elsewhere], None, "no subnetwork"),
            (Some("company"), vec!["nodes:gke-pods"], None, "no subnetwork"),
            (Some("company"), vec!["nodes"], Some("10.0.0.0/16"), "its own address range"),
            (None, vec!["nodes"], None, "need their existing network"),
        ] {
            let problems = of(existing, &subnets, cidr).unwrap_err().to_string();
            assert!(problems.contains(says), "{says}: {problems}");
        }
        let cluster = component("cluster", ComponentSpec::Cluster(Cluster::of("network".parse().unwrap())));
        let site = Site { subnets: vec![CloudId::new("nodes:gke-pods:gke-services").unwrap()], ..site(false) };
        let all = lower(&cluster, &site).unwrap();
        let main = all.iter().find(|one| one.id.as_str() == "main/cluster").unwrap().spec.as_value();
        assert_eq!((&main["pods"], &main["services"]), (&json!("gke-pods"), &json!("gke-services")));
        let router = |one: &Wanted| one.needs.iter().any(|need| need.on.as_str() == "main/network/router");
        assert!(!all.iter().any(router), "it has none");
    }

    #[test]
    fn cluster_has_pools_of_its_own() {
        let pool = GpuPool { spot: Spot::Prefer, ..GpuPool::of(GpuSize::Small, 2) };
        let cluster = Cluster { gpu: Some(pool), ..Cluster::of("network".parse().unwrap()) };
        let all = expand(ComponentSpec::Cluster(cluster), "cluster", true);
        let gpu = &all["main/cluster/gpu-nodes"];
        let spec = gpu.spec.as_value();
        assert_eq!(spec["machine"], "n1-standard-4");
        assert_eq!(spec["accelerator"], json!({ "type": "nvidia-tesla-t4", "count": 1 }));
        assert_eq!(spec["zones"], json!(["europe-west1-b", "europe-west1-c", "europe-west1-d"]));
        assert_eq!(spec["markets"], json!(["spot", "on-demand"]));
        assert_eq!(spec["tags"], json!({ "team": "text" }));
        let surges = |pool: &str| {
            let upgrade = all[pool].spec.as_value()["upgrade"].clone();
            (upgrade["max_surge"].as_u64(), upgrade["max_unavailable"].as_u64())
        };
        assert_eq!(surges("main/cluster/gpu-nodes"), (Some(0), Some(1)), "no quota for another GPU is needed");
        assert_eq!(surges("main/cluster/system-nodes"), (Some(1), Some(0)));
        // terraform-google-modules/terraform-google-kubernetes-engine#703: GKE adds the taint only beside another pool.
        assert!(gpu.needs.iter().any(|need| need.on.as_str() == "main/cluster/system-nodes"));
        let named = |name: &str, per_machine| {
            let gpu = GpuPool { machines: vec![name.to_owned()], per_machine, ..GpuPool::of(GpuSize::Large, 1) };
            let cluster = Cluster { gpu: Some(gpu), ..Cluster::of("network".parse().unwrap()) };
            let all = lower(&component("cluster", ComponentSpec::Cluster(cluster)), &site(false)).ok()?;
            let pool = all.into_iter().find(|one| one.id.as_str() == "main/cluster/gpu-nodes")?;
            Some(pool.spec.as_value()["accelerator"].clone())
        };
        assert_eq!(named("g2-standard-24", Some(2)), Some(json!({ "type": "nvidia-l4", "count": 2 })));
        assert_eq!((named("g2-standard-24", None), named("e2-standard-4", None)), (None, None));
        let strategy = |upgrade| {
            let gpu = GpuPool { upgrade: Some(upgrade), ..GpuPool::of(GpuSize::Large, 1) };
            let cluster = Cluster { gpu: Some(gpu), ..Cluster::of("network".parse().unwrap()) };
            let all = expand(ComponentSpec::Cluster(cluster), "cluster", false);
            let upgrade = &all["main/cluster/gpu-nodes"].spec.as_value()["upgrade"];
            (upgrade["strategy"].clone(), upgrade["max_surge"].clone())
        };
        assert_eq!(strategy(NodeUpgrade::Surge), (json!("SURGE"), json!(1)));
        assert_eq!(strategy(NodeUpgrade::BlueGreen), (json!("BLUE_GREEN"), json!(null)));
        let main = all["main/cluster"].spec.as_value();
        assert_eq!(main["key"], json!({ "$output": "main/models/key#id" }));
        assert_eq!(main["private_nodes"], json!(true));
        assert!(all.contains_key("main/cluster/key-access"));
        assert_eq!(all["main/cluster/disk-key-access"].spec.as_value()["member"], "agent:compute");
        for pool in ["main/cluster/system-nodes", "main/cluster/gpu-nodes"] {
            assert_eq!(all[pool].spec.as_value()["disk_key"], main["key"]);
            // The role is there first, also where another pool exists already.
            assert!(all[pool].needs.iter().any(|need| need.on.as_str() == "main/cluster/disk-key-access"), "{pool}");
        }
    }

    #[test]
    fn models_of_a_protected_site_have_a_key() {
        let store =
            || ComponentSpec::ModelStore(ModelStore { archive_after_days: Some(90), ..ModelStore::of(Vec::new()) });
        let open = expand(store(), "models", false);
        assert_eq!(open.keys().collect::<Vec<_>>(), ["main/models/bucket"]);
        let protected = expand(store(), "models", true);
        assert_eq!(protected.len(), 4);
        let bucket = &protected["main/models/bucket"];
        assert!(bucket.protected);
        assert_eq!(bucket.spec.as_value()["name"], "textnlp-my-project-staging-main-models");
        assert_eq!(bucket.spec.as_value()["lifecycle"][0]["class"], "ARCHIVE");
        assert!(bucket.needs.iter().any(|need| need.on.as_str() == "main/models/key-access"));
    }

    #[test]
    fn a_bucket_in_two_regions_has_a_location_and_a_key_of_these_regions() {
        let store = |region: &str, key: Option<&str>| {
            let replica = Some(ModelReplica { region: region.to_owned(), permission_boundary: None });
            let key = key.map(|id| CloudId::new(id).unwrap());
            component("models", ComponentSpec::ModelStore(ModelStore { replica, key, ..ModelStore::of(Vec::new()) }))
        };
        let all = lower(&store("europe-north1", None), &site(true)).unwrap();
        let one = |id: &str| all.iter().find(|one| one.id.as_str() == format!("main/models/{id}")).unwrap();
        let bucket = one("bucket").spec.as_value();
        assert_eq!((&bucket["location"], &bucket["rpo"]), (&json!("eu"), &json!("ASYNC_TURBO")));
        assert_eq!(bucket["regions"], json!(["europe-north1", "europe-west1"]), "in the order of their names");
        assert_eq!(bucket["key"], json!({ "$output": "main/models/replica-key#id" }));
        assert_eq!(one("replica-key-ring").spec.get("location"), Some(&json!("europe")));
        assert_eq!(
            one("key-ring").spec.get("location"),
            Some(&json!("europe-west1")),
            "for the other data of the site"
        );
        assert!(one("bucket").needs.iter().any(|need| need.on == one("replica-key-access").id));
        assert!(!all.iter().any(|one| one.id.as_str() == "main/models/key-access"));
        for region in ["europe-west1", "europe-west2", "us-east1", "europe-mars1"] {
            let problems = lower(&store(region, None), &site(false)).unwrap_err().to_string();
            assert!(problems.contains("replicate_to") && problems.contains(region), "{problems}");
        }
        let from = |own: &str, region: &str| {
            let site = Site { region: own.to_owned(), ..site(true) };
            lower(&store(region, None), &site)
        };
        let all = from("europe-north1", "europe-west4").unwrap();
        let one = |id: &str| all.iter().find(|one| one.id.as_str() == format!("main/models/{id}")).unwrap();
        let bucket = one("bucket").spec.as_value();
        assert_eq!((&bucket["location"], &bucket["regions"]), (&json!("eur4"), &Value::Null), "it states both regions");
        assert_eq!(bucket["rpo"], json!("ASYNC_TURBO"));
        assert_eq!(one("replica-key-ring").spec.get("location"), Some(&json!("eur4")));
        for (own, region, says) in [
            ("asia-northeast1", "asia-east1", "these regions: asia-northeast2;"),
            ("europe-west3", "europe-west10", "europe-west1, europe-west12, europe-west4,"),
            ("africa-south1", "europe-west1", "no second region is supported for africa-south1"),
        ] {
            let problems = from(own, region).unwrap_err().to_string();
            assert!(problems.contains("replicate_to") && problems.contains(says), "{problems}");
        }
        let existing =
            Component { existing: Some(CloudId::new("company-models").unwrap()), ..store("europe-north1", None) };
        let key = "projects/p/locations/europe-west1/keyRings/r/cryptoKeys/k";
        for (component, says) in
            [(existing, "an existing bucket"), (store("europe-north1", Some(key)), "an existing key")]
        {
            let problems = lower(&component, &site(true)).unwrap_err().to_string();
            assert!(problems.contains("replicate_to") && problems.contains(says), "{problems}");
        }
    }

    #[test]
    fn nodes_have_room_for_a_pod_of_the_servers() {
        let expand = |machine: Option<&str>, cpu: u32| {
            let pod = Some(Capacity { cpu: Cores(cpu), memory: Bytes(9 << 30) });
            let node_choice = NodeChoice { size: None, machine: machine.map(str::to_owned), pod };
            let cluster = ClusterSite { node_choice, ..ClusterSite::of("textnlp") };
            let site = Site { cluster: Some(Box::new(cluster)), ..site(false) };
            let cluster = component("cluster", ComponentSpec::Cluster(Cluster::of("network".parse().unwrap())));
            let general = crate::inside(&cluster, &site).unwrap().1.cluster.unwrap().nodes.unwrap().general;
            let all = lower(&cluster, &site).map_err(|problems| problems.to_string())?;
            let pool = all.into_iter().find(|one| one.id.as_str() == format!("main/cluster/{general}")).unwrap();
            let of = |field: &str| pool.spec.as_value()[field].clone();
            Ok::<_, String>([json!(general), of("name"), of("machine"), of("labels")["textnlp/pool"].clone()])
        };
        let pool = |words: [&str; 4]| Ok(words.map(|word| json!(word)));
        let usual = pool(["system-nodes", "system", "e2-standard-4", "system"]);
        assert_eq!(expand(None, 2100), usual);
        assert_eq!(expand(None, 3700), usual, "requests that run on the usual nodes today do not replace them");
        let medium = pool(["system-medium-nodes", "system-medium", "e2-standard-8", "system"]);
        assert_eq!(expand(None, 5100), medium);
        assert_eq!(expand(Some("e2-standard-8"), 5100), medium, "it is the machine of a size");
        let refused = expand(Some("e2-standard-4"), 5100).unwrap_err();
        assert!(refused.contains("`e2-standard-4` has at most 3920m CPU"), "{refused}");
        assert!(refused.contains("`cluster.node_size: medium`"), "{refused}");
        let refused = expand(None, 40_000).unwrap_err();
        assert!(refused.contains("40 CPU and 9216Mi memory"), "{refused}");
    }

    #[test]
    fn pods_read_models_of_the_bucket_of_their_site() {
        let lowered = |source: &str, existing: bool| {
            let store = ModelStore::of(vec![Model::of("mine", source)]);
            let cluster = ClusterSite { existing, ..ClusterSite::of("textnlp") };
            let site = Site { cluster: Some(Box::new(cluster)), ..site(false) };
            lower(&component("models", ComponentSpec::ModelStore(store)), &site)
        };
        let own = "gs://textnlp-my-project-staging-main-models/team/sha256-ab/";
        let reader = |all: Vec<Wanted>| all.into_iter().find(|one| one.id.as_str() == "main/models/reader");
        let made = reader(lowered(own, false).unwrap()).unwrap();
        assert_eq!(made.kind.as_str(), "gcp.bucket-binding");
        let spec = made.spec.as_value();
        assert_eq!(spec["target"], json!({ "$output": "main/models/bucket#id" }));
        assert_eq!(
            (&spec["role"], &spec["member"]),
            (&json!("roles/storage.objectViewer"), &json!("pods:textnlp/textnlp-models"))
        );
        assert!(made.needs.iter().any(|need| need.on.as_str() == "main/cluster"), "{:?}", made.needs);
        assert!(reader(lowered("hf:org/name", false).unwrap()).is_none());
        assert!(reader(lowered(own, true).unwrap()).is_none(), "an existing cluster is never changed");
        let other = lowered("gs://others/x/", false).unwrap_err().to_string();
        assert!(
            other.contains("the bucket others") && other.contains("gs://textnlp-my-project-staging-main-models/"),
            "{other}"
        );
    }

    #[test]
    fn pods_read_models_of_an_existing_bucket() {
        let component = |existing: &str, source: &str, archive_after_days: Option<u32>| {
            let models = vec![Model::of("mine", source)];
            let store = ModelStore { archive_after_days, ..ModelStore::of(models) };
            let component = component("models", ComponentSpec::ModelStore(store));
            Component { existing: Some(CloudId::new(existing).unwrap()), ..component }
        };
        let site = Site { cluster: Some(Box::new(ClusterSite::of("textnlp"))), ..site(false) };
        let id = "projects/_/buckets/company-models";
        for existing in ["company-models", "gs://company-models", id] {
            for source in ["bucket:team/", "gs://company-models/team/"] {
                let component = component(existing, source, None);
                let all = lower(&component, &site).unwrap();
                let of = |part: &str| all.iter().find(|one| one.id.as_str() == part).unwrap();
                assert_eq!(of("main/models/bucket").ownership, Ownership::External(CloudId::new(id).unwrap()));
                let reader = of("main/models/reader");
                assert_eq!(reader.spec.get("target"), Some(&json!(id)));
                for need in ["main/models/bucket", "main/cluster"] {
                    assert!(reader.needs.iter().any(|one| one.on.as_str() == need), "{:?}", reader.needs);
                }
                let inside = crate::inside(&component, &site).unwrap().1.cluster.unwrap().bucket_identity;
                assert_eq!(inside.unwrap().own, "gs://company-models/");
            }
        }
        for (existing, source, days, says) in [
            ("gs://company-models/", "bucket:team/", None, "`company-models/` is not the name of a bucket"),
            ("Company", "bucket:team/", None, "`Company` is not the name of a bucket"),
            ("company-models", "gs://others/team/", None, "gs://company-models/"),
            ("company-models", "bucket:team/", Some(90), "an existing bucket is never changed"),
        ] {
            let problems = lower(&component(existing, source, days), &site).unwrap_err().to_string();
            assert!(problems.contains(says), "{problems}");
        }
    }

    #[test]
    fn registry_of_another_host_is_the_operators() {
        let registry = |url: &str, image: Option<&str>| {
            ComponentSpec::Registry(Registry { url: url.to_owned(), image: image.map(str::to_owned) })
        };
        let own = "europe-west1-docker.pkg.dev/my-project/textnlp";
        let all = expand(registry(own, None), "registry", false);
        assert_eq!(all["main/registry/repository"].spec.as_value()["name"], "textnlp");
        assert!(expand(registry("ghcr.io/team/textnlp", None), "registry", false).is_empty());
        let image = Some("x:1@sha256:0");
        let no_image_name = lower(&component("registry", registry(own, image)), &site(false)).unwrap_err();
        assert!(no_image_name.to_string().contains("textnlp/server"), "{no_image_name}");
        assert!(lower(&component("registry", registry("ghcr.io/team/textnlp", image)), &site(false)).is_err());
        let all = expand(registry(&format!("{own}/server"), image), "registry", false);
        assert_eq!(all["main/registry/repository"].spec.as_value()["images"], json!(["server:1@sha256:0"]));
    }

    #[test]
    fn tags_that_are_no_labels_are_refused() {
        let mut site = site(false);
        site.tags = BTreeMap::from([("Team".to_owned(), "text".to_owned())]);
        let registry = Registry { url: "europe-west1-docker.pkg.dev/my-project/textnlp".to_owned(), image: None };
        let problems = lower(&component("registry", ComponentSpec::Registry(registry)), &site).unwrap_err();
        assert!(problems.to_string().contains("Team"), "{problems}");
    }

    #[test]
    fn a_site_without_a_project_is_refused() {
        let site = Site { account: String::new(), ..site(false) };
        let problems = lower(&component("network", ComponentSpec::Network(Network::default())), &site).unwrap_err();
        assert!(problems.to_string().contains("sites[].account"), "{problems}");
    }
}
