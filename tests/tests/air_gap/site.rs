//! An installed site belongs to two: its content to whoever sealed it, its settings to whoever runs it.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use textnlp_tests::{has, said};

use crate::stage::{Goods, NAME, Stage, advisories, advisories_of, names, tool};

/// Writes into an installed file, as somebody with the right to everything can.
fn alter(stage: &Stage, path: &str) {
    let path = stage.root().join("current").join(path);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode | 0o200)).unwrap();
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
fn altered_content_closes_the_gate_and_reinstalling_repairs_it() {
    let stage = Stage::new("altered");
    let advisories =
        advisories(&stage, "advisories", "a-crate-that-nobody-has", "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H");
    let create =
        ["bundle", "create", "--env", "air-gapped", "--no-server-image", "--out", "b.tar", "--advisories", &advisories];
    stage.run(&create).expect(0);
    stage.install("b.tar", &[]).expect(0);
    let gate = || stage.there(&["gate", "--env", "air-gapped", "--again", "-o", "json"]);
    gate().expect(0);
    for path in ["models/textnlp-tiny/model.safetensors", "configs/environments/air-gapped.yaml"] {
        alter(&stage, path);
        let shut = gate().expect(3).json();
        names(&shut["error"].to_string(), &["content as sealed", path]);
        let mended = stage.install("b.tar", &["--output", "json"]).expect(0).json();
        assert_eq!(mended["unchanged"], false, "{mended:#}");
        gate().expect(0);
    }
    // A file that is gone is as bad as one that is another.
    let gone = stage.root().join("current/sbom/model-textnlp-tiny.cdx.json");
    std::fs::remove_file(&gone).unwrap();
    names(&gate().expect(3).json()["error"].to_string(), &["content as sealed", "sbom/model-textnlp-tiny.cdx.json"]);
    stage.install("b.tar", &[]).expect(0);
    assert!(gone.exists());
    stage.there(&["down", "--env", "air-gapped", "--yes", "--delete-data", "air-gapped"]).expect(0);
    assert!(stage.sandbox.processes().is_empty());
}

#[test]
fn known_vulnerability_closes_the_gate_and_the_service_stays_up() {
    let stage = Stage::new("flaw");
    let advisories = advisories(&stage, "advisories", "tokio", "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H");
    let create =
        ["bundle", "create", "--env", "air-gapped", "--no-server-image", "--out", "b.tar", "--advisories", &advisories];
    stage.run(&create).expect(0);
    let shut = stage.install("b.tar", &["--output", "json"]).expect(3).json();
    assert_eq!(shut["error"]["code"], "gate_not_open", "{shut:#}");
    has(&shut, &["digest", "root", "lineage", "address", "key_file", "ca_file", "gate.checks"]);
    assert_eq!(shut["gate"]["state"], "shut");
    names(&shut["error"].to_string(), &["known vulnerabilities", "RUSTSEC-2025-9999"]);
    stage.there(&["generate", "Once", "--max-tokens", "2", "--no-stream"]).expect(0);

    // Without any advisories it is not checked: a warning where that is accepted, otherwise the gate does not open.
    let blind =
        stage.run(&["bundle", "create", "--env", "air-gapped", "--no-server-image", "--out", "blind.tar"]).expect(0);
    names(&blind.err, &["warning: ", "--advisories"]);
    let open = stage.install("blind.tar", &["--output", "json"]).expect(0).json();
    let about = |document: &serde_json::Value| -> Vec<serde_json::Value> {
        let checks = document["gate"]["checks"].as_array().unwrap().iter();
        checks.filter(|check| check["name"].as_str().unwrap().contains("vulnerabilities")).cloned().collect()
    };
    let [check] = &about(&open)[..] else { panic!("one line says one thing: {open:#}") };
    assert!(check["ok"] == true && check["warning"] == true && check["measured"] == "not checked", "{check:#}");
    names(check["note"].as_str().unwrap(), &["--advisories DIR", "the audit of the program found 0"]);
    let waits = stage.install("blind.tar", &["--output", "json", "--set", "gates.advisories=wait"]).expect(3).json();
    assert_eq!(waits["gate"]["state"], "wait", "{waits:#}");
    names(&waits["error"].to_string(), &["known vulnerabilities: not checked", "--advisories DIR", "--reason TEXT"]);
    let strict = stage
        .install(
            "blind.tar",
            &["--output", "json", "--set", "gates.advisories=block", "--set", "gates.advisories_max_age=36500d"],
        )
        .expect(3)
        .json();
    names(&strict["error"].to_string(), &["known vulnerabilities: not checked", "--advisories DIR"]);
    let text = stage.there(&["gate", "--env", "air-gapped", "--again"]).expect(0);
    names(&text.out, &["! known vulnerabilities", "not checked"]);

    // Old advisories are a warning that names their age, where they are accepted.
    let old = advisories_of(&stage, "old", "a-crate-that-nobody-has", "", "2025-06-01");
    let create =
        ["bundle", "create", "--env", "air-gapped", "--no-server-image", "--out", "old.tar", "--advisories", &old];
    names(&stage.run(&create).expect(0).out, &["advisories RustSec, newest of 2025-06-01"]);
    let verified = stage.run(&["bundle", "verify", "old.tar"]).expect(0);
    names(&verified.out, &["advisories RustSec, newest of 2025-06-01, ", " days old"]);
    names(&verified.err, &["warning: the advisories in old.tar are ", "the limit is 30"]);
    let scanned = stage.json(0, &["bundle", "scan", "old.tar"]);
    names(&scanned.to_string(), &["advisories-old", "The limit is 30 days"]);
    let young = stage.json(0, &["bundle", "scan", "old.tar", "--advisories-max-age", "36500"]);
    assert!(!young.to_string().contains("advisories-old"), "{young:#}");
    let open = stage.install("old.tar", &["--output", "json"]).expect(0).json();
    let [check] = &about(&open)[..] else { panic!("one line says one thing: {open:#}") };
    assert!(check["ok"] == true && check["warning"] == true && check["measured"] == 0, "{check:#}");
    names(check["note"].as_str().unwrap(), &["days old, the limit is 30; newer ones: "]);
    let waits = stage.install("old.tar", &["--output", "json", "--set", "gates.advisories=wait"]).expect(3).json();
    assert_eq!(waits["gate"]["state"], "wait", "{waits:#}");
    // A newer copy than the bundle's, brought to the site.
    let fresh = advisories_of(&stage, "fresh", "a-crate-that-nobody-has", "", &textnlp_tests::today());
    let newer = ["gate", "--env", "air-gapped", "--set", "gates.advisories=wait", "--advisories", &fresh, "-o", "json"];
    assert_eq!(stage.there(&newer).expect(0).json()["gate"]["state"], "open");
    let strict = ["--output", "json", "--set", "gates.advisories=block"];
    stage.install("old.tar", &strict).expect(3);
    let strict = [&strict[..], &["--set", "gates.advisories_max_age=36500d"]].concat();
    stage.install("old.tar", &strict).expect(0);
    stage.there(&["down", "--env", "air-gapped", "--yes", "--delete-data", "air-gapped"]).expect(0);
    assert!(stage.sandbox.processes().is_empty());
}

