//! The artifacts on this machine that a release is resolved from: the server program, models and files.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::time::Duration;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_models::{Catalogue, Event, Source, Store, local_digest};
use textnlp_orchestrator::environment::model::{Proxy, UrlSource};
use textnlp_orchestrator::environment::{Environment, SettingFiles};
use textnlp_orchestrator::release::{
    Artifacts, Lock, image_reference, images, pushes_image, resolved_images, server_image, short,
};
use textnlp_provider::component::{ExternalSecret, Program};
use textnlp_provider::first_line;

use crate::program_digests::{Of, digest};
use crate::{ChosenEnvironment, Failure, Progress, Scope, size};

/// The version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Timeout of a program that prints its version or its help.
const FIRST_LINE_TIMEOUT: Duration = Duration::from_secs(10);

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
        let (cache, environment) = (self.model_cache()?, &self.chosen.loaded.environment);
        let (program, image) = self.program_and_image()?;
        if self.server.is_some() && environment.runs_here() {
            knows_commands(&program, &self.chosen.scope)?;
        }
        let models = environment
            .models
            .iter()
            .filter_map(|m| Some((m.id(), m.digest.clone().or_else(|| self.model_digest(&cache, m.source()))?)));
        // Templates belong to a release only if something is rendered from them. Local processes need none.
        Ok(Artifacts {
            program,
            models: models.collect(),
            templates: None,
            schema: None,
            given: given(environment),
            files: SettingFiles::read(environment, &working_directory()?),
            image,
        })
    }

    /// The server program, and the image of this program if a site needs it: pods run commands that the server alone does not have.
    fn program_and_image(&self) -> Result<(Program, Option<String>), Failure> {
        let (path, environment) = (self.server_program()?, &self.chosen.loaded.environment);
        let is_pushed = environment.sites.iter().any(|site| pushes_image(environment, site));
        let (this, folder) = (is_pushed.then(this_program).transpose()?, self.chosen.scope.folder.as_path());
        let hash = || textnlp_files::sha256(&path).map(|digest| format!("sha256:{}", digest.hex()));
        let make = |this: &Utf8Path| server_image(this, VERSION).map(|image| image_reference(&image, VERSION));
        // Both read all of a large file.
        let (digest, image) = std::thread::scope(|threads| {
            let image =
                this.as_deref().map(|this| threads.spawn(move || digest(folder, this, Of::Image, || make(this))));
            (
                digest(folder, &path, Of::File, hash),
                image.map(|image| image.join().unwrap_or_else(|why| resume_unwind(why))),
            )
        });
        let program = Program { digest: digest.with_context(|| format!("read {path}"))?, path: path.into_string() };
        match image.transpose() {
            Ok(image) => Ok((program, image)),
            Err(error) => {
                self.progress.warn(&format!("no image can be made of this program: {error}"));
                Ok((program, None))
            }
        }
    }

    /// Whether `up` can deliver a model from this source with this digest: from the cache, from a source that has it,
    /// or by a download that is verified.
    pub fn has_model(&self, source: &str, digest: &str) -> Result<bool, Failure> {
        let cache = self.model_cache()?;
        let cached = || Store::existing(&cache).ok()??.model_folder(&digest.parse().ok()?).ok()?;
        Ok(cached().is_some() || self.model_digest(&cache, source).is_none_or(|found| found == digest))
    }

    fn model_cache(&self) -> Result<Utf8PathBuf, Failure> {
        model_cache(self.chosen)
    }

    /// The current digest of an embedded or local model. Others are known only after the download. The preflight
    /// reports unreadable models.
    fn model_digest(&self, cache: &Utf8Path, source: &str) -> Option<String> {
        const LARGE: u64 = 100_000_000;
        let source = match Catalogue::embedded().get(source) {
            Some(entry) => entry.source.clone(),
            None => source.parse().ok()?,
        };
        let report = |event| {
            if let Event::File { name, done, total: Some(total) } = event
                && total >= LARGE
            {
                self.progress.doing(&format!("reading {name}: {} of {}", size(done), size(total)));
            }
        };
        digest_here(cache, &source, &report)
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
        let this = this_program()?;
        let beside = this.with_file_name("textnlp-server");
        // In a build folder, that program may be outdated, because cargo builds only what was requested.
        let is_build_folder = this.with_file_name("deps").is_dir();
        if !beside.is_file() || is_build_folder {
            return Ok(this);
        }
        let wanted = concat!("textnlp-server ", env!("CARGO_PKG_VERSION"));
        match first_line(&beside, &["--version"], FIRST_LINE_TIMEOUT) {
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

/// The cache that models of an environment are fetched into.
pub fn model_cache(chosen: &ChosenEnvironment) -> Result<Utf8PathBuf, Failure> {
    Ok(match &chosen.loaded.environment.storage.model_folder {
        Some(folder) => working_directory()?.join(folder),
        None => chosen.scope.states().join("model-cache"),
    })
}

/// The digest of a model on this machine. The cache has those of fetched models; it is not written to, because plans need the digest, too.
fn digest_here(cache: &Utf8Path, source: &Source, report: &textnlp_models::Progress<'_>) -> Option<String> {
    let store = Store::existing(cache).ok().flatten();
    let recorded = store.and_then(|store| store.local_digest(source, report).ok());
    recorded.or_else(|| local_digest(source, report).ok()).flatten().map(|digest| digest.to_string())
}

fn this_program() -> Result<Utf8PathBuf, Failure> {
    let program = std::env::current_exe().context("find this program")?;
    Ok(Utf8PathBuf::try_from(program).context("find this program")?)
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
    let addresses = database.url.iter().chain(environment.monitoring.receivers.values());
    let addresses = addresses.chain(http).chain(https).chain(&environment.cache.url);
    let addresses = addresses.filter_map(|address| match address {
        UrlSource::Secret(secret) => Some(secret),
        UrlSource::Url(_) => None,
    });
    let key = environment.dns.as_ref().map(|dns| &dns.key.secret);
    let token = environment.rollout.prometheus.as_ref().and_then(|prometheus| prometheus.token.as_ref());
    let webhooks = environment.server.batch.webhooks.iter().map(|webhook| &webhook.secret);
    let traces = &environment.server.monitoring.traces.secret;
    // Machines read the file themselves.
    let copies = environment.backup.credentials.as_ref().filter(|_| environment.dump_copies().is_some());
    let registry = &environment.registry.password;
    let all = addresses.chain(&database.password).chain(key).chain(token).chain(webhooks).chain(traces).chain(copies);
    let all = all.chain(registry);
    let marked = all.filter_map(|secret| {
        let given = ExternalSecret { source: secret.to_string(), version: String::new() };
        let value = given.read()?;
        Some((given.source.clone(), given.mark(environment.environment.as_str(), value.expose())))
    });
    marked.collect()
}

/// Refuses a server program without the commands that its units are started with: one from before `gateway` and `admin`.
pub(crate) fn knows_commands(program: &Program, scope: &Scope) -> Result<(), Failure> {
    if first_line(Utf8Path::new(&program.path), &["gateway", "--help"], FIRST_LINE_TIMEOUT).is_some() {
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
    for model in environment.models.iter().filter(|m| m.digest.is_none() && lock.holds(&m.id(), m.source())) {
        let name = model.id();
        if let (Some(locked), Some(found)) = (lock.models.get(&name), here.models.get(&name))
            && locked != found
        {
            let (source, locked, found) = (model.source(), short(locked), short(found));
            progress.line(&format!(
                "The release lock pins model {name} to {locked}; {source} has {found}. To use that: {set}"
            ));
        }
    }
    let sources = images(environment);
    for (site, said) in resolved_images(environment, here) {
        let source = sources.get(&site).map(String::as_str);
        if let Some(locked) = lock.image(&site, source).filter(|locked| **locked != said) {
            progress.line(&format!(
                "The release lock pins the image {locked} in {site}; the environment names {said}. To use that: {set}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::environment::{Catalogue, Library, Overrides};

    use super::*;

    #[test]
    fn changed_credentials_of_the_bucket_are_another_secret_in_a_cluster() {
        let kept = tempfile::tempdir().unwrap();
        let file = Utf8Path::from_path(kept.path()).unwrap().join("bucket.env");
        let mark = |name: &str, text: &str| {
            textnlp_files::Replace::private().write(&file, text.as_bytes()).unwrap();
            let sets = [
                "backup.enabled=true",
                "backup.destination=s3://b/p",
                &format!("backup.credentials=secret:file:{file}"),
            ];
            let overrides = Overrides { sets: sets.map(str::to_owned).to_vec(), ..Overrides::default() };
            let environment = Library::built_in().load(name, &overrides, &Catalogue::default()).unwrap().environment;
            given(&environment).remove(&format!("secret:file:{file}"))
        };
        assert!(mark("pilot", "a=1").is_some() && mark("pilot", "a=1") != mark("pilot", "a=2"));
        assert_eq!(mark("staging", "a=1"), None, "machines read the file themselves");
    }

    #[test]
    fn another_password_of_the_registry_is_a_change() {
        let kept = tempfile::tempdir().unwrap();
        let file = Utf8Path::from_path(kept.path()).unwrap().join("password");
        let mark = |text: &str| {
            textnlp_files::Replace::private().write(&file, text.as_bytes()).unwrap();
            let password = format!("registry.password=secret:file:{file}");
            let sets = ["registry.url=r.example.com", "registry.user=ci", &password];
            let overrides = Overrides { sets: sets.map(str::to_owned).to_vec(), ..Overrides::default() };
            let environment = Library::built_in().load("pilot", &overrides, &Catalogue::default()).unwrap().environment;
            given(&environment).remove(&format!("secret:file:{file}"))
        };
        assert!(mark("a").is_some() && mark("a") != mark("b"));
    }

    #[test]
    fn digests_for_a_plan_are_read_without_writing_to_the_model_cache() {
        let kept = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(kept.path()).unwrap();
        std::fs::create_dir(root.join("model")).unwrap();
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            std::fs::write(root.join("model").join(name), name).unwrap();
        }
        let source: Source = format!("file:{}", root.join("model")).parse().unwrap();
        let expected = local_digest(&source, &|_| ()).unwrap().map(|digest| digest.to_string());
        assert!(expected.is_some());
        let store = Store::open(root.join("cache")).unwrap();
        std::fs::create_dir(root.join("empty")).unwrap();
        std::fs::create_dir(root.join("home")).unwrap();
        std::fs::write(root.join("home/notes"), "").unwrap();
        for cache in [store.path(), &root.join("empty"), &root.join("home"), &root.join("missing")] {
            assert_eq!(digest_here(cache, &source, &|_| ()), expected, "{cache}");
        }
        let names = |folder: &str| root.join(folder).read_dir_utf8().unwrap().count();
        assert_eq!((names("cache/refs"), names("empty"), names("home")), (0, 0, 1));
        assert!(!root.join("missing").exists());
    }
}
