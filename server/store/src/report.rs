//! What all tenants used in a period, by day and by tenant and model, for the operator's reports.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::charge::Charges;
use super::dialect::Dialect;
use super::scope::Job;
use super::usage::DAY_MS;
use super::{Store, StoreError};

/// The longest period of a report, in days.
pub const MAX_REPORT_DAYS: i64 = 31;

/// The most pairs of tenant and model in a report, those with the most tokens first.
const MAX_GROUPS: usize = 500;

/// The longest that a report may take, also in a session of PostgreSQL.
const LIMIT: Duration = Duration::from_secs(150);
const SET_LIMIT: &str = "SET LOCAL statement_timeout = '150s'";

/// Requests of `/v1/`, their tokens and their latency.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RequestSum {
    /// Requests.
    pub requests: i64,
    /// Those with a status from 400 to 499.
    pub refused: i64,
    /// Those with a status of 500 and above.
    pub errors: i64,
    /// Tokens of prompts and of embedded texts.
    pub prompt_tokens: i64,
    /// Generated tokens.
    pub generated_tokens: i64,
    /// The median duration of successful requests, in milliseconds; `None` without any.
    pub p50_ms: Option<i64>,
    /// The 95th percentile.
    pub p95_ms: Option<i64>,
    /// The 99th percentile.
    pub p99_ms: Option<i64>,
}

/// One day (UTC).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DaySum {
    /// Days since 1970.
    pub day: i64,
    /// Its requests.
    #[serde(flatten)]
    pub sum: RequestSum,
}

/// One tenant and model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GroupSum {
    /// The tenant.
    pub tenant: String,
    /// The model; `None` for requests without one.
    pub model: Option<String>,
    /// Requests.
    pub requests: i64,
    /// Tokens of prompts and generated ones.
    pub tokens: i64,
    /// What those requests cost the tenant for which prices were set.
    #[serde(skip_serializing_if = "Charges::is_empty")]
    pub charged: Charges,
}

/// The usage of a period.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UsageReport {
    /// When the oldest recorded request ended, in milliseconds since 1970; `None` without records.
    pub since_ms: Option<i64>,
    /// The whole period.
    pub total: RequestSum,
    /// Days with requests, oldest first.
    pub days: Vec<DaySum>,
    /// Tenants and models, those with the most tokens first.
    pub groups: Vec<GroupSum>,
    /// Whether there are more of them than the list has.
    pub has_more_groups: bool,
    /// What the requests of all tenants and models cost them, also of those that are not listed.
    #[serde(skip_serializing_if = "Charges::is_empty")]
    pub charged: Charges,
}

