//! Regions, their zones, and the instance types that a zone offers.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{Call, Fault, World, passes};

/// A zone.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Its name in the account: `eu-west-1a`.
    pub name: String,
    /// Its id in all accounts: `euw1-az3`.
    pub id: String,
}

/// Letters and numbers of regions whose zones are not `a` 1, `b` 2, `c` 3, as accounts see them.
const NUMBERS: &[(&str, &str)] = &[
    ("ap-northeast-1", "a4 c1 d2"),
    ("ap-northeast-2", "a1 b2 c3 d4"),
    ("ap-south-1", "a1 b3 c2"),
    ("ap-southeast-2", "a1 b3 c2"),
    ("ca-central-1", "a1 b2 d4"),
    ("cn-north-1", "a1 b2"),
    ("eu-west-1", "a3 b1 c2"),
    ("eu-west-2", "a2 b3 c1"),
    ("us-east-1", "a6 b1 c2 d4 e3 f5"),
    ("us-west-1", "a3 b1"),
    ("us-west-2", "a2 b1 c3 d4"),
];

/// The zones of a region.
#[must_use]
pub fn zones(region: &str) -> Vec<Zone> {
    let numbers = NUMBERS.iter().find(|(name, _)| *name == region).map_or("a1 b2 c3", |(_, numbers)| numbers);
    let short: String = region
        .split('-')
        .enumerate()
        .map(|(place, part)| match part {
            first if place == 0 => first.to_owned(),
            "gov" => "g".to_owned(),
            "northeast" => "ne".to_owned(),
            "northwest" => "nw".to_owned(),
            "southeast" => "se".to_owned(),
            "southwest" => "sw".to_owned(),
            other => other.chars().take(1).collect(),
        })
        .collect();
    let zone = |pair: &str| {
        let (letter, number) = pair.split_at(1);
        Zone { name: format!("{region}{letter}"), id: format!("{short}-az{number}") }
    };
    numbers.split(' ').map(zone).collect()
}

/// The zone that an input names; the first where it names none.
pub(super) fn chosen(call: &Call) -> Result<Zone, Fault> {
    let all = zones(&call.region);
    let (name, id) = (call.str("AvailabilityZone"), call.str("AvailabilityZoneId"));
    if name.is_some() && id.is_some() {
        let message = "Only one of AvailabilityZone and AvailabilityZoneId may be specified";
        return Err(Fault::new("InvalidParameterCombination", message));
    }
    let is_meant = |zone: &&Zone| name.is_none_or(|name| name == zone.name) && id.is_none_or(|id| id == zone.id);
    all.iter().find(is_meant).cloned().ok_or_else(|| {
        let known: Vec<&str> = all.iter().map(|zone| if id.is_some() { zone.id.as_str() } else { zone.name.as_str() }).collect();
        let value = name.or(id).unwrap_or_default();
        let message = format!(
            "Value ({value}) for parameter availabilityZone is invalid. Subnets can currently only be created in the following availability zones: {}.",
            known.join(", ")
        );
        Fault::new("InvalidParameterValue", message)
    })
}

pub(super) fn describe(_world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (names, ids) = (call.texts("ZoneNames"), call.texts("ZoneIds"));
    let all = zones(&call.region);
    if let Some(unknown) = names.iter().find(|name| !all.iter().any(|zone| zone.name == **name)) {
        return Err(Fault::new("InvalidParameterValue", format!("Invalid availability zone: [{unknown}]")));
    }
    let mut found = Vec::new();
    for zone in all {
        let is_meant = (names.is_empty() || names.contains(&zone.name.as_str()))
            && (ids.is_empty() || ids.contains(&zone.id.as_str()));
        let value = json!({
            "GroupName": format!("{}-zg-1", call.region),
            "NetworkBorderGroup": call.region,
            "OptInStatus": "opt-in-not-required",
            "RegionName": call.region,
            "State": "available",
            "ZoneId": zone.id,
            "ZoneName": zone.name,
            "ZoneType": "availability-zone",
        });
        let field = |name: &str| match name {
            "opt-in-status" => Some(vec!["opt-in-not-required".to_owned()]),
            "region-name" => Some(vec![call.region.clone()]),
            "state" => Some(vec!["available".to_owned()]),
            "zone-id" => Some(vec![zone.id.clone()]),
            "zone-name" => Some(vec![zone.name.clone()]),
            "zone-type" => Some(vec!["availability-zone".to_owned()]),
            _ => None,
        };
        if is_meant && passes(call.list("Filters"), &BTreeMap::new(), field)? {
            found.push(value);
        }
    }
    Ok(json!({ "AvailabilityZones": found }))
}

