//! A deployment comes back from one file: on a bare machine, with the same keys, and never over something else.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use textnlp_orchestrator::backup::Key;
use textnlp_tests::bucket::{self, Bucket};
use textnlp_tests::{Dice, Said, Sandbox, eventually, has, http, said, write_secret};

const ENV: [&str; 2] = ["--env", "development"];

fn run(sandbox: &Sandbox, args: &[&str]) -> Said {
    sandbox.run(&[args, &ENV, &["-o", "json"]].concat())
}

/// The same program and ports with its state somewhere else: another machine, as far as a program can tell.
fn elsewhere(sandbox: &Sandbox, args: &[&str]) -> Said {
    let state = sandbox.folder().join("elsewhere");
    let args = [args, &["-o", "json"]].concat();
    said(sandbox.command(&args).env("TEXTNLP_STATE_DIR", state).output().unwrap())
}

#[track_caller]
fn refused(said: Said, exit: i32, code: &str) -> Value {
    let document = said.expect(exit).json();
    assert_eq!(document["error"]["code"], code, "{document:#}");
    assert!(!document["error"]["hint"].as_str().unwrap_or_default().is_empty(), "{document:#}");
    document
}

fn answers(sandbox: &Sandbox, key: &str) -> u16 {
    let body = json!({ "prompt": "Mira", "max_tokens": 4 }).to_string();
    let bearer = format!("Bearer {key}");
    http::ask(sandbox.port, "POST", "/v1/generate", &[("Authorization", &bearer)], body.as_bytes()).unwrap().status
}

fn kill_supervisor(sandbox: &Sandbox) {
    let supervisor = sandbox.processes().into_iter().find(|(_, line)| line.contains(" supervise")).unwrap();
    sandbox.kill(supervisor.0);
}

/// The record of a backup, as that of one of two days ago: `backup prune --keep` removes none of the last day.
fn aged(record: &[u8]) -> String {
    let date = std::process::Command::new("date").args(["-u", "-d", "2 days ago", "+%Y-%m-%dT%H:%M:%SZ"]).output();
    let mut facts: Value = serde_json::from_slice(record).unwrap();
    facts["at"] = String::from_utf8(date.unwrap().stdout).unwrap().trim().into();
    facts.to_string()
}

fn listed(sandbox: &Sandbox) -> Vec<Value> {
    run(sandbox, &["backup", "list"]).expect(0).json()["backups"].as_array().unwrap().clone()
}

