//! Topics, with their subscriptions as a field: <https://docs.aws.amazon.com/sns/latest/api/API_CreateTopic.html>.

use async_trait::async_trait;
use aws_sdk_sns::types::{Subscription as Answer, Tag};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::{Identity, Permission, Pricing, Result};

use super::{CREATE, DELETE, PUT, iam, list_by_tag, only};
use crate::api::Api;
use crate::resource::{Filter, Make, ObservedObject, Of, Resource};
use crate::table::{Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        pricing: Pricing::BySpec,
        permissions: &[
            only(Permission::on(CREATE, "sns:CreateTopic"), TOPICS),
            only(Permission::on(DELETE, "sns:DeleteTopic"), TOPICS),
            Permission::read("sns:GetTopicAttributes"),
            Permission::read("sns:ListSubscriptionsByTopic"),
            Permission::read("sns:ListTagsForResource"),
            only(Permission::on(PUT, "sns:SetTopicAttributes"), TOPICS),
            only(Permission::on(PUT, "sns:Subscribe"), TOPICS),
            only(Permission::on(PUT, "sns:TagResource"), TOPICS),
            // A subscription is no resource of IAM
            // (<https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonsns.html>).
            Permission::on(PUT, "sns:Unsubscribe"),
            only(Permission::on(PUT, "sns:UntagResource"), TOPICS),
        ],
        terraform: &[("aws_sns_topic", "id")],
        ..kind("aws.topic", "a topic that sends notifications", Identity::Named)
    },
    service: SERVICE,
    resource: &Of::<Topic>::kind(),
    refused: &[],
}];

/// The topics of this program.
const TOPICS: &str = "arn:{$partition}:sns:{$region}:{$account}:textnlp-*";
/// The signing name.
const SERVICE: &str = "sns";
/// The attribute with the key.
const KEY: &str = "KmsMasterKeyId";
/// The attribute with the policy.
const POLICY: &str = "Policy";

/// A topic. Outputs: `name`, `arn`, and `unconfirmed`: the addresses whose owners have not confirmed their subscription yet.
struct Topic;

/// The attributes of a topic.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// Its name, which no other topic of the region has.
    name: String,
    /// The key that its messages are encrypted with; `None` does not encrypt them.
    key: Option<String>,
    /// Who may use it: an IAM policy document.
    policy: Value,
    /// Who gets its messages.
    subscriptions: Vec<Subscription>,
    #[serde(default)]
    tags: Tags,
}

/// An address that gets the messages of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Subscription {
    /// `email`, `https`.
    protocol: String,
    /// The address.
    endpoint: String,
    /// Whether its owner has not confirmed it yet: never in a wanted spec.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pending: bool,
}

