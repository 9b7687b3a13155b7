//! HTTPS client of a running service: API key and JSON, as for any other client.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use serde_json::Value;
use textnlp_net::client::{ClientOptions, build, is_untrusted, same_host};
use textnlp_net::trust::TrustRoots;
use textnlp_orchestrator::environment::Environment;
use textnlp_provider::operations::{Caller, EndpointAccess, Invocations};
use textnlp_provider::{EnvironmentName, Secret};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use crate::{Exit, Failure, RerunFlags, Scope, quoted, running};

/// Timeout of connecting.
const CONNECT: Duration = Duration::from_secs(5);
/// The requests that an inference endpoint answers.
const INVOCABLE: [&str; 2] = ["/v1/completions", "/v1/chat/completions"];
/// The status of a server, whose errors Azure Machine Learning answers with 424
/// (<https://learn.microsoft.com/azure/machine-learning/how-to-troubleshoot-online-endpoints#http-status-codes>).
const STATUS_OF_SERVER: &str = "ms-azureml-model-error-statuscode";
/// Timeout of a whole response: slightly above the server's own.
const ANSWER: Duration = Duration::from_secs(310);
/// Timeout of a whole upload or download of a file, which has at most 1 GiB.
const TRANSFER: Duration = Duration::from_secs(3600);

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
    /// Signs its requests, if it is an inference endpoint that answers invocations.
    pub invocations: Option<Arc<dyn Invocations>>,
    /// Authorizes its requests, if the cloud knows its callers by their identities.
    pub caller: Option<Arc<dyn Caller>>,
}

impl Target {
    /// Those of the running service.
    pub async fn of(scope: &Scope, environment: Option<&Environment>) -> Result<Self, Failure> {
        let running = running::running(scope).await?;
        let key = match &running.key {
            Some(secret) => {
                Some(scope.platform.secrets(&scope.folder).get(secret).await.context("read the first API key")?)
            }
            None => None,
        };
        let trust = scope.platform.trust(running.ca_file.as_deref(), environment)?;
        let platform = scope.platform;
        let (invocations, caller) = match (environment, running.access) {
            (Some(environment), EndpointAccess::Invocations) => {
                (platform.find(&scope.folder, environment, None, |site| site.invocations())?, None)
            }
            (Some(environment), EndpointAccess::Identities) => {
                (None, platform.find(&scope.folder, environment, None, |site| site.caller())?)
            }
            (None, _) | (_, EndpointAccess::Keys) => (None, None),
        };
        Ok(Self {
            address: running.address,
            key,
            trust,
            environment: Some(scope.name.clone()),
            again: scope.again.clone(),
            invocations,
            caller,
        })
    }

    fn next(&self, verb: &str) -> String {
        match &self.environment {
            Some(name) => self.again.command(verb, name),
            None => self.again.bare(verb),
        }
    }

    fn same(&self, verb: &str) -> String {
        match &self.environment {
            Some(_) => self.next(verb),
            None => self.again.bare(&format!("{verb} --address {}", quoted(&self.address))),
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

    /// A command about the same service.
    pub fn same(&self, verb: &str) -> String {
        self.target.same(verb)
    }

    /// Whether the service is an inference endpoint that only completes texts and chats, each answer as a whole.
    pub fn is_invoked(&self) -> bool {
        self.target.invocations.is_some()
    }

    /// Sends a GET and reads the JSON response.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        if self.is_invoked() {
            return Err(self.not_invocable(path));
        }
        self.answer(self.http.get(self.url(path))).await
    }

