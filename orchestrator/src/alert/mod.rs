//! Messages to people: to a webhook, or by mail. One attempt each, with a bound on everything; whoever calls repeats.
//!
//! A destination is an address: `https://…` for a webhook, `smtps://USER:PASSWORD@HOST[:465]?from=…&to=…,…` or `smtp://…[:587]` with
//! STARTTLS for mail. Without TLS only this machine itself is talked to.

mod destination;
mod mail;

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use textnlp_provider::alert::Alert;

pub use destination::{Destination, Unusable};

/// How long one attempt may take.
pub const WITHIN: Duration = Duration::from_secs(20);

/// The longest part of an answer that is told to people, in characters.
const TOLD: usize = 200;

/// Why a message did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum Unsent {
    /// The webhook was not reached.
    #[error("ask {to}")]
    Webhook {
        /// Its host.
        to: String,
        /// Why; it names no address, which may hold a secret.
        #[source]
        because: reqwest::Error,
    },
    /// The webhook refused it.
    #[error("{to} answers {status}")]
    Refused {
        /// Its host.
        to: String,
        /// Its status.
        status: u16,
    },
    /// The mail server was not reached, or spoke out of turn.
    #[error("talk to {to}: {because}")]
    Mail {
        /// Its host and port.
        to: String,
        /// Why.
        because: String,
    },
    /// It took too long.
    #[error("no answer within {} s", WITHIN.as_secs())]
    Slow,
}

/// A message that arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Recipients of a mail whom the server refused, each with its answer. The others have it, so it is not sent again.
    pub refused: Vec<String>,
}

/// Sends messages; holds what is trusted.
#[derive(Debug, Clone)]
pub struct Sender {
    http: reqwest::Client,
    tls: Arc<rustls::ClientConfig>,
}

impl Sender {
    /// With the authorities that `tls` trusts. A redirect is not followed: it would lead a secret elsewhere.
    pub fn new(tls: rustls::ClientConfig) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("textnlp-deploy/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { http, tls: Arc::new(tls) })
    }

    /// One attempt. When it fails the message may have arrived all the same: its id tells.
    pub async fn send(&self, to: &Destination, alert: &Alert) -> Result<Arrived, Unsent> {
        let attempt = async {
            match to {
                Destination::Webhook(url) => self.post(url, alert).await.map(|()| Arrived::default()),
                Destination::Mail(mail) => mail::send(mail, alert, &self.tls).await,
            }
        };
        tokio::time::timeout(WITHIN, attempt).await.unwrap_or(Err(Unsent::Slow))
    }

    async fn post(&self, url: &reqwest::Url, alert: &Alert) -> Result<(), Unsent> {
        let to = destination::authority(url);
        // `text` is what chat programs show.
        let mut body = json!(alert);
        body["format"] = json!(1);
        body["text"] = json!(format!("{alert}\n{}", alert.says));
        let request = self.http.post(url.clone()).header("Idempotency-Key", &alert.id).json(&body);
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(because) => return Err(Unsent::Webhook { to, because: because.without_url() }),
        };
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(Unsent::Refused { to, status: status.as_u16() }),
        }
    }
}
