//! The same server on a real PostgreSQL.

use serde_json::json;
use textnlp_server::{Server, keys};

use super::support::{Client, Setup, start, until};

#[path = "../support/postgres.rs"]
pub(crate) mod cluster;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_keys_limits_budgets_and_tickets_across_restarts() {
    let Some(cluster) = cluster::shared() else { return };
    let name = cluster.database();
    let url = cluster.url(&name);
    let site =
        start(Setup { database: Some(&url), security: "rate_limit: 4/hour", ..Setup::default() }).await.ready().await;
    let other = Server::start(site.config.clone()).await.unwrap();
    let there = Client::new(other.address());
    until("it is ready", async || there.send("GET", "/ready", &[], b"").await.status == 200).await;
    let key = [("x-api-key", site.key.as_str())];
    let ask = json!({ "prompt": "Once", "max_tokens": 5, "ignore_end": true });
    assert_eq!(site.post("/v1/generate", ask.clone()).await.status, 200);
    assert_eq!(there.send("POST", "/v1/generate", &key, ask.to_string().as_bytes()).await.status, 200);

    let ticket = site.client.send("POST", "/v1/stream/tickets", &key, ask.to_string().as_bytes()).await.json();
    let stream = ticket["url"].as_str().unwrap();
    assert_eq!(there.send("GET", stream, &[], b"").await.status, 200);
    assert_eq!(site.client.send("GET", stream, &[], b"").await.status, 401, "once, at any replica");

    let issue = json!({ "api_key": site.key, "token_limit": 12 }).to_string();
    let token = site.client.send("POST", "/auth/token", &[], issue.as_bytes()).await.json();
    let token = token["token"].as_str().unwrap().to_owned();
    assert_eq!(site.post("/v1/generate", ask.clone()).await.status, 429, "four were counted, wherever they came in");
    let row = cluster.sql(&name, "SELECT token_limit, used, reserved FROM token_budgets");
    assert_eq!(row, "12|0|0", "{token}");

    let public = site.key.split('_').nth(1).unwrap();
    let store = site.server.as_ref().unwrap().store();
    until("usage is written", async || store.tenant("default").usage_of(public, 0).await.unwrap().1 >= 3 * 9).await;
    let text = cluster.sql(&name, "SELECT count(*) FROM api_usage u WHERE u::text LIKE '%Once%'");
    assert_eq!(text, "0", "no text of anybody is kept");
    other.drain().await;
    let again = keys(&site.config, r#"{"do":"list"}"#).await.unwrap();
    assert_eq!(again["keys"][0]["public_id"], public);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashed_database_is_used_again_when_it_is_back() {
    if !cluster::is_installed() {
        return;
    }
    let cluster = cluster::Cluster::start("");
    let url = cluster.url(&cluster.database());
    let site = start(Setup { database: Some(&url), ..Setup::default() }).await.ready().await;
    let ask = json!({ "prompt": "x", "max_tokens": 3 });
    assert_eq!(site.post("/v1/generate", ask.clone()).await.status, 200);
    cluster.control(&["-m", "immediate", "stop"]);
    let reply = site.post("/v1/generate", ask.clone()).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (503, "storage_unavailable"), "{}", reply.text());
    assert!(reply.header("retry-after").is_some());
    cluster.control(&["start"]);
    until("it answers again", async || site.post("/v1/generate", ask.clone()).await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_replica_with_a_lock_does_not_block_other_clients() {
    let Some(cluster) = cluster::shared() else { return };
    let name = cluster.database();
    let url = cluster.url(&name);
    let site =
        start(Setup { database: Some(&url), security: "rate_limit: 3/hour", ..Setup::default() }).await.ready().await;
    let ask = json!({ "prompt": "x", "max_tokens": 3 });
    assert_eq!(site.post("/v1/generate", ask.clone()).await.status, 200);
    // For longer than anybody waits here: what a session of ours may hold is bounded, this one is not ours.
    let public = site.key.split('_').nth(1).unwrap();
    let about = format!("allowance of {public}");
    let number = format!("('x' || substr(encode(sha256('{about}'), 'hex'), 1, 16))::bit(64)::bigint");
    let statements = format!("SELECT pg_advisory_lock({number}); SELECT pg_sleep(300)");
    let holder = std::thread::spawn({
        let name = name.clone();
        move || cluster.said(&name, &statements)
    });
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND database = \
                (SELECT oid FROM pg_database WHERE datname = current_database())";
    until("it is held", async || cluster.sql(&name, held) == "1").await;
    let began = std::time::Instant::now();
    for _ in 0..2 {
        assert_eq!(site.post("/v1/generate", ask.clone()).await.status, 200);
    }
    assert_eq!(site.post("/v1/generate", ask.clone()).await.status, 429, "counted by this replica only");
    assert!(began.elapsed().as_secs() < 60, "nobody waited for the one that stands still");
    let ends = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND granted";
    cluster.sql(&name, ends);
    assert!(!holder.join().unwrap().status.success());
}
