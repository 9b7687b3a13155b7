//! The engine over the provider and the simulator. The engine's time is virtual: a call takes none of it, and waits cost nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use textnlp_aws::Aws;
use textnlp_orchestrator::apply::Limits;
use textnlp_orchestrator::clock::VirtualClock;
use textnlp_orchestrator::event::DiscardEvents;
use textnlp_orchestrator::plan::{Facts, Plan, Purpose};
use textnlp_orchestrator::run::{
    Run, RunError, RunOptions, RunOutcome, RunSite, plan_with_refresh, plan_without_refresh, run_phases,
};
use textnlp_orchestrator::state::{MemoryStore, Operator, SiteLocation, State};
use textnlp_provider::cluster::ClusterSite;
use textnlp_provider::component::{Component, ComponentSpec, Site};
use textnlp_provider::memory::Fuse;
use textnlp_provider::settings::Runtime;
use textnlp_provider::{
    CloudId, CostLine, FieldChange, Handle, Kind, KindName, Lineage, Object, Observed, Operation, Outputs,
    PolicyDocument, PolicyRequest, Problem, Problems, Progress, Provider, Recorded, ResourceId, Result, SecretRef,
    Spec, Wanted,
};
use textnlp_sim::aws::iam::Iam;
use textnlp_sim::aws::route53::{self, Route53};
use textnlp_sim::{Options, Scope, Simulator};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::ecr::Images;
use crate::iam::BOUNDARY;
use crate::rds::password;
use crate::{ACCOUNT, REGION, provider_of, site};

pub(crate) const UP: RunOptions = RunOptions::UP;
/// With the consent to remove data.
pub(crate) const DOWN: RunOptions = RunOptions { purpose: Purpose::Down, delete_data: true, gated: false };

/// The hosted zone of the account.
pub(crate) const ZONE: &str = "Z0123456789EXAMPLE";
/// What another provider creates in the cluster.
const SERVICE: &str = "here/gateway/service";

/// The most calls of the provider in a run: one that makes more does not end.
const MOST_CALLS: u64 = 30_000;

/// A simulated account, and the provider that is signed in to it.
pub(crate) struct Account {
    pub(crate) simulator: Arc<Simulator>,
    aws: Arc<Aws>,
    runtime: Arc<tokio::runtime::Runtime>,
}

impl Account {
    pub(crate) fn new(options: Options) -> Self {
        let simulator = Simulator::start(options);
        // New accounts may run no machines with GPUs, and have addresses for one protected network.
        for code in ["L-0263D0A3", "L-DB2E81BA", "L-3819A6DF"] {
            simulator.world().quotas.set(&crate::Bench::scope(), code, 256.0);
        }
        {
            let (mut world, global) = (simulator.world(), Scope::global(ACCOUNT));
            route53::zone(&mut world, &global, ZONE, "example.com", false);
            world.state::<Iam>(&global).policies.insert(BOUNDARY.to_owned());
        }
        Self::of(Arc::new(simulator))
    }

    fn of(simulator: Arc<Simulator>) -> Self {
        let aws = provider_of(&simulator, [(password("1"), "first-password-0001")]);
        let aws = aws.pushing(Arc::new(Images::of(&simulator)));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { simulator, aws: Arc::new(aws), runtime: Arc::new(runtime) }
    }

    /// The same account as another process sees it.
    pub(crate) fn again(&self) -> Self {
        Self::of(self.simulator.clone())
    }

