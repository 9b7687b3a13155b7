//! Flexible servers of PostgreSQL and their databases: <https://learn.microsoft.com/rest/api/postgresql/>.

use async_trait::async_trait;
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_cloud::document::last;
use textnlp_cloud::{Candidate, State};
use textnlp_provider::{DataClass, Identity, Kind, Outputs, Pricing, ReplicaFields, Result, Spec, Verified, Zones};

use super::{create, delete, put, read};
use crate::api::{Api, Call};
use crate::operation::Pending;
use crate::row::{Field, Form, LOCATION, Marks, Rest, RestKind, Table, Update, canonical, state};
use crate::table::{MINUTE, Row, kind};
use crate::tables::machines::{CHEAPEST_TIER, server_tier};

/// A newer version may need `sourceServerResourceId` in a promotion (Azure/azure-cli#33776).
pub(crate) const VERSION: &str = "2024-08-01";
/// The port of PostgreSQL.
const PORT: u16 = 5432;
/// The tag of a replica with the name of its database.
pub(crate) const DATABASE: &str = "textnlp-database";
const SERVER: &str = "Microsoft.DBforPostgreSQL/flexibleServers";

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            data: DataClass::Precious,
            // A replica in another region gets a copy of all data over the network, which takes up to several hours
            // (<https://learn.microsoft.com/azure/postgresql/read-replica/concepts-read-replicas#create-a-replica>).
            deadline: MINUTE.saturating_mul(6 * 60),
            typical: Some(MINUTE.saturating_mul(8)),
            pricing: Pricing::BySpec,
            permissions: &[
                read("Microsoft.DBforPostgreSQL/checkNameAvailability/action"),
                read("Microsoft.DBforPostgreSQL/flexibleServers/read"),
                put("Microsoft.DBforPostgreSQL/flexibleServers/write"),
                delete("Microsoft.DBforPostgreSQL/flexibleServers/delete"),
                put("Microsoft.DBforPostgreSQL/flexibleServers/restart/action{standby=SameZone}"),
                put("Microsoft.DBforPostgreSQL/flexibleServers/restart/action{standby=ZoneRedundant}"),
                read("Microsoft.DBforPostgreSQL/locations/azureAsyncOperation/read"),
                read("Microsoft.DBforPostgreSQL/locations/operationResults/read"),
                create("Microsoft.Network/virtualNetworks/subnets/join/action"),
                create("Microsoft.Network/privateDnsZones/join/action"),
            ],
            terraform: &[("azurerm_postgresql_flexible_server", "id")],
            replica: Some(ReplicaFields {
                region: "location",
                source: "source",
                output: "id",
                // A replica has no backups.
                inherited: &["backup_days", "maintenance"],
                protection: None,
                verified: Verified::Public,
            }),
            ..kind("azure.database-server", "a PostgreSQL server", Identity::Named)
        },
        service: "Microsoft.DBforPostgreSQL",
        resource: &Rest::<Server>::kind(),
        refused: &[
            ("version", "upgrade the server with `az postgres flexible-server upgrade`"),
            ("subnet", "a server stays in its subnet: restore it into another environment"),
            ("zone", "a server keeps its DNS zone: restore it into another environment"),
        ],
    },
    Row {
        kind: Kind {
            data: DataClass::Precious,
            permissions: &[
                read("Microsoft.DBforPostgreSQL/flexibleServers/databases/read"),
                create("Microsoft.DBforPostgreSQL/flexibleServers/databases/write"),
            ],
            terraform: &[("azurerm_postgresql_flexible_server_database", "id")],
            ..kind("azure.database", "a database of a PostgreSQL server", Identity::Part)
        },
        service: "Microsoft.DBforPostgreSQL",
        resource: &Rest::<Database>::kind(),
        refused: &[],
    },
];

const STANDBY: &str = "/properties/highAvailability/mode";
const NO_STANDBY: &str = "Disabled";

/// A size as the service reads it.
fn size(name: &Value) -> Value {
    json!({ "name": name, "tier": server_tier(name.as_str().unwrap_or_default()) })
}

/// A window of one hour.
fn window(maintenance: &Value) -> Value {
    match maintenance {
        Value::Null => Value::Null,
        one => json!({
            "customWindow": "Enabled", "dayOfWeek": one["day"], "startHour": one["hour"], "startMinute": one["minute"],
        }),
    }
}

/// The window of a server, unless Azure chooses it.
fn maintenance(document: &Value) -> Value {
    let window = &document["properties"]["maintenanceWindow"];
    match window["customWindow"].as_str() {
        Some("Enabled") => {
            json!({ "day": window["dayOfWeek"], "hour": window["startHour"], "minute": window["startMinute"] })
        }
        _ => Value::Null,
    }
}

/// The server that a replica follows. What a promoted one shows of it says nothing.
fn source(document: &Value) -> Value {
    let properties = &document["properties"];
    let is_replica = matches!(properties["replicationRole"].as_str(), Some("AsyncReplica" | "GeoAsyncReplica"));
    let source = properties["sourceServerResourceId"].as_str().filter(|_| is_replica);
    source.map_or(Value::Null, |id| canonical(SERVER, id).into())
}

