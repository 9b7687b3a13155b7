//! Compute Engine: networks, addresses, firewall rules, and what is left of clusters.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};

use super::cloud::{Cloud, Effect, Family, Object};
use super::kinds::{KIND, Kind, begin, collection, page, repeated};
use super::problem::Problem;
use super::{Call, Handler, errors};
use crate::{Behaviour, Source};

/// Regions and the letters of their zones: <https://cloud.google.com/compute/docs/regions-zones>.
pub(crate) const REGIONS: &[(&str, &str)] = &[
    ("asia-northeast1", "abc"),
    ("asia-southeast1", "abc"),
    ("europe-west1", "bcd"),
    ("europe-west3", "abc"),
    ("europe-west4", "abc"),
    ("us-central1", "abcf"),
    ("us-east1", "bcd"),
    ("us-east4", "abc"),
    ("us-west1", "abc"),
];

/// Accelerators: the type, the most in a machine, the metric of the quota, the zones.
///
/// <https://cloud.google.com/compute/docs/gpus/gpu-regions-zones>
pub(crate) const ACCELERATORS: &[(&str, i64, &str, &[&str])] = &[
    (
        "nvidia-tesla-t4",
        4,
        "NVIDIA_T4_GPUS",
        &[
            "asia-northeast1-a",
            "asia-northeast1-c",
            "asia-southeast1-a",
            "asia-southeast1-b",
            "asia-southeast1-c",
            "europe-west1-b",
            "europe-west1-c",
            "europe-west1-d",
            "europe-west3-b",
            "europe-west4-a",
            "europe-west4-b",
            "europe-west4-c",
            "us-central1-a",
            "us-central1-b",
            "us-central1-c",
            "us-central1-f",
            "us-east1-c",
            "us-east1-d",
            "us-east4-a",
            "us-east4-b",
            "us-east4-c",
            "us-west1-a",
            "us-west1-b",
        ],
    ),
    (
        "nvidia-tesla-v100",
        8,
        "NVIDIA_V100_GPUS",
        &[
            "europe-west4-a",
            "europe-west4-b",
            "europe-west4-c",
            "us-central1-a",
            "us-central1-b",
            "us-central1-c",
            "us-central1-f",
            "us-east1-c",
            "us-west1-a",
            "us-west1-b",
        ],
    ),
    (
        "nvidia-l4",
        8,
        "NVIDIA_L4_GPUS",
        &[
            "asia-northeast1-a",
            "asia-northeast1-c",
            "asia-southeast1-a",
            "asia-southeast1-b",
            "asia-southeast1-c",
            "europe-west1-b",
            "europe-west1-c",
            "europe-west3-a",
            "europe-west3-b",
            "europe-west4-a",
            "europe-west4-b",
            "europe-west4-c",
            "us-central1-a",
            "us-central1-b",
            "us-central1-c",
            "us-east1-b",
            "us-east1-c",
            "us-east1-d",
            "us-east4-a",
            "us-east4-c",
            "us-west1-a",
            "us-west1-b",
            "us-west1-c",
        ],
    ),
    (
        "nvidia-tesla-a100",
        16,
        "NVIDIA_A100_GPUS",
        &[
            "asia-northeast1-a",
            "asia-northeast1-c",
            "asia-southeast1-b",
            "asia-southeast1-c",
            "europe-west4-a",
            "europe-west4-b",
            "us-central1-a",
            "us-central1-b",
            "us-central1-c",
            "us-central1-f",
            "us-east1-b",
            "us-west1-b",
        ],
    ),
    (
        "nvidia-h100-80gb",
        8,
        "PREEMPTIBLE_NVIDIA_H100_GPUS",
        &[
            "europe-west4-b",
            "europe-west4-c",
            "us-central1-a",
            "us-central1-c",
            "us-east4-a",
            "us-east4-b",
            "us-west1-a",
        ],
    ),
];

/// Refuses what a health check from regions cannot have.
fn check_sources(body: &Value) -> Result<(), Problem> {
    let invalid = |field: &str| {
        let message = format!("Invalid value for field 'resource.{field}': '{}'.", body[field]);
        Err(Problem::with_reason(400, "invalid", message))
    };
    let seconds = |field: &str| body[field].as_u64().unwrap_or(5);
    if seconds("timeoutSec") > seconds("checkIntervalSec") {
        return invalid("timeoutSec");
    }
    let regions = body["sourceRegions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if regions.is_empty() {
        return Ok(());
    }
    let is_region = |region: &Value| REGIONS.iter().any(|(name, _)| region == name);
    if regions.len() != 3 || !regions.iter().all(is_region) {
        return invalid("sourceRegions");
    }
    if !["HTTP", "HTTPS", "TCP"].contains(&body["type"].as_str().unwrap_or_default()) {
        return invalid("type");
    }
    if seconds("checkIntervalSec") < 30 { invalid("checkIntervalSec") } else { Ok(()) }
}

