//! What is replaced or no longer wanted goes only when the gate opens; a gate that is shut leaves everything there.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use serde_json::json;
use textnlp_orchestrator::apply::Limits;
use textnlp_orchestrator::clock::Clock;
use textnlp_orchestrator::event::EventKind;
use textnlp_orchestrator::plan::{Node, Violation, audit};
use textnlp_orchestrator::state::Entry;
use textnlp_provider::Wanted;
use textnlp_provider::memory::{Fuse, StoredObject};

use crate::world::*;

/// A new cache beside the old one, a replica that is not wanted any more, and something that merely changes.
fn next() -> Vec<Wanted> {
    let next = with(with(service(), "cache", "engine", json!("x")), "store", "limit", json!(7));
    let next = with(next, "gateway", "backends", json!([output("server/replica-0", "address")]));
    let mut next = without(next, &["server/replica-1"]);
    let lets_go = next.iter_mut().find(|wanted| wanted.id == id("here/gateway")).unwrap();
    lets_go.needs.retain(|need| need.on != id("here/server/replica-1"));
    next
}

fn names(things: &[StoredObject]) -> BTreeSet<String> {
    things.iter().map(|thing| thing.cloud_id.to_string()).collect()
}

#[test]
fn only_removals_depend_on_the_gate() {
    let world = World::new();
    world.up(&service());
    let (audited, facts) = world.plan(GATED, &next()).unwrap();
    let plan = audited.plan();
    let gate = plan.steps.iter().find(|step| matches!(step.node, Node::Gate(_))).expect("a gate");
    let Node::Gate(inner) = &gate.node else { unreachable!() };
    let behind: Vec<&str> = inner.open.iter().map(|step| plan.steps[*step as usize].resource.as_str()).collect();
    assert_eq!(
        behind.iter().copied().collect::<BTreeSet<_>>(),
        BTreeSet::from(["here/cache", "here/server/replica-1"]),
        "{:#?}",
        lines(plan)
    );
    assert!(inner.shut.is_empty());
    let made = plan
        .steps
        .iter()
        .filter(|step| step.id < gate.id)
        .all(|step| !matches!(&step.node, Node::Call(call) if call.verb() == textnlp_provider::Verb::Delete));
    assert!(made, "{:#?}", lines(plan));

    // Without being asked for there is none, and where nothing goes there is none either.
    assert!(!world.plan(UP, &next()).unwrap().0.plan().steps.iter().any(|step| matches!(step.node, Node::Gate(_))));
    let changed = with(service(), "store", "limit", json!(7));
    assert!(!world.plan(GATED, &changed).unwrap().0.plan().steps.iter().any(|step| matches!(step.node, Node::Gate(_))));

    // A plan in which a removal slips past its gate breaks a law.
    let mut slips = plan.clone();
    let removal = inner.open[0] as usize;
    slips.steps[removal].after.retain(|before| *before != gate.id);
    let breaches: Vec<Violation> = audit(slips, &facts).unwrap_err();
    assert!(breaches.iter().any(|breach| breach.law.contains("only when the gate is open")), "{breaches:?}");
}

#[test]
fn open_gate_lets_the_run_reach_the_wanted_state() {
    let world = World::new();
    world.up(&service());
    let arrival = world.go(GATED, &next(), &Fuse::default()).unwrap().unwrap();
    assert!(arrival.is_complete(), "{:#?}", arrival.outcome);
    assert_eq!(world.gate.asked.load(Ordering::SeqCst), 1);
    assert!(world.said(|what| matches!(what, EventKind::GateAnswered { shut_because, .. } if shut_because.is_empty())));
    world.check(&next());
    // Nothing to remove: nobody is asked.
    world.go(GATED, &next(), &Fuse::default()).unwrap().unwrap();
    assert_eq!(world.gate.asked.load(Ordering::SeqCst), 1);
}

#[test]
fn closed_gate_keeps_old_and_new_resources_and_reports_why() {
    let world = World::new();
    world.up(&service());
    let before = names(&world.ours());
    *world.gate.shut.lock().unwrap() = vec!["p95 was 900 ms".to_owned(), "2 % failed".to_owned()];
    let arrival = world.go(GATED, &next(), &Fuse::default()).unwrap().unwrap();
    assert!(!arrival.is_complete() && arrival.outcome.failed.is_empty(), "{:#?}", arrival.outcome);
    assert_eq!(arrival.outcome.shut[0].because, ["p95 was 900 ms", "2 % failed"]);
    let skipped: BTreeSet<&str> = arrival.outcome.skipped.iter().map(|one| one.resource.as_str()).collect();
    assert_eq!(skipped, BTreeSet::from(["here/cache", "here/server/replica-1"]));
    let after = names(&world.ours());
    assert!(after.is_superset(&before), "something of the old is gone: {before:?} {after:?}");
    assert_eq!(after.len(), before.len() + 1, "the new cache is there");
    let state = world.state();
    let shut = world.clock.run(state.history(&here())).unwrap().unwrap().into_iter().any(|record| {
        matches!(&record.entry, Entry::Chose { resource, branch, because } if resource.as_str() == "here/gate" && branch == "shut" && because.contains("900 ms"))
    });
    assert!(shut, "the journal says which way was taken");

    // Asked again it is still shut, and nothing moves; then it opens.
    let again = world.go(GATED, &next(), &Fuse::default()).unwrap().unwrap();
    assert!(!again.outcome.shut.is_empty());
    assert_eq!(names(&world.ours()), after);
    world.gate.shut.lock().unwrap().clear();
    assert!(world.go(GATED, &next(), &Fuse::default()).unwrap().unwrap().is_complete());
    world.check(&next());
}

