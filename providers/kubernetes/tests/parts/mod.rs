//! The components of a site with everything on, and what they become in a cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use textnlp_kubernetes::{Access, Kubernetes};
use textnlp_provider::cluster::{
    Analytics, Balancer, BucketIdentity, CloudCache, ClusterAccess, ClusterGpus, ClusterIngress, ClusterModels,
    ClusterNodes, ClusterSite, IngressKind, ModelVolume, NodeAutoscaler, NodeChoice, OwnPostgres, PodResources,
    RegistryAccount, ResourceAmounts, TaintEffect, Toleration, TolerationOperator,
};
use textnlp_provider::component::*;
use textnlp_provider::settings::{DatabaseKind, Hosting, ModelRole, Quantize, Role, Runtime, Spot, Strategy};
use textnlp_provider::units::{Bytes, Cores, Span};
use textnlp_provider::{Component, Problems, Provider, Site, Wanted};

use crate::world;

/// A site in a cluster, and what its environment sets for the components of each case.
#[derive(Clone)]
pub struct Fixture {
    pub namespace: String,
    pub settings: ClusterAccess,
    pub domain: Option<String>,
    pub waf: bool,
    pub rollout: Strategy,
    pub adapter: bool,
    pub replicates: bool,
    pub certificate: Option<String>,
    pub postgres: Option<OwnPostgres>,
    pub egress: Egress,
    pub saml: Option<FileText>,
    pub prometheus_ca: Option<FileText>,
    pub max_nodes: Option<u32>,
    pub balancer: Option<Balancer>,
    pub gpu: Option<ClusterGpus>,
    pub nodes: Option<ClusterNodes>,
    pub node_choice: NodeChoice,
    pub bucket_identity: Option<BucketIdentity>,
    pub cache: CloudCache,
    pub node_autoscaler: Option<NodeAutoscaler>,
    pub registry: Option<RegistryAccount>,
    pub min_nodes: u32,
    pub pinned: bool,
}

impl Fixture {
    /// With these settings besides the others.
    pub fn set(self, set: impl FnOnce(&mut ClusterAccess)) -> Self {
        let mut settings = self.settings.clone();
        set(&mut settings);
        Self { settings, ..self }
    }

    pub fn cluster(&self) -> ClusterSite {
        ClusterSite {
            namespace: self.namespace.clone(),
            image_from: None,
            registry: self.registry.clone(),
            settings: self.settings.clone(),
            rollout: self.rollout,
            certificate: self.certificate.clone(),
            postgres: self.postgres.clone(),
            adapter: self.adapter,
            replicates: self.replicates,
            pinned: self.pinned,
            min_nodes: self.min_nodes,
            phase_nodes: 1,
            max_nodes: self.max_nodes,
            balancer: self.balancer.clone(),
            gpu: self.gpu.clone(),
            existing: false,
            nodes: self.nodes.clone(),
            node_choice: self.node_choice.clone(),
            bucket_identity: self.bucket_identity.clone(),
            cache: self.cache.clone(),
            node_autoscaler: self.node_autoscaler.clone(),
        }
    }

    fn site(&self) -> Site {
        Site { cluster: Some(Box::new(self.cluster())), ..site() }
    }

    fn component(&self, component: &Component) -> Component {
        let mut component = component.clone();
        match &mut component.part {
            ComponentSpec::Endpoint(endpoint) => {
                endpoint.domain.clone_from(&self.domain);
                endpoint.waf = self.waf;
            }
            ComponentSpec::Workload(workload) => {
                workload.egress = self.egress.clone();
                workload.saml.clone_from(&self.saml);
                if let Some(outside) = &mut workload.outside {
                    outside.ca.clone_from(&self.prometheus_ca);
                }
            }
            _ => {}
        }
        component
    }
}

/// An image by digest.
pub fn pinned(image: &str) -> String {
    format!("{image}@sha256:{}", "cd".repeat(32))
}

pub fn fixture() -> Fixture {
    let pair = |cpu, memory| ResourceAmounts { cpu: Some(Cores(cpu)), memory: Some(Bytes(memory)) };
    Fixture {
        namespace: "textnlp".to_owned(),
        settings: ClusterAccess {
            image: Some(pinned("registry.example.com/textnlp:v1.0.0")),
            resources: PodResources { requests: pair(2000, 4 << 30), limits: pair(4000, 8 << 30) },
            ..ClusterAccess::default()
        },
        domain: Some("textnlp.example.com".to_owned()),
        waf: false,
        rollout: Strategy::Rolling,
        adapter: false,
        replicates: false,
        certificate: None,
        postgres: None,
        egress: Egress { policies: true, ..Egress::default() },
        saml: None,
        prometheus_ca: None,
        max_nodes: None,
        balancer: None,
        gpu: None,
        nodes: None,
        node_choice: NodeChoice::default(),
        bucket_identity: None,
        cache: CloudCache::default(),
        node_autoscaler: None,
        registry: None,
        min_nodes: 1,
        pinned: true,
    }
}

