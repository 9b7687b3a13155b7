use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The result of a file operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed file operation.
#[derive(Debug)]
pub struct Error {
    /// The operation, in the present tense: `write`, `lock`, `sync folder`.
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// The error of the operating system.
    pub source: io::Error,
}

impl Error {
    pub(crate) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { action, path: path.to_owned(), source }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action, self.path.display())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// The operating system's error alone, for callers that add their own action and path.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        error.source
    }
}

/// Converts [`Error`] into the variant `Io { action, path, source }` of a crate's own error, and makes that of other calls.
#[macro_export]
macro_rules! io_errors {
    ($error:ty) => {
        impl From<$crate::Error> for $error {
            fn from(error: $crate::Error) -> Self {
                let path = error.path.to_string_lossy().into_owned().into();
                Self::Io { action: error.action, path, source: error.source }
            }
        }

        impl $error {
            pub(crate) fn io(action: &'static str, path: impl AsRef<str>) -> impl FnOnce(std::io::Error) -> Self {
                let path = path.as_ref().into();
                move |source| Self::Io { action, path, source }
            }
        }
    };
}
