//! An incoming content of a site: a folder that is not visible until it is complete. Bytes are verified before they are
//! written, so the lengths of the files are the progress after a kill.

use std::collections::{BTreeSet, HashMap};
use std::fs::{File as OsFile, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use textnlp_files::{Filesystem, Replace, filesystem};
use textnlp_models::Digest;

use crate::error::{Error, Result};
use crate::flow::WriteBehind;
use crate::manifest::File;
use crate::pack::boot;
use crate::site::{Installed, Site, Stamp, remove};

/// The space that the target needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Needs {
    /// Bytes to be written.
    pub bytes: u64,
    /// Files and folders to be made.
    pub inodes: u64,
    /// Bytes that exist already: from an older content, or from an interrupted run.
    pub kept: u64,
}

impl Needs {
    /// Checks the free space of a folder, or of its nearest existing parent.
    pub fn check(&self, folder: &Utf8Path) -> Result<()> {
        let there = folder.ancestors().find(|path| path.exists()).unwrap_or(Utf8Path::new("."));
        let there = if there.as_str().is_empty() { Utf8Path::new(".") } else { there };
        let Filesystem { free, free_inodes, .. } = filesystem(there)?;
        let short = |unit, needed, free| Err(Error::Room { path: there.to_owned(), unit, needed, free });
        if self.bytes > free {
            return short("bytes", self.bytes, free);
        }
        match free_inodes {
            Some(free) if self.inodes > free => short("inodes", self.inodes, free),
            _ => Ok(()),
        }
    }
}

/// The folder.
pub(crate) struct Incoming<'a> {
    site: &'a Site,
    pub(crate) folder: Utf8PathBuf,
    note: Utf8PathBuf,
    open: Option<(usize, OsFile, u64)>,
}

/// Written beside the folder at the start.
#[derive(Serialize, Deserialize, PartialEq)]
struct StartRecord {
    manifest: Digest,
    base: Option<Digest>,
    boot: String,
}

/// Unchanged files of older contents.
pub(crate) struct Older {
    /// By digest and size.
    files: HashMap<(Digest, u64), Vec<OldFile>>,
}

/// The path of a file, its entry in the record, and its stamp.
type OldFile = (Utf8PathBuf, File, Stamp);

impl Older {
    /// Of all contents of the site.
    pub(crate) fn of(site: &Site) -> Result<Older> {
        let mut files: HashMap<_, Vec<OldFile>> = HashMap::new();
        for name in site.contents()? {
            // A content with an unreadable record is only not reused.
            let Ok(Installed { contents, stamps, .. }) = site.record(&name) else { continue };
            let folder = site.folder(&name);
            for (file, stamp) in contents.files.into_iter().zip(stamps) {
                files.entry((file.digest, file.size)).or_default().push((folder.join(&file.path), file, stamp));
            }
        }
        Ok(Older { files })
    }

    /// Forgets damaged files.
    pub(crate) fn without(mut self, bad: &BTreeSet<Utf8PathBuf>) -> Older {
        self.files.values_mut().for_each(|files| files.retain(|(path, ..)| !bad.contains(path)));
        self
    }

    /// A file with the same chunks: unpacking verifies the digests of chunks, not those of whole files.
    pub(crate) fn same(&self, wanted: &File) -> Option<&Utf8Path> {
        let found = self.files.get(&(wanted.digest, wanted.size))?.iter().find(|(path, file, stamp)| {
            file.executable == wanted.executable
                && file.chunks == wanted.chunks
                && Stamp::at(path).is_ok_and(|now| now == *stamp)
        });
        found.map(|(path, ..)| path.as_path())
    }
}

