//! The trait that every provider implements.

use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::component::{Component, Site};
use crate::error::Result;
use crate::kind::Kind;
use crate::name::{CloudId, EnvironmentName, KindName, Lineage, ResourceId, SiteName};
use crate::operation::{Handle, Operation, Progress};
use crate::resource::{FieldChange, Object, Observed, Recorded, Wanted};

/// One cloud, one cluster's API, or the machines of one person.
///
/// `lower` and `diff` are pure: same arguments, same answer, nothing read. `begin` and `advance` make at most one mutating
/// call each; more work returns [`Progress::Pending`] with a handle from which another process can go on.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Every kind this provider has.
    fn kinds(&self) -> &'static [Kind];

    /// Says which resources make up a component at a site. Pure. All problems at once.
    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems>;

    /// Names the fields in which an object differs from what is wanted. Pure. Empty means: nothing to do.
    ///
    /// An object that is there but does not do its work, and that an update would mend, differs too: the provider names a
    /// field such as `running`. The engine plans nothing for [`Health::Degraded`](crate::Health) alone, it only says so.
    ///
    /// `wanted.spec` may still hold references to outputs that are not known yet; such a field differs unless the recorded
    /// one came from the same reference and that resource is unchanged, which the engine has resolved before it asks.
    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange>;

    /// Looks for what would make these fail: sign-in, permissions, quota, capacity, names, ports. Reads only.
    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>>;

    /// Says what is there, in bulk, for every id in `scope.wanted` and `scope.recorded`, and for objects of this lineage
    /// that neither mentions. An object is matched by lineage; the same name with another lineage is a [`Problem`] of
    /// `preflight` and `Unknown` here. An id may come more than once while a replacement is under way: one entry for each
    /// object. An id that is left out counts as Unknown.
    async fn observe(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>>;

    /// Reads one object by the provider's own id: for import, External objects and repair.
    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed>;

    /// Starts an operation: at most one mutating call. Calling it again with the same operation is safe.
    ///
    /// Before a host or a network goes, its controllers are told to make nothing more, and what they made inside of it is removed, one
    /// call after the other: whatever names a cluster of this lineage as its owner, also when that cluster is gone already. Anything
    /// else inside of it makes the delete fail with [`Sort::Conflict`](crate::Sort::Conflict) that names it.
    async fn begin(&self, op: &Operation) -> Result<Progress>;

    /// The next call, or the next look, of an operation that was pending.
    ///
    /// What `op.via` names is `op.host`, as it is recorded now: it may be another object, or have other outputs, than when the operation began.
    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress>;
}

/// What an observation is about.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// Which deployment.
    pub lineage: Lineage,
    /// Which environment.
    pub environment: &'a EnvironmentName,
    /// Which place.
    pub site: &'a SiteName,
    /// What should be there, and the existing objects that others are reached through.
    pub wanted: &'a [Wanted],
    /// What we wrote down; of several under one id the first is in use, and the others were replaced.
    pub recorded: &'a [Recorded],
}

/// One thing that stands in the way, with its place, its cause and the fix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Where: a resource id or a field of the environment file.
    pub place: String,
    /// What is wrong.
    pub cause: String,
    /// What to do, with the exact command or field where there is one.
    pub fix: String,
    /// Whether it only deserves a look.
    pub warning: bool,
    /// Whether it is only good to know: a warning about which nothing need be done.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub note: bool,
}

impl Problem {
    /// Something that must be mended first.
    pub fn new(place: impl Into<String>, cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { place: place.into(), cause: cause.into(), fix: fix.into(), warning: false, note: false }
    }

    /// Something that only deserves a look.
    pub fn warning(place: impl Into<String>, cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { warning: true, ..Self::new(place, cause, fix) }
    }

    /// Something that is good to know.
    pub fn note(place: impl Into<String>, cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { note: true, ..Self::warning(place, cause, fix) }
    }

    /// `note`, `warning` or `refused`, for people.
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

/// All problems of one look, never empty when it is an error.
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
