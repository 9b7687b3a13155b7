//! The managed PostgreSQL: its addresses in the network, the server, its database and its user, and replicas.

use serde_json::{Value, json};
use textnlp_provider::ResourceId;
use textnlp_provider::component::{Database, MaintenanceWindow, Postgres};
use textnlp_provider::settings::Hosting;

use super::{Lowering, NETWORK, output};
use crate::kinds::USER;
use crate::names;
use crate::tables::zones;

/// The longest name of a server without the end that makes it unique: with the project it has 98 characters at most.
const MOST_OF_SERVER: usize = 60;
/// The longest name of a range.
const MOST_OF_RANGE: usize = 63;
/// The range that private services get: each region and service takes a /24 of it (sassoftware/viya4-iac-gcp#194).
const PREFIX_LENGTH: u32 = 20;
/// The producer of Google's own services.
const PRODUCER: &str = "servicenetworking.googleapis.com";
/// The service agent of Cloud SQL, which uses keys.
const AGENT: &str = "agent:sql";
/// The part of the replica in another region.
pub(super) const REMOTE: &str = "remote";
/// The generated password among the secrets of a site.
const PASSWORD: &str = "database-password";
/// Connections besides those of the service: Cloud SQL itself, operators, jobs.
const SPARE_CONNECTIONS: u32 = 20;
/// The longest that backups are kept: their count is at most 365.
const MOST_BACKUP_DAYS: u64 = 365;
/// The smallest disk.
const LEAST_GB: u64 = 10;

/// Tiers of the edition ENTERPRISE, with the connections that PostgreSQL accepts there by default
/// (<https://cloud.google.com/sql/docs/postgres/flags#postgres-m>, as of 2025-06).
const TIERS: &[(&str, u32)] = &[
    ("db-custom-1-3840", 100),
    ("db-custom-2-7680", 400),
    ("db-custom-4-15360", 500),
    ("db-custom-8-30720", 600),
    ("db-custom-16-61440", 800),
    ("db-custom-32-122880", 1_000),
];

