//! Opens a bundle: reads and verifies its first three members; all other bytes are covered by digests.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::{Arc, Mutex, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest as _, Sha256};
use textnlp_models::Digest;

use crate::contents::{Contents, content_digest};
use crate::error::{Damage, Error, Result};
use crate::file_source::{Entry, FileSource};
use crate::flow::Batch;
use crate::layout::{
    self, BLOCK, Layout, MANIFEST_NAME, Member, Outline, Role, SIGNATURE, SIGNATURE_NAME, SUMS_NAME, checksum,
    claimed_size,
};
use crate::manifest::{File, Item, Kind, Manifest};
use crate::rules::MOST_MANIFEST;
use crate::sign::{Authenticity, Signature, TrustSet};
use crate::volumes::Volumes;

/// A bundle with a valid manifest.
#[derive(Debug)]
pub struct Bundle {
    pub(crate) feed: Feed,
    pub(crate) layout: Layout,
    manifest: Manifest,
    manifest_digest: Digest,
    signature: Signature,
    damages: Vec<Damage>,
    recent: Recent,
}

impl Bundle {
    /// Opens a file, or volumes by the first one's name or by the name without its number.
    pub fn open(path: &Utf8Path) -> Result<Bundle> {
        Bundle::read(Feed::Volumes(Volumes::open(path, false)?))
    }

    /// Opens a stream, which can be verified or unpacked once.
    pub fn from_stream(reader: impl Read + Send + 'static) -> Result<Bundle> {
        Bundle::read(Feed::Stream { reader: Mutex::new(Box::new(reader)), at: 0 })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Digest of the first member as stored in the archive, with its padding: the signed bytes.
    pub fn manifest_digest(&self) -> Digest {
        self.manifest_digest
    }

    /// The digest of the content; see [`Contents::digest`].
    pub fn content_digest(&self) -> Digest {
        content_digest(&self.manifest.items, &self.manifest.files)
    }

    /// The archive's length.
    pub fn bytes(&self) -> u64 {
        self.layout.total
    }

    /// The file, or the first volume; none of a stream.
    pub fn path(&self) -> Option<&Utf8Path> {
        match &self.feed {
            Feed::Volumes(volumes) => Some(volumes.path()),
            Feed::Stream { .. } => None,
        }
    }

    /// The signature block, unparsed.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Whether a trusted key signed it.
    pub fn authenticity(&self, trust: &TrustSet) -> Authenticity {
        self.signature.authenticity(trust)
    }

    /// Damage in the signature block and in `SHA256SUMS`: the bundle can be inspected, but not used.
    pub fn head_damages(&self) -> &[Damage] {
        &self.damages
    }

    /// The offset in the archive of a file's content, in a full bundle.
    pub fn file_offset(&self, path: &str) -> Option<u64> {
        let (index, _) = self.find(path)?;
        Some(self.member(index)?.data_at)
    }

    /// Reads one file of a full bundle; each chunk is verified before its bytes are returned.
    pub fn reader(&self, path: &str) -> Result<FileReader<'_>> {
        let missing =
            || Error::Io { action: "find in the bundle", path: path.into(), source: io::ErrorKind::NotFound.into() };
        let (index, file) = self.find(path).ok_or_else(missing)?;
        let member = self.member(index).ok_or_else(missing)?;
        self.volumes("reading single files")?;
        Ok(FileReader {
            bundle: self,
            file,
            data_at: member.data_at,
            next: (0, 0),
            at: 0,
            chunk: Vec::new(),
            chunk_at: 0,
        })
    }

    /// All bytes of one small file of a full bundle: configurations, `install.sh`.
    pub fn read_file(&self, path: &str, most: u64) -> Result<Vec<u8>> {
        let mut reader = self.reader(path)?;
        if reader.size() > most {
            let source = io::Error::other(format!("it has {} bytes; at most {most} are read", reader.size()));
            return Err(Error::Io { action: "read", path: path.into(), source });
        }
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map_err(Error::io("read", path))?;
        Ok(bytes)
    }

    /// Reads and verifies a chunk of a file (full bundle) or an included chunk (delta) at an offset of the archive.
    pub(crate) fn chunk_at(
        &self,
        at: u64,
        chunk: &crate::manifest::Chunk,
        file: &str,
        index: usize,
    ) -> Result<Vec<u8>> {
        let mut bytes = vec![0; chunk.size as usize];
        self.volumes("reading single chunks")?.read_at(&mut bytes, at)?;
        if <[u8; 32]>::from(Sha256::digest(&bytes)) != chunk.digest {
            return Err(Error::Damaged { damages: vec![chunk_damage(file, index, at, chunk.size)] });
        }
        Ok(bytes)
    }

