//! Cloud DNS: zones, their records, and changes of records.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};

use super::cloud::Cloud;
use super::kinds::page;
use super::problem::Problem;
use super::{Call, Handler};
use crate::{Behaviour, Source};

/// How long a change is pending.
const PENDING: Duration = Duration::from_secs(60);
/// The types of the records that each zone has for its own name.
const OWN: [&str; 2] = ["NS", "SOA"];
/// The longest text in a value of a TXT record.
const LONGEST_TEXT: usize = 255;

pub(crate) const HANDLERS: &[(&str, Handler)] = &[
    ("dns.changes.create", change),
    ("dns.changes.get", get_change),
    ("dns.managedZones.create", create_zone),
    ("dns.managedZones.delete", delete_zone),
    ("dns.managedZones.get", get_zone),
    ("dns.managedZones.list", list_zones),
    ("dns.resourceRecordSets.list", list_records),
];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "a record that is there already is 409 alreadyExists, unless the same change deletes it",
        Source::Report("snarfed/bridgy-fed#1072"),
    ),
    rule(
        "a deletion of a record that has another TTL or other values is 412 conditionNotMet",
        Source::Report("kubernetes-sigs/external-dns#467"),
    ),
    rule(
        "a CNAME is the only record of its name: 400 cnameResourceRecordSetConflict",
        Source::Report("kubernetes-sigs/external-dns#3885"),
    ),
    rule("a name that is not one in the zone is 400 invalid", Source::Report("mantl/mantl#1082")),
    rule(
        "a deletion of a record that is not there is 404 notFound",
        Source::Report("kubernetes-sigs/external-dns#2817"),
    ),
    rule("an empty change is 400 required", Source::Report("GoogleCloudPlatform/cloud-foundation-toolkit#466")),
    rule(
        "a zone with more records than those of its own name is not deleted: 400 containerNotEmpty",
        Source::Report("tetratelabs/tetrate-service-bridge-sandbox#256"),
    ),
    rule(
        "a zone of a project that does not have the API enabled is 403 accessNotConfigured, also if it does not exist",
        Source::Report("opstrace/opstrace#128"),
    ),
    rule("an unknown zone is 404 notFound", Source::Documentation("https://cloud.google.com/dns/docs/error-messages")),
    rule(
        "a change is made completely or not at all, and is pending until all name servers have it",
        Source::Documentation("https://cloud.google.com/dns/docs/reference/rest/v1/changes"),
    ),
    rule(
        "a change needs dns.changes.create, and create, update or delete of resourceRecordSets for what it does",
        Source::Documentation("https://cloud.google.com/dns/docs/access-control"),
    ),
    rule(
        "a weighted record set has items in place of values, each with a weight from 0 to 1000",
        Source::Documentation("https://cloud.google.com/dns/docs/configure-routing-policies"),
    ),
    rule(
        "a health check decides about all items of a record set, or about none",
        Source::Documentation("https://cloud.google.com/dns/docs/routing-policies-overview"),
    ),
    rule(
        "items with external endpoints need the full address of a global health check that probes from regions",
        Source::Documentation("https://cloud.google.com/dns/docs/reference/rest/v1/resourceRecordSets"),
    ),
    rule(
        "answers fill in the empty members of items and their kinds, which a deletion may leave out",
        Source::Report("GoogleCloudPlatform/k8s-config-connector#9395"),
    ),
    rule(
        "a text of a TXT record has 255 characters at most, in quotes",
        Source::Documentation("https://cloud.google.com/dns/docs/records-overview"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "dns", what, source }
}

fn refused(http: u16, reason: &str, message: impl Into<String>) -> Problem {
    Problem::with_reason(http, reason, message)
}

fn text<'v>(body: &'v Value, member: &str) -> &'v str {
    body[member].as_str().unwrap_or_default()
}

/// What a change needs besides: for a record that it adds, deletes, or deletes and adds again.
pub(crate) fn permissions(change: &Value) -> Vec<String> {
    let records = |member: &str| -> BTreeSet<(String, String)> {
        let list = change[member].as_array().into_iter().flatten();
        list.map(|one| (text(one, "name").to_lowercase(), text(one, "type").to_owned())).collect()
    };
    let (added, deleted) = (records("additions"), records("deletions"));
    let rows = [
        ("create", added.difference(&deleted).count()),
        ("delete", deleted.difference(&added).count()),
        ("update", added.intersection(&deleted).count()),
    ];
    let needed = rows.into_iter().filter(|(_, count)| *count > 0);
    needed.map(|(verb, _)| format!("dns.resourceRecordSets.{verb}")).collect()
}

