//! What Google Cloud can do with the settings of an environment.

use textnlp_provider::capabilities::Capability::*;
use textnlp_provider::capabilities::{Capabilities, Capability, RuntimeSupport, Setting, SiteRecords, Store};
use textnlp_provider::cluster::CloudCache;
use textnlp_provider::component::ComponentSpec;
use textnlp_provider::settings::{
    CacheKind, DatabaseCopy, DatabaseKind, Failover, GpuSize, Hosting, Runtime, Strategy, TlsMode, TrafficMode,
};
use textnlp_provider::{Component, Form, Site};

use crate::lower::{CACHE_PORT, NOTICES_AFTER, SYSTEM, bucket_identity};
use crate::tables::machines::NODES;

/// The component as the provider of the objects inside of the cluster expands it: without what Google Cloud's own resources answer for.
/// Pure.
pub fn inside(component: &Component, site: &Site) -> Option<(Component, Site)> {
    let nodes = NODES.of_any_site(site).named(SYSTEM);
    let (mut inner, mut site) = textnlp_cloud::inside(component, site, &format!("{nodes}-nodes"));
    // Without the stack the receivers get the alerts of Cloud Monitoring only.
    if let ComponentSpec::Monitoring(monitoring) = &mut inner.part
        && !monitoring.stack
    {
        monitoring.receivers.clear();
    }
    let identity = bucket_identity(component, &site);
    if let Some(cluster) = &mut site.cluster {
        cluster.cache = CloudCache { port: Some(CACHE_PORT), has_login: true, has_authority: true };
        if !cluster.existing {
            cluster.bucket_identity = Some(identity);
        }
    }
    Some((inner, site))
}

/// What is not listed here is refused.
pub const CAPABILITIES: Capabilities = Capabilities {
    runtimes: &[
        RuntimeSupport { runtime: Runtime::Kubernetes, supported: KUBERNETES, refused: &[] },
        RuntimeSupport { runtime: Runtime::CloudRun, supported: CLOUD_RUN, refused: NOT_BY_CLOUD_RUN },
        RuntimeSupport { runtime: Runtime::Vertex, supported: VERTEX, refused: NOT_BY_VERTEX },
    ],
    site_records: Some(SiteRecords { notices_after: NOTICES_AFTER, takes_names: false }),
    names_balancers: false,
    forms: &[
        (
            Form::ACCOUNT,
            Form {
                fits: is_project,
                says: "a project is its id, such as `my-project`, and not its name: `gcloud projects list`",
            },
        ),
        (
            Form::REGION,
            Form { fits: is_region, says: "a region is like `europe-west3`: `gcloud compute regions list`" },
        ),
        (
            Form::ROLE,
            Form {
                fits: |id| {
                    id.split_once('@')
                        .is_some_and(|(name, rest)| !name.is_empty() && rest.ends_with(".gserviceaccount.com"))
                },
                says: "it is a service account, such as `deploy@my-project.iam.gserviceaccount.com`",
            },
        ),
    ],
};

/// An id, or `example.com:id` of an old domain: <https://cloud.google.com/resource-manager/docs/creating-managing-projects>.
fn is_project(id: &str) -> bool {
    let id = id.rsplit_once(':').map_or(id, |(_, id)| id);
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (6..=30).contains(&id.len())
        && id.starts_with(|first: char| first.is_ascii_lowercase())
        && !id.ends_with('-')
        && id.bytes().all(fits)
}

/// `europe-west3`: <https://cloud.google.com/compute/docs/regions-zones>.
fn is_region(id: &str) -> bool {
    let Some((area, rest)) = id.split_once('-') else { return false };
    let name = rest.trim_end_matches(|c: char| c.is_ascii_digit());
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    is_word(area) && is_word(name) && name.len() < rest.len()
}

const KUBERNETES: &[Capability] = &[
    Database(DatabaseKind::Postgres, Some(Hosting::Managed)),
    Database(DatabaseKind::Postgres, Some(Hosting::External)),
    Database(DatabaseKind::Postgres, Some(Hosting::Cluster)),
    Cache(CacheKind::Redis, Some(Hosting::Managed)),
    Tls(TlsMode::LocalCa),
    Tls(TlsMode::Existing),
    Failover(Failover::Manual),
    Failover(Failover::Automatic),
    Replication(DatabaseCopy::Streaming),
    Traffic(TrafficMode::Gateway),
    Rollout(Strategy::Rolling),
    Rollout(Strategy::Canary),
    Rollout(Strategy::BlueGreen),
    State(Store::Folder),
    State(Store::Gs),
    Backup(Store::Folder),
    Backup(Store::S3),
    Backup(Store::Gs),
    Backup(Store::Az),
    Gpu(GpuSize::Small),
    Gpu(GpuSize::Medium),
    Gpu(GpuSize::Large),
    Gpu(GpuSize::Xlarge),
    Optional(Setting::AddressRange),
    Optional(Setting::AlertReceivers),
    Optional(Setting::ArchiveAfter),
    Optional(Setting::Autoscaling),
    Optional(Setting::Backup),
    Optional(Setting::BackupSize),
    Optional(Setting::BillingExport),
    Optional(Setting::ClusterNetworks),
    Optional(Setting::ClusterNodes),
    Optional(Setting::ClusterVersion),
    Optional(Setting::DatabaseReplica),
    Optional(Setting::EncryptionKey),
    Optional(Setting::ExistingRegistry),
    Optional(Setting::ExistingRole),
    Optional(Setting::ExistingZone),
    Optional(Setting::Features),
    Optional(Setting::GpuAutoscaling),
    Optional(Setting::GpuMachines),
    Optional(Setting::GpuUpgrade),
    Optional(Setting::Maintenance),
    Optional(Setting::ModelReplica),
    Optional(Setting::MonitoringStack),
    Optional(Setting::NetworkPolicies),
    Optional(Setting::NodeSize),
    Optional(Setting::PrivateAuthority),
    Optional(Setting::Proxy),
    Optional(Setting::Registry),
    Optional(Setting::RegistryPassword),
    Optional(Setting::Subnets),
    Optional(Setting::Tags),
    Optional(Setting::WebApplicationFirewall),
];

