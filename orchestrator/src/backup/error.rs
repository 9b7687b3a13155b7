//! Why a copy could not be made or opened.

use std::io;

use camino::Utf8PathBuf;

/// Why a copy could not be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system said no.
    #[error("{action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("{path} is not a backup of ours: {why}")]
    Foreign {
        /// Which file.
        path: Utf8PathBuf,
        /// What it is instead, as far as that can be seen.
        why: String,
    },
    /// A later version of this program made it.
    #[error("{path} has format {found}, this program reads formats up to {known}")]
    Newer {
        /// Which file.
        path: Utf8PathBuf,
        /// Its format.
        found: u64,
        /// The newest known one.
        known: u64,
    },
    /// Its end is missing.
    #[error("{path} is cut short: {what}")]
    Truncated {
        /// Which file.
        path: Utf8PathBuf,
        /// Where it ends.
        what: String,
    },
    /// It is not what was written.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// Which file.
        path: Utf8PathBuf,
        /// What does not match.
        what: String,
    },
    /// Nothing that was given opens it.
    #[error("{path} cannot be opened: {why}")]
    Sealed {
        /// Which file.
        path: Utf8PathBuf,
        /// What is missing.
        why: String,
    },
    /// A key or a passphrase is none.
    #[error("{0}")]
    Key(String),
    /// A file changed while it was copied.
    #[error("`{member}` changed while it was copied")]
    Changed {
        /// Which.
        member: String,
    },
    /// Something else lies where a part of a log belongs.
    #[error("{path} is there already, with another content")]
    Taken {
        /// Where.
        path: Utf8PathBuf,
    },
    /// It is no part of a log.
    #[error("{0}")]
    NoPart(String),
    /// Another run makes or removes copies there.
    #[error("another backup is being made in {folder}")]
    Busy {
        /// Where.
        folder: Utf8PathBuf,
    },
    /// No room.
    #[error("{path} needs {needed} bytes and {free} are free")]
    Room {
        /// Where.
        path: Utf8PathBuf,
        /// How many bytes it takes.
        needed: u64,
        /// How many there are.
        free: u64,
    },
}

impl Error {
    /// For `map_err`.
    pub(crate) fn io(action: &'static str, path: impl Into<Utf8PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "backup",
            Self::Foreign { .. } => "no_backup",
            Self::Newer { .. } => "newer_format",
            Self::Truncated { .. } | Self::Damaged { .. } => "damaged",
            Self::Sealed { .. } => "sealed",
            Self::Key(_) => "wrong_key",
            Self::Taken { .. } => "taken",
            Self::NoPart(_) => "no_part",
            Self::Changed { .. } | Self::Busy { .. } => "locked",
            Self::Room { .. } => "no_space",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io { .. } => {
                "mend what is named, then run this again; nothing half-done is left under a backup's name"
            }
            Self::Foreign { .. } => "give a file that `backup create` made: backup_YYYYMMDD.dump",
            Self::Newer { .. } => "restore it with the version of this program that made it, or a later one",
            Self::Truncated { .. } | Self::Damaged { .. } => {
                "take another copy of this file, or an earlier backup: `backup list` shows them"
            }
            Self::Sealed { .. } => {
                "give the key that was carried away with --key FILE (`backup key show` printed it), or --passphrase-file FILE"
            }
            Self::Key(_) => "keys are as `backup key show` or `age-keygen` write them; recipients begin with `age1`",
            Self::Taken { .. } => "another database has archived here: give this one a `backup.destination` of its own",
            Self::NoPart(_) => "give what PostgreSQL hands to its archive command",
            Self::Changed { .. } | Self::Busy { .. } => "run this again in a moment",
            Self::Room { .. } => "make room, or choose another place",
        }
    }
}
