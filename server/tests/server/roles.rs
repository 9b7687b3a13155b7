//! The program itself: its commands, its exit codes, its signals.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use textnlp_server::config::Address;

use super::support::{Client, Shape, path, until, write_model};

#[path = "../support/fail2ban.rs"]
mod fail2ban;

const PROGRAM: &str = env!("CARGO_BIN_EXE_textnlp-server");

pub(crate) struct Files {
    pub(crate) folder: tempfile::TempDir,
}

impl Files {
    /// A folder with a space in its name, as folders have.
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("text nlp ").tempdir().unwrap();
        write_model(&path(&folder, "tiny"), Shape::default());
        let text = format!(
            "textnlp:\n  environment: test\n  phase: staging\n  api: {{ listen: \"unix:{0}/s.sock\", drain_seconds: 20 }}\n  \
             models: {{ serve: [ {{ name: tiny, path: \"{0}/tiny\" }} ], threads: 1 }}\n  database: {{ url: \"sqlite://{0}/data/t.db\" }}\n  \
             monitoring: {{ log_file: \"{0}/log/server.log\" }}\n",
            path(&folder, "").as_str().trim_end_matches('/')
        );
        std::fs::write(path(&folder, "server.yaml"), text).unwrap();
        Self { folder }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).arg("--config").arg(path(&self.folder, "server.yaml")).env_remove("HOME");
        command
    }

    fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    fn migrate(&self) {
        assert!(self.run(&["admin", "migrate"], "").status.success());
    }

    /// Creates the database first if it is missing, as `up` does.
    pub(crate) fn keys(&self, command: Value) -> (Option<i32>, Value) {
        if !path(&self.folder, "data/t.db").exists() {
            self.migrate();
        }
        let output = self.run(&["admin", "keys"], &command.to_string());
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
    }
}

#[test]
fn program_without_random_numbers_does_not_start() {
    let jail = tempfile::tempdir().unwrap();
    std::fs::copy(PROGRAM, jail.path().join("server")).unwrap();
    let mut command = Command::new("chroot");
    command.arg(jail.path()).args(["/server", "serve", "--config", "/server.yaml"]);
    let Ok(output) = command.stdin(Stdio::null()).output() else { return eprintln!("left out, there is no chroot") };
    let said = String::from_utf8(output.stderr).unwrap();
    if said.starts_with("chroot: ") {
        return eprintln!("left out, it needs root: {said}");
    }
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error: the system gives no random numbers") && said.contains("/dev/urandom"), "{said}");
}