#[test]
fn backup_restores_a_deployment_with_its_keys_on_a_bare_machine() {
    let sandbox = Sandbox::new("restore");
    refused(run(&sandbox, &["backup", "create"]), 2, "not_up");
    let up = run(&sandbox, &["up", "--yes", "--no-gate", "--set", "data=protected"]).expect(0);
    assert!(up.err.contains("protected data and no backup"), "{}", up.err);
    let lineage = up.json()["lineage"].clone();
    let first = sandbox.first_key("development");
    let second = run(&sandbox, &["key", "create", "a person"]).expect(0).json()["key"].as_str().unwrap().to_owned();
    assert_eq!((answers(&sandbox, &first), answers(&sandbox, &second)), (200, 200));

    // One private file, named by the day, without a key in it.
    let made = run(&sandbox, &["backup", "create"]).expect(0).json();
    has(&made, &["file", "bytes", "digest", "lineage", "sealed", "recipients", "seconds"]);
    let file = Utf8PathBuf::from(made["file"].as_str().unwrap());
    let name = file.file_name().unwrap();
    assert!(name.starts_with("backup_20") && name.len() == "backup_20261120.dump".len(), "{name}");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let bytes = std::fs::read(&file).unwrap();
    for secret in [first.as_bytes(), b"PRIVATE KEY", b"SQLite format 3"] {
        assert!(!bytes.windows(secret.len()).any(|window| window == secret));
    }
    assert_eq!(answers(&sandbox, &first), 200, "the service went on");
    let status = sandbox.run(&["status", "--env", "development"]);
    assert!(status.out.contains("no verified backup") && status.out.contains("only on this machine"), "{}", status.out);

    let doctor = run(&sandbox, &["doctor"]).json();
    let rows = doctor["checks"].as_array().unwrap().iter().filter(|row| row["name"] == "backup");
    let fixes: Vec<&str> = rows.map(|row| row["fix"].as_str().unwrap_or_default()).collect();
    assert!(fixes.len() == 2 && fixes[0].contains(" backup verify"), "{doctor:#}");
    assert!(fixes[1].contains(" backup key show"), "{doctor:#}");

    // A key that could not be written was not exported.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut show = sandbox.command(&["backup", "key", "show", "--env", "development"]);
    let lost = textnlp_tests::said(show.stdout(full).output().unwrap()).expect(1);
    assert!(lost.err.contains("No space left on device"), "{}", lost.err);
    let status = sandbox.run(&["status", "--env", "development"]);
    assert!(status.out.contains("only on this machine"), "{}", status.out);

    // Carried away, proven; then nothing is left to say.
    let key = sandbox.folder().join("carried-away.key");
    let export = ["backup", "key", "show", "--out", key.as_str(), "--env", "development"];
    sandbox.run(&export).expect(0);
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    refused(sandbox.run(&[&export[..], &["-o", "json"]].concat()), 4, "file_exists");
    let proof = run(&sandbox, &["backup", "verify"]).expect(0).json();
    assert_eq!((&proof["verified"], &proof["proof"]["level"]), (&json!(true), &json!("answered")), "{proof:#}");
    assert!(Utf8PathBuf::from(format!("{file}.verified.json")).is_file());
    assert_eq!(listed(&sandbox)[0]["verified"], true);
    // By its name, as `backup list` prints it.
    let proof = run(&sandbox, &["backup", "verify", name, "--light"]).expect(0).json();
    assert_eq!(proof["file"], file.as_str(), "{proof:#}");
    // Another machine has the file and the key, and no environment.
    let alone = ["backup", "verify", file.as_str(), "--light", "--key", key.as_str()];
    let proof = elsewhere(&sandbox, &alone).expect(0).json();
    assert_eq!((&proof["file"], &proof["proof"]["level"]), (&json!(file), &json!("keys")), "{proof:#}");
    refused(elsewhere(&sandbox, &alone[..4]), 2, "no_environment");
    refused(run(&sandbox, &["restore", name]), 4, "state_is_there");
    let status = run(&sandbox, &["status", "--set", "data=protected"]).expect(0).json();
    assert_eq!(status["backup"]["warnings"], json!([]), "{status:#}");

    // A damaged copy proves nothing and restores nothing.
    let mut damaged = bytes.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let wrong = sandbox.folder().join("backup_20200101.dump");
    std::fs::write(&wrong, &damaged).unwrap();
    refused(run(&sandbox, &["backup", "verify", wrong.as_str()]), 1, "not_proven");
    let with_key = ["--key", key.as_str()];
    refused(elsewhere(&sandbox, &[&["restore", wrong.as_str()][..], &with_key].concat()), 1, "damaged");
    std::fs::write(&wrong, &bytes[..bytes.len() - 100]).unwrap();
    refused(elsewhere(&sandbox, &[&["restore", wrong.as_str()][..], &with_key].concat()), 1, "damaged");
    std::fs::write(&wrong, "files of another kind").unwrap();
    refused(elsewhere(&sandbox, &["restore", wrong.as_str()]), 2, "no_backup");

    // A new key is for new backups; older ones are read with the one before.
    let rotated = run(&sandbox, &["secret", "rotate", "backup", "--yes"]).expect(0).json();
    let recipient = rotated["recipient"].as_str().unwrap();
    assert!(!made["recipients"].to_string().contains(recipient), "{rotated:#}");
    assert!(sandbox.run(&["status", "--env", "development"]).out.contains("only on this machine"));
    run(&sandbox, &["backup", "verify", file.as_str()]).expect(0);
    let next = run(&sandbox, &["backup", "create"]).expect(0).json();
    assert!(next["recipients"].to_string().contains(recipient), "{next:#}");
    refused(run(&sandbox, &["secret", "rotate", "backup", "--immediately", "--yes"]), 2, "no_such_option");
    // The holder of a signing key can have made any report that it signed.
    let rotated = run(&sandbox, &["secret", "rotate", "report", "--yes"]).expect(0).json();
    let unread = run(&sandbox, &["backup", "verify", file.as_str()]);
    let old = ["--signed-by", rotated["old"].as_str().unwrap()];
    let hint = unread.json()["error"]["hint"].to_string();
    assert!(hint.contains(&old.join(" ")) && !hint.contains("--signed-by any"), "{hint}");
    refused(unread, 4, "other_signer");
    run(&sandbox, &[&["backup", "verify", file.as_str()][..], &old].concat()).expect(0);
    std::fs::remove_file(next["file"].as_str().unwrap()).unwrap();

    // The machine burns. What is left: the file and the key.
    run(&sandbox, &["down", "--yes", "--delete-data", "development"]).expect(0);
    let kept = sandbox.folder().join(name);
    std::fs::copy(&file, &kept).unwrap();
    std::fs::remove_dir_all(sandbox.folder().join("state")).unwrap();
    let restore = [&["restore", kept.as_str()][..], &with_key].concat();
    refused(elsewhere(&sandbox, &["restore", kept.as_str()]), 2, "sealed");
    // Without an approval for `up`, nothing is restored.
    refused(elsewhere(&sandbox, &[&restore[..], &["--up"]].concat()), 4, "not_approved");
    refused(elsewhere(&sandbox, &[&restore[..], &["--at", "2026-11-20T12:00:00Z"]].concat()), 2, "no_such_moment");
    let other = sandbox.folder().join("elsewhere");
    assert_eq!(sandbox.files(&other), Vec::<String>::new(), "what was refused left nothing");
    // Another key than the one that signed it.
    let other_key = ["--signed-by", "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"];
    refused(elsewhere(&sandbox, &[&restore[..], &other_key].concat()), 4, "other_signer");
    assert_eq!(sandbox.files(&other), Vec::<String>::new(), "what was refused left nothing");
    let restored = elsewhere(&sandbox, &restore).expect(0);
    assert!(!restored.err.contains("was not verified"), "{}", restored.err);
    let restored = restored.json();
    assert_eq!((&restored["signer"], &restored["signer_verified"]), (&made["signer"], &json!(true)));
    assert_eq!(restored["lineage"], lineage);
    assert_eq!(restored["databases"]["here"]["keys"], 2, "{restored:#}");
    // Rows are written a moment after their request: of the last ones the copy may know nothing.
    assert!(restored["databases"]["here"]["usage"].as_u64().unwrap() >= 1, "{restored:#}");

    // `up` makes the rest, by the file that came along; what asks the service says so until then.
    let whole = restored["environment_file"].as_str().unwrap();
    refused(elsewhere(&sandbox, &["key", "list", "--file", whole]), 2, "not_up");
    let up = elsewhere(&sandbox, &["up", "--file", whole, "--yes", "--no-gate"]).expect(0).json();
    assert_eq!(up["lineage"], lineage);
    assert_eq!((answers(&sandbox, &first), answers(&sandbox, &second)), (200, 200), "the same keys open");
    let again = elsewhere(&sandbox, &["plan", "--file", whole, "--exit-code"]);
    assert_eq!(again.exit, 0, "a second `up` plans nothing: {}{}", again.out, again.err);
    assert!(!again.err.contains("warning:"), "`up` wrote every setting itself: {}", again.err);

    // Valid again after the next restore, which says so.
    let revoked = second.split('_').nth(1).unwrap();
    elsewhere(&sandbox, &["key", "revoke", revoked, "--file", whole]).expect(0);
    // Lost by the next restore, which says so too.
    elsewhere(&sandbox, &["key", "create", "later", "--file", whole]).expect(0);

    // Never over something that is there, unless it is the same and its name is typed.
    refused(elsewhere(&sandbox, &restore), 4, "state_is_there");
    refused(elsewhere(&sandbox, &[&restore[..], &["--replace", "staging"]].concat()), 4, "wrong_name");
    // Everything that is in the way is said at once, before the backup is opened: this one has no end.
    let torn = sandbox.folder().join("torn.dump");
    std::fs::write(&torn, &std::fs::read(&kept).unwrap()[..std::fs::metadata(&kept).unwrap().len() as usize - 100])
        .unwrap();
    let restore_torn = [&["restore", torn.as_str(), "--env", "staging"][..], &with_key].concat();
    let all = refused(elsewhere(&sandbox, &restore_torn), 4, "other_environment")["error"].to_string();
    for said in [
        "--env is `staging`",
        "already contains this deployment",
        "resources, last changed at",
        "uses the state",
        "restore ",
        "--replace development",
        "is kept as",
        "down",
    ] {
        assert!(all.contains(said), "{said}: {all}");
    }
    let replace = [&restore[..], &["--replace", "development"]].concat();
    refused(elsewhere(&sandbox, &replace), 4, "running");
    // A supervisor that was killed leaves its programs behind, which use the state too.
    kill_supervisor(&sandbox);
    let left = refused(elsewhere(&sandbox, &replace), 4, "running")["error"].to_string();
    assert!(left.contains("run without their supervisor") && left.contains("down --env development"), "{left}");
    elsewhere(&sandbox, &["down", "--file", whole, "--yes"]).expect(0);
    let replaced = elsewhere(&sandbox, &replace).expect(0).json();
    assert_eq!(replaced["audit_ends"], Value::Null, "{replaced:#}");
    let lost: Vec<_> = replaced["lost_keys"].as_array().unwrap().iter().map(|key| &key["name"]).collect();
    assert_eq!(lost, ["later"], "{replaced:#}");
    let audited = elsewhere(&sandbox, &["audit", "list", "--env", "development"]).expect(0).json();
    let audited: Vec<_> = audited["commands"].as_array().unwrap().iter().map(|one| one["command"].clone()).collect();
    assert!(audited.contains(&json!("key revoke")), "it was recorded after the backup: {audited:?}");
    assert_eq!(audited.last(), Some(&json!("restore")));
    let again = &replaced["valid_again"];
    assert_eq!(
        (&again["keys"][0]["id"], &again["keys"][0]["name"]),
        (&json!(revoked), &json!("a person")),
        "{again:#}"
    );
    let command = again["keys"][0]["command"].as_str().unwrap();
    assert!(
        command.contains(&format!(" key revoke {revoked} --file ")) && command.contains("--state-dir"),
        "{command}"
    );
    assert_eq!((&again["secrets"], &again["unknown"]), (&json!([]), &Value::Null), "{again:#}");
    let kept = Utf8Path::new(replaced["replaced"].as_str().unwrap());
    assert!(kept.join("lineage.json").is_file() && kept.join("secrets").is_dir());
    assert!(other.join("development/lineage.json").is_file());

    // A damaged journal, while its service runs: no command reads it, and `--replace` keeps it as it keeps an intact one.
    let up = ["up", "--file", whole, "--yes", "--no-gate"];
    elsewhere(&sandbox, &up).expect(0);
    let journal = |state: &Utf8Path| std::fs::read(state.join("journal/here/log")).unwrap();
    let mut damaged = journal(&other.join("development"));
    let middle = damaged.len() / 2;
    damaged[middle] ^= 4;
    std::fs::write(other.join("development/journal/here/log"), &damaged).unwrap();
    let down = refused(elsewhere(&sandbox, &["down", "--file", whole, "--yes"]), 1, "damaged_state");
    for names in ["state repair", "restore FILE --replace development"] {
        assert!(down["error"]["hint"].as_str().unwrap().contains(names), "{names}: {down:#}");
    }
    let all = refused(elsewhere(&sandbox, &restore), 4, "state_is_there")["error"].to_string();
    assert!(all.contains("journal of `here` is damaged") && all.contains("--replace development"), "{all}");
    let running = refused(elsewhere(&sandbox, &replace), 4, "running");
    let (_, stop) = running["error"]["hint"].as_str().unwrap().split_once("data: ").unwrap();
    assert!(std::process::Command::new("sh").args(["-c", stop]).status().unwrap().success(), "{stop}");
    eventually("the end of the programs of the damaged state", || sandbox.processes().is_empty().then_some(()));
    // A damaged pointer to a state elsewhere says nothing about that state.
    let pointer = other.join("development/store.json");
    std::fs::write(&pointer, "").unwrap();
    refused(elsewhere(&sandbox, &replace), 1, "damaged_state");
    std::fs::remove_file(&pointer).unwrap();
    // A freeze ends without the journals, also one that cannot be read.
    let freeze = other.join("development/hold.json");
    let held =
        json!({ "by": "a person", "host": "here", "since": "2026-01-01T00:00:00Z", "why": "exams", "tool": "t" });
    for held in [json!({ "format": 1, "held": held }).to_string(), String::new()] {
        std::fs::write(&freeze, held).unwrap();
        refused(elsewhere(&sandbox, &replace), 4, "frozen");
        let released = elsewhere(&sandbox, &["hold", "--release", "--file", whole]).expect(0).json();
        assert_eq!(released["hold"], Value::Null, "{released:#}");
    }
    let replaced = elsewhere(&sandbox, &replace).expect(0).json();
    assert!(replaced["audit_ends"].as_str().unwrap().contains("damaged"), "{replaced:#}");
    assert_eq!(journal(Utf8Path::new(replaced["replaced"].as_str().unwrap())), damaged);
    let audited = elsewhere(&sandbox, &["audit", "list", "--env", "development"]).expect(0).json();
    assert!(!audited["commands"].to_string().contains("key revoke"), "it was recorded after the backup: {audited:#}");
    elsewhere(&sandbox, &up).expect(0);
    assert_eq!(answers(&sandbox, &first), 200);
    // A later backup with another key can be read after the earlier one is restored.
    elsewhere(&sandbox, &["secret", "rotate", "backup", "--yes", "--file", whole]).expect(0);
    let later = elsewhere(&sandbox, &["backup", "create", "--file", whole]).expect(0).json();
    let later = later["file"].as_str().unwrap();
    // Without a supervisor no process reads the file `expires`.
    kill_supervisor(&sandbox);
    let mut damaged = journal(&other.join("development"));
    let middle = damaged.len() / 2;
    damaged[middle] ^= 4;
    std::fs::write(other.join("development/journal/here/log"), &damaged).unwrap();
    let left = refused(elsewhere(&sandbox, &replace), 4, "running");
    let (_, kill) = left["error"]["hint"].as_str().unwrap().split_once("its programs: ").unwrap();
    assert!(kill.starts_with("kill "), "{kill}");
    // It fails if one of them has ended meanwhile.
    std::process::Command::new("sh").args(["-c", kill]).status().unwrap();
    eventually("the end of the programs without a supervisor", || sandbox.processes().is_empty().then_some(()));
    let replaced = elsewhere(&sandbox, &replace).expect(0).json();
    assert_eq!(replaced["backup_keys_taken_over"], 1, "{replaced:#}");
    let secrets = replaced["valid_again"]["secrets"].to_string();
    assert!(!secrets.contains("backup"), "the newest key encrypts: {secrets}");
    elsewhere(&sandbox, &["backup", "verify", later, "--light", "--file", whole]).expect(0);
}

