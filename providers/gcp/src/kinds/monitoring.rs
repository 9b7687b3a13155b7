//! Alert policies of Cloud Monitoring and the channels that they notify: <https://cloud.google.com/monitoring/api/ref_v3/rest>.
//!
//! Google gives both their names: they are found by their labels.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_provider::{Identity, Kind, Permission, Pricing, Verb};

use super::{create, delete, read};
use crate::declare::{ID, Terraform};
use crate::row::{Field, Labelling, Marks, Rest, RestKind, Table};
use crate::service::Service;
use crate::table::{MINUTE, Row, kind};

/// The kind of channels.
pub(crate) const CHANNEL: &str = "gcp.notification-channel";
/// The kind of alert policies.
pub(crate) const POLICY: &str = "gcp.alert-policy";
/// The comparisons of policies.
const ABOVE: &str = "COMPARISON_GT";
const BELOW: &str = "COMPARISON_LT";
/// How time series become one, and how an answer may write that they do not.
const SUM: &str = "REDUCE_SUM";
const NO_REDUCER: &str = "REDUCE_NONE";

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            // The service may be enabled just before (terraform-google-modules/terraform-google-sql-db#593).
            deadline: MINUTE.saturating_mul(20),
            permissions: &[
                create("monitoring.notificationChannels.create"),
                read("monitoring.notificationChannels.get"),
                read("monitoring.notificationChannels.list"),
                Permission::on(&[Verb::Update], "monitoring.notificationChannels.update"),
                delete("monitoring.notificationChannels.delete"),
            ],
            terraform: &[("google_monitoring_notification_channel", "id")],
            ..kind(CHANNEL, "a mailbox that gets alerts", Identity::Token)
        },
        service: "monitoring",
        resource: &Rest::<Channel>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            deadline: MINUTE.saturating_mul(20),
            // <https://cloud.google.com/monitoring/alerts/cost-control>: its prices are not recorded.
            pricing: Pricing::Unknown("by conditions and time series"),
            permissions: &[
                create("monitoring.alertPolicies.create"),
                read("monitoring.alertPolicies.get"),
                read("monitoring.alertPolicies.list"),
                Permission::on(&[Verb::Update], "monitoring.alertPolicies.update"),
                delete("monitoring.alertPolicies.delete"),
            ],
            terraform: &[("google_monitoring_alert_policy", "id")],
            ..kind(POLICY, "an alert policy", Identity::Token)
        },
        service: "monitoring",
        resource: &Rest::<Policy>::kind(),
        refused: &[],
    },
];

/// What both have in Terraform.
const TERRAFORM: Terraform = Terraform { named: &[("project", "/project")], outputs: &[ID], ..Terraform::USUAL };

/// A channel that sends mails. Outputs: `id`, `name`.
struct Channel;

impl RestKind for Channel {
    const TABLE: &'static Table = &Table {
        service: Service::Monitoring,
        path: "projects/{project}/notificationChannels/{name}",
        collection: "projects/{project}/notificationChannels",
        items: "notificationChannels",
        assigned: true,
        constants: &[("/type", "\"email\"")],
        fields: &[
            Field::plain("name", "/displayName").patched(),
            Field::code("email", "/labels", |email| json!({ "email_address": email }), address).patched(),
            Field::flag("enabled", "/enabled").patched(),
        ],
        in_place: &["name", "email", "enabled"],
        marks: Marks::Labels("/userLabels", Labelling::Patch),
        created: "/creationRecord/mutateTime",
        terraform: Terraform { kind: "google_monitoring_notification_channel", ..TERRAFORM },
        ..Table::USUAL
    };
}

fn address(document: &Value) -> Value {
    document["labels"]["email_address"].clone()
}

/// A policy with one condition. Outputs: `id`, `name`.
struct Policy;

impl RestKind for Policy {
    const TABLE: &'static Table = &Table {
        service: Service::Monitoring,
        path: "projects/{project}/alertPolicies/{name}",
        collection: "projects/{project}/alertPolicies",
        items: "alertPolicies",
        assigned: true,
        // An incident of a node that is gone has no more values: without this, its least value, it stays open for a week
        // (hashicorp/terraform-provider-google#10523).
        constants: &[("/combiner", "\"OR\""), ("/alertStrategy/autoClose", "\"1800s\"")],
        fields: &[
            Field::plain("name", "/displayName").patched(),
            Field::code("condition", "/conditions", conditions, condition).patched(),
            Field { absent: "[]", ..Field::plain("channels", "/notificationChannels").patched() },
            Field::flag("enabled", "/enabled").patched(),
        ],
        in_place: &["name", "condition", "channels", "enabled"],
        marks: Marks::Labels("/userLabels", Labelling::Patch),
        created: "/creationRecord/mutateTime",
        terraform: Terraform { kind: "google_monitoring_alert_policy", ..TERRAFORM },
        ..Table::USUAL
    };

    /// The pieces of a filter are one text in an answer, and a number may be written with and without a fraction.
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        let wanted = conditions(wanted);
        field == "condition" && !wanted.is_null() && wanted == conditions(seen)
    }
}

