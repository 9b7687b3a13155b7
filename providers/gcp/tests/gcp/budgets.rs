//! Budgets.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_provider::component::{ComponentSpec, Monitoring};
use textnlp_provider::conformance::lowers_purely;
use textnlp_provider::{Component, Effect, ErrorKind, Observed, Problem, Provider, Sweep, Verb, Wanted, error_chain};
use textnlp_sim::gcp::Options;
use textnlp_sim::{Disruption, Fault, Rule};

use crate::{Bench, LINEAGE, Made, monitoring, record, run};

const ACCOUNT: &str = "billingAccounts/000000-AAAAAA-000000";
const CREATE: &str = "billingbudgets.billingAccounts.budgets.create";
const PATCH: &str = "billingbudgets.billingAccounts.budgets.patch";

fn bench() -> Bench {
    Bench::new(Options::zero_latency().enabled(), false)
}

fn component(currency: &str) -> Component {
    let part = Monitoring { receivers: BTreeMap::new(), ..monitoring(currency) };
    let part = ComponentSpec::Monitoring(part);
    Component { name: "monitoring".parse().unwrap(), existing: None, part }
}

fn wanted(bench: &Bench, currency: &str) -> Wanted {
    let all = lowers_purely(&bench.provider, &component(currency), &bench.site).unwrap();
    all.into_iter().find(|one| one.kind.as_str() == "gcp.budget").unwrap()
}

/// The budgets of the billing account, by their keys.
fn budgets(bench: &Bench) -> Vec<(String, Value)> {
    let world = bench.cloud.world();
    let keys = world.keys().into_iter().filter(|key| key.starts_with("billingbudgets/"));
    keys.map(|key| (key.clone(), world.get(&key).cloned().unwrap())).collect()
}

/// Puts a budget of another client there.
fn place(bench: &Bench, id: &str, display_name: &str) {
    let name = format!("{ACCOUNT}/budgets/{id}");
    let amount = json!({ "specifiedAmount": { "currencyCode": "USD", "units": "5" } });
    let body = json!({ "name": name, "displayName": display_name, "amount": amount, "etag": "AAAAAAAAAAA=" });
    bench.cloud.world().put(&format!("billingbudgets/{name}"), body);
}

async fn make(bench: &Bench) -> Made {
    let wanted = wanted(bench, "USD");
    let create = bench.operation(1, Verb::Create, &wanted, &wanted.spec, None);
    let object = bench.finish(&create).await;
    let recorded = record(&wanted, &wanted.spec, &object);
    (wanted, recorded)
}

async fn said(bench: &Bench, wanted: &Wanted) -> String {
    let problems: Vec<Problem> = bench.provider.preflight(std::slice::from_ref(wanted)).await.unwrap();
    problems.iter().map(|problem| format!("{} {problem}", problem.word())).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_budget_counts_the_project_and_names_its_deployment() {
    run(async {
        let bench = bench();
        make(&bench).await;
        let all = budgets(&bench);
        let [(_, budget)] = all.as_slice() else { panic!("{all:?}") };
        let lineage = uuid::Uuid::from_u128(LINEAGE);
        assert_eq!(budget["displayName"], format!("textnlp-staging-main {lineage}"));
        assert_eq!(budget["budgetFilter"]["projects"], json!(["projects/123456789012"]));
        let rule = |percent: f64, about: &str| json!({ "thresholdPercent": percent, "spendBasis": about });
        let rules = [rule(0.8, "CURRENT_SPEND"), rule(1.0, "CURRENT_SPEND"), rule(1.0, "FORECASTED_SPEND")];
        assert_eq!(budget["thresholdRules"], json!(rules));
    });
}

#[test]
fn a_lost_reply_creates_no_second_budget() {
    run(async {
        let bench = bench();
        bench.cloud.faults().add(Rule::nth("billingbudgets", CREATE, 1, Disruption::LostReply));
        make(&bench).await;
        assert_eq!(budgets(&bench).len(), 1);
    });
}

/// The display name of a budget of another client may be the same, and that of another deployment starts the same.
#[test]
fn budgets_of_others_stay_as_they_are() {
    run(async {
        let bench = bench();
        place(&bench, "theirs", "textnlp-staging-main");
        let before = budgets(&bench);
        let (wanted, recorded) = make(&bench).await;
        assert_eq!(budgets(&bench).len(), 2);
        let delete = bench.operation(2, Verb::Delete, &wanted, &wanted.spec, Some(&recorded));
        bench.finish(&delete).await;
        assert_eq!(budgets(&bench), before);
        let other = uuid::Uuid::from_u128(LINEAGE + 1);
        place(&bench, "other", &format!("textnlp-staging-main {other}"));
        let create = bench.operation(3, Verb::Create, &wanted, &wanted.spec, None);
        let error = bench.provider.begin(&create).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Exists, "{}", error_chain(&error));
        assert_eq!(budgets(&bench).len(), 2);
    });
}

