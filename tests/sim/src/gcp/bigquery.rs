//! Queries of BigQuery: one query, of the export of Cloud Billing. Nothing costs anything by itself: tests say what it costs.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::cloud::Cloud;
use super::problem::Problem;
use super::{Call, Handler};
use crate::{Behaviour, Source};

pub(crate) const HANDLERS: &[(&str, Handler)] =
    &[("bigquery.jobs.getQueryResults", results), ("bigquery.jobs.query", query)];

const TABLES: Source =
    Source::Documentation("https://cloud.google.com/billing/docs/how-to/export-data-bigquery-tables/standard-usage");
const QUERY: Source = Source::Documentation("https://cloud.google.com/bigquery/docs/reference/rest/v2/jobs/query");

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "a row of an export has the labels of its resource, its project, its cost and its credits, which are negative",
        TABLES,
    ),
    rule("a row of an export has an invoice month, such as 202611, whose time zone is Pacific time", TABLES),
    rule(
        "a row of an export is in the partition of the day on which it was exported, as _PARTITIONTIME",
        Source::Report("project-koku/koku#3098"),
    ),
    rule("a view of an export has no _PARTITIONTIME: 400 invalidQuery", Source::Report("kubecost/kubecost#1841")),
    rule("a query that takes longer than timeoutMs is answered without rows, and jobComplete is false", QUERY),
    rule("an answer has maxResults rows at most, and pageToken if there are more", QUERY),
    rule(
        "a number of the type NUMERIC has no zeros at the end of its fraction",
        Source::Documentation("https://cloud.google.com/bigquery/docs/reference/standard-sql/conversion_rules"),
    ),
    rule(
        "the result of a job outside of US and EU is found with its location only: 404 notFound",
        Source::Report("googleapis/nodejs-bigquery#888"),
    ),
    rule("a query of an unknown table is 404 notFound, with the location", Source::Report("mozilla/bigquery-etl#1698")),
    rule("a query without bigquery.jobs.create is 403 accessDenied", Source::Report("kubernetes/k8s.io#2729")),
    rule(
        "a query of a table whose data may not be read is 403 accessDenied, also if there is none",
        Source::Report("stanford-esrg/LEO_HitchHiking#2"),
    ),
    rule(
        "a query that reads more than maximumBytesBilled is refused with bytesBilledLimitExceeded",
        Source::Report("exmergo/dex#320"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "bigquery", what, source }
}

/// The query that is simulated, up to the name of the table and from there on.
const TEXT: (&str, &str) = (
    "SELECT service.description, currency, \
     CAST(SUM(CAST(cost AS NUMERIC) \
     + IFNULL((SELECT SUM(CAST(credit.amount AS NUMERIC)) FROM UNNEST(credits) AS credit), 0)) AS STRING) \
     FROM `",
    "` WHERE _PARTITIONTIME >= @from AND _PARTITIONTIME < @until \
     AND invoice.month = @month AND project.id = @project \
     AND EXISTS (SELECT 1 FROM UNNEST(labels) AS label WHERE label.key = @key AND label.value = @lineage) \
     GROUP BY service.description, currency ORDER BY service.description, currency",
);
/// Where kinds of objects have their labels.
const LABELS: [&str; 4] = ["/labels", "/resourceLabels", "/config/resourceLabels", "/settings/userLabels"];
/// Locations in which a job is found without its location.
const DEFAULT: [&str; 2] = ["US", "EU"];
/// What the time of invoices is behind UTC.
const BEHIND: SignedDuration = SignedDuration::from_hours(8);
/// The most rows of a page.
const PAGE: usize = 100_000;

/// What an object cost, in millionths of the currency's unit.
#[derive(Clone, Debug)]
pub(crate) struct Charge {
    service: String,
    project: String,
    at: Timestamp,
    micros: i64,
    /// The sum of the credits, which is not above zero.
    credits: i64,
    labels: BTreeMap<String, String>,
}

/// A query, and its rows.
#[derive(Clone, Debug)]
pub(crate) struct QueryJob {
    location: String,
    polls: u32,
    rows: Vec<[String; 3]>,
}

