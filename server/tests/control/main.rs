//! Three watches and a witness as processes: writes, kills, freezes, lost disks, and the way home.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod copies;
mod dns;
mod named;
mod sites;

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::{Value, json};
use sites::{GRACE_MS, LONG, NAMES, Sites, until};
use textnlp_store::lease::Lease;
use textnlp_store::{Reservation, Unit, now_ms};

fn key(number: u32) -> Value {
    json!({
        "sha256": "0".repeat(64), "tenant": "acme", "name": format!("key {number}"), "scopes": ["*"], "rate_limit": "5/minute",
        "token_rate_limit": null, "token_limit": 9, "created_at": 5, "expires_at": null, "revoked_at": null,
    })
}

fn put(sites: &Sites, at: &str, number: u32) -> (u16, Value) {
    sites.write(at, json!([{ "key": format!("key/{number:016}"), "value": key(number) }]), 30_000)
}

#[test]
fn acknowledged_write_is_in_every_sites_database() {
    let sites = Sites::start();
    sites.until_all_are_members();
    for (number, at) in NAMES.iter().enumerate() {
        let (status, answer) = put(&sites, at, number as u32);
        assert_eq!(status, 200, "{at}: {answer}");
    }
    for site in NAMES {
        until(LONG, || sites.keys_in_database(site).len() == 3);
        let (_, keys) = sites.keys_role(site, &json!({ "do": "list" }));
        assert_eq!(keys["keys"][0]["rate_limit"], "5/minute", "{keys}");
    }
    // The role that `key create` runs, at a site that is not the primary.
    let (code, made) = sites.keys_role("tertiary", &json!({ "do": "create", "name": "ci" }));
    assert_eq!(code, Some(0), "{made}");
    let id = made["public_id"].as_str().unwrap().to_owned();
    for site in NAMES {
        assert!(sites.keys_in_database(site).contains(&id), "whoever is told of a key may use it anywhere at once");
    }
    let (_, revoked) = sites.keys_role("secondary", &json!({ "do": "revoke", "public_id": id }));
    assert_eq!((&revoked["found"], &revoked["revoked"]), (&json!(true), &json!(true)));
    until(LONG, || {
        let (_, keys) = sites.keys_role("primary", &json!({ "do": "list" }));
        keys["keys"].as_array().unwrap().iter().any(|key| key["public_id"] == id && !key["revoked_at"].is_null())
    });
    // The same for feature flags.
    let wanted = json!({ "do": "set", "feature": "beta", "enabled": true, "percent": 20 });
    let (code, set) = sites.role("tertiary", "features", &wanted);
    assert_eq!((code, &set["percent"], &set["source"]), (Some(0), &json!(20), &json!("operator")), "{set}");
    let flags = |site: &str| sites.role(site, "features", &json!({ "do": "list" })).1["data"].clone();
    for site in NAMES {
        until(LONG, || flags(site)[0] == set);
    }
    let (_, cleared) = sites.role("secondary", "features", &json!({ "do": "clear", "feature": "beta" }));
    assert_eq!((&cleared["cleared"], &cleared["flag"]), (&json!(true), &Value::Null), "{cleared}");
    for site in NAMES {
        until(LONG, || flags(site) == json!([]));
    }
    // Every site's signing key is known everywhere.
    until(LONG, || sites.table("tertiary", "verifier/").len() == 3);
    let status = sites.status("primary");
    assert_eq!(
        (&status["role"], &status["writable"], &status["lagging"]),
        (&json!("primary"), &json!(true), &json!([]))
    );
    let metrics = sites.metrics("primary");
    for line in
        ["textnlp_control_primary{site=\"primary\"} 1", "textnlp_rpo_seconds{site=\"primary\",data=\"control\"} 0"]
    {
        assert!(metrics.contains(line), "{metrics}");
    }
}

