//! Certificates that records of a zone validate.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_provider::component::{Component, ComponentSpec, Endpoint};
use textnlp_provider::memory::Fuse;
use textnlp_provider::{Progress, Provider, Verb, Wanted};
use textnlp_sim::aws::acm::Acm;
use textnlp_sim::aws::route53::{self, Route53};
use textnlp_sim::{Disruption, Options, Rule, Scope};

use crate::engine::{Account, DOWN, Stack, UP, ZONE, component, site_of};
use crate::network::{finish, operation};
use crate::{ACCOUNT, Bench, endpoint, run, wanted};

const NAME: &str = "text.example.com";

fn bench() -> Bench {
    let bench = Bench::new();
    route53::zone(&mut bench.simulator.world(), &Scope::global(ACCOUNT), ZONE, "example.com", false);
    bench
}

fn certificate(names: &[&str]) -> Wanted {
    let spec = json!({ "names": names, "zone": ZONE, "records": true, "tags": {} });
    wanted("here/gateway/certificate", "aws.certificate", &spec)
}

/// The records of the zone but those that each zone has: name and type, and the record.
fn records(bench: &Bench) -> BTreeMap<String, Value> {
    let world = bench.simulator.world();
    let records = &world.find::<Route53>(&Scope::global(ACCOUNT)).unwrap().zones[ZONE].records;
    let own = records.iter().filter(|(key, _)| !matches!(key.1.as_str(), "SOA" | "NS"));
    own.map(|((labels, kind, _), record)| {
        let labels: Vec<&str> = labels.iter().rev().map(String::as_str).collect();
        (format!("{} {kind}", labels.join(".")), record.clone())
    })
    .collect()
}

fn count(bench: &Bench) -> usize {
    bench.simulator.world().find::<Acm>(&Bench::scope()).map_or(0, |acm| acm.certificates.len())
}

#[test]
fn a_certificate_lives() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        bed.whole_life(&certificate(&[NAME, "*.example.com"]), None).await?;
        bed.whole_life(&certificate(&[NAME, "*.text.example.com"]), None).await
    });
    assert_eq!((records(&bench), count(&bench)), (BTreeMap::new(), 0));
}

#[test]
fn a_lost_reply_requests_no_second_certificate() {
    let bench = bench();
    bench.simulator.faults().add(Rule::nth("acm", "RequestCertificate", 1, Disruption::LostReply));
    bench.simulator.faults().add(Rule::nth("route53", "ChangeResourceRecordSets", 1, Disruption::LostReply));
    run(async {
        let wanted = certificate(&[NAME]);
        let made = bench.bed().make(&wanted).await?;
        assert_eq!((count(&bench), records(&bench).len()), (1, 2));
        bench.bed().unmake(&wanted, &made).await
    });
    assert_eq!((records(&bench), count(&bench)), (BTreeMap::new(), 0));
}

#[test]
fn a_validation_record_that_was_deleted_is_drift_and_is_made_again() {
    let bench = bench();
    run(async {
        let wanted = certificate(&[NAME]);
        let made = bench.bed().make(&wanted).await?;
        {
            let mut world = bench.simulator.world();
            let zone = world.state::<Route53>(&Scope::global(ACCOUNT)).zones.get_mut(ZONE).unwrap();
            zone.records.retain(|(_, kind, _), _| kind != "CNAME");
        }
        let seen = crate::network::seen(&bench, &wanted, &made).await;
        let changes = bench.provider.diff(&wanted, &made, &seen);
        assert_eq!(changes.iter().map(|change| change.field.as_str()).collect::<Vec<_>>(), ["records"]);
        finish(&bench, &operation(Verb::Update, &wanted, Some(&made), 101)).await.unwrap();
        assert_eq!(records(&bench).len(), 2);
        bench.bed().unmake(&wanted, &made).await
    });
    assert_eq!(records(&bench), BTreeMap::new());
}

#[test]
fn the_validation_record_of_another_client_is_used_and_left() {
    let bench = bench();
    run(async {
        let (bed, wanted) = (bench.bed(), certificate(&[NAME]));
        let made = bed.make(&wanted).await?;
        {
            // As another client made it: without the record that says whose it is.
            let mut world = bench.simulator.world();
            let zone = world.state::<Route53>(&Scope::global(ACCOUNT)).zones.get_mut(ZONE).unwrap();
            zone.records.retain(|(_, kind, _), _| kind != "TXT");
        }
        bed.unmake(&wanted, &made).await?;
        assert_eq!(records(&bench).len(), 1, "it belongs to another client");
        let made = bed.make(&wanted).await?;
        assert_eq!(records(&bench).len(), 1);
        bed.unmake(&wanted, &made).await
    });
    assert_eq!((records(&bench).len(), count(&bench)), (1, 0));
}

