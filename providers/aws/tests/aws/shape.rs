//! Generates the settings of environments for random runs.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_provider::component::{
    Budget, Cache, Cluster, ClusterIdentity, Component, ComponentSpec, Database, Endpoint, GpuPool, MaintenanceWindow,
    ManagedPostgres, ModelReplica, ModelStore, Monitored, Monitoring, Network, ReceiverAddress, Registry,
};
use textnlp_provider::settings::{AccessLevel, GpuSize, Spot, Weekday};
use textnlp_provider::units::TimeOfDay;
use textnlp_provider::{Need, OutputRef, Wanted};
use textnlp_sim::Random;

use crate::ecr::{MANIFESTS, digest};
use crate::elasticache::redis;
use crate::engine::{Account, ZONE, component, site_of};
use crate::iam::BOUNDARY;
use crate::programs::{Draw, close};
use crate::{ACCOUNT, REGION, database, endpoint, wanted};

/// The region of copies.
const ELSEWHERE: &str = "eu-central-1";

/// What an environment has. Two shapes that share `left_out` are two versions of one environment.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) network: bool,
    pub(crate) cluster: bool,
    pub(crate) models: bool,
    pub(crate) database: bool,
    /// The memory of the cache in GiB, and its replicas.
    pub(crate) cache: Option<(u64, u32)>,
    pub(crate) registry: bool,
    pub(crate) monitoring: bool,
    pub(crate) protect_data: bool,
    pub(crate) gpu: Option<(u32, Spot)>,
    pub(crate) nodes: u32,
    pub(crate) allow_from: bool,
    /// Identities that reach the cluster.
    pub(crate) access: &'static [(&'static str, AccessLevel)],
    pub(crate) boundary: bool,
    /// The version of Kubernetes, if it is not the default one.
    pub(crate) version: Option<&'static str>,
    pub(crate) connections: u32,
    pub(crate) replicas: u32,
    pub(crate) disk_gib: u64,
    pub(crate) backup_days: u64,
    /// When maintenance begins on Sundays, in minutes.
    pub(crate) maintenance: Option<u32>,
    pub(crate) archive_after_days: Option<u32>,
    /// Whether models, and the database, are copied to another region.
    pub(crate) copies: (bool, bool),
    /// Which of the images is pushed.
    pub(crate) image: Option<usize>,
    pub(crate) receivers: &'static [&'static str],
    pub(crate) dashboard: bool,
    pub(crate) budget: Option<u32>,
    /// The percentage of memory and disk from which alarms are raised.
    pub(crate) limit: u32,
    /// Whether the service, and its tenants, have names in the zone.
    pub(crate) names: (bool, bool),
    /// The failed requests from which a health check moves clients to the second of two records.
    pub(crate) failover: Option<u32>,
    pub(crate) team: &'static str,
    /// Another tag of all objects.
    pub(crate) owner: Option<&'static str>,
    /// What is left out follows from this number: an environment stopped half-way has any part of the whole.
    pub(crate) left_out: u64,
    pub(crate) share_left_out: f64,
}

/// Each draws settings of an environment. A change of an environment draws some of them again.
const SETTINGS: &[fn(&mut Shape, &Draw)] = &[
    |shape, draw| shape.team = draw.one(&["nlp", "search"]),
    |shape, draw| shape.protect_data = draw.chance(0.3),
    |shape, draw| {
        let spot = draw.one(&[Spot::Never, Spot::Prefer, Spot::Only]);
        shape.gpu = draw.chance(0.5).then(|| (1 + draw.below(2) as u32, spot));
    },
    |shape, draw| shape.nodes = 2 + draw.below(4) as u32,
    |shape, draw| shape.allow_from = draw.chance(0.5),
    |shape, draw| shape.access = draw.one(&[&ACCESS[..0], &ACCESS[..1], &ACCESS[1..], ACCESS, OTHER_LEVEL]),
    |shape, draw| shape.boundary = draw.chance(0.3),
    |shape, draw| shape.connections = draw.one(&[100, 700, 1_500]),
    |shape, draw| shape.backup_days = 1 + draw.below(7),
    |shape, draw| shape.maintenance = draw.chance(0.5).then(|| draw.one(&[30, 180, 1_350])),
    |shape, draw| shape.replicas = draw.below(3) as u32,
    // Storage never shrinks.
    |shape, draw| shape.disk_gib += 20 * draw.below(3),
    |shape, draw| shape.archive_after_days = draw.chance(0.5).then_some(90),
    |shape, draw| shape.copies = (draw.chance(0.2), draw.chance(0.2)),
    |shape, draw| shape.image = draw.chance(0.5).then(|| draw.below(MANIFESTS.len() as u64) as usize),
    |shape, draw| shape.receivers = draw.one(&[&RECEIVERS[..0], &RECEIVERS[..1], &RECEIVERS[1..], RECEIVERS]),
    |shape, draw| shape.dashboard = draw.chance(0.5),
    |shape, draw| shape.budget = draw.chance(0.4).then(|| draw.one(&[500, 900])),
    |shape, draw| shape.limit = draw.one(&[80, 90]),
    |shape, draw| shape.names = (draw.chance(0.3), draw.chance(0.3)),
    |shape, draw| shape.failover = draw.chance(0.15).then(|| draw.one(&[3, 5])),
    |shape, draw| shape.cache = draw.chance(0.2).then(|| (draw.one(&[1, 4]), draw.below(3) as u32)),
    |shape, draw| {
        (shape.left_out, shape.share_left_out) = (draw.below(1 << 32), draw.one(&[0.0, 0.0, 0.05, 0.2]));
    },
];

