//! `bundle serve`: serves a bundle to clients of registries and hubs. Images by the OCI distribution API, models by the
//! hub's; read-only, straight from the bundle file without unpacking.

mod file;
mod hub;
mod registry;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::Response;
use serde_json::{Value, json};
use textnlp_bundle::file_source::FileSource;
use textnlp_bundle::oci::catalogue::Catalogue;
use textnlp_process::{Listener, Serving};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Address;

/// How a mirror is served.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address; port 0 picks a free one.
    pub listen: Address,
    /// Connections at a time; more wait. Each holds at most one block of a file in memory.
    pub max_connections: usize,
    /// Timeout for a request's headers.
    pub header_timeout: Duration,
    /// Grace period for transfers after [`Mirror::stop`].
    pub grace: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listen: Address::Tcp("127.0.0.1:0".to_owned()),
            max_connections: 32,
            header_timeout: Duration::from_secs(10),
            grace: Duration::from_secs(10),
        }
    }
}

/// A mirror that serves until it is stopped.
#[derive(Debug)]
pub struct Mirror {
    address: Address,
    stop: CancellationToken,
    leave: CancellationToken,
    connections: TaskTracker,
    serving: JoinHandle<()>,
    grace: Duration,
}

/// Why a mirror does not start.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The images in it.
    #[error("read the bundle's images")]
    Images(#[from] textnlp_bundle::oci::Error),
    /// The address.
    #[error("listen on {address}")]
    Listen {
        /// As configured.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A thread that broke.
    #[error("read the bundle")]
    Broken(#[from] tokio::task::JoinError),
}

/// The served contents.
struct Desk {
    source: Arc<dyn FileSource>,
    images: registry::Images,
    models: hub::Models,
}

impl Mirror {
    /// Reads the lists of images and models, opens the listener, and serves from now on.
    pub async fn start(source: Arc<dyn FileSource>, options: Options) -> Result<Mirror, MirrorError> {
        let desk = tokio::task::spawn_blocking(move || {
            let images = registry::Images::of(&Catalogue::read(&*source)?);
            let models = hub::Models::of(&*source);
            Ok::<_, MirrorError>(Arc::new(Desk { source, images, models }))
        })
        .await??;
        let shown = match &options.listen {
            Address::Tcp(address) => address.clone(),
            Address::Unix(path) => format!("unix:{path}"),
        };
        let fail = |source| MirrorError::Listen { address: shown.clone(), source };
        let listener = Listener::bind(&options.listen).await.map_err(fail)?;
        let address = listener.address().map_err(fail)?;
        let (stop, leave, connections) = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let serving = Serving {
            header_timeout: options.header_timeout,
            max_connections: options.max_connections.max(1),
            stop: stop.clone(),
            leave: leave.clone(),
            connections: connections.clone(),
            leaving: Arc::default(),
        };
        let router = Router::new().fallback(answer).with_state(desk);
        let serving = tokio::spawn(listener.serve(router, serving));
        Ok(Mirror { address, stop, leave, connections, serving, grace: options.grace })
    }

    /// The listening address, with the assigned port.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Accepts no new connections; open transfers may finish within the grace period.
    pub async fn stop(self) {
        self.stop.cancel();
        self.connections.close();
        if tokio::time::timeout(self.grace, self.connections.wait()).await.is_err() {
            self.leave.cancel();
            self.connections.wait().await;
        }
        if let Err(error) = self.serving.await {
            tracing::error!(%error, "the mirror's listener failed");
        }
    }
}

/// A request as all endpoints see it: GET or HEAD.
struct Call<'a> {
    desk: &'a Arc<Desk>,
    head: bool,
    headers: &'a HeaderMap,
    uri: &'a Uri,
}

async fn answer(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let registry = parts.uri.path() == "/v2" || parts.uri.path().starts_with("/v2/");
    let mut response = if !matches!(parts.method, Method::GET | Method::HEAD) {
        let message = "a bundle is read-only";
        let mut refusal = if registry {
            registry::refusal(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message)
        } else {
            hub::refusal(StatusCode::METHOD_NOT_ALLOWED, "ReadOnly", message)
        };
        refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        // Whatever it wanted to send is not read.
        refusal.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        refusal
    } else {
        let head = parts.method == Method::HEAD;
        let call = Call { desk: &desk, head, headers: &parts.headers, uri: &parts.uri };
        match segments(parts.uri.path()) {
            None => hub::refusal(StatusCode::BAD_REQUEST, "BadPath", "the path cannot be read"),
            Some(path) if path.is_empty() => index(&call),
            Some(path) if registry => registry::answer(&call, &path[1..]).await,
            Some(path) => hub::answer(&call, &path).await,
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if registry {
        headers.insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
    }
    response
}

/// An overview for browsers.
fn index(call: &Call<'_>) -> Response {
    reply(call, StatusCode::OK, &json!({ "images": call.desk.images.names(), "models": call.desk.models.names() }))
}

fn reply(call: &Call<'_>, status: StatusCode, value: &Value) -> Response {
    let text = value.to_string();
    let length = HeaderValue::from(text.len());
    let mut response = Response::new(if call.head { Body::empty() } else { Body::from(text) });
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CONTENT_LENGTH, length);
    response
}

/// The decoded segments of the path. They never reach a file system, so `..` is just an unknown name.
fn segments(path: &str) -> Option<Vec<String>> {
    let path = path.strip_prefix('/')?;
    if path.is_empty() {
        return Some(Vec::new());
    }
    path.split('/').map(decode).collect()
}

fn decode(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}
