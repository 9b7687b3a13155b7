//! Servers.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{INSTANCES, Instance, Rds, check_role, combination, groups, invalid, pairs, tag_list};
use crate::aws::kms;
use crate::postgres::Change;
use crate::{Call, Fault, Market, Scope, Stages, World, passes, timestamp};

/// Major versions, and the minor version that each stands for.
pub(super) const VERSIONS: &[(u32, &str)] = &[(14, "14.19"), (15, "15.14"), (16, "16.10"), (17, "17.6"), (18, "18.1")];
/// The families of classes with their sizes.
const CLASSES: &[&str] = &["db.t4g.", "db.m6g.", "db.m7g.", "db.r6g.", "db.r7g."];
const SIZES: &[&str] = &["medium", "large", "xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge"];

const MINUTE: Duration = Duration::from_secs(60);
/// After which time a change shows as `modifying`.
const LATE: Duration = Duration::from_secs(10);

pub(super) fn not_found(name: &str) -> Fault {
    Fault::new("DBInstanceNotFound", format!("DBInstance {name} not found."))
}

fn state_fault(message: impl Into<String>) -> Fault {
    Fault::new("InvalidDBInstanceState", message)
}

fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes[0].is_ascii_alphabetic()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        && !name.ends_with('-')
        && !name.contains("--")
}

fn check_class(class: &str) -> Result<(), Fault> {
    let is_known = CLASSES.iter().any(|family| class.strip_prefix(family).is_some_and(|size| SIZES.contains(&size)));
    if is_known { Ok(()) } else { Err(invalid(format!("Invalid DB Instance class: {class}"))) }
}

fn check_password(password: &str) -> Result<(), Fault> {
    let is_valid = (8..=128).contains(&password.len())
        && password.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'@' | b'"'));
    match is_valid {
        true => Ok(()),
        false => Err(invalid(
            "The parameter MasterUserPassword is not a valid password. Only printable ASCII characters \
                              besides '/', '@', '\"', ' ' may be used.",
        )),
    }
}

/// The full version that a version stands for.
fn version(wanted: &str) -> Result<&'static str, Fault> {
    let found = VERSIONS.iter().find(|(major, full)| wanted == major.to_string() || wanted == *full);
    found.map(|(_, full)| *full).ok_or_else(|| combination(format!("Cannot find version {wanted} for postgres")))
}

fn major(version: &str) -> &str {
    version.split('.').next().unwrap_or_default()
}

/// The ARN of the key that a server is encrypted with.
fn check_key(world: &World, call: &Call, id: &str) -> Result<String, Fault> {
    let key = kms::key(world, &call.scope(), id).filter(|key| key.state() == "Enabled");
    let fault = || Fault::new("KMSKeyNotAccessibleFault", format!("The KMS key {id} is not accessible."));
    key.map(|key| key.arn.clone()).ok_or_else(fault)
}

fn check_family(world: &World, call: &Call, group: &str, version: &str) -> Result<(), Fault> {
    let family = groups::family(world, call, group).ok_or_else(|| groups::no_parameter_group(group))?;
    let wanted = format!("postgres{}", major(version));
    match family == wanted {
        true => Ok(()),
        false => Err(combination(format!(
            "The parameter group {group} with DBParameterGroupFamily {family} can't be used for this instance. Please use a \
             parameter group with DBParameterGroupFamily {wanted}."
        ))),
    }
}

/// The minutes of a day.
const DAY: u32 = 1_440;
/// The days in windows.
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

