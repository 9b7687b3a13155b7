//! What can be wrong with a state, with the ways out.

use std::io;

use textnlp_provider::{EnvironmentName, Lineage, SiteName};

use super::lineage::Place;
use super::record::{Damage, TooLong};
use super::store::Holder;

/// A failed file operation: what was being done, and to what.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub struct Io {
    /// What was being done.
    pub action: &'static str,
    /// To what.
    pub path: String,
    /// Why it failed.
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
    /// The disk or the folder.
    #[error(transparent)]
    Io(Io),
    /// Somebody else is at work.
    #[error("{}", held(.holder.as_ref()))]
    Held {
        /// Who, as far as it is known.
        holder: Option<Holder>,
    },
    /// Somebody else has taken the lock since.
    #[error("lock {ours} is over: lock {newest} was given out after it")]
    Fenced {
        /// Our number.
        ours: u64,
        /// The newest one.
        newest: u64,
    },
    /// An earlier write failed in a way that leaves the disk's content unknown.
    #[error("an earlier write to {place} failed; what it holds is read again by the next run")]
    Broken {
        /// Where.
        place: String,
    },
    /// The lease ran out, or somebody else has taken it, while this run could not renew it.
    #[error("the lock of {place} is lost: {because}")]
    LeaseLost {
        /// Where.
        place: String,
        /// How it was lost.
        because: String,
    },
    /// An object store did not do what it was asked.
    #[error("{action} {what} in {place}")]
    Object {
        /// What was being done.
        action: &'static str,
        /// To what.
        what: String,
        /// In which store.
        place: String,
        /// What can be done about it.
        hint: &'static str,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A state that is sealed and is opened without its key or with another one, or the other way round.
    #[error("{what}: {because}")]
    Sealed {
        /// Which object.
        what: String,
        /// What does not fit.
        because: String,
    },
    /// An object store that takes a conditional write whose condition does not hold.
    #[error("{place} ignores the conditions of conditional writes: two runs would overwrite each other's journal")]
    Unconditional {
        /// Which store.
        place: String,
    },
    /// The journal is damaged in a way that no power cut explains.
    #[error("journal of `{site}` is damaged: {damage}")]
    Damaged {
        /// Whose journal.
        site: SiteName,
        /// Where and how.
        damage: Damage,
    },
    /// A body beside a journal is damaged.
    #[error("bodies of `{site}` are damaged at byte {offset}: {what}")]
    DamagedBody {
        /// Whose journal.
        site: SiteName,
        /// Where.
        offset: u64,
        /// How.
        what: String,
    },
    /// A file that is not what it should be.
    #[error("{what} cannot be read: {because}")]
    Unreadable {
        /// Which file.
        what: String,
        /// Why.
        because: String,
    },
    /// Written by a newer tool.
    #[error("{what} has format {found}, this program knows formats up to {known}; use the newer program that wrote it")]
    Future {
        /// What.
        what: String,
        /// Its format.
        found: u64,
        /// The newest that we know.
        known: u32,
    },
    /// The state was moved to another store.
    #[error("the state in {place} was moved to {to}")]
    Moved {
        /// Where it was.
        place: String,
        /// Where it is.
        to: String,
    },
    /// The folder belongs to another environment.
    #[error("{place} belongs to environment `{recorded}`, not `{wanted}`")]
    OtherEnvironment {
        /// Where.
        place: String,
        /// Whose it is.
        recorded: EnvironmentName,
        /// Who asks.
        wanted: EnvironmentName,
    },
    /// A journal of another deployment lies among ours.
    #[error("the journal of `{site}` in {place} belongs to deployment {recorded}, not {expected}")]
    OtherLineage {
        /// Where.
        place: String,
        /// Whose journal.
        site: SiteName,
        /// The lineage it carries.
        recorded: Lineage,
        /// The lineage of the state.
        expected: Lineage,
    },
    /// A site is pointed at another provider, account, region or runtime than its objects are in.
    #[error("site `{site}` is bound to {recorded}; the environment now says {wanted}")]
    OtherPlace {
        /// Which site.
        site: SiteName,
        /// What it is bound to.
        recorded: Box<Place>,
        /// What the environment says.
        wanted: Box<Place>,
    },
    /// A site that no environment named when the lock was taken.
    #[error("site `{site}` is not bound to any place")]
    Unbound {
        /// Which site.
        site: SiteName,
    },
    /// What a run wanted to write contradicts what the journal says. It was not written.
    #[error("write record {n} to the journal of `{site}`: {what}; nothing was written")]
    Contradiction {
        /// Whose journal.
        site: SiteName,
        /// The number that the record would have had.
        n: u64,
        /// What does not fit.
        what: String,
    },
    /// A record that is too long for the journal.
    #[error("write to the journal of `{site}`")]
    TooLong {
        /// Whose journal.
        site: SiteName,
        /// How long.
        source: TooLong,
    },
}

impl StateError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Io(io) if io.source.kind() == io::ErrorKind::PermissionDenied => {
                format!("make `{}` readable and writable for you, or name another folder with `--state-dir`", io.path)
            }
            Self::Io(io) if io.source.kind() == io::ErrorKind::StorageFull => {
                "make room on the disk and run the same command again: nothing that was done is lost".to_owned()
            }
            Self::Io(_) | Self::Broken { .. } => "run the same command again".to_owned(),
            Self::LeaseLost { .. } => {
                "nothing was called after that; run the same command again, it goes on from here".to_owned()
            }
            Self::Object { hint, .. } => (*hint).to_owned(),
            Self::Sealed { .. } => {
                "name the key that it was sealed with in `state.encryption_key`; to seal a state or to open one, move it: `state move`"
                    .to_owned()
            }
            Self::Unconditional { .. } => {
                "use a store that honours If-Match and If-None-Match, or keep the state in a folder (`state.store: local`)"
                    .to_owned()
            }
            Self::Held { .. } => "wait for it to finish; reading and planning need no lock".to_owned(),
            Self::Fenced { .. } => "see what the other run did with `textnlp-deploy state history`".to_owned(),
            Self::Damaged { .. } | Self::DamagedBody { .. } | Self::Unreadable { .. } => {
                "nothing was changed; put the file back from a backup of the state folder".to_owned()
            }
            Self::OtherEnvironment { .. } => {
                "name the right environment, or another folder with `--state-dir`".to_owned()
            }
            Self::Moved { to, .. } => format!("write `state.store: {to}` into the environment file"),
            Self::OtherLineage { .. } => "put the journal back where it came from".to_owned(),
            Self::OtherPlace { site, .. } => format!(
                "put the old values back; or run `down` with them first; or give the site another name than `{site}`, then the old one is removed"
            ),
            Self::Contradiction { .. } => {
                "this is a mistake of the program: keep what `support-bundle` writes, and report it".to_owned()
            }
            Self::Future { .. } | Self::Unbound { .. } | Self::TooLong { .. } => return None,
        })
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