#[test]
fn create_uses_the_newest_advisories_found() {
    if !tool("git") {
        return;
    }
    let stage = Stage::new("found");
    let create = |more: &[&str], url: &str| {
        let base = ["bundle", "create", "--env", "air-gapped", "--no-server-image", "--out", "b.tar", "-o", "json"];
        let mut command = stage.command(&[&base[..], more].concat());
        command.env("TEXTNLP_ADVISORIES_URL", url);
        said(command.output().unwrap()).expect(0)
    };
    let date = |said: &textnlp_tests::Said| said.json()["advisories"][0]["date"].clone();
    // Where cargo-audit keeps its clone; the repository cannot be reached.
    let known = stage.sandbox.folder().join("home/.cargo/advisory-db");
    advisories_of(&stage, known.as_str(), "a-crate-that-nobody-has", "", "2025-06-01");
    // One in the working directory may be anybody's.
    advisories_of(&stage, "advisory-db", "a-crate-that-nobody-has", "", "2025-06-15");
    let local = create(&[], "http://127.0.0.1:1/advisory-db.git");
    assert_eq!(date(&local), "2025-06-01");
    names(&local.err, &["no advisories could be cloned from http://127.0.0.1:1/"]);

    let newer = advisories_of(&stage, "repository", "a-crate-that-nobody-has", "", "2025-07-01");
    let git = |args: &[&str]| {
        let who = ["-c", "user.name=a", "-c", "user.email=a@localhost", "-C", &newer];
        said(stage.other("git", &[&who[..], args].concat()).output().unwrap()).expect(0);
    };
    git(&["init", "--quiet"]);
    git(&["add", "."]);
    git(&["commit", "--quiet", "--message", "advisories"]);
    let url = format!("file://{newer}");
    assert_eq!(date(&create(&["--offline"], &url)), "2025-06-01", "offline clones nothing");
    assert_eq!(date(&create(&[], &url)), "2025-07-01");
    // The clone is kept for the next time.
    assert_eq!(date(&create(&["--offline"], "http://127.0.0.1:1/advisory-db.git")), "2025-07-01");
    // What was named is taken, whatever else there is.
    assert_eq!(date(&create(&["--advisories", "advisory-db"], &url)), "2025-06-15");
}

