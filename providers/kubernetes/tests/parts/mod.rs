//! The components of a site with everything on, and what they become in a cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use textnlp_kubernetes::{Access, Analytics, Ingress, Kubernetes, ModelVolume, Nodes, OwnPostgres, Placement, Spot};
use textnlp_provider::component::*;
use textnlp_provider::{Component, Problems, Provider, Site, Wanted};

use crate::world;

pub fn placement() -> Placement {
    Placement {
        namespace: "textnlp".to_owned(),
        image: Some("registry.example.com/textnlp:v1.0.0".to_owned()),
        address: Some("https://textnlp.example.com:8443".to_owned()),
        model_bytes: Some(14_000_000_000),
        min_nodes: 1,
        ..Placement::default()
    }
}

pub fn site() -> Site {
    Site {
        environment: "pilot".parse().unwrap(),
        name: "main".parse().unwrap(),
        account: "https://127.0.0.1:6443".to_owned(),
        region: "local".to_owned(),
        runtime: "kubernetes".to_owned(),
        role: "primary".to_owned(),
        tags: BTreeMap::from([("team".to_owned(), "text".to_owned())]),
        protect_data: true,
    }
}

pub fn component(name: &str, part: Part) -> Component {
    Component { name: name.parse().unwrap(), existing: None, part }
}

pub fn program() -> Program {
    Program { path: "/opt/textnlp-deploy".to_owned(), digest: format!("sha256:{}", "ab".repeat(32)) }
}

pub fn database() -> Database {
    let given = Given { source: "secret:env:DATABASE_URL".to_owned(), version: "abc123".to_owned() };
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
    };
    let hosting = Some("external".to_owned());
    Database { kind: "postgres".to_owned(), hosting, schema: Some(7), postgres: Some(Box::new(postgres)) }
}

pub fn own_placement() -> Placement {
    let image = "ghcr.io/cloudnative-pg/postgresql:15".to_owned();
    let postgres = Some(OwnPostgres {
        image,
        version: 15,
        database: "textnlp".to_owned(),
        disk_bytes: 100 << 30,
        dumps_bytes: 200 << 30,
    });
    Placement { postgres, ..placement() }
}

pub fn own_postgres() -> Postgres {
    let Some(postgres) = database().postgres else { unreachable!() };
    Postgres { address: None, replicas: 2, ..*postgres }
}

pub fn own_stored() -> Database {
    Database { hosting: Some("cluster".to_owned()), postgres: Some(Box::new(own_postgres())), ..database() }
}

pub fn backup() -> Backup {
    Backup {
        every_seconds: 86_400,
        keep_seconds: 30 * 86_400,
        destination: None,
        verify: true,
        recipients: Vec::new(),
        point_in_time_seconds: None,
    }
}

/// A whole site with its database in the cluster.
pub fn own_objects(placement: &Placement) -> Vec<Wanted> {
    let mut parts: Vec<Component> = whole()
        .into_iter()
        .map(|one| match one.part {
            Part::Database(_) => component("database", Part::Database(own_stored())),
            Part::Workload(workload) => {
                component("server", Part::Workload(Workload { stored: own_stored(), ..workload }))
            }
            part => Component { part, ..one },
        })
        .collect();
    parts.push(component("backup", Part::Backup(backup())));
    parts.iter().flat_map(|one| lowered(one, placement.clone()).unwrap()).collect()
}

/// What becomes of a database in the cluster: itself, its dumps, and whoever asks it.
pub fn own_database(placement: &Placement) -> Vec<Wanted> {
    let wanted = ["/allow-database", "/owner", "/cluster", "/volume", "/script", "/schedule", "/restore", "/migrate"];
    let made = own_objects(placement).into_iter();
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
        growth: None,
        program: program(),
        config,
        cluster: "cluster".parse().unwrap(),
        models: "models".parse().unwrap(),
        database: "database".parse().unwrap(),
        stored: database(),
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
    }
}

/// What differs where a new release shows on a few pods first.
pub fn canary(placement: &Placement) -> Vec<Wanted> {
    let plain = objects(placement);
    let made = objects(&Placement { canary: true, ..placement.clone() });
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
        outside: Some(Outside { url: "https://prometheus".to_owned(), token: true, queries: vec![query] }),
        ..workload()
    }
}

