//! Cloud SQL: instances, databases and users.

use std::time::Duration;

use serde_json::{Value, json};

use super::cloud::{Cloud, Effect, Family, Object, Operation, merge, put, stamp};
use super::kinds::{KIND, Kind, begin, collection, page};
use super::problem::Problem;
use super::{Call, Handler, errors};
use crate::clock::later;
use crate::postgres::Change;
use crate::{Behaviour, Source};

/// The settings of backups.
const BACKUPS: &str = "/settings/backupConfiguration";
/// How long the name of a deleted instance is refused.
const BURNT: Duration = Duration::from_secs(7 * 86_400);

pub(crate) const KINDS: &[Kind] = &[
    Kind { methods: "sql.instances", verbs: &[], collection: ("sql", "instances"), ..KIND },
    Kind { methods: "sql.databases", verbs: &[], collection: ("sql", "databases"), ..KIND },
    Kind { methods: "sql.users", verbs: &[], collection: ("sql", "users"), ..KIND },
];

pub(crate) const HANDLERS: &[(&str, Handler)] = &[
    ("sql.instances.insert", insert),
    ("sql.instances.get", get),
    ("sql.instances.list", list),
    ("sql.instances.patch", patch),
    ("sql.instances.update", patch),
    ("sql.instances.delete", delete),
    ("sql.instances.failover", failover),
    ("sql.instances.promoteReplica", promote),
    ("sql.databases.insert", insert_database),
    ("sql.databases.get", get),
    ("sql.databases.list", list_below),
    ("sql.databases.delete", delete_database),
    ("sql.users.insert", insert_user),
    ("sql.users.get", get),
    ("sql.users.list", list_below),
    ("sql.users.update", update_user),
    ("sql.users.delete", delete_user),
    ("sql.operations.get", super::kinds::operation),
    ("sql.operations.list", super::kinds::operations),
    ("sql.tiers.list", tiers),
];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "the name of a deleted instance is refused for a week, by instanceAlreadyExists or invalidState",
        Source::Report("hashicorp/terraform-provider-google#6066"),
    ),
    rule("a failed creation burns the name too", Source::Report("forseti-security/terraform-google-forseti#251")),
    rule(
        "one operation an instance at a time: 409 operationInProgress, replicas included",
        Source::Report("hashicorp/terraform-provider-google#4370"),
    ),
    rule(
        "an instance is busy for a while after its operation is done, by one that no list shows",
        Source::Report("crossplane-contrib/provider-gcp#121"),
    ),
    rule(
        "an update with another settingsVersion is 412 staleData, without one in update mode refused",
        Source::Report("hashicorp/terraform-provider-google#25246"),
    ),
    rule(
        "from PostgreSQL 16 the edition is ENTERPRISE_PLUS unless set",
        Source::Report("GoogleCloudPlatform/magic-modules#18014"),
    ),
    rule(
        "a maintenance window has a day from 1 to 7; an answer has day 0 where none is set",
        Source::Report("hashicorp/terraform-provider-google#3938"),
    ),
    rule("a replica has no maintenance window", Source::Report("terraform-google-modules/terraform-google-sql-db#64")),
    rule("tiers belong to editions", Source::Report("hashicorp/terraform-provider-google#20498")),
    rule("transaction logs are kept 1 to 7 days in ENTERPRISE", Source::Report("langfuse/langfuse-terraform-gcp#34")),
    rule("a disk does not shrink by an update", Source::Report("hashicorp/terraform-provider-google#4579")),
    rule("a primary with replicas is not deleted", Source::Report("GoogleCloudPlatform/gcp-service-broker#466")),
    rule(
        "a replica needs a primary with backups and point-in-time recovery",
        Source::Documentation("https://cloud.google.com/sql/docs/postgres/replication#requirements"),
    ),
    rule("a replica has no backups", Source::Report("GoogleCloudPlatform/magic-modules#6836")),
    rule(
        "a replica in another region than its encrypted primary needs a key of its own region",
        Source::Report("terraform-google-modules/terraform-google-sql-db#249"),
    ),
    rule(
        "a promoted replica is an instance of its own, with its settings",
        Source::Documentation("https://cloud.google.com/sql/docs/postgres/admin-api/rest/v1/instances/promoteReplica"),
    ),
    rule(
        "a failover needs availability REGIONAL and the present settingsVersion, and exchanges the two zones",
        Source::Documentation("https://cloud.google.com/sql/docs/postgres/admin-api/rest/v1/instances/failover"),
    ),
    rule(
        "deletion protection guards the instance alone",
        Source::Report("terraform-google-modules/terraform-google-sql-db#434"),
    ),
    rule(
        "a user who owns objects is not deleted",
        Source::Report("terraform-google-modules/terraform-google-sql-db#323"),
    ),
    rule(
        "each region takes a /24 of the reserved range; without room the creation fails",
        Source::Report("sassoftware/viya4-iac-gcp#194"),
    ),
    rule(
        "a private address needs the service connection of the network",
        Source::Documentation("https://cloud.google.com/sql/docs/postgres/configure-private-ip"),
    ),
    rule(
        "an instance has a database and a user postgres",
        Source::Documentation("https://cloud.google.com/sql/docs/postgres/create-manage-databases"),
    ),
    rule(
        "names of instances: lower case, digits and -, 98 characters with the project",
        Source::Documentation("https://cloud.google.com/sql/docs/postgres/instance-settings#instance-id-2ndgen"),
    ),
    rule(
        "after the last private instance the producer holds the connection",
        Source::Report("hashicorp/terraform-provider-google#16275"),
    ),
    rule("a patch merges labels, and null removes one", Source::Report("hashicorp/terraform-provider-google#8675")),
    rule("an operation's requests, databases and users have the forms of the document", Source::Model),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "sql", what, source }
}

