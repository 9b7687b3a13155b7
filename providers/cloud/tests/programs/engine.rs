//! The engine over a provider and a simulated cloud. The engine's time is virtual: a call takes none of it, and waits cost nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use textnlp_orchestrator::apply::Limits;
use textnlp_orchestrator::clock::VirtualClock;
use textnlp_orchestrator::event::DiscardEvents;
use textnlp_orchestrator::plan::{DeleteData, Facts, Plan, Purpose};
use textnlp_orchestrator::replica::{ReplicaError, find, promote};
use textnlp_orchestrator::run::{
    Run, RunError, RunOptions, RunOutcome, RunSite, plan_with_refresh, plan_without_refresh, run_phases,
};
use textnlp_orchestrator::standby::{self, StandbyError};
use textnlp_orchestrator::state::{MemoryStore, Operator, SiteLocation, State};
use textnlp_provider::component::{Component, Site};
use textnlp_provider::memory::Fuse;
use textnlp_provider::operations::DatabaseStatus;
use textnlp_provider::{
    CloudId, CostLine, FieldChange, Handle, Kind, KindName, Lineage, Object, Observed, Operation, PolicyDocument,
    PolicyRequest, Problem, Problems, Progress, Provider, Recorded, ResourceId, Result, SiteName, Spec, Wanted,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) const UP: RunOptions = RunOptions::UP;
/// With the consent to remove data.
pub(crate) const DOWN: RunOptions = RunOptions { purpose: Purpose::Down, delete_data: DeleteData::All, gated: false };

/// The most calls of the provider in a run: one that makes more does not end.
const MOST_CALLS: u64 = 30_000;

/// A process with a provider that is signed in to a simulated cloud.
pub(crate) struct Process {
    pub(crate) provider: Arc<dyn Provider>,
    runtime: Arc<tokio::runtime::Runtime>,
    site: SiteName,
    place: SiteLocation,
}

impl Process {
    pub(crate) fn new(provider: impl Provider + 'static, site: &str, place: SiteLocation) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { provider: Arc::new(provider), runtime: Arc::new(runtime), site: site.parse().unwrap(), place }
    }
}

impl AsRef<Process> for Process {
    fn as_ref(&self) -> &Process {
        self
    }
}

/// An environment of a cloud: its state outlives the runs.
pub(crate) struct Stack<'a> {
    process: &'a Process,
    name: textnlp_provider::EnvironmentName,
    lineage: Lineage,
    disk: MemoryStore,
    clock: VirtualClock,
}

impl<'a> Stack<'a> {
    pub(crate) fn new(process: &'a impl AsRef<Process>, name: &str, lineage: u128) -> Self {
        let clock = VirtualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
        let lineage = Lineage(Uuid::from_u128(lineage));
        let (process, name) = (process.as_ref(), name.parse().unwrap());
        Self { process, name, lineage, disk: MemoryStore::default(), clock }
    }

    pub(crate) fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// Advances the engine's time.
    pub(crate) fn pass(&self, time: Duration) {
        self.clock.pass(time);
    }

    fn sites(&self, wanted: &[Wanted], fuse: &Fuse) -> (BTreeMap<SiteName, RunSite>, Arc<AtomicU64>) {
        let calls = Arc::new(AtomicU64::new(0));
        let Process { provider, runtime, site, place } = self.process;
        let (provider, runtime) = (provider.clone(), runtime.clone());
        let provider = Arc::new(Driven { provider, runtime, fuse: fuse.clone(), calls: calls.clone() });
        let here = RunSite { place: place.clone(), provider, protect_data: false, wanted: wanted.to_vec() };
        (BTreeMap::from([(site.clone(), here)]), calls)
    }

