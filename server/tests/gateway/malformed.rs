//! Requests that are no requests: every one is refused, reaches no backend, and is the client's fault.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::backend::Backend;
use crate::hostile::{GOAWAY, HEADERS, RST_STREAM, counts, frame, http2, until_closed};
use crate::site::{SOON, Site};
use crate::tls::{certify, folder, secure, tls};

/// The status line of the first answer; empty if the connection ends without one.
async fn status_of(site: &Site, bytes: &[u8], half_closes: bool) -> String {
    let mut stream = TcpStream::connect(site.address()).await.unwrap();
    // The gateway may close before it has read everything.
    let _ = stream.write_all(bytes).await;
    if half_closes {
        let _ = stream.shutdown().await;
    }
    let mut text = [0; 12];
    match timeout(SOON, stream.read_exact(&mut text)).await.expect("neither an answer nor an end") {
        Ok(_) => String::from_utf8_lossy(&text).into_owned(),
        Err(_) => String::new(),
    }
}

#[tokio::test]
async fn malformed_heads_are_refused() {
    let a = Backend::tcp("a").await;
    let site = Site::new(&[&a]).await;
    let heads = [
        // No host, or more than one.
        "GET /x HTTP/1.1\r\n\r\n",
        "GET http://x/x HTTP/1.1\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n",
        "GET http://u@x/x HTTP/1.1\r\nhost: x\r\n\r\n",
        // A host that is none.
        "GET /x HTTP/1.1\r\nhost:\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost: :443\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost: a b<script>@x:99999\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost: x:99999\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost: x/y\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost: \u{fc}\r\n\r\n",
        // Lines.
        "GET /x HTTP/1.1\nhost: x\n\n",
        "GET /x HTTP/1.1\r\nhost: x\n\r\n",
        "GET /x HTTP/1.1\r\nhost: x\r\n\n",
        "\nGET /x HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost: x\ry: z\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost: x\r\ny: \0\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost: x\r\n y: folded\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost : x\r\n\r\n",
        "GET  /x HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET x HTTP/1.1\r\nhost: x\r\n\r\n",
        "CONNECT x:443 HTTP/1.1\r\nhost: x:443\r\n\r\n",
        // Lengths.
        "POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: +5\r\n\r\nhello",
        "POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\nhello",
        "POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 0x5\r\n\r\nhello",
        "POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 5, 5\r\n\r\nhello",
        "POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 18446744073709551616\r\n\r\nhello",
        "POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        "POST /x HTTP/1.1\r\nhost: x\r\ncontent-length : 5\r\n\r\nhello",
        // Encodings.
        "POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
        "POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
        "POST /x HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ];
    for head in heads {
        assert_eq!(status_of(&site, head.as_bytes(), false).await, "HTTP/1.1 400", "{head:?}");
    }
    assert_eq!(a.requests(), 0);
    let valid = [
        "GET /x HTTP/1.0\r\n\r\n",
        "\r\nGET http://x/x HTTP/1.1\r\nhost: x:80\r\n\r\n",
        // Offers that the gateway ignores.
        "GET /x HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\r\n",
    ];
    for head in valid {
        assert!(status_of(&site, head.as_bytes(), false).await.ends_with(" 200"), "{head:?}");
        assert!(!a.state.last.lock().unwrap().contains_key("upgrade"), "{head:?}");
    }
    assert_eq!(a.requests(), valid.len() as u64);
}

#[tokio::test]
async fn one_request_stays_one_request() {
    let a = Backend::tcp("a").await;
    let site = Site::new(&[&a]).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";
    // Transfer-Encoding wins, and the connection ends: what follows the body is no request.
    for framing in [
        "content-length: 35\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 35\r\n\r\n0\r\n\r\n",
    ] {
        let before = a.requests();
        let mut stream = TcpStream::connect(site.address()).await.unwrap();
        let request = format!("POST /x HTTP/1.1\r\nhost: x\r\n{framing}{smuggled}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = Vec::new();
        let _ = timeout(SOON, stream.read_to_end(&mut text)).await.expect("the connection is still open");
        assert_eq!(String::from_utf8_lossy(&text).matches("HTTP/1.1 ").count(), 1, "{framing:?}");
        assert_eq!(a.requests(), before + 1, "{framing:?}");
    }
    // A body that looks like a request, and a request behind it.
    let before = a.requests();
    let mut stream = TcpStream::connect(site.address()).await.unwrap();
    let length = smuggled.len();
    let request = format!(
        "POST /first HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{smuggled}\
         POST /second HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{length:x};a=b\r\n{smuggled}\r\n0\r\nt: 1\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    timeout(SOON, stream.read_to_string(&mut text)).await.expect("the connection is still open").unwrap();
    assert!(text.contains(&format!("a POST /first {length}")) && text.contains(&format!("a POST /second {length}")));
    assert_eq!(a.requests(), before + 2);
}

#[tokio::test]
async fn broken_uploads_are_the_fault_of_the_client() {
    let a = Backend::tcp("a").await;
    let site = Site::with(&[&a], "  timeout_seconds: 1\n").await;
    let chunked = "POST /nothing HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    let bodies = [
        "zz\r\nhello\r\n0\r\n\r\n",
        "-1\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello",
        "5\r\nhelloXX0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nt: 1\n\r\n",
    ];
    let mut faults = 0;
    for body in bodies {
        assert_eq!(status_of(&site, format!("{chunked}{body}").as_bytes(), false).await, "HTTP/1.1 400", "{body:?}");
        faults += 1;
    }
    let long = "x".repeat(1 << 20);
    for body in [format!("5;{long}\r\nhello\r\n0\r\n\r\n"), format!("5\r\nhello\r\n0\r\nt: {long}\r\n\r\n")] {
        let status = status_of(&site, format!("{chunked}{body}").as_bytes(), false).await;
        // Closing over what was not read resets the connection, which may overtake the answer.
        assert!(status.is_empty() || status == "HTTP/1.1 400", "{status}");
        faults += 1;
    }
    let cut = [
        format!("{chunked}5\r\nhel"),
        "POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhel".to_owned(),
        "POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\nhel".to_owned(),
    ];
    for request in &cut {
        let status = status_of(&site, request.as_bytes(), true).await;
        assert!(status.is_empty() || status == "HTTP/1.1 400", "{request:?}: {status}");
    }
    // Without an end: the time of the request is over.
    for request in &cut {
        assert_eq!(status_of(&site, request.as_bytes(), false).await, "HTTP/1.1 408", "{request:?}");
    }
    counts(&site, &format!("requests_refused_total{{reason=\"bad_request\"}} {}", faults + cut.len())).await;
    let (_, status) = site.admin("GET", "/status", "").await;
    assert_eq!(status["backends"][0]["failures"], 0);
    assert_eq!(status["backends"][0]["state"], "healthy");
    assert_eq!(a.requests(), 0);
    assert_eq!(site.post("/x", "hello").await.0, 200);
}

#[tokio::test]
async fn dripped_requests_end_in_time() {
    let a = Backend::tcp("a").await;
    let more = "  timeout_seconds: 1\n  header_timeout_seconds: 1\n  first_request_timeout_seconds: 1\n";
    let site = Site::with(&[&a], more).await;
    let starts = [
        "",
        "GET /x HTTP/1.1\r\nhost: x\r\nx-slow: ",
        "POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n",
        "POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n",
        "POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffff\r\n",
    ];
    for start in starts {
        let (mut read, mut write) = TcpStream::connect(site.address()).await.unwrap().into_split();
        write.write_all(start.as_bytes()).await.unwrap();
        let mut buffer = [0; 4096];
        let dripping = async {
            while write.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        // An answer is an end, too: the client notices.
        tokio::select! {
            ended = timeout(SOON, read.read(&mut buffer)) => drop(ended.expect("the connection is still open")),
            () = dripping => {}
        }
        assert!(!buffer.starts_with(b"HTTP/1.1 2") && !buffer.starts_with(b"HTTP/1.1 5"), "{start:?}");
    }
    let (_, status) = site.admin("GET", "/status", "").await;
    assert_eq!(status["backends"][0]["failures"], 0);
    assert_eq!(site.post("/x", "hello").await.0, 200);
}

/// GET, https and / by indices of RFC 7541's static table.
const GET_ROOT: [u8; 3] = [0x82, 0x87, 0x84];

/// A field without compression.
fn field(name: &str, value: &str) -> Vec<u8> {
    [&[0, name.len() as u8][..], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat()
}

/// Waits for the gateway's first frame that is about a request, or the end of the connection.
async fn answered(mut stream: TlsStream<TcpStream>) {
    let reading = async {
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).await.is_err() {
                return;
            }
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            let _ = stream.read_exact(&mut payload).await;
            if [HEADERS, RST_STREAM, GOAWAY].contains(&head[3]) {
                return;
            }
        }
    };
    timeout(SOON, reading).await.expect("no answer")
}

#[tokio::test]
async fn malformed_http_2_requests_reach_no_backend() {
    let (_folder, path) = folder();
    let trusted = certify(&path);
    let a = Backend::tcp("a").await;
    let site = Site::with(&[&a], &tls(&path)).await;
    let pseudo = [&GET_ROOT[..], &field(":authority", "site.example")].concat();
    let with = |fields: &[u8]| [&pseudo[..], fields].concat();
    let requests = [
        with(&field("host", "other.example")),
        with(&[field("host", "site.example"), field("host", "site.example")].concat()),
        [&GET_ROOT[..], &field(":authority", "u@site.example")].concat(),
        GET_ROOT.to_vec(),
        with(&field(":authority", "site.example")),
        with(&[0x84]),
        with(&[field("x", "y"), vec![0x82]].concat()),
        [&GET_ROOT[..2], &field(":authority", "site.example")].concat(),
        with(&field("X-Upper", "y")),
        with(&field("x", "y\r\nz: 1")),
        with(&field("x", "y\0")),
        with(&field("transfer-encoding", "chunked")),
        with(&field("connection", "close")),
        with(&field("content-length", "5")),
        // A header of 120 bytes, 2000 times.
        with(&[&[0x40][..], &field("x", &"y".repeat(120))[1..], &[0xbe; 2000]].concat()),
    ];
    for request in requests {
        let mut stream = http2(&site, &trusted).await;
        stream.write_all(&frame(1, 5, 1, &request)).await.unwrap();
        answered(stream).await;
        assert_eq!(a.requests(), 0, "{}", String::from_utf8_lossy(&request));
    }
    // The same host in another spelling is the same host.
    assert_eq!(asked(&site, &trusted, "Site.example:443").await, 200);
    assert_eq!(a.state.last.lock().unwrap()["host"], "site.example");
    assert_eq!(asked(&site, &trusted, "other.example").await, 400);
    assert_eq!(a.requests(), 1);
}

async fn asked(site: &Site, trusted: &CertificateDer<'static>, host: &str) -> u16 {
    let stream = secure(TcpStream::connect(site.address()).await.unwrap(), trusted, b"h2").await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("https://site.example/x").header("host", host).body(Full::new(Bytes::new())).unwrap();
    sender.send_request(request).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn floods_of_http_2_streams_end_the_connection() {
    let (_folder, path) = folder();
    let trusted = certify(&path);
    let a = Backend::tcp("a").await;
    let site = Site::with(&[&a], &tls(&path)).await;
    let head = [&GET_ROOT[..], &field(":authority", "site.example")].concat();

    // Streams that are reset at once.
    let resets: Vec<u8> = (0..5000)
        .flat_map(|n| [frame(1, 5, 2 * n + 1, &head), frame(3, 0, 2 * n + 1, &[0, 0, 0, 8])].concat())
        .collect();
    let mut stream = http2(&site, &trusted).await;
    let _ = stream.write_all(&resets).await;
    until_closed(stream, SOON, &[]).await;

    // A head that does not end, and a body that has no bytes.
    let floods = [
        (frame(1, 1, 1, &head), frame(9, 0, 1, &field("x", &"y".repeat(100)))),
        (frame(1, 1, 1, &head), frame(9, 0, 1, &[])),
        (frame(1, 4, 1, &[&[0x83][..], &head[1..]].concat()), frame(0, 0, 1, &[])),
    ];
    for (begin, flood) in floods {
        let mut stream = http2(&site, &trusted).await;
        stream.write_all(&begin).await.unwrap();
        until_closed(stream, Duration::ZERO, &flood.repeat(100)).await;
    }
    let (_, status) = site.admin("GET", "/status", "").await;
    assert_eq!(status["backends"][0]["failures"], 0);
    assert_eq!(asked(&site, &trusted, "site.example").await, 200);
}
