//! The state as an operator meets it: looked at, compared, frozen, moved into a bucket and back, made again after it was lost.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};
use textnlp_tests::bucket::Bucket;
use textnlp_tests::{Said, Sandbox, eventually, has, http, said};

const ENV: [&str; 2] = ["--env", "development"];

fn run(sandbox: &Sandbox, args: &[&str]) -> Said {
    sandbox.run(&[args, &ENV].concat())
}

fn json_of(sandbox: &Sandbox, args: &[&str]) -> Value {
    run(sandbox, &[args, &["-o", "json"]].concat()).expect(0).json()
}

/// Starts the program at a terminal of its own. Returns the side of who types.
fn at_terminal(sandbox: &Sandbox, args: &[&str]) -> (Child, File) {
    let host = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&host).unwrap();
    unlockpt(&host).unwrap();
    let name = ptsname(&host, Vec::new()).unwrap();
    let guest = open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let plain = sandbox.command(&[args, &ENV].concat());
    // `setsid` of util-linux makes the terminal the controlling one, so that Ctrl-C is a signal, and becomes the program. One that
    // never asks is ended.
    let mut command = Command::new("timeout");
    command
        .args(["--signal=KILL", "120", "setsid", "--ctty"])
        .arg(plain.get_program())
        .args(plain.get_args())
        .current_dir(sandbox.folder())
        .env_clear();
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let stream = || Stdio::from(guest.try_clone().unwrap());
    let child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
    (child, File::from(host))
}

