//! PostgreSQL of Cloud SQL: servers, databases and users (<https://cloud.google.com/sql/docs/postgres/admin-api/rest/v1>).
//!
//! A server has a name of its own for each operation, because Google keeps the name of a deleted one for a week
//! (hashicorp/terraform-provider-google#6066). Databases
//! and users end with their server: a user that owns objects cannot be deleted, and a database must not go before its protected server
//! (terraform-google-modules/terraform-google-sql-db#434, terraform-google-modules/terraform-google-sql-db#323).

use async_trait::async_trait;
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_cloud::document::{get, last};
use textnlp_cloud::{ObservedObject, PROMOTED};
use textnlp_provider::{
    DataClass, Declare, Identity, Kind, Outputs, Pricing, ReplicaFields, Result, Spec, Verified, Zones,
};

use super::{create, delete, put, read};
use crate::api::{Api, Call};
use crate::declare::{NAME, Terraform, in_instance, segment};
use crate::labels;
use crate::operation::Family;
use crate::row::{Field, Form, Labelling, Marks, Rest, RestKind, States, Table, Update, Word, invalid, part_of};
use crate::service::Service;
use crate::table::{MINUTE, Row, kind};

/// The port of PostgreSQL.
const PORT: u16 = 5432;
/// Days for which logs of transactions can be kept with the edition ENTERPRISE (langfuse/langfuse-terraform-gcp#34).
const MOST_LOG_DAYS: u64 = 7;
/// The label of a server with the name of its database.
pub(crate) const DATABASE: &str = "textnlp-database";
/// The user that owns the database, and as which the service connects.
pub(crate) const USER: &str = "textnlp";
/// Backups are taken at night in Europe and America, in UTC.
const BACKUP_TIME: &str = "03:00";

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            data: DataClass::Precious,
            // A copy of a large database in another region takes hours.
            deadline: MINUTE.saturating_mul(360),
            typical: Some(MINUTE.saturating_mul(12)),
            pricing: Pricing::BySpec,
            permissions: &[
                create("cloudsql.instances.create"),
                delete("cloudsql.instances.delete"),
                put("cloudsql.instances.failover{availability=REGIONAL}"),
                read("cloudsql.instances.get"),
                read("cloudsql.instances.list"),
                put("cloudsql.instances.promoteReplica"),
                put("cloudsql.instances.update"),
                delete("cloudsql.instances.update"),
                create("compute.networks.get"),
            ],
            terraform: &[("google_sql_database_instance", "id")],
            replica: Some(ReplicaFields {
                region: "location",
                source: "source",
                output: "name",
                // While it is a replica it has no backups (GoogleCloudPlatform/magic-modules#6836).
                inherited: &["backup_days", "maintenance"],
                protection: Some("deletion_protection"),
                verified: Verified::ByServer,
            }),
            ..kind("gcp.sql-instance", "a PostgreSQL server", Identity::Token)
        },
        service: "sqladmin",
        resource: &Rest::<Instance>::kind(),
        refused: &[
            ("version", "upgrade the server with `gcloud sql instances patch --database-version`"),
            ("key", "a server keeps its key: let the key rotate instead"),
            ("network", "a server stays in its network: deploy another environment and restore a backup there"),
            ("location", "a server stays in its region: deploy another environment and restore a backup there"),
            ("database", "create another database with SQL"),
            ("disk_type", "a server keeps its type of disk: deploy another environment and restore a backup there"),
            ("edition", "change the edition with `gcloud sql instances patch --edition`"),
        ],
    },
    Row {
        kind: Kind {
            data: DataClass::Precious,
            // It waits for the operations of its server.
            deadline: MINUTE.saturating_mul(60),
            permissions: &[
                create("cloudsql.databases.create"),
                read("cloudsql.databases.get"),
                read("cloudsql.instances.get"),
            ],
            ..kind("gcp.sql-database", "a database of a PostgreSQL server", Identity::Part)
        },
        service: "sqladmin",
        resource: &Rest::<Database>::kind(),
        refused: &[("name", "create another database with SQL")],
    },
    Row {
        kind: Kind {
            deadline: MINUTE.saturating_mul(60),
            permissions: &[
                create("cloudsql.users.create"),
                put("cloudsql.users.update"),
                read("cloudsql.users.list"),
                read("cloudsql.instances.get"),
            ],
            ..kind("gcp.sql-user", "a user of a PostgreSQL server", Identity::Part)
        },
        service: "sqladmin",
        resource: &Rest::<User>::kind(),
        refused: &[("name", "create another user with SQL")],
    },
];

/// A server, or a read replica of one. Outputs: `id`, `name`, `host`, `port`, `database`, `user`, `version`, `ca_pem`.
struct Instance;

