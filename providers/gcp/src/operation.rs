//! Operations in the background: four families with the same course. Success is an operation that is done without an error.

use serde_json::Value;
use textnlp_cloud::{State, document};
use textnlp_provider::{ErrorKind, Result};

use crate::answer::Failure;
use crate::api::{Api, Call};
use crate::service::Service;

/// How a service names its operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// A call is done once it is answered.
    None,
    /// `projects/P/global|regions/R|zones/Z/operations/NAME`.
    Compute,
    /// `projects/P/locations/L/operations/NAME`, with the location of the object.
    Container,
    /// `projects/P/operations/NAME`.
    Sql,
    /// The whole name is in the answer: `google.longrunning`.
    LongRunning,
}

impl Family {
    /// The path of the operation that a call answered for the object `id`; `None` if it is done already.
    pub(crate) fn started(self, api: &Api, id: &str, answer: &Value) -> Option<String> {
        let name = answer["name"].as_str().filter(|name| !name.is_empty())?;
        if self.is_done(answer) && document::get(answer, "/error").is_none() {
            return None;
        }
        let project = api.project();
        match self {
            Self::None => None,
            Self::Compute => {
                let part = |member: &str| answer[member].as_str().map(document::last);
                let scope = match (part("zone"), part("region")) {
                    (Some(zone), _) => format!("zones/{zone}"),
                    (None, Some(region)) => format!("regions/{region}"),
                    (None, None) => "global".to_owned(),
                };
                Some(format!("projects/{project}/{scope}/operations/{name}"))
            }
            Self::Container => {
                let location = id.split('/').nth(3).unwrap_or(&api.region);
                Some(format!("projects/{project}/locations/{location}/operations/{name}"))
            }
            Self::Sql => Some(format!("projects/{project}/operations/{name}")),
            Self::LongRunning => {
                (name.starts_with("operations/") || name.contains("/operations/")).then(|| name.to_owned())
            }
        }
    }

    /// The state of an operation. One that cannot be read any more says nothing: the object itself shows what became of it. Google
    /// forgets operations, and a service that was just enabled refuses reads of them (googleapis/nodejs-compute#377,
    /// terraform-google-modules/terraform-google-memorystore#22).
    pub(crate) async fn state(self, api: &Api, service: Service, operation: &str) -> Result<State> {
        match self.shown(api, service, operation).await {
            Err(error) if error.kind == ErrorKind::Denied => Ok(State::Ready),
            state => state,
        }
    }

    /// The same, with an error for an operation that the identity may not read.
    pub(crate) async fn shown(self, api: &Api, service: Service, operation: &str) -> Result<State> {
        let call = Call::get(service, operation).saying("read", format!("operation {}", document::last(operation)));
        let answer = match api.send(call).await {
            Ok(answer) => answer,
            Err(error) if error.kind == ErrorKind::NotFound || crate::api::is_disabled(&error) => {
                return Ok(State::Ready);
            }
            Err(error) => return Err(error),
        };
        Ok(self.judge(service, &answer))
    }

    fn is_done(self, answer: &Value) -> bool {
        match self {
            Self::LongRunning => answer["done"] == true,
            _ => answer["status"] == "DONE",
        }
    }

    fn judge(self, service: Service, answer: &Value) -> State {
        if !self.is_done(answer) {
            let word = answer["status"].as_str().unwrap_or("RUNNING");
            return State::Pending(word.to_ascii_lowercase());
        }
        let Some(error) = document::get(answer, "/error") else { return State::Ready };
        let failure = match self {
            Self::Compute | Self::Sql => Failure::of_errors(error),
            _ => Failure::of_status(error),
        };
        let (_, code, _) = failure.meaning(service);
        let why = if failure.message.is_empty() { "Google Cloud gives no reason".to_owned() } else { failure.message };
        State::Failed { code, why }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn done_without_an_error_is_success() {
        for (family, answer, state) in [
            (Family::Compute, json!({ "status": "RUNNING" }), State::Pending("running".to_owned())),
            (Family::Compute, json!({ "status": "DONE" }), State::Ready),
            (
                Family::Compute,
                json!({ "status": "DONE", "error": { "errors": [{ "code": "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE", "message": "m" }] } }),
                State::Failed { code: "RESOURCE_IN_USE_BY_ANOTHER_RESOURCE".to_owned(), why: "m".to_owned() },
            ),
            (Family::Container, json!({ "status": "ABORTING" }), State::Pending("aborting".to_owned())),
            (
                Family::LongRunning,
                json!({ "done": true, "error": { "code": 9, "message": "Producer services are still using this connection" } }),
                State::Failed {
                    code: "FAILED_PRECONDITION".to_owned(),
                    why: "Producer services are still using this connection".to_owned(),
                },
            ),
            (Family::LongRunning, json!({ "name": "operations/x" }), State::Pending("running".to_owned())),
        ] {
            let service = if family == Family::LongRunning { Service::ServiceNetworking } else { Service::Compute };
            assert_eq!(family.judge(service, &answer), state, "{answer}");
        }
    }
}
