//! Rate limits: requests, and tokens reserved for a generation and settled after it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use textnlp_net::retry::retry;
use textnlp_store::rate::{Left, Taken, take};
use textnlp_store::{BudgetOwner, BudgetRefusal, RETRIES, Reservation, StoreError, Unit, now_ms};

use crate::app::App;
use crate::auth::Caller;
use crate::config::Rate;
use crate::error::{ApiError, chain};

/// Consumes one request of the caller's rate limit.
pub(crate) async fn take_request(app: &App, caller: &Caller) -> Result<Option<Left>, (ApiError, Option<Left>)> {
    let Some(rate) = caller.rate else { return Ok(None) };
    let taken = if app.local_rates.is_alone(&caller.user) {
        app.local_rates.take(&caller.user, rate)
    } else {
        match count_request(app, &caller.user, rate).await {
            Ok(taken) => {
                app.local_rates.learn(&caller.user, taken);
                taken
            }
            // A database that cannot be written must not stop generation: this replica counts alone until it can.
            Err(error) => {
                tracing::warn!(%error, "rate limits are counted by this replica only");
                app.local_rates.begin_alone(&caller.user);
                app.local_rates.take(&caller.user, rate)
            }
        }
    };
    match taken {
        Taken::Yes { left, .. } => Ok(Some(left)),
        Taken::NotYet { retry_ms, left } => Err((refusal(rate, "requests", retry_ms), Some(left))),
        Taken::Never => Err((refusal(rate, "requests", rate.per.as_secs_f64() * 1000.0), None)),
    }
}

async fn count_request(app: &App, user: &str, rate: Rate) -> Result<Taken, String> {
    let Some(leases) = &app.leases else {
        return app.store.take(user, "requests", rate, 1).await.map_err(|error| chain(&error));
    };
    let reservation = Reservation {
        unit: Unit::Requests,
        subject: user.to_owned(),
        key_limit: None,
        token: None,
        rate: Some(rate),
        units: 1,
    };
    match leases.reserve(&reservation).await.map_err(|error| chain(&error))? {
        Ok(Some(left)) => Ok(Taken::Yes { arrival_ms: now_ms() as f64 + left.reset_ms, left }),
        Err(BudgetRefusal::Rate(taken)) => Ok(taken),
        // Of other counters than rates.
        Ok(None) | Err(BudgetRefusal::Spent { .. } | BudgetRefusal::Apart) => {
            Err("the site agent counted something else".to_owned())
        }
    }
}

/// Reserves tokens for one generation: from the budgets of the bearer token and the key, and from the key's token rate.
/// `None` when the caller has no limit.
pub(crate) async fn reserve(app: &App, caller: &Caller, tokens: u64) -> Result<Option<Reservation>, ApiError> {
    if caller.token.is_none() && caller.token_limit.is_none() && caller.token_rate.is_none() {
        return Ok(None);
    }
    let reservation = Reservation {
        unit: Unit::Tokens,
        subject: caller.user.clone(),
        key_limit: caller.token_limit,
        token: caller.token.clone(),
        rate: caller.token_rate,
        units: tokens,
    };
    let reserved = match &app.leases {
        Some(leases) => leases.reserve(&reservation).await?,
        None => textnlp_store::change(StoreError::passes, || app.store.reserve(&reservation)).await?,
    };
    match (reserved, caller.token_rate) {
        (Ok(_), _) => Ok(Some(reservation)),
        (Err(BudgetRefusal::Spent { owner, limit, left }), _) => {
            let (owner, other) = match owner {
                BudgetOwner::Token => ("token", "get a new token from /auth/token"),
                BudgetOwner::Key => ("key", "ask the operator for another key"),
            };
            Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "token_limit_exceeded",
                format!("this request needs up to {tokens} tokens, but this {owner} has {left} left of {limit}"),
            )
            .param("max_tokens")
            .hint(if left > 0 { format!("request fewer tokens, or {other}") } else { other.to_owned() }))
        }
        (Err(BudgetRefusal::Rate(Taken::NotYet { retry_ms, .. })), Some(rate)) => {
            Err(refusal(rate, "tokens", retry_ms))
        }
        (Err(BudgetRefusal::Apart), _) => Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "limits_unavailable",
            "this key's tokens are counted by another site, which cannot be reached; this site's share is spent",
        )
        .hint("request fewer tokens, or try again in a moment")
        .retry_after(APART_RETRY)),
        (Err(BudgetRefusal::Rate(_)), rate) => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "token_rate_exceeded",
            format!(
                "this request needs up to {tokens} tokens, more than this key's {} allows",
                rate.map_or_else(String::new, |r| r.to_string())
            ),
        )
        .param("max_tokens")
        .hint("request fewer tokens")),
    }
}

