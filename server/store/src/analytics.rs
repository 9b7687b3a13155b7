//! Usage analytics: what each hour was like, and what was unusual about it.
//!
//! [`Store::analyze`] reads the usage of complete hours and writes one summary for each subject (the service, each tenant,
//! each model of a tenant), and findings against the subject's earlier hours. The summaries are these earlier hours, so that
//! no run reads old usage again. Rows of complete hours are never replaced: runs may be repeated, and may run at the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use sqlx::Row;
use sqlx::any::AnyRow;

use super::charge::Charges;
use super::dialect::Dialect;
use super::scope::Job;
use super::statistics::{Baseline, THRESHOLD};
use super::usage::DAY_MS;
use super::{Store, StoreError, TenantStore};

/// Milliseconds of an hour.
pub const HOUR_MS: i64 = 3_600_000;

/// The earlier hours of a baseline, in days: insights are kept at least as long.
pub const BASELINE_DAYS: i64 = 28;

/// The hours that a run makes up for, if none ran for a while.
const CATCH_UP_HOURS: i64 = 24;

/// Usage is written in batches: an hour is complete this much after its end, in milliseconds.
const SETTLES_MS: i64 = 10_000;

/// A baseline has at least this many hours.
const MIN_HOURS: usize = 24;

/// With this many hours at the same time of day, the baseline is of those: a nightly job is not unusual at night.
const MIN_SAME_HOURS: usize = 7;

/// Shares and latencies of fewer requests in an hour say nothing.
const MIN_REQUESTS: i64 = 20;

/// Tenants, and models of tenants, that get insights in an hour: those with the most requests.
const MAX_SUBJECTS: i64 = 500;

/// Currencies of these subjects.
const MAX_COSTS: i64 = 4 * MAX_SUBJECTS;

/// The longest that one hour may take.
const LIMIT: Duration = Duration::from_secs(150);
const SET_LIMIT: &str = "SET LOCAL statement_timeout = '150s'";

/// The most insights of one list. One more may be read, to know whether there are more.
pub const MAX_INSIGHTS: u32 = 1000;

/// The tenant of insights of the whole service. No tenant can have this name.
const SERVICE: &str = "*";

/// The kinds of insights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the table below describes each
pub enum InsightKind {
    Summary,
    TrafficSpike,
    TrafficDrop,
    FailuresRise,
    LatencyRise,
    QualityDrop,
    PromptsShift,
    AnswersShift,
    FirstUse,
}

/// How much an insight matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// To know.
    Info,
    /// To look at.
    Warning,
}

/// What a kind means.
#[derive(Debug, Clone, Copy)]
pub struct KindDefinition {
    /// The kind.
    pub kind: InsightKind,
    /// Its name in documents.
    pub name: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// When there is one.
    pub rule: &'static str,
    unusual: Option<Unusual>,
}

/// When a number is unusual: its score exceeds the threshold, and it is this different from the median besides.
#[derive(Debug, Clone, Copy)]
struct Unusual {
    measure: Measure,
    direction: Direction,
    factor: f64,
    least_change: f64,
}

/// On which side of the median a number is unusual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Above,
    Below,
    Either,
}

impl Direction {
    fn signs(self) -> &'static [f64] {
        match self {
            Self::Above => &[1.0],
            Self::Below => &[-1.0],
            Self::Either => &[1.0, -1.0],
        }
    }
}

/// A number of an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measure {
    Requests,
    /// The share of requests that failed.
    Failures,
    P95,
    /// The share of texts that were valid and, where they ask for one, got an answer.
    Quality,
    /// The mean number of tokens of a prompt.
    PromptTokens,
    /// The mean number of tokens of an answer.
    AnswerTokens,
}

