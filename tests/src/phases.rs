//! A release on its way through the phases: what tests on a machine and in a cluster share.

use serde_json::{Value, json};

use crate::{Said, in_days};

/// The price of the machine of a site, or of the nodes of its cluster.
pub fn machine_price(site: &str, watts: u32) -> String {
    format!(
        "budget: {{ machines: {{ {site}: {{ watts: {watts}, price_per_kwh: 0.2, purchase_price: 0, depreciation_months: 1 }} }} }}\n"
    )
}

/// What an operator of phase enterprise writes: a model of a tenant, usage analytics, and the identity provider, whose secret is in the
/// variable `SIGN_ON_SECRET`.
pub fn tenant_settings(issuer: &str) -> String {
    format!(
        "models: [ {{ name: textnlp-tiny, source: bundled, role: default, quantize: q8_0, context: 1024, preload: true }}, \
         {{ name: writer, tenant: acme, source: bundled, quantize: q8_0, context: 1024 }} ]\n\
         server: {{ analytics: {{ enabled: true }}, security: {{ oidc: {{ issuer: \"{issuer}\", audience: \"urn:textnlp\", roles_claim: access.roles, \
         roles: {{ writers: [models] }} }} }} }}\n\
         gates: {{ sign_on_client: writer, sign_on_secret: \"secret:env:SIGN_ON_SECRET\" }}\n"
    )
}

/// The variable that [`tenant_settings`] names.
pub const SIGN_ON_SECRET: (&str, &str) = ("SIGN_ON_SECRET", "secret of writer");

/// Measures a gate and waives what cannot be measured there, which must be all that blocks. Returns the open gate. `run` adds the
/// environment and `-o json`.
pub fn open_gate(run: &dyn Fn(&[&str]) -> Said, waived: &[&str], reason: &str) -> Value {
    let gate = ["gate", "--again"];
    let found = run(&gate).expect(if waived.is_empty() { 0 } else { 3 }).json();
    let checks = found["gate"]["checks"].as_array().expect("a gate has checks").iter();
    let blocking: Vec<&str> =
        checks.filter(|check| check["ok"] != true).filter_map(|check| check["name"].as_str()).collect();
    assert_eq!(blocking, waived, "{found:#}");
    let open = if waived.is_empty() {
        found
    } else {
        let until = in_days(30);
        let mut waive = gate.to_vec();
        waive.extend(waived.iter().flat_map(|check| ["--waive", check]));
        waive.extend(["--until", &until, "--reason", reason]);
        run(&waive).expect(0).json()
    };
    assert_eq!(open["gate"]["state"], "open", "{open:#}");
    open["gate"].clone()
}

/// A check of a gate.
pub fn check<'g>(gate: &'g Value, name: &str) -> &'g Value {
    let mut checks = gate["checks"].as_array().into_iter().flatten();
    checks.find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check `{name}`: {gate:#}"))
}

/// Asserts what an open gate measured: the failover of pilot, the tenants of enterprise, and of optimized that 40 % of the watts of
/// [`machine_price`] are saved.
pub fn assert_measured(phase: &str, gate: &Value) {
    let measured = |name: &str| &check(gate, name)["measured"];
    match phase {
        "pilot" => assert_eq!(measured("database failover"), &json!(0)),
        "enterprise" => {
            assert_eq!(measured("tenant isolation"), &json!(0));
            assert_eq!(measured("custom model"), &json!("a text"));
            assert_eq!(measured("single sign-on"), &json!("accepted"));
            assert!(measured("analytics").as_u64() >= Some(1), "{gate:#}");
        }
        "optimized" => assert_eq!(measured("cost reduction"), &json!(40.0)),
        _ => {}
    }
    if ["pilot", "optimized"].contains(&phase) {
        let note = check(gate, "availability")["note"].as_str().unwrap_or_default();
        assert!(note.starts_with("over 5s instead of "), "{note}");
    }
}

/// Asserts that a gate measured the servers themselves, by their metrics.
pub fn assert_servers_measured(gate: &Value) {
    for name in ["model load time", "memory of a server"] {
        assert!(check(gate, name)["measured"].as_f64() > Some(0.0), "{name}: {gate:#}");
    }
}

/// Promotes a release, which must be the one that was promoted before. Returns it.
pub fn promote(run: &dyn Fn(&[&str]) -> Said, from: &str, to: &str, before: &Value) -> Value {
    let promoted = run(&["promote", "--from", from, "--to", to, "-o", "json"]).expect(0).json();
    let release = &promoted["release"];
    let is_same = ["server", "images"].into_iter().all(|part| before[part] == release[part]);
    assert!(before.is_null() || is_same, "it is one release: {promoted:#}");
    release.clone()
}
