//! A whole run: lock the state, recover a crashed run, read, plan, ask for approval, apply.
//!
//! [`plan_with_refresh`] and [`plan_without_refresh`] plan without a lock and change nothing. [`run_phases`] runs all phases.
//! `up` and `down` differ only in their [`Purpose`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use textnlp_provider::{
    DatabasePart, EnvironmentName, Health, Lineage, Object, Observed, Origin, Ownership, Problem, Problems, Provider,
    ReadFailure, Recorded, ResourceId, Scope, SiteName, Wanted, error_chain,
};
use tokio_util::sync::CancellationToken;

use crate::apply::{ApplyError, Drive, Gates, Limits, Outcome, apply, recover};
use crate::clock::Clock;
use crate::event::{Event, EventKind, Events};
use crate::plan::{
    Audited, Call, ChoiceBasis, Consent, DeleteData, Facts, Node, Plan, PlanRefusal, Purpose, SiteFacts, Violation,
    approve, audit, plan,
};
use crate::state::{End, Entry, Hold, Holder, Locked, Operator, SiteLocation, State, StateError, Store};

/// The inputs of a run.
pub struct Run<'a> {
    /// The environment.
    pub environment: &'a EnvironmentName,
    /// Its state store.
    pub store: Arc<dyn Store>,
    /// Its sites, and the sites that only the state still mentions (with no resources wanted).
    pub sites: &'a BTreeMap<SiteName, RunSite>,
    /// Sites that are left unchanged because the operator selected others.
    pub apart: &'a BTreeSet<SiteName>,
    /// The lineage to use if the state is empty: a fresh random one.
    pub fresh: Lineage,
    /// The operator, and the reason for the run.
    pub operator: Operator,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Receives the events of the run.
    pub events: &'a dyn Events,
    /// Measures at gates. Without it, every gate stays closed.
    pub gates: Option<&'a dyn Gates>,
    /// Limits of concurrency.
    pub limits: Limits,
    /// What the journal records with the approval of an `up`, also of one without changes: why the release may enter
    /// its phase.
    pub entry: Option<Entry>,
}

/// One site of a run.
#[derive(Clone)]
pub struct RunSite {
    /// The location that the site is bound to.
    pub place: SiteLocation,
    /// The provider of the site.
    pub provider: Arc<dyn Provider>,
    /// Whether resources that hold data are protected there.
    pub protect_data: bool,
    /// The wanted resources.
    pub wanted: Vec<Wanted>,
}

/// The run options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunOptions {
    /// `up` or `down`.
    pub purpose: Purpose,
    /// Which protected data may be deleted.
    pub delete_data: DeleteData,
    /// Whether replaced or unwanted resources are removed only after a gate measured the new ones from outside.
    pub gated: bool,
}

/// The outcome of a run.
#[derive(Debug, Clone)]
pub struct RunOutcome {
    /// The lineage of the deployment.
    pub lineage: Lineage,
    /// The plan; `None` if the run was stopped before planning.
    pub plan: Option<Plan>,
    /// The outcome of applying, recovery included.
    pub outcome: Outcome,
    /// Operations of a crashed run that were finished first.
    pub recovered: usize,
    /// Repairs to the journals.
    pub mended: Vec<String>,
}

impl RunOptions {
    /// The options of `up` without any flag.
    pub const UP: Self = Self { purpose: Purpose::Up, delete_data: DeleteData::Nothing, gated: false };
}

