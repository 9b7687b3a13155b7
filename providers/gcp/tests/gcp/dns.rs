//! DNS records.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use textnlp_gcp::{Access, Gcp, Records};
use textnlp_provider::cluster::{ClusterAccess, ClusterIngress};
use textnlp_provider::component::Endpoint;
use textnlp_provider::conformance::lowers_purely;
use textnlp_provider::resource::Object;
use textnlp_provider::{
    CloudId, Effect, ErrorKind, Health, Observed, Operation, OutputRef, Progress, Provider, Recorded, Spec, Verb,
    Wanted, error_chain,
};
use textnlp_sim::gcp::Options;
use textnlp_sim::{Disruption, Fault, Rule};

use crate::policy::{limit, printed};
use crate::records::{bed, ends, gateway, is_refused, observed, said, shared, site, with};
use crate::{Bench, REGION, Secrets, ZONE, endpoint, record as recorded, run};

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
    let spec = json!({
        "zone": zone(bench), "name": NAME, "type": "A", "ttl": 60, "values": values, "site": null, "weight": null,
        "health_check": null, "tags": {},
    });
    bench.wanted("main/gateway/record", "gcp.dns-record", &spec)
}

/// The resource of a site.
fn of_site(bench: &Bench, site: &str, part: &str, kind: &str, spec: &Value) -> Wanted {
    let wanted = bench.wanted(&format!("{site}/gateway/{part}"), kind, spec);
    Wanted { site: site.parse().unwrap(), ..wanted }
}

/// The item of a site in the weighted record set.
fn item(bench: &Bench, site: &str, weight: u32, address: &str) -> Wanted {
    let check = format!("projects/{}/global/healthChecks/textnlp-staging-{site}-health", bench.cloud.project());
    let spec = json!({
        "zone": zone(bench), "name": NAME, "type": "A", "ttl": 60, "values": [address], "site": site, "weight": weight,
        "health_check": check, "tags": {},
    });
    of_site(bench, site, "record", "gcp.dns-record", &spec)
}

fn health_check(bench: &Bench, site: &str) -> Wanted {
    let spec = json!({
        "project": bench.cloud.project(), "name": format!("textnlp-staging-{site}-health"), "host": NAME, "port": 8443,
        "path": "/health", "interval": 30, "timeout": 5, "failures": 2, "successes": 2,
        "regions": ["us-central1", "us-east1", "us-west1"], "tags": {},
    });
    of_site(bench, site, "health", "gcp.health-check", &spec)
}

fn operation(bench: &Bench, number: u64, verb: Verb, wanted: &Wanted, recorded: Option<&Recorded>) -> Operation {
    Operation { site: wanted.site.clone(), ..bench.operation(number, verb, wanted, &wanted.spec, recorded) }
}

async fn create(bench: &Bench, number: u64, wanted: &Wanted) -> Recorded {
    let made = bench.finish(&operation(bench, number, Verb::Create, wanted, None)).await;
    recorded(wanted, &wanted.spec, &made)
}

/// A project with the health checks of two sites.
async fn with_checks() -> Bench {
    let bench = bench();
    for (number, site) in [(101, "main"), (102, "other")] {
        create(&bench, number, &health_check(&bench, site)).await;
    }
    bench
}

/// The weights of the items, by their addresses.
fn items(bench: &Bench) -> BTreeMap<String, String> {
    let set = records(bench).remove("text.example.com./A").unwrap_or_default();
    let items = set["routingPolicy"]["wrr"]["items"].as_array().cloned().unwrap_or_default();
    let pair = |item: &Value| {
        let address = item["healthCheckedTargets"]["externalEndpoints"][0].as_str().unwrap().to_owned();
        (address, item["weight"].to_string())
    };
    items.iter().map(pair).collect()
}

fn expected(items: &[(&str, &str)]) -> BTreeMap<String, String> {
    items.iter().map(|(address, weight)| ((*address).to_owned(), (*weight).to_owned())).collect()
}

/// The texts of the record that says whose items these are.
fn texts(bench: &Bench) -> Vec<String> {
    let owner = records(bench).remove("_textnlp-a.text.example.com./TXT").unwrap_or_default();
    owner["rrdatas"].as_array().into_iter().flatten().map(|text| text.as_str().unwrap().to_owned()).collect()
}

