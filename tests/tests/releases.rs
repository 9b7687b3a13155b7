//! Releases: what was applied is written down, compared, carried on to the next environment, and gone back to.
#![allow(clippy::unwrap_used)]

use std::io::Write;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use textnlp_tests::{Said, Sandbox, program, said};

const DEVELOPMENT: [&str; 2] = ["--env", "development"];
const UP: [&str; 3] = ["up", "--yes", "--no-gate"];

/// A program of another digest that does the same: what follows an ELF file's end is nobody's.
fn other_program(sandbox: &Sandbox, name: &str) -> Utf8PathBuf {
    let path = sandbox.folder().join(name);
    std::fs::copy(program(), &path).unwrap();
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(name.as_bytes()).unwrap();
    path
}

/// Runs a command about development where this server program is installed.
fn with(sandbox: &Sandbox, server: &Utf8Path, args: &[&str]) -> Said {
    said(sandbox.command(&[args, &DEVELOPMENT].concat()).env("TEXTNLP_SERVER", server).output().unwrap())
}

fn releases(sandbox: &Sandbox) -> Vec<Value> {
    let document = with(sandbox, &program(), &["release", "history", "-o", "json"]).expect(0).json();
    document["releases"].as_array().unwrap().clone()
}

fn server_of(release: &Value) -> &str {
    release["lock"]["server"].as_str().unwrap()
}

#[test]
fn releases_are_recorded_compared_and_rolled_back() {
    let sandbox = Sandbox::new("releases");
    let (old, new) = (program(), other_program(&sandbox, "newer"));
    assert!(
        with(&sandbox, &old, &["release", "history"]).expect(0).out.contains("textnlp-deploy up --env development")
    );
    with(&sandbox, &old, &[&UP[..], &["--reason", "the first"]].concat()).expect(0);
    with(&sandbox, &old, &UP).expect(0);
    let first = releases(&sandbox);
    assert_eq!(first.len(), 1, "an `up` that changed nothing is no release: {first:?}");
    assert!(first[0]["number"] == 1 && first[0]["reason"] == "the first" && first[0]["is_locked"] == true, "{first:?}");
    assert!(first[0]["schema"].as_u64().unwrap() > 0 && !first[0]["by"].as_str().unwrap().is_empty(), "{first:?}");
    let alone = with(&sandbox, &old, &["rollback"]).expect(2);
    assert!(alone.err.contains("no other release"), "{}", alone.err);

    with(&sandbox, &new, &["release", "set"]).expect(0);
    with(&sandbox, &new, &UP).expect(0);
    let both = releases(&sandbox);
    assert!(both.len() == 2 && server_of(&both[0]) != server_of(&both[1]), "{both:?}");
    let differs = with(&sandbox, &new, &["release", "diff", "1", "2", "-o", "json"]).expect(0).json();
    let only_server = json!([{ "what": "server", "left": server_of(&both[0]), "right": server_of(&both[1]) }]);
    assert_eq!(differs["differences"], only_server);
    let short = with(&sandbox, &new, &["release", "diff", "1"]).expect(0).out;
    assert!(short.contains("release 1 → the lock") && short.contains(&server_of(&both[0])[..19]), "{short}");
    assert!(with(&sandbox, &new, &["release", "diff"]).expect(0).out.contains("no difference"));
    with(&sandbox, &new, &["release", "diff", "7"]).expect(2);

    // Only the newer program is installed now; the older one was kept when it was replaced.
    let back = with(&sandbox, &new, &["rollback", "-o", "json"]).expect(0).json();
    assert_eq!(back["release"]["server"], both[0]["lock"]["server"]);
    assert_eq!(back["next"], "textnlp-deploy up --env development");
    with(&sandbox, &new, &UP).expect(0);
    let runs = std::fs::read(sandbox.site("development").join("bin/server")).unwrap();
    assert!(runs == std::fs::read(&old).unwrap(), "the older program runs");
    let three = releases(&sandbox);
    assert_eq!((three.len(), server_of(&three[2])), (3, server_of(&three[0])));

    // A damaged entry is said and skipped, and stops nobody.
    let damaged = sandbox.state("development").join("releases/000002.release");
    let good = std::fs::read(&damaged).unwrap();
    std::fs::write(&damaged, &good[..good.len() / 2]).unwrap();
    let told = with(&sandbox, &old, &["release", "history"]).expect(0);
    assert!(told.err.contains("000002.release: it was cut or changed"), "{}", told.err);
    with(&sandbox, &old, &UP).expect(0);
    assert_eq!(releases(&sandbox).len(), 2);
    with(&sandbox, &old, &["rollback", "--to", "2"]).expect(2);
    std::fs::write(&damaged, &good).unwrap();

    // Without its program a release cannot run, and the lock stays as it is.
    let lock = sandbox.state("development").join("development.lock");
    let before = std::fs::read(&lock).unwrap();
    std::fs::remove_dir_all(sandbox.state("development").join("programs")).unwrap();
    let refused = with(&sandbox, &old, &["rollback", "--to", "2"]).expect(4);
    assert!(refused.err.contains(server_of(&both[1])) && refused.err.contains("--server FILE"), "{}", refused.err);
    assert_eq!(std::fs::read(&lock).unwrap(), before);
    let given = with(&sandbox, &old, &["rollback", "--to", "2", "--server", new.as_str()]).expect(0).out;
    assert!(given.contains(&format!("textnlp-deploy up --env development --server {new}")), "{given}");
}