#[test]
fn passphrase_restores_a_backup_and_a_plain_one_is_reported_as_such() {
    let sandbox = Sandbox::new("passphrase");
    // `down` keeps the database.
    run(&sandbox, &["up", "--yes", "--no-gate", "--set", "data=protected"]).expect(0);
    let passphrase = sandbox.folder().join("passphrase");
    textnlp_tests::write_secret(&passphrase, "correct horse battery staple\n");
    let with = ["--passphrase-file", passphrase.as_str()];
    let sealed = run(&sandbox, &[&["backup", "create"][..], &with].concat()).expect(0).json();
    let plain = run(&sandbox, &["backup", "create", "--plain"]).expect(0);
    assert!(plain.err.contains("not encrypted"), "{}", plain.err);
    let plain = plain.json();
    let (sealed, plain) = (sealed["file"].as_str().unwrap(), plain["file"].as_str().unwrap());
    // At midnight it has another day.
    let day = |file: &str| file.rsplit('_').next().unwrap()[..8].to_owned();
    assert_eq!(plain.ends_with("-2.dump"), day(plain) == day(sealed), "{sealed} {plain}");
    refused(run(&sandbox, &["backup", "verify", sealed]), 2, "sealed");
    let exposed = sandbox.folder().join("exposed");
    std::fs::write(&exposed, "correct horse battery staple\n").unwrap();
    for option in ["--passphrase-file", "--key"] {
        let said = run(&sandbox, &["backup", "verify", sealed, option, exposed.as_str()]);
        let said = refused(said, 4, "secret_exposed");
        assert_eq!(said["error"]["hint"], format!("chmod 600 {exposed}"));
    }
    let proof = run(&sandbox, &[&["backup", "verify", "--light", sealed][..], &with].concat()).expect(0).json();
    assert_eq!(proof["proof"]["level"], "keys", "{proof:#}");
    run(&sandbox, &["backup", "verify", "--light", plain]).expect(0);
    // The record beside a backup is not signed.
    let record = format!("{plain}.json");
    let recorded = std::fs::read_to_string(&record).unwrap();
    let mut forged: Value = serde_json::from_str(&recorded).unwrap();
    forged["at"] = "2026-01-01T10:00:00Z".into();
    std::fs::write(&record, forged.to_string()).unwrap();
    let said = run(&sandbox, &["backup", "verify", "--light", plain]);
    assert!(said.exit != 0 && said.out.contains("another backup was put in its place"), "{}", said.out);
    std::fs::write(&record, recorded).unwrap();
    run(&sandbox, &["backup", "verify", "--light", plain]).expect(0);
    // Nothing here names the key that has to have signed it.
    let restored = elsewhere(&sandbox, &["restore", plain]).expect(0);
    assert!(restored.err.contains("the origin of") && restored.err.contains("was not verified"), "{}", restored.err);
    assert_eq!(restored.json()["signer_verified"], false);

    // A database that the state records and that is missing: a backup without it is not the newest one.
    run(&sandbox, &["down", "--yes"]).expect(0);
    let proof = run(&sandbox, &["backup", "verify", plain]).expect(0).json()["proof"].clone();
    let says = proof["says"].as_str().unwrap();
    assert!(proof["level"] == "keys" && says.contains("is not deployed on this machine"), "{proof:#}");
    let data = sandbox.site("development").join("data");
    std::fs::rename(&data, sandbox.folder().join("data")).unwrap();
    let before = listed(&sandbox).len();
    let missing = refused(run(&sandbox, &["backup", "create", "--plain"]), 1, "database_missing")["error"].to_string();
    assert!(missing.contains(data.as_str()) && missing.contains("--replace development"), "{missing}");
    assert_eq!(listed(&sandbox).len(), before);
    std::fs::rename(sandbox.folder().join("data"), &data).unwrap();
    run(&sandbox, &["backup", "create", "--plain"]).expect(0);
    run(&sandbox, &["down", "--yes", "--delete-data", "development"]).expect(0);
    let without = run(&sandbox, &["backup", "create", "--plain"]).expect(0);
    assert!(without.err.contains("there is no database in it"), "{}", without.err);
}

