//! Creates a bundle: one pass over the inputs reads, cuts, hashes and writes them. The same inputs give the same bytes
//! with any number of threads, and a killed run is resumable.

mod inputs;
mod journal;

use std::collections::BTreeMap;
use std::fs::File as OsFile;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_models::Digest;
use textnlp_models::sha::Sha256;

use crate::chunk::{self, Cuts};
use crate::contents::{Contents, content_digest};
use crate::error::{Error, Result};
use crate::flow::{self, Ahead, Batch, Drive, Event, PAGE, Sheet, Tail, WholeFileHashing, WriteBehind};
use crate::layout::{self, BLOCK, Layout, Outline, Role, SIGNATURE, round_up};
use crate::manifest::{Chunk, FORMAT, File, Item, KeyChange, Kind, Manifest};
use crate::rules::{MOST_CHUNK, MOST_MANIFEST};
use crate::volumes::{self, Volumes};
use inputs::{StampedInput, check};
use journal::{Journal, Progress};

pub use inputs::{Content, Input};
pub(crate) use journal::{boot, with_partial};

/// The inputs of a full bundle.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// See [`Manifest::version`].
    pub version: String,
    /// See [`Manifest::epoch`].
    pub epoch: u64,
    /// In any order.
    pub items: Vec<Item>,
    /// In any order.
    pub files: Vec<Input>,
    /// Expected digests by path. If a file differs, the bundle is not created.
    pub promised: BTreeMap<String, Digest>,
    /// The chunks of files with an expected digest, computed from the same bytes. Such a file is hashed once, by
    /// chunks: equal chunks mean an equal digest, and others are refused. A process that may write this list can make a
    /// bundle contain a wrong file digest, which [`VerifyOptions::whole_files`](crate::VerifyOptions::whole_files)
    /// finds.
    pub recorded: BTreeMap<String, Vec<Chunk>>,
    /// See [`Manifest::keys`].
    pub keys: Option<KeyChange>,
}

/// Options of the output.
#[derive(Clone, Copy, Debug, Default)]
pub struct PackOptions<'a> {
    /// Splits the bundle into `FILE.001`, `FILE.002`, … of this many bytes.
    pub volume_size: Option<u64>,
    /// Threads, progress and stopping.
    pub drive: Drive<'a>,
}

/// The created bundle.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The file, or its volumes.
    pub paths: Vec<Utf8PathBuf>,
    /// The archive's length.
    pub bytes: u64,
    /// Its manifest.
    pub manifest: Manifest,
    /// See [`Contents::digest`](crate::Contents::digest).
    pub content: Digest,
    /// Bytes of content that an earlier, killed run had done.
    pub resumed: u64,
    /// How long this run took.
    pub elapsed: Duration,
}

/// Writes a full bundle to `out`, which appears when it is complete, and replaces an earlier one of that name. Until then there are `out.partial` and
/// `out.partial.journal`. After a kill, a second run with the same inputs resumes from them; an error or a stop removes them.
pub fn pack(inputs: &Inputs, out: &Utf8Path, options: &PackOptions<'_>) -> Result<Packed> {
    let started = Instant::now();
    let known = check(inputs)?;
    let mut manifest = skeleton(inputs, &known)?;
    let reserve = reserve(&manifest, &known)?;
    let layout = Layout::new(&Outline::of(&manifest), reserve);

    let stale = || volumes::stale(out, layout.total, options.volume_size);
    // Other files are not removed, which is said before hours of work.
    stale()?;
    let fingerprint = inputs::fingerprint(&manifest, &known, reserve, options.volume_size);
    let drive = &options.drive;
    let (paths, resumed) = with_partial(out, layout.total, options.volume_size, |volumes, journal| {
        // A run that was killed while it renamed its volumes left only some of them; then the work starts from zero.
        let kept = volumes.has_length(layout.total);
        let is_recorded = |file: usize| known.get(file).is_some_and(|known| known.recorded.is_some());
        let progress = journal.resume(&fingerprint, kept, &is_recorded)?;
        volumes.set_length(layout.total)?;
        (drive.progress)(Event::Start {
            what: "create",
            bytes: manifest.files.iter().map(|file| file.size).sum(),
            files: known.len(),
        });
        let resumed = progress.bytes();
        if resumed > 0 {
            (drive.progress)(Event::Resume { bytes: resumed });
        }
        content(&mut manifest, &known, &layout, volumes, journal, progress, drive)?;
        as_promised(&manifest, &inputs.promised)?;
        head(&manifest, &layout, volumes, reserve)?;
        volumes.sync()?;
        Ok((volumes.publish(&stale()?)?, resumed))
    })?;
    let content = content_digest(&manifest.items, &manifest.files);
    Ok(Packed { paths, bytes: layout.total, manifest, content, resumed, elapsed: started.elapsed() })
}

