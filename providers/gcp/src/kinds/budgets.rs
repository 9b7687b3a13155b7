//! Budgets: <https://cloud.google.com/billing/docs/reference/budget/rest/v1/billingAccounts.budgets>.
//!
//! The billing account of the project has them and gives them their names, and they have no labels. A budget is found by its display
//! name, which ends with the lineage: Google Cloud has no other text for it.

use std::collections::BTreeSet;

use async_trait::async_trait;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_cloud::document::{capture, fill};
use textnlp_cloud::tags::{self, LINEAGE, Tags};
use textnlp_cloud::{Filter, Make, ObservedObject, Of, Resource, same};
use textnlp_provider::{
    Declaration, Declare, Error, ErrorKind, Identity, Kind, Lineage, Permission, Result, Tool, Verb,
};

use super::{create, delete, read};
use crate::api::{Api, Call};
use crate::row::invalid;
use crate::service::Service;
use crate::table::{Row, kind};

/// The kind of budgets.
pub(crate) const BUDGET: &str = "gcp.budget";
/// The most characters of the start of a display name, which has 60 with the space and the lineage after it.
pub(crate) const MOST_OF_NAME: usize = 23;
/// The most channels of a budget (hashicorp/terraform-provider-google#16790).
pub(crate) const MOST_OF_BUDGET: usize = 5;
/// An id. The name is the start of the display name.
const PATH: &str = "projects/{project}/budgets/{name}";
/// The nanos of a hundredth of a currency's unit.
const CENT: i64 = 10_000_000;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: Kind {
        permissions: &[
            // The currency, for preflight.
            read("billing.accounts.get"),
            create("billing.budgets.create"),
            delete("billing.budgets.delete"),
            read("billing.budgets.list"),
            Permission::on(&[Verb::Update], "billing.budgets.update"),
            read("resourcemanager.projects.get"),
        ],
        ..kind(BUDGET, "a monthly budget that warns", Identity::Part)
    },
    service: "billingbudgets",
    resource: &Of::<Budget>::kind(),
    refused: &[],
}];

/// A monthly cost budget. Outputs: `name`.
struct Budget;

/// The attributes of a budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Spec {
    /// The project whose billing account has it.
    project: String,
    /// The start of its display name.
    name: String,
    /// Its amount for a month.
    limit: f64,
    /// The currency of the amount: that of the billing account.
    currency: String,
    /// The projects whose costs count. None are all of the billing account.
    projects: BTreeSet<String>,
    /// What is sent, and when.
    notifications: Vec<Notification>,
    /// The channels that get the mails besides the administrators and users of the billing account.
    #[serde(default)]
    channels: BTreeSet<String>,
    #[serde(default)]
    tags: Tags,
}

/// A notification of a budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Notification {
    /// `CURRENT_SPEND`: what was spent; `FORECASTED_SPEND`: what the whole month will cost.
    about: String,
    /// The percentage of the amount beyond which it is sent.
    percent: f64,
}

/// The project and the name in an id.
fn parts(id: &str) -> Option<(String, String)> {
    let mut found = capture(PATH, id)?;
    Some((found.remove("project")?, found.remove("name")?))
}

/// The billing account of a project: `billingAccounts/A`.
async fn account(api: &Api, project: &str) -> Result<Option<String>> {
    let call = Call::get(Service::CloudBilling, format!("projects/{project}/billingInfo"));
    let found = api.find_enabled(call.saying("read", format!("the billing account of {project}"))).await?;
    let name = found.as_ref().and_then(|found| found["billingAccountName"].as_str());
    Ok(name.filter(|name| !name.is_empty()).map(str::to_owned))
}

/// The budget of an id, and the lineage in its display name.
async fn find(api: &Api, id: &str) -> Result<Option<(Value, Lineage)>> {
    let Some((project, name)) = parts(id) else { return Ok(None) };
    let Some(account) = account(api, &project).await? else { return Ok(None) };
    let all = api.list(Service::BillingBudgets, &format!("{account}/budgets"), "budgets", &[]).await?;
    let own = |one: Value| {
        let lineage = one["displayName"].as_str()?.strip_prefix(&name)?.strip_prefix(' ')?.parse::<Lineage>().ok()?;
        Some((one, lineage))
    };
    Ok(all.into_iter().find_map(own))
}

/// A budget as it is now, unless its display name changed since it was read.
async fn current(api: &Api, action: &str, seen: &ObservedObject<Spec>) -> Result<Value> {
    match find(api, &seen.id).await? {
        Some((budget, lineage)) if tags::lineage(&seen.tags) == Some(lineage) => Ok(budget),
        _ => {
            let error = Error::new(ErrorKind::Conflict, action, seen.id.clone());
            Err(error.because("another client changed its display name"))
        }
    }
}

