//! A site in a network that was there before.

use std::collections::BTreeSet;

use serde_json::json;
use textnlp_provider::{CloudId, Ownership, Provider, Verb, Wanted};
use textnlp_sim::azure::Options;

use crate::policy::printed;
use crate::{Bench, run, whole_life};

const DATABASES: &str = "Microsoft.DBforPostgreSQL/flexibleServers";

/// The ids of the network, the subnets of the nodes and the database, one without a NAT gateway, the gateway and its address.
fn ids(bench: &Bench) -> [String; 6] {
    let group =
        format!("/subscriptions/{}/resourceGroups/shared/providers/Microsoft.Network", bench.cloud.subscription());
    let network = format!("{group}/virtualNetworks/company");
    [
        network.clone(),
        format!("{network}/subnets/aks"),
        format!("{network}/subnets/postgres"),
        format!("{network}/subnets/bare"),
        format!("{group}/natGateways/company"),
        format!("{group}/publicIPAddresses/company"),
    ]
}

/// A site in a network of another group, with these subnets of it. `range` is that of the network.
async fn bench(subnets: &[&str], range: &str) -> Bench {
    let mut bench = Bench { gpu: None, ..Bench::new(Options::zero_latency().registered(), false) };
    let subscription = bench.cloud.subscription().to_owned();
    let group = format!("/subscriptions/{subscription}/resourceGroups/shared");
    let [network, _, _, _, nat, address] = ids(&bench);
    let start = range.split_once(".0.0/").unwrap().0;
    let subnet = |name: &str, cidr: &str, nat: Option<&str>, delegation: Option<&str>| {
        let cidr = format!("{start}.{cidr}");
        (
            "azure.subnet",
            json!({ "network": network, "name": name, "cidr": cidr, "nat": nat, "delegation": delegation }),
        )
    };
    let made = [
        ("azure.group", json!({ "subscription": subscription, "name": "shared" })),
        ("azure.network", json!({ "group": group, "name": "company", "cidr": range })),
        ("azure.address", json!({ "group": group, "name": "company" })),
        ("azure.nat", json!({ "group": group, "name": "company", "address": address })),
        subnet("aks", "0.0/20", Some(nat.as_str()), None),
        subnet("postgres", "16.0/24", None, Some(DATABASES)),
        subnet("bare", "17.0/24", None, None),
    ];
    bench.made_by_others(made).await;
    let address = bench.cloud.world().get(&address).unwrap()["properties"]["ipAddress"].clone();
    bench.network = Some((CloudId::new(&network).unwrap(), address.as_str().unwrap().to_owned()));
    bench.site.subnets = subnets.iter().map(|name| CloudId::new(*name).unwrap()).collect();
    bench
}

#[test]
fn an_existing_network_is_read_and_stays_as_it_is() {
    run(async {
        let bench = bench(&["aks", "postgres"], "10.20.0.0/16").await;
        let (cloud, ids) = (bench.cloud.clone(), ids(&bench));
        let now = || ids.clone().map(|id| cloud.world().get(&id).unwrap());
        let before = now();
        whole_life(bench, "1").await;
        assert_eq!(now(), before, "the network is changed");
    });
}

#[test]
fn an_existing_network_must_be_fit_for_the_site() {
    run(async {
        for (subnets, range, is_allowed, says) in [
            (["aks", "postgres"], "10.20.0.0/16", true, None),
            (["aks", "bare"], "10.20.0.0/16", true, Some("--delegations Microsoft.DBforPostgreSQL/flexibleServers")),
            (["bare", "postgres"], "10.20.0.0/16", true, Some("`bare` has no NAT gateway")),
            (["aks", "postgres"], "100.65.0.0/16", true, Some("the services of the cluster have addresses of")),
            (["aks", "postgres"], "10.20.0.0/16", false, Some("which `cluster.allow_from` does not allow")),
        ] {
            let mut bench = bench(&subnets, range).await;
            if let Some((_, address)) = bench.network.as_mut().filter(|_| !is_allowed) {
                "192.0.2.1".clone_into(address);
            }
            let problems = bench.provider.preflight(&bench.all()).await.unwrap();
            let found: Vec<String> =
                problems.iter().filter(|one| one.place.starts_with("main/network/")).map(ToString::to_string).collect();
            let expected = usize::from(says.is_some());
            assert!(found.len() == expected && found.iter().all(|one| one.contains(says.unwrap())), "{found:#?}");
        }
    });
}

