//! Bills, as Cost Explorer has them.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Span;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use textnlp_aws::{Access, Aws};
use textnlp_provider::{Bill, Billed, BilledRequest, ErrorKind, Provider, Result};
use textnlp_sim::aws::costexplorer::{activate_tag, charge};
use textnlp_sim::{Disruption, Fault, Options, Rule, Simulator, Timing};

use crate::{ACCOUNT, Bench, Secrets, lineage, run};

const OPERATION: &str = "GetCostAndUsage";
const TAG: &str = "textnlp-lineage";

/// Charges objects of this deployment, of another one and of another account of the organization, and returns the month.
fn charged(bench: &Bench) -> Date {
    let mut world = bench.simulator.world();
    let now = world.now();
    let arn = |whose: &str| {
        let account = if whose == "elsewhere" { "210987654321" } else { ACCOUNT };
        format!("arn:aws:ec2:eu-west-1:{account}:vpc/vpc-{whose}")
    };
    let ours = lineage().to_string();
    for (whose, lineage) in [("ours", ours.clone()), ("elsewhere", ours), ("theirs", "another".to_owned())] {
        world.tags.set(&arn(whose), [(TAG.to_owned(), lineage)], now);
    }
    for (whose, service, micros) in [
        ("ours", "AWS Key Management Service", 1_000_000),
        ("ours", "Amazon Elastic Compute Cloud - Compute", 70_400_001),
        ("theirs", "Amazon Elastic Compute Cloud - Compute", 500_000_000),
        ("ours", "Amazon Elastic Compute Cloud - Compute", 2_500_000),
        ("elsewhere", "Amazon Elastic Compute Cloud - Compute", 3_000_000),
        ("ours", "Amazon Simple Storage Service", -40_000),
    ] {
        charge(&mut world, ACCOUNT, &arn(whose), service, micros);
    }
    now.to_zoned(TimeZone::UTC).date().first_of_month()
}

async fn billed(bench: &Bench, provider: &Aws, from: Date) -> Result<Billed> {
    let until = from.saturating_add(Span::new().months(1));
    let now = bench.simulator.world().now();
    provider.billed(&BilledRequest { lineage: lineage(), from, until, export: None, now }).await
}

fn in_pages_of(page: usize) -> Bench {
    let timing = Timing { page, ..Timing::default() };
    Bench::of(Simulator::start(Options { timing, ..Options::default() }), [])
}

fn amounts(bill: &Bill) -> Vec<(&str, &str, i128)> {
    bill.lines.iter().map(|line| (line.service.as_str(), line.currency.as_str(), line.amount.0)).collect()
}

#[test]
fn amounts_are_those_of_this_deployment_in_any_number_of_pages() {
    run(async {
        for (page, calls) in [(1_000, 1), (2, 2), (1, 3)] {
            let bench = in_pages_of(page);
            let from = charged(&bench);
            activate_tag(&mut bench.simulator.world(), ACCOUNT, TAG);
            let Billed::Bill(bill) = billed(&bench, &bench.provider, from).await.unwrap() else {
                panic!("there is a bill")
            };
            let expected = [
                ("AWS Key Management Service", "USD", 1_000_000_000),
                ("Amazon Elastic Compute Cloud - Compute", "USD", 72_900_001_000),
                ("Amazon Simple Storage Service", "USD", -40_000_000),
            ];
            assert_eq!(amounts(&bill), expected);
            assert_eq!((bill.account.as_str(), bill.is_estimated), ("AWS account 123456789012", true));
            assert_eq!(bench.calls(OPERATION), calls, "each page costs money");
            let before = from.saturating_sub(Span::new().months(1));
            let none = billed(&bench, &bench.provider, before).await.unwrap();
            assert!(matches!(none, Billed::NotAvailable(_)), "{none:?}");
        }
        Ok(())
    });
}

#[test]
fn a_tag_that_is_not_activated_is_named_with_the_command_that_activates_it() {
    run(async {
        let bench = Bench::new();
        let from = charged(&bench);
        let Billed::NotAvailable(why) = billed(&bench, &bench.provider, from).await.unwrap() else {
            panic!("there is no bill")
        };
        let command = "aws ce update-cost-allocation-tags-status --cost-allocation-tags-status TagKey=textnlp-lineage,Status=Active";
        assert!(why.contains(command), "{why}");
        assert_eq!(bench.calls(OPERATION), 1);
        Ok(())
    });
}

#[test]
fn refusals_have_a_code_and_a_way_out_and_are_not_repeated() {
    run(async {
        let fault = |code: &str, message: &str| Disruption::Refused(Fault::new(code, message).status(400));
        for (disruption, kind, code, hint) in [
            (
                fault("AccessDeniedException", "User not enabled for cost explorer access"),
                Some(ErrorKind::Denied),
                "AccessDeniedException",
                Some("`ce:GetCostAndUsage`"),
            ),
            (
                fault("DataUnavailableException", "Data is not available. Please try to adjust the time period."),
                None,
                "DataUnavailableException",
                Some("24 hours"),
            ),
            (Disruption::Throttled, Some(ErrorKind::Throttled { after: None }), "ThrottlingException", None),
        ] {
            let bench = Bench::new();
            let from = charged(&bench);
            bench.simulator.faults().add(Rule::always("ce", OPERATION, disruption));
            let error = billed(&bench, &bench.provider, from).await.unwrap_err();
            if let Some(kind) = kind {
                assert_eq!(error.kind, kind, "{code}");
            }
            assert_eq!(error.code.as_deref(), Some(code));
            if let Some(hint) = hint {
                assert!(error.hint.as_deref().is_some_and(|text| text.contains(hint)), "{code}: {:?}", error.hint);
            }
            let asked = bench.simulator.requests().iter().filter(|one| one.operation == OPERATION).count();
            assert_eq!(asked, 1, "{code}");
        }
        Ok(())
    });
}

#[test]
fn a_partition_without_cost_explorer_is_not_asked() {
    run(async {
        let bench = Bench::new();
        let access = Access { region: "us-gov-west-1".to_owned(), ..bench.access() };
        let provider = Aws::new(access, Arc::new(Secrets(BTreeMap::new())));
        let answer = billed(&bench, &provider, charged(&bench)).await.unwrap();
        assert_eq!(answer, Billed::NotAvailable("the partition aws-us-gov has no Cost Explorer".to_owned()));
        Ok(())
    });
}
