//! A selected environment with everything that a run needs: its release, its sites with their wanted resources, and its
//! state.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_models::{Catalogue, Event, Store as ModelStore, local_digest};
use textnlp_orchestrator::apply::Limits;
use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::environment::model::{Proxy, UrlSource};
use textnlp_orchestrator::environment::{self, Environment, SettingFiles, SiteOrWitness};
use textnlp_orchestrator::event::Events;
use textnlp_orchestrator::plan::Purpose;
pub use textnlp_orchestrator::release::short;
use textnlp_orchestrator::release::{Artifacts, History, Lock, Release, images, with_images};
use textnlp_orchestrator::run::{Run, RunError, RunSite};
use textnlp_orchestrator::state::{Locked, Operator, SiteLocation, State, Store};
use textnlp_provider::component::{ExternalSecret, Program};
use textnlp_provider::{EnvironmentName, Lineage, Problem, Problems, SiteName};
pub use textnlp_service::failure::{broken_lock, state_failed};
use textnlp_service::running;
use textnlp_service::{Scope, Subject};
use uuid::Uuid;

use crate::clouds;
use crate::progress::Progress;
use crate::report::{Console, Exit, Failure, size};
use crate::session::{ChosenEnvironment, Session};
use crate::stores;

/// An environment that is prepared for a run.
pub struct Deployment<'a> {
    /// The session of the command.
    pub session: &'a Session,
    /// The environment.
    pub chosen: ChosenEnvironment,
    /// Its sites. They have no wanted resources if only the state matters.
    pub sites: BTreeMap<SiteName, RunSite>,
    /// The sites that `--site` excludes.
    apart: BTreeSet<SiteName>,
    /// The resolved release, or `None` if only the state matters.
    pub release: Option<Release>,
    /// The path of the release lock.
    pub lock_path: Utf8PathBuf,
    /// The store of the state.
    pub store: Arc<dyn Store>,
}