/// What the program prints until it has printed `until`, or has ended.
fn printed(terminal: &mut File, until: &str) -> String {
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    // The terminal of a program that has ended is an error.
    while let Ok(length @ 1..) = terminal.read(&mut buffer) {
        text.extend_from_slice(&buffer[..length]);
        if String::from_utf8_lossy(&text).contains(until) {
            break;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn ctrl_c_at_the_question_stops_without_a_change() {
    const QUESTION: &str = "Make these changes? [y/N]";
    let sandbox = Sandbox::new("question");
    for (typed, exit, says) in [
        (&b"\x03"[..], 5, "stopped before the approval, so nothing was changed"),
        (b"no\n", 4, "these changes are not approved"),
    ] {
        let (mut child, mut terminal) = at_terminal(&sandbox, &["up", "--no-gate"]);
        let before = printed(&mut terminal, QUESTION);
        assert!(before.contains(QUESTION), "{before}");
        terminal.write_all(typed).unwrap();
        // Until its end: it does not print this.
        let after = printed(&mut terminal, "\0");
        assert_eq!(child.wait().unwrap().code(), Some(exit), "{after}");
        assert!(after.contains(says) && !after.contains("no new step starts"), "{after}");
        assert_eq!(sandbox.processes(), [], "{after}");
    }
}

#[test]
fn records_that_are_lost_are_given_up_only_by_name() {
    let sandbox = Sandbox::new("given up");
    sandbox.up("development");
    let head = sandbox.state("development").join("journal/here/head.json");
    let mut document: Value = serde_json::from_slice(&std::fs::read(&head).unwrap()).unwrap();
    document["n"] = json!(document["n"].as_u64().unwrap() + 3);
    std::fs::write(&head, document.to_string()).unwrap();
    for args in [
        &["state", "repair"][..],
        &["state", "repair", "--yes"],
        &["state", "repair", "--yes", "--accept-loss", "staging"],
    ] {
        let refused = run(&sandbox, &[args, &["-o", "json"]].concat()).expect(4).json();
        assert_eq!(refused["error"]["code"], "records_lost", "{args:?}: {refused:#}");
        let hint = refused["error"]["hint"].as_str().unwrap();
        assert!(hint.contains("restore FILE --replace") && hint.contains("--accept-loss development"), "{hint}");
        assert!(
            refused["findings"][0]["because"].as_str().unwrap().contains("ends 3 records before it"),
            "{refused:#}"
        );
    }
    let accepted = ["state", "repair", "--accept-loss", "development"];
    let unapproved = run(&sandbox, &accepted).expect(4);
    assert!(unapproved.err.contains("--accept-loss development --yes"), "{}", unapproved.err);
    run(&sandbox, &[&accepted[..], &["--yes"]].concat()).expect(0);
    assert!(run(&sandbox, &["state", "repair"]).expect(0).out.contains("intact"));
    sandbox.up("development");
}

#[test]
fn recorded_state_is_shown_compared_and_frozen() {
    let sandbox = Sandbox::new("a state");
    for args in [&["state", "list"][..], &["state", "repair"], &["drift", "--exit-code"]] {
        let nothing = run(&sandbox, args).expect(2);
        assert!(nothing.err.contains("has no state in"), "{args:?}: {}", nothing.err);
    }
    run(&sandbox, &["doctor"]).expect(0);
    sandbox.up("development");

    let list = json_of(&sandbox, &["state", "list"]);
    has(&list, &["environment", "lineage", "store", "places.here", "resources", "open", "hold"]);
    let resources = list["resources"].as_array().unwrap();
    assert!(resources.len() > 5, "{list:#}");
    let first = resources[0]["resource"].as_str().unwrap();
    let shown = json_of(&sandbox, &["state", "show", first]);
    assert_eq!(shown["holding"]["current"]["cloud_id"], resources[0]["cloud_id"]);
    assert_eq!(json_of(&sandbox, &["state", "at", "1"])["resources"], json!([]));
    let diff = json_of(&sandbox, &["state", "diff", "1"]);
    assert_eq!(diff["changed"].as_array().unwrap().len(), resources.len());
    assert_eq!(json_of(&sandbox, &["state", "diff", "0s"])["changed"], json!([]));
    let history = json_of(&sandbox, &["state", "history", first]);
    let lines = history["lines"].as_array().unwrap();
    assert!(lines.len() >= 2 && lines.iter().all(|line| line["resource"] == first), "{history:#}");
    assert_eq!(json_of(&sandbox, &["state", "history", "-n", "3"])["lines"].as_array().unwrap().len(), 3);
    let explained = json_of(&sandbox, &["explain", first]);
    has(&explained, &["holding.current", "history", "standing", "open"]);
    run(&sandbox, &["state", "show", "here/nothing"]).expect(2);
    run(&sandbox, &["state", "at", "yesterday"]).expect(2);
    let none = run(&sandbox, &["state", "at", "0"]).expect(2);
    assert!(none.err.contains("there is no record 0"), "{}", none.err);
    assert_eq!(json_of(&sandbox, &["state", "at", "2020-01-01"])["resources"], json!([]));
    run(&sandbox, &["hold", "--reason", " "]).expect(2);
    let export = json_of(&sandbox, &["state", "export"]);
    has(&export, &["export", "lineage", "places", "heads.here", "resources", "open", "history"]);
    let clean = run(&sandbox, &["state", "repair"]).expect(0);
    assert!(clean.out.contains("matches its digest"), "{}", clean.out);

    // Frozen: whoever wants to change something is told by whom and why.
    let hold = json_of(&sandbox, &["hold", "--reason", "exam week"]);
    assert_eq!(hold["hold"]["why"], "exam week");
    let journal = || std::fs::read(sandbox.state("development").join("journal/here/log")).unwrap();
    let before = journal();
    let first = sandbox.first_key("development");
    let rotate_key = ["key", "rotate", first.split('_').nth(1).unwrap(), "--yes", "--no-gate"];
    let rotate = ["secret", "rotate", "jwt", "--yes", "--no-gate"];
    // It is refused before the backup is read.
    let restore = ["restore", "none.age", "--replace", "development"];
    for args in [&["up", "--yes", "--no-gate"][..], &["down", "--yes"], &rotate, &rotate_key, &restore] {
        let refused = run(&sandbox, &[args, &["-o", "json"]].concat()).expect(4).json();
        assert_eq!(refused["error"]["code"], "frozen");
        assert!(refused["error"]["message"].as_str().unwrap().contains("exam week"), "{refused:#}");
        assert!(refused["error"]["hint"].as_str().unwrap().contains("hold --release"), "{refused:#}");
    }
    assert!(journal() == before, "what was refused is not recorded for the next `up`");
    run(&sandbox, &["up", "--yes", "--set", "tags.note=swordfish"]).expect(4);
    run(&sandbox, &["plan"]).expect(0);
    run(&sandbox, &["hold", "--release"]).expect(0);
    sandbox.up("development");
    commands_are_in_the_audit_log(&sandbox);

    // What helps a helper holds nothing that would help a thief.
    let key = sandbox.first_key("development");
    let log = sandbox.site("development").join("log/stray.log");
    std::fs::write(&log, format!("one\nsomebody printed {key} here\nthree\n")).unwrap();
    let file = sandbox.folder().join("help.tar");
    // An own link at that path is followed, and the file at its end is private then.
    let real = sandbox.folder().join("real.tar");
    std::fs::write(&real, "earlier").unwrap();
    std::os::unix::fs::symlink(&real, &file).unwrap();
    let made = json_of(&sandbox, &["support-bundle", "--out", file.as_str()]);
    assert!(file.is_symlink());
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&std::fs::symlink_metadata(&real).unwrap()) & 0o777, 0o600);
    assert_eq!(made["lines_left_out"], 1, "{made:#}");
    let text = tar_text(&file);
    for part in
        ["README", "environment.yaml", "doctor.json", "status.json", "state.json", "logs/stray.log", "machine.json"]
    {
        assert!(text.contains(part), "no {part}");
    }
    assert!(text.contains("[a line that holds a secret was left out]") && text.contains("three"));
    for secret in secrets(&sandbox) {
        assert!(!text.contains(&secret), "a secret is in it");
    }

    let doctor = json_of(&sandbox, &["doctor"]);
    assert_eq!(doctor["problems"], 0, "{doctor:#}");
    let keeper = sandbox.pid("supervise").unwrap();
    sandbox.kill(keeper);
    let ill = eventually("the doctor sees it", || {
        let said = run(&sandbox, &["doctor", "-o", "json"]);
        (said.exit == 1).then(|| said.json())
    });
    let about = ill["checks"].as_array().unwrap().iter().find(|one| one["name"] == "supervisor").unwrap();
    assert!(about["mark"] == "problem" && about["fix"].as_str().unwrap().contains("up --env development"), "{about:#}");
}

/// Each command that changes something, with its end and without values that may be secret; and what was changed afterwards is found.
#[track_caller]
fn commands_are_in_the_audit_log(sandbox: &Sandbox) {
    let listed = json_of(sandbox, &["audit", "list"]);
    let all = listed["commands"].as_array().unwrap();
    let ended = |one: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&one["command"]), text(&one["end"]["outcome"]), text(&one["end"]["code"]))
    };
    let ended: Vec<_> = all.iter().map(ended).collect();
    let expected = [
        ("up", "succeeded", ""),
        ("hold", "failed", "usage"),
        ("state repair", "succeeded", ""),
        ("hold", "succeeded", ""),
        ("up", "failed", "frozen"),
        ("down", "failed", "frozen"),
        ("secret rotate", "failed", "frozen"),
        ("key rotate", "failed", "frozen"),
        ("restore", "failed", "frozen"),
        ("up", "failed", "frozen"),
        ("hold", "succeeded", ""),
        ("up", "succeeded", ""),
    ];
    let expected: Vec<_> = expected.iter().map(|(a, b, c)| (a.to_string(), b.to_string(), c.to_string())).collect();
    assert_eq!(ended, expected, "{listed:#}");
    assert_eq!((&listed["damage"], &all[3]["reason"]), (&json!([]), &json!("exam week")));
    has(&all[0], &["id", "time", "environment", "arguments", "actor", "host", "pid", "tool", "end.time", "end.exit"]);
    assert!(all[9]["arguments"].to_string().contains("--set=tags.note=***"), "{:#}", all[9]);
    let shown = run(sandbox, &["audit", "list", "--limit", "1"]).expect(0).out;
    assert!(shown.contains("succeeded") && shown.contains("11 earlier ones"), "{shown}");
    let exported = run(sandbox, &["audit", "export", "--commands"]).expect(0).out;
    assert_eq!(exported.lines().count(), 12, "{exported}");
    assert_eq!(json_of(sandbox, &["audit", "list", "--since", "2999-01-01"])["commands"], json!([]));

    let folder = sandbox.state("development").join("audit");
    let document = sandbox.files(&folder).into_iter().rfind(|file| file != ".lock").unwrap();
    let document = folder.join(document);
    let content = std::fs::read_to_string(&document).unwrap();
    assert!(!content.contains("swordfish"), "{content}");
    std::fs::write(&document, content.replacen("exam week", "exam year", 1)).unwrap();
    let broken = run(sandbox, &["audit", "list", "-o", "json"]).expect(1).json();
    assert_eq!(broken["error"]["code"], "broken_audit_log", "{broken:#}");
    assert!(broken["error"]["causes"].to_string().contains("its content was changed"), "{broken:#}");
    std::fs::write(&document, content).unwrap();
}

