//! Verifies every byte of a bundle: reports all damage in one run, each with its file and chunk.

use std::time::{Duration, Instant};

use textnlp_models::{MANIFEST, digest_of_files};

use crate::contents::Contents;
use crate::error::{Damage, Error, Result};
use crate::flow::{self, Ahead, Drive, Event, WholeFileHashing};
use crate::layout::{MANIFEST_NAME, Role, name};
use crate::manifest::{Item, ItemKind, Kind};
use crate::oci::catalogue::path_of;
use crate::open::{Bundle, chunk_damage};
use crate::recipe::{environment_path, model_path, package_path, program_path};
use crate::walk::{Walk, chunks};

/// Further damage is counted, not listed.
const MOST_LISTED: usize = 10_000;

/// Options of a verification.
#[derive(Clone, Copy, Debug, Default)]
pub struct VerifyOptions<'a> {
    /// Computes the digests of whole files too, as `bundle verify` does. The chunk digests cover every byte already.
    /// This also checks that `SHA256SUMS` is correct and that the items are those of the files, and hashes everything
    /// twice.
    pub whole_files: bool,
    /// Threads, progress and stopping.
    pub drive: Drive<'a>,
}

/// The result of a verification.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Verified {
    /// Empty without damage. In the order of the archive.
    pub damages: Vec<Damage>,
    /// Damages beyond those that are listed.
    pub more: u64,
    /// Bytes of content that were read.
    pub bytes: u64,
    /// Files, and chunks of all files.
    pub files: usize,
    /// See `files`.
    pub chunks: usize,
    /// How long it took.
    pub seconds: f64,
    #[serde(skip)]
    elapsed: Duration,
}

impl Verified {
    /// Whether the bundle has no damage.
    pub fn is_whole(&self) -> bool {
        self.damages.is_empty()
    }

    /// How long it took.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }

    /// No damage, or the damage as an error.
    pub fn into_result(self) -> Result<Verified> {
        if self.is_whole() { Ok(self) } else { Err(Error::Damaged { damages: self.damages }) }
    }
}

