//! Errors, classified by what a caller can do about them.

use std::fmt;
use std::time::Duration;

/// What a provider's calls return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ErrorKind {
    /// The object does not exist.
    NotFound,
    /// Another object of that name exists.
    Exists,
    /// Permission denied.
    Denied,
    /// A limit of the account is reached.
    Quota,
    /// The provider has no free capacity now.
    Capacity,
    /// The request can never succeed unchanged.
    Invalid,
    /// Too many calls; retry after this time, if the provider named one.
    Throttled {
        /// The provider's `Retry-After`.
        after: Option<Duration>,
    },
    /// The object was changed concurrently, or is busy with another change.
    Conflict,
    /// The provider is unreachable or failed internally; the outcome of the call may be unknown.
    Unavailable,
}

impl ErrorKind {
    /// Whether the same call may succeed later without any intervention.
    pub fn may_pass(&self) -> bool {
        matches!(self, ErrorKind::Capacity | ErrorKind::Throttled { .. } | ErrorKind::Conflict | ErrorKind::Unavailable)
    }
}

/// A field of an object that another owner manages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContestedField {
    /// Its path in the object: `spec.replicas`.
    pub path: String,
    /// The owner, in the provider's words: `"hpa" using apps/v1`.
    pub owner: String,
}

/// A failed call: what was being done, to what, and why it failed.
#[derive(Debug)]
pub struct Error {
    /// What a caller can do about it.
    pub kind: ErrorKind,
    /// What was being done, in the present tense: `start process`.
    pub action: String,
    /// To what: a resource id, a path, a cloud id.
    pub subject: String,
    /// The provider's own code, such as `InsufficientInstanceCapacity`.
    pub code: Option<String>,
    /// The provider's request id, for its support.
    pub request_id: Option<String>,
    /// Whether the provider answered that it refuses the call, so that the call certainly changed nothing.
    pub refused: bool,
    /// The fields that could not be set because another owner manages them.
    pub contested: Vec<ContestedField>,
    /// The fix, with the exact command where there is one.
    pub hint: Option<String>,
    /// The cause.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error without a provider's code.
    pub fn new(kind: ErrorKind, action: impl Into<String>, subject: impl Into<String>) -> Self {
        Self {
            kind,
            action: action.into(),
            subject: subject.into(),
            code: None,
            request_id: None,
            refused: false,
            contested: Vec::new(),
            hint: None,
            source: None,
        }
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds the provider's own code.
    #[must_use]
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// Adds the fix.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An error of the operating system, classified by its kind.
    pub fn io(action: impl Into<String>, subject: impl Into<String>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let kind = match source.kind() {
            K::NotFound => ErrorKind::NotFound,
            K::AlreadyExists => ErrorKind::Exists,
            K::PermissionDenied | K::ReadOnlyFilesystem => ErrorKind::Denied,
            K::StorageFull | K::QuotaExceeded => ErrorKind::Quota,
            K::InvalidInput | K::InvalidData | K::NotADirectory | K::IsADirectory => ErrorKind::Invalid,
            K::AddrInUse | K::ResourceBusy => ErrorKind::Conflict,
            _ => ErrorKind::Unavailable,
        };
        Self::new(kind, action, subject).because(source)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action, self.subject)?;
        if let Some(code) = &self.code {
            write!(f, " ({code})")?;
        }
        Ok(())
    }
}

pub use textnlp_net::error_chain;

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
