//! The bill of a deployment: what its provider charged in a month.
//!
//! Amounts are integers: billionths of a currency's unit. Credits are negative.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::Date;

use crate::name::Lineage;

/// The most digits of an amount.
const MAX_DIGITS: usize = 36;
/// The largest power of ten of an amount in scientific notation.
const MAX_EXPONENT: u32 = 30;
/// The decimals of a billionth.
const DECIMALS: i32 = 9;
/// Billionths of a hundredth.
const CENT: u128 = 10_000_000;
/// The longest name of a dataset or a table.
const MAX_NAME: usize = 1024;

/// An amount on a bill, in billionths of its currency's unit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct BilledAmount(pub i128);

impl BilledAmount {
    /// The amount in a decimal number as APIs write it: `12.5`, `-0.0000004`, `1.2E-7`. It is rounded to billionths. `None` if it is no
    /// such number.
    pub fn parse(text: &str) -> Option<Self> {
        let (number, exponent) = match text.split_once(['e', 'E']) {
            Some((number, exponent)) => (number, exponent.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (is_negative, number) = number.strip_prefix('-').map_or((false, number), |rest| (true, rest));
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = format!("{whole}{fraction}");
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number || digits.len() > MAX_DIGITS || exponent.unsigned_abs() > MAX_EXPONENT {
            return None;
        }
        let digits: i128 = digits.parse().ok()?;
        let power = DECIMALS + exponent - i32::try_from(fraction.len()).ok()?;
        let nanos = match (power, 10_i128.checked_pow(power.unsigned_abs())) {
            (0.., Some(unit)) => digits.checked_mul(unit)?,
            (0.., None) => return None,
            (_, Some(unit)) => (digits + unit / 2) / unit,
            // Less than half of a billionth.
            (_, None) => 0,
        };
        Some(Self(if is_negative { -nanos } else { nanos }))
    }

    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Whole hundredths, rounded, and whether it is below zero.
    fn cents(self) -> (bool, u128) {
        let cents = self.0.unsigned_abs().saturating_add(CENT / 2) / CENT;
        (self.0 < 0 && cents > 0, cents)
    }

    /// The amount with two decimals, for JSON documents.
    #[allow(clippy::cast_precision_loss)]
    pub fn rounded(self) -> f64 {
        let (is_negative, cents) = self.cents();
        let amount = cents as f64 / 100.0;
        if is_negative { -amount } else { amount }
    }
}

/// With two decimals: `12.50`.
impl fmt::Display for BilledAmount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (is_negative, cents) = self.cents();
        let sign = if is_negative { "-" } else { "" };
        write!(f, "{sign}{}.{:02}", cents / 100, cents % 100)
    }
}

/// The table to which a billing account exports its costs: `PROJECT.DATASET.TABLE`. The parts have the characters that BigQuery allows
/// without quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BillingExport {
    project: String,
    dataset: String,
    table: String,
}

impl BillingExport {
    /// The project of the dataset.
    pub fn project(&self) -> &str {
        &self.project
    }

    /// The dataset.
    pub fn dataset(&self) -> &str {
        &self.dataset
    }
}

impl fmt::Display for BillingExport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.project, self.dataset, self.table)
    }
}

/// The rules of names: <https://cloud.google.com/resource-manager/docs/creating-managing-projects>,
/// <https://cloud.google.com/bigquery/docs/datasets#dataset-naming> and <https://cloud.google.com/bigquery/docs/tables#table_naming>.
impl FromStr for BillingExport {
    /// Which part is wrong.
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        let parts: Vec<&str> = text.split('.').collect();
        let [project, dataset, table] = parts[..] else { return Err("it is not `PROJECT.DATASET.TABLE`") };
        let is_project = (6..=30).contains(&project.len())
            && project.starts_with(|first: char| first.is_ascii_lowercase())
            && !project.ends_with('-')
            && project.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if !is_project {
            return Err("a project id has 6 to 30 lower-case letters, digits and hyphens, and begins with a letter");
        }
        let is_name = |name: &str, others: &[u8]| {
            (1..=MAX_NAME).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || others.contains(&byte))
        };
        if !is_name(dataset, b"_") {
            return Err("the name of a dataset has 1 to 1024 letters, digits and underscores");
        }
        if !is_name(table, b"_-") {
            return Err("the name of a table has 1 to 1024 letters, digits, underscores and hyphens");
        }
        Ok(Self { project: project.to_owned(), dataset: dataset.to_owned(), table: table.to_owned() })
    }
}

