//! The trait that every provider implements.

use std::collections::BTreeSet;
use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::bill::{Billed, BilledRequest};
use crate::component::{Component, Site};
use crate::cost::CostLine;
use crate::declare::{Declaration, Declare, PlannedObject};
use crate::error::Result;
use crate::kind::{DatabasePart, Kind};
use crate::name::{CloudId, EnvironmentName, KindName, Lineage, ResourceId, SiteName};
use crate::operation::{Handle, Operation, Progress};
use crate::permission::{PolicyDocument, PolicyRequest};
use crate::resource::{FieldChange, Object, Observed, Recorded, Wanted};
use crate::spec::Spec;

/// One cloud, one cluster's API, or your own machines.
///
/// `costs`, `policies`, `lower` and `diff` are pure: same arguments, same result, nothing read. `begin` and `advance` make at most one
/// mutating call each; more work returns [`Progress::Pending`] with a handle from which another process can continue.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Every kind of this provider.
    fn kinds(&self) -> &'static [Kind];

    /// What an object with this spec costs, in the provider's region. Pure. A kind priced by its spec has a line for
    /// every spec, whatever is missing in it; a free one has none. The spec may hold references to outputs.
    fn costs(&self, kind: &KindName, spec: &Spec) -> Vec<CostLine> {
        let _ = spec;
        match self.kinds().iter().find(|known| known.name == kind.as_str()) {
            Some(known) => known.costs(),
            None => vec![CostLine::unknown(kind.as_str(), kind.as_str(), "its kind is not known to this provider")],
        }
    }

    /// What an object costs where other objects of its site decide that, such as the disks of machines by their number:
    /// instead of [`Provider::costs`]. Pure. `None` where none of them does.
    fn costs_among(&self, kind: &KindName, spec: &Spec, others: &[(&KindName, &Spec)]) -> Option<Vec<CostLine>> {
        let _ = (kind, spec, others);
        None
    }

    /// What this provider's cloud charges for an object of another provider in its cluster, such as the load balancer
    /// of a Service. Pure. Empty where the other provider knows the cost.
    fn costs_inside(&self, kind: &KindName, spec: &Spec) -> Vec<CostLine> {
        let _ = (kind, spec);
        Vec::new()
    }

    /// The least-privilege policies for a request, in the provider's own format, from the permissions of its kinds.
    /// Pure. Empty where the provider has no policies.
    fn policies(&self, request: &PolicyRequest) -> Vec<PolicyDocument> {
        let _ = request;
        Vec::new()
    }

    /// The permissions boundaries for the roles of a request: the most that any of them needs. Pure. Empty where roles have none.
    fn boundaries(&self, request: &PolicyRequest) -> Vec<PolicyDocument> {
        let _ = request;
        Vec::new()
    }

    /// An object as another tool declares it: one or several declarations, of which the first that is not
    /// [`is_new_only`](Declaration::is_new_only) is the object itself. Pure. `None`
    /// where the provider has no form for the tool; an error says why the tool cannot declare this object.
    fn declare(&self, request: &Declare<'_>) -> Option<Result<Vec<Declaration>, String>> {
        let _ = request;
        None
    }

    /// Reads what declarations of objects that do not exist have besides their specs, such as the number of a project.
    async fn prepare_declarations(&self, wanted: &[Wanted]) -> Result<()> {
        let _ = wanted;
        Ok(())
    }

    /// What is known of a wanted resource's object before its creation. The spec has no references to outputs: those of objects that
    /// do not exist are placeholders. Pure. `None` where no tool of [`declare`](Self::declare) creates such an object.
    fn planned(&self, wanted: &Wanted, lineage: Lineage) -> Option<PlannedObject> {
        let _ = (wanted, lineage);
        None
    }

    /// Expands a component of a site into resources. Pure. Returns all problems at once.
    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems>;

    /// The fields in which an object differs from the wanted spec. Pure. Empty means no change.
    ///
    /// An unhealthy object that an update would repair differs too: the provider names a field such as `running`. The
    /// engine only reports [`Health::Degraded`](crate::Health) and plans nothing for it.
    ///
    /// `wanted.spec` may still hold references to outputs that are not known yet; such a field differs unless the recorded
    /// one came from the same reference and that resource is unchanged, which the engine has resolved before it asks.
    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange>;

    /// A warning about a change in place that interrupts the requests of clients, with what avoids it. Pure. `among`: the
    /// wanted resources of the site. `None` where others serve meanwhile, or where no client is served.
    fn interruption(&self, wanted: &Wanted, changes: &[FieldChange], among: &[Wanted]) -> Option<Problem> {
        let _ = (wanted, changes, among);
        None
    }

    /// Another program that applies an object too, and reverts what this one changes, such as a GitOps controller. Pure.
    fn controller(&self, seen: &Object) -> Option<String> {
        let _ = seen;
        None
    }

    /// What an object has of the service's database. Pure. `None` where it has nothing of it. The servers of managed
    /// databases are those with replicas in other regions; a provider whose servers do not contain the data names more.
    fn database_part(&self, recorded: &Recorded) -> Option<DatabasePart> {
        let mut kinds = self.kinds().iter();
        let kind = kinds.find(|kind| kind.name == recorded.kind.as_str())?;
        kind.replica.is_some().then_some(DatabasePart::Data)
    }

    /// Whether a [`DatabasePart::Loaded`] gets data when it is created again: a dump lies beside it, or it copies another one. Reads
    /// only the own machine.
    fn is_refilled(&self, _recorded: &Recorded) -> bool {
        true
    }

    /// Checks for anything that would make these fail: sign-in, permissions, quota, capacity, names, ports. Reads only.
    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>>;

    /// Observes, in bulk, every id in `scope.wanted` and `scope.recorded`, and objects of this lineage that neither
    /// lists. An object is matched by lineage; the same name with another lineage is a [`Problem`] of `preflight` and
    /// `Unknown` here. During a replacement an id may have several entries, one for each object. A missing id counts as
    /// Unknown.
    async fn observe(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>>;

    /// Reads one object by the provider's own id: for import, External objects and repair.
    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed>;

    /// Reads the object of a record, which may be in another region than its site. Unlike [`observe`](Self::observe) it reads nothing
    /// else, and an error says whether the provider answered.
    async fn read_recorded(&self, recorded: &Recorded) -> Result<Observed> {
        self.read(&recorded.kind, &recorded.cloud_id).await
    }

    /// Starts an operation: at most one mutating call. Calling it again with the same operation is safe.
    ///
    /// Before a host or a network is deleted, its controllers are told to create nothing more. Then the objects that
    /// they created inside of it are removed, one call each: those that name a cluster of this lineage as their owner,
    /// even a deleted one. Any other object inside makes the delete fail with [`ErrorKind::Conflict`](crate::ErrorKind::Conflict)
    /// that names it.
    async fn begin(&self, op: &Operation) -> Result<Progress>;

    /// The next call, or the next poll, of a pending operation.
    ///
    /// `op.host` is the current record of `op.via`: it may be another object, or have other outputs, than when the
    /// operation started.
    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress>;

    /// Searches everything that the provider shows for objects of a deployment, after they were removed. Reads only.
    /// `None` where nothing can exist that an observation does not show.
    async fn leftovers(&self, sweep: &Sweep<'_>) -> Result<Option<Leftovers>> {
        let _ = sweep;
        Ok(None)
    }

    /// What the provider charged for a deployment in a month, by its own billing data. Reads only. Providers may charge for the
    /// query, so it is made on demand only.
    async fn billed(&self, request: &BilledRequest) -> Result<Billed> {
        let _ = request;
        Ok(Billed::NotAvailable("its provider has no bill".to_owned()))
    }
}

