//! Settings of an environment with one site in a cluster of a cloud.

use std::collections::BTreeMap;

use serde_json::json;
use textnlp_provider::cluster::ClusterSite;
use textnlp_provider::component::{
    Budget, CACHE_PASSWORD, Cache, Cluster, ComponentSpec, Database, Endpoint, GpuPool, MaintenanceWindow,
    ManagedCache, ManagedPostgres, Model, ModelStore, Monitored, Monitoring, Network, Postgres, Program,
    ReceiverAddress, Registry, ServiceAddress, TrafficShare,
};
use textnlp_provider::settings::{CacheKind, DatabaseKind, GpuSize, Hosting, Spot, Weekday};
use textnlp_provider::units::TimeOfDay;
use textnlp_provider::{Component, Outputs, Provider, ResourceId, Site, Wanted};
use textnlp_sim::Random;

use super::{Draw, close};

/// Where an environment is.
pub(crate) struct Place<'a> {
    pub(crate) site: Site,
    /// The repository of its images.
    pub(crate) repository: String,
    /// The address of its models.
    pub(crate) models: &'a str,
    /// What clients reach, with a name in an existing zone.
    pub(crate) endpoint: Endpoint,
    /// The region of a replica of its database; `None` where its settings cannot change beside one.
    pub(crate) remote: Option<&'static str>,
    /// Whether it may have a budget.
    pub(crate) has_budget: bool,
    /// Whether its records may be those of one of several sites.
    pub(crate) shares: bool,
}

/// The mailboxes that get alerts.
const MAILBOXES: &[&str] = &["oncall", "team"];

/// What an environment has. Two shapes that share `left_out` are two versions of one environment.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    cluster: bool,
    models: bool,
    database: bool,
    registry: bool,
    monitoring: bool,
    /// The memory of the cache in GiB.
    cache_gib: Option<u64>,
    pub(crate) protect_data: bool,
    gpu: Option<(u32, u32, Spot)>,
    nodes: (u32, u32),
    allow_from: bool,
    connections: u32,
    replicas: u32,
    /// The region of a replica of the database.
    replica_region: Option<&'static str>,
    /// Whether it has one in the region of its place.
    is_replicated: bool,
    disk_gib: u64,
    backup_days: u64,
    /// When maintenance begins on Sundays, in minutes.
    maintenance: Option<u32>,
    archive_after_days: Option<u32>,
    /// Whether the service, and its tenants, have names in the zone.
    names: (bool, bool),
    /// Whether the records are those of one of several sites, and the share of this one.
    is_shared: bool,
    weight: u32,
    /// Which of two images is pushed.
    image: Option<u8>,
    mailboxes: &'static [&'static str],
    dashboard: bool,
    budget: Option<u32>,
    /// The percentage of memory and disk from which alerts are sent.
    limit: u32,
    team: &'static str,
    /// What is left out follows from this number: an environment stopped half-way has any part of the whole.
    left_out: u64,
    share_left_out: f64,
}

/// Each draws settings of an environment. A change of an environment draws some of them again.
const SETTINGS: &[fn(&mut Shape, &Draw)] = &[
    |shape, draw| shape.team = draw.one(&["nlp", "search"]),
    |shape, draw| {
        let spot = draw.one(&[Spot::Never, Spot::Prefer, Spot::Only]);
        let count = 1 + draw.below(2) as u32;
        shape.gpu = draw.chance(0.5).then(|| (count, count + draw.below(3) as u32, spot));
    },
    |shape, draw| {
        let least = 1 + draw.below(3) as u32;
        shape.nodes = (least, least + draw.below(3) as u32);
    },
    |shape, draw| shape.allow_from = draw.chance(0.5),
    |shape, draw| shape.connections = draw.one(&[20, 300]),
    |shape, draw| shape.replicas = draw.below(2) as u32,
    // Storage never shrinks.
    |shape, draw| shape.disk_gib += 20 * draw.below(3),
    |shape, draw| shape.backup_days = 7 + draw.below(7),
    |shape, draw| shape.maintenance = draw.chance(0.5).then(|| draw.one(&[180, 1_350])),
    |shape, draw| shape.archive_after_days = draw.chance(0.5).then_some(90),
    |shape, draw| shape.names = (draw.chance(0.5), draw.chance(0.5)),
    |shape, draw| shape.image = draw.chance(0.5).then(|| draw.below(2) as u8),
    |shape, draw| shape.cache_gib = draw.chance(0.2).then(|| draw.one(&[1, 4])),
    |shape, draw| shape.is_replicated = draw.chance(0.3),
    |shape, draw| shape.weight = draw.one(&[1, 100]),
    |shape, draw| shape.mailboxes = draw.one(&[&MAILBOXES[..0], &MAILBOXES[..1], &MAILBOXES[1..], MAILBOXES]),
    |shape, draw| shape.dashboard = draw.chance(0.5),
    |shape, draw| shape.budget = draw.chance(0.4).then(|| draw.one(&[500, 900])),
    |shape, draw| shape.limit = draw.one(&[80, 90]),
    |shape, draw| {
        (shape.left_out, shape.share_left_out) = (draw.below(1 << 32), draw.one(&[0.0, 0.0, 0.05, 0.2]));
    },
];