/// Which bill is asked for.
#[derive(Debug, Clone)]
pub struct BilledRequest {
    /// The deployment.
    pub lineage: Lineage,
    /// The first day of the month.
    pub from: Date,
    /// The first day of the next month.
    pub until: Date,
    /// The export of the billing account, for a provider without an API for costs.
    pub export: Option<BillingExport>,
    /// The time.
    pub now: Timestamp,
}

/// What a provider says about a bill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Billed {
    /// The bill of the account for this deployment: of all sites in it.
    Bill(Bill),
    /// There is none, and why.
    NotAvailable(String),
}

/// What an account was charged for a deployment in a month.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bill {
    /// The account, in the provider's words: `AWS account 123456789012`.
    pub account: String,
    /// The amounts, one for each service and currency.
    pub lines: Vec<BillLine>,
    /// Whether amounts may still change.
    pub is_estimated: bool,
}

/// The amount of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BillLine {
    /// The service, as the provider's bill names it.
    pub service: String,
    /// The currency, as ISO 4217 writes it.
    pub currency: String,
    /// The amount.
    pub amount: BilledAmount,
}

impl Bill {
    /// A bill; amounts of the same service and currency are added.
    pub fn new(account: String, lines: impl IntoIterator<Item = BillLine>, is_estimated: bool) -> Self {
        let mut sums: BTreeMap<(String, String), BilledAmount> = BTreeMap::new();
        for BillLine { service, currency, amount } in lines {
            let sum = sums.entry((service, currency)).or_default();
            *sum = sum.plus(amount);
        }
        let lines = sums.into_iter().map(|((service, currency), amount)| BillLine { service, currency, amount });
        Self { account, lines: lines.collect(), is_estimated }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_exact() {
        for (text, nanos, shown) in [
            ("12.5", 12_500_000_000, "12.50"),
            ("0", 0, "0.00"),
            ("-0.004", -4_000_000, "0.00"),
            ("-1.005", -1_005_000_000, "-1.01"),
            ("0.1", 100_000_000, "0.10"),
            ("1.2E-7", 120, "0.00"),
            ("3e+2", 300_000_000_000, "300.00"),
            ("0.0000000005", 1, "0.00"),
            ("0.00000000049", 0, "0.00"),
            ("19.2352763567", 19_235_276_357, "19.24"),
            ("1E-30", 0, "0.00"),
        ] {
            let amount = BilledAmount::parse(text).unwrap_or_else(|| panic!("{text} is a number"));
            assert_eq!((amount.0, amount.to_string().as_str()), (nanos, shown), "{text}");
        }
        for text in ["", "-", ".", "1,5", "1.2.3", "1e", "1e99", "--1", "+1", "NaN", "1 USD", &"9".repeat(37)] {
            assert_eq!(BilledAmount::parse(text), None, "{text}");
        }
        assert_eq!(BilledAmount::parse("-2.345").map(BilledAmount::rounded), Some(-2.35));
    }

    #[test]
    fn exports_have_three_names() {
        let text = "my-billing.Costs_1.gcp_billing_export_resource_v1_01AB23-CD45EF";
        let export: BillingExport = text.parse().expect("a table");
        assert_eq!((export.project(), export.dataset(), export.to_string().as_str()), ("my-billing", "Costs_1", text));
        let long = format!("my-billing.costs.{}", "t".repeat(1025));
        for (text, part) in [
            ("my-billing.costs", "PROJECT.DATASET.TABLE"),
            ("example.com:my-billing.costs.t", "PROJECT.DATASET.TABLE"),
            ("short.costs.t", "project"),
            ("1-billing.costs.t", "project"),
            ("my-billing-.costs.t", "project"),
            ("My-billing.costs.t", "project"),
            ("my-billing.my-costs.t", "dataset"),
            ("my-billing..t", "dataset"),
            ("my-billing.costs.", "table"),
            ("my-billing.costs.t`; DROP", "table"),
            (long.as_str(), "table"),
        ] {
            assert!(text.parse::<BillingExport>().is_err_and(|why| why.contains(part)), "{text}");
        }
    }

    #[test]
    fn amounts_of_one_service_and_currency_are_added() {
        let line = |service: &str, currency: &str, nanos| BillLine {
            service: service.to_owned(),
            currency: currency.to_owned(),
            amount: BilledAmount(nanos),
        };
        let lines = [line("b", "USD", 1), line("a", "USD", 2), line("b", "USD", -3), line("b", "EUR", 4)];
        let bill = Bill::new("account".to_owned(), lines, false);
        assert_eq!(bill.lines, [line("a", "USD", 2), line("b", "EUR", 4), line("b", "USD", -2)]);
    }
}