/// The type and count of accelerators that belong to a machine type.
type Accelerators = (&'static str, i64);

/// Machine types: the name, CPUs, MiB of memory, and the accelerators that belong to it.
///
/// <https://cloud.google.com/compute/docs/machine-resource>
pub(crate) const MACHINES: &[(&str, i64, i64, Option<Accelerators>)] = &[
    ("a2-highgpu-1g", 12, 87_040, Some(("nvidia-tesla-a100", 1))),
    ("a2-highgpu-2g", 24, 174_080, Some(("nvidia-tesla-a100", 2))),
    ("a2-highgpu-4g", 48, 348_160, Some(("nvidia-tesla-a100", 4))),
    ("a2-highgpu-8g", 96, 696_320, Some(("nvidia-tesla-a100", 8))),
    ("a3-highgpu-8g", 208, 1_916_928, Some(("nvidia-h100-80gb", 8))),
    ("e2-medium", 2, 4096, None),
    ("e2-standard-16", 16, 65_536, None),
    ("e2-standard-2", 2, 8192, None),
    ("e2-standard-32", 32, 131_072, None),
    ("e2-standard-4", 4, 16_384, None),
    ("e2-standard-8", 8, 32_768, None),
    ("g2-standard-12", 12, 49_152, Some(("nvidia-l4", 1))),
    ("g2-standard-16", 16, 65_536, Some(("nvidia-l4", 1))),
    ("g2-standard-24", 24, 98_304, Some(("nvidia-l4", 2))),
    ("g2-standard-32", 32, 131_072, Some(("nvidia-l4", 1))),
    ("g2-standard-4", 4, 16_384, Some(("nvidia-l4", 1))),
    ("g2-standard-48", 48, 196_608, Some(("nvidia-l4", 4))),
    ("g2-standard-8", 8, 32_768, Some(("nvidia-l4", 1))),
    ("g2-standard-96", 96, 393_216, Some(("nvidia-l4", 8))),
    ("n1-standard-1", 1, 3840, None),
    ("n1-standard-16", 16, 61_440, None),
    ("n1-standard-2", 2, 7680, None),
    ("n1-standard-32", 32, 122_880, None),
    ("n1-standard-4", 4, 15_360, None),
    ("n1-standard-8", 8, 30_720, None),
    ("n2-standard-16", 16, 65_536, None),
    ("n2-standard-2", 2, 8192, None),
    ("n2-standard-4", 4, 16_384, None),
    ("n2-standard-8", 8, 32_768, None),
];

/// Quotas that regions show: the metric and the usual limit.
///
/// <https://cloud.google.com/compute/resource-usage>
pub(crate) const REGIONAL: &[(&str, f64)] = &[
    ("CPUS", 72.0),
    ("PREEMPTIBLE_CPUS", 0.0),
    ("SSD_TOTAL_GB", 40_960.0),
    ("IN_USE_ADDRESSES", 69.0),
    ("NVIDIA_T4_GPUS", 4.0),
    ("PREEMPTIBLE_NVIDIA_T4_GPUS", 4.0),
    ("NVIDIA_V100_GPUS", 1.0),
    ("PREEMPTIBLE_NVIDIA_V100_GPUS", 1.0),
    ("NVIDIA_L4_GPUS", 4.0),
    ("PREEMPTIBLE_NVIDIA_L4_GPUS", 4.0),
    ("NVIDIA_A100_GPUS", 0.0),
    ("PREEMPTIBLE_NVIDIA_A100_GPUS", 16.0),
    ("PREEMPTIBLE_NVIDIA_H100_GPUS", 0.0),
];

/// The quota of the project for ranges of internal addresses.
const RANGES: &str = "GLOBAL_INTERNAL_ADDRESSES";

/// Quotas of the project: the metric and the usual limit.
const GLOBAL: &[(&str, f64)] = &[
    ("NETWORKS", 50.0),
    ("SUBNETWORKS", 500.0),
    ("ROUTERS", 50.0),
    ("FIREWALLS", 500.0),
    ("STATIC_ADDRESSES", 70.0),
    (RANGES, 5_000.0),
    ("GPUS_ALL_REGIONS", 0.0),
    ("CPUS_ALL_REGIONS", 500.0),
];

/// A row of Compute Engine.
const ROW: Kind = Kind { family: Some(Family::Compute), ..KIND };

pub(crate) const KINDS: &[Kind] = &[
    Kind {
        methods: "compute.networks",
        verbs: &["insert", "get", "list", "patch", "delete"],
        collection: ("compute", "networks"),
        seconds: (20, 10, 20),
        defaults: &[
            ("/routingConfig/routingMode", "\"REGIONAL\""),
            ("/mtu", "1460"),
            ("/networkFirewallPolicyEnforcementOrder", "\"AFTER_CLASSIC_FIREWALL\""),
        ],
        quota: Some("NETWORKS"),
        check_delete: |_, _, body| match body["peerings"].as_array().and_then(|peerings| peerings.first()) {
            Some(peering) => {
                let name = super::name_of(&body["selfLink"]);
                let user = format!("{name}/peerings/{}", peering["name"].as_str().unwrap_or_default());
                Err(errors::in_use(&name, &user))
            }
            None => Ok(()),
        },
        ..ROW
    },
    Kind {
        methods: "compute.subnetworks",
        verbs: &["insert", "get", "list", "aggregatedList", "patch", "delete"],
        collection: ("compute", "subnetworks"),
        seconds: (30, 20, 30),
        defaults: &[
            ("/privateIpGoogleAccess", "false"),
            ("/purpose", "\"PRIVATE\""),
            ("/stackType", "\"IPV4_ONLY\""),
            ("/privateIpv6GoogleAccess", "\"DISABLE_GOOGLE_ACCESS\""),
        ],
        references: &["/network"],
        quota: Some("SUBNETWORKS"),
        fingerprint: Some("fingerprint"),
        check: |cloud, call, body| {
            let name = format!("{}/{}", call.key(), body["name"].as_str().unwrap_or_default());
            check_ranges(cloud, &name, &call.project, body)
        },
        fill: |cloud, _, name, body| {
            let range = body["ipCidrRange"].as_str().and_then(range);
            let gateway = range.map(|(first, _)| Ipv4Addr::from(first.saturating_add(1)).to_string());
            body["gatewayAddress"] = gateway.unwrap_or_default().into();
            body["network"] = absolute(name, &body["network"]).into();
            let link = body["selfLink"].clone();
            let network = super::kinds::resolve("", body["network"].as_str().unwrap_or_default());
            if let Some(network) = cloud.objects.get_mut(&network) {
                match network.body["subnetworks"].as_array_mut() {
                    Some(links) => links.push(link),
                    None => network.body["subnetworks"] = json!([link]),
                }
            }
        },
        check_update: |cloud, call, before, after| {
            check_secondary(cloud, call, before, after)?;
            check_ranges(cloud, &call.key(), &call.project, after)
        },
        deleted: |cloud, _, body| {
            let network = super::kinds::resolve("", body["network"].as_str().unwrap_or_default());
            let links = cloud.objects.get_mut(&network).and_then(|one| one.body["subnetworks"].as_array_mut());
            if let Some(links) = links {
                links.retain(|link| *link != body["selfLink"]);
            }
        },
        ..ROW
    },
    Kind {
        methods: "compute.routers",
        verbs: &["insert", "get", "list", "patch", "update", "delete"],
        collection: ("compute", "routers"),
        seconds: (15, 15, 15),
        references: &["/network", "/nats/*/subnetworks/*/name"],
        quota: Some("ROUTERS"),
        check: |cloud, call, body| check_nats(cloud, call, "", body),
        fill: |_, _, name, body| {
            body["network"] = absolute(name, &body["network"]).into();
            fill_nats(body);
        },
        check_update: |cloud, call, _, after| check_nats(cloud, call, &call.key(), after),
        ..ROW
    },
    Kind {
        methods: "compute.globalAddresses",
        verbs: &["insert", "get", "list", "delete"],
        collection: ("compute", "addresses"),
        seconds: (10, 10, 10),
        state: Some(("status", "RESERVING", "RESERVED")),
        defaults: &[("/addressType", "\"EXTERNAL\""), ("/ipVersion", "\"IPV4\"")],
        references: &["/network"],
        fingerprint: None,
        quota: Some(RANGES),
        fill: fill_address,
        check_delete: |cloud, _, body| {
            let name = body["name"].as_str().unwrap_or_default();
            let mut connections = cloud.objects.iter().filter(|(key, _)| key.starts_with("servicenetworking/"));
            let holds = |body: &Value| {
                body["reservedPeeringRanges"].as_array().is_some_and(|ranges| ranges.iter().any(|one| one == name))
            };
            match connections.find(|(_, object)| !object.is_hidden && holds(&object.body)) {
                Some(_) => Err(errors::in_use(&super::name_of(&body["selfLink"]), "servicenetworking.googleapis.com")),
                None => Ok(()),
            }
        },
        ..ROW
    },
    Kind {
        methods: "compute.firewalls",
        verbs: &["insert", "get", "list", "patch", "update", "delete"],
        collection: ("compute", "firewalls"),
        seconds: (10, 10, 10),
        defaults: &[
            ("/direction", "\"INGRESS\""),
            ("/priority", "1000"),
            ("/disabled", "false"),
            ("/logConfig/enable", "false"),
        ],
        references: &["/network"],
        quota: Some("FIREWALLS"),
        fill: |_, _, name, body| body["network"] = absolute(name, &body["network"]).into(),
        ..ROW
    },
    Kind {
        methods: "compute.healthChecks",
        verbs: &["insert", "get", "list", "aggregatedList", "patch", "delete"],
        collection: ("compute", "healthChecks"),
        seconds: (5, 5, 5),
        defaults: &[
            ("/checkIntervalSec", "5"),
            ("/timeoutSec", "5"),
            ("/healthyThreshold", "2"),
            ("/unhealthyThreshold", "2"),
        ],
        check: |_, _, body| check_sources(body),
        check_update: |_, _, _, after| check_sources(after),
        ..ROW
    },
    Kind {
        methods: "compute.disks",
        verbs: &["get", "list", "aggregatedList", "delete"],
        collection: ("compute", "disks"),
        ..ROW
    },
    Kind {
        methods: "compute.networkEndpointGroups",
        verbs: &["get", "list", "aggregatedList", "delete"],
        collection: ("compute", "networkEndpointGroups"),
        references: &["/network", "/subnetwork"],
        ..ROW
    },
    Kind {
        methods: "compute.forwardingRules",
        verbs: &["get", "list", "aggregatedList", "delete"],
        collection: ("compute", "forwardingRules"),
        references: &["/network", "/subnetwork", "/backendService"],
        ..ROW
    },
    Kind {
        methods: "compute.regionBackendServices",
        verbs: &["get", "list", "delete"],
        collection: ("compute", "backendServices"),
        references: &["/backends/*/group", "/healthChecks/*"],
        ..ROW
    },
    Kind {
        methods: "compute.backendServices",
        verbs: &["aggregatedList"],
        collection: ("compute", "backendServices"),
        ..ROW
    },
    Kind {
        methods: "compute.regionHealthChecks",
        verbs: &["get", "list", "delete"],
        collection: ("compute", "healthChecks"),
        ..ROW
    },
    // GKE makes and changes them.
    Kind {
        methods: "compute.instanceGroupManagers",
        verbs: &["get", "list"],
        collection: ("compute", "instanceGroupManagers"),
        ..ROW
    },
    Kind {
        methods: "compute.targetPools",
        verbs: &["get", "list", "aggregatedList", "delete"],
        collection: ("compute", "targetPools"),
        ..ROW
    },
    // What the catalogues hold is there from the start.
    Kind {
        methods: "compute.machineTypes",
        verbs: &["get", "list", "aggregatedList"],
        collection: ("compute", "machineTypes"),
        ..ROW
    },
    Kind {
        methods: "compute.acceleratorTypes",
        verbs: &["get", "list", "aggregatedList"],
        collection: ("compute", "acceleratorTypes"),
        ..ROW
    },
    Kind { methods: "compute.zones", collection: ("compute", "zones"), ..ROW },
];

pub(crate) const HANDLERS: &[(&str, Handler)] = &[
    ("compute.globalOperations.get", super::kinds::operation),
    ("compute.regionOperations.get", super::kinds::operation),
    ("compute.zoneOperations.get", super::kinds::operation),
    ("compute.globalOperations.list", super::kinds::operations),
    ("compute.regionOperations.list", super::kinds::operations),
    ("compute.zoneOperations.list", super::kinds::operations),
    ("compute.globalOperations.wait", wait),
    ("compute.regionOperations.wait", wait),
    ("compute.zoneOperations.wait", wait),
    ("compute.globalAddresses.setLabels", set_labels),
    ("compute.networks.removePeering", remove_peering),
    ("compute.subnetworks.setPrivateIpGoogleAccess", set_private_access),
    ("compute.projects.get", project),
    ("compute.regions.get", region),
    ("compute.regions.list", regions),
];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "another service may call a lack of machines a quota that is exceeded",
        Source::LeftOut("GoogleCloudPlatform/ai-on-gke#849: a service for builds, which no plan uses"),
    ),
    rule(
        "a request for a larger quota is granted, in part or whole, refused, or takes days",
        Source::LeftOut("alphagov/govuk-infrastructure#4682, fastai/course-v3#536: no plan asks for one"),
    ),
    rule(
        "a change answers an operation; quota and capacity fail it later, not the call",
        Source::Report("cloudpilot-ai/karpenter-provider-gcp#169"),
    ),
    rule("a failed insert leaves no object", Source::Report("googleapis/nodejs-compute#377")),
    rule("operations are forgotten after a time", Source::Report("jenkinsci/google-compute-engine-plugin#171")),
    rule("a request id is answered with the operation of the first request", Source::Model),
    rule("a request id with another request is refused", Source::Documentation("https://google.aip.dev/155")),
    rule(
        "NETWORKS is 50 by default, and exceeding it is QUOTA_EXCEEDED with quotaInfo",
        Source::Report("NVIDIA/aicr#2065"),
    ),
    rule(
        "a range for peering counts against GLOBAL_INTERNAL_ADDRESSES",
        Source::Report("hashicorp/terraform-provider-google#8924"),
    ),
    rule(
        "a missing quota metric is unlimited, GPUS_ALL_REGIONS is 0 at first",
        Source::Report("gcloudrig/gcloudrig#44"),
    ),
    rule(
        "QUOTA_EXCEEDED carries quotaInfo with metricName, limitName, dimensions and limit",
        Source::Report("skypilot-org/skypilot#2126"),
    ),
    rule("too many requests are 403 rateLimitExceeded", Source::Report("hashicorp/terraform-provider-google#8360")),
    rule(
        "a network or subnetwork that was just changed refuses dependants with resourceNotReady",
        Source::Report("terraform-google-modules/terraform-google-network#365"),
    ),
    rule(
        "an update without fingerprint is 400 required, with a stale one 412 conditionNotMet in two texts",
        Source::Report("hashicorp/terraform-provider-google#8279"),
    ),
    rule(
        "secondary ranges are not added and removed in one patch",
        Source::Report("hashicorp/terraform-provider-google#2570"),
    ),
    rule("a secondary range that a cluster uses stays", Source::Report("hashicorp/terraform-provider-google#7474")),
    rule(
        "ranges of a network do not overlap, a subnetwork's own included",
        Source::Report("terraform-google-modules/terraform-google-network#20"),
    ),
    rule("at most 30 secondary ranges a subnetwork", Source::Report("elastic/cloud-on-k8s#2615")),
    rule("a NAT of all ranges allows no second NAT on the network and region", Source::Report("google/osv.dev#5629")),
    rule(
        "a NAT's timeouts are 30, 1200, 30 and 30 seconds unless set",
        Source::Report("gardener/gardener-extension-provider-gcp#773"),
    ),
    rule(
        "a patch replaces lists as wholes, also the NATs of a router",
        Source::Report("hashicorp/terraform-provider-google#11909"),
    ),
    rule(
        "an object that another refers to is not deleted: resourceInUseByAnotherResource",
        Source::Report("hashicorp/terraform-provider-google#4543"),
    ),
    rule(
        "an object that no list shows fails the operation of a deletion: RESOURCE_IN_USE_BY_ANOTHER_RESOURCE",
        Source::Report("hashicorp/terraform-provider-google#9812"),
    ),
    rule("a peering blocks the deletion of its network", Source::Report("hashicorp/terraform-provider-google#16275")),
    rule(
        "removePeering works though the producer still holds the connection",
        Source::Report("hashicorp/terraform-provider-google#19908"),
    ),
    rule(
        "constraints of the organisation refuse a creation with 412 conditionNotMet and list each",
        Source::Report("gardener/gardener-extension-provider-gcp#415"),
    ),
    rule(
        "a health check from regions has three of them, is of HTTP, HTTPS or TCP, and probes every 30 seconds at most",
        Source::Documentation("https://cloud.google.com/compute/docs/reference/rest/v1/healthChecks"),
    ),
    rule(
        "names match the expression of RFC 1035",
        Source::Documentation("https://cloud.google.com/compute/docs/naming-resources"),
    ),
    rule(
        "labels: lower case, digits, _ and -, 63 characters, 64 labels",
        Source::Report("GoogleCloudPlatform/k8s-config-connector#363"),
    ),
    rule(
        "the gateway of a range is its second address",
        Source::Documentation("https://cloud.google.com/vpc/docs/subnets#unusable-ip-addresses-in-every-subnet"),
    ),
    rule(
        "setPrivateIpGoogleAccess changes the private access of a subnetwork",
        Source::Documentation(
            "https://cloud.google.com/compute/docs/reference/rest/v1/subnetworks/setPrivateIpGoogleAccess",
        ),
    ),
    rule("wait answers within two minutes", Source::Model),
    rule(
        "an internal range for peering gets free addresses of 10.0.0.0/8",
        Source::Documentation("https://cloud.google.com/vpc/docs/configure-private-services-access#allocating-range"),
    ),
    rule(
        "regions, zones, machine and accelerator types",
        Source::Documentation("https://cloud.google.com/compute/docs/regions-zones"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "compute", what, source }
}

