//! What a simulated Google Cloud holds.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::bigquery::{Charge, QueryJob};
use super::problem::Problem;
use crate::clock::{Clock, Random, later};
use crate::{Capacity, Market, Timing};

/// How much time an operation stays readable after its end.
const OPERATION_RETENTION: Duration = Duration::from_secs(14 * 86_400);

/// A project.
#[derive(Clone, Debug)]
pub struct Project {
    /// Its id.
    pub id: String,
    /// Its number.
    pub number: String,
    /// Its APIs, and from when on each can be used.
    pub services: BTreeMap<String, Timestamp>,
    /// The billing account, such as `billingAccounts/…`.
    pub billing_account: Option<String>,
    /// The organisation's constraints that are enforced, such as `compute.requireOsLogin`.
    pub constraints: BTreeSet<String>,
    /// The list policies that are in effect, by the names of their constraints.
    pub lists: BTreeMap<String, Value>,
    /// Whether a cluster with Workload Identity was ever created.
    pub has_identity_pool: bool,
}

/// An object of an API. Its key is the service's name, `/`, and the name that paths carry.
#[derive(Clone, Debug)]
pub struct Object {
    /// As a read answers it.
    pub body: Value,
    /// Until when dependants are refused with `resourceNotReady`.
    pub busy_until: Timestamp,
    /// Whether no read shows it: it only blocks.
    pub is_hidden: bool,
    /// When it was created.
    pub created: Timestamp,
}

/// How an API tells of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Compute Engine's, by scope.
    Compute,
    /// Kubernetes Engine's.
    Container,
    /// Cloud SQL's.
    Sql,
    /// `google.longrunning`.
    LongRunning,
}

/// What an operation changes at its end: it gives the response, or the error.
pub(crate) type Effect = Box<dyn FnOnce(&mut Cloud) -> Result<Value, Value> + Send>;

/// An operation.
#[derive(Clone, Debug)]
pub struct Operation {
    /// How it is told of.
    pub family: Family,
    /// Its service and name, as the keys of objects.
    pub key: String,
    /// Its kind, such as `insert` or `CREATE_CLUSTER`.
    pub kind: String,
    /// The key of what it changes.
    pub target: String,
    /// Who asked for it.
    pub user: String,
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Option<Timestamp>,
    /// How it ended.
    pub result: Option<Result<Value, Value>>,
    /// Whether lists show it.
    pub is_hidden: bool,
    /// The message `metadata` of `google.longrunning`.
    pub metadata: Value,
}

/// A policy of a resource.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) body: Value,
    pub(crate) writes: u64,
    /// From when on each binding counts, by role and member.
    pub(crate) effective: BTreeMap<(String, String), Timestamp>,
}

/// Behaviour that varies, each from what public reports tell. Ranges are drawn from by the seed; with zero latency they
/// are nothing.
#[derive(Clone, Debug)]
pub struct Conduct {
    /// How long after its enablement an API still refuses calls (hashicorp/terraform-provider-google#8214).
    pub enablement_lag: Range<u64>,
    /// How long a new service account is not seen by all replicas (hashicorp/terraform-provider-google#15042).
    pub account_lag: Range<u64>,
    /// How long a grant has no effect (googleapis/google-auth-library-python#604).
    pub grant_lag: Range<u64>,
    /// How long a network or subnetwork refuses dependants after a change (terraform-google-modules/terraform-google-network#365).
    pub network_busy: Range<u64>,
    /// How long a cluster is not RUNNING after its operation is done (kubeflow/kubeflow#2392).
    pub running_gap: Range<u64>,
    /// How long a Cloud SQL instance is busy after its operation is done (hashicorp/terraform-provider-google#4370).
    pub sql_ghost: Range<u64>,
    /// How long the producer holds a service connection after the last instance (hashicorp/terraform-provider-google#16275).
    pub producer_hold: Range<u64>,
    /// How long the name of a service of Cloud Run is refused after its deletion (hashicorp/terraform-provider-google#7854).
    pub service_hold: Range<u64>,
    /// How long a bucket's name is refused after its deletion (GoogleCloudPlatform/mlops-with-vertex-ai#26).
    pub bucket_hold: Range<u64>,
    /// Above how many nodes of a cluster its control plane is resized (hashicorp/terraform-provider-google#1643); none never.
    pub resize_above: Option<i64>,
    /// Whether operations on several node pools of a cluster may run at a time (hashicorp/terraform-provider-google#15579).
    pub parallel_node_pools: bool,
    /// How many writers change a policy between the next reads and writes (hashicorp/terraform-provider-google#12512).
    pub foreign_writers: u32,
    /// The most requests of a project and service in a minute (hashicorp/terraform-provider-google#8360,
    /// hashicorp/terraform-provider-google#3782).
    pub requests_per_minute: Option<u32>,
    /// Whether the next enablement of APIs fails with an internal error (hashicorp/terraform-provider-google#14691).
    pub enablement_fails_once: bool,
}

