//! The bill of a deployment, from the export of Cloud Billing to BigQuery: Google Cloud has no API for costs
//! (<https://cloud.google.com/billing/docs/how-to/export-data-bigquery>). BigQuery charges for the bytes that a query reads, so it reads
//! the partitions of the month only, and is refused above a number of bytes.

use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp};
use serde_json::{Value, json};
use textnlp_cloud::tags;
use textnlp_provider::{Bill, BillLine, Billed, BilledAmount, BilledRequest, BillingExport, Error, ErrorKind, Result};

use crate::api::{Api, Call, is_disabled};
use crate::service::Service;

/// Why there is no bill without an export.
pub(crate) const NO_EXPORT: &str = "Google Cloud has no API for bills: export them to BigQuery (console, Billing > Billing export), and set \
    `budget.billing_export: PROJECT.DATASET.TABLE`";

/// The most bytes that the query may be charged for.
const MAX_BYTES: u64 = 32 << 30;
/// The rows of a page; a row is a service in a currency.
const PAGE: u32 = 1_000;
const MAX_PAGES: usize = 10;
/// How long BigQuery waits for the result before it answers: less than the timeout of a call.
const WAIT_MS: u32 = 5_000;
/// How often the result is asked for. With the pause between two polls these take less than the timeout of a bill.
const MAX_POLLS: usize = 11;
/// When BigQuery stops a query. The report does not wait longer.
const JOB_TIMEOUT_MS: u32 = 120_000;
/// How many days before the month a row of it may be exported: invoices have months of Pacific time.
const DAYS_BEFORE: i64 = 1;
/// How many days after the month a row of it may be exported: an export that is switched on has the month before too, and takes up to
/// five days for it (<https://cloud.google.com/billing/docs/how-to/export-data-bigquery-setup>).
const DAYS_AFTER: i64 = 40;
/// How long after the end of a month its amounts may change: its invoice is there on the fifth business day
/// (<https://cloud.google.com/billing/docs/how-to/get-invoice>).
const SETTLES_IN: SignedDuration = SignedDuration::from_hours(10 * 24);
/// The error of a query that reads more than [`MAX_BYTES`].
const TOO_MANY_BYTES: &str = "bytesBilledLimitExceeded";
/// The error of a query with an unknown column.
const INVALID_QUERY: &str = "invalidQuery";

/// The bill of the project for a deployment. `pause` is the time between two polls of the query.
pub(crate) async fn billed(
    api: &Api,
    export: &BillingExport,
    request: &BilledRequest,
    pause: Duration,
) -> Result<Billed> {
    let queries = format!("projects/{}/queries", export.project());
    let call = Call::post(Service::BigQuery, queries.as_str(), query(api.project(), export, request));
    let mut answer = send(api, call, export).await?;
    let mut lines = Vec::new();
    let (mut polls, mut pages) = (0, 0);
    loop {
        let page = if answer["jobComplete"] == true {
            lines.extend(rows(&answer).ok_or_else(|| failed(ErrorKind::Unavailable).because("an amount is missing"))?);
            let next = answer["pageToken"].as_str().filter(|token| !token.is_empty());
            let Some(next) = next else { break };
            pages += 1;
            if pages == MAX_PAGES {
                return Err(failed(ErrorKind::Invalid).because(format!("they have more than {MAX_PAGES} pages")));
            }
            Some(next.to_owned())
        } else {
            polls += 1;
            if polls > MAX_POLLS {
                return Err(failed(ErrorKind::Unavailable).because("the query of BigQuery has not ended; try again"));
            }
            tokio::time::sleep(pause).await;
            None
        };
        answer = send(api, results(&queries, &answer["jobReference"], page)?, export).await?;
    }
    if lines.is_empty() {
        return Ok(Billed::NotAvailable(format!(
            "{export} has no costs of project {} with the label `{}` in {}; costs are there after a day, and from the \
             time on when the export was switched on",
            api.project(),
            tags::LINEAGE,
            request.from.strftime("%Y-%m")
        )));
    }
    let account = format!("Google Cloud project {}", api.project());
    Ok(Billed::Bill(Bill::new(account, lines, is_estimated(request.until, request.now))))
}

async fn send(api: &Api, call: Call, export: &BillingExport) -> Result<Value> {
    api.send(call.saying("read", "the costs")).await.map_err(|error| hinted(error, export))
}

/// The query. Costs are binary fractions; as `NUMERIC` they are rounded to billionths and added without an error. Credits are negative.
fn query(project: &str, export: &BillingExport, request: &BilledRequest) -> Value {
    let text = format!(
        "SELECT service.description, currency, \
         CAST(SUM(CAST(cost AS NUMERIC) \
         + IFNULL((SELECT SUM(CAST(credit.amount AS NUMERIC)) FROM UNNEST(credits) AS credit), 0)) AS STRING) \
         FROM `{export}` \
         WHERE _PARTITIONTIME >= @from AND _PARTITIONTIME < @until \
         AND invoice.month = @month AND project.id = @project \
         AND EXISTS (SELECT 1 FROM UNNEST(labels) AS label WHERE label.key = @key AND label.value = @lineage) \
         GROUP BY service.description, currency ORDER BY service.description, currency"
    );
    let lineage = request.lineage.to_string();
    let from = request.from.saturating_sub(Span::new().days(DAYS_BEFORE));
    let until = request.until.saturating_add(Span::new().days(DAYS_AFTER));
    json!({
        "query": text,
        "useLegacySql": false,
        "parameterMode": "NAMED",
        "queryParameters": [
            parameter("from", "TIMESTAMP", format!("{from}T00:00:00Z")),
            parameter("until", "TIMESTAMP", format!("{until}T00:00:00Z")),
            parameter("month", "STRING", request.from.strftime("%Y%m").to_string()),
            parameter("project", "STRING", project.to_owned()),
            parameter("key", "STRING", tags::LINEAGE.to_owned()),
            parameter("lineage", "STRING", lineage.clone()),
        ],
        "maxResults": PAGE,
        "timeoutMs": WAIT_MS,
        "jobTimeoutMs": JOB_TIMEOUT_MS.to_string(),
        "maximumBytesBilled": MAX_BYTES.to_string(),
        "labels": { (tags::LINEAGE): lineage },
    })
}