/// The key of a table, for [`Cloud::put`]. Members of the object: `location`, which is `US` by default, and `type`, which is `VIEW` for a
/// view.
#[must_use]
pub fn export_table(name: &str) -> String {
    let mut parts = name.split('.');
    let mut part = || parts.next().unwrap_or_default();
    format!("bigquery/projects/{}/datasets/{}/tables/{}", part(), part(), part())
}

/// The simulated query, of this table.
#[must_use]
pub fn export_query(table: &str) -> String {
    format!("{}{table}{}", TEXT.0, TEXT.1)
}

impl Cloud {
    /// Charges an object of a project now, for a service as bills name it. Exports have it at once.
    pub fn charge(&mut self, project: &str, key: &str, service: &str, (micros, credits): (i64, i64)) {
        let body = self.objects.get(key).map(|object| object.body.clone()).unwrap_or_default();
        let labels = LABELS.iter().find_map(|pointer| body.pointer(pointer)?.as_object().cloned()).unwrap_or_default();
        let pair = |(key, value): (String, Value)| Some((key, value.as_str()?.to_owned()));
        let labels = labels.into_iter().filter_map(pair).collect();
        let (service, project) = (service.to_owned(), project.to_owned());
        self.charges.push(Charge { service, project, at: self.now(), micros, credits, labels });
    }
}

fn invalid(what: &str) -> Problem {
    Problem::new("INVALID_ARGUMENT", what).reason("invalidQuery")
}

/// The value of a parameter of a type.
fn parameter<'b>(body: &'b Value, name: &str, kind: &str) -> Result<&'b str, Problem> {
    let mut all = body["queryParameters"].as_array().into_iter().flatten();
    let found = all.find(|one| one["name"] == name && one["parameterType"]["type"] == kind);
    let value = found.and_then(|one| one["parameterValue"]["value"].as_str());
    value.ok_or_else(|| invalid(&format!("Query parameter '{name}' not found")))
}

fn time(body: &Value, name: &str) -> Result<Timestamp, Problem> {
    let text = parameter(body, name, "TIMESTAMP")?;
    text.parse().map_err(|_| invalid(&format!("Invalid TIMESTAMP value: '{text}'")))
}

fn query(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let body = &call.body;
    if body["useLegacySql"] != false || body["parameterMode"] != "NAMED" {
        return Err(invalid("Only GoogleSQL with named parameters is simulated."));
    }
    let text = body["query"].as_str().unwrap_or_default();
    let name = text.strip_prefix(TEXT.0).and_then(|rest| rest.strip_suffix(TEXT.1));
    let name = name.ok_or_else(|| invalid("Only the query of an export of Cloud Billing is simulated."))?;
    let Some((project, inner)) = name.split_once('.') else { return Err(invalid("The table has no project.")) };
    let shown = format!("{project}:{inner}");
    let key = export_table(name);
    let location = cloud.get(&key).and_then(|table| table["location"].as_str()).unwrap_or("US").to_owned();
    if !cloud.authorize(&call.user, project, "bigquery.tables.getData") {
        let message = format!(
            "Access Denied: Table {shown}: User does not have permission to query table {shown}, or perhaps it does not \
             exist in location {location}."
        );
        return Err(Problem::new("PERMISSION_DENIED", message).reason("accessDenied"));
    }
    let Some(found) = cloud.get(&key) else {
        return Err(Problem::new(
            "NOT_FOUND",
            format!("Not found: Table {shown} was not found in location {location}"),
        ));
    };
    if found["type"] == "VIEW" {
        return Err(invalid("Unrecognized name: _PARTITIONTIME"));
    }
    let most: Option<u64> = body["maximumBytesBilled"].as_str().and_then(|bytes| bytes.parse().ok());
    if let Some(most) = most.filter(|most| *most < cloud.export_bytes) {
        let needed = cloud.export_bytes;
        let message = format!("Query exceeded limit for bytes billed: {most}. {needed} or higher required.");
        return Err(Problem::new("INVALID_ARGUMENT", message).reason("bytesBilledLimitExceeded"));
    }
    let (from, until) = (time(body, "from")?, time(body, "until")?);
    let month = parameter(body, "month", "STRING")?;
    let of_project = parameter(body, "project", "STRING")?;
    let (label, lineage) = (parameter(body, "key", "STRING")?, parameter(body, "lineage", "STRING")?);
    let mut sums: BTreeMap<&str, i64> = BTreeMap::new();
    for charge in &cloud.charges {
        let is_labelled = charge.labels.get(label).is_some_and(|value| value == lineage);
        let is_in = (from..until).contains(&charge.at) && invoice_month(charge.at) == month;
        if is_labelled && is_in && charge.project == of_project {
            *sums.entry(&charge.service).or_default() += charge.micros + charge.credits;
        }
    }
    let row = |(service, micros): (&str, i64)| [service.to_owned(), cloud.currency.clone(), decimal(micros)];
    let rows: Vec<[String; 3]> = sums.into_iter().map(row).collect();
    let id = format!("job_{}", cloud.random.hex(24));
    cloud.query_jobs.insert(id.clone(), QueryJob { location, polls: cloud.query_polls, rows });
    let most = body["maxResults"].as_u64();
    Ok(page(cloud, call, "bigquery#queryResponse", &id, most))
}