impl Default for Conduct {
    fn default() -> Self {
        Self {
            enablement_lag: 0..600,
            account_lag: 0..60,
            grant_lag: 0..420,
            network_busy: 0..30,
            running_gap: 0..300,
            sql_ghost: 0..60,
            producer_hold: 0..4 * 86_400,
            service_hold: 0..120,
            bucket_hold: 0..120,
            resize_above: Some(5),
            parallel_node_pools: false,
            foreign_writers: 0,
            requests_per_minute: None,
            enablement_fails_once: false,
        }
    }
}

/// Everything that a simulated Google Cloud holds. Handlers change it, one request at a time.
pub struct Cloud {
    /// The projects by id.
    pub projects: BTreeMap<String, Project>,
    /// All objects by key.
    pub objects: BTreeMap<String, Object>,
    /// All operations by key.
    pub operations: BTreeMap<String, Operation>,
    /// Behaviour that varies.
    pub conduct: Conduct,
    /// How many machines can be had, by zone, machine type or accelerator type, and market.
    pub capacity: Capacity,
    /// Quotas that differ from the usual ones, by region (empty for global ones) and metric.
    pub quotas: BTreeMap<(String, String), f64>,
    /// The currency of the billing accounts.
    pub currency: String,
    /// The bytes that a query of an export of Cloud Billing reads.
    pub export_bytes: u64,
    /// How many answers say that a query of BigQuery is not complete.
    pub query_polls: u32,
    /// Permissions that the operator lacks.
    pub denied: BTreeSet<String>,
    /// The only permissions that the operator has; without this, it has all.
    pub allowed: Option<BTreeSet<String>>,
    /// The permissions that the operator's requests needed, each with whether none of them was refused for want of it.
    pub needed: BTreeMap<String, bool>,
    /// Names of deleted objects and until when they are refused, by key.
    pub burnt: BTreeMap<String, Timestamp>,
    /// Names of buckets that belong to other customers.
    pub foreign_buckets: BTreeSet<String>,
    /// Members of policies that do not exist, beside the projects' own service accounts.
    pub missing_members: BTreeSet<String>,
    /// Addresses of Google's own service accounts that exist.
    pub service_agents: BTreeSet<String>,
    /// The objects of buckets.
    pub blobs: crate::objects::Store,
    /// Keys of Cloud SQL's users who own objects of a database.
    pub owners: BTreeSet<String>,
    /// How many times the AUTH of an instance of Memorystore was switched on again, by its key.
    pub(crate) auth_switched_on: BTreeMap<String, u32>,
    /// Numbers and ids that follow from the seed.
    pub random: Random,
    /// What was pushed to registries of images.
    pub registry: crate::oci::Registry,
    /// What answers in place of the instances of Cloud Run and of the replicas of Vertex AI, if anything does.
    pub containers: Option<super::run::Containers>,
    /// Whether containers of new revisions of Cloud Run, and of new deployed models of Vertex AI, do not listen.
    pub mute: bool,
    /// What stands for new servers of Cloud SQL, if anything does.
    pub stand: Option<crate::postgres::Stand>,
    pub(crate) charges: Vec<Charge>,
    pub(crate) query_jobs: BTreeMap<String, QueryJob>,
    pub(crate) operator: String,
    /// The address of the simulator.
    pub(crate) front: String,
    /// The templates of the revisions that answer, by the keys of their services.
    pub(crate) serving: BTreeMap<String, Value>,
    pub(crate) policies: BTreeMap<String, Policy>,
    pub(crate) requests: BTreeMap<(String, String), (String, Value, String)>,
    pub(crate) endpoint: Option<(String, String)>,
    pub(crate) deleted_accounts: BTreeMap<String, (Object, Timestamp)>,
    pub(crate) visible_from: BTreeMap<String, Timestamp>,
    pub(crate) recent: BTreeMap<(String, String), Vec<Timestamp>>,
    pub(crate) timing: Timing,
    clock: Clock,
    deferred: BTreeMap<(Timestamp, u64), Action>,
    deferrals: u64,
}

