//! The bytes of a backup: a tar whose first member is the manifest. Its digest and its signature follow.
//!
//! Any `tar` extracts it, `sha256sum -c backup.json.sha256` checks the manifest, and `minisign -Vm backup.json -P KEY`
//! verifies it. The reader does not parse the tar:
//! the manifest determines every byte that must follow, and the first difference is an error. No content is used before
//! its digest was checked, and no file before the whole backup was read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest, Sha256};
use textnlp_bundle::{PublicKey, SecretKey, sign_bytes, verify_bytes};
use textnlp_provider::Secret;

use super::Error;
use super::manifest::{FORMAT, Manifest, Member, shown};

const LIST: &str = "backup.json";
const LIST_DIGEST: &str = "backup.json.sha256";
const LIST_SIGNATURE: &str = "backup.json.minisig";
const SIGNATURE_MAX: u64 = 4 << 10;
/// A manifest of a hundred thousand members is smaller.
const LIST_MAX: u64 = 32 << 20;
const BLOCK: usize = 512;
/// Two empty blocks end a tar.
const END: usize = 2 * BLOCK;

/// One member to write.
pub struct Item {
    /// Its path within the backup.
    pub path: String,
    /// Its content.
    pub content: Content,
}

/// The content of a member.
pub enum Content {
    /// These bytes. Most of them are secrets, so all are handled as such.
    Bytes(Secret),
    /// This file.
    File(Utf8PathBuf),
}

/// Writes a signed backup and returns its manifest. `manifest` is passed without members and signer; `items` become its
/// members, in this order.
pub fn write(mut manifest: Manifest, items: &[Item], key: &SecretKey, to: &mut dyn Write) -> Result<Manifest, Error> {
    let unsigned = |error: textnlp_bundle::Error| Error::Key(format!("a backup cannot be signed: {error}"));
    manifest.members = items.iter().map(member).collect::<Result<_, _>>()?;
    (manifest.format, manifest.signer) = (FORMAT, Some(key.public().map_err(unsigned)?));
    let text = serde_json::to_vec_pretty(&manifest).expect("a list is plain data");
    // A manifest that could not be read again is refused before it becomes the only backup.
    Manifest::parse(&text).map_err(|why| Error::Key(format!("a backup cannot be written: {why:?}")))?;
    let mut put = |bytes: &[u8]| to.write_all(bytes).map_err(Error::io("write", "the copy"));
    put(&header(LIST, text.len() as u64))?;
    put(&text)?;
    put(padding(text.len() as u64))?;
    let digest = digest_line(&text);
    put(&header(LIST_DIGEST, digest.len() as u64))?;
    put(digest.as_bytes())?;
    put(padding(digest.len() as u64))?;
    let what = format!("textnlp backup of {}, {}, {}", manifest.environment, manifest.lineage, manifest.at);
    let signature = sign_bytes(&text, key, &what).map_err(unsigned)?;
    put(&header(LIST_SIGNATURE, signature.len() as u64))?;
    put(signature.as_bytes())?;
    put(padding(signature.len() as u64))?;
    for (number, (item, member)) in items.iter().zip(&manifest.members).enumerate() {
        put(&header(&tar_name(&member.path, number), member.bytes))?;
        let mut hash = Sha256::new();
        let mut length = 0u64;
        each_chunk(&item.content, &mut |chunk| {
            hash.update(chunk);
            length += chunk.len() as u64;
            put(chunk)
        })?;
        if length != member.bytes || hex::encode(hash.finalize()) != member.sha256 {
            return Err(Error::Changed { member: member.path.clone() });
        }
        put(padding(member.bytes))?;
    }
    put(&[0; END])?;
    Ok(manifest)
}

fn member(item: &Item) -> Result<Member, Error> {
    let mut hash = Sha256::new();
    let mut bytes = 0u64;
    each_chunk(&item.content, &mut |chunk| {
        hash.update(chunk);
        bytes += chunk.len() as u64;
        Ok(())
    })?;
    Ok(Member { path: item.path.clone(), bytes, sha256: hex::encode(hash.finalize()) })
}

