//! The bill of a deployment: what its provider charged in a month.
//!
//! Amounts are integers: billionths of a currency's unit. Credits are negative.

use std::collections::BTreeMap;
use std::fmt;

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

/// Which bill is asked for.
#[derive(Debug, Clone, Copy)]
pub struct BilledRequest {
    /// The deployment.
    pub lineage: Lineage,
    /// The first day of the month.
    pub from: Date,
    /// The first day of the next month.
    pub until: Date,
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
