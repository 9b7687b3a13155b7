//! Finds the newest advisories, in a local folder or in RustSec's repository.

use std::time::Duration;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::civil::Date;
use textnlp_bundle::scan::{Database, DatabaseFacts, Error};
use textnlp_models::FetchOptions;
use textnlp_provider::finished;
use tokio::process::Command;

use super::scan_failed;
use crate::audit::aged;
use crate::{Failure, Progress};

/// Timeout of a shallow clone of RustSec's repository, about 10 MB.
const CLONE_TIMEOUT: Duration = Duration::from_secs(60);
/// The repository of RustSec's advisories.
pub const RUSTSEC: &str = "https://github.com/RustSec/advisory-db.git";
/// The folder name of a clone of RustSec's repository.
const FOLDER: &str = "advisory-db";

/// Advisories and their origin.
pub struct LoadedAdvisories {
    /// The advisories.
    pub database: Database,
    /// The folder or the repository.
    pub origin: String,
}

impl LoadedAdvisories {
    /// Reads a folder.
    pub fn read(folder: &Utf8Path) -> Result<Self, Error> {
        Ok(Self { database: Database::from_folder(folder)?, origin: folder.to_string() })
    }

    fn newest(&self) -> Option<Date> {
        self.database.sources().iter().map(|source| source.date).max()
    }
}

/// `RustSec, newest of 2026-08-20, 94 days old`.
pub fn said(database: &DatabaseFacts) -> String {
    format!("{}, {}", database.name, aged(database.date, database.age_days))
}

/// Where advisories are found.
pub struct AdvisorySources {
    /// The folder that relative paths are from.
    pub here: Utf8PathBuf,
}

fn variable(name: &str) -> Option<Utf8PathBuf> {
    std::env::var(name).ok().map(Utf8PathBuf::from).filter(|path| path.is_absolute())
}

/// Where a clone is kept for later gates: the user's cache folder.
fn cache() -> Option<Utf8PathBuf> {
    let folder = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    folder.map(|folder| folder.join("textnlp").join(FOLDER))
}

impl AdvisorySources {
    /// The newest advisories for a bundle: cloned from `url`, unless it is `None`, or of this machine.
    pub async fn newest(&self, url: Option<&str>, progress: &dyn Progress) -> Option<LoadedAdvisories> {
        let cloned = match url.filter(|_| !FetchOptions::from_env().offline) {
            None => None,
            Some(url) => {
                progress.doing(&format!("advisories of {url}"));
                let found = Self::clone_of(url).await;
                found
                    .inspect_err(|error| {
                        progress.line(&format!("  no advisories could be cloned from {url}: {error:#}"));
                    })
                    .ok()
            }
        };
        [cloned, self.on_this_machine()].into_iter().flatten().max_by_key(LoadedAdvisories::newest)
    }

    /// The advisories that the operator gave: a folder, or a git repository.
    pub async fn given(&self, from: &str, progress: &dyn Progress) -> Result<LoadedAdvisories, Failure> {
        if !from.contains("://") {
            return LoadedAdvisories::read(&self.here.join(from)).map_err(scan_failed);
        }
        progress.doing(&format!("advisories of {from}"));
        Self::clone_of(from).await.map_err(|error| {
            Failure::from(error.context(format!("no advisories could be cloned from {from}")))
                .hint("copy the repository to this machine and give the folder: --advisories DIR")
        })
    }

    /// The newest advisories in the folders where tools keep them. Those with a date in the future are not used.
    pub fn on_this_machine(&self) -> Option<LoadedAdvisories> {
        let found = Self::folders().into_iter().filter_map(|folder| LoadedAdvisories::read(&folder).ok());
        let tomorrow = jiff::Zoned::now().date().tomorrow().unwrap_or(Date::MAX);
        found.filter(|found| found.newest().is_some_and(|date| date <= tomorrow)).max_by_key(LoadedAdvisories::newest)
    }

    /// Folders that may contain advisories. Missing or empty ones are skipped. Neither the working directory nor the state:
    /// what lies there may come with a checkout or an archive.
    fn folders() -> Vec<Utf8PathBuf> {
        let mut folders: Vec<Utf8PathBuf> = cache().into_iter().collect();
        if let Some(cargo) = variable("CARGO_HOME").or_else(|| variable("HOME").map(|home| home.join(".cargo"))) {
            // cargo-audit has one clone, cargo-deny one per URL.
            folders.push(cargo.join(FOLDER));
            let clones = cargo.join("advisory-dbs").read_dir_utf8().into_iter().flatten().flatten();
            folders.extend(clones.map(|copy| copy.into_path()));
        }
        // Who can change them hides known vulnerabilities.
        folders.retain(|folder| {
            folder.is_dir() && textnlp_files::check_settings(folder).is_ok_and(|found| found.is_none())
        });
        folders
    }

    async fn clone_of(url: &str) -> anyhow::Result<LoadedAdvisories> {
        let kept = cache().context("there is no folder to store it in")?;
        let parent = kept.parent().context("there is no folder to store it in")?;
        std::fs::create_dir_all(parent).with_context(|| format!("create {parent}"))?;
        let folder = tempfile::Builder::new().prefix(".advisory-db").tempdir_in(parent).context("create a folder")?;
        let fresh = Utf8Path::from_path(folder.path()).context("the path is not UTF-8")?.join(FOLDER);
        let mut git = Command::new("git");
        git.args(["clone", "--quiet", "--depth", "1", "--single-branch", "--", url, fresh.as_str()]);
        git.env("GIT_TERMINAL_PROMPT", "0");
        let ended = finished(git, CLONE_TIMEOUT).await.context("start git")?;
        let (status, _, errors) =
            ended.with_context(|| format!("git took longer than {} s", CLONE_TIMEOUT.as_secs()))?;
        if !status.success() {
            let text = String::from_utf8_lossy(&errors);
            anyhow::bail!("git failed: {}", text.lines().next_back().unwrap_or("no error output").trim());
        }
        let database = Database::from_folder(&fresh)?;
        let _ = std::fs::remove_dir_all(&kept);
        std::fs::rename(&fresh, &kept).with_context(|| format!("keep it as {kept}"))?;
        Ok(LoadedAdvisories { database, origin: url.to_owned() })
    }
}
