//! A database goes back to any moment: the log of a PostgreSQL of our own is archived beside the copies, what stands in the way of a moment
//! is said before anything changes, and nothing that happens to the archive stops the service. The real program, and a real server.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use textnlp_tests::small::Small;
use textnlp_tests::{Dice, Said, Sandbox, copy, eventually, http, said};

#[path = "../../server/tests/support/postgres.rs"]
mod postgres;

const ENV: [&str; 2] = ["--env", "development"];
/// The schedule makes the first copy at once and no other.
const ON: [&str; 12] = [
    "--set",
    "database.kind=postgres",
    "--set",
    "data=protected",
    "--set",
    "backup.enabled=true",
    "--set",
    "backup.every=24h",
    "--set",
    "backup.verify=false",
    "--set",
    "backup.point_in_time=5s",
];

fn run(sandbox: &Sandbox, args: &[&str]) -> Said {
    sandbox.run(&[args, &ENV, &["-o", "json"]].concat())
}

fn up(sandbox: &Sandbox, more: &[&str]) -> Value {
    run(sandbox, &[&["up", "--yes", "--no-gate"][..], &ON, more].concat()).expect(0).json()
}

/// The same program with its state somewhere else: another machine, as far as a program can tell.
fn elsewhere(sandbox: &Sandbox, args: &[&str]) -> Command {
    let mut command = sandbox.command(&[args, &["-o", "json"]].concat());
    command.env("TEXTNLP_STATE_DIR", sandbox.folder().join("elsewhere"));
    command
}

/// This moment, as a person would type it.
fn now() -> String {
    let said = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%6NZ"]).output().unwrap();
    String::from_utf8(said.stdout).unwrap().trim().to_owned()
}

/// A new key, and its public id.
fn key(sandbox: &Sandbox, name: &str) -> (String, String) {
    let key = run(sandbox, &["key", "create", name]).expect(0).json()["key"].as_str().unwrap().to_owned();
    let id = key.split('_').nth(1).unwrap().to_owned();
    (key, id)
}

fn answers(sandbox: &Sandbox, key: &str) -> u16 {
    let body = json!({ "prompt": "Mira", "max_tokens": 4 }).to_string();
    let asked = http::ask(sandbox.port, "POST", "/v1/generate", &[("X-API-Key", key)], body.as_bytes());
    asked.map_or(0, |answer| answer.status)
}

fn listed(sandbox: &Sandbox) -> Value {
    run(sandbox, &["backup", "list"]).expect(0).json()
}

/// Waits for the first copy of the schedule; says from when on its log leads further.
fn base(sandbox: &Sandbox) -> String {
    let record = sandbox.state("development").join("backup.json");
    let mut failures = 0;
    eventually("a base", || {
        let standing: Value = serde_json::from_slice(&std::fs::read(&record).unwrap_or_default()).unwrap_or_default();
        if standing["last"]["ok"] == false {
            failures += 1;
            eprintln!("a copy failed: {standing:#}");
            // On a busy machine one may, but why it failed says more than that there is no base.
            assert!(failures < 2, "two copies failed: {standing:#}");
            // Without a record the next one is due within a minute.
            std::fs::remove_file(&record).unwrap();
        }
        Some(listed(sandbox)["moments"][0]["from"].as_str()?.to_owned())
    })
}

/// Waits for the log to lead past a moment; says what the newest base and its log lead to.
fn archived(sandbox: &Sandbox, moment: &str) -> Value {
    eventually("the log is archived", || {
        let range = listed(sandbox)["moments"][0].clone();
        // Whole seconds: the rest is written with as many digits as there are.
        (range["until"].as_str()?[..19] > moment[..19]).then_some(range)
    })
}

/// What refuses a moment, in one line: every problem and the hint.
#[track_caller]
fn refused(said: Said, code: &str) -> String {
    let document = said.expect(2).json();
    assert_eq!(document["error"]["code"], code, "{document:#}");
    format!("{} {}", document["error"]["causes"], document["error"]["hint"])
}

/// The whole parts in an archive, in their order.
fn parts(log: &Utf8Path) -> Vec<Utf8PathBuf> {
    let files = log.read_dir_utf8().unwrap().map(|entry| entry.unwrap().path().to_owned());
    let is_part = |file: &Utf8PathBuf| file.file_name().is_some_and(|name| name.len() == 28 && name.ends_with(".age"));
    let mut parts: Vec<Utf8PathBuf> = files.filter(is_part).collect();
    parts.sort();
    parts
}

