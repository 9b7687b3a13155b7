//! Alert policies of Cloud Monitoring, the channels that they notify, uptime checks, and dashboards:
//! <https://cloud.google.com/monitoring/api/ref_v3/rest>, <https://cloud.google.com/monitoring/api/ref_dashboards/rest>.
//!
//! Google gives all of them their names: they are found by their labels.

use async_trait::async_trait;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_cloud::ObservedObject;
use textnlp_provider::{Declare, Error, ErrorKind, Identity, Kind, Permission, Pricing, Result, Spec, Verb};

use super::{create, delete, read};
use crate::api::{Api, Call};
use crate::declare::{ID, Terraform};
use crate::row::{Field, Labelling, Marks, Rest, RestKind, Table, Update};
use crate::service::Service;
use crate::table::{MINUTE, Row, kind};

/// The kind of channels.
pub(crate) const CHANNEL: &str = "gcp.notification-channel";
/// The kind of alert policies.
pub(crate) const POLICY: &str = "gcp.alert-policy";
/// The kind of uptime checks.
pub(crate) const UPTIME: &str = "gcp.uptime-check";
/// The kind of dashboards.
pub(crate) const DASHBOARD: &str = "gcp.dashboard";
/// The comparisons of policies.
const ABOVE: &str = "COMPARISON_GT";
const BELOW: &str = "COMPARISON_LT";
/// What an operator does about an uptime check that is not deleted.
const IN_USE: &str =
    "take the check out of the conditions of all alert policies, or delete these; then run the same command again";
/// How time series become one, and how an answer may write that they do not.
const SUM: &str = "REDUCE_SUM";
const COUNT_FALSE: &str = "REDUCE_COUNT_FALSE";
const PERCENTILE: &str = "REDUCE_PERCENTILE_95";
const NO_REDUCER: &str = "REDUCE_NONE";
/// The labels of the lines of limits in charts.
const ALERT_ABOVE: &str = "alert above";
const ALERT_BELOW: &str = "alert below";
/// The columns of a dashboard, the charts in a row, and the rows of a chart.
const COLUMNS: usize = 12;
const IN_A_ROW: usize = 2;
const HEIGHT: usize = 4;

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
    Row {
        kind: Kind {
            deadline: MINUTE.saturating_mul(20),
            // <https://cloud.google.com/stackdriver/pricing>: how many a project has without a charge counts all its checks.
            pricing: Pricing::Unknown("by executions"),
            permissions: &[
                create("monitoring.uptimeCheckConfigs.create"),
                read("monitoring.uptimeCheckConfigs.get"),
                read("monitoring.uptimeCheckConfigs.list"),
                Permission::on(&[Verb::Update], "monitoring.uptimeCheckConfigs.update"),
                delete("monitoring.uptimeCheckConfigs.delete"),
            ],
            terraform: &[("google_monitoring_uptime_check_config", "id")],
            ..kind(UPTIME, "an uptime check from the internet", Identity::Token)
        },
        service: "monitoring",
        resource: &Rest::<UptimeCheck>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            deadline: MINUTE.saturating_mul(20),
            permissions: &[
                create("monitoring.dashboards.create"),
                read("monitoring.dashboards.get"),
                read("monitoring.dashboards.list"),
                Permission::on(&[Verb::Update], "monitoring.dashboards.update"),
                delete("monitoring.dashboards.delete"),
            ],
            terraform: &[("google_monitoring_dashboard", "id")],
            ..kind(DASHBOARD, "a dashboard of metrics", Identity::Token)
        },
        service: "monitoring",
        resource: &Rest::<Dashboard>::kind(),
        refused: &[],
    },
];

/// What all have in Terraform.
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

/// A request over HTTPS from each of Google's locations. It accepts every certificate, which the deployment's own authority may have signed.
/// Outputs: `id`, and `name`, by which the results are found.
struct UptimeCheck;

