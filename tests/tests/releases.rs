//! Releases: what was applied is written down, compared, carried on to the next environment, and gone back to.
#![allow(clippy::unwrap_used)]

use std::io::Write;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use textnlp_tests::stand_in::{Reply, StandIn};
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
    // A lock alone is no deployment whose records are lost.
    with(&sandbox, &old, &["release", "set"]).expect(0);
    with(&sandbox, &old, &["status"]).expect(0);
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
    // It is in the audit log of an environment that was never deployed.
    let audited = sandbox.run(&["audit", "list", "--env", "staging", "-o", "json"]).expect(0).json();
    let audited: Vec<_> =
        audited["commands"].as_array().unwrap().iter().map(|one| (&one["command"], &one["end"]["outcome"])).collect();
    let (promoting, failed) = (json!("promote"), json!("failed"));
    assert_eq!(audited, [(&promoting, &failed), (&promoting, &failed), (&promoting, &json!("succeeded"))]);
    let lock = std::fs::read_to_string(sandbox.state("staging").join("staging.lock")).unwrap();
    assert!(lock.contains(applied["server"].as_str().unwrap()), "{lock}");
    // Where another program is installed, the one that was proven is named.
    let next = promote(&new).expect(0).json()["next"].as_str().unwrap().to_owned();
    assert!(next.contains("up --env staging --server ") && next.contains("/development/sites/here/bin/"), "{next}");

    // Neither measured nor promoted for settings that do not run; its own limits need no `up`.
    let unapplied = ["--set", "server.api.queue=7", "-o", "json"];
    let not_these = with(&sandbox, &old, &[&["gate"][..], &unapplied].concat()).expect(3).json();
    assert_eq!(not_these["error"]["code"], "settings_not_applied", "{not_these:#}");
    with(&sandbox, &old, &["gate", "--set", "gates.p95_ms=60000"]).expect(0);
    let promoting = ["promote", "--from", "development", "--to", "staging"];
    let not_these = sandbox.run(&[&promoting[..], &unapplied].concat()).expect(3).json();
    assert!(not_these["blockers"].to_string().contains("changes that `up` has not applied"), "{not_these:#}");
    let hint = not_these["error"]["hint"].as_str().unwrap();
    assert!(hint.starts_with("textnlp-deploy up ") && hint.contains("server.api.queue=7"), "{hint}");
    with(&sandbox, &old, &["gate", "--again"]).expect(0);

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
    // The lock keeps its configuration when another one is applied.
    with(&sandbox, &old, &[&UP[..], &["--set", "server.api.queue=7"]].concat()).expect(0);
    let entries = releases(&sandbox);
    let locked: Vec<_> = entries.iter().filter(|entry| entry["is_locked"] == true).collect();
    assert!(locked.len() == 1 && locked[0]["number"] != entries.last().unwrap()["number"], "{entries:?}");
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

