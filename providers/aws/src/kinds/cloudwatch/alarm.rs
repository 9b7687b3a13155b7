//! Alarms: <https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_PutMetricAlarm.html>.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use aws_sdk_cloudwatch::types::{
    AlarmType, ComparisonOperator, Dimension, Metric as MetricName, MetricAlarm as Answer, MetricDataQuery, MetricStat,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::{Identity, Permission, Pricing, Result};

use super::SERVICE;
use crate::api::Api;
use crate::kinds::{CREATE, DELETE, PUT, only, shown_by_tag};
use crate::resource::{Filter, Make, ObservedObject, Of, Resource};
use crate::table::{Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        pricing: Pricing::BySpec,
        permissions: &[
            only(Permission::on(DELETE, "cloudwatch:DeleteAlarms"), ALARMS),
            Permission::read("cloudwatch:DescribeAlarms"),
            Permission::read("cloudwatch:ListTagsForResource"),
            only(Permission::on(PUT, "cloudwatch:PutMetricAlarm"), ALARMS),
            only(Permission::on(CREATE, "cloudwatch:TagResource"), ALARMS),
            only(Permission::change("cloudwatch:TagResource"), ALARMS),
            only(Permission::change("cloudwatch:UntagResource"), ALARMS),
        ],
        terraform: &[("aws_cloudwatch_metric_alarm", "id")],
        ..kind("aws.alarm", "an alarm about a metric", Identity::Named)
    },
    service: SERVICE,
    resource: &Of::<Alarm>::kind(),
    refused: &[],
}];

/// The alarms of this program.
const ALARMS: &str = "arn:{$partition}:cloudwatch:{$region}:{$account}:alarm:textnlp-*";
/// The most names of one description.
const NAMES: usize = 100;
/// The id of the expression among the metrics, and of a metric that was put without an id.
pub(crate) const RESULT: &str = "result";

/// An alarm. Outputs: `name`, `arn`.
struct Alarm;

/// The attributes of an alarm.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// Its name, which no other alarm of the region has.
    name: String,
    /// What it means, for who gets its message.
    description: String,
    /// Whether its actions are taken.
    enabled: bool,
    /// The metrics by their ids in `expression`.
    metrics: BTreeMap<String, Metric>,
    /// What is compared; `None` is the only metric.
    expression: Option<String>,
    /// The seconds that one value is of.
    period_seconds: i32,
    /// The count of values that are compared.
    periods: i32,
    /// The count of values that have to be beyond the threshold.
    datapoints: i32,
    /// `GreaterThanThreshold` and the like.
    comparison: String,
    /// The threshold, in the unit of the metric.
    threshold: f64,
    /// What a missing value counts as: `breaching`, `notBreaching`, `ignore`, `missing`.
    missing: String,
    /// The ARNs of topics that are notified when it is raised.
    alarm_actions: BTreeSet<String>,
    /// The ARNs of topics that are notified when it is over.
    ok_actions: BTreeSet<String>,
    #[serde(default)]
    tags: Tags,
}

/// A metric of an alarm.
#[derive(Debug, Serialize, Deserialize)]
struct Metric {
    /// `AWS/RDS`.
    namespace: String,
    /// `CPUUtilization`.
    name: String,
    /// `Average`, `Sum`, `Maximum`, `p99`.
    statistic: String,
    /// What it is of, by the names of dimensions.
    dimensions: BTreeMap<String, String>,
}

#[async_trait]
impl Resource<Api> for Alarm {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &[
        "metrics",
        "expression",
        "comparison",
        "threshold",
        "period_seconds",
        "periods",
        "datapoints",
        "missing",
        "description",
        "alarm_actions",
        "ok_actions",
        "enabled",
    ];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let found = described(api, vec![id.to_owned()]).await?.into_iter().find_map(seen);
        let Some(alarm) = found else { return Ok(None) };
        let tags = super::tags_of(api, id, &arn(api, id)).await?;
        Ok(tags.map(|tags| ObservedObject { tags, ..alarm }))
    }

    /// One call for each hundred alarms, and those of the tagging API.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let mut tags: BTreeMap<String, Tags> = BTreeMap::new();
        for one in shown_by_tag(api, filter, "cloudwatch:alarm").await? {
            let Some(name) = one.resource_arn.as_deref().and_then(|arn| arn.rsplit(':').next()) else { continue };
            let of_one = one.tags.unwrap_or_default().into_iter().map(|tag| (tag.key, tag.value)).collect();
            tags.insert(name.to_owned(), of_one);
        }
        let names: Vec<String> = tags.keys().cloned().collect();
        let mut all = Vec::new();
        for names in names.chunks(NAMES) {
            let alarms = described(api, names.to_vec()).await?.into_iter().filter_map(seen);
            all.extend(
                alarms.map(|alarm| ObservedObject { tags: tags.remove(&alarm.id).unwrap_or_default(), ..alarm }),
            );
        }
        Ok(all)
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(spec.name.clone())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        put(api, spec, Some(&make.tags)).await?;
        Ok(spec.name.clone())
    }

    /// A put replaces all attributes.
    async fn put(api: &Api, _seen: &ObservedObject<Spec>, spec: &Spec, _field: &str) -> Result<()> {
        put(api, spec, None).await
    }

    /// A number may be written with and without a fraction.
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        field == "threshold" && wanted.as_f64().is_some() && wanted.as_f64() == seen.as_f64()
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, &seen.id, &arn(api, &seen.id), set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.cloudwatch.delete_alarms().alarm_names(&seen.id).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

