//! Random programs on Google Cloud.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use serde_json::Value;
use textnlp_orchestrator::state::SiteLocation;
use textnlp_provider::Wanted;
use textnlp_provider::settings::Runtime;
use textnlp_sim::gcp::{GoogleCloud, Options};
use textnlp_sim::{Exchange, FaultPlan, Market};

use crate::programs::engine::Process;
use crate::programs::shape::{Place, Shape};
use crate::programs::{self, World};
use crate::story::{self, Simulated, Story};
use crate::{REGION, REMOTE, ZONE, endpoint, provider, site};

/// How many programs one run tries: a minute of one core.
const MANY: u64 = 60;
/// The most requests of an observation of a whole environment.
const MOST_OF_WHOLE: usize = 120;
/// Programs that found a mistake once.
const SEEDS: &[u64] = &[];

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

pub(crate) struct Played {
    pub(crate) cloud: Arc<GoogleCloud>,
    exhausted: Option<Market>,
}

impl Played {
    pub(crate) fn with(options: Options, exhausted: Option<Market>) -> Self {
        let cloud = Arc::new(GoogleCloud::start(options));
        {
            let mut world = cloud.world();
            world.quotas.insert((String::new(), "GPUS_ALL_REGIONS".to_owned()), 64.0);
            world.enable(cloud.project(), "dns.googleapis.com");
            world.put_zone(cloud.project(), ZONE, "example.com.", false);
        }
        Self { cloud, exhausted }
    }
}

impl Simulated for Played {
    fn start(seed: u64, story: &Story) -> Self {
        let options = if story.is_slow { Options::default() } else { Options::zero_latency() };
        Self::with(Options { seed, ..options }, story.exhausted)
    }

    fn process(&self) -> Process {
        let place = SiteLocation {
            provider: "gcp".to_owned(),
            account: self.cloud.project().to_owned(),
            region: REGION.to_owned(),
            runtime: Runtime::Kubernetes,
        };
        Process::new(provider(&self.cloud), "main", place)
    }

    fn wanted(&self, process: &Process, shape: &Shape, environment: &str) -> Vec<Wanted> {
        let project = self.cloud.project();
        let repository = format!("{REGION}-docker.pkg.dev/{project}/{environment}/server");
        let models = format!("gs://textnlp-{project}-{environment}-main-models/mine/");
        let endpoint = endpoint(Some(ZONE), &format!("{environment}.example.com"));
        let place = Place {
            site: site(&self.cloud, environment),
            repository,
            models: &models,
            endpoint,
            remote: Some(REMOTE),
            has_budget: true,
            shares: true,
        };
        shape.wanted(process.provider.as_ref(), &place)
    }

    fn ids(&self) -> BTreeSet<String> {
        // What Compute Engine shows to every project that uses it.
        let is_offer = |key: &String| {
            let path: Vec<&str> = key.split('/').collect();
            path[0] == "compute"
                && (path.len() < 6 || ["machineTypes", "acceleratorTypes"].contains(&path[path.len() - 2]))
        };
        self.cloud.world().keys().into_iter().filter(|key| !is_offer(key)).collect()
    }

    fn violations(&self) -> Vec<String> {
        self.cloud.take_violations()
    }
}

impl World for Played {
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
    programs::all(MANY, SEEDS, Story::of, Story::play::<Played>);
}

#[test]
fn a_whole_environment_is_observed_in_few_requests() {
    story::whole::<Played>(MOST_OF_WHOLE);
}