#[test]
fn migrate_reports_old_and_new_schema() {
    let files = Files::new();
    let migrate = |arguments: &[&str]| {
        let mut all = vec!["admin", "migrate"];
        all.extend(arguments);
        let output = files.run(&all, "");
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let newest = textnlp_store::newest_schema();
    let said = |arguments: &[&str]| -> Value { serde_json::from_str(&migrate(arguments).1).unwrap() };
    let first = said(&["--to", "1"]);
    // When it was made tells a database from another one in its place.
    let made = &first["made"];
    assert!(made.is_i64(), "{first}");
    assert_eq!(first, json!({ "from": 0, "to": 1, "made": made }));
    assert_eq!(said(&[]), json!({ "from": 1, "to": newest, "made": made }));
    assert_eq!(said(&[]), json!({ "from": newest, "to": newest, "made": made }));
    let (code, _, error) = migrate(&["--to", "1"]);
    assert!(code == Some(1) && error.contains("cannot be downgraded"), "{error}");
    assert_eq!(files.run(&["serve", "--to", "1"], "").status.code(), Some(2), "--to belongs to migrate");
}

#[cfg(not(feature = "cuda"))]
#[test]
fn migrate_refuses_a_gpu_that_the_program_cannot_use_and_changes_nothing() {
    let files = Files::new();
    let file = path(&files.folder, "server.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("models: { serve:", "models: { device: cuda, serve:")).unwrap();
    let output = files.run(&["admin", "migrate"], "");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("built without CUDA"), "{said}");
    assert!(!path(&files.folder, "data/t.db").exists());
}

#[test]
fn legacy_command_line_still_works() {
    let files = Files::new();
    let output = files.run(&["serve", "--role", "migrate", "--to", "1"], "");
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&said["from"], &said["to"]), (&json!(0), &json!(1)));
    assert_eq!(files.run(&["serve", "--role", "boss"], "").status.code(), Some(2));
}

#[test]
fn audit_log_is_printed_in_pages() {
    let files = Files::new();
    files.keys(json!({ "do": "create", "name": "ci", "operator": "alice@desk" }));
    let output = files.run(&["admin", "audit", "--do", r#"{"limit":2}"#], "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page: Value = serde_json::from_slice(&output.stdout).unwrap();
    let actions: Vec<&str> =
        page["events"].as_array().unwrap().iter().map(|row| row["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["database.migrate", "key.create"]);
    assert_eq!((&page["site"], &page["events"][1]["actor"]), (&json!("here"), &json!("alice@desk")));
    let after = json!({ "after": page["next"] }).to_string();
    let output = files.run(&["admin", "audit"], &after);
    let rest: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&rest["events"][0]["action"], &rest["next"]), (&json!("audit.export"), &Value::Null));
    let output = files.run(&["admin", "audit"], r#"{"limit":0}"#);
    let refused: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        output.status.code() == Some(1) && refused["error"]["message"].to_string().contains("`limit`"),
        "{refused}"
    );
    assert_eq!(files.run(&["serve", "--do", "{}"], "").status.code(), Some(2), "--do belongs to keys and audit");
}

#[test]
fn servers_and_commands_do_not_create_a_database_in_place_of_a_lost_one() {
    let files = Files::new();
    files.keys(json!({ "do": "create" }));
    let (data, away) = (path(&files.folder, "data"), path(&files.folder, "away"));
    std::fs::rename(&data, &away).unwrap();
    let range = json!({ "from": 0, "until": 86_400_000 });
    for (name, command) in [
        ("keys", json!({ "do": "list" })),
        ("keys", json!({ "do": "create" })),
        ("features", json!({ "do": "list" })),
        ("usage", range),
        ("audit", json!({})),
        ("database", json!({ "do": "vacuum" })),
        ("analytics", json!({ "do": "list" })),
    ] {
        let output = files.run(&["admin", name], &command.to_string());
        let refused: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}: {refused}");
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(message.ends_with("data/t.db does not exist"), "{name}: {message}");
        assert!(refused["error"]["hint"].as_str().unwrap().contains("`textnlp-deploy restore`"), "{name}: {refused}");
    }
    let output = files.run(&["admin", "check"], "");
    let checked: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(checked["problems"][0]["cause"].as_str().unwrap().ends_with("does not exist"), "{checked}");
    let output = files.run(&["serve"], "");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && error.contains("data/t.db does not exist"), "{error}");
    // A status shows the last line.
    let last = error.lines().last().unwrap_or_default();
    assert!(last.starts_with("hint: the file of the database is missing") && last.contains("backup list"), "{error}");
    assert!(!data.exists());
    // An empty file hides the loss too.
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("t.db"), "").unwrap();
    let list = json!({ "do": "list" }).to_string();
    for (command, input) in [(&["serve"][..], ""), (&["admin", "keys"], list.as_str()), (&["serve"], "")] {
        let output = files.run(command, input);
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        assert!(output.status.code() != Some(0) && said.contains("data/t.db is empty"), "{command:?}: {said}");
    }
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&away, &data).unwrap();
    assert_eq!(files.keys(json!({ "do": "list" })).1["keys"].as_array().unwrap().len(), 1);
}