    /// The kinds of the provider.
    pub(crate) fn kinds(&self) -> &'static [Kind] {
        self.aws.kinds()
    }

    /// What components expand to. The password of a database is a secret that is there, and so is the load balancer of the service.
    pub(crate) fn lower(&self, components: &[Component], site: &Site) -> Vec<Wanted> {
        let mut all: Vec<Wanted> = Vec::new();
        for component in components {
            all.extend(self.aws.lower(component, site).unwrap());
        }
        let balancer = Outputs::from([("address".to_owned(), "service.elb.eu-west-1.amazonaws.com".into())]);
        for one in &mut all {
            one.protected = false;
            one.spec = one.spec.resolve_known(|id| (id.as_str() == SERVICE).then_some(&balancer));
            one.needs.retain(|need| need.on.as_str() != SERVICE);
            if one.spec.get("password").is_some_and(|value| value.to_string().contains("database-password")) {
                let mut spec = one.spec.as_value().clone();
                spec["password"] = serde_json::to_value::<SecretRef>(password("1")).unwrap();
                one.spec = Spec::of(&spec);
                one.needs.retain(|need| !need.on.as_str().contains("database-password"));
            }
        }
        all
    }

    /// The records of the zone.
    pub(crate) fn records(&self) -> BTreeMap<route53::RecordKey, serde_json::Value> {
        self.simulator.world().find::<Route53>(&Scope::global(ACCOUNT)).unwrap().zones[ZONE].records.clone()
    }

    /// Every resource and its tags, the latest ones too.
    pub(crate) fn tags(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let world = self.simulator.world();
        let end = "9999-01-01T00:00:00Z".parse().unwrap();
        world.tags.listed("", end).map(|(arn, tags)| (arn.to_owned(), tags)).collect()
    }
}

/// An environment of an account: its state outlives the runs.
pub(crate) struct Stack<'a> {
    account: &'a Account,
    name: textnlp_provider::EnvironmentName,
    lineage: Lineage,
    disk: MemoryStore,
    clock: VirtualClock,
}

impl<'a> Stack<'a> {
    pub(crate) fn new(account: &'a Account, name: &str, lineage: u128) -> Self {
        let clock = VirtualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
        let lineage = Lineage(Uuid::from_u128(lineage));
        Self { account, name: name.parse().unwrap(), lineage, disk: MemoryStore::default(), clock }
    }

    pub(crate) fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// Advances the engine's time.
    pub(crate) fn pass(&self, time: Duration) {
        self.clock.pass(time);
    }

    fn sites(&self, wanted: &[Wanted], fuse: &Fuse) -> (BTreeMap<textnlp_provider::SiteName, RunSite>, Arc<AtomicU64>) {
        let calls = Arc::new(AtomicU64::new(0));
        let (aws, runtime) = (self.account.aws.clone(), self.account.runtime.clone());
        let provider = Arc::new(Driven { aws, runtime, fuse: fuse.clone(), calls: calls.clone() });
        let place = SiteLocation {
            provider: "aws".to_owned(),
            account: ACCOUNT.to_owned(),
            region: REGION.to_owned(),
            runtime: Runtime::Kubernetes,
        };
        let site = RunSite { place, provider, protect_data: false, wanted: wanted.to_vec() };
        (BTreeMap::from([("here".parse().unwrap(), site)]), calls)
    }

    fn run<'r>(&'r self, fuse: &Fuse, sites: &'r BTreeMap<textnlp_provider::SiteName, RunSite>) -> Run<'r> {
        Run {
            environment: &self.name,
            store: Arc::new(self.disk.with_fuse(fuse.clone())),
            sites,
            apart: const { &std::collections::BTreeSet::new() },
            fresh: self.lineage,
            operator: Operator {
                by: "ada".to_owned(),
                reason: None,
                tool: "textnlp-deploy 0.1.0".to_owned(),
                host: "machine".to_owned(),
                pid: 1,
            },
            clock: Arc::new(self.clock.clone()),
            events: &DiscardEvents,
            gates: None,
            limits: Limits::default(),
            entry: None,
        }
    }

    /// Runs until the end, or until the fuse blows: then `None`.
    pub(crate) fn go(&self, ask: RunOptions, wanted: &[Wanted], fuse: &Fuse) -> Option<Result<RunOutcome, RunError>> {
        let (sites, calls) = self.sites(wanted, fuse);
        let run = self.run(fuse, &sites);
        let stop = CancellationToken::new();
        let is_alive = || !fuse.blown() && calls.load(Ordering::SeqCst) < MOST_CALLS;
        let outcome = self.clock.run_while(run_phases(&run, ask, &mut |_, _| true, &stop), is_alive);
        assert!(calls.load(Ordering::SeqCst) < MOST_CALLS, "the run does not end");
        assert!(outcome.is_some() || fuse.blown(), "it waits for ever");
        outcome
    }

