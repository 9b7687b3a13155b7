//! Applies a delta to an installed site: the next content is built beside the active one, from its files and the
//! included chunks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest as _, Sha256};
use textnlp_models::Digest;

use crate::contents::Contents;
use crate::delta::{merge, name};
use crate::error::{Error, Mismatch, Result};
use crate::flow::{Drive, Event, WriteBehind};
use crate::incoming::{Incoming, Needs, Older, read_part};
use crate::layout::Role;
use crate::manifest::{Chunk, Delta, FORMAT as MANIFEST_FORMAT, File, Kind, Manifest};
use crate::open::{Bundle, Feed, chunk_damage, member_header, padding, trailer};
use crate::proof::Proof;
use crate::site::{FORMAT, Installed, Site, Source, Stamp, remove};
use crate::unpack::{UnpackOptions, Unpacked};

impl Site {
    /// Applies a delta to the active content. The result is a content of its own, inactive before [`Site::activate`].
    /// After a kill, the same call resumes. A delta whose result exists already changes nothing.
    pub fn apply(&self, bundle: &mut Bundle, options: &UnpackOptions<'_>) -> Result<Unpacked> {
        let started = Instant::now();
        bundle.want(Kind::Delta, "this command installs full bundles")?;
        bundle.sound()?;
        let _lock = self.lock()?;
        let nothing = || Error::Site {
            root: self.root().to_owned(),
            why: "no bundle is installed that the delta can be applied to".into(),
        };
        let base_name = self.current()?.ok_or_else(nothing)?;
        let base = self.record(&base_name)?;
        let manifest = bundle.manifest().clone();
        let Some(delta) = &manifest.delta else { return Err(nothing()) };
        let done = |name: String, record, unchanged, written, linked, resumed| Unpacked {
            folder: self.folder(&name),
            name,
            record,
            unchanged,
            written,
            linked,
            resumed,
            elapsed: started.elapsed(),
        };
        if base.contents.has_applied(&manifest, delta) {
            let bytes = base.contents.bytes();
            return Ok(done(base_name, base, true, 0, bytes, 0));
        }
        fits(self, &base.contents, delta)?;
        let (contents, made) = merge(&base.contents, &manifest.items, &delta.drops, &manifest.files, &delta.removes)?;
        whole(&contents, &manifest)?;
        let content = contents.digest();
        if let (true, Some(result)) = (delta.base == Some(base.content), delta.result)
            && result != content
        {
            return Err(Error::Result { expected: result, found: content });
        }

        let target = Site::name_of(&content);
        let mut sources = base.sources.clone();
        sources.push(Source {
            kind: Kind::Delta,
            version: manifest.version.clone(),
            manifest: bundle.manifest_digest(),
            authenticity: options.authenticity.clone(),
        });
        if let Ok(record) = self.record(&target)
            && record.contents == contents
            && self.altered(&target, &record, options.deep, &options.drive)?.is_empty()
        {
            return Ok(done(target, record, true, 0, contents.bytes(), 0));
        }

        let incoming = Incoming::open(self, &target, bundle.manifest_digest(), Some(base.content), &contents.files)?;
        let mut work = Assembly::new(self, incoming, &base_name, &base, &manifest, delta);
        WriteBehind::scope(|behind| work.keep(&contents, &manifest, &made, behind))?;
        let missing: u64 = manifest.files.iter().map(|file| file.size).sum();
        Needs { bytes: missing.saturating_sub(work.resumed), inodes: manifest.files.len() as u64 + 8, kept: 0 }
            .check(self.root())?;
        let (feed, layout, _) = bundle.parts();
        let Some(member) = layout.members.iter().find(|member| member.role == Role::Chunks) else {
            return Err(nothing());
        };
        let mut damages = Vec::new();
        member_header(feed, layout, member, &manifest.files, &mut damages)?;
        if damages.is_empty() {
            WriteBehind::scope(|behind| work.assemble(feed, member.data_at, &options.drive, behind))?;
            padding(feed, member, crate::layout::CHUNKS_NAME, &mut damages)?;
            trailer(feed, layout.total, &mut damages)?;
        }
        if !damages.is_empty() {
            return Err(Error::Damaged { damages });
        }
        let Assembly { incoming, written, linked, resumed, .. } = work;
        let (version, epoch) = (manifest.version.clone(), manifest.epoch);
        let record = Installed {
            format: FORMAT,
            content,
            version,
            epoch,
            sources,
            previous: None,
            contents,
            stamps: Vec::new(),
        };
        let record = incoming.finish(record, &target)?;
        Ok(done(target, record, false, written, linked, resumed))
    }
}