/// Every value that the environment's secret store keeps.
fn secrets(sandbox: &Sandbox) -> Vec<String> {
    let folder = sandbox.state("development").join("secrets");
    let texts = sandbox.files(&folder).into_iter().filter_map(|file| std::fs::read_to_string(folder.join(file)).ok());
    let lines = texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
    let secret: Vec<String> = lines.filter(|line| line.len() > 20 && !line.starts_with("-----")).collect();
    assert!(!secret.is_empty());
    secret
}

/// Plain tar holds its files as they are.
fn tar_text(file: &camino::Utf8Path) -> String {
    let mut bytes = Vec::new();
    std::fs::File::open(file).unwrap().read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn lost_state_is_recovered_and_a_damaged_one_repaired() {
    let sandbox = Sandbox::new("lost");
    sandbox.up("development");
    let lineage = json_of(&sandbox, &["state", "list"])["lineage"].as_str().unwrap().to_owned();
    let before = sandbox.processes().len();
    let state = sandbox.state("development");

    // Only the journals, as in a copy that is not complete: nothing claims that nothing is deployed.
    let (journal, aside) = (state.join("journal"), sandbox.folder().join("aside"));
    std::fs::rename(&journal, &aside).unwrap();
    for args in [&["status"][..], &["drift"], &["down", "--yes"], &["health", "check"]] {
        let lost = run(&sandbox, &[args, &["-o", "json"]].concat()).expect(1).json();
        assert_eq!(lost["error"]["code"], "damaged_state", "{args:?}: {lost:#}");
        let hint = lost["error"]["hint"].as_str().unwrap();
        let (import, restore) = (format!("state import --lineage {lineage}"), "restore FILE --replace");
        assert!(hint.find(&import).unwrap() < hint.find(restore).unwrap(), "{lost:#}");
    }
    let doctor = run(&sandbox, &["doctor"]).expect(1);
    assert!(doctor.out.contains("journal cannot be read"), "{}", doctor.out);
    std::fs::rename(&aside, &journal).unwrap();

    std::fs::remove_file(state.join("lineage.json")).unwrap();
    let said = run(&sandbox, &["up", "--yes", "--no-gate"]).expect(1);
    assert!(said.err.contains("state repair"), "{}", said.err);
    run(&sandbox, &["state", "repair"]).expect(4);
    run(&sandbox, &["state", "repair", "--yes"]).expect(0);
    assert_eq!(json_of(&sandbox, &["state", "list"])["lineage"], lineage.as_str());

    // Gone as a whole, while everything runs.
    for part in ["lineage.json", "lease.json", "lock"] {
        std::fs::remove_file(state.join(part)).unwrap();
    }
    std::fs::remove_dir_all(state.join("journal")).unwrap();
    // A refused `up` names the lineage of the objects, and proposes no other one. Nothing claims that nothing runs.
    let refused = run(&sandbox, &["up", "--yes", "--no-gate"]);
    assert!(refused.exit != 0 && refused.err.contains(&lineage), "{refused:?}");
    assert!(!state.join("lineage.json").exists() && !state.join("journal").exists());
    for args in [&["down", "--yes"][..], &["status"]] {
        let lost = run(&sandbox, args).expect(4);
        assert!(lost.err.contains(&format!("state import --lineage {lineage}")), "{}", lost.err);
    }
    let doctor = run(&sandbox, &["doctor"]).expect(1);
    assert!(doctor.out.contains("it was lost") && doctor.out.contains(&lineage), "{}", doctor.out);
    assert_eq!(sandbox.processes().len(), before);
    // A lineage without records, as earlier versions left it.
    let empty = json!({ "format": 1, "lineage": "00000000-0000-4000-8000-000000000000", "environment": "development", "sites": {} });
    std::fs::write(state.join("lineage.json"), empty.to_string()).unwrap();
    run(&sandbox, &["state", "import"]).expect(2);
    let unknown = run(&sandbox, &["state", "import", "--lineage", "00000000-0000-4000-8000-000000000001"]).expect(4);
    assert!(unknown.err.contains("no object of deployment 00000000-"), "{}", unknown.err);
    let looked = run(&sandbox, &["state", "import", "--lineage", &lineage, "-o", "json"]).expect(4).json();
    let proposed = looked["proposals"].as_array().unwrap().len();
    assert!(proposed > 3, "{looked:#}");
    let done = json_of(&sandbox, &["state", "import", "--lineage", &lineage, "--yes"]);
    assert_eq!(done["imported"], proposed, "{done:#}");
    sandbox.up("development");
    assert_eq!(sandbox.processes().len(), before, "{:?}", sandbox.processes());
    assert_eq!(json_of(&sandbox, &["status"])["ready"], true);
    let gone = run(&sandbox, &["state", "remove", "here/nothing", "--yes"]).expect(2);
    assert!(gone.err.contains("here/nothing"), "{}", gone.err);
}

#[test]
fn a_state_folder_that_was_moved_while_programs_run_is_refused_with_both_paths() {
    let sandbox = Sandbox::new("moved");
    sandbox.up("development");
    let (old, new) = (sandbox.folder().join("state"), sandbox.folder().join("elsewhere"));
    std::fs::rename(&old, &new).unwrap();
    for (args, changes) in [(&["plan"][..], false), (&["up", "--yes", "--no-gate"], true), (&["down", "--yes"], true)] {
        let mut command = sandbox.command(&[args, &ENV].concat());
        let refused = said(command.env("TEXTNLP_STATE_DIR", &new).output().unwrap());
        assert_eq!(refused.exit != 0, changes, "{args:?}: {refused:?}");
        let text = format!("{}{}", refused.out, refused.err);
        for folder in [&old, &new] {
            assert!(text.contains(folder.join("development").as_str()), "{args:?}, {folder}: {refused:?}");
        }
    }
    std::fs::rename(&new, &old).unwrap();
    run(&sandbox, &["down", "--yes"]).expect(0);
    assert_eq!(sandbox.processes(), []);
    let drift = run(&sandbox, &["drift", "--exit-code"]).expect(0).out;
    assert!(drift.contains("nothing is deployed since `down`"), "{drift}");
}

#[test]
fn check_of_an_environment_names_both_places_of_a_state_that_is_elsewhere() {
    let sandbox = Sandbox::new("places");
    let state = sandbox.state("development");
    std::fs::create_dir_all(&state).unwrap();
    std::fs::write(state.join("lineage.json"), "{}").unwrap();
    let check = ["env", "check", "development", "--set", "state.store=s3://bucket/prefix"];
    let said = sandbox.run(&check).expect(0).out;
    for words in [state.as_str(), "names s3://bucket/prefix", "state move --to s3://bucket/prefix"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!sandbox.run(&check[..3]).expect(0).out.contains("state.store"));
}

#[test]
fn damaged_files_beside_the_journals_are_known_and_repaired() {
    let sandbox = Sandbox::new("files");
    sandbox.up("development");
    let state = sandbox.state("development");
    let up = ["up", "--yes", "--no-gate"];
    for (file, exit) in [("lease.json", 1), ("hold.json", 1), ("store.json", 1)] {
        std::fs::write(state.join(file), "").unwrap();
        let refused = run(&sandbox, &[&up[..], &["-o", "json"]].concat()).expect(exit).json();
        assert_eq!(refused["error"]["code"], "damaged_state", "{file}: {refused:#}");
        assert!(refused["error"]["hint"].as_str().unwrap().contains("state repair"), "{file}: {refused:#}");
        let doctor = run(&sandbox, &["doctor"]).expect(1);
        assert!(doctor.out.contains(file) && doctor.out.contains("state repair"), "{file}: {}", doctor.out);
        let look = run(&sandbox, &["state", "repair"]).expect(4);
        assert!(look.err.contains(file), "{file}: {}", look.err);
        run(&sandbox, &["state", "repair", "--yes"]).expect(0);
        if file == "hold.json" {
            // It may have been a freeze, so it is one until the operator ends it.
            run(&sandbox, &up).expect(4);
            run(&sandbox, &["hold", "--release"]).expect(0);
        }
        sandbox.up("development");
        run(&sandbox, &["doctor"]).expect(0);
    }
}

#[test]
fn state_that_other_users_control_is_refused_before_any_change() {
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
    let sandbox = Sandbox::new("owners");
    let (states, state) = (sandbox.folder().join("state"), sandbox.state("development"));
    let commands = [&["status"][..], &["up", "--yes", "--no-gate"], &["down", "--yes"], &["plan"], &["health"]];
    let refused = |code: &str, says: &str| {
        let before = sandbox.files(&states);
        for args in commands {
            let said = run(&sandbox, &[args, &["-o", "json"]].concat()).expect(4).json();
            assert_eq!(said["error"]["code"], code, "{said:#}");
            assert!(said["error"].to_string().contains(says), "{says}: {said:#}");
        }
        assert_eq!(run(&sandbox, &["doctor"]).exit, 1);
        assert_eq!(sandbox.files(&states), before, "nothing was written");
    };
    let set_mode = |path: &camino::Utf8Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    std::fs::create_dir_all(state.join("sites/here/bin")).unwrap();
    for path in [&states, &state, &state.join("sites/here/bin")] {
        set_mode(path, 0o777);
        refused("state_exposed", &format!("chmod go-w {path}"));
        set_mode(path, 0o755);
    }
    // Only root may give a folder away.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    const OTHER: Option<u32> = Some(65_534);
    for path in [&states, &state] {
        chown(path, OTHER, OTHER).unwrap();
        refused("other_owner", "run the command as that user: sudo -u ");
        chown(path, Some(0), Some(0)).unwrap();
    }
    for path in [state.join("sites/here/bin"), state.join("sites")] {
        chown(&path, OTHER, OTHER).unwrap();
        refused("state_exposed", &format!("chown -h 0 {path}"));
        chown(&path, Some(0), Some(0)).unwrap();
    }
    // Another user's link to a folder of the caller is not followed.
    let victim = sandbox.folder().join("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::remove_dir_all(&state).unwrap();
    symlink(&victim, &state).unwrap();
    lchown(&state, OTHER, OTHER).unwrap();
    refused("other_owner", "run the command as that user");
    assert_eq!(sandbox.files(&victim), Vec::<String>::new());
}

/// A state file as Terraform writes it of what `export terraform` made.
fn tfstate(exported: &Value) -> Value {
    let resources = exported["resource"]["terraform_data"].as_object().unwrap().iter().map(|(name, resource)| {
        let attributes = json!({ "id": name, "input": { "value": resource["input"], "type": ["object", {}] } });
        let instance = json!({ "schema_version": 0, "attributes": attributes, "sensitive_attributes": [] });
        let provider = "provider[\"terraform.io/builtin/terraform\"]";
        json!({ "mode": "managed", "type": "terraform_data", "name": name, "provider": provider, "instances": [instance] })
    });
    let mut resources: Vec<Value> = resources.collect();
    let attributes = json!({ "result": "hunter2", "id": "none" });
    let stranger = json!([{ "schema_version": 3, "attributes": attributes, "sensitive_attributes": [] }]);
    resources.push(json!({ "mode": "managed", "type": "random_password", "name": "db", "instances": stranger }));
    json!({ "version": 4, "terraform_version": "1.11.4", "serial": 1, "lineage": "a", "outputs": {}, "resources": resources })
}

#[test]
fn terraform_state_restores_lost_records() {
    let sandbox = Sandbox::new("terraform");
    sandbox.up("development");
    let exported: Value = serde_json::from_str(&run(&sandbox, &["export", "terraform"]).expect(0).out).unwrap();
    let lineage = exported["locals"]["lineage"].as_str().unwrap().to_owned();
    let (before, file) = (sandbox.processes().len(), sandbox.folder().join("state.json"));
    let from = ["state", "import", "--from-tfstate", file.as_str()];
    let refused = |text: &str, because: &str| {
        std::fs::write(&file, text).unwrap();
        let said = run(&sandbox, &from).expect(2);
        assert!(said.err.contains(because) && said.err.contains("hint: "), "{}", said.err);
    };
    run(&sandbox, &from).expect(2);
    refused("", "it is not JSON");
    refused(r#"{"version":5,"serial":1}"#, "its version is 5");
    refused(r#"{"lineage":"a","encrypted_data":"AAAA","encryption_version":"v0"}"#, "it is encrypted");
    let state = tfstate(&exported);
    std::fs::write(&file, state.to_string()).unwrap();

    // Everything is recorded: nothing is proposed, and each has its reason.
    let same = json_of(&sandbox, &from);
    let objects = same["tfstate"]["objects"].as_u64().unwrap() as usize;
    assert_eq!((same["proposals"].as_array().unwrap().len(), same["left"].as_array().unwrap().len()), (0, objects));
    assert!(
        same["left"].to_string().contains("is recorded already") && !same.to_string().contains("hunter2"),
        "{same:#}"
    );

    let folder = sandbox.state("development");
    for part in ["lineage.json", "lease.json", "lock"] {
        std::fs::remove_file(folder.join(part)).unwrap();
    }
    std::fs::remove_dir_all(folder.join("journal")).unwrap();
    let unknown = run(&sandbox, &from).expect(2);
    assert!(unknown.err.contains(&format!("--from-tfstate {file} --lineage {lineage}")), "{}", unknown.err);
    let with = [&from[..], &["--lineage", &lineage]].concat();
    let looked = run(&sandbox, &[&with[..], &["-o", "json"]].concat()).expect(4).json();
    assert_eq!(looked["proposals"].as_array().unwrap().len(), objects - 1, "{looked:#}");
    assert_eq!(looked["left"][0]["address"], "random_password.db");
    let hint = looked["error"]["hint"].as_str().unwrap();
    assert!(hint.contains("--from-tfstate") && hint.contains(&lineage) && hint.ends_with("--yes"), "{hint}");
    assert_eq!(json_of(&sandbox, &[&with[..], &["--yes"]].concat())["imported"], objects - 1);
    sandbox.up("development");
    assert_eq!(sandbox.processes().len(), before, "{:?}", sandbox.processes());
    assert_eq!(json_of(&sandbox, &["status"])["ready"], true);
}

/// Runs of the program whose state lies in a bucket.
struct InBucket<'a> {
    sandbox: &'a Sandbox,
    bucket: &'a Bucket,
}

impl InBucket<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.sandbox.command(&[args, &ENV].concat());
        command.envs(self.bucket.variables());
        command
    }

    fn run(&self, args: &[&str]) -> Said {
        said(self.command(args).output().unwrap())
    }
}

#[test]
fn status_of_sites_does_not_wait_for_a_bucket_that_was_lost_with_them() {
    let sandbox = Sandbox::new("lost");
    // Its connections are accepted by the kernel, and no request is answered.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let folder = sandbox.state("multi-region");
    std::fs::create_dir_all(&folder).unwrap();
    let state = json!({ "store": "s3://states/company", "endpoint": endpoint, "region": "us-east-1" });
    let pointer = json!({ "environment": "multi-region", "state": state, "private_ca": null });
    std::fs::write(folder.join("store.json"), pointer.to_string()).unwrap();
    let mut command = sandbox.command(&["dr", "status", "--env", "multi-region"]);
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    let began = Instant::now();
    let status = said(command.output().unwrap()).expect(1);
    assert!(status.out.contains("no site of multi-region answers"), "{}", status.out);
    // A request of the store may take a minute.
    assert!(began.elapsed() < Duration::from_secs(40), "it took {:?}", began.elapsed());
}

#[test]
fn state_in_a_bucket_survives_a_kill_two_operators_and_a_move() {
    let Some(bucket) = Bucket::start() else { return };
    let sandbox = Sandbox::new("bucket");
    let bucket = InBucket { sandbox: &sandbox, bucket: &bucket };
    let up = ["up", "--yes", "--no-gate"];

    // Killed while it works: the next run waits until the lease is over, and finishes what was begun.
    let mut child = bucket.command(&up).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("something runs", || sandbox.pid("supervise"));
    child.kill().unwrap();
    child.wait().unwrap();
    let began = Instant::now();
    let next = bucket.run(&up).expect(0);
    println!("the next run took {:?}", began.elapsed());
    assert!(began.elapsed() > Duration::from_secs(5), "it did not wait: {}", next.err);
    let list = bucket.run(&["state", "list", "-o", "json"]).expect(0).json();
    assert!(list["store"].as_str().unwrap().starts_with("s3://states/"), "{list:#}");
    assert!(!sandbox.state("development").join("lineage.json").exists());
    assert_eq!(bucket.run(&["status", "-o", "json"]).expect(0).json()["ready"], true);
    assert_eq!(bucket.run(&["plan", "--exit-code"]).expect(0).exit, 0);

    // Two at once: one works, the other is told who does.
    let change = ["up", "--yes", "--no-gate", "--set", "server.api.drain=6s"];
    let first = bucket.command(&change).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let both = [bucket.run(&change), said(first.wait_with_output().unwrap())];
    assert!(both.iter().any(|said| said.exit == 0), "{both:?}");
    assert!(both.iter().all(|said| said.exit == 0 || said.exit == 4), "{both:?}");

    // The file says another place than where the state is.
    let elsewhere = sandbox.run(&["plan", "--env", "development", "-o", "json"]).expect(4).json();
    assert_eq!(elsewhere["error"]["code"], "state_elsewhere", "{elsewhere:#}");
    assert!(elsewhere["error"]["hint"].as_str().unwrap().contains("state move --to local"), "{elsewhere:#}");
    // Moved with the credentials at hand; afterwards the bucket says where it went.
    bucket.run(&["state", "move", "--to", "local", "--yes"]).expect(0);
    let moved = bucket.run(&["status", "-o", "json"]);
    assert_eq!(moved.exit, 4, "{}{}", moved.out, moved.err);
    let status = json_of(&sandbox, &["status"]);
    assert_eq!(status["ready"], true, "{status:#}");
    sandbox.run(&["down", "--env", "development", "--yes", "--delete-data", "development"]).expect(0);
}

#[test]
fn commands_of_root_run_as_the_user_of_the_environment() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    if !rustix::process::geteuid().is_root() {
        println!("only root can change to another user");
        return;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("nobody:")).unwrap();
    let ids: Vec<u32> = line.split(':').skip(2).take(2).map(|id| id.parse().unwrap()).collect();
    // In a path that other users can enter, unlike the folders of other tests.
    let open = |path: &camino::Utf8Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let sandbox = Sandbox::at(tempfile::Builder::new().prefix("textnlp-user").tempdir_in("/var/lib").unwrap());
    open(sandbox.folder());
    let program = sandbox.folder().join("textnlp-deploy");
    std::fs::copy(textnlp_tests::program(), &program).unwrap();
    open(&program);
    let state = sandbox.folder().join("state");
    std::fs::create_dir(&state).unwrap();
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o700)).unwrap();
    let without_user = |args: &[&str]| {
        let args = [args, &["--env", "development"]].concat();
        let usual = sandbox.command(&args);
        let variables = usual.get_envs().filter_map(|(name, value)| Some((name, value?)));
        let mut command = std::process::Command::new(&program);
        command.args(&args).current_dir(sandbox.folder()).env_clear().envs(variables).env("TEXTNLP_SERVER", &program);
        textnlp_tests::said(command.stdin(std::process::Stdio::null()).output().unwrap())
    };
    let run = |args: &[&str]| without_user(&[args, &["--set", "prerequisites.user=nobody"]].concat());
    let refused = run(&["up", "--yes"]).expect(4);
    let fix = format!("chown -R nobody: {state}");
    assert!(refused.err.contains("cannot write to") && refused.err.contains(&fix), "{}", refused.err);
    assert!(sandbox.files(&state).is_empty(), "root wrote nothing");

    chown(&state, Some(ids[0]), Some(ids[1])).unwrap();
    run(&["up", "--yes"]).expect(0);
    let processes = sandbox.processes();
    for word in ["supervise", "bin/server serve", " gateway --config"] {
        let (pid, _) = processes.iter().find(|(_, line)| line.contains(word)).unwrap();
        assert_eq!(std::fs::metadata(format!("/proc/{pid}")).unwrap().uid(), ids[0], "{word}");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
        assert!(groups.split_whitespace().all(|group| group != "0"), "{word}: {groups}");
    }
    run(&["status"]).expect(0);
    for file in sandbox.files(&state) {
        // The supervisor may have replaced it meanwhile.
        let Ok(found) = std::fs::symlink_metadata(state.join(&file)) else { continue };
        assert_eq!(found.uid(), ids[0], "{file}");
    }
    let doctor = run(&["doctor", "-o", "json"]).expect(0).json();
    assert!(doctor["checks"].as_array().unwrap().iter().all(|check| check["name"] != "user"), "{doctor:#}");

    // Clients of the service too: in the state of another user, root could be led to any file.
    run(&["health"]).expect(0);
    for client in [&["health"][..], &["generate", "Once"]] {
        let refused = without_user(&[client, &["-o", "json"]].concat()).expect(4).json();
        assert_eq!(refused["error"]["code"], "other_owner", "{refused:#}");
    }
}

