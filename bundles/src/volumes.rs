//! One archive in one or several files: `FILE`, or `FILE.001`, `FILE.002` and so on, all of one size but the last.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::{Errno, ReadWriteFlags};
use textnlp_files::{Lock, sync_folder};

use crate::error::{Error, Result};
use crate::flow::PAGE;

/// Smaller volumes would be too many.
pub(crate) const LEAST_VOLUME: u64 = 1 << 20;
const MOST_VOLUMES: u64 = 999;
/// Smaller reads go through the page cache.
const LEAST_DIRECT: usize = 1 << 20;

/// The volumes as one range of bytes.
#[derive(Debug)]
pub(crate) struct Volumes {
    parts: Vec<Part>,
    /// All parts but the last have this length.
    size: u64,
    /// Files with the following numbers, after a part of another length, which can only be the last.
    beyond: Vec<Utf8PathBuf>,
}

#[derive(Debug)]
struct Part {
    path: Utf8PathBuf,
    file: File,
    /// The same file opened for direct I/O, if the file system supports it.
    direct: Option<File>,
    length: u64,
}

/// The name of a volume, counted from 0.
fn numbered(path: &Utf8Path, n: u64) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{path}.{:03}", n + 1))
}

/// The files of an earlier bundle of this name that a new one of `total` bytes does not replace: later volumes, all volumes under
/// one file, or one file beside volumes. They would be read with the new ones or instead of them.
pub(crate) fn stale(path: &Utf8Path, total: u64, volume_size: Option<u64>) -> Result<Vec<Utf8PathBuf>> {
    let first = volume_size.map_or(0, |size| total.div_ceil(size.max(1)));
    let is_there = |path: &Utf8PathBuf| path.symlink_metadata().is_ok();
    let volumes = (first..MOST_VOLUMES).map(|n| numbered(path, n)).take_while(is_there);
    let whole = volume_size.map(|_| path.to_owned()).filter(is_there);
    let stale: Vec<Utf8PathBuf> = volumes.chain(whole).collect();
    for path in &stale {
        let found = path.symlink_metadata().map_err(Error::io("check", path))?;
        if !found.is_file() || !textnlp_files::is_own(&found) {
            return Err(Error::NotReplaceable { path: path.clone() });
        }
    }
    Ok(stale)
}

/// Removes the partial files of an earlier run of this name with another volume size: no run resumes them. The caller holds the
/// journal, so no other run writes to them. Files of other users stay, and those of a bundle that has the name of a volume.
pub(crate) fn remove_abandoned(path: &Utf8Path, total: u64, volume_size: Option<u64>) -> Result<()> {
    let first = volume_size.map_or(0, |size| total.div_ceil(size.max(1)));
    let whole = volume_size.map(|_| path.to_owned());
    let names = whole.into_iter().chain((first..MOST_VOLUMES).map(|n| numbered(path, n)));
    for name in names {
        let (partial, has_journal) = (partial_name(&name), name != path && journal_name(&name).exists());
        let is_own = partial.symlink_metadata().is_ok_and(|found| found.is_file() && textnlp_files::is_own(&found));
        if is_own && !has_journal {
            std::fs::remove_file(&partial).map_err(Error::io("remove", &partial))?;
        }
    }
    Ok(())
}

/// Refuses a device, a pipe or a link of the new bundle's name: the rename at the end would replace it.
fn replaceable(path: &Utf8Path) -> Result<()> {
    match path.symlink_metadata() {
        Ok(found) if !found.is_file() => Err(Error::NotReplaceable { path: path.to_owned() }),
        _ => Ok(()),
    }
}

impl Volumes {
    /// Opens a file, or volumes by the first one's name or by the name without number.
    pub(crate) fn open(path: &Utf8Path, write: bool) -> Result<Volumes> {
        let base = match path.as_str().strip_suffix(".001") {
            Some(base) => Some(Utf8PathBuf::from(base)),
            None if !path.exists() && numbered(path, 0).exists() => Some(path.to_owned()),
            None => None,
        };
        let Some(base) = base else {
            let part = existing(path, write)?;
            return Ok(Volumes { size: part.length.max(1), parts: vec![part], beyond: Vec::new() });
        };
        let first = existing(&numbered(&base, 0), write)?;
        let size = first.length.max(1);
        let (mut parts, mut beyond) = (vec![first], Vec::new());
        for path in (1..MOST_VOLUMES).map(|n| numbered(&base, n)).take_while(|path| path.exists()) {
            match parts.last() {
                Some(last) if last.length != size => beyond.push(path),
                _ => parts.push(existing(&path, write)?),
            }
        }
        Ok(Volumes { parts, size, beyond })
    }

