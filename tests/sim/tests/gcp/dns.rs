//! Cloud DNS: what a change is refused for.

use serde_json::{Value, json};
use textnlp_sim::gcp::Options;

use crate::{Answer, Client};

const ZONES: &str = "dns/v1/projects/PROJECT/managedZones";

fn client() -> Client {
    let client = Client::with(Options::default().enabled());
    let zone = json!({ "name": "z", "dnsName": "example.com.", "description": "" });
    client.post("dns", ZONES, zone).ok();
    client
}

fn record(name: &str, kind: &str, ttl: u32, value: &str) -> Value {
    json!({ "name": name, "type": kind, "ttl": ttl, "rrdatas": [value] })
}

fn change(client: &Client, deletions: &[Value], additions: &[Value]) -> Answer {
    let body = json!({ "deletions": deletions, "additions": additions });
    client.post("dns", &format!("{ZONES}/z/changes"), body)
}

/// snarfed/bridgy-fed#1072, kubernetes-sigs/external-dns#467, kubernetes-sigs/external-dns#2817, kubernetes-sigs/external-dns#3885,
/// mantl/mantl#1082.
#[test]
fn a_change_is_made_completely_or_not_at_all() {
    let client = client();
    let first = record("text.example.com.", "A", 60, "192.0.2.1");
    let owner = record("_textnlp-a.text.example.com.", "TXT", 300, "\"heritage=textnlp-deploy\"");
    let made = change(&client, &[], &[first.clone(), owner.clone()]).ok();
    assert_eq!(made["status"], "pending");
    let id = made["id"].as_str().unwrap();
    client.cloud.advance(std::time::Duration::from_secs(60));
    assert_eq!(client.get("dns", &format!("{ZONES}/z/changes/{id}")).ok()["status"], "done");
    let other = record("other.example.com.", "A", 60, "192.0.2.2");
    let taken = change(&client, &[], &[other.clone(), first.clone()]);
    assert_eq!(taken.reason(), (409, "alreadyExists"));
    assert!(taken.message().contains("named 'text.example.com. (A)' already exists"), "{}", taken.message());
    let stale = record("text.example.com.", "A", 300, "192.0.2.1");
    assert_eq!(change(&client, &[stale], std::slice::from_ref(&other)).reason(), (412, "conditionNotMet"));
    assert_eq!(change(&client, &[other], &[]).reason(), (404, "notFound"));
    assert_eq!(change(&client, &[], &[]).reason(), (400, "required"));
    for (addition, expected) in [
        (record("text.example.com.", "CNAME", 60, "a.example.net."), (400, "cnameResourceRecordSetConflict")),
        (record("text.example.org.", "A", 60, "192.0.2.1"), (400, "invalid")),
        (record("dotless.example.com", "A", 60, "192.0.2.1"), (400, "invalid")),
        (record("wrong.example.com.", "A", 60, "a.example.net."), (400, "invalid")),
    ] {
        assert_eq!(change(&client, &[], std::slice::from_ref(&addition)).reason(), expected, "{addition}");
    }
    let all = client.get("dns", &format!("{ZONES}/z/rrsets?name=text.example.com.")).ok();
    assert_eq!(all["rrsets"].as_array().unwrap().len(), 1);
    let path = format!("{ZONES}/z");
    assert_eq!(client.call("DELETE", "dns", &path, Value::Null).reason(), (400, "containerNotEmpty"));
    let second = record("text.example.com.", "A", 60, "192.0.2.3");
    change(&client, std::slice::from_ref(&first), std::slice::from_ref(&second)).ok();
    change(&client, &[second, owner], &[]).ok();
    client.call("DELETE", "dns", &path, Value::Null).ok();
    assert_eq!(client.get("dns", &path).reason(), (404, "notFound"));
}

