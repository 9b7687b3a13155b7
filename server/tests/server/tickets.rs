//! Tickets: one stream each, for clients that can send no header.

use serde_json::{Value, json};
use sqlx::Connection as _;
use textnlp_server::Server;

use super::support::{Client, Reply, Setup, Site, make_key, start};

async fn take(site: &Site, key: &str, body: Option<Value>) -> Reply {
    let body = body.map_or_else(String::new, |body| body.to_string());
    site.client.send("POST", "/v1/stream/tickets", &[("x-api-key", key)], body.as_bytes()).await
}

async fn url(site: &Site, body: Option<Value>) -> String {
    let reply = take(site, &site.key, body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let body = reply.json();
    assert_eq!(body["url"], format!("/v1/stream?ticket={}", body["ticket"].as_str().unwrap()));
    assert!((59..=60).contains(&body["expires_in"].as_i64().unwrap()), "{body}");
    body["url"].as_str().unwrap().to_owned()
}

async fn get(client: &Client, url: &str, headers: &[(&str, &str)]) -> Reply {
    client.send("GET", url, headers, b"").await
}

fn text(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{}", reply.text());
    let events = reply.events();
    assert_eq!(events.last().unwrap().0, "done");
    let tokens = events.iter().filter(|(name, _)| name == "token");
    tokens.map(|(_, data)| serde_json::from_str::<Value>(data).unwrap()["text"].as_str().unwrap().to_owned()).collect()
}

fn ask() -> Value {
    json!({ "prompt": "12", "max_tokens": 12, "seed": 4, "ignore_end": true })
}

fn refused(reply: &Reply) {
    assert_eq!((reply.status, reply.error().0.as_str()), (401, "invalid_ticket"), "{}", reply.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ticket_admits_one_stream_without_a_header_and_no_second() {
    let site = start(Setup::default()).await.ready().await;
    let whole = site.post("/v1/generate", ask()).await.json()["text"].as_str().unwrap().to_owned();
    let bound = url(&site, Some(ask())).await;
    let preview = site.client.send("HEAD", &bound, &[], b"").await;
    assert_eq!(preview.status, 405, "a link preview spends nothing");
    assert_eq!(text(&get(&site.client, &bound, &[]).await), whole);
    refused(&get(&site.client, &bound, &[]).await);
    let open = url(&site, None).await;
    let asked = format!("{open}&prompt=12&max_tokens=12&seed=4&ignore_end=true");
    assert_eq!(text(&get(&site.client, &asked, &[]).await), whole);
    refused(&get(&site.client, &asked, &[]).await);
    let with_key = "/v1/stream?prompt=12&max_tokens=12&seed=4&ignore_end=true";
    assert_eq!(text(&site.get(with_key).await), whole, "a credential still does without a ticket");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_or_invalid_ticket_is_refused() {
    let site = start(Setup::default()).await.ready().await;
    let zeros = "0".repeat(64);
    for garbage in
        ["", "x", "tnst_", "%00", &format!("tnst_{zeros}"), &site.key, &format!("tnst_{}", "9".repeat(100_000 / 2))]
    {
        refused(&get(&site.client, &format!("/v1/stream?prompt=a&ticket={garbage}"), &[]).await);
    }
    let url = url(&site, Some(ask())).await;
    let ticket = url.split('=').nth(1).unwrap();
    let twice = get(&site.client, &format!("{url}&ticket={ticket}"), &[]).await;
    assert_eq!((twice.status, twice.error().1.as_deref()), (400, Some("ticket")));
    // A mistake does not cost the ticket.
    let beside = get(&site.client, &format!("{url}&prompt=b"), &[]).await;
    assert_eq!((beside.status, beside.error().1.as_deref()), (400, Some("prompt")));
    // The clock is the row's.
    let file = format!("sqlite://{}", site.config.database.at);
    let mut other = sqlx::SqliteConnection::connect(&file).await.unwrap();
    sqlx::raw_sql("UPDATE stream_tickets SET expires_at = expires_at - 60000").execute(&mut other).await.unwrap();
    refused(&get(&site.client, &url, &[]).await);
    sqlx::raw_sql("UPDATE stream_tickets SET expires_at = expires_at + 60000").execute(&mut other).await.unwrap();
    text(&get(&site.client, &url, &[]).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ticket_belongs_to_its_tenant_and_ends_with_its_key() {
    let site = start(Setup::default()).await.ready().await;
    let acme = make_key(&site.config, json!({ "do": "create", "tenant": "acme" })).await;
    let globex = make_key(&site.config, json!({ "do": "create", "tenant": "globex" })).await;
    let url = take(&site, &acme, Some(ask())).await.json()["url"].as_str().unwrap().to_owned();
    for headers in [("x-api-key", globex.as_str()), ("x-tenant-id", "globex")] {
        let reply = get(&site.client, &url, &[headers]).await;
        assert_eq!((reply.status, reply.error().0.as_str()), (403, "tenant_mismatch"), "{headers:?}");
    }
    assert_eq!(get(&site.client, &url, &[("x-api-key", "tnlp_wrong")]).await.status, 401);
    text(&get(&site.client, &url, &[("x-api-key", &acme), ("x-tenant-id", "acme")]).await);

    let url = take(&site, &acme, Some(ask())).await.json()["url"].as_str().unwrap().to_owned();
    let public = acme.split('_').nth(1).unwrap();
    let revoke = json!({ "do": "revoke", "public_id": public }).to_string();
    textnlp_server::keys(&site.config, &revoke).await.unwrap();
    refused(&get(&site.client, &url, &[]).await);
    let models = make_key(&site.config, json!({ "do": "create", "scopes": ["models"] })).await;
    assert_eq!(take(&site, &models, None).await.status, 403);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ticket_is_charged_to_its_token() {
    let site = start(Setup::default()).await.ready().await;
    let issue = json!({ "api_key": site.key, "token_limit": 20 }).to_string();
    let token = site.client.send("POST", "/auth/token", &[], issue.as_bytes()).await.json()["token"].clone();
    let bearer = format!("Bearer {}", token.as_str().unwrap());
    let take = async || {
        let body = ask().to_string();
        let reply =
            site.client.send("POST", "/v1/stream/tickets", &[("authorization", &bearer)], body.as_bytes()).await;
        reply.json()["url"].as_str().unwrap().to_owned()
    };
    text(&get(&site.client, &take().await, &[]).await);
    let spent = get(&site.client, &take().await, &[]).await;
    assert_eq!((spent.status, spent.error().0.as_str()), (403, "token_limit_exceeded"), "14 of 20 are spent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_or_oversized_request_gets_no_ticket_and_tickets_are_limited() {
    let site = start(Setup::default()).await.ready().await;
    let wrong = take(&site, &site.key, Some(json!({ "prompt": "a", "temperature": 9 }))).await;
    assert_eq!((wrong.status, wrong.error().1.as_deref()), (400, Some("temperature")));
    let long = take(&site, &site.key, Some(json!({ "prompt": "a".repeat(70_000) }))).await;
    assert_eq!(long.status, 413);
    for _ in 0..64 {
        assert_eq!(take(&site, &site.key, Some(json!({}))).await.status, 200);
    }
    let more = take(&site, &site.key, None).await;
    assert_eq!((more.status, more.error().0.as_str()), (429, "too_many_tickets"));
    assert!((1..=60).contains(&more.header("retry-after").unwrap().parse::<u64>().unwrap()));
    let another = make_key(&site.config, json!({ "do": "create" })).await;
    assert_eq!(take(&site, &another, None).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ticket_works_at_another_replica_and_its_request_is_stored_encrypted() {
    let site = start(Setup::default()).await.ready().await;
    let other = Server::start(site.config.clone()).await.unwrap();
    let client = Client::new(other.address());
    let url = url(&site, Some(json!({ "prompt": "a secret of somebody", "max_tokens": 3, "ignore_end": true }))).await;
    let ticket = url.split('=').nth(1).unwrap();
    for file in ["textnlp.db", "textnlp.db-wal"] {
        let bytes = std::fs::read(site.folder.path().join(file)).unwrap();
        for secret in ["a secret of", &ticket[5..]] {
            assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()), "{file} holds {secret}");
        }
    }
    super::support::until("the other one has its model", async || {
        client.send("GET", "/ready", &[], b"").await.status == 200
    })
    .await;
    text(&get(&client, &url, &[]).await);
    refused(&get(&site.client, &url, &[]).await);
    assert!(other.drain().await);
}