/// All differences from what the delta expects.
fn fits(site: &Site, there: &Contents, delta: &Delta) -> Result<()> {
    let mut mismatches = Vec::new();
    let mut expect = |subject: &dyn Fn() -> String, found: Option<Digest>, expected: Option<Digest>| {
        if found != expected {
            mismatches.push(Mismatch { subject: subject(), found, expected });
        }
    };
    for (path, expected) in &delta.expects {
        expect(&|| path.clone(), there.file(path).map(|file| file.digest), *expected);
    }
    let items = there.by_key();
    for wanted in &delta.expects_items {
        expect(&|| name(&wanted.item), items.get(&wanted.item).map(|item| item.identity()), wanted.identity);
    }
    if mismatches.is_empty() { Ok(()) } else { Err(Error::WrongBase { root: site.root().to_owned(), mismatches }) }
}

/// The result of a delta must be a valid content of a full bundle.
fn whole(contents: &Contents, delta: &Manifest) -> Result<()> {
    let Contents { items, files } = contents.clone();
    let full = Manifest {
        format: MANIFEST_FORMAT,
        kind: Kind::Full,
        version: delta.version.clone(),
        epoch: delta.epoch,
        items,
        files,
        keys: None,
        delta: None,
    };
    full.validate()
}

/// The local sources of chunks.
type ChunkSource = (Utf8PathBuf, u64);

struct Assembly<'a> {
    incoming: Incoming<'a>,
    site: &'a Site,
    base: &'a Installed,
    base_folder: Utf8PathBuf,
    manifest: &'a Manifest,
    /// Chunks of the files that the delta expects.
    there: HashMap<Chunk, ChunkSource>,
    /// Included chunks: their index, and their offset in the member.
    carried: HashMap<Chunk, (usize, u64)>,
    /// Included chunks that are in a file already.
    placed: HashMap<Chunk, ChunkSource>,
    written: u64,
    linked: u64,
    resumed: u64,
}