fn refused(http: u16, reason: &str, message: impl Into<String>) -> Problem {
    Problem::with_reason(http, reason, message)
}

fn invalid(message: impl Into<String>) -> Problem {
    refused(400, "invalid", message)
}

fn instance_key(call: &Call<'_>) -> String {
    call.key().split('/').take(5).collect::<Vec<_>>().join("/")
}

fn text<'v>(body: &'v Value, pointer: &str) -> &'v str {
    body.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The primary of an instance, by its key: its replicas share its operations.
fn primary(cloud: &Cloud, key: &str) -> String {
    let master = cloud.get(key).map(|body| text(body, "/masterInstanceName").to_owned()).unwrap_or_default();
    let master = master.rsplit(':').next().unwrap_or_default();
    match (master, key.rsplit_once('/')) {
        ("", _) | (_, None) => key.to_owned(),
        (master, Some((collection, _))) => format!("{collection}/{master}"),
    }
}

fn replicas(cloud: &Cloud, key: &str) -> Vec<String> {
    let Some((collection_key, _)) = key.rsplit_once('/') else { return Vec::new() };
    let all = collection(cloud, collection_key);
    all.into_iter().filter(|one| one != key && primary(cloud, one) == key).collect()
}

fn idle(cloud: &Cloud, key: &str) -> Result<(), Problem> {
    let primary = primary(cloud, key);
    let mut group = replicas(cloud, &primary);
    group.push(primary);
    match group.iter().any(|one| cloud.running(one).is_some()) {
        true => {
            let message = "Operation failed because another operation was already in progress.";
            Err(refused(409, "operationInProgress", message))
        }
        false => Ok(()),
    }
}

/// An operation that no list shows keeps the instance busy for a while.
fn haunt(cloud: &mut Cloud, key: &str) {
    let lag = cloud.lag(&cloud.conduct.sql_ghost.clone());
    if lag.is_zero() {
        return;
    }
    let project = key.split('/').nth(2).unwrap_or_default();
    let operation = Operation {
        family: Family::Sql,
        key: format!("sql/projects/{project}/operations/{}", cloud.random.uuid()),
        kind: "MAINTENANCE".to_owned(),
        target: key.to_owned(),
        user: String::new(),
        start: cloud.now(),
        end: None,
        result: None,
        is_hidden: true,
        metadata: Value::Null,
    };
    cloud.start(operation, lag, Box::new(|_| Ok(Value::Null)));
}

