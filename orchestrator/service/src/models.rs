//! Models by their source: what they are, and why one cannot be used.

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_models::{Catalogue, Error, FetchOptions, Source, Store, Summary, WeightFormat, inspect_as};

use crate::{Exit, Failure, RerunFlags, quoted};

/// Inspects a folder, with the loss of weights that are held in this format. Other sources are looked up in the cache, then among the embedded models, then in the catalogue.
pub async fn look(
    source: &str,
    held: WeightFormat,
    here: &Utf8Path,
    cache: impl FnOnce() -> Result<Utf8PathBuf, Failure>,
    again: &RerunFlags,
) -> Result<Summary, Failure> {
    match read(source, here, cache, |path| inspect_as(path, held)).await? {
        Some(summary) => Ok(summary),
        None => match Catalogue::embedded().get(source) {
            Some(entry) => Ok(entry.summary()),
            None => Err(not_in_cache(source, again)),
        },
    }
}

/// What `read` makes of a model's folder or `.gguf` file; `None` if the source is not on this machine.
pub async fn read<T>(
    source: &str,
    here: &Utf8Path,
    cache: impl FnOnce() -> Result<Utf8PathBuf, Failure>,
    read: impl FnOnce(&Utf8Path) -> textnlp_models::Result<T>,
) -> Result<Option<T>, Failure> {
    let folder = here.join(source);
    if folder.is_dir() {
        return read(&folder).map(Some).map_err(failed_in_folder);
    }
    let parsed: Source = source.parse().map_err(|e| failed(Error::Source(e)))?;
    if let Source::File(path) = &parsed {
        return read(path).map(Some).map_err(failed_in_folder);
    }
    if let Some(store) = Store::existing(cache()?).map_err(failed)?
        && let Some(digest) = store.recorded(&parsed).map_err(failed)?
        && let Some(folder) = store.model_folder(&digest).map_err(failed)?
    {
        return read(&folder).map(Some).map_err(failed);
    }
    if parsed.resolve().map_err(|e| failed(Error::Source(e)))? == Source::Bundled {
        return carried(read).await.map(Some);
    }
    Ok(None)
}

/// The refusal of a model that is not on this machine.
pub fn not_in_cache(source: &str, again: &RerunFlags) -> Failure {
    Failure::usage("not_in_cache", anyhow::anyhow!("{source} is not in the cache"))
        .hint(again.bare(&format!("model pull {}", quoted(source))))
}

/// What `read` makes of the embedded model, unpacked into a temporary folder.
async fn carried<T>(read: impl FnOnce(&Utf8Path) -> textnlp_models::Result<T>) -> Result<T, Failure> {
    let folder = tempfile::tempdir().context("create a folder to unpack the bundled model into")?;
    let folder = Utf8Path::from_path(folder.path()).context("the temporary folder's path is not UTF-8")?;
    let store = Store::open(folder).map_err(failed)?;
    let model = store.fetch(&Source::Bundled, &FetchOptions::from_env(), &|_| ()).await.map_err(failed)?;
    read(&model.dir).map_err(failed)
}

/// A model in a user-provided folder must be fixed there.
fn failed_in_folder(error: Error) -> Failure {
    let hint = error.hint_for_folder();
    failed(error).hinted(hint)
}

/// Converts an error about models.
pub fn failed(error: Error) -> Failure {
    let hint = error.hint();
    let exit = if matches!(error, Error::Source(_) | Error::NotFound { .. }) { Exit::Usage } else { Exit::Failed };
    Failure::new(exit, "model", error).hinted(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bundled_model_is_found_under_each_of_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let (here, again) = (Utf8Path::from_path(folder.path()).unwrap(), RerunFlags::default());
        let look = async |source| look(source, WeightFormat::AsIs, here, || Ok(here.join("model-cache")), &again).await;
        let tiny = look("bundled").await.unwrap();
        assert!(tiny.digest.is_some() && !tiny.files.is_empty() && tiny.parameters > 1_000_000, "{tiny:?}");
        for name in ["bundled:textnlp-tiny", "textnlp-tiny"] {
            let found = look(name).await.unwrap();
            assert_eq!((found.digest, found.parameters), (tiny.digest, tiny.parameters), "{name}");
        }
        let wrong = look("bundled:gpt2").await.unwrap_err();
        assert!(format!("{:#}", wrong.error).contains("contains only the model `textnlp-tiny`"), "{:#}", wrong.error);
    }
}
