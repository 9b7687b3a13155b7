//! What people and files get wrong before anything runs: each ends with its status, its sentence and what to do next, and changes nothing.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::net::TcpListener;

use camino::Utf8Path;
use serde_json::{Value, json};
use textnlp_tests::small::Small;
use textnlp_tests::{Sandbox, copy, http};

/// One wrong command: what is typed, how it ends, its code for programs, and what its text must say.
struct Wrong<'a> {
    typed: &'a [&'a str],
    exit: i32,
    code: &'a str,
    says: &'a [&'a str],
}

fn wrong<'a>(typed: &'a [&'a str], exit: i32, code: &'a str, says: &'a [&'a str]) -> Wrong<'a> {
    Wrong { typed, exit, code, says }
}

/// For people: error, cause and hint on stderr. For programs: one document with the same words. Nothing on the wrong stream.
#[track_caller]
fn refused(sandbox: &Sandbox, wrong: &Wrong<'_>) {
    let Wrong { typed, exit, code, says } = wrong;
    let person = sandbox.run(typed);
    assert_eq!(person.exit, *exit, "{typed:?}\n{}\n{}", person.out, person.err);
    assert!(person.err.contains("error: "), "{typed:?}: {}", person.err);
    assert!(person.out.is_empty(), "{typed:?}: an error is no result: {}", person.out);
    assert!(!person.err.contains("panicked"), "{typed:?}: {}", person.err);
    for word in *says {
        assert!(person.err.contains(word), "{typed:?} does not say `{word}`: {}", person.err);
    }
    let program = sandbox.run(&[typed, &["-o", "json"][..]].concat());
    assert_eq!(program.exit, *exit, "{typed:?}\n{}\n{}", program.out, program.err);
    let document = program.json();
    assert!(document["ok"] == false && document["exit"] == *exit && document["format"] == 1, "{typed:?}: {document:#}");
    assert_eq!(document["error"]["code"], *code, "{typed:?}: {document:#}");
    let hint = document["error"]["hint"].as_str().unwrap_or_default();
    assert!(!hint.is_empty(), "{typed:?} has no hint: {document:#}");
    assert!(document["error"]["message"].is_string() && document["error"]["causes"].is_array(), "{document:#}");
    if *code != "usage" {
        assert!(person.err.contains("hint: "), "{typed:?}: {}", person.err);
    }
}