/// A server in a subnet of its own, or a replica of one, whose version, administrator and backups are null in its spec: they are those of
/// its source. Outputs: `id`, `name`, `host`, `port`, `user`, and of a replica `database`.
struct Server;

#[async_trait]
impl RestKind for Server {
    const TABLE: &'static Table = &Table {
        arm: SERVER,
        version: VERSION,
        path: "{group}/providers/Microsoft.DBforPostgreSQL/flexibleServers/{name}",
        constants: &[
            ("/properties/createMode", "\"Create\""),
            ("/properties/backup/geoRedundantBackup", "\"Disabled\""),
            ("/properties/authConfig", "{\"passwordAuth\":\"Enabled\",\"activeDirectoryAuth\":\"Disabled\"}"),
        ],
        fields: &[
            LOCATION,
            Field::plain("version", "/properties/version"),
            Field::code("sku", "/sku", size, |one| one["sku"]["name"].clone()),
            Field::plain("login", "/properties/administratorLogin"),
            Field { form: Form::Secret, ..Field::plain("password", "/properties/administratorLoginPassword") }
                .changed(),
            Field::plain("disk_gb", "/properties/storage/storageSizeGB").changed(),
            Field::plain("backup_days", "/properties/backup/backupRetentionDays").changed(),
            Field::code("maintenance", "/properties/maintenanceWindow", window, maintenance).changed(),
            Field::plain("standby", STANDBY).changed(),
            Field::plain("subnet", "/properties/network/delegatedSubnetResourceId"),
            Field::plain("zone", "/properties/network/privateDnsZoneArmResourceId"),
            Field::code("source", "/properties/sourceServerResourceId", Value::clone, source),
            Field::plain("database", "/tags/textnlp-database"),
        ],
        // A replica is promoted first: it has no backups and no standby before.
        in_place: &["source", "database", "disk_gb", "backup_days", "maintenance", "sku", "standby", "password"],
        update: Update::Patch,
        state: "/properties/state",
        outputs: &[("host", "/properties/fullyQualifiedDomainName")],
        settings: &[("disk_gb", "/body/properties/storage/storageSizeGB")],
        ..Table::USUAL
    };

    /// A creation does not set the window, which follows as a change
    /// (<https://github.com/hashicorp/terraform-provider-azurerm/blob/main/internal/services/postgres/postgresql_flexible_server_resource.go>).
    async fn prepare(_api: &Api, _spec: &Spec, document: &mut Value, _chosen: &Candidate) -> Result<()> {
        if let Some(properties) = document["properties"].as_object_mut() {
            properties.shift_remove("maintenanceWindow");
        }
        Ok(())
    }

    fn state(document: &Value) -> State {
        match document["properties"]["state"].as_str() {
            Some(said @ ("Stopped" | "Stopping" | "Disabled")) => State::Degraded(format!("its state is {said}")),
            _ => state(Self::TABLE, document),
        }
    }

    /// A standby takes over only while it is `Healthy`.
    fn zones(document: &Value) -> Option<Zones> {
        let standby = &document["properties"]["highAvailability"];
        let is_ready = standby["state"] == "Healthy";
        let has_one = standby["mode"].is_string() && standby["mode"] != NO_STANDBY;
        let primary = document["properties"]["availabilityZone"].as_str().filter(|_| has_one)?;
        let standby = standby["standbyAvailabilityZone"].as_str().unwrap_or(primary);
        Some(Zones { primary: primary.to_owned(), standby: standby.to_owned(), is_ready })
    }

    /// As if the primary had failed: <https://learn.microsoft.com/rest/api/postgresql/servers/restart>.
    async fn fail_over(api: &Api, id: &str) -> Result<Option<Pending>> {
        let how = json!({ "restartWithFailover": true, "failoverMode": "ForcedFailover" });
        let call = Call::new(Method::POST, format!("{id}/restart"), VERSION).body(how);
        Ok(api.send(call.saying("fail over", last(id))).await?.pending)
    }

    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        match field {
            // A disk only grows.
            "disk_gb" => seen.as_u64() >= wanted.as_u64(),
            // An answer may leave the standby out that a server does not have.
            "standby" => wanted == NO_STANDBY && seen.is_null(),
            // Those of its source.
            "version" | "login" | "backup_days" => wanted.is_null(),
            // A window that was set stays.
            "maintenance" => wanted.is_null(),
            _ => false,
        }
    }

    fn complete(spec: &Spec, document: &mut Value) {
        if spec.get("source").is_none_or(Value::is_null) {
            return;
        }
        document["properties"]["createMode"] = json!("Replica");
        if let Some(properties) = document["properties"].as_object_mut() {
            // A replica cannot have them.
            properties.retain(|member, _| !["authConfig", "backup", "highAvailability"].contains(&member.as_str()));
        }
    }

    fn outputs(_id: &str, document: &Value, outputs: &mut Outputs) {
        outputs.insert("port".to_owned(), json!(PORT));
        for (name, member) in [("user", "/properties/administratorLogin"), ("database", "/tags/textnlp-database")] {
            if let Some(value) = document.pointer(member) {
                outputs.insert(name.to_owned(), value.clone());
            }
        }
    }

    /// Promotes a replica, or changes its size or the tag with its database. In the cheapest tier no server has a standby, which therefore
    /// ends first (<https://learn.microsoft.com/azure/reliability/reliability-postgresql-flexible-server>).
    async fn put(api: &Api, id: &str, wanted: &Value, field: &str) -> Result<Option<Pending>> {
        if field == "source" {
            return promote(api, id, wanted).await;
        }
        if field == "database" {
            let mut tags = api.send(Call::get(id, VERSION)).await?.body["tags"].take();
            tags[DATABASE] = wanted.clone();
            // A change of tags replaces them all.
            return Rest::<Self>::replace(api, id, "/tags", tags).await;
        }
        let size = size(wanted);
        let has_standby = |seen: &Value| seen.pointer(STANDBY).is_some_and(|mode| mode != NO_STANDBY);
        if size["tier"] == CHEAPEST_TIER && Self::fetch(api, id).await?.as_ref().is_some_and(has_standby) {
            return Rest::<Self>::replace(api, id, STANDBY, json!(NO_STANDBY)).await;
        }
        Rest::<Self>::replace(api, id, "/sku", size).await
    }
}