async fn present(bench: &Bench, made: &Recorded) -> Object {
    match bench.provider.read(&made.kind, &made.cloud_id).await.unwrap() {
        Observed::Present(seen) => seen,
        other => panic!("{other:?}"),
    }
}

/// Puts a record set into the zone, as another client does.
fn place_set(bench: &Bench, policy: &Value) {
    let key = format!("dns/{}/rrsets/{NAME}./A", zone(bench));
    let name = format!("{NAME}.");
    let set = json!({ "kind": "dns#resourceRecordSet", "name": name, "type": "A", "ttl": 60, "rrdatas": [], "routingPolicy": policy });
    bench.cloud.world().put(&key, set);
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
    let [first, tenants] = made.as_slice() else { panic!("{made:?}") };
    let address = json!(OutputRef::new("main/gateway/service".parse().unwrap(), "address"));
    let spec = with(&record(&bench, &[]), "values", json!([address])).spec;
    assert_eq!((first.id.as_str(), &first.spec), ("main/gateway/record", &spec));
    assert!(first.needs.iter().any(|need| need.on.as_str() == "main/gateway/service"), "{:?}", first.needs);
    assert_eq!(tenants.spec.get("name"), Some(&json!("*.example.com")));
    assert!(lowers_purely(&bench.provider, &of(None), &there).unwrap().is_empty());
    let ingress = ClusterAccess { ingress: Some(ClusterIngress::default()), ..ClusterAccess::default() };
    for (component, site, says) in [
        (of(Some("Z0123456789ABCDEFGHIJ")), &there, "is not the name of a zone of Cloud DNS"),
        (of(Some(ZONE)), &site(&bench, ingress), "creates no load balancer"),
    ] {
        let problems = bench.provider.lower(&component, site).unwrap_err().to_string();
        assert!(problems.contains(says), "{problems}");
    }
    // The zone is at AWS, which creates the record.
    assert!(lowers_purely(&bench.provider, &shared("Z0123456789ABCDEFGHIJ", true), &there).unwrap().is_empty());
}

#[test]
fn each_of_several_sites_has_an_item_and_a_health_check() {
    let bench = bench();
    let there = site(&bench, ClusterAccess::default());
    let ids = |made: &[Wanted]| -> Vec<String> { made.iter().map(|one| one.id.to_string()).collect() };
    let made = lowers_purely(&bench.provider, &shared(ZONE, false), &there).unwrap();
    assert_eq!(ids(&made), ["main/gateway/health", "main/gateway/record", "main/gateway/name"]);
    assert_eq!(made[0].spec, health_check(&bench, "main").spec);
    let address = json!(OutputRef::new("main/gateway/service".parse().unwrap(), "address"));
    let check = json!(OutputRef::new("main/gateway/health".parse().unwrap(), "id"));
    let wanted = with(&with(&item(&bench, "main", 50, ""), "values", json!([address])), "health_check", check);
    assert_eq!(made[1].spec, wanted.spec);
    let own = made[2].spec.as_value();
    assert_eq!(
        (&own["name"], &own["site"], &own["health_check"]),
        (&json!("one.example.com"), &Value::Null, &Value::Null)
    );
    assert!(made[1].needs.iter().any(|need| need.on.as_str() == "main/network/services"));

    // A site at another provider, whose account is no project.
    let access = Access { region: REGION.to_owned(), ..Access::default() };
    let records = Records::new(Gcp::new(access, Arc::new(Secrets)));
    let kinds: Vec<&str> = records.kinds().iter().map(|kind| kind.name).collect();
    assert_eq!(kinds, ["gcp.health-check", "gcp.dns-record"]);
    let elsewhere =
        textnlp_provider::Site { account: "00000000-0000-0000-0000-000000000001".to_owned(), ..there.clone() };
    let part = |zone: &str| Records::part(&shared(zone, true), &elsewhere).unwrap();
    let (component, place) = part(&zone(&bench));
    let other = records.lower(&component, &place).unwrap();
    let specs = |made: &[Wanted]| -> Vec<Spec> { made.iter().map(|one| one.spec.clone()).collect() };
    assert_eq!((ids(&other), specs(&other)), (ids(&made), specs(&made)));
    assert!(other.iter().all(|one| one.needs.iter().all(|need| need.on.as_str().contains("/gateway/"))), "{other:?}");
    let (component, place) = part(ZONE);
    let problems = records.lower(&component, &place).unwrap_err().to_string();
    assert!(problems.contains("`company` names no project"), "{problems}");
    assert!(Records::part(&shared(ZONE, false), &there).is_none(), "its own provider creates them");
}