/// The scope of a search for leftovers.
#[derive(Debug, Clone, Copy)]
pub struct Sweep<'a> {
    /// The deployment.
    pub lineage: Lineage,
    /// What was recorded before the removal, at every site.
    pub before: &'a [Recorded],
    /// What is recorded since: objects that were kept.
    pub kept: &'a [Recorded],
}

/// The result of a search for leftovers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Leftovers {
    /// What was searched, in the provider's words: `aws eu-central-1`.
    pub searched: BTreeSet<String>,
    /// What could not be searched, in the same words, and why.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub unsearched: BTreeSet<Leftover>,
    /// Objects that should not exist any more.
    pub left: BTreeSet<Leftover>,
    /// Objects that the cloud removes later, or that the removal itself created.
    pub expected: BTreeSet<Leftover>,
}

impl Leftovers {
    /// Both results as one.
    pub fn join(&mut self, other: Self) {
        self.searched.extend(other.searched);
        self.unsearched.extend(other.unsearched);
        self.left.extend(other.left);
        self.expected.extend(other.expected);
    }
}

/// One object that still exists.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Leftover {
    /// Its full name at the provider, such as its ARN.
    pub id: String,
    /// What it is, or why it still exists.
    pub what: String,
}

/// The scope of an observation.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// The deployment.
    pub lineage: Lineage,
    /// The environment.
    pub environment: &'a EnvironmentName,
    /// The site.
    pub site: &'a SiteName,
    /// The wanted resources, and the external objects that others are reached through.
    pub wanted: &'a [Wanted],
    /// The recorded resources. Of several with one id the first is in use, and the others were replaced.
    pub recorded: &'a [Recorded],
}

/// One problem, with its location, cause and fix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The location: a resource id or a field of the environment file.
    pub place: String,
    /// The cause.
    pub cause: String,
    /// The fix, with the exact command or field where there is one.
    pub fix: String,
    /// Whether it is a warning.
    pub warning: bool,
    /// Whether it is a note: a warning that needs no action.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub note: bool,
}

impl Problem {
    /// A problem that must be fixed first.
    pub fn new(place: impl Into<String>, cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { place: place.into(), cause: cause.into(), fix: fix.into(), warning: false, note: false }
    }

    /// A warning.
    pub fn warning(place: impl Into<String>, cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { warning: true, ..Self::new(place, cause, fix) }
    }

    /// A note.
    pub fn note(place: impl Into<String>, cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { note: true, ..Self::warning(place, cause, fix) }
    }

    /// `note`, `warning` or `refused`, for output.
    pub fn word(&self) -> &'static str {
        match (self.note, self.warning) {
            (true, _) => "note",
            (false, true) => "warning",
            (false, false) => "refused",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.place, self.cause, self.fix)
    }
}

/// All problems of one check, never empty when it is an error.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
