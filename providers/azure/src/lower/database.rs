//! The managed PostgreSQL: its private DNS zone, the server in a subnet of its own, and its database.

use serde_json::json;
use textnlp_provider::component::{Database, Postgres};
use textnlp_provider::settings::Hosting;
use textnlp_provider::{Ownership, ResourceId};

use super::{Lowering, NETWORK, output};
use crate::kinds::network::DATABASES;
use crate::names;
use crate::tables::machines::{CHEAPEST_TIER, SERVERS, server_tier};
use crate::tables::zones;

/// The end of the name of a zone for servers (Azure/azure-rest-api-specs#20866). A zone has another first label than its server
/// (hashicorp/terraform-provider-azurerm#24549).
const ZONE: &str = "private.postgres.database.azure.com";
/// The administrator, as which the service connects.
const USER: &str = "textnlp";
/// The generated password among the secrets of a site.
const PASSWORD: &str = "database-password";
/// Connections besides those of the service: those that Azure keeps for itself, operators, jobs.
const SPARE_CONNECTIONS: u32 = 20;
/// Days of backups: <https://learn.microsoft.com/azure/postgresql/flexible-server/concepts-backup-restore>.
const BACKUP_DAYS: (u64, u64) = (7, 35);
/// Sizes of disks in GiB: <https://learn.microsoft.com/azure/postgresql/flexible-server/concepts-storage>.
const DISKS_GB: [u64; 10] = [32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384];
/// The most characters of a label of a zone's name.
const MOST_OF_LABEL: usize = 40;

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
            let cause = "an existing server of Azure is not set up by `up`";
            return self.problem("existing", cause, "write `hosting: external` and its address");
        }
        if postgres.between.is_some() {
            let cause = "one managed database for several sites is not supported yet";
            return self.problem("between", cause, "keep one site in this environment");
        }
        if managed.replica_region.is_some() {
            let cause = "a replica in another region of Azure is not supported yet";
            return self.problem("replica_region", cause, "remove `database.replica_region`");
        }
        if postgres.replicas > 1 {
            let cause = "Azure keeps one standby; more replicas are not supported yet";
            return self.problem("replicas", cause, "set `database.replicas: 1`");
        }
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        if postgres.name.is_empty() || postgres.name.len() > 63 || !postgres.name.chars().all(is_name) {
            let cause = format!("`{}` is no name for a database of Azure", postgres.name);
            return self.problem("name", cause, "use lower-case letters, digits, `_` and `-`");
        }
        let Some((size, _)) = size(postgres) else {
            let cause = format!("no server accepts {} connections", postgres.connections);
            let fix = "lower `database.pool_size`, `database.max_overflow` or `scaling.max`";
            return self.problem("pool_size", cause, fix);
        };
        if self.site.subnets.len() == 1 {
            let cause = format!("a managed database needs a subnet of its own, which is delegated to {DATABASES}");
            let fix =
                "name it in `sites[].existing.subnets` after that of the nodes, or write `database.hosting: external`";
            return self.problem("subnets", cause, fix);
        }
        let asked = managed.disk_bytes.div_ceil(1 << 30);
        let Some(disk) = DISKS_GB.iter().find(|size| **size >= asked) else {
            return self.problem("size", format!("no disk has {asked} GiB"), "lower `database.size`");
        };
        let days = managed.backup_seconds.div_ceil(86_400).clamp(BACKUP_DAYS.0, BACKUP_DAYS.1);
        self.server(postgres, size, *disk, days);
    }

    fn server(&mut self, postgres: &Postgres, size: &str, disk: u64, days: u64) {
        let name = names::server(self.site);
        let zone = format!("{}.{ZONE}", names::of_site(self.site, MOST_OF_LABEL));
        let spec = self.of_world(json!({ "name": zone }));
        let Some(zone) = self.part("zone", "azure.dns-zone", spec) else { return };
        let link =
            json!({ "name": "network", "zone": output(&zone, "id"), "network": self.output_of(NETWORK, "vnet", "id") });
        let link = self.part("zone-link", "azure.dns-link", link);
        let Ok(password) = ResourceId::part(&self.site.name, &postgres.secrets, PASSWORD) else { return };
        let standby = match (postgres.replicas, zones::zones(&self.site.region)) {
            (0, _) => "Disabled",
            (_, []) => "SameZone",
            _ => "ZoneRedundant",
        };
        let spec = self.of_group(json!({
            "name": name,
            "version": postgres.version.to_string(),
            "sku": size,
            "login": USER,
            "password": output(&password, "secret"),
            "disk_gb": disk,
            "backup_days": days,
            "standby": standby,
            "subnet": self.output_of(NETWORK, "database-subnet", "id"),
            "zone": output(&zone, "id"),
        }));
        let Some(server) = self.owned_part("server", "azure.database-server", spec, Ownership::Ours) else { return };
        self.after(link);
        let database = json!({ "server": output(&server, "id"), "name": postgres.name, "charset": "UTF8" });
        self.part("instance", "azure.database", database);
    }
}

/// The smallest size that accepts the connections of a service, and how many it accepts.
pub(super) fn size(postgres: &Postgres) -> Option<(&'static str, u32)> {
    let needed = postgres.connections.saturating_add(SPARE_CONNECTIONS);
    // Servers of the cheapest tier have no standby.
    let fits = |size: &str| postgres.replicas == 0 || server_tier(size) != CHEAPEST_TIER;
    SERVERS.iter().find(|(size, most, ..)| *most >= needed && fits(size)).map(|(size, most, ..)| (*size, *most))
}