fn as_promised(manifest: &Manifest, promised: &BTreeMap<String, Digest>) -> Result<()> {
    let other = |file: &&File| promised.get(&file.path).is_some_and(|digest| *digest != file.digest);
    let paths: Vec<String> = manifest.files.iter().filter(other).map(|file| file.path.clone()).collect();
    if paths.is_empty() { Ok(()) } else { Err(Error::NotAsPromised { paths }) }
}

/// The part of the manifest that is known before content is read: everything except digests and chunks.
fn skeleton(inputs: &Inputs, known: &[StampedInput<'_>]) -> Result<Manifest> {
    let nothing = Digest::of(b"");
    let file = |known: &StampedInput<'_>| File {
        path: known.input.path.clone(),
        executable: known.input.executable,
        size: known.size,
        digest: nothing,
        chunks: Vec::new(),
    };
    let mut items = inputs.items.clone();
    items.sort_by_key(Item::key);
    items.iter_mut().for_each(|item| item.paths.sort());
    let files: Vec<File> = known.iter().map(file).collect();
    let manifest = Manifest {
        format: FORMAT,
        kind: Kind::Full,
        version: inputs.version.clone(),
        epoch: inputs.epoch,
        items,
        files,
        keys: inputs.keys.clone(),
        delta: None,
    };
    // With one placeholder chunk per file, the rules can be checked before hours of reading.
    let mut pretended = manifest.clone();
    for file in &mut pretended.files {
        let (whole, rest) = (file.size / u64::from(MOST_CHUNK), file.size % u64::from(MOST_CHUNK));
        let chunk = |size| Chunk { size, digest: [0; 32] };
        file.chunks = (0..whole).map(|_| chunk(MOST_CHUNK)).chain((rest > 0).then(|| chunk(rest as u32))).collect();
    }
    pretended.validate().map_err(|error| match error {
        Error::Manifest { problems } => Error::Inputs { problems },
        other => other,
    })?;
    Ok(manifest)
}

