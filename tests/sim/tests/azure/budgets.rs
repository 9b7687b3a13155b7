//! Budgets: what a write is refused for.

use serde_json::{Value, json};

use crate::Client;

const BUDGET: &str = "providers/Microsoft.Consumption/budgets/b";

/// The first day of the month that is `from_now` months after the current one.
fn month(client: &Client, from_now: i64) -> String {
    let today = client.cloud.world().now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let first = today.first_of_month().saturating_add(jiff::Span::new().months(from_now));
    format!("{first}T00:00:00Z")
}

fn budget(start: &str, recipients: &Value) -> Value {
    let mut notification = json!({ "enabled": true, "operator": "GreaterThan", "threshold": 80, "contactEmails": [] });
    notification["contactRoles"] = recipients.clone();
    json!({ "properties": {
        "category": "Cost", "timeGrain": "Monthly", "amount": 900, "timePeriod": { "startDate": start },
        "notifications": { "actual_80": notification },
    } })
}

/// MicrosoftDocs/azure-docs#34023, Azure/CanadaPubSecALZ#317, hashicorp/terraform-provider-azurerm#12121,
/// hashicorp/terraform-provider-azurerm#12471.
#[test]
fn a_budget_keeps_its_start_and_is_changed_by_its_etag() {
    let client = Client::quick();
    let (now, owner) = (month(&client, 0), json!(["Owner"]));
    for (wrong, recipients) in [
        (month(&client, -1), &owner),
        (month(&client, 12), &owner),
        (now.replace("-01T", "-02T"), &owner),
        (now.clone(), &json!([])),
    ] {
        assert_eq!(client.put(BUDGET, budget(&wrong, recipients)).code(), (400, "400"), "{wrong}");
    }
    let made = client.put(BUDGET, budget(&now, &owner)).ok();
    assert_eq!(made["properties"]["currentSpend"]["unit"], "USD");
    let overwrite = client.put(BUDGET, budget(&now, &owner));
    assert_eq!(overwrite.code(), (400, "400"));
    let message = overwrite.body["error"]["message"].as_str().unwrap();
    assert!(message.contains("There are changes made to Budget b"), "{message}");
    let mut moved = made.clone();
    moved["properties"]["timePeriod"]["startDate"] = json!(month(&client, 1));
    let message = client.put(BUDGET, moved).body["error"]["message"].clone();
    assert!(message.as_str().unwrap().contains("cannot be updated"), "{message}");
    let mut larger = made.clone();
    larger["properties"]["amount"] = json!(950);
    let changed = client.put(BUDGET, larger).ok();
    assert_ne!(changed["eTag"], made["eTag"]);
    client.delete(BUDGET).ok();
    assert_eq!(client.get(BUDGET).status, 404);
}
