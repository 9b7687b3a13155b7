//! PostgreSQL as an operator meets it: one that somebody else runs, and one that runs here with a copy. The real program and real servers.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::io::Write;

use serde_json::{Value, json};
use textnlp_tests::{Said, Sandbox, counts, eventually, http, said};

#[path = "../../server/tests/support/postgres.rs"]
mod postgres;

/// Runs the program with `DATABASE_URL` set.
fn run(sandbox: &Sandbox, url: &str, args: &[&str]) -> Said {
    textnlp_tests::said(sandbox.command(args).env("DATABASE_URL", url).output().unwrap())
}

/// The status of a small request.
fn generate(sandbox: &Sandbox, key: &str) -> u16 {
    let body = json!({ "prompt": "Once", "max_tokens": 3 }).to_string();
    let answer = http::ask(sandbox.port, "POST", "/v1/generate", &[("x-api-key", key)], body.as_bytes());
    answer.map_or(0, |answer| answer.status)
}

const EXTERNAL: [&str; 4] = ["--set", "database.kind=postgres", "--set", "database.url=secret:env:DATABASE_URL"];

fn with<'a>(args: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    args.iter().chain(more).copied().collect()
}

#[test]
fn external_database_is_checked_first_and_left_in_place() {
    let Some(cluster) = postgres::shared() else { return };
    let sandbox = Sandbox::new("pg");
    let name = cluster.database();
    let url = cluster.url(&name);
    let up = with(&["up", "--env", "development", "--yes", "--no-gate", "-o", "json"], &EXTERNAL);

    let missing = sandbox.run(&up).expect(2);
    assert!(missing.out.contains("the variable `DATABASE_URL` is not set"), "{}", missing.out);
    cluster.sql("postgres", "CREATE ROLE stranger LOGIN");
    let stranger = url.replace("textnlp@", "stranger@");
    let refused = run(&sandbox, &stranger, &up);
    assert!(
        refused.exit != 0 && refused.out.contains("stranger may not create tables in schema public"),
        "{}",
        refused.out
    );
    assert!(!sandbox.site("development").join("run").exists(), "nothing was begun");

    let done = run(&sandbox, &url, &up).expect(0).json();
    assert_eq!(done["text"].as_str().map(str::is_empty), Some(false), "{done:#}");
    let key = sandbox.first_key("development");
    assert_eq!(cluster.sql(&name, "SELECT count(*) FROM api_keys"), "1");
    let again = run(&sandbox, &url, &up).expect(0).json();
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "a second up plans nothing: {again:#}");
    let status = run(&sandbox, &url, &["status", "--env", "development", "-o", "json"]).expect(0).json();
    assert_eq!((status["ready"].as_bool(), status["drift"].as_array().map(Vec::len)), (Some(true), Some(0)));

    // The address is nowhere but where secrets are.
    let state = sandbox.state("development");
    for file in sandbox.files(&state).iter().filter(|file| !file.starts_with("secrets/") && !file.contains("/certs/")) {
        let text = std::fs::read(state.join(file)).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&text).contains(&url), "{file} holds the address");
    }

    // Another address is seen as a change by its mark, and rolls the servers.
    let moved = format!("{url}?application_name=moved");
    let plan = run(&sandbox, &moved, &with(&["plan", "--env", "development"], &EXTERNAL)).expect(0);
    assert!(plan.out.contains("here/database/url") && !plan.out.contains("moved"), "{}", plan.out);
    run(&sandbox, &moved, &up).expect(0);
    assert_eq!(generate(&sandbox, &key), 200);
    let used = cluster.sql("postgres", "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'moved'");
    assert_eq!(used, "t");

    run(&sandbox, &moved, &["down", "--env", "development", "--yes"]).expect(0);
    assert_eq!(
        cluster.sql(&name, "SELECT count(*) FROM api_keys WHERE revoked_at IS NOT NULL"),
        "1",
        "its key opens nothing"
    );
}