impl Store {
    /// The usage from `from_ms` until just before `until_ms`: [`MAX_REPORT_DAYS`] days at most.
    ///
    /// It takes 150 seconds at most, less than the one-off job that runs it.
    pub async fn usage_report(&self, from_ms: i64, until_ms: i64) -> Result<UsageReport, StoreError> {
        let late = |_| StoreError::Away(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()));
        tokio::time::timeout(LIMIT, self.sum_usage(from_ms, until_ms)).await.map_err(late)?
    }

    async fn sum_usage(&self, from_ms: i64, until_ms: i64) -> Result<UsageReport, StoreError> {
        let mut transaction = self.read_all(Job::Report).await?;
        if self.dialect == Dialect::Postgres {
            self.ask(sqlx::query(SET_LIMIT).execute(&mut *transaction)).await?;
        }
        let oldest =
            self.patiently(sqlx::query("SELECT min(created_at) FROM api_usage").fetch_one(&mut *transaction)).await?;
        let query = sqlx::query(
            "SELECT created_at / 86400000 AS day, count(*), \
             CAST(sum(CASE WHEN status >= 400 AND status < 500 THEN 1 ELSE 0 END) AS BIGINT), \
             CAST(sum(CASE WHEN status >= 500 THEN 1 ELSE 0 END) AS BIGINT), CAST(sum(prompt_tokens) AS BIGINT), \
             CAST(sum(generated_tokens) AS BIGINT) FROM api_usage \
             WHERE created_at >= $1 AND created_at < $2 AND endpoint LIKE '/v1/%' GROUP BY day ORDER BY day",
        )
        .bind(from_ms)
        .bind(until_ms);
        let rows = self.patiently(query.fetch_all(&mut *transaction)).await?;
        let (mut days, mut total, mut all) = (Vec::new(), RequestSum::default(), BTreeMap::new());
        for row in &rows {
            let mut day = DaySum {
                day: row.try_get(0)?,
                sum: RequestSum {
                    requests: row.try_get(1)?,
                    refused: row.try_get(2)?,
                    errors: row.try_get(3)?,
                    prompt_tokens: row.try_get(4)?,
                    generated_tokens: row.try_get(5)?,
                    ..RequestSum::default()
                },
            };
            // One day at a time: its distinct durations are bounded by the timeout of requests.
            let query = sqlx::query(
                "SELECT generation_time_ms, count(*) FROM api_usage WHERE created_at >= $1 AND created_at < $2 \
                 AND status < 400 AND endpoint LIKE '/v1/%' GROUP BY generation_time_ms",
            )
            .bind(from_ms.max(day.day * DAY_MS))
            .bind(until_ms.min((day.day + 1) * DAY_MS));
            let mut durations = BTreeMap::new();
            for row in self.patiently(query.fetch_all(&mut *transaction)).await? {
                let (ms, count): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
                durations.insert(ms, count);
                *all.entry(ms).or_default() += count;
            }
            day.sum.measure(&durations);
            total.add(&day.sum);
            days.push(day);
        }
        total.measure(&all);
        let query = sqlx::query(
            "SELECT tenant_id, model, count(*), CAST(sum(tokens_used) AS BIGINT) AS tokens FROM api_usage \
             WHERE created_at >= $1 AND created_at < $2 AND endpoint LIKE '/v1/%' \
             GROUP BY tenant_id, model ORDER BY tokens DESC, tenant_id, model LIMIT $3",
        )
        .bind(from_ms)
        .bind(until_ms)
        .bind(MAX_GROUPS as i64 + 1);
        let rows = self.patiently(query.fetch_all(&mut *transaction)).await?;
        let group = |row: &AnyRow| -> Result<GroupSum, StoreError> {
            Ok(GroupSum {
                tenant: row.try_get(0)?,
                model: row.try_get(1)?,
                requests: row.try_get(2)?,
                tokens: row.try_get(3)?,
                charged: Charges::default(),
            })
        };
        let mut groups = rows.iter().take(MAX_GROUPS).map(group).collect::<Result<Vec<_>, _>>()?;
        let has_more_groups = rows.len() > MAX_GROUPS;
        // By itself: a tenant and model with several currencies, or without prices at first, is one row above.
        let query = sqlx::query(
            "SELECT tenant_id, model, currency, CAST(sum(cost_nanos / 1000000000) AS BIGINT), \
             CAST(sum(cost_nanos % 1000000000) AS BIGINT) FROM api_usage WHERE created_at >= $1 AND created_at < $2 \
             AND currency IS NOT NULL AND endpoint LIKE '/v1/%' GROUP BY tenant_id, model, currency",
        )
        .bind(from_ms)
        .bind(until_ms);
        let mut charged = Charges::default();
        for row in self.patiently(query.fetch_all(&mut *transaction)).await? {
            let (tenant, model): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
            let amount = Charges::read(&row, 2)?;
            charged.add(&amount);
            if let Some(group) = groups.iter_mut().find(|group| group.tenant == tenant && group.model == model) {
                group.charged.add(&amount);
            }
        }
        Ok(UsageReport { since_ms: oldest.try_get(0)?, total, days, groups, has_more_groups, charged })
    }
}

