//! What an operator decides about this provider.

use std::sync::Arc;

use camino::Utf8PathBuf;
use textnlp_models::FetchOptions;
use textnlp_provider::{Error, Minimum, Result, SecretStore, Sort};

use crate::FileSecretStore;

/// How the provider works on this machine.
#[derive(Clone)]
pub struct Options {
    /// Where the state of the environment lives; absolute. Sites lie in `sites/` below it.
    pub state_folder: Utf8PathBuf,
    /// Where secrets are kept. Certificates are renewed by the supervisor only with the default store, which it can open.
    pub secrets: Arc<dyn SecretStore>,
    /// The program that understands `supervise --folder FOLDER [--child NAME]`.
    pub supervisor: Utf8PathBuf,
    /// What this machine should have at least, and whether less blocks instead of warning.
    pub minimum: Minimum,
    /// This machine's name, for certificates.
    pub hostname: String,
    /// Whether the site's programs run elsewhere: this machine keeps its secrets and issues its certificates.
    pub serves_elsewhere: bool,
    /// How models are fetched: proxies, endpoints, offline.
    pub models: FetchOptions,
    /// Where downloaded models are kept, shared by environments.
    pub model_cache: Utf8PathBuf,
}

impl Options {
    /// The usual ones: secrets as files in `STATE/secrets`, models cached in `STATE/../model-cache` and fetched as the
    /// environment's variables for proxies, endpoints and tokens say.
    pub fn new(state_folder: impl Into<Utf8PathBuf>, supervisor: impl Into<Utf8PathBuf>) -> Result<Self> {
        let state_folder = state_folder.into();
        if !state_folder.is_absolute() {
            return Err(
                Error::new(Sort::Invalid, "use state folder", state_folder.as_str()).because("it is not absolute")
            );
        }
        // A folder reached by another name is the same folder, and sockets and locks must agree on it.
        let state_folder = canonical(state_folder);
        let beside = state_folder.parent().unwrap_or(&state_folder);
        Ok(Self {
            secrets: Arc::new(FileSecretStore::new(state_folder.join("secrets"))),
            supervisor: supervisor.into(),
            minimum: Minimum::DEVELOPMENT,
            hostname: rustix::system::uname().nodename().to_string_lossy().to_lowercase(),
            serves_elsewhere: false,
            models: FetchOptions::from_env(),
            model_cache: beside.join("model-cache"),
            state_folder,
        })
    }
}

/// The path without links, as far as it exists already.
pub(crate) fn canonical(path: Utf8PathBuf) -> Utf8PathBuf {
    for parent in path.ancestors() {
        if let Ok(real) = parent.canonicalize_utf8() {
            return match path.strip_prefix(parent) {
                Ok(rest) if !rest.as_str().is_empty() => real.join(rest),
                _ => real,
            };
        }
    }
    path
}