    /// Sends a POST with a JSON body and reads the JSON response.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        if let Some(invocations) = &self.target.invocations {
            return self.invoke(&**invocations, path, body).await;
        }
        self.answer(self.http.post(self.url(path)).json(body)).await
    }

    /// Sends a DELETE and reads the JSON response. `None`: what it names does not exist.
    pub async fn delete(&self, path: &str) -> Result<Option<Value>, Failure> {
        if self.is_invoked() {
            return Err(self.not_invocable(path));
        }
        let response = self.exchange(self.http.delete(self.url(path))).await?;
        if response.status().as_u16() == 404 {
            return Ok(None);
        }
        Ok(Some(accepted(response).await?.json().await.context("read the answer")?))
    }

    /// Sends a file as the part `file` of a form with `purpose=batch`, and reads the JSON response. The file is read while it is
    /// sent, from its beginning to its length at this time.
    pub async fn upload(&self, path: &str, name: &str, file: std::fs::File) -> Result<Value, Failure> {
        if self.is_invoked() {
            return Err(self.not_invocable(path));
        }
        let length = file.metadata().with_context(|| format!("read {name}"))?.len();
        let mut file = tokio::fs::File::from_std(file);
        file.rewind().await.with_context(|| format!("read {name}"))?;
        // No line of the file is the boundary, because it is random.
        let boundary = format!("textnlp-{}", uuid::Uuid::new_v4().simple());
        let before = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--{boundary}\r\n\
             Content-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
             Content-Type: application/jsonl\r\n\r\n"
        );
        let after = format!("\r\n--{boundary}--\r\n");
        let bytes = before.len() as u64 + length + after.len() as u64;
        let body = std::io::Cursor::new(before).chain(file.take(length)).chain(std::io::Cursor::new(after));
        let request = self
            .http
            .post(self.url(path))
            .timeout(TRANSFER)
            .header(CONTENT_LENGTH, bytes)
            .header(CONTENT_TYPE, format!("multipart/form-data; boundary={boundary}"))
            .body(reqwest::Body::wrap_stream(ReaderStream::with_capacity(body, UPLOAD_PART)));
        self.answer(request).await
    }

    /// Sends a GET, and gives the body to `each` in parts as it arrives. An error of `each` ends the download.
    pub async fn download(
        &self,
        path: &str,
        mut each: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if self.is_invoked() {
            return Err(self.not_invocable(path));
        }
        let response = self.send(self.http.get(self.url(path)).timeout(TRANSFER)).await?;
        let mut bytes = response.bytes_stream();
        while let Some(piece) = bytes.next().await {
            each(&piece.map_err(|e| self.unreachable(e))?)?;
        }
        Ok(())
    }

    /// Sends a POST and reads the response as server-sent events. `each` gets the JSON of every event until `[DONE]`
    /// (OpenAI's API) or the event `done` (the native API).
    pub async fn stream(&self, path: &str, body: &Value, mut each: impl FnMut(Value)) -> Result<(), Failure> {
        if self.is_invoked() {
            return Err(self.not_invocable(path));
        }
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

    async fn invoke(&self, invocations: &dyn Invocations, path: &str, body: &Value) -> Result<Value, Failure> {
        if !INVOCABLE.contains(&path) {
            return Err(self.not_invocable(path));
        }
        let body = serde_json::to_vec(body).context("write the request")?;
        let signed = invocations.sign(&body).await?;
        let mut request = self.http.post(&signed.url).body(body);
        for (name, value) in &signed.headers {
            request = request.header(name, value.expose());
        }
        let response = request.send().await.map_err(|e| self.unreachable(e))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.json().await.context("read the answer")?);
        }
        let own = response.headers().get(STATUS_OF_SERVER).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = response.json().await.unwrap_or(Value::Null);
        Err(not_invoked(own.unwrap_or(status.as_u16()), &body))
    }

    fn not_invocable(&self, path: &str) -> Failure {
        let error =
            anyhow::anyhow!("the service is an inference endpoint: it completes texts and chats, and has no `{path}`");
        Failure::usage("inference_endpoint", error).hint(self.target.next("generate \"…\""))
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.target.address)
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<Value, Failure> {
        let response = self.send(request).await?;
        Ok(response.json().await.context("read the answer")?)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, Failure> {
        accepted(self.exchange(request).await?).await
    }

    /// The response, whatever its status is.
    async fn exchange(&self, mut request: reqwest::RequestBuilder) -> Result<reqwest::Response, Failure> {
        if let Some(key) = self.target.key.as_ref().and_then(Secret::expose_text) {
            request = request.bearer_auth(key);
        }
        if let Some(caller) = &self.target.caller {
            for (name, value) in caller.headers(&self.target.address).await? {
                request = request.header(name, value.expose());
            }
        }
        request.send().await.map_err(|e| self.unreachable(e))
    }

    fn unreachable(&self, error: reqwest::Error) -> Failure {
        let hint = if is_untrusted(&error) && self.target.environment.is_none() {
            "check that it is the right server, and give its certificate authority: --ca-file FILE".to_owned()
        } else if is_local(&self.target.address) && is_network_down(&error) {
            "bring the loopback interface of this machine up: ip link set lo up".to_owned()
        } else if error.is_connect() {
            format!("check that the service runs: {}", self.target.next("status"))
        } else {
            self.target.next("logs")
        };
        let error = anyhow::Error::new(error).context(format!("send the request to {}", self.target.address));
        Failure::new(Exit::Failed, "unreachable", error).hint(hint)
    }
}

