//! Values of secrets for their final consumer, and the store of calls that use none.

use async_trait::async_trait;
use serde_json::Value;
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

/// A value as a request has it: that of the secret, if it is a reference to one.
///
/// # Errors
/// The secret is missing, or it is not a text.
pub async fn secret(store: &dyn SecretStore, value: &Value) -> Result<Value> {
    let Some(reference) = SecretRef::from_value(value) else { return Ok(value.clone()) };
    match store.get(&reference).await?.expose_text() {
        Some(text) => Ok(text.into()),
        None => Err(Error::new(ErrorKind::Invalid, "use secret", reference.name.0).because("it is not a text")),
    }
}

fn none(name: &SecretName) -> Error {
    Error::new(ErrorKind::NotFound, "use secret", name.0.clone())
}
