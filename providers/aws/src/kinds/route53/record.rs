//! Records of an existing zone: <https://docs.aws.amazon.com/Route53/latest/APIReference/API_ChangeResourceRecordSets.html>.
//!
//! Records have no tags. A TXT record beside each one says whose it is. Both are created and deleted in one batch, which
//! Route 53 applies completely or not at all. A change deletes the record as it was read and creates the wanted one in one batch,
//! which Route 53 refuses if another client changed the record since.

use async_trait::async_trait;
use aws_sdk_route53::types::{
    AliasTarget, Change, ChangeAction, ChangeBatch, ChangeStatus, ResourceRecord, ResourceRecordSet as Answer,
    ResourceRecordSetFailover, RrType,
};
use aws_smithy_types::error::operation::BuildError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use textnlp_cloud::dns_owner;
use textnlp_provider::{Condition, Error, ErrorKind, Identity, Permission, Pricing, Result, Verb};

use super::SERVICE;
use crate::api::Api;
use crate::kinds::only;
use crate::resource::{Filter, Make, ObservedObject, Of, Resource, State};
use crate::table::{Row, kind};
use crate::tags::{self, Tags};

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        pricing: Pricing::BySpec,
        permissions: &[
            // The record and the one beside it, by name and type.
            Permission {
                conditions: &[
                    Condition {
                        key: "ForAllValues:route53:ChangeResourceRecordSetsNormalizedRecordNames",
                        value: "{name} _textnlp-*.{name}",
                    },
                    Condition { key: "ForAllValues:route53:ChangeResourceRecordSetsRecordTypes", value: "{type} TXT" },
                ],
                ..only(Permission::on(CHANGES, "route53:ChangeResourceRecordSets"), ZONE)
            },
            only(Permission::on(CHANGES, "route53:GetChange"), "arn:{$partition}:route53:::change/*"),
            only(Permission::read("route53:GetHostedZone"), ZONE),
            only(Permission::read("route53:ListResourceRecordSets"), ZONE),
        ],
        ..kind("aws.dns-record", "a DNS record", Identity::Part)
    },
    service: SERVICE,
    resource: &Of::<DnsRecord>::kind(),
    refused: &[],
}];

const ZONE: &str = "arn:{$partition}:route53:::hostedzone/{zone}";
const CHANGES: &[Verb] = &[Verb::Create, Verb::Update, Verb::Delete];
/// Records of one name in an answer, and how many answers are read: far more records than a name has.
const PAGE: i32 = 300;
const MOST_PAGES: usize = 10;

/// A record. Outputs: `name`.
struct DnsRecord;

/// The attributes of a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Spec {
    /// The id of the zone.
    zone: String,
    /// The name, in lower case, without a dot at its end.
    name: String,
    /// `A`, `AAAA` or `CNAME`.
    #[serde(rename = "type")]
    kind: String,
    /// What distinguishes it from other records of the same name and type; null for the only one.
    set: Option<String>,
    /// Its share of the answers, in proportion to the other sets.
    weight: Option<i64>,
    /// `PRIMARY` or `SECONDARY`.
    failover: Option<String>,
    /// Seconds that resolvers may keep an answer; null for an alias, which has that of its target.
    ttl: Option<i64>,
    /// The addresses or the name; empty for an alias. A plan has references among them.
    values: Vec<Value>,
    /// The object of AWS that it stands for.
    alias: Option<Alias>,
    /// The id of the health check without which it is not in answers; a plan has a reference.
    health_check: Value,
    #[serde(default)]
    tags: Tags,
}

/// An object of AWS with addresses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Alias {
    /// Its name; a plan has a reference.
    name: Value,
    /// The zone of AWS that has its name.
    zone: String,
    /// Whether the record is not in answers while the object is unhealthy.
    health: bool,
}

/// What an id consists of.
pub(in crate::kinds) struct Id<'a> {
    pub(in crate::kinds) zone: &'a str,
    pub(in crate::kinds) name: &'a str,
    pub(in crate::kinds) kind: &'a str,
    pub(in crate::kinds) set: Option<&'a str>,
}

impl<'a> Id<'a> {
    /// `ZONE/NAME/TYPE`, with `/SET` for one of several.
    fn parse(id: &'a str) -> Option<Self> {
        let mut parts = id.splitn(4, '/');
        Some(Self { zone: parts.next()?, name: parts.next()?, kind: parts.next()?, set: parts.next() })
    }

    /// The name of the record that says whose this one is. A set identifier may have any characters.
    fn owner(&self) -> String {
        let set = self.set.map_or(String::new(), |set| format!("-{}", hex::encode(&Sha256::digest(set)[..4])));
        dns_owner::name(self.kind, &set, self.name)
    }

    fn is_same(&self, one: &Answer) -> bool {
        one.r#type.as_str() == self.kind && one.set_identifier.as_deref() == self.set
    }

