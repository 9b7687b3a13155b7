//! The certificate that clients see: read from files, looked at again when they change.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use camino::Utf8Path;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::Digest;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::config::Tls;
use super::{Error, Gateway};

/// How often the files are looked at. Renewal replaces them long before they expire.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Certificate {
    acceptor: TlsAcceptor,
    current: Arc<Current>,
}

#[derive(Debug)]
struct Current(RwLock<LoadedCertificate>);

#[derive(Debug)]
struct LoadedCertificate {
    files: Tls,
    stamp: Stamp,
    key: Arc<CertifiedKey>,
    shown: Shown,
}

/// The certificate in the status.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(super) struct Shown {
    /// SHA-256 of the leaf.
    pub(super) sha256: String,
    pub(super) subject: String,
    /// Unix time.
    pub(super) not_after: i64,
}

/// Detects changed files without reading them.
type Stamp = [(u64, u64, i64, i64); 2];

impl Certificate {
    pub(super) fn load(files: &Tls) -> Result<Certificate, Error> {
        let current = Arc::new(Current(RwLock::new(read(files)?)));
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Certificate { path: files.certificate_file.clone(), why: error.to_string() })?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Certificate { acceptor: TlsAcceptor::from(Arc::new(config)), current })
    }

    pub(super) fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }

    pub(super) fn shown(&self) -> Shown {
        self.current.0.read().unwrap_or_else(PoisonError::into_inner).shown.clone()
    }

    /// Reads the files again. True: the certificate is another one. On an error the old one stays.
    pub(super) fn reload(&self, files: &Tls) -> Result<bool, Error> {
        let new = read(files)?;
        let mut current = self.current.0.write().unwrap_or_else(PoisonError::into_inner);
        let changed = current.shown != new.shown;
        *current = new;
        Ok(changed)
    }

    /// The files, if they changed since they were read.
    fn changed_files(&self) -> Option<(Tls, Stamp)> {
        let current = self.current.0.read().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(&current.files).ok()?;
        (stamp != current.stamp).then(|| (current.files.clone(), stamp))
    }
}

/// Reloads changed files automatically, for renewals.
pub(super) async fn watch(gateway: Arc<Gateway>) {
    let Some(certificate) = &gateway.certificate else { return };
    let mut refused = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(POLL_INTERVAL) => {}
            () = gateway.stops.leave.cancelled() => return,
        }
        let Some((files, stamp)) = certificate.changed_files() else { continue };
        // Certificate and key are two files: between the two writes they do not match, and the next poll succeeds.
        match certificate.reload(&files) {
            Ok(_) => {
                tracing::info!(not_after = certificate.shown().not_after, "the certificate was renewed");
                refused = None;
            }
            Err(error) if refused != Some(stamp) => {
                tracing::error!(%error, "the new certificate was rejected; the old one stays in use");
                gateway.metrics.certificate_refused();
                refused = Some(stamp);
            }
            Err(_) => {}
        }
    }
}

fn stamp(files: &Tls) -> std::io::Result<Stamp> {
    let of = |path: &Utf8Path| std::fs::metadata(path).map(|m| (m.ino(), m.len(), m.mtime(), m.mtime_nsec()));
    Ok([of(&files.certificate_file)?, of(&files.key_file)?])
}

fn read(files: &Tls) -> Result<LoadedCertificate, Error> {
    let no = |path: &Utf8Path, why: String| Error::Certificate { path: path.to_owned(), why };
    // Taken before reading, so that a concurrent change is noticed by the next poll.
    let stamp = stamp(files).map_err(|error| no(&files.certificate_file, error.to_string()))?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.certificate_file)
        .and_then(Iterator::collect)
        .map_err(|error| no(&files.certificate_file, error.to_string()))?;
    let Some(leaf) = chain.first() else {
        return Err(no(&files.certificate_file, "it contains no certificate".to_owned()));
    };
    let shown = {
        let (_, parsed) =
            X509Certificate::from_der(leaf).map_err(|error| no(&files.certificate_file, error.to_string()))?;
        Shown {
            sha256: hex::encode(sha2::Sha256::digest(leaf)),
            subject: parsed.subject().to_string(),
            not_after: parsed.validity().not_after.timestamp(),
        }
    };
    let key = PrivateKeyDer::from_pem_file(&files.key_file).map_err(|error| no(&files.key_file, error.to_string()))?;
    let key = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .map_err(|error| no(&files.key_file, format!("it does not match the certificate ({error})")))?;
    Ok(LoadedCertificate { files: files.clone(), stamp, key: Arc::new(key), shown })
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).key.clone())
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Certificate").field(&self.shown()).finish()
    }
}
