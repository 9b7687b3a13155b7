//! Flexible servers of PostgreSQL and their databases.

use std::time::Duration;

use serde_json::{Value, json};

use super::cloud::{Closed, Cloud, put, put_missing, text};
use super::kinds::{self, Answer, Call, KIND, Kind, Special, Style, parent};
use super::network::{is_peered, network_of};
use super::problem::{Problem, bad, conflict};
use super::resources::get;
use super::storage::{availability, is_taken};
use crate::clock::later;
use crate::postgres::Change;
use crate::{Behaviour, Source};

const SERVER: &str = "Microsoft.DBforPostgreSQL/flexibleServers";
/// What the names of private zones of servers end with.
const SUFFIX: &str = "postgres.database.azure.com";
const VERSIONS: &[&str] = &["11", "12", "13", "14", "15", "16", "17"];
/// GiB of storage: <https://learn.microsoft.com/azure/postgresql/flexible-server/concepts-storage>.
const STORAGE: &[i64] = &[32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_767];
/// How long a server stays stopped.
const STOPPED: Duration = Duration::from_secs(7 * 86_400);
const CHECK: &str = "postgresqlflexibleservers.models NameAvailability";

pub(crate) const KINDS: &[Kind] = &[
    Kind {
        kind: SERVER,
        version: "2024-08-01",
        models: [
            "postgresqlflexibleservers.models Server",
            "postgresqlflexibleservers.models ServerForUpdate",
            "postgresqlflexibleservers.models Server",
            "postgresqlflexibleservers.models ServerListResult",
        ],
        styles: [Style::Both, Style::Both, Style::Both],
        seconds: [300, 60, 60],
        accepted: 202,
        has_state: false,
        // The service takes any name; see `is_name`.
        is_name: |_| true,
        references: &[
            "/properties/network/delegatedSubnetResourceId",
            "/properties/network/privateDnsZoneArmResourceId",
        ],
        refuse_delete: refuse_replicated,
        kept: &[
            "/properties/administratorLogin",
            "/properties/availabilityZone",
            "/properties/backup",
            "/properties/fullyQualifiedDomainName",
            "/properties/highAvailability",
            "/properties/minorVersion",
            "/properties/network",
            "/properties/replicationRole",
            "/properties/sourceServerResourceId",
            "/properties/version",
        ],
        defaults: &[
            ("/properties/authConfig", r#"{"activeDirectoryAuth":"Disabled","passwordAuth":"Enabled"}"#),
            ("/properties/backup/backupRetentionDays", "7"),
            ("/properties/backup/geoRedundantBackup", "\"Disabled\""),
            ("/properties/dataEncryption", r#"{"type":"SystemManaged"}"#),
            ("/properties/highAvailability/mode", "\"Disabled\""),
            ("/properties/highAvailability/state", "\"NotEnabled\""),
            (
                "/properties/maintenanceWindow",
                r#"{"customWindow":"Disabled","dayOfWeek":0,"startHour":0,"startMinute":0}"#,
            ),
            ("/properties/storage/autoGrow", "\"Disabled\""),
            ("/properties/storage/storageSizeGB", "32"),
            ("/properties/network/publicNetworkAccess", "\"Enabled\""),
        ],
        fixed: &[
            "/properties/administratorLogin",
            "/properties/availabilityZone",
            "/properties/backup/geoRedundantBackup",
            "/properties/network/delegatedSubnetResourceId",
        ],
        is_rolled_back: true,
        accept: accept_server,
        finish: finish_server,
        end: end_server,
        ..KIND
    },
    Kind {
        kind: "Microsoft.DBforPostgreSQL/flexibleServers/databases",
        version: "2024-08-01",
        models: [
            "postgresqlflexibleservers.models Database",
            "",
            "postgresqlflexibleservers.models Database",
            "postgresqlflexibleservers.models DatabaseListResult",
        ],
        styles: [Style::Both, Style::Both, Style::Both],
        seconds: [15, 15, 15],
        accepted: 202,
        has_state: false,
        tags: 0,
        is_name: |name| kinds::is_name(name, 1..=63, "-_"),
        defaults: &[("/properties/charset", "\"UTF8\""), ("/properties/collation", "\"en_US.utf8\"")],
        fixed: &["/properties/charset", "/properties/collation"],
        holds: parent,
        accept: accept_database,
        finish: |cloud, key, _| {
            ready(cloud, &parent(key));
            if let Some(stand) = &cloud.stand {
                (stand.apply)(Change::Database { name: key.rsplit('/').next().unwrap_or_default() });
            }
            Ok(())
        },
        ..KIND
    },
];

pub(crate) const SPECIALS: &[Special] = &[
    check("Microsoft.DBforPostgreSQL/checkNameAvailability"),
    check("Microsoft.DBforPostgreSQL/locations/checkNameAvailability"),
    Special {
        method: "POST",
        path: "Microsoft.DBforPostgreSQL/flexibleServers/restart",
        version: "2024-08-01",
        request: "postgresqlflexibleservers.models RestartParameter",
        answer: "",
        handler: restart,
    },
    power("Microsoft.DBforPostgreSQL/flexibleServers/stop", |cloud, call| {
        set_power(cloud, call, ["Ready", "Stopping", "Stopped"])
    }),
    power("Microsoft.DBforPostgreSQL/flexibleServers/start", |cloud, call| {
        set_power(cloud, call, ["Stopped", "Starting", "Ready"])
    }),
    get(
        "Microsoft.DBforPostgreSQL/locations/capabilities[]",
        "2024-08-01",
        "postgresqlflexibleservers.models CapabilitiesListResult",
        |cloud, call| {
            let region = call.name().to_lowercase();
            let restricted = if cloud.conduct.closed.is_some() { "Enabled" } else { "Disabled" };
            let versions: Vec<Value> = match cloud.conduct.closed {
                Some(_) => Vec::new(),
                None => VERSIONS.iter().map(|version| json!({ "name": version })).collect(),
            };
            let row = json!({ "name": "FlexibleServerCapabilities", "restricted": restricted,
                "supportedServerVersions": versions, "reason": region });
            Ok(kinds::page(cloud, call, vec![row]))
        },
    ),
];

const fn check(path: &'static str) -> Special {
    Special {
        method: "POST",
        path,
        version: "2024-08-01",
        request: "postgresqlflexibleservers.models CheckNameAvailabilityRequest",
        answer: CHECK,
        handler: |cloud, call| Ok(availability(cloud, call, SERVER, "AlreadyExists")),
    }
}

const fn power(path: &'static str, handler: kinds::Handler) -> Special {
    Special { method: "POST", path, version: "2024-08-01", request: "", answer: "", handler }
}

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "a taken name fails the operation, not the call, and takes the server away",
        Source::Report("crossplane-contrib/provider-azure#300"),
    ),
    rule(
        "the operation of a server with an invalid name never ends",
        Source::Report("hashicorp/terraform-provider-azurerm#5443"),
    ),
    rule(
        "names have 3 to 63 small letters, digits and inner hyphens",
        Source::Report("Azure/azure-rest-api-specs#22302"),
    ),
    rule(
        "a zone that is called like the server fails the operation: PrivateDnsZoneNameNotValid",
        Source::Report("hashicorp/terraform-provider-azurerm#24549"),
    ),
    rule("the zone ends with the service's suffix", Source::Report("Azure/azure-rest-api-specs#20866")),
    rule(
        "one writer a server and its databases: ServerBusy, or ServerIsNotReady",
        Source::Report("hashicorp/terraform-provider-azurerm#28298"),
    ),
    rule(
        "a region that is closed to the subscription is refused in one of three ways",
        Source::Report("hashicorp/terraform-provider-azurerm#21306"),
    ),
    rule(
        "the subnet is busy after the server is gone, longer with high availability",
        Source::Report("hashicorp/terraform-provider-azurerm#15032"),
    ),
    rule(
        "a private server needs a delegated subnet and a zone",
        Source::Documentation(
            "https://learn.microsoft.com/azure/postgresql/flexible-server/concepts-networking-private",
        ),
    ),
    rule(
        "high availability needs a tier that is not Burstable",
        Source::Documentation("https://learn.microsoft.com/azure/reliability/reliability-postgresql-flexible-server"),
    ),
    rule(
        "storage has steps and does not shrink",
        Source::Documentation("https://learn.microsoft.com/azure/postgresql/flexible-server/concepts-storage"),
    ),
    rule(
        "a standby has a zone; a restart with a failover exchanges it with that of the primary, and the standby is \
         FailingOver until it is Healthy again",
        Source::Documentation(
            "https://learn.microsoft.com/azure/postgresql/high-availability/how-to-configure-high-availability",
        ),
    ),
    rule(
        "the code of a failover without a standby",
        Source::LeftOut("callers read the standby first, and ask for no failover without one"),
    ),
    rule("a stopped server starts itself after seven days", Source::Report("Azure/azure-cli#23979")),
    rule(
        "a stopped server is not changed: 409 ServerIsNotReady",
        Source::Documentation(
            "https://learn.microsoft.com/azure/postgresql/flexible-server/how-to-stop-start-server-portal",
        ),
    ),
    rule(
        "a parameter that a restart applies is pending until then",
        Source::LeftOut(
            "hashicorp/terraform-provider-azurerm#22257, crossplane-contrib/provider-upjet-azure#811: no plan sets parameters of a server",
        ),
    ),
    rule(
        "a private zone of another subscription needs the resource provider of databases there too",
        Source::LeftOut(
            "MicrosoftDocs/azure-databases-docs#200: one subscription is simulated, and a plan creates the zone in that of the server",
        ),
    ),
    rule("the password is never answered", Source::Model),
    rule(
        "a maintenance window is set by a change, not by a creation",
        Source::Documentation(
            "https://github.com/hashicorp/terraform-provider-azurerm/blob/main/internal/services/postgres/postgresql_flexible_server_resource.go",
        ),
    ),
    rule(
        "a replica has the version and the administrator of its source, and follows no Burstable one",
        Source::Documentation(REPLICAS),
    ),
    rule(
        "a replica has neither backups nor high availability nor a password of its own",
        Source::Documentation(REPLICAS),
    ),
    rule("the size and the storage of a replica are at least those of its source", Source::Documentation(REPLICAS)),
    rule("a source with replicas is not deleted", Source::Documentation(REPLICAS)),
    rule(
        "a private replica whose network does not reach that of its source fails the operation: InternalServerError",
        Source::Report("hashicorp/terraform-provider-azurerm#21485"),
    ),
    rule(
        "a promoted replica is a server of its own with the databases of its source",
        Source::Documentation(
            "https://learn.microsoft.com/azure/postgresql/read-replica/concepts-read-replicas-promote",
        ),
    ),
    rule("the role of a promoted replica is Primary, not None", Source::Report("Azure/azure-rest-api-specs#22499")),
];

