//! Bills, as the export of Cloud Billing has them.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span};
use serde_json::json;
use textnlp_provider::{
    Billed, BilledRequest, BillingExport, Error, ErrorKind, Lineage, Provider, Result, error_chain,
};
use textnlp_sim::gcp::{Options, export_table};

use crate::{Bench, LINEAGE, REGION, run};

/// A project of the billing account, which is not that of the site.
const BILLING: &str = "company-billing";
const TABLE: &str = "company-billing.costs.gcp_billing_export_v1_000000_AAAAAA_000000";
const QUERY: &str = "bigquery.jobs.query";
const RESULTS: &str = "bigquery.jobs.getQueryResults";

/// A cloud whose lists have pages of this size, and a billing account with an export.
fn bench(page: usize) -> Bench {
    let mut options = Options::zero_latency().enabled();
    options.timing.page = page;
    let bench = Bench::new(options, false);
    let mut world = bench.cloud.world();
    world.add_project(BILLING, "210987654321", &["bigquery.googleapis.com"]);
    world.put(&export_table(TABLE), json!({ "location": REGION }));
    drop(world);
    bench
}

/// Charges objects of this deployment, of another one and of another project, and returns the month.
fn charged(bench: &Bench) -> Date {
    let project = bench.cloud.project();
    let ours = uuid::Uuid::from_u128(LINEAGE).to_string();
    let key = |kind: &str, name: &str| format!("{kind}/projects/{project}/{name}");
    let (cluster, server) = (key("container", "locations/here/clusters/ours"), key("sql", "instances/ours"));
    let (other, plain) = (key("container", "locations/here/clusters/other"), key("compute", "global/networks/ours"));
    let mut world = bench.cloud.world();
    world.put(&cluster, json!({ "resourceLabels": { "textnlp-lineage": ours } }));
    world.put(&server, json!({ "settings": { "userLabels": { "textnlp-lineage": ours } } }));
    world.put(&other, json!({ "resourceLabels": { "textnlp-lineage": "another" } }));
    world.put(&plain, json!({ "description": "a network has no labels" }));
    for (project, key, service, amounts) in [
        (project, &cluster, "Compute Engine", (70_100_000, -20_000_001)),
        (project, &server, "Cloud SQL", (40_000_000, 0)),
        (project, &cluster, "Kubernetes Engine", (73_000_000, -73_000_000)),
        (project, &cluster, "Compute Engine", (1, 0)),
        (project, &other, "Compute Engine", (500_000_000, 0)),
        (project, &plain, "Networking", (30_000_000, 0)),
        ("another-project", &cluster, "Compute Engine", (9_000_000, 0)),
    ] {
        world.charge(project, key, service, amounts);
    }
    // Invoices have months of Pacific time.
    let there = world.now().checked_sub(SignedDuration::from_hours(8)).unwrap();
    there.to_zoned(TimeZone::UTC).date().first_of_month()
}

async fn billed(bench: &Bench, from: Date, table: Option<&str>) -> Result<Billed> {
    let until = from.saturating_add(Span::new().months(1));
    let (lineage, now) = (Lineage(uuid::Uuid::from_u128(LINEAGE)), bench.cloud.world().now());
    let export = table.map(|table| table.parse::<BillingExport>().unwrap());
    bench.provider.billed(&BilledRequest { lineage, from, until, export, now }).await
}

async fn refused(bench: &Bench, table: &str) -> Error {
    let from = charged(bench);
    billed(bench, from, Some(table)).await.unwrap_err()
}

fn calls(bench: &Bench, operation: &str) -> usize {
    bench.cloud.requests().iter().filter(|one| one.operation == operation).count()
}

#[test]
fn amounts_are_those_of_this_deployment_with_credits_in_any_number_of_pages() {
    run(async {
        for (page, further) in [(1_000, 0), (2, 1), (1, 2)] {
            let bench = bench(page);
            bench.cloud.world().currency = "EUR".to_owned();
            let from = charged(&bench);
            let Billed::Bill(bill) = billed(&bench, from, Some(TABLE)).await.unwrap() else {
                panic!("there is a bill")
            };
            let amounts: Vec<_> =
                bill.lines.iter().map(|line| (&*line.service, &*line.currency, line.amount.0)).collect();
            let expected = [
                ("Cloud SQL", "EUR", 40_000_000_000),
                ("Compute Engine", "EUR", 50_100_000_000),
                ("Kubernetes Engine", "EUR", 0),
            ];
            assert_eq!(amounts, expected, "pages of {page}");
            assert!(bill.is_estimated);
            assert_eq!(bill.account, format!("Google Cloud project {}", bench.cloud.project()));
            assert_eq!((calls(&bench, QUERY), calls(&bench, RESULTS)), (1, further));
            let before = from.saturating_sub(Span::new().months(1));
            let none = billed(&bench, before, Some(TABLE)).await.unwrap();
            assert!(matches!(&none, Billed::NotAvailable(why) if why.contains("`textnlp-lineage`")), "{none:?}");
        }
    });
}

