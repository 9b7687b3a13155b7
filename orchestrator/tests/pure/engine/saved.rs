//! Saved plans: exactly what was read is applied, or nothing.

use serde_json::json;
use textnlp_orchestrator::plan::{self, DeleteData, ImpactKind, Plan, Saved, SavedPlanError, impact};
use textnlp_orchestrator::run::{RunError, RunOptions, RunOutcome, run_saved_plan};
use textnlp_provider::memory::Fuse;
use textnlp_provider::{Provider, Wanted};
use tokio_util::sync::CancellationToken;

use crate::world::*;

fn saved(world: &World, wanted: &[Wanted]) -> Plan {
    let (planned, _) = world.plan(UP, wanted).unwrap();
    let saved = Saved {
        tool: "textnlp-deploy 0.1.0".to_owned(),
        by: "ada".to_owned(),
        at: "2026-01-01T00:00:00Z".parse().unwrap(),
        flags: vec![("--set".to_owned(), "gates.users=20".to_owned())],
        plan: planned.plan().clone(),
    };
    let read = Saved::read(&saved.to_bytes()).unwrap();
    assert_eq!(read, saved);
    read.plan
}

fn apply(world: &World, plan: &Plan, wanted: &[Wanted]) -> Result<RunOutcome, RunError> {
    let sites = world.site(wanted, &Fuse::default());
    let environment = environment();
    let store = std::sync::Arc::new(world.disk.clone());
    let road = world.road(store, &sites, &environment, &textnlp_orchestrator::event::DiscardEvents);
    world.clock.run(run_saved_plan(&road, plan, &CancellationToken::new())).expect("it ends")
}

#[test]
fn saved_plan_applies_once_and_is_stale_afterwards() {
    let world = World::new();
    let first = saved(&world, &service());
    assert!(apply(&world, &first, &service()).unwrap().is_complete());
    world.check(&service());
    let error = apply(&world, &first, &service()).unwrap_err();
    assert!(matches!(&error, RunError::Stale { resources, .. } if resources.len() == 12), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("`here/cache`") && text.contains("7 more"), "{text}");
    world.check(&service());
}

#[test]
fn saved_plan_is_stale_only_when_its_inputs_changed() {
    let wish = with(service(), "cert", "names", json!(["a"]));
    let check = |change: &dyn Fn(&World), stale: &[&str]| {
        let world = World::new();
        world.up(&service());
        let plan = saved(&world, &wish);
        change(&world);
        let calls = world.cloud.mutations();
        match apply(&world, &plan, &wish) {
            Ok(arrival) => assert!(stale.is_empty() && arrival.is_complete()),
            Err(RunError::Stale { resources, .. }) => {
                assert_eq!(resources.iter().map(ToString::to_string).collect::<Vec<_>>(), stale);
                assert_eq!(world.cloud.mutations(), calls, "nothing of it was done");
            }
            Err(error) => panic!("{error:?}"),
        }
    };
    check(&|_| {}, &[]);
    check(&|world| world.clock.pass(std::time::Duration::from_secs(86_400)), &[]);
    check(&|world| drop(world.up(&service())), &[]);
    check(&|world| assert!(world.cloud.change_behind_our_back(&id("here/db"), "size", json!(9))), &["here/db"]);
    check(&|world| assert!(world.cloud.remove_behind_our_back(&id("here/gateway"))), &["here/gateway"]);
    check(&|world| drop(world.up(&with(service(), "store", "limit", json!(6)))), &["here/store"]);
}

#[test]
fn consent_to_delete_data_is_saved_with_the_plan() {
    // Files of earlier versions have `true` and `false`.
    for (consent, written) in [
        (DeleteData::Nothing, json!(false)),
        (DeleteData::Lost, json!("lost")),
        (DeleteData::Dumps, json!("dumps")),
        (DeleteData::All, json!(true)),
    ] {
        assert_eq!(serde_json::to_value(consent).unwrap(), written);
        assert_eq!(serde_json::from_value::<DeleteData>(written).unwrap(), consent);
    }
    assert!(serde_json::from_value::<DeleteData>(json!("all")).is_err());

    let mut world = World::new();
    world.protect_data = true;
    let mut all = service();
    all.push(via(want("backup/volume", "database", json!({"dumps": true})), "cluster"));
    world.up(&all);
    let (planned, _) = world.plan(RunOptions { delete_data: DeleteData::Dumps, ..DOWN }, &[]).unwrap();
    let reviewed: Plan = serde_json::from_str(&planned.plan().to_json()).unwrap();
    // Without the consent, the same facts lead to another plan.
    let edited = Plan { delete_data: DeleteData::Nothing, ..reviewed.clone() };
    assert!(matches!(apply(&world, &edited, &[]), Err(RunError::OtherPlanner)));
    assert!(apply(&world, &reviewed, &[]).unwrap().is_complete());
    assert_eq!(world.ours().len(), 1, "the database");
}

