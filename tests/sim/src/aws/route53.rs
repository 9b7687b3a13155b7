//! Route 53: records of hosted zones, and health checks.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{Behaviour, Call, Fault, Quota, Service, Source, Stages, World, timestamp};

/// The service.
pub const SERVICE: Service = Service {
    name: "route53",
    model: "route53",
    operations: &[
        ("ChangeResourceRecordSets", change_records),
        ("ChangeTagsForResource", change_tags),
        ("CreateHealthCheck", create_check),
        ("DeleteHealthCheck", delete_check),
        ("GetChange", get_change),
        ("GetHealthCheck", get_check),
        ("GetHostedZone", get_zone),
        ("ListHealthChecks", list_checks),
        ("ListResourceRecordSets", list_records),
        ("ListTagsForResource", list_tags),
        ("ListTagsForResources", list_tags_of_several),
        ("UpdateHealthCheck", update_check),
    ],
    quotas: &[CHECKS],
    ledger: LEDGER,
};

const CHECKS: Quota =
    Quota { service: "route53", code: "L-ACB674F3", name: "Health checks", value: 200.0, adjustable: true };

const fn row(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "route53", what, source }
}

const RECORDS: Source =
    Source::Documentation("https://docs.aws.amazon.com/Route53/latest/APIReference/API_ChangeResourceRecordSets.html");
const CHECK: Source =
    Source::Documentation("https://docs.aws.amazon.com/Route53/latest/APIReference/API_CreateHealthCheck.html");

const LEDGER: &[Behaviour] = &[
    row("a batch of changes is applied completely or not at all", RECORDS),
    row(
        "CREATE refuses a record that exists, DELETE one that does not exist or has other values: InvalidChangeBatch",
        RECORDS,
    ),
    row("the words of a CREATE that is refused", Source::Recording("https://github.com/AnalogJ/lexicon/issues/179")),
    row(
        "those of a DELETE with other values",
        Source::Recording("https://github.com/kubernetes-sigs/external-dns/issues/732"),
    ),
    row(
        "those of a DELETE of a record that is not there",
        Source::Recording("https://github.com/boto/boto/issues/2887"),
    ),
    row("those of a record beside a CNAME", Source::Recording("https://github.com/hashicorp/terraform/issues/9732")),
    row(
        "those of a CNAME beside a record",
        Source::Recording("https://github.com/ansible-collections/amazon.aws/issues/2694"),
    ),
    row("those of other refusals", Source::LeftOut("callers read the code of a refusal, not its words")),
    row(
        "a CNAME has no other record of its name, and a simple record no weighted or failover one of its type",
        RECORDS,
    ),
    row(
        "a record is in its zone, has values and a TTL or an alias, and a set identifier with a weight or a failover",
        RECORDS,
    ),
    row(
        "changes are PENDING, and INSYNC after a minute at most",
        Source::Documentation("https://docs.aws.amazon.com/Route53/latest/APIReference/API_GetChange.html"),
    ),
    row("lists show changes at once", Source::LeftOut("what comes later are the answers of its DNS servers")),
    row(
        "a weight is 0 to 255, weighted records of a name and type have one TTL, and failover records exclude them",
        Source::Documentation("https://docs.aws.amazon.com/Route53/latest/APIReference/API_ResourceRecordSet.html"),
    ),
    row(
        "the value of an A record is an IPv4 address: ARRDATAIllegalIPv4Address",
        Source::Recording("https://github.com/gomodules/dns/issues/7"),
    ),
    row(
        "records are listed from a name on by reversed labels, with names in lower case that end with a dot, and \\052 for *",
        Source::Documentation(
            "https://docs.aws.amazon.com/Route53/latest/APIReference/API_ListResourceRecordSets.html",
        ),
    ),
    row(
        "a repeated CallerReference returns the health check, or refuses other settings: HealthCheckAlreadyExists",
        CHECK,
    ),
    row("so it does for one that was deleted", CHECK),
    row("a health check probes no address that the internet does not reach: InvalidInput", CHECK),
    row(
        "an address is neither added to a health check nor removed from it: InvalidInput",
        Source::Documentation("https://docs.aws.amazon.com/Route53/latest/APIReference/API_UpdateHealthCheck.html"),
    ),
    row("the words of both refusals", Source::LeftOut("callers read the code of a refusal, not its words")),
    row(
        "an outdated HealthCheckVersion is refused: HealthCheckVersionMismatch",
        Source::Documentation("https://docs.aws.amazon.com/Route53/latest/APIReference/API_UpdateHealthCheck.html"),
    ),
    row(
        "a health check in records is deleted, and they are then answered as if it were healthy",
        Source::Documentation("https://docs.aws.amazon.com/Route53/latest/APIReference/API_DeleteHealthCheck.html"),
    ),
    row(
        "a health check has ten tags at most",
        Source::Documentation("https://docs.aws.amazon.com/Route53/latest/APIReference/API_ChangeTagsForResource.html"),
    ),
];

