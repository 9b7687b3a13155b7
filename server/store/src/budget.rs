//! Rate limits and token budgets, shared by all replicas.

use sqlx::{Any, Row, Transaction};

use super::{Store, StoreError, Token, now_ms};
use crate::rate::{Left, Rate, Taken, give_back, take};

/// Tokens reserved for one request, until [`Store::settle`] reports the actual usage.
#[derive(Debug, Clone, PartialEq)]
pub struct Reservation {
    /// The key.
    pub subject: String,
    /// The most that the key may ever spend, with all its tokens of `/auth/token`.
    pub key_limit: Option<u64>,
    /// The token of `/auth/token` that pays, if one does.
    pub token: Option<Token>,
    /// The key's rate of tokens, if it has one.
    pub rate: Option<Rate>,
    /// How many tokens.
    pub tokens: u64,
}

/// What a budget belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BudgetOwner {
    /// The key itself.
    Key,
    /// A token of `/auth/token`.
    Token,
}

struct Budget {
    owner: BudgetOwner,
    /// Its name in `token_budgets`.
    id: String,
    limit: u64,
    expires_at_ms: i64,
}

impl Reservation {
    /// The budgets that it is taken from, all or none.
    fn budgets(&self) -> impl Iterator<Item = Budget> {
        let token = self.token.iter().map(|token| Budget {
            owner: BudgetOwner::Token,
            id: token.jti.clone(),
            limit: token.limit,
            expires_at_ms: token.expires_at_ms,
        });
        let key = self.key_limit.map(|limit| Budget {
            owner: BudgetOwner::Key,
            // The names of tokens are UUIDs.
            id: format!("key {}", self.subject),
            limit,
            expires_at_ms: i64::MAX,
        });
        token.chain(key)
    }
}

/// Why tokens were not set aside.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum BudgetRefusal {
    /// A token's or the key's own limit: `left` of `limit` can still be spent.
    Spent {
        /// Whose limit.
        owner: BudgetOwner,
        /// The total budget.
        limit: u64,
        /// The remaining budget.
        left: u64,
    },
    /// The key's rate of tokens.
    Rate(Taken),
}

impl Store {
    /// Takes units of a rate. `Ok` also if there are not enough.
    pub async fn take(&self, subject: &str, kind: &str, rate: Rate, units: u64) -> Result<Taken, StoreError> {
        let mut transaction = self.count(&about(subject)).await?;
        let taken = self.take_in(&mut transaction, subject, kind, rate, units).await?;
        self.commit(transaction).await?;
        Ok(taken)
    }

    /// Creates the budget of a new token.
    pub async fn open_budget(&self, jti: &str, limit: u64, expires_at_ms: i64) -> Result<(), StoreError> {
        let mut transaction = self.count(jti).await?;
        // Inserts delete expired budgets, so the table only holds live tokens.
        let query = sqlx::query("DELETE FROM token_budgets WHERE expires_at < $1").bind(now_ms() - 60_000);
        self.ask(query.execute(&mut *transaction)).await?;
        let query = sqlx::query(
            "INSERT INTO token_budgets (jti, token_limit, expires_at) VALUES ($1, $2, $3) ON CONFLICT (jti) DO NOTHING",
        )
        .bind(jti)
        .bind(limit as i64)
        .bind(expires_at_ms);
        self.ask(query.execute(&mut *transaction)).await?;
        self.commit(transaction).await
    }

    /// The remaining budget of a token.
    pub async fn budget_left(&self, jti: &str) -> Result<Option<u64>, StoreError> {
        let query = sqlx::query("SELECT token_limit - used - reserved FROM token_budgets WHERE jti = $1").bind(jti);
        let row = self.ask(query.fetch_optional(&self.reads)).await?;
        Ok(row.map(|row| row.get::<i64, _>(0).max(0) as u64))
    }