/// The first member's size: the maximum that the manifest can need.
fn reserve(manifest: &Manifest, known: &[StampedInput<'_>]) -> Result<u64> {
    /// `[4194304,"` 43 characters `"],`
    const CHUNK: u64 = 57;
    let most: u64 = known.iter().map(|known| known.cuts.bound(known.size) * CHUNK).sum();
    padded(manifest.to_bytes()?.len() as u64 + most)
}

/// The size of the first member for a manifest of that length.
pub(crate) fn padded(length: u64) -> Result<u64> {
    let padded = round_up(length, 4096);
    if padded > MOST_MANIFEST {
        let problem = format!("the manifest would have {padded} bytes; at most {MOST_MANIFEST} are read");
        return Err(Error::Inputs { problems: vec![problem] });
    }
    Ok(padded)
}

fn content(
    manifest: &mut Manifest,
    known: &[StampedInput<'_>],
    layout: &Layout,
    volumes: &Volumes,
    journal: &mut Journal,
    progress: Progress,
    drive: &Drive<'_>,
) -> Result<()> {
    let Progress { mut files, next, offset, state } = progress;
    for (file, done) in manifest.files.iter_mut().zip(&mut files) {
        file.chunks = std::mem::take(&mut done.chunks);
        if let Some(digest) = done.digest {
            file.digest = digest;
        }
    }
    let hasher = match state {
        Some(state) => state,
        None if offset > 0 && known[next].recorded.is_none() => hash_again(layout, volumes, next, offset, drive)?,
        None => Sha256::new(),
    };
    let mut source = Source {
        known,
        at: next,
        offset,
        tail: tail(layout, volumes, next, offset)?,
        index: manifest.files.get(next).map_or(0, |f| f.chunks.len()),
        open: None,
        drive,
    };
    let mut done: u64 = known[..next].iter().map(|known| known.size).sum::<u64>() + offset;
    let mut writing = ArchiveWriter { layout, volumes, file: next, offset };
    WriteBehind::scope(|behind| {
        flow::run_with_writer(
            drive.threads,
            Ahead::Little,
            whole(known, hasher),
            |batch| source.fill(batch),
            |sheet| writing.put(sheet, behind),
            |batch| {
                as_recorded(batch, known)?;
                for piece in &batch.pieces {
                    manifest.files[piece.file].chunks.push(Chunk { size: piece.size as u32, digest: piece.digest });
                    done += piece.size as u64;
                }
                for (file, digest) in &batch.ends {
                    manifest.files[*file].digest = *digest;
                }
                journal.add(batch)?;
                (drive.progress)(Event::Bytes { done });
                Ok(())
            },
        )
    })?;
    // Headers and padding: few bytes, rewritten in any case.
    for member in &layout.members {
        volumes.write_at(&layout.header(member, &manifest.files), member.header_at)?;
        let end = member.data_at + member.size;
        volumes.write_at(&[0; BLOCK as usize][..(member.end() - end) as usize], end)?;
    }
    volumes.write_at(&[0; 2 * BLOCK as usize], layout.total - 2 * BLOCK)?;
    Ok(())
}

/// Whole files are hashed by one thread, unless nearly all digests are known.
fn whole(known: &[StampedInput<'_>], hasher: Sha256) -> WholeFileHashing {
    let bytes = |recorded| {
        known.iter().filter(|known| known.recorded.is_some() == recorded).map(|known| known.size).sum::<u64>()
    };
    let hasher = Box::new(hasher);
    if bytes(true) > 4 * bytes(false) { WholeFileHashing::Few(hasher) } else { WholeFileHashing::Yes(hasher) }
}

/// Compares chunks with the recorded ones. If all of a file are equal, so is its digest.
fn as_recorded(batch: &mut Batch, known: &[StampedInput<'_>]) -> Result<()> {
    for piece in &batch.pieces {
        let known = &known[piece.file];
        let Some((digest, chunks)) = known.recorded else { continue };
        if chunks.get(piece.chunk) != Some(&Chunk { size: piece.size as u32, digest: piece.digest }) {
            return Err(Error::NotAsPromised { paths: vec![known.input.path.clone()] });
        }
        if piece.last {
            batch.ends.push((piece.file, digest));
        }
    }
    Ok(())
}

/// The digest of the part of a file that is written.
fn hash_again(layout: &Layout, volumes: &Volumes, file: usize, length: u64, drive: &Drive<'_>) -> Result<Sha256> {
    let mut sha = Sha256::new();
    let mut buffer = vec![0; MOST_CHUNK as usize];
    while sha.length() < length {
        drive.check(|| "reading what an earlier run wrote".into())?;
        let part = &mut buffer[..usize::try_from(length - sha.length())
            .map_or(MOST_CHUNK as usize, |left| left.min(MOST_CHUNK as usize))];
        volumes.read_at(part, layout.members[file + 3].data_at + sha.length())?;
        sha.update(part);
    }
    Ok(sha)
}

/// The bytes of a file before this one on its page.
pub(crate) fn tail(layout: &Layout, volumes: &Volumes, file: usize, offset: u64) -> Result<Tail> {
    let within_page = offset % PAGE as u64;
    let mut bytes = vec![0; within_page as usize];
    if within_page > 0 {
        volumes.read_at(&mut bytes, layout.members[file + 3].data_at + offset - within_page)?;
    }
    Ok(Tail::of(bytes))
}

/// Writes pieces to their offsets in the archive.
pub(crate) struct ArchiveWriter<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) volumes: &'a Volumes,
    pub(crate) file: usize,
    /// In the file.
    pub(crate) offset: u64,
}

impl ArchiveWriter<'_> {
    pub(crate) fn put(&mut self, sheet: &Sheet, behind: &mut WriteBehind) -> Result<()> {
        for (file, bytes) in &sheet.stretches {
            if *file != self.file {
                (self.file, self.offset) = (*file, 0);
            }
            let data_at = self.layout.members[file + 3].data_at;
            let within_page = (self.offset % PAGE as u64) as usize;
            let pages = sheet.pages(bytes, within_page);
            let at = data_at + self.offset - within_page as u64;
            // Weights begin on a page boundary, and the bytes after them on their last page are written later. Other files share pages.
            let end = if data_at.is_multiple_of(PAGE as u64) && at + pages.len() as u64 <= self.layout.total {
                pages.len()
            } else {
                within_page + bytes.len()
            };
            let cached = self.volumes.write_at(&pages[..end], at)?;
            behind.wrote(cached, self.volumes.file_at(at));
            self.offset += bytes.len() as u64;
        }
        Ok(())
    }
}

/// Fills the gap at the front: the manifest, an empty signature block and the sums.
pub(crate) fn head(manifest: &Manifest, layout: &Layout, volumes: &Volumes, reserve: u64) -> Result<()> {
    let mut text = manifest.to_bytes()?;
    if text.len() as u64 > reserve {
        return Err(Error::Manifest {
            problems: vec![format!("it has {} bytes; {reserve} were reserved for it", text.len())],
        });
    }
    manifest.validate()?;
    text.resize(reserve as usize, b' ');
    for member in &layout.members {
        let data = match member.role {
            Role::Manifest => text.clone(),
            Role::Signature => vec![b'\n'; SIGNATURE as usize],
            Role::Sums => layout::sums(&text, manifest),
            Role::File(_) | Role::Chunks => continue,
        };
        volumes.write_at(&data, member.data_at)?;
    }
    Ok(())
}

/// How far content-defined cuts look ahead.
const WINDOW: usize = 1 << 20;

/// Reads the inputs in order and cuts them.
struct Source<'a> {
    known: &'a [StampedInput<'a>],
    at: usize,
    offset: u64,
    tail: Tail,
    /// Of the next chunk.
    index: usize,
    open: Option<InputReader>,
    drive: &'a Drive<'a>,
}

