//! Records of an existing zone: <https://learn.microsoft.com/rest/api/dns/record-sets/create-or-update>.
//!
//! Their tags are in their metadata. A create is refused where a record is there already, and a change or a deletion where another client
//! changed the record since it was read (<https://learn.microsoft.com/azure/dns/dns-zones-records#etags>).

use async_trait::async_trait;
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_cloud::ObservedObject;
use textnlp_provider::{Error, ErrorKind, Identity, Kind, Pricing, Result, Spec};

use super::{delete, put, read};
use crate::api::{Api, Call, Reply, tags_at};
use crate::operation::Pending;
use crate::row::{Field, Marks, Rest, RestKind, Table, invalid, rewrite};
use crate::table::{Row, kind};

/// The API version of zones and records.
pub(crate) const VERSION: &str = "2018-05-01";
/// Where the tags of a record are.
const METADATA: &str = "/properties/metadata";
/// What an operator does about a record of another client.
const RECORD: &str = "another client made a record of this name: remove it, or choose another `traffic.domain`";

pub(crate) static ROWS: &[Row] = &[Row {
    kind: Kind {
        pricing: Pricing::BySpec,
        permissions: &[
            read("Microsoft.Network/dnsZones/read"),
            read("Microsoft.Network/dnsZones/A/read"),
            put("Microsoft.Network/dnsZones/A/write"),
            delete("Microsoft.Network/dnsZones/A/delete"),
            read("Microsoft.Network/dnsZones/CNAME/read"),
        ],
        terraform: &[("azurerm_dns_a_record", "id")],
        ..kind("azure.dns-record", "a DNS record", Identity::Part)
    },
    service: "Microsoft.Network",
    resource: &Rest::<Record>::kind(),
    refused: &[],
}];

/// A record. Its name is relative to that of its zone. Outputs: `id`, `name`.
struct Record;

#[async_trait]
impl RestKind for Record {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Network/dnsZones/A",
        version: VERSION,
        path: "{zone}/A/{name}",
        fields: &[Field::plain("ttl", "/properties/TTL").changed(), Field::seen("values", values)],
        in_place: &["ttl", "values"],
        marks: Marks::Member(METADATA),
        ..Table::USUAL
    };

    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        let target = |one: &Value| one["target"].as_str().map(str::to_ascii_lowercase);
        field == "values" && target(wanted).is_some() && target(wanted) == target(seen)
    }

    fn complete(spec: &Spec, document: &mut Value) {
        set_values(document, spec.get("values").unwrap_or(&Value::Null));
    }

    /// Addresses and a target take each other's place in one write, so that there is always an answer.
    async fn put(api: &Api, id: &str, wanted: &Value, field: &str) -> Result<Option<Pending>> {
        if field != "values" {
            return Err(invalid("change", id, &format!("`{field}` does not change in place")));
        }
        rewrite::<Self>(api, id, |document| set_values(document, wanted)).await
    }

    /// A CNAME of the name, which another client made, is there in place of it.
    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        if let Some(found) = api.find(Call::get(id, VERSION)).await? {
            return Ok(Some(found));
        }
        let Some((zone, name)) = id.rsplit_once("/A/") else { return Ok(None) };
        api.find(Call::get(format!("{zone}/CNAME/{name}"), VERSION)).await
    }

    async fn send(api: &Api, id: &str, document: Value) -> Result<Reply> {
        let call = Call::new(Method::PUT, id, VERSION).body(document).new_only();
        api.send(call).await.map_err(|error| match error.code.as_deref() {
            // kubernetes-sigs/external-dns#5358: a CNAME is there.
            Some("PreconditionFailed" | "Conflict") => {
                Error { kind: ErrorKind::Exists, refused: true, ..error }.hint(RECORD)
            }
            _ => error,
        })
    }

    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<Pending>> {
        let Some(found) = api.find(Call::get(&seen.id, VERSION)).await? else { return Ok(None) };
        if tags_at(&found, METADATA) != seen.tags {
            let error = Error::new(ErrorKind::Conflict, "delete", seen.id.clone());
            return Err(error.because("another client changed its owner"));
        }
        let call = Call::new(Method::DELETE, &seen.id, VERSION).etag(found["etag"].as_str());
        Ok(api.send(call).await?.pending)
    }
}

/// Sets the addresses of a record, or the profile that answers for it: `{ "target": ID }`
/// (<https://learn.microsoft.com/azure/dns/dns-alias>).
fn set_values(document: &mut Value, wanted: &Value) {
    let Some(properties) = document["properties"].as_object_mut() else { return };
    for member in ["ARecords", "targetResource"] {
        properties.remove(member);
    }
    match wanted.get("target") {
        Some(id) => properties.insert("targetResource".to_owned(), json!({ "id": id })),
        None => {
            let addresses = wanted.as_array().into_iter().flatten();
            let addresses = addresses.map(|address| json!({ "ipv4Address": address })).collect();
            properties.insert("ARecords".to_owned(), addresses)
        }
    };
}

fn values(document: &Value) -> Value {
    if let Some(target) = document["properties"]["targetResource"]["id"].as_str() {
        return json!({ "target": target });
    }
    let records = document["properties"]["ARecords"].as_array().into_iter().flatten();
    records.map(|record| record["ipv4Address"].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_as_they_are_written() {
        let mut document = json!({ "properties": {} });
        for wanted in [json!(["192.0.2.1", "192.0.2.2"]), json!({ "target": "/an/id" }), json!([])] {
            set_values(&mut document, &wanted);
            assert_eq!(values(&document), wanted);
        }
        let cname = json!({ "properties": { "CNAMERecord": { "cname": "a.example.net" } } });
        assert_eq!(values(&cname), json!([]));
    }
}
