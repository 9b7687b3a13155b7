//! Secrets: types that cannot print, and the durable store of their values.
//!
//! Specs, outputs, plans, journals and logs contain a [`SecretRef`]. Only a provider that is about to use a value reads
//! the [`SecretStore`].

use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::error::Result;

/// A secret value. It has no `Display`, prints as `***`, and its memory is wiped on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Wraps bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// The bytes, for their final consumer.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The value as text, when it is UTF-8.
    pub fn expose_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The name of a secret within one store, such as `here/api-key`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretName(pub String);

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One version of a secret. A version shows a change without revealing the value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretVersion(pub String);

impl fmt::Display for SecretVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The reference to a secret in specs and outputs: `{"$secret": NAME, "version": V}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretRef {
    /// The name.
    #[serde(rename = "$secret")]
    pub name: SecretName,
    /// The version.
    pub version: SecretVersion,
}

impl SecretRef {
    /// Reads the JSON form.
    pub fn from_value(value: &Value) -> Option<Self> {
        value.get("$secret")?;
        serde_json::from_value(value.clone()).ok()
    }
}

/// A durable store of secrets: a 0600 file, a cloud's secret manager, a Kubernetes Secret.
///
/// `put` is durable when it returns. A version, once put, never changes its value.
#[async_trait]
pub trait SecretStore: Send + Sync {
    /// Stores a value under `(name, version)`. Repeating it with the same value succeeds; with another value it is a Conflict.
    async fn put(&self, name: &SecretName, version: &SecretVersion, value: &Secret) -> Result<()>;
    /// Reads one version; NotFound when it is not there.
    async fn get(&self, secret: &SecretRef) -> Result<Secret>;
    /// The versions of a secret, oldest first.
    async fn versions(&self, name: &SecretName) -> Result<Vec<SecretVersion>>;
    /// All names with a prefix.
    async fn list(&self, prefix: &str) -> Result<Vec<SecretName>>;
    /// Deletes all versions of a name. Deleting a missing one succeeds.
    async fn delete(&self, name: &SecretName) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_redacted_in_debug_output() {
        assert_eq!(format!("{:?}", Some(Secret::new("hunter2"))), "Some(***)");
    }
}
