//! The rules of a manifest. It is the only part of a bundle that is parsed, so malicious input is refused here: all
//! violations in one report, before any described file is read.

use std::collections::BTreeSet;
use std::io::{self, Write};

use textnlp_models::Digest;
pub use textnlp_models::MOST_CHUNK;

use crate::error::{Error, Result};
use crate::manifest::{
    Delta, ExpectedItem, FORMAT, File, Item, ItemKey, ItemKind, KeyChange, Kind, MAX_CHANGED_KEYS, Manifest,
};
use crate::sign::PublicKey;

/// The longest manifest that is read: it holds more than a million chunks, which is 4 TiB of weights.
pub const MOST_MANIFEST: u64 = 64 << 20;
const MOST_STRINGS: usize = 2_000_000;
/// The folders and files that a bundle's root may hold, in the order of the archive.
pub const TOPS: [&str; 8] = ["install.sh", "bin", "configs", "scripts", "packages", "sbom", "images", "models"];
/// ustar has eleven octal digits for a time.
const LATEST: u64 = 0o77_777_777_777;
/// A report with more violations is not readable.
const MOST_PROBLEMS: usize = 100;
const MOST_PATH: usize = 1024;
const MOST_NAME: usize = 255;
const MOST_VERSION: usize = 128;
const MOST_CONTENT: u64 = 1 << 60;

impl Manifest {
    /// Reads the first member of a bundle: canonical JSON, followed only by spaces.
    pub fn parse(bytes: &[u8]) -> Result<Manifest> {
        let one = |problem: String| Error::Manifest { problems: vec![problem] };
        if bytes.len() as u64 > MOST_MANIFEST {
            return Err(one(format!("it has {} bytes; at most {MOST_MANIFEST} are read", bytes.len())));
        }
        // `"a","a",…` takes four bytes in the text and sixty in memory.
        if bytes.iter().filter(|byte| **byte == b'"').count() > 2 * MOST_STRINGS {
            return Err(one(format!("it has more than {MOST_STRINGS} strings")));
        }
        let end = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
        let text = &bytes[..end];
        // A later format may have any fields; the operator needs its number.
        #[derive(serde::Deserialize)]
        struct Format {
            format: u32,
        }
        match serde_json::from_slice::<Format>(text) {
            Ok(Format { format }) if format != FORMAT => {
                return Err(Error::NewerFormat { found: format, known: FORMAT });
            }
            Ok(_) => {}
            Err(error) => return Err(one(plain(&error.to_string()))),
        }
        let manifest: Manifest = serde_json::from_slice(text).map_err(|error| one(plain(&error.to_string())))?;
        manifest.validate()?;
        let mut same = Same { rest: text };
        let equal = serde_json::to_writer(&mut same, &manifest).is_ok() && same.rest.is_empty();
        if !equal {
            return Err(one("it is not in canonical form (its keys are out of order, doubled, or spaced)".into()));
        }
        Ok(manifest)
    }

    /// The canonical bytes, without padding.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| Error::Manifest { problems: vec![error.to_string()] })
    }

    /// Checks the manifest against every rule.
    pub fn validate(&self) -> Result<()> {
        let mut found = Problems::default();
        if self.format != FORMAT {
            return Err(Error::NewerFormat { found: self.format, known: FORMAT });
        }
        text(&mut found, "version", &self.version);
        if self.version.len() > MOST_VERSION {
            found.add(|| format!("its version has {} bytes; at most {MOST_VERSION} are allowed", self.version.len()));
        }
        if let Some(why) = unsafe_name(&self.version) {
            found.add(|| format!("version `{}`: {why}", short(&self.version)));
        }
        if self.epoch > LATEST {
            found.add(|| format!("the time {} is later than an archive can record", self.epoch));
        }
        files(&mut found, &self.files);
        items(&mut found, &self.items);
        keys(&mut found, self.keys.as_ref());
        match (&self.kind, &self.delta) {
            (Kind::Full, None) => paths_of_items(&mut found, &self.items, &self.files),
            (Kind::Delta, Some(delta)) => delta_rules(&mut found, self, delta),
            (Kind::Full, Some(_)) => found.add(|| "a full bundle has no `delta`".into()),
            (Kind::Delta, None) => found.add(|| "a delta bundle needs `delta`".into()),
        }
        found.finish()
    }
}

impl Item {
    /// Its identity.
    pub fn key(&self) -> ItemKey {
        (self.kind, self.name.clone(), self.platform.clone())
    }

    /// The digest of all its fields.
    pub fn identity(&self) -> Digest {
        // Serialising plain strings and digests into memory cannot fail.
        Digest::of(&serde_json::to_vec(self).unwrap_or_default())
    }
}

/// The order of paths in the archive: by the first component, then by bytes.
pub(crate) fn order(path: &str) -> (usize, &str) {
    let top = path.split('/').next().unwrap_or(path);
    (TOPS.iter().position(|known| *known == top).unwrap_or(TOPS.len()), path)
}

