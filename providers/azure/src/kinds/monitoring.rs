//! Action groups and metric alerts of Azure Monitor, and workbooks: <https://learn.microsoft.com/rest/api/monitor/>,
//! <https://learn.microsoft.com/rest/api/application-insights/workbooks>.
//!
//! A workbook is the dashboard here. Dashboards of the portal have preview versions only, and the types of Bicep, `azapi` and Azure's
//! libraries know no charts in them (Azure/bicep-types-az#2223, Azure/bicep-types-az#2493).

use std::collections::BTreeSet;

use async_trait::async_trait;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_cloud::{State, same};
use textnlp_provider::{Identity, Kind, Pricing, Result};

use super::{delete, put, read};
use crate::api::{Api, Call};
use crate::operation::Pending;
use crate::row::{Field, LOCATION, Rest, RestKind, Table, Update, state};
use crate::table::{Row, kind};

/// The resource provider of all.
pub(crate) const INSIGHTS: &str = "Microsoft.Insights";
/// The kind of action groups.
pub(crate) const GROUP: &str = "azure.action-group";
/// The kind of metric alerts.
pub(crate) const ALERT: &str = "azure.metric-alert";
/// The kind of workbooks.
pub(crate) const WORKBOOK: &str = "azure.workbook";
/// The form of a criterion about one resource. Azure refuses the change to another one (hashicorp/terraform-provider-azurerm#7910).
const OF_ONE: &str = "Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria";
/// The parts of a criterion that are the same for all.
const STATIC: &str = "StaticThresholdCriterion";
const ABOVE: &str = "GreaterThan";
const AVERAGE: &str = "Average";
/// The values of a dimension that each have a time series of their own.
const ALL: &str = "*";
/// A chart of metrics in a workbook, one with lines, and the average of the values in it.
const METRICS: u32 = 10;
const LINES: u32 = 2;
const OF_AVERAGES: u32 = 4;
/// The lines of a chart that is split: those with the greatest values.
const GREATEST_FIRST: i32 = -1;
const MOST_LINES: u32 = 100;
/// What a chart shows: the last day, in milliseconds.
const SHOWN: u64 = 86_400_000;
/// The tag that has the title of a workbook too.
const TITLE: &str = "hidden-title";
/// What is between the title of a chart and its limit.
const ALERT_ABOVE: &str = " (alert above ";

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            permissions: &[
                read("Microsoft.Insights/actionGroups/read"),
                put("Microsoft.Insights/actionGroups/write"),
                delete("Microsoft.Insights/actionGroups/delete"),
            ],
            terraform: &[("azurerm_monitor_action_group", "id")],
            ..kind(GROUP, "the mailboxes that get alerts", Identity::Named)
        },
        service: INSIGHTS,
        resource: &Rest::<Group>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            // <https://azure.microsoft.com/pricing/details/monitor/>: a node has a time series of its own.
            pricing: Pricing::Unknown("by time series"),
            permissions: &[
                read("Microsoft.Insights/metricAlerts/read"),
                put("Microsoft.Insights/metricAlerts/write"),
                delete("Microsoft.Insights/metricAlerts/delete"),
            ],
            terraform: &[("azurerm_monitor_metric_alert", "id")],
            ..kind(ALERT, "an alert about a metric", Identity::Named)
        },
        service: INSIGHTS,
        resource: &Rest::<Alert>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            permissions: &[
                read("Microsoft.Insights/workbooks/read"),
                put("Microsoft.Insights/workbooks/write"),
                delete("Microsoft.Insights/workbooks/delete"),
            ],
            terraform: &[("azurerm_application_insights_workbook", "id")],
            ..kind(WORKBOOK, "a workbook of metrics", Identity::Named)
        },
        service: INSIGHTS,
        resource: &Rest::<Workbook>::kind(),
        refused: &[],
    },
];

/// An action group that sends mails. Outputs: `id`, `name`.
struct Group;

