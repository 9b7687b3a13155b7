//! TLS to backends: trusts certificates of the CA in a file.
//!
//! The file may be created after the gateway starts, and may change: a recreated site has a new CA. So it is checked
//! before each new connection and read again when it changed.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

use camino::Utf8Path;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use textnlp_net::trust::TrustRoots;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::config::BackendTls;

/// A bundle of every authority in the world is a few hundred kilobytes.
const MOST_FILE: u64 = 4 << 20;

/// See the module.
#[derive(Debug)]
pub struct Trust {
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

/// Detects a changed file without reading it.
type Stamp = (u64, u64, i64, i64);

impl Trust {
    /// Trust in the authority of a backend; its file need not exist yet.
    pub fn new(wanted: &BackendTls) -> Trust {
        Trust { wanted: wanted.clone(), read: Mutex::default() }
    }

    pub(super) fn is(&self, wanted: &BackendTls) -> bool {
        self.wanted == *wanted
    }

    /// Performs the TLS handshake. The error says why the server was rejected. The caller sets the timeout.
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
        let failed = |error: io::Error| io::Error::new(error.kind(), format!("read the authority {file}: {error}"));
        let found = std::fs::metadata(file).map_err(failed)?;
        let stamp = (found.ino(), found.len(), found.mtime(), found.mtime_nsec());
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = read.as_ref().filter(|known| known.stamp == stamp) {
            return Ok(known.connector.clone());
        }
        if found.len() > MOST_FILE {
            return Err(failed(io::Error::other(format!("it has {} bytes, more than {MOST_FILE}", found.len()))));
        }
        let connector = TlsConnector::from(Arc::new(config(&std::fs::read(file).map_err(failed)?, file)?));
        *read = Some(Read { stamp, connector: connector.clone() });
        Ok(connector)
    }
}

fn config(pem: &[u8], file: &Utf8Path) -> io::Result<ClientConfig> {
    let mut config = TrustRoots::only_pem(pem, file.as_str())?.client_config();
    // Requests are forwarded by HTTP/1.1, whatever the client speaks.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
