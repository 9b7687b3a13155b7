//! HTTPS behind a front proxy. A client may present a certificate, and the handler learns whether it is
//! the proxy's. This module has the sockets, the certificates and the limits; the handler has the content.
//!
//! A client certificate of another CA ends the handshake. No certificate is allowed, because probes have none; the
//! handler rejects other requests.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use textnlp_net::listen::{Limits, Listener, Stream};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use x509_parser::prelude::{FromDer, X509Certificate};

use textnlp_sites::relay::identity;

/// Maximum connections; a proxy keeps a few.
const MAX_CONNECTIONS: usize = 128;
/// From the first byte to the end of the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout for a request's headers, also on an idle connection.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(120);
/// The same for other clients: probes send at once, and unauthenticated clients must not hold connections.
const UNAUTHENTICATED_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest head of a request.
const MOST_HEAD: usize = 64 << 10;
/// Grace period for open requests at shutdown.
const GRACE_PERIOD: Duration = Duration::from_secs(5);

/// The CA and names that identify the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Front {
    /// The authorities that certify it, PEM.
    pub authorities: String,
    /// Its common names; none means any.
    pub names: Vec<String>,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// `/path?query` of a GET.
    pub target: String,
    /// Whether the client is the proxy.
    pub is_front: bool,
}

/// The handler: returns the status and a JSON document.
pub type Answering = Arc<dyn Fn(Question) -> BoxFuture<'static, (u16, Vec<u8>)> + Send + Sync>;

