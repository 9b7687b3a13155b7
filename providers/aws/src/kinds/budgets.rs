//! Budgets, with their notifications as a field:
//! <https://docs.aws.amazon.com/aws-cost-management/latest/APIReference/API_budgets_CreateBudget.html>.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use aws_sdk_budgets::types::{
    Budget as Answer, BudgetType, ComparisonOperator, Expression, Metric, Notification as Notice, NotificationType,
    NotificationWithSubscribers, ResourceTag, Spend, Subscriber, SubscriptionType, TagValues, ThresholdType,
    TimePeriod, TimeUnit,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::{Error, ErrorKind, Identity, Permission, Pricing, Result};
use textnlp_token::partition;

use super::{CREATE, DELETE, PUT, only};
use crate::api::Api;
use crate::names;
use crate::resource::{Filter, Make, ObservedObject, Of, Resource, same};
use crate::table::{Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        pricing: Pricing::BySpec,
        permissions: &[
            Permission::read("budgets:ListTagsForResource"),
            only(Permission::on(PUT, "budgets:ModifyBudget"), BUDGETS),
            only(Permission::on(DELETE, "budgets:ModifyBudget"), BUDGETS),
            only(Permission::on(CREATE, "budgets:TagResource"), BUDGETS),
            only(Permission::change("budgets:TagResource"), BUDGETS),
            only(Permission::change("budgets:UntagResource"), BUDGETS),
            Permission::read("budgets:ViewBudget"),
        ],
        terraform: &[("aws_budgets_budget", "name")],
        ..kind("aws.budget", "a monthly budget that warns", Identity::Named)
    },
    service: SERVICE,
    resource: &Of::<Budget>::kind(),
    refused: &[],
}];

/// The budgets of this program: they are the account's, in no region.
const BUDGETS: &str = "arn:{$partition}:budgets::{$account}:budget/textnlp-*";
/// The signing name.
const SERVICE: &str = "budgets";
/// What a filter is shown as that is not by one tag.
const OTHER_FILTER: &str = "another filter";

/// A monthly cost budget. Outputs: `name`.
struct Budget;

/// The attributes of a budget.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// Its name, which no other budget of the account has.
    name: String,
    /// Its amount for a month.
    limit: f64,
    /// The unit of the amount: `USD`.
    unit: String,
    /// Which costs count: the values of a tag by its key, which has to be activated for cost allocation
    /// (<https://docs.aws.amazon.com/awsaccountbilling/latest/aboutv2/activating-tags.html>). None are all costs of the account.
    filter: BTreeMap<String, BTreeSet<String>>,
    /// What is sent, and when.
    notifications: Vec<Notification>,
    #[serde(default)]
    tags: Tags,
}

/// A notification of a budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Notification {
    /// `ACTUAL`: what was spent; `FORECASTED`: what the whole month will cost.
    about: String,
    /// The percentage of the amount beyond which it is sent.
    percent: f64,
    /// The ARNs of the topics that it is sent to.
    topics: BTreeSet<String>,
}

#[async_trait]
impl Resource<Api> for Budget {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["limit", "unit", "filter", "notifications"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        match described(api, id).await? {
            Some(budget) => seen(api, budget).await,
            None => Ok(None),
        }
    }

