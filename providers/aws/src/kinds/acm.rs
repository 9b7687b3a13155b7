//! Certificates of ACM that records of a zone validate:
//! <https://docs.aws.amazon.com/acm/latest/userguide/dns-validation.html>.
//!
//! ACM states a CNAME record for each name, and renews the certificate while the records are there. They belong to the
//! certificate: the driver adds them one at a time, waits until ACM has issued it, and deletes those that it created
//! before the certificate. A TXT record beside each one says whose it is, as with the kind of records. ACM states the
//! same record for every certificate of the account with the name; one that another client created is used and left as
//! it is.

use std::collections::BTreeSet;

use async_trait::async_trait;
use aws_sdk_acm::types::{CertificateDetail, CertificateStatus, ResourceRecord, Tag, ValidationMethod};
use aws_sdk_route53::types::{ChangeAction, ResourceRecord as Value, ResourceRecordSet, RrType};
use serde::{Deserialize, Serialize};
use textnlp_provider::{Condition, Error, ErrorKind, Identity, Permission, Result, Verb};

use super::route53::record::{self, Id, Pair, plain, unbuilt};
use super::{CREATE, DELETE, OURS, PUT, arns_by_tag, only, when};
use crate::api::Api;
use crate::resource::{Filter, Make, ObservedObject, Of, Resource, State, timestamp};
use crate::table::{MINUTE, Row, kind};
use crate::tags::{self, Tags};

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        permissions: &[
            only(Permission::on(CREATE, "acm:AddTagsToCertificate"), CERTIFICATES),
            when(OURS, only(Permission::on(PUT, "acm:AddTagsToCertificate"), CERTIFICATES)),
            when(OURS, only(Permission::on(DELETE, "acm:DeleteCertificate"), CERTIFICATES)),
            only(Permission::read("acm:DescribeCertificate"), CERTIFICATES),
            only(Permission::read("acm:ListTagsForCertificate"), CERTIFICATES),
            when(OURS, only(Permission::on(PUT, "acm:RemoveTagsFromCertificate"), CERTIFICATES)),
            // A new certificate has no ARN
            // (<https://docs.aws.amazon.com/service-authorization/latest/reference/list_awscertificatemanager.html>).
            Permission::on(CREATE, "acm:RequestCertificate"),
            Permission {
                // ACM states the names of the records once it has the request.
                conditions: &[
                    Condition {
                        key: "ForAllValues:route53:ChangeResourceRecordSetsNormalizedRecordNames",
                        value: "_*",
                    },
                    Condition { key: "ForAllValues:route53:ChangeResourceRecordSetsRecordTypes", value: "CNAME TXT" },
                ],
                ..only(Permission::on(CHANGES, "route53:ChangeResourceRecordSets"), ZONE)
            },
            only(Permission::read("route53:ListResourceRecordSets"), ZONE),
        ],
        terraform: &[("aws_acm_certificate", "arn")],
        // ACM states several hours at most; its failures say so sooner.
        deadline: MINUTE.saturating_mul(120),
        ..kind("aws.certificate", "a public certificate", Identity::Token)
    },
    service: SERVICE,
    resource: &Of::<Certificate>::kind(),
    refused: &[],
}];

const CERTIFICATES: &str = "arn:{$partition}:acm:{$region}:{$account}:certificate/*";
const ZONE: &str = "arn:{$partition}:route53:::hostedzone/{zone}";
const CHANGES: &[Verb] = &[Verb::Create, Verb::Update, Verb::Delete];
/// The signing name.
const SERVICE: &str = "acm";
/// The type of certificates of the tagging API.
const TYPE: &str = "acm:certificate";
/// Seconds that resolvers may keep a validation record.
const TTL: i64 = 300;
/// The longest idempotency token, of letters and digits:
/// <https://docs.aws.amazon.com/acm/latest/APIReference/API_RequestCertificate.html>.
const LONGEST_TOKEN: usize = 32;

/// A certificate. Outputs: `arn`.
struct Certificate;

