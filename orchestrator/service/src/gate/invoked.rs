//! The requests of a gate to an inference endpoint that answers invocations, and has no other path.

use async_trait::async_trait;
use serde_json::{Value, json};
use textnlp_orchestrator::load::{LoadRequest, LoadResponse, RequestFailure, Wire};

use crate::Failure;
use crate::client::{Client, Refusal, completed};

/// Answers the checks of development by completions.
pub(super) struct InvocationWire(pub(super) Client);

#[async_trait]
impl Wire for InvocationWire {
    async fn send(&self, request: LoadRequest) -> Result<LoadResponse, RequestFailure> {
        let body = match (request.path.as_str(), request.body) {
            // The cloud asks the containers for their health, and does not show their answers.
            ("/health", None) => json!({ "prompt": "a", "max_tokens": 1 }),
            ("/v1/generate", Some(body)) => body,
            _ => return Ok(LoadResponse { status: 404, body: Vec::new() }),
        };
        let answer = tokio::time::timeout(request.timeout, completed(&self.0, &body)).await;
        match answer.map_err(|_| RequestFailure::Timeout)? {
            Ok(answer) => Ok(of_json(200, &answer)),
            Err(failure) => refused(&failure),
        }
    }

    /// The addresses of the clouds have HTTPS only.
    fn verified(&self) -> bool {
        true
    }
}

/// The answer of the server that refused the request, if one did; else why there is none.
fn refused(failure: &Failure) -> Result<LoadResponse, RequestFailure> {
    match failure.error.downcast_ref::<Refusal>() {
        Some(refusal) => Ok(of_json(refusal.status(), &json!({ "error": { "message": refusal.message() } }))),
        None => Err(RequestFailure::Broken(format!("{:#}", failure.error))),
    }
}

fn of_json(status: u16, body: &Value) -> LoadResponse {
    LoadResponse { status, body: body.to_string().into_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Exit;
    use crate::client::refusal;

    #[test]
    fn refusal_of_a_server_is_an_answer_and_that_of_the_cloud_is_none() {
        let own = refusal(400, &json!({ "error": { "message": "`prompt` is missing" } }));
        let answer = refused(&own).unwrap();
        assert_eq!((answer.status, &answer.json().unwrap()["error"]["message"]), (400, &json!("`prompt` is missing")));
        let of_cloud = Failure::new(Exit::Failed, "refused_by_server", anyhow::anyhow!("denied (status 403)"));
        assert_eq!(refused(&of_cloud).unwrap_err().to_string(), "broken off: denied (status 403)");
    }
}