#[test]
fn killed_backup_leaves_no_partial_backup_file() {
    let sandbox = Sandbox::new("killed");
    sandbox.up("development");
    let mut dice = Dice(4);
    for _ in 0..12 {
        let mut child = sandbox.start(&["backup", "create", "--env", "development"]);
        std::thread::park_timeout(Duration::from_millis(dice.below(400)));
        let _ = child.kill();
        child.wait().unwrap();
    }
    run(&sandbox, &["backup", "create"]).expect(0);
    let dumps = listed(&sandbox);
    for dump in &dumps {
        assert!(dump["digest"].is_string(), "everybody knows what it is: {dump:#}");
        run(&sandbox, &["backup", "verify", "--light", dump["file"].as_str().unwrap()]).expect(0);
    }
    let state = sandbox.folder().join("state");
    let left: Vec<_> =
        sandbox.files(&state).into_iter().filter(|f| f.contains(".unfinished") || f.contains(".backup-")).collect();
    assert_eq!(left, Vec::<String>::new(), "the next run tidied up");
}

#[test]
fn scheduled_backups_are_verified_and_a_failure_stops_nothing() {
    let sandbox = Sandbox::new("schedule");
    let on = ["--set", "backup.enabled=true", "--set", "backup.every=1m", "--set", "data=protected"];
    run(&sandbox, &[&["up", "--yes", "--no-gate"][..], &on].concat()).expect(0);
    let proven = eventually("a copy of the schedule", || {
        listed(&sandbox).into_iter().find(|dump| dump["verified"] == json!(true))
    });
    assert_eq!(proven["proof"]["level"], "answered", "{proven:#}");
    let log = std::fs::read_to_string(sandbox.site("development").join("log/supervisor.log")).unwrap();
    assert!(log.contains("backup started"), "{log}");
    run(&sandbox, &["backup", "create"]).expect(0);
    run(&sandbox, &["backup", "create"]).expect(0);
    let before = listed(&sandbox);
    for dump in &before {
        let record = format!("{}.json", dump["file"].as_str().unwrap());
        std::fs::write(&record, aged(&std::fs::read(&record).unwrap())).unwrap();
    }
    // What goes is shown, and asked for; a slip of the age is refused.
    refused(run(&sandbox, &["backup", "prune", "--keep", "0d", "--yes"]), 2, "usage");
    let asked = refused(run(&sandbox, &["backup", "prune", "--keep", "1d"]), 4, "not_approved");
    assert!(!asked["found"].as_array().unwrap().is_empty(), "{asked:#}");
    assert!(listed(&sandbox).len() >= before.len(), "nothing was removed");
    let pruned = run(&sandbox, &["backup", "prune", "--keep", "1d", "--yes"]).expect(0).json();
    assert!(pruned["kept"].as_u64().unwrap() >= 1, "the newest proven one stays: {pruned:#}");
    assert!(!pruned["removed"].as_array().unwrap().is_empty(), "{pruned:#}");
    assert!(listed(&sandbox).iter().any(|dump| dump["verified"] == json!(true)));
    run(&sandbox, &["down", "--yes", "--delete-data", "development"]).expect(0);

    let sandbox = Sandbox::new("no-place");
    let nowhere = [&on[..], &["--set", "backup.destination=/proc/nowhere"]].concat();
    run(&sandbox, &[&["up", "--yes", "--no-gate"][..], &nowhere].concat()).expect(0);
    let status = eventually("a failed copy that is told", || {
        let status = run(&sandbox, &[&["status"][..], &nowhere].concat()).json();
        (status["backup"]["last"]["ok"] == json!(false)).then_some(status)
    });
    assert!(status["backup"]["warnings"][0].as_str().unwrap().contains("FAILED"), "{status:#}");
    assert_eq!(status["ready"], true, "the service goes on");
    assert_eq!(answers(&sandbox, &sandbox.first_key("development")), 200);
}

