//! What keys and tokens have used up, counted for all replicas together.

use sqlx::{Row, Sqlite, Transaction};

use super::{Store, StoreError, now_ms};
use crate::config::Rate;
use crate::rate::{Left, Taken, give_back, take};

/// Tokens set aside for one request, until [`Store::settle`] says what it really used.
#[derive(Debug, Clone, PartialEq)]
pub struct Reservation {
    /// The key.
    pub subject: String,
    /// The token of `/auth/token` that pays, if one does.
    pub jti: Option<String>,
    /// The key's rate of tokens, if it has one.
    pub rate: Option<Rate>,
    /// How many.
    pub tokens: u64,
}

/// Why tokens were not set aside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BudgetRefusal {
    /// The token's own limit: `left` of `limit` can still be spent.
    Spent {
        /// What the token may spend in all.
        limit: u64,
        /// What is left of it.
        left: u64,
    },
    /// The key's rate of tokens.
    Rate(Taken),
}

impl Store {
    /// Takes units of a rate. The answer is `Ok` also when they are not there.
    pub async fn take(&self, subject: &str, kind: &str, rate: Rate, units: u64) -> Result<Taken, StoreError> {
        let mut transaction = self.write().await?;
        let taken = take_in(&mut transaction, subject, kind, rate, units).await?;
        transaction.commit().await.map_err(StoreError::sort)?;
        Ok(taken)
    }

    /// Begins a budget for a new token.
    pub async fn open_budget(&self, jti: &str, limit: u64, expires_at_ms: i64) -> Result<(), StoreError> {
        let mut transaction = self.write().await?;
        // Expired budgets go when new ones come, so the table stays as large as the tokens that live.
        sqlx::query("DELETE FROM token_budgets WHERE expires_at < ?")
            .bind(now_ms() - 60_000)
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::sort)?;
        sqlx::query(
            "INSERT INTO token_budgets (jti, token_limit, expires_at) VALUES (?, ?, ?) ON CONFLICT (jti) DO NOTHING",
        )
        .bind(jti)
        .bind(limit as i64)
        .bind(expires_at_ms)
        .execute(&mut *transaction)
        .await
        .map_err(StoreError::sort)?;
        transaction.commit().await.map_err(StoreError::sort)
    }

    /// What a token may still spend.
    pub async fn budget_left(&self, jti: &str) -> Result<Option<u64>, StoreError> {
        let row = sqlx::query("SELECT token_limit - used - reserved FROM token_budgets WHERE jti = ?")
            .bind(jti)
            .fetch_optional(&self.reads)
            .await
            .map_err(StoreError::sort)?;
        Ok(row.map(|row| row.get::<i64, _>(0).max(0) as u64))
    }

    /// Sets tokens aside from the token's limit and the key's rate, both or neither. `limit` and `expires_at_ms` are the
    /// token's claims: a store that has forgotten the token (it was restored from a backup) begins its budget anew.
    pub async fn reserve(
        &self,
        reservation: &Reservation,
        limit: u64,
        expires_at_ms: i64,
    ) -> Result<Result<Option<Left>, BudgetRefusal>, StoreError> {
        let mut transaction = self.write().await?;
        if let Some(jti) = &reservation.jti {
            let row = sqlx::query("SELECT token_limit, used, reserved FROM token_budgets WHERE jti = ?")
                .bind(jti)
                .fetch_optional(&mut *transaction)
                .await
                .map_err(StoreError::sort)?;
            let (limit, gone) = row.map_or((limit, 0), |row| {
                (row.get::<i64, _>(0).max(0) as u64, (row.get::<i64, _>(1) + row.get::<i64, _>(2)).max(0) as u64)
            });
            let left = limit.saturating_sub(gone);
            if reservation.tokens > left {
                return Ok(Err(BudgetRefusal::Spent { limit, left }));
            }
            sqlx::query(
                "INSERT INTO token_budgets (jti, token_limit, reserved, expires_at) VALUES (?1, ?2, ?3, ?4) \
                 ON CONFLICT (jti) DO UPDATE SET reserved = reserved + ?3",
            )
            .bind(jti)
            .bind(limit as i64)
            .bind(reservation.tokens as i64)
            .bind(expires_at_ms)
            .execute(&mut *transaction)
            .await
            .map_err(StoreError::sort)?;
        }
        let mut left = None;
        if let Some(rate) = reservation.rate {
            match take_in(&mut transaction, &reservation.subject, "tokens", rate, reservation.tokens).await? {
                Taken::Yes { left: now, .. } => left = Some(now),
                refused => return Ok(Err(BudgetRefusal::Rate(refused))),
            }
        }
        transaction.commit().await.map_err(StoreError::sort)?;
        Ok(Ok(left))
    }

    /// Ends a reservation: what was used is spent, the rest is free again. Call it once.
    pub async fn settle(&self, reservation: &Reservation, used: u64) -> Result<(), StoreError> {
        let mut transaction = self.write().await?;
        if let Some(jti) = &reservation.jti {
            sqlx::query("UPDATE token_budgets SET reserved = max(reserved - ?, 0), used = used + ? WHERE jti = ?")
                .bind(reservation.tokens as i64)
                .bind(used as i64)
                .bind(jti)
                .execute(&mut *transaction)
                .await
                .map_err(StoreError::sort)?;
        }
        if let Some(rate) = reservation.rate {
            let back = reservation.tokens.saturating_sub(used);
            if let Some(arrival) = arrival(&mut transaction, &reservation.subject, "tokens").await? {
                remember(&mut transaction, &reservation.subject, "tokens", give_back(rate, arrival, back)).await?;
            }
        }
        transaction.commit().await.map_err(StoreError::sort)
    }
}