/// A site of which only the cluster is known.
pub fn bare() -> Fixture {
    fixture().set(|settings| *settings = ClusterAccess::default())
}

/// A site behind an ingress for ingress-nginx.
pub fn by_nginx(issuer: Option<&str>, fixture: Fixture) -> Fixture {
    Fixture { domain: Some("text.example.com".to_owned()), ..fixture }.set(|settings| {
        settings.ingress = Some(ClusterIngress {
            class: Some("nginx".to_owned()),
            tls_secret: Some("site-tls".to_owned()),
            issuer: issuer.map(str::to_owned),
            ..ClusterIngress::default()
        });
    })
}

/// A site whose images are in a private registry.
pub fn with_registry(fixture: Fixture) -> Fixture {
    let (address, user) = ("registry.example.com".to_owned(), "ci".to_owned());
    Fixture { registry: Some(RegistryAccount { address, user, secrets: "secrets".parse().unwrap() }), ..fixture }
}

/// A site behind a route of OpenShift.
pub fn by_route(fixture: Fixture) -> Fixture {
    Fixture { domain: Some("text.example.com".to_owned()), ..fixture }.set(|settings| {
        settings.ingress = Some(ClusterIngress { kind: IngressKind::Route, ..ClusterIngress::default() });
    })
}

/// A site whose pods mount an image with the models.
pub fn with_model_image(reference: &str, fixture: Fixture) -> Fixture {
    let reference = Some(reference.to_owned());
    let models = ClusterModels { kind: ModelVolume::Image, reference, ..ClusterModels::default() };
    fixture.set(|settings| settings.models = models)
}

pub fn site() -> Site {
    Site {
        environment: "pilot".parse().unwrap(),
        name: "main".parse().unwrap(),
        account: "https://127.0.0.1:6443".to_owned(),
        region: "local".to_owned(),
        runtime: Runtime::Kubernetes,
        role: Some(Role::Primary),
        tags: BTreeMap::from([("team".to_owned(), "text".to_owned())]),
        protect_data: true,
        cluster: None,
        subnets: Vec::new(),
        maintenance: None,
    }
}

pub fn component(name: &str, part: ComponentSpec) -> Component {
    Component { name: name.parse().unwrap(), existing: None, part }
}

pub fn program() -> Program {
    Program { path: "/opt/textnlp-deploy".to_owned(), digest: format!("sha256:{}", "ab".repeat(32)) }
}

pub fn database() -> Database {
    let given = ExternalSecret { source: "secret:env:DATABASE_URL".to_owned(), version: "abc123".to_owned() };
    let postgres = Postgres {
        address: Some(DatabaseAddress::Secret(given)),
        ca_file: None,
        name: "textnlp".to_owned(),
        version: 15,
        port: None,
        replicas: 0,
        connections: 60,
        secrets: "secrets".parse().unwrap(),
        cluster: "cluster".parse().unwrap(),
        program: program(),
        archive_seconds: None,
        between: None,
        managed: None,
    };
    let hosting = Some(Hosting::External);
    Database { kind: DatabaseKind::Postgres, hosting, schema: Some(7), postgres: Some(Box::new(postgres)) }
}

pub fn own_fixture() -> Fixture {
    let postgres =
        OwnPostgres { version: 15, database: "textnlp".to_owned(), disk_bytes: 100 << 30, backup_bytes: 200 << 30 };
    Fixture { postgres: Some(postgres), ..fixture() }
}

pub fn own_postgres() -> Postgres {
    let Some(postgres) = database().postgres else { unreachable!() };
    Postgres { address: None, replicas: 2, ..*postgres }
}

pub fn own_stored() -> Database {
    Database { hosting: Some(Hosting::Cluster), postgres: Some(Box::new(own_postgres())), ..database() }
}

pub fn backup() -> Backup {
    Backup {
        every_seconds: 86_400,
        keep_seconds: 30 * 86_400,
        destination: None,
        verify: true,
        recipients: vec!["age1own".to_owned(), "age1other".to_owned()],
        point_in_time_seconds: None,
        managed: None,
        copies: None,
    }
}

