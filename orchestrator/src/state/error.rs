//! Errors of a state, with their hints.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use textnlp_files::{caller, user};
use textnlp_provider::{EnvironmentName, Lineage, SiteName};

use super::lineage::SiteLocation;
use super::record::{Damage, TooLong};
use super::store::Holder;

/// A failed file operation.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub struct Io {
    /// The action.
    pub action: &'static str,
    /// Its path.
    pub path: String,
    /// The error.
    pub source: io::Error,
}

impl Io {
    pub(super) fn new(action: &'static str, path: impl Into<String>, source: io::Error) -> Self {
        Self { action, path: path.into(), source }
    }
}

/// Why a state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file operation failed.
    #[error(transparent)]
    Io(Io),
    /// Another run holds the lock.
    #[error("{}", held(.holder.as_ref()))]
    Held {
        /// The holder, as far as known.
        holder: Option<Holder>,
    },
    /// Another run has taken the lock since.
    #[error("lock {ours} has expired: lock {newest} was granted after it")]
    Fenced {
        /// The fencing number of this run.
        ours: u64,
        /// The newest fencing number.
        newest: u64,
    },
    /// An earlier write failed, so the content of the disk is unknown.
    #[error("an earlier write to {place} failed; the next run reads it again")]
    Broken {
        /// The location of the state.
        place: String,
    },
    /// The lease expired, or another run took it while this run could not renew it.
    #[error("the lock of {place} is lost: {because}")]
    LeaseLost {
        /// The location of the state.
        place: String,
        /// How it was lost.
        because: String,
    },
    /// A request to an object store failed.
    #[error("{action} {what} in {place}")]
    Object {
        /// The action.
        action: &'static str,
        /// The object.
        what: String,
        /// The store.
        place: String,
        /// The hint.
        hint: &'static str,
        /// The error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The state is encrypted and the key is missing or wrong, or the state is plain and a key is set.
    #[error("{what}: {because}")]
    Sealed {
        /// The object.
        what: String,
        /// The mismatch.
        because: String,
    },
    /// The object store accepts a conditional write whose condition fails.
    #[error("{place} does not support conditional writes: two runs would overwrite each other's journal")]
    Unconditional {
        /// The store.
        place: String,
    },
    /// The journal is damaged, and not by a power failure.
    #[error("journal of `{site}` is damaged: {damage}")]
    Damaged {
        /// The site of the journal.
        site: SiteName,
        /// The damage.
        damage: Damage,
    },
    /// A body of a journal is damaged.
    #[error("bodies of `{site}` are damaged at byte {offset}: {what}")]
    DamagedBody {
        /// The site of the journal.
        site: SiteName,
        /// Its offset.
        offset: u64,
        /// The problem.
        what: String,
    },
    /// A file has unexpected content.
    #[error("{what} cannot be read: {because}")]
    Unreadable {
        /// The file.
        what: String,
        /// The reason.
        because: String,
    },
    /// A newer version of this program wrote it.
    #[error(
        "{what} has format {found}; this program supports formats up to {known}; use the newer version that wrote it"
    )]
    Future {
        /// The file or journal.
        what: String,
        /// Its format version.
        found: u64,
        /// The newest supported format version.
        known: u32,
    },
    /// The state was moved to another store.
    #[error("the state in {place} was moved to {to}")]
    Moved {
        /// The old location.
        place: String,
        /// The new location.
        to: String,
    },
    /// The folder belongs to another environment.
    #[error("{place} belongs to environment `{recorded}`, not `{wanted}`")]
    OtherEnvironment {
        /// The location.
        place: String,
        /// The environment it belongs to.
        recorded: EnvironmentName,
        /// The environment of this run.
        wanted: EnvironmentName,
    },
    /// The folder contains a journal of another deployment.
    #[error("the journal of `{site}` in {place} belongs to deployment {recorded}, not {expected}")]
    OtherLineage {
        /// The location.
        place: String,
        /// The site of the journal.
        site: SiteName,
        /// The lineage of the journal.
        recorded: Lineage,
        /// The lineage of the state.
        expected: Lineage,
    },
    /// A site names another provider, account, region or runtime than its objects are in.
    #[error("site `{site}` is bound to {recorded}; the environment now says {wanted}")]
    OtherPlace {
        /// The site.
        site: SiteName,
        /// The recorded binding.
        recorded: Box<SiteLocation>,
        /// The binding in the environment.
        wanted: Box<SiteLocation>,
    },
    /// The site was not part of the environment when the lock was taken.
    #[error("site `{site}` is not bound to any location")]
    Unbound {
        /// The site.
        site: SiteName,
    },
    /// A new record contradicts the journal. It was not written.
    #[error("write record {n} to the journal of `{site}`: {what}; nothing was written")]
    Contradiction {
        /// The site of the journal.
        site: SiteName,
        /// The number that the record would have had.
        n: u64,
        /// The contradiction.
        what: String,
    },
    /// A record is too long for the journal.
    #[error("write to the journal of `{site}`")]
    TooLong {
        /// The site of the journal.
        site: SiteName,
        /// The length.
        source: TooLong,
    },
}

