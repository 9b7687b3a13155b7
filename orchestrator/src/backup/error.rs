//! Why a backup could not be created or read.

use std::io;

use camino::Utf8PathBuf;

/// Why a backup could not be created or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error of the file system.
    #[error("{action} {path}")]
    Io {
        /// The action that failed.
        action: &'static str,
        /// Its path.
        path: Utf8PathBuf,
        /// The error.
        source: io::Error,
    },
    /// A request to a bucket failed.
    #[error("{action} {path}, signed in with {signed_in}")]
    Bucket {
        /// The action that failed.
        action: &'static str,
        /// The address.
        path: Utf8PathBuf,
        /// What has the credentials.
        signed_in: String,
        /// How to fix it.
        hint: &'static str,
        /// The error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file is not a backup.
    #[error("{path} is not a backup of this program: {why}")]
    Foreign {
        /// The file.
        path: Utf8PathBuf,
        /// What it is instead, as far as it can be detected.
        why: String,
    },
    /// A newer version of this program wrote it.
    #[error("{path} has format {found}, this program reads formats up to {known}")]
    Newer {
        /// The file.
        path: Utf8PathBuf,
        /// Its format version.
        found: u64,
        /// The newest supported format version.
        known: u64,
    },
    /// The file is truncated.
    #[error("{path} is cut short: {what}")]
    Truncated {
        /// The file.
        path: Utf8PathBuf,
        /// Where it ends.
        what: String,
    },
    /// The content does not match its digest.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// The file.
        path: Utf8PathBuf,
        /// What does not match.
        what: String,
    },
    /// None of the given keys or passphrases decrypts it.
    #[error("{path} cannot be opened: {why}")]
    Sealed {
        /// The file.
        path: Utf8PathBuf,
        /// What is missing.
        why: String,
    },
    /// A key or a passphrase is invalid.
    #[error("{0}")]
    Key(String),
    /// A file changed while it was backed up.
    #[error("`{member}` changed while it was copied")]
    Changed {
        /// The file.
        member: String,
    },
    /// A log segment exists with other content.
    #[error("{path} already exists with other content")]
    Taken {
        /// Its path.
        path: Utf8PathBuf,
    },
    /// The name is not that of a log segment.
    #[error("{0}")]
    NoPart(String),
    /// Another process creates or prunes backups there.
    #[error("another backup is running in {folder}")]
    Busy {
        /// The backup directory.
        folder: Utf8PathBuf,
    },
    /// The disk is too full.
    #[error("{path} needs {needed} bytes and {free} are free")]
    Room {
        /// Its path.
        path: Utf8PathBuf,
        /// Required bytes.
        needed: u64,
        /// Free bytes.
        free: u64,
    },
}

textnlp_files::io_errors!(Error);

impl Error {
    /// A stable error code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "backup",
            Self::Bucket { .. } => "bucket",
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

    /// How to fix it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io { .. } => "fix the problem above, then run the command again; no incomplete backup is left",
            Self::Bucket { hint, .. } => hint,
            Self::Foreign { .. } => "give a file that `backup create` made: backup_YYYYMMDD.dump",
            Self::Newer { .. } => "restore it with the version of this program that made it, or a later one",
            Self::Truncated { .. } | Self::Damaged { .. } => {
                "use another copy of this file, or an earlier backup: `backup list` shows them"
            }
            Self::Sealed { .. } => {
                "give the key that `backup key show` printed with --key FILE, or --passphrase-file FILE"
            }
            Self::Key(_) => {
                "give a key in the format of `backup key show` or `age-keygen`; recipients begin with `age1`"
            }
            Self::Taken { .. } => "another database is archived here: set another `backup.destination` for this one",
            Self::NoPart(_) => "give the file name that PostgreSQL passes to its archive command",
            Self::Changed { .. } | Self::Busy { .. } => "run this again in a moment",
            Self::Room { .. } => "free some space, or choose another destination",
        }
    }
}
