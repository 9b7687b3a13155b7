//! What can go wrong with the older form.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};

use crate::oci;

/// The result of work on the older form.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something cannot be exported or applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system, or a damaged bundle that is read.
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
    /// Something that says what it should not.
    #[error("{what}: {why}")]
    Malformed {
        /// The file, entry or argument.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something that is not there.
    #[error("{what} is not there")]
    Missing {
        /// What.
        what: String,
    },
    /// A model that is not what the manifest says.
    #[error("the model {name} is not what the update's manifest says: {expected} was promised, {found} came")]
    Mismatch {
        /// The model.
        name: String,
        /// Promised.
        expected: String,
        /// Found.
        found: String,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Utf8Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    }

    pub(crate) fn malformed(what: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Malformed { what: what.into(), why: why.into() }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Error::Io { source, .. } if source.kind() == io::ErrorKind::InvalidData => {
                "the source is damaged: copy it again and run `bundle verify` on it".to_owned()
            }
            Error::Io { .. } => "check the path, its permissions and the free space".to_owned(),
            Error::Image(error) => error.hint(),
            Error::Malformed { .. } => "nothing was changed; correct it, or have the file made again".to_owned(),
            Error::Missing { .. } => "check the name, or put it into the bundle".to_owned(),
            Error::Mismatch { .. } => "nothing was changed: have the update made and copied again".to_owned(),
        }
    }
}
