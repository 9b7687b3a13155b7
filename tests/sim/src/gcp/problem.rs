//! Errors as Google's APIs answer them.

use serde_json::{Map, Value, json};

use crate::Fault;

/// The canonical codes: name, number of gRPC, HTTP status, and the usual reason of the older error format.
///
/// <https://cloud.google.com/apis/design/errors#handling_errors>
const CODES: &[(&str, u16, u16, &str)] = &[
    ("OK", 0, 200, ""),
    ("CANCELLED", 1, 499, "cancelled"),
    ("UNKNOWN", 2, 500, "backendError"),
    ("INVALID_ARGUMENT", 3, 400, "badRequest"),
    ("DEADLINE_EXCEEDED", 4, 504, "backendError"),
    ("NOT_FOUND", 5, 404, "notFound"),
    ("ALREADY_EXISTS", 6, 409, "alreadyExists"),
    ("PERMISSION_DENIED", 7, 403, "forbidden"),
    ("RESOURCE_EXHAUSTED", 8, 429, "rateLimitExceeded"),
    ("FAILED_PRECONDITION", 9, 400, "failedPrecondition"),
    ("ABORTED", 10, 409, "aborted"),
    ("OUT_OF_RANGE", 11, 400, "outOfRange"),
    ("UNIMPLEMENTED", 12, 501, "notImplemented"),
    ("INTERNAL", 13, 500, "backendError"),
    ("UNAVAILABLE", 14, 503, "backendError"),
    ("UNAUTHENTICATED", 16, 401, "authError"),
];

/// An error of an API.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The canonical code, such as `NOT_FOUND`.
    pub code: &'static str,
    /// The HTTP status.
    pub http: u16,
    /// The reason in the older format.
    pub reason: String,
    /// The message.
    pub message: String,
    /// Typed details.
    pub details: Vec<Value>,
    /// Further items of the older format, as `(reason, message)`.
    pub more: Vec<(String, String)>,
}

impl Problem {
    /// An error with the usual status and reason of a canonical code.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        let row = CODES.iter().find(|row| row.0 == code).unwrap_or(&CODES[2]);
        Self {
            code: row.0,
            http: row.2,
            reason: row.3.to_owned(),
            message: message.into(),
            details: Vec::new(),
            more: Vec::new(),
        }
    }

    /// An error with a reason of the older format and a status.
    pub fn with_reason(http: u16, reason: &str, message: impl Into<String>) -> Self {
        let code = match http {
            400 => "INVALID_ARGUMENT",
            409 => "ALREADY_EXISTS",
            412 => "FAILED_PRECONDITION",
            status => CODES.iter().find(|row| row.2 == status).map_or("UNKNOWN", |row| row.0),
        };
        Self { http, reason: reason.to_owned(), ..Self::new(code, message) }
    }

    /// The same with another reason of the older format.
    #[must_use]
    pub fn reason(mut self, reason: &str) -> Self {
        reason.clone_into(&mut self.reason);
        self
    }

    /// The same with a detail of the type `ErrorInfo`.
    #[must_use]
    pub fn info(mut self, reason: &str, domain: &str, metadata: Value) -> Self {
        let kind = "type.googleapis.com/google.rpc.ErrorInfo";
        self.details.push(json!({ "@type": kind, "reason": reason, "domain": domain, "metadata": metadata }));
        self
    }

    /// The same with another detail.
    #[must_use]
    pub fn detail(mut self, detail: Value) -> Self {
        self.details.push(detail);
        self
    }

    /// The number of the code in gRPC, and in errors of operations.
    #[must_use]
    pub fn number(&self) -> u16 {
        CODES.iter().find(|row| row.0 == self.code).map_or(2, |row| row.1)
    }

    /// The message `google.rpc.Status`, as operations hold it.
    #[must_use]
    pub fn status(&self) -> Value {
        let mut status = json!({ "code": self.number(), "message": self.message });
        if !self.details.is_empty() {
            status["details"] = self.details.clone().into();
        }
        status
    }

    /// The body of an answer. Compute Engine and Cloud SQL have no member `status`.
    #[must_use]
    pub fn body(&self, is_older: bool) -> Value {
        let item = |reason: &str, message: &str| json!({ "message": message, "domain": "global", "reason": reason });
        let mut items = vec![item(&self.reason, &self.message)];
        items.extend(self.more.iter().map(|(reason, message)| item(reason, message)));
        let mut error = Map::new();
        error.insert("code".to_owned(), self.http.into());
        error.insert("message".to_owned(), self.message.clone().into());
        error.insert("errors".to_owned(), items.into());
        if !is_older {
            error.insert("status".to_owned(), self.code.into());
        }
        if !self.details.is_empty() {
            error.insert("details".to_owned(), self.details.clone().into());
        }
        json!({ "error": error })
    }
}

/// An injected fault names a canonical code, or a reason of the older format and a status.
impl From<&Fault> for Problem {
    fn from(fault: &Fault) -> Self {
        let mut problem = match CODES.iter().find(|row| row.0 == fault.code) {
            Some(row) => Self::new(row.0, &fault.message),
            None => Self::with_reason(fault.status.unwrap_or(400), &fault.code, &fault.message),
        };
        if let Some(http) = fault.status {
            problem.http = http;
        }
        if let Some(reason) = fault.members.get("reason").and_then(Value::as_str) {
            problem.reason = reason.to_owned();
        }
        if let Some(details) = fault.members.get("details").and_then(Value::as_array) {
            problem.details.clone_from(details);
        }
        problem
    }
}