impl RestKind for Group {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Insights/actionGroups",
        version: "2023-01-01",
        path: "{group}/providers/Microsoft.Insights/actionGroups/{name}",
        constants: &[("/location", "\"Global\"")],
        fields: &[
            Field::plain("short_name", "/properties/groupShortName").changed(),
            Field::code("emails", "/properties/emailReceivers", receivers, emails).changed(),
            Field::plain("enabled", "/properties/enabled").changed(),
        ],
        in_place: &["short_name", "emails", "enabled"],
        ..Table::USUAL
    };

    /// A recipient can unsubscribe. Only the operator subscribes one again, by a call of its own
    /// (<https://learn.microsoft.com/rest/api/monitor/action-groups/enable-receiver>).
    fn state(document: &Value) -> State {
        let mut receivers = document["properties"]["emailReceivers"].as_array().into_iter().flatten();
        let Some(one) = receivers.find(|one| one["status"] == "Disabled") else {
            return state(Self::TABLE, document);
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        State::Degraded(format!(
            "{} unsubscribed and gets no mail: `az monitor action-group enable-receiver --ids {} --name {}`",
            text(&one["emailAddress"]),
            text(&document["id"]),
            text(&one["name"])
        ))
    }
}

/// The receivers of these addresses. Their names are unique in the group.
fn receivers(emails: &Value) -> Value {
    let emails = emails.as_array().into_iter().flatten();
    let receiver = |(number, email): (usize, &Value)| json!({ "name": format!("mailbox-{number}"), "emailAddress": email, "useCommonAlertSchema": true });
    (1..).zip(emails).map(receiver).collect()
}

fn emails(document: &Value) -> Value {
    let receivers = document["properties"]["emailReceivers"].as_array().into_iter().flatten();
    receivers.map(|one| one["emailAddress"].clone()).collect()
}

/// An alert with one criterion about one resource. Outputs: `id`, `name`.
struct Alert;

impl RestKind for Alert {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Insights/metricAlerts",
        version: "2018-03-01",
        path: "{group}/providers/Microsoft.Insights/metricAlerts/{name}",
        constants: &[("/location", "\"global\""), ("/properties/autoMitigate", "true")],
        fields: &[
            Field::plain("says", "/properties/description").changed(),
            Field::plain("severity", "/properties/severity").changed(),
            Field::plain("enabled", "/properties/enabled").changed(),
            Field::plain("scopes", "/properties/scopes").changed(),
            Field::plain("frequency", "/properties/evaluationFrequency").changed(),
            Field::plain("window", "/properties/windowSize").changed(),
            Field::code("criterion", "/properties/criteria", criteria, criterion).changed(),
            Field::code("groups", "/properties/actions", actions, groups).changed(),
        ],
        in_place: &["says", "severity", "enabled", "scopes", "frequency", "window", "criterion", "groups"],
        ..Table::USUAL
    };

    /// A number may be written with and without a fraction, and Azure writes ids in any case (Azure/azure-rest-api-specs#24337).
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        match field {
            "criterion" => {
                let wanted = criteria(wanted);
                !wanted.is_null() && wanted == criteria(seen)
            }
            "scopes" | "groups" => same(Some(&lower(wanted)), Some(&lower(seen))),
            _ => false,
        }
    }
}

/// When an alert fires: an average that is above a threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Criterion {
    /// The type of the resource.
    namespace: String,
    metric: String,
    /// The dimensions whose values are each compared.
    each: BTreeSet<String>,
    above: f64,
}

fn criteria(value: &Value) -> Value {
    let Ok(one) = serde_json::from_value::<Criterion>(value.clone()) else { return Value::Null };
    let each = one.each.iter().map(|name| json!({ "name": name, "operator": "Include", "values": [ALL] }));
    json!({
        "odata.type": OF_ONE,
        "allOf": [{
            "criterionType": STATIC,
            "name": "criterion",
            "metricNamespace": one.namespace,
            "metricName": one.metric,
            "dimensions": each.collect::<Vec<Value>>(),
            "operator": ABOVE,
            "threshold": one.above,
            "timeAggregation": AVERAGE,
            // A new resource has no values yet (hashicorp/terraform-provider-azurerm#14743).
            "skipMetricValidation": true,
        }],
    })
}

/// The criterion in a document; null if it has others than one of this form.
fn criterion(document: &Value) -> Value {
    let read = || {
        let all = &document["properties"]["criteria"];
        let [one] = all["allOf"].as_array()?.as_slice() else { return None };
        let name = |each: &Value| {
            let is_usual = each["operator"] == "Include" && each["values"] == json!([ALL]);
            each["name"].as_str().filter(|_| is_usual).map(str::to_owned)
        };
        let each =
            one["dimensions"].as_array().into_iter().flatten().map(name).collect::<Option<BTreeSet<String>>>()?;
        let is_usual = all["odata.type"] == OF_ONE
            && one["criterionType"] == STATIC
            && one["operator"] == ABOVE
            && one["timeAggregation"] == AVERAGE;
        is_usual.then_some(Criterion {
            namespace: one["metricNamespace"].as_str()?.to_owned(),
            metric: one["metricName"].as_str()?.to_owned(),
            each,
            above: one["threshold"].as_f64()?,
        })
    };
    read().map(|one| json!(one)).unwrap_or_default()
}

