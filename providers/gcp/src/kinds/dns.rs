//! Records of an existing zone: <https://cloud.google.com/dns/docs/reference/rest/v1/changes/create>.
//!
//! Records have no labels. A TXT record beside each one says whose it is. Both are created and deleted in one change, which Cloud DNS
//! applies completely or not at all. A change deletes the record as it was read and adds the wanted one, which Cloud DNS refuses if another
//! client changed the record since.
//!
//! Several sites share one weighted record set: the resource of each is its item, and the TXT record has a text for each, with the address
//! of the item. A change keeps the items and the texts of others. If two sites change the set at the same time, Cloud DNS refuses the second
//! change: the driver reads the set again, and repeats the change a bounded number of times.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_cloud::endpoint::plain;
use textnlp_cloud::tags::{ENVIRONMENT, LINEAGE, RESOURCE, Tags};
use textnlp_cloud::{Filter, Make, ObservedObject, Of, Resource, State, dns_owner};
use textnlp_provider::{
    Declaration, Declare, Error, ErrorKind, Identity, Kind, Permission, Pricing, ReplaceOrder, Result, Tool, Verb,
};

use super::weighted::{self, Share};
use super::{put, read};
use crate::api::{Api, Call};
use crate::declare::{declaration, segment};
use crate::labels;
use crate::names::PREFIX;
use crate::row::{invalid, relative};
use crate::service::Service;
use crate::table::{MINUTE, Row, kind};