#[test]
fn saved_plan_for_another_configuration_is_stale() {
    let world = World::new();
    let plan = saved(&world, &service());
    let error = apply(&world, &plan, &with(service(), "net", "cidr", json!("10.9.0.0/16"))).unwrap_err();
    assert!(matches!(&error, RunError::Stale { resources, .. } if *resources == [id("here/net")]), "{error:?}");
    assert_eq!(world.cloud.mutations(), 0);
}

#[test]
fn operation_left_open_by_a_killed_run_makes_a_plan_stale() {
    let world = World::new();
    world.cloud.slow(5);
    let plan = saved(&world, &service());
    // The run dies in the middle.
    assert!(world.go(UP, &service(), &Fuse::blows_at(30)).is_none());
    assert!(matches!(apply(&world, &plan, &service()), Err(RunError::Stale { .. })));
    world.up(&service());
    world.check(&service());
}

#[test]
fn plan_that_the_planner_would_not_produce_is_refused() {
    let world = World::new();
    let mut plan = saved(&world, &service());
    plan.steps[0].because = "another reason".to_owned();
    let error = apply(&world, &plan, &service()).unwrap_err();
    assert!(matches!(error, RunError::OtherPlanner), "{error:?}");
    assert_eq!(world.cloud.mutations(), 0);
}

#[test]
fn invalid_saved_plan_files_are_refused_with_the_reason() {
    let world = World::new();
    let (planned, _) = world.plan(UP, &service()).unwrap();
    let plan = planned.plan().clone();
    let at = "2026-01-01T00:00:00Z".parse().unwrap();
    let bytes = Saved { tool: "t".to_owned(), by: "ada".to_owned(), at, flags: Vec::new(), plan }.to_bytes();
    let text = String::from_utf8(bytes.clone()).unwrap();
    let edited = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        Saved::read(text.replacen(from, to, 1).as_bytes()).unwrap_err()
    };
    assert_eq!(edited("10.0.0.0/16", "10.0.0.0/8"), SavedPlanError::Changed);
    assert_eq!(edited("\"by\":\"ada\"", "\"by\":\"eve\""), SavedPlanError::Changed);
    assert_eq!(edited("\"textnlp_plan\":1", "\"textnlp_plan\":2"), SavedPlanError::Future { found: 2 });
    assert!(matches!(edited("\"textnlp_plan\":1", "\"textnlp_plan\":-1"), SavedPlanError::Other(_)));
    assert!(matches!(edited("\"tool\"", "\"fool\""), SavedPlanError::Other(_)));
    for other in [&b""[..], b"{}", b"[]", b"null", b"\xff\xfe", &bytes[..bytes.len() / 2]] {
        assert!(matches!(Saved::read(other), Err(SavedPlanError::Other(_))));
    }
}

#[test]
fn impact_lists_resources_affected_by_a_change() {
    let world = World::new();
    world.up(&service());
    let (planned, facts) = world.plan(UP, &with(service(), "vault/key", "recipe", json!("other"))).unwrap();
    let all: Vec<String> = impact(planned.plan(), &facts)
        .iter()
        .map(|one| format!("{} {} {}", one.does, one.resource, one.reaches.len()))
        .collect();
    assert_eq!(all[0], "update here/gateway 0");
    assert!(all.contains(&"update here/vault/key 3".to_owned()), "{all:?}");
    let (planned, facts) = world.plan(UP, &without(service(), &["cache"])).unwrap();
    let all = impact(planned.plan(), &facts);
    assert_eq!((all.len(), all[0].does, all[0].reaches.len()), (1, ImpactKind::Delete, 0));
    let (planned, facts) = World::new().plan(UP, &service()).unwrap();
    assert!(impact(planned.plan(), &facts).is_empty(), "what is only made reaches nobody");
}

#[test]
fn plan_estimate_uses_earlier_durations_of_the_longest_chain() {
    let world = World::new();
    world.cloud.slow(10);
    world.up(&service());
    let (_, known) = world.plan(UP, &service()).unwrap();
    let (planned, _) = World::new().plan(UP, &service()).unwrap();
    let estimate = plan::estimate(planned.plan(), &known);
    // Ten looks of 200 ms each, for the cluster and the database beside one another.
    assert!((1.9..2.3).contains(&estimate.seconds) && estimate.unknown.is_empty(), "{estimate:?}");
    let (planned, _) = World::new().plan(UP, &[want("net", "relay", json!({}))]).unwrap();
    let estimate = plan::estimate(planned.plan(), &known);
    assert_eq!(estimate.unknown.iter().map(ToString::to_string).collect::<Vec<_>>(), ["memory.relay"]);
    assert!(world.cloud.kinds().iter().any(|kind| kind.name == "memory.relay"));
    let (planned, facts) = World::new().plan(UP, &[want("images", "registry", json!({}))]).unwrap();
    let estimate = plan::estimate(planned.plan(), &facts);
    let typical: Vec<_> = estimate.typical.iter().map(ToString::to_string).collect();
    assert_eq!((estimate.seconds, typical.as_slice()), (90.0, ["memory.registry".to_owned()].as_slice()));
    assert!(estimate.unknown.is_empty(), "{estimate:?}");
}