/// What an account holds.
#[derive(Debug, Default)]
pub struct Route53 {
    /// Hosted zones by their ids.
    pub zones: BTreeMap<String, Zone>,
    /// Health checks by their ids, as descriptions show them.
    pub checks: BTreeMap<String, Value>,
    changes: BTreeMap<String, (Timestamp, Stages)>,
    /// References of health checks, also of deleted ones, with their settings.
    references: BTreeMap<String, (String, Value)>,
}

/// A hosted zone.
#[derive(Debug)]
pub struct Zone {
    /// Its name, which ends with a dot.
    pub name: String,
    /// Whether it answers in VPCs only.
    pub private: bool,
    /// Its records in the order of lists: by reversed labels, type and set identifier.
    pub records: BTreeMap<RecordKey, Value>,
}

/// Reversed labels, type, set identifier.
pub type RecordKey = (Vec<String>, String, String);

/// Creates a hosted zone as an account's owner does, with the records that each has.
pub fn zone(world: &mut World, scope: &crate::Scope, id: &str, name: &str, private: bool) {
    let name = full(name);
    let values = |text: &str| json!([{ "Value": text }]);
    let soa = json!({ "Name": name, "Type": "SOA", "TTL": 900, "ResourceRecords": values("ns.example. hostmaster.example. 1 7200 900 1209600 86400") });
    let ns = json!({ "Name": name, "Type": "NS", "TTL": 172_800, "ResourceRecords": values("ns.example.") });
    let records = [soa, ns].into_iter().map(|record| (key(&record), record)).collect();
    world.state::<Route53>(scope).zones.insert(id.to_owned(), Zone { name, private, records });
}

/// A name in lower case that ends with a dot, with `*` as its code.
fn full(name: &str) -> String {
    format!("{}.", name.trim_end_matches('.').to_ascii_lowercase().replace('*', "\\052"))
}

fn labels(name: &str) -> Vec<String> {
    full(name).trim_end_matches('.').rsplit('.').map(str::to_owned).collect()
}

fn key(record: &Value) -> RecordKey {
    let text = |member: &str| record[member].as_str().unwrap_or_default().to_owned();
    (labels(&text("Name")), text("Type"), text("SetIdentifier"))
}

fn id<'a>(call: &'a Call, member: &str) -> &'a str {
    call.text(member).rsplit('/').next().unwrap_or_default()
}

fn no_zone(id: &str) -> Fault {
    Fault::new("NoSuchHostedZone", format!("No hosted zone found with ID: {id}"))
}

fn no_check(id: &str) -> Fault {
    Fault::new("NoSuchHealthCheck", format!("A health check with id {id} does not exist."))
}

fn shown(id: &str, zone: &Zone) -> Value {
    json!({ "HostedZone": {
        "Id": format!("/hostedzone/{id}"), "Name": zone.name, "CallerReference": id,
        "Config": { "PrivateZone": zone.private }, "ResourceRecordSetCount": zone.records.len(),
    } })
}

fn get_zone(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = id(call, "Id");
    let state = world.state::<Route53>(&call.global());
    let zone = state.zones.get(id).ok_or_else(|| no_zone(id))?;
    Ok(shown(id, zone))
}

/// A new change, as answers show it.
fn change(world: &mut World, call: &Call) -> Value {
    let id = format!("C{}", call.random.base32(20));
    let stages = call.stages("PENDING", &[(Duration::from_secs(60), "INSYNC")]);
    let answer = json!({ "Id": format!("/change/{id}"), "Status": "PENDING", "SubmittedAt": timestamp(call.now) });
    world.state::<Route53>(&call.global()).changes.insert(id, (call.now, stages));
    answer
}

