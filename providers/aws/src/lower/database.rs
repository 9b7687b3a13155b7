//! The managed PostgreSQL: subnets, access, settings, the server and its replicas.

use serde_json::{Value, json};
use textnlp_cloud::REGION;
use textnlp_provider::component::{Database, Postgres};
use textnlp_provider::settings::Hosting;
use textnlp_provider::{ComponentName, Ownership, ResourceId};
use textnlp_token::partition;

use super::{Lowering, output, zones};
use crate::kinds::rds::{FORCE_SSL, window};
use crate::names;
use crate::tables::{rds_ca, regions};

const MOST_OF_GROUP: usize = 255;
const PORT: u16 = 5432;
/// The user that owns the database.
const USER: &str = "textnlp";
/// The generated password among the secrets of a site.
const PASSWORD: &str = "database-password";
/// The longest that RDS keeps backups.
const MOST_BACKUP_DAYS: u64 = 35;
/// Connections besides those of the service: RDS itself, operators, jobs.
const SPARE_CONNECTIONS: u32 = 40;
/// The range of the network of a replica in another region, and those of its subnets by the letters of their zones.
const REMOTE: &str = "10.43.0.0/24";
const REMOTE_SUBNETS: [(&str, &str); 3] = [("a", "10.43.0.0/26"), ("b", "10.43.0.64/26"), ("c", "10.43.0.128/26")];
/// The smallest disk of gp3.
const LEAST_GB: u64 = 20;

/// Classes by memory, with the connections that PostgreSQL accepts there: RDS's default is memory in bytes / 9,531,392
/// (<https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/CHAP_Limits.html>, 2026-11-23), of which RDS itself takes a part of the
/// memory before.
/// Memory in GiB is that of <https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/Concepts.DBInstanceClass.Summary.html>.
const CLASSES: &[(&str, u32, u32)] = &[
    ("db.t4g.medium", 4, 400),
    ("db.t4g.large", 8, 800),
    ("db.r6g.large", 16, 1_700),
    ("db.r6g.xlarge", 32, 3_400),
    ("db.r6g.2xlarge", 64, 5_000),
];

/// The server that a database needs.
pub(super) struct Server {
    class: &'static str,
    pub(super) memory_gib: u32,
    /// How many it accepts.
    pub(super) connections: u32,
    pub(super) storage_gb: u64,
}

/// `None` when no class accepts the connections, or the size of the disk is not recorded.
pub(super) fn server(postgres: &Postgres) -> Option<Server> {
    let needed = postgres.connections.saturating_add(SPARE_CONNECTIONS);
    let (class, memory_gib, connections) = *CLASSES.iter().find(|(.., most)| *most >= needed)?;
    let storage_gb = postgres.managed.as_ref()?.disk_bytes.div_ceil(1 << 30).max(LEAST_GB);
    Some(Server { class, memory_gib, connections, storage_gb })
}

