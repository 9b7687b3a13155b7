//! Killed at every boundary: before, in the middle of and after each write to the journal, before and after each call.
//!
//! A run dies at one boundary, the next run must put everything right: no orphan, no duplicate, no lost record.

use serde_json::json;
use textnlp_orchestrator::event::EventKind;
use textnlp_orchestrator::run::RunOptions;
use textnlp_provider::Wanted;
use textnlp_provider::memory::{Fault, FaultEffect, Fuse};

use crate::world::*;

struct Story {
    before: Vec<Wanted>,
    ask: RunOptions,
    after: Vec<Wanted>,
}

fn stories() -> Vec<(&'static str, Story)> {
    let two = |field: &str, value: serde_json::Value| {
        with(with(service(), "server/replica-0", field, value.clone()), "server/replica-1", field, value)
    };
    let mixed = with(
        with(without(two("config", json!(2)), &["cache"]), "cert", "names", json!([])),
        "store",
        "limit",
        json!(7),
    );
    vec![
        ("up from nothing", Story { before: vec![], ask: UP, after: service() }),
        ("update", Story { before: service(), ask: UP, after: mixed.clone() }),
        ("undo of an update", Story { before: mixed, ask: UP, after: service() }),
        ("replace", Story { before: service(), ask: UP, after: with(service(), "net", "cidr", json!("10.9.0.0/16")) }),
        (
            "replace beside",
            Story {
                before: service(),
                ask: UP,
                after: with(with(service(), "cache", "engine", json!("x")), "store", "fixed", json!(1)),
            },
        ),
        ("down", Story { before: service(), ask: DOWN_WITH_DATA, after: vec![] }),
    ]
}

fn world(story: &Story) -> World {
    let world = World::new();
    if !story.before.is_empty() {
        world.up(&story.before);
    }
    world
}

/// How many boundaries the story has when nothing goes wrong.
fn boundaries(story: &Story) -> u64 {
    let fuse = Fuse::default();
    world(story).go(story.ask, &story.after, &fuse).unwrap().unwrap();
    fuse.crossed()
}

fn finish(world: &World, story: &Story) {
    let arrival = world.go(story.ask, &story.after, &Fuse::default()).expect("the next run ends");
    let arrival = arrival.unwrap_or_else(|error| panic!("{error:?}"));
    assert!(arrival.is_complete(), "{:#?}", arrival.outcome);
    world.check(&story.after);
}

#[test]
fn run_killed_at_any_boundary_is_recovered_by_the_next() {
    let mut points = 0;
    for (name, story) in stories() {
        let all = boundaries(&story);
        assert!(all > 30, "{name} has only {all} boundaries");
        for boundary in 0..all {
            let world = world(&story);
            let fuse = Fuse::blows_at(boundary);
            assert!(world.go(story.ask, &story.after, &fuse).is_none(), "{name} {boundary}: the run should have died");
            println!("{name}, boundary {boundary} of {all}: {}", fuse.last().unwrap());
            finish(&world, &story);
            points += 1;
        }
    }
    println!("{points} boundaries");
}

#[test]
fn run_killed_again_during_recovery_is_recovered_by_the_third() {
    for (name, story) in stories() {
        let all = boundaries(&story);
        for boundary in (0..all).step_by(9) {
            for second in (0..36).step_by(5) {
                let world = world(&story);
                assert!(world.go(story.ask, &story.after, &Fuse::blows_at(boundary)).is_none());
                println!("{name}, boundary {boundary} of {all}, then {second}");
                let _ = world.go(story.ask, &story.after, &Fuse::blows_at(second));
                finish(&world, &story);
            }
        }
    }
}

#[test]
fn down_after_a_kill_at_any_boundary_leaves_no_orphan() {
    let story = Story { before: vec![], ask: UP, after: service() };
    for boundary in 0..boundaries(&story) {
        let world = world(&story);
        assert!(world.go(UP, &story.after, &Fuse::blows_at(boundary)).is_none());
        let arrival = world.down(DOWN_WITH_DATA);
        assert!(arrival.is_complete(), "{boundary}: {:#?}", arrival.outcome);
        assert!(world.ours().is_empty(), "{boundary}: {:#?}", world.ours());
        assert!(world.cloud.things().is_empty(), "{boundary}: an orphan: {:#?}", world.cloud.things());
    }
}

#[test]
fn changed_environment_is_planned_after_recovery_of_a_killed_run() {
    let story = Story { before: vec![], ask: UP, after: service() };
    let other = with(with(service(), "store", "fixed", json!(2)), "cert", "names", json!(["other"]));
    for boundary in 0..boundaries(&story) {
        let world = world(&story);
        assert!(world.go(UP, &story.after, &Fuse::blows_at(boundary)).is_none());
        world.up(&other);
        world.check(&other);
    }
}

/// A world whose run ended while the create of a replica has no answer.
fn with_open_create(wanted: &[Wanted]) -> World {
    let world = World::new();
    let unanswered = Fault::once(FaultEffect::LostReply).on(&id("here/server/replica-0")).times(100);
    world.cloud.inject(unanswered);
    assert!(!world.try_up(wanted).unwrap().is_complete());
    let open = world.state().open(&here()).unwrap();
    assert_eq!(open.len(), 1, "{open:?}");
    world.cloud.heal();
    world
}

#[test]
fn operation_in_a_host_that_down_removed_ends_with_the_next_down() {
    let world = with_open_create(&service());
    world.cloud.inject(Fault::once(FaultEffect::LostReply).on(&id("here/server/replica-0")).times(100));
    let arrival = world.down(DOWN_WITH_DATA);
    assert!(!arrival.is_complete() && world.state().open(&here()).unwrap().len() == 1, "{:#?}", arrival.outcome);
    assert!(!world.state().holdings(&here()).unwrap().contains_key(&id("here/cluster")));
    world.cloud.heal();
    let arrival = world.down(DOWN_WITH_DATA);
    assert!(arrival.is_complete(), "{:#?}", arrival.outcome);
    assert!(world.state().open(&here()).unwrap().is_empty() && world.state().is_empty(&here()));
    assert!(world.said(|event| matches!(event, EventKind::Note { text } if text.contains("here/server/replica-0"))));
}

#[test]
fn operation_in_a_host_that_others_removed_is_finished_in_the_next_host() {
    let world = with_open_create(&service());
    assert!(world.cloud.remove_behind_our_back(&id("here/cluster")));
    world.converge(UP, &service());
    world.check(&service());
}