/// Whether a service is on this machine, by its address.
fn is_local(address: &str) -> bool {
    ["://localhost", "://127.", "://[::1]"].iter().any(|host| address.contains(host))
}

/// Whether no interface has a route to the address.
fn is_network_down(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::NetworkUnreachable)
}

/// A server's refusal of a request.
#[derive(Debug)]
pub struct Refusal {
    status: u16,
    message: String,
    /// Whether the body is that of a server: a proxy without one answers something else.
    is_of_server: bool,
    /// The server's code of the refusal.
    code: String,
}

impl Refusal {
    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The reason.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether the same request is refused later too: the server runs and is not overloaded.
    pub fn is_final(&self) -> bool {
        self.is_of_server && (400..500).contains(&self.status) && !matches!(self.status, 408 | 425 | 429)
    }

    /// Whether a limit of the key is used up, or too small for the request: the server runs and accepts the key.
    pub fn is_limit(&self) -> bool {
        ["rate_limit_exceeded", "token_rate_exceeded"].contains(&self.code.as_str())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (status {})", self.message, self.status)
    }
}

impl std::error::Error for Refusal {}

/// The response to a request that succeeded.
async fn accepted(response: reqwest::Response) -> Result<reqwest::Response, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = response.json().await.unwrap_or(Value::Null);
    Err(refusal(status.as_u16(), &body))
}

/// The server's own error message.
pub(crate) fn refusal(status: u16, body: &Value) -> Failure {
    let error = &body["error"];
    let own = error["message"].as_str();
    let message = own.unwrap_or("the server gave no reason").to_owned();
    let code = error["code"].as_str().unwrap_or_default().to_owned();
    let error_of_server = Refusal { status, message, is_of_server: own.is_some(), code };
    Failure::new(Exit::Failed, "refused_by_server", error_of_server).hinted(error["hint"].as_str().map(str::to_owned))
}

/// The error of a cloud that did not pass a request on, or that of the server behind it: as it is, or as the text of the cloud's own
/// error (<https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html>,
/// <https://cloud.google.com/apis/design/errors#http_mapping>).
fn not_invoked(status: u16, body: &Value) -> Failure {
    // Google's front end answers errors in a list.
    let body = body.get(0).unwrap_or(body);
    // Only errors of Google have numbers as codes.
    let of_google = &body["error"]["message"];
    if of_google.is_string() && !body["error"]["code"].is_number() {
        return refusal(status, body);
    }
    let quoted = [&body["OriginalMessage"], of_google].into_iter().find_map(Value::as_str);
    let own = quoted.and_then(|text| serde_json::from_str::<Value>(text).ok());
    if let Some(own) = own {
        let original = body["OriginalStatusCode"].as_u64().and_then(|status| u16::try_from(status).ok());
        return refusal(original.unwrap_or(status), &own);
    }
    let message = ["message", "Message"].into_iter().find_map(|name| body[name].as_str()).or(of_google.as_str());
    let message = message.unwrap_or("the cloud gave no reason");
    Failure::new(Exit::Failed, "refused_by_server", anyhow::anyhow!("{message} (status {status})"))
}

