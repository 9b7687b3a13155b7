//! The zones of regions, by the letters that their names end with.

/// The zones in which the machines of the system pool are offered:
/// <https://github.com/Cyclenerd/google-cloud-pricing-cost-calculator/blob/master/tools/machinetypezone.csv>, 2026-08-20, without
/// zones for selected projects only (`us-central1-d`, `us-east1-a`).
const REGIONS: &[(&str, &str)] = &[
    ("africa-south1", "abc"),
    ("asia-east1", "abc"),
    ("asia-east2", "abc"),
    ("asia-northeast1", "abc"),
    ("asia-northeast2", "abc"),
    ("asia-northeast3", "abc"),
    ("asia-south1", "abc"),
    ("asia-south2", "abc"),
    ("asia-southeast1", "abc"),
    ("asia-southeast2", "abc"),
    ("australia-southeast1", "abc"),
    ("australia-southeast2", "abc"),
    ("europe-central2", "abc"),
    ("europe-north1", "abc"),
    ("europe-southwest1", "abc"),
    ("europe-west1", "bcd"),
    ("europe-west10", "abc"),
    ("europe-west12", "abc"),
    ("europe-west2", "abc"),
    ("europe-west3", "abc"),
    ("europe-west4", "abc"),
    ("europe-west6", "abc"),
    ("europe-west8", "abc"),
    ("europe-west9", "abc"),
    ("me-central1", "abc"),
    ("me-central2", "abc"),
    ("me-west1", "abc"),
    ("northamerica-northeast1", "abc"),
    ("northamerica-northeast2", "abc"),
    ("southamerica-east1", "abc"),
    ("southamerica-west1", "abc"),
    ("us-central1", "abcf"),
    ("us-east1", "bcd"),
    ("us-east4", "abc"),
    ("us-east5", "abc"),
    ("us-south1", "abc"),
    ("us-west1", "abc"),
    ("us-west2", "abc"),
    ("us-west3", "abc"),
    ("us-west4", "abc"),
];

/// The zones of a region; `None` if the table does not have it.
pub fn zones(region: &str) -> Option<Vec<String>> {
    let (_, letters) = REGIONS.iter().find(|(name, _)| *name == region)?;
    Some(letters.chars().map(|letter| format!("{region}-{letter}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_have_the_name_of_their_region() {
        assert_eq!(zones("europe-west1").unwrap(), ["europe-west1-b", "europe-west1-c", "europe-west1-d"]);
        assert_eq!(zones("us-central1").map(|zones| zones.len()), Some(4));
        assert_eq!(zones("mars-north1"), None);
        assert!(REGIONS.windows(2).all(|pair| pair[0].0 < pair[1].0), "it is sorted");
    }
}