#[test]
fn keys_are_managed_by_json_commands() {
    let files = Files::new();
    let (code, made) = files.keys(
        json!({ "do": "create", "name": "ci", "tenant": "acme", "rate_limit": "5/minute", "scopes": ["generate"] }),
    );
    assert_eq!(code, Some(0));
    let key = made["key"].as_str().unwrap();
    let id = made["public_id"].as_str().unwrap();
    assert!(key.starts_with(&format!("tnlp_{id}_")));
    let listed = files.keys(json!({ "do": "list" })).1;
    assert_eq!((&listed["keys"][0]["public_id"], &listed["keys"][0]["rate_limit"]), (&json!(id), &json!("5/minute")));
    assert!(!listed.to_string().contains(&key[22..]) && !listed.to_string().contains("sha256"));
    let put = json!({ "do": "put", "public_id": "bootstrap", "sha256": "ab".repeat(32) });
    assert_eq!(files.keys(put.clone()).1["changed"], true);
    assert_eq!(files.keys(put).1["changed"], false);
    let rotated = files.keys(json!({ "do": "rotate", "public_id": id })).1;
    assert!(rotated["key"] != made["key"] && rotated["tenant"] == "acme" && rotated["public_id"] == id);
    assert_eq!(files.keys(json!({ "do": "revoke", "public_id": id })).1["revoked"], true);
    assert_eq!(
        files.keys(json!({ "do": "revoke", "public_id": id })).1,
        json!({ "public_id": id, "found": true, "revoked": false })
    );
    assert_eq!(files.keys(json!({ "do": "revoke", "public_id": "nobody" })).1["found"], false);
    for (command, says) in [
        (json!({ "do": "crate" }), "did you mean `create`"),
        (json!({ "do": "create", "tennant": "x" }), "did you mean `tenant`"),
        (json!({ "do": "create", "tenant": "../x" }), "not a valid tenant id"),
        (json!({ "do": "create", "scopes": ["everything"] }), "no scope"),
        (json!({ "do": "create", "rate_limit": "often" }), "1000/hour"),
        (json!({ "do": "create", "token_limit": -5 }), "token_limit"),
        (json!({ "do": "create", "operator": "a\nb" }), "operator"),
        (json!({ "do": "put", "public_id": "x'; --", "sha256": "ab".repeat(32) }), "public_id"),
        (json!({ "do": "put", "public_id": "abcd", "sha256": "short" }), "sha256"),
        (json!({ "do": "rotate", "public_id": id }), "revoked"),
        (json!({ "do": "rotate", "public_id": "nobody" }), "there is no key"),
        (json!([]), "not a JSON object"),
    ] {
        let (code, answer) = files.keys(command.clone());
        assert_eq!(code, Some(1), "{command}");
        assert!(answer["error"].to_string().contains(says), "{command}: {answer}");
    }
}