/// Fills and checks what depends on the edition.
fn check_edition(body: &mut Value) -> Result<(), Problem> {
    let version = text(body, "/databaseVersion").to_owned();
    let major = version.strip_prefix("POSTGRES_").and_then(|major| major.parse::<u32>().ok()).unwrap_or(0);
    if body.pointer("/settings/edition").is_none() {
        put(body, "/settings/edition", if major >= 16 { "ENTERPRISE_PLUS" } else { "ENTERPRISE" }.into());
    }
    let edition = text(body, "/settings/edition").to_owned();
    let tier = text(body, "/settings/tier").to_owned();
    let is_plus = tier.starts_with("db-perf-optimized-") || tier.starts_with("db-c4a-");
    let is_plain = tier.starts_with("db-custom-") || ["db-f1-micro", "db-g1-small"].contains(&tier.as_str());
    let fits = if edition == "ENTERPRISE_PLUS" { is_plus } else { is_plain };
    if !fits {
        return Err(invalid(format!(
            "Invalid Tier ({tier}) for ({edition}) Edition. Use a predefined Tier like db-perf-optimized-N-* instead."
        )));
    }
    let days = body.pointer("/settings/backupConfiguration/transactionLogRetentionDays").and_then(Value::as_i64);
    let most = if edition == "ENTERPRISE_PLUS" { 35 } else { 7 };
    if days.is_some_and(|days| !(1..=most).contains(&days)) {
        return Err(invalid(format!("Transaction log retention days must be between 1 and {most}.")));
    }
    let pooling = body.pointer("/settings/connectionPoolConfig/connectionPoolingEnabled") == Some(&json!(true));
    if pooling && edition != "ENTERPRISE_PLUS" {
        return Err(invalid("Managed connection pooling is only supported for Enterprise Plus edition."));
    }
    if body.pointer("/settings/backupConfiguration").is_some() && days.is_none() {
        let usual = if edition == "ENTERPRISE_PLUS" { 14 } else { 7 };
        put(body, "/settings/backupConfiguration/transactionLogRetentionDays", usual.into());
    }
    Ok(())
}

/// Checks the maintenance window of a request.
fn check_maintenance(sent: &Value, is_replica: bool) -> Result<(), Problem> {
    let Some(window) = sent.pointer("/settings/maintenanceWindow").filter(|window| !window.is_null()) else {
        return Ok(());
    };
    if is_replica {
        return Err(invalid("Invalid request: A maintenance window cannot be set on a read replica."));
    }
    if !(1..=7).contains(&window["day"].as_i64().unwrap_or(0)) {
        return Err(invalid("Invalid request: Invalid maintenance window. Day of week is unspecified."));
    }
    match window["hour"].as_i64().unwrap_or(0) {
        0..=23 => Ok(()),
        _ => Err(invalid("Invalid request: Invalid maintenance window. Hour of day is out of range.")),
    }
}

/// The service connection of a network: its key and the reserved ranges.
pub(super) fn connection(cloud: &Cloud, network: &str) -> Option<Vec<String>> {
    let is_one = |(key, object): &(&String, &Object)| {
        key.starts_with("servicenetworking/")
            && !object.is_hidden
            && super::networking::same(cloud, text(&object.body, "/network"), network)
    };
    let (_, object) = cloud.objects.iter().find(is_one)?;
    let ranges = object.body["reservedPeeringRanges"].as_array().into_iter().flatten();
    Some(ranges.filter_map(Value::as_str).map(str::to_owned).collect())
}

/// A free /24 of the reserved ranges, or the one of this region: its first address.
fn subnet(cloud: &Cloud, project: &str, region: &str, ranges: &[String]) -> Option<u32> {
    let taken: Vec<(String, u32)> = collection(cloud, &format!("sql/projects/{project}/instances"))
        .iter()
        .filter_map(|key| cloud.get(key))
        .filter_map(|body| {
            let list = body["ipAddresses"].as_array()?;
            let private = list.iter().find(|one| one["type"] == "PRIVATE")?;
            let address: std::net::Ipv4Addr = text(private, "/ipAddress").parse().ok()?;
            Some((text(body, "/region").to_owned(), u32::from(address) & 0xffff_ff00))
        })
        .collect();
    if let Some((_, own)) = taken.iter().find(|(one, _)| one == region) {
        return Some(*own);
    }
    for range in ranges {
        let Some(address) = cloud.get(&format!("compute/projects/{project}/global/addresses/{range}")) else {
            continue;
        };
        let length = address["prefixLength"].as_i64().unwrap_or(32);
        let Some((first, size)) = super::compute::range(&format!("{}/{length}", text(address, "/address"))) else {
            continue;
        };
        let free = (0..size / 256).filter_map(|index| first.checked_add(u32::try_from(index * 256).ok()?));
        if let Some(found) = free.into_iter().find(|one| !taken.iter().any(|(_, used)| used == one)) {
            return Some(found);
        }
    }
    None
}

