//! Every setting of the schema is either checked against what providers support, or known to need nothing of them.

use std::collections::BTreeSet;

use serde_json::Value;
use textnlp_orchestrator::environment::{Catalogue, Offer, Overrides, schema};
use textnlp_provider::capabilities::{Capabilities, Capability, Form, RuntimeSupport, Setting, Store};
use textnlp_provider::settings::{
    CacheKind, DatabaseCopy, DatabaseKind, Failover, GpuSize, Hosting, Runtime, Strategy, TlsMode, TrafficMode,
};

/// Settings that the orchestrator or the server realises itself, the same with every provider; a section where it ends with a dot.
const OWN: &[&str] = &[
    "account.mandatory_tags",
    "backup.credentials",
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
    "cache.existing",
    "cache.hosting",
    "cache.max_connections",
    "cache.memory",
    "cache.replicas",
    "cache.size",
    "cache.ttl",
    "cache.url",
    "cluster.access[].",
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
    "gpu.per_machine",
    "gpu.spot",
    "network.existing",
    "registry.user",
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
    "sites[].existing.network",
    "sites[].existing.registry",
    "sites[].existing.role",
    "sites[].existing.subnets",
    "sites[].existing.zone",
    "sites[].gpu.",
    "sites[].instance_type",
    "sites[].tags",
    "storage.existing",
    "storage.model_cache",
    "tls.days",
    "tls.directory",
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
    let exists = |path: &str| {
        settings
            .iter()
            .any(|one| one == path || one.starts_with(&format!("{path}.")) || one.starts_with(&format!("{path}[")))
    };
    let gone: Vec<&&str> = checked.iter().filter(|path| !exists(path)).collect();
    assert!(gone.is_empty(), "no such setting: {gone:?}");
}

#[test]
fn provider_without_capabilities_is_refused_every_setting() {
    let runtimes = &[RuntimeSupport { runtime: Runtime::Process, supported: &[], refused: &[] }];
    let capabilities = Capabilities { runtimes, ..Capabilities::default() };
    let mut catalogue = Catalogue::default();
    catalogue.providers.insert("onprem".to_owned(), Offer { capabilities, ..Offer::default() });
    let asked = "network: { waf: true, policies: true, cidr: 10.0.0.0/16, subnets: [a] }\n\
                 features: { a: true }\ntags: { team: a }\ncluster: { version: \"1.30\", max_nodes: 2, node_size: large, allow_from: [], access: [{ identity: ann, level: view }] }\n\
                 scaling: { max: 3, cpu: 70 }\nbackup: { enabled: true }\nmonitoring: { stack: true }\n\
                 storage: { model_folder: /models, replicate_to: eu-west-1 }\ngpu: { size: small, max: 2, machines: [a], upgrade: surge }\ndatabase: { kind: postgres, hosting: managed, replica_region: eu-west-1 }\ncache: { kind: redis, hosting: managed }\n\
                 maintenance: { day: sunday, at: \"03:00\", hours: 4 }\n\
                 budget: { billing_export: my-project.costs.gcp_billing_export_v1_A }\n";
    let said = super::said(super::load(&format!("{}{asked}", super::GOOD), &Overrides::default(), &catalogue));
    for path in [
        "backup.destination",
        "backup.enabled",
        "budget.billing_export",
        "cache.kind",
        "cluster.access",
        "cluster.allow_from",
        "cluster.max_nodes",
        "cluster.node_size",
        "cluster.version",
        "database.kind",
        "database.replica_region",
        "features",
        "gpu.machines",
        "gpu.max",
        "gpu.size",
        "gpu.upgrade",
        "maintenance",
        "monitoring.stack",
        "network.cidr",
        "network.policies",
        "network.subnets",
        "network.waf",
        "rollout.strategy",
        "scaling.max",
        "state.store",
        "storage.model_folder",
        "storage.replicate_to",
        "tags",
        "tls.mode",
        "traffic.mode",
    ] {
        assert!(said.contains(&format!("not yet: `{path}`")), "{path}:\n{said}");
    }
    assert!(!said.contains("error:"), "every setting is valid: {said}");
}

