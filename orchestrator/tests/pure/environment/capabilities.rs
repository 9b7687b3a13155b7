//! Every setting of the schema is either checked against what providers support, or known to need nothing of them.

use std::collections::BTreeSet;

use serde_json::Value;
use textnlp_orchestrator::environment::{Catalogue, Offer, Overrides, schema};
use textnlp_provider::capabilities::{Capabilities, Capability, Setting, Store};
use textnlp_provider::settings::{
    CacheKind, DatabaseCopy, DatabaseKind, Failover, GpuSize, Runtime, Strategy, TlsMode, TrafficMode,
};

/// Settings that the orchestrator or the server realises itself, the same with every provider; a section where it ends with a dot.
const OWN: &[&str] = &[
    "account.mandatory_tags",
    "backup.every",
    "backup.keep",
    "backup.recipients",
    "backup.verify",
    "budget.",
    "data",
    "description",
    "dns.",
    "dr.drill",
    "dr.failback",
    "dr.lost_after",
    "dr.rpo",
    "dr.rto",
    "dr.warm",
    "dr.watch_every",
    "dr.witness.provider",
    "dr.witness.region",
    "environment",
    "extends",
    "gates.",
    "models[].",
    "monitoring.alerts.disk",
    "monitoring.alerts.memory",
    "monitoring.alerts.restarts",
    "phase",
    "prerequisites.",
    "replication.configuration.every",
    "replication.database.max_lag",
    "replication.models.compress",
    "replication.models.every",
    "server.",
    "sites[].host",
    "sites[].metrics_port",
    "sites[].name",
    "sites[].port",
    "sites[].provider",
    "sites[].region",
    "sites[].role",
    "sites[].runtime",
    "sites[].services[]",
    "state.encryption_key",
    "state.endpoint",
    "state.region",
    "traffic.domain",
    "traffic.metrics_port",
    "traffic.port",
    "traffic.weights",
];

/// Details of a setting that is checked, and settings that become components, which the provider refuses itself.
const DETAILS: &[&str] = &[
    "cache.db",
    "cache.existing",
    "cache.host",
    "cache.hosting",
    "cache.max_connections",
    "cache.port",
    "cache.url",
    "cluster.existing",
    "cluster.min_nodes",
    "cluster.namespace",
    "database.existing",
    "database.host",
    "database.hosting",
    "database.max_overflow",
    "database.name",
    "database.password",
    "database.pool_size",
    "database.port",
    "database.replicas",
    "database.size",
    "database.url",
    "database.user",
    "database.version",
    "gpu.count",
    "gpu.spot",
    "network.existing",
    "rollout.first_share",
    "rollout.prometheus.",
    "rollout.queries[].",
    "scaling.adapter",
    "scaling.cpu",
    "scaling.memory",
    "scaling.min",
    "scaling.requests_per_second",
    "sites[].account",
    "sites[].cluster.",
    "sites[].existing.bucket",
    "sites[].existing.cache",
    "sites[].existing.certificate",
    "sites[].existing.cluster",
    "sites[].existing.database",
    "sites[].existing.key",
    "sites[].existing.monitoring",
    "sites[].existing.network",
    "sites[].existing.registry",
    "sites[].existing.role",
    "sites[].existing.subnets",
    "sites[].existing.zone",
    "sites[].gpu.",
    "sites[].tags",
    "storage.existing",
    "storage.model_cache",
    "tls.days",
    "tls.email",
    "tls.existing",
    "tls.names",
];

#[test]
fn every_setting_is_checked_against_capabilities_or_exempt() {
    let checked: BTreeSet<&str> = [
        Capability::Database(DatabaseKind::Sqlite, None),
        Capability::Cache(CacheKind::Redis, None),
        Capability::Tls(TlsMode::Off),
        Capability::Gpu(GpuSize::None),
        Capability::Failover(Failover::None),
        Capability::Traffic(TrafficMode::Gateway),
        Capability::Rollout(Strategy::Rolling),
        Capability::Replication(DatabaseCopy::None),
        Capability::State(Store::Folder),
        Capability::Backup(Store::Folder),
    ]
    .into_iter()
    .chain(Setting::ALL.iter().map(|setting| Capability::Optional(*setting)))
    .map(Capability::path)
    .collect();
    let of = |list: &[&str], path: &str| {
        list.iter().any(|entry| path == *entry || entry.ends_with('.') && path.starts_with(entry))
    };
    let mut settings = BTreeSet::new();
    leaves(&schema(), &schema(), "", &mut settings);
    let is_checked = |path: &str| checked.iter().any(|one| path == *one || path.starts_with(&format!("{one}.")));
    let forgotten: Vec<&String> =
        settings.iter().filter(|path| !is_checked(path) && !of(OWN, path) && !of(DETAILS, path)).collect();
    assert!(forgotten.is_empty(), "neither a capability nor known to need none: {forgotten:#?}");
    let exists = |path: &str| settings.iter().any(|one| one == path || one.starts_with(&format!("{path}.")));
    let gone: Vec<&&str> = checked.iter().filter(|path| !exists(path)).collect();
    assert!(gone.is_empty(), "no such setting: {gone:?}");
}