fn insert(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let mut body = call.body.clone();
    let name = text(&body, "/name").to_owned();
    if !errors::is_name(&name, 98_usize.saturating_sub(call.project.len() + 1)) {
        return Err(invalid(format!("Invalid request: Invalid instance name ({name}).")));
    }
    errors::check_labels(body.pointer("/settings/userLabels").unwrap_or(&Value::Null))?;
    let key = format!("{}/{name}", call.key());
    let exists = "The Cloud SQL instance already exists. When you delete an instance, you can't reuse the name of the \
        deleted instance until one week from the deletion date.";
    if cloud.objects.contains_key(&key) {
        return Err(refused(409, "instanceAlreadyExists", exists));
    }
    if cloud.burnt.get(&key).is_some_and(|until| *until > cloud.now()) {
        return Err(match cloud.random.number() % 2 {
            0 => refused(409, "instanceAlreadyExists", exists),
            _ => refused(
                409,
                "invalidState",
                "The instance or operation is not in an appropriate state to handle the request.",
            ),
        });
    }
    if text(&body, "/settings/tier").is_empty() {
        return Err(invalid("Invalid request: Missing parameter: tier."));
    }
    if body.get("databaseVersion").is_none() {
        body["databaseVersion"] = "MYSQL_8_0".into();
    }
    check_edition(&mut body)?;
    check_maintenance(&body, !text(&body, "/masterInstanceName").is_empty())?;
    let network = text(&body, "/settings/ipConfiguration/privateNetwork").to_owned();
    let ranges = connection(cloud, &network);
    if !network.is_empty() && ranges.is_none() {
        let message = format!(
            "Invalid request: Incorrect Service Networking config for instance: \
                {}:{name}:SERVICE_NETWORKING_NOT_ENABLED. Network {network} has no private services connection.",
            call.project
        );
        return Err(invalid(message));
    }
    let master = text(&body, "/masterInstanceName").to_owned();
    if !master.is_empty() {
        let primary = format!("{}/{}", call.key(), master.rsplit(':').next().unwrap_or_default());
        let Some(found) = cloud.get(&primary) else { return Err(errors::not_found("sql", &master)) };
        check_replica(found, &body)?;
        idle(cloud, &primary)?;
        bump(cloud, &primary);
    }
    let region = text(&body, "/region").to_owned();
    let region = if region.is_empty() { "us-central1".to_owned() } else { region };
    let connection_name = format!("{}:{region}:{name}", call.project);
    let defaults = [
        ("/region", json!(region)),
        ("/settings/activationPolicy", json!("ALWAYS")),
        ("/settings/availabilityType", json!("ZONAL")),
        ("/settings/pricingPlan", json!("PER_USE")),
        ("/settings/replicationType", json!("SYNCHRONOUS")),
        ("/settings/dataDiskType", json!("PD_SSD")),
        ("/settings/dataDiskSizeGb", json!("10")),
        ("/settings/storageAutoResize", json!(true)),
        ("/settings/storageAutoResizeLimit", json!("0")),
        ("/settings/ipConfiguration/ipv4Enabled", json!(true)),
        ("/settings/connectorEnforcement", json!("NOT_REQUIRED")),
        ("/settings/deletionProtectionEnabled", json!(false)),
        ("/settings/backupConfiguration/enabled", json!(false)),
        ("/settings/maintenanceWindow", json!({ "kind": "sql#maintenanceWindow", "day": 0, "hour": 0 })),
        ("/instanceType", json!(if master.is_empty() { "CLOUD_SQL_INSTANCE" } else { "READ_REPLICA_INSTANCE" })),
    ];
    for (pointer, value) in defaults {
        if body.pointer(pointer).is_none() {
            put(&mut body, pointer, value);
        }
    }
    put(&mut body, "/settings/settingsVersion", "1".into());
    put(&mut body, "/settings/kind", "sql#settings".into());
    let number = cloud.project(&call.project).map(|project| project.number.clone()).unwrap_or_default();
    let members = [
        ("kind", json!("sql#instance")),
        ("backendType", json!("SECOND_GEN")),
        ("project", json!(call.project)),
        ("connectionName", json!(connection_name)),
        ("createTime", json!(cloud.now().to_string())),
        ("etag", json!(cloud.fingerprint())),
        ("selfLink", json!(cloud.link("sql", &format!("{}/{name}", call.name)))),
        (
            "serviceAccountEmailAddress",
            json!(format!(
                "p{number}-{}@gcp-sa-cloud-sql.iam.gserviceaccount.com",
                cloud.random.base32(6).to_lowercase()
            )),
        ),
        ("state", json!("PENDING_CREATE")),
        ("gceZone", json!(format!("{region}-b"))),
    ];
    for (member, value) in members {
        body[member] = value;
    }
    place_standby(&mut body);
    let password = body.as_object_mut().and_then(|members| members.shift_remove("rootPassword"));
    drop(password);
    let now = cloud.now();
    cloud.objects.insert(key.clone(), Object { body, busy_until: now, is_hidden: false, created: now });
    let (target, project, is_private) = (key.clone(), call.project.clone(), !network.is_empty());
    let effect: Effect = Box::new(move |cloud| {
        let found = subnet(cloud, &project, &region, &ranges.unwrap_or_default()).filter(|_| is_private);
        if is_private && found.is_none() {
            cloud.objects.remove(&target);
            cloud.burnt.insert(target.clone(), later(cloud.now(), BURNT));
            let message = "Failed to create subnetwork. Couldn't find free blocks in allocated IP ranges. Please \
                allocate new ranges for this service provider.";
            return Err(json!({ "code": "INTERNAL_ERROR", "message": message }));
        }
        ready(cloud, &target, found);
        haunt(cloud, &target);
        Ok(Value::Null)
    });
    let kind = if master.is_empty() { "CREATE" } else { "CREATE_REPLICA" };
    Ok(begin(cloud, call, Family::Sql, kind, &key, Duration::from_secs(300), Value::Null, effect))
}

