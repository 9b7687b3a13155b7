//! Alerts by webhook or mail. One attempt each, with a bound on time and size; the caller retries.
//!
//! A destination is a URL: `https://…` for a webhook, `smtps://USER:PASSWORD@HOST[:465]?from=…&to=…,…` or
//! `smtp://…[:587]` with STARTTLS for mail. `&auth=plain`, `login` or `xoauth2` selects the login mechanism of a mail
//! server; without it, the first that the server offers. Connections without TLS are allowed to this machine only.

mod destination;
mod mail;

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use textnlp_net::client::{ClientError, ClientOptions, ProxySettings};
use textnlp_net::trust::TrustRoots;
use textnlp_provider::alert::Alert;

pub use destination::{Destination, InvalidDestination};

/// The timeout of one attempt.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// The longest part of a reply that an error quotes, in characters.
const MAX_QUOTED_REPLY: usize = 200;

/// Why an alert was not delivered.
#[derive(Debug, thiserror::Error)]
pub enum AlertError {
    /// The webhook could not be reached.
    #[error("send to {to}")]
    Webhook {
        /// The host.
        to: String,
        /// The error, without the URL: that may hold a secret.
        #[source]
        because: reqwest::Error,
    },
    /// The webhook rejected the alert.
    #[error("{to} rejected the alert with HTTP status {status}")]
    Refused {
        /// The host.
        to: String,
        /// The HTTP status.
        status: u16,
    },
    /// The mail server could not be reached or violated the protocol.
    #[error("connect to {to}: {because}")]
    Mail {
        /// The host and port.
        to: String,
        /// The reason.
        because: String,
    },
    /// The attempt timed out.
    #[error("no answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Slow,
}

/// A delivered alert.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeliveredAlert {
    /// Recipients that the mail server rejected, each with its reply. The others have the mail, so it is not sent
    /// again.
    pub refused: Vec<String>,
}

/// Sends alerts; holds the trusted certificates.
#[derive(Debug, Clone)]
pub struct Sender {
    http: reqwest::Client,
    tls: Arc<rustls::ClientConfig>,
}

impl Sender {
    /// Trusts these certificate authorities. Webhooks use the proxy; mail servers are connected to directly. Redirects
    /// are not followed: they would send a secret to another address.
    pub fn new(trust: TrustRoots, proxy: ProxySettings) -> Result<Self, ClientError> {
        let tls = Arc::new(trust.client_config());
        let http = ClientOptions { trust, proxy, ..ClientOptions::default() }.client()?;
        Ok(Self { http, tls })
    }

    /// Makes one attempt. A failed attempt may have delivered the alert; receivers deduplicate by its id.
    pub async fn send(&self, to: &Destination, alert: &Alert) -> Result<DeliveredAlert, AlertError> {
        let attempt = async {
            match to {
                Destination::Webhook(url) => self.post(url, alert).await.map(|()| DeliveredAlert::default()),
                Destination::Mail(mail) => mail::send(mail, alert, &self.tls).await,
            }
        };
        tokio::time::timeout(REQUEST_TIMEOUT, attempt).await.unwrap_or(Err(AlertError::Slow))
    }

    async fn post(&self, url: &reqwest::Url, alert: &Alert) -> Result<(), AlertError> {
        let to = destination::authority(url);
        // Chat services display `text`.
        let mut body = json!(alert);
        body["format"] = json!(1);
        body["text"] = json!(format!("{alert}\n{}", alert.says));
        let request = self.http.post(url.clone()).header("Idempotency-Key", &alert.id).json(&body);
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(because) => return Err(AlertError::Webhook { to, because: because.without_url() }),
        };
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(AlertError::Refused { to, status: status.as_u16() }),
        }
    }
}
