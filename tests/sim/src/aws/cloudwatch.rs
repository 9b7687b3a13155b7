//! CloudWatch: alarms and dashboards. Metrics and the states of alarms are not simulated.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::key_values::KeyValues;
use crate::{Behaviour, Call, Fault, Service, Source, World, timestamp};

/// The service.
pub const SERVICE: Service = Service {
    name: "monitoring",
    model: "cloudwatch",
    operations: &[
        ("DeleteAlarms", delete_alarms),
        ("DeleteDashboards", delete_dashboards),
        ("DescribeAlarms", describe_alarms),
        ("GetDashboard", get_dashboard),
        ("ListDashboards", list_dashboards),
        ("ListTagsForResource", |world, call| TAGS.list(world, call)),
        ("PutDashboard", put_dashboard),
        ("PutMetricAlarm", put_alarm),
        ("TagResource", |world, call| TAGS.set(world, call)),
        ("UntagResource", |world, call| TAGS.remove(world, call)),
    ],
    quotas: &[],
    ledger: LEDGER,
};

const fn row(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "monitoring", what, source }
}

const PUT_ALARM: Source =
    Source::Documentation("https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_PutMetricAlarm.html");

const TAGS: KeyValues = KeyValues {
    arn: "ResourceARN",
    tags: "Tags",
    keys: "TagKeys",
    missing: |arn| Fault::new("ResourceNotFoundException", format!("{arn} does not exist")),
};

const LEDGER: &[Behaviour] = &[
    row("PutMetricAlarm replaces everything of an alarm that exists, except its tags, which it ignores", PUT_ALARM),
    row(
        "an alarm has either a metric of its own or a list of metrics, of which exactly one returns data; \
         datapoints to alarm are no more than the evaluation periods",
        PUT_ALARM,
    ),
    row(
        "an alarm looks at a day at most, or at seven if its period is an hour or more; a period is 10, 20, 30 or a \
         multiple of 60 seconds",
        PUT_ALARM,
    ),
    row(
        "refusals of PutMetricAlarm have the code ValidationError",
        Source::Report("hashicorp/terraform-provider-aws#19567"),
    ),
    row("a new alarm has the state INSUFFICIENT_DATA", PUT_ALARM),
    row("no alarm is evaluated", Source::LeftOut("there are no metrics")),
    row(
        "DeleteAlarms of an unknown alarm is ResourceNotFound, and deletes none",
        Source::Documentation("https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_DeleteAlarms.html"),
    ),
    row(
        "dashboards are the account's, in no region; a body that is no JSON with widgets is DashboardInvalidInputError",
        Source::Documentation("https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_PutDashboard.html"),
    ),
    row(
        "PutDashboard sets tags on a new dashboard only",
        Source::Documentation("https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_PutDashboard.html"),
    ),
    row("DeleteDashboards of an unknown dashboard is no error", Source::Model),
];

/// What CloudWatch holds in a region; its dashboards are in the global place.
#[derive(Default)]
pub struct CloudWatch {
    /// The alarms by their names, as they were put.
    pub alarms: BTreeMap<String, Value>,
    /// The dashboards by their names: their bodies.
    pub dashboards: BTreeMap<String, (String, Timestamp)>,
}

fn alarm_arn(call: &Call, name: &str) -> String {
    format!("arn:aws:cloudwatch:{}:{}:alarm:{name}", call.region, call.account)
}

fn dashboard_arn(call: &Call, name: &str) -> String {
    format!("arn:aws:cloudwatch::{}:dashboard/{name}", call.account)
}

fn refused(message: &str) -> Fault {
    Fault::new("ValidationError", message).status(400)
}

