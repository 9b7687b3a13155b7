//! Operating an endpoint of Vertex AI: requests with the token of who is signed in, and where its logs are.
//!
//! Who may call it is decided by IAM: it has no API keys, tenants, probes or metrics.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use textnlp_cloud::{Images, NoSecrets};
use textnlp_net::client::is_below;
use textnlp_provider::operations::{Invocations, Operations, SignedRequest};
use textnlp_provider::{Error, ErrorKind, Result, Site};
use tokio::sync::OnceCell;

use crate::access::Access;
use crate::api::{Api, Call};
use crate::kinds::vertex::address;
use crate::names;
use crate::service::Service;

/// The domain that gets the token: of endpoints with names of their own.
const DOMAIN: &str = ".prediction.vertexai.goog";

/// The operations of a site that is an endpoint of Vertex AI.
pub struct InvocationOperations {
    access: Access,
    name: String,
    /// The client, and the address of requests: asked for by the first one.
    endpoint: OnceCell<(Api, String)>,
}

impl fmt::Debug for InvocationOperations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InvocationOperations").field("name", &self.name).finish_non_exhaustive()
    }
}

impl InvocationOperations {
    /// The operations of the site's endpoint, for who signs in so. Nothing is called yet.
    pub fn new(access: Access, site: &Site) -> Self {
        Self { access, name: names::endpoint(site), endpoint: OnceCell::new() }
    }

    async fn connect(&self) -> Result<(Api, String)> {
        let api = Api::connect(&self.access, Arc::new(NoSecrets), Images::of(None)).await?;
        let id = api.path(&format!("projects/{{project}}/locations/{{location}}/endpoints/{}", self.name));
        let document = api.send(Call::get(Service::AiPlatform, id.clone())).await?;
        let Some(url) = address(&id, &document) else {
            let error = Error::new(ErrorKind::Unavailable, "call", self.name.clone());
            return Err(error.because("it has no name in DNS yet").hint("try again in some minutes"));
        };
        if !is_below(&url, DOMAIN) {
            let error = Error::new(ErrorKind::Denied, "call", self.name.clone());
            return Err(error.because(format!("its address `{url}` is none of Google, which gets no token")));
        }
        Ok((api, url))
    }
}

impl Operations for InvocationOperations {
    fn invocations(self: Arc<Self>) -> Option<Arc<dyn Invocations>> {
        Some(self)
    }

    fn log_command(&self) -> Option<String> {
        let (name, location) = (&self.name, &self.access.region);
        let filter = format!(
            "resource.type=\"aiplatform.googleapis.com/Endpoint\" resource.labels.endpoint_id=\"{name}\" resource.labels.location=\"{location}\""
        );
        let project = self.access.project().map(|project| format!(" --project {project}")).unwrap_or_default();
        Some(format!("gcloud logging read '{filter}'{project}"))
    }
}

#[async_trait]
impl Invocations for InvocationOperations {
    async fn sign(&self, _body: &[u8]) -> Result<SignedRequest> {
        let (api, url) = self.endpoint.get_or_try_init(|| self.connect()).await?;
        let bearer = api.session.tokens.bearer().await?;
        Ok(SignedRequest::bearer(url, &bearer.token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_google_and_this_machine_get_the_token() {
        for (url, expected) in [
            ("https://e.europe-west4-1.prediction.vertexai.goog/v1/projects/1:rawPredict", true),
            ("https://europe-west4-aiplatform.googleapis.com/v1/projects/1:rawPredict", false),
            ("https://anything.storage.googleapis.com/v1/projects/1:rawPredict", false),
            ("https://e.europe-west4-1.prediction.vertexai.goog:8443/v1/projects/1:rawPredict", false),
            ("http://127.0.0.1:7/prediction", true),
            ("http://e.europe-west4-1.prediction.vertexai.goog/v1", false),
            ("https://prediction.vertexai.goog.example.com/v1", false),
            ("https://evil-prediction.vertexai.goog/v1", false),
            ("nothing", false),
        ] {
            assert_eq!(is_below(url, DOMAIN), expected, "{url}");
        }
    }
}
