//! Options of this provider.

use std::sync::Arc;

use camino::{Utf8Component, Utf8PathBuf};
use textnlp_keys::FileSecretStore;
use textnlp_models::FetchOptions;
use textnlp_provider::{Error, ErrorKind, Minimum, Result, SecretStore};

/// How the provider works on this machine.
#[derive(Clone)]
pub struct Options {
    /// The environment's state folder, absolute. Sites are in `sites/` below it.
    pub state_folder: Utf8PathBuf,
    /// The secret store. The supervisor renews certificates with the default store only, which it can open.
    pub secrets: Arc<dyn SecretStore>,
    /// The program that supports `supervise --folder FOLDER [--child NAME]`.
    pub supervisor: Utf8PathBuf,
    /// The recommended minimum of this machine, and whether less is an error instead of a warning.
    pub minimum: Minimum,
    /// This machine's name, for certificates.
    pub hostname: String,
    /// Whether the site's programs run elsewhere: this machine then keeps its secrets and issues its certificates.
    pub serves_elsewhere: bool,
    /// Whether the environment is in a Git repository, so that `git` is required on this machine.
    pub needs_git: bool,
    /// The user that runs the environment on this machine, where one is set.
    pub user: Option<String>,
    /// Whether root has to name the user: the environment serves production users, and is not deployed yet.
    pub requires_user: bool,
    /// How models are fetched: proxies, endpoints, offline.
    pub models: FetchOptions,
    /// The model cache, shared by environments.
    pub model_cache: Utf8PathBuf,
}

impl Options {
    /// The defaults: secrets as files in `STATE/secrets`, models cached in `STATE/../model-cache`, and downloads with
    /// the proxies, endpoints and tokens of the process environment.
    pub fn new(state_folder: impl Into<Utf8PathBuf>, supervisor: impl Into<Utf8PathBuf>) -> Result<Self> {
        let state_folder = state_folder.into();
        if !state_folder.is_absolute() {
            return Err(
                Error::new(ErrorKind::Invalid, "use state folder", state_folder.as_str()).because("it is not absolute")
            );
        }
        // Sockets and locks need one canonical path of the folder.
        let state_folder = canonical(state_folder);
        let base = state_folder.parent().unwrap_or(&state_folder);
        Ok(Self {
            secrets: Arc::new(FileSecretStore::new(state_folder.join("secrets"))),
            supervisor: supervisor.into(),
            minimum: Minimum::DEVELOPMENT,
            hostname: rustix::system::uname().nodename().to_string_lossy().to_lowercase(),
            serves_elsewhere: false,
            needs_git: false,
            user: None,
            requires_user: false,
            models: FetchOptions::from_env(),
            model_cache: base.join("model-cache"),
            state_folder,
        })
    }
}

/// The path with the links of its existing part resolved, and without `.` and `..` in the rest.
pub(crate) fn canonical(path: Utf8PathBuf) -> Utf8PathBuf {
    for parent in path.ancestors() {
        if let Ok(real) = parent.canonicalize_utf8() {
            return match path.strip_prefix(parent) {
                Ok(rest) => rest.components().fold(real, |mut path, part| {
                    match part {
                        Utf8Component::ParentDir => drop(path.pop()),
                        Utf8Component::CurDir => {}
                        other => path.push(other),
                    }
                    path
                }),
                Err(_) => real,
            };
        }
    }
    path
}