#[test]
fn provider_without_capabilities_is_refused_every_setting() {
    let capabilities = Capabilities { runtimes: &[Runtime::Process], supported: &[] };
    let mut catalogue = Catalogue::default();
    catalogue.providers.insert("onprem".to_owned(), Offer { capabilities, ..Offer::default() });
    let asked = "network: { waf: true, policies: true, cidr: 10.0.0.0/16, subnets: [a], open_ports: [9000] }\n\
                 features: { a: true }\ntags: { team: a }\ncluster: { restricted: false, version: \"1.30\", max_nodes: 2, allow_from: [] }\n\
                 scaling: { max: 3, cpu: 70 }\nbackup: { enabled: true }\nmonitoring: { stack: true, retention: 30d }\n\
                 storage: { model_folder: /models }\ngpu: { size: small }\ncache: { kind: redis, hosting: managed }\n";
    let said = super::said(super::load(&format!("{}{asked}", super::GOOD), &Overrides::default(), &catalogue));
    for path in [
        "backup.destination",
        "backup.enabled",
        "cache.kind",
        "cluster.allow_from",
        "cluster.max_nodes",
        "cluster.restricted",
        "cluster.version",
        "database.kind",
        "features",
        "gpu.size",
        "monitoring.retention",
        "monitoring.stack",
        "network.cidr",
        "network.open_ports",
        "network.policies",
        "network.subnets",
        "network.waf",
        "rollout.strategy",
        "scaling.max",
        "state.store",
        "storage.model_folder",
        "tags",
        "tls.mode",
        "traffic.mode",
    ] {
        assert!(said.contains(&format!("not yet: `{path}`")), "{path}:\n{said}");
    }
    assert!(!said.contains("error:"), "every setting is valid: {said}");
}

#[test]
fn networks_that_reach_the_api_server_are_checked() {
    let with = |networks: &str| {
        let text = format!("{}cluster: {{ allow_from: {networks} }}\n", super::GOOD);
        super::load(&text, &Overrides::default(), &Catalogue::default())
    };
    let loaded = with("[203.0.113.0/24, 198.51.100.7]").unwrap();
    assert_eq!(loaded.environment.cluster.allow_from.map(|networks| networks.len()), Some(2));
    let said = super::said(with("[203.0.113.7/24, office]"));
    for (i, network) in ["203.0.113.7/24", "office"].into_iter().enumerate() {
        let expected = format!("`cluster.allow_from[{i}]`: `{network}` is neither an address nor a network");
        assert!(said.contains(&expected), "{said}");
    }
}

/// The paths of everything that can be written, without the keys of maps.
fn leaves(root: &Value, node: &Value, path: &str, found: &mut BTreeSet<String>) {
    if let Some(name) = node["$ref"].as_str() {
        return leaves(root, &root["$defs"][name.trim_start_matches("#/$defs/")], path, found);
    }
    let options = ["anyOf", "oneOf", "allOf"].map(|key| node[key].as_array().into_iter().flatten());
    let inner: Vec<&Value> =
        options.into_iter().flatten().filter(|one| one["type"] != "null" && one.get("const").is_none()).collect();
    if !inner.is_empty() {
        return inner.into_iter().for_each(|one| leaves(root, one, path, found));
    }
    if let Some(properties) = node["properties"].as_object() {
        let dot = if path.is_empty() { "" } else { "." };
        return properties.iter().for_each(|(key, value)| leaves(root, value, &format!("{path}{dot}{key}"), found));
    }
    if node["items"].is_object() && (node["items"]["properties"].is_object() || node["items"]["$ref"].is_string()) {
        return leaves(root, &node["items"], &format!("{path}[]"), found);
    }
    found.insert(path.to_owned());
}
