//! Tickets: each admits one stream once, at any replica.

use serde::{Deserialize, Serialize};
use sqlx::Row;

use super::scope::Job;
use super::{Store, StoreError, TenantStore};

/// A token of `/auth/token`, as far as its budget needs it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Token {
    /// Its name.
    pub jti: String,
    /// The token budget.
    pub limit: u64,
    /// When it ends, in milliseconds since 1970.
    pub expires_at_ms: i64,
}

/// The contents of a ticket.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamTicket {
    /// Public id of the key.
    pub user: String,
    /// Whose work it is.
    pub tenant: String,
    /// The token that pays, if one does.
    pub token: Option<Token>,
    /// The encrypted request it was issued for; `None` when the query contains it.
    pub body: Option<Vec<u8>>,
}

/// The key has the maximum number of tickets already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyTickets {
    /// When the first of them expires, in milliseconds since 1970.
    pub until_ms: i64,
}

impl TenantStore<'_> {
    /// Stores a ticket under its digest until it expires, unless its key has `most` already.
    pub async fn put_ticket(
        self,
        sha256: &str,
        ticket: &StreamTicket,
        expires_at_ms: i64,
        most: u32,
        now_ms: i64,
    ) -> Result<Result<(), TooManyTickets>, StoreError> {
        let store = self.store;
        let mut transaction = self.count(&format!("tickets of {}", ticket.user)).await?;
        // Inserts delete expired tickets, so the table only holds live ones.
        let query = self.query("DELETE FROM stream_tickets WHERE tenant_id = $1 AND expires_at <= $2").bind(now_ms);
        store.ask(query.execute(&mut *transaction)).await?;
        let query = self
            .query(
                "SELECT count(*), coalesce(min(expires_at), 0) FROM stream_tickets WHERE tenant_id = $1 AND user_id = $2",
            )
            .bind(&ticket.user);
        let row = store.ask(query.fetch_one(&mut *transaction)).await?;
        if row.get::<i64, _>(0) >= i64::from(most) {
            store.commit(transaction).await?;
            return Ok(Err(TooManyTickets { until_ms: row.get(1) }));
        }
        let query = sqlx::query(
            "INSERT INTO stream_tickets (sha256, user_id, tenant_id, jti, token_limit, token_expires_at, body, expires_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(sha256)
        .bind(&ticket.user)
        .bind(self.tenant)
        .bind(ticket.token.as_ref().map(|token| &token.jti))
        .bind(ticket.token.as_ref().map(|token| token.limit as i64))
        .bind(ticket.token.as_ref().map(|token| token.expires_at_ms))
        .bind(&ticket.body)
        .bind(expires_at_ms);
        store.ask(query.execute(&mut *transaction)).await?;
        store.commit(transaction).await?;
        Ok(Ok(()))
    }

    /// Uses a ticket of this tenant up; `false` when another request has, or it expired.
    pub async fn spend_ticket(self, sha256: &str, now_ms: i64) -> Result<bool, StoreError> {
        let mut transaction = self.count(sha256).await?;
        let query = self
            .query("DELETE FROM stream_tickets WHERE tenant_id = $1 AND sha256 = $2 AND expires_at > $3")
            .bind(sha256)
            .bind(now_ms);
        let spent = self.store.ask(query.execute(&mut *transaction)).await?;
        self.store.commit(transaction).await?;
        Ok(spent.rows_affected() > 0)
    }
}

impl Store {
    /// Deletes expired tickets of all tenants, including those that create no new ones.
    pub async fn delete_expired_tickets(&self, now_ms: i64) -> Result<(), StoreError> {
        let mut transaction = self.write_all("expired tickets", Job::Retention).await?;
        let query = sqlx::query("DELETE FROM stream_tickets WHERE expires_at <= $1").bind(now_ms);
        self.ask(query.execute(&mut *transaction)).await?;
        self.commit(transaction).await
    }

