//! Random worlds for the programs of `simulate` and of the two operators in `tests/stores/operators.rs`: a start, another wish, and what
//! clouds and other people do meanwhile; and how programs are run by their seeds.
//!
//! `TEXTNLP_PROGRAMS=1000000 TEXTNLP_TESTS_SEED=5000000` sets how many programs run and the first seed. A
//! program that fails is made smaller and printed with the command that repeats it; the others go on.

use std::cell::{Cell, RefCell};
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use serde_json::json;
use textnlp_orchestrator::run::RunOptions;
use textnlp_provider::memory::{Drift, Fault, FaultEffect, Stage, StoredObject};
use textnlp_provider::{CloudId, ErrorKind, KindName, Lineage, Spec, Wanted};
use uuid::Uuid;

use crate::seeds;
use crate::world::*;

const KINDS: &[&str] = &["network", "cluster", "vault", "bucket", "model", "database", "cache", "server", "gateway"];

#[derive(Debug, Clone)]
pub struct Wish {
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
        // What a cluster's controllers make is in its network.
        if kind == "cluster"
            && let Some(network) = (0..place).rev().find(|near| there(near, place) && KINDS[kinds[*near]] == "network")
        {
            spec["network"] = output(&format!("r{network}"), "id");
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

#[derive(Debug, Clone)]
pub struct Trouble {
    go: FaultEffect,
    stage: Stage,
    place: usize,
    times: u32,
}

#[derive(Debug, Clone, Copy)]
pub enum Change {
    Removed,
    Changed,
    Degraded,
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let go = prop_oneof![
        Just(FaultEffect::LostReply),
        Just(FaultEffect::LostRequest),
        Just(FaultEffect::Throttle(Some(Duration::from_secs(3)))),
        Just(FaultEffect::Throttle(None)),
        Just(FaultEffect::Refuse(ErrorKind::Conflict)),
        Just(FaultEffect::Refuse(ErrorKind::Capacity)),
        Just(FaultEffect::Refuse(ErrorKind::Quota)),
        Just(FaultEffect::Refuse(ErrorKind::Denied)),
        Just(FaultEffect::Refuse(ErrorKind::Unavailable)),
        Just(FaultEffect::FailLeaving),
        Just(FaultEffect::Fail(ErrorKind::Invalid)),
        Just(FaultEffect::Fail(ErrorKind::Capacity)),
    ];
    let stage = prop_oneof![Just(Stage::Begin), Just(Stage::Advance), Just(Stage::Any)];
    (go, stage, 0..PLACES, 1..12_u32).prop_map(|(go, stage, place, times)| Trouble { go, stage, place, times })
}

/// How many resources a world may have.
pub const PLACES: usize = 8;

/// A world that something happens in.
#[derive(Debug, Clone)]
pub struct Setting {
    kinds: Vec<usize>,
    first: Vec<Wish>,
    then: Vec<Wish>,
    faults: Vec<Trouble>,
    /// What others do before (at call 0) and while the operation runs.
    drifts: Vec<(usize, usize, Change)>,
    /// What lists do not show.
    hidden: Vec<usize>,
    /// Whole lists that fail.
    blind: u32,
    /// Observations that new objects miss, and that show changed ones as they were.
    lag: u32,
    stale: u32,
    slow: u32,
    /// Somebody else's object stands under this name.
    foreign: Option<usize>,
    /// Clusters whose controllers make an object, after so many calls.
    children: Vec<(usize, usize)>,
    /// Somebody else's object is put inside this one.
    guest: Option<usize>,
}

pub fn setting() -> impl Strategy<Value = Setting> {
    let change = prop_oneof![Just(Change::Removed), Just(Change::Changed), Just(Change::Degraded)];
    let wishes = || prop::collection::vec(wish(), PLACES);
    let world = (
        prop::collection::vec(prop_oneof![2 => Just(0), 3 => Just(1), 9 => 0..KINDS.len()], PLACES),
        wishes(),
        wishes(),
        prop::collection::vec(trouble(), 0..5),
        prop::collection::vec((0..12_usize, 0..PLACES, change), 0..4),
    );
    let seen = (
        prop::collection::vec(0..PLACES, 0..2),
        prop_oneof![4 => Just(0_u32), 1 => 1..3_u32],
        prop_oneof![2 => Just(0_u32), 1 => 1..4_u32],
        prop_oneof![2 => Just(0_u32), 1 => 1..4_u32],
        0..4_u32,
        prop::option::weighted(0.15, 0..PLACES),
    );
    let inside = (prop::collection::vec((0..12_usize, 0..PLACES), 0..4), prop::option::weighted(0.1, 0..PLACES));
    (world, seen, inside).prop_map(|(world, seen, (children, guest))| {
        let (kinds, first, then, faults, drifts) = world;
        let (hidden, blind, lag, stale, slow, foreign) = seen;
        Setting { kinds, first, then, faults, drifts, hidden, blind, lag, stale, slow, foreign, children, guest }
    })
}

/// Somebody else's object, as it was put there.
pub struct Theirs(StoredObject);

impl Setting {
    /// What is there at first.
    pub fn start(&self) -> Vec<Wanted> {
        wanted(&self.kinds, &self.first)
    }

    /// What is wanted then.
    pub fn end(&self) -> Vec<Wanted> {
        wanted(&self.kinds, &self.then)
    }

    /// The world at first: everything works and is as wished.
    pub fn begin(&self, world: &World) {
        world.cloud.slow(self.slow);
        let start = self.start();
        world.up(&start);
        world.check(&start);
    }

    /// Lets happen from now on whatever happens.
    pub fn disturb(&self, world: &World) -> Vec<Theirs> {
        let theirs = self.theirs(world);
        world.cloud.show_after(self.lag);
        world.cloud.stale_for(self.stale);
        self.hidden.iter().for_each(|number| world.cloud.hide(&place(*number)));
        world.cloud.blind_for(self.blind);
        for (calls, number, change) in &self.drifts {
            let drift = match change {
                Change::Removed => Drift::Removed,
                Change::Changed => Drift::Changed("revision".to_owned(), json!(99)),
                Change::Degraded => Drift::Degraded("it lost its disk".to_owned()),
            };
            world.cloud.drift_after(*calls, &place(*number), drift);
        }
        for (calls, number) in &self.children {
            world.cloud.drift_after(*calls, &place(*number), Drift::Child);
        }
        for Trouble { go, stage, place: number, times } in &self.faults {
            world.cloud.inject(Fault::once(go.clone()).on(&place(*number)).stage(*stage).times(*times));
        }
        theirs
    }

    /// Everything works again, and what is somebody else's is as it was and goes away.
    pub fn calm(&self, world: &World, theirs: Vec<Theirs>) {
        for Theirs(theirs) in theirs {
            let there = world.cloud.things().into_iter().any(|thing| thing == theirs);
            assert!(there, "somebody else's object was touched: {theirs:?}");
            world.cloud.remove_foreign(&theirs.cloud_id);
        }
        world.cloud.heal();
    }

    /// Somebody else's objects: under a name that one of ours would have, if that kind goes by names and none of ours is there; and
    /// inside of one of ours.
    fn theirs(&self, world: &World) -> Vec<Theirs> {
        let mut names = Vec::new();
        if let Some(number) = self.foreign {
            let kind = KINDS[self.kinds[number]];
            let name = CloudId::new(format!("memory://staging/here/r{number}")).unwrap();
            let free = world.cloud.things().iter().all(|thing| thing.cloud_id != name);
            if ["vault", "database", "gateway"].contains(&kind) && free {
                let (kind, spec) = (KindName::new(format!("memory.{kind}")).unwrap(), json!({"theirs": true}));
                world.cloud.place_foreign(&kind, &name, Some(Lineage(Uuid::from_u128(99))), Spec::of(&spec));
                names.push(name);
            }
        }
        let guest = CloudId::new("guest").unwrap();
        if self.guest.is_some_and(|number| world.cloud.place_guest(&place(number), &guest)) {
            names.push(guest);
        }
        world.cloud.things().into_iter().filter(|thing| names.contains(&thing.cloud_id)).map(Theirs).collect()
    }
}

/// Everything of ours can be removed, and then nothing is left: no object, no record, nothing that the cloud complains of.
pub fn leaves_nothing(world: &World) {
    world.delete_unproven(DOWN_WITH_DATA, &[]);
    let down = world.down(DOWN_WITH_DATA);
    assert!(down.is_complete(), "{:#?}", down.outcome);
    assert!(world.cloud.things().is_empty(), "an orphan: {:#?}", world.cloud.things());
    assert!(world.state().holdings(&here()).unwrap().is_empty(), "a record of nothing");
    assert_eq!(world.cloud.complaints(), [""; 0]);
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operation {
    Up,
    Down,
    /// What holds data goes as well.
    DownWithData,
}

impl Operation {
    pub fn ask(self) -> RunOptions {
        match self {
            Self::Up => UP,
            Self::Down => DOWN,
            Self::DownWithData => DOWN_WITH_DATA,
        }
    }
}

pub fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => Just(Operation::Up),
        1 => Just(Operation::Down),
        2 => Just(Operation::DownWithData),
    ]
}

fn place(number: usize) -> textnlp_provider::ResourceId {
    id(&format!("here/r{number}"))
}

/// Runs programs by their seeds: those that found a mistake once, then `many` on all cores. All are run before the failures are told.
pub fn run_all<S: Strategy>(known: &[u64], many: u64, programs: impl Fn() -> S + Sync, run: impl Fn(&S::Value) + Sync)
where
    S::Value: Debug,
{
    /// The variable with the number of programs.
    const COUNT: &str = "TEXTNLP_PROGRAMS";
    /// Progress is told after so many.
    const TELL: u64 = 10_000;
    let one = |seed: u64| try_seed(seed, &programs(), &run);
    let (many, from) = (seeds::number(COUNT).unwrap_or(many), seeds::first_seed());
    let (next, failures) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let try_one = |seed: u64| {
        if let Err(why) = one(seed) {
            println!("{why}");
            failures.lock().unwrap().push((seed, why));
        }
    };
    known.iter().copied().for_each(try_one);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= many {
                        return;
                    }
                    if number > 0 && number.is_multiple_of(TELL) {
                        println!("{number} of {many} programs, {} failed", failures.lock().unwrap().len());
                    }
                    try_one(from.wrapping_add(number));
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    println!("{many} programs from seed {from}, {} failed", failures.len());
    let failures: Vec<String> =
        failures.iter().map(|(seed, why)| format!("{why}\nto repeat: {}", seeds::repeat(*seed, COUNT))).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

/// Making a failing program smaller fails a thousand times: only where the smallest one failed is worth reading.
fn keep_failures_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match QUIET.get() {
            true => LAST.set(info.location().map(ToString::to_string).unwrap_or_default()),
            false => tell(info),
        }));
    });
    QUIET.set(true);
}

thread_local! {
    /// Whether this thread runs programs.
    static QUIET: Cell<bool> = const { Cell::new(false) };
    /// Where the last one failed.
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs the program of a seed; says what is wrong, with the smallest program that shows it.
fn try_seed<S: Strategy>(seed: u64, programs: &S, run: impl Fn(&S::Value)) -> Result<(), String>
where
    S::Value: Debug,
{
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases: 1, failure_persistence: None, max_shrink_iters: 3000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    keep_failures_quiet();
    let result = runner.run(programs, |program| {
        run(&program);
        Ok(())
    });
    QUIET.set(false);
    result.map_err(|error| match error {
        TestError::Fail(why, smallest) => {
            let place = LAST.take();
            format!("seed {seed}: {why} at {place}\n{smallest:?}")
        }
        TestError::Abort(why) => format!("seed {seed}: {why}"),
    })
}
