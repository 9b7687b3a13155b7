//! Cloud Monitoring: what policies, channels, uptime checks and dashboards are refused for.

use serde_json::{Value, json};

use crate::Client;

const CHANNELS: &str = "v3/projects/PROJECT/notificationChannels";
const POLICIES: &str = "v3/projects/PROJECT/alertPolicies";
const UPTIME: &str = "v3/projects/PROJECT/uptimeCheckConfigs";
const DASHBOARDS: &str = "v1/projects/PROJECT/dashboards";

fn channel(client: &Client) -> String {
    let body = json!({ "type": "email", "displayName": "c", "labels": { "email_address": "oncall@example.com" } });
    let made = client.post("monitoring", CHANNELS, body).ok();
    assert_eq!(made["enabled"], true);
    made["name"].as_str().unwrap().to_owned()
}

fn policy(filter: &str, duration: &str, channel: &str) -> Value {
    json!({
        "displayName": "p", "combiner": "OR", "notificationChannels": [channel],
        "conditions": [{ "displayName": "d", "conditionThreshold": {
            "filter": filter, "comparison": "COMPARISON_GT", "thresholdValue": 0.9, "duration": duration,
            "aggregations": [{ "alignmentPeriod": "60s", "perSeriesAligner": "ALIGN_MEAN" }],
        } }],
    })
}

/// hashicorp/terraform-provider-google#4165, hashicorp/terraform-provider-google#25878.
#[test]
fn a_policy_names_a_resource_and_a_channel_that_is_there() {
    let client = Client::quick();
    let channel = channel(&client);
    let filter = "metric.type=\"m\" AND resource.type=\"r\"";
    let other = format!("{channel}0");
    for (wrong, status) in [
        (policy("metric.type=\"m\"", "60s", &channel), 400),
        (policy(filter, "90s", &channel), 400),
        (policy(filter, "60s", &other), 404),
        (json!({ "displayName": "p", "combiner": "OR" }), 400),
    ] {
        assert_eq!(client.post("monitoring", POLICIES, wrong.clone()).status, status, "{wrong}");
    }
    let mut ratio = policy(filter, "60s", &channel);
    let threshold = &mut ratio["conditions"][0]["conditionThreshold"];
    threshold["denominatorFilter"] = json!(filter);
    threshold["denominatorAggregations"] = json!([{ "alignmentPeriod": "120s", "perSeriesAligner": "ALIGN_MEAN" }]);
    assert_eq!(client.post("monitoring", POLICIES, ratio.clone()).status, 400);
    ratio["conditions"][0]["conditionThreshold"]["denominatorAggregations"][0]["alignmentPeriod"] = json!("60s");
    client.post("monitoring", POLICIES, ratio).ok();
    let without = json!({ "type": "email", "displayName": "c" });
    assert_eq!(client.post("monitoring", CHANNELS, without).status, 400);
    let made = client.post("monitoring", POLICIES, policy(filter, "60s", &channel)).ok();
    let path = format!("v3/{}", made["name"].as_str().unwrap());
    let change = json!({ "notificationChannels": [other] });
    assert_eq!(
        client.call("PATCH", "monitoring", &format!("{path}?updateMask=notificationChannels"), change).status,
        404
    );
    let change = json!({ "displayName": "q" });
    let changed = client.call("PATCH", "monitoring", &format!("{path}?updateMask=displayName"), change).ok();
    assert_eq!((&changed["displayName"], &changed["conditions"]), (&json!("q"), &made["conditions"]));
}

/// hashicorp/terraform-provider-google#10337.
#[test]
fn a_channel_in_use_is_deleted_by_force_only() {
    let client = Client::quick();
    let channel = channel(&client);
    let made = client.post("monitoring", POLICIES, policy("resource.type=\"r\"", "60s", &channel)).ok();
    let path = format!("v3/{channel}");
    let refused = client.call("DELETE", "monitoring", &path, Value::Null);
    assert!(refused.status == 400 && refused.message().contains("still being referenced"), "{}", refused.body);
    client.call("DELETE", "monitoring", &format!("{path}?force=true"), Value::Null).ok();
    let left = client.get("monitoring", &format!("v3/{}", made["name"].as_str().unwrap())).ok();
    assert_eq!(left["notificationChannels"], json!([]));
}

