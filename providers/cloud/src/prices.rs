//! Price tables as data, which `providers/cloud/prices.py` writes.
//!
//! A line `source,DATE,URL` holds for the lines after it: `KEY,REGION,UNIT,MICROS`. The region `*` stands for all regions, and a
//! line that starts with `#` is a comment.

use jiff::civil::Date;
use textnlp_provider::{Price, PriceUnit};

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