const REPLICAS: &str = "https://learn.microsoft.com/azure/postgresql/read-replica/concepts-read-replicas";

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "Microsoft.DBforPostgreSQL", what, source }
}

/// Whether a name of a server is right.
pub(crate) fn is_name(name: &str) -> bool {
    (3..=63).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn closed(how: Closed) -> Problem {
    match how {
        Closed::OfferRestricted => bad(
            "LocationIsOfferRestricted",
            "Subscriptions are restricted from provisioning in this region. Please choose a different region.",
        ),
        Closed::OutOfRange => bad(
            "ParameterOutOfRange",
            "The value of the parameter 'Version' should be in: []. Verify that the specified parameter value is \
             correct.",
        ),
        Closed::Internal => {
            Problem::new(500, "InternalServerError", "An unexpected error occured while processing the request.")
        }
    }
}

fn accept_server(cloud: &mut Cloud, call: &Call, before: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    if let Some(how) = cloud.conduct.closed.filter(|_| before.is_none()) {
        return Err(closed(how));
    }
    if before.is_some_and(|before| text(before, "/properties/state") == "Stopped") {
        return Err(conflict("ServerIsNotReady", "The server is stopped."));
    }
    let wrong =
        |name: &str| bad("InvalidParameterValue", format!("Invalid value given for parameter {name}.")).target(name);
    let password =
        body["properties"].as_object_mut().and_then(|members| members.shift_remove("administratorLoginPassword"));
    let by_password = text(body, "/properties/authConfig/passwordAuth") != "Disabled";
    check_replication(cloud, call, before, body, password.is_some())?;
    let is_replica = is_replica(body);
    if before.is_none()
        && by_password
        && !is_replica
        && (password.is_none() || text(body, "/properties/administratorLogin").is_empty())
    {
        return Err(wrong("administratorLogin"));
    }
    put_missing(body, "/properties/version", "16".into());
    let version = text(body, "/properties/version").to_owned();
    if !VERSIONS.contains(&version.as_str()) {
        return Err(wrong("version"));
    }
    put_missing(body, "/properties/minorVersion", "4".into());
    let sku = text(body, "/sku/name").to_owned();
    let tier = text(body, "/sku/tier");
    let is_burstable = sku.starts_with("Standard_B");
    if !sku.starts_with("Standard_")
        || !["Burstable", "GeneralPurpose", "MemoryOptimized"].contains(&tier)
        || is_burstable != (tier == "Burstable")
    {
        return Err(wrong("sku"));
    }
    let size = |body: &Value| body.pointer("/properties/storage/storageSizeGB").and_then(Value::as_i64).unwrap_or(32);
    if !STORAGE.contains(&size(body)) || before.is_some_and(|before| size(before) > size(body)) {
        return Err(wrong("storage.storageSizeGB"));
    }
    if is_burstable && text(body, "/properties/highAvailability/mode") != "Disabled" {
        let message = "High availability is not supported for Burstable SKUs.";
        return Err(bad("BadRequest", message));
    }
    let ha = text(body, "/properties/highAvailability/mode") != "Disabled";
    put(body, "/properties/highAvailability/state", (if ha { "Healthy" } else { "NotEnabled" }).into());
    let days = body.pointer("/properties/backup/backupRetentionDays").and_then(Value::as_i64).unwrap_or(7);
    if !(7..=35).contains(&days) {
        return Err(wrong("backup.backupRetentionDays"));
    }
    // A creation does not set it.
    if before.is_none() {
        put(
            body,
            "/properties/maintenanceWindow",
            json!({ "customWindow": "Disabled", "dayOfWeek": 0, "startHour": 0, "startMinute": 0 }),
        );
    }
    let window =
        |member: &str| body.pointer(&format!("/properties/maintenanceWindow/{member}")).and_then(Value::as_i64);
    for (member, most) in [("dayOfWeek", 6), ("startHour", 23), ("startMinute", 59)] {
        if !(0..=most).contains(&window(member).unwrap_or(0)) {
            return Err(wrong("maintenanceWindow"));
        }
    }
    let subnet = text(body, "/properties/network/delegatedSubnetResourceId").to_lowercase();
    let zone = text(body, "/properties/network/privateDnsZoneArmResourceId").to_lowercase();
    let zone = zone.rsplit('/').next().unwrap_or_default().to_owned();
    if subnet.is_empty() != zone.is_empty() {
        return Err(wrong("network.privateDnsZoneArmResourceId"));
    }
    if !subnet.is_empty() {
        put(body, "/properties/network/publicNetworkAccess", "Disabled".into());
        let delegations = cloud.objects.get(&subnet).and_then(|one| one.body.pointer("/properties/delegations"));
        let is_ours = |one: &Value| text(one, "/properties/serviceName").eq_ignore_ascii_case(SERVER);
        if !delegations.and_then(Value::as_array).is_some_and(|all| all.iter().any(is_ours)) {
            return Err(wrong("network.delegatedSubnetResourceId"));
        }
        if !zone.ends_with(SUFFIX) {
            return Err(wrong("network.privateDnsZoneArmResourceId"));
        }
    }
    let domain = if zone.is_empty() { SUFFIX.to_owned() } else { zone };
    let mut host = format!("{}.{domain}", call.name());
    if let Some(stand) = &cloud.stand {
        host.clone_from(&stand.host);
        if let Some(password) = password.as_ref().and_then(Value::as_str) {
            (stand.apply)(Change::Password { user: text(body, "/properties/administratorLogin"), password });
        }
    }
    put(body, "/properties/fullyQualifiedDomainName", host.into());
    put_missing(body, "/properties/availabilityZone", "1".into());
    place_standby(body);
    put_missing(
        body,
        "/properties/backup/earliestRestoreDate",
        later(cloud.now(), Duration::from_secs(600)).to_string().into(),
    );
    if let Some(members) = body["properties"].as_object_mut() {
        members.shift_remove("createMode");
    }
    // One of this name elsewhere is found by the operation.
    let is_ours = cloud.objects.contains_key(&call.key);
    if !is_ours && is_taken(cloud, SERVER, call.name()) {
        cloud.busy.insert(format!("{}/taken", call.key), jiff::Timestamp::MAX);
    }
    put(body, "/properties/state", (if before.is_some() { "Ready" } else { "Starting" }).into());
    Ok(())
}

/// Gives the standby of a server its zone.
fn place_standby(body: &mut Value) {
    let primary = text(body, "/properties/availabilityZone").to_owned();
    let standby = match text(body, "/properties/highAvailability/mode") {
        "SameZone" => primary,
        "ZoneRedundant" => (if primary == "1" { "2" } else { "1" }).to_owned(),
        _ => {
            let standby = body["properties"]["highAvailability"].as_object_mut();
            standby.map(|members| members.shift_remove("standbyAvailabilityZone"));
            return;
        }
    };
    put(body, "/properties/highAvailability/standbyAvailabilityZone", standby.into());
}

/// Restarts a server, or lets its standby take over.
fn restart(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let body = cloud.objects.get(&call.key).map(|one| one.body.clone());
    let body = body.ok_or_else(|| super::problem::missing(call.id()))?;
    let is_failover = call.body["restartWithFailover"] == true;
    if is_failover && text(&body, "/properties/highAvailability/state") != "Healthy" {
        return Err(bad("BadRequest", "High availability is not enabled for the server, or it is not healthy."));
    }
    if let Some(running) = cloud.running(&call.key).cloned() {
        return Err(kinds::busy(cloud, call, &running));
    }
    if text(&body, "/properties/state") != "Ready" {
        return Err(conflict("ServerIsNotReady", "The server is not ready for this operation."));
    }
    if let Some(object) = cloud.objects.get_mut(&call.key) {
        put(&mut object.body, "/properties/state", "Updating".into());
        if is_failover {
            put(&mut object.body, "/properties/highAvailability/state", "FailingOver".into());
        }
    }
    if let Some(stand) = cloud.stand.as_ref().filter(|_| is_failover) {
        (stand.apply)(Change::Failover);
    }
    let key = call.key.clone();
    let effect = move |cloud: &mut Cloud| {
        if let Some(object) = cloud.objects.get_mut(&key).filter(|_| is_failover) {
            let standby = text(&object.body, "/properties/highAvailability/standbyAvailabilityZone").to_owned();
            put(&mut object.body, "/properties/availabilityZone", standby.into());
            put(&mut object.body, "/properties/highAvailability/state", "Healthy".into());
            place_standby(&mut object.body);
        }
        ready(cloud, &key);
        Ok(())
    };
    let takes = Some(Duration::from_secs(60));
    let headers = kinds::start(cloud, call, Style::Both, &call.key, false, takes, Box::new(effect));
    Ok(Answer { status: 202, body: Value::Null, headers })
}

/// Stops or starts a server: the state that it has before, meanwhile and after.
fn set_power(cloud: &mut Cloud, call: &Call, [from, through, to]: [&'static str; 3]) -> Result<Answer, Problem> {
    let state = cloud.objects.get(&call.key).map(|one| text(&one.body, "/properties/state").to_owned());
    let state = state.ok_or_else(|| super::problem::missing(call.id()))?;
    if let Some(running) = cloud.running(&call.key).cloned() {
        return Err(kinds::busy(cloud, call, &running));
    }
    if state != from {
        return Err(conflict("ServerIsNotReady", format!("The server is in the state {state}, not in {from}.")));
    }
    set_state(cloud, &call.key, through);
    let key = call.key.clone();
    let effect = move |cloud: &mut Cloud| {
        set_state(cloud, &key, to);
        let (mark, until) = (format!("{key}/stopped"), later(cloud.now(), STOPPED));
        cloud.busy.remove(&mark);
        if to == "Stopped" {
            cloud.busy.insert(mark.clone(), until);
            cloud.defer(until, move |cloud| {
                // Unless it was started before.
                if cloud.busy.get(&mark) == Some(&until) {
                    cloud.busy.remove(&mark);
                    ready(cloud, &key);
                }
            });
        }
        Ok(())
    };
    let takes = Some(Duration::from_secs(60));
    let headers = kinds::start(cloud, call, Style::Both, &call.key, false, takes, Box::new(effect));
    Ok(Answer { status: 202, body: Value::Null, headers })
}

fn is_replica(body: &Value) -> bool {
    text(body, "/properties/replicationRole").ends_with("AsyncReplica")
}

fn source_of(body: &Value) -> String {
    text(body, "/properties/sourceServerResourceId").to_lowercase()
}

/// The vCPUs in the name of a size, and the GiB of storage.
fn capacity(body: &Value) -> [i64; 2] {
    let name = text(body, "/sku/name").trim_start_matches(|c: char| !c.is_ascii_digit());
    let digits: String = name.chars().take_while(char::is_ascii_digit).collect();
    let storage = body.pointer("/properties/storage/storageSizeGB").and_then(Value::as_i64).unwrap_or(32);
    [digits.parse().unwrap_or(0), storage]
}

fn replicas<'c>(cloud: &'c Cloud, key: &str) -> impl Iterator<Item = &'c Value> {
    let bodies = cloud.objects.values().filter(|one| one.ghost_until.is_none()).map(|one| &one.body);
    bodies.filter(move |body| is_replica(body) && source_of(body) == key)
}

