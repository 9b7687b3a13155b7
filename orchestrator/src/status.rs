//! What there is, what differs from the record, and how it came about: pure functions over facts and journals.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use textnlp_provider::{
    CloudId, EnvironmentName, FieldChange, Health, KindName, Lineage, Observed, OperationId, Outputs, Ownership,
    Recorded, ResourceId, SiteName, Verb, Wanted,
};

use crate::plan::{Facts, SiteFacts};
use crate::state::{End, Entry, Holding, Open, Place, Record, State, StateError};

/// What there is of an environment.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Which environment.
    pub environment: EnvironmentName,
    /// Which deployment; `None` when there was never any.
    pub lineage: Option<Lineage>,
    /// Everything recorded is there and does its work, and nothing is open.
    pub ready: bool,
    /// Its sites.
    pub sites: Vec<SiteStatus>,
    /// What is recorded, in order of ids.
    pub resources: Vec<ResourceStatus>,
    /// Where reality differs from the record.
    pub drift: Vec<Drift>,
    /// Operations that were begun and have not ended.
    pub open: Vec<OpenStatus>,
}

/// One site.
#[derive(Debug, Clone, Serialize)]
pub struct SiteStatus {
    /// Its name.
    pub site: SiteName,
    /// What it is bound to.
    pub place: Option<Place>,
    /// Recorded resources.
    pub resources: usize,
    /// Those that are there and do their work.
    pub ready: usize,
}

/// One recorded resource.
#[derive(Debug, Clone, Serialize)]
pub struct ResourceStatus {
    /// Its id.
    pub resource: ResourceId,
    /// What it is.
    pub kind: KindName,
    /// Where.
    pub site: SiteName,
    /// How it stands.
    #[serde(flatten)]
    pub standing: Standing,
    /// What the provider calls it.
    pub cloud_id: CloudId,
    /// When it was last made or changed.
    pub since: Timestamp,
    /// What others read of it.
    pub outputs: Outputs,
    /// Whether removing it takes a typed consent.
    pub protected: bool,
}

/// How a recorded resource stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "standing", content = "why", rename_all = "snake_case")]
pub enum Standing {
    /// It is there and does its work.
    Ready,
    /// It is there and does not.
    Degraded(String),
    /// It is not there.
    Gone,
    /// It could not be seen.
    Unknown(String),
    /// Its creation failed half-way.
    Tainted,
}

/// A difference between the record and reality.
#[derive(Debug, Clone, Serialize)]
pub struct Drift {
    /// Of which resource.
    pub resource: ResourceId,
    /// In a few words: `gone`, `changed`, `degraded`, `unknown`, `not recorded`.
    pub what: String,
    /// The provider's words, if it had any.
    pub why: Option<String>,
    /// The fields that differ: `before` is what is there, `after` is what was recorded.
    pub fields: Vec<FieldChange>,
}

/// An open operation.
#[derive(Debug, Clone, Serialize)]
pub struct OpenStatus {
    /// Which.
    pub operation: OperationId,
    /// On what.
    pub resource: ResourceId,
    /// What it does.
    pub verb: Verb,
    /// What it waited for.
    pub says: Option<String>,
    /// When it was begun.
    pub begun: Timestamp,
}

/// Sums the facts up.
pub fn status(facts: &Facts, places: &BTreeMap<SiteName, Place>) -> Status {
    let mut status = Status {
        environment: facts.environment.clone(),
        lineage: (!facts.is_new).then_some(facts.lineage),
        ready: false,
        sites: Vec::new(),
        resources: Vec::new(),
        drift: drift(facts),
        open: Vec::new(),
    };
    for (name, site) in &facts.sites {
        let before = status.resources.len();
        for (id, holding) in &site.holdings {
            if let Some(recorded) = &holding.current {
                status.resources.push(resource_status(id, recorded, holding.since, site));
            }
        }
        let here = &status.resources[before..];
        let ready = here.iter().filter(|resource| resource.standing == Standing::Ready).count();
        let place = places.get(name).cloned();
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
        && status.resources.iter().all(|resource| resource.standing == Standing::Ready);
    status
}

fn resource_status(id: &ResourceId, recorded: &Recorded, since: Timestamp, site: &SiteFacts) -> ResourceStatus {
    let standing = match sight(id, recorded, site) {
        _ if recorded.tainted => Standing::Tainted,
        Observed::Present(object) => match &object.health {
            Health::Ready => Standing::Ready,
            Health::Degraded(reason) => Standing::Degraded(reason.clone()),
        },
        Observed::Absent => Standing::Gone,
        Observed::Unknown(why) => Standing::Unknown(why.0),
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
    }
}

/// The object that a record is about, as the provider shows it.
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
    last.unwrap_or_else(|| Observed::Unknown(textnlp_provider::Why("the provider did not mention it".to_owned())))
}

/// Compares what was recorded with what is there. What the environment file says now plays no part.
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
            let ids = site.holdings.get(id).into_iter().flat_map(Holding::cloud_ids);
            let recorded = ids.into_iter().any(|cloud_id| *cloud_id == object.cloud_id);
            let ours = object.lineage == Some(facts.lineage);
            if ours && !recorded {
                let why = Some(format!("`{}` is ours and no record mentions it", object.cloud_id));
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

/// What would be wanted if the record were the wish.
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

/// Everything that is known of one resource.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// Which.
    pub resource: ResourceId,
    /// As recorded.
    pub holding: Option<Holding>,
    /// How it stands.
    pub standing: Option<Standing>,
    /// Where it differs.
    pub drift: Option<Drift>,
    /// Operations on it that are open.
    pub open: Vec<OpenStatus>,
    /// What was done with it, oldest first.
    pub history: Vec<Line>,
}

/// One line of history, for people.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// Where.
    pub site: SiteName,
    /// The number of the record.
    pub n: u64,
    /// When.
    pub at: Timestamp,
    /// The operator.
    pub by: String,
    /// Why, as the operator said.
    pub reason: Option<String>,
    /// Name and version of the tool.
    pub tool: String,
    /// The resource, if it is about one.
    pub resource: Option<ResourceId>,
    /// What happened.
    pub text: String,
}

/// Says everything about one resource.
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
        let of_it = |open: &&Open| open.intent.operation.resource == *resource;
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

/// Everything that was ever written down at a site, oldest first.
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
        Entry::Approved { purpose, plan } => {
            (None, format!("approved a plan for `{purpose}` ({})", &plan.sha256[..12]))
        }
        Entry::Begun { op, verb, resource, .. } => {
            operations.insert(*op, (*verb, resource.clone()));
            (Some(resource.clone()), format!("operation {op}: {verb} {resource} begun"))
        }
        Entry::Pending { op, says, .. } => {
            let (resource, text) = of(op);
            (resource, format!("{text}: {says}"))
        }
        Entry::Ended { op, end } => {
            let (resource, text) = of(op);
            let end = match end {
                End::Made { .. } | End::Gone => "done".to_owned(),
                End::Failed { left, because } => {
                    let left = if left.is_some() { ", leaving something behind" } else { "" };
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