#[test]
fn an_existing_network_is_checked_for_what_its_operators_set() {
    run(async {
        let group = format!("/subscriptions/{}/resourceGroups/shared", Options::default().subscription);
        let other = |kind: &str| format!("{group}/providers/Microsoft.Network/{kind}/hub");
        let peering =
            json!({ "name": "hub", "properties": { "remoteAddressSpace": { "addressPrefixes": ["100.64.0.0/17"] } } });
        for (place, pointer, value, says, is_warning) in [
            (0, "/properties/virtualNetworkPeerings", json!([peering]), "has 100.64.0.0/17, and the pods", true),
            (0, "/properties/dhcpOptions", json!({ "dnsServers": ["10.0.0.4"] }), "the DNS servers 10.0.0.4", true),
            (
                1,
                "/properties/networkSecurityGroup",
                json!({ "id": other("networkSecurityGroups") }),
                "group `hub`",
                true,
            ),
            (1, "/properties/routeTable", json!({ "id": other("routeTables") }), "to VirtualAppliance", false),
            (1, "/properties/addressPrefix", json!("10.20.0.0/29"), "has 8 addresses, and needs", false),
        ] {
            let bench = bench(&["aks", "postgres"], "10.20.0.0/16").await;
            let route = json!({ "addressPrefix": "0.0.0.0/0", "nextHopType": "VirtualAppliance", "nextHopIpAddress": "10.0.0.4" });
            let table = json!({
                "id": other("routeTables"), "name": "hub", "type": "Microsoft.Network/routeTables", "location": "westeurope",
                "properties": { "provisioningState": "Succeeded", "routes": [{ "name": "out", "properties": route }] },
            });
            bench.cloud.world().put(&other("routeTables"), table);
            bench.cloud.world().change(&ids(&bench)[place], pointer, value);
            let problems = bench.provider.preflight(&bench.all()).await.unwrap();
            let found: Vec<_> = problems.iter().filter(|one| one.place.starts_with("main/network/")).collect();
            let [one] = found.as_slice() else { panic!("{says}: {problems:#?}") };
            assert!(one.to_string().contains(says) && one.warning == is_warning, "{says}: {one:?}");
        }
    });
}

#[test]
fn an_existing_network_needs_no_action_that_changes_it() {
    run(async {
        let bench = bench(&["aks", "postgres"], "10.20.0.0/16").await;
        let (ours, theirs): (Vec<Wanted>, Vec<Wanted>) =
            bench.all().into_iter().partition(|one| one.ownership == Ownership::Ours);
        let mut role: BTreeSet<String> = printed(&bench, &theirs, None);
        for verb in [Verb::Create, Verb::Update, Verb::Delete] {
            role.extend(printed(&bench, &ours, Some(verb)));
        }
        let network: Vec<&String> = role.iter().filter(|one| one.starts_with("Microsoft.Network/")).collect();
        for part in ["virtualNetworks/write", "virtualNetworks/subnets/write", "natGateways/write"] {
            assert!(!network.iter().any(|one| one.ends_with(part)), "{part}: {network:#?}");
        }
        for part in ["virtualNetworks/subnets/join/action", "virtualNetworks/join/action", "natGateways/read"] {
            assert!(network.iter().any(|one| one.ends_with(part)), "{part}: {network:#?}");
        }
    });
}