/// The kinds, in the order of their names in documents.
pub static KINDS: [KindDefinition; 9] = [
    KindDefinition {
        kind: InsightKind::Summary,
        name: "summary",
        severity: Severity::Info,
        rule: "each hour of the service, and each hour of a tenant or a model with requests",
        unusual: None,
    },
    KindDefinition {
        kind: InsightKind::TrafficSpike,
        name: "traffic_spike",
        severity: Severity::Warning,
        rule: "requests: at least twice as many as usual, and 20 more",
        unusual: Some(Unusual {
            measure: Measure::Requests,
            direction: Direction::Above,
            factor: 2.0,
            least_change: 20.0,
        }),
    },
    KindDefinition {
        kind: InsightKind::TrafficDrop,
        name: "traffic_drop",
        severity: Severity::Warning,
        rule: "requests: at most half as many as usual, and 20 fewer",
        unusual: Some(Unusual {
            measure: Measure::Requests,
            direction: Direction::Below,
            factor: 2.0,
            least_change: 20.0,
        }),
    },
    KindDefinition {
        kind: InsightKind::FailuresRise,
        name: "failures_rise",
        severity: Severity::Warning,
        rule: "share of requests with a status of 500 or above: at least twice the usual one, and 5 percentage points more",
        unusual: Some(Unusual {
            measure: Measure::Failures,
            direction: Direction::Above,
            factor: 2.0,
            least_change: 0.05,
        }),
    },
    KindDefinition {
        kind: InsightKind::LatencyRise,
        name: "latency_rise",
        severity: Severity::Warning,
        rule: "95th percentile of latency: at least 1.5 times the usual one, and 100 ms more",
        unusual: Some(Unusual { measure: Measure::P95, direction: Direction::Above, factor: 1.5, least_change: 100.0 }),
    },
    KindDefinition {
        kind: InsightKind::QualityDrop,
        name: "quality_drop",
        severity: Severity::Warning,
        rule: "data quality, the share of texts that were neither refused as invalid nor answered without a token: at least 5 percentage points \
               below the usual one",
        unusual: Some(Unusual {
            measure: Measure::Quality,
            direction: Direction::Below,
            factor: 1.0,
            least_change: 0.05,
        }),
    },
    KindDefinition {
        kind: InsightKind::PromptsShift,
        name: "prompts_shift",
        severity: Severity::Info,
        rule: "mean tokens of a prompt: at least 1.5 times the usual number, or at most two thirds of it, and 16 tokens different",
        unusual: Some(Unusual {
            measure: Measure::PromptTokens,
            direction: Direction::Either,
            factor: 1.5,
            least_change: 16.0,
        }),
    },
    KindDefinition {
        kind: InsightKind::AnswersShift,
        name: "answers_shift",
        severity: Severity::Info,
        rule: "mean tokens of an answer: at least 1.5 times the usual number, or at most two thirds of it, and 16 tokens different",
        unusual: Some(Unusual {
            measure: Measure::AnswerTokens,
            direction: Direction::Either,
            factor: 1.5,
            least_change: 16.0,
        }),
    },
    KindDefinition {
        kind: InsightKind::FirstUse,
        name: "first_use",
        severity: Severity::Info,
        rule: "the first requests of a tenant, or of a model of a tenant, in 28 days",
        unusual: None,
    },
];

impl InsightKind {
    /// The definition of a kind.
    pub fn definition(self) -> &'static KindDefinition {
        let [first, ..] = &KINDS;
        KINDS.iter().find(|definition| definition.kind == self).unwrap_or(first)
    }

    /// The kind with this name.
    pub fn named(name: &str) -> Option<Self> {
        KINDS.iter().find(|definition| definition.name == name).map(|definition| definition.kind)
    }
}

/// The requests of an hour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct HourSum {
    /// Requests.
    pub requests: i64,
    /// Those with a status of 500 and above.
    pub failures: i64,
    /// Tokens of prompts and of embedded texts.
    pub prompt_tokens: i64,
    /// Generated tokens.
    #[serde(rename = "completion_tokens")]
    pub generated_tokens: i64,
    /// Requests with a text that has tokens.
    pub prompts: i64,
    /// Requests to endpoints that generate which succeeded.
    pub answers: i64,
    /// Those of them without a generated token.
    pub empty_answers: i64,
    /// Requests whose text, or the document with it, was refused: status 400, 413, 415 and 422.
    pub invalid_requests: i64,
    /// The median duration of successful requests, in milliseconds; `None` without any.
    pub p50_ms: Option<i64>,
    /// The 95th percentile.
    pub p95_ms: Option<i64>,
}

impl HourSum {
    /// The data quality, from 0 to 1: the share of texts that were neither refused as invalid nor answered without a token. `None` without
    /// texts.
    pub fn quality(&self) -> Option<f64> {
        let texts = self.prompts + self.invalid_requests;
        (texts > 0).then(|| 1.0 - (self.invalid_requests + self.empty_answers) as f64 / texts as f64)
    }

    /// The ten columns from `first` on, in the order in which every statement here has them.
    fn read(row: &AnyRow, first: usize) -> Result<Self, sqlx::Error> {
        Ok(Self {
            requests: row.try_get(first)?,
            failures: row.try_get(first + 1)?,
            prompt_tokens: row.try_get(first + 2)?,
            generated_tokens: row.try_get(first + 3)?,
            p50_ms: row.try_get(first + 4)?,
            p95_ms: row.try_get(first + 5)?,
            prompts: row.try_get(first + 6)?,
            answers: row.try_get(first + 7)?,
            empty_answers: row.try_get(first + 8)?,
            invalid_requests: row.try_get(first + 9)?,
        })
    }
}

/// One insight.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Insight {
    /// The first second of the hour, since 1970.
    pub start: i64,
    /// The first second after it.
    pub end: i64,
    /// Whether the hour was not complete yet.
    pub partial: bool,
    /// The tenant; `None` for the whole service.
    pub tenant: Option<String>,
    /// The model; `None` for all.
    pub model: Option<String>,
    /// Its kind.
    pub kind: InsightKind,
    /// How much it matters.
    pub severity: Severity,
    /// The number that is unusual; for a summary, the requests.
    pub value: f64,
    /// The usual number.
    pub baseline: Option<f64>,
    /// One sentence.
    pub message: String,
    /// The requests of the hour.
    #[serde(flatten)]
    pub sum: HourSum,
    /// Its [data quality](HourSum::quality).
    pub quality: Option<f64>,
    /// The model with the most requests.
    pub busiest_model: Option<String>,
    /// What the requests cost, by currency; `None` without prices.
    pub cost: Option<Value>,
    /// When the run was that wrote it, in seconds since 1970.
    pub made_at: i64,
}

