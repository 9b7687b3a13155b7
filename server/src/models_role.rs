//! `serve --role models`: models into the folders that a server reads, where nobody else delivers them: before a pod's server begins.

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;
use serde_json::{Value, json};
use textnlp_models::{Digest, Event, FetchOptions, InvalidDigest, Source, SourceError, Store};

/// What is delivered, as its file has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Delivery {
    /// Where downloads are kept until they are in place: on the filesystem of the models, with which it shares their files.
    cache: Utf8PathBuf,
    /// The most bytes that it holds.
    #[serde(default)]
    max_cache_bytes: u64,
    models: Vec<Wanted>,
}

/// One model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
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
    /// What is in it.
    #[error("read {0}")]
    Invalid(Utf8PathBuf, #[source] serde_yaml::Error),
    /// A digest that is none.
    #[error("the digest of model {0}")]
    Digest(String, #[source] InvalidDigest),
    /// A source that is none.
    #[error("the source of model {0}")]
    Source(String, #[source] SourceError),
    /// The fetch, or what came.
    #[error("deliver model {0}")]
    Fetch(String, #[source] textnlp_models::Error),
}

/// Delivers what a list names. What is in its place already, byte for byte, is not fetched again.
pub(crate) async fn deliver(list: &Utf8Path) -> Result<Value, DeliveryError> {
    let text = std::fs::read_to_string(list).map_err(|error| DeliveryError::List(list.to_owned(), error))?;
    let delivery: Delivery =
        serde_yaml::from_str(&text).map_err(|error| DeliveryError::Invalid(list.to_owned(), error))?;
    let mut delivered = Vec::new();
    for model in &delivery.models {
        let digest: Digest = model.digest.parse().map_err(|error| DeliveryError::Digest(model.name.clone(), error))?;
        if !textnlp_models::verify(&model.path).is_ok_and(|there| there.digest == digest) {
            place(&delivery, model, &digest).await?;
        }
        delivered.push(json!({ "name": model.name, "digest": digest.to_string() }));
    }
    Ok(json!({ "models": delivered }))
}

async fn place(delivery: &Delivery, model: &Wanted, digest: &Digest) -> Result<(), DeliveryError> {
    let fails = |error| DeliveryError::Fetch(model.name.clone(), error);
    let source: Source = model.source.parse().map_err(|error| DeliveryError::Source(model.name.clone(), error))?;
    let mut options = FetchOptions::from_env();
    options.expect = Some(*digest);
    options.max_cache_bytes = Some(delivery.max_cache_bytes).filter(|bytes| *bytes > 0);
    let store = Store::open(&delivery.cache).map_err(fails)?;
    let name = model.name.clone();
    let found = store.fetch(&source, &options, &move |event| tell(&name, &event)).await.map_err(fails)?;
    // What is there is damaged or of another release: without its manifest it is replaced, whatever is left of it.
    let _ = std::fs::remove_file(model.path.join(textnlp_models::MANIFEST));
    // Bytes can be exactly what the source has and still be no model.
    textnlp_models::inspect(&found.dir).map_err(fails)?;
    found.place(&model.path).map_err(fails)?;
    let placed = textnlp_models::verify(&model.path).map_err(fails)?;
    tracing::info!(model = model.name, digest = %placed.digest, "delivered");
    Ok(())
}

/// What takes long is told; how far a file is would be told too often.
fn tell(model: &str, event: &Event) {
    match event {
        Event::Waiting { for_what, seconds } => tracing::info!(model, seconds, "waits for {for_what}"),
        Event::Retrying { attempt, why } => tracing::warn!(model, attempt, "tries again: {why}"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(folder: &Utf8Path, digest: &str) -> Utf8PathBuf {
        let list = folder.join("models.yaml");
        let text = json!({
            "cache": folder.join("cache"),
            "models": [{ "name": "textnlp-tiny", "source": "bundled", "digest": digest, "path": folder.join("models/tiny") }],
        });
        std::fs::write(&list, text.to_string()).unwrap();
        list
    }

    #[tokio::test]
    async fn a_model_is_delivered_once_and_mended_when_it_is_not_what_was_delivered() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let digest = textnlp_models::bundled_digest().unwrap().to_string();
        let list = list(folder, &digest);
        let said = deliver(&list).await.unwrap();
        assert_eq!(said["models"][0]["digest"], digest);
        let model = folder.join("models/tiny");
        assert_eq!(textnlp_models::verify(&model).unwrap().digest.to_string(), digest);

        let manifest = textnlp_models::read_manifest(&model).unwrap().unwrap();
        let weights = manifest.files.iter().max_by_key(|file| file.bytes).unwrap();
        std::fs::remove_file(model.join(&weights.name)).unwrap();
        deliver(&list).await.unwrap();
        assert_eq!(textnlp_models::verify(&model).unwrap().digest.to_string(), digest);
    }

    #[tokio::test]
    async fn what_is_not_the_digest_that_was_asked_for_is_not_put_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let error = deliver(&list(folder, &format!("sha256:{}", "0".repeat(64)))).await.unwrap_err();
        assert!(matches!(&error, DeliveryError::Fetch(model, _) if model == "textnlp-tiny"), "{error}");
        assert!(!folder.join("models/tiny").exists());
    }
}
