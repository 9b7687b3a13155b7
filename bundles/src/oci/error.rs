//! Errors of images, grouped by their fix.

use std::io;

use camino::Utf8PathBuf;

use crate::elf::NotStatic;

/// The result of work on images.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image cannot be read, made or fetched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system.
    #[error("{action} {path}")]
    Io {
        /// `read`, `write`.
        action: &'static str,
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The program for the image.
    #[error(transparent)]
    Program(#[from] NotStatic),
    /// A document with invalid content.
    #[error("{what}: {why}")]
    Malformed {
        /// The document, file or reference.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Content that does not match its digest.
    #[error("{what} does not match its digest: expected {expected}, found {found}")]
    Mismatch {
        /// The blob.
        what: String,
        /// The expected digest or size.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A missing object.
    #[error("{what} does not exist: {why}")]
    Missing {
        /// The image, blob or platform.
        what: String,
        /// The location, and what exists there instead.
        why: String,
    },
    /// Two images with one name.
    #[error("two different images have the name {name} for {platform}")]
    Conflict {
        /// The name.
        name: String,
        /// The platform.
        platform: String,
    },
    /// A reference by tag where a digest is needed.
    #[error("{reference} has no digest, and a tag can change")]
    Unpinned {
        /// The reference.
        reference: String,
    },
    /// The registry says no.
    #[error("{what} is refused: {why}")]
    Denied {
        /// The repository or address.
        what: String,
        /// What it said.
        why: String,
        /// What to do.
        hint: String,
    },
    /// The network, after all attempts.
    #[error("{what} could not be fetched after {attempts} attempts: {why}")]
    Network {
        /// The address without its query.
        what: String,
        /// Attempts made.
        attempts: u32,
        /// The last reason.
        why: String,
    },
    /// The registry limits the request rate.
    #[error("{what}: too many requests{}", .seconds.map(|seconds| format!("; the registry asks to wait {seconds} s")).unwrap_or_default())]
    Throttled {
        /// The address without its query.
        what: String,
        /// How long it asks to wait.
        seconds: Option<u64>,
    },
    /// An invalid setting.
    #[error("{what} cannot be used: {why}")]
    Setting {
        /// Its name.
        what: String,
        /// What is wrong.
        why: String,
    },
}

textnlp_files::io_errors!(Error);
textnlp_net::transfer_errors!(Error);

impl Error {
    pub(crate) fn malformed(what: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Malformed { what: what.into(), why: why.into() }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Error::Io { .. } => "check the path, its permissions and the free space".to_owned(),
            Error::Program(error) => error.hint().to_owned(),
            Error::Malformed { .. } => "make the image again, or name another one".to_owned(),
            Error::Mismatch { .. } => {
                "it was damaged or replaced in transit: fetch it again, from a source that you trust".to_owned()
            }
            Error::Missing { .. } => "list what the registry has with `skopeo inspect --raw`".to_owned(),
            Error::Conflict { .. } => "rename one of them, or omit one".to_owned(),
            Error::Unpinned { reference } => {
                format!("pin it: look up the current digest of {reference} and append `@sha256:…`")
            }
            Error::Denied { hint, .. } => hint.clone(),
            Error::Network { .. } => "run the command again: what was fetched is kept".to_owned(),
            Error::Throttled { .. } => "try again later, or log in to the registry for a higher limit".to_owned(),
            Error::Setting { .. } => "correct the setting".to_owned(),
        }
    }
}