/// Regions that an account did not enable.
#[derive(Debug, Default)]
pub struct Disabled(pub std::collections::BTreeSet<String>);

/// Regions that exist here: the one that is asked, and those that it names.
pub(super) fn regions(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let names =
        if call.list("RegionNames").is_empty() { vec![call.region.as_str()] } else { call.texts("RegionNames") };
    // All regions have three parts at least, the last one a number.
    let is_region = |name: &str| name.split('-').count() >= 3 && name.ends_with(|c: char| c.is_ascii_digit());
    if let Some(unknown) = names.iter().find(|name| !is_region(name)) {
        return Err(Fault::new("InvalidParameterValue", format!("Invalid region: [{unknown}]")));
    }
    let disabled = &world.state::<Disabled>(&call.global()).0;
    let region = |name: &str| {
        let status = if disabled.contains(name) { "not-opted-in" } else { "opt-in-not-required" };
        json!({ "Endpoint": format!("ec2.{name}.amazonaws.com"), "OptInStatus": status, "RegionName": name })
    };
    Ok(json!({ "Regions": names.into_iter().map(region).collect::<Vec<_>>() }))
}

/// Instance types that some zone of a region does not offer: `(zone id, instance type)`.
#[derive(Debug, Default)]
pub struct Missing(pub std::collections::BTreeSet<(String, String)>);

/// Types that are offered unless [`Missing`] says otherwise.
const OFFERED: &[&str] = &[
    "g4dn.2xlarge",
    "g4dn.xlarge",
    "g5.xlarge",
    "g5.2xlarge",
    "g6.xlarge",
    "g6.2xlarge",
    "m5.large",
    "m6i.2xlarge",
    "m6i.4xlarge",
    "m6i.8xlarge",
    "m6i.large",
    "m6i.xlarge",
    "m7i.2xlarge",
    "m7i.4xlarge",
    "m7i.8xlarge",
    "m7i.large",
    "m7i.xlarge",
    "p3.2xlarge",
    "p4d.24xlarge",
    "p4de.24xlarge",
    "p5.48xlarge",
    "t3.large",
    "t3.medium",
];

pub(super) fn offerings(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let kind = call.str("LocationType").unwrap_or("region");
    let zones = zones(&call.region);
    let missing = &world.state::<Missing>(&call.scope()).0;
    let mut found = Vec::new();
    for instance in OFFERED {
        let offers = |zone: &&Zone| !missing.contains(&(zone.id.clone(), (*instance).to_owned()));
        let locations: Vec<String> = match kind {
            "availability-zone" => zones.iter().filter(offers).map(|zone| zone.name.clone()).collect(),
            "availability-zone-id" => zones.iter().filter(offers).map(|zone| zone.id.clone()).collect(),
            _ => zones.iter().find(offers).map(|_| call.region.clone()).into_iter().collect(),
        };
        for location in locations {
            let field = |name: &str| match name {
                "instance-type" => Some(vec![(*instance).to_owned()]),
                "location" => Some(vec![location.clone()]),
                _ => None,
            };
            if passes(call.list("Filters"), &BTreeMap::new(), field)? {
                found.push(json!({ "InstanceType": instance, "Location": location, "LocationType": kind }));
            }
        }
    }
    call.page("InstanceTypeOfferings", found, Fault::new("InvalidNextToken", "The specified token is not valid"))
}
