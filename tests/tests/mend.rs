//! What breaks by itself mends by itself; what somebody breaks is named by `status` and mended by `up`.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use textnlp_tests::{Sandbox, eventually, http};

const SERVER: &str = "bin/server serve";
const GATEWAY: &str = " gateway --config";
const SUPERVISOR: &str = "supervise --folder";

fn answers(sandbox: &Sandbox) -> Option<()> {
    let body = json!({ "prompt": "Once", "max_tokens": 2 });
    http::post(sandbox.port, "/v1/generate", &body).ok().filter(|a| a.status == 200).map(|_| ())
}

fn drifted(sandbox: &Sandbox, environment: &str) -> BTreeSet<String> {
    let drift = sandbox.run(&["drift", "--env", environment, "-o", "json"]).expect(0).json();
    let resources = drift["drift"].as_array().expect("a list");
    resources.iter().map(|d| d["resource"].as_str().expect("a name").to_owned()).collect()
}

fn set_of(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

#[test]
fn killed_server_and_gateway_are_restarted_automatically() {
    let sandbox = Sandbox::new("back");
    sandbox.up("development");
    for word in [SERVER, GATEWAY] {
        let old = sandbox.pid(word).expect("it runs");
        sandbox.kill(old);
        eventually("another process takes its place", || sandbox.pid(word).filter(|new| *new != old));
        eventually("the service answers again", || answers(&sandbox));
    }
    eventually("status is ready", || (sandbox.run(&["status", "--env", "development"]).exit == 0).then_some(()));
    assert!(drifted(&sandbox, "development").is_empty());
    let log = sandbox.run(&["logs", "supervisor"]).expect(0).out;
    assert!(log.contains("server-0") && log.contains("gateway"), "{log}");
}

#[test]
fn hint_of_status_repeats_the_flags_of_the_last_up() {
    let sandbox = Sandbox::new("hints");
    let changed = ["--env", "development", "--set", "server.api.timeout=200"];
    sandbox.run(&[&["up", "--yes", "--no-gate"], &changed[..]].concat()).expect(0);
    sandbox.kill(sandbox.pid(SUPERVISOR).expect("it runs"));
    let next = "textnlp-deploy up --env development --set server.api.timeout=200";
    for look in ["status", "doctor"] {
        let said = sandbox.run(&[look, "--env", "development"]).expect(1);
        assert!(said.out.contains(next), "{look}: {}", said.out);
    }
    let own = sandbox.run(&["status", "--env", "development", "--set", "server.api.timeout=300"]).expect(1);
    assert!(own.out.contains("up --env development --set server.api.timeout=300"), "{}", own.out);
    sandbox.run(&[&["up", "--yes", "--no-gate"], &changed[..]].concat()).expect(0);
    sandbox.run(&["down", "--env", "development", "--yes"]).expect(0);
    let down = sandbox.run(&["status", "--env", "development"]).expect(0);
    assert!(down.out.contains(next), "{}", down.out);
    let health = sandbox.run(&["health", "--env", "development"]).expect(2);
    assert!(health.err.contains(next), "{}", health.err);
}

#[test]
fn killed_supervisor_is_reported_and_replaced_without_stopping_programs() {
    let sandbox = Sandbox::new("alone");
    sandbox.up("development");
    let children = [sandbox.pid(SERVER), sandbox.pid(GATEWAY)];
    let old = sandbox.pid(SUPERVISOR).expect("it runs");
    sandbox.kill(old);
    let status = sandbox.run(&["status", "--env", "development"]).expect(1);
    let health = sandbox.run(&["health", "check", "--all", "--env", "development", "-o", "json"]).expect(1).json();
    assert_eq!((&health["ok"], &health["exit"]), (&false.into(), &1.into()), "{health:#}");
    let rows = health["checks"].as_array().unwrap();
    let row = |site: Option<&str>, name: &str| {
        let found = rows.iter().find(|row| row["site"].as_str() == site && row["name"] == name);
        found.unwrap_or_else(|| panic!("{name}: {health:#}"))["mark"].as_str().unwrap()
    };
    assert_eq!(row(Some("here"), "cluster"), "problem");
    assert_eq!((row(None, "endpoint"), row(None, "database")), ("well", "well"));
    for name in ["disk", "backup", "gate"] {
        row(None, name);
    }
    assert!(rows.iter().any(|row| row["name"].as_str().unwrap().starts_with("model ")), "{health:#}");
    let line = status.out.lines().find(|l| l.contains("here/cluster ")).expect("the supervisor has a line");
    assert!(line.contains("stopped"), "{line}");
    assert!(status.out.contains("To fix it: textnlp-deploy up --env development"), "{}", status.out);
    answers(&sandbox).expect("clients notice nothing");

    sandbox.up("development");
    assert_ne!(sandbox.pid(SUPERVISOR).expect("a new one"), old);
    assert_eq!([sandbox.pid(SERVER), sandbox.pid(GATEWAY)], children, "nobody was restarted for it");
    sandbox.run(&["status", "--env", "development"]).expect(0);
    let health = sandbox.run(&["health", "check", "--env", "development"]).expect(0);
    assert!(health.out.contains("No problems") && !health.out.contains("here/cluster"), "{}", health.out);
    // The new one does its work, on children that it did not start.
    let server = children[0].expect("it ran");
    sandbox.kill(server);
    eventually("another server", || sandbox.pid(SERVER).filter(|new| *new != server));
    eventually("the service answers again", || answers(&sandbox));
}

#[test]
fn up_restarts_everything_after_all_processes_were_killed() {
    let sandbox = Sandbox::new("reboot");
    sandbox.up("development");
    for word in [SUPERVISOR, SERVER, GATEWAY] {
        sandbox.kill(sandbox.pid(word).expect("it runs"));
    }
    sandbox.run(&["status", "--env", "development"]).expect(1);
    sandbox.up("development");
    answers(&sandbox).expect("an answer");
    sandbox.run(&["plan", "--env", "development", "--exit-code"]).expect(0);
}

/// What the status says while a killed server does not start again.
fn killed_server_fails(sandbox: &Sandbox, why: &str) {
    sandbox.kill(sandbox.pid(SERVER).expect("it runs"));
    eventually("the reason in the status", || {
        let status = sandbox.run(&["status", "--env", "development"]);
        (status.exit == 1 && status.out.contains(why)).then_some(())
    });
    assert!(answers(sandbox).is_none(), "it must not be served");
    eventually("the reason in the log", || {
        sandbox.run(&["logs", "server-0"]).expect(0).out.contains(why).then_some(())
    });
}

#[test]
fn changed_program_is_not_started_again() {
    use std::os::unix::fs::PermissionsExt;
    let sandbox = Sandbox::new("swapped");
    sandbox.up("development");
    let site = sandbox.site("development");
    let (program, other, ran) = (site.join("bin/server"), site.join("bin/other"), site.join("ran"));
    std::fs::write(&other, format!("#!/bin/sh\ntouch '{ran}'\nexec sleep 60\n")).unwrap();
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o755)).unwrap();
    // A running program cannot be written to, only replaced.
    std::fs::rename(&other, &program).unwrap();
    killed_server_fails(&sandbox, "was changed: it has sha256:");
    assert!(!ran.exists(), "neither the supervisor nor `status` may run it");
    sandbox.up("development");
    answers(&sandbox).expect("the recorded program answers");
}