/// Whether an instance can be a replica of another one.
fn check_replica(primary: &Value, body: &Value) -> Result<(), Problem> {
    let is_on = |body: &Value, member: &str| body.pointer(&format!("{BACKUPS}/{member}")) == Some(&json!(true));
    if !is_on(primary, "enabled") || !is_on(primary, "pointInTimeRecoveryEnabled") {
        return Err(invalid("Invalid request: The primary instance needs backups and point-in-time recovery."));
    }
    if is_on(body, "enabled") {
        return Err(invalid("Invalid request: Backups cannot be enabled on a replica."));
    }
    let key = |body: &Value| text(body, "/diskEncryptionConfiguration/kmsKeyName").to_owned();
    let (region, own) = (text(body, "/region"), key(body));
    if region != text(primary, "/region") && !key(primary).is_empty() {
        if own.is_empty() {
            return Err(invalid(
                "Invalid request: Disk encryption config is not specified for the cross region replica..",
            ));
        }
        if !own.contains(&format!("/locations/{region}/")) {
            return Err(invalid("Invalid request: The key and the instance are in different regions."));
        }
    }
    Ok(())
}

/// The end of an instance's creation.
fn ready(cloud: &mut Cloud, key: &str, subnet: Option<u32>) {
    let host = u32::try_from(2 + cloud.random.number() % 250).unwrap_or(2);
    let public = format!("35.{}.{}.{}", 184 + cloud.random.number() % 64, cloud.random.number() % 256, host);
    let project = key.split('/').nth(2).unwrap_or_default().to_owned();
    let Some(object) = cloud.objects.get_mut(key) else { return };
    let mut addresses = Vec::new();
    if let Some(subnet) = subnet {
        let address = std::net::Ipv4Addr::from(subnet.saturating_add(host)).to_string();
        let address = cloud.stand.as_ref().map_or(address, |stand| stand.host.clone());
        addresses.push(json!({ "type": "PRIVATE", "ipAddress": address }));
    }
    if object.body.pointer("/settings/ipConfiguration/ipv4Enabled") == Some(&json!(true)) {
        addresses.push(json!({ "type": "PRIMARY", "ipAddress": public }));
    }
    object.body["ipAddresses"] = addresses.into();
    object.body["state"] = "RUNNABLE".into();
    let certificate = json!({ "kind": "sql#sslCert", "certSerialNumber": "0", "instance": key.rsplit('/').next(),
        "cert": "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----", "commonName": "C=US,O=Google\\, \
            Inc,CN=Google Cloud SQL Server CA" });
    object.body["serverCaCert"] = certificate;
    let name = key.rsplit('/').next().unwrap_or_default().to_owned();
    if !object.body["databaseVersion"].as_str().is_some_and(|version| version.starts_with("POSTGRES")) {
        return;
    }
    let database = json!({ "kind": "sql#database", "name": "postgres", "charset": "UTF8", "collation": "en_US.UTF8",
        "instance": name, "project": project, "selfLink": cloud.link("sql",
            &format!("projects/{project}/instances/{name}/databases/postgres")), "etag": cloud.fingerprint() });
    cloud.put(&format!("{key}/databases/postgres"), database);
    let user = json!({ "kind": "sql#user", "name": "postgres", "instance": name, "project": project, "host": "",
        "etag": cloud.fingerprint() });
    cloud.put(&format!("{key}/users/postgres"), user);
}

/// A change of an instance or of its replicas raises its version.
fn bump(cloud: &mut Cloud, key: &str) {
    let etag = cloud.fingerprint();
    if let Some(object) = cloud.objects.get_mut(key) {
        stamp(&mut object.body, &etag);
    }
}

