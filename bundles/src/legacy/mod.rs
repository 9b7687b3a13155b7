//! The legacy formats of offline delivery: a folder `offline_bundle/` with image archives for `docker load`, packages,
//! models, configurations, scripts and an installer; the same as one `.tar.gz`; and zip files with new models.

pub mod update;

mod archive;
mod error;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::PermissionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use textnlp_models::Digest;

pub use error::{Error, Result};

use crate::file_source::{Entry, FileSource};
use crate::oci::Platform;
use crate::oci::catalogue::{Catalogue, IndexEntry};

/// Options of an export.
#[derive(Clone, Debug)]
pub struct Options {
    /// `1.0.0`: part of the archive's name.
    pub version: String,
    /// The timestamp of all files, in seconds since 1970.
    pub epoch: u64,
    /// The platform to select: an archive for `docker load` has one image.
    pub platform: Platform,
    /// Whether to make the `.tar.gz`, too.
    pub archive: bool,
}

/// The created files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// `offline_bundle/`.
    pub folder: Utf8PathBuf,
    /// `textnlp-offline-VERSION.tar.gz`.
    pub archive: Option<Utf8PathBuf>,
    /// Image archives by the names of their images.
    pub images: BTreeMap<String, String>,
    /// The names of the models.
    pub models: Vec<String>,
}

/// `manifest.json` of a models folder and of an update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Models {
    /// The release's version.
    pub version: String,
    /// ISO 8601, UTC.
    pub created_at: String,
    /// By name.
    pub models: BTreeMap<String, Model>,
}

/// One model of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// Over all its files: SHA-256 of `NAME NUL 64-HEX-DIGITS LF` of each, sorted by name; names are relative to the model's folder.
    pub checksum: Digest,
    /// Bytes of all its files.
    pub size: u64,
}

impl Model {
    pub(crate) fn of<'a>(files: impl IntoIterator<Item = (&'a str, Digest, u64)>) -> Model {
        let mut files: Vec<_> = files.into_iter().collect();
        files.sort();
        let mut text = Vec::new();
        for (name, digest, _) in &files {
            text.extend_from_slice(name.as_bytes());
            text.push(0);
            text.extend_from_slice(digest.hex().as_bytes());
            text.push(b'\n');
        }
        Model { checksum: Digest::of(&text), size: files.iter().map(|(_, _, size)| size).sum() }
    }
}

const INSTALL: &str = include_str!("install.sh");
const COMPOSE: &str = include_str!("../../../templates/compose/docker-compose.airgap.yml");
const SERVER: &str = include_str!("../../../templates/compose/server.yaml");
const FOLDERS: [&str; 5] = ["images", "packages", "models", "configs", "scripts"];

/// Writes the folder `offline_bundle/` and its archive below `out`, which must not contain them yet. Everything is
/// written under a temporary name first: a file with its final name is complete.
pub fn export(source: &dyn FileSource, out: &Utf8Path, options: &Options) -> Result<Exported> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
    if options.version.is_empty() || options.version.len() > 100 || !options.version.chars().all(plain) {
        return Err(Error::malformed("the version", format!("`{}` cannot be part of a file's name", options.version)));
    }
    let folder = out.join("offline_bundle");
    let name = format!("textnlp-offline-{}.tar.gz", options.version);
    for path in [&folder, &out.join(&name)] {
        if path.exists() {
            return Err(Error::malformed(path.as_str(), "it is there already; remove it or choose another folder"));
        }
    }
    fs::create_dir_all(out).map_err(Error::io("create", out))?;
    let part = out.join(".offline_bundle.part");
    remove(&part)?;
    let mut exported = Exported { folder, archive: None, images: BTreeMap::new(), models: Vec::new() };
    let mut writer = Writer { source, root: part.clone(), sums: BTreeMap::new() };
    for folder in FOLDERS {
        let path = part.join(folder);
        fs::create_dir_all(&path).map_err(Error::io("create", &path))?;
    }
    exported.images = writer.images(options)?;
    writer.packages(&options.platform)?;
    exported.models = writer.models(options)?;
    writer.copy("configs/", "configs/")?;
    writer.copy("scripts/", "scripts/")?;
    if !writer.sums.contains_key("configs/server.yaml") {
        writer.write("configs/server.yaml", SERVER.as_bytes(), false)?;
    }
    writer.write("docker-compose.airgap.yml", COMPOSE.as_bytes(), false)?;
    // Compose reads this file by itself.
    writer.write(".env", format!("TEXTNLP_VERSION={}\n", options.version).as_bytes(), false)?;
    writer.write("install.sh", INSTALL.replace("@VERSION@", &options.version).as_bytes(), true)?;
    let sums: String = writer.sums.iter().map(|(path, digest)| format!("{}  {path}\n", digest.hex())).collect();
    writer.write("SHA256SUMS", sums.as_bytes(), false)?;

    if options.archive {
        let target = out.join(&name);
        let making = out.join(format!(".{name}.part"));
        archive::folder(&part, "offline_bundle", options.epoch, &making)?;
        fs::rename(&making, &target).map_err(Error::io("write", &target))?;
        exported.archive = Some(target);
    }
    fs::rename(&part, &exported.folder).map_err(Error::io("write", &exported.folder))?;
    Ok(exported)
}

