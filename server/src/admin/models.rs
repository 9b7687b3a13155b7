//! `admin models`: places models into the directories that a server reads, before the server of a pod starts.
//!
//! Models come into the pod's own directory, into a store shared by many pods, or from an image. In each case this
//! program verifies every byte against its digest before it reports success.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;
use serde_json::{Value, json};
use textnlp_models::{Digest, Event, FetchOptions, InvalidDigest, Model, Source, SourceError, Store};

/// The contents of the delivery file; exactly one of `cache`, `shared` and `image` is set.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Delivery {
    /// The download directory, on the same filesystem as the models, so that files can be hard-linked.
    #[serde(default)]
    cache: Option<Utf8PathBuf>,
    /// The most bytes that it holds.
    #[serde(default)]
    max_cache_bytes: u64,
    /// The store shared with other pods: models stay in it and are symlinked. Nothing is evicted from it, because other
    /// pods' models are unknown.
    #[serde(default)]
    shared: Option<Utf8PathBuf>,
    /// A read-only directory with provided models, which are symlinked.
    #[serde(default)]
    image: Option<Utf8PathBuf>,
    models: Vec<ListedModel>,
}

/// See [`Delivery`].
enum Way<'a> {
    Own(&'a Utf8Path),
    Shared(&'a Utf8Path),
    Image(&'a Utf8Path),
}

impl Delivery {
    fn way(&self) -> Option<Way<'_>> {
        match (&self.cache, &self.shared, &self.image) {
            (Some(cache), None, None) => Some(Way::Own(cache)),
            (None, Some(store), None) => Some(Way::Shared(store)),
            (None, None, Some(image)) => Some(Way::Image(image)),
            _ => None,
        }
    }
}

/// One model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListedModel {
    name: String,
    source: String,
    digest: String,
    path: Utf8PathBuf,
}