pub fn analytics(spot: Spot) -> Analytics {
    Analytics {
        image: "registry.example.com/textnlp-analytics:latest".to_owned(),
        schedule: "0 * * * *".to_owned(),
        command: ["python", "-m", "textnlp.analytics.process"].map(str::to_owned).into(),
        deadline_seconds: 3000,
        memory_bytes: 1 << 30,
        spot,
    }
}

/// A site with all that may be beside its servers, and with nodes of their own.
pub fn with_parts(placement: Placement) -> Placement {
    Placement {
        analytics: Some(analytics(Spot::Prefer)),
        saml: Some(Ok(r#"{"sp":{"entityId":"https://a"},"idp":{"entityId":"https://b"}}"#.to_owned())),
        models: ModelVolume::Claim { bytes: 100 << 30, class: Some("shared".to_owned()) },
        nodes: Nodes {
            selector: BTreeMap::from([("pool".to_owned(), "text".to_owned())]),
            tolerations: vec![json!({ "key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule" })],
            runtime_class: Some("gvisor".to_owned()),
            priority_class: Some("system-cluster-critical".to_owned()),
        },
        ..placement
    }
}

/// What differs where a site has them.
pub fn beside(placement: &Placement) -> Vec<Wanted> {
    let plain = objects(placement);
    let made = objects(&with_parts(placement.clone()));
    made.into_iter().filter(|one| plain.iter().all(|other| one.id != other.id || one.spec != other.spec)).collect()
}

/// A site whose clients come by a Gateway of the operator's.
pub fn by_gateway(placement: Placement) -> Placement {
    let ingress = Ingress::Gateway {
        namespace: "infra".to_owned(),
        name: "web".to_owned(),
        section: Some("https".to_owned()),
        port: 443,
        host: "text.example.com".to_owned(),
    };
    let address = Some("https://text.example.com".to_owned());
    Placement { ingress: Some(ingress), led_by_others: true, address, ..placement }
}

/// What differs where a share of them is led to the first pods of a new release, beside what a canary is anyway.
pub fn weighted(placement: &Placement) -> Vec<Wanted> {
    let by_gateway = by_gateway(Placement { canary: true, ..placement.clone() });
    let plain = objects(&by_gateway);
    let made = objects(&Placement { weighted: true, ..by_gateway });
    made.into_iter().filter(|one| plain.iter().all(|other| one != other)).collect()
}

/// What differs where they do.
pub fn gateway(placement: &Placement) -> Vec<Wanted> {
    let plain = objects(placement);
    let made = objects(&by_gateway(placement.clone()));
    made.into_iter().filter(|one| plain.iter().all(|other| one != other)).collect()
}

/// What differs where an adapter of ours tells the autoscaler how many requests there are.
pub fn adapter(placement: &Placement) -> Vec<Wanted> {
    let plain = objects(placement);
    let made = objects(&Placement { adapter: true, ..placement.clone() });
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
    }
}

pub fn models() -> ModelStore {
    let model = Model {
        name: "textnlp-tiny".to_owned(),
        source: "bundled".to_owned(),
        digest: Some(format!("sha256:{}", "cd".repeat(32))),
        role: Some("default".to_owned()),
        quantize: Some("q8_0".to_owned()),
        context: Some(1024),
        preload: true,
    };
    ModelStore { models: vec![model], max_cache_bytes: 50_000_000_000 }
}

/// The components of a site, with everything on that this version has.
pub fn whole() -> Vec<Component> {
    let growth = Growth { max: 20, cpu: Some(70), memory: Some(80), requests_per_second: Some(1000) };
    vec![
        component("network", Part::Network(Network { cidr: None, policies: true })),
        component("cluster", Part::Cluster(Cluster { network: "network".parse().unwrap(), gpu: None })),
        component("models", Part::ModelStore(models())),
        component("database", Part::Database(database())),
        component("cache", Part::Cache(Cache { kind: "memory".to_owned() })),
        component("server", Part::Workload(Workload { growth: Some(growth), ..workload() })),
        component("gateway", Part::Endpoint(endpoint())),
        component("monitoring", Part::Monitoring(Monitoring { stack: true, ..Monitoring::default() })),
    ]
}

pub fn lowered(component: &Component, placement: Placement) -> Result<Vec<Wanted>, Problems> {
    let access = Access::Kubeconfig { file: None, context: None };
    Kubernetes::new(access, Arc::new(world::Vault::default())).placed(placement).lower(component, &site())
}

pub fn objects(placement: &Placement) -> Vec<Wanted> {
    whole().iter().flat_map(|one| lowered(one, placement.clone()).unwrap()).collect()
}