fn remove(folder: &Utf8Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", folder)(error)),
        _ => Ok(()),
    }
}

struct Writer<'a> {
    source: &'a dyn FileSource,
    root: Utf8PathBuf,
    sums: BTreeMap<String, Digest>,
}

impl Writer<'_> {
    fn images(&mut self, options: &Options) -> Result<BTreeMap<String, String>> {
        let catalogue = Catalogue::read(self.source)?;
        let mut taken = BTreeSet::new();
        let mut written = BTreeMap::new();
        for image in &catalogue.images {
            let chosen = image.platforms.iter().find(|(p, _, _)| p.as_ref().is_none_or(|p| options.platform.runs(p)));
            let Some((_, _, manifest)) = chosen else {
                return Err(Error::Missing { what: format!("{} for {}", image.name, options.platform) });
            };
            let mut file = file_name(image, false);
            if !taken.insert(file.clone()) {
                file = file_name(image, true);
                if !taken.insert(file.clone()) {
                    return Err(Error::malformed(&image.name, "two images would have the same archive"));
                }
            }
            let path = format!("images/{file}");
            let target = self.root.join(&path);
            let tag = familiar(image);
            archive::docker(self.source, &tag, manifest, options.epoch, &target)?;
            self.sum(path)?;
            written.insert(tag, file);
        }
        Ok(written)
    }

    /// Writes the unchanged packages, the program of the platform, and the list for the installer.
    fn packages(&mut self, platform: &Platform) -> Result<()> {
        self.copy("packages/", "packages/")?;
        let programs: Vec<(String, Entry)> = self
            .source
            .items()
            .iter()
            .filter(|item| item.kind == crate::manifest::ItemKind::Program)
            .filter(|item| {
                item.platform.as_deref().and_then(|p| p.parse().ok()).is_none_or(|p: Platform| platform.runs(&p))
            })
            .flat_map(|item| &item.paths)
            .filter(|path| path.starts_with("bin/"))
            .filter_map(|path| Some((path.clone(), self.source.find(path)?)))
            .collect();
        if let [(path, entry)] = &programs[..] {
            self.file(path, *entry, "packages/bin/textnlp-deploy", true)?;
        }
        let list: String = self
            .sums
            .keys()
            .filter_map(|path| path.strip_prefix("packages/"))
            .map(|path| format!("{path}\n"))
            .collect();
        self.write("packages/packages.txt", list.as_bytes(), false)
    }

    fn models(&mut self, options: &Options) -> Result<Vec<String>> {
        self.copy("models/", "models/")?;
        let mut by_name: BTreeMap<&str, Vec<(&str, Digest, u64)>> = BTreeMap::new();
        for (path, entry) in self.source.list() {
            let inside = path.strip_prefix("models/").and_then(|rest| rest.split_once('/'));
            if let Some((name, file)) = inside {
                by_name.entry(name).or_default().push((file, entry.digest, entry.size));
            }
        }
        let names = by_name.keys().map(|name| (*name).to_owned()).collect();
        let models = Models {
            version: options.version.clone(),
            created_at: time(options.epoch)?,
            models: by_name.into_iter().map(|(name, files)| (name.to_owned(), Model::of(files))).collect(),
        };
        self.write("models/manifest.json", &pretty(&models), false)?;
        Ok(names)
    }

    fn copy(&mut self, from: &str, to: &str) -> Result<()> {
        let files: Vec<(String, Entry)> = self
            .source
            .list()
            .filter(|(path, _)| path.starts_with(from))
            .map(|(path, entry)| (path.to_owned(), entry))
            .collect();
        for (path, entry) in files {
            let target = format!("{to}{}", &path[from.len()..]);
            self.file(&path, entry, &target, entry.executable)?;
        }
        Ok(())
    }

    fn file(&mut self, from: &str, entry: Entry, to: &str, executable: bool) -> Result<()> {
        let path = self.place(to)?;
        let mut out = BufWriter::with_capacity(1 << 20, create(&path, executable)?);
        // The reader verifies the digest at the end: a damaged bundle fails here and not on the target.
        io::copy(&mut self.source.reader(from, entry), &mut out).map_err(Error::io("write", &path))?;
        out.flush().map_err(Error::io("write", &path))?;
        self.sums.insert(to.to_owned(), entry.digest);
        Ok(())
    }

    fn write(&mut self, to: &str, bytes: &[u8], executable: bool) -> Result<()> {
        let path = self.place(to)?;
        create(&path, executable)?.write_all(bytes).map_err(Error::io("write", &path))?;
        self.sums.insert(to.to_owned(), Digest::of(bytes));
        Ok(())
    }

    fn sum(&mut self, path: String) -> Result<()> {
        let file = self.root.join(&path);
        let digest = File::open(&file).and_then(Digest::of_reader).map_err(Error::io("read", &file))?.0;
        self.sums.insert(path, digest);
        Ok(())
    }

    fn place(&self, to: &str) -> Result<Utf8PathBuf> {
        if !safe(to) {
            return Err(Error::malformed(format!("`{to}`"), "it is not a path below a folder"));
        }
        let path = self.root.join(to);
        let folder = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        Ok(path)
    }
}

