//! Several sites behind one name: Traffic Manager.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use textnlp_azure::{Access, Azure, Records};
use textnlp_provider::cluster::ClusterAccess;
use textnlp_provider::component::{ComponentSpec, Endpoint, TrafficShare};
use textnlp_provider::conformance::lowers_purely;
use textnlp_provider::settings::Role;
use textnlp_provider::{
    Component, Effect, ErrorKind, Lineage, Observed, Operation, OutputRef, Provider, Recorded, Site, Verb, Wanted,
    error_chain,
};
use textnlp_sim::azure::Options;
use textnlp_sim::{Disruption, Rule};

use crate::records::{bed, ends, gateway, observed, shared, site, with};
use crate::{Bench, LINEAGE, REGION, Secrets, endpoint, record as recorded, run};

const SERVICE: &str = "Microsoft.Network";

fn bench() -> Bench {
    Bench::new(Options::zero_latency().registered(), false)
}

/// The name of the profile, another one in each simulator: this process remembers which profiles it made.
fn name(bench: &Bench) -> String {
    format!("textnlp-staging-{}", bench.cloud.url().rsplit(':').next().unwrap_or_default())
}

fn profile(bench: &Bench) -> String {
    let group = format!("/subscriptions/{}/resourceGroups/dns", bench.cloud.subscription());
    format!("{group}/providers/Microsoft.Network/trafficManagerProfiles/{}", name(bench))
}

/// A site in the profile.
fn traffic(bench: &Bench, site: &str, priority: u32, address: &str) -> Wanted {
    let probe = json!({ "protocol": "HTTPS", "port": 8443, "path": "/health", "interval": 10, "timeout": 5,
        "tolerated": 2, "host": "text.example.com" });
    let spec = json!({
        "profile": profile(bench), "name": site, "value": address, "weight": 100, "priority": priority,
        "status": "Enabled", "method": "Weighted", "dns": name(bench), "ttl": 60, "probe": probe, "tags": {},
    });
    let wanted = bench.wanted(&format!("{site}/gateway/traffic"), "azure.traffic-site", &spec);
    Wanted { site: site.parse().unwrap(), ..wanted }
}

/// What is in the zone's group besides the zone, by the end of its id.
fn objects(bench: &Bench) -> BTreeMap<String, Value> {
    let world = bench.cloud.world();
    let of = |id: String| {
        let at = id.find("/trafficManagerProfiles/")?;
        Some((id[at + "/trafficManagerProfiles/".len()..].to_owned(), world.get(&id).unwrap_or_default()))
    };
    world.ids().into_iter().filter_map(of).collect()
}

/// An operation on a site of its own.
fn operation(bench: &Bench, number: u64, verb: Verb, wanted: &Wanted, recorded: Option<&Recorded>) -> Operation {
    Operation { site: wanted.site.clone(), ..bench.operation(number, verb, wanted, &wanted.spec, recorded) }
}

async fn create(bench: &Bench, number: u64, wanted: &Wanted) -> Recorded {
    let op = operation(bench, number, Verb::Create, wanted, None);
    recorded(wanted, &wanted.spec, &bench.finish(&op).await)
}

#[test]
fn a_site_of_a_profile_lives() {
    run(async {
        let bench = bench();
        let before = traffic(&bench, "main", 7, "192.0.2.1");
        let slower = json!({ "protocol": "HTTP", "port": 8080, "path": "/health", "interval": 30, "timeout": 10,
            "tolerated": 1, "host": "other.example.com" });
        let changes = [
            ("value", json!("192.0.2.9")),
            ("weight", json!(1)),
            ("priority", json!(507)),
            ("method", json!("Priority")),
            ("ttl", json!(30)),
            ("probe", slower),
        ];
        let after = changes.into_iter().fold(before.clone(), |one, (field, value)| with(&one, field, value));
        bed(&bench).whole_life(&before, Some(&after.spec)).await.unwrap_or_else(|violation| panic!("{violation}"));
        assert_eq!(objects(&bench), BTreeMap::new());
        assert_eq!(bench.cloud.take_violations(), Vec::<String>::new());
    });
}

