//! Who is told when something is wrong: by a webhook and by mail, once, and again when the first attempt failed.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use textnlp_tests::servers::mail;
use textnlp_tests::{Sandbox, eventually, http};

const ENV: [&str; 2] = ["--env", "development"];

/// A webhook on this machine. It refuses the first message that is no test.
struct Hook {
    address: String,
    seen: Arc<Mutex<Vec<Value>>>,
}

impl Hook {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/services/hunter2", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let keeps = seen.clone();
        // Ends with the test: nobody connects any more, and the process goes.
        std::thread::spawn(move || {
            let mut refused = false;
            for stream in listener.incoming().flatten() {
                let mut stream = stream;
                let mut raw = Vec::new();
                let body = loop {
                    let mut part = [0; 4096];
                    let read = stream.read(&mut part).unwrap_or(0);
                    raw.extend_from_slice(&part[..read]);
                    let text = String::from_utf8_lossy(&raw);
                    match text.split_once("\r\n\r\n").map(|(_, body)| serde_json::from_str::<Value>(body)) {
                        Some(Ok(body)) => break Some(body),
                        _ if read == 0 => break None,
                        _ => {}
                    }
                };
                let Some(body) = body else { continue };
                let refuse = body["state"] != "test" && !std::mem::replace(&mut refused, true);
                let answer = if refuse { "503 Not Now" } else { "200 OK" };
                if !refuse {
                    keeps.lock().unwrap().push(body);
                }
                let _ = write!(stream, "HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
        });
        Self { address, seen }
    }

    /// What it took, as `STATE NAME ABOUT`.
    fn took(&self) -> Vec<String> {
        let text = |body: &Value, key: &str| body[key].as_str().unwrap_or_default().to_owned();
        let seen = self.seen.lock().unwrap();
        seen.iter().map(|body| ["state", "name", "about"].map(|key| text(body, key)).join(" ")).collect()
    }
}

#[test]
fn each_problem_is_alerted_once_to_every_receiver() {
    let hook = Hook::start();
    let mails = tempfile::tempdir().unwrap();
    let Some(server) = mail(env!("CARGO_MANIFEST_DIR"), mails.path(), None) else { return };
    let mail_address = server.address.replace("http://", "smtp://ada:hunter2%20%25@");
    let team = format!("{mail_address}?from=deploy@example.com&to=team@example.com");
    let mut sandbox = Sandbox::new("alerts");
    sandbox.variables.extend([
        ("TEXTNLP_SET__monitoring__receivers__oncall", hook.address.clone()),
        ("TEXTNLP_SET__monitoring__receivers__team", "secret:env:TEAM_MAIL".to_owned()),
        ("TEAM_MAIL", team),
        ("TEXTNLP_SET__prerequisites__people__devops", "Ada at 4711".to_owned()),
    ]);
    let run = |args: &[&str]| sandbox.run(&[args, &ENV].concat());
    let mails_of = |text: &str| {
        let files = std::fs::read_dir(mails.path()).unwrap().flatten();
        files.filter(|file| std::fs::read_to_string(file.path()).unwrap_or_default().contains(text)).count()
    };

    // Before anything is up: whether messages arrive.
    let tested = run(&["alert", "test"]).expect(0);
    assert!(
        tested.out.contains("✓ oncall: webhook at 127.0.0.1") && tested.out.contains("✓ team: mail to"),
        "{}",
        tested.out
    );
    assert!(!tested.out.contains("hunter2"), "{}", tested.out);
    assert_eq!((hook.took(), mails_of("test: test message")), (vec!["test test message".to_owned()], 1));
    assert!(run(&["alert", "list"]).expect(0).out.contains("has no alert receivers"));
    run(&["alert", "test", "--receiver", "nobody"]).expect(2);

    // A unit that cannot be believed is wrong. The first attempt at the webhook fails, and is made again.
    sandbox.up("development");
    assert_eq!(run(&["plan", "--exit-code"]).expect(0).exit, 0);
    let units = sandbox.site("development").join("units");
    let goes_wrong = |name: &str| std::fs::write(units.join(format!("{name}.json")), "{}").unwrap();
    goes_wrong("odd");
    eventually("the webhook is told", || hook.took().contains(&"raised process odd".to_owned()).then_some(()));
    eventually("a mail is there", || (mails_of("raised: process odd") == 1).then_some(()));
    let says = hook.seen.lock().unwrap().last().unwrap()["says"].as_str().unwrap().to_owned();
    assert!(says.ends_with("\nOn call: Ada at 4711 (devops)"), "{says}");
    eventually("nothing waits", || {
        let list = run(&["alert", "list", "-o", "json"]).expect(0).json();
        (list["sites"][0]["waiting"] == serde_json::json!([])).then_some(())
    });
    assert!(run(&["alert", "list"]).expect(0).out.contains("✗ process odd"));

    // Another supervisor goes on where the first was killed: what was told is not told again.
    sandbox.kill(sandbox.pid("supervise").unwrap());
    eventually("it is gone", || sandbox.pid("supervise").is_none().then_some(()));
    sandbox.up("development");
    goes_wrong("other");
    eventually("it is told too", || hook.took().contains(&"raised process other".to_owned()).then_some(()));
    assert_eq!(hook.took().iter().filter(|line| *line == "raised process odd").count(), 1, "{:?}", hook.took());
    assert_eq!(mails_of("raised: process odd"), 1);

    // No secret of a receiver is in the state, in a log or in what is printed.
    let state = sandbox.state("development");
    for file in sandbox.files(&state) {
        let is_its_place = file.starts_with("secrets/") || file.ends_with("config/alert-team");
        let text = std::fs::read(state.join(&file)).unwrap_or_default();
        assert!(is_its_place || !String::from_utf8_lossy(&text).contains("hunter2%20"), "{file}");
    }
    sandbox.run(&["down", "--env", "development", "--yes", "--delete-data", "development"]).expect(0);
    let left = sandbox.files(&state.join("sites"));
    assert!(left.is_empty(), "down left {left:?}");
}

#[test]
fn latency_and_error_alerts_are_raised_and_cleared() {
    let hook = Hook::start();
    let mut sandbox = Sandbox::new("limits");
    sandbox.variables.extend([
        ("TEXTNLP_SET__monitoring__receivers__oncall", hook.address.clone()),
        ("TEXTNLP_SET__monitoring__alerts__latency", "1ms".to_owned()),
        ("TEXTNLP_SET__monitoring__alerts__latency_for", "1s".to_owned()),
        ("TEXTNLP_SET__monitoring__alerts__error_rate_for", "1s".to_owned()),
        // What takes longer is a failure of the server.
        ("TEXTNLP_SET__server__api__timeout", "1s".to_owned()),
        ("TEXTNLP_SET__gates__p95_ms", "500".to_owned()),
    ]);
    sandbox.up("development");
    let key = sandbox.first_key("development");
    let ask = |tokens: u32| {
        let body = serde_json::json!({ "prompt": "Once upon a time", "max_tokens": tokens, "ignore_end": true });
        let body = body.to_string();
        let _ = http::ask(sandbox.port, "POST", "/v1/generate", &[("X-API-Key", &key)], body.as_bytes());
    };
    let took = |line: &str| hook.took().contains(&line.to_owned()).then_some(());
    eventually("slow answers are reported", || {
        ask(8);
        took("raised latency service")
    });
    eventually("failed answers are reported", || {
        // Together they take longer than a request may.
        std::thread::scope(|scope| (0..64).for_each(|_| drop(scope.spawn(|| ask(1_000)))));
        took("raised errors service")
    });
    sandbox.run(&["down", "--env", "development", "--yes", "--delete-data", "development"]).expect(0);
}

#[test]
fn undeliverable_alert_is_reported_with_the_reason() {
    let mut sandbox = Sandbox::new("untold");
    let run = |sandbox: &Sandbox, args: &[&str]| sandbox.run(&[args, &ENV].concat());
    let none = run(&sandbox, &["alert", "test"]).expect(2);
    assert!(none.err.contains("monitoring: { receivers:"), "{}", none.err);
    sandbox
        .variables
        .push(("TEXTNLP_SET__monitoring__receivers__oncall", "http://hooks.example.com/hunter2".to_owned()));
    let refused = run(&sandbox, &["env", "check"]).expect(2);
    assert!(refused.err.contains("monitoring.receivers.oncall") && refused.err.contains("https://"), "{}", refused.err);
    sandbox.variables.pop();
    sandbox.variables.push(("TEXTNLP_SET__monitoring__receivers__oncall", "secret:env:NOT_THERE".to_owned()));
    sandbox.variables.push(("TEXTNLP_SET__monitoring__receivers__gone", "http://127.0.0.1:1/hunter2".to_owned()));
    let failed = run(&sandbox, &["alert", "test", "-o", "json"]).expect(1).json();
    let receivers = failed["receivers"].as_array().unwrap();
    assert!(receivers[0]["error"].as_str().unwrap().contains("send to 127.0.0.1:1"), "{failed:#}");
    assert!(receivers[1]["error"].as_str().unwrap().contains("secret:env:NOT_THERE"), "{failed:#}");
    assert!(!failed.to_string().contains("hunter2"), "{failed:#}");
    let up = run(&sandbox, &["up", "--yes", "--no-gate"]);
    assert_ne!(up.exit, 0, "a secret that is not there stops `up`: {}", up.out);
}
