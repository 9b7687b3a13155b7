//! Google's error bodies, those of calls and those in operations: <https://google.aip.dev/193>, and the older form with `errors`.

use std::time::Duration;

use serde_json::Value;
use textnlp_cloud::errors::{is_refused, shown};
use textnlp_provider::{Error, ErrorKind};

use crate::service::Service;
use crate::tables::errors;

/// How many codes of a body are kept.
const MAX_CODES: usize = 20;

/// A failed call or operation, as Google describes it.
#[derive(Debug, Default)]
pub(crate) struct Failure {
    /// The codes and reasons, the most specific ones first.
    pub(crate) codes: Vec<String>,
    /// The HTTP status; `None` in an operation.
    pub(crate) status: Option<u16>,
    pub(crate) message: String,
    /// What `Retry-After` asks for.
    pub(crate) after: Option<Duration>,
}

impl Failure {
    /// The failure of a call.
    pub(crate) fn of_answer(status: u16, body: &Value) -> Self {
        // OAuth's endpoints answer with a text in `error`.
        let error = &body["error"];
        let mut failure = Self { status: Some(status), ..Self::of_status(error) };
        if let Some(code) = error.as_str() {
            failure.codes.push(code.to_owned());
            failure.message = shown(body["error_description"].as_str().unwrap_or(code));
        }
        if failure.message.is_empty() {
            failure.message = format!("status {status}");
        }
        failure
    }

    /// The failure in a `google.rpc.Status`, or in the `error` of an older answer.
    pub(crate) fn of_status(error: &Value) -> Self {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let reasons = list(&error["details"]).into_iter().filter_map(|detail| text(&detail["reason"]));
        let legacy =
            list(&error["errors"]).into_iter().filter_map(|one| text(&one["reason"]).or_else(|| text(&one["code"])));
        let message = text(&error["message"]).unwrap_or_default();
        let status = text(&error["status"]).or_else(|| {
            let code = error["code"].as_u64().filter(|code| *code <= 16)?;
            CODES.get(usize::try_from(code).ok()?).map(|name| (*name).to_owned())
        });
        let codes = reasons.chain(legacy).chain(markers(&message)).chain(status).take(MAX_CODES).collect();
        Self { codes, status: None, message: shown(&message), after: None }
    }

    /// The failure in the operation of Compute Engine or Cloud SQL: `error.errors[]`.
    pub(crate) fn of_errors(error: &Value) -> Self {
        let mut failure = Self::default();
        let mut messages = Vec::new();
        for one in error["errors"].as_array().into_iter().flatten().take(MAX_CODES) {
            failure.codes.extend(one["code"].as_str().map(str::to_owned));
            let details = one["errorDetails"].as_array().into_iter().flatten();
            failure
                .codes
                .extend(details.filter_map(|detail| detail["errorInfo"]["reason"].as_str().map(str::to_owned)));
            messages.extend(one["message"].as_str().map(str::to_owned));
        }
        failure.message = shown(&messages.join("; "));
        failure.codes.extend(markers(&failure.message));
        failure
    }

    /// The code that says most, and what it means.
    pub(crate) fn meaning(&self, service: Service) -> (ErrorKind, String, Option<String>) {
        errors::meaning(service, &self.codes, self.status, &self.message)
    }

    /// The error of a caller.
    pub(crate) fn error(self, service: Service, action: &str, subject: &str) -> Error {
        let (mut kind, code, hint) = self.meaning(service);
        if let (ErrorKind::Throttled { after }, Some(asked)) = (&mut kind, self.after) {
            *after = Some(asked);
        }
        let refused = is_refused(&kind, self.status);
        let mut error = Error::new(kind, action, subject);
        error.refused = refused;
        error.code = (!code.is_empty()).then_some(code);
        error.hint = hint;
        error.because(self.message)
    }
}

/// Codes in brackets or alone in a message, as GKE writes those of Compute Engine: `[GCE_STOCKOUT]`.
fn markers(message: &str) -> Vec<String> {
    let is_code = |word: &&str| {
        word.contains('_')
            && word.len() >= 8
            && word.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
    };
    let words = message.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(is_code).take(MAX_CODES).map(str::to_owned).collect()
}

/// The names of `google.rpc.Code`, by number:
/// <https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto>.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bodies_of_both_forms_are_read() {
        let new = json!({ "error": { "code": 403, "message": "Permission\n'x' denied", "status": "PERMISSION_DENIED",
            "details": [{ "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "IAM_PERMISSION_DENIED" }] } });
        let failure = Failure::of_answer(403, &new);
        assert_eq!(failure.codes, ["IAM_PERMISSION_DENIED", "PERMISSION_DENIED"]);
        assert_eq!(failure.message, "Permission 'x' denied");
        let old = json!({ "error": { "code": 400, "message": "in use", "errors": [{ "reason": "resourceInUseByAnotherResource" }] } });
        assert_eq!(Failure::of_answer(400, &old).codes, ["resourceInUseByAnotherResource"]);
        let oauth = json!({ "error": "invalid_grant", "error_description": "expired" });
        assert_eq!(Failure::of_answer(400, &oauth).message, "expired");
        assert_eq!(Failure::of_answer(502, &Value::Null).message, "status 502");
    }

    #[test]
    fn operations_name_their_cause() {
        let status =
            json!({ "code": 13, "message": "Not all instances running in IGM after 35m. Errors: [GCE_STOCKOUT]: x" });
        let failure = Failure::of_status(&status);
        assert_eq!(failure.codes, ["GCE_STOCKOUT", "INTERNAL"]);
        assert_eq!(failure.meaning(Service::Container).0, ErrorKind::Capacity);
        let compute = json!({ "errors": [{ "code": "VM_MIN_COUNT_NOT_REACHED", "message": "a" }, { "code": "QUOTA_EXCEEDED", "message": "b" }] });
        let failure = Failure::of_errors(&compute);
        assert_eq!(failure.message, "a; b");
        assert_eq!(failure.meaning(Service::Compute).0, ErrorKind::Quota);
    }
}
