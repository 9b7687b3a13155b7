//! The wire that gates and load use, against a real listener with a real certificate.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use textnlp_net::trust::TrustRoots;
use textnlp_orchestrator::load::{HttpWire, Key, LoadRequest, RequestFailure, SessionOpener, Wire, WireError};
use textnlp_provider::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

struct Authority {
    pem: String,
    server: Arc<ServerConfig>,
}

fn authority() -> Authority {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    Authority { pem: certified.cert.pem(), server: Arc::new(server) }
}

/// A port that refuses connections: a bound socket that does not listen, so that no other process can take it.
fn refusing() -> (TcpSocket, u16) {
    let held = TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = held.local_addr().unwrap().port();
    (held, port)
}

/// Answers every connection once: with the request's own bytes, with something endless, or never.
async fn listen(tls: Arc<ServerConfig>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = TlsAcceptor::from(tls.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = tls.accept(stream).await else { return };
                let mut seen = Vec::new();
                let mut chunk = [0; 4096];
                while !seen.windows(4).any(|w| w == b"\r\n\r\n") {
                    match stream.read(&mut chunk).await {
                        Ok(n) if n > 0 => seen.extend_from_slice(&chunk[..n]),
                        _ => return,
                    }
                }
                let text = String::from_utf8_lossy(&seen).into_owned();
                if text.starts_with("GET /never") {
                    return std::future::pending().await;
                }
                if text.starts_with("GET /cut") {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
                    return;
                }
                if text.starts_with("GET /endless") {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                    while stream.write_all(&[b'x'; 65536]).await.is_ok() {}
                    return;
                }
                let head = format!("HTTP/1.1 203 Fine\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", text.len());
                let _ = stream.write_all(format!("{head}{text}").as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    port
}

#[tokio::test]
async fn requests_carry_the_api_key_over_verified_tls() {
    let authority = authority();
    let port = listen(authority.server.clone()).await;
    let wire = HttpWire::new(&format!("https://localhost:{port}/"), &only(&authority.pem)).unwrap();
    let key = Key { header: "X-API-Key".to_owned(), value: Secret::new("tnlp_secret") };
    let answer = wire.send(LoadRequest::post("/v1/generate", json!({"prompt": "x"})).with(&key)).await.unwrap();
    let echoed = String::from_utf8(answer.body).unwrap().to_lowercase();
    assert_eq!(answer.status, 203);
    assert!(echoed.starts_with("post /v1/generate http/1.1") && echoed.contains("x-api-key: tnlp_secret"), "{echoed}");
    assert!(wire.verified());
}

fn only(pem: &str) -> TrustRoots {
    TrustRoots::only_pem(pem.as_bytes(), "test").unwrap()
}

#[tokio::test]
async fn private_ca_is_trusted_in_addition_to_the_public_roots() {
    let authority = authority();
    let port = listen(authority.server.clone()).await;
    let trust = TrustRoots::public().with_pem(authority.pem.as_bytes(), "test").unwrap();
    let wire = HttpWire::new(&format!("https://localhost:{port}"), &trust).unwrap();
    assert_eq!(wire.send(LoadRequest::get("/health")).await.unwrap().status, 203);
    assert!(wire.open().await.is_ok());
}

#[tokio::test]
async fn certificate_of_another_ca_is_not_trusted() {
    let port = listen(authority().server).await;
    let wire = HttpWire::new(&format!("https://localhost:{port}"), &only(&authority().pem)).unwrap();
    assert!(matches!(wire.send(LoadRequest::get("/health")).await, Err(RequestFailure::Tls(_))));
    let public = HttpWire::new(&format!("https://localhost:{port}"), &TrustRoots::public()).unwrap();
    assert!(matches!(public.send(LoadRequest::get("/health")).await, Err(RequestFailure::Tls(_))));
}

#[tokio::test]
async fn every_request_failure_has_its_own_kind() {
    let authority = authority();
    let port = listen(authority.server.clone()).await;
    let wire = HttpWire::new(&format!("https://localhost:{port}"), &only(&authority.pem)).unwrap();
    let never = LoadRequest { timeout: Duration::from_millis(200), ..LoadRequest::get("/never") };
    assert_eq!(wire.send(never).await, Err(RequestFailure::Timeout));
    assert!(matches!(wire.send(LoadRequest::get("/cut")).await, Err(RequestFailure::Broken(_))));
    assert_eq!(wire.send(LoadRequest::get("/endless")).await, Err(RequestFailure::TooLarge));
    let (_held, free) = refusing();
    let nobody = HttpWire::new(&format!("http://127.0.0.1:{free}"), &TrustRoots::public()).unwrap();
    assert!(matches!(nobody.send(LoadRequest::get("/")).await, Err(RequestFailure::Connect(_))));
}

/// Answers two requests of each connection, and closes it.
async fn listen_twice(tls: Arc<ServerConfig>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        for connection in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = TlsAcceptor::from(tls.clone()).accept(stream).await else { continue };
            for question in 0..2 {
                let mut chunk = [0; 4096];
                let n = stream.read(&mut chunk).await.unwrap();
                let text = String::from_utf8_lossy(&chunk[..n]).to_lowercase();
                assert!(text.contains(&format!("host: localhost:{port}")) && text.contains("x-api-key: k"), "{text}");
                let said = format!("{connection} {question}");
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", said.len());
                stream.write_all(format!("{head}{said}").as_bytes()).await.unwrap();
            }
            let _ = stream.shutdown().await;
        }
    });
    port
}