#[test]
fn cleanup_removes_what_is_old_and_unneeded_and_nothing_else() {
    let sandbox = Sandbox::new("cleanup");
    let (old, new) = (program(), other_program(&sandbox, "newer"));
    with(&sandbox, &old, &UP).expect(0);
    with(&sandbox, &new, &["release", "set"]).expect(0);
    with(&sandbox, &new, &UP).expect(0);
    let state = sandbox.state("development");
    let previous = state.join("programs").join(server_of(&releases(&sandbox)[0]).strip_prefix("sha256:").unwrap());
    assert!(previous.is_file(), "{previous}");
    let unneeded = [
        state.join("programs").join("a".repeat(64)),
        state.join("sites/here/log/server-0.log.2"),
        sandbox.folder().join("support-development-20260101T000000Z.tar"),
    ];
    let needed = [
        previous,
        state.join("sites/here/log/server-0.log"),
        state.join("sites/here/data/textnlp.db"),
        state.join("journal/here/log"),
        sandbox.folder().join("support-staging-20260101T000000Z.tar"),
    ];
    let age = |file: &Utf8Path| {
        let opened = std::fs::OpenOptions::new().append(true).create(true).open(file).unwrap();
        opened.set_modified(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1)).unwrap();
    };
    unneeded.iter().chain(&needed).for_each(|file| age(file));
    let young = state.join("sites/here/log/server-0.log.1");
    std::fs::write(&young, "just rotated").unwrap();

    let clean = |more: &[&str]| {
        sandbox.run(&[&["cleanup", "--older-than", "30d", "-o", "json"], &DEVELOPMENT[..], more].concat())
    };
    let listed = |document: &Value, member: &str| -> Vec<String> {
        let items = document[member].as_array().unwrap().iter();
        let mut paths: Vec<String> =
            items.map(|item| item["path"].as_str().or(item.as_str()).unwrap().to_owned()).collect();
        paths.sort();
        paths
    };
    let mut expected: Vec<String> = unneeded.iter().map(ToString::to_string).collect();
    expected.sort();
    let shown = clean(&["--dry-run"]).expect(0).json();
    assert_eq!((listed(&shown, "found"), listed(&shown, "removed")), (expected.clone(), Vec::new()));
    let refused = clean(&[]).expect(4).json();
    assert_eq!(
        (refused["error"]["code"].as_str(), listed(&refused, "found")),
        (Some("not_approved"), expected.clone())
    );
    assert!(unneeded.iter().all(|file| file.is_file()), "nothing is removed without an approval");
    let done = clean(&["--yes"]).expect(0).json();
    assert_eq!(listed(&done, "removed"), expected);
    assert!(unneeded.iter().all(|file| !file.exists()), "{done:#}");
    assert!(needed.iter().chain([&young]).all(|file| file.is_file()), "{done:#}");
    assert_eq!(listed(&clean(&["--yes"]).expect(0).json(), "found"), Vec::<String>::new());

    // A replaced state has data: only an option of its own removes it, with the name of the environment.
    let replaced = state.with_file_name("development.replaced-20250101T000000Z-2");
    let other = state.with_file_name("development.replaced-by-hand");
    for folder in [&replaced, &other] {
        std::fs::create_dir_all(folder.join("sites")).unwrap();
        std::fs::write(folder.join("sites/data"), "12345").unwrap();
    }
    let named = clean(&["--yes"]).expect(0).json();
    assert!(named["notes"].to_string().contains("replaced-20250101T000000Z-2, 5 bytes"), "{named:#}");
    let other_name = clean(&["--replaced-states", "staging", "--yes"]).expect(4).json();
    assert_eq!(other_name["error"]["code"], "wrong_name", "{other_name:#}");
    assert_eq!((listed(&named, "removed"), replaced.is_dir()), (Vec::new(), true));
    let done = clean(&["--replaced-states", "development", "--yes"]).expect(0).json();
    assert_eq!((listed(&done, "removed"), &done["removed_bytes"]), (vec![replaced.to_string()], &5.into()), "{done:#}");
    assert!(!replaced.exists() && other.is_dir(), "{done:#}");
    with(&sandbox, &new, &["status"]).expect(0);
    with(&sandbox, &new, &["rollback"]).expect(0);
    sandbox.run(&["cleanup", "--older-than", "1h", "--env", "development"]).expect(2);
}

