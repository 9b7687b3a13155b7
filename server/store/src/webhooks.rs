//! Events that webhooks get: a durable row for each event and webhook, until it is delivered or given up.
//!
//! An event is delivered at least once. One event of a webhook is sent at a time, by the server that claimed it, so that a slow receiver
//! delays only its own events.

use sqlx::any::AnyRow;
use sqlx::{Any, Row, Transaction};

use super::scope::Job;
use super::{Store, StoreError};

/// Waits after failed attempts; the last one is repeated.
pub const BACKOFF_MS: [i64; 5] = [5_000, 60_000, 600_000, 3_600_000, 21_600_000];

/// The longest time that an event is tried.
pub const MAX_AGE_MS: i64 = 72 * 3_600_000;

/// The most waiting events of a tenant: for one more, the oldest is given up.
pub const MAX_WAITING: i64 = 10_000;

/// An event for one webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its id, the same in each attempt.
    pub id: String,
    /// The tenant that it is about.
    pub tenant: String,
    /// The id of the webhook.
    pub webhook: String,
    /// Its type, such as `batch.completed`.
    pub event: String,
    /// The id of the batch.
    pub object: String,
    /// Milliseconds since 1970.
    pub created_at_ms: i64,
    /// The claim's id.
    pub claim: String,
    /// How often it was claimed, with this time.
    pub attempts: i64,
}

/// What became of an event after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailedDelivery {
    /// It is due again at this time.
    Later(i64),
    /// It is deleted: it was tried for too long.
    GivenUp,
    /// Another server has claimed it since, or it is gone.
    Lost,
}

/// The waiting events of all tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeliveryStatus {
    /// How many wait.
    pub waiting: i64,
    /// When the oldest was created.
    pub oldest_ms: Option<i64>,
}

/// No server sends an event of the same webhook now. A list that is read once, however many events wait.
macro_rules! is_free {
    ($now:literal) => {
        concat!(
            "webhook NOT IN (SELECT webhook FROM webhook_deliveries WHERE claim <> '' AND available_at > ",
            $now,
            ")"
        )
    };
}

impl Store {
    /// Adds the event of a batch that has ended for each of these webhooks, in the transaction that ends it.
    pub(super) async fn insert_deliveries(
        &self,
        transaction: &mut Transaction<'static, Any>,
        batch: &str,
        webhooks: &[String],
    ) -> Result<(), StoreError> {
        for webhook in webhooks {
            let query = sqlx::query(
                "INSERT INTO webhook_deliveries (id, tenant_id, webhook, event, object_id, created_at, available_at, claim, attempts) \
                 SELECT $1, tenant_id, $2, 'batch.' || state, id, ended_at, ended_at, '', 0 FROM batches \
                 WHERE id = $3 AND ended_at IS NOT NULL",
            )
            .bind(format!("evt_{}", uuid::Uuid::now_v7().simple()))
            .bind(webhook)
            .bind(batch);
            self.ask(query.execute(&mut **transaction)).await?;
        }
        Ok(())
    }

    /// Claims the event that is due longest of those of these webhooks, for `lease_ms`.
    pub async fn claim_delivery(
        &self,
        webhooks: &[String],
        now_ms: i64,
        lease_ms: i64,
    ) -> Result<Option<Delivery>, StoreError> {
        let Some(webhook) = self.due_webhook(webhooks, now_ms).await? else { return Ok(None) };
        let mut transaction = self.write_all(&about(&webhook), Job::Webhooks).await?;
        let claim = uuid::Uuid::now_v7().simple().to_string();
        let query = sqlx::query(concat!(
            "UPDATE webhook_deliveries SET claim = $1, available_at = $2, attempts = attempts + 1 \
             WHERE id = (SELECT id FROM webhook_deliveries WHERE webhook = $3 AND available_at <= $4 \
             ORDER BY available_at, id LIMIT 1) AND ",
            is_free!("$4"),
            " RETURNING id, tenant_id, webhook, event, object_id, created_at, claim, attempts"
        ))
        .bind(&claim)
        .bind(now_ms.saturating_add(lease_ms))
        .bind(&webhook)
        .bind(now_ms);
        let row = self.ask(query.fetch_optional(&mut *transaction)).await?;
        let delivery = row.as_ref().map(read).transpose()?;
        self.commit(transaction).await?;
        Ok(delivery)
    }

    /// Of these webhooks, the one whose event is due longest: a read, because most servers find nothing most of the time. Rows may be of
    /// webhooks that are not configured any more.
    async fn due_webhook(&self, webhooks: &[String], now_ms: i64) -> Result<Option<String>, StoreError> {
        if webhooks.is_empty() {
            return Ok(None);
        }
        let mut transaction = self.read_all(Job::Webhooks).await?;
        let query = sqlx::query(concat!(
            "SELECT webhook FROM webhook_deliveries WHERE available_at <= $1 AND ",
            is_free!("$1"),
            " GROUP BY webhook ORDER BY min(available_at)"
        ))
        .bind(now_ms);
        let rows = self.ask(query.fetch_all(&mut *transaction)).await?;
        for row in rows {
            let webhook: String = row.try_get(0)?;
            if webhooks.contains(&webhook) {
                return Ok(Some(webhook));
            }
        }
        Ok(None)
    }

