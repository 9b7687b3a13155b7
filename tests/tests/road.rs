//! The road that every newcomer travels: check, plan, up, talk, look, down. The real program, as an operator types it.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::io::Write;
use std::process::{Command, Stdio};

use camino::Utf8Path;
use serde_json::Value;
use textnlp_tests::{Said, Sandbox, UP_KEYS, advisories, counts, eventually, has, http, in_days, program, said, today};

/// A gate that is over in seconds and that any machine opens: what it measures is told elsewhere, here it is travelled.
const SMALL_GATE: [&str; 6] = ["--set", "gates.users=3", "--set", "gates.hold=1s", "--set", "gates.p95_ms=60000"];

const PHASES: (&str, &str) = ("tests/tests/cluster/all_phases.rs", "one_release_is_promoted_from_pilot_to_optimized");
const CLOUDS: (&str, &str) =
    ("tests/sim/tests/road/clouds.rs", "three_clouds_serve_as_one_survive_the_loss_of_the_first_and_are_removed");
const REGIONS: (&str, &str) =
    ("tests/tests/regions/main.rs", "site_failure_of_every_kind_is_failed_over_and_recovered");

/// The story of each shipped environment, in which it or one that extends it is up: the file and the name of a test.
const STORIES: [(&str, (&str, &str)); 9] = [
    ("air-gapped", ("tests/tests/air_gap/road.rs", "bundle_is_created_verified_installed_and_taken_down")),
    ("development", ("tests/tests/road.rs", "development_answers_over_http_without_a_key")),
    ("enterprise", PHASES),
    ("multi-region", REGIONS),
    ("multi-region-clouds", CLOUDS),
    ("optimized", PHASES),
    ("pilot", PHASES),
    ("scale-up", PHASES),
    ("staging", ("tests/tests/road.rs", "staging_runs_from_the_first_plan_to_the_last_down")),
];

fn with_gate<'a>(args: &[&'a str]) -> Vec<&'a str> {
    args.iter().copied().chain(SMALL_GATE).collect()
}

fn typed(sandbox: &Sandbox, args: &[&str], input: &str) -> Said {
    let mut child = sandbox
        .command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start the program");
    child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("type");
    said(child.wait_with_output().expect("wait for the program"))
}

#[test]
fn every_shipped_environment_has_a_story() {
    let root = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let files = root.join("environments").read_dir_utf8().unwrap().flatten();
    let names = files.filter_map(|file| file.file_name().strip_suffix(".yaml").map(str::to_owned));
    // What all of them extend is none.
    let mut shipped: Vec<String> = names.filter(|name| name != "base").collect();
    shipped.sort_unstable();
    assert_eq!(shipped, STORIES.map(|(name, _)| name), "write a story and name it here");
    for (name, (file, test)) in STORIES {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        assert!(text.contains(&format!("#[test]\nfn {test}() {{")), "{name}: {file} has no test {test}");
    }
}