    /// One call for each page of the account's budgets, and two and one for each notification for those of this program.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        // None is created in other partitions, some of which have no budgets at all.
        if partition(&api.region).name != "aws" {
            return Ok(Vec::new());
        }
        let pages = api.budgets.describe_budgets().account_id(&api.identity.account).show_filter_expression(true);
        let found: Vec<Answer> =
            api.call(SERVICE, "list", "budgets", pages.into_paginator().items().send().try_collect()).await?;
        let mut all = Vec::new();
        for budget in found.into_iter().filter(|one| one.budget_name.starts_with(names::PREFIX)) {
            all.extend(seen(api, budget).await?.filter(|seen| filter.matches(&seen.tags)));
        }
        Ok(all)
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(spec.name.clone())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let notifications = spec.notifications.iter().map(|one| {
            let notice = NotificationWithSubscribers::builder().notification(notice(one)?);
            notice.set_subscribers(Some(subscribers(one)?)).build().map_err(incomplete)
        });
        let notifications = notifications.collect::<Result<Vec<_>>>()?;
        let call = api.budgets.create_budget().account_id(&api.identity.account).budget(budget(spec, None)?);
        let call = call
            .set_notifications_with_subscribers((!notifications.is_empty()).then_some(notifications))
            .set_resource_tags(Some(listed(&make.tags)))
            .send();
        api.call(SERVICE, "create", format!("budget {}", spec.name), call).await?;
        Ok(spec.name.clone())
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        if field == "notifications" {
            return put_notification(api, seen, spec).await;
        }
        // Its months go on.
        let period = described(api, &seen.id).await?.and_then(|budget| budget.time_period);
        let call = api.budgets.update_budget().account_id(&api.identity.account).new_budget(budget(spec, period)?);
        api.call(SERVICE, "change", &seen.id, call.send()).await.map(drop)
    }

    /// A number may be written with and without a fraction.
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        match field {
            "limit" => wanted.as_f64().is_some() && wanted.as_f64() == seen.as_f64(),
            "notifications" => {
                let typed = |value: &Value| serde_json::from_value::<Vec<Notification>>(value.clone()).ok();
                let again = |all: Option<Vec<Notification>>| all.and_then(|all| serde_json::to_value(all).ok());
                let wanted = again(typed(wanted));
                wanted.is_some() && same(wanted.as_ref(), again(typed(seen)).as_ref())
            }
            _ => false,
        }
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        let arn = arn(api, &seen.id);
        if set.is_empty() {
            let call = api.budgets.untag_resource().resource_arn(arn).set_resource_tag_keys(Some(remove.to_vec()));
            return api.call(SERVICE, "remove tags of", &seen.id, call.send()).await.map(drop);
        }
        let call = api.budgets.tag_resource().resource_arn(arn).set_resource_tags(Some(listed(set))).send();
        api.call(SERVICE, "set tags of", &seen.id, call).await.map(drop)
    }

    /// Its notifications end with it.
    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.budgets.delete_budget().account_id(&api.identity.account).budget_name(&seen.id).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

/// Removes the first notification that is not wanted as it is, or adds the first missing one.
async fn put_notification(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec) -> Result<()> {
    let (account, id) = (&api.identity.account, seen.id.as_str());
    if let Some(gone) = seen.spec.notifications.iter().find(|one| !spec.notifications.contains(one)) {
        let call = api.budgets.delete_notification().account_id(account).budget_name(id).notification(notice(gone)?);
        return api.call(SERVICE, "remove a notification of", id, call.send()).await.map(drop);
    }
    let Some(new) = spec.notifications.iter().find(|one| !seen.spec.notifications.contains(one)) else {
        return Ok(());
    };
    let call = api.budgets.create_notification().account_id(account).budget_name(id).notification(notice(new)?);
    let call = call.set_subscribers(Some(subscribers(new)?)).send();
    api.call(SERVICE, "add a notification to", id, call).await.map(drop)
}

async fn described(api: &Api, id: &str) -> Result<Option<Answer>> {
    let call = api.budgets.describe_budget().account_id(&api.identity.account).budget_name(id);
    let call = call.show_filter_expression(true).send();
    Ok(api.find(SERVICE, id, call).await?.and_then(|answer| answer.budget))
}

