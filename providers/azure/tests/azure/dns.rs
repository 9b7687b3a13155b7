//! DNS records.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_provider::cluster::{ClusterAccess, ClusterIngress};
use textnlp_provider::component::Endpoint;
use textnlp_provider::conformance::lowers_purely;
use textnlp_provider::{CloudId, Effect, ErrorKind, Observed, OutputRef, Provider, Verb, Wanted, error_chain};
use textnlp_sim::azure::Options;
use textnlp_sim::{Disruption, Fault, Rule};

use crate::records::{bed, ends, gateway, is_refused, said, shared, site, with};
use crate::{Bench, endpoint, record as recorded, run};

const SERVICE: &str = "Microsoft.Network";
const WRITE: &str = "Microsoft.Network/dnsZones/A/write";
const DELETE: &str = "Microsoft.Network/dnsZones/A/delete";

fn bench() -> Bench {
    Bench::new(Options::zero_latency().registered(), false)
}

fn record(bench: &Bench, values: &[&str]) -> Wanted {
    let spec = json!({ "zone": bench.zone(), "name": "text", "ttl": 60, "values": values, "tags": { "team": "text" } });
    bench.wanted("main/gateway/record", "azure.dns-record", &spec)
}

/// The ids of the records of the zone, and what reads answer.
fn records(bench: &Bench) -> BTreeMap<String, Value> {
    let world = bench.cloud.world();
    let below = format!("{}/", bench.zone());
    let ids = world.ids().into_iter().filter(|id| id.starts_with(&below));
    ids.map(|id| (id[below.len()..].to_owned(), world.get(&id).unwrap_or_default())).collect()
}

/// Puts a record into the zone, as another client does.
fn place(bench: &Bench, kind: &str, properties: Value) {
    let id = format!("{}/{kind}/text", bench.zone());
    let body = json!({
        "id": id, "name": "text", "type": format!("Microsoft.Network/dnsZones/{kind}"), "etag": "theirs",
        "properties": properties,
    });
    bench.cloud.world().put(&id, body);
}

/// How many writes of records reached the service.
fn writes(bench: &Bench) -> usize {
    bench.cloud.requests().iter().filter(|one| one.operation == WRITE).count()
}

fn refuse_once(bench: &Bench, operation: &str, status: u16, code: &str) {
    let fault = Fault::new(code, "it was changed since it was read").status(status);
    bench.cloud.faults().add(Rule::nth(SERVICE, operation, 1, Disruption::Refused(fault)));
}

#[test]
fn a_dns_record_lives() {
    run(async {
        let bench = bench();
        let before = record(&bench, &["192.0.2.1", "192.0.2.2"]);
        let after = with(&record(&bench, &["192.0.2.3"]), "ttl", json!(30));
        bed(&bench).whole_life(&before, Some(&after.spec)).await.unwrap_or_else(|violation| panic!("{violation}"));
        for name in ["@", "*"] {
            let other = with(&before, "name", json!(name));
            bed(&bench).whole_life(&other, None).await.unwrap_or_else(|violation| panic!("{violation}"));
        }
        assert_eq!(records(&bench), BTreeMap::new());
        assert_eq!(bench.cloud.take_violations(), Vec::<String>::new());
    });
}

#[test]
fn a_record_of_another_client_is_never_overwritten() {
    for (kind, properties) in [
        ("A", json!({ "TTL": 60, "ARecords": [{ "ipv4Address": "198.51.100.7" }], "provisioningState": "Succeeded" })),
        ("CNAME", json!({ "TTL": 60, "CNAMERecord": { "cname": "a.example.net" }, "provisioningState": "Succeeded" })),
    ] {
        run(async {
            let bench = bench();
            place(&bench, kind, properties.clone());
            let before = records(&bench);
            let wanted = record(&bench, &["192.0.2.1"]);
            is_refused(&bench, &wanted).await;
            assert_eq!((records(&bench), writes(&bench)), (before, 0));
        });
    }
}

/// What the refused write found is gone again: the next one creates the record.
#[test]
fn a_record_that_appears_and_goes_is_waited_for() {
    run(async {
        let bench = bench();
        refuse_once(&bench, WRITE, 412, "PreconditionFailed");
        let wanted = record(&bench, &["192.0.2.1"]);
        let create = bench.operation(1, Verb::Create, &wanted, &wanted.spec, None);
        bench.finish(&create).await;
        assert_eq!((writes(&bench), records(&bench).len()), (2, 1));
    });
}

#[test]
fn a_changed_record_is_drift_and_is_put_right() {
    run(async {
        let bench = bench();
        let wanted = record(&bench, &["192.0.2.1"]);
        let create = bench.operation(1, Verb::Create, &wanted, &wanted.spec, None);
        let made = recorded(&wanted, &wanted.spec, &bench.finish(&create).await);
        assert_eq!(records(&bench)["A/text"]["properties"]["metadata"]["team"], "text");
        let theirs = json!([{ "ipv4Address": "198.51.100.7" }]);
        bench.cloud.world().change(made.cloud_id.as_str(), "/properties/ARecords", theirs);
        let Observed::Present(seen) = bench.provider.read(&wanted.kind, &made.cloud_id).await.unwrap() else {
            panic!("it is gone")
        };
        let found = bench.provider.diff(&wanted, &made, &seen);
        let [change] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((change.field.as_str(), &change.effect), ("values", &Effect::InPlace));
        // Another client changes it while the change is sent: it is read again.
        refuse_once(&bench, WRITE, 412, "PreconditionFailed");
        let update = bench.operation(2, Verb::Update, &wanted, &wanted.spec, Some(&made));
        bench.finish(&update).await;
        assert_eq!(records(&bench)["A/text"]["properties"]["ARecords"], json!([{ "ipv4Address": "192.0.2.1" }]));
        refuse_once(&bench, DELETE, 412, "PreconditionFailed");
        let delete = bench.operation(3, Verb::Delete, &wanted, &wanted.spec, Some(&made));
        bench.finish(&delete).await;
        assert_eq!(records(&bench), BTreeMap::new());
    });
}

