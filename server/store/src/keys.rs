//! API keys: their tenant, scopes and limits.

use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use sqlx::any::{AnyArguments, AnyRow};
use sqlx::query::Query;
use sqlx::{Any, Row};

use super::audit::{Action, Actor, AuditEvent};
use super::scope::Job;
use super::{Store, StoreError, now_ms};
use crate::rate::Rate;

/// A stored key, without its secret text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApiKey {
    /// The public id, also in logs and metrics.
    pub public_id: String,
    /// Digest of the key's whole text.
    #[serde(skip)]
    pub sha256: String,
    /// Whose it is.
    pub tenant: String,
    /// The display name.
    pub name: String,
    /// The scopes; `*` allows everything.
    pub scopes: Vec<String>,
    /// Its own rate of requests.
    #[serde(serialize_with = "as_text")]
    pub rate_limit: Option<Rate>,
    /// Its own rate of tokens.
    #[serde(serialize_with = "as_text")]
    pub token_rate_limit: Option<Rate>,
    /// The most tokens that it may ever spend, with all its tokens of `/auth/token`.
    pub token_limit: Option<u64>,
    /// Milliseconds since 1970.
    pub created_at: i64,
    /// When it ends.
    pub expires_at: Option<i64>,
    /// When it was revoked.
    pub revoked_at: Option<i64>,
}

fn as_text<S: serde::Serializer>(rate: &Option<Rate>, serializer: S) -> Result<S::Ok, S::Error> {
    match rate {
        Some(rate) => serializer.collect_str(rate),
        None => serializer.serialize_none(),
    }
}

impl ApiKey {
    /// An act on it.
    pub fn event(&self, by: &Actor, act: Action) -> AuditEvent {
        let detail = json!({ "name": self.name, "scopes": self.scopes });
        AuditEvent::new(by, act).object(self.public_id.as_str()).tenant(self.tenant.as_str()).detail(detail)
    }

    /// Names its present secret in tokens of `/auth/token`, so that they end when the secret is replaced. A client with a
    /// token can read it: it is derived from the stored digest, and is not a part of it.
    pub fn version(&self) -> String {
        let digest = Sha256::new().chain_update("textnlp key version\0").chain_update(&self.sha256).finalize();
        hex::encode(&digest[..8])
    }

    /// Whether it is valid at a time.
    pub fn is_valid(&self, now_ms: i64) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now_ms < end)
    }
}

/// The audit action that turns the existing key into the wanted one; `None` if they are equal.
pub fn act(there: Option<&ApiKey>, wanted: &ApiKey) -> Option<Action> {
    let Some(there) = there else { return Some(Action::KeyCreate) };
    let same = ApiKey { created_at: there.created_at, revoked_at: there.revoked_at, ..wanted.clone() };
    match same == *there {
        true => None,
        false if same.sha256 != there.sha256 => Some(Action::KeyRotate),
        false => Some(Action::KeyChange),
    }
}

/// The result of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPut {
    /// The key was not there.
    Created,
    /// It existed with other values.
    Changed,
    /// It was there just so.
    Unchanged,
}

/// The longest lifetime of keys of measurements. They are issued for an hour, by the clock of another machine.
const MEASUREMENT_MS: i64 = 2 * 3_600_000;

const COLUMNS: &str = "SELECT public_id, sha256, tenant_id, name, scopes, rate_limit, token_rate_limit, token_limit, created_at, \
                       expires_at, revoked_at FROM api_keys";

impl Store {
    /// One key.
    pub async fn key(&self, public_id: &str) -> Result<Option<ApiKey>, StoreError> {
        let query = sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE public_id = $1"));
        let mut transaction = self.read_all(Job::Credential).await?;
        let row = self.ask(sqlx::query(query).bind(public_id).fetch_optional(&mut *transaction)).await?;
        row.as_ref().map(read).transpose()
    }

