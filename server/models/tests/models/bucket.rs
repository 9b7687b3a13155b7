//! Models in buckets: S3's protocol by moto, Blob's by Azurite, Google Cloud Storage's by a fake; and faults of a
//! download.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_buckets::Variables;
use textnlp_models::{BucketSource, Error, FetchOptions, Model, Pushed, Source, Store, push, verify};
use textnlp_tests::servers::{Server, azurite, blob_container, gcs, moto};

use crate::standin::{Fault, Standin, noise};

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests");
/// More than one part of an upload.
const LARGE: usize = (16 << 20) + 300_000;

fn options<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> FetchOptions {
    let mut options = FetchOptions { variables: Variables::of_pairs(variables), ..FetchOptions::default() };
    options.limits.pause = Duration::from_millis(1);
    options.limits.attempts = 4;
    options.limits.idle = Duration::from_secs(10);
    options
}

fn bucket(text: &str) -> BucketSource {
    match text.parse().unwrap() {
        Source::Bucket(bucket) => bucket,
        other => panic!("{other}"),
    }
}

async fn made(server: &Server, path: &str) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.put(format!("{}{path}", server.address)).header("content-length", "0").send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
}

/// A folder with a model's files, and a store that has it.
struct Bench {
    folder: tempfile::TempDir,
    model: Model,
    options: FetchOptions,
    weights: Vec<u8>,
}

