//! What a plan costs by the prices of the cloud in memory, and what a budget says about it.

use serde_json::json;
use textnlp_orchestrator::environment::model::Budget;
use textnlp_orchestrator::plan::Cost;
use textnlp_provider::Wanted;

use crate::world::*;

fn budget(monthly: f64) -> Budget {
    Budget { monthly: Some(monthly), ..Budget::default() }
}

/// A cluster, a database and two servers: 73.00 + 50.00 + 2 × 20.50; the other kinds cost nothing.
const WHOLE: f64 = 164.0;

#[test]
fn plan_cost_covers_all_resources_after_the_apply() {
    let world = World::new();
    let keeps = |wanted: Wanted| if wanted.id == id("here/db") { protected(wanted) } else { wanted };
    let whole: Vec<Wanted> = service().into_iter().map(keeps).collect();
    let cost = |ask, wanted: &[_]| {
        let (planned, facts) = world.plan(ask, wanted).unwrap();
        Cost::after(planned.plan(), &facts, "USD")
    };
    assert_eq!(cost(UP, &whole).monthly(), Some(WHOLE));
    world.up(&whole);
    // Nothing to do costs as much as before, and a server less costs less.
    assert_eq!(cost(UP, &whole).monthly(), Some(WHOLE));
    let fewer = without(whole.clone(), &["gateway", "server/replica-1"]);
    assert_eq!(cost(UP, &fewer).monthly(), Some(WHOLE - 20.5));
    assert_eq!(cost(DOWN, &whole).monthly(), Some(50.0), "the database stays");
    let sites = world.site(&whole, &textnlp_provider::memory::Fuse::default());
    assert_eq!(Cost::wanted(sites.values(), "USD").monthly(), Some(WHOLE));
}

#[test]
fn unknown_price_makes_the_total_unknown() {
    let world = World::new();
    let mut wanted = service();
    wanted.push(want("images", "registry", json!({})));
    let (planned, facts) = world.plan(UP, &wanted).unwrap();
    let cost = Cost::after(planned.plan(), &facts, "USD");
    assert_eq!((cost.monthly(), cost.unknown.clone()), (None, vec![id("here/images")]));
    let mut document = serde_json::to_value(&cost).unwrap();
    let note = document.as_object_mut().unwrap().remove("note");
    assert_eq!(note, Some("at least 164.00 USD a month; there are no prices for 1 resources".into()));
    assert_eq!(document, json!({"monthly": null, "known": WHOLE, "currency": "USD", "unknown": ["here/images"]}));
    // Nobody converts currencies here.
    let euros = Cost::after(planned.plan(), &facts, "EUR");
    assert_eq!((euros.known_cents, euros.unknown.len()), (0, 5));
}

#[test]
fn budget_warns_refuses_and_reports_when_it_was_not_checked() {
    let world = World::new();
    let against = |wanted: &[_], budget: &Budget| {
        let (planned, facts) = world.plan(UP, wanted).unwrap();
        let problem = Cost::after(planned.plan(), &facts, "USD").against(budget);
        problem.map(|problem| (problem.word(), problem.to_string()))
    };
    let whole = service();
    assert_eq!(against(&whole, &Budget::default()), None);
    assert_eq!(against(&whole, &budget(300.0)), None);
    let (word, says) = against(&whole, &budget(180.0)).unwrap();
    assert!(word == "warning" && says.contains("91 % of the budget of 180.00 USD"), "{word}: {says}");
    let (word, says) = against(&whole, &budget(100.0)).unwrap();
    assert!(word == "refused" && says.contains("164.00 USD a month, and the budget is 100.00 USD"), "{word}: {says}");
    assert!(says.contains("--set budget.monthly=164"), "{says}");
    let mut more = service();
    more.push(want("images", "registry", json!({})));
    let (word, says) = against(&more, &budget(300.0)).unwrap();
    assert!(word == "warning" && says.contains("is not checked: the cost of 1 resources is unknown"), "{word}: {says}");
    let (word, says) = against(&more, &budget(100.0)).unwrap();
    assert!(word == "refused" && says.contains("at least 164.00 USD"), "{word}: {says}");
}