impl Lowering<'_> {
    pub(super) fn database(&mut self, database: &Database) {
        let Some(postgres) = database.postgres.as_ref().filter(|_| database.hosting == Some(Hosting::Managed)) else {
            return;
        };
        let Some(managed) = &postgres.managed else {
            let cause = "the size of the managed database is not recorded";
            return self.problem("size", cause, "plan again with this version");
        };
        if self.component.existing.is_some() {
            let cause = "an existing server of Cloud SQL is not set up by `up`";
            return self.problem("existing", cause, "write `hosting: external` and its address");
        }
        if postgres.between.is_some() {
            let cause = "one managed database for several sites is not supported yet";
            return self.problem("between", cause, "keep one site in this environment");
        }
        let is_label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        if postgres.name.len() > 63 || !postgres.name.chars().all(is_label) {
            let cause = format!("`{}` is no name for a database of Cloud SQL", postgres.name);
            return self.problem("name", cause, "use lower-case letters, digits, `_` and `-`");
        }
        let Some((tier, _)) = tier(postgres) else {
            let cause = format!("no server accepts {} connections", postgres.connections);
            let fix = "lower `database.pool_size`, `database.max_overflow` or `scaling.max`";
            return self.problem("pool_size", cause, fix);
        };
        let days = managed.backup_seconds.div_ceil(86_400).min(MOST_BACKUP_DAYS);
        if postgres.replicas > 0 && days == 0 {
            let cause = "Cloud SQL copies no server without backups";
            self.problem("replicas", cause, "set `backup.enabled: true`, or `database.replicas: 0`");
        }
        if let Some(region) = &managed.replica_region {
            if zones::zones(region).is_none() || *region == self.site.region {
                let cause = format!("`{region}` is not another region that {} can be copied to", self.site.region);
                let near = if self.site.region == "europe-west4" { "europe-west1" } else { "europe-west4" };
                return self.problem("replica_region", cause, format!("name another region, such as {near}"));
            }
            if days == 0 {
                let cause = "Cloud SQL copies no server without backups";
                return self.problem("replica_region", cause, "set `backup.enabled: true`");
            }
        }
        let disk = managed.disk_bytes.div_ceil(1 << 30).max(LEAST_GB);
        self.server(postgres, tier, disk, days);
    }

    /// The range of private services and their connection to the network. An existing network has one connection for all who use it,
    /// and its ranges are its owner's: see `preflight`.
    pub(super) fn private_services(&mut self, network: &Value) -> (Value, Option<ResourceId>) {
        if !self.site.subnets.is_empty() {
            return (Value::Null, None);
        }
        let spec = json!({
            "name": names::of(self.site, "services", MOST_OF_RANGE),
            "network": network,
            "prefix_length": PREFIX_LENGTH,
        });
        let Some(part) = self.part("range", "gcp.address-range", self.of_project(spec)) else {
            return (Value::Null, None);
        };
        let range = output(&part, "name");
        let spec = json!({ "name": PRODUCER, "network": network, "ranges": [range] });
        (range, self.part("connection", "gcp.service-connection", spec))
    }

    fn server(&mut self, postgres: &Postgres, tier: &str, disk: u64, days: u64) {
        let network = self.output_of(NETWORK, "vpc", "id");
        let (range, connection) = self.private_services(&network);
        let (key, access) = self.data_key(AGENT);
        let mut server = json!({
            "name": names::of(self.site, "database", MOST_OF_SERVER),
            "version": format!("POSTGRES_{}", postgres.version),
            "source": null,
            "tier": tier,
            "edition": "ENTERPRISE",
            "availability": if postgres.replicas > 0 { "REGIONAL" } else { "ZONAL" },
            "disk_gb": disk,
            "disk_type": "PD_SSD",
            "network": network,
            "range": range,
            "public": false,
            "tls": "ENCRYPTED_ONLY",
            "backup_days": days,
            "maintenance": self.site.maintenance.as_ref().map(window),
            "deletion_protection": self.site.protect_data,
            "key": key,
            "database": postgres.name,
        });
        let Some(main) = self.part("server", "gcp.sql-instance", self.of_region(server.clone())) else { return };
        self.after(connection.clone());
        self.after(access.clone());
        let database = json!({ "instance": output(&main, "id"), "name": postgres.name, "charset": "UTF8" });
        let database = self.part("database", "gcp.sql-database", database);
        let Ok(password) = ResourceId::part(&self.site.name, &postgres.secrets, PASSWORD) else { return };
        let user = json!({ "instance": output(&main, "id"), "name": USER, "password": output(&password, "secret") });
        let user = self.part("instance", "gcp.sql-user", user);
        self.after(database);
        // A server does one operation at a time: each part waits for the one before it.
        let mut before = user;
        // Replicas have no window of their own (terraform-google-modules/terraform-google-sql-db#64).
        server["maintenance"] = Value::Null;
        // The first replica of an environment is the standby; others answer reads.
        for replica in 1..postgres.replicas {
            server["name"] = json!(names::of(self.site, &format!("database-{replica}"), MOST_OF_SERVER));
            server["source"] = output(&main, "name");
            server["availability"] = json!("ZONAL");
            server["backup_days"] = json!(0);
            let part = self.part(&format!("replica-{replica}"), "gcp.sql-instance", self.of_region(server.clone()));
            self.after(connection.clone());
            self.after(before);
            before = part;
        }
        if let Some(region) = postgres.replica_region() {
            // Cloud SQL takes no key of the region of its source (terraform-google-modules/terraform-google-sql-db#249).
            let (key, access) = self.key_in(region, REMOTE, "database", AGENT);
            for (field, value) in [
                ("name", json!(names::of(self.site, "database-remote", MOST_OF_SERVER))),
                ("location", json!(region)),
                ("source", output(&main, "name")),
                ("availability", json!("ZONAL")),
                ("backup_days", json!(0)),
                ("key", key),
            ] {
                server[field] = value;
            }
            self.part(REMOTE, "gcp.sql-instance", self.of_project(server));
            self.after(connection);
            self.after(before);
            self.after(access);
        }
    }
}

/// The hour of the window in which Cloud SQL updates a server, which is always one hour: the first full one.
fn window(maintenance: &MaintenanceWindow) -> Value {
    let (day, hour) = maintenance.full_hour();
    json!({ "day": day as u32 + 1, "hour": hour })
}

/// The smallest tier that accepts the connections of a service, and how many it accepts.
pub(super) fn tier(postgres: &Postgres) -> Option<(&'static str, u32)> {
    let needed = postgres.connections.saturating_add(SPARE_CONNECTIONS);
    TIERS.iter().copied().find(|(_, most)| *most >= needed)
}

#[cfg(test)]
mod tests {
    use textnlp_provider::settings::Weekday;

    use super::*;

    #[test]
    fn the_window_of_a_server_is_the_first_full_hour() {
        for (day, at, expected) in [
            (Weekday::Monday, "03:00", json!({ "day": 1, "hour": 3 })),
            (Weekday::Saturday, "03:15", json!({ "day": 6, "hour": 4 })),
            (Weekday::Sunday, "23:01", json!({ "day": 1, "hour": 0 })),
        ] {
            assert_eq!(window(&MaintenanceWindow { day, at: at.parse().unwrap(), hours: 4 }), expected);
        }
    }
}
