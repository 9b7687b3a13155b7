//! One release on its way through all phases, as an operator takes it: the real program on this machine. What only a cluster or a month can
//! show is waived by its name, and nothing else.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use serde_json::{Value, json};
use textnlp_tests::servers::{Server, oidc};
use textnlp_tests::{Sandbox, advisories, in_days, today};

#[path = "../../server/tests/support/postgres.rs"]
mod postgres;

/// The phases in their order, with the environment of each that takes part, and what its gate cannot measure on a machine.
const WALK: [(&str, &str, &[&str]); 6] = [
    ("development", "development", &[]),
    ("staging", "staging", &[]),
    ("pilot", "first", &[]),
    // The number of replicas is fixed here.
    ("scale-up", "wide", &["more pods under load within", "metrics"]),
    ("enterprise", "many", &[]),
    // No test depends on how fast a shared machine is today.
    ("optimized", "best", &["more pods under load within", "metrics", "inference speed-up"]),
];

fn environments(sandbox: &Sandbox, provider: &Server) {
    let folder = sandbox.folder().join("environments");
    std::fs::create_dir(&folder).unwrap();
    let user = if rustix::process::geteuid().is_root() { ", user: root" } else { "" };
    let database = "data: protected\ndatabase: { kind: postgres, replicas: 1 }\n\
         backup: { enabled: true, every: 24h, keep: 30d }\n";
    let watts = |watts: u32| {
        format!(
            "budget: {{ machines: {{ here: {{ watts: {watts}, price_per_kwh: 0.2, purchase_price: 0, depreciation_months: 1 }} }} }}\n"
        )
    };
    let own = [
        ("first", "pilot", format!("{database}gates: {{ availability_window: 5s }}\n")),
        // Neither as root nor without backups are all controls of a framework met.
        (
            "wide",
            "scale-up",
            "data: disposable\nbackup: { enabled: false }\ngates: { sessions: 20, compliance: [] }\n".to_owned(),
        ),
        (
            "many",
            "enterprise",
            format!(
                "data: disposable\nbackup: {{ enabled: false }}\n{}\
                 models: [ {{ name: textnlp-tiny, source: bundled, role: default, quantize: q8_0, context: 1024, preload: true }}, \
                 {{ name: writer, tenant: acme, source: bundled, quantize: q8_0, context: 1024 }} ]\n\
                 server: {{ analytics: {{ enabled: true }}, security: {{ oidc: {{ issuer: \"{}\", audience: \"urn:textnlp\", roles_claim: access.roles, \
                 roles: {{ writers: [models] }} }} }} }}\n\
                 gates: {{ sign_on_client: writer, sign_on_secret: \"secret:env:SIGN_ON_SECRET\" }}\n",
                watts(100),
                provider.address
            ),
        ),
        (
            "best",
            "optimized",
            format!(
                "data: disposable\nbackup: {{ enabled: false }}\ngates: {{ sessions: 20, availability_window: 5s }}\n{}",
                watts(60)
            ),
        ),
    ];
    for (name, phase, more) in own {
        let text = format!(
            "extends: staging\nenvironment: {name}\nphase: {phase}\nscaling: {{ min: 3 }}\n\
             prerequisites: {{ allow_below_minimum: true{user} }}\n{more}"
        );
        std::fs::write(folder.join(format!("{name}.yaml")), text).unwrap();
    }
}

