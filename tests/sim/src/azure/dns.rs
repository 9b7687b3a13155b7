//! Public DNS zones and their records.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::cloud::{Cloud, put, text};
use super::kinds::{Call, KIND, Kind, is_name};
use super::network::accept_zone;
use super::problem::{Problem, bad, conflict};
use super::traffic::accept_alias;
use crate::{Behaviour, Source};

const ZONES: &str = "Microsoft.Network/dnsZones";
const VERSION: &str = "2018-05-01";
/// Seconds that an answer may be kept.
const TTL: std::ops::RangeInclusive<i64> = 1..=2_147_483_647;
/// The types of records that are simulated, each with the place of its values.
const TYPES: [(&str, &str); 3] =
    [("A", "/properties/ARecords"), ("CNAME", "/properties/CNAMERecord"), ("TXT", "/properties/TXTRecords")];

pub(crate) const KINDS: &[Kind] = &[
    Kind {
        kind: ZONES,
        version: VERSION,
        models: ["dns.models Zone", "dns.models ZoneUpdate", "dns.models Zone", "dns.models ZoneListResult"],
        has_state: false,
        has_etag: true,
        is_name: |name| is_name(name, 1..=253, "-_.") && name.contains('.') && !name.ends_with('.'),
        defaults: &[("/properties/zoneType", "\"Public\"")],
        accept: accept_zone,
        show: |cloud, key, body| {
            let below = format!("{key}/");
            let count = cloud.objects.keys().filter(|one| one.starts_with(&below)).count();
            let servers: Vec<String> = (1..=4).map(|number| format!("ns{number}-01.azure-dns.com.")).collect();
            put(body, "/properties/nameServers", json!(servers));
            // SOA and NS besides.
            put(body, "/properties/numberOfRecordSets", (count + 2).into());
            put(body, "/properties/maxNumberOfRecordSets", 10_000.into());
        },
        ..KIND
    },
    record("Microsoft.Network/dnsZones/A"),
    record("Microsoft.Network/dnsZones/CNAME"),
    record("Microsoft.Network/dnsZones/TXT"),
];

const fn record(kind: &'static str) -> Kind {
    Kind {
        kind,
        version: VERSION,
        models: [
            "dns.models RecordSet",
            "dns.models RecordSet",
            "dns.models RecordSet",
            "dns.models RecordSetListResult",
        ],
        tags: 0,
        has_etag: true,
        is_name: |name| name.split('.').all(is_label),
        accept: accept_record,
        ..KIND
    }
}

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "If-None-Match of a record that is there is 412 PreconditionFailed",
        Source::Report("Azure/azure-xplat-cli#1769"),
    ),
    rule(
        "a deletion with a stale If-Match is 412 PreconditionFailed, and each write makes a new etag",
        Source::Documentation("https://learn.microsoft.com/azure/dns/dns-zones-records#etags"),
    ),
    rule(
        "a CNAME is the only record of its name: 409 Conflict",
        Source::Report("rcl-letsencrypt-auto-ssl/Lets-Encrypt-Auto#26"),
    ),
    rule("a record set has no two equal records: 400 BadRequest", Source::Report("Azure/azure-cli#10467")),
    rule(
        "a record has either values or a target resource",
        Source::Documentation("https://learn.microsoft.com/azure/dns/dns-alias"),
    ),
    rule(
        "a TTL is from 1 to 2147483647",
        Source::Documentation("https://learn.microsoft.com/azure/dns/dns-zones-records#time-to-live"),
    ),
    rule(
        "names of records are relative to that of the zone, @ is the zone's own, and * is any",
        Source::Documentation("https://learn.microsoft.com/azure/dns/dns-zones-records#record-names"),
    ),
    rule(
        "the deletion of a zone deletes its records",
        Source::Documentation("https://learn.microsoft.com/rest/api/dns/zones/delete"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "Microsoft.Network", what, source }
}

/// Whether a part of a name between dots is right.
fn is_label(label: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    ["@", "*"].contains(&label) || (1..=63).contains(&label.len()) && label.chars().all(fits)
}

fn accept_record(cloud: &mut Cloud, call: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let kind = call.kind.rsplit('/').next().unwrap_or_default();
    let (name, zone) = (call.name(), call.names.first().map_or("", String::as_str));
    for (other, _) in TYPES.iter().filter(|(other, _)| *other != kind && (kind == "CNAME" || *other == "CNAME")) {
        let key = format!("{}/{}/{}", call.parent(), other.to_lowercase(), name.to_lowercase());
        if cloud.objects.contains_key(&key) {
            let message = format!(
                "The {kind} record could not be created because another record with the same name already exists in \
                 this zone."
            );
            return Err(conflict("Conflict", message));
        }
    }
    let ttl = body.pointer("/properties/TTL").and_then(Value::as_i64);
    if !ttl.is_some_and(|ttl| TTL.contains(&ttl)) {
        return Err(bad("BadRequest", "The TTL of a record set has to be from 1 to 2147483647."));
    }
    let place = TYPES.iter().find(|(one, _)| *one == kind).map_or("", |(_, place)| *place);
    let values = body.pointer(place).and_then(Value::as_array).cloned().unwrap_or_default();
    let is_double = values.iter().enumerate().any(|(at, value)| values[..at].contains(value));
    if is_double {
        let message =
            format!("The list of record sets of type '{kind}' may not contain multiple entries with the same 'value'.");
        return Err(bad("BadRequest", message));
    }
    if kind == "A" && !values.iter().all(|one| text(one, "/ipv4Address").parse::<Ipv4Addr>().is_ok()) {
        return Err(bad("BadRequest", "The value of an A record is not an IPv4 address."));
    }
    let alias = text(body, "/properties/targetResource/id").to_owned();
    if !alias.is_empty() {
        if kind != "A" || !values.is_empty() {
            return Err(bad("BadRequest", "A record has either values or a target resource."));
        }
        accept_alias(cloud, &alias)?;
    }
    let fqdn = if name == "@" { format!("{zone}.") } else { format!("{name}.{zone}.") };
    put(body, "/properties/fqdn", fqdn.into());
    if alias.is_empty() {
        put(body, "/properties/targetResource", json!({}));
    }
    Ok(())
}

/// Puts a zone there, as another person would have made it, with its resource group.
pub(crate) fn put_zone(cloud: &mut Cloud, group: &str, name: &str, is_private: bool) -> String {
    let group_id = format!("/subscriptions/{}/resourceGroups/{group}", cloud.subscription);
    let kind = "Microsoft.Resources/resourceGroups";
    let body = json!({ "id": group_id, "name": group, "type": kind, "location": "westeurope",
        "properties": { "provisioningState": "Succeeded" } });
    cloud.put(&group_id, body);
    let id = format!("{group_id}/providers/{ZONES}/{name}");
    let etag = cloud.etag();
    let zone_type = if is_private { "Private" } else { "Public" };
    let body = json!({ "id": id, "name": name, "type": ZONES, "location": "global", "etag": etag,
        "properties": { "zoneType": zone_type } });
    cloud.put(&id, body);
    id
}