/// Whether the soft and the hard limit of a process prevent core dumps.
fn core_limits(pid: u32) -> Option<[bool; 2]> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size"))?;
    let mut limits = line.split_whitespace().map(|limit| limit.parse::<u64>().is_ok_and(|limit| limit <= 1));
    Some([limits.next()?, limits.next()?])
}

#[test]
fn files_that_the_caller_left_open_and_core_dumps_stay_away_from_programs() {
    let sandbox = Sandbox::new("descriptors");
    let left_open = sandbox.folder().join("lock of a script");
    std::fs::write(&left_open, "").unwrap();
    let up = sandbox.command(&["up", "--env", "development", "--yes", "--no-gate"]);
    let mut script = std::process::Command::new("sh");
    script.args(["-c", "exec 9<\"$0\" && exec \"$@\"", left_open.as_str()]).arg(up.get_program()).args(up.get_args());
    script.env_clear().envs(up.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let script = script.current_dir(sandbox.folder()).stdin(std::process::Stdio::null());
    textnlp_tests::said(script.output().unwrap()).expect(0);
    let processes = sandbox.processes();
    assert!(processes.len() >= 3, "{processes:?}");
    for (pid, line) in processes {
        let mut files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let is_it = |path: std::path::PathBuf| path == left_open.as_std_path();
        assert!(!files.any(|file| std::fs::read_link(file.path()).is_ok_and(is_it)), "{line}");
        assert_eq!(core_limits(pid), Some([true, true]), "{line}");
    }
    // Commands have secrets too.
    let mut follows = sandbox.start(&["logs", "--follow"]);
    let stays = textnlp_tests::eventually("the limit is set", || {
        core_limits(follows.id()).filter(|limits| *limits == [true, true])
    });
    assert_eq!(stays, [true, true]);
    follows.kill().unwrap();
    follows.wait().unwrap();
    run(&sandbox, &["down", "--yes"]).expect(0);
}

#[test]
fn programs_that_run_as_root_are_a_warning() {
    let sandbox = Sandbox::new("rooted");
    let doctor = json_of(&sandbox, &["doctor"]);
    let warned = doctor["checks"].as_array().unwrap().iter().any(|check| check["name"] == "user");
    let preflight = json_of(&sandbox, &["preflight"]);
    let place = |problem: &Value| problem["place"] == "prerequisites.user";
    let noted = preflight["warnings"].as_array().unwrap().iter().any(place);
    let is_root = rustix::process::geteuid().is_root();
    assert_eq!((warned, noted), (is_root, is_root), "{doctor:#} {preflight:#}");
    let unknown = run(&sandbox, &["preflight", "--set", "prerequisites.user=no-such-user"]).expect(1);
    assert!(unknown.err.contains("this machine has no such user"), "{}", unknown.err);
    let declined = run(&sandbox, &["preflight", "--set", "prerequisites.user=root", "-o", "json"]);
    let declined = declined.expect(if is_root { 0 } else { 1 }).json();
    assert_eq!(declined["warnings"].as_array().is_some_and(|found| found.iter().any(place)), is_root, "{declined:#}");
    let refused = run(&sandbox, &["preflight", "--set", "prerequisites.user=No:name"]).expect(2);
    assert!(refused.err.contains("is not the name of a service user"), "{}", refused.err);
}

#[test]
fn root_names_the_user_of_a_new_environment_with_production_users() {
    let sandbox = Sandbox::new("production");
    let is_root = rustix::process::geteuid().is_root();
    // Other problems, such as ports in use, do not count here.
    let preflight = |sets: &[&str]| {
        let said = sandbox.run(&[&["preflight", "--env", "multi-region", "-o", "json"], sets].concat());
        let problems = said.json()["problems"].as_array().cloned().unwrap_or_default();
        let refused = problems.iter().any(|problem| problem["place"] == "prerequisites.user");
        let is_new = |(i, problem): (usize, &Value)| !problems[..i].contains(problem);
        assert!(problems.iter().enumerate().all(is_new), "three sites of one machine have the same: {problems:#?}");
        (refused, [said.out, said.err].concat().contains("the programs of this environment run as root"))
    };
    assert_eq!(preflight(&[]), (is_root, false));
    if is_root {
        assert_eq!(preflight(&["--set", "prerequisites.user=root"]), (false, true));
    }
    let is_noted = |command: &str| sandbox.run(&[command, "--env", "multi-region"]).err.contains("no on-call contact");
    assert_eq!((is_noted("preflight"), is_noted("status")), (true, false));
    // One that is recorded, restored or cloned goes on.
    std::fs::create_dir_all(sandbox.state("multi-region").join("sites")).unwrap();
    assert_eq!(preflight(&[]), (false, is_root));
}

#[test]
fn first_key_and_signing_key_are_replaced_and_their_past_ends() {
    let sandbox = Sandbox::new("rotation");
    sandbox.up("development");
    let port = sandbox.port;
    let body = json!({ "prompt": "Mira", "max_tokens": 4 }).to_string();
    let answers = |credential: &str| {
        let bearer = format!("Bearer {credential}");
        http::ask(port, "POST", "/v1/generate", &[("Authorization", &bearer)], body.as_bytes()).unwrap().status
    };
    let token = |key: &str| {
        let answer = http::ask(port, "POST", "/auth/token", &[("X-API-Key", key)], b"").unwrap().json();
        answer["token"].as_str().unwrap().to_owned()
    };
    let verifiers = || http::get(port, "/.well-known/jwks.json").unwrap().json()["keys"].as_array().unwrap().len();
    let id_of = |key: &str| key.split('_').nth(1).unwrap().to_owned();
    let quickly = ["--yes", "--no-gate"];

    // The same id and another secret: the old one ends at once.
    let first = sandbox.first_key("development");
    let id = id_of(&first);
    let done = json_of(&sandbox, &[&["key", "rotate", &id][..], &quickly].concat());
    assert_eq!(done["rotated"], json!(["here/secrets/api-key"]), "{done:#}");
    let second = sandbox.first_key("development");
    assert_eq!(id_of(&second), id);
    assert_eq!((answers(&first), answers(&second)), (401, 200));

    // With a grace period both are valid, and the old one has an end.
    json_of(&sandbox, &[&["key", "rotate", &id, "--grace", "1h"][..], &quickly].concat());
    let third = sandbox.first_key("development");
    assert_ne!(id_of(&third), id);
    assert_eq!((answers(&second), answers(&third)), (200, 200));
    let listed = json_of(&sandbox, &["key", "list"]);
    let old = listed["keys"].as_array().unwrap().iter().find(|key| key["public_id"] == id.as_str()).unwrap();
    assert!(old["expires_at"].as_str().unwrap().ends_with('Z') && old["revoked_at"].is_null(), "{old:#}");

    // Tokens of a replaced signing key are valid until they end.
    let early = token(&third);
    let done = json_of(&sandbox, &[&["secret", "rotate", "jwt"][..], &quickly].concat());
    assert_eq!(done["rotated"], json!(["here/secrets/jwt-signing-key"]), "{done:#}");
    let late = token(&third);
    assert_eq!((answers(&early), answers(&late), verifiers()), (200, 200, 2));

    // A leaked one is of no use any more.
    json_of(&sandbox, &[&["secret", "rotate", "jwt", "--immediately"][..], &quickly].concat());
    // A request for the key set also reads the keys again.
    assert_eq!(verifiers(), 1);
    assert_eq!((answers(&early), answers(&late), answers(&token(&third))), (401, 401, 200));

    // Who did it is in the journal and in the audit log, and nothing is left to do.
    let history = json_of(&sandbox, &["state", "history", "here/secrets/jwt-signing-key"]).to_string();
    assert_eq!(history.matches("rotate here/secrets/jwt-signing-key").count(), 2, "{history}");
    let audit = run(&sandbox, &["audit", "export"]).expect(0).out;
    for action in ["key.rotate", "key.change", "secret.rotate"] {
        assert!(audit.contains(&format!("\"{action}\"")), "{action} in {audit}");
    }
    run(&sandbox, &["plan", "--exit-code"]).expect(0);

    // Revoked without a replacement only beside another key with all scopes; it never comes back.
    let id = id_of(&third);
    let refused = run(&sandbox, &["key", "revoke", &id, "--yes", "-o", "json"]).expect(4).json();
    assert_eq!(refused["error"]["code"], "only_key", "{refused:#}");
    assert_eq!(answers(&third), 200);
    run(&sandbox, &["key", "create", "administrator"]).expect(0);
    run(&sandbox, &["key", "revoke", &id, "--yes"]).expect(0);
    assert_eq!(answers(&third), 401);
    sandbox.up("development");
    assert_eq!((answers(&third), answers(&sandbox.first_key("development"))), (401, 200));
    run(&sandbox, &["down", "--yes"]).expect(0);
}

#[test]
fn authority_is_replaced_beside_the_old_one_or_after_a_leak_without_it() {
    let sandbox = Sandbox::new("authority");
    sandbox.up("staging");
    let authorities = || std::fs::read_to_string(sandbox.site("staging").join("certs/ca.pem")).unwrap();
    let count = |pem: &str| pem.matches("BEGIN CERTIFICATE").count();
    let rotate = |more: &[&str]| {
        let args = ["secret", "rotate", "ca", "--env", "staging", "--yes", "--no-gate", "-o", "json"];
        let done = sandbox.run(&[&args, more].concat()).expect(0).json();
        assert_eq!(done["rotated"], json!(["here/certificate/authority"]), "{done:#}");
    };
    let first = authorities();
    assert_eq!(count(&first), 1);
    rotate(&[]);
    let both = authorities();
    assert!(count(&both) == 2 && both.contains(first.trim()) && !both.starts_with(first.trim()), "{both}");
    sandbox.run(&["generate", "Once", "--max-tokens", "2"]).expect(0);
    rotate(&["--immediately"]);
    let last = authorities();
    assert!(count(&last) == 1 && !both.contains(last.trim()), "{last}");
    // Its certificate is of the new authority: no other is trusted.
    sandbox.run(&["generate", "Once", "--max-tokens", "2"]).expect(0);
    sandbox.run(&["plan", "--env", "staging", "--exit-code"]).expect(0);

    // A gate that stays shut does not keep the servers from forgetting a leaked key.
    let leaked = ["secret", "rotate", "jwt", "--immediately", "--env", "staging", "--yes"];
    let sets = ["gates.users=2", "gates.hold=1s", "gates.p95_ms=1"].into_iter().flat_map(|set| ["--set", set]);
    let shut = sandbox.run(&leaked.into_iter().chain(sets).collect::<Vec<_>>()).expect(3);
    assert!(shut.err.contains("Tokens that the old key signed are refused"), "{}", shut.err);
    let audit = sandbox.run(&["audit", "export", "--env", "staging"]).expect(0).out;
    let is_recorded = |line: &str| line.contains("\"secret.rotate\"") && line.contains("\"jwt\"");
    assert!(audit.lines().any(is_recorded), "{audit}");
    sandbox.run(&["down", "--env", "staging", "--yes"]).expect(0);
}
