//! Sizes of machines, and quotas of cores.

use serde_json::{Value, json};

use super::cloud::{Cloud, text};
use super::kinds::{Answer, Call, Special, page};
use super::problem::Problem;
use super::resources::{REGIONS, get};
use crate::{Behaviour, Source};

/// A size: name, family, cores, GiB of memory, GPUs, and whether zones have it.
/// <https://learn.microsoft.com/azure/virtual-machines/sizes/overview>
pub(crate) type Size = (&'static str, &'static str, i64, i64, i64, bool);

pub(crate) const SIZES: &[Size] = &[
    ("Standard_B2s", "standardBSFamily", 2, 4, 0, true),
    ("Standard_D2s_v5", "standardDSv5Family", 2, 8, 0, true),
    ("Standard_D4s_v5", "standardDSv5Family", 4, 16, 0, true),
    ("Standard_D8s_v5", "standardDSv5Family", 8, 32, 0, true),
    ("Standard_D16s_v5", "standardDSv5Family", 16, 64, 0, true),
    ("Standard_D32s_v5", "standardDSv5Family", 32, 128, 0, true),
    ("Standard_D2ds_v5", "standardDDSv5Family", 2, 8, 0, true),
    ("Standard_D4ds_v5", "standardDDSv5Family", 4, 16, 0, true),
    ("Standard_D8ds_v5", "standardDDSv5Family", 8, 32, 0, true),
    ("Standard_D16ds_v5", "standardDDSv5Family", 16, 64, 0, true),
    ("Standard_D2as_v5", "standardDASv5Family", 2, 8, 0, true),
    ("Standard_D4as_v5", "standardDASv5Family", 4, 16, 0, true),
    ("Standard_D8as_v5", "standardDASv5Family", 8, 32, 0, true),
    ("Standard_D16as_v5", "standardDASv5Family", 16, 64, 0, true),
    ("Standard_NC4as_T4_v3", "Standard NCASv3_T4 Family", 4, 28, 1, true),
    ("Standard_NC8as_T4_v3", "Standard NCASv3_T4 Family", 8, 56, 1, true),
    ("Standard_NC16as_T4_v3", "Standard NCASv3_T4 Family", 16, 110, 1, true),
    ("Standard_NC64as_T4_v3", "Standard NCASv3_T4 Family", 64, 440, 4, true),
    ("Standard_NC24ads_A100_v4", "StandardNCADSA100v4Family", 24, 220, 1, true),
    ("Standard_NC48ads_A100_v4", "StandardNCADSA100v4Family", 48, 440, 2, true),
    ("Standard_NC96ads_A100_v4", "StandardNCADSA100v4Family", 96, 880, 4, true),
    ("Standard_ND96amsr_A100_v4", "Standard NDAMSv4_A100Family", 96, 1_924, 8, false),
    ("Standard_NC40ads_H100_v5", "StandardNCadsH100v5Family", 40, 320, 1, true),
    ("Standard_NC80adis_H100_v5", "StandardNCadsH100v5Family", 80, 640, 2, true),
    ("Standard_ND96isr_H100_v5", "standardNDSH100v5Family", 96, 1_900, 8, false),
    ("Standard_ND96isr_H200_v5", "standardNDISRH200V5Family", 96, 1_850, 8, false),
];
/// Cores of a family that a subscription has in a region, and of all families.
const FAMILY: i64 = 100;
const ALL: i64 = 350;
/// The quotas of all cores, and of spot.
pub(crate) const CORES: &str = "cores";
pub(crate) const SPOT: &str = "lowPriorityCores";

pub(crate) const SPECIALS: &[Special] = &[
    get("Microsoft.Compute/skus[]", "2021-07-01", "", skus),
    get("Microsoft.Compute/locations/usages[]", "2024-07-01", "", usages),
];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule("some names of quotas have spaces around them", Source::Report("skypilot-org/skypilot#10119")),
    rule("sizes may be closed to a subscription: NotAvailableForSubscription", Source::Report("Azure/AKS#5746")),
    rule("some sizes have no zones", Source::Report("Azure/AKS#1444")),
    rule("spot has one quota of cores", Source::Report("kubernetes/autoscaler#2607")),
    rule(
        "some families have no quota at first; here those with GPUs",
        Source::Report("MicrosoftDocs/azure-docs#24803"),
    ),
    rule(
        "usages of a location that does not exist are 400 NoRegisteredProviderFound (also Azure/azure-cli#2003)",
        Source::Report("Azure/azure-sdk-for-python#21283"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "Microsoft.Compute", what, source }
}