/// Fills the catalogues of a project.
pub(crate) fn catalogue(cloud: &mut Cloud, project: &str) {
    for (region, letters) in REGIONS {
        for letter in letters.chars() {
            let zone = format!("{region}-{letter}");
            let mut put = |path: String, mut body: Value| {
                let name = format!("projects/{project}/{path}");
                cloud.describe("compute", &name, &mut body);
                // A catalogue has names where objects have addresses.
                if body.get("zone").is_some() {
                    body["zone"] = zone.clone().into();
                }
                cloud.put(&format!("compute/{name}"), body);
            };
            for (kind, cpus, memory, cards) in MACHINES {
                let available =
                    |kind: &str| ACCELERATORS.iter().any(|row| row.0 == kind && row.3.contains(&zone.as_str()));
                if cards.is_some_and(|(kind, _)| !available(kind)) {
                    continue;
                }
                let mut body = json!({ "guestCpus": cpus, "memoryMb": memory, "isSharedCpu": kind.contains("medium"),
                    "maximumPersistentDisks": 128, "maximumPersistentDisksSizeGb": "263168",
                        "architecture": "X86_64" });
                if let Some((kind, count)) = cards {
                    body["accelerators"] = json!([{ "guestAcceleratorType": kind, "guestAcceleratorCount": count }]);
                }
                put(format!("zones/{zone}/machineTypes/{kind}"), body);
            }
            for (kind, most, _, zones) in ACCELERATORS {
                if zones.contains(&zone.as_str()) {
                    let body = json!({ "maximumCardsPerInstance": most, "description": kind });
                    put(format!("zones/{zone}/acceleratorTypes/{kind}"), body);
                }
            }
            let name = format!("projects/{project}/zones/{zone}");
            let mut body = json!({});
            cloud.describe("compute", &name, &mut body);
            if let Some(members) = body.as_object_mut() {
                members.shift_remove("zone");
            }
            body["status"] = "UP".into();
            body["region"] = cloud.link("compute", &format!("projects/{project}/regions/{region}")).into();
            cloud.put(&format!("compute/{name}"), body);
        }
    }
}