impl Shape {
    /// A network.
    pub(crate) const BARE: Self = Self {
        cluster: false,
        models: false,
        database: false,
        registry: false,
        monitoring: false,
        cache_gib: None,
        protect_data: false,
        gpu: None,
        nodes: (1, 1),
        allow_from: false,
        connections: 20,
        replicas: 0,
        replica_region: None,
        is_replicated: false,
        disk_gib: 20,
        backup_days: 7,
        maintenance: None,
        archive_after_days: None,
        names: (false, false),
        is_shared: false,
        weight: 1,
        image: None,
        mailboxes: &[],
        dashboard: false,
        budget: None,
        limit: 80,
        team: "nlp",
        left_out: 0,
        share_left_out: 0.0,
    };

    /// Everything, with data that is protected.
    pub(crate) fn full() -> Self {
        Self {
            cluster: true,
            models: true,
            database: true,
            registry: true,
            monitoring: true,
            cache_gib: Some(1),
            protect_data: true,
            gpu: Some((1, 2, Spot::Prefer)),
            nodes: (3, 4),
            replicas: 1,
            is_replicated: true,
            maintenance: Some(180),
            archive_after_days: Some(90),
            names: (true, true),
            is_shared: true,
            image: Some(0),
            mailboxes: MAILBOXES,
            dashboard: true,
            budget: Some(500),
            ..Self::BARE
        }
    }

    /// A database, with a replica in this region. Its size is one that can have a replica, so that it does not depend on that.
    pub(crate) fn replicated(replica_region: Option<&'static str>) -> Self {
        Self { database: true, replica_region, connections: 500, ..Self::BARE }
    }

    /// A database with this number of standbys, of the same size.
    pub(crate) fn with_standbys(replicas: u32) -> Self {
        Self { replicas, ..Self::replicated(None) }
    }

    pub(crate) fn of(draw: &Draw) -> Self {
        let cluster = draw.chance(0.6);
        let mut shape = Self {
            cluster,
            models: draw.chance(0.7),
            database: cluster && draw.chance(0.5),
            registry: draw.chance(0.4),
            protect_data: draw.chance(0.3),
            monitoring: draw.chance(0.3),
            is_shared: draw.chance(0.3),
            ..Self::BARE
        };
        SETTINGS.iter().for_each(|setting| setting(&mut shape, draw));
        shape
    }

    pub(crate) fn without_registry(self) -> Self {
        Self { registry: false, ..self }
    }

    /// Another version of the environment.
    pub(crate) fn changed(&self, draw: &Draw) -> Self {
        let mut then = self.clone();
        SETTINGS.iter().filter(|_| draw.chance(0.3)).for_each(|setting| setting(&mut then, draw));
        if draw.chance(0.2) {
            (then.database, then.registry, then.monitoring) = (false, false, false);
            // A cache keeps its connection to the network, which may be that of the database.
            then.cache_gib = None;
            then.models = draw.chance(0.5);
        }
        then
    }

    /// What it wants of a site.
    pub(crate) fn wanted(&self, provider: &dyn Provider, place: &Place<'_>) -> Vec<Wanted> {
        let (least, most) = self.nodes;
        let cluster = ClusterSite { min_nodes: least, max_nodes: Some(most), ..ClusterSite::of("textnlp") };
        let site = Site {
            protect_data: self.protect_data,
            tags: BTreeMap::from([("team".to_owned(), self.team.to_owned())]),
            cluster: Some(Box::new(cluster)),
            maintenance: self.maintenance.map(|at| MaintenanceWindow {
                day: Weekday::Sunday,
                at: TimeOfDay(at),
                hours: 12,
            }),
            ..place.site.clone()
        };
        let secret = |name: &str| {
            let id = ResourceId::part(&site.name, &"secrets".parse().unwrap(), name).unwrap();
            let value = json!({ "$secret": format!("{}/{name}", site.name), "version": "1" });
            (id, Outputs::from([("secret".to_owned(), value)]))
        };
        let service = ResourceId::part(&site.name, &"gateway".parse().unwrap(), "service").unwrap();
        let balancer = Outputs::from([("address".to_owned(), "203.0.113.20".into())]);
        let servers = ResourceId::part(&site.name, &"server".parse().unwrap(), "deployment").unwrap();
        // What other providers create.
        let elsewhere = BTreeMap::from([
            secret("database-password"),
            secret(CACHE_PASSWORD),
            (service, balancer),
            (servers, Outputs::new()),
        ]);
        let mut all: Vec<Wanted> = Vec::new();
        for component in self.components(place) {
            all.extend(provider.lower(&component, &site).unwrap_or_else(|problems| panic!("{problems}")));
        }
        for one in &mut all {
            one.protected = false;
            one.spec = one.spec.resolve_known(|id| elsewhere.get(id));
            one.needs.retain(|need| !elsewhere.contains_key(&need.on));
        }
        all.retain(|one| !self.is_left_out(one));
        close(all)
    }

