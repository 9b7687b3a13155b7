//! How a resource is reached through another one: a cluster, a host.
//!
//! The CLI registers a [`Connect`] for each host kind with the providers that work through it (see
//! [`Through`](crate::Through)). Nothing here is recorded: an endpoint is derived from the host's outputs each time,
//! and a token lives as long as the process.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;

use crate::error::{Error, ErrorKind, Result};
use crate::resource::Outputs;
use crate::secret::Secret;

/// The output of a host with its `https` URL.
pub const ENDPOINT: &str = "endpoint";
/// The output of a host with the certificate authority to trust, PEM.
pub const CA: &str = "ca_pem";
/// The code of an error without an answer because the name of the host is not known: the call was not sent.
pub const NAME_NOT_FOUND: &str = "NameNotFound";

/// Turns the outputs of a host into an endpoint.
#[async_trait]
pub trait Connect: Send + Sync {
    /// An endpoint from the outputs of the resource named by `via`.
    async fn connect(&self, host: &Outputs) -> Result<HostEndpoint>;
}

/// Finds the endpoint of a host whose outputs are not at hand.
#[async_trait]
pub trait Locate: Send + Sync {
    /// The endpoint now; NotFound when the host does not exist.
    async fn locate(&self) -> Result<HostEndpoint>;
}

/// Short-lived credentials for an endpoint.
#[async_trait]
pub trait TokenSource: Send + Sync {
    /// A valid token. Called before the last token expires and once after a token was rejected, but not again within
    /// some seconds. The caller waits for a few seconds at most.
    async fn token(&self) -> Result<Bearer>;
}

/// A bearer token, and its expiry.
#[derive(Debug, Clone)]
pub struct Bearer {
    /// The token.
    pub token: Secret,
    /// When it expires.
    pub ends: SystemTime,
}

/// The endpoint of a host. Never recorded.
#[derive(Clone)]
pub struct HostEndpoint {
    /// The base URL.
    pub url: String,
    /// The certificate authority to trust, PEM.
    pub ca_pem: Option<String>,
    /// Credentials, when the host asks for a bearer token.
    pub token: Option<Arc<dyn TokenSource>>,
}

impl HostEndpoint {
    /// The endpoint of a host from its outputs [`ENDPOINT`] and [`CA`], with tokens from `token`.
    pub fn of(host: &Outputs, token: Arc<dyn TokenSource>) -> Result<Self> {
        let text = |name: &str| host.get(name).and_then(|value| value.as_str()).map(str::to_owned);
        let Some(url) = text(ENDPOINT) else {
            let error = Error::new(ErrorKind::Unavailable, "find the endpoint of", "the host");
            return Err(error.because(format!("it has no output `{ENDPOINT}` yet")));
        };
        Ok(Self { url, ca_pem: text(CA), token: Some(token) })
    }
}
