//! HTTPS client of a running service: API key and JSON, as for any other client.

use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use serde_json::{Value, json};
use textnlp_net::client::{ClientOptions, build, same_host};
use textnlp_net::trust::TrustRoots;
use textnlp_provider::{EnvironmentName, Secret};

use crate::args::SamplingArgs;
use crate::report::{Exit, Failure};
use crate::rerun_flags::RerunFlags;

/// Timeout of connecting.
const CONNECT: Duration = Duration::from_secs(5);
/// Timeout of a whole response: slightly above the server's own.
const ANSWER: Duration = Duration::from_secs(310);

/// The address and credentials of a service.
#[derive(Debug, Clone)]
pub struct Target {
    /// The address without a trailing slash: `https://localhost:8443`.
    pub address: String,
    /// The API key, when there is one.
    pub key: Option<Secret>,
    /// The certificate authorities to trust.
    pub trust: TrustRoots,
    /// The environment, if the service belongs to one.
    pub environment: Option<EnvironmentName>,
    /// Builds the commands that hints suggest.
    pub again: RerunFlags,
}

impl Target {
    fn next(&self, verb: &str) -> String {
        match &self.environment {
            Some(name) => self.again.command(verb, name),
            None => self.again.bare(verb),
        }
    }
}

/// An HTTP client for one service.
#[derive(Debug, Clone)]
pub struct Client {
    target: Target,
    http: reqwest::Client,
}

impl Client {
    /// Creates a client. Sends nothing yet.
    pub fn new(target: Target) -> anyhow::Result<Self> {
        let trust = target.trust.clone();
        let options =
            ClientOptions { trust, connect_timeout: CONNECT, timeout: Some(ANSWER), ..ClientOptions::default() };
        let http = build(options.builder()?.redirect(same_host()))?;
        Ok(Self { target, http })
    }

    /// Sends a GET and reads the JSON response.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.answer(self.http.get(self.url(path))).await
    }

    /// Sends a POST with a JSON body and reads the JSON response.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.answer(self.http.post(self.url(path)).json(body)).await
    }

    /// Sends a POST and reads the response as server-sent events. `each` gets the JSON of every event until `[DONE]`
    /// (OpenAI's API) or the event `done` (the native API).
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
        Err(Failure::from(anyhow::anyhow!("the stream ended before the text was complete"))
            .hint(self.target.next("logs")))
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
            format!("check that the service runs: {}", self.target.next("status"))
        } else {
            self.target.next("logs")
        };
        Failure::new(
            Exit::Failed,
            "unreachable",
            anyhow::Error::new(error).context(format!("send the request to {}", self.target.address)),
        )
        .hint(hint)
    }
}

/// The members of a request that [`SamplingArgs`] sets. The server chooses the others.
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

/// The server's own error message.
fn refusal(status: u16, body: &Value) -> Failure {
    let error = &body["error"];
    let message = error["message"].as_str().unwrap_or("the server gave no reason");
    let mut failure = Failure::new(Exit::Failed, "refused_by_server", anyhow::anyhow!("{message} (status {status})"));
    failure.hint = error["hint"].as_str().map(str::to_owned);
    failure
}

/// Splits a byte stream into server-sent events.
#[derive(Default)]
struct Events {
    buffer: Vec<u8>,
}

impl Events {
    /// Limit of one event in bytes, far above any event that the server sends.
    const LONGEST: usize = 1 << 20;

    /// The name and the data of each complete event.
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
            return Err(Failure::from(anyhow::anyhow!("the server sent an event without an end marker")));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_stream_parser_handles_any_split() {
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
    fn oversized_event_is_refused() {
        assert!(Events::default().feed(&vec![b'x'; Events::LONGEST + 1]).is_err());
    }
}