#[test]
fn a_health_check_lives() {
    run(async {
        let bench = bench();
        let before = health_check(&bench, "main");
        let after =
            with(&with(&before, "port", json!(9443)), "regions", json!(["us-east1", "us-east4", "europe-west1"]));
        bed(&bench).whole_life(&before, Some(&after.spec)).await.unwrap_or_else(|violation| panic!("{violation}"));
    });
}

#[test]
fn the_item_of_a_site_lives() {
    run(async {
        let bench = with_checks().await;
        let before = item(&bench, "main", 100, "192.0.2.1");
        let after = with(&with(&before, "values", json!(["192.0.2.3"])), "weight", json!(0));
        bed(&bench).whole_life(&before, Some(&after.spec)).await.unwrap_or_else(|violation| panic!("{violation}"));
        assert_eq!(records(&bench), BTreeMap::new());
    });
}

#[test]
fn sites_share_one_weighted_record_set_and_leave_it_one_after_the_other() {
    run(async {
        let bench = with_checks().await;
        let (main, other) = (item(&bench, "main", 100, "192.0.2.1"), item(&bench, "other", 0, "192.0.2.2"));
        let first = create(&bench, 1, &main).await;
        let second = create(&bench, 2, &other).await;
        assert!(first.cloud_id.as_str().ends_with("/A/main") && second.cloud_id.as_str().ends_with("/A/other"));
        assert_eq!(items(&bench), expected(&[("192.0.2.1", "100.0"), ("192.0.2.2", "0.0")]));
        assert_eq!(texts(&bench).len(), 2);
        for (wanted, made) in [(&main, &first), (&other, &second)] {
            let seen = present(&bench, made).await;
            let found = bench.provider.diff(wanted, made, &seen);
            assert!(found.is_empty(), "the health check of another site is as good: {found:?}");
        }

        // A weight and an address change in place, and the rest stays.
        let heavier = with(&with(&other, "weight", json!(50)), "values", json!(["192.0.2.3"]));
        let seen = present(&bench, &second).await;
        let found = bench.provider.diff(&heavier, &second, &seen);
        let fields: Vec<_> = found.iter().map(|change| (change.field.as_str(), &change.effect)).collect();
        assert_eq!(fields, [("values", &Effect::InPlace), ("weight", &Effect::InPlace)]);
        bench.finish(&operation(&bench, 3, Verb::Update, &heavier, Some(&second))).await;
        assert_eq!(items(&bench), expected(&[("192.0.2.1", "100.0"), ("192.0.2.3", "50.0")]));
        assert_eq!(texts(&bench).len(), 2);

        // The set gets the health check of the site that stays.
        let check =
            || records(&bench)["text.example.com./A"]["routingPolicy"]["healthCheck"].as_str().unwrap().to_owned();
        assert!(check().ends_with("/textnlp-staging-main-health"));
        bench.finish(&operation(&bench, 4, Verb::Delete, &main, Some(&first))).await;
        assert!(check().ends_with("/textnlp-staging-other-health"));
        assert_eq!(items(&bench), expected(&[("192.0.2.3", "50.0")]));
        assert!(texts(&bench).iter().all(|text| text.contains("resource=other/gateway/record")));
        bench.finish(&operation(&bench, 5, Verb::Delete, &heavier, Some(&second))).await;
        assert_eq!(records(&bench), BTreeMap::new());
    });
}

#[test]
fn a_record_set_that_another_client_removed_is_made_again() {
    run(async {
        let bench = with_checks().await;
        let wanted = item(&bench, "main", 100, "192.0.2.1");
        let made = create(&bench, 1, &wanted).await;
        let key = format!("dns/{}/rrsets/{NAME}./A", zone(&bench));
        bench.cloud.world().objects.remove(&key);
        let seen = present(&bench, &made).await;
        let found = bench.provider.diff(&wanted, &made, &seen);
        assert!(found.iter().any(|change| change.field == "values"), "{found:?}");
        bench.finish(&operation(&bench, 2, Verb::Update, &wanted, Some(&made))).await;
        assert_eq!(items(&bench), expected(&[("192.0.2.1", "100.0")]));

        // Also as that of one site.
        bench.cloud.world().objects.remove(&key);
        create(&bench, 3, &record(&bench, &["192.0.2.1"])).await;
        assert_eq!(records(&bench)["text.example.com./A"]["rrdatas"], json!(["192.0.2.1"]));
        assert_eq!(texts(&bench).len(), 1);
    });
}