impl StateError {
    /// Whether its disk has no room left.
    pub fn is_full(&self) -> bool {
        let Self::Io(Io { source, .. }) = self else { return false };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// How to fix it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Io(io) => io_hint(&io.path, io.source.kind()),
            Self::Broken { .. } => "run the same command again".to_owned(),
            Self::LeaseLost { .. } => {
                "no call was made after that; run the same command again to resume".to_owned()
            }
            Self::Object { hint, .. } => (*hint).to_owned(),
            Self::Sealed { .. } => {
                "set `state.encryption_key` to the key that it was encrypted with; to encrypt or decrypt a state, move it: `state move`"
                    .to_owned()
            }
            Self::Unconditional { .. } => {
                "use a store that supports If-Match and If-None-Match, or keep the state in a folder (`state.store: local`)"
                    .to_owned()
            }
            Self::Held { .. } => "wait for it to finish; reading and planning need no lock".to_owned(),
            Self::Fenced { .. } => "run `textnlp-deploy state history` to see what the other run did".to_owned(),
            Self::Damaged { .. } | Self::DamagedBody { .. } | Self::Unreadable { .. } => {
                "nothing was changed; put the file back from a backup of the state folder".to_owned()
            }
            Self::OtherEnvironment { .. } => {
                "choose the right environment, or another folder with `--state-dir`".to_owned()
            }
            Self::Moved { to, .. } => format!(
                "write `state: {{ store: {to} }}` into the environment file; a built-in environment has none: create `environments/NAME.yaml`, which begins with `extends: NAME`"
            ),
            Self::OtherLineage { .. } => "move the journal back to its original folder".to_owned(),
            Self::OtherPlace { site, .. } => format!(
                "restore the old values, or run `down` with them first; or rename site `{site}`, then the old site is removed"
            ),
            Self::Contradiction { .. } => {
                "this is a bug in this program: run `support-bundle`, and report it".to_owned()
            }
            Self::Future { .. } | Self::Unbound { .. } | Self::TooLong { .. } => return None,
        })
    }
}

/// How to fix a failed file operation in a state, by the kind of the error.
pub fn io_hint(path: &str, kind: io::ErrorKind) -> String {
    let path = Path::new(path);
    let mut existing = path.ancestors().filter_map(|path| Some((path, std::fs::symlink_metadata(path).ok()?)));
    let mut nearest = existing.next();
    // Files are replaced by new ones. Where this one is the caller's and may be written, its folder may not.
    let is_own = |there: &Metadata| there.is_file() && there.uid() == caller() && there.mode() & 0o200 != 0;
    if kind == io::ErrorKind::PermissionDenied && nearest.as_ref().is_some_and(|(_, there)| is_own(there)) {
        nearest = existing.next();
    }
    match (kind, nearest) {
        (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, _) => {
            "free some disk space and run the same command again: completed work is kept; `down` runs on a full disk too"
                .to_owned()
        }
        // The folder of the state was to be created there, and the root folder is not for users to write.
        (io::ErrorKind::PermissionDenied, Some((root, there))) if root.parent().is_none() => {
            format!("choose a folder with --state-dir DIR: {} belongs to {}", root.display(), user(there.uid()))
        }
        (io::ErrorKind::PermissionDenied, Some((path, there))) => {
            format!("make {} writable for you: it belongs to {}", path.display(), user(there.uid()))
        }
        (io::ErrorKind::NotFound, _) if ["/proc", "/sys"].iter().any(|kernel| path.starts_with(kernel)) => {
            "choose another folder with --state-dir DIR: the kernel creates no folders there".to_owned()
        }
        (io::ErrorKind::ReadOnlyFilesystem, _) => {
            format!("the filesystem of {} is mounted read-only: remount it for writing", path.display())
        }
        (io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists, Some((path, there))) if !there.is_dir() => {
            format!("{} is a file: move it away, or name a folder with --state-dir DIR", path.display())
        }
        _ => "run the same command again".to_owned(),
    }
}

fn held(holder: Option<&Holder>) -> String {
    match holder {
        Some(Holder { by, pid, host, since, tool }) => {
            format!("another run holds the lock: {by} with process {pid} on {host} since {since:.0} ({tool})")
        }
        None => "another run holds the lock".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hint_of_a_failed_file_operation_follows_its_kind() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("a file");
        let hint = |path: &str, kind| io_hint(&format!("{}/{path}", folder.path().display()), kind);
        assert!(hint("x", io::ErrorKind::StorageFull).starts_with("free some disk space"));
        assert!(hint("file/x", io::ErrorKind::NotADirectory).contains("/file is a file"));
        assert!(hint("x", io::ErrorKind::ReadOnlyFilesystem).contains("read-only"));
        let owner = user(textnlp_files::caller());
        assert!(hint("a/b", io::ErrorKind::PermissionDenied).ends_with(&format!("it belongs to {owner}")));
        let folder_of = format!("make {} writable for you", folder.path().display());
        assert!(hint("file", io::ErrorKind::PermissionDenied).starts_with(&folder_of), "the file may be written");
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o400)).expect("a mode");
        let file_of = format!("make {} writable for you", file.display());
        assert!(hint("file", io::ErrorKind::PermissionDenied).starts_with(&file_of));
        let root = io_hint("/nohome-of-a-test/state", io::ErrorKind::PermissionDenied);
        assert!(root.starts_with("choose a folder with --state-dir DIR: / belongs to"), "{root}");
        assert!(
            io_hint("/proc/foo", io::ErrorKind::NotFound).starts_with("choose another folder with --state-dir DIR")
        );
        assert_eq!(hint("x", io::ErrorKind::NotFound), "run the same command again");
        assert_eq!(hint("x", io::ErrorKind::TimedOut), "run the same command again");
    }
}
