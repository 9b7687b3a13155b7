//! The artifacts on this machine that a release is resolved from: the server program, models and files.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_models::{Catalogue, Event, Store, local_digest};
use textnlp_orchestrator::environment::model::{Proxy, UrlSource};
use textnlp_orchestrator::environment::{Environment, SettingFiles};
use textnlp_orchestrator::release::{Artifacts, Lock, images, short};
use textnlp_provider::component::{ExternalSecret, Program};

use crate::failure::{Failure, size};
use crate::platform::{ChosenEnvironment, Progress, Scope};

/// The artifacts on this machine.
pub struct LocalArtifacts<'a> {
    /// The environment.
    pub chosen: &'a ChosenEnvironment,
    /// The server program, if it is not the one of this installation.
    pub server: Option<Utf8PathBuf>,
    /// The progress of reading large files.
    pub progress: &'a dyn Progress,
}

impl LocalArtifacts<'_> {
    /// Reads the artifacts for a release.
    pub fn read(&self) -> Result<Artifacts, Failure> {
        let path = self.server_program()?;
        let digest = textnlp_files::sha256(&path).with_context(|| format!("read {path}"))?;
        let program = Program { path: path.to_string(), digest: format!("sha256:{}", digest.hex()) };
        let (cache, environment) = (self.model_cache()?, &self.chosen.loaded.environment);
        if self.server.is_some() && environment.runs_here() {
            knows_commands(&program, &self.chosen.scope)?;
        }
        let models = environment.models.iter().filter_map(|m| {
            Some((m.name.clone(), m.digest.clone().or_else(|| self.model_digest(&cache, m.source()))?))
        });
        // Templates belong to a release only if something is rendered from them. Local processes need none.
        Ok(Artifacts {
            program,
            models: models.collect(),
            templates: None,
            schema: None,
            given: given(environment),
            files: SettingFiles::read(environment, &working_directory()?),
        })
    }

    /// Whether `up` can deliver a model from this source with this digest: from the cache, from a source that has it,
    /// or by a download that is verified.
    pub fn has_model(&self, source: &str, digest: &str) -> Result<bool, Failure> {
        let cache = self.model_cache()?;
        let cached =
            cache.is_dir().then(|| Store::open(&cache).ok()?.open_model(&digest.parse().ok()?).ok()?).flatten();
        Ok(cached.is_some() || self.model_digest(&cache, source).is_none_or(|found| found == digest))
    }

    fn model_cache(&self) -> Result<Utf8PathBuf, Failure> {
        Ok(match &self.chosen.loaded.environment.storage.model_folder {
            Some(folder) => working_directory()?.join(folder),
            None => self.chosen.scope.states().join("model-cache"),
        })
    }

    /// The current digest of an embedded or local model. Others are known only after the download. The preflight
    /// reports unreadable models.
    fn model_digest(&self, cache: &Utf8Path, source: &str) -> Option<String> {
        const LARGE: u64 = 100_000_000;
        let source = match Catalogue::embedded().get(source) {
            Some(entry) => entry.source.clone(),
            None => source.parse().ok()?,
        };
        let tell = |event| {
            if let Event::File { name, done, total: Some(total) } = event
                && total >= LARGE
            {
                self.progress.doing(&format!("reading {name}: {} of {}", size(done), size(total)));
            }
        };
        // The cache remembers digests. A read-only command must not create it.
        let store = cache.is_dir().then(|| Store::open(cache).ok()).flatten();
        let remembered = store.and_then(|store| store.local_digest(&source, &tell).ok());
        remembered.or_else(|| local_digest(&source, &tell).ok()).flatten().map(|digest| digest.to_string())
    }

    /// The server artifact: the given one, else `textnlp-server` beside this program if its version is the same, else
    /// this program.
    fn server_program(&self) -> Result<Utf8PathBuf, Failure> {
        if let Some(path) = &self.server {
            if !path.is_file() {
                return Err(Failure::usage("no_such_file", anyhow::anyhow!("--server {path} is not a file"))
                    .hint("omit it to use this program as the server"));
            }
            return Ok(path.clone());
        }
        let this = Utf8PathBuf::try_from(std::env::current_exe().context("find this program")?)
            .context("find this program")?;
        let beside = this.with_file_name("textnlp-server");
        // In a build folder, that program may be outdated, because cargo builds only what was requested.
        let is_build_folder = this.with_file_name("deps").is_dir();
        if !beside.is_file() || is_build_folder {
            return Ok(this);
        }
        let wanted = concat!("textnlp-server ", env!("CARGO_PKG_VERSION"));
        match first_line(&beside, &["--version"]) {
            Some(version) if version == wanted => Ok(beside),
            version => {
                let version = version.unwrap_or_else(|| "a program of unknown version".to_owned());
                self.progress.warn(&format!(
                    "{beside} is {version}, not {wanted}: using this program as the server (or give --server FILE)"
                ));
                Ok(this)
            }
        }
    }
}