    /// The contents of a valid ticket. The ticket stays valid.
    pub async fn ticket(&self, sha256: &str, now_ms: i64) -> Result<Option<StreamTicket>, StoreError> {
        let query = sqlx::query(
            "SELECT user_id, tenant_id, jti, token_limit, token_expires_at, body FROM stream_tickets \
             WHERE sha256 = $1 AND expires_at > $2",
        )
        .bind(sha256)
        .bind(now_ms);
        let mut transaction = self.read_all(Job::Credential).await?;
        let row = self.ask(query.fetch_optional(&mut *transaction)).await?;
        Ok(row.map(|row| StreamTicket {
            user: row.get(0),
            tenant: row.get(1),
            token: row.get::<Option<String>, _>(2).map(|jti| Token {
                jti,
                limit: row.get::<Option<i64>, _>(3).unwrap_or(0).max(0) as u64,
                expires_at_ms: row.get::<Option<i64>, _>(4).unwrap_or(0),
            }),
            body: row.get(5),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Bench, on_both};
    use super::*;

    on_both!(
        a_ticket_is_good_once_at_any_replica,
        an_expired_ticket_is_good_for_nothing,
        a_ticket_ends_with_the_secret_of_its_key,
        a_ticket_is_not_spent_counted_or_deleted_by_another_tenant,
        a_key_has_so_many_at_once_and_those_that_expired_do_not_count,
    );

    fn of(user: &str) -> StreamTicket {
        let token = Some(Token { jti: "j".into(), limit: 100, expires_at_ms: 5000 });
        StreamTicket { user: user.into(), tenant: "acme".into(), token, body: Some(vec![1, 2]) }
    }

    async fn a_ticket_is_good_once_at_any_replica(bench: Bench) {
        let store = bench.store().await;
        let other = bench.open().await;
        store.tenant("acme").put_ticket("a", &of("key"), 1000, 8, 0).await.unwrap().unwrap();
        assert_eq!(other.ticket("a", 999).await.unwrap(), Some(of("key")));
        let spent = futures::future::join_all((0..8).map(|n| {
            let replica = if n % 2 == 0 { store.clone() } else { other.clone() };
            async move { replica.tenant("acme").spend_ticket("a", 999).await.unwrap() }
        }));
        assert_eq!(spent.await.into_iter().filter(|yes| *yes).count(), 1);
        assert_eq!(store.ticket("a", 999).await.unwrap(), None);
    }

    async fn an_expired_ticket_is_good_for_nothing(bench: Bench) {
        let store = bench.store().await;
        store.tenant("acme").put_ticket("a", &of("key"), 1000, 8, 0).await.unwrap().unwrap();
        assert_eq!(store.ticket("a", 1000).await.unwrap(), None);
        assert!(!store.tenant("acme").spend_ticket("a", 1000).await.unwrap());
        assert!(store.tenant("acme").spend_ticket("a", 999).await.unwrap());
    }

    async fn a_ticket_ends_with_the_secret_of_its_key(bench: Bench) {
        let store = bench.store().await;
        let key = super::super::tests::key("0123456789abcdef");
        store.put_key(&key, None).await.unwrap();
        for (name, user) in [("a", key.public_id.as_str()), ("b", "another")] {
            store.tenant("acme").put_ticket(name, &of(user), 1000, 8, 0).await.unwrap().unwrap();
        }
        let renamed = super::super::ApiKey { name: "other".into(), ..key };
        store.put_key(&renamed, None).await.unwrap();
        assert!(store.ticket("a", 0).await.unwrap().is_some());
        let rotated = super::super::ApiKey { sha256: "1".repeat(64), ..renamed };
        store.put_key(&rotated, None).await.unwrap();
        assert_eq!(store.ticket("a", 0).await.unwrap(), None);
        assert!(store.ticket("b", 0).await.unwrap().is_some());
    }

    async fn a_ticket_is_not_spent_counted_or_deleted_by_another_tenant(bench: Bench) {
        let store = bench.store().await;
        store.tenant("acme").put_ticket("a", &of("key"), 1000, 1, 0).await.unwrap().unwrap();
        assert!(!store.tenant("globex").spend_ticket("a", 0).await.unwrap());
        let theirs = StreamTicket { tenant: "globex".into(), ..of("key") };
        store.tenant("globex").put_ticket("b", &theirs, 9000, 1, 1000).await.unwrap().unwrap();
        assert_eq!(store.ticket("a", 999).await.unwrap(), Some(of("key")), "one that another tenant saw expire");
        assert!(store.tenant("acme").spend_ticket("a", 0).await.unwrap());
    }

    async fn a_key_has_so_many_at_once_and_those_that_expired_do_not_count(bench: Bench) {
        let store = bench.store().await;
        for (name, expires) in [("a", 1000), ("b", 2000)] {
            store.tenant("acme").put_ticket(name, &of("key"), expires, 2, 0).await.unwrap().unwrap();
        }
        let third = store.tenant("acme").put_ticket("c", &of("key"), 3000, 2, 999).await.unwrap();
        assert_eq!(third, Err(TooManyTickets { until_ms: 1000 }));
        store.tenant("acme").put_ticket("d", &of("another"), 3000, 2, 999).await.unwrap().unwrap();
        store.tenant("acme").put_ticket("c", &of("key"), 3000, 2, 1000).await.unwrap().unwrap();
        assert!(store.tenant("acme").spend_ticket("b", 1000).await.unwrap());
        store.tenant("acme").put_ticket("e", &of("key"), 3000, 2, 1000).await.unwrap().unwrap();
    }
}