#[test]
fn invalid_environment_files_are_reported_with_their_location() {
    let sandbox = Sandbox::new("files");
    let folder = sandbox.folder().join("environments");
    std::fs::create_dir(&folder).unwrap();
    let site = "sites: [ { name: here, role: primary, provider: onprem, runtime: process, region: local } ]";
    let files: &[(&str, Vec<u8>, &[&str])] = &[
        ("broken", b"extends: base\nenvironment: [broken\n".to_vec(), &["broken.yaml:2:14", "not YAML"]),
        ("tabs", b"extends: base\nenvironment: tabs\nsites:\n\t- a".to_vec(), &["tabs.yaml:4:2", "indent with spaces"]),
        (
            "unknown",
            format!("extends: base\nenvironment: unknown\nphase: staging\n{site}\nscalling: {{ min: 2 }}\nserver: {{ api: {{ prot: 1 }} }}").into(),
            &["unknown.yaml:5:1", "did you mean `scaling`?", "unknown.yaml:6:18", "did you mean `port`?"],
        ),
        (
            "double",
            format!("extends: base\nenvironment: double\nenvironment: double\nphase: staging\n{site}").into(),
            &["double.yaml:3:1", "duplicated", "double.yaml:2:1"],
        ),
        (
            "types",
            format!(
                "extends: base\nenvironment: types\nphase: staging\n{site}\nscaling: {{ min: two }}\n\
                 server: {{ api: {{ port: 99999, timeout: 5 parsecs, max_request_size: 10XB, drain: -3s }} }}\n\
                 gates: {{ p95_ms: -1, error_rate: 7 }}"
            )
            .into(),
            &["types.yaml:5:17", "whole number", "1 to 65535", "`parsecs`", "`XB`", "`-3s`", "gates.p95_ms", "gates.error_rate", "7 mistakes"],
        ),
        ("variable", b"extends: staging\nenvironment: variable\ndescription: \"${NOT_THERE}\"".to_vec(), &["variable.yaml:3", "`NOT_THERE` is not set"]),
        ("circle", b"extends: circle\nenvironment: circle".to_vec(), &["circle.yaml:1:10", "extends itself"]),
        ("orphan", b"extends: nobody\nenvironment: orphan".to_vec(), &["orphan.yaml:1", "nobody", "has a mistake"]),
        ("bad", b"extends: bas\nenvironment: bad".to_vec(), &["bad.yaml:1", "did you mean `base`?"]),
        ("empty", Vec::new(), &["empty.yaml:1:1", "`environment`"]),
        ("binary", vec![0xff, 0xfe, 0], &["binary.yaml:1:1", "UTF-8"]),
    ];
    for (name, content, says) in files {
        std::fs::write(folder.join(format!("{name}.yaml")), content).unwrap();
        for verb in [&["plan"][..], &["up", "--yes"], &["down", "--yes"], &["env", "check"]] {
            let env = [verb, &["--env", name]].concat();
            refused(&sandbox, &wrong(&env, 2, "invalid_environment", says));
        }
    }
    for name in ["broken", "tabs", "binary"] {
        let said = sandbox.run(&["plan", "--env", name]).expect(2);
        assert!(!said.err.contains("missing"), "what cannot be read misses nothing: {}", said.err);
    }
    let all = sandbox.run(&["env", "check"]).expect(2);
    for (_, _, says) in files {
        assert!(all.err.contains(says[0]), "one look shows every file: {}", all.err);
    }
    let document = sandbox.run(&["env", "check", "-o", "json"]).expect(2);
    assert!(!document.err.contains("staging: valid"), "{}", document.err);
    let (valid, causes) = all.err.split_once("error: ").unwrap();
    assert!(valid.contains("staging: valid") && !causes.contains(": valid"), "{}", all.err);
    assert!(causes.contains("hint: fix them, then check again: "), "{causes}");
    let one = sandbox.run(&["env", "check", "bad"]).expect(2).err;
    assert!(one.contains("check again: ") && one.contains("env check --env bad"), "{one}");
    std::fs::write(folder.join("renamed.yaml"), "environment: other\nextends: staging\n").unwrap();
    let listed = sandbox.run(&["env", "list"]).expect(0).out;
    assert!(listed.lines().any(|line| line.starts_with("· renamed")), "{listed}");
    let says = ["renamed.yaml:1:14", "it is `other`", "set `environment: renamed` there"];
    refused(&sandbox, &wrong(&["env", "check", "--env", "renamed"], 2, "invalid_environment", &says));
    refused(&sandbox, &wrong(&["plan", "--env", "renamed"], 2, "other_environment", &says));
    assert!(!sandbox.run(&["plan", "--env", "renamed"]).expect(2).err.contains("--env other"), "there is none");
    nothing_was_made(&sandbox);
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let sandbox = Sandbox::new("full");
    let commands: [&[&str]; 4] = [
        &["completions", "bash"],
        &["env", "show", "--env", "development"],
        &["env", "check", "--env", "development", "-o", "json"],
        &["--help"],
    ];
    for typed in commands {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let lost = textnlp_tests::said(sandbox.command(typed).stdout(full).output().unwrap());
        assert_eq!(lost.exit, 1, "{typed:?}: {}", lost.err);
        assert!(typed == ["--help"] || lost.err.contains("No space left on device"), "{typed:?}: {}", lost.err);
    }
}

#[test]
fn argument_that_is_not_utf8_is_refused_in_a_sentence() {
    use std::os::unix::ffi::OsStrExt as _;
    let sandbox = Sandbox::new("bytes");
    for typed in [&b"--env=\xff"[..], b"\xfe", b"--set=models[0].source=\xc3"] {
        let mut command = sandbox.command(&["plan"]);
        let said = textnlp_tests::said(command.arg(std::ffi::OsStr::from_bytes(typed)).output().unwrap()).expect(2);
        assert!(said.err.contains("error: ") && !said.err.contains("panicked"), "{typed:?}: {}", said.err);
    }
    nothing_was_made(&sandbox);
}

