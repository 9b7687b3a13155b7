//! Billing accounts and their budgets. Costs are not simulated: nothing is ever spent.

use serde_json::{Value, json};

use super::cloud::{Cloud, merge, put};
use super::kinds::{collection, page, read};
use super::problem::Problem;
use super::{Call, Handler, iam};
use crate::{Behaviour, Source};

/// The most characters of a display name.
const LONGEST_NAME: usize = 60;
/// The most channels of a budget.
const MOST_CHANNELS: usize = 5;
/// The title of the API in messages.
const API: &str = "billingbudgets.googleapis.com";

pub(crate) const HANDLERS: &[(&str, Handler)] = &[
    ("billingbudgets.billingAccounts.budgets.create", create),
    ("billingbudgets.billingAccounts.budgets.delete", delete),
    ("billingbudgets.billingAccounts.budgets.get", read),
    ("billingbudgets.billingAccounts.budgets.list", list),
    ("billingbudgets.billingAccounts.budgets.patch", patch),
    ("cloudbilling.billingAccounts.get", account),
    ("cloudbilling.billingAccounts.testIamPermissions", iam::test_permissions),
];

const BUDGETS: Source =
    Source::Documentation("https://cloud.google.com/billing/docs/reference/budget/rest/v1/billingAccounts.budgets");

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "a call of a user without a quota project is 403 SERVICE_DISABLED",
        Source::Report("terraform-google-modules/terraform-example-foundation#353"),
    ),
    rule(
        "the API has to be enabled in the quota project, or in the project of the service account",
        Source::Report("terraform-google-modules/terraform-google-project-factory#720"),
    ),
    rule(
        "a budget of a billing account that the caller has no role on is 403",
        Source::Report("terraform-google-modules/terraform-google-project-factory#405"),
    ),
    rule(
        "a request that breaks a rule is 400 without a word about the rule",
        Source::Report("hashicorp/terraform-provider-google#9375"),
    ),
    rule("the service gives a budget its name, and a display name has at most 60 characters", BUDGETS),
    rule("a stated currency has to be that of the billing account, and that of the budget when it is changed", BUDGETS),
    rule("an amount without a currency has that of the billing account", BUDGETS),
    rule("a budget without a period counts by month, and with all credits", BUDGETS),
    rule(
        "a budget sends mails to at most five channels of Cloud Monitoring, which have to be there",
        Source::Documentation("https://cloud.google.com/billing/docs/how-to/budgets-notification-recipients"),
    ),
    rule("a threshold is not negative, and is about the current spend unless it says otherwise", BUDGETS),
    rule(
        "an update mask names what is replaced, with all that is in it; without one all members of the request change",
        Source::Documentation(
            "https://cloud.google.com/billing/docs/reference/budget/rest/v1/billingAccounts.budgets/patch",
        ),
    ),
    rule("a change with a stale etag is 409 ABORTED", Source::Documentation("https://google.aip.dev/154")),
    rule(
        "the deletion of a budget that is not there succeeds",
        Source::Documentation(
            "https://cloud.google.com/billing/docs/reference/budget/rest/v1/billingAccounts.budgets/delete",
        ),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "billingbudgets", what, source }
}

/// The project that a call is counted for, which has to have the API enabled: the stated one, or that of a service account.
pub(crate) fn quota_project(cloud: &Cloud, stated: Option<&str>, user: &str) -> Result<String, Problem> {
    let of_account = user.strip_suffix(".iam.gserviceaccount.com").and_then(|name| name.split_once('@'));
    if let Some(project) = stated.or(of_account.map(|(_, project)| project)) {
        return Ok(cloud.project(project).map_or_else(|| project.to_owned(), |found| found.id.clone()));
    }
    let message = format!(
        "Your application is authenticating by using local Application Default Credentials. The {API} API requires a \
         quota project, which is not set by default."
    );
    let metadata = json!({ "service": API, "consumer": "projects/764086051850" });
    Err(Problem::new("PERMISSION_DENIED", message).info("SERVICE_DISABLED", "googleapis.com", metadata))
}

fn refused() -> Problem {
    Problem::new("INVALID_ARGUMENT", "Request contains an invalid argument.")
}

