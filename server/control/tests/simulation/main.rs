//! Many sites, faults of every kind, virtual time: no split brain, nothing acknowledged is lost, no flapping.
//!
//! `TEXTNLP_SCHEDULES=1000000 cargo test --release -p textnlp-control --test simulation` runs more schedules than the usual 5,000;
//! `TEXTNLP_TESTS_SEED=500000` sets the first seed. With `TEXTNLP_SCHEDULES=1` each event is printed.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod random;
#[path = "../../../../tests/src/seeds.rs"]
#[allow(unreachable_pub)]
mod seeds;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use random::Random;
use world::{Fault, SITES, World};

/// The variable with the number of schedules.
const COUNT: &str = "TEXTNLP_SCHEDULES";

fn schedules() -> u64 {
    seeds::number(COUNT).unwrap_or(5_000)
}

/// Runs seeds on all cores; the first that fails is named.
fn all(schedules: u64, one: impl Fn(u64, bool) -> Result<(), String> + Sync) {
    let (first, schedules) = (seeds::first_seed(), schedules.max(1));
    let next = AtomicU64::new(0);
    let failed = std::sync::Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= schedules || failed.lock().unwrap().is_some() {
                        return;
                    }
                    let seed = first.wrapping_add(number);
                    if let Err(why) = one(seed, schedules == 1) {
                        *failed.lock().unwrap() = Some((seed, why));
                    }
                }
            });
        }
    });
    if let Some((seed, why)) = failed.into_inner().unwrap() {
        panic!("seed {seed}: {why}\nto repeat: {}", seeds::repeat(seed, COUNT));
    }
}

/// Schedules that once found something: here or in what is checked.
const SEEDS: [u64; 1] = [772_234];