#[test]
fn a_certificate_that_a_load_balancer_uses_is_deleted_after_it() {
    let bench = bench();
    run(async {
        let wanted = certificate(&[NAME]);
        let made = bench.bed().make(&wanted).await?;
        let uses = |balancer: Option<&str>| {
            let mut world = bench.simulator.world();
            let certificate = world.state::<Acm>(&Bench::scope()).certificates.values_mut().next().unwrap();
            certificate.used_by = balancer.map(str::to_owned).into_iter().collect();
        };
        uses(Some("arn:aws:elasticloadbalancing:eu-west-1:123456789012:loadbalancer/net/a/0123456789abcdef"));
        let delete = operation(Verb::Delete, &wanted, Some(&made), 102);
        let mut answer = bench.provider.begin(&delete).await;
        for _ in 0..10 {
            let Ok(Progress::Pending { handle, .. }) = &answer else { panic!("{answer:?}") };
            answer = bench.provider.advance(&delete, handle).await;
        }
        assert_eq!(count(&bench), 1);
        uses(None);
        bench.bed().unmake(&wanted, &made).await
    });
    assert_eq!((records(&bench), count(&bench)), (BTreeMap::new(), 0));
}

fn gateway(base_domain: Option<&str>) -> Component {
    let endpoint = endpoint(Some(ZONE), NAME, base_domain);
    component("gateway", ComponentSpec::Endpoint(Endpoint { managed_certificate: true, ..endpoint }))
}

#[test]
fn the_load_balancer_shows_the_certificate() {
    let (_, site) = textnlp_aws::inside(&gateway(None), &site_of("staging", false, 2)).unwrap();
    let annotations = site.cluster.unwrap().balancer.unwrap().annotations;
    let of = |name: &str| &annotations[&format!("service.beta.kubernetes.io/aws-load-balancer-{name}")];
    assert_eq!(*of("ssl-cert"), json!({ "$output": "here/gateway/certificate#arn" }));
    assert_eq!(*of("backend-protocol"), "ssl", "the connection to the pods is encrypted too");
}

#[test]
fn a_name_that_no_certificate_takes_is_refused() {
    let name = format!("{}.example.com", "a".repeat(60));
    let endpoint = Endpoint { managed_certificate: true, ..endpoint(Some(ZONE), &name, None) };
    let gateway = component("gateway", ComponentSpec::Endpoint(endpoint));
    let error = Bench::new().provider.lower(&gateway, &site_of("staging", false, 2)).unwrap_err();
    assert!(error.to_string().contains("64 characters at most"));
}

#[test]
fn a_service_gets_its_certificate_changes_and_goes_wherever_the_process_dies() {
    let site = site_of("staging", false, 2);
    for cut in (0_u64..).step_by(3) {
        let account = Account::new(Options::default());
        let before = account.records();
        let stack = Stack::new(&account, "staging", 0xacc1);
        let first = account.lower(&[gateway(None)], &site);
        let fuse = Fuse::blows_at(cut);
        stack.go(UP, &first, &fuse);
        let has_died = fuse.blown();
        stack.reach(UP, &first);
        // Tenants get a certificate with their names; the old one goes.
        let second = account.lower(&[gateway(Some("example.com"))], &site);
        stack.reach(UP, &second);
        {
            let mut world = account.simulator.world();
            let certificates = &world.state::<Acm>(&Bench::scope()).certificates;
            let names: Vec<_> = certificates.values().map(|one| one.names.clone()).collect();
            assert_eq!(names, [[NAME, "*.example.com"]], "cut {cut}");
        }
        let validations = account.records().into_keys().filter(|key| key.1 == "CNAME").count();
        assert_eq!(validations, 2, "the old certificate leaves the records of the new one: cut {cut}");
        stack.reach(DOWN, &second);
        assert_eq!(account.records(), before, "cut {cut}");
        assert!(account.simulator.world().state::<Acm>(&Bench::scope()).certificates.is_empty(), "cut {cut}");
        assert!(stack.recorded().is_empty(), "cut {cut}");
        if !has_died {
            break;
        }
    }
}
