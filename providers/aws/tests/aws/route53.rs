//! DNS records and health checks.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use textnlp_aws::{Access, Aws, Records};
use textnlp_cloud::NoSecrets;
use textnlp_provider::cluster::{ClusterAccess, ClusterIngress, ClusterSite};
use textnlp_provider::component::{Component, ComponentSpec, Endpoint, Site, TrafficShare};
use textnlp_provider::conformance::{TestBed, lowers_purely};
use textnlp_provider::{
    Effect, ErrorKind, Lineage, Observed, OutputRef, Ownership, Progress, Provider, Recorded, Scope, Verb, Wanted,
    error_chain,
};
use textnlp_sim::aws::route53::{self, RecordKey, Route53};
use textnlp_sim::{Disruption, Fault, Rule};

use crate::engine::component;
use crate::network::{finish, operation, with};
use crate::{ACCOUNT, Bench, endpoint, lineage, output, run, site, wanted};

const ZONE: &str = "Z0123456789EXAMPLE";
const NAME: &str = "text.example.com";
/// The zone of load balancers in the region of the tests.
const BALANCERS: &str = "Z2IFOLAFXWLO4F";

fn bench() -> Bench {
    let bench = Bench::new();
    route53::zone(&mut bench.simulator.world(), &global(), ZONE, "example.com", false);
    bench
}

fn global() -> textnlp_sim::Scope {
    textnlp_sim::Scope::global(ACCOUNT)
}

/// A record with some fields.
fn record(fields: &Value) -> Wanted {
    let mut spec = json!({
        "zone": ZONE, "name": NAME, "type": "A", "set": null, "weight": null, "failover": null, "ttl": null,
        "values": [], "alias": null, "health_check": null, "tags": {},
    });
    for (field, value) in fields.as_object().unwrap() {
        spec[field] = value.clone();
    }
    let set = spec["set"].as_str().map_or(String::new(), |set| format!("-{set}"));
    wanted(&format!("here/gateway/record{set}"), "aws.dns-record", &spec)
}

fn alias(host: &str) -> Wanted {
    record(&json!({ "alias": { "name": host, "zone": BALANCERS, "health": true } }))
}

fn addresses(values: &[&str]) -> Wanted {
    record(&json!({ "ttl": 60, "values": values }))
}

/// The records of the zone but those that each zone has.
fn records(bench: &Bench) -> BTreeMap<String, Value> {
    let world = bench.simulator.world();
    let records = world.find::<Route53>(&global()).unwrap().zones[ZONE].records.iter();
    let own = |key: &&RecordKey| !matches!(key.1.as_str(), "SOA" | "NS");
    records
        .filter(|(key, _)| own(key))
        .map(|((labels, kind, set), record)| {
            let name: Vec<&str> = labels.iter().rev().map(String::as_str).collect();
            (format!("{} {kind} {set}", name.join(".")).trim_end().to_owned(), record.clone())
        })
        .collect()
}

/// Puts a record into the zone, as another client does.
fn place(bench: &Bench, name: &str, kind: &str, value: &str) {
    let labels = name.rsplit('.').map(str::to_owned).collect();
    let record =
        json!({ "Name": format!("{name}."), "Type": kind, "TTL": 60, "ResourceRecords": [{ "Value": value }] });
    let mut world = bench.simulator.world();
    let zone = world.state::<Route53>(&global()).zones.get_mut(ZONE).unwrap();
    zone.records.insert((labels, kind.to_owned(), String::new()), record);
}

fn check(host: &str) -> Wanted {
    let spec = json!({ "host": host, "name": null, "port": 8443, "path": "/health", "interval": 30, "failures": 3, "tags": {} });
    wanted("here/gateway/health", "aws.health-check", &spec)
}