/// The way back that `restore` prints for a PostgreSQL that somebody else runs, followed to the letter.
#[test]
fn the_printed_pg_restore_brings_an_external_database_back() {
    let Some(cluster) = postgres::shared() else { return };
    let sandbox = Sandbox::new("pg-back");
    let name = cluster.database();
    let url = cluster.url(&name);
    let up = with(&["up", "--env", "development", "--yes", "--no-gate"], &EXTERNAL);
    run(&sandbox, &url, &up).expect(0);
    let key = sandbox.first_key("development");
    assert_eq!(generate(&sandbox, &key), 200);
    let made = run(&sandbox, &url, &["backup", "create", "--env", "development", "-o", "json"]).expect(0).json();
    let file = made["file"].as_str().unwrap();

    // What the database loses after that day comes back: the key that `down` revokes, and a table.
    run(&sandbox, &url, &["down", "--env", "development", "--yes"]).expect(0);
    let revoked = "SELECT count(*) FROM api_keys WHERE revoked_at IS NOT NULL";
    assert_eq!(cluster.sql(&name, revoked), "1");
    cluster.sql(&name, "DROP TABLE feature_flags");
    let restored = run(&sandbox, &url, &["restore", file, "--replace", "development"]).expect(0);
    let line = restored.out.split_once("to restore into an external one: ").unwrap().1.lines().next().unwrap();
    assert!(line.starts_with("pg_restore -c --if-exists --no-owner -d URL "), "{line}");
    let path = format!("{}:{}", postgres::programs().unwrap().display(), std::env::var("PATH").unwrap());
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &line.replace("-d URL ", "-d \"$DATABASE_URL\" ")]).env("PATH", path).env("DATABASE_URL", &url);
    said(shell.current_dir(sandbox.folder()).output().unwrap()).expect(0);
    assert_eq!(cluster.sql(&name, revoked), "0");

    run(&sandbox, &url, &up).expect(0);
    assert_eq!(generate(&sandbox, &key), 200, "the key of that day opens again");
    let again = run(&sandbox, &url, &with(&["plan", "--env", "development", "--exit-code"], &EXTERNAL));
    assert_eq!(again.exit, 0, "a second `up` plans nothing: {}{}", again.out, again.err);
    run(&sandbox, &url, &["down", "--env", "development", "--yes", "--delete-data", "development"]).expect(0);
}