impl RunOutcome {
    /// Whether the run reached the state that the environment wants.
    pub fn is_complete(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| is_complete(&self.outcome, plan))
    }
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The state could not be read or written.
    #[error("open the state")]
    State(#[source] StateError),
    /// The state has objects at a site that has no provider in this run.
    #[error("site `{site}` still has resources ({place}), and the environment does not name it")]
    LostSite {
        /// The site.
        site: SiteName,
        /// The location it is bound to.
        place: Box<SiteLocation>,
    },
    /// The environment is frozen.
    #[error("{} froze this environment at {:.0}: {}", .0.by, .0.since, .0.why)]
    Frozen(Box<Hold>),
    /// The wanted resources are invalid.
    #[error("plan")]
    Wanted(#[source] Problems),
    /// The plan violates an invariant of the planner. Nothing was changed.
    #[error("the plan breaks an invariant, and nothing was done; this is a bug in this program: {}", listed(.0))]
    Unlawful(Vec<Violation>),
    /// Preflight failed at the provider.
    #[error("preflight")]
    Preflight(#[source] Problems),
    /// A saved plan is stale: the facts differ from those it was made from. Nothing was changed.
    #[error("the saved plan is stale: {}", changed(.resources))]
    Stale {
        /// The purpose of the plan.
        purpose: Purpose,
        /// The resources whose facts differ.
        resources: Vec<ResourceId>,
    },
    /// The same facts lead to another plan here than where it was saved. Nothing was changed.
    #[error("this version plans differently from the version that saved the plan")]
    OtherPlanner,
    /// The plan was not approved, or cannot be approved.
    #[error("approval")]
    Refused(#[source] PlanRefusal),
    /// Applying was aborted.
    #[error("apply the plan")]
    Apply(#[source] ApplyError),
}

fn changed(resources: &[ResourceId]) -> String {
    const SHOWN: usize = 5;
    let mut names: Vec<String> = resources.iter().take(SHOWN).map(|id| format!("`{id}`")).collect();
    if resources.len() > SHOWN {
        names.push(format!("{} more", resources.len() - SHOWN));
    }
    format!("{} changed since", names.join(", "))
}

fn listed(breaches: &[Violation]) -> String {
    breaches.iter().map(Violation::to_string).collect::<Vec<_>>().join("; ")
}

impl Run<'_> {
    pub(crate) fn places(&self) -> BTreeMap<SiteName, SiteLocation> {
        self.sites.iter().map(|(name, site)| (name.clone(), site.place.clone())).collect()
    }

    pub(crate) fn providers(&self) -> BTreeMap<SiteName, Arc<dyn Provider>> {
        self.sites.iter().map(|(name, site)| (name.clone(), site.provider.clone())).collect()
    }

    pub(crate) async fn load(&self) -> Result<State, RunError> {
        let state = State::load(self.store.clone(), self.environment, self.fresh).await.map_err(RunError::State)?;
        state.check_places(&self.places()).map_err(RunError::State)?;
        Ok(state)
    }
}

/// Reads the actual state and plans. Takes no lock and changes nothing.
pub async fn plan_with_refresh(run: &Run<'_>, options: RunOptions) -> Result<(Audited, Facts), RunError> {
    let state = run.load().await?;
    let facts = read(run, &state, options).await?;
    Ok((checked_plan(&facts)?, facts))
}

/// Plans from the recorded state alone: no provider is asked, so that the plan misses what others changed. Takes no lock and changes
/// nothing.
pub async fn plan_without_refresh(run: &Run<'_>, options: RunOptions) -> Result<(Audited, Facts), RunError> {
    let state = run.load().await?;
    lost_sites(run, &state)?;
    let mut sites = BTreeMap::new();
    for (name, site) in run.sites {
        let mut facts = unobserved(&state, name, site).map_err(RunError::State)?;
        facts.observed = remembered(&facts, state.lineage());
        sites.insert(name.clone(), facts);
    }
    let facts = facts(run, &state, options, sites);
    Ok((checked_plan(&facts)?, facts))
}

/// The records as observations. An existing object that is not recorded yet is unknown.
fn remembered(facts: &SiteFacts, lineage: Lineage) -> Vec<(ResourceId, Observed)> {
    let object = |recorded: &Recorded| Object {
        kind: recorded.kind.clone(),
        cloud_id: recorded.cloud_id.clone(),
        spec: recorded.spec.clone(),
        outputs: recorded.outputs.clone(),
        lineage: Some(lineage),
        origin: Origin::Untold,
        created: recorded.created,
        health: Health::Ready,
        via: recorded.via.clone(),
        foreign: Vec::new(),
    };
    let recorded = facts.holdings.values().flat_map(|holding| holding.objects());
    let recorded = recorded.map(|one| (one.id.clone(), Observed::Present(object(one))));
    let unrecorded = facts.wanted.iter().filter(|one| !facts.holdings.contains_key(&one.id)).map(|one| {
        let seen = match one.ownership {
            Ownership::Ours => Observed::Absent,
            Ownership::External(_) => Observed::Unknown(ReadFailure("it is not recorded, and was not read".to_owned())),
        };
        (one.id.clone(), seen)
    });
    recorded.chain(unrecorded).collect()
}

/// Runs all phases. `agree` is called with the plan and its facts and returns whether its changes are approved. It is not called for
/// a plan without changes.
///
/// A second run without changes in between plans nothing. The next run recovers a run that was killed at any point.
pub async fn run_phases(
    run: &Run<'_>,
    options: RunOptions,
    agree: &mut (dyn FnMut(&Plan, &Facts) -> bool + Send),
    stop: &CancellationToken,
) -> Result<RunOutcome, RunError> {
    run_with_approval(run, options, Approval::Asked(agree), stop).await
}

/// Runs all phases with a saved plan that was approved before: exactly that plan, or nothing.
pub async fn run_saved_plan(run: &Run<'_>, saved: &Plan, stop: &CancellationToken) -> Result<RunOutcome, RunError> {
    let gated = saved.steps.iter().any(|step| matches!(step.node, Node::Gate(_)));
    let options = RunOptions { purpose: saved.purpose, delete_data: saved.delete_data, gated };
    run_with_approval(run, options, Approval::Saved(saved), stop).await
}

/// How the changes of a plan are approved.
enum Approval<'a> {
    /// The plan is shown for approval.
    Asked(&'a mut (dyn FnMut(&Plan, &Facts) -> bool + Send)),
    /// This plan was approved before.
    Saved(&'a Plan),
}

async fn run_with_approval(
    run: &Run<'_>,
    options: RunOptions,
    agreement: Approval<'_>,
    stop: &CancellationToken,
) -> Result<RunOutcome, RunError> {
    let state = run.load().await?;
    let mut is_told = false;
    let mut wait = |holder: &Holder| {
        if !std::mem::replace(&mut is_told, true) {
            let text = format!("waiting for the scheduled backup (process {} since {:.0})", holder.pid, holder.since);
            tell(run, EventKind::Note { text });
        }
        !stop.is_cancelled()
    };
    let locked = state.lock_while(&run.operator, &run.places(), run.clock.clone(), &mut wait).await;
    let mut locked = locked.map_err(RunError::State)?;
    let mended = locked.mended().to_vec();
    mended.iter().for_each(|text| tell(run, EventKind::Note { text: text.clone() }));
    let result = run_locked(run, options, agreement, stop, &mut locked).await;
    // The watermarks of the journals are saved after a failure too. The caller gets the first error.
    let lineage = locked.lineage();
    let closed = locked.close().await.map_err(RunError::State);
    let (plan, outcome, recovered) = result?;
    closed?;
    Ok(RunOutcome { lineage, plan, outcome, recovered, mended })
}

async fn run_locked(
    run: &Run<'_>,
    options: RunOptions,
    mut agreement: Approval<'_>,
    stop: &CancellationToken,
    locked: &mut Locked,
) -> Result<(Option<Plan>, Outcome, usize), RunError> {
    let providers = run.providers();
    if let Some(hold) = locked.held().await.map_err(RunError::State)? {
        return Err(RunError::Frozen(Box::new(hold)));
    }
    lost_sites(run, locked)?;
    let drive = drive(run, &providers, locked);
    let mut before = recover(drive, stop).await.map_err(RunError::Apply)?;
    let recovered = before.done.len() + before.failed.len();
    if stop.is_cancelled() {
        return Ok((None, before, recovered));
    }
    let mut facts = read(run, locked, options).await?;
    let given_up = give_up_what_went_with_its_host(run, locked, &facts).await?;
    if !given_up.is_empty() {
        before.open.retain(|one| !given_up.contains(&one.resource));
        facts = read(run, locked, options).await?;
    }
    let planned = checked_plan(&facts)?;
    let plan = planned.plan().clone();
    if let Approval::Saved(saved) = agreement {
        is_the_saved_one(saved, &plan, &facts)?;
    }
    preflight(run, &plan).await?;
    let agreed = |agreement: &mut Approval<'_>| match agreement {
        Approval::Asked(agree) => agree(&plan, &facts),
        Approval::Saved(_) => true,
    };
    let consent = Consent { changes: plan.has_changes() && plan.refusals.is_empty() && agreed(&mut agreement) };
    let approved = approve(planned, consent).map_err(RunError::Refused)?;
    let entry = run.entry.as_ref().filter(|_| plan.purpose == Purpose::Up);
    if plan.has_changes() {
        write_approval(locked, &plan, entry).await?;
    } else if let Some(entry) = entry {
        write_entry(run, locked, entry).await?;
    }
    tell(run, EventKind::Planned { steps: plan.steps.len() });
    let after = apply(self::drive(run, &providers, locked), &approved, stop).await.map_err(RunError::Apply)?;
    // What recovery could not resolve stays open; the plan reports it as blocked.
    let outcome = after.after(Outcome { failed: Vec::new(), ..before });
    if is_complete(&outcome, &plan) {
        write_completion(run, locked, plan.purpose).await?;
    }
    Ok((Some(plan), outcome, recovered))
}

fn is_complete(outcome: &Outcome, plan: &Plan) -> bool {
    outcome.is_complete() && !outcome.stopped && plan.is_complete()
}

fn is_the_saved_one(saved: &Plan, plan: &Plan, facts: &Facts) -> Result<(), RunError> {
    // There was no lineage before the first `up`. Records under the present one would have been read, so there are
    // none.
    let lineage = saved.lineage.or(plan.lineage);
    if *saved == (Plan { lineage: saved.lineage, ..plan.clone() }) && lineage == plan.lineage {
        return Ok(());
    }
    let mut resources = saved.stale(facts);
    // Another deployment under the same name: none of the resources that the saved plan read exist here.
    if resources.is_empty() && lineage != plan.lineage {
        resources = saved.reads.keys().cloned().collect();
    }
    Err(if resources.is_empty() {
        RunError::OtherPlanner
    } else {
        RunError::Stale { purpose: saved.purpose, resources }
    })
}

pub(crate) fn drive<'d>(
    run: &Run<'d>,
    providers: &'d BTreeMap<SiteName, Arc<dyn Provider>>,
    state: &'d mut Locked,
) -> Drive<'d> {
    let (clock, events, gates, limits) = (run.clock.clone(), run.events, run.gates, run.limits);
    Drive { providers, state, clock, events, gates, limits }
}

fn tell(run: &Run<'_>, what: EventKind) {
    run.events.tell(Event { at: run.clock.now(), what });
}

fn checked_plan(facts: &Facts) -> Result<Audited, RunError> {
    let plan = plan(facts).map_err(RunError::Wanted)?;
    audit(plan, facts).map_err(RunError::Unlawful)
}

/// Why something could not be read, and what to do about it.
fn read_failure(error: &textnlp_provider::Error) -> ReadFailure {
    let why = error_chain(error);
    ReadFailure(error.hint.as_ref().map_or_else(|| why.clone(), |hint| format!("{why}: {hint}")))
}

fn lost_sites(run: &Run<'_>, state: &State) -> Result<(), RunError> {
    for (site, place) in state.places() {
        let known = run.sites.contains_key(site) || run.apart.contains(site);
        if !known && !state.is_empty(site) {
            return Err(RunError::LostSite { site: site.clone(), place: Box::new(place.clone()) });
        }
    }
    Ok(())
}

async fn preflight(run: &Run<'_>, plan: &Plan) -> Result<(), RunError> {
    let mut by_site: BTreeMap<&SiteName, Vec<Wanted>> = BTreeMap::new();
    for step in &plan.steps {
        let wanted = match &step.node {
            Node::Call(Call::Create { wanted, .. } | Call::Update { wanted, .. }) => wanted,
            Node::OneOf(one) => match &one.decides {
                ChoiceBasis::Difference { wanted, .. } => wanted,
                ChoiceBasis::As(_) => continue,
            },
            _ => continue,
        };
        by_site.entry(&step.site).or_default().push((**wanted).clone());
    }
    let mut problems = Vec::new();
    for (site, wanted) in by_site {
        match run.sites[site].provider.preflight(&wanted).await {
            // Sites on the same machine report the same problems.
            Ok(found) => {
                for problem in found.into_iter().filter(|problem| !problem.warning) {
                    if !problems.contains(&problem) {
                        problems.push(problem);
                    }
                }
            }
            Err(error) => {
                let fix =
                    error.hint.clone().unwrap_or_else(|| "fix the problem above and run the command again".to_owned());
                problems.push(Problem::new(site.as_str(), error.to_string(), fix));
            }
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(RunError::Preflight(Problems(problems))) }
}

async fn write_approval(locked: &mut Locked, plan: &Plan, entry: Option<&Entry>) -> Result<(), RunError> {
    let sites: BTreeSet<&SiteName> = plan.steps.iter().map(|step| &step.site).collect();
    for site in sites {
        let write = |writer: &mut crate::state::JournalWriter<'_>| {
            let body = writer.body(plan);
            writer.entry(Entry::Approved { purpose: plan.purpose, plan: body, tracked: true });
            if let Some(entry) = entry {
                writer.entry(entry.clone());
            }
        };
        locked.commit(site, write).await.map_err(RunError::State)?;
    }
    Ok(())
}

/// Records why the release may enter its phase where the plan has no changes to approve.
async fn write_entry(run: &Run<'_>, locked: &mut Locked, entry: &Entry) -> Result<(), RunError> {
    let sites: Vec<SiteName> = locked.sites().filter(|site| !run.apart.contains(*site)).cloned().collect();
    for site in sites {
        locked.commit(&site, |writer| writer.entry(entry.clone())).await.map_err(RunError::State)?;
    }
    Ok(())
}

/// Also completes an earlier run that was interrupted after its last change.
async fn write_completion(run: &Run<'_>, locked: &mut Locked, purpose: Purpose) -> Result<(), RunError> {
    let open: Vec<SiteName> = locked.unfinished().map(|(site, _)| site.clone()).collect();
    for site in open.iter().filter(|site| !run.apart.contains(*site)) {
        locked.commit(site, |writer| writer.entry(Entry::Completed { purpose })).await.map_err(RunError::State)?;
    }
    Ok(())
}

/// An operation on a resource behind a host cannot finish once that host is gone. What it may have created went with
/// the host.
///
/// A host without a record is not asked for: an earlier run removed it or found it gone, or an operator removed its record. An existing
/// host keeps its record while an operation inside it is open. Returns the resources of the operations that ended.
async fn give_up_what_went_with_its_host(
    run: &Run<'_>,
    locked: &mut Locked,
    facts: &Facts,
) -> Result<BTreeSet<ResourceId>, RunError> {
    let mut given_up = BTreeSet::new();
    for (site, here) in &facts.sites {
        let answers = |host: &ResourceId| {
            let answers = here.observed.iter().filter(|(id, _)| id == host);
            answers.map(|(_, seen)| *seen == Observed::Absent).reduce(|all, one| all && one)
        };
        let is_known = |host: &ResourceId| {
            let is_wanted = facts.purpose == Purpose::Up && here.wanted.iter().any(|wanted| wanted.id == *host);
            is_wanted || here.holdings.get(host).is_some_and(|holding| holding.objects().next().is_some())
        };
        let is_gone = |host: &ResourceId| {
            let is_open = here.open.values().any(|open| open.intent.operation.resource == *host);
            !is_open && answers(host).unwrap_or(!is_known(host))
        };
        let abandoned = here.open.iter().filter_map(|(op, open)| {
            let host = &open.intent.operation.via.as_ref()?.0;
            is_gone(host).then_some((*op, &open.intent.operation, host))
        });
        for (op, operation, host) in abandoned {
            let because = if answers(host).is_some() { "its host is gone" } else { "its host has no record any more" };
            let text =
                format!("the {} of `{}` ends unfinished: {because}: `{host}`", operation.verb, operation.resource);
            let end = End::Failed { left: None, because: because.to_owned(), refused: false };
            locked.commit(site, |writer| writer.entry(Entry::Ended { op, end })).await.map_err(RunError::State)?;
            run.events.tell(Event { at: run.clock.now(), what: EventKind::Note { text } });
            given_up.insert(operation.resource.clone());
        }
    }
    Ok(given_up)
}

/// Asks every provider for the actual objects, all sites in parallel.
pub async fn read(run: &Run<'_>, state: &State, options: RunOptions) -> Result<Facts, RunError> {
    lost_sites(run, state)?;
    let mut sites = BTreeMap::new();
    let all = run.sites.iter().map(|(name, site)| read_site(run, state, name, site));
    for read in join_all(all).await {
        let (name, facts) = read.map_err(RunError::State)?;
        sites.insert(name, facts);
    }
    Ok(facts(run, state, options, sites))
}

fn facts(run: &Run<'_>, state: &State, options: RunOptions, sites: BTreeMap<SiteName, SiteFacts>) -> Facts {
    Facts {
        environment: run.environment.clone(),
        purpose: options.purpose,
        lineage: state.lineage(),
        is_new: state.is_new(),
        delete_data: options.delete_data,
        gated: options.gated,
        now: run.clock.now(),
        sites,
    }
}

/// What is wanted and recorded at a site, before anything is observed.
fn unobserved(state: &State, name: &SiteName, site: &RunSite) -> Result<SiteFacts, StateError> {
    let holdings = state.holdings(name)?;
    let is_unfilled = |recorded: &&Recorded| {
        site.provider.database_part(recorded) == Some(DatabasePart::Loaded) && !site.provider.is_refilled(recorded)
    };
    let current = holdings.values().filter_map(|holding| holding.current.as_ref());
    let unfilled = current.filter(is_unfilled).map(|recorded| recorded.id.clone()).collect();
    Ok(SiteFacts {
        provider: site.provider.clone(),
        protect_data: site.protect_data,
        wanted: site.wanted.clone(),
        holdings,
        observed: Vec::new(),
        unfilled,
        open: state.open(name)?,
        unresolved: state.unresolved(name),
        took: state.took(name),
        shortages: state.shortages(name),
    })
}

/// How often a site is polled for recently created objects that are not visible yet.
const MAX_POLLS: u32 = 5;

async fn read_site(
    run: &Run<'_>,
    state: &State,
    name: &SiteName,
    site: &RunSite,
) -> Result<(SiteName, SiteFacts), StateError> {
    tell(run, EventKind::Looking { site: name.clone() });
    let mut facts = unobserved(state, name, site)?;
    let recorded: Vec<_> = facts
        .holdings
        .values()
        .flat_map(|holding| holding.current.iter().chain(holding.old.iter().map(|old| &old.recorded)).cloned())
        .collect();
    let (external, mut ours): (Vec<_>, Vec<_>) =
        site.wanted.iter().cloned().partition(|wanted| matches!(wanted.ownership, Ownership::External(_)));
    // The provider needs the ids of the existing hosts that other resources are reached through.
    let hosts: BTreeSet<&ResourceId> = site.wanted.iter().filter_map(|wanted| Some(&wanted.via.as_ref()?.0)).collect();
    ours.extend(external.iter().filter(|wanted| hosts.contains(&wanted.id)).cloned());
    let scope = Scope {
        lineage: state.lineage(),
        environment: run.environment,
        site: name,
        wanted: &ours,
        recorded: &recorded,
    };
    for poll in 0..MAX_POLLS {
        facts.observed = match site.provider.observe(&scope).await {
            Ok(observed) => observed,
            Err(error) => {
                let why = read_failure(&error);
                let all = ours.iter().map(|wanted| &wanted.id).chain(recorded.iter().map(|recorded| &recorded.id));
                all.map(|id| (id.clone(), Observed::Unknown(why.clone()))).collect()
            }
        };
        let Some(time) = settling(&facts, run.clock.now()).filter(|_| poll + 1 < MAX_POLLS) else { break };
        run.clock.sleep(time).await;
    }
    let externals: BTreeSet<&ResourceId> = external.iter().map(|wanted| &wanted.id).collect();
    facts.observed.retain(|(id, _)| !externals.contains(id));
    for wanted in &external {
        let Ownership::External(id) = &wanted.ownership else { continue };
        let seen = match site.provider.read(&wanted.kind, id).await {
            Ok(seen) => seen,
            Err(error) => Observed::Unknown(read_failure(&error)),
        };
        facts.observed.push((wanted.id.clone(), seen));
    }
    facts.observed.sort_by(|a, b| (&a.0, cloud_id(&a.1)).cmp(&(&b.0, cloud_id(&b.1))));
    Ok((name.clone(), facts))
}

fn cloud_id(seen: &Observed) -> Option<&textnlp_provider::CloudId> {
    match seen {
        Observed::Present(Object { cloud_id, .. }) => Some(cloud_id),
        _ => None,
    }
}

/// How long to wait for recorded objects that are too young to be listed reliably.
fn settling(facts: &SiteFacts, now: Timestamp) -> Option<Duration> {
    let kinds: BTreeMap<&str, Duration> = facts
        .provider
        .kinds()
        .iter()
        .map(|kind| (kind.name, kind.settles))
        .filter(|(_, time)| !time.is_zero())
        .collect();
    if kinds.is_empty() {
        return None;
    }
    // Other objects of a resource, replaced or not recorded, say nothing about the object in use.
    let is_current = |id: &ResourceId, object: &Object| {
        let current = facts.holdings.get(id).and_then(|holding| holding.current.as_ref());
        current.is_some_and(|current| current.cloud_id == object.cloud_id)
    };
    let is_shown = |id: &ResourceId, seen: &Observed| match seen {
        Observed::Present(object) => is_current(id, object),
        Observed::Unknown(_) => true,
        Observed::Absent => false,
    };
    let shown: BTreeSet<&ResourceId> =
        facts.observed.iter().filter(|(id, seen)| is_shown(id, seen)).map(|(id, _)| id).collect();
    let waits = facts.holdings.iter().filter(|(id, _)| !shown.contains(id)).filter_map(|(_, holding)| {
        let settles = *kinds.get(holding.current.as_ref()?.kind.as_str())?;
        crate::state::within(now, holding.since, settles).then_some(settles / (MAX_POLLS - 1))
    });
    waits.max()
}