#[test]
fn files_are_not_writable_by_others_whatever_the_umask_is() {
    use std::os::unix::fs::PermissionsExt as _;
    let sandbox = Sandbox::new("umask");
    let up = sandbox.command(&["up", "--env", "development", "--yes", "--no-gate"]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "umask 000; exec \"$@\"", "sh"]).arg(up.get_program()).args(up.get_args());
    shell.env_clear().envs(up.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.current_dir(sandbox.folder()).stdin(std::process::Stdio::null());
    textnlp_tests::said(shell.output().unwrap()).expect(0);
    let state = sandbox.state("development");
    let files = sandbox.files(&state);
    assert!(files.len() > 10, "{files:?}");
    for file in files {
        let path = state.join(&file);
        // The folders above it too, up to the state.
        for path in path.ancestors().take_while(|path| *path != sandbox.folder()) {
            let Ok(found) = path.symlink_metadata() else { continue };
            let mode = found.permissions().mode();
            assert!(found.is_symlink() || mode & 0o022 == 0, "{path} has mode {:o}", mode & 0o7777);
        }
    }
}

#[test]
fn missing_references_are_reported_with_all_other_problems() {
    let sandbox = Sandbox::new("references");
    let open = sandbox.folder().join("open");
    std::fs::write(&open, "hunter2").unwrap();
    std::fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let external = format!("prerequisites.external_keys.open=secret:file:{open}");
    let too_open = format!("permissions 0666 for {open} are too open");
    let sets = [
        external.as_str(),
        "prerequisites.external_keys.weather=secret:env:NOPE",
        "prerequisites.external_keys.maps=secret:file:/nowhere/at/all",
        "network.private_ca=/nowhere/ca.pem",
        "backup.enabled=true",
        "backup.destination=ftp://host/backups",
        "account.permission_boundary=arn:boundary",
        "scaling.max=4",
        "scaling.cpu=70",
        "features.sso=true",
    ];
    let typed = |verb: &[&'static str]| {
        let mut typed = verb.to_vec();
        sets.iter().for_each(|set| typed.extend(["--set", set]));
        typed
    };
    let says = [
        "the variable `NOPE` is not set",
        "there is no file /nowhere/at/all",
        &too_open,
        "there is no file /nowhere/ca.pem",
        "backup.destination",
        "account.permission_boundary",
        "scaling.max",
        "features.sso",
    ];
    for verb in [&["plan", "--env", "staging"][..], &["up", "--env", "staging", "--yes"]] {
        refused(&sandbox, &wrong(&typed(verb), 2, "not_available", &says));
    }
    // What only looks, or takes away, needs none of it.
    sandbox.run(&typed(&["status", "--env", "staging"])).expect(0);
    sandbox.run(&typed(&["down", "--env", "staging", "--yes"])).expect(0);
    nothing_was_made(&sandbox);
}