impl<'a> Deployment<'a> {
    /// With all wanted resources, planned by the providers.
    pub async fn wanted(
        session: &'a Session,
        chosen: ChosenEnvironment,
        console: Console,
    ) -> Result<Deployment<'a>, Failure> {
        Self::lowered(session, chosen, true, console).await
    }

    /// The same without any access to accounts or clusters, which thus need not be reachable.
    pub async fn described(
        session: &'a Session,
        chosen: ChosenEnvironment,
        console: Console,
    ) -> Result<Deployment<'a>, Failure> {
        Self::lowered(session, chosen, false, console).await
    }

    async fn lowered(
        session: &'a Session,
        chosen: ChosenEnvironment,
        bound: bool,
        console: Console,
    ) -> Result<Deployment<'a>, Failure> {
        let lock_path = Lock::path(&session.lock_folder(&chosen), &chosen.name);
        let store = stores::of(session, &chosen)?;
        let release = resolve(session, &chosen, &lock_path, console).await?;
        let environment = &chosen.loaded.environment;
        let (mut sites, mut problems) = (BTreeMap::new(), Vec::new());
        let components = environment::components(environment, &release);
        let released = with_images(environment, &release.lock);
        for (SiteOrWitness { provider, .. }, (mut site, components)) in
            environment::places(environment).into_iter().zip(components)
        {
            if bound {
                site.account = account(environment, &site, &provider)?;
            }
            let mut here = run_site(session, &chosen.folder, &released, &site, &provider)?;
            for component in &components {
                match here.provider.lower(component, &site) {
                    Ok(wanted) => here.wanted.extend(wanted),
                    Err(Problems(found)) => problems.extend(found),
                }
            }
            sites.insert(site.name.clone(), here);
        }
        problems.extend(doubled(environment, &sites));
        if !problems.is_empty() {
            return Err(preflight_failure("environment check", "not_available", Exit::Usage, &problems));
        }
        let apart = BTreeSet::new();
        Deployment { session, chosen, sites, apart, release: Some(release), lock_path, store }.only_site()
    }

    /// Without wanted resources: for showing the state and for `down`.
    pub fn recorded(session: &'a Session, chosen: ChosenEnvironment) -> Result<Deployment<'a>, Failure> {
        let lock_path = Lock::path(&session.lock_folder(&chosen), &chosen.name);
        let store = stores::of(session, &chosen)?;
        let environment = &chosen.loaded.environment;
        let mut sites = BTreeMap::new();
        for SiteOrWitness { provider, mut site } in environment::places(environment) {
            site.account = account(environment, &site, &provider)?;
            sites.insert(site.name.clone(), run_site(session, &chosen.folder, environment, &site, &provider)?);
        }
        let apart = BTreeSet::new();
        Deployment { session, chosen, sites, apart, release: None, lock_path, store }.only_site()
    }

    fn only_site(mut self) -> Result<Self, Failure> {
        if let Some(only) = &self.session.global.site {
            let known: Vec<_> = self.sites.keys().map(ToString::to_string).collect();
            self.apart = self.sites.keys().filter(|name| name.as_str() != only).cloned().collect();
            self.sites.retain(|name, _| name.as_str() == only);
            if self.sites.is_empty() {
                let error = anyhow::anyhow!("environment {} has no site `{only}`", self.chosen.name);
                return Err(Failure::usage("no_such_site", error).hint(format!("its sites: {}", known.join(", "))));
            }
        }
        Ok(self)
    }

    /// The scope of the services.
    pub fn scope(&self) -> Scope {
        self.session.scope(&self.chosen)
    }

    /// What a gate measures. `scope` is that of this deployment.
    pub fn subject<'s>(&'s self, scope: &'s Scope) -> Subject<'s> {
        self.chosen.subject(scope, &self.lock_path)
    }

    /// The role of each site in disaster recovery.
    pub fn roles(&self) -> BTreeMap<SiteName, String> {
        let places = environment::places(&self.chosen.loaded.environment).into_iter();
        places.map(|place| (place.site.name, place.site.role)).collect()
    }

    /// The run of this deployment.
    pub fn road<'r>(&'r self, events: &'r dyn Events) -> Run<'r> {
        Run {
            environment: &self.chosen.name,
            store: self.store.clone(),
            sites: &self.sites,
            apart: &self.apart,
            fresh: Lineage(Uuid::new_v4()),
            operator: operator(self.session),
            clock: Arc::new(SystemClock),
            events,
            gates: None,
            limits: Limits::default(),
        }
    }

    /// The location that each of its sites is bound to.
    pub fn places(&self) -> BTreeMap<SiteName, SiteLocation> {
        self.sites.iter().map(|(name, site)| (name.clone(), site.place.clone())).collect()
    }

    /// Loads the state and locks it.
    pub async fn locked(&self, places: &BTreeMap<SiteName, SiteLocation>) -> Result<Locked, Failure> {
        let state = self.state().await?;
        let locked = state.lock(&operator(self.session), places, Arc::new(SystemClock)).await;
        locked.map_err(|e| state_failed(e, &self.session.again(), &self.chosen.name))
    }

    /// Loads the state without a lock.
    pub async fn state(&self) -> Result<State, Failure> {
        State::load(self.store.clone(), &self.chosen.name, Lineage(Uuid::new_v4()))
            .await
            .map_err(|e| state_failed(e, &self.session.again(), &self.chosen.name))
    }
}

/// Rejects two sites in one cluster, which would share a namespace. The API server identifies a cluster.
fn doubled(environment: &Environment, sites: &BTreeMap<SiteName, RunSite>) -> Vec<Problem> {
    let mut known: BTreeMap<&str, &SiteName> = BTreeMap::new();
    let clusters = environment.sites.iter().filter(|site| site.is_in_cluster());
    let bound = clusters.filter_map(|site| sites.get(&site.name).map(|here| (&site.name, here.place.account.as_str())));
    let bound = bound.filter(|(_, account)| !account.is_empty());
    let same = |(name, server)| {
        let other = known.insert(server, name)?;
        let cause = format!("its kubeconfig points to {server}, which is the cluster of site {other}");
        Some(Problem::new(format!("{name}: cluster"), cause, "set another `context` or another `kubeconfig`"))
    };
    bound.filter_map(same).collect()
}

