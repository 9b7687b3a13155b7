//! Queries of Cost Management: what was charged, by service and tag. Nothing costs anything by itself: tests say what it costs.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::azure_cloud::ARM;
use super::cloud::{Cloud, text};
use super::kinds::{Answer, Call, Special};
use super::problem::{Problem, bad};
use crate::{Behaviour, Source};

pub(crate) const SPECIALS: &[Special] = &[Special {
    method: "POST",
    path: "Microsoft.CostManagement/query",
    version: "2023-11-01",
    request: "",
    answer: "",
    handler: query,
}];

/// Millionths of a unit.
const UNIT: f64 = 1e6;

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "rows have their values in the order of the columns, and the currency is one of them",
        Source::Documentation("https://learn.microsoft.com/rest/api/cost-management/query/usage"),
    ),
    rule(
        "further rows are at nextLink, which takes the same query by POST",
        Source::Report("Azure/azure-rest-api-specs#23405"),
    ),
    rule("a query beyond a limit is 429 with the code 429", Source::Report("cloudquery/cloudquery#9860")),
    rule("each limit has a header with the seconds to wait", Source::Report("Azure/azqr#745")),
    rule(
        "costs have the tags that their resource had when they arose",
        Source::Documentation(
            "https://learn.microsoft.com/azure/cost-management-billing/costs/understand-cost-mgt-data",
        ),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "Microsoft.CostManagement", what, source }
}

/// What something cost.
#[derive(Clone, Debug)]
pub(crate) struct Charge {
    service: String,
    at: Timestamp,
    micros: i32,
    tags: BTreeMap<String, String>,
}

impl Cloud {
    /// Charges a resource now: so many millionths of the bill's currency, for a service as bills name it.
    pub fn charge(&mut self, id: &str, service: &str, micros: i32) {
        let tags = self.objects.get(&id.to_lowercase()).map(|one| one.body["tags"].clone()).unwrap_or_default();
        let pair = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
        let tags = tags.as_object().into_iter().flatten().filter_map(pair).collect();
        self.charges.push(Charge { service: service.to_owned(), at: self.now(), micros, tags });
    }
}

fn unknown(what: &str) -> Problem {
    bad("BadRequest", format!("Invalid query definition: {what} is not simulated."))
}

fn time(body: &Value, pointer: &str) -> Result<Timestamp, Problem> {
    text(body, pointer).parse().map_err(|_| bad("BadRequest", format!("Invalid query definition: {pointer}")))
}

fn query(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    if let Some(seconds) = cloud.costs_limited_for {
        let headers = vec![
            ("x-ms-ratelimit-microsoft.costmanagement-qpu-retry-after", seconds.to_string()),
            ("x-ms-ratelimit-microsoft.costmanagement-entity-retry-after", "1".to_owned()),
        ];
        let problem = Problem::new(429, "429", "Too many requests. Please retry.");
        return Ok(Answer { status: 429, body: json!({ "error": problem.error() }), headers });
    }
    let body = &call.body;
    let (from, to) = (time(body, "/timePeriod/from")?, time(body, "/timePeriod/to")?);
    for (pointer, expected) in [
        ("/type", json!("ActualCost")),
        ("/timeframe", json!("Custom")),
        ("/dataset/granularity", json!("None")),
        ("/dataset/aggregation", json!({ "totalCost": { "name": "Cost", "function": "Sum" } })),
        ("/dataset/grouping", json!([{ "type": "Dimension", "name": "ServiceName" }])),
        ("/dataset/filter/tags/operator", json!("In")),
    ] {
        if body.pointer(pointer) != Some(&expected) {
            return Err(unknown(pointer));
        }
    }
    let tag = text(body, "/dataset/filter/tags/name");
    let values = body.pointer("/dataset/filter/tags/values").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut sums: BTreeMap<&str, i32> = BTreeMap::new();
    for charge in &cloud.charges {
        let is_tagged = charge.tags.get(tag).is_some_and(|value| values.iter().any(|one| one == value));
        if is_tagged && (from..=to).contains(&charge.at) {
            *sums.entry(&charge.service).or_default() += charge.micros;
        }
    }
    let first = call.parameter("$skiptoken").and_then(|token| token.parse::<usize>().ok()).unwrap_or_default();
    let row = |(service, micros): (&&str, &i32)| json!([f64::from(*micros) / UNIT, service, cloud.currency.as_str()]);
    let rows: Vec<Value> = sums.iter().skip(first).take(cloud.timing.page).map(row).collect();
    let next = first + rows.len();
    let path = &call.path;
    let link = (next < sums.len()).then(|| format!("{ARM}{path}?api-version=2023-11-01&$skiptoken={next}"));
    let id = format!("subscriptions/{}/providers/Microsoft.CostManagement/query/{}", call.subscription, call.name());
    Ok(Answer::ok(json!({
        "id": id, "name": call.name(), "type": "Microsoft.CostManagement/query",
        "properties": {
            "nextLink": link,
            "columns": [
                { "name": "Cost", "type": "Number" },
                { "name": "ServiceName", "type": "String" },
                { "name": "Currency", "type": "String" },
            ],
            "rows": rows,
        },
    })))
}
