//! The transport of external measurements: one request, one whole response.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use textnlp_net::client::{BodyError, ClientError, ClientOptions, build, read_body, tls_error};
use textnlp_net::trust::TrustRoots;
use textnlp_provider::Secret;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A credential and its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The header, such as `X-API-Key`.
    pub header: String,
    /// The key.
    pub value: Secret,
}

/// One request.
#[derive(Debug, Clone)]
pub struct LoadRequest {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// The path, with its leading slash.
    pub path: String,
    /// The API key.
    pub key: Option<Key>,
    /// The JSON body.
    pub body: Option<Value>,
    /// The timeout until the whole response is read.
    pub timeout: Duration,
    /// The id of this request in the service's usage records.
    pub request_id: Option<String>,
    /// The tenant that it names.
    pub tenant: Option<String>,
}

impl LoadRequest {
    /// A `GET` request without a key.
    pub fn get(path: &str) -> Self {
        Self {
            method: "GET",
            path: path.to_owned(),
            key: None,
            body: None,
            timeout: Duration::from_secs(30),
            request_id: None,
            tenant: None,
        }
    }

    /// A `POST` request of JSON without a key.
    pub fn post(path: &str, body: Value) -> Self {
        Self { method: "POST", body: Some(body), ..Self::get(path) }
    }

    /// The headers besides the key. Servers compute the answers, and keep none: a cache would be measured instead of them.
    fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let headers = [
            ("cache-control", Some("no-store")),
            ("x-request-id", self.request_id.as_deref()),
            ("x-tenant-id", self.tenant.as_deref()),
        ];
        headers.into_iter().filter_map(|(name, value)| Some((name, value?)))
    }

    /// Adds a key.
    #[must_use]
    pub fn with(mut self, key: &Key) -> Self {
        self.key = Some(key.clone());
        self
    }
}

/// One whole response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadResponse {
    /// The HTTP status.
    pub status: u16,
    /// The body, at most 16 MiB.
    pub body: Vec<u8>,
}

impl LoadResponse {
    /// The body as JSON.
    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// Why there is no whole response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestFailure {
    /// The connection failed.
    Connect(String),
    /// The certificate is not trusted for this name.
    Tls(String),
    /// The request timed out.
    Timeout,
    /// The connection broke.
    Broken(String),
    /// The response exceeds the limit.
    TooLarge,
}

impl RequestFailure {
    /// A short name, for counts.
    pub fn kind(&self) -> &'static str {
        match self {
            RequestFailure::Connect(_) => "not reachable",
            RequestFailure::Tls(_) => "not trusted",
            RequestFailure::Timeout => "timeout",
            RequestFailure::Broken(_) => "broken off",
            RequestFailure::TooLarge => "too large",
        }
    }
}

impl fmt::Display for RequestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestFailure::Connect(why) | RequestFailure::Tls(why) | RequestFailure::Broken(why) => {
                write!(f, "{}: {why}", self.kind())
            }
            RequestFailure::Timeout | RequestFailure::TooLarge => f.write_str(self.kind()),
        }
    }
}

/// A target of requests: a service over HTTP, or a simulated one in a test's virtual time.
#[async_trait]
pub trait Wire: Send + Sync {
    /// Sends one request and reads the whole response.
    async fn send(&self, load_request: LoadRequest) -> Result<LoadResponse, RequestFailure>;
    /// Whether responses arrive over verified TLS.
    fn verified(&self) -> bool;
}

/// Opens sessions, each with its own connection.
#[async_trait]
pub trait SessionOpener: Send + Sync {
    /// Opens a connection, with its handshake.
    async fn open(&self) -> Result<Box<dyn Session>, RequestFailure>;
}

/// The connection of one session.
#[async_trait]
pub trait Session: Send {
    /// Sends one request and reads the whole response. After a failure, the connection cannot be used any more.
    async fn send(&mut self, load_request: LoadRequest) -> Result<LoadResponse, RequestFailure>;
    /// Whether the server closed it.
    fn is_closed(&self) -> bool;
}

/// The timeout of a connection with its handshake.
const CONNECT: Duration = Duration::from_secs(10);
/// The largest response in bytes.
const MOST_BYTES: usize = 16 << 20;

/// HTTP to one URL.
#[derive(Debug, Clone)]
pub struct HttpWire {
    base: String,
    client: reqwest::Client,
    tls: Arc<rustls::ClientConfig>,
    /// Headers of each request.
    headers: Vec<(String, Secret)>,
}

/// Why a wire could not be created.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The URL is invalid.
    #[error("`{0}` is not an address such as https://localhost:8443")]
    Address(String),
    /// The HTTP client could not be built.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// The address of a service without a slash at its end: `https://HOST:PORT` or `http://HOST:PORT`.
pub fn base_address(address: &str) -> Result<String, WireError> {
    let base = address.trim_end_matches('/').to_owned();
    let plain = reqwest::Url::parse(&base).ok().filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
    if plain.is_some() { Ok(base) } else { Err(WireError::Address(base)) }
}