/// A service keeps nothing: its SQLite file ends with the instance. Google Cloud terminates TLS and authorizes callers, so that keys,
/// tenants, gateways and failover are not supported, nor is what needs a cluster or a network of its own.
const CLOUD_RUN: &[Capability] = &[
    Database(DatabaseKind::Sqlite, None),
    Tls(TlsMode::LocalCa),
    Tls(TlsMode::Off),
    Traffic(TrafficMode::Gateway),
    Rollout(Strategy::Rolling),
    State(Store::Folder),
    State(Store::Gs),
    Gpu(GpuSize::Large),
    Optional(Setting::AlertReceivers),
    Optional(Setting::ArchiveAfter),
    Optional(Setting::Autoscaling),
    Optional(Setting::BillingExport),
    Optional(Setting::EncryptionKey),
    Optional(Setting::ExistingRole),
    Optional(Setting::ModelReplica),
    Optional(Setting::Registry),
    Optional(Setting::Tags),
];

/// Why a service of Cloud Run refuses settings.
const NOT_BY_CLOUD_RUN: &[(&str, &str)] = &[
    ("backup.destination", "no data outlives an instance"),
    ("backup.enabled", "no data outlives an instance"),
    ("backup.size", "no data outlives an instance"),
    ("cache.kind", "containers are in the network of Google Cloud"),
    ("cluster.max_nodes", "Cloud Run runs the containers"),
    ("dr.mode", "nothing leads clients from a service of Cloud Run to another site"),
    ("features", "flags are in a database, and no data outlives an instance"),
    ("gpu.machines", "each instance has one L4"),
    ("gpu.max", "each instance has a GPU: `scaling.max` is the most of them"),
    ("maintenance", "Cloud Run has no maintenance window"),
    ("monitoring.stack", "Cloud Run sends its metrics to Cloud Monitoring"),
    ("network.private_ca", "containers are in the network of Google Cloud"),
    ("network.proxy", "containers are in the network of Google Cloud"),
    ("registry.existing", "existing registries are not supported for services of Cloud Run yet"),
    ("registry.password", "Cloud Run pulls the image with its service agent"),
    ("replication.database.mode", "each instance has SQLite"),
    ("traffic.existing", "clients reach the service by a name of Google Cloud with its certificate"),
];

/// As [`CLOUD_RUN`], on machines of one's choice.
const VERTEX: &[Capability] = &[
    Database(DatabaseKind::Sqlite, None),
    Tls(TlsMode::LocalCa),
    Tls(TlsMode::Off),
    Traffic(TrafficMode::Gateway),
    Rollout(Strategy::Rolling),
    State(Store::Folder),
    State(Store::Gs),
    Gpu(GpuSize::Small),
    Gpu(GpuSize::Medium),
    Gpu(GpuSize::Large),
    Gpu(GpuSize::Xlarge),
    Optional(Setting::AlertReceivers),
    Optional(Setting::ArchiveAfter),
    Optional(Setting::Autoscaling),
    Optional(Setting::BillingExport),
    Optional(Setting::EncryptionKey),
    Optional(Setting::ExistingRole),
    Optional(Setting::ModelReplica),
    Optional(Setting::Registry),
    Optional(Setting::Tags),
];

/// Why an endpoint of Vertex AI refuses settings.
const NOT_BY_VERTEX: &[(&str, &str)] = &[
    ("backup.destination", "no data outlives a replica"),
    ("backup.enabled", "no data outlives a replica"),
    ("backup.size", "no data outlives a replica"),
    ("cache.kind", "containers are in the network of Google Cloud"),
    ("cluster.max_nodes", "Vertex AI runs the containers"),
    ("dr.mode", "nothing leads clients from an endpoint to another site"),
    ("features", "flags are in a database, and no data outlives a replica"),
    ("gpu.machines", "`gpu.size` or `sites[].instance_type` chooses the machine"),
    ("gpu.max", "each replica has its GPUs: `scaling.max` is the most of them"),
    ("maintenance", "Vertex AI has no maintenance window"),
    ("monitoring.stack", "Vertex AI sends its metrics to Cloud Monitoring"),
    ("network.private_ca", "containers are in the network of Google Cloud"),
    ("network.proxy", "containers are in the network of Google Cloud"),
    ("registry.existing", "existing registries are not supported for endpoints of Vertex AI yet"),
    ("registry.password", "Vertex AI pulls the image with its service agent"),
    ("replication.database.mode", "each replica has SQLite"),
    ("traffic.existing", "clients reach the endpoint by a name of Google Cloud with its certificate"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_the_forms_of_google_cloud() {
        for (setting, id, expected) in [
            (Form::ACCOUNT, "my-project", true),
            (Form::ACCOUNT, "example.com:my-project", true),
            (Form::ACCOUNT, "My Project", false),
            (Form::REGION, "northamerica-northeast1", true),
            (Form::REGION, "europe-west3-a", false),
            (Form::REGION, "eu-central-1", false),
            (Form::ROLE, "deploy@my-project.iam.gserviceaccount.com", true),
            (Form::ROLE, "arn:aws:iam::123456789012:role/deploy", false),
        ] {
            assert_eq!((CAPABILITIES.form(setting).unwrap().fits)(id), expected, "{setting}: {id}");
        }
    }
}