/// Why a text cannot be a path below a folder.
fn unsafe_parts(path: &str) -> Option<&'static str> {
    if path.is_empty() {
        return Some("it is empty");
    }
    if path.len() > MOST_PATH {
        return Some("it is longer than 1024 bytes");
    }
    if path.starts_with('/') {
        return Some("it is absolute");
    }
    if path.chars().any(|c| c.is_control() || c == '\\' || invisible(c)) {
        return Some("it has a control, invisible or backslash character");
    }
    for part in path.split('/') {
        match part {
            "" => return Some("it has an empty part"),
            "." | ".." => return Some("it has a part `.` or `..`"),
            part if part.len() > MOST_NAME => return Some("a part is longer than 255 bytes"),
            _ => {}
        }
    }
    None
}

/// Why a path is not allowed in a bundle.
pub(crate) fn unsafe_path(path: &str) -> Option<&'static str> {
    if let Some(why) = unsafe_parts(path) {
        return Some(why);
    }
    let (rank, _) = order(path);
    match rank {
        rank if rank == TOPS.len() => {
            Some("its first part is none of install.sh, bin, configs, scripts, packages, sbom, images, models")
        }
        0 if path != TOPS[0] => Some("install.sh is a file"),
        rank if rank > 0 && !path.contains('/') => Some("a folder is expected there"),
        _ => None,
    }
}

/// Why a text cannot name one file: names and versions become parts of paths at the site.
fn unsafe_name(name: &str) -> Option<&'static str> {
    if name.contains('/') { Some("it has a slash") } else { unsafe_parts(name) }
}