#[async_trait]
impl RestKind for Instance {
    const TABLE: &'static Table = &Table {
        service: Service::Sql,
        path: "projects/{project}/instances/{name}",
        collection: "projects/{project}/instances",
        suffixed: true,
        constants: &[("/settings/storageAutoResize", "true"), ("/settings/activationPolicy", "\"ALWAYS\"")],
        fields: &[
            Field::plain("location", "/region"),
            Field::plain("version", "/databaseVersion"),
            Field::code("source", "/masterInstanceName", source, |one| source(&one["masterInstanceName"])),
            Field::plain("tier", "/settings/tier").patched(),
            // From PostgreSQL 16 on the default is the more expensive edition, with other tiers (GoogleCloudPlatform/magic-modules#18014).
            Field::plain("edition", "/settings/edition"),
            Field::plain("availability", "/settings/availabilityType").patched(),
            Field { form: Form::Integer, ..Field::plain("disk_gb", "/settings/dataDiskSizeGb") }.patched(),
            Field::plain("disk_type", "/settings/dataDiskType"),
            Field::link("network", "/settings/ipConfiguration/privateNetwork"),
            Field::plain("range", "/settings/ipConfiguration/allocatedIpRange"),
            Field::flag("public", "/settings/ipConfiguration/ipv4Enabled").patched(),
            Field::plain("tls", "/settings/ipConfiguration/sslMode").patched(),
            Field::code("backup_days", "/settings/backupConfiguration", backups, backup_days).patched(),
            Field::code("maintenance", "/settings/maintenanceWindow", window, maintenance).patched(),
            Field::flag("deletion_protection", "/settings/deletionProtectionEnabled").patched(),
            Field::plain("key", "/diskEncryptionConfiguration/kmsKeyName"),
            Field::plain("database", "/settings/userLabels/textnlp-database"),
        ],
        // A replica is promoted first: it has no backups before.
        in_place: &[
            "source",
            "tier",
            "availability",
            "disk_gb",
            "public",
            "tls",
            "backup_days",
            "maintenance",
            "deletion_protection",
        ],
        update: Update::Merge(&["/settings/settingsVersion"]),
        marks: Marks::Labels("/settings/userLabels", Labelling::Patch),
        family: Family::Sql,
        states: Some(States {
            member: "/state",
            words: &[
                ("RUNNABLE", Word::Ready),
                ("ONLINE_MAINTENANCE", Word::Ready),
                ("PENDING_CREATE", Word::Pending),
                ("MAINTENANCE", Word::Pending),
                ("REPAIRING", Word::Pending),
                ("SUSPENDED", Word::Degraded),
                ("FAILED", Word::Failed),
                ("PENDING_DELETE", Word::Deleting),
            ],
            reason: "/suspensionReason/0",
        }),
        outputs: &[
            ("version", "/databaseVersion"),
            ("ca_pem", "/serverCaCert/cert"),
            ("database", "/settings/userLabels/textnlp-database"),
        ],
        terraform: Terraform {
            kind: "google_sql_database_instance",
            // Terraform's own protection is that of the server.
            named: &[("project", "/project"), ("name", "/name"), ("deletion_protection", "/deletion_protection")],
            moved: &[
                ("/settings/dataDiskSizeGb", "/settings/disk_size"),
                ("/settings/dataDiskType", "/settings/disk_type"),
                ("/settings/storageAutoResize", "/settings/disk_autoresize"),
                ("/diskEncryptionConfiguration/kmsKeyName", "/encryption_key_name"),
            ],
            // A disk grows automatically.
            ignored: &["settings[0].disk_size"],
            outputs: &[NAME],
            settings: &[("tier", "/settings/tier")],
            ..Terraform::USUAL
        },
        ..Table::USUAL
    };

    fn outputs(_id: &str, document: &Value, outputs: &mut Outputs) {
        if let Some(host) = host(document) {
            outputs.insert("host".to_owned(), json!(host));
        }
        outputs.insert("port".to_owned(), json!(PORT));
        outputs.insert("user".to_owned(), json!(USER));
    }

    /// Promotes a replica: <https://cloud.google.com/sql/docs/postgres/admin-api/rest/v1/instances/promoteReplica>.
    async fn put(api: &Api, id: &str, wanted: &Value, field: &str) -> Result<Option<String>> {
        if field != "source" || !wanted.is_null() {
            let error = invalid("change", id, "a server cannot become a replica, or a replica of another server");
            return Err(error.hint(PROMOTED));
        }
        let call = Call::new(Service::Sql, Method::POST, format!("{id}/promoteReplica"));
        let answer = api.send(call.saying("promote", last(id))).await?;
        Ok(Family::Sql.started(api, id, &answer))
    }

    fn zones(document: &Value) -> Option<Zones> {
        let zone = |member: &str| document[member].as_str().map(str::to_owned);
        Some(Zones { primary: zone("gceZone")?, standby: zone("secondaryGceZone")?, is_ready: true })
    }

    /// As if the zone of the primary had failed: <https://cloud.google.com/sql/docs/postgres/configure-ha>.
    async fn fail_over(api: &Api, id: &str) -> Result<Option<String>> {
        let read = api.send(Call::get(Service::Sql, id)).await?;
        let context = json!({ "settingsVersion": read["settings"]["settingsVersion"] });
        let call = Call::new(Service::Sql, Method::POST, format!("{id}/failover"));
        let call = call.body(json!({ "failoverContext": context })).saying("fail over", last(id));
        let answer = api.send(call).await?;
        Ok(Family::Sql.started(api, id, &answer))
    }

    /// A disk grows automatically, and never shrinks (hashicorp/terraform-provider-google#4579).
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        match field {
            "disk_gb" => seen.as_u64() >= wanted.as_u64(),
            // The range is chosen once, by Google in an existing network.
            "range" => seen.is_null() || wanted.is_null(),
            // A window that was set stays.
            "maintenance" => wanted.is_null(),
            _ => false,
        }
    }

    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<String>> {
        let id = seen.id.as_str();
        let call = match seen.spec.get("deletion_protection").is_some_and(|on| *on == true) {
            true => {
                let read = api.send(Call::get(Service::Sql, id)).await?;
                let version = read["settings"]["settingsVersion"].clone();
                let settings = json!({ "deletionProtectionEnabled": false, "settingsVersion": version });
                let call = Call::new(Service::Sql, Method::PATCH, id).body(json!({ "settings": settings }));
                call.saying("switch off the deletion protection of", last(id))
            }
            false => Call::new(Service::Sql, Method::DELETE, id),
        };
        let answer = api.send(call).await?;
        Ok(Family::Sql.started(api, id, &answer))
    }
}

