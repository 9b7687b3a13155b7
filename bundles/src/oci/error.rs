//! What can go wrong with images, by what a person can do about it.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_net::client::{ClientError, shown};
use textnlp_net::retry::GaveUp;
use textnlp_net::trust::TrustError;

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
    #[error("{what} does not match its digest: expected {expected}, found {found}")]
    Mismatch {
        /// The blob.
        what: String,
        /// The digest or size that was promised.
        expected: String,
        /// What was found.
        found: String,
    },
    /// Something that is not there.
    #[error("{what} does not exist: {why}")]
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
    /// The registry limits how often it is asked.
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

impl From<TrustError> for Error {
    fn from(error: TrustError) -> Error {
        Error::Setting { what: format!("the CA file {}", error.source_name), why: error.problem.to_string() }
    }
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Error {
        match error {
            ClientError::Proxy { variable } => {
                Error::Setting { what: variable.to_owned(), why: "not the URL of a proxy".to_owned() }
            }
            ClientError::Build(why) => Error::Setting { what: "network settings".to_owned(), why },
        }
    }
}

impl From<textnlp_files::Error> for Error {
    fn from(error: textnlp_files::Error) -> Error {
        let path = Utf8PathBuf::from(error.path.to_string_lossy().into_owned());
        Error::Io { action: error.action, path, source: error.source }
    }
}

impl Error {
    /// The error of a transfer that is not retried any more.
    pub(super) fn gave_up(url: &reqwest::Url, gave_up: GaveUp) -> Error {
        let what = shown(url);
        match gave_up {
            GaveUp::Throttled { retry_after } => {
                Error::Throttled { what, seconds: retry_after.map(|after| after.as_secs()) }
            }
            GaveUp::Exhausted { attempts, reason } => Error::Network { what, attempts, why: reason },
        }
    }

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