#[test]
fn feature_flags_without_effect_are_refused_with_the_reason() {
    const FEATURES: RuntimeSupport = RuntimeSupport {
        runtime: Runtime::Process,
        supported: &[Capability::Optional(Setting::Features)],
        refused: &[],
    };
    let mut catalogue = Catalogue::default();
    let capabilities = Capabilities { runtimes: &[FEATURES], ..Capabilities::default() };
    catalogue.providers.insert("onprem".to_owned(), Offer { capabilities, ..Offer::default() });
    let text = format!("{}features: {{ sso: true, custom_models: true, beta: true }}\n", super::GOOD);
    let said = super::said(super::load(&text, &Overrides::default(), &catalogue));
    for (name, why) in [("sso", "`server.security.oidc`"), ("custom_models", "`models[].tenant`")] {
        assert!(said.contains(&format!("not yet: `features.{name}`")) && said.contains(why), "{said}");
    }
    assert!(!said.contains("`features.beta`") && !said.contains("`features`:"), "{said}");
}

/// What one runtime of a provider supports says nothing about another.
#[test]
fn capabilities_are_by_provider_and_runtime() {
    const PODS: RuntimeSupport =
        RuntimeSupport { runtime: Runtime::Kubernetes, supported: &[Capability::Tls(TlsMode::LocalCa)], refused: &[] };
    const ENDPOINTS: RuntimeSupport =
        RuntimeSupport { runtime: Runtime::Sagemaker, supported: &[Capability::Tls(TlsMode::Off)], refused: &[] };
    let capabilities = Capabilities { runtimes: &[PODS, ENDPOINTS], ..Capabilities::default() };
    let mut catalogue = Catalogue::default();
    catalogue.providers.insert("cumulus".to_owned(), Offer { capabilities, ..Offer::default() });
    let of = |runtime: &str| {
        let site = format!("name: here, provider: cumulus, runtime: {runtime}, region: north-1");
        let text = super::GOOD.replace("name: here, provider: onprem", &site);
        super::said(super::load(&text, &Overrides::default(), &catalogue))
    };
    let refused = "provider `cumulus` with `runtime: sagemaker` does not support `local-ca`; use `off`";
    assert!(of("sagemaker").contains(refused), "{}", of("sagemaker"));
    assert!(!of("kubernetes").contains("`local-ca`"), "{}", of("kubernetes"));
    let none = "provider `cumulus` does not support the runtime `process`; use `kubernetes` or `sagemaker`";
    assert!(of("process").contains(none), "{}", of("process"));
}

#[test]
fn supported_destinations_are_named_as_a_file_has_them() {
    const STORES: &[Capability] = &[
        Capability::Database(DatabaseKind::Sqlite, None),
        Capability::Database(DatabaseKind::Postgres, Some(Hosting::Cluster)),
        Capability::Tls(TlsMode::LocalCa),
        Capability::Traffic(TrafficMode::Gateway),
        Capability::Rollout(Strategy::Rolling),
        Capability::State(Store::Folder),
        Capability::Backup(Store::Folder),
        Capability::Backup(Store::S3),
    ];
    const PROCESSES: RuntimeSupport = RuntimeSupport { runtime: Runtime::Process, supported: STORES, refused: &[] };
    const PODS: RuntimeSupport = RuntimeSupport { runtime: Runtime::Kubernetes, supported: STORES, refused: &[] };
    let capabilities = Capabilities { runtimes: &[PROCESSES, PODS], ..Capabilities::default() };
    let mut catalogue = Catalogue::default();
    catalogue.providers.insert("cumulus".to_owned(), Offer { capabilities, ..Offer::default() });
    let of = |runtime: &str| {
        let site = format!("name: here, provider: cumulus, runtime: {runtime}");
        let text = super::GOOD.replace("name: here, provider: onprem", &site);
        let more = "database: { kind: postgres, hosting: cluster }\nbackup: { enabled: true, destination: \"ftp://host/backups\", credentials: \"secret:file:/k\" }\n";
        super::said(super::load(&(text + more), &Overrides::default(), &catalogue))
    };
    let refused = "does not support `ftp://host/backups`; use ";
    let folder = format!("{refused}the absolute path of a folder or `s3://BUCKET/PREFIX`");
    assert!(of("process").contains(&folder), "{}", of("process"));
    // A cluster refuses a folder.
    assert!(of("kubernetes").contains(&format!("{refused}`s3://BUCKET/PREFIX`")), "{}", of("kubernetes"));
}

