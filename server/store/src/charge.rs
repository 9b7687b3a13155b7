//! What requests cost their tenants: whole billionths of a currency, so that sums are exact.
//!
//! Most requests cost less than a cent. The amount of a row is therefore in `cost_nanos`, and every report sums that:
//! it holds whichever replica or site wrote the row, and whenever that restarted. `cost_cents` is derived from it for
//! tools that read whole cents: each writer carries the remainder to the next request of the tenant.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use sqlx::Row;
use sqlx::any::AnyRow;

/// Billionths of a currency in one cent, which is a hundredth of every currency here.
const NANOS_PER_CENT: i64 = 10_000_000;

/// Billionths in one unit of a currency.
const NANOS: i128 = 1_000_000_000;

/// Tenants whose remainder a writer carries. With one more it drops all of them, each less than a cent.
const MAX_CARRIED: usize = 10_000;

/// What one request cost, by the price at its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    /// The amount in billionths of the currency, from 0.
    pub nanos: i64,
    /// The whole cents that the tenant reached with this request, which the [`UsageLog`](super::UsageLog) sets. Their
    /// sum over the rows of a tenant is never above that of `nanos`. It is short by less than a cent for each server
    /// process that wrote some of them.
    pub cents: i64,
    /// The currency: three capital letters.
    pub currency: String,
}

/// Remainders below a cent, in billionths, by tenant. A server process has one currency.
#[derive(Debug, Default)]
pub(super) struct Carried(BTreeMap<String, i64>);

impl Carried {
    /// Sets the cents of tenants' rows. Returns the remainders to [keep](Self::keep) once the rows are written: rows that are
    /// lost change nothing.
    pub(super) fn set_cents<'a>(&self, rows: impl Iterator<Item = (&'a str, &'a mut Charge)>) -> BTreeMap<String, i64> {
        let mut remainders = BTreeMap::new();
        for (tenant, charge) in rows {
            let before = self.0.get(tenant).copied().unwrap_or_default();
            let remainder = remainders.entry(tenant.to_owned()).or_insert(before);
            let nanos = charge.nanos.saturating_add(*remainder);
            charge.cents = nanos / NANOS_PER_CENT;
            *remainder = nanos % NANOS_PER_CENT;
        }
        remainders
    }

    /// Carries these remainders to the next rows.
    pub(super) fn keep(&mut self, remainders: BTreeMap<String, i64>) {
        self.0.extend(remainders);
        if self.0.len() > MAX_CARRIED {
            self.0.clear();
        }
    }
}

/// Amounts by currency. JSON documents have them in units of the currency.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Charges(BTreeMap<String, i128>);

impl Charges {
    /// An amount of whole units and of billionths.
    pub fn of(currency: &str, units: i64, nanos: i64) -> Self {
        Self(BTreeMap::from([(currency.to_owned(), i128::from(units) * NANOS + i128::from(nanos))]))
    }

    /// The amount of a row: its currency, and sums of units and billionths in the next columns. They are summed apart
    /// because a sum of billionths alone may not fit into the integers of a database.
    pub(super) fn read(row: &AnyRow, column: usize) -> Result<Self, sqlx::Error> {
        let Some(currency) = row.try_get::<Option<String>, _>(column)? else { return Ok(Self::default()) };
        let sum = |column: usize| row.try_get::<Option<i64>, _>(column).map(Option::unwrap_or_default);
        Ok(Self::of(&currency, sum(column + 1)?, sum(column + 2)?))
    }

    /// Whether no request had a price.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds other amounts to these.
    pub fn add(&mut self, other: &Self) {
        for (currency, nanos) in &other.0 {
            let sum = self.0.entry(currency.clone()).or_default();
            *sum = sum.saturating_add(*nanos);
        }
    }
}

impl Serialize for Charges {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(currency, nanos)| (currency, *nanos as f64 / NANOS as f64)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn charge(nanos: i64) -> Charge {
        Charge { nanos, cents: 0, currency: "EUR".into() }
    }

    fn set(carried: &Carried, rows: &mut [(&'static str, Charge)]) -> BTreeMap<String, i64> {
        carried.set_cents(rows.iter_mut().map(|(tenant, charge)| (*tenant, charge)))
    }

    fn cents(rows: &[(&'static str, Charge)]) -> Vec<i64> {
        rows.iter().map(|(_, charge)| charge.cents).collect()
    }

    #[test]
    fn cents_of_many_small_requests_are_their_exact_sum_rounded_down() {
        let mut carried = Carried::default();
        let mut sums = BTreeMap::<&str, i64>::new();
        // A third and a seventh of a cent.
        for _ in 0..1000 {
            let mut rows = [("acme", charge(3_333_333)), ("globex", charge(1_428_571))];
            let remainders = set(&carried, &mut rows);
            carried.keep(remainders);
            for (tenant, charge) in &rows {
                *sums.entry(*tenant).or_default() += charge.cents;
            }
        }
        assert_eq!(sums["acme"], 3_333_333 * 1000 / NANOS_PER_CENT);
        assert_eq!(sums["globex"], 1_428_571 * 1000 / NANOS_PER_CENT);
    }

    #[test]
    fn remainders_of_lost_rows_are_not_carried_and_amounts_saturate() {
        let mut carried = Carried::default();
        let remainders = set(&carried, &mut [("acme", charge(6_000_000))]);
        carried.keep(remainders);
        drop(set(&carried, &mut [("acme", charge(3_000_000))]));
        let mut rows = [("acme", charge(3_999_999)), ("acme", charge(1)), ("acme", charge(25_000_000))];
        let remainders = set(&carried, &mut rows);
        assert_eq!((cents(&rows), remainders["acme"]), (vec![0, 1, 2], 5_000_000));
        carried.keep(remainders);
        let mut most = [("acme", charge(i64::MAX))];
        drop(set(&carried, &mut most));
        assert_eq!(cents(&most), [i64::MAX / NANOS_PER_CENT]);
    }

    #[test]
    fn remainders_of_a_bounded_number_of_tenants_are_carried() {
        let mut carried = Carried::default();
        carried.keep((0..MAX_CARRIED).map(|n| (n.to_string(), 1)).collect());
        assert_eq!(carried.0.len(), MAX_CARRIED);
        carried.keep(BTreeMap::from([("acme".to_owned(), 7)]));
        assert!(carried.0.is_empty());
    }

    #[test]
    fn sums_are_exact_beyond_the_integers_of_a_database() {
        let mut sum = Charges::default();
        assert!(sum.is_empty() && json!(sum) == json!({}));
        for _ in 0..3 {
            sum.add(&Charges::of("EUR", i64::MAX / 2, 999_999_999));
        }
        assert_eq!(sum.0["EUR"], 3 * (i128::from(i64::MAX / 2) * NANOS + 999_999_999));
        let mut shown = Charges::of("EUR", 1, 234_567_891);
        shown.add(&Charges::of("USD", 0, 1_500));
        assert_eq!(json!(shown), json!({ "EUR": 1.234_567_891, "USD": 0.000_001_5 }));
    }
}
