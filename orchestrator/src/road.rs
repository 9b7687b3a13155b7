//! The story from facts to a running service: lock, finish what a dead run left, read, plan, agree, apply.
//!
//! [`look`] plans without a lock and changes nothing. [`travel`] goes the whole way; `up` and `down` differ only in their
//! [`Purpose`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use textnlp_provider::{
    EnvironmentName, Lineage, Object, Observed, OperationId, Ownership, Problem, Problems, Provider, ResourceId, Scope,
    SiteName, Wanted, Why, told,
};
use tokio_util::sync::CancellationToken;

use crate::apply::{ApplyError, Drive, Gates, Limits, Outcome, apply, recover};
use crate::clock::Clock;
use crate::event::{Event, Events, What};
use crate::plan::{
    Audited, Breach, Call, Consent, Decides, Facts, Node, Plan, Purpose, Refused, SiteFacts, approve, audit, plan,
};
use crate::state::{End, Entry, Hold, Locked, Operator, Place, State, StateError, Store};

/// Everything that a road needs.
pub struct Road<'a> {
    /// Which environment.
    pub environment: &'a EnvironmentName,
    /// Where its state is.
    pub store: Arc<dyn Store>,
    /// Its sites, and those that only the state still knows (with nothing wanted).
    pub sites: &'a BTreeMap<SiteName, RoadSite>,
    /// Sites that are left as they are, because somebody asked for others.
    pub apart: &'a BTreeSet<SiteName>,
    /// The lineage if this is the first time: a fresh random one.
    pub fresh: Lineage,
    /// Who travels, and why.
    pub operator: Operator,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Who listens.
    pub events: &'a dyn Events,
    /// Who measures at gates; where there is nobody, they stay shut.
    pub gates: Option<&'a dyn Gates>,
    /// How much at once.
    pub limits: Limits,
}

/// One site of a road.
#[derive(Clone)]
pub struct RoadSite {
    /// What it is bound to.
    pub place: Place,
    /// Who is called there.
    pub provider: Arc<dyn Provider>,
    /// Whether kinds that hold data are protected there.
    pub protect_data: bool,
    /// What should be there.
    pub wanted: Vec<Wanted>,
}

/// What the road is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// `up` or `down`.
    pub purpose: Purpose,
    /// Whether what holds data may be removed: a person typed the environment's name.
    pub delete_data: bool,
    /// Whether what is replaced or no longer wanted goes only when the new was measured from outside.
    pub gated: bool,
}

/// Where a road led.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Which deployment.
    pub lineage: Lineage,
    /// What was planned; `None` when a stop came before.
    pub plan: Option<Plan>,
    /// What came of it, recovery included.
    pub outcome: Outcome,
    /// Operations of a dead run that were finished first.
    pub recovered: usize,
    /// What had to be mended in the journals.
    pub mended: Vec<String>,
}

impl Ask {
    /// `up` as it is without any flag.
    pub const UP: Self = Self { purpose: Purpose::Up, delete_data: false, gated: false };
}

impl Arrival {
    /// Whether everything is as the environment says.
    pub fn is_complete(&self) -> bool {
        self.outcome.is_complete() && !self.outcome.stopped && self.plan.as_ref().is_some_and(Plan::is_complete)
    }
}