#[test]
fn simulated_faults_keep_one_writer_and_lose_no_acknowledged_write() {
    for seed in SEEDS {
        schedule(seed, false, false).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    all(schedules(), |seed, told| schedule(seed, false, told));
}

/// The same, where one site suffices. 3868253512: the witness had added a site of whose membership the primary, which stood still, did
/// not know, and both could write.
const SEEDS_OF_ONE: [u64; 1] = [3_868_253_512];

#[test]
fn one_site_quorum_keeps_the_invariants_while_its_disk_survives() {
    for seed in SEEDS_OF_ONE {
        schedule(seed, true, false).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    all(schedules() / 4, |seed, told| schedule(seed, true, told));
}

#[test]
fn isolated_site_continues_only_where_one_site_suffices() {
    all(schedules().min(200), |seed, told| {
        for sole in [true, false] {
            let mut random = Random::new(seed);
            let mut world = World::new(&mut random, (1000, 3000), sole, told);
            world.be_calm();
            world.run_for(20_000)?;
            // The home site with all but one, then that one's turn is over too.
            for lost in [0, 1] {
                world.begin(&Fault::Down(lost));
                world.run_for(20_000)?;
            }
            let before = world.acknowledged();
            world.run_for(10_000)?;
            if (world.acknowledged() > before) != sole {
                return Err(format!(
                    "alone, with one enough: {sole}, it acknowledged {}",
                    world.acknowledged() - before
                ));
            }
            world.heal();
            world.run_for(60_000)?;
            world.expect_whole()?;
        }
        Ok(())
    });
}

fn schedule(seed: u64, sole: bool, told: bool) -> Result<(), String> {
    let mut random = Random::new(seed);
    let mut world = World::new(&mut random, (1000, 3000), sole, told);
    world.run_for(8_000)?;
    for _ in 0..random.below(12) + 1 {
        world.strike(&mut random);
        world.run_for(random.below(5_000))?;
    }
    world.heal();
    world.run_for(40_000)?;
    world.expect_whole()
}

#[test]
fn planned_failover_holds_through_crashes_until_a_failback() {
    all(schedules().min(200), |seed, told| {
        let mut random = Random::new(seed);
        let mut world = World::new(&mut random, (1000, 3000), false, told);
        let expect = |world: &World, primary: usize, held: bool, when: &str| {
            let found = (world.primary(), world.held());
            let wanted = (Some(primary), (held, true));
            (found == wanted).then_some(()).ok_or_else(|| format!("{when}: {found:?} instead of {wanted:?}"))
        };
        world.be_calm();
        world.run_for(30_000)?;
        world.hand_over(1)?;
        world.run_for(10_000)?;
        expect(&world, 1, true, "after a planned failover")?;
        // The witness and all sites, short enough that no site takes over.
        for node in 0..=SITES {
            world.begin(&Fault::Down(node));
            world.run_for(1 + random.below(500))?;
            world.end(&Fault::Down(node));
            world.run_for(10_000)?;
        }
        world.run_for(60_000)?;
        expect(&world, 1, true, "after crashes")?;
        // To another site than home it still holds; and the lost primary is replaced without a command.
        world.hand_over(2)?;
        world.run_for(10_000)?;
        world.begin(&Fault::Down(0));
        world.run_for(20_000)?;
        world.begin(&Fault::Down(2));
        world.run_for(20_000)?;
        if (world.primary(), world.held().0) != (Some(1), true) {
            return Err(format!("after a lost primary: {:?} {:?}", world.primary(), world.held()));
        }
        world.heal();
        world.run_for(60_000)?;
        expect(&world, 1, true, "after a lost primary")?;
        world.hand_over(0)?;
        world.run_for(10_000)?;
        expect(&world, 0, false, "after a failback")?;
        // There is an automatic failback after what is no planned failover.
        world.begin(&Fault::Down(0));
        world.run_for(20_000)?;
        world.end(&Fault::Down(0));
        world.run_for(60_000)?;
        expect(&world, 0, false, "after a lost home site")?;
        // Where home takes over itself, nothing holds any more; at another site it does.
        world.hand_over(2)?;
        world.run_for(10_000)?;
        world.begin(&Fault::Down(2));
        world.run_for(20_000)?;
        if ![(Some(0), false), (Some(1), true)].contains(&(world.primary(), world.held().0)) {
            return Err(format!("after the loss of a held primary: {:?} {:?}", world.primary(), world.held()));
        }
        world.heal();
        world.run_for(60_000)?;
        if world.primary() == Some(1) {
            world.hand_over(0)?;
            world.run_for(10_000)?;
        }
        world.expect_whole()
    });
}

#[test]
fn short_outage_moves_no_primary_and_a_long_one_always_does() {
    all(schedules() / 10, |seed, told| {
        let mut random = Random::new(seed ^ 0x5eed);
        let mut world = World::new(&mut random, (10_000, 30_000), false, told);
        world.be_calm();
        world.run_for(90_000)?;
        let before = world.primary();
        if before != Some(0) {
            return Err(format!("{before:?} is primary before anything happened"));
        }
        for _ in 0..3 {
            let fault = Fault::of_primary(&mut random, 0);
            world.begin(&fault);
            world.run_for(1 + random.below(20_000))?;
            world.end(&fault);
            // Blips do not add up.
            world.run_for(40_000 + random.below(40_000))?;
            if world.changes_of_primary() > 0 {
                return Err(format!("a blip moved the primary: {fault:?}"));
            }
        }
        let fault = Fault::that_takes_the_primary_away(&mut random, 0);
        world.begin(&fault);
        world.run_for(45_000)?;
        if world.primary() == Some(0) {
            return Err(format!("45 s without the primary moved nothing: {fault:?}"));
        }
        world.end(&fault);
        // There is an automatic failback, once.
        world.run_for(400_000)?;
        match (world.primary(), world.changes_of_primary()) {
            (Some(0), 2) => world.expect_whole(),
            other => Err(format!("after {fault:?} it did not come home once: {other:?}")),
        }
    });
}