fn actions(groups: &Value) -> Value {
    groups.as_array().into_iter().flatten().map(|id| json!({ "actionGroupId": id })).collect()
}

fn groups(document: &Value) -> Value {
    let actions = document["properties"]["actions"].as_array().into_iter().flatten();
    actions.map(|one| one["actionGroupId"].clone()).collect()
}

/// A workbook with a chart for each metric, in the gallery of Azure Monitor. Outputs: `id`, `name`.
struct Workbook;

#[async_trait]
impl RestKind for Workbook {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Insights/workbooks",
        version: "2023-06-01",
        path: "{group}/providers/Microsoft.Insights/workbooks/{name}",
        constants: &[
            ("/kind", "\"shared\""),
            ("/properties/category", "\"workbook\""),
            ("/properties/sourceId", "\"azure monitor\""),
        ],
        fields: &[
            LOCATION,
            Field::plain("title", "/properties/displayName"),
            Field::code("charts", "/properties/serializedData", content, charts).changed(),
        ],
        in_place: &["title", "charts"],
        // A read without a parameter of its own has no charts, which a `PUT` would lose.
        update: Update::Patch,
        ..Table::USUAL
    };

    /// Without the parameter an answer has no charts.
    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        api.find(Call::get(id, Self::TABLE.version).query("canFetchContent", "true")).await
    }

    /// A number may be written with and without a fraction.
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        let wanted = content(wanted);
        field == "charts" && !wanted.is_null() && wanted == content(seen)
    }

    /// The tag with the title decides over the title (hashicorp/terraform-provider-azurerm#22113).
    async fn put(api: &Api, id: &str, wanted: &Value, _field: &str) -> Result<Option<Pending>> {
        let mut tags = api.send(Call::get(id, Self::TABLE.version)).await?.body["tags"].take();
        tags[TITLE] = wanted.clone();
        // A change of tags replaces them all.
        let body = json!({ "tags": tags, "properties": { "displayName": wanted } });
        let call = Call::new(Method::PATCH, id, Self::TABLE.version).body(body);
        Ok(api.send(call).await?.pending)
    }
}

/// A chart of one metric of one resource.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Chart {
    /// The start of its title.
    says: String,
    resource: String,
    /// The type of the resource in lower case.
    namespace: String,
    metric: String,
    /// The dimensions whose values have a line each.
    each: Vec<String>,
    /// The limit of the alert, which a workbook cannot draw.
    above: f64,
}

/// The text of a workbook with these charts; null while a resource is not known.
fn content(value: &Value) -> Value {
    let charts = serde_json::from_value::<Vec<Chart>>(value.clone());
    charts.map(|charts| notebook(&charts).to_string().into()).unwrap_or_default()
}

/// A workbook as the editor of the portal shows it.
fn notebook(charts: &[Chart]) -> Value {
    let item = |(place, chart): (usize, &Chart)| {
        let Chart { says, resource, namespace, metric, each, above } = chart;
        json!({
            "type": METRICS,
            "content": {
                "version": "MetricsItem/2.0",
                "size": 0,
                "chartType": LINES,
                "resourceType": namespace,
                "metricScope": 0,
                "resourceIds": [resource],
                "timeContext": { "durationMs": SHOWN },
                "metrics": [{
                    "namespace": namespace,
                    // Between the dashes is a category, which may be empty.
                    "metric": format!("{namespace}--{metric}"),
                    "aggregation": OF_AVERAGES,
                    "splitBy": (!each.is_empty()).then_some(each),
                    "splitBySortOrder": GREATEST_FIRST,
                    "splitByLimit": MOST_LINES,
                }],
                "title": format!("{says}{ALERT_ABOVE}{above})"),
            },
            "customWidth": "50",
            "name": format!("chart-{place}"),
        })
    };
    json!({ "version": "Notebook/1.0", "items": charts.iter().enumerate().map(item).collect::<Vec<Value>>() })
}

