//! Converts an environment into the components that providers plan.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use textnlp_net::network::Network;
use textnlp_net::redis::redis_url;
use textnlp_provider::cluster::{
    CloudCache, ClusterGpus, ClusterSite, NodeChoice, OwnPostgres, REGISTRY_PASSWORD, RegistryAccount, is_in_registry,
};
use textnlp_provider::component::{self as part, Component, ComponentSpec, Program, SecretRecipe, Site};
use textnlp_provider::{CloudId, ComponentName, SiteName};

use super::model::*;
use crate::release::{Release, pushes_image, with_images};

/// The names of the components. Resource ids contain them, so they must never change.
pub mod names {
    #![allow(missing_docs)] // each is its own word
    pub const NETWORK: &str = "network";
    pub const CLUSTER: &str = "cluster";
    pub const SECRETS: &str = "secrets";
    pub const CERTIFICATE: &str = "certificate";
    pub const MODELS: &str = "models";
    pub const DATABASE: &str = "database";
    pub const CACHE: &str = "cache";
    pub const SERVER: &str = "server";
    pub const GATEWAY: &str = "gateway";
    pub const BORDER: &str = "border";
    pub const WATCH: &str = "watch";
    pub const WITNESS: &str = "witness";
    pub const FRONT: &str = "front";
    pub const TRAFFIC: &str = "traffic";
    pub const MONITORING: &str = "monitoring";
    pub const REGISTRY: &str = "registry";
    pub const BACKUP: &str = "backup";
}

/// The secret with the first API key.
pub const API_KEY: &str = "api-key";
/// The secret that signs JSON Web Tokens.
pub const SIGNING_KEY: &str = "jwt-signing-key";
/// The key of the account at a public certificate authority.
pub const ACCOUNT_KEY: &str = "acme-account";
/// The password of a managed database.
pub const DATABASE_PASSWORD: &str = "database-password";

/// The password of a cache that a cloud runs.
pub const CACHE_PASSWORD: &str = part::CACHE_PASSWORD;

/// The password of the replicas of a managed database.
pub const REPLICATION_PASSWORD: &str = "replication-password";

/// The least memory of a managed cache whose environment names none.
const CACHE_MEMORY: Bytes = Bytes(1_000_000_000);
/// The variables with which a cluster signs in to the bucket of its copies.
const BACKUP_CREDENTIALS: &str = "backup-credentials";
/// The token for an external Prometheus.
const PROMETHEUS_TOKEN: &str = "prometheus-token";
/// The time that a gateway adds to the limit of what is behind it: the server ends a stream with an error event and the
/// end mark, and a gateway with the same limit would cut it off before.
const GATEWAY_GRACE_SECONDS: u64 = 5;
/// The port of an ingress without one of its own.
const HTTPS_PORT: u16 = 443;

/// What a form has besides its file.
const FORM_BYTES: u64 = 64 << 10;

/// A site of an environment, or the location of its witness, with its provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteOrWitness {
    /// The provider.
    pub provider: String,
    /// The location as providers see it; its account is empty if the environment names none.
    pub site: Site,
}

/// The locations of an environment: its sites in the order of the file, then that of the witness.
pub fn places(environment: &Environment) -> Vec<SiteOrWitness> {
    let sites = environment.sites.iter();
    let sites = sites.map(|site| SiteOrWitness { provider: site.provider.clone(), site: place(environment, site) });
    let witness = environment.witness_place().map(|place| SiteOrWitness {
        provider: place.provider.to_owned(),
        site: Site {
            environment: environment.environment.clone(),
            name: witness_name(),
            account: place.account.unwrap_or_default().to_owned(),
            region: place.region.to_owned(),
            runtime: place.runtime,
            role: None,
            tags: environment.tags.clone(),
            protect_data: environment.data == DataProtection::Protected,
            cluster: None,
            subnets: Vec::new(),
            maintenance: None,
        },
    });
    sites.chain(witness).collect()
}

/// The components of every location, in the order of [`places`], with the images of the release. Pure: equal
/// environments and releases give equal components.
pub fn components(environment: &Environment, release: &Release) -> Vec<(Site, Vec<Component>)> {
    let configured = environment;
    let environment = &with_images(environment, &release.lock);
    let of = |mut place: SiteOrWitness| {
        let settings = environment.sites.iter().find(|site| site.name == place.site.name);
        let mut sites = configured.sites.iter();
        let is_pushed = sites.any(|site| site.name == place.site.name && pushes_image(configured, site));
        if let Some(cluster) = &mut place.site.cluster {
            cluster.image_from = is_pushed.then(|| name(names::REGISTRY));
        }
        let pushed = settings.filter(|_| is_pushed).and_then(|settings| settings.cluster.image.clone());
        let made = match settings {
            Some(settings) if settings.is_endpoint() => of_endpoint(environment, settings, release, pushed),
            Some(settings) => of_site(environment, settings, release, pushed),
            None => of_witness(environment, &place.site, release),
        };
        (place.site, made)
    };
    places(environment).into_iter().map(of).collect()
}

fn witness_name() -> SiteName {
    SiteName::new(WITNESS).expect("the constant is a label")
}

fn name(name: &str) -> ComponentName {
    ComponentName::new(name).expect("built-in component names are labels")
}

fn place(environment: &Environment, site: &SiteSettings) -> Site {
    let mut tags = environment.tags.clone();
    tags.extend(site.tags.clone());
    let own = &site.existing.subnets;
    let subnets = if own.is_empty() { &environment.network.subnets } else { own };
    Site {
        environment: environment.environment.clone(),
        name: site.name.clone(),
        account: site.account.clone().unwrap_or_default(),
        region: site.region.clone(),
        runtime: site.runtime,
        role: Some(site.role),
        tags,
        protect_data: environment.data == DataProtection::Protected,
        cluster: site.is_in_cluster().then(|| Box::new(cluster_site(environment, site))),
        // Validation rejected invalid ids.
        subnets: subnets.iter().filter_map(|id| CloudId::new(id).ok()).collect(),
        maintenance: environment.maintenance,
    }
}

