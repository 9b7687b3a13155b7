//! The costs of an object: price tables of providers, and lines with quantity, unit price, source and date.
//!
//! Amounts are integers: millionths of a currency's unit. A month has 730 hours.

use std::collections::BTreeSet;
use std::fmt;

use jiff::civil::Date;

/// Hours of a month, as price lists and budgets count them.
pub const HOURS_PER_MONTH: u64 = 730;

/// One price of a provider's price table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    /// The key, unique with the region: `ec2/g5.xlarge`.
    pub key: &'static str,
    /// The region in which it applies; `None` for all regions without a row of their own.
    pub region: Option<&'static str>,
    /// The amount for one unit, in millionths of the currency.
    pub micros: u64,
    /// The currency, as ISO 4217 writes it.
    pub currency: &'static str,
    /// What one unit is.
    pub unit: PriceUnit,
    /// The URL or the name of the price list.
    pub source: &'static str,
    /// When the source had this price.
    pub date: Date,
}

impl Price {
    /// The amount for a month, in millionths of the currency.
    pub fn monthly_micros(&self, quantity: u64) -> u64 {
        let hours = match self.unit {
            PriceUnit::Hour | PriceUnit::HourOf(_) => HOURS_PER_MONTH,
            PriceUnit::Month | PriceUnit::MonthOf(_) => 1,
        };
        self.micros.saturating_mul(quantity).saturating_mul(hours)
    }
}

/// `0.526 USD per hour`.
impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.micros / 1_000_000, format!("{:06}", self.micros % 1_000_000));
        // Two decimals at least, as amounts of money are written.
        let (cents, more) = rest.split_at(2);
        write!(f, "{whole}.{cents}{} {} {}", more.trim_end_matches('0'), self.currency, self.unit)
    }
}

/// The regions of which prices are recorded.
pub fn priced_regions(prices: &[Price]) -> BTreeSet<&'static str> {
    prices.iter().filter_map(|price| price.region).collect()
}

/// The unit of a price.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PriceUnit {
    /// `per hour`.
    Hour,
    /// `per month`.
    Month,
    /// `per vCPU-hour`.
    HourOf(&'static str),
    /// `per GB-month`.
    MonthOf(&'static str),
}

impl fmt::Display for PriceUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hour => f.write_str("per hour"),
            Self::Month => f.write_str("per month"),
            Self::HourOf(what) => write!(f, "per {what}-hour"),
            Self::MonthOf(what) => write!(f, "per {what}-month"),
        }
    }
}

/// How the objects of a kind are priced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pricing {
    /// An object costs nothing.
    Free,
    /// An object uses its host: a machine, or the nodes of a cluster. It costs nothing extra where the host has a price.
    Included,
    /// The cost is not known in advance; the reason, such as `by requests and stored data`.
    Unknown(&'static str),
    /// The cost depends on the spec: [`Provider::costs`](crate::Provider::costs) has at least one line for every spec.
    BySpec,
}

/// What a line says of machines of the spot market. They are counted with the price of machines on demand: they never cost
/// more, and where there are none a pool may take machines on demand instead.
pub const SPOT_AT_MOST: &str = "spot, at most this";

/// One line of an object's cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CostLine {
    /// The service on the provider's bill: `EC2`.
    pub service: String,
    /// What is charged: `2 × g5.xlarge, Linux, on-demand`.
    pub what: String,
    /// The amount.
    pub charge: Charge,
}

/// The amount of a cost line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Charge {
    /// A quantity at a price.
    Priced {
        /// The number of units: machines, GB. Hours are not included.
        quantity: u64,
        /// The price of one unit.
        price: Price,
    },
    /// A part of the host's cost: see [`Pricing::Included`].
    Included,
    /// The quantity is known, and no price of it in the wanted currency is recorded: `no price of ec2/g5.xlarge in eu-west-3 is
    /// recorded`.
    Unpriced(String),
    /// The quantity is not known, and why: `by the transferred data`.
    Unknown(String),
}

impl CostLine {
    /// A line without a known amount.
    pub fn unknown(service: impl Into<String>, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { service: service.into(), what: what.into(), charge: Charge::Unknown(why.into()) }
    }

    /// A line of a known quantity without a price.
    pub fn unpriced(service: impl Into<String>, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { service: service.into(), what: what.into(), charge: Charge::Unpriced(why.into()) }
    }

    /// The line of an object that costs nothing extra where its host has a price.
    pub fn included(service: impl Into<String>, what: impl Into<String>) -> Self {
        Self { service: service.into(), what: what.into(), charge: Charge::Included }
    }

    /// A quantity at the price of `key` in a region, else in all regions; without a row, the amount is unknown.
    pub fn priced(
        prices: &[Price],
        key: &str,
        region: &str,
        service: impl Into<String>,
        what: impl Into<String>,
        quantity: u64,
    ) -> Self {
        let find = |region: Option<&str>| prices.iter().find(|price| price.key == key && price.region == region);
        let charge = match find(Some(region)).or_else(|| find(None)) {
            Some(price) => Charge::Priced { quantity, price: *price },
            None => Charge::Unpriced(format!("no price of `{key}` in `{region}` is recorded")),
        };
        Self { service: service.into(), what: what.into(), charge }
    }
}