/// The settings of backups in a folder of a bucket, with the credentials in a file of the sandbox.
fn in_bucket(sandbox: &Sandbox, url: &str, credentials: &str) -> [String; 4] {
    let file = sandbox.folder().join("bucket.env");
    write_secret(&file, credentials);
    let set = |setting: String| ["--set".to_owned(), setting];
    let [[a, b], [c, d]] =
        [format!("backup.destination={url}"), format!("backup.credentials=secret:file:{file}")].map(set);
    [a, b, c, d]
}

fn with<'a>(args: &[&'a str], sets: &'a [String]) -> Vec<&'a str> {
    args.iter().copied().chain(sets.iter().map(String::as_str)).collect()
}

/// All that is left of the first machine is a bucket and the key.
#[test]
fn backups_in_a_bucket_restore_a_deployment_and_are_pruned_there() {
    let Some(bucket) = Bucket::start() else { return };
    let sandbox = Sandbox::new("bucket-backups");
    let sets = in_bucket(&sandbox, &bucket::url("copies"), &bucket.credentials());
    let on = ["up", "--yes", "--no-gate", "--set", "backup.enabled=true", "--set", "backup.every=1h"];
    let up = run(&sandbox, &with(&on, &sets)).expect(0).json();
    let first = sandbox.first_key("development");

    // The supervisor has none of the operator's variables.
    let proven = eventually("a verified backup of the schedule", || {
        listed(&sandbox).into_iter().find(|dump| dump["verified"] == json!(true))
    });
    let folder = format!("{}/development", bucket::url("copies"));
    assert!(proven["file"].as_str().unwrap().starts_with(&folder), "{proven:#}");
    let made = run(&sandbox, &["backup", "create"]).expect(0);
    assert!(!format!("{}{}", made.out, made.err).contains("hunter2"), "{}{}", made.out, made.err);
    let made = made.json();
    assert_eq!(made["same_disk"], false);
    let file = made["file"].as_str().unwrap();
    let name = Utf8Path::new(file).file_name().unwrap();
    let keys = bucket.keys("copies/development/");
    for ending in ["", ".json"] {
        assert!(keys.contains(&format!("copies/development/{name}{ending}")), "{keys:?}");
    }
    let workplace = sandbox.folder().join("state/development.backups");
    let proof = run(&sandbox, &["backup", "verify", name, "--light"]).expect(0).json();
    assert_eq!(proof["file"], file, "{proof:#}");
    assert!(bucket.keys("copies/development/").contains(&format!("copies/development/{name}.verified.json")));
    let status = run(&sandbox, &["status"]).expect(0).json();
    assert!(status["backup"]["newest_verified"].is_string(), "{status:#}");
    assert_eq!(sandbox.files(&workplace), [".lock"], "nothing of an upload stays on this disk");

    let key = sandbox.folder().join("carried-away.key");
    sandbox.run(&["backup", "key", "show", "--out", key.as_str(), "--env", "development"]).expect(0);
    run(&sandbox, &["down", "--yes", "--delete-data", "development"]).expect(0);
    let variables: Vec<(String, String)> = bucket
        .credentials()
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let other = sandbox.folder().join("elsewhere");
    let restore = |file: &str| {
        let mut command = sandbox.command(&["restore", file, "--key", key.as_str(), "-o", "json"]);
        said(command.env("TEXTNLP_STATE_DIR", &other).envs(variables.clone()).output().unwrap())
    };
    refused(restore(&format!("{folder}/notes.txt")), 2, "no_such_file");
    let restored = restore(file).expect(0).json();
    assert_eq!((&restored["lineage"], &restored["file"]), (&up["lineage"], &json!(file)));
    assert_eq!(restored["signer_verified"], true);
    let left = std::fs::read_dir(&other).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(
        left.filter(|name| name.starts_with(".fetch-")).collect::<Vec<_>>(),
        [""; 0],
        "the copy of the backup is removed"
    );
    let whole = restored["environment_file"].as_str().unwrap();
    // That file is on the first machine only.
    let credentials = sandbox.folder().join("bucket.env");
    let on_first = std::fs::read_to_string(&credentials).unwrap();
    std::fs::remove_file(&credentials).unwrap();
    let without = elsewhere(&sandbox, &["up", "--file", whole, "--yes", "--no-gate"]);
    assert_eq!(without.exit, 2, "{}{}", without.out, without.err);
    assert!(format!("{}{}", without.out, without.err).contains("backup.credentials"), "{}", without.err);
    write_secret(&credentials, &on_first);
    elsewhere(&sandbox, &["up", "--file", whole, "--yes", "--no-gate"]).expect(0);
    assert_eq!(answers(&sandbox, &first), 200);
    // It goes on in the same bucket, and retention applies to what is there.
    let port = bucket.credentials().trim().rsplit(':').next().unwrap().parse().unwrap();
    // moto refuses a request for an object without a signature, and does not check the signature.
    let signed = ("Authorization", "AWS4-HMAC-SHA256 Credential=reader/20260101/us-east-1/s3/aws4_request");
    for key in bucket.keys("copies/development/").iter().filter(|key| key.ends_with(".dump.json")) {
        let path = bucket::url(key).replacen("s3:/", "", 1);
        let record = aged(http::ask(port, "GET", &path, &[signed], b"").unwrap().text().as_bytes());
        let length = record.len().to_string();
        let put = http::ask(port, "PUT", &path, &[signed, ("Content-Length", &length)], record.as_bytes());
        assert_eq!(put.unwrap().status, 200);
    }
    let pruned = eventually("retention while no backup is being written", || {
        let said = elsewhere(&sandbox, &["backup", "prune", "--keep", "1d", "--yes", "--env", "development"]);
        (said.exit == 0).then(|| said.json())
    });
    assert!(!pruned["removed"].as_array().unwrap().is_empty(), "{pruned:#}");
    let keys = bucket.keys("copies/development/");
    for gone in pruned["removed"].as_array().unwrap() {
        let gone = Utf8Path::new(gone.as_str().unwrap()).file_name().unwrap().to_owned();
        assert!(!keys.iter().any(|key| key.contains(&gone)), "{gone}: {keys:?}");
    }
    assert!(pruned["kept"].as_u64().unwrap() >= 1, "{pruned:#}");
    elsewhere(&sandbox, &["down", "--yes", "--env", "development"]).expect(0);
}

