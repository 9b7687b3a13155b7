//! The HTTP client of ACME: this program's own, with its trust roots, proxies, timeouts and bounds.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::USER_AGENT;
use http_body_util::BodyExt as _;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use textnlp_net::client::{self, ClientOptions, ProxySettings};
use textnlp_net::trust::TrustRoots;
use textnlp_provider::SecretStore;

use super::{AcmeOrder, ProxyAddress};

/// Timeout of a request with its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest answer. A chain of certificates has a few kilobytes.
const ANSWER_MAX: usize = 1 << 20;

/// See the module.
pub(super) struct Client(client::Client);

impl Client {
    /// The client for an order.
    pub(super) async fn new(order: &AcmeOrder, secrets: &dyn SecretStore) -> Result<Self, String> {
        let mut proxies = std::collections::BTreeMap::new();
        for (name, address) in &order.proxy {
            let address = match address {
                ProxyAddress::Plain(address) => address.clone(),
                ProxyAddress::Secret(secret) => {
                    let value = secrets.get(secret).await.map_err(|error| textnlp_provider::error_chain(&error))?;
                    value.expose_text().unwrap_or_default().trim().to_owned()
                }
            };
            proxies.insert(name.as_str(), address);
        }
        let proxy = ProxySettings::from_variables(|name| proxies.get(name).cloned()).or(ProxySettings::from_env());
        let trust = TrustRoots::public_and(order.ca_file.as_deref()).map_err(|error| error.to_string())?;
        let options = ClientOptions { trust, proxy, timeout: Some(REQUEST_TIMEOUT), ..ClientOptions::default() };
        Ok(Self(options.client().map_err(|error| error.to_string())?))
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.0.clone();
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            // The client names this program instead.
            head.headers.remove(USER_AGENT);
            let body = match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(never) => match never {},
            };
            let request = client.request(head.method, head.uri.to_string()).headers(head.headers).body(body);
            let response = request.send().await.map_err(|error| Error::Other(Box::new(error)))?;
            let mut parts = http::Response::new(()).into_parts().0;
            parts.status = response.status();
            parts.headers = response.headers().clone();
            let body = client::read_body(response, ANSWER_MAX).await.map_err(|error| Error::Other(Box::new(error)))?;
            Ok(BytesResponse { parts, body: Box::new(Bytes::from(body)) })
        })
    }
}