#[test]
fn production_phases_take_promoted_releases_and_no_phase_is_skipped() {
    let mut sandbox = Sandbox::new("order");
    // A short gate that any machine opens.
    sandbox.variables.extend([
        ("TEXTNLP_SET__gates__users", "3".to_owned()),
        ("TEXTNLP_SET__gates__hold", "1s".to_owned()),
        ("TEXTNLP_SET__gates__p95_ms", "60000".to_owned()),
    ]);
    let folder = sandbox.folder().join("environments");
    std::fs::create_dir(&folder).unwrap();
    let user = if rustix::process::geteuid().is_root() { ", user: root" } else { "" };
    for (name, phase) in [("first", "pilot"), ("wide", "scale-up")] {
        let text = format!(
            "extends: staging\nenvironment: {name}\nphase: {phase}\ndata: disposable\nbackup: {{ enabled: false }}\n\
             scaling: {{ min: 3 }}\nprerequisites: {{ allow_below_minimum: true{user} }}\n"
        );
        std::fs::write(folder.join(format!("{name}.yaml")), text).unwrap();
    }
    let up = ["up", "--env", "first", "--yes", "--no-gate"];
    let document = [&up[..], &["-o", "json"]].concat();
    let early = sandbox.run(&document).expect(3).json();
    assert_eq!(early["error"]["code"], "phase_not_entered", "{early:#}");
    assert!(early["error"].to_string().contains("no release of phase staging was promoted"), "{early:#}");
    assert!(early["error"]["hint"].as_str().unwrap().contains("up --from-scratch"), "{early:#}");
    assert!(!sandbox.state("first").join("journal").exists() && !sandbox.site("first").exists());
    let plan = sandbox.run(&["plan", "--env", "first", "-o", "json"]).expect(0).json();
    assert!(plan["not_entered"].is_string(), "{plan:#}");
    // Phases that start after nothing are not in the order: only the gate of the source counts.
    let free = sandbox.run(&["promote", "--from", "staging", "--to", "air-gapped", "-o", "json"]).expect(3).json();
    assert_eq!(free["error"]["code"], "gate_not_open", "{free:#}");
    let skips = sandbox.run(&["promote", "--from", "staging", "--to", "wide", "-o", "json"]).expect(4).json();
    assert_eq!(skips["error"]["code"], "phase_skipped", "{skips:#}");

    sandbox.run(&["up", "--env", "staging", "--yes"]).expect(0);
    sandbox.run(&["promote", "--from", "staging", "--to", "first"]).expect(0);
    sandbox.run(&["down", "--env", "staging", "--yes"]).expect(0);
    let promotion = sandbox.state("first").join("evidence/promotion.json");
    let good = std::fs::read_to_string(&promotion).unwrap();
    std::fs::write(&promotion, good.replace("\"staging\"", "\"pilot\"")).unwrap();
    let changed = sandbox.run(&document).expect(3).json();
    assert!(changed["error"].to_string().contains("promotion.json is not verified"), "{changed:#}");
    std::fs::write(&promotion, &good).unwrap();
    // Another deployment of that name, whose gate was not measured.
    let (staging, passed) = (sandbox.state("staging"), sandbox.state("staging.passed"));
    std::fs::rename(&staging, &passed).unwrap();
    sandbox.run(&["up", "--env", "staging", "--yes", "--no-gate"]).expect(0);
    sandbox.run(&["down", "--env", "staging", "--yes"]).expect(0);
    let replaced = sandbox.run(&document).expect(3).json();
    assert!(replaced["error"].to_string().contains("of staging, which is deployment"), "{replaced:#}");
    std::fs::rename(&staging, sandbox.state("staging.other")).unwrap();
    std::fs::rename(&passed, &staging).unwrap();
    let entered = sandbox.run(&document).expect(0).json();
    assert_eq!(entered["from_scratch"], false, "{entered:#}");

    let history = sandbox.run(&["state", "history", "--env", "first"]).expect(0).out;
    assert!(
        history.contains("phase pilot entered with release") && history.contains("promoted from staging"),
        "{history}"
    );
    // Another machine with the same journal has neither the history of releases nor the promotion.
    let releases = sandbox.state("first").join("releases");
    let elsewhere = sandbox.state("first").join("releases.elsewhere");
    std::fs::rename(&releases, &elsewhere).unwrap();
    std::fs::remove_file(&promotion).unwrap();
    let plan = sandbox.run(&["plan", "--env", "first", "-o", "json"]).expect(0).json();
    assert!(plan["not_entered"].is_null(), "{plan:#}");
    std::fs::rename(&elsewhere, &releases).unwrap();

    // What ran in the phase needs no evidence; another release does, or an exemption that is recorded and shown.
    sandbox.run(&up).expect(0);
    let other = other_program(&sandbox, "newer");
    let run = |args: &[&str]| said(sandbox.command(args).env("TEXTNLP_SERVER", &other).output().unwrap());
    run(&["release", "set", "--env", "first"]).expect(0);
    std::fs::rename(&releases, &elsewhere).unwrap();
    assert_eq!(run(&document).expect(3).json()["error"]["code"], "phase_not_entered", "nor on another machine");
    std::fs::rename(&elsewhere, &releases).unwrap();
    assert_eq!(run(&document).expect(3).json()["error"]["code"], "phase_not_entered");
    let unreasoned = run(&[&document[..], &["--from-scratch"]].concat()).expect(2).json();
    assert_eq!(unreasoned["error"]["code"], "no_reason", "{unreasoned:#}");
    let emergency = [&document[..], &["--from-scratch", "--reason", "INC-9"]].concat();
    assert_eq!(run(&emergency).expect(0).json()["from_scratch"], true);
    assert_eq!(run(&document).expect(0).json()["from_scratch"], false, "it has entered");
    for shows in [["status", "--env", "first"].as_slice(), &["state", "history", "--env", "first"]] {
        let shown = run(shows).expect(0).out;
        assert!(shown.contains("phase pilot entered from scratch") && shown.contains("INC-9"), "{shown}");
    }
}

