//! Bundles with changes only. A delta lists its preconditions and is refused where they fail. Deltas of different items
//! can be applied in any order with the same result.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_models::Digest;

use crate::contents::{Contents, content_digest};
use crate::error::{Error, Result};
use crate::flow::{self, Ahead, Batch, Drive, Event, Sheet, WholeFileHashing, WriteBehind};
use crate::layout::{BLOCK, Layout, Outline};
use crate::listing;
use crate::manifest::{Chunk, Delta, ExpectedItem, FORMAT, File, Item, ItemKey, KeyChange, Kind, Manifest};
use crate::open::{Bundle, chunk_damage};
use crate::pack::{ArchiveWriter, Inputs, Scan, head, padded, tail, with_partial};
use crate::rules::order;

/// The part of the target that a delta contains.
#[derive(Clone, Debug, Default)]
pub enum Scope {
    /// Everything: afterwards the site has the content of the target.
    #[default]
    Everything,
    /// These items and their files; the rest of the site is unchanged.
    Items(Vec<ItemKey>),
}

/// The target of a delta.
pub enum Target<'a> {
    /// A full bundle's content.
    Bundle(&'a Bundle),
    /// The inputs of a full bundle; they are read twice.
    Inputs(&'a Inputs),
}

/// A created delta.
#[derive(Clone, Debug)]
pub struct CreatedDelta {
    /// The file.
    pub path: Utf8PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Bytes of the included chunks.
    pub carried: u64,
    /// Its manifest.
    pub manifest: Manifest,
}

/// Writes the delta from `base` to `target`. Without a base it includes all of its files, and fits any site. `base` is
/// [`Contents::of`] another bundle, or [`Installed::contents`](crate::Installed::contents).
pub fn make_delta(
    base: Option<&Contents>,
    target: &Target<'_>,
    scope: &Scope,
    out: &Utf8Path,
    drive: &Drive<'_>,
) -> Result<CreatedDelta> {
    match target {
        Target::Bundle(bundle) => {
            bundle.sound()?;
            let wanted = Contents::try_from(*bundle)?;
            let volumes = bundle.volumes("reading single chunks")?;
            let offset_of = |file: usize, at: u64| bundle.layout.members[file + 3].data_at + at;
            let read = |file: usize, at: u64, buffer: &mut [u8]| volumes.read_at(buffer, offset_of(file, at));
            let other = |(file, index, at, chunk): &IncludedChunk| Error::Damaged {
                damages: vec![chunk_damage(&wanted.files[*file].path, *index, offset_of(*file, *at), chunk.size)],
            };
            let made = DeltaBuilder { base, wanted: &wanted, scope, drive };
            let manifest = bundle.manifest();
            made.write(&manifest.version, manifest.epoch, manifest.keys.clone(), out, read, other)
        }
        Target::Inputs(inputs) => {
            let scan = Scan::of(inputs, drive)?;
            let made = DeltaBuilder { base, wanted: &scan.contents, scope, drive };
            let read = |file: usize, at: u64, buffer: &mut [u8]| scan.read(file, at, buffer);
            let other = |(file, ..): &IncludedChunk| scan.changed(*file);
            made.write(&inputs.version, inputs.epoch, inputs.keys.clone(), out, read, other)
        }
    }
}

struct DeltaBuilder<'a> {
    base: Option<&'a Contents>,
    wanted: &'a Contents,
    scope: &'a Scope,
    drive: &'a Drive<'a>,
}

/// The resulting content of the site, and the files of the target for it.
struct Outcome {
    after: Contents,
    /// Indices into the target's files.
    changed: Vec<usize>,
    items: Vec<Item>,
    drops: Vec<ItemKey>,
    removes: Vec<String>,
}

/// An included chunk: the target's file, the chunk's index, its offset, the chunk.
type IncludedChunk = (usize, usize, u64, Chunk);

