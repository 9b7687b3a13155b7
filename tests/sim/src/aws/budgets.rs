//! Budgets and their notifications. Costs are not simulated: nothing is ever spent.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::key_values::KeyValues;
use crate::{Behaviour, Call, Fault, Service, Source, World, timestamp};

/// The service.
pub const SERVICE: Service = Service {
    name: "budgets",
    model: "budgets",
    operations: &[
        ("CreateBudget", create),
        ("CreateNotification", create_notification),
        ("DeleteBudget", delete),
        ("DeleteNotification", delete_notification),
        ("DescribeBudget", describe),
        ("DescribeBudgets", describe_all),
        ("DescribeNotificationsForBudget", describe_notifications),
        ("DescribeSubscribersForNotification", describe_subscribers),
        ("ListTagsForResource", |world, call| TAGS.list(world, call)),
        ("TagResource", |world, call| TAGS.set(world, call)),
        ("UntagResource", |world, call| TAGS.remove(world, call)),
        ("UpdateBudget", update),
    ],
    quotas: &[],
    ledger: LEDGER,
};

const fn row(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "budgets", what, source }
}

const CREATE_BUDGET: Source = Source::Documentation(
    "https://docs.aws.amazon.com/aws-cost-management/latest/APIReference/API_budgets_CreateBudget.html",
);

const TAGS: KeyValues = KeyValues {
    arn: "ResourceARN",
    tags: "ResourceTags",
    keys: "ResourceTagKeys",
    missing: |arn| Fault::new("NotFoundException", format!("{arn} doesn't exist")),
};

const LEDGER: &[Behaviour] = &[
    row("budgets are the account's, in no region; a second one of a name is DuplicateRecordException", CREATE_BUDGET),
    row(
        "five notifications for a budget, one topic and ten mail addresses for each, else CreationLimitExceededException; \
         the last subscriber of a notification ends with it",
        CREATE_BUDGET,
    ),
    row(
        "a budget without a period starts with the month, and ends in 2087",
        Source::Documentation(
            "https://docs.aws.amazon.com/aws-cost-management/latest/APIReference/API_budgets_TimePeriod.html",
        ),
    ),
    row("a budget has either a filter expression with one metric, or cost filters", CREATE_BUDGET),
    row(
        "descriptions show the filter expression only to who asks for it",
        Source::Documentation(
            "https://docs.aws.amazon.com/aws-cost-management/latest/APIReference/API_budgets_DescribeBudget.html",
        ),
    ),
    row("an amount is answered with a fraction: 500.0", Source::Report("go-to-k/cdk-real-drift#1679")),
    row(
        "a cost budget in another unit than USD is InvalidParameterException",
        Source::Report("awslabs/landing-zone-accelerator-on-aws#682"),
    ),
    row(
        "whether the topic of a subscriber admits budgets is not looked at",
        Source::LeftOut("no call tells whether alerts arrive"),
    ),
    row("nothing is spent", Source::LeftOut("no plan reads what is spent")),
];

/// The budgets of an account.
#[derive(Default)]
pub struct Budgets {
    /// The budgets by their names.
    pub budgets: BTreeMap<String, Budget>,
}

/// A budget.
#[derive(Clone)]
pub struct Budget {
    /// As it is answered.
    pub value: Value,
    /// The notifications with their subscribers.
    pub notifications: Vec<(Value, Vec<Value>)>,
}

fn invalid(message: &str) -> Fault {
    Fault::new("InvalidParameterException", message)
}

fn arn(call: &Call, name: &str) -> String {
    format!("arn:aws:budgets::{}:budget/{name}", call.account)
}

fn own(call: &Call) -> Result<(), Fault> {
    match call.text("AccountId") == call.account {
        true => Ok(()),
        false => Err(Fault::new("AccessDeniedException", "You don't have access to the budgets of this account")),
    }
}

fn find<'a>(world: &'a mut World, call: &Call, name: &str) -> Result<&'a mut Budget, Fault> {
    own(call)?;
    let missing =
        || Fault::new("NotFoundException", format!("Unable to get budget: {name} - the budget doesn't exist."));
    world.state::<Budgets>(&call.global()).budgets.get_mut(name).ok_or_else(missing)
}

/// The budget of an input as it is answered.
fn shown(call: &Call, given: &Value) -> Result<Value, Fault> {
    let mut budget = given.clone();
    let unit = given["BudgetLimit"]["Unit"].as_str().unwrap_or_default();
    let amount: Option<f64> = given["BudgetLimit"]["Amount"].as_str().and_then(|text| text.parse().ok());
    let amount = amount.filter(|amount| *amount > 0.0).ok_or_else(|| invalid("The amount must be greater than 0"))?;
    if given["BudgetType"] == "COST" && unit != "USD" {
        return Err(invalid("The unit of a cost budget must be USD"));
    }
    let is_set = |member: &str| !given[member].is_null();
    if is_set("FilterExpression") && (is_set("CostFilters") || is_set("CostTypes")) {
        return Err(invalid("Either FilterExpression and Metrics or CostFilters and CostTypes"));
    }
    if is_set("FilterExpression") && given["Metrics"].as_array().map(Vec::len) != Some(1) {
        return Err(invalid("A budget with FilterExpression has one metric"));
    }
    budget["BudgetLimit"]["Amount"] = json!(format!("{amount:?}"));
    if given["TimePeriod"].is_null() {
        let month = call.now.to_zoned(TimeZone::UTC).first_of_month().ok().and_then(|day| day.start_of_day().ok());
        let start = month.map_or(call.now, |month| month.timestamp());
        budget["TimePeriod"] = json!({ "Start": timestamp(start), "End": "2087-06-15T00:00:00Z" });
    }
    budget["CalculatedSpend"] = json!({ "ActualSpend": { "Amount": "0.0", "Unit": unit } });
    budget["LastUpdatedTime"] = json!(timestamp(call.now));
    Ok(budget)
}