fn refuse_replicated(cloud: &Cloud, key: &str) -> Result<(), Problem> {
    match replicas(cloud, key).next() {
        None => Ok(()),
        Some(_) => Err(conflict("OperationNotAllowed", "The server has read replicas. Delete or promote them first.")),
    }
}

/// Makes a new server a replica, notes a promotion, and refuses what a replica or a source of one does not allow.
fn check_replication(
    cloud: &mut Cloud,
    call: &Call,
    before: Option<&Value>,
    body: &mut Value,
    has_password: bool,
) -> Result<(), Problem> {
    let refused = |why: &str| Err(bad("InvalidParameterValue", why));
    let sent = body["properties"].as_object_mut().and_then(|members| members.shift_remove("replica"));
    if before.is_none() && text(body, "/properties/createMode") == "Replica" {
        let source = cloud.objects.get(&source_of(body)).map(|one| one.body.clone());
        let Some(source) = source else {
            return Err(super::problem::missing(text(body, "/properties/sourceServerResourceId")));
        };
        if text(&source, "/properties/state") != "Ready" {
            return Err(conflict("ServerIsNotReady", "The source server is not ready for this operation."));
        }
        if text(&source, "/sku/tier") == "Burstable" {
            return refused("Read replicas are not supported for the Burstable tier.");
        }
        if ["/properties/backup", "/properties/highAvailability"].iter().any(|part| call.body.pointer(part).is_some()) {
            return refused("Backups and high availability are not supported for read replicas.");
        }
        let is_same = text(&source, "/location") == text(body, "/location");
        put(body, "/properties/replicationRole", (if is_same { "AsyncReplica" } else { "GeoAsyncReplica" }).into());
        let members = ["/sku", "/properties/administratorLogin", "/properties/storage", "/properties/version"];
        for member in members.into_iter().filter(|member| call.body.pointer(member).is_none_or(Value::is_null)) {
            put(body, member, source.pointer(member).cloned().unwrap_or_default());
        }
    }
    put_missing(body, "/properties/replicationRole", "Primary".into());
    if is_replica(body) {
        let source = cloud.objects.get(&source_of(body)).map(|one| capacity(&one.body));
        let [vcpus, storage] = source.unwrap_or_default();
        if capacity(body)[0] < vcpus || capacity(body)[1] < storage || text(body, "/sku/tier") == "Burstable" {
            return refused("A read replica cannot be smaller than its source.");
        }
        let days = |body: &Value| body.pointer("/properties/backup/backupRetentionDays").cloned();
        let is_copied = text(body, "/properties/highAvailability/mode") != "Disabled";
        if has_password || is_copied || before.is_some_and(|before| days(before) != days(body)) {
            return refused("Not supported for read replicas: passwords, backups and high availability.");
        }
    }
    let [vcpus, storage] = capacity(body);
    let is_burstable = text(body, "/sku/tier") == "Burstable";
    if replicas(cloud, &call.key).map(capacity).any(|one| one[0] < vcpus || one[1] < storage || is_burstable) {
        return refused("The read replicas of the server have to be as large, and its tier cannot be Burstable.");
    }
    let Some(sent) = sent else { return Ok(()) };
    let is_promotion = text(&sent, "/role") == "None" && text(&sent, "/promoteMode").eq_ignore_ascii_case("standalone");
    if !is_promotion || !is_replica(body) {
        return refused("The server is no read replica that can be promoted like this.");
    }
    cloud.busy.insert(format!("{}/promoted", call.key), jiff::Timestamp::MAX);
    Ok(())
}

