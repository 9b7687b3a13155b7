//! What Azure can do with the settings of an environment.

use textnlp_provider::capabilities::Capability::*;
use textnlp_provider::capabilities::{Capabilities, Capability, RuntimeSupport, Setting, SiteRecords, Store};
use textnlp_provider::cluster::{CloudCache, TaintEffect, Toleration, TolerationOperator};
use textnlp_provider::component::ComponentSpec;
use textnlp_provider::settings::{
    CacheKind, DatabaseCopy, DatabaseKind, Failover, GpuSize, Hosting, Runtime, Strategy, TlsMode, TrafficMode,
};
use textnlp_provider::{Component, Form, Site};

use crate::kinds::redis::PORT;
use crate::lower::{NODES_PART, NOTICES_AFTER, bucket_identity};
use crate::tables::machines::NODES;

/// The component as the provider of the objects inside of the cluster expands it: without what Azure's own resources answer for. Pure.
pub fn inside(component: &Component, site: &Site) -> Option<(Component, Site)> {
    let (mut inner, mut site) = textnlp_cloud::inside(component, site, &NODES.of_any_site(site).named(NODES_PART));
    // Without the stack the receivers get the alerts of Azure Monitor only.
    if let ComponentSpec::Monitoring(monitoring) = &mut inner.part
        && !monitoring.stack
    {
        monitoring.receivers.clear();
    }
    if let Some(gpu) = textnlp_cloud::created_gpus(&mut site) {
        // AKS installs the driver, and no plugin: <https://learn.microsoft.com/azure/aks/use-nvidia-gpu>.
        gpu.device_plugin = true;
        // The taint of spot nodes: <https://learn.microsoft.com/azure/aks/spot-node-pool>.
        gpu.tolerations.push(Toleration {
            key: Some("kubernetes.azure.com/scalesetpriority".to_owned()),
            operator: TolerationOperator::Equal,
            value: Some("spot".to_owned()),
            effect: Some(TaintEffect::NoSchedule),
        });
    }
    if let Some(cluster) = &mut site.cluster {
        cluster.cache = CloudCache { port: Some(PORT), has_login: true, ..CloudCache::default() };
    }
    let identity = bucket_identity(component, &site);
    if let Some(cluster) = site.cluster.as_mut().filter(|cluster| !cluster.existing) {
        cluster.bucket_identity = identity;
    }
    Some((inner, site))
}

/// What is not listed here is refused.
pub const CAPABILITIES: Capabilities = Capabilities {
    runtimes: &[
        RuntimeSupport { runtime: Runtime::Kubernetes, supported: KUBERNETES, refused: NOT_BY_KUBERNETES },
        RuntimeSupport { runtime: Runtime::AzureMl, supported: AZURE_ML, refused: NOT_BY_AZURE_ML },
    ],
    site_records: Some(SiteRecords { notices_after: NOTICES_AFTER, takes_names: false }),
    names_balancers: false,
    forms: &[
        (
            Form::ACCOUNT,
            Form {
                fits: is_subscription,
                says: "a subscription is its id, and not its name: `az account show --query id --output tsv`",
            },
        ),
        (
            Form::REGION,
            Form {
                fits: |id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()),
                says: "a region is like `westeurope`: `az account list-locations --query [].name`",
            },
        ),
    ],
};

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
    State(Store::Az),
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
    Optional(Setting::ClusterNetworks),
    Optional(Setting::ClusterNodes),
    Optional(Setting::ClusterVersion),
    Optional(Setting::DatabaseReplica),
    Optional(Setting::ExistingRegistry),
    Optional(Setting::ExistingZone),
    Optional(Setting::Features),
    Optional(Setting::GpuAutoscaling),
    Optional(Setting::GpuMachines),
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

/// Why a cluster refuses settings.
const NOT_BY_KUBERNETES: &[(&str, &str)] = &[NO_ROLE, NO_KEY];

const NO_ROLE: (&str, &str) =
    ("account.existing_role", "a sign-in to Azure assumes no role: sign in as the identity itself");
const NO_KEY: (&str, &str) = ("storage.existing_key", "existing keys are not supported for storage accounts yet");

/// What an online endpoint of Azure Machine Learning can do.
const AZURE_ML: &[Capability] = &[
    Database(DatabaseKind::Sqlite, None),
    Tls(TlsMode::LocalCa),
    Tls(TlsMode::Off),
    Traffic(TrafficMode::Gateway),
    Rollout(Strategy::Rolling),
    State(Store::Folder),
    State(Store::Az),
    Gpu(GpuSize::Small),
    Gpu(GpuSize::Medium),
    Gpu(GpuSize::Large),
    Gpu(GpuSize::Xlarge),
    Optional(Setting::ArchiveAfter),
    Optional(Setting::Autoscaling),
    Optional(Setting::ModelReplica),
    Optional(Setting::Registry),
    Optional(Setting::Tags),
];

/// Why an online endpoint of Azure Machine Learning refuses settings.
const NOT_BY_AZURE_ML: &[(&str, &str)] = &[
    NO_ROLE,
    ("backup.destination", "no data outlives a replica"),
    ("backup.enabled", "no data outlives a replica"),
    ("backup.size", "no data outlives a replica"),
    ("cache.kind", "containers are in the network of Azure Machine Learning"),
    ("cluster.max_nodes", "Azure Machine Learning runs the containers"),
    ("dr.mode", "nothing leads clients from an endpoint to another site"),
    ("features", "flags are in a database, and no data outlives a replica"),
    ("gpu.machines", "`gpu.size` or `sites[].instance_type` chooses the machine"),
    ("gpu.max", "each replica has its GPUs: `scaling.max` is the most of them"),
    ("maintenance", "Azure Machine Learning has no maintenance window"),
    ("monitoring.receivers", "no alerts about online endpoints are created yet"),
    ("monitoring.stack", "Azure Machine Learning sends its metrics to Azure Monitor"),
    ("network.private_ca", "containers are in the network of Azure Machine Learning"),
    ("network.proxy", "containers are in the network of Azure Machine Learning"),
    ("registry.existing", "existing registries are not supported for online endpoints yet"),
    ("registry.password", "Azure Machine Learning pulls the image with the identity of the servers"),
    ("replication.database.mode", "each replica has SQLite"),
    NO_KEY,
    ("traffic.existing", "clients reach the endpoint by a name of Azure with its certificate"),
];

fn is_subscription(id: &str) -> bool {
    id.len() == 36 && uuid::Uuid::try_parse(id).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_the_forms_of_azure() {
        for (setting, id, expected) in [
            (Form::ACCOUNT, "00000000-1111-4222-8333-444444444444", true),
            (Form::ACCOUNT, "Pay-As-You-Go", false),
            (Form::ACCOUNT, "00000000111142228333444444444444", false),
            (Form::REGION, "germanywestcentral", true),
            (Form::REGION, "eastus2", true),
            (Form::REGION, "West Europe", false),
            (Form::REGION, "eu-central-1", false),
        ] {
            assert_eq!((CAPABILITIES.form(setting).unwrap().fits)(id), expected, "{setting}: {id}");
        }
    }
}
