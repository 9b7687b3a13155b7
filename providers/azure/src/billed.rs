//! The bill of a deployment, from Cost Management: the costs of everything in the subscription with the deployment's tag. AKS copies
//! the tags of a cluster to the group of its nodes, so these are among them.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_cloud::tags;
use textnlp_provider::{Bill, BillLine, Billed, BilledAmount, BilledRequest, Error, ErrorKind, Result};

use crate::api::{Api, Call, own_path};

/// The API version of the query: <https://learn.microsoft.com/rest/api/cost-management/query/usage>.
const VERSION: &str = "2023-11-01";
/// The most pages of an answer: a page has a thousand rows (Azure/azure-rest-api-specs#22528).
const MAX_PAGES: usize = 10;
/// How long after the end of a month its amounts may change:
/// <https://learn.microsoft.com/azure/cost-management-billing/costs/understand-cost-mgt-data>.
const SETTLES_IN: SignedDuration = SignedDuration::from_hours(72);
/// The code of status 401 without the right (Azure/azqr#277).
const NO_RIGHT: &str = "RBACAccessDenied";
/// The columns of the amount, the service and the currency.
const COLUMNS: [&str; 3] = ["Cost", "ServiceName", "Currency"];

/// The bill of the subscription for a deployment.
pub(crate) async fn billed(api: &Api, request: &BilledRequest) -> Result<Billed> {
    let account = format!("Azure subscription {}", api.subscription());
    let body = query(request);
    let mut lines = Vec::new();
    let mut next = Some(api.of_subscription("/providers/Microsoft.CostManagement/query"));
    for _ in 0..MAX_PAGES {
        let Some(path) = next.take() else { break };
        // The address of the next page takes the same query (Azure/azure-rest-api-specs#23405).
        let call = Call::new(Method::POST, path, VERSION).body(body.clone()).saying("read", "the costs");
        let answer = api.send(call).await.map_err(hinted)?.body;
        let result = &answer["properties"];
        lines.extend(rows(result).ok_or_else(|| failed(ErrorKind::Unavailable).because("an amount is missing"))?);
        let link = result["nextLink"].as_str().filter(|link| !link.is_empty());
        next = link.and_then(own_path);
        if link.is_some() && next.is_none() {
            return Err(failed(ErrorKind::Invalid).because("the next page is not at Azure Resource Manager"));
        }
    }
    if next.is_some() {
        return Err(failed(ErrorKind::Invalid).because(format!("they have more than {MAX_PAGES} pages")));
    }
    if lines.is_empty() {
        return Ok(Billed::NotAvailable(format!(
            "Cost Management has no costs with the tag `{}` in {}; costs are there after 8 to 24 hours",
            tags::LINEAGE,
            request.from.strftime("%Y-%m")
        )));
    }
    Ok(Billed::Bill(Bill::new(account, lines, is_estimated(request.until, request.now))))
}

/// The query, whose period includes its last second.
fn query(request: &BilledRequest) -> Value {
    let last = request.until.saturating_sub(Span::new().days(1));
    json!({
        "type": "ActualCost",
        "timeframe": "Custom",
        "timePeriod": { "from": format!("{}T00:00:00Z", request.from), "to": format!("{last}T23:59:59Z") },
        "dataset": {
            "granularity": "None",
            "aggregation": { "totalCost": { "name": COLUMNS[0], "function": "Sum" } },
            "grouping": [{ "type": "Dimension", "name": COLUMNS[1] }],
            "filter": {
                "tags": { "name": tags::LINEAGE, "operator": "In", "values": [request.lineage.to_string()] },
            },
        },
    })
}

/// The amounts in the result of a query; `None` if it lacks one. An answer without content has none.
fn rows(result: &Value) -> Option<Vec<BillLine>> {
    let Some(rows) = result["rows"].as_array().filter(|rows| !rows.is_empty()) else { return Some(Vec::new()) };
    let columns = result["columns"].as_array()?;
    let place = |name: &str| columns.iter().position(|column| column["name"] == name);
    let (amount, service, currency) = (place(COLUMNS[0])?, place(COLUMNS[1])?, place(COLUMNS[2])?);
    let line = |row: &Value| {
        Some(BillLine {
            service: row[service].as_str()?.to_owned(),
            currency: row[currency].as_str()?.to_owned(),
            // The digits of the number, not its binary form.
            amount: BilledAmount::parse(&row[amount].as_number()?.to_string())?,
        })
    };
    rows.iter().map(line).collect()
}

fn is_estimated(until: Date, now: Timestamp) -> bool {
    let end = until.to_zoned(TimeZone::UTC).map(|end| end.timestamp());
    !end.and_then(|end| end.checked_add(SETTLES_IN)).is_ok_and(|settled| now >= settled)
}

fn hinted(error: Error) -> Error {
    if error.kind != ErrorKind::Denied && error.code.as_deref() != Some(NO_RIGHT) {
        return error;
    }
    error.hint(
        "grant the role `Cost Management Reader` at the subscription: it has `Microsoft.CostManagement/query/read`",
    )
}

fn failed(kind: ErrorKind) -> Error {
    Error::new(kind, "read", "the costs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_by_the_names_of_their_columns() {
        let result = json!({
            "columns": [{ "name": "Currency" }, { "name": "ServiceName" }, { "name": "Cost" }],
            "rows": [["EUR", "Storage", 0.1], ["EUR", "Virtual Network", 3], ["EUR", "Bandwidth", 1.5e-7]],
        });
        let found: Vec<_> = rows(&result).unwrap().into_iter().map(|line| (line.service, line.amount.0)).collect();
        let expected = [("Storage", 100_000_000), ("Virtual Network", 3_000_000_000), ("Bandwidth", 150)];
        assert_eq!(found, expected.map(|(service, nanos)| (service.to_owned(), nanos)));
        assert_eq!(rows(&Value::Null), Some(Vec::new()));
        assert_eq!(rows(&json!({ "columns": [{ "name": "PreTaxCost" }], "rows": [[1]] })), None);
    }

    #[test]
    fn a_month_is_final_three_days_after_its_end() {
        let until = "2026-12-01".parse().unwrap();
        for (now, expected) in
            [("2026-11-30T12:00:00Z", true), ("2026-12-03T23:59:59Z", true), ("2026-12-04T00:00:00Z", false)]
        {
            assert_eq!(is_estimated(until, now.parse().unwrap()), expected, "{now}");
        }
    }
}
