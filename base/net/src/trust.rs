//! Which certificate authorities a client trusts.

use std::fmt;
use std::io::{self, Read as _};
use std::sync::{Arc, OnceLock};

use camino::Utf8Path;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// The longest file of authorities that is read; a bundle of every public authority is a few hundred kilobytes.
const MAX_PEM: u64 = 16 << 20;

/// The authorities that a client trusts. Built once; cloning is cheap.
#[derive(Clone)]
pub struct TrustRoots {
    store: Arc<RootCertStore>,
    /// Those for [hosts of public clouds](CLOUDS), if others than these.
    of_clouds: Option<Arc<RootCertStore>>,
}

/// Domains of public clouds and hubs, which get tokens of the caller. Their certificates have public authorities: the authority of an
/// environment file, together with the proxy of that file, would let its author read the tokens.
const CLOUDS: [&str; 15] = [
    "amazonaws.com",
    "amazonaws.com.cn",
    "amazonaws.eu",
    "api.aws",
    "azure.cn",
    "azure.com",
    "azure.net",
    "chinacloudapi.cn",
    "google.com",
    "googleapis.com",
    "huggingface.co",
    "microsoftonline.com",
    "microsoftonline.us",
    "usgovcloudapi.net",
    "windows.net",
];

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
    /// The file is too large.
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
        Self { store: store.clone(), of_clouds: None }
    }

    /// The public authorities, and those in this file if there is one: not for public clouds, unless it is the file of the caller that
    /// `TEXTNLP_CA_FILE` names.
    pub fn public_and(file: Option<&Utf8Path>) -> Result<Self, TrustError> {
        let public = Self::public();
        let Some(file) = file else { return Ok(public) };
        let own = std::env::var("TEXTNLP_CA_FILE").ok().filter(|own| !own.is_empty());
        let of_clouds = match own {
            Some(own) if own == file.as_str() => None,
            Some(own) => Some(public.clone().with_file(Utf8Path::new(&own))?.store),
            None => Some(public.store.clone()),
        };
        Ok(Self { of_clouds, ..public.with_file(file)? })
    }

    /// No authority: for connections that are not TLS.
    pub fn none() -> Self {
        Self { store: Arc::new(RootCertStore::empty()), of_clouds: None }
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
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("the provider supports the default protocol versions");
        let Some(of_clouds) = &self.of_clouds else {
            return builder.with_root_certificates(self.store.clone()).with_no_client_auth();
        };
        let verifier = |roots: &Arc<RootCertStore>| {
            let builder = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone());
            builder.build().expect("both hold the public authorities")
        };
        let by_host = ByHost { of_clouds: verifier(of_clouds), others: verifier(&self.store) };
        builder.dangerous().with_custom_certificate_verifier(Arc::new(by_host)).with_no_client_auth()
    }

    /// The configuration for a server with authorities of its own, and a certificate without its address: any certificate of the
    /// authorities in this file is accepted, and no other.
    pub fn config_of_one_server(file: &Utf8Path) -> Result<ClientConfig, TrustError> {
        let roots = Self::only_file(file)?.store;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = AnyName { roots, algorithms: provider.signature_verification_algorithms };
        Ok(ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider supports the default protocol versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth())
    }
}

/// Verifies that an authority signed a certificate, whatever name it is for.
#[derive(Debug)]
struct AnyName {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Verifies as rustls does, with the authorities for the host.
#[derive(Debug)]
struct ByHost {
    of_clouds: Arc<WebPkiServerVerifier>,
    others: Arc<WebPkiServerVerifier>,
}

impl ByHost {
    fn of(&self, host: &ServerName<'_>) -> &WebPkiServerVerifier {
        let is_cloud = match host {
            ServerName::DnsName(name) => {
                let name = name.as_ref().trim_end_matches('.').to_ascii_lowercase();
                let is_below = |domain: &&str| {
                    name.strip_suffix(*domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                };
                CLOUDS.iter().any(is_below)
            }
            _ => false,
        };
        if is_cloud { &self.of_clouds } else { &self.others }
    }
}

impl ServerCertVerifier for ByHost {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.of(server_name).verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.others.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.others.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.others.supported_verify_schemes()
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

    #[test]
    fn authority_of_an_environment_does_not_vouch_for_public_clouds() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let made = authority.self_signed(&key).unwrap();
        let issuer = rcgen::Issuer::new(authority, key);
        let folder = tempfile::tempdir().unwrap();
        let file = Utf8Path::from_path(folder.path()).unwrap().join("ca.pem");
        std::fs::write(&file, made.pem()).unwrap();
        let hosts = [
            "storage.googleapis.com",
            "GOOGLEAPIS.com",
            "sts.eu-west-1.amazonaws.com",
            "gitlab.example.com",
            "notgoogleapis.com",
        ];
        let params = rcgen::CertificateParams::new(hosts.map(str::to_owned).to_vec()).unwrap();
        let leaf = params.signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer).unwrap();
        let verifier = |trust: &TrustRoots| {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let verifier = |roots: &Arc<RootCertStore>| {
                WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build().unwrap()
            };
            let of_clouds = verifier(trust.of_clouds.as_ref().unwrap_or(&trust.store));
            ByHost { of_clouds, others: verifier(&trust.store) }
        };
        let accepted = |trust: &TrustRoots| {
            let verifier = verifier(trust);
            hosts.map(|host| {
                let name = ServerName::try_from(host).unwrap();
                verifier.verify_server_cert(leaf.der(), &[], &name, &[], UnixTime::now()).is_ok()
            })
        };
        assert_eq!(accepted(&TrustRoots::public_and(Some(&file)).unwrap()), [false, false, false, true, true]);
        assert_eq!(accepted(&TrustRoots::only_file(&file).unwrap()), [true; 5]);
    }

    #[test]
    fn authority_of_one_server_vouches_for_it_under_any_name_and_for_no_other() {
        let authority = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let pem = params.self_signed(&key).unwrap().pem();
            (pem, rcgen::Issuer::new(params, key))
        };
        let ((pem, issuer), (_, other)) = (authority(), authority());
        let roots = TrustRoots::only_pem(pem.as_bytes(), "x").unwrap().store();
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        let verifier = AnyName { roots, algorithms };
        let address = ServerName::try_from("10.0.0.3").unwrap();
        for (issuer, is_accepted) in [(&issuer, true), (&other, false)] {
            let params = rcgen::CertificateParams::new(vec!["redis".to_owned()]).unwrap();
            let leaf = params.signed_by(&rcgen::KeyPair::generate().unwrap(), issuer).unwrap();
            let verified = verifier.verify_server_cert(leaf.der(), &[], &address, &[], UnixTime::now());
            assert_eq!(verified.is_ok(), is_accepted, "{verified:?}");
        }
    }
}
