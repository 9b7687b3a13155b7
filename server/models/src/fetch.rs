//! From a source to a model in the store.

use std::fs;

use camino::Utf8Path;

use crate::bucket::Bucket;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{FileEntry, Manifest};
use crate::options::FetchOptions;
use crate::progress::{Event, Progress, Pulled};
use crate::select::choose;
use crate::source::Source;
use crate::store::{Assembly, Model, Reference, Store};
use crate::transport::Transport;
use crate::{bucket, bundled, hub, local, web};

impl Store {
    /// The model of this source: from the store if present, else fetched, verified and installed atomically. An
    /// interrupted fetch resumes; concurrent fetches of the same source do the work once.
    pub async fn fetch(&self, source: &Source, options: &FetchOptions, progress: &Progress<'_>) -> Result<Model> {
        let resolved = source.resolve()?;
        if let Some(model) = self.hit(&resolved, options, progress).await? {
            return Ok(model);
        }
        let waits = || progress(Event::Waiting { for_what: format!("another fetch of {source}"), seconds: 0 });
        let lock = self.folder("locks").join(format!("source-{}", Reference::key(&resolved)));
        let _held =
            local::lock(&lock, false, options.limits.lock_wait, &format!("the fetch of {source}"), waits).await?;
        // Another process may have fetched it meanwhile.
        if let Some(model) = self.hit(&resolved, options, progress).await? {
            return Ok(model);
        }
        if options.offline && resolved.needs_network() {
            let (what, store) = (source.to_string(), self.path().to_owned());
            return Err(match self.is_shared()? && options.expect.is_none() {
                false => Error::Offline { what, store },
                true => Error::Unusable {
                    what,
                    why: format!(
                        "other users can change what {store} records of it, and offline mode allows no download"
                    ),
                    hint: "write the model's `digest`, or use a model cache that only you can change".to_owned(),
                },
            });
        }

        let assembly = self.assembly(options.max_cache_bytes)?;
        // Taken before the files are read: a file that changes meanwhile is noticed by the next fetch.
        let fingerprint = fingerprint(&resolved)?;
        let pulled = match &resolved {
            Source::Bundled => bundled::unpack(&assembly)?,
            Source::File(path) => import(&assembly, path, progress).await?,
            Source::Web(web) => web::pull(&Transport::new(options)?, &assembly, web, progress).await?,
            Source::Bucket(bucket) => {
                bucket::pull(&Bucket::open(bucket, options)?, &assembly, bucket, progress).await?
            }
            Source::Hub(hub) => hub::pull(&Transport::new(options)?, &assembly, hub, progress).await?,
            Source::SiteBucket(_) => {
                return Err(Error::Unusable {
                    what: source.to_string(),
                    why: "this machine has no bucket of a site".to_owned(),
                    hint: "write the address: `s3://…`, `gs://…` or `az://…`".to_owned(),
                });
            }
            Source::Catalogue(_) => unreachable!("resolved above"),
        };
        let manifest = Manifest::new(resolved.to_string(), pulled.revision, pulled.license, pulled.files);
        if let Some(expected) = options.expect
            && expected != manifest.digest
        {
            return Err(Error::mismatch(source.to_string(), expected, manifest.digest));
        }
        let model = assembly.install(manifest).await?;
        self.remember(&resolved, &model, fingerprint)?;
        if options.pin {
            self.pin(&model.manifest.digest)?;
        }
        progress(Event::Installed { digest: model.manifest.digest, bytes: model.manifest.bytes });
        Ok(model)
    }

    /// What the store has of this source, without network and without reading the weights.
    pub fn find(&self, source: &Source) -> Result<Option<Model>> {
        self.recorded(source)?.map_or(Ok(None), |digest| self.open_model(&digest))
    }

    /// The digest that the last fetch of this source had, unless the source has changed since. The store need not have the model.
    /// `None` also in a store that other users can change.
    pub fn recorded(&self, source: &Source) -> Result<Option<Digest>> {
        let resolved = source.resolve()?;
        let Some(reference) = self.reference(&resolved)? else { return Ok(None) };
        let is_current = reference.fingerprint == fingerprint(&resolved).unwrap_or(None);
        Ok(is_current.then_some(reference.digest))
    }

    /// The digest that a fetch of a source on this machine would bring now; `None` for one that others keep. Bytes are read
    /// only when the files are not those that were fetched. Nothing is written.
    pub fn local_digest(&self, source: &Source, progress: &Progress<'_>) -> Result<Option<Digest>> {
        let resolved = source.resolve()?;
        if !matches!(resolved, Source::File(_)) {
            return local_digest(&resolved, progress);
        }
        match self.recorded(&resolved)? {
            Some(digest) => Ok(Some(digest)),
            None => local_digest(&resolved, progress),
        }
    }

