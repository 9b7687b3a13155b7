//! The client endpoint of a site without a cluster; and operating a service of Cloud Run: requests of the account that may call it,
//! and where its logs are.
//!
//! Who may call it is decided by IAM: it has no API keys, tenants or metrics.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use textnlp_provider::operations::{Caller, EndpointAccess, Operations, ServiceEndpoint, SiteOutputs};
use textnlp_provider::{Result, Secret, Site};
use tokio::sync::Mutex;

use crate::access::Access;
use crate::api::Api;
use crate::names;

/// The header with the token. Cloud Run reads it in place of `Authorization`, which is the servers' own
/// (<https://cloud.google.com/run/docs/authenticating/service-to-service>).
const HEADER: &str = "X-Serverless-Authorization";
/// How long a token is used: it lasts for an hour.
const USED_FOR: Duration = Duration::from_secs(1800);

/// The parts whose output `url` is the address of a site, and how their callers are authorized.
const ADDRESSED: [(&str, EndpointAccess); 2] =
    [("server/service", EndpointAccess::Identities), ("server/deployment", EndpointAccess::Invocations)];

/// The client endpoint of a site with these outputs; `None` when it is neither a service of Cloud Run nor an endpoint of Vertex AI.
pub fn endpoint(outputs: &SiteOutputs) -> Option<ServiceEndpoint> {
    ADDRESSED.iter().find_map(|(part, access)| {
        let url = outputs.get(*part)?.get("url")?.as_str()?;
        let url = url.trim_end_matches('/').to_owned();
        Some(ServiceEndpoint { url, ca_file: None, metrics: None, is_global: false, access: *access })
    })
}

/// The operations of a site that is a service of Cloud Run.
#[derive(Debug)]
pub struct EndpointOperations {
    access: Access,
    service: String,
    /// The id of the account that may call it.
    caller: String,
    /// The last token: its address, and when it was made.
    token: Mutex<Option<(String, Instant, Secret)>>,
}

impl EndpointOperations {
    /// The operations of the site's service, for who signs in so. Nothing is called yet.
    pub fn new(access: Access, site: &Site) -> Self {
        Self { access, service: names::service(site), caller: names::caller(site), token: Mutex::new(None) }
    }
}

impl Operations for EndpointOperations {
    fn caller(self: Arc<Self>) -> Option<Arc<dyn Caller>> {
        Some(self)
    }

    fn log_command(&self) -> Option<String> {
        let (service, region) = (&self.service, &self.access.region);
        let project = self.access.project().map(|project| format!(" --project {project}")).unwrap_or_default();
        Some(format!("gcloud run services logs read {service} --region {region}{project}"))
    }
}

#[async_trait]
impl Caller for EndpointOperations {
    async fn headers(&self, address: &str) -> Result<Vec<(String, Secret)>> {
        let mut known = self.token.lock().await;
        let is_usable = |made: &Instant| made.elapsed() < USED_FOR;
        let token = match known.as_ref().filter(|(of, made, _)| of == address && is_usable(made)) {
            Some((.., token)) => token.clone(),
            None => {
                let account = format!("{}@{}.iam.gserviceaccount.com", self.caller, self.access.project()?);
                let token = Api::tokens(&self.access)?.identity(&account, address).await?;
                *known = Some((address.to_owned(), Instant::now(), token.clone()));
                token
            }
        };
        let value = format!("Bearer {}", token.expose_text().unwrap_or_default());
        Ok(vec![(HEADER.to_owned(), Secret::new(value))])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use textnlp_provider::Outputs;

    use super::*;

    #[test]
    fn the_address_of_a_service_is_the_one_that_cloud_run_gave_it() {
        let of = |part: &str| {
            let outputs = Outputs::from([("url".to_owned(), json!("https://textnlp-a-main-1.europe-west4.run.app/"))]);
            endpoint(&SiteOutputs::from([(part.to_owned(), outputs)])).map(|endpoint| endpoint.url)
        };
        assert_eq!(of("server/service").as_deref(), Some("https://textnlp-a-main-1.europe-west4.run.app"));
        assert_eq!(of("server/deployment"), of("server/service"));
        assert_eq!(of("gateway/service"), None);
    }
}
