//! Errors of models, by what the operator can do about them.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};

use textnlp_inference::files::OpenError;
use textnlp_inference::format::FormatError;
use textnlp_inference::text::TextError;

use crate::digest::Digest;

/// The result of everything that touches models.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A text that names no source, with the form that was expected.
#[derive(Debug, thiserror::Error)]
#[error("model source `{text}`: {why}; expected {expected}")]
pub struct SourceError {
    /// The text as written, shortened and without credentials.
    pub text: String,
    /// What is wrong.
    pub why: String,
    /// The form expected.
    pub expected: &'static str,
}

/// Bytes for people: three digits and a binary unit.
pub(crate) fn human(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 100.0 { 0 } else { 1 };
    format!("{value:.digits$} {}", units[unit])
}

/// What went wrong; [`Error::hint`] says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text names no source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// There is no such model, revision or file.
    #[error("{what} does not exist: {why}")]
    NotFound {
        /// What was looked for.
        what: String,
        /// What was found instead.
        why: String,
        /// What to do.
        hint: String,
    },
    /// The model is gated or private and the credentials do not open it.
    #[error("access to {what} was denied: {why}")]
    Denied {
        /// What was asked for.
        what: String,
        /// What the other side said.
        why: String,
        /// What to do.
        hint: String,
    },
    /// The model is not in the store and the network must not be used.
    #[error("{what} is not in the store {store}, and offline mode allows no download")]
    Offline {
        /// The source asked for.
        what: String,
        /// The folder of the store.
        store: Utf8PathBuf,
    },
    /// The disk has too little room.
    #[error("{what} needs {needed} on the disk of {path}, but {there} are free", needed = human(*.needed), there = human(*.there))]
    NoSpace {
        /// What was to be written.
        what: String,
        /// The folder of the store.
        path: Utf8PathBuf,
        /// Bytes needed, with the margin.
        needed: u64,
        /// Bytes free.
        there: u64,
    },
    /// The model is larger than the store may be.
    #[error("{what} needs {needed}, but the store is limited to {limit} and {held} of it cannot be evicted", needed = human(*.needed), limit = human(*.limit), held = human(*.held))]
    TooLarge {
        /// What was to be stored.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// The bound of the store.
        limit: u64,
        /// Bytes in use or pinned.
        held: u64,
    },
    /// What is on disk is not what it was.
    #[error("{path} is corrupt: {why}")]
    Corrupt {
        /// The file.
        path: Utf8PathBuf,
        /// How it differs.
        why: String,
    },
    /// What arrived is not what was promised.
    #[error("{what} has {found}, but {expected} was expected")]
    Mismatch {
        /// The file or model.
        what: String,
        /// The digest or size promised.
        expected: String,
        /// The digest or size that arrived.
        found: String,
    },
    /// The network or the other side failed, and trying again did not help.
    #[error("download {what}, {attempts} attempts: {why}")]
    Network {
        /// The address, without credentials.
        what: String,
        /// How often it was tried.
        attempts: u32,
        /// The last failure.
        why: String,
    },
    /// A model did not get into a bucket.
    #[error("upload {what}: {why}")]
    Upload {
        /// The object.
        what: String,
        /// The failure.
        why: String,
    },
    /// The other side asks us to wait longer than we do.
    #[error("{what}: the server limits requests{}", .seconds.map(|s| format!("; retry after {s} s")).unwrap_or_default())]
    Throttled {
        /// The address.
        what: String,
        /// Seconds to wait, if it said.
        seconds: Option<u64>,
    },
    /// The files are no model that this program serves. The text is what the server says.
    #[error(transparent)]
    Refused(#[from] OpenError),
    /// The model is there but cannot be used by this program.
    #[error("{what} cannot be used: {why}")]
    Unusable {
        /// The model or file.
        what: String,
        /// Why not.
        why: String,
        /// What to do.
        hint: String,
    },
    /// Another process holds what we need.
    #[error("{what} is in use by another process")]
    Busy {
        /// What is held.
        what: String,
    },
    /// A setting of the transport cannot be used.
    #[error("{what}: {why}")]
    Setting {
        /// Which setting.
        what: String,
        /// Why not.
        why: String,
    },
    /// The operating system refused.
    #[error("{action} {path}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: Utf8PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

textnlp_files::io_errors!(Error);
textnlp_net::transfer_errors!(Error);

impl Error {
    pub(crate) fn corrupt(path: &Utf8Path, why: impl Into<String>) -> Error {
        Error::Corrupt { path: path.to_owned(), why: why.into() }
    }

    pub(crate) fn mismatch(what: impl Into<String>, expected: Digest, found: Digest) -> Error {
        Error::Mismatch { what: what.into(), expected: expected.to_string(), found: found.to_string() }
    }

    /// The hint when the model is in an external directory, not in the store.
    pub fn hint_for_folder(&self) -> Option<String> {
        match self {
            Error::Corrupt { path, .. } => {
                Some(format!("replace it with a complete {}", path.file_name().unwrap_or("file")))
            }
            Error::Refused(OpenError::Format(FormatError::Broken { file, .. })) => {
                let file = file.file_name().unwrap_or_default().to_string_lossy();
                Some(format!("replace {file} with a complete one"))
            }
            _ => self.hint(),
        }
    }

    /// The hint, if there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Source(_) => Some(
                "write `bundled`, `file:PATH`, `https://…`, `s3://…`, `gs://…`, `az://…`, `hf:org/name[@revision][/file.gguf]` or a name that `textnlp-deploy model list` shows"
                    .to_owned(),
            ),
            Error::NotFound { hint, .. } | Error::Denied { hint, .. } | Error::Unusable { hint, .. } => Some(hint.clone()),
            Error::Offline { what, .. } => Some(format!(
                "run `textnlp-deploy model pull {what}` with network access, or use `file:PATH`"
            )),
            Error::NoSpace { path, .. } => {
                Some(format!("free space on the disk of {path}, or move the store with `models.cache_dir`"))
            }
            Error::TooLarge { .. } => {
                Some("raise `storage.model_cache`, or choose smaller models: `textnlp-deploy model list` shows what is in the cache".to_owned())
            }
            Error::Corrupt { .. } => {
                Some("remove the model from the store and pull it again; if it happens again, check the disk".to_owned())
            }
            Error::Mismatch { .. } => Some(
                "the download does not match the publisher's digest: try again; if it happens again, a proxy or mirror changes files".to_owned(),
            ),
            Error::Network { .. } => Some(
                "check the network; behind a proxy set HTTPS_PROXY (and NO_PROXY), with a private CA TEXTNLP_CA_FILE, with a mirror HF_ENDPOINT; the partial download is kept and the next attempt resumes it"
                    .to_owned(),
            ),
            Error::Upload { .. } => Some(
                "check the network, and that the credentials may list and write the bucket; what was sent completely is not sent again"
                    .to_owned(),
            ),
            Error::Throttled { .. } => Some("wait and try again; a token in HF_TOKEN raises the hub's limits".to_owned()),
            Error::Busy { .. } => Some("wait for the other process, or stop it".to_owned()),
            Error::Refused(reason) => Some(match reason {
                OpenError::Format(FormatError::Read { .. }) | OpenError::Text(TextError::Read { .. }) => {
                    "check that the file exists and that this user may read it".to_owned()
                }
                OpenError::Format(FormatError::NoModel { .. }) => {
                    "give the folder that `model pull` created, or one in Hugging Face format".to_owned()
                }
                OpenError::Text(TextError::Missing { .. }) => {
                    "put the model's tokenizer.json next to its weights".to_owned()
                }
                OpenError::Format(FormatError::Broken { .. }) => "remove the model from the store and pull it again".to_owned(),
                _ => "use a model of a supported family and format: `textnlp-deploy model list` shows some".to_owned(),
            }),
            Error::Setting { .. } => None,
            Error::Io { source, path, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Some(format!("give this user access to {path}")),
                io::ErrorKind::StorageFull => Some(format!("free space on the disk of {path}")),
                _ => None,
            },
        }
    }
}