impl<'a> Incoming<'a> {
    /// Starts, or resumes an earlier run of the same work. The caller holds the site's lock.
    pub(crate) fn open(
        site: &'a Site,
        name: &str,
        manifest: Digest,
        base: Option<Digest>,
        files: &[File],
    ) -> Result<Incoming<'a>> {
        let folder = site.root().join(format!(".incoming-{name}"));
        let note = site.root().join(format!(".incoming-{name}.json"));
        let record = StartRecord { manifest, base, boot: boot() };
        let found = std::fs::read(&note).ok().and_then(|bytes| serde_json::from_slice::<StartRecord>(&bytes).ok());
        match found {
            Some(found) if found == record => {}
            // After a reboot, unsynced bytes may be missing anywhere in the files.
            Some(found) if (found.manifest, found.base) == (manifest, base) && folder.exists() => {
                remove(&proof_path(&folder))?;
                recheck(&folder, files)?
            }
            _ => {
                remove(&proof_path(&folder))?;
                remove(&folder)?
            }
        }
        std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        set_mode(&folder, 0o755)?;
        let text = serde_json::to_vec(&record).map_err(|error| Error::io("write", &note)(error.into()))?;
        std::fs::write(&note, text).map_err(Error::io("write", &note))?;
        Ok(Incoming { site, folder, note, open: None })
    }

    /// The count of complete chunks of a file. Bytes beyond them are truncated.
    pub(crate) fn have(&self, file: &File) -> Result<usize> {
        let path = self.folder.join(&file.path);
        let length = match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => metadata.len(),
            Ok(_) => return Err(Error::Altered { path, why: "it is not a file".into() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(Error::io("check", path)(error)),
        };
        let (count, whole) = whole_chunks(file, length);
        if whole < length {
            let cut = OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(whole));
            cut.map_err(Error::io("cut", &path))?;
        }
        Ok(count)
    }

    /// Where a [`Proof`](crate::proof::Proof) is kept.
    pub(crate) fn proof(&self) -> Utf8PathBuf {
        proof_path(&self.folder)
    }

    /// Reuses a file of an older content by a hard link.
    pub(crate) fn link(&self, from: &Utf8Path, file: &File) -> Result<bool> {
        let path = self.folder.join(&file.path);
        self.parents(&file.path)?;
        match std::fs::hard_link(from, &path) {
            Ok(()) => Ok(true),
            // Another filesystem, or too many links: it is written like any other.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Ok(false),
            Err(_) => {
                remove(&path)?;
                std::fs::hard_link(from, &path).map_err(Error::io("link", &path))?;
                Ok(true)
            }
        }
    }

    /// Makes an empty file.
    pub(crate) fn empty(&self, file: &File) -> Result<()> {
        self.create(file, 0).map(drop)
    }

    /// Appends a verified chunk to a file; the first one makes it.
    pub(crate) fn append(&mut self, index: usize, file: &File, bytes: &[u8], behind: &mut WriteBehind) -> Result<()> {
        let out = match self.open.take() {
            Some((open, out, at)) if open == index => self.open.insert((index, out, at)),
            _ => {
                let have = std::fs::symlink_metadata(self.folder.join(&file.path)).map_or(0, |metadata| metadata.len());
                let out = self.create(file, have)?;
                self.open.insert((index, out, have))
            }
        };
        out.1.write_all_at(bytes, out.2).map_err(Error::io("write", self.folder.join(&file.path)))?;
        out.2 += bytes.len() as u64;
        behind.wrote(bytes.len() as u64, &out.1);
        if out.2 == file.size {
            self.open = None;
        }
        Ok(())
    }

    fn create(&self, file: &File, have: u64) -> Result<OsFile> {
        self.parents(&file.path)?;
        let path = self.folder.join(&file.path);
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).mode(0o644);
        if have == 0 {
            // A hard link to an older content's file must never be written through.
            remove(&path)?;
            options.create_new(true);
        }
        options.open(&path).map_err(Error::io("create", &path))
    }

    fn parents(&self, path: &str) -> Result<()> {
        for (at, _) in path.match_indices('/') {
            let folder = self.folder.join(&path[..at]);
            match std::fs::create_dir(&folder) {
                // Independent of the umask.
                Ok(()) => set_mode(&folder, 0o755)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("create", &folder)(error)),
            }
        }
        Ok(())
    }

    /// All files are complete: sets their modes, writes the record and renames the folder.
    pub(crate) fn finish(self, mut record: Installed, name: &str) -> Result<Installed> {
        let mut stamps = Vec::with_capacity(record.contents.files.len());
        for file in &record.contents.files {
            let path = self.folder.join(&file.path);
            let mode = if file.executable { 0o555 } else { 0o444 };
            let altered = |why: String| Error::Altered { path: path.clone(), why };
            let mut stamp = Stamp::at(&path).map_err(|error| altered(error.to_string()))?;
            if !stamp.has(file.size, mode) {
                set_mode(&path, mode)?;
                stamp = Stamp::at(&path).map_err(|error| altered(error.to_string()))?;
            }
            if !stamp.has(file.size, mode) {
                return Err(altered("its size or mode is not the one that was just set".into()));
            }
            stamps.push(stamp);
        }
        record.stamps = stamps;
        self.site.write_record(&self.folder, &record)?;
        self.site.publish(&self.folder, name)?;
        remove(&self.note)?;
        remove(&self.proof())?;
        Ok(record)
    }
}

fn proof_path(folder: &Utf8Path) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{folder}.proof"))
}

/// Reads `size` bytes of a file.
pub(crate) fn read_part(path: &Utf8Path, offset: u64, size: u32) -> Result<Vec<u8>> {
    let mut bytes = vec![0; size as usize];
    let file = OsFile::open(path).map_err(Error::io("open", path))?;
    file.read_exact_at(&mut bytes, offset).map_err(Error::io("read", path))?;
    Ok(bytes)
}

fn set_mode(path: &Utf8Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(Error::io("set the mode of", path))
}

/// The chunks that a length covers, and their bytes.
fn whole_chunks(file: &File, length: u64) -> (usize, u64) {
    let mut whole = 0;
    for (n, chunk) in file.chunks.iter().enumerate() {
        let next = whole + u64::from(chunk.size);
        if next > length {
            return (n, whole);
        }
        whole = next;
    }
    (file.chunks.len(), whole)
}

/// Cuts every file in front of its first chunk that does not have its digest.
fn recheck(folder: &Utf8Path, files: &[File]) -> Result<()> {
    for file in files {
        let path = folder.join(&file.path);
        let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
        let (count, _) = whole_chunks(file, metadata.len());
        let mut good = 0;
        for chunk in &file.chunks[..count] {
            let bytes = read_part(&path, good, chunk.size)?;
            if <[u8; 32]>::from(Sha256::digest(&bytes)) != chunk.digest {
                break;
            }
            good += u64::from(chunk.size);
        }
        if good < metadata.len() {
            // It may be a link to an older content's file, which must not change.
            let mut kept = OsFile::open(&path).map_err(Error::io("open", &path))?;
            // Not synced: these bytes were not synced before either, and are verified again after a reboot.
            Replace::umask().sole_writer().without_sync().with(&path, |copy| {
                io::copy(&mut io::Read::take(&mut kept, good), copy).map(drop).map_err(Error::io("copy", &path))
            })?;
        }
    }
    Ok(())
}