fn get(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let instance = instance_key(call);
    let Some(body) = cloud.get(&instance) else { return Err(errors::not_found("sql", &call.name)) };
    let key = call.key();
    if key == instance {
        let mut body = body.clone();
        let names = replicas(cloud, &instance);
        let names: Vec<&str> = names.iter().filter_map(|one| one.rsplit('/').next()).collect();
        if !names.is_empty() {
            body["replicaNames"] = json!(names);
        }
        return Ok(body);
    }
    let missing = || refused(404, "notFound", "Not Found: the resource does not exist in the instance.");
    cloud.get(&key).cloned().ok_or_else(missing)
}

fn list(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let keys = collection(cloud, &call.key());
    let mut answer = page(call, "items", keys.iter().filter_map(|key| cloud.get(key).cloned()).collect());
    answer["kind"] = "sql#instancesList".into();
    Ok(answer)
}

fn list_below(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    if cloud.get(&instance_key(call)).is_none() {
        return Err(errors::not_found("sql", &call.name));
    }
    let keys = collection(cloud, &call.key());
    let items: Vec<Value> = keys.iter().filter_map(|key| cloud.get(key).cloned()).collect();
    let kind = if call.id.starts_with("sql.users") { "sql#usersList" } else { "sql#databasesList" };
    Ok(if items.is_empty() { json!({ "kind": kind }) } else { json!({ "kind": kind, "items": items }) })
}

fn patch(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let key = call.key();
    let before = get(cloud, call)?;
    let sent = call.body.pointer("/settings/settingsVersion");
    let sent = sent.and_then(Value::as_str);
    let current = text(&before, "/settings/settingsVersion");
    match sent {
        Some(sent) if sent != current => return Err(refused(412, "staleData", "Condition does not match.")),
        None if call.id.ends_with("update") => {
            return Err(invalid("Invalid request: Missing parameter: settingsVersion."));
        }
        Some(_) | None => {}
    }
    // An update repeats the whole instance.
    if !call.id.ends_with("update") {
        check_maintenance(&call.body, !text(&before, "/masterInstanceName").is_empty())?;
    }
    idle(cloud, &key)?;
    let mut after = before.clone();
    merge(&mut after, &call.body);
    errors::check_labels(after.pointer("/settings/userLabels").unwrap_or(&Value::Null))?;
    check_edition(&mut after)?;
    if !text(&after, "/masterInstanceName").is_empty()
        && after.pointer(&format!("{BACKUPS}/enabled")) == Some(&json!(true))
    {
        return Err(invalid("Invalid request: Backups cannot be enabled on a replica."));
    }
    let size = |body: &Value| text(body, "/settings/dataDiskSizeGb").parse::<i64>().ok();
    if size(&after) < size(&before) {
        return Err(invalid("Invalid request: Disk size cannot be decreased."));
    }
    let network = text(&after, "/settings/ipConfiguration/privateNetwork");
    if !network.is_empty() && connection(cloud, network).is_none() {
        return Err(invalid("Invalid request: the network has no private services connection."));
    }
    put(&mut after, "/settings/settingsVersion", current.into());
    place_standby(&mut after);
    for member in ["rootPassword", "replicaNames"] {
        after.as_object_mut().map(|members| members.shift_remove(member));
    }
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        if let Some(object) = cloud.objects.get_mut(&target) {
            object.body = after;
        }
        bump(cloud, &target);
        haunt(cloud, &target);
        Ok(Value::Null)
    });
    Ok(begin(cloud, call, Family::Sql, "UPDATE", &key, Duration::from_secs(60), Value::Null, effect))
}

fn failover(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let key = instance_key(call);
    let Some(body) = cloud.get(&key) else { return Err(errors::not_found("sql", &call.name)) };
    if text(body, "/settings/availabilityType") != "REGIONAL" {
        return Err(invalid("Invalid request: The instance is not HA."));
    }
    let sent = text(&call.body, "/failoverContext/settingsVersion");
    if sent != text(body, "/settings/settingsVersion") {
        return Err(refused(412, "staleData", "Condition does not match."));
    }
    if body["state"] != "RUNNABLE" {
        return Err(invalid("Invalid request: Invalid request since instance is not running."));
    }
    idle(cloud, &key)?;
    if let Some(stand) = &cloud.stand {
        (stand.apply)(Change::Failover);
    }
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        if let Some(object) = cloud.objects.get_mut(&target) {
            let zones = ["gceZone", "secondaryGceZone"].map(|member| object.body[member].clone());
            let [primary, standby] = zones;
            object.body["gceZone"] = standby;
            object.body["secondaryGceZone"] = primary;
        }
        bump(cloud, &target);
        haunt(cloud, &target);
        Ok(Value::Null)
    });
    Ok(begin(cloud, call, Family::Sql, "FAILOVER", &key, Duration::from_secs(60), Value::Null, effect))
}