#[test]
fn the_role_of_a_plan_suffices_for_several_sites() {
    run(async {
        let bench = with_checks().await;
        let (main, other) = (item(&bench, "main", 100, "192.0.2.1"), item(&bench, "other", 0, "192.0.2.2"));
        let role = |verb: Verb| limit(&bench, &printed(&bench, std::slice::from_ref(&main), Some(verb)));
        role(Verb::Create);
        create(&bench, 1, &other).await;
        let made = create(&bench, 2, &main).await;
        role(Verb::Update);
        let lighter = with(&main, "weight", json!(10));
        bench.finish(&operation(&bench, 3, Verb::Update, &lighter, Some(&made))).await;
        role(Verb::Delete);
        bench.finish(&operation(&bench, 4, Verb::Delete, &main, Some(&made))).await;
        assert_eq!(items(&bench), expected(&[("192.0.2.2", "0.0")]));
    });
}

#[test]
fn a_site_that_loses_a_race_reads_the_set_again() {
    run(async {
        let bench = with_checks().await;
        let (main, other) = (item(&bench, "main", 100, "192.0.2.1"), item(&bench, "other", 0, "192.0.2.2"));
        refuse_once(&bench, 409, "alreadyExists", "The resource 'entity.change.additions[0]' already exists");
        let first = create(&bench, 1, &main).await;
        refuse_once(&bench, 412, "conditionNotMet", "Precondition not met for 'entity.change.deletions[0]'");
        create(&bench, 2, &other).await;
        assert_eq!(items(&bench), expected(&[("192.0.2.1", "100.0"), ("192.0.2.2", "0.0")]));
        let lighter = with(&main, "weight", json!(10));
        for (status, reason) in [(412, "conditionNotMet"), (404, "notFound")] {
            refuse_once(&bench, status, reason, "The resource 'entity.change.deletions[0]' does not exist");
            let wanted = if status == 412 { &lighter } else { &main };
            bench.finish(&operation(&bench, u64::from(status), Verb::Update, wanted, Some(&first))).await;
        }
        refuse_once(&bench, 412, "conditionNotMet", "Precondition not met for 'entity.change.deletions[0]'");
        bench.finish(&operation(&bench, 3, Verb::Delete, &main, Some(&first))).await;
        assert_eq!(items(&bench), expected(&[("192.0.2.2", "0.0")]));
    });
}

#[test]
fn a_record_set_of_another_client_is_never_changed() {
    let theirs = |address: &str| json!({ "weight": 1.0, "rrdatas": [address], "signatureRrdatas": [] });
    for policy in [
        json!({ "wrr": { "items": [theirs("198.51.100.7")] } }),
        json!({ "geo": { "items": [{ "location": "us-east1", "rrdatas": ["198.51.100.7"] }] } }),
    ] {
        run(async {
            let bench = with_checks().await;
            place_set(&bench, &policy);
            let before = records(&bench);
            is_refused(&bench, &item(&bench, "main", 100, "192.0.2.1")).await;
            assert_eq!((records(&bench), changes(&bench)), (before, 0));
        });
    }
    for (kind, value) in [("A", "198.51.100.7"), ("CNAME", "other.example.net.")] {
        run(async {
            let bench = with_checks().await;
            place(&bench, NAME, kind, value);
            is_refused(&bench, &item(&bench, "main", 100, "192.0.2.1")).await;
            assert_eq!(changes(&bench), 0);
        });
    }
    // One that adds an item later.
    run(async {
        let bench = with_checks().await;
        let wanted = item(&bench, "main", 100, "192.0.2.1");
        let made = create(&bench, 1, &wanted).await;
        let mut policy = records(&bench)["text.example.com./A"]["routingPolicy"].clone();
        policy["wrr"]["items"].as_array_mut().unwrap().push(theirs("198.51.100.7"));
        place_set(&bench, &policy);
        assert!(matches!(present(&bench, &made).await.health, Health::Degraded(why) if why.contains("another client")));
        let lighter = with(&wanted, "weight", json!(1));
        let error = ends(&bench, &operation(&bench, 2, Verb::Update, &lighter, Some(&made))).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Denied, "{}", error_chain(&error));
        assert_eq!((records(&bench)["text.example.com./A"]["routingPolicy"].clone(), changes(&bench)), (policy, 1));
    });
}

