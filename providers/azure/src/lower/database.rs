//! The managed PostgreSQL: its private DNS zone, the server in a subnet of its own, and its database.

use serde_json::{Value, json};
use textnlp_provider::component::{Database, MaintenanceWindow, Postgres};
use textnlp_provider::settings::Hosting;
use textnlp_provider::{Ownership, ResourceId};

use super::network::{MOST, needed};
use super::{Lowering, NETWORK, output};
use crate::kinds::network::{DATABASE, DATABASES, TO_REPLICA, TO_SOURCE};
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
/// The network of a replica in another region, and its subnet there: shared addresses (RFC 6598), which overlap with the network of no site
/// that this program creates, and which no site has for its pods and services.
const REMOTE_NETWORK: &str = "100.66.0.0/16";
const REMOTE_SUBNET: &str = "100.66.0.0/24";
/// The part of that replica.
const REMOTE: &str = "remote";

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
        let is_of_region = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if let Some(region) = managed.replica_region.as_ref().filter(|name| !name.chars().all(is_of_region)) {
            let cause = format!("`{region}` is not the name of a region of Azure");
            let fix = "write one that `az account list-locations --query [].name` prints, such as northeurope";
            return self.problem("replica_region", cause, fix);
        }
        if managed.replica_region.as_ref() == Some(&self.site.region) {
            let cause = format!("`{}` is not another region", self.site.region);
            let near = if self.site.region == "northeurope" { "westeurope" } else { "northeurope" };
            return self.problem("replica_region", cause, format!("name another region, such as {near}"));
        }
        if managed.replica_region.is_some() && !self.site.subnets.is_empty() {
            let cause = "the network of a replica has to be peered with that of its source, and an existing network is never changed";
            return self.problem(
                "replica_region",
                cause,
                "remove `database.replica_region`, or `sites[].existing.network`",
            );
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
        let name = names::server(self.site, "database");
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
            "maintenance": self.site.maintenance.as_ref().map(window),
            "standby": standby,
            "subnet": self.output_of(NETWORK, "database-subnet", "id"),
            "zone": output(&zone, "id"),
            "source": null,
            "database": null,
        }));
        let mut replica = spec.clone();
        let Some(server) = self.owned_part("server", "azure.database-server", spec, Ownership::Ours) else { return };
        self.after(link);
        let database = json!({ "server": output(&server, "id"), "name": postgres.name, "charset": "UTF8" });
        let instance = self.part("instance", "azure.database", database);
        let Some(region) = postgres.replica_region() else { return };
        for (field, value) in [
            ("name", json!(names::server(self.site, "replica"))),
            ("source", output(&server, "id")),
            ("database", json!(postgres.name)),
            ("standby", json!("Disabled")),
            ("maintenance", Value::Null),
            // Those of its source, whose password it has too.
            ("version", Value::Null),
            ("login", Value::Null),
            ("password", Value::Null),
            ("backup_days", Value::Null),
        ] {
            replica[field] = value;
        }
        self.remote(region, &server, instance, &zone, replica);
    }

    /// The replica in another region, in a group and a network of its own there. What belongs to the network of its source too is created
    /// after the source, so that a promoted server needs none of it.
    fn remote(
        &mut self,
        region: &str,
        source: &ResourceId,
        instance: Option<ResourceId>,
        zone: &ResourceId,
        mut replica: Value,
    ) {
        let name = names::remote_group(self.site);
        let id = format!("/subscriptions/{}/resourceGroups/{name}", self.site.account);
        let spec = json!({ "subscription": self.site.account, "name": name, "location": region });
        let group = self.part("remote-group", "azure.group", spec);
        for number in 1..=needed(self.site).len() {
            self.after(self.part_of(NETWORK, &format!("provider-{number}")));
        }
        let name = names::of(self.site, "network-remote", MOST);
        let spec = json!({ "group": id, "location": region, "name": name, "cidr": REMOTE_NETWORK });
        let Some(network) = self.part("remote-network", "azure.network", spec) else { return };
        self.after(group.clone());
        let spec = json!({
            "network": output(&network, "id"), "name": DATABASE, "cidr": REMOTE_SUBNET, "nat": null, "delegation": DATABASES,
        });
        let Some(subnet) = self.part("remote-subnet", "azure.subnet", spec) else { return };
        let name = format!("{}.{ZONE}", names::of(self.site, "remote", MOST_OF_LABEL));
        let spec = json!({ "group": id, "name": name });
        let Some(remote_zone) = self.part("remote-zone", "azure.dns-zone", spec) else { return };
        self.after(group.clone());
        let spec = json!({ "zone": output(&remote_zone, "id"), "name": "network", "network": output(&network, "id") });
        let mut before = vec![group, instance, self.part("remote-link", "azure.dns-link", spec)];

        let here = self.output_of(NETWORK, "vnet", "id");
        for (part, zone, network) in
            [("zone-remote-link", zone, output(&network, "id")), ("remote-zone-link", &remote_zone, here.clone())]
        {
            let spec = json!({ "zone": output(zone, "id"), "name": "peer", "network": network });
            before.push(self.part(part, "azure.dns-link", spec));
            self.after(Some(source.clone()));
        }
        // A network has one writer at a time (hashicorp/terraform-provider-azurerm#3780).
        let mut last = Some(subnet.clone());
        for (part, name, network, remote) in [
            ("peering", TO_REPLICA, here.clone(), output(&network, "id")),
            ("remote-peering", TO_SOURCE, output(&network, "id"), here),
        ] {
            let spec = json!({ "network": network, "name": name, "remote": remote, "connected": true });
            let peering = self.part(part, "azure.peering", spec);
            self.after(last);
            self.after(Some(source.clone()));
            before.push(peering.clone());
            last = peering;
        }
        for (field, value) in [
            ("group", json!(id)),
            ("location", json!(region)),
            ("subnet", output(&subnet, "id")),
            ("zone", output(&remote_zone, "id")),
        ] {
            replica[field] = value;
        }
        self.part(REMOTE, "azure.database-server", replica);
        for one in before {
            self.after(one);
        }
    }
}

