//! Model updates as zip files: created from a models folder, applied to another one. Names in the zip are relative to
//! the models folder. `manifest.json` has the digest of each model; all of them are verified before any is replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write as _};

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_files::{Lock, Replace, copy_sha256};
use textnlp_models::Digest;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

use super::error::{Error, Result};
use super::{Model, Models, pretty, remove, safe, time};

const MANIFEST: &str = "manifest.json";
const MOST_MANIFEST: u64 = 4 << 20;
/// A model has a handful of files, the largest some hundred shards.
const MOST_FILES: usize = 65_536;

/// The content of an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// As the manifest in it says.
    pub manifest: Models,
    /// Requested models that do not exist.
    pub skipped: Vec<String>,
}

/// The result of an update.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Added models.
    pub added: Vec<String>,
    /// Replaced models.
    pub replaced: Vec<String>,
    /// Unchanged models.
    pub unchanged: Vec<String>,
}

/// Writes the chosen models of a folder into a zip file. Missing models are skipped and reported; if all are missing,
/// no file is created. The same models give the same bytes.
pub fn create(folder: &Utf8Path, names: &[String], output: &Utf8Path, version: &str, epoch: u64) -> Result<Created> {
    let mut manifest = Models { version: version.to_owned(), created_at: time(epoch)?, models: BTreeMap::new() };
    let mut skipped = Vec::new();
    let wanted: BTreeSet<&String> = names.iter().collect();
    let mut present = Vec::new();
    for name in wanted {
        if !is_folder_name(name) {
            return Err(Error::malformed(format!("the model `{name}`"), "its name is not a valid folder name"));
        }
        if folder.join(name).is_dir() { present.push(name) } else { skipped.push(name.clone()) }
    }
    if present.is_empty() {
        return Err(Error::Missing { what: format!("any of the models {} in {folder}", names.join(", ")) });
    }

    Replace::umask()
        .sole_writer()
        .file_output_with(output, |file| write(file, folder, &present, &mut manifest, output))?;
    Ok(Created { manifest, skipped })
}

/// Writes the models and their manifest.
fn write(
    file: &mut File,
    folder: &Utf8Path,
    present: &[&String],
    manifest: &mut Models,
    output: &Utf8Path,
) -> Result<()> {
    let zipped = |error: zip::result::ZipError| Error::io("write", output)(error.into());
    let mut zip = ZipWriter::new(file);
    // The year 1980, the first of the zip format, so that the bytes do not depend on the date.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644);
    for name in present {
        let mut files = Vec::new();
        for (path, relative) in files_of(&folder.join(name))? {
            let mut file = File::open(&path).map_err(Error::io("open", &path))?;
            let size = file.metadata().map_err(Error::io("read", &path))?.len();
            let entry = format!("{name}/{relative}");
            zip.start_file(entry, options.large_file(size >= u64::from(u32::MAX))).map_err(zipped)?;
            let found = copy_sha256(&mut file, &mut zip).map_err(Error::io("pack", &path))?;
            files.push((relative, Digest::from(found.sha256), found.bytes));
        }
        let model = Model::of(files.iter().map(|(name, digest, size)| (name.as_str(), *digest, *size)));
        manifest.models.insert((*name).clone(), model);
    }
    zip.start_file(MANIFEST, options).map_err(zipped)?;
    zip.write_all(&pretty(manifest)).map_err(Error::io("write", output))?;
    zip.finish().map(drop).map_err(zipped)
}

