//! Which certificate authorities a client trusts.

use std::fmt;
use std::io::{self, Read as _};
use std::sync::{Arc, OnceLock};

use camino::Utf8Path;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// The longest file of authorities that is read; a bundle of every public authority is a few hundred kilobytes.
const MAX_PEM: u64 = 16 << 20;

/// The authorities that a client trusts. Made once, cheap to clone.
#[derive(Clone)]
pub struct TrustRoots {
    store: Arc<RootCertStore>,
}

/// A file of authorities that cannot be used.
#[derive(Debug)]
pub struct TrustError {
    /// The file, or what the certificates came from.
    pub source_name: String,
    /// What is wrong with it.
    pub problem: TrustProblem,
}

/// What is wrong with a file of authorities.
#[derive(Debug)]
pub enum TrustProblem {
    /// It cannot be read.
    Read(io::Error),
    /// It is longer than any such file.
    TooLong,
    /// It is not PEM.
    NotPem(String),
    /// It holds no certificate.
    Empty,
    /// One of its certificates cannot be an authority.
    Unusable(String),
}

impl fmt::Display for TrustProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TrustProblem::Read(error) if error.kind() == io::ErrorKind::NotFound => {
                f.write_str("the file does not exist")
            }
            TrustProblem::Read(error) => write!(f, "{error}"),
            TrustProblem::TooLong => write!(f, "the file is longer than {} MiB", MAX_PEM >> 20),
            TrustProblem::NotPem(why) => write!(f, "the file is not PEM ({why})"),
            TrustProblem::Empty => f.write_str("the file contains no certificate"),
            TrustProblem::Unusable(why) => write!(f, "a certificate in the file cannot be used ({why})"),
        }
    }
}

impl fmt::Display for TrustError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "read certificate authorities from {}: {}", self.source_name, self.problem)
    }
}

impl std::error::Error for TrustError {}

impl From<TrustError> for io::Error {
    fn from(error: TrustError) -> Self {
        match error.problem {
            TrustProblem::Read(ref cause) => io::Error::new(cause.kind(), error),
            _ => io::Error::other(error),
        }
    }
}

impl fmt::Debug for TrustRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustRoots").field("authorities", &self.store.len()).finish()
    }
}

impl Default for TrustRoots {
    fn default() -> Self {
        Self::public()
    }
}

impl TrustRoots {
    /// The public authorities that ship with the program and those that this machine trusts (`SSL_CERT_FILE`, `SSL_CERT_DIR`, or where
    /// the distribution keeps them). They are read once in a process.
    pub fn public() -> Self {
        // On some machines reading them takes a tenth of a second.
        static PUBLIC: OnceLock<Arc<RootCertStore>> = OnceLock::new();
        let store = PUBLIC.get_or_init(|| {
            let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
            // A machine may have no store (scratch images), and single certificates in one may be unreadable.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            Arc::new(roots)
        });
        Self { store: store.clone() }
    }

    /// The public authorities, and those in this file if there is one.
    pub fn public_and(file: Option<&Utf8Path>) -> Result<Self, TrustError> {
        match file {
            Some(file) => Self::public().with_file(file),
            None => Ok(Self::public()),
        }
    }

    /// No authority: for connections that are not TLS.
    pub fn none() -> Self {
        Self { store: Arc::new(RootCertStore::empty()) }
    }

    /// The authorities in this file, and no others.
    pub fn only_file(file: &Utf8Path) -> Result<Self, TrustError> {
        Self::none().with_file(file)
    }

    /// The authorities in this PEM text, and no others. `name` says in errors where it came from.
    pub fn only_pem(pem: &[u8], name: &str) -> Result<Self, TrustError> {
        Self::none().with_pem(pem, name)
    }

    /// These authorities and those in a file.
    pub fn with_file(self, file: &Utf8Path) -> Result<Self, TrustError> {
        let fail = |problem| TrustError { source_name: file.to_string(), problem };
        self.with_pem(&read(file).map_err(fail)?, file.as_str())
    }

    /// These authorities and those in a PEM text.
    pub fn with_pem(mut self, pem: &[u8], name: &str) -> Result<Self, TrustError> {
        let fail = |problem| TrustError { source_name: name.to_owned(), problem };
        let roots = Arc::make_mut(&mut self.store);
        let mut is_empty = true;
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| fail(TrustProblem::NotPem(error.to_string())))?;
            roots.add(certificate).map_err(|error| fail(TrustProblem::Unusable(error.to_string())))?;
            is_empty = false;
        }
        if is_empty { Err(fail(TrustProblem::Empty)) } else { Ok(self) }
    }

    /// The authorities, for verifiers.
    pub fn store(&self) -> Arc<RootCertStore> {
        self.store.clone()
    }

    /// A TLS configuration of a client without a certificate of its own.
    pub fn client_config(&self) -> ClientConfig {
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider supports the default protocol versions")
            .with_root_certificates(self.store.clone())
            .with_no_client_auth()
    }
}

fn read(file: &Utf8Path) -> Result<Vec<u8>, TrustProblem> {
    let mut bytes = Vec::new();
    let open = std::fs::File::open(file).map_err(TrustProblem::Read)?;
    open.take(MAX_PEM + 1).read_to_end(&mut bytes).map_err(TrustProblem::Read)?;
    if bytes.len() as u64 > MAX_PEM { Err(TrustProblem::TooLong) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_ca_files_are_reported_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let says = |name: &str, content: &[u8]| {
            std::fs::write(folder.join(name), content).unwrap();
            let only = TrustRoots::only_file(&folder.join(name)).unwrap_err().to_string();
            assert_eq!(only, TrustRoots::public_and(Some(&folder.join(name))).unwrap_err().to_string());
            only
        };
        let framed = |inside: &str| format!("-----BEGIN CERTIFICATE-----\n{inside}\n-----END CERTIFICATE-----\n");
        assert!(says("empty.pem", b"").ends_with("empty.pem: the file contains no certificate"));
        assert!(says("text.pem", b"no certificate\n").ends_with("text.pem: the file contains no certificate"));
        assert!(says("base64.pem", framed("%%%").as_bytes()).contains("base64.pem: the file is not PEM ("));
        assert!(
            says("der.pem", framed("bm90aGluZw==").as_bytes())
                .contains("der.pem: a certificate in the file cannot be used (")
        );
        let long = vec![b'\n'; MAX_PEM as usize + 1];
        assert!(says("long.pem", &long).ends_with("long.pem: the file is longer than 16 MiB"));
        let gone = TrustRoots::only_file(&folder.join("gone.pem")).unwrap_err();
        assert!(gone.to_string().ends_with("gone.pem: the file does not exist"));
        assert_eq!(io::Error::from(gone).kind(), io::ErrorKind::NotFound);
        assert!(TrustRoots::only_file(folder).unwrap_err().to_string().contains(folder.as_str()));
    }

    #[test]
    fn ca_files_extend_or_replace_the_public_roots() {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let pem = made.cert.pem();
        let public = TrustRoots::public();
        assert!(public.store().len() >= webpki_roots::TLS_SERVER_ROOTS.len());
        assert!(Arc::ptr_eq(&public.store(), &TrustRoots::public().store()), "they are read once");
        assert_eq!(public.clone().with_pem(pem.as_bytes(), "x").unwrap().store().len(), public.store().len() + 1);
        assert_eq!(TrustRoots::only_pem(pem.as_bytes(), "x").unwrap().store().len(), 1);
        assert_eq!(TrustRoots::none().store().len(), 0);
    }
}