/// The primary address in the network.
fn host(document: &Value) -> Option<&str> {
    let addresses = document["ipAddresses"].as_array()?;
    addresses.iter().find(|one| one["type"] == "PRIVATE")?["ipAddress"].as_str()
}

/// The name of a primary server, which answers write with the project before it.
fn source(name: &Value) -> Value {
    let name = name.as_str().map(|name| name.rsplit(':').next().unwrap_or(name)).filter(|name| !name.is_empty());
    name.map_or(Value::Null, Into::into)
}

fn backups(days: &Value) -> Value {
    match days.as_u64() {
        Some(days) if days > 0 => json!({
            "enabled": true,
            "startTime": BACKUP_TIME,
            "pointInTimeRecoveryEnabled": true,
            "transactionLogRetentionDays": days.min(MOST_LOG_DAYS),
            "backupRetentionSettings": { "retentionUnit": "COUNT", "retainedBackups": days },
        }),
        _ => json!({ "enabled": false, "pointInTimeRecoveryEnabled": false }),
    }
}

fn backup_days(document: &Value) -> Value {
    let Some(config) = get(document, "/settings/backupConfiguration").filter(|config| config["enabled"] == true) else {
        return json!(0);
    };
    let kept = config["backupRetentionSettings"]["retainedBackups"].as_u64();
    json!(kept.unwrap_or_default())
}

/// A window of one hour, in which updates of the usual track are installed.
fn window(maintenance: &Value) -> Value {
    match maintenance {
        Value::Null => Value::Null,
        one => json!({ "day": one["day"], "hour": one["hour"], "updateTrack": "stable" }),
    }
}

/// An answer has day 0 where no window is set.
fn maintenance(document: &Value) -> Value {
    let set = get(document, "/settings/maintenanceWindow").filter(|one| one["day"].as_u64().is_some_and(|day| day > 0));
    set.map_or(Value::Null, |one| json!({ "day": one["day"], "hour": one["hour"].as_u64().unwrap_or_default() }))
}

/// The document of a part with the tags and the address of its server.
async fn of_instance(api: &Api, id: &str, mut document: Value) -> Result<Option<Value>> {
    let Some(instance) = api.find_enabled(Call::get(Service::Sql, instance_of(id))).await? else { return Ok(None) };
    let labels = &instance["settings"]["userLabels"];
    document["$host"] = json!(host(&instance));
    document["$database"] = labels[DATABASE].clone();
    Ok(Some(part_of(&labels::decode(labels), document)))
}

fn instance_of(id: &str) -> &str {
    id.rsplitn(3, '/').nth(2).unwrap_or(id)
}