/// Puts a zone there, as another person would have made it.
pub(crate) fn put_zone(cloud: &mut Cloud, project: &str, name: &str, domain: &str, is_private: bool) {
    let key = format!("dns/projects/{project}/managedZones/{name}");
    let servers: Vec<String> = (1..=4).map(|number| format!("ns-cloud-a{number}.googledomains.com.")).collect();
    let body = json!({
        "kind": "dns#managedZone", "name": name, "dnsName": domain, "description": "",
        "id": (cloud.random.number() % 1_000_000_000).to_string(), "creationTime": cloud.now().to_string(),
        "visibility": if is_private { "private" } else { "public" }, "nameServers": servers,
    });
    cloud.put(&key, body);
    let soa = format!("{} cloud-dns-hostmaster.google.com. 1 21600 3600 259200 300", servers[0]);
    for (kind, ttl, values) in [("NS", 21_600, json!(servers)), ("SOA", 21_600, json!([soa]))] {
        put_record(cloud, &key, &json!({ "name": domain, "type": kind, "ttl": ttl, "rrdatas": values }));
    }
}

fn record_key(zone: &str, record: &Value) -> String {
    format!("{zone}/rrsets/{}/{}", text(record, "name").to_lowercase(), text(record, "type"))
}

fn put_record(cloud: &mut Cloud, zone: &str, record: &Value) {
    let mut record = filled(record);
    record["kind"] = "dns#resourceRecordSet".into();
    cloud.put(&record_key(zone, &record), record);
}

/// A record set with the members that answers have of a weighted one.
fn filled(record: &Value) -> Value {
    let mut record = record.clone();
    // An index would add the members.
    let Some(policy) = record.get_mut("routingPolicy") else { return record };
    let items = policy.pointer_mut("/wrr/items").and_then(Value::as_array_mut);
    if let Some(items) = items {
        for item in items {
            item["kind"] = "dns#rRSetRoutingPolicyWrrPolicyWrrPolicyItem".into();
            item["weight"] = item["weight"].as_f64().into();
            item["signatureRrdatas"] = json!([]);
            for pointer in
                ["/rrdatas", "/healthCheckedTargets/externalEndpoints", "/healthCheckedTargets/internalLoadBalancers"]
            {
                if item.pointer(pointer).is_none() {
                    super::cloud::put(item, pointer, json!([]));
                }
            }
        }
        policy["wrr"]["kind"] = "dns#rRSetRoutingPolicyWrrPolicy".into();
        policy["kind"] = "dns#rRSetRoutingPolicy".into();
        record["rrdatas"] = json!([]);
    }
    record
}

/// The addresses that a health check decides about, and those that it does not.
fn addresses(item: &Value) -> [Vec<&str>; 2] {
    [&item["healthCheckedTargets"]["externalEndpoints"], &item["rrdatas"]]
        .map(|list| list.as_array().into_iter().flatten().filter_map(Value::as_str).collect())
}

/// Refuses what a weighted record set cannot have.
fn check_items(cloud: &Cloud, place: &str, record: &Value) -> Result<(), Problem> {
    let invalid = |field: &str| Err(refused(400, "invalid", format!("Invalid value for '{place}.{field}'")));
    let policy = &record["routingPolicy"];
    let Some(items) = policy["wrr"]["items"].as_array() else { return Ok(()) };
    if items.is_empty() || record["rrdatas"].as_array().is_some_and(|values| !values.is_empty()) {
        return invalid("routingPolicy");
    }
    let is_weight = |item: &Value| item["weight"].as_f64().is_some_and(|weight| (0.0..=1000.0).contains(&weight));
    if !items.iter().all(is_weight) {
        return invalid("routingPolicy.wrr.item.weight");
    }
    let kind = text(record, "type");
    let all: Vec<[Vec<&str>; 2]> = items.iter().map(addresses).collect();
    if all.iter().flatten().flatten().any(|value| !is_value(kind, value)) {
        return invalid("routingPolicy.wrr.item.rrdata");
    }
    let checked = all.iter().filter(|[checked, _]| !checked.is_empty()).count();
    if checked == 0 {
        return if all.iter().all(|[_, plain]| !plain.is_empty()) { Ok(()) } else { invalid("routingPolicy.wrr.item") };
    }
    if all.iter().any(|[checked, plain]| checked.is_empty() || !plain.is_empty()) {
        return invalid("routingPolicy.wrr.item.healthCheckedTargets");
    }
    let check = text(policy, "healthCheck");
    let check = check.strip_prefix("https://www.googleapis.com/compute/v1/").filter(|path| path.contains("/global/"));
    let check = check.and_then(|path| cloud.get(&format!("compute/{path}")));
    match check.is_some_and(|check| check["sourceRegions"].as_array().is_some_and(|regions| !regions.is_empty())) {
        true => Ok(()),
        false => invalid("routingPolicy.healthCheck"),
    }
}