    async fn hit(&self, resolved: &Source, options: &FetchOptions, progress: &Progress<'_>) -> Result<Option<Model>> {
        let found = match options.expect {
            // A locked digest takes precedence over the branch's current commit.
            Some(digest) => self.open_model(&digest),
            None if options.refresh && resolved.needs_network() && !options.offline => return Ok(None),
            None => self.find(resolved),
        };
        let found = match found {
            Ok(found) => found,
            Err(Error::Corrupt { .. }) => None,
            Err(error) => return Err(error),
        };
        let Some(model) = found else { return Ok(None) };
        if options.verify {
            progress(Event::Verifying { name: resolved.to_string() });
            let dir = model.dir.clone();
            let checked = tokio::task::spawn_blocking(move || crate::manifest::verify(&dir)).await;
            match checked.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())) {
                Ok(_) => {}
                Err(error @ Error::Corrupt { .. }) => {
                    tracing::warn!(model = %model.manifest.digest, %error, "a stored model is damaged and is fetched again");
                    let digest = model.manifest.digest;
                    drop(model);
                    self.drop_damaged(&digest)?;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        self.touch(&model.manifest.digest)?;
        if options.pin {
            self.pin(&model.manifest.digest)?;
        }
        Ok(Some(model))
    }
}

/// The digest that a fetch of a source on this machine would bring now, read from its bytes; `None` for one that others keep.
/// `progress` hears of the bytes: a large model takes its time.
pub fn local_digest(source: &Source, progress: &Progress<'_>) -> Result<Option<Digest>> {
    match source.resolve()? {
        Source::Bundled => Ok(bundled::bundled_digest()),
        Source::File(path) => {
            let mut files = Vec::new();
            for (name, path) in local_files(&path)? {
                let total = fs::metadata(&path).ok().map(|found| found.len());
                let report = |done| progress(Event::File { name: name.clone(), done, total });
                let (digest, bytes) = crate::manifest::hash_file_aloud(&path, &report)?;
                files.push(FileEntry { name, digest, bytes });
            }
            Ok(Some(Manifest::new(source.to_string(), None, None, files).digest))
        }
        _ => Ok(None),
    }
}

/// What tells versions of a local source apart without reading it. The time of the last change of state is in it: a file may
/// be overwritten and given its old time back.
fn fingerprint(source: &Source) -> Result<Option<String>> {
    match source {
        Source::Bundled => Ok(Some(bundled::fingerprint())),
        Source::File(path) => {
            use std::os::unix::fs::MetadataExt;
            let mut text = String::new();
            for (name, path) in local_files(path)? {
                let found = fs::metadata(&path).map_err(Error::io("check", &path))?;
                text.push_str(&format!(
                    "{name} {} {} {}.{} {}.{}\n",
                    found.len(),
                    found.ino(),
                    found.mtime(),
                    found.mtime_nsec(),
                    found.ctime(),
                    found.ctime_nsec()
                ));
            }
            Ok(Some(crate::Digest::of(text.as_bytes()).to_string()))
        }
        _ => Ok(None),
    }
}

/// The files of a folder or the one file, by name and path.
fn local_files(path: &Utf8Path) -> Result<Vec<(String, camino::Utf8PathBuf)>> {
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::NotFound {
                what: format!("the model {path}"),
                why: "there is no such file or folder".to_owned(),
                hint: "check the path; a relative path starts at the working directory".to_owned(),
            });
        }
        Err(error) => return Err(Error::io("check", path)(error)),
    };
    if found.is_dir() {
        // A folder that a store or a bundle made says itself what belongs to the model: it has the same digest everywhere. One that was
        // changed since is looked at like any other.
        if let Ok(Some(manifest)) = crate::manifest::read_manifest(path) {
            let named = manifest.files.into_iter().map(|file| {
                let found = local::of_model(path, path.join(&file.name))?;
                Ok((file.name, found))
            });
            return named.collect();
        }
        let mut names = local::file_names(path)?;
        names.extend(local::pooling_names(path)?);
        let chosen = choose(&format!("file:{path}"), None, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
        let files = chosen.into_iter().map(|name| (local::stored_name(name), path.join(name)));
        return files.map(|(name, file)| Ok((name, local::of_model(path, file)?))).collect();
    }
    match path.file_name() {
        Some(name) if name.ends_with(".gguf") && local::safe_name(name) => Ok(vec![(name.to_owned(), path.to_owned())]),
        _ => Err(Error::Unusable {
            what: path.to_string(),
            why: "it is neither a folder nor a .gguf file".to_owned(),
            hint: "give the folder that has config.json and the weights".to_owned(),
        }),
    }
}

async fn import(assembly: &Assembly<'_>, path: &Utf8Path, progress: &Progress<'_>) -> Result<Pulled> {
    let files = local_files(path)?;
    let mut total = 0;
    for (_, path) in &files {
        total += fs::metadata(path).map_err(Error::io("check", path))?.len();
    }
    assembly.make_room(path.as_str(), total)?;
    let mut entries = Vec::new();
    for (name, from) in files {
        let entry = assembly.copy(&name, &from, progress).await?;
        progress(Event::File { name, done: entry.bytes, total: Some(entry.bytes) });
        entries.push(entry);
    }
    Ok(Pulled { files: entries, revision: None, license: None })
}