pub(crate) fn size(name: &str) -> Option<&'static Size> {
    SIZES.iter().find(|row| row.0.eq_ignore_ascii_case(name))
}

/// The limit of a quota.
pub(crate) fn limit(cloud: &Cloud, region: &str, name: &str) -> i64 {
    let is_gpu = SIZES.iter().any(|row| row.1 == name && row.4 > 0);
    let usual = match name {
        CORES => ALL,
        _ if is_gpu => 0,
        _ => FAMILY,
    };
    cloud.quotas.get(&(region.to_owned(), name.to_owned())).copied().unwrap_or(usual)
}

/// What of a quota the pools in a region use, without one.
pub(crate) fn used(cloud: &Cloud, region: &str, name: &str, without: &str) -> i64 {
    let pools = cloud.objects.iter().filter(|(key, _)| key.contains("/agentpools/") && *key != without);
    let here = pools.filter(|(key, _)| {
        let cluster = cloud.objects.get(&super::kinds::parent(key));
        cluster.is_some_and(|cluster| text(&cluster.body, "/location").eq_ignore_ascii_case(region))
    });
    let one = |body: &Value| {
        let row = size(text(body, "/properties/vmSize"))?;
        let is_spot = text(body, "/properties/scaleSetPriority") == "Spot";
        let counts = match name {
            SPOT => is_spot,
            CORES => !is_spot,
            family => !is_spot && family == row.1,
        };
        counts.then(|| row.2 * body.pointer("/properties/count").and_then(Value::as_i64).unwrap_or(0))
    };
    here.filter_map(|(_, pool)| one(&pool.body)).sum()
}

fn skus(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let filter = call.parameter("$filter").unwrap_or_default();
    let region = filter.split('\'').nth(1).map(str::to_lowercase);
    let regions = REGIONS.iter().filter(|row| region.as_ref().is_none_or(|region| region == row.0));
    let mut rows = Vec::new();
    for (place, _, has_zones) in regions {
        for (name, family, cores, memory, gpus, in_zones) in SIZES {
            let zones = if *has_zones && *in_zones { vec!["1", "2", "3"] } else { Vec::new() };
            let capability = |name: &str, value: i64| json!({ "name": name, "value": value.to_string() });
            let mut capabilities = vec![capability("vCPUs", *cores), capability("MemoryGB", *memory)];
            if *gpus > 0 {
                capabilities.push(capability("GPUs", *gpus));
            }
            let is_closed = cloud.restricted.contains(&((*place).to_owned(), (*name).to_owned()));
            let restriction = json!({ "type": "Location", "values": [place],
                "reasonCode": "NotAvailableForSubscription",
                "restrictionInfo": { "locations": [place] } });
            rows.push(json!({ "resourceType": "virtualMachines", "name": name, "tier": "Standard",
                "size": name.trim_start_matches("Standard_"), "family": family, "locations": [place],
                "locationInfo": [{ "location": place, "zones": zones, "zoneDetails": [] }],
                "capabilities": capabilities,
                "restrictions": if is_closed { vec![restriction] } else { Vec::new() } }));
        }
    }
    Ok(page(cloud, call, rows))
}

fn usages(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let region = call.name().to_lowercase();
    if !REGIONS.iter().any(|row| row.0 == region) {
        let known: Vec<&str> = REGIONS.iter().map(|row| row.0).collect();
        let message = format!(
            "No registered resource provider found for location '{region}' and API version '2024-07-01' for type \
             'locations/usages'. The supported locations are '{}'.",
            known.join(", ")
        );
        return Err(super::problem::bad("NoRegisteredProviderFound", message));
    }
    let mut names: Vec<&str> = SIZES.iter().map(|row| row.1).chain([CORES, SPOT]).collect();
    names.sort_unstable();
    names.dedup();
    let one = |name: &&str| {
        let shown = if name.contains("H100") { format!("{name} ") } else { (*name).to_owned() };
        json!({ "unit": "Count", "currentValue": used(cloud, &region, name, ""), "limit": limit(cloud, &region, name),
            "name": { "value": shown, "localizedValue": format!("{name} vCPUs") } })
    };
    Ok(page(cloud, call, names.iter().map(one).collect()))
}