    /// Reserves tokens from the budgets of the token and the key, and from the key's rate: all or none. A budget that the
    /// store lost (it was restored from a backup) starts again.
    pub async fn reserve(&self, reservation: &Reservation) -> Result<Result<Option<Left>, BudgetRefusal>, StoreError> {
        let mut transaction = self.count(&about(&reservation.subject)).await?;
        for Budget { owner, id, limit, expires_at_ms } in reservation.budgets() {
            let query = sqlx::query("SELECT used + reserved FROM token_budgets WHERE jti = $1").bind(&id);
            let row = self.ask(query.fetch_optional(&mut *transaction)).await?;
            let left = limit.saturating_sub(row.map_or(0, |row| row.get::<i64, _>(0).max(0) as u64));
            if reservation.tokens > left {
                return Ok(Err(BudgetRefusal::Spent { owner, limit, left }));
            }
            // The limit of a key may change.
            let query = sqlx::query(
                "INSERT INTO token_budgets (jti, token_limit, reserved, expires_at) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (jti) DO UPDATE SET reserved = token_budgets.reserved + $3, token_limit = $2",
            )
            .bind(&id)
            .bind(limit as i64)
            .bind(reservation.tokens as i64)
            .bind(expires_at_ms);
            self.ask(query.execute(&mut *transaction)).await?;
        }
        let mut left = None;
        if let Some(rate) = reservation.rate {
            match self.take_in(&mut transaction, &reservation.subject, "tokens", rate, reservation.tokens).await? {
                Taken::Yes { left: now, .. } => left = Some(now),
                refused => return Ok(Err(BudgetRefusal::Rate(refused))),
            }
        }
        self.commit(transaction).await?;
        Ok(Ok(left))
    }

    /// Ends a reservation: the used tokens are spent, the rest is available again. Call it once.
    pub async fn settle(&self, reservation: &Reservation, used: u64) -> Result<(), StoreError> {
        let mut transaction = self.count(&about(&reservation.subject)).await?;
        for Budget { id, .. } in reservation.budgets() {
            let query = sqlx::query(
                "UPDATE token_budgets SET reserved = CASE WHEN reserved > $1 THEN reserved - $1 ELSE 0 END, \
                 used = used + $2 WHERE jti = $3",
            )
            .bind(reservation.tokens as i64)
            .bind(used as i64)
            .bind(&id);
            self.ask(query.execute(&mut *transaction)).await?;
        }
        if let Some(rate) = reservation.rate {
            let back = reservation.tokens.saturating_sub(used);
            if let Some(arrival) = self.arrival(&mut transaction, &reservation.subject, "tokens").await? {
                self.remember(&mut transaction, &reservation.subject, "tokens", give_back(rate, arrival, back)).await?;
            }
        }
        self.commit(transaction).await
    }

    async fn take_in(
        &self,
        transaction: &mut Transaction<'static, Any>,
        subject: &str,
        kind: &str,
        rate: Rate,
        units: u64,
    ) -> Result<Taken, StoreError> {
        let arrival = self.arrival(transaction, subject, kind).await?.unwrap_or(0.0);
        let taken = take(rate, arrival, units, now_ms() as f64);
        if let Taken::Yes { arrival_ms, .. } = taken {
            self.remember(transaction, subject, kind, arrival_ms).await?;
        }
        Ok(taken)
    }

    async fn arrival(
        &self,
        transaction: &mut Transaction<'static, Any>,
        subject: &str,
        kind: &str,
    ) -> Result<Option<f64>, StoreError> {
        let query = sqlx::query("SELECT arrival_ms FROM allowances WHERE subject = $1 AND kind = $2");
        let row = self.ask(query.bind(subject).bind(kind).fetch_optional(&mut **transaction)).await?;
        Ok(row.map(|row| row.get(0)))
    }

    async fn remember(
        &self,
        transaction: &mut Transaction<'static, Any>,
        subject: &str,
        kind: &str,
        arrival: f64,
    ) -> Result<(), StoreError> {
        let query = sqlx::query(
            "INSERT INTO allowances (subject, kind, arrival_ms) VALUES ($1, $2, $3) \
             ON CONFLICT (subject, kind) DO UPDATE SET arrival_ms = $3",
        );
        let done = query.bind(subject).bind(kind).bind(arrival).execute(&mut **transaction);
        self.ask(done).await.map(drop)
    }
}