#[test]
fn a_changed_budget_is_drift_and_is_put_right() {
    run(async {
        let bench = bench();
        let (wanted, recorded) = make(&bench).await;
        let key = budgets(&bench)[0].0.clone();
        bench.cloud.world().change(&key, "/amount/specifiedAmount/units", json!("9000"));
        bench.cloud.world().change(&key, "/budgetFilter", json!({ "calendarPeriod": "MONTH" }));
        let Observed::Present(seen) = bench.provider.read(&wanted.kind, &recorded.cloud_id).await.unwrap() else {
            panic!("it is gone")
        };
        let changes = bench.provider.diff(&wanted, &recorded, &seen);
        let fields: Vec<&str> = changes.iter().map(|change| change.field.as_str()).collect();
        assert_eq!(fields, ["limit", "projects"]);
        assert!(changes.iter().all(|change| change.effect == Effect::InPlace), "{changes:?}");
        // Another client changes it while the change is sent: it is read again.
        let fault = Fault::new("ABORTED", "The etag does not match that of the budget.");
        bench.cloud.faults().add(Rule::nth("billingbudgets", PATCH, 1, Disruption::Refused(fault)));
        let update = bench.operation(2, Verb::Update, &wanted, &wanted.spec, Some(&recorded));
        let object = bench.finish(&update).await;
        assert!(bench.provider.diff(&wanted, &recorded, &object).is_empty());
    });
}

/// A topic of Pub/Sub may stop what spends.
#[test]
fn a_changed_mailbox_leaves_the_other_recipients_of_a_budget() {
    run(async {
        let bench = bench();
        let (wanted, recorded) = make(&bench).await;
        let key = budgets(&bench)[0].0.clone();
        let mut recipients = json!({ "pubsubTopic": "projects/p/topics/stop", "schemaVersion": "1.0", "disableDefaultIamRecipients": true });
        let channel = format!("projects/{}/notificationChannels/1", bench.cloud.project());
        bench.cloud.world().change(&key, "/notificationsRule", recipients.clone());
        bench.cloud.world().put(&format!("monitoring/{channel}"), json!({ "name": channel, "type": "email" }));
        let mut spec = wanted.spec.as_value().clone();
        spec["channels"] = json!([channel]);
        let wanted = bench.wanted("main/monitoring/budget", "gcp.budget", &spec);
        let update = bench.operation(2, Verb::Update, &wanted, &wanted.spec, Some(&recorded));
        bench.finish(&update).await;
        recipients["monitoringNotificationChannels"] = json!([channel]);
        assert_eq!(budgets(&bench)[0].1["notificationsRule"], recipients);
    });
}

#[test]
fn preflight_names_recipients_permissions_and_currency() {
    run(async {
        let bench = bench();
        let well = said(&bench, &wanted(&bench, "USD")).await;
        assert!(well.contains("note") && well.contains("write a mailbox in `monitoring.receivers`"), "{well}");
        bench.cloud.world().denied.insert("billing.budgets.create".to_owned());
        let denied = said(&bench, &wanted(&bench, "USD")).await;
        assert!(denied.contains(&format!("on the billing account {ACCOUNT}: billing.budgets.create")), "{denied}");
        let other = said(&bench, &wanted(&bench, "EUR")).await;
        assert!(other.contains("counts in USD, and the budget is in EUR"), "{other}");
    });
}

#[test]
fn a_budget_that_stays_is_a_leftover() {
    run(async {
        let bench = bench();
        let (_, recorded) = make(&bench).await;
        let lineage = textnlp_provider::Lineage(uuid::Uuid::from_u128(LINEAGE));
        let sweep = Sweep { lineage, before: std::slice::from_ref(&recorded), kept: &[] };
        let left = bench.provider.leftovers(&sweep).await.unwrap().unwrap();
        assert!(left.left.iter().any(|one| one.id == recorded.cloud_id.as_str()), "{left:?}");
    });
}
