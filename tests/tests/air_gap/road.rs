//! The road as somebody new to it travels it: make, sign, carry, verify, install, look, take down.

use std::process::Stdio;

use serde_json::{Value, json};
use textnlp_tests::{UP_KEYS, counts, has, said};

use crate::stage::{Stage, advisories, names, port_is_free, tool};

#[test]
fn bundle_is_created_verified_installed_and_taken_down() {
    let stage = Stage::new("road");
    let made = stage.json(0, &["bundle", "keygen", "--out", "release"]);
    assert_eq!((&made["secret_key"], &made["public_key"]), (&json!("release.key"), &json!("release.pub")));
    let mode = std::fs::metadata(stage.made().join("release.key")).unwrap().permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600, "a secret is its owner's alone");

    let advisories =
        advisories(&stage, "advisories", "a-crate-that-nobody-has", "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H");
    let created = stage
        .json(0, &["bundle", "create", "--env", "air-gapped", "--out", "textnlp.tar", "--advisories", &advisories]);
    has(&created, &["format", "ok", "exit", "file", "bytes", "digest", "files", "seconds", "items", "signed_by"]);
    let length = std::fs::metadata(stage.made().join("textnlp.tar")).unwrap().len();
    assert_eq!((created["bytes"].as_u64(), &created["signed_by"]), (Some(length), &Value::Null));
    let kinds: Vec<_> = created["items"].as_array().unwrap().iter().map(|i| i["kind"].as_str().unwrap()).collect();
    for kind in ["program", "image", "model", "environment"] {
        assert!(kinds.contains(&kind), "no {kind} in {kinds:?}");
    }

    // Nobody has signed it: it is whole, and that is all that can be said of it.
    let unsigned = stage.run(&["bundle", "verify", "textnlp.tar"]).expect(0);
    names(&unsigned.err, &["unverified", "--trust KEY.pub"]);
    stage.run(&["bundle", "sign", "textnlp.tar", "--key", "release.key"]).expect(0);
    let verified = stage.json(0, &["bundle", "verify", "textnlp.tar", "--trust", "release.pub"]);
    has(&verified, &["format", "ok", "exit", "file", "digest", "verified.files", "verified.chunks", "authenticity"]);
    assert_eq!(verified["authenticity"]["authenticity"], "verified", "{verified:#}");
    assert_eq!(verified["digest"], created["digest"], "a signature changes nothing that is signed");

    // Carried over: the file and, on another way, the key. Nothing but a shell and tar is used here.
    let carried = stage.sandbox.folder().join("carried");
    std::fs::create_dir_all(&carried).unwrap();
    for name in ["textnlp.tar", "release.pub"] {
        std::fs::rename(stage.made().join(name), carried.join(name)).unwrap();
    }
    std::fs::remove_dir_all(stage.made()).unwrap();
    let shell = |line: &str, more: &[String]| {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", line, "sh"]).args(more).current_dir(&carried).env_clear();
        said(command.env("PATH", "/usr/bin:/bin").stdin(Stdio::null()).output().expect("start a shell"))
    };
    shell("tar --no-same-owner --no-same-permissions -xf textnlp.tar install.sh bin", &[]).expect(0);
    let install = "exec sh install.sh textnlp.tar --trust release.pub \"$@\"";
    let flags = stage.flags();
    let first = shell(install, &flags).expect(0);
    names(
        &first.out,
        &["Installing textnlp.tar with textnlp-deploy", "The air-gapped gate is open", "which is trusted"],
    );

    // The same once more, for programs: nothing is left to do, the gate is the one that was open.
    let again = shell(install, &[&flags[..], &["--output".to_owned(), "json".to_owned()]].concat()).expect(0);
    let again: Value = serde_json::from_str(&again.out[again.out.find('{').expect("a document")..]).unwrap();
    has(&again, UP_KEYS);
    has(&again, &["authenticity", "digest", "version"]);
    assert_eq!(counts(&again)[..4], [0; 4], "{again:#}");
    assert!(counts(&again)[4] > 5 && again["unchanged"] == true && again["written_bytes"] == 0, "{again:#}");
    assert_eq!((&again["gate"]["state"], &again["phase"]), (&json!("open"), &json!("air-gapped")));
    assert_eq!(again["digest"], created["digest"]);
    let checks: Vec<_> = again["gate"]["checks"].as_array().unwrap().iter().map(|c| c["name"].to_string()).collect();
    for check in ["content as sealed", "known vulnerabilities", "connections to elsewhere"] {
        assert!(checks.iter().any(|name| name.contains(check)), "no `{check}` among {checks:?}");
    }

    answers_with_its_key_and_its_ca_only(&stage, &again);
    is_clean(&stage);
    let key = carried.join("site.key");
    stage.there(&["backup", "key", "show", "--env", "air-gapped", "--out", key.as_str()]).expect(0);
    let backup = stage.there(&["backup", "create", "--env", "air-gapped", "-o", "json"]).expect(0).json();
    let down = stage.there(&["down", "--env", "air-gapped", "--yes", "-o", "json"]).expect(0).json();
    let kept: Vec<_> = down["retained"].as_array().unwrap().iter().map(|r| r["resource"].as_str().unwrap()).collect();
    assert!(kept.contains(&"here/database"), "an air-gapped site keeps its data until its name is typed: {down:#}");
    assert!(stage.sandbox.processes().is_empty(), "{:?}", stage.sandbox.processes());
    port_is_free(stage.sandbox.port);

    // The environment in the backup has the paths of the old machine; the installed one starts the service.
    let file = backup["file"].as_str().unwrap();
    let restore = ["restore", file, "--key", key.as_str(), "--replace", "air-gapped", "-o", "json"];
    let restored = stage.there(&restore).expect(0).json();
    let next = restored["next"].as_str().unwrap();
    assert!(next.ends_with("textnlp-deploy up --env air-gapped"), "{restored:#}");
    assert_eq!(restored["environment_file"], Value::Null, "{restored:#}");
}

