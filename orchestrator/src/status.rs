//! Status, drift and history: pure functions over facts and journals.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use textnlp_provider::{
    CloudId, EnvironmentName, FieldChange, Health, KindName, Lineage, Observed, OperationId, Outputs, Ownership,
    Recorded, ResourceId, SiteName, Verb, Wanted,
};

use crate::gate::RecordedExemption;
use crate::plan::{Call, Facts, Plan, Purpose, SiteFacts};
use crate::state::{End, Entry, OpenOperation, Record, RecordedObjects, SiteLocation, State, StateError};

/// The status of an environment.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The environment.
    pub environment: EnvironmentName,
    /// The lineage of the deployment; `None` if there was never any.
    pub lineage: Option<Lineage>,
    /// Every recorded resource exists and is healthy, no operation is open, and the last run completed.
    pub ready: bool,
    /// A `down` ended, and nothing was deployed since: at most data is left. Then it is not ready.
    pub down: bool,
    /// Its sites.
    pub sites: Vec<SiteStatus>,
    /// The recorded resources, in order of ids.
    pub resources: Vec<ResourceStatus>,
    /// Differences between the actual state and the record.
    pub drift: Vec<Drift>,
    /// Operations that were started and have not ended.
    pub open: Vec<OpenStatus>,
    /// Runs that did not do everything that was approved.
    pub unfinished: Vec<Unfinished>,
}

impl Status {
    /// The same of an environment that was taken down, if so.
    #[must_use]
    pub fn or_down(self, down: bool) -> Self {
        Self { ready: self.ready && !down, down, ..self }
    }
}

/// A run that did not do everything that was approved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unfinished {
    /// The site.
    pub site: SiteName,
    /// `up` or `down`.
    pub purpose: Purpose,
    /// When its plan was approved.
    pub since: Timestamp,
    /// The operator.
    pub by: String,
    /// Resources that it wanted and that have no record.
    pub missing: Vec<ResourceId>,
}

impl std::fmt::Display for Unfinished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 3;
        let Self { site, purpose, since, by, missing } = self;
        write!(f, "`{purpose}` of {} by {by} did not complete at {site}", since.strftime("%Y-%m-%d %H:%M"))?;
        let shown: Vec<&str> = missing.iter().take(SHOWN).map(ResourceId::as_str).collect();
        match missing.len() {
            0 => Ok(()),
            n if n > SHOWN => write!(f, "; missing: {} and {} more", shown.join(", "), n - SHOWN),
            _ => write!(f, "; missing: {}", shown.join(", ")),
        }
    }
}

/// The status of a site.
#[derive(Debug, Clone, Serialize)]
pub struct SiteStatus {
    /// Its name.
    pub site: SiteName,
    /// The location it is bound to.
    pub place: Option<SiteLocation>,
    /// The count of recorded resources.
    pub resources: usize,
    /// The count of resources that exist and are healthy.
    pub ready: usize,
}

/// The status of a recorded resource.
#[derive(Debug, Clone, Serialize)]
pub struct ResourceStatus {
    /// Its id.
    pub resource: ResourceId,
    /// Its kind.
    pub kind: KindName,
    /// Its site.
    pub site: SiteName,
    /// Its health.
    #[serde(flatten)]
    pub standing: ResourceHealth,
    /// The provider's id of its object.
    pub cloud_id: CloudId,
    /// When it was last created or changed.
    pub since: Timestamp,
    /// Outputs that other resources read.
    pub outputs: Outputs,
    /// Whether its removal needs a typed confirmation.
    pub protected: bool,
    /// Another program that applies its object too, such as a GitOps controller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub controller: Option<String>,
}

/// The health of a recorded resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "standing", content = "why", rename_all = "snake_case")]
pub enum ResourceHealth {
    /// It exists and is healthy.
    Ready,
    /// It exists and is unhealthy: the reason.
    Degraded(String),
    /// It does not exist.
    Gone,
    /// It could not be read: the reason.
    Unknown(String),
    /// Its creation failed halfway.
    Tainted,
}

impl std::fmt::Display for ResourceHealth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::Degraded(why) => write!(f, "degraded: {why}"),
            Self::Gone => f.write_str("gone"),
            Self::Unknown(why) => write!(f, "unknown: {why}"),
            Self::Tainted => f.write_str("its creation did not finish"),
        }
    }
}

