//! The AUTH strings of caches. Google generates them, so they are read from Google when they are used, and stored nowhere.

use std::sync::Arc;

use async_trait::async_trait;
use textnlp_provider::{Error, ErrorKind, Result, Secret, SecretName, SecretRef, SecretStore, SecretVersion};

use crate::kinds::redis::AUTH_STRING;
use crate::provider::Gcp;

/// A store of secrets which also has the AUTH strings of a project.
pub struct Logins {
    cloud: Arc<Gcp>,
    others: Arc<dyn SecretStore>,
}

impl Logins {
    /// A store with the secrets of `others`, and the AUTH strings that `cloud` reads.
    pub fn new(cloud: Arc<Gcp>, others: Arc<dyn SecretStore>) -> Self {
        Self { cloud, others }
    }
}

#[async_trait]
impl SecretStore for Logins {
    async fn put(&self, name: &SecretName, version: &SecretVersion, value: &Secret) -> Result<()> {
        if name.0.starts_with(AUTH_STRING) {
            return Err(Error::new(ErrorKind::Invalid, "store", name.0.clone()).because("Google generates it"));
        }
        self.others.put(name, version, value).await
    }

    async fn get(&self, secret: &SecretRef) -> Result<Secret> {
        match secret.name.0.strip_prefix(AUTH_STRING) {
            Some(id) => self.cloud.auth_string(id).await,
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