#[test]
fn a_dns_record_lives() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let before = alias("first.elb.eu-west-1.amazonaws.com");
        let after = alias("second.elb.eu-west-1.amazonaws.com");
        bed.whole_life(&before, Some(&after.spec)).await?;
        assert_eq!(records(&bench), BTreeMap::new(), "the record that says whose it was is gone too");
        let before = addresses(&["192.0.2.1", "192.0.2.2"]);
        let changed = with(&addresses(&["192.0.2.3"]), "ttl", json!(30));
        bench.bed().whole_life(&before, Some(&changed)).await
    });
    assert!(bench.calls("GetChange") >= 3, "an operation ends when all name servers have it");
}

#[test]
fn a_cname_for_all_subdomains_lives() {
    let bench = bench();
    run(async {
        let fields = json!({ "name": "*.text.example.com", "type": "CNAME", "ttl": 60, "values": ["a.example.net"] });
        bench.bed().whole_life(&record(&fields), None).await
    });
}

#[test]
fn records_with_weights_and_failover_live_beside_each_other() {
    let bench = bench();
    run(async {
        let (bed, check) = (bench.bed(), check("text.example.com"));
        let checked = bed.make(&check).await?;
        let weighted = |set: &str, weight: u64| {
            record(&json!({ "set": set, "weight": weight, "ttl": 60, "values": ["192.0.2.1"] }))
        };
        let north = bed.make(&weighted("north", 90)).await?;
        let south = weighted("south", 10);
        bed.whole_life(&south, Some(&with(&south, "weight", json!(50)))).await?;
        bed.unmake(&weighted("north", 90), &north).await?;
        let failover = |set: &str, role: &str, check: Value| {
            record(&json!({ "set": set, "failover": role, "ttl": 60, "values": ["192.0.2.1"], "health_check": check }))
        };
        let primary = failover("north", "PRIMARY", json!(output(&checked, "id")));
        let made = bed.make(&primary).await?;
        let secondary = failover("south", "SECONDARY", Value::Null);
        bed.whole_life(&secondary, None).await?;
        assert_eq!(records(&bench)["text.example.com A north"]["Failover"], "PRIMARY");
        bed.unmake(&primary, &made).await?;
        bed.unmake(&check, &checked).await
    });
}

#[test]
fn a_record_of_another_client_is_never_overwritten() {
    for (kind, value) in [("A", "198.51.100.7"), ("CNAME", "other.example.net")] {
        let bench = bench();
        place(&bench, NAME, kind, value);
        let before = records(&bench);
        run(async {
            let wanted = alias("ours.elb.eu-west-1.amazonaws.com");
            let scope = Scope {
                lineage: lineage(),
                environment: &site().environment,
                site: &site().name,
                wanted: std::slice::from_ref(&wanted),
                recorded: &[],
            };
            let seen = bench.provider.observe(&scope).await.unwrap();
            let is_unknown = seen.iter().any(|(id, seen)| *id == wanted.id && matches!(seen, Observed::Unknown(_)));
            assert!(is_unknown, "the plan neither creates nor changes it: {seen:?}");
            let problems = bench.provider.preflight(std::slice::from_ref(&wanted)).await.unwrap();
            assert!(problems.iter().any(|problem| problem.to_string().contains("a DNS record")), "{problems:?}");
            let error = finish(&bench, &operation(Verb::Create, &wanted, None, 100)).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Exists, "{}", error_chain(&error));
            Ok(())
        });
        assert_eq!(records(&bench), before);
        assert_eq!(bench.calls("ChangeResourceRecordSets"), 0);
    }
}

#[test]
fn a_record_that_appears_at_the_last_moment_is_never_overwritten() {
    let bench = bench();
    let taken = "[Tried to create resource record set [name='text.example.com.', type='A'] but it already exists]";
    let fault = textnlp_sim::Fault::new("InvalidChangeBatch", taken);
    bench.simulator.faults().add(Rule::nth("route53", "ChangeResourceRecordSets", 1, Disruption::Refused(fault)));
    run(async {
        let create = operation(Verb::Create, &addresses(&["192.0.2.1"]), None, 100);
        let error = finish(&bench, &create).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Exists, "{}", error_chain(&error));
        assert!(error.hint.is_some());
        Ok(())
    });
}

