//! Values of secrets for their final consumer, and the store of calls that use none.

use std::sync::Arc;

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

/// A cloud that generates secrets. Each is read from it when it is used, and stored nowhere. A cloud has the last version only: the one
/// of a reference says whether what uses the secret is written again, and not which one is read. What was written with a newer one has
/// an older reference, and where the version follows the secret the next plan writes it once more.
#[async_trait]
pub trait GeneratesSecrets: Send + Sync + 'static {
    /// The start of their names; the id of the object follows.
    const START: &'static str;

    /// The secret of an object.
    async fn generated(&self, id: &str) -> Result<Secret>;
}

/// A store of secrets that also has those that a cloud generates.
pub struct WithGenerated<G> {
    cloud: Arc<G>,
    others: Arc<dyn SecretStore>,
}

impl<G> WithGenerated<G> {
    /// The secrets of a store, and those of a cloud.
    pub fn new(cloud: Arc<G>, others: Arc<dyn SecretStore>) -> Self {
        Self { cloud, others }
    }
}

#[async_trait]
impl<G: GeneratesSecrets> SecretStore for WithGenerated<G> {
    async fn put(&self, name: &SecretName, version: &SecretVersion, value: &Secret) -> Result<()> {
        if name.0.starts_with(G::START) {
            let error = Error::new(ErrorKind::Invalid, "store secret", name.0.clone());
            return Err(error.because("the cloud generates it"));
        }
        self.others.put(name, version, value).await
    }

    async fn get(&self, secret: &SecretRef) -> Result<Secret> {
        match secret.name.0.strip_prefix(G::START) {
            Some(id) => self.cloud.generated(id).await,
            None => self.others.get(secret).await,
        }
    }

    async fn versions(&self, name: &SecretName) -> Result<Vec<SecretVersion>> {
        self.others.versions(name).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<SecretName>> {
        self.others.list(prefix).await
    }

    async fn delete(&self, name: &SecretName) -> Result<()> {
        self.others.delete(name).await
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
