//! The certificate that clients see: read from files, looked at again when they change.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use sha2::Digest;
use tokio_rustls::TlsAcceptor;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::config::Tls;
use super::{Error, Gateway};

/// How often the files are looked at. Renewal replaces them long before they expire.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The protocol with which an authority validates a name: <https://www.rfc-editor.org/rfc/rfc8737#section-3>.
pub(super) const CHALLENGE_PROTOCOL: &[u8] = b"acme-tls/1";

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
    public: Option<PublicCertificate>,
    shown: Shown,
}

/// The certificate of a public authority, with the DNS names in it.
#[derive(Debug)]
struct PublicCertificate {
    key: Arc<CertifiedKey>,
    names: Vec<String>,
}

/// The certificate in the status.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(super) struct Shown {
    /// SHA-256 of the leaf.
    pub(super) sha256: String,
    pub(super) subject: String,
    /// Unix time.
    pub(super) not_after: i64,
    /// The one of a public authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) public: Option<Box<Shown>>,
}

impl Shown {
    /// When the first of them expires.
    pub(super) fn ends(&self) -> i64 {
        self.public.as_ref().map_or(self.not_after, |public| public.not_after.min(self.not_after))
    }
}

/// Detects changed files without reading them. Zeros where there is no file of a public authority.
type Stamp = [(u64, u64, i64, i64); 3];

impl Certificate {
    pub(super) fn load(files: &Tls) -> Result<Certificate, Error> {
        let loaded = match read(files) {
            // The file of a public authority must not keep clients away that do not need it.
            Err(error) if files.public.is_some() => {
                tracing::error!(%error, "the public certificate is not used");
                let local = read(&Tls { public: None, ..files.clone() });
                local.map(|local| LoadedCertificate { files: files.clone(), ..local })
            }
            loaded => loaded,
        };
        let current = Arc::new(Current(RwLock::new(loaded?)));
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Certificate { path: files.certificate_file.clone(), why: error.to_string() })?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), CHALLENGE_PROTOCOL.to_vec()];
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
                tracing::info!(not_after = certificate.shown().ends(), "the certificate was renewed");
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
    let public = match files.public.as_ref().map(|public| of(&public.file)) {
        Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => None,
        public => public.transpose()?,
    };
    Ok([of(&files.certificate_file)?, of(&files.key_file)?, public.unwrap_or_default()])
}

fn refused(path: &Utf8Path, why: String) -> Error {
    Error::Certificate { path: path.to_owned(), why }
}

fn read(files: &Tls) -> Result<LoadedCertificate, Error> {
    // Taken before reading, so that a concurrent change is noticed by the next poll.
    let stamp = stamp(files).map_err(|error| refused(&files.certificate_file, error.to_string()))?;
    let (key, _, mut shown) = read_pair(&files.certificate_file, &files.key_file)?;
    let mut public = None;
    if let Some(file) = files.public.as_ref().map(|public| &public.file)
        && stamp[2] != Default::default()
    {
        let (key, names, public_shown) = read_pair(file, file)?;
        shown.public = Some(Box::new(public_shown));
        public = Some(PublicCertificate { key, names });
    }
    Ok(LoadedCertificate { files: files.clone(), stamp, key, public, shown })
}

/// A certificate with its key, the DNS names in it, and what the status shows of it.
fn read_pair(
    certificate_file: &Utf8Path,
    key_file: &Utf8Path,
) -> Result<(Arc<CertifiedKey>, Vec<String>, Shown), Error> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate_file)
        .and_then(Iterator::collect)
        .map_err(|error| refused(certificate_file, error.to_string()))?;
    let Some(leaf) = chain.first() else {
        return Err(refused(certificate_file, "it contains no certificate".to_owned()));
    };
    let (names, shown) = {
        let (_, parsed) =
            X509Certificate::from_der(leaf).map_err(|error| refused(certificate_file, error.to_string()))?;
        let extension = parsed.subject_alternative_name().ok().flatten();
        let all = extension.iter().flat_map(|extension| &extension.value.general_names);
        let names = all.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        let shown = Shown {
            sha256: hex::encode(sha2::Sha256::digest(leaf)),
            subject: parsed.subject().to_string(),
            not_after: parsed.validity().not_after.timestamp(),
            public: None,
        };
        (names.collect(), shown)
    };
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| refused(key_file, error.to_string()))?;
    let key = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .map_err(|error| refused(key_file, format!("it does not match the certificate ({error})")))?;
    Ok((Arc::new(key), names, shown))
}

/// The certificate that answers a challenge. `CertifiedKey::from_der` refuses its critical extension.
fn read_challenge(file: &Utf8Path) -> Option<Arc<CertifiedKey>> {
    let chain: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let chain = chain.ok().filter(|chain| !chain.is_empty())?;
    let key = PrivateKeyDer::from_pem_file(file).ok()?;
    let key = aws_lc_rs::default_provider().key_provider.load_private_key(key).ok()?;
    Some(Arc::new(CertifiedKey::new(chain, key)))
}

impl Current {
    /// The folder of answers to challenges.
    fn challenges(&self) -> Option<Utf8PathBuf> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        current.files.public.as_ref().map(|public| public.challenges.clone())
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        // An authority offers this protocol alone. The answer is a small file that is there for seconds.
        if hello.alpn().is_some_and(|mut offered| offered.all(|one| one == CHALLENGE_PROTOCOL)) {
            let file = self.challenges()?.join(format!("{}.pem", name.filter(|name| !name.contains('/'))?));
            return read_challenge(&file);
        }
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let public = current.public.as_ref().filter(|public| name.is_some_and(|name| public.names.contains(&name)));
        Some(public.map_or(&current.key, |public| &public.key).clone())
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Certificate").field(&self.shown()).finish()
    }
}