/// opstrace/opstrace#128, kubernetes/kops#2599.
#[test]
fn a_project_without_the_api_answers_for_no_zone() {
    let client = Client::with(Options::default());
    for path in [ZONES.to_owned(), format!("{ZONES}/none")] {
        let answer = client.get("dns", &path);
        assert_eq!(answer.reason(), (403, "accessNotConfigured"));
        assert!(answer.message().starts_with("Cloud DNS API has not been used in project"), "{}", answer.message());
    }
}

/// A health check from these regions, with this interval.
fn health_check(client: &Client, name: &str, regions: &[&str], interval: u32) -> Answer {
    let body = json!({
        "name": name, "type": "HTTPS", "checkIntervalSec": interval, "timeoutSec": 5, "sourceRegions": regions,
        "httpsHealthCheck": { "port": 8443, "requestPath": "/health", "host": "text.example.com" },
    });
    client.post("compute", "projects/PROJECT/global/healthChecks", body)
}

fn weighted(check: &str, items: &[Value]) -> Value {
    let policy = json!({ "healthCheck": check, "wrr": { "items": items } });
    json!({ "name": "text.example.com.", "type": "A", "ttl": 60, "routingPolicy": policy })
}

fn item(weight: f64, address: &str) -> Value {
    json!({ "weight": weight, "healthCheckedTargets": { "externalEndpoints": [address] } })
}

/// GoogleCloudPlatform/k8s-config-connector#9395.
#[test]
fn a_weighted_record_set_has_items_with_a_health_check_from_three_regions() {
    let client = client();
    let three = ["us-central1", "us-east1", "us-west1"];
    for (regions, interval) in [(&three[..2], 30), (&["us-central1", "us-east1", "mars-west1"], 30), (&three, 10)] {
        assert_eq!(
            health_check(&client, "wrong", regions, interval).reason(),
            (400, "invalid"),
            "{regions:?} {interval}"
        );
    }
    client.wait("compute", health_check(&client, "probes", &three, 30));
    client.wait("compute", health_check(&client, "of-balancers", &[], 30));
    let found = client.get("compute", "projects/PROJECT/global/healthChecks/probes").ok();
    let own = found["selfLink"].as_str().unwrap();
    let other = own.replace("/probes", "/of-balancers");
    let first = item(100.0, "192.0.2.1");
    let unchecked = json!({ "weight": 1, "rrdatas": ["192.0.2.2"] });
    for (set, says) in [
        (weighted(own, &[]), "routingPolicy"),
        (weighted(own, &[item(-1.0, "192.0.2.1")]), "weight"),
        (weighted(own, &[item(1001.0, "192.0.2.1")]), "weight"),
        (weighted(own, &[item(1.0, "a.example.net.")]), "rrdata"),
        (weighted(own, &[first.clone(), unchecked]), "healthCheckedTargets"),
        (weighted(&other, std::slice::from_ref(&first)), "healthCheck"),
        (weighted("projects/PROJECT/global/healthChecks/probes", std::slice::from_ref(&first)), "healthCheck"),
    ] {
        let answer = change(&client, &[], std::slice::from_ref(&set));
        assert_eq!(answer.reason(), (400, "invalid"), "{set}");
        assert!(answer.message().contains(says), "{says}: {}", answer.message());
    }
    let one = weighted(own, std::slice::from_ref(&first));
    change(&client, &[], std::slice::from_ref(&one)).ok();
    let all = client.get("dns", &format!("{ZONES}/z/rrsets?name=text.example.com.")).ok();
    let read = all["rrsets"][0].clone();
    let policy = &read["routingPolicy"];
    assert_eq!((&policy["healthCheck"], &read["rrdatas"]), (&json!(own), &json!([])));
    assert_eq!(policy["wrr"]["items"][0]["kind"], "dns#rRSetRoutingPolicyWrrPolicyWrrPolicyItem");
    let two = weighted(own, &[first, item(0.0, "192.0.2.2")]);
    assert_eq!(change(&client, std::slice::from_ref(&two), &[]).reason(), (412, "conditionNotMet"));
    change(&client, &[read], std::slice::from_ref(&two)).ok();
    change(&client, &[two], &[]).ok();
}