    pub(crate) fn volumes(&self, doing: &'static str) -> Result<&Volumes> {
        match &self.feed {
            Feed::Volumes(volumes) => Ok(volumes),
            Feed::Stream { .. } => Err(Error::Stream { doing }),
        }
    }

    /// Fails if the signature block or the sums are damaged.
    pub(crate) fn sound(&self) -> Result<()> {
        match self.damages.is_empty() {
            true => Ok(()),
            false => Err(Error::Damaged { damages: self.damages.clone() }),
        }
    }

    pub(crate) fn want(&self, kind: Kind, wanted: &'static str) -> Result<()> {
        match (kind, self.manifest.kind) {
            (Kind::Full, Kind::Delta) => Err(Error::Kind { found: "delta", wanted }),
            (Kind::Delta, Kind::Full) => Err(Error::Kind { found: "full", wanted }),
            _ => Ok(()),
        }
    }

    pub(crate) fn parts(&mut self) -> (&mut Feed, &Layout, &Manifest) {
        (&mut self.feed, &self.layout, &self.manifest)
    }

    fn find(&self, path: &str) -> Option<(usize, &File)> {
        let order = |path| crate::rules::order(path);
        let index = self.manifest.files.binary_search_by(|file| order(&file.path).cmp(&order(path))).ok()?;
        Some((index, &self.manifest.files[index]))
    }

    fn member(&self, file: usize) -> Option<&Member> {
        (self.manifest.kind == Kind::Full).then(|| &self.layout.members[file + 3])
    }

    fn read(mut feed: Feed) -> Result<Bundle> {
        let (first, text) = first_member(&mut feed)?;
        let manifest = Manifest::parse(&text)?;
        let layout = Layout::new(&Outline::of(&manifest), text.len() as u64);
        let [own, signature, sums] = [layout.members[0], layout.members[1], layout.members[2]];
        if layout.header(&own, &[]) != first {
            return Err(Error::damaged(MANIFEST_NAME, 0, BLOCK, "its header does not match the manifest"));
        }
        if let Feed::Volumes(volumes) = &feed {
            if volumes.length() < layout.total {
                return Err(volumes.too_short(layout.total));
            }
            volumes.check_number(layout.total)?;
        }

        let mut damages = Vec::new();
        member_header(&mut feed, &layout, &signature, &manifest.files, &mut damages)?;
        let mut block = vec![0; SIGNATURE as usize];
        feed.read_at(&mut block, signature.data_at)?;
        let expected = layout::sums(&text, &manifest);
        let status = Signature::read(&block, &text, &expected);
        if let Signature::Invalid { why } = &status {
            damages.push(damage(SIGNATURE_NAME, signature.data_at, SIGNATURE, why));
        }

        let digest = Digest::of(&text);
        drop(text);
        member_header(&mut feed, &layout, &sums, &manifest.files, &mut damages)?;
        let mut found = vec![0; sums.size as usize];
        feed.read_at(&mut found, sums.data_at)?;
        if found != expected {
            // A wrong line for the manifest alone: damage in the manifest or in the line? A flipped bit in the line
            // changes a character or two.
            let line = |text: &[u8]| text[..64.min(text.len())].to_vec();
            let differ = line(&found).iter().zip(line(&expected)).filter(|(a, b)| **a != *b).count();
            let trusted = matches!(status, Signature::Valid { .. });
            if differ > 8 && !trusted {
                let why = "its digest is not the one in SHA256SUMS";
                return Err(Error::damaged(MANIFEST_NAME, own.data_at, own.size, why));
            }
            damages.push(damage(SUMS_NAME, sums.data_at, sums.size, "it does not match the manifest"));
        }
        padding(&mut feed, &sums, SUMS_NAME, &mut damages)?;
        Ok(Bundle {
            feed,
            layout,
            manifest,
            manifest_digest: digest,
            signature: status,
            damages,
            recent: Recent::default(),
        })
    }
}