fn account(environment: &Environment, site: &textnlp_provider::Site, provider: &str) -> Result<String, Failure> {
    clouds::account_of(environment, site, provider).map_err(|error| {
        // A missing file is reported before any request.
        let hint = error.downcast_ref::<textnlp_provider::Error>().and_then(|error| error.hint.clone());
        let failure = Failure::usage("no_way_in", error.context(format!("site {} cannot be reached", site.name)));
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })
}

fn run_site(
    session: &Session,
    folder: &Utf8Path,
    environment: &Environment,
    site: &textnlp_provider::Site,
    provider: &str,
) -> Result<RunSite, Failure> {
    let place = SiteLocation {
        provider: provider.to_owned(),
        account: site.account.clone(),
        region: site.region.clone(),
        runtime: site.runtime.clone(),
    };
    let secrets = clouds::secrets(folder);
    let provider = clouds::provider(provider, folder, secrets, environment, &site.name, &session.global.take_ownership)
        .map_err(|e| Failure::usage("not_available", e))?;
    Ok(RunSite { place, provider, protect_data: site.protect_data, wanted: Vec::new() })
}

/// Resolves the release: from the lock, or before the first lock from the local artifacts.
async fn resolve(
    session: &Session,
    chosen: &ChosenEnvironment,
    lock_path: &Utf8Path,
    console: Console,
) -> Result<Release, Failure> {
    let environment = &chosen.loaded.environment;
    let here = artifacts(session, environment, console)?;
    let Some(lock) = Lock::read(lock_path).map_err(|e| broken_lock(e, &session.scope(chosen)))? else {
        return Ok(Release::resolve(environment, &here));
    };
    // Pods run the program in their image.
    let program = match environment.runs_here() {
        true => here.program,
        false => Program { digest: lock.server.clone(), ..here.program },
    };
    let here = Artifacts { program, ..here };
    other_models(session, environment, &lock, &here, console);
    other_images(session, environment, &lock, console);
    match Release::locked(environment, &lock, &here) {
        Ok(release) => Ok(release),
        Err(difference) => {
            // The locked program may still be where the last `up` put it, or among the replaced ones.
            let kept = running::program(&session.scope(chosen)).await?.filter(|p| p.digest == lock.server);
            let kept = kept.or_else(|| History::at(&chosen.folder).program(&lock.server));
            let Some(program) = kept else {
                let error = anyhow::Error::new(*difference)
                    .context("the release lock names a server program that is not available here");
                return Err(Failure::refused("locked_program_missing", error).hint(format!(
                    "give it with --server FILE, or lock the local release: {}",
                    session.again().command("release set", &chosen.name)
                )));
            };
            knows_commands(&program, session, environment)?;
            console.say(format!(
                "The release lock pins server {}; the local server differs. To use the local one: {}",
                short(&lock.server),
                session.again().command("release set", &chosen.name)
            ));
            let kept = Artifacts { program, ..here };
            Ok(Release::locked(environment, &lock, &kept)?)
        }
    }
}

