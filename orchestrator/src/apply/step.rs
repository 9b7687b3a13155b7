//! How a step starts: with nothing, with a record, or with its first operation.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde_json::json;
use textnlp_provider::{
    DeleteBounds, FieldChange, Operation, OperationId, Ownership, Provider, Recorded, ResourceId, SiteName, Spec,
    Token, Verb, Wanted,
};

use super::StepFailure;
use crate::plan::{
    Branch, Call, Choice, ChoiceBasis, Node, Note, ObjectRole, Step, branch_of, refreshed, sorted_needs,
};
use crate::state::{BodyRef, End, Entry, Intent, JournalWriter, Locked, Target, cut};

/// What to write into a journal.
pub(super) enum Write {
    Begun(Arc<Intent>),
    Pending {
        op: OperationId,
        handle: textnlp_provider::Handle,
        says: String,
    },
    Made {
        op: OperationId,
        recorded: Box<Recorded>,
    },
    Gone {
        op: OperationId,
    },
    Failed {
        op: OperationId,
        left: Option<Box<Recorded>>,
        because: String,
        refused: bool,
    },
    Chose {
        resource: ResourceId,
        branch: Branch,
        because: String,
    },
    /// A gate's answer: open if there is no reason against it.
    Asked {
        gate: ResourceId,
        because: Vec<String>,
    },
    Noted {
        resource: ResourceId,
        what: &'static str,
        recorded: Box<Recorded>,
        created_by: Option<Token>,
    },
    Returned {
        resource: ResourceId,
        old: String,
        recorded: Box<Recorded>,
    },
    Forgot {
        resource: ResourceId,
        because: String,
    },
}

/// The longest text in the journal, in characters. The run's report has the whole text.
const TEXT: usize = 400;
/// The longest name of an alternative in the journal; those of providers are shorter: on AWS they have all instance types of a group.
const NAME: usize = 300;

impl Write {
    pub(super) fn put(self, writer: &mut JournalWriter<'_>) {
        let short = |text: &str| cut(text, TEXT);
        let mut body = |recorded: &Recorded| -> BodyRef { writer.body(recorded) };
        let entry = match self {
            Write::Made { op, recorded } => Entry::Ended { op, end: End::Made { recorded: body(&recorded) } },
            Write::Gone { op } => Entry::Ended { op, end: End::Gone },
            Write::Failed { op, left, because, refused } => {
                let left = left.map(|left| body(&left));
                Entry::Ended { op, end: End::Failed { left, because: short(&because), refused } }
            }
            Write::Noted { resource, what, recorded, created_by } => {
                Entry::Noted { resource, what: what.to_owned(), recorded: body(&recorded), created_by }
            }
            Write::Chose { resource, branch, because } => {
                Entry::Chose { resource, branch: branch.to_string(), because: short(&because) }
            }
            Write::Asked { gate, because } => {
                let branch = if because.is_empty() { "open" } else { "shut" }.to_owned();
                Entry::Chose { resource: gate, branch, because: short(&because.join("; ")) }
            }
            Write::Returned { resource, old, recorded } => Entry::Returned { resource, old, recorded: body(&recorded) },
            Write::Forgot { resource, because } => Entry::Forgot { resource, because: short(&because) },
            Write::Pending { op, handle, says } => {
                let lacked = handle.lacked().map(|name| cut(name, NAME));
                Entry::Pending { op, handle: writer.body(&handle), says: short(&says), lacked }
            }
            Write::Begun(intent) => {
                let Operation { id, verb, resource, kind, .. } = intent.operation.clone();
                Entry::Begun {
                    op: id,
                    verb,
                    resource,
                    kind,
                    target: intent.target.clone(),
                    intent: writer.body(&*intent),
                    created_by: intent.created_by.clone(),
                }
            }
        };
        writer.entry(entry);
    }
}

/// What this run has learned and later steps use.
#[derive(Default)]
pub(super) struct RunFacts {
    /// Outputs of resources that this run created, changed or read again.
    pub(super) outputs: BTreeMap<ResourceId, textnlp_provider::Outputs>,
    /// The branches that steps chose.
    pub(super) chose: BTreeMap<u32, Branch>,
    /// Resources that were replaced by another object.
    pub(super) replaced: BTreeSet<ResourceId>,
    /// The last operation number assigned at each site.
    pub(super) numbers: BTreeMap<SiteName, u64>,
}