/// When a policy opens an incident.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Condition {
    /// What its mails say.
    says: String,
    /// The pieces of the filter that selects the time series: some are names of other objects.
    filter: Vec<String>,
    /// How the values of a period become one.
    aligner: String,
    /// The label whose values have a sum each, if time series are added.
    sum_by: Option<String>,
    #[serde(flatten)]
    limit: Limit,
    /// The seconds of a value.
    period_seconds: u64,
    /// How long it has to be exceeded.
    lasting_seconds: u64,
}

/// What a value has to exceed, or to be less than.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Limit {
    Above(f64),
    Below(f64),
}

/// The conditions in a document; null while a piece of the filter is not known.
fn conditions(value: &Value) -> Value {
    let Ok(one) = serde_json::from_value::<Condition>(value.clone()) else { return Value::Null };
    let seconds = |seconds: u64| format!("{seconds}s");
    let mut aggregation = json!({ "alignmentPeriod": seconds(one.period_seconds), "perSeriesAligner": one.aligner });
    if let Some(label) = one.sum_by {
        aggregation["crossSeriesReducer"] = json!(SUM);
        aggregation["groupByFields"] = json!([label]);
    }
    let (comparison, limit) = match one.limit {
        Limit::Above(limit) => (ABOVE, limit),
        Limit::Below(limit) => (BELOW, limit),
    };
    json!([{
        "displayName": one.says,
        "conditionThreshold": {
            "filter": one.filter.concat(),
            "aggregations": [aggregation],
            "comparison": comparison,
            "thresholdValue": limit,
            "duration": seconds(one.lasting_seconds),
        },
    }])
}

/// The condition in a document; null if its conditions are others than one of this form.
fn condition(document: &Value) -> Value {
    let read = || {
        let [one] = document["conditions"].as_array()?.as_slice() else { return None };
        let threshold = &one["conditionThreshold"];
        let [aggregation] = threshold["aggregations"].as_array()?.as_slice() else { return None };
        let seconds = |value: &Value| value.as_str()?.strip_suffix('s')?.parse::<u64>().ok();
        let sum_by = match aggregation["crossSeriesReducer"].as_str() {
            None | Some(NO_REDUCER) => None,
            Some(SUM) => Some(aggregation["groupByFields"][0].as_str()?.to_owned()),
            Some(_) => return None,
        };
        // Zero may be left out.
        let limit = threshold["thresholdValue"].as_f64().unwrap_or_default();
        let limit = match threshold["comparison"].as_str()? {
            ABOVE => Limit::Above(limit),
            BELOW => Limit::Below(limit),
            _ => return None,
        };
        let is_usual = threshold["denominatorFilter"].as_str().is_none_or(str::is_empty);
        is_usual.then_some(Condition {
            says: one["displayName"].as_str()?.to_owned(),
            filter: vec![threshold["filter"].as_str()?.to_owned()],
            aligner: aggregation["perSeriesAligner"].as_str()?.to_owned(),
            sum_by,
            limit,
            period_seconds: seconds(&aggregation["alignmentPeriod"])?,
            lasting_seconds: seconds(&threshold["duration"])?,
        })
    };
    read().map(|one| json!(one)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_as_they_are_written() {
        let wanted = json!({
            "says": "The disk is nearly full", "filter": ["database_id=\"p:", "db-0a1b", "\""], "aligner": "ALIGN_MEAN",
            "sum_by": null, "above": 90, "period_seconds": 60, "lasting_seconds": 300,
        });
        let mut document = json!({ "conditions": conditions(&wanted) });
        assert_eq!(document["conditions"][0]["conditionThreshold"]["filter"], "database_id=\"p:db-0a1b\"");
        assert!(Policy::fits("condition", &wanted, &condition(&document)), "{document}");
        document["conditions"][0]["conditionThreshold"]["aggregations"][0]["crossSeriesReducer"] = json!(NO_REDUCER);
        assert!(Policy::fits("condition", &wanted, &condition(&document)), "{document}");
        document["conditions"][0]["conditionThreshold"]["comparison"] = json!("COMPARISON_LT");
        assert!(!Policy::fits("condition", &wanted, &condition(&document)), "{document}");
    }

    #[test]
    fn a_condition_may_be_about_values_that_are_less() {
        let wanted = json!({
            "says": "Stopped", "filter": ["f"], "aligner": "ALIGN_MAX", "sum_by": null, "below": 0, "period_seconds": 60,
            "lasting_seconds": 600,
        });
        let mut document = json!({ "conditions": conditions(&wanted) });
        assert_eq!(document["conditions"][0]["conditionThreshold"]["comparison"], BELOW);
        if let Some(threshold) = document["conditions"][0]["conditionThreshold"].as_object_mut() {
            threshold.retain(|member, _| member != "thresholdValue");
        }
        assert!(Policy::fits("condition", &wanted, &condition(&document)), "{document}");
    }

    #[test]
    fn a_filter_with_an_unknown_name_has_no_conditions_yet() {
        let wanted = json!({ "filter": ["a", { "$output": "main/cluster#name" }] });
        assert!(conditions(&wanted).is_null() && !Policy::fits("condition", &wanted, &Value::Null));
    }
}
