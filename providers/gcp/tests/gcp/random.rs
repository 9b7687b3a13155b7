//! Random programs on Google Cloud, beside another deployment of the project, whose resources stay as they were.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use serde_json::Value;
use textnlp_orchestrator::state::SiteLocation;
use textnlp_provider::Wanted;
use textnlp_provider::settings::Runtime;
use textnlp_sim::gcp::{GoogleCloud, Options};
use textnlp_sim::{Exchange, FaultPlan, Market, Random};

use crate::programs::engine::{Process, Stack, UP};
use crate::programs::shape::{Place, Shape};
use crate::programs::{self, Counts, Draw, Program, World, settles};
use crate::{REGION, ZONE, endpoint, provider, site};

/// How many programs one run tries: a minute of one core.
const MANY: u64 = 60;
/// Programs that found a mistake once.
const SEEDS: &[u64] = &[];

/// Everything that happens.
#[derive(Debug)]
struct Story {
    first: Shape,
    then: Shape,
    others: Option<Shape>,
    program: Program,
    /// Whether operations take their time, and what was just written is not seen everywhere.
    is_slow: bool,
    /// No GPU machine of this market is to be had.
    exhausted: Option<Market>,
}

impl Story {
    fn of(seed: u64) -> Self {
        let draw = Draw(Random::new(seed));
        let first = Shape::of(&draw);
        Self {
            then: first.changed(&draw),
            first,
            others: draw.chance(0.25).then(|| Shape::of(&draw)),
            program: Program::of(&draw),
            is_slow: draw.chance(0.15),
            exhausted: draw.chance(0.15).then(|| draw.one(&[Market::Spot, Market::OnDemand])),
        }
    }

    fn play(&self, seed: u64, counts: &Counts) {
        let options = if self.is_slow { Options::default() } else { Options::zero_latency() };
        let cloud = Arc::new(GoogleCloud::start(Options { seed, ..options }));
        {
            let mut world = cloud.world();
            world.quotas.insert((String::new(), "GPUS_ALL_REGIONS".to_owned()), 64.0);
            world.enable(cloud.project(), "dns.googleapis.com");
            world.put_zone(cloud.project(), ZONE, "example.com.", false);
        }
        let other_process = process(&cloud);
        let theirs = Stack::new(&other_process, "theirs", 7);
        let their_wanted = self.others.as_ref().map(|shape| wanted(&other_process, &cloud, shape, "theirs"));
        if let Some(wanted) = &their_wanted {
            assert!(settles(&theirs, wanted, counts));
        }
        let world = Played { cloud: &cloud, exhausted: self.exhausted };
        let before = world.ids();
        let ours = process(&cloud);
        let (first, then) =
            (wanted(&ours, &cloud, &self.first, "staging"), wanted(&ours, &cloud, &self.then, "staging"));
        let lineage = 0x1234_5678_9abc_4def_8000_0000_0000_0000 + u128::from(seed);
        let stack = Stack::new(&ours, "staging", lineage);
        self.program.play(&world, &stack, [&first, &then], seed, counts, |_| ());
        let orphans: Vec<String> = world.ids().difference(&before).filter(|id| !world.is_kept(id)).cloned().collect();
        assert!(orphans.is_empty(), "orphans: {orphans:#?}");
        let lost: Vec<String> = before.difference(&world.ids()).cloned().collect();
        assert!(lost.is_empty(), "removed objects of others: {lost:#?}");
        if let Some(wanted) = &their_wanted {
            let (plan, _) = theirs.look(UP, wanted);
            assert!(plan.steps.is_empty() && plan.blocked.is_empty(), "what belongs to others changed: {plan:#?}");
        }
        assert_eq!(cloud.take_violations(), Vec::<String>::new());
    }
}

/// A process that is signed in.
fn process(cloud: &Arc<GoogleCloud>) -> Process {
    let place = SiteLocation {
        provider: "gcp".to_owned(),
        account: cloud.project().to_owned(),
        region: REGION.to_owned(),
        runtime: Runtime::Kubernetes,
    };
    Process::new(provider(cloud), "main", place)
}

fn wanted(process: &Process, cloud: &GoogleCloud, shape: &Shape, environment: &str) -> Vec<Wanted> {
    let project = cloud.project();
    let repository = format!("{REGION}-docker.pkg.dev/{project}/{environment}/server");
    let models = format!("gs://textnlp-{project}-{environment}-main-models/mine/");
    let endpoint = endpoint(Some(ZONE), &format!("{environment}.example.com"));
    let place = Place { site: site(cloud, environment), repository, models: &models, archives: true, endpoint };
    shape.wanted(process.provider.as_ref(), &place)
}

/// The labels in a document of any service, at the least depth.
fn labels(body: &Value) -> Option<BTreeMap<String, String>> {
    let members = body.as_object()?;
    if members.contains_key("textnlp-lineage") {
        let mut labels: BTreeMap<String, String> = serde_json::from_value(body.clone()).ok()?;
        // Labels have no slashes, and ids of resources no underscores.
        labels.entry("textnlp-resource".to_owned()).and_modify(|id| *id = id.replace('_', "/"));
        return Some(labels);
    }
    members.values().find_map(labels)
}

struct Played<'a> {
    cloud: &'a GoogleCloud,
    exhausted: Option<Market>,
}

impl Played<'_> {
    fn ids(&self) -> BTreeSet<String> {
        // What Compute Engine shows to every project that uses it.
        let is_offer = |key: &String| {
            let path: Vec<&str> = key.split('/').collect();
            path[0] == "compute"
                && (path.len() < 6 || ["machineTypes", "acceleratorTypes"].contains(&path[path.len() - 2]))
        };
        self.cloud.world().keys().into_iter().filter(|key| !is_offer(key)).collect()
    }
}

impl World for Played<'_> {
    fn faults(&self) -> MutexGuard<'_, FaultPlan> {
        self.cloud.faults()
    }

    fn requests(&self) -> Vec<Exchange> {
        self.cloud.requests()
    }

    fn tags(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let world = self.cloud.world();
        world.objects.iter().filter_map(|(id, one)| Some((id.clone(), labels(&one.body)?))).collect()
    }

    /// Rings and keys have no end, and a zone remembers its changes.
    fn is_kept(&self, id: &str) -> bool {
        id.starts_with("cloudkms/") || id.contains("/changes/")
    }

    fn capacity(&self, is_there: bool) {
        let Some(market) = self.exhausted else { return };
        let mut world = self.cloud.world();
        for zone in ["b", "c", "d"] {
            for kind in ["nvidia-tesla-t4", "n1-standard-4"] {
                let zone = format!("{REGION}-{zone}");
                match is_there {
                    true => world.restock(&zone, kind, 1_000),
                    false => world.capacity.set(&zone, kind, market, 0),
                }
            }
        }
    }

    /// Names of deleted objects are kept for up to thirty days.
    fn wait(&self) {
        self.cloud.advance(Duration::from_secs(40 * 86_400));
    }
}

#[test]
fn random_faults_and_crashes_leave_no_orphan_and_no_duplicate() {
    programs::all(MANY, SEEDS, Story::of, Story::play);
}