/// A whole site with its database in the cluster.
pub fn own_objects(fixture: &Fixture) -> Vec<Wanted> {
    let mut parts: Vec<Component> = whole()
        .into_iter()
        .map(|one| match one.part {
            ComponentSpec::Database(_) => component("database", ComponentSpec::Database(own_stored())),
            ComponentSpec::Workload(workload) => {
                component("server", ComponentSpec::Workload(Workload { stored: own_stored(), ..workload }))
            }
            part => Component { part, ..one },
        })
        .collect();
    parts.push(component("backup", ComponentSpec::Backup(backup())));
    parts.iter().flat_map(|one| lowered(one, fixture.clone()).unwrap()).collect()
}

/// What becomes of a database in the cluster: itself, its dumps, and whoever asks it.
pub fn own_database(fixture: &Fixture) -> Vec<Wanted> {
    let wanted = ["/allow-database", "/owner", "/cluster", "/volume", "/script", "/schedule", "/restore", "/migrate"];
    let made = own_objects(fixture).into_iter();
    made.filter(|one| wanted.iter().any(|end| one.id.as_str().ends_with(end))).collect()
}

pub fn workload() -> Workload {
    let config = json!({ "textnlp": {
        "environment": "pilot",
        "api": { "timeout": 300, "drain_seconds": 30, "require_https": true },
        "models": { "default": "textnlp-tiny", "max_cache_size": "50GB", "serve": [{ "name": "textnlp-tiny", "quantize": "q8_0" }] },
        "database": { "pool_size": 20, "max_overflow": 40 },
        "security": { "jwt_algorithm": "RS256" },
        "monitoring": { "metrics_port": 9090, "log_file": null },
    } });
    Workload {
        replicas: 3,
        autoscaling: None,
        program: program(),
        config,
        cluster: "cluster".parse().unwrap(),
        models: "models".parse().unwrap(),
        database: "database".parse().unwrap(),
        stored: database(),
        cache: None,
        secrets: "secrets".parse().unwrap(),
        first_key: true,
        watch: None,
        drain_seconds: 30,
        canary: Some(Canary {
            share: Some(10),
            bake_seconds: 600,
            deadline_seconds: 3600,
            slow_ms: 500,
            error_rate: 0.01,
        }),
        outside: None,
        served: models().models,
        egress: Egress::default(),
        saml: None,
    }
}

/// What differs where a new release shows on a few pods first.
pub fn canary(fixture: &Fixture) -> Vec<Wanted> {
    let plain = objects(fixture);
    let made = objects(&Fixture { rollout: Strategy::BlueGreen, ..fixture.clone() });
    made.into_iter().filter(|one| plain.iter().all(|other| one.id != other.id || one.spec != other.spec)).collect()
}

/// A release that a Prometheus judges too: one that asks for a token.
pub fn judged() -> Workload {
    let query = Query {
        name: "errors seen by clients".to_owned(),
        query: "sum(rate(x{namespace=\"{{namespace}}\",pod=~\"textnlp-api-{{new}}-.*\"}[1m]))".to_owned(),
        at_most: Some(0.01),
        at_least: None,
        samples: 3,
    };
    Workload {
        outside: Some(PrometheusQueries {
            url: "https://prometheus".to_owned(),
            token: true,
            ca: None,
            queries: vec![query],
        }),
        ..workload()
    }
}

pub fn analytics(spot: Spot) -> Analytics {
    Analytics {
        image: Some(pinned("registry.example.com/textnlp-analytics:1")),
        schedule: "0 * * * *".to_owned(),
        command: ["python", "-m", "textnlp.analytics.process"].map(str::to_owned).into(),
        deadline: Span::seconds(3000),
        memory: Bytes(1 << 30),
        spot,
    }
}

