//! Networks, subnetworks and routers of Compute Engine: <https://cloud.google.com/compute/docs/reference/rest/v1>.
//!
//! They have no labels: their descriptions have the tags.

use std::collections::BTreeSet;

use async_trait::async_trait;
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_cloud::ObservedObject;
use textnlp_cloud::document::last;
use textnlp_provider::{CloudId, Declaration, Declare, ErrorKind, Foreign, Identity, Kind, Pricing, Result, Spec};

use super::{create, delete, put, read};
use crate::api::{Api, Call};
use crate::declare::{ID, NAME, NO_DESCRIPTION, Terraform};
use crate::labels;
use crate::operation::Family;
use crate::row::{Field, Marks, Request, Rest, RestKind, States, Table, Update, Word, relative};
use crate::service::Service;
use crate::table::{MINUTE, Row, kind};

/// The name of the NAT in a router.
pub(crate) const NAT: &str = "nat";
/// The longest description of an object of Compute Engine.
pub(super) const DESCRIPTION: usize = 2_048;

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            deadline: MINUTE.saturating_mul(30),
            permissions: &[
                create("compute.networks.create"),
                delete("compute.networks.delete"),
                read("compute.networks.get"),
                read("compute.networks.list"),
                put("compute.networks.update"),
                read("compute.globalOperations.get"),
                read("compute.zoneOperations.get"),
                read("compute.regionOperations.get"),
                read("compute.firewalls.list"),
                delete("compute.firewalls.delete"),
                read("compute.networkEndpointGroups.list"),
                delete("compute.networkEndpointGroups.delete"),
                read("compute.forwardingRules.list"),
                delete("compute.forwardingRules.delete"),
                read("compute.targetPools.list"),
                delete("compute.targetPools.delete"),
                read("compute.backendServices.list"),
                delete("compute.regionBackendServices.delete"),
                read("compute.healthChecks.list"),
                delete("compute.healthChecks.delete"),
                delete("compute.regionHealthChecks.delete"),
                delete("compute.networks.updatePolicy"),
            ],
            terraform: &[("google_compute_network", "id")],
            ..kind("gcp.network", "a VPC network", Identity::Named)
        },
        service: "compute",
        resource: &Rest::<Network>::kind(),
        refused: &[(
            "auto_subnets",
            "a network with automatic subnetworks is another kind of network: create a new one",
        )],
    },
    Row {
        kind: Kind {
            deadline: MINUTE.saturating_mul(20),
            permissions: &[
                create("compute.subnetworks.create"),
                delete("compute.subnetworks.delete"),
                read("compute.subnetworks.get"),
                read("compute.subnetworks.list"),
                put("compute.subnetworks.update"),
                put("compute.subnetworks.setPrivateIpGoogleAccess"),
                put("compute.networks.updatePolicy"),
                read("compute.regionOperations.get"),
                read("compute.zoneOperations.get"),
                read("compute.networkEndpointGroups.list"),
                delete("compute.networkEndpointGroups.delete"),
                read("compute.forwardingRules.list"),
                delete("compute.forwardingRules.delete"),
                read("compute.targetPools.list"),
                delete("compute.targetPools.delete"),
                read("compute.backendServices.list"),
                delete("compute.regionBackendServices.delete"),
                read("compute.healthChecks.list"),
                delete("compute.healthChecks.delete"),
                delete("compute.regionHealthChecks.delete"),
            ],
            terraform: &[("google_compute_subnetwork", "id")],
            ..kind("gcp.subnetwork", "a subnetwork", Identity::Named)
        },
        service: "compute",
        resource: &Rest::<Subnetwork>::kind(),
        refused: &[
            ("cidr", "a subnetwork keeps its range: deploy another environment and move to it"),
            ("network", "a subnetwork stays in its network: deploy another environment and move to it"),
            // hashicorp/terraform-provider-google#2570.
            ("ranges", "the ranges of pods and services do not change while a cluster uses them"),
        ],
    },
    Row {
        kind: Kind {
            pricing: Pricing::BySpec,
            permissions: &[
                create("compute.routers.create"),
                delete("compute.routers.delete"),
                read("compute.routers.get"),
                read("compute.routers.list"),
                put("compute.routers.update"),
                put("compute.networks.updatePolicy"),
                read("compute.regionOperations.get"),
            ],
            terraform: &[("google_compute_router", "id")],
            ..kind("gcp.router", "a Cloud Router with its NAT", Identity::Named)
        },
        service: "compute",
        resource: &Rest::<Router>::kind(),
        refused: &[],
    },
];