#[test]
fn the_profile_is_that_of_all_sites_and_goes_with_the_last_one() {
    run(async {
        let bench = bench();
        let sites = [traffic(&bench, "main", 7, "192.0.2.1"), traffic(&bench, "other", 9, "192.0.2.2")];
        let made = [create(&bench, 1, &sites[0]).await, create(&bench, 2, &sites[1]).await];
        let names: Vec<String> = objects(&bench).into_keys().collect();
        let profile = name(&bench);
        let of = |site: &str| format!("{profile}/externalEndpoints/{site}");
        assert_eq!(names, [profile.clone(), of("main"), of("other")]);
        // Each is known by its own resource, and is as it was made.
        for (wanted, made) in sites.iter().zip(&made) {
            let Observed::Present(seen) = bench.provider.read(&wanted.kind, &made.cloud_id).await.unwrap() else {
                panic!("it is gone")
            };
            assert_eq!(seen.lineage, Some(Lineage(uuid::Uuid::from_u128(LINEAGE))));
            assert_eq!(bench.provider.diff(wanted, made, &seen), []);
        }
        // Another client weights a site: that is drift of this site alone.
        let id = made[1].cloud_id.as_str();
        bench.cloud.world().change(id, "/properties/weight", json!(3));
        let Observed::Present(seen) = bench.provider.read(&sites[1].kind, &made[1].cloud_id).await.unwrap() else {
            panic!("it is gone")
        };
        let found = bench.provider.diff(&sites[1], &made[1], &seen);
        let [change] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((change.field.as_str(), &change.effect), ("weight", &Effect::InPlace));
        let delete = operation(&bench, 3, Verb::Delete, &sites[0], Some(&made[0]));
        bench.finish(&delete).await;
        assert_eq!(objects(&bench).into_keys().collect::<Vec<_>>(), [profile.clone(), of("other")]);
        assert_eq!(objects(&bench)[&profile]["tags"]["textnlp-site-main"], Value::Null);
        let delete = operation(&bench, 4, Verb::Delete, &sites[1], Some(&made[1]));
        bench.finish(&delete).await;
        assert_eq!(objects(&bench), BTreeMap::new());
        assert_eq!(bench.cloud.take_violations(), Vec::<String>::new());
    });
}

/// The answer of each write is lost once: it is repeated, and makes nothing twice.
#[test]
fn lost_replies_make_no_second_profile() {
    for write in ["trafficManagerProfiles/write", "trafficManagerProfiles/externalEndpoints/write"] {
        run(async {
            let bench = bench();
            let rule = Rule::nth(SERVICE, &format!("Microsoft.Network/{write}"), 1, Disruption::LostReply);
            bench.cloud.faults().add(rule);
            create(&bench, 1, &traffic(&bench, "main", 7, "192.0.2.1")).await;
            create(&bench, 2, &traffic(&bench, "other", 9, "192.0.2.2")).await;
            assert_eq!(objects(&bench).len(), 3, "{write}");
        });
    }
}

#[test]
fn a_profile_of_another_deployment_or_client_is_left_alone() {
    run(async {
        let bench = bench();
        let wanted = traffic(&bench, "main", 7, "192.0.2.1");
        let mut op = operation(&bench, 1, Verb::Create, &wanted, None);
        op.lineage = Lineage(uuid::Uuid::from_u128(LINEAGE + 1));
        bench.finish(&op).await;
        let before = objects(&bench);
        let other = traffic(&bench, "other", 9, "192.0.2.2");
        let create = operation(&bench, 2, Verb::Create, &other, None);
        let error = ends(&bench, &create).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{}", error_chain(&error));
        assert!(error_chain(&error).contains("is not of this deployment"), "{}", error_chain(&error));
        // A plan sees whose the site of the same name is.
        let seen = observed(&bench, &wanted).await;
        let [Observed::Present(seen)] = seen.as_slice() else { panic!("{seen:?}") };
        assert_eq!(seen.lineage, Some(Lineage(uuid::Uuid::from_u128(LINEAGE + 1))));
        assert_eq!(objects(&bench), before);
    });
}

#[test]
fn a_record_becomes_an_alias_of_the_profile_and_one_of_a_site_again() {
    run(async {
        let bench = bench();
        create(&bench, 1, &traffic(&bench, "main", 7, "192.0.2.1")).await;
        let spec = json!({ "zone": bench.zone(), "name": "text", "ttl": 60, "values": ["192.0.2.1"], "tags": {} });
        let single = bench.wanted("main/gateway/record", "azure.dns-record", &spec);
        let shared = with(&single, "values", json!({ "target": profile(&bench) }));
        for (before, after) in [(&single, &shared), (&shared, &single)] {
            bed(&bench).whole_life(before, Some(&after.spec)).await.unwrap_or_else(|violation| panic!("{violation}"));
        }
        assert_eq!(bench.cloud.take_violations(), Vec::<String>::new());
    });
}

