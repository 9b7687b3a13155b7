//! Installs a full bundle's files: from a file, from volumes or from a stream, each chunk verified before it is
//! written.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};

use crate::contents::Contents;
use crate::error::{Damage, Error, Result};
use crate::flow::{self, Ahead, Batch, Drive, Event, WholeFileHashing, WriteBehind};
use crate::incoming::{Incoming, Needs, Older};
use crate::layout::name;
use crate::manifest::{File, Kind};

use crate::open::{Bundle, Feed, chunk_damage, is_content, member_header, padding, trailer};
use crate::rules::TOPS;
use crate::sign::Authenticity;
use crate::site::{FORMAT, Installed, Site, Source, Stamp};
use crate::volumes::in_order;
use crate::walk::Walk;

/// Options of unpacking.
#[derive(Clone, Debug)]
pub struct UnpackOptions<'a> {
    /// The result of [`Bundle::authenticity`] by the caller; it is recorded.
    pub authenticity: Authenticity,
    /// Verifies the digests of installed files, instead of relying on sizes and times.
    pub deep: bool,
    /// Threads, progress and stopping.
    pub drive: Drive<'a>,
}

/// The result of unpacking.
#[derive(Clone, Debug)]
pub struct Unpacked {
    /// The content's name, for [`Site::activate`].
    pub name: String,
    /// Its folder.
    pub folder: Utf8PathBuf,
    /// Its record.
    pub record: Installed,
    /// Whether all of it existed already.
    pub unchanged: bool,
    /// Bytes written by this run.
    pub written: u64,
    /// Bytes reused from older contents.
    pub linked: u64,
    /// Bytes that an earlier, killed run had written.
    pub resumed: u64,
    /// How long this run took.
    pub elapsed: Duration,
}

impl Site {
    /// The space that a full bundle will need here.
    ///
    /// The second value has the bytes of the files below each of [`TOPS`], such as `models` and `images`.
    pub fn needs(&self, bundle: &Bundle) -> Result<(Needs, BTreeMap<&'static str, u64>)> {
        bundle.want(Kind::Full, "the space it needs is unknown without the content of the site")?;
        let name = Site::name_of(&bundle.content_digest());
        let older = Older::of(self)?;
        let files = &bundle.manifest().files;
        let partial = self.root().join(format!(".incoming-{name}"));
        let kept = |file: &File| {
            let there =
                std::fs::symlink_metadata(partial.join(&file.path)).map_or(0, |metadata| metadata.len().min(file.size));
            if older.same(file).is_some() { file.size } else { there }
        };
        let mut parts: BTreeMap<&str, u64> = BTreeMap::new();
        for file in files {
            if let Some(part) = TOPS.into_iter().find(|top| file.path.split('/').next() == Some(*top)) {
                *parts.entry(part).or_default() += on_disk(file.size - kept(file));
            }
        }
        Ok((needs(files, kept), parts))
    }

