//! What Google Cloud can do with the settings of an environment.

use textnlp_provider::capabilities::Capability::*;
use textnlp_provider::capabilities::{Capabilities, RuntimeSupport, Setting, SiteRecords, Store};
use textnlp_provider::component::ComponentSpec;
use textnlp_provider::settings::{
    DatabaseCopy, DatabaseKind, Failover, GpuSize, Hosting, Runtime, Strategy, TlsMode, TrafficMode,
};
use textnlp_provider::{Component, Site};

use crate::lower::{NOTICES_AFTER, bucket_identity};

/// The component as the provider of the objects inside of the cluster expands it: without what Google Cloud's own resources answer for.
/// Pure.
pub fn inside(component: &Component, site: &Site) -> Option<(Component, Site)> {
    let (mut inner, mut site) = textnlp_cloud::inside(component, site, "system-nodes");
    // Without the stack the receivers get the alerts of Cloud Monitoring only.
    if let ComponentSpec::Monitoring(monitoring) = &mut inner.part
        && !monitoring.stack
    {
        monitoring.receivers.clear();
    }
    let identity = bucket_identity(component, &site);
    if let Some(cluster) = site.cluster.as_mut().filter(|cluster| !cluster.existing) {
        cluster.bucket_identity = Some(identity);
    }
    Some((inner, site))
}

/// What is not listed here is refused.
pub const CAPABILITIES: Capabilities = Capabilities {
    runtimes: &[RuntimeSupport {
        runtime: Runtime::Kubernetes,
        supported: &[
            Database(DatabaseKind::Postgres, Some(Hosting::Managed)),
            Database(DatabaseKind::Postgres, Some(Hosting::External)),
            Database(DatabaseKind::Postgres, Some(Hosting::Cluster)),
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
            Optional(Setting::Maintenance),
            Optional(Setting::ModelReplica),
            Optional(Setting::MonitoringStack),
            Optional(Setting::NetworkPolicies),
            Optional(Setting::PrivateAuthority),
            Optional(Setting::Proxy),
            Optional(Setting::Registry),
            Optional(Setting::Subnets),
            Optional(Setting::Tags),
            Optional(Setting::WebApplicationFirewall),
        ],
        refused: &[],
    }],
    site_records: Some(SiteRecords { notices_after: NOTICES_AFTER, takes_names: false }),
    names_balancers: false,
};
