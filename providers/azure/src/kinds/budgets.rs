//! Budgets of the subscription: <https://learn.microsoft.com/rest/api/consumption/budgets/create-or-update>.
//!
//! A budget counts what has the tag of the lineage: AKS keeps its machines outside of the group of the site, and gives them the tags of
//! the cluster. Budgets have no tags of their own. The values of the filter say whose one is: the lineage is the first of them, and no
//! object has one of the others.

use async_trait::async_trait;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use reqwest::Method;
use serde_json::{Map, Value, json};
use textnlp_cloud::tags::{LINEAGE, Tags};
use textnlp_cloud::{Candidate, ObservedObject, same};
use textnlp_provider::{Error, ErrorKind, Identity, Kind, Result, Spec};

use super::monitoring::lower;
use super::{delete, put, read};
use crate::api::{Api, Call, Reply};
use crate::operation::Pending;
use crate::row::{Field, Marks, Rest, RestKind, Table};
use crate::table::{Row, kind};

/// The kind of budgets.
pub(crate) const BUDGET: &str = "azure.budget";
/// The resource provider of budgets.
pub(crate) const CONSUMPTION: &str = "Microsoft.Consumption";
/// The API version.
pub(crate) const VERSION: &str = "2023-11-01";
/// Where the filter is.
const FILTER: &str = "/properties/filter";
/// What is between the key and the value of a tag in the filter: no key of Azure has a space.
const BETWEEN: &str = ": ";
/// The comparison of each notification.
const OPERATOR: &str = "GreaterThan";
/// What an operator does about a budget of another client.
const TAKEN: &str = "another client made a budget of this name: remove it, or give the environment another name";

pub(crate) static ROWS: &[Row] = &[Row {
    kind: Kind {
        permissions: &[
            read("Microsoft.Consumption/budgets/read"),
            put("Microsoft.Consumption/budgets/write"),
            delete("Microsoft.Consumption/budgets/delete"),
        ],
        terraform: &[("azurerm_consumption_budget_subscription", "id")],
        ..kind(BUDGET, "a monthly budget that warns", Identity::Part)
    },
    service: CONSUMPTION,
    resource: &Rest::<Budget>::kind(),
    refused: &[],
}];

/// A monthly cost budget. Outputs: `id`, `name`.
struct Budget;

#[async_trait]
impl RestKind for Budget {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Consumption/budgets",
        version: VERSION,
        path: "/subscriptions/{subscription}/providers/Microsoft.Consumption/budgets/{name}",
        constants: &[("/properties/category", "\"Cost\""), ("/properties/timeGrain", "\"Monthly\"")],
        fields: &[
            Field::plain("limit", "/properties/amount").changed(),
            Field::code("notifications", "/properties/notifications", written, notifications).changed(),
            // That of the bill, which no request has.
            Field::seen("currency", |one| one["properties"]["currentSpend"]["unit"].clone()),
        ],
        in_place: &["limit", "notifications"],
        marks: Marks::Written(FILTER, filter, tags),
        etag_in_body: true,
        undeclared: Some("the start of a budget is not recorded, and Azure refuses another one"),
        ..Table::USUAL
    };

    /// A number may be written with and without a fraction. `preflight` compares the currency.
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        match field {
            "limit" => wanted.is_number() && wanted.as_f64() == seen.as_f64(),
            "notifications" => same(Some(&with_fractions(wanted)), Some(&with_fractions(seen))),
            "currency" => true,
            _ => false,
        }
    }

    /// It starts with the current month: an earlier one is refused, and so is a later change of it
    /// (hashicorp/terraform-provider-azurerm#12121, Azure/CanadaPubSecALZ#317).
    async fn prepare(_api: &Api, _spec: &Spec, document: &mut Value, _chosen: &Candidate) -> Result<()> {
        let today = Timestamp::now().to_zoned(TimeZone::UTC);
        let start = format!("{:04}-{:02}-01T00:00:00Z", today.year(), today.month());
        document["properties"]["timePeriod"] = json!({ "startDate": start });
        Ok(())
    }

    /// Without an etag it is refused where a budget is there already (MicrosoftDocs/azure-docs#34023).
    async fn send(api: &Api, id: &str, document: Value) -> Result<Reply> {
        let call = Call::new(Method::PUT, id, VERSION).body(document);
        api.send(call).await.map_err(|error| match (&error.kind, error.code.as_deref()) {
            (ErrorKind::Conflict, Some("400")) => Error { kind: ErrorKind::Exists, refused: true, ..error }.hint(TAKEN),
            _ => error,
        })
    }

    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<Pending>> {
        let Some(found) = api.find(Call::get(&seen.id, VERSION)).await? else { return Ok(None) };
        if tags(&found["properties"]["filter"]) != seen.tags {
            let error = Error::new(ErrorKind::Conflict, "delete", seen.id.clone());
            return Err(error.because("another client changed its owner"));
        }
        Ok(api.send(Call::new(Method::DELETE, &seen.id, VERSION)).await?.pending)
    }
}

