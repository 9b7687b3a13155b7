//! Models from a hub, against a stand-in with the faults that networks have.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::standin::{COMMIT, Fault, RepoFile, Standin, noise, sha256};
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_models::{Error, Event, FetchOptions, HubRevision, Model, Source, Store, Token, hub_revision, verify};

const CONFIG: &[u8] = br#"{"model_type":"gpt2","n_layer":1,"n_embd":8,"n_head":2,"n_positions":16,"vocab_size":10}"#;

struct Place {
    standin: Standin,
    store: Store,
    _folder: tempfile::TempDir,
    weights: Vec<u8>,
}

fn repo_files(weights: &[u8]) -> Vec<RepoFile> {
    let small = |name, content: &[u8]| RepoFile { name, content: content.to_vec(), large: false };
    vec![
        small("README.md", b"# a model"),
        small("config.json", CONFIG),
        small("tokenizer.json", b"{\"model\":{}}"),
        RepoFile { name: "model.safetensors", content: weights.to_vec(), large: true },
        RepoFile { name: "pytorch_model.bin", content: noise(100, 9), large: true },
    ]
}

impl Place {
    async fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(Utf8Path::from_path(folder.path()).unwrap().join("a store")).unwrap();
        let standin = Standin::start().await;
        let weights = noise(300_000, 1);
        standin.publish("org/name", &repo_files(&weights));
        Place { standin, store, _folder: folder, weights }
    }

    fn options(&self) -> FetchOptions {
        let mut options = FetchOptions { endpoint: self.standin.hub.clone(), ..FetchOptions::default() };
        options.limits.pause = Duration::from_millis(1);
        options.limits.attempts = 4;
        options.limits.idle = Duration::from_secs(2);
        options
    }

    async fn fetch(&self, source: &str) -> Result<Model, Error> {
        self.store.fetch(&source.parse::<Source>().unwrap(), &self.options(), &|_| {}).await
    }

    /// Fetches under these faults, which must not be seen in the result.
    async fn survives(&self, faults: impl IntoIterator<Item = Fault>) {
        self.standin.fault("storage/cdn", faults);
        let model = self.fetch("hf:org/name").await.unwrap();
        assert_eq!(std::fs::read(model.dir.join("model.safetensors")).unwrap(), self.weights);
        assert_eq!(verify(&model.dir).unwrap(), model.manifest);
    }

    /// Fetches under these faults and shows the error with its hint.
    async fn fails(&self, path: &str, faults: impl IntoIterator<Item = Fault>) -> String {
        self.standin.fault(path, faults);
        let error = self.fetch("hf:org/name").await.unwrap_err();
        assert!(self.store.list().unwrap().is_empty(), "a failed fetch installed something");
        format!("{error} | {}", error.hint().unwrap_or_default())
    }
}

