//! Random programs on Azure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use serde_json::Value;
use textnlp_orchestrator::state::SiteLocation;
use textnlp_provider::Wanted;
use textnlp_provider::settings::Runtime;
use textnlp_sim::azure::{AzureCloud, Object, Options};
use textnlp_sim::{Exchange, FaultPlan, Market};

use crate::programs::engine::Process;
use crate::programs::shape::{Place, Shape};
use crate::programs::{self, World};
use crate::story::{self, Simulated, Story};
use crate::{CERTIFICATE, Images, REGION, endpoint, provider, site};

/// How many programs one run tries: a minute of one core.
const MANY: u64 = 60;
/// The most requests of an observation of a whole environment.
const MOST_OF_WHOLE: usize = 120;
/// Programs that found a mistake once.
const SEEDS: &[u64] = &[];

pub(crate) struct Played {
    pub(crate) cloud: Arc<AzureCloud>,
    /// The id of the zone.
    zone: String,
    exhausted: Option<Market>,
}

impl Played {
    pub(crate) fn with(options: Options, exhausted: Option<Market>) -> Self {
        let cloud = Arc::new(AzureCloud::start(options));
        cloud.set_cluster_endpoint("https://127.0.0.1:6443", CERTIFICATE);
        // Who has a zone has registered its provider.
        cloud.world().register(&["Microsoft.Network"]);
        let zone = cloud.world().put_zone("dns", "example.com", false);
        for quota in ["Standard NCASv3_T4 Family", "cores", "lowPriorityCores"] {
            // A new subscription has no GPUs.
            cloud.world().quotas.insert((REGION.to_owned(), quota.to_owned()), 256);
        }
        Self { cloud, zone, exhausted }
    }
}

impl Simulated for Played {
    fn start(seed: u64, story: &Story) -> Self {
        let options = if story.is_slow { Options::default() } else { Options::zero_latency() };
        Self::with(Options { seed, ..options }, story.exhausted)
    }

    fn process(&self) -> Process {
        let place = SiteLocation {
            provider: "azure".to_owned(),
            account: self.cloud.subscription().to_owned(),
            region: REGION.to_owned(),
            runtime: Runtime::Kubernetes,
        };
        Process::new(provider(&self.cloud, Images(self.cloud.clone())), "main", place)
    }

    fn wanted(&self, process: &Process, shape: &Shape, environment: &str) -> Vec<Wanted> {
        let repository = format!("textnlp{environment}.azurecr.io/text/nlp");
        let endpoint = endpoint(Some(&self.zone), &format!("{environment}.example.com"));
        let models = "az://models/mine/";
        let place = Place {
            site: site(&self.cloud, environment),
            repository,
            models,
            endpoint,
            // An operator makes a replica larger before its source.
            remote: None,
            // A new budget starts in the real month, and the time of the simulated cloud is ahead of it.
            has_budget: false,
            // A process knows the profiles that it made, and those of all programs have one name.
            shares: false,
        };
        shape.wanted(process.provider.as_ref(), &place)
    }

    fn ids(&self) -> BTreeSet<String> {
        self.cloud.world().ids().into_iter().collect()
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
    programs::all(MANY, SEEDS, Story::of, Story::play::<Played>);
}

#[test]
fn a_whole_environment_is_observed_in_few_requests() {
    story::whole::<Played>(MOST_OF_WHOLE);
}
