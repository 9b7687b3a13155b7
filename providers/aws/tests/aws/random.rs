//! Random programs: an environment of any shape, a change of it, requests that fail, replies that are lost, and a process that dies at
//! any point of it. Afterwards everything is as wanted; after `down` nothing of it is left, and what belongs to others is as it was.
//!
//! `TEXTNLP_PROGRAMS=10000 cargo test --release -p textnlp-aws --test aws random -- --nocapture`.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use textnlp_orchestrator::run::{RunError, RunOptions};
use textnlp_provider::memory::Fuse;
use textnlp_provider::{Wanted, error_chain};
use textnlp_sim::{Disruption, Exchange, Fault, Market, Options, Outcome, Random, Timing};

use crate::engine::{Account, DOWN, Stack, UP, of_lineage};
use crate::shape::{Draw, Shape};
use crate::{REGION, seeds};

/// How many programs one run tries: two minutes of one core. Each commit begins at another seed.
const MANY: u64 = 120;
/// The variable with the number of programs.
const COUNT: &str = "TEXTNLP_PROGRAMS";
/// Programs that found a mistake once.
const SEEDS: &[u64] = &[];

/// Everything that happens.
#[derive(Debug)]
struct Story {
    first: Shape,
    then: Shape,
    others: Option<Shape>,
    /// The boundaries at which one run after the other is killed, first of the first `up`.
    kills: [Vec<u64>; 3],
    /// The chance of each fault, in thousandths.
    faults: u64,
    /// When new objects are listed, in seconds; `None` is at the next request, and what takes time is done by then.
    consistency: Option<u64>,
    /// No GPU machine of this market is to be had.
    exhausted: Option<Market>,
}

impl Story {
    fn of(seed: u64) -> Self {
        let draw = Draw(Random::new(seed));
        let first = Shape::of(&draw);
        let then = first.changed(&draw);
        let kills = |_| {
            let length = draw.one(&[15_u64, 60, 300, 900]);
            (0..draw.below(3)).map(|_| draw.below(length)).collect()
        };
        let kills = [0, 1, 2].map(kills);
        let mut others = draw.chance(0.25).then(|| Shape::of(&draw));
        if let Some(others) = &mut others {
            (others.cluster, others.database) = (false, false);
            // Unconfirmed subscriptions expire while a story takes days.
            others.receivers = &[];
        }
        Self {
            first,
            then,
            others,
            kills,
            faults: draw.one(&[0, 5, 20, 50]),
            consistency: draw.chance(0.15).then(|| draw.below(40)),
            exhausted: draw.chance(0.15).then(|| draw.one(&[Market::Spot, Market::OnDemand])),
        }
    }

    fn disturb(&self, account: &Account, seed: u64) {
        let chance = self.faults as f64 / 1000.0;
        let short = Fault::new("RequestLimitExceeded", "Request limit exceeded.").status(503);
        let faults = [
            Disruption::Throttled,
            Disruption::Internal,
            Disruption::Unavailable,
            Disruption::LostRequest,
            Disruption::LostReply,
            Disruption::Reset,
            Disruption::Refused(short),
        ];
        let chances = faults.map(|fault| (chance / 7.0, fault)).to_vec();
        account.simulator.faults().by_chance(seed, chances);
    }

    fn capacity(&self, account: &Account, count: u64) {
        let Some(market) = self.exhausted else { return };
        let mut world = account.simulator.world();
        for zone in ["a", "b", "c"] {
            for machine in ["g4dn.xlarge", "g5.xlarge", "g6.xlarge"] {
                world.capacity.set(&format!("{REGION}{zone}"), machine, market, count);
            }
        }
    }

    fn play(&self, seed: u64, counts: &Counts) {
        let timing = match self.consistency {
            Some(seconds) => Timing { consistency: Duration::from_secs(seconds), ..Timing::default() },
            None => Timing { zero_latency: true, ..Timing::default() },
        };
        let account = Account::new(Options { seed, timing, ..Options::default() });
        let other_process = account.again();
        let theirs = Stack::new(&other_process, "theirs", 7);
        let their_wanted = self.others.as_ref().map(|shape| shape.wanted(&account, "theirs"));
        if let Some(wanted) = &their_wanted {
            theirs.reach(UP, wanted);
        }
        let before = (account.tags(), account.records());
        let ours = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0000 + u128::from(seed));

