//! How the outside reaches a service: one request, one whole answer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use textnlp_provider::Secret;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A credential and the header that it travels in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The header: `X-API-Key`.
    pub header: String,
    /// The key.
    pub value: Secret,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Ask {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// The path, with its slash.
    pub path: String,
    /// Who asks.
    pub key: Option<Key>,
    /// The JSON body.
    pub body: Option<Value>,
    /// The longest time until the whole answer is there.
    pub timeout: Duration,
    /// What this request is called in the service's own records.
    pub request_id: Option<String>,
}

impl Ask {
    /// A `GET` without a key.
    pub fn get(path: &str) -> Self {
        Self {
            method: "GET",
            path: path.to_owned(),
            key: None,
            body: None,
            timeout: Duration::from_secs(30),
            request_id: None,
        }
    }

    /// A `POST` of JSON without a key.
    pub fn post(path: &str, body: Value) -> Self {
        Self { method: "POST", body: Some(body), ..Self::get(path) }
    }

    /// The same with a key.
    #[must_use]
    pub fn with(mut self, key: &Key) -> Self {
        self.key = Some(key.clone());
        self
    }
}

/// One whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body, at most 16 MiB of it.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// Why there was no whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Nobody listens there.
    Connect(String),
    /// The certificate is not one that we trust for this name.
    Tls(String),
    /// It took too long.
    Timeout,
    /// The connection broke off.
    Broken(String),
    /// The answer is larger than any answer should be.
    TooLarge,
}

impl Failure {
    /// One word or two, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Failure::Connect(_) => "not reachable",
            Failure::Tls(_) => "not trusted",
            Failure::Timeout => "timeout",
            Failure::Broken(_) => "broken off",
            Failure::TooLarge => "too large",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Connect(why) | Failure::Tls(why) | Failure::Broken(why) => write!(f, "{}: {why}", self.kind()),
            Failure::Timeout | Failure::TooLarge => f.write_str(self.kind()),
        }
    }
}

/// Something that can be asked: a service over HTTP, or one that lives in a test's virtual time.
#[async_trait]
pub trait Wire: Send + Sync {
    /// Sends one request and reads the whole answer.
    async fn send(&self, ask: Ask) -> Result<Answer, Failure>;
    /// Whether answers come over TLS that was verified.
    fn verified(&self) -> bool;
}

/// Something that holds clients: each has a connection of its own there, as long as it wants.
#[async_trait]
pub trait Entrance: Send + Sync {
    /// Opens a connection, with its handshake.
    async fn open(&self) -> Result<Box<dyn Session>, Failure>;
}

/// The connection of one client.
#[async_trait]
pub trait Session: Send {
    /// Sends one request and reads the whole answer. After a failure the connection is of no more use.
    async fn send(&mut self, ask: Ask) -> Result<Answer, Failure>;
    /// Whether the other side has closed it.
    fn is_closed(&self) -> bool;
}

/// How long a connection may take to come about, with its handshake.
const CONNECT: Duration = Duration::from_secs(10);
/// The largest answer that is read.
const MOST_BYTES: usize = 16 << 20;

/// HTTP to one address.
#[derive(Debug, Clone)]
pub struct HttpWire {
    base: String,
    client: reqwest::Client,
    tls: Arc<rustls::ClientConfig>,
}

/// Why a wire could not be made.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// It is not an address.
    #[error("`{0}` is not an address such as https://localhost:8443")]
    Address(String),
    /// The CA file holds no certificate.
    #[error("read the certificate authority: {0}")]
    Authority(String),
    /// The HTTP client could not be made.
    #[error("make the HTTP client")]
    Client(#[source] reqwest::Error),
}

impl HttpWire {
    /// A wire to `https://HOST:PORT` or `http://HOST:PORT`. With `authority` (PEM) only that authority is trusted; without it,
    /// the public ones that this machine knows.
    pub fn new(address: &str, authority: Option<&[u8]>) -> Result<Self, WireError> {
        let base = address.trim_end_matches('/').to_owned();
        let plain = reqwest::Url::parse(&base).ok().filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
        if plain.is_none() {
            return Err(WireError::Address(base));
        }
        let mut roots = rustls::RootCertStore::empty();
        match authority {
            Some(pem) => {
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let certificate = certificate.map_err(|e| WireError::Authority(e.to_string()))?;
                    roots.add(certificate).map_err(|e| WireError::Authority(e.to_string()))?;
                }
                if roots.is_empty() {
                    return Err(WireError::Authority("there is no certificate in it".to_owned()));
                }
            }
            None => {
                // Single certificates of a machine's store may be unreadable; what is left is what it trusts.
                roots.add_parsable_certificates(system_authorities());
            }
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| WireError::Authority(e.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = reqwest::Client::builder()
            .use_preconfigured_tls(tls.clone())
            // A proxy or a redirect would be measured instead of the service.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .pool_max_idle_per_host(usize::MAX)
            .build()
            .map_err(WireError::Client)?;
        Ok(Self { base, client, tls: Arc::new(tls) })
    }
}

/// The certificates that this machine trusts: those of `SSL_CERT_FILE`, else from where distributions keep them.
pub fn system_authorities() -> Vec<CertificateDer<'static>> {
    const PLACES: [&str; 4] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    let named = std::env::var("SSL_CERT_FILE").ok();
    let pem = named.as_deref().into_iter().chain(PLACES).find_map(|path| std::fs::read(path).ok());
    pem.map(|pem| CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect()).unwrap_or_default()
}