/// Which insights to list: the newest first.
#[derive(Debug, Clone, Copy)]
pub struct InsightQuery {
    /// Of hours that end after this, in milliseconds since 1970.
    pub since_ms: i64,
    /// Of one kind only.
    pub kind: Option<InsightKind>,
    /// The most insights.
    pub limit: u32,
}

/// The result of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Analyzed {
    /// Complete hours that had no insights before.
    pub hours: u32,
    /// Insights that it made, also of the current hour so far.
    pub insights: u64,
}

/// The last run, and what was found lately.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnalyticsStatus {
    /// When it was, in milliseconds since 1970; `None` before the first.
    pub last_run_ms: Option<i64>,
    /// The insights that it wrote.
    pub insights: i64,
    /// Insights of the last 24 hours by kind; kinds without any are left out.
    pub of_last_day: BTreeMap<InsightKind, i64>,
}

/// The subject of an insight: a model of a tenant, a tenant with an empty model, or the [service](SERVICE).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Subject {
    tenant: String,
    model: String,
}

impl Subject {
    fn service() -> Self {
        Self { tenant: SERVICE.to_owned(), model: String::new() }
    }

    fn words(&self) -> String {
        match (self.tenant.as_str(), self.model.as_str()) {
            (SERVICE, _) => "the service".to_owned(),
            (tenant, "") => format!("tenant `{tenant}`"),
            (tenant, model) => format!("model `{model}` of tenant `{tenant}`"),
        }
    }
}

/// An earlier hour of a subject.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct EarlierHour {
    hour: i64,
    sum: HourSum,
}

/// An insight before it has a row.
#[derive(Debug, Clone, PartialEq)]
struct Finding {
    kind: InsightKind,
    value: f64,
    baseline: Option<f64>,
    message: String,
}

impl Measure {
    /// The number of an hour; `None` if it says nothing.
    fn of(self, sum: &HourSum) -> Option<f64> {
        let mean = |all: i64, count: i64| (count >= MIN_REQUESTS).then(|| all as f64 / count as f64);
        match self {
            Self::Requests => Some(sum.requests as f64),
            Self::Failures => mean(sum.failures, sum.requests),
            Self::P95 => sum.p95_ms.map(|ms| ms as f64).filter(|_| sum.requests >= MIN_REQUESTS),
            Self::Quality => sum.quality().filter(|_| sum.prompts + sum.invalid_requests >= MIN_REQUESTS),
            Self::PromptTokens => mean(sum.prompt_tokens, sum.prompts),
            Self::AnswerTokens => mean(sum.generated_tokens, sum.answers),
        }
    }

    fn sentence(self, of: &str, value: f64, usual: f64) -> String {
        match self {
            Self::Requests => format!("There were {value:.0} requests of {of}; usually there are {usual:.0}."),
            Self::Failures => {
                format!("{:.1} % of the requests of {of} failed; usually {:.1} % do.", value * 100.0, usual * 100.0)
            }
            Self::P95 => {
                format!("The 95th percentile of the latency of {of} was {value:.0} ms; usually it is {usual:.0} ms.")
            }
            Self::Quality => {
                let (value, usual) = (value * 100.0, usual * 100.0);
                format!("The data quality of the requests of {of} was {value:.1} %; usually it is {usual:.1} %.")
            }
            Self::PromptTokens => {
                format!("The prompts of {of} had {value:.0} tokens on average; usually they have {usual:.0}.")
            }
            Self::AnswerTokens => {
                format!("The answers of {of} had {value:.0} tokens on average; usually they have {usual:.0}.")
            }
        }
    }
}

/// What is unusual about an hour of a subject. `earlier` has its hours in order, also those without requests.
fn findings(subject: &Subject, hour: i64, sum: &HourSum, earlier: &[EarlierHour]) -> Vec<Finding> {
    let find = |definition: &KindDefinition| {
        let Unusual { measure, direction, factor, least_change } = definition.unusual?;
        let value = measure.of(sum)?;
        let usual = baseline(measure, hour, earlier)?;
        let is_unusual = direction.signs().iter().any(|sign| {
            let is_far = if *sign > 0.0 { value >= factor * usual.median } else { value * factor <= usual.median };
            usual.score(value) * sign > THRESHOLD && (value - usual.median) * sign >= least_change && is_far
        });
        let message = measure.sentence(&subject.words(), value, usual.median);
        is_unusual.then_some(Finding { kind: definition.kind, value, baseline: Some(usual.median), message })
    };
    KINDS.iter().filter_map(find).collect()
}