/// The attributes of a certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Spec {
    /// Its names, in lower case.
    names: Vec<String>,
    /// The id of the zone with its validation records.
    zone: String,
    /// Whether all of these are there: always in a wanted spec.
    records: bool,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for Certificate {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["zone", "records"];

    /// Two calls, and two for each validation record.
    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        // An import names it by its ARN.
        let id = id.rsplit('/').next().unwrap_or(id);
        let arn = arn(api, id);
        let answer = api.find(SERVICE, id, api.acm.describe_certificate().certificate_arn(&arn).send()).await?;
        let Some(found) = answer.and_then(|answer| answer.certificate) else { return Ok(None) };
        let answer = api.find(SERVICE, id, api.acm.list_tags_for_certificate().certificate_arn(&arn).send()).await?;
        let Some(answer) = answer else { return Ok(None) };
        let listed = answer.tags.unwrap_or_default().into_iter();
        let tags: Tags = listed.map(|tag| (tag.key, tag.value.unwrap_or_default())).collect();
        let zone = tags.get(tags::ZONE).cloned().unwrap_or_default();
        let needed = needed(&found);
        let mut is_complete = !needed.is_empty() && !zone.is_empty();
        for one in &needed {
            is_complete = is_complete && is_there(&Pair::read(api, &one.id(&zone)).await?, one);
        }
        let state = state(&found, is_complete, needed.is_empty());
        let names = found.domain_name.iter().chain(found.subject_alternative_names.iter().flatten());
        let names: BTreeSet<String> = names.map(|name| plain(name)).collect();
        let spec = Spec { names: names.into_iter().collect(), zone, records: is_complete, tags: Tags::new() };
        let seen = ObservedObject::new(id, spec, tags).state(state).created(timestamp(found.created_at));
        Ok(Some(seen.output("arn", Some(arn))))
    }

    /// One call for each page of the tagging API, and those of a read for each certificate.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let mut all = Vec::new();
        for arn in arns_by_tag(api, filter, TYPE).await? {
            let id = arn.rsplit('/').next().unwrap_or_default();
            all.extend(Self::read(api, id).await?);
        }
        Ok(all)
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let subject = format!("certificate of {}", spec.names.join(", "));
        let mut tags = make.tags.clone();
        tags.insert(tags::ZONE.to_owned(), spec.zone.clone());
        let token: String = make.token.chars().filter(char::is_ascii_alphanumeric).take(LONGEST_TOKEN).collect();
        let others = Some(spec.names.iter().skip(1).cloned().collect::<Vec<_>>()).filter(|others| !others.is_empty());
        let call = api.acm.request_certificate().set_domain_name(spec.names.first().cloned());
        let call = call.set_subject_alternative_names(others).validation_method(ValidationMethod::Dns);
        let call = call.idempotency_token(token).set_tags(Some(listed(&tags, &subject)?)).send();
        let answer = api.call(SERVICE, "create", subject, call).await?;
        let arn = answer.certificate_arn.unwrap_or_default();
        Ok(arn.rsplit('/').next().unwrap_or_default().to_owned())
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        if field == "zone" {
            let set = Tags::from([(tags::ZONE.to_owned(), spec.zone.clone())]);
            return Self::tag(api, seen, &set, &[]).await;
        }
        for one in described(api, &seen.id).await? {
            let id = one.id(&spec.zone);
            let pair = Pair::read(api, &id).await?;
            if is_there(&pair, &one) {
                continue;
            }
            let subject = format!("{}/{}/CNAME", spec.zone, one.name);
            if pair.record.is_some() || pair.taken.is_some() {
                let error = Error::new(ErrorKind::Exists, "create", format!("record {subject}"));
                let why = "another client made a record of this name, which ACM needs to validate the certificate";
                return Err(error.because(why.to_owned()).hint("remove that record, then run the same command again"));
            }
            let invalid = |error| unbuilt("create", &subject, error);
            let value = Value::builder().value(&one.value).build().map_err(invalid)?;
            let new = ResourceRecordSet::builder().name(&one.name).r#type(RrType::Cname).ttl(TTL);
            let new = new.resource_records(value).build().map_err(invalid)?;
            let owner = record::owner(&id, &seen.tags).map_err(invalid)?;
            let changes = [(ChangeAction::Create, new), (ChangeAction::Upsert, owner)];
            return record::send(api, "create", &subject, changes).await.map(drop);
        }
        Ok(())
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        let arn = arn(api, &seen.id);
        if set.is_empty() {
            let gone = seen.tags.iter().filter(|(key, _)| remove.contains(key));
            let gone: Tags = gone.map(|(key, value)| (key.clone(), value.clone())).collect();
            let call = api.acm.remove_tags_from_certificate().certificate_arn(arn);
            let call = call.set_tags(Some(listed(&gone, &seen.id)?)).send();
            return api.call(SERVICE, "remove tags of", &seen.id, call).await.map(drop);
        }
        let call = api.acm.add_tags_to_certificate().certificate_arn(arn).set_tags(Some(listed(set, &seen.id)?)).send();
        api.call(SERVICE, "set tags of", &seen.id, call).await.map(drop)
    }

    /// First the validation records of this deployment that no other certificate of it needs, one at a time, then the
    /// certificate. While a load balancer has it, ACM refuses.
    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let zone = &seen.spec.zone;
        let ours = tags::lineage(&seen.tags);
        let mut needed = if zone.is_empty() { BTreeSet::new() } else { described(api, &seen.id).await? };
        if let Some(lineage) = ours {
            for arn in arns_by_tag(api, &Filter::of(lineage), TYPE).await? {
                let id = arn.rsplit('/').next().unwrap_or_default();
                if id != seen.id {
                    let others = described(api, id).await?;
                    needed.retain(|one| !others.contains(one));
                }
            }
        }
        for one in needed {
            let pair = Pair::read(api, &one.id(zone)).await?;
            if ours.is_none() || tags::lineage(&pair.tags()) != ours {
                continue;
            }
            let there = pair.record.into_iter().chain(pair.owner).map(|one| (ChangeAction::Delete, one));
            return record::send(api, "delete", &format!("{zone}/{}/CNAME", one.name), there).await.map(drop);
        }
        let call = api.acm.delete_certificate().certificate_arn(arn(api, &seen.id)).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