    /// Runs and has to reach what is wanted.
    pub(crate) fn reach(&self, ask: RunOptions, wanted: &[Wanted]) -> Plan {
        let outcome = self.go(ask, wanted, &Fuse::default()).unwrap();
        let outcome = outcome.unwrap_or_else(|error| panic!("{}", textnlp_provider::error_chain(&error)));
        let plan = outcome.plan.clone().unwrap();
        assert!(outcome.is_complete(), "{:#?}\n{:#?}", outcome.outcome, (&plan.blocked, &plan.refusals));
        plan
    }

    /// The plan and what it is made from.
    pub(crate) fn look(&self, ask: RunOptions, wanted: &[Wanted]) -> (Plan, Facts) {
        let (sites, _) = self.sites(wanted, &Fuse::default());
        let run = self.run(&Fuse::default(), &sites);
        let looked = self.clock.run(plan_with_refresh(&run, ask)).unwrap();
        let (plan, facts) = looked.unwrap_or_else(|error| panic!("{}", textnlp_provider::error_chain(&error)));
        (plan.plan().clone(), facts)
    }

    /// The plan from the records alone.
    pub(crate) fn plan_without_refresh(&self, ask: RunOptions, wanted: &[Wanted]) -> Plan {
        let (sites, _) = self.sites(wanted, &Fuse::default());
        let run = self.run(&Fuse::default(), &sites);
        let (plan, _) = self.clock.run(plan_without_refresh(&run, ask)).unwrap().unwrap();
        plan.plan().clone()
    }

    /// The resources that are recorded, each with its objects.
    pub(crate) fn recorded(&self) -> Vec<Recorded> {
        let store = Arc::new(self.disk.clone());
        let state = self.clock.run(State::load(store, &self.name, self.lineage)).unwrap().unwrap();
        let holdings = state.holdings(&"here".parse().unwrap()).unwrap();
        holdings.values().flat_map(|holding| holding.objects().cloned().collect::<Vec<_>>()).collect()
    }
}

/// The provider for an engine in virtual time: each call runs to its end while that time stands still. The process can be killed before
/// and after each change.
struct Driven {
    aws: Arc<Aws>,
    runtime: Arc<tokio::runtime::Runtime>,
    fuse: Fuse,
    calls: Arc<AtomicU64>,
}

impl Driven {
    fn block_on<T>(&self, call: impl Future<Output = T>) -> T {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.runtime.block_on(call)
    }
}

#[async_trait]
impl Provider for Driven {
    fn kinds(&self) -> &'static [Kind] {
        self.aws.kinds()
    }

    fn costs(&self, kind: &KindName, spec: &Spec) -> Vec<CostLine> {
        self.aws.costs(kind, spec)
    }

    fn policies(&self, request: &PolicyRequest) -> Vec<PolicyDocument> {
        self.aws.policies(request)
    }

    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        self.aws.lower(component, site)
    }

    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        self.aws.diff(wanted, recorded, seen)
    }

    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>> {
        self.block_on(self.aws.preflight(wanted))
    }

    async fn observe(&self, scope: &textnlp_provider::Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        self.block_on(self.aws.observe(scope))
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        self.block_on(self.aws.read(kind, id))
    }

    async fn begin(&self, op: &Operation) -> Result<Progress> {
        self.fuse.cross(|| format!("before {} {}", op.verb, op.resource)).await;
        let progress = self.block_on(self.aws.begin(op));
        self.fuse.cross(|| format!("after {} {}", op.verb, op.resource)).await;
        progress
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress> {
        self.fuse.cross(|| format!("before the next call of {} {}", op.verb, op.resource)).await;
        let progress = self.block_on(self.aws.advance(op, handle));
        self.fuse.cross(|| format!("after the next call of {} {}", op.verb, op.resource)).await;
        progress
    }
}

/// A component without an existing object.
pub(crate) fn component(name: &str, part: ComponentSpec) -> Component {
    Component { name: name.parse().unwrap(), existing: None, part }
}

/// A site of an environment, with machines.
pub(crate) fn site_of(environment: &str, protect_data: bool, max_nodes: u32) -> Site {
    let cluster = ClusterSite { min_nodes: 2, max_nodes: Some(max_nodes), ..ClusterSite::of("textnlp") };
    Site { environment: environment.parse().unwrap(), protect_data, cluster: Some(Box::new(cluster)), ..site() }
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
