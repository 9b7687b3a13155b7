//! Temporary API keys of a gate, revoked in every case.

use async_trait::async_trait;

use super::{Check, GateResults, Progress};
use crate::load::Key;

/// The properties of a temporary key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRequest {
    /// Its name, so that a leftover key can be identified.
    pub name: String,
    /// Requests per hour; `None` for a limit that no load test reaches.
    pub requests_per_hour: Option<u64>,
    /// The tenant that it belongs to; `None` for the default one.
    pub tenant: Option<String>,
}

/// A key that was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedKey {
    /// Its public id.
    pub public_id: String,
    /// The key.
    pub key: Key,
}

/// Issues API keys. Only the caller knows the server's database.
#[async_trait]
pub trait KeyIssuer: Send + Sync {
    /// Issues a key; the running service accepts it on return.
    async fn create(&self, request: KeyRequest) -> Result<IssuedKey, String>;
    /// Revokes a key. Idempotent.
    async fn revoke(&self, public_id: &str) -> Result<(), String>;
    /// Removes a tenant without a valid key, with its keys. Idempotent. Returns why it stays where it should be removed.
    async fn remove_tenant(&self, tenant: &str) -> Result<Option<String>, String>;
}

/// The keys of one gate.
pub(super) struct TemporaryKeys<'a> {
    issuer: &'a dyn KeyIssuer,
    key_ids: Vec<String>,
    tenants: Vec<String>,
}

impl<'a> TemporaryKeys<'a> {
    pub(super) fn new(issuer: &'a dyn KeyIssuer) -> Self {
        Self { issuer, key_ids: Vec::new(), tenants: Vec::new() }
    }

    /// A key, or a failed check with the reason.
    pub(super) async fn key(
        &mut self,
        name: &str,
        requests_per_hour: Option<u64>,
        found: &mut GateResults,
        report: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Option<Key> {
        let request = KeyRequest { name: name.to_owned(), requests_per_hour, tenant: None };
        self.issue(request, found, report).await.map(|issued| issued.key)
    }

    /// A key with these properties, or a failed check with the reason.
    pub(super) async fn issue(
        &mut self,
        request: KeyRequest,
        found: &mut GateResults,
        report: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Option<IssuedKey> {
        let another = request.tenant.clone().filter(|tenant| !self.tenants.contains(tenant));
        self.tenants.extend(another);
        self.issue_to_operators_tenant(request, found, report).await
    }

    /// The same for a tenant of the operator, which stays.
    pub(super) async fn issue_to_operators_tenant(
        &mut self,
        request: KeyRequest,
        found: &mut GateResults,
        report: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Option<IssuedKey> {
        match self.issuer.create(request).await {
            Ok(issued) => {
                self.key_ids.push(issued.public_id.clone());
                Some(issued)
            }
            Err(why) => {
                found.add(Check::unmeasured("temporary key", "issued", "", why), report);
                None
            }
        }
    }

    /// Revokes every key and removes the tenants. Returns a check about those that are left: a tenant without a key of
    /// this gate is only a warning.
    pub(super) async fn give_back(self) -> Option<Check> {
        let (mut left, mut stay) = (Vec::new(), Vec::new());
        for id in self.key_ids {
            if let Err(why) = self.issuer.revoke(&id).await {
                left.push(format!("{id}: {why}"));
            }
        }
        for tenant in self.tenants {
            match self.issuer.remove_tenant(&tenant).await {
                Ok(why) => stay.extend(why.map(|why| format!("tenant {tenant} stays: {why}"))),
                Err(why) => left.push(format!("tenant {tenant}: {why}")),
            }
        }
        let check = Check::new("temporary keys revoked", left.len(), 0, "left", left.is_empty());
        let check = Check { warning: left.is_empty(), ..check };
        left.append(&mut stay);
        (!left.is_empty()).then(|| check.note(left.join("; ")))
    }
}
