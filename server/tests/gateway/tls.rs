//! The gateway's TLS side.

use std::sync::Arc;

use bytes::Bytes;
use camino::Utf8Path;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::backend::Backend;
use crate::site::{SOON, Site, eventually};

/// Writes a certificate and its key, and gives the certificate.
pub(crate) fn certify(folder: &Utf8Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["site.example".to_owned()]).unwrap();
    // By renaming, as a careful renewal does.
    for (name, text) in [("key.pem", made.signing_key.serialize_pem()), ("cert.pem", made.cert.pem())] {
        std::fs::write(folder.join("new.pem"), text).unwrap();
        std::fs::rename(folder.join("new.pem"), folder.join(name)).unwrap();
    }
    made.cert.der().clone()
}

async fn site(backends: &[&Backend], folder: &Utf8Path) -> Site {
    Site::with(backends, &tls(folder)).await
}

pub(crate) fn tls(folder: &Utf8Path) -> String {
    format!("  tls: {{ certificate_file: {folder}/cert.pem, key_file: {folder}/key.pem }}\n")
}

async fn connect(
    site: &Site,
    trusted: &CertificateDer<'static>,
    protocol: &[u8],
) -> std::io::Result<TlsStream<TcpStream>> {
    secure(TcpStream::connect(site.address()).await?, trusted, protocol).await
}

pub(crate) async fn secure<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    trusted: &CertificateDer<'static>,
    protocol: &[u8],
) -> std::io::Result<TlsStream<S>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("site.example").unwrap(), stream).await
}

pub(crate) fn folder() -> (tempfile::TempDir, camino::Utf8PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = Utf8Path::from_path(folder.path()).unwrap().to_owned();
    (folder, path)
}

