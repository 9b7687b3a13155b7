//! Notifies the operator's webhooks of batches that have ended, with signatures of Standard Webhooks
//! (<https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>), which OpenAI's SDKs verify.
//!
//! The events are rows of the database, which every server sends: see [`deliveries`]. Only the configuration has addresses,
//! so no client makes a server connect anywhere.

pub(crate) mod deliveries;

use std::io::Read as _;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use textnlp_net::client::{Client, ClientOptions, ProxySettings, Url};
use textnlp_net::error_chain;
use textnlp_store::now_ms;
use textnlp_store::webhooks::Delivery;

use crate::config::Webhook;

/// For one attempt, with its connection.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The start of a secret of Standard Webhooks; the rest is base64.
const PREFIX: &str = "whsec_";

/// The lengths of secrets, in bytes.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// The longest file of a secret, in bytes.
const MAX_FILE: u64 = 4096;

/// The status by which a receiver says that it is gone for good.
const GONE: u16 = 410;

/// Why a webhook cannot be used. No text quotes the secret.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The address of a proxy.
    #[error("set up the connections to webhooks: {0}")]
    Setup(String),
    /// The file of its secret.
    #[error("read the secret of a webhook, {path}")]
    Read {
        /// Which file.
        path: Utf8PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no such secret.
    #[error("{path} is not the secret of a webhook: `whsec_` and 24 to 64 random bytes in base64")]
    Unusable {
        /// Which file.
        path: Utf8PathBuf,
    },
}

/// The webhooks of the configuration.
pub(crate) struct Webhooks {
    client: Client,
    receivers: Vec<Receiver>,
}

struct Receiver {
    id: String,
    tenant: Option<String>,
    url: Url,
    key: hmac::Key,
}

/// What became of an attempt.
enum Attempt {
    Delivered,
    Gone,
    Failed(String),
}

impl Webhooks {
    /// Reads the secrets. Uses the proxies of this process.
    pub(crate) fn new(webhooks: &[Webhook]) -> Result<Self, WebhookError> {
        // A proxy that cannot be used does not stop a server without webhooks.
        let proxy = if webhooks.is_empty() { ProxySettings::default() } else { ProxySettings::from_env() };
        let options =
            ClientOptions { proxy, timeout: Some(TIMEOUT), connect_timeout: TIMEOUT, ..ClientOptions::default() };
        let client = options.client().map_err(|error| WebhookError::Setup(error.to_string()))?;
        let receivers = webhooks.iter().map(Receiver::new).collect::<Result<_, _>>()?;
        Ok(Self { client, receivers })
    }

    /// The ids of the webhooks that are notified of batches of a tenant.
    pub(crate) fn of_tenant(&self, tenant: &str) -> Vec<String> {
        let receivers = self.receivers.iter();
        let theirs = receivers.filter(|receiver| receiver.tenant.as_deref().is_none_or(|only| only == tenant));
        theirs.map(|receiver| receiver.id.clone()).collect()
    }

    /// Sends an event. The answer's body is not read.
    async fn send(&self, receiver: &Receiver, delivery: &Delivery) -> Attempt {
        let body = json!({
            "id": delivery.id,
            "object": "event",
            "created_at": delivery.created_at_ms / 1000,
            "type": delivery.event,
            "data": { "id": delivery.object },
        });
        let (body, timestamp) = (body.to_string(), now_ms() / 1000);
        let request = self
            .client
            .post(receiver.url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", &delivery.id)
            .header("webhook-timestamp", timestamp.to_string())
            .header("webhook-signature", receiver.signature(&delivery.id, timestamp, &body))
            .body(body);
        match request.send().await {
            Ok(answer) if answer.status().is_success() => Attempt::Delivered,
            Ok(answer) if answer.status().as_u16() == GONE => Attempt::Gone,
            // Redirects are not followed.
            Ok(answer) => Attempt::Failed(format!("it answered with status {}", answer.status().as_u16())),
            Err(error) => Attempt::Failed(error_chain(&error.without_url())),
        }
    }
}

impl Receiver {
    fn new(webhook: &Webhook) -> Result<Self, WebhookError> {
        let Webhook { tenant, url, secret_file } = webhook;
        // The id outlives restarts and changes of the secret.
        let named = format!("{}\n{url}", tenant.as_deref().unwrap_or_default());
        let id = hex::encode(&Sha256::digest(named)[..16]);
        Ok(Self { id, tenant: tenant.clone(), url: url.clone(), key: read_key(secret_file)? })
    }

    fn signature(&self, id: &str, timestamp: i64, body: &str) -> String {
        let tag = hmac::sign(&self.key, format!("{id}.{timestamp}.{body}").as_bytes());
        format!("v1,{}", STANDARD.encode(tag.as_ref()))
    }

    /// Its name in logs: the path may have a token.
    fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }
}

fn read_key(path: &Utf8Path) -> Result<hmac::Key, WebhookError> {
    let failed = |source| WebhookError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    std::fs::File::open(path).map_err(failed)?.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
    let bytes = text.trim().strip_prefix(PREFIX).and_then(|rest| STANDARD.decode(rest).ok());
    let bytes = bytes.filter(|bytes| SECRET_BYTES.contains(&bytes.len()));
    let bytes = bytes.ok_or_else(|| WebhookError::Unusable { path: path.to_owned() })?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of Standard Webhooks' own libraries.
    #[test]
    fn signature_is_that_of_standard_webhooks() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::from_path_buf(folder.path().join("secret")).unwrap();
        std::fs::write(&path, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let url = Url::parse("https://hooks.example.com/").unwrap();
        let receiver = Receiver::new(&Webhook { tenant: None, url, secret_file: path.clone() }).unwrap();
        let signature = receiver.signature("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, "{\"test\": 2432232314}");
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        for wrong in ["", "whsec_", "whsec_AAAA", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_!"] {
            std::fs::write(&path, wrong).unwrap();
            let error = read_key(&path).unwrap_err().to_string();
            assert!(error.contains("is not the secret of a webhook") && !error.contains("AAAA"), "{error}");
        }
        assert!(read_key(&path.with_extension("missing")).is_err());
    }
}
