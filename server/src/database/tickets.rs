//! Tickets: each lets one stream in once, at any replica.

use sqlx::Row;

use super::{Store, StoreError};
use crate::auth::Token;

/// What a ticket stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamTicket {
    /// Public id of the key.
    pub user: String,
    /// Whose work it is.
    pub tenant: String,
    /// The token that pays, if one does.
    pub token: Option<Token>,
    /// The request that it was given for, sealed; `None` when the query brings it.
    pub body: Option<Vec<u8>>,
}

/// Why a ticket was not kept: the key has as many as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyTickets {
    /// When the first of them expires, in milliseconds since 1970.
    pub until_ms: i64,
}

impl Store {
    /// Keeps a ticket under its digest until it expires, unless its key has `most` already.
    pub async fn put_ticket(
        &self,
        sha256: &str,
        ticket: &StreamTicket,
        expires_at_ms: i64,
        most: u32,
        now_ms: i64,
    ) -> Result<Result<(), TooManyTickets>, StoreError> {
        let mut transaction = self.count(&format!("tickets of {}", ticket.user)).await?;
        // Expired ones go when new ones come, so the table stays as large as the tickets that live.
        let query = sqlx::query("DELETE FROM stream_tickets WHERE expires_at <= $1").bind(now_ms);
        self.ask(query.execute(&mut *transaction)).await?;
        self.narrow(&mut transaction, &ticket.tenant).await?;
        let query = sqlx::query("SELECT count(*), coalesce(min(expires_at), 0) FROM stream_tickets WHERE user_id = $1")
            .bind(&ticket.user);
        let row = self.ask(query.fetch_one(&mut *transaction)).await?;
        if row.get::<i64, _>(0) >= i64::from(most) {
            self.commit(transaction).await?;
            return Ok(Err(TooManyTickets { until_ms: row.get(1) }));
        }
        let query = sqlx::query(
            "INSERT INTO stream_tickets (sha256, user_id, tenant_id, jti, token_limit, token_expires_at, body, expires_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(sha256)
        .bind(&ticket.user)
        .bind(&ticket.tenant)
        .bind(ticket.token.as_ref().map(|token| &token.jti))
        .bind(ticket.token.as_ref().map(|token| token.limit as i64))
        .bind(ticket.token.as_ref().map(|token| token.expires_at_ms))
        .bind(&ticket.body)
        .bind(expires_at_ms);
        self.ask(query.execute(&mut *transaction)).await?;
        self.commit(transaction).await?;
        Ok(Ok(()))
    }

    /// What a ticket stands for, if it is still good. It stays good.
    pub async fn ticket(&self, sha256: &str, now_ms: i64) -> Result<Option<StreamTicket>, StoreError> {
        let query = sqlx::query(
            "SELECT user_id, tenant_id, jti, token_limit, token_expires_at, body FROM stream_tickets \
             WHERE sha256 = $1 AND expires_at > $2",
        )
        .bind(sha256)
        .bind(now_ms);
        let row = self.ask(query.fetch_optional(&self.reads)).await?;
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

    /// Uses a ticket up; `false` when somebody else has, or it expired.
    pub async fn spend_ticket(&self, sha256: &str, now_ms: i64) -> Result<bool, StoreError> {
        let mut transaction = self.count(sha256).await?;
        let query =
            sqlx::query("DELETE FROM stream_tickets WHERE sha256 = $1 AND expires_at > $2").bind(sha256).bind(now_ms);
        let spent = self.ask(query.execute(&mut *transaction)).await?;
        self.commit(transaction).await?;
        Ok(spent.rows_affected() > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Bench, on_both};
    use super::*;

    on_both!(
        a_ticket_is_good_once_at_any_replica,
        an_expired_ticket_is_good_for_nothing,
        a_key_has_so_many_at_once_and_those_that_expired_do_not_count,
    );

    fn of(user: &str) -> StreamTicket {
        let token = Some(Token { jti: "j".into(), limit: 100, expires_at_ms: 5000 });
        StreamTicket { user: user.into(), tenant: "acme".into(), token, body: Some(vec![1, 2]) }
    }

    async fn a_ticket_is_good_once_at_any_replica(bench: Bench) {
        let store = bench.store().await;
        let other = bench.open().await;
        store.put_ticket("a", &of("key"), 1000, 8, 0).await.unwrap().unwrap();
        assert_eq!(other.ticket("a", 999).await.unwrap(), Some(of("key")));
        let spent = futures::future::join_all((0..8).map(|n| {
            let replica = if n % 2 == 0 { store.clone() } else { other.clone() };
            async move { replica.spend_ticket("a", 999).await.unwrap() }
        }));
        assert_eq!(spent.await.into_iter().filter(|yes| *yes).count(), 1);
        assert_eq!(store.ticket("a", 999).await.unwrap(), None);
    }

    async fn an_expired_ticket_is_good_for_nothing(bench: Bench) {
        let store = bench.store().await;
        store.put_ticket("a", &of("key"), 1000, 8, 0).await.unwrap().unwrap();
        assert_eq!(store.ticket("a", 1000).await.unwrap(), None);
        assert!(!store.spend_ticket("a", 1000).await.unwrap());
        assert!(store.spend_ticket("a", 999).await.unwrap());
    }

    async fn a_key_has_so_many_at_once_and_those_that_expired_do_not_count(bench: Bench) {
        let store = bench.store().await;
        for (name, expires) in [("a", 1000), ("b", 2000)] {
            store.put_ticket(name, &of("key"), expires, 2, 0).await.unwrap().unwrap();
        }
        let third = store.put_ticket("c", &of("key"), 3000, 2, 999).await.unwrap();
        assert_eq!(third, Err(TooManyTickets { until_ms: 1000 }));
        store.put_ticket("d", &of("another"), 3000, 2, 999).await.unwrap().unwrap();
        store.put_ticket("c", &of("key"), 3000, 2, 1000).await.unwrap().unwrap();
        assert!(store.spend_ticket("b", 1000).await.unwrap());
        store.put_ticket("e", &of("key"), 3000, 2, 1000).await.unwrap().unwrap();
    }
}