/// The billing account at the start of a name: that of a project.
fn check_account(cloud: &Cloud, call: &Call<'_>) -> Result<String, Problem> {
    let name = call.name.split('/').take(2).collect::<Vec<_>>().join("/");
    match cloud.projects.values().any(|project| project.billing_account.as_deref() == Some(name.as_str())) {
        true => Ok(name),
        false => Err(Problem::new("PERMISSION_DENIED", "The caller does not have permission")),
    }
}

fn account(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let name = check_account(cloud, call)?;
    Ok(json!({ "name": name, "open": true, "displayName": "Billing", "currencyCode": cloud.currency }))
}

/// Fills and checks a budget.
fn accept(cloud: &Cloud, budget: &mut Value, currency: &str) -> Result<(), Problem> {
    if budget["displayName"].as_str().unwrap_or_default().chars().count() > LONGEST_NAME {
        return Err(refused());
    }
    let channels = budget["notificationsRule"]["monitoringNotificationChannels"].as_array();
    let is_there =
        |channel: &Value| cloud.get(&format!("monitoring/{}", channel.as_str().unwrap_or_default())).is_some();
    if channels.is_some_and(|all| all.len() > MOST_CHANNELS || !all.iter().all(is_there)) {
        return Err(refused());
    }
    let amount = &mut budget["amount"];
    if amount["specifiedAmount"].is_object() {
        let stated = amount["specifiedAmount"]["currencyCode"].as_str().unwrap_or(currency);
        if stated != currency {
            return Err(refused());
        }
        amount["specifiedAmount"]["currencyCode"] = currency.into();
        // Zero is not answered.
        if let Some(members) = amount["specifiedAmount"].as_object_mut() {
            members.retain(|_, value| *value != 0 && *value != "0");
        }
    } else if !amount["lastPeriodAmount"].is_object() {
        return Err(refused());
    }
    for (member, default) in [("calendarPeriod", "MONTH"), ("creditTypesTreatment", "INCLUDE_ALL_CREDITS")] {
        if budget["budgetFilter"][member].is_null() {
            put(budget, &format!("/budgetFilter/{member}"), default.into());
        }
    }
    let rules = budget.get_mut("thresholdRules").and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten() {
        if rule["thresholdPercent"].as_f64().is_none_or(|percent| percent < 0.0) {
            return Err(refused());
        }
        if rule["spendBasis"].is_null() {
            rule["spendBasis"] = "CURRENT_SPEND".into();
        }
    }
    budget["etag"] = cloud.fingerprint().into();
    Ok(())
}

fn create(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let account = check_account(cloud, call)?;
    let mut budget = call.body.clone();
    accept(cloud, &mut budget, &cloud.currency)?;
    let name = format!("{account}/budgets/{}", cloud.random.uuid());
    budget["name"] = name.as_str().into();
    cloud.put(&format!("billingbudgets/{name}"), budget.clone());
    Ok(budget)
}

fn list(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    check_account(cloud, call)?;
    let keys = collection(cloud, &call.key());
    Ok(page(call, "budgets", keys.iter().filter_map(|key| cloud.get(key).cloned()).collect()))
}

fn patch(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let before = read(cloud, call)?;
    let etag = call.body["etag"].as_str().filter(|etag| !etag.is_empty());
    if etag.is_some_and(|etag| before["etag"] != etag) {
        return Err(Problem::new("ABORTED", "The etag does not match that of the budget."));
    }
    let mut after = before.clone();
    match call.parameter("updateMask") {
        None => merge(&mut after, &call.body),
        Some(mask) => {
            for pointer in mask.split(',').map(|path| format!("/{}", path.trim().replace('.', "/"))) {
                put(&mut after, &pointer, call.body.pointer(&pointer).cloned().unwrap_or_default());
            }
        }
    }
    let currency = before.pointer("/amount/specifiedAmount/currencyCode").and_then(Value::as_str);
    accept(cloud, &mut after, currency.unwrap_or(&cloud.currency))?;
    after["name"] = before["name"].clone();
    cloud.put(&call.key(), after.clone());
    Ok(after)
}

fn delete(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    check_account(cloud, call)?;
    cloud.objects.remove(&call.key());
    Ok(json!({}))
}