impl RequestSum {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.refused += other.refused;
        self.errors += other.errors;
        self.prompt_tokens += other.prompt_tokens;
        self.generated_tokens += other.generated_tokens;
    }

    /// Sets the quantiles, each the smallest duration that this share of the requests does not exceed.
    fn measure(&mut self, durations: &BTreeMap<i64, i64>) {
        let count: i64 = durations.values().sum();
        let quantile = |percent: i64| {
            // Rounded up: of one request, every quantile is its duration.
            let rank = (count * percent + 99) / 100;
            let mut seen = 0;
            durations.iter().find(|(_, count)| {
                seen += **count;
                seen >= rank
            })
        };
        let ms = |percent| quantile(percent).map(|(ms, _)| *ms);
        (self.p50_ms, self.p95_ms, self.p99_ms) = (ms(50), ms(95), ms(99));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Bench, on_both};
    use super::super::{Charge, Usage};
    use super::*;

    on_both!(report_has_exact_sums_and_quantiles_by_day_of_all_tenants);

    async fn report_has_exact_sums_and_quantiles_by_day_of_all_tenants(bench: Bench) {
        let store = bench.store().await;
        let row = |tenant: &str, model: Option<&str>, endpoint: &str, ms, status, at_ms| Usage {
            id: uuid::Uuid::now_v7(),
            request_id: "r".into(),
            user: "key".into(),
            tenant: tenant.into(),
            endpoint: endpoint.into(),
            model: model.map(str::to_owned),
            prompt_tokens: 2,
            generated_tokens: 3,
            charge: None,
            ms,
            status,
            at_ms,
        };
        assert_eq!(store.usage_report(0, 2 * DAY_MS).await.unwrap().since_ms, None);
        // A hundred requests of 1 to 100 ms on the first day.
        let mut rows: Vec<Usage> =
            (1..=100).map(|ms| row("acme", Some("m"), "/v1/generate", ms, 200, ms as i64)).collect();
        let charge = |nanos, currency: &str| Some(Charge { nanos, cents: 0, currency: currency.into() });
        rows[0].charge = charge(600_000_000, "EUR");
        rows[1].charge = charge(600_000_001, "EUR");
        rows[2].charge = charge(5, "USD");
        rows.extend([
            row("acme", Some("m"), "/v1/generate", 9_000, 503, 200),
            row("acme", None, "/v1/validate", 9_000, 429, 200),
            row("acme", None, "/auth/token", 9_000, 200, 200),
            Usage { charge: charge(1, "USD"), ..row("globex", Some("m"), "/v1/generate", 700, 200, DAY_MS) },
            row("globex", Some("m"), "/v1/generate", 800, 200, 2 * DAY_MS),
        ]);
        store.append_usage(&rows).await.unwrap();
        let report = store.usage_report(1, 2 * DAY_MS).await.unwrap();
        assert_eq!(report.since_ms, Some(1));
        let [first, second] = report.days.as_slice() else { panic!("two days: {report:?}") };
        let quantiles = |sum: &RequestSum| (sum.p50_ms, sum.p95_ms, sum.p99_ms);
        assert_eq!((first.day, first.sum.requests, first.sum.refused, first.sum.errors), (0, 102, 1, 1));
        assert_eq!((first.sum.prompt_tokens, first.sum.generated_tokens), (204, 306));
        assert_eq!(quantiles(&first.sum), (Some(50), Some(95), Some(99)), "of successful requests only");
        assert_eq!((second.day, quantiles(&second.sum)), (1, (Some(700), Some(700), Some(700))));
        assert_eq!((report.total.requests, quantiles(&report.total)), (103, (Some(51), Some(96), Some(100))));
        let groups: Vec<_> =
            report.groups.iter().map(|group| (group.tenant.as_str(), group.model.as_deref(), group.tokens)).collect();
        assert_eq!(groups, [("acme", Some("m"), 505), ("acme", None, 5), ("globex", Some("m"), 5)]);
        assert!(!report.has_more_groups);
        let charged: Vec<_> = report.groups.iter().map(|group| serde_json::json!(group.charged)).collect();
        assert_eq!(
            serde_json::json!(charged),
            serde_json::json!([{ "EUR": 1.200_000_001, "USD": 5e-9 }, {}, { "USD": 1e-9 }])
        );
        assert_eq!(serde_json::json!(report.charged), serde_json::json!({ "EUR": 1.200_000_001, "USD": 6e-9 }));
        assert_eq!(RequestSum::default().p50_ms, None);
    }
}