impl<'a> Assembly<'a> {
    fn new(
        site: &'a Site,
        incoming: Incoming<'a>,
        base_name: &str,
        base: &'a Installed,
        manifest: &'a Manifest,
        delta: &Delta,
    ) -> Assembly<'a> {
        let base_folder = site.folder(base_name);
        let mut there = HashMap::new();
        let expected = delta
            .expects
            .iter()
            .filter(|(_, digest)| digest.is_some())
            .filter_map(|(path, _)| base.contents.file(path));
        for file in expected {
            let mut at = 0;
            for chunk in &file.chunks {
                there.entry(*chunk).or_insert_with(|| (base_folder.join(&file.path), at));
                at += u64::from(chunk.size);
            }
        }
        let (mut carried, mut at) = (HashMap::new(), 0);
        for (index, chunk) in delta.carries.iter().enumerate() {
            carried.insert(*chunk, (index, at));
            at += u64::from(chunk.size);
        }
        let (placed, written, linked, resumed) = (HashMap::new(), 0, 0, 0);
        Assembly { incoming, site, base, base_folder, manifest, there, carried, placed, written, linked, resumed }
    }

    /// Links unchanged files, and writes the derived ones.
    fn keep(
        &mut self,
        contents: &Contents,
        manifest: &Manifest,
        made: &BTreeMap<String, Vec<u8>>,
        behind: &mut WriteBehind,
    ) -> Result<()> {
        let changed: BTreeSet<&str> = manifest.files.iter().map(|file| file.path.as_str()).collect();
        let stamps: HashMap<&str, &Stamp> =
            self.base.contents.files.iter().map(|file| file.path.as_str()).zip(&self.base.stamps).collect();
        for file in contents.files.iter().filter(|file| !changed.contains(file.path.as_str())) {
            if let Some(bytes) = made.get(&file.path) {
                remove(&self.incoming.folder.join(&file.path))?;
                self.incoming.append(usize::MAX, file, bytes, behind)?;
                continue;
            }
            let from = self.base_folder.join(&file.path);
            if !Stamp::at(&from).is_ok_and(|now| stamps.get(file.path.as_str()) == Some(&&now)) {
                return Err(Error::Altered { path: from, why: "its size, modification time or inode differs".into() });
            }
            if !self.incoming.link(&from, file)? {
                self.copy(&from, file, behind)?;
            }
            self.linked += file.size;
        }
        Ok(())
    }

    /// Copies a file where a link is not possible.
    fn copy(&mut self, from: &Utf8Path, file: &File, behind: &mut WriteBehind) -> Result<()> {
        let have = self.incoming.have(file)?;
        if file.size == 0 {
            return self.incoming.empty(file);
        }
        let mut at = 0;
        for (n, chunk) in file.chunks.iter().enumerate() {
            if n >= have {
                let bytes = verified(from, at, chunk)?;
                self.incoming.append(usize::MAX, file, &bytes, behind)?;
            }
            at += u64::from(chunk.size);
        }
        Ok(())
    }

    /// Writes the new and changed files, in the order of the included chunks.
    fn assemble(&mut self, feed: &mut Feed, data_at: u64, drive: &Drive<'_>, behind: &mut WriteBehind) -> Result<()> {
        let older = Older::of(self.site)?;
        let manifest = self.manifest;
        let total: u64 = manifest.files.iter().map(|file| file.size).sum();
        (drive.progress)(Event::Start { what: "apply", bytes: total, files: manifest.files.len() });
        let mut done = 0;
        let mut proof = Proof::resume(self.incoming.proof());
        for (n, file) in manifest.files.iter().enumerate() {
            (drive.progress)(Event::File { path: &file.path });
            let mut have = self.incoming.have(file)?;
            if file.size == 0 {
                self.incoming.empty(file)?;
            } else if have < file.chunks.len()
                && let Some(from) = older.same(file)
                && self.incoming.link(from, file)?
            {
                have = file.chunks.len();
            }
            let path = self.incoming.folder.join(&file.path);
            let mut at = 0;
            for (index, chunk) in file.chunks.iter().enumerate() {
                drive.check(|| "applying the delta".into())?;
                if index >= have {
                    let bytes = self.bytes(feed, data_at, file, chunk)?;
                    self.incoming.append(n, file, &bytes, behind)?;
                    proof.add(n, at, &bytes)?;
                    self.written += bytes.len() as u64;
                } else {
                    if proof.wants(n, at + u64::from(chunk.size)) {
                        proof.add(n, at, &read_part(&path, at, chunk.size)?)?;
                    }
                    self.resumed += u64::from(chunk.size);
                }
                if self.carried.contains_key(chunk) {
                    self.placed.entry(*chunk).or_insert_with(|| (path.clone(), at));
                }
                at += u64::from(chunk.size);
                done += u64::from(chunk.size);
                (drive.progress)(Event::Bytes { done });
            }
            // The digest of the whole file is verified here, because no later step does.
            proof.end(n, file)?;
        }
        Ok(())
    }

    fn bytes(&self, feed: &mut Feed, data_at: u64, file: &File, chunk: &Chunk) -> Result<Vec<u8>> {
        if let Some((path, at)) = self.placed.get(chunk).or_else(|| self.there.get(chunk)) {
            return verified(path, *at, chunk);
        }
        let Some((index, at)) = self.carried.get(chunk) else {
            let why = "the delta needs a chunk of an installed file with other chunk boundaries".to_owned();
            return Err(Error::Altered { path: self.base_folder.join(&file.path), why });
        };
        let mut bytes = vec![0; chunk.size as usize];
        feed.read_at(&mut bytes, data_at + at)?;
        match <[u8; 32]>::from(Sha256::digest(&bytes)) == chunk.digest {
            true => Ok(bytes),
            false => Err(Error::Damaged {
                damages: vec![chunk_damage(crate::layout::CHUNKS_NAME, *index, data_at + at, chunk.size)],
            }),
        }
    }
}

/// A chunk of a file on this machine.
fn verified(path: &Utf8Path, at: u64, chunk: &Chunk) -> Result<Vec<u8>> {
    let bytes = read_part(path, at, chunk.size)?;
    match <[u8; 32]>::from(Sha256::digest(&bytes)) == chunk.digest {
        true => Ok(bytes),
        false => Err(Error::Altered { path: path.to_owned(), why: format!("the {} bytes at {at} differ", chunk.size) }),
    }
}
