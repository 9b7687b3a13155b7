//! Azure Monitor: what action groups, metric alerts, workbooks and autoscaling settings are refused for.

use serde_json::{Value, json};

use crate::Client;

const GROUP: &str = "G/Microsoft.Insights/actionGroups/a";
const ALERT: &str = "G/Microsoft.Insights/metricAlerts/a";
const WORKBOOK: &str = "G/Microsoft.Insights/workbooks/11111111-2222-4333-8444-555555555555";

/// Azure/azure-rest-api-specs#2840.
#[test]
fn an_action_group_has_a_short_name_and_receivers_with_names() {
    let client = Client::quick();
    let group = |short: &str, names: [&str; 2]| {
        let receivers = names.map(|name| json!({ "name": name, "emailAddress": "oncall@example.com" }));
        json!({ "location": "Global", "properties": { "groupShortName": short, "enabled": true, "emailReceivers": receivers } })
    };
    assert_eq!(client.put(GROUP, group("textnlp", ["a", "a"])).status, 400);
    let made = client.put(GROUP, group("textnlp", ["a", "b"])).ok();
    assert_eq!(made["properties"]["groupShortName"], "textnlp");
    let tagged = client.call("PATCH", GROUP, json!({ "tags": { "a": "b" } })).ok();
    assert_eq!((&tagged["tags"], &tagged["properties"]), (&json!({ "a": "b" }), &made["properties"]));
}

/// hashicorp/terraform-provider-azurerm#14743, hashicorp/terraform-provider-azurerm#7910.
#[test]
fn an_alert_has_a_metric_and_keeps_its_form() {
    let client = Client::quick();
    let alert = |form: &str, window: &str, skips: bool| {
        let criterion = json!({
            "criterionType": "StaticThresholdCriterion", "name": "c", "metricName": "cpu_percent", "operator": "GreaterThan",
            "threshold": 90.0, "timeAggregation": "Average", "skipMetricValidation": skips,
        });
        let criteria = json!({ "odata.type": format!("Microsoft.Azure.Monitor.{form}"), "allOf": [criterion] });
        json!({ "location": "global", "properties": {
            "severity": 2, "enabled": true, "scopes": ["/subscriptions/s"], "evaluationFrequency": "PT1M", "windowSize": window,
            "criteria": criteria,
        } })
    };
    let (one, many) = ("SingleResourceMultipleMetricCriteria", "MultipleResourceMultipleMetricCriteria");
    for wrong in [alert(one, "PT5M", false), alert(one, "PT7M", true)] {
        assert_eq!(client.put(ALERT, wrong).code(), (400, "BadRequest"));
    }
    client.put(ALERT, alert(one, "PT5M", true)).ok();
    assert_eq!(client.put(ALERT, alert(many, "PT5M", true)).code(), (400, "BadRequest"));
    client.put(ALERT, alert(one, "PT15M", true)).ok();
    client.call("DELETE", ALERT, Value::Null).ok();
    assert_eq!(client.get(ALERT).status, 404);
}

#[test]
fn an_autoscaling_setting_has_bounds_and_says_that_it_is_enabled() {
    let client = Client::quick();
    let account = json!({ "location": "westeurope", "sku": { "name": "Standard_LRS" }, "kind": "StorageV2" });
    client.make("G/Microsoft.Storage/storageAccounts/textnlpscaled", account);
    let setting = |first: &str| {
        let capacity = json!({ "minimum": "1", "maximum": "4", "default": first });
        let target = client.id("Microsoft.Storage/storageAccounts/textnlpscaled");
        json!({ "location": "westeurope", "properties": { "targetResourceUri": target,
            "profiles": [{ "name": "p", "capacity": capacity, "rules": [] }] } })
    };
    let path = "G/Microsoft.Insights/autoscaleSettings/a";
    assert_eq!(client.put(path, setting("5")).code(), (400, "BadRequest"));
    assert_eq!(client.put(path, setting("1")).ok()["properties"]["enabled"], false);
    client.call("DELETE", path, Value::Null).ok();
    assert_eq!(client.get(path).status, 404);
}

/// hashicorp/terraform-provider-azurerm#22113.
#[test]
fn a_workbook_is_named_by_a_guid_and_shows_its_content_on_request() {
    let client = Client::quick();
    let workbook = |content: &str| {
        let properties = json!({ "displayName": "w", "category": "workbook", "serializedData": content });
        json!({ "location": "westeurope", "kind": "shared", "properties": properties })
    };
    let content = r#"{"version":"Notebook/1.0","items":[]}"#;
    assert_eq!(
        client.put("G/Microsoft.Insights/workbooks/overview", workbook(content)).code(),
        (400, "InvalidResourceName")
    );
    assert_eq!(client.put(WORKBOOK, workbook("[")).code(), (400, "BadRequest"));
    client.put(WORKBOOK, workbook(content)).ok();
    let tagged = client.call("PATCH", WORKBOOK, json!({ "tags": { "a": "b" } })).ok();
    let tags = json!({ "a": "b", "hidden-title": "w" });
    assert_eq!((&tagged["tags"], &tagged["properties"]["serializedData"]), (&tags, &json!(content)));
    let titled = json!({ "tags": tags, "properties": { "displayName": "v" } });
    assert_eq!(client.call("PATCH", WORKBOOK, titled).ok()["properties"]["displayName"], "w");
    assert_eq!(client.get(WORKBOOK).ok()["properties"].get("serializedData"), None);
    let whole = client.get(&format!("{WORKBOOK}?canFetchContent=true")).ok();
    assert_eq!(whole["properties"]["serializedData"], content);
}
