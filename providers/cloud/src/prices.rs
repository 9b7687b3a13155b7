//! Price tables as data, which `providers/cloud/prices.py` writes, and prices by use.
//!
//! A line `source,DATE,URL` holds for the lines after it: `KEY,REGION,UNIT,MICROS`. The region `*` stands for all regions, and a
//! line that starts with `#` is a comment.

use jiff::civil::Date;
use textnlp_provider::{CostLine, Price, PriceUnit};

/// A price list, and when it had the prices.
type Source = (&'static str, Date);

/// The prices of a table, in USD. A line that cannot be read is an error.
pub fn prices(table: &'static str) -> impl Iterator<Item = Result<Price, &'static str>> {
    let mut source = None;
    table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).filter_map(move |line| {
        if let Some(rest) = line.strip_prefix("source,") {
            source = self::source(rest);
            return source.is_none().then_some(Err(line));
        }
        Some(source.and_then(|source| price(line, source)).ok_or(line))
    })
}

fn source(text: &'static str) -> Option<Source> {
    let (date, url) = text.split_once(',')?;
    Some((url, date.parse().ok()?))
}

fn price(line: &'static str, (source, date): Source) -> Option<Price> {
    let mut fields = line.split(',');
    let (key, region, unit, micros) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let unit = match unit {
        "hour" => PriceUnit::Hour,
        "month" => PriceUnit::Month,
        other => PriceUnit::MonthOf(other.strip_suffix("-month")?),
    };
    let region = (region != "*").then_some(region);
    let price = Price { key, region, micros: micros.parse().ok()?, currency: "USD", unit, source, date };
    fields.next().is_none().then_some(price)
}

/// A price for an amount that a plan does not know, such as transferred data.
#[derive(Debug, Clone, Copy)]
pub struct UsePrice {
    /// The key, unique with the region.
    pub key: &'static str,
    /// The region in which it applies; `None` for all regions without a row of their own.
    pub region: Option<&'static str>,
    /// The amount for one unit, in millionths of a US dollar.
    pub micros: u64,
    /// The unit: `per processed GB`.
    pub unit: &'static str,
    /// The URL of the price list.
    pub source: &'static str,
    /// When the source had this price.
    pub date: Date,
}

/// The cost of what is charged by use: unknown, with the price of one unit if it is recorded.
pub fn by_use(prices: &[UsePrice], key: &str, region: &str, service: &str, what: impl Into<String>) -> CostLine {
    let find = |region: Option<&str>| prices.iter().find(|row| row.key == key && row.region == region);
    let why = match find(Some(region)).or_else(|| find(None)) {
        Some(row) => {
            let (dollars, micros) = (row.micros / 1_000_000, format!("{:06}", row.micros % 1_000_000));
            let (cents, rest) = micros.split_at(2);
            format!("by use: {dollars}.{cents}{} USD {}", rest.trim_end_matches('0'), row.unit)
        }
        None => "by use".to_owned(),
    };
    CostLine::unknown(service, what, why)
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    #[test]
    fn tables_are_read() {
        let table = "# A comment.\nsource,2026-07-30,https://a.example/list\nvm/a,west,hour,526000\ndisk,*,GiB-month,100000\n\
                     source,2026-06-18,https://b.example/list\ndisk/P6,west,month,11227200\n";
        let all: Vec<Price> = prices(table).map(Result::unwrap).collect();
        let texts: Vec<String> = all.iter().map(Price::to_string).collect();
        assert_eq!(texts, ["0.526 USD per hour", "0.10 USD per GiB-month", "11.2272 USD per month"]);
        assert_eq!((all[0].key, all[0].region, all[1].region), ("vm/a", Some("west"), None));
        assert_eq!((all[0].source, all[0].date), ("https://a.example/list", date(2026, 7, 30)));
        assert_eq!((all[2].source, all[2].date), ("https://b.example/list", date(2026, 6, 18)));
    }

    #[test]
    fn a_line_that_is_no_price_is_an_error() {
        for (table, line) in [
            ("vm/a,west,hour,526000", "vm/a,west,hour,526000"),
            ("source,2026-13-30,https://a.example/list", "source,2026-13-30,https://a.example/list"),
        ] {
            assert_eq!(prices(table).collect::<Vec<_>>(), [Err(line)]);
        }
        for line in ["vm/a,west,hour", "vm/a,west,hour,0.5", "vm/a,west,day,1", "vm/a,west,hour,1,2"] {
            let source = source("2026-07-30,https://a.example/list").unwrap();
            assert!(price(line, source).is_none(), "{line}");
        }
    }
}