#[tokio::test]
async fn session_uses_its_own_connection_and_detects_its_close() {
    let authority = authority();
    let port = listen_twice(authority.server.clone()).await;
    let wire = HttpWire::new(&format!("https://localhost:{port}"), &only(&authority.pem)).unwrap();
    let key = Key { header: "X-API-Key".to_owned(), value: Secret::new("k") };
    for connection in 0..2 {
        let mut session = wire.open().await.unwrap();
        for question in 0..2 {
            assert!(!session.is_closed());
            let answer = session.send(LoadRequest::get("/v1/models").with(&key)).await.unwrap();
            assert_eq!(answer.body, format!("{connection} {question}").into_bytes());
        }
        while !session.is_closed() {
            tokio::task::yield_now().await;
        }
        assert!(matches!(session.send(LoadRequest::get("/").with(&key)).await, Err(RequestFailure::Broken(_))));
    }
}

#[tokio::test]
async fn session_failures_have_the_same_kinds_as_request_failures() {
    let authority = authority();
    let port = listen(authority.server.clone()).await;
    let wire = HttpWire::new(&format!("https://localhost:{port}"), &only(&authority.pem)).unwrap();
    let once = async |ask: LoadRequest| wire.open().await.unwrap().send(ask).await;
    let never = LoadRequest { timeout: Duration::from_millis(200), ..LoadRequest::get("/never") };
    assert_eq!(once(never).await, Err(RequestFailure::Timeout));
    assert!(matches!(once(LoadRequest::get("/cut")).await, Err(RequestFailure::Broken(_))));
    assert_eq!(once(LoadRequest::get("/endless")).await, Err(RequestFailure::TooLarge));
    let stranger = HttpWire::new(&format!("https://localhost:{port}"), &only(&self::authority().pem)).unwrap();
    assert!(matches!(stranger.open().await.err(), Some(RequestFailure::Tls(_))));
    let (_held, free) = refusing();
    let nobody = HttpWire::new(&format!("http://127.0.0.1:{free}"), &TrustRoots::public()).unwrap();
    assert!(matches!(nobody.open().await.err(), Some(RequestFailure::Connect(_))));
}

#[test]
fn invalid_load_addresses_are_refused() {
    for bad in ["", "localhost:8443", "ftp://x", "https://", "nonsense"] {
        assert!(matches!(HttpWire::new(bad, &TrustRoots::public()), Err(WireError::Address(_))), "{bad}");
    }
}