fn of_sites(bench: &Bench, role: Role, weights: &[(&str, u32)]) -> (Component, Site) {
    let sites: BTreeMap<_, _> = weights.iter().map(|(name, weight)| (name.parse().unwrap(), *weight)).collect();
    let weight = sites[&bench.site.name];
    let share = TrafficShare { weight, is_at_other_provider: false, host: "one.example.com".to_owned(), sites };
    let part = Endpoint { share: Some(share), ..endpoint(Some(&bench.zone()), "text.example.com") };
    let there = Site { role: Some(role), ..site(bench, ClusterAccess::default()) };
    (gateway(part), there)
}

#[test]
fn each_site_is_in_the_profile_and_the_primary_has_the_names() {
    let bench = bench();
    let lower = |role, weights: &[(&str, u32)]| {
        let (component, there) = of_sites(&bench, role, weights);
        lowers_purely(&bench.provider, &component, &there).unwrap()
    };
    let ids = |made: &[Wanted]| made.iter().map(|one| one.id.to_string()).collect::<Vec<_>>();
    let both = [("main", 100), ("other", 50)];
    let made = lower(Role::Primary, &both);
    assert_eq!(ids(&made), ["main/gateway/traffic", "main/gateway/record", "main/gateway/name"]);
    let of = |one: &Wanted, field: &str| one.spec.get(field).cloned().unwrap_or_default();
    let address = json!(OutputRef::new("main/gateway/service".parse().unwrap(), "address"));
    let profile = of(&made[0], "profile");
    assert_eq!((of(&made[0], "method"), of(&made[0], "weight")), (json!("Weighted"), json!(100)));
    assert_eq!((&of(&made[0], "value"), of(&made[1], "values")), (&address, json!({ "target": profile })));
    assert_eq!((of(&made[2], "name"), of(&made[2], "values")), (json!("one"), json!([address])));
    assert!(made[1].needs.iter().any(|need| need.on.as_str() == "main/gateway/traffic"), "{:?}", made[1].needs);
    let second = lower(Role::Secondary, &both);
    assert_eq!(ids(&second), ["main/gateway/traffic", "main/gateway/name"], "the names are those of the primary");
    assert_eq!(of(&second[0], "profile"), profile);
    // One site has the clients, and the others none while it is healthy.
    let standby = lower(Role::Standby, &[("main", 0), ("other", 100)]);
    assert_eq!((of(&standby[0], "method"), of(&standby[0], "weight")), (json!("Priority"), json!(1)));
    assert_eq!(of(&made[0], "priority"), json!(1), "the primary");
    let rank = of(&second[0], "priority").as_u64().unwrap();
    assert!((2..=1000).contains(&rank) && of(&standby[0], "priority") == json!(rank), "no weight changes it");
    for (weights, says) in [
        (&[("main", 100), ("other", 100), ("third", 0)][..], "2 of 3 sites have clients"),
        (&[("main", 1001), ("other", 1)], "above 1000"),
    ] {
        let (component, there) = of_sites(&bench, Role::Primary, weights);
        let problems = bench.provider.lower(&component, &there).unwrap_err().to_string();
        assert!(problems.contains(says), "{problems}");
    }
}

#[test]
fn a_site_at_another_provider_is_in_the_profile() {
    let bench = bench();
    let access = Access { region: REGION.to_owned(), ..Access::default() };
    let records = Records::new(Azure::new(access, Arc::new(Secrets)));
    let kinds: Vec<&str> = records.kinds().iter().map(|kind| kind.name).collect();
    assert_eq!(kinds, ["azure.dns-record", "azure.traffic-site"]);
    let elsewhere = Site { account: "my-project".to_owned(), ..site(&bench, ClusterAccess::default()) };
    let (component, place) = Records::part(&shared(&bench.zone(), true), &elsewhere).unwrap();
    let made = records.lower(&component, &place).unwrap();
    let ids: Vec<&str> = made.iter().map(|one| one.id.as_str()).collect();
    assert_eq!(ids, ["main/gateway/traffic", "main/gateway/name"]);
    assert!(made.iter().all(|one| one.needs.iter().all(|need| need.on.as_str().contains("/gateway/"))), "{made:?}");
    assert!(matches!(component.part, ComponentSpec::Endpoint(_)));
    assert!(Records::part(&shared(&bench.zone(), false), &elsewhere).is_none(), "its own provider creates them");
}