#[test]
fn a_record_that_lost_its_owner_is_not_deleted_as_ours() {
    run(async {
        let bench = bench();
        let wanted = record(&bench, &["192.0.2.1"]);
        let create = bench.operation(1, Verb::Create, &wanted, &wanted.spec, None);
        let made = recorded(&wanted, &wanted.spec, &bench.finish(&create).await);
        for (number, metadata) in
            [(2, json!({ "textnlp-lineage": "11111111-0000-4000-8000-000000007e57" })), (3, json!({ "team": "other" }))]
        {
            bench.cloud.world().change(made.cloud_id.as_str(), "/properties/metadata", metadata);
            let delete = bench.operation(number, Verb::Delete, &wanted, &wanted.spec, Some(&made));
            let error = ends(&bench, &delete).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Denied, "{}", error_chain(&error));
        }
        assert_eq!(records(&bench).len(), 1);
    });
}

#[test]
fn a_lost_reply_creates_no_second_dns_record() {
    run(async {
        let bench = bench();
        bench.cloud.faults().add(Rule::nth(SERVICE, WRITE, 1, Disruption::LostReply));
        let wanted = record(&bench, &["192.0.2.1"]);
        let create = bench.operation(1, Verb::Create, &wanted, &wanted.spec, None);
        bench.finish(&create).await;
        assert_eq!((writes(&bench), records(&bench).len()), (1, 1));
    });
}

#[test]
fn a_record_is_found_by_its_id() {
    run(async {
        let bench = bench();
        place(&bench, "A", json!({ "TTL": 60, "ARecords": [{ "ipv4Address": "192.0.2.1" }] }));
        let wanted = with(&record(&bench, &["192.0.2.1"]), "tags", json!({}));
        let id = CloudId::new(format!("{}/A/text", bench.zone())).unwrap();
        let Observed::Present(seen) = bench.provider.read(&wanted.kind, &id).await.unwrap() else {
            panic!("it is not found")
        };
        assert_eq!((seen.spec, seen.lineage), (wanted.spec, None));
    });
}

#[test]
fn zones_are_checked_before_anything_is_created() {
    run(async {
        let bench = bench();
        let inner = bench.cloud.world().put_zone("inner", "example.com", true);
        let wanted = record(&bench, &["192.0.2.1"]);
        let none = said(&bench, &with(&wanted, "zone", json!(bench.zone().replace("example", "none")))).await;
        assert!(none.contains("there is no such zone"), "{none}");
        let inner = said(&bench, &with(&wanted, "zone", json!(inner))).await;
        assert!(inner.contains("it answers inside of its networks only"), "{inner}");
        let well = said(&bench, &wanted).await;
        assert!(!well.contains("zone"), "{well}");
    });
}

#[test]
fn the_name_of_the_service_becomes_a_record_of_the_existing_zone() {
    let bench = bench();
    let there = site(&bench, ClusterAccess::default());
    let of = |zone: Option<&str>, domain: &str, base: &str| {
        gateway(Endpoint { base_domain: Some(base.to_owned()), ..endpoint(zone, domain) })
    };
    let zone = bench.zone();
    // Azure writes ids in any case.
    let upper = zone.replace("resourceGroups/dns", "resourcegroups/DNS");
    let made =
        lowers_purely(&bench.provider, &of(Some(upper.as_str()), "Text.Example.com.", "example.com"), &there).unwrap();
    let [record, tenants] = made.as_slice() else { panic!("{made:?}") };
    let address = json!(OutputRef::new("main/gateway/service".parse().unwrap(), "address"));
    let spec = json!({ "zone": zone, "name": "text", "ttl": 60, "values": [address], "tags": { "team": "text" } });
    assert_eq!((record.id.as_str(), record.spec.as_value()), ("main/gateway/record", &spec));
    assert!(record.needs.iter().any(|need| need.on.as_str() == "main/gateway/service"), "{:?}", record.needs);
    assert_eq!(tenants.spec.get("name"), Some(&json!("*")));
    let own = lowers_purely(&bench.provider, &of(Some(zone.as_str()), "example.com", "a.example.com"), &there).unwrap();
    let names: Vec<_> = own.iter().map(|one| one.spec.get("name").cloned().unwrap_or_default()).collect();
    assert_eq!(names, [json!("@"), json!("*.a")]);
    assert!(lowers_purely(&bench.provider, &of(None, "text.example.com", "x.org"), &there).unwrap().is_empty());
    let ingress = ClusterAccess { ingress: Some(ClusterIngress::default()), ..ClusterAccess::default() };
    for (component, site, says) in [
        (of(Some("example.com"), "text.example.com", "example.com"), &there, "is not the id of a public DNS zone"),
        (of(Some(zone.as_str()), "text.example.com", "x.org"), &there, "`*.x.org` is not in the zone `example.com`"),
        (
            of(Some(zone.as_str()), "text.example.com", "example.com"),
            &site(&bench, ingress),
            "creates no load balancer",
        ),
    ] {
        let problems = bench.provider.lower(&component, site).unwrap_err().to_string();
        assert!(problems.contains(says), "{problems}");
    }
    // The zone is at AWS, which creates the record.
    assert!(lowers_purely(&bench.provider, &shared("Z0123456789ABCDEFGHIJ", true), &there).unwrap().is_empty());
}