#[test]
fn custom_state_directory_is_used_by_later_commands() {
    let goods = Goods::get();
    let stage = Stage::new("state");
    let trust = ["--trust", goods.public.as_str()];
    let state = stage.sandbox.folder().join("elsewhere");
    let args = stage.install_args(&goods.first, &[&trust[..], &["--state-dir", state.as_str()]].concat());
    let mut command = stage.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
    // What is typed counts, also where the variable, which an installation ignores, has the same value.
    let installed = said(command.env("TEXTNLP_STATE_DIR", &state).output().unwrap()).expect(0);
    names(&installed.out, &[&format!("state      {state}")]);
    assert!(state.join(NAME).join("lineage.json").exists());
    stage.there(&["plan", "--env", NAME, "--exit-code"]).expect(0);
    // All of the site's environments, without the bundle's part of one.
    let checked = stage.there(&["env", "check"]).expect(0);
    names(&checked.out, &[&format!("{NAME}: valid")]);
    let listed = stage.there(&["env", "list"]).expect(0);
    for said in [checked, listed] {
        assert!(said.out.contains(NAME) && !said.out.contains(&format!("bundle-{NAME}")), "{}", said.out);
    }
    // An update finds it without the flag, and nobody makes a second deployment by naming another folder.
    stage.install(&goods.second, &trust).expect(0);
    let other = stage.sandbox.folder().join("other");
    let refused = stage.install(&goods.second, &[&trust[..], &["--state-dir", other.as_str()]].concat()).expect(2);
    names(&refused.err, &["keeps its state in", state.as_str()]);
    assert!(!other.exists());
    // The installed program finds its site from any folder.
    let mut status = stage.other(stage.root().join("bin/textnlp-deploy").as_str(), &["status", "--env", NAME]);
    let status = said(status.current_dir(stage.sandbox.folder().join("home")).output().unwrap()).expect(0);
    names(&status.out, &[&format!("{NAME}: ready")]);
    // A deployment that an earlier version made from a folder without environments does not disappear.
    let earlier = stage.sandbox.folder().join("home/.local/state/textnlp");
    std::fs::create_dir_all(earlier.join("development")).unwrap();
    std::fs::write(earlier.join("development/lineage.json"), "{}").unwrap();
    let status = stage.there(&["status", "--env", "development"]);
    names(&status.err, &["warning: development was deployed", &format!("--state-dir {earlier}")]);
    // From anywhere: with the state folder alone.
    let down = ["down", "--env", NAME, "--state-dir", state.as_str(), "--yes", "--delete-data", NAME];
    let mut command = stage.other(stage.root().join("bin/textnlp-deploy").as_str(), &down);
    said(command.current_dir(stage.root()).output().unwrap()).expect(0);
    assert!(stage.sandbox.processes().is_empty(), "{:?}", stage.sandbox.processes());
    let again = stage.there(&["down", "--env", NAME, "--yes"]).expect(0);
    names(&again.out, &[&format!("nothing of {NAME} is deployed here (state: "), "elsewhere/island)"]);
}

#[test]
fn site_settings_survive_bundles_and_ignore_shell_variables() {
    let goods = Goods::get();
    let stage = Stage::new("own");
    let trust = ["--trust", goods.public.as_str()];
    stage.install(&goods.first, &trust).expect(0);
    let own = stage.root().join("environments/island.yaml");
    let text = std::fs::read_to_string(&own).unwrap();
    names(&text, &["extends: bundle-island", &stage.sandbox.port.to_string(), "Edit this file"]);
    let mine = format!("{text}limits: {{}}\n").replace("limits: {}\n", "description: mine\n");
    std::fs::write(&own, &mine).unwrap();

    // Variables that mean another site change nothing here.
    let args = stage.install_args(&goods.second, &trust);
    let mut command = stage.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let elsewhere = stage.sandbox.folder().join("elsewhere");
    command.env("TEXTNLP_STATE_DIR", &elsewhere).env("TEXTNLP_SERVER", "/bin/false");
    said(command.output().unwrap()).expect(0);
    assert!(!elsewhere.exists());
    assert_eq!(std::fs::read_to_string(&own).unwrap(), mine);
    stage.is_well();
    let shown = stage.there(&["env", "show", "--env", NAME, "-o", "json"]).expect(0);
    names(&shown.out, &["mine", "777"]);
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(stage.root().join("installed.json")).unwrap()).unwrap();
    assert_eq!(record["version"], json!("2.0.0"));

    // Contents are kept for one way back, and no longer.
    stage.install(&goods.third, &trust).expect(0);
    stage.install(&goods.first, &[&trust[..], &["--downgrade"]].concat()).expect(0);
    let contents: Vec<_> =
        stage.root().read_dir_utf8().unwrap().flatten().filter(|e| e.file_name().starts_with("content-")).collect();
    assert_eq!(contents.len(), 2, "{contents:?}");
    stage.is_well();
    stage.down();
}