    /// Unpacks a full bundle into a folder of its own, inactive before [`Site::activate`]. After a kill, the same call
    /// resumes; when everything exists already, it is checked and nothing is written.
    pub fn unpack(&self, bundle: &mut Bundle, options: &UnpackOptions<'_>) -> Result<Unpacked> {
        let started = Instant::now();
        bundle.want(Kind::Full, "this command applies deltas")?;
        bundle.sound()?;
        let _lock = self.lock()?;
        let contents = Contents::try_from(&*bundle)?;
        let content = contents.digest();
        let name = Site::name_of(&content);
        let source = Source {
            kind: Kind::Full,
            version: bundle.manifest().version.clone(),
            manifest: bundle.manifest_digest(),
            authenticity: options.authenticity.clone(),
        };
        let done = |record, unchanged, written, linked, resumed| Unpacked {
            folder: self.folder(&name),
            name: name.clone(),
            record,
            unchanged,
            written,
            linked,
            resumed,
            elapsed: started.elapsed(),
        };

        let mut bad = BTreeSet::new();
        if let Ok(mut record) = self.record(&name) {
            // Files with equal names and digests but other chunks are verified.
            let same = record.contents == contents;
            bad = self.altered(&name, &record, options.deep, &options.drive)?;
            if same && bad.is_empty() {
                if record.sources != [source.clone()] {
                    record.sources = vec![source];
                    (record.version, record.epoch) = (bundle.manifest().version.clone(), bundle.manifest().epoch);
                    self.write_record(&self.folder(&name), &record)?;
                }
                return Ok(done(record, true, 0, contents.bytes(), 0));
            }
        }

        // From a file, all headers are checked before anything is written; from a stream, each one when it arrives.
        scan(bundle)?;
        let older = Older::of(self)?.without(&bad);
        let mut incoming = Incoming::open(self, &name, bundle.manifest_digest(), None, &contents.files)?;
        let plan = prepare(&incoming, &older, &contents.files)?;
        needs(&contents.files, |file| plan.kept.get(&file.path).copied().unwrap_or(0)).check(self.root())?;
        let (drive, total) = (&options.drive, contents.bytes());
        (drive.progress)(Event::Start { what: "unpack", bytes: total, files: contents.files.len() });
        if plan.resumed > 0 {
            (drive.progress)(Event::Resume { bytes: plan.resumed });
        }

        let mut written = 0;
        let (feed, layout, manifest) = bundle.parts();
        let mut walk = Walk::new(feed, layout, manifest, drive);
        walk.skip = &plan.skip;
        walk.doing = "unpacking";
        WriteBehind::scope(|behind| {
            flow::run(
                drive.threads,
                Ahead::Little,
                WholeFileHashing::No,
                |batch| walk.fill(batch),
                |batch| {
                    for piece in &batch.pieces {
                        let file = &contents.files[piece.file];
                        let at = layout.members[piece.file + 3].data_at;
                        check(batch, piece, file, at)?;
                        incoming.append(piece.file, file, batch.bytes(piece), behind)?;
                        written += piece.size as u64;
                    }
                    (drive.progress)(Event::Bytes { done: plan.resumed + plan.linked + written });
                    Ok(())
                },
            )
        })?;
        let (version, epoch) = (manifest.version.clone(), manifest.epoch);
        let previous = self.record(&name).ok().and_then(|record| record.previous);
        let record = Installed {
            format: FORMAT,
            content,
            version,
            epoch,
            sources: vec![source],
            previous,
            contents,
            stamps: Vec::new(),
        };
        let record = incoming.finish(record, &name)?;
        Ok(done(record, false, written, plan.linked, plan.resumed))
    }

    /// Changed files of an installed content: by size, time and inode, or by their bytes.
    pub fn altered(
        &self,
        name: &str,
        record: &Installed,
        deep: bool,
        drive: &Drive<'_>,
    ) -> Result<BTreeSet<Utf8PathBuf>> {
        let folder = self.folder(name);
        let files = &record.contents.files;
        let mut bad = BTreeSet::new();
        for (file, stamp) in files.iter().zip(&record.stamps) {
            let path = folder.join(&file.path);
            if !Stamp::at(&path).is_ok_and(|now| now == *stamp) {
                bad.insert(path);
            }
        }
        if deep {
            let good: Vec<&File> = files.iter().filter(|file| !bad.contains(&folder.join(&file.path))).collect();
            let found = rehash(&folder, &good, drive)?;
            bad.extend(found.into_iter().map(|damage| folder.join(damage.member)));
        }
        Ok(bad)
    }
}

/// Checks every header and all padding.
fn scan(bundle: &mut Bundle) -> Result<()> {
    let (feed, layout, manifest) = bundle.parts();
    if matches!(feed, Feed::Stream { .. }) {
        return Ok(());
    }
    let mut damages = Vec::new();
    for member in layout.members.iter().filter(|member| is_content(member)) {
        member_header(feed, layout, member, &manifest.files, &mut damages)?;
        padding(feed, member, name(member.role, &manifest.files).0, &mut damages)?;
    }
    trailer(feed, layout.total, &mut damages)?;
    if damages.is_empty() { Ok(()) } else { Err(Error::Damaged { damages }) }
}

/// The existing part of an installation.
pub(crate) struct Plan {
    /// Chunks of each file that need not be read.
    pub(crate) skip: Vec<usize>,
    pub(crate) kept: std::collections::HashMap<String, u64>,
    pub(crate) linked: u64,
    pub(crate) resumed: u64,
}

