//! What a caller can do about AWS's error codes.

use textnlp_provider::ErrorKind;

/// The kind of an error by its code, else by its HTTP status, and what an operator does about it.
pub(crate) fn classify(_service: &str, code: &str, status: Option<u16>, _message: &str) -> (ErrorKind, Option<String>) {
    let kind = if code.ends_with(".NotFound") || code.starts_with("NoSuch") || code == "ResourceNotFoundException" {
        ErrorKind::NotFound
    } else if code.contains("Throttl") || code == "RequestLimitExceeded" {
        ErrorKind::Throttled { after: None }
    } else if code == "DependencyViolation" || code == "ResourceInUseException" {
        ErrorKind::Conflict
    } else {
        match status {
            None | Some(500..) => ErrorKind::Unavailable,
            Some(404) => ErrorKind::NotFound,
            Some(401 | 403) => ErrorKind::Denied,
            Some(409) => ErrorKind::Conflict,
            Some(429) => ErrorKind::Throttled { after: None },
            Some(_) => ErrorKind::Invalid,
        }
    };
    (kind, None)
}
