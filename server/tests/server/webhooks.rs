//! Webhooks: events of batches that have ended, signed, repeated until they are received, and one receiver independent of the others.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use sqlx::Connection as _;
use textnlp_server::Server;
use textnlp_server::config::Config;
use textnlp_store::now_ms;

use super::postgres::cluster;
use super::support::{
    Client, Setup, Shape, Site, config, create_database, make_key, path, start_in, until, write_model,
};

const SECRET: [u8; 32] = *b"0123456789abcdef0123456789abcdef";

/// The secret as an operator writes it.
pub(crate) fn secret() -> String {
    format!("whsec_{}", STANDARD.encode(SECRET))
}

/// What a receiver got.
#[derive(Clone)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) timestamp: i64,
    pub(crate) signature: String,
    pub(crate) body: String,
}

impl Event {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// A receiver on this machine, and what it answers.
#[derive(Clone, Default)]
pub(crate) struct Receiver {
    events: Arc<Mutex<Vec<Event>>>,
    /// The statuses of its first answers; then it is 200.
    statuses: Arc<Mutex<Vec<u16>>>,
    delay: Duration,
}

impl Receiver {
    pub(crate) async fn listen(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(receive).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        format!("http://{address}/batches?of=test")
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }
}

async fn receive(State(receiver): State<Receiver>, headers: HeaderMap, body: String) -> (StatusCode, HeaderMap) {
    let text = |name: &str| headers[name].to_str().unwrap().to_owned();
    assert_eq!(text("content-type"), "application/json");
    let timestamp = text("webhook-timestamp").parse().unwrap();
    let event = Event { id: text("webhook-id"), timestamp, signature: text("webhook-signature"), body };
    receiver.events.lock().unwrap().push(event);
    tokio::time::sleep(receiver.delay).await;
    let mut statuses = receiver.statuses.lock().unwrap();
    let status = if statuses.is_empty() { 200 } else { statuses.remove(0) };
    let mut answer = HeaderMap::new();
    if status == 302 {
        answer.insert("location", "/elsewhere".parse().unwrap());
    }
    (StatusCode::from_u16(status).unwrap(), answer)
}

/// HMAC by its definition (RFC 2104), for a key that is shorter than a block.
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let padded = |pad: u8| -> Vec<u8> { (0..64).map(|i| key.get(i).copied().unwrap_or(0) ^ pad).collect() };
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().to_vec()
}

/// `batch` of a server whose webhooks are these: a tenant, and an address. The secret is a file of the folder.
pub(crate) fn batch(folder: &tempfile::TempDir, webhooks: &[(Option<&str>, String)]) -> String {
    let file = path(folder, "secret");
    std::fs::write(&file, format!("{}\n", secret())).unwrap();
    let webhooks: Vec<Value> = webhooks
        .iter()
        .map(|(tenant, url)| json!({ "tenant": tenant, "url": url, "secret_file": file.as_str() }))
        .collect();
    json!({ "webhooks": webhooks }).to_string()
}

/// A server with such webhooks.
async fn start(database: Option<&str>, webhooks: &[(Option<&str>, String)]) -> Site {
    let folder = tempfile::tempdir().unwrap();
    write_model(&path(&folder, "tiny"), Shape { chat: true, ..Shape::default() });
    let batch = batch(&folder, webhooks);
    let models = Some("serve: [ { name: tiny, path: tiny } ]");
    let config = config(&folder, &Setup { database, models, batch: Some(&batch), ..Setup::default() });
    start_in(folder, config).await.ready().await
}

/// Creates a batch with one request, and returns its id.
async fn create(site: &Site, key: &str) -> String {
    let body = json!({ "model": "tiny", "prompt": "Once", "max_tokens": 2 });
    let wanted = json!({ "endpoint": "/v1/completions", "requests": [{ "custom_id": "a", "body": body }] });
    let created = site.post_as(key, "/v1/batches", wanted).await;
    assert_eq!(created.status, 200, "{}", created.text());
    created.json()["id"].as_str().unwrap().to_owned()
}

async fn status(site: &Site, id: &str) -> Value {
    site.get(&format!("/v1/batches/{id}")).await.json()["status"].clone()
}

/// Lets an event that waits for its next attempt be due now; returns whether one does.
async fn skip_wait(config: &Config) -> bool {
    let mut other = sqlx::SqliteConnection::connect(&format!("sqlite://{}", config.database.at)).await.unwrap();
    let query = sqlx::query("UPDATE webhook_deliveries SET available_at = 0 WHERE claim = '' AND available_at > $1");
    let changed = query.bind(now_ms()).execute(&mut other).await.unwrap().rows_affected();
    other.close().await.unwrap();
    changed == 1
}