/// The query is a job of the export's project. It is bounded, and the bill of BigQuery shows whose it is.
#[test]
fn the_query_is_bounded_and_labelled() {
    run(async {
        let bench = bench(1_000);
        let from = charged(&bench);
        billed(&bench, from, Some(TABLE)).await.unwrap();
        let requests = bench.cloud.requests();
        let query = requests.iter().find(|one| one.operation == QUERY).unwrap();
        assert_eq!(query.account, BILLING);
        assert_eq!(query.input["maximumBytesBilled"], (32_u64 << 30).to_string());
        assert_eq!(query.input["labels"]["textnlp-lineage"], uuid::Uuid::from_u128(LINEAGE).to_string());
    });
}

#[test]
fn a_slow_query_is_waited_for_and_not_without_end() {
    run(async {
        let bench = bench(1_000);
        bench.cloud.world().query_polls = 3;
        let from = charged(&bench);
        let Billed::Bill(bill) = billed(&bench, from, Some(TABLE)).await.unwrap() else { panic!("there is a bill") };
        assert_eq!((bill.lines.len(), calls(&bench, RESULTS)), (3, 3));
        bench.cloud.world().query_polls = 1_000;
        let error = billed(&bench, from, Some(TABLE)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error_chain(&error).contains("has not ended"), "{}", error_chain(&error));
        assert_eq!(calls(&bench, RESULTS), 3 + 11);
    });
}

#[test]
fn without_an_export_the_setting_is_named_and_nothing_is_called() {
    run(async {
        let bench = bench(1_000);
        let from = charged(&bench);
        let Billed::NotAvailable(why) = billed(&bench, from, None).await.unwrap() else { panic!("there is no bill") };
        assert!(why.contains("`budget.billing_export: PROJECT.DATASET.TABLE`"), "{why}");
        assert!(bench.cloud.requests().is_empty());
    });
}

#[test]
fn refusals_have_a_way_out() {
    run(async {
        let hint = |error: &Error| error.hint.clone().unwrap_or_default();

        let missing = refused(&bench(1_000), "company-billing.costs.elsewhere").await;
        assert_eq!(missing.kind, ErrorKind::NotFound);
        assert!(hint(&missing).contains("`bq ls company-billing:costs`"), "{missing:?}");

        for permission in ["bigquery.jobs.create", "bigquery.tables.getData"] {
            let bench = bench(1_000);
            bench.cloud.world().denied.insert(permission.to_owned());
            let denied = refused(&bench, TABLE).await;
            assert_eq!(denied.kind, ErrorKind::Denied, "{permission}");
            for role in
                ["`roles/bigquery.jobUser` on project company-billing", "`roles/bigquery.dataViewer` on dataset costs"]
            {
                assert!(hint(&denied).contains(role), "{permission}: {denied:?}");
            }
        }

        let disabled = bench(1_000);
        disabled.cloud.world().projects.get_mut(BILLING).unwrap().services.clear();
        let error = refused(&disabled, TABLE).await;
        assert!(
            hint(&error).contains("`gcloud services enable bigquery.googleapis.com --project company-billing`"),
            "{error:?}"
        );

        let large = bench(1_000);
        large.cloud.world().export_bytes = (32 << 30) + 1;
        let error = refused(&large, TABLE).await;
        assert_eq!(error.code.as_deref(), Some("bytesBilledLimitExceeded"));
        assert!(hint(&error).contains("32 GiB"), "{error:?}");

        let view = bench(1_000);
        view.cloud.world().put(&export_table(TABLE), json!({ "type": "VIEW" }));
        let error = refused(&view, TABLE).await;
        assert!(hint(&error).contains("a view has no partitions"), "{error:?}");
    });
}