const ACCESS: &[(&str, AccessLevel)] = &[("user/grace", AccessLevel::Admin), ("user/ada", AccessLevel::View)];
const OTHER_LEVEL: &[(&str, AccessLevel)] = &[("user/grace", AccessLevel::View)];
const RECEIVERS: &[&str] =
    &["smtps://mail.example.com?from=a@example.com&to=oncall@example.com", "https://example.com/"];

impl Shape {
    /// The least of everything.
    pub(crate) const BARE: Self = Self {
        network: false,
        cluster: false,
        models: false,
        database: false,
        cache: None,
        registry: false,
        monitoring: false,
        protect_data: false,
        gpu: None,
        nodes: 2,
        allow_from: false,
        access: &[],
        boundary: false,
        version: None,
        connections: 100,
        replicas: 0,
        disk_gib: 20,
        backup_days: 7,
        maintenance: None,
        archive_after_days: None,
        copies: (false, false),
        image: None,
        receivers: &[],
        dashboard: false,
        budget: None,
        limit: 80,
        names: (false, false),
        failover: None,
        team: "nlp",
        owner: None,
        left_out: 0,
        share_left_out: 0.0,
    };

    pub(crate) fn of(draw: &Draw) -> Self {
        let cluster = draw.chance(0.25);
        let database = cluster && draw.chance(0.4);
        let (registry, monitoring) = (draw.chance(0.4), draw.chance(0.4));
        let mut shape = Self {
            network: cluster || draw.chance(0.5),
            cluster,
            // The key of a site's data is a part of its models.
            models: database || registry || monitoring || draw.chance(0.6),
            database,
            registry,
            monitoring,
            ..Self::BARE
        };
        SETTINGS.iter().for_each(|setting| setting(&mut shape, draw));
        shape.disk_gib = Self::BARE.disk_gib;
        shape
    }

    /// Everything, with data that is protected.
    pub(crate) fn full() -> Self {
        Self {
            network: true,
            cluster: true,
            models: true,
            database: true,
            registry: true,
            monitoring: true,
            protect_data: true,
            gpu: Some((1, Spot::Prefer)),
            nodes: 3,
            access: ACCESS,
            replicas: 2,
            copies: (true, true),
            image: Some(0),
            receivers: RECEIVERS,
            dashboard: true,
            budget: Some(500),
            names: (true, true),
            failover: Some(3),
            ..Self::BARE
        }
    }

    /// The same with another value of every setting.
    pub(crate) fn otherwise(&self) -> Self {
        Self {
            protect_data: false,
            gpu: Some((2, Spot::Never)),
            nodes: 5,
            allow_from: true,
            access: OTHER_LEVEL,
            boundary: true,
            connections: 700,
            disk_gib: 40,
            backup_days: 3,
            maintenance: Some(180),
            archive_after_days: Some(90),
            copies: (false, false),
            image: Some(1),
            receivers: &RECEIVERS[1..],
            budget: Some(900),
            limit: 90,
            failover: Some(5),
            team: "search",
            ..self.clone()
        }
    }

    /// The same without monitoring, copies, records, access of others, boundaries and images.
    pub(crate) fn core(self) -> Self {
        Self {
            monitoring: false,
            access: &[],
            boundary: false,
            copies: (false, false),
            image: None,
            names: (false, false),
            failover: None,
            ..self
        }
    }

    /// Another version of the environment.
    pub(crate) fn changed(&self, draw: &Draw) -> Self {
        let mut then = self.clone();
        SETTINGS.iter().filter(|_| draw.chance(0.3)).for_each(|setting| setting(&mut then, draw));
        if draw.chance(0.2) {
            (then.database, then.registry, then.monitoring) = (false, false, false);
            then.models = draw.chance(0.5);
        }
        then
    }

