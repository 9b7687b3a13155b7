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
    /// Who was signed in to the provider.
    pub identity: Option<Box<str>>,
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
            identity: None,
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

    /// Adds who was signed in to the provider; nothing where `who` is empty.
    #[must_use]
    pub fn signed_in_as(mut self, who: &str) -> Self {
        self.identity = (!who.is_empty()).then(|| who.into());
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
        match (&self.code, &self.identity) {
            (Some(code), Some(who)) => write!(f, " ({code}, signed in as {who})"),
            (Some(code), None) => write!(f, " ({code})"),
            (None, Some(who)) => write!(f, " (signed in as {who})"),
            (None, None) => Ok(()),
        }
    }
}

pub use textnlp_net::error_chain;

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, ErrorKind, error_chain};

    #[test]
    fn errors_name_their_code_and_who_was_signed_in() {
        let error =
            |who: &str| Error::new(ErrorKind::Quota, "create", "network a").because("too many").signed_in_as(who);
        for (error, text) in [
            (error(""), "create network a: too many"),
            (error("").code("LIMIT"), "create network a (LIMIT): too many"),
            (error("ann@example.com"), "create network a (signed in as ann@example.com): too many"),
            (
                error("ann@example.com").code("LIMIT"),
                "create network a (LIMIT, signed in as ann@example.com): too many",
            ),
        ] {
            assert_eq!(error_chain(&error), text);
        }
    }
}
