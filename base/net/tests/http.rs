//! Clients against servers on this machine: credentials on redirects, proxies, bodies that are too long or cut, and trust.
#![cfg(feature = "client")]
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, Url};
use rustls::pki_types::PrivateKeyDer;
use textnlp_net::client::{
    BodyError, ClientOptions, MAX_REDIRECTS, ProxySettings, RequestError, Routes, build, follow, is_loopback,
    read_body, same_host, transient,
};
use textnlp_net::trust::TrustRoots;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

type Heard = Arc<Mutex<Vec<String>>>;

/// Answers each request by its head, and keeps the heads in lower case.
async fn server(answer: impl Fn(&str) -> String + Send + 'static) -> (Url, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let heard = Heard::default();
    let hears = heard.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let head = head(&mut stream).await;
            let answer = answer(&head);
            hears.lock().unwrap().push(head);
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (url, heard)
}

async fn head(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {}
    String::from_utf8(head).unwrap().to_lowercase()
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn moved(to: &Url) -> String {
    answer("302 Found", &format!("Location: {to}\r\n"), "")
}

fn client(options: ClientOptions) -> Client {
    options.client().unwrap()
}

#[tokio::test]
async fn credentials_are_sent_to_their_host_and_not_to_a_redirect_target() {
    let (storage, at_storage) = server(|_| answer("200 OK", "", "content")).await;
    let to = storage.join("blob?signature=x").unwrap();
    let (hub, at_hub) = server(move |head| match head.starts_with("get /here ") {
        true => moved(&to),
        false => answer("302 Found", "Location: /here\r\nX-Size: 7\r\n", ""),
    })
    .await;
    let of_hub = hub.clone();
    let authorization = |at: &Url| (at.origin() == of_hub.origin()).then(|| HeaderValue::from_static("Bearer hunter2"));
    let client = client(ClientOptions::default());
    let followed = follow(&client.into(), &hub, &HeaderMap::new(), authorization, is_loopback).await.unwrap();
    assert_eq!((followed.first_headers["x-size"].to_str().unwrap(), followed.url.path()), ("7", "/blob"));
    assert_eq!(read_body(followed.response, 7).await.unwrap(), b"content");
    let heads = |heard: &Heard| heard.lock().unwrap().clone();
    assert!(
        heads(&at_hub).len() == 2 && heads(&at_hub).iter().all(|head| head.contains("authorization: bearer hunter2"))
    );
    assert!(heads(&at_storage).len() == 1 && !heads(&at_storage)[0].contains("hunter2"), "{:?}", heads(&at_storage));
}

#[tokio::test]
async fn credentials_take_the_route_of_their_owner() {
    let (of_file, at_file) = server(|_| answer("200 OK", "", "blob")).await;
    let (of_owner, at_owner) = server(|_| answer("302 Found", "Location: http://storage.invalid/blob\r\n", "")).await;
    let by = |proxy: &Url| {
        let proxy = ProxySettings { http: Some(proxy.to_string()), ..ProxySettings::default() };
        client(ClientOptions { proxy, ..ClientOptions::default() })
    };
    let routes = Routes { authorized: by(&of_owner), others: by(&of_file) };
    let hub: Url = "http://hub.invalid/model".parse().unwrap();
    let authorization =
        |at: &Url| (at.host_str() == Some("hub.invalid")).then(|| HeaderValue::from_static("Bearer hunter2"));
    let followed = follow(&routes, &hub, &HeaderMap::new(), authorization, |_| true).await.unwrap();
    assert_eq!(read_body(followed.response, 9).await.unwrap(), b"blob");
    assert!(at_owner.lock().unwrap()[0].contains("authorization: bearer hunter2"));
    let heads = at_file.lock().unwrap().clone();
    assert!(heads.len() == 1 && !heads[0].contains("hunter2"), "{heads:?}");
}

#[tokio::test]
async fn redirects_without_tls_and_redirect_loops_are_refused() {
    let client = client(ClientOptions::default()).into();
    let refused = async |url: &Url| match follow(&client, url, &HeaderMap::new(), |_| None, is_loopback).await {
        Err(RequestError::Redirect { url, reason }) => format!("{url} {reason}"),
        other => panic!("{other:?}"),
    };
    let (away, _) = server(|_| moved(&"http://example.com/".parse().unwrap())).await;
    assert!(refused(&away).await.ends_with("/ a redirect to a URL that is not encrypted"));
    let (round, heard) = server(|_| answer("307 Again", "Location: /round?token=x\r\n", "")).await;
    let says = refused(&round).await;
    assert!(says.ends_with(&format!("more than {MAX_REDIRECTS} redirects")) && !says.contains("token"), "{says}");
    assert_eq!(heard.lock().unwrap().len(), MAX_REDIRECTS + 1);
}

#[tokio::test]
async fn same_host_client_does_not_follow_redirects_to_other_hosts() {
    let client = build(ClientOptions::default().builder().unwrap().redirect(same_host())).unwrap();
    let (other, at_other) = server(|_| answer("200 OK", "", "there")).await;
    // Another name of this machine is another host.
    let away = Url::parse(&format!("http://localhost:{}/", other.port().unwrap())).unwrap();
    let (service, _) = server(move |head| match head.split(' ').nth(1) {
        Some("/away") => moved(&away),
        Some("/here") => answer("200 OK", "", "here"),
        _ => answer("308 Moved", "Location: /here\r\n", ""),
    })
    .await;
    let get = async |path: &str| client.get(service.join(path).unwrap()).bearer_auth("hunter2").send().await.unwrap();
    assert_eq!(get("/").await.text().await.unwrap(), "here");
    assert_eq!(get("/away").await.status(), 302);
    assert!(at_other.lock().unwrap().is_empty());
}

#[tokio::test]
async fn oversized_and_truncated_bodies_are_errors() {
    let client = client(ClientOptions::default());
    let (url, _) = server(|head| match head.starts_with("get /cut ") {
        true => "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nnot all".to_owned(),
        false => answer("200 OK", "", &"x".repeat(100_000)),
    })
    .await;
    let get = async |path: &str, max| read_body(client.get(url.join(path).unwrap()).send().await.unwrap(), max).await;
    assert_eq!(get("/", 100_000).await.unwrap().len(), 100_000);
    assert_eq!(get("/", 99_999).await.unwrap_err().to_string(), "the answer is longer than 99999 bytes");
    assert!(matches!(get("/cut", 9).await, Err(BodyError::Cut(_))));
}

#[tokio::test]
async fn throttling_is_recognised_with_retry_after() {
    let client = client(ClientOptions::default());
    let (url, _) = server(|_| answer("429 Too Many Requests", "Retry-After: 7\r\n", "")).await;
    let failure = transient(&client.get(url).send().await.unwrap()).unwrap();
    assert!(failure.is_throttled && failure.retry_after.unwrap().as_secs() == 7);
    let (url, _) = server(|_| answer("404 Not Found", "Retry-After: 7\r\n", "")).await;
    assert_eq!(transient(&client.get(url).send().await.unwrap()), None);
    // Nothing listens there.
    let gone: Url = "http://127.0.0.1:1/?token=hunter2".parse().unwrap();
    let error = follow(&client.into(), &gone, &HeaderMap::new(), |_| None, |_| true).await;
    let Err(RequestError::Transient(failure)) = error else { panic!() };
    assert!(
        failure.reason.to_lowercase().contains("connection refused") && !failure.reason.contains("hunter2"),
        "{failure:?}"
    );
}

#[tokio::test]
async fn proxies_are_used_except_for_no_proxy_hosts() {
    let (proxy, at_proxy) = server(|_| answer("200 OK", "", "by the proxy")).await;
    let (direct, _) = server(|_| answer("200 OK", "", "directly")).await;
    let settings = ProxySettings {
        http: Some(proxy.as_str().replace("http://", "http://ada:hunter2@")),
        https: Some(proxy.to_string()),
        no_proxy: Some("example.com".to_owned()),
    };
    let client = client(ClientOptions { proxy: settings, ..ClientOptions::default() });
    let get = async |url: &str| client.get(url).send().await.unwrap().text().await.unwrap();
    assert_eq!(get("http://service.invalid/x").await, "by the proxy");
    assert_eq!(get(direct.as_str()).await, "directly");
    // Nothing listens there, and the proxy is not asked either.
    for local in ["http://localhost:1/", "http://[::1]:1/"] {
        assert!(client.get(local).send().await.is_err(), "{local}");
    }
    let head = at_proxy.lock().unwrap()[0].clone();
    assert!(
        head.starts_with("get http://service.invalid/x ") && head.contains("proxy-authorization: basic "),
        "{head}"
    );
    // The answer is none to a CONNECT of TLS, and the question was one.
    assert!(client.get("https://service.invalid/").send().await.is_err());
    assert!(at_proxy.lock().unwrap()[1].starts_with("connect service.invalid:443 "));
}

#[tokio::test]
async fn private_ca_is_trusted_only_when_configured() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let (acceptor, listener) = (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let url =
        Url::parse(&format!("https://localhost:{}/?token=hunter2", listener.local_addr().unwrap().port())).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            head(&mut stream).await;
            let _ = stream.write_all(answer("200 OK", "", "trusted").as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    let get = async |trust: TrustRoots| {
        let client = client(ClientOptions { trust, ..ClientOptions::default() });
        follow(&client.into(), &url, &HeaderMap::new(), |_| None, |_| false).await
    };
    let folder = tempfile::tempdir().unwrap();
    let file = camino::Utf8Path::from_path(folder.path()).unwrap().join("ca.pem");
    std::fs::write(&file, made.cert.pem()).unwrap();
    for trust in [TrustRoots::only_file(&file).unwrap(), TrustRoots::public_and(Some(&file)).unwrap()] {
        assert_eq!(read_body(get(trust).await.unwrap().response, 100).await.unwrap(), b"trusted");
    }
    for trust in [TrustRoots::public(), TrustRoots::none()] {
        let error = get(trust).await.unwrap_err();
        assert!(matches!(&error, RequestError::Untrusted { url, .. } if url.ends_with("/")), "{error:?}");
    }
}