/// Checks the files of an earlier run, links those of older contents, creates empty files.
fn prepare(incoming: &Incoming<'_>, older: &Older, files: &[File]) -> Result<Plan> {
    let mut plan = Plan { skip: Vec::with_capacity(files.len()), kept: Default::default(), linked: 0, resumed: 0 };
    for file in files {
        let mut have = incoming.have(file)?;
        let mut kept = file.chunks[..have].iter().map(|chunk| u64::from(chunk.size)).sum();
        if file.size == 0 {
            incoming.empty(file)?;
        } else if have < file.chunks.len()
            && let Some(from) = older.same(file)
            && incoming.link(from, file)?
        {
            (have, kept) = (file.chunks.len(), file.size);
            plan.linked += file.size;
        } else {
            plan.resumed += kept;
        }
        plan.skip.push(have);
        if kept > 0 {
            plan.kept.insert(file.path.clone(), kept);
        }
    }
    Ok(plan)
}

/// A block of most file systems.
const UNIT: u64 = 4096;

fn on_disk(bytes: u64) -> u64 {
    bytes.div_ceil(UNIT) * UNIT
}

fn needs(files: &[File], kept: impl Fn(&File) -> u64) -> Needs {
    let mut needs = Needs::default();
    let mut folders = BTreeSet::new();
    for file in files {
        let there = kept(file);
        needs.kept += there;
        needs.bytes += on_disk(file.size - there);
        needs.inodes += 1;
        folders.extend(file.path.match_indices('/').map(|(at, _)| &file.path[..at]));
    }
    // The record is as large as the manifest; each folder takes one block.
    needs.inodes += folders.len() as u64 + 8;
    needs.bytes +=
        folders.len() as u64 * UNIT + files.iter().map(|file| 400 + 60 * file.chunks.len() as u64).sum::<u64>();
    needs
}

/// Verifies a piece against the manifest.
pub(crate) fn check(batch: &Batch, piece: &flow::Piece, file: &File, data_at: u64) -> Result<()> {
    debug_assert_eq!(batch.bytes(piece).len(), piece.size);
    let expected = &file.chunks[piece.chunk];
    if expected.digest == piece.digest {
        return Ok(());
    }
    let before: u64 = file.chunks[..piece.chunk].iter().map(|chunk| u64::from(chunk.size)).sum();
    Err(Error::Damaged { damages: vec![chunk_damage(&file.path, piece.chunk, data_at + before, expected.size)] })
}

/// Reads installed files and verifies their chunks.
fn rehash(folder: &Utf8Path, files: &[&File], drive: &Drive<'_>) -> Result<Vec<Damage>> {
    use std::os::unix::fs::FileExt;
    let mut position = (0, 0, 0u64);
    let mut open: Option<std::fs::File> = None;
    let mut found = Vec::new();
    let source = |batch: &mut Batch| -> Result<()> {
        drive.check(|| "checking what is installed".into())?;
        loop {
            let (n, chunk, at) = position;
            let Some(file) = files.get(n) else { return Ok(()) };
            let Some(next) = file.chunks.get(chunk) else {
                position = (n + 1, 0, 0);
                open = None;
                continue;
            };
            let path = folder.join(&file.path);
            let size = next.size as usize;
            if !batch.fits(size) {
                return Ok(());
            }
            if open.is_none() {
                let file = std::fs::File::open(&path).map_err(Error::io("open", &path))?;
                in_order(&file);
                open = Some(file);
            }
            if let Some(open) = &open {
                open.read_exact_at(&mut batch.room(at)[..size], at).map_err(Error::io("read", &path))?;
            }
            batch.take(n, chunk, size, chunk == 0, chunk + 1 == file.chunks.len());
            position = (n, chunk + 1, at + size as u64);
        }
    };
    flow::run(drive.threads, Ahead::Far, WholeFileHashing::No, source, |batch| {
        for piece in &batch.pieces {
            let file = files[piece.file];
            if file.chunks[piece.chunk].digest != piece.digest {
                found.push(chunk_damage(&file.path, piece.chunk, 0, file.chunks[piece.chunk].size));
            }
        }
        Ok(())
    })?;
    Ok(found)
}
