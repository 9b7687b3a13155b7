//! The renewal order of a certificate: what a supervisor needs to issue it again.

use camino::Utf8PathBuf;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use textnlp_provider::{Secret, SecretRef};

use crate::files;
use crate::layout::SiteFolder;
use crate::trust;

/// The input of a certificate's renewal. Paths are relative to the site's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// DNS names and addresses.
    pub names: Vec<String>,
    /// The lifetime in days.
    pub days: u32,
    /// The certificate, PEM.
    pub certificate_file: String,
    /// Its private key, PEM.
    pub key_file: String,
    /// The authority's certificate, PEM.
    pub ca_file: String,
    /// The authority's private key in the secret store.
    pub authority_key: SecretRef,
}

/// The path of a site's renewal order.
pub fn renewal_order(folder: &SiteFolder) -> Utf8PathBuf {
    folder.join("certs/renewal.json")
}

/// Issues the certificate of an order for the existing key. Only one file changes, so a reader never sees a certificate
/// with another key.
pub fn reissue(folder: &SiteFolder, order: &Order, authority_key: &Secret, now: Timestamp) -> Result<(), String> {
    let read = |path: &str| {
        let path = folder.inside(path).map_err(|error| error.to_string())?;
        files::read_bounded(&path, files::TEXT_MAX).map_err(|error| format!("read {path}: {error}"))
    };
    let authority = String::from_utf8(read(&order.ca_file)?).map_err(|error| error.to_string())?;
    let key = Secret::new(read(&order.key_file)?);
    let pem =
        trust::issue(&authority, authority_key, &key, &order.names, order.days, now).map_err(|e| e.to_string())?;
    let path = folder.inside(&order.certificate_file).map_err(|error| error.to_string())?;
    files::put(&path, pem.as_bytes(), 0o644).map_err(|error| format!("write {path}: {error}"))
}
