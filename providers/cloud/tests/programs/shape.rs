//! Settings of an environment with one site in a cluster of a cloud.

use std::collections::BTreeMap;

use serde_json::json;
use textnlp_provider::cluster::ClusterSite;
use textnlp_provider::component::{
    Cluster, ComponentSpec, Database, Endpoint, GpuPool, MaintenanceWindow, ManagedPostgres, Model, ModelStore,
    Network, Postgres, Program, Registry,
};
use textnlp_provider::settings::{DatabaseKind, GpuSize, Hosting, Spot, Weekday};
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
    /// Whether models can be archived.
    pub(crate) archives: bool,
    /// What clients reach, with a name in an existing zone.
    pub(crate) endpoint: Endpoint,
}

/// What an environment has. Two shapes that share `left_out` are two versions of one environment.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    cluster: bool,
    models: bool,
    database: bool,
    registry: bool,
    pub(crate) protect_data: bool,
    gpu: Option<(u32, u32, Spot)>,
    nodes: (u32, u32),
    allow_from: bool,
    connections: u32,
    replicas: u32,
    /// The region of a replica of the database.
    replica_region: Option<&'static str>,
    disk_gib: u64,
    backup_days: u64,
    /// When maintenance begins on Sundays, in minutes.
    maintenance: Option<u32>,
    archive_after_days: Option<u32>,
    /// Whether the service, and its tenants, have names in the zone.
    names: (bool, bool),
    /// Which of two images is pushed.
    image: Option<u8>,
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
        protect_data: false,
        gpu: None,
        nodes: (1, 1),
        allow_from: false,
        connections: 20,
        replicas: 0,
        replica_region: None,
        disk_gib: 20,
        backup_days: 7,
        maintenance: None,
        archive_after_days: None,
        names: (false, false),
        image: None,
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
            protect_data: true,
            gpu: Some((1, 2, Spot::Prefer)),
            nodes: (3, 4),
            replicas: 1,
            maintenance: Some(180),
            archive_after_days: Some(90),
            names: (true, true),
            image: Some(0),
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
            (then.database, then.registry) = (false, false);
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
        let password = ResourceId::part(&site.name, &"secrets".parse().unwrap(), "database-password").unwrap();
        let secret = json!({ "$secret": format!("{}/database-password", site.name), "version": "1" });
        let secret = Outputs::from([("secret".to_owned(), secret)]);
        // What another provider creates in the cluster.
        let service = ResourceId::part(&site.name, &"gateway".parse().unwrap(), "service").unwrap();
        let balancer = Outputs::from([("address".to_owned(), "203.0.113.20".into())]);
        let known = |id: &ResourceId| match id {
            id if *id == password => Some(&secret),
            id if *id == service => Some(&balancer),
            _ => None,
        };
        let mut all: Vec<Wanted> = Vec::new();
        for component in self.components(place) {
            all.extend(provider.lower(&component, &site).unwrap_or_else(|problems| panic!("{problems}")));
        }
        for one in &mut all {
            one.protected = false;
            one.spec = one.spec.resolve_known(known);
            one.needs.retain(|need| known(&need.on).is_none());
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
        let Place { repository, models, archives, endpoint, .. } = place;
        let base_domain = endpoint.domain.clone().filter(|_| self.names.1);
        let endpoint = Endpoint { base_domain, ..endpoint.clone() };
        let digit = self.image.unwrap_or_default();
        let image = self.image.map(|_| format!("{repository}:1.{digit}@sha256:{}", digit.to_string().repeat(64)));
        let gpu =
            self.gpu.map(|(count, max, spot)| GpuPool { max: Some(max), spot, ..GpuPool::of(GpuSize::Small, count) });
        let store = ModelStore {
            archive_after_days: self.archive_after_days.filter(|_| *archives),
            ..ModelStore::of(vec![Model::of("mine", models)])
        };
        let cluster = Cluster {
            gpu,
            allow_from: self.allow_from.then(|| vec!["203.0.113.0/24".to_owned()]),
            ..Cluster::of("network".parse().unwrap())
        };
        let parts = [
            (true, "network", ComponentSpec::Network(Network::default())),
            (self.models, "models", ComponentSpec::ModelStore(store)),
            (self.registry, "registry", ComponentSpec::Registry(Registry { url: repository.clone(), image })),
            (self.cluster, "cluster", ComponentSpec::Cluster(cluster)),
            (self.database, "database", ComponentSpec::Database(self.postgres())),
            (self.cluster && self.names.0, "gateway", ComponentSpec::Endpoint(endpoint)),
        ];
        let parts = parts.into_iter().filter(|(has, ..)| *has);
        parts.map(|(_, name, part)| Component { name: name.parse().unwrap(), existing: None, part }).collect()
    }

    fn postgres(&self) -> Database {
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
                replica_region: self.replica_region.map(str::to_owned),
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