/// The local artifacts for a release.
pub fn artifacts(session: &Session, environment: &Environment, console: Console) -> Result<Artifacts, Failure> {
    let path = server_program(session, console)?;
    let digest = file_digest(&path)?;
    let program = Program { path: path.to_string(), digest };
    if session.global.server.is_some() && environment.runs_here() {
        knows_commands(&program, session, environment)?;
    }
    let cache = model_cache(session, environment)?;
    let models = environment.models.iter().filter_map(|m| {
        Some((m.name.clone(), m.digest.clone().or_else(|| local_digest_of(&cache, m.source(), console))?))
    });
    let models = models.collect();
    let here = Utf8PathBuf::try_from(std::env::current_dir().context("find the working directory")?)
        .context("the working directory is not UTF-8")?;
    // Templates belong to a release only if something is rendered from them. Local processes need none.
    Ok(Artifacts {
        program,
        models,
        templates: None,
        schema: None,
        given: given(environment),
        files: SettingFiles::read(environment, &here),
    })
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

/// Whether `up` can deliver a model with this digest: from the cache, from a source that has it, or by a download that
/// is verified.
pub fn model_can_come(
    session: &Session,
    environment: &Environment,
    source: &str,
    digest: &str,
    console: Console,
) -> Result<bool, Failure> {
    let cache = model_cache(session, environment)?;
    let cached =
        cache.is_dir().then(|| ModelStore::open(&cache).ok()?.open_model(&digest.parse().ok()?).ok()?).flatten();
    Ok(cached.is_some() || local_digest_of(&cache, source, console).is_none_or(|found| found == digest))
}

fn model_cache(session: &Session, environment: &Environment) -> Result<Utf8PathBuf, Failure> {
    match clouds::model_folder(environment)? {
        Some(folder) => Ok(folder),
        None => session.model_cache(),
    }
}

/// The current digest of an embedded or local model. Others are known only after the download. The preflight reports
/// unreadable models.
fn local_digest_of(cache: &Utf8Path, source: &str, console: Console) -> Option<String> {
    let source = match Catalogue::embedded().get(source) {
        Some(entry) => entry.source.clone(),
        None => source.parse().ok()?,
    };
    // The cache remembers digests. A read-only command must not create it.
    let store = cache.is_dir().then(|| ModelStore::open(cache).ok()).flatten();
    let reading = ReadProgress { console, progress: OnceLock::new() };
    let tell = |event| reading.tell(event);
    let remembered = store.and_then(|store| store.local_digest(&source, &tell).ok());
    remembered.or_else(|| local_digest(&source, &tell).ok()).flatten().map(|digest| digest.to_string())
}

/// Shows the progress of reading a large file.
struct ReadProgress {
    console: Console,
    /// Created only for a large file.
    progress: OnceLock<Progress>,
}

impl ReadProgress {
    fn tell(&self, event: Event) {
        const LARGE: u64 = 100_000_000;
        if let Event::File { name, done, total: Some(total) } = event
            && total >= LARGE
        {
            let progress = self.progress.get_or_init(|| Progress::new(self.console));
            progress.doing(&format!("reading {name}: {} of {}", size(done), size(total)));
        }
    }
}

/// Reports models that the lock pins to other digests than the local ones.
fn other_models(session: &Session, environment: &Environment, lock: &Lock, here: &Artifacts, console: Console) {
    for model in environment.models.iter().filter(|m| m.digest.is_none() && lock.holds(&m.name, m.source())) {
        if let (Some(locked), Some(found)) = (lock.models.get(&model.name), here.models.get(&model.name))
            && locked != found
        {
            console.say(format!(
                "The release lock pins model {} to {}; {} has {}. To use that: {}",
                model.name,
                short(locked),
                model.source(),
                short(found),
                session.again().command("release set", &environment.environment)
            ));
        }
    }
}

/// Reports images that the lock pins although the environment names others.
fn other_images(session: &Session, environment: &Environment, lock: &Lock, console: Console) {
    for (site, said) in images(environment) {
        if let Some(locked) = lock.image(&site, Some(&said)).filter(|locked| **locked != said) {
            console.say(format!(
                "The release lock pins the image {locked} in {site}; the environment names {said}. To use that: {}",
                session.again().command("release set", &environment.environment)
            ));
        }
    }
}

/// The server artifact: `--server`, else `textnlp-server` beside this program if its version is the same, else this
/// program.
fn server_program(session: &Session, console: Console) -> Result<Utf8PathBuf, Failure> {
    if let Some(path) = &session.global.server {
        let path = session.here.join(path);
        if !path.is_file() {
            return Err(Failure::usage("no_such_file", anyhow::anyhow!("--server {path} is not a file"))
                .hint("omit it to use this program as the server"));
        }
        return Ok(path);
    }
    let this =
        Utf8PathBuf::try_from(std::env::current_exe().context("find this program")?).context("find this program")?;
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
            console.warn(format!(
                "{beside} is {version}, not {wanted}: using this program as the server (or give --server FILE)"
            ));
            Ok(this)
        }
    }
}

