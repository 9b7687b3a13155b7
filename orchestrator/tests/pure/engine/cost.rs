//! What a plan costs by the prices of the cloud in memory, and what a budget says about it.

use serde_json::json;
use textnlp_orchestrator::environment::model::{Budget, MachineCost};
use textnlp_orchestrator::plan::{Cost, permissions, policies, unknown_reason};
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
        Cost::after(planned.plan(), &facts, &Budget::default())
    };
    assert_eq!(cost(UP, &whole).monthly(), Some(WHOLE));
    assert!(cost(UP, &whole).is_comparable());
    world.up(&whole);
    // Nothing to do costs as much as before, and a server less costs less.
    assert_eq!(cost(UP, &whole).monthly(), Some(WHOLE));
    let change = |ask, wanted: &[_]| {
        let (planned, facts) = world.plan(ask, wanted).unwrap();
        Cost::after(planned.plan(), &facts, &Budget::default()).to_string()
    };
    assert_eq!(change(UP, &whole), "164.00 USD a month");
    assert_eq!(change(UP, &with(whole.clone(), "db", "storage_gb", json!(120))), "176.00 USD a month (+12.00)");
    assert_eq!(change(DOWN, &whole), "50.00 USD a month (-114.00)");
    let fewer = without(whole.clone(), &["gateway", "server/replica-1"]);
    assert_eq!(cost(UP, &fewer).monthly(), Some(WHOLE - 20.5));
    assert_eq!(cost(DOWN, &whole).monthly(), Some(50.0), "the database stays");
    let sites = world.site(&whole, &textnlp_provider::memory::Fuse::default());
    assert_eq!(Cost::wanted(sites.values(), &Budget::default()).monthly(), Some(WHOLE));
}

#[test]
fn unknown_price_makes_the_total_unknown() {
    let world = World::new();
    let mut wanted = service();
    wanted.push(want("images", "registry", json!({})));
    let (planned, facts) = world.plan(UP, &wanted).unwrap();
    let cost = Cost::after(planned.plan(), &facts, &Budget::default());
    assert_eq!((cost.monthly(), cost.unknown.clone()), (None, [id("here/images")].into()));
    let mut document = serde_json::to_value(&cost).unwrap();
    let mut member = |name: &str| document.as_object_mut().unwrap().remove(name).unwrap();
    assert_eq!(member("note"), "at least 164.00 USD a month; there are no prices for 1 resource");
    assert_eq!(cost.to_string(), "≥ 164.00 USD a month (+164.00); there are no prices for 1 resource");
    assert_eq!(cost.unpriced().len(), 1, "{:?}", cost.unpriced());
    assert!(!cost.is_comparable());
    let lines = member("lines");
    let of = |name: &str| lines.as_array().unwrap().iter().find(|line| line["resource"] == name).unwrap();
    assert_eq!(
        of("here/cluster"),
        &json!({
            "resource": "here/cluster", "service": "Clusters", "what": "1 cluster", "quantity": 1, "price": 0.1,
            "unit": "per hour", "currency": "USD", "monthly": 73.0, "source": "the price list of the memory cloud",
            "date": "2026-11-01",
        })
    );
    let registry = of("here/images");
    assert!(registry["monthly"].is_null(), "{registry}");
    assert_eq!(registry["why"], "no price of `registry` in `memory` is recorded");
    let service =
        |name: &str, monthly: Option<f64>, known: f64| json!({"service": name, "monthly": monthly, "known": known});
    assert_eq!(
        member("services"),
        json!([
            service("Clusters", Some(73.0), 73.0),
            service("Databases", Some(50.0), 50.0),
            service("Registries", None, 0.0),
            service("Servers", Some(41.0), 41.0),
        ])
    );
    assert_eq!(member("sites"), json!([{ "site": "here", "monthly": null, "known": WHOLE }]));
    assert_eq!(
        document,
        json!({"monthly": null, "known": WHOLE, "change": WHOLE, "currency": "USD", "unknown": ["here/images"]})
    );
    // Nobody converts currencies here.
    let euros = Cost::after(planned.plan(), &facts, &Budget { currency: "EUR".to_owned(), ..Budget::default() });
    assert_eq!((euros.known_micros, euros.unknown.len()), (0, 5));
    let reasons: Vec<_> = euros.lines.iter().filter_map(|(_, line)| unknown_reason(&line.charge)).collect();
    assert!(reasons.contains(&"its price is in USD, and `budget.currency` is EUR"), "{reasons:?}");
}

