//! What a cluster can do with the settings of an environment.

use textnlp_provider::capabilities::Capability::*;
use textnlp_provider::capabilities::{Capabilities, RuntimeSupport, Setting, Store};
use textnlp_provider::settings::{
    DatabaseCopy, DatabaseKind, Failover, GpuSize, Hosting, Runtime, Strategy, TlsMode, TrafficMode,
};

/// What is not listed here is refused.
pub const CAPABILITIES: Capabilities = Capabilities {
    runtimes: &[RuntimeSupport {
        runtime: Runtime::Kubernetes,
        supported: &[
            Database(DatabaseKind::Postgres, Some(Hosting::External)),
            Database(DatabaseKind::Postgres, Some(Hosting::Cluster)),
            Gpu(GpuSize::Small),
            Gpu(GpuSize::Medium),
            Gpu(GpuSize::Large),
            Gpu(GpuSize::Xlarge),
            Tls(TlsMode::LocalCa),
            Tls(TlsMode::Existing),
            Failover(Failover::Manual),
            Failover(Failover::Automatic),
            Traffic(TrafficMode::Gateway),
            Rollout(Strategy::Rolling),
            Rollout(Strategy::Canary),
            Rollout(Strategy::BlueGreen),
            Replication(DatabaseCopy::Streaming),
            State(Store::Folder),
            State(Store::S3),
            State(Store::Gs),
            State(Store::Az),
            Backup(Store::Folder),
            Backup(Store::S3),
            Backup(Store::Gs),
            Backup(Store::Az),
            Optional(Setting::AlertReceivers),
            Optional(Setting::Autoscaling),
            Optional(Setting::Backup),
            Optional(Setting::BackupSize),
            Optional(Setting::ClusterNodes),
            Optional(Setting::Features),
            Optional(Setting::MonitoringStack),
            Optional(Setting::NetworkPolicies),
            Optional(Setting::PrivateAuthority),
            Optional(Setting::Proxy),
            Optional(Setting::RegistryPassword),
            Optional(Setting::Tags),
            Optional(Setting::WebApplicationFirewall),
        ],
        refused: &[
            ("registry.existing", "the registry is yours"),
            (
                "registry.url",
                "the registry is yours: `sites[].cluster.image` names the image; for an account, set `registry.password` too",
            ),
        ],
    }],
    site_records: None,
    names_balancers: false,
    forms: &[],
};