/// A network without automatic subnetworks. Outputs: `id`, `name`.
struct Network;

#[async_trait]
impl RestKind for Network {
    const TABLE: &'static Table = &Table {
        service: Service::Compute,
        path: "projects/{project}/global/networks/{name}",
        collection: "projects/{project}/global/networks",
        constants: &[("/autoCreateSubnetworks", "false")],
        fields: &[
            Field { seen: "/autoCreateSubnetworks", ..Field::flag("auto_subnets", "") },
            Field::plain("routing", "/routingConfig/routingMode").patched(),
        ],
        in_place: &["routing"],
        update: Update::Merge(&[]),
        // Only `routingConfig` of a network can be patched.
        marks: Marks::Description("/description", DESCRIPTION, false),
        family: Family::Compute,
        created: "/creationTimestamp",
        terraform: Terraform {
            kind: "google_compute_network",
            named: &[("project", "/project"), ("name", "/name")],
            moved: &[("/routingConfig/routingMode", "/routing_mode"), NO_DESCRIPTION],
            ignored: &["description"],
            outputs: &[ID],
            ..Terraform::USUAL
        },
        ..Table::USUAL
    };

    /// What a cluster's controllers made in it and what others did: any of these keeps it from being deleted (murphye/cheap-gke-cluster#2,
    /// hashicorp/terraform-provider-google#5948).
    async fn foreign(api: &Api, id: &str, document: &Value) -> Result<Vec<Foreign>> {
        if is_of_others(document) {
            return Ok(Vec::new());
        }
        let (mut foreign, mut parts) = (Vec::new(), BTreeSet::new());
        for (path, what) in INSIDE {
            for one in api.list(Service::Compute, &api.path(path), "items", &[]).await? {
                if one["network"].as_str().map(relative) == Some(id) {
                    parts.extend(named_by(one["name"].as_str().unwrap_or_default()));
                    foreign.extend(inside(&one, what));
                }
            }
        }
        // They go before the rules and groups that tell of them.
        let mut all = of_balancers(api, &parts, id).await?;
        all.append(&mut foreign);
        Ok(all)
    }

    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<String>> {
        end(api, seen).await
    }
}

/// Whether no deployment of this program created it: what is in an existing network is not reported on.
fn is_of_others(document: &Value) -> bool {
    let description = document["description"].as_str().unwrap_or_default();
    textnlp_cloud::tags::lineage(&labels::of_description(description)).is_none()
}

/// Deletes the first object of controllers in it, and at last the network or subnetwork.
async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<String>> {
    let swept = seen.foreign.iter().find(|one| one.swept).map(|one| one.cloud_id.as_str());
    let id = swept.unwrap_or(&seen.id);
    let answer = api.send(Call::new(Service::Compute, Method::DELETE, id)).await?;
    Ok(Family::Compute.started(api, id, &answer))
}

/// The lists of objects in networks, in the order in which they are swept.
const INSIDE: [(&str, &str); 2] = [
    ("projects/{project}/aggregated/networkEndpointGroups", "network endpoint group"),
    ("projects/{project}/global/firewalls", "firewall rule"),
];

/// What the description of a rule contains that was created for a Service of Kubernetes
/// (<https://github.com/kubernetes/cloud-provider-gcp/blob/master/providers/gce/gce_loadbalancer_naming.go>).
const OF_SERVICE: &str = "kubernetes.io/service-name";
/// The lists of parts of load balancers, most of which name no network, in the order in which they are swept: each uses those after it.
const OF_BALANCERS: [(&str, &str); 4] = [
    ("projects/{project}/aggregated/forwardingRules", "forwarding rule"),
    ("projects/{project}/aggregated/targetPools", "target pool"),
    ("projects/{project}/aggregated/backendServices", BACKENDS),
    ("projects/{project}/aggregated/healthChecks", CHECK),
];
const BACKENDS: &str = "backend service";
const CHECK: &str = "health check";

/// The names of parts of load balancers that a firewall rule or an endpoint group with this name tells. They contain the id of a cluster
/// or of a Service, and are those of no other one: see [`OF_SERVICE`], and
/// <https://github.com/kubernetes/ingress-gce/blob/master/pkg/utils/namer/l4_namer.go>.
fn named_by(name: &str) -> impl Iterator<Item = String> {
    let is_id = |id: &str| id.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
    let is_of_service = |part: &&str| part.len() == OF_UID && part.starts_with('a') && is_id(part);
    let is_of_cluster = |id: &str, length: usize| id.len() == length && is_id(id);
    let of_service = name.strip_prefix("k8s-fw-").filter(is_of_service);
    let of_nodes = name.strip_suffix("-hc").filter(|check| {
        let id = check.strip_prefix("k8s-").and_then(|rest| rest.strip_suffix("-node"));
        id.is_some_and(|id| is_of_cluster(id, OF_CLUSTER))
    });
    let of_hash = name.strip_prefix("k8s2-").and_then(|rest| rest.split_once('-'));
    let own = Some(name).filter(|_| of_hash.is_some_and(|(hash, _)| is_of_cluster(hash, OF_HASH)));
    let of_check = own.and_then(|name| name.strip_suffix("-fw"));
    [of_service, of_nodes, own, of_check].into_iter().flatten().map(str::to_owned)
}