/// A difference between the record and the actual state.
#[derive(Debug, Clone, Serialize)]
pub struct Drift {
    /// The resource.
    pub resource: ResourceId,
    /// One of `gone`, `changed`, `degraded`, `unknown`, `not recorded`.
    pub what: String,
    /// The provider's message, if it gave one.
    pub why: Option<String>,
    /// The fields that differ: `before` is the actual value, `after` is the recorded one.
    pub fields: Vec<FieldChange>,
}

/// An open operation.
#[derive(Debug, Clone, Serialize)]
pub struct OpenStatus {
    /// Its id.
    pub operation: OperationId,
    /// The resource.
    pub resource: ResourceId,
    /// The verb of the call.
    pub verb: Verb,
    /// The provider's last message about what it waits for.
    pub says: Option<String>,
    /// When it was started.
    pub begun: Timestamp,
}

/// The runs that did not do everything that was approved. Whether one is still in progress is not known here.
pub async fn unfinished(state: &State) -> Result<Vec<Unfinished>, StateError> {
    let mut all = Vec::new();
    for (site, run) in state.unfinished() {
        let holdings = state.holdings(site)?;
        // A plan of another version says nothing; the run is unfinished in any case.
        let plan = state.body::<Plan>(site, &run.plan).await.ok().filter(|plan| plan.purpose == Purpose::Up);
        let steps = plan.iter().flat_map(|plan| &plan.steps);
        let creates = |call: &&Call| matches!(call, Call::Create { .. });
        let steps = steps.filter(|step| step.site == *site && step.node.calls().iter().any(creates));
        let mut missing: Vec<ResourceId> =
            steps.map(|step| step.resource.clone()).filter(|id| !holdings.contains_key(id)).collect();
        missing.sort_unstable();
        missing.dedup();
        let (site, by) = (site.clone(), run.by.clone());
        all.push(Unfinished { site, purpose: run.purpose, since: run.since, by, missing });
    }
    Ok(all)
}

/// Summarizes the facts. `unfinished`: see [`unfinished`].
pub fn status(facts: &Facts, locations: &BTreeMap<SiteName, SiteLocation>, unfinished: Vec<Unfinished>) -> Status {
    let mut status = Status {
        environment: facts.environment.clone(),
        lineage: (!facts.is_new).then_some(facts.lineage),
        ready: false,
        down: false,
        sites: Vec::new(),
        resources: Vec::new(),
        drift: drift(facts),
        open: Vec::new(),
        unfinished,
    };
    for (name, site) in &facts.sites {
        let before = status.resources.len();
        for (id, holding) in &site.holdings {
            if let Some(recorded) = &holding.current {
                status.resources.push(resource_status(id, recorded, holding.since, site));
            }
        }
        let here = &status.resources[before..];
        let ready = here.iter().filter(|resource| resource.standing == ResourceHealth::Ready).count();
        let place = locations.get(name).cloned();
        status.sites.push(SiteStatus { site: name.clone(), place, resources: here.len(), ready });
        status.open.extend(site.open.iter().map(|(operation, open)| OpenStatus {
            operation: *operation,
            resource: open.intent.operation.resource.clone(),
            verb: open.intent.operation.verb,
            says: open.says.clone(),
            begun: open.begun,
        }));
    }
    status.ready = !status.resources.is_empty()
        && status.open.is_empty()
        && status.unfinished.is_empty()
        && status.resources.iter().all(|resource| resource.standing == ResourceHealth::Ready);
    status
}

fn resource_status(id: &ResourceId, recorded: &Recorded, since: Timestamp, site: &SiteFacts) -> ResourceStatus {
    let seen = sight(id, recorded, site);
    let controller = match &seen {
        Observed::Present(object) => site.provider.controller(object),
        Observed::Absent | Observed::Unknown(_) => None,
    };
    let standing = match seen {
        _ if recorded.tainted => ResourceHealth::Tainted,
        Observed::Present(object) => match &object.health {
            Health::Ready => ResourceHealth::Ready,
            Health::Degraded(reason) => ResourceHealth::Degraded(reason.clone()),
        },
        Observed::Absent => ResourceHealth::Gone,
        Observed::Unknown(why) => ResourceHealth::Unknown(why.0),
    };
    ResourceStatus {
        resource: id.clone(),
        kind: recorded.kind.clone(),
        site: recorded.site.clone(),
        standing,
        cloud_id: recorded.cloud_id.clone(),
        since,
        outputs: recorded.outputs.clone(),
        protected: recorded.protected,
        controller,
    }
}

