//! Queries of costs: by tag and service, in pages, and beyond their limit.

use jiff::Span;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use textnlp_sim::azure::Options;

use crate::Client;

const QUERY: &str = "providers/Microsoft.CostManagement/query";
const ACTION: &str = "Microsoft.CostManagement/query/read";

/// A query of the current month for what has the tag `team: text`.
fn query(client: &Client) -> Value {
    let first = client.cloud.world().now().to_zoned(TimeZone::UTC).date().first_of_month();
    let last = first.saturating_add(Span::new().months(1)).saturating_sub(Span::new().days(1));
    json!({
        "type": "ActualCost", "timeframe": "Custom",
        "timePeriod": { "from": format!("{first}T00:00:00Z"), "to": format!("{last}T23:59:59Z") },
        "dataset": {
            "granularity": "None", "aggregation": { "totalCost": { "name": "Cost", "function": "Sum" } },
            "grouping": [{ "type": "Dimension", "name": "ServiceName" }],
            "filter": { "tags": { "name": "team", "operator": "In", "values": ["text"] } },
        },
    })
}

/// Azure/azure-rest-api-specs#23405.
#[test]
fn costs_of_a_tag_come_in_pages() {
    let mut options = Options::zero_latency().registered();
    options.timing.page = 1;
    let client = Client::with(options);
    let (mine, other) = (client.path("GROUP"), "/subscriptions/s/resourceGroups/other");
    client.put("GROUP", json!({ "location": "westeurope", "tags": { "team": "text" } })).ok();
    for (id, service, micros) in [
        (mine.as_str(), "Storage", 1_250_000),
        (other, "Storage", 9_000_000),
        (mine.as_str(), "Virtual Machines", 40_000_000),
        (mine.as_str(), "Storage", 500_000),
    ] {
        client.cloud.world().charge(id, service, micros);
    }
    let first = client.post(QUERY, query(&client)).ok();
    assert_eq!(first["properties"]["rows"], json!([[1.75, "Storage", "USD"]]));
    let link = first["properties"]["nextLink"].as_str().unwrap().to_owned();
    let link = link.strip_prefix("https://management.azure.com").unwrap();
    let second = client.post(link, query(&client)).ok();
    assert_eq!(second["properties"]["rows"], json!([[40.0, "Virtual Machines", "USD"]]));
    assert_eq!(second["properties"]["nextLink"], Value::Null);
}

/// Azure/azqr#745, cloudquery/cloudquery#9860.
#[test]
fn a_query_beyond_the_limit_or_without_the_right_is_refused() {
    let client = Client::quick();
    client.cloud.world().costs_limited_for = Some(42);
    let limited = client.post(QUERY, query(&client));
    assert_eq!(limited.code(), (429, "429"));
    assert_eq!(limited.header("x-ms-ratelimit-microsoft.costmanagement-qpu-retry-after"), Some("42"));
    client.cloud.world().costs_limited_for = None;
    client.cloud.world().denied.insert(ACTION.to_owned());
    assert_eq!(client.post(QUERY, query(&client)).code(), (403, "AuthorizationFailed"));
}
