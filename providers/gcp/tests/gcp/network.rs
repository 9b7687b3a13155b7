//! A site in a network that was there before.

use std::collections::BTreeSet;

use serde_json::json;
use textnlp_provider::{CloudId, Ownership, Provider, Verb, Wanted};
use textnlp_sim::gcp::Options;

use crate::policy::{limit, printed};
use crate::{Bench, REGION, road, run};

/// The name of the network and of what is in it.
const THEIRS: &str = "company";

/// The keys of the network, its subnetwork, the router, the range of private services and the connection.
fn keys(bench: &Bench) -> [String; 5] {
    let project = format!("compute/projects/{}", bench.cloud.project());
    [
        format!("{project}/global/networks/{THEIRS}"),
        format!("{project}/regions/{REGION}/subnetworks/{THEIRS}"),
        format!("{project}/regions/{REGION}/routers/{THEIRS}"),
        format!("{project}/global/addresses/{THEIRS}"),
        format!("servicenetworking/{project}/global/networks/{THEIRS}"),
    ]
}

/// A site in a network with all that a cluster and a managed database need.
fn bench() -> Bench {
    let mut bench = Bench { gpu: None, network: Some(THEIRS), ..Bench::new(Options::zero_latency().enabled(), false) };
    bench.site.subnets = vec![CloudId::new(THEIRS).unwrap()];
    let keys = keys(&bench);
    let link = |key: &str| format!("https://www.googleapis.com/compute/v1/{}", key.trim_start_matches("compute/"));
    let network = link(&keys[0]);
    let peering = "servicenetworking-googleapis-com";
    let documents = [
        json!({
            "autoCreateSubnetworks": false, "routingConfig": { "routingMode": "REGIONAL" },
            "peerings": [{ "name": peering, "state": "ACTIVE" }],
        }),
        json!({
            "network": network, "ipCidrRange": "10.10.0.0/20", "privateIpGoogleAccess": true,
            "secondaryIpRanges": [
                { "rangeName": "pods", "ipCidrRange": "10.20.0.0/16" },
                { "rangeName": "services", "ipCidrRange": "10.10.16.0/20" },
            ],
        }),
        json!({
            "network": network,
            "nats": [{ "name": "all", "sourceSubnetworkIpRangesToNat": "ALL_SUBNETWORKS_ALL_IP_RANGES" }],
        }),
        json!({
            "network": network, "purpose": "VPC_PEERING", "addressType": "INTERNAL", "status": "RESERVED",
            "address": "10.64.0.0", "prefixLength": 20,
        }),
        json!({
            "network": keys[0].trim_start_matches("compute/"), "peering": peering,
            "service": "services/servicenetworking.googleapis.com", "reservedPeeringRanges": [THEIRS],
        }),
    ];
    let mut world = bench.cloud.world();
    for (key, mut document) in keys.iter().zip(documents) {
        if key.starts_with("compute/") {
            (document["name"], document["selfLink"]) = (THEIRS.into(), link(key).into());
        }
        world.put(key, document);
    }
    drop(world);
    bench
}

#[test]
fn an_existing_network_is_read_and_stays_as_it_is() {
    run(async {
        let bench = bench();
        let now = || keys(&bench).map(|key| bench.cloud.world().get(&key).cloned());
        let before = now();
        assert!(before.iter().all(Option::is_some));
        road(&bench).await;
        assert_eq!(now(), before, "the network is changed");
        let left = bench.cloud.world().keys();
        assert!(left.iter().any(|key| key.contains("/firewalls/k8s-fw-")), "nothing in it is swept");
    });
}

#[test]
fn an_existing_network_must_be_fit_for_the_site() {
    run(async {
        let other = json!("https://www.googleapis.com/compute/v1/projects/p/global/networks/other");
        let pods = json!([{ "rangeName": "pods", "ipCidrRange": "10.20.0.0/16" }]);
        let small = json!([
            { "rangeName": "pods", "ipCidrRange": "10.20.0.0/24" }, { "rangeName": "services", "ipCidrRange": "10.10.16.0/20" },
        ]);
        let cases = [
            (vec![(0, "/peerings", json!([]))], "no private services access", false),
            (vec![(1, "/network", other)], "is in the network `other`, not in `company`", false),
            (vec![(1, "/secondaryIpRanges", pods)], "--add-secondary-ranges services=RANGE", false),
            (vec![(1, "/secondaryIpRanges", small)], "room for the pods of 1 node", false),
            (vec![(1, "/secondaryIpRanges", json!([]))], "--add-secondary-ranges pods=RANGE,services=RANGE", false),
            (vec![(2, "/nats", json!([]))], "images and models from outside of Google", true),
            (
                vec![(2, "/nats", json!([])), (1, "/privateIpGoogleAccess", json!(false))],
                "--enable-private-ip-google-access",
                true,
            ),
        ];
        for (changes, says, is_warning) in cases {
            let bench = bench();
            let keys = keys(&bench);
            for (place, pointer, value) in changes {
                bench.cloud.world().change(&keys[place], pointer, value);
            }
            let problems = bench.provider.preflight(&bench.all()).await.unwrap();
            let found: Vec<_> = problems.iter().filter(|one| one.place.starts_with("main/network/")).collect();
            // The database and the cache are both named.
            let expected = if says == "no private services access" { 2 } else { 1 };
            assert_eq!(found.len(), expected, "{says}: {problems:#?}");
            for one in found {
                assert!(one.to_string().contains(says) && one.warning == is_warning, "{says}: {one:?}");
            }
        }
    });
}

#[test]
fn an_existing_network_needs_no_permission_to_change_it() {
    run(async {
        let bench = bench();
        let all = bench.all();
        let (ours, theirs): (Vec<Wanted>, Vec<Wanted>) =
            all.iter().cloned().partition(|one| one.ownership == Ownership::Ours);
        let mut role: BTreeSet<String> = printed(&bench, &theirs, None);
        for verb in [Verb::Create, Verb::Update, Verb::Delete] {
            role.extend(printed(&bench, &ours, Some(verb)));
        }
        for permission in ["compute.networks.create", "compute.subnetworks.update", "compute.routers.create"] {
            assert!(!role.contains(permission), "{permission}");
        }
        limit(&bench, &role);
        let problems = bench.provider.preflight(&all).await.unwrap();
        let missing: Vec<_> =
            problems.iter().filter(|one| one.place == "permissions" || one.place.starts_with("main/network")).collect();
        assert!(missing.is_empty(), "{missing:#?}");
    });
}