fn answer(status: u16, headers: &[(&'static str, &str)]) -> Fault {
    Fault::Answer { status, headers: headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect() }
}

#[tokio::test]
async fn commit_of_a_branch_is_asked_without_its_files() {
    let place = Place::new().await;
    let newest = "8".repeat(40);
    let answer = serde_json::json!({ "sha": newest, "lastModified": "2026-09-01T10:00:00.000Z" });
    let at = "hub/api/models/org/name/revision/main";
    place.standin.put(at, 200, answer.to_string().into_bytes(), &[]);
    let Source::Hub(hub) = "hf:org/name".parse().unwrap() else { panic!("it is of a hub") };
    let modified = Some("2026-09-01T10:00:00.000Z".to_owned());
    let found = hub_revision(&hub, hub.revision(), &place.options(), &|_| {}).await.unwrap();
    assert_eq!(found, HubRevision { commit: newest, modified });
    assert!(hub_revision(&hub, "gone", &place.options(), &|_| {}).await.is_err());
    let asked = place.standin.requests("api/models").len();
    let offline = FetchOptions { offline: true, ..place.options() };
    let refused = hub_revision(&hub, "main", &offline, &|_| {}).await.unwrap_err();
    assert!(
        refused.to_string().contains("offline") && place.standin.requests("api/models").len() == asked,
        "{refused}"
    );
    place.standin.put(at, 200, br#"{"sha":"main"}"#.to_vec(), &[]);
    assert!(hub_revision(&hub, "main", &place.options(), &|_| {}).await.is_err());
}

#[tokio::test]
async fn model_is_pulled_with_its_files_and_found_again_offline() {
    let place = Place::new().await;
    let model = place.fetch("hf:org/name").await.unwrap();
    let names: Vec<_> = model.manifest.files.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(model.manifest.revision.as_deref(), Some(COMMIT));
    assert_eq!(model.manifest.license.as_deref(), Some("mit"));
    assert_eq!(verify(&model.dir).unwrap().digest, model.manifest.digest);

    let before = place.standin.requests("").len();
    let mut options = place.options();
    options.offline = true;
    let again = place.store.fetch(&"hf:org/name".parse().unwrap(), &options, &|_| {}).await.unwrap();
    assert_eq!(again.manifest, model.manifest);
    assert_eq!(place.standin.requests("").len(), before);
}

#[tokio::test]
async fn missing_model_in_offline_mode_is_explained() {
    let place = Place::new().await;
    let options = FetchOptions { offline: true, ..place.options() };
    let error = place.store.fetch(&"hf:org/name".parse().unwrap(), &options, &|_| {}).await.unwrap_err();
    assert!(matches!(error, Error::Offline { .. }), "{error}");
    assert!(error.hint().unwrap().contains("model pull hf:org/name"));
    assert!(place.standin.requests("").is_empty());
}

#[tokio::test]
async fn interrupted_downloads_resume_where_they_broke() {
    let place = Place::new().await;
    place.survives([0, 1, 7, 100_000, 1, 150_000].map(Fault::Cut)).await;
    let ranges: Vec<_> =
        place.standin.requests("storage/cdn").iter().filter_map(|s| s.headers.get("range").cloned()).collect();
    assert_eq!(ranges, ["bytes=1-", "bytes=8-", "bytes=100008-", "bytes=100009-", "bytes=250009-"]);
    let last = place.standin.requests("storage/cdn").pop().unwrap();
    assert!(last.headers["if-range"].starts_with("\"storage-"), "a range must be tied to the version it continues");
    assert!(place.standin.sent("storage/cdn") < 310_000, "what had arrived was sent again");
}

#[tokio::test]
async fn response_with_another_range_is_rejected() {
    let place = Place::new().await;
    place.survives([Fault::Cut(1000), Fault::WrongRange]).await;
}

#[tokio::test]
async fn content_changed_during_a_download_is_fetched_from_the_start() {
    let place = Place::new().await;
    let error = place.fails("storage/cdn", [1000, 0, 0, 0].map(Fault::Cut)).await;
    assert!(error.contains("4 attempts"), "{error}");
    // The same path now has other bytes and another tag; the listing promises them.
    let key = sha256(&place.weights);
    let tag = [("etag", "\"other\"".to_owned())];
    place.standin.put(&format!("storage/cdn/{key}?signature=secret"), 200, place.weights.clone(), &tag);
    place.survives([]).await;
    let last = place.standin.requests("storage/cdn").pop().unwrap();
    assert_eq!(last.headers["range"], "bytes=1000-");
    assert_eq!(place.standin.sent("storage/cdn"), 301_000);
}

#[tokio::test]
async fn damaged_download_is_retried_once_and_then_refused() {
    let place = Place::new().await;
    place.survives([Fault::Cut(5000), Fault::Damaged]).await;

    let place = Place::new().await;
    let error = place.fails("storage/cdn", [Fault::Damaged, Fault::Damaged]).await;
    assert!(error.contains("has sha256:") && error.contains("was expected"), "{error}");
    let error = place
        .fails("resolve/0123456789abcdef0123456789abcdef01234567/config.json", [Fault::Damaged, Fault::Damaged])
        .await;
    assert!(error.contains("config.json has git blob"), "{error}");
    place.survives([]).await;
}

#[tokio::test]
async fn conflicting_sizes_are_refused_and_short_bodies_resumed() {
    let place = Place::new().await;
    let error = place.fails("storage/cdn", [Fault::Promises(-5)]).await;
    assert!(error.contains("300000 bytes") && error.contains("299995 bytes"), "{error}");
    let error = place.fails("storage/cdn", [Fault::Promises(5)]).await;
    assert!(error.contains("300005 bytes"), "{error}");
    place.standin.fault("config.json", [Fault::Promises(3)]);
    let error = place.fetch("hf:org/name").await.unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    place.survives([]).await;
}

#[tokio::test]
async fn stalled_download_is_aborted_and_resumed() {
    let place = Place::new().await;
    place.survives([Fault::Stalls(1234)]).await;
    assert_eq!(place.standin.requests("storage/cdn")[1].headers["range"], "bytes=1234-");
}

#[tokio::test]
async fn slow_download_is_aborted_and_resumed() {
    let place = Place::new().await;
    place.standin.fault("storage/cdn", [Fault::Drips]);
    let mut options = place.options();
    options.limits.slow_window = Duration::from_secs(1);
    let model = place.store.fetch(&"hf:org/name".parse().unwrap(), &options, &|_| {}).await.unwrap();
    verify(&model.dir).unwrap();
    assert!(place.standin.requests("storage/cdn").len() > 1);
}

#[tokio::test]
async fn hub_retry_after_is_honoured_within_bounds() {
    let place = Place::new().await;
    let events = Mutex::new(Vec::new());
    place.standin.fault("api/models", [answer(429, &[("retry-after", "1")]), answer(503, &[])]);
    let note = |event: Event| events.lock().unwrap().push(event);
    place.store.fetch(&"hf:org/name".parse().unwrap(), &place.options(), &note).await.unwrap();
    let waited = events.lock().unwrap().iter().any(|e| matches!(e, Event::Waiting { seconds: 1, .. }));
    assert!(waited, "{events:?}");

    let place = Place::new().await;
    let error = place.fails("api/models", [answer(429, &[("retry-after", "86400")])]).await;
    assert!(error.contains("retry after 86400 s") && error.contains("HF_TOKEN"), "{error}");
    assert_eq!(place.standin.requests("api/models").len(), 1);
    let error = place.fails("api/models", vec![answer(502, &[]); 10]).await;
    assert!(error.contains("4 attempts") && error.contains("502"), "{error}");
    assert_eq!(place.standin.requests("api/models").len(), 5);
}

#[tokio::test]
async fn gated_missing_and_private_models_come_with_a_hint() {
    let place = Place::new().await;
    let said = "Access to model org/name is restricted";
    let gated = answer(403, &[("x-error-code", "GatedRepo"), ("x-error-message", said)]);
    let error = place.fails("resolve", [gated]).await;
    assert!(
        error.contains(said) && error.contains("accept its terms at http") && error.contains("set HF_TOKEN"),
        "{error}"
    );
    let error = place.fails("api/models", [answer(401, &[("x-error-code", "RepoNotFound")])]).await;
    assert!(error.contains("does not exist, or it is private") && error.contains("HF_TOKEN is not set"), "{error}");
    let error = place.fails("api/models", [answer(404, &[("x-error-code", "RevisionNotFound")])]).await;
    assert!(error.contains("revision main of hf:org/name") && error.contains("tree/main"), "{error}");
    let missing = place.fetch("hf:org/other").await.unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
}

#[tokio::test]
async fn hub_token_is_sent_only_to_the_hub() {
    let place = Place::new().await;
    let options = FetchOptions { token: Some(Token::new("hf_secret")), ..place.options() };
    place.store.fetch(&"hf:org/name".parse().unwrap(), &options, &|_| {}).await.unwrap();
    let with =
        |part: &str| place.standin.requests(part).iter().filter(|s| s.headers.contains_key("authorization")).count();
    assert_eq!(with("hub/"), place.standin.requests("hub/").len());
    assert!(!place.standin.requests("storage/").is_empty());
    assert_eq!(with("storage/"), 0, "the storage host was given the hub's token");
}

#[tokio::test]
async fn redirect_loops_are_refused() {
    let place = Place::new().await;
    let round = answer(302, &[("location", "/org/name/resolve/x")]);
    place.standin.put("hub/org/name/resolve/x", 302, Vec::new(), &[("location", "/org/name/resolve/x".to_owned())]);
    let error = place.fails("api/models", [round]).await;
    assert!(error.contains("more than 10 redirects"), "{error}");
    let away = answer(302, &[("location", "http://example.org/x")]);
    let error = place.fails("api/models", [away]).await;
    assert!(error.contains("not encrypted"), "{error}");
}

#[tokio::test]
async fn unsafe_file_names_in_a_listing_are_skipped() {
    let place = Place::new().await;
    let mut files = repo_files(&place.weights);
    for name in ["../evil.safetensors", "/etc/evil.safetensors", "..", ".hidden.json", "tokenizer\u{7}.json"] {
        files.push(RepoFile { name, content: b"evil".to_vec(), large: false });
    }
    place.standin.publish("org/name", &files);
    let model = place.fetch("hf:org/name").await.unwrap();
    assert_eq!(model.manifest.files.len(), 3);
}

#[tokio::test]
async fn insufficient_disk_space_is_refused_before_the_download() {
    let place = Place::new().await;
    let path = "hub/api/models/org/huge/revision/main?blobs=true";
    let digest = sha256(b"huge");
    let listing = serde_json::json!({"sha": COMMIT, "siblings": [{"rfilename": "x.gguf", "size": 1u64 << 50,
        "lfs": {"sha256": digest, "size": 1u64 << 50}}]});
    place.standin.put(path, 200, listing.to_string().into_bytes(), &[]);
    let error = place.fetch("hf:org/huge").await.unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    assert!(error.hint().unwrap().contains("models.cache_dir"));
    assert!(place.standin.requests("resolve").is_empty(), "the download began although there is no room");
}

#[tokio::test]
async fn branch_is_pinned_by_the_first_pull_until_refreshed() {
    let place = Place::new().await;
    let first = place.fetch("hf:org/name").await.unwrap();
    let newer = noise(200_000, 2);
    place.standin.publish("org/name", &repo_files(&newer));
    assert_eq!(place.fetch("hf:org/name").await.unwrap().manifest.digest, first.manifest.digest);

    let options = FetchOptions { refresh: true, ..place.options() };
    let second = place.store.fetch(&"hf:org/name".parse().unwrap(), &options, &|_| {}).await.unwrap();
    assert_ne!(second.manifest.digest, first.manifest.digest);
    assert_eq!(place.store.list().unwrap().len(), 2);

    // A lock file's digest is found in the store, and one that nobody has is refused.
    let options = FetchOptions { expect: Some(first.manifest.digest), ..place.options() };
    let locked = place.store.fetch(&"hf:org/name".parse().unwrap(), &options, &|_| {}).await.unwrap();
    assert_eq!(locked.manifest.digest, first.manifest.digest);
    let options = FetchOptions { expect: Some(textnlp_models::Digest::of(b"other")), ..place.options() };
    let error = place.store.fetch(&"hf:org/name".parse().unwrap(), &options, &|_| {}).await.unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
}

#[tokio::test]
async fn concurrent_fetches_download_once() {
    let place = Place::new().await;
    let source: Source = "hf:org/name".parse().unwrap();
    let options = place.options();
    let one = || place.store.fetch(&source, &options, &|_| {});
    let (a, b, c) = tokio::join!(one(), one(), one());
    assert_eq!(a.unwrap().manifest, b.unwrap().manifest);
    c.unwrap();
    assert_eq!(place.standin.requests("api/models").len(), 1);
    assert_eq!(place.standin.sent("storage/cdn"), 300_000);
}

#[tokio::test]
async fn damaged_model_in_the_store_is_fetched_again() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new().await;
    let model = place.fetch("hf:org/name").await.unwrap();
    let path = model.dir.join("model.safetensors");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = verify(&model.dir).unwrap_err();
    assert!(matches!(&error, Error::Corrupt { path, .. } if path.ends_with("model.safetensors")), "{error}");
    drop(model);
    place.survives([]).await;
}

/// The other half of the test below: a process of its own, so that it can be killed.
#[tokio::test]
#[ignore = "started by killed_fetch_is_resumed"]
async fn fetch_child_process() {
    let (Ok(store), Ok(hub)) = (std::env::var("STANDIN_STORE"), std::env::var("STANDIN_HUB")) else { return };
    let store = Store::open(Utf8PathBuf::from(store)).unwrap();
    let options = FetchOptions { endpoint: hub, ..FetchOptions::default() };
    store.fetch(&"hf:org/name".parse().unwrap(), &options, &|_| {}).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_fetch_is_resumed() {
    let place = Place::new().await;
    place.standin.fault("storage/cdn", [Fault::Stalls(100_000)]);
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hub::fetch_child_process", "--ignored"])
        .env("STANDIN_STORE", place.store.path())
        .env("STANDIN_HUB", &place.standin.hub)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let partial = || {
        let folder = std::fs::read_dir(place.store.path().join("partial")).unwrap();
        let lengths = folder.filter_map(|e| e.ok()).filter(|e| e.path().extension().is_some_and(|x| x == "part"));
        lengths.filter_map(|e| e.metadata().ok()).map(|m| m.len()).max().unwrap_or(0)
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while partial() < 50_000 {
        assert!(Instant::now() < deadline, "the child downloaded nothing");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(place.store.list().unwrap().is_empty());

    place.survives([]).await;
    let last = place.standin.requests("storage/cdn").pop().unwrap();
    assert!(last.headers.get("range").is_some_and(|range| range != "bytes=0-"), "it began from the start: {last:?}");
    let left: Vec<_> = std::fs::read_dir(place.store.path().join("assembly")).unwrap().collect();
    assert!(left.is_empty(), "the killed process's assembly is still there: {left:?}");
}