    /// Whether Route 53 accepts no such record beside this one.
    fn excludes(&self, one: &Answer) -> bool {
        let is_alone = |set: Option<&str>| set.is_none();
        match one.r#type.as_str() == self.kind {
            true => is_alone(one.set_identifier.as_deref()) != is_alone(self.set),
            false => one.r#type == RrType::Cname || self.kind == "CNAME",
        }
    }
}

/// A record and the one that says whose it is, as they are.
pub(in crate::kinds) struct Pair {
    pub(in crate::kinds) record: Option<Answer>,
    pub(in crate::kinds) owner: Option<Answer>,
    /// A record that another client made and beside which this one cannot be, or which would share its clients.
    pub(in crate::kinds) taken: Option<Answer>,
    /// The owners of the other weighted or failover records of the name and type, if this one is not there.
    others: Vec<Tags>,
}

impl Pair {
    pub(in crate::kinds) async fn read(api: &Api, id: &Id<'_>) -> Result<Self> {
        let owner = id.owner();
        // The owner first: a deletion that an earlier call began, and whose answer was lost, may end in between. The other way
        // round, the record would be one without an owner.
        let mut owners = records(api, id.zone, &owner).await?;
        let mut there = records(api, id.zone, id.name).await?;
        let record = there.iter().position(|one| id.is_same(one)).map(|place| there.swap_remove(place));
        let owner = owners.iter().position(|one| one.r#type == RrType::Txt && one.set_identifier.is_none());
        let owner = owner.map(|place| owners.swap_remove(place));
        let mut taken = there.iter().find(|one| id.excludes(one)).cloned();
        let mut others = Vec::new();
        // Whom it would share the clients with matters before it is there.
        let is_new = record.is_none() && id.set.is_some();
        for other in there.into_iter().filter(|one| is_new && one.r#type.as_str() == id.kind) {
            let owner = Id { set: other.set_identifier.as_deref(), ..*id }.owner();
            let tags = owned_by(&records(api, id.zone, &owner).await?);
            if tags.is_empty() {
                // Its deletion may have ended since: then the record went with its owner.
                let is_same = |one: &Answer| one.r#type == other.r#type && one.set_identifier == other.set_identifier;
                if records(api, id.zone, id.name).await?.iter().any(is_same) {
                    taken.get_or_insert(other);
                }
            } else {
                others.push(tags);
            }
        }
        Ok(Self { record, owner, taken, others })
    }

    pub(in crate::kinds) fn tags(&self) -> Tags {
        owned_by(self.owner.as_slice())
    }
}

/// The tags that an owner's record has.
fn owned_by(records: &[Answer]) -> Tags {
    let mut values = records.iter().flat_map(|one| one.resource_records.iter().flatten());
    values.find_map(|value| dns_owner::tags::<Api>(&value.value)).unwrap_or_default()
}

#[async_trait]
impl Resource<Api> for DnsRecord {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["weight", "failover", "ttl", "values", "alias", "health_check"];

    /// Two calls: the record, and the one that says whose it is.
    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let Some(parts) = Id::parse(id) else { return Ok(None) };
        let pair = Pair::read(api, &parts).await?;
        let tags = pair.tags();
        let spec = match (&pair.record, &pair.taken) {
            (Some(record), _) => spec(&parts, record),
            (None, Some(taken)) if pair.owner.is_none() => spec(&parts, taken),
            (None, _) if pair.owner.is_some() => nothing(&parts),
            (None, _) => return Ok(None),
        };
        Ok(Some(ObservedObject::new(id, spec, tags).output("name", Some(parts.name))))
    }

    /// None: no call shows the records of a deployment in all zones of an account. A record is read by its name.
    async fn list(_api: &Api, _filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        Ok(Vec::new())
    }

    fn id(spec: &Spec) -> Option<String> {
        let id = format!("{}/{}/{}", spec.zone, spec.name, spec.kind);
        Some(spec.set.as_ref().map_or(id.clone(), |set| format!("{id}/{set}")))
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        Ok(Self::begin(api, make, spec).await?.0)
    }