/// Bytes of a file that an upload reads at once.
const UPLOAD_PART: usize = 64 << 10;

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

/// The answer of an inference endpoint to the body of a completion, with its text as the member `text`.
pub async fn completed(client: &Client, body: &Value) -> Result<Value, Failure> {
    let mut answer = client.post("/v1/completions", body).await?;
    let text = answer["choices"][0]["text"].clone();
    if let Value::Object(members) = &mut answer {
        members.insert("text".to_owned(), text);
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn loopback_interface_that_is_down_is_recognised_in_the_causes_of_an_error() {
        let is_down = |kind: std::io::ErrorKind| {
            let error = anyhow::Error::new(std::io::Error::from(kind)).context("send the request");
            let error: &(dyn std::error::Error + 'static) = error.as_ref();
            is_network_down(error)
        };
        assert!(is_down(std::io::ErrorKind::NetworkUnreachable));
        assert!(!is_down(std::io::ErrorKind::ConnectionRefused));
        for address in ["https://localhost:8443", "http://127.0.0.2:80", "https://[::1]:8443"] {
            assert!(is_local(address), "{address}");
        }
        assert!(!is_local("https://api.example:8443"));
    }

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
    fn errors_of_a_server_behind_an_inference_endpoint_are_its_own() {
        let own = json!({ "error": { "message": "`prompt` is missing", "hint": "add it" } }).to_string();
        let failure = not_invoked(424, &json!({ "OriginalStatusCode": 400, "OriginalMessage": own }));
        assert_eq!(failure.error.to_string(), "`prompt` is missing (status 400)");
        assert_eq!(failure.hint.as_deref(), Some("add it"));
        let of_google =
            |message: &str| json!({ "error": { "code": 400, "message": message, "status": "INVALID_ARGUMENT" } });
        let passed_on = json!({ "error": { "message": "`prompt` is missing", "hint": "add it" } });
        for body in [passed_on.clone(), of_google(&passed_on.to_string())] {
            let failure = not_invoked(400, &body);
            assert_eq!(failure.error.to_string(), "`prompt` is missing (status 400)");
            assert_eq!(failure.hint.as_deref(), Some("add it"));
        }
        for body in [
            json!({ "message": "denied" }),
            json!({ "Message": "denied", "OriginalMessage": "no JSON" }),
            of_google("denied"),
            json!([of_google("denied")]),
        ] {
            assert_eq!(not_invoked(403, &body).error.to_string(), "denied (status 403)");
        }
    }

    #[test]
    fn refusal_is_final_unless_the_server_is_down_or_overloaded() {
        let of = |status, body: &Value| refusal(status, body).error.downcast_ref::<Refusal>().unwrap().is_final();
        let is_final = |status| of(status, &json!({ "error": { "message": "no" } }));
        assert!(!of(404, &Value::Null), "a proxy without a server");
        for (status, wanted) in
            [(400, true), (401, true), (404, true), (410, true), (408, false), (429, false), (502, false), (200, false)]
        {
            assert_eq!(is_final(status), wanted, "{status}");
        }
        let is_limit = |body| refusal(429, &body).error.downcast_ref::<Refusal>().unwrap().is_limit();
        assert!(is_limit(json!({ "error": { "message": "used up", "code": "rate_limit_exceeded" } })));
        assert!(!is_limit(json!({ "error": { "message": "a wrong key", "code": "authentication_limited" } })));
    }

    #[test]
    fn oversized_event_is_refused() {
        assert!(Events::default().feed(&vec![b'x'; Events::LONGEST + 1]).is_err());
    }
}
