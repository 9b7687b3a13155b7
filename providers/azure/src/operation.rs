//! Operations in the background: the styles of Azure Resource Manager
//! (<https://learn.microsoft.com/azure/azure-resource-manager/management/async-operations>). An address survives a crash in the journal.
//!
//! Done is not done: the driver reads the object after its operation ended, and waits for its `provisioningState`
//! (Azure/azure-sdk-for-net#36798).

use serde_json::Value;
use textnlp_cloud::State;
use textnlp_provider::{ErrorKind, Result};

use crate::answer::Failure;
use crate::api::{Api, Call, RESOURCES, own_path};

/// Words that end an operation, besides `Failed` and `Canceled`: one service says `Success` (Azure/azure-rest-api-specs#23035).
const DONE: [&str; 4] = ["succeeded", "success", "completed", "ready"];
/// Words of a failed one.
const FAILED: [&str; 3] = ["failed", "canceled", "cancelled"];

/// An operation: its address, as path and query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pending(pub(crate) String);

impl Pending {
    /// The operation of an answer: the header for operations first, then that for results. `None` if it is done already, or if the
    /// object alone shows its course.
    pub(crate) fn of(operation: Option<&str>, location: Option<&str>, status: u16) -> Option<Self> {
        let location = location.filter(|_| status == 202 || status == 201);
        operation.or(location).and_then(own_path).map(Self)
    }

    /// The state of an operation. One that cannot be read any more says nothing, and the object itself shows what became of it:
    /// addresses end (Azure/azure-cli#15884), and reading them is a right of its own (hashicorp/terraform-provider-azurerm#29047).
    pub(crate) async fn state(api: &Api, address: &str) -> Result<State> {
        let call = Call::get(address, RESOURCES).saying("read", "an operation");
        match api.send(call).await {
            Ok(reply) => Ok(judge(reply.status, &reply.body)),
            Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Denied) => Ok(State::Ready),
            Err(error) => Err(error),
        }
    }
}

/// The state that an answer shows: in its body, whichever header gave the address (Azure/msrestazure-for-python#157), else by its HTTP
/// status (hashicorp/terraform-provider-azurerm#22771).
fn judge(status: u16, body: &Value) -> State {
    let said = body["status"].as_str().or_else(|| body["properties"]["provisioningState"].as_str());
    let Some(said) = said.filter(|said| !said.is_empty()) else {
        return if status == 202 { State::Pending("in progress".to_owned()) } else { State::Ready };
    };
    let word = said.to_ascii_lowercase();
    if DONE.contains(&word.as_str()) {
        return State::Ready;
    }
    if !FAILED.contains(&word.as_str()) {
        return State::Pending(word);
    }
    let error = if body["error"].is_object() { &body["error"] } else { &body["properties"]["error"] };
    let failure = Failure::of_error(error);
    let (_, code, _) = failure.meaning();
    let why = if failure.message.is_empty() { format!("Azure gives no reason: {word}") } else { failure.message };
    State::Failed { code, why }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn done_without_an_error_is_success() {
        let failed = |code: &str, why: &str| State::Failed { code: code.to_owned(), why: why.to_owned() };
        for (status, body, state) in [
            (200, json!({ "status": "InProgress" }), State::Pending("inprogress".to_owned())),
            (200, json!({ "status": "Restarting" }), State::Pending("restarting".to_owned())),
            (200, json!({ "status": "Success" }), State::Ready),
            (202, Value::Null, State::Pending("in progress".to_owned())),
            (204, Value::Null, State::Ready),
            (200, json!({ "properties": { "provisioningState": "Succeeded" } }), State::Ready),
            (
                200,
                json!({ "status": "Failed", "error": { "code": "SkuNotAvailable", "message": "m" } }),
                failed("SkuNotAvailable", "m"),
            ),
            (200, json!({ "status": "Canceled" }), failed("", "Azure gives no reason: canceled")),
        ] {
            assert_eq!(judge(status, &body), state, "{body}");
        }
    }

    #[test]
    fn operations_are_found_in_headers() {
        let (one, other) = ("https://management.azure.com/o?x=1", "https://management.azure.com/r");
        assert_eq!(Pending::of(Some(one), Some(other), 201).unwrap().0, "/o?x=1");
        assert_eq!(Pending::of(None, Some(other), 202).unwrap().0, "/r");
        assert_eq!(Pending::of(None, Some(other), 200), None);
        assert_eq!(Pending::of(Some("https://example.com/o"), None, 202), None);
    }
}