    async fn begin(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<(String, Option<String>)> {
        let id = Self::id(spec).unwrap_or_default();
        let subject = format!("record {id}");
        let parts = Id::parse(&id).ok_or_else(|| invalid("create", &subject, "its spec has no name"))?;
        if !spec.tags.is_empty() {
            return Err(invalid("create", &subject, "a record has no tags"));
        }
        // Records of another deployment would share the clients.
        let lineage = make.tags.get(tags::LINEAGE);
        let pair = Pair::read(api, &parts).await?;
        if let Some(other) = pair.others.iter().find(|other| other.get(tags::LINEAGE) != lineage) {
            let name = other.get(tags::ENVIRONMENT).map(String::as_str).unwrap_or_default();
            let error = Error::new(ErrorKind::Exists, "create", subject);
            return Err(error.because(format!("environment `{name}` of another deployment has records of this name")));
        }
        let owner = owner(&parts, &make.tags).map_err(|error| unbuilt("create", &subject, error))?;
        let record = record(spec).map_err(|error| unbuilt("create", &subject, error))?;
        let change = send(api, "create", &id, [(ChangeAction::Create, record), (ChangeAction::Create, owner)]).await?;
        Ok((id, Some(change)))
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        Self::start(api, seen, spec, field).await.map(drop)
    }

    async fn start(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, _field: &str) -> Result<Option<String>> {
        let pair = current(api, "change", seen).await?;
        let new = record(spec).map_err(|error| unbuilt("change", &seen.id, error))?;
        let old = pair.record.map(|old| (ChangeAction::Delete, old));
        send(api, "change", &seen.id, old.into_iter().chain([(ChangeAction::Create, new)])).await.map(Some)
    }

    /// Whether all name servers of Route 53 have the change: <https://docs.aws.amazon.com/Route53/latest/APIReference/API_GetChange.html>.
    async fn change(api: &Api, id: &str, change: &str) -> Result<State> {
        let answer = api.find(SERVICE, id, api.route53.get_change().id(change).send()).await?;
        let status = answer.and_then(|answer| answer.change_info).map(|info| info.status);
        Ok(match status {
            Some(ChangeStatus::Pending) => State::Pending("PENDING".to_owned()),
            _ => State::Ready,
        })
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, _remove: &[String]) -> Result<()> {
        let Some(parts) = Id::parse(&seen.id) else { return Ok(()) };
        let mut tags = seen.tags.clone();
        tags.extend(set.clone());
        let owner = owner(&parts, &tags).map_err(|error| unbuilt("set tags of", &seen.id, error))?;
        send(api, "set tags of", &seen.id, [(ChangeAction::Upsert, owner)]).await.map(drop)
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let pair = current(api, "delete", seen).await?;
        let there = pair.record.into_iter().chain(pair.owner).map(|one| (ChangeAction::Delete, one));
        send(api, "delete", &seen.id, there).await.map(drop)
    }
}

/// The records of a name.
async fn records(api: &Api, zone: &str, name: &str) -> Result<Vec<Answer>> {
    let mut all = Vec::new();
    let mut next: (String, Option<RrType>, Option<String>) = (name.to_owned(), None, None);
    for _ in 0..MOST_PAGES {
        let (start, kind, set) = next;
        let call = api.route53.list_resource_record_sets().hosted_zone_id(zone).max_items(PAGE);
        let call = call.start_record_name(start).set_start_record_type(kind).set_start_record_identifier(set).send();
        let Some(page) = api.find(SERVICE, format!("zone {zone}"), call).await? else { break };
        all.extend(page.resource_record_sets.into_iter().filter(|one| plain(&one.name) == name));
        match page.next_record_name {
            Some(more) if plain(&more) == name => next = (more, page.next_record_type, page.next_record_identifier),
            _ => break,
        }
    }
    Ok(all)
}

/// A record as it is now, unless its owner changed since it was read.
async fn current(api: &Api, action: &str, seen: &ObservedObject<Spec>) -> Result<Pair> {
    let parts = Id::parse(&seen.id).ok_or_else(|| invalid(action, &seen.id, "it is no id of a record"))?;
    let pair = Pair::read(api, &parts).await?;
    if pair.tags() != seen.tags {
        let error = Error::new(ErrorKind::Conflict, action, seen.id.clone());
        return Err(error.because("another client changed its owner"));
    }
    Ok(pair)
}

/// Sends one batch and returns the id of the change.
pub(in crate::kinds) async fn send(
    api: &Api,
    action: &'static str,
    id: &str,
    changes: impl IntoIterator<Item = (ChangeAction, Answer)>,
) -> Result<String> {
    let changes =
        changes.into_iter().map(|(verb, one)| Change::builder().action(verb).resource_record_set(one).build());
    let changes: Result<Vec<Change>, BuildError> = changes.collect();
    let batch = changes.and_then(|changes| ChangeBatch::builder().set_changes(Some(changes)).build());
    let batch = batch.map_err(|error| unbuilt(action, id, error))?;
    let zone = id.split('/').next().unwrap_or_default();
    let call = api.route53.change_resource_record_sets().hosted_zone_id(zone).change_batch(batch).send();
    let answer = api.call(SERVICE, action, format!("record {id}"), call).await?;
    Ok(answer.change_info.map(|info| info.id.trim_start_matches("/change/").to_owned()).unwrap_or_default())
}

/// The record of a spec whose references are resolved.
fn record(spec: &Spec) -> Result<Answer, BuildError> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let values: Result<Vec<ResourceRecord>, BuildError> =
        spec.values.iter().filter_map(text).map(|value| ResourceRecord::builder().value(value).build()).collect();
    let values = Some(values?).filter(|values| !values.is_empty());
    let alias = spec.alias.as_ref().map(|alias| {
        let target = AliasTarget::builder().hosted_zone_id(&alias.zone).evaluate_target_health(alias.health);
        target.set_dns_name(text(&alias.name)).build()
    });
    Answer::builder()
        .name(&spec.name)
        .r#type(RrType::from(spec.kind.as_str()))
        .set_set_identifier(spec.set.clone())
        .set_weight(spec.weight)
        .set_failover(spec.failover.as_deref().map(ResourceRecordSetFailover::from))
        .set_ttl(spec.ttl)
        .set_resource_records(values)
        .set_alias_target(alias.transpose()?)
        .set_health_check_id(text(&spec.health_check))
        .build()
}

