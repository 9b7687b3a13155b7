//! The specs of these kinds. Paths are relative to the site's folder, so that moving the state folder changes nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use textnlp_provider::component::{ExternalSecret, SecretRecipe};
use textnlp_provider::{SecretName, SecretRef};

/// `onprem.directory`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DirectorySpec {
    pub(crate) folders: Vec<String>,
    #[serde(default)]
    pub(crate) tags: BTreeMap<String, String>,
}

/// `onprem.secret`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretSpec {
    /// Its name in the secret store.
    pub name: SecretName,
    /// How it is generated; `None` for a user-provided one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<SecretRecipe>,
    /// The source of a user-provided secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<ExternalSecret>,
    /// Whether all sites share it: the first site that needs it creates it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared: bool,
}

/// `onprem.authority`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthoritySpec {
    /// The common name of the certificate.
    pub subject: String,
    /// The lifetime of the certificate in days.
    pub days: u32,
    /// The only names that it may certify. Empty in records of earlier versions: any name.
    #[serde(default)]
    pub names: Vec<String>,
    /// The certificate, PEM. After a rotation, the replaced one follows it for a while.
    pub certificate_file: String,
    /// The private key in the secret store.
    pub key: SecretName,
}

/// `onprem.certificate`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CertificateSpec {
    pub(crate) names: Vec<String>,
    pub(crate) days: u32,
    pub(crate) certificate_file: String,
    pub(crate) key_file: String,
    pub(crate) ca_file: String,
    /// The authority's fingerprint: a new authority means a new certificate.
    pub(crate) authority: String,
    pub(crate) authority_key: SecretRef,
    /// The secret with a copy of certificate and key, `NAME-certificate` and `NAME-key`. Set where another cluster
    /// serves with them and no supervisor renews them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kept: Option<SecretName>,
}
