//! New models in a zip file: made from a models folder, applied to another one. Names in the zip are relative to the models folder;
//! `manifest.json` says what each model must be, and nothing is replaced before all of it has been compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write as _};

use camino::{Utf8Path, Utf8PathBuf};
use sha2::Digest as _;
use textnlp_models::Digest;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

use super::error::{Error, Result};
use super::{Model, Models, pretty, remove, safe, time};

const MANIFEST: &str = "manifest.json";
const MOST_MANIFEST: u64 = 4 << 20;
/// A model has a handful of files, the largest some hundred shards.
const MOST_FILES: usize = 65_536;

/// What went into an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// As the manifest in it says.
    pub manifest: Models,
    /// Models that were asked for and are not there.
    pub skipped: Vec<String>,
}

/// What an update did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Models that were not there before.
    pub added: Vec<String>,
    /// Models that were there in another form.
    pub replaced: Vec<String>,
    /// Models that were there already as they are in the update.
    pub unchanged: Vec<String>,
}

/// Puts the chosen models of a folder into a zip file. A model that is not there is skipped, and the answer says so; if none is there,
/// no file is made. The same models give the same bytes.
pub fn create(folder: &Utf8Path, names: &[String], output: &Utf8Path, version: &str, epoch: u64) -> Result<Created> {
    let mut manifest = Models { version: version.to_owned(), created_at: time(epoch)?, models: BTreeMap::new() };
    let mut skipped = Vec::new();
    let wanted: BTreeSet<&String> = names.iter().collect();
    let mut present = Vec::new();
    for name in wanted {
        if !safe(name) || name.contains('/') || name.starts_with('.') {
            return Err(Error::malformed(format!("the model `{name}`"), "its name cannot be a folder's"));
        }
        if folder.join(name).is_dir() { present.push(name) } else { skipped.push(name.clone()) }
    }
    if present.is_empty() {
        return Err(Error::Missing { what: format!("any of the models {} in {folder}", names.join(", ")) });
    }

    let part = Utf8PathBuf::from(format!("{output}.part"));
    let fail = |error| Error::io("write", &part)(error);
    let zipped = |error: zip::result::ZipError| Error::io("write", &part)(error.into());
    let mut zip = ZipWriter::new(File::create(&part).map_err(fail)?);
    // The year 1980, the first that a zip file knows, so that the day of making does not show.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644);
    for name in present {
        let mut files = Vec::new();
        for (path, relative) in files_of(&folder.join(name))? {
            let file = File::open(&path).map_err(Error::io("open", &path))?;
            let size = file.metadata().map_err(Error::io("read", &path))?.len();
            let entry = format!("{name}/{relative}");
            zip.start_file(entry, options.large_file(size >= u64::from(u32::MAX))).map_err(zipped)?;
            let mut passing = Passing { inner: file, hasher: sha2::Sha256::default(), size: 0 };
            io::copy(&mut passing, &mut zip).map_err(Error::io("pack", &path))?;
            let (digest, size) = passing.finish(&path)?;
            files.push((relative, digest, size));
        }
        let model = Model::of(files.iter().map(|(name, digest, size)| (name.as_str(), *digest, *size)));
        manifest.models.insert(name.clone(), model);
    }
    zip.start_file(MANIFEST, options).map_err(zipped)?;
    zip.write_all(&pretty(&manifest)).map_err(fail)?;
    zip.finish().map_err(zipped)?.sync_all().map_err(fail)?;
    fs::rename(&part, output).map_err(Error::io("write", output))?;
    Ok(Created { manifest, skipped })
}

/// Brings the models of an update into a folder. Everything is unpacked beside it and compared with the manifest first; a mistake anywhere
/// leaves the folder as it was. Each model is exchanged at once. Repeated after a kill it ends the same.
pub fn apply(update: &Utf8Path, folder: &Utf8Path) -> Result<Applied> {
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let lock_path = folder.join(".update.lock");
    let lock = File::create(&lock_path).map_err(Error::io("write", &lock_path))?;
    lock.lock().map_err(Error::io("lock", &lock_path))?;
    let staging = folder.join(".update");
    remove(&staging)?;
    let applied = unpack(update, &staging).and_then(|manifest| exchange(&manifest, &staging, folder));
    let cleaned = remove(&staging);
    let applied = applied?;
    cleaned?;
    Ok(applied)
}