#[test]
fn only_verified_releases_are_promoted() {
    let sandbox = Sandbox::new("promote");
    let (old, new) = (program(), other_program(&sandbox, "newer"));
    let promote = |server: &Utf8Path| {
        let args = ["promote", "--from", "development", "--to", "staging", "-o", "json"];
        said(sandbox.command(&args).env("TEXTNLP_SERVER", server).output().unwrap())
    };
    let refused = |server: &Utf8Path, because: &str, next: &str| {
        let document = promote(server).expect(3).json();
        let blockers = document["blockers"].as_array().unwrap();
        assert!(blockers.iter().any(|b| b.as_str().unwrap().contains(because)), "{because}: {document}");
        let hint = document["error"]["hint"].as_str().unwrap();
        assert_eq!(hint, format!("textnlp-deploy {next} --env development"), "{document}");
    };
    refused(&old, "nothing was deployed there", "up");
    with(&sandbox, &old, &UP).expect(0);
    refused(&old, "was not measured", "gate --again");
    with(&sandbox, &old, &["gate"]).expect(0);

    let promoted = promote(&old).expect(0).json();
    let applied = &releases(&sandbox)[0]["lock"];
    for same in ["server", "models"] {
        assert_eq!(promoted["release"][same], applied[same], "{promoted}");
    }
    assert_ne!(promoted["release"]["configuration"], applied["configuration"], "it stays the target's own");
    assert_eq!(promoted["next"], "textnlp-deploy up --env staging");
    let lock = std::fs::read_to_string(sandbox.state("staging").join("staging.lock")).unwrap();
    assert!(lock.contains(applied["server"].as_str().unwrap()), "{lock}");
    // Where another program is installed, the one that was proven is named.
    let next = promote(&new).expect(0).json()["next"].as_str().unwrap().to_owned();
    assert!(next.contains("up --env staging --server ") && next.contains("/development/sites/here/bin/"), "{next}");

    // Evidence without a signature is refused.
    let signature = sandbox.state("development").join("evidence/gate.json.minisig");
    std::fs::remove_file(&signature).unwrap();
    refused(&old, "gate.json is not verified", "gate --again");
    with(&sandbox, &old, &["gate"]).expect(0);
    promote(&old).expect(0);

    with(&sandbox, &new, &["release", "set"]).expect(0);
    refused(&new, "not the last one that `up` applied", "up");
    // Measured now, the older program would speak for the newer one.
    let not_it = with(&sandbox, &new, &["gate", "-o", "json"]).expect(3).json();
    assert_eq!(not_it["error"]["code"], "release_not_applied", "{not_it:#}");
    assert!(not_it["error"]["hint"].as_str().unwrap().contains("textnlp-deploy up --env development"), "{not_it:#}");
    with(&sandbox, &new, &UP).expect(0);
    refused(&new, "of another release, configuration or gate", "gate --again");
    with(&sandbox, &old, &["release", "set"]).expect(0);
    with(&sandbox, &old, &UP).expect(0);
    refused(&old, "before this release was applied", "gate --again");
    let same = said(sandbox.command(&["promote", "--from", "staging", "--to", "staging"]).output().unwrap());
    assert!(same.expect(2).err.contains("the same environment"));

    // With the data go the releases that it belonged to, and the programs of the way back.
    let left = ["releases", "programs"].map(|folder| sandbox.state("development").join(folder));
    assert!(left.iter().all(|folder| folder.is_dir()), "{left:?}");
    with(&sandbox, &old, &["down", "--yes"]).expect(0);
    assert!(left.iter().all(|folder| folder.is_dir()), "{left:?}");
    with(&sandbox, &old, &["down", "--yes", "--delete-data", "development"]).expect(0);
    assert!(!left.iter().any(|folder| folder.exists()), "{left:?}");
}
