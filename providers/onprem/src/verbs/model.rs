//! Model files: fetched once into a cache by digest, placed into the site by links.

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Map, Value, json};
use textnlp_files::{Exposed, Exposure};
use textnlp_keys::{
    Marker, SiteFolder,
    files::{self, Stamp},
};
use textnlp_models::{Digest, Event, FetchOptions, Model, Source, Store};
use textnlp_provider::{Error, ErrorKind, Progress, Result};

use super::{Observation, ObservedObject, Work};
use crate::jobs::{JobMessage, JobStatus};
use crate::spec::ModelSpec;

pub(super) async fn put(work: &Work<'_>) -> Result<Progress> {
    let spec: ModelSpec = work.spec()?;
    let path = work.folder.inside(&spec.path)?;
    work.refuse_strangers(&path)?;
    let cloud_id = work.folder.cloud_id(&spec.path)?;
    if work.marker.as_ref().is_none_or(|marker| marker.complete || marker.operation != work.op.id) {
        work.claim(&cloud_id, Map::new())?;
    }
    let options = work.provider.options();
    let (fetch, cache) = (options.models.clone(), options.model_cache.clone());
    let (name, subject, source) = (spec.name.clone(), work.op.resource.to_string(), spec.source.clone());
    let copies = work.folder.join(COPIES);
    let begun = work.provider.jobs().look(work.op, move |saying| async move {
        let placed = match copied(&spec, &copies) {
            Some(copy) => {
                saying.say(format!("uses the copy in {copy}"));
                place_copy(copy, &path).await
            }
            None => fetch_and_place(&spec, fetch.clone(), &cache, &path, &saying).await,
        };
        let placed = match placed {
            // A damaged copy counts as missing.
            Err(PlacementError::Models(textnlp_models::Error::Corrupt { .. })) if copied(&spec, &copies).is_some() => {
                fetch_and_place(&spec, fetch, &cache, &path, &saying).await
            }
            placed => placed,
        };
        placed.map_err(|failed| failed.explained(&subject, &source))
    });
    let status = match begun.await {
        Ok(status) => status,
        // The fetch has retried enough by itself. Further retries would block a `down` while the source is unavailable.
        // The next `up` starts again.
        Err(error) => return Ok(Progress::Failed { left: None, error }),
    };
    match status {
        JobStatus::GoesOn(says) => Ok(work.pending(json!({ "step": "fetch" }), format!("{name}: {says}"))),
        JobStatus::Ended(facts) => {
            let marker = work.complete(&cloud_id, facts)?;
            work.done(&marker).await
        }
    }
}

/// The folder of the site agent's copies of the primary's models, by digest.
const COPIES: &str = "data/control/copies/models";

/// Whether a site has a copy of exactly the wanted model.
pub(crate) fn has_copy(folder: &SiteFolder, spec: &ModelSpec) -> bool {
    copied(spec, &folder.join(COPIES)).is_some()
}

fn copied(spec: &ModelSpec, copies: &Utf8Path) -> Option<Utf8PathBuf> {
    let digest: Digest = spec.digest.as_ref()?.parse().ok()?;
    let folder = copies.join(digest.hex());
    textnlp_models::read_manifest(&folder).ok().flatten().filter(|manifest| manifest.digest == digest).map(|_| folder)
}

/// Copies a model byte for byte: the source belongs to the site agent, which may remove it.
async fn place_copy(copy: Utf8PathBuf, path: &Utf8Path) -> Result<Map<String, Value>, PlacementError> {
    let path = path.to_owned();
    let placed = tokio::task::spawn_blocking(move || -> Result<Map<String, Value>, PlacementError> {
        let manifest = textnlp_models::verify(&copy)?;
        let names = manifest.files.iter().map(|file| file.name.as_str()).chain([textnlp_models::MANIFEST]);
        place(&path, &manifest.digest.to_string(), |new| {
            files::make_folder(new)?;
            for name in names {
                std::fs::copy(copy.join(name), new.join(name))?;
            }
            Ok(())
        })?;
        textnlp_models::verify(&path)?;
        facts(&path).map_err(PlacementError::Io)
    });
    placed.await.map_err(|error| PlacementError::Io(std::io::Error::other(error)))?
}

/// Why a model could not be placed.
enum PlacementError {
    Models(textnlp_models::Error),
    Source(String),
    Io(std::io::Error),
}

impl From<textnlp_models::Error> for PlacementError {
    fn from(error: textnlp_models::Error) -> Self {
        Self::Models(error)
    }
}