/// The records of a zone.
fn records(cloud: &Cloud, zone: &str) -> Vec<Value> {
    let below = format!("{zone}/rrsets/");
    let keys = cloud.keys().into_iter().filter(|key| key.starts_with(&below));
    keys.filter_map(|key| cloud.get(&key).cloned()).collect()
}

/// The zone at the start of a call's name: its key and what a read answers.
fn zone(cloud: &Cloud, call: &Call<'_>) -> Result<(String, Value), Problem> {
    let key = call.key().split('/').take(5).collect::<Vec<_>>().join("/");
    let found = cloud.get(&key).cloned();
    let name = key.rsplit('/').next().unwrap_or_default();
    let missing = || {
        let message = format!("The 'parameters.managedZone' resource named '{name}' does not exist.");
        refused(404, "notFound", message)
    };
    let found = found.ok_or_else(missing)?;
    Ok((key, found))
}

fn create_zone(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let (name, domain) = (text(&call.body, "name").to_owned(), text(&call.body, "dnsName").to_owned());
    if !super::errors::is_name(&name, 63) {
        return Err(refused(400, "invalid", format!("Invalid value for 'entity.managedZone.name': '{name}'")));
    }
    if !domain.ends_with('.') {
        return Err(refused(400, "invalid", format!("Invalid value for 'entity.managedZone.dnsName': '{domain}'")));
    }
    let key = format!("{}/{name}", call.key());
    if cloud.get(&key).is_some() {
        let message = format!("The resource 'entity.managedZone' named '{name}' already exists");
        return Err(refused(409, "alreadyExists", message));
    }
    put_zone(cloud, &call.project, &name, &domain.to_lowercase(), call.body["visibility"] == "private");
    Ok(cloud.get(&key).cloned().unwrap_or_default())
}

fn get_zone(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    zone(cloud, call).map(|(_, found)| found)
}

fn list_zones(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let keys = super::kinds::collection(cloud, &call.key());
    Ok(page(call, "managedZones", keys.iter().filter_map(|key| cloud.get(key).cloned()).collect()))
}

fn delete_zone(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let (key, found) = zone(cloud, call)?;
    let is_own = |one: &Value| OWN.contains(&text(one, "type")) && one["name"] == found["dnsName"];
    if records(cloud, &key).iter().any(|one| !is_own(one)) {
        let message = format!(
            "The resource named '{}' cannot be deleted because it contains one or more 'resource records'.",
            text(&found, "name")
        );
        return Err(refused(400, "containerNotEmpty", message));
    }
    let below = format!("{key}/");
    cloud.objects.retain(|one, _| *one != key && !one.starts_with(&below));
    Ok(json!({}))
}

fn list_records(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let (key, _) = zone(cloud, call)?;
    let fits = |one: &Value, member: &str| call.parameter(member).is_none_or(|asked| text(one, member) == asked);
    let found = records(cloud, &key).into_iter().filter(|one| fits(one, "name") && fits(one, "type"));
    Ok(page(call, "rrsets", found.collect()))
}

