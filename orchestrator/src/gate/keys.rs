//! Temporary keys: lent for a gate, given back whatever happens.

use async_trait::async_trait;

use super::{Check, Found, Progress};
use crate::load::Key;

/// What a temporary key is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRequest {
    /// A name, so that a key that was left behind is recognised.
    pub name: String,
    /// Requests per hour; `None` for as many as the load test makes.
    pub requests_per_hour: Option<u64>,
}

/// A key that was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedKey {
    /// Its public id.
    pub public_id: String,
    /// The key.
    pub key: Key,
}

/// Who issues keys. Only the caller knows the server's database.
#[async_trait]
pub trait KeyIssuer: Send + Sync {
    /// Issues a key that the running service accepts when this returns.
    async fn create(&self, request: KeyRequest) -> Result<IssuedKey, String>;
    /// Revokes it. Revoking what is gone succeeds.
    async fn revoke(&self, public_id: &str) -> Result<(), String>;
}

/// The keys of one gate.
pub(super) struct Lent<'a> {
    issuer: &'a dyn KeyIssuer,
    given: Vec<String>,
}

impl<'a> Lent<'a> {
    pub(super) fn new(issuer: &'a dyn KeyIssuer) -> Self {
        Self { issuer, given: Vec::new() }
    }

    /// A key, or a check that says why there is none.
    pub(super) async fn key(
        &mut self,
        name: &str,
        requests_per_hour: Option<u64>,
        found: &mut Found,
        tell: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Option<Key> {
        match self.issuer.create(KeyRequest { name: name.to_owned(), requests_per_hour }).await {
            Ok(issued) => {
                self.given.push(issued.public_id);
                Some(issued.key)
            }
            Err(why) => {
                found.add(Check::unmeasured("temporary key", "issued", "", why), tell);
                None
            }
        }
    }

    /// Revokes every key; what could not be revoked is named.
    pub(super) async fn give_back(self) -> Result<(), Vec<String>> {
        let mut left = Vec::new();
        for id in self.given {
            if let Err(why) = self.issuer.revoke(&id).await {
                left.push(format!("{id}: {why}"));
            }
        }
        if left.is_empty() { Ok(()) } else { Err(left) }
    }
}