type Action = Box<dyn FnOnce(&mut Cloud) + Send>;

impl Cloud {
    pub(crate) fn new(seed: u64, timing: Timing, operator: &str) -> Self {
        Self {
            projects: BTreeMap::new(),
            objects: BTreeMap::new(),
            operations: BTreeMap::new(),
            conduct: Conduct::default(),
            capacity: Capacity::default(),
            quotas: BTreeMap::new(),
            currency: "USD".to_owned(),
            export_bytes: 10 << 20,
            query_polls: 0,
            denied: BTreeSet::new(),
            allowed: None,
            needed: BTreeMap::new(),
            burnt: BTreeMap::new(),
            foreign_buckets: BTreeSet::new(),
            missing_members: BTreeSet::new(),
            service_agents: BTreeSet::new(),
            blobs: crate::objects::Store::default(),
            owners: BTreeSet::new(),
            auth_switched_on: BTreeMap::new(),
            random: Random::new(seed),
            registry: crate::oci::Registry::default(),
            containers: None,
            mute: false,
            stand: None,
            charges: Vec::new(),
            query_jobs: BTreeMap::new(),
            operator: operator.to_owned(),
            front: String::new(),
            serving: BTreeMap::new(),
            policies: BTreeMap::new(),
            requests: BTreeMap::new(),
            endpoint: None,
            deleted_accounts: BTreeMap::new(),
            visible_from: BTreeMap::new(),
            recent: BTreeMap::new(),
            timing,
            clock: Clock::new(),
            deferred: BTreeMap::new(),
            deferrals: 0,
        }
    }

