//! Errors of the legacy formats.

use std::io;

use camino::Utf8PathBuf;

use crate::oci;

/// The result of operations on the legacy formats.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an export or update failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An error of the file system, or a damaged bundle.
    #[error("{action} {path}")]
    Io {
        /// `read`, `write`.
        action: &'static str,
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The images.
    #[error(transparent)]
    Image(#[from] oci::Error),
    /// Invalid content.
    #[error("{what}: {why}")]
    Malformed {
        /// The file, entry or argument.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something that is missing.
    #[error("{what} is not there")]
    Missing {
        /// What.
        what: String,
    },
    /// A model that does not match the manifest.
    #[error("the digest of model {name} does not match the update's manifest: expected {expected}, found {found}")]
    Mismatch {
        /// The model.
        name: String,
        /// Promised.
        expected: String,
        /// Found.
        found: String,
    },
}

textnlp_files::io_errors!(Error);

impl Error {
    pub(crate) fn malformed(what: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Malformed { what: what.into(), why: why.into() }
    }

    /// The fix.
    pub fn hint(&self) -> String {
        match self {
            Error::Io { source, .. } if source.kind() == io::ErrorKind::InvalidData => {
                "the source is damaged: copy it again and run `bundle verify` on it".to_owned()
            }
            Error::Io { .. } => "check the path, its permissions and the free space".to_owned(),
            Error::Image(error) => error.hint(),
            Error::Malformed { .. } => "nothing was changed; correct the file, or create it again".to_owned(),
            Error::Missing { .. } => "check the name, or add it to the bundle".to_owned(),
            Error::Mismatch { .. } => "nothing was changed: create the update again and copy it again".to_owned(),
        }
    }
}