    /// All keys, oldest first.
    pub async fn keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        let query = sqlx::AssertSqlSafe(format!("{COLUMNS} ORDER BY created_at, public_id"));
        let mut transaction = self.read_all(Job::Keys).await?;
        let rows = self.ask(sqlx::query(query).fetch_all(&mut *transaction)).await?;
        rows.iter().map(read).collect()
    }

    /// Creates or updates a key. Idempotent; a revoked key stays revoked. Recorded as an action of `by`; replicated
    /// changes of another site have no actor.
    pub async fn put_key(&self, key: &ApiKey, by: Option<&Actor>) -> Result<KeyPut, StoreError> {
        let mut transaction = self.write_all(&about(&key.public_id), Job::Keys).await?;
        let query = sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE public_id = $1"));
        let query = sqlx::query(query).bind(&key.public_id);
        let there = self.ask(query.fetch_optional(&mut *transaction)).await?.as_ref().map(read).transpose()?;
        let Some(act) = act(there.as_ref(), key) else { return Ok(KeyPut::Unchanged) };
        let query = sqlx::query("INSERT INTO tenants (id, created_at) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING")
            .bind(&key.tenant)
            .bind(now_ms());
        self.ask(query.execute(&mut *transaction)).await?;
        let query = sqlx::query(
            "INSERT INTO api_keys (public_id, sha256, tenant_id, name, scopes, rate_limit, token_rate_limit, token_limit, \
             created_at, expires_at, revoked_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
             ON CONFLICT (public_id) DO UPDATE SET sha256 = $2, tenant_id = $3, name = $4, scopes = $5, rate_limit = $6, \
             token_rate_limit = $7, token_limit = $8, expires_at = $10",
        )
        .bind(&key.public_id)
        .bind(&key.sha256)
        .bind(&key.tenant)
        .bind(&key.name)
        .bind(serde_json::Value::from(key.scopes.clone()).to_string())
        .bind(key.rate_limit.map(|rate| rate.to_string()))
        .bind(key.token_rate_limit.map(|rate| rate.to_string()))
        .bind(key.token_limit.map(|limit| limit as i64))
        .bind(key.created_at)
        .bind(key.expires_at)
        .bind(key.revoked_at);
        self.ask(query.execute(&mut *transaction)).await?;
        if act == Action::KeyRotate {
            // They were issued for the old secret.
            let query = sqlx::query("DELETE FROM stream_tickets WHERE user_id = $1").bind(&key.public_id);
            self.ask(query.execute(&mut *transaction)).await?;
        }
        if let Some(by) = by {
            self.record(&mut transaction, &key.event(by, act)).await?;
        }
        self.commit(transaction).await?;
        Ok(if act == Action::KeyCreate { KeyPut::Created } else { KeyPut::Changed })
    }

    /// Revokes a key; `false` if there is none, or it is revoked already.
    pub async fn revoke_key(&self, public_id: &str, by: Option<&Actor>) -> Result<bool, StoreError> {
        let statement =
            "UPDATE api_keys SET revoked_at = $1 WHERE public_id = $2 AND revoked_at IS NULL RETURNING tenant_id";
        let query = sqlx::query(statement).bind(now_ms()).bind(public_id);
        self.change_key(query, public_id, by, Action::KeyRevoke).await
    }

    /// Reinstates a revoked key; returns whether it was revoked.
    pub async fn reinstate_key(&self, public_id: &str, by: Option<&Actor>) -> Result<bool, StoreError> {
        let statement =
            "UPDATE api_keys SET revoked_at = NULL WHERE public_id = $1 AND revoked_at IS NOT NULL RETURNING tenant_id";
        self.change_key(sqlx::query(statement).bind(public_id), public_id, by, Action::KeyReinstate).await
    }

    /// Runs a change that answers with the tenant of the key that it changed, if it did.
    async fn change_key(
        &self,
        query: Query<'_, Any, AnyArguments>,
        public_id: &str,
        by: Option<&Actor>,
        act: Action,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.write_all(&about(public_id), Job::Keys).await?;
        let changed = self.ask(query.fetch_optional(&mut *transaction)).await?;
        if let (Some(row), Some(by)) = (&changed, by) {
            let event = AuditEvent::new(by, act).object(public_id).tenant(row.try_get::<String, _>(0)?);
            self.record(&mut transaction, &event).await?;
        }
        self.commit(transaction).await?;
        Ok(changed.is_some())
    }

    /// Removes a tenant whose keys are all revoked or expired, with these keys, its tickets, its batches and its
    /// events for webhooks. The retention deletes the lines of their files. Its usage and its audit events stay. `false` if there is none, or it has another key.
    pub async fn remove_tenant(&self, id: &str, by: &Actor) -> Result<bool, StoreError> {
        let now = now_ms();
        let mut transaction = self.write_all(&format!("tenant {id}"), Job::Keys).await?;
        let query = "SELECT count(*) FROM tenants WHERE id = $1 AND id <> 'default' \
                     AND NOT EXISTS (SELECT 1 FROM api_keys WHERE tenant_id = $1 AND revoked_at IS NULL \
                     AND (expires_at IS NULL OR expires_at > $2))";
        let row = self.ask(sqlx::query(query).bind(id).bind(now).fetch_one(&mut *transaction)).await?;
        if row.try_get::<i64, _>(0)? == 0 {
            return Ok(false);
        }
        let ended = "DELETE FROM api_keys WHERE tenant_id = $1 AND (revoked_at IS NOT NULL OR expires_at <= $2)";
        for query in [
            sqlx::query("DELETE FROM stream_tickets WHERE tenant_id = $1").bind(id),
            sqlx::query("DELETE FROM batch_requests WHERE batch_id IN (SELECT id FROM batches WHERE tenant_id = $1)")
                .bind(id),
            sqlx::query("DELETE FROM batches WHERE tenant_id = $1").bind(id),
            sqlx::query("DELETE FROM webhook_deliveries WHERE tenant_id = $1").bind(id),
            sqlx::query("UPDATE batch_files SET state = 'deleting' WHERE tenant_id = $1").bind(id),
            sqlx::query(ended).bind(id).bind(now),
            sqlx::query("DELETE FROM tenants WHERE id = $1").bind(id),
        ] {
            self.ask(query.execute(&mut *transaction)).await?;
        }
        self.record(&mut transaction, &AuditEvent::new(by, Action::TenantRemove).object(id).tenant(id)).await?;
        self.commit(transaction).await?;
        Ok(true)
    }

    /// Deletes keys that were issued for at most two hours, such as those of gates, and were to end before a time, at most
    /// `most`; returns how many. Recorded in the same transaction. Others stay: a revoked one must not be put again.
    pub async fn delete_short_lived_keys(&self, before_ms: i64, most: u32) -> Result<u64, StoreError> {
        let mut transaction = self.write_all("key retention", Job::Retention).await?;
        // The time is compared twice, so that a key that is extended meanwhile stays.
        let query = sqlx::query(
            "DELETE FROM api_keys WHERE expires_at < $1 AND public_id IN (SELECT public_id FROM api_keys \
             WHERE expires_at < $1 AND expires_at - created_at <= $2 LIMIT $3)",
        )
        .bind(before_ms)
        .bind(MEASUREMENT_MS)
        .bind(i64::from(most));
        let deleted = self.ask(query.execute(&mut *transaction)).await?.rows_affected();
        if deleted > 0 {
            let event = AuditEvent::new(&Actor::Server, Action::KeyDelete);
            self.record(&mut transaction, &event.detail(json!({ "keys": deleted, "before": before_ms }))).await?;
        }
        self.commit(transaction).await?;
        Ok(deleted)
    }

    /// Whether a tenant exists.
    pub async fn has_tenant(&self, id: &str) -> Result<bool, StoreError> {
        let query = sqlx::query("SELECT 1 FROM tenants WHERE id = $1").bind(id);
        let row = self.ask(query.fetch_optional(&self.reads)).await?;
        Ok(row.is_some())
    }
}