/// The first header, unparsed, and the following data. Only its size is used, within a bound.
fn first_member(feed: &mut Feed) -> Result<(Vec<u8>, Vec<u8>)> {
    let no_bundle = |path: Utf8PathBuf, why: &str| Error::NotABundle { path, why: why.to_owned() };
    let mut header = [0u8; BLOCK as usize];
    if let Err(error) = feed.read_at(&mut header, 0) {
        return Err(match error {
            Error::Truncated { path, .. } => no_bundle(path, "it is shorter than one block of a tar"),
            error => error,
        });
    }
    if header.starts_with(&[0x1f, 0x8b]) || header.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || header.starts_with(b"PK") {
        return Err(no_bundle(feed.name(), "it is compressed; a bundle is a plain tar"));
    }
    let named = header.starts_with(b"manifest.json\0");
    let magic = &header[257..263] == b"ustar\0";
    if !named && !magic {
        return Err(no_bundle(feed.name(), "it does not begin with the tar member manifest.json"));
    }
    let sum = std::str::from_utf8(&header[148..154]).ok().and_then(|text| u32::from_str_radix(text, 8).ok());
    if sum != Some(checksum(&header)) || !named || !magic {
        return Err(Error::damaged(MANIFEST_NAME, 0, BLOCK, "its header is damaged, or it is not manifest.json"));
    }
    let size = claimed_size(&header).unwrap_or(u64::MAX);
    if size > MOST_MANIFEST || !size.is_multiple_of(BLOCK) || size == 0 {
        let problem = format!("its header claims {size} bytes; 512 to {MOST_MANIFEST} in whole blocks are read");
        return Err(Error::Manifest { problems: vec![problem] });
    }
    if let Feed::Volumes(volumes) = feed
        && volumes.length() < BLOCK + size
    {
        return Err(volumes.too_short(BLOCK + size));
    }
    // For a stream, memory grows with the received bytes, not with the declared size.
    let mut data = Vec::new();
    while (data.len() as u64) < size {
        let at = data.len();
        data.resize(at + (size as usize - at).min(1 << 20), 0);
        feed.read_at(&mut data[at..], BLOCK + at as u64)?;
    }
    Ok((header.to_vec(), data))
}

/// Compares a member's header blocks with those that the manifest implies.
pub(crate) fn member_header(
    feed: &mut Feed,
    layout: &Layout,
    member: &Member,
    files: &[File],
    damages: &mut Vec<Damage>,
) -> Result<()> {
    let expected = layout.header(member, files);
    let mut found = vec![0; expected.len()];
    feed.read_at(&mut found, member.header_at)?;
    if found != expected {
        let what = what_header(&found, &expected);
        damages.push(damage(layout::name(member.role, files).0, member.header_at, expected.len() as u64, &what));
    }
    Ok(())
}

/// Describes how a member's header differs from the expected one.
fn what_header(found: &[u8], expected: &[u8]) -> String {
    let last = |bytes: &[u8]| bytes[bytes.len() - BLOCK as usize..].to_vec();
    let (found, expected) = (last(found), last(expected));
    let kind = match found[156] {
        b'1' | b'2' => "a link",
        b'3' | b'4' | b'6' => "a device or pipe",
        b'5' => "a folder",
        b'S' => "a sparse file",
        b'x' | b'g' | b'L' | b'K' => "an extended header",
        _ => "",
    };
    let name = |header: &[u8]| {
        String::from_utf8_lossy(header[..100].split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
    };
    let what = if !kind.is_empty() {
        format!("its header says it is {kind}")
    } else if name(&found) != name(&expected) {
        format!("its header names `{}`", name(&found))
    } else if found[124..136] != expected[124..136] {
        "its header has another size".to_owned()
    } else {
        "its header differs".to_owned()
    };
    format!("{}, which is not in the manifest", crate::rules::plain(&what))
}

/// The bytes between a member's end and the next block must be zero.
pub(crate) fn padding(feed: &mut Feed, member: &Member, name: &str, damages: &mut Vec<Damage>) -> Result<()> {
    let end = member.data_at + member.size;
    let mut bytes = vec![0; (member.end() - end) as usize];
    feed.read_at(&mut bytes, end)?;
    if bytes.iter().any(|byte| *byte != 0) {
        damages.push(damage(name, end, bytes.len() as u64, "the padding after it is not zero"));
    }
    Ok(())
}

/// The two blocks at the end, and nothing after them.
pub(crate) fn trailer(feed: &mut Feed, total: u64, damages: &mut Vec<Damage>) -> Result<()> {
    let mut bytes = [0; 2 * BLOCK as usize];
    let at = total - bytes.len() as u64;
    feed.read_at(&mut bytes, at)?;
    if bytes.iter().any(|byte| *byte != 0) {
        damages.push(damage(END, at, bytes.len() as u64, "the last two blocks are not zero"));
    }
    if let Some(more) = feed.more(total)? {
        damages.push(damage(END, total, more, "there are bytes after it"));
    }
    Ok(())
}

const END: &str = "the end of the archive";

fn damage(member: &str, offset: u64, bytes: u64, what: &str) -> Damage {
    Damage { member: member.to_owned(), chunk: None, offset, bytes, what: what.to_owned() }
}

pub(crate) fn chunk_damage(file: &str, index: usize, offset: u64, bytes: u32) -> Damage {
    let what = "its bytes do not have the digest in the manifest".to_owned();
    Damage { member: file.to_owned(), chunk: Some(index), offset, bytes: u64::from(bytes), what }
}

/// Where the archive's bytes come from.
pub(crate) enum Feed {
    Volumes(Volumes),
    Stream {
        /// The lock only makes bundles shareable between threads; there is no contention.
        reader: Mutex<Box<dyn Read + Send>>,
        /// Bytes taken so far.
        at: u64,
    },
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Feed({})", self.name())
    }
}