fn minutes(time: &str) -> Option<u32> {
    let (hours, minutes) = time.split_once(':')?;
    let (hours, minutes): (u32, u32) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

/// The first minute of a daily window, and its minutes.
fn daily(window: &str) -> Option<(u32, u32)> {
    let (from, to) = window.split_once('-')?;
    let (from, to) = (minutes(from)?, minutes(to)?);
    Some((from, (DAY + to - from) % DAY))
}

/// The same of a weekly window, in a week.
pub(in crate::aws) fn weekly(window: &str) -> Option<(u32, u32)> {
    let of = |text: &str| {
        let (day, time) = text.split_once(':')?;
        let day = DAYS.iter().position(|one| one.eq_ignore_ascii_case(day))?;
        Some(u32::try_from(day).ok()? * DAY + minutes(time)?)
    };
    let (from, to) = window.split_once('-')?;
    let (from, to) = (of(from)?, of(to)?);
    Some((from, (7 * DAY + to - from) % (7 * DAY)))
}

/// Whether backups, which are taken daily, overlap with maintenance.
fn is_overlap(backups: (u32, u32), maintenance: (u32, u32)) -> bool {
    let (one, other) = (backups, (maintenance.0 % DAY, maintenance.1));
    (DAY + other.0 - one.0) % DAY < one.1 || (DAY + one.0 - other.0) % DAY < other.1
}

/// Checks the windows that a server has from now on.
fn check_windows(backups: &str, maintenance: &str) -> Result<(), Fault> {
    let Some(daily) = daily(backups).filter(|(_, length)| *length >= 30) else {
        return Err(invalid(format!("The backup window {backups} is not valid")));
    };
    let Some(weekly) = weekly(maintenance) else {
        return Err(invalid(format!(
            "Invalid maintenance window format: {maintenance}. Should be specified as a range ddd:hh24:mi-ddd:hh24:mi (24H Clock \
             UTC). Example: Sun:23:45-Mon:00:15"
        )));
    };
    match weekly.1 {
        ..30 => Err(invalid("The maintenance window must be at least 30 minutes.")),
        DAY.. => Err(invalid("Maintenance window must be less than 24 hours.")),
        _ if is_overlap(daily, weekly) => Err(invalid("The backup window and maintenance window must not overlap.")),
        _ => Ok(()),
    }
}

/// The windows that a new server has: RDS chooses those that are left out.
fn windows(call: &Call) -> (String, String) {
    let chosen = |backups: &str| {
        let is_free =
            |window: &&&str| weekly(window).zip(daily(backups)).is_some_and(|(one, all)| !is_overlap(all, one));
        ["wed:06:38-wed:07:08", "wed:18:38-wed:19:08"].iter().find(is_free).copied().unwrap_or_default()
    };
    let backups = call.str("PreferredBackupWindow").unwrap_or("03:00-03:30");
    let maintenance = call.str("PreferredMaintenanceWindow").unwrap_or_else(|| chosen(backups));
    (backups.to_owned(), maintenance.to_lowercase())
}

fn arn(call: &Call, name: &str) -> String {
    call.arn(&format!("db:{name}"))
}

fn zone(call: &Call) -> String {
    format!("{}a", call.region)
}

/// The zone of the standby of a server that has one.
fn other_zone(shown: &Value) -> String {
    let zone = shown["AvailabilityZone"].as_str().unwrap_or_default();
    match zone.strip_suffix('a') {
        Some(region) => format!("{region}b"),
        None => format!("{}a", &zone[..zone.len().saturating_sub(1)]),
    }
}

/// Checks what new servers and replicas have in common, and takes the capacity.
fn admit(world: &mut World, call: &Call, name: &str, class: &str) -> Result<(), Fault> {
    if !is_name(name) {
        return Err(invalid(
            "The parameter DBInstanceIdentifier is not a valid identifier. Identifiers must begin with a \
                            letter; must contain only ASCII letters, digits, and hyphens; and must not end with a hyphen or \
                            contain two consecutive hyphens.",
        ));
    }
    check_class(class)?;
    let (backups, maintenance) = windows(call);
    check_windows(&backups, &maintenance)?;
    if call.int("BackupRetentionPeriod").is_some_and(|days| !(0..=35).contains(&days)) {
        return Err(invalid("Invalid backup retention period: it must be between 0 and 35."));
    }
    let subnet_group = subnet_group(world, call);
    if groups::subnets(world, call, &subnet_group).is_none() {
        return Err(groups::no_subnet_group(&subnet_group));
    }
    let limit = world.quotas.of(&call.scope(), &INSTANCES);
    let instances = &world.state::<Rds>(&call.scope()).instances;
    if instances.contains_key(name) {
        return Err(Fault::new("DBInstanceAlreadyExists", "DB instance already exists"));
    }
    if instances.len() as f64 >= limit {
        return Err(Fault::new("InstanceQuotaExceeded", "The maximum number of DB instances was reached."));
    }
    if !world.capacity.take(&zone(call), class, Market::OnDemand, 1) {
        let message = format!(
            "Cannot create a database instance because no hosts with sufficient capacity for {class} are there"
        );
        return Err(Fault::new("InsufficientDBInstanceCapacity", message));
    }
    Ok(())
}

/// The subnet group of a new server: a replica in the region of its source has that of the source.
fn subnet_group(world: &mut World, call: &Call) -> String {
    if let Some(named) = call.str("DBSubnetGroupName") {
        return named.to_lowercase();
    }
    let source = call.str("SourceDBInstanceIdentifier").unwrap_or_default().to_lowercase();
    let source = world.state::<Rds>(&call.scope()).instances.get(&source);
    source.map(|source| source.subnet_group.clone()).unwrap_or_default()
}

/// Adds a server with what the input says, under what `at_first` says.
fn insert(
    world: &mut World,
    call: &Call,
    at_first: Value,
    password: String,
    stages: &[(Duration, &'static str)],
) -> Value {
    let name = call.text("DBInstanceIdentifier").to_lowercase();
    let subnet_group = subnet_group(world, call);
    let (backups, maintenance) = windows(call);
    let mut shown = json!({
        "DBInstanceIdentifier": name,
        "DBInstanceArn": arn(call, &name),
        "DbiResourceId": format!("db-{}", call.random.base32(26)),
        "DBInstanceClass": call.text("DBInstanceClass"),
        "Engine": "postgres",
        "DbInstancePort": 0,
        "InstanceCreateTime": timestamp(call.now),
        "AvailabilityZone": zone(call),
        "MultiAZ": call.is("MultiAZ"),
        "PubliclyAccessible": call.is("PubliclyAccessible"),
        "StorageType": call.str("StorageType").unwrap_or("gp2"),
        "AutoMinorVersionUpgrade": call.input.get("AutoMinorVersionUpgrade").cloned().unwrap_or(true.into()),
        "CopyTagsToSnapshot": call.is("CopyTagsToSnapshot"),
        "DeletionProtection": call.is("DeletionProtection"),
        "PerformanceInsightsEnabled": call.is("EnablePerformanceInsights"),
        "CACertificateIdentifier": "rds-ca-rsa2048-g1",
        "BackupRetentionPeriod": call.int("BackupRetentionPeriod").unwrap_or(1),
        "PreferredBackupWindow": backups,
        "PreferredMaintenanceWindow": maintenance,
        "VpcSecurityGroups": groups_shown(&call.texts("VpcSecurityGroupIds")),
        "DBParameterGroups": groups_of(call.str("DBParameterGroupName").unwrap_or("default.postgres")),
    });
    if let (Some(shown), Value::Object(first)) = (shown.as_object_mut(), at_first) {
        shown.extend(first);
    }
    let arn = arn(call, &name);
    for subnet in groups::subnets(world, call, &subnet_group).unwrap_or_default() {
        world.uses.add(&arn, &subnet);
    }
    call.texts("VpcSecurityGroupIds").into_iter().for_each(|group| world.uses.add(&arn, group));
    let status = call.stages("creating", stages);
    let ready = status.last().1.unwrap_or(call.now);
    let instance = Instance { status, shown, password, subnet_group, ready };
    world.state::<Rds>(&call.scope()).instances.insert(name.clone(), instance);
    one(world, call, &name)
}

/// The parameter group of a server as answers show it.
fn groups_of(name: &str) -> Value {
    json!([{ "DBParameterGroupName": name, "ParameterApplyStatus": "in-sync" }])
}

fn shown_group(shown: &Value) -> String {
    shown["DBParameterGroups"][0]["DBParameterGroupName"].as_str().unwrap_or_default().to_owned()
}

fn groups_shown(ids: &[&str]) -> Value {
    ids.iter().map(|id| json!({ "VpcSecurityGroupId": id, "Status": "active" })).collect()
}

/// A server as answers show it.
fn one(world: &World, call: &Call, name: &str) -> Value {
    let Some(instance) = world.find::<Rds>(&call.scope()).and_then(|state| state.instances.get(name)) else {
        return Value::Null;
    };
    let mut shown = instance.shown.clone();
    shown["DBInstanceStatus"] = instance.status.at(call.now).into();
    if shown["MultiAZ"] == true {
        shown["SecondaryAvailabilityZone"] = other_zone(&shown).into();
    }
    if let Some(group) = groups::subnet_group(world, call, &instance.subnet_group) {
        shown["DBSubnetGroup"] = group;
    }
    if instance.ready <= call.now {
        let known = world.find::<Rds>(&call.scope()).and_then(|state| state.addresses.get(name).cloned());
        let host = known.unwrap_or_else(|| format!("{name}.c{}.{}.rds.amazonaws.com", &call.account[..8], call.region));
        let port = instance.shown["Port"].as_i64().unwrap_or(5432);
        shown["Endpoint"] = json!({ "Address": host, "Port": port });
    }
    if let Some(members) = shown.as_object_mut() {
        members.shift_remove("Port");
    }
    shown["TagList"] = tag_list(world, &arn(call, name)).into();
    shown
}

pub(super) fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("DBInstanceIdentifier").to_lowercase();
    let tags = pairs(call)?;
    if call.text("Engine") != "postgres" {
        return Err(invalid(format!("Invalid DB engine: {}", call.text("Engine"))));
    }
    let version = version(call.str("EngineVersion").unwrap_or("17"))?;
    let storage = call.int("AllocatedStorage").unwrap_or_default();
    let kind = call.str("StorageType").unwrap_or("gp2");
    let smallest = if kind == "gp3" { 20 } else { 5 };
    if !(smallest..=65_536).contains(&storage) {
        let message = format!("Invalid storage size for engine name postgres and storage type {kind}: {storage}");
        return Err(invalid(message));
    }
    let password = call.str("MasterUserPassword").unwrap_or_default();
    check_password(password)?;
    let user = call.str("MasterUsername").unwrap_or_default();
    if user.is_empty() || ["admin", "rdsadmin"].contains(&user) {
        let message = format!("MasterUsername {user} cannot be used as it is a reserved word used by the engine");
        return Err(invalid(message));
    }
    if let Some(group) = call.str("DBParameterGroupName") {
        check_family(world, call, group, version)?;
    }
    let key = call.str("KmsKeyId").map(|id| check_key(world, call, id)).transpose()?;
    check_role(
        world,
        call,
        "Unable to create the resource. Verify that you have permission to create service linked role. Otherwise wait and try \
         again later",
    )?;
    admit(world, call, &name, call.text("DBInstanceClass"))?;
    let mut at_first = json!({
        "EngineVersion": version,
        "AllocatedStorage": storage,
        "MasterUsername": user,
        "StorageEncrypted": call.is("StorageEncrypted"),
        "Port": call.int("Port").unwrap_or(5432),
    });
    if let Some(database) = call.str("DBName") {
        at_first["DBName"] = database.into();
    }
    if let Some(key) = key {
        at_first["KmsKeyId"] = key.into();
    }
    let has_backups = call.int("BackupRetentionPeriod").unwrap_or(1) > 0;
    let mut stages = vec![(6 * MINUTE, "available")];
    if has_backups {
        stages = vec![(6 * MINUTE, "backing-up"), (8 * MINUTE, "available")];
    }
    let state = world.state::<Rds>(&call.scope());
    if let Some(stand) = &state.stand {
        (stand.apply)(Change::Password { user: call.str("MasterUsername").unwrap_or_default(), password });
        (stand.apply)(Change::Database { name: call.str("DBName").unwrap_or("postgres") });
        state.addresses.insert(name.clone(), stand.host.clone());
    }
    world.tags.set(&arn(call, &name), tags, call.visible());
    Ok(json!({ "DBInstance": insert(world, call, at_first, password.to_owned(), &stages) }))
}

/// The place and the name that an ARN or a name stands for.
fn place(call: &Call, id: &str) -> (Scope, String) {
    let parts: Vec<&str> = id.split(':').collect();
    match parts.as_slice() {
        ["arn", _, "rds", region, account, "db", name] => (Scope::new(*account, *region), (*name).to_owned()),
        _ => (call.scope(), id.to_lowercase()),
    }
}

pub(super) fn create_replica(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("DBInstanceIdentifier").to_lowercase();
    let tags = pairs(call)?;
    let asked = call.str("SourceDBInstanceIdentifier").unwrap_or_default();
    let (scope, source_name) = place(call, asked);
    let source = world.find::<Rds>(&scope).and_then(|state| state.instances.get(&source_name));
    let source = source.ok_or_else(|| not_found(asked))?;
    let (shown, password) = (source.shown.clone(), source.password.clone());
    if source.status.at(call.now) != "available" {
        return Err(state_fault(format!("Database instance {source_name} is not in available state.")));
    }
    if shown["BackupRetentionPeriod"] == 0 {
        return Err(state_fault(
            "Automated backups are not enabled for this database instance. To enable automated backups, \
                                use ModifyDBInstance to set the backup retention period to a non-zero value.",
        ));
    }
    let is_far = scope != call.scope();
    if !asked.starts_with("arn:") && call.str("DBSubnetGroupName").is_some() {
        let message = "DBSubnetGroupName should not be specified for read replicas that are created in the same region as the master";
        return Err(Fault::new("DBSubnetGroupNotAllowedFault", message));
    }
    let key = call.str("KmsKeyId").map(|id| check_key(world, call, id)).transpose()?;
    if is_far && shown["StorageEncrypted"] == true && key.is_none() {
        return Err(combination("KmsKeyId is required to create an encrypted read replica in another region"));
    }
    let version = shown["EngineVersion"].as_str().unwrap_or_default().to_owned();
    if call.str("DBParameterGroupName").is_some() {
        return Err(combination("A parameter group can't be specified during Read Replica creation for postgres."));
    }
    // The group of its source, in another region the default one.
    let group = if is_far { format!("default.postgres{}", major(&version)) } else { shown_group(&shown) };
    admit(world, call, &name, call.str("DBInstanceClass").unwrap_or_default())?;
    let mut at_first = Map::new();
    at_first.insert("DBParameterGroups".to_owned(), groups_of(&group));
    for member in ["EngineVersion", "AllocatedStorage", "MasterUsername", "StorageEncrypted", "DBName", "KmsKeyId"] {
        if let Some(value) = shown.get(member) {
            at_first.insert(member.to_owned(), value.clone());
        }
    }
    if let Some(key) = key {
        at_first.insert("KmsKeyId".to_owned(), key.into());
    }
    at_first.insert("Port".to_owned(), call.int("Port").unwrap_or(5432).into());
    at_first.insert("BackupRetentionPeriod".to_owned(), 0.into());
    let source_id = if is_far { shown["DBInstanceArn"].clone() } else { source_name.clone().into() };
    at_first.insert("ReadReplicaSourceDBInstanceIdentifier".to_owned(), source_id);
    let replica = if is_far { arn(call, &name) } else { name.clone() };
    if let Some(source) = world.state::<Rds>(&scope).instances.get_mut(&source_name) {
        let mut replicas = source.shown["ReadReplicaDBInstanceIdentifiers"].as_array().cloned().unwrap_or_default();
        replicas.push(replica.into());
        source.shown["ReadReplicaDBInstanceIdentifiers"] = replicas.into();
    }
    world.tags.set(&arn(call, &name), tags, call.visible());
    let stages = [(20 * MINUTE, "available")];
    Ok(json!({ "DBInstance": insert(world, call, at_first.into(), password, &stages) }))
}

pub(super) fn describe_versions(_: &mut World, call: &Call) -> Result<Value, Fault> {
    let is_meant = call.str("Engine").is_none_or(|engine| engine == "postgres");
    let rows = VERSIONS.iter().filter(|_| is_meant);
    let rows = rows.map(|(_, full)| json!({ "Engine": "postgres", "EngineVersion": full })).collect();
    call.page("DBEngineVersions", rows, invalid("Invalid marker"))
}

pub(super) fn describe(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let asked = call.str("DBInstanceIdentifier").map(|id| place(call, id).1);
    let names: Vec<String> = world.state::<Rds>(&call.scope()).instances.keys().cloned().collect();
    if let Some(asked) = asked.as_ref().filter(|asked| !names.contains(asked)) {
        return Err(not_found(asked));
    }
    let mut found = Vec::new();
    for name in names.iter().filter(|name| asked.as_ref().is_none_or(|asked| asked == *name)) {
        let shown = one(world, call, name);
        let field = |filter: &str| match filter {
            "db-instance-id" => Some(vec![name.clone(), arn(call, name)]),
            "dbi-resource-id" => Some(vec![shown["DbiResourceId"].as_str().unwrap_or_default().to_owned()]),
            "engine" => Some(vec!["postgres".to_owned()]),
            _ => None,
        };
        let filters = call.list("Filters");
        if passes(filters, &Default::default(), field).map_err(|_| invalid("Unrecognized filter name"))? {
            found.push(shown);
        }
    }
    call.page("DBInstances", found, invalid("Invalid marker"))
}

/// Statuses in which a server accepts changes.
const CHANGEABLE: &[&str] = &[
    "available",
    "backing-up",
    "incompatible-option-group",
    "incompatible-parameters",
    "storage-full",
    "storage-optimization",
];

pub(super) fn modify(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("DBInstanceIdentifier").to_lowercase();
    let found = world.find::<Rds>(&call.scope()).and_then(|state| state.instances.get(&name));
    let instance = found.ok_or_else(|| not_found(&name))?;
    let (shown, status) = (instance.shown.clone(), instance.status.at(call.now));
    if !CHANGEABLE.contains(&status) {
        return Err(state_fault(format!("Database instance is not in available state: {name} is {status}.")));
    }
    // What is shown at once, and what only when the status is over.
    let (mut at_once, mut later) = (Map::new(), Map::new());
    let mut stages: Vec<(Duration, &'static str)> = Vec::new();
    let busy = |after: Duration| vec![(LATE, "modifying"), (after, "available")];
    for (member, shown_as) in [
        ("AutoMinorVersionUpgrade", "AutoMinorVersionUpgrade"),
        ("CopyTagsToSnapshot", "CopyTagsToSnapshot"),
        ("DeletionProtection", "DeletionProtection"),
        ("EnablePerformanceInsights", "PerformanceInsightsEnabled"),
        ("PreferredBackupWindow", "PreferredBackupWindow"),
    ] {
        if let Some(value) = call.input.get(member) {
            at_once.insert(shown_as.to_owned(), value.clone());
        }
    }
    if let Some(window) = call.str("PreferredMaintenanceWindow") {
        at_once.insert("PreferredMaintenanceWindow".to_owned(), window.to_lowercase().into());
    }
    let then = |member: &str| at_once.get(member).unwrap_or(&shown[member]).as_str().unwrap_or_default().to_owned();
    check_windows(&then("PreferredBackupWindow"), &then("PreferredMaintenanceWindow"))?;
    if let Some(public) = call.input.get("PubliclyAccessible").filter(|public| **public != shown["PubliclyAccessible"])
    {
        later.insert("PubliclyAccessible".to_owned(), public.clone());
        stages = busy(2 * MINUTE);
    }
    if call.input.get("VpcSecurityGroupIds").is_some() {
        later.insert("VpcSecurityGroups".to_owned(), groups_shown(&call.texts("VpcSecurityGroupIds")));
        stages = busy(MINUTE);
    }
    if let Some(days) = call.int("BackupRetentionPeriod") {
        if !(0..=35).contains(&days) {
            return Err(invalid("Invalid backup retention period: it must be between 0 and 35."));
        }
        later.insert("BackupRetentionPeriod".to_owned(), days.into());
        stages = busy(MINUTE);
    }
    if let Some(class) = call.str("DBInstanceClass") {
        check_class(class)?;
        later.insert("DBInstanceClass".to_owned(), class.into());
        stages = busy(7 * MINUTE);
    }
    if let Some(on) = call.input.get("MultiAZ") {
        later.insert("MultiAZ".to_owned(), on.clone());
        stages = busy(12 * MINUTE);
    }
    if let Some(kind) = call.str("StorageType") {
        later.insert("StorageType".to_owned(), kind.into());
        stages = busy(5 * MINUTE);
    }
    if let Some(wanted) = call.int("AllocatedStorage") {
        let there = shown["AllocatedStorage"].as_i64().unwrap_or_default();
        if status == "storage-optimization" {
            let message = "You can't currently modify the storage of this DB instance because the previous storage modification \
                           is being optimized.";
            return Err(combination(message));
        }
        if wanted < there {
            let message = format!("Requested storage size ({wanted}) cannot be less than the current size ({there})");
            return Err(combination(message));
        }
        let smallest = there + (there + 9) / 10;
        later.insert("AllocatedStorage".to_owned(), wanted.max(smallest).into());
        stages = vec![(LATE, "modifying"), (3 * MINUTE, "storage-optimization"), (60 * MINUTE, "available")];
    }
    let mut engine = shown["EngineVersion"].as_str().unwrap_or_default().to_owned();
    if let Some(wanted) = call.str("EngineVersion") {
        let wanted = version(wanted)?;
        let number = |version: &str| major(version).parse::<u32>().unwrap_or_default();
        if number(wanted) < number(&engine) {
            return Err(combination(format!("Cannot upgrade postgres from {engine} to {wanted}")));
        }
        if number(wanted) > number(&engine) && !call.is("AllowMajorVersionUpgrade") {
            let message = "The AllowMajorVersionUpgrade flag must be present when upgrading to a new major version.";
            return Err(combination(message));
        }
        wanted.clone_into(&mut engine);
        later.insert("EngineVersion".to_owned(), wanted.into());
        stages = vec![(LATE, "upgrading"), (25 * MINUTE, "available")];
    }
    // RDS exchanges a group of its own itself.
    let own = || shown["DBParameterGroups"][0]["DBParameterGroupName"].as_str();
    let kept = || own().filter(|group| !group.starts_with("default."));
    if let Some(group) = call.str("DBParameterGroupName").or_else(kept) {
        check_family(world, call, group, &engine)?;
    }
    if let Some(group) = call.str("DBParameterGroupName") {
        let one = json!([{ "DBParameterGroupName": group, "ParameterApplyStatus": "pending-reboot" }]);
        later.insert("DBParameterGroups".to_owned(), one);
        if stages.is_empty() {
            stages = busy(MINUTE);
        }
    }
    if let Some(password) = call.str("MasterUserPassword") {
        check_password(password)?;
        if !shown["ReadReplicaSourceDBInstanceIdentifier"].is_null() {
            return Err(state_fault("The password of a read replica is that of its source."));
        }
        at_once.insert("PendingModifiedValues".to_owned(), json!({ "MasterUserPassword": "****" }));
        later.insert("PendingModifiedValues".to_owned(), Value::Null);
        stages = vec![(LATE, "resetting-master-credentials"), (MINUTE, "available")];
    }
    // A change has its effect when `modifying` and the like end: storage is optimized after that.
    let end = stages.get(1).map(|(after, _)| *after);
    if let Some(instance) = world.state::<Rds>(&call.scope()).instances.get_mut(&name) {
        merge(&mut instance.shown, at_once);
        if !stages.is_empty() {
            instance.status = call.stages(status, &stages);
        }
        if let Some(password) = call.str("MasterUserPassword") {
            password.clone_into(&mut instance.password);
        }
    }
    if let Some(end) = end {
        let (scope, key) = (call.scope(), name.clone());
        let password = call.str("MasterUserPassword").map(str::to_owned);
        // A new password takes its time in any case: clients wait until they see that it is being changed.
        let due = if password.is_some() { crate::later(call.now, end) } else { call.due(end) };
        world.defer(due, move |world| {
            let state = world.state::<Rds>(&scope);
            let Some(instance) = state.instances.get_mut(&key) else { return };
            merge(&mut instance.shown, later);
            if let (Some(stand), Some(password)) = (&state.stand, &password) {
                let user = instance.shown["MasterUsername"].as_str().unwrap_or_default();
                (stand.apply)(Change::Password { user, password });
            }
        });
    }
    Ok(json!({ "DBInstance": one(world, call, &name) }))
}

/// Sets members, and removes those that are null.
fn merge(shown: &mut Value, members: Map<String, Value>) {
    let Some(shown) = shown.as_object_mut() else { return };
    for (member, value) in members {
        match value.is_null() {
            true => drop(shown.shift_remove(&member)),
            false => drop(shown.insert(member, value)),
        }
    }
}

pub(super) fn promote(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("DBInstanceIdentifier").to_lowercase();
    let instances = &mut world.state::<Rds>(&call.scope()).instances;
    let instance = instances.get_mut(&name).ok_or_else(|| not_found(&name))?;
    let Some(source) = instance.shown["ReadReplicaSourceDBInstanceIdentifier"].as_str().map(str::to_owned) else {
        return Err(state_fault("DB Instance is not a read replica."));
    };
    let status = instance.status.at(call.now);
    if status != "available" {
        return Err(state_fault(format!("The specified DB instance is not in the available state: it is {status}.")));
    }
    if let Some(window) = call.str("PreferredBackupWindow") {
        check_windows(window, instance.shown["PreferredMaintenanceWindow"].as_str().unwrap_or_default())?;
    }
    instance.status =
        call.stages("available", &[(LATE, "modifying"), (4 * MINUTE, "rebooting"), (5 * MINUTE, "available")]);
    let days = call.int("BackupRetentionPeriod").unwrap_or(1);
    let window = call.str("PreferredBackupWindow").map(str::to_owned);
    let (scope, key) = (call.scope(), name.clone());
    let (source_scope, source_name) = place(call, &source);
    let replica = if source_scope == scope { name.clone() } else { arn(call, &name) };
    world.defer(call.due(4 * MINUTE), move |world| {
        if let Some(instance) = world.state::<Rds>(&scope).instances.get_mut(&key) {
            let mut members = Map::new();
            members.insert("ReadReplicaSourceDBInstanceIdentifier".to_owned(), Value::Null);
            members.insert("BackupRetentionPeriod".to_owned(), days.into());
            if let Some(window) = window {
                members.insert("PreferredBackupWindow".to_owned(), window.into());
            }
            merge(&mut instance.shown, members);
        }
        forget_replica(world, &source_scope, &source_name, &replica);
    });
    Ok(json!({ "DBInstance": one(world, call, &name) }))
}

pub(super) fn reboot(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("DBInstanceIdentifier").to_lowercase();
    let state = world.state::<Rds>(&call.scope());
    let instance = state.instances.get_mut(&name).ok_or_else(|| not_found(&name))?;
    let is_failover = call.is("ForceFailover");
    if is_failover && instance.shown["MultiAZ"] != true {
        return Err(combination(
            "Cannot specify ForceFailover when instance is not configured for MultiAZ or does not support failover.",
        ));
    }
    let status = instance.status.at(call.now);
    if status != "available" {
        return Err(state_fault(format!("Database instance is not in available state: {name} is {status}.")));
    }
    instance.status = call.stages("rebooting", &[(MINUTE, "available")]);
    if is_failover {
        if let Some(stand) = &state.stand {
            (stand.apply)(Change::Failover);
        }
        let (scope, key) = (call.scope(), name.clone());
        world.defer(call.due(4 * MINUTE), move |world| {
            if let Some(instance) = world.state::<Rds>(&scope).instances.get_mut(&key) {
                instance.shown["AvailabilityZone"] = other_zone(&instance.shown).into();
            }
        });
    }
    Ok(json!({ "DBInstance": one(world, call, &name) }))
}

fn forget_replica(world: &mut World, scope: &Scope, source: &str, replica: &str) {
    let source = world.state::<Rds>(scope).instances.get_mut(source);
    let replicas = source.and_then(|source| source.shown["ReadReplicaDBInstanceIdentifiers"].as_array_mut());
    if let Some(replicas) = replicas {
        replicas.retain(|one| one != replica);
    }
}

pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("DBInstanceIdentifier").to_lowercase();
    let state = world.state::<Rds>(&call.scope());
    let instance = state.instances.get(&name).ok_or_else(|| not_found(&name))?;
    let status = instance.status.at(call.now);
    if status == "creating" || status == "deleting" {
        return Err(state_fault(format!("Instance {name} is already being {status}.")));
    }
    if instance.shown["DeletionProtection"] == true {
        return Err(combination(
            "Cannot delete protected DB Instance, please disable deletion protection and try again.",
        ));
    }
    let source = instance.shown["ReadReplicaSourceDBInstanceIdentifier"].as_str().map(str::to_owned);
    let class = instance.shown["DBInstanceClass"].as_str().unwrap_or_default().to_owned();
    match (call.is("SkipFinalSnapshot"), call.str("FinalDBSnapshotIdentifier")) {
        (true, Some(_)) => {
            return Err(combination("FinalDBSnapshotIdentifier cannot be specified with SkipFinalSnapshot."));
        }
        (false, None) => {
            return Err(combination("FinalDBSnapshotIdentifier is required unless SkipFinalSnapshot is specified."));
        }
        (false, Some(_)) if source.is_some() => {
            return Err(combination("FinalDBSnapshotIdentifier can not be specified when deleting a replica instance"));
        }
        (false, Some(snapshot)) if state.snapshots.contains_key(snapshot) => {
            let message =
                format!("Cannot create the snapshot because one with the identifier {snapshot} already exists.");
            return Err(Fault::new("DBSnapshotAlreadyExists", message));
        }
        (false, Some(snapshot)) => drop(state.snapshots.insert(snapshot.to_owned(), name.clone())),
        (true, None) => {}
    }
    if let Some(instance) = state.instances.get_mut(&name) {
        instance.status = Stages::settled("deleting");
    }
    let (scope, key, arn_of, zone) = (call.scope(), name.clone(), arn(call, &name), zone(call));
    let source = source.map(|source| place(call, &source));
    world.defer(call.due(5 * MINUTE), move |world| {
        world.state::<Rds>(&scope).instances.remove(&key);
        world.capacity.give(&zone, &class, Market::OnDemand, 1);
        world.uses.forget(&arn_of);
        world.tags.forget(&arn_of);
        if let Some((source_scope, source)) = source {
            let replica = if source_scope == scope { &key } else { &arn_of };
            forget_replica(world, &source_scope, &source, replica);
        }
    });
    Ok(json!({ "DBInstance": one(world, call, &name) }))
}
