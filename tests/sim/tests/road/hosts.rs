//! The hosts of clouds by TLS: a proxy that leads connections to them to simulators, and the authority of their certificate. The program
//! gives no token to a store on this machine, so that only this way its tokens reach a simulator.

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// The hosts of Cloud Storage, and of tokens of users.
pub(crate) const GOOGLE: &[&str] = &["storage.googleapis.com", "accounts.google.com"];
/// Those of storage accounts, and of Microsoft Entra.
pub(crate) const AZURE: &[&str] = &["*.blob.core.windows.net", "login.microsoftonline.com"];

/// Names of hosts, and the address of the simulator that answers for them.
type Rows = Vec<(&'static [&'static str], String)>;

/// A proxy, until it is dropped.
pub(crate) struct Hosts {
    _runtime: Runtime,
    proxy: String,
    authority: Utf8PathBuf,
    _folder: TempDir,
}

impl Hosts {
    /// Each row has names and the URL of their simulator.
    pub(crate) fn start(rows: &[(&'static [&'static str], String)]) -> Self {
        let names: Vec<String> =
            rows.iter().flat_map(|(names, _)| names.iter().map(|name| (*name).to_owned())).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let authority = Utf8Path::from_path(folder.path()).unwrap().join("authority.pem");
        std::fs::write(&authority, made.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let address = |url: &String| url.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let rows: Arc<Rows> = Arc::new(rows.iter().map(|(names, url)| (*names, address(url))).collect());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let proxy = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(lead(stream, acceptor.clone(), rows.clone()));
            }
        });
        Self { _runtime: runtime, proxy, authority, _folder: folder }
    }

    /// The variables of a program that takes this way.
    pub(crate) fn variables(&self) -> [(&'static str, String); 2] {
        [("HTTPS_PROXY", self.proxy.clone()), ("TEXTNLP_CA_FILE", self.authority.to_string())]
    }
}

/// Leads one connection to the simulator of its host. Another host has no address.
async fn lead(mut stream: TcpStream, acceptor: TlsAcceptor, rows: Arc<Rows>) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let host = head.strip_prefix("CONNECT ")?.split(':').next()?;
    let is_of = |name: &str| name.strip_prefix('*').map_or(name == host, |end| host.ends_with(end));
    let Some((_, address)) = rows.iter().find(|(names, _)| names.iter().any(|name| is_of(name))) else {
        stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await.ok()?;
        return None;
    };
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
    let mut stream = acceptor.accept(stream).await.ok()?;
    let mut simulator = TcpStream::connect(address).await.ok()?;
    copy_bidirectional(&mut stream, &mut simulator).await.ok()?;
    Some(())
}