#[test]
fn one_site_whose_provider_reads_an_export_of_bills_is_enough() {
    const PLAIN: RuntimeSupport = RuntimeSupport { runtime: Runtime::Process, supported: &[], refused: &[] };
    const EXPORT: RuntimeSupport = RuntimeSupport {
        runtime: Runtime::Kubernetes,
        supported: &[Capability::Optional(Setting::BillingExport)],
        refused: &[],
    };
    let mut catalogue = Catalogue::default();
    for (name, runtimes) in [("onprem", &[PLAIN]), ("cumulus", &[EXPORT])] {
        let capabilities = Capabilities { runtimes, ..Capabilities::default() };
        catalogue.providers.insert(name.to_owned(), Offer { capabilities, ..Offer::default() });
    }
    let of = |site: &str| {
        let text = super::GOOD.replace("provider: onprem }", &format!("provider: onprem }}{site}"));
        let text = format!("{text}budget: {{ billing_export: my-project.costs.gcp_billing_export_v1_A }}\n");
        super::said(super::load(&text, &Overrides::default(), &catalogue))
    };
    let other = |provider: &str, runtime: &str| {
        of(&format!(", {{ name: there, provider: {provider}, runtime: {runtime}, region: north-1, role: secondary }}"))
    };
    for said in [of(""), other("onprem", "process")] {
        assert!(said.contains("not yet: `budget.billing_export`"), "{said}");
    }
    let said = other("cumulus", "kubernetes");
    assert!(!said.contains("budget.billing_export"), "{said}");
}

#[test]
fn upgrades_of_gpu_machines_are_asked_of_the_sites_that_have_the_setting() {
    const PLAIN: RuntimeSupport = RuntimeSupport { runtime: Runtime::Process, supported: &[], refused: &[] };
    const UPGRADES: RuntimeSupport = RuntimeSupport {
        runtime: Runtime::Kubernetes,
        supported: &[Capability::Optional(Setting::GpuUpgrade)],
        refused: &[],
    };
    let mut catalogue = Catalogue::default();
    for (name, runtimes) in [("onprem", &[PLAIN]), ("cumulus", &[UPGRADES])] {
        let capabilities = Capabilities { runtimes, ..Capabilities::default() };
        catalogue.providers.insert(name.to_owned(), Offer { capabilities, ..Offer::default() });
    }
    let of = |here: &str, there: &str| {
        let other = "name: there, provider: cumulus, runtime: kubernetes, region: north-1, role: secondary";
        let sites = format!("provider: onprem{here} }}, {{ {other}{there} }}");
        let text = super::GOOD.replace("provider: onprem }", &sites);
        super::said(super::load(&text, &Overrides::default(), &catalogue))
    };
    let gpu = ", gpu: { size: small, upgrade: surge }";
    assert!(!of("", gpu).contains("`gpu.upgrade`"), "{}", of("", gpu));
    assert!(of(gpu, "").contains("not yet: `gpu.upgrade`"), "{}", of(gpu, ""));
}