#[async_trait]
impl Resource<Api> for Budget {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["limit", "currency", "projects", "notifications", "channels"];
    /// A budget without a lineage in its display name is another client's, and is not seen.
    const CARRIES_TAGS: bool = false;

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let (Some((budget, lineage)), Some((project, name))) = (find(api, id).await?, parts(id)) else {
            return Ok(None);
        };
        let own = format!("projects/{}", api.project_number().await?);
        let counted = |one: &str| if one == own { project.clone() } else { one.to_owned() };
        let projects = budget["budgetFilter"]["projects"].as_array().into_iter().flatten();
        let projects = projects.filter_map(Value::as_str).map(counted).collect();
        let money = &budget["amount"]["specifiedAmount"];
        let spec = Spec {
            limit: amount(money),
            currency: money["currencyCode"].as_str().unwrap_or_default().to_owned(),
            projects,
            notifications: notifications(&budget),
            channels: channels(&budget),
            tags: Tags::new(),
            name: name.clone(),
            project,
        };
        let tags = Tags::from([(LINEAGE.to_owned(), lineage.to_string())]);
        Ok(Some(ObservedObject::new(id, spec, tags).output("name", Some(name))))
    }

    /// None: a budget is read by its display name, and most identities see no billing account.
    async fn list(_api: &Api, _filter: &Filter<Api>) -> Result<Vec<ObservedObject<Spec>>> {
        Ok(Vec::new())
    }

    fn id(spec: &Spec) -> Option<String> {
        let value = |name: &str| Some(if name == "project" { spec.project.clone() } else { spec.name.clone() });
        fill(PATH, value)
    }

    fn declare(_api: Option<&Api>, request: &Declare<'_>) -> Option<Result<Vec<Declaration>, String>> {
        (request.tool == Tool::Terraform).then(|| Err("the billing account that has it is not recorded".to_owned()))
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let subject = format!("budget {}", spec.name);
        let (Some(id), Some(lineage)) = (Self::id(spec), make.tags.get(LINEAGE)) else {
            return Err(invalid("create", &subject, "its spec has no name"));
        };
        let Some(account) = account(api, &spec.project).await? else {
            let error = invalid("create", &subject, "the project has no billing account");
            let project = &spec.project;
            return Err(error.hint(format!("`gcloud billing projects link {project} --billing-account ACCOUNT`")));
        };
        let body = json!({
            "displayName": format!("{} {lineage}", spec.name),
            "budgetFilter": filter(api).await?,
            "amount": { "specifiedAmount": money(spec) },
            "thresholdRules": rules(spec),
            "notificationsRule": recipients(spec),
        });
        let call = Call::post(Service::BillingBudgets, format!("{account}/budgets"), body);
        api.send(call.saying("create", subject)).await?;
        Ok(id)
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        let budget = current(api, "change", seen).await?;
        let (member, mask, value) = match field {
            "notifications" => ("thresholdRules", "thresholdRules", rules(spec)),
            "projects" => ("budgetFilter", "budgetFilter", filter(api).await?),
            // The other recipients, such as a topic of Pub/Sub, are the operator's: Terraform names the members for the same reason
            // (GoogleCloudPlatform/magic-modules, products/billingbudget/Budget.yaml).
            "channels" => ("notificationsRule", "notificationsRule.monitoringNotificationChannels", recipients(spec)),
            _ => ("amount", "amount", json!({ "specifiedAmount": money(spec) })),
        };
        // A change by another client since the read is refused by the etag.
        let body = json!({ (member): value, "etag": budget["etag"] });
        let path = budget["name"].as_str().unwrap_or_default();
        let call = Call::new(Service::BillingBudgets, Method::PATCH, path).query("updateMask", mask).body(body);
        api.send(call.saying("change", format!("budget {}", spec.name))).await.map(drop)
    }

    /// A number may be written with and without a fraction, and an amount has two digits of it.
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        match field {
            "limit" => wanted.is_number() && wanted.as_f64().map(cents) == seen.as_f64().map(cents),
            "notifications" => {
                let typed = |value: &Value| serde_json::from_value::<Vec<Notification>>(value.clone()).ok();
                let again = |all: Option<Vec<Notification>>| all.and_then(|all| serde_json::to_value(all).ok());
                let wanted = again(typed(wanted));
                wanted.is_some() && same(wanted.as_ref(), again(typed(seen)).as_ref())
            }
            _ => false,
        }
    }

    /// Its only mark is its display name.
    async fn tag(_api: &Api, _seen: &ObservedObject<Spec>, _set: &Tags, _remove: &[String]) -> Result<()> {
        Ok(())
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let budget = current(api, "delete", seen).await?;
        let path = budget["name"].as_str().unwrap_or_default();
        let call = Call::new(Service::BillingBudgets, Method::DELETE, path);
        api.send(call.saying("delete", seen.id.clone())).await.map(drop)
    }
}

