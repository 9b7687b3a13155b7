//! The lock file: read, written whole or not at all, and compared.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use textnlp_provider::EnvironmentName;

/// The digests that run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Which environment.
    pub environment: EnvironmentName,
    /// The server artifact.
    pub server: String,
    /// Each model by its name.
    #[serde(default)]
    pub models: BTreeMap<String, String>,
    /// Where each model came from: a digest holds for as long as its source is the same.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, String>,
    /// The image of each site in a cluster.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub images: BTreeMap<String, String>,
    /// What the environment said of each image: one holds for as long as that is the same.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub image_sources: BTreeMap<String, String>,
    /// The templates, when what runs was rendered from some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub templates: Option<String>,
    /// What the environment said.
    pub configuration: String,
    /// The database schema; left out, the newest of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<u32>,
}

/// One thing in which two releases differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What: `server`, `templates`, `configuration`, `schema`, `models.NAME`, or `images.SITE`.
    pub what: String,
    /// What the lock says.
    pub locked: Option<String>,
    /// What is at hand.
    pub here: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let say = |found: &Option<String>| found.as_deref().map_or_else(|| "none".to_owned(), short);
        write!(f, "{}: locked {}, here {}", self.what, say(&self.locked), say(&self.here))
    }
}

impl std::error::Error for Difference {}

/// The beginning of a digest, for people; what is none is whole.
pub fn short(digest: &str) -> String {
    let shown = if digest.starts_with("sha256:") { 19 } else { usize::MAX };
    digest.chars().take(shown).collect()
}

/// Why a lock could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The file system said no.
    #[error("{action} lock file {path}")]
    File {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a lock file.
    #[error("{path} is not a lock file: {cause}")]
    Broken {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong, with its line and column.
        cause: String,
    },
}

/// A lock names a handful of digests; a model catalogue of thousands still fits.
const MOST_BYTES: u64 = 1_000_000;

const HEAD: &str = "# Which bytes run. Written by `textnlp-deploy release set` and `promote`; `up` honours it.\n";

impl Lock {
    /// Where the lock of an environment is: beside its file.
    pub fn path(folder: &Utf8Path, environment: &EnvironmentName) -> Utf8PathBuf {
        folder.join(format!("{environment}.lock"))
    }

    /// Reads a lock; `None` when there is no file.
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
        let mut lock: Lock = serde_yaml::from_slice(&bytes).map_err(|e| broken(e.to_string()))?;
        // Earlier versions wrote the digest of no bytes where there were no templates.
        lock.templates.take_if(|templates| *templates == super::digest(b""));
        let digests =
            [&lock.server, &lock.configuration].into_iter().chain(&lock.templates).chain(lock.models.values());
        for digest in digests {
            let hex = digest.strip_prefix("sha256:").unwrap_or_default();
            if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(broken(format!("`{}` is not a digest", digest.chars().take(80).collect::<String>())));
            }
        }
        Ok(Some(lock))
    }

    /// The bytes of the file: the same lock gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let body = serde_yaml::to_string(self).expect("a lock is plain data with text keys");
        format!("{HEAD}{body}").into_bytes()
    }

    /// Writes the file whole or not at all. Writing what is there already changes nothing.
    pub fn write(&self, path: &Utf8Path) -> Result<(), LockError> {
        let failed = |source| LockError::File { action: "write", path: path.to_owned(), source };
        let bytes = self.to_bytes();
        if std::fs::read(path).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        let beside = path.with_extension(format!("lock.{}", std::process::id()));
        let folder = path.parent().filter(|p| !p.as_str().is_empty()).unwrap_or(Utf8Path::new("."));
        let written = (|| {
            // Without `environments/`, a lock lies with a state that may have to be made yet.
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            let mut file = std::fs::File::create(&beside)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&beside, path)?;
            // The rename is durable once its folder is.
            std::fs::File::open(folder)?.sync_all()
        })();
        written.map_err(|error| {
            // What was begun beside it is of no use to anybody; the error that counts is the one above.
            let _ = std::fs::remove_file(&beside);
            failed(error)
        })
    }

    /// Whether the digest of a model still holds: its source is the one that was locked.
    pub fn holds(&self, name: &str, source: &str) -> bool {
        self.sources.get(name).is_none_or(|locked| locked == source)
    }

    /// The image of a site, for as long as the environment says the same of it as when it was locked.
    pub fn image(&self, site: &str, said: Option<&str>) -> Option<&String> {
        self.images.get(site).filter(|_| self.image_sources.get(site).map(String::as_str) == said)
    }

    /// Whether both run the same bytes; what the environments say may differ.
    pub fn runs_the_same(&self, other: &Lock) -> bool {
        self.differences(other).iter().all(|difference| difference.what == "configuration")
    }

    /// In what `here` differs from this lock.
    pub fn differences(&self, here: &Lock) -> Vec<Difference> {
        let mut found = Vec::new();
        let mut compare = |what: &str, locked: Option<String>, here: Option<String>| {
            if locked != here {
                found.push(Difference { what: what.to_owned(), locked, here });
            }
        };
        compare("server", Some(self.server.clone()), Some(here.server.clone()));
        let names: std::collections::BTreeSet<_> = self.models.keys().chain(here.models.keys()).collect();
        for name in names {
            compare(&format!("models.{name}"), self.models.get(name).cloned(), here.models.get(name).cloned());
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
