//! The zones that have the names of load balancers, for alias records.

/// The zone of the names of Network Load Balancers in a region. `None` if the table does not have it: a CNAME does without.
pub fn of_network_balancers(region: &str) -> Option<&'static str> {
    NETWORK_BALANCERS.iter().find(|(name, _)| *name == region).map(|(_, zone)| *zone)
}

/// <https://docs.aws.amazon.com/general/latest/gr/elb.html>, as
/// <https://github.com/kubernetes-sigs/external-dns/blob/master/provider/aws/aws.go> and its users carry it, read 2026-11-23.
const NETWORK_BALANCERS: &[(&str, &str)] = &[
    ("af-south-1", "Z203XCE67M25HM"),
    ("ap-east-1", "Z12Y7K3UBGUAD1"),
    ("ap-northeast-1", "Z31USIVHYNEOWT"),
    ("ap-northeast-2", "ZIBE1TIR4HY56"),
    ("ap-northeast-3", "Z1GWIQ4HH19I5X"),
    ("ap-south-1", "ZVDDRBQ08TROA"),
    ("ap-south-2", "Z0711778386UTO08407HT"),
    ("ap-southeast-1", "ZKVM4W9LS7TM"),
    ("ap-southeast-2", "ZCT6FZBF4DROD"),
    ("ap-southeast-3", "Z01971771FYVNCOVWJU1G"),
    ("ap-southeast-4", "Z01156963G8MIIL7X90IV"),
    ("ap-southeast-5", "Z026317210H9ACVTRO6FB"),
    ("ap-southeast-6", "Z01392953RKV2Q3RBP0KU"),
    ("ap-southeast-7", "Z054363131YWATEMWRG5L"),
    ("ca-central-1", "Z2EPGBW3API2WT"),
    ("cn-north-1", "Z3QFB96KMJ7ED6"),
    ("cn-northwest-1", "ZQEIKTCZ8352D"),
    ("eu-central-1", "Z3F0SRJ5LGBH90"),
    ("eu-central-2", "Z02239872DOALSIDCX66S"),
    ("eu-north-1", "Z1UDT6IFJ4EJM"),
    ("eu-south-1", "Z23146JA1KNAFP"),
    ("eu-south-2", "Z1011216NVTVYADP1SSV"),
    ("eu-west-1", "Z2IFOLAFXWLO4F"),
    ("eu-west-2", "ZD4D7Y8KGAS4G"),
    ("eu-west-3", "Z1CMS0P5QUZ6D5"),
    ("il-central-1", "Z0313266YDI6ZRHTGQY4"),
    ("me-central-1", "Z00282643NTTLPANJJG2P"),
    ("me-south-1", "Z3QSRYVP46NYYV"),
    ("mx-central-1", "Z02031231H3ID6HYJ9A7U"),
    ("sa-east-1", "ZTK26PT1VY4CU"),
    ("us-east-1", "Z26RNL4JYFTOTI"),
    ("us-east-2", "ZLMOA37VPKANP"),
    ("us-gov-east-1", "Z1ZSMQQ6Q24QQ8"),
    ("us-gov-west-1", "ZMG1MZ2THAWF1"),
    ("us-west-1", "Z24FKFUX50B4VW"),
    ("us-west-2", "Z18D5FSROUN65G"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::regions;
    use super::*;

    #[test]
    fn each_region_has_a_zone_of_its_own() {
        let ids: BTreeSet<_> = NETWORK_BALANCERS.iter().map(|(_, zone)| zone).collect();
        assert_eq!(ids.len(), NETWORK_BALANCERS.len());
        for (region, zone) in NETWORK_BALANCERS {
            assert!(regions::region(region).is_some(), "{region}");
            assert!(zone.starts_with('Z') && (12..=21).contains(&zone.len()), "{zone}");
        }
        assert_eq!(of_network_balancers("us-iso-east-1"), None);
    }
}