    fn run<'r>(&'r self, fuse: &Fuse, sites: &'r BTreeMap<SiteName, RunSite>) -> Run<'r> {
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

    /// Promotes the replica of the database in a region, until the end or until the fuse blows: then `None`.
    pub(crate) fn promote(
        &self,
        region: &str,
        while_source_runs: bool,
        fuse: &Fuse,
    ) -> Option<Result<Recorded, ReplicaError>> {
        let (sites, _) = self.sites(&[], fuse);
        let (run, stop) = (self.run(fuse, &sites), CancellationToken::new());
        let promoted = async {
            let replica = find(&run, region).await?;
            replica.permit(while_source_runs)?;
            promote(&run, &replica, while_source_runs, &stop).await
        };
        let promoted = self.clock.run_while(promoted, || !fuse.blown());
        assert!(promoted.is_some() || fuse.blown(), "it waits for ever");
        promoted
    }

    /// Fails the database over to its standby, until the end or until the fuse blows: then `None`.
    pub(crate) fn fail_over(&self, fuse: &Fuse) -> Option<Result<DatabaseStatus, StandbyError>> {
        let (sites, _) = self.sites(&[], fuse);
        let run = self.run(fuse, &sites);
        let of_state = |error| StandbyError::Run(RunError::State(error));
        let done = async {
            let standby = standby::find(&run).await?;
            let state = State::load(run.store.clone(), run.environment, run.fresh).await.map_err(of_state)?;
            let locked = state.lock(&run.operator, &BTreeMap::new(), run.clock.clone()).await;
            let mut locked = locked.map_err(of_state)?;
            let done = match standby::permit(&standby, &mut locked).await {
                Ok(()) => standby::fail_over(&run, &standby, &mut locked).await,
                refused => refused,
            };
            locked.close().await.map_err(of_state)?;
            done?;
            standby.status(&run).await
        };
        let done = self.clock.run_while(done, || !fuse.blown());
        assert!(done.is_some() || fuse.blown(), "it waits for ever");
        done
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

    /// How many operations are open.
    pub(crate) fn open(&self) -> usize {
        let store = Arc::new(self.disk.clone());
        let state = self.clock.run(State::load(store, &self.name, self.lineage)).unwrap().unwrap();
        state.open(&self.process.site).unwrap().len()
    }

    /// The resources that are recorded, each with its objects.
    pub(crate) fn recorded(&self) -> Vec<Recorded> {
        let store = Arc::new(self.disk.clone());
        let state = self.clock.run(State::load(store, &self.name, self.lineage)).unwrap().unwrap();
        let holdings = state.holdings(&self.process.site).unwrap();
        holdings.values().flat_map(|holding| holding.objects().cloned().collect::<Vec<_>>()).collect()
    }
}

/// The provider for an engine in virtual time: each call runs to its end while that time stands still. The process can be killed before
/// and after each change.
struct Driven {
    provider: Arc<dyn Provider>,
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
        self.provider.kinds()
    }

    fn costs(&self, kind: &KindName, spec: &Spec) -> Vec<CostLine> {
        self.provider.costs(kind, spec)
    }

    fn policies(&self, request: &PolicyRequest) -> Vec<PolicyDocument> {
        self.provider.policies(request)
    }

    fn boundaries(&self, request: &PolicyRequest) -> Vec<PolicyDocument> {
        self.provider.boundaries(request)
    }

    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        self.provider.lower(component, site)
    }

    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        self.provider.diff(wanted, recorded, seen)
    }

    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>> {
        self.block_on(self.provider.preflight(wanted))
    }

    async fn observe(&self, scope: &textnlp_provider::Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        self.block_on(self.provider.observe(scope))
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        self.block_on(self.provider.read(kind, id))
    }

    async fn read_recorded(&self, recorded: &Recorded) -> Result<Observed> {
        self.block_on(self.provider.read_recorded(recorded))
    }

    async fn begin(&self, op: &Operation) -> Result<Progress> {
        self.fuse.cross(|| format!("before {} {}", op.verb, op.resource)).await;
        let progress = self.block_on(self.provider.begin(op));
        self.fuse.cross(|| format!("after {} {}", op.verb, op.resource)).await;
        progress
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress> {
        self.fuse.cross(|| format!("before the next call of {} {}", op.verb, op.resource)).await;
        let progress = self.block_on(self.provider.advance(op, handle));
        self.fuse.cross(|| format!("after the next call of {} {}", op.verb, op.resource)).await;
        progress
    }
}
