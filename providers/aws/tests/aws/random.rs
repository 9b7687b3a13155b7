//! Random programs on AWS, beside another deployment of the account, whose resources stay as they were.

use std::collections::BTreeMap;
use std::sync::MutexGuard;
use std::time::Duration;

use textnlp_provider::Wanted;
use textnlp_sim::{Disruption, Exchange, Fault, FaultPlan, Market, Options, Random, Timing};

use crate::REGION;
use crate::engine::{Account, Stack, UP};
use crate::programs::{self, Counts, Draw, Program, World, tagged};
use crate::shape::Shape;

/// How many programs one run tries: two minutes of one core.
const MANY: u64 = 120;
/// Programs that found a mistake once.
const SEEDS: &[u64] = &[];

/// Everything that happens.
#[derive(Debug)]
struct Story {
    first: Shape,
    then: Shape,
    others: Option<Shape>,
    program: Program,
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
        let program = Program::of(&draw);
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
            program,
            consistency: draw.chance(0.15).then(|| draw.below(40)),
            exhausted: draw.chance(0.15).then(|| draw.one(&[Market::Spot, Market::OnDemand])),
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
        let world = Played { account: &account, exhausted: self.exhausted };
        let check = |wanted: &[Wanted]| has_tags_and_records(&account, &ours, wanted);
        self.program.play(&world, &ours, [&first, &then], seed, counts, check);
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
    }
}

struct Played<'a> {
    account: &'a Account,
    exhausted: Option<Market>,
}

impl World for Played<'_> {
    fn faults(&self) -> MutexGuard<'_, FaultPlan> {
        self.account.simulator.faults()
    }

    fn disruptions(&self) -> Vec<Disruption> {
        let short = Fault::new("RequestLimitExceeded", "Request limit exceeded.").status(503);
        vec![
            Disruption::Throttled,
            Disruption::Internal,
            Disruption::Unavailable,
            Disruption::LostRequest,
            Disruption::LostReply,
            Disruption::Reset,
            Disruption::Refused(short),
        ]
    }

    fn requests(&self) -> Vec<Exchange> {
        self.account.simulator.requests()
    }

    fn tags(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        self.account.tags()
    }

    /// Keys, NAT gateways, secrets, and the last snapshots of servers.
    fn is_kept(&self, id: &str) -> bool {
        [":key/", ":natgateway/", ":secret:", ":snapshot:"].iter().any(|part| id.contains(part))
    }

    fn capacity(&self, is_there: bool) {
        let Some(market) = self.exhausted else { return };
        let mut world = self.account.simulator.world();
        for zone in ["a", "b", "c"] {
            for machine in ["g4dn.xlarge", "g5.xlarge", "g6.xlarge"] {
                world.capacity.set(&format!("{REGION}{zone}"), machine, market, if is_there { 1_000 } else { 0 });
            }
        }
    }

    /// Keys and secrets are kept for up to thirty days.
    fn wait(&self) {
        self.account.simulator.advance(Duration::from_secs(40 * 86_400));
    }
}

/// Every resource has its tags, and every record of DNS is there: records have no tags, and a TXT record beside each says whose it is.
fn has_tags_and_records(account: &Account, stack: &Stack<'_>, wanted: &[Wanted]) {
    let records = wanted.iter().filter(|one| one.kind.as_str() == "aws.dns-record").count();
    let tags = account.tags();
    let names: Vec<&str> = wanted.iter().map(|one| one.id.as_str()).collect();
    let found = tagged(&tags, stack.lineage()).into_keys().filter(|resource| names.contains(resource)).count();
    assert_eq!(found + records, wanted.len(), "objects");
    assert!(account.records().len() >= 2 * records, "DNS records");
}

#[test]
fn random_faults_and_crashes_leave_no_orphan_and_no_duplicate() {
    programs::all(MANY, SEEDS, Story::of, Story::play);
}
