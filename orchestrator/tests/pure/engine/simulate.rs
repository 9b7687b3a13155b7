//! Random programs: a random start, another wish, one operation, and everything that a cloud, a disk, a clock and other people do to
//! it meanwhile. Afterwards there is no orphan, no duplicate, no lost record, nothing of others was touched, and nobody was asked.
//!
//! `TEXTNLP_PROGRAMS=1000000 cargo test --release -p textnlp-orchestrator --test pure simulate -- --nocapture`; see [`crate::program`].

use jiff::SignedDuration;
use proptest::prelude::*;
use textnlp_orchestrator::plan::Purpose;
use textnlp_orchestrator::run::{RunError, RunOptions};
use textnlp_provider::Wanted;
use textnlp_provider::memory::Fuse;

use crate::program::{Operation, Setting, leaves_nothing, operation, run_all, setting};
use crate::world::*;

/// Everything that happens.
#[derive(Debug, Clone)]
struct Program {
    setting: Setting,
    operation: Operation,
    /// The boundaries at which one run after the other is killed.
    kills: Vec<u64>,
    /// How far the wall clock jumps between runs, in hours.
    jumps: Vec<i64>,
    /// At which boundary the way back to the start is killed, if it is gone at all.
    undo: Option<u64>,
    /// Removals wait for a gate; whether it is shut until the disturbances end.
    gate: Option<bool>,
}

fn program() -> impl Strategy<Value = Program> {
    let (kills, jumps) = (prop::collection::vec(0..120_u64, 0..4), prop::collection::vec(-50..50_i64, 0..3));
    let undo = prop::option::weighted(0.3, prop_oneof![0..120_u64, Just(u64::MAX)]);
    let before = (setting(), operation(), kills, jumps, undo);
    // Drawn last: what was found before there were gates keeps its seed.
    (before, prop::option::weighted(0.3, any::<bool>())).prop_map(|((setting, operation, kills, jumps, undo), gate)| {
        Program { setting, operation, kills, jumps, undo, gate }
    })
}

/// Programs that found a mistake once: what was made a moment ago was not waited for while a half-made one beside it was seen; a note
/// that waited for a removal was left in front of the gate; clusters that filled a network again which had to go before its
/// successor: one that was known by another's name, one that moved elsewhere, one that no record mentioned and that waited for the gate, one
/// that moved to a host that was not there yet and was taken for gone.
const SEEDS: &[u64] = &[713, 9606, 20620, 140353, 212294, 517914, 577015, 646187];

/// How many programs one run tries. Each commit begins at another seed.
const MANY: u64 = 3_500;

#[test]
fn simulated_faults_never_prevent_the_wanted_state() {
    run_all(SEEDS, MANY, program, run);
}

fn run(program: &Program) {
    let world = World::new();
    let setting = &program.setting;
    setting.begin(&world);
    let theirs = setting.disturb(&world);
    let ask = match (program.operation.ask(), program.gate) {
        (UP, Some(_)) => GATED,
        (ask, _) => ask,
    };
    let is_up = ask.purpose == Purpose::Up;
    let then = if is_up { setting.end() } else { Vec::new() };
    if program.gate == Some(true) {
        *world.gate.shut.lock().unwrap() = vec!["too slow".to_owned()];
    }
    let mut jumps = program.jumps.iter().cycle();
    for kill in program.kills.iter().copied().chain([u64::MAX]) {
        go(&world, ask, &then, &Fuse::blows_at(kill));
        if let Some(hours) = jumps.next() {
            world.clock.jump(SignedDuration::from_hours(*hours));
        }
    }
    setting.calm(&world, theirs);
    world.gate.shut.lock().unwrap().clear();
    // What was listed late was taken for gone, and is of no operation any more.
    world.converge(ask, &then);
    if is_up {
        world.check(&then);
    }
    if let Some(kill) = program.undo {
        let start = setting.start();
        go(&world, UP, &start, &Fuse::blows_at(kill));
        world.converge(UP, &start);
        world.check(&start);
    }
    leaves_nothing(&world);
}

/// A run that may be killed, and may be told that something stands in the way; nothing else may stop it.
fn go(world: &World, ask: RunOptions, wanted: &[Wanted], fuse: &Fuse) {
    match world.go(ask, wanted, fuse) {
        None => assert!(fuse.blown(), "it waits for ever"),
        Some(Ok(_) | Err(RunError::Refused(_) | RunError::Preflight(_))) => {}
        Some(Err(error)) => panic!("{error:?}"),
    }
}