#[test]
fn changed_model_is_not_loaded_again() {
    let sandbox = Sandbox::new("weights");
    sandbox.up("development");
    let weights = sandbox.site("development").join("models/textnlp-tiny/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    // A different weight, in a file that is still valid.
    let last = bytes.len() - 1;
    bytes[last] ^= 0x40;
    std::fs::remove_file(&weights).unwrap();
    std::fs::write(&weights, bytes).unwrap();
    killed_server_fails(&sandbox, "`model.safetensors` differs from textnlp-model.json");
    sandbox.up("development");
    answers(&sandbox).expect("the recorded model answers");
}

#[test]
fn lost_database_is_not_created_again_by_a_server() {
    let sandbox = Sandbox::new("lost");
    sandbox.up("development");
    let database = sandbox.site("development").join("data/textnlp.db");
    for ending in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{database}{ending}"));
    }
    killed_server_fails(&sandbox, "check that its disk is mounted");
    assert!(!database.exists(), "an empty one would hide the loss");
    let plan = sandbox.run(&["plan", "--env", "development"]).expect(0).out;
    let line = plan.lines().find(|line| line.contains("here/database ")).unwrap_or_default();
    assert!(line.contains("it is gone"), "{plan}");
    sandbox.up("development");
    answers(&sandbox).expect("it has an empty database");
}

#[test]
fn protected_database_that_is_lost_is_created_again_only_when_its_loss_is_typed() {
    let sandbox = Sandbox::new("unmounted");
    let up = |more: &[&str]| {
        let set = ["up", "--yes", "--no-gate", "--env", "development", "--set", "data=protected"];
        sandbox.run(&[&set[..], more].concat())
    };
    up(&[]).expect(0);
    // As a disk that is not mounted.
    let (data, aside) = (sandbox.site("development").join("data"), sandbox.folder().join("aside"));
    std::fs::rename(&data, &aside).unwrap();
    killed_server_fails(&sandbox, "check that its disk is mounted");
    let refused = up(&[]).expect(4).err;
    for words in ["here/database: it is gone", "check that its disk is mounted", "--accept-data-loss"] {
        assert!(refused.contains(words), "{words}: {refused}");
    }
    up(&["--accept-data-loss", "staging"]).expect(4);
    assert!(!data.join("textnlp.db").exists(), "an empty one would hide the loss");
    let _ = std::fs::remove_dir(&data);
    std::fs::rename(&aside, &data).unwrap();
    up(&[]).expect(0);
    answers(&sandbox).expect("it has its database again");
    std::fs::remove_dir_all(&data).unwrap();
    killed_server_fails(&sandbox, "check that its disk is mounted");
    up(&["--accept-data-loss", "development"]).expect(0);
    answers(&sandbox).expect("it has an empty database");
}

