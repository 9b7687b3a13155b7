//! Random programs on Azure, beside another deployment of the subscription, whose resources stay as they were.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use serde_json::Value;
use textnlp_orchestrator::state::SiteLocation;
use textnlp_provider::Wanted;
use textnlp_provider::settings::Runtime;
use textnlp_sim::azure::{AzureCloud, Object, Options};
use textnlp_sim::{Exchange, FaultPlan, Market, Random};

use crate::programs::engine::{Process, Stack, UP};
use crate::programs::shape::{Place, Shape};
use crate::programs::{self, Counts, Draw, Program, World, settles};
use crate::{CERTIFICATE, Images, REGION, endpoint, provider, site};

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
            // Images of tests are pushed to one registry.
            others: draw.chance(0.25).then(|| Shape::of(&draw).without_registry()),
            program: Program::of(&draw),
            is_slow: draw.chance(0.15),
            exhausted: draw.chance(0.15).then(|| draw.one(&[Market::Spot, Market::OnDemand])),
        }
    }

    fn play(&self, seed: u64, counts: &Counts) {
        let options = if self.is_slow { Options::default() } else { Options::zero_latency() };
        let cloud = Arc::new(AzureCloud::start(Options { seed, ..options }));
        cloud.set_cluster_endpoint("https://127.0.0.1:6443", CERTIFICATE);
        // Who has a zone has registered its provider.
        cloud.world().register(&["Microsoft.Network"]);
        let zone = cloud.world().put_zone("dns", "example.com", false);
        for quota in ["Standard NCASv3_T4 Family", "cores", "lowPriorityCores"] {
            // A new subscription has no GPUs.
            cloud.world().quotas.insert((REGION.to_owned(), quota.to_owned()), 256);
        }
        let other_process = process(&cloud);
        let theirs = Stack::new(&other_process, "theirs", 7);
        let their_wanted = self.others.as_ref().map(|shape| wanted(&other_process, &cloud, &zone, shape, "theirs"));
        if let Some(wanted) = &their_wanted {
            assert!(settles(&theirs, wanted, counts));
        }
        let world = Played { cloud: &cloud, exhausted: self.exhausted };
        let before = world.ids();
        let ours = process(&cloud);
        let (first, then) =
            (wanted(&ours, &cloud, &zone, &self.first, "staging"), wanted(&ours, &cloud, &zone, &self.then, "staging"));
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
fn process(cloud: &Arc<AzureCloud>) -> Process {
    let place = SiteLocation {
        provider: "azure".to_owned(),
        account: cloud.subscription().to_owned(),
        region: REGION.to_owned(),
        runtime: Runtime::Kubernetes,
    };
    Process::new(provider(cloud, Images(cloud.clone())), "main", place)
}

fn wanted(process: &Process, cloud: &AzureCloud, zone: &str, shape: &Shape, environment: &str) -> Vec<Wanted> {
    let repository = format!("textnlp{environment}.azurecr.io/text/nlp");
    let endpoint = endpoint(Some(zone), &format!("{environment}.example.com"));
    let models = "az://models/mine/";
    let place = Place { site: site(cloud, environment), repository, models, archives: false, endpoint };
    shape.wanted(process.provider.as_ref(), &place)
}

struct Played<'a> {
    cloud: &'a AzureCloud,
    exhausted: Option<Market>,
}

impl Played<'_> {
    fn ids(&self) -> BTreeSet<String> {
        self.cloud.world().ids().into_iter().collect()
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
        // AKS gives the group of its nodes the tags of the cluster.
        let is_own = |one: &&Object| one.ghost_until.is_none() && one.body["managedBy"].is_null();
        let shown = world.objects.values().filter(is_own);
        let tags = |body: &Value| serde_json::from_value(body["tags"].clone()).unwrap_or_default();
        shown.map(|one| (one.id.clone(), tags(&one.body))).collect()
    }

    fn is_kept(&self, _id: &str) -> bool {
        false
    }

    fn capacity(&self, is_there: bool) {
        let Some(market) = self.exhausted else { return };
        let mut world = self.cloud.world();
        for zone in ["1", "2", "3"] {
            let (zone, size) = (format!("{REGION}-{zone}"), "Standard_NC4as_T4_v3");
            match is_there {
                true => world.restock(&zone, size, 1_000),
                false => world.capacity.set(&zone, size, market, 0),
            }
        }
    }

    /// Deleted vaults are kept for up to ninety days.
    fn wait(&self) {
        self.cloud.advance(Duration::from_secs(100 * 86_400));
    }
}

#[test]
fn random_faults_and_crashes_leave_no_orphan_and_no_duplicate() {
    programs::all(MANY, SEEDS, Story::of, Story::play);
}