fn cluster_site(e: &Environment, site: &SiteSettings) -> ClusterSite {
    let own = e.database_hosting() == Some(Hosting::Cluster);
    // Beside clusters that are created, the setting is not for those that exist.
    let has_nodes = !is_existing(e, site) || e.sites.iter().all(|one| is_existing(e, one));
    ClusterSite {
        namespace: e.cluster.namespace.clone(),
        settings: site.cluster.clone(),
        image_from: None,
        registry: registry_account(e),
        rollout: e.rollout.strategy,
        certificate: site.existing.certificate.clone().or_else(|| e.tls.existing.clone()),
        postgres: own.then(|| OwnPostgres {
            version: e.database.version,
            database: e.database.name.clone(),
            disk_bytes: e.database.size.0,
            backup_bytes: backup_bytes(e),
        }),
        adapter: e.scaling.adapter,
        replicates: e.witness_place().is_some(),
        pinned: e.phase.is_production(),
        min_nodes: e.cluster.min_nodes,
        phase_nodes: e.phase.minimum().nodes,
        max_nodes: e.cluster.max_nodes,
        balancer: None,
        gpu: gpus(e, site),
        existing: is_existing(e, site),
        nodes: None,
        // What a pod requests is known where its objects are expanded.
        node_choice: NodeChoice {
            size: e.cluster.node_size.filter(|_| has_nodes),
            machine: site.instance_type.clone(),
            pod: None,
        },
        bucket_identity: None,
        cache: CloudCache::default(),
        node_autoscaler: None,
    }
}

/// The account at the registry of the images, if there is one.
fn registry_account(e: &Environment) -> Option<RegistryAccount> {
    e.registry.password.as_ref()?;
    let (address, user) = (e.registry.address()?.to_owned(), e.registry.user.clone()?);
    Some(RegistryAccount { address, user, secrets: name(names::SECRETS) })
}

/// The disk for the dumps of a database, in bytes.
fn backup_bytes(e: &Environment) -> u64 {
    e.backup.size.unwrap_or(e.database.size).0
}

/// Whether a site's cluster exists already.
fn is_existing(e: &Environment, site: &SiteSettings) -> bool {
    site.existing.cluster.is_some() || e.cluster.existing.is_some()
}

/// The GPUs of a site's servers.
pub(super) fn gpus(e: &Environment, site: &SiteSettings) -> Option<ClusterGpus> {
    let gpu = site.gpu.as_ref().unwrap_or(&e.gpu);
    (gpu.size != GpuSize::None).then(|| ClusterGpus {
        count: gpu.max.unwrap_or(gpu.count).max(gpu.count).saturating_mul(gpu.gpus()),
        existing: is_existing(e, site),
        node_selector: BTreeMap::new(),
        tolerations: Vec::new(),
        device_plugin: false,
    })
}

fn of_site(e: &Environment, site: &SiteSettings, release: &Release, pushed: Option<String>) -> Vec<Component> {
    let is_member = e.witness_place().is_some() && site.serves();
    let mut made = Vec::new();
    let mut add = |called: &str, existing: Option<&String>, part: ComponentSpec| {
        // Validation rejected invalid ids (empty, control characters); here they count as absent.
        let existing = existing.and_then(|id| CloudId::new(id.as_str()).ok());
        made.push(Component { name: name(called), existing, part });
    };
    let there = &site.existing;
    let gpu = site.gpu.as_ref().unwrap_or(&e.gpu);
    let pool = (gpu.size != GpuSize::None).then_some(part::GpuPool {
        size: gpu.size,
        machines: gpu.machines.clone(),
        per_machine: gpu.per_machine,
        count: gpu.count,
        max: gpu.max,
        spot: gpu.spot,
        upgrade: gpu.upgrade,
    });

    add(
        names::NETWORK,
        there.network.as_ref().or(e.network.existing.as_ref()),
        ComponentSpec::Network(part::Network {
            cidr: e.network.cidr.clone(),
            policies: e.has_network_policies(),
            permission_boundary: e.account.permission_boundary.clone(),
        }),
    );
    add(
        names::CLUSTER,
        there.cluster.as_ref().or(e.cluster.existing.as_ref()),
        ComponentSpec::Cluster(part::Cluster {
            gpu: pool,
            version: e.cluster.version.clone(),
            allow_from: e.cluster.allow_from.as_ref().map(|networks| {
                // Validation rejected invalid ones. An address is a network of one.
                networks.iter().filter_map(|text| Some(text.parse::<Network>().ok()?.to_string())).collect()
            }),
            permission_boundary: e.account.permission_boundary.clone(),
            access: e.cluster.access.clone(),
            ..part::Cluster::of(name(names::NETWORK))
        }),
    );
    add(
        names::SECRETS,
        None,
        ComponentSpec::Secrets(part::Secrets {
            generate: secrets(e, site),
            shared: shared_secrets(e),
            given: external_secrets(e, site, release),
        }),
    );
    if e.tls.mode != TlsMode::Off {
        let names = certified_names(e, &site.region, host(e, site));
        let acme = (e.tls.mode == TlsMode::Acme && site.serves()).then(|| Box::new(acme_account(e, release)));
        let certificate = part::Certificate { mode: e.tls.mode, names, days: e.tls.days, acme };
        add(
            names::CERTIFICATE,
            there.certificate.as_ref().or(e.tls.existing.as_ref()),
            ComponentSpec::Certificate(certificate),
        );
    }
    let store = ComponentSpec::ModelStore(model_store(e, site, release));
    add(names::MODELS, there.bucket.as_ref().or(e.storage.existing.as_ref()), store);
    if site.database().is_some() {
        let existing = there.database.as_ref().or(e.database.existing.as_ref());
        add(names::DATABASE, existing, ComponentSpec::Database(database(e, site, release)));
    }
    // The servers themselves connect to an external one. A site without servers needs none.
    if e.cache.kind == CacheKind::Redis && !e.cache.is_external() && site.serves() {
        add(
            names::CACHE,
            there.cache.as_ref().or(e.cache.existing.as_ref()),
            ComponentSpec::Cache(part::Cache { kind: e.cache.kind, managed: managed_cache(e) }),
        );
    }
    if let Some(url) = e.registry.of_cloud() {
        add(
            names::REGISTRY,
            there.registry.as_ref().or(e.registry.existing.as_ref()),
            ComponentSpec::Registry(part::Registry { url: url.to_owned(), image: pushed }),
        );
    }
    if is_member {
        add(names::BORDER, None, ComponentSpec::Relay(border(e, site, &release.program)));
        add(names::WATCH, None, ComponentSpec::SiteAgent(watch(e, site, release)));
    }
    if site.serves() {
        add(names::SERVER, None, ComponentSpec::Workload(workload(e, site, release)));
        add(names::GATEWAY, None, ComponentSpec::Endpoint(endpoint(e, site, &release.program)));
    }
    if e.sites.len() > 1 && site.role == Role::Primary && e.witness_place().is_none() {
        add(names::TRAFFIC, None, ComponentSpec::Traffic(part::Traffic { weights: weights(e) }));
    }
    // One backup has the state of all sites, and one site takes it.
    if e.backup.enabled && site.role == Role::Primary {
        add(names::BACKUP, None, ComponentSpec::Backup(backup(e, release)));
    }
    let is_home = site.role == Role::Primary;
    let budget = budget(e).filter(|_| is_home);
    if e.monitoring.stack || !e.monitoring.receivers.is_empty() || budget.is_some() {
        let monitored = part::Monitored {
            network: there.network.is_none() && e.network.existing.is_none(),
            cluster: there.cluster.is_none() && e.cluster.existing.is_none(),
            gpu: gpu.size != GpuSize::None,
            database: (site.database().is_some() && there.database.is_none() && e.database.existing.is_none())
                .then(|| database(e, site, release)),
            cache: managed_cache(e).filter(|_| site.serves()),
            service: service_address(e, site),
        };
        let monitoring = monitoring(e, e.monitoring.stack, is_home, release);
        add(names::MONITORING, None, ComponentSpec::Monitoring(part::Monitoring { monitored, budget, ..monitoring }));
    }
    made
}