    pub(crate) fn wanted(&self, account: &Account, environment: &str) -> Vec<Wanted> {
        let mut site = site_of(environment, self.protect_data, self.nodes);
        site.tags = BTreeMap::from([("team".to_owned(), self.team.to_owned())]);
        site.tags.extend(self.owner.map(|owner| ("owner".to_owned(), owner.to_owned())));
        site.maintenance =
            self.maintenance.map(|at| MaintenanceWindow { day: Weekday::Sunday, at: TimeOfDay(at), hours: 4 });
        let mut all = account.lower(&self.components(environment), &site);
        if let Some(failures) = self.failover {
            all.extend(failover(environment, failures));
        }
        let seed = self.left_out;
        let is_left_out = |one: &Wanted| {
            let id = one.id.as_str().bytes().fold(seed, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
            Random::new(id).fraction() < self.share_left_out
        };
        // Without it, EKS creates this group itself.
        let is_free = |one: &Wanted| one.id.as_str() != "here/cluster/logs";
        all.retain(|one| !is_free(one) || !is_left_out(one));
        close(all)
    }

    fn components(&self, environment: &str) -> Vec<Component> {
        let permission_boundary = self.boundary.then(|| BOUNDARY.to_owned());
        let network = Network { cidr: None, policies: false, permission_boundary: permission_boundary.clone() };
        let replica = self
            .copies
            .0
            .then(|| ModelReplica { region: ELSEWHERE.to_owned(), permission_boundary: permission_boundary.clone() });
        let store = ModelStore {
            models: Vec::new(),
            max_cache_bytes: 1,
            key: None,
            archive_after_days: self.archive_after_days,
            replica,
            permission_boundary: None,
        };
        let url = format!("{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/{environment}");
        let image = self.image.map(|n| format!("{url}:1.{n}@{}", digest(MANIFESTS[n])));
        let access = self
            .access
            .iter()
            .map(|(name, level)| ClusterIdentity { identity: format!("arn:aws:iam::{ACCOUNT}:{name}"), level: *level });
        let cluster = Cluster {
            gpu: self.gpu.map(|(count, spot)| GpuPool { spot, ..GpuPool::of(GpuSize::Small, count) }),
            allow_from: self.allow_from.then(|| vec!["203.0.113.0/24".to_owned()]),
            access: access.collect(),
            version: self.version.map(str::to_owned),
            permission_boundary,
            ..Cluster::of("network".parse().unwrap())
        };
        let parts = [
            (self.network, "network", ComponentSpec::Network(network)),
            (self.models, "models", ComponentSpec::ModelStore(store)),
            (self.registry, "registry", ComponentSpec::Registry(Registry { url, image })),
            (self.cluster, "cluster", ComponentSpec::Cluster(cluster)),
            (self.database, "database", ComponentSpec::Database(self.postgres())),
            (self.cache.is_some(), "cache", ComponentSpec::Cache(self.redis())),
            (self.monitoring, "monitoring", ComponentSpec::Monitoring(self.monitors())),
            (self.cluster && self.names.0, "gateway", ComponentSpec::Endpoint(self.endpoint(environment))),
        ];
        parts.into_iter().filter(|(has, ..)| *has).map(|(_, name, part)| component(name, part)).collect()
    }

    fn monitors(&self) -> Monitoring {
        let receiver = |text: &&str| (format!("to-{}", &text[..5]), ReceiverAddress::Plain((*text).to_owned()));
        let mut monitoring = Monitoring {
            stack: self.dashboard,
            receivers: self.receivers.iter().map(receiver).collect(),
            monitored: Monitored {
                network: self.network,
                cluster: self.cluster,
                gpu: self.gpu.is_some(),
                database: self.database.then(|| self.postgres()),
                cache: self.cache.and_then(|_| self.redis().managed),
                service: None,
            },
            budget: self.budget.map(|most| Budget { monthly: most.into(), currency: "USD".to_owned(), warn_at: 0.8 }),
            ..Monitoring::default()
        };
        (monitoring.limits.memory, monitoring.limits.disk) = (self.limit, self.limit);
        monitoring
    }

    /// Its load balancer is an object in the cluster.
    fn endpoint(&self, environment: &str) -> Endpoint {
        let domain = format!("{environment}.example.com");
        endpoint(Some(ZONE), &domain, self.names.1.then_some(domain.as_str()))
    }

    fn redis(&self) -> Cache {
        let (memory_gib, replicas) = self.cache.unwrap_or_default();
        redis(memory_gib << 30, replicas)
    }

    fn postgres(&self) -> Database {
        let managed = ManagedPostgres {
            disk_bytes: self.disk_gib << 30,
            backup_seconds: self.backup_days * 86_400,
            replica_region: self.copies.1.then(|| ELSEWHERE.to_owned()),
        };
        database(managed, self.replicas, self.connections)
    }
}

/// Two records of a name, of which a health check chooses one. No environment has them yet.
fn failover(environment: &str, failures: u32) -> Vec<Wanted> {
    let name = format!("dr.{environment}.example.com");
    let check = json!({ "host": name, "name": null, "port": 8443, "path": "/health", "interval": 30, "failures": failures, "tags": {} });
    let check = wanted("here/failover/health", "aws.health-check", &check);
    let record = |set: &str, role: &str, check: &Value| {
        let spec = json!({
            "zone": ZONE, "name": name, "type": "A", "set": set, "weight": null, "failover": role, "ttl": 60,
            "values": ["192.0.2.1"], "alias": null, "health_check": check, "tags": {},
        });
        wanted(&format!("here/failover/record-{set}"), "aws.dns-record", &spec)
    };
    let mut first = record("north", "PRIMARY", &json!(OutputRef::new(check.id.clone(), "id")));
    first.needs = vec![Need::on(check.id.clone())];
    vec![check, first, record("south", "SECONDARY", &Value::Null)]
}