/// The lengths in those names: `a` and the UID of a Service, the id of a cluster, and the hash of the UID of one.
const OF_UID: usize = 32;
const OF_CLUSTER: usize = 16;
const OF_HASH: usize = 8;

/// The parts of load balancers with these names, and the forwarding rules to them, without those that name another network.
async fn of_balancers(api: &Api, names: &BTreeSet<String>, network: &str) -> Result<Vec<Foreign>> {
    let mut found = Vec::new();
    if names.is_empty() {
        return Ok(found);
    }
    let is_named = |link: &Value| link.as_str().is_some_and(|link| names.contains(last(link)));
    for (path, what) in OF_BALANCERS {
        let listed = match api.list(Service::Compute, &api.path(path), "items", &[]).await {
            // A role that an earlier version printed does not list them: they stay.
            Err(error) if error.kind == ErrorKind::Denied && [BACKENDS, CHECK].contains(&what) => continue,
            listed => listed?,
        };
        let is_elsewhere = |one: &Value| one["network"].as_str().is_some_and(|at| relative(at) != network);
        let is_part = |one: &&Value| is_named(&one["name"]) || is_named(&one["backendService"]);
        for one in listed.iter().filter(is_part).filter(|one| !is_elsewhere(one)) {
            found.extend(inside(one, what).map(|part| Foreign { swept: true, ..part }));
        }
    }
    Ok(found)
}

fn inside(one: &Value, what: &str) -> Option<Foreign> {
    let id = relative(one["selfLink"].as_str()?);
    Some(Foreign {
        cloud_id: CloudId::new(id).ok()?,
        what: what.to_owned(),
        swept: is_of_gke(last(id)),
        outlives: false,
        maker: None,
    })
}

/// Whether a name is one that the controllers of GKE give: <https://cloud.google.com/kubernetes-engine/docs/concepts/firewall-rules>,
/// <https://cloud.google.com/kubernetes-engine/docs/how-to/standalone-neg>.
fn is_of_gke(name: &str) -> bool {
    ["gke-", "gkegw1-", "gkemcg1-", "k8s-", "k8s1-", "k8s2-"].iter().any(|start| name.starts_with(start))
}

/// A subnetwork. Outputs: `id`, `name`.
struct Subnetwork;