/// The window in which Azure updates a server, which is always one hour.
fn window(maintenance: &MaintenanceWindow) -> Value {
    // Azure's week begins on Sunday.
    let day = (maintenance.day as u32 + 1) % 7;
    json!({ "day": day, "hour": maintenance.at.0 / 60, "minute": maintenance.at.0 % 60 })
}

/// The smallest size that accepts the connections of a service, and how many it accepts.
pub(super) fn size(postgres: &Postgres) -> Option<(&'static str, u32)> {
    let needed = postgres.connections.saturating_add(SPARE_CONNECTIONS);
    // Servers of the cheapest tier have neither a standby nor a replica
    // (<https://learn.microsoft.com/azure/postgresql/read-replica/concepts-read-replicas#create-a-replica>).
    let is_copied = postgres.replicas > 0 || postgres.replica_region().is_some();
    let fits = |size: &str| !is_copied || server_tier(size) != CHEAPEST_TIER;
    SERVERS.iter().find(|(size, most, ..)| *most >= needed && fits(size)).map(|(size, most, ..)| (*size, *most))
}

#[cfg(test)]
mod tests {
    use textnlp_provider::settings::Weekday;

    use super::*;

    #[test]
    fn the_week_of_a_window_begins_on_sunday() {
        for (day, at, expected) in [
            (Weekday::Sunday, "23:30", json!({ "day": 0, "hour": 23, "minute": 30 })),
            (Weekday::Saturday, "00:05", json!({ "day": 6, "hour": 0, "minute": 5 })),
        ] {
            assert_eq!(window(&MaintenanceWindow { day, at: at.parse().unwrap(), hours: 4 }), expected);
        }
    }
}