#[test]
fn managed_database_survives_supervisor_loss_and_down_with_its_replica() {
    if !postgres::is_installed() {
        return;
    }
    let sandbox = Sandbox::new("pg");
    let own = ["--set", "database.kind=postgres", "--set", "database.replicas=1", "--set", "data=protected"];
    let up = with(&["up", "--env", "development", "--yes", "--no-gate", "-o", "json"], &own);
    sandbox.run(&up).expect(0);
    let key = sandbox.first_key("development");
    assert_eq!(generate(&sandbox, &key), 200);
    let again = sandbox.run(&up).expect(0).json();
    assert_eq!(counts(&again)[..4], [0, 0, 0, 0], "a second up plans nothing: {again:#}");

    let home = sandbox.site("development").join("data/postgres").canonicalize_utf8().unwrap();
    let pid = || -> u32 {
        let file = std::fs::read_to_string(home.join("data/postmaster.pid")).unwrap_or_default();
        file.lines().next().and_then(|line| line.parse().ok()).unwrap_or_default()
    };
    if postgres::user().is_some() {
        let user = std::fs::metadata(format!("/proc/{}", pid())).unwrap();
        assert_ne!(std::os::unix::fs::MetadataExt::uid(&user), 0, "it does not run as root");
    }

    // What is written here is there.
    let copy = |unit: &str| -> Value {
        let socket = sandbox.site("development").join(format!("run/{unit}.sock"));
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        stream.write_all(http::head("GET", "/v1/status", &[], 0).as_bytes()).unwrap();
        http::read(stream).unwrap().json()
    };
    eventually("the copy follows", || {
        let copies = copy("database-0")["database"]["copies"].clone();
        (copies[0]["connected"] == true && copies[0]["behind_bytes"] == 0).then_some(())
    });
    assert_eq!(copy("database-1")["database"]["role"], "copy");

    // New passwords for the service and for the copy: both come back with them.
    let passwords = || {
        let secrets = sandbox.state("development").join("secrets");
        ["here.database-password", "here.replication-password"].map(|name| sandbox.files(&secrets.join(name)).len())
    };
    assert_eq!(passwords(), [1, 1]);
    let rotate = ["secret", "rotate", "database", "--env", "development", "--yes", "--no-gate", "-o", "json"];
    let done = sandbox.run(&with(&rotate, &own)).expect(0).json();
    assert_eq!(done["rotated"], json!(["here/secrets/database-password", "here/secrets/replication-password"]));
    assert_eq!(passwords(), [2, 2]);
    eventually("it answers with the new password", || (generate(&sandbox, &key) == 200).then_some(()));
    eventually("the copy follows with the new password", || {
        let copies = copy("database-0")["database"]["copies"].clone();
        (copies[0]["connected"] == true).then_some(())
    });

    // Its keeper is killed: the server goes with it, the supervisor brings both back, and the replicas go on with what was stored.
    let (keeper, server) = (sandbox.pid("config/database-0.yaml").unwrap(), pid());
    sandbox.kill(keeper);
    eventually("another server runs", || (pid() != server && pid() != 0).then_some(()));
    eventually("it answers again", || (generate(&sandbox, &key) == 200).then_some(()));
    assert!(!std::path::Path::new(&format!("/proc/{server}")).exists(), "the old one is gone");

    let down = sandbox.run(&["down", "--env", "development", "--yes", "-o", "json"]).expect(0).json();
    let retained = down["retained"].to_string();
    assert!(retained.contains("here/database"), "{retained}");
    assert!(home.join("data/PG_VERSION").exists());
    assert!(sandbox.processes().is_empty(), "{:?}", sandbox.processes());
    sandbox.run(&up).expect(0);
    assert_eq!(generate(&sandbox, &key), 200, "what was stored is there, its key too");

    // The link of a copied state leads to the same database, which is not the copy's.
    if postgres::user().is_some() {
        let copy = sandbox.folder().join("copy");
        std::fs::create_dir(&copy).unwrap();
        let copied = [sandbox.state("development"), copy.clone()];
        assert!(std::process::Command::new("cp").arg("-a").args(copied).status().unwrap().success());
        let other = |args: &[&str]| {
            let args = [args, &["--env", "development", "--yes"]].concat();
            said(sandbox.command(&args).env("TEXTNLP_STATE_DIR", &copy).output().unwrap())
        };
        other(&["state", "adopt"]).expect(0);
        let down = other(&["down", "--delete-data", "development"]);
        assert!(down.exit == 1 && down.err.contains("of which this state is a copy"), "{down:?}");
        assert!(home.join("data/PG_VERSION").exists());
    }

    sandbox.run(&["down", "--env", "development", "--delete-data", "development", "--yes"]).expect(0);
    assert!(!home.exists(), "{home}");
}