/// The limit of a quota of a region; of none it has no bound.
pub(crate) fn limit(cloud: &Cloud, region: &str, metric: &str) -> f64 {
    let usual = if region.is_empty() { GLOBAL } else { REGIONAL };
    let usual = usual.iter().find(|row| row.0 == metric).map_or(f64::INFINITY, |row| row.1);
    cloud.quotas.get(&(region.to_owned(), metric.to_owned())).copied().unwrap_or(usual)
}

/// The zones of a region or zone; none if there is no such place.
pub(crate) fn zones_of(location: &str) -> Vec<String> {
    for (region, letters) in REGIONS {
        let zones = letters.chars().map(|letter| format!("{region}-{letter}"));
        if *region == location {
            return zones.collect();
        }
        if let Some(zone) = zones.into_iter().find(|zone| zone == location) {
            return vec![zone];
        }
    }
    Vec::new()
}

fn absolute(name: &str, link: &Value) -> String {
    let project = name.split('/').nth(1).unwrap_or_default();
    let key = super::kinds::resolve(project, link.as_str().unwrap_or_default());
    key.replacen("compute/", "https://www.googleapis.com/compute/v1/", 1)
}

/// The first address of a range and how many it has.
pub(crate) fn range(text: &str) -> Option<(u32, u64)> {
    let (address, length) = text.split_once('/')?;
    let (address, length) = (address.parse::<Ipv4Addr>().ok()?, length.parse::<u32>().ok()?);
    let size = 1_u64.checked_shl(32_u32.checked_sub(length)?)?;
    (u64::from(u32::from(address)) % size == 0).then_some((u32::from(address), size))
}

