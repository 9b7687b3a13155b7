//! Batches of requests: from files and from bodies, through restarts, beside requests of clients.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use textnlp_server::{Server, keys};
use textnlp_store::batches::BatchState;
use textnlp_store::{Action, Actor, AuditEvent, Store, now_ms};
use tokio::io::AsyncWriteExt;

use super::postgres::cluster;
use super::support::{Client, Reply, Setup, Site, make_key, start, until};

fn line(id: &str, body: &Value) -> String {
    json!({ "custom_id": id, "method": "POST", "url": "/v1/completions", "body": body }).to_string()
}

fn short() -> Value {
    json!({ "model": "tiny", "prompt": "Once", "max_tokens": 2, "ignore_eos": true })
}

/// Requests that take a while.
fn long() -> Value {
    json!({ "model": "slow", "prompt": "Once", "max_tokens": 200, "ignore_eos": true })
}

fn inline(count: usize, body: &Value) -> Value {
    let requests: Vec<Value> = (0..count).map(|n| json!({ "custom_id": n.to_string(), "body": body })).collect();
    json!({ "endpoint": "/v1/completions", "requests": requests })
}

/// Sends a form with these parts: name, name of a file, content.
async fn send_form(site: &Site, key: &str, parts: &[(&str, Option<&str>, &str)]) -> Reply {
    let mut body = String::new();
    for (name, file, content) in parts {
        let file = file.map_or_else(String::new, |file| format!("; filename=\"{file}\""));
        body += &format!("--XyZ\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n{content}\r\n");
    }
    body += "--XyZ--\r\n";
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "multipart/form-data; boundary=XyZ")];
    site.client.send("POST", "/v1/files", &headers, body.as_bytes()).await
}

async fn upload(site: &Site, content: &str) -> Reply {
    send_form(site, &site.key, &[("purpose", None, "batch"), ("file", Some("a.jsonl"), content)]).await
}

async fn batch(site: &Site, id: &str) -> Value {
    site.get(&format!("/v1/batches/{id}")).await.json()
}

async fn ended(site: &Site, id: &str) -> Value {
    let states = ["completed", "failed", "expired", "cancelled"];
    until("the batch has ended", async || states.contains(&batch(site, id).await["status"].as_str().unwrap())).await;
    batch(site, id).await
}

