//! Batches from the command line: submitted, awaited, read, cancelled and deleted. The real program, as an operator types it.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use textnlp_tests::stand_in::{Reply, StandIn};
use textnlp_tests::{Said, Sandbox};

fn up(name: &str) -> Sandbox {
    let mut sandbox = Sandbox::new(name);
    sandbox.variables.push(("TEXTNLP_SET__server__batch__enabled", "true".to_owned()));
    sandbox.variables.push(("TEXTNLP_SET__server__batch__concurrency", "1".to_owned()));
    sandbox.up("staging");
    sandbox
}

fn batch(sandbox: &Sandbox, args: &[&str]) -> Said {
    sandbox.run(&[&["batch"], args, &["--env", "staging", "-o", "json"]].concat())
}

/// Writes a file of requests, the numbers their ids.
fn write(sandbox: &Sandbox, name: &str, bodies: impl IntoIterator<Item = Value>) {
    let line = |(id, body): (usize, Value)| {
        json!({ "custom_id": id.to_string(), "method": "POST", "url": "/v1/generate", "body": body }).to_string()
    };
    let lines: Vec<String> = bodies.into_iter().enumerate().map(line).collect();
    std::fs::write(sandbox.folder().join(name), lines.join("\n")).unwrap();
}

fn id(document: &Value) -> String {
    document["batch"]["id"].as_str().unwrap_or_else(|| panic!("it has no batch: {document:#}")).to_owned()
}

fn ids(results: &Value) -> Vec<&str> {
    results["results"].as_array().unwrap().iter().map(|one| one["custom_id"].as_str().unwrap()).collect()
}

#[test]
fn batch_is_submitted_awaited_read_listed_and_deleted() {
    let sandbox = up("batches");
    write(&sandbox, "good.jsonl", (0..3).map(|_| json!({ "prompt": "Mira", "max_tokens": 2 })));
    let done = batch(&sandbox, &["submit", "good.jsonl", "--wait"]).expect(0).json();
    let first = id(&done);
    assert_eq!(done["batch"]["request_counts"], json!({ "total": 3, "completed": 3, "failed": 0 }));
    let results = batch(&sandbox, &["results", &first]).expect(0).json();
    assert_eq!(ids(&results), ["0", "1", "2"]);

    // One request of the second has no answer.
    write(
        &sandbox,
        "mixed.jsonl",
        [json!({ "prompt": "Mira", "max_tokens": 0 }), json!({ "prompt": "Mira", "max_tokens": 2 })],
    );
    let mixed = batch(&sandbox, &["submit", "mixed.jsonl", "--wait"]).expect(1).json();
    let second = id(&mixed);
    assert_eq!(mixed["error"]["code"], "batch_failed", "{mixed:#}");
    let written = batch(&sandbox, &["results", &second, "--out", "results.jsonl"]).expect(0).json();
    let text = std::fs::read_to_string(sandbox.folder().join("results.jsonl")).unwrap();
    assert_eq!(written["bytes"], text.len());
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shown: Vec<(&Value, &Value)> =
        lines.iter().map(|line| (&line["custom_id"], &line["response"]["status_code"])).collect();
    assert_eq!(shown, [(&json!("1"), &json!(200)), (&json!("0"), &json!(400))], "answers, then errors");
    let printed = sandbox.run(&["batch", "results", &second, "--env", "staging"]).expect(0).out;
    assert_eq!(printed, text);

    let newest = batch(&sandbox, &["list", "--limit", "1"]).expect(0).json();
    assert_eq!((&newest["batches"][0]["id"], &newest["has_more"]), (&json!(second), &json!(true)));
    let earlier = batch(&sandbox, &["list", "--after", newest["last_id"].as_str().unwrap()]).expect(0).json();
    assert_eq!((&earlier["batches"][0]["id"], &earlier["has_more"]), (&json!(first), &json!(false)));

    let deleted = batch(&sandbox, &["delete", &second]).expect(0).json();
    assert_eq!(deleted["deleted"].as_array().map(Vec::len), Some(3), "requests, answers and errors: {deleted:#}");
    let gone = batch(&sandbox, &["results", &second, "--out", "results.jsonl"]).expect(1).json();
    assert_eq!(gone["error"]["code"], "refused_by_server", "{gone:#}");
    assert_eq!(std::fs::read_to_string(sandbox.folder().join("results.jsonl")).unwrap(), text, "the file is as before");
    assert_eq!(batch(&sandbox, &["delete", &second]).expect(0).json()["deleted"], json!([]), "it may run again");
    let input = done["batch"]["input_file_id"].as_str().unwrap();
    assert_eq!(batch(&sandbox, &["delete", input]).expect(0).json()["deleted"], json!([input]));
    assert_eq!(batch(&sandbox, &["delete", input]).expect(2).json()["error"]["code"], "no_such_file");
}

