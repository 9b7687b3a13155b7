//! Bills, as Cost Management has them.

use std::time::Duration;

use jiff::Span;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::json;
use textnlp_provider::{Billed, BilledRequest, ErrorKind, Lineage, Provider, Result};
use textnlp_sim::azure::Options;
use textnlp_sim::{Disruption, Fault, Rule};

use crate::{Bench, LINEAGE, run};

/// A cloud whose lists have pages of this size.
fn bench(page: usize) -> Bench {
    let mut options = Options::zero_latency().registered();
    options.timing.page = page;
    Bench::new(options, false)
}

/// Charges objects of this deployment, of the nodes of its cluster and of another deployment, and returns the month.
fn charged(bench: &Bench) -> Date {
    let group = |name: &str| format!("/subscriptions/{}/resourceGroups/{name}", bench.cloud.subscription());
    let ours = uuid::Uuid::from_u128(LINEAGE).to_string();
    let mut world = bench.cloud.world();
    for (name, lineage) in [("ours", ours.as_str()), ("MC_ours", ours.as_str()), ("theirs", "another")] {
        let tags = json!({ "textnlp-lineage": lineage });
        world.put(&group(name), json!({ "id": group(name), "name": name, "location": "westeurope", "tags": tags }));
    }
    for (name, service, micros) in [
        ("ours", "Storage", 1_230_000),
        ("MC_ours", "Virtual Machines", 70_100_000),
        ("theirs", "Virtual Machines", 500_000_000),
        ("ours", "Storage", 70_000),
        ("ours", "Azure Database for PostgreSQL", -250_000),
    ] {
        world.charge(&group(name), service, micros);
    }
    world.now().to_zoned(TimeZone::UTC).date().first_of_month()
}

async fn billed(bench: &Bench, from: Date) -> Result<Billed> {
    let until = from.saturating_add(Span::new().months(1));
    let (lineage, now) = (Lineage(uuid::Uuid::from_u128(LINEAGE)), bench.cloud.world().now());
    bench.provider.billed(&BilledRequest { lineage, from, until, export: None, now }).await
}

#[test]
fn amounts_are_those_of_this_deployment_in_any_number_of_pages() {
    run(async {
        for page in [1_000, 2, 1] {
            let bench = bench(page);
            bench.cloud.world().currency = "EUR".to_owned();
            let from = charged(&bench);
            let Billed::Bill(bill) = billed(&bench, from).await.unwrap() else { panic!("there is a bill") };
            let amounts: Vec<_> =
                bill.lines.iter().map(|line| (&*line.service, &*line.currency, line.amount.0)).collect();
            let expected = [
                ("Azure Database for PostgreSQL", "EUR", -250_000_000),
                ("Storage", "EUR", 1_300_000_000),
                ("Virtual Machines", "EUR", 70_100_000_000),
            ];
            assert_eq!(amounts, expected, "pages of {page}");
            assert!(bill.is_estimated);
            assert_eq!(bill.account, format!("Azure subscription {}", bench.cloud.subscription()));
            let before = from.saturating_sub(Span::new().months(1));
            let none = billed(&bench, before).await.unwrap();
            assert!(matches!(none, Billed::NotAvailable(_)), "{none:?}");
        }
    });
}

/// Azure/azqr#745: the header of the limit that is exceeded has the longest time.
#[test]
fn a_query_beyond_the_limit_says_when_to_try_again() {
    run(async {
        let bench = bench(1_000);
        let from = charged(&bench);
        bench.cloud.world().costs_limited_for = Some(42);
        let error = billed(&bench, from).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Throttled { after: Some(Duration::from_secs(42)) });
    });
}

/// Azure/azqr#277: the service has a status and a code of its own, beside those of Resource Manager.
#[test]
fn a_missing_right_is_named() {
    const ACTION: &str = "Microsoft.CostManagement/query/read";
    run(async {
        for is_own in [false, true] {
            let bench = bench(1_000);
            let from = charged(&bench);
            if is_own {
                let message = "The client does not have authorization to perform action.";
                let refused = Disruption::Refused(Fault::new("RBACAccessDenied", message).status(401));
                bench.cloud.faults().add(Rule::always("Microsoft.CostManagement", ACTION, refused));
            } else {
                bench.cloud.world().denied.insert(ACTION.to_owned());
            }
            let error = billed(&bench, from).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Denied);
            assert!(error.hint.is_some_and(|hint| hint.contains("`Cost Management Reader`")));
        }
    });
}