/// A site whose servers the cloud runs as an inference endpoint: it has no network, secrets, database or gateway.
fn of_endpoint(e: &Environment, site: &SiteSettings, release: &Release, pushed: Option<String>) -> Vec<Component> {
    let store = model_store(e, site, release);
    let budget = budget(e);
    let has_receivers = !e.monitoring.receivers.is_empty();
    let monitoring = monitoring(e, false, true, release);
    let image = site.cluster.image.clone();
    let gpu = Some(site.gpu.as_ref().unwrap_or(&e.gpu).size).filter(|size| *size != GpuSize::None);
    let mut config = server_config(e, site);
    if gpu.is_some() {
        // As in a cluster: never the CPU instead.
        config["textnlp"]["models"]["device"] = json!("cuda");
    }
    // Servers may pull from all of the registry.
    let registry = e.registry.address().filter(|_| e.registry.of_cloud().is_some());
    let host = registry.and_then(|address| address.split('/').next());
    let is_own = |image: &str| host.is_some_and(|host| is_in_registry(image, host));
    let endpoint = part::InferenceEndpoint {
        replicas: e.scaling.min,
        autoscaling: autoscaling(e),
        gpu,
        resources: site.cluster.resources.limits,
        instance_type: site.instance_type.clone(),
        registry: pushed.is_some().then(|| name(names::REGISTRY)),
        image_in: image.as_deref().filter(|image| is_own(image)).map(|_| name(names::REGISTRY)),
        image,
        config,
        models: store.models.clone(),
        max_cache_bytes: store.max_cache_bytes,
        permission_boundary: e.account.permission_boundary.clone(),
        limits: monitoring.service,
        shift: (e.rollout.strategy != Strategy::Rolling).then(|| part::TrafficShift {
            share: (e.rollout.strategy == Strategy::Canary).then_some(e.rollout.first_share),
            bake_seconds: e.rollout.bake.as_seconds(),
            deadline_seconds: e.rollout.deadline.as_seconds(),
        }),
        monitoring: has_receivers.then(|| name(names::MONITORING)),
    };
    let mut made = Vec::new();
    let mut add = |called: &str, existing: Option<&String>, part: ComponentSpec| {
        let existing = existing.and_then(|id| CloudId::new(id.as_str()).ok());
        made.push(Component { name: name(called), existing, part });
    };
    let bucket = site.existing.bucket.as_ref().or(e.storage.existing.as_ref());
    add(names::MODELS, bucket, ComponentSpec::ModelStore(store));
    if let Some(url) = e.registry.of_cloud() {
        add(names::REGISTRY, None, ComponentSpec::Registry(part::Registry { url: url.to_owned(), image: pushed }));
    }
    add(names::SERVER, None, ComponentSpec::InferenceEndpoint(endpoint));
    if has_receivers || budget.is_some() {
        add(names::MONITORING, None, ComponentSpec::Monitoring(part::Monitoring { budget, ..monitoring }));
    }
    made
}

fn model_store(e: &Environment, site: &SiteSettings, release: &Release) -> part::ModelStore {
    let key = site.existing.key.as_ref().or(e.storage.existing_key.as_ref());
    part::ModelStore {
        models: e.models.iter().map(|model| served(model, release)).collect(),
        max_cache_bytes: e.storage.model_cache.0,
        // Validation rejected invalid ids.
        key: key.and_then(|id| CloudId::new(id.as_str()).ok()),
        // Validation rejected what is not whole days.
        archive_after_days: e.storage.archive_after.map(|after| small(after.as_seconds() / 86_400)),
        replica: e
            .storage
            .replicate_to
            .clone()
            .map(|region| part::ModelReplica { region, permission_boundary: e.account.permission_boundary.clone() }),
        permission_boundary: e.account.permission_boundary.clone(),
    }
}

/// The autoscaling of the servers, if their count is not fixed.
fn autoscaling(e: &Environment) -> Option<part::Autoscaling> {
    e.scaling.max.filter(|max| *max > e.scaling.min).map(|max| part::Autoscaling {
        max,
        cpu: e.scaling.cpu,
        memory: e.scaling.memory,
        requests_per_second: e.scaling.requests_per_second,
    })
}

/// The witness's location: it serves no requests and needs only what every location needs to run programs.
fn of_witness(e: &Environment, place: &Site, release: &Release) -> Vec<Component> {
    let mut made = Vec::new();
    let mut add = |called: &str, part: ComponentSpec| made.push(Component { name: name(called), existing: None, part });
    add(
        names::NETWORK,
        ComponentSpec::Network(part::Network { policies: e.has_network_policies(), ..part::Network::default() }),
    );
    add(names::CLUSTER, ComponentSpec::Cluster(part::Cluster::of(name(names::NETWORK))));
    if e.tls.mode != TlsMode::Off {
        let names = certified_names(e, &place.region, &e.server.api.host);
        add(
            names::CERTIFICATE,
            ComponentSpec::Certificate(part::Certificate { mode: e.tls.mode, names, days: e.tls.days, acme: None }),
        );
    }
    let weights: BTreeMap<_, _> =
        weights(e).into_iter().filter(|(site, _)| e.members().any(|member| member.name == *site)).collect();
    if let Some(home) = e.primary() {
        add(
            names::WITNESS,
            ComponentSpec::Witness(part::Witness {
                cluster: name(names::CLUSTER),
                sites: e.members().map(|site| site.name.clone()).collect(),
                home: home.name.clone(),
                rules: rules(e),
                weights: weights.clone(),
                front: name(names::FRONT),
                dns: dns(e, release),
                program: release.program.clone(),
            }),
        );
    }
    add(
        names::FRONT,
        ComponentSpec::GlobalEndpoint(part::GlobalEndpoint {
            host: listening(&e.server.api.host),
            port: e.traffic.port,
            metrics_port: e.traffic.metrics_port,
            tls: e.tls.mode != TlsMode::Off,
            certificate: name(names::CERTIFICATE),
            weights,
            far: e.members().any(SiteSettings::is_in_cluster),
            border: name(names::BORDER),
            witness: name(names::WITNESS),
            program: release.program.clone(),
            max_request_bytes: max_request_bytes(&e.server),
            timeout_seconds: small(e.server.api.timeout.as_seconds().saturating_add(2 * GATEWAY_GRACE_SECONDS)),
            connections: connections(&e.server.api),
        }),
    );
    // Dashboards show only serving programs; alerts about failing programs include the witness's.
    if !e.monitoring.receivers.is_empty() {
        add(names::MONITORING, ComponentSpec::Monitoring(monitoring(e, false, false, release)));
    }
    made
}

