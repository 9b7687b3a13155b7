//! The query of an export of Cloud Billing: what it answers, and what it is refused for.

use serde_json::{Value, json};
use textnlp_sim::gcp::{export_query, export_table};

use crate::clients::python;
use crate::{Answer, Client};

/// Waits for the result of a query, page by page, as Google's client is used.
const SCRIPT: &str = r#"
import os
import google.oauth2.credentials
import googleapiclient.discovery

PROJECT = os.environ["GOOGLE_CLOUD_PROJECT"]
options = {"api_endpoint": os.environ["CLOUDSDK_API_ENDPOINT_OVERRIDES_BIGQUERY"]}
credentials = google.oauth2.credentials.Credentials(token=os.environ["TOKEN"])
jobs = googleapiclient.discovery.build(
    "bigquery", "v2", credentials=credentials, client_options=options, static_discovery=True, cache_discovery=False).jobs()
answer = jobs.query(projectId=PROJECT, body=BODY).execute()
assert not answer["jobComplete"] and "rows" not in answer, answer
job = answer["jobReference"]
rows, page = [], None
while True:
    answer = jobs.getQueryResults(projectId=PROJECT, jobId=job["jobId"], location=job["location"], pageToken=page, maxResults=1).execute()
    if answer["jobComplete"]:
        rows += [[cell["v"] for cell in row["f"]] for row in answer.get("rows", [])]
        page = answer.get("pageToken")
        if not page:
            break
print(rows)
"#;

fn table(client: &Client) -> String {
    format!("{}.costs.gcp_billing_export_v1_A", client.cloud.project())
}

fn parameter(name: &str, kind: &str, value: &str) -> Value {
    json!({ "name": name, "parameterType": { "type": kind }, "parameterValue": { "value": value } })
}

/// The query for costs with the label `team: ours` in this month.
fn body(client: &Client, month: &str) -> Value {
    let text = |name: &str, value: &str| parameter(name, "STRING", value);
    json!({
        "query": export_query(&table(client)), "useLegacySql": false, "parameterMode": "NAMED",
        "queryParameters": [
            parameter("from", "TIMESTAMP", "2020-01-01T00:00:00Z"), parameter("until", "TIMESTAMP", "2100-01-01T00:00:00Z"),
            text("month", month), text("project", client.cloud.project()), text("key", "team"), text("lineage", "ours"),
        ],
    })
}

fn month(client: &Client) -> String {
    let there = client.cloud.world().now().checked_sub(jiff::SignedDuration::from_hours(8)).unwrap();
    there.to_zoned(jiff::tz::TimeZone::UTC).strftime("%Y%m").to_string()
}

/// A table in a region, and charges of a bucket.
fn client() -> Client {
    let client = Client::quick();
    let project = client.cloud.project().to_owned();
    let mut world = client.cloud.world();
    world
        .put(&export_table(&format!("{project}.costs.gcp_billing_export_v1_A")), json!({ "location": "europe-west4" }));
    world.put("storage/projects/_/buckets/b", json!({ "labels": { "team": "ours" } }));
    world.charge(&project, "storage/projects/_/buckets/b", "Cloud Storage", (1_500_000, -400_000));
    world.charge(&project, "storage/projects/_/buckets/b", "Networking", (20_000_000, -20_000_000));
    drop(world);
    client
}

fn query(client: &Client, body: &Value) -> Answer {
    client.post("bigquery", "projects/PROJECT/queries", body.clone())
}

#[test]
fn google_s_client_waits_for_rows_in_pages() {
    let client = client();
    client.cloud.world().query_polls = 2;
    // What differs between JSON and Python is not in it.
    let body = body(&client, &month(&client)).to_string().replace("false", "False");
    let printed = python(&client.cloud, &format!("BODY = {body}\n{SCRIPT}"));
    assert_eq!(printed.trim(), "[['Cloud Storage', 'USD', '1.1'], ['Networking', 'USD', '0']]");
}

/// googleapis/nodejs-bigquery#888.
#[test]
fn a_job_of_a_region_is_found_with_its_location_only() {
    let client = client();
    let answer = query(&client, &body(&client, &month(&client))).ok();
    let path = format!("projects/PROJECT/queries/{}", answer["jobReference"]["jobId"].as_str().unwrap());
    assert_eq!(client.get("bigquery", &path).reason(), (404, "notFound"));
    assert_eq!(client.get("bigquery", &format!("{path}?location=europe-west4")).ok()["rows"], answer["rows"]);
}

/// mozilla/bigquery-etl#1698, kubernetes/k8s.io#2729, stanford-esrg/LEO_HitchHiking#2, kubecost/kubecost#1841, exmergo/dex#320.
#[test]
fn a_query_is_refused_with_its_reason() {
    let client = client();
    let good = body(&client, &month(&client));
    let mut limited = good.clone();
    limited["maximumBytesBilled"] = json!("1");
    assert_eq!(query(&client, &limited).reason(), (400, "bytesBilledLimitExceeded"));
    let mut other = good.clone();
    other["query"] = json!("SELECT 1");
    assert_eq!(query(&client, &other).reason(), (400, "invalidQuery"));
    for permission in ["bigquery.jobs.create", "bigquery.tables.getData"] {
        client.cloud.world().denied.insert(permission.to_owned());
        assert_eq!(query(&client, &good).reason(), (403, "accessDenied"), "{permission}");
        client.cloud.world().denied.clear();
    }
    client.cloud.world().put(&export_table(&table(&client)), json!({ "type": "VIEW" }));
    assert_eq!(query(&client, &good).reason(), (400, "invalidQuery"));
    client.cloud.world().objects.remove(&export_table(&table(&client)));
    let missing = query(&client, &good);
    assert_eq!(missing.reason(), (404, "notFound"));
    assert!(missing.message().contains("was not found in location US"), "{}", missing.message());
}