/// The lines of a file of results.
async fn results(site: &Site, file: &Value) -> Vec<Value> {
    let reply = site.get(&format!("/v1/files/{}/content", file.as_str().unwrap())).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn answered(database: Option<&str>) {
    let site = start(Setup { database, batch: Some("{}"), ..Setup::default() }).await.ready().await;
    let wrong = json!({ "model": "tiny", "prompt": "Once", "max_tokens": 0 });
    let file = [line("a", &short()), line("b", &wrong), line("c", &short())].join("\n");
    let stored = upload(&site, &file).await;
    assert_eq!(stored.status, 200, "{}", stored.text());
    let stored = stored.json();
    assert_eq!(
        (&stored["object"], &stored["purpose"], &stored["filename"], &stored["bytes"]),
        (&json!("file"), &json!("batch"), &json!("a.jsonl"), &json!(file.len() + 1))
    );
    let wanted = json!({
        "input_file_id": stored["id"], "endpoint": "/v1/completions", "completion_window": "24h", "metadata": { "for": "test" },
    });
    let created = site.post("/v1/batches", wanted.clone()).await;
    assert_eq!(created.status, 200, "{}", created.text());
    let created = created.json();
    assert_eq!((&created["object"], &created["metadata"]), (&json!("batch"), &json!({ "for": "test" })));
    let done = ended(&site, created["id"].as_str().unwrap()).await;
    assert_eq!(
        (&done["status"], &done["request_counts"]),
        (&json!("completed"), &json!({ "total": 3, "completed": 2, "failed": 1 }))
    );
    let output = results(&site, &done["output_file_id"]).await;
    let ids: Vec<&str> = output.iter().map(|one| one["custom_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["a", "c"], "in the order of the file");
    for one in &output {
        let response = &one["response"];
        assert_eq!((&response["status_code"], &one["error"]), (&json!(200), &Value::Null));
        assert_eq!(response["body"]["usage"]["completion_tokens"], 2);
    }
    let errors = results(&site, &done["error_file_id"]).await;
    assert_eq!((errors.len(), &errors[0]["custom_id"]), (1, &json!("b")));
    assert_eq!(errors[0]["response"]["status_code"], 400);
    assert_eq!(errors[0]["response"]["body"]["error"]["param"], "max_tokens");
    until("its results are counted", async || {
        site.metric("textnlp_batch_requests_total{result=\"completed\"}").await == 2.0
    })
    .await;

    let listed = site.get("/v1/files?limit=2").await.json();
    assert_eq!((listed["data"].as_array().unwrap().len(), &listed["has_more"]), (2, &json!(true)));
    let rest = site.get(&format!("/v1/files?after={}", listed["last_id"].as_str().unwrap())).await.json();
    assert_eq!((rest["data"].as_array().unwrap().len(), &rest["has_more"]), (1, &json!(false)));
    for (purpose, count) in [("batch", 1), ("batch_output", 2)] {
        let listed = site.get(&format!("/v1/files?purpose={purpose}&order=desc")).await.json();
        let purposes: Vec<&Value> = listed["data"].as_array().unwrap().iter().map(|file| &file["purpose"]).collect();
        assert_eq!(purposes, vec![purpose; count]);
    }
    assert_eq!(site.get("/v1/batches").await.json()["data"][0]["id"], created["id"]);
    let path = format!("/v1/files/{}", stored["id"].as_str().unwrap());
    assert_eq!(site.send_as(&site.key, "DELETE", &path, &Value::Null).await.json()["deleted"], true);
    assert_eq!(site.get(&path).await.status, 404);
    let reply = site.post("/v1/batches", wanted).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (404, "file_not_found"));

    for (path, code) in [("/v1/files/%00", "file_not_found"), ("/v1/batches/a%00", "batch_not_found")] {
        let reply = site.get(path).await;
        assert_eq!((reply.status, reply.error().0.as_str()), (404, code), "{path}");
    }
    let of_file = format!("/v1/batches?after={}", stored["id"].as_str().unwrap());
    for (path, field) in [
        ("/v1/files?after=%00", "after"),
        ("/v1/files?after=zz", "after"),
        ("/v1/batches?after=%00", "after"),
        ("/v1/batches?after=batch_zz", "after"),
        (of_file.as_str(), "after"),
        ("/v1/files?purpose=assistants", "purpose"),
        ("/v1/files?order=asc", "order"),
    ] {
        let reply = site.get(path).await;
        assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some(field)), "{path}");
    }
    // The last file of a page may be deleted before the next page is read.
    let after = format!("/v1/files?after={}", stored["id"].as_str().unwrap());
    assert_eq!(site.get(&after).await.json()["data"], json!([]));
    let reply = site.post("/v1/batches", json!({ "endpoint": "/v1/completions", "input_file_id": "\0" })).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (404, "file_not_found"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_of_a_file_is_answered_once_on_sqlite() {
    answered(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_of_a_file_is_answered_once_on_postgresql() {
    let Some(cluster) = cluster::shared() else { return };
    answered(Some(&cluster.url(&cluster.database()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_the_body_are_answered_on_every_endpoint() {
    let site = start(Setup { batch: Some("{}"), ..Setup::default() }).await.ready().await;
    let messages = json!([{ "role": "user", "content": "a" }]);
    for (endpoint, body) in [
        ("/v1/completions", short()),
        ("/v1/chat/completions", json!({ "messages": messages, "max_tokens": 2 })),
        ("/v1/embeddings", json!({ "model": "encoder", "input": "Once" })),
        ("/v1/generate", json!({ "prompt": "Once", "max_tokens": 2 })),
    ] {
        let wanted = json!({ "endpoint": endpoint, "requests": [{ "custom_id": "a", "body": body }] });
        let created = site.post("/v1/batch", wanted).await;
        assert_eq!(created.status, 200, "{endpoint}: {}", created.text());
        let done = ended(&site, created.json()["id"].as_str().unwrap()).await;
        assert_eq!(done["request_counts"]["completed"], 1, "{endpoint}: {done}");
        assert!(results(&site, &done["output_file_id"]).await[0]["response"]["body"]["object"].is_string());
    }
    let narrow = make_key(&site.config, json!({ "do": "create", "scopes": ["generate"] })).await;
    let wanted = json!({ "endpoint": "/v1/embeddings", "requests": [{ "custom_id": "a", "body": {} }] });
    let reply = site.post_as(&narrow, "/v1/batches", wanted).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (403, "insufficient_scope"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_batch_runs_no_more_requests() {
    let site = start(Setup { batch: Some("{ concurrency: 1 }"), ..Setup::default() }).await.ready().await;
    let created = site.post("/v1/batches", inline(500, &long())).await.json();
    let id = created["id"].as_str().unwrap();
    let input = format!("/v1/files/{}", created["input_file_id"].as_str().unwrap());
    let in_use = site.send_as(&site.key, "DELETE", &input, &Value::Null).await;
    assert_eq!((in_use.status, in_use.error().0.as_str()), (409, "file_in_use"));
    let cancelled = site.post(&format!("/v1/batches/{id}/cancel"), Value::Null).await.json();
    assert!(["cancelling", "cancelled"].contains(&cancelled["status"].as_str().unwrap()), "{cancelled}");
    let done = ended(&site, id).await;
    assert_eq!(done["status"], "cancelled");
    let counts = &done["request_counts"];
    let (completed, failed) = (counts["completed"].as_u64().unwrap(), counts["failed"].as_u64().unwrap());
    assert!(completed + failed == 500 && failed > 400, "{counts}");
    let errors = results(&site, &done["error_file_id"]).await;
    assert_eq!((errors.len() as u64, &errors[0]["error"]["code"]), (failed, &json!("batch_cancelled")));
    assert_eq!(site.send_as(&site.key, "DELETE", &input, &Value::Null).await.status, 200);
}

/// The same database and the same folder with another server.
async fn restart(site: &mut Site) {
    let server = Server::start(site.config.clone()).await.unwrap();
    site.client = Client::new(server.address());
    site.metrics = Client::new(server.metrics_address().unwrap());
    site.server = Some(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_goes_on_after_a_restart_and_after_a_server_that_was_lost() {
    let mut site = start(Setup { batch: Some("{ concurrency: 1 }"), ..Setup::default() }).await.ready().await;
    let created = site.post("/v1/batches", inline(12, &long())).await.json();
    let id = created["id"].as_str().unwrap();
    until("one has a result", async || batch(&site, id).await["request_counts"]["completed"] != 0).await;
    site.drain().await;
    // A server that took requests, and is gone.
    let store = Store::open(&site.config.database).await.unwrap();
    let lost = store.claim_requests(now_ms(), 1, 3).await.unwrap().unwrap();
    assert_eq!(lost.requests.len(), 3);
    store.close().await;
    restart(&mut site).await;
    let done = ended(&site, id).await;
    assert_eq!(done["request_counts"], json!({ "total": 12, "completed": 12, "failed": 0 }));
    let output = results(&site, &done["output_file_id"]).await;
    let ids: BTreeSet<&str> = output.iter().map(|one| one["custom_id"].as_str().unwrap()).collect();
    assert_eq!((output.len(), ids.len()), (12, 12));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rest_of_a_batch_fails_with_its_key() {
    let mut site = start(Setup { batch: Some("{ concurrency: 1 }"), ..Setup::default() }).await.ready().await;
    let key = make_key(&site.config, json!({ "do": "create" })).await;
    let public = key.split('_').nth(1).unwrap();
    let created = site.post_as(&key, "/v1/batches", inline(100, &long())).await.json();
    let id = created["id"].as_str().unwrap();
    site.drain().await;
    keys(&site.config, &json!({ "do": "revoke", "public_id": public }).to_string()).await.unwrap();
    restart(&mut site).await;
    let done = ended(&site, id).await;
    assert_eq!((&done["status"], &done["errors"]["data"][0]["code"]), (&json!("failed"), &json!("batch_key_invalid")));
    let errors = results(&site, &done["error_file_id"]).await;
    assert_eq!(errors.last().unwrap()["error"]["code"], "batch_key_invalid");
    let counts = &done["request_counts"];
    assert_eq!(counts["completed"].as_u64().unwrap() + errors.len() as u64, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_waits_for_a_budget() {
    let site = start(Setup { batch: Some("{ concurrency: 1 }"), ..Setup::default() }).await.ready().await;
    // The prompt has four tokens, so that one request fits.
    let key = make_key(&site.config, json!({ "do": "create", "token_limit": 8 })).await;
    let created = site.post_as(&key, "/v1/batches", inline(3, &short())).await.json();
    let id = created["id"].as_str().unwrap();
    until("a request has found nothing left", async || {
        site.metric("textnlp_errors_total{type=\"token_limit_exceeded\"}").await >= 1.0
    })
    .await;
    let waiting = batch(&site, id).await;
    assert_eq!((&waiting["status"], &waiting["request_counts"]["failed"]), (&json!("in_progress"), &json!(0)));
    assert_eq!(waiting["request_counts"]["completed"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_waits_for_room_for_its_results() {
    let bounds = "{ max_file_size: 1KiB, max_stored: 1KiB, concurrency: 1 }";
    let site = start(Setup { batch: Some(bounds), ..Setup::default() }).await.ready().await;
    let created = site.post("/v1/batches", inline(6, &short())).await;
    assert_eq!(created.status, 200, "{}", created.text());
    let created = created.json();
    until("a request has found no room", async || {
        site.metric("textnlp_errors_total{type=\"file_storage_full\"}").await >= 1.0
    })
    .await;
    let waiting = batch(&site, created["id"].as_str().unwrap()).await;
    assert_eq!((&waiting["status"], &waiting["request_counts"]["failed"]), (&json!("in_progress"), &json!(0)));
    assert!(waiting["request_counts"]["completed"].as_u64().unwrap() < 6, "{waiting}");
    let again = json!({ "endpoint": "/v1/completions", "input_file_id": created["input_file_id"] });
    let reply = site.post("/v1/batches", again).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (413, "file_storage_full"), "{}", reply.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_requests_that_exceed_their_time_are_in_the_usage() {
    let setup = Setup { api: "timeout: 1", batch: Some("{ concurrency: 8 }"), ..Setup::default() };
    let site = start(setup).await.ready().await;
    let endless = json!({ "model": "slow", "prompt": "Once", "max_tokens": 4000, "ignore_eos": true });
    let created = site.post("/v1/batches", inline(8, &endless)).await.json();
    let id = created["id"].as_str().unwrap();
    until("an attempt is in the usage", async || {
        site.get("/v1/usage").await.json()["total"]["completion_tokens"].as_u64().is_some_and(|tokens| tokens > 0)
    })
    .await;
    assert_eq!(batch(&site, id).await["request_counts"]["completed"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_batch_ends_on_a_server_without_batches() {
    let mut site = start(Setup { batch: Some("{ concurrency: 1 }"), ..Setup::default() }).await.ready().await;
    let created = site.post("/v1/batches", inline(100, &long())).await.json();
    let id = created["id"].as_str().unwrap();
    site.drain().await;
    site.config.batch = None;
    let store = Store::open(&site.config.database).await.unwrap();
    let tenant = store.tenant("default");
    let event = AuditEvent::new(&Actor::Server, Action::BatchCancel).object(id).tenant("default");
    assert!(tenant.cancel_batch(id, &event).await.unwrap());
    restart(&mut site).await;
    until("the batch has ended", async || {
        tenant.batch(id).await.unwrap().is_some_and(|batch| batch.state == BatchState::Cancelled)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_of_long_and_short_lines_is_read_as_it_was_sent() {
    let site = start(Setup { batch: Some("{}"), ..Setup::default() }).await.ready().await;
    let lines: Vec<String> = (0..50)
        .map(|n| {
            let letters = if n % 20 == 0 { 300_000 } else { 3 };
            line(&n.to_string(), &json!({ "prompt": "x".repeat(letters) }))
        })
        .collect();
    let stored = upload(&site, &lines.join("\n")).await;
    assert_eq!(stored.status, 200, "{}", stored.text());
    let content = site.get(&format!("/v1/files/{}/content", stored.json()["id"].as_str().unwrap())).await;
    assert!(content.status == 200 && content.text() == lines.join("\n") + "\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload_whose_client_leaves_is_deleted() {
    let site = start(Setup { batch: Some("{}"), ..Setup::default() }).await.ready().await;
    let store = Store::open(&site.config.database).await.unwrap();
    let stored = async || store.tenant("default").stored_bytes().await.unwrap();
    let headers = [("x-api-key", site.key.as_str()), ("content-type", "multipart/form-data; boundary=XyZ")];
    let mut form = String::new();
    for part in ["name=\"purpose\"\r\n\r\nbatch", "name=\"file\"; filename=\"a\"\r\n"] {
        form += &format!("--XyZ\r\nContent-Disposition: form-data; {part}\r\n");
    }
    for id in ["a", "b"] {
        form += &line(id, &json!({ "prompt": "x".repeat(200_000) }));
        form.push('\n');
    }
    let mut stream = site.client.connect().await;
    stream.write_all(Client::head("POST", "/v1/files", &headers, 10_000_000).as_bytes()).await.unwrap();
    stream.write_all(form.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    until("a part is stored", async || stored().await > 0).await;
    drop(stream);
    until("it is deleted", async || stored().await == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_of_a_batch_runs_while_clients_wait() {
    let setup = Setup { api: "queue: 2", batch: Some("{ concurrency: 1 }"), ..Setup::default() };
    let site = start(setup).await.ready().await;
    let ask = json!({ "model": "slow", "prompt": "x", "max_tokens": 4000, "ignore_end": true });
    let one = json!({ "model": "slow", "prompt": "x", "max_tokens": 1 });
    until("the model is loaded", async || site.post("/v1/generate", one.clone()).await.status == 200).await;
    let queued = async || site.metric("textnlp_queue_length").await;
    // Fills the queue: those that are about to start are in it for a moment.
    let fill = async || {
        let mut crowd = Vec::new();
        loop {
            if queued().await >= 2.0 {
                tokio::time::sleep(Duration::from_millis(300)).await;
                if queued().await >= 2.0 {
                    return crowd;
                }
            }
            assert!(crowd.len() < 400, "nothing ever waits");
            let body = ask.to_string();
            let mut stream = site.client.connect().await;
            let head = Client::head("POST", "/v1/generate", &[("x-api-key", &site.key)], body.len());
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(body.as_bytes()).await.unwrap();
            crowd.push(stream);
        }
    };
    // The server looks at the queue of batches each second.
    let waits = async || {
        for _ in 0..30 {
            if queued().await < 1.0 {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        true
    };
    let ran = "http_requests_total{method=\"BATCH\"";
    let mut tries = 0;
    let (id, crowd) = loop {
        let (crowd, before) = (fill().await, site.metric(ran).await);
        let created = site.post("/v1/batches", inline(2, &short())).await.json();
        let id = created["id"].as_str().unwrap().to_owned();
        if waits().await {
            assert_eq!(site.metric(ran).await, before, "a request ran");
            break (id, crowd);
        }
        // The clients were answered too early.
        tries += 1;
        assert!(tries < 5, "clients never wait for three seconds");
        drop(crowd);
        ended(&site, &id).await;
    };
    let counts = batch(&site, &id).await["request_counts"].clone();
    assert_eq!(counts, json!({ "total": 2, "completed": 0, "failed": 0 }));
    drop(crowd);
    assert_eq!(ended(&site, &id).await["request_counts"]["completed"], 2);
    until("both are counted", async || site.metric(ran).await >= 2.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounds_of_batches_are_reported_with_their_limits() {
    let bounds = "{ max_requests: 3, max_pending: 1, max_file_size: 2KB, max_stored: 2KB, concurrency: 1 }";
    let site = start(Setup { batch: Some(bounds), ..Setup::default() }).await.ready().await;
    let many: Vec<String> = (0..4).map(|n| line(&n.to_string(), &short())).collect();
    let reply = upload(&site, &many.join("\n")).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (400, "invalid_file"));
    assert!(reply.text().contains("line 4: is request 4 of a file: it may have 3"), "{}", reply.text());
    let reply = upload(&site, &line("a", &json!({ "prompt": "x".repeat(100_000) }))).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (413, "request_too_large"));
    let reply = site.post("/v1/batches", inline(4, &short())).await;
    assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some("requests")));
    let held = site.post("/v1/batches", inline(3, &long())).await;
    assert_eq!(held.status, 200, "{}", held.text());
    let reply = site.post("/v1/batches", inline(1, &short())).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (429, "too_many_batches"));
    assert_eq!(site.get("/v1/files").await.json()["data"].as_array().unwrap().len(), 1, "no file of it is left");
    let large = line("a", &json!({ "prompt": "x".repeat(1700) }));
    let reply = upload(&site, &large).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (413, "file_storage_full"), "{}", reply.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_files_are_reported_with_all_lines_and_not_stored() {
    let site = start(Setup { batch: Some("{}"), ..Setup::default() }).await.ready().await;
    let streamed = line("d", &json!({ "stream": true }));
    let lines = [line("a", &short()), line("a", &short()), "nonsense".into(), String::new(), "[]".into(), streamed];
    let reply = upload(&site, &lines.join("\n")).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (400, "invalid_file"));
    let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
    for part in [
        "the file has 4 problems: ",
        "line 2: `custom_id` is that of an earlier line: `a`",
        "line 3: is not valid JSON",
        "line 5: is not a JSON object",
        "line 6: `body.stream` must be false",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let good = line("a", &short());
    for (parts, status, param) in [
        (vec![("purpose", None, "batch"), ("file", Some("a"), "")], 400, Some("file")),
        (vec![("purpose", None, "batch")], 400, Some("file")),
        (vec![("file", Some("a"), good.as_str())], 400, Some("purpose")),
        (vec![("purpose", None, "fine-tune"), ("file", Some("a"), good.as_str())], 400, Some("purpose")),
        (vec![("purpose", None, "batch"), ("other", None, "x")], 400, None),
    ] {
        let reply = send_form(&site, &site.key, &parts).await;
        assert_eq!((reply.status, reply.error().1.as_deref()), (status, param), "{parts:?}: {}", reply.text());
    }
    assert_eq!(site.post("/v1/files", json!({})).await.status, 415);
    assert_eq!(site.get("/v1/files").await.json()["data"], json!([]), "nothing is stored");
    for (wanted, param) in [
        (json!({ "endpoint": "/v1/completions" }), "input_file_id"),
        (json!({ "endpoint": "/v1/models", "input_file_id": "file-1" }), "endpoint"),
        (json!({ "input_file_id": "file-1" }), "endpoint"),
        (
            json!({ "endpoint": "/v1/completions", "input_file_id": "file-1", "completion_window": "1h" }),
            "completion_window",
        ),
        (json!({ "endpoint": "/v1/completions", "input_file_id": "file-1", "metadata": { "a": 1 } }), "metadata"),
        (json!({ "endpoint": "/v1/completions", "input_file_id": "file-1", "requests": [] }), "requests"),
        (json!({ "endpoint": "/v1/completions", "requests": [{ "custom_id": "a" }] }), "requests"),
    ] {
        let reply = site.post("/v1/batches", wanted.clone()).await;
        assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some(param)), "{wanted}: {}", reply.text());
    }
    let file = upload(&site, &good).await.json();
    let wanted = json!({ "endpoint": "/v1/embeddings", "input_file_id": file["id"] });
    let reply = site.post("/v1/batches", wanted).await;
    assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some("endpoint")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_without_batches_says_so() {
    let site = start(Setup::default()).await.ready().await;
    for path in ["/v1/batches", "/v1/files", "/v1/batches/batch_1", "/v1/files/file-1/content"] {
        let reply = site.get(path).await;
        assert_eq!((reply.status, reply.error().0.as_str()), (404, "batches_disabled"), "{path}");
    }
    let reply = site.post("/v1/batches", inline(1, &short())).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (404, "batches_disabled"));
}
