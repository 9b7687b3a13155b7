//! What `kubectl logs` asks a node for, over TLS as a kubelet serves it.

use std::net::Ipv4Addr;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Where a container's log is.
pub(super) fn file(folder: &Utf8Path, namespace: &str, pod: &str, container: &str) -> Utf8PathBuf {
    folder.join("logs").join(namespace).join(pod).join(format!("{container}.log"))
}

/// Lends logs until the runtime ends; answers with the port.
pub(super) async fn lend(folder: Utf8PathBuf, certificate: &str, key: &str) -> u16 {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate of ours");
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key of ours");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("TLS as it comes").with_no_client_auth().with_single_cert(vec![certificate], key);
    let acceptor = TlsAcceptor::from(Arc::new(config.expect("the key belongs to the certificate")));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("ask for a port");
    let port = listener.local_addr().expect("ask for a port").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, folder) = (acceptor.clone(), folder.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                let _ = stream.read_line(&mut line).await;
                let mut header = String::new();
                while stream.read_line(&mut header).await.is_ok_and(|read| read > 2) {
                    header.clear();
                }
                let (status, text) = answer(&folder, &line);
                let head = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    text.len()
                );
                let _ = stream.get_mut().write_all(head.as_bytes()).await;
                let _ = stream.get_mut().write_all(text.as_bytes()).await;
                let _ = stream.get_mut().shutdown().await;
            });
        }
    });
    port
}

/// `GET /containerLogs/NAMESPACE/POD/CONTAINER?tailLines=N HTTP/1.1`. The log of a container that ended stays until it is started again.
fn answer(folder: &Utf8Path, request: &str) -> (&'static str, String) {
    let target = request.split_whitespace().nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let ["", "containerLogs", namespace, pod, container] = path.split('/').collect::<Vec<_>>()[..] else {
        return ("404 Not Found", String::new());
    };
    let Ok(text) = std::fs::read_to_string(file(folder, namespace, pod, container)) else {
        return ("404 Not Found", String::new());
    };
    let last = query.split('&').find_map(|pair| pair.strip_prefix("tailLines=")?.parse::<usize>().ok());
    let lines: Vec<&str> = text.lines().collect();
    let shown = &lines[lines.len().saturating_sub(last.unwrap_or(usize::MAX))..];
    ("200 OK", shown.join("\n"))
}