#[test]
fn unfinished_batch_is_cancelled_before_it_is_deleted() {
    let sandbox = up("cancelled");
    write(
        &sandbox,
        "many.jsonl",
        (0..2000).map(|_| json!({ "prompt": "Mira", "max_tokens": 200, "ignore_end": true })),
    );
    let created = id(&batch(&sandbox, &["submit", "many.jsonl"]).expect(0).json());
    let refused = batch(&sandbox, &["delete", &created]).expect(4).json();
    assert!(refused["error"]["hint"].as_str().unwrap().contains(&format!("batch cancel {created}")), "{refused:#}");
    assert_eq!(batch(&sandbox, &["results", &created]).expect(1).json()["error"]["code"], "batch_unfinished");
    batch(&sandbox, &["cancel", &created]).expect(0);
    let ended = batch(&sandbox, &["show", &created, "--wait"]).expect(1).json();
    assert_eq!(ended["batch"]["status"], "cancelled", "{ended:#}");
    let results = batch(&sandbox, &["results", &created]).expect(0).json();
    assert_eq!(results["results"].as_array().unwrap().last().unwrap()["error"]["code"], "batch_cancelled");
    batch(&sandbox, &["delete", &created]).expect(0);
    assert_eq!(batch(&sandbox, &["show", "batch_0"]).expect(1).json()["error"]["code"], "refused_by_server");
}

#[test]
fn wait_ends_when_the_service_refuses_the_poll_and_not_while_it_is_down() {
    let polls = AtomicUsize::new(0);
    let service = StandIn::start(move |_| match polls.fetch_add(1, Ordering::Relaxed) {
        0 => Reply::Answer(200, json!({ "id": "batch_1", "status": "in_progress" }).to_string()),
        1 => Reply::Answer(503, String::new()),
        _ => Reply::Answer(401, json!({ "error": { "message": "the key was revoked" } }).to_string()),
    });
    let sandbox = Sandbox::new("refused-poll");
    let address = service.url();
    let args = ["batch", "show", "batch_1", "--wait", "--address", &address, "-o", "json"];
    let refused = sandbox.run(&args).expect(1).json();
    assert_eq!((&refused["error"]["code"], id(&refused).as_str()), (&json!("refused_by_server"), "batch_1"));
    assert!(refused["error"].to_string().contains("the key was revoked (status 401)"), "{refused:#}");
    assert_eq!(service.requests().len(), 3);
}

#[test]
fn file_with_problems_is_refused_with_all_of_them_before_a_server_is_asked() {
    let sandbox = Sandbox::new("refused");
    let good = json!({ "custom_id": "a", "method": "POST", "url": "/v1/generate", "body": { "prompt": "x" } });
    std::fs::write(sandbox.folder().join("wrong.jsonl"), format!("{good}\n{{\n{good}\n[]\n")).unwrap();
    let refused = batch(&sandbox, &["submit", "wrong.jsonl"]).expect(2).json();
    assert_eq!(refused["error"]["code"], "invalid_file", "{refused:#}");
    let lines: Vec<u64> =
        refused["problems"].as_array().unwrap().iter().map(|problem| problem["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, [2, 3, 4], "{refused:#}");
    let missing = batch(&sandbox, &["submit", "missing.jsonl"]).expect(2).json();
    assert_eq!(missing["error"]["code"], "unreadable_file", "{missing:#}");
}
