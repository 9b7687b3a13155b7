//! Budgets of the subscription. Costs are not simulated: nothing is ever spent.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::cloud::{Cloud, put, put_missing, text};
use super::kinds::{Call, KIND, Kind};
use super::problem::{Problem, bad};
use crate::{Behaviour, Source};

/// The place of the first day.
const START: &str = "/properties/timePeriod/startDate";
/// The most notifications of a budget.
const NOTIFICATIONS: usize = 5;
/// The percentages of a threshold.
const THRESHOLDS: std::ops::RangeInclusive<f64> = 0.0..=1000.0;
/// The lists of recipients of a notification.
const RECIPIENTS: [&str; 3] = ["contactEmails", "contactRoles", "contactGroups"];

pub(crate) const KINDS: &[Kind] = &[Kind {
    kind: "Microsoft.Consumption/budgets",
    version: "2023-11-01",
    has_state: false,
    tags: 0,
    is_name: |name| {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        (1..=63).contains(&name.len()) && name.chars().all(fits)
    },
    accept: accept_budget,
    ..KIND
}];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "a write of a budget without its etag, or with another one, is 400 with the code 400",
        Source::Report("MicrosoftDocs/azure-docs#34023"),
    ),
    rule("the start of a budget is never changed: 400", Source::Report("Azure/CanadaPubSecALZ#317")),
    rule(
        "a new budget by month starts with the current month at the earliest, and within a year: 400",
        Source::Report("hashicorp/terraform-provider-azurerm#12121"),
    ),
    rule(
        "a budget starts with a month",
        Source::Documentation(
            "https://learn.microsoft.com/dotnet/api/azure.resourcemanager.consumption.consumptionbudgetdata.timeperiod",
        ),
    ),
    rule(
        "a notification has an address, a role or an action group: 400",
        Source::Report("hashicorp/terraform-provider-azurerm#12471"),
    ),
    rule("a threshold is a percentage from 0 to 1000", Source::Report("hashicorp/terraform-provider-azurerm#28927")),
    rule(
        "a budget has five notifications at most",
        Source::Documentation("https://learn.microsoft.com/rest/api/consumption/budgets/create-or-update"),
    ),
    rule(
        "an amount is in the currency of the bill, which the current spend shows",
        Source::Report("MicrosoftDocs/azure-docs#51742"),
    ),
    rule(
        "names have 1 to 63 letters, digits, - and _",
        Source::Documentation(
            "https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules#microsoftconsumption",
        ),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "Microsoft.Consumption", what, source }
}

fn refused(message: impl Into<String>) -> Problem {
    bad("400", message)
}

/// Whether a new budget may start then: with the month of today or of one of the eleven after it. Today is a date of the
/// machine, as for callers: the simulated clock is later.
fn may_start(start: &str) -> bool {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
    let month = |date: jiff::civil::Date| i32::from(date.year()) * 12 + i32::from(date.month());
    let date = start.get(..10).and_then(|date| date.parse::<jiff::civil::Date>().ok());
    date.is_some_and(|date| date.day() == 1 && (0..12).contains(&(month(date) - month(today))))
}

fn accept_budget(cloud: &mut Cloud, call: &Call, before: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    if before.is_some_and(|before| before["eTag"] != body["eTag"]) {
        let name = call.name();
        return Err(refused(format!(
            "There are changes made to Budget {name}. Please get the latest budget to avoid overwrite."
        )));
    }
    let start = text(body, START);
    match before {
        Some(before) if text(before, START) != start => {
            return Err(refused("Start date of budgets cannot be updated. Please delete and create a new budget."));
        }
        None if !may_start(start) => {
            return Err(refused("The start date must be the first of a month, not before the current one."));
        }
        _ => {}
    }
    if body.pointer("/properties/amount").and_then(Value::as_f64).is_none() {
        return Err(refused("A budget has an amount."));
    }
    let notifications = body.pointer("/properties/notifications").and_then(Value::as_object);
    if notifications.is_some_and(|all| all.len() > NOTIFICATIONS) {
        return Err(refused("A budget has five notifications at most."));
    }
    for (name, one) in notifications.into_iter().flatten() {
        let has = |list: &&str| one[*list].as_array().is_some_and(|list| !list.is_empty());
        if !RECIPIENTS.iter().any(has) {
            return Err(refused(format!("The notification {name} has no recipient.")));
        }
        if !one["threshold"].as_f64().is_some_and(|threshold| THRESHOLDS.contains(&threshold)) {
            return Err(refused(format!("The threshold of the notification {name} is not from 0 to 1000.")));
        }
    }
    put_missing(body, "/properties/timePeriod/endDate", "2087-06-15T00:00:00Z".into());
    put(body, "/properties/currentSpend", json!({ "amount": 0, "unit": cloud.currency }));
    put(body, "/eTag", cloud.etag().into());
    Ok(())
}