/// The baseline of a number: hours at the same time of day if there are enough, else all.
fn baseline(measure: Measure, hour: i64, earlier: &[EarlierHour]) -> Option<Baseline> {
    let number = |of: &EarlierHour| measure.of(&of.sum);
    let all: Vec<f64> = earlier.iter().filter_map(number).collect();
    if all.len() < MIN_HOURS {
        return None;
    }
    let same = earlier.iter().filter(|of| (hour - of.hour) % DAY_MS == 0);
    let same: Vec<f64> = same.filter_map(number).collect();
    Baseline::of(if same.len() >= MIN_SAME_HOURS { same } else { all })
}

fn summary(subject: &Subject, sum: &HourSum, busiest: Option<&str>) -> Finding {
    let of = subject.words();
    let HourSum { requests, failures, prompt_tokens, generated_tokens, p95_ms, .. } = sum;
    let mut message = match requests {
        0 => format!("There were no requests of {of}"),
        _ => format!(
            "There were {requests} requests of {of}, of which {failures} failed, with {prompt_tokens} tokens of prompts and \
             {generated_tokens} generated ones"
        ),
    };
    if let Some(ms) = p95_ms {
        message.push_str(&format!("; the 95th percentile of latency was {ms} ms"));
    }
    if let Some(model) = busiest {
        message.push_str(&format!("; the busiest model was `{model}`"));
    }
    message.push('.');
    Finding { kind: InsightKind::Summary, value: *requests as f64, baseline: None, message }
}

/// The earlier hours of a subject: its rows, and zeros for the other analyzed hours since its first one.
fn without_gaps(rows: &[EarlierHour], analyzed: &BTreeSet<i64>) -> Vec<EarlierHour> {
    let Some(first) = rows.first() else { return Vec::new() };
    let by_hour: BTreeMap<i64, &EarlierHour> = rows.iter().map(|row| (row.hour, row)).collect();
    let of = |hour: &i64| by_hour.get(hour).map_or(EarlierHour { hour: *hour, ..EarlierHour::default() }, |row| **row);
    analyzed.range(first.hour..).map(of).collect()
}

/// The usage of an hour by subject: `$tenant` and `$model` are columns of `api_usage`, or constants.
macro_rules! of_hour {
    ($tenant:literal, $model:literal, $which:literal) => {
        concat!(
            "WITH of_hour AS (SELECT ",
            $tenant,
            " AS subject, ",
            $model,
            " AS part, status, prompt_tokens, generated_tokens, generation_time_ms AS ms, currency, cost_nanos, \
             CASE WHEN endpoint IN ('/v1/generate', '/v1/stream', '/v1/completions', '/v1/chat/completions') THEN 1 ELSE 0 END AS generates \
             FROM api_usage WHERE created_at >= $1 AND created_at < $2 AND endpoint LIKE '/v1/%'",
            $which,
            ")"
        )
    };
}

/// Sums, and quantiles as the smallest duration that this share of the successful requests does not exceed.
macro_rules! sums {
    ($tenant:literal, $model:literal, $which:literal) => {
        concat!(
            of_hour!($tenant, $model, $which),
            ", ranked AS (SELECT subject, part, ms, row_number() OVER (PARTITION BY subject, part ORDER BY ms) AS place, \
             count(*) OVER (PARTITION BY subject, part) AS total FROM of_hour WHERE status < 400), \
             quantiles AS (SELECT subject, part, min(CASE WHEN place * 100 >= total * 50 THEN ms END) AS p50, \
             min(CASE WHEN place * 100 >= total * 95 THEN ms END) AS p95 FROM ranked GROUP BY subject, part), \
             sums AS (SELECT subject, part, count(*) AS requests, \
             CAST(sum(CASE WHEN status >= 500 THEN 1 ELSE 0 END) AS BIGINT) AS failures, \
             CAST(sum(prompt_tokens) AS BIGINT) AS prompt_tokens, CAST(sum(generated_tokens) AS BIGINT) AS generated_tokens, \
             CAST(sum(CASE WHEN prompt_tokens > 0 THEN 1 ELSE 0 END) AS BIGINT) AS prompts, \
             CAST(sum(CASE WHEN status < 400 THEN generates ELSE 0 END) AS BIGINT) AS answers, \
             CAST(sum(CASE WHEN status < 400 AND generated_tokens = 0 THEN generates ELSE 0 END) AS BIGINT) AS empty_answers, \
             CAST(sum(CASE WHEN status IN (400, 413, 415, 422) THEN 1 ELSE 0 END) AS BIGINT) AS invalid_requests \
             FROM of_hour GROUP BY subject, part) \
             SELECT sums.subject, sums.part, sums.requests, sums.failures, sums.prompt_tokens, sums.generated_tokens, quantiles.p50, \
             quantiles.p95, sums.prompts, sums.answers, sums.empty_answers, sums.invalid_requests FROM sums LEFT JOIN quantiles ON quantiles.subject = sums.subject AND quantiles.part = sums.part \
             ORDER BY sums.requests DESC, sums.subject, sums.part LIMIT $3"
        )
    };
}

