//! The store on its own: local and web sources, placing, eviction, damage.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::standin::{Fault, Standin, noise, sha256};
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_models::{Error, Event, FetchOptions, Limits, Model, Source, Store, local_digest, read_manifest, verify};

struct Place {
    folder: tempfile::TempDir,
    store: Store,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(Utf8Path::from_path(folder.path()).unwrap().join("store")).unwrap();
        Place { folder, store }
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8Path::from_path(self.folder.path()).unwrap().join(name)
    }

    /// A model folder of about this size.
    fn model(&self, name: &str, bytes: usize, seed: u64) -> Source {
        let dir = self.path(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("config.json"), "{}").unwrap();
        fs::write(dir.join("tokenizer.json"), "{}").unwrap();
        fs::write(dir.join("model.safetensors"), noise(bytes, seed)).unwrap();
        fs::write(dir.join("notes.txt"), "mine").unwrap();
        format!("file:{dir}").parse().unwrap()
    }

    async fn fetch(&self, source: &Source, max: Option<u64>) -> Result<Model, Error> {
        let options = FetchOptions { max_cache_bytes: max, limits: quick(), ..FetchOptions::default() };
        self.store.fetch(source, &options, &|_| {}).await
    }

    fn has(&self, source: &Source) -> bool {
        self.store.find(source).unwrap().is_some()
    }
}

fn quick() -> Limits {
    Limits { pause: std::time::Duration::from_millis(1), ..Limits::default() }
}

#[tokio::test]
async fn fetch_succeeds_when_chunk_digests_cannot_be_stored() {
    let place = Place::new();
    let source = place.model("whole", 10, 1);
    let header = format!(r#"{{"a":{{"data_offsets":[0,{}]}}}}"#, 2 << 20);
    let weights = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &noise(2 << 20, 1)].concat();
    fs::write(place.path("whole/model.safetensors"), &weights).unwrap();
    let chunks = place.path("store/chunks");
    fs::remove_dir(&chunks).unwrap();
    fs::write(&chunks, "in its place").unwrap();
    let model = place.fetch(&source, None).await.unwrap();
    assert_eq!(fs::read(model.dir.join("model.safetensors")).unwrap(), weights);
    // Where there is a place they are kept: there was something to keep.
    let other = Place::new();
    let model = other.fetch(&source, None).await.unwrap();
    let file = model.manifest.files.iter().find(|file| file.name == "model.safetensors").unwrap();
    assert!(other.store.chunks(&file.digest).is_some_and(|chunks| !chunks.is_empty()));
}

#[tokio::test]
async fn local_model_directory_is_imported_and_reimported_when_changed() {
    let place = Place::new();
    let source = place.model("my model", 1000, 1);
    let first = place.fetch(&source, None).await.unwrap();
    let names: Vec<_> = first.manifest.files.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(place.fetch(&source, None).await.unwrap().manifest, first.manifest);

    place.model("my model", 1000, 2);
    assert!(!place.has(&source), "the folder has changed since");
    let second = place.fetch(&source, None).await.unwrap();
    assert_ne!(second.manifest.digest, first.manifest.digest);
    // The store's copy is its own: what happens to the original does not reach it.
    verify(&first.dir).unwrap();
}