        let (first, then) = (self.first.wanted(&account, "staging"), self.then.wanted(&account, "staging"));
        let [of_first, of_then, of_down] = &self.kills;
        self.capacity(&account, 0);
        for (wanted, kills, seed) in [(&first, of_first, seed), (&then, of_then, seed ^ 1)] {
            self.disturb(&account, seed);
            let runs = kills.iter().copied().chain([u64::MAX]);
            let is_done = runs.fold(false, |_, kill| go(&ours, UP, wanted, kill, counts)) && self.faults == 0;
            account.simulator.faults().clear();
            self.capacity(&account, 1_000);
            // What was left open is finished, what was left broken is replaced, and a maybe that turned into more is planned anew.
            let _ = is_done || (0..3).any(|_| go(&ours, UP, wanted, u64::MAX, counts));
            is_as_wanted(&account, &ours, wanted);
        }
        self.disturb(&account, seed ^ 2);
        for kill in of_down.iter().copied().chain([u64::MAX]) {
            go(&ours, DOWN, &[], kill, counts);
        }
        account.simulator.faults().clear();
        if !(0..2).any(|_| go(&ours, DOWN, &[], u64::MAX, counts)) {
            ours.reach(DOWN, &[]);
        }
        assert_eq!(ours.recorded(), [], "a record of nothing");
        // Keys and secrets are kept for up to thirty days.
        account.simulator.advance(Duration::from_secs(40 * 86_400));
        let mut after = account.tags();
        // The last snapshot of a server whose data was protected is what `down` keeps.
        after.retain(|arn, _| !arn.contains(":snapshot:"));
        let orphans: Vec<&String> = after.keys().filter(|arn| !before.0.contains_key(*arn)).collect();
        assert!(orphans.is_empty(), "orphans: {orphans:#?}");
        assert_eq!(before, (after, account.records()), "what belongs to others was touched, or DNS records are left");
        if let Some(wanted) = &their_wanted {
            let (plan, _) = theirs.look(UP, wanted);
            assert!(plan.steps.is_empty() && plan.blocked.is_empty(), "what belongs to others changed: {plan:#?}");
        }
        let requests = account.simulator.requests();
        let is_faulty = |one: &&Exchange| one.is_lost || one.outcome != Outcome::Succeeded;
        counts.requests.fetch_add(requests.len(), Ordering::Relaxed);
        counts.refused.fetch_add(requests.iter().filter(is_faulty).count(), Ordering::Relaxed);
    }
}

/// What happened in all programs.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicUsize,
    /// Requests that failed or whose answer was lost.
    refused: AtomicUsize,
    killed: AtomicUsize,
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

/// Everything that is wanted is there, once, and recorded; and another run plans nothing.
fn is_as_wanted(account: &Account, stack: &Stack<'_>, wanted: &[Wanted]) {
    let plan = stack.reach(UP, wanted);
    assert!(plan.steps.is_empty(), "another run plans {:#?}", plan.steps);
    let recorded: BTreeMap<String, String> =
        stack.recorded().iter().map(|one| (one.id.to_string(), one.cloud_id.to_string())).collect();
    let records = wanted.iter().filter(|one| one.kind.as_str() == "aws.dns-record").count();
    let ids: Vec<&str> = recorded.keys().map(String::as_str).collect();
    let mut names: Vec<&str> = wanted.iter().map(|one| one.id.as_str()).collect();
    names.sort_unstable();
    assert_eq!(ids, names, "records");
    let mut by_resource: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let tags = account.tags();
    for (arn, tags) in &tags {
        let Some(resource) = of_lineage(tags, stack.lineage()) else { continue };
        // A key that was replaced is there beside the new one.
        if !is_kept(arn) || recorded.get(resource).is_some_and(|id| arn.contains(id.as_str())) {
            by_resource.entry(resource).or_default().push(arn);
        }
    }
    for (resource, arns) in &by_resource {
        assert!(recorded.contains_key(*resource), "nobody knows of {arns:?} of {resource}");
        assert!(arns.len() == 1, "{resource} is there more than once: {arns:?}");
    }
    // Records have no tags: a TXT record beside each says whose it is.
    assert_eq!(by_resource.len() + records, recorded.len(), "objects");
    assert!(account.records().len() >= 2 * records, "DNS records");
}

/// What is kept or shown for a while after its deletion: keys, NAT gateways, secrets, and the last snapshots of servers.
fn is_kept(arn: &str) -> bool {
    [":key/", ":natgateway/", ":secret:", ":snapshot:"].iter().any(|part| arn.contains(part))
}

#[test]
fn random_faults_and_crashes_leave_no_orphan_and_no_duplicate() {
    let (many, from) = (seeds::number(COUNT).unwrap_or(MANY), seeds::first_seed());
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let counts = Counts::default();
    let known = if seeds::number(COUNT).is_some() { &[][..] } else { SEEDS };
    let seeds: Vec<u64> = known.iter().copied().chain((0..many).map(|number| from.wrapping_add(number))).collect();
    let play = || {
        while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
            let story = Story::of(*seed);
            if catch_unwind(AssertUnwindSafe(|| story.play(*seed, &counts))).is_err() {
                println!("seed {seed}: {story:?}\nto repeat: {}", seeds::repeat(*seed, COUNT));
                failures.lock().unwrap().push(*seed);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(play))));
    let failures = failures.into_inner().unwrap();
    println!("{many} programs from seed {from}, {} failed: {counts:?}", failures.len());
    assert!(failures.is_empty(), "{many} programs from seed {from}; failed: {failures:?}");
}