#[test]
fn a_changed_record_is_drift_and_is_put_right() {
    let bench = bench();
    run(async {
        let wanted = addresses(&["192.0.2.1"]);
        let made = bench.bed().make(&wanted).await?;
        let owner = records(&bench).remove("_textnlp-a.text.example.com TXT").unwrap();
        assert!(owner["ResourceRecords"][0]["Value"].as_str().unwrap().contains("resource=here/gateway/record"));
        // Another client changes the record: it is drift, which the plan shows and puts right.
        place(&bench, NAME, "A", "198.51.100.7");
        let seen = crate::network::seen(&bench, &wanted, &made).await;
        let changes = bench.provider.diff(&wanted, &made, &seen);
        let [change] = changes.as_slice() else { panic!("{changes:?}") };
        assert_eq!((change.field.as_str(), &change.effect), ("values", &Effect::InPlace));
        // And while the change is sent, once more.
        let changed = Rule::nth(
            "route53",
            "ChangeResourceRecordSets",
            1,
            Disruption::Refused(textnlp_sim::Fault::new(
                "InvalidChangeBatch",
                "[Tried to delete resource record set [name='text.example.com.', type='A'] but the values provided do not match the current values]",
            )),
        );
        bench.simulator.faults().add(changed);
        let update = operation(Verb::Update, &wanted, Some(&made), 100);
        let error = bench.provider.begin(&update).await.unwrap_err();
        assert!(
            error.kind == ErrorKind::Conflict && error.kind.may_pass(),
            "it is read again: {}",
            error_chain(&error)
        );
        finish(&bench, &update).await.unwrap();
        assert_eq!(records(&bench)["text.example.com A"]["ResourceRecords"][0]["Value"], "192.0.2.1");
        bench.bed().unmake(&wanted, &made).await
    });
    assert_eq!(records(&bench), BTreeMap::new());
}

#[test]
fn a_record_that_lost_its_owner_is_not_deleted_as_ours() {
    let bench = bench();
    run(async {
        let wanted = addresses(&["192.0.2.1"]);
        let made = bench.bed().make(&wanted).await?;
        place(
            &bench,
            "_textnlp-a.text.example.com",
            "TXT",
            "\"heritage=textnlp-deploy,lineage=11111111-0000-4000-8000-000000007e57,environment=other,resource=there/gateway/record\"",
        );
        let error = finish(&bench, &operation(Verb::Delete, &wanted, Some(&made), 100)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Denied, "{}", error_chain(&error));
        place(&bench, "_textnlp-a.text.example.com", "TXT", "\"of another program\"");
        let error = finish(&bench, &operation(Verb::Delete, &wanted, Some(&made), 101)).await.unwrap_err();
        assert!(error_chain(&error).contains("any more"), "{}", error_chain(&error));
        assert_eq!(records(&bench).len(), 2);
        Ok(())
    });
}

#[test]
fn a_lost_reply_creates_no_second_dns_record() {
    let bench = bench();
    bench.simulator.faults().add(Rule::nth("route53", "ChangeResourceRecordSets", 1, Disruption::LostReply));
    bench.simulator.faults().add(Rule::nth("route53", "ChangeResourceRecordSets", 2, Disruption::Throttled));
    run(async {
        let wanted = addresses(&["192.0.2.1"]);
        let made = bench.bed().make(&wanted).await?;
        assert_eq!(bench.calls("ChangeResourceRecordSets"), 1);
        bench.bed().unmake(&wanted, &made).await
    });
    assert_eq!(records(&bench), BTreeMap::new());
}