/// Ends the replication of a replica. Its databases were replicated too.
fn promote(cloud: &mut Cloud, key: &str) {
    let Some(source) = cloud.objects.get(key).map(|one| source_of(&one.body)) else { return };
    let below = format!("{source}/databases/");
    let databases: Vec<(String, Value)> = cloud
        .objects
        .iter()
        .filter_map(|(one, object)| Some((one.strip_prefix(&below)?.to_owned(), object.body.clone())))
        .collect();
    let Some(object) = cloud.objects.get_mut(key) else { return };
    object.body["properties"].as_object_mut().map(|members| members.shift_remove("sourceServerResourceId"));
    put(&mut object.body, "/properties/replicationRole", "Primary".into());
    let id = object.id.clone();
    for (name, mut body) in databases {
        let id = format!("{id}/databases/{name}");
        put(&mut body, "/id", id.as_str().into());
        cloud.put(&id, body);
    }
}

/// Whether the network of a private replica reaches that of its source, in both directions.
fn is_reached(cloud: &Cloud, body: &Value) -> bool {
    let network =
        |body: &Value| network_of(&text(body, "/properties/network/delegatedSubnetResourceId").to_lowercase());
    let Some(source) = cloud.objects.get(&source_of(body)).map(|one| network(&one.body)) else { return false };
    let own = network(body);
    is_peered(cloud, &own, &source) && is_peered(cloud, &source, &own)
}

