//! Rate limits and token budgets, shared by all replicas.

use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;
use sqlx::{Any, Row, Transaction};

use super::{Store, StoreError, Token, now_ms};
use crate::audit::is_plain;
use crate::lease::{LeaseAnswer, LeaseRequest, Settlement};
use crate::rate::{Left, Rate, Taken, give_back, take};

/// What a reservation counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Requests.
    Requests,
    /// Prompt and generated tokens.
    Tokens,
}

impl Unit {
    /// Its name in `allowances`.
    fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        }
    }
}

/// Units reserved for one request, until [`Store::settle`] reports the actual usage.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reservation {
    /// What is counted.
    pub unit: Unit,
    /// The key.
    pub subject: String,
    /// The most tokens that the key may ever spend, with all its tokens of `/auth/token`.
    pub key_limit: Option<u64>,
    /// The token of `/auth/token` that pays, if one does.
    pub token: Option<Token>,
    /// The key's rate, if it has one.
    pub rate: Option<Rate>,
    /// How many units.
    pub units: u64,
}

/// How much a grant takes from the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// What was asked for: every request is counted in this store.
    Exact,
    /// A part of what remains besides, for later requests of the same replica; see [`lease`](crate::lease).
    Lease { sites: u64 },
    /// The same from this site's own part of what remained when it last reached the primary.
    Apart { sites: u64 },
}

/// Each grant takes at most this part of what a site could have.
const LEASES_PER_SITE: u64 = 4;

/// A lease of a budget is for at most this many more requests of the same size: a replica that is killed does not
/// return it.
const LEASED_REQUESTS: u64 = 16;

impl Share {
    /// How much more than what was asked for is taken, with this much left.
    fn extra(self, left: u64) -> u64 {
        match self {
            Self::Exact => 0,
            Self::Lease { sites } | Self::Apart { sites } => left / (LEASES_PER_SITE * sites.max(1)),
        }
    }

    /// The name of a counter.
    fn name(self, name: &str) -> String {
        match self {
            Self::Apart { .. } => format!("{APART}{name}"),
            Self::Exact | Self::Lease { .. } => name.to_owned(),
        }
    }

    /// The part of a rate.
    fn rate(self, rate: Rate) -> Rate {
        match self {
            Self::Apart { sites } => Rate { count: (rate.count / sites.max(1)).max(1), ..rate },
            Self::Exact | Self::Lease { .. } => rate,
        }
    }
}

/// Starts the names of the counters of one site.
const APART: &str = "apart ";

/// Units that were granted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Grant {
    /// How many, at least those asked for.
    pub units: u64,
    /// What is left of the rate.
    pub left: Option<Left>,
}

/// What a budget belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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

    /// The counters that it changes.
    pub fn counters(&self) -> Vec<CounterName> {
        let rate = self.rate.map(|_| CounterName::Rate { subject: self.subject.clone(), unit: self.unit });
        self.budgets().map(|budget| CounterName::Budget { id: budget.id }).chain(rate).collect()
    }
}

/// The most that a budget counts: sums with it do not overflow.
const MAX_USED: i64 = 1 << 60;
/// How far ahead the arrival of a rate may be, in milliseconds: the longest period is a day, and clocks differ.
const MAX_AHEAD_MS: f64 = 2.0 * 86_400_000.0;

