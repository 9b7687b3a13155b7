//! Budgets.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_provider::component::{ComponentSpec, Monitoring};
use textnlp_provider::conformance::lowers_purely;
use textnlp_provider::{
    Component, Effect, ErrorKind, Lineage, Observed, Problem, Provider, Scope, Sweep, Verb, Wanted, error_chain,
};
use textnlp_sim::azure::Options;
use textnlp_sim::{Disruption, Fault, Rule};

use crate::{Bench, LINEAGE, Made, monitoring, record, run};

const SERVICE: &str = "Microsoft.Consumption";
const WRITE: &str = "Microsoft.Consumption/budgets/write";

fn bench() -> Bench {
    Bench::new(Options::zero_latency().registered(), false)
}

fn wanted(bench: &Bench) -> Wanted {
    let part = ComponentSpec::Monitoring(Monitoring { receivers: BTreeMap::new(), ..monitoring() });
    let component = Component { name: "monitoring".parse().unwrap(), existing: None, part };
    let all = lowers_purely(&bench.provider, &component, &bench.site).unwrap();
    all.into_iter().find(|one| one.kind.as_str() == "azure.budget").unwrap()
}

fn id(bench: &Bench) -> String {
    let subscription = bench.cloud.subscription();
    format!("/subscriptions/{subscription}/providers/Microsoft.Consumption/budgets/textnlp-staging-main-budget")
}

async fn make(bench: &Bench) -> Made {
    let wanted = wanted(bench);
    let create = bench.operation(1, Verb::Create, &wanted, &wanted.spec, None);
    let object = bench.finish(&create).await;
    let recorded = record(&wanted, &wanted.spec, &object);
    (wanted, recorded)
}

/// Puts a budget of another client of the same name there.
fn place(bench: &Bench) -> Value {
    let body = json!({
        "id": id(bench), "name": "textnlp-staging-main-budget", "type": "Microsoft.Consumption/budgets", "eTag": "\"1\"",
        "properties": { "category": "Cost", "timeGrain": "Monthly", "amount": 5 },
    });
    bench.cloud.world().put(&id(bench), body.clone());
    body
}

async fn said(bench: &Bench) -> String {
    let problems: Vec<Problem> = bench.provider.preflight(std::slice::from_ref(&wanted(bench))).await.unwrap();
    problems.iter().map(|problem| format!("{} {problem}", problem.word())).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_budget_counts_what_has_the_lineage_and_has_recipients() {
    run(async {
        let bench = bench();
        make(&bench).await;
        let budget = bench.cloud.world().get(&id(&bench)).unwrap();
        let tags = &budget["properties"]["filter"]["tags"];
        assert_eq!(tags["name"], "textnlp-lineage");
        assert_eq!(tags["values"][0], uuid::Uuid::from_u128(LINEAGE).to_string());
        let notifications = budget["properties"]["notifications"].as_object().unwrap();
        let names: Vec<&str> = notifications.keys().map(String::as_str).collect();
        let expected =
            ["actual_GreaterThan_80_Percent", "actual_GreaterThan_100_Percent", "forecasted_GreaterThan_100_Percent"];
        assert!(names.len() == 3 && expected.iter().all(|name| names.contains(name)), "{names:?}");
        for one in notifications.values() {
            assert_eq!((&one["contactGroups"], &one["contactRoles"]), (&json!([]), &json!(["Owner"])));
        }
        assert!(budget["properties"]["timePeriod"]["startDate"].as_str().unwrap().ends_with("-01T00:00:00Z"));
    });
}

#[test]
fn a_lost_reply_leaves_one_budget() {
    run(async {
        let bench = bench();
        bench.cloud.faults().add(Rule::nth(SERVICE, WRITE, 1, Disruption::LostReply));
        let (wanted, recorded) = make(&bench).await;
        let delete = bench.operation(2, Verb::Delete, &wanted, &wanted.spec, Some(&recorded));
        bench.finish(&delete).await;
        assert!(bench.cloud.world().get(&id(&bench)).is_none());
    });
}

#[test]
fn a_budget_of_another_client_is_never_overwritten() {
    run(async {
        let bench = bench();
        let theirs = place(&bench);
        let wanted = wanted(&bench);
        let scope = Scope {
            lineage: Lineage(uuid::Uuid::from_u128(LINEAGE)),
            environment: &bench.site.environment,
            site: &bench.site.name,
            wanted: std::slice::from_ref(&wanted),
            recorded: &[],
        };
        let seen = bench.provider.observe(&scope).await.unwrap();
        let seen: Vec<&Observed> = seen.iter().filter(|(id, _)| *id == wanted.id).map(|(_, seen)| seen).collect();
        assert!(matches!(seen.as_slice(), [Observed::Unknown(_)]), "the plan changes nothing: {seen:?}");
        let create = bench.operation(1, Verb::Create, &wanted, &wanted.spec, None);
        let error = bench.provider.begin(&create).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Exists, "{}", error_chain(&error));
        assert_eq!(bench.cloud.world().get(&id(&bench)), Some(theirs));
    });
}