#[test]
fn items_of_another_deployment_never_share_the_clients() {
    run(async {
        let bench = with_checks().await;
        let theirs = "\"heritage=textnlp-deploy,lineage=11111111-0000-4000-8000-000000007e57,environment=theirs,resource=there/gateway/record,address=198.51.100.7\"";
        place(&bench, "_textnlp-a.text.example.com", "TXT", theirs);
        place_set(&bench, &json!({ "wrr": { "items": [{ "weight": 1.0, "rrdatas": ["198.51.100.7"] }] } }));
        for wanted in [item(&bench, "main", 100, "192.0.2.1"), record(&bench, &["192.0.2.1"])] {
            let error = ends(&bench, &operation(&bench, 1, Verb::Create, &wanted, None)).await.unwrap_err();
            let why = error_chain(&error);
            assert_eq!(error.kind, ErrorKind::Exists, "{why}");
            assert!(why.contains("environment `theirs` of another deployment has a record of this name"), "{why}");
        }
        assert_eq!(changes(&bench), 0);
    });
}

/// That of a released version, whose spec has no site.
#[test]
fn the_record_of_one_site_becomes_one_of_several_and_back_without_a_gap() {
    run(async {
        let bench = with_checks().await;
        let alone = record(&bench, &["192.0.2.1"]);
        let mut released = alone.spec.as_value().clone();
        released
            .as_object_mut()
            .unwrap()
            .retain(|field, _| !["site", "weight", "health_check"].contains(&field.as_str()));
        let released = Wanted { spec: Spec::of(&released), ..alone.clone() };
        let old = create(&bench, 1, &released).await;
        let seen = present(&bench, &old).await;
        let found = bench.provider.diff(&alone, &old, &seen);
        assert!(found.is_empty(), "nothing changes with this version: {found:?}");
        let changed = with(&released, "ttl", json!(30));
        bench.finish(&operation(&bench, 2, Verb::Update, &changed, Some(&old))).await;

        // The other site waits for it.
        let (main, other) = (item(&bench, "main", 100, "192.0.2.1"), item(&bench, "other", 0, "192.0.2.2"));
        let before = changes(&bench);
        for wanted in [&main, &other] {
            let seen = observed(&bench, wanted).await;
            assert!(matches!(seen.as_slice(), [Observed::Absent]), "{seen:?}");
        }
        let joins = operation(&bench, 3, Verb::Create, &other, None);
        let progress = bench.provider.begin(&joins).await.unwrap();
        assert!(
            matches!(&progress, Progress::Pending { says, .. } if says.contains("main/gateway/record")),
            "{progress:?}"
        );
        assert_eq!(changes(&bench), before);
        let first = create(&bench, 4, &main).await;
        bench.finish(&operation(&bench, 5, Verb::Delete, &released, Some(&old))).await;
        assert_eq!(changes(&bench), before + 1, "one change replaces the record, and the old one is gone with it");
        let second = recorded(&other, &other.spec, &bench.finish(&joins).await);
        assert_eq!(items(&bench), expected(&[("192.0.2.1", "100.0"), ("192.0.2.2", "0.0")]));

        // And back.
        let back = operation(&bench, 6, Verb::Create, &alone, None);
        let progress = bench.provider.begin(&back).await.unwrap();
        assert!(
            matches!(&progress, Progress::Pending { says, .. } if says.contains("items of other sites")),
            "{progress:?}"
        );
        bench.finish(&operation(&bench, 7, Verb::Delete, &other, Some(&second))).await;
        let again = recorded(&alone, &alone.spec, &bench.finish(&back).await);
        bench.finish(&operation(&bench, 8, Verb::Delete, &main, Some(&first))).await;
        assert_eq!(records(&bench)["text.example.com./A"]["rrdatas"], json!(["192.0.2.1"]));
        assert_eq!(texts(&bench).len(), 1);
        bench.finish(&operation(&bench, 9, Verb::Delete, &alone, Some(&again))).await;
        assert_eq!(records(&bench), BTreeMap::new());
    });
}