#[async_trait]
impl RestKind for UptimeCheck {
    const TABLE: &'static Table = &Table {
        service: Service::Monitoring,
        path: "projects/{project}/uptimeCheckConfigs/{name}",
        collection: "projects/{project}/uptimeCheckConfigs",
        items: "uptimeCheckConfigs",
        assigned: true,
        constants: &[("/monitoredResource/type", "\"uptime_url\"")],
        fields: &[
            Field::plain("name", "/displayName").patched(),
            // An answer adds the project (hashicorp/terraform-provider-google#7734).
            Field::code("host", "/monitoredResource/labels", |host| json!({ "host": host }), host),
            Field::code("target", "/httpCheck", http_check, target).patched(),
            Field::code("period", "/period", lasting, |one| json!(seconds(&one["period"]))).patched(),
            Field::code("timeout", "/timeout", lasting, |one| json!(seconds(&one["timeout"]))).patched(),
            Field { absent: "[]", ..Field::plain("regions", "/selectedRegions").patched() },
            Field { absent: "[]", ..Field::plain("matchers", "/contentMatchers").patched() },
            Field::code("enabled", "/disabled", |on| json!(*on != true), |one| json!(one["disabled"] != true))
                .patched(),
        ],
        in_place: &["name", "target", "period", "timeout", "regions", "matchers", "enabled"],
        // A change without the period is refused (GoogleCloudPlatform/magic-modules#1129).
        update: Update::Whole(&[]),
        marks: Marks::Labels("/userLabels", Labelling::Patch),
        terraform: Terraform {
            kind: "google_monitoring_uptime_check_config",
            moved: &[("/disabled", "")],
            outputs: &[ID, ("name", "uptime_check_id")],
            ..TERRAFORM
        },
        ..Table::USUAL
    };

    /// While an alert policy uses the check, Google answers that the request is invalid, and not why
    /// (hashicorp/terraform-provider-google#10176). The policy may be deleted or changed just before.
    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<String>> {
        let sent = api.send(Call::new(Service::Monitoring, Method::DELETE, seen.id.clone())).await;
        sent.map(|_| None).map_err(|error| {
            if error.kind != ErrorKind::Invalid {
                return error;
            }
            let said = error.source.as_ref().map(|source| format!(": {source}")).unwrap_or_default();
            let error = error.because(format!("an alert policy may still use it{said}")).hint(IN_USE);
            Error { kind: ErrorKind::Conflict, refused: false, ..error }
        })
    }
}

fn host(document: &Value) -> Value {
    document["monitoredResource"]["labels"]["host"].clone()
}

/// The request of a check.
fn http_check(target: &Value) -> Value {
    json!({
        "useSsl": true,
        "validateSsl": false,
        "requestMethod": "GET",
        "port": target["port"],
        "path": target["path"],
    })
}

/// A number of seconds in a document.
fn lasting(seconds: &Value) -> Value {
    json!(seconds.as_u64().map(duration))
}

/// The port and the path of a check; null if it sends another request, or accepts other answers than successes. Headers are not compared:
/// Google may add some (GoogleCloudPlatform/magic-modules, `mmv1/products/monitoring/UptimeCheckConfig.yaml`).
fn target(document: &Value) -> Value {
    let check = &document["httpCheck"];
    let is_usual = check["useSsl"] == true
        && check["validateSsl"] != true
        && [&check["authInfo"], &check["serviceAgentAuthentication"], &check["body"]].into_iter().all(Value::is_null)
        && check["acceptedResponseStatusCodes"].is_null()
        && matches!(check["requestMethod"].as_str(), None | Some("GET"));
    if is_usual { json!({ "port": check["port"], "path": check["path"] }) } else { Value::Null }
}

/// A dashboard with a chart for each metric. Outputs: `id`, `name`.
struct Dashboard;

impl RestKind for Dashboard {
    const TABLE: &'static Table = &Table {
        service: Service::Dashboards,
        path: "projects/{project}/dashboards/{name}",
        collection: "projects/{project}/dashboards",
        items: "dashboards",
        assigned: true,
        fields: &[
            Field::plain("name", "/displayName").patched(),
            Field::code("charts", "/mosaicLayout", layout, charts).patched(),
        ],
        in_place: &["name", "charts"],
        update: Update::Whole(&["/mosaicLayout", "/gridLayout", "/rowLayout", "/columnLayout"]),
        marks: Marks::Labels("/labels", Labelling::Patch),
        terraform: Terraform { kind: "google_monitoring_dashboard", ..TERRAFORM },
        ..Table::USUAL
    };

    /// Answers have more members than requests, and no zeros (GoogleCloudPlatform/magic-modules#18515).
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        let wanted = layout(wanted);
        field == "charts" && !wanted.is_null() && wanted == layout(seen)
    }

    /// Terraform takes the document as a text.
    fn declared(_api: Option<&Api>, _request: &Declare<'_>, document: &mut Value) -> Result<(), String> {
        *document = json!({ "dashboardJson": document.to_string() });
        Ok(())
    }
}