    /// The virtual time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Moves the time, and does what became due.
    pub fn advance(&mut self, by: Duration) {
        let end = later(self.now(), by);
        while let Some(entry) = self.deferred.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((due, _), action) = entry.remove_entry();
            // An action sees the time at which it was due.
            let now = self.now();
            self.clock.advance(Duration::try_from(due.duration_since(now)).unwrap_or_default());
            action(self);
        }
        let now = self.now();
        self.clock.advance(Duration::try_from(end.duration_since(now)).unwrap_or_default());
        let kept = |operation: &Operation| operation.end.is_none_or(|ended| later(ended, OPERATION_RETENTION) > end);
        self.operations.retain(|_, operation| kept(operation));
    }

    /// Does something at a time.
    pub fn defer(&mut self, due: Timestamp, action: impl FnOnce(&mut Self) + Send + 'static) {
        self.deferrals += 1;
        self.deferred.insert((due, self.deferrals), Box::new(action));
    }

    /// When something that takes so long is done. With zero latency that is the next request.
    #[must_use]
    pub fn due(&self, after: Duration) -> Timestamp {
        later(self.now(), if self.timing.zero_latency { Duration::from_millis(1) } else { after })
    }

    /// Whether what begins from now on is done at the next request.
    pub fn set_zero_latency(&mut self, is_zero: bool) {
        self.timing.zero_latency = is_zero;
    }

    /// A delay of a range of seconds; nothing with zero latency.
    #[must_use]
    pub fn lag(&self, seconds: &Range<u64>) -> Duration {
        match self.timing.zero_latency || seconds.is_empty() {
            true => Duration::ZERO,
            false => Duration::from_secs(seconds.start + self.random.number() % (seconds.end - seconds.start)),
        }
    }

    /// The project of an id or a number.
    #[must_use]
    pub fn project(&self, name: &str) -> Option<&Project> {
        self.projects.get(name).or_else(|| self.projects.values().find(|project| project.number == name))
    }

    /// Adds a project with an owner, the operator.
    pub fn add_project(&mut self, id: &str, number: &str, services: &[&str]) {
        let now = self.now();
        let project = Project {
            id: id.to_owned(),
            number: number.to_owned(),
            services: services.iter().map(|name| ((*name).to_owned(), now)).collect(),
            billing_account: Some("billingAccounts/000000-AAAAAA-000000".to_owned()),
            constraints: BTreeSet::new(),
            lists: BTreeMap::new(),
            has_identity_pool: false,
        };
        self.projects.insert(id.to_owned(), project);
        let owner = json!({ "role": "roles/owner", "members": [format!("user:{}", self.operator)] });
        let policy =
            Policy { body: json!({ "version": 1, "bindings": [owner] }), writes: 1, effective: BTreeMap::new() };
        self.policies.insert(format!("cloudresourcemanager/projects/{id}"), policy);
    }

    /// Enables an API at once, as another person would have done before.
    pub fn enable(&mut self, project: &str, service: &str) {
        let now = self.now();
        if let Some(project) = self.projects.get_mut(project) {
            project.services.insert(service.to_owned(), now);
        }
    }

    /// Enforces a constraint of the organisation, such as `compute.requireShieldedVm`.
    pub fn enforce(&mut self, project: &str, constraint: &str) {
        if let Some(project) = self.projects.get_mut(project) {
            project.constraints.insert(constraint.to_owned());
        }
    }

    /// Sets the list policy of a constraint of the organisation, such as `{ "deniedValues": ["europe-west4"] }`.
    pub fn restrict(&mut self, project: &str, constraint: &str, list: Value) {
        if let Some(project) = self.projects.get_mut(project) {
            project.lists.insert(constraint.to_owned(), list);
        }
    }

    pub(crate) fn enforces(&self, project: &str, constraint: &str) -> bool {
        self.project(project).is_some_and(|project| project.constraints.contains(constraint))
    }

    /// Puts an object there as it is, as if another person had made it. The key is the service and the name that paths
    /// carry, such as `compute/projects/p/global/networks/n`.
    pub fn put(&mut self, key: &str, body: Value) {
        let now = self.now();
        let object = Object { body, busy_until: now, is_hidden: false, created: now };
        self.objects.insert(key.to_owned(), object);
    }

    /// Puts an object that no read shows and that blocks the deletion of what it refers to (hashicorp/terraform-provider-google#9812).
    pub fn put_hidden(&mut self, key: &str, body: Value) {
        self.put(key, body);
        if let Some(object) = self.objects.get_mut(key) {
            object.is_hidden = true;
        }
    }

    /// What a read of an object answers, if there is one.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.objects.get(key).filter(|object| !object.is_hidden).map(|object| &object.body)
    }

    /// The keys of all objects that reads show.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let shown = self.objects.iter().filter(|(_, object)| !object.is_hidden);
        shown.map(|(key, _)| key.clone()).collect()
    }

    /// Changes a member of an object, as if another person had done so. Its fingerprint or version changes too.
    pub fn change(&mut self, key: &str, pointer: &str, value: Value) {
        let fingerprint = self.fingerprint();
        let Some(object) = self.objects.get_mut(key) else { return };
        put(&mut object.body, pointer, value);
        stamp(&mut object.body, &fingerprint);
    }

    /// Empties a zone's stock of a machine or accelerator type, on demand and spot (skypilot-org/skypilot#831).
    pub fn stock_out(&mut self, zone: &str, kind: &str) {
        for market in [Market::OnDemand, Market::Spot] {
            self.capacity.set(zone, kind, market, 0);
        }
    }

    /// Fills it again: pools that wait for machines get them (hashicorp/terraform-provider-google#6287).
    pub fn restock(&mut self, zone: &str, kind: &str, count: u64) {
        for market in [Market::OnDemand, Market::Spot] {
            self.capacity.set(zone, kind, market, count);
        }
        super::container::provide(self);
    }

    /// The producer's side of the peering of a network ends. `network`: `projects/P/global/networks/N`.
    pub fn end_producer(&mut self, network: &str) {
        super::networking::end_producer(self, network);
    }

    /// Another operator reserves a range of this name for the connection of a network, and uses it.
    pub fn share_connection(&mut self, network: &str, range: &str) {
        super::networking::share(self, network, range);
    }

    /// Adds an image to a repository: `projects/P/locations/L/repositories/R`.
    pub fn put_image(&mut self, repository: &str, image: &str, tag: &str, digest: &str) {
        super::registry::put_image(self, repository, image, tag, digest);
    }

    /// Whether the nodes of a pool can pull images from a repository, by their keys.
    #[must_use]
    pub fn may_pull(&self, pool: &str, repository: &str) -> bool {
        super::container::may_pull(self, pool, repository)
    }

    /// Adds a zone of Cloud DNS for a domain, which ends with a dot.
    pub fn put_zone(&mut self, project: &str, name: &str, domain: &str, is_private: bool) {
        super::dns::put_zone(self, project, name, domain, is_private);
    }

    /// Adds an object to a bucket.
    pub fn put_blob(&mut self, bucket: &str, name: &str, size: u64) {
        let content = vec![0_u8; usize::try_from(size).unwrap_or_default()];
        let (now, kind) = (self.now(), "application/octet-stream");
        self.blobs.put((bucket, name), content.into(), kind, now, |number| format!("\"{number}\""));
    }

    /// Gives a member a role on a bucket at once, as another person would have done before.
    pub fn grant_on_bucket(&mut self, bucket: &str, role: &str, member: &str) {
        self.grant(format!("storage/projects/_/buckets/{bucket}"), role, member);
    }

    /// The same in a project.
    pub fn grant_in_project(&mut self, project: &str, role: &str, member: &str) {
        self.grant(format!("cloudresourcemanager/projects/{project}"), role, member);
    }

    fn grant(&mut self, key: String, role: &str, member: &str) {
        let now = self.now();
        let new = || Policy { body: json!({ "version": 1, "bindings": [] }), writes: 0, effective: BTreeMap::new() };
        let policy = self.policies.entry(key).or_insert_with(new);
        if !policy.body["bindings"].is_array() {
            policy.body["bindings"] = json!([]);
        }
        if let Some(bindings) = policy.body["bindings"].as_array_mut() {
            bindings.push(json!({ "role": role, "members": [member] }));
        }
        policy.writes += 1;
        policy.effective.insert((role.to_owned(), member.to_owned()), now);
    }

    /// Leaves behind what workloads of a cluster make and its deletion does not take away: the parts of an internal load balancer and
    /// of an external one, with a network endpoint group, and a disk (murphye/cheap-gke-cluster#2,
    /// hashicorp/terraform-provider-google#5948, Smana/cloud-native-ref#1861). Their names are those of
    /// <https://github.com/kubernetes/cloud-provider-gcp/blob/master/providers/gce/gce_loadbalancer_naming.go> and
    /// <https://github.com/kubernetes/ingress-gce/blob/master/pkg/utils/namer/l4_namer.go>. Gives their keys: each uses those after it.
    ///
    /// `zone` is that of the group, and the subnetwork is in its region.
    pub fn leave_behind(&mut self, project: &str, network: &str, subnetwork: &str, zone: &str) -> Vec<String> {
        let (id, internal) = (self.random.hex(16), format!("a{}", self.random.hex(31)));
        let region = zone.rsplit_once('-').map_or(zone, |(region, _)| region);
        let link = |path: &str| self.link("compute", &format!("projects/{project}/{path}"));
        let network = link(&format!("global/networks/{network}"));
        let subnetwork = link(&format!("regions/{region}/subnetworks/{subnetwork}"));
        let regional = |kind: &str, name: &str| format!("regions/{region}/{kind}/{name}");
        let external = format!("k8s2-{}-default-web-{}", &id[..8], &id[8..]);
        let [nodes, shared] = [format!("k8s-{id}-node"), format!("k8s2-{}-l4-shared-hc", &id[..8])];
        let (of_internal, of_external) =
            (regional("backendServices", &internal), regional("backendServices", &external));
        let [check, regional_check] = [format!("global/healthChecks/{nodes}"), regional("healthChecks", &shared)];
        let group = format!("zones/{zone}/networkEndpointGroups/{external}");
        let service = "{\"kubernetes.io/service-name\":\"default/web\"}";
        let rule =
            |name: String| (format!("global/firewalls/{name}"), json!({ "network": network, "direction": "INGRESS" }));
        let parts = [
            (
                regional("forwardingRules", &internal),
                json!({ "network": network, "subnetwork": subnetwork, "loadBalancingScheme": "INTERNAL",
                    "description": service, "backendService": link(&of_internal) }),
            ),
            (
                regional("forwardingRules", &external.replacen("k8s2", "k8s2-tcp", 1)),
                json!({ "loadBalancingScheme": "EXTERNAL", "backendService": link(&of_external) }),
            ),
            (
                of_internal,
                json!({ "loadBalancingScheme": "INTERNAL", "description": service, "healthChecks": [link(&check)] }),
            ),
            (
                of_external,
                json!({ "loadBalancingScheme": "EXTERNAL", "backends": [{ "group": link(&group) }],
                    "healthChecks": [link(&regional_check)] }),
            ),
            (check, json!({ "type": "HTTP" })),
            (regional_check, json!({ "type": "HTTP" })),
            (
                group,
                json!({ "network": network, "subnetwork": subnetwork, "networkEndpointType": "GCE_VM_IP", "size": 0 }),
            ),
            rule(format!("k8s-fw-{internal}")),
            rule(format!("{nodes}-hc")),
            rule(external),
            rule(format!("{shared}-fw")),
            (
                format!("zones/{zone}/disks/pvc-{id}"),
                json!({ "sizeGb": "10", "status": "READY", "labels": { "goog-gke-volume": "" } }),
            ),
        ];
        let mut keys = Vec::new();
        for (path, mut body) in parts {
            let name = format!("projects/{project}/{path}");
            self.describe("compute", &name, &mut body);
            let key = format!("compute/{name}");
            self.put(&key, body);
            keys.push(key);
        }
        keys
    }

    /// Fills what Compute Engine adds to each object: name, id, address and time.
    pub(crate) fn describe(&self, service: &str, name: &str, body: &mut Value) {
        let last = name.rsplit('/').next().unwrap_or_default();
        body["name"] = last.into();
        body["id"] = self.number().into();
        body["creationTimestamp"] = self.now().to_string().into();
        body["selfLink"] = self.link(service, name).into();
        let scope: Vec<&str> = name.split('/').collect();
        if let [_, project, kind @ ("zones" | "regions"), place, ..] = scope[..] {
            let member = kind.trim_end_matches('s');
            body[member] = self.link(service, &format!("projects/{project}/{kind}/{place}")).into();
        }
        let noun = scope.get(scope.len().saturating_sub(2)).copied().unwrap_or_default();
        body["kind"] = format!("compute#{}", singular(noun)).into();
    }

    /// The address of an object in answers. It is Google's own, whatever the address of the request was.
    pub(crate) fn link(&self, service: &str, name: &str) -> String {
        match service {
            "compute" => format!("https://www.googleapis.com/compute/v1/{name}"),
            "sql" => format!("https://sqladmin.googleapis.com/v1/{name}"),
            service => format!("https://{service}.googleapis.com/v1/{name}"),
        }
    }

    /// A number as ids have it.
    pub(crate) fn number(&self) -> String {
        (self.random.number() >> 1).to_string()
    }

    /// Eight bytes in base64, as fingerprints have them.
    pub(crate) fn fingerprint(&self) -> String {
        use base64::Engine;
        base64::engine::general_purpose::URL_SAFE.encode(self.random.number().to_be_bytes())
    }

    /// Starts an operation that takes so long and changes something at its end. Gives its key.
    pub(crate) fn start(&mut self, operation: Operation, takes: Duration, effect: Effect) -> String {
        let key = operation.key.clone();
        self.operations.insert(key.clone(), operation);
        let of_action = key.clone();
        self.defer(self.due(takes), move |cloud| {
            // A cancelled one changes nothing.
            if cloud.operations.get(&of_action).is_some_and(|one| one.end.is_some()) {
                return;
            }
            let result = effect(cloud);
            let now = cloud.now();
            if let Some(operation) = cloud.operations.get_mut(&of_action) {
                operation.end = Some(now);
                operation.result = Some(result);
            }
        });
        key
    }

    /// Whether an operation on a target, or on what is below it, still runs: its key.
    pub(crate) fn running(&self, target: &str) -> Option<String> {
        let below = format!("{target}/");
        let is_running =
            |one: &&Operation| one.end.is_none() && (one.target == target || one.target.starts_with(&below));
        self.operations.values().find(is_running).map(|one| one.key.clone())
    }

    /// An operation as reads answer it.
    pub(crate) fn shown(&self, operation: &Operation) -> Value {
        let name = operation.key.split_once('/').map_or("", |(_, name)| name);
        let last = name.rsplit('/').next().unwrap_or_default();
        let (service, target) = operation.target.split_once('/').unwrap_or_default();
        let status = if operation.end.is_some() { "DONE" } else { "RUNNING" };
        let start = operation.start.to_string();
        let error = operation.result.as_ref().and_then(|result| result.as_ref().err());
        let mut shown = match operation.family {
            Family::Compute => {
                let mut shown = json!({
                    "kind": "compute#operation", "id": format!("{}", u64::from_str_radix(&hash(name), 16).unwrap_or(1)),
                    "name": last, "operationType": operation.kind, "status": status, "user": operation.user,
                    "targetLink": self.link(service, target), "selfLink": self.link("compute", name),
                    "progress": if operation.end.is_some() { 100 } else { 0 }, "insertTime": start, "startTime": start,
                });
                let parts: Vec<&str> = name.split('/').collect();
                if let [_, project, kind @ ("zones" | "regions"), place, ..] = parts[..] {
                    let scope = self.link("compute", &format!("projects/{project}/{kind}/{place}"));
                    shown[kind.trim_end_matches('s')] = scope.into();
                }
                if let Some(error) = error {
                    shown["error"] = json!({ "errors": error["errors"] });
                    shown["httpErrorStatusCode"] = error["http"].clone();
                    shown["httpErrorMessage"] = error["text"].clone();
                }
                shown
            }
            Family::Container => {
                let parts: Vec<&str> = name.split('/').collect();
                let place = parts.get(3).copied().unwrap_or_default();
                let mut shown = json!({
                    "name": last, "operationType": operation.kind, "status": status, "startTime": start,
                    "targetLink": self.link("container", target), "selfLink": self.link("container", name),
                    "location": place, "zone": place,
                });
                if let Some(error) = error {
                    shown["error"] = error.clone();
                    shown["statusMessage"] = error["message"].clone();
                }
                shown
            }
            Family::Sql => {
                let parts: Vec<&str> = target.split('/').collect();
                let mut shown = json!({
                    "kind": "sql#operation", "name": last, "operationType": operation.kind, "status": status,
                    "user": operation.user, "insertTime": start, "startTime": start,
                    "targetId": parts.get(3).copied().unwrap_or_default(),
                    "targetProject": parts.get(1).copied().unwrap_or_default(),
                    "targetLink": self.link("sql", target), "selfLink": self.link("sql", name),
                });
                if let Some(error) = error {
                    let item =
                        json!({ "kind": "sql#operationError", "code": error["code"], "message": error["message"] });
                    shown["error"] = json!({ "kind": "sql#operationErrors", "errors": [item] });
                }
                shown
            }
            Family::LongRunning => {
                let mut shown = json!({ "name": name, "metadata": operation.metadata });
                match &operation.result {
                    Some(Ok(response)) => {
                        shown["done"] = true.into();
                        shown["response"] = response.clone();
                    }
                    Some(Err(error)) => {
                        shown["done"] = true.into();
                        shown["error"] = error.clone();
                    }
                    None => {}
                }
                shown
            }
        };
        if let (Some(end), false) = (operation.end, operation.family == Family::LongRunning) {
            shown["endTime"] = end.to_string().into();
        }
        shown
    }

    /// Whether a caller has a permission in a project; what the operator needed is noted.
    pub(crate) fn authorize(&mut self, user: &str, project: &str, permission: &str) -> bool {
        let has = super::may(self, user, project, permission);
        if user == self.operator {
            *self.needed.entry(permission.to_owned()).or_insert(true) &= has;
        }
        has
    }

    /// Takes a request of a project and service from its rate.
    pub(crate) fn admit(&mut self, project: &str, service: &str) -> Result<(), Problem> {
        let Some(limit) = self.conduct.requests_per_minute else { return Ok(()) };
        let now = self.now();
        let recent = self.recent.entry((project.to_owned(), service.to_owned())).or_default();
        recent.retain(|time| later(*time, Duration::from_secs(60)) > now);
        if recent.len() < limit as usize {
            recent.push(now);
            return Ok(());
        }
        Err(super::errors::rate_limited(service, project))
    }
}

