//! A gateway with its files, and a client of it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use textnlp_gateway::{self as gateway, Running, SocketAddress};
use tokio::net::{TcpStream, UnixStream};

use crate::backend::Backend;

pub(crate) struct Site {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) gateway: Running,
}

/// Everything is there within this, or the test has failed.
pub(crate) const SOON: Duration = Duration::from_secs(20);

impl Site {
    pub(crate) async fn new(backends: &[&Backend]) -> Site {
        Site::with(backends, "").await
    }

    /// `more`: further lines of the configuration.
    pub(crate) async fn with(backends: &[&Backend], more: &str) -> Site {
        let folder = tempfile::tempdir().unwrap();
        let file = path(&folder, "gateway.yaml");
        std::fs::write(&file, config(&folder, backends, more)).unwrap();
        let gateway = gateway::start(&file).await.unwrap();
        let site = Site { folder, gateway };
        for backend in backends {
            site.until(&backend.name, "healthy").await;
        }
        site
    }

    pub(crate) fn path(&self, name: &str) -> Utf8PathBuf {
        path(&self.folder, name)
    }

    pub(crate) fn write(&self, backends: &[&Backend], more: &str) {
        std::fs::write(self.path("gateway.yaml"), config(&self.folder, backends, more)).unwrap();
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        tcp(self.gateway.address())
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        self.send(Request::get(path), "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> (u16, String) {
        self.send(Request::post(path), body).await
    }

    pub(crate) async fn send(&self, request: http::request::Builder, body: &str) -> (u16, String) {
        let response = self.open(request, body).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Sends a request on a connection of its own and gives the answer's head.
    pub(crate) async fn open(&self, request: http::request::Builder, body: &str) -> Response<Incoming> {
        let stream = TcpStream::connect(self.address()).await.unwrap();
        let request = request.header("host", "site.example").body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        exchange(stream, request).await
    }

    pub(crate) async fn admin(&self, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
        let stream = UnixStream::connect(self.path("admin.sock")).await.unwrap();
        let request = Request::builder().method(method).uri(path).header("host", "admin");
        let response = exchange(stream, request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    pub(crate) async fn metrics(&self) -> String {
        let body = self.scrape(Request::get("/metrics")).await.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    pub(crate) async fn scrape(&self, request: http::request::Builder) -> Response<Incoming> {
        let stream = TcpStream::connect(tcp(self.gateway.metrics_address().unwrap())).await.unwrap();
        exchange(stream, request.header("host", "metrics").body(Full::new(Bytes::new())).unwrap()).await
    }

    /// Waits until the gateway thinks so of a backend.
    pub(crate) async fn until(&self, backend: &str, state: &str) {
        eventually(async || {
            let (_, status) = self.admin("GET", "/status", "").await;
            let backends = status["backends"].as_array().unwrap().clone();
            backends.iter().any(|b| b["name"] == backend && b["state"] == state)
        })
        .await;
    }
}

pub(crate) async fn eventually(mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so().await {
        assert!(Instant::now() < deadline, "it did not come to pass");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn path(folder: &tempfile::TempDir, name: &str) -> Utf8PathBuf {
    Utf8Path::from_path(folder.path()).unwrap().join(name)
}

fn tcp(address: &SocketAddress) -> std::net::SocketAddr {
    match address {
        SocketAddress::Tcp(address) => *address,
        SocketAddress::Unix(path) => panic!("{path}"),
    }
}

fn config(folder: &tempfile::TempDir, backends: &[&Backend], more: &str) -> String {
    let admin = path(folder, "admin.sock");
    let mut text = format!(
        "gateway:\n  listen: \"127.0.0.1:0\"\n  metrics_listen: \"127.0.0.1:0\"\n  admin_listen: \"unix:{admin}\"\n"
    );
    if !more.contains("health:") {
        text.push_str("  health: { interval_ms: 20 }\n");
    }
    text.push_str(more);
    text.push_str("  backends:\n");
    for Backend { name, listen, .. } in backends {
        text.push_str(&format!("    - {{ name: {name}, listen: \"{listen}\", metrics_listen: \"{listen}\" }}\n"));
    }
    if backends.is_empty() {
        text.push_str("    []\n");
    }
    text
}

pub(crate) async fn exchange(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Response<Incoming> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap()
}
