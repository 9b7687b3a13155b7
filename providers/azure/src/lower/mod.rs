//! Expansion of components into resources of Azure. Pure: addresses and ids that only Azure knows are references.
//!
//! | component | resources |
//! |---|---|
//! | network | `SITE/network/group`: the resource group of the site, with everything else in it; `provider-N`: the registered resource
//! providers; `vnet`, `address`, `nat`, `subnet` of the nodes, `database-subnet`. With an existing network `group` and `provider-N`, and
//! `vnet`, `subnet` and, if it is named, `database-subnet` are existing too |
//! | model store | `SITE/models/account`, `container`: the blobs of your models, or only `container` where it is an existing one; `lifecycle`: the
//! rule that moves them to a cheaper tier; `reader-identity`, `reader-role` and `reader` for pods that read
//! them; where data is protected `vault` and `key` |
//! | cluster | `SITE/cluster`: the control plane with its system pool; `identity`, `network-role`: what it may do; `key-role` where data is protected; `upgrades` and `node-upgrades`: its maintenance windows; `nodes`, of other machines than the usual ones `nodes-medium` and the like; `gpu-nodes` with GPUs. An existing cluster is read only |
//! | registry | `SITE/registry/registry`, `repository` for an image that is pushed, and `pull`, if its address is one of Azure |
//! | database | `SITE/database/zone`, `zone-link`: its names in the network; `server`, `instance`: the PostgreSQL and its database; `remote`: the
//! replica in another region, with `remote-group`, `remote-network`, `remote-subnet`, `remote-zone`, `remote-link` of its own, and what
//! connects the two networks: `peering`, `remote-peering`, `zone-remote-link`, `remote-zone-link` |
//! | cache | `SITE/cache/redis`, `group`: a managed cache of vectors and its database; `endpoint`, `names`, `zone`, `zone-link`: its address and
//! its name in the network; `provider`: its registered resource provider |
//! | inference endpoint | `SITE/server/group`, `provider-N`: as of a network, which such a site does not have; `identity`: what the servers run
//! as; `storage`, `storage-role`, `vault`: what a workspace has; `workspace`, `environment`, `endpoint`, `deployment`, `autoscale` if there
//! is a maximum, and `traffic` |
//! | endpoint | `SITE/gateway/record`, `tenants-record`: the names that clients use, in an existing zone; with several sites `traffic`, the
//! site in the profile that answers for them, and `name`, the site's own name |
//! | monitoring | `SITE/monitoring/mailboxes`: the action group; `alert-NAME`: metric alerts; `overview`, a workbook, with a
//! stack; `insights`: their registered provider; `budget` with its registered `provider`: the cost budget, if there is one |

mod cache;
mod cluster;
mod database;
mod dns;
mod models;
mod monitoring;
mod network;
mod registry;
mod serving;

pub(crate) use cluster::NODES_PART;
pub(crate) use dns::NOTICES_AFTER;
pub(crate) use models::bucket_identity;
pub use models::models_container;
use serde_json::{Value, json};
use textnlp_provider::component::ComponentSpec;
use textnlp_provider::settings::Runtime;
use textnlp_provider::spec::OutputRef;
use textnlp_provider::{
    Component, ComponentName, DataClass, KindName, Need, Ownership, Problem, Problems, ResourceId, Site, Spec, Wanted,
};

use crate::{names, table};

/// The components that others refer to.
const NETWORK: &str = "network";
const MODELS: &str = "models";
const SERVER: &str = "server";
/// The part of the servers that is their identity.
const SERVER_IDENTITY: &str = "identity";
/// The most tags of an object, of which this program needs four: private DNS zones have 15 (Azure/azure-rest-api-specs#13600).
const MOST_TAGS: usize = 15 - 4;
/// Characters that no key of a tag has: <https://learn.microsoft.com/azure/azure-resource-manager/management/tag-resources>.
const NOT_IN_KEYS: &str = "<>%&\\?/ ()";