    fn is_left_out(&self, one: &Wanted) -> bool {
        let id = one.id.as_str().bytes();
        let seed = id.fold(self.left_out, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        Random::new(seed).fraction() < self.share_left_out
    }

    fn components(&self, place: &Place<'_>) -> Vec<Component> {
        let Place { repository, models, endpoint, .. } = place;
        let base_domain = endpoint.domain.clone().filter(|_| self.names.1);
        let share = endpoint.domain.as_ref().filter(|_| place.shares && self.is_shared).map(|domain| TrafficShare {
            weight: self.weight,
            is_at_other_provider: false,
            host: format!("main.{domain}"),
            sites: BTreeMap::from([("main".parse().unwrap(), self.weight), ("other".parse().unwrap(), 1)]),
        });
        let endpoint = Endpoint { base_domain, share, ..endpoint.clone() };
        let digit = self.image.unwrap_or_default();
        let image = self.image.map(|_| format!("{repository}:1.{digit}@sha256:{}", digit.to_string().repeat(64)));
        let gpu =
            self.gpu.map(|(count, max, spot)| GpuPool { max: Some(max), spot, ..GpuPool::of(GpuSize::Small, count) });
        let store = ModelStore {
            archive_after_days: self.archive_after_days,
            ..ModelStore::of(vec![Model::of("mine", models)])
        };
        let cluster = Cluster {
            gpu,
            allow_from: self.allow_from.then(|| vec!["203.0.113.0/24".to_owned()]),
            ..Cluster::of("network".parse().unwrap())
        };
        let cache = Cache { kind: CacheKind::Redis, managed: self.redis() };
        let parts = [
            (true, "network", ComponentSpec::Network(Network::default())),
            (self.models, "models", ComponentSpec::ModelStore(store)),
            (self.registry, "registry", ComponentSpec::Registry(Registry { url: repository.clone(), image })),
            (self.cluster, "cluster", ComponentSpec::Cluster(cluster)),
            (self.database, "database", ComponentSpec::Database(self.postgres(place))),
            (self.cache_gib.is_some(), "cache", ComponentSpec::Cache(cache)),
            (self.monitoring, "monitoring", ComponentSpec::Monitoring(self.monitors(place))),
            (self.cluster && self.names.0, "gateway", ComponentSpec::Endpoint(endpoint)),
        ];
        let parts = parts.into_iter().filter(|(has, ..)| *has);
        parts.map(|(_, name, part)| Component { name: name.parse().unwrap(), existing: None, part }).collect()
    }

    fn redis(&self) -> Option<ManagedCache> {
        self.cache_gib.map(|gib| ManagedCache {
            memory_bytes: gib << 30,
            replicas: 0,
            secrets: "secrets".parse().unwrap(),
            database: self.database.then(|| "database".parse().unwrap()),
        })
    }

    fn monitors(&self, place: &Place<'_>) -> Monitoring {
        let mailbox = |name: &&str| {
            let address = format!("smtps://mail.example.com?from=alerts@example.com&to={name}@example.com");
            ((*name).to_owned(), ReceiverAddress::Plain(address))
        };
        let budget = self.budget.filter(|_| place.has_budget);
        let named = place.endpoint.domain.clone().filter(|_| self.cluster && self.names.0);
        let mut monitoring = Monitoring {
            stack: self.dashboard,
            receivers: self.mailboxes.iter().map(mailbox).collect(),
            monitored: Monitored {
                network: true,
                cluster: self.cluster,
                gpu: self.cluster && self.gpu.is_some(),
                database: self.database.then(|| self.postgres(place)),
                cache: self.redis(),
                service: named.map(|host| ServiceAddress { host, port: place.endpoint.port }),
            },
            budget: budget.map(|most| Budget { monthly: most.into(), currency: "USD".to_owned(), warn_at: 0.8 }),
            ..Monitoring::default()
        };
        (monitoring.limits.memory, monitoring.limits.disk) = (self.limit, self.limit);
        monitoring
    }

    fn postgres(&self, place: &Place<'_>) -> Database {
        let postgres = Postgres {
            address: None,
            ca_file: None,
            name: "textnlp".to_owned(),
            version: 16,
            port: None,
            replicas: self.replicas,
            connections: self.connections,
            secrets: "secrets".parse().unwrap(),
            cluster: "cluster".parse().unwrap(),
            program: Program { path: "textnlp-server".to_owned(), digest: "sha256:0".to_owned() },
            archive_seconds: None,
            between: None,
            managed: Some(ManagedPostgres {
                disk_bytes: self.disk_gib << 30,
                backup_seconds: self.backup_days * 86_400,
                replica_region: self
                    .replica_region
                    .or_else(|| place.remote.filter(|_| self.is_replicated))
                    .map(str::to_owned),
            }),
        };
        Database {
            kind: DatabaseKind::Postgres,
            hosting: Some(Hosting::Managed),
            schema: None,
            postgres: Some(Box::new(postgres)),
        }
    }
}