/// The lock for changes of one key.
pub(super) fn about(public_id: &str) -> String {
    format!("key {public_id}")
}

fn read(row: &AnyRow) -> Result<ApiKey, StoreError> {
    let rate = |name: &str| -> Result<Option<Rate>, StoreError> {
        let text = row.try_get::<Option<String>, _>(name)?;
        text.map(|text| text.parse()).transpose().map_err(|error| StoreError::Schema(format!("column {name} {error}")))
    };
    let scopes: String = row.try_get("scopes")?;
    Ok(ApiKey {
        public_id: row.try_get("public_id")?,
        sha256: row.try_get("sha256")?,
        tenant: row.try_get("tenant_id")?,
        name: row.try_get("name")?,
        scopes: serde_json::from_str(&scopes).map_err(|error| StoreError::Schema(format!("column scopes: {error}")))?,
        rate_limit: rate("rate_limit")?,
        token_rate_limit: rate("token_rate_limit")?,
        token_limit: row.try_get::<Option<i64>, _>("token_limit")?.map(|limit| limit.max(0) as u64),
        created_at: row.try_get("created_at")?,
        expires_at: row.try_get("expires_at")?,
        revoked_at: row.try_get("revoked_at")?,
    })
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::super::DAY_MS;
    use super::super::retention::{Retention, sweep};
    use super::super::tests::{Bench, key, on_both};
    use super::*;

    on_both!(
        a_key_put_twice_changes_nothing_and_one_that_was_revoked_stays_revoked_until_it_is_reinstated,
        only_a_tenant_without_a_valid_key_is_removed,
        old_keys_of_measurements_go_and_those_of_clients_stay,
    );

    async fn a_key_put_twice_changes_nothing_and_one_that_was_revoked_stays_revoked_until_it_is_reinstated(
        bench: Bench,
    ) {
        let store = bench.store().await;
        let wanted = key("0123456789abcdef");
        assert_eq!(store.put_key(&wanted, None).await.unwrap(), KeyPut::Created);
        assert_eq!(store.put_key(&wanted, None).await.unwrap(), KeyPut::Unchanged);
        let other = ApiKey { rate_limit: Some("5/minute".parse().unwrap()), tenant: "acme".into(), ..wanted.clone() };
        assert_eq!(store.put_key(&other, None).await.unwrap(), KeyPut::Changed);
        assert_eq!(store.key(&wanted.public_id).await.unwrap().unwrap(), other);
        assert!(store.has_tenant("acme").await.unwrap());
        assert!(!store.has_tenant("nobody").await.unwrap());
        assert!(store.revoke_key(&wanted.public_id, None).await.unwrap());
        assert!(!store.revoke_key(&wanted.public_id, None).await.unwrap());
        assert_eq!(store.put_key(&other, None).await.unwrap(), KeyPut::Unchanged);
        assert!(!store.key(&wanted.public_id).await.unwrap().unwrap().is_valid(now_ms()));
        assert!(store.reinstate_key(&wanted.public_id, None).await.unwrap());
        assert!(!store.reinstate_key(&wanted.public_id, None).await.unwrap());
        assert!(store.key(&wanted.public_id).await.unwrap().unwrap().is_valid(now_ms()));
        assert_eq!(store.key("nobody").await.unwrap(), None);
        assert_eq!(store.keys().await.unwrap().len(), 1);
    }

    async fn only_a_tenant_without_a_valid_key_is_removed(bench: Bench) {
        let (store, by) = (bench.store().await, Actor::Operator("ada".to_owned()));
        let end = now_ms() + 600_000;
        let wanted = ApiKey { tenant: "acme".into(), expires_at: Some(end), ..key("0123456789abcdef") };
        let expired = ApiKey { public_id: "0000000000000000".into(), expires_at: Some(1), ..wanted.clone() };
        for key in [&wanted, &expired, &key("fedcba9876543210")] {
            store.put_key(key, None).await.unwrap();
        }
        for kept in ["acme", "default", "nobody"] {
            assert!(!store.remove_tenant(kept, &by).await.unwrap(), "{kept}");
        }
        assert!(store.has_tenant("acme").await.unwrap());
        store.revoke_key(&wanted.public_id, None).await.unwrap();
        assert!(store.remove_tenant("acme", &by).await.unwrap());
        assert!(!store.has_tenant("acme").await.unwrap() && !store.remove_tenant("acme", &by).await.unwrap());
        assert_eq!(store.keys().await.unwrap().len(), 1, "the keys of others stay");
    }

    async fn old_keys_of_measurements_go_and_those_of_clients_stay(bench: Bench) {
        const HOUR_MS: i64 = 3_600_000;
        let store = bench.store().await;
        for (id, created_at, expires_at) in [
            ("measured", 1, Some(HOUR_MS)),
            ("measured-since", 40 * DAY_MS, Some(40 * DAY_MS + HOUR_MS)),
            ("day", 1, Some(1 + DAY_MS)),
            ("month", 1, Some(30 * DAY_MS)),
            ("permanent", 1, None),
        ] {
            store.put_key(&ApiKey { created_at, expires_at, ..key(id) }, None).await.unwrap();
            assert!(store.revoke_key(id, None).await.unwrap());
        }
        let keep = Retention { usage_days: 0, audit_days: 0, insight_days: 0, batch_days: 0, key_days: 10 };
        let stop = CancellationToken::new();
        assert_eq!(sweep(&store, keep, 50 * DAY_MS, drop, &stop).await.unwrap().keys, 1);
        assert_eq!(sweep(&store, keep, 50 * DAY_MS, drop, &stop).await.unwrap().keys, 0);
        let left: Vec<_> = store.keys().await.unwrap().into_iter().map(|key| key.public_id).collect();
        assert_eq!(left, ["day", "month", "permanent", "measured-since"]);
    }
}
