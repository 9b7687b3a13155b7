//! Clients that mean harm, and what others notice of them.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use camino::Utf8Path;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::backend::Backend;
use crate::site::{SOON, Site, eventually, exchange};
use crate::tls::{certify, folder, secure, tls};
use ports::Ports;

#[path = "../support/fail2ban.rs"]
mod fail2ban;
#[allow(unreachable_pub)]
#[path = "../../../tests/src/ports.rs"]
mod ports;

pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;

/// An address that takes as much memory as it gets.
const GREEDY: [u8; 4] = [127, 0, 1, 7];

/// Connects from another address of this machine.
async fn from(source: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Whether the gateway closes a connection, or has closed it.
async fn is_closed(stream: &mut TcpStream) -> bool {
    // A reset is an end, too.
    matches!(timeout(SOON, stream.read(&mut [0])).await, Ok(Ok(0) | Err(_)))
}

async fn is_served(stream: TcpStream, path: &str) -> bool {
    let request = Request::get(path).header("host", "x").body(Full::new(Bytes::new())).unwrap();
    exchange(stream, request).await.status() == 200
}

pub(crate) async fn counts(site: &Site, line: &str) {
    eventually(async || site.metrics().await.lines().any(|found| found == format!("textnlp_gateway_{line}"))).await;
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A connection on which the client has sent its preface.
pub(crate) async fn http2(site: &Site, trusted: &CertificateDer<'static>) -> TlsStream<TcpStream> {
    http2_on(TcpStream::connect(site.address()).await.unwrap(), trusted).await
}

async fn http2_on(stream: TcpStream, trusted: &CertificateDer<'static>) -> TlsStream<TcpStream> {
    let mut stream = secure(stream, trusted, b"h2").await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    stream
}

/// Sends until the gateway closes the connection. The kinds of the frames that it sent.
pub(crate) async fn until_closed(stream: TlsStream<TcpStream>, every: Duration, bytes: &[u8]) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut kinds = Vec::new();
    let reading = async {
        loop {
            let mut head = [0; 9];
            if read.read_exact(&mut head).await.is_err() {
                return;
            }
            kinds.push(head[3]);
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            if read.read_exact(&mut payload).await.is_err() {
                return;
            }
        }
    };
    let writing = async {
        while write.write_all(bytes).await.is_ok() && write.flush().await.is_ok() {
            tokio::time::sleep(every).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = timeout(SOON, reading) => ended.expect("the connection is still open"),
        () = writing => {}
    }
    kinds
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_whatever_it_speaks() {
    let (_folder, path) = folder();
    let trusted = certify(&path);
    let a = Backend::tcp("a").await;
    let site = Site::with(&[&a], &format!("{}  first_request_timeout_seconds: 1\n", tls(&path))).await;
    // After the handshake: no preface, no head.
    for protocol in [&b"h2"[..], b"http/1.1"] {
        let stream = TcpStream::connect(site.address()).await.unwrap();
        let mut stream = secure(stream, &trusted, protocol).await.unwrap();
        let _ = timeout(SOON, stream.read_to_end(&mut Vec::new())).await.expect("the connection is still open");
    }
    // The preface, and no request.
    let kinds = until_closed(http2(&site, &trusted).await, Duration::from_millis(100), &frame(6, 0, 0, &[1; 8])).await;
    assert!(kinds.contains(&GOAWAY), "{kinds:?}");
    counts(&site, "connections_closed_total{reason=\"no_request\"} 3").await;
}

#[tokio::test]
async fn pings_do_not_keep_an_idle_connection_open() {
    let (_folder, path) = folder();
    let trusted = certify(&path);
    let a = Backend::tcp("a").await;
    let site = Site::with(&[&a], &format!("{}  header_timeout_seconds: 1\n", tls(&path))).await;
    let mut stream = http2(&site, &trusted).await;
    // GET / of site.example, by indices of RFC 7541's static table.
    let head = [&[0x82, 0x84, 0x87, 0x41, 12][..], b"site.example"].concat();
    stream.write_all(&frame(1, 5, 1, &head)).await.unwrap();
    let kinds = until_closed(stream, Duration::from_millis(100), &frame(6, 0, 0, &[1; 8])).await;
    assert!(kinds.contains(&1) && kinds.contains(&GOAWAY), "{kinds:?}");
    assert_eq!(a.requests(), 1);
    counts(&site, "connections_closed_total{reason=\"idle\"} 1").await;
}

#[tokio::test]
async fn frames_that_cost_nothing_are_bounded() {
    let (_folder, path) = folder();
    let trusted = certify(&path);
    let a = Backend::tcp("a").await;
    let site = Site::with(&[&a], &tls(&path)).await;
    // PRIORITY of a stream that is not open, WINDOW_UPDATE by 1, PING, empty SETTINGS.
    let floods = [
        frame(2, 0, 3, &[0, 0, 0, 0, 16]),
        frame(8, 0, 0, &[0, 0, 0, 1]),
        frame(6, 0, 0, &[0; 8]),
        frame(4, 0, 0, &[]),
    ];
    for flood in floods {
        until_closed(http2(&site, &trusted).await, Duration::ZERO, &flood.repeat(100)).await;
    }
    counts(&site, "connections_closed_total{reason=\"frame_flood\"} 4").await;
}

#[tokio::test]
async fn an_address_has_its_share_and_a_trusted_proxy_is_not_one_client() {
    let a = Backend::tcp("a").await;
    let more = "  max_connections_per_address: 2\n  trusted_proxies: [127.0.0.3]\n";
    let site = Site::with(&[&a], more).await;
    let to = site.address();
    let held = [from([127, 0, 0, 9], to).await, from([127, 0, 0, 9], to).await];
    counts(&site, "connections 3").await;
    assert!(is_closed(&mut from([127, 0, 0, 9], to).await).await);
    assert!(is_served(from([127, 0, 0, 2], to).await, "/x").await);
    counts(&site, "connections_refused_total{reason=\"address_limit\"} 1").await;
    drop(held);
    eventually(async || {
        let mut stream = from([127, 0, 0, 9], to).await;
        let _ = stream.write_all(b"GET /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.is_ok() && text.starts_with("HTTP/1.1 200")
    })
    .await;

    let _proxied = [from([127, 0, 0, 3], to).await, from([127, 0, 0, 3], to).await, from([127, 0, 0, 3], to).await];
    for (source, claim, expect) in
        [([127, 0, 0, 3], "198.51.100.7", "198.51.100.7"), ([127, 0, 0, 2], "198.51.100.7", "127.0.0.2")]
    {
        let request = Request::get("/x").header("host", "x").header("x-forwarded-for", claim);
        let response = exchange(from(source, to).await, request.body(Full::new(Bytes::new())).unwrap()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(a.state.last.lock().unwrap()["x-forwarded-for"], expect);
    }
}

#[tokio::test]
async fn the_longest_idle_connection_makes_room_and_checks_are_served_in_a_flood() {
    let a = Backend::tcp("a").await;
    let more = "  max_connections: 2\n  health_listen: \"127.0.0.1:0\"\n  trusted_proxies: [127.0.0.3]\n";
    let site = Site::with(&[&a], more).await;
    let to = site.address();
    let mut idle = from([127, 0, 0, 4], to).await;
    // Accepted in this order.
    counts(&site, "connections 2").await;
    let hold = async |source: u8| {
        let mut stream = from([127, 0, 0, source], to).await;
        stream.write_all(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        stream
    };
    let _first = hold(5).await;
    eventually(async || a.state.waiting.load(SeqCst) == 1).await;
    let _second = hold(6).await;
    assert!(is_closed(&mut idle).await);
    eventually(async || a.state.waiting.load(SeqCst) == 2).await;
    counts(&site, "connections_closed_total{reason=\"evicted\"} 1").await;

    // Every connection has a request.
    assert!(is_closed(&mut from([127, 0, 0, 7], to).await).await);
    counts(&site, "connections_refused_total{reason=\"full\"} 1").await;
    assert!(is_served(from([127, 0, 0, 3], to).await, "/x").await, "a load balancer's check");
    let textnlp_gateway::SocketAddress::Tcp(checks) = site.gateway.health_address().unwrap().clone() else { panic!() };
    assert!(is_served(TcpStream::connect(checks).await.unwrap(), "/ready").await);
    assert!(is_served(TcpStream::connect(checks).await.unwrap(), "/health").await);
    assert!(!is_served(TcpStream::connect(checks).await.unwrap(), "/status").await);
    // Nor do silent connections there keep a check out.
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(TcpStream::connect(checks).await.unwrap());
    }
    assert!(is_served(TcpStream::connect(checks).await.unwrap(), "/ready").await);
    assert!(is_closed(&mut silent[0]).await);
    assert_eq!(site.admin("GET", "/ready", "").await.0, 200);
    assert_eq!(a.state.left.load(SeqCst), 0);
}

/// A request for a path of site.example, by indices of RFC 7541's static table.
fn request_head(stream: u32, path: &str) -> Vec<u8> {
    let path = [&[0x04, path.len() as u8][..], path.as_bytes()].concat();
    frame(HEADERS, 5, stream, &[&[0x82, 0x87][..], &path, &[0x41, 12], b"site.example"].concat())
}

#[tokio::test]
async fn requests_of_an_address_are_bounded_whatever_its_connections_multiplex() {
    let (_folder, path) = folder();
    let trusted = certify(&path);
    let a = Backend::tcp("a").await;
    let site = Site::with(&[&a], &format!("{}  max_connections_per_address: 3\n", tls(&path))).await;
    let mut streams = [http2(&site, &trusted).await, http2(&site, &trusted).await];
    for stream in &mut streams {
        let requests: Vec<u8> = (0..4).flat_map(|number| request_head(1 + 2 * number, "/hold")).collect();
        stream.write_all(&requests).await.unwrap();
    }
    counts(&site, "requests_refused_total{reason=\"address_limit\"} 5").await;
    eventually(async || a.state.waiting.load(SeqCst) == 3).await;
    let other = secure(from([127, 0, 0, 2], site.address()).await, &trusted, b"http/1.1").await.unwrap();
    let request = Request::get("/x").header("host", "x").body(Full::new(Bytes::new())).unwrap();
    assert_eq!(exchange(other, request).await.status(), 200);
    drop(streams);
    // What ended is not counted any more.
    eventually(async || a.state.left.load(SeqCst) == 3).await;
    let mut stream = http2(&site, &trusted).await;
    stream.write_all(&request_head(1, "/hold")).await.unwrap();
    eventually(async || a.state.waiting.load(SeqCst) == 4).await;
}

#[tokio::test]
async fn an_answer_that_http2_never_takes_does_not_keep_its_connection() {
    let (_folder, path) = folder();
    let trusted = certify(&path);
    let a = Backend::tcp("a").await;
    let site = Site::with(&[&a], &format!("{}  timeout_seconds: 1\n", tls(&path))).await;
    let mut stream = http2(&site, &trusted).await;
    // SETTINGS_INITIAL_WINDOW_SIZE: 0.
    stream.write_all(&frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])).await.unwrap();
    stream.write_all(&request_head(1, "/x")).await.unwrap();
    let kinds = until_closed(stream, Duration::from_millis(100), &frame(6, 0, 0, &[1; 8])).await;
    assert!(kinds.contains(&HEADERS), "{kinds:?}");
    counts(&site, "connections_closed_total{reason=\"overdue\"} 1").await;
}

#[tokio::test]
async fn answer_that_waits_for_its_client_makes_room_for_another_connection() {
    let (_folder, path) = folder();
    let trusted = certify(&path);
    let a = Backend::tcp("a").await;
    let site = Site::with(&[&a], &format!("{}  max_connections: 1\n", tls(&path))).await;
    let mut stream = http2(&site, &trusted).await;
    // SETTINGS_INITIAL_WINDOW_SIZE: 0.
    stream.write_all(&frame(4, 0, 0, &[0, 4, 0, 0, 0, 0])).await.unwrap();
    stream.write_all(&request_head(1, "/x")).await.unwrap();
    // The head of the answer.
    let mut head = [0; 9];
    while head[3] != HEADERS {
        timeout(SOON, stream.read_exact(&mut head)).await.unwrap().unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        timeout(SOON, stream.read_exact(&mut vec![0; length])).await.unwrap().unwrap();
    }
    let other = secure(from([127, 0, 0, 2], site.address()).await, &trusted, b"http/1.1").await.unwrap();
    let request = Request::get("/x").header("host", "x").body(Full::new(Bytes::new())).unwrap();
    assert_eq!(exchange(other, request).await.status(), 200);
    counts(&site, "connections_closed_total{reason=\"evicted\"} 1").await;
}

#[tokio::test]
async fn unfinished_request_makes_room_for_another_connection() {
    let a = Backend::tcp("a").await;
    let site = Site::with(&[&a], "  max_connections: 1\n").await;
    let mut slow = from([127, 0, 0, 5], site.address()).await;
    let head = b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n";
    slow.write_all(head).await.unwrap();
    // The gateway reads the body now.
    let mut asked = [0; b"HTTP/1.1 100".len()];
    timeout(SOON, slow.read_exact(&mut asked)).await.unwrap().unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100");
    assert!(is_served(from([127, 0, 0, 6], site.address()).await, "/x").await);
    let rest = timeout(SOON, slow.read_to_end(&mut Vec::new())).await;
    assert!(rest.is_ok(), "the connection is still open");
    counts(&site, "connections_closed_total{reason=\"evicted\"} 1").await;
    assert_eq!(a.requests(), 1);
}

/// Sends the beginning of an upload and waits until the gateway forwards it.
async fn upload(site: &Site, stream: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
    eventually(async || site.admin("GET", "/status", "").await.1["backends"][0]["in_flight"] == 1).await;
}

#[tokio::test]
async fn upload_of_unknown_length_makes_room_for_another_connection() {
    let a = Backend::tcp("a").await;
    let site = Site::with(&[&a], "  max_connections: 1\n").await;
    let head = "POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n";
    let mut slow = from([127, 0, 0, 5], site.address()).await;
    upload(&site, &mut slow, head.as_bytes()).await;
    assert!(is_served(from([127, 0, 0, 6], site.address()).await, "/x").await);
    assert!(timeout(SOON, slow.read_to_end(&mut Vec::new())).await.is_ok(), "the connection is still open");
    counts(&site, "connections_closed_total{reason=\"evicted\"} 1").await;
    eventually(async || site.admin("GET", "/status", "").await.1["backends"][0]["in_flight"] == 0).await;

    // A body that has ended: now the backend is awaited.
    let mut whole = from([127, 0, 0, 5], site.address()).await;
    let text = format!("{}0\r\n\r\n", head.replace("/x", "/hold"));
    upload(&site, &mut whole, text.as_bytes()).await;
    eventually(async || a.state.waiting.load(SeqCst) == 1).await;
    assert!(is_closed(&mut from([127, 0, 0, 6], site.address()).await).await);
    counts(&site, "connections_refused_total{reason=\"full\"} 1").await;
    a.state.go.notify_one();
    let mut answer = [0; b"HTTP/1.1 200".len()];
    timeout(SOON, whole.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[tokio::test]
async fn upload_of_unknown_length_over_http2_makes_room_for_another_connection() {
    let (_folder, path) = folder();
    let trusted = certify(&path);
    let a = Backend::tcp("a").await;
    let site = Site::with(&[&a], &format!("{}  max_connections: 1\n", tls(&path))).await;
    let mut slow = http2(&site, &trusted).await;
    // POST /x of site.example without a length, and DATA that does not end the stream.
    let head = [&[0x83, 0x87, 0x04, 2][..], b"/x", &[0x41, 12], b"site.example"].concat();
    upload(&site, &mut slow, &[frame(HEADERS, 4, 1, &head), frame(0, 0, 1, b"body")].concat()).await;
    let other = secure(from([127, 0, 0, 2], site.address()).await, &trusted, b"http/1.1").await.unwrap();
    let request = Request::get("/x").header("host", "x").body(Full::new(Bytes::new())).unwrap();
    assert_eq!(exchange(other, request).await.status(), 200);
    let kinds = until_closed(slow, Duration::from_millis(100), &frame(6, 0, 0, &[1; 8])).await;
    assert!(kinds.contains(&GOAWAY), "{kinds:?}");
    counts(&site, "connections_closed_total{reason=\"evicted\"} 1").await;
}

#[tokio::test]
async fn flooded_site_stays_healthy_for_the_global_endpoint() {
    let (held, path) = folder();
    let trusted = certify(&path);
    let (a, old) = (Backend::tcp("a").await, Backend::tcp("old").await);
    let more = format!("{}  max_connections: 1\n  ready_listen: \"unix:{path}/ready.sock\"\n", tls(&path));
    let site = Site::with(&[&a], &more).await;
    let mut client = secure(from([127, 0, 0, 5], site.address()).await, &trusted, b"http/1.1").await.unwrap();
    client.write_all(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    eventually(async || a.state.waiting.load(SeqCst) == 1).await;
    assert!(is_closed(&mut from([127, 0, 0, 6], site.address()).await).await);

    // `old`: nothing listens at its address for health checks.
    let text = format!(
        "gateway:\n  listen: \"127.0.0.1:0\"\n  admin_listen: \"unix:{path}/admin.sock\"\n  health: {{ interval_ms: 20 }}\n  backends:\n    \
         - {{ name: a, listen: \"{}\", ready_listen: \"unix:{path}/ready.sock\", tls: {{ ca_file: {path}/cert.pem, name: site.example }} }}\n    \
         - {{ name: old, listen: \"{}\", ready_listen: \"unix:{path}/none.sock\" }}\n",
        site.address(),
        old.listen
    );
    let file = path.join("front.yaml");
    std::fs::write(&file, text).unwrap();
    let front = Site { gateway: textnlp_gateway::start(&file).await.unwrap(), folder: held };
    front.until("a", "healthy").await;
    front.until("old", "healthy").await;
    a.state.sick.store(true, SeqCst);
    front.until("a", "unhealthy").await;
    assert_eq!(a.state.left.load(SeqCst), 0, "the client is served");
}

/// The program, ended with the test.
struct Program {
    child: std::process::Child,
    address: SocketAddr,
    _ports: Ports,
}

impl Program {
    /// Starts it with a backend and further lines of the configuration.
    async fn start(folder: &Utf8Path, backend: &Backend, more: &str, output: Stdio) -> Program {
        let ports = Ports::ask(1);
        let address = SocketAddr::from(([127, 0, 0, 1], ports.numbers()[0]));
        let file = folder.join("gateway.yaml");
        let listen = &backend.listen;
        let text =
            format!("gateway:\n  listen: \"{address}\"\n{more}  backends: [ {{ name: a, listen: \"{listen}\" }} ]\n");
        std::fs::write(&file, text).unwrap();
        let mut program = Command::new(env!("CARGO_BIN_EXE_textnlp-server"));
        program.args(["gateway", "--config", file.as_str()]).stdin(Stdio::null()).stdout(output);
        let program = Program { child: program.spawn().unwrap(), address, _ports: ports };
        eventually(async || TcpStream::connect(address).await.is_ok()).await;
        program
    }

    /// Starts it for clients with many connections and requests, and with as many open files as this process may have.
    async fn for_floods(folder: &Utf8Path, backend: &Backend, more: &str) -> Program {
        // For the connections of the program, too, which inherits it.
        let files = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).unwrap();
        let more = format!("  max_connections_per_address: 12000\n{more}");
        Program::start(folder, backend, &more, Stdio::null()).await
    }

    /// Its memory.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
    }

    /// The status and the error code of the answer to a request with a body of `length` bytes.
    async fn post(&self, trusted: Option<&CertificateDer<'static>>, source: [u8; 4], length: usize) -> (u16, Value) {
        let body = Full::new(Bytes::from(vec![b'x'; length]));
        let request = Request::post("/x").header("host", "site.example").body(body).unwrap();
        let stream = from(source, self.address).await;
        let response = match trusted {
            Some(trusted) => exchange(secure(stream, trusted, b"http/1.1").await.unwrap(), request).await,
            None => exchange(stream, request).await,
        };
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice::<Value>(&body).unwrap_or_default()["error"]["code"].clone())
    }

    /// Checks that a flood, which [`GREEDY`] takes part in, has not grown the program beyond half of the memory of its
    /// container, 1 GiB; that the address is refused and another is served; and that the memory is free after the flood.
    async fn bounds<T>(&self, trusted: Option<&CertificateDer<'static>>, before: u64, flood: T) {
        let refused = (429, json!("memory_limit"));
        eventually(async || self.post(trusted, GREEDY, 256 << 10).await == refused).await;
        let grown = self.resident().saturating_sub(before);
        assert!(grown < 512 << 20, "{} MiB", grown >> 20);
        // Another address. A backend that answered late is back after a health check.
        eventually(async || self.post(trusted, [127, 0, 0, 2], 100_000).await.0 == 200).await;
        drop(flood);
        eventually(async || self.post(trusted, GREEDY, 256 << 10).await.0 == 200).await;
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn unfinished_bodies_have_a_bounded_memory_of_which_every_address_has_a_share() {
    let (_folder, path) = folder();
    let a = Backend::tcp("a").await;
    let program = Program::for_floods(&path, &a, "").await;
    let before = program.resident();
    // 600 MiB of bodies without their last byte, from eight addresses.
    let head = "POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 262144\r\n\r\n";
    let bytes = [head.as_bytes(), &[b'x'; (256 << 10) - 1]].concat();
    let mut held = Vec::new();
    for number in 0..2400_u32 {
        let mut stream = from([127, 0, 1, (number / 300) as u8], program.address).await;
        // What is refused may be closed before it is sent.
        let _ = timeout(SOON, stream.write_all(&bytes)).await.expect("nothing reads it");
        held.push(stream);
    }
    let mut text = [0; 400];
    let length = timeout(SOON, held.last_mut().unwrap().read(&mut text)).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&text[..length]).into_owned();
    assert!(text.starts_with("HTTP/1.1 429") && text.contains("retry-after: "), "{text}");
    // The bodies have 256 MiB, and 2,400 connections take about 80 KiB each, most of it for what they have not read.
    // Without a bound it would be 780 MiB.
    program.bounds(None, before, held).await;
}

#[tokio::test]
async fn header_fields_of_unfinished_requests_have_a_share_of_the_memory() {
    let (_folder, path) = folder();
    let a = Backend::tcp("a").await;
    let program = Program::for_floods(&path, &a, "").await;
    let before = program.resident();
    // Counted twice, these fields are 62,000 bytes: half of the memory has room for 2,150 such requests. Their bodies lack
    // the last byte.
    let fields: String = (10..40).map(|number| format!("x-{number}: {}\r\n", "y".repeat(1000))).collect();
    let request = format!("POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n{fields}\r\nx");
    let mut held = Vec::new();
    for _ in 0..2400 {
        let mut stream = from(GREEDY, program.address).await;
        // What is refused may be closed before it is sent.
        let _ = timeout(SOON, stream.write_all(request.as_bytes())).await.expect("nothing reads it");
        held.push(stream);
    }
    program.bounds(None, before, held).await;
}

/// Waits until the gateway has read everything that was sent before.
async fn until_read(stream: &mut TlsStream<TcpStream>) {
    stream.write_all(&frame(PING, 0, 0, &[1; 8])).await.unwrap();
    stream.flush().await.unwrap();
    let reading = async {
        let mut head = [0; 9];
        // Acknowledged.
        while (head[3], head[4]) != (PING, 1) {
            stream.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            stream.read_exact(&mut vec![0; length]).await.unwrap();
        }
    };
    timeout(SOON, reading).await.expect("nothing reads it");
}

#[tokio::test]
async fn streams_of_http2_have_a_bounded_memory_of_which_every_address_has_a_share() {
    // With fields that fill most of a head, and with none: then only the bodies count.
    for fields in [7, 0] {
        flood_of_streams(fields).await;
    }
}

async fn flood_of_streams(fields: usize) {
    let (_folder, path) = folder();
    let trusted = certify(&path);
    let a = Backend::tcp("a").await;
    let program = Program::for_floods(&path, &a, &tls(&path)).await;
    let before = program.resident();
    // POST /x of site.example, without an entry in the table of the connection, and a field of 4,000 bytes, which enters it
    // (<https://www.rfc-editor.org/rfc/rfc7541#section-6.2>). Each request has the field `fields` times, mostly by its index: a
    // stream of 40 bytes has up to 28 KiB of fields, which the gateway writes out for its backend.
    let pseudo = [&[0x83, 0x87, 0x04, 2][..], b"/x", &[0x01, 12], b"site.example"].concat();
    let field = [&[0x40, 1, b'x', 0x7f, 0xa1, 0x1e][..], &[b'y'; 4000]].concat();
    let mut requests = Vec::new();
    for number in 0..128 {
        let block = match (fields, number) {
            (0, _) => pseudo.clone(),
            (_, 0) => [&pseudo[..], &field, &vec![0xbe; fields - 1]].concat(),
            _ => [&pseudo[..], &vec![0xbe; fields]].concat(),
        };
        requests.extend(frame(HEADERS, 4, 1 + 2 * number, &block));
        // What the window of the connection has room for. No stream ends.
        if number < 4 {
            requests.extend(frame(0, 0, 1 + 2 * number, &[b'x'; 16_000]));
        }
    }
    // 12,288 streams, of eight addresses.
    let mut held = Vec::new();
    for number in 0..96_u32 {
        let mut stream = http2_on(from([127, 0, 1, (number / 12) as u8], program.address).await, &trusted).await;
        stream.write_all(&requests).await.unwrap();
        until_read(&mut stream).await;
        held.push(stream);
    }
    program.bounds(Some(&trusted), before, held).await;
}

#[tokio::test]
async fn the_program_logs_who_was_refused_and_why_for_fail2ban() {
    let (_folder, path) = folder();
    let trusted = certify(&path);
    let a = Backend::tcp("a").await;
    let log = path.join("gateway.log");
    let more = format!(
        "{}  max_request_bytes: 10\n  max_connections_per_address: 2\n  first_request_timeout_seconds: 3\n",
        tls(&path)
    );
    let program = Program::start(&path, &a, &more, std::fs::File::create(&log).unwrap().into()).await;
    let to = program.address;

    // A path that would forge a line.
    let mut stream = secure(from([127, 0, 0, 11], to).await, &trusted, b"http/1.1").await.unwrap();
    let head = "POST /\",\"client\":\"192.0.2.66 HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    let stream = secure(from([127, 0, 0, 12], to).await, &trusted, b"http/1.1").await.unwrap();
    let request = Request::post("/x").header("host", "x").header("x-request-id", "large-2");
    let response = exchange(stream, request.body(Full::new(Bytes::from("more than ten"))).unwrap()).await;
    assert_eq!(response.status(), 413);
    assert!(!response.into_body().collect().await.unwrap().to_bytes().is_empty());
    // A method may be any word.
    let mut stream = secure(from([127, 0, 0, 12], to).await, &trusted, b"http/1.1").await.unwrap();
    let head = format!("{} / HTTP/1.1\r\nHost: a b\r\n\r\n", "M".repeat(5_000));
    stream.write_all(head.as_bytes()).await.unwrap();
    let _ = timeout(SOON, stream.read(&mut [0; 100])).await.unwrap();
    // A handshake that is none.
    let mut stream = from([127, 0, 0, 13], to).await;
    stream.write_all(&[22; 100]).await.unwrap();
    let _ = timeout(SOON, stream.read_to_end(&mut Vec::new())).await.unwrap();
    // Two silent connections, and one too many.
    let mut silent = [from([127, 0, 0, 14], to).await, from([127, 0, 0, 14], to).await];
    for stream in &mut silent {
        stream.write_all(&[22]).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(is_closed(&mut from([127, 0, 0, 14], to).await).await);
    let mut stream = secure(from([127, 0, 0, 15], to).await, &trusted, b"h2").await.unwrap();
    let _ = timeout(SOON, stream.read_to_end(&mut Vec::new())).await.expect("the connection is still open");

    let lines = || -> Vec<Value> {
        let text = std::fs::read_to_string(Utf8Path::new(&log)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
    };
    let expect = [
        json!({ "message": "request refused", "client": "127.0.0.12", "status": 413, "reason": "request_too_large", "request_id": "large-2", "method": "POST", "path": "/x" }),
        json!({ "message": "request refused", "client": "127.0.0.12", "status": 400, "method": "M".repeat(32) }),
        json!({ "message": "handshake failed", "client": "127.0.0.13" }),
        json!({ "message": "connection refused", "client": "127.0.0.14", "reason": "address_limit" }),
        json!({ "message": "connection closed", "client": "127.0.0.15", "reason": "no_request" }),
    ];
    for expect in expect {
        let has = |line: &Value| expect.as_object().unwrap().iter().all(|(name, value)| line[name] == *value);
        eventually(async || lines().iter().any(has)).await;
    }
    if let Some(mut failures) = fail2ban::failures(&log) {
        // On a slow machine the silent connections time out before they are read: a second line of the same client.
        failures.sort_unstable();
        failures.dedup();
        let expect = ["127.0.0.11", "127.0.0.12", "127.0.0.13", "127.0.0.14", "127.0.0.15"];
        assert_eq!(failures, expect);
    }
}