/// Sets all attributes of an alarm. Tags are only set on a new one.
async fn put(api: &Api, spec: &Spec, tags: Option<&Tags>) -> Result<()> {
    let metric = |(id, metric): (&String, &Metric)| {
        let dimension = |(name, value)| Dimension::builder().name(name).value(value).build();
        let dimensions = metric.dimensions.iter().map(dimension).collect();
        let name = MetricName::builder().namespace(&metric.namespace).metric_name(&metric.name);
        let name = name.set_dimensions(Some(dimensions)).build();
        let stat = MetricStat::builder().metric(name).period(spec.period_seconds).stat(&metric.statistic).build();
        let query = MetricDataQuery::builder().id(id).metric_stat(stat);
        query.return_data(spec.expression.is_none()).build()
    };
    let mut queries: Vec<MetricDataQuery> = spec.metrics.iter().map(metric).collect();
    if let Some(expression) = &spec.expression {
        queries.push(MetricDataQuery::builder().id(RESULT).expression(expression).return_data(true).build());
    }
    let listed = |arns: &BTreeSet<String>| Some(arns.iter().cloned().collect());
    let call = api
        .cloudwatch
        .put_metric_alarm()
        .alarm_name(&spec.name)
        .alarm_description(&spec.description)
        .actions_enabled(spec.enabled)
        .set_alarm_actions(listed(&spec.alarm_actions))
        .set_ok_actions(listed(&spec.ok_actions))
        .set_metrics(Some(queries))
        .evaluation_periods(spec.periods)
        .datapoints_to_alarm(spec.datapoints)
        .comparison_operator(ComparisonOperator::from(spec.comparison.as_str()))
        .threshold(spec.threshold)
        .treat_missing_data(&spec.missing)
        .set_tags(tags.map(super::listed))
        .send();
    api.call(SERVICE, "put", format!("alarm {}", spec.name), call).await.map(drop)
}

async fn described(api: &Api, names: Vec<String>) -> Result<Vec<Answer>> {
    let call = api.cloudwatch.describe_alarms().set_alarm_names(Some(names)).alarm_types(AlarmType::MetricAlarm);
    let pages = call.into_paginator().send();
    let pages: Vec<_> = api.call(SERVICE, "read", "alarms", pages.try_collect()).await?;
    Ok(pages.into_iter().flat_map(|page| page.metric_alarms.unwrap_or_default()).collect())
}

fn seen(alarm: Answer) -> Option<ObservedObject<Spec>> {
    let name = alarm.alarm_name?;
    let dimensions = |all: Option<Vec<Dimension>>| -> BTreeMap<String, String> {
        let pair = |one: Dimension| Some((one.name?, one.value.unwrap_or_default()));
        all.unwrap_or_default().into_iter().filter_map(pair).collect()
    };
    let (mut metrics, mut expression, mut period) = (BTreeMap::new(), None, alarm.period);
    for query in alarm.metrics.unwrap_or_default() {
        expression = expression.or(query.expression);
        let Some(stat) = query.metric_stat else { continue };
        period = stat.period;
        let of = stat.metric;
        let metric = Metric {
            namespace: of.as_ref().and_then(|of| of.namespace.clone()).unwrap_or_default(),
            name: of.as_ref().and_then(|of| of.metric_name.clone()).unwrap_or_default(),
            statistic: stat.stat.unwrap_or_default(),
            dimensions: dimensions(of.and_then(|of| of.dimensions)),
        };
        metrics.insert(query.id.unwrap_or_default(), metric);
    }
    // An alarm that another program created has its only metric without an id.
    if let Some(metric) = alarm.metric_name {
        let statistic = alarm.statistic.map(|one| one.as_str().to_owned()).or(alarm.extended_statistic);
        let metric = Metric {
            namespace: alarm.namespace.unwrap_or_default(),
            name: metric,
            statistic: statistic.unwrap_or_default(),
            dimensions: dimensions(alarm.dimensions),
        };
        metrics.insert(RESULT.to_owned(), metric);
    }
    let periods = alarm.evaluation_periods.unwrap_or_default();
    let spec = Spec {
        name: name.clone(),
        description: alarm.alarm_description.unwrap_or_default(),
        enabled: alarm.actions_enabled.unwrap_or_default(),
        metrics,
        expression,
        period_seconds: period.unwrap_or_default(),
        periods,
        datapoints: alarm.datapoints_to_alarm.unwrap_or(periods),
        comparison: alarm.comparison_operator.map(|one| one.as_str().to_owned()).unwrap_or_default(),
        threshold: alarm.threshold.unwrap_or_default(),
        missing: alarm.treat_missing_data.unwrap_or_else(|| "missing".to_owned()),
        alarm_actions: alarm.alarm_actions.unwrap_or_default().into_iter().collect(),
        ok_actions: alarm.ok_actions.unwrap_or_default().into_iter().collect(),
        tags: Tags::new(),
    };
    let alarm_seen = ObservedObject::new(&name, spec, Tags::new()).output("name", Some(name.clone()));
    Some(alarm_seen.output("arn", alarm.alarm_arn))
}

/// The ARN of an alarm of this account and region.
fn arn(api: &Api, name: &str) -> String {
    api.arn("cloudwatch", &api.region, &format!("alarm:{name}"))
}