#[async_trait]
impl Wire for HttpWire {
    async fn send(&self, ask: Ask) -> Result<Answer, Failure> {
        let url = format!("{}{}", self.base, ask.path);
        let mut request = if ask.method == "POST" { self.client.post(url) } else { self.client.get(url) };
        request = request.timeout(ask.timeout);
        if let Some(key) = &ask.key {
            request = request.header(&key.header, key.value.expose());
        }
        if let Some(id) = &ask.request_id {
            request = request.header("x-request-id", id);
        }
        if let Some(body) = &ask.body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|e| failure(&e))?;
        let status = response.status().as_u16();
        let mut body = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|e| failure(&e))?;
            if body.len() + chunk.len() > MOST_BYTES {
                return Err(Failure::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Answer { status, body })
    }

    fn verified(&self) -> bool {
        self.base.starts_with("https://")
    }
}

#[async_trait]
impl Entrance for HttpWire {
    async fn open(&self) -> Result<Box<dyn Session>, Failure> {
        let base = reqwest::Url::parse(&self.base).map_err(|error| Failure::Connect(error.to_string()))?;
        tokio::time::timeout(CONNECT, connected(&base, &self.tls)).await.unwrap_or(Err(Failure::Timeout))
    }
}

/// A connection of HTTP/1.1, as most clients of such services keep it.
struct Line {
    sender: http1::SendRequest<Full<Bytes>>,
    host: String,
}

async fn connected(base: &reqwest::Url, tls: &Arc<rustls::ClientConfig>) -> Result<Box<dyn Session>, Failure> {
    let connect = |error: std::io::Error| Failure::Connect(error.to_string());
    let (host, port) = (base.host_str().unwrap_or_default(), base.port_or_known_default().unwrap_or(443));
    // Addresses of version 6 have brackets in a URL, and nowhere else.
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((name, port)).await.map_err(connect)?;
    stream.set_nodelay(true).map_err(connect)?;
    let sender = if base.scheme() == "https" {
        let name = ServerName::try_from(name.to_owned()).map_err(|error| Failure::Tls(error.to_string()))?;
        let stream = TlsConnector::from(tls.clone()).connect(name, stream).await;
        shaken(stream.map_err(|error| Failure::Tls(error.to_string()))?).await?
    } else {
        shaken(stream).await?
    };
    let host = format!("{host}:{port}");
    Ok(Box::new(Line { sender, host }))
}

async fn shaken(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<http1::SendRequest<Full<Bytes>>, Failure> {
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| Failure::Connect(error.to_string()))?;
    // It ends with the connection, or with whoever may send on it.
    tokio::spawn(connection);
    Ok(sender)
}

#[async_trait]
impl Session for Line {
    async fn send(&mut self, ask: Ask) -> Result<Answer, Failure> {
        let broken = |error: hyper::Error| Failure::Broken(error.to_string());
        let mut request = hyper::Request::builder().method(ask.method).uri(&ask.path).header("host", &self.host);
        if let Some(key) = &ask.key {
            request = request.header(&key.header, key.value.expose());
        }
        if let Some(id) = &ask.request_id {
            request = request.header("x-request-id", id);
        }
        let body = ask.body.map(|body| body.to_string()).unwrap_or_default();
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| Failure::Broken(error.to_string()))?;
        let answered = async {
            let answer = self.sender.send_request(request).await.map_err(broken)?;
            let status = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await.map_err(|error| {
                match error.is::<http_body_util::LengthLimitError>() {
                    true => Failure::TooLarge,
                    false => Failure::Broken(error.to_string()),
                }
            })?;
            Ok(Answer { status, body: body.to_bytes().into() })
        };
        tokio::time::timeout(ask.timeout, answered).await.unwrap_or(Err(Failure::Timeout))
    }

    fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

fn failure(error: &reqwest::Error) -> Failure {
    let mut deepest: &dyn std::error::Error = error;
    let mut tls = false;
    while let Some(source) = deepest.source() {
        deepest = source;
        tls |= deepest.is::<rustls::Error>();
    }
    // rustls's error hides inside an I/O error's payload, which `source` passes over.
    let why = deepest.to_string();
    if error.is_timeout() {
        Failure::Timeout
    } else if tls || why.contains("certificate") {
        Failure::Tls(why)
    } else if error.is_connect() {
        Failure::Connect(why)
    } else {
        Failure::Broken(why)
    }
}