/// The checks of an open gate, after what is not measurable was waived. What is waived must be needed, and wait for nothing else.
fn pass(run: &dyn Fn(&[&str]) -> textnlp_tests::Said, environment: &str, waived: &[&str]) -> Vec<Value> {
    let gate = ["gate", "--env", environment, "--again", "-o", "json"];
    let found = run(&gate).expect(if waived.is_empty() { 0 } else { 3 }).json();
    let checks = |document: &Value| document["gate"]["checks"].as_array().unwrap().clone();
    let blocking: Vec<String> = checks(&found)
        .iter()
        .filter(|check| check["ok"] != true)
        .map(|check| check["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(blocking, waived, "{environment}: {found:#}");
    let open = if waived.is_empty() {
        found
    } else {
        let until = in_days(30);
        let mut waive: Vec<&str> = gate.to_vec();
        waive.extend(waived.iter().flat_map(|check| ["--waive", check]));
        waive.extend(["--until", &until, "--reason", "a test on one machine"]);
        run(&waive).expect(0).json()
    };
    assert_eq!(open["gate"]["state"], "open", "{environment}: {open:#}");
    let listed = open["gate"]["exemptions"].as_array().map_or(0, Vec::len);
    // The first `up` of no phase is an exemption: each release came from the phase before.
    assert_eq!(listed, waived.len(), "{environment}: {open:#}");
    checks(&open)
}

#[test]
fn one_release_is_promoted_from_development_to_optimized() {
    if !postgres::is_installed() {
        return;
    }
    let Some(provider) = oidc(env!("CARGO_MANIFEST_DIR")) else { return };
    let mut sandbox = Sandbox::new("walk");
    let fresh = advisories(
        &sandbox.folder().join("fresh"),
        "unrelated",
        "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H",
        &today(),
    );
    sandbox.variables.extend([
        ("TEXTNLP_SET__gates__users", "3".to_owned()),
        ("TEXTNLP_SET__gates__hold", "1s".to_owned()),
        ("TEXTNLP_SET__gates__p95_ms", "60000".to_owned()),
        ("TEXTNLP_ADVISORIES", fresh),
        ("SIGN_ON_SECRET", "secret of writer".to_owned()),
    ]);
    environments(&sandbox, &provider);
    let run = |args: &[&str]| sandbox.run(args);
    let mut released = Value::Null;
    for (index, (phase, environment, waived)) in WALK.into_iter().enumerate() {
        let of = ["--env", environment, "-o", "json"];
        let run_in = |args: &[&str]| run(&[args, &of].concat());
        let began = std::time::Instant::now();
        let up = run_in(&["up", "--yes", "--no-gate"]).expect(0).json();
        assert_eq!(up["from_scratch"], false, "{environment}: {up:#}");
        match phase {
            "pilot" => {
                let failed_over = run_in(&["db", "failover", "--yes"]).expect(0).json();
                assert_eq!(failed_over["lost"], 0, "{failed_over:#}");
                run_in(&["backup", "create"]).expect(0);
                run_in(&["probe", "--every", "5s", "--for", "6s"]).expect(0);
            }
            "scale-up" => {
                run_in(&["load", "--sessions", "20", "--every", "1", "--seconds", "10"]).expect(0);
            }
            "enterprise" => {
                run_in(&["baseline", "record", "--only", "cost"]).expect(0);
            }
            "optimized" => {
                run_in(&["load", "--sessions", "20", "--every", "1", "--seconds", "10"]).expect(0);
                run_in(&["probe", "--every", "5s", "--for", "6s"]).expect(0);
            }
            _ => {}
        }
        let checks = pass(&run, environment, waived);
        let check = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap();
        match phase {
            "pilot" => assert_eq!(check("database failover")["measured"], 0),
            "enterprise" => {
                assert_eq!(check("tenant isolation")["measured"], 0);
                assert_eq!(check("custom model")["measured"], "a text");
                assert!(check("analytics")["measured"].as_u64().unwrap() >= 1, "{checks:#?}");
            }
            // 40 % of the watts are saved.
            "optimized" => assert_eq!(check("cost reduction")["measured"], json!(40.0)),
            _ => {}
        }
        if ["pilot", "optimized"].contains(&phase) {
            let note = check("availability")["note"].as_str().unwrap();
            assert!(note.starts_with("over 5s instead of "), "{note}");
        }
        eprintln!("{phase}: {:.1?}", began.elapsed());
        let history = run(&["state", "history", "--env", environment]).expect(0).out;
        let entered = format!("phase {phase} entered with release");
        assert_eq!(history.contains(&entered), index > 1, "{history}");
        for (_, target, _) in WALK.into_iter().skip(index + 2).filter(|_| index > 0) {
            let skips = run(&["promote", "--from", environment, "--to", target, "-o", "json"]).expect(4).json();
            assert_eq!(skips["error"]["code"], "phase_skipped", "{skips:#}");
        }
        if let Some((_, next, _)) = WALK.get(index + 1) {
            let promoted = run(&["promote", "--from", environment, "--to", next, "-o", "json"]).expect(0).json();
            let server = promoted["release"]["server"].clone();
            assert!(released.is_null() || released == server, "it is one release: {promoted:#}");
            released = server;
        }
        let mut down = vec!["down", "--env", environment, "--yes"];
        if phase == "pilot" {
            // As root its database is outside the sandbox.
            down.extend(["--delete-data", environment]);
        }
        run(&down).expect(0);
    }
}
