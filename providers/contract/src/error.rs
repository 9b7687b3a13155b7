//! Errors, sorted by what a caller can do about them.

use std::fmt;
use std::time::Duration;

/// What a provider's calls return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sort {
    /// The object is not there.
    NotFound,
    /// An object of that name is there already, and it is not this one.
    Exists,
    /// We may not do this.
    Denied,
    /// A limit of the account is reached.
    Quota,
    /// The provider has none left just now.
    Capacity,
    /// The request can never succeed as it stands.
    Invalid,
    /// Too many calls; try again after this long, when the provider said so.
    Throttled {
        /// What the provider asked for.
        after: Option<Duration>,
    },
    /// The object changed under us, or is busy with another change.
    Conflict,
    /// The provider cannot be reached or failed in itself; the outcome of the call may be unknown.
    Unavailable,
}

impl Sort {
    /// Whether the same call may succeed later without anybody doing anything.
    pub fn may_pass(&self) -> bool {
        matches!(self, Sort::Capacity | Sort::Throttled { .. } | Sort::Conflict | Sort::Unavailable)
    }
}

/// A failed call: what was being done, to what, and why it failed.
#[derive(Debug)]
pub struct Error {
    /// What a caller can do about it.
    pub sort: Sort,
    /// What was being done, in the present tense: `start process`.
    pub action: String,
    /// To what: a resource id, a path, a cloud id.
    pub subject: String,
    /// The provider's own code, such as `InsufficientInstanceCapacity`.
    pub code: Option<String>,
    /// The provider's request id, for its support.
    pub request_id: Option<String>,
    /// What to do about it, with the exact command where there is one.
    pub hint: Option<String>,
    /// What lies under it.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error without a provider's code.
    pub fn new(sort: Sort, action: impl Into<String>, subject: impl Into<String>) -> Self {
        Self {
            sort,
            action: action.into(),
            subject: subject.into(),
            code: None,
            request_id: None,
            hint: None,
            source: None,
        }
    }

    /// Adds what lies under it.
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

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An error from the operating system, sorted by its kind.
    pub fn io(action: impl Into<String>, subject: impl Into<String>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let sort = match source.kind() {
            K::NotFound => Sort::NotFound,
            K::AlreadyExists => Sort::Exists,
            K::PermissionDenied | K::ReadOnlyFilesystem => Sort::Denied,
            K::StorageFull | K::QuotaExceeded => Sort::Quota,
            K::InvalidInput | K::InvalidData | K::NotADirectory | K::IsADirectory => Sort::Invalid,
            K::AddrInUse | K::ResourceBusy => Sort::Conflict,
            _ => Sort::Unavailable,
        };
        Self::new(sort, action, subject).because(source)
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

/// An error with its causes, in one line.
pub fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
