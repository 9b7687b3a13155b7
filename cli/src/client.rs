//! Talking to a running service as any of its users would: HTTPS, a key, JSON.

use std::time::Duration;

use anyhow::Context;
use camino::Utf8Path;
use futures::StreamExt;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use textnlp_orchestrator::load::system_authorities;
use textnlp_provider::{EnvironmentName, Secret};

use crate::again::Again;
use crate::args::SamplingArgs;
use crate::report::{Exit, Failure};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a whole answer may take: the server's own bound and a little.
const ANSWER: Duration = Duration::from_secs(310);

/// Where a service is and how to be let in.
#[derive(Debug, Clone)]
pub struct Target {
    /// The address without a trailing slash: `https://localhost:8443`.
    pub address: String,
    /// The API key, when there is one.
    pub key: Option<Secret>,
    /// The certificate authority to trust besides the system's, PEM.
    pub ca_pem: Option<Vec<u8>>,
    /// The environment that it is, where it is one of ours.
    pub environment: Option<EnvironmentName>,
    /// Commands to type next.
    pub again: Again,
}

impl Target {
    fn next(&self, verb: &str) -> String {
        match &self.environment {
            Some(name) => self.again.command(verb, name),
            None => self.again.bare(verb),
        }
    }
}

/// A connection to a service.
#[derive(Debug, Clone)]
pub struct Client {
    target: Target,
    http: reqwest::Client,
}

impl Client {
    /// Prepares a client; nothing is sent yet.
    pub fn new(target: Target) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls(target.ca_pem.as_deref())?)
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .no_proxy()
            .user_agent(concat!("textnlp-deploy/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("prepare a client")?;
        Ok(Self { target, http })
    }

    /// A GET that answers with JSON.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.answer(self.http.get(self.url(path))).await
    }

    /// A POST of JSON that answers with JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.answer(self.http.post(self.url(path)).json(body)).await
    }

    /// A POST whose answer streams as server-sent events; `each` gets the JSON of every event until
    /// `[DONE]` (OpenAI's dialect) or the event `done` (ours).
    pub async fn stream(&self, path: &str, body: &Value, mut each: impl FnMut(Value)) -> Result<(), Failure> {
        let response = self.send(self.http.post(self.url(path)).json(body)).await?;
        let mut events = Events::default();
        let mut bytes = response.bytes_stream();
        while let Some(piece) = bytes.next().await {
            let piece = piece.map_err(|e| self.unreachable(e))?;
            for (name, data) in events.feed(&piece)? {
                if data == "[DONE]" || name == "done" {
                    return Ok(());
                }
                let event: Value = serde_json::from_str(&data).context("read an event of the stream")?;
                if event.get("error").is_some() {
                    return Err(refusal(200, &event));
                }
                each(event);
            }
        }
        Err(Failure::from(anyhow::anyhow!("the stream ended before the text did")).hint(self.target.next("logs")))
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.target.address)
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<Value, Failure> {
        let response = self.send(request).await?;
        Ok(response.json().await.context("read the answer")?)
    }

    async fn send(&self, mut request: reqwest::RequestBuilder) -> Result<reqwest::Response, Failure> {
        if let Some(key) = self.target.key.as_ref().and_then(Secret::expose_text) {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.map_err(|e| self.unreachable(e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.json().await.unwrap_or(Value::Null);
        Err(refusal(status.as_u16(), &body))
    }

    fn unreachable(&self, error: reqwest::Error) -> Failure {
        let hint = if error.is_connect() {
            format!("is it running? {}", self.target.next("status"))
        } else {
            self.target.next("logs")
        };
        Failure::new(
            Exit::Failed,
            "unreachable",
            anyhow::Error::new(error).context(format!("ask {}", self.target.address)),
        )
        .hint(hint)
    }
}

/// The members of a request that [`SamplingArgs`] set; what is not set is left to the server.
pub fn sampling(args: &SamplingArgs) -> Value {
    let mut body = json!({ "max_tokens": args.max_tokens, "temperature": args.temperature });
    if let Some(model) = &args.model {
        body["model"] = json!(model);
    }
    if let Some(top_p) = args.top_p {
        body["top_p"] = json!(top_p);
    }
    if let Some(seed) = args.seed {
        body["seed"] = json!(seed);
    }
    if !args.stop.is_empty() {
        body["stop"] = json!(args.stop);
    }
    body
}

/// Reads a certificate authority's file.
pub fn read_ca(path: &Utf8Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read certificate authority {path}"))
}

/// Trust: the given authority alone when there is one, else the roots that ship with the program and those of this machine.
pub fn tls(ca_pem: Option<&[u8]>) -> anyhow::Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    match ca_pem {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                roots.add(certificate.context("read certificate authority")?).context("trust certificate authority")?;
            }
            anyhow::ensure!(!roots.is_empty(), "the certificate authority's file holds no certificate");
        }
        None => {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            roots.add_parsable_certificates(system_authorities());
        }
    }
    Ok(rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

/// What the server refused, in its own words.
fn refusal(status: u16, body: &Value) -> Failure {
    let error = &body["error"];
    let message = error["message"].as_str().unwrap_or("the server gave no reason");
    let mut failure = Failure::new(Exit::Failed, "refused_by_server", anyhow::anyhow!("{message} (status {status})"));
    failure.hint = error["hint"].as_str().map(str::to_owned);
    failure
}

/// Splits a byte stream into the data of server-sent events.
#[derive(Default)]
struct Events {
    buffer: Vec<u8>,
}

impl Events {
    /// No single event of ours comes near this.
    const LONGEST: usize = 1 << 20;

    /// The name and the data of every event that is whole now.
    fn feed(&mut self, piece: &[u8]) -> Result<Vec<(String, String)>, Failure> {
        self.buffer.extend_from_slice(piece);
        let mut found = Vec::new();
        while let Some(end) = self.buffer.windows(2).position(|w| w == b"\n\n") {
            let event: Vec<u8> = self.buffer.drain(..end + 2).collect();
            let text = String::from_utf8_lossy(&event);
            let name =
                text.lines().find_map(|l| l.strip_prefix("event:")).map_or(String::new(), |n| n.trim().to_owned());
            let data: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("data:")).map(str::trim_start).collect();
            if !data.is_empty() {
                found.push((name, data.join("\n")));
            }
        }
        if self.buffer.len() > Self::LONGEST {
            return Err(Failure::from(anyhow::anyhow!("the server sent an event without an end")));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_any_split() {
        let stream = b"data: {\"a\":1}\n\n: comment\n\nevent: done\ndata: {}\n\n";
        for split in 0..stream.len() {
            let mut events = Events::default();
            let mut found = events.feed(&stream[..split]).unwrap();
            found.extend(events.feed(&stream[split..]).unwrap());
            let expected = [("", "{\"a\":1}"), ("done", "{}")].map(|(name, data)| (name.to_owned(), data.to_owned()));
            assert_eq!(found, expected, "split at {split}");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        assert!(Events::default().feed(&vec![b'x'; Events::LONGEST + 1]).is_err());
    }
}