fn working_directory() -> Result<Utf8PathBuf, Failure> {
    let here = std::env::current_dir().context("find the working directory")?;
    Ok(Utf8PathBuf::try_from(here).context("the working directory is not UTF-8")?)
}

/// A fingerprint of each external secret, by its reference. Missing secrets were refused before the run. Commands that
/// only read records need none.
fn given(environment: &Environment) -> BTreeMap<String, String> {
    let database = &environment.database;
    let Proxy { http, https, .. } = &environment.network.proxy;
    let addresses = database.url.iter().chain(environment.monitoring.receivers.values()).chain(http).chain(https);
    let addresses = addresses.filter_map(|address| match address {
        UrlSource::Secret(secret) => Some(secret),
        UrlSource::Url(_) => None,
    });
    let key = environment.dns.as_ref().map(|dns| &dns.key.secret);
    let token = environment.rollout.prometheus.as_ref().and_then(|prometheus| prometheus.token.as_ref());
    let marked = addresses.chain(&database.password).chain(key).chain(token).filter_map(|secret| {
        let given = ExternalSecret { source: secret.to_string(), version: String::new() };
        let value = given.read()?;
        Some((given.source.clone(), given.mark(environment.environment.as_str(), value.expose())))
    });
    marked.collect()
}

/// Refuses a server program without the commands that its units are started with: one from before `gateway` and `admin`.
pub(crate) fn knows_commands(program: &Program, scope: &Scope) -> Result<(), Failure> {
    if first_line(Utf8Path::new(&program.path), &["gateway", "--help"]).is_some() {
        return Ok(());
    }
    let error = anyhow::anyhow!("{} does not run as `gateway`: it is too old or not a server program", program.path)
        .context(format!("server {} cannot be deployed by this version", short(&program.digest)));
    Err(Failure::refused("server_not_compatible", error)
        .hint(format!("lock the local release, without --server FILE: {}", scope.command("release set"))))
}

/// Reports models and images that the lock pins to others than the local ones. `set` is the command that uses those.
pub(crate) fn tell_pinned(
    environment: &Environment,
    lock: &Lock,
    here: &Artifacts,
    set: &str,
    progress: &dyn Progress,
) {
    for model in environment.models.iter().filter(|m| m.digest.is_none() && lock.holds(&m.name, m.source())) {
        if let (Some(locked), Some(found)) = (lock.models.get(&model.name), here.models.get(&model.name))
            && locked != found
        {
            let (name, source, locked, found) = (&model.name, model.source(), short(locked), short(found));
            progress.line(&format!(
                "The release lock pins model {name} to {locked}; {source} has {found}. To use that: {set}"
            ));
        }
    }
    for (site, said) in images(environment) {
        if let Some(locked) = lock.image(&site, Some(&said)).filter(|locked| **locked != said) {
            progress.line(&format!(
                "The release lock pins the image {locked} in {site}; the environment names {said}. To use that: {set}"
            ));
        }
    }
}

/// The first line that a program prints, or `None` without a timely answer.
fn first_line(program: &Utf8Path, arguments: &[&str]) -> Option<String> {
    const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
    const LONGEST: u64 = 200;
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let began = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if began.elapsed() < LOCK_TIMEOUT => std::thread::sleep(Duration::from_millis(1)),
            _ => {
                // The process has exited or is killed here. Its output does not matter any more.
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    };
    let mut said = String::new();
    child.stdout.take()?.take(LONGEST).read_to_string(&mut said).ok()?;
    let line: String = said.lines().next()?.chars().filter(|c| !c.is_control()).collect();
    (status.success() && !line.is_empty()).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn program_version_query_is_bounded_by_a_timeout() {
        let folder = tempfile::tempdir().unwrap();
        let program = Utf8Path::from_path(folder.path()).unwrap().join("program");
        let said = |script: &str| {
            // Written under a temporary name, because a file that is open for writing cannot be executed.
            let beside = program.with_extension("new");
            std::fs::write(&beside, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::rename(&beside, &program).unwrap();
            first_line(&program, &["--version"])
        };
        assert_eq!(said("echo textnlp-server 9.9.9; echo more").as_deref(), Some("textnlp-server 9.9.9"));
        assert_eq!(said("echo textnlp-server 9.9.9; exit 1"), None);
        assert_eq!(said("exit 0"), None);
        assert_eq!(said("exec sleep 1000"), None);
        assert_eq!(first_line(Utf8Path::new("/nowhere/program"), &[]), None);
    }
}
