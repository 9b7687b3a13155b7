//! The regions that AWS has, and which of them an account must enable first.

use textnlp_token::{Partition, partition};

/// A region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Its name: `eu-central-1`.
    pub name: &'static str,
    /// Whether an account must enable it before its first use.
    pub opt_in: bool,
}

impl Region {
    /// Its partition.
    pub fn partition(&self) -> Partition {
        partition(self.name)
    }
}

/// The region of a name. `None` if the table does not have it: AWS may have opened it since.
pub fn region(name: &str) -> Option<Region> {
    let rows = [(DEFAULT, false), (OPT_IN, true)];
    rows.into_iter().find_map(|(names, opt_in)| {
        let name = names.iter().find(|known| **known == name)?;
        Some(Region { name, opt_in })
    })
}

/// The hint that names another region of the same partition for a setting: one that every account has, in the same part of the world
/// if there is one.
pub fn another(setting: &str, region: &str) -> String {
    let own = partition(region);
    let part = |name: &str| name.split('-').next().map(str::to_owned);
    let others = || DEFAULT.iter().filter(|one| **one != region && partition(one) == own);
    match others().find(|one| part(one) == part(region)).or_else(|| others().next()) {
        Some(near) => format!("set `{setting}` to another region of the partition `{}`, such as {near}", own.name),
        None => format!("remove `{setting}`: the partition `{}` has no other region", own.name),
    }
}

/// All regions.
pub fn all() -> impl Iterator<Item = Region> {
    let rows = [(DEFAULT, false), (OPT_IN, true)];
    rows.into_iter().flat_map(|(names, opt_in)| names.iter().map(move |name| Region { name, opt_in }))
}

/// Regions that every account of their partition has: those opened before 2019-03-20, and those of the smaller
/// partitions. <https://docs.aws.amazon.com/accounts/latest/reference/manage-acct-regions.html>, read 2026-11-23.
const DEFAULT: &[&str] = &[
    "ap-northeast-1",
    "ap-northeast-2",
    "ap-northeast-3",
    "ap-south-1",
    "ap-southeast-1",
    "ap-southeast-2",
    "ca-central-1",
    "eu-central-1",
    "eu-north-1",
    "eu-west-1",
    "eu-west-2",
    "eu-west-3",
    "sa-east-1",
    "us-east-1",
    "us-east-2",
    "us-west-1",
    "us-west-2",
    "cn-north-1",
    "cn-northwest-1",
    "eusc-de-east-1",
    "us-gov-east-1",
    "us-gov-west-1",
    "us-iso-east-1",
    "us-iso-west-1",
    "us-isob-east-1",
    "us-isob-west-1",
    "us-isof-east-1",
    "us-isof-south-1",
    "eu-isoe-west-1",
];

/// Regions opened since.
const OPT_IN: &[&str] = &[
    "af-south-1",
    "ap-east-1",
    "ap-east-2",
    "ap-south-2",
    "ap-southeast-3",
    "ap-southeast-4",
    "ap-southeast-5",
    "ap-southeast-6",
    "ap-southeast-7",
    "ca-west-1",
    "eu-central-2",
    "eu-south-1",
    "eu-south-2",
    "il-central-1",
    "me-central-1",
    "me-south-1",
    "me-west-1",
    "mx-central-1",
    "sa-west-1",
];

#[cfg(test)]
mod tests {
    use super::super::tests::python;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn regions_and_partitions_are_those_of_botocore() {
        let script = "
import json, os, botocore
found = json.load(open(os.path.join(os.path.dirname(botocore.__file__), 'data/partitions.json')))
print(json.dumps([[row['id'], row['outputs']['dnsSuffix'], name]
    for row in found['partitions'] for name in row['regions'] if not name.endswith('-global')]))";
        let Some(known) = python(script) else { return };
        let known: BTreeSet<[String; 3]> = serde_json::from_value(known).unwrap();
        let ours: BTreeSet<_> = all()
            .map(|region| [region.partition().name, region.partition().dns_suffix, region.name].map(str::to_owned))
            .collect();
        assert_eq!(ours, known);
        assert_eq!(all().count(), known.len());
    }

    #[test]
    fn regions_to_enable_are_known() {
        let script = "
import json
from moto.ec2.models.availability_zones_and_regions import RegionsAndZonesBackend as backend
rows = {region.name: region.opt_in_status for region in backend.regions}
print(json.dumps(rows))";
        let Some(known) = python(script) else { return };
        let known = known.as_object().unwrap();
        assert!(known.len() > 20);
        for (name, status) in known {
            let Some(found) = region(name) else { panic!("{name} is missing") };
            // The account that moto's list is from had enabled these.
            let enabled = ["af-south-1", "ap-southeast-3", "eu-south-1"].contains(&name.as_str());
            assert_eq!(found.opt_in, enabled || status != "opt-in-not-required", "{name} {status}");
        }
    }

    #[test]
    fn hint_names_another_region_of_the_partition() {
        for (region, expected) in [
            ("eu-west-1", "such as eu-central-1"),
            ("eu-central-1", "such as eu-north-1"),
            ("me-south-1", "such as ap-northeast-1"),
            ("cn-north-1", "partition `aws-cn`, such as cn-northwest-1"),
            ("eusc-de-east-1", "has no other region"),
        ] {
            let hint = another("a.b", region);
            assert!(hint.contains("`a.b`") && hint.ends_with(expected), "{hint}");
        }
    }

    #[test]
    fn unknown_regions_are_not_guessed() {
        for name in ["", "us-east", "us-east-9", "US-EAST-1"] {
            assert_eq!(region(name), None);
        }
    }
}