/// With the digest comes what is known of the chunks, and it goes with the content.
#[tokio::test]
async fn chunk_lists_are_stored_and_removed_with_their_weights() {
    let place = Place::new();
    let source = place.model("m", 0, 1);
    let data = noise((5 << 20) + 1, 1);
    let header = format!(r#"{{"t":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}}}}"#, data.len());
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    fs::write(place.path("m/model.safetensors"), &bytes).unwrap();
    let model = place.fetch(&source, None).await.unwrap();
    let weights = model.manifest.files.iter().find(|f| f.name == "model.safetensors").unwrap().clone();
    let chunks = place.store.chunks(&weights.digest).unwrap();
    let sizes: Vec<u64> = chunks.iter().map(|(size, _)| u64::from(*size)).collect();
    assert_eq!(sizes, [8 + header.len() as u64, 4 << 20, (1 << 20) + 1]);
    let mut rest = &bytes[..];
    for (size, digest) in chunks {
        let (chunk, after) = rest.split_at(size as usize);
        assert_eq!(hex::encode(digest), sha256(chunk));
        rest = after;
    }
    let others = model.manifest.files.iter().filter(|f| f.name != "model.safetensors");
    assert!(others.into_iter().all(|f| place.store.chunks(&f.digest).is_none()));
    let digest = model.manifest.digest;
    drop(model);
    place.store.remove(&digest).unwrap();
    assert_eq!(place.store.chunks(&weights.digest), None);
}

#[tokio::test]
async fn digest_of_a_local_source_is_known_without_fetching_it() {
    let place = Place::new();
    let source = place.model("m", 1000, 1);
    let heard = std::sync::Mutex::new(Vec::new());
    let listen = |event| heard.lock().unwrap().push(event);
    let before = place.store.local_digest(&source, &listen).unwrap();
    assert!(before.is_some());
    let weights = |event: &Event| match event {
        Event::File { name, done, total } if name.ends_with(".safetensors") => Some((*done, *total)),
        _ => None,
    };
    let read: Vec<_> = heard.lock().unwrap().iter().filter_map(weights).collect();
    assert!(
        read.is_sorted() && matches!(read.last(), Some((done, Some(total))) if done == total && *done > 0),
        "{read:?}"
    );
    assert_eq!(before, local_digest(&source, &|_| ()).unwrap());
    assert_eq!(before, Some(place.fetch(&source, None).await.unwrap().manifest.digest));

    place.model("m", 1000, 2);
    let after = place.store.local_digest(&source, &|_| ()).unwrap();
    assert_ne!(after, before);
    // Asked twice, it is remembered, and the store has not got it yet.
    assert_eq!(place.store.local_digest(&source, &|_| ()).unwrap(), after);
    assert!(!place.has(&source));
    assert_eq!(after, Some(place.fetch(&source, None).await.unwrap().manifest.digest));
    assert_eq!(place.store.local_digest(&"hf:a/b".parse().unwrap(), &|_| ()).unwrap(), None);
}

#[tokio::test]
async fn non_models_are_refused_with_the_reason() {
    let place = Place::new();
    let check = async |text: String, expect: &str| {
        let error = place.fetch(&text.parse().unwrap(), None).await.unwrap_err();
        assert!(error.to_string().contains(expect), "{error}");
        assert!(error.hint().is_some());
    };
    check(format!("file:{}", place.path("nowhere")), "no such file or folder").await;
    fs::create_dir(place.path("empty")).unwrap();
    check(format!("file:{}", place.path("empty")), "neither config.json with .safetensors").await;
    fs::write(place.path("weights.bin"), "x").unwrap();
    check(format!("file:{}", place.path("weights.bin")), "neither a folder nor a .gguf file").await;
}

#[tokio::test]
async fn model_is_placed_atomically_and_repaired_when_damaged() {
    let place = Place::new();
    let model = place.fetch(&place.model("m", 1000, 1), None).await.unwrap();
    let target = place.path("site/models/tiny");
    model.place(&target).unwrap();
    assert_eq!(verify(&target).unwrap(), model.manifest);
    model.place(&target).unwrap();

    fs::remove_file(target.join("tokenizer.json")).unwrap();
    assert!(matches!(read_manifest(&target), Err(Error::Corrupt { .. })));
    model.place(&target).unwrap();
    assert_eq!(verify(&target).unwrap(), model.manifest);

    let other = place.fetch(&place.model("n", 500, 2), None).await.unwrap();
    other.place(&target).unwrap();
    assert_eq!(verify(&target).unwrap(), other.manifest);
    let beside: Vec<_> = fs::read_dir(place.path("site/models")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(beside, ["tiny"], "something was left beside the folder");

    let mine = place.path("mine");
    fs::create_dir(&mine).unwrap();
    fs::write(mine.join("thesis.tex"), "").unwrap();
    let error = other.place(&mine).unwrap_err();
    assert!(error.to_string().contains("thesis.tex"), "{error}");
    assert!(mine.join("thesis.tex").exists());
}

#[tokio::test]
async fn files_that_other_users_can_change_are_copied_and_verified() {
    let place = Place::new();
    let model = place.fetch(&place.model("m", 1000, 1), None).await.unwrap();
    let shared = model.dir.join("model.safetensors");
    fs::set_permissions(&shared, PermissionsExt::from_mode(0o666)).unwrap();
    let target = place.path("site/models/tiny");
    model.place(&target).unwrap();
    // A user with write access changes the store's file: the placed copy stays as it was verified.
    fs::write(&shared, noise(1000, 2)).unwrap();
    assert_eq!(verify(&target).unwrap(), model.manifest);
    assert_eq!(fs::metadata(target.join("model.safetensors")).unwrap().permissions().mode() & 0o022, 0);
    // Done before, it is found.
    let other = place.path("site/models/other");
    assert!(matches!(model.place(&other), Err(Error::Corrupt { .. })));
    assert!(!other.exists());
}

#[tokio::test]
async fn full_store_evicts_the_least_recently_used_unpinned_model() {
    let place = Place::new();
    let [old, pinned, used] = [1, 2, 3].map(|seed| place.model(&format!("m{seed}"), 100_000, seed));
    for (source, age) in [(&old, 30), (&pinned, 300), (&used, 3000)] {
        let model = place.fetch(source, None).await.unwrap();
        let stamp = std::time::SystemTime::now() - std::time::Duration::from_secs(age);
        let path = place.store.path().join("used").join(model.manifest.digest.hex());
        fs::File::open(path).unwrap().set_modified(stamp).unwrap();
    }
    place.store.pin(&place.store.find(&pinned).unwrap().unwrap().manifest.digest).unwrap();
    let in_use = place.store.find(&used).unwrap().unwrap();

    let new = place.model("m4", 100_000, 4);
    place.fetch(&new, Some(330_000)).await.unwrap();
    assert!(!place.has(&old) && place.has(&pinned) && place.has(&used) && place.has(&new));
    assert!(place.store.bytes().unwrap() <= 330_000);

    let error = place.fetch(&place.model("m5", 200_000, 5), Some(330_000)).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    assert!(error.hint().unwrap().contains("storage.model_cache"));
    assert!(matches!(place.store.remove(&in_use.manifest.digest), Err(Error::Busy { .. })));

    let digest = in_use.manifest.digest;
    drop(in_use);
    assert!(place.store.remove(&digest).unwrap().freed >= 100_000);
    assert!(!place.has(&used));
}

#[tokio::test]
async fn models_share_identical_files_and_are_removed_independently() {
    let place = Place::new();
    let (a, b) = (place.model("a", 100_000, 1), place.model("b", 100_000, 1));
    fs::write(place.path("b/config.json"), "{\"other\":1}").unwrap();
    let digest = place.fetch(&a, None).await.unwrap().manifest.digest;
    place.fetch(&b, None).await.unwrap();
    assert!(place.store.bytes().unwrap() < 110_000);
    place.store.remove(&digest).unwrap();
    verify(&place.store.find(&b).unwrap().unwrap().dir).unwrap();
    // The content is still shared with whoever comes next.
    assert!(place.store.bytes().unwrap() > 100_000);
    place.fetch(&a, None).await.unwrap();
    assert!(place.store.bytes().unwrap() < 110_000);
}

#[tokio::test]
async fn leftovers_of_killed_fetches_are_removed_to_free_space() {
    let place = Place::new();
    let blob = place.store.path().join("blobs/00").join("0".repeat(64));
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    fs::write(&blob, noise(100_000, 1)).unwrap();
    let dead = place.store.path().join("assembly/1-1");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("x"), noise(100_000, 2)).unwrap();
    fs::write(place.store.path().join("assembly/1-1.lock"), "").unwrap();
    place.fetch(&place.model("m", 50_000, 1), Some(60_000)).await.unwrap();
    assert!(!blob.exists() && !dead.exists());
}

#[tokio::test]
async fn changed_manifest_is_refused() {
    let place = Place::new();
    let model = place.fetch(&place.model("m", 1000, 1), None).await.unwrap();
    let copy = place.path("copy");
    model.place(&copy).unwrap();
    let path = copy.join("textnlp-model.json");
    let text = fs::read_to_string(&path).unwrap();
    let check = |text: String, expect: &str| {
        fs::remove_file(&path).unwrap();
        fs::write(&path, text).unwrap();
        let error = verify(&copy).unwrap_err();
        assert!(error.to_string().contains(expect), "{error}");
    };
    check(text.replace("config.json", "../../etc/passwd"), "is not a file name");
    check(text.replace("\"bytes\": 1000", "\"bytes\": 1001"), "not that of the files");
    check(text.replace("\"format\": 1", "\"format\": 2"), "it has format 2");
    check("{".to_owned(), "EOF");
    verify(&model.dir).unwrap();
}

#[tokio::test]
async fn model_is_pulled_from_a_web_directory_and_from_a_web_file() {
    let place = Place::new();
    let standin = Standin::start().await;
    let weights = noise(100_000, 1);
    standin.put("hub/m/config.json", 200, b"{}".to_vec(), &[]);
    standin.put("hub/m/tokenizer.json", 200, b"{}".to_vec(), &[]);
    let index = br#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    standin.put("hub/m/model.safetensors.index.json", 200, index.to_vec(), &[]);
    standin.put("hub/m/model-00001-of-00002.safetensors", 200, weights.clone(), &[("etag", "\"one\"".to_owned())]);
    standin.put("hub/m/model-00002-of-00002.safetensors", 200, weights.clone(), &[("etag", "W/\"two\"".to_owned())]);
    standin.fault("00001-of-00002", [Fault::Cut(60_000)]);
    standin.fault("00002-of-00002", [Fault::Cut(60_000)]);
    let model = place.fetch(&format!("{}/m/", standin.hub).parse().unwrap(), None).await.unwrap();
    assert_eq!(model.manifest.files.len(), 5);
    verify(&model.dir).unwrap();
    assert_eq!(standin.requests("00001-of-00002")[1].headers["if-range"], "\"one\"");
    // A weak tag promises nothing about bytes: that one began again.
    assert!(!standin.requests("00002-of-00002")[1].headers.contains_key("range"));

    standin.put("hub/x.gguf", 200, weights.clone(), &[]);
    let right = format!("{}/x.gguf#sha256={}", standin.hub, sha256(&weights));
    assert_eq!(place.fetch(&right.parse().unwrap(), None).await.unwrap().manifest.files[0].name, "x.gguf");
    let wrong = format!("{}/x.gguf#sha256={}", standin.hub, "0".repeat(64));
    let error = place.fetch(&wrong.parse().unwrap(), None).await.unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    let error = place.fetch(&format!("{}/y.gguf", standin.hub).parse().unwrap(), None).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn weight_index_with_paths_outside_the_model_is_refused() {
    let place = Place::new();
    let standin = Standin::start().await;
    standin.put("hub/m/config.json", 200, b"{}".to_vec(), &[]);
    standin.put("hub/m/tokenizer.json", 200, b"{}".to_vec(), &[]);
    let index = br#"{"weight_map":{"a":"../../x.safetensors"}}"#;
    standin.put("hub/m/model.safetensors.index.json", 200, index.to_vec(), &[]);
    let error = place.fetch(&format!("{}/m/", standin.hub).parse().unwrap(), None).await.unwrap_err();
    assert!(error.to_string().contains("which is not a file name of weights"), "{error}");
}