fn dns(e: &Environment, release: &Release) -> Option<part::Dns> {
    let dns = e.dns.as_ref()?;
    let addresses =
        e.members().map(|site| (site.name.clone(), dns.addresses.get(site.name.as_str()).cloned().unwrap_or_default()));
    Some(part::Dns {
        server: dns.server_address()?.to_string(),
        zone: dns.zone.clone(),
        name: e.traffic.domain.clone()?,
        ttl_seconds: small(e.traffic.ttl.as_seconds()),
        key: dns.key.name.clone(),
        algorithm: dns.key.algorithm,
        secret: external_secret(&dns.key.secret, release),
        addresses: addresses.collect(),
    })
}

/// A user-provided secret, with a fingerprint of its present value.
fn external_secret(secret: &SecretSource, release: &Release) -> part::ExternalSecret {
    let source = secret.to_string();
    part::ExternalSecret { version: release.given.get(&source).cloned().unwrap_or_default(), source }
}

fn border(e: &Environment, site: &SiteSettings, program: &Program) -> part::Relay {
    part::Relay {
        cluster: name(names::CLUSTER),
        endpoint: match (site.cluster.host(), site.cluster.port()) {
            (Some(host), Some(port)) => (host, port),
            _ => (listening(host(e, site)), site.port.unwrap_or(e.server.api.port)),
        },
        ready: site.cluster.health(),
        watch: name(names::WATCH),
        peers: peers(e, site),
        witness: part::RemoteComponent { site: witness_name(), component: name(names::WITNESS) },
        database: e.shares_database().then(|| name(names::DATABASE)),
        program: program.clone(),
    }
}

fn watch(e: &Environment, site: &SiteSettings, release: &Release) -> part::SiteAgent {
    part::SiteAgent {
        cluster: name(names::CLUSTER),
        border: name(names::BORDER),
        workload: name(names::SERVER),
        peers: peers(e, site),
        order: order(e),
        witness: witness_name(),
        home: e.primary().map_or_else(|| site.name.clone(), |home| home.name.clone()),
        rules: rules(e),
        automatic: e.dr.mode == Failover::Automatic,
        failback: e.dr.failback == Failover::Automatic,
        max_lag_ms: millis(e.replication.database.max_lag),
        copies: part::Copies {
            models_every_ms: millis(e.replication.models.every),
            configuration_every_ms: millis(e.replication.configuration.every),
            compress: e.replication.models.compress,
        },
        database: e.shares_database().then(|| (name(names::DATABASE), e.database.name.clone())),
        outside: e.stores_outside().then(|| (name(names::DATABASE), database(e, site, release))),
        program: release.program.clone(),
    }
}

fn peers(e: &Environment, site: &SiteSettings) -> Vec<SiteName> {
    e.members().filter(|other| other.name != site.name).map(|other| other.name.clone()).collect()
}

/// The sites in order of promotion: secondaries already serve, standbys start on failover.
fn order(e: &Environment) -> Vec<SiteName> {
    let mut sites: Vec<&SiteSettings> = e.members().collect();
    sites.sort_by_key(|site| site.role);
    sites.into_iter().map(|site| site.name.clone()).collect()
}

fn rules(e: &Environment) -> part::FailureDetection {
    part::FailureDetection { every_ms: millis(e.dr.watch_every), lost_after: e.dr.lost_after }
}

fn millis(span: Span) -> u64 {
    span.0.as_millis().try_into().unwrap_or(u64::MAX)
}

/// Where control data is replicated, the first key is created at the home site and replicated like any other key.
fn has_first_key(e: &Environment, site: &SiteSettings) -> bool {
    e.witness_place().is_none() || site.role == Role::Primary
}

fn address(address: &UrlSource, release: &Release) -> part::ReceiverAddress {
    match address {
        UrlSource::Secret(secret) => part::ReceiverAddress::Secret(external_secret(secret, release)),
        UrlSource::Url(url) => part::ReceiverAddress::Plain(url.clone()),
    }
}

/// The environment's proxies, by variable.
fn proxies(e: &Environment, release: &Release) -> BTreeMap<String, part::ReceiverAddress> {
    let Proxy { http, https, .. } = &e.network.proxy;
    let proxies = [("HTTPS_PROXY", https), ("HTTP_PROXY", http)].into_iter();
    let proxies = proxies.filter_map(|(name, proxy)| Some((name.to_owned(), address(proxy.as_ref()?, release))));
    let excluded = no_proxy(e).map(|hosts| ("NO_PROXY".to_owned(), part::ReceiverAddress::Plain(hosts)));
    proxies.chain(excluded).collect()
}

/// The account at the public certificate authority.
fn acme_account(e: &Environment, release: &Release) -> part::AcmeAccount {
    part::AcmeAccount {
        directory: e.tls.acme_directory().to_owned(),
        email: e.tls.email.clone(),
        secrets: name(names::SECRETS),
        key: ACCOUNT_KEY.to_owned(),
        gateway: name(names::GATEWAY),
        ca_file: e.network.private_ca.clone(),
        proxy: proxies(e, release),
    }
}

