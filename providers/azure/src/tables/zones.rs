//! The regions with availability zones. Which zones have a machine size differs by subscription, and is asked for.

/// <https://learn.microsoft.com/azure/reliability/regions-list>, as of 2025-10.
const REGIONS: &[&str] = &[
    "australiaeast",
    "austriaeast",
    "brazilsouth",
    "canadacentral",
    "centralindia",
    "centralus",
    "chilecentral",
    "eastasia",
    "eastus",
    "eastus2",
    "francecentral",
    "germanywestcentral",
    "indonesiacentral",
    "israelcentral",
    "italynorth",
    "japaneast",
    "japanwest",
    "koreacentral",
    "malaysiawest",
    "mexicocentral",
    "newzealandnorth",
    "northeurope",
    "norwayeast",
    "polandcentral",
    "qatarcentral",
    "southafricanorth",
    "southcentralus",
    "southeastasia",
    "spaincentral",
    "swedencentral",
    "switzerlandnorth",
    "uaenorth",
    "uksouth",
    "westeurope",
    "westus2",
    "westus3",
];

/// The zones of a region; none where the table does not have it.
pub fn zones(region: &str) -> &'static [&'static str] {
    if REGIONS.contains(&region) { &["1", "2", "3"] } else { &[] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_sorted() {
        assert!(REGIONS.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!((zones("westeurope").len(), zones("westus").len()), (3, 0));
    }
}