fn parameter(name: &str, kind: &str, value: String) -> Value {
    json!({ "name": name, "parameterType": { "type": kind }, "parameterValue": { "value": value } })
}

/// The call for the result of a query, or for its next page. A job is found in its location only (googleapis/nodejs-bigquery#888).
fn results(queries: &str, job: &Value, page: Option<String>) -> Result<Call> {
    let is_id =
        |id: &&str| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    let id = job["jobId"].as_str().filter(is_id);
    let id = id.ok_or_else(|| failed(ErrorKind::Unavailable).because("the answer names no job"))?;
    let mut call = Call::get(Service::BigQuery, format!("{queries}/{id}"))
        .query("maxResults", PAGE.to_string())
        .query("timeoutMs", WAIT_MS.to_string());
    if let Some(location) = job["location"].as_str() {
        call = call.query("location", location);
    }
    Ok(match page {
        Some(page) => call.query("pageToken", page),
        None => call,
    })
}

/// The amounts in a page of the result; `None` if one is missing. A result without rows has no member for them.
fn rows(answer: &Value) -> Option<Vec<BillLine>> {
    let cell = |row: &Value, column: usize| row["f"][column]["v"].as_str().map(str::to_owned);
    let line = |row: &Value| {
        let amount = BilledAmount::parse(&cell(row, 2)?)?;
        Some(BillLine { service: cell(row, 0)?, currency: cell(row, 1)?, amount })
    };
    answer["rows"].as_array().into_iter().flatten().map(line).collect()
}

fn is_estimated(until: Date, now: Timestamp) -> bool {
    let end = until.to_zoned(TimeZone::UTC).map(|end| end.timestamp());
    !end.and_then(|end| end.checked_add(SETTLES_IN)).is_ok_and(|settled| now >= settled)
}

/// What to do about a query that was refused.
fn hinted(error: Error, export: &BillingExport) -> Error {
    let (project, dataset) = (export.project(), export.dataset());
    let hint = match (&error.kind, error.code.as_deref()) {
        _ if is_disabled(&error) => format!(
            "enable BigQuery in the project that the message names: `gcloud services enable bigquery.googleapis.com \
             --project {project}`"
        ),
        (_, Some(TOO_MANY_BYTES)) => format!(
            "the query may read {} GiB: set `budget.billing_export` to the table of the standard export, which is smaller \
             than that of the detailed one",
            MAX_BYTES >> 30
        ),
        (_, Some(INVALID_QUERY)) => {
            "set `budget.billing_export` to the table of the standard or the detailed export itself; a view has no partitions"
                .to_owned()
        }
        (ErrorKind::Denied, _) => format!(
            "grant `roles/bigquery.jobUser` on project {project} and `roles/bigquery.dataViewer` on dataset {dataset}, and \
             check `budget.billing_export`"
        ),
        (ErrorKind::NotFound, _) => {
            format!("set `budget.billing_export` to a table that is there: `bq ls {project}:{dataset}` lists them")
        }
        _ => return error,
    };
    error.hint(hint)
}

fn failed(kind: ErrorKind) -> Error {
    Error::new(kind, "read", "the costs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact_and_a_missing_one_is_no_zero() {
        let row = |cells: Value| json!({ "f": cells });
        let answer = json!({ "rows": [
            row(json!([{ "v": "Compute Engine" }, { "v": "EUR" }, { "v": "70.123456789" }])),
            row(json!([{ "v": "Cloud SQL" }, { "v": "EUR" }, { "v": "-0.25" }])),
        ] });
        let amounts: Vec<_> = rows(&answer).unwrap().into_iter().map(|line| (line.service, line.amount.0)).collect();
        let expected = [("Compute Engine", 70_123_456_789), ("Cloud SQL", -250_000_000)];
        assert_eq!(amounts, expected.map(|(service, nanos)| (service.to_owned(), nanos)));
        assert_eq!(rows(&json!({ "totalRows": "0" })), Some(Vec::new()));
        assert_eq!(rows(&json!({ "rows": [row(json!([{ "v": "Cloud DNS" }, { "v": "EUR" }, { "v": null }]))] })), None);
    }

    #[test]
    fn a_month_is_final_ten_days_after_its_end() {
        let until = "2026-12-01".parse().unwrap();
        for (now, expected) in
            [("2026-11-30T12:00:00Z", true), ("2026-12-10T23:59:59Z", true), ("2026-12-11T00:00:00Z", false)]
        {
            assert_eq!(is_estimated(until, now.parse().unwrap()), expected, "{now}");
        }
    }
}