fn unpack(update: &Utf8Path, staging: &Utf8Path) -> Result<Models> {
    let no = |why: String| Error::malformed(update.as_str(), why);
    let file = File::open(update).map_err(Error::io("open", update))?;
    let length = file.metadata().map_err(Error::io("read", update))?.len();
    let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|error| no(format!("it is no update ({error})")))?;
    if zip.len() > MOST_FILES {
        return Err(no(format!("it holds {} files", zip.len())));
    }
    let mut text = Vec::new();
    let entry = zip.by_name(MANIFEST).map_err(|error| no(format!("its {MANIFEST} cannot be read ({error})")))?;
    entry.take(MOST_MANIFEST + 1).read_to_end(&mut text).map_err(Error::io("read", update))?;
    if text.len() as u64 > MOST_MANIFEST {
        return Err(no(format!("its {MANIFEST} is too large")));
    }
    let manifest: Models =
        serde_json::from_slice(&text).map_err(|error| no(format!("its {MANIFEST} cannot be read ({error})")))?;

    // All names and sizes before the first byte is written.
    let mut entries: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    let mut total = 0u64;
    for index in 0..zip.len() {
        let entry = zip.by_index_raw(index).map_err(|error| no(format!("entry {index} cannot be read ({error})")))?;
        let name = std::str::from_utf8(entry.name_raw()).unwrap_or_default().to_owned();
        if name == MANIFEST {
            continue;
        }
        let shown: String = name.chars().filter(|c| !c.is_control()).take(200).collect();
        let model = name.split_once('/').map(|(model, _)| model);
        if !safe(&name) || model.is_none_or(|model| !manifest.models.contains_key(model) || model.starts_with('.')) {
            return Err(no(format!("`{shown}` belongs to no model of its manifest")));
        }
        if entry.is_symlink() || !entry.is_file() || entry.encrypted() {
            return Err(no(format!("`{shown}` is not a plain file")));
        }
        if entry.compression() != CompressionMethod::Stored {
            return Err(no(format!("`{shown}` is compressed; updates are stored (`zip -0`)")));
        }
        total = total.saturating_add(entry.size());
        entries.insert(name, (index, entry.size()));
    }
    // Stored bytes cannot be more than the file: otherwise entries lie upon each other.
    if total > length {
        return Err(no("its files would be larger than itself".to_owned()));
    }

    let mut found: BTreeMap<String, Vec<(String, Digest, u64)>> = BTreeMap::new();
    for (name, (index, size)) in &entries {
        let path = staging.join(name);
        let parent = path.parent().unwrap_or(staging);
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        let mut out = File::create_new(&path).map_err(Error::io("create", &path))?;
        let entry = zip.by_index(*index).map_err(|error| no(format!("`{name}` cannot be read ({error})")))?;
        let mut passing = Passing { inner: entry.take(size + 1), hasher: sha2::Sha256::default(), size: 0 };
        io::copy(&mut passing, &mut out).map_err(|error| no(format!("`{name}` cannot be read ({error})")))?;
        out.sync_all().map_err(Error::io("write", &path))?;
        let (digest, size) = passing.finish(&path)?;
        let (model, file) = name.split_once('/').unwrap_or((name, ""));
        found.entry(model.to_owned()).or_default().push((file.to_owned(), digest, size));
    }
    for (name, promised) in &manifest.models {
        let files = found.get(name).map(Vec::as_slice).unwrap_or_default();
        let model = Model::of(files.iter().map(|(name, digest, size)| (name.as_str(), *digest, *size)));
        if model != *promised {
            let text = |model: &Model| format!("{} ({} bytes)", model.checksum, model.size);
            return Err(Error::Mismatch { name: name.clone(), expected: text(promised), found: text(&model) });
        }
    }
    Ok(manifest)
}