fn create(path: &Utf8Path, executable: bool) -> Result<File> {
    let file = File::create_new(path).map_err(Error::io("create", path))?;
    let mode = if executable { 0o755 } else { 0o644 };
    file.set_permissions(fs::Permissions::from_mode(mode)).map_err(Error::io("create", path))?;
    Ok(file)
}

/// A relative path that does not leave its folder.
pub(crate) fn safe(path: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() <= 255;
    path.len() <= 4096 && path.split('/').all(part) && !path.contains('\\') && !path.chars().any(char::is_control)
}

/// The name as `docker` shows it: without the public registry.
fn familiar(image: &IndexEntry) -> String {
    let name = image.name.strip_prefix("docker.io/").unwrap_or(&image.name);
    name.strip_prefix("library/").unwrap_or(name).to_owned()
}

fn file_name(image: &IndexEntry, with_registry: bool) -> String {
    let (repository, tag) = image.repository_and_tag();
    if with_registry {
        return format!("{}-{tag}.tar", repository.replace(['/', ':'], "-"));
    }
    match repository.rsplit('/').next().unwrap_or(repository) {
        "textnlp" => "textnlp-api.tar".to_owned(),
        last => format!("{last}.tar"),
    }
}

pub(crate) fn time(epoch: u64) -> Result<String> {
    let time = jiff::Timestamp::from_second(i64::try_from(epoch).unwrap_or(i64::MAX));
    time.map(|time| time.to_string()).map_err(|error| Error::malformed("the time", error.to_string()))
}

pub(crate) fn pretty(models: &Models) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(models).expect("texts and numbers");
    text.push(b'\n');
    text
}
