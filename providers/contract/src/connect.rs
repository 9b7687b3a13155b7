//! How a resource is reached through another one: a cluster, a host.
//!
//! The cli wires a [`Connect`] for each host kind into the providers that work through it. Nothing here is ever recorded:
//! an endpoint is made anew from the host's outputs each time.

use async_trait::async_trait;

use crate::error::Result;
use crate::resource::Outputs;
use crate::secret::Secret;

/// Turns the outputs of a host into a way to call it.
#[async_trait]
pub trait Connect: Send + Sync {
    /// An endpoint from the outputs of the resource named by `via`.
    async fn connect(&self, host: &Outputs) -> Result<Endpoint>;
}

/// Short-lived credentials for an endpoint.
#[async_trait]
pub trait TokenSource: Send + Sync {
    /// A bearer token that is valid for at least the next call.
    async fn token(&self) -> Result<Secret>;
}

/// A way to call a host. Never recorded.
pub struct Endpoint {
    /// The base URL.
    pub url: String,
    /// The certificate authority to trust, PEM.
    pub ca_pem: Option<String>,
    /// Credentials, when the host asks for a bearer token.
    pub token: Option<Box<dyn TokenSource>>,
}
