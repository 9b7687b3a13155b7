//! The same list against real servers: S3's protocol by moto, Blob's by Azurite, Google Cloud Storage's by a stand-in of ours.
//!
//! Of S3 only what that double is known to do right is leaned on: conditional PUT and listing. Of the stand-in nothing is leaned on that
//! Google's own client has not been shown, or that is not asked for here by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::state::{Objects, StateError};

use crate::conformance::{self, Open, holder, next};
use crate::servers::{Server, azurite, blob_container, checked_by_google, gcs, moto};
use crate::world::here;

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests");

fn retries() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 3, retry_timeout: std::time::Duration::from_secs(30) }
}

fn s3(server: &Server, bucket: &str) -> Arc<dyn ObjectStore> {
    let store = AmazonS3Builder::new()
        .with_endpoint(&server.address)
        .with_bucket_name(bucket)
        .with_region("us-east-1")
        .with_access_key_id("test")
        .with_secret_access_key("test")
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .with_retry(retries())
        .build();
    Arc::new(store.unwrap())
}

fn blob(server: &Server, container: &str) -> Arc<dyn ObjectStore> {
    let store = MicrosoftAzureBuilder::new()
        .with_account("devstoreaccount1")
        .with_access_key(KEY)
        .with_endpoint(format!("{}/devstoreaccount1", server.address))
        .with_container_name(container)
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .with_retry(retries())
        .build();
    Arc::new(store.unwrap())
}

fn google(server: &Server, bucket: &str) -> Arc<dyn ObjectStore> {
    let store = GoogleCloudStorageBuilder::new()
        .with_base_url(&server.address)
        .with_bucket_name(bucket)
        // Without a signature is not enough: writes would still ask the metadata server for a token.
        .with_service_account_key(
            r#"{"private_key":"none","private_key_id":"none","client_email":"none","disable_oauth":true}"#,
        )
        .with_client_options(ClientOptions::new().with_allow_http(true))
        .with_retry(retries())
        .build();
    Arc::new(store.unwrap())
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(future)
}

async fn ask(server: &Server, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> reqwest::Response {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut request = client.request(method.parse().unwrap(), format!("{}{path}", server.address));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.to_owned()).send().await.unwrap()
}

async fn request(server: &Server, method: &str, path: &str, headers: &[(&str, &str)]) {
    let answer = ask(server, method, path, headers, "").await;
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
}

fn fresh(store: Arc<dyn ObjectStore>, count: &AtomicU32) -> Open {
    let root = Path::from(format!("states/{}", count.fetch_add(1, Ordering::SeqCst)));
    Arc::new(move || Arc::new(Objects::new(store.clone(), root.clone(), "a server", Arc::new(SystemClock))))
}