/// An instance with availability REGIONAL has a standby in another zone.
fn place_standby(body: &mut Value) {
    if text(body, "/settings/availabilityType") != "REGIONAL" {
        body.as_object_mut().map(|members| members.shift_remove("secondaryGceZone"));
        return;
    }
    let (region, primary) = (text(body, "/region").to_owned(), text(body, "/gceZone"));
    let standby = if primary.ends_with("-b") { "c" } else { "b" };
    put(body, "/secondaryGceZone", format!("{region}-{standby}").into());
}

fn promote(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let key = instance_key(call);
    let primary = primary(cloud, &key);
    if cloud.get(&key).is_none() {
        return Err(errors::not_found("sql", &call.name));
    }
    if primary == key {
        return Err(invalid("Invalid request: The instance is not a read replica."));
    }
    idle(cloud, &key)?;
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        // Databases and users are replicated too.
        let below: Vec<(String, Value)> = cloud
            .objects
            .iter()
            .filter_map(|(one, object)| {
                Some((one.strip_prefix(&format!("{primary}/"))?.to_owned(), object.body.clone()))
            })
            .collect();
        for (one, body) in below {
            cloud.put(&format!("{target}/{one}"), body);
        }
        if let Some(object) = cloud.objects.get_mut(&target) {
            object.body.as_object_mut().map(|members| members.shift_remove("masterInstanceName"));
            object.body["instanceType"] = "CLOUD_SQL_INSTANCE".into();
        }
        for one in [&target, &primary] {
            bump(cloud, one);
        }
        haunt(cloud, &target);
        Ok(Value::Null)
    });
    Ok(begin(cloud, call, Family::Sql, "PROMOTE_REPLICA", &key, Duration::from_secs(120), Value::Null, effect))
}

fn delete(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let key = call.key();
    let body = get(cloud, call)?;
    if body.pointer("/settings/deletionProtectionEnabled") == Some(&json!(true)) {
        let message =
            "Invalid request: The instance is protected. Please disable the deletion protection and try again.";
        return Err(refused(400, "deletionProtectionEnabled", message));
    }
    if !replicas(cloud, &key).is_empty() {
        let message = "The requested operation is not valid for a primary instance with replicas.";
        return Err(refused(400, "errorReplicationMasterInvalidOperation", message));
    }
    idle(cloud, &key)?;
    if let Some(object) = cloud.objects.get_mut(&key) {
        object.body["state"] = "PENDING_DELETE".into();
    }
    let primary = primary(cloud, &key);
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        let below = format!("{target}/");
        cloud.objects.retain(|one, _| !one.starts_with(&below));
        let removed = cloud.objects.remove(&target);
        let until = later(cloud.now(), BURNT);
        cloud.burnt.insert(target.clone(), until);
        if primary != target {
            bump(cloud, &primary);
            haunt(cloud, &primary);
        }
        let network = removed.map(|one| text(&one.body, "/settings/ipConfiguration/privateNetwork").to_owned());
        if let Some(network) = network.filter(|network| !network.is_empty()) {
            super::networking::hold(cloud, &network);
        }
        Ok(Value::Null)
    });
    Ok(begin(cloud, call, Family::Sql, "DELETE", &key, Duration::from_secs(60), Value::Null, effect))
}

/// Starts an operation on what is below an instance.
fn below(cloud: &mut Cloud, call: &Call<'_>, kind: &str, effect: Effect) -> Result<Value, Problem> {
    let key = instance_key(call);
    idle(cloud, &key)?;
    let target = key.clone();
    let with_ghost: Effect = Box::new(move |cloud| {
        let result = effect(cloud);
        haunt(cloud, &target);
        result
    });
    Ok(begin(cloud, call, Family::Sql, kind, &key, Duration::from_secs(10), Value::Null, with_ghost))
}

fn running(cloud: &Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let body = cloud.get(&instance_key(call)).cloned();
    let body = body.ok_or_else(|| errors::not_found("sql", &call.name))?;
    match body["state"] == "RUNNABLE" {
        true => Ok(body),
        false => Err(refused(400, "invalid", "Invalid request: Invalid request since instance is not running.")),
    }
}

