//! The lock file of an environment.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::DirBuilderExt;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use textnlp_files::Replace;
use textnlp_provider::EnvironmentName;

/// The digests of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// The environment.
    pub environment: EnvironmentName,
    /// The digest of the server artifact.
    pub server: String,
    /// The digest of each model by name.
    #[serde(default)]
    pub models: BTreeMap<String, String>,
    /// The source of each model; a digest is valid while its source is unchanged.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, String>,
    /// The tenant of each model that belongs to one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tenants: BTreeMap<String, String>,
    /// The image of each site in a cluster.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub images: BTreeMap<String, String>,
    /// The configured image of each site; a locked image is valid while this is unchanged.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub image_sources: BTreeMap<String, String>,
    /// The digest of the templates, if any were rendered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub templates: Option<String>,
    /// The digest of the configuration.
    pub configuration: String,
    /// The database schema; by default the newest of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<u32>,
}

/// A difference between two releases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LockDifference {
    /// The part: `server`, `templates`, `configuration`, `schema`, `models.NAME` (its digest, or the tenant it belongs to), or
    /// `images.SITE`.
    pub what: String,
    /// The locked value.
    pub locked: Option<String>,
    /// The present value.
    pub here: Option<String>,
}

impl fmt::Display for LockDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let say = |found: &Option<String>| found.as_deref().map_or_else(|| "none".to_owned(), short);
        write!(f, "{}: locked {}, here {}", self.what, say(&self.locked), say(&self.here))
    }
}

impl std::error::Error for LockDifference {}

/// The first digits of a digest, for display; other texts are unchanged.
pub fn short(digest: &str) -> String {
    let shown = if digest.starts_with("sha256:") { 19 } else { usize::MAX };
    digest.chars().take(shown).collect()
}

/// Why a lock file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A file operation failed.
    #[error("{action} lock file {path}")]
    File {
        /// The action.
        action: &'static str,
        /// The file.
        path: Utf8PathBuf,
        /// The error.
        source: std::io::Error,
    },
    /// The file is not a lock file.
    #[error("{path} is not a lock file: {cause}")]
    Broken {
        /// The file.
        path: Utf8PathBuf,
        /// The problem, with line and column.
        cause: String,
    },
}

/// The largest lock file in bytes; sufficient for thousands of models.
const MOST_BYTES: u64 = 1_000_000;

const HEAD: &str = "# The locked release. Written by `textnlp-deploy release set` and `promote`; read by `up`.\n";

/// What is wrong with a file, without any text of it: a lock comes with a checkout, where it may be a link to a private key.
fn without_values(error: &serde_yaml::Error) -> String {
    match error.location() {
        Some(at) => format!("line {}, column {} is not what `release set` writes", at.line(), at.column()),
        None => "it is not what `release set` writes".to_owned(),
    }
}

impl Lock {
    /// The path of an environment's lock file, beside its file.
    pub fn path(folder: &Utf8Path, environment: &EnvironmentName) -> Utf8PathBuf {
        folder.join(format!("{environment}.lock"))
    }

    /// Reads a lock file; `None` if it does not exist.
    pub fn read(path: &Utf8Path) -> Result<Option<Self>, LockError> {
        use std::io::Read;
        let failed = |source| LockError::File { action: "read", path: path.to_owned(), source };
        let broken = |cause: String| LockError::Broken { path: path.to_owned(), cause };
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = Vec::new();
        file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MOST_BYTES {
            return Err(broken(format!("it has more than {MOST_BYTES} bytes")));
        }
        let mut lock: Lock = serde_yaml::from_slice(&bytes).map_err(|e| broken(without_values(&e)))?;
        // Earlier versions wrote the digest of an empty text if there were no templates.
        lock.templates.take_if(|templates| *templates == super::digest(b""));
        let digests =
            [&lock.server, &lock.configuration].into_iter().chain(&lock.templates).chain(lock.models.values());
        for digest in digests {
            let hex = digest.strip_prefix("sha256:").unwrap_or_default();
            if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(broken("it has a digest that is not `sha256:` with 64 hexadecimal digits".to_owned()));
            }
        }
        Ok(Some(lock))
    }

    /// The bytes of the file; equal locks have equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let body = serde_yaml::to_string(self).expect("a lock is plain data with text keys");
        format!("{HEAD}{body}").into_bytes()
    }

    /// Writes the file durably; no change if the content is equal.
    pub fn write(&self, path: &Utf8Path) -> Result<(), LockError> {
        let failed = |source| LockError::File { action: "write", path: path.to_owned(), source };
        let bytes = self.to_bytes();
        if std::fs::read(path).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.as_str().is_empty()) {
            // Without `environments/`, the lock file is in a state folder that may not exist yet.
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        }
        Replace::umask().write(path, &bytes).map_err(|error| failed(error.source))
    }

    /// Whether the locked digest of a model is valid: its source is unchanged.
    pub fn holds(&self, name: &str, source: &str) -> bool {
        self.sources.get(name).is_none_or(|locked| locked == source)
    }

    /// The locked image of a site, if the configured one is unchanged.
    pub fn image(&self, site: &str, said: Option<&str>) -> Option<&String> {
        self.images.get(site).filter(|_| self.image_sources.get(site).map(String::as_str) == said)
    }

    /// Whether both have the same artifacts; configurations may differ.
    pub fn runs_the_same(&self, other: &Lock) -> bool {
        self.differences(other).iter().all(|difference| difference.what == "configuration")
    }

    /// The differences of `here` from this lock.
    pub fn differences(&self, here: &Lock) -> Vec<LockDifference> {
        let mut found = Vec::new();
        let mut compare = |what: &str, locked: Option<String>, here: Option<String>| {
            if locked != here {
                found.push(LockDifference { what: what.to_owned(), locked, here });
            }
        };
        compare("server", Some(self.server.clone()), Some(here.server.clone()));
        let names: std::collections::BTreeSet<_> = self.models.keys().chain(here.models.keys()).collect();
        for name in names {
            compare(&format!("models.{name}"), self.models.get(name).cloned(), here.models.get(name).cloned());
        }
        let names: std::collections::BTreeSet<_> = self.tenants.keys().chain(here.tenants.keys()).collect();
        for name in names.into_iter().filter(|name| self.models.contains_key(*name) && here.models.contains_key(*name))
        {
            compare(&format!("models.{name}"), self.tenants.get(name).cloned(), here.tenants.get(name).cloned());
        }
        let sites: std::collections::BTreeSet<_> = self.images.keys().chain(here.images.keys()).collect();
        for site in sites {
            compare(&format!("images.{site}"), self.images.get(site).cloned(), here.images.get(site).cloned());
        }
        compare("templates", self.templates.clone(), here.templates.clone());
        compare("configuration", Some(self.configuration.clone()), Some(here.configuration.clone()));
        compare("schema", self.schema.map(|s| s.to_string()), here.schema.map(|s| s.to_string()));
        found
    }
}
