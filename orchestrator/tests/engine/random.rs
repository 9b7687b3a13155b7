//! Random programs: a random start, another wish, faults and kills; afterwards everything is as wished.

use proptest::prelude::*;
use proptest::test_runner::Config;
use serde_json::json;
use std::time::Duration;
use textnlp_provider::memory::{Fault, Fuse, Go, Stage};
use textnlp_provider::{Sort, Wanted};

use crate::world::*;

const KINDS: &[&str] = &["network", "cluster", "vault", "bucket", "model", "database", "cache", "server", "gateway"];

#[derive(Debug, Clone)]
struct Wish {
    /// Which earlier resources it refers to.
    refers: Vec<usize>,
    /// Which earlier cluster it is reached through.
    host: Option<usize>,
    revision: u8,
    fixed: u8,
    there: bool,
}

fn wish() -> impl Strategy<Value = Wish> {
    let (refers, host) = (prop::collection::vec(0..8_usize, 0..3), prop::option::weighted(0.3, 0..8_usize));
    (refers, host, 0..3_u8, 0..2_u8, prop::bool::weighted(0.8))
        .prop_map(|(refers, host, revision, fixed, there)| Wish { refers, host, revision, fixed, there })
}

/// The names are by place, so two lists of wishes are two versions of one environment. The kind of a place stays.
fn wanted(kinds: &[usize], wishes: &[Wish]) -> Vec<Wanted> {
    let there = |place: &usize, below: usize| *place < below && wishes[*place].there;
    let mut all = Vec::new();
    for (place, wish) in wishes.iter().enumerate().filter(|(_, wish)| wish.there) {
        let kind = KINDS[kinds[place]];
        let mut spec = json!({"revision": wish.revision, "fixed": wish.fixed});
        for refers in wish.refers.iter().filter(|refers| there(refers, place)) {
            let field = if refers % 2 == 0 { "version" } else { "id" };
            // An id that a new object does not keep ties whoever refers to it.
            let name = if refers % 3 == 0 { format!("uses-{refers}") } else { "network".to_owned() };
            spec[name] = output(&format!("r{refers}"), field);
        }
        if kind == "model" {
            let Some(parent) = (0..place).rev().find(|parent| there(parent, place) && KINDS[kinds[*parent]] != "model")
            else {
                continue;
            };
            spec["parent"] = output(&format!("r{parent}"), "id");
        }
        let mut one = want(&format!("r{place}"), kind, spec);
        if let Some(host) =
            wish.host.filter(|host| there(host, place) && KINDS[kinds[*host]] == "cluster" && kind != "model")
        {
            one = via(one, &format!("r{host}"));
        }
        all.push(one);
    }
    // A part without a parent was left out: nobody may refer to it.
    let names: Vec<_> = all.iter().map(|one| one.id.clone()).collect();
    all.retain(|one| one.needs.iter().all(|need| names.contains(&need.on)));
    let names: Vec<_> = all.iter().map(|one| one.id.clone()).collect();
    all.retain(|one| one.needs.iter().all(|need| names.contains(&need.on)));
    close(all)
}

/// Takes out whatever needs something that was taken out.
fn close(mut all: Vec<Wanted>) -> Vec<Wanted> {
    loop {
        let names: Vec<_> = all.iter().map(|one| one.id.clone()).collect();
        let before = all.len();
        all.retain(|one| {
            one.needs.iter().all(|need| names.contains(&need.on))
                && one.via.as_ref().is_none_or(|host| names.contains(&host.0))
        });
        if all.len() == before {
            return all;
        }
    }
}

fn fault() -> impl Strategy<Value = Fault> {
    let go = prop_oneof![
        Just(Go::LostReply),
        Just(Go::LostRequest),
        Just(Go::Throttle(Some(Duration::from_secs(3)))),
        Just(Go::Refuse(Sort::Conflict)),
        Just(Go::Refuse(Sort::Capacity)),
        Just(Go::Refuse(Sort::Denied)),
        Just(Go::FailLeaving),
        Just(Go::Fail(Sort::Invalid)),
    ];
    let stage = prop_oneof![Just(Stage::Begin), Just(Stage::Advance), Just(Stage::Any)];
    (go, stage, 0..8_usize, 1..12_u32).prop_map(|(go, stage, place, times)| {
        Fault::once(go).on(&id(&format!("here/r{place}"))).stage(stage).times(times)
    })
}

fn cases() -> u32 {
    std::env::var("ENGINE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(300)
}

proptest! {
    #![proptest_config(Config { cases: cases(), failure_persistence: None, max_shrink_iters: 2000, ..Config::default() })]

    #[test]
    fn whatever_happens_in_between_the_end_is_as_wished(
        kinds in prop::collection::vec(0..KINDS.len(), 8),
        first in prop::collection::vec(wish(), 8),
        then in prop::collection::vec(wish(), 8),
        faults in prop::collection::vec(fault(), 0..5),
        kills in prop::collection::vec(0..120_u64, 0..4),
        drifts in prop::collection::vec(0..8_usize, 0..3),
        slow in 0..4_u32,
    ) {
        let world = World::new();
        world.cloud.slow(slow);
        let (start, end) = (wanted(&kinds, &first), wanted(&kinds, &then));
        world.up(&start);
        world.check(&start);
        for place in drifts {
            world.cloud.remove_behind_our_back(&id(&format!("here/r{place}")));
        }
        faults.into_iter().for_each(|fault| world.cloud.inject(fault));
        for kill in kills {
            let _ = world.go(UP, &end, &Fuse::blows_at(kill));
        }
        let _ = world.go(UP, &end, &Fuse::default());
        world.cloud.heal();
        // What was left open is finished, what was left broken is replaced; a maybe that turned into more is planned anew.
        for _ in 0..3 {
            let _ = world.go(UP, &end, &Fuse::default());
        }
        world.check(&end);
        let down = world.down(DOWN_WITH_DATA);
        prop_assert!(down.is_complete(), "{:#?}", down.outcome);
        prop_assert!(world.cloud.things().is_empty(), "{:#?}", world.cloud.things());
    }
}