#[test]
fn settings_without_effect_on_an_inference_endpoint_are_errors() {
    let with = |site: &str, more: &str| {
        let site = format!("name: here, provider: aws, region: eu-west-1, {site}");
        let text = super::GOOD.replace("name: here, provider: onprem", &site);
        super::said(super::load(&format!("{text}{more}"), &Overrides::default(), &Catalogue::default()))
    };
    let fits = with("runtime: sagemaker, instance_type: ml.m5.xlarge", "scaling: { max: 4, requests_per_second: 5 }\n");
    assert!(!fits.contains("error"), "{fits}");
    let said = with(
        "runtime: sagemaker, port: 9443, existing: { network: vpc-1 }",
        "traffic: { domain: a.example.com }\nserver: { security: { rate_limit: 5/hour } }\n",
    );
    for path in ["sites[0].port", "sites[0].existing.network", "traffic", "server.security.rate_limit"] {
        assert!(
            said.contains(&format!("error: `{path}`: it has no effect with `runtime: sagemaker`")),
            "{path}: {said}"
        );
    }
    let fits = with(
        "runtime: sagemaker, instance_type: ml.g6e.xlarge, cluster: { image: r.example/t:1 }",
        "gpu: { size: large }\nscaling: { max: 4, requests_per_second: 5 }\n",
    );
    assert!(!fits.contains("error"), "{fits}");
    let said = with(
        "runtime: sagemaker, cluster: { image: r.example/t:1, context: mine }",
        "gpu: { size: large, count: 2 }\n",
    );
    assert!(said.contains("error: `gpu.count`: it has no effect with `runtime: sagemaker`"), "{said}");
    assert!(said.contains("error: `sites[0].cluster.context`"), "{said}");
    assert!(!said.contains("`sites[0].cluster.image`"), "{said}");
    let said = with("runtime: process, instance_type: ml.m5.xlarge", "");
    assert!(said.contains("`sites[0].instance_type`: with `runtime: process` it has no effect"), "{said}");
    let of_nodes = "runtime: kubernetes, instance_type: m7i.2xlarge";
    assert!(!with(of_nodes, "").contains("instance_type"), "{}", with(of_nodes, ""));
    let said = with(of_nodes, "cluster: { node_size: large }\n");
    let refused = "error: `sites[0].instance_type`: `cluster.node_size` chooses the machines of the same nodes";
    assert!(said.contains(refused), "{said}");
    let fits = with(
        "runtime: cloud-run, cluster: { image: r.example/t:1, resources: { limits: { cpu: 4, memory: 16GiB } } }",
        "scaling: { max: 4 }\n",
    );
    assert!(!fits.contains("error"), "{fits}");
    let said = with(
        "runtime: cloud-run, instance_type: ml.m5.xlarge, cluster: { context: mine, resources: { requests: { cpu: 1 } } }",
        "gpu: { size: large, count: 2 }\nscaling: { max: 4, requests_per_second: 5 }\n",
    );
    for path in ["gpu.count", "scaling.requests_per_second"] {
        let refused = format!("error: `{path}`: it has no effect with `runtime: cloud-run`");
        assert!(said.contains(&refused), "{path}: {said}");
    }
    for field in ["instance_type", "cluster.context", "cluster.resources"] {
        assert!(said.contains(&format!("error: `sites[0].{field}`")), "{field}: {said}");
    }
    let fits = with(
        "runtime: vertex, instance_type: g2-standard-8, cluster: { image: r.example/t:1 }",
        "gpu: { size: large }\nscaling: { max: 4, requests_per_second: 5 }\n",
    );
    assert!(!fits.contains("error"), "{fits}");
    let said = with(
        "runtime: vertex, cluster: { resources: { limits: { cpu: 4 } } }",
        "gpu: { size: large, count: 2 }\nscaling: { max: 4, cpu: 70 }\n",
    );
    for path in ["gpu.count", "scaling.cpu"] {
        let refused = format!("error: `{path}`: it has no effect with `runtime: vertex`");
        assert!(said.contains(&refused), "{path}: {said}");
    }
    assert!(said.contains("error: `sites[0].cluster.resources`"), "{said}");
    let fits = with(
        "runtime: azure-ml, instance_type: Standard_F8s_v2, cluster: { image: r.example/t:1 }",
        "scaling: { max: 4, requests_per_second: 5 }\n",
    );
    assert!(!fits.contains("error"), "{fits}");
    let said = with("runtime: azure-ml, cluster: { context: a }", "gpu: { size: large, count: 2 }\n");
    assert!(said.contains("error: `gpu.count`: it has no effect with `runtime: azure-ml`"), "{said}");
    assert!(said.contains("error: `sites[0].cluster.context`"), "{said}");
    let said = with("runtime: sagemaker }, { name: two, provider: onprem, role: secondary", "");
    assert!(said.contains("an inference endpoint is the only site of its environment"), "{said}");
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

#[test]
fn sessions_need_a_role_and_a_length_that_roles_have() {
    let said = |account: &str| {
        let text = format!("{}account: {{ {account} }}\n", super::GOOD);
        super::said(super::load(&text, &Overrides::default(), &Catalogue::default()))
    };
    let role = "existing_role: arn:aws:iam::123456789012:role/deployer";
    let all = "external_id: a, mfa_serial: b, session_duration: 4h";
    assert!(!said(&format!("{role}, {all}")).contains("`account."), "{}", said(&format!("{role}, {all}")));
    let alone = said(all);
    for field in ["external_id", "mfa_serial", "session_duration"] {
        assert!(alone.contains(&format!("`account.{field}`: it has no effect without a role")), "{alone}");
    }
    for length in ["10m", "13h"] {
        let said = said(&format!("{role}, session_duration: {length}"));
        assert!(said.contains("`account.session_duration`: no role has a session of this length"), "{said}");
    }
}

#[test]
fn only_a_managed_database_has_a_replica_in_another_region() {
    let with = |database: &str| {
        let text = format!("{}database: {{ {database}, replica_region: eu-west-1 }}\n", super::GOOD);
        super::said(super::load(&text, &Overrides::default(), &Catalogue::default()))
    };
    for database in ["kind: sqlite", "kind: postgres", "kind: postgres, hosting: cluster"] {
        assert!(
            with(database).contains("`database.replica_region`: only a database that a cloud manages"),
            "{database}"
        );
    }
    assert!(!with("kind: postgres, hosting: managed").contains("only a database that a cloud manages"));
}

#[test]
fn a_maintenance_window_is_for_what_a_cloud_operates_and_has_all_its_problems_in_one_report() {
    let with = |site: &str, more: &str| {
        let site = format!("name: here, provider: cumulus, runtime: kubernetes, region: north-1{site}");
        let text = super::GOOD.replace("name: here, provider: onprem", &site);
        super::said(super::load(&format!("{text}{more}"), &Overrides::default(), &Catalogue::default()))
    };
    let window = "maintenance: { day: sunday, at: \"03:00\", hours: 4 }\n";
    let yours = ", existing: { cluster: theirs }";
    let managed = "database: { kind: postgres, hosting: managed }\n";
    let refused = "error: `maintenance`: the database is not managed by a cloud, and the cluster is yours";
    assert!(with(yours, window).contains(refused), "{}", with(yours, window));
    for said in [with("", window), with(yours, &format!("{window}{managed}"))] {
        assert!(!said.contains("`maintenance"), "{said}");
    }
    let said = with("", "maintenance: { day: someday, at: \"3am\", hours: 24 }\n");
    for problem in ["`maintenance.day`", "`3am` is not a time of day", "`maintenance.hours`"] {
        assert!(said.contains(problem), "{problem}: {said}");
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

/// The form of an id is checked where its provider has one, at the place where it is written.
#[test]
fn ids_in_a_form_that_the_provider_does_not_have_are_errors() {
    const PODS: RuntimeSupport = RuntimeSupport { runtime: Runtime::Kubernetes, supported: &[], refused: &[] };
    const NUMBER: Form =
        Form { fits: |id| id.bytes().all(|byte| byte.is_ascii_digit()), says: "an account is a number" };
    const NORTH: Form = Form { fits: |id| id.starts_with("north"), says: "a region is like `north-1`" };
    const FORMS: &[(&str, Form)] = &[(Form::ACCOUNT, NUMBER), (Form::REGION, NORTH), (Form::ROLE, NUMBER)];
    let mut catalogue = Catalogue::default();
    for (name, forms) in [("cumulus", FORMS), ("stratus", &[])] {
        let capabilities = Capabilities { runtimes: &[PODS], forms, ..Capabilities::default() };
        catalogue.providers.insert(name.to_owned(), Offer { capabilities, ..Offer::default() });
    }
    let of = |site: &str, role: &str| {
        let text =
            super::GOOD.replace("name: here, provider: onprem", &format!("name: here, runtime: kubernetes, {site}"));
        super::said(super::load(
            &format!("{text}account: {{ existing_role: {role} }}\n"),
            &Overrides::default(),
            &catalogue,
        ))
    };
    let wrong = of("provider: cumulus, account: mine, region: south-1", "deploy");
    for says in [
        "provider `cumulus` has no id like `mine`; an account is a number",
        "provider `cumulus` has no id like `south-1`; a region is like `north-1`",
        "provider `cumulus` has no id like `deploy`; an account is a number",
    ] {
        assert!(wrong.contains(says), "{says}: {wrong}");
    }
    for right in [
        of("provider: cumulus, account: \"12\", region: north-1", "\"3\""),
        of("provider: cumulus", "\"3\""),
        of("provider: stratus, account: mine, region: south-1", "deploy"),
    ] {
        assert!(!right.contains("has no id like"), "{right}");
    }
}