fn insert_database(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let instance = running(cloud, call)?;
    let mut body = call.body.clone();
    let name = text(&body, "/name").to_owned();
    let key = format!("{}/{name}", call.key());
    if name.is_empty() || name.len() > 63 {
        return Err(invalid(format!("Invalid request: Invalid database name ({name}).")));
    }
    if cloud.objects.contains_key(&key) {
        return Err(invalid(format!(
            "Invalid request: failed to create database {name}. Detail: pq: database \"{name}\" already exists"
        )));
    }
    let link = cloud.link("sql", &format!("{}/{name}", call.name));
    let members = [
        ("kind", json!("sql#database")),
        ("instance", instance["name"].clone()),
        ("project", json!(call.project)),
        ("selfLink", json!(link)),
        ("etag", json!(cloud.fingerprint())),
    ];
    for (member, value) in members {
        body[member] = value;
    }
    for (member, value) in [("charset", "UTF8"), ("collation", "en_US.UTF8")] {
        if body.get(member).is_none() {
            body[member] = value.into();
        }
    }
    below(
        cloud,
        call,
        "CREATE_DATABASE",
        Box::new(move |cloud| {
            cloud.put(&key, body);
            if let Some(stand) = &cloud.stand {
                (stand.apply)(Change::Database { name: &name });
            }
            Ok(Value::Null)
        }),
    )
}

fn delete_database(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    running(cloud, call)?;
    get(cloud, call)?;
    let key = call.key();
    below(
        cloud,
        call,
        "DELETE_DATABASE",
        Box::new(move |cloud| {
            cloud.objects.remove(&key);
            Ok(Value::Null)
        }),
    )
}

fn insert_user(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let instance = running(cloud, call)?;
    let mut body = call.body.clone();
    let name = text(&body, "/name").to_owned();
    if name.is_empty() {
        return Err(invalid("Invalid request: User name is missing."));
    }
    let key = format!("{}/{name}", call.key());
    let password = body.as_object_mut().and_then(|members| members.shift_remove("password"));
    let members = [
        ("kind", json!("sql#user")),
        ("instance", instance["name"].clone()),
        ("project", json!(call.project)),
        ("host", json!("")),
        ("etag", json!(cloud.fingerprint())),
    ];
    for (member, value) in members {
        body[member] = value;
    }
    // A user that exists gets the new password.
    below(
        cloud,
        call,
        "CREATE_USER",
        Box::new(move |cloud| {
            cloud.put(&key, body);
            set_password(cloud, &name, password.as_ref());
            Ok(Value::Null)
        }),
    )
}

/// Sets a password where a real server stands for the simulated ones.
fn set_password(cloud: &Cloud, user: &str, password: Option<&Value>) {
    if let (Some(stand), Some(password)) = (&cloud.stand, password.and_then(Value::as_str)) {
        (stand.apply)(Change::Password { user, password });
    }
}

fn user_key(cloud: &Cloud, call: &Call<'_>) -> Result<String, Problem> {
    let key = format!("{}/{}", call.key(), call.parameter("name").unwrap_or_default());
    match cloud.get(&key) {
        Some(_) => Ok(key),
        None => Err(refused(404, "notFound", "Not Found: the user does not exist in the instance.")),
    }
}

fn update_user(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    running(cloud, call)?;
    let name = user_key(cloud, call)?.rsplit('/').next().unwrap_or_default().to_owned();
    let password = call.body.get("password").cloned();
    let effect: Effect = Box::new(move |cloud| {
        set_password(cloud, &name, password.as_ref());
        Ok(Value::Null)
    });
    below(cloud, call, "UPDATE_USER", effect)
}

fn delete_user(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    running(cloud, call)?;
    let key = user_key(cloud, call)?;
    let name = key.rsplit('/').next().unwrap_or_default().to_owned();
    if cloud.owners.contains(&key) {
        let message = format!(
            "Invalid request: failed to delete user {name}: role \"{name}\" cannot be dropped because some objects \
                depend on it."
        );
        if cloud.random.number().is_multiple_of(2) {
            return Err(invalid(message));
        }
        let error = json!({ "code": "INTERNAL_ERROR", "message": "An unknown error occurred." });
        return below(cloud, call, "DELETE_USER", Box::new(move |_| Err(error)));
    }
    below(
        cloud,
        call,
        "DELETE_USER",
        Box::new(move |cloud| {
            cloud.objects.remove(&key);
            Ok(Value::Null)
        }),
    )
}

fn tiers(_: &mut Cloud, _: &Call<'_>) -> Result<Value, Problem> {
    let regions: Vec<&str> = super::compute::REGIONS.iter().map(|(name, _)| *name).collect();
    let tier = |name: &str, ram: u64| {
        json!({ "kind": "sql#tier", "tier": name, "RAM": ram.to_string(),
        "DiskQuota": "70368744177664", "region": regions })
    };
    let all = [
        tier("db-f1-micro", 643_825_664),
        tier("db-g1-small", 1_825_361_101),
        tier("db-perf-optimized-N-2", 17_179_869_184),
    ];
    Ok(json!({ "kind": "sql#tiersList", "items": all }))
}