/// The current input. Content-defined chunking needs bytes after the chunk.
struct InputReader {
    file: Option<OsFile>,
    window: Vec<u8>,
    /// Bytes of the window that have been cut off.
    used: usize,
    read: u64,
}

impl Source<'_> {
    fn fill(&mut self, batch: &mut Batch) -> Result<()> {
        self.drive.check(|| "creating the bundle".into())?;
        while self.at < self.known.len() {
            let known = &self.known[self.at];
            if self.open.is_none() {
                (self.drive.progress)(Event::File { path: &known.input.path });
                let file = known.open()?;
                self.open = Some(InputReader { file, window: Vec::new(), used: 0, read: self.offset });
            }
            if self.offset < known.size && !self.piece(batch)? {
                return Ok(());
            }
            if self.offset == known.size {
                if let Some(open) = &self.open {
                    known.unchanged(open.file.as_ref())?;
                }
                (self.at, self.offset, self.index, self.open) = (self.at + 1, 0, 0, None);
                self.tail.clear();
            }
        }
        Ok(())
    }

    /// The next piece; false when the batch has no room for it.
    fn piece(&mut self, batch: &mut Batch) -> Result<bool> {
        let known = &self.known[self.at];
        let Some(open) = &mut self.open else { return Ok(true) };
        let (left, first) = (known.size - self.offset, self.index == 0);
        let size = match &known.cuts {
            Cuts::Fixed(sizes) => {
                let size = sizes.get(self.index).map_or(0, |size| *size as usize);
                if !batch.fits(size) {
                    return Ok(false);
                }
                known.read(open.file.as_ref(), &mut batch.room(self.offset)[..size], self.offset)?;
                size
            }
            Cuts::Gear => {
                // The bytes in the window would be read again too.
                if !batch.fits(chunk::MAX_CHUNK_BYTES + WINDOW / 2) {
                    return Ok(false);
                }
                let wanted = left.min(chunk::MAX_CHUNK_BYTES as u64) as usize;
                if open.window.len() - open.used < wanted {
                    open.window.drain(..open.used);
                    open.used = 0;
                    let have = open.window.len();
                    let more = (known.size - open.read).min((WINDOW - have) as u64) as usize;
                    open.window.resize(have + more, 0);
                    known.read(open.file.as_ref(), &mut open.window[have..], open.read)?;
                    open.read += more as u64;
                }
                let window = &open.window[open.used..open.window.len().min(open.used + chunk::MAX_CHUNK_BYTES)];
                let size = chunk::gear(window, self.offset, self.index as u64);
                batch.room(self.offset)[..size].copy_from_slice(&window[..size]);
                open.used += size;
                size
            }
        };
        batch.before(&self.tail);
        batch.take(self.at, self.index, size, first, size as u64 == left);
        self.tail.follow(batch.last());
        if known.recorded.is_some() {
            batch.known();
        }
        self.offset += size as u64;
        self.index += 1;
        Ok(true)
    }
}