/// Applies an update to a models folder. Everything is unpacked next to it and verified first; any error leaves the
/// folder unchanged. Each model is replaced atomically. A repetition after a kill has the same result.
pub fn apply(update: &Utf8Path, folder: &Utf8Path) -> Result<Applied> {
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let lock_path = folder.join(".update.lock");
    let _lock = Lock::exclusive(&lock_path, 0o666)?;
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
    let mut zip =
        ZipArchive::new(BufReader::new(file)).map_err(|error| no(format!("it is not an update ({error})")))?;
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

    // All names and sizes before the first byte is written. A name without files is a path all the same.
    if let Some(name) = manifest.models.keys().find(|name| !is_folder_name(name)) {
        return Err(no(format!("its {MANIFEST} has the model `{}`, which is not a valid folder name", shown(name))));
    }
    let mut entries: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    let mut total = 0u64;
    for index in 0..zip.len() {
        let entry = zip.by_index_raw(index).map_err(|error| no(format!("entry {index} cannot be read ({error})")))?;
        let name = std::str::from_utf8(entry.name_raw()).unwrap_or_default().to_owned();
        if name == MANIFEST {
            continue;
        }
        let model = name.split_once('/').map(|(model, _)| model);
        if !safe(&name) || model.is_none_or(|model| !manifest.models.contains_key(model)) {
            return Err(no(format!("`{}` belongs to no model of its manifest", shown(&name))));
        }
        if entry.is_symlink() || !entry.is_file() || entry.encrypted() {
            return Err(no(format!("`{}` is not a plain file", shown(&name))));
        }
        if entry.compression() != CompressionMethod::Stored {
            return Err(no(format!("`{}` is compressed; updates are stored (`zip -0`)", shown(&name))));
        }
        total = total.saturating_add(entry.size());
        entries.insert(name, (index, entry.size()));
    }
    // Stored bytes cannot exceed the file's size: otherwise entries overlap.
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
        let copied = copy_sha256(&mut entry.take(size + 1), &mut out);
        let copied = copied.map_err(|error| no(format!("`{name}` cannot be read ({error})")))?;
        out.sync_all().map_err(Error::io("write", &path))?;
        let (digest, size) = (Digest::from(copied.sha256), copied.bytes);
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
        let (new, target) = (staging.join(name), folder.join(name));
        if !new.is_dir() {
            // A model without files.
            continue;
        }
        match fs::symlink_metadata(&target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::rename(&new, &target).map_err(Error::io("write", &target))?;
                applied.added.push(name.clone());
            }
            Err(error) => return Err(Error::io("read", &target)(error)),
            Ok(found) if found.is_dir() => {
                if read(&target).is_ok_and(|there| there == *model) {
                    applied.unchanged.push(name.clone());
                    continue;
                }
                swap(&new, &target)?;
                applied.replaced.push(name.clone());
            }
            Ok(_) => return Err(Error::malformed(target.as_str(), "it already exists and is not a model folder")),
        }
    }
    let path = folder.join(MANIFEST);
    let known = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Models>(&text).ok());
    let mut merged = manifest.clone();
    for (name, model) in known.map(|known| known.models).unwrap_or_default() {
        if !is_folder_name(&name) {
            continue;
        }
        merged.models.entry(name).or_insert(model);
    }
    // The caller holds the lock of the folder.
    Replace::umask().sole_writer().write(&path, &pretty(&merged))?;
    Ok(applied)
}

/// Whether a model may have this name: one folder in the models folder, which is none of its own files.
fn is_folder_name(name: &str) -> bool {
    safe(name) && !name.contains('/') && !name.starts_with('.') && name != MANIFEST
}

/// A name from a file, for messages.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// Exchanges two folders atomically; where the filesystem does not support it, the old one is missing for a moment.
fn swap(new: &Utf8Path, target: &Utf8Path) -> Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, new.as_std_path(), CWD, target.as_std_path(), RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            let old = Utf8PathBuf::from(format!("{new}.old"));
            fs::rename(target, &old).map_err(Error::io("replace", target))?;
            fs::rename(new, target).map_err(|error| {
                // Restores the old model on any error.
                let back = fs::rename(&old, target);
                Error::io("replace", target)(back.err().unwrap_or(error))
            })
        }
        Err(error) => Err(Error::io("replace", target)(error.into())),
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