/// Why models were not delivered.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// The list.
    #[error("read {0}")]
    List(Utf8PathBuf, #[source] std::io::Error),
    /// The file is invalid.
    #[error("read {0}")]
    Invalid(Utf8PathBuf, #[source] serde_yaml::Error),
    /// The mode is missing or ambiguous.
    #[error("{0} must have exactly one of `cache`, `shared` and `image`")]
    Way(Utf8PathBuf),
    /// An image without a model of that digest.
    #[error("model {model} with digest {digest} is not in {image}, which contains {found}")]
    Absent {
        /// Its name.
        model: String,
        /// Its digest.
        digest: String,
        /// The folder.
        image: Utf8PathBuf,
        /// The models of the image.
        found: String,
    },
    /// A symlink could not be created.
    #[error("link model {0}")]
    Link(String, #[source] io::Error),
    /// An invalid digest.
    #[error("parse the digest of model {0}")]
    Digest(String, #[source] InvalidDigest),
    /// An invalid source.
    #[error("parse the source of model {0}")]
    Source(String, #[source] SourceError),
    /// The fetch or the verification failed.
    #[error("deliver model {0}")]
    Fetch(String, #[source] textnlp_models::Error),
}

/// Delivers the models of a list. Models that are in place, byte for byte, are not fetched again.
pub(crate) async fn deliver(list: &Utf8Path) -> Result<Value, DeliveryError> {
    let text = std::fs::read_to_string(list).map_err(|error| DeliveryError::List(list.to_owned(), error))?;
    deliver_text(list, &text).await
}

/// The same with the text of a list; `list` names it in errors.
pub(crate) async fn deliver_text(list: &Utf8Path, text: &str) -> Result<Value, DeliveryError> {
    let delivery: Delivery =
        serde_yaml::from_str(text).map_err(|error| DeliveryError::Invalid(list.to_owned(), error))?;
    let way = delivery.way().ok_or_else(|| DeliveryError::Way(list.to_owned()))?;
    let mut delivered = Vec::new();
    for model in &delivery.models {
        let digest: Digest = model.digest.parse().map_err(|error| DeliveryError::Digest(model.name.clone(), error))?;
        match way {
            Way::Own(_) if textnlp_models::verify(&model.path).is_ok_and(|there| there.digest == digest) => {}
            Way::Own(cache) => place(cache, delivery.max_cache_bytes, model, &digest).await?,
            Way::Shared(store) => {
                // An existing model is read completely and repaired if damaged; a fetched one is verified on arrival.
                let found = fetched(store, None, model, &digest).await?;
                link(model, &found.dir)?;
            }
            Way::Image(image) => link(model, &proven_in(image, model, &digest)?)?,
        }
        tracing::info!(model = model.name, %digest, "delivered");
        delivered.push(json!({ "name": model.name, "digest": digest.to_string() }));
    }
    Ok(json!({ "models": delivered }))
}

/// The model from a store of at most `most` bytes, locked while it is inspected.
async fn fetched(
    store: &Utf8Path,
    max_bytes: Option<u64>,
    model: &ListedModel,
    digest: &Digest,
) -> Result<Model, DeliveryError> {
    let fails = |error| DeliveryError::Fetch(model.name.clone(), error);
    let source: Source = model.source.parse().map_err(|error| DeliveryError::Source(model.name.clone(), error))?;
    let mut options = FetchOptions::from_env();
    options.expect = Some(*digest);
    options.max_cache_bytes = max_bytes;
    options.verify = true;
    let store = Store::open(store).map_err(fails)?;
    let name = model.name.clone();
    let found = store.fetch(&source, &options, &move |event| tell(&name, &event)).await.map_err(fails)?;
    // Bytes can match the source and still not be a valid model.
    textnlp_models::inspect(&found.dir).map_err(fails)?;
    Ok(found)
}

/// Into the pod's own folder.
async fn place(cache: &Utf8Path, max_bytes: u64, model: &ListedModel, digest: &Digest) -> Result<(), DeliveryError> {
    let fails = |error| DeliveryError::Fetch(model.name.clone(), error);
    let found = fetched(cache, Some(max_bytes).filter(|bytes| *bytes > 0), model, digest).await?;
    // The existing model is damaged or of another release: without its manifest it is replaced.
    let _ = std::fs::remove_file(model.path.join(textnlp_models::MANIFEST));
    found.place(&model.path).map_err(fails)?;
    textnlp_models::verify(&model.path).map(drop).map_err(fails)
}

/// How deep models may lie in an image, and how many folders of it are looked at.
const DEPTH: u32 = 3;
const FOLDERS: usize = 1000;

/// The folder of an image that has a model, after every byte of it was read.
fn proven_in(image: &Utf8Path, model: &ListedModel, digest: &Digest) -> Result<Utf8PathBuf, DeliveryError> {
    let fails = |error| DeliveryError::Fetch(model.name.clone(), error);
    let mut others = Vec::new();
    let mut left = vec![(image.to_owned(), 0)];
    for _ in 0..FOLDERS {
        let Some((folder, depth)) = left.pop() else { break };
        match textnlp_models::read_manifest(&folder) {
            Ok(Some(manifest)) if manifest.digest == *digest => {
                // The manifest claims the digest; the bytes must match it.
                let proven = textnlp_models::verify(&folder).map_err(fails)?;
                textnlp_models::inspect(&folder).map_err(fails)?;
                debug_assert_eq!(proven.digest, *digest);
                return Ok(folder);
            }
            Ok(Some(manifest)) => others.push(manifest.digest.to_string()),
            Ok(None) | Err(_) if depth < DEPTH => {
                let below = folder.read_dir_utf8().into_iter().flatten().flatten();
                let folders = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
                left.extend(folders.map(|entry| (entry.path().to_owned(), depth + 1)));
            }
            Ok(None) | Err(_) => {}
        }
    }
    let found = match others.is_empty() {
        true => "no model".to_owned(),
        false => others.join(", "),
    };
    Err(DeliveryError::Absent { model: model.name.clone(), digest: digest.to_string(), image: image.to_owned(), found })
}

/// Replaces a model's path by a symlink, atomically. The path belongs to this pod alone.
fn link(model: &ListedModel, folder: &Utf8Path) -> Result<(), DeliveryError> {
    let make = || -> io::Result<()> {
        let (Some(parent), Some(name)) = (model.path.parent(), model.path.file_name()) else {
            return Err(io::Error::other("its path is not a folder"));
        };
        std::fs::create_dir_all(parent)?;
        let fresh = parent.join(format!(".{name}.link"));
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::os::unix::fs::symlink(folder, &fresh)?,
        }
        std::fs::rename(&fresh, &model.path)
    };
    make().map_err(|error| DeliveryError::Link(model.name.clone(), error))
}

/// Logs slow phases, but not the progress within a file.
fn tell(model: &str, event: &Event) {
    match event {
        Event::Waiting { for_what, seconds } => tracing::info!(model, seconds, "waiting for {for_what}"),
        Event::Retrying { attempt, why } => tracing::warn!(model, attempt, "retrying: {why}"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(folder: &Utf8Path, digest: &str) -> Utf8PathBuf {
        written(folder, "cache", &folder.join("cache"), digest)
    }

    fn written(folder: &Utf8Path, way: &str, place: &Utf8Path, digest: &str) -> Utf8PathBuf {
        let list = folder.join("models.yaml");
        let text = json!({
            way: place,
            "models": [{ "name": "textnlp-tiny", "source": "bundled", "digest": digest, "path": folder.join("models/tiny") }],
        });
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(&list, text.to_string()).unwrap();
        list
    }

    /// The largest file of a model is not what it was, at the same length.
    fn damage(model: &Utf8Path) {
        let manifest = textnlp_models::read_manifest(model).unwrap().unwrap();
        let weights = model.join(&manifest.files.iter().max_by_key(|file| file.bytes).unwrap().name);
        let mut bytes = std::fs::read(&weights).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        // Contents are read-only, and have several names.
        std::fs::remove_file(&weights).unwrap();
        std::fs::write(&weights, bytes).unwrap();
    }

    #[tokio::test]
    async fn pods_share_a_fetched_model_and_each_verifies_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let shared = folder.join("shared");
        let digest = textnlp_models::bundled_digest().unwrap().to_string();
        let pods = ["one", "two", "three"].map(|pod| folder.join(pod));
        let lists = pods.clone().map(|pod| written(&pod, "shared", &shared, &digest));
        let (one, two, three) = tokio::join!(deliver(&lists[0]), deliver(&lists[1]), deliver(&lists[2]));
        for report in [one, two, three] {
            assert_eq!(report.unwrap()["models"][0]["digest"], digest);
        }
        let there = |pod: &Utf8Path| pod.join("models/tiny").read_link_utf8().unwrap();
        assert!(pods.iter().all(|pod| there(pod) == there(&pods[0]) && there(pod).starts_with(&shared)));
        // Damage is found by the next that comes, and mended for all.
        damage(&there(&pods[0]));
        assert!(textnlp_models::verify(&pods[0].join("models/tiny")).is_err());
        deliver(&lists[1]).await.unwrap();
        assert_eq!(textnlp_models::verify(&pods[0].join("models/tiny")).unwrap().digest.to_string(), digest);
    }

    #[tokio::test]
    async fn models_from_an_image_are_verified() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let digest = textnlp_models::bundled_digest().unwrap().to_string();
        // As somebody packs it: the folder of a model somewhere in it.
        let image = folder.join("image");
        let store = Store::open(folder.join("store")).unwrap();
        let model = store.fetch(&Source::Bundled, &FetchOptions::from_env(), &|_| ()).await.unwrap();
        model.place(&image.join("models/textnlp-tiny")).unwrap();
        let list = written(&folder.join("pod"), "image", &image, &digest);
        deliver(&list).await.unwrap();
        let place = folder.join("pod/models/tiny");
        assert_eq!(place.read_link_utf8().unwrap(), image.join("models/textnlp-tiny"));
        // Once more, as a container that is restarted does it.
        deliver(&list).await.unwrap();

        let other = written(&folder.join("other"), "image", &image, &format!("sha256:{}", "0".repeat(64)));
        let error = deliver(&other).await.unwrap_err();
        assert!(error.to_string().ends_with(&format!("which contains {digest}")), "{error}");
        damage(&image.join("models/textnlp-tiny"));
        let error = deliver(&list).await.unwrap_err();
        assert!(matches!(error, DeliveryError::Fetch(..)), "{error}");
        std::fs::remove_dir_all(&image).unwrap();
        let error = deliver(&list).await.unwrap_err();
        assert!(error.to_string().ends_with("which contains no model"), "{error}");
    }

    #[tokio::test]
    async fn model_list_with_two_sources_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let list = Utf8Path::from_path(folder.path()).unwrap().join("models.yaml");
        for text in ["{ models: [] }", "{ cache: /a, shared: /b, models: [] }"] {
            std::fs::write(&list, text).unwrap();
            assert!(matches!(deliver(&list).await, Err(DeliveryError::Way(_))), "{text}");
        }
    }

    #[tokio::test]
    async fn model_is_delivered_once_and_repaired_when_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let digest = textnlp_models::bundled_digest().unwrap().to_string();
        let list = list(folder, &digest);
        let report = deliver(&list).await.unwrap();
        assert_eq!(report["models"][0]["digest"], digest);
        let model = folder.join("models/tiny");
        assert_eq!(textnlp_models::verify(&model).unwrap().digest.to_string(), digest);

        let manifest = textnlp_models::read_manifest(&model).unwrap().unwrap();
        let weights = manifest.files.iter().max_by_key(|file| file.bytes).unwrap();
        std::fs::remove_file(model.join(&weights.name)).unwrap();
        deliver(&list).await.unwrap();
        assert_eq!(textnlp_models::verify(&model).unwrap().digest.to_string(), digest);
    }

    #[tokio::test]
    async fn model_with_an_unexpected_digest_is_not_delivered() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let error = deliver(&list(folder, &format!("sha256:{}", "0".repeat(64)))).await.unwrap_err();
        assert!(matches!(&error, DeliveryError::Fetch(model, _) if model == "textnlp-tiny"), "{error}");
        assert!(!folder.join("models/tiny").exists());
    }
}