/// Eight operators want the same lock at the same moment, and then all of them write: one wins, and nothing is torn.
async fn one_of_many_wins(open: Open) {
    let tasks: Vec<_> = (0..8)
        .map(|i| {
            let open = open.clone();
            tokio::spawn(async move {
                let store = open();
                let lock = store.lock(&holder(&format!("operator {i}"))).await?;
                let batch = next(&*store, &format!("by {i}")).await;
                store.append(&lock, &here(), &batch).await.map(|()| (store, lock))
            })
        })
        .collect();
    let (mut won, mut refused) = (Vec::new(), 0);
    for task in tasks {
        match task.await.unwrap() {
            Ok(held) => won.push(held),
            Err(StateError::Held { .. }) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((won.len(), refused), (1, 7));
    let log = String::from_utf8(open().log(&here()).await.unwrap()).unwrap();
    assert!(log.starts_with("by ") && log.lines().count() == 1, "{log}");
}

#[test]
fn s3_passes_the_conformance_suite() {
    let Some(server) = moto(TESTS) else { return };
    run(async {
        request(&server, "PUT", "/states", &[]).await;
        let count = AtomicU32::new(0);
        conformance::all(&|| fresh(s3(&server, "states"), &count)).await;
        one_of_many_wins(fresh(s3(&server, "states"), &count)).await;
    });
}

#[test]
fn azure_blob_passes_the_conformance_suite() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = azurite(TESTS, folder.path()) else { return };
    run(async {
        blob_container(TESTS, &server, "states");
        let count = AtomicU32::new(0);
        conformance::all(&|| fresh(blob(&server, "states"), &count)).await;
        one_of_many_wins(fresh(blob(&server, "states"), &count)).await;
    });
}

/// One write by the XML protocol under a condition: the status, and the generation that was given.
async fn put_xml(server: &Server, name: &str, text: &str, generation: &str) -> (u16, String) {
    let headers = [("x-goog-if-generation-match", generation)];
    let answer = ask(server, "PUT", &format!("/states/{name}"), &headers, text).await;
    let given = answer.headers().get("x-goog-generation").map(|value| value.to_str().unwrap().to_owned());
    (answer.status().as_u16(), given.unwrap_or_default())
}

async fn text_of(server: &Server, path: &str) -> String {
    ask(server, "GET", path, &[], "").await.text().await.unwrap()
}

/// What the engine leans on, by the protocol that its client speaks; the facts are those of Google's reference of the XML API.
async fn xml_keeps_conditions(server: &Server) {
    let (status, first) = put_xml(server, "a/one", "first", "0").await;
    assert!(status == 200 && first.parse::<u64>().is_ok(), "{status} {first}");
    assert_eq!(put_xml(server, "a/one", "again", "0").await.0, 412);
    assert_eq!(put_xml(server, "a/one", "wrong", "1").await.0, 412);
    assert_eq!(put_xml(server, "a/other", "never there", &first).await.0, 412);
    assert_eq!(text_of(server, "/states/a/one").await, "first");
    let (status, second) = put_xml(server, "a/one", "second", &first).await;
    assert!(status == 200 && second != first);
    assert_eq!(put_xml(server, "a/one", "late", &first).await.0, 412);
    // Both protocols tell of one object.
    let told: serde_json::Value =
        serde_json::from_str(&text_of(server, "/storage/v1/b/states/o/a%2Fone").await).unwrap();
    assert_eq!((&told["generation"], &told["size"]), (&second.into(), &"6".into()));
    // What was written is listed by the next request.
    for i in 0..10 {
        assert_eq!(put_xml(server, &format!("listed/{i}"), "x", "0").await.0, 200);
        let listed = text_of(server, "/states?list-type=2&prefix=listed/").await;
        assert_eq!(listed.matches("<Key>").count(), i + 1, "{listed}");
    }
    let after = text_of(server, "/states?list-type=2&prefix=listed/&start-after=listed/6").await;
    assert_eq!(after.matches("<Key>").count(), 3, "{after}");
}

/// Writers that race for one name and one generation: how many of them were told that they had won, each time.
async fn winners(server: &Server) -> Vec<usize> {
    let mut winners = Vec::new();
    for name in 0..20 {
        let tries =
            (0..8).map(|i| async move { put_xml(server, &format!("race/{name}"), &format!("by {i}"), "0").await });
        let answers = futures::future::join_all(tries).await;
        assert!(answers.iter().all(|(status, _)| [200, 412].contains(status)), "{answers:?}");
        winners.push(answers.iter().filter(|(status, _)| *status == 200).count());
    }
    winners
}

/// Without this the test below would prove nothing.
#[test]
fn fake_gcs_honours_generation_preconditions() {
    let Some(server) = gcs(TESTS, false) else { return };
    let (kept, says) = checked_by_google(TESTS, &server).expect("its client is there");
    assert!(kept, "{says}");
    run(async {
        request(&server, "PUT", "/states", &[]).await;
        xml_keeps_conditions(&server).await;
        assert_eq!(winners(&server).await, [1; 20]);
    });
}

/// And without this, that one: a server that ignores conditions is found out by Google's client, and refused by ours.
#[test]
fn fake_gcs_without_preconditions_is_refused() {
    let Some(server) = gcs(TESTS, true) else { return };
    let (kept, says) = checked_by_google(TESTS, &server).expect("its client is there");
    assert!(!kept && says.contains("what is there is not created again"), "{says}");
    run(async {
        request(&server, "PUT", "/states", &[]).await;
        assert_eq!(winners(&server).await, [8; 20]);
        let refused = fresh(google(&server, "states"), &AtomicU32::new(0))().lock(&holder("ada")).await;
        assert!(matches!(refused, Err(StateError::Unconditional { .. })), "{:?}", refused.err());
    });
}

#[test]
fn gcs_passes_the_conformance_suite() {
    let Some(server) = gcs(TESTS, false) else { return };
    run(async {
        request(&server, "PUT", "/states", &[]).await;
        let count = AtomicU32::new(0);
        conformance::all(&|| fresh(google(&server, "states"), &count)).await;
        one_of_many_wins(fresh(google(&server, "states"), &count)).await;
    });
}

/// Published with the emulator: it guards nothing.
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
