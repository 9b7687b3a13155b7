//! The same list against real servers: S3's protocol by moto, Blob's by Azurite.
//!
//! Of S3 only what that double is known to do right is leaned on: conditional PUT and listing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::state::{Objects, StateError};

use crate::conformance::{self, Open, holder, next};
use crate::servers::{Server, azurite, moto};
use crate::world::here;

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests");

fn retries() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: std::time::Duration::from_secs(5) }
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

fn run<T>(future: impl Future<Output = T>) -> T {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(future)
}

async fn request(server: &Server, method: &str, path: &str, headers: &[(&str, &str)]) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut request = client.request(method.parse().unwrap(), format!("{}{path}", server.address));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
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
fn s3_keeps_the_list() {
    let Some(server) = moto(TESTS) else { return };
    run(async {
        request(&server, "PUT", "/states", &[]).await;
        let count = AtomicU32::new(0);
        conformance::all(&|| fresh(s3(&server, "states"), &count)).await;
        one_of_many_wins(fresh(s3(&server, "states"), &count)).await;
    });
}

#[test]
fn blob_keeps_the_list() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = azurite(TESTS, folder.path()) else { return };
    run(async {
        make_container(&server).await;
        let count = AtomicU32::new(0);
        conformance::all(&|| fresh(blob(&server, "states"), &count)).await;
        one_of_many_wins(fresh(blob(&server, "states"), &count)).await;
    });
}

/// Published with the emulator: it guards nothing.
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A container is made with a signature by hand, as the client makes none.
async fn make_container(server: &Server) {
    let now = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let text = format!(
        "PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{now}\nx-ms-version:2021-08-06\n/devstoreaccount1/devstoreaccount1/states\nrestype:container"
    );
    let key = BASE64_STANDARD.decode(KEY).unwrap();
    let signed = aws_lc_rs::hmac::sign(&aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &key), text.as_bytes());
    let authorization = format!("SharedKey devstoreaccount1:{}", BASE64_STANDARD.encode(signed.as_ref()));
    let headers = [
        ("x-ms-date", now.as_str()),
        ("x-ms-version", "2021-08-06"),
        ("authorization", &authorization),
        ("content-length", "0"),
    ];
    request(server, "PUT", "/devstoreaccount1/states?restype=container", &headers).await;
}