fn overlap(one: (u32, u64), other: (u32, u64)) -> bool {
    let (start, end) = (u64::from(one.0), u64::from(one.0) + one.1);
    let (other_start, other_end) = (u64::from(other.0), u64::from(other.0) + other.1);
    start < other_end && other_start < end
}

fn ranges_of(body: &Value) -> Vec<String> {
    let secondary = body["secondaryIpRanges"].as_array().into_iter().flatten();
    let all = std::iter::once(&body["ipCidrRange"]).chain(secondary.map(|one| &one["ipCidrRange"]));
    all.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn invalid(message: impl Into<String>) -> Problem {
    Problem::with_reason(400, "invalid", message)
}

fn check_ranges(cloud: &Cloud, key: &str, project: &str, body: &Value) -> Result<(), Problem> {
    let network = super::kinds::resolve(project, body["network"].as_str().unwrap_or_default());
    if body["secondaryIpRanges"].as_array().is_some_and(|ranges| ranges.len() > 30) {
        return Err(invalid("Exceeded maximum supported number of secondary ranges per subnetwork: 30."));
    }
    let own = ranges_of(body);
    let mut taken: Vec<(String, String)> = Vec::new();
    for (other, object) in &cloud.objects {
        let is_subnet = other.starts_with("compute/") && other.rsplit('/').nth(1) == Some("subnetworks");
        let of = super::kinds::resolve(project, object.body["network"].as_str().unwrap_or_default());
        if is_subnet && other != key && of == network {
            taken.extend(ranges_of(&object.body).into_iter().map(|range| (other.clone(), range)));
        }
    }
    for (index, text) in own.iter().enumerate() {
        let Some(range) = range(text) else {
            let message = format!("Invalid value for field 'resource.ipCidrRange': '{text}'. It is not a valid range.");
            return Err(invalid(message));
        };
        let mine = own[..index].iter().map(|one| (key.to_owned(), one.clone()));
        for (other, used) in taken.iter().cloned().chain(mine) {
            if self::range(&used).is_some_and(|used| overlap(range, used)) {
                let other = other.split_once('/').map_or("", |(_, name)| name);
                let message = format!(
                    "Invalid IPCidrRange: {text} conflicts with existing subnetwork '{other}' in region with range \
                        {used}."
                );
                return Err(invalid(message));
            }
        }
    }
    Ok(())
}

fn check_secondary(cloud: &Cloud, call: &Call<'_>, before: &Value, after: &Value) -> Result<(), Problem> {
    let list = |body: &Value| -> Vec<(String, String)> {
        let ranges = body["secondaryIpRanges"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        ranges.map(|one| (text(&one["rangeName"]), text(&one["ipCidrRange"]))).collect()
    };
    let (old, new) = (list(before), list(after));
    let removed: Vec<&(String, String)> = old.iter().filter(|one| !new.contains(one)).collect();
    let is_added = new.iter().any(|one| !old.contains(one));
    if is_added && !removed.is_empty() {
        return Err(invalid("Cannot add and remove secondary IP ranges in the same request."));
    }
    let subnetwork = call.name.as_str();
    for (key, object) in &cloud.objects {
        let policy = &object.body["ipAllocationPolicy"];
        let is_here = object.body["networkConfig"]["subnetwork"] == subnetwork;
        for member in ["clusterSecondaryRangeName", "servicesSecondaryRangeName"] {
            if is_here && removed.iter().any(|(name, _)| policy[member] == name.as_str()) {
                return Err(errors::in_use(subnetwork, key));
            }
        }
    }
    Ok(())
}

const ALL: &str = "ALL_SUBNETWORKS_ALL_IP_RANGES";

fn check_nats(cloud: &Cloud, call: &Call<'_>, key: &str, body: &Value) -> Result<(), Problem> {
    let network = absolute(&call.name, &body["network"]);
    let scope: Vec<&str> = call.name.split('/').collect();
    let region = format!("compute/{}", scope[..scope.len().min(4)].join("/"));
    let mut nats: Vec<&Value> = body["nats"].as_array().into_iter().flatten().collect();
    for (other, object) in &cloud.objects {
        let is_near = other.starts_with(&format!("{region}/routers/")) && other != key;
        if is_near && object.body["network"] == network.as_str() {
            nats.extend(object.body["nats"].as_array().into_iter().flatten());
        }
    }
    if nats.len() > 1 && nats.iter().any(|nat| nat["sourceSubnetworkIpRangesToNat"] == ALL) {
        return Err(invalid(format!("Can not create new Nats since a Nat with option {ALL} exists.")));
    }
    Ok(())
}

fn fill_nats(body: &mut Value) {
    let usual = [
        ("udpIdleTimeoutSec", 30),
        ("tcpEstablishedIdleTimeoutSec", 1200),
        ("tcpTransitoryIdleTimeoutSec", 30),
        ("icmpIdleTimeoutSec", 30),
        ("tcpTimeWaitTimeoutSec", 120),
    ];
    for nat in body["nats"].as_array_mut().into_iter().flatten() {
        for (member, seconds) in usual {
            if nat.get(member).is_none() {
                nat[member] = seconds.into();
            }
        }
        for (member, value) in [("type", json!("PUBLIC")), ("enableEndpointIndependentMapping", json!(false))] {
            if nat.get(member).is_none() {
                nat[member] = value;
            }
        }
    }
}

fn fill_address(cloud: &mut Cloud, _: &Call<'_>, name: &str, body: &mut Value) {
    if body.get("network").is_some() {
        body["network"] = absolute(name, &body["network"]).into();
    }
    if body.get("labels").is_some() {
        body["labelFingerprint"] = cloud.fingerprint().into();
    }
    if body.get("address").is_some() {
        return;
    }
    let length = body["prefixLength"].as_i64().and_then(|length| u32::try_from(length).ok()).unwrap_or(32);
    let size = 1_u64 << (32 - length.min(32));
    let taken: Vec<(u32, u64)> =
        cloud.objects.values().flat_map(|one| ranges_of(&one.body)).filter_map(|one| range(&one)).collect();
    let reserved = cloud.objects.iter().filter(|(key, _)| key.contains("/global/addresses/")).filter_map(|(_, one)| {
        range(&format!("{}/{}", one.body["address"].as_str()?, one.body["prefixLength"].as_i64()?))
    });
    let taken: Vec<(u32, u64)> = taken.into_iter().chain(reserved).collect();
    // 10.64.0.0, far from the first subnetworks.
    let mut start = 0x0a40_0000_u64;
    start = start.div_ceil(size) * size;
    let mut free = None;
    while start + size <= 0x0b00_0000 {
        let first = u32::try_from(start).unwrap_or(u32::MAX);
        if !taken.iter().any(|used| overlap((first, size), *used)) {
            free = Some(first);
            break;
        }
        start += size;
    }
    let external = format!(
        "34.{}.{}.{}",
        cloud.random.number() % 128,
        cloud.random.number() % 256,
        1 + cloud.random.number() % 254
    );
    let is_internal = body["addressType"] == "INTERNAL";
    let address = free.filter(|_| is_internal).map_or(external, |first| Ipv4Addr::from(first).to_string());
    body["address"] = address.into();
}

fn wait(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let key = call.parent_key();
    for _ in 0..120 {
        match cloud.operations.get(&key) {
            None => return Err(errors::not_found("compute", call.parent())),
            Some(operation) if operation.end.is_some() => break,
            Some(_) => cloud.advance(Duration::from_secs(1)),
        }
    }
    Ok(cloud.operations.get(&key).map_or(Value::Null, |operation| cloud.shown(operation)))
}

fn set_labels(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let key = call.parent_key();
    let Some(before) = cloud.get(&key).cloned() else { return Err(errors::not_found("compute", call.parent())) };
    errors::check_labels(&call.body["labels"])?;
    let current = before.get("labelFingerprint").cloned().unwrap_or_else(|| "42WmSpB8rSM=".into());
    if call.body["labelFingerprint"] != current {
        return Err(Problem::with_reason(
            412,
            "conditionNotMet",
            "Labels fingerprint either invalid or resource labels have changed",
        ));
    }
    let labels = call.body["labels"].clone();
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        let fingerprint = cloud.fingerprint();
        if let Some(object) = cloud.objects.get_mut(&target) {
            object.body["labels"] = labels;
            object.body["labelFingerprint"] = fingerprint.into();
        }
        Ok(Value::Null)
    });
    Ok(begin(cloud, call, Family::Compute, "setLabels", &key, Duration::from_secs(5), Value::Null, effect))
}