/// It appears after the read, and the write has no etag.
#[test]
fn a_budget_that_appears_at_the_last_moment_is_never_overwritten() {
    run(async {
        let bench = bench();
        let message = "There are changes made to Budget b. Please get the latest budget to avoid overwrite.";
        let fault = Fault::new("400", message).status(400);
        bench.cloud.faults().add(Rule::nth(SERVICE, WRITE, 1, Disruption::Refused(fault)));
        let wanted = wanted(&bench);
        let create = bench.operation(1, Verb::Create, &wanted, &wanted.spec, None);
        // It is not there: another client made it and removed it.
        let error = bench.provider.begin(&create).await.err();
        assert!(error.is_none_or(|error| error.kind == ErrorKind::Conflict));
        assert!(bench.cloud.world().get(&id(&bench)).is_none());
    });
}

#[test]
fn a_changed_budget_is_drift_and_keeps_its_start() {
    run(async {
        let bench = bench();
        let (wanted, recorded) = make(&bench).await;
        let start = "/properties/timePeriod/startDate";
        bench.cloud.world().change(&id(&bench), start, json!("2020-01-01T00:00:00Z"));
        bench.cloud.world().change(&id(&bench), "/properties/amount", json!(9_000));
        let enabled = "/properties/notifications/actual_GreaterThan_80_Percent/enabled";
        bench.cloud.world().change(&id(&bench), enabled, json!(false));
        let Observed::Present(seen) = bench.provider.read(&wanted.kind, &recorded.cloud_id).await.unwrap() else {
            panic!("it is gone")
        };
        let changes = bench.provider.diff(&wanted, &recorded, &seen);
        let fields: Vec<&str> = changes.iter().map(|change| change.field.as_str()).collect();
        assert_eq!(fields, ["limit", "notifications"]);
        assert!(changes.iter().all(|change| change.effect == Effect::InPlace), "{changes:?}");
        let update = bench.operation(2, Verb::Update, &wanted, &wanted.spec, Some(&recorded));
        let object = bench.finish(&update).await;
        assert!(bench.provider.diff(&wanted, &recorded, &object).is_empty());
        let budget = bench.cloud.world().get(&id(&bench)).unwrap();
        assert_eq!(budget.pointer(start), Some(&json!("2020-01-01T00:00:00Z")));
    });
}

#[test]
fn preflight_names_recipients_and_another_currency() {
    run(async {
        let bench = bench();
        let well = said(&bench).await;
        assert!(
            well.contains("note") && well.contains("not to webhooks") && !well.contains("Azure counts in"),
            "{well}"
        );
        let with = |budget: &Wanted| {
            let mut spec = budget.spec.as_value().clone();
            for one in spec["notifications"].as_array_mut().unwrap() {
                one["groups"] = json!([{ "$output": "main/monitoring/mailboxes#id" }]);
            }
            bench.wanted("main/monitoring/budget", "azure.budget", &spec)
        };
        let problems = bench.provider.preflight(&[with(&wanted(&bench))]).await.unwrap();
        assert!(!problems.iter().any(|one| one.to_string().contains("not to webhooks")), "{problems:?}");
        bench.cloud.world().currency = "EUR".to_owned();
        make(&bench).await;
        let other = said(&bench).await;
        assert!(other.contains("warning") && other.contains("Azure counts in EUR"), "{other}");
    });
}

#[test]
fn a_budget_that_stays_is_a_leftover() {
    run(async {
        let bench = bench();
        let (_, recorded) = make(&bench).await;
        let lineage = Lineage(uuid::Uuid::from_u128(LINEAGE));
        let sweep = Sweep { lineage, before: std::slice::from_ref(&recorded), kept: &[] };
        let left = bench.provider.leftovers(&sweep).await.unwrap().unwrap();
        assert!(left.left.iter().any(|one| one.id == recorded.cloud_id.as_str()), "{left:?}");
    });
}
