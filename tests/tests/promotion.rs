//! One release on its way through all phases, as an operator takes it: the real program on this machine. What only a cluster or a month can
//! show is waived by its name, and nothing else.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use serde_json::Value;
use textnlp_tests::phases::{self, SIGN_ON_SECRET, machine_price};
use textnlp_tests::servers::{Server, oidc};
use textnlp_tests::{Sandbox, advisories, today};

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
    // All replicas share the cores of this machine, so that three are no faster than one. How much faster q8_0 is than f32 depends on the
    // processor, and on what else runs on it today.
    ("optimized", "best", &["more pods under load within", "metrics", "inference speed-up"]),
];

fn environments(sandbox: &Sandbox, provider: &Server) {
    let folder = sandbox.folder().join("environments");
    std::fs::create_dir(&folder).unwrap();
    let user = if rustix::process::geteuid().is_root() { ", user: root" } else { "" };
    let database = "data: protected\ndatabase: { kind: postgres, replicas: 1 }\n\
         backup: { enabled: true, every: 24h, keep: 30d }\n";
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
                "data: disposable\nbackup: {{ enabled: false }}\n{}{}",
                machine_price("here", 100),
                phases::tenant_settings(&provider.address)
            ),
        ),
        (
            "best",
            "optimized",
            format!(
                "data: disposable\nbackup: {{ enabled: false }}\ngates: {{ sessions: 20, availability_window: 5s }}\n{}",
                machine_price("here", 60)
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
        ("TEXTNLP_SET__gates__model_load_time", "60s".to_owned()),
        ("TEXTNLP_SET__gates__server_memory", "4GB".to_owned()),
        ("TEXTNLP_ADVISORIES", fresh),
        (SIGN_ON_SECRET.0, SIGN_ON_SECRET.1.to_owned()),
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
        let gate = phases::open_gate(&run_in, waived, "a test on one machine");
        phases::assert_measured(phase, &gate);
        if phase != "development" {
            phases::assert_servers_measured(&gate);
        }
        // The first `up` of no phase is an exemption: each release came from the phase before.
        assert_eq!(gate["exemptions"].as_array().map_or(0, Vec::len), waived.len(), "{gate:#}");
        eprintln!("{phase}: {:.1?}", began.elapsed());
        let history = run(&["state", "history", "--env", environment]).expect(0).out;
        let entered = format!("phase {phase} entered with release");
        assert_eq!(history.contains(&entered), index > 1, "{history}");
        for (_, target, _) in WALK.into_iter().skip(index + 2).filter(|_| index > 0) {
            let skips = run(&["promote", "--from", environment, "--to", target, "-o", "json"]).expect(4).json();
            assert_eq!(skips["error"]["code"], "phase_skipped", "{skips:#}");
        }
        if let Some((_, next, _)) = WALK.get(index + 1) {
            released = phases::promote(&run, environment, next, &released);
        }
        let mut down = vec!["down", "--env", environment, "--yes"];
        if phase == "pilot" {
            // As root its database is outside the sandbox.
            down.extend(["--delete-data", environment]);
        }
        run(&down).expect(0);
    }
}