impl Bench {
    async fn new(options: FetchOptions, weights: usize) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let here = Utf8Path::from_path(folder.path()).unwrap();
        let source = here.join("mine");
        std::fs::create_dir(&source).unwrap();
        let weights = noise(weights, 7);
        for (name, content) in
            [("config.json", b"{}".as_slice()), ("tokenizer.json", b"{}"), ("model.safetensors", &weights)]
        {
            std::fs::write(source.join(name), content).unwrap();
        }
        let store = Store::open(here.join("store")).unwrap();
        let model = store.fetch(&Source::File(source), &FetchOptions::default(), &|_| {}).await.unwrap();
        Bench { folder, model, options, weights }
    }

    async fn push(&self, to: &str) -> Result<Pushed, Error> {
        push(&self.model, &bucket(to), false, &self.options, &|_| {}).await
    }

    fn other(&self) -> Utf8PathBuf {
        Utf8Path::from_path(self.folder.path()).unwrap().join("other")
    }

    /// Fetches into a store that has nothing.
    async fn fetch(&self, source: &str) -> Result<Model, Error> {
        let _ = std::fs::remove_dir_all(self.other());
        Store::open(self.other()).unwrap().fetch(&source.parse().unwrap(), &self.options, &|_| {}).await
    }

    /// What every bucket does.
    async fn whole_life(&self, to: &str) -> Pushed {
        let missing = self.fetch(to).await.unwrap_err();
        assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
        let pushed = self.push(to).await.unwrap();
        let digest = self.model.manifest.digest;
        let expected = format!("{to}{}/", digest.to_string().replace(':', "-"));
        assert_eq!((pushed.source.as_str(), pushed.digest), (expected.as_str(), digest));
        assert_eq!((pushed.bytes, pushed.sent), (self.model.manifest.bytes, self.model.manifest.bytes));
        let found = self.fetch(&pushed.source).await.unwrap();
        assert_eq!(found.manifest.digest, digest);
        assert_eq!(verify(&found.dir).unwrap(), found.manifest);
        assert!(!found.manifest.source.contains("file:"), "it names a folder of another machine");
        assert_eq!(std::fs::read(found.dir.join("model.safetensors")).unwrap(), self.weights);
        assert_eq!(self.push(to).await.unwrap().sent, 0, "it is there");
        pushed
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_keeps_models() {
    let Some(server) = moto(TESTS) else { return };
    made(&server, "/models").await;
    let keys = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")];
    let variables = || keys.into_iter().chain([("AWS_ENDPOINT_URL_S3", server.address.as_str())]);
    let bench = Bench::new(options(variables()), LARGE).await;
    let pushed = bench.whole_life("s3://models/team/").await;

    // As other programs upload a folder: without a manifest.
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let put = async |path: &str, content: Vec<u8>| {
        let answer = client.put(format!("{}/models/{path}", server.address)).body(content).send().await.unwrap();
        assert!(answer.status().is_success());
    };
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        put(&format!("plain/{name}"), std::fs::read(bench.model.dir.join(name)).unwrap()).await;
    }
    put("plain/notes.txt", b"mine".to_vec()).await;
    let found = bench.fetch("s3://models/plain").await.unwrap();
    assert_eq!(found.manifest.digest, bench.model.manifest.digest);

    // Other bytes of the same length do not become a model, and are replaced where that is asked for.
    let path = pushed.source.trim_start_matches("s3://models/").to_owned();
    let mut damaged = bench.weights.clone();
    damaged[1_000_000] ^= 1;
    put(&format!("{path}model.safetensors"), damaged).await;
    let error = bench.fetch(&pushed.source).await.unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    assert_eq!(bench.push("s3://models/team/").await.unwrap().sent, 0);
    let again = push(&bench.model, &bucket("s3://models/team/"), true, &bench.options, &|_| {}).await.unwrap();
    assert_eq!(again.sent, bench.model.manifest.bytes);
    bench.fetch(&pushed.source).await.unwrap();

    // A model that changed on the disk does not become an object.
    let weights = bench.model.dir.join("model.safetensors");
    std::fs::remove_file(&weights).unwrap();
    let mut damaged = bench.weights.clone();
    damaged[5] ^= 1;
    std::fs::write(&weights, damaged).unwrap();
    let error = push(&bench.model, &bucket("s3://models/second/"), false, &bench.options, &|_| {}).await.unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    let error = bench.fetch(&pushed.source.replace("team", "second")).await.unwrap_err();
    assert!(matches!(error, Error::Unusable { .. } | Error::NotFound { .. }), "{error}");

    let error = bench.fetch("s3://no-such-bucket/x").await.unwrap_err();
    assert!(error.to_string().contains("s3://no-such-bucket/x/"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blob_storage_keeps_models() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = azurite(TESTS, folder.path()) else { return };
    let endpoint = format!("{}/devstoreaccount1", server.address);
    blob_container(TESTS, &server, "models");
    let bench = Bench::new(options([("AZURE_STORAGE_ENDPOINT", endpoint.as_str())]), LARGE).await;
    bench.whole_life("az://models/").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cloud_storage_keeps_models() {
    let Some(server) = gcs(TESTS, false) else { return };
    made(&server, "/models").await;
    // The fake has no uploads in parts.
    let bench = Bench::new(options([("GOOGLE_BASE_URL", server.address.as_str())]), 200_000).await;
    bench.whole_life("gs://models/a/b/").await;
}

#[tokio::test]
async fn a_cut_download_goes_on_with_the_same_version() {
    let standin = Standin::start().await;
    let weights = noise(400_000, 3);
    let headers =
        |tag: &str| [("etag", format!("\"{tag}\"")), ("last-modified", "Thu, 26 Nov 2026 00:00:00 GMT".to_owned())];
    standin.put("hub/models/x.gguf", 200, weights.clone(), &headers("one"));
    standin.fault("models/x.gguf", [Fault::Cut(100_000), Fault::Cut(50_000)]);
    let keys = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "eu-west-1")];
    let options = options(keys.into_iter().chain([("AWS_ENDPOINT_URL_S3", standin.hub.as_str())]));
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(Utf8Path::from_path(folder.path()).unwrap().join("store")).unwrap();
    let found = store.fetch(&"s3://models/x.gguf".parse().unwrap(), &options, &|_| {}).await.unwrap();
    assert_eq!(std::fs::read(found.dir.join("x.gguf")).unwrap(), weights);
    let seen = standin.requests("models/x.gguf");
    assert_eq!(seen.len(), 3);
    assert!(!seen[0].headers.contains_key("range"));
    for again in &seen[1..] {
        assert!(again.headers["range"].starts_with("bytes=") && again.headers["if-match"] == "\"one\"", "{again:?}");
    }
    assert!(seen.iter().all(|seen| seen.headers["authorization"].contains("/eu-west-1/s3/")));

    // Credentials go to services of this machine or over TLS.
    let mut clear = options.clone();
    clear.variables = Variables::of_pairs([("AWS_ENDPOINT_URL_S3", "http://minio.example.com")]);
    let error = store.fetch(&"s3://models/y.gguf".parse().unwrap(), &clear, &|_| {}).await.unwrap_err();
    assert!(error.to_string().contains("is not encrypted"), "{error}");

    // What is denied says how to sign in.
    let denied = Fault::Answer { status: 403, headers: Vec::new() };
    standin.put("hub/models/z.gguf", 200, weights, &headers("two"));
    standin.fault("models/z.gguf", [denied]);
    let error = store.fetch(&"s3://models/z.gguf".parse().unwrap(), &options, &|_| {}).await.unwrap_err();
    assert!(matches!(&error, Error::Denied { hint, .. } if hint.contains("AWS_ACCESS_KEY_ID")), "{error}");
}