impl Bundle {
    /// Reads the whole bundle. Damage is in the report; an error means that reading failed for another reason.
    pub fn verify(&mut self, options: &VerifyOptions<'_>) -> Result<Verified> {
        let started = Instant::now();
        let head = self.head_damages().to_vec();
        let (feed, layout, manifest) = self.parts();
        let members = layout.members.iter().filter(|member| matches!(member.role, Role::File(_) | Role::Chunks));
        let offsets: Vec<u64> = members.clone().map(|member| member.data_at).collect();
        let roles: Vec<Role> = members.map(|member| member.role).collect();
        let total: u64 = layout.members.iter().skip(3).map(|member| member.size).sum();
        (options.drive.progress)(Event::Start { what: "verify", bytes: total, files: roles.len() });

        let mut walk = Walk::new(feed, layout, manifest, &options.drive);
        walk.lenient = true;
        walk.doing = "verifying";
        let (mut found, mut more) = (head, 0);
        let mut add = |damage: Damage| if found.len() < MOST_LISTED { found.push(damage) } else { more += 1 };
        let (mut bytes, mut counted) = (0u64, 0);
        let mut position = (usize::MAX, 0u64);
        // Only a full bundle has whole files; a delta's chunks are no file.
        let whole = manifest.kind == Kind::Full && options.whole_files;
        if whole && let Some(contents) = Contents::of(manifest) {
            let own = &layout.members[0];
            for item in contents.items.iter().filter(|item| !is_of_its_files(item, &contents)) {
                let (kind, name) = (item.kind, crate::rules::plain(&item.name));
                let what = format!("{kind} `{name}` has a digest or paths that are not those of its files");
                add(Damage { member: MANIFEST_NAME.into(), chunk: None, offset: own.data_at, bytes: own.size, what });
            }
        }
        let whole = if whole { WholeFileHashing::Yes(Box::default()) } else { WholeFileHashing::No };
        let read = flow::run(
            options.drive.threads,
            Ahead::Far,
            whole,
            |batch| walk.fill(batch),
            |batch| {
                let mut bad = usize::MAX;
                for piece in &batch.pieces {
                    if position.0 != piece.file {
                        position = (piece.file, offsets[piece.file]);
                    }
                    let expected = chunks(manifest, roles[piece.file]).1[piece.chunk];
                    if expected.digest != piece.digest {
                        let path = name(roles[piece.file], &manifest.files).0;
                        add(chunk_damage(path, piece.chunk, position.1, expected.size));
                        bad = piece.file;
                    }
                    position.1 += piece.size as u64;
                    bytes += piece.size as u64;
                    counted += 1;
                }
                for (file, digest) in &batch.ends {
                    let expected = &manifest.files[*file];
                    if *digest != expected.digest && *file != bad {
                        let what = "its bytes do not have the file's digest in the manifest".to_owned();
                        let member = expected.path.clone();
                        add(Damage { member, chunk: None, offset: offsets[*file], bytes: expected.size, what });
                    }
                }
                (options.drive.progress)(Event::Bytes { done: bytes });
                Ok(())
            },
        );
        for damage in std::mem::take(&mut walk.damages) {
            add(damage);
        }
        match read {
            Ok(()) => {}
            Err(Error::Truncated { path, found, expected }) => add(Damage {
                member: path.to_string(),
                chunk: None,
                offset: found,
                bytes: expected - found,
                what: format!("it ends at byte {found}; {} bytes are missing", expected - found),
            }),
            Err(error) => return Err(error),
        }
        for file in manifest.files.iter().filter(|file| file.size == 0 && manifest.kind == Kind::Full) {
            if file.digest != textnlp_models::Digest::of(b"") {
                let what = "an empty file has another digest".to_owned();
                add(Damage { member: file.path.clone(), chunk: None, offset: 0, bytes: 0, what });
            }
        }
        // A file with a damaged chunk in an earlier batch is reported once, by its chunk.
        let with_bad_chunks: std::collections::BTreeSet<String> =
            found.iter().filter(|damage| damage.chunk.is_some()).map(|damage| damage.member.clone()).collect();
        found.retain(|damage| {
            damage.chunk.is_some()
                || !damage.what.contains("file's digest")
                || !with_bad_chunks.contains(&damage.member)
        });
        found.sort_by_key(|damage| damage.offset);
        let elapsed = started.elapsed();
        let files = if manifest.kind == Kind::Full { manifest.files.len() } else { 1 };
        Ok(Verified { damages: found, more, bytes, files, chunks: counted, seconds: elapsed.as_secs_f64(), elapsed })
    }
}

/// Whether an item's digest is that of its files, and whether they are where the item's kind and name say.
fn is_of_its_files(item: &Item, contents: &Contents) -> bool {
    let holds = |path: &String| contents.file(path).is_some_and(|file| file.digest == item.digest);
    let at = |place: String| item.paths.contains(&place) && holds(&place);
    match item.kind {
        ItemKind::Program => at(program_path(item.platform.as_deref().unwrap_or_default())),
        ItemKind::Image => at(path_of(item.digest)),
        ItemKind::Environment => at(environment_path(&item.name)),
        ItemKind::Package => at(package_path(&item.name)),
        ItemKind::Document => item.paths.iter().any(holds),
        ItemKind::Model => {
            let folder = model_path(&item.name);
            let within = |path: &str| Some(path.strip_prefix(&folder)?.strip_prefix('/')?.to_owned());
            let files = item.paths.iter().filter_map(|path| Some((within(path)?, contents.file(path)?.digest)));
            let listed: Vec<_> = files.filter(|(name, _)| name != MANIFEST).collect();
            digest_of_files(listed.iter().map(|(name, digest)| (name.as_str(), *digest))) == item.digest
        }
    }
}