/// Characters that can make two names look equal.
fn invisible(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[derive(Default)]
struct Problems {
    list: Vec<String>,
    more: usize,
}

impl Problems {
    fn add(&mut self, problem: impl FnOnce() -> String) {
        if self.list.len() < MOST_PROBLEMS { self.list.push(plain(&problem())) } else { self.more += 1 }
    }

    fn finish(mut self) -> Result<()> {
        if self.more > 0 {
            self.list.push(format!("and {} more", self.more));
        }
        if self.list.is_empty() { Ok(()) } else { Err(Error::Manifest { problems: self.list }) }
    }
}

/// Untrusted text, escaped for a terminal.
pub(crate) fn plain(text: &str) -> String {
    let mut plain: String =
        text.chars().take(400).map(|c| if c.is_control() || invisible(c) { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(400).is_some() {
        plain.push('…');
    }
    plain
}

/// The start of a long name, so that the message stays readable.
fn short(text: &str) -> String {
    const SHOWN: usize = 120;
    let shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() { shown + "…" } else { shown }
}

fn text(found: &mut Problems, what: &str, text: &str) {
    if text.is_empty() || text.len() > MOST_PATH || text.chars().any(|c| c.is_control() || invisible(c)) {
        found.add(|| format!("{what} `{text}` is empty, too long or not printable"));
    }
}

fn files(found: &mut Problems, files: &[File]) {
    let mut total = 0u64;
    for file in files {
        if let Some(why) = unsafe_path(&file.path) {
            found.add(|| format!("path `{}`: {why}", short(&file.path)));
        }
        let mut sum = 0u64;
        for (n, chunk) in file.chunks.iter().enumerate() {
            if chunk.size == 0 || chunk.size > MOST_CHUNK {
                found.add(|| {
                    format!("`{}`: chunk {n} has {} bytes; 1 to {MOST_CHUNK} are allowed", file.path, chunk.size)
                });
            }
            sum = sum.saturating_add(u64::from(chunk.size));
        }
        if sum != file.size {
            found.add(|| format!("`{}` has {} bytes, its chunks have {sum}", file.path, file.size));
        }
        total = total.saturating_add(file.size);
    }
    if total > MOST_CONTENT {
        found.add(|| format!("its files have more than {MOST_CONTENT} bytes"));
    }
    for pair in files.windows(2) {
        let (before, after) = (&pair[0].path, &pair[1].path);
        if before == after {
            found.add(|| format!("`{after}` is listed twice"));
        } else if order(before) > order(after) {
            found.add(|| format!("`{after}` follows `{before}`, which breaks the order of a bundle"));
        }
    }
    // A name that is both a file and a folder: sorting by bytes can put others between the two, so all files are compared.
    let names: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    for file in files {
        let mut end = file.path.len();
        while let Some(slash) = file.path.get(..end).and_then(|path| path.rfind('/')) {
            end = slash;
            if names.contains(&file.path[..end]) {
                found.add(|| format!("`{}` is a file and the folder of `{}`", &file.path[..end], file.path));
            }
        }
    }
}

fn items(found: &mut Problems, items: &[Item]) {
    for item in items {
        text(found, "an item's name", &item.name);
        // An image is called by a path of a registry.
        let problem = if item.kind == ItemKind::Image { unsafe_parts } else { unsafe_name };
        if let Some(why) = problem(&item.name) {
            found.add(|| format!("{} `{}`: name: {why}", item.kind, short(&item.name)));
        }
        // A revision of a model may be a path of a repository.
        if let Some(why) = item.version.as_deref().and_then(unsafe_parts) {
            found.add(|| format!("{} `{}`: version: {why}", item.kind, short(&item.name)));
        }
        for optional in [&item.version, &item.platform, &item.license, &item.source].into_iter().flatten() {
            text(found, "an item's text", optional);
        }
        sorted(found, "the paths of an item", &item.paths);
        for path in &item.paths {
            if let Some(why) = unsafe_path(path) {
                found.add(|| format!("item `{}`: path `{}`: {why}", short(&item.name), short(path)));
            }
        }
    }
    let keys: Vec<ItemKey> = items.iter().map(Item::key).collect();
    sorted(found, "the items", &keys);
}

fn keys(found: &mut Problems, change: Option<&KeyChange>) {
    let Some(KeyChange { introduces, revokes }) = change else { return };
    let count = introduces.len() + revokes.len();
    if count == 0 || count > MAX_CHANGED_KEYS {
        found.add(|| format!("it changes {count} keys; 1 to {MAX_CHANGED_KEYS} are allowed"));
    }
    for (what, keys) in [("the introduced keys", introduces), ("the revoked keys", revokes)] {
        sorted(found, what, &keys.iter().map(PublicKey::to_base64).collect::<Vec<_>>());
    }
    for key in introduces.iter().filter(|key| revokes.contains(key)) {
        found.add(|| format!("key {} is both introduced and revoked", key.id()));
    }
}

fn sorted<T: PartialOrd + std::fmt::Debug>(found: &mut Problems, what: &str, list: &[T]) {
    for pair in list.windows(2) {
        if pair[0] >= pair[1] {
            found.add(|| format!("{what} are not sorted or not unique at {:?}", pair[1]));
        }
    }
}

fn paths_of_items(found: &mut Problems, items: &[Item], files: &[File]) {
    let names: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    for item in items {
        for path in &item.paths {
            if !names.contains(path.as_str()) {
                found.add(|| format!("item `{}` names `{path}`, which is not among the files", item.name));
            }
        }
    }
}

fn delta_rules(found: &mut Problems, manifest: &Manifest, delta: &Delta) {
    for path in delta.expects.keys().chain(&delta.removes) {
        if let Some(why) = unsafe_path(path) {
            found.add(|| format!("path `{}`: {why}", short(path)));
        }
    }
    sorted(found, "the removed paths", &delta.removes);
    let files: BTreeSet<&str> = manifest.files.iter().map(|file| file.path.as_str()).collect();
    for path in &delta.removes {
        if files.contains(path.as_str()) {
            found.add(|| format!("`{path}` is both removed and added"));
        }
        if !matches!(delta.expects.get(path), Some(Some(_))) {
            found.add(|| format!("`{path}` is removed, but not expected"));
        }
    }
    sorted(found, "the dropped items", &delta.drops);
    let expected: Vec<&ItemKey> = delta.expects_items.iter().map(|ExpectedItem { item, .. }| item).collect();
    sorted(found, "the expected items", &expected);
    for key in &delta.drops {
        if manifest.items.iter().any(|item| item.key() == *key) {
            found.add(|| format!("item `{}` is both dropped and added", key.1));
        }
    }
    let mut carried = BTreeSet::new();
    for (n, chunk) in delta.carries.iter().enumerate() {
        if chunk.size == 0 || chunk.size > MOST_CHUNK {
            found.add(|| format!("included chunk {n} has {} bytes; 1 to {MOST_CHUNK} are allowed", chunk.size));
        }
        if !carried.insert((chunk.digest, chunk.size)) {
            found.add(|| format!("included chunk {n} is listed twice"));
        }
    }
    // First use in the order of the files is the order of the member, so a stream can be applied.
    let mut next = 0;
    let mut used = BTreeSet::new();
    let copies = delta.expects.values().any(Option::is_some);
    for file in &manifest.files {
        for chunk in &file.chunks {
            let key = (chunk.digest, chunk.size);
            if !carried.contains(&key) {
                if !copies {
                    found.add(|| {
                        format!("`{}` needs a chunk that is neither included nor in an expected file", file.path)
                    });
                }
            } else if used.insert(key) {
                if delta.carries.get(next) != Some(chunk) {
                    found.add(|| format!("included chunk {next} is not the next that `{}` needs", file.path));
                }
                next += 1;
            }
        }
    }
    if used.len() != carried.len() {
        found.add(|| format!("{} included chunks belong to no file", carried.len() - used.len()));
    }
}

/// Compares written bytes with existing ones, without a second copy of either.
struct Same<'a> {
    rest: &'a [u8],
}

impl Write for Same<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.rest = self.rest.strip_prefix(bytes).ok_or_else(|| io::Error::other("differs"))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