#[test]
fn down_ends_although_the_data_was_removed_by_hand() {
    let sandbox = Sandbox::new("removed");
    let set = ["--env", "development", "--set", "data=protected"];
    sandbox.run(&[&["up", "--yes", "--no-gate"][..], &set].concat()).expect(0);
    std::fs::remove_dir_all(sandbox.site("development").join("data")).unwrap();
    let plan = sandbox.run(&[&["plan", "--down"][..], &set].concat()).expect(0).out;
    assert!(plan.contains("here/database: it is gone, with the data in it"), "{plan}");
    sandbox.run(&[&["down", "--yes", "--delete-data", "development"][..], &set].concat()).expect(0);
    assert!(!sandbox.site("development").exists(), "nothing is left");
    // Releases were applied, and nothing is recorded any more: that is no damage.
    sandbox.run(&[&["status"][..], &set].concat()).expect(0);
}

/// No drift, and ready. The supervisor looks at certificates every two seconds, so its word may be that old.
fn whole_again(sandbox: &Sandbox, environment: &str) {
    eventually("up has mended everything", || drifted(sandbox, environment).is_empty().then_some(()));
    sandbox.run(&["status", "--env", environment]).expect(0);
}

/// What somebody does to a file of a site, and which resources that is about.
type Harm = (&'static str, fn(&camino::Utf8Path), &'static [&'static str]);

#[test]
fn damaged_files_are_reported_and_repaired() {
    let sandbox = Sandbox::new("harm");
    sandbox.up("staging");
    let site = sandbox.site("staging");
    let remove = |path: &camino::Utf8Path| std::fs::remove_file(path).expect("remove a file");
    let garble = |path: &camino::Utf8Path| std::fs::write(path, "garbage").expect("write a file");
    let flip = |path: &camino::Utf8Path| {
        let mut bytes = std::fs::read(path).expect("read a file");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(path, bytes).expect("write a file");
    };
    let harms: [Harm; 7] = [
        ("config/server-0.yaml", remove, &["here/server/config-0"]),
        ("config/gateway.yaml", garble, &["here/gateway/config"]),
        ("certs/server.pem", garble, &["here/certificate/leaf"]),
        ("certs/ca.pem", remove, &["here/certificate/authority"]),
        ("models/textnlp-tiny/model.safetensors", remove, &["here/models/textnlp-tiny"]),
        ("models/textnlp-tiny/tokenizer.json", flip, &["here/models/textnlp-tiny"]),
        ("units/server-0.json", remove, &["here/server/replica-0"]),
    ];
    for (file, harm, resources) in harms {
        harm(&site.join(file));
        let named = drifted(&sandbox, "staging");
        assert!(set_of(resources).is_subset(&named), "{file}: {named:?}");
        let status = sandbox.run(&["status", "--env", "staging"]);
        let drift = sandbox.run(&["drift", "--env", "staging", "--exit-code"]).expect(6).out;
        assert!(!drift.contains("degraded: content: "), "the line of the field says it: {drift}");
        for resource in resources {
            assert!(status.out.contains(&format!("drift {resource}")), "{file}: {}", status.out);
        }
        sandbox.up("staging");
        whole_again(&sandbox, "staging");
    }
    // All of it at once.
    for (file, harm, _) in harms.iter().filter(|(file, ..)| !file.ends_with("tokenizer.json")) {
        harm(&site.join(file));
    }
    sandbox.up("staging");
    whole_again(&sandbox, "staging");
    sandbox.run(&["generate", "Once", "--max-tokens", "2", "--env", "staging"]).expect(0);
    sandbox.run(&["plan", "--env", "staging", "--exit-code"]).expect(0);
}

#[test]
fn changed_setting_updates_in_place_exactly_as_planned() {
    let sandbox = Sandbox::new("change");
    sandbox.up("development");
    let (server, gateway) = (sandbox.pid(SERVER), sandbox.pid(GATEWAY));
    let change = ["--env", "development", "--set", "server.api.timeout=200"];
    let plan = sandbox.run(&[&["plan", "-o", "json"], &change[..]].concat()).expect(0).json();
    assert!(plan["plan"]["update"].as_i64() > Some(0), "{plan:#}");
    for word in ["create", "replace", "delete"] {
        assert_eq!(plan["plan"][word], 0, "{plan:#}");
    }
    let planned: BTreeSet<_> = steps(&plan).filter(|s| s["action"] == "update").map(name).collect();
    let possible: BTreeSet<_> = steps(&plan).filter(|s| s["action"] == "possible").map(name).collect();

    let up = sandbox.run(&[&["up", "--yes", "--no-gate", "-o", "json"], &change[..]].concat()).expect(0).json();
    let done: BTreeSet<_> = up["outcome"]["done"].as_array().expect("a list").iter().map(name).collect();
    assert!(planned.is_subset(&done), "planned {planned:?}, done {done:?}");
    assert!(done.is_subset(&planned.union(&possible).cloned().collect()), "nothing outside the plan: {done:?}");
    let config = std::fs::read_to_string(sandbox.site("development").join("config/server-0.yaml")).unwrap();
    assert!(config.contains("timeout: 200"), "{config}");
    assert_ne!(sandbox.pid(SERVER), server, "the server reads its configuration when it starts");
    assert_eq!(sandbox.pid(GATEWAY), gateway, "the gateway reads it again while it runs");
    sandbox.run(&[&["plan", "--exit-code"], &change[..]].concat()).expect(0);

    // Back again: the environment's own value is wanted now.
    sandbox.run(&["plan", "--env", "development", "--exit-code"]).expect(6);
    sandbox.up("development");
    sandbox.run(&["plan", "--env", "development", "--exit-code"]).expect(0);
}

fn steps(plan: &Value) -> impl Iterator<Item = &Value> {
    plan["steps"].as_array().expect("a list").iter()
}

fn name(step: &Value) -> String {
    step["resource"].as_str().or(step.as_str()).expect("a resource").to_owned()
}

#[test]
fn rolling_update_of_two_replicas_fails_no_request() {
    let sandbox = Sandbox::new("roll");
    let two = ["--env", "development", "--yes", "--no-gate", "--set", "scaling.min=2"];
    sandbox.run(&[&["up"], &two[..]].concat()).expect(0);
    let replicas = |word: &str| {
        let found = sandbox.processes().into_iter().filter(|(_, line)| line.contains(word));
        found.map(|(pid, _)| pid).collect::<BTreeSet<_>>()
    };
    let before = replicas(SERVER);
    assert_eq!(before.len(), 2);

    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let lost = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let (sandbox, stop, answered) = (&sandbox, &stop, &answered);
                scope.spawn(move || {
                    let mut lost = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        // Four clients ask 20 times a second in all.
                        std::thread::sleep(Duration::from_millis(200));
                        let body = json!({ "prompt": "Once upon a time", "max_tokens": 24, "seed": client });
                        match http::post(sandbox.port, "/v1/generate", &body) {
                            Ok(answer)
                                if answer.status == 200 && answer.json()["usage"]["completion_tokens"].is_u64() =>
                            {
                                answered.fetch_add(1, Ordering::Relaxed);
                            }
                            other => lost
                                .push(other.map_or_else(|e| e.to_string(), |a| format!("{} {}", a.status, a.text()))),
                        }
                    }
                    lost
                })
            })
            .collect();
        eventually("requests are answered", || (answered.load(Ordering::Relaxed) > 20).then_some(()));
        for timeout in ["server.api.timeout=200", "server.api.timeout=201"] {
            let roll = sandbox.run(&[&["up"], &two[..], &["--set", timeout]].concat());
            let seen = answered.load(Ordering::Relaxed);
            eventually("requests are still answered", || (answered.load(Ordering::Relaxed) > seen + 20).then_some(()));
            if roll.exit != 0 {
                stop.store(true, Ordering::Relaxed);
                let _ = roll.expect(0);
            }
        }
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|c| c.join().expect("a client")).collect::<Vec<_>>()
    });
    let after = replicas(SERVER);
    assert!(after.len() == 2 && after.is_disjoint(&before), "both were replaced: {before:?} {after:?}");
    assert!(
        lost.is_empty(),
        "{} of {} lost: {:?}",
        lost.len(),
        answered.load(Ordering::Relaxed),
        &lost[..lost.len().min(5)]
    );
}

#[test]
fn renewed_certificate_is_served_without_a_restart() {
    let sandbox = Sandbox::new("leaf");
    sandbox.up("staging");
    let gateway = sandbox.pid(GATEWAY);
    let leaf = sandbox.site("staging").join("certs/server.pem");
    let old = std::fs::read_to_string(&leaf).unwrap();
    std::fs::remove_file(&leaf).unwrap();
    sandbox.up("staging");
    assert_ne!(std::fs::read_to_string(&leaf).unwrap(), old);
    sandbox.run(&["health", "--env", "staging"]).expect(0);
    assert_eq!(sandbox.pid(GATEWAY), gateway);
}
