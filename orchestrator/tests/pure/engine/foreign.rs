//! What the controllers of a cluster made inside our network, and what somebody else put there.

use serde_json::json;
use textnlp_orchestrator::event::EventKind;
use textnlp_orchestrator::plan::{self, Node, Plan};
use textnlp_orchestrator::run::{RunError, RunOptions};
use textnlp_provider::memory::Fuse;
use textnlp_provider::{CloudId, Wanted};

use crate::world::*;

const CHILDREN: usize = 3;

/// A service whose cluster has made some objects in the network.
fn world() -> World {
    let world = World::new();
    world.up(&service());
    (0..CHILDREN).for_each(|_| world.cloud.make_child(&id("here/cluster")));
    assert_eq!(world.cloud.things().len(), service().len() + CHILDREN);
    world
}

fn with_guest() -> (World, CloudId) {
    let (world, guest) = (world(), CloudId::new("guest-1").unwrap());
    assert!(world.cloud.place_guest(&id("here/net"), &guest));
    (world, guest)
}

fn planned(world: &World, ask: RunOptions) -> Plan {
    world.plan(ask, &service()).unwrap().0.plan().clone()
}

#[test]
fn controller_created_objects_are_removed_before_cluster_and_network() {
    let world = world();
    let (planned, facts) = world.plan(DOWN_WITH_DATA, &[]).unwrap();
    let swept = plan::swept(planned.plan(), &facts);
    let named: Vec<_> = swept.iter().map(|one| (one.resource.as_str(), one.foreign.len())).collect();
    assert_eq!(named, [("here/cluster", CHILDREN), ("here/net", CHILDREN)]);
    assert!(world.down(DOWN_WITH_DATA).is_complete());
    assert!(world.cloud.things().is_empty(), "{:#?}", world.cloud.things());
    assert!(
        world.said(|what| matches!(what, EventKind::Says { text, .. } if text.contains("what its controllers made")))
    );
}

#[test]
fn network_removal_includes_leftovers_of_a_vanished_cluster() {
    let world = world();
    assert!(world.cloud.remove_behind_our_back(&id("here/cluster")));
    assert!(world.down(DOWN_WITH_DATA).is_complete());
    assert!(world.cloud.things().is_empty(), "{:#?}", world.cloud.things());
}

#[test]
fn network_replacement_removes_controller_created_objects() {
    let world = world();
    let other = with(service(), "net", "cidr", json!("10.9.0.0/16"));
    world.up(&other);
    assert_eq!(world.cloud.things().len(), other.len());
    world.check(&other);
}

#[test]
fn external_object_keeps_the_network_from_being_deleted() {
    let (world, guest) = with_guest();
    let down = world.down(DOWN_WITH_DATA);
    assert!(!down.is_complete());
    let blocked = down.plan.unwrap().blocked;
    let named: Vec<_> = blocked.iter().map(|blocked| blocked.resource.as_str()).collect();
    assert_eq!(named, ["here/net"]);
    assert!(blocked[0].because.contains("`guest-1`"), "{}", blocked[0].because);
    let left: Vec<_> = world.cloud.things().into_iter().map(|thing| thing.cloud_id).collect();
    assert!(left.contains(&guest) && left.len() == 2, "{left:?}");
    // Once it was moved away, nothing holds the network any more.
    world.cloud.remove_foreign(&guest);
    assert!(world.down(DOWN_WITH_DATA).is_complete());
    assert!(world.cloud.things().is_empty());
}

#[test]
fn network_with_an_external_object_is_not_replaced() {
    let (world, guest) = with_guest();
    let before = world.cloud.things();
    let other = with(service(), "net", "cidr", json!("10.9.0.0/16"));
    let arrival = world.try_up(&other).unwrap();
    assert!(!arrival.is_complete());
    assert!(arrival.plan.unwrap().blocked.iter().any(|blocked| blocked.resource == id("here/net")));
    assert_eq!(world.cloud.things(), before);
    world.cloud.remove_foreign(&guest);
    world.up(&other);
    world.check(&other);
}