/// What the job of a cluster runs beside the volume with its dumps.
#[test]
fn dumps_of_a_cluster_are_stored_before_they_are_copied_to_a_bucket() {
    let Some(bucket) = Bucket::start() else { return };
    let sandbox = Sandbox::new("bucket-dumps");
    let file = |name: &str| sandbox.folder().join(name);
    std::fs::create_dir(file("dumps")).unwrap();
    std::fs::write(file("report"), "verified").unwrap();
    let recipient = Key::generate().recipient().to_string();
    let store = |credentials: &str| {
        std::fs::write(file("dump"), "PGDMP and the digests of keys").unwrap();
        write_secret(&file("bucket.env"), credentials);
        let mut command = sandbox.command(&["backup", "encrypt", "--keep", "86400", "-o", "json"]);
        for (flag, name) in [("dump", "dump"), ("report", "report"), ("folder", "dumps"), ("credentials", "bucket.env")]
        {
            command.arg(format!("--{flag}={}", file(name)));
        }
        command.arg(format!("--recipient={recipient}"));
        said(command.arg(format!("--destination={}", bucket::url("copies/pilot/main"))).output().unwrap())
    };
    let dumps = || {
        std::fs::read_dir(file("dumps"))
            .unwrap()
            .filter(|one| one.as_ref().unwrap().file_name().to_str().unwrap().ends_with(".dump.age"))
            .count()
    };
    // The job fails, and the dump is there.
    let denied = refused(store(&bucket::credentials(&denying())), 1, "bucket").to_string();
    assert!(denied.contains("is stored in") && denied.contains("InvalidAccessKeyId"), "{denied}");
    assert!(!denied.contains("hunter2"), "{denied}");
    assert_eq!((dumps(), bucket.keys("copies/").len()), (1, 0));
    // The next run copies both.
    let copied = store(&bucket.credentials()).expect(0).json();
    assert_eq!(copied["copied"].as_array().unwrap().len(), 2, "{copied:#}");
    assert_eq!((dumps(), bucket.keys("copies/pilot/main/backup_").len()), (2, 2));
    let copied = store(&bucket.credentials()).expect(0).json();
    assert_eq!(copied["copied"].as_array().unwrap().len(), 1, "{copied:#}");
}