#[tokio::test]
async fn tls_gateway_speaks_http_1_and_http_2_and_forwards_https() {
    let (_folder, path) = folder();
    let trusted = certify(&path);
    let a = Backend::tcp("a").await;
    let site = site(&[&a], &path).await;

    let stream = connect(&site, &trusted, b"http/1.1").await.unwrap();
    let request = Request::get("/x").header("host", "site.example").body(Full::new(Bytes::new())).unwrap();
    assert_eq!(crate::site::exchange(stream, request).await.status(), 200);
    assert_eq!(a.state.last.lock().unwrap()["x-forwarded-proto"], "https");

    let stream = connect(&site, &trusted, b"h2").await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("https://site.example/two").header("cookie", "a=1").header("cookie", "b=2");
    let response = sender.send_request(request.body(Full::new(Bytes::from("hello"))).unwrap()).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "a POST /two 5");
    let seen = a.state.last.lock().unwrap().clone();
    assert_eq!((seen["host"].as_str(), seen["cookie"].as_str()), ("site.example", "a=1; b=2"));

    // Events pass one by one here, too, beside another request on the same connection.
    let request = Request::post("https://site.example/events").body(Full::new(Bytes::from("{}"))).unwrap();
    let mut events = sender.send_request(request).await.unwrap().into_body();
    for at in 0..3 {
        a.state.events.add(1);
        let frame = tokio::time::timeout(SOON, events.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), format!("data: {at}\n\n"));
        let request = Request::get("https://site.example/x").body(Full::new(Bytes::new())).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
    }
    // A reset stream is a client that leaves.
    let request = Request::post("https://site.example/events").body(Full::new(Bytes::from("{}"))).unwrap();
    drop(sender.send_request(request).await.unwrap());
    eventually(async || a.state.left.load(std::sync::atomic::Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn renewed_certificate_is_reloaded_and_a_broken_one_is_not() {
    let (_folder, path) = folder();
    let first = certify(&path);
    let a = Backend::tcp("a").await;
    let site = site(&[&a], &path).await;
    let mut old = connect(&site, &first, b"http/1.1").await.unwrap();

    let second = certify(&path);
    eventually(async || connect(&site, &second, b"http/1.1").await.is_ok()).await;
    assert!(connect(&site, &first, b"http/1.1").await.is_err());
    // Connections that were open stay open.
    old.write_all(b"GET /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    old.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");

    std::fs::write(path.join("cert.pem"), "no certificate").unwrap();
    let (status, answer) = site.admin("POST", "/reload", "").await;
    assert_eq!(status, 400);
    assert!(answer["error"]["message"].as_str().unwrap().contains("cert.pem"), "{answer}");
    connect(&site, &second, b"http/1.1").await.unwrap();

    // The right certificate beside another one's key.
    let key = std::fs::read(path.join("key.pem")).unwrap();
    let third = certify(&path);
    std::fs::write(path.join("key.pem"), key).unwrap();
    assert!(site.gateway.reload().await.unwrap_err().to_string().contains("does not match"));
    assert!(connect(&site, &third, b"http/1.1").await.is_err());

    let fourth = certify(&path);
    assert!(site.gateway.reload().await.is_ok());
    connect(&site, &fourth, b"http/1.1").await.unwrap();
}

#[tokio::test]
async fn certificate_expiry_and_failed_handshakes_are_in_the_metrics() {
    let (_folder, path) = folder();
    let trusted = certify(&path);
    let a = Backend::tcp("a").await;
    let site = site(&[&a], &path).await;
    let other = rcgen::generate_simple_self_signed(["site.example".to_owned()]).unwrap().cert.der().clone();
    assert!(connect(&site, &other, b"h2").await.is_err());
    connect(&site, &trusted, b"h2").await.unwrap();
    eventually(async || site.metrics().await.contains("textnlp_gateway_tls_handshake_errors_total 1\n")).await;
    let (_, status) = site.admin("GET", "/status", "").await;
    let not_after = status["certificate"]["not_after"].as_i64().unwrap();
    assert!(not_after > 1_700_000_000);
    let text = site.metrics().await;
    assert!(text.contains(&format!("textnlp_gateway_certificate_not_after_seconds {not_after}\n")), "{text}");
}

#[tokio::test]
async fn plain_http_on_the_tls_port_gets_an_explanation() {
    let (_folder, path) = folder();
    certify(&path);
    let a = Backend::tcp("a").await;
    let site = site(&[&a], &path).await;
    let mut client = TcpStream::connect(site.address()).await.unwrap();
    client.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut text = String::new();
    tokio::time::timeout(SOON, client.read_to_string(&mut text)).await.unwrap().unwrap();
    assert!(text.starts_with("HTTP/1.1 400") && text.contains("https_required"), "{text}");
}

#[tokio::test]
async fn gateway_without_a_usable_certificate_does_not_start() {
    let (_folder, path) = folder();
    let file = path.join("gateway.yaml");
    std::fs::write(&file, format!("gateway:\n  listen: \"127.0.0.1:0\"\n{}", tls(&path))).unwrap();
    let error = textnlp_gateway::start(&file).await.unwrap_err();
    assert!(error.to_string().contains("cert.pem") && error.hint().is_some(), "{error}");
}

/// What a connection answers to a request until it is closed.
async fn rest(mut stream: TlsStream<impl AsyncRead + AsyncWrite + Unpin>) -> Vec<u8> {
    let _ = stream.write_all(b"GET /ready HTTP/1.1\r\nhost: site.example\r\nconnection: close\r\n\r\n").await;
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await.unwrap();
    rest
}

#[tokio::test]
async fn public_certificate_is_for_its_names_and_challenges_of_its_authority_are_answered() {
    let (_folder, path) = folder();
    let local = certify(&path);
    let files = format!("certificate_file: {path}/cert.pem, key_file: {path}/key.pem");
    let public = format!("public: {{ file: {path}/public.pem, challenges: {path}/challenges }}");
    let a = Backend::tcp("a").await;
    let ready = format!("  ready_listen: \"unix:{path}/ready.sock\"\n");
    let site = Site::with(&[&a], &format!("  tls: {{ {files}, {public} }}\n{ready}")).await;
    // Key and certificate in one file, as a renewal writes them.
    let write = |file: &str, name: &str| {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        std::fs::write(path.join("new.pem"), made.signing_key.serialize_pem() + &made.cert.pem()).unwrap();
        std::fs::rename(path.join("new.pem"), path.join(file)).unwrap();
        made.cert.der().clone()
    };
    // Before the first order there is no such file, and no challenge.
    connect(&site, &local, b"http/1.1").await.unwrap();
    assert!(connect(&site, &local, b"acme-tls/1").await.is_err());

    std::fs::create_dir(path.join("challenges")).unwrap();
    let answer = write("challenges/site.example.pem", "site.example");
    let shaken = connect(&site, &answer, b"acme-tls/1").await.unwrap();
    assert_eq!(shaken.get_ref().1.alpn_protocol(), Some(&b"acme-tls/1"[..]));
    assert_eq!(rest(shaken).await, b"", "the handshake is the whole answer");
    let checks = UnixStream::connect(path.join("ready.sock")).await.unwrap();
    let shaken = secure(checks, &answer, b"acme-tls/1").await.unwrap();
    assert_eq!(rest(shaken).await, b"", "nor is a health check answered");
    // A real answer has a critical extension, which this client does not know: its error says that it was shown.
    let mut answer = rcgen::CertificateParams::new(vec!["site.example".to_owned()]).unwrap();
    answer.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(&[7; 32])];
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = answer.self_signed(&key).unwrap().pem();
    std::fs::write(path.join("challenges/site.example.pem"), key.serialize_pem() + &pem).unwrap();
    let refused = connect(&site, &local, b"acme-tls/1").await.unwrap_err().to_string();
    assert!(refused.contains("UnsupportedCriticalExtension"), "{refused}");
    connect(&site, &local, b"http/1.1").await.unwrap();

    write("public.pem", "other.example");
    assert!(site.gateway.reload().await.unwrap().certificate);
    connect(&site, &local, b"http/1.1").await.unwrap();
    let certified = write("public.pem", "site.example");
    eventually(async || connect(&site, &certified, b"h2").await.is_ok()).await;
    let (_, status) = site.admin("GET", "/status", "").await;
    assert!(status["certificate"]["public"]["not_after"].as_i64().is_some(), "{status}");

    // A damaged one is not used, and neither stops a gateway that runs nor one that starts.
    std::fs::write(path.join("public.pem"), "nothing").unwrap();
    assert!(site.gateway.reload().await.unwrap_err().to_string().contains("public.pem"));
    connect(&site, &certified, b"http/1.1").await.unwrap();
    let other = Site::with(&[&a], &format!("  tls: {{ {files}, {public} }}\n")).await;
    connect(&other, &local, b"http/1.1").await.unwrap();
}