impl HttpWire {
    /// A wire to `https://HOST:PORT` or `http://HOST:PORT` that trusts these certificate authorities.
    pub fn new(address: &str, trust: &TrustRoots) -> Result<Self, WireError> {
        let base = base_address(address)?;
        // No proxy: its latency would be measured instead of the service's.
        let options = ClientOptions { trust: trust.clone(), connect_timeout: CONNECT, ..ClientOptions::default() };
        let client = build(options.builder()?.pool_max_idle_per_host(usize::MAX))?;
        Ok(Self { base, client, tls: Arc::new(trust.client_config()), headers: Vec::new() })
    }

    /// The same wire with headers of each request, where a cloud authorizes them. Sessions do not send these.
    #[must_use]
    pub fn with_headers(self, headers: Vec<(String, Secret)>) -> Self {
        Self { headers, ..self }
    }
}

#[async_trait]
impl Wire for HttpWire {
    async fn send(&self, load_request: LoadRequest) -> Result<LoadResponse, RequestFailure> {
        let url = format!("{}{}", self.base, load_request.path);
        let mut request = if load_request.method == "POST" { self.client.post(url) } else { self.client.get(url) };
        request = request.timeout(load_request.timeout);
        if let Some(key) = &load_request.key {
            request = request.header(&key.header, key.value.expose());
        }
        for (name, value) in load_request.headers() {
            request = request.header(name, value);
        }
        for (name, value) in &self.headers {
            request = request.header(name, value.expose());
        }
        if let Some(body) = &load_request.body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|e| failure(&e))?;
        let status = response.status().as_u16();
        let body = read_body(response, MOST_BYTES).await.map_err(|error| match error {
            BodyError::TooLong(_) => RequestFailure::TooLarge,
            BodyError::Cut(error) => failure(&error),
        })?;
        Ok(LoadResponse { status, body })
    }

    fn verified(&self) -> bool {
        self.base.starts_with("https://")
    }
}

#[async_trait]
impl SessionOpener for HttpWire {
    async fn open(&self) -> Result<Box<dyn Session>, RequestFailure> {
        let base = reqwest::Url::parse(&self.base).map_err(|error| RequestFailure::Connect(error.to_string()))?;
        tokio::time::timeout(CONNECT, connected(&base, &self.tls)).await.unwrap_or(Err(RequestFailure::Timeout))
    }
}

/// An HTTP/1.1 connection, as most clients of such services use.
struct HttpConnection {
    sender: http1::SendRequest<Full<Bytes>>,
    host: String,
}

async fn connected(base: &reqwest::Url, tls: &Arc<rustls::ClientConfig>) -> Result<Box<dyn Session>, RequestFailure> {
    let connect = |error: std::io::Error| RequestFailure::Connect(error.to_string());
    let (host, port) = (base.host_str().unwrap_or_default(), base.port_or_known_default().unwrap_or(443));
    // IPv6 addresses have brackets only in URLs.
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((name, port)).await.map_err(connect)?;
    stream.set_nodelay(true).map_err(connect)?;
    let sender = if base.scheme() == "https" {
        let name = ServerName::try_from(name.to_owned()).map_err(|error| RequestFailure::Tls(error.to_string()))?;
        let stream = TlsConnector::from(tls.clone()).connect(name, stream).await;
        shaken(stream.map_err(|error| RequestFailure::Tls(error.to_string()))?).await?
    } else {
        shaken(stream).await?
    };
    let host = format!("{host}:{port}");
    Ok(Box::new(HttpConnection { sender, host }))
}

async fn shaken(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<http1::SendRequest<Full<Bytes>>, RequestFailure> {
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| RequestFailure::Connect(error.to_string()))?;
    // The task ends with the connection or with its sender.
    tokio::spawn(connection);
    Ok(sender)
}

#[async_trait]
impl Session for HttpConnection {
    async fn send(&mut self, load_request: LoadRequest) -> Result<LoadResponse, RequestFailure> {
        let broken = |error: hyper::Error| RequestFailure::Broken(error.to_string());
        let mut request =
            hyper::Request::builder().method(load_request.method).uri(&load_request.path).header("host", &self.host);
        if let Some(key) = &load_request.key {
            request = request.header(&key.header, key.value.expose());
        }
        for (name, value) in load_request.headers() {
            request = request.header(name, value);
        }
        let body = load_request.body.map(|body| body.to_string()).unwrap_or_default();
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let request =
            request.body(Full::new(Bytes::from(body))).map_err(|error| RequestFailure::Broken(error.to_string()))?;
        let answered = async {
            let answer = self.sender.send_request(request).await.map_err(broken)?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await.map_err(|error| {
                match error.is::<http_body_util::LengthLimitError>() {
                    true => RequestFailure::TooLarge,
                    false => RequestFailure::Broken(error.to_string()),
                }
            })?;
            Ok(LoadResponse { status, body: body.to_bytes().into() })
        };
        tokio::time::timeout(load_request.timeout, answered).await.unwrap_or(Err(RequestFailure::Timeout))
    }

    fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

fn failure(error: &reqwest::Error) -> RequestFailure {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    let why = deepest.to_string();
    if error.is_timeout() {
        RequestFailure::Timeout
    } else if tls_error(error).is_some() {
        RequestFailure::Tls(why)
    } else if error.is_connect() {
        RequestFailure::Connect(why)
    } else {
        RequestFailure::Broken(why)
    }
}