fn ready(cloud: &mut Cloud, key: &str) {
    set_state(cloud, key, "Ready");
}

fn set_state(cloud: &mut Cloud, key: &str, state: &str) {
    if let Some(object) = cloud.objects.get_mut(key) {
        put(&mut object.body, "/properties/state", state.into());
    }
}

fn finish_server(cloud: &mut Cloud, key: &str, is_new: bool) -> Result<(), Value> {
    let error = |code: &str, message: String| Err(json!({ "code": code, "message": message }));
    let name = key.rsplit('/').next().unwrap_or_default();
    if cloud.busy.remove(&format!("{key}/taken")).is_some() {
        return error("ServerNameAlreadyExists", format!("Specified server name '{name}' is already used."));
    }
    let domain =
        cloud.objects.get(key).map(|one| text(&one.body, "/properties/fullyQualifiedDomainName").to_lowercase());
    let domain = domain.unwrap_or_default();
    if is_new && domain == format!("{name}.{name}.{SUFFIX}") {
        let message =
            format!("The private DNS zone name '{name}.{SUFFIX}' is not valid because it is the server's name.");
        return error("PrivateDnsZoneNameNotValid", message);
    }
    if is_new && cloud.objects.get(key).is_some_and(|one| is_replica(&one.body) && !is_reached(cloud, &one.body)) {
        return error("InternalServerError", "An unexpected error occured while processing the request.".to_owned());
    }
    if cloud.busy.remove(&format!("{key}/promoted")).is_some() {
        promote(cloud, key);
    }
    ready(cloud, key);
    Ok(())
}

/// The service's link stays on the subnet for a while.
fn end_server(cloud: &mut Cloud, key: &str) -> Result<(), Value> {
    let Some(body) = cloud.objects.get(key).map(|one| one.body.clone()) else { return Ok(()) };
    let subnet = text(&body, "/properties/network/delegatedSubnetResourceId").to_lowercase();
    if !subnet.is_empty() {
        let mut until = cloud.lagged(&cloud.conduct.link_lag);
        if text(&body, "/properties/highAvailability/mode") != "Disabled" {
            let more = Duration::try_from(until.duration_since(cloud.now())).unwrap_or_default();
            until = later(until, more);
        }
        cloud.links.insert(subnet, until);
    }
    Ok(())
}

fn accept_database(cloud: &mut Cloud, call: &Call, _: Option<&Value>, _: &mut Value) -> Result<(), Problem> {
    let server = call.parent();
    let state = cloud.objects.get(&server).map_or("", |one| text(&one.body, "/properties/state"));
    if state != "Ready" {
        return Err(super::problem::conflict("ServerIsNotReady", "The server is not ready for this operation."));
    }
    Ok(())
}