/// A metric and its limit: of a condition, and of a chart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Metric {
    /// What mails say beyond the limit; the title of the chart.
    says: String,
    /// The pieces of the filter that selects the time series: some are names of other objects.
    filter: Vec<String>,
    /// How the values of a period become one.
    aligner: String,
    /// The label whose values have a sum each, if time series are added.
    sum_by: Option<String>,
    /// The label whose values have a count each, if time series that are false are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    false_by: Option<String>,
    /// The label whose values have a 95th percentile each, if time series are distributions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    percentile_by: Option<String>,
    #[serde(flatten)]
    limit: Limit,
    /// The seconds of a value.
    period_seconds: u64,
}

/// When a policy opens an incident.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Condition {
    #[serde(flatten)]
    metric: Metric,
    /// The pieces of the filter of all time series, if the value is the share of the selected ones in them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    share_of: Option<Vec<String>>,
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

impl Metric {
    fn aggregation(&self) -> Value {
        let mut all = json!({ "alignmentPeriod": duration(self.period_seconds), "perSeriesAligner": self.aligner });
        let reducers = [(SUM, &self.sum_by), (COUNT_FALSE, &self.false_by), (PERCENTILE, &self.percentile_by)];
        let label = |(reducer, label): (&'static str, &Option<String>)| Some((reducer, label.clone()?));
        if let Some((reducer, label)) = reducers.into_iter().find_map(label) {
            all["crossSeriesReducer"] = json!(reducer);
            all["groupByFields"] = json!([label]);
        }
        all
    }

    /// The metric in a document; `None` if it is aggregated otherwise.
    fn read(says: &Value, filter: &Value, aggregation: &Value, limit: Limit) -> Option<Self> {
        let label = || aggregation["groupByFields"][0].as_str().map(str::to_owned);
        let (mut sum_by, mut false_by, mut percentile_by) = (None, None, None);
        match aggregation["crossSeriesReducer"].as_str() {
            None | Some(NO_REDUCER) => {}
            Some(SUM) => sum_by = Some(label()?),
            Some(COUNT_FALSE) => false_by = Some(label()?),
            Some(PERCENTILE) => percentile_by = Some(label()?),
            Some(_) => return None,
        }
        Some(Self {
            says: says.as_str()?.to_owned(),
            filter: vec![filter.as_str()?.to_owned()],
            aligner: aggregation["perSeriesAligner"].as_str()?.to_owned(),
            sum_by,
            false_by,
            percentile_by,
            limit,
            period_seconds: seconds(&aggregation["alignmentPeriod"])?,
        })
    }
}

fn duration(seconds: u64) -> String {
    format!("{seconds}s")
}

fn seconds(duration: &Value) -> Option<u64> {
    duration.as_str()?.strip_suffix('s')?.parse().ok()
}

/// The limit in a document: its value, where zero may be left out, and the word that says on which side it is.
fn limit(value: &Value, word: &Value, [above, below]: [&str; 2]) -> Option<Limit> {
    let (value, word) = (value.as_f64().unwrap_or_default(), word.as_str()?);
    match word == above {
        true => Some(Limit::Above(value)),
        false => (word == below).then_some(Limit::Below(value)),
    }
}

/// The conditions in a document; null while a piece of the filter is not known.
fn conditions(value: &Value) -> Value {
    let Ok(Condition { metric, share_of, lasting_seconds }) = serde_json::from_value(value.clone()) else {
        return Value::Null;
    };
    let (comparison, limit) = match metric.limit {
        Limit::Above(limit) => (ABOVE, limit),
        Limit::Below(limit) => (BELOW, limit),
    };
    let mut threshold = json!({
        "filter": metric.filter.concat(),
        "aggregations": [metric.aggregation()],
        "comparison": comparison,
        "thresholdValue": limit,
        "duration": duration(lasting_seconds),
    });
    if let Some(all) = share_of {
        threshold["denominatorFilter"] = json!(all.concat());
        threshold["denominatorAggregations"] = json!([metric.aggregation()]);
    }
    json!([{ "displayName": metric.says, "conditionThreshold": threshold }])
}

/// The condition in a document; null if its conditions are others than one of this form.
fn condition(document: &Value) -> Value {
    let read = || {
        let [one] = document["conditions"].as_array()?.as_slice() else { return None };
        let threshold = &one["conditionThreshold"];
        let [aggregation] = threshold["aggregations"].as_array()?.as_slice() else { return None };
        let limit = limit(&threshold["thresholdValue"], &threshold["comparison"], [ABOVE, BELOW])?;
        let share_of = match threshold["denominatorFilter"].as_str().filter(|filter| !filter.is_empty()) {
            None => None,
            Some(all) if threshold["denominatorAggregations"] == threshold["aggregations"] => {
                Some(vec![all.to_owned()])
            }
            Some(_) => return None,
        };
        let metric = Metric::read(&one["displayName"], &threshold["filter"], aggregation, limit)?;
        Some(Condition { metric, share_of, lasting_seconds: seconds(&threshold["duration"])? })
    };
    read().map(|one| json!(one)).unwrap_or_default()
}

/// The layout with these charts; null while a piece of a filter is not known.
fn layout(value: &Value) -> Value {
    let Ok(all) = serde_json::from_value::<Vec<Metric>>(value.clone()) else { return Value::Null };
    let width = COLUMNS / IN_A_ROW;
    let tile = |(place, metric): (usize, &Metric)| {
        let (label, limit) = match metric.limit {
            Limit::Above(limit) => (ALERT_ABOVE, limit),
            Limit::Below(limit) => (ALERT_BELOW, limit),
        };
        let query = json!({ "filter": metric.filter.concat(), "aggregation": metric.aggregation() });
        json!({
            "xPos": place % IN_A_ROW * width,
            "yPos": place / IN_A_ROW * HEIGHT,
            "width": width,
            "height": HEIGHT,
            "widget": {
                "title": metric.says,
                "xyChart": {
                    "dataSets": [{ "plotType": "LINE", "timeSeriesQuery": { "timeSeriesFilter": query } }],
                    // Neither a color nor a direction is allowed in such a chart.
                    "thresholds": [{ "value": limit, "label": label }],
                },
            },
        })
    };
    let tiles: Vec<Value> = all.iter().enumerate().map(tile).collect();
    json!({ "columns": COLUMNS, "tiles": tiles })
}

/// The charts in a document, wherever they are on the dashboard; null if there are others than those of this form.
fn charts(document: &Value) -> Value {
    let chart = |tile: &Value| {
        let (title, chart) = (&tile["widget"]["title"], &tile["widget"]["xyChart"]);
        let [set] = chart["dataSets"].as_array()?.as_slice() else { return None };
        let [line] = chart["thresholds"].as_array()?.as_slice() else { return None };
        let limit = limit(&line["value"], &line["label"], [ALERT_ABOVE, ALERT_BELOW])?;
        let query = &set["timeSeriesQuery"]["timeSeriesFilter"];
        Metric::read(title, &query["filter"], &query["aggregation"], limit)
    };
    let tiles = document["mosaicLayout"]["tiles"].as_array();
    let read = tiles.and_then(|tiles| tiles.iter().map(chart).collect::<Option<Vec<Metric>>>());
    read.map(|all| json!(all)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uptime_check_is_read_as_it_is_written() {
        let wanted = json!({ "port": 8443, "path": "/health" });
        let mut document = json!({ "httpCheck": http_check(&wanted) });
        assert_eq!(target(&document), wanted);
        // What answers leave out.
        for member in ["validateSsl", "requestMethod"] {
            document["httpCheck"].as_object_mut().unwrap().retain(|name, _| name != member);
        }
        assert_eq!(target(&document), wanted);
        for (member, value) in [
            ("useSsl", json!(false)),
            ("validateSsl", json!(true)),
            ("requestMethod", json!("POST")),
            ("acceptedResponseStatusCodes", json!([{ "statusClass": "STATUS_CLASS_ANY" }])),
            ("authInfo", json!({ "username": "ada", "password": "******" })),
            ("serviceAgentAuthentication", json!({ "type": "OIDC_TOKEN" })),
            ("body", json!("Zm9v")),
        ] {
            let mut other = document.clone();
            other["httpCheck"][member] = value;
            assert!(target(&other).is_null(), "{member}");
        }
    }

    #[test]
    fn failing_locations_are_counted() {
        let wanted = json!({
            "says": "s", "filter": ["f"], "aligner": "ALIGN_NEXT_OLDER", "sum_by": null, "false_by": "resource.label.host",
            "above": 1.0, "period_seconds": 1200, "lasting_seconds": 300,
        });
        let document = json!({ "conditions": conditions(&wanted) });
        let aggregation = &document["conditions"][0]["conditionThreshold"]["aggregations"][0];
        assert_eq!(aggregation["crossSeriesReducer"], "REDUCE_COUNT_FALSE");
        assert_eq!(condition(&document), wanted);
    }

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
    fn a_condition_may_be_about_a_share_or_a_percentile() {
        let wanted = json!({
            "says": "Errors", "filter": ["a", "b"], "aligner": "ALIGN_DELTA", "sum_by": "resource.label.n", "above": 0.05,
            "share_of": ["a"], "period_seconds": 60, "lasting_seconds": 600,
        });
        let mut document = json!({ "conditions": conditions(&wanted) });
        let threshold = &document["conditions"][0]["conditionThreshold"];
        assert_eq!((&threshold["filter"], &threshold["denominatorFilter"]), (&json!("ab"), &json!("a")));
        assert!(Policy::fits("condition", &wanted, &condition(&document)), "{document}");
        document["conditions"][0]["conditionThreshold"]["denominatorFilter"] = json!("c");
        assert!(!Policy::fits("condition", &wanted, &condition(&document)), "{document}");
        document["conditions"][0]["conditionThreshold"]["denominatorAggregations"] = json!([]);
        assert!(condition(&document).is_null(), "{document}");

        let wanted = json!({
            "says": "Slow", "filter": ["a"], "aligner": "ALIGN_DELTA", "sum_by": null, "percentile_by": "resource.label.n",
            "above": 1000.0, "period_seconds": 60, "lasting_seconds": 300,
        });
        let document = json!({ "conditions": conditions(&wanted) });
        let aggregation = &document["conditions"][0]["conditionThreshold"]["aggregations"][0];
        assert_eq!(aggregation["crossSeriesReducer"], "REDUCE_PERCENTILE_95");
        assert_eq!(condition(&document), wanted);
    }

    #[test]
    fn a_filter_with_an_unknown_name_has_no_conditions_yet() {
        let wanted = json!({ "filter": ["a", { "$output": "main/cluster#name" }] });
        assert!(conditions(&wanted).is_null() && !Policy::fits("condition", &wanted, &Value::Null));
    }

    #[test]
    fn charts_are_read_as_they_are_written() {
        let chart = |side: &str, limit: f64| {
            json!({
                "says": "s", "filter": ["a", "b"], "aligner": "ALIGN_MAX", "sum_by": "resource.label.n", (side): limit, "period_seconds": 60,
            })
        };
        let wanted = json!([chart("above", 0.8), chart("below", 0.0), chart("above", 90.0)]);
        let mut document = json!({ "mosaicLayout": layout(&wanted) });
        let tile = &document["mosaicLayout"]["tiles"][2];
        assert_eq!((&tile["xPos"], &tile["yPos"], &tile["width"]), (&json!(0), &json!(4), &json!(6)));
        if let Some(line) = document["mosaicLayout"]["tiles"][1]["widget"]["xyChart"]["thresholds"][0].as_object_mut() {
            line.retain(|member, _| member != "value");
        }
        assert!(Dashboard::fits("charts", &wanted, &charts(&document)), "{document}");
        document["mosaicLayout"]["tiles"][0]["widget"] = json!({ "title": "s", "text": { "content": "c" } });
        assert!(charts(&document).is_null(), "{document}");
        let unknown = json!([{ "filter": ["a", { "$output": "main/cluster#name" }] }]);
        assert!(layout(&unknown).is_null() && !Dashboard::fits("charts", &unknown, &Value::Null));
    }
}