/// Sums of units and of billionths, as [`Charges::read`] reads them.
macro_rules! costs {
    ($tenant:literal, $model:literal, $which:literal) => {
        concat!(
            of_hour!($tenant, $model, $which),
            " SELECT subject, part, currency, CAST(sum(cost_nanos / 1000000000) AS BIGINT), \
             CAST(sum(cost_nanos % 1000000000) AS BIGINT) FROM of_hour WHERE currency IS NOT NULL \
             GROUP BY subject, part, currency ORDER BY subject, part, currency LIMIT $3"
        )
    };
}

/// The statements for the service, for tenants and for models of tenants.
const LEVELS: [(&str, &str); 3] = [
    (sums!("CAST('*' AS TEXT)", "CAST('' AS TEXT)", ""), costs!("CAST('*' AS TEXT)", "CAST('' AS TEXT)", "")),
    (sums!("tenant_id", "CAST('' AS TEXT)", ""), costs!("tenant_id", "CAST('' AS TEXT)", "")),
    (
        sums!("tenant_id", "model", " AND model IS NOT NULL AND model <> ''"),
        costs!("tenant_id", "model", " AND model IS NOT NULL AND model <> ''"),
    ),
];

/// What an hour was like.
#[derive(Debug, Default)]
struct Hour {
    sums: BTreeMap<Subject, HourSum>,
    costs: BTreeMap<Subject, Charges>,
}

impl Hour {
    /// The model of a subject with the most requests.
    fn busiest(&self, subject: &Subject) -> Option<&str> {
        let mut requests = BTreeMap::<&str, i64>::new();
        let is_part = |of: &Subject| {
            !of.model.is_empty()
                && subject.model.is_empty()
                && (subject.tenant == SERVICE || subject.tenant == of.tenant)
        };
        for (of, sum) in self.sums.iter().filter(|(of, sum)| is_part(of) && sum.requests > 0) {
            *requests.entry(of.model.as_str()).or_default() += sum.requests;
        }
        requests.into_iter().max_by_key(|(_, requests)| *requests).map(|(model, _)| model)
    }
}

/// The first millisecond of an hour.
fn hour_of(ms: i64) -> i64 {
    ms - ms.rem_euclid(HOUR_MS)
}

/// How long to wait until the last hour is complete; zero for most of an hour.
pub fn settles_in(now_ms: i64) -> Duration {
    Duration::from_millis((SETTLES_MS - now_ms.rem_euclid(HOUR_MS)).max(0).unsigned_abs())
}

impl Store {
    /// Writes the insights of the complete hours that have none, of the last 24 at most, and of the current hour so far.
    ///
    /// Each hour takes 150 seconds at most. Repeating it changes nothing but the current hour.
    pub async fn analyze(&self, now_ms: i64) -> Result<Analyzed, StoreError> {
        let current = hour_of(now_ms);
        let complete = hour_of(now_ms - SETTLES_MS);
        let catch_up = complete - CATCH_UP_HOURS * HOUR_MS;
        let mut analyzed = self.analyzed_hours(catch_up - BASELINE_DAYS * DAY_MS, now_ms).await?;
        let mut done = Analyzed::default();
        if let Some(first) = self.first_usage().await? {
            let mut hour = catch_up.max(hour_of(first));
            while hour < complete {
                if !analyzed.contains(&hour) {
                    done.insights += self.analyze_hour(hour, false, &analyzed, now_ms).await?;
                    done.hours += 1;
                    analyzed.insert(hour);
                }
                hour += HOUR_MS;
            }
        }
        let mut hour = complete;
        while hour <= current {
            done.insights += self.analyze_hour(hour, true, &analyzed, now_ms).await?;
            hour += HOUR_MS;
        }
        Ok(done)
    }

    async fn first_usage(&self) -> Result<Option<i64>, StoreError> {
        let mut transaction = self.read_all(Job::Analytics).await?;
        let query = sqlx::query("SELECT min(created_at) FROM api_usage");
        let row = self.ask(query.fetch_one(&mut *transaction)).await?;
        Ok(row.try_get(0)?)
    }

    /// The complete hours since `from_ms` that have insights.
    async fn analyzed_hours(&self, from_ms: i64, until_ms: i64) -> Result<BTreeSet<i64>, StoreError> {
        let mut transaction = self.read_all(Job::Analytics).await?;
        let query = sqlx::query(
            "SELECT hour FROM insights WHERE tenant_id = '*' AND model = '' AND kind = 'summary' AND partial = 0 \
             AND hour >= $1 AND hour < $2",
        )
        .bind(from_ms)
        .bind(until_ms);
        let rows = self.ask(query.fetch_all(&mut *transaction)).await?;
        Ok(rows.iter().map(|row| row.try_get::<i64, _>(0)).collect::<Result<BTreeSet<i64>, sqlx::Error>>()?)
    }