/// How a step starts.
pub(super) struct StepStart {
    pub(super) writes: Vec<Write>,
    /// Its operations in order; the first is not recorded yet.
    pub(super) calls: VecDeque<Call>,
    pub(super) branch: Option<Branch>,
    pub(super) note: Option<&'static str>,
}

/// Decides how a step starts, by the plan and by what is known now.
pub(super) fn begin(step: &Step, provider: &Arc<dyn Provider>, known: &mut RunFacts) -> Result<StepStart, StepFailure> {
    let resource = &step.resource;
    let mut beginning = StepStart { writes: Vec::new(), calls: VecDeque::new(), branch: None, note: None };
    match &step.node {
        Node::Call(call) => beginning.calls.push_back(call.clone()),
        Node::Note(note) => {
            let (write, what) = match note {
                Note::Adopt { recorded, created_by } => {
                    (noted(resource, "adopt", recorded, created_by.clone(), known), "adopt")
                }
                Note::Remember { recorded } => (noted(resource, "remember", recorded, None, known), "remember"),
                Note::Return { recorded, old } => {
                    known.outputs.insert(resource.clone(), recorded.outputs.clone());
                    let (resource, recorded) = (resource.clone(), recorded.clone());
                    (Write::Returned { resource, old: old.clone(), recorded }, "return")
                }
                Note::Forget => (Write::Forgot { resource: resource.clone(), because: step.because.clone() }, "forget"),
            };
            beginning.writes.push(write);
            beginning.note = Some(what);
        }
        Node::OneOf(one) => choose(step, one, provider, known, &mut beginning)?,
        // The loop measures gates.
        Node::Gate(_) => {}
    }
    Ok(beginning)
}

fn noted(
    resource: &ResourceId,
    what: &'static str,
    recorded: &Recorded,
    created_by: Option<Token>,
    known: &mut RunFacts,
) -> Write {
    known.outputs.insert(resource.clone(), recorded.outputs.clone());
    Write::Noted { resource: resource.clone(), what, recorded: Box::new(recorded.clone()), created_by }
}

fn choose(
    step: &Step,
    one: &Choice,
    provider: &Arc<dyn Provider>,
    known: &mut RunFacts,
    beginning: &mut StepStart,
) -> Result<(), StepFailure> {
    let resource = &step.resource;
    let (branch, because) = match &one.decides {
        ChoiceBasis::As(other) => {
            (known.chose.get(other).copied().unwrap_or(Branch::Nothing), "as decided before".to_owned())
        }
        ChoiceBasis::Difference { wanted, recorded, seen } => {
            let spec = resolved(wanted, known)?;
            let resolved = Wanted { spec: spec.clone(), ..(**wanted).clone() };
            let changes = provider.diff(&resolved, recorded, seen);
            refuse(resource, &changes)?;
            let moved = wanted.via.as_ref().is_some_and(|host| known.replaced.contains(&host.0));
            let branch = if moved { Branch::Replace } else { branch_of(&changes) };
            if branch == Branch::Nothing {
                known.outputs.insert(resource.clone(), seen.outputs.clone());
                let fresh = refreshed(wanted, &spec, seen, recorded.schema, false);
                if fresh != **recorded {
                    let created_by = seen.origin.operation().cloned();
                    beginning.writes.push(noted(resource, "remember", &fresh, created_by, known));
                }
            }
            (branch, changes.iter().map(|change| change.field.as_str()).collect::<Vec<_>>().join(", "))
        }
    };
    beginning.branch = Some(branch);
    beginning.writes.push(Write::Chose { resource: resource.clone(), branch, because });
    known.chose.insert(step.id, branch);
    if branch == Branch::Nothing {
        return Ok(());
    }
    let Some(alternative) = one.alternatives.iter().find(|alternative| alternative.branch == branch) else {
        let message = format!("it would take a {branch}, which the approved plan does not allow");
        return Err(StepFailure::plain(resource, message, "plan again and review the new plan"));
    };
    beginning.calls.extend(alternative.calls.iter().cloned());
    Ok(())
}

