//! List prices, without discounts and taxes. What has no row here is printed as unknown.
//!
//! Only regions whose prices were read have rows. Sustained use makes N1 machines cheaper than these prices.

use jiff::civil::{Date, date};
use textnlp_provider::{CostLine, Price, PriceUnit};

use crate::service::Service;

/// A price list, and when it had the prices.
type Source = (&'static str, Date);

const VMS: Source = ("https://cloud.google.com/compute/vm-instance-pricing", date(2025, 6, 1));
const GPU_LIST: Source = ("https://cloud.google.com/compute/gpus-pricing", date(2025, 6, 1));
const GKE: Source = ("https://cloud.google.com/kubernetes-engine/pricing", date(2025, 6, 1));
const NETWORK: Source = ("https://cloud.google.com/vpc/network-pricing", date(2025, 6, 1));
const SQL: Source = ("https://cloud.google.com/sql/docs/postgres/pricing", date(2025, 6, 1));
const KMS: Source = ("https://cloud.google.com/kms/pricing", date(2025, 6, 1));
/// The part of an A2 machine without its GPUs, in all regions where it was offered.
const CATALOG: Source =
    ("https://github.com/skypilot-org/skypilot-catalog/blob/master/catalogs/v8/gcp/vms.csv", date(2026, 11, 25));

const fn price(key: &'static str, region: Option<&'static str>, micros: u64, unit: PriceUnit, source: Source) -> Price {
    Price { key, region, micros, currency: "USD", unit, source: source.0, date: source.1 }
}

const fn hourly(key: &'static str, region: &'static str, micros: u64, source: Source) -> Price {
    price(key, Some(region), micros, PriceUnit::Hour, source)
}

const IOWA: &str = "us-central1";
const CAROLINA: &str = "us-east1";
const OREGON: &str = "us-west1";
const NETHERLANDS: &str = "europe-west4";

/// All prices.
pub static PRICES: &[Price] = &[
    price("gke/cluster", None, 100_000, PriceUnit::Hour, GKE),
    hourly("compute/e2-standard-4", IOWA, 134_012, VMS),
    hourly("compute/e2-standard-4", CAROLINA, 134_012, VMS),
    hourly("compute/e2-standard-4", OREGON, 134_012, VMS),
    hourly("compute/n1-standard-4", IOWA, 189_999, VMS),
    hourly("compute/n1-standard-4", CAROLINA, 189_999, VMS),
    hourly("compute/n1-standard-4", OREGON, 189_999, VMS),
    hourly("compute/n1-standard-8", IOWA, 379_998, VMS),
    hourly("compute/n1-standard-8", CAROLINA, 379_998, VMS),
    hourly("compute/n1-standard-8", OREGON, 379_998, VMS),
    hourly("compute/a2-highgpu-8g", IOWA, 5_915_820, CATALOG),
    hourly("compute/a2-highgpu-8g", CAROLINA, 5_915_820, CATALOG),
    hourly("compute/a2-highgpu-8g", OREGON, 5_915_820, CATALOG),
    hourly("compute/a2-highgpu-8g", NETHERLANDS, 6_512_510, CATALOG),
    hourly("gpu/nvidia-tesla-t4", IOWA, 350_000, GPU_LIST),
    hourly("gpu/nvidia-tesla-t4", CAROLINA, 350_000, GPU_LIST),
    hourly("gpu/nvidia-tesla-t4", OREGON, 350_000, GPU_LIST),
    hourly("gpu/nvidia-tesla-a100", IOWA, 2_933_908, GPU_LIST),
    price("compute/pd-balanced", Some(IOWA), 100_000, PriceUnit::MonthOf("GiB"), VMS),
    price("nat/gateway", None, 1_400, PriceUnit::HourOf("VM"), NETWORK),
    hourly("sql/vcpu", IOWA, 41_300, SQL),
    hourly("sql/memory", IOWA, 7_000, SQL),
    price("sql/ssd", Some(IOWA), 170_000, PriceUnit::MonthOf("GiB"), SQL),
    price("kms/version", None, 60_000, PriceUnit::MonthOf("key version"), KMS),
];

/// The cost of a quantity at the price of `key` in a region.
pub fn priced(service: Service, key: &str, region: &str, what: impl Into<String>, quantity: u64) -> CostLine {
    CostLine::priced(PRICES, key, region, service.title(), what, quantity)
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
