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
fn what_controllers_made_goes_before_the_cluster_and_the_network() {
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
fn what_a_vanished_cluster_left_in_our_network_goes_with_the_network() {
    let world = world();
    assert!(world.cloud.remove_behind_our_back(&id("here/cluster")));
    assert!(world.down(DOWN_WITH_DATA).is_complete());
    assert!(world.cloud.things().is_empty(), "{:#?}", world.cloud.things());
}

#[test]
fn a_new_network_takes_what_controllers_made_in_the_old_one_along() {
    let world = world();
    let other = with(service(), "net", "cidr", json!("10.9.0.0/16"));
    world.up(&other);
    assert_eq!(world.cloud.things().len(), other.len());
    world.check(&other);
}

#[test]
fn what_somebody_else_put_into_our_network_stays_and_so_does_the_network() {
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
fn a_network_with_a_guest_is_not_replaced() {
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
fn a_guest_that_comes_between_plan_and_call_stays() {
    let (world, guest) = (world(), CloudId::new("guest-1").unwrap());
    // Nobody saw it when the plan was made.
    let fuse = Fuse::blows_at(12);
    assert!(world.go(DOWN_WITH_DATA, &[], &fuse).is_none());
    assert!(world.cloud.place_guest(&id("here/net"), &guest));
    assert!(!world.down(DOWN_WITH_DATA).is_complete());
    assert!(world.cloud.things().iter().any(|thing| thing.cloud_id == guest));
}

#[test]
fn killed_anywhere_while_it_sweeps_the_next_down_leaves_nothing() {
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
fn what_controllers_make_changes_no_plan_and_a_guest_does() {
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
fn a_cluster_goes_before_a_network_that_holds_what_its_controllers_made() {
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
fn nobody_agreed_to_lose_the_data_in_a_cluster_that_would_have_to_go_for_its_network() {
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
