//! Errors of training, classified by what a caller can do about them.

use std::io;
use std::path::{Path, PathBuf};

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong around training.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{action} {path}")]
    File {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file is invalid.
    #[error("{path}: {problem}")]
    Broken {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A run is resumed with other settings.
    #[error("{path} holds another run: {problem}")]
    AnotherRun {
        /// The folder of the run.
        path: PathBuf,
        /// What differs.
        problem: String,
    },
    /// The recipe is invalid.
    #[error("the recipe: {0}")]
    Recipe(String),
    /// The tokenizer could not be trained or used.
    #[error("the tokenizer: {0}")]
    Tokens(String),
}

impl Error {
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    pub(crate) fn broken(path: &Path, problem: impl ToString) -> Self {
        Self::Broken { path: path.to_owned(), problem: problem.to_string() }
    }
}
