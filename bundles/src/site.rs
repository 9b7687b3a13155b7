//! The folder where bundles are installed: each content in an immutable folder of its own, and one link to the active
//! one.
//!
//! ```text
//! ROOT/content-4f1d…/          the files of one content (0444, 0555), and installed.json
//! ROOT/current -> content-4f1d…
//! ROOT/installed.json -> current/installed.json
//! ROOT/trust.json             the pinned keys; see `trust.rs`
//! ROOT/rollback.json          the content that an unfinished rollback leads to
//! ```

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{AtFlags, RenameFlags};
use serde::{Deserialize, Serialize};
use textnlp_files::{Lock, Replace, sync_folder};
use textnlp_models::Digest;

use crate::contents::Contents;
use crate::error::{Error, Result};
use crate::manifest::Kind;
use crate::sign::Authenticity;

/// The record's name, in each content's folder and at the root.
pub const INSTALLED: &str = "installed.json";
const CURRENT: &str = "current";
const CONTENT: &str = "content-";
const ROLLBACK: &str = "rollback.json";
/// Of the record.
pub(crate) const FORMAT: u32 = 1;

/// The installed content, and its origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Installed {
    /// The format of this record.
    pub format: u32,
    /// See [`Contents::digest`].
    pub content: Digest,
    /// Of the full bundle or of the last delta.
    pub version: String,
    /// See [`Manifest::epoch`](crate::Manifest::epoch).
    pub epoch: u64,
    /// The bundles that it was installed from: a full one, then deltas.
    pub sources: Vec<Source>,
    /// The folder of the content that was active before.
    pub previous: Option<String>,
    /// What it holds.
    #[serde(flatten)]
    pub contents: Contents,
    /// For each file, in order, the stamp that shows whether it was changed.
    pub stamps: Vec<Stamp>,
}

/// One installed bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Full or delta.
    pub kind: Kind,
    /// See [`Manifest::version`](crate::Manifest::version).
    pub version: String,
    /// Of its first member.
    pub manifest: Digest,
    /// Whether a trusted key had signed it.
    #[serde(flatten)]
    pub authenticity: Authenticity,
}

/// A file as it was installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, i64, u64, u32)", into = "(u64, i64, u64, u32)")]
pub struct Stamp {
    size: u64,
    /// Nanoseconds since 1970.
    modified: i64,
    inode: u64,
    mode: u32,
}

impl Stamp {
    /// The current stamp of a path. A link is not followed.
    pub(crate) fn at(path: &Utf8Path) -> io::Result<Stamp> {
        let metadata = std::fs::symlink_metadata(path)?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        let modified = metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
        Ok(Stamp { size: metadata.len(), modified, inode: metadata.ino(), mode: metadata.mode() & 0o7777 })
    }
}

impl From<(u64, i64, u64, u32)> for Stamp {
    fn from((size, modified, inode, mode): (u64, i64, u64, u32)) -> Stamp {
        Stamp { size, modified, inode, mode }
    }
}

impl From<Stamp> for (u64, i64, u64, u32) {
    fn from(stamp: Stamp) -> Self {
        (stamp.size, stamp.modified, stamp.inode, stamp.mode)
    }
}

impl Installed {
    /// Whether a trusted key had signed every bundle of this content.
    pub fn is_verified(&self) -> bool {
        self.sources.iter().all(|source| source.authenticity.is_verified())
    }
}

/// The root of an installed site.
#[derive(Clone, Debug)]
pub struct Site {
    root: Utf8PathBuf,
}

/// The file [`ROLLBACK`]: the content of a rollback that has not been rolled out yet.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnfinishedRollback {
    format: u32,
    target: String,
}

/// The lock of a site, held during changes.
#[derive(Debug)]
pub struct SiteLock(#[expect(dead_code, reason = "held for its lock")] Lock);

/// The result of [`Site::gc`].
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// Names of folders.
    pub removed: Vec<String>,
}

impl Site {
    /// The site at `root`; the folder is created by the first installation.
    pub fn new(root: &Utf8Path) -> Site {
        Site { root: root.to_owned() }
    }