fn get_change(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = id(call, "Id");
    let state = world.state::<Route53>(&call.global());
    let Some((submitted, stages)) = state.changes.get(id) else {
        return Err(Fault::new("NoSuchChange", format!("Could not find resource with ID: {id}")));
    };
    let info =
        json!({ "Id": format!("/change/{id}"), "Status": stages.at(call.now), "SubmittedAt": timestamp(*submitted) });
    Ok(json!({ "ChangeInfo": info }))
}

fn refused(why: &str) -> Fault {
    Fault::new("InvalidChangeBatch", format!("[{why}]"))
}

fn change_records(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let zone_id = id(call, "HostedZoneId");
    let state = world.state::<Route53>(&call.global());
    let checks: Vec<&String> = state.checks.keys().collect();
    let zone = state.zones.get(zone_id).ok_or_else(|| no_zone(zone_id))?;
    let mut records = zone.records.clone();
    for change in call.input["ChangeBatch"]["Changes"].as_array().into_iter().flatten() {
        let mut record = change["ResourceRecordSet"].clone();
        let (name, kind) = (full(record["Name"].as_str().unwrap_or_default()), record["Type"].clone());
        let kind = kind.as_str().unwrap_or_default();
        record["Name"] = json!(name);
        if let Some(target) = record.get_mut("AliasTarget") {
            target["DNSName"] = json!(full(target["DNSName"].as_str().unwrap_or_default()));
        }
        let set = record["SetIdentifier"].as_str().map_or(String::new(), |set| format!(", set-identifier='{set}'"));
        let (key, words) = (key(&record), format!("resource record set [name='{name}', type='{kind}'{set}]"));
        match (change["Action"].as_str(), records.get(&key)) {
            (Some("DELETE"), None) => return Err(refused(&format!("Tried to delete {words} but it was not found"))),
            (Some("DELETE"), Some(there)) if *there != record => {
                let why = format!("Tried to delete {words} but the values provided do not match the current values");
                return Err(refused(&why));
            }
            (Some("DELETE"), Some(_)) => {
                records.remove(&key);
                continue;
            }
            (Some("CREATE"), Some(_)) => {
                return Err(refused(&format!("Tried to create {words} but it already exists")));
            }
            _ => {}
        }
        check(zone, &records, &record, &checks).map_err(|why| refused(&why))?;
        records.insert(key, record);
    }
    let zones = &mut world.state::<Route53>(&call.global()).zones;
    if let Some(zone) = zones.get_mut(zone_id) {
        zone.records = records;
    }
    Ok(json!({ "ChangeInfo": change(world, call) }))
}

/// Whether a record can be in a zone beside the others.
fn check(zone: &Zone, records: &BTreeMap<RecordKey, Value>, record: &Value, checks: &[&String]) -> Result<(), String> {
    let (labels, kind, set) = key(record);
    let name = record["Name"].as_str().unwrap_or_default();
    if name != zone.name && !name.ends_with(&format!(".{}", zone.name)) {
        return Err(format!("RRSet with DNS name {name} is not permitted in zone {}", zone.name));
    }
    let has_values = record["ResourceRecords"].as_array().is_some_and(|values| !values.is_empty());
    let is_alias = record.get("AliasTarget").is_some();
    if is_alias == has_values || has_values != record.get("TTL").is_some() {
        return Err(format!(
            "Invalid request: Expected exactly one of [AliasTarget, all of [TTL, and ResourceRecords]] in Change with [Action=CREATE, Name={name}, Type={kind}, SetIdentifier={set}]"
        ));
    }
    for value in record["ResourceRecords"].as_array().into_iter().flatten().filter(|_| kind == "A") {
        let value = value["Value"].as_str().unwrap_or_default();
        if value.parse::<Ipv4Addr>().is_err() {
            return Err(format!(
                "Invalid Resource Record: FATAL problem: ARRDATAIllegalIPv4Address (Value is not a valid IPv4 address) encountered with '{value}'"
            ));
        }
    }
    if record["Weight"].as_i64().is_some_and(|weight| !(0..=255).contains(&weight)) {
        return Err("Invalid request: Expected a weight from 0 to 255".to_owned());
    }
    let is_routed = record.get("Weight").is_some() || record.get("Failover").is_some();
    if is_routed == set.is_empty() {
        return Err("Invalid request: Missing field 'SetIdentifier' in Change".to_owned());
    }
    if let Some(id) = record["HealthCheckId"].as_str()
        && !checks.iter().any(|known| *known == id)
    {
        return Err(format!("The specified health check {id} does not exist"));
    }
    for ((_, other_kind, other_set), other) in records.iter().filter(|(other, _)| other.0 == labels) {
        let ttls = record["TTL"].as_i64().zip(other["TTL"].as_i64());
        let are_weighted = kind == *other_kind && record.get("Weight").is_some() && other.get("Weight").is_some();
        if are_weighted && set != *other_set && ttls.is_some_and(|(ttl, other)| ttl != other) {
            return Err(format!("Invalid request: weighted sets of {name}, type {kind} must contain the same TTL"));
        }
        let (routed, other_routed) = (record.get("Weight").is_some(), other.get("Weight").is_some());
        if kind == *other_kind && !set.is_empty() && !other_set.is_empty() && routed != other_routed {
            return Err(format!(
                "RRSet with DNS name {name}, type {kind}, SetIdentifier {set} cannot be created as a weighted and a failover RRSet exist with the same name and type"
            ));
        }
        if kind != "CNAME" && *other_kind == "CNAME" {
            return Err(format!(
                "RRSet of type {kind} with DNS name {name} is not permitted because a conflicting RRSet of type  CNAME with the same DNS name already exists in zone {}",
                zone.name
            ));
        }
        if kind == "CNAME" && *other_kind != "CNAME" {
            return Err(format!(
                "RRSet of type {kind} with DNS name {name} is not permitted as it conflicts with other records with the same DNS name in zone {}",
                zone.name
            ));
        }
        if kind == *other_kind && set.is_empty() != other_set.is_empty() {
            return Err(format!(
                "RRSet with DNS name {name}, type {kind} cannot be created as a non-simple and a simple RRSet exist with the same name and type"
            ));
        }
    }
    Ok(())
}