impl DeltaBuilder<'_> {
    fn write(
        &self,
        version: &str,
        epoch: u64,
        keys: Option<KeyChange>,
        out: &Utf8Path,
        read: impl Fn(usize, u64, &mut [u8]) -> Result<()> + Sync,
        other: impl Fn(&IncludedChunk) -> Error,
    ) -> Result<CreatedDelta> {
        let result = self.result()?;
        let (delta, carried) = self.delta(&result);
        let files: Vec<File> = result.changed.iter().map(|n| self.wanted.files[*n].clone()).collect();
        let (kind, version, items) = (Kind::Delta, version.to_owned(), result.items);
        let manifest = Manifest { format: FORMAT, kind, version, epoch, items, files, keys, delta: Some(delta) };
        manifest.validate()?;
        let reserve = padded(manifest.to_bytes()?.len() as u64)?;
        let layout = Layout::new(&Outline::of(&manifest), reserve);
        // The result is known beforehand by its digests, which identify the work independent of the source of the bytes.
        let work = format!("delta {reserve} {}", Digest::of(&manifest.to_bytes()?));
        let total: u64 = carried.iter().map(|(.., chunk)| u64::from(chunk.size)).sum();
        with_partial(out, layout.total, None, |volumes, journal| {
            let progress = journal.resume(&work, volumes.has_length(layout.total), &|_| true)?;
            volumes.set_length(layout.total)?;
            (self.drive.progress)(Event::Start { what: "delta", bytes: total, files: result.changed.len() });
            for member in &layout.members {
                volumes.write_at(&layout.header(member, &manifest.files), member.header_at)?;
                let end = member.data_at + member.size;
                volumes.write_at(&[0; BLOCK as usize][..(member.end() - end) as usize], end)?;
            }
            // For the journal the included chunks are one file, without a digest of the whole file.
            let (mut next, mut done) = (progress.files.first().map_or(0, |file| file.chunks.len()), progress.bytes());
            if done > 0 {
                (self.drive.progress)(Event::Resume { bytes: done });
            }
            let mut writing = ArchiveWriter { layout: &layout, volumes, file: 0, offset: done };
            let (mut at, mut tail) = (done, tail(&layout, volumes, 0, done)?);
            let source = |batch: &mut Batch| -> Result<()> {
                self.drive.check(|| format!("writing {out}"))?;
                while let Some((file, _, offset, chunk)) = carried.get(next) {
                    let size = chunk.size as usize;
                    if !batch.fits(size) {
                        break;
                    }
                    read(*file, *offset, &mut batch.room(at)[..size])?;
                    batch.before(&tail);
                    batch.take(0, next, size, next == 0, next + 1 == carried.len());
                    batch.known();
                    tail.follow(batch.last());
                    (next, at) = (next + 1, at + size as u64);
                }
                Ok(())
            };
            WriteBehind::scope(|behind| {
                let write = |sheet: &Sheet| writing.put(sheet, behind);
                flow::run_with_writer(self.drive.threads, Ahead::Little, WholeFileHashing::No, source, write, |batch| {
                    for piece in &batch.pieces {
                        let wanted = &carried[piece.chunk];
                        if piece.digest != wanted.3.digest {
                            return Err(other(wanted));
                        }
                        done += piece.size as u64;
                    }
                    journal.add(batch)?;
                    (self.drive.progress)(Event::Bytes { done });
                    Ok(())
                })
            })?;
            volumes.write_at(&[0; 2 * BLOCK as usize], layout.total - 2 * BLOCK)?;
            head(&manifest, &layout, volumes, reserve)?;
            volumes.sync()?;
            volumes.publish(&[])
        })?;
        Ok(CreatedDelta { path: out.to_owned(), bytes: layout.total, carried: total, manifest })
    }

    /// The items to add and to remove.
    fn result(&self) -> Result<Outcome> {
        let nothing = Contents::default();
        let base = self.base.unwrap_or(&nothing);
        // The lists of images are derived from the items, in both contents.
        let (listed, lists) = (listing::of(base)?, listing::of(self.wanted)?);
        let (before, wanted) = (base.by_key(), self.wanted.by_key());
        let chosen: BTreeSet<ItemKey> = match self.scope {
            Scope::Everything => before.keys().chain(wanted.keys()).cloned().collect(),
            Scope::Items(keys) => keys.iter().cloned().collect(),
        };
        let unknown = chosen.iter().filter(|key| !before.contains_key(key) && !wanted.contains_key(key));
        let problems: Vec<String> = unknown.map(|key| format!("there is no item {}", name(key))).collect();
        if !problems.is_empty() {
            return Err(Error::Inputs { problems });
        }
        let everything = matches!(self.scope, Scope::Everything);
        // Included paths of the target, and paths of the base that only the selected items use.
        let brought: BTreeSet<&str> = match everything {
            true => self.wanted.files.iter().map(|file| file.path.as_str()).collect(),
            false => chosen
                .iter()
                .filter_map(|key| wanted.get(key))
                .flat_map(|item| &item.paths)
                .map(String::as_str)
                .collect(),
        };
        let others: BTreeSet<&str> = base
            .items
            .iter()
            .filter(|item| !chosen.contains(&item.key()))
            .flat_map(|item| &item.paths)
            .map(String::as_str)
            .collect();
        let own: BTreeSet<&str> = match everything {
            true => base.files.iter().map(|file| file.path.as_str()).collect(),
            false => {
                let own =
                    chosen.iter().filter_map(|key| before.get(key)).flat_map(|item| &item.paths).map(String::as_str);
                own.filter(|path| !others.contains(path)).collect()
            }
        };
        let removes: Vec<String> = own
            .iter()
            .filter(|path| !brought.contains(*path) && !listed.contains_key(**path))
            .map(|path| (*path).to_owned())
            .collect();
        let changed = (0..self.wanted.files.len())
            .filter(|n| {
                let file = &self.wanted.files[*n];
                let same = |old: &File| old.digest == file.digest && old.executable == file.executable;
                let there = base.file(&file.path).filter(|_| !listed.contains_key(&file.path));
                brought.contains(file.path.as_str()) && !lists.contains_key(&file.path) && !there.is_some_and(same)
            })
            .collect::<Vec<_>>();
        let drops: Vec<ItemKey> =
            chosen.iter().filter(|key| before.contains_key(key) && !wanted.contains_key(key)).cloned().collect();
        let items: Vec<Item> = chosen
            .iter()
            .filter_map(|key| wanted.get(key).filter(|item| before.get(key) != Some(item)))
            .map(|item| (*item).clone())
            .collect();
        let files: Vec<File> = changed.iter().map(|n| self.wanted.files[*n].clone()).collect();
        let (after, _) = merge(base, &items, &drops, &files, &removes)?;
        Ok(Outcome { after, changed, items, drops, removes })
    }

    /// The delta's part of the manifest, and the sources of the included chunks.
    fn delta(&self, result: &Outcome) -> (Delta, Vec<IncludedChunk>) {
        let nothing = Contents::default();
        let base = self.base.unwrap_or(&nothing);
        let mut anywhere: HashMap<Chunk, &File> = HashMap::new();
        for file in &base.files {
            for chunk in &file.chunks {
                anywhere.entry(*chunk).or_insert(file);
            }
        }
        let mut expects: BTreeMap<String, Option<Digest>> = BTreeMap::new();
        let digest = |path: &str| base.file(path).map(|file| file.digest);
        for path in &result.removes {
            expects.insert(path.clone(), digest(path));
        }
        let (mut carried, mut known) = (Vec::new(), HashSet::new());
        for n in &result.changed {
            let file = &self.wanted.files[*n];
            if self.base.is_some() {
                expects.insert(file.path.clone(), digest(&file.path));
            }
            let own: HashSet<&Chunk> =
                base.file(&file.path).map(|file| file.chunks.iter().collect()).unwrap_or_default();
            let mut at = 0;
            for (index, chunk) in file.chunks.iter().enumerate() {
                // The previous version of the file first: a delta that depends on other files fits fewer sites.
                if !own.contains(chunk) {
                    match anywhere.get(chunk) {
                        Some(from) => drop(expects.insert(from.path.clone(), Some(from.digest))),
                        None if known.insert(*chunk) => carried.push((*n, index, at, *chunk)),
                        None => {}
                    }
                }
                at += u64::from(chunk.size);
            }
        }
        let before = base.by_key();
        let keys: BTreeSet<ItemKey> = result.items.iter().map(Item::key).chain(result.drops.iter().cloned()).collect();
        let expected = |item: ItemKey| ExpectedItem { identity: before.get(&item).map(|item| item.identity()), item };
        let expects_items = if self.base.is_some() { keys.into_iter().map(expected).collect() } else { Vec::new() };
        let delta = Delta {
            base: self.base.map(Contents::digest),
            result: self.base.map(|_| content_digest(&result.after.items, &result.after.files)),
            expects,
            expects_items,
            removes: result.removes.clone(),
            drops: result.drops.clone(),
            carries: carried.iter().map(|(.., chunk)| *chunk).collect(),
        };
        (delta, carried)
    }
}

