//! One mutating provider call with the token that makes it safe to repeat.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::capacity::Lacking;
use crate::error::Error;
use crate::name::{CloudId, EnvironmentName, KindName, Lineage, ResourceId, SiteName};
use crate::resource::{FieldChange, Object, Recorded, Ref};
use crate::spec::Spec;

/// The number of an operation within its site's journal: unique for a lineage and a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(pub u64);

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Makes a call safe to repeat: the same operation always has the same token.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// Derives the token of an operation: 32 hex digits, accepted as a client token by every API we use.
    pub fn derive(lineage: Lineage, site: &SiteName, id: OperationId) -> Self {
        Self::of(&format!("{lineage}/{site}/{id}"))
    }

    /// The same from the last record of the journal too, which only readers of the state know: who may label
    /// objects cannot guess the token, and a journal that was restored from a backup does not repeat one.
    pub fn derive_after(record: &str, lineage: Lineage, site: &SiteName, id: OperationId) -> Self {
        Self::of(&format!("{record}/{lineage}/{site}/{id}"))
    }

    fn of(text: &str) -> Self {
        Self(hex::encode(&Sha256::digest(text.as_bytes())[..16]))
    }

    /// A token as text; `None` if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let is_token = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_token.then(|| Self(text.to_owned()))
    }

    /// The token as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What an operation does to its resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Creates an object.
    Create,
    /// Changes an object in place.
    Update,
    /// Removes an object. Removing a missing one succeeds.
    Delete,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Delete => "delete",
        })
    }
}

/// One operation, as it was journaled before the first call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Its number.
    pub id: OperationId,
    /// Makes repeating it safe.
    pub token: Token,
    /// Its verb.
    pub verb: Verb,
    /// Its resource.
    pub resource: ResourceId,
    /// The resource's kind.
    pub kind: KindName,
    /// The site.
    pub site: SiteName,
    /// The environment.
    pub environment: EnvironmentName,
    /// The lineage of the deployment; a tag of every created object.
    pub lineage: Lineage,
    /// The resource through which it is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Ref>,
    /// That resource as recorded at the time of the call: the caller fills it in, and it is not stored with the
    /// operation.
    #[serde(skip)]
    pub host: Option<Box<Recorded>>,
    /// The wanted spec: outputs resolved, secrets as references. Empty for a delete.
    pub spec: Spec,
    /// The object to change or remove; `None` for a create.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded: Option<Recorded>,
    /// The fields that differ, for an update.
    #[serde(default)]
    pub changes: Vec<FieldChange>,
    /// For a delete: its bounds.
    #[serde(default, skip_serializing_if = "DeleteBounds::is_default")]
    pub bounds: DeleteBounds,
    /// For a create: the alternatives that lacked capacity lately, oldest failure first. They are tried last, see
    /// [`order`](crate::capacity::order), also by a run that resumes it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacking: Vec<Lacking>,
    /// Whether its first call may have been made before, without an answer: the caller knows, and it is not stored.
    #[serde(skip)]
    pub is_repeated: bool,
}

/// What a delete may remove besides the recorded object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeleteBounds {
    /// The object has no record: a protection against deletion is not taken off, and what keeps a copy of its data is
    /// done whatever the object says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_unrecorded: bool,
    /// The objects of controllers inside of it that the plan named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sweeps: Vec<CloudId>,
}

impl DeleteBounds {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The state of a longer operation, in the provider's format. It is journaled before the next call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Handle(pub Value);

impl Handle {
    /// The alternative that was found to lack capacity since the handle before, or its market: a member that all handles reserve. A
    /// provider leaves it out of the next handle.
    pub fn lacked(&self) -> Option<&str> {
        self.0.get("lacked")?.as_str()
    }
}

/// The result of a provider's verb: at most one mutating call further.
#[derive(Debug)]
pub enum Progress {
    /// Finished. For a delete, the object as last observed.
    Done(Object),
    /// More to do or to wait for.
    Pending {
        /// The state of the operation.
        handle: Handle,
        /// What it waits for, as text.
        says: String,
        /// When to poll again.
        again_in: Duration,
    },
    /// It failed. A remaining object is recorded as tainted.
    Failed {
        /// The remaining object, if any.
        left: Option<Object>,
        /// Why it failed.
        error: Error,
    },
}