/// The record that says whose another one is.
pub(in crate::kinds) fn owner(id: &Id<'_>, tags: &Tags) -> Result<Answer, BuildError> {
    let value = ResourceRecord::builder().value(dns_owner::value(tags)).build()?;
    let owner = Answer::builder().name(id.owner()).r#type(RrType::Txt).ttl(i64::from(dns_owner::TTL));
    owner.resource_records(value).build()
}

/// A record that is not there, while the one that says whose it is remains.
fn nothing(id: &Id<'_>) -> Spec {
    Spec {
        zone: id.zone.to_owned(),
        name: id.name.to_owned(),
        kind: id.kind.to_owned(),
        set: id.set.map(str::to_owned),
        weight: None,
        failover: None,
        ttl: None,
        values: Vec::new(),
        alias: None,
        health_check: Value::Null,
        tags: Tags::new(),
    }
}

fn spec(id: &Id<'_>, one: &Answer) -> Spec {
    let values = one.resource_records.iter().flatten().map(|record| Value::from(record.value.clone()));
    Spec {
        kind: one.r#type.as_str().to_owned(),
        set: one.set_identifier.clone(),
        weight: one.weight,
        failover: one.failover.as_ref().map(|failover| failover.as_str().to_owned()),
        ttl: one.ttl,
        values: values.collect(),
        alias: one.alias_target.as_ref().map(|target| Alias {
            name: Value::from(plain(&target.dns_name)),
            zone: target.hosted_zone_id.clone(),
            health: target.evaluate_target_health,
        }),
        health_check: one.health_check_id.clone().map_or(Value::Null, Value::from),
        ..nothing(id)
    }
}

/// A name as specs have it. Answers end it with a dot and write an asterisk as its code
/// (<https://docs.aws.amazon.com/Route53/latest/DeveloperGuide/DomainNameFormat.html>).
pub(in crate::kinds) fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase().replace("\\052", "*")
}

fn invalid(action: &str, subject: &str, why: &str) -> Error {
    Error::new(ErrorKind::Invalid, action, subject.to_owned()).because(why.to_owned())
}

pub(in crate::kinds) fn unbuilt(action: &str, subject: &str, error: BuildError) -> Error {
    Error::new(ErrorKind::Invalid, action, subject.to_owned()).because(error)
}

#[cfg(test)]
mod tests {
    use textnlp_provider::{Lineage, ResourceId};

    use super::*;

    #[test]
    fn owners_are_written_and_read() {
        let resource = format!("here/gateway/{}", "record-".repeat(4).trim_end_matches('-'));
        let lineage: Lineage = "00000000-0000-4000-8000-000000007e57".parse().unwrap();
        let (environment, resource) = ("staging".parse().unwrap(), ResourceId::new(resource).unwrap());
        let mut tags = textnlp_cloud::tags::of_object::<Api>(lineage, &environment, &resource, &Tags::new());
        tags.insert(tags::OPERATION.to_owned(), "ab".repeat(16));
        let id = Id::parse("Z1/text.example.com/A").unwrap();
        let made = owner(&id, &tags).unwrap();
        let value = made.resource_records.unwrap().remove(0).value;
        assert!(value.split('"').all(|text| text.len() <= 255), "{value}");
        assert_eq!(dns_owner::tags::<Api>(&value), Some(tags));
        for foreign in ["\"heritage=external-dns,external-dns/owner=default\"", "\"v=spf1 -all\"", ""] {
            assert_eq!(dns_owner::tags::<Api>(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn each_record_has_an_owner_of_its_own() {
        let owner = |id: &str| Id::parse(id).unwrap().owner();
        assert_eq!(owner("Z1/text.example.com/A"), "_textnlp-a.text.example.com");
        assert_eq!(owner("Z1/*.example.com/CNAME"), "_textnlp-cname-wildcard.example.com");
        assert_ne!(owner("Z1/text.example.com/A/north"), owner("Z1/text.example.com/A/south"));
    }
}