fn put_alarm(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (metrics, periods) = (call.list("Metrics"), call.int("EvaluationPeriods").unwrap_or_default());
    let period = match (metrics.is_empty(), call.str("MetricName")) {
        (true, Some(_)) => call.int("Period"),
        (false, None) => {
            let returns = |one: &&Value| one["ReturnData"].as_bool().unwrap_or(true);
            if metrics.iter().filter(returns).count() != 1 {
                return Err(refused("Exactly one element of the metrics list should return data."));
            }
            if metrics.iter().any(|one| one["MetricStat"].is_object() == one["Expression"].is_string()) {
                return Err(refused("An element of the metrics list has either MetricStat or Expression."));
            }
            metrics.iter().find_map(|one| one["MetricStat"]["Period"].as_i64())
        }
        _ => return Err(refused("An alarm has either MetricName or Metrics.")),
    };
    let period = period.ok_or_else(|| refused("Period must not be null"))?;
    if ![10, 20, 30].contains(&period) && period % 60 != 0 {
        return Err(refused("Period must be 10, 20, 30 or a multiple of 60"));
    }
    let most = if period >= 3600 { 7 * 86_400 } else { 86_400 };
    if periods < 1 || periods * period > most {
        return Err(refused("Metrics cannot be checked across so long a time"));
    }
    if call.int("DatapointsToAlarm").is_some_and(|count| count < 1 || count > periods) {
        return Err(refused("DatapointsToAlarm must be less than or equal to EvaluationPeriods"));
    }
    if call.str("ComparisonOperator").is_none() || call.input["Threshold"].is_null() {
        return Err(refused("The parameters ComparisonOperator and Threshold are required"));
    }
    let treatment = call.str("TreatMissingData").unwrap_or("missing");
    if !["breaching", "notBreaching", "ignore", "missing"].contains(&treatment) {
        return Err(refused("TreatMissingData has an unknown value"));
    }
    let (name, arn) = (call.text("AlarmName").to_owned(), alarm_arn(call, call.text("AlarmName")));
    let mut alarm = call.input.clone();
    if let Some(members) = alarm.as_object_mut() {
        members.shift_remove("Tags");
    }
    alarm["AlarmArn"] = json!(arn);
    alarm["ActionsEnabled"] = json!(call.input["ActionsEnabled"].as_bool().unwrap_or(true));
    alarm["StateValue"] = json!("INSUFFICIENT_DATA");
    alarm["StateReason"] = json!("Unchecked: Initial alarm creation");
    alarm["AlarmConfigurationUpdatedTimestamp"] = json!(timestamp(call.now));
    for actions in ["OKActions", "AlarmActions", "InsufficientDataActions"] {
        alarm[actions] = json!(call.texts(actions));
    }
    let is_new = world.state::<CloudWatch>(&call.scope()).alarms.insert(name, alarm).is_none();
    if is_new {
        world.tags.set(&arn, TAGS.pairs(call), call.visible());
    }
    Ok(json!({}))
}

fn describe_alarms(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (names, prefix) = (call.texts("AlarmNames"), call.str("AlarmNamePrefix").unwrap_or_default());
    if !names.is_empty() && call.str("AlarmNamePrefix").is_some() {
        return Err(refused("AlarmNames and AlarmNamePrefix exclude each other"));
    }
    let state = world.state::<CloudWatch>(&call.scope());
    let meant = state
        .alarms
        .iter()
        .filter(|(name, _)| (names.is_empty() || names.contains(&name.as_str())) && name.starts_with(prefix));
    let all = meant.map(|(_, alarm)| alarm.clone()).collect();
    call.page("MetricAlarms", all, Fault::new("InvalidNextToken", "The next token is not valid"))
}

fn delete_alarms(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let names = call.texts("AlarmNames");
    let alarms = &mut world.state::<CloudWatch>(&call.scope()).alarms;
    if let Some(unknown) = names.iter().find(|name| !alarms.contains_key(**name)) {
        return Err(Fault::new("ResourceNotFound", format!("Unable to find alarm {unknown}")));
    }
    for name in names {
        world.state::<CloudWatch>(&call.scope()).alarms.remove(name);
        world.tags.forget(&alarm_arn(call, name));
    }
    Ok(json!({}))
}

fn put_dashboard(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (name, body) = (call.text("DashboardName"), call.text("DashboardBody"));
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let parsed: Option<Value> = serde_json::from_str(body).ok();
    if name.is_empty() || !name.chars().all(is_allowed) || !parsed.is_some_and(|body| body["widgets"].is_array()) {
        return Err(Fault::new("DashboardInvalidInputError", "The dashboard body or its name is invalid"));
    }
    let dashboards = &mut world.state::<CloudWatch>(&call.global()).dashboards;
    let is_new = dashboards.insert(name.to_owned(), (body.to_owned(), call.now)).is_none();
    if is_new {
        world.tags.set(&dashboard_arn(call, name), TAGS.pairs(call), call.visible());
    }
    Ok(json!({ "DashboardValidationMessages": [] }))
}

fn get_dashboard(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("DashboardName");
    let found = world.state::<CloudWatch>(&call.global()).dashboards.get(name);
    let (body, _) =
        found.ok_or_else(|| Fault::new("DashboardNotFoundError", format!("Dashboard {name} does not exist")))?;
    Ok(json!({ "DashboardArn": dashboard_arn(call, name), "DashboardBody": body, "DashboardName": name }))
}

fn list_dashboards(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let prefix = call.str("DashboardNamePrefix").unwrap_or_default();
    let dashboards = &world.state::<CloudWatch>(&call.global()).dashboards;
    let all = dashboards.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(name, (body, modified))| {
        json!({
            "DashboardName": name,
            "DashboardArn": dashboard_arn(call, name),
            "LastModified": timestamp(*modified),
            "Size": body.len(),
        })
    });
    call.page("DashboardEntries", all.collect(), Fault::new("InvalidParameterValueException", "NextToken is invalid"))
}

fn delete_dashboards(world: &mut World, call: &Call) -> Result<Value, Fault> {
    for name in call.texts("DashboardNames") {
        world.state::<CloudWatch>(&call.global()).dashboards.remove(name);
        world.tags.forget(&dashboard_arn(call, name));
    }
    Ok(json!({}))
}
