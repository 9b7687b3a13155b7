//! Cost Explorer: what was charged, by service and tag. Nothing costs anything by itself: tests say what it costs.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::{Behaviour, Call, Fault, Scope, Service, Source, World};

/// The service.
pub const SERVICE: Service = Service {
    name: "ce",
    model: "ce",
    operations: &[("GetCostAndUsage", get), ("UpdateCostAllocationTagsStatus", activate)],
    quotas: &[],
    ledger: LEDGER,
};

/// The region of the service.
const REGION: &str = "us-east-1";
/// How long an activated tag has no costs.
const ACTIVATION: Duration = Duration::from_secs(24 * 3_600);
/// Millionths of a unit.
const UNIT: i64 = 1_000_000;

const GET: Source = Source::Documentation(
    "https://docs.aws.amazon.com/aws-cost-management/latest/APIReference/API_GetCostAndUsage.html",
);
const TAGS: Source =
    Source::Documentation("https://docs.aws.amazon.com/awsaccountbilling/latest/aboutv2/activating-tags.html");

const fn row(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "ce", what, source }
}

const LEDGER: &[Behaviour] = &[
    row("the end of a period is not a part of it", GET),
    row("amounts of groups are text with the metric's unit, and the total of a grouped answer is empty", GET),
    row("a further page takes the same request with the token of the one before", GET),
    row("a tag has no costs before it is activated, nor for 24 hours after it", TAGS),
    row("costs have the tags that their resource had when they arose, and tags are not applied to earlier ones", TAGS),
    row(
        "the service is in us-east-1",
        Source::Documentation("https://docs.aws.amazon.com/general/latest/gr/billing.html"),
    ),
    row("a tag without costs has no groups, and that is no error", Source::Assumed),
    row("a month is estimated until it ends", Source::LeftOut("until its invoice, some days later")),
    row(
        "a management account sees the costs of all accounts of its organization",
        Source::Documentation("https://docs.aws.amazon.com/cost-management/latest/userguide/ce-access.html"),
    ),
    row(
        "periods are months, groups are services, and a filter is one tag, with an account or without",
        Source::LeftOut("the only query of the program"),
    ),
];

/// The costs of an account.
#[derive(Default)]
pub struct Costs {
    /// What was charged.
    charges: Vec<Charge>,
    /// Activated tags, and from when on they have costs.
    active: BTreeMap<String, Timestamp>,
}

struct Charge {
    /// The account of the resource.
    owner: String,
    service: String,
    day: Date,
    micros: i64,
    tags: BTreeMap<String, String>,
}

/// Charges a resource on the day of the virtual time: so many millionths of a dollar, for a service as bills name it. The costs are
/// those that `account` sees, which may manage the account of the resource.
pub fn charge(world: &mut World, account: &str, arn: &str, service: &str, micros: i64) {
    let (day, tags) = (world.now().to_zoned(TimeZone::UTC).date(), world.tags.of(arn));
    let owner = arn.split(':').nth(4).unwrap_or_default().to_owned();
    let charge = Charge { owner, service: service.to_owned(), day, micros, tags };
    world.state::<Costs>(&Scope::global(account)).charges.push(charge);
}

/// Activates a tag for the costs of an account at once.
pub fn activate_tag(world: &mut World, account: &str, key: &str) {
    let now = world.now();
    world.state::<Costs>(&Scope::global(account)).active.insert(key.to_owned(), now);
}

fn invalid(message: &str) -> Fault {
    Fault::new("ValidationException", message)
}

fn here(call: &Call) -> Result<(), Fault> {
    let message = "Credential should be scoped to a valid region.";
    if call.region == REGION { Ok(()) } else { Err(Fault::new("InvalidSignatureException", message).status(403)) }
}

fn activate(world: &mut World, call: &Call) -> Result<Value, Fault> {
    here(call)?;
    let due = call.due(ACTIVATION);
    let costs = world.state::<Costs>(&call.global());
    for one in call.list("CostAllocationTagsStatus") {
        let key = one["TagKey"].as_str().unwrap_or_default().to_owned();
        if one["Status"] == "Active" {
            costs.active.entry(key).or_insert(due);
        } else {
            costs.active.remove(&key);
        }
    }
    Ok(json!({}))
}

