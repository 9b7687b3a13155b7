//! The store on its own: local and web sources, placing, eviction, damage.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

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
async fn pooling_of_an_encoder_is_kept_beside_its_other_files() {
    let place = Place::new();
    let source = place.model("encoder", 10, 1);
    let dir = place.path("encoder");
    fs::write(dir.join("modules.json"), "[]").unwrap();
    for folder in ["1_Pooling", "2_Dense"] {
        fs::create_dir(dir.join(folder)).unwrap();
        fs::write(dir.join(folder).join("config.json"), folder).unwrap();
    }
    let model = place.fetch(&source, None).await.unwrap();
    let names: Vec<&str> = model.manifest.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["1_Pooling.config.json", "config.json", "model.safetensors", "modules.json", "tokenizer.json"]);
    assert_eq!(fs::read_to_string(model.dir.join("1_Pooling.config.json")).unwrap(), "1_Pooling");
    assert_eq!(local_digest(&source, &|_| {}).unwrap(), Some(model.manifest.digest));
    verify(&model.dir).unwrap();
    fs::write(dir.join("1_Pooling/config.json"), "other").unwrap();
    assert!(!place.has(&source), "it belongs to the model");
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

/// What a link of a model's author leads to would be served and packed into bundles.
#[tokio::test]
async fn links_of_a_model_stay_in_its_folder_or_in_a_cache_of_a_hub() {
    let place = Place::new();
    let source = place.model("linked", 100, 1);
    let (folder, secret) = (place.path("linked"), place.path("credentials"));
    fs::write(&secret, "CANARY").unwrap();
    for name in ["chat_template.jinja", "model.safetensors", "tokenizer.json"] {
        let _ = fs::remove_file(folder.join(name));
        std::os::unix::fs::symlink(&secret, folder.join(name)).unwrap();
        let error = place.fetch(&source, None).await.unwrap_err();
        assert!(error.to_string().contains("is a link to a file outside of the model's folder"), "{error}");
        assert!(local_digest(&source, &|_| ()).is_err());
        fs::remove_file(folder.join(name)).unwrap();
        place.model("linked", 100, 1);
    }
    let blobs = place.path("hub/models--a--b/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::rename(folder.join("model.safetensors"), blobs.join("0123")).unwrap();
    std::os::unix::fs::symlink("../hub/models--a--b/blobs/0123", folder.join("model.safetensors")).unwrap();
    fs::rename(folder.join("config.json"), folder.join("other.json")).unwrap();
    std::os::unix::fs::symlink("other.json", folder.join("config.json")).unwrap();
    place.fetch(&source, None).await.unwrap();
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

#[test]
fn download_that_a_process_writes_or_holds_is_not_removed_as_abandoned() {
    let place = Place::new();
    let partial = place.store.path().join("partial");
    let seconds = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    let [running, stopped] = ["1", "2"].map(|digit| digit.repeat(32));
    let name = |key: &str, end: &str| partial.join(format!("{key}.{end}"));
    let write_at = |path: Utf8PathBuf, at: Option<SystemTime>| {
        fs::write(&path, "partial text").unwrap();
        at.into_iter().for_each(|at| fs::File::open(&path).unwrap().set_modified(at).unwrap());
    };
    let write = |key: &str, end: &str, at| write_at(name(key, end), at);
    // What is recorded of a download is written once, when it begins.
    write(&running, "json", Some(seconds(1)));
    write(&running, "part", None);
    write(&stopped, "json", Some(seconds(1)));
    write(&stopped, "part", Some(seconds(1)));
    // No download of the store has this name.
    let other = partial.join("film.part");
    write_at(other.clone(), Some(seconds(1)));
    let found = place.store.abandoned(seconds(1000)).unwrap();
    let [download] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((&download.path, download.bytes), (&name(&stopped, "part"), 12));

    let held = textnlp_files::Lock::try_exclusive(name(&stopped, "lock"), 0o600).unwrap();
    assert!(held.is_some() && !place.store.remove_abandoned(download).unwrap(), "a process verifies it");
    drop(held);
    write(&stopped, "part", Some(seconds(2)));
    assert!(!place.store.remove_abandoned(download).unwrap(), "it was continued");
    write(&stopped, "part", Some(seconds(1)));
    assert!(place.store.remove_abandoned(download).unwrap());
    let left = [&running, &stopped].map(|key| ["json", "part"].map(|end| name(key, end).exists()));
    assert_eq!((left, other.exists()), ([[true, true], [false, false]], true));
}

/// The paths of everything in a folder, with the times of their last change of state.
fn tree(folder: &Utf8Path) -> Vec<(Utf8PathBuf, i64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    for entry in folder.read_dir_utf8().unwrap() {
        let path = entry.unwrap().into_path();
        let there = path.symlink_metadata().unwrap();
        found.push((path.clone(), there.ctime(), there.ctime_nsec()));
        if there.is_dir() {
            found.extend(tree(&path));
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn store_that_is_only_read_is_not_changed() {
    let place = Place::new();
    let other = place.path("other");
    assert!(Store::existing(&other).unwrap().is_none() && !other.exists());
    fs::create_dir(&other).unwrap();
    assert!(Store::existing(&other).unwrap().is_none() && tree(&other).is_empty());

    let source = place.model("m", 1000, 1);
    let digest = place.fetch(&source, None).await.unwrap().manifest.digest;
    fs::remove_dir_all(place.store.path().join("locks")).unwrap();
    let before = tree(place.store.path());
    let store = Store::existing(place.store.path()).unwrap().unwrap();
    assert_eq!(store.recorded(&source).unwrap(), Some(digest));
    assert!(store.model_folder(&digest).unwrap().is_some_and(|folder| verify(&folder).is_ok()));
    assert_eq!(store.list().unwrap().len(), 1);
    assert!(store.abandoned(SystemTime::now()).unwrap().is_empty());
    place.model("m", 1000, 2);
    assert_ne!(store.local_digest(&source, &|_| ()).unwrap(), Some(digest));
    assert_eq!(store.recorded(&source).unwrap(), None);
    assert_eq!(tree(place.store.path()), before);
}

/// An image layout: folders of another program with contents under their digests.
fn image_layout(folder: &Utf8Path) -> Utf8PathBuf {
    let blob = folder.join("blobs/sha256").join(sha256(b"layer"));
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    fs::write(folder.join("oci-layout"), "{}").unwrap();
    fs::write(&blob, "layer").unwrap();
    blob
}

#[test]
fn folder_with_other_files_is_refused_and_stays_as_it_is() {
    let place = Place::new();
    let other = place.path("images");
    image_layout(&other);
    let before = tree(&other);
    for error in [Store::open(&other).unwrap_err(), Store::existing(&other).unwrap_err()] {
        let text = error.to_string();
        assert!(text.contains(other.as_str()) && text.contains("no `textnlp-model-cache`"), "{text}");
        assert!(error.hint().unwrap().contains("empty or does not exist"), "{error:?}");
    }
    assert_eq!(tree(&other), before);
    // A new filesystem is empty, although it has this folder.
    fs::create_dir_all(place.path("volume/lost+found")).unwrap();
    assert!(Store::existing(place.path("volume")).unwrap().is_none());
    Store::open(place.path("volume")).unwrap();
    assert!(Store::existing(place.path("volume")).unwrap().is_some());
}

#[tokio::test]
async fn store_of_a_version_without_markers_is_opened_and_marked() {
    let place = Place::new();
    let source = place.model("m", 1000, 1);
    place.fetch(&source, None).await.unwrap();
    let (store, marker) = (place.store.path(), place.path("store/textnlp-model-cache"));
    fs::remove_file(&marker).unwrap();
    assert_eq!(Store::existing(store).unwrap().unwrap().list().unwrap().len(), 1);
    assert!(!marker.exists(), "it was only read");
    // Others make folders of these names and tags, but not all of them.
    for name in ["CACHEDIR.TAG", "pins"] {
        let (path, away) = (store.join(name), place.path("away"));
        fs::rename(&path, &away).unwrap();
        assert!(Store::open(store).is_err(), "without {name}");
        fs::rename(&away, &path).unwrap();
    }
    let tag = fs::read(store.join("CACHEDIR.TAG")).unwrap();
    fs::write(store.join("CACHEDIR.TAG"), [&tag, &b"# by another program\n"[..]].concat()).unwrap();
    assert!(Store::open(store).is_err());
    fs::write(store.join("CACHEDIR.TAG"), &tag).unwrap();
    assert!(Store::open(store).unwrap().find(&source).unwrap().is_some());
    assert!(marker.is_file());
}

#[test]
fn processes_that_create_a_store_at_once_all_open_it() {
    let place = Place::new();
    for round in 0..50 {
        let other = place.path(&format!("new {round}"));
        std::thread::scope(|scope| {
            let opened: Vec<_> = (0..4).map(|_| scope.spawn(|| Store::open(&other).map(drop))).collect();
            opened.into_iter().for_each(|opened| opened.join().unwrap().unwrap());
        });
    }
}

#[tokio::test]
async fn eviction_removes_no_file_that_the_store_did_not_name() {
    let place = Place::new();
    let store = place.store.path();
    // A folder that an earlier version used beside the files of another program.
    let mut kept = vec![image_layout(store)];
    fs::remove_file(store.join("textnlp-model-cache")).unwrap();
    let place = Place { store: Store::open(store).unwrap(), folder: place.folder };
    let store = place.store.path();
    let digits = |digit: &str| digit.repeat(64);
    for name in [
        format!("blobs/ab/{}", digits("0")),
        format!("blobs/AB/{}", "AB".repeat(32)),
        "blobs/ab/notes".to_owned(),
        format!("blobs/ab/{}.tar", "ab".repeat(32)),
        format!("chunks/sha256/{}", digits("0")),
    ] {
        kept.push(store.join(name));
    }
    let orphan = store.join("blobs/00").join(digits("0"));
    for path in kept[1..].iter().chain([&orphan]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, noise(20_000, 1)).unwrap();
    }
    // Nothing that may be removed is enough, so all of it is.
    let error = place.fetch(&place.model("m", 50_000, 1), Some(60_000)).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    let gone: Vec<_> = kept.iter().filter(|path| !path.exists()).collect();
    assert!(gone.is_empty() && !orphan.exists(), "{gone:?}");
}

/// The path of a partial download of a file whose digest is not known.
fn partial(store: &Store, url: &str, end: &str) -> Utf8PathBuf {
    let key = sha256(format!("{url} Nothing").as_bytes());
    store.path().join("partial").join(format!("{}.{end}", &key[..32]))
}

#[tokio::test]
async fn links_in_the_store_are_not_followed_for_writing() {
    use std::os::unix::fs::symlink;
    let place = Place::new();
    let source = place.model("m", 1000, 1);
    let digest = place.fetch(&source, None).await.unwrap().manifest.digest;
    let (mine, new) = (place.path("mine"), place.path("new"));
    fs::write(&mine, "mine alone").unwrap();
    fs::set_permissions(&mine, PermissionsExt::from_mode(0o600)).unwrap();
    fs::remove_file(place.store.path().join("used").join(digest.hex())).unwrap();
    for folder in ["used", "pins"] {
        symlink(&mine, place.store.path().join(folder).join(digest.hex())).unwrap();
    }
    place.fetch(&source, None).await.unwrap();
    place.store.pin(&digest).unwrap();
    assert!(place.store.list().unwrap()[0].pinned);

    let standin = Standin::start().await;
    let url = format!("{}/x.gguf", standin.hub);
    standin.put("hub/x.gguf", 200, noise(1000, 1), &[("etag", "\"one\"".to_owned())]);
    let (part, state) = (partial(&place.store, &url, "part"), partial(&place.store, &url, "json"));
    fs::write(&state, format!(r#"{{"url":"{url}","etag":"\"one\"","bytes":null}}"#)).unwrap();
    symlink(&new, &part).unwrap();
    place.fetch(&url.parse().unwrap(), None).await.unwrap_err();
    assert!(!new.exists());
    for link in
        [|from: &Utf8Path, to: &Utf8Path| symlink(from, to), |from: &Utf8Path, to: &Utf8Path| fs::hard_link(from, to)]
    {
        fs::remove_file(&part).unwrap();
        link(&mine, &part).unwrap();
        place.fetch(&url.parse().unwrap(), None).await.unwrap_err();
    }
    assert_eq!(fs::read(&mine).unwrap(), b"mine alone");
    assert_eq!(fs::metadata(&mine).unwrap().permissions().mode() & 0o777, 0o600);
    fs::remove_file(&part).unwrap();
    place.fetch(&url.parse().unwrap(), None).await.unwrap();
}

#[tokio::test]
async fn records_that_other_users_can_change_do_not_say_what_a_source_means() {
    let place = Place::new();
    let model = place.fetch(&place.model("m", 1000, 1), None).await.unwrap();
    let source: Source = "hf:org/model".parse().unwrap();
    let name = source.resolve().unwrap().to_string();
    let record = format!(r#"{{"source":"{name}","digest":"{}","fingerprint":null}}"#, model.manifest.digest);
    let path = place.store.path().join("refs").join(format!("{}.json", &sha256(name.as_bytes())[..32]));
    fs::write(&path, record).unwrap();
    let options = FetchOptions { offline: true, limits: quick(), ..FetchOptions::default() };
    let digest = place.store.fetch(&source, &options, &|_| {}).await.unwrap().manifest.digest;
    assert_eq!(digest, model.manifest.digest);

    for (exposed, mode) in [(path.as_path(), 0o666), (path.parent().unwrap(), 0o777), (place.store.path(), 0o777)] {
        let before = fs::metadata(exposed).unwrap().permissions();
        fs::set_permissions(exposed, PermissionsExt::from_mode(mode)).unwrap();
        assert!(place.store.recorded(&source).unwrap().is_none() && !place.has(&source), "{exposed}");
        let error = place.store.fetch(&source, &options, &|_| {}).await.unwrap_err();
        assert!(error.to_string().contains("other users can change"), "{error}");
        assert!(error.hint().unwrap().contains("`digest`"));
        // A digest that the operator or the release lock names does not depend on the record.
        let locked = FetchOptions { expect: Some(digest), ..options.clone() };
        assert_eq!(place.store.fetch(&source, &locked, &|_| {}).await.unwrap().manifest.digest, digest);
        fs::set_permissions(exposed, before).unwrap();
    }
    assert!(place.has(&source));
}

#[tokio::test]
async fn partial_download_that_other_users_can_change_is_not_continued_without_a_digest() {
    let place = Place::new();
    let standin = Standin::start().await;
    let weights = noise(100_000, 1);
    standin.put("hub/x.gguf", 200, weights.clone(), &[("etag", "\"one\"".to_owned())]);
    let url = format!("{}/x.gguf", standin.hub);
    fs::write(partial(&place.store, &url, "part"), noise(60_000, 2)).unwrap();
    let state = format!(r#"{{"url":"{url}","etag":"\"one\"","bytes":100000}}"#);
    fs::write(partial(&place.store, &url, "json"), state).unwrap();
    fs::set_permissions(place.store.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let model = place.fetch(&url.parse().unwrap(), None).await.unwrap();
    assert_eq!(fs::read(model.dir.join("x.gguf")).unwrap(), weights);
}

#[test]
fn links_in_a_store_that_came_from_elsewhere_are_refused() {
    let place = Place::new();
    let (other, mine) = (place.path("other"), place.path("mine"));
    fs::create_dir_all(mine.join("Cargo")).unwrap();
    fs::write(mine.join("Cargo.lock"), "").unwrap();
    for folder in ["assembly", "blobs", "models"] {
        Store::open(&other).unwrap();
        fs::remove_dir(other.join(folder)).unwrap();
        std::os::unix::fs::symlink(&mine, other.join(folder)).unwrap();
        assert!(Store::open(&other).is_err() && Store::existing(&other).is_err(), "{folder}");
        fs::remove_dir_all(&other).unwrap();
    }
    assert!(mine.join("Cargo").is_dir() && mine.join("Cargo.lock").is_file());
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
