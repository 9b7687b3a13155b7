//! Earlier versions of an environment's file, from its Git repository.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_files::Replace;
use textnlp_orchestrator::environment::{Catalogue, Environment, Library, Overrides, Source};
use textnlp_provider::{EnvironmentName, finished};
use tokio::process::Command;

use crate::environments::invalid;
use crate::{Failure, RerunFlags};

/// Commits that are listed.
const MAX_COMMITS: &str = "--max-count=20";

/// Timeout of one git command.
const GIT_TIMEOUT: Duration = Duration::from_secs(30);

/// The largest file, which is less than what [`finished`] reads.
const MAX_FILE: usize = 200 << 10;

/// The file of an environment in a Git repository.
pub struct EnvironmentFile {
    /// Its path.
    pub path: Utf8PathBuf,
    folder: Utf8PathBuf,
    /// Its path for git, from the folder.
    name: String,
    /// The command that lists its commits.
    pub list: String,
}

/// A restored environment file.
pub struct Restored {
    /// Its environment.
    pub environment: EnvironmentName,
    /// The commit.
    pub commit: String,
    /// The store that it names for the state.
    pub store: String,
    /// Whether the file had other content.
    pub is_changed: bool,
}

impl EnvironmentFile {
    /// A file. `list`: the command that lists its commits.
    pub fn at(path: Utf8PathBuf, list: String) -> Result<Self, Failure> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Failure::usage("no_environment_file", anyhow::anyhow!("{path} is not a file")));
        };
        Ok(Self { folder: folder.to_owned(), name: format!("./{name}"), path, list })
    }

    /// Its newest commits: id, time, author, subject.
    pub async fn commits(&self) -> Result<Vec<[String; 4]>, Failure> {
        let format = "--format=%H%x09%cI%x09%an%x09%s";
        let listed = self.asked(&["log", MAX_COMMITS, format, "--", &self.name]).await?;
        let commits = String::from_utf8_lossy(&listed)
            .lines()
            .filter_map(|line| {
                let mut fields = line.splitn(4, '\t').map(plain);
                Some([fields.next()?, fields.next()?, fields.next()?, fields.next()?])
            })
            .collect();
        Ok(commits)
    }

    /// Restores the file of a commit, if it can be loaded. Nothing is lost: Git has its present content.
    pub async fn restore(
        &self,
        commit: &str,
        library: &Library,
        (overrides, catalogue): (&Overrides, &Catalogue),
        again: &RerunFlags,
    ) -> Result<Restored, Failure> {
        let verified = format!("{commit}^{{commit}}");
        let (status, found, _) = self.git(&["rev-parse", "--verify", "--quiet", "--end-of-options", &verified]).await?;
        let id = plain(String::from_utf8_lossy(&found).trim());
        if !status.success() || id.is_empty() {
            let error = anyhow::anyhow!("{} has no commit `{}`", self.folder, plain(commit));
            return Err(Failure::usage("no_such_commit", error).hint(&self.list));
        }
        let (status, bytes, _) = self.git(&["cat-file", "blob", &format!("{id}:{}", self.name)]).await?;
        if !status.success() || bytes.len() > MAX_FILE {
            let why = if status.success() { "is too large in" } else { "is not in" };
            let error = anyhow::anyhow!("{} {why} commit {}", self.path, &id[..id.len().min(12)]);
            return Err(Failure::usage("no_such_file", error).hint(&self.list));
        }
        let mode = self.replaceable(&bytes).await?;
        // Before it replaces a file that can be loaded.
        let source = Source { label: self.path.to_string(), bytes: bytes.clone() };
        let library = library.beside(&self.path);
        let loaded = library.load_source(source, overrides, catalogue).map_err(|error| invalid(error, again))?;
        let is_changed = mode.is_some();
        if let Some(mode) = mode {
            Replace::mode(mode).write(&self.path, &bytes).with_context(|| format!("write {}", self.path))?;
        }
        let Environment { environment, state, .. } = loaded.environment;
        Ok(Restored { environment, commit: id, store: state.store, is_changed })
    }

    /// The permission bits of the file, if it has other content. Refused if git does not have its present content.
    async fn replaceable(&self, bytes: &[u8]) -> Result<Option<u32>, Failure> {
        // It was deleted since.
        let Some(mode) = own_file_mode(&self.path)? else { return Ok(Some(0o644)) };
        if std::fs::read(&self.path).with_context(|| format!("read {}", self.path))? == bytes {
            return Ok(None);
        }
        let id = self.asked(&["hash-object", "--no-filters", "--", &self.name]).await?;
        let id = String::from_utf8_lossy(&id).trim().to_owned();
        if !self.git(&["cat-file", "-e", &id]).await?.0.success() {
            let error = anyhow::anyhow!("{} has changes that are not in Git", self.path);
            let hint = format!("keep them: git add {}; or drop them: git checkout {}", self.path, self.path);
            return Err(Failure::refused("not_committed", error).hint(hint));
        }
        Ok(Some(mode))
    }

    /// The output of a git command that must succeed.
    async fn asked(&self, arguments: &[&str]) -> Result<Vec<u8>, Failure> {
        let (status, printed, errors) = self.git(arguments).await?;
        if status.success() {
            return Ok(printed);
        }
        let why = plain(String::from_utf8_lossy(&errors).lines().next().unwrap_or("no error output"));
        let error = anyhow::anyhow!("{why}").context(format!("read the Git history of {}", self.path));
        Err(Failure::usage("no_git_history", error).hint("the folder of the environment must be in a Git repository"))
    }

    async fn git(&self, arguments: &[&str]) -> Result<(ExitStatus, Vec<u8>, Vec<u8>), Failure> {
        git(&self.folder, arguments).await
    }
}

/// The permission bits of a file, `None` if it does not exist. A link and a file of another user are refused.
pub(crate) fn own_file_mode(path: &Utf8Path) -> Result<Option<u32>, Failure> {
    let about = match std::fs::symlink_metadata(path) {
        Ok(about) => about,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::from(anyhow::Error::new(error).context(format!("read {path}")))),
    };
    if !about.is_file() || about.uid() != textnlp_files::caller() {
        let error = anyhow::anyhow!("{path} is a link, or belongs to another user");
        return Err(Failure::refused("not_your_file", error).hint("run the command as its owner"));
    }
    Ok(Some(about.permissions().mode() & 0o777))
}

/// Runs a git command in a folder: its exit status, output and errors.
pub(crate) async fn git(folder: &Utf8Path, arguments: &[&str]) -> Result<(ExitStatus, Vec<u8>, Vec<u8>), Failure> {
    let mut git = Command::new("git");
    // The settings of a repository name no program that these commands run. Objects that a partial clone lacks
    // would be fetched by the program of `core.sshCommand`, or another one.
    git.args(["--no-optional-locks", "--literal-pathspecs", "-c", "core.fsmonitor=false"]);
    git.args(["-c", "log.showSignature=false", "-C", folder.as_str()]).args(arguments);
    git.env("GIT_TERMINAL_PROMPT", "0").env("LC_ALL", "C");
    git.env("GIT_ALLOW_PROTOCOL", "none").env("GIT_NO_LAZY_FETCH", "1");
    let ended = finished(git, GIT_TIMEOUT).await.map_err(|error| {
        Failure::from(anyhow::Error::new(error).context("start git"))
            .hint("install git, and run the same command again")
    })?;
    Ok(ended.with_context(|| format!("git took longer than {} s", GIT_TIMEOUT.as_secs()))?)
}

/// Texts of a repository may have any character.
pub(crate) fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
