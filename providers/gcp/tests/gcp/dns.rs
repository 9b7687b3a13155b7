//! DNS records.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_provider::cluster::{ClusterAccess, ClusterIngress};
use textnlp_provider::component::Endpoint;
use textnlp_provider::conformance::lowers_purely;
use textnlp_provider::{CloudId, Effect, ErrorKind, Observed, OutputRef, Provider, Verb, Wanted, error_chain};
use textnlp_sim::gcp::Options;
use textnlp_sim::{Disruption, Fault, Rule};

use crate::records::{bed, ends, gateway, is_refused, said, shared, site, with};
use crate::{Bench, ZONE, endpoint, record as recorded, run};

const NAME: &str = "text.example.com";
const CHANGE: &str = "dns.changes.create";

fn bench() -> Bench {
    Bench::new(Options::zero_latency().enabled(), false)
}

/// The id of the zone.
fn zone(bench: &Bench) -> String {
    format!("projects/{}/managedZones/{ZONE}", bench.cloud.project())
}

fn record(bench: &Bench, values: &[&str]) -> Wanted {
    let spec = json!({ "zone": zone(bench), "name": NAME, "type": "A", "ttl": 60, "values": values, "tags": {} });
    bench.wanted("main/gateway/record", "gcp.dns-record", &spec)
}

/// The records of the zone but those of its own name.
fn records(bench: &Bench) -> BTreeMap<String, Value> {
    let world = bench.cloud.world();
    let below = format!("dns/{}/rrsets/", zone(bench));
    let all = world.keys().into_iter().filter_map(|key| {
        let name = key.strip_prefix(&below)?.to_owned();
        let is_own = name.ends_with("/NS") || name.ends_with("/SOA");
        (!is_own).then(|| (name, world.get(&key).cloned().unwrap_or_default()))
    });
    all.collect()
}

/// Puts a record into the zone, as another client does.
fn place(bench: &Bench, name: &str, kind: &str, value: &str) {
    let key = format!("dns/{}/rrsets/{name}./{kind}", zone(bench));
    let body = json!({
        "kind": "dns#resourceRecordSet", "name": format!("{name}."), "type": kind, "ttl": 60, "rrdatas": [value],
    });
    bench.cloud.world().put(&key, body);
}

/// How many changes reached the service.
fn changes(bench: &Bench) -> usize {
    bench.cloud.requests().iter().filter(|one| one.operation == CHANGE).count()
}

fn refuse_once(bench: &Bench, status: u16, reason: &str, message: &str) {
    let fault = Fault::new(reason, message).status(status);
    bench.cloud.faults().add(Rule::nth("dns", CHANGE, 1, Disruption::Refused(fault)));
}

#[test]
fn a_dns_record_lives() {
    run(async {
        let bench = bench();
        let before = record(&bench, &["192.0.2.1", "192.0.2.2"]);
        let after = with(&record(&bench, &["192.0.2.3"]), "ttl", json!(30));
        bed(&bench).whole_life(&before, Some(&after.spec)).await.unwrap_or_else(|violation| panic!("{violation}"));
        assert_eq!(records(&bench), BTreeMap::new(), "the record that says whose it was is gone too");
        let tenants = with(&before, "name", json!("*.text.example.com"));
        bed(&bench).whole_life(&tenants, None).await.unwrap_or_else(|violation| panic!("{violation}"));
        assert_eq!(records(&bench), BTreeMap::new());
    });
}

#[test]
fn a_record_of_another_client_is_never_overwritten() {
    for (kind, value) in [("A", "198.51.100.7"), ("CNAME", "other.example.net.")] {
        run(async {
            let bench = bench();
            place(&bench, NAME, kind, value);
            let before = records(&bench);
            let wanted = record(&bench, &["192.0.2.1"]);
            is_refused(&bench, &wanted).await;
            assert_eq!((records(&bench), changes(&bench)), (before, 0));
        });
    }
}