fn answers_with_its_key_and_its_ca_only(stage: &Stage, installed: &Value) {
    let field =
        |name: &str| installed[name].as_str().unwrap_or_else(|| panic!("no {name} in {installed:#}")).to_owned();
    let (address, ca, key) = (field("address"), field("ca_file"), field("key_file"));
    let key = std::fs::read_to_string(key).unwrap().trim().to_owned();
    let said = stage.there(&["generate", "Once upon a time", "--max-tokens", "4", "--no-stream"]).expect(0);
    assert!(!said.out.trim().is_empty());
    if !tool("curl") {
        return;
    }
    let url = format!("{address}/v1/generate");
    let body = r#"{"prompt":"Once upon a time","max_tokens":4}"#;
    let curl = |more: &[&str]| {
        let args = [
            &["-sS", "-o", "-", "-w", "\n%{http_code}", "-H", "Content-Type: application/json", "-d", body, &url],
            more,
        ];
        let root = stage.root().join("..");
        textnlp_tests::said(stage.other("curl", &args.concat()).current_dir(root).output().unwrap())
    };
    let header = format!("X-API-Key: {key}");
    let good = curl(&["--cacert", &ca, "-H", &header]).expect(0);
    assert!(good.out.trim_end().ends_with("200") && good.out.contains("completion_tokens"), "{}", good.out);
    let keyless = curl(&["--cacert", &ca]).expect(0);
    assert!(keyless.out.trim_end().ends_with("401"), "{}", keyless.out);
    assert_ne!(curl(&["-H", &header]).exit, 0, "its certificate is of a CA that nobody else has");
}

fn is_clean(stage: &Stage) {
    let status = stage.there(&["status", "--env", "air-gapped", "-o", "json"]).expect(0).json();
    assert!(status["ready"] == true && status["drift"] == json!([]), "{status:#}");
    let drift = stage.there(&["drift", "--env", "air-gapped", "-o", "json"]).expect(0).json();
    assert_eq!(drift["drift"], json!([]));
    stage.there(&["plan", "--env", "air-gapped", "--exit-code"]).expect(0);
    let release = stage.there(&["release", "show", "--env", "air-gapped", "-o", "json"]).expect(0).json();
    assert_eq!(release["differences"], json!([]), "{release:#}");
}