async fn seen(api: &Api, budget: Answer) -> Result<Option<ObservedObject<Spec>>> {
    let (account, name) = (&api.identity.account, budget.budget_name);
    let call = api.budgets.list_tags_for_resource().resource_arn(arn(api, &name)).send();
    let Some(tags) = api.find(SERVICE, &name, call).await? else { return Ok(None) };
    let tags = tags.resource_tags.unwrap_or_default().into_iter().map(|tag| (tag.key, tag.value)).collect();
    let pages = api.budgets.describe_notifications_for_budget().account_id(account).budget_name(&name);
    let found: Option<Vec<Notice>> =
        api.find(SERVICE, &name, pages.into_paginator().items().send().try_collect()).await?;
    let mut notifications = Vec::new();
    for notice in found.unwrap_or_default() {
        let pages = api.budgets.describe_subscribers_for_notification().account_id(account).budget_name(&name);
        let pages = pages.notification(notice.clone()).into_paginator().items().send();
        let subscribers: Option<Vec<Subscriber>> = api.find(SERVICE, &name, pages.try_collect()).await?;
        notifications.push(Notification {
            about: notice.notification_type.as_str().to_owned(),
            percent: notice.threshold,
            topics: subscribers.unwrap_or_default().into_iter().map(|one| one.address).collect(),
        });
    }
    let amount = |spend: &Spend| spend.amount.parse::<f64>().unwrap_or_default();
    let limit = budget.budget_limit;
    let spec = Spec {
        name: name.clone(),
        limit: limit.as_ref().map(amount).unwrap_or_default(),
        unit: limit.map(|limit| limit.unit).unwrap_or_default(),
        filter: budget.filter_expression.map(filter_of).unwrap_or_default(),
        notifications,
        tags: Tags::new(),
    };
    // What was spent is no output: each plan would record another one.
    Ok(Some(ObservedObject::new(&name, spec, tags).output("name", Some(name.clone()))))
}

fn budget(spec: &Spec, period: Option<TimePeriod>) -> Result<Answer> {
    let limit = Spend::builder().amount(spec.limit.to_string()).unit(&spec.unit).build().map_err(incomplete)?;
    let filter = spec.filter.iter().next().map(|(key, values)| {
        let tag = TagValues::builder().key(key).set_values(Some(values.iter().cloned().collect())).build();
        Expression::builder().tags(tag).build()
    });
    Answer::builder()
        .budget_name(&spec.name)
        .budget_limit(limit)
        .set_filter_expression(filter)
        .metrics(Metric::UnblendedCost)
        .time_unit(TimeUnit::Monthly)
        .set_time_period(period)
        .budget_type(BudgetType::Cost)
        .build()
        .map_err(incomplete)
}

fn filter_of(expression: Expression) -> BTreeMap<String, BTreeSet<String>> {
    let tag = |tag: &TagValues| Some((tag.key.clone()?, tag.values.clone()?.into_iter().collect()));
    let found = expression.tags.as_ref().and_then(tag);
    let (key, values) = found.unwrap_or_else(|| (OTHER_FILTER.to_owned(), BTreeSet::new()));
    BTreeMap::from([(key, values)])
}

fn notice(one: &Notification) -> Result<Notice> {
    Notice::builder()
        .notification_type(NotificationType::from(one.about.as_str()))
        .comparison_operator(ComparisonOperator::GreaterThan)
        .threshold(one.percent)
        .threshold_type(ThresholdType::Percentage)
        .build()
        .map_err(incomplete)
}

fn subscribers(one: &Notification) -> Result<Vec<Subscriber>> {
    let of = |topic: &String| Subscriber::builder().subscription_type(SubscriptionType::Sns).address(topic).build();
    one.topics.iter().map(|topic| of(topic).map_err(incomplete)).collect()
}

fn incomplete(error: aws_sdk_budgets::error::BuildError) -> Error {
    Error::new(ErrorKind::Invalid, "write", "budget").because(error)
}

/// The ARN of a budget of this account.
fn arn(api: &Api, name: &str) -> String {
    api.arn("budgets", "", &format!("budget/{name}"))
}

fn listed(tags: &Tags) -> Vec<ResourceTag> {
    // A tag with its key and its value is always complete.
    tags.iter().filter_map(|(key, value)| ResourceTag::builder().key(key).value(value).build().ok()).collect()
}
