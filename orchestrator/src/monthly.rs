//! What a service did in a month, by its own records, and what that cost. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_provider::HOURS_PER_MONTH;

use crate::plan::{Cost, ServiceCost, amount};

/// A month (UTC): `2026-11`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Month(Date);

/// Text that is no month.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a month; write it as `2026-11`")]
pub struct NoMonth(String);

impl FromStr for Month {
    type Err = NoMonth;

    fn from_str(text: &str) -> Result<Self, NoMonth> {
        let no_month = || NoMonth(text.chars().take(40).collect());
        let first: Date = format!("{text}-01").parse().map_err(|_| no_month())?;
        // Periods are in milliseconds since 1970.
        let is_in_range = (1970..9999).contains(&first.year());
        if is_in_range && text.len() == 7 { Ok(Self(first)) } else { Err(no_month()) }
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.strftime("%Y-%m").to_string())
    }
}

impl Month {
    /// The month of a time.
    pub fn of(time: Timestamp) -> Self {
        Self(time.to_zoned(TimeZone::UTC).date().first_of_month())
    }

    /// Its first day.
    pub fn first_day(self) -> Date {
        self.0
    }

    /// The month before.
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(Span::new().months(1)))
    }

    /// The first day of the next month.
    pub fn next(self) -> Date {
        self.0.saturating_add(Span::new().months(1))
    }

    /// Its first moment.
    pub fn start(self) -> Timestamp {
        midnight(self.0)
    }

    /// The first moment of the next month.
    pub fn end(self) -> Timestamp {
        midnight(self.next())
    }

    /// Its days that have begun, by their number since 1970 and in the month.
    fn days(self, now: Timestamp) -> impl Iterator<Item = (i64, i8)> {
        let first = self.start().as_second() / DAY;
        let begun = (1..=self.0.days_in_month()).map(move |day| (first + i64::from(day) - 1, day));
        begun.filter(move |(day, _)| day * DAY <= now.as_second())
    }
}

/// Seconds of a day.
const DAY: i64 = 86_400;

fn midnight(date: Date) -> Timestamp {
    date.to_zoned(TimeZone::UTC).map_or(Timestamp::UNIX_EPOCH, |zoned| zoned.timestamp())
}

/// Requests of `/v1/`, as the server reports them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct RequestSum {
    /// Requests.
    pub requests: u64,
    /// Those with a status from 400 to 499.
    pub refused: u64,
    /// Those with a status of 500 and above.
    pub errors: u64,
    /// Tokens of prompts and of embedded texts.
    pub prompt_tokens: u64,
    /// Generated tokens.
    pub generated_tokens: u64,
    /// The median duration of successful requests in milliseconds.
    pub p50_ms: Option<u64>,
    /// The 95th percentile.
    pub p95_ms: Option<u64>,
    /// The 99th percentile.
    pub p99_ms: Option<u64>,
}

impl RequestSum {
    /// The share of requests without an error of the server; `None` without requests.
    pub fn availability(&self) -> Option<f64> {
        (self.requests > 0).then(|| 1.0 - self.errors as f64 / self.requests as f64)
    }

    /// Tokens of prompts and generated ones.
    pub fn tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.generated_tokens)
    }
}

/// One day with requests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DaySum {
    /// Days since 1970.
    pub day: i64,
    /// Its requests.
    #[serde(flatten)]
    pub sum: RequestSum,
}

/// One tenant and model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupSum {
    /// The tenant.
    pub tenant: String,
    /// The model; `None` for requests without one.
    pub model: Option<String>,
    /// Requests.
    pub requests: u64,
    /// Tokens.
    pub tokens: u64,
    /// What those requests were charged with for which prices were set, by currency.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub charged: BTreeMap<String, f64>,
}

/// The usage of a month, as `admin usage` of the server prints it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MonthlyUsage {
    /// When the oldest recorded request ended, in milliseconds since 1970; `None` without records.
    pub since_ms: Option<i64>,
    /// The month.
    pub total: RequestSum,
    /// Days with requests, oldest first.
    pub days: Vec<DaySum>,
    /// Tenants and models, those with the most tokens first.
    pub groups: Vec<GroupSum>,
    /// Whether there are more of them than the list has.
    pub has_more_groups: bool,
    /// What all tenants and models were charged with, by currency; empty if no prices were set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub charged: BTreeMap<String, f64>,
}

/// What is known of a day.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum DayRecord {
    /// The service has requests of it.
    Measured(RequestSum),
    /// It has records of that time, and none of this day.
    Idle,
    /// Its records begin later, or are deleted.
    NotRecorded,
}

impl DayRecord {
    /// Its requests, if there are any.
    pub fn sum(&self) -> Option<&RequestSum> {
        match self {
            Self::Measured(sum) => Some(sum),
            Self::Idle | Self::NotRecorded => None,
        }
    }
}

impl MonthlyUsage {
    /// The days of a month that have begun, with their number in the month.
    pub fn by_day(&self, month: Month, now: Timestamp) -> Vec<(i8, DayRecord)> {
        let known: BTreeMap<i64, RequestSum> = self.days.iter().map(|day| (day.day, day.sum)).collect();
        let since = self.since_ms.map(|ms| ms.div_euclid(DAY * 1000));
        let record = |day: i64| match known.get(&day) {
            Some(sum) => DayRecord::Measured(*sum),
            None if since.is_some_and(|since| day > since) => DayRecord::Idle,
            None => DayRecord::NotRecorded,
        };
        month.days(now).map(|(day, number)| (number, record(day))).collect()
    }

