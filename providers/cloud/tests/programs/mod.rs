//! Random programs on a simulated cloud: an environment of any shape, a change of it, requests that fail, replies that are lost, and
//! a process that dies at any point of it. Afterwards everything is as wanted, and after `down` nothing of it is left.
//!
//! `TEXTNLP_PROGRAMS=10000 cargo test --release -p textnlp-aws --test aws random -- --nocapture`, and so for the other clouds.
#![allow(dead_code, reason = "no cloud uses all of it")]

pub(crate) mod engine;
pub(crate) mod failover;
pub(crate) mod shape;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use engine::{DOWN, Stack, UP};
use textnlp_orchestrator::run::{RunError, RunOptions};
use textnlp_provider::memory::Fuse;
use textnlp_provider::{Lineage, ResourceId, Wanted, error_chain};
use textnlp_sim::{Disruption, Exchange, FaultPlan, Outcome, Random};

use crate::seeds;

/// The variable with the number of programs.
const COUNT: &str = "TEXTNLP_PROGRAMS";

/// Numbers of a seed.
pub(crate) struct Draw(pub(crate) Random);

impl Draw {
    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.0.number() % bound
    }

    pub(crate) fn chance(&self, probability: f64) -> bool {
        self.0.fraction() < probability
    }

    pub(crate) fn one<T: Copy>(&self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// The simulated cloud of a program.
pub(crate) trait World {
    /// What goes wrong with its requests.
    fn faults(&self) -> MutexGuard<'_, FaultPlan>;

    /// What may go wrong with a request.
    fn disruptions(&self) -> Vec<Disruption> {
        vec![
            Disruption::Throttled,
            Disruption::Internal,
            Disruption::Unavailable,
            Disruption::LostRequest,
            Disruption::LostReply,
            Disruption::Reset,
        ]
    }

    fn requests(&self) -> Vec<Exchange>;

    /// Everything that has tags, by its id, the latest ones too.
    fn tags(&self) -> BTreeMap<String, BTreeMap<String, String>>;

    /// What is kept or shown for a while after its deletion.
    fn is_kept(&self, id: &str) -> bool;

    /// Whether the machines that a program lacks are to be had.
    fn capacity(&self, _is_there: bool) {}

    /// Lets time pass until what is kept after its deletion is gone.
    fn wait(&self);
}

/// What happens to the runs of an environment.
#[derive(Debug)]
pub(crate) struct Program {
    /// The boundaries at which one run after the other is killed, first of the first `up`.
    kills: [Vec<u64>; 3],
    /// The chance of a fault, in thousandths.
    faults: u64,
}

impl Program {
    pub(crate) fn of(draw: &Draw) -> Self {
        let kills = |_| {
            let length = draw.one(&[15_u64, 60, 300, 900]);
            (0..draw.below(3)).map(|_| draw.below(length)).collect()
        };
        Self { kills: [0, 1, 2].map(kills), faults: draw.one(&[0, 5, 20, 50]) }
    }

    fn disturb(&self, world: &impl World, seed: u64) {
        let chance = self.faults as f64 / 1000.0;
        let all = world.disruptions();
        let each = chance / all.len() as f64;
        world.faults().by_chance(seed, all.into_iter().map(|fault| (each, fault)).collect());
    }

    /// Creates an environment, changes it, and removes it; `check` follows each `up` that reached what is wanted.
    pub(crate) fn play(
        &self,
        world: &impl World,
        ours: &Stack<'_>,
        [first, then]: [&[Wanted]; 2],
        seed: u64,
        counts: &Counts,
        check: impl Fn(&[Wanted]),
    ) {
        let [of_first, of_then, of_down] = &self.kills;
        world.capacity(false);
        for (wanted, kills, seed) in [(first, of_first, seed), (then, of_then, seed ^ 1)] {
            self.disturb(world, seed);
            let runs = kills.iter().copied().chain([u64::MAX]);
            let is_done = runs.fold(false, |_, kill| go(ours, UP, wanted, kill, counts)) && self.faults == 0;
            world.faults().clear();
            world.capacity(true);
            let _ = is_done || settles(ours, wanted, counts);
            is_as_wanted(world, ours, wanted);
            check(wanted);
        }
        self.disturb(world, seed ^ 2);
        for kill in of_down.iter().copied().chain([u64::MAX]) {
            go(ours, DOWN, &[], kill, counts);
        }
        world.faults().clear();
        if !(0..2).any(|_| go(ours, DOWN, &[], u64::MAX, counts)) {
            ours.reach(DOWN, &[]);
        }
        assert_eq!(ours.recorded(), [], "a record of nothing");
        world.wait();
        let requests = world.requests();
        let is_faulty = |one: &&Exchange| one.is_lost || one.outcome != Outcome::Succeeded;
        counts.requests.fetch_add(requests.len(), Ordering::Relaxed);
        counts.refused.fetch_add(requests.iter().filter(is_faulty).count(), Ordering::Relaxed);
    }
}

/// What happened in all programs.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    requests: AtomicUsize,
    /// Requests that failed or whose answer was lost.
    refused: AtomicUsize,
    killed: AtomicUsize,
}

/// Whether an environment is there after a few runs: what was left open is finished, what was left broken is replaced, and a maybe that
/// turned into more is planned again. The time of a cloud passes with requests only, so what takes minutes there may take several runs.
pub(crate) fn settles(stack: &Stack<'_>, wanted: &[Wanted], counts: &Counts) -> bool {
    (0..5).any(|_| go(stack, UP, wanted, u64::MAX, counts))
}