/// The lock for changes of one key's usage.
pub(super) fn about(subject: &str) -> String {
    format!("allowance of {subject}")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Bench, on_both};
    use super::*;

    on_both!(
        a_token_spends_its_limit_and_no_more_and_what_was_not_used_is_free_again,
        key_limit_covers_the_key_and_all_its_tokens_and_does_not_expire,
        two_replicas_count_together,
        a_rate_of_tokens_is_given_back_when_less_was_used,
        expired_budgets_go_when_new_ones_come,
    );

    fn of(jti: &str, limit: u64, tokens: u64) -> Reservation {
        let token = Token { jti: jti.into(), limit, expires_at_ms: now_ms() + 1_000_000 };
        Reservation { subject: "key".into(), key_limit: None, token: Some(token), rate: None, tokens }
    }

    async fn a_token_spends_its_limit_and_no_more_and_what_was_not_used_is_free_again(bench: Bench) {
        let store = bench.store().await;
        let owner = BudgetOwner::Token;
        store.open_budget("a", 100, now_ms() + 1_000_000).await.unwrap();
        assert!(store.reserve(&of("a", 100, 60)).await.unwrap().is_ok());
        let refused = store.reserve(&of("a", 100, 60)).await.unwrap();
        assert_eq!(refused, Err(BudgetRefusal::Spent { owner, limit: 100, left: 40 }));
        store.settle(&of("a", 100, 60), 15).await.unwrap();
        assert_eq!(store.budget_left("a").await.unwrap(), Some(85));
        assert!(store.reserve(&of("a", 100, 85)).await.unwrap().is_ok());
        store.settle(&of("a", 100, 85), 85).await.unwrap();
        assert_eq!(store.budget_left("a").await.unwrap(), Some(0));
        assert_eq!(store.budget_left("nobody").await.unwrap(), None);
    }

    async fn key_limit_covers_the_key_and_all_its_tokens_and_does_not_expire(bench: Bench) {
        let store = bench.store().await;
        let limited = |reservation: Reservation| Reservation { key_limit: Some(50), ..reservation };
        let by_token = |jti: &str, tokens| limited(of(jti, 50, tokens));
        let by_key = |tokens| limited(Reservation { token: None, ..of("", 0, tokens) });
        let spent = |left| Err(BudgetRefusal::Spent { owner: BudgetOwner::Key, limit: 50, left });
        assert!(store.reserve(&by_key(30)).await.unwrap().is_ok());
        store.settle(&by_key(30), 10).await.unwrap();
        assert!(store.reserve(&by_token("a", 30)).await.unwrap().is_ok());
        store.settle(&by_token("a", 30), 30).await.unwrap();
        assert_eq!(store.reserve(&by_token("b", 11)).await.unwrap(), spent(10), "a fresh token does not start anew");
        assert_eq!(store.budget_left("b").await.unwrap(), None, "nothing stays reserved by what was refused");
        // Opening a token's budget deletes those that expired.
        let other = bench.open().await;
        other.open_budget("c", 50, now_ms() + 1_000_000).await.unwrap();
        assert_eq!(other.reserve(&by_key(11)).await.unwrap(), spent(10), "another replica, and after a restart");
        assert!(other.reserve(&by_key(10)).await.unwrap().is_ok());
        let more = Reservation { key_limit: Some(60), ..by_key(10) };
        assert!(store.reserve(&more).await.unwrap().is_ok(), "an operator may raise it");
        assert!(store.reserve(&Reservation { key_limit: None, ..by_key(99) }).await.unwrap().is_ok());
    }

    async fn two_replicas_count_together(bench: Bench) {
        let store = bench.store().await;
        let other = bench.open().await;
        let rate: Rate = "10/hour".parse().unwrap();
        let calls = (0..20).map(|n| {
            let replica = if n % 2 == 0 { store.clone() } else { other.clone() };
            async move { matches!(replica.take("key", "requests", rate, 1).await.unwrap(), Taken::Yes { .. }) }
        });
        let given = futures::future::join_all(calls).await.into_iter().filter(|yes| *yes).count();
        assert_eq!(given, 10);
    }

    async fn a_rate_of_tokens_is_given_back_when_less_was_used(bench: Bench) {
        let store = bench.store().await;
        let rate: Rate = "100/hour".parse().unwrap();
        let reservation = Reservation { token: None, rate: Some(rate), ..of("", 0, 80) };
        assert_eq!(store.reserve(&reservation).await.unwrap().unwrap().unwrap().remaining, 20);
        assert!(matches!(store.reserve(&reservation).await.unwrap(), Err(BudgetRefusal::Rate(Taken::NotYet { .. }))));
        store.settle(&reservation, 10).await.unwrap();
        assert!(store.reserve(&reservation).await.unwrap().is_ok());
        let much = Reservation { tokens: 101, ..reservation };
        assert_eq!(store.reserve(&much).await.unwrap(), Err(BudgetRefusal::Rate(Taken::Never)));
    }

    async fn expired_budgets_go_when_new_ones_come(bench: Bench) {
        let store = bench.store().await;
        store.open_budget("old", 5, now_ms() - 100_000).await.unwrap();
        store.open_budget("new", 5, now_ms() + 100_000).await.unwrap();
        assert_eq!(store.budget_left("old").await.unwrap(), None);
        assert_eq!(store.budget_left("new").await.unwrap(), Some(5));
    }
}
