//! Budgets of billing accounts: what a call is refused for.

use serde_json::{Value, json};

use crate::{Answer, Client, send};

const ACCOUNT: &str = "billingAccounts/000000-AAAAAA-000000";

/// A call that is counted for a project.
fn call(client: &Client, method: &str, path: &str, body: &Value) -> Answer {
    let project = client.cloud.project().to_owned();
    let headers = [
        ("authorization", format!("Bearer {}", client.token)),
        ("content-type", "application/json".to_owned()),
        ("x-goog-user-project", project),
    ];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    send(method, &format!("{}v1/{path}", client.cloud.url_of("billingbudgets")), &headers, &body)
}

fn budget(currency: &str, name: &str) -> Value {
    json!({
        "displayName": name, "amount": { "specifiedAmount": { "currencyCode": currency, "units": "900", "nanos": 0 } },
        "budgetFilter": { "projects": ["projects/123456789012"] }, "thresholdRules": [{ "thresholdPercent": 0.8 }],
    })
}

/// terraform-google-modules/terraform-example-foundation#353, terraform-google-modules/terraform-google-project-factory#720,
/// terraform-google-modules/terraform-google-project-factory#405.
#[test]
fn a_budget_needs_a_quota_project_and_its_own_billing_account() {
    let client = Client::quick();
    let path = format!("{ACCOUNT}/budgets");
    let without = client.get("billingbudgets", &format!("v1/{path}"));
    assert_eq!(without.body["error"]["details"][0]["reason"], "SERVICE_DISABLED", "{}", without.body);
    assert!(without.message().contains("requires a quota project"), "{}", without.message());
    call(&client, "GET", &path, &Value::Null).ok();
    let other = call(&client, "GET", "billingAccounts/111111-BBBBBB-111111/budgets", &Value::Null);
    assert_eq!(other.status, 403);
    let project = client.cloud.project().to_owned();
    client.cloud.world().projects.get_mut(&project).unwrap().services.remove("billingbudgets.googleapis.com");
    assert_eq!(call(&client, "GET", &path, &Value::Null).reason(), (403, "accessNotConfigured"));
}

/// hashicorp/terraform-provider-google#9375.
#[test]
fn a_budget_is_in_the_currency_of_its_account_and_changes_by_etag() {
    let client = Client::quick();
    let path = format!("{ACCOUNT}/budgets");
    for wrong in [budget("EUR", "b"), budget("USD", &"b".repeat(61))] {
        assert_eq!(call(&client, "POST", &path, &wrong).reason(), (400, "badRequest"), "{wrong}");
    }
    let mut plain = budget("USD", "b");
    plain["amount"]["specifiedAmount"] = json!({ "units": "900" });
    let made = call(&client, "POST", &path, &plain).ok();
    assert_eq!(made["amount"]["specifiedAmount"], json!({ "units": "900", "currencyCode": "USD" }));
    assert_eq!(made["budgetFilter"]["calendarPeriod"], "MONTH");
    assert_eq!(made["thresholdRules"], json!([{ "thresholdPercent": 0.8, "spendBasis": "CURRENT_SPEND" }]));
    let name = made["name"].as_str().unwrap();
    let change = |units: &str, currency: &str, etag: &Value| {
        let amount = json!({ "specifiedAmount": { "units": units, "currencyCode": currency } });
        let body = json!({ "amount": amount, "displayName": "ignored", "etag": etag });
        call(&client, "PATCH", &format!("{name}?updateMask=amount"), &body)
    };
    let changed = change("950", "USD", &made["etag"]).ok();
    assert_eq!((&changed["amount"]["specifiedAmount"]["units"], &changed["displayName"]), (&json!("950"), &json!("b")));
    assert_eq!(change("960", "USD", &made["etag"]).reason(), (409, "aborted"));
    assert_eq!(change("960", "EUR", &changed["etag"]).reason(), (400, "badRequest"));
    let all = call(&client, "GET", &path, &Value::Null).ok();
    assert_eq!(all["budgets"], json!([changed]));
    call(&client, "DELETE", name, &Value::Null).ok();
    call(&client, "DELETE", name, &Value::Null).ok();
    assert_eq!(call(&client, "GET", name, &Value::Null).status, 404);
}