fn list_records(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let zone_id = id(call, "HostedZoneId");
    let state = world.state::<Route53>(&call.global());
    let zone = state.zones.get(zone_id).ok_or_else(|| no_zone(zone_id))?;
    let start: RecordKey = (
        call.str("StartRecordName").map(labels).unwrap_or_default(),
        call.str("StartRecordType").unwrap_or_default().to_owned(),
        call.str("StartRecordIdentifier").unwrap_or_default().to_owned(),
    );
    let asked = call.str("MaxItems").and_then(|text| text.parse().ok()).unwrap_or(300);
    let size: usize = call.timing.page.min(asked).clamp(1, 300);
    let rest: Vec<&Value> = zone.records.range(start..).map(|(_, record)| record).collect();
    let mut answer = json!({
        "ResourceRecordSets": rest.iter().take(size).collect::<Vec<_>>(),
        "IsTruncated": rest.len() > size,
        "MaxItems": size.to_string(),
    });
    if let Some(next) = rest.get(size) {
        answer["NextRecordName"] = next["Name"].clone();
        answer["NextRecordType"] = next["Type"].clone();
        if let Some(set) = next.get("SetIdentifier") {
            answer["NextRecordIdentifier"] = set.clone();
        }
    }
    Ok(answer)
}

/// The ARN by which tags are known.
fn arn(id: &str) -> String {
    format!("arn:aws:route53:::healthcheck/{id}")
}

fn create_check(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (reference, config) = (call.text("CallerReference").to_owned(), call.input["HealthCheckConfig"].clone());
    outside(&config)?;
    let limit = world.quotas.of(&call.scope(), &CHECKS);
    let state = world.state::<Route53>(&call.global());
    if let Some((id, first)) = state.references.get(&reference) {
        return match state.checks.get(id) {
            Some(check) if *first == config => Ok(created(id, check)),
            _ => Err(Fault::new(
                "HealthCheckAlreadyExists",
                format!("A health check has already been created with the specified caller reference {reference}."),
            )),
        };
    }
    if state.checks.len() as f64 >= limit {
        return Err(Fault::new("TooManyHealthChecks", "The account has reached its limit of health checks."));
    }
    let id = call.random.uuid();
    let check = json!({
        "Id": id, "CallerReference": reference, "HealthCheckConfig": config, "HealthCheckVersion": 1,
    });
    state.references.insert(reference, (id.clone(), config));
    state.checks.insert(id.clone(), check.clone());
    world.tags.set(&arn(&id), Vec::new(), call.visible());
    Ok(created(&id, &check))
}

