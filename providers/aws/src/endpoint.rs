//! Operating an endpoint of SageMaker: requests that are signed for it, and where its logs are.
//!
//! Who may invoke it is decided by IAM: it has no API keys, tenants, probes or metrics.

use std::sync::Arc;

use async_trait::async_trait;
use aws_config::SdkConfig;
use textnlp_provider::operations::{
    EndpointAccess, Invocations, Operations, ServiceEndpoint, SignedRequest, SiteOutputs,
};
use textnlp_provider::{Error, ErrorKind, Result, Site};
use textnlp_token::{aws_signed, partition};
use tokio::sync::OnceCell;

use crate::api::{Access, Api};
use crate::names;

/// The signing name of InvokeEndpoint:
/// <https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html>.
const SERVICE: &str = "sagemaker";

/// The client endpoint of a site with these outputs; `None` when it is no endpoint of SageMaker.
pub fn endpoint(outputs: &SiteOutputs) -> Option<ServiceEndpoint> {
    let arn = outputs.get("server/endpoint")?.get("arn")?.as_str()?;
    let mut parts = arn.strip_prefix("arn:")?.splitn(5, ':').skip(2);
    let (region, name) = (parts.next()?, parts.nth(1)?.strip_prefix("endpoint/")?);
    Some(ServiceEndpoint {
        url: url(&runtime(region), name),
        ca_file: None,
        metrics: None,
        is_global: false,
        access: EndpointAccess::Invocations,
    })
}

fn runtime(region: &str) -> String {
    format!("https://runtime.sagemaker.{region}.{}", partition(region).dns_suffix)
}

fn url(runtime: &str, name: &str) -> String {
    format!("{}/endpoints/{name}/invocations", runtime.trim_end_matches('/'))
}

/// The operations of a site that is an endpoint of SageMaker.
#[derive(Debug)]
pub struct EndpointOperations {
    access: Access,
    name: String,
    /// Loaded for the first request. Its provider renews the credentials.
    config: OnceCell<SdkConfig>,
}

impl EndpointOperations {
    /// The operations of the site's endpoint, for who signs in so. Nothing is called yet.
    pub fn new(access: Access, site: &Site) -> Self {
        Self { access, name: names::endpoint(site), config: OnceCell::new() }
    }
}

impl Operations for EndpointOperations {
    fn invocations(self: Arc<Self>) -> Option<Arc<dyn Invocations>> {
        Some(self)
    }

    fn log_command(&self) -> Option<String> {
        let (name, region) = (&self.name, &self.access.region);
        Some(format!("aws logs tail /aws/sagemaker/Endpoints/{name} --region {region} --follow"))
    }
}

#[async_trait]
impl Invocations for EndpointOperations {
    async fn sign(&self, body: &[u8]) -> Result<SignedRequest> {
        let config = self.config.get_or_try_init(|| Api::configuration(&self.access)).await?;
        let Some(credentials) = config.credentials_provider() else {
            let error = Error::new(ErrorKind::Denied, "invoke", self.name.clone());
            return Err(error.because("no credentials were found"));
        };
        let region = &self.access.region;
        let url = url(&config.endpoint_url().map_or_else(|| runtime(region), str::to_owned), &self.name);
        let headers = aws_signed(&credentials, region, SERVICE, &url, body).await?;
        Ok(SignedRequest { url, headers })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use textnlp_provider::Outputs;

    use super::*;

    #[test]
    fn the_address_of_an_endpoint_is_that_of_its_region() {
        let of = |arn: &str| {
            let outputs = Outputs::from([("arn".to_owned(), json!(arn))]);
            endpoint(&SiteOutputs::from([("server/endpoint".to_owned(), outputs)])).map(|endpoint| endpoint.url)
        };
        let expected = "https://runtime.sagemaker.eu-central-1.amazonaws.com/endpoints/textnlp-a-main/invocations";
        assert_eq!(
            of("arn:aws:sagemaker:eu-central-1:123456789012:endpoint/textnlp-a-main").as_deref(),
            Some(expected)
        );
        let expected = "https://runtime.sagemaker.cn-north-1.amazonaws.com.cn/endpoints/e/invocations";
        assert_eq!(of("arn:aws-cn:sagemaker:cn-north-1:123456789012:endpoint/e").as_deref(), Some(expected));
        assert_eq!(of("arn:aws:sagemaker:eu-central-1:123456789012:model/m"), None);
        assert!(endpoint(&SiteOutputs::new()).is_none());
    }
}