pub(crate) static ROWS: &[Row] = &[Row {
    kind: Kind {
        pricing: Pricing::BySpec,
        // A record that becomes one of several, or the only one again, is converted by the create in one change.
        replace: ReplaceOrder::CreateFirst,
        // The record of one site waits for the items of others, and they for it.
        deadline: MINUTE.saturating_mul(30),
        permissions: &[
            // Which health check probes a set that its site leaves.
            Permission::on(&[Verb::Delete], "compute.healthChecks.list{?site}"),
            Permission::on(CHANGES, "dns.changes.create"),
            put("dns.changes.get"),
            read("dns.managedZones.get"),
            put("dns.resourceRecordSets.create"),
            Permission::on(CHANGES, "dns.resourceRecordSets.delete"),
            read("dns.resourceRecordSets.list"),
            put("dns.resourceRecordSets.update"),
            // A site that leaves the others changes their set.
            Permission::on(&[Verb::Delete], "dns.resourceRecordSets.update{?site}"),
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

/// What an operator does about a record of another client.
const REMOVE: &str = "remove it, or choose another `traffic.domain`";

/// A record, or the item of a site in a weighted record set. Outputs: `name`.
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
    /// The site whose item of a weighted record set it is; null for the record of one site.
    #[serde(default)]
    site: Option<String>,
    /// The share of the item in the answers, in proportion to the others: 0 to 1000.
    #[serde(default)]
    weight: Value,
    /// The health check without whose success the item is not in answers; a plan has a reference. A set has one health check.
    #[serde(default)]
    health_check: Value,
    #[serde(default)]
    tags: Tags,
}

/// What an id consists of: `ZONE/rrsets/NAME/TYPE`, with `/SITE` for the item of one of several sites.
struct Id<'a> {
    zone: &'a str,
    name: String,
    kind: &'a str,
    site: Option<&'a str>,
}

impl<'a> Id<'a> {
    /// Names in ids of others may end with a dot.
    fn parse(id: &'a str) -> Option<Self> {
        let (zone, record) = id.split_once("/rrsets/")?;
        let mut parts = record.splitn(3, '/');
        Some(Self { zone, name: plain(parts.next()?), kind: parts.next()?, site: parts.next() })
    }

    fn id(&self) -> String {
        let site = self.site.map(|site| format!("/{site}")).unwrap_or_default();
        format!("{}/rrsets/{}/{}{site}", self.zone, self.name, self.kind)
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

    /// The texts of the record that says whose this one is.
    fn texts(&self) -> impl Iterator<Item = &str> {
        self.owner.iter().filter_map(|one| one["rrdatas"].as_array()).flatten().filter_map(Value::as_str)
    }

    /// The tags of a record of one site.
    fn alone(&self) -> Tags {
        let mut texts = self.texts().filter(|text| dns_owner::address(text).is_none());
        texts.find_map(dns_owner::tags::<Api>).unwrap_or_default()
    }

    /// Which sites share the record.
    fn shares(&self) -> Vec<Share> {
        self.texts().filter_map(Share::read).collect()
    }

    fn tags(&self, id: &Id<'_>) -> Tags {
        let Some(site) = id.site else { return self.alone() };
        self.shares().into_iter().find(|share| share.is_of(site)).map(|share| share.tags).unwrap_or_default()
    }

    /// The items, if it is a weighted record set.
    fn items(&self) -> Option<&Vec<Value>> {
        self.record.as_ref().and_then(weighted::items)
    }

    /// A record that sites do not share because it is of another client, or has items of one.
    fn stranger(&self, shares: &[Share]) -> Option<&Value> {
        if self.taken.is_some() {
            return self.taken.as_ref();
        }
        let is_known = |item: &Value| shares.iter().any(|share| weighted::is_at(item, &share.address));
        self.record.as_ref().filter(|record| match weighted::items(record) {
            Some(items) => !items.iter().all(is_known),
            // That of one site becomes one of several once that site has changed it.
            None => !record["routingPolicy"].is_null() || self.alone().is_empty(),
        })
    }

    /// Whether several sites share it, also if another client removed the set.
    fn is_shared(&self) -> bool {
        let has_items = self.record.as_ref().is_none_or(|record| weighted::items(record).is_some());
        has_items && self.taken.is_none() && self.alone().is_empty() && !self.shares().is_empty()
    }

    /// The record of one site as it is. Where several sites share it there is none: a create makes it that of one site again, if it can.
    fn seen_alone(&self, id: &Id<'_>) -> Option<Spec> {
        if self.is_shared() {
            return None;
        }
        match (&self.record, &self.taken, &self.owner) {
            (Some(record), ..) | (None, Some(record), None) => Some(spec(id, record)),
            // It is not there, while the one that says whose it is remains.
            (None, _, Some(_)) => Some(spec(id, &json!({ "type": id.kind }))),
            (None, None, None) => None,
        }
    }

    /// The item of a site as it is, and its state.
    fn seen_share(&self, id: &Id<'_>, site: &str) -> Option<(Spec, State)> {
        let shares = self.shares();
        let stranger = self.stranger(&shares);
        let Some(own) = shares.iter().find(|share| share.is_of(site)) else {
            return stranger.map(|record| (spec(id, record), State::Ready));
        };
        let record = self.record.clone().unwrap_or_else(|| json!({ "type": id.kind }));
        let item = self.items().into_iter().flatten().find(|item| weighted::is_at(item, &own.address));
        let check = record["routingPolicy"]["healthCheck"].as_str().map(relative);
        let check = check.filter(|_| item.is_some_and(weighted::is_checked));
        let spec = Spec {
            values: item.map(|_| Value::from(own.address.clone())).into_iter().collect(),
            weight: item.map(|item| item["weight"].clone()).unwrap_or_default(),
            health_check: check.map_or(Value::Null, Value::from),
            ..spec(id, &record)
        };
        let why = || "the record set of its name has items of another client, or is no weighted one".to_owned();
        Some((spec, stranger.map_or(State::Ready, |_| State::Degraded(why()))))
    }

    /// The change that makes the record that of one site.
    fn created(&self, id: &Id<'_>, spec: &Spec, tags: &Tags) -> Result<Change> {
        if !self.is_shared() {
            let own = vec![record(spec), owner(id, vec![dns_owner::value(tags)])];
            return Ok(Change { deletions: Vec::new(), additions: own });
        }
        let shares = self.shares();
        self.refuse_other_deployments(id, &shares, tags)?;
        let is_left = shares.iter().all(|share| weighted::is_own(&share.text, tags));
        if !is_left || self.stranger(&shares).is_some() {
            let why = "the record set of its name still has items of other sites: they go when these sites are changed";
            return Err(Error::new(ErrorKind::Conflict, "create", id.id()).because(why));
        }
        let texts = self.others(tags).chain([dns_owner::value(tags)]).collect();
        let deletions = self.record.iter().chain(&self.owner).cloned().collect();
        Ok(Change { deletions, additions: vec![record(spec), owner(id, texts)] })
    }

    /// The change that adds the item of a site.
    fn joined(&self, id: &Id<'_>, site: &str, spec: &Spec, tags: &Tags) -> Result<Change> {
        let shares = self.shares();
        self.refuse_other_deployments(id, &shares, tags)?;
        let taken = |why: String| Error::new(ErrorKind::Exists, "create", id.id()).because(why);
        if self.stranger(&shares).is_some() {
            let why = "a record of its name is of another client, or has items of one".to_owned();
            return Err(taken(why).hint(REMOVE));
        }
        let alone = self.alone();
        if self.record.is_some() && self.items().is_none() && alone.get(RESOURCE) != tags.get(RESOURCE) {
            let other = alone.get(RESOURCE).map(String::as_str).unwrap_or_default();
            let why =
                format!("the record of its name is still that of `{other}` alone: it is shared once that is changed");
            return Err(Error::new(ErrorKind::Conflict, "create", id.id()).because(why));
        }
        let address = address("create", id, spec)?;
        if let Some(other) = shares.iter().find(|share| share.address == address && !share.is_of(site)) {
            let other = other.tags.get(RESOURCE).map(String::as_str).unwrap_or_default();
            return Err(taken(format!("`{other}` has the same address {address}")));
        }
        self.shared("create", id, spec, tags)
    }

    /// Records of another deployment would share the clients.
    fn refuse_other_deployments(&self, id: &Id<'_>, shares: &[Share], tags: &Tags) -> Result<()> {
        let alone = Some(self.alone()).filter(|tags| !tags.is_empty());
        let mut all = shares.iter().map(|share| &share.tags).chain(&alone);
        let Some(other) = all.find(|other| other.get(LINEAGE) != tags.get(LINEAGE)) else { return Ok(()) };
        let name = other.get(ENVIRONMENT).map(String::as_str).unwrap_or_default();
        let error = Error::new(ErrorKind::Exists, "create", id.id());
        Err(error.because(format!("environment `{name}` of another deployment has a record of this name")).hint(REMOVE))
    }

    /// The texts of others than the resource with these tags.
    fn others(&self, tags: &Tags) -> impl Iterator<Item = String> {
        self.texts().filter(move |text| !weighted::is_own(text, tags)).map(str::to_owned)
    }

    /// The items of others than the resource with these tags.
    fn others_items(&self, tags: &Tags) -> Vec<Value> {
        let own = self.texts().filter(|text| weighted::is_own(text, tags)).find_map(Share::read);
        let items = self.items().into_iter().flatten();
        let others = items.filter(|item| own.as_ref().is_none_or(|own| !weighted::is_at(item, &own.address)));
        others.map(weighted::kept).collect()
    }

    /// The change that gives the resource with these tags the item of a spec.
    fn shared(&self, action: &str, id: &Id<'_>, spec: &Spec, tags: &Tags) -> Result<Change> {
        let address = address(action, id, spec)?;
        let mut items = self.others_items(tags);
        items.push(weighted::item(&spec.weight, address));
        let current = self.record.as_ref().map(|record| record["routingPolicy"]["healthCheck"].clone());
        let is_kept =
            |check: &Value| check.as_str().is_some_and(|check| is_as_good(&spec.health_check, relative(check)));
        let check = match current.filter(is_kept) {
            Some(check) => check,
            None => weighted::check(spec.health_check.as_str())
                .ok_or_else(|| invalid(action, &id.id(), "it has no health check"))?,
        };
        let set = weighted::set(&format!("{}.", id.name), id.kind, &json!(spec.ttl), &check, items);
        let texts = self.others(tags).chain([dns_owner::value_at(tags, address)]).collect();
        Ok(self.change(id, Some(set), texts))
    }

    /// The change from what was read to this record and these texts. A TXT record that stays as it is is no part of it.
    fn change(&self, id: &Id<'_>, record: Option<Value>, texts: Vec<String>) -> Change {
        let mut change = Change { deletions: self.record.iter().cloned().collect(), additions: Vec::new() };
        change.additions.extend(record);
        let mut before: Vec<&str> = self.texts().collect();
        let mut after: Vec<&str> = texts.iter().map(String::as_str).collect();
        before.sort_unstable();
        after.sort_unstable();
        if before != after {
            change.deletions.extend(self.owner.clone());
            change.additions.extend((!texts.is_empty()).then(|| owner(id, texts)));
        }
        change
    }
}

/// What one call deletes and adds.
struct Change {
    deletions: Vec<Value>,
    additions: Vec<Value>,
}

#[async_trait]
impl Resource<Api> for DnsRecord {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["ttl", "values", "weight", "health_check"];

    /// Two calls: the record, and the one that says whose it is.
    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let Some(parts) = Id::parse(id) else { return Ok(None) };
        let pair = Pair::read(api, &parts).await?;
        let found = match parts.site {
            Some(site) => pair.seen_share(&parts, site),
            None => pair.seen_alone(&parts).map(|spec| (spec, State::Ready)),
        };
        let Some((spec, state)) = found else { return Ok(None) };
        let seen = ObservedObject::new(parts.id(), spec, pair.tags(&parts)).state(state);
        Ok(Some(seen.output("name", Some(parts.name))))
    }

    /// None: no call shows the records of a deployment in all zones. A record is read by its name.
    async fn list(_api: &Api, _filter: &Filter<Api>) -> Result<Vec<ObservedObject<Spec>>> {
        Ok(Vec::new())
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(Id { zone: &spec.zone, name: plain(&spec.name), kind: &spec.kind, site: spec.site.as_deref() }.id())
    }

    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        match field {
            // Answers have it as a number with a fraction.
            "weight" => wanted.is_number() && wanted.as_f64() == seen.as_f64(),
            "health_check" => seen.as_str().is_some_and(|seen| is_as_good(wanted, seen)),
            _ => false,
        }
    }

    /// The record that says whose it is remains one of this program.
    fn declare(api: Option<&Api>, request: &Declare<'_>) -> Option<Result<Vec<Declaration>, String>> {
        if request.tool != Tool::Terraform {
            return None;
        }
        let Ok(spec) = request.object.spec.typed::<Spec>() else {
            return Some(Err("its record is of no zone".to_owned()));
        };
        if spec.site.is_some() {
            return Some(Err("Terraform has one resource for the items of all sites".to_owned()));
        }
        let name = format!("{}.", plain(&spec.name));
        let attributes = json!({
            "project": segment(&spec.zone, "projects"), "managed_zone": segment(&spec.zone, "managedZones"), "name": name,
            "type": spec.kind, "ttl": spec.ttl, "rrdatas": spec.values,
        });
        let id = format!("{}/rrsets/{name}/{}", spec.zone, spec.kind);
        let one = declaration(api, "google_dns_record_set", &attributes, id, &[]);
        Some(Ok(vec![Declaration { without: "the TXT record with its owner, which `up` creates beside it", ..one }]))
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
        let pair = Pair::read(api, &parts).await?;
        let change = match parts.site {
            Some(site) => pair.joined(&parts, site, spec, &make.tags)?,
            None => pair.created(&parts, spec, &make.tags)?,
        };
        let is_read = !change.deletions.is_empty();
        let is_shared = parts.site.is_some();
        let sent = send(api, "create", &parts, change).await.map_err(|error| match error.kind {
            ErrorKind::Exists if is_shared || is_read => raced(error),
            ErrorKind::NotFound if is_read => raced(error),
            _ => error,
        });
        Ok((id, Some(sent?)))
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        Self::start(api, seen, spec, field).await.map(drop)
    }

    async fn start(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, _field: &str) -> Result<Option<String>> {
        let (parts, pair) = current(api, "change", seen).await?;
        if parts.site.is_none() {
            let change = Change { deletions: pair.record.into_iter().collect(), additions: vec![record(spec)] };
            return send(api, "change", &parts, change).await.map(Some);
        }
        if pair.stranger(&pair.shares()).is_some() || pair.record.is_some() && pair.items().is_none() {
            let error = Error::new(ErrorKind::Denied, "change", seen.id.clone());
            let why = "the record set of its name has items of another client, or is no weighted one";
            return Err(error.because(why).hint("remove these items, or the record set: the next `up` makes it again"));
        }
        let change = pair.shared("change", &parts, spec, &seen.tags)?;
        send(api, "change", &parts, change).await.map(Some).map_err(raced)
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
        let own = pair.texts().filter(|text| weighted::is_own(text, &seen.tags)).find_map(dns_owner::address);
        let (text, others) = match own {
            Some(address) => (dns_owner::value_at(&tags, &address), pair.others(&seen.tags).collect()),
            None => (dns_owner::value(&tags), Vec::new()),
        };
        let texts: Vec<String> = others.into_iter().chain([text]).collect();
        let change = Change { deletions: pair.owner.into_iter().collect(), additions: vec![owner(&parts, texts)] };
        let sent = send(api, "set tags of", &parts, change).await.map(drop);
        if parts.site.is_some() { sent.map_err(raced) } else { sent }
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let (parts, pair) = current(api, "delete", seen).await?;
        let change = match parts.site {
            Some(_) => left(api, &parts, &pair, &seen.tags).await?,
            None => Change { deletions: pair.record.into_iter().chain(pair.owner).collect(), additions: Vec::new() },
        };
        if change.deletions.is_empty() {
            return Ok(());
        }
        let sent = send(api, "delete", &parts, change).await.map(drop);
        if parts.site.is_some() { sent.map_err(raced) } else { sent }
    }
}

/// The change that takes the item of a site away: that of the last one removes the set. The others keep a health check.
async fn left(api: &Api, id: &Id<'_>, pair: &Pair, tags: &Tags) -> Result<Change> {
    let texts: Vec<String> = pair.others(tags).collect();
    let items = pair.others_items(tags);
    let Some(record) = pair.record.as_ref().filter(|record| weighted::items(record).is_some()) else {
        // It is another one by now, which stays.
        let change = Change { deletions: pair.owner.iter().cloned().collect(), additions: Vec::new() };
        return Ok(Change { additions: (!texts.is_empty()).then(|| owner(id, texts)).into_iter().collect(), ..change });
    };
    if items.is_empty() {
        return Ok(pair.change(id, None, texts));
    }
    let check = remaining_check(api, id, &record["routingPolicy"]["healthCheck"], pair, tags).await?;
    let set = weighted::set(&format!("{}.", id.name), id.kind, &record["ttl"], &check, items);
    Ok(pair.change(id, Some(set), texts))
}

/// The health check of a set that a site leaves: that of another site, if the set has that of the leaving one, which is deleted next.
async fn remaining_check(api: &Api, id: &Id<'_>, current: &Value, pair: &Pair, tags: &Tags) -> Result<Value> {
    let path = current.as_str().map(relative).unwrap_or_default();
    let Some((collection, _)) = path.rsplit_once('/') else { return Ok(current.clone()) };
    let checks = api.list(Service::Compute, collection, "items", &[]).await?;
    let of = |check: &Value| labels::of_description(check["description"].as_str().unwrap_or_default());
    let site = |tags: &Tags| textnlp_cloud::tags::resource(tags).map(|resource| resource.site().to_owned());
    let is_current = |check: &&Value| check["selfLink"].as_str().map(relative) == Some(path);
    let is_left = |found: &Tags| found.get(LINEAGE) == tags.get(LINEAGE) && site(found) == site(tags);
    if !checks.iter().find(is_current).map(of).is_some_and(|found| is_left(&found)) {
        return Ok(current.clone());
    }
    let others = pair.shares().into_iter().filter(|share| !weighted::is_own(&share.text, tags));
    let others: Vec<Option<String>> = others.map(|share| site(&share.tags)).collect();
    let is_other = |found: &Tags| found.get(LINEAGE) == tags.get(LINEAGE) && others.contains(&site(found));
    let other = checks.iter().find(|check| is_other(&of(check)));
    other.map(|check| check["selfLink"].clone()).ok_or_else(|| {
        let error = Error::new(ErrorKind::Conflict, "delete", id.id());
        let error = error.because("the other items of its record set have no health check but that of this site");
        error.hint(
            "run `up` for the other sites, remove items of other clients, or give the record set another health check",
        )
    })
}

/// Another site changed the set since it was read: the driver reads it again.
fn raced(error: Error) -> Error {
    match error.kind {
        ErrorKind::Exists | ErrorKind::NotFound => Error { kind: ErrorKind::Conflict, ..error },
        _ => error,
    }
}

/// Whether a health check is as good as the wanted one: that of any site probes all items.
fn is_as_good(wanted: &Value, seen: &str) -> bool {
    let wanted = wanted.as_str().and_then(|wanted| wanted.rsplit_once('/'));
    let (Some((wanted, _)), Some((seen, name))) = (wanted, seen.rsplit_once('/')) else { return false };
    wanted == seen && name.starts_with(PREFIX)
}

/// The address of an item.
fn address<'s>(action: &str, id: &Id<'_>, spec: &'s Spec) -> Result<&'s str> {
    match spec.values.as_slice() {
        [Value::String(address)] => Ok(address.as_str()),
        _ => Err(invalid(action, &id.id(), "one of several sites has one address")),
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
    if pair.tags(&parts) != seen.tags {
        let error = Error::new(ErrorKind::Conflict, action, seen.id.clone());
        return Err(error.because("another client changed its owner"));
    }
    Ok((parts, pair))
}

/// Sends one change and returns its id.
async fn send(api: &Api, action: &'static str, id: &Id<'_>, change: Change) -> Result<String> {
    let body = json!({ "deletions": change.deletions, "additions": change.additions });
    let call = Call::post(Service::Dns, format!("{}/changes", id.zone), body);
    let answer = api.send(call.saying(action, format!("record {}", id.name))).await?;
    Ok(answer["id"].as_str().unwrap_or_default().to_owned())
}

/// The record of a spec whose references are resolved.
fn record(spec: &Spec) -> Value {
    json!({ "name": format!("{}.", plain(&spec.name)), "type": spec.kind, "ttl": spec.ttl, "rrdatas": spec.values })
}

/// The record that says whose another one is.
fn owner(id: &Id<'_>, texts: Vec<String>) -> Value {
    json!({ "name": format!("{}.", id.owner()), "type": "TXT", "ttl": dns_owner::TTL, "rrdatas": texts })
}

fn spec(id: &Id<'_>, one: &Value) -> Spec {
    Spec {
        zone: id.zone.to_owned(),
        name: id.name.clone(),
        kind: one["type"].as_str().unwrap_or_default().to_owned(),
        ttl: one["ttl"].as_u64().and_then(|ttl| ttl.try_into().ok()).unwrap_or_default(),
        values: one["rrdatas"].as_array().cloned().unwrap_or_default(),
        site: id.site.map(str::to_owned),
        weight: Value::Null,
        health_check: Value::Null,
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
        let found = owner(&id, vec![dns_owner::value(&tags)]);
        assert_eq!(found["name"], "_textnlp-a.text.example.com.");
        assert_eq!(Pair { record: None, owner: Some(found), taken: None }.tags(&id), tags);
        let own = Id::parse("projects/p/managedZones/z/rrsets/text.example.com/A/main").unwrap();
        assert_eq!(
            (own.site, own.id().as_str()),
            (Some("main"), "projects/p/managedZones/z/rrsets/text.example.com/A/main")
        );
        let found = owner(&own, vec!["\"v=spf1 -all\"".to_owned(), dns_owner::value_at(&tags, "192.0.2.1")]);
        let pair = Pair { record: None, owner: Some(found), taken: None };
        assert_eq!((pair.tags(&own), pair.alone()), (tags.clone(), Tags::new()));
        assert_eq!(pair.others(&tags).collect::<Vec<_>>(), ["\"v=spf1 -all\""]);
    }

    #[test]
    fn the_health_check_of_each_site_is_as_good() {
        let wanted = json!("projects/p/global/healthChecks/textnlp-staging-main-health");
        for (seen, expected) in [
            ("projects/p/global/healthChecks/textnlp-staging-other-health", true),
            ("projects/p/global/healthChecks/company", false),
            ("projects/q/global/healthChecks/textnlp-staging-other-health", false),
        ] {
            assert_eq!(is_as_good(&wanted, seen), expected, "{seen}");
        }
        assert!(!is_as_good(&Value::Null, "projects/p/global/healthChecks/textnlp-staging-main-health"));
    }
}