/// The observation of the recorded object.
fn sight(id: &ResourceId, recorded: &Recorded, site: &SiteFacts) -> Observed {
    let mut answers = site.observed.iter().filter(|(seen, _)| seen == id).map(|(_, seen)| seen);
    let mut last = None;
    for answer in answers.by_ref() {
        match answer {
            Observed::Present(object) if object.cloud_id == recorded.cloud_id => return answer.clone(),
            Observed::Unknown(_) => last = Some(answer.clone()),
            _ => last = last.or(Some(Observed::Absent)),
        }
    }
    last.unwrap_or_else(|| {
        Observed::Unknown(textnlp_provider::ReadFailure("the provider did not report it".to_owned()))
    })
}

/// Compares the record with the actual state. The environment file plays no part.
pub fn drift(facts: &Facts) -> Vec<Drift> {
    let mut all = Vec::new();
    for site in facts.sites.values() {
        for (id, holding) in &site.holdings {
            if let Some(recorded) = &holding.current {
                all.extend(drift_of(id, recorded, site));
            }
        }
        for (id, seen) in &site.observed {
            let Observed::Present(object) = seen else { continue };
            let ids = site.holdings.get(id).into_iter().flat_map(RecordedObjects::cloud_ids);
            let recorded = ids.into_iter().any(|cloud_id| *cloud_id == object.cloud_id);
            let ours = object.lineage == Some(facts.lineage);
            if ours && !recorded {
                let why = Some(format!("`{}` belongs to this deployment and is not in the state", object.cloud_id));
                all.push(Drift { resource: id.clone(), what: "not recorded".to_owned(), why, fields: Vec::new() });
            }
        }
    }
    all
}

fn drift_of(id: &ResourceId, recorded: &Recorded, site: &SiteFacts) -> Option<Drift> {
    let drift = |what: &str, why: Option<String>, fields: Vec<FieldChange>| {
        Some(Drift { resource: id.clone(), what: what.to_owned(), why, fields })
    };
    match sight(id, recorded, site) {
        Observed::Absent => drift("gone", None, Vec::new()),
        Observed::Unknown(why) => drift("unknown", Some(why.0), Vec::new()),
        Observed::Present(_) if matches!(recorded.ownership, Ownership::External(_)) => None,
        Observed::Present(object) => {
            let fields = site.provider.diff(&as_recorded(recorded), recorded, &object);
            match object.health {
                Health::Degraded(reason) => drift("degraded", Some(reason), fields),
                Health::Ready if !fields.is_empty() => drift("changed", None, fields),
                Health::Ready => None,
            }
        }
    }
}

/// The resource as wanted if the record were the environment file.
fn as_recorded(recorded: &Recorded) -> Wanted {
    Wanted {
        id: recorded.id.clone(),
        kind: recorded.kind.clone(),
        site: recorded.site.clone(),
        via: recorded.via.clone(),
        spec: recorded.spec.clone(),
        needs: recorded.needs.clone(),
        ownership: recorded.ownership.clone(),
        protected: recorded.protected,
    }
}

/// Everything known about one resource.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// The resource.
    pub resource: ResourceId,
    /// Its record.
    pub holding: Option<RecordedObjects>,
    /// Its health.
    pub standing: Option<ResourceHealth>,
    /// Its drift.
    pub drift: Option<Drift>,
    /// Its open operations.
    pub open: Vec<OpenStatus>,
    /// Its history, oldest first.
    pub history: Vec<Line>,
}

/// One line of history.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// The site.
    pub site: SiteName,
    /// The number of the record in the journal.
    pub n: u64,
    /// When it was written.
    pub at: Timestamp,
    /// The operator.
    pub by: String,
    /// The reason that the operator gave.
    pub reason: Option<String>,
    /// Name and version of the program.
    pub tool: String,
    /// The resource, if the record is about one.
    pub resource: Option<ResourceId>,
    /// The event, as text.
    pub text: String,
}