/// The filter of a budget: what has the lineage in its tags.
fn filter(tags: &Tags) -> Value {
    let lineage = tags.get(LINEAGE).cloned();
    let others = tags.iter().filter(|(key, _)| *key != LINEAGE).map(|(key, value)| format!("{key}{BETWEEN}{value}"));
    let values: Vec<String> = lineage.into_iter().chain(others).collect();
    json!({ "tags": { "name": LINEAGE, "operator": "In", "values": values } })
}

/// The tags that [`filter`] wrote; none in a filter of another client.
fn tags(filter: &Value) -> Tags {
    let filter = &filter["tags"];
    let values = filter["values"].as_array().filter(|_| filter["name"] == LINEAGE);
    let texts = values.into_iter().flatten().filter_map(Value::as_str);
    let tag = |text: &str| {
        let (key, value) = text.split_once(BETWEEN).unwrap_or((LINEAGE, text));
        (key.to_owned(), value.to_owned())
    };
    texts.map(tag).collect()
}

/// The notifications of a spec, by their names.
fn written(wanted: &Value) -> Value {
    let named = |one: &Value| {
        let about = one["about"].as_str().unwrap_or_default();
        let percent = one["percent"].as_f64().unwrap_or_default();
        let notification = json!({
            "enabled": true,
            "operator": OPERATOR,
            "threshold": percent,
            "thresholdType": about,
            "contactEmails": one["emails"],
            "contactGroups": one["groups"],
            "contactRoles": one["roles"],
        });
        (format!("{}_{OPERATOR}_{percent}_Percent", about.to_ascii_lowercase()), notification)
    };
    Value::Object(wanted.as_array().into_iter().flatten().map(named).collect::<Map<String, Value>>())
}

/// The notifications of a document that are sent.
fn notifications(document: &Value) -> Value {
    let sorted = |list: &Value| {
        let mut texts: Vec<&str> = list.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        texts.sort_unstable();
        json!(texts)
    };
    let all = document["properties"]["notifications"].as_object().into_iter().flatten().map(|(_, one)| one);
    let sent = all.filter(|one| one["enabled"] == true && one["operator"] == OPERATOR);
    let notification = |one: &Value| {
        json!({
            "about": one["thresholdType"].as_str().unwrap_or("Actual"),
            "percent": one["threshold"],
            "emails": sorted(&one["contactEmails"]),
            "groups": sorted(&one["contactGroups"]),
            "roles": sorted(&one["contactRoles"]),
        })
    };
    sent.map(notification).collect()
}

/// Notifications whose numbers have a fraction, and whose ids are in lower case.
fn with_fractions(notifications: &Value) -> Value {
    let one = |notification: &Value| {
        let mut notification = notification.clone();
        notification["percent"] = json!(notification["percent"].as_f64());
        notification["groups"] = lower(&notification["groups"]);
        notification
    };
    notifications.as_array().into_iter().flatten().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifications_are_read_as_they_are_written() {
        let wanted = json!([
            { "about": "Actual", "percent": 80.0, "emails": ["a@example.com"], "groups": ["/A", "/b"], "roles": ["Owner"] },
            { "about": "Forecasted", "percent": 100.0, "emails": [], "groups": [], "roles": ["Owner"] },
        ]);
        let document = |notifications: Value| json!({ "properties": { "notifications": notifications } });
        let mut there = written(&wanted);
        assert!(there.get("actual_GreaterThan_80_Percent").is_some(), "{there}");
        assert!(Budget::fits("notifications", &wanted, &notifications(&document(there.clone()))));
        there["actual_GreaterThan_80_Percent"]["threshold"] = json!(80);
        assert!(Budget::fits("notifications", &wanted, &notifications(&document(there.clone()))));
        there["actual_GreaterThan_80_Percent"]["enabled"] = json!(false);
        assert!(!Budget::fits("notifications", &wanted, &notifications(&document(there))));
    }

    #[test]
    fn filters_say_whose_a_budget_is() {
        let pairs =
            [(LINEAGE, "00000000-0000-4000-8000-000000007e57"), ("team", "a: b"), ("textnlp-resource", "a/b/c")];
        let all: Tags = pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let written = filter(&all);
        assert_eq!(written["tags"]["values"][0], pairs[0].1);
        assert_eq!(tags(&written), all);
        let theirs = json!({ "tags": { "name": "team", "operator": "In", "values": ["text"] } });
        assert_eq!([tags(&theirs), tags(&Value::Null)], [Tags::new(), Tags::new()]);
    }
}
