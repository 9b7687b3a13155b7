//! Settings of an environment that the process runtime supports.

use textnlp_provider::capabilities::Capability::*;
use textnlp_provider::capabilities::{Capabilities, RuntimeSupport, Setting, Store};
use textnlp_provider::settings::{
    DatabaseCopy, DatabaseKind, Failover, Hosting, Runtime, Strategy, TlsMode, TrafficMode,
};

/// Anything not listed is refused.
pub const CAPABILITIES: Capabilities = Capabilities {
    runtimes: &[RuntimeSupport {
        runtime: Runtime::Process,
        supported: &[
            Database(DatabaseKind::Sqlite, None),
            Database(DatabaseKind::Postgres, Some(Hosting::External)),
            Database(DatabaseKind::Postgres, Some(Hosting::Cluster)),
            Tls(TlsMode::LocalCa),
            Tls(TlsMode::Existing),
            Tls(TlsMode::Acme),
            Tls(TlsMode::Off),
            Failover(Failover::Manual),
            Failover(Failover::Automatic),
            Traffic(TrafficMode::Gateway),
            Rollout(Strategy::Rolling),
            Replication(DatabaseCopy::Streaming),
            State(Store::Folder),
            State(Store::S3),
            State(Store::Gs),
            State(Store::Az),
            Backup(Store::Folder),
            Backup(Store::S3),
            Backup(Store::Gs),
            Backup(Store::Az),
            Optional(Setting::Backup),
            Optional(Setting::PointInTimeRecovery),
            Optional(Setting::AlertReceivers),
            Optional(Setting::Features),
            Optional(Setting::PrivateAuthority),
            Optional(Setting::Proxy),
            Optional(Setting::ModelFolder),
            Optional(Setting::Tags),
        ],
        refused: &[
            ("backup.size", "backups are in a folder or a bucket, which has no size of its own"),
            ("monitoring.stack", "no dashboards are installed on a machine: `metrics dashboard` prints one"),
            ("registry.existing", "machines run programs, not images"),
            ("registry.password", "machines run programs, not images"),
            ("registry.url", "machines run programs, not images"),
        ],
    }],
    site_records: None,
    names_balancers: false,
    forms: &[],
};