/// A record that ACM asks for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Needed {
    name: String,
    value: String,
}

impl Needed {
    fn of(record: &ResourceRecord) -> Self {
        Self { name: plain(&record.name), value: record.value.clone() }
    }

    fn id<'a>(&'a self, zone: &'a str) -> Id<'a> {
        Id { zone, name: &self.name, kind: "CNAME", set: None }
    }
}

/// The records of a certificate; none while ACM has not stated all of them. A name and all names below it have the same
/// one.
fn needed(found: &CertificateDetail) -> BTreeSet<Needed> {
    let options = found.domain_validation_options.as_deref().unwrap_or_default();
    let all: Option<BTreeSet<Needed>> =
        options.iter().map(|option| option.resource_record.as_ref().map(Needed::of)).collect();
    all.unwrap_or_default()
}

async fn described(api: &Api, id: &str) -> Result<BTreeSet<Needed>> {
    let answer = api.find(SERVICE, id, api.acm.describe_certificate().certificate_arn(arn(api, id)).send()).await?;
    Ok(answer.and_then(|answer| answer.certificate).map(|found| needed(&found)).unwrap_or_default())
}

fn is_there(pair: &Pair, needed: &Needed) -> bool {
    let mut values = pair.record.iter().flat_map(|record| record.resource_records.iter().flatten());
    values.any(|one| plain(&one.value) == plain(&needed.value))
}

fn state(found: &CertificateDetail, is_complete: bool, is_unstated: bool) -> State {
    let reason = found.failure_reason.as_ref().map(|reason| reason.as_str().to_owned()).unwrap_or_default();
    match &found.status {
        Some(CertificateStatus::Issued) => State::Ready,
        // Without its records it waits for the driver to add them.
        Some(status @ CertificateStatus::PendingValidation) if is_complete || is_unstated => {
            State::Pending(status.as_str().to_owned())
        }
        Some(CertificateStatus::PendingValidation) => State::Ready,
        Some(status @ (CertificateStatus::Failed | CertificateStatus::ValidationTimedOut)) => {
            State::Failed { why: format!("the certificate is {status}: {reason}"), code: reason }
        }
        Some(status) => State::Degraded(format!("the certificate is {status}")),
        None => State::Degraded("the certificate has no status".to_owned()),
    }
}

/// The ARN of a certificate of this account and region.
fn arn(api: &Api, id: &str) -> String {
    api.arn(SERVICE, &api.region, &format!("certificate/{id}"))
}

fn listed(tags: &Tags, subject: &str) -> Result<Vec<Tag>> {
    let tags = tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build());
    tags.collect::<std::result::Result<_, _>>().map_err(|error| unbuilt("set tags of", subject, error))
}