/// A content after a delta, and its derived files, which no bundle contains.
pub(crate) fn merge(
    base: &Contents,
    items: &[Item],
    drops: &[ItemKey],
    files: &[File],
    removes: &[String],
) -> Result<(Contents, BTreeMap<String, Vec<u8>>)> {
    let mut by_key: BTreeMap<ItemKey, Item> = base.items.iter().map(|item| (item.key(), item.clone())).collect();
    drops.iter().for_each(|key| drop(by_key.remove(key)));
    by_key.extend(items.iter().map(|item| (item.key(), item.clone())));
    let mut by_path: BTreeMap<(usize, String), File> = BTreeMap::new();
    let offset_of = |path: &str| (order(path).0, path.to_owned());
    by_path.extend(base.files.iter().map(|file| (offset_of(&file.path), file.clone())));
    let gone = listing::of(base)?;
    removes.iter().chain(gone.keys()).for_each(|path| drop(by_path.remove(&offset_of(path))));
    by_path.extend(files.iter().map(|file| (offset_of(&file.path), file.clone())));
    let mut contents = Contents { items: by_key.into_values().collect(), files: by_path.values().cloned().collect() };
    let mut made = BTreeMap::new();
    for (path, (file, bytes)) in listing::of(&contents)? {
        by_path.insert(offset_of(&path), file);
        made.insert(path, bytes);
    }
    contents.files = by_path.into_values().collect();
    Ok((contents, made))
}

/// An item in words: `model textnlp-tiny`.
pub(crate) fn name((kind, name, platform): &ItemKey) -> String {
    platform.as_ref().map_or_else(|| format!("{kind} {name}"), |platform| format!("{kind} {name} ({platform})"))
}