/// A database. Outputs: `id`, `name`.
struct Database;

#[async_trait]
impl RestKind for Database {
    const TABLE: &'static Table = &Table {
        service: Service::Sql,
        path: "{instance}/databases/{name}",
        collection: "{instance}/databases",
        fields: &[Field::plain("charset", "/charset")],
        family: Family::Sql,
        retained: true,
        created: "",
        terraform: Terraform { kind: "google_sql_database", named: &[("name", "/name")], ..Terraform::USUAL },
        ..Table::USUAL
    };

    fn declared(_api: Option<&Api>, request: &Declare<'_>, document: &mut Value) -> Result<(), String> {
        in_instance(request.object.cloud_id.as_str(), document);
        Ok(())
    }

    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        match api.find_enabled(Call::get(Service::Sql, id)).await? {
            Some(document) => of_instance(api, id, document).await,
            None => Ok(None),
        }
    }
}

/// A user. Outputs: `id`, `name`, `url`: the address of the database without the password.
struct User;

#[async_trait]
impl RestKind for User {
    const TABLE: &'static Table = &Table {
        service: Service::Sql,
        path: "{instance}/users/{name}",
        collection: "{instance}/users",
        fields: &[Field { form: Form::Secret, ..Field::plain("password", "/password") }],
        in_place: &["password"],
        family: Family::Sql,
        retained: true,
        created: "",
        terraform: Terraform {
            kind: "google_sql_user",
            named: &[("name", "/name")],
            // It is sent, and not stored.
            moved: &[("/password", "/password_wo")],
            constants: &[("/password_wo_version", "1")],
            import: |id, _| {
                let parts = ["projects", "instances", "users"].map(|after| segment(id, after));
                parts.join("/")
            },
            ..Terraform::USUAL
        },
        ..Table::USUAL
    };

    fn declared(_api: Option<&Api>, request: &Declare<'_>, document: &mut Value) -> Result<(), String> {
        in_instance(request.object.cloud_id.as_str(), document);
        Ok(())
    }

    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        let instance = instance_of(id);
        let users = api.list(Service::Sql, &format!("{instance}/users"), "items", &[]).await;
        let users = match users {
            Err(error) if error.kind == textnlp_provider::ErrorKind::NotFound => return Ok(None),
            users => users?,
        };
        match users.into_iter().find(|user| user["name"] == last(id)) {
            Some(user) => of_instance(api, id, user).await,
            None => Ok(None),
        }
    }

    async fn put(api: &Api, id: &str, wanted: &Value, _field: &str) -> Result<Option<String>> {
        let password = textnlp_cloud::secret(api.session.secrets.as_ref(), wanted).await?;
        let (users, name) = (format!("{}/users", instance_of(id)), last(id));
        let call = Call::new(Service::Sql, Method::PUT, users).query("name", name).saying("change", name);
        let answer = api.send(call.body(json!({ "name": name, "password": password }))).await?;
        Ok(Family::Sql.started(api, id, &answer))
    }

    fn outputs(id: &str, document: &Value, outputs: &mut Outputs) {
        let (user, host, database) = (last(id), document["$host"].as_str(), document["$database"].as_str());
        if let (Some(host), Some(database)) = (host, database) {
            // The server's certificate is of an authority of its own, which is known only once the server exists.
            let url = format!("postgresql://{user}@{host}:{PORT}/{database}?sslmode=require");
            outputs.insert("url".to_owned(), json!(url));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_as_they_are_written() {
        for days in [0, 7, 30] {
            let document = json!({ "settings": { "backupConfiguration": backups(&json!(days)) } });
            assert_eq!(backup_days(&document), json!(days));
        }
        assert_eq!(source(&json!("my-project:server-0a1b2c3d")), json!("server-0a1b2c3d"));
        assert_eq!(instance_of("projects/p/instances/i/users/u"), "projects/p/instances/i");
        assert!(
            Instance::fits("disk_gb", &json!(20), &json!(35)) && !Instance::fits("disk_gb", &json!(40), &json!(35))
        );
    }

    #[test]
    fn user_has_the_address_of_its_database() {
        let mut outputs = Outputs::new();
        let document = json!({ "$host": "10.0.0.3", "$database": "textnlp" });
        User::outputs("projects/p/instances/i/users/textnlp", &document, &mut outputs);
        assert_eq!(outputs["url"], json!("postgresql://textnlp@10.0.0.3:5432/textnlp?sslmode=require"));
        let addresses = json!({ "ipAddresses": [{ "type": "OUTGOING", "ipAddress": "1" }, { "type": "PRIVATE", "ipAddress": "2" }] });
        assert_eq!(host(&addresses), Some("2"));
    }
}