/// Not `textnlp_files::copy_sha256`: an unreadable input is a different error from an unwritable backup.
fn each_chunk(content: &Content, to: &mut dyn FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
    match content {
        Content::Bytes(secret) => to(secret.expose()),
        Content::File(path) => {
            let mut file = File::open(path).map_err(Error::io("open", path))?;
            let mut buffer = vec![0u8; 256 << 10];
            loop {
                match file.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(n) => to(&buffer[..n])?,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(Error::io("read", path)(error)),
                }
            }
        }
    }
}

/// Extracts a backup into an empty folder. The files are valid only if this returns `Ok`, after the last byte was read.
///
/// `name` is for messages. Files get mode 0600, folders 0700, and nothing is written outside of `folder`.
pub fn unpack(name: &Utf8Path, from: &mut dyn Read, folder: &Utf8Path) -> Result<Manifest, Error> {
    let mut reading = ArchiveReader { name, from };
    let manifest = reading.list()?;
    has_room(folder, manifest.bytes())?;
    for (number, member) in manifest.members.iter().enumerate() {
        let what = format!("`{}`", shown(&member.path));
        reading.expect(&header(&tar_name(&member.path, number), member.bytes), &what)?;
        let path = folder.join(&member.path);
        if let Some(parent) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(Error::io("make folder", parent))?;
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(Error::io("make", path.as_path()))?;
        reading.member(member, &mut file, &path)?;
        reading.expect(padding(member.bytes), &what)?;
    }
    reading.expect(&[0; END], "its end")?;
    reading.end()?;
    // One sync for the file system instead of one for each small file.
    let synced = File::open(folder).and_then(|folder| rustix::fs::syncfs(&folder).map_err(io::Error::from));
    synced.map_err(Error::io("flush", folder))?;
    Ok(manifest)
}

/// Reads the manifest of a backup and writes nothing. Only [`unpack`] checks that the content is complete.
pub fn listed(name: &Utf8Path, from: &mut dyn Read) -> Result<Manifest, Error> {
    ArchiveReader { name, from }.list()
}

struct ArchiveReader<'a> {
    name: &'a Utf8Path,
    from: &'a mut dyn Read,
}