#[async_trait]
impl RestKind for Subnetwork {
    const TABLE: &'static Table = &Table {
        service: Service::Compute,
        path: "projects/{project}/regions/{location}/subnetworks/{name}",
        collection: "projects/{project}/regions/{location}/subnetworks",
        fields: &[
            Field::link("network", "/network"),
            Field::plain("cidr", "/ipCidrRange"),
            Field::code("ranges", "/secondaryIpRanges", secondary, ranges),
            // A patch does not change it.
            Field::flag("private_google_access", "/privateIpGoogleAccess").called(
                Request::Post,
                "/setPrivateIpGoogleAccess",
                |on| json!({ "privateIpGoogleAccess": on }),
            ),
            Field::code("flow_logs", "/logConfig", log, |one| json!(one["logConfig"]["enable"] == true)).patched(),
        ],
        in_place: &["private_google_access", "flow_logs"],
        update: Update::Merge(&["/fingerprint"]),
        marks: Marks::Description("/description", DESCRIPTION, false),
        family: Family::Compute,
        states: Some(States {
            member: "/state",
            words: &[("READY", Word::Ready), ("DRAINING", Word::Pending)],
            reason: "/state",
        }),
        created: "/creationTimestamp",
        terraform: Terraform {
            kind: "google_compute_subnetwork",
            named: &[("project", "/project"), ("location", "/region"), ("name", "/name")],
            moved: &[("/secondaryIpRanges", "/secondary_ip_range"), NO_DESCRIPTION],
            ignored: &["description"],
            outputs: &[ID],
            ..Terraform::USUAL
        },
        ..Table::USUAL
    };

    /// Logs are on where there is a block for them.
    fn declared(_api: Option<&Api>, _request: &Declare<'_>, document: &mut Value) -> Result<(), String> {
        let is_on = document["logConfig"]["enable"] == true;
        if let Some(log) = document["logConfig"].as_object_mut() {
            log.retain(|name, _| is_on && name != "enable");
        }
        Ok(())
    }

    /// What holds its addresses: endpoint groups, and the rules of internal load balancers, which its clusters' controllers made. What
    /// uses the groups goes before them.
    async fn foreign(api: &Api, id: &str, document: &Value) -> Result<Vec<Foreign>> {
        if is_of_others(document) {
            return Ok(Vec::new());
        }
        let (mut found, mut parts) = ([Vec::new(), Vec::new()], BTreeSet::new());
        for ((path, what), found) in [OF_BALANCERS[0], INSIDE[0]].into_iter().zip(&mut found) {
            for one in api.list(Service::Compute, &api.path(path), "items", &[]).await? {
                if one["subnetwork"].as_str().map(relative) != Some(id) {
                    continue;
                }
                parts.extend(named_by(one["name"].as_str().unwrap_or_default()));
                let is_of_service = one["description"].as_str().is_some_and(|text| text.contains(OF_SERVICE));
                found.extend(inside(&one, what).map(|part| Foreign { swept: part.swept || is_of_service, ..part }));
            }
        }
        let [mut all, groups] = found;
        let network = document["network"].as_str().map(relative).unwrap_or_default();
        for part in of_balancers(api, &parts, network).await? {
            if !all.iter().any(|one: &Foreign| one.cloud_id == part.cloud_id) {
                all.push(part);
            }
        }
        all.extend(groups);
        Ok(all)
    }

    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<String>> {
        end(api, seen).await
    }

    /// Other ranges are their operator's.
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        let has = |(name, cidr): (&String, &Value)| seen.get(name) == Some(cidr);
        field == "ranges" && wanted.as_object().is_some_and(|all| all.iter().all(has))
    }
}

/// The ranges of pods and services by their names, as a list.
fn secondary(ranges: &Value) -> Value {
    let range = |(name, cidr): (&String, &Value)| json!({ "rangeName": name, "ipCidrRange": cidr });
    ranges.as_object().map(|all| all.iter().map(range).collect()).unwrap_or_default()
}

fn ranges(document: &Value) -> Value {
    let list = document["secondaryIpRanges"].as_array().into_iter().flatten();
    let pairs = list.filter_map(|one| Some((one["rangeName"].as_str()?.to_owned(), one["ipCidrRange"].clone())));
    Value::Object(pairs.collect())
}

/// Half of the connections, in intervals of ten minutes: what an investigation needs, at a fifth of the default's amount.
fn log(enabled: &Value) -> Value {
    match enabled.as_bool() {
        Some(true) => json!({
            "enable": true, "aggregationInterval": "INTERVAL_10_MIN", "flowSampling": 0.5, "metadata": "INCLUDE_ALL_METADATA",
        }),
        _ => json!({ "enable": false }),
    }
}

/// A router with one NAT, for one subnetwork: a NAT for all of them would exclude any other (google/osv.dev#5629). Outputs: `id`, `name`.
struct Router;

#[async_trait]
impl RestKind for Router {
    const TABLE: &'static Table = &Table {
        service: Service::Compute,
        path: "projects/{project}/regions/{location}/routers/{name}",
        collection: "projects/{project}/regions/{location}/routers",
        fields: &[Field::link("network", "/network"), Field::code("nat", "/nats", nats, nat)],
        in_place: &["nat"],
        update: Update::Merge(&[]),
        marks: Marks::Description("/description", DESCRIPTION, true),
        family: Family::Compute,
        created: "/creationTimestamp",
        terraform: Terraform {
            kind: "google_compute_router",
            named: &[("project", "/project"), ("location", "/region"), ("name", "/name")],
            moved: &[("/nats", ""), NO_DESCRIPTION],
            ignored: &["description"],
            outputs: &[ID, NAME],
            ..Terraform::USUAL
        },
        ..Table::USUAL
    };

    /// Terraform has a resource for its NAT.
    fn declarations(api: Option<&Api>, request: &Declare<'_>, main: Declaration) -> Vec<Declaration> {
        let wanted = request.object.spec.get("nat").unwrap_or(&Value::Null);
        if wanted.is_null() {
            return vec![main];
        }
        let nat = json!({
            "name": NAT, "router": main.body.get("name"), "region": main.body.get("region"),
            "project": main.body.get("project"), "nat_ip_allocate_option": "AUTO_ONLY",
            "source_subnetwork_ip_ranges_to_nat": "LIST_OF_SUBNETWORKS",
            "subnetwork": [{ "name": wanted["subnetwork"], "source_ip_ranges_to_nat": ["ALL_IP_RANGES"] }],
            "log_config": { "enable": true, "filter": wanted["log"] },
        });
        let id = format!("{}/{NAT}", main.id);
        let part = crate::declare::declaration(api, "google_compute_router_nat", &nat, id, &[]);
        vec![main, part]
    }

    /// A patch replaces the whole list: other NATs stay in it.
    async fn put(api: &Api, id: &str, wanted: &Value, field: &str) -> Result<Option<String>> {
        if field != "nat" {
            return Err(crate::row::invalid("change", id, &format!("`{field}` does not change in place")));
        }
        let read = api.send(Call::get(Service::Compute, id)).await?;
        let mut all = read["nats"].as_array().cloned().unwrap_or_default();
        all.retain(|one| one["name"] != NAT);
        all.extend(nats(wanted).as_array().cloned().unwrap_or_default());
        let call = Call::new(Service::Compute, Method::PATCH, id).body(json!({ "nats": all }));
        let answer = api.send(call).await?;
        Ok(Family::Compute.started(api, id, &answer))
    }
}

