//! Errors of bundles: the member or file, the reason, and a hint.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_models::Digest;

/// The record of the pinned keys, at the root of a site. An altered one has a hint of its own.
pub const TRUST: &str = "trust.json";

/// Shorthand of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a bundle or an installed site.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call of the operating system failed.
    #[error("{action} {path}")]
    Io {
        /// The action: `read`, `create`.
        action: &'static str,
        /// The file or folder.
        path: Utf8PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not a bundle.
    #[error("{path} is not a bundle: {why}")]
    NotABundle {
        /// The file.
        path: Utf8PathBuf,
        /// The reason.
        why: String,
    },
    /// A file of the new bundle's name is no file that an earlier run of this user can have written.
    #[error("{path} is in the way: it is not a file, belongs to another user, or others can write to it")]
    NotReplaceable {
        /// The file.
        path: Utf8PathBuf,
    },
    /// A newer program wrote the bundle.
    #[error("manifest.json has format {found}; this program reads format {known}")]
    NewerFormat {
        /// The bundle's.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// An invalid manifest; every problem is listed.
    #[error("manifest.json: {}", list(problems))]
    Manifest {
        /// One line each.
        problems: Vec<String>,
    },
    /// Bytes that differ from the manifest, found before anything was written.
    #[error("{}", list(damages))]
    Damaged {
        /// Where, in the order of the archive.
        damages: Vec<Damage>,
    },
    /// It ends too early.
    #[error("{path} ends at byte {found} of {expected}")]
    Truncated {
        /// The bundle or the volume.
        path: Utf8PathBuf,
        /// Its length.
        found: u64,
        /// The length that the manifest implies.
        expected: u64,
    },
    /// A volume is missing or is not as long as the first one.
    #[error("volume {path} {why}")]
    Volume {
        /// The volume.
        path: Utf8PathBuf,
        /// `is missing`, `has … bytes, the first has …`.
        why: String,
    },
    /// Files with the name of a volume that the bundle does not have: those of an earlier one in the same folder.
    #[error("{}: not of this bundle, which ends with volume {count}", list(paths))]
    OtherVolumes {
        /// The files.
        paths: Vec<Utf8PathBuf>,
        /// The volumes of the bundle.
        count: usize,
    },
    /// A file of the inputs was written to, or replaced, while the bundle was made.
    #[error("{path} changed while it was read")]
    InputChanged {
        /// The file.
        path: Utf8PathBuf,
    },
    /// Files that do not match their digests; none got its final name.
    #[error("{} is not what was stored under its digest", paths.join(", "))]
    NotAsPromised {
        /// Paths in the bundle, as far as they were read.
        paths: Vec<String>,
    },
    /// Inputs that cannot become a bundle; every problem is listed.
    #[error("a bundle cannot be created from these inputs: {}", list(problems))]
    Inputs {
        /// One line each.
        problems: Vec<String>,
    },
    /// Stopped on request; completed work is kept.
    #[error("stopped on request while {doing}")]
    Stopped {
        /// `creating FILE`.
        doing: String,
    },
    /// Not enough free space, found before the first byte was written.
    #[error("{path} has {free} {unit} free; {needed} are needed")]
    Room {
        /// The folder.
        path: Utf8PathBuf,
        /// `bytes` or `inodes`.
        unit: &'static str,
        /// The required amount.
        needed: u64,
        /// The free amount.
        free: u64,
    },
    /// Another process works on the same file or folder.
    #[error("{path} is in use by another process")]
    Busy {
        /// The lock or the file.
        path: Utf8PathBuf,
    },
    /// A delta instead of a full bundle, or the reverse.
    #[error("this is a {found} bundle; {wanted}")]
    Kind {
        /// `full` or `delta`.
        found: &'static str,
        /// What the command needs.
        wanted: &'static str,
    },
    /// A delta for another state of the site.
    #[error("this delta does not fit {root}: {}", list(mismatches))]
    WrongBase {
        /// The installed site.
        root: Utf8PathBuf,
        /// Every path or item that differs from what the delta expects.
        mismatches: Vec<Mismatch>,
    },
    /// An installed file differs from the record.
    #[error("{path} was changed after installation: {why}")]
    Altered {
        /// The file.
        path: Utf8PathBuf,
        /// What differs.
        why: String,
    },
    /// The resulting digest of the site differs from the manifest's.
    #[error("the result has digest {found} instead of {expected}")]
    Result {
        /// The digest in the manifest.
        expected: Digest,
        /// The digest of the result.
        found: Digest,
    },
    /// The installed site lacks something.
    #[error("{root}: {why}")]
    Site {
        /// The installed site.
        root: Utf8PathBuf,
        /// What is missing.
        why: String,
    },
    /// A key that cannot be read or does not fit.
    #[error("key {path}: {why}")]
    Key {
        /// The file or the text.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The signature block has no valid signature.
    #[error("manifest.json.minisig: {why}")]
    Signature {
        /// What is wrong.
        why: String,
    },
    /// Not signed by a trusted key.
    #[error("this bundle has no signature by a trusted key: {why}")]
    NotTrusted {
        /// `it is not signed`, `it is signed with key …, which is not trusted here`.
        why: String,
        /// The installed site, if its pinned keys decided.
        pinned_in: Option<Utf8PathBuf>,
    },
    /// A site whose pinned keys other users can replace.
    #[error("other users can replace the pinned keys: {0}")]
    Exposed(textnlp_files::Exposed),
    /// Older than the newest bundle that the site accepted.
    #[error("{root} has {newest}; this bundle is {offered}, which is older")]
    OlderRelease {
        /// The installed site.
        root: Utf8PathBuf,
        /// `version 1.0.0 of 2026-01-01`.
        offered: String,
        /// The newest one that was accepted.
        newest: String,
    },
    /// A file is signed by another key.
    #[error("{file} is signed by key {found}, not by key {expected}")]
    OtherKey {
        /// The file.
        file: Utf8PathBuf,
        /// The key of its signature.
        found: String,
        /// The key that was to verify it.
        expected: String,
    },
    /// A file does not match its signature file.
    #[error("{why}")]
    FileSignature {
        /// What is wrong.
        why: String,
    },
    /// The command must seek in the bundle, which a stream does not support.
    #[error("{doing} needs a file; this bundle comes from a stream")]
    Stream {
        /// The action.
        doing: &'static str,
    },
}

/// Damaged bytes of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Damage {
    /// `manifest.json`, `models/tiny/model.safetensors`, `the end of the archive`.
    pub member: String,
    /// Which chunk of the file, counted from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk: Option<usize>,
    /// Where in the archive the damaged piece begins.
    pub offset: u64,
    /// How long the piece is.
    pub bytes: u64,
    /// What is wrong with it.
    pub what: String,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.member)?;
        if let Some(chunk) = self.chunk {
            write!(f, ", chunk {chunk}")?;
        }
        write!(f, " ({} bytes at byte {}): {}", self.bytes, self.offset, self.what)
    }
}