/// A site with all that may be beside its servers, and with nodes of their own.
pub fn with_parts(fixture: Fixture) -> Fixture {
    let saml = Some(Ok(r#"{"sp":{"entityId":"https://a"},"idp":{"entityId":"https://b"}}"#.to_owned()));
    let gpu = Some(ClusterGpus {
        count: 8,
        existing: false,
        node_selector: BTreeMap::from([("textnlp/pool".to_owned(), "gpu".to_owned())]),
        tolerations: Vec::new(),
        device_plugin: true,
    });
    Fixture { saml, gpu, ..fixture }.set(|settings| {
        settings.analytics = Some(analytics(Spot::Prefer));
        settings.models = ClusterModels {
            kind: ModelVolume::Claim,
            size: Some(Bytes(100 << 30)),
            storage_class: Some("shared".to_owned()),
            reference: None,
        };
        settings.node_selector = BTreeMap::from([("pool".to_owned(), "text".to_owned())]);
        settings.tolerations = vec![Toleration {
            key: Some("nvidia.com/gpu".to_owned()),
            operator: TolerationOperator::Exists,
            value: None,
            effect: Some(TaintEffect::NoSchedule),
        }];
        settings.runtime_class = Some("gvisor".to_owned());
        settings.priority_class = Some("system-cluster-critical".to_owned());
    })
}

/// What differs where a site has them.
pub fn beside(fixture: &Fixture) -> Vec<Wanted> {
    let plain = objects(fixture);
    let made = objects(&with_parts(fixture.clone()));
    made.into_iter().filter(|one| plain.iter().all(|other| one.id != other.id || one.spec != other.spec)).collect()
}

/// A site whose clients come by a Gateway of the operator's.
pub fn by_gateway(fixture: Fixture) -> Fixture {
    Fixture { domain: Some("text.example.com".to_owned()), ..fixture }.set(|settings| {
        settings.ingress = Some(ClusterIngress {
            kind: IngressKind::Gateway,
            gateway: Some("infra/web".to_owned()),
            section: Some("https".to_owned()),
            ..ClusterIngress::default()
        });
    })
}

/// What differs where a share of them is led to the first pods of a new release, beside what a canary is anyway.
pub fn weighted(fixture: &Fixture) -> Vec<Wanted> {
    let by_gateway = by_gateway(Fixture { rollout: Strategy::BlueGreen, ..fixture.clone() });
    let plain = objects(&by_gateway);
    let made = objects(&Fixture { rollout: Strategy::Canary, ..by_gateway });
    made.into_iter().filter(|one| plain.iter().all(|other| one != other)).collect()
}

/// What differs where they do.
pub fn gateway(fixture: &Fixture) -> Vec<Wanted> {
    let plain = objects(fixture);
    let made = objects(&by_gateway(fixture.clone()));
    made.into_iter().filter(|one| plain.iter().all(|other| one != other)).collect()
}

/// What differs where an adapter of ours tells the autoscaler how many requests there are.
pub fn adapter(fixture: &Fixture) -> Vec<Wanted> {
    let plain = objects(fixture);
    let made = objects(&Fixture { adapter: true, ..fixture.clone() });
    made.into_iter().filter(|one| plain.iter().all(|other| one != other)).collect()
}

pub fn endpoint() -> Endpoint {
    Endpoint {
        host: "0.0.0.0".to_owned(),
        port: 8443,
        metrics_port: 9090,
        tls: true,
        certificate: "certificate".parse().unwrap(),
        workload: "server".parse().unwrap(),
        watch: None,
        program: program(),
        max_request_bytes: 10_000_000,
        timeout_seconds: 300,
        connections: Default::default(),
        domain: None,
        waf: false,
        zone: None,
        managed_certificate: false,
        acme: false,
        share: None,
        base_domain: None,
    }
}

pub fn models() -> ModelStore {
    let model = Model {
        name: "textnlp-tiny".to_owned(),
        source: "bundled".to_owned(),
        digest: Some(format!("sha256:{}", "cd".repeat(32))),
        role: Some(ModelRole::Default),
        quantize: Some(Quantize::Q8),
        context: Some(1024),
        preload: true,
    };
    ModelStore {
        models: vec![model],
        max_cache_bytes: 50_000_000_000,
        key: None,
        archive_after_days: None,
        replica: None,
        permission_boundary: None,
    }
}

/// The components of a site, with everything on that this version has.
pub fn whole() -> Vec<Component> {
    let autoscaling = Autoscaling { max: 20, cpu: Some(70), memory: Some(80), requests_per_second: Some(1000) };
    vec![
        component("network", ComponentSpec::Network(Network { cidr: None, policies: true, ..Network::default() })),
        component("cluster", ComponentSpec::Cluster(Cluster::of("network".parse().unwrap()))),
        component("models", ComponentSpec::ModelStore(models())),
        component("database", ComponentSpec::Database(database())),
        component("server", ComponentSpec::Workload(Workload { autoscaling: Some(autoscaling), ..workload() })),
        component("gateway", ComponentSpec::Endpoint(endpoint())),
        component("monitoring", ComponentSpec::Monitoring(Monitoring { stack: true, ..Monitoring::default() })),
    ]
}

pub fn lowered(component: &Component, fixture: Fixture) -> Result<Vec<Wanted>, Problems> {
    let access = Access::kubeconfig(None, None);
    let kubernetes = Kubernetes::new(access, Arc::new(world::Vault::default()));
    kubernetes.lower(&fixture.component(component), &fixture.site())
}

pub fn objects(fixture: &Fixture) -> Vec<Wanted> {
    whole().iter().flat_map(|one| lowered(one, fixture.clone()).unwrap()).collect()
}