#[test]
fn configuration_is_rolled_back_to_a_commit_of_its_file() {
    let sandbox = Sandbox::new("configuration");
    let folder = sandbox.folder().join("environments");
    std::fs::create_dir(&folder).unwrap();
    let file = folder.join("mine.yaml");
    let of = |queue: u32| {
        format!("extends: development\nenvironment: mine\nserver:\n  api:\n    queue: {queue}\n    host: 127.0.0.1\n")
    };
    let git = |args: &[&str]| {
        let mut git = std::process::Command::new("git");
        git.args(["-c", "user.name=Ada", "-c", "user.email=ada@example.com", "-C", folder.as_str()]).args(args);
        let output = git.output().unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let commit = |text: &str, subject: &str| {
        std::fs::write(&file, text).unwrap();
        git(&["add", "."]);
        git(&["commit", "--quiet", "--message", subject]);
        git(&["rev-parse", "HEAD"])
    };
    let config =
        |more: &[&str]| sandbox.run(&[&["rollback", "--config", "--env", "mine", "-o", "json"], more].concat());

    std::fs::write(&file, of(1)).unwrap();
    assert_eq!(config(&[]).expect(2).json()["error"]["code"], "no_git_history", "the folder is in no repository");
    git(&["init", "--quiet"]);
    let first = commit(&of(1), "the first");
    let broken = commit("environment: [", "a mistake");
    let second = commit(&of(2), "another queue");
    let listed = config(&[]).expect(0).json();
    let commits: Vec<&str> =
        listed["commits"].as_array().unwrap().iter().map(|one| one["commit"].as_str().unwrap()).collect();
    assert_eq!(commits, [second.as_str(), &broken, &first]);
    assert_eq!(
        (&listed["commits"][2]["subject"], &listed["commits"][2]["author"]),
        (&json!("the first"), &json!("Ada"))
    );

    let done = config(&["--to", &first[..10]]).expect(0).json();
    assert_eq!((&done["commit"], &done["changed"]), (&json!(first), &json!(true)));
    assert!(done["next"].as_str().unwrap().starts_with("textnlp-deploy up --env mine"), "{done:#}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), of(1));
    assert_eq!(config(&["--to", &first]).expect(0).json()["changed"], false);
    assert_eq!(config(&["--to", "HEAD"]).expect(0).json()["commit"], json!(second), "and forward again");

    // Nothing is lost, and no file is replaced by one that cannot be loaded.
    std::fs::write(&file, of(3)).unwrap();
    assert_eq!(config(&["--to", &first]).expect(4).json()["error"]["code"], "not_committed");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), of(3));
    git(&["checkout", "--quiet", "--", "mine.yaml"]);
    for (to, code) in [
        (broken.as_str(), "invalid_environment"),
        ("0000000", "no_such_commit"),
        ("HEAD:mine.yaml", "no_such_commit"),
        ("nothing", "no_such_commit"),
    ] {
        assert_eq!(config(&["--to", to]).expect(2).json()["error"]["code"], code, "{to}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), of(2), "{to}");
    }
    // The present file need not be valid: that may be why it is rolled back.
    commit("environment: [", "the same mistake");
    config(&["--to", &second]).expect(0);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), of(2));
    let built_in = sandbox.run(&["rollback", "--config", "--env", "staging", "-o", "json"]).expect(2).json();
    assert_eq!(built_in["error"]["code"], "no_environment_file");
    let hint = built_in["error"]["hint"].as_str().unwrap();
    assert!(hint.contains("environments/staging.yaml, a new file that begins with `extends: staging`"), "{hint}");

    // The author of a checkout that came as an archive chooses the settings of its repository. A partial clone fetches
    // the objects that it lacks, by a program that they name.
    let ran = sandbox.folder().join("ran");
    let tree = git(&["rev-parse", &format!("{second}^{{tree}}")]);
    for (key, value) in [
        ("core.repositoryformatversion", "1"),
        ("extensions.partialClone", "origin"),
        ("remote.origin.promisor", "true"),
        ("remote.origin.url", "ssh://nowhere.invalid/x"),
        ("core.sshCommand", &format!("sh -c 'touch {ran}; false'")),
    ] {
        git(&["config", key, value]);
    }
    let object = folder.join(".git/objects").join(&tree[..2]).join(&tree[2..]);
    std::fs::remove_file(&object).unwrap();
    assert_ne!(config(&[]).exit, 0, "the object is missing");
    assert!(!ran.exists());
}