/// Expands a component into the resources of its site's subscription and region.
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
        ComponentSpec::InferenceEndpoint(endpoint) => lowering.serving(endpoint),
        ComponentSpec::Monitoring(monitoring) => lowering.monitoring(monitoring),
        // Objects inside of the cluster, and secrets and certificates on the operator's machine, are other providers'.
        _ => {}
    }
    if !lowering.wanted.is_empty() {
        lowering.check_site();
    }
    if lowering.problems.is_empty() { Ok(lowering.wanted) } else { Err(Problems(lowering.problems)) }
}

/// Expands the records of a site that is at another provider, in a zone of Azure DNS.
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
    /// Whether the site is at another provider: it has no subscription.
    is_elsewhere: bool,
    wanted: Vec<Wanted>,
    problems: Vec<Problem>,
}

impl Lowering<'_> {
    fn check_site(&mut self) {
        if !table::is_bound(self.site) {
            let cause = "the subscription is a part of every id, and it is not known";
            self.problem("account", cause, "set `sites[].account` to the subscription id");
        }
        let tags = &self.site.tags;
        if tags.len() > MOST_TAGS {
            let cause = format!("{} tags are set, and an object has room for {MOST_TAGS}", tags.len());
            self.problem("tags", cause, "remove some of them");
        }
        let fits = |key: &str, value: &str| {
            !key.is_empty()
                && key.len() <= 128
                && value.len() <= 256
                && !key.chars().any(|c| NOT_IN_KEYS.contains(c))
                && !key.starts_with(|c: char| c.is_ascii_digit())
        };
        for (key, value) in tags.iter().filter(|(key, value)| !fits(key, value)) {
            let shown: String = format!("{key}: {value}").chars().take(80).collect();
            let fix = "use at most 128 letters, digits, `-`, `_` and `.` in keys, and 256 characters in values";
            self.problem("tags", format!("`{shown}` is no tag of Azure"), fix);
        }
    }

    /// Adds the resource `SITE/COMPONENT`.
    fn main(&mut self, kind: &'static str, spec: Value, ownership: Ownership) -> ResourceId {
        let id = ResourceId::of(&self.site.name, &self.component.name);
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
        let name = KindName::new(kind).expect("the names in the table are kind names");
        let row = table::row(&name);
        let carries_tags = row.is_some_and(|row| row.resource.carries_tags());
        spec["tags"] = if carries_tags { json!(self.site.tags) } else { json!({}) };
        let spec = Spec::of(&spec);
        let needs = spec.outputs_needed().iter().map(|output| Need::on(output.resource.clone())).collect();
        let is_precious = row.is_some_and(|row| row.kind.data == DataClass::Precious);
        let (site, protected) = (self.site.name.clone(), is_precious && self.site.protect_data);
        let is_in_group = spec.get("group").is_some_and(|group| *group == json!(names::group(self.site)))
            && ownership == Ownership::Ours;
        self.wanted.push(Wanted { id, kind: name, site, via: None, spec, needs, ownership, protected });
        if is_in_group {
            self.after(self.part_of(self.first(), "group"));
        }
    }

    /// The component with the group of the site and its registered resource providers.
    fn first(&self) -> &'static str {
        if is_served(self.site) { SERVER } else { NETWORK }
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

    /// Attributes of an object in the group and region of the site.
    fn of_group(&self, mut spec: Value) -> Value {
        spec["group"] = json!(names::group(self.site));
        spec["location"] = json!(self.site.region);
        spec
    }

    /// The same for one that is in no region.
    fn of_world(&self, mut spec: Value) -> Value {
        spec["group"] = json!(names::group(self.site));
        spec
    }

    /// A role of a principal on a scope.
    fn role(&mut self, part: &str, scope: &Value, role: &str, principal: &Value) -> Option<ResourceId> {
        let spec =
            json!({ "scope": scope, "role": role, "principal": principal, "principal_type": "ServicePrincipal" });
        self.part(part, "azure.assignment", spec)
    }

    /// A part of another component.
    fn part_of(&self, component: &str, part: &str) -> Option<ResourceId> {
        ResourceId::part(&self.site.name, &ComponentName::new(component).ok()?, part).ok()
    }

    /// A reference to an output of a part of another component.
    fn output_of(&self, component: &str, part: &str, field: &str) -> Value {
        self.part_of(component, part).map_or(Value::Null, |id| output(&id, field))
    }
}