#[test]
fn budget_warns_refuses_and_reports_when_it_was_not_checked() {
    let world = World::new();
    let against = |wanted: &[_], budget: &Budget| {
        let (planned, facts) = world.plan(UP, wanted).unwrap();
        let problem = Cost::after(planned.plan(), &facts, &Budget::default()).against(budget);
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
    let known = "costs at least 164.00 of 300.00 USD a month; the amount of 1 resource is unknown";
    assert!(word == "warning" && says.contains(known), "{word}: {says}");
    let (word, says) = against(&[want("images", "registry", json!({}))], &budget(300.0)).unwrap();
    assert!(word == "warning" && says.contains("the budget of 300.00 USD is not checked"), "{word}: {says}");
    let (word, says) = against(&more, &budget(180.0)).unwrap();
    assert!(word == "warning" && says.contains("at least 164.00 USD a month, 91 %"), "{word}: {says}");
    let (word, says) = against(&more, &budget(100.0)).unwrap();
    assert!(word == "refused" && says.contains("at least 164.00 USD"), "{word}: {says}");
}

#[test]
fn own_machines_are_priced_by_their_power_and_depreciation() {
    let world = World::new();
    let wanted = [want("images", "registry", json!({})), want("vault", "vault", json!({}))];
    let (planned, facts) = world.plan(UP, &wanted).unwrap();
    let machine = |count| MachineCost {
        count,
        watts: 200.0,
        price_per_kwh: 0.25,
        purchase_price: 4800.0,
        depreciation_months: 48,
    };
    let budget = |site: &str, count| Budget { machines: [(site.to_owned(), machine(count))].into(), ..budget(300.0) };
    // 0.2 kW for 730 hours at 0.25, and 4800 over 48 months.
    let cost = Cost::after(planned.plan(), &facts, &budget("here", 2));
    assert_eq!((cost.known_micros, &cost.machines), (273_000_000, &[("here".to_owned(), 273_000_000)].into()));
    assert_eq!(cost.services()["Machines"].known(), 273.0);
    let document = serde_json::to_value(&cost).unwrap();
    assert_eq!(document["machines"], json!([{ "site": "here", "monthly": 273.0 }]));
    let problem = cost.against(&budget("here", 2)).unwrap();
    assert!(problem.to_string().contains("91 % of the budget"), "{problem}");
    assert_eq!(
        Cost::after(planned.plan(), &facts, &budget("elsewhere", 2)).machines,
        [].into(),
        "no resource is there"
    );
    let by_site = cost.by(|site, service| (site.to_owned(), service.to_owned()));
    let registries = by_site[&("here".to_owned(), "Registries".to_owned())];
    assert!(registries.is_partial && !by_site[&("here".to_owned(), "Machines".to_owned())].is_partial);
}

#[test]
fn old_price_is_reported_with_its_date() {
    let world = World::new();
    let (planned, facts) = world.plan(UP, &service()).unwrap();
    let cost = Cost::after(planned.plan(), &facts, &Budget::default());
    let on = |day: &str| cost.outdated(format!("{day}T12:00:00Z").parse().unwrap());
    assert_eq!(on("2027-04-30"), None, "180 days after 2026-11-01");
    let problem = on("2027-05-01").unwrap();
    assert!(problem.warning && problem.cause.contains("2026-11-01"), "{problem}");
    let (planned, facts) = world.plan(UP, &[want("vault", "vault", json!({}))]).unwrap();
    let free = Cost::after(planned.plan(), &facts, &Budget::default());
    assert_eq!(free.outdated("2030-01-01T00:00:00Z".parse().unwrap()), None);
}

#[test]
fn policy_follows_the_calls_of_the_plan() {
    let world = World::new();
    let allowed = |ask, wanted: &[Wanted]| {
        let (planned, facts) = world.plan(ask, wanted).unwrap();
        let all = policies(planned.plan(), &facts);
        let [policy] = all.as_slice() else { panic!("one site, one policy: {all:?}") };
        let document: serde_json::Value = serde_json::from_str(&policy.document.text).unwrap();
        let listed = serde_json::to_value(permissions(planned.plan(), &facts)).unwrap();
        let rows = document["allow"].as_array().unwrap().clone();
        for (row, listed) in rows.iter().zip(listed.as_array().unwrap()) {
            assert_eq!((&listed["permission"], &listed["resource"]), (&row["permission"], &row["resource"]));
        }
        rows
    };
    let observe = json!({"permission": "memory:Observe", "resource": "*"});
    let change = |lineage: &str| {
        let resource = "memory://staging/here";
        json!({"permission": "memory:Change", "resource": resource, "conditions": {"lineage": lineage}})
    };
    assert_eq!(allowed(UP, &service()), [change("*"), observe.clone()], "the first `up` determines the lineage");
    world.up(&service());
    assert_eq!(allowed(UP, &service()), std::slice::from_ref(&observe), "nothing to change, everything to read");
    let lineage = world.plan(UP, &service()).unwrap().0.plan().lineage.unwrap().to_string();
    assert_eq!(allowed(DOWN, &service()), [change(&lineage), observe]);
}
