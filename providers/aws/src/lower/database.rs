//! The managed PostgreSQL: subnets, access, settings, the server and its replicas.

use serde_json::json;
use textnlp_provider::component::{Database, Postgres};
use textnlp_provider::settings::Hosting;
use textnlp_provider::{ComponentName, Ownership, ResourceId};

use super::{Lowering, output};
use crate::names;

/// The longest name of a server, of which the name of its last snapshot is a part.
const MOST_OF_INSTANCE: usize = 63;
const MOST_OF_GROUP: usize = 255;
const PORT: u16 = 5432;
/// The user that owns the database.
const USER: &str = "textnlp";
/// The generated password among the secrets of a site.
const PASSWORD: &str = "database-password";
/// Backups are taken at night in Europe and America, in UTC.
const BACKUP_WINDOW: &str = "03:00-04:00";
/// The longest that RDS keeps backups.
const MOST_BACKUP_DAYS: u64 = 35;
/// Connections besides those of the service: RDS itself, operators, jobs.
const SPARE_CONNECTIONS: u32 = 40;
/// The smallest disk of gp3.
const LEAST_GB: u64 = 20;

/// Classes by memory, with the connections that PostgreSQL accepts there: RDS's default is memory in bytes / 9,531,392
/// (<https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/CHAP_Limits.html>, 2026-11-23), of which RDS itself takes a part of the
/// memory before.
const CLASSES: &[(&str, u32)] = &[
    ("db.t4g.medium", 400),
    ("db.t4g.large", 800),
    ("db.r6g.large", 1_700),
    ("db.r6g.xlarge", 3_400),
    ("db.r6g.2xlarge", 5_000),
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
        if postgres.ca_file.is_none() {
            let region = &self.site.region;
            let cause = "servers verify RDS by an authority that is in no public store";
            let fix = format!(
                "`curl -o rds.pem https://truststore.pki.rds.amazonaws.com/{region}/{region}-bundle.pem`, and set `network.private_ca: rds.pem`"
            );
            return self.problem("ca", cause, fix);
        }
        if postgres.between.is_some() {
            let cause = "one managed database for several sites is not supported yet";
            return self.problem("between", cause, "keep one site in this environment");
        }
        let Some((class, _)) =
            CLASSES.iter().find(|(_, most)| *most >= postgres.connections.saturating_add(SPARE_CONNECTIONS))
        else {
            let cause = format!("no server accepts {} connections", postgres.connections);
            return self.problem(
                "pool_size",
                cause,
                "lower `database.pool_size`, `database.max_overflow` or `scaling.max`",
            );
        };
        let name = names::of(self.site, "database", MOST_OF_INSTANCE);
        let version = postgres.version.to_string();
        let storage = managed.disk_bytes.div_ceil(1 << 30).max(LEAST_GB);
        let days = managed.backup_seconds.div_ceil(86_400).min(MOST_BACKUP_DAYS);
        let Some(place) = self.database_place(postgres) else { return };
        let mut server = json!({
            "name": name,
            "source": null,
            "version": version,
            "class": class,
            "storage_gb": storage,
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
            "backup_window": BACKUP_WINDOW,
            "deletion_protection": self.site.protect_data,
            "final_snapshot": self.site.protect_data,
            "performance_insights": true,
            "minor_upgrades": true,
            "public": false,
        });
        let existing = self.component.existing.clone();
        let ownership = existing.map_or(Ownership::Ours, Ownership::External);
        let Some(instance) = self.owned_part("instance", "aws.db-instance", &server, ownership) else { return };
        // The first replica of an environment is the standby; others answer reads.
        for replica in 1..postgres.replicas {
            server["name"] = json!(names::of(self.site, &format!("database-{replica}"), MOST_OF_INSTANCE));
            server["source"] = output(&instance, "name");
            server["multi_az"] = json!(false);
            server["backup_days"] = json!(0);
            self.part(&format!("replica-{replica}"), "aws.db-instance", &server);
        }
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
        // Only pods and nodes of the cluster connect; the server opens no connections.
        let access = json!({
            "vpc": self.vpc(&network),
            "name": names::of(self.site, "database", MOST_OF_GROUP),
            "description": description,
            "ingress": [{
                "protocol": "tcp",
                "from": PORT,
                "to": PORT,
                "peer": self.output_of(&postgres.cluster, "security_group"),
                "description": "nodes and pods",
            }],
            "egress": [],
        });
        let access = self.part("access", "aws.security-group", &access)?;
        let parameters = json!({
            "name": names::of(self.site, &format!("postgres{}", postgres.version), MOST_OF_GROUP),
            "description": description,
            "family": format!("postgres{}", postgres.version),
            "parameters": { "rds.force_ssl": { "value": "1", "at_restart": false } },
        });
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
    subnet_group: serde_json::Value,
    access: serde_json::Value,
    parameter_group: serde_json::Value,
    password: serde_json::Value,
}