#[test]
fn a_record_that_appears_at_the_last_moment_is_never_overwritten() {
    run(async {
        for (status, reason) in [(409, "alreadyExists"), (400, "cnameResourceRecordSetConflict")] {
            let bench = bench();
            refuse_once(&bench, status, reason, "The resource 'entity.change.additions[0]' already exists");
            let wanted = record(&bench, &["192.0.2.1"]);
            let create = bench.operation(1, Verb::Create, &wanted, &wanted.spec, None);
            let error = ends(&bench, &create).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Exists, "{}", error_chain(&error));
            assert!(error.hint.is_some());
        }
    });
}

#[test]
fn a_changed_record_is_drift_and_is_put_right() {
    run(async {
        let bench = bench();
        let wanted = record(&bench, &["192.0.2.1"]);
        let create = bench.operation(1, Verb::Create, &wanted, &wanted.spec, None);
        let made = recorded(&wanted, &wanted.spec, &bench.finish(&create).await);
        let owner = records(&bench).remove("_textnlp-a.text.example.com./TXT").unwrap();
        assert!(owner["rrdatas"][0].as_str().unwrap().contains("resource=main/gateway/record"));
        place(&bench, NAME, "A", "198.51.100.7");
        let Observed::Present(seen) = bench.provider.read(&wanted.kind, &made.cloud_id).await.unwrap() else {
            panic!("it is gone")
        };
        let found = bench.provider.diff(&wanted, &made, &seen);
        let [change] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((change.field.as_str(), &change.effect), ("values", &Effect::InPlace));
        // Another client changes it while the change is sent: it is read again.
        refuse_once(&bench, 412, "conditionNotMet", "Precondition not met for 'entity.change.deletions[0]'");
        let update = bench.operation(2, Verb::Update, &wanted, &wanted.spec, Some(&made));
        bench.finish(&update).await;
        assert_eq!(records(&bench)["text.example.com./A"]["rrdatas"], json!(["192.0.2.1"]));
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
        let owner = "_textnlp-a.text.example.com";
        for (number, text) in [
            (
                2,
                "\"heritage=textnlp-deploy,lineage=11111111-0000-4000-8000-000000007e57,environment=other,resource=there/gateway/record\"",
            ),
            (3, "\"of another program\""),
        ] {
            place(&bench, owner, "TXT", text);
            let delete = bench.operation(number, Verb::Delete, &wanted, &wanted.spec, Some(&made));
            let error = ends(&bench, &delete).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Denied, "{}", error_chain(&error));
        }
        assert_eq!(records(&bench).len(), 2);
    });
}

#[test]
fn a_lost_reply_creates_no_second_dns_record() {
    run(async {
        let bench = bench();
        bench.cloud.faults().add(Rule::nth("dns", CHANGE, 1, Disruption::LostReply));
        let wanted = record(&bench, &["192.0.2.1"]);
        let create = bench.operation(1, Verb::Create, &wanted, &wanted.spec, None);
        bench.finish(&create).await;
        assert_eq!((changes(&bench), records(&bench).len()), (1, 2));
    });
}

/// With the id as Terraform writes it.
#[test]
fn a_record_is_found_by_its_id() {
    run(async {
        let bench = bench();
        place(&bench, NAME, "A", "192.0.2.1");
        let wanted = record(&bench, &["192.0.2.1"]);
        let id = CloudId::new(format!("{}/rrsets/{NAME}./A", zone(&bench))).unwrap();
        let Observed::Present(seen) = bench.provider.read(&wanted.kind, &id).await.unwrap() else {
            panic!("it is not found")
        };
        assert_eq!((seen.spec, seen.lineage), (wanted.spec, None));
        assert_eq!(seen.cloud_id.as_str(), format!("{}/rrsets/{NAME}/A", zone(&bench)));
    });
}

