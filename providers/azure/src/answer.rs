//! Error bodies of Azure Resource Manager, those of calls and those of operations: the outer code, and the inner ones in `details`,
//! in `innererror` and as JSON in messages: <https://github.com/microsoft/api-guidelines/blob/vNext/azure/Guidelines.md#handling-errors>.

use std::time::Duration;

use serde_json::Value;
use textnlp_cloud::errors::{is_refused, shown};
use textnlp_provider::{Error, ErrorKind};

use crate::tables::errors;

/// How many codes of a body are kept.
const MAX_CODES: usize = 20;
/// How deep details are read.
const MAX_DEPTH: usize = 6;

/// A failed call or operation, as Azure describes it.
#[derive(Debug, Default)]
pub(crate) struct Failure {
    /// The codes, the innermost ones first.
    pub(crate) codes: Vec<String>,
    /// The HTTP status; `None` in an operation.
    pub(crate) status: Option<u16>,
    pub(crate) message: String,
    /// What `Retry-After` asks for.
    pub(crate) after: Option<Duration>,
}

impl Failure {
    /// The failure of a call. Some services write the members of the error without `error`, and some write no body
    /// (hashicorp/terraform-provider-azurerm#7190).
    pub(crate) fn of_answer(status: u16, body: &Value) -> Self {
        let error = if body["error"].is_object() { &body["error"] } else { body };
        let mut failure = Self { status: Some(status), ..Self::of_error(error) };
        if failure.message.is_empty() {
            failure.message = format!("status {status}");
        }
        failure
    }

    /// The failure of a call of a registry of images, whose errors are those of the distribution specification.
    pub(crate) fn of_registry(status: u16, body: &Value) -> Self {
        Self::of_answer(status, &body["errors"][0])
    }

    /// The failure in an error object.
    pub(crate) fn of_error(error: &Value) -> Self {
        let mut failure = Self::default();
        let mut messages = Vec::new();
        collect(error, MAX_DEPTH, &mut failure.codes, &mut messages);
        // Operations of Azure Machine Learning have no code, and messages that begin with one (MicrosoftDocs/azure-docs#121466,
        // Azure/data-product-analytics#137).
        if let (true, Some(first)) = (failure.codes.is_empty(), messages.first_mut())
            && let Some((code, rest)) = first.split_once(": ").filter(|(code, _)| is_code(code))
        {
            failure.codes.push(code.to_owned());
            *first = rest.to_owned();
        }
        failure.codes.reverse();
        failure.codes.truncate(MAX_CODES);
        messages.dedup();
        failure.message = shown(&messages.join("; "));
        failure
    }

    /// The code that says most, and what it means.
    pub(crate) fn meaning(&self) -> (ErrorKind, String, Option<String>) {
        errors::meaning(&self.codes, self.status, &self.message)
    }

    /// The error of a caller.
    pub(crate) fn error(self, action: &str, subject: &str) -> Error {
        let (mut kind, code, hint) = self.meaning();
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

/// Whether a word is a code: `OutOfQuota`.
fn is_code(word: &str) -> bool {
    let capitals = word.bytes().filter(u8::is_ascii_uppercase).count();
    capitals > 1
        && word.starts_with(|c: char| c.is_ascii_uppercase())
        && word.bytes().all(|byte| byte.is_ascii_alphabetic())
}

/// Codes and messages, the outer ones first. A message may be the body of another service's answer.
fn collect(error: &Value, depth: usize, codes: &mut Vec<String>, messages: &mut Vec<String>) {
    if depth == 0 || codes.len() >= MAX_CODES {
        return;
    }
    let text = |name: &str| error[name].as_str().map(str::trim).filter(|text| !text.is_empty());
    codes.extend(text("code").map(str::to_owned));
    let message = text("message").unwrap_or_default();
    let inner = message.find('{').and_then(|at| serde_json::from_str::<Value>(message[at..].trim()).ok());
    match inner {
        Some(inner) => {
            let inner = if inner["error"].is_object() { &inner["error"] } else { &inner };
            collect(inner, depth - 1, codes, messages);
        }
        None => messages.extend(Some(message).filter(|text| !text.is_empty()).map(str::to_owned)),
    }
    if error["innererror"].is_object() {
        collect(&error["innererror"], depth - 1, codes, messages);
    }
    for detail in error["details"].as_array().into_iter().flatten().take(MAX_CODES) {
        collect(detail, depth - 1, codes, messages);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_without_a_code_may_begin_with_one() {
        for (message, code, rest) in [
            ("OutOfQuota: Not enough cluster CPU quota", "OutOfQuota", "Not enough cluster CPU quota"),
            ("Error: OutOfQuota", "", "Error: OutOfQuota"),
            ("The image: NotFound", "", "The image: NotFound"),
        ] {
            let failure = Failure::of_error(&json!({ "code": null, "message": message }));
            assert_eq!((failure.codes.join(","), failure.message.as_str()), (code.to_owned(), rest));
        }
        let both = Failure::of_error(&json!({ "code": "BadArgument", "message": "OutOfQuota: no" }));
        assert_eq!((both.codes, both.message.as_str()), (vec!["BadArgument".to_owned()], "OutOfQuota: no"));
    }

    #[test]
    fn inner_codes_come_first() {
        let nested = json!({ "error": { "code": "InvalidTemplateDeployment", "message": "The template\nis not valid",
            "details": [{ "code": "QuotaExceeded", "message": "Operation could not be completed" }] } });
        let failure = Failure::of_answer(400, &nested);
        assert_eq!(failure.codes, ["QuotaExceeded", "InvalidTemplateDeployment"]);
        assert_eq!(failure.message, "The template is not valid; Operation could not be completed");
        assert_eq!(failure.meaning().0, ErrorKind::Quota);
        let wrapped = json!({ "code": "ReconcileVMSSAgentPoolFailed",
            "message": "Code=\"x\" {\"error\":{\"code\":\"SkuNotAvailable\",\"message\":\"no T4\"}}" });
        let failure = Failure::of_error(&wrapped);
        assert_eq!((failure.codes[0].as_str(), failure.message.as_str()), ("SkuNotAvailable", "no T4"));
        assert_eq!(failure.meaning().0, ErrorKind::Capacity);
        let empty = Failure::of_answer(409, &Value::Null);
        assert_eq!((empty.message.as_str(), empty.codes.len()), ("status 409", 0));
    }
}