impl Feed {
    fn name(&self) -> Utf8PathBuf {
        match self {
            Feed::Volumes(volumes) => volumes.path().to_owned(),
            Feed::Stream { .. } => "the stream".into(),
        }
    }

    /// Fills the buffer from an offset of the archive; a stream skips to it.
    pub(crate) fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Feed::Volumes(volumes) => volumes.read_at(buffer, offset),
            Feed::Stream { reader, at } => {
                let reader = reader.get_mut().unwrap_or_else(PoisonError::into_inner);
                let skip = offset.checked_sub(*at).ok_or(Error::Stream { doing: "going back" })?;
                let skipped =
                    io::copy(&mut reader.take(skip), &mut io::sink()).map_err(Error::io("read", "the stream"))?;
                *at += skipped;
                let expected = offset + buffer.len() as u64;
                if skipped < skip {
                    return Err(Error::Truncated { path: "the stream".into(), found: *at, expected });
                }
                let mut filled = 0;
                while filled < buffer.len() {
                    match reader.read(&mut buffer[filled..]) {
                        Ok(0) => return Err(Error::Truncated { path: "the stream".into(), found: *at, expected }),
                        Ok(n) => {
                            filled += n;
                            *at += n as u64;
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(Error::io("read", "the stream")(error)),
                    }
                }
                Ok(())
            }
        }
    }

    /// Fills the batch's space for a piece at `inside` of its file and at `offset` of the archive.
    pub(crate) fn read_piece(&mut self, batch: &mut Batch, inside: u64, size: usize, offset: u64) -> Result<()> {
        let (pages, head) = batch.room_on_pages(inside, size);
        match self {
            Feed::Volumes(volumes) => volumes.read_on_pages(pages, head, size, offset),
            Feed::Stream { .. } => self.read_at(&mut pages[head..head + size], offset),
        }
    }

    /// The number of bytes after the archive's end; for a stream, at least one is read. Zeros that tools append to a tar are damage
    /// here, because every byte of a bundle is defined.
    fn more(&mut self, total: u64) -> Result<Option<u64>> {
        match self {
            Feed::Volumes(volumes) => Ok(volumes.length().checked_sub(total).filter(|more| *more > 0)),
            Feed::Stream { reader, .. } => loop {
                match reader.get_mut().unwrap_or_else(PoisonError::into_inner).read(&mut [0]) {
                    Ok(0) => return Ok(None),
                    Ok(_) => return Ok(Some(1)),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(Error::io("read", "the stream")(error)),
                }
            },
        }
    }
}

/// One file of a bundle, verified chunk by chunk. Seeking is cheap.
#[derive(Debug)]
pub struct FileReader<'a> {
    bundle: &'a Bundle,
    file: &'a File,
    data_at: u64,
    /// The index and start of the last chunk, from which the search for the next one starts.
    next: (usize, u64),
    at: u64,
    chunk: Vec<u8>,
    chunk_at: u64,
}