/// A server of this kind that runs.
pub struct Fronted {
    address: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Fronted {
    /// Listens and serves. The certificate files are read for each connection, so renewed ones need no restart. The
    /// same applies to `front`; without a value no client is the proxy.
    pub async fn start(
        listen: SocketAddr,
        certificate_file: Utf8PathBuf,
        key_file: Utf8PathBuf,
        front: watch::Receiver<Option<Front>>,
        answering: Answering,
    ) -> io::Result<Self> {
        // Report invalid files now rather than on the first request.
        config(&certificate_file, &key_file, None)?;
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (stopped, tracked) = (stop.clone(), tasks.clone());
        tasks.spawn(async move {
            let handle = |stream| {
                let mut front = front.clone();
                let known = front.borrow_and_update().clone();
                let config = config(&certificate_file, &key_file, known.as_ref());
                let (answering, stopped) = (answering.clone(), stopped.clone());
                // Connections classified by the old configuration are closed.
                let over = async move {
                    tokio::select! {
                        Ok(()) = front.changed() => {}
                        () = stopped.cancelled() => {}
                    }
                };
                async move {
                    match config {
                        Ok(config) => connection(stream, config, known, answering, over).await,
                        Err(error) => tracing::warn!(%error, "the certificate cannot be loaded"),
                    }
                }
            };
            let limits = Limits { name: "metrics API", max_connections: MAX_CONNECTIONS };
            Listener::Tcp(listener).serve(limits, &stopped, &tracked, handle).await;
        });
        Ok(Self { address, stop, tasks })
    }

    /// The listening address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no new connections, waits for open requests, and ends.
    pub async fn leave(self) {
        self.stop.cancel();
        self.tasks.close();
        let _ = timeout(GRACE_PERIOD, self.tasks.wait()).await;
    }
}

fn config(certificate_file: &Utf8Path, key_file: &Utf8Path, front: Option<&Front>) -> io::Result<Arc<ServerConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let config = match front {
        None => config.with_no_client_auth(),
        Some(front) => {
            let mut roots = RootCertStore::empty();
            let listed: Vec<_> = CertificateDer::pem_slice_iter(front.authorities.as_bytes()).flatten().collect();
            // An unparsable certificate does not invalidate the others.
            if roots.add_parsable_certificates(listed).0 == 0 {
                return Err(io::Error::other("none of the adapter's CA certificates can be read"));
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            config.with_client_cert_verifier(verifier.allow_unauthenticated().build().map_err(io::Error::other)?)
        }
    };
    let (chain, key) = identity(certificate_file, key_file)?;
    let mut config = config.with_single_cert(chain, key).map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

async fn connection(
    stream: Stream,
    config: Arc<ServerConfig>,
    front: Option<Front>,
    answering: Answering,
    over: impl Future<Output = ()>,
) {
    let shaken = timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await;
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a handshake failed"),
        Err(_) => return,
    };
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    // That its authority is the front's has been seen to by the handshake.
    let is_front = shown.zip(front).is_some_and(|(leaf, front)| is_named(leaf, &front.names));
    let service = service_fn(move |request: Request<Incoming>| {
        let answering = answering.clone();
        async move { Ok::<_, Infallible>(answer(request, is_front, &answering).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(if is_front { HEADERS_TIMEOUT } else { UNAUTHENTICATED_TIMEOUT })
        .keep_alive(is_front)
        .max_buf_size(MOST_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = over => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %crate::error::chain(&error), "a connection was interrupted");
    }
}

/// Whether a certificate has one of these common names.
fn is_named(certificate: &[u8], names: &[String]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    let mut common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    names.is_empty() || common.any(|name| names.iter().any(|known| known == name))
}

async fn answer(request: Request<Incoming>, is_front: bool, answering: &Answering) -> Response<Full<Bytes>> {
    if request.method() != Method::GET {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET"));
        return response;
    }
    let target = request.uri().path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    let (status, body) = answering(Question { target, is_front }).await;
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use rustls::ClientConfig;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;

    struct Authority(CertificateParams, KeyPair);

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Self(params, KeyPair::generate().unwrap())
        }

        fn pem(&self) -> String {
            self.0.self_signed(&self.1).unwrap().pem()
        }

        /// Certificate and key of a name.
        fn certifies(&self, name: &str) -> (String, String) {
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate().unwrap();
            let issuer = Issuer::from_params(&self.0, &self.1);
            (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
        }
    }

    /// The answer to a GET, by whoever shows this certificate.
    async fn get(address: SocketAddr, believes: &str, shows: Option<&(String, String)>) -> io::Result<String> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(believes.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let config = match shows {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("adapter.here.svc").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        stream.write_all(b"GET /a?b=c HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn only_a_named_certificate_of_the_proxy_ca_identifies_the_proxy() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let (own, front, other) = (Authority::new(), Authority::new(), Authority::new());
        let (certificate, key) = own.certifies("adapter.here.svc");
        let files = [("tls.crt", certificate), ("tls.key", key)].map(|(name, text)| {
            std::fs::write(folder.join(name), text).unwrap();
            folder.join(name)
        });
        let answering: Answering = Arc::new(|question: Question| {
            async move { (200, format!("{} {}", question.target, question.is_front).into_bytes()) }.boxed()
        });
        let (known, updates) = watch::channel(None);
        let listen = ([127, 0, 0, 1], 0).into();
        let [certificate, key] = files;
        let gone = Fronted::start(listen, folder.join("none"), key.clone(), updates.clone(), answering.clone()).await;
        assert!(gone.is_err(), "what cannot be shown is said at once");
        let served = Fronted::start(listen, certificate, key, updates, answering).await.unwrap();
        let believes = own.pem();
        let fetch = async |shows: Option<&(String, String)>| get(served.address(), &believes, shows).await;
        let proxy_certificate = front.certifies("front");
        // Before anybody knows the front, nobody is.
        assert!(fetch(Some(&proxy_certificate)).await.unwrap().ends_with("/a?b=c false"));
        known.send_replace(Some(Front { authorities: front.pem(), names: vec!["front".to_owned()] }));
        assert!(fetch(Some(&proxy_certificate)).await.unwrap().ends_with("/a?b=c true"));
        assert!(fetch(None).await.unwrap().ends_with("/a?b=c false"));
        assert!(fetch(Some(&front.certifies("another"))).await.unwrap().ends_with("/a?b=c false"));
        assert!(fetch(Some(&other.certifies("front"))).await.is_err(), "its authority is nobody's here");
        // With no names, the authority certifies nobody else.
        known.send_replace(Some(Front { authorities: front.pem(), names: Vec::new() }));
        assert!(fetch(Some(&front.certifies("another"))).await.unwrap().ends_with("/a?b=c true"));
        // Another authority takes its place, also for whoever is connected.
        known.send_replace(Some(Front { authorities: other.pem(), names: Vec::new() }));
        assert!(fetch(Some(&proxy_certificate)).await.is_err());
        // One that nobody can read keeps everybody out, and the server goes on.
        known.send_replace(Some(Front { authorities: "nonsense".to_owned(), names: Vec::new() }));
        assert!(fetch(Some(&proxy_certificate)).await.is_err());
        known.send_replace(Some(Front { authorities: front.pem(), names: Vec::new() }));
        assert!(fetch(Some(&proxy_certificate)).await.unwrap().ends_with("/a?b=c true"));
        served.leave().await;
    }
}