#[test]
fn invalid_arguments_are_refused_before_any_change() {
    let sandbox = Sandbox::new("words");
    let table = [
        wrong(&["plan", "--env", "stagng"], 2, "no_such_environment", &["`stagng`", "did you mean `staging`?"]),
        wrong(&["up", "--yes"], 2, "no_environment", &["--env staging"]),
        wrong(&["plan", "--file", "nowhere.yaml"], 2, "unreadable_environment", &["nowhere.yaml"]),
        wrong(&["plan", "--env", "staging", "--site", "there"], 2, "no_such_site", &["`there`", "here"]),
        wrong(&["key", "list", "--env", "staging", "--site", "here"], 2, "conflicting_flags", &["remove --site"]),
        wrong(&["release", "show", "--env", "staging", "--site", "here"], 2, "conflicting_flags", &["remove --site"]),
        wrong(&["logs", "--env", "staging", "--site", "there"], 2, "no_logs", &["`there`", "status --env staging"]),
        wrong(
            &["plan", "--env", "staging", "--provider", "cloudy"],
            2,
            "invalid_environment",
            &["`cloudy`", "`onprem`"],
        ),
        wrong(&["up", "--env", "pilot", "--yes"], 2, "no_way_in", &["kubeconfig", "set KUBECONFIG"]),
        wrong(
            &["export", "terraform", "--env", "pilot", "--planned", "--out", "planned"],
            2,
            "no_way_in",
            &["depend on the account", "set KUBECONFIG", "permissions to read are sufficient"],
        ),
        wrong(
            &["up", "--env", "staging", "--yes", "--set", "features.sso=true"],
            2,
            "not_available",
            &["`features.sso`", "`server.security.oidc`", "env check --env staging"],
        ),
        wrong(
            &["up", "--env", "staging", "--yes", "--set", "gates.usres=5"],
            2,
            "invalid_environment",
            &["did you mean `users`?"],
        ),
        wrong(
            &["up", "--env", "staging", "--yes", "--set", "nonsense"],
            2,
            "invalid_environment",
            &["no `=`", "correct the option --set nonsense, then run the command again"],
        ),
        wrong(
            &["up", "--env", "staging", "--yes", "--set", "scaling.min=-1"],
            2,
            "invalid_environment",
            &["scaling.min"],
        ),
        wrong(
            &["up", "--env", "staging", "--yes", "--server", "/nowhere/server"],
            2,
            "no_such_file",
            &["/nowhere/server"],
        ),
        wrong(
            &["up", "--env", "staging", "--yes", "--server", "/bin/false"],
            4,
            "server_not_compatible",
            &["/bin/false does not run as `gateway`", "release set --env staging"],
        ),
        wrong(
            &["explain", "here/none", "--env", "staging"],
            2,
            "no_such_resource",
            &["`here/none`", "status --env staging"],
        ),
        wrong(&["explain", "BAD NAME", "--env", "staging"], 2, "invalid_name", &["`BAD NAME`"]),
        wrong(&["logs", "--env", "staging"], 2, "no_logs", &["status --env staging"]),
        wrong(&["generate", "hi", "--env", "staging"], 2, "not_up", &["up --env staging"]),
        wrong(&["key", "list", "--env", "staging"], 2, "not_up", &["up --env staging"]),
        wrong(&["dr", "status", "--env", "multi-region"], 2, "not_up", &["is not deployed", "up --env multi-region"]),
        wrong(&["dr", "watch", "--env", "multi-region"], 2, "not_up", &["is not deployed", "up --env multi-region"]),
        wrong(
            &["secret", "rotate", "database", "--env", "development"],
            2,
            "nothing_to_rotate",
            &["uses SQLite, which has no password", "`jwt`, `ca`, `acme`, `cache`, `backup` and `report`"],
        ),
        wrong(
            &["down", "--env", "staging", "--yes", "--delete-data", "stagging"],
            4,
            "wrong_name",
            &["--delete-data staging"],
        ),
        wrong(
            &["down", "--env", "staging", "--delete-data", "staging", "--delete-dumps", "staging"],
            2,
            "usage",
            &["--delete-data", "--delete-dumps"],
        ),
        wrong(&["up", "--env", "staging"], 4, "not_approved", &["not approved", "--yes"]),
        wrong(&["stauts"], 2, "usage", &["'status'"]),
        wrong(&["up", "staging"], 2, "usage", &["did you mean `--env staging`?"]),
        wrong(&["generate", "hi", "--address", "foo"], 2, "usage", &["`foo` is not an address such as https://"]),
        wrong(&["-env", "staging", "up"], 2, "usage", &["did you mean `--env staging`?"]),
        wrong(&["down", "--yes"], 2, "no_environment", &["down --yes --env NAME"]),
        wrong(
            &["plan", "--env", "staging", "--set", "models[0].source=nosuch"],
            2,
            "no_such_model",
            &["--set models[0].source: error: `models[0].source`", "the catalogue has no model of this name"],
        ),
        wrong(
            &["plan", "--env", "staging", "--set", "models[0].source=file:/nowhere/model"],
            1,
            "preflight",
            &["has no file /nowhere/model", "correct the model's `source`"],
        ),
        wrong(
            &["plan", "--env", "staging", "--set", "gates.availability_window=31d"],
            2,
            "invalid_environment",
            &["`gates.availability_window`: 31d is not from 1s to 30d", "write a time such as `24h`"],
        ),
        wrong(
            &["plan", "--env", "staging", "--set", "network.waf=true"],
            2,
            "not_available",
            &["`network.waf`: provider `onprem` does not support this setting (`true`)", "remove it"],
        ),
        wrong(&["generate"], 2, "usage", &["<PROMPT>"]),
        wrong(&["plan", "--env", "a", "--file", "b"], 2, "usage", &["--file"]),
        wrong(&["generate", "hi", "--temperature", "NaN"], 2, "usage", &["finite number"]),
        wrong(&["generate", "hi", "--max-tokens", "-5"], 2, "usage", &["-5", "--max-tokens"]),
        wrong(
            &["generate", "hi", "--address", "http://127.0.0.1:1"],
            1,
            "unreachable",
            &["Connection refused", "status"],
        ),
        wrong(
            &["generate", "hi", "--ca-file", "none.pem", "--address", "https://127.0.0.1:1"],
            1,
            "failed",
            &["none.pem"],
        ),
    ];
    for wrong in &table[..table.len() - 1] {
        refused(&sandbox, wrong);
    }
    let last = &table[table.len() - 1];
    assert!(sandbox.run(last.typed).expect(last.exit).err.contains(last.says[0]));
    nothing_was_made(&sandbox);
}