/// Back to what was wanted before, after a gate that was shut: the objects of before are used again, none is made anew.
#[test]
fn rollback_after_a_closed_gate_reuses_existing_resources() {
    let begin = || {
        let world = World::new();
        world.up(&service());
        let before = names(&world.ours());
        *world.gate.shut.lock().unwrap() = vec!["no".to_owned()];
        world.go(GATED, &next(), &Fuse::default()).unwrap().unwrap();
        (world, before)
    };
    let (world, before) = begin();
    let planned = lines(world.plan(UP, &service()).unwrap().0.plan());
    assert!(planned.iter().any(|line| line.contains("note return here/cache")), "{planned:#?}");
    let whole = Fuse::default();
    assert!(world.go(UP, &service(), &whole).unwrap().unwrap().is_complete());
    assert_eq!(names(&world.ours()), before);
    world.check(&service());
    for boundary in 0..whole.crossed() {
        let (world, before) = begin();
        assert!(world.go(UP, &service(), &Fuse::blows_at(boundary)).is_none(), "{boundary}");
        assert!(world.go(UP, &service(), &Fuse::default()).unwrap().unwrap().is_complete(), "{boundary}");
        assert_eq!(names(&world.ours()), before, "{boundary}");
        world.check(&service());
    }

    // One that does not do its work any more is no way back: a new one is made.
    let (world, before) = begin();
    let old = world
        .ours()
        .into_iter()
        .find(|thing| thing.resource == Some(id("here/cache")) && before.contains(thing.cloud_id.as_str()))
        .unwrap();
    world.cloud.degrade(&id("here/cache"), "out of order");
    world.up(&service());
    assert!(!names(&world.ours()).contains(old.cloud_id.as_str()));
    world.check(&service());
}

#[test]
fn removals_before_the_gate_are_warned_about_and_a_silent_gate_is_closed() {
    let world = World::new();
    world.up(&service());
    let first = without(with(service(), "net", "cidr", json!("10.9.0.0/16")), &["cache"]);
    let plan = world.plan(GATED, &first).unwrap().0;
    let warned: Vec<&str> = plan.plan().warnings.iter().map(|warning| warning.place.as_str()).collect();
    assert!(warned.contains(&"here/cluster"), "{:#?}", plan.plan().warnings);
    world.gate.is_silent.store(true, Ordering::SeqCst);
    let next = with(without(service(), &["cache"]), "store", "limit", json!(7));
    let began = world.clock.steady();
    let arrival = world.go(GATED, &next, &Fuse::default()).unwrap().unwrap();
    assert!(arrival.outcome.shut[0].because[0].contains("no answer came within 1800 s"), "{:#?}", arrival.outcome);
    assert!(world.clock.steady() - began >= Limits::default().gate);
}

/// Killed at every boundary of a run whose gate opens, and of one whose gate is shut: the next run puts everything right.
#[test]
fn gated_run_killed_at_any_boundary_is_recovered() {
    for is_shut in [false, true] {
        let begin = || {
            let world = World::new();
            world.up(&service());
            if is_shut {
                *world.gate.shut.lock().unwrap() = vec!["no".to_owned()];
            }
            world
        };
        let whole = Fuse::default();
        begin().go(GATED, &next(), &whole).unwrap().unwrap();
        assert!(whole.crossed() > 20, "{}", whole.crossed());
        for boundary in 0..whole.crossed() {
            let world = begin();
            let before = names(&world.ours());
            assert!(world.go(GATED, &next(), &Fuse::blows_at(boundary)).is_none(), "{boundary}");
            if is_shut {
                let arrival = world.go(GATED, &next(), &Fuse::default()).unwrap().unwrap();
                assert!(!arrival.outcome.shut.is_empty(), "{boundary}: {:#?}", arrival.outcome);
                assert!(names(&world.ours()).is_superset(&before), "{boundary}: something of the old is gone");
                world.gate.shut.lock().unwrap().clear();
            }
            assert!(world.go(GATED, &next(), &Fuse::default()).unwrap().unwrap().is_complete(), "{boundary}");
            world.check(&next());
        }
    }
}