#[test]
fn pilot_gate_waits_for_its_measurements_and_opens_without_a_waiver() {
    if !postgres::is_installed() {
        return;
    }
    let sandbox = Sandbox::new("pilot");
    let folder = sandbox.folder().join("environments");
    std::fs::create_dir(&folder).unwrap();
    let user = if rustix::process::geteuid().is_root() { ", user: root" } else { "" };
    let text = format!(
        "extends: staging\nenvironment: first\nphase: pilot\ndata: protected\n\
         backup: {{ enabled: true, every: 24h, keep: 30d }}\ndatabase: {{ kind: postgres, replicas: 1 }}\n\
         scaling: {{ min: 3 }}\ngates: {{ availability_window: 5s }}\n\
         prerequisites: {{ allow_below_minimum: true{user} }}\n"
    );
    std::fs::write(folder.join("first.yaml"), text).unwrap();
    let run = |args: &[&str]| sandbox.run(&[args, &["--env", "first", "-o", "json"]].concat());
    run(&["up", "--yes", "--no-gate", "--from-scratch", "--reason", "a test"]).expect(0);

    // Each check that waits names its command.
    let waits = run(&["gate"]).expect(3).json();
    assert_eq!(waits["gate"]["state"], "wait", "{waits:#}");
    let blockers = waits["gate"]["blockers"].to_string();
    for (check, command) in
        [("availability", "probe --for 5s --env first"), ("database failover", "db failover --env first")]
    {
        assert!(blockers.contains(&format!("{check}: not measured yet")) && blockers.contains(command), "{blockers}");
    }

    // The primary is killed while rows are written, after an approval.
    assert_eq!(run(&["db", "failover"]).expect(4).json()["error"]["code"], "not_approved");
    let keeper = sandbox.pid("config/database-0.yaml").unwrap();
    let failed_over = run(&["db", "failover", "--yes"]).expect(0).json();
    assert_ne!(sandbox.pid("config/database-0.yaml"), Some(keeper), "it was not killed");
    assert_eq!((&failed_over["lost"], &failed_over["instances"]), (&json!(0), &json!(2)), "{failed_over:#}");
    assert!(failed_over["acknowledged"].as_u64() > Some(10) && failed_over["failed"].as_u64() > Some(0));
    let servers = failed_over["servers"].as_array().unwrap();
    assert!(servers.len() == 2 && servers[0]["system"] == servers[1]["system"], "{failed_over:#}");
    assert!(failed_over["ready_s"].is_number() && failed_over["without_writes_ms"].as_u64() > Some(100));

    let measured = run(&["db", "bench", "--clients", "2", "--duration", "1s"]).expect(0).json();
    let database = &measured["databases"][0];
    assert_eq!((&database["database"], &database["clients"]), (&json!("postgresql"), &json!(2)), "{measured:#}");
    assert!(database["transactions"].as_u64() > Some(0) && database["failed"].is_u64(), "{measured:#}");

    run(&["backup", "create"]).expect(0);

    // One prober at a time; a signal ends one that has no end.
    let prober = sandbox.start(&["probe", "--env", "first", "--every", "5s"]);
    let record = sandbox.state("first").join("availability");
    eventually("the first probe is recorded", || {
        sandbox.files(&record).iter().any(|file| file.ends_with(".jsonl")).then_some(())
    });
    assert_eq!(run(&["probe", "--for", "5s"]).expect(4).json()["error"]["code"], "prober_runs");
    textnlp_tests::signal(prober.id(), rustix::process::Signal::INT);
    let stopped = said(prober.wait_with_output().unwrap()).expect(0);
    assert!(stopped.err.contains("  available") && stopped.out.contains("0 failed"), "{stopped:?}");
    let probed = run(&["probe", "--every", "5s", "--for", "6s"]).expect(0).json();
    assert!(probed["summary"]["probes"] == 2 && probed["summary"]["available"] == 1.0, "{probed:#}");

    let open = run(&["gate"]).expect(0).json();
    assert_eq!(open["gate"]["state"], "open", "{open:#}");
    assert!(!open["gate"]["checks"].to_string().contains("waived_until"), "{open:#}");
    let check = |name: &str| {
        let checks = open["gate"]["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).unwrap().clone()
    };
    let available = check("availability");
    assert_eq!((&available["measured"], &available["limit"]), (&json!(1.0), &json!("at least 0.999")));
    let note = available["note"].as_str().unwrap();
    assert!(note.starts_with("over 5s instead of 1d: ") && note.contains("recorded requests, 0 failed"), "{note}");
    assert_eq!(check("database failover")["measured"], 0);

    run(&["down", "--yes", "--delete-data", "first"]).expect(0);
}
