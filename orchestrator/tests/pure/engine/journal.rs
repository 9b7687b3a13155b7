//! Damage of every sort: what a power cut explains is mended and said, anything else is named and nothing is done.

use std::sync::Arc;

use serde_json::json;
use textnlp_orchestrator::plan::Purpose;
use textnlp_orchestrator::run::RunError;
use textnlp_orchestrator::state::{End, Entry, JournalWriter, LINE_LIMIT, Operator, State, StateError, Store};
use textnlp_provider::{EnvironmentName, Lineage, OperationId};
use uuid::Uuid;

use crate::world::*;

fn built() -> World {
    let world = World::new();
    world.up(&service());
    world
}

fn damage(edit: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Result<String, String> {
    let world = built();
    let log = world.disk.raw_log(&here());
    world.disk.set_raw_log(&here(), edit(log));
    let calls = world.cloud.mutations();
    let result = match world.try_up(&service()) {
        Err(RunError::State(error)) => Err(error.to_string()),
        Ok(arrival) => Ok(arrival.mended.join("; ")),
        Err(other) => panic!("{other:?}"),
    };
    assert_eq!(world.cloud.mutations(), calls, "nothing was done on the strength of a damaged journal");
    result
}

fn lines_of(log: &[u8]) -> Vec<Vec<u8>> {
    log.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
}

#[test]
fn journal_records_stay_within_the_line_limit() {
    let log = built().disk.raw_log(&here());
    let longest = lines_of(&log).iter().map(Vec::len).max().unwrap();
    assert!(longest <= LINE_LIMIT, "{longest}");
    println!("longest record {longest} bytes, {} records", lines_of(&log).len());
}

#[test]
fn every_flipped_bit_in_the_journal_is_detected() {
    let log = built().disk.raw_log(&here());
    for at in (0..log.len()).step_by(13) {
        for bit in [0, 3, 7] {
            let error = damage(|mut log| {
                log[at] ^= 1 << bit;
                log
            });
            let error = error.expect_err(&format!("byte {at} bit {bit}"));
            assert!(error.contains("damaged") && error.contains("byte"), "{error}");
        }
    }
}

#[test]
fn flipped_journal_bit_is_located() {
    let log = built().disk.raw_log(&here());
    let lines = lines_of(&log);
    let begin: usize = lines[..3].iter().map(Vec::len).sum();
    let error = damage(|mut log| {
        log[begin + 100] ^= 1;
        log
    });
    assert!(error.unwrap_err().contains(&format!("record 4 at byte {begin}")));
}

#[test]
fn missing_moved_and_repeated_records_are_detected() {
    let edit = |change: fn(&mut Vec<Vec<u8>>)| {
        damage(|log| {
            let mut lines = lines_of(&log);
            change(&mut lines);
            lines.concat()
        })
        .unwrap_err()
    };
    assert!(edit(|lines| drop(lines.remove(3))).contains("record 5 is in its place: records are missing"));
    assert!(edit(|lines| lines.swap(3, 4)).contains("out of order"));
    assert!(edit(|lines| lines.insert(3, lines[2].clone())).contains("written twice"));
    assert!(edit(|lines| lines.truncate(5)).contains("it is missing, and so is everything up to record"));
    assert!(edit(Vec::clear).contains("missing"));
}

#[test]
fn torn_last_record_is_truncated_and_reported() {
    let last = |log: &[u8]| lines_of(log).last().unwrap().len();
    for keep in [1, 40, 70, 200] {
        let world = built();
        // A run that was killed leaves no note of how far the journal went.
        let killed = textnlp_provider::memory::Fuse::blows_at(20);
        assert!(world.go(DOWN_WITH_DATA, &[], &killed).is_none());
        let mut log = world.disk.raw_log(&here());
        let len = log.len() - last(&log) + keep.min(last(&log) - 1);
        log.truncate(len);
        world.disk.set_raw_log(&here(), log);
        let arrival = world.up(&service());
        assert_eq!(arrival.mended.len(), 1, "{keep}");
        assert!(arrival.mended[0].contains("torn record"), "{:?}", arrival.mended);
        world.check(&service());
    }
}

#[test]
fn journal_of_a_later_format_is_left_alone() {
    let world = built();
    let document = json!({"format": 99, "anything": true});
    let lock = world.clock.run(world.disk.lock(&holder())).unwrap().unwrap();
    world.clock.run(world.disk.replace(&lock, "lineage.json", document.to_string().as_bytes())).unwrap().unwrap();
    drop(lock);
    let error = world.try_up(&service()).unwrap_err();
    let RunError::State(error) = error else { panic!("{error:?}") };
    assert!(matches!(error, StateError::Future { found: 99, .. }), "{error}");
}

#[test]
fn state_of_another_environment_or_lineage_is_refused() {
    let world = built();
    let other = EnvironmentName::new("production").unwrap();
    let load = |store: Arc<dyn Store>| world.clock.run(State::load(store, &other, Lineage(Uuid::nil()))).unwrap();
    assert!(matches!(load(Arc::new(world.disk.clone())), Err(StateError::OtherEnvironment { .. })));
    let strange = World::new();
    strange.plan(UP, &service()).unwrap();
    strange.plan(UP, &service()).unwrap();
    strange.up(&service());
    // The third proposal became the strange deployment's lineage; its journal is put among ours.
    world.disk.set_raw_log(&here(), strange.disk.raw_log(&here()));
    let lineage = world.clock.run(async {
        let lock = world.disk.lock(&holder()).await.unwrap();
        world.disk.replace(&lock, "journal/here/head.json", br#"{"n":0,"sum":"","len":0}"#).await.unwrap();
        State::load(Arc::new(world.disk.clone()), &environment(), Lineage(Uuid::nil())).await
    });
    let Some(Err(error)) = lineage else { panic!("it was read") };
    assert!(matches!(error, StateError::OtherLineage { .. } | StateError::DamagedBody { .. }), "{error}");
}

#[test]
fn full_disk_loses_no_state() {
    for room in (0..30_000).step_by(700) {
        let world = World::new();
        world.disk.room(Some(room));
        let result = world.try_up(&service());
        world.disk.room(None);
        if let Err(error) = &result {
            assert!(format!("{error:?}").contains("StorageFull"), "{error:?}");
        }
        world.up(&service());
        world.check(&service());
    }
}

#[test]
fn holder_that_lost_the_lock_cannot_write() {
    let world = built();
    let before = world.disk.raw_log(&here());
    let (first, second) = world
        .clock
        .run(async {
            let first = world.disk.lock(&holder()).await.unwrap();
            let stale = textnlp_orchestrator::state::Lock::for_life(first.fence, ());
            drop(first);
            let second = world.disk.lock(&holder()).await.unwrap();
            (stale, second)
        })
        .unwrap();
    assert!(second.fence > first.fence);
    let write = world.clock.run(world.disk.append(&first, &here(), &Default::default())).unwrap();
    assert!(matches!(write, Err(StateError::Fenced { .. })), "{write:?}");
    assert_eq!(world.disk.raw_log(&here()), before);
}

#[test]
fn entry_that_contradicts_the_journal_is_refused() {
    let world = built();
    let before = world.disk.raw_log(&here());
    let state = world.state();
    let refused = world
        .clock
        .run(async {
            let operator =
                Operator { by: "ada".into(), reason: None, tool: "test".into(), host: "here".into(), pid: 1 };
            let places = state.places().clone();
            let mut locked = state.lock(&operator, &places, Arc::new(world.clock.clone())).await.unwrap();
            let op = OperationId(7_000);
            let mut refused = Vec::new();
            let fine = |pen: &mut JournalWriter<'_>| {
                let plan = pen.body(&"a plan");
                pen.entry(Entry::Approved { purpose: Purpose::Up, plan, tracked: true });
            };
            let ended = locked
                .commit(&here(), |pen| {
                    fine(pen);
                    pen.entry(Entry::Ended { op, end: End::Gone });
                })
                .await;
            refused.push(ended);
            let again =
                locked.commit(&here(), |pen| pen.entry(Entry::Ended { op: OperationId(1), end: End::Gone })).await;
            refused.push(again);
            locked.commit(&here(), fine).await.unwrap();
            refused
        })
        .unwrap();
    for refused in &refused {
        assert!(matches!(refused, Err(StateError::Contradiction { .. })), "{refused:?}");
    }
    let after = world.disk.raw_log(&here());
    assert_eq!(lines_of(&after).len(), lines_of(&before).len() + 1, "the entry that fitted, and nothing else");
    world.check(&service());
}

fn holder() -> textnlp_orchestrator::state::Holder {
    textnlp_orchestrator::state::Holder {
        by: "grace".to_owned(),
        pid: 1,
        host: "here".to_owned(),
        since: "2026-01-01T00:00:00Z".parse().unwrap(),
        tool: "test".to_owned(),
    }
}

const SNAPSHOT: &str = "journal/here/snapshot.json";

/// So many resources that the journal is summed up.
fn many() -> Vec<textnlp_provider::Wanted> {
    (0..300).map(|number| want(&format!("r{number}"), "vault", json!({"number": number}))).collect()
}

#[test]
fn long_journal_gets_a_snapshot_that_is_only_a_cache() {
    let world = World::new();
    world.up(&many());
    let snapshot = world.disk.raw_document(SNAPSHOT).expect("a long journal is summed up");
    let holdings = world.state().holdings(&here()).unwrap();
    assert_eq!(holdings.len(), 300);
    // More is written after it.
    let more = with(many(), "r7", "number", json!(-1));
    world.up(&more);
    assert_eq!(
        world.disk.raw_document(SNAPSHOT).as_ref(),
        Some(&snapshot),
        "a few records are no reason to write it again"
    );
    let after = world.state().holdings(&here()).unwrap();
    assert_eq!(after[&id("here/r7")].current.as_ref().unwrap().spec.get("number"), Some(&json!(-1)));
    let flipped = |at: usize| {
        let mut bytes = snapshot.clone();
        bytes[at] ^= 1;
        Some(bytes)
    };
    let other = World::new();
    other.up(&with(many(), "r9", "number", json!(9000)));
    for useless in [
        None,
        Some(Vec::new()),
        Some(b"{}".to_vec()),
        flipped(3),
        flipped(64),
        flipped(snapshot.len() / 2),
        Some(snapshot[..snapshot.len() - 1].to_vec()),
        other.disk.raw_document(SNAPSHOT),
    ] {
        world.disk.set_raw_document(SNAPSHOT, useless);
        assert_eq!(world.state().holdings(&here()).unwrap(), after);
    }
    world.check(&more);
}

#[test]
fn journal_with_a_snapshot_is_still_verified_from_the_first_byte() {
    let world = World::new();
    world.up(&many());
    let log = world.disk.raw_log(&here());
    for at in (0..log.len()).step_by(997) {
        let mut bytes = log.clone();
        bytes[at] ^= 2;
        world.disk.set_raw_log(&here(), bytes);
        let error = world.try_up(&many()).expect_err(&format!("byte {at}"));
        assert!(matches!(error, RunError::State(StateError::Damaged { .. })), "byte {at}: {error:?}");
    }
    let (last, _) = log[..log.len() - 1].iter().enumerate().rfind(|(_, byte)| **byte == b'\n').unwrap();
    world.disk.set_raw_log(&here(), log[..=last].to_vec());
    let error = world.try_up(&many()).expect_err("a record is missing at the end");
    assert!(error.to_string().contains("state"), "{error}");
}