fn day(call: &Call, member: &str) -> Result<Date, Fault> {
    let text = call.input["TimePeriod"][member].as_str().unwrap_or_default();
    text.parse().map_err(|_| invalid("Start and end dates are YYYY-MM-DD."))
}

fn get(world: &mut World, call: &Call) -> Result<Value, Fault> {
    here(call)?;
    let (start, end) = (day(call, "Start")?, day(call, "End")?);
    if start >= end {
        return Err(invalid("Start date (and hour) should be before end date (and hour)"));
    }
    let grouping = json!([{ "Type": "DIMENSION", "Key": "SERVICE" }]);
    if call.text("Granularity") != "MONTHLY" || call.input["GroupBy"] != grouping {
        return Err(invalid("Only months by service are simulated."));
    }
    let metrics = call.texts("Metrics");
    let filter = &call.input["Filter"];
    let filters = filter["And"].as_array().map_or(std::slice::from_ref(filter), Vec::as_slice);
    let member = |name: &str| filters.iter().map(|one| &one[name]).find(|one| one.is_object());
    let only_a_tag = || invalid("Only a filter of one tag is simulated, with an account or without.");
    let tag = member("Tags").ok_or_else(only_a_tag)?;
    let values = texts(tag);
    let key = tag["Key"].as_str().ok_or_else(only_a_tag)?;
    let owners = match member("Dimensions") {
        Some(one) if one["Key"] == "LINKED_ACCOUNT" => Some(texts(one)),
        Some(_) => return Err(only_a_tag()),
        None => None,
    };
    let costs = world.state::<Costs>(&call.global());
    let is_active = costs.active.get(key).is_some_and(|from| *from <= call.now);
    let mut sums: BTreeMap<&str, i64> = BTreeMap::new();
    for charge in costs.charges.iter().filter(|_| is_active) {
        let is_tagged = charge.tags.get(key).is_some_and(|value| values.contains(&value.as_str()));
        let is_asked = owners.as_ref().is_none_or(|owners| owners.contains(&charge.owner.as_str()));
        if is_tagged && is_asked && (start..end).contains(&charge.day) {
            *sums.entry(&charge.service).or_default() += charge.micros;
        }
    }
    let place = |token: &str| token.strip_prefix("after-")?.parse::<usize>().ok().filter(|place| *place < sums.len());
    let first = match call.str("NextPageToken") {
        Some(token) => {
            place(token).ok_or_else(|| Fault::new("InvalidNextTokenException", "The pagination token is invalid."))?
        }
        None => 0,
    };
    let group = |(service, micros): (&&str, &i64)| {
        let amount = json!({ "Amount": decimal(*micros), "Unit": "USD" });
        let metrics: serde_json::Map<_, _> = metrics.iter().map(|name| ((*name).to_owned(), amount.clone())).collect();
        json!({ "Keys": [service], "Metrics": metrics })
    };
    let groups: Vec<Value> = sums.iter().skip(first).take(call.timing.page).map(group).collect();
    let next = first + groups.len();
    let today = call.now.to_zoned(TimeZone::UTC).date();
    let mut answer = json!({
        "GroupDefinitions": grouping,
        "ResultsByTime": [{
            "TimePeriod": { "Start": start.to_string(), "End": end.to_string() },
            "Total": {}, "Groups": groups, "Estimated": today < end,
        }],
        "DimensionValueAttributes": [],
    });
    if next < sums.len() {
        answer["NextPageToken"] = json!(format!("after-{next}"));
    }
    Ok(answer)
}

/// The values of a part of a filter.
fn texts(part: &Value) -> Vec<&str> {
    part["Values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// With ten decimals, as the service writes amounts.
fn decimal(micros: i64) -> String {
    let sign = if micros < 0 { "-" } else { "" };
    let (whole, rest) = (micros.unsigned_abs() / UNIT.unsigned_abs(), micros.unsigned_abs() % UNIT.unsigned_abs());
    format!("{sign}{whole}.{rest:06}0000")
}
