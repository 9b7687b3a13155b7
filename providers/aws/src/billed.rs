//! The bill of a deployment, from Cost Explorer. AWS charges USD 0.01 for each page of an answer, so a page is asked for once.

use serde_json::{Value, json};
use textnlp_provider::{Bill, BillLine, Billed, BilledAmount, BilledRequest, Error, ErrorKind, Result};
use textnlp_token::{aws_call, partition};

use crate::api::Api;
use crate::tables::errors;
use crate::tags;

/// The signing name of Cost Explorer.
const SERVICE: &str = "ce";
/// The operation:
/// <https://docs.aws.amazon.com/aws-cost-management/latest/APIReference/API_GetCostAndUsage.html>.
const TARGET: &str = "AWSInsightsIndexService.GetCostAndUsage";
/// What is added up: the amounts as they are billed, each when it is charged.
const METRIC: &str = "UnblendedCost";
/// The most pages of an answer. One has some thousand services.
const MAX_PAGES: usize = 10;

/// The region and the host of Cost Explorer in each partition that has it:
/// <https://github.com/boto/botocore/blob/1.44.5/botocore/data/ce/2017-10-25/endpoint-rule-set-1.json.gz>.
const PLACES: &[(&str, &str, &str)] = &[
    ("aws", "us-east-1", "ce.us-east-1.amazonaws.com"),
    ("aws-cn", "cn-northwest-1", "ce.cn-northwest-1.amazonaws.com.cn"),
    ("aws-eusc", "eusc-de-east-1", "ce.eusc-de-east-1.api.amazonwebservices.eu"),
];

/// What an operator does about codes that say less.
const HINTS: &[(&str, &str)] = &[
    (
        "AccessDeniedException",
        "allow `ce:GetCostAndUsage`; enable Cost Explorer once in the console of the management account, and access of \
         IAM to billing information",
    ),
    ("DataUnavailableException", "Cost Explorer has data 24 hours after it was enabled"),
    ("BillExpirationException", "Cost Explorer has the costs of the last 13 months"),
];

/// The bill of the account for a deployment.
pub(crate) async fn billed(api: &Api, request: &BilledRequest) -> Result<Billed> {
    let account = format!("AWS account {}", api.identity.account);
    let partition = partition(&api.region).name;
    let Some(&(_, region, host)) = PLACES.iter().find(|(name, ..)| *name == partition) else {
        return Ok(Billed::NotAvailable(format!("the partition {partition} has no Cost Explorer")));
    };
    let url = format!("https://{host}/");
    let (mut lines, mut is_estimated, mut next) = (Vec::new(), false, None::<String>);
    for _ in 0..MAX_PAGES {
        let answer = page(api, (region, url.as_str()), request, next.as_deref()).await?;
        for result in answer["ResultsByTime"].as_array().into_iter().flatten() {
            is_estimated |= result["Estimated"] == true;
            for group in result["Groups"].as_array().into_iter().flatten() {
                lines.push(line(group).ok_or_else(|| failed(ErrorKind::Unavailable).because("an amount is missing"))?);
            }
        }
        next = answer["NextPageToken"].as_str().filter(|token| !token.is_empty()).map(str::to_owned);
        if next.is_none() {
            break;
        }
    }
    if next.is_some() {
        return Err(failed(ErrorKind::Invalid).because(format!("they have more than {MAX_PAGES} pages")));
    }
    if lines.is_empty() {
        return Ok(Billed::NotAvailable(no_costs(request)));
    }
    Ok(Billed::Bill(Bill::new(account, lines, is_estimated)))
}

/// Without an activated tag, Cost Explorer answers as if nothing had it.
fn no_costs(request: &BilledRequest) -> String {
    format!(
        "Cost Explorer has no costs with the tag `{tag}` in {}. Activate the tag once in the management account, and wait for 24 hours: \
         `aws ce update-cost-allocation-tags-status --cost-allocation-tags-status TagKey={tag},Status=Active`",
        request.from.strftime("%Y-%m"),
        tag = tags::LINEAGE
    )
}

async fn page(api: &Api, (region, url): (&str, &str), request: &BilledRequest, next: Option<&str>) -> Result<Value> {
    let mut body = json!({
        "TimePeriod": { "Start": request.from.to_string(), "End": request.until.to_string() },
        "Granularity": "MONTHLY",
        "Metrics": [METRIC],
        "GroupBy": [{ "Type": "DIMENSION", "Key": "SERVICE" }],
        // A management account sees the costs of all accounts of its organization.
        "Filter": { "And": [
            { "Tags": { "Key": tags::LINEAGE, "Values": [request.lineage.to_string()], "MatchOptions": ["EQUALS"] } },
            { "Dimensions": { "Key": "LINKED_ACCOUNT", "Values": [api.identity.account.as_str()] } },
        ] },
    });
    if let Some(next) = next {
        body["NextPageToken"] = json!(next);
    }
    let config = api.config();
    let Some(credentials) = config.credentials_provider() else {
        return Err(failed(ErrorKind::Denied).because("no credentials were found"));
    };
    let url = config.endpoint_url().unwrap_or(url);
    let answer = aws_call(&credentials, (region, SERVICE), url, TARGET, body.to_string().as_bytes()).await?;
    // The parser's error would quote its input.
    let body: Value = serde_json::from_slice(answer.body.expose()).unwrap_or_default();
    match (answer.status, body.is_object()) {
        (200, true) => Ok(body),
        (200, false) => Err(failed(ErrorKind::Unavailable).because("the answer is not JSON")),
        (status, _) => Err(refusal(api, status, &body)),
    }
}

/// The error of an answer without success.
fn refusal(api: &Api, status: u16, body: &Value) -> Error {
    let code = body["__type"].as_str().unwrap_or_default();
    let code = code.rsplit('#').next().unwrap_or(code);
    let message = ["message", "Message"].iter().find_map(|member| body[*member].as_str());
    let message = message.map_or_else(|| format!("status {status}"), str::to_owned);
    let (kind, hint) = errors::classify(SERVICE, code, Some(status), &message);
    let own = HINTS.iter().find(|(known, _)| *known == code).map(|(_, hint)| (*hint).to_owned());
    let mut error = failed(kind).because(message).signed_in_as(&api.identity.arn);
    error.code = (!code.is_empty()).then(|| code.to_owned());
    error.hint = hint.or(own);
    error
}

fn failed(kind: ErrorKind) -> Error {
    Error::new(kind, "read", "the costs of Cost Explorer")
}

/// The amount of a service: `{ "Keys": ["AWS Lambda"], "Metrics": { "UnblendedCost": { "Amount": "1.2", "Unit": "USD" } } }`.
fn line(group: &Value) -> Option<BillLine> {
    let metric = &group["Metrics"][METRIC];
    Some(BillLine {
        service: group["Keys"][0].as_str()?.to_owned(),
        currency: metric["Unit"].as_str()?.to_owned(),
        amount: BilledAmount::parse(metric["Amount"].as_str()?)?,
    })
}
