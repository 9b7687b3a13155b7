//! The difference between two contents, in items, files and bytes.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

use serde::Serialize;

use crate::contents::Contents;
use crate::delta::name;
use crate::manifest::{Chunk, File, Item, ItemKey};

/// From one content to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// Items, by kind, name and platform.
    pub items: Vec<ItemChange>,
    /// Files, by path.
    pub files: Vec<FileChange>,
    /// Bytes of files before.
    pub bytes_before: u64,
    /// Bytes of files after.
    pub bytes_after: u64,
    /// Bytes of chunks that are not in the old content: the size of a delta.
    pub bytes_new: u64,
}

/// The kind of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Added.
    Added,
    /// Removed.
    Removed,
    /// Changed.
    Changed,
}

/// One item that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ItemChange {
    /// The kind of the change.
    pub change: Change,
    /// `model textnlp-tiny`.
    pub item: String,
    /// Version before, where it has one.
    pub version_before: Option<String>,
    /// Version after.
    pub version_after: Option<String>,
}

/// One file that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileChange {
    /// The kind of the change.
    pub change: Change,
    /// Its path.
    pub path: String,
    /// Bytes before.
    pub bytes_before: u64,
    /// Bytes after.
    pub bytes_after: u64,
    /// Of those, bytes of chunks that are not in the old content.
    pub bytes_new: u64,
}

/// Compares two contents.
pub fn diff(before: &Contents, after: &Contents) -> Diff {
    let known: HashSet<&Chunk> = before.files.iter().flat_map(|file| &file.chunks).collect();
    let mut counted = HashSet::new();
    let mut fresh = |file: &File| {
        let new = file.chunks.iter().filter(|chunk| !known.contains(chunk) && counted.insert(**chunk));
        new.map(|chunk| u64::from(chunk.size)).sum::<u64>()
    };
    let mut diff = Diff { bytes_before: before.bytes(), bytes_after: after.bytes(), ..Diff::default() };

    let paths = |contents: &Contents| contents.files.iter().map(|file| file.path.clone()).collect::<BTreeSet<_>>();
    for path in paths(before).union(&paths(after)) {
        let (old, new) = (before.file(path), after.file(path));
        let change = match (old, new) {
            (Some(old), Some(new)) if old.digest == new.digest && old.executable == new.executable => continue,
            (Some(_), Some(_)) => Change::Changed,
            (None, _) => Change::Added,
            (_, None) => Change::Removed,
        };
        let size = |file: Option<&File>| file.map_or(0, |file| file.size);
        let bytes_new = new.map_or(0, &mut fresh);
        diff.bytes_new += bytes_new;
        diff.files.push(FileChange {
            change,
            path: path.clone(),
            bytes_before: size(old),
            bytes_after: size(new),
            bytes_new,
        });
    }
    let (old, new): (BTreeMap<ItemKey, &Item>, BTreeMap<ItemKey, &Item>) = (before.by_key(), after.by_key());
    for key in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        let (old, new) = (old.get(key), new.get(key));
        let change = match (old, new) {
            (Some(old), Some(new)) if old == new => continue,
            (Some(_), Some(_)) => Change::Changed,
            (None, _) => Change::Added,
            (_, None) => Change::Removed,
        };
        let version = |item: Option<&&Item>| item.and_then(|item| item.version.clone());
        diff.items.push(ItemChange {
            change,
            item: name(key),
            version_before: version(old),
            version_after: version(new),
        });
    }
    diff
}

impl Diff {
    /// Whether the two are the same.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.files.is_empty()
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Change::Added => "+",
            Change::Removed => "-",
            Change::Changed => "±",
        })
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("no difference");
        }
        for item in &self.items {
            write!(f, "{} {}", item.change, item.item)?;
            match (&item.version_before, &item.version_after) {
                (Some(before), Some(after)) if before != after => writeln!(f, "  {before} -> {after}")?,
                (None, Some(only)) | (Some(only), None) => writeln!(f, "  {only}")?,
                _ => writeln!(f)?,
            }
        }
        for file in &self.files {
            let FileChange { change, path, bytes_before, bytes_after, bytes_new } = file;
            writeln!(f, "{change} {path}  {bytes_before} -> {bytes_after} bytes, {bytes_new} of them new")?;
        }
        write!(f, "{} -> {} bytes, {} of them new", self.bytes_before, self.bytes_after, self.bytes_new)
    }
}