impl FileReader<'_> {
    /// The file's length.
    pub fn size(&self) -> u64 {
        self.file.size
    }

    /// Loads the chunk at the current position.
    fn load(&mut self) -> Result<()> {
        if self.at < self.next.1 {
            self.next = (0, 0);
        }
        while let Some(chunk) = self.file.chunks.get(self.next.0) {
            let (index, begin) = self.next;
            let end = begin + u64::from(chunk.size);
            if self.at < end {
                self.chunk.clear();
                self.chunk = self.bundle.chunk_at(self.data_at + begin, chunk, &self.file.path, index)?;
                self.chunk_at = begin;
                return Ok(());
            }
            self.next = (index + 1, end);
        }
        Ok(())
    }
}

impl Read for FileReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.file.size || buffer.is_empty() {
            return Ok(0);
        }
        let inside =
            |reader: &Self| reader.at.checked_sub(reader.chunk_at).filter(|at| *at < reader.chunk.len() as u64);
        if inside(self).is_none() {
            self.load().map_err(io::Error::other)?;
        }
        let Some(from) = inside(self) else { return Ok(0) };
        let rest = &self.chunk[from as usize..];
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for FileReader<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.file.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

/// Of a full bundle, what it holds.
impl TryFrom<&Bundle> for Contents {
    type Error = Error;

    fn try_from(bundle: &Bundle) -> Result<Contents> {
        Contents::of(&bundle.manifest).ok_or(Error::Kind { found: "delta", wanted: "a full one is needed" })
    }
}

/// Whether chunks follow a member.
pub(crate) fn is_content(member: &Member) -> bool {
    matches!(member.role, Role::File(_) | Role::Chunks)
}

/// Only full bundles are file sources: each chunk is verified on reading. A delta has no files.
impl FileSource for Bundle {
    fn items(&self) -> &[Item] {
        if self.manifest.kind == Kind::Full { &self.manifest.items } else { &[] }
    }

    fn list(&self) -> Box<dyn Iterator<Item = (&str, Entry)> + '_> {
        let files = if self.manifest.kind == Kind::Full { &self.manifest.files[..] } else { &[] };
        Box::new(files.iter().map(|file| (file.path.as_str(), entry(file))))
    }

    fn find(&self, path: &str) -> Option<Entry> {
        if self.manifest.kind == Kind::Full { Bundle::find(self, path).map(|(_, file)| entry(file)) } else { None }
    }

    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let broken = |error: Error| match error {
            Error::Io { source, .. } => source,
            error => io::Error::new(io::ErrorKind::InvalidData, error),
        };
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        if self.manifest.kind != Kind::Full {
            return Err(missing());
        }
        let (index, file) = Bundle::find(self, path).ok_or_else(missing)?;
        let data_at = self.member(index).ok_or_else(missing)?.data_at;
        let (mut begin, mut filled) = (0, 0);
        for (index, chunk) in file.chunks.iter().enumerate() {
            let (end, at) = (begin + u64::from(chunk.size), offset + filled as u64);
            if at < end && filled < buffer.len() {
                let bytes = self.recent.get(data_at + begin, || self.chunk_at(data_at + begin, chunk, path, index));
                let bytes = bytes.map_err(broken)?;
                let rest = &bytes[(at - begin) as usize..];
                let n = rest.len().min(buffer.len() - filled);
                buffer[filled..filled + n].copy_from_slice(&rest[..n]);
                filled += n;
            }
            begin = end;
        }
        Ok(filled)
    }
}

/// The last verified chunks: a client that reads in blocks reads the same chunk several times.
#[derive(Debug, Default)]
struct Recent(Mutex<Vec<(u64, Arc<Vec<u8>>)>>);

impl Recent {
    /// At most 32 MiB; each concurrent client has one.
    const MOST: usize = 8;

    fn get(&self, at: u64, read: impl FnOnce() -> Result<Vec<u8>>) -> Result<Arc<Vec<u8>>> {
        let known = |held: &mut Vec<(u64, Arc<Vec<u8>>)>| {
            let found = held.iter().position(|(there, _)| *there == at)?;
            let entry = held.remove(found);
            held.push(entry.clone());
            Some(entry.1)
        };
        if let Some(bytes) = known(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(bytes);
        }
        let bytes = Arc::new(read()?);
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known(&mut held).is_none() {
            if held.len() >= Self::MOST {
                held.remove(0);
            }
            held.push((at, bytes.clone()));
        }
        Ok(bytes)
    }
}

fn entry(file: &File) -> Entry {
    Entry { size: file.size, digest: file.digest, executable: file.executable }
}