/// Why units were not reserved.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
    /// The key's rate.
    Rate(Taken),
    /// There may be enough, but not in the share of this site, which cannot reach the primary.
    Apart,
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
        self.forget_expired(&mut transaction).await?;
        let query = sqlx::query(
            "INSERT INTO token_budgets (jti, token_limit, expires_at) VALUES ($1, $2, $3) ON CONFLICT (jti) DO NOTHING",
        )
        .bind(jti)
        .bind(limit as i64)
        .bind(expires_at_ms);
        self.ask(query.execute(&mut *transaction)).await?;
        self.commit(transaction).await
    }

    /// Inserts delete expired budgets, so the table only holds live tokens.
    async fn forget_expired(&self, transaction: &mut Transaction<'static, Any>) -> Result<(), StoreError> {
        let query = sqlx::query("DELETE FROM token_budgets WHERE expires_at < $1").bind(now_ms() - 60_000);
        self.ask(query.execute(&mut **transaction)).await.map(drop)
    }

    /// The remaining budget of a token.
    pub async fn budget_left(&self, jti: &str) -> Result<Option<u64>, StoreError> {
        let query = sqlx::query("SELECT token_limit - used - reserved FROM token_budgets WHERE jti = $1").bind(jti);
        let row = self.ask(query.fetch_optional(&self.reads)).await?;
        Ok(row.map(|row| row.get::<i64, _>(0).max(0) as u64))
    }

    /// Reserves units from the budgets of the token and the key, and from the key's rate: all or none. A budget that the
    /// store lost (it was restored from a backup) starts again.
    pub async fn reserve(&self, reservation: &Reservation) -> Result<Result<Option<Left>, BudgetRefusal>, StoreError> {
        let mut transaction = self.count(&about(&reservation.subject)).await?;
        let granted = self.grant_in(&mut transaction, reservation, Share::Exact, now_ms()).await?;
        self.commit(transaction).await?;
        Ok(granted.map(|grant| grant.left))
    }

    /// Ends a reservation: the used units are spent, the rest is available again. Call it once.
    pub async fn settle(&self, reservation: &Reservation, used: u64) -> Result<(), StoreError> {
        let mut transaction = self.count(&about(&reservation.subject)).await?;
        let settlement = Settlement { granted: reservation.units, used: used as i64 };
        self.settle_in(&mut transaction, reservation, settlement, Share::Exact).await?;
        self.commit(transaction).await
    }

    /// Settles the previous lease of a replica and grants the next one. The caller sees to it that only the primary
    /// grants leases, one after the other, and knows what is [leased](crate::lease::Granted::leased).
    pub async fn lease(
        &self,
        request: &LeaseRequest,
        sites: u64,
        leased: u64,
        now_ms: i64,
    ) -> Result<LeaseAnswer, StoreError> {
        let (share, reservation) = (Share::Lease { sites }, &request.reservation);
        let mut transaction = self.count(&about(&reservation.subject)).await?;
        if reservation.token.is_some() {
            self.forget_expired(&mut transaction).await?;
        }
        if let Some(rate) = reservation.rate
            && leased > 0
        {
            // What is leased is not free, however long ago it was granted; no more is than the rate allows.
            let leased = leased.min(rate.count);
            let (subject, unit) = (&reservation.subject, reservation.unit.name());
            let arrival = self.arrival(&mut transaction, subject, unit).await?.unwrap_or(0.0);
            let least = now_ms as f64 + rate.each_ms() * leased as f64;
            self.remember(&mut transaction, subject, unit, arrival.max(least)).await?;
        }
        self.settle_in(&mut transaction, reservation, request.settled, share).await?;
        self.charge(&mut transaction, request, share, now_ms).await?;
        let granted = match reservation.units {
            0 => None,
            _ => Some(self.grant_in(&mut transaction, reservation, share, now_ms).await?),
        };
        self.commit(transaction).await?;
        Ok(LeaseAnswer { granted, apart: false, unsettled: Settlement::default() })
    }

    /// The same at a site that cannot reach the primary: from its own share. What is to be settled at the primary stays
    /// unsettled.
    pub async fn lease_apart(
        &self,
        request: &LeaseRequest,
        sites: u64,
        now_ms: i64,
    ) -> Result<LeaseAnswer, StoreError> {
        let (share, reservation) = (Share::Apart { sites }, &request.reservation);
        let granted = match reservation.units {
            0 => None,
            _ => {
                let mut transaction = self.count(&about(&reservation.subject)).await?;
                self.charge(&mut transaction, request, share, now_ms).await?;
                let granted = self.grant_in(&mut transaction, reservation, share, now_ms).await?;
                self.commit(transaction).await?;
                Some(granted)
            }
        };
        Ok(LeaseAnswer { granted, apart: true, unsettled: request.settled })
    }

    /// Settles a lease from a site's own share.
    pub async fn settle_apart(&self, request: &LeaseRequest, sites: u64) -> Result<(), StoreError> {
        let (settled, share) = (request.settled_apart, Share::Apart { sites });
        if settled == Settlement::default() {
            return Ok(());
        }
        let mut transaction = self.count(&about(&request.reservation.subject)).await?;
        self.settle_in(&mut transaction, &request.reservation, settled, share).await?;
        self.commit(transaction).await
    }

    /// Checks everything before it writes, so that a refusal changes nothing.
    async fn grant_in(
        &self,
        transaction: &mut Transaction<'static, Any>,
        reservation: &Reservation,
        share: Share,
        now_ms: i64,
    ) -> Result<Result<Grant, BudgetRefusal>, StoreError> {
        let (needed, subject, unit) = (reservation.units, &reservation.subject, reservation.unit.name());
        let mut units = u64::MAX;
        for Budget { owner, id, limit, .. } in reservation.budgets() {
            let whole = limit.saturating_sub(self.spent(transaction, &id).await?);
            if needed > whole {
                return Ok(Err(BudgetRefusal::Spent { owner, limit, left: whole }));
            }
            let left = match share {
                Share::Apart { sites } => {
                    let part = (whole / sites.max(1)).saturating_sub(self.spent(transaction, &share.name(&id)).await?);
                    if needed > part {
                        return Ok(Err(BudgetRefusal::Apart));
                    }
                    part
                }
                Share::Exact | Share::Lease { .. } => whole,
            };
            let extra = share.extra(left - needed).min(needed.saturating_mul(LEASED_REQUESTS));
            units = units.min(needed + extra);
        }
        let (name, now) = (share.name(unit), now_ms as f64);
        let mut rate = None;
        if let Some(whole) = reservation.rate {
            let part = share.rate(whole);
            let mut arrival = self.arrival(transaction, subject, unit).await?.unwrap_or(0.0);
            if name != unit {
                arrival = arrival.max(self.arrival(transaction, subject, &name).await?.unwrap_or(0.0));
            }
            match take(part, arrival, needed, now) {
                Taken::Yes { left, .. } => units = units.min(needed + share.extra(left.remaining)),
                Taken::NotYet { retry_ms, left } => {
                    let left = Left { limit: whole.count, ..left };
                    return Ok(Err(BudgetRefusal::Rate(Taken::NotYet { retry_ms, left })));
                }
                Taken::Never if needed <= whole.count => return Ok(Err(BudgetRefusal::Apart)),
                Taken::Never => return Ok(Err(BudgetRefusal::Rate(Taken::Never))),
            }
            rate = Some((whole, part, arrival));
        }
        let units = if units == u64::MAX { needed } else { units };
        for Budget { id, limit, expires_at_ms, .. } in reservation.budgets() {
            // The limit of a key may change.
            let query = sqlx::query(
                "INSERT INTO token_budgets (jti, token_limit, reserved, expires_at) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (jti) DO UPDATE SET reserved = token_budgets.reserved + $3, token_limit = $2",
            )
            .bind(share.name(&id))
            .bind(limit as i64)
            .bind(units as i64)
            .bind(expires_at_ms);
            self.ask(query.execute(&mut **transaction)).await?;
        }
        let mut left = None;
        if let Some((whole, part, arrival)) = rate
            && let Taken::Yes { arrival_ms, left: now } = take(part, arrival, units, now)
        {
            self.remember(transaction, subject, &name, arrival_ms).await?;
            left = Some(Left { limit: whole.count, ..now });
        }
        Ok(Ok(Grant { units, left }))
    }

    async fn settle_in(
        &self,
        transaction: &mut Transaction<'static, Any>,
        reservation: &Reservation,
        settlement: Settlement,
        share: Share,
    ) -> Result<(), StoreError> {
        let Settlement { granted, used } = settlement;
        if settlement == Settlement::default() {
            return Ok(());
        }
        for Budget { id, .. } in reservation.budgets() {
            let query = sqlx::query(
                "UPDATE token_budgets SET reserved = CASE WHEN reserved > $1 THEN reserved - $1 ELSE 0 END, \
                 used = CASE WHEN used + $2 <= 0 THEN 0 WHEN used + $2 > $4 THEN $4 ELSE used + $2 END WHERE jti = $3",
            )
            .bind(granted as i64)
            .bind(used)
            .bind(share.name(&id))
            .bind(MAX_USED);
            self.ask(query.execute(&mut **transaction)).await?;
        }
        let unused = (granted as i64).saturating_sub(used).max(0) as u64;
        if let Some(rate) = reservation.rate
            && unused > 0
        {
            let (subject, name) = (&reservation.subject, share.name(reservation.unit.name()));
            if let Some(arrival) = self.arrival(transaction, subject, &name).await? {
                let arrival = give_back(share.rate(rate), arrival, unused);
                self.remember(transaction, subject, &name, arrival).await?;
            }
        }
        Ok(())
    }

    /// Charges to a rate what was used beyond a lease; a settlement charges it to budgets.
    async fn charge(
        &self,
        transaction: &mut Transaction<'static, Any>,
        request: &LeaseRequest,
        share: Share,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let (subject, unit) = (&request.reservation.subject, request.reservation.unit.name());
        let Some(rate) = request.reservation.rate.filter(|_| request.overdrawn > 0) else { return Ok(()) };
        let (rate, name, now) = (share.rate(rate), share.name(unit), now_ms as f64);
        let arrival = self.arrival(transaction, subject, &name).await?.unwrap_or(0.0).max(now);
        let charged = arrival + rate.each_ms() * request.overdrawn as f64;
        // It is full after one period.
        let most = arrival.max(now + rate.per.as_millis() as f64);
        self.remember(transaction, subject, &name, charged.min(most)).await
    }

    async fn spent(&self, transaction: &mut Transaction<'static, Any>, id: &str) -> Result<u64, StoreError> {
        let query = sqlx::query("SELECT used + reserved FROM token_budgets WHERE jti = $1").bind(id);
        let row = self.ask(query.fetch_optional(&mut **transaction)).await?;
        Ok(row.map_or(0, |row| row.get::<i64, _>(0).max(0) as u64))
    }

    /// The state of a counter; `None` if it was never used.
    pub async fn counter(&self, name: &CounterName) -> Result<Option<Counter>, StoreError> {
        let query = match name {
            CounterName::Rate { subject, unit } => {
                sqlx::query("SELECT subject, kind, arrival_ms FROM allowances WHERE subject = $1 AND kind = $2")
                    .bind(subject)
                    .bind(unit.name())
            }
            CounterName::Budget { id } => sqlx::query(BUDGET_BY_ID).bind(id),
        };
        let row = self.ask(query.fetch_optional(&self.reads)).await?;
        row.map(|row| match name {
            CounterName::Rate { .. } => Counter::of_rate(&row),
            CounterName::Budget { .. } => Counter::of_budget(&row),
        })
        .transpose()
        .map_err(StoreError::Failed)
    }

    /// The counters that are in use: rates and budgets, at most `most` of each.
    pub async fn counters(&self, most: u32, now_ms: i64) -> Result<Vec<Counter>, StoreError> {
        let rates = sqlx::query(
            "SELECT subject, kind, arrival_ms FROM allowances WHERE arrival_ms > $1 AND kind IN ('requests', 'tokens') \
             ORDER BY arrival_ms DESC LIMIT $2",
        )
        .bind(now_ms as f64)
        .bind(i64::from(most));
        let rates = self.ask(rates.fetch_all(&self.reads)).await?;
        let budgets = sqlx::query(
            "SELECT jti, token_limit, reserved, used, expires_at FROM token_budgets \
             WHERE expires_at > $1 AND used + reserved > 0 AND jti NOT LIKE 'apart %' ORDER BY expires_at DESC LIMIT $2",
        )
        .bind(now_ms)
        .bind(i64::from(most));
        let budgets = self.ask(budgets.fetch_all(&self.reads)).await?;
        let counters = rates.iter().map(Counter::of_rate).chain(budgets.iter().map(Counter::of_budget));
        counters.collect::<Result<_, _>>().map_err(StoreError::Failed)
    }

    /// Overwrites counters with their state at the primary.
    pub async fn put_counters(&self, counters: &[Counter]) -> Result<(), StoreError> {
        let mut transaction = self.count("counters").await?;
        for counter in counters {
            match counter {
                Counter::Rate { subject, unit, arrival_ms } => {
                    self.remember(&mut transaction, subject, unit.name(), *arrival_ms).await?;
                }
                Counter::Budget { id, limit, reserved, used, expires_at } => {
                    let query = sqlx::query(
                        "INSERT INTO token_budgets (jti, token_limit, reserved, used, expires_at) VALUES ($1, $2, $3, $4, $5) \
                         ON CONFLICT (jti) DO UPDATE SET token_limit = $2, reserved = $3, used = $4",
                    )
                    .bind(id)
                    .bind(*limit)
                    .bind(*reserved)
                    .bind(*used)
                    .bind(*expires_at);
                    self.ask(query.execute(&mut *transaction)).await?;
                }
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

/// The columns of a budget, by its name.
const BUDGET_BY_ID: &str = "SELECT jti, token_limit, reserved, used, expires_at FROM token_budgets WHERE jti = $1";

/// The name of a counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CounterName {
    /// A rate of a key.
    Rate {
        /// The key.
        subject: String,
        /// What is counted.
        unit: Unit,
    },
    /// A budget.
    Budget {
        /// Its name in `token_budgets`.
        id: String,
    },
}

/// The state of a counter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[allow(missing_docs)] // each is the column of its name
pub enum Counter {
    Rate { subject: String, unit: Unit, arrival_ms: f64 },
    Budget { id: String, limit: i64, reserved: i64, used: i64, expires_at: i64 },
}

impl Counter {
    /// Whether a site may count so. It comes from another process.
    pub fn is_valid(&self, now_ms: i64) -> bool {
        match self {
            Self::Rate { subject, arrival_ms, .. } => {
                is_plain(subject) && (0.0..=now_ms as f64 + MAX_AHEAD_MS).contains(arrival_ms)
            }
            Self::Budget { id, limit, reserved, used, .. } => {
                is_plain(id) && *limit >= 0 && [reserved, used].into_iter().all(|count| (0..=MAX_USED).contains(count))
            }
        }
    }

    fn of_rate(row: &AnyRow) -> Result<Self, sqlx::Error> {
        let unit =
            if row.try_get::<String, _>("kind")? == Unit::Requests.name() { Unit::Requests } else { Unit::Tokens };
        Ok(Self::Rate { subject: row.try_get("subject")?, unit, arrival_ms: row.try_get("arrival_ms")? })
    }

    fn of_budget(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self::Budget {
            id: row.try_get("jti")?,
            limit: row.try_get("token_limit")?,
            reserved: row.try_get("reserved")?,
            used: row.try_get("used")?,
            expires_at: row.try_get("expires_at")?,
        })
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
        Reservation {
            subject: "key".into(),
            key_limit: None,
            token: Some(token),
            rate: None,
            units: tokens,
            unit: Unit::Tokens,
        }
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
        let much = Reservation { units: 101, ..reservation };
        assert_eq!(store.reserve(&much).await.unwrap(), Err(BudgetRefusal::Rate(Taken::Never)));
    }

    #[test]
    fn counters_with_values_that_no_site_counts_are_invalid() {
        let now = 1_800_000_000_000;
        let rate =
            |subject: &str, arrival_ms| Counter::Rate { subject: subject.into(), unit: Unit::Tokens, arrival_ms };
        let budget = |id: &str, limit, reserved, used| Counter::Budget {
            id: id.into(),
            limit,
            reserved,
            used,
            expires_at: i64::MAX,
        };
        let day_ahead = now as f64 + 86_400_000.0;
        for valid in [rate("k", 0.0), rate("k", day_ahead), budget("key k", i64::MAX, 5, MAX_USED)] {
            assert!(valid.is_valid(now), "{valid:?}");
        }
        let long = "k".repeat(1000);
        for invalid in [
            rate(&long, 0.0),
            rate("k", -1.0),
            rate("k", f64::MAX),
            rate("k", f64::NAN),
            budget(&long, 1, 0, 0),
            budget("k", -1, 0, 0),
            budget("k", 1, -1, 0),
            budget("k", 1, i64::MAX, 0),
            budget("k", 1, 0, i64::MAX),
        ] {
            assert!(!invalid.is_valid(now), "{invalid:?}");
        }
    }

    async fn expired_budgets_go_when_new_ones_come(bench: Bench) {
        let store = bench.store().await;
        store.open_budget("old", 5, now_ms() - 100_000).await.unwrap();
        store.open_budget("new", 5, now_ms() + 100_000).await.unwrap();
        assert_eq!(store.budget_left("old").await.unwrap(), None);
        assert_eq!(store.budget_left("new").await.unwrap(), Some(5));
    }
}
