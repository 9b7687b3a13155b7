//! The same random programs on a cloud with one kind of site, beside another deployment whose resources stay as they were.

use std::collections::BTreeSet;

use textnlp_provider::Wanted;
use textnlp_sim::{Market, Random};

use crate::programs::engine::{Process, Stack, UP};
use crate::programs::shape::Shape;
use crate::programs::{Counts, Draw, Program, World, measure, settles};

/// A simulated cloud with an existing zone of DNS.
pub(crate) trait Simulated: World {
    fn start(seed: u64, story: &Story) -> Self;

    /// A process that is signed in.
    fn process(&self) -> Process;

    fn wanted(&self, process: &Process, shape: &Shape, environment: &str) -> Vec<Wanted>;

    /// The ids of all objects.
    fn ids(&self) -> BTreeSet<String>;

    /// Requests and answers that broke the contract.
    fn violations(&self) -> Vec<String>;
}

/// Everything that happens.
#[derive(Debug)]
pub(crate) struct Story {
    first: Shape,
    then: Shape,
    others: Option<Shape>,
    program: Program,
    /// Whether operations take their time, and what was just written is not seen everywhere.
    pub(crate) is_slow: bool,
    /// No GPU machine of this market is to be had.
    pub(crate) exhausted: Option<Market>,
}

impl Story {
    pub(crate) fn of(seed: u64) -> Self {
        let draw = Draw(Random::new(seed));
        let first = Shape::of(&draw);
        Self {
            then: first.changed(&draw),
            first,
            // Images of tests are pushed to one registry.
            others: draw.chance(0.25).then(|| Shape::of(&draw).without_registry()),
            program: Program::of(&draw),
            is_slow: draw.chance(0.15),
            exhausted: draw.chance(0.15).then(|| draw.one(&[Market::Spot, Market::OnDemand])),
        }
    }

    pub(crate) fn play<C: Simulated>(&self, seed: u64, counts: &Counts) {
        let cloud = C::start(seed, self);
        let (ours, others) = (cloud.process(), cloud.process());
        let theirs = Stack::new(&others, "theirs", 7);
        let their_wanted = self.others.as_ref().map(|shape| cloud.wanted(&others, shape, "theirs"));
        if let Some(wanted) = &their_wanted {
            assert!(settles(&theirs, wanted, counts));
        }
        let before = cloud.ids();
        let [first, then] = [&self.first, &self.then].map(|shape| cloud.wanted(&ours, shape, "staging"));
        let lineage = 0x1234_5678_9abc_4def_8000_0000_0000_0000 + u128::from(seed);
        let stack = Stack::new(&ours, "staging", lineage);
        self.program.play(&cloud, &stack, [&first, &then], seed, counts, |_| ());
        let after = cloud.ids();
        let orphans: Vec<&String> = after.difference(&before).filter(|id| !cloud.is_kept(id)).collect();
        assert!(orphans.is_empty(), "orphans: {orphans:#?}");
        let lost: Vec<&String> = before.difference(&after).collect();
        assert!(lost.is_empty(), "removed objects of others: {lost:#?}");
        if let Some(wanted) = &their_wanted {
            let (plan, _) = theirs.look(UP, wanted);
            assert!(plan.steps.is_empty() && plan.blocked.is_empty(), "what belongs to others changed: {plan:#?}");
        }
        assert_eq!(cloud.violations(), Vec::<String>::new());
    }
}

/// Creates and observes an environment with everything, in at most this many requests.
pub(crate) fn whole<C: Simulated>(most: usize) {
    let (first, then) = (Shape::full(), Shape::BARE);
    let story = Story { first, then, others: None, is_slow: false, exhausted: None, ..Story::of(0) };
    let cloud = C::start(0, &story);
    let process = cloud.process();
    let [wanted, fewer] = [&story.first, &story.then].map(|shape| cloud.wanted(&process, shape, "staging"));
    let stack = Stack::new(&process, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0002);
    measure(|| cloud.requests(), &stack, &wanted, &fewer, most);
    assert_eq!(cloud.violations(), Vec::<String>::new());
}