/// Refuses a server program without the commands that its units are started with: one from before `gateway` and `admin`.
fn knows_commands(program: &Program, session: &Session, environment: &Environment) -> Result<(), Failure> {
    if first_line(Utf8Path::new(&program.path), &["gateway", "--help"]).is_some() {
        return Ok(());
    }
    let error = anyhow::anyhow!("{} does not run as `gateway`: it is too old or not a server program", program.path)
        .context(format!("server {} cannot be deployed by this version", short(&program.digest)));
    Err(Failure::refused("server_not_compatible", error).hint(format!(
        "lock the local release, without --server FILE: {}",
        session.again().command("release set", &environment.environment)
    )))
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

/// The digest of a file, `sha256:…`.
pub fn file_digest(path: &Utf8Path) -> anyhow::Result<String> {
    let digest = textnlp_files::sha256(path).with_context(|| format!("read {path}"))?;
    Ok(format!("sha256:{}", digest.hex()))
}

/// The name of the account that runs this program.
pub fn operating_account() -> String {
    let by =
        ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
    by.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

/// The operator, for the journal.
pub fn operator(session: &Session) -> Operator {
    Operator {
        by: operating_account(),
        reason: session.global.reason.clone(),
        tool: concat!("textnlp-deploy ", env!("CARGO_PKG_VERSION")).to_owned(),
        host: clouds::host_name(),
        pid: std::process::id(),
    }
}

/// Converts an error of a run.
pub fn run_failed(error: RunError, purpose: Purpose, session: &Session, environment: &EnvironmentName) -> Failure {
    let plan =
        |purpose| session.again().same(if purpose == Purpose::Down { "plan --down" } else { "plan" }, environment);
    match error {
        RunError::Preflight(Problems(problems)) => preflight_failure("preflight", "preflight", Exit::Failed, &problems),
        RunError::Wanted(Problems(problems)) => preflight_failure("plan", "plan", Exit::Failed, &problems),
        RunError::Refused(refused) => match refused {
            textnlp_orchestrator::plan::PlanRefusal::Undecided(Problems(problems)) => {
                preflight_failure("approval", "refused", Exit::Refused, &problems)
            }
            no @ textnlp_orchestrator::plan::PlanRefusal::NoConsent => Failure::refused("not_approved", no)
                .hint(format!("review it with `{}`, approve it with --yes", plan(purpose))),
        },
        RunError::Frozen(hold) => {
            let release = session.again().command("hold --release", environment);
            let document = serde_json::json!({ "hold": hold });
            Failure::refused("frozen", RunError::Frozen(hold))
                .hint(format!("contact that operator; to allow changes again: {release}"))
                .document(document)
        }
        RunError::State(error) => state_failed(error, &session.again(), environment),
        stale @ (RunError::Stale { .. } | RunError::OtherPlanner) => Failure::refused("stale_plan", stale)
            .hint(format!("nothing was changed; plan again: {} --out FILE", plan(purpose))),
        other => Failure::new(Exit::Failed, "road", other),
    }
}

/// One failure with all problems, their locations and causes. The fixes are the hint.
pub fn preflight_failure(action: &str, code: &'static str, exit: Exit, problems: &[Problem]) -> Failure {
    let lines: Vec<String> = problems.iter().map(|p| format!("{}: {}", p.place, p.cause)).collect();
    let mut fixes: Vec<&str> = Vec::new();
    for problem in problems {
        if !fixes.contains(&problem.fix.as_str()) {
            fixes.push(&problem.fix);
        }
    }
    let many = if problems.len() == 1 { "1 problem".to_owned() } else { format!("{} problems", problems.len()) };
    Failure::new(exit, code, anyhow::anyhow!("{}", lines.join("\n")).context(format!("{action} failed: {many}")))
        .hint(fixes.join("\n"))
        .document(serde_json::json!({ "problems": crate::plan_view::problems(problems) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_program_is_asked_for_its_version_and_not_for_ever() {
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