fn results(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let id = call.name.rsplit('/').next().unwrap_or_default();
    let stated = call.parameter("location");
    let is_found = |job: &QueryJob| match stated {
        Some(location) => job.location == location,
        None => DEFAULT.contains(&job.location.as_str()),
    };
    if !cloud.query_jobs.get(id).is_some_and(is_found) {
        return Err(Problem::new("NOT_FOUND", format!("Not found: Job {}:{id}", call.project)));
    }
    let most = call.parameter("maxResults").and_then(|text| text.parse().ok());
    Ok(page(cloud, call, "bigquery#getQueryResultsResponse", id, most))
}

/// A page of the result of a job, if it is complete.
fn page(cloud: &mut Cloud, call: &Call<'_>, kind: &str, id: &str, most: Option<u64>) -> Value {
    let bytes = cloud.export_bytes.to_string();
    let Some(job) = cloud.query_jobs.get_mut(id) else { return json!({}) };
    let reference = json!({ "projectId": call.project, "jobId": id, "location": job.location });
    if job.polls > 0 {
        job.polls -= 1;
        return json!({ "kind": kind, "jobReference": reference, "jobComplete": false });
    }
    let first: usize = call.parameter("pageToken").and_then(|token| token.parse().ok()).unwrap_or_default();
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(PAGE).min(call.page);
    let row = |cells: &[String; 3]| json!({ "f": cells.iter().map(|cell| json!({ "v": cell })).collect::<Vec<_>>() });
    let rows: Vec<Value> = job.rows.iter().skip(first).take(most).map(row).collect();
    let field = |name: &str| json!({ "name": name, "type": "STRING", "mode": "NULLABLE" });
    let next = first + rows.len();
    let mut answer = json!({
        "kind": kind, "jobReference": reference, "jobComplete": true, "cacheHit": false, "totalBytesProcessed": bytes,
        "totalRows": job.rows.len().to_string(),
        "schema": { "fields": [field("description"), field("currency"), field("f0_")] },
    });
    if !rows.is_empty() {
        answer["rows"] = rows.into();
    }
    if next < job.rows.len() {
        answer["pageToken"] = next.to_string().into();
    }
    answer
}

fn invoice_month(at: Timestamp) -> String {
    let there = at.checked_sub(BEHIND).unwrap_or(at);
    there.to_zoned(TimeZone::UTC).strftime("%Y%m").to_string()
}

/// As `CAST(… AS STRING)` writes a `NUMERIC`.
fn decimal(micros: i64) -> String {
    let sign = if micros < 0 { "-" } else { "" };
    let (whole, rest) = (micros.unsigned_abs() / 1_000_000, micros.unsigned_abs() % 1_000_000);
    let text = format!("{sign}{whole}.{rest:06}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