/// An advisory of the ecosystem for servers, fixed in 15.20.
const ADVISORY: &str = r#"{
    "id": "BIT-postgresql-2026-1", "modified": "2026-08-13T00:00:00Z", "summary": "A flaw that was made up",
    "affected": [{
        "package": { "ecosystem": "Bitnami", "name": "postgresql" },
        "ranges": [{ "type": "SEMVER", "events": [{ "introduced": "15.0.0" }, { "fixed": "15.20.0" }] }]
    }]
}"#;

#[test]
fn newer_images_are_shown_and_written_after_an_approval() {
    let registry = StandIn::start(|request| match request.line.as_str() {
        "GET /v2/postgresql/tags/list?n=1000" => {
            Reply::Answer(200, r#"{"tags":["15.19","15.20","15.21","16.1","latest"]}"#.to_owned())
        }
        "GET /v2/textnlp/tags/list?n=1000" => Reply::Answer(200, r#"{"tags":["1.0.0"]}"#.to_owned()),
        _ => Reply::Answer(404, "{}".to_owned()),
    });
    let sandbox = Sandbox::new("updates");
    let (folder, advisories) = (sandbox.folder().join("environments"), sandbox.folder().join("osv"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::create_dir(&advisories).unwrap();
    std::fs::write(advisories.join("a.json"), ADVISORY).unwrap();
    let file = folder.join("texts.yaml");
    let text = |postgres: &str| {
        format!(
            "extends: pilot\nenvironment: texts\nsites:\n  - name: main\n    provider: kubernetes\n    \
             runtime: kubernetes\n    region: local\n    cluster:\n      image: {0}/textnlp:1.0.0\n      \
             database_image: {0}/postgresql:{postgres} # ours\n",
            registry.address
        )
    };
    std::fs::write(&file, text("15.19")).unwrap();
    let run = |typed: &[&str]| {
        let more = ["--env", "texts", "--advisories", advisories.as_str()];
        sandbox.run(&[&["deps"][..], typed, &more].concat())
    };
    let shown = run(&["check-updates", "-o", "json"]).expect(0).json();
    let row = |name: &str| {
        let rows = shown["versions"].as_array().unwrap();
        rows.iter().find(|row| row["name"].as_str().is_some_and(|found| found.ends_with(name))).unwrap().clone()
    };
    let postgres = row("/postgresql");
    assert!(postgres["newest"] == "15.21" && postgres["is_newer"] == true, "{postgres}");
    assert_eq!(postgres["security"]["advisories"][0]["id"], "BIT-postgresql-2026-1");
    assert_eq!(postgres["setting"], "sites[0].cluster.database_image");
    assert!(row("/textnlp")["is_newer"] == false && row("/textnlp")["unknown"].is_null(), "{shown}");
    // What is not asked is not taken for the newest.
    assert!(row("Kubernetes")["unknown"].is_string() && row("Kubernetes")["newest"].is_null(), "{shown}");
    run(&["check-updates", "--exit-code"]).expect(6);

    let refused = run(&["update", "--security-only"]).expect(4);
    assert!(refused.err.contains("15.19") && refused.err.contains("15.20"), "{}", refused.err);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text("15.19"));
    let fixed = run(&["update", "--security-only", "--yes", "-o", "json"]).expect(0).json();
    assert!(fixed["planned"].as_array().unwrap().len() == 1 && fixed["remaining"] == 0, "{fixed}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text("15.20"), "the first version with the fix");
    let nothing = run(&["update", "--security-only", "--yes"]).expect(0);
    assert!(nothing.out.contains("Nothing was written"), "{}", nothing.out);
    run(&["update", "--yes"]).expect(0);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text("15.21"));

    std::fs::write(&file, text("15.21").replace(&registry.address, "127.0.0.1:1")).unwrap();
    let unreachable = run(&["check-updates", "-o", "json"]).expect(0).json();
    let rows = unreachable["versions"].as_array().unwrap();
    let images = rows.iter().filter(|row| row["kind"] == "image");
    assert!(images.clone().count() == 2 && images.clone().all(|row| row["unknown"].is_string()), "{unreachable}");
    run(&["check-updates", "--exit-code"]).expect(1);
}

#[test]
fn checklist_names_what_is_open_and_keeps_what_a_person_did() {
    let sandbox = Sandbox::new("checklist");
    let (old, new) = (program(), other_program(&sandbox, "newer"));
    let list = |server: &Utf8Path, more: &[&str]| {
        with(&sandbox, server, &[&["release", "checklist", "-o", "json"][..], more].concat()).expect(3).json()
    };
    let state = |document: &Value, name: &str| {
        let steps = document["steps"].as_array().unwrap();
        assert_eq!(steps.len(), 11);
        steps.iter().find(|step| step["name"] == name).unwrap()["state"].as_str().unwrap().to_owned()
    };
    let readiness = |document: &Value| {
        let lines = document["readiness"].as_array().unwrap().iter();
        let lines = lines.map(|line| [&line["name"], &line["state"]].map(|text| text.as_str().unwrap()).join(" "));
        lines.collect::<Vec<_>>()
    };
    let first = list(&old, &[]);
    assert_eq!(readiness(&first)[0], "infrastructure failed", "{first}");
    assert_eq!((state(&first, "tests"), state(&first, "staging")), ("yours".to_owned(), "open".to_owned()), "{first}");
    let done = ["release", "checklist", "--done", "tests"];
    assert!(
        with(&sandbox, &old, &[&done[..], &["--reason", "CI-7"]].concat()).expect(2).err.contains("no release lock")
    );

    with(&sandbox, &old, &UP).expect(0);
    with(&sandbox, &old, &done).expect(2);
    let by_hand = ["release", "checklist", "--done", "staging", "--reason", "it runs"];
    assert!(with(&sandbox, &old, &by_hand).expect(2).err.contains("not recorded by hand"));
    list(&old, &["--done", "tests", "--reason", "CI-7"]);
    let deployed = list(&old, &[]);
    for name in ["version", "tests", "image", "push", "lock", "staging"] {
        assert_eq!(state(&deployed, name), "done", "{name}: {deployed}");
    }
    assert_eq!(state(&deployed, "smoke"), "open");
    let unready = [
        "infrastructure ok",
        "documents unknown",
        "API parity unknown",
        "runbooks failed",
        "dashboards failed",
        "alert receivers failed",
        "baseline failed",
    ];
    assert_eq!(readiness(&deployed), unready, "{deployed}");
    std::fs::create_dir_all(sandbox.folder().join("docs/runbooks")).unwrap();
    std::fs::write(sandbox.folder().join("docs/runbooks/restore.md"), "# Restore\n").unwrap();
    list(&old, &["--done", "docs", "--done", "dashboards", "--reason", "DOC-1"]);
    let recorded = list(&old, &["--set", "monitoring.receivers.team=http://127.0.0.1:9/"]);
    let ready = ["infrastructure ok", "documents ok", "API parity unknown", "runbooks ok", "dashboards ok"];
    assert_eq!(readiness(&recorded)[..5], ready, "{recorded}");
    assert_eq!(readiness(&recorded)[5..], ["alert receivers ok", "baseline failed"], "{recorded}");
    assert_eq!(recorded["readiness"][3]["evidence"], "restore.md", "{recorded}");
    let tests = deployed["steps"].as_array().unwrap().iter().find(|step| step["name"] == "tests").unwrap();
    assert!(tests["evidence"].as_str().unwrap().ends_with(": CI-7"), "{tests}");
    with(&sandbox, &old, &["gate"]).expect(0);
    assert_eq!(state(&list(&old, &[]), "smoke"), "done");
    let early = ["release", "checklist", "--done", "watch", "--reason", "fine"];
    with(&sandbox, &old, &early).expect(2);

    // What was removed does not run, also where the history has it.
    with(&sandbox, &old, &["down", "--yes"]).expect(0);
    let removed = list(&old, &[]);
    assert_eq!(
        (state(&removed, "staging"), state(&removed, "smoke")),
        ("open".to_owned(), "open".to_owned()),
        "{removed}"
    );
    with(&sandbox, &old, &UP).expect(0);
    assert_eq!(state(&list(&old, &[]), "staging"), "done");

    // A record that is not verified is not replaced.
    let record = sandbox.state("development").join("evidence/checklist.json");
    let good = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, good.replace("CI-7", "CI-8")).unwrap();
    let refused = with(&sandbox, &old, &[&done[..], &["--reason", "CI-9"]].concat()).expect(4);
    assert!(refused.err.contains("not verified") && refused.err.contains("checklist.json away"), "{}", refused.err);
    std::fs::write(&record, &good).unwrap();
    assert_eq!(state(&list(&old, &[]), "tests"), "done");

    // Another program is another release: the record is not of it.
    assert_eq!(state(&list(&new, &[]), "lock"), "open");
    // It is locked first, and then the steps of persons are waited for.
    let run = |more: &[&str], exit| {
        with(&sandbox, &new, &[&["release", "checklist", "--run", "-o", "json"][..], more].concat()).expect(exit).json()
    };
    let ran = |document: &Value| {
        let ran = document["ran"].as_array().unwrap().iter();
        let ran = ran.map(|one| [&one["step"], &one["outcome"]].map(|text| text.as_str().unwrap()).join(" "));
        ran.collect::<Vec<_>>().join(", ")
    };
    assert_eq!(run(&[], 4)["error"]["code"], "not_approved");
    assert_eq!(state(&list(&new, &[]), "lock"), "open", "nothing was run");
    let next = run(&["--yes"], 3);
    assert_eq!((ran(&next).as_str(), &next["stopped_at"]), ("lock done", &json!("version")), "{next}");
    assert_eq!((state(&next, "tests"), state(&next, "staging")), ("yours".to_owned(), "open".to_owned()), "{next}");
    let nothing = run(&[], 3);
    assert_eq!((ran(&nothing).as_str(), &nothing["stopped_at"]), ("", &json!("version")), "{nothing}");
    list(&new, &["--done", "version", "--done", "tests", "--done", "changelog", "--done", "tag", "--reason", "CI-9"]);
    let tested = run(&["--yes"], 3);
    // The gate is measured by `up`.
    assert_eq!((ran(&tested).as_str(), &tested["stopped_at"]), ("staging done", &json!("production")), "{tested}");
    assert_eq!(state(&tested, "smoke"), "done", "{tested}");
    // Development has the ports that staging needs.
    let failed = run(&["--production", "staging", "--yes"], 1);
    assert_eq!(ran(&failed), "production done, production failed", "{failed}");
    assert!(failed["error"]["code"] == "preflight" && failed["stopped_at"] == "production", "{failed}");
    let hint = failed["error"]["hint"].as_str().unwrap();
    assert!(hint.ends_with("textnlp-deploy release checklist --run --production staging --env development"), "{hint}");
    // Each command is in the audit log of its environment.
    let audited = |environment: &str| {
        let log = sandbox.run(&["audit", "list", "--env", environment, "-o", "json"]).expect(0).json();
        let commands = log["commands"].as_array().unwrap().iter();
        let texts = commands.map(|one| format!("{} {}", one["command"], one["end"]["outcome"]).replace('"', ""));
        texts.collect::<Vec<_>>()
    };
    assert_eq!(audited("development").last().unwrap(), "up succeeded");
    assert_eq!(audited("staging"), ["promote succeeded", "up failed"]);
}