/// Whether a deletion has all of a record as it is.
fn is_same(there: &Value, deleted: &Value) -> bool {
    let deleted = &filled(deleted);
    let values = |record: &Value| -> BTreeSet<String> {
        let list = record["rrdatas"].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let is_equal = |member: &str| there.get(member) == deleted.get(member);
    is_equal("ttl") && is_equal("routingPolicy") && values(there) == values(deleted)
}

/// Whether a value is one of its type.
fn is_value(kind: &str, value: &str) -> bool {
    match kind {
        "A" => value.parse::<Ipv4Addr>().is_ok(),
        "CNAME" => value.ends_with('.'),
        "TXT" => {
            let mut texts = value.split("\" \"").map(|one| one.trim_matches('"'));
            value.starts_with('"') && value.ends_with('"') && texts.all(|one| one.len() <= LONGEST_TEXT)
        }
        _ => true,
    }
}

fn change(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let (key, zone) = zone(cloud, call)?;
    let domain = text(&zone, "dnsName").to_owned();
    let list = |member: &str| call.body[member].as_array().cloned().unwrap_or_default();
    let (additions, deletions) = (list("additions"), list("deletions"));
    if additions.is_empty() && deletions.is_empty() {
        let message = "The 'entity.change' parameter is required but was missing.";
        return Err(refused(400, "required", message));
    }
    let place =
        |member: &str, one: &Value| format!("entity.change.{member}[{}][{}]", text(one, "name"), text(one, "type"));
    let named = |one: &Value| format!("{} ({})", text(one, "name"), text(one, "type"));
    let mut left: BTreeSet<String> = records(cloud, &key).iter().map(|one| record_key(&key, one)).collect();
    for one in &deletions {
        let place = place("deletions", one);
        let Some(there) = cloud.get(&record_key(&key, one)) else {
            let message = format!("The '{place}' resource named '{}' does not exist.", named(one));
            return Err(refused(404, "notFound", message));
        };
        if !is_same(there, one) {
            return Err(refused(412, "conditionNotMet", format!("Precondition not met for '{place}'")));
        }
        left.remove(&record_key(&key, one));
    }
    for one in &additions {
        let (place, name, kind) = (place("additions", one), text(one, "name"), text(one, "type"));
        let lower = name.to_lowercase();
        if lower != domain && !lower.ends_with(&format!(".{domain}")) {
            return Err(refused(400, "invalid", format!("Invalid value for '{place}.name': '{name}'")));
        }
        let values = one["rrdatas"].as_array().cloned().unwrap_or_default();
        let mut values = values.iter().filter_map(Value::as_str);
        if let Some(wrong) = values.find(|value| !is_value(kind, value)) {
            return Err(refused(400, "invalid", format!("Invalid value for '{place}.rrdata[0]': '{wrong}'")));
        }
        check_items(cloud, &place, one)?;
        if !left.insert(record_key(&key, one)) {
            let message = format!("The resource '{place}' named '{}' already exists", named(one));
            return Err(refused(409, "alreadyExists", message));
        }
        let of_name = format!("{key}/rrsets/{lower}/");
        let mut others = left.iter().filter_map(|other| other.strip_prefix(&of_name)).filter(|other| *other != kind);
        let conflicting = others.find(|other| *other == "CNAME" || kind == "CNAME");
        if let Some(other) = conflicting {
            let message = format!(
                "The resource record set '{place}' is invalid because the DNS name '{name}' has a resource record set \
                 of the type '{other}'. A DNS name may have either one CNAME resource record set or resource record \
                 sets of other types, but not both."
            );
            return Err(refused(400, "cnameResourceRecordSetConflict", message));
        }
    }
    for one in &deletions {
        cloud.objects.remove(&record_key(&key, one));
    }
    for one in &additions {
        put_record(cloud, &key, one);
    }
    let changes = format!("{key}/changes/");
    let id = cloud.objects.keys().filter(|one| one.starts_with(&changes)).count() + 1;
    let made = format!("{changes}{id}");
    let body = json!({
        "kind": "dns#change", "id": id.to_string(), "startTime": cloud.now().to_string(), "status": "pending",
        "additions": additions, "deletions": deletions,
    });
    cloud.put(&made, body.clone());
    let due = cloud.due(PENDING);
    cloud.defer(due, move |cloud| {
        if let Some(object) = cloud.objects.get_mut(&made) {
            object.body["status"] = "done".into();
        }
    });
    Ok(body)
}

fn get_change(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    zone(cloud, call)?;
    let id = call.name.rsplit('/').next().unwrap_or_default();
    let missing =
        || refused(404, "notFound", format!("The 'parameters.changeId' resource named '{id}' does not exist."));
    cloud.get(&call.key()).cloned().ok_or_else(missing)
}
