//! What lacked capacity in a run, and the order of alternatives in the next ones.

use jiff::SignedDuration;
use serde_json::json;
use textnlp_orchestrator::plan::{Reordered, reordered};
use textnlp_orchestrator::state::{Entry, Intent};
use textnlp_provider::memory::{Fault, FaultEffect};
use textnlp_provider::{Lacking, Operation, Verb, Wanted};

use crate::world::*;

/// A database in one of three places: its kind is a slow one.
fn database() -> Vec<Wanted> {
    let alternatives = ["spot a", "spot b", "on-demand a"];
    vec![want("db", "database", json!({"engine": "sqlite", "size": 1, "alternatives": alternatives}))]
}

/// The operations of the journal, oldest first.
fn operations(world: &World) -> Vec<Operation> {
    let state = world.state();
    let records = world.clock.run(state.history(&here())).unwrap().unwrap();
    let intents = records.into_iter().filter_map(|record| match record.entry {
        Entry::Begun { intent, .. } => Some(intent),
        _ => None,
    });
    let read = |intent| world.clock.run(state.body::<Intent>(&here(), &intent)).unwrap().unwrap().operation;
    intents.map(read).collect()
}

fn planned(world: &World) -> Vec<Reordered> {
    let (planned, facts) = world.plan(UP, &database()).unwrap();
    let (fresh, _) = World::new().plan(UP, &database()).unwrap();
    assert_eq!(planned.plan().steps, fresh.plan().steps, "a saved plan stays the same");
    reordered(planned.plan(), &facts)
}

#[test]
fn next_creates_begin_with_what_did_not_lack_capacity() {
    let world = World::new();
    world.cloud.inject(Fault::once(FaultEffect::LacksCapacity("spot a")).on(&id("here/db")));
    world.up(&database());
    assert!(world.down(DOWN_WITH_DATA).is_complete());
    let all = planned(&world);
    let [again] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((again.resource.as_str(), again.first.as_str()), ("here/db", "spot b"));
    let names: Vec<&str> = again.lacked.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["spot a"]);

    world.up(&database());
    let lacking = vec![Lacking { name: "spot a".to_owned(), is_recent: true }];
    let found: Vec<_> = operations(&world).into_iter().map(|op| (op.verb, op.lacking)).collect();
    assert_eq!(found, [(Verb::Create, Vec::new()), (Verb::Delete, Vec::new()), (Verb::Create, lacking)]);

    assert!(world.down(DOWN_WITH_DATA).is_complete());
    world.clock.jump(SignedDuration::from_hours(6));
    assert_eq!(planned(&world), []);
}

#[test]
fn a_market_is_passed_over_for_an_hour_only() {
    let world = World::new();
    world.cloud.inject(Fault::once(FaultEffect::LacksCapacity("spot")).on(&id("here/db")));
    world.up(&database());
    assert!(world.down(DOWN_WITH_DATA).is_complete());
    assert_eq!(planned(&world)[0].first, "on-demand a");
    world.clock.jump(SignedDuration::from_hours(1));
    assert_eq!(planned(&world), []);
}
