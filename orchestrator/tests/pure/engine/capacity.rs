//! What lacked capacity in a run, and what the next ones know of it.

use jiff::SignedDuration;
use serde_json::json;
use textnlp_orchestrator::plan::shortages;
use textnlp_orchestrator::state::{Entry, Intent};
use textnlp_provider::memory::{Fault, FaultEffect};
use textnlp_provider::{Lacking, Operation, Verb, Wanted};

use crate::world::*;

const LACKED: &str = "spot eu-b n1-standard-4";

/// A database: its kind is a slow one.
fn database() -> Vec<Wanted> {
    vec![want("db", "database", json!({"engine": "sqlite", "size": 1}))]
}

/// A world in which a create of it found a lack of capacity, and in which it is gone again.
fn after_a_shortage() -> World {
    let world = World::new();
    world.cloud.inject(Fault::once(FaultEffect::LacksCapacity(LACKED)).on(&id("here/db")));
    world.up(&database());
    assert!(world.down(DOWN_WITH_DATA).is_complete());
    world
}

/// What the creates of the journal knew, oldest first.
fn known(world: &World) -> Vec<Vec<Lacking>> {
    let state = world.state();
    let records = world.clock.run(state.history(&here())).unwrap().unwrap();
    let intents = records.into_iter().filter_map(|record| match record.entry {
        Entry::Begun { intent, .. } => Some(intent),
        _ => None,
    });
    let read = |intent| world.clock.run(state.body::<Intent>(&here(), &intent)).unwrap().unwrap().operation;
    let operations: Vec<Operation> = intents.map(read).collect();
    assert!(operations.iter().all(|op| op.verb == Verb::Create || op.lacking.is_empty()));
    operations.into_iter().filter(|op| op.verb == Verb::Create).map(|op| op.lacking).collect()
}

/// The names in the plan of the next `up`.
fn planned(world: &World) -> Vec<String> {
    let (planned, facts) = world.plan(UP, &database()).unwrap();
    let found = shortages(planned.plan(), &facts);
    assert!(found.iter().all(|one| one.resource.as_str() == "here/db"));
    found.into_iter().map(|one| one.shortage.name).collect()
}

#[test]
fn plans_name_what_lacked_capacity_and_stay_the_same() {
    let world = after_a_shortage();
    assert_eq!(planned(&world), [LACKED]);
    let (with, _) = world.plan(UP, &database()).unwrap();
    let (fresh, _) = World::new().plan(UP, &database()).unwrap();
    assert_eq!(with.plan().steps, fresh.plan().steps, "a saved plan stays the same");
    world.clock.jump(SignedDuration::from_hours(6));
    assert!(planned(&world).is_empty());
}

#[test]
fn what_is_not_created_has_no_shortages() {
    let world = after_a_shortage();
    world.up(&database());
    assert!(planned(&world).is_empty());
}

#[test]
fn later_creates_know_what_lacked_capacity_and_whether_it_is_recent() {
    let world = after_a_shortage();
    world.up(&database());
    for hours in [1, 5] {
        assert!(world.down(DOWN_WITH_DATA).is_complete());
        world.clock.jump(SignedDuration::from_hours(hours));
        world.up(&database());
    }
    let lacking = |is_recent| vec![Lacking { name: LACKED.to_owned(), is_recent }];
    assert_eq!(known(&world), [vec![], lacking(true), lacking(false), vec![]]);
}