    /// The part of a month that the records cover, until now at most. `None` without records of it.
    pub fn covered(&self, month: Month, now: Timestamp) -> Option<(Timestamp, Timestamp)> {
        let since = Timestamp::from_millisecond(self.since_ms?).ok()?;
        let (from, until) = (month.start().max(since), month.end().min(now));
        (from < until).then_some((from, until))
    }

    /// What the tenants were charged with, less the known cost. `None` without charges, or with charges in another
    /// currency: currencies are not converted.
    pub fn margin(&self, cost: &TokenCost) -> Option<f64> {
        let charged = self.charged.get(&cost.currency).filter(|_| self.charged.len() == 1)?;
        Some(rounded(charged - cost.cost, 4))
    }
}

/// What tokens cost: the cost of the recorded part of a month, divided by its tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenCost {
    /// The first time of that part.
    pub from: Timestamp,
    /// The last time.
    pub until: Timestamp,
    /// Its known cost: the known monthly cost of what is deployed now, for these hours.
    pub cost: f64,
    /// Whether an amount is not known, so that every cost is a lower bound.
    pub is_partial: bool,
    /// The currency.
    pub currency: String,
    /// Tokens of prompts and generated ones.
    pub tokens: u64,
    /// The cost of 1,000 tokens; `None` without tokens.
    pub per_1k_tokens: Option<f64>,
    /// The cost of each tenant and model, by its share of the tokens.
    pub groups: Vec<GroupCost>,
}

/// The cost of a tenant and model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupCost {
    /// The tenant and the model.
    #[serde(flatten)]
    pub group: GroupSum,
    /// Its part of the cost.
    pub cost: f64,
}

impl TokenCost {
    /// The cost of the tokens of a month. `None` if nothing of it is recorded, or nothing has a price.
    pub fn of(cost: &Cost, usage: &MonthlyUsage, month: Month, now: Timestamp) -> Option<Self> {
        let (from, until) = usage.covered(month, now).filter(|_| cost.known_micros > 0)?;
        let hours = hours(from, until);
        let whole = cost.known_micros as f64 / 1e6 * hours / HOURS_PER_MONTH as f64;
        let tokens = usage.total.tokens();
        let share = |part: u64| if tokens == 0 { 0.0 } else { whole * part as f64 / tokens as f64 };
        let groups = usage.groups.iter().filter(|_| tokens > 0);
        Some(Self {
            from,
            until,
            cost: rounded(whole, 4),
            is_partial: !cost.unknown.is_empty(),
            currency: cost.currency.clone(),
            tokens,
            per_1k_tokens: (tokens > 0).then(|| rounded(share(1000), 6)),
            groups: groups
                .map(|group| GroupCost { group: group.clone(), cost: rounded(share(group.tokens), 4) })
                .collect(),
        })
    }
}

/// Charges as text: `12.3400 EUR`, with a comma between several currencies; `none` without any.
pub fn charges_text(charged: &BTreeMap<String, f64>) -> String {
    let amounts: Vec<String> = charged.iter().map(|(currency, amount)| format!("{amount:.4} {currency}")).collect();
    if amounts.is_empty() { "none".to_owned() } else { amounts.join(", ") }
}

fn rounded(value: f64, decimals: i32) -> f64 {
    let unit = 10_f64.powi(decimals);
    (value * unit).round() / unit
}

/// What a cost is broken down by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    /// The service on the provider's bill.
    Service,
    /// The region of the site.
    Region,
    /// The site.
    Site,
}

impl FromStr for Dimension {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "service" => Ok(Self::Service),
            "region" => Ok(Self::Region),
            "site" => Ok(Self::Site),
            _ => Err(format!("`{text}` is not one of `service`, `region`, `site`")),
        }
    }
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "service",
            Self::Region => "region",
            Self::Site => "site",
        })
    }
}

/// The monthly cost by these dimensions, in their order, by the region of each site.
pub fn breakdown(
    cost: &Cost,
    dimensions: &[Dimension],
    regions: &BTreeMap<String, String>,
) -> BTreeMap<Vec<String>, ServiceCost> {
    cost.by(|site, service| {
        let value = |dimension: &Dimension| match dimension {
            Dimension::Service => service.to_owned(),
            Dimension::Site => site.to_owned(),
            Dimension::Region => regions.get(site).map_or("unknown", String::as_str).to_owned(),
        };
        dimensions.iter().map(value).collect()
    })
}

/// A sum as text: `73.00`, `≥ 73.00` or `unknown`.
pub fn sum_text(micros: u64, is_partial: bool) -> String {
    match (micros, is_partial) {
        (0, true) => "unknown".to_owned(),
        (micros, true) => format!("≥ {:.2}", amount(micros)),
        (micros, false) => format!("{:.2}", amount(micros)),
    }
}

/// The rows of a breakdown, as in JSON documents.
pub fn breakdown_document(rows: &BTreeMap<Vec<String>, ServiceCost>, dimensions: &[Dimension]) -> Value {
    let row = |(values, sum): (&Vec<String>, &ServiceCost)| {
        let mut document = json!({ "monthly": (!sum.is_partial).then_some(sum.known()), "known": sum.known() });
        for (dimension, value) in dimensions.iter().zip(values) {
            document[dimension.to_string()] = json!(value);
        }
        document
    };
    rows.iter().map(row).collect()
}

/// The time that reports show: `2026-11-24 07:00 UTC`.
pub fn time_text(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

/// The length of a period in hours.
pub fn hours(from: Timestamp, until: Timestamp) -> f64 {
    until.duration_since(from).as_secs_f64() / 3600.0
}