    async fn analyze_hour(
        &self,
        hour: i64,
        partial: bool,
        analyzed: &BTreeSet<i64>,
        now_ms: i64,
    ) -> Result<u64, StoreError> {
        let late = |_| StoreError::Away(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()));
        let mut found = tokio::time::timeout(LIMIT, self.sum_hour(hour)).await.map_err(late)??;
        found.sums.entry(Subject::service()).or_default();
        if !partial {
            // One that is missing in a full list may have requests.
            let is_full = |of_models: bool| {
                let listed = found.sums.keys().filter(|subject| subject.model.is_empty() != of_models);
                listed.count() as i64 >= MAX_SUBJECTS
            };
            let (tenants, models) = (is_full(false), is_full(true));
            for subject in self.subjects_of(hour - HOUR_MS).await? {
                let is_cut = if subject.model.is_empty() { tenants } else { models };
                if !is_cut {
                    found.sums.entry(subject).or_default();
                }
            }
        }
        let mut made = Vec::new();
        for (subject, sum) in &found.sums {
            // A subject without requests is there only for the finding that they are missing.
            if sum.requests > 0 || *subject == Subject::service() {
                made.push((subject, summary(subject, sum, found.busiest(subject))));
            }
            if partial {
                continue;
            }
            let rows = self.earlier_hours(subject, hour).await?;
            let is_new = rows.is_empty() && *subject != Subject::service();
            if is_new && !self.was_used_before(subject, hour).await? {
                let of = subject.words();
                let message = format!("There were requests of {of}, the first ones in {BASELINE_DAYS} days.");
                let value = sum.requests as f64;
                made.push((subject, Finding { kind: InsightKind::FirstUse, value, baseline: None, message }));
            }
            let earlier = without_gaps(&rows, &analyzed.range(..hour).copied().collect());
            made.extend(findings(subject, hour, sum, &earlier).into_iter().map(|finding| (subject, finding)));
        }
        self.write_insights(hour, partial, &found, &made, now_ms).await
    }

    async fn sum_hour(&self, hour: i64) -> Result<Hour, StoreError> {
        let mut transaction = self.read_all(Job::Analytics).await?;
        if self.dialect == Dialect::Postgres {
            self.ask(sqlx::query(SET_LIMIT).execute(&mut *transaction)).await?;
        }
        let subject = |row: &AnyRow| -> Result<Subject, sqlx::Error> {
            Ok(Subject { tenant: row.try_get(0)?, model: row.try_get(1)? })
        };
        let mut of = Hour::default();
        for (sums, costs) in LEVELS {
            let query = sqlx::query(sums).bind(hour).bind(hour + HOUR_MS).bind(MAX_SUBJECTS);
            for row in self.patiently(query.fetch_all(&mut *transaction)).await? {
                let sum = HourSum::read(&row, 2)?;
                of.sums.insert(subject(&row)?, sum);
            }
            let query = sqlx::query(costs).bind(hour).bind(hour + HOUR_MS).bind(MAX_COSTS);
            for row in self.patiently(query.fetch_all(&mut *transaction)).await? {
                of.costs.entry(subject(&row)?).or_default().add(&Charges::read(&row, 2)?);
            }
        }
        Ok(of)
    }

    /// The subjects with requests in an hour.
    async fn subjects_of(&self, hour: i64) -> Result<Vec<Subject>, StoreError> {
        let mut transaction = self.read_all(Job::Analytics).await?;
        let query = sqlx::query(
            "SELECT tenant_id, model FROM insights WHERE hour = $1 AND kind = 'summary' AND partial = 0 \
             ORDER BY requests DESC, tenant_id, model LIMIT $2",
        )
        .bind(hour)
        .bind(2 * MAX_SUBJECTS + 1);
        let rows = self.ask(query.fetch_all(&mut *transaction)).await?;
        let subject = |row: &AnyRow| -> Result<Subject, StoreError> {
            Ok(Subject { tenant: row.try_get(0)?, model: row.try_get(1)? })
        };
        rows.iter().map(subject).collect()
    }

    /// The complete hours with requests of a subject before an hour, oldest first.
    async fn earlier_hours(&self, subject: &Subject, hour: i64) -> Result<Vec<EarlierHour>, StoreError> {
        let mut transaction = self.read_all(Job::Analytics).await?;
        let query = sqlx::query(
            "SELECT hour, requests, failures, prompt_tokens, generated_tokens, p50_ms, p95_ms, prompts, answers, \
             empty_answers, invalid_requests FROM insights WHERE tenant_id = $1 AND model = $2 \
             AND kind = 'summary' AND partial = 0 AND hour >= $3 AND hour < $4 ORDER BY hour",
        )
        .bind(subject.tenant.clone())
        .bind(subject.model.clone())
        .bind(hour - BASELINE_DAYS * DAY_MS)
        .bind(hour);
        let rows = self.ask(query.fetch_all(&mut *transaction)).await?;
        let earlier = |row: &AnyRow| -> Result<EarlierHour, StoreError> {
            Ok(EarlierHour { hour: row.try_get(0)?, sum: HourSum::read(row, 1)? })
        };
        rows.iter().map(earlier).collect()
    }

    /// Whether usage records of the time of the baseline have requests of a subject, also of hours that were not analyzed.
    async fn was_used_before(&self, subject: &Subject, hour: i64) -> Result<bool, StoreError> {
        let mut transaction = self.read_all(Job::Analytics).await?;
        if self.dialect == Dialect::Postgres {
            self.ask(sqlx::query(SET_LIMIT).execute(&mut *transaction)).await?;
        }
        let query = sqlx::query(
            "SELECT count(*) FROM (SELECT 1 AS used FROM api_usage WHERE tenant_id = $1 AND created_at >= $2 \
             AND created_at < $3 AND ($4 = '' OR model = $4) AND endpoint LIKE '/v1/%' LIMIT 1) AS earlier",
        )
        .bind(subject.tenant.clone())
        .bind(hour - BASELINE_DAYS * DAY_MS)
        .bind(hour)
        .bind(subject.model.clone());
        let row = self.patiently(query.fetch_one(&mut *transaction)).await?;
        Ok(row.try_get::<i64, _>(0)? > 0)
    }

    /// Writes the insights of an hour, atomically. Those of a complete hour stay as they are.
    async fn write_insights(
        &self,
        hour: i64,
        partial: bool,
        of: &Hour,
        made: &[(&Subject, Finding)],
        now_ms: i64,
    ) -> Result<u64, StoreError> {
        let mut transaction = self.write_all("analytics", Job::Analytics).await?;
        let mut written = 0;
        for (subject, finding) in made {
            let sum = of.sums.get(*subject).copied().unwrap_or_default();
            let cost = of.costs.get(*subject).filter(|cost| !cost.is_empty());
            let query = sqlx::query(
                "INSERT INTO insights (tenant_id, model, kind, hour, partial, value, baseline, message, requests, failures, \
                 prompt_tokens, generated_tokens, p50_ms, p95_ms, busiest_model, cost, made_at, prompts, answers, \
                 empty_answers, invalid_requests) \
                 VALUES ($1, $2, $3, $4, $5, $6, CAST($7 AS DOUBLE PRECISION), $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, \
                 $21) \
                 ON CONFLICT (tenant_id, model, kind, hour) DO UPDATE SET partial = excluded.partial, \
                 value = excluded.value, baseline = excluded.baseline, message = excluded.message, \
                 requests = excluded.requests, failures = excluded.failures, prompt_tokens = excluded.prompt_tokens, \
                 generated_tokens = excluded.generated_tokens, p50_ms = excluded.p50_ms, p95_ms = excluded.p95_ms, \
                 busiest_model = excluded.busiest_model, cost = excluded.cost, made_at = excluded.made_at, \
                 prompts = excluded.prompts, answers = excluded.answers, empty_answers = excluded.empty_answers, \
                 invalid_requests = excluded.invalid_requests \
                 WHERE insights.partial = 1",
            )
            .bind(subject.tenant.clone())
            .bind(subject.model.clone())
            .bind(finding.kind.definition().name)
            .bind(hour)
            .bind(i64::from(partial))
            .bind(finding.value)
            // As text: the driver prepares a statement whose first number is missing for one of 4 bytes.
            .bind(finding.baseline.map(|baseline| baseline.to_string()))
            .bind(finding.message.clone())
            .bind(sum.requests)
            .bind(sum.failures)
            .bind(sum.prompt_tokens)
            .bind(sum.generated_tokens)
            .bind(sum.p50_ms)
            .bind(sum.p95_ms)
            .bind(of.busiest(subject).map(str::to_owned))
            .bind(cost.map(|cost| serde_json::json!(cost).to_string()))
            .bind(now_ms)
            .bind(sum.prompts)
            .bind(sum.answers)
            .bind(sum.empty_answers)
            .bind(sum.invalid_requests);
            written += self.ask(query.execute(&mut *transaction)).await?.rows_affected();
        }
        self.commit(transaction).await?;
        Ok(written)
    }

    /// The last run of any process, and the insights of the last 24 hours.
    pub async fn analytics_status(&self, now_ms: i64) -> Result<AnalyticsStatus, StoreError> {
        let mut transaction = self.read_all(Job::Analytics).await?;
        // Every run writes the summary of the service for its hour.
        let query =
            sqlx::query("SELECT max(made_at) FROM insights WHERE tenant_id = '*' AND model = '' AND kind = 'summary'");
        let row = self.ask(query.fetch_one(&mut *transaction)).await?;
        let Some(last_run_ms) = row.try_get::<Option<i64>, _>(0)? else { return Ok(AnalyticsStatus::default()) };
        let oldest = hour_of(last_run_ms) - (CATCH_UP_HOURS + 1) * HOUR_MS;
        let query = sqlx::query("SELECT count(*) FROM insights WHERE hour >= $1 AND made_at = $2");
        let row = self.ask(query.bind(oldest).bind(last_run_ms).fetch_one(&mut *transaction)).await?;
        let insights = row.try_get(0)?;
        let query = sqlx::query("SELECT kind, count(*) FROM insights WHERE hour > $1 GROUP BY kind");
        let rows = self.ask(query.bind(now_ms - DAY_MS).fetch_all(&mut *transaction)).await?;
        let mut of_last_day = BTreeMap::new();
        for row in rows {
            // A newer server may have more kinds.
            if let Some(kind) = InsightKind::named(&row.try_get::<String, _>(0)?) {
                of_last_day.insert(kind, row.try_get(1)?);
            }
        }
        Ok(AnalyticsStatus { last_run_ms: Some(last_run_ms), insights, of_last_day })
    }

    /// Insights of the service and of all tenants, the newest hours first.
    pub async fn insights(&self, wanted: InsightQuery) -> Result<Vec<Insight>, StoreError> {
        let mut transaction = self.read_all(Job::Analytics).await?;
        let query = sqlx::query(
            "SELECT tenant_id, model, kind, hour, partial, value, baseline, message, requests, failures, prompt_tokens, \
             generated_tokens, p50_ms, p95_ms, prompts, answers, empty_answers, invalid_requests, busiest_model, cost, made_at FROM insights \
             WHERE hour > $1 AND ($2 = '' OR kind = $2) ORDER BY hour DESC, tenant_id, model, kind LIMIT $3",
        )
        .bind(wanted.since_ms.saturating_sub(HOUR_MS))
        .bind(wanted.kind.map_or("", |kind| kind.definition().name))
        .bind(i64::from(wanted.limit.min(MAX_INSIGHTS + 1)));
        let rows = self.ask(query.fetch_all(&mut *transaction)).await?;
        rows.iter().filter_map(|row| read(row).transpose()).collect()
    }

    /// Deletes insights of hours before a time, oldest first, at most `most`; returns how many.
    pub async fn delete_insights(&self, before_ms: i64, most: u32) -> Result<u64, StoreError> {
        let mut transaction = self.write_all("insight retention", Job::Retention).await?;
        let query = sqlx::query(
            "DELETE FROM insights WHERE (tenant_id, model, kind, hour) IN (SELECT tenant_id, model, kind, hour \
             FROM insights WHERE hour < $1 ORDER BY hour LIMIT $2)",
        )
        .bind(before_ms)
        .bind(i64::from(most));
        let deleted = self.ask(query.execute(&mut *transaction)).await?.rows_affected();
        self.commit(transaction).await?;
        Ok(deleted)
    }
}