fn monitoring(e: &Environment, stack: bool, home: bool, release: &Release) -> part::Monitoring {
    let MonitoringSettings { receivers, alerts, .. } = &e.monitoring;
    part::Monitoring {
        stack,
        receivers: receivers.iter().map(|(name, to)| (name.clone(), address(to, release))).collect(),
        secrets: Some(name(names::SECRETS)),
        limits: part::AlertLimits { memory: alerts.memory, disk: alerts.disk, restarts: alerts.restarts },
        service: part::ServiceLimits {
            latency_seconds: alerts.latency.0.as_secs_f64(),
            latency_for_seconds: alerts.latency_for.as_seconds(),
            error_rate: alerts.error_rate,
            error_rate_for_seconds: alerts.error_rate_for.as_seconds(),
        },
        home,
        contacts: e.prerequisites.people.clone(),
        ca_file: e.network.private_ca.clone(),
        proxy: proxies(e, release),
        ..part::Monitoring::default()
    }
}

fn budget(e: &Environment) -> Option<part::Budget> {
    let (currency, warn_at) = (e.budget.currency.clone(), e.budget.warn_at);
    e.budget.monthly.map(|monthly| part::Budget { monthly, currency, warn_at })
}

fn backup(e: &Environment, release: &Release) -> part::Backup {
    let backup = &e.backup;
    // A machine adds the environment's own key when it takes a backup.
    let own = release.files.backup_recipient.clone().filter(|_| e.dumps_in_cluster());
    part::Backup {
        every_seconds: backup.every.as_seconds(),
        keep_seconds: backup.keep.as_seconds(),
        destination: backup.destination.clone(),
        verify: backup.verify,
        recipients: own.into_iter().chain(backup.recipients.iter().cloned()).collect(),
        point_in_time_seconds: backup.point_in_time.map(Span::as_seconds),
        managed: (e.dumps_in_cluster() && e.database_hosting() == Some(Hosting::Managed)).then(|| part::ManagedDumps {
            version: e.database.version,
            disk_bytes: e.database.size.0,
            backup_bytes: backup_bytes(e),
            secrets: name(names::SECRETS),
            private_ca: release.files.private_ca.clone(),
        }),
        copies: e.dump_copies().map(|url| {
            Box::new(part::DumpCopies {
                url,
                credentials: backup.credentials.is_some().then(|| name(names::SECRETS)),
                endpoint: release.files.backup_endpoint.clone(),
                egress: egress(e, release),
            })
        }),
    }
}

fn secrets(e: &Environment, site: &SiteSettings) -> BTreeMap<String, SecretRecipe> {
    let mut generate = BTreeMap::from([(SIGNING_KEY.to_owned(), SecretRecipe::RsaSigningKey)]);
    if has_first_key(e, site) {
        generate.insert(API_KEY.to_owned(), SecretRecipe::ApiKey);
    }
    if e.tls.mode == TlsMode::Acme {
        generate.insert(ACCOUNT_KEY.to_owned(), SecretRecipe::AccountKey);
    }
    let ours = matches!(e.database_hosting(), Some(Hosting::Managed | Hosting::Cluster));
    if ours && e.database.existing.is_none() {
        generate.insert(DATABASE_PASSWORD.to_owned(), SecretRecipe::Password(32));
        if e.database.replicas > 0 || e.shares_database() {
            generate.insert(REPLICATION_PASSWORD.to_owned(), SecretRecipe::Password(32));
        }
    }
    if e.cache.is_managed() && site.serves() {
        // Not a password: ElastiCache refuses its underscores.
        generate.insert(CACHE_PASSWORD.to_owned(), SecretRecipe::Random(32));
    }
    generate
}

/// Secrets that must be equal at all sites, such as those of a replicated database.
fn shared_secrets(e: &Environment) -> BTreeSet<String> {
    let shared = [DATABASE_PASSWORD, REPLICATION_PASSWORD].map(str::to_owned);
    if e.shares_database() { shared.into() } else { BTreeSet::new() }
}

fn host<'a>(e: &'a Environment, site: &'a SiteSettings) -> &'a str {
    site.host.as_deref().unwrap_or(&e.server.api.host)
}

/// The public address of a site's service: its own one, and otherwise `traffic.domain`, which is not that of one site where there are
/// several. `None` without a public name, and without TLS.
fn service_address(e: &Environment, site: &SiteSettings) -> Option<part::ServiceAddress> {
    let of_ingress = site.cluster.ingress.as_ref().map(|one| one.port.unwrap_or(HTTPS_PORT));
    let port = of_ingress.or(site.port).unwrap_or(e.server.api.port);
    let named = e.traffic.domain.clone().filter(|_| e.sites.len() == 1).map(|host| (host, port));
    // It has precedence, as in a cluster: without its load balancer the Service is a `ClusterIP`, and nothing listens at the domain.
    let own = site.cluster.address.as_ref().map(|_| site.cluster.host().zip(site.cluster.port()));
    let (host, port) = own.unwrap_or(named)?;
    let is_checked = is_public_name(&host) && site.serves() && e.tls.mode != TlsMode::Off;
    is_checked.then_some(part::ServiceAddress { host, port })
}

/// Whether the internet may resolve a name. An IP address is no name, and only a private network knows that of a machine or of a service in
/// a cluster.
fn is_public_name(host: &str) -> bool {
    const PRIVATE: [&str; 6] = [".internal", ".local", ".localhost", ".lan", ".svc", ".home.arpa"];
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let is_private = host.contains(".svc.") || PRIVATE.iter().any(|end| host.ends_with(end));
    host.contains('.') && host.parse::<std::net::IpAddr>().is_err() && !is_private
}