/// Makes a replica a server of its own, without what its source has not sent: only that is possible while the region of the source is
/// lost (<https://learn.microsoft.com/azure/postgresql/read-replica/concepts-read-replicas-promote>).
async fn promote(api: &Api, id: &str, wanted: &Value) -> Result<Option<Pending>> {
    // `diff` refuses it. After a create the role may show late: the driver reads again, and ends after some tries.
    if !wanted.is_null() {
        return Ok(None);
    }
    let how = json!({ "role": "None", "promoteMode": "standalone", "promoteOption": "forced" });
    Rest::<Server>::replace(api, id, "/properties/replica", how).await
}

/// A database. It ends with its server. Outputs: `id`, `name`, `url`: its address without the password.
struct Database;

#[async_trait]
impl RestKind for Database {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.DBforPostgreSQL/flexibleServers/databases",
        version: VERSION,
        path: "{server}/databases/{name}",
        constants: &[("/properties/collation", "\"en_US.utf8\"")],
        fields: &[Field::plain("charset", "/properties/charset")],
        marks: Marks::Part,
        retained: true,
        ..Table::USUAL
    };

    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        let Some(mut document) = api.find(Call::get(id, VERSION)).await? else { return Ok(None) };
        let server = id.rsplitn(3, '/').nth(2).unwrap_or(id);
        let Some(server) = api.find(Call::get(server, VERSION)).await? else { return Ok(None) };
        document["$host"] = server["properties"]["fullyQualifiedDomainName"].clone();
        document["$login"] = server["properties"]["administratorLogin"].clone();
        Ok(Some(document))
    }

    fn outputs(id: &str, document: &Value, outputs: &mut Outputs) {
        if let (Some(host), Some(login)) = (document["$host"].as_str(), document["$login"].as_str()) {
            let url = format!("postgresql://{login}@{host}:{PORT}/{}?sslmode=require", last(id));
            outputs.insert("url".to_owned(), json!(url));
        }
    }

    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_ascii_lowercase();
        field == "charset" && text(wanted) == text(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn database_has_its_address() {
        let mut outputs = Outputs::new();
        let document = json!({ "$host": "db.private.postgres.database.azure.com", "$login": "textnlp" });
        Database::outputs("/x/flexibleServers/s/databases/texts", &document, &mut outputs);
        let url = "postgresql://textnlp@db.private.postgres.database.azure.com:5432/texts?sslmode=require";
        assert_eq!(outputs["url"], json!(url));
    }

    #[test]
    fn states_are_those_of_the_server() {
        let of = |word: &str| Server::state(&json!({ "properties": { "state": word } }));
        assert_eq!((of("Ready"), of("Dropping")), (State::Ready, State::Deleting));
        assert_eq!(of("Restarting"), State::Pending("restarting".to_owned()));
        assert!(matches!(of("Stopped"), State::Degraded(_)));
        assert!(Server::fits("disk_gb", &json!(32), &json!(64)) && !Server::fits("disk_gb", &json!(64), &json!(32)));
    }

    #[test]
    fn a_replica_follows_its_source_until_it_is_promoted() {
        let of = |role: &str| {
            let id = "/SUBSCRIPTIONS/s/resourcegroups/g/providers/microsoft.dbforpostgresql/flexibleservers/DB";
            source(&json!({ "properties": { "replicationRole": role, "sourceServerResourceId": id } }))
        };
        let id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.DBforPostgreSQL/flexibleServers/db";
        assert_eq!((of("GeoAsyncReplica"), of("Primary")), (json!(id), Value::Null));
        let spec = Spec::of(&json!({ "name": "db", "source": id, "standby": "Disabled", "backup_days": null }));
        let properties = json!({ "createMode": "Replica", "sourceServerResourceId": id });
        assert_eq!(Rest::<Server>::body(&spec, &textnlp_cloud::tags::Tags::new())["properties"], properties);
    }
}
