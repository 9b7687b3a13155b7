//! The secret store of calls that use no secrets.

use async_trait::async_trait;
use textnlp_provider::{Error, ErrorKind, Result, Secret, SecretName, SecretRef, SecretStore, SecretVersion};

/// A store without secrets: that of a sign-in.
pub struct NoSecrets;

#[async_trait]
impl SecretStore for NoSecrets {
    async fn put(&self, name: &SecretName, _version: &SecretVersion, _value: &Secret) -> Result<()> {
        Err(none(name))
    }

    async fn get(&self, secret: &SecretRef) -> Result<Secret> {
        Err(none(&secret.name))
    }

    async fn versions(&self, _name: &SecretName) -> Result<Vec<SecretVersion>> {
        Ok(Vec::new())
    }

    async fn list(&self, _prefix: &str) -> Result<Vec<SecretName>> {
        Ok(Vec::new())
    }

    async fn delete(&self, _name: &SecretName) -> Result<()> {
        Ok(())
    }
}

fn none(name: &SecretName) -> Error {
    Error::new(ErrorKind::NotFound, "use secret", name.0.clone())
}