/// The name of one object of a collection, such as `networks`.
pub(crate) fn singular(noun: &str) -> &str {
    match noun {
        "addresses" => "address",
        noun => noun.trim_end_matches('s'),
    }
}

/// Sixteen hexadecimal digits that follow from a text.
pub(crate) fn hash(text: &str) -> String {
    use sha2::Digest;
    let mut digits = hex::encode(&sha2::Sha256::digest(text.as_bytes())[..8]);
    // It fits in 63 bits.
    digits.replace_range(0..1, "1");
    digits
}

/// Sets a member by its pointer, such as `/a/b`, and makes objects on the way.
pub(crate) fn put(body: &mut Value, pointer: &str, value: Value) {
    let mut place = body;
    for part in pointer.split('/').skip(1) {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        place = &mut place[part];
    }
    *place = value;
}

/// Changes what tells one version of an object from the next.
pub(crate) fn stamp(body: &mut Value, fingerprint: &str) {
    for member in ["fingerprint", "labelFingerprint", "etag"] {
        if body.get(member).is_some() {
            body[member] = fingerprint.into();
        }
    }
    if let Some(version) = body.pointer("/settings/settingsVersion").and_then(Value::as_str) {
        let next = version.parse::<i64>().unwrap_or_default() + 1;
        body["settings"]["settingsVersion"] = next.to_string().into();
    }
}

/// Merges a patch as JSON Merge Patch does: lists are replaced as wholes, and null removes a member.
pub(crate) fn merge(body: &mut Value, patch: &Value) {
    let Some(members) = patch.as_object() else {
        *body = patch.clone();
        return;
    };
    if !body.is_object() {
        *body = Value::Object(Map::new());
    }
    for (name, value) in members {
        match value {
            Value::Null => {
                body.as_object_mut().map(|one| one.shift_remove(name));
            }
            value => merge(&mut body[name.as_str()], value),
        }
    }
}