    /// Deletes a claimed event that was delivered, or that the receiver does not want. Returns whether it was still claimed.
    pub async fn end_delivery(&self, delivery: &Delivery) -> Result<bool, StoreError> {
        let mut transaction = self.write_all(&about(&delivery.webhook), Job::Webhooks).await?;
        let query = sqlx::query("DELETE FROM webhook_deliveries WHERE id = $1 AND claim = $2")
            .bind(&delivery.id)
            .bind(&delivery.claim);
        let deleted = self.ask(query.execute(&mut *transaction)).await?.rows_affected();
        self.commit(transaction).await?;
        Ok(deleted == 1)
    }

    /// Gives a claimed event back after an attempt that failed, until the next attempt; or gives it up.
    pub async fn fail_delivery(&self, delivery: &Delivery, now_ms: i64) -> Result<FailedDelivery, StoreError> {
        let failures = usize::try_from(delivery.attempts - 1).unwrap_or_default();
        let wait = BACKOFF_MS.get(failures).or(BACKOFF_MS.last()).copied().unwrap_or_default();
        let again = now_ms.saturating_add(wait);
        if again.saturating_sub(delivery.created_at_ms) >= MAX_AGE_MS {
            let is_deleted = self.end_delivery(delivery).await?;
            return Ok(if is_deleted { FailedDelivery::GivenUp } else { FailedDelivery::Lost });
        }
        let is_changed = self.give_back(delivery, again, true).await?;
        Ok(if is_changed { FailedDelivery::Later(again) } else { FailedDelivery::Lost })
    }

    /// Gives a claimed event back that was not sent to the end: it is due at once.
    pub async fn release_delivery(&self, delivery: &Delivery, now_ms: i64) -> Result<(), StoreError> {
        self.give_back(delivery, now_ms, false).await.map(drop)
    }

    /// `is_attempt`: whether it counts. Returns whether it was still claimed.
    async fn give_back(&self, delivery: &Delivery, again_ms: i64, is_attempt: bool) -> Result<bool, StoreError> {
        let mut transaction = self.write_all(&about(&delivery.webhook), Job::Webhooks).await?;
        let query = sqlx::query(
            "UPDATE webhook_deliveries SET claim = '', available_at = $1, attempts = attempts - $2 WHERE id = $3 AND claim = $4",
        )
        .bind(again_ms)
        .bind(i64::from(!is_attempt))
        .bind(&delivery.id)
        .bind(&delivery.claim);
        let changed = self.ask(query.execute(&mut *transaction)).await?.rows_affected();
        self.commit(transaction).await?;
        Ok(changed == 1)
    }

    /// The waiting events.
    pub async fn delivery_status(&self) -> Result<DeliveryStatus, StoreError> {
        let mut transaction = self.read_all(Job::Webhooks).await?;
        let query = sqlx::query("SELECT count(*), min(created_at) FROM webhook_deliveries");
        let row = self.ask(query.fetch_one(&mut *transaction)).await?;
        Ok(DeliveryStatus { waiting: row.try_get(0)?, oldest_ms: row.try_get(1)? })
    }

    /// Gives up events that are too old, such as those of webhooks that are not configured any more, and the oldest ones of tenants with
    /// more than `most`. Returns how many.
    pub async fn give_up_deliveries(&self, now_ms: i64, most: i64) -> Result<u64, StoreError> {
        let before = now_ms.saturating_sub(MAX_AGE_MS);
        let status = self.delivery_status().await?;
        if status.waiting <= most && status.oldest_ms.is_none_or(|oldest| oldest > before) {
            return Ok(0);
        }
        let mut transaction = self.write_all("webhook events", Job::Webhooks).await?;
        let query = sqlx::query(
            "DELETE FROM webhook_deliveries WHERE created_at <= $1 OR id IN (SELECT id FROM \
             (SELECT id, row_number() OVER (PARTITION BY tenant_id ORDER BY created_at DESC, id DESC) AS place \
             FROM webhook_deliveries) AS numbered WHERE place > $2)",
        )
        .bind(before)
        .bind(most);
        let given_up = self.ask(query.execute(&mut *transaction)).await?.rows_affected();
        self.commit(transaction).await?;
        Ok(given_up)
    }
}

/// The lock for claims of one webhook.
fn about(webhook: &str) -> String {
    format!("webhook {webhook}")
}

fn read(row: &AnyRow) -> Result<Delivery, StoreError> {
    Ok(Delivery {
        id: row.try_get(0)?,
        tenant: row.try_get(1)?,
        webhook: row.try_get(2)?,
        event: row.try_get(3)?,
        object: row.try_get(4)?,
        created_at_ms: row.try_get(5)?,
        claim: row.try_get(6)?,
        attempts: row.try_get(7)?,
    })
}

#[cfg(test)]
mod tests;