#[test]
fn zones_are_checked_before_anything_is_created() {
    run(async {
        let bench = bench();
        bench.cloud.world().put_zone(bench.cloud.project(), "inner", "example.com.", true);
        let wanted = record(&bench, &["192.0.2.1"]);
        let of = |name: &str| json!(format!("projects/{}/managedZones/{name}", bench.cloud.project()));
        let none = said(&bench, &with(&wanted, "zone", of("none"))).await;
        assert!(none.contains("there is no such zone in the project"), "{none}");
        for outside in ["text.example.org", "notexample.com"] {
            let found = said(&bench, &with(&wanted, "name", json!(outside))).await;
            assert!(found.contains(&format!("`{outside}` is not in the zone `example.com`")), "{found}");
        }
        let inner = said(&bench, &with(&wanted, "zone", of("inner"))).await;
        assert!(inner.contains("it answers inside of its networks only"), "{inner}");
        let well = said(&bench, &wanted).await;
        assert!(!well.contains("zone"), "{well}");
    });
}

#[test]
fn a_project_without_cloud_dns_is_not_a_missing_zone() {
    run(async {
        let bench = bench();
        let wanted = record(&bench, &["192.0.2.1"]);
        let own = bench.cloud.project().to_owned();
        bench.cloud.world().add_project("shared", "222222222222", &[]);
        bench.cloud.world().put_zone("shared", ZONE, "example.com.", false);
        bench.cloud.world().projects.get_mut(&own).unwrap().services.remove("dns.googleapis.com");
        for project in [own.as_str(), "shared"] {
            let zone = json!(format!("projects/{project}/managedZones/{ZONE}"));
            let found = said(&bench, &with(&wanted, "zone", zone.clone())).await;
            assert!(found.contains(&format!("dns.googleapis.com is not enabled in project {project}")), "{found}");
            let command = format!("`gcloud services enable dns.googleapis.com --project {project}`");
            assert!(found.contains(&command) && !found.contains("no such zone"), "{found}");
            bench.cloud.world().enable(project, "dns.googleapis.com");
            let found = said(&bench, &with(&wanted, "zone", zone)).await;
            assert!(!found.contains("zone"), "{found}");
        }
    });
}

#[test]
fn the_name_of_the_service_becomes_a_record_of_the_existing_zone() {
    let bench = bench();
    let there = site(&bench, ClusterAccess::default());
    let of = |zone: Option<&str>| {
        let endpoint = endpoint(zone, "Text.Example.com.");
        gateway(Endpoint { base_domain: Some("example.com".to_owned()), ..endpoint })
    };
    let made = lowers_purely(&bench.provider, &of(Some(ZONE)), &there).unwrap();
    let [record, tenants] = made.as_slice() else { panic!("{made:?}") };
    let address = json!(OutputRef::new("main/gateway/service".parse().unwrap(), "address"));
    let spec = json!({ "zone": zone(&bench), "name": NAME, "type": "A", "ttl": 60, "values": [address], "tags": {} });
    assert_eq!((record.id.as_str(), record.spec.as_value()), ("main/gateway/record", &spec));
    assert!(record.needs.iter().any(|need| need.on.as_str() == "main/gateway/service"), "{:?}", record.needs);
    assert_eq!(tenants.spec.get("name"), Some(&json!("*.example.com")));
    assert!(lowers_purely(&bench.provider, &of(None), &there).unwrap().is_empty());
    let ingress = ClusterAccess { ingress: Some(ClusterIngress::default()), ..ClusterAccess::default() };
    for (component, site, says) in [
        (of(Some("Z0123456789ABCDEFGHIJ")), &there, "is not the name of a zone of Cloud DNS"),
        (of(Some(ZONE)), &site(&bench, ingress), "creates no load balancer"),
        (shared(ZONE, false), &there, "records of several sites are created in Route 53 only"),
    ] {
        let problems = bench.provider.lower(&component, site).unwrap_err().to_string();
        assert!(problems.contains(says), "{problems}");
    }
    // The zone is at AWS, which creates the record.
    assert!(lowers_purely(&bench.provider, &shared("Z0123456789ABCDEFGHIJ", true), &there).unwrap().is_empty());
}