#[test]
fn invalid_configuration_exits_with_usage_status_and_all_errors() {
    let files = Files::new();
    let file = path(&files.folder, "server.yaml");
    let text = std::fs::read_to_string(&file)
        .unwrap()
        .replace("drain_seconds", "drain_second")
        .replace("phase: staging", "phase: stagin");
    std::fs::write(&file, text).unwrap();
    let output = files.run(&["serve"], "");
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        error.contains("2 problems")
            && error.contains("did you mean `drain_seconds`")
            && error.contains("did you mean `staging`"),
        "{error}"
    );
    std::fs::remove_file(&file).unwrap();
    let output = files.run(&["serve"], "");
    assert!(output.status.code() == Some(2) && String::from_utf8(output.stderr).unwrap().contains("No such file"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_logs_requests_drains_on_sigterm_and_exits_with_zero() {
    let files = Files::new();
    let file = path(&files.folder, "server.yaml");
    let text = std::fs::read_to_string(&file).unwrap().replace("{ log_file", "{ log_level: TRACE, log_file");
    std::fs::write(&file, text).unwrap();
    let key = files.keys(json!({ "do": "create" })).1["key"].as_str().unwrap().to_owned();
    let mut child = files.command(&["serve"]).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let socket = path(&files.folder, "s.sock");
    let client = Client::new(&Address::Unix(socket.clone()));
    until("it is ready", async || {
        client.try_connect().await.is_some() && client.send("GET", "/ready", &[], b"").await.status == 200
    })
    .await;
    let ask = json!({ "prompt": "nobody logs this", "max_tokens": 3, "ignore_end": true }).to_string();
    let headers = [("x-api-key", key.as_str()), ("x-request-id", "traced-1")];
    assert_eq!(client.send("POST", "/v1/generate", &headers, ask.as_bytes()).await.status, 200);
    let ticket = client.send("POST", "/v1/stream/tickets", &headers[..1], ask.as_bytes()).await.json();
    let reply = client.send("GET", ticket["url"].as_str().unwrap(), &[("x-request-id", "ticket-1")], b"").await;
    assert_eq!((reply.status, reply.events().last().unwrap().0.as_str()), (200, "done"));
    let stranger = [("x-api-key", "wrong"), ("x-request-id", "stranger-1"), ("x-forwarded-for", "203.0.113.5")];
    assert_eq!(client.send("POST", "/v1/generate", &stranger, ask.as_bytes()).await.status, 401);
    let public = "/.well-known/jwks.json";
    for _ in 0..300 {
        assert_eq!(client.send("GET", public, &[], b"").await.status, 200);
    }
    let process = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::HUP).unwrap();
    assert_eq!(client.send("GET", "/health", &[], b"").await.status, 200, "a hangup does not end it");
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    until("it has ended", async || child.try_wait().unwrap().is_some()).await;
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!socket.exists());
    let log = std::fs::read_to_string(path(&files.folder, "log/server.log")).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let logged = lines.iter().filter(|line| line["target"] == "access" && line["route"] == public).count();
    assert!((1..300).contains(&logged), "clients without a key do not fill the log: {logged}");
    let line = lines.iter().find(|line| line["request_id"] == "traced-1").unwrap_or_else(|| panic!("{log}"));
    assert_eq!((&line["target"], &line["status"], &line["model"]), (&json!("access"), &json!(200), &json!("tiny")));
    assert_eq!((&line["generated_tokens"], &line["key"]), (&json!(3), &json!(key.split('_').nth(1).unwrap())));
    let line = lines.iter().find(|line| line["request_id"] == "ticket-1").unwrap_or_else(|| panic!("{log}"));
    assert_eq!((&line["route"], &line["generated_tokens"]), (&json!("/v1/stream"), &json!(3)));
    let line = lines.iter().find(|line| line["request_id"] == "stranger-1").unwrap_or_else(|| panic!("{log}"));
    assert_eq!((&line["client"], &line["status"]), (&json!("203.0.113.5"), &json!(401)));
    if let Some(failures) = fail2ban::failures(&path(&files.folder, "log/server.log")) {
        assert_eq!(failures, ["203.0.113.5"]);
    }
    let ticket = ticket["ticket"].as_str().unwrap();
    assert!(!log.contains(&ticket[5..]), "{log}");
    assert!(!log.contains("nobody logs this") && !log.contains(&key[22..]), "{log}");
    assert!(log.contains("draining") && log.contains("\"clean\":true"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_line_of_a_traced_request_has_its_trace() {
    let files = Files::new();
    let file = path(&files.folder, "server.yaml");
    let traces = "{ enable_tracing: true, traces: { endpoint: \"http://127.0.0.1:9/v1/traces\", ratio: 0 }, log_file";
    std::fs::write(&file, std::fs::read_to_string(&file).unwrap().replace("{ log_file", traces)).unwrap();
    files.migrate();
    let mut child = files.command(&["serve"]).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let client = Client::new(&Address::Unix(path(&files.folder, "s.sock")));
    until("it is ready", async || {
        client.try_connect().await.is_some() && client.send("GET", "/ready", &[], b"").await.status == 200
    })
    .await;
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    for (id, flags) in [("traced-1", "01"), ("other-1", "00")] {
        let parent = format!("00-{TRACE}-00f067aa0ba902b7-{flags}");
        let headers = [("x-request-id", id), ("traceparent", parent.as_str())];
        assert_eq!(client.send("GET", "/.well-known/jwks.json", &headers, b"").await.status, 200);
    }
    let process = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    until("it has ended", async || child.try_wait().unwrap().is_some()).await;
    let log = std::fs::read_to_string(path(&files.folder, "log/server.log")).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let trace = |id: &str| {
        let found = lines.iter().find(|line| line["target"] == "access" && line["request_id"] == id);
        found.unwrap_or_else(|| panic!("{log}"))["trace_id"].clone()
    };
    assert_eq!((trace("traced-1"), trace("other-1")), (json!(TRACE), Value::Null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_signal_exits_immediately() {
    let files = Files::new();
    write_model(&path(&files.folder, "tiny"), Shape { width: 256, layers: 8, context: 8192, ..Shape::default() });
    let key = files.keys(json!({ "do": "create" })).1["key"].as_str().unwrap().to_owned();
    let mut child = files.command(&["serve"]).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let client = Client::new(&Address::Unix(path(&files.folder, "s.sock")));
    until("it is ready", async || {
        client.try_connect().await.is_some() && client.send("GET", "/ready", &[], b"").await.status == 200
    })
    .await;
    // Longer than a busy machine takes to look at it.
    let body = json!({ "prompt": "x", "max_tokens": 4096, "ignore_end": true }).to_string();
    let mut stream = client.connect().await;
    use tokio::io::AsyncWriteExt as _;
    stream
        .write_all(Client::head("POST", "/v1/generate", &[("x-api-key", &key)], body.len()).as_bytes())
        .await
        .unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let known = [("x-api-key", key.as_str())];
    until("it runs", async || client.send("GET", "/health", &known, b"").await.json()["running"] == 1).await;
    let process = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    until("it drains", async || client.try_connect().await.is_none()).await;
    assert!(child.try_wait().unwrap().is_none(), "it waits for the answer");
    rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
    until("it has ended", async || child.try_wait().unwrap().is_some()).await;
    drop(stream);
}