/// Why a road could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum RoadError {
    /// The state.
    #[error("open the state")]
    State(#[source] StateError),
    /// The state still has objects at a site that nobody gave a provider for.
    #[error("site `{site}` still has resources ({place}), and its provider is not at hand")]
    LostSite {
        /// Which site.
        site: SiteName,
        /// What it is bound to.
        place: Box<Place>,
    },
    /// Somebody froze the environment.
    #[error("{} froze this environment at {:.0}: {}", .0.by, .0.since, .0.why)]
    Frozen(Box<Hold>),
    /// What is wanted is wrong in itself.
    #[error("plan")]
    Wanted(#[source] Problems),
    /// The planner broke one of its laws. Nothing was done.
    #[error("the plan breaks a law, nothing was done; this is a mistake of this program: {}", listed(.0))]
    Unlawful(Vec<Breach>),
    /// Something stands in the way at the provider.
    #[error("preflight")]
    Preflight(#[source] Problems),
    /// What a saved plan was made from is not what is there now. Nothing of it was done.
    #[error("the saved plan is stale: {}", changed(.resources))]
    Stale {
        /// What the plan was for.
        purpose: Purpose,
        /// The resources of which something else was read.
        resources: Vec<ResourceId>,
    },
    /// The same facts lead to another plan here than where it was saved. Nothing of it was done.
    #[error("this program makes another plan of the same facts than the one that saved it")]
    OtherPlanner,
    /// Nobody agreed to the plan, or it cannot be approved.
    #[error("approve the plan")]
    Refused(#[source] Refused),
    /// Applying could not go on.
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

fn listed(breaches: &[Breach]) -> String {
    breaches.iter().map(Breach::to_string).collect::<Vec<_>>().join("; ")
}

impl Road<'_> {
    fn places(&self) -> BTreeMap<SiteName, Place> {
        self.sites.iter().map(|(name, site)| (name.clone(), site.place.clone())).collect()
    }

    fn providers(&self) -> BTreeMap<SiteName, Arc<dyn Provider>> {
        self.sites.iter().map(|(name, site)| (name.clone(), site.provider.clone())).collect()
    }

    async fn load(&self) -> Result<State, RoadError> {
        let state = State::load(self.store.clone(), self.environment, self.fresh).await.map_err(RoadError::State)?;
        state.check_places(&self.places()).map_err(RoadError::State)?;
        Ok(state)
    }
}

/// Reads what is there and plans, without a lock and without changing anything.
pub async fn look(road: &Road<'_>, ask: Ask) -> Result<(Audited, Facts), RoadError> {
    let state = road.load().await?;
    let facts = read(road, &state, ask).await?;
    Ok((checked_plan(&facts)?, facts))
}

/// Goes the whole way. `agree` is shown the plan and says whether its changes may be made; it is not asked about a plan without changes.
///
/// A second call with nothing changed in between plans nothing. A run that was killed anywhere is finished by the next one.
pub async fn travel(
    road: &Road<'_>,
    ask: Ask,
    agree: &mut (dyn FnMut(&Plan) -> bool + Send),
    stop: &CancellationToken,
) -> Result<Arrival, RoadError> {
    whole_way(road, ask, Agreement::Asked(agree), stop).await
}

/// Goes the whole way by a plan that somebody agreed to before: exactly that one, or none.
pub async fn travel_as_planned(road: &Road<'_>, saved: &Plan, stop: &CancellationToken) -> Result<Arrival, RoadError> {
    let gated = saved.steps.iter().any(|step| matches!(step.node, Node::Gate(_)));
    let ask = Ask { purpose: saved.purpose, delete_data: saved.delete_data, gated };
    whole_way(road, ask, Agreement::Saved(saved), stop).await
}

/// Who agrees to the changes of a plan.
enum Agreement<'a> {
    /// Somebody is shown it.
    Asked(&'a mut (dyn FnMut(&Plan) -> bool + Send)),
    /// Somebody agreed to this one before.
    Saved(&'a Plan),
}

async fn whole_way(
    road: &Road<'_>,
    ask: Ask,
    agreement: Agreement<'_>,
    stop: &CancellationToken,
) -> Result<Arrival, RoadError> {
    let state = road.load().await?;
    let mut locked = state.lock(&road.operator, &road.places(), road.clock.clone()).await.map_err(RoadError::State)?;
    let mended = locked.mended().to_vec();
    mended.iter().for_each(|text| tell(road, What::Note { text: text.clone() }));
    let arrived = go(road, ask, agreement, stop, &mut locked).await;
    // How far the journals went is remembered after a failure too; the failure is what the caller hears of.
    let lineage = locked.lineage();
    let closed = locked.close().await.map_err(RoadError::State);
    let (plan, outcome, recovered) = arrived?;
    closed?;
    Ok(Arrival { lineage, plan, outcome, recovered, mended })
}

async fn go(
    road: &Road<'_>,
    ask: Ask,
    mut agreement: Agreement<'_>,
    stop: &CancellationToken,
    locked: &mut Locked,
) -> Result<(Option<Plan>, Outcome, usize), RoadError> {
    let providers = road.providers();
    if let Some(hold) = locked.held().await.map_err(RoadError::State)? {
        return Err(RoadError::Frozen(Box::new(hold)));
    }
    lost_sites(road, locked)?;
    let drive = drive(road, &providers, locked);
    let before = recover(drive, stop).await.map_err(RoadError::Apply)?;
    let recovered = before.done.len() + before.failed.len();
    if stop.is_cancelled() {
        return Ok((None, before, recovered));
    }
    let mut facts = read(road, locked, ask).await?;
    if give_up_what_went_with_its_host(locked, &facts).await? {
        facts = read(road, locked, ask).await?;
    }
    let planned = checked_plan(&facts)?;
    let plan = planned.plan().clone();
    if let Agreement::Saved(saved) = agreement {
        is_the_saved_one(saved, &plan, &facts)?;
    }
    preflight(road, &plan).await?;
    let agreed = |agreement: &mut Agreement<'_>| match agreement {
        Agreement::Asked(agree) => agree(&plan),
        Agreement::Saved(_) => true,
    };
    let consent = Consent { changes: plan.has_changes() && plan.refusals.is_empty() && agreed(&mut agreement) };
    let approved = approve(planned, consent).map_err(RoadError::Refused)?;
    if plan.has_changes() {
        write_approval(locked, &plan).await?;
    }
    tell(road, What::Planned { steps: plan.steps.len() });
    let after = apply(self::drive(road, &providers, locked), &approved, stop).await.map_err(RoadError::Apply)?;
    // What recovery could not finish and nobody could say anything about stays open, and the plan says so as blocked.
    Ok((Some(plan), after.after(Outcome { failed: Vec::new(), ..before }), recovered))
}

fn is_the_saved_one(saved: &Plan, plan: &Plan, facts: &Facts) -> Result<(), RoadError> {
    // Before the first `up` there was no lineage; nothing is recorded under the one that there is now, or it would have been read.
    let lineage = saved.lineage.or(plan.lineage);
    if *saved == (Plan { lineage: saved.lineage, ..plan.clone() }) && lineage == plan.lineage {
        return Ok(());
    }
    let mut resources = saved.stale(facts);
    // Another deployment under the same name: whatever was read of the other one is not there.
    if resources.is_empty() && lineage != plan.lineage {
        resources = saved.reads.keys().cloned().collect();
    }
    Err(if resources.is_empty() {
        RoadError::OtherPlanner
    } else {
        RoadError::Stale { purpose: saved.purpose, resources }
    })
}

fn drive<'d>(
    road: &Road<'d>,
    providers: &'d BTreeMap<SiteName, Arc<dyn Provider>>,
    state: &'d mut Locked,
) -> Drive<'d> {
    let (clock, events, gates, limits) = (road.clock.clone(), road.events, road.gates, road.limits);
    Drive { providers, state, clock, events, gates, limits }
}

fn tell(road: &Road<'_>, what: What) {
    road.events.tell(Event { at: road.clock.now(), what });
}

fn checked_plan(facts: &Facts) -> Result<Audited, RoadError> {
    let plan = plan(facts).map_err(RoadError::Wanted)?;
    audit(plan, facts).map_err(RoadError::Unlawful)
}

fn lost_sites(road: &Road<'_>, state: &State) -> Result<(), RoadError> {
    for (site, place) in state.places() {
        let known = road.sites.contains_key(site) || road.apart.contains(site);
        if !known && !state.is_empty(site) {
            return Err(RoadError::LostSite { site: site.clone(), place: Box::new(place.clone()) });
        }
    }
    Ok(())
}

async fn preflight(road: &Road<'_>, plan: &Plan) -> Result<(), RoadError> {
    let mut asked: BTreeMap<&SiteName, Vec<Wanted>> = BTreeMap::new();
    for step in &plan.steps {
        let wanted = match &step.node {
            Node::Call(Call::Create { wanted, .. } | Call::Update { wanted, .. }) => wanted,
            Node::OneOf(one) => match &one.decides {
                Decides::Difference { wanted, .. } => wanted,
                Decides::As(_) => continue,
            },
            _ => continue,
        };
        asked.entry(&step.site).or_default().push((**wanted).clone());
    }
    let mut problems = Vec::new();
    for (site, wanted) in asked {
        match road.sites[site].provider.preflight(&wanted).await {
            // Sites of one machine find the same things wrong with it.
            Ok(found) => {
                for problem in found.into_iter().filter(|problem| !problem.warning) {
                    if !problems.contains(&problem) {
                        problems.push(problem);
                    }
                }
            }
            Err(error) => {
                let fix = error.hint.clone().unwrap_or_else(|| "mend this and run the command again".to_owned());
                problems.push(Problem::new(site.as_str(), error.to_string(), fix));
            }
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(RoadError::Preflight(Problems(problems))) }
}

async fn write_approval(locked: &mut Locked, plan: &Plan) -> Result<(), RoadError> {
    let sites: BTreeSet<&SiteName> = plan.steps.iter().map(|step| &step.site).collect();
    for site in sites {
        let purpose = plan.purpose.to_string();
        let write = |pen: &mut crate::state::Pen<'_>| {
            let plan = pen.body(plan);
            pen.entry(Entry::Approved { purpose, plan });
        };
        locked.commit(site, write).await.map_err(RoadError::State)?;
    }
    Ok(())
}

/// An operation on something that is reached through a host can never be finished once that host is gone, and what it may have made
/// went with the host.
async fn give_up_what_went_with_its_host(locked: &mut Locked, facts: &Facts) -> Result<bool, RoadError> {
    let mut any = false;
    for (site, here) in &facts.sites {
        let is_gone = |host: &ResourceId| {
            let mut answers = here.observed.iter().filter(|(id, _)| id == host).map(|(_, seen)| seen).peekable();
            answers.peek().is_some()
                && answers.all(|seen| *seen == Observed::Absent)
                && here.open.values().all(|open| open.intent.operation.resource != *host)
        };
        let given_up: Vec<OperationId> = here
            .open
            .iter()
            .filter(|(_, open)| open.intent.operation.via.as_ref().is_some_and(|host| is_gone(&host.0)))
            .map(|(op, _)| *op)
            .collect();
        for op in given_up {
            let end = End::Failed { left: None, because: "its host is gone".to_owned() };
            locked.commit(site, |pen| pen.entry(Entry::Ended { op, end })).await.map_err(RoadError::State)?;
            any = true;
        }
    }
    Ok(any)
}

/// Asks every provider what is there, all sites at once.
pub async fn read(road: &Road<'_>, state: &State, ask: Ask) -> Result<Facts, RoadError> {
    lost_sites(road, state)?;
    let mut sites = BTreeMap::new();
    let all = road.sites.iter().map(|(name, site)| read_site(road, state, name, site));
    for read in join_all(all).await {
        let (name, facts) = read.map_err(RoadError::State)?;
        sites.insert(name, facts);
    }
    Ok(Facts {
        environment: road.environment.clone(),
        purpose: ask.purpose,
        lineage: state.lineage(),
        is_new: state.is_new(),
        delete_data: ask.delete_data,
        gated: ask.gated,
        now: road.clock.now(),
        sites,
    })
}

/// How often a site is asked again for objects that were made a moment ago and are not visible yet.
const LOOKS: u32 = 5;

async fn read_site(
    road: &Road<'_>,
    state: &State,
    name: &SiteName,
    site: &RoadSite,
) -> Result<(SiteName, SiteFacts), StateError> {
    tell(road, What::Looking { site: name.clone() });
    let (holdings, open) = (state.holdings(name)?, state.open(name)?);
    let recorded: Vec<_> = holdings
        .values()
        .flat_map(|holding| holding.current.iter().chain(holding.old.iter().map(|old| &old.recorded)).cloned())
        .collect();
    let (external, mut ours): (Vec<_>, Vec<_>) =
        site.wanted.iter().cloned().partition(|wanted| matches!(wanted.ownership, Ownership::External(_)));
    // Who looks at what is reached through an existing object has to know which one that is.
    let hosts: BTreeSet<&ResourceId> = site.wanted.iter().filter_map(|wanted| Some(&wanted.via.as_ref()?.0)).collect();
    ours.extend(external.iter().filter(|wanted| hosts.contains(&wanted.id)).cloned());
    let scope = Scope {
        lineage: state.lineage(),
        environment: road.environment,
        site: name,
        wanted: &ours,
        recorded: &recorded,
    };
    let mut facts = SiteFacts {
        provider: site.provider.clone(),
        protect_data: site.protect_data,
        wanted: site.wanted.clone(),
        holdings,
        observed: Vec::new(),
        open,
        took: state.took(name),
    };
    for look in 0..LOOKS {
        facts.observed = match site.provider.observe(&scope).await {
            Ok(observed) => observed,
            Err(error) => {
                let why = Why(told(&error));
                let all = ours.iter().map(|wanted| &wanted.id).chain(recorded.iter().map(|recorded| &recorded.id));
                all.map(|id| (id.clone(), Observed::Unknown(why.clone()))).collect()
            }
        };
        let Some(time) = settling(&facts, road.clock.now()).filter(|_| look + 1 < LOOKS) else { break };
        road.clock.sleep(time).await;
    }
    let externals: BTreeSet<&ResourceId> = external.iter().map(|wanted| &wanted.id).collect();
    facts.observed.retain(|(id, _)| !externals.contains(id));
    for wanted in &external {
        let Ownership::External(id) = &wanted.ownership else { continue };
        let seen = match site.provider.read(&wanted.kind, id).await {
            Ok(seen) => seen,
            Err(error) => Observed::Unknown(Why(told(&error))),
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

/// How long to wait for recorded objects that are so young that they may not be listed yet.
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
    // One that was replaced and is still there says nothing about the one in use.
    let is_old = |id: &ResourceId, object: &Object| {
        let holding = facts.holdings.get(id);
        holding.is_some_and(|holding| holding.old.iter().any(|old| old.recorded.cloud_id == object.cloud_id))
    };
    let is_shown = |id: &ResourceId, seen: &Observed| match seen {
        Observed::Present(object) => !is_old(id, object),
        Observed::Unknown(_) => true,
        Observed::Absent => false,
    };
    let shown: BTreeSet<&ResourceId> =
        facts.observed.iter().filter(|(id, seen)| is_shown(id, seen)).map(|(id, _)| id).collect();
    let waits = facts.holdings.iter().filter(|(id, _)| !shown.contains(id)).filter_map(|(_, holding)| {
        let settles = *kinds.get(holding.current.as_ref()?.kind.as_str())?;
        crate::state::within(now, holding.since, settles).then_some(settles / (LOOKS - 1))
    });
    waits.max()
}