async fn notified(database: Option<&str>) {
    let receiver = Receiver::default();
    let site = start(database, &[(None, receiver.listen().await)]).await;
    let id = create(&site, &site.key).await;
    until("the receiver has the event", async || !receiver.events().is_empty()).await;
    until("it is counted", async || site.metric("textnlp_webhook_deliveries_total{result=\"delivered\"}").await == 1.0)
        .await;
    assert_eq!(status(&site, &id).await, "completed");
    let events = receiver.events();
    let (event, body) = (&events[0], events[0].json());
    assert_eq!((events.len(), &body["type"], &body["object"]), (1, &json!("batch.completed"), &json!("event")));
    assert_eq!((&body["id"], &body["data"]), (&json!(event.id), &json!({ "id": id })));
    assert!(event.id.starts_with("evt_") && (body["created_at"].as_i64().unwrap() - now_ms() / 1000).abs() < 60);
    assert!((event.timestamp - now_ms() / 1000).abs() < 60);
    let message = format!("{}.{}.{}", event.id, event.timestamp, event.body);
    assert_eq!(event.signature, format!("v1,{}", STANDARD.encode(hmac(&SECRET, message.as_bytes()))));
    assert!(!event.body.contains("Once"), "no texts");
    until("none waits", async || site.metric("textnlp_webhook_oldest_seconds").await == 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receiver_gets_a_signed_event_on_sqlite() {
    notified(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receiver_gets_a_signed_event_on_postgresql() {
    let Some(cluster) = cluster::shared() else { return };
    notified(Some(&cluster.url(&cluster.database()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_events_are_sent_again_also_by_the_next_server_and_redirects_are_not_followed() {
    let receiver = Receiver { statuses: Arc::new(Mutex::new(vec![503, 302])), ..Receiver::default() };
    let mut site = start(None, &[(None, receiver.listen().await)]).await;
    let id = create(&site, &site.key).await;
    until("it waits for the second attempt", async || skip_wait(&site.config).await).await;
    until("that has failed too", async || {
        site.metric("textnlp_webhook_deliveries_total{result=\"failed\"}").await == 2.0
    })
    .await;
    until("its age is known", async || site.metric("textnlp_webhook_oldest_seconds").await > 0.0).await;
    assert!(site.drain().await);
    assert!(skip_wait(&site.config).await, "the row outlives the server");
    let server = Server::start(site.config.clone()).await.unwrap();
    site.client = Client::new(server.address());
    site.metrics = Client::new(server.metrics_address().unwrap());
    site.server = Some(server);
    until("the event is delivered", async || {
        site.metric("textnlp_webhook_deliveries_total{result=\"delivered\"}").await == 1.0
    })
    .await;
    let events = receiver.events();
    assert_eq!(events.len(), 3, "nothing was sent to the address of the redirect");
    assert!(events.iter().all(|event| event.id == events[0].id && event.json()["data"]["id"] == json!(id)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_receiver_delays_no_other_and_a_gone_one_gets_nothing_more() {
    let slow = Receiver { delay: Duration::from_secs(60), ..Receiver::default() };
    let fast = Receiver::default();
    let gone = Receiver { statuses: Arc::new(Mutex::new(vec![410])), ..Receiver::default() };
    let webhooks = [(None, slow.listen().await), (None, fast.listen().await), (None, gone.listen().await)];
    let site = start(None, &webhooks).await;
    let batches = [create(&site, &site.key).await, create(&site, &site.key).await];
    until("the fast receiver has both", async || fast.events().len() == 2).await;
    let seen: Vec<Value> = fast.events().iter().map(|event| event.json()["data"]["id"].clone()).collect();
    assert!(batches.iter().all(|id| seen.contains(&json!(id))), "{seen:?}");
    until("the gone receiver has an answer to both", async || gone.events().len() == 2).await;
    until("one event is given up", async || {
        site.metric("textnlp_webhook_deliveries_total{result=\"given_up\"}").await == 1.0
    })
    .await;
    until("the others are delivered", async || {
        site.metric("textnlp_webhook_deliveries_total{result=\"delivered\"}").await == 3.0
    })
    .await;
    assert!(!slow.events().is_empty(), "it was asked, and has not answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhook_of_a_tenant_gets_its_events_only_and_without_webhooks_nothing_is_stored() {
    let (of_acme, of_all) = (Receiver::default(), Receiver::default());
    let site = start(None, &[(Some("acme"), of_acme.listen().await), (None, of_all.listen().await)]).await;
    let acme = make_key(&site.config, json!({ "do": "create", "tenant": "acme" })).await;
    let ids = [create(&site, &site.key).await, create(&site, &acme).await];
    until("all receivers have their events", async || of_all.events().len() == 2 && !of_acme.events().is_empty()).await;
    assert_eq!((of_acme.events().len(), &of_acme.events()[0].json()["data"]["id"]), (1, &json!(ids[1])));

    let site = start(None, &[]).await;
    let id = create(&site, &site.key).await;
    until("the batch has ended", async || status(&site, &id).await == "completed").await;
    let waiting = site.server.as_ref().unwrap().store().delivery_status().await.unwrap();
    assert_eq!((waiting.waiting, waiting.oldest_ms), (0, None));
}

#[tokio::test]
async fn unusable_secret_is_named_by_its_file_before_the_server_listens() {
    let folder = tempfile::tempdir().unwrap();
    let secret = path(&folder, "secret");
    std::fs::write(&secret, "whsec_hunter2").unwrap();
    let batch =
        json!({ "webhooks": [{ "url": "https://hooks.example.com/", "secret_file": secret.as_str() }] }).to_string();
    let config = config(&folder, &Setup { batch: Some(&batch), ..Setup::default() });
    create_database(&config).await;
    let Err(error) = Server::start(config).await else { panic!("it started") };
    let said = error.to_string();
    assert!(said.contains(secret.as_str()) && said.contains("whsec_") && !said.contains("hunter2"), "{said}");
}