#[test]
fn every_shipped_environment_passes_its_check() {
    let sandbox = Sandbox::new("check");
    let mut check = sandbox.command(&["env", "check", "-o", "json"]);
    let checked = said(check.env("DATABASE_URL", "postgres://db.example.com/texts").output().unwrap()).expect(0).json();
    let checked = checked["environments"].as_array().unwrap();
    let mut names: Vec<&str> = checked.iter().map(|one| one["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, STORIES.map(|(name, _)| name));
    // What every cluster needs of its operator is said before any sign-in.
    for one in checked {
        let problems = one["problems"].as_array().unwrap().iter();
        let refused = problems.filter(|problem| problem["severity"] == "refusal");
        let mut refused: Vec<&str> = refused.map(|problem| problem["path"].as_str().unwrap()).collect();
        refused.sort_unstable();
        match one["name"].as_str().unwrap() {
            "multi-region-clouds" => assert!(refused.iter().any(|path| path.ends_with("server image")), "{refused:?}"),
            "pilot" | "scale-up" | "enterprise" | "optimized" => {
                assert_eq!(refused, ["main/gateway address", "main/server image"], "{}", one["name"]);
            }
            name => assert!(refused.is_empty(), "{name}: {refused:?}"),
        }
    }
    let listed = sandbox.run(&["env", "list"]).expect(0).out;
    let is_marked = |name: &str| listed.contains(&format!("\n· {name} "));
    assert!(is_marked("pilot") && !is_marked("staging"), "{listed}");
    let image = format!("sites[0].cluster.image=registry.example.com/textnlp:1@sha256:{}", "a".repeat(64));
    let pilot = ["env", "check", "--env", "pilot", "--set", "traffic.domain=text.example.com", "--set", image.as_str()];
    let complete = sandbox.run(&pilot).expect(0).out;
    assert!(complete.contains("pilot: valid\n"), "{complete}");
    assert!(sandbox.files(&sandbox.folder().join("state")).is_empty(), "a check writes nothing");
}

#[test]
fn shipped_environments_of_clusters_expand_without_a_cluster() {
    let sandbox = Sandbox::new("expand");
    let image = format!("sites[0].cluster.image=registry.example.com/textnlp:1@sha256:{}", "a".repeat(64));
    // The application firewall is one of an Ingress.
    let ingress = "sites[0].cluster.ingress={ class: nginx, issuer: letsencrypt }";
    for name in ["pilot", "scale-up", "enterprise"] {
        let out = sandbox.folder().join(name);
        let set = ["--set", &image, "--set", "traffic.domain=textnlp.example.com", "--set", ingress];
        let export = ["export", "kustomize", "--env", name, "--out", out.as_str()];
        sandbox.run(&[&export[..], &set].concat()).expect(0);
        assert!(out.join("kustomization.yaml").is_file(), "{name}");
    }
}

#[test]
fn staging_runs_from_the_first_plan_to_the_last_down() {
    let sandbox = Sandbox::new("staging");

    // Looking changes nothing.
    let plan = sandbox.run(&["plan", "--env", "staging"]).expect(0);
    assert!(plan.out.contains("+ here/server/replica-0") && plan.out.contains("to create"), "{}", plan.out);
    sandbox.run(&["plan", "--env", "staging", "--exit-code"]).expect(6);
    let planned = sandbox.run(&["plan", "--env", "staging", "-o", "json"]).expect(0).json();
    has(
        &planned,
        &[
            "format",
            "ok",
            "exit",
            "steps",
            "plan",
            "cost.monthly",
            "cost.currency",
            "cost.unknown",
            "permissions",
            "file",
        ],
    );
    let needs: Vec<_> =
        planned["permissions"].as_array().unwrap().iter().map(|p| p["permission"].as_str().unwrap()).collect();
    for needed in [
        "to write to the state folder".to_owned(),
        format!("to listen on 0.0.0.0:{}", sandbox.port),
        format!("to listen on 127.0.0.1:{}", sandbox.metrics_port),
        "to read the model bundled".to_owned(),
    ] {
        assert!(needs.contains(&needed.as_str()), "{needed} is not in {needs:?}");
    }
    assert!(planned["cost"]["monthly"].is_null(), "{planned:#}");
    assert!(planned["cost"]["note"].as_str().unwrap().contains("there are no prices"), "{planned:#}");
    assert!(sandbox.processes().is_empty());

    // Up: text from the model, then the gate's result.
    let up = sandbox.run(&with_gate(&["up", "--env", "staging", "--yes", "-o", "json"])).expect(0).json();
    has(&up, UP_KEYS);
    has(&up, &["text"]);
    assert_eq!(
        counts(&up),
        [planned["steps"].as_array().unwrap().len() as i64, 0, 0, 0, 0],
        "what was planned is done"
    );
    assert_eq!(up["gate"]["state"], "open", "{up:#}");
    assert!(!up["text"].as_str().unwrap().trim().is_empty());
    for check in up["gate"]["checks"].as_array().unwrap() {
        has(check, &["name", "measured", "limit", "unit", "ok"]);
    }
    assert!(std::fs::read_to_string(up["report"].as_str().unwrap()).unwrap().contains("<html"));

    // Up again plans nothing, and people read how to go on.
    sandbox.run(&["plan", "--env", "staging", "--exit-code"]).expect(0);
    let again = sandbox.run(&with_gate(&["up", "--env", "staging", "--yes"])).expect(0);
    assert!(again.err.contains("No changes"), "{}", again.err);
    assert!(again.out.contains("The staging gate is open"), "{}", again.out);
    assert!(again.out.contains(up["text"].as_str().unwrap().trim()), "the first text is the same for the same seed");
    pasted_curl_line_works(&sandbox, &again.out);

    let status = sandbox.run(&with_gate(&["status", "--env", "staging", "-o", "json"])).expect(0).json();
    has(&status, &["ready", "address", "gate", "sites", "resources", "drift"]);
    assert_eq!(status["ready"], true);
    assert_eq!((&status["address"], &status["sites"][0]["address"]), (&up["address"], &up["address"]), "{status:#}");
    let gate = &status["gate"];
    assert_eq!((&gate["phase"], &gate["state"], &gate["outdated"]), (&"staging".into(), &"open".into(), &Value::Null));
    assert_eq!(status["resources"].as_array().unwrap().len() as i64, counts(&up)[0]);
    // `health check` says the same of the gate: with these settings, and with others, of which it is not.
    for (flags, mark) in [(with_gate(&[]), "well"), (Vec::new(), "warning")] {
        let run = |words: &[&str]| sandbox.run(&[words, &["--env", "staging"], &flags[..]].concat());
        let health = run(&["health", "check", "--all", "-o", "json"]).json();
        let row = health["checks"].as_array().unwrap().iter().find(|row| row["name"] == "gate").unwrap();
        assert_eq!(row["mark"], mark, "{health:#}");
        let line = format!("gate    staging: {}", row["says"].as_str().unwrap());
        let status = run(&["status"]).out;
        assert!(status.contains(&line), "{line} in {status}");
    }
    let drift = sandbox.run(&["drift", "--env", "staging", "-o", "json"]).expect(0).json();
    assert_eq!(drift["drift"], serde_json::json!([]));

    let load = sandbox.run(&["load", "--users", "2", "--seconds", "1", "--ramp", "100", "-o", "json"]).expect(0).json();
    has(&load, &["requests", "errors", "p50_ms", "p95_ms", "p99_ms", "rps", "tokens_per_second", "report"]);
    assert!(load["requests"].as_u64().unwrap() > 0 && load["errors"] == 0, "{load:#}");
    let page = std::fs::read_to_string(load["report"].as_str().unwrap()).unwrap();
    assert!(page.contains("requests, with ramp-up") && page.contains("are of the time after the ramp-up"), "{page}");
    load_at_a_fixed_rate(&sandbox);

    // Down leaves nothing that it does not name.
    sandbox.run(&["plan", "--down", "--env", "staging"]).expect(0);
    let down = sandbox.run(&["down", "--env", "staging", "--yes", "-o", "json"]).expect(0).json();
    assert_eq!(counts(&down)[3], counts(&up)[0]);
    assert_eq!(down["retained"], serde_json::json!([]));
    nothing_runs(&sandbox, "staging");
    let second = sandbox.run(&["down", "--env", "staging", "--yes", "-o", "json"]).expect(0).json();
    assert_eq!(counts(&second), [0; 5]);
    sandbox.run(&["status", "--env", "staging"]).expect(0);
}

fn load_at_a_fixed_rate(sandbox: &Sandbox) {
    let pdf = sandbox.folder().join("load.pdf");
    let rate = ["--rate", "10", "--arrivals", "uniform", "--ramp", "1000", "--seconds", "1", "--pdf", pdf.as_str()];
    let mix = ["--mix", "3:generate:5,1:validate", "-o", "json"];
    let load = sandbox.run(&[&["load"][..], &rate, &mix].concat()).expect(0).json();
    has(&load, &["requests", "p50_ms", "p99_9_ms", "max_ms", "rate.send_lag.p99_ms", "rate.in_flight.max", "scaling"]);
    assert_eq!((load["requests"].as_u64(), load["errors"].as_u64()), (Some(11), Some(0)), "{load:#}");
    let rate = &load["rate"];
    assert_eq!((rate["dropped"].as_u64(), rate["sustained"].as_bool()), (Some(0), Some(true)), "{load:#}");
    assert_eq!(load["kinds"].as_array().unwrap().len(), 2, "{load:#}");
    assert!(std::fs::read(&pdf).unwrap().starts_with(b"%PDF-"));
    assert!(std::fs::read_to_string(load["report"].as_str().unwrap()).unwrap().contains("Latency by percentile"));
    // Every request would be for a model that the service lacks.
    let refused = sandbox.run(&["load", "--mix", "short-long", "--seconds", "1"]).expect(2);
    assert!(refused.err.contains("no model `gpt2`") && refused.err.contains("--mix 3:generate:50,1:generate:500"));
    let refused = sandbox.run(&["load", "--mix", "1:embed", "--seconds", "1"]).expect(2);
    assert!(refused.err.contains("has no model that makes embeddings"), "{}", refused.err);
}

#[test]
fn protected_data_survives_down_until_its_name_is_typed() {
    let sandbox = Sandbox::new("kept");
    let set = ["--env", "development", "--yes", "--set", "data=protected", "-o", "json"];
    let run = |verb: &[&str]| sandbox.run(&verb.iter().chain(&set).copied().collect::<Vec<_>>());
    run(&["up", "--no-gate"]).expect(0);
    let created = sandbox.run(&["key", "create", "before", "-o", "json"]).expect(0).json();
    let planned = sandbox.run(&["plan", "--down", "--env", "development", "--set", "data=protected"]).expect(0);
    assert!(planned.out.contains("kept: ") && !planned.out.contains("Cost"), "{}", planned.out);
    let refused = run(&["down", "--delete-dumps", "development"]).expect(4).json();
    assert!(refused.to_string().contains("no volume with dumps in a cluster"), "{refused:#}");
    assert!(!sandbox.processes().is_empty(), "nothing was removed");
    let down = run(&["down"]).expect(0).json();
    let retained: Vec<_> =
        down["retained"].as_array().unwrap().iter().map(|r| r["resource"].as_str().unwrap()).collect();
    assert!(retained.contains(&"here/database"), "{down:#}");
    assert!(sandbox.processes().is_empty(), "{:?}", sandbox.processes());
    assert!(sandbox.site("development").join("data/textnlp.db").exists());
    let kept = ["status", "--env", "development", "--set", "data=protected"];
    let status = sandbox.run(&[&kept[..], &["-o", "json"]].concat()).expect(0).json();
    assert_eq!((&status["ready"], &status["down"]), (&Value::Bool(false), &Value::Bool(true)), "{status:#}");
    assert!(sandbox.run(&kept).expect(0).out.starts_with("development: down; its data is kept"));
    // A disk that is not mounted: the next `up` would create an empty database.
    let (data, aside) = (sandbox.site("development").join("data"), sandbox.folder().join("aside"));
    std::fs::rename(&data, &aside).unwrap();
    let lost = sandbox.run(&kept).expect(1).out;
    assert!(lost.starts_with("development: down; data that was kept is gone"), "{lost}");
    assert!(lost.contains("backup list") && !lost.contains("To deploy it again"), "{lost}");
    std::fs::rename(&aside, &data).unwrap();

    // What was kept is used again.
    run(&["up", "--no-gate"]).expect(0);
    let keys = sandbox.run(&["key", "list", "-o", "json"]).expect(0).json();
    assert!(keys["keys"].as_array().unwrap().iter().any(|k| k["public_id"] == created["public_id"]), "{keys:#}");

    run(&["down"]).expect(0);
    let down = run(&["down", "--delete-data", "development"]).expect(0).json();
    assert_eq!(down["retained"], serde_json::json!([]));
    nothing_runs(&sandbox, "development");
}

#[test]
fn development_answers_over_http_without_a_key() {
    let sandbox = Sandbox::new("development");
    let up = sandbox.run(&with_gate(&["up", "--env", "development", "--yes", "-o", "json"])).expect(0).json();
    assert_eq!(up["address"], format!("http://127.0.0.1:{}", sandbox.port));
    assert_eq!(up["ca_file"], Value::Null);
    assert_eq!(up["gate"]["state"], "open");
    let body = serde_json::json!({ "prompt": "Once upon a time", "max_tokens": 8, "seed": 1 });
    let answer = http::post(sandbox.port, "/v1/generate", &body).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["usage"]["completion_tokens"], 8);
    let metrics = http::get(sandbox.metrics_port, "/metrics").unwrap();
    assert!(metrics.status == 200 && metrics.text().contains("# TYPE"), "{}", metrics.text());
    sandbox.run(&["down", "--env", "development", "--yes"]).expect(0);
    nothing_runs(&sandbox, "development");
    eventually("the port is free", || std::net::TcpListener::bind(("127.0.0.1", sandbox.port)).ok());
}

#[test]
fn changed_unsigned_and_earlier_evidence_is_refused_by_name() {
    let sandbox = Sandbox::new("evidence");
    sandbox.run(&["up", "--env", "development", "--yes"]).expect(0);
    let evidence = sandbox.state("development").join("evidence");
    let (file, signature) = (evidence.join("gate.json"), evidence.join("gate.json.minisig"));
    let gate = |more: &[&str]| sandbox.run(&[&["gate", "--env", "development"], more].concat()).expect(0);
    let is_reused = || gate(&[]).out.contains("evidence of ");
    assert!(is_reused());
    // Measured again, and said by name why.
    let refused = |why: &str| {
        let said = gate(&[]);
        assert!(said.err.contains(&format!("{file} is not verified: ")) && said.err.contains(why), "{}", said.err);
        assert!(!said.out.contains("evidence of "), "{}", said.out);
        assert!(is_reused(), "what was measured now counts");
    };
    let good = std::fs::read_to_string(&file).unwrap();
    let (before, behind) = good.split_once("\"checks\"").unwrap();
    std::fs::write(&file, format!("{before}\"checks\"{}", behind.replacen("200", "500", 1))).unwrap();
    refused("gate.json.minisig does not fit");
    std::fs::remove_file(&signature).unwrap();
    refused("gate.json.minisig");
    let earlier = [&file, &signature].map(|path| std::fs::read(path).unwrap());
    gate(&["--again"]);
    std::fs::write(&file, &earlier[0]).unwrap();
    std::fs::write(&signature, &earlier[1]).unwrap();
    refused("the journal names another file");
    // A key that was replaced is no sign of a forgery.
    sandbox.run(&["secret", "rotate", "report", "--env", "development", "--yes"]).expect(0);
    let status = sandbox.run(&["status", "--env", "development"]).out;
    assert!(status.contains("measure again: `textnlp-deploy gate --env development"), "{status}");
    refused("another key signed it than the current one");

    // Anybody verifies it without this deployment.
    let public = sandbox.state("development").join("dr/drill-report.pub");
    let verified = sandbox.run(&["dr", "verify-report", file.as_str(), "--key", public.as_str()]).expect(0);
    assert!(verified.out.contains("textnlp development gate of development"), "{}", verified.out);
    let history = sandbox.run(&["state", "history", "--env", "development"]).expect(0).out;
    assert!(history.contains("measured the development gate: open"), "{history}");

    // Its verdict is that of its checks, and it ends with what was measured.
    sandbox.run(&["down", "--env", "development", "--yes"]).expect(0);
    sandbox.up("development");
    let said = gate(&[]);
    assert!(said.err.contains("its resources may have changed since"), "{}", said.err);
    assert!(!said.out.contains("evidence of "), "{}", said.out);
}

#[test]
fn staging_gate_waits_for_current_advisories() {
    let sandbox = Sandbox::new("advisories");
    sandbox.up("staging");
    let folder = |name: &str, krate: &str, date: &str| {
        advisories(&sandbox.folder().join(name), krate, "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H", date)
    };
    let old = folder("old", "a-crate-that-nobody-has", "2025-06-01");
    let fresh = folder("fresh", "a-crate-that-nobody-has", &today());
    let flawed = folder("flawed", "tokio", &today());
    let gate = |database: &str, policy: &str, more: &[&str]| {
        let args = ["gate", "--env", "staging", "--advisories", database, "--set", policy, "-o", "json"];
        sandbox.run(&[&with_gate(&args)[..], more].concat())
    };
    let waits = gate(&old, "gates.advisories=wait", &[]).expect(3).json();
    assert_eq!(waits["gate"]["state"], "wait", "{waits:#}");
    let said = waits["error"].to_string();
    for word in ["known vulnerabilities: 0 found", "days old, the limit is 30", "gate --advisories https://"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(waits["gate"]["checks"].to_string().contains("p95"), "everything else is measured: {waits:#}");
    let accepted = gate(&old, "gates.advisories=warn", &["--reason", "no network until May"]).expect(0).json();
    assert_eq!(accepted["gate"]["state"], "open", "{accepted:#}");
    let history = sandbox.run(&["state", "history", "--env", "staging"]).expect(0).out;
    let line = history.lines().rfind(|line| line.contains("measured the staging gate: open")).expect("it is recorded");
    assert!(line.contains("no network until May"), "{line}");
    assert_eq!(gate(&fresh, "gates.advisories=wait", &[]).expect(0).json()["gate"]["state"], "open");
    let shut = gate(&flawed, "gates.advisories=warn", &[]).expect(3).json();
    assert_eq!(shut["gate"]["state"], "shut", "{shut:#}");
    assert!(shut["error"].to_string().contains("RUSTSEC-2025-9999 tokio"), "{shut:#}");

    // A waiver is named, bounded, has a reason, and is shown from then on.
    let waive = |check: &str, until: &str, more: &[&str]| {
        gate(&fresh, "gates.advisories=wait", &[&["--waive", check, "--until", until], more].concat())
    };
    let reason = ["--reason", "INC-7"];
    for (check, until, more, code, says) in [
        ("health", in_days(1), &reason[..], "unknown_check", "`metrics`"),
        ("metrics", in_days(1), &reason[..0], "no_reason", "--reason TEXT"),
        ("metrics", in_days(92), &reason[..], "invalid_date", "90 days later"),
        ("metrics", "2026-01-01".to_owned(), &reason[..], "invalid_date", "90 days later"),
    ] {
        let refused = waive(check, &until, more).expect(2).json();
        assert_eq!(refused["error"]["code"], code, "{refused:#}");
        assert!(refused["error"]["hint"].as_str().unwrap().contains(says), "{refused:#}");
    }
    let until = in_days(30);
    let waived = waive("metrics", &until, &reason).expect(0).json();
    let exemption = &waived["gate"]["exemptions"][0];
    assert_eq!((&exemption["check"], &exemption["reason"]), (&"metrics".into(), &"INC-7".into()), "{waived:#}");
    assert_eq!(waived["gate"]["exemptions"].as_array().unwrap().len(), 1, "what was refused is not recorded");
    let line = format!("check `metrics` of phase staging waived until {until}");
    let status = sandbox.run(&["status", "--env", "staging"]).expect(0).out;
    let history = sandbox.run(&["state", "history", "--env", "staging"]).expect(0).out;
    assert!(status.contains(&line) && status.contains("INC-7") && history.contains(&line), "{status}\n{history}");
}

#[test]
fn api_keys_grant_and_deny_access() {
    let sandbox = Sandbox::new("keys");
    sandbox.up("staging");
    let enters = |key: &str| sandbox.run(&["generate", "Once", "--max-tokens", "2", "--no-stream", "--api-key", key]);
    let first = sandbox.first_key("staging");
    enters(&first).expect(0);

    let made = sandbox.run(&["key", "create", "visitor", "--rate-limit", "2/hour", "-o", "json"]).expect(0).json();
    let (id, key) = (made["public_id"].as_str().unwrap().to_owned(), made["key"].as_str().unwrap().to_owned());
    enters(&key).expect(0);
    enters(&key).expect(0);
    let third = enters(&key).expect(1);
    assert!(third.err.contains("status 429"), "two an hour are two: {}", third.err);

    let rotated = sandbox.run(&["key", "rotate", &id]).expect(0);
    assert!(enters(&key).expect(1).err.contains("status 401"));
    let new = rotated.out.trim();
    assert_ne!(new, key);

    let listed = sandbox.run(&["key", "list", "-o", "json"]).expect(0);
    assert!(!listed.out.contains(&key) && !listed.out.contains(new), "a list shows no secrets");
    let person = sandbox.run(&["key", "list"]).expect(0).out;
    assert!(person.lines().any(|l| l.contains("visitor") && l.contains("active")), "{person}");

    let other = sandbox.run(&["key", "create", "other"]).expect(0).out.trim().to_owned();
    enters(&other).expect(0);
    let other_id = other.split('_').nth(1).unwrap();
    sandbox.run(&["key", "revoke", other_id]).expect(0);
    assert!(enters(&other).expect(1).err.contains("status 401"), "a revoked key is refused at once");
    let narrow = sandbox.run(&["key", "create", "narrow", "--scope", "tokenize", "--scope", "models"]).expect(0).out;
    let refused = enters(narrow.trim()).expect(1);
    assert!(refused.err.contains("status 403"), "a scope allows what it says and no more: {}", refused.err);
    assert!(sandbox.run(&["key", "list"]).expect(0).out.contains("tokenize,models"));
    sandbox.run(&["key", "create", "odd", "--scope", "everything"]).expect(2);

    let set = sandbox.run(&["feature", "set", "beta", "on", "--percent", "50", "-o", "json"]).expect(0).json();
    assert_eq!((&set["enabled"], &set["percent"], &set["source"]), (&true.into(), &50.into(), &"operator".into()));
    let off = sandbox.run(&["feature", "set", "beta", "off", "-o", "json"]).expect(0).json();
    assert_eq!((&off["enabled"], &off["percent"]), (&false.into(), &50.into()), "a rollback changes nothing else");
    let listed = sandbox.run(&["feature", "list"]).expect(0).out;
    assert!(listed.lines().any(|line| line.starts_with("beta") && line.contains("operator")), "{listed}");
    let nothing = sandbox.run(&["feature", "set", "sso", "on"]).expect(2);
    assert!(nothing.err.contains("single sign-on"), "a flag that nothing reads is refused: {}", nothing.err);
    sandbox.run(&["feature", "set", "new_model", "on", "--model", "unknown"]).expect(2);
    sandbox.run(&["feature", "clear", "beta"]).expect(0);
    sandbox.run(&["feature", "clear", "beta"]).expect(2);

    let audited = sandbox.run(&["audit", "export", "--since", "2020-01-01"]).expect(0).out;
    let events: Vec<serde_json::Value> = audited.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let keys = [("key.create", id.as_str()), ("key.rotate", &id), ("key.revoke", other_id)];
    for (action, object) in keys.into_iter().chain([("feature.set", "beta"), ("feature.clear", "beta")]) {
        let found = events.iter().find(|event| event["action"] == action && event["object"] == object);
        let event = found.unwrap_or_else(|| panic!("no {action} of {object}: {audited}"));
        assert_eq!((&event["actor_kind"], &event["outcome"]), (&"operator".into(), &"succeeded".into()));
    }
    let later = sandbox.run(&["audit", "export", "--since", "2999-01-01"]).expect(0).out;
    assert_eq!(later.trim(), "", "nothing has happened since then");
    let unknown = sandbox.run(&["key", "revoke", "0123456789abcdef"]).expect(2);
    assert!(unknown.err.contains("0123456789abcdef"), "a mistyped id must not look revoked: {}", unknown.err);

    for secret in [&first, &key, &new.to_owned(), &other] {
        let leaks: Vec<_> = sandbox
            .files(sandbox.folder())
            .into_iter()
            .filter(|f| !f.contains("/secrets/"))
            .filter(|f| contains(&std::fs::read(sandbox.folder().join(f)).unwrap_or_default(), secret.as_bytes()))
            .collect();
        assert!(leaks.is_empty(), "a key lies open in {leaks:?}");
    }
}

#[test]
fn cli_requests_and_status_commands_work_on_a_running_environment() {
    let sandbox = Sandbox::new("talk");
    let not_up = sandbox.run(&["generate", "Once upon a time", "--env", "staging"]).expect(2);
    assert!(not_up.err.contains("hint: textnlp-deploy up --env staging"), "{}", not_up.err);
    sandbox.up("staging");

    let generate = ["generate", "Once upon a time", "--max-tokens", "16", "--seed", "5"];
    let (once, twice) = (sandbox.run(&generate).expect(0), sandbox.run(&generate).expect(0));
    assert!(!once.out.trim().is_empty());
    assert_eq!(once.out, twice.out, "the same seed gives the same text");
    let whole = sandbox.run(&[&generate[..], &["--no-stream"]].concat()).expect(0);
    assert_eq!(once.out.trim_end(), whole.out.trim_end(), "streamed or not");
    let read = typed(&sandbox, &["generate", "-", "--max-tokens", "16", "--seed", "5"], "Once upon a time").expect(0);
    assert_eq!(read.out, once.out);
    let document = sandbox.run(&[&generate[..], &["-o", "json"]].concat()).expect(0).json();
    assert_eq!(document["usage"]["completion_tokens"], 16);

    let chat = typed(&sandbox, &["chat", "--max-tokens", "24", "--seed", "2", "-o", "json"], "hello\n\nwho are you?\n")
        .expect(0)
        .json();
    assert_eq!(chat["turns"], 2);
    let roles: Vec<_> = chat["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);

    let tokens = sandbox.run(&["tokenize", "Once upon a time"]).expect(0);
    assert!(tokens.out.trim_end().ends_with("tokens") && tokens.out.contains("Once"), "{}", tokens.out);
    let close = sandbox.run(&[
        "validate",
        "--reference",
        "the cat sat on the mat",
        "--candidate",
        "the cat sat on the mat",
        "-o",
        "json",
    ]);
    assert!((close.expect(0).json()["bleu"]["score"].as_f64().unwrap() - 100.0).abs() < 1e-9);
    let close = sandbox.run(&["validate", "--reference", "the cat sat", "--candidate", "the cat ran"]).expect(0);
    assert!(close.out.contains("BLEU") && close.out.contains("ROUGE-L") && !close.out.contains('{'), "{}", close.out);
    let health = sandbox.run(&["health"]).expect(0);
    assert!(health.out.contains("ok") && health.out.contains("ready"), "{}", health.out);

    let explained = sandbox.run(&["explain", "here/server/replica-0"]).expect(0);
    assert!(explained.out.contains("create here/server/replica-0 done"), "{}", explained.out);
    let logs = sandbox.run(&["logs"]).expect(0);
    assert!(logs.out.contains("server-0") && logs.out.contains("/v1/generate"), "{}", logs.out);
    sandbox.run(&["logs", "--site", "there"]).expect(2);
    sandbox.run(&["logs", "supervisor", "--site", "here"]).expect(0);
    assert!(sandbox.run(&["logs", "supervisor", "-n", "1"]).expect(0).out.lines().count() == 1);

    let release = sandbox.run(&["release", "show", "-o", "json"]).expect(0).json();
    assert_eq!(release["differences"], serde_json::json!([]), "{release:#}");
    sandbox.run(&["release", "set"]).expect(0);
    sandbox.run(&["plan", "--env", "staging", "--exit-code"]).expect(0);
}

fn nothing_runs(sandbox: &Sandbox, environment: &str) {
    assert!(sandbox.processes().is_empty(), "{:?}", sandbox.processes());
    let left = sandbox.files(&sandbox.state(environment).join("sites"));
    assert!(left.is_empty(), "down left {left:?}");
    // The report key stays with what it signed.
    let secrets = sandbox.files(&sandbox.state(environment).join("secrets"));
    assert!(secrets.iter().all(|f| [".lock", ".drill-report.key"].contains(&f.as_str())), "down left {secrets:?}");
}

fn pasted_curl_line_works(sandbox: &Sandbox, said: &str) {
    let line = said.lines().find_map(|l| l.trim().strip_prefix("try ")).expect("a line to try").trim();
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED: no curl here, so the printed line cannot be pasted: {line}");
        return;
    }
    let mut shell = Command::new("sh");
    shell
        .args(["-c", line])
        .current_dir(sandbox.folder())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let pasted = crate::said(shell.output().expect("start a shell")).expect(0);
    assert!(!pasted.json()["text"].as_str().unwrap_or_default().is_empty(), "{}", pasted.out);
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|w| w == needle)
}

#[test]
fn cli_prints_its_version_shell_completions_and_manual_pages() {
    assert!(program().exists());
    let sandbox = Sandbox::new("words");
    assert!(sandbox.run(&["--version"]).expect(0).out.contains(env!("CARGO_PKG_VERSION")));
    for shell in ["zsh", "fish"] {
        assert!(sandbox.run(&["completions", shell]).expect(0).out.contains("textnlp-deploy"), "{shell}");
    }
    let script = sandbox.folder().join("completions.bash");
    std::fs::write(&script, sandbox.run(&["completions", "bash"]).expect(0).out).unwrap();
    for (typed, wanted) in [("key", "rotate"), ("release history", "--state-dir"), ("up --output", "jsonl")] {
        let words: Vec<&str> = typed.split(' ').collect();
        let asks = format!(
            "source {script}; complete -p textnlp-deploy >&2; COMP_WORDS=(textnlp-deploy {typed} ''); COMP_CWORD={}; \
             _textnlp__deploy textnlp-deploy '' {}; echo \" ${{COMPREPLY[*]}} \"",
            words.len() + 1,
            words[words.len() - 1]
        );
        let answer = std::process::Command::new("bash").args(["--norc", "-c", &asks]).output().unwrap();
        let found = String::from_utf8_lossy(&answer.stdout).into_owned();
        assert!(found.contains(&format!(" {wanted} ")), "{typed}: {found}{}", String::from_utf8_lossy(&answer.stderr));
    }
    let page = sandbox.run(&["man"]).expect(0).out;
    assert!(page.starts_with(".TH \"TEXTNLP\\-DEPLOY\" "), "{page}");
    let written = sandbox.run(&["man", "--dir", "pages", "-o", "json"]).expect(0).json();
    let files = written["files"].as_array().unwrap();
    assert_eq!(files[0], "textnlp-deploy.1");
    assert_eq!(sandbox.files(&sandbox.folder().join("pages")).len(), files.len());
    let help = sandbox.run(&["--help"]).expect(0);
    assert!(help.out.contains("up --env staging"), "{}", help.out);
    sandbox.run(&[]).expect(2);
    let providers = sandbox.run(&["providers"]).expect(0);
    for name in ["onprem", "kubernetes", "aws", "gcp", "azure"] {
        assert!(providers.out.lines().any(|line| line.starts_with(&format!("{name} "))), "{name}: {}", providers.out);
    }
    let choice = |line: &&str| line.contains("database.kind") && line.contains("sqlite, postgres/external");
    assert!(providers.out.contains("onprem, process\n"), "{}", providers.out);
    assert_eq!(providers.out.lines().filter(choice).count(), 1, "{}", providers.out);
}