/// Whether Azure Machine Learning runs the servers of a site, without a cluster and a network.
fn is_served(site: &Site) -> bool {
    site.runtime == Runtime::AzureMl
}

/// A reference to an output.
fn output(resource: &ResourceId, field: &str) -> Value {
    json!(OutputRef::new(resource.clone(), field))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use textnlp_provider::CloudId;
    use textnlp_provider::cluster::{Capacity, ClusterGpus, ClusterSite, NodeChoice};
    use textnlp_provider::component::{Cluster, GpuPool, Model, ModelReplica, ModelStore, Network, Registry};
    use textnlp_provider::settings::{GpuSize, Spot};
    use textnlp_provider::units::{Bytes, Cores};

    use super::*;

    pub(crate) fn site(protect_data: bool) -> Site {
        Site {
            environment: "staging".parse().unwrap(),
            name: "main".parse().unwrap(),
            account: "00000000-1111-4222-8333-444444444444".to_owned(),
            region: "westeurope".to_owned(),
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
        let wanted = lower(&component(name, part), &site(protect_data)).unwrap_or_else(|problems| panic!("{problems}"));
        wanted.into_iter().map(|one| (one.id.to_string(), one)).collect()
    }

    #[test]
    fn network_has_ranges_and_a_nat() {
        let all = expand(ComponentSpec::Network(Network::default()), "network", false);
        let spec = |id: &str| all[id].spec.as_value().clone();
        assert_eq!(spec("main/network/vnet")["cidr"], "10.42.0.0/17");
        assert_eq!(spec("main/network/subnet")["cidr"], "10.42.0.0/18");
        assert_eq!(spec("main/network/subnet")["nat"], json!({ "$output": "main/network/nat#id" }));
        let database = spec("main/network/database-subnet");
        assert_eq!(database["cidr"], "10.42.64.0/24");
        assert_eq!(database["delegation"], "Microsoft.DBforPostgreSQL/flexibleServers");
        let needs = |id: &str, on: &str| all[id].needs.iter().any(|need| need.on.as_str() == on);
        assert!(needs("main/network/vnet", "main/network/group"));
        // One writer of a network tree at a time (hashicorp/terraform-provider-azurerm#3780).
        assert!(needs("main/network/database-subnet", "main/network/subnet"));
        assert_eq!(spec("main/network/group")["name"], "textnlp-staging-main");
    }

    #[test]
    fn an_existing_network_is_one_of_the_subscription() {
        let of = |existing: Option<&str>, subnets: &[&str], cidr: Option<&str>| {
            let network = Network { cidr: cidr.map(str::to_owned), ..Network::default() };
            let existing = existing.map(|id| CloudId::new(id).unwrap());
            let component = Component { existing, ..component("network", ComponentSpec::Network(network)) };
            let subnets = subnets.iter().map(|id| CloudId::new(*id).unwrap()).collect();
            lower(&component, &Site { subnets, ..site(false) })
        };
        let id = |subscription: &str| {
            format!(
                "/subscriptions/{subscription}/resourceGroups/shared/providers/Microsoft.Network/virtualNetworks/company"
            )
        };
        let vnet = id(&site(false).account);
        let (nodes, database) = (format!("{vnet}/subnets/aks"), format!("{vnet}/subnets/postgres"));
        let external = |id: &str| Ownership::External(CloudId::new(id).unwrap());
        for subnets in [[nodes.as_str(), database.as_str()], ["aks", "postgres"]] {
            let all = of(Some(vnet.as_str()), &subnets, None).unwrap_or_else(|problems| panic!("{problems}"));
            let found: Vec<_> = all
                .iter()
                .filter(|one| one.ownership != Ownership::Ours)
                .map(|one| (one.id.to_string(), one.ownership.clone()))
                .collect();
            let expected =
                [("vnet", external(&vnet)), ("subnet", external(&nodes)), ("database-subnet", external(&database))];
            assert_eq!(found, expected.map(|(part, ownership)| (format!("main/network/{part}"), ownership)));
            assert!(all.iter().any(|one| one.id.as_str() == "main/network/group"), "the group is the site's");
        }
        let other = id("other");
        for (existing, subnets, cidr, says) in [
            (Some("company"), vec!["aks"], None, "not the id of a virtual network"),
            (Some(other.as_str()), vec!["aks"], None, "not the id of a virtual network"),
            (Some(vnet.as_str()), vec![], None, "0 are set"),
            (Some(vnet.as_str()), vec!["a", "b", "c"], None, "3 are set"),
            (Some(vnet.as_str()), vec!["other/subnets/aks"], None, "no subnet of the existing network"),
            (Some(vnet.as_str()), vec!["aks"], Some("10.0.0.0/16"), "its own address range"),
            (None, vec!["aks"], None, "need their existing network"),
        ] {
            let problems = of(existing, &subnets, cidr).unwrap_err().to_string();
            assert!(problems.contains(says), "{says}: {problems}");
        }
        let cluster = |allow_from: Option<Vec<String>>| {
            let cluster = Cluster { allow_from, ..Cluster::of("network".parse().unwrap()) };
            let site = Site { subnets: vec![CloudId::new("aks").unwrap()], ..site(false) };
            lower(&component("cluster", ComponentSpec::Cluster(cluster)), &site)
        };
        let all = cluster(None).unwrap();
        let role = all.iter().find(|one| one.id.as_str() == "main/cluster/network-role").unwrap();
        assert_eq!(role.spec.get("scope"), Some(&json!({ "$output": "main/network/subnet#id" })));
        let main = all.iter().find(|one| one.id.as_str() == "main/cluster").unwrap();
        assert_eq!(main.spec.get("pods"), Some(&json!("100.64.0.0/16")));
        let open = cluster(Some(Vec::new())).unwrap_err().to_string();
        assert!(open.contains("an empty list is every network"), "{open}");
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
        let usual = pool(["nodes", "cpu", "Standard_D4s_v5", "cpu"]);
        assert_eq!(expand(None, 2100), usual);
        assert_eq!(expand(None, 3600), usual, "requests that run on the usual nodes today do not replace them");
        assert_eq!(expand(None, 5100), pool(["nodes-medium", "cpumedium", "Standard_D8s_v5", "cpu"]));
        let refused = expand(Some("Standard_D2s_v5"), 1100).unwrap_err();
        assert!(refused.contains("`Standard_D2s_v5` has at most 1900m CPU"), "{refused}");
        assert!(refused.contains("`cluster.node_size: small`"), "{refused}");
    }

    #[test]
    fn pods_reach_the_nodes_with_gpus_that_the_site_creates() {
        let gpu = |existing| ClusterGpus {
            count: 2,
            existing,
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            device_plugin: false,
        };
        let inside = |existing| {
            let cluster = component("cluster", ComponentSpec::Cluster(Cluster::of("network".parse().unwrap())));
            let cluster_site = ClusterSite { gpu: Some(gpu(existing)), ..ClusterSite::of("textnlp") };
            let site = Site { cluster: Some(Box::new(cluster_site)), ..site(false) };
            crate::inside(&cluster, &site).unwrap().1.cluster.unwrap().gpu.unwrap()
        };
        let found = inside(false);
        assert!(found.device_plugin, "AKS has none");
        let pool = ComponentSpec::Cluster(Cluster {
            gpu: Some(GpuPool { spot: Spot::Only, ..GpuPool::of(GpuSize::Small, 2) }),
            ..Cluster::of("network".parse().unwrap())
        });
        let pool = expand(pool, "cluster", false)["main/cluster/gpu-nodes"].spec.as_value()["labels"].clone();
        assert_eq!(pool, json!(found.node_selector), "the label that its nodes have");
        assert_eq!(found.tolerations[0].key.as_deref(), Some("kubernetes.azure.com/scalesetpriority"));
        assert_eq!(inside(true), gpu(true), "nodes of an existing cluster are its operator's");
    }

    #[test]
    fn cluster_has_pools_of_its_own() {
        let pool = GpuPool { spot: Spot::Prefer, ..GpuPool::of(GpuSize::Small, 2) };
        let cluster = Cluster { gpu: Some(pool), ..Cluster::of("network".parse().unwrap()) };
        let all = expand(ComponentSpec::Cluster(cluster), "cluster", true);
        let gpu = all["main/cluster/gpu-nodes"].spec.as_value();
        assert_eq!(gpu["machine"], "Standard_NC4as_T4_v3");
        assert_eq!(gpu["zones"], json!(["1", "2", "3"]));
        assert_eq!(gpu["markets"], json!(["spot", "on-demand"]));
        assert_eq!(gpu["tags"], json!({ "team": "text" }));
        let named = |name: &str, per_machine| {
            let gpu = GpuPool { machines: vec![name.to_owned()], per_machine, ..GpuPool::of(GpuSize::Large, 1) };
            let cluster = Cluster { gpu: Some(gpu), ..Cluster::of("network".parse().unwrap()) };
            let all = lower(&component("cluster", ComponentSpec::Cluster(cluster)), &site(false)).ok()?;
            let pool = all.into_iter().find(|one| one.id.as_str() == "main/cluster/gpu-nodes")?;
            Some(pool.spec.as_value()["machine"].clone())
        };
        let two = "Standard_NC80adis_H100_v5";
        assert_eq!(named(two, Some(2)), Some(json!(two)));
        assert_eq!((named(two, None), named("Standard_D4s_v5", None)), (None, None));
        let main = all["main/cluster"].spec.as_value();
        assert_eq!(main["key"], json!({ "$output": "main/models/key#uri" }));
        assert_eq!(main["services"], json!({ "$output": "main/network/vnet#services" }));
        assert_eq!(main["deployer_access"], json!(true));
        assert!(all["main/cluster"].needs.iter().any(|need| need.on.as_str() == "main/cluster/network-role"));
    }

    #[test]
    fn models_of_a_protected_site_have_a_vault() {
        let store = || ComponentSpec::ModelStore(ModelStore::of(Vec::new()));
        let open = expand(store(), "models", false);
        assert_eq!(open.keys().collect::<Vec<_>>(), ["main/models/account", "main/models/container"]);
        let protected = expand(store(), "models", true);
        assert_eq!(protected.len(), 4);
        assert!(protected["main/models/container"].protected);
    }

    #[test]
    fn models_are_copied_to_another_region_in_a_group_of_its_own() {
        let lowered = |region: &str, existing: Option<&str>| {
            let replica = ModelReplica { region: region.to_owned(), permission_boundary: None };
            let store = ModelStore { replica: Some(replica), ..ModelStore::of(Vec::new()) };
            let existing = existing.map(|id| CloudId::new(id).unwrap());
            lower(&Component { existing, ..component("models", ComponentSpec::ModelStore(store)) }, &site(false))
        };
        let all = lowered("northeurope", None).unwrap();
        let one = |id: &str| all.iter().find(|one| one.id.as_str() == format!("main/models/{id}")).unwrap();
        let account = one("replica-account").spec.as_value();
        assert!(account["group"].as_str().unwrap().ends_with("-models-remote"), "{account}");
        assert_ne!(account["name"], one("account").spec.as_value()["name"]);
        let feeds = ["account", "replica-account"].map(|id| one(id).spec.as_value()["change_feed"].clone());
        assert_eq!(feeds, [json!(true), json!(false)]);
        let needs = |id: &str, on: &str| one(id).needs.iter().any(|need| need.on == one(on).id);
        assert!(needs("replica-policy", "container") && needs("replica-policy", "replica-container"));
        assert!(needs("policy", "replica-policy") && needs("replica-account", "replica-group"));
        let container = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/a/blobServices/default/containers/c";
        for (region, existing) in [("westeurope", None), ("West Europe", None), ("northeurope", Some(container))] {
            let refused = lowered(region, existing).unwrap_err().to_string();
            assert!(refused.contains("main/models replicate_to"), "{refused}");
        }
    }

    #[test]
    fn models_are_archived_by_a_rule_of_each_account() {
        let lowered = |days: Option<u32>, existing: Option<&str>| {
            let replica = existing
                .is_none()
                .then(|| ModelReplica { region: "northeurope".to_owned(), permission_boundary: None });
            let store = ModelStore { replica, archive_after_days: days, ..ModelStore::of(Vec::new()) };
            let existing = existing.map(|id| CloudId::new(id).unwrap());
            lower(&Component { existing, ..component("models", ComponentSpec::ModelStore(store)) }, &site(false))
        };
        let rules = |days| {
            let all = lowered(days, None).unwrap();
            let all = all.into_iter().filter(|one| one.kind.as_str() == "azure.lifecycle");
            all.map(|one| (one.id.to_string(), one.spec.as_value().clone())).collect::<BTreeMap<String, Value>>()
        };
        let expected = [("lifecycle", "account"), ("replica-lifecycle", "replica-account")].map(|(part, account)| {
            let account = json!({ "$output": format!("main/models/{account}#id") });
            let rule = json!({ "container": "models", "cold_after_days": 90 });
            (format!("main/models/{part}"), json!({ "account": account, "rule": rule, "tags": {} }))
        });
        assert_eq!((rules(Some(90)), rules(None)), (BTreeMap::from(expected), BTreeMap::new()));
        let container = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Storage/storageAccounts/a/blobServices/default/containers/c";
        let refused = lowered(Some(90), Some(container)).unwrap_err().to_string();
        assert!(refused.contains("main/models archive_after") && refused.contains("never changed"), "{refused}");
        assert!(lowered(None, Some(container)).is_ok());
    }

    #[test]
    fn pods_read_models_of_the_container_of_their_site() {
        let lowered = |source: &str, existing: bool| {
            let store = ModelStore::of(vec![Model::of("mine", source)]);
            let cluster = ClusterSite { existing, ..ClusterSite::of("textnlp") };
            let site = Site { cluster: Some(Box::new(cluster)), ..site(false) };
            let component = component("models", ComponentSpec::ModelStore(store));
            let inside = crate::inside(&component, &site).unwrap().1.cluster.unwrap().bucket_identity;
            (lower(&component, &site), inside)
        };
        let (made, inside) = lowered("az://models/team/sha256-ab/", false);
        let made: BTreeMap<String, Wanted> = made.unwrap().into_iter().map(|one| (one.id.to_string(), one)).collect();
        let spec = |part: &str| made[&format!("main/models/{part}")].spec.as_value().clone();
        let credential = spec("reader");
        assert_eq!(credential["issuer"], json!({ "$output": "main/cluster#issuer" }));
        assert_eq!(credential["subject"], "system:serviceaccount:textnlp:textnlp-models");
        assert_eq!(spec("reader-role")["scope"], json!({ "$output": "main/models/container#id" }));
        let inside = inside.unwrap();
        assert_eq!(
            inside.variables["AZURE_STORAGE_ACCOUNT_NAME"],
            json!({ "$output": "main/models/container#account" })
        );
        assert_eq!(inside.variables["AZURE_CLIENT_ID"], json!({ "$output": "main/models/reader-identity#client" }));
        assert_eq!(json!([inside.token.unwrap().audience]), credential["audiences"]);
        let has_reader = |all: &[Wanted]| all.iter().any(|one| one.id.as_str().contains("reader"));
        assert!(!has_reader(&lowered("hf:org/name", false).0.unwrap()));
        let (made, inside) = lowered("az://models/team/", true);
        assert!(!has_reader(&made.unwrap()) && inside.is_none(), "an existing cluster is never changed");
        let other = lowered("az://others/x/", false).0.unwrap_err().to_string();
        assert!(other.contains("the container others") && other.contains("az://models/"), "{other}");
    }

    #[test]
    fn pods_read_models_of_an_existing_container() {
        let account = "/subscriptions/other/resourceGroups/shared/providers/Microsoft.Storage/storageAccounts/company";
        let id = format!("{account}/blobServices/default/containers/weights");
        let site = Site { cluster: Some(Box::new(ClusterSite::of("textnlp"))), ..site(false) };
        let component = |existing: &str, source: &str| {
            let store = ModelStore::of(vec![Model::of("mine", source)]);
            let component = component("models", ComponentSpec::ModelStore(store));
            Component { existing: Some(CloudId::new(existing).unwrap()), ..component }
        };
        for source in ["bucket:team/", "az://weights/team/"] {
            let component = component(&id, source);
            let all = lower(&component, &site).unwrap_or_else(|problems| panic!("{problems}"));
            let ids: Vec<&str> = all.iter().map(|one| one.id.as_str()).collect();
            let parts = ["container", "reader-identity", "reader-role", "reader"];
            assert_eq!(ids, parts.map(|part| format!("main/models/{part}")));
            assert_eq!(all[0].ownership, Ownership::External(CloudId::new(&id).unwrap()));
            assert_eq!(
                (all[0].spec.get("account"), all[0].spec.get("name")),
                (Some(&json!(account)), Some(&json!("weights")))
            );
            assert_eq!(all[2].spec.get("scope"), Some(&json!({ "$output": "main/models/container#id" })));
            let inside = crate::inside(&component, &site).unwrap().1.cluster.unwrap().bucket_identity;
            assert_eq!(inside.unwrap().own, "az://weights/");
        }
        for (existing, source, says) in [
            ("weights", "bucket:team/", "not the id of a container"),
            ("company/weights", "bucket:team/", "not the id of a container"),
            (account, "bucket:team/", "not the id of a container"),
            (&format!("{id}/blobs/x"), "bucket:team/", "not the id of a container"),
            (&id, "az://others/team/", "AZURE_STORAGE_ACCOUNT_NAME=company textnlp-deploy model push"),
        ] {
            let problems = lower(&component(existing, source), &site).unwrap_err().to_string();
            assert!(problems.contains(says), "{existing}: {problems}");
        }
    }

    #[test]
    fn registry_of_another_host_is_the_operators() {
        let registry = |url: &str, image: Option<&str>| {
            ComponentSpec::Registry(Registry { url: url.to_owned(), image: image.map(str::to_owned) })
        };
        let all = expand(registry("textnlpstaging.azurecr.io", None), "registry", false);
        assert_eq!(all["main/registry/registry"].spec.as_value()["name"], "textnlpstaging");
        assert!(all.contains_key("main/registry/pull"));
        assert!(expand(registry("ghcr.io/team/textnlp", None), "registry", false).is_empty());
        let pushed =
            registry("textnlpstaging.azurecr.io/text/nlp", Some("textnlpstaging.azurecr.io/text/nlp:1@sha256:0"));
        let all = expand(pushed, "registry", false);
        let repository = all["main/registry/repository"].spec.as_value();
        assert_eq!((&repository["name"], &repository["images"]), (&json!("text/nlp"), &json!(["1@sha256:0"])));
        for (url, says) in [
            ("textnlpstaging.azurecr.io", "names no repository"),
            ("textnlpstaging.azurecr.io/textnlp:1.0", "no name for a repository"),
            ("ghcr.io/team/textnlp", "is none"),
        ] {
            let refused = lower(&component("registry", registry(url, Some("x:1@sha256:0"))), &site(false));
            assert!(refused.unwrap_err().to_string().contains(says), "{url}");
        }
    }

    #[test]
    fn tags_and_subscriptions_are_checked() {
        let of = |change: fn(&mut Site)| {
            let mut site = site(false);
            change(&mut site);
            lower(&component("network", ComponentSpec::Network(Network::default())), &site).unwrap_err().to_string()
        };
        assert!(of(|site| drop(site.tags.insert("a/b".to_owned(), String::new()))).contains("a/b"));
        assert!(of(|site| site.tags = (0..12).map(|n| (format!("t{n}"), String::new())).collect()).contains("12 tags"));
        assert!(of(|site| site.account = String::new()).contains("sites[].account"));
    }
}