impl From<std::io::Error> for PlacementError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl PlacementError {
    fn explained(self, subject: &str, source: &str) -> Error {
        use textnlp_models::Error as M;
        let error = match self {
            Self::Io(error) => return Error::io("place model", subject, error),
            Self::Source(why) => return Error::new(ErrorKind::Invalid, "fetch model", subject).because(why),
            Self::Models(error) => error,
        };
        let sort = match &error {
            M::NotFound { .. } => ErrorKind::NotFound,
            M::Denied { .. } => ErrorKind::Denied,
            M::NoSpace { .. } => ErrorKind::Quota,
            M::Throttled { .. } => ErrorKind::Throttled { after: None },
            M::Network { .. } | M::Busy { .. } => ErrorKind::Unavailable,
            _ => ErrorKind::Invalid,
        };
        // A user-provided folder is fixed by its owner, not in the cache.
        let hint = match &error {
            M::Mismatch { .. } if source.starts_with("file:") => {
                Some("restore the released files, or lock the current ones with `release set`".to_owned())
            }
            _ if source.starts_with("file:") => error.hint_for_folder().map(|hint| format!("in {source}: {hint}")),
            _ => error.hint(),
        };
        let explained = Error::new(sort, "fetch model", subject).because(error);
        match hint {
            Some(hint) => explained.hint(hint),
            None => explained,
        }
    }
}

async fn fetch_and_place(
    spec: &ModelSpec,
    mut options: FetchOptions,
    cache: &Utf8Path,
    path: &Utf8Path,
    saying: &JobMessage,
) -> Result<Map<String, Value>, PlacementError> {
    let source: Source =
        spec.source.parse().map_err(|error: textnlp_models::SourceError| PlacementError::Source(error.to_string()))?;
    if let Some(digest) = &spec.digest {
        options.expect = Some(digest.parse::<Digest>().map_err(|error| PlacementError::Source(error.to_string()))?);
    }
    options.max_cache_bytes = Some(spec.max_cache_bytes).filter(|bytes| *bytes > 0);
    let store = Store::open(cache)?;
    let model = store.fetch(&source, &options, &|event| saying.say(progress_text(&event))).await?;
    let digest = model.manifest.digest;
    match put_in_place(model, path, saying).await {
        // The site and the cache share the files, so both are damaged. The model is fetched again.
        Err(PlacementError::Models(textnlp_models::Error::Corrupt { .. })) => {
            store.remove(&digest)?;
            let model = store.fetch(&source, &options, &|event| saying.say(progress_text(&event))).await?;
            put_in_place(model, path, saying).await
        }
        other => other,
    }
}

async fn put_in_place(
    model: Model,
    path: &Utf8Path,
    saying: &JobMessage,
) -> Result<Map<String, Value>, PlacementError> {
    saying.say("installs its files and verifies them".to_owned());
    let path = path.to_owned();
    let placed = tokio::task::spawn_blocking(move || -> Result<Map<String, Value>, PlacementError> {
        let digest = model.manifest.digest.to_string();
        // The bytes can match the source and still be no model. If they do not, the store is damaged.
        if let Err(refused) = textnlp_models::inspect(&model.dir) {
            textnlp_models::verify(&model.dir)?;
            return Err(refused.into());
        }
        place(&path, &digest, |new| Ok(model.place(new)?))?;
        textnlp_models::verify(&path)?;
        facts(&path).map_err(PlacementError::Io)
    });
    placed.await.map_err(|error| PlacementError::Io(std::io::Error::other(error)))?
}

/// Replaces a model: prepared next to it, then two renames. Programs that read the old files keep them.
fn place(
    path: &Utf8Path,
    digest: &str,
    fill: impl FnOnce(&Utf8Path) -> Result<(), PlacementError>,
) -> Result<(), PlacementError> {
    let there = textnlp_models::verify(path).ok();
    if there.is_some_and(|manifest| manifest.digest.to_string() == digest) && exposed(path)?.is_none() {
        return Ok(());
    }
    let (folder, new) = files::folder_and_temporary(path)?;
    let old = new.with_extension("old");
    files::make_folder(folder)?;
    files::remove_tree(&new)?;
    files::remove_tree(&old)?;
    fill(&new)?;
    match std::fs::rename(path, &old) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    std::fs::rename(&new, path)?;
    files::flush_folder(folder)?;
    files::remove_tree(&old)?;
    Ok(())
}

/// What other users could change of a model after it was verified. A link in place of its folder is the operator's own.
fn exposed(path: &Utf8Path) -> std::io::Result<Option<Exposed>> {
    let mut found = Vec::new();
    textnlp_files::check_folder(path, 1, &mut found)?;
    Ok(found.into_iter().find(|exposed| exposed.why != Exposure::Link))
}