/// pulumi/pulumi-google-native#317, hashicorp/terraform-provider-google#7734, GoogleCloudPlatform/magic-modules#1129,
/// GoogleCloudPlatform/magic-modules#8266, hashicorp/terraform-provider-google#10176.
#[test]
fn an_uptime_check_is_changed_with_its_period_and_waits_for_its_policies() {
    let client = Client::quick();
    let check = |change: fn(&mut Value)| {
        let mut check = json!({
            "displayName": "The service", "period": "60s", "timeout": "10s", "userLabels": { "a": "b" },
            "monitoredResource": { "type": "uptime_url", "labels": { "host": "text.example.com" } },
            "httpCheck": { "useSsl": true, "port": 8443, "path": "/health" },
        });
        change(&mut check);
        check
    };
    let wrong: [fn(&mut Value); 5] = [
        |one| one["name"] = json!("projects/p/uptimeCheckConfigs/mine"),
        |one| one["displayName"] = json!(""),
        |one| one["timeout"] = json!("61s"),
        |one| one["period"] = json!("90s"),
        |one| one["monitoredResource"]["labels"] = json!({}),
    ];
    for change in wrong {
        let body = check(change);
        assert_eq!(client.post("monitoring", UPTIME, body.clone()).status, 400, "{body}");
    }
    let made = client.post("monitoring", UPTIME, check(|_| {})).ok();
    let (host, project) =
        (&made["monitoredResource"]["labels"]["host"], &made["monitoredResource"]["labels"]["project_id"]);
    assert!(*host == "text.example.com" && project.is_string(), "{made}");
    let name = made["name"].as_str().unwrap();
    let path = format!("v3/{name}");
    let patch = |query: &str, body: Value| client.call("PATCH", "monitoring", &format!("{path}{query}"), body);
    for change in [json!({ "httpCheck": { "port": 443 } }), json!({ "displayName": "Another one", "timeout": "5s" })] {
        assert_eq!(patch("?updateMask=httpCheck", change).status, 400);
    }
    assert_eq!(patch("", check(|one| one["period"] = json!("90s"))).status, 400);
    let rarer = patch("", check(|one| one["period"] = json!("300s"))).ok();
    assert_eq!((&rarer["period"], &rarer["name"]), (&json!("300s"), &made["name"]));
    let masked = patch("?updateMask=httpCheck", json!({ "httpCheck": { "port": 443 }, "period": "60s" })).ok();
    assert_eq!((&masked["httpCheck"], &masked["userLabels"]), (&json!({ "port": 443 }), &made["userLabels"]));
    let replaced = patch("", check(|one| one["userLabels"] = json!({ "a": "c" }))).ok();
    assert_eq!((&replaced["userLabels"], &replaced["name"]), (&json!({ "a": "c" }), &made["name"]));

    let id = name.rsplit('/').next().unwrap();
    let filter = format!("resource.type=\"uptime_url\" AND metric.labels.check_id=\"{id}\"");
    let policy = client.post("monitoring", POLICIES, policy(&filter, "60s", &channel(&client))).ok();
    assert_eq!(client.call("DELETE", "monitoring", &path, Value::Null).status, 400);
    client.call("DELETE", "monitoring", &format!("v3/{}", policy["name"].as_str().unwrap()), Value::Null).ok();
    client.call("DELETE", "monitoring", &path, Value::Null).ok();
    assert_eq!(client.get("monitoring", &path).status, 404);
}

/// 2i2c-org/infrastructure#7054.
#[test]
fn a_project_has_a_hundred_uptime_checks() {
    let client = Client::quick();
    let check = |number: usize| {
        json!({
            "displayName": format!("Check {number}"), "period": "60s", "timeout": "10s",
            "monitoredResource": { "type": "uptime_url", "labels": { "host": "text.example.com" } },
            "httpCheck": { "useSsl": true, "port": 8443, "path": "/health" },
        })
    };
    for number in 0..100 {
        client.post("monitoring", UPTIME, check(number)).ok();
    }
    assert_eq!(client.post("monitoring", UPTIME, check(100)).status, 429);
}

/// GoogleCloudPlatform/magic-modules#18515.
#[test]
fn a_patch_replaces_a_dashboard_unless_its_etag_is_stale() {
    let client = Client::quick();
    let dashboard = |x: u32, threshold: Value| {
        let query = json!({ "timeSeriesFilter": { "filter": "metric.type=\"m\"" } });
        let chart = json!({ "dataSets": [{ "timeSeriesQuery": query }], "thresholds": [threshold] });
        let tile = json!({ "xPos": x, "width": 6, "height": 4, "widget": { "title": "t", "xyChart": chart } });
        json!({ "displayName": "d", "labels": { "a": "b" }, "mosaicLayout": { "columns": 12, "tiles": [tile] } })
    };
    let line = json!({ "value": 0, "label": "alert above" });
    let mut two = dashboard(0, line.clone());
    two["gridLayout"] = json!({ "columns": "2" });
    for wrong in [
        dashboard(7, line.clone()),
        dashboard(0, json!({ "value": 1, "color": "RED" })),
        json!({ "labels": { "a": "b" } }),
        two,
    ] {
        assert_eq!(client.post("monitoring", DASHBOARDS, wrong.clone()).status, 400, "{wrong}");
    }
    let made = client.post("monitoring", DASHBOARDS, dashboard(0, line)).ok();
    let tile = &made["mosaicLayout"]["tiles"][0];
    assert_eq!((tile.get("xPos"), &tile["widget"]["xyChart"]["dataSets"][0]["targetAxis"]), (None, &json!("Y1")));
    let path = format!("v1/{}", made["name"].as_str().unwrap());
    let change = json!({ "displayName": "e", "etag": made["etag"] });
    let changed = client.call("PATCH", "monitoring", &path, change.clone()).ok();
    assert_eq!(
        (&changed["displayName"], changed.get("labels"), changed.get("mosaicLayout")),
        (&json!("e"), None, None)
    );
    assert_eq!(client.call("PATCH", "monitoring", &path, change).status, 409);
}