/// A difference between an installed site and what a delta expects.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Mismatch {
    /// A path, or an item as `model textnlp-tiny`.
    pub subject: String,
    /// The digest there; none: nothing is there.
    pub found: Option<Digest>,
    /// The digest that the delta was made for; none: nothing may be there.
    pub expected: Option<Digest>,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |digest: &Option<Digest>| digest.map_or_else(|| "nothing".to_owned(), |digest| digest.to_string());
        write!(f, "{} is {}, expected {}", self.subject, name(&self.found), name(&self.expected))
    }
}

textnlp_files::io_errors!(Error);

impl Error {
    /// How to fix it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::NotABundle { .. } => "give the .tar that `bundle create` wrote, or its first volume".into(),
            Error::NotReplaceable { path } => format!("remove or rename {path}, or choose another name for the bundle"),
            Error::NewerFormat { .. } => "install it with the program inside the bundle: `tar xOf FILE bin/…`".into(),
            Error::Manifest { .. } | Error::Damaged { .. } | Error::Signature { .. } => {
                "the bundle was altered or damaged: copy it again from the machine that created it, and run `bundle verify` there".into()
            }
            Error::Truncated { .. } => "the copy is not complete: copy it again; what was installed so far is kept".into(),
            Error::Volume { .. } => "put all volumes into one folder under their own names".into(),
            Error::OtherVolumes { .. } => {
                "compare the volumes with the list that `bundle create` printed, and move what is not of this bundle to another folder".into()
            }
            Error::InputChanged { .. } => "stop the process that writes to it, then run the same command again".into(),
            Error::NotAsPromised { .. } => {
                "the stored copy is damaged: fetch it again with `textnlp-deploy model pull SOURCE`, then create the bundle again".into()
            }
            Error::Stopped { .. } => "run the same command again; it resumes where it stopped".into(),
            Error::Room { unit, .. } => format!("free some {unit} there, or choose another folder"),
            Error::Busy { .. } => "wait for the other process, or stop it".into(),
            Error::Kind { found: "delta", .. } => "use `bundle update apply` for a delta".into(),
            Error::Kind { .. } => "use `bundle install` for a full bundle".into(),
            Error::WrongBase { .. } => {
                "apply the deltas before this one first, or make one from what is installed: textnlp-deploy bundle update create --from INSTALLED --to WANTED --out FILE".into()
            }
            Error::NotTrusted { pinned_in: None, .. } => {
                "request a signed bundle from its publisher, or give the right public key with --trust KEY.pub".into()
            }
            Error::NotTrusted { pinned_in: Some(root), .. } => format!(
                "`textnlp-deploy bundle trust --root {root}` lists the keys that are pinned there. If you received another key from the publisher by a separate channel, pin it instead: --forget-trust --trust KEY.pub"
            ),
            Error::Exposed(exposed) => exposed.fix(),
            Error::OlderRelease { .. } => "to go back to the older release, add --downgrade".into(),
            Error::Altered { path, .. } if path.file_name() == Some(TRUST) => {
                "restore the file from a backup, or pin the keys again: --forget-trust --trust KEY.pub".into()
            }
            Error::Altered { .. } => "install the full bundle again; what is intact is kept".into(),
            Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free some space and run the same command again; it resumes where it stopped".into()
            }
            Error::Stream { .. } => "save the stream to a file first".into(),
            _ => return None,
        })
    }

    pub(crate) fn os(action: &'static str, path: impl AsRef<Utf8Path>) -> impl FnOnce(rustix::io::Errno) -> Error {
        let path = path.as_ref().to_owned();
        move |errno| Error::Io { action, path, source: errno.into() }
    }

    pub(crate) fn damaged(member: impl Into<String>, offset: u64, bytes: u64, what: impl Into<String>) -> Error {
        Error::Damaged {
            damages: vec![Damage { member: member.into(), chunk: None, offset, bytes, what: what.into() }],
        }
    }
}

/// The first few of a list; the rest is counted.
fn list<T: std::fmt::Display>(all: &[T]) -> String {
    const SHOWN: usize = 20;
    let mut text = all.iter().take(SHOWN).map(T::to_string).collect::<Vec<_>>().join("; ");
    if all.len() > SHOWN {
        text.push_str(&format!("; and {} more", all.len() - SHOWN));
    }
    text
}