impl ArchiveReader<'_> {
    fn list(&mut self) -> Result<Manifest, Error> {
        let mut head = [0u8; BLOCK];
        self.fill(&mut head, "its first block")?;
        let length = length_of(&head).filter(|length| header(LIST, *length) == head);
        let Some(length) = length else {
            return Err(self.foreign(format!("it does not begin with `{LIST}`")));
        };
        if length > LIST_MAX {
            return Err(self.damaged(format!("its list has {length} bytes")));
        }
        let mut text = vec![0; length as usize];
        self.fill(&mut text, "its list")?;
        self.expect(padding(length), "its list")?;
        let digest = digest_line(&text);
        self.expect(&header(LIST_DIGEST, digest.len() as u64), "the digest of its list")?;
        self.expect(digest.as_bytes(), "the digest of its list")?;
        self.expect(padding(digest.len() as u64), "the digest of its list")?;
        let manifest = Manifest::parse(&text).map_err(|why| match why {
            Ok(found) => Error::Newer { path: self.name.to_owned(), found, known: FORMAT },
            Err(why) => self.foreign(why),
        })?;
        if let Some(signer) = &manifest.signer {
            self.signature(&text, signer)?;
        }
        Ok(manifest)
    }

    fn signature(&mut self, list: &[u8], signer: &PublicKey) -> Result<(), Error> {
        const WHAT: &str = "the signature of its list";
        let mut head = [0u8; BLOCK];
        self.fill(&mut head, WHAT)?;
        let length = length_of(&head).filter(|length| header(LIST_SIGNATURE, *length) == head);
        let length = length.filter(|length| *length <= SIGNATURE_MAX);
        let length = length.ok_or_else(|| self.damaged(format!("{WHAT} is missing")))?;
        let mut text = vec![0; length as usize];
        self.fill(&mut text, WHAT)?;
        self.expect(padding(length), WHAT)?;
        let text = String::from_utf8(text).map_err(|_| self.damaged(format!("{WHAT} is not text")))?;
        // Two lines are not signed.
        let is_exact = text.starts_with(&format!("untrusted comment: signature by key {}\n", signer.id()))
            && text.ends_with('\n')
            && text.lines().count() == 4;
        match verify_bytes(list, &text, signer) {
            Ok(_) if is_exact => Ok(()),
            Ok(_) => Err(self.damaged(format!("{WHAT} is not what was written"))),
            Err(why) => Err(self.damaged(format!("{WHAT} does not match it: {why}"))),
        }
    }

    fn member(&mut self, member: &Member, to: &mut File, path: &Utf8Path) -> Result<(), Error> {
        let mut hash = Sha256::new();
        let mut left = member.bytes;
        let mut buffer = vec![0u8; 256 << 10];
        while left > 0 {
            let take = left.min(buffer.len() as u64) as usize;
            self.fill(&mut buffer[..take], &format!("`{}`", shown(&member.path)))?;
            hash.update(&buffer[..take]);
            to.write_all(&buffer[..take]).map_err(Error::io("write", path))?;
            left -= take as u64;
        }
        if hex::encode(hash.finalize()) != member.sha256 {
            return Err(self.damaged(format!("`{}` is not what was written", shown(&member.path))));
        }
        Ok(())
    }

    fn expect(&mut self, expected: &[u8], what: &str) -> Result<(), Error> {
        let mut found = vec![0; expected.len()];
        self.fill(&mut found, what)?;
        if found == expected { Ok(()) } else { Err(self.damaged(format!("{what} is not what was written"))) }
    }

    fn end(&mut self) -> Result<(), Error> {
        let mut more = [0u8; 1];
        match self.read(&mut more, "its end")? {
            0 => Ok(()),
            _ => Err(self.damaged("there is data after its end".to_owned())),
        }
    }

    fn fill(&mut self, buffer: &mut [u8], what: &str) -> Result<(), Error> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read(&mut buffer[filled..], what)? {
                0 => {
                    return Err(Error::Truncated {
                        path: self.name.to_owned(),
                        what: format!("it ends within {what}"),
                    });
                }
                n => filled += n,
            }
        }
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8], what: &str) -> Result<usize, Error> {
        loop {
            return match self.from.read(buffer) {
                Ok(n) => Ok(n),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => continue,
                    io::ErrorKind::UnexpectedEof => {
                        Err(Error::Truncated { path: self.name.to_owned(), what: format!("it ends within {what}") })
                    }
                    // The decryption reports a block that fails authentication this way.
                    io::ErrorKind::InvalidData => Err(self.damaged(format!("{what} cannot be decrypted: {error}"))),
                    _ => Err(Error::io("read", self.name)(error)),
                },
            };
        }
    }

    fn damaged(&self, what: String) -> Error {
        Error::Damaged { path: self.name.to_owned(), what }
    }

    fn foreign(&self, why: String) -> Error {
        Error::Foreign { path: self.name.to_owned(), why }
    }
}

fn has_room(folder: &Utf8Path, needed: u64) -> Result<(), Error> {
    // Without information about free space, a full disk fails the write.
    let Ok(textnlp_files::Filesystem { free, .. }) = textnlp_files::filesystem(folder) else { return Ok(()) };
    if needed > free { Err(Error::Room { path: folder.to_owned(), needed, free }) } else { Ok(()) }
}

/// A line in the format of `sha256sum`.
fn digest_line(text: &[u8]) -> String {
    format!("{}  {LIST}\n", hex::encode(Sha256::digest(text)))
}

/// A member's name in the tar: its path, or a number if the path exceeds the tar's name field.
fn tar_name(path: &str, number: usize) -> String {
    if path.len() <= 100 { path.to_owned() } else { format!("long/{number}") }
}

/// The only header that a member of this name and length can have.
fn header(name: &str, bytes: u64) -> [u8; BLOCK] {
    let mut header = tar::Header::new_ustar();
    let field = &mut header.as_old_mut().name;
    field[..name.len()].copy_from_slice(name.as_bytes());
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    *header.as_bytes()
}

/// The length field of a header, without a check of the other fields.
fn length_of(header: &[u8; BLOCK]) -> Option<u64> {
    let field = std::str::from_utf8(&header[124..135]).ok()?;
    u64::from_str_radix(field, 8).ok()
}

fn padding(bytes: u64) -> &'static [u8] {
    let over = (bytes % BLOCK as u64) as usize;
    if over == 0 { &[] } else { &[0; BLOCK][over..] }
}