    /// Compares the number of volumes with that of an archive of this length, which they are not shorter than.
    pub(crate) fn check_number(&self, total: u64) -> Result<()> {
        let wanted = usize::try_from(total.div_ceil(self.size)).unwrap_or(usize::MAX);
        let is_single = !self.path().as_str().ends_with(".001");
        match self.parts.get(wanted..) {
            _ if is_single => Ok(()),
            None => Err(self.unequal()),
            Some([]) if self.beyond.is_empty() => Ok(()),
            Some(more) => {
                let paths = more.iter().map(|part| &part.path).chain(&self.beyond).cloned().collect();
                Err(Error::OtherVolumes { paths, count: wanted })
            }
        }
    }

    /// The error for a last part that is followed by others.
    fn unequal(&self) -> Error {
        let last = &self.parts[self.parts.len() - 1];
        let why = format!("has {} bytes, the first has {}", last.length, self.size);
        Error::Volume { path: last.path.clone(), why }
    }

    /// Opens or creates the files for `total` bytes, `FILE.partial` or `FILE.001.partial` and so on. If one cannot be opened,
    /// those that were created are removed.
    pub(crate) fn partial(path: &Utf8Path, total: u64, volume_size: Option<u64>) -> Result<Volumes> {
        let names = match volume_size {
            None => vec![path.to_owned()],
            Some(size) if size < LEAST_VOLUME || total.div_ceil(size) > MOST_VOLUMES => {
                let least = LEAST_VOLUME.max(total.div_ceil(MOST_VOLUMES));
                return Err(Error::Inputs {
                    problems: vec![format!("volumes of {size} bytes are too small; at least {least}")],
                });
            }
            Some(size) => (0..total.div_ceil(size)).map(|n| numbered(path, n)).collect(),
        };
        let (mut parts, mut created): (Vec<Part>, Vec<Utf8PathBuf>) = (Vec::new(), Vec::new());
        for name in &names {
            let partial = partial_name(name);
            let existed = partial.symlink_metadata().is_ok();
            match replaceable(name).and_then(|()| writable(&partial, existed)) {
                Ok(part) => parts.push(part),
                Err(error) => {
                    created.iter().for_each(|path| drop(std::fs::remove_file(path)));
                    return Err(error);
                }
            }
            if !existed {
                created.push(partial);
            }
        }
        Ok(Volumes { parts, size: volume_size.unwrap_or(u64::MAX), beyond: Vec::new() })
    }