    /// The site whose content this program is part of.
    pub fn of_this_program() -> Option<Site> {
        let program = Utf8PathBuf::try_from(std::env::current_exe().ok()?).ok()?;
        let is_content = |folder: &&Utf8Path| folder.file_name().is_some_and(|name| name.starts_with(CONTENT));
        let root = program.ancestors().find(is_content)?.parent()?;
        // Where every user may write, such as in `/tmp`, the record may be from any of them.
        let is_open = std::fs::metadata(root).is_ok_and(|there| there.mode() & 0o002 != 0);
        (root.join(INSTALLED).exists() && !is_open).then(|| Site::new(root))
    }

    /// The root folder.
    pub fn root(&self) -> &Utf8Path {
        &self.root
    }

    /// The name of the folder for a content.
    pub fn name_of(content: &Digest) -> String {
        format!("{CONTENT}{}", &content.hex()[..16])
    }

    /// The folder of a content by its name.
    pub fn folder(&self, name: &str) -> Utf8PathBuf {
        self.root.join(name)
    }

    /// The name of the active content.
    pub fn current(&self) -> Result<Option<String>> {
        let link = self.root.join(CURRENT);
        match link.read_link_utf8() {
            Ok(target) => Ok(target.file_name().filter(|name| name.starts_with(CONTENT)).map(str::to_owned)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", link)(error)),
        }
    }

    /// The record of the active content; `None` before the first activation.
    pub fn installed(&self) -> Result<Option<Installed>> {
        match self.current()? {
            Some(name) => self.record(&name).map(Some),
            None => Ok(None),
        }
    }

    /// The record of any content in the folder.
    pub fn record(&self, name: &str) -> Result<Installed> {
        let path = self.folder(name).join(INSTALLED);
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let record: Installed = serde_json::from_slice(&bytes).map_err(|error| Error::Altered {
            path: path.clone(),
            why: format!("it is not an installation record: {error}"),
        })?;
        let is_complete =
            record.stamps.len() == record.contents.files.len() && record.contents.digest() == record.content;
        let why = "its content digest is not that of its files".to_owned();
        if is_complete { Ok(record) } else { Err(Error::Altered { path, why }) }
    }

    /// The names of all installed contents.
    pub fn contents(&self) -> Result<Vec<String>> {
        self.names(CONTENT)
    }

    /// Activates a content in one step. The previous one is kept for [`Site::rollback`].
    pub fn activate(&self, name: &str) -> Result<()> {
        let _lock = self.lock()?;
        self.choose(name)
    }

    /// Activates the previous content. Until [`Site::finish_rollback`], another call activates the same one again: what
    /// runs may still be the content before it. After that, another call returns to this content. Returns the name.
    pub fn rollback(&self) -> Result<String> {
        self.check_folder()?;
        let _lock = self.lock()?;
        if let Some(target) = self.unfinished_rollback()? {
            self.switch(&target)?;
            return Ok(target);
        }
        let none = |why: &str| Error::Site { root: self.root.clone(), why: why.to_owned() };
        let record = self.installed()?.ok_or_else(|| none("nothing is installed"))?;
        let previous = record.previous.ok_or_else(|| none("nothing was installed before"))?;
        let unfinished = UnfinishedRollback { format: FORMAT, target: previous.clone() };
        let path = self.root.join(ROLLBACK);
        let text = serde_json::to_vec(&unfinished).map_err(|error| Error::io("write", &path)(error.into()))?;
        // Before the switch: after a crash between the two, the next call leads to the same content.
        Replace::mode(0o644).sole_writer().write(&path, &text)?;
        self.switch(&previous)?;
        Ok(previous)
    }

    /// Ends a rollback whose content was rolled out.
    pub fn finish_rollback(&self) -> Result<()> {
        let _lock = self.lock()?;
        self.end_rollback()
    }

    /// The content of a rollback that is not finished, while that content is still here.
    fn unfinished_rollback(&self) -> Result<Option<String>> {
        let path = self.root.join(ROLLBACK);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("read", path)(error)),
        };
        let unfinished: UnfinishedRollback = serde_json::from_slice(&bytes)
            .map_err(|error| Error::Altered { path, why: format!("it is not the record of a rollback: {error}") })?;
        Ok(self.contents()?.contains(&unfinished.target).then_some(unfinished.target))
    }

    fn end_rollback(&self) -> Result<()> {
        remove_link(&self.root.join(ROLLBACK))?;
        Ok(sync_folder(&self.root)?)
    }

    /// Activates a content that the operator chose, in place of that of an unfinished rollback.
    pub(crate) fn choose(&self, name: &str) -> Result<()> {
        self.switch(name)?;
        self.end_rollback()
    }

    /// Removes contents that are neither active nor the previous one, and the rest of an unfinished installation.
    pub fn gc(&self) -> Result<Collected> {
        let _lock = self.lock()?;
        let current = self.current()?;
        let previous = self.installed()?.and_then(|record| record.previous);
        let mut collected = Collected::default();
        for name in self.contents()?.into_iter().chain(self.names(".incoming-")?).chain(self.names(".old-")?) {
            if Some(&name) != current.as_ref() && Some(&name) != previous.as_ref() {
                remove(&self.folder(&name))?;
                collected.removed.push(name);
            }
        }
        Ok(collected)
    }

    /// Takes the lock of the site. Fails at once when another process holds it.
    pub fn lock(&self) -> Result<SiteLock> {
        // Independent of the umask: others must not be able to replace the pinned keys.
        DirBuilder::new().recursive(true).mode(0o755).create(&self.root).map_err(Error::io("create", &self.root))?;
        let path = self.root.join(".lock");
        let held = Lock::try_exclusive(&path, 0o666)?;
        held.map(SiteLock).ok_or(Error::Busy { path })
    }

    /// Writes a content's record into a folder, durably.
    pub(crate) fn write_record(&self, folder: &Utf8Path, record: &Installed) -> Result<()> {
        let path = folder.join(INSTALLED);
        let text = serde_json::to_vec(record).map_err(|error| Error::io("write", &path)(error.into()))?;
        // The caller holds the lock of the site.
        Ok(Replace::mode(0o644).sole_writer().write(path, &text)?)
    }

    /// Renames a finished folder. An existing folder of that name is removed in the same step.
    pub(crate) fn publish(&self, incoming: &Utf8Path, name: &str) -> Result<()> {
        let target = self.folder(name);
        // Everything under the folder is on the disk before its name is.
        let root = File::open(&self.root).map_err(Error::io("open", &self.root))?;
        rustix::fs::syncfs(&root).map_err(Error::os("sync", &self.root))?;
        let here = rustix::fs::CWD;
        let renamed = match rustix::fs::renameat_with(
            here,
            incoming.as_std_path(),
            here,
            target.as_std_path(),
            RenameFlags::NOREPLACE,
        ) {
            Err(rustix::io::Errno::EXIST) => {
                rustix::fs::renameat_with(
                    here,
                    incoming.as_std_path(),
                    here,
                    target.as_std_path(),
                    RenameFlags::EXCHANGE,
                )
                .map_err(Error::os("exchange", &target))?;
                let old = self.root.join(format!(".old-{name}"));
                remove(&old)?;
                std::fs::rename(incoming, &old).map_err(Error::io("rename", incoming))?;
                remove(&old)?;
                Ok(())
            }
            other => other,
        };
        renamed.map_err(Error::os("rename", incoming))?;
        Ok(sync_folder(&self.root)?)
    }

    fn switch(&self, name: &str) -> Result<()> {
        let mut record = self.record(name)?;
        let before = self.current()?;
        if before.as_deref() != Some(name) {
            // First the link for a rollback, then the switch.
            if before.is_some() && record.previous != before {
                record.previous = before;
                self.write_record(&self.folder(name), &record)?;
            }
            let temporary = self.root.join(".current.tmp");
            remove_link(&temporary)?;
            symlink(name, &temporary).map_err(Error::io("link", &temporary))?;
            std::fs::rename(&temporary, self.root.join(CURRENT)).map_err(Error::io("rename", &temporary))?;
        }
        let link = self.root.join(INSTALLED);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(format!("{CURRENT}/{INSTALLED}"), &link).map_err(Error::io("link", &link))?;
        }
        Ok(sync_folder(&self.root)?)
    }

    fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let entries = match self.root.read_dir_utf8() {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list", &self.root)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::io("list", &self.root))?;
            if entry.file_name().starts_with(prefix) {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort();
        Ok(names)
    }
}

fn remove_link(path: &Utf8Path) -> Result<()> {
    match rustix::fs::unlinkat(rustix::fs::CWD, path.as_std_path(), AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::os("remove", path)(errno)),
    }
}

/// Removes a file or a folder; a missing one is no error.
pub(crate) fn remove(path: &Utf8Path) -> Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

impl Stamp {
    pub(crate) fn has(&self, size: u64, mode: u32) -> bool {
        self.size == size && self.mode == mode
    }
}
