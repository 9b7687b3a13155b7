//! The zones that subnets are created in.
//!
//! Zones are named by their ids, such as `use1-az1`: the names of zones (`us-east-1a`) stand for another place in each account, so that
//! a plan could not tell from them which zones lack a service.

/// The most zones of a site.
const ZONES: usize = 3;

/// Numbers of zones, where they are not 1, 2 and 3: zones that new accounts do not get, or that have no EKS, are left out.
/// <https://docs.aws.amazon.com/global-infrastructure/latest/regions/aws-availability-zones.html> and
/// <https://docs.aws.amazon.com/eks/latest/userguide/network-reqs.html>, read 2026-11-23.
const NUMBERS: &[(&str, &[u8])] = &[
    ("ap-northeast-1", &[1, 2, 4]),
    ("ca-central-1", &[1, 2, 4]),
    ("cn-north-1", &[1, 2]),
    ("us-east-1", &[1, 2, 4]),
    ("us-west-1", &[1, 3]),
];

/// The ids of a region's zones: its name in short and a number. `None` for a region whose short name follows another rule.
pub(super) fn zones(region: &str) -> Option<Vec<String>> {
    let parts: Vec<&str> = region.split('-').collect();
    let (area, direction, number) = match parts[..] {
        [area, direction, number] => (area.to_owned(), direction, number),
        ["us", "gov", direction, number] => ("usg".to_owned(), direction, number),
        _ => return None,
    };
    let direction = match direction {
        "central" => "c",
        "east" => "e",
        "north" => "n",
        "northeast" => "ne",
        "northwest" => "nw",
        "south" => "s",
        "southeast" => "se",
        "southwest" => "sw",
        "west" => "w",
        _ => return None,
    };
    let is_short = |text: &str| text.len() == 1 && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_area = area.len() <= 3 && area.bytes().all(|byte| byte.is_ascii_lowercase());
    if !is_area || !is_short(number) {
        return None;
    }
    let numbers = NUMBERS.iter().find(|(name, _)| *name == region).map_or(&[1, 2, 3][..], |(_, numbers)| numbers);
    Some(numbers.iter().take(ZONES).map(|zone| format!("{area}{direction}{number}-az{zone}")).collect())
}

#[cfg(test)]
mod tests {
    use super::zones;

    #[test]
    fn zones_have_ids_that_all_accounts_share() {
        for (region, ids) in [
            ("eu-west-1", Some("euw1-az1 euw1-az2 euw1-az3")),
            ("us-east-1", Some("use1-az1 use1-az2 use1-az4")),
            ("us-west-1", Some("usw1-az1 usw1-az3")),
            ("ap-northeast-1", Some("apne1-az1 apne1-az2 apne1-az4")),
            ("us-gov-west-1", Some("usgw1-az1 usgw1-az2 usgw1-az3")),
            ("us-isob-east-1", None),
            ("local", None),
            ("eu-west-1'; x", None),
        ] {
            assert_eq!(zones(region).map(|ids| ids.join(" ")).as_deref(), ids, "{region}");
        }
    }
}