    /// Renames the finished volumes, the first one last, after the stale files are removed: if it exists, all exist and no others.
    pub(crate) fn publish(&self, stale: &[Utf8PathBuf]) -> Result<Vec<Utf8PathBuf>> {
        let mut names = Vec::new();
        for (number, part) in self.parts.iter().enumerate().rev() {
            if number == 0 {
                // The last one first: after a crash, what is left has no gap and is found again.
                for path in stale.iter().rev() {
                    match std::fs::remove_file(path) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => {
                            return Err(Error::io("remove", path)(error));
                        }
                        _ => {}
                    }
                }
            }
            let name = part.path.as_str().strip_suffix(PARTIAL).unwrap_or(part.path.as_str());
            std::fs::rename(&part.path, name).map_err(Error::io("rename", &part.path))?;
            names.push(Utf8PathBuf::from(name));
        }
        if let Some(folder) = self.parts[0].path.parent() {
            sync_folder(folder)?;
        }
        names.reverse();
        Ok(names)
    }

    /// Removes unfinished volumes. Those that cannot be removed are replaced by the next run.
    pub(crate) fn discard(&self) {
        self.parts.iter().for_each(|part| drop(std::fs::remove_file(&part.path)));
    }

    pub(crate) fn length(&self) -> u64 {
        self.parts.iter().map(|part| part.length).sum()
    }

    /// The name in messages.
    pub(crate) fn path(&self) -> &Utf8Path {
        &self.parts[0].path
    }

    /// The error for an archive that ends before `expected`.
    pub(crate) fn too_short(&self, expected: u64) -> Error {
        let found = self.length();
        if !self.beyond.is_empty() && (self.parts.len() as u64) < expected.div_ceil(self.size) {
            return self.unequal();
        }
        match self.parts.last() {
            // A last volume of full length: whole volumes are missing.
            Some(last)
                if last.path.as_str().ends_with(&format!(".{:03}", self.parts.len())) && last.length == self.size =>
            {
                let base = last.path.with_extension("");
                Error::Volume { path: numbered(&base, self.parts.len() as u64), why: "is missing".into() }
            }
            Some(last) => Error::Truncated { path: last.path.clone(), found, expected },
            None => Error::Truncated { path: Utf8PathBuf::new(), found, expected },
        }
    }

    /// Reads all of `buffer`.
    pub(crate) fn read_at(&self, mut buffer: &mut [u8], mut at: u64) -> Result<()> {
        while !buffer.is_empty() {
            let (part, inside) = self.locate(at, buffer.len());
            let Some(part) = self.parts.get(part) else {
                return Err(self.too_short(at + buffer.len() as u64));
            };
            let (now, rest) = buffer.split_at_mut(inside.1);
            part.file.read_exact_at(now, inside.0).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => self.too_short(at + now.len() as u64),
                _ => Error::io("read", &part.path)(error),
            })?;
            at += now.len() as u64;
            buffer = rest;
        }
        Ok(())
    }

    /// Reads `size` bytes with their page alignment. Large reads bypass the page cache when it does not hold them:
    /// filling the cache would cost more than it saves.
    pub(crate) fn read_on_pages(&self, pages: &mut [u8], head: usize, size: usize, at: u64) -> Result<()> {
        let (part, (inside, here)) = self.locate(at, size);
        let part = self.parts.get(part).filter(|_| here == size && size >= LEAST_DIRECT);
        if let Some(part) = part
            && part.read_direct(pages, head, size, inside)
        {
            return Ok(());
        }
        self.read_at(&mut pages[head..head + size], at)
    }

    /// Writes the bytes. Returns the count of those that went to the page cache, not directly to the disk.
    pub(crate) fn write_at(&self, mut bytes: &[u8], mut at: u64) -> Result<u64> {
        let mut cached = 0;
        while !bytes.is_empty() {
            let (part, inside) = self.locate(at, bytes.len());
            let part = &self.parts[part];
            let (now, rest) = bytes.split_at(inside.1);
            cached += part.write_at(now, inside.0).map_err(Error::io("write", &part.path))? as u64;
            at += now.len() as u64;
            bytes = rest;
        }
        Ok(cached)
    }

    /// Whether all parts had their final lengths when they were opened.
    pub(crate) fn has_length(&self, total: u64) -> bool {
        let wanted = |n: usize| total.saturating_sub(self.size.saturating_mul(n as u64)).min(self.size);
        self.parts.iter().enumerate().all(|(n, part)| part.length == wanted(n))
    }

    /// Truncates or extends the parts to their final lengths and allocates the space, so that a lack of space is found now.
    pub(crate) fn set_length(&self, total: u64) -> Result<()> {
        let mut rest = total;
        for part in &self.parts {
            let length = rest.min(self.size);
            part.file.set_len(length).map_err(Error::io("resize", &part.path))?;
            match rustix::fs::fallocate(&part.file, FallocateFlags::empty(), 0, length) {
                // Some file systems allocate space only on write.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
                Err(errno) => return Err(Error::os("reserve space for", &part.path)(errno)),
            }
            rest -= length;
        }
        Ok(())
    }

    /// The file that holds this byte.
    pub(crate) fn file_at(&self, at: u64) -> &File {
        let (part, _) = self.locate(at, 1);
        &self.parts[part.min(self.parts.len() - 1)].file
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.parts.iter().try_for_each(|part| part.file.sync_data().map_err(Error::io("sync", &part.path)))
    }

    /// Locks the files against a second writer.
    pub(crate) fn lock(&self) -> Result<Lock> {
        let part = &self.parts[0];
        let file = part.file.try_clone().map_err(Error::io("lock", &part.path))?;
        Lock::try_file(file, &part.path)?.ok_or_else(|| Error::Busy { path: part.path.clone() })
    }

    /// The part, and the offset and length within it.
    fn locate(&self, at: u64, length: usize) -> (usize, (u64, usize)) {
        if self.parts.len() == 1 {
            return (0, (at, length));
        }
        let (part, inside) = (at / self.size, at % self.size);
        let length = usize::try_from(self.size - inside).map_or(length, |room| room.min(length));
        (usize::try_from(part).unwrap_or(usize::MAX), (inside, length))
    }
}