fn check_notification(known: &[(Value, Vec<Value>)], notification: &Value, subscribers: &[Value]) -> Result<(), Fault> {
    if known.iter().any(|(one, _)| *one == *notification) {
        return Err(Fault::new("DuplicateRecordException", "The notification already exists."));
    }
    let topics = subscribers.iter().filter(|one| one["SubscriptionType"] == "SNS").count();
    if known.len() >= 5 || topics > 1 || subscribers.len() - topics > 10 {
        return Err(Fault::new("CreationLimitExceededException", "Too many notifications or subscribers."));
    }
    let is_topic = |one: &Value| one["Address"].as_str().is_some_and(|address| address.starts_with("arn:aws:sns:"));
    match subscribers.iter().all(|one| one["SubscriptionType"] != "SNS" || is_topic(one)) {
        true => Ok(()),
        false => Err(invalid("The address of the topic is no ARN")),
    }
}

fn items(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    own(call)?;
    let given = &call.input["Budget"];
    let name = given["BudgetName"].as_str().unwrap_or_default().to_owned();
    let value = shown(call, given)?;
    let mut notifications = Vec::new();
    for one in call.list("NotificationsWithSubscribers") {
        let (notification, subscribers) = (one["Notification"].clone(), items(&one["Subscribers"]));
        check_notification(&notifications, &notification, &subscribers)?;
        notifications.push((notification, subscribers));
    }
    let budgets = &mut world.state::<Budgets>(&call.global()).budgets;
    if budgets.contains_key(&name) {
        return Err(Fault::new("DuplicateRecordException", "Error creating budget: the budget already exists."));
    }
    budgets.insert(name.clone(), Budget { value, notifications });
    world.tags.set(&arn(call, &name), TAGS.pairs(call), call.visible());
    Ok(json!({}))
}

fn update(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let given = &call.input["NewBudget"];
    let value = shown(call, given)?;
    find(world, call, given["BudgetName"].as_str().unwrap_or_default())?.value = value;
    Ok(json!({}))
}

fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("BudgetName");
    find(world, call, name)?;
    world.state::<Budgets>(&call.global()).budgets.remove(name);
    world.tags.forget(&arn(call, name));
    Ok(json!({}))
}

fn describe(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let budget = &find(world, call, call.text("BudgetName"))?.value;
    Ok(json!({ "Budget": without_filter(call, budget) }))
}

/// The filter expression is shown to who asks for it.
fn without_filter(call: &Call, budget: &Value) -> Value {
    let mut budget = budget.clone();
    if let Some(members) = budget.as_object_mut().filter(|_| !call.is("ShowFilterExpression")) {
        members.shift_remove("FilterExpression");
        members.shift_remove("Metrics");
    }
    budget
}

fn bad_token() -> Fault {
    Fault::new("InvalidNextTokenException", "The pagination token is invalid.")
}

fn describe_all(world: &mut World, call: &Call) -> Result<Value, Fault> {
    own(call)?;
    let budgets = &world.state::<Budgets>(&call.global()).budgets;
    call.page("Budgets", budgets.values().map(|budget| without_filter(call, &budget.value)).collect(), bad_token())
}

fn describe_notifications(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let budget = find(world, call, call.text("BudgetName"))?;
    call.page("Notifications", budget.notifications.iter().map(|(one, _)| one.clone()).collect(), bad_token())
}

/// The place of the notification of an input.
fn place(budget: &Budget, call: &Call) -> Result<usize, Fault> {
    let found = budget.notifications.iter().position(|(one, _)| *one == call.input["Notification"]);
    found.ok_or_else(|| Fault::new("NotFoundException", "The notification doesn't exist."))
}

fn describe_subscribers(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let budget = find(world, call, call.text("BudgetName"))?;
    let at = place(budget, call)?;
    call.page("Subscribers", budget.notifications[at].1.clone(), bad_token())
}

fn create_notification(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let budget = find(world, call, call.text("BudgetName"))?;
    let (notification, subscribers) = (call.input["Notification"].clone(), call.list("Subscribers").to_vec());
    check_notification(&budget.notifications, &notification, &subscribers)?;
    budget.notifications.push((notification, subscribers));
    Ok(json!({}))
}

fn delete_notification(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let budget = find(world, call, call.text("BudgetName"))?;
    let at = place(budget, call)?;
    budget.notifications.remove(at);
    Ok(json!({}))
}