fn exchange(manifest: &Models, staging: &Utf8Path, folder: &Utf8Path) -> Result<Applied> {
    let mut applied = Applied::default();
    for (name, model) in &manifest.models {
        let (new, place) = (staging.join(name), folder.join(name));
        if !new.is_dir() {
            // A model without files: nothing to bring.
            continue;
        }
        match fs::symlink_metadata(&place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::rename(&new, &place).map_err(Error::io("write", &place))?;
                applied.added.push(name.clone());
            }
            Err(error) => return Err(Error::io("read", &place)(error)),
            Ok(found) if found.is_dir() => {
                if read(&place).is_ok_and(|there| there == *model) {
                    applied.unchanged.push(name.clone());
                    continue;
                }
                swap(&new, &place)?;
                applied.replaced.push(name.clone());
            }
            Ok(_) => return Err(Error::malformed(place.as_str(), "it is in the way and no model's folder")),
        }
    }
    let path = folder.join(MANIFEST);
    let known = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Models>(&text).ok());
    let mut merged = manifest.clone();
    for (name, model) in known.map(|known| known.models).unwrap_or_default() {
        merged.models.entry(name).or_insert(model);
    }
    let part = staging.join(MANIFEST);
    fs::create_dir_all(staging).map_err(Error::io("create", staging))?;
    fs::write(&part, pretty(&merged)).map_err(Error::io("write", &part))?;
    fs::rename(&part, &path).map_err(Error::io("write", &path))?;
    Ok(applied)
}

/// Exchanges two folders at once; where the file system cannot, the old one is out of the way for a moment.
fn swap(new: &Utf8Path, place: &Utf8Path) -> Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, new.as_std_path(), CWD, place.as_std_path(), RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            let old = Utf8PathBuf::from(format!("{new}.old"));
            fs::rename(place, &old).map_err(Error::io("replace", place))?;
            fs::rename(new, place).map_err(|error| {
                // Back, so that the model is there whatever happened.
                let back = fs::rename(&old, place);
                Error::io("replace", place)(back.err().unwrap_or(error))
            })
        }
        Err(error) => Err(Error::io("replace", place)(error.into())),
    }
}

/// What a model's folder holds.
pub(crate) fn read(folder: &Utf8Path) -> Result<Model> {
    let mut files = Vec::new();
    for (path, relative) in files_of(folder)? {
        let (digest, size) = File::open(&path).and_then(Digest::of_reader).map_err(Error::io("read", &path))?;
        files.push((relative, digest, size));
    }
    Ok(Model::of(files.iter().map(|(name, digest, size)| (name.as_str(), *digest, *size))))
}

/// Every file below a folder with its relative name, sorted by it. Links to files are followed (a store keeps files by content), links to
/// folders are not.
fn files_of(root: &Utf8Path) -> Result<Vec<(Utf8PathBuf, String)>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir_utf8().map_err(Error::io("read", &folder))? {
            let entry = entry.map_err(Error::io("read", &folder))?;
            let path = entry.path().to_owned();
            let kind = entry.file_type().map_err(Error::io("read", &path))?;
            if kind.is_dir() {
                folders.push(path);
            } else if fs::metadata(&path).map_err(Error::io("read", &path))?.is_file() {
                let relative = path.strip_prefix(root).unwrap_or(&path).to_string();
                files.push((path, relative));
            } else {
                return Err(Error::malformed(path.as_str(), "it is neither a file nor a folder"));
            }
            if files.len() > MOST_FILES {
                return Err(Error::malformed(root.as_str(), "it holds too many files to be a model"));
            }
        }
    }
    files.sort_by(|a, b| a.1.cmp(&b.1));
    Ok(files)
}

/// Takes the digest of what passes.
struct Passing<R> {
    inner: R,
    hasher: sha2::Sha256,
    size: u64,
}

impl<R: Read> Read for Passing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.size += n as u64;
        Ok(n)
    }
}

impl<R> Passing<R> {
    fn finish(self, path: &Utf8Path) -> Result<(Digest, u64)> {
        let digits = hex::encode(self.hasher.finalize());
        let digest = digits.parse().map_err(|_| Error::malformed(path.as_str(), "it has no digest"))?;
        Ok((digest, self.size))
    }
}