/// An S3 server that refuses all credentials.
fn denying() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = std::io::BufReader::new(&stream);
            let mut line = String::new();
            while std::io::BufRead::read_line(&mut reader, &mut line).is_ok_and(|read| read > 2) {
                line.clear();
            }
            let body =
                "<?xml version=\"1.0\"?><Error><Code>InvalidAccessKeyId</Code><Message>It is unknown</Message></Error>";
            let head = format!("HTTP/1.1 403 Forbidden\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = std::io::Write::write_all(&mut &stream, format!("{head}{body}").as_bytes());
        }
    });
    address
}

#[test]
fn missing_bucket_and_wrong_credentials_are_named() {
    let sandbox = Sandbox::new("no-bucket");
    let sets = in_bucket(&sandbox, &bucket::url("copies"), &bucket::credentials(&denying()));
    let denied = refused(run(&sandbox, &with(&["backup", "list"], &sets)), 1, "bucket").to_string();
    let file = sandbox.folder().join("bucket.env");
    for part in [&format!("AWS_ACCESS_KEY_ID of {file}"), "InvalidAccessKeyId", "grant them permission"] {
        assert!(denied.contains(part) && !denied.contains("hunter2"), "{part}: {denied}");
    }
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    refused(run(&sandbox, &with(&["backup", "list"], &sets)), 4, "secret_exposed");
    write_secret(&file, "AWS_ACCESS_KEY_ID=\"test\"\n");
    let planned = run(&sandbox, &with(&["plan", "--set", "backup.enabled=true"], &sets));
    let quoted = refused(planned, 2, "not_available").to_string();
    assert!(quoted.contains("line 1") && quoted.contains("quotation mark"), "{quoted}");
    let Some(bucket) = Bucket::start() else { return };
    let sets = in_bucket(&sandbox, "s3://no-such-bucket/copies", &bucket.credentials());
    let missing = refused(run(&sandbox, &with(&["backup", "list"], &sets)), 1, "bucket").to_string();
    assert!(missing.contains("NoSuchBucket") && missing.contains("create the bucket"), "{missing}");
}

/// Cuts a journal off after an operation on a resource began.
fn cut_after_begun(journal: &Utf8Path, resource: &str) {
    let log = std::fs::read_to_string(journal.join("log")).unwrap();
    let mut kept = String::new();
    for line in log.lines() {
        kept += &format!("{line}\n");
        let (sum, record) = line.split_once(' ').unwrap();
        let record: Value = serde_json::from_str(record).unwrap();
        if record["entry"] == "begun" && record["resource"].as_str().unwrap_or_default().contains(resource) {
            let head = json!({ "n": record["n"], "sum": sum, "len": kept.len() });
            std::fs::write(journal.join("log"), &kept).unwrap();
            std::fs::write(journal.join("head.json"), head.to_string()).unwrap();
            let _ = std::fs::remove_file(journal.join("snapshot.json"));
            return;
        }
    }
    panic!("no operation on {resource} began: {log}");
}

