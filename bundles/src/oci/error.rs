//! What can go wrong with images, by what a person can do about it.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};

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
    /// The program that an image would be made of.
    #[error(transparent)]
    Program(#[from] NotStatic),
    /// A text that says something else than it should.
    #[error("{what}: {why}")]
    Malformed {
        /// The document, file or reference.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Content that is not what its digest says.
    #[error("{what} is not what its digest says: {expected} was promised, {found} came")]
    Mismatch {
        /// The blob.
        what: String,
        /// The digest or size that was promised.
        expected: String,
        /// What was found.
        found: String,
    },
    /// Something that is not there.
    #[error("{what} is not there: {why}")]
    Missing {
        /// The image, blob or platform.
        what: String,
        /// Where it was looked for, and what there is instead.
        why: String,
    },
    /// Two images that want one name.
    #[error("two different images are called {name} for {platform}")]
    Conflict {
        /// The name.
        name: String,
        /// The platform.
        platform: String,
    },
    /// A reference by tag where a digest is needed.
    #[error("{reference} names no digest, and a tag can mean something else tomorrow")]
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
    #[error("{what} did not come after {attempts} attempts: {why}")]
    Network {
        /// The address without its query.
        what: String,
        /// Attempts made.
        attempts: u32,
        /// The last reason.
        why: String,
    },
    /// The registry wants to be left alone for longer than we wait.
    #[error("{what} asks to wait {seconds} s")]
    Throttled {
        /// The address without its query.
        what: String,
        /// For how long.
        seconds: u64,
    },
    /// A setting of ours.
    #[error("{what} cannot be used: {why}")]
    Setting {
        /// Its name.
        what: String,
        /// What is wrong.
        why: String,
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
            Error::Io { .. } => "check the path, its permissions and the free space".to_owned(),
            Error::Program(error) => error.hint().to_owned(),
            Error::Malformed { .. } => "make the image again, or name another one".to_owned(),
            Error::Mismatch { .. } => {
                "it was damaged or exchanged on its way: fetch it again, from a source that you trust".to_owned()
            }
            Error::Missing { .. } => "see what there is with `skopeo inspect --raw`".to_owned(),
            Error::Conflict { .. } => "name one of them differently, or leave one out".to_owned(),
            Error::Unpinned { reference } => {
                format!("pin it: ask once what {reference} means today and write `@sha256:…` after it")
            }
            Error::Denied { hint, .. } => hint.clone(),
            Error::Network { .. } => "repeat: what has arrived is kept and not fetched again".to_owned(),
            Error::Throttled { .. } => "repeat later, or log in to the registry for a higher limit".to_owned(),
            Error::Setting { .. } => "correct the setting".to_owned(),
        }
    }
}