/// Counts tokens that were neither read by a model nor generated: only the key's token rate limits them.
pub(crate) async fn take_tokens(app: &App, caller: &Caller, tokens: u64, param: &str) -> Result<(), ApiError> {
    let counted = Caller { token: None, token_limit: None, ..caller.clone() };
    reserve(app, &counted, tokens).await.map(drop).map_err(|error| match error.param {
        Some(_) => error.param(param).hint("send less in one request"),
        None => error,
    })
}

/// Settles what a generation used, also after its client disconnected. If the write fails, the reservation stays until
/// the token expires, so usage is never undercounted.
pub(crate) async fn settle(app: &App, reservation: Option<Reservation>, used: u64) {
    let Some(reservation) = reservation else { return };
    if let Some(leases) = &app.leases {
        return leases.settle(&reservation, used);
    }
    let settled = retry(RETRIES, StoreError::passes, || app.store.settle(&reservation, used)).await;
    if let Err(error) = settled {
        tracing::warn!(key = %reservation.subject, used, error = %chain(&error), "token usage could not be recorded");
    }
}

fn refusal(rate: Rate, what: &str, retry_ms: f64) -> ApiError {
    ApiError::new(
        StatusCode::TOO_MANY_REQUESTS,
        "rate_limit_exceeded",
        format!("this key's limit is {} {what} per {}", rate.count, per(rate)),
    )
    .hint("try again after the time in Retry-After")
    .retry_after(Duration::from_secs_f64(retry_ms.max(0.0) / 1000.0))
}

fn per(rate: Rate) -> String {
    rate.to_string().split_once('/').map_or_else(String::new, |(_, per)| per.to_owned())
}

/// When to try again where the primary site cannot be reached.
const APART_RETRY: Duration = Duration::from_secs(5);

/// Rates counted in this process alone, for when the store cannot be written.
#[derive(Debug, Default)]
pub(crate) struct LocalRates(Mutex<HashMap<String, Local>>);

#[derive(Debug, Default)]
struct Local {
    arrival_ms: f64,
    /// Until then no request waits for the store, after one timed out.
    alone_until: Option<Instant>,
}

/// Maximum number of keys counted locally; beyond it the table is cleared.
const MAX_LOCAL: usize = 10_000;

/// How long a key is counted locally before the store is tried again.
const ALONE: Duration = Duration::from_secs(1);

impl LocalRates {
    fn is_alone(&self, subject: &str) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(subject).and_then(|local| local.alone_until).is_some_and(|until| Instant::now() < until)
    }

    fn begin_alone(&self, subject: &str) {
        self.with(subject, |local| local.alone_until = Some(Instant::now() + ALONE));
    }

    /// Records the state of all replicas from the last successful query.
    fn learn(&self, subject: &str, taken: Taken) {
        let arrival_ms = match taken {
            Taken::Yes { arrival_ms, .. } => arrival_ms,
            Taken::NotYet { left, .. } => now_ms() as f64 + left.reset_ms,
            Taken::Never => return,
        };
        self.with(subject, |local| local.arrival_ms = local.arrival_ms.max(arrival_ms));
    }

    fn take(&self, subject: &str, rate: Rate) -> Taken {
        self.with(subject, |local| {
            let taken = take(rate, local.arrival_ms, 1, now_ms() as f64);
            if let Taken::Yes { arrival_ms, .. } = taken {
                local.arrival_ms = arrival_ms;
            }
            taken
        })
    }

    fn with<T>(&self, subject: &str, work: impl FnOnce(&mut Local) -> T) -> T {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(local) = known.get_mut(subject) {
            return work(local);
        }
        if known.len() >= MAX_LOCAL {
            known.clear();
        }
        work(known.entry(subject.to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replica_without_the_store_enforces_its_own_rate_limits() {
        let (rates, rate) = (LocalRates::default(), "2/hour".parse().unwrap());
        assert!(matches!(rates.take("a", rate), Taken::Yes { .. }));
        assert!(matches!(rates.take("a", rate), Taken::Yes { .. }));
        assert!(matches!(rates.take("a", rate), Taken::NotYet { .. }));
        assert!(matches!(rates.take("b", rate), Taken::Yes { .. }));
        assert!(!rates.is_alone("a"));
        rates.begin_alone("a");
        assert!(rates.is_alone("a") && !rates.is_alone("b"), "others still ask the store");
        assert!(matches!(rates.take("a", rate), Taken::NotYet { .. }), "what was counted stays counted");
        let now = now_ms() as f64;
        rates.learn("c", take(rate, 0.0, 1, now));
        assert!(matches!(rates.take("c", rate), Taken::Yes { .. }));
        assert!(matches!(rates.take("c", rate), Taken::NotYet { .. }), "one was given by all of them together");
        rates.learn("d", take(rate, now + 3_600_000.0, 1, now));
        assert!(matches!(rates.take("d", rate), Taken::NotYet { .. }), "nothing was left");
    }
}