impl TenantStore<'_> {
    /// Insights of the tenant and its models, the newest hours first.
    pub async fn insights(self, wanted: InsightQuery) -> Result<Vec<Insight>, StoreError> {
        let mut transaction = self.read().await?;
        let query = self
            .query(
                "SELECT tenant_id, model, kind, hour, partial, value, baseline, message, requests, failures, prompt_tokens, \
                 generated_tokens, p50_ms, p95_ms, prompts, answers, empty_answers, invalid_requests, busiest_model, cost, made_at \
                 FROM insights WHERE tenant_id = $1 \
                 AND hour > $2 AND ($3 = '' OR kind = $3) ORDER BY hour DESC, model, kind LIMIT $4",
            )
            .bind(wanted.since_ms.saturating_sub(HOUR_MS))
            .bind(wanted.kind.map_or("", |kind| kind.definition().name))
            .bind(i64::from(wanted.limit.min(MAX_INSIGHTS + 1)));
        let rows = self.store.ask(query.fetch_all(&mut *transaction)).await?;
        rows.iter().filter_map(|row| read(row).transpose()).collect()
    }
}

/// A row; `None` if its kind is one of a newer server.
fn read(row: &AnyRow) -> Result<Option<Insight>, StoreError> {
    let Some(kind) = InsightKind::named(&row.try_get::<String, _>(2)?) else { return Ok(None) };
    let unreadable = |error: serde_json::Error| StoreError::Schema(format!("table insights: {error}"));
    let (tenant, model): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let hour: i64 = row.try_get(3)?;
    let cost: Option<String> = row.try_get(19)?;
    let sum = HourSum::read(row, 8)?;
    Ok(Some(Insight {
        start: hour / 1000,
        end: (hour + HOUR_MS) / 1000,
        partial: row.try_get::<i64, _>(4)? != 0,
        tenant: (tenant != SERVICE).then_some(tenant),
        model: (!model.is_empty()).then_some(model),
        kind,
        severity: kind.definition().severity,
        value: row.try_get(5)?,
        baseline: row.try_get(6)?,
        message: row.try_get(7)?,
        sum,
        quality: sum.quality(),
        busiest_model: row.try_get(18)?,
        cost: cost.map(|text| serde_json::from_str(&text)).transpose().map_err(unreadable)?,
        made_at: row.try_get::<i64, _>(20)? / 1000,
    }))
}

#[cfg(test)]
mod tests;