fn remove_peering(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    if let Some(shown) = repeated(cloud, call)? {
        return Ok(shown);
    }
    let key = call.parent_key();
    let name = call.body["name"].as_str().unwrap_or_default().to_owned();
    let Some(network) = cloud.get(&key) else { return Err(errors::not_found("compute", call.parent())) };
    let mut peerings = network["peerings"].as_array().into_iter().flatten();
    if !peerings.any(|peering| peering["name"] == name.as_str()) {
        let message = format!("Invalid value for field 'peering.name': '{name}'. There is no such peering.");
        return Err(invalid(message));
    }
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        super::networking::drop_peering(cloud, &target, &name);
        Ok(Value::Null)
    });
    Ok(begin(cloud, call, Family::Compute, "removePeering", &key, Duration::from_secs(20), Value::Null, effect))
}

fn set_private_access(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    if let Some(shown) = repeated(cloud, call)? {
        return Ok(shown);
    }
    let key = call.parent_key();
    if cloud.get(&key).is_none() {
        return Err(errors::not_found("compute", call.parent()));
    }
    let is_on = call.body["privateIpGoogleAccess"].clone();
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        let fingerprint = cloud.fingerprint();
        if let Some(object) = cloud.objects.get_mut(&target) {
            object.body["privateIpGoogleAccess"] = is_on;
            object.body["fingerprint"] = fingerprint.into();
        }
        Ok(Value::Null)
    });
    let seconds = Duration::from_secs(10);
    Ok(begin(cloud, call, Family::Compute, "setPrivateIpGoogleAccess", &key, seconds, Value::Null, effect))
}