#[async_trait]
impl Resource<Api> for Topic {
    type Spec = Spec;
    // The messages are encrypted before the first one is sent.
    const IN_PLACE: &'static [&'static str] = &["key", "policy", "subscriptions"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let arn = arn(api, id);
        let answer = api.find(SERVICE, id, api.sns.get_topic_attributes().topic_arn(&arn).send()).await?;
        let Some(mut attributes) = answer.and_then(|answer| answer.attributes) else { return Ok(None) };
        let Some(subscriptions) = subscriptions(api, id).await? else { return Ok(None) };
        let call = api.sns.list_tags_for_resource().resource_arn(&arn).send();
        let Some(tags) = api.find(SERVICE, id, call).await? else { return Ok(None) };
        let tags = tags.tags.unwrap_or_default().into_iter().map(|tag| (tag.key, tag.value)).collect();
        let policy = attributes.remove(POLICY).and_then(|text| serde_json::from_str(&text).ok());
        let subscriptions: Vec<Subscription> =
            subscriptions.iter().filter(|one| !is_deleted(one)).filter_map(seen).collect();
        let pending = subscriptions.iter().filter(|one| one.pending);
        let unconfirmed = pending.map(|one| one.endpoint.as_str()).collect::<Vec<_>>().join(", ");
        let spec = Spec {
            name: id.to_owned(),
            key: attributes.remove(KEY).filter(|key| !key.is_empty()),
            policy: policy.map(iam::normal).unwrap_or_default(),
            subscriptions,
            tags: Tags::new(),
        };
        let topic = ObservedObject::new(id, spec, tags).output("name", Some(id)).output("arn", Some(arn));
        Ok(Some(topic.output("unconfirmed", (!unconfirmed.is_empty()).then_some(unconfirmed))))
    }

    /// One call for each page of the tagging API, and three for each topic.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        list_by_tag::<Self>(api, filter, SERVICE, |arn| arn.rsplit(':').next()).await
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(spec.name.clone())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let call = api.sns.create_topic().name(&spec.name).attributes(POLICY, spec.policy.to_string());
        let call = match &spec.key {
            Some(key) => call.attributes(KEY, key),
            None => call,
        };
        let call = call.set_tags(Some(listed(&make.tags))).send();
        api.call(SERVICE, "create", format!("topic {}", spec.name), call).await?;
        Ok(spec.name.clone())
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        let (name, value) = match field {
            "key" => (KEY, spec.key.clone().unwrap_or_default()),
            "policy" => (POLICY, spec.policy.to_string()),
            _ => return put_subscription(api, seen, spec).await,
        };
        let call = api.sns.set_topic_attributes().topic_arn(arn(api, &seen.id));
        let call = call.attribute_name(name).attribute_value(value).send();
        api.call(SERVICE, "change", &seen.id, call).await.map(drop)
    }

    /// Documents say the same in several forms. Only SNS removes an unconfirmed subscription, after two days.
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        match field {
            "policy" => iam::is_same(wanted, seen),
            "subscriptions" => {
                let typed = |value: &Value| serde_json::from_value::<Vec<Subscription>>(value.clone());
                let (Ok(wanted), Ok(seen)) = (typed(wanted), typed(seen)) else { return false };
                missing(&wanted, &seen).is_none() && !seen.iter().any(|one| !one.pending && !is_in(one, &wanted))
            }
            _ => false,
        }
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        let arn = arn(api, &seen.id);
        if set.is_empty() {
            let call = api.sns.untag_resource().resource_arn(arn).set_tag_keys(Some(remove.to_vec())).send();
            return api.call(SERVICE, "remove tags of", &seen.id, call).await.map(drop);
        }
        let call = api.sns.tag_resource().resource_arn(arn).set_tags(Some(listed(set))).send();
        api.call(SERVICE, "set tags of", &seen.id, call).await.map(drop)
    }

    /// Its subscriptions end with it.
    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.sns.delete_topic().topic_arn(arn(api, &seen.id)).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

/// Adds the first missing subscription, or removes the first that is not wanted.
async fn put_subscription(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec) -> Result<()> {
    if let Some(new) = missing(&spec.subscriptions, &seen.spec.subscriptions) {
        let call = api.sns.subscribe().topic_arn(arn(api, &seen.id)).protocol(&new.protocol).endpoint(&new.endpoint);
        return api.call(SERVICE, "subscribe", &new.endpoint, call.send()).await.map(drop);
    }
    let found = subscriptions(api, &seen.id).await?.unwrap_or_default();
    let is_unwanted = |one: &&Answer| {
        let shown = self::seen(one).filter(|shown| !shown.pending && !is_deleted(one));
        shown.is_some_and(|shown| !is_in(&shown, &spec.subscriptions))
    };
    let Some(gone) = found.iter().find(is_unwanted).and_then(|one| one.subscription_arn.as_deref()) else {
        return Ok(());
    };
    api.call(SERVICE, "unsubscribe", gone, api.sns.unsubscribe().subscription_arn(gone).send()).await.map(drop)
}

fn is_in(one: &Subscription, all: &[Subscription]) -> bool {
    all.iter().any(|other| other.protocol == one.protocol && other.endpoint == one.endpoint)
}

fn missing<'a>(wanted: &'a [Subscription], seen: &[Subscription]) -> Option<&'a Subscription> {
    wanted.iter().find(|one| !is_in(one, seen))
}

/// The subscriptions of a topic; `None` when there is no such topic.
async fn subscriptions(api: &Api, id: &str) -> Result<Option<Vec<Answer>>> {
    let pages = api.sns.list_subscriptions_by_topic().topic_arn(arn(api, id)).into_paginator().items().send();
    api.find(SERVICE, id, pages.try_collect()).await
}

/// A subscription that ended is listed for a while, with a word in place of its ARN.
fn is_deleted(one: &Answer) -> bool {
    one.subscription_arn.as_deref() == Some("Deleted")
}

fn seen(one: &Answer) -> Option<Subscription> {
    let pending = !one.subscription_arn.as_deref()?.starts_with("arn:");
    Some(Subscription { protocol: one.protocol.clone()?, endpoint: one.endpoint.clone()?, pending })
}

/// The ARN of a topic of this account and region.
fn arn(api: &Api, name: &str) -> String {
    api.arn(SERVICE, &api.region, name)
}

fn listed(tags: &Tags) -> Vec<Tag> {
    // A tag with its key and its value is always complete.
    tags.iter().filter_map(|(key, value)| Tag::builder().key(key).value(value).build().ok()).collect()
}