impl Lowering<'_> {
    pub(super) fn database(&mut self, database: &Database) {
        let is_created = database.hosting == Some(Hosting::Managed) && self.component.existing.is_none();
        if self.site.maintenance.is_some() && !is_created {
            let cause = "EKS has no maintenance window, and no database of RDS is created here";
            self.problem("maintenance", cause, "remove `maintenance`, or write `database.hosting: managed`");
        }
        let Some(postgres) = database.postgres.as_ref().filter(|_| database.hosting == Some(Hosting::Managed)) else {
            return;
        };
        let Some(managed) = &postgres.managed else {
            let cause = "the size of the managed database is not recorded";
            return self.problem("size", cause, "plan again with this version");
        };
        if postgres.ca_file.is_none() && rds_ca::of_region(&self.site.region).is_none() {
            let cause =
                format!("this version does not have the certificate authorities of RDS in {}", self.site.region);
            let fix = "download them (https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.SSL.html), and set `network.private_ca` to the file";
            return self.problem("ca", cause, fix);
        }
        if postgres.between.is_some() {
            let cause = "one managed database for several sites is not supported yet";
            return self.problem("between", cause, "keep one site in this environment");
        }
        let Some(Server { class, storage_gb, .. }) = server(postgres) else {
            let cause = format!("no server accepts {} connections", postgres.connections);
            return self.problem(
                "pool_size",
                cause,
                "lower `database.pool_size`, `database.max_overflow` or `scaling.max`",
            );
        };
        let name = names::server(self.site, "database");
        let version = postgres.version.to_string();
        let days = managed.backup_seconds.div_ceil(86_400).min(MOST_BACKUP_DAYS);
        let Some(place) = self.database_place(postgres) else { return };
        let server = json!({
            "name": name,
            "source": null,
            "version": version,
            "class": class,
            "storage_gb": storage_gb,
            "storage_type": "gp3",
            "key": self.data_key(),
            "database": postgres.name,
            "user": USER,
            "password": place.password,
            "port": PORT,
            "multi_az": postgres.replicas > 0,
            "subnet_group": place.subnet_group,
            "security_groups": [place.access],
            "parameter_group": place.parameter_group,
            "backup_days": days,
            "backup_window": window::backups(self.site.maintenance.as_ref()),
            "maintenance_window": self.site.maintenance.as_ref().map(window::maintenance),
            "deletion_protection": self.site.protect_data,
            "final_snapshot": self.site.protect_data,
            // RDS has them for every class of PostgreSQL, also burstable ones
            // (<https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/USER_DatabaseInsights.Engines.html>, 2026-11-28).
            "performance_insights": true,
            "minor_upgrades": true,
            "public": false,
        });
        let existing = self.component.existing.clone();
        let ownership = existing.map_or(Ownership::Ours, Ownership::External);
        let Some(instance) = self.owned_part("instance", "aws.db-instance", &server, ownership) else { return };
        if postgres.replicas > 1 && days == 0 {
            let cause = "RDS copies no server without backups";
            self.problem("replicas", cause, "set `backup.enabled: true`, or `database.replicas: 1`");
        }
        // The first replica of an environment is the standby; others answer reads.
        for replica in 1..postgres.replicas {
            let mut copy = server.clone();
            copy["name"] = json!(names::server(self.site, &format!("database-{replica}")));
            copy["source"] = output(&instance, "name");
            copy["multi_az"] = json!(false);
            copy["backup_days"] = json!(0);
            self.part(&format!("replica-{replica}"), "aws.db-instance", &copy);
        }
        if let Some(region) = &managed.replica_region {
            self.remote(region, postgres, server, &instance);
        }
    }

    /// A replica in another region, in a network of its own that only what is put into it reaches.
    fn remote(&mut self, region: &str, postgres: &Postgres, mut server: Value, source: &ResourceId) {
        let own = partition(&self.site.region);
        let is_there = regions::region(region).is_some_and(|region| region.partition() == own);
        // Elsewhere RDS wants a second signature, for the region of the source.
        let zones = zones::zones(region).filter(|_| is_there && own.name == "aws" && region != self.site.region);
        let Some(zones) = zones else {
            let cause = format!("`{region}` is not another region that {} can be copied to", self.site.region);
            let fix = match own.name {
                "aws" => regions::another("database.replica_region", &self.site.region),
                other => format!(
                    "remove `database.replica_region`: regions of the partition `{other}` have no replicas elsewhere"
                ),
            };
            return self.problem("replica_region", cause, fix);
        };
        if server["backup_days"] == 0 {
            let cause = "RDS copies no server without backups";
            return self.problem("replica_region", cause, "set `backup.enabled: true`");
        }
        let there = |mut spec: Value| {
            spec[REGION] = json!(region);
            spec
        };
        let name = names::server(self.site, "database-remote");
        let description = format!("replica of the database of {} at {}", self.site.environment, self.site.name);
        let key = there(self.key_spec("database-remote", &description, &[]));
        let vpc = there(json!({ "cidr": REMOTE, "dns_hostnames": true, "default_rules": false }));
        let (Some(key), Some(vpc)) =
            (self.part("remote-key", "aws.key", &key), self.part("remote-vpc", "aws.vpc", &vpc))
        else {
            return;
        };
        let mut subnets = Vec::new();
        for ((letter, cidr), zone) in REMOTE_SUBNETS.iter().zip(zones) {
            let subnet = json!({ "vpc": output(&vpc, "id"), "cidr": cidr, "zone": zone, "public_addresses": false });
            let subnet = self.part(&format!("remote-subnet-{letter}"), "aws.subnet", &there(subnet));
            subnets.extend(subnet.map(|subnet| output(&subnet, "id")));
        }
        let groups = json!({ "name": name, "description": description, "subnets": subnets });
        let groups = self.part("remote-subnets", "aws.db-subnet-group", &there(groups));
        let access = json!({
            "vpc": output(&vpc, "id"),
            "name": name,
            "description": description,
            "ingress": [{ "protocol": "tcp", "from": PORT, "to": PORT, "peer": REMOTE, "description": "its own network" }],
            "egress": [],
        });
        let access = self.part("remote-access", "aws.security-group", &there(access));
        let parameters = self.parameters(postgres, &description);
        let parameters = self.part("remote-parameters", "aws.db-parameter-group", &there(parameters));
        let (Some(groups), Some(access), Some(parameters)) = (groups, access, parameters) else { return };
        for (field, value) in [
            ("name", json!(name)),
            ("source", output(source, "arn")),
            ("key", output(&key, "arn")),
            ("multi_az", json!(false)),
            ("backup_days", json!(0)),
            ("subnet_group", output(&groups, "name")),
            ("security_groups", json!([output(&access, "id")])),
            ("parameter_group", output(&parameters, "name")),
        ] {
            server[field] = value;
        }
        self.part("remote", "aws.db-instance", &there(server));
    }

    /// The settings that PostgreSQL runs with.
    fn parameters(&self, postgres: &Postgres, description: &str) -> Value {
        json!({
            "name": names::of(self.site, &format!("postgres{}", postgres.version), MOST_OF_GROUP),
            "description": description,
            "family": format!("postgres{}", postgres.version),
            "parameters": { FORCE_SSL: { "value": "1", "at_restart": false } },
        })
    }

    /// What the server is created in.
    fn database_place(&mut self, postgres: &Postgres) -> Option<Place> {
        let network = ComponentName::new("network").expect("it is a label");
        let description = format!("database of {} at {}", self.site.environment, self.site.name);
        let subnets = json!({
            "name": names::of(self.site, "database", MOST_OF_GROUP),
            "description": description,
            "subnets": self.private_subnets(&network),
        });
        let subnets = self.part("subnets", "aws.db-subnet-group", &subnets)?;
        // Only what is in the private subnets connects; the server opens no connections. A rule for the group of the cluster would keep
        // the control plane as long as the database.
        let ingress: Vec<Value> = self
            .private_ranges(&network)
            .into_iter()
            .map(|range| {
                json!({
                    "protocol": "tcp", "from": PORT, "to": PORT, "peer": range, "description": "nodes and pods",
                })
            })
            .collect();
        let access = json!({
            "vpc": self.vpc(&network),
            "name": names::of(self.site, "database", MOST_OF_GROUP),
            "description": description,
            "ingress": ingress,
            "egress": [],
        });
        let access = self.part("access", "aws.security-group", &access)?;
        let parameters = self.parameters(postgres, &description);
        let parameters = self.part("parameters", "aws.db-parameter-group", &parameters)?;
        let password = ResourceId::part(&self.site.name, &postgres.secrets, PASSWORD).ok()?;
        Some(Place {
            subnet_group: output(&subnets, "name"),
            access: output(&access, "id"),
            parameter_group: output(&parameters, "name"),
            password: output(&password, "secret"),
        })
    }
}

/// See [`Lowering::database_place`].
struct Place {
    subnet_group: Value,
    access: Value,
    parameter_group: Value,
    password: Value,
}