/// What a repository or an archive brings along: a state with programs, records and links of its author.
#[test]
fn state_of_another_author_is_refused_until_it_is_adopted() {
    let sandbox = Sandbox::new("foreign");
    run(&sandbox, &["up", "--yes", "--no-gate"]).expect(0);
    let foreign = sandbox.folder().join("elsewhere");
    std::fs::create_dir(&foreign).unwrap();
    let copied =
        std::process::Command::new("cp").args(["-a", sandbox.state("development").as_str(), foreign.as_str()]).status();
    assert!(copied.unwrap().success());
    let other = |args: &[&str]| elsewhere(&sandbox, &[args, &ENV].concat());
    for command in [&["backup", "create"][..], &["down", "--yes"], &["cleanup", "--older-than", "1d"]] {
        let said = refused(other(command), 4, "copied_state");
        assert!(said["error"]["hint"].as_str().unwrap().contains("state adopt"), "{said:#}");
    }

    // A program that its lock names and its folder holds is not even asked what it is.
    let proof = sandbox.folder().join("it-ran");
    let text = format!("#!/bin/sh\ntouch {proof}\n");
    let script = sandbox.folder().join("script");
    std::fs::write(&script, &text).unwrap();
    let sum = std::process::Command::new("sha256sum").arg(&script).output().unwrap().stdout;
    let digest = String::from_utf8(sum[..64].to_vec()).unwrap();
    let program = foreign.join("development/programs").join(&digest);
    std::fs::create_dir_all(program.parent().unwrap()).unwrap();
    std::fs::rename(&script, &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let lock = foreign.join("development/development.lock");
    let locked = std::fs::read_to_string(&lock).unwrap();
    let named = |line: &str| match line.starts_with("server: ") {
        true => format!("server: sha256:{digest}\n"),
        false => format!("{line}\n"),
    };
    std::fs::write(&lock, locked.lines().map(named).collect::<String>()).unwrap();
    refused(other(&["plan"]), 4, "locked_program_missing");
    other(&["doctor"]);
    assert!(!proof.exists());
    std::fs::write(&lock, locked).unwrap();

    // A run finishes what the journal has begun before it plans, so its author would decide what starts.
    let (journal, whole) = (foreign.join("development/journal/here"), foreign.join("whole"));
    let copied = std::process::Command::new("cp").args(["-a", journal.as_str(), whole.as_str()]).status();
    assert!(copied.unwrap().success());
    cut_after_begun(&journal, "gateway/process");
    let log = || std::fs::read_to_string(journal.join("log")).unwrap();
    let cut = log();
    let asked = refused(other(&["up", "--no-gate"]), 4, "not_approved");
    assert!(asked["error"]["message"].as_str().unwrap().contains("open operations"), "{asked:#}");
    assert!(asked["error"]["hint"].as_str().unwrap().contains("state adopt"), "{asked:#}");
    assert_eq!(log(), cut, "nothing was finished");
    std::fs::remove_dir_all(&journal).unwrap();
    std::fs::rename(&whole, &journal).unwrap();

    refused(other(&["state", "adopt"]), 4, "not_approved");
    assert_eq!(other(&["state", "adopt", "--yes"]).expect(0).json()["adopted"], true);
    assert_eq!(other(&["state", "adopt"]).expect(0).json()["adopted"], false);
    assert_eq!(run(&sandbox, &["state", "adopt"]).expect(0).json()["adopted"], false);
    other(&["backup", "create"]).expect(0);
    run(&sandbox, &["down", "--yes"]).expect(0);
}

/// Restoring a database runs what its dump contains, so a backup of another signer is not restored.
#[test]
fn backup_of_another_signer_is_not_run_by_its_verification() {
    let sandbox = Sandbox::new("forged");
    run(&sandbox, &["up", "--yes", "--no-gate"]).expect(0);
    let own = run(&sandbox, &["backup", "create"]).expect(0).json();
    let attacker = Sandbox::new("attacker");
    run(&attacker, &["up", "--yes", "--no-gate"]).expect(0);
    let made = run(&attacker, &["backup", "create", "--plain"]).expect(0).json();
    run(&attacker, &["down", "--yes"]).expect(0);
    let folder = Utf8PathBuf::from(own["file"].as_str().unwrap()).parent().unwrap().to_owned();
    let forged = folder.join("backup_20990101.dump");
    std::fs::copy(made["file"].as_str().unwrap(), &forged).unwrap();
    // It is the newest.
    refused(run(&sandbox, &["backup", "verify", "--light"]), 4, "other_signer");
    refused(
        run(&sandbox, &["backup", "verify", "--light", "--signed-by", own["signer"].as_str().unwrap()]),
        4,
        "other_signer",
    );
    for trusted in ["any", made["signer"].as_str().unwrap()] {
        let said = run(&sandbox, &["backup", "verify", "--light", "--signed-by", trusted]).expect(0);
        assert_eq!(said.json()["verified"], true);
    }
    run(&sandbox, &["backup", "verify", "--light", own["file"].as_str().unwrap()]).expect(0);
    run(&sandbox, &["down", "--yes"]).expect(0);
}