/// Nothing runs, and there is nothing but what a look leaves: locks, and the lineage that a refused `up` may have drawn.
#[track_caller]
fn nothing_was_made(sandbox: &Sandbox) {
    assert!(sandbox.processes().is_empty(), "{:?}", sandbox.processes());
    let made: Vec<_> = sandbox
        .files(&sandbox.folder().join("state"))
        .into_iter()
        .filter(|f| f.contains("/sites/") || f.contains("/journal/"))
        .collect();
    assert!(made.is_empty(), "{made:?}");
}

#[test]
fn state_directory_may_be_given_by_any_path() {
    let sandbox = Sandbox::new("roundabout");
    sandbox.run(&["up", "--env", "development", "--yes", "--no-gate", "--state-dir", "a/./b/../c"]).expect(0);
    sandbox.run(&["status", "--env", "development", "--state-dir", "a/c"]).expect(0);
    sandbox.run(&["down", "--env", "development", "--yes", "--state-dir", "a/c"]).expect(0);
    assert!(sandbox.processes().is_empty(), "{:?}", sandbox.processes());
}

#[test]
fn port_in_use_is_reported_with_its_process_and_never_changed() {
    let sandbox = Sandbox::new("port");
    let taken = TcpListener::bind(("127.0.0.1", sandbox.port)).unwrap();
    let pid = std::process::id().to_string();
    let port = format!("127.0.0.1:{}", sandbox.port);
    let up = ["up", "--env", "development", "--yes", "--no-gate"];
    refused(&sandbox, &wrong(&up, 1, "preflight", &[&port, "taken", &pid, "--set server.api.port=PORT"]));
    nothing_was_made(&sandbox);
    drop(taken);
    sandbox.up("development");
}

#[test]
fn commands_work_without_home_and_environments_directory() {
    let sandbox = Sandbox::new("homeless");
    let bare = |args: &[&str]| {
        let mut command = sandbox.command(args);
        command.env_remove("HOME").env_remove("TEXTNLP_STATE_DIR");
        textnlp_tests::said(command.output().unwrap())
    };
    bare(&["env", "check", "staging"]).expect(0);
    bare(&["providers"]).expect(0);
    for verb in [
        &["plan", "--env", "development"][..],
        &["up", "--env", "development", "--yes"],
        &["status", "--env", "development"],
        &["generate", "hi"],
    ] {
        let said = bare(verb).expect(2);
        assert!(said.err.contains("hint: choose a folder with --state-dir DIR"), "{verb:?}: {}", said.err);
    }
    bare(&["plan", "--env", "development", "--state-dir", "here"]).expect(0);
}

