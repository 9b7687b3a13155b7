//! How a resource is reached through another one: a cluster, a host.
//!
//! The cli wires a [`Connect`] for each host kind into the providers that work through it (see [`Through`](crate::Through)). Nothing here
//! is ever recorded: an endpoint is made anew from the host's outputs each time, and a token lives as long as the process.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;

use crate::error::{Error, Result, Sort};
use crate::resource::Outputs;
use crate::secret::Secret;

/// The output of a host that says where it is called: an `https` URL.
pub const ENDPOINT: &str = "endpoint";
/// The output of a host that says which certificate authority to trust, PEM.
pub const CA: &str = "ca_pem";

/// Turns the outputs of a host into a way to call it.
#[async_trait]
pub trait Connect: Send + Sync {
    /// An endpoint from the outputs of the resource named by `via`.
    async fn connect(&self, host: &Outputs) -> Result<Endpoint>;
}

/// Short-lived credentials for an endpoint.
#[async_trait]
pub trait TokenSource: Send + Sync {
    /// A token that is good now. It is asked for before the last one ends, but not again within some seconds, and once after one was
    /// refused; whoever asks waits for a few seconds and no longer.
    async fn token(&self) -> Result<Bearer>;
}

/// A bearer token, and when it ends.
#[derive(Debug, Clone)]
pub struct Bearer {
    /// The token.
    pub token: Secret,
    /// When it is of no use any more.
    pub ends: SystemTime,
}

/// A way to call a host. Never recorded.
#[derive(Clone)]
pub struct Endpoint {
    /// The base URL.
    pub url: String,
    /// The certificate authority to trust, PEM.
    pub ca_pem: Option<String>,
    /// Credentials, when the host asks for a bearer token.
    pub token: Option<Arc<dyn TokenSource>>,
}

impl Endpoint {
    /// What a host says of itself by its outputs [`ENDPOINT`] and [`CA`], called with tokens from `token`.
    pub fn of(host: &Outputs, token: Arc<dyn TokenSource>) -> Result<Self> {
        let text = |name: &str| host.get(name).and_then(|value| value.as_str()).map(str::to_owned);
        let Some(url) = text(ENDPOINT) else {
            let error = Error::new(Sort::Unavailable, "find the endpoint of", "the host");
            return Err(error.because(format!("it has no output `{ENDPOINT}` yet")));
        };
        Ok(Self { url, ca_pem: text(CA), token: Some(token) })
    }
}
