//! Finds the newest advisories, in a local folder or in RustSec's repository.

use std::time::Duration;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::civil::Date;
use textnlp_bundle::scan::{Database, DatabaseFacts};
use textnlp_models::FetchOptions;
use textnlp_provider::finished;
use tokio::process::Command;

use super::scan;
use crate::bundle_args::Create;
use crate::commands::audit;
use crate::progress::Progress;
use crate::report::Failure;
use crate::session::Session;

/// Timeout of a shallow clone of RustSec's repository, about 10 MB.
const CLONE_TIMEOUT: Duration = Duration::from_secs(60);
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
    fn read(folder: &Utf8Path) -> Result<Self, textnlp_bundle::scan::Error> {
        Ok(Self { database: Database::from_folder(folder)?, origin: folder.to_string() })
    }

    fn newest(&self) -> Option<Date> {
        self.database.sources().iter().map(|source| source.date).max()
    }
}

/// `RustSec, newest of 2026-08-20, 94 days old`.
pub fn said(database: &DatabaseFacts) -> String {
    format!("{}, {}", database.name, audit::aged(database.date, database.age_days))
}

/// The advisories for a bundle: from the folder of the flag, else, if `wanted`, the newest available.
pub async fn find(
    session: &Session,
    args: &Create,
    wanted: bool,
    progress: &Progress,
) -> Result<Option<LoadedAdvisories>, Failure> {
    if let Some(folder) = &args.advisories {
        return Ok(Some(LoadedAdvisories::read(folder).map_err(scan::failed)?));
    }
    if !wanted {
        return Ok(None);
    }
    let cloned = if args.offline || FetchOptions::from_env().offline {
        None
    } else {
        progress.doing(&format!("advisories of {}", args.advisories_url));
        match clone(session, &args.advisories_url).await {
            Ok(found) => Some(found),
            Err(error) => {
                progress.line(format!("  no advisories could be cloned from {}: {error:#}", args.advisories_url));
                None
            }
        }
    };
    let here = on_this_machine(session);
    Ok([cloned, here].into_iter().flatten().max_by_key(LoadedAdvisories::newest))
}

/// The advisories that the operator gave: a folder, or a git repository. A clone is kept for later gates.
pub async fn given(session: &Session, from: &str, progress: &Progress) -> Result<LoadedAdvisories, Failure> {
    if !from.contains("://") {
        return LoadedAdvisories::read(&session.here.join(from)).map_err(scan::failed);
    }
    progress.doing(&format!("advisories of {from}"));
    clone(session, from).await.map_err(|error| {
        Failure::from(error.context(format!("no advisories could be cloned from {from}")))
            .hint("copy the repository to this machine and give the folder: --advisories DIR")
    })
}

/// The newest advisories in the folders where tools keep them.
pub fn on_this_machine(session: &Session) -> Option<LoadedAdvisories> {
    let found = folders(session).into_iter().filter_map(|folder| LoadedAdvisories::read(&folder).ok());
    found.max_by_key(LoadedAdvisories::newest)
}

/// Folders that may contain advisories. Missing or empty ones are skipped. Not the working directory: what lies there may
/// come with a checkout or an archive.
fn folders(session: &Session) -> Vec<Utf8PathBuf> {
    let mut folders: Vec<Utf8PathBuf> = cache(session).into_iter().collect();
    let variable = |name: &str| std::env::var(name).ok().map(Utf8PathBuf::from).filter(|path| path.is_absolute());
    if let Some(cargo) = variable("CARGO_HOME").or_else(|| variable("HOME").map(|home| home.join(".cargo"))) {
        // cargo-audit has one clone, cargo-deny one per URL.
        folders.push(cargo.join(FOLDER));
        let clones = cargo.join("advisory-dbs").read_dir_utf8().into_iter().flatten().flatten();
        folders.extend(clones.map(|copy| copy.into_path()));
    }
    // Who can change them hides known vulnerabilities.
    folders
        .retain(|folder| folder.is_dir() && textnlp_files::check_settings(folder).is_ok_and(|found| found.is_none()));
    folders
}

/// Where a clone is cached.
fn cache(session: &Session) -> Option<Utf8PathBuf> {
    session.model_cache().ok().map(|cache| cache.with_file_name(FOLDER))
}

async fn clone(session: &Session, url: &str) -> anyhow::Result<LoadedAdvisories> {
    let kept = cache(session).context("there is no folder to store it in")?;
    let parent = kept.parent().context("there is no folder to store it in")?;
    std::fs::create_dir_all(parent).with_context(|| format!("create {parent}"))?;
    let folder = tempfile::Builder::new().prefix(".advisory-db").tempdir_in(parent).context("create a folder")?;
    let fresh = Utf8Path::from_path(folder.path()).context("the path is not UTF-8")?.join(FOLDER);
    let mut git = Command::new("git");
    git.args(["clone", "--quiet", "--depth", "1", "--single-branch", "--", url, fresh.as_str()]);
    git.env("GIT_TERMINAL_PROMPT", "0");
    let ended = finished(git, CLONE_TIMEOUT).await.context("start git")?;
    let (status, _, errors) = ended.with_context(|| format!("git took longer than {} s", CLONE_TIMEOUT.as_secs()))?;
    if !status.success() {
        let text = String::from_utf8_lossy(&errors);
        anyhow::bail!("git failed: {}", text.lines().next_back().unwrap_or("no error output").trim());
    }
    let database = Database::from_folder(&fresh)?;
    let _ = std::fs::remove_dir_all(&kept);
    std::fs::rename(&fresh, &kept).with_context(|| format!("keep it as {kept}"))?;
    Ok(LoadedAdvisories { database, origin: url.to_owned() })
}