/// The facts of the marker: the digest, and stamps for a cheap check of the files.
fn facts(path: &Utf8Path) -> std::io::Result<Map<String, Value>> {
    let manifest = textnlp_models::read_manifest(path).map_err(std::io::Error::other)?;
    let manifest = manifest.ok_or_else(|| std::io::Error::other("the model has no manifest"))?;
    let mut stamps = Map::new();
    for file in &manifest.files {
        if let Some(stamp) = Stamp::of(&path.join(&file.name))? {
            stamps.insert(file.name.clone(), json!(stamp));
        }
    }
    let mut facts = Map::new();
    facts.insert("digest".to_owned(), json!(manifest.digest.to_string()));
    facts.insert("bytes".to_owned(), json!(manifest.bytes));
    facts.insert("source".to_owned(), json!(manifest.source));
    facts.insert("stamps".to_owned(), Value::Object(stamps));
    Ok(facts)
}

fn progress_text(event: &Event) -> String {
    match event {
        Event::Resolving { what } => format!("looks up {what}"),
        Event::File { name, done, total: Some(total) } if *total > 0 => {
            format!("{name}, {} % of {} MB", done.saturating_mul(100) / total, total / 1_000_000)
        }
        Event::File { name, done, .. } => format!("{name}, {} MB", done / 1_000_000),
        Event::Waiting { for_what, seconds } => format!("waits {seconds} s for {for_what}"),
        Event::Retrying { attempt, why } => format!("tries again ({attempt}): {why}"),
        Event::Verifying { name } => format!("checks {name}"),
        Event::Installed { digest, .. } => format!("has {digest}"),
    }
}

pub(super) async fn remove(work: &Work<'_>) -> Result<()> {
    let spec: ModelSpec = work.applied()?;
    let path = work.folder.inside(&spec.path)?;
    let fails = work.io(path.as_str());
    let removed = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        let (_, new) = files::folder_and_temporary(&path)?;
        let leftovers = [new.with_extension("old"), new];
        leftovers.iter().try_for_each(|leftover| files::remove_tree(leftover))?;
        remove_folder_or_link(&path)
    });
    removed.await.map_err(|error| work.fails(error))?.map_err(fails)
}

/// The path may be a link that the operator created: the link is removed, not its target.
fn remove_folder_or_link(path: &Utf8Path) -> std::io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => files::remove_tree(path),
        _ => files::remove_file(path),
    }
}

pub(super) async fn observe(folder: &SiteFolder, marker: &Marker) -> Result<Observation> {
    let spec: ModelSpec = marker
        .spec
        .typed()
        .map_err(|error| Error::new(ErrorKind::Invalid, "read", marker.resource.to_string()).because(error))?;
    let path = folder.inside(&spec.path)?;
    match std::fs::symlink_metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Observation::Absent),
        Err(error) => return Err(Error::io("check", path.as_str(), error)),
        Ok(_) => {}
    }
    let mut look = ObservedObject::default();
    look.output("path", path.as_str());
    for fact in ["digest", "bytes", "source"] {
        look.output(fact, marker.facts.get(fact).cloned().unwrap_or_default());
    }
    let exposed = exposed(&path).map_err(|error| Error::io("check", path.as_str(), error))?;
    if let Some(exposed) = exposed {
        look.drift("files", exposed.to_string());
    } else if let Some(what) = changed_file(&path, marker)? {
        // Only a changed file is worth reading gigabytes.
        let applied = marker.fact("digest").unwrap_or_default().to_owned();
        let verified = tokio::task::spawn_blocking(move || verdict(&path, &applied)).await;
        let verified = verified.map_err(|error| {
            Error::new(ErrorKind::Unavailable, "verify", marker.resource.to_string()).because(error)
        })?;
        if let Err(why) = verified {
            look.drift("files", format!("{what}: {why}"));
        }
    }
    Ok(Observation::There(look))
}

fn verdict(path: &Utf8PathBuf, applied: &str) -> Result<(), String> {
    match textnlp_models::verify(path) {
        Ok(manifest) if manifest.digest.to_string() == applied => Ok(()),
        Ok(manifest) => Err(format!("it is another model, {}", manifest.digest)),
        Err(error) => Err(textnlp_provider::error_chain(&error)),
    }
}

/// The first file whose size, path or time differs from the placed one.
fn changed_file(path: &Utf8Path, marker: &Marker) -> Result<Option<String>> {
    let Some(stamps) = marker.facts.get("stamps").and_then(Value::as_object).filter(|stamps| !stamps.is_empty()) else {
        return Ok(Some("its files were never hashed".to_owned()));
    };
    for (name, stamp) in stamps {
        let file = path.join(name);
        let now = Stamp::of(&file).map_err(|error| Error::io("check", file.as_str(), error))?;
        // Without the change time (ctime): the cache links and unlinks the same file.
        let same = now.is_some_and(|now| {
            json!(now.bytes) == stamp["bytes"]
                && json!(now.inode) == stamp["inode"]
                && json!(now.modified_ns) == stamp["modified_ns"]
        });
        if !same {
            return Ok(Some(format!("`{name}` was changed")));
        }
    }
    Ok(None)
}
