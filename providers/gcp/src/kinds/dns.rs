//! Records of an existing zone: <https://cloud.google.com/dns/docs/reference/rest/v1/changes/create>.
//!
//! Records have no labels. A TXT record beside each one says whose it is. Both are created and deleted in one change, which Cloud DNS
//! applies completely or not at all. A change deletes the record as it was read and adds the wanted one, which Cloud DNS refuses if another
//! client changed the record since.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_cloud::endpoint::plain;
use textnlp_cloud::tags::Tags;
use textnlp_cloud::{Filter, Make, ObservedObject, Of, Resource, State, dns_owner};
use textnlp_provider::{
    Declaration, Declare, Error, ErrorKind, Identity, Kind, Permission, Pricing, Result, Tool, Verb,
};

use super::{put, read};
use crate::api::{Api, Call};
use crate::declare::{declaration, segment};
use crate::row::invalid;
use crate::service::Service;
use crate::table::{Row, kind};

pub(crate) static ROWS: &[Row] = &[Row {
    kind: Kind {
        pricing: Pricing::BySpec,
        permissions: &[
            Permission::on(CHANGES, "dns.changes.create"),
            put("dns.changes.get"),
            read("dns.managedZones.get"),
            put("dns.resourceRecordSets.create"),
            Permission::on(CHANGES, "dns.resourceRecordSets.delete"),
            read("dns.resourceRecordSets.list"),
            put("dns.resourceRecordSets.update"),
        ],
        terraform: &[("google_dns_record_set", "id")],
        ..kind("gcp.dns-record", "a DNS record", Identity::Part)
    },
    service: "dns",
    resource: &Of::<DnsRecord>::kind(),
    refused: &[],
}];

const CHANGES: &[Verb] = &[Verb::Create, Verb::Update, Verb::Delete];
/// The type of a record that no other one of its name is beside.
const CNAME: &str = "CNAME";

/// A record. Outputs: `name`.
struct DnsRecord;

/// The attributes of a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Spec {
    /// The zone: `projects/P/managedZones/Z`.
    zone: String,
    /// The name, in lower case, without a dot at its end.
    name: String,
    /// `A`.
    #[serde(rename = "type")]
    kind: String,
    /// Seconds that resolvers may keep an answer.
    ttl: u32,
    /// The addresses. A plan has references among them.
    values: Vec<Value>,
    #[serde(default)]
    tags: Tags,
}

/// What an id consists of: `ZONE/rrsets/NAME/TYPE`.
struct Id<'a> {
    zone: &'a str,
    name: String,
    kind: &'a str,
}

impl<'a> Id<'a> {
    /// Names in ids of others may end with a dot.
    fn parse(id: &'a str) -> Option<Self> {
        let (zone, record) = id.split_once("/rrsets/")?;
        let (name, kind) = record.split_once('/')?;
        Some(Self { zone, name: plain(name), kind })
    }

    fn id(&self) -> String {
        format!("{}/rrsets/{}/{}", self.zone, self.name, self.kind)
    }

    /// The name of the record that says whose this one is.
    fn owner(&self) -> String {
        dns_owner::name(self.kind, "", &self.name)
    }
}

/// A record and the one that says whose it is, as they are.
struct Pair {
    record: Option<Value>,
    owner: Option<Value>,
    /// A record of another type, beside which this one cannot be.
    taken: Option<Value>,
}

impl Pair {
    async fn read(api: &Api, id: &Id<'_>) -> Result<Self> {
        let owner = id.owner();
        // The owner first: a deletion whose answer was lost may end in between, and would leave a record without an owner.
        let owners = records(api, id.zone, &owner).await?;
        let there = records(api, id.zone, &id.name).await?;
        let of = |all: &[Value], kind: &str| all.iter().find(|one| one["type"] == kind).cloned();
        let taken = of(&there, CNAME).filter(|_| id.kind != CNAME);
        Ok(Self { record: of(&there, id.kind), owner: of(&owners, "TXT"), taken })
    }

