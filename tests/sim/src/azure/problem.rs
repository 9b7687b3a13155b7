//! Errors as Azure Resource Manager answers them.

use serde_json::{Value, json};

use crate::Fault;

/// An error of a call: <https://github.com/microsoft/api-guidelines/blob/vNext/azure/Guidelines.md#handling-errors>.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// The code, such as `ResourceNotFound`.
    pub code: String,
    /// The message.
    pub message: String,
    /// What of the request it is about.
    pub target: Option<String>,
    /// Inner errors: code and message.
    pub details: Vec<(String, String)>,
    /// What `Retry-After` says, in seconds.
    pub retry_after: Option<u64>,
}

impl Problem {
    /// An error with a status, a code and a message.
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        let (code, message) = (code.to_owned(), message.into());
        Self { status, code, message, target: None, details: Vec::new(), retry_after: None }
    }

    /// The same about a member of the request.
    #[must_use]
    pub fn target(mut self, target: &str) -> Self {
        self.target = Some(target.to_owned());
        self
    }

    /// The same with an inner error.
    #[must_use]
    pub fn detail(mut self, code: &str, message: impl Into<String>) -> Self {
        self.details.push((code.to_owned(), message.into()));
        self
    }

    /// The same with `Retry-After`.
    #[must_use]
    pub fn after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The member `error` of an answer or of an operation.
    #[must_use]
    pub fn error(&self) -> Value {
        let mut error = json!({ "code": self.code, "message": self.message });
        if let Some(target) = &self.target {
            error["target"] = target.as_str().into();
        }
        if !self.details.is_empty() {
            let one = |(code, message): &(String, String)| json!({ "code": code, "message": message });
            error["details"] = self.details.iter().map(one).collect();
        }
        error
    }
}

/// An injected fault names a code; its status is 400 unless it says otherwise.
impl From<&Fault> for Problem {
    fn from(fault: &Fault) -> Self {
        Self {
            retry_after: fault.members.get("retryAfter").and_then(Value::as_u64),
            ..Self::new(fault.status.unwrap_or(400), &fault.code, &fault.message)
        }
    }
}

pub(crate) fn bad(code: &str, message: impl Into<String>) -> Problem {
    Problem::new(400, code, message)
}

pub(crate) fn conflict(code: &str, message: impl Into<String>) -> Problem {
    Problem::new(409, code, message)
}

pub(crate) fn group_missing(group: &str) -> Problem {
    Problem::new(404, "ResourceGroupNotFound", format!("Resource group '{group}' could not be found."))
}

/// A resource that is not there.
pub(crate) fn missing(id: &str) -> Problem {
    let parts: Vec<&str> = id.split('/').filter(|part| !part.is_empty()).collect();
    let group = parts.get(3).copied().unwrap_or_default();
    let kind = super::kinds::kind_of(id);
    let names = parts.get(7..).unwrap_or_default().iter().step_by(2).copied().collect::<Vec<_>>().join("/");
    let message = format!("The Resource '{kind}/{names}' under resource group '{group}' was not found.");
    Problem::new(404, "ResourceNotFound", message)
}