/// Inputs that were read once: their digests are known, nothing was written.
pub(crate) struct Scan<'a> {
    known: Vec<StampedInput<'a>>,
    pub(crate) contents: Contents,
}

impl<'a> Scan<'a> {
    pub(crate) fn of(inputs: &'a Inputs, drive: &Drive<'_>) -> Result<Scan<'a>> {
        let known = check(inputs)?;
        let mut manifest = skeleton(inputs, &known)?;
        let mut source = Source { known: &known, at: 0, offset: 0, tail: Tail::default(), index: 0, open: None, drive };
        let files = &mut manifest.files;
        flow::run(
            drive.threads,
            Ahead::Far,
            whole(&known, Sha256::new()),
            |batch| source.fill(batch),
            |batch| {
                as_recorded(batch, &known)?;
                for piece in &batch.pieces {
                    files[piece.file].chunks.push(Chunk { size: piece.size as u32, digest: piece.digest });
                }
                batch.ends.iter().for_each(|(file, digest)| files[*file].digest = *digest);
                Ok(())
            },
        )?;
        Ok(Scan { contents: Contents { items: manifest.items, files: manifest.files }, known })
    }

    /// Reads bytes of an input again.
    pub(crate) fn read(&self, file: usize, at: u64, buffer: &mut [u8]) -> Result<()> {
        let known = &self.known[file];
        known.read(known.open()?.as_ref(), buffer, at)
    }

    /// Of an input whose bytes are others now.
    pub(crate) fn changed(&self, file: usize) -> Error {
        Error::InputChanged { path: self.known[file].input.path.as_str().into() }
    }
}

/// Fills the buffer, or fails because the input changed.
pub(crate) fn read_input(file: &OsFile, path: &Utf8Path, buffer: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::InputChanged { path: path.to_owned() },
        _ => Error::io("read", path)(error),
    })
}