/// What a restore put there. Its record in the audit log is written after it.
fn restored_files(sandbox: &Sandbox, target: &Utf8Path) -> Vec<String> {
    let files = sandbox.files(&target.join("development"));
    files.into_iter().filter(|file| !file.starts_with("audit/")).collect()
}

#[test]
fn point_in_time_restore_recovers_between_two_keys_on_a_bare_machine() {
    if !postgres::is_installed() {
        return;
    }
    let sandbox = Sandbox::new("moment");
    up(&sandbox, &[]);
    let first_key = sandbox.first_key("development");
    // The first copy is made while `up` ends, and has its environment all the same.
    let base = base(&sandbox);
    let (early, _) = key(&sandbox, "early");
    let (gone, gone_id) = key(&sandbox, "revoked before");
    run(&sandbox, &["key", "revoke", &gone_id, "--yes"]).expect(0);
    let moment = now();
    let (late, _) = key(&sandbox, "late");
    assert_eq!([&early, &gone, &late].map(|key| answers(&sandbox, key)), [200, 401, 200]);
    archived(&sandbox, &now());
    // One of them goes missing below: it is not the first, which may have come along with the base, nor the last, which nobody would miss.
    let range = eventually("three parts lead on from the base", || {
        let range = listed(&sandbox)["moments"][0].clone();
        (range["parts"].as_u64()? >= 3).then_some(range)
    });
    let shown = run(&sandbox, &["backup", "key", "show"]).expect(0).json();
    let key_file = sandbox.folder().join("carried.key");
    textnlp_tests::write_secret(&key_file, shown["key"].as_str().unwrap());

    // A proof takes the base and the log as far as it goes, and asks a server on it.
    let proof = run(&sandbox, &["backup", "verify"]).expect(0).json();
    let says = proof["proof"]["says"].as_str().unwrap();
    assert!(says.contains("base backup and log up to") && says.contains("a server with it answered"), "{says}");

    // The machine is gone; the folder of its copies is not.
    run(&sandbox, &["down", "--yes"]).expect(0);
    let kept = sandbox.folder().join("kept");
    std::fs::rename(sandbox.folder().join("state/development.backups"), &kept).unwrap();
    run(&sandbox, &["down", "--yes", "--delete-data", "development"]).expect(0);
    std::fs::remove_dir_all(sandbox.folder().join("state")).unwrap();
    let with_key = ["--key", key_file.as_str()];
    let restore = |at: &str, more: &[&str]| {
        let args = [&["restore", kept.as_str(), "--at", at][..], more].concat();
        said(elsewhere(&sandbox, &args).output().unwrap())
    };
    let file = kept.join(Utf8Path::new(range["file"].as_str().unwrap()).file_name().unwrap());
    let restore_file = |at: &str, more: &[&str]| {
        let args = [&["restore", file.as_str(), "--at", at][..], more].concat();
        said(elsewhere(&sandbox, &args).output().unwrap())
    };

    // What cannot be is said at once, with what can.
    refused(restore("yesterday", &with_key), "usage");
    for (at, why) in [("2001-01-01T00:00:00Z", "before the base"), ("2101-01-01T00:00:00Z", "ends at")] {
        let problems = refused(restore_file(at, &with_key), "no_such_moment");
        assert!(problems.contains(why) && problems.contains("any time from"), "{problems}");
        refused(restore(at, &with_key), "no_such_moment");
    }
    let later = restore_file("2101-01-01T00:00:00Z", &with_key).json();
    let leading = later["ranges"][0]["parts"].as_u64().unwrap() as usize;
    let both = refused(restore_file("2101-01-01T00:00:00Z", &[]), "no_such_moment");
    assert!(both.contains("--key FILE") && both.contains("ends at"), "one report: {both}");

    // A part that is missing, and one with another bit in it.
    let log = kept.join("log").join(Utf8Path::new(range["log"].as_str().unwrap()).file_name().unwrap());
    let all = parts(&log);
    let part = &all[all.len() - leading + 1];
    let name = part.file_stem().unwrap();
    let bytes = std::fs::read(part).unwrap();
    std::fs::remove_file(part).unwrap();
    let gap = refused(restore_file(&moment, &with_key), "no_such_moment");
    assert!(gap.contains(&format!("{name} is missing")), "{gap}");
    let mut flipped = bytes.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    std::fs::write(part, flipped).unwrap();
    let damaged = refused(restore_file(&moment, &with_key), "no_such_moment");
    assert!(damaged.contains(name) && damaged.contains("damaged"), "{damaged}");
    // A whole one that the environment's key did not sign.
    std::fs::write(part, &bytes).unwrap();
    let signature = log.join(format!("{name}.json.minisig"));
    let signed = std::fs::read(&signature).unwrap();
    std::fs::copy(log.join(format!("{}.json.minisig", all[all.len() - leading].file_stem().unwrap())), &signature)
        .unwrap();
    let forged = refused(restore_file(&moment, &with_key), "no_such_moment");
    assert!(forged.contains(name) && forged.contains("signature"), "{forged}");
    std::fs::write(&signature, signed).unwrap();
    let target = sandbox.folder().join("elsewhere");
    assert_eq!(sandbox.files(&target), Vec::<String>::new(), "what was refused left nothing");
    std::fs::write(part, bytes).unwrap();

    // Killed at any point, nothing is there, or all of it where the kill came behind the one step that puts it there; nothing goes on, and
    // the next one tidies up.
    let mut dice = Dice(7);
    let mut left_whole = Vec::new();
    for _ in 0..3 {
        let args = [&["restore", kept.as_str(), "--at", &moment][..], &with_key].concat();
        let mut child = elsewhere(&sandbox, &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::park_timeout(Duration::from_millis(300 + dice.below(2500)));
        let _ = child.kill();
        let ended = child.wait().unwrap();
        let there = restored_files(&sandbox, &target);
        assert!(!ended.success() || !there.is_empty());
        if !there.is_empty() {
            left_whole.push(there);
            std::fs::remove_dir_all(target.join("development")).unwrap();
        }
    }
    // Whatever a killed one began sees that it is gone; what still writes while the next one tidies up would be left.
    eventually("what the killed ones began has ended", || sandbox.processes_now().is_empty().then_some(()));
    let restored = restore(&moment, &with_key).expect(0).json();
    let whole = restored_files(&sandbox, &target);
    assert!(left_whole.iter().all(|there| *there == whole), "{whole:#?} and {left_whole:#?}");
    assert_eq!(restored["file"], json!(file), "the base that leads there");
    let left: Vec<_> = target.read_dir_utf8().unwrap().map(|entry| entry.unwrap().file_name().to_owned()).collect();
    assert_eq!(left, ["development"], "{restored:#}");
    let whole = restored["environment_file"].as_str().unwrap();
    let up = said(elsewhere(&sandbox, &["up", "--file", whole, "--yes", "--no-gate"]).output().unwrap());
    up.expect(0);
    let all = [&first_key, &early, &gone, &late].map(|key| answers(&sandbox, key));
    assert_eq!(all, [200, 200, 401, 401], "the early key is there, the late one is not, what was revoked stays so");
    assert!(base < moment);
    // The schedule makes its first copy here by now, and holds the state meanwhile: then it is refused, and tried again.
    let down = ["down", "--env", "development", "--yes", "--delete-data", "development"];
    eventually("it goes down", || (said(elsewhere(&sandbox, &down).output().unwrap()).exit == 0).then_some(()));
}

/// The keeper's own figures.
fn figures(sandbox: &Sandbox) -> String {
    let socket = sandbox.site("development").join("run/database-0.sock");
    let Ok(mut stream) = std::os::unix::net::UnixStream::connect(socket) else { return String::new() };
    let asked = stream.write_all(http::head("GET", "/metrics", &[], 0).as_bytes());
    asked.ok().and_then(|()| http::read(stream).ok()).map_or(String::new(), |answer| answer.text())
}

fn figure(sandbox: &Sandbox, name: &str) -> Option<i64> {
    let text = figures(sandbox);
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

#[test]
fn failing_wal_archive_is_reported_and_resumes_without_a_gap() {
    if !postgres::is_installed() {
        return;
    }
    let sandbox = Sandbox::new("archive");
    up(&sandbox, &[]);
    let key = sandbox.first_key("development");
    base(&sandbox);
    archived(&sandbox, &now());

    // Its command is killed, and comes back.
    for _ in 0..3 {
        let pid = eventually("the archive runs", || sandbox.pid("backup archive"));
        sandbox.kill(pid);
        eventually("another one runs", || sandbox.pid("backup archive").filter(|other| *other != pid));
    }
    archived(&sandbox, &now());

    // There is no place for it.
    let shelf = sandbox.folder().join("state/development.backups");
    let (log, aside) = (shelf.join("log"), sandbox.folder().join("aside"));
    copy(&log, &aside);
    std::fs::remove_dir_all(&log).unwrap();
    std::fs::write(&log, "in its place").unwrap();
    eventually("it is told", || {
        let status = run(&sandbox, &[&["status"][..], &ON].concat()).json();
        let warnings = status["backup"]["warnings"].to_string();
        (warnings.contains("is NOT archived") && status["ready"] == true).then_some(())
    });
    eventually("it is measured", || {
        (figure(&sandbox, "textnlp_database_archive_fails") == Some(1)
            && figure(&sandbox, "textnlp_database_archive_failures")? > 0
            && figure(&sandbox, "textnlp_database_archive_waiting")? > 0)
            .then_some(())
    });
    assert!(figure(&sandbox, "textnlp_database_archive_age_seconds").is_some());
    assert_eq!(answers(&sandbox, &key), 200, "the service goes on");
    std::fs::remove_file(&log).unwrap();
    copy(&aside, &log);
    let range = archived(&sandbox, &now());
    assert_eq!(range["missing"], Value::Null, "what waited was handed over: {range:#}");
    let status = run(&sandbox, &[&["status"][..], &ON].concat()).json();
    assert!(!status["backup"]["warnings"].to_string().contains("archived"), "{status:#}");

    // What no kept copy needs goes, and nothing else.
    let newest = run(&sandbox, &["backup", "create"]).expect(0).json()["file"].clone();
    archived(&sandbox, &now());
    // None of the last day is pruned.
    for dump in listed(&sandbox)["backups"].as_array().unwrap().iter().filter(|dump| dump["file"] != newest) {
        let record = format!("{}.json", dump["file"].as_str().unwrap());
        let mut facts: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
        facts["at"] = json!("2020-01-01T00:00:00Z");
        std::fs::write(&record, facts.to_string()).unwrap();
    }
    let pruned = run(&sandbox, &["backup", "prune", "--keep", "1d", "--yes"]).expect(0).json();
    assert!(pruned["parts_removed"].as_u64().unwrap() > 0, "{pruned:#}");
    let left = listed(&sandbox);
    assert_eq!(left["backups"].as_array().unwrap().len(), 1, "{left:#}");
    let range = &left["moments"][0];
    assert!(range["missing"].is_null() && range["until"].is_string(), "{left:#}");
    run(&sandbox, &["backup", "verify", "--light"]).expect(0);
    run(&sandbox, &["down", "--yes", "--delete-data", "development"]).expect(0);
    assert!(sandbox.processes().is_empty(), "{:?}", sandbox.processes());
}

#[test]
fn full_archive_disk_is_reported_and_archiving_resumes() {
    if !postgres::is_installed() {
        return;
    }
    let sandbox = Sandbox::new("full");
    let Some(small) = Small::mount(sandbox.folder().join("small"), "size=200m") else { return };
    let place = small.place();
    let destination = format!("backup.destination={place}");
    up(&sandbox, &["--set", &destination]);
    let key = sandbox.first_key("development");
    base(&sandbox);
    archived(&sandbox, &now());
    let filler = place.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[1; 64 << 10]).is_ok() {}
    eventually("it is told", || {
        let status = run(&sandbox, &[&["status"][..], &ON, &["--set", &destination]].concat()).json();
        let warnings = status["backup"]["warnings"].to_string();
        (warnings.contains("is NOT archived") && warnings.contains("No space left")).then_some(())
    });
    assert_eq!(answers(&sandbox, &key), 200, "the service goes on");
    // What is open takes room.
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    let range = archived(&sandbox, &now());
    assert_eq!(range["missing"], Value::Null, "{range:#}");
    run(&sandbox, &["down", "--yes", "--delete-data", "development"]).expect(0);
}

#[test]
fn unusable_wal_archive_settings_are_refused_with_the_reason() {
    let sandbox = Sandbox::new("nothing");
    let check = |set: &[&str]| {
        let set: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
        let said = run(&sandbox, &[&["env", "check"][..], &set].concat());
        (said.exit, said.out)
    };
    for (set, why) in [
        (
            &["backup.enabled=true", "backup.point_in_time=1m"][..],
            "only the log of a PostgreSQL that this program runs",
        ),
        (&["database.kind=postgres", "backup.point_in_time=1m"], "backup.enabled: true"),
        (&["database.kind=postgres", "backup.enabled=true", "backup.point_in_time=1s"], "write at least `5s`"),
        (&["database.kind=postgres", "backup.enabled=true", "backup.point_in_time=2h"], "write at most `1h`"),
    ] {
        let (exit, out) = check(set);
        assert!(exit == 2 && out.contains("backup.point_in_time") && out.contains(why), "{set:?}: {exit} {out}");
    }
    assert_eq!(check(&["database.kind=postgres", "backup.enabled=true", "backup.point_in_time=1m"]).0, 0);
}