#[test]
fn paths_with_spaces_and_umlauts_are_supported() {
    let folder = tempfile::Builder::new().prefix("Überall ist's \"schön\" $HOME ").tempdir().unwrap();
    let sandbox = Sandbox::at(folder);
    let up = sandbox.up("staging");
    let line = up.out.lines().find_map(|l| l.trim().strip_prefix("try ")).expect("a line to try").trim();
    let mut shell = std::process::Command::new("sh");
    match shell.args(["-c", line]).output() {
        Ok(pasted) if pasted.status.code() != Some(127) => {
            let pasted = textnlp_tests::said(pasted).expect(0);
            assert!(pasted.json()["text"].is_string(), "{}", pasted.out);
        }
        _ => eprintln!("SKIPPED: no curl here, so the printed line cannot be pasted: {line}"),
    }
    sandbox.run(&["generate", "Once", "--max-tokens", "2"]).expect(0);
    sandbox.run(&["down", "--env", "staging", "--yes"]).expect(0);
    assert!(sandbox.processes().is_empty());
}

#[test]
fn insufficient_disk_space_is_refused_with_sizes() {
    let sandbox = Sandbox::new("disk");
    let small = sandbox.folder().join("state");
    let Some(_small) = Small::mount(small, "size=8m") else { return };
    let up = ["up", "--env", "development", "--yes", "--no-gate"];
    refused(&sandbox, &wrong(&up, 1, "preflight", &["MB free", "are needed", "--state-dir"]));
    nothing_was_made(&sandbox);
}

#[test]
fn disk_that_fills_up_at_runtime_loses_nothing() {
    let sandbox = Sandbox::new("full");
    let small = sandbox.folder().join("state");
    let Some(small) = Small::mount(small, "size=1g") else { return };
    sandbox.up("development");
    let fill = small.place().join("fill");
    let mut file = std::fs::File::create(&fill).unwrap();
    let _ = std::io::copy(&mut std::io::repeat(1), &mut file);
    // Now not a byte is free: changes are refused or fail in words, and what runs goes on.
    let change = ["up", "--env", "development", "--yes", "--no-gate", "--set", "server.api.timeout=200"];
    let said = sandbox.run(&change);
    assert!(said.exit == 1 && said.err.contains("error: ") && !said.err.contains("panicked"), "{said:?}");
    assert!(said.err.contains("hint: free some disk space") && !said.err.contains("--state-dir"), "{said:?}");
    let answer = http::post(sandbox.port, "/v1/generate", &json!({ "prompt": "Once", "max_tokens": 2 })).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    drop(file);
    std::fs::remove_file(&fill).unwrap();
    sandbox.run(&change).expect(0);
    sandbox.run(&["status", "--env", "development"]).expect(0);
    // Full again, `down` has the space that the state keeps for it.
    let mut file = std::fs::File::create(&fill).unwrap();
    let _ = std::io::copy(&mut std::io::repeat(1), &mut file);
    sandbox.run(&["down", "--env", "development", "--yes"]).expect(0);
    assert!(sandbox.processes().is_empty());
    assert!(!sandbox.state("development").join("reserve").exists(), "nothing is left to be removed with it");
}

/// What is wrong with a state, and how every command that needs it says so.
type Damage = (&'static str, fn(&Utf8Path), &'static str, i32, &'static [&'static str]);