    fn tags(&self) -> Tags {
        let values = self.owner.iter().filter_map(|one| one["rrdatas"].as_array()).flatten();
        values.filter_map(Value::as_str).find_map(dns_owner::tags::<Api>).unwrap_or_default()
    }
}

#[async_trait]
impl Resource<Api> for DnsRecord {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["ttl", "values"];

    /// Two calls: the record, and the one that says whose it is.
    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let Some(parts) = Id::parse(id) else { return Ok(None) };
        let pair = Pair::read(api, &parts).await?;
        let spec = match (&pair.record, &pair.taken, &pair.owner) {
            (Some(record), ..) | (None, Some(record), None) => spec(&parts, record),
            // It is not there, while the one that says whose it is remains.
            (None, _, Some(_)) => spec(&parts, &json!({ "type": parts.kind })),
            (None, None, None) => return Ok(None),
        };
        let seen = ObservedObject::new(parts.id(), spec, pair.tags());
        Ok(Some(seen.output("name", Some(parts.name))))
    }

    /// None: no call shows the records of a deployment in all zones. A record is read by its name.
    async fn list(_api: &Api, _filter: &Filter<Api>) -> Result<Vec<ObservedObject<Spec>>> {
        Ok(Vec::new())
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(Id { zone: &spec.zone, name: plain(&spec.name), kind: &spec.kind }.id())
    }

    /// The record that says whose it is remains one of this program.
    fn declare(api: Option<&Api>, request: &Declare<'_>) -> Option<Result<Vec<Declaration>, String>> {
        if request.tool != Tool::Terraform {
            return None;
        }
        let Ok(spec) = request.object.spec.typed::<Spec>() else {
            return Some(Err("its record is of no zone".to_owned()));
        };
        let name = format!("{}.", plain(&spec.name));
        let attributes = json!({
            "project": segment(&spec.zone, "projects"), "managed_zone": segment(&spec.zone, "managedZones"), "name": name,
            "type": spec.kind, "ttl": spec.ttl, "rrdatas": spec.values,
        });
        let id = format!("{}/rrsets/{name}/{}", spec.zone, spec.kind);
        Some(Ok(vec![declaration(api, "google_dns_record_set", &attributes, id, &[])]))
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        Ok(Self::begin(api, make, spec).await?.0)
    }

    async fn begin(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<(String, Option<String>)> {
        let id = Self::id(spec).unwrap_or_default();
        let parts = Id::parse(&id).ok_or_else(|| invalid("create", &id, "its spec has no name"))?;
        if !spec.tags.is_empty() {
            return Err(invalid("create", &id, "a record has no tags"));
        }
        let additions = vec![record(spec), owner(&parts, &make.tags)];
        let change = send(api, "create", &parts, Vec::new(), additions).await?;
        Ok((id, Some(change)))
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        Self::start(api, seen, spec, field).await.map(drop)
    }

    async fn start(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, _field: &str) -> Result<Option<String>> {
        let (parts, pair) = current(api, "change", seen).await?;
        let deletions = pair.record.into_iter().collect();
        send(api, "change", &parts, deletions, vec![record(spec)]).await.map(Some)
    }

    /// Whether all name servers have the change: <https://cloud.google.com/dns/docs/reference/rest/v1/changes>.
    async fn change(api: &Api, id: &str, change: &str) -> Result<State> {
        let Some(parts) = Id::parse(id) else { return Ok(State::Ready) };
        let call = Call::get(Service::Dns, format!("{}/changes/{change}", parts.zone));
        let found = api.find(call.saying("read", format!("change {change}"))).await?;
        Ok(match found {
            Some(found) if found["status"] == "pending" => State::Pending("pending".to_owned()),
            _ => State::Ready,
        })
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, _remove: &[String]) -> Result<()> {
        let (parts, pair) = current(api, "set tags of", seen).await?;
        let mut tags = seen.tags.clone();
        tags.extend(set.clone());
        let deletions = pair.owner.into_iter().collect();
        send(api, "set tags of", &parts, deletions, vec![owner(&parts, &tags)]).await.map(drop)
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let (parts, pair) = current(api, "delete", seen).await?;
        let deletions: Vec<Value> = pair.record.into_iter().chain(pair.owner).collect();
        if deletions.is_empty() {
            return Ok(());
        }
        send(api, "delete", &parts, deletions, Vec::new()).await.map(drop)
    }
}