#[test]
fn external_object_created_after_the_plan_is_kept() {
    let (world, guest) = (world(), CloudId::new("guest-1").unwrap());
    // Nobody saw it when the plan was made.
    let fuse = Fuse::blows_at(12);
    assert!(world.go(DOWN_WITH_DATA, &[], &fuse).is_none());
    assert!(world.cloud.place_guest(&id("here/net"), &guest));
    assert!(!world.down(DOWN_WITH_DATA).is_complete());
    assert!(world.cloud.things().iter().any(|thing| thing.cloud_id == guest));
}

#[test]
fn sweep_killed_at_any_boundary_is_completed_by_the_next_down() {
    let fuse = Fuse::default();
    world().go(DOWN_WITH_DATA, &[], &fuse).unwrap().unwrap();
    for boundary in 0..fuse.crossed() {
        let world = world();
        assert!(world.go(DOWN_WITH_DATA, &[], &Fuse::blows_at(boundary)).is_none());
        assert!(world.down(DOWN_WITH_DATA).is_complete(), "{boundary}");
        assert!(world.cloud.things().is_empty(), "{boundary}: {:#?}", world.cloud.things());
    }
}

#[test]
fn controller_created_objects_do_not_change_plans_and_external_ones_do() {
    let world = world();
    let before = planned(&world, UP);
    world.cloud.make_child(&id("here/cluster"));
    assert_eq!(planned(&world, UP), before);
    assert!(world.cloud.place_guest(&id("here/net"), &CloudId::new("guest-1").unwrap()));
    assert_ne!(planned(&world, UP).reads, before.reads);
}

/// A network that is known by its name, so that its successor cannot be made beside it, and a cluster in it.
fn named_network(revision: u32) -> Vec<Wanted> {
    vec![
        want("net", "vault", json!({"fixed": revision})),
        want("cluster", "cluster", json!({"network": output("net", "id")})),
    ]
}

#[test]
fn cluster_is_removed_before_a_network_with_controller_created_objects() {
    let world = World::new();
    world.up(&named_network(1));
    // A network without such things can go by itself: the cluster is tied to a name that stays.
    let quiet = world.plan(UP, &named_network(2)).unwrap().0.plan().clone();
    let maybe = |plan: &Plan| plan.steps.iter().any(|step| matches!(step.node, Node::OneOf(_)));
    assert!(maybe(&quiet), "{:#?}", lines(&quiet));
    world.cloud.make_child(&id("here/cluster"));
    let busy = world.plan(UP, &named_network(2)).unwrap().0.plan().clone();
    assert!(!maybe(&busy), "{:#?}", lines(&busy));
    let because = &busy.steps.iter().find(|step| step.resource == id("here/cluster")).unwrap().because;
    assert!(because.contains("`here/net`") && because.contains("must be removed first"), "{because}");
    world.up(&named_network(2));
    world.check(&named_network(2));
    assert_eq!(world.cloud.things().len(), 2);
}

#[test]
fn replacement_that_loses_cluster_data_needs_consent() {
    let mut world = World::new();
    world.protect_data = true;
    let all = |revision: u32| {
        let data = via(want("db", "database", json!({"engine": "sqlite"})), "cluster");
        named_network(revision).into_iter().chain([data]).collect::<Vec<_>>()
    };
    world.up(&all(1));
    world.cloud.make_child(&id("here/cluster"));
    let before = world.cloud.things();
    let refused = world.try_up(&all(2)).unwrap_err();
    let RunError::Refused(report) = &refused else { panic!("{refused:?}") };
    let report = format!("{report:?}");
    assert!(
        report.contains("it holds data and would be replaced") && report.contains("must be removed first"),
        "{report}"
    );
    assert_eq!(world.cloud.things(), before);
}