fn quotas(cloud: &Cloud, project: &str, region: &str) -> Vec<Value> {
    let table = if region.is_empty() { GLOBAL } else { REGIONAL };
    let row = |(metric, _): &(&'static str, f64)| {
        let usage = used(cloud, project, region, metric);
        json!({ "metric": metric, "limit": limit(cloud, region, metric), "usage": usage })
    };
    table.iter().map(row).collect()
}

/// What of a quota is used.
pub(crate) fn used(cloud: &Cloud, project: &str, region: &str, metric: &str) -> f64 {
    let collection = match metric {
        "NETWORKS" => "networks",
        "SUBNETWORKS" => "subnetworks",
        "ROUTERS" => "routers",
        "FIREWALLS" => "firewalls",
        "STATIC_ADDRESSES" | RANGES => "addresses",
        metric => return super::container::used(cloud, project, region, metric),
    };
    let start = format!("compute/projects/{project}/");
    let is_of = |body: &Value| collection != "addresses" || (body["addressType"] == "INTERNAL") == (metric == RANGES);
    let is_one = |(key, object): &(&String, &Object)| {
        key.starts_with(&start) && key.rsplit('/').nth(1) == Some(collection) && is_of(&object.body)
    };
    cloud.objects.iter().filter(is_one).count() as f64
}