/// The names of the site's certificate: the configured ones and those that this machine always has.
fn certified_names(e: &Environment, region: &str, host: &str) -> Vec<String> {
    let mut names: Vec<String> = e.tls.names.iter().chain(&e.traffic.domain).cloned().collect();
    names.extend(e.sites.iter().filter_map(|site| site.cluster.host()));
    if let (TlsMode::LocalCa, Some(base)) = (e.tls.mode, &e.server.api.base_domain) {
        // Tenants use subdomains. A public CA issues a wildcard only to the owner of the whole domain.
        names.extend([base.clone(), format!("*.{base}")]);
    }
    if e.tls.mode == TlsMode::LocalCa && region == "local" {
        names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
        if host.parse::<std::net::IpAddr>().is_ok_and(|address| !address.is_unspecified()) {
            names.push(host.to_owned());
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

fn served(model: &ModelSettings, release: &Release) -> part::Model {
    part::Model {
        name: model.id(),
        source: model.source().to_owned(),
        digest: model.digest.clone().or_else(|| release.lock.models.get(&model.id()).cloned()),
        role: model.role,
        quantize: model.quantize,
        context: model.context,
        preload: model.preload,
    }
}

/// The traffic weight of each site: as configured; otherwise 100 for a serving site and 0 for a standby.
fn weights(e: &Environment) -> BTreeMap<textnlp_provider::SiteName, u32> {
    let usual = |site: &SiteSettings| if site.role == Role::Standby || !site.serves() { 0 } else { 100 };
    e.sites
        .iter()
        .map(|s| (s.name.clone(), e.traffic.weights.get(s.name.as_str()).copied().unwrap_or(usual(s))))
        .collect()
}

fn database(e: &Environment, site: &SiteSettings, release: &Release) -> part::Database {
    let settings = &e.database;
    let password = settings.password.as_ref().map(|secret| external_secret(secret, release));
    let address = match (&settings.url, &settings.host) {
        (Some(UrlSource::Secret(secret)), _) => Some(part::DatabaseAddress::Secret(external_secret(secret, release))),
        (Some(UrlSource::Url(url)), _) => Some(part::DatabaseAddress::Url(url.clone(), password)),
        (None, Some(host)) => {
            let user = settings.user.as_ref().map_or_else(String::new, |user| format!("{user}@"));
            let port = settings.port.map_or_else(String::new, |port| format!(":{port}"));
            Some(part::DatabaseAddress::Url(format!("postgresql://{user}{host}{port}/{}", settings.name), password))
        }
        (None, None) => None,
    };
    let servers = e.scaling.max.unwrap_or(e.scaling.min);
    let postgres = (settings.kind == DatabaseKind::Postgres).then(|| {
        Box::new(part::Postgres {
            address,
            ca_file: e.network.private_ca.clone(),
            name: settings.name.clone(),
            version: settings.version,
            port: settings.port.filter(|_| settings.host.is_none()),
            replicas: settings.replicas,
            connections: servers.saturating_mul(settings.pool_size.saturating_add(settings.max_overflow)),
            secrets: name(names::SECRETS),
            cluster: name(names::CLUSTER),
            program: release.program.clone(),
            archive_seconds: e.backup.point_in_time.filter(|_| e.backup.enabled).map(Span::as_seconds),
            between: e.primary().filter(|_| e.shares_database()).map(|home| part::SitePostgres {
                home: home.name.clone(),
                peers: peers(e, site),
                watch: name(names::WATCH),
                max_lag_ms: millis(e.replication.database.max_lag),
            }),
            managed: (e.database_hosting() == Some(Hosting::Managed)).then(|| part::ManagedPostgres {
                disk_bytes: settings.size.0,
                backup_seconds: if e.backup.enabled { e.backup.keep.as_seconds() } else { 0 },
                replica_region: settings.replica_region.clone(),
            }),
        })
    });
    part::Database { kind: settings.kind, hosting: e.database_hosting(), schema: release.lock.schema, postgres }
}

fn workload(e: &Environment, site: &SiteSettings, release: &Release) -> part::Workload {
    part::Workload {
        replicas: e.scaling.min,
        autoscaling: autoscaling(e),
        program: release.program.clone(),
        config: server_config(e, site),
        cluster: name(names::CLUSTER),
        models: name(names::MODELS),
        database: name(names::DATABASE),
        stored: database(e, site, release),
        cache: e.cache.is_managed().then(|| name(names::CACHE)),
        secrets: name(names::SECRETS),
        first_key: has_first_key(e, site),
        watch: e.witness_place().map(|_| name(names::WATCH)),
        drain_seconds: small(e.server.api.drain.as_seconds()),
        canary: (e.rollout.strategy != Strategy::Rolling).then(|| part::Canary {
            share: (e.rollout.strategy == Strategy::Canary).then_some(e.rollout.first_share),
            bake_seconds: e.rollout.bake.as_seconds(),
            deadline_seconds: e.rollout.deadline.as_seconds(),
            slow_ms: e.gates.p95_ms,
            error_rate: e.gates.error_rate,
        }),
        outside: outside(e, release),
        served: e.models.iter().map(|model| served(model, release)).collect(),
        egress: egress(e, release),
        saml: release.files.saml.get(&site.name).cloned(),
    }
}

/// What connections of pods need.
fn egress(e: &Environment, release: &Release) -> part::Egress {
    part::Egress { private_ca: release.files.private_ca.clone(), proxy: proxy(e), policies: e.has_network_policies() }
}

/// The proxy as environment variables. Validation rejected addresses from secrets.
fn proxy(e: &Environment) -> BTreeMap<String, String> {
    let Proxy { http, https, .. } = &e.network.proxy;
    let url = |address: &Option<UrlSource>| match address {
        Some(UrlSource::Url(url)) => Some(url.clone()),
        _ => None,
    };
    let variables = [("HTTPS_PROXY", url(https)), ("HTTP_PROXY", url(http)), ("NO_PROXY", no_proxy(e))];
    variables.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn no_proxy(e: &Environment) -> Option<String> {
    Some(e.network.proxy.no_proxy.join(",")).filter(|hosts| !hosts.is_empty())
}

fn outside(e: &Environment, release: &Release) -> Option<part::PrometheusQueries> {
    let prometheus = e.rollout.prometheus.as_ref().filter(|_| e.rollout.strategy != Strategy::Rolling)?;
    let query = |query: &Query| part::Query {
        name: query.name.clone(),
        query: query.query.clone(),
        at_most: query.at_most,
        at_least: query.at_least,
        samples: query.samples,
    };
    Some(part::PrometheusQueries {
        url: prometheus.url.trim_end_matches('/').to_owned(),
        token: prometheus.token.is_some(),
        ca: release.files.prometheus_ca.clone(),
        queries: e.rollout.queries.iter().map(query).collect(),
    })
}

/// User-provided secrets that belong to no other component.
fn external_secrets(e: &Environment, site: &SiteSettings, release: &Release) -> BTreeMap<String, part::ExternalSecret> {
    let token = e.rollout.prometheus.as_ref().and_then(|prometheus| prometheus.token.as_ref());
    let webhooks = webhooks(e).iter().filter(|_| site.serves()).map(|webhook| {
        (part::webhook_secret(webhook.tenant.as_deref(), &webhook.url), external_secret(&webhook.secret, release))
    });
    let traces = traces(e).and_then(|traces| traces.secret.as_ref()).filter(|_| site.serves());
    let of_servers = traces.map(|secret| (part::TRACES_SECRET.to_owned(), external_secret(secret, release)));
    let redis = cache(e).and_then(redis_secret).filter(|_| site.serves());
    let redis = redis.map(|secret| (part::CACHE_SECRET.to_owned(), external_secret(secret, release)));
    let of_servers = webhooks.chain(of_servers).chain(redis);
    // Only what is in a cluster reads the others.
    if !site.is_in_cluster() {
        return of_servers.collect();
    }
    let receivers = e.monitoring.receivers.iter().filter_map(|(name, address)| match address {
        UrlSource::Secret(secret) if e.monitoring.stack => Some((part::receiver_secret(name), secret)),
        UrlSource::Secret(_) | UrlSource::Url(_) => None,
    });
    let copies = e.backup.credentials.as_ref().filter(|_| site.role == Role::Primary && e.dump_copies().is_some());
    let copies = copies.map(|credentials| (BACKUP_CREDENTIALS.to_owned(), credentials));
    let registry = e.registry.password.as_ref().map(|password| (REGISTRY_PASSWORD.to_owned(), password));
    let all = receivers.chain(token.map(|token| (PROMETHEUS_TOKEN.to_owned(), token))).chain(copies).chain(registry);
    all.map(|(name, secret)| (name, external_secret(secret, release))).chain(of_servers).collect()
}

/// The export of traces of the servers, if there is one. No inference endpoint has one.
fn traces(e: &Environment) -> Option<&TraceExport> {
    let monitoring = &e.server.monitoring;
    let is_exported = monitoring.enable_tracing && monitoring.traces.endpoint.is_some() && !e.is_endpoint();
    is_exported.then_some(&monitoring.traces)
}

/// The cache of the servers, if there is one. No inference endpoint has one.
fn cache(e: &Environment) -> Option<&CacheSettings> {
    let has_redis = (e.cache.is_external() && e.cache.url.is_some()) || e.cache.is_managed();
    let is_used = e.cache.kind == CacheKind::Memory || has_redis;
    (is_used && !e.is_endpoint()).then_some(&e.cache)
}

/// The Redis that a cloud runs, if there is one.
fn managed_cache(e: &Environment) -> Option<part::ManagedCache> {
    e.cache.is_managed().then(|| part::ManagedCache {
        memory_bytes: e.cache.memory.unwrap_or(CACHE_MEMORY).0,
        replicas: e.cache.replicas,
        secrets: name(names::SECRETS),
        database: (e.database_hosting() == Some(Hosting::Managed)).then(|| name(names::DATABASE)),
    })
}

/// The address of a cache's Redis, if it is a secret.
fn redis_secret(cache: &CacheSettings) -> Option<&SecretSource> {
    match &cache.url {
        Some(UrlSource::Secret(secret)) if cache.kind == CacheKind::Redis => Some(secret),
        _ => None,
    }
}

/// The webhooks of the servers: none without batches, and none of an inference endpoint, which has no batches.
fn webhooks(e: &Environment) -> &[BatchWebhook] {
    if e.server.batch.enabled && !e.is_endpoint() { &e.server.batch.webhooks } else { &[] }
}

/// A host as a listen address.
fn listening(host: &str) -> String {
    if host == "localhost" { "127.0.0.1".to_owned() } else { host.to_owned() }
}

fn endpoint(e: &Environment, site: &SiteSettings, program: &Program) -> part::Endpoint {
    let home = e.primary().filter(|_| e.has_site_records());
    part::Endpoint {
        host: listening(host(e, site)),
        port: site.port.unwrap_or(e.server.api.port),
        metrics_port: site.metrics_port.unwrap_or(e.server.monitoring.metrics_port),
        tls: e.tls.mode != TlsMode::Off,
        certificate: name(names::CERTIFICATE),
        acme: e.tls.mode == TlsMode::Acme,
        workload: name(names::SERVER),
        watch: e.witness_place().map(|_| name(names::WATCH)),
        program: program.clone(),
        max_request_bytes: max_request_bytes(&e.server),
        timeout_seconds: small(e.server.api.timeout.as_seconds().saturating_add(GATEWAY_GRACE_SECONDS)),
        connections: connections(&e.server.api),
        domain: e.traffic.domain.clone(),
        waf: e.network.waf,
        managed_certificate: e.traffic.managed_certificate,
        base_domain: e.server.api.base_domain.clone(),
        // Validation rejected invalid ids. Several sites have one zone, that of the primary.
        zone: home.unwrap_or(site).zone(e).and_then(|id| CloudId::new(id.as_str()).ok()),
        share: home.map(|home| part::TrafficShare {
            weight: weights(e).get(&site.name).copied().unwrap_or_default(),
            is_at_other_provider: site.provider != home.provider,
            host: site.cluster.host().unwrap_or_default(),
            sites: weights(e).into_iter().filter(|(name, _)| serves(e, name)).collect(),
        }),
    }
}

fn serves(e: &Environment, name: &textnlp_provider::SiteName) -> bool {
    e.sites.iter().any(|site| site.name == *name && site.serves())
}

fn connections(api: &Api) -> part::ConnectionLimits {
    part::ConnectionLimits {
        total: api.max_connections,
        per_address: api.max_connections_per_address,
        trusted_proxies: api.trusted_proxies.clone(),
        cors_origins: api.cors_origins.clone(),
    }
}

fn small(seconds: u64) -> u32 {
    seconds.try_into().unwrap_or(u32::MAX)
}

/// The largest body that a gateway passes on: of a request, or of a form with a file of requests. The servers have limits of their own.
fn max_request_bytes(server: &Server) -> u64 {
    let upload = if server.batch.enabled { server.batch.max_file_size.0.saturating_add(FORM_BYTES) } else { 0 };
    server.api.max_request_size.0.max(upload)
}

/// The `server.yaml` tree without sockets, paths and secret files, which only the provider knows.
fn server_config(e: &Environment, site: &SiteSettings) -> Value {
    let Server { api, security, usage, prices, audit, analytics, batch, pii, monitoring, inference } = &e.server;
    let serve: Vec<Value> = e
        .models
        .iter()
        .map(|model| {
            let mut entry = json!({"name": model.id()});
            if let Some(quantize) = model.quantize {
                entry["quantize"] = json!(quantize);
            }
            if let Some(context) = model.context {
                entry["context"] = json!(context);
            }
            if let Some(executor) = model.executor {
                entry["executor"] = json!(executor);
            }
            // Older servers reject these, and `rollback` gives them this file.
            if let Some(tenant) = &model.tenant {
                entry["tenant"] = json!(tenant);
            }
            if model.matryoshka {
                entry["matryoshka"] = json!(true);
            }
            if model.parse_special_tokens {
                entry["parse_special_tokens"] = json!(true);
            }
            if let Some(quality) = &model.quality {
                entry["quality_text"] = json!(quality.text);
            }
            entry
        })
        .collect();
    let preload: Vec<String> = e.models.iter().filter(|m| m.preload).map(ModelSettings::id).collect();
    let mut config = json!({"textnlp": {
        "environment": e.environment,
        "phase": e.phase,
        "region": site.region,
        "site": site.name,
        "api": {
            "workers": api.workers,
            "timeout": api.timeout.as_seconds(),
            "max_request_size": api.max_request_size.to_string(),
            "queue": api.queue,
            "max_tokens": api.max_tokens,
            "cors_origins": api.cors_origins,
            "docs": api.docs,
            "base_domain": api.base_domain,
            "drain_seconds": api.drain.as_seconds(),
            "require_https": e.tls.mode != TlsMode::Off,
        },
        "models": {
            "default": e.default_model().map(ModelSettings::id),
            "max_cache_size": e.storage.model_cache.to_string(),
            "preload": preload,
            "serve": serve,
            "threads": inference.threads,
        },
        "database": { "pool_size": e.database.pool_size, "max_overflow": e.database.max_overflow },
        "security": {
            "jwt_algorithm": security.jwt_algorithm,
            "jwt_expiry": security.jwt_expiry.as_seconds(),
            "jwt_token_limit": security.jwt_token_limit,
            "api_keys_enabled": security.api_keys_enabled,
            "api_key_header": security.api_key_header,
            "rate_limit": security.rate_limit.to_string(),
            "token_rate_limit": security.token_rate_limit.map(|r| r.to_string()),
            "issuer": security.issuer.clone().unwrap_or_else(|| e.environment.to_string()),
        },
        "monitoring": {
            "metrics_port": site.metrics_port.unwrap_or(monitoring.metrics_port),
            "enable_tracing": monitoring.enable_tracing,
            "log_level": monitoring.log_level,
            "log_file": monitoring.log_file,
        },
    }});
    // Older servers reject these settings, and `rollback` gives them this file. They are therefore omitted at their
    // defaults.
    if !inference.prefix_cache {
        config["textnlp"]["models"]["prefix_cache"] = json!(false);
    }
    if let Some(model) = e.embedding_model() {
        config["textnlp"]["models"]["embeddings"] = json!(model.id());
    }
    if inference.draft_tokens != Inference::default().draft_tokens {
        config["textnlp"]["models"]["draft_tokens"] = json!(inference.draft_tokens);
    }
    if let Some(size) = inference.max_batch_size {
        config["textnlp"]["models"]["max_batch_size"] = json!(size);
    }
    if gpus(e, site).is_some() {
        // Never the CPU instead: a server that finds no GPU does not start.
        config["textnlp"]["models"]["device"] = json!("cuda");
    }
    if *usage != Usage::default() {
        config["textnlp"]["usage"] = json!({ "retention_days": usage.retention_days });
    }
    if prices.are_set() {
        config["textnlp"]["prices"] = server_prices(prices, &e.budget.currency);
    }
    if *audit != Audit::default() {
        config["textnlp"]["audit"] = json!({ "retention_days": audit.retention_days });
    }
    if analytics.enabled {
        config["textnlp"]["analytics"] = json!({ "retention_days": analytics.retention_days });
    }
    if batch.enabled {
        config["textnlp"]["batch"] = json!({
            "max_requests": batch.max_requests,
            "max_file_size": batch.max_file_size.to_string(),
            "max_pending": batch.max_pending,
            "max_stored": batch.max_stored.to_string(),
            "concurrency": batch.concurrency,
            "retention_days": batch.retention_days,
        });
        // The provider adds the files of the secrets.
        let webhooks: Vec<Value> = webhooks(e)
            .iter()
            .map(|BatchWebhook { tenant, url, .. }| match tenant {
                Some(tenant) => json!({ "tenant": tenant, "url": url }),
                None => json!({ "url": url }),
            })
            .collect();
        if !webhooks.is_empty() {
            config["textnlp"]["batch"]["webhooks"] = json!(webhooks);
        }
    }
    if let Some(cache) = cache(e) {
        let mut settings = json!({ "kind": cache.kind, "size": cache.size.to_string() });
        if cache.kind == CacheKind::Redis {
            settings["ttl"] = json!(cache.ttl.as_seconds());
            settings["max_connections"] = json!(cache.max_connections);
            // The provider adds the file of an address that is secret, or has a generated password.
            if let Some(UrlSource::Url(url)) = &cache.url {
                // As it is read, so that the rules of networks know its scheme.
                settings["url"] = json!(redis_url(url).map_or_else(|_| url.clone(), String::from));
            }
            // In a cluster, the provider names the file of the pods.
            if let Some(file) = e.network.private_ca.as_ref().filter(|_| cache.may_have_tls()) {
                settings["ca_file"] = json!(file);
            }
        }
        config["textnlp"]["cache"] = settings;
    }
    if let Some(action) = pii.action {
        config["textnlp"]["pii"] = json!({ "action": action, "kinds": pii.kinds });
    }
    if let Some(traces) = traces(e) {
        // As a text: no reader of the document rounds it.
        let mut export = json!({ "endpoint": traces.endpoint, "ratio": traces.ratio.to_string() });
        if traces.secret.is_some() {
            // The provider adds the file of the secret.
            export["header"] = json!(traces.header);
        }
        config["textnlp"]["monitoring"]["traces"] = export;
    }
    if let Some(issuer) = &security.oidc.issuer {
        let Oidc { audience, tenant, tenant_claim, scopes, roles_claim, roles, .. } = &security.oidc;
        let roles = roles.iter().map(|(role, scopes)| json!({ "role": role, "scopes": scopes }));
        config["textnlp"]["security"]["oidc"] = json!({
            "issuer": issuer, "audience": audience, "tenant": tenant, "tenant_claim": tenant_claim,
            "scopes": scopes, "roles_claim": roles_claim, "roles": roles.collect::<Vec<_>>(),
        });
    }
    if !e.features.is_empty() {
        let features = e.features.iter().map(|(name, Feature(feature))| {
            let mut entry = json!(feature);
            entry["name"] = json!(name);
            entry
        });
        config["textnlp"]["features"] = features.collect();
    }
    config
}

/// The prices of the server, as decimal texts: no reader of the document rounds them.
fn server_prices(prices: &TokenPrices, currency: &str) -> Value {
    let models = prices.models.iter().map(|(name, of)| {
        let (prompt, answer) = (of.prompt.unwrap_or(prices.prompt), of.answer.unwrap_or(prices.answer));
        json!({ "name": name, "prompt": prompt.to_string(), "answer": answer.to_string() })
    });
    json!({
        "currency": prices.currency.as_deref().unwrap_or(currency),
        "prompt": prices.prompt.to_string(),
        "answer": prices.answer.to_string(),
        "models": models.collect::<Vec<_>>(),
    })
}