/// The charts in a document; null if it has anything else.
fn charts(document: &Value) -> Value {
    let chart = |item: &Value| {
        let (content, metric) = (&item["content"], &item["content"]["metrics"][0]);
        let namespace = metric["namespace"].as_str()?;
        let (says, above) = content["title"].as_str()?.strip_suffix(')')?.rsplit_once(ALERT_ABOVE)?;
        Some(Chart {
            says: says.to_owned(),
            resource: content["resourceIds"][0].as_str()?.to_owned(),
            namespace: namespace.to_owned(),
            metric: metric["metric"].as_str()?.strip_prefix(namespace)?.strip_prefix("--")?.to_owned(),
            each: serde_json::from_value::<Option<_>>(metric["splitBy"].clone()).ok()?.unwrap_or_default(),
            above: above.parse().ok()?,
        })
    };
    let read = || {
        let text = document["properties"]["serializedData"].as_str()?;
        let found: Value = serde_json::from_str(text).ok()?;
        let all = found["items"].as_array()?.iter().map(chart).collect::<Option<Vec<Chart>>>()?;
        (notebook(&all) == found).then_some(all)
    };
    read().map(|all| json!(all)).unwrap_or_default()
}

/// Ids in lower case.
pub(super) fn lower(ids: &Value) -> Value {
    let one = |id: &Value| id.as_str().map_or_else(|| id.clone(), |id| json!(id.to_ascii_lowercase()));
    ids.as_array().into_iter().flatten().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_are_read_as_they_are_written() {
        let wanted = json!({ "namespace": "a/b", "metric": "m", "each": ["node", "device"], "above": 80 });
        let mut document =
            json!({ "properties": { "criteria": criteria(&wanted), "actions": actions(&json!(["/A"])) } });
        assert!(Alert::fits("criterion", &wanted, &criterion(&document)), "{document}");
        assert!(Alert::fits("groups", &json!(["/a"]), &groups(&document)), "{document}");
        document["properties"]["criteria"]["allOf"][0]["operator"] = json!("LessThan");
        assert!(!Alert::fits("criterion", &wanted, &criterion(&document)), "{document}");
        let unknown = json!({ "namespace": "a/b", "metric": "m", "each": [], "above": { "$output": "a/b#c" } });
        assert!(!Alert::fits("criterion", &unknown, &Value::Null));
    }

    #[test]
    fn receivers_have_names_of_their_own() {
        let wanted = json!(["a@example.com", "b@example.com"]);
        let written = receivers(&wanted);
        assert_ne!(written[0]["name"], written[1]["name"]);
        assert_eq!(emails(&json!({ "properties": { "emailReceivers": written } })), wanted);
    }

    #[test]
    fn a_recipient_who_unsubscribed_is_named_with_the_command() {
        let mut written = receivers(&json!(["a@example.com", "b@example.com"]));
        let group = |written: &Value| json!({ "id": "/a", "properties": { "emailReceivers": written } });
        assert_eq!(Group::state(&group(&written)), State::Ready);
        written[1]["status"] = json!("Disabled");
        let State::Degraded(why) = Group::state(&group(&written)) else { panic!("{written}") };
        assert!(why.starts_with("b@example.com") && why.contains("--ids /a --name mailbox-2"), "{why}");
    }

    #[test]
    fn workbooks_are_read_as_they_are_written() {
        let chart = |each: Value, above: Value| json!({ "says": "s", "resource": "/A", "namespace": "a/b", "metric": "m", "each": each, "above": above });
        let wanted = json!([chart(json!(["node", "device"]), json!(80)), chart(json!([]), json!(1_073_741_824.0))]);
        let text = content(&wanted);
        let document = |text: Value| json!({ "properties": { "serializedData": text } });
        let seen = charts(&document(text.clone()));
        assert!(Workbook::fits("charts", &wanted, &seen) && seen[0]["each"] == wanted[0]["each"], "{text} {seen}");
        let changed = text.as_str().unwrap().replace("--m", "--n");
        assert!(!Workbook::fits("charts", &wanted, &charts(&document(json!(changed)))), "{changed}");
        let added = text.as_str().unwrap().replacen('{', "{\"isLocked\":true,", 1);
        assert!(charts(&document(json!(added))).is_null() && charts(&document(Value::Null)).is_null(), "{added}");
        let unknown = json!([{ "resource": { "$output": "a/b#c" } }]);
        assert!(!Workbook::fits("charts", &unknown, &Value::Null));
    }
}