impl Part {
    /// Opens the file a second time for direct reads, unless the page cache holds most of it.
    fn past_cache(mut self) -> Part {
        if !is_cached(&self.path, self.length) {
            let direct = OFlags::DIRECT.bits() as i32;
            self.direct = OpenOptions::new().read(true).custom_flags(direct).open(&self.path).ok();
        }
        self
    }

    /// False if direct reads are not possible or not worth it; the content of the buffer is then undefined.
    fn read_direct(&self, pages: &mut [u8], head: usize, size: usize, at: u64) -> bool {
        let Some(direct) = &self.direct else { return false };
        if !(at - head as u64).is_multiple_of(PAGE as u64) || pages.as_ptr().align_offset(PAGE) != 0 {
            return false;
        }
        let before = pages[..head].to_vec();
        let (from, mut filled) = (at - head as u64, 0);
        // The file may end on the last page. Errors are ignored: the caller reads the same bytes again and reports them.
        while filled < head + size && filled.is_multiple_of(PAGE) {
            match direct.read_at(&mut pages[filled..], from + filled as u64) {
                Ok(0) | Err(_) => break,
                Ok(n) => filled += n,
            }
        }
        pages[..head].copy_from_slice(&before);
        filled >= head + size
    }

    /// Whole pages that are aligned in memory and in the file are written directly to disk; other bytes use the page cache.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        let on_pages = bytes.as_ptr().align_offset(PAGE) == 0 && at.is_multiple_of(PAGE as u64);
        let (pages, rest) = bytes.split_at(if on_pages { bytes.len() / PAGE * PAGE } else { 0 });
        if let Some(direct) = self.direct.as_ref().filter(|_| !pages.is_empty()) {
            match direct.write_all_at(pages, at) {
                Ok(()) => return self.file.write_all_at(rest, at + pages.len() as u64).map(|()| rest.len()),
                // File systems do not announce further alignment requirements.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                Err(error) => return Err(error),
            }
        }
        self.file.write_all_at(bytes, at).map(|()| bytes.len())
    }
}

const PARTIAL: &str = ".partial";

pub(crate) fn partial_name(path: &Utf8Path) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{path}{PARTIAL}"))
}

/// The journal of a new bundle, whole or in volumes.
pub(crate) fn journal_name(path: &Utf8Path) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{}.journal", partial_name(path)))
}

/// Opens a partial file, or creates it. The content of an earlier one is resumed, so it is not another user's; and a link would be
/// written through.
fn writable(path: &Utf8Path, existed: bool) -> Result<Part> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o644).custom_flags(OFlags::NOFOLLOW.bits() as i32);
    let mut part = part(path, &mut options)?;
    let found = part.file.metadata().map_err(Error::io("check", path))?;
    if existed && !textnlp_files::is_own(&found) {
        return Err(Error::NotReplaceable { path: path.to_owned() });
    }
    let direct = (OFlags::DIRECT | OFlags::NOFOLLOW).bits() as i32;
    part.direct = OpenOptions::new().write(true).custom_flags(direct).open(path).ok();
    Ok(part)
}

fn existing(path: &Utf8Path, write: bool) -> Result<Part> {
    let part = part(path, OpenOptions::new().read(true).write(write))?;
    Ok(if write { part } else { part.past_cache() })
}

/// Whether the page cache holds most of a file. A few offsets are sampled, before the file is read.
fn is_cached(path: &Utf8Path, length: u64) -> bool {
    const PLACES: u64 = 16;
    let Ok(probe) = File::open(path) else { return false };
    // Only the requested page is loaded into the cache, no pages after it.
    let _ = rustix::fs::fadvise(&probe, 0, None, rustix::fs::Advice::Random);
    let there = |place: &u64| {
        let mut byte = [0];
        let mut buffers = [io::IoSliceMut::new(&mut byte)];
        rustix::io::preadv2(&probe, &mut buffers, length / PLACES * place, ReadWriteFlags::NOWAIT).is_ok()
    };
    (0..PLACES).filter(there).count() as u64 > PLACES / 2
}

fn part(path: &Utf8Path, options: &mut OpenOptions) -> Result<Part> {
    let file = options.open(path).map_err(Error::io("open", path))?;
    in_order(&file);
    let metadata = file.metadata().map_err(Error::io("check", path))?;
    if !metadata.is_file() {
        return Err(Error::NotABundle { path: path.to_owned(), why: "it is not a file".into() });
    }
    Ok(Part { path: path.to_owned(), length: metadata.len(), direct: None, file })
}

/// Declares sequential reading, so that the system reads further ahead.
pub(crate) fn in_order(file: &File) {
    // Only advice: without it, reading still works.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Sequential);
}