fn refuse(resource: &ResourceId, changes: &[FieldChange]) -> Result<(), StepFailure> {
    for change in changes {
        if let textnlp_provider::Effect::Refuse(reason) = &change.effect {
            let message = format!("`{}` would have to change: {reason}", change.field);
            return Err(StepFailure::plain(resource, message, "set it as the cause says, or restore the old value"));
        }
    }
    Ok(())
}

fn resolved(wanted: &Wanted, known: &RunFacts) -> Result<Spec, StepFailure> {
    wanted.spec.resolve(|id| known.outputs.get(id)).map_err(|error| {
        StepFailure::plain(
            &wanted.id,
            error.to_string(),
            "this is a bug in the provider that has this output; report it",
        )
    })
}

/// The full record of an operation, ready to be written.
pub(super) fn intent(
    step: &Step,
    call: &Call,
    provider: &Arc<dyn Provider>,
    known: &mut RunFacts,
    state: &Locked,
) -> Result<Intent, StepFailure> {
    let schema = |kind: &str| provider.kinds().iter().find(|known| known.name == kind).map_or(1, |kind| kind.schema);
    let nothing = || Spec::of(&json!({}));
    let (mut created_by, mut bounds) = (None, DeleteBounds::default());
    let (verb, via, spec, recorded, changes, target, subject) = match call {
        Call::Create { wanted, beside } => {
            let target = if *beside { Target::Beside } else { Target::Current };
            (Verb::Create, wanted.via.clone(), resolved(wanted, known)?, None, Vec::new(), target, Some(wanted))
        }
        Call::Update { wanted, recorded, seen, stray } => {
            let spec = resolved(wanted, known)?;
            let changes = provider.diff(&Wanted { spec: spec.clone(), ..(**wanted).clone() }, recorded, seen);
            refuse(&step.resource, &changes)?;
            if branch_of(&changes) == Branch::Replace {
                let message = "it would take a replace, which the approved plan does not allow";
                return Err(StepFailure::plain(&step.resource, message, "plan again and review the new plan"));
            }
            let target = if *stray { Target::Stray } else { Target::Current };
            created_by = seen.origin.operation().filter(|_| *stray).cloned();
            (Verb::Update, wanted.via.clone(), spec, Some((**recorded).clone()), changes, target, Some(wanted))
        }
        Call::Delete { recorded, which, created_by: token, sweeps } => {
            created_by.clone_from(token);
            bounds = DeleteBounds { is_unrecorded: *which == ObjectRole::Stray, sweeps: sweeps.clone() };
            let target = match which {
                ObjectRole::Current => Target::Current,
                ObjectRole::Stray => Target::Stray,
                ObjectRole::Old => {
                    state.old(&step.site, &step.resource, &recorded.cloud_id).map_or(Target::Stray, Target::Old)
                }
            };
            (Verb::Delete, recorded.via.clone(), nothing(), Some((**recorded).clone()), Vec::new(), target, None)
        }
    };
    let number = known.numbers.get(&step.site).map_or(0, |last| last + 1).max(state.next_operation(&step.site));
    known.numbers.insert(step.site.clone(), number);
    let (id, lineage) = (OperationId(number), state.lineage());
    let kind = match call {
        Call::Delete { recorded, .. } => recorded.kind.clone(),
        _ => step.kind.clone(),
    };
    let operation = Operation {
        id,
        token: state.token(&step.site, id),
        verb,
        resource: step.resource.clone(),
        kind: kind.clone(),
        site: step.site.clone(),
        environment: state.environment().clone(),
        lineage,
        via,
        host: None,
        spec,
        recorded,
        changes,
        bounds,
        lacking: if verb == Verb::Create { state.lacking(&step.site, &step.resource) } else { Vec::new() },
        is_repeated: false,
    };
    if verb == Verb::Create {
        created_by = Some(operation.token.clone());
    }
    Ok(Intent {
        operation,
        target,
        needs: subject.map(|wanted| sorted_needs(wanted)).unwrap_or_default(),
        ownership: subject.map_or(Ownership::Ours, |wanted| wanted.ownership.clone()),
        protected: subject.is_some_and(|wanted| wanted.protected),
        schema: schema(kind.as_str()),
        created_by,
    })
}
