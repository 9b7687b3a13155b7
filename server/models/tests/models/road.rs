//! The way to the hub: TLS with a private CA, proxies, and what must not pass.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::standin::{RepoFile, Standin, noise};
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_models::{Error, FetchOptions, Limits, Model, ProxySettings, Source, Store, Token, verify};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// The stand-in behind TLS with a certificate that no public CA has signed.
struct Private {
    standin: Standin,
    port: u16,
    ca_file: Utf8PathBuf,
    folder: tempfile::TempDir,
}

impl Private {
    async fn start() -> Private {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "hub.example".to_owned()]).unwrap();
        let ca_file = Utf8Path::from_path(folder.path()).unwrap().join("ca.pem");
        std::fs::write(&ca_file, made.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));

        let standin = Standin::start().await;
        let small = |name, content: &[u8]| RepoFile { name, content: content.to_vec(), large: false };
        let files = [
            small("config.json", b"{}"),
            small("tokenizer.json", b"{}"),
            small("model.safetensors", &noise(50_000, 1)),
        ];
        standin.publish("org/name", &files);
        let behind = standin.hub.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, behind) = (acceptor.clone(), behind.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut behind = TcpStream::connect(behind).await.unwrap();
                    let _ = copy_bidirectional(&mut stream, &mut behind).await;
                });
            }
        });
        Private { standin, port, ca_file, folder }
    }

    async fn fetch(&self, options: FetchOptions) -> Result<Model, Error> {
        let store = Store::open(Utf8Path::from_path(self.folder.path()).unwrap().join("store")).unwrap();
        let limits = Limits { pause: Duration::from_millis(1), attempts: 2, ..Limits::default() };
        store.fetch(&"hf:org/name".parse::<Source>().unwrap(), &FetchOptions { limits, ..options }, &|_| {}).await
    }

    fn options(&self, host: &str) -> FetchOptions {
        FetchOptions {
            endpoint: format!("https://{host}:{}", self.port),
            ca_file: Some(self.ca_file.clone()),
            ..FetchOptions::default()
        }
    }
}

/// A proxy that notes what it was asked for, and takes every name for this machine.
async fn proxy(asked: Arc<Mutex<Vec<String>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://user:word@{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let asked = asked.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let head = String::from_utf8(head).unwrap();
                asked.lock().unwrap().push(head.clone());
                let port = head.split(' ').nth(1).unwrap().rsplit(':').next().unwrap().to_owned();
                let mut behind = TcpStream::connect(format!("127.0.0.1:{port}")).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await.unwrap();
                let _ = copy_bidirectional(&mut stream, &mut behind).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn private_hub_ca_is_trusted_only_when_configured() {
    let private = Private::start().await;
    let error = private.fetch(FetchOptions { ca_file: None, ..private.options("localhost") }).await.unwrap_err();
    assert!(error.to_string().contains("invalid peer certificate"), "{error}");
    assert!(error.hint().unwrap().contains("TEXTNLP_CA_FILE"));
    let model = private.fetch(private.options("localhost")).await.unwrap();
    verify(&model.dir).unwrap();
}

#[tokio::test]
async fn invalid_ca_file_is_reported() {
    let private = Private::start().await;
    let check = async |path: Utf8PathBuf, expect: &str| {
        let error =
            private.fetch(FetchOptions { ca_file: Some(path), ..private.options("localhost") }).await.unwrap_err();
        assert!(error.to_string().contains(expect), "{error}");
    };
    check(private.ca_file.with_file_name("nowhere.pem"), "nowhere.pem: the file does not exist").await;
    let path = private.ca_file.with_file_name("empty.pem");
    std::fs::write(&path, "no certificate").unwrap();
    check(path, "the file contains no certificate").await;
}

#[tokio::test]
async fn proxy_is_used_with_its_password_except_for_no_proxy_hosts() {
    let private = Private::start().await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let address = proxy(asked.clone()).await;
    let settings = ProxySettings { https: Some(address.clone()), ..ProxySettings::default() };
    // The name resolves nowhere: only the proxy can know it.
    let options = FetchOptions { proxy: settings.clone(), ..private.options("hub.example") };
    verify(&private.fetch(options).await.unwrap().dir).unwrap();
    let head = asked.lock().unwrap()[0].to_ascii_lowercase();
    assert!(head.starts_with(&format!("connect hub.example:{} ", private.port)), "{head}");
    assert!(head.contains("proxy-authorization: basic dxnlcjp3b3jk"), "{head}");

    let private = Private::start().await;
    asked.lock().unwrap().clear();
    // This machine needs no `no_proxy`.
    private.fetch(FetchOptions { proxy: settings, ..private.options("localhost") }).await.unwrap();
    assert!(asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn token_does_not_take_the_route_of_an_environment_file() {
    let private = Private::start().await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let settings = ProxySettings { https: Some(proxy(asked.clone()).await), ..ProxySettings::default() };
    let by_owner = Arc::new(Mutex::new(Vec::new()));
    let of_owner = ProxySettings { https: Some(proxy(by_owner.clone()).await), ..ProxySettings::default() };
    let own = FetchOptions { ca_file: None, proxy: of_owner, ..private.options("hub.example") };
    let named = own.by_file(settings, Some(private.ca_file.clone()));
    // Without a token the hub is reached as the file says.
    verify(&private.fetch(named.clone()).await.unwrap().dir).unwrap();
    assert!(!asked.lock().unwrap().is_empty() && by_owner.lock().unwrap().is_empty());
    let private = Private::start().await;
    asked.lock().unwrap().clear();
    let token = Some(Token::new("hf_secret"));
    private
        .fetch(FetchOptions { endpoint: private.options("hub.example").endpoint, token, ..named })
        .await
        .unwrap_err();
    assert!(asked.lock().unwrap().is_empty() && !by_owner.lock().unwrap().is_empty());
}

#[tokio::test]
async fn unreachable_proxy_is_an_error_without_its_password() {
    let private = Private::start().await;
    let settings = ProxySettings { https: Some("http://user:word@127.0.0.1:1".to_owned()), ..ProxySettings::default() };
    let error = private.fetch(FetchOptions { proxy: settings, ..private.options("hub.example") }).await.unwrap_err();
    let text = format!("{error} {error:?} {}", error.hint().unwrap());
    assert!(text.contains("HTTPS_PROXY") && !text.contains("word"), "{text}");
}

#[tokio::test]
async fn unencrypted_hub_is_accepted_only_on_this_machine() {
    let private = Private::start().await;
    let plain = FetchOptions { endpoint: private.standin.hub.clone(), ..FetchOptions::default() };
    let far = FetchOptions { endpoint: "http://mirror.example".to_owned(), ..FetchOptions::default() };
    let error = private.fetch(far).await.unwrap_err();
    assert!(error.to_string().contains("HF_ENDPOINT: it must be `https://…`"), "{error}");
    private.fetch(plain).await.unwrap();
}