#[test]
fn invalid_control_requests_are_refused_without_effect() {
    let sites = Sites::start();
    sites.until_all_are_members();
    for (writes, code) in [
        (json!([]), "too_much"),
        (json!([{ "key": "", "value": 1 }]), "bad_key"),
        (json!([{ "key": "a\nb", "value": 1 }]), "bad_key"),
        (json!([{ "key": "k", "value": "x".repeat(2_000_000) }]), "too_much"),
    ] {
        let (status, answer) = sites.write("primary", writes, 1000);
        assert!(status == 400 && answer["error"]["code"] == code, "{status} {answer}");
    }
    for (path, body) in [
        ("/v1/messages", "{}"),
        ("/v1/messages", "no JSON"),
        ("/v1/messages", r#"{"from":"witness","messages":[{"is":"holds","configuration":{"epoch":9}}]}"#),
        ("/v1/handover", r#"{"to":"nobody"}"#),
        ("/v1/handover", r#"{"to":"primary"}"#),
        ("/v1/usage", r#"{"site":"stranger","rows":[]}"#),
        ("/v1/usage/ids", r#"{"request_ids":[1]}"#),
        ("/v1/counters", r#"{"holder":"a","reservation":{"units":-1}}"#),
    ] {
        let (status, answer) = sites.post("primary", path, body);
        assert!((400..500).contains(&status), "{path} {body}: {status} {answer}");
    }
    let rate = "5/hour".parse().unwrap();
    let lease = |subject: String, units| {
        let of = Reservation { unit: Unit::Requests, subject, key_limit: None, token: None, rate: Some(rate), units };
        json!(Lease::default().request(&of)).to_string()
    };
    for (body, status) in
        [(lease("k".repeat(201), 1), 400), (lease("k".to_owned(), u64::MAX), 400), (lease("k".repeat(9000), 1), 413)]
    {
        for at in NAMES {
            assert_eq!(sites.post(at, "/v1/counters", &body).0, status, "{at} {body:.200}");
        }
    }
    let (status, answer) = sites.post("secondary", "/v1/handover", r#"{"to":"tertiary"}"#);
    assert!(status == 409 && answer["error"]["message"].as_str().unwrap().contains("not the primary"), "{answer}");
    assert_eq!(put(&sites, "primary", 1).0, 200);
}

#[test]
fn killed_primary_is_replaced_and_returns_with_an_empty_disk() {
    let mut sites = Sites::start();
    sites.until_all_are_members();
    let mut acknowledged = BTreeSet::new();
    for number in 0..20 {
        assert_eq!(put(&sites, "primary", number).0, 200);
        acknowledged.insert(format!("{number:016}"));
    }
    sites.use_up("primary", &["r1"]);
    sites.use_up("secondary", &["r2"]);
    let usage = |at: &str| sites.post(at, "/v1/usage/ids", r#"{"request_ids":["r1","r2"]}"#).1["known"].clone();
    until(LONG, || usage("secondary") == json!(["r1", "r2"]) && usage("primary") == json!(["r1", "r2"]));
    sites.kill("primary");
    sites.lose_disk("primary");
    let gone = Instant::now();
    // A write that waits through the failover is acknowledged by whoever takes over.
    let (status, answer) = put(&sites, "tertiary", 20);
    assert_eq!(status, 200, "{answer}");
    acknowledged.insert(format!("{:016}", 20));
    eprintln!("a write was acknowledged {} ms after the kill", gone.elapsed().as_millis());
    let next = sites.next_primary();
    assert_eq!(sites.status(next)["members"], json!(["secondary", "tertiary"]));
    until(LONG, || sites.keys_in_database(next) == acknowledged);
    sites.run("primary");
    // It catches up, is a member again, and the home site gets its place back without anybody saying so.
    until(LONG, || sites.status("primary")["role"] == "primary");
    until(LONG, || sites.keys_in_database("primary") == acknowledged);
    sites.until_all_are_members();
    // Usage that it made itself, and that of others, comes back from them.
    let known = || sites.post("primary", "/v1/usage/ids", r#"{"request_ids":["r1","r2"]}"#).1["known"].clone();
    until(LONG, || known() == json!(["r1", "r2"]));
    assert_eq!(put(&sites, "secondary", 21).0, 200);
    let history = sites.witness_status()["history"].as_array().unwrap().clone();
    assert!(history.is_sorted_by(|one, other| one["epoch"].as_u64() < other["epoch"].as_u64()), "{history:?}");
    let mut primaries: Vec<&str> = history.iter().map(|h| h["primary"].as_str().unwrap()).collect();
    primaries.dedup();
    // A site that is stopped for a grace period loses the role: that may happen between, and never at the ends.
    let is_home = |site: Option<&&str>| site == Some(&"primary");
    assert!(is_home(primaries.first()) && is_home(primaries.last()) && primaries.contains(&next), "{history:?}");
}

#[test]
fn frozen_primary_cannot_write_after_it_wakes_up() {
    let sites = Sites::start();
    sites.until_all_are_members();
    assert_eq!(put(&sites, "primary", 1).0, 200);
    sites.signal("primary", "-STOP");
    let next = sites.next_primary();
    let (status, answer) = put(&sites, next, 2);
    assert_eq!(status, 200, "{answer}");
    sites.signal("primary", "-CONT");
    // What it believed a moment ago is worth nothing; its clock went on.
    let (status, answer) = sites.write("primary", json!([{ "key": "k", "value": 1 }]), 1);
    assert!(status != 200 || answer["epoch"] != 1, "{answer}");
    until(LONG, || sites.status("primary")["role"] == "primary");
    until(LONG, || sites.keys_in_database("primary").len() == 2);
}

#[test]
fn writes_need_the_witness_or_another_site() {
    let mut sites = Sites::start();
    sites.until_all_are_members();
    sites.kill("witness");
    // Its last answer has no effect any more.
    until(LONG, || sites.status("primary")["witness_heard_ms"].as_u64().is_some_and(|ms| ms > GRACE_MS));
    assert_eq!(put(&sites, "primary", 1).0, 200, "{}", sites.status("primary"));
    sites.kill("secondary");
    sites.kill("tertiary");
    until(LONG, || sites.status("primary")["writable"] == false);
    let (status, answer) = sites.write("primary", json!([{ "key": "k", "value": 1 }]), 500);
    assert!(status == 503 && answer["error"]["code"] == "read_only", "{status} {answer}");
    assert_eq!(sites.status("primary")["writable"], false);
    for site in ["witness", "secondary", "tertiary"] {
        sites.run(site);
    }
    until(LONG, || put(&sites, "primary", 2).0 == 200);
}

#[test]
fn primary_role_is_handed_over_and_claimed_manually() {
    let mut sites = Sites::start_with("automatic: false, failback: false");
    sites.until_all_are_members();
    assert_eq!(put(&sites, "primary", 1).0, 200);
    let (status, answer) = sites.post("primary", "/v1/handover?hold=true", r#"{"to":"secondary"}"#);
    assert_eq!((status, &answer["primary"], &answer["held"]), (200, &json!("secondary"), &json!(true)), "{answer}");
    assert_eq!(sites.witness_status()["held"], true);
    assert_eq!(put(&sites, "primary", 2).0, 200);
    let (status, answer) = sites.post("tertiary", "/v1/claim", "{}");
    assert!(status == 409, "the primary lives: {answer}");
    sites.kill("secondary");
    // Long enough that the witness would have granted the role to a site that asks for it.
    until(LONG, || {
        let status = sites.witness_status();
        status["primary"] != "secondary" || status["renewed_ms"].as_u64().is_some_and(|ms| ms > 2 * GRACE_MS)
    });
    assert_eq!(sites.witness_status()["primary"], "secondary", "nobody was told to take over");
    assert_ne!(sites.status("primary")["role"], "primary", "nobody was told to");
    let (status, answer) = sites.post("tertiary", "/v1/claim", "{}");
    assert_eq!((status, &answer["role"]), (200, &json!("primary")), "{answer}");
    assert_eq!(put(&sites, "primary", 3).0, 200);
    until(LONG, || sites.keys_in_database("tertiary").len() == 3);
}

#[test]
fn usage_of_every_site_is_visible_at_every_site() {
    let sites = Sites::start();
    sites.until_all_are_members();
    sites.use_up("primary", &["r1", "r2"]);
    sites.use_up("secondary", &["r3"]);
    for site in NAMES {
        until(LONG, || {
            let (_, answer) = sites.post(site, "/v1/usage/ids", r#"{"request_ids":["r1","r2","r3","r4"]}"#);
            answer["known"] == json!(["r1", "r2", "r3"])
        });
    }
    until(LONG, || sites.status("primary")["rpo_ms"]["usage"] == 0);
}

/// Takes one unit as a replica of the site does.
fn take(sites: &Sites, at: &str, lease: &mut Lease, of: &Reservation) -> bool {
    take_and_report(sites, at, lease, of).0
}

/// The same, and whether the site granted it from its own share, because the primary did not answer.
fn take_and_report(sites: &Sites, at: &str, lease: &mut Lease, of: &Reservation) -> (bool, bool) {
    if let Some(taken) = lease.take(of.units, now_ms()) {
        return (taken.is_ok(), false);
    }
    let request = lease.request(of);
    let (status, answer) = sites.post(at, "/v1/counters", &json!(request).to_string());
    assert_eq!(status, 200, "{at}: {answer}");
    let apart = answer["apart"] == true;
    let taken = lease.apply(&request, serde_json::from_value(answer).unwrap(), of.units, now_ms()).unwrap().is_ok();
    (taken, taken && apart)
}

/// Waits until a site's limits are counted by the primary.
fn until_counted_together(sites: &Sites, at: &str, of: &Reservation) {
    until(LONG, || {
        let (status, answer) = sites.post(at, "/v1/counters", &json!(Lease::default().request(of)).to_string());
        status == 200 && answer["apart"] == false
    });
}

#[test]
fn limits_are_counted_once_over_three_sites_and_by_the_next_primary() {
    let mut sites = Sites::start_with("automatic: true, failback: false");
    sites.until_all_are_members();
    let of = Reservation {
        unit: Unit::Requests,
        subject: "0123456789abcdef".to_owned(),
        key_limit: Some(1000),
        token: None,
        rate: Some("5/hour".parse().unwrap()),
        units: 1,
    };
    // Until the primary may grant leases, each site counts apart.
    let first = Reservation { subject: "1111111111111111".to_owned(), ..of.clone() };
    for at in NAMES {
        until_counted_together(&sites, at, &first);
    }
    let mut leases = NAMES.map(|_| Lease::default());
    let (mut given, mut given_apart) = (0, 0);
    for _ in 0..6 {
        for (at, lease) in NAMES.iter().zip(&mut leases) {
            let (taken, apart) = take_and_report(&sites, at, lease, &of);
            given += u32::from(taken);
            given_apart += u32::from(apart);
        }
    }
    // Where a busy machine makes a site believe that the primary is away, it has its share of one.
    assert!((5..=5 + given_apart).contains(&given) && given_apart <= 6, "{given}, {given_apart} of them apart");
    // A rate and a budget of each key.
    for site in NAMES {
        until(LONG, || sites.counters(site).len() == 4);
    }
    sites.kill("primary");
    let next = sites.next_primary();
    let other = if next == "secondary" { "tertiary" } else { "secondary" };
    for site in [next, other] {
        until_counted_together(&sites, site, &first);
        assert!(!take(&sites, site, &mut Lease::default(), &of), "{site} knows what was counted");
    }
    let another = Reservation { subject: "fedcba9876543210".to_owned(), ..of };
    until(LONG, || {
        take(&sites, other, &mut Lease::default(), &another);
        sites.counters(next).len() == 6
    });
    let (status, answer) =
        sites.post(other, "/v1/counters?forwarded=1", &json!(Lease::default().request(&another)).to_string());
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("not_primary")), "{answer}");
}