async fn take_in(
    transaction: &mut Transaction<'_, Sqlite>,
    subject: &str,
    kind: &str,
    rate: Rate,
    units: u64,
) -> Result<Taken, StoreError> {
    let arrival = arrival(transaction, subject, kind).await?.unwrap_or(0.0);
    let taken = take(rate, arrival, units, now_ms() as f64);
    if let Taken::Yes { arrival_ms, .. } = taken {
        remember(transaction, subject, kind, arrival_ms).await?;
    }
    Ok(taken)
}

async fn arrival(
    transaction: &mut Transaction<'_, Sqlite>,
    subject: &str,
    kind: &str,
) -> Result<Option<f64>, StoreError> {
    let row = sqlx::query("SELECT arrival_ms FROM allowances WHERE subject = ? AND kind = ?")
        .bind(subject)
        .bind(kind)
        .fetch_optional(&mut **transaction)
        .await
        .map_err(StoreError::sort)?;
    Ok(row.map(|row| row.get(0)))
}

async fn remember(
    transaction: &mut Transaction<'_, Sqlite>,
    subject: &str,
    kind: &str,
    arrival: f64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO allowances (subject, kind, arrival_ms) VALUES (?1, ?2, ?3) \
         ON CONFLICT (subject, kind) DO UPDATE SET arrival_ms = ?3",
    )
    .bind(subject)
    .bind(kind)
    .bind(arrival)
    .execute(&mut **transaction)
    .await
    .map(drop)
    .map_err(StoreError::sort)
}

#[cfg(test)]
mod tests {
    use super::super::tests::store;
    use super::*;

    fn of(jti: &str, tokens: u64) -> Reservation {
        Reservation { subject: "key".into(), jti: Some(jti.into()), rate: None, tokens }
    }

    #[tokio::test]
    async fn a_token_spends_its_limit_and_no_more_and_what_was_not_used_is_free_again() {
        let (_folder, store) = store().await;
        store.prepare().await.unwrap();
        let far = now_ms() + 1_000_000;
        store.open_budget("a", 100, far).await.unwrap();
        assert!(store.reserve(&of("a", 60), 100, far).await.unwrap().is_ok());
        let refused = store.reserve(&of("a", 60), 100, far).await.unwrap();
        assert_eq!(refused, Err(BudgetRefusal::Spent { limit: 100, left: 40 }));
        store.settle(&of("a", 60), 15).await.unwrap();
        assert_eq!(store.budget_left("a").await.unwrap(), Some(85));
        assert!(store.reserve(&of("a", 85), 100, far).await.unwrap().is_ok());
        store.settle(&of("a", 85), 85).await.unwrap();
        assert_eq!(store.budget_left("a").await.unwrap(), Some(0));
        assert_eq!(store.budget_left("nobody").await.unwrap(), None);
    }

    #[tokio::test]
    async fn two_replicas_count_together() {
        let (folder, store) = store().await;
        store.prepare().await.unwrap();
        let other = super::super::tests::open(folder.path()).await;
        let rate: Rate = "10/hour".parse().unwrap();
        let calls = (0..20).map(|n| {
            let replica = if n % 2 == 0 { store.clone() } else { other.clone() };
            async move { matches!(replica.take("key", "requests", rate, 1).await.unwrap(), Taken::Yes { .. }) }
        });
        let given = futures::future::join_all(calls).await.into_iter().filter(|yes| *yes).count();
        assert_eq!(given, 10);
    }

    #[tokio::test]
    async fn a_rate_of_tokens_is_given_back_when_less_was_used() {
        let (_folder, store) = store().await;
        store.prepare().await.unwrap();
        let rate: Rate = "100/hour".parse().unwrap();
        let reservation = Reservation { subject: "key".into(), jti: None, rate: Some(rate), tokens: 80 };
        assert_eq!(store.reserve(&reservation, 0, 0).await.unwrap().unwrap().unwrap().remaining, 20);
        assert!(matches!(
            store.reserve(&reservation, 0, 0).await.unwrap(),
            Err(BudgetRefusal::Rate(Taken::NotYet { .. }))
        ));
        store.settle(&reservation, 10).await.unwrap();
        assert!(store.reserve(&reservation, 0, 0).await.unwrap().is_ok());
        let much = Reservation { tokens: 101, ..reservation };
        assert_eq!(store.reserve(&much, 0, 0).await.unwrap(), Err(BudgetRefusal::Rate(Taken::Never)));
    }

    #[tokio::test]
    async fn expired_budgets_go_when_new_ones_come() {
        let (_folder, store) = store().await;
        store.prepare().await.unwrap();
        store.open_budget("old", 5, now_ms() - 100_000).await.unwrap();
        store.open_budget("new", 5, now_ms() + 100_000).await.unwrap();
        assert_eq!(store.budget_left("old").await.unwrap(), None);
        assert_eq!(store.budget_left("new").await.unwrap(), Some(5));
    }
}
