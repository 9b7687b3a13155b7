//! Plans as text: data in, lines out; what is wrong with a wish is named in full.

use expect_test::expect;
use serde_json::json;
use textnlp_orchestrator::plan::{
    self, Call, Consent, DeleteData, Facts, Node, Plan, PlanRefusal, Purpose, Violation, approve, audit,
};
use textnlp_orchestrator::run::{RunError, RunOptions};
use textnlp_provider::{Observed, ReadFailure, ResourceId, Wanted};

use crate::world::*;

fn refused(wanted: &[Wanted]) -> String {
    match World::new().try_up(wanted) {
        Err(RunError::Wanted(problems)) => problems.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn initial_plan_orders_creates_by_dependency() {
    let (planned, _) = World::new().plan(UP, &service()).unwrap();
    expect![[r#"
        0 create here/cache
        1 create here/cert
        2 create here/db
        3 create here/net
        4 create here/cluster <- 3
        5 create here/store
        6 create here/store/tiny <- 5
        7 create here/vault
        8 create here/vault/key <- 7
        9 create here/server/replica-0 <- 2 4 6 8
        10 create here/server/replica-1 <- 2 4 6 8
        11 create here/gateway <- 1 9 10"#]]
    .assert_eq(&lines(planned.plan()).join("\n"));
}

#[test]
fn replaced_network_is_created_before_the_old_one_is_deleted() {
    let world = World::new();
    world.up(&service());
    let (planned, _) = world.plan(UP, &with(service(), "net", "cidr", json!("10.1.0.0/16"))).unwrap();
    expect![[r#"
        0 create-beside here/net (cidr)
        1 delete here/server/replica-0
        2 delete here/server/replica-1
        3 delete here/cluster <- 1 2
        4 create here/cluster (network) <- 0 3
        5 delete-old here/net <- 0 3 4
        6 create here/server/replica-0 <- 1 4
        7 create here/server/replica-1 <- 2 4
        8 nothing|update here/gateway (backends) <- 6 7"#]]
    .assert_eq(&lines(planned.plan()).join("\n"));
}

#[test]
fn down_deletes_in_reverse_dependency_order() {
    let world = World::new();
    world.up(&service());
    let (planned, _) = world.plan(DOWN, &[]).unwrap();
    expect![[r#"
        0 delete here/cache
        1 delete here/gateway
        2 delete here/cert <- 1
        3 delete here/server/replica-0 <- 1
        4 delete here/server/replica-1 <- 1
        5 delete here/cluster <- 3 4
        6 delete here/db <- 3 4
        7 delete here/net <- 5
        8 delete here/store/tiny <- 3 4
        9 delete here/store <- 8
        10 delete here/vault/key <- 3 4
        11 delete here/vault <- 10"#]]
    .assert_eq(&lines(planned.plan()).join("\n"));
}

#[test]
fn plan_is_deterministic_and_round_trips() {
    let world = World::new();
    world.up(&service());
    let changed = with(service(), "net", "cidr", json!("10.1.0.0/16"));
    let mut turned = changed.clone();
    turned.reverse();
    let (one, facts) = world.plan(UP, &changed).unwrap();
    let (other, _) = world.plan(UP, &turned).unwrap();
    assert_eq!(one.plan().to_json(), other.plan().to_json());
    assert_eq!(plan::plan(&facts).unwrap().digest(), one.plan().digest());
    let back: plan::Plan = serde_json::from_str(&one.plan().to_json()).unwrap();
    assert_eq!(&back, one.plan(), "a plan survives being written and read");
}

#[test]
fn plan_is_stale_only_when_its_inputs_changed() {
    let world = World::new();
    world.up(&service());
    let changed = with(service(), "cert", "names", json!([]));
    let (planned, facts) = world.plan(UP, &changed).unwrap();
    assert!(planned.plan().stale(&facts).is_empty());
    world.cloud.change_behind_our_back(&id("here/db"), "size", json!(9));
    let (_, later) = world.plan(UP, &changed).unwrap();
    assert_eq!(planned.plan().stale(&later), [id("here/db")]);
}

#[test]
fn dependency_cycle_is_reported_in_full() {
    let circle = [
        want("a", "vault", json!({"x": output("b", "id")})),
        want("b", "vault", json!({"x": output("c", "id")})),
        want("c", "vault", json!({"x": output("a", "id")})),
    ];
    let text = refused(&circle);
    assert!(text.contains("`here/a` needs `here/b` needs `here/c` needs `here/a`"), "{text}");
}

#[test]
fn unknown_dependency_and_unknown_kind_are_reported_together() {
    let text = refused(&[want("a", "vault", json!({"x": output("aa", "id")})), want("b", "teapot", json!({}))]);
    assert!(
        text.contains("`here/aa`, which is not in the environment") && text.contains("`memory.teapot` is unknown"),
        "{text}"
    );
}

#[test]
fn duplicate_resource_id_is_refused() {
    let text = refused(&[want("a", "vault", json!({})), want("a", "gateway", json!({}))]);
    assert!(text.contains("planned twice"), "{text}");
}

#[test]
fn change_of_an_immutable_field_is_refused_with_a_hint() {
    let world = World::new();
    let first = [want("a", "vault", json!({"frozen": 1}))];
    world.up(&first);
    let (planned, _) = world.plan(UP, &with(first.to_vec(), "a", "frozen", json!(2))).unwrap();
    assert!(planned.plan().refusals[0].cause.contains("never changes"));
    assert!(matches!(approve(planned, Consent { changes: true }), Err(PlanRefusal::Undecided(_))));
}

#[test]
fn immutable_field_that_a_new_resource_sets_is_refused_before_the_first_change() {
    let world = World::new();
    world.up(&[want("a", "vault", json!({"size": 1}))]);
    let with_key = want("a", "vault", json!({"size": 1, "frozen": output("b", "id")}));
    let (planned, _) = world.plan(UP, &[with_key, want("b", "vault", json!({}))]).unwrap();
    assert!(planned.plan().refusals[0].cause.contains("never changes"), "{:?}", planned.plan().refusals);
    assert!(matches!(approve(planned, Consent { changes: true }), Err(PlanRefusal::Undecided(_))));
}

#[test]
fn immutable_field_that_an_observation_lacks_may_keep_its_value() {
    let world = World::new();
    world.up(&[want("a", "vault", json!({"frozen": "key"}))]);
    world.cloud.change_behind_our_back(&id("here/a"), "frozen", json!(null));
    let with_key = want("a", "vault", json!({"frozen": output("b", "id")}));
    let (planned, _) = world.plan(UP, &[with_key, want("b", "vault", json!({}))]).unwrap();
    assert!(planned.plan().refusals.is_empty(), "{:?}", planned.plan().refusals);
}

#[test]
fn plan_without_consent_is_not_applied() {
    let (planned, _) = World::new().plan(UP, &service()).unwrap();
    assert!(matches!(approve(planned, Consent { changes: false }), Err(PlanRefusal::NoConsent)));
}

/// The audit's own test: edit a lawful plan and look whether it notices.
fn edited(purpose: Purpose, edit: impl FnOnce(&mut plan::Plan)) -> Vec<String> {
    let world = World::new();
    world.up(&service());
    let ask = textnlp_orchestrator::run::RunOptions { purpose, ..UP };
    let wanted = if purpose == Purpose::Up { with(service(), "net", "cidr", json!("10.1.0.0/16")) } else { Vec::new() };
    let (planned, facts) = world.plan(ask, &wanted).unwrap();
    let mut plan = planned.plan().clone();
    edit(&mut plan);
    audit(plan, &facts).expect_err("the audit notices").iter().map(ToString::to_string).collect()
}

#[test]
fn audit_detects_every_broken_invariant() {
    let has = |breaches: Vec<String>, text: &str| {
        assert!(breaches.iter().any(|breach| breach.contains(text)), "{breaches:#?}")
    };
    has(edited(Purpose::Up, |plan| plan.steps[4].after.clear()), "`here/net` must be ready before it is created");
    has(edited(Purpose::Up, |plan| plan.steps[3].after.clear()), "it must be removed after `here/server/replica-0`");
    has(edited(Purpose::Up, |plan| plan.steps[0].after.push(7)), "wait only for earlier steps");
    has(edited(Purpose::Up, |plan| plan.steps[2].id = 9), "number must be its position");
    has(
        edited(Purpose::Up, |plan| {
            plan.steps.pop();
        }),
        "must be created, kept, or listed as blocked",
    );
    has(
        edited(Purpose::Up, |plan| plan.steps.push(plan::Step { id: 9, ..plan.steps[4].clone() })),
        "must change at most once",
    );
    has(
        edited(Purpose::Down, |plan| {
            plan.steps.remove(0);
        }),
        "removed, forgotten, or listed as kept",
    );
    has(
        edited(Purpose::Up, |plan| plan.steps[4].resource = "there/net".parse().unwrap()),
        "which belongs to another site",
    );
    has(edited(Purpose::Down, |plan| plan.delete_data = DeleteData::All), "consent must come from the facts");
}

/// A `down` of a service whose database has two parts outside of the cluster, and dumps in it.
fn with_dumps(delete_data: DeleteData) -> (Plan, Facts) {
    let mut world = World::new();
    world.protect_data = true;
    let mut all = service();
    all.push(want("db/schema", "database", json!({"server": output("db", "address")})));
    all.push(via(want("backup/volume", "database", json!({"dumps": true})), "cluster"));
    world.up(&all);
    let (planned, facts) = world.plan(RunOptions { delete_data, ..DOWN }, &[]).unwrap();
    (planned.plan().clone(), facts)
}

#[test]
fn audit_detects_calls_on_unobserved_or_protected_resources() {
    let mut world = World::new();
    world.protect_data = true;
    world.up(&service());
    let (planned, mut facts) = world.plan(DOWN_WITH_DATA, &[]).unwrap();
    let mut plan = planned.plan().clone();
    plan.delete_data = DeleteData::Nothing;
    facts.delete_data = DeleteData::Nothing;
    let breaches = audit(plan.clone(), &facts).unwrap_err();
    assert!(breaches.iter().any(|breach| breach.law.contains("only with consent")), "{breaches:?}");
    // That to dumps is no consent to the loss of the database itself.
    (plan.delete_data, facts.delete_data) = (DeleteData::Dumps, DeleteData::Dumps);
    let breaches = audit(plan.clone(), &facts).unwrap_err();
    assert!(breaches.iter().any(|breach| breach.law.contains("only with consent")), "{breaches:?}");
    let dumped = || with_dumps(DeleteData::Dumps);
    let (dumps, of_dumps) = dumped();
    audit(dumps, &of_dumps).expect("the database stays");
    // Nor is it one to the loss of dumps while a part of the database is removed, gone, or not seen.
    let (mut removed, of_removed) = with_dumps(DeleteData::All);
    removed.delete_data = DeleteData::Dumps;
    let refuses_dumps = |plan: Plan, facts: &Facts| {
        let breaches = audit(plan, facts).unwrap_err();
        let is_so = |breach: &Violation| {
            breach.resource == id("here/backup/volume") && breach.law.contains("only with consent")
        };
        assert!(breaches.iter().any(is_so), "{breaches:?}");
    };
    refuses_dumps(removed, &of_removed);
    for seen in [Observed::Absent, Observed::Unknown(ReadFailure("lost".to_owned()))] {
        let (plan, mut facts) = dumped();
        let site = facts.sites.get_mut(&here()).unwrap();
        let of_part = |of: &&mut (ResourceId, Observed)| of.0 == id("here/db/schema");
        site.observed.iter_mut().filter(of_part).for_each(|of| of.1 = seen.clone());
        refuses_dumps(plan, &facts);
    }
    let (of_down, mut of_up) = dumped();
    of_up.purpose = Purpose::Up;
    refuses_dumps(of_down, &of_up);
    let site = facts.sites.get_mut(&here()).unwrap();
    let why = textnlp_provider::ReadFailure("lost".to_owned());
    site.observed.iter_mut().for_each(|(_, seen)| *seen = textnlp_provider::Observed::Unknown(why.clone()));
    let breaches = audit(plan, &facts).unwrap_err();
    assert!(breaches.iter().any(|breach| breach.law.contains("could not be observed")), "{breaches:?}");
}

#[test]
fn plan_of_ten_thousand_resources_is_computed_and_audited() {
    let mut all = Vec::new();
    for number in 0..10_000_usize {
        let mut spec = json!({"number": number});
        for back in [1, 7, 100] {
            if number >= back && number % 10 != 0 {
                spec[format!("uses-{back}")] = output(&format!("r{}", number - back), "id");
            }
        }
        all.push(want(&format!("r{number}"), "vault", spec));
    }
    let (planned, facts) = World::new().plan(UP, &all).unwrap();
    assert_eq!(planned.plan().summary.create, 10_000);
    let began = std::time::Instant::now();
    let plan = plan::plan(&facts).unwrap();
    let planned = began.elapsed();
    assert!(plan.steps.iter().all(|step| matches!(step.node, Node::Call(Call::Create { .. }))));
    audit(plan, &facts).unwrap();
    println!("10,000 resources: plan {planned:?}, audit {:?}", began.elapsed() - planned);
}

#[test]
fn replacement_avoids_create_before_delete_where_it_would_form_a_cycle() {
    // The old `c` uses the old `a`; the new `c` needs `b`, which needs the new `a`, which can only be made when the old `a` is gone.
    let world = World::new();
    let before = [
        want("a", "gateway", json!({"fixed": 1})),
        want("c", "network", json!({"uses": output("a", "version"), "fixed": 1})),
    ];
    let after = [
        want("a", "gateway", json!({"fixed": 2})),
        want("b", "network", json!({"uses": output("a", "version")})),
        want("c", "network", json!({"uses": output("b", "version"), "fixed": 2})),
    ];
    world.up(&before);
    let (planned, _) = world.plan(UP, &after).unwrap();
    expect![[r#"
        0 delete here/c
        1 delete here/a <- 0
        2 create here/a (fixed) <- 1
        3 create here/b <- 2
        4 create here/c (fixed, uses) <- 0 3"#]]
    .assert_eq(&lines(planned.plan()).join("\n"));
    world.up(&after);
    world.check(&after);
}

#[test]
fn not_found_right_after_create_plans_nothing() {
    let world = World::new();
    let cache = [want("cache", "cache", json!({"engine": "redis"}))];
    world.up(&cache);
    let (_, mut facts) = world.plan(UP, &cache).unwrap();
    facts.sites.get_mut(&here()).unwrap().observed = vec![(id("here/cache"), textnlp_provider::Observed::Absent)];
    let young = plan::plan(&facts).unwrap();
    assert!(young.steps.is_empty() && young.blocked[0].because.contains("not visible yet"), "{young:?}");
    facts.now = "2026-01-01T00:01:00Z".parse().unwrap();
    assert_eq!(plan::plan(&facts).unwrap().summary.create, 1, "a minute later it is gone");
}