/// Whether the internet reaches the address of a health check, if it has one.
fn outside(config: &Value) -> Result<(), Fault> {
    let Some(text) = config["IPAddress"].as_str() else { return Ok(()) };
    match text.parse::<Ipv4Addr>() {
        Ok(ip) if !ip.is_private() && !ip.is_loopback() && !ip.is_link_local() && !ip.is_multicast() => Ok(()),
        _ => Err(Fault::new("InvalidInput", format!("Invalid parameter : The IP address {text} is not allowed."))),
    }
}

fn created(id: &str, check: &Value) -> Value {
    json!({ "HealthCheck": check, "Location": format!("https://route53.amazonaws.com/2013-04-01/healthcheck/{id}") })
}

fn get_check(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = call.text("HealthCheckId");
    let state = world.state::<Route53>(&call.global());
    state.checks.get(id).map(|check| json!({ "HealthCheck": check })).ok_or_else(|| no_check(id))
}

fn update_check(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = call.text("HealthCheckId");
    let state = world.state::<Route53>(&call.global());
    let check = state.checks.get_mut(id).ok_or_else(|| no_check(id))?;
    outside(&call.input)?;
    if call.input.get("IPAddress").is_some() && check["HealthCheckConfig"].get("IPAddress").is_none() {
        return Err(Fault::new("InvalidInput", "Invalid parameter : An IP address cannot be added to a health check."));
    }
    let version = check["HealthCheckVersion"].as_i64().unwrap_or_default();
    if call.int("HealthCheckVersion").is_some_and(|known| known != version) {
        return Err(Fault::new("HealthCheckVersionMismatch", "The health check was changed since."));
    }
    for member in ["IPAddress", "FullyQualifiedDomainName", "Port", "ResourcePath", "FailureThreshold"] {
        if let Some(value) = call.input.get(member) {
            check["HealthCheckConfig"][member] = value.clone();
        }
    }
    check["HealthCheckVersion"] = json!(version + 1);
    Ok(json!({ "HealthCheck": check }))
}

fn delete_check(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = call.text("HealthCheckId");
    world.state::<Route53>(&call.global()).checks.remove(id).ok_or_else(|| no_check(id))?;
    world.tags.forget(&arn(id));
    Ok(json!({}))
}

fn list_checks(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let all = world.state::<Route53>(&call.global()).checks.values().cloned().collect();
    let mut call = call.clone();
    call.timing.page = call.timing.page.min(100);
    let mut answer = call.page("HealthChecks", all, Fault::new("InvalidInput", "The marker is invalid."))?;
    answer["Marker"] = json!(call.str("Marker").unwrap_or_default());
    answer["MaxItems"] = json!(call.timing.page.to_string());
    Ok(answer)
}

fn change_tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = call.text("ResourceId");
    let arn = arn(id);
    if !world.tags.has(&arn) {
        return Err(no_check(id));
    }
    let text = |tag: &Value, member: &str| tag[member].as_str().unwrap_or_default().to_owned();
    let set: Vec<_> = call.list("AddTags").iter().map(|tag| (text(tag, "Key"), text(tag, "Value"))).collect();
    let kept = world.tags.of(&arn).into_iter().filter(|(key, _)| !set.iter().any(|(new, _)| new == key)).count();
    if kept + set.len() > 10 {
        return Err(Fault::new("InvalidInput", "A resource has ten tags at most."));
    }
    world.tags.set(&arn, set, call.visible());
    world.tags.remove(&arn, call.texts("RemoveTagKeys"));
    Ok(json!({}))
}

fn tags(world: &World, id: &str) -> Result<Value, Fault> {
    let arn = arn(id);
    if !world.tags.has(&arn) {
        return Err(no_check(id));
    }
    let tags: Vec<Value> =
        world.tags.of(&arn).into_iter().map(|(key, value)| json!({ "Key": key, "Value": value })).collect();
    let mut set = json!({ "ResourceType": "healthcheck", "ResourceId": id });
    if !tags.is_empty() {
        set["Tags"] = json!(tags);
    }
    Ok(set)
}

fn list_tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    Ok(json!({ "ResourceTagSet": tags(world, call.text("ResourceId"))? }))
}

fn list_tags_of_several(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let sets: Result<Vec<Value>, Fault> = call.texts("ResourceIds").into_iter().map(|id| tags(world, id)).collect();
    Ok(json!({ "ResourceTagSets": sets? }))
}
