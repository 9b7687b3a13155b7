//! Tenant isolation of statements.
//!
//! A PostgreSQL session starts without a tenant and sees no rows: row-level security compares each row with
//! `textnlp.tenant`, which only a transaction of this file sets, and only until it ends. Transactions of a tenant also
//! lose the rights of the login role, see [`roles`](super::roles). SQLite has no row-level security. There, and as a
//! second check in PostgreSQL, [`OF_TENANT`] restricts each statement of a request to its tenant.
//!
//! `allowances`, `token_budgets`, `tenants`, `verifiers`, `feature_flags` and `schema_version` have no rows of tenants
//! and need no scope.

use std::sync::atomic::Ordering;

use sqlx::any::AnyArguments;
use sqlx::query::Query;
use sqlx::{Any, Transaction};

use super::dialect::Haste;
use super::{Store, StoreError};

/// Work with access to the rows of all tenants. Everything else sees one tenant, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Job {
    /// Looks up a key or a ticket, whose row determines the tenant.
    Credential,
    /// The operator's `key` commands manage the keys of all tenants; a key may move from one tenant to another.
    Keys,
    /// One batch of the usage writer holds requests of many tenants.
    UsageWriter,
    /// Keys and usage are replicated completely.
    Replication,
    /// A backup counts its rows.
    Backup,
    /// Retention deletes old rows of all tenants.
    Retention,
    /// The audit log also holds events of no tenant, and the operator exports all of it.
    Audit,
    /// A change of a feature flag records its event, which belongs to no tenant.
    Features,
    /// Reports sum up what all tenants used.
    Report,
    /// Analytics compares what all tenants used with earlier hours.
    Analytics,
    /// The queue of batches has requests of all tenants, and the row of a claimed one determines the tenant.
    Batches,
    /// The queue of events for webhooks is written when batches end, and read by every server.
    Webhooks,
}

/// The condition that holds a statement to the rows of one tenant, which is its first parameter. [`TenantStore::query`] refuses statements
/// without it.
const OF_TENANT: &str = "tenant_id = $1";

/// The store as one tenant's requests see it.
#[derive(Debug, Clone, Copy)]
pub struct TenantStore<'s> {
    pub(super) store: &'s Store,
    pub(super) tenant: &'s str,
}

impl Store {
    /// Access to the rows of one tenant.
    pub fn tenant<'s>(&'s self, tenant: &'s str) -> TenantStore<'s> {
        TenantStore { store: self, tenant }
    }

    /// A transaction that reads the rows of all tenants.
    pub(super) async fn read_all(&self, job: Job) -> Result<Transaction<'static, Any>, StoreError> {
        tracing::trace!(?job, "reading the rows of all tenants");
        self.begin(&self.reads, self.dialect.begin_read_all()).await
    }

    /// A durable change to the rows of all tenants; see [`Store::write`].
    pub(super) async fn write_all(&self, about: &str, job: Job) -> Result<Transaction<'static, Any>, StoreError> {
        let mut transaction = self.write(about).await?;
        self.widen(&mut transaction, job).await?;
        Ok(transaction)
    }

    /// From here on a transaction sees the rows of all tenants.
    pub(super) async fn widen(&self, transaction: &mut Transaction<'static, Any>, job: Job) -> Result<(), StoreError> {
        tracing::trace!(?job, "changing the rows of all tenants");
        self.set_tenant(transaction, "*", false).await
    }

    /// Restricts a transaction to the rows of one tenant and the rights of its statements, where the database supports
    /// it.
    async fn narrow(&self, transaction: &mut Transaction<'static, Any>, tenant: &str) -> Result<(), StoreError> {
        self.set_tenant(transaction, tenant, self.narrows.load(Ordering::Relaxed)).await
    }

    async fn set_tenant(
        &self,
        transaction: &mut Transaction<'static, Any>,
        tenant: &str,
        narrows: bool,
    ) -> Result<(), StoreError> {
        let Some(statement) = self.dialect.set_tenant(narrows) else { return Ok(()) };
        self.ask(sqlx::query(statement).bind(tenant).execute(&mut **transaction)).await.map(drop)
    }
}

impl TenantStore<'_> {
    /// A transaction that reads.
    pub(super) async fn read(self) -> Result<Transaction<'static, Any>, StoreError> {
        let mut transaction = self.store.begin(&self.store.reads, "BEGIN").await?;
        self.store.narrow(&mut transaction, self.tenant).await?;
        Ok(transaction)
    }

    /// A change of counters; see [`Store::count`].
    pub(super) async fn count(self, about: &str) -> Result<Transaction<'static, Any>, StoreError> {
        let mut transaction = self.store.change(about, Haste::Counts).await?;
        self.store.narrow(&mut transaction, self.tenant).await?;
        Ok(transaction)
    }

    /// A durable change, with the rights of the login role: those of the tenants' role do not include it, nor the audit log.
    pub(super) async fn write(self, about: &str) -> Result<Transaction<'static, Any>, StoreError> {
        let mut transaction = self.store.write(about).await?;
        self.store.set_tenant(&mut transaction, self.tenant, false).await?;
        Ok(transaction)
    }

    /// A statement whose first parameter is the tenant.
    pub(super) fn query<'q>(self, text: &'static str) -> Query<'q, Any, AnyArguments> {
        assert!(text.contains(OF_TENANT), "a statement of a tenant without its condition: {text}");
        sqlx::query(text).bind(self.tenant)
    }
}