/// Collects everything known about one resource.
pub async fn explain(state: &State, facts: &Facts, resource: &ResourceId) -> Result<Explanation, StateError> {
    let mut explanation = Explanation {
        resource: resource.clone(),
        holding: None,
        standing: None,
        drift: drift(facts).into_iter().find(|drift| drift.resource == *resource),
        open: Vec::new(),
        history: Vec::new(),
    };
    for (name, site) in &facts.sites {
        if let Some(holding) = site.holdings.get(resource) {
            let current = holding.current.as_ref();
            explanation.standing =
                current.map(|recorded| resource_status(resource, recorded, holding.since, site).standing);
            explanation.holding = Some(holding.clone());
        }
        let of_it = |open: &&OpenOperation| open.intent.operation.resource == *resource;
        explanation.open.extend(site.open.iter().filter(|(_, open)| of_it(open)).map(|(operation, open)| OpenStatus {
            operation: *operation,
            resource: resource.clone(),
            verb: open.intent.operation.verb,
            says: open.says.clone(),
            begun: open.begun,
        }));
        let lines = history(state, name).await?;
        explanation.history.extend(lines.into_iter().filter(|line| line.resource.as_ref() == Some(resource)));
    }
    Ok(explanation)
}

/// Every record of a site's journal, oldest first.
pub async fn history(state: &State, site: &SiteName) -> Result<Vec<Line>, StateError> {
    let mut operations: BTreeMap<OperationId, (Verb, ResourceId)> = BTreeMap::new();
    let records = state.history(site).await?;
    Ok(records.into_iter().map(|record| line(site, record, &mut operations)).collect())
}

fn line(site: &SiteName, record: Record, operations: &mut BTreeMap<OperationId, (Verb, ResourceId)>) -> Line {
    let of = |op: &OperationId| match operations.get(op) {
        Some((verb, resource)) => (Some(resource.clone()), format!("operation {op}: {verb} {resource}")),
        None => (None, format!("operation {op}")),
    };
    let (resource, text) = match &record.entry {
        Entry::Opened { place, .. } => (None, format!("opened for {place}")),
        Entry::Approved { purpose, plan, .. } => {
            (None, format!("approved a plan for `{purpose}` ({})", &plan.sha256[..12]))
        }
        Entry::Completed { purpose } => (None, format!("completed `{purpose}`")),
        Entry::Measured { phase, gate, evidence } => {
            let digest = evidence.get(..12).unwrap_or(evidence);
            (None, format!("measured the {phase} gate: {gate} (evidence {digest})"))
        }
        Entry::Exempted { phase, exemption } => {
            let (at, by, reason) = (record.at, record.by.clone(), None);
            let recorded = RecordedExemption { at, by, reason, phase: *phase, exemption: exemption.clone() };
            (None, recorded.text(at))
        }
        Entry::Entered { phase, release, basis } => {
            (None, format!("phase {phase} entered with release {}: {basis}", crate::release::short(release)))
        }
        Entry::Begun { op, verb, resource, .. } => {
            operations.insert(*op, (*verb, resource.clone()));
            (Some(resource.clone()), format!("operation {op}: {verb} {resource} started"))
        }
        Entry::Pending { op, says, .. } => {
            let (resource, text) = of(op);
            (resource, format!("{text}: {says}"))
        }
        Entry::Ended { op, end } => {
            let (resource, text) = of(op);
            let end = match end {
                End::Made { .. } | End::Gone => "done".to_owned(),
                End::Failed { left, because, .. } => {
                    let left = if left.is_some() { ", with objects left behind" } else { "" };
                    format!("failed{left}: {because}")
                }
            };
            (resource, format!("{text} {end}"))
        }
        Entry::Chose { resource, branch, because } => {
            let why = if because.is_empty() { String::new() } else { format!(" because of {because}") };
            (Some(resource.clone()), format!("chose {branch} for {resource}{why}"))
        }
        Entry::Noted { resource, what, .. } => (Some(resource.clone()), format!("{what} {resource}")),
        Entry::Returned { resource, .. } => {
            (Some(resource.clone()), format!("went back to the object before the last of {resource}"))
        }
        Entry::Forgot { resource, because } => (Some(resource.clone()), format!("forgot {resource}: {because}")),
        Entry::Mended { offset, bytes } => (None, format!("cut {bytes} torn bytes off at byte {offset}")),
    };
    Line {
        site: site.clone(),
        n: record.n,
        at: record.at,
        by: record.by,
        reason: record.reason,
        tool: record.tool,
        resource,
        text,
    }
}
