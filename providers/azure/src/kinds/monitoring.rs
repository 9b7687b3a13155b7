//! Action groups and metric alerts of Azure Monitor: <https://learn.microsoft.com/rest/api/monitor/>.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_cloud::{State, same};
use textnlp_provider::{Identity, Kind, Pricing};

use super::{delete, put, read};
use crate::row::{Field, Rest, RestKind, Table, state};
use crate::table::{Row, kind};

/// The resource provider of both.
pub(crate) const INSIGHTS: &str = "Microsoft.Insights";
/// The kind of action groups.
pub(crate) const GROUP: &str = "azure.action-group";
/// The kind of metric alerts.
pub(crate) const ALERT: &str = "azure.metric-alert";
/// The form of a criterion about one resource. Azure refuses the change to another one (hashicorp/terraform-provider-azurerm#7910).
const OF_ONE: &str = "Microsoft.Azure.Monitor.SingleResourceMultipleMetricCriteria";
/// The parts of a criterion that are the same for all.
const STATIC: &str = "StaticThresholdCriterion";
const ABOVE: &str = "GreaterThan";
const AVERAGE: &str = "Average";
/// The values of a dimension that each have a time series of their own.
const ALL: &str = "*";

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
}
