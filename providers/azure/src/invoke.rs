//! The client endpoint of a site in Azure Machine Learning, and operating it: requests with the operator's token, and where its logs
//! are.
//!
//! Who may call it is decided by roles: it has no API keys, tenants, probes or metrics.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use textnlp_cloud::tags::RESOURCE;
use textnlp_cloud::{Images, NoSecrets};
use textnlp_net::client::is_below;
use textnlp_provider::operations::{
    EndpointAccess, Invocations, Operations, ServiceEndpoint, SignedRequest, SiteOutputs,
};
use textnlp_provider::{Error, ErrorKind, Result, Site};
use tokio::sync::OnceCell;

use crate::access::Access;
use crate::api::{Api, Call, tags_at};
use crate::kinds::machine_learning::{SERVICE, VERSION};
use crate::names;
use crate::token::SCORING;

/// The domain that gets the token: of online endpoints.
const DOMAIN: &str = ".inference.ml.azure.com";

/// The client endpoint of a site with these outputs; `None` when it is no endpoint of Azure Machine Learning.
pub fn endpoint(outputs: &SiteOutputs) -> Option<ServiceEndpoint> {
    let url = outputs.get("server/traffic")?.get("url")?.as_str()?.to_owned();
    let access = EndpointAccess::Invocations;
    Some(ServiceEndpoint { url, ca_file: None, metrics: None, is_global: false, access })
}

/// The operations of a site that is an endpoint of Azure Machine Learning.
pub struct InvocationOperations {
    access: Access,
    group: String,
    /// The tag of the endpoint: its name is another one in each deployment.
    tag: String,
    /// The client, and the address of requests: asked for by the first one.
    endpoint: OnceCell<(Api, String)>,
}

impl fmt::Debug for InvocationOperations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InvocationOperations").field("group", &self.group).finish_non_exhaustive()
    }
}

impl InvocationOperations {
    /// The operations of the site's endpoint, for who signs in so. Nothing is called yet.
    pub fn new(access: Access, site: &Site) -> Self {
        let tag = format!("{}/server/endpoint", site.name);
        Self { access, group: names::cluster(site), tag, endpoint: OnceCell::new() }
    }

    async fn connect(&self) -> Result<(Api, String)> {
        let api = Api::connect(&self.access, Arc::new(NoSecrets), Images::of(None)).await?;
        let error = |kind: ErrorKind| Error::new(kind, "call", format!("the endpoint of {}", self.group));
        let Some(url) = self.address(&api).await? else {
            let cause = "it is not there, or has no address yet";
            return Err(error(ErrorKind::NotFound).because(cause).hint("`textnlp-deploy status` shows it"));
        };
        if !is_below(&url, DOMAIN) {
            let cause = format!("its address `{url}` is none of Azure Machine Learning, which gets no token");
            return Err(error(ErrorKind::Denied).because(cause));
        }
        Ok((api, url))
    }

    /// The address of requests of the endpoint with the tag, in any workspace of the group: of one with traffic, if there is one.
    async fn address(&self, api: &Api) -> Result<Option<String>> {
        let group = api.of_subscription(&format!("/resourceGroups/{}", self.group));
        let workspaces = api.list(Call::get(format!("{group}/providers/{SERVICE}/workspaces"), VERSION)).await?;
        let mut own = Vec::new();
        for workspace in workspaces.iter().filter_map(|one| one["id"].as_str()) {
            let endpoints = api.list(Call::get(format!("{workspace}/onlineEndpoints"), VERSION)).await?;
            own.extend(endpoints.into_iter().filter(|one| tags_at(one, "/tags").get(RESOURCE) == Some(&self.tag)));
        }
        // One that is being replaced has no traffic.
        let gets_requests = |one: &&Value| {
            let traffic = one["properties"]["traffic"].as_object();
            traffic.is_some_and(|shares| shares.values().any(|share| share.as_u64() > Some(0)))
        };
        let chosen = own.iter().find(gets_requests).or(own.first());
        Ok(chosen.and_then(|one| one["properties"]["scoringUri"].as_str()).map(str::to_owned))
    }
}

impl Operations for InvocationOperations {
    fn invocations(self: Arc<Self>) -> Option<Arc<dyn Invocations>> {
        Some(self)
    }

    fn log_command(&self) -> Option<String> {
        let subscription = self.access.subscription().map(|id| format!(" --subscription {id}")).unwrap_or_default();
        let list = format!(
            "az resource list{subscription} --resource-group {} --resource-type {SERVICE}/workspaces/onlineEndpoints/deployments --query '[].id' --output tsv",
            self.group
        );
        let read = format!("az rest --method post --url 'ID/getLogs?api-version={VERSION}' --body '{{\"tail\": 500}}'");
        Some(format!("{list} | xargs -I ID {read}"))
    }
}

#[async_trait]
impl Invocations for InvocationOperations {
    async fn sign(&self, _body: &[u8]) -> Result<SignedRequest> {
        let (api, url) = self.endpoint.get_or_try_init(|| self.connect()).await?;
        let bearer = api.session.tokens.bearer(SCORING).await?;
        Ok(SignedRequest::bearer(url, &bearer.token))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use textnlp_provider::Outputs;

    use super::*;

    #[test]
    fn only_azure_and_this_machine_get_the_token() {
        for (url, expected) in [
            ("https://textnlp-shop1a2b.westeurope.inference.ml.azure.com/invocations", true),
            ("https://management.azure.com/subscriptions", false),
            ("https://textnlp.westeurope.inference.ml.azure.com:8443/invocations", false),
            ("http://textnlp.westeurope.inference.ml.azure.com/invocations", false),
            ("http://127.0.0.1:7/invocations", true),
            ("https://inference.ml.azure.com.example.com/invocations", false),
            ("https://evil-inference.ml.azure.com/invocations", false),
            ("nothing", false),
        ] {
            assert_eq!(is_below(url, DOMAIN), expected, "{url}");
        }
    }

    #[test]
    fn the_address_of_clients_is_that_of_the_endpoint_with_traffic() {
        let of = |part: &str| {
            let url = json!("https://textnlp-shop.westeurope.inference.ml.azure.com/invocations");
            let outputs = Outputs::from([("url".to_owned(), url)]);
            endpoint(&SiteOutputs::from([(part.to_owned(), outputs)])).map(|one| one.access)
        };
        assert_eq!(of("server/traffic"), Some(EndpointAccess::Invocations));
        assert_eq!(of("server/endpoint"), None);
    }
}