fn nats(nat: &Value) -> Value {
    json!([{
        "name": nat["name"],
        "natIpAllocateOption": "AUTO_ONLY",
        "sourceSubnetworkIpRangesToNat": "LIST_OF_SUBNETWORKS",
        "subnetworks": [{ "name": nat["subnetwork"], "sourceIpRangesToNat": ["ALL_IP_RANGES"] }],
        "logConfig": { "enable": true, "filter": nat["log"] },
    }])
}

/// The NAT of that name. Its time-outs are the server's.
fn nat(document: &Value) -> Value {
    let mut all = document["nats"].as_array().into_iter().flatten();
    let Some(nat) = all.find(|one| one["name"] == NAT) else { return Value::Null };
    let subnetwork = nat["subnetworks"][0]["name"].as_str().map(relative);
    json!({ "name": nat["name"], "subnetwork": subnetwork, "log": nat["logConfig"]["filter"] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_gke_are_known_by_their_names() {
        for name in ["gke-textnlp-a-main-0a1b2c3d-all", "k8s-fw-a0123", "k8s1-0a1b-ns-svc-80", "gkegw1-0a1b-ns-gw"] {
            assert!(is_of_gke(name), "{name}");
        }
        for name in ["allow-ssh", "a-team-rule", "gkeish"] {
            assert!(!is_of_gke(name), "{name}");
        }
        for (name, parts) in [
            ("k8s-fw-a0123456789abcdef0123456789abcde", &["a0123456789abcdef0123456789abcde"][..]),
            ("k8s-0123456789abcdef-node-hc", &["k8s-0123456789abcdef-node"]),
            ("k8s2-0a1b2c3d-ns-web-9f", &["k8s2-0a1b2c3d-ns-web-9f"]),
            ("k8s2-0a1b2c3d-l4-shared-hc-fw", &["k8s2-0a1b2c3d-l4-shared-hc-fw", "k8s2-0a1b2c3d-l4-shared-hc"]),
            ("team-node-hc", &[]),
            ("allow-fw", &[]),
            // Names that a team chose.
            ("k8s-fw-web", &[]),
            ("k8s-node-hc", &[]),
            ("k8s-team-node-hc", &[]),
            ("k8s2-web", &[]),
            ("k8s2-team-web", &[]),
        ] {
            assert_eq!(named_by(name).collect::<Vec<_>>(), parts, "{name}");
        }
        let rule = json!({ "selfLink": "https://www.googleapis.com/compute/v1/projects/p/global/firewalls/allow-ssh" });
        let found = inside(&rule, "firewall rule").unwrap();
        assert_eq!((found.cloud_id.as_str(), found.is_in_the_way()), ("projects/p/global/firewalls/allow-ssh", true));
    }

    #[test]
    fn nats_and_ranges_are_read_as_they_are_written() {
        let wanted = json!({ "name": NAT, "subnetwork": "projects/p/regions/r/subnetworks/s", "log": "ERRORS_ONLY" });
        assert_eq!(nat(&json!({ "nats": nats(&wanted) })), wanted);
        let wanted = json!({ "pods": "10.0.128.0/17", "services": "10.0.16.0/20" });
        assert_eq!(ranges(&json!({ "secondaryIpRanges": secondary(&wanted) })), wanted);
    }
}
