//! Whom the gateway believes behind it: a backend that shows a certificate of the authority in a file.
//!
//! The file may come after the gateway has started, and may be another one later: a site that was lost comes back with an authority of
//! its own. So it is looked at before each new connection and read when it is not the one that was read.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::config::BackendTls;

/// A bundle of every authority in the world is a few hundred kilobytes.
const MOST_FILE: u64 = 4 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct Trust {
    wanted: BackendTls,
    read: Mutex<Option<Read>>,
}

#[derive(Clone)]
struct Read {
    stamp: Stamp,
    connector: TlsConnector,
}

impl std::fmt::Debug for Read {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Read").field("stamp", &self.stamp).finish_non_exhaustive()
    }
}

/// Tells versions of the file apart without reading them.
type Stamp = (u64, u64, i64, i64);

impl Trust {
    pub(crate) fn new(wanted: &BackendTls) -> Trust {
        Trust { wanted: wanted.clone(), read: Mutex::default() }
    }

    pub(super) fn is(&self, wanted: &BackendTls) -> bool {
        self.wanted == *wanted
    }

    /// Speaks TLS on a connection, or says why the other side is not who it should be. The caller bounds the time.
    pub(super) async fn secure<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let connector = self.connector()?;
        let name = ServerName::try_from(self.wanted.name.clone()).map_err(io::Error::other)?;
        connector.connect(name, stream).await
    }

    fn connector(&self) -> io::Result<TlsConnector> {
        let file = &self.wanted.ca_file;
        let told = |error: io::Error| io::Error::new(error.kind(), format!("read the authority {file}: {error}"));
        let found = std::fs::metadata(file).map_err(told)?;
        let stamp = (found.ino(), found.len(), found.mtime(), found.mtime_nsec());
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = read.as_ref().filter(|known| known.stamp == stamp) {
            return Ok(known.connector.clone());
        }
        if found.len() > MOST_FILE {
            return Err(told(io::Error::other(format!("it has {} bytes, more than {MOST_FILE}", found.len()))));
        }
        let connector = TlsConnector::from(Arc::new(config(&std::fs::read(file).map_err(told)?).map_err(told)?));
        *read = Some(Read { stamp, connector: connector.clone() });
        Ok(connector)
    }
}

fn config(pem: &[u8]) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(io::Error::other)?).map_err(io::Error::other)?;
    }
    if roots.is_empty() {
        return Err(io::Error::other("it holds no certificate"));
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // What is forwarded is HTTP/1.1, whatever the client speaks.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