#[test]
fn zones_are_checked_before_anything_is_created() {
    let bench = bench();
    route53::zone(&mut bench.simulator.world(), &global(), "ZPRIVATE", "example.com", true);
    let problems = |zone: &str, name: &str| {
        let wanted = record(&json!({ "zone": zone, "name": name, "ttl": 60, "values": ["192.0.2.1"] }));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let found = runtime.block_on(bench.provider.preflight(&[wanted])).unwrap();
        found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    assert!(problems("ZNONE", NAME).contains("there is no such zone in the account"));
    assert!(problems(ZONE, "text.example.org").contains("`text.example.org` is not in the zone `example.com`"));
    assert!(problems(ZONE, "notexample.com").contains("is not in the zone"));
    assert!(problems("ZPRIVATE", NAME).contains("it answers inside of its VPCs only"));
    let well = problems(ZONE, NAME);
    assert!(!well.contains("zone"), "{well}");
}

#[test]
fn a_health_check_lives() {
    let bench = Bench::new();
    run(async {
        let wanted = check("first.example.com");
        let changed = with(&check("second.example.com"), "failures", json!(5));
        bench.bed().whole_life(&wanted, Some(&changed)).await
    });
    let world = bench.simulator.world();
    assert!(world.find::<Route53>(&global()).unwrap().checks.is_empty());
}

#[test]
fn a_lost_reply_creates_no_second_health_check() {
    let bench = Bench::new();
    bench.simulator.faults().add(Rule::nth("route53", "CreateHealthCheck", 1, Disruption::LostReply));
    bench.simulator.faults().add(Rule::nth("route53", "ChangeTagsForResource", 1, Disruption::LostRequest));
    run(async {
        let wanted = check("first.example.com");
        let made = bench.bed().make(&wanted).await?;
        assert_eq!(bench.simulator.world().find::<Route53>(&global()).unwrap().checks.len(), 1);
        bench.bed().unmake(&wanted, &made).await
    });
}

#[test]
fn a_repeated_create_of_a_health_check_sets_the_tags_that_were_lost() {
    let bench = Bench::new();
    bench.simulator.faults().add(Rule::nth("route53", "ChangeTagsForResource", 1, Disruption::LostRequest));
    run(async {
        let create = operation(Verb::Create, &check("first.example.com"), None, 100);
        let tags = || -> Vec<usize> {
            let world = bench.simulator.world();
            let of_checks = world.tags.listed("arn:aws:route53:", jiff::Timestamp::MAX);
            of_checks.map(|(_, tags)| tags.len()).collect()
        };
        bench.provider.begin(&create).await.unwrap();
        assert_eq!(tags(), [0], "the process may die here");
        bench.provider.begin(&create).await.unwrap();
        assert!(matches!(tags()[..], [count] if count >= 4), "{:?}", tags());
        Ok(())
    });
}

#[test]
fn a_health_check_whose_tags_are_refused_is_reported_with_its_id() {
    let bench = Bench::new();
    let denied = Disruption::Refused(Fault::new("AccessDenied", "not authorized").status(403));
    bench.simulator.faults().add(Rule::always("route53", "ChangeTagsForResource", denied));
    run(async {
        let create = operation(Verb::Create, &check("first.example.com"), None, 100);
        let Ok(Progress::Pending { handle, .. }) = bench.provider.begin(&create).await else {
            panic!("the create counts as refused")
        };
        match bench.provider.advance(&create, &handle).await {
            Ok(Progress::Failed { left: Some(object), error }) => {
                assert_eq!(error.kind, ErrorKind::Denied);
                let world = bench.simulator.world();
                let checks = &world.find::<Route53>(&global()).unwrap().checks;
                assert_eq!(checks.keys().collect::<Vec<_>>(), [object.cloud_id.as_str()]);
            }
            other => panic!("{other:?}"),
        }
        Ok(())
    });
}

/// The site of tests in a cluster.
fn place_of(settings: ClusterAccess, region: &str, replicates: bool) -> Site {
    let cluster = ClusterSite { settings, replicates, ..ClusterSite::of("textnlp") };
    Site { cluster: Some(Box::new(cluster)), region: region.to_owned(), ..site() }
}

fn gateway(zone: Option<&str>, base_domain: Option<&str>) -> Component {
    component("gateway", ComponentSpec::Endpoint(endpoint(zone, "Text.Example.com.", base_domain)))
}

#[test]
fn the_name_of_the_service_becomes_a_record_of_the_existing_zone() {
    let bench = Bench::new();
    let there = |region: &str| place_of(ClusterAccess::default(), region, false);
    let made =
        lowers_purely(&bench.provider, &gateway(Some(ZONE), Some("example.com")), &there(crate::REGION)).unwrap();
    let address = json!(OutputRef::new("here/gateway/service".parse().unwrap(), "address"));
    let [record, tenants] = made.as_slice() else { panic!("{made:?}") };
    assert_eq!((record.id.as_str(), &record.ownership), ("here/gateway/record", &Ownership::Ours));
    assert_eq!(record.needs.iter().map(|need| need.on.as_str()).collect::<Vec<_>>(), ["here/gateway/service"]);
    let spec = record.spec.as_value();
    assert_eq!((&spec["name"], &spec["type"], &spec["tags"]), (&json!(NAME), &json!("A"), &json!({})));
    assert_eq!(spec["alias"], json!({ "name": address, "zone": BALANCERS, "health": true }));
    assert_eq!(tenants.spec.get("name"), Some(&json!("*.example.com")));
    // No zone is known for an alias: a CNAME needs none.
    let made = lowers_purely(&bench.provider, &gateway(Some("/hostedzone/Z1"), None), &there("us-iso-east-1")).unwrap();
    let spec = made[0].spec.as_value();
    assert_eq!((&spec["zone"], &spec["type"], &spec["ttl"]), (&json!("Z1"), &json!("CNAME"), &json!(60)));
    assert_eq!(spec["values"], json!([address]));
    assert!(lowers_purely(&bench.provider, &gateway(None, None), &there(crate::REGION)).unwrap().is_empty());
}

#[test]
fn a_record_without_a_load_balancer_is_refused() {
    let bench = Bench::new();
    let said = |site: &Site| bench.provider.lower(&gateway(Some(ZONE), None), site).unwrap_err().to_string();
    let ingress = ClusterAccess { ingress: Some(ClusterIngress::default()), ..ClusterAccess::default() };
    assert!(said(&place_of(ingress, crate::REGION, false)).contains("creates no load balancer"));
}

/// The endpoint of one of several sites.
fn shared(weight: u32, is_at_other_provider: bool, host: &str) -> Component {
    let share = TrafficShare { weight, is_at_other_provider, host: host.to_owned(), sites: BTreeMap::new() };
    let endpoint = endpoint(Some("/hostedzone/Z1"), "Text.Example.com.", Some("example.com"));
    component("gateway", ComponentSpec::Endpoint(Endpoint { share: Some(share), ..endpoint }))
}

#[test]
fn each_of_several_sites_has_weighted_records_with_a_health_check() {
    let bench = Bench::new();
    let address = json!(OutputRef::new("here/gateway/service".parse().unwrap(), "address"));
    let place = |region: &str| place_of(ClusterAccess::default(), region, true);
    let ids = |made: &[Wanted]| -> Vec<String> {
        made.iter().map(|one| one.id.as_str().strip_prefix("here/gateway/").unwrap().to_owned()).collect()
    };
    let made = lowers_purely(&bench.provider, &shared(100, false, "One.example.com"), &place(crate::REGION)).unwrap();
    assert_eq!(ids(&made), ["health", "record", "tenants-record", "name"]);
    let first = made[1].spec.as_value();
    assert_eq!((&first["zone"], &first["name"], &first["set"]), (&json!("Z1"), &json!(NAME), &json!("here")));
    assert_eq!((&first["weight"], &first["ttl"], &first["values"]), (&json!(100), &Value::Null, &json!([])));
    assert_eq!(first["alias"], json!({ "name": address, "zone": BALANCERS, "health": true }));
    let needs: Vec<&str> = made[1].needs.iter().map(|need| need.on.as_str()).collect();
    assert_eq!(needs, ["here/gateway/health", "here/gateway/service"]);
    assert_eq!(made[0].spec.get("name"), Some(&Value::Null), "a DNS name is probed by that name");
    let own = made[3].spec.as_value();
    let plain = (&json!("one.example.com"), &Value::Null, &Value::Null, &Value::Null);
    assert_eq!((&own["name"], &own["set"], &own["weight"], &own["health_check"]), plain);

    // Another site is added in place: Route 53 refuses a weighted record beside one without.
    let alone = lowers_purely(&bench.provider, &gateway(Some("Z1"), None), &place(crate::REGION)).unwrap();
    let before = alone[0].spec.as_value();
    let fields = before.as_object().unwrap().keys().map(String::as_str);
    let changed: Vec<&str> = fields.filter(|field| before[*field] != first[*field]).collect();
    assert_eq!((alone[0].id.as_str(), changed), ("here/gateway/record", vec!["health_check"]));

    // In another cloud the load balancer has an address, and the site's own address needs no record if it is no name.
    let made = lowers_purely(&bench.provider, &shared(0, true, "192.0.2.9"), &place("us-central1")).unwrap();
    assert_eq!(ids(&made), ["health", "record", "tenants-record"]);
    let other = made[1].spec.as_value();
    assert_eq!((&other["weight"], &other["ttl"], &other["alias"]), (&json!(0), &json!(60), &Value::Null));
    assert_eq!((&other["type"], &other["values"]), (&json!("A"), &json!([address])));
    assert_eq!(made[2].spec.get("name"), Some(&json!("*.example.com")));
    assert_eq!(made[0].spec.get("name"), Some(&json!(NAME)));
}

#[test]
fn records_that_route_53_cannot_have_are_refused_before_anything_is_created() {
    let bench = Bench::new();
    let said = |component: &Component, region: &str| {
        bench.provider.lower(component, &place_of(ClusterAccess::default(), region, true)).unwrap_err().to_string()
    };
    let heavy = said(&shared(256, false, "one.example.com"), crate::REGION);
    assert!(heavy.contains("the weight 256 is above 255"), "{heavy}");
    let unknown = said(&shared(1, false, "one.example.com"), "us-iso-east-1");
    assert!(unknown.contains("no alias is known for load balancers in `us-iso-east-1`"), "{unknown}");
}

#[test]
fn records_of_others_never_share_the_clients() {
    let weighted = |set: &str| record(&json!({ "set": set, "weight": 10, "ttl": 60, "values": ["192.0.2.1"] }));
    // Another client's, which has no owner.
    let bench = bench();
    let key = (NAME.rsplit('.').map(str::to_owned).collect(), "A".to_owned(), "theirs".to_owned());
    let theirs = json!({
        "Name": format!("{NAME}."), "Type": "A", "TTL": 60, "SetIdentifier": "theirs", "Weight": 1,
        "ResourceRecords": [{ "Value": "198.51.100.7" }],
    });
    bench.simulator.world().state::<Route53>(&global()).zones.get_mut(ZONE).unwrap().records.insert(key, theirs);
    run(async {
        let wanted = weighted("ours");
        let seen = observed(&bench.provider, std::slice::from_ref(&wanted), &[]).await;
        assert!(matches!(seen.as_slice(), [(_, Observed::Unknown(_))]), "{seen:?}");
        Ok(())
    });
    // Another deployment's.
    let bench = self::bench();
    run(async {
        let other: Lineage = "11111111-0000-4000-8000-000000007e57".parse().unwrap();
        let bed = TestBed::new(&bench.provider, "other".parse().unwrap(), "here".parse().unwrap(), other);
        bed.make(&weighted("theirs")).await?;
        let refused = bench.bed().make(&weighted("ours")).await.unwrap_err().to_string();
        assert!(refused.contains("environment `other` of another deployment has records of this name"), "{refused}");
        Ok(())
    });
    assert_eq!(records(&bench).len(), 2, "one record and its owner");
}

#[test]
fn a_record_that_is_deleted_while_another_one_is_read_is_not_one_of_another_client() {
    let bench = bench();
    let weighted = |set: &str| record(&json!({ "set": set, "weight": 10, "ttl": 60, "values": ["192.0.2.1"] }));
    run(async {
        bench.bed().make(&weighted("south")).await?;
        let lists = bench.calls("ListResourceRecordSets");
        // The records of the name are read second, after the owner.
        let late = Disruption::Delayed(std::time::Duration::from_secs(2));
        bench.simulator.faults().add(Rule::nth("route53", "ListResourceRecordSets", 2, late));
        let wanted = weighted("north");
        let gone = async {
            while bench.calls("ListResourceRecordSets") < lists + 2 {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            bench.simulator.world().state::<Route53>(&global()).zones.get_mut(ZONE).unwrap().records.clear();
        };
        let (seen, ()) = tokio::join!(observed(&bench.provider, std::slice::from_ref(&wanted), &[]), gone);
        assert!(matches!(seen.as_slice(), [] | [(_, Observed::Absent)]), "{seen:?}");
        Ok(())
    });
}

#[test]
fn while_aws_is_lost_only_the_records_of_a_site_elsewhere_are_unknown() {
    let bench = bench();
    let records = Records::new(Aws::new(bench.access(), Arc::new(NoSecrets)));
    let kinds: Vec<&str> = records.kinds().iter().map(|kind| kind.name).collect();
    assert_eq!(kinds, ["aws.health-check", "aws.dns-record"]);
    let place = place_of(ClusterAccess::default(), "us-central1", true);
    let (component, there) = Records::part(&shared(50, true, "two.example.com"), &place).unwrap();
    let ids: Vec<String> =
        records.lower(&component, &there).unwrap().iter().map(|one| one.id.as_str().to_owned()).collect();
    assert_eq!(ids.len(), 4, "{ids:?}");
    assert!(Records::part(&gateway(None, None), &place).is_none());
    run(async {
        assert!(observed(&records, &[], &[]).await.is_empty());
        assert_eq!(bench.simulator.requests().len(), 0, "a site without records calls nothing");
        let bed = TestBed::new(&records, "staging".parse().unwrap(), "here".parse().unwrap(), lineage());
        let wanted = addresses(&["192.0.2.1"]);
        let made = bed.make(&wanted).await?;
        let (all, known) = (std::slice::from_ref(&wanted), std::slice::from_ref(&made));
        let seen = observed(&records, all, known).await;
        assert!(matches!(seen.as_slice(), [(_, Observed::Present(_))]), "{seen:?}");
        // Another account does not have the zone: the record is not gone.
        let zone = bench.simulator.world().state::<Route53>(&global()).zones.remove(ZONE);
        let seen = observed(&records, all, known).await;
        assert!(
            matches!(seen.as_slice(), [(_, Observed::Unknown(why))] if why.0.contains("has no such zone")),
            "{seen:?}"
        );
        bench.simulator.world().state::<Route53>(&global()).zones.extend(zone.map(|zone| (ZONE.to_owned(), zone)));
        // Nothing answers.
        let nowhere =
            textnlp_aws::Simulator { url: "http://127.0.0.1:9".to_owned(), ..bench.access().simulator.unwrap() };
        let access = Access { simulator: Some(nowhere), ..bench.access() };
        let lost = Records::new(Aws::new(access, Arc::new(NoSecrets)));
        let seen = observed(&lost, all, known).await;
        assert!(matches!(seen.as_slice(), [(_, Observed::Unknown(_))]), "{seen:?}");
        let problems = lost.preflight(all).await.unwrap();
        assert!(problems[0].warning && problems[0].cause.contains("cannot be checked"), "{problems:?}");
        bed.unmake(&wanted, &made).await
    });
}

#[test]
fn a_throttled_page_does_not_lose_a_list() {
    let bench = bench();
    run(async {
        let wanted = check("first.example.com");
        let made = bench.bed().make(&wanted).await?;
        for operation in ["ListHealthChecks", "ListTagsForResources"] {
            bench.simulator.faults().add(Rule::nth("route53", operation, 1, Disruption::Throttled));
        }
        // Known from the list only.
        let seen = observed(&bench.provider, &[], &[]).await;
        assert!(matches!(seen.as_slice(), [(id, Observed::Present(_))] if *id == wanted.id), "{seen:?}");
        bench.bed().unmake(&wanted, &made).await
    });
}

/// What a provider shows of resources.
async fn observed(
    provider: &dyn Provider,
    wanted: &[Wanted],
    recorded: &[Recorded],
) -> Vec<(textnlp_provider::ResourceId, Observed)> {
    let (environment, site) = ("staging".parse().unwrap(), "here".parse().unwrap());
    let scope = Scope { lineage: lineage(), environment: &environment, site: &site, wanted, recorded };
    provider.observe(&scope).await.unwrap()
}

#[test]
fn a_health_check_of_an_address_lives_and_stays_one() {
    let bench = Bench::new();
    let probed = |host: &str, name: Value| {
        let check = check(host);
        let spec = with(&check, "name", name);
        Wanted { spec, ..check }
    };
    run(async {
        let wanted = probed("192.0.2.1", json!(NAME));
        bench.bed().whole_life(&wanted, Some(&probed("192.0.2.2", json!("other.example.com")).spec)).await?;
        let refused = bench.bed().make(&probed("10.0.0.1", json!(NAME))).await;
        assert!(refused.unwrap_err().to_string().contains("not allowed"));
        Ok(())
    });
    let bench = Bench::new();
    run(async {
        let (bed, wanted) = (bench.bed(), probed("192.0.2.1", json!(NAME)));
        let made = bed.make(&wanted).await?;
        let change = operation(Verb::Update, &check("text.example.com"), Some(&made), 200);
        let refused = bench.provider.begin(&change).await;
        assert!(error_chain(&refused.unwrap_err()).contains("into one of a name"));
        bed.unmake(&wanted, &made).await
    });
}

#[test]
fn the_service_gets_a_network_load_balancer() {
    let component = gateway(None, None);
    let balancer = |settings: ClusterAccess| {
        let (_, site) = textnlp_aws::inside(&component, &place_of(settings, crate::REGION, false)).unwrap();
        site.cluster.unwrap().balancer
    };
    let made = balancer(ClusterAccess::default()).unwrap();
    let of = |name: &str| {
        made.annotations[&format!("service.beta.kubernetes.io/aws-load-balancer-{name}")].as_str().unwrap()
    };
    assert_eq!((of("type"), of("scheme"), of("nlb-target-type")), ("nlb", "internet-facing", "instance"));
    assert_eq!(
        of("additional-resource-tags"),
        "team=nlp,textnlp-environment=staging,textnlp-resource=here/gateway/service"
    );
    assert!(made.keeps_addresses && made.notices_after_seconds >= 20);
    let address = Some("https://text.example.com".to_owned());
    assert_eq!(balancer(ClusterAccess { address: address.clone(), ..ClusterAccess::default() }), None);
    assert!(balancer(ClusterAccess { address, load_balancer: true, ..ClusterAccess::default() }).is_some());
}