fn project(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let Some(project) = cloud.project(&call.project).cloned() else {
        return Err(errors::not_found("compute", &call.name));
    };
    Ok(json!({
        "kind": "compute#project", "id": project.number, "name": project.id,
        "selfLink": cloud.link("compute", &call.name), "quotas": quotas(cloud, &project.id, ""),
        "defaultServiceAccount": format!("{}-compute@developer.gserviceaccount.com", project.number),
        "xpnProjectStatus": "UNSPECIFIED_XPN_PROJECT_STATUS", "defaultNetworkTier": "PREMIUM",
    }))
}

fn region_body(cloud: &Cloud, project: &str, name: &str, letters: &str) -> Value {
    let path = format!("projects/{project}/regions/{name}");
    let zone = |letter: char| cloud.link("compute", &format!("projects/{project}/zones/{name}-{letter}"));
    json!({
        "kind": "compute#region", "id": u64::from_str_radix(&super::cloud::hash(name), 16).unwrap_or(1).to_string(),
        "name": name, "description": name, "status": "UP", "selfLink": cloud.link("compute", &path),
        "zones": letters.chars().map(zone).collect::<Vec<_>>(), "quotas": quotas(cloud, project, name),
    })
}

fn region(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let name = call.name.rsplit('/').next().unwrap_or_default();
    match REGIONS.iter().find(|(one, _)| *one == name) {
        Some((name, letters)) => Ok(region_body(cloud, &call.project, name, letters)),
        None => Err(errors::not_found("compute", &call.name)),
    }
}

fn regions(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let all = REGIONS.iter().map(|(name, letters)| region_body(cloud, &call.project, name, letters)).collect();
    Ok(page(call, "items", all))
}

/// Firewall rules of a network that a cluster made, by the start of their names.
pub(crate) fn firewalls_of(cloud: &Cloud, project: &str, start: &str) -> Vec<String> {
    let keys = collection(cloud, &format!("compute/projects/{project}/global/firewalls"));
    keys.into_iter().filter(|key| key.rsplit('/').next().is_some_and(|name| name.starts_with(start))).collect()
}
