//! An installed site belongs to two: its content to whoever sealed it, its settings to whoever runs it.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use textnlp_tests::{has, said};

use crate::stage::{Goods, NAME, Stage, advisories, names};

/// Writes into an installed file, as somebody with the right to everything can.
fn alter(stage: &Stage, path: &str) {
    let path = stage.root().join("current").join(path);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode | 0o200)).unwrap();
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more").unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
fn altered_content_shuts_the_gate_by_its_name_and_the_next_install_mends_it() {
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
fn a_known_flaw_in_the_content_shuts_the_gate_and_the_service_stays_up() {
    let stage = Stage::new("flaw");
    let advisories = advisories(&stage, "advisories", "tokio", "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H");
    let create =
        ["bundle", "create", "--env", "air-gapped", "--no-server-image", "--out", "b.tar", "--advisories", &advisories];
    stage.run(&create).expect(0);
    let shut = stage.install("b.tar", &["--output", "json"]).expect(3).json();
    assert_eq!(shut["error"]["code"], "gate_not_open", "{shut:#}");
    has(&shut, &["digest", "root", "lineage", "address", "key_file", "ca_file", "gate.checks"]);
    assert_eq!(shut["gate"]["state"], "shut");
    names(&shut["error"].to_string(), &["known vulnerabilities in it", "RUSTSEC-2025-9999"]);
    stage.there(&["generate", "Once", "--max-tokens", "2", "--no-stream"]).expect(0);

    // Without any advisories nobody can tell: that is said when it is made, and the gate is not open there either.
    let blind =
        stage.run(&["bundle", "create", "--env", "air-gapped", "--no-server-image", "--out", "blind.tar"]).expect(0);
    names(&blind.err, &["warning: ", "--advisories"]);
    let shut = stage.install("blind.tar", &["--output", "json"]).expect(3).json();
    names(&shut["error"].to_string(), &["known vulnerabilities in it", "--advisories DIR"]);
    stage.there(&["down", "--env", "air-gapped", "--yes", "--delete-data", "air-gapped"]).expect(0);
    assert!(stage.sandbox.processes().is_empty());
}

#[test]
fn the_sites_own_settings_outlive_every_bundle_and_the_shell_is_not_asked() {
    let goods = Goods::get();
    let stage = Stage::new("own");
    let trust = ["--trust", goods.public.as_str()];
    stage.install(&goods.first, &trust).expect(0);
    let own = stage.root().join("environments/island.yaml");
    let text = std::fs::read_to_string(&own).unwrap();
    names(&text, &["extends: bundle-island", &stage.sandbox.port.to_string(), "This file is yours"]);
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
    stage.install(&goods.first, &trust).expect(0);
    let contents: Vec<_> =
        stage.root().read_dir_utf8().unwrap().flatten().filter(|e| e.file_name().starts_with("content-")).collect();
    assert_eq!(contents.len(), 2, "{contents:?}");
    stage.is_well();
    stage.down();
}