/// What counts: the costs of the project, by month.
async fn filter(api: &Api) -> Result<Value> {
    let project = format!("projects/{}", api.project_number().await?);
    Ok(json!({ "projects": [project], "calendarPeriod": "MONTH" }))
}

fn cents(amount: f64) -> String {
    format!("{amount:.2}")
}

/// The amount of a spec: <https://cloud.google.com/billing/docs/reference/budget/rest/v1/Money>.
fn money(spec: &Spec) -> Value {
    let amount = cents(spec.limit);
    let (units, cents) = amount.split_once('.').unwrap_or((amount.as_str(), ""));
    let nanos = cents.parse::<i64>().unwrap_or_default() * CENT;
    json!({ "currencyCode": spec.currency, "units": units, "nanos": nanos })
}

fn amount(money: &Value) -> f64 {
    let units = money["units"].as_str().and_then(|units| units.parse::<f64>().ok()).unwrap_or_default();
    units + money["nanos"].as_f64().unwrap_or_default() / 1e9
}

fn rules(spec: &Spec) -> Value {
    let rule = |one: &Notification| json!({ "thresholdPercent": one.percent / 100.0, "spendBasis": one.about });
    spec.notifications.iter().map(rule).collect()
}

/// Who gets mails besides those with roles on the billing account.
fn recipients(spec: &Spec) -> Value {
    json!({ "monitoringNotificationChannels": spec.channels })
}

fn channels(budget: &Value) -> BTreeSet<String> {
    let all = budget["notificationsRule"]["monitoringNotificationChannels"].as_array().into_iter().flatten();
    all.filter_map(|channel| channel.as_str().map(str::to_owned)).collect()
}

fn notifications(budget: &Value) -> Vec<Notification> {
    let notification = |rule: &Value| Notification {
        about: rule["spendBasis"].as_str().unwrap_or("CURRENT_SPEND").to_owned(),
        // Without what the division by a hundred lost.
        percent: (rule["thresholdPercent"].as_f64().unwrap_or_default() * 10_000.0).round() / 100.0,
    };
    budget["thresholdRules"].as_array().into_iter().flatten().map(notification).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(limit: f64) -> Spec {
        let one = |about: &str, percent: f64| Notification { about: about.to_owned(), percent };
        Spec {
            project: "my-project".to_owned(),
            name: "textnlp-staging-main".to_owned(),
            limit,
            currency: "EUR".to_owned(),
            projects: BTreeSet::from(["my-project".to_owned()]),
            notifications: vec![one("CURRENT_SPEND", 7.0), one("FORECASTED_SPEND", 100.0)],
            channels: BTreeSet::from(["projects/my-project/notificationChannels/1".to_owned()]),
            tags: Tags::new(),
        }
    }

    #[test]
    fn amounts_and_rules_are_read_as_they_are_written() {
        assert_eq!(money(&spec(900.5)), json!({ "currencyCode": "EUR", "units": "900", "nanos": 500_000_000 }));
        for limit in [900.0, 900.5, 0.07] {
            assert!(Budget::fits("limit", &json!(limit), &json!(amount(&money(&spec(limit))))), "{limit}");
        }
        let budget = json!({ "thresholdRules": rules(&spec(1.0)) });
        assert_eq!(notifications(&budget), spec(1.0).notifications);
        assert_eq!(channels(&json!({ "notificationsRule": recipients(&spec(1.0)) })), spec(1.0).channels);
        let (wanted, seen) = (
            json!([{ "about": "CURRENT_SPEND", "percent": 80 }]),
            json!([{ "about": "CURRENT_SPEND", "percent": 80.0 }]),
        );
        assert!(Budget::fits("notifications", &wanted, &seen));
    }

    #[test]
    fn ids_have_the_project_and_the_name() {
        let id = Budget::id(&spec(1.0)).unwrap();
        assert_eq!(id, "projects/my-project/budgets/textnlp-staging-main");
        assert_eq!(parts(&id), Some(("my-project".to_owned(), "textnlp-staging-main".to_owned())));
        assert_eq!(parts("billingAccounts/0/budgets/1"), None);
    }
}
