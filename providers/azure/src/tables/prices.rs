//! Prices: a snapshot, each with its source and date. What is not listed is unknown.

use jiff::civil::{Date, date};
use textnlp_provider::{CostLine, Price, PriceUnit};

type Source = (&'static str, Date);

/// The catalogue of SkyPilot, which is made of Azure's retail prices:
/// <https://learn.microsoft.com/rest/api/cost-management/retail-prices/azure-retail-prices>. The date is that of the reading.
const CATALOG: Source = (
    "https://github.com/skypilot-org/skypilot-catalog/blob/098741e70562f65d7af1cceb81e33b284f742604/catalogs/v6/azure/vms.csv",
    date(2026, 11, 25),
);

const fn hourly(key: &'static str, region: &'static str, micros: u64) -> Price {
    let (source, date) = CATALOG;
    Price { key, region: Some(region), micros, currency: "USD", unit: PriceUnit::Hour, source, date }
}

/// All prices.
pub static PRICES: &[Price] = &[
    hourly("Standard_NC4as_T4_v3", "eastus", 526_000),
    hourly("Standard_NC4as_T4_v3", "eastus2", 526_000),
    hourly("Standard_NC4as_T4_v3", "centralus", 594_000),
    hourly("Standard_NC4as_T4_v3", "southcentralus", 631_000),
    hourly("Standard_NC4as_T4_v3", "westus2", 526_000),
    hourly("Standard_NC4as_T4_v3", "westus3", 526_000),
    hourly("Standard_NC8as_T4_v3", "eastus", 752_000),
    hourly("Standard_NC8as_T4_v3", "eastus2", 752_000),
    hourly("Standard_NC8as_T4_v3", "centralus", 849_000),
    hourly("Standard_NC8as_T4_v3", "southcentralus", 902_000),
    hourly("Standard_NC8as_T4_v3", "westus2", 752_000),
    hourly("Standard_NC8as_T4_v3", "westus3", 752_000),
    hourly("Standard_NC24ads_A100_v4", "eastus", 3_673_000),
    hourly("Standard_NC24ads_A100_v4", "eastus2", 3_673_000),
    hourly("Standard_NC24ads_A100_v4", "centralus", 4_150_000),
    hourly("Standard_NC24ads_A100_v4", "southcentralus", 4_408_000),
    hourly("Standard_NC24ads_A100_v4", "westus2", 3_673_000),
    hourly("Standard_NC24ads_A100_v4", "westus3", 3_673_000),
    hourly("Standard_NC48ads_A100_v4", "eastus", 7_346_000),
    hourly("Standard_NC40ads_H100_v5", "eastus", 6_980_000),
    hourly("Standard_NC80adis_H100_v5", "eastus", 13_960_000),
    hourly("Standard_ND96amsr_A100_v4", "eastus", 32_770_000),
    hourly("Standard_ND96amsr_A100_v4", "eastus2", 32_770_000),
    hourly("Standard_ND96amsr_A100_v4", "southcentralus", 39_324_000),
    hourly("Standard_ND96isr_H100_v5", "eastus", 98_320_000),
];

/// The cost of a quantity at the price of `key` in a region.
pub fn priced(service: &str, key: &str, region: &str, what: impl Into<String>, quantity: u64) -> CostLine {
    CostLine::priced(PRICES, key, region, service, what, quantity)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_price_is_stated_once() {
        let mut keys = BTreeSet::new();
        for one in PRICES {
            assert!(keys.insert((one.key, one.region)), "{}", one.key);
            assert!(one.micros > 0 && one.source.starts_with("https://"));
        }
    }
}