/// The records of a name.
async fn records(api: &Api, zone: &str, name: &str) -> Result<Vec<Value>> {
    api.list(Service::Dns, &format!("{zone}/rrsets"), "rrsets", &[("name", format!("{name}."))]).await
}

/// A record as it is now, unless its owner changed since it was read.
async fn current<'s>(api: &Api, action: &str, seen: &'s ObservedObject<Spec>) -> Result<(Id<'s>, Pair)> {
    let parts = Id::parse(&seen.id).ok_or_else(|| invalid(action, &seen.id, "it is no id of a record"))?;
    let pair = Pair::read(api, &parts).await?;
    if pair.tags() != seen.tags {
        let error = Error::new(ErrorKind::Conflict, action, seen.id.clone());
        return Err(error.because("another client changed its owner"));
    }
    Ok((parts, pair))
}

/// Sends one change and returns its id.
async fn send(
    api: &Api,
    action: &'static str,
    id: &Id<'_>,
    deletions: Vec<Value>,
    additions: Vec<Value>,
) -> Result<String> {
    let body = json!({ "deletions": deletions, "additions": additions });
    let call = Call::post(Service::Dns, format!("{}/changes", id.zone), body);
    let answer = api.send(call.saying(action, format!("record {}", id.name))).await?;
    Ok(answer["id"].as_str().unwrap_or_default().to_owned())
}

/// The record of a spec whose references are resolved.
fn record(spec: &Spec) -> Value {
    json!({ "name": format!("{}.", plain(&spec.name)), "type": spec.kind, "ttl": spec.ttl, "rrdatas": spec.values })
}

/// The record that says whose another one is.
fn owner(id: &Id<'_>, tags: &Tags) -> Value {
    let values = [dns_owner::value(tags)];
    json!({ "name": format!("{}.", id.owner()), "type": "TXT", "ttl": dns_owner::TTL, "rrdatas": values })
}

fn spec(id: &Id<'_>, one: &Value) -> Spec {
    Spec {
        zone: id.zone.to_owned(),
        name: id.name.clone(),
        kind: one["type"].as_str().unwrap_or_default().to_owned(),
        ttl: one["ttl"].as_u64().and_then(|ttl| ttl.try_into().ok()).unwrap_or_default(),
        values: one["rrdatas"].as_array().cloned().unwrap_or_default(),
        tags: Tags::new(),
    }
}

#[cfg(test)]
mod tests {
    use textnlp_cloud::tags;
    use textnlp_provider::{Lineage, ResourceId};

    use super::*;

    #[test]
    fn owners_are_written_and_read() {
        let lineage: Lineage = "00000000-0000-4000-8000-000000007e57".parse().unwrap();
        let (environment, resource) = ("staging".parse().unwrap(), ResourceId::new("main/gateway/record").unwrap());
        let mut tags = tags::of_object::<Api>(lineage, &environment, &resource, &Tags::new());
        tags.insert(tags::OPERATION.to_owned(), "ab".repeat(16));
        let id = Id::parse("projects/p/managedZones/z/rrsets/Text.example.com./A").unwrap();
        assert_eq!(id.id(), "projects/p/managedZones/z/rrsets/text.example.com/A");
        let owner = owner(&id, &tags);
        assert_eq!(owner["name"], "_textnlp-a.text.example.com.");
        assert_eq!(Pair { record: None, owner: Some(owner), taken: None }.tags(), tags);
    }
}