#[test]
fn damaged_or_foreign_state_is_refused_and_kept() {
    let sandbox = Sandbox::new("state");
    sandbox.up("development");
    let state = sandbox.state("development");
    let saved = sandbox.folder().join("saved");
    copy(&state.join("journal"), &saved.join("journal"));
    std::fs::copy(state.join("lineage.json"), saved.join("lineage.json")).unwrap();
    let before = sandbox.processes();

    fn edit(path: &Utf8Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(path).unwrap();
        change(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    }
    let damages: [Damage; 9] = [
        (
            "garbage",
            |s| edit(&s.join("journal/here/log"), |b| b.extend(b"garbage\n")),
            "damaged_state",
            1,
            &["no checksum"],
        ),
        (
            "a bit of the journal",
            |s| {
                edit(&s.join("journal/here/log"), |b| {
                    let m = b.len() / 2;
                    b[m] ^= 4
                })
            },
            "damaged_state",
            1,
            &["record", "at byte"],
        ),
        (
            "a bit of a body",
            |s| {
                edit(&s.join("journal/here/bodies"), |b| {
                    let m = b.len() / 2;
                    b[m] ^= 4
                })
            },
            "damaged_state",
            1,
            &["bodies"],
        ),
        (
            "a cut journal",
            |s| edit(&s.join("journal/here/log"), |b| b.truncate(3000)),
            "damaged_state",
            1,
            &["missing"],
        ),
        ("no journal", |s| std::fs::remove_file(s.join("journal/here/log")).unwrap(), "damaged_state", 1, &["missing"]),
        (
            "no lineage",
            |s| std::fs::remove_file(s.join("lineage.json")).unwrap(),
            "damaged_state",
            1,
            &["lineage.json"],
        ),
        (
            "half a lineage",
            |s| std::fs::write(s.join("lineage.json"), "{\"format\"").unwrap(),
            "damaged_state",
            1,
            &["lineage.json"],
        ),
        (
            "another lineage",
            |s| {
                edit(&s.join("lineage.json"), |b| {
                    let mut v: Value = serde_json::from_slice(b).unwrap();
                    v["lineage"] = json!("00000000-0000-4000-8000-000000000000");
                    *b = v.to_string().into();
                })
            },
            "other_deployment",
            4,
            &["belongs to deployment"],
        ),
        (
            "another account",
            |s| {
                edit(&s.join("lineage.json"), |b| {
                    let mut v: Value = serde_json::from_slice(b).unwrap();
                    v["sites"]["here"]["account"] = json!("machine-elsewhere");
                    *b = v.to_string().into();
                })
            },
            "other_deployment",
            4,
            &["machine-elsewhere"],
        ),
    ];
    for (name, damage, code, exit, says) in damages {
        damage(&state);
        let journal = std::fs::read(state.join("journal/here/log")).ok();
        for verb in [&["up", "--no-gate"][..], &["down"]] {
            println!("{name}: {verb:?}");
            refused(&sandbox, &wrong(&[verb, &["--env", "development", "--yes"]].concat(), exit, code, says));
        }
        assert_eq!(
            std::fs::read(state.join("journal/here/log")).ok(),
            journal,
            "{name}: a damaged journal is evidence"
        );
        assert_eq!(sandbox.processes(), before, "{name}: what runs goes on");
        std::fs::remove_dir_all(state.join("journal")).unwrap();
        copy(&saved.join("journal"), &state.join("journal"));
        std::fs::copy(saved.join("lineage.json"), state.join("lineage.json")).unwrap();
        sandbox.run(&["status", "--env", "development"]).expect(0);
    }

    // A copied folder under another name is another environment's.
    copy(&state, &sandbox.state("staging"));
    refused(
        &sandbox,
        &wrong(&["down", "--yes", "--env", "staging"], 4, "copied_state", &["state adopt --env staging"]),
    );
    for verb in [&["up", "--yes"][..], &["status"]] {
        refused(
            &sandbox,
            &wrong(&[verb, &["--env", "staging"]].concat(), 4, "other_deployment", &["`development`", "`staging`"]),
        );
    }
    assert_eq!(sandbox.processes(), before);
    sandbox.run(&["down", "--env", "development", "--yes"]).expect(0);
}

#[test]
fn copied_state_never_affects_the_original_deployment() {
    let sandbox = Sandbox::new("twin");
    sandbox.up("development");
    let before = sandbox.processes();
    let twin = sandbox.folder().join("twin");
    copy(&sandbox.state("development"), &twin.join("development"));
    let twin = ["--env", "development", "--yes", "--state-dir", twin.as_str()];
    let up = sandbox.run(&[&["up", "--no-gate"], &twin[..]].concat()).expect(1);
    assert!(up.err.contains("taken by"), "{}", up.err);
    sandbox.run(&[&["down"], &twin[..]].concat());
    assert_eq!(sandbox.processes(), before);
    sandbox.run(&["status", "--env", "development"]).expect(0);
}

#[test]
fn file_instead_of_the_state_directory_is_reported() {
    let sandbox = Sandbox::new("file");
    std::fs::write(sandbox.folder().join("state"), "not a folder").unwrap();
    for verb in [&["up", "--no-gate"][..], &["down"], &["plan"], &["status"]] {
        let said = sandbox.run(&[verb, &["--env", "development", "--yes"]].concat());
        assert!(matches!(said.exit, 1 | 2), "{said:?}");
        assert!(
            said.err.contains("error: ") && said.err.contains("hint: ") && said.err.contains("/state is a file"),
            "{said:?}"
        );
    }
    assert!(sandbox.processes().is_empty());
}

#[test]
fn plaintext_secret_setting_is_refused_and_not_repeated() {
    let sandbox = Sandbox::new("secret");
    let typed = ["plan", "--env", "staging", "--set", "server.security.jwt_secret=hunter2hunter2"];
    refused(&sandbox, &wrong(&typed, 2, "invalid_environment", &["server.security.jwt_secret", "secret:env:NAME"]));
    let said = sandbox.run(&typed);
    assert!(!said.err.contains("hunter2"), "{}", said.err);
}

#[test]
fn errors_of_a_server_do_not_command_the_terminal() {
    use std::io::{Read, Write};
    let sandbox = Sandbox::new("terminal");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    // Ends with the test.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let body = json!({ "error": { "message": "\u{1b}]0;owned\u{7}no", "hint": "\u{9b}2Jwait" } }).to_string();
            let head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close";
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    let said = sandbox.run(&["generate", "Once", "--address", &address, "--api-key", "k"]).expect(1);
    assert!(said.err.contains("·]0;owned·no") && said.err.contains("·2Jwait"), "{}", said.err);
    assert!(!said.err.contains(['\u{1b}', '\u{7}', '\u{9b}']), "{:?}", said.err);
}

#[test]
fn settings_and_temporary_folders_of_other_users_are_not_used() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let sandbox = Sandbox::new("planted");
    let shared = sandbox.folder().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut check = sandbox.command(&["env", "list"]);
    let said = textnlp_tests::said(check.env("TMPDIR", shared.as_str()).output().unwrap()).expect(0);
    let warning = format!("temporary files are in /tmp instead of TMPDIR: other users can write to {shared}");
    assert!(said.err.contains(&warning), "{}", said.err);
    // Only root may give a folder away.
    let environments = sandbox.folder().join("environments");
    std::fs::create_dir(&environments).unwrap();
    if chown(&environments, Some(1001), None).is_err() {
        return;
    }
    let refused = sandbox.run(&["plan", "--env", "development", "-o", "json"]).expect(4).json();
    assert_eq!(refused["error"]["code"], "settings_exposed", "{refused:#}");
    let mut by_sudo = sandbox.command(&["plan", "--env", "development"]);
    textnlp_tests::said(by_sudo.env("SUDO_UID", "1001").output().unwrap()).expect(0);
    // The folder above decides which state is used.
    std::fs::remove_dir(&environments).unwrap();
    std::fs::create_dir(sandbox.folder().join("state")).unwrap();
    chown(sandbox.folder(), Some(1001), None).unwrap();
    let refused = sandbox.run(&["plan", "--env", "development", "-o", "json"]).expect(4).json();
    assert_eq!(refused["error"]["code"], "state_exposed", "{refused:#}");
    assert!(refused.to_string().contains("who can replace the folders in it"), "{refused:#}");
    chown(sandbox.folder(), Some(0), None).unwrap();
}