/// Whether a run did everything. It may be killed, or refused by its plan or by preflight; any other error fails the test.
fn go(stack: &Stack<'_>, ask: RunOptions, wanted: &[Wanted], kill: u64, counts: &Counts) -> bool {
    match stack.go(ask, wanted, &Fuse::blows_at(kill)) {
        None => drop(counts.killed.fetch_add(1, Ordering::Relaxed)),
        Some(Ok(outcome)) => return outcome.is_complete(),
        Some(Err(RunError::Refused(_) | RunError::Preflight(_))) => {}
        Some(Err(error)) => panic!("{}", error_chain(&error)),
    }
    false
}

/// The ids of what has tags of a deployment, by resource.
pub(crate) fn tagged(tags: &BTreeMap<String, BTreeMap<String, String>>, lineage: Lineage) -> BTreeMap<&str, Vec<&str>> {
    let mut by_resource: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (id, tags) in tags {
        if let Some(resource) = of_lineage(tags, lineage) {
            by_resource.entry(resource).or_default().push(id);
        }
    }
    by_resource
}

/// Everything that is wanted is there, once, and recorded; and another run plans nothing.
fn is_as_wanted(world: &impl World, stack: &Stack<'_>, wanted: &[Wanted]) {
    let plan = stack.reach(UP, wanted);
    assert!(plan.steps.is_empty(), "another run plans {:#?}", plan.steps);
    let recorded: BTreeMap<String, String> =
        stack.recorded().iter().map(|one| (one.id.to_string(), one.cloud_id.to_string())).collect();
    let ids: Vec<&str> = recorded.keys().map(String::as_str).collect();
    let mut names: Vec<&str> = wanted.iter().map(|one| one.id.as_str()).collect();
    names.sort_unstable();
    assert_eq!(ids, names, "records");
    for (resource, mut found) in tagged(&world.tags(), stack.lineage()) {
        // A key that was replaced is there beside the new one.
        found.retain(|id| {
            !world.is_kept(id) || recorded.get(resource).is_some_and(|recorded| id.contains(recorded.as_str()))
        });
        assert!(found.is_empty() || recorded.contains_key(resource), "nobody knows of {found:?} of {resource}");
        assert!(found.len() < 2, "{resource} is there more than once: {found:?}");
    }
}

/// Takes out whatever needs something that is not there.
pub(crate) fn close(mut all: Vec<Wanted>) -> Vec<Wanted> {
    loop {
        let ids: Vec<ResourceId> = all.iter().map(|one| one.id.clone()).collect();
        all.retain(|one| one.needs.iter().all(|need| ids.contains(&need.on)));
        if all.len() == ids.len() {
            return all;
        }
    }
}

/// A tag of a resource, if it is this deployment's.
pub(crate) fn of_lineage(tags: &BTreeMap<String, String>, lineage: Lineage) -> Option<&str> {
    let is_ours = tags.get("textnlp-lineage").is_some_and(|text| *text == lineage.to_string());
    if is_ours { tags.get("textnlp-resource").map(String::as_str) } else { None }
}

/// What this thread has computed: a simulator has threads of its own.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or_default())
}

/// Creates a whole environment, plans it from its records, and observes it, which takes at most this many requests. The times are
/// printed. `fewer` is the same environment with less in it.
pub(crate) fn measure(
    requests: impl Fn() -> Vec<Exchange>,
    stack: &Stack<'_>,
    wanted: &[Wanted],
    fewer: &[Wanted],
    most: usize,
) {
    let (start, spent) = (Instant::now(), cpu());
    stack.reach(UP, wanted);
    let before = requests().len();
    let (wall, spent) = (start.elapsed(), cpu() - spent);
    println!("{} objects made with {before} requests in {wall:?}, of which {spent:?} are ours", wanted.len());
    let start = Instant::now();
    let plan = stack.plan_without_refresh(UP, wanted);
    println!("planned from the records in {:?}", start.elapsed());
    assert!(plan.steps.is_empty() && requests().len() == before, "{:#?}", plan.steps);
    let fewer = stack.plan_without_refresh(UP, fewer);
    assert!(fewer.has_changes(), "{:#?}", fewer.blocked);
    let (plan, _) = stack.look(UP, wanted);
    assert!(plan.steps.is_empty(), "{:#?}", plan.steps);
    let requests = requests().split_off(before);
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for one in &requests {
        *counts.entry(format!("{}:{}", one.service, one.operation)).or_default() += 1;
    }
    println!("{} requests observe {} objects: {counts:#?}", requests.len(), wanted.len());
    assert!(requests.len() <= most, "{} requests: {counts:#?}", requests.len());
}

/// Plays programs on all processors, `many` unless [`COUNT`] says how many, and those of `known` seeds.
pub(crate) fn all<S: Debug + Sync>(many: u64, known: &[u64], of: fn(u64) -> S, play: fn(&S, u64, &Counts)) {
    let (count, from) = (seeds::number(COUNT), seeds::first_seed());
    let many = count.unwrap_or(many);
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let counts = Counts::default();
    let known = if count.is_some() { &[][..] } else { known };
    let seeds: Vec<u64> = known.iter().copied().chain((0..many).map(|number| from.wrapping_add(number))).collect();
    let work = || {
        while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
            let story = of(*seed);
            if catch_unwind(AssertUnwindSafe(|| play(&story, *seed, &counts))).is_err() {
                println!("seed {seed}: {story:?}\nto repeat: {}", seeds::repeat(*seed, COUNT));
                failures.lock().unwrap().push(*seed);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let failures = failures.into_inner().unwrap();
    println!("{many} programs from seed {from}, {} failed: {counts:?}", failures.len());
    assert!(failures.is_empty(), "{many} programs from seed {from}; failed: {failures:?}");
}
