//! Mutual TLS on the links between machines: each end presents a certificate of the sites' common CA. The connecting
//! end also verifies the name.

use std::io::{self, Read as _};
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::Deserialize;
use textnlp_net::trust::TrustRoots;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::Stream;

/// Maximum size of a certificate or key file, in bytes.
const MOST_FILE: u64 = 256 << 10;

/// This end's identity and trusted CA. The files are read for each connection, so renewed ones need no restart.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// This site's certificate with its chain.
    pub certificate_file: Utf8PathBuf,
    /// Its private key; only its owner may read the file.
    pub key_file: Utf8PathBuf,
    /// The CA that certifies sites of this environment, and nothing else.
    pub ca_file: Utf8PathBuf,
    /// The expected name in the other end's certificate; for the connecting end.
    #[serde(default)]
    pub name: Option<String>,
}

impl Tls {
    /// The problem with the settings, if any, for the connecting or the listening end.
    pub(super) fn problem(&self, connects: bool) -> Option<String> {
        let files = [&self.certificate_file, &self.key_file, &self.ca_file];
        let name = self.name.as_deref();
        match (connects, name) {
            (true, None) => Some("the connecting end needs the `name` that it expects".to_owned()),
            (false, Some(_)) => Some("only the connecting end may have a `name`".to_owned()),
            (true, Some(name)) if ServerName::try_from(name).is_err() => Some(format!("`{name}` is not a valid name")),
            _ => {
                files.into_iter().find(|file| !file.is_absolute()).map(|file| format!("{file} is not an absolute path"))
            }
        }
    }

    /// Performs the server side of the handshake. The error says why the client was rejected.
    pub(super) async fn accept(&self, stream: Stream) -> io::Result<Stream> {
        let config = tokio::task::block_in_place(|| self.server())?;
        Ok(Box::new(TlsAcceptor::from(Arc::new(config)).accept(stream).await?))
    }

    /// Performs the client side of the handshake. The error says why the server was rejected.
    pub(super) async fn connect(&self, stream: Stream) -> io::Result<Stream> {
        let name = ServerName::try_from(self.name.clone().unwrap_or_default()).map_err(io::Error::other)?;
        let config = tokio::task::block_in_place(|| self.client())?;
        Ok(Box::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await?))
    }

    fn server(&self) -> io::Result<ServerConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider.clone());
        let verifier = verifier.build().map_err(io::Error::other)?;
        let (chain, key) = self.identity()?;
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(io::Error::other)
    }

    fn client(&self) -> io::Result<ClientConfig> {
        let (chain, key) = self.identity()?;
        ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(chain, key)
            .map_err(io::Error::other)
    }

    fn roots(&self) -> io::Result<Arc<RootCertStore>> {
        Ok(TrustRoots::only_file(&self.ca_file)?.store())
    }

    fn identity(&self) -> io::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        identity(&self.certificate_file, &self.key_file)
    }
}

/// Reads a certificate chain and its private key.
pub fn identity(
    certificate_file: &Utf8Path,
    key_file: &Utf8Path,
) -> io::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_slice_iter(&read(certificate_file)?).collect::<Result<_, _>>();
    let key = PrivateKeyDer::from_pem_slice(&read(key_file)?);
    Ok((chain.map_err(io::Error::other)?, key.map_err(io::Error::other)?))
}

fn read(file: &Utf8Path) -> io::Result<Vec<u8>> {
    let failed = |error: io::Error| io::Error::new(error.kind(), format!("read {file}: {error}"));
    let mut bytes = Vec::new();
    std::fs::File::open(file).and_then(|open| open.take(MOST_FILE).read_to_end(&mut bytes)).map_err(failed)?;
    Ok(bytes)
}
