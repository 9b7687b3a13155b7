//! From a chosen environment to everything that the road needs: its release, its sites with what is wanted there, its state.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest, Sha256};
use textnlp_models::{Catalogue, Event, Store as ModelStore, local_digest};
use textnlp_orchestrator::apply::Limits;
use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::environment::model::Address;
use textnlp_orchestrator::environment::{self, Environment, PlaceOf};
use textnlp_orchestrator::event::Events;
use textnlp_orchestrator::plan::Purpose;
pub use textnlp_orchestrator::release::short;
use textnlp_orchestrator::release::{Artifacts, History, Lock, Release, images, with_images};
use textnlp_orchestrator::road::{Road, RoadError, RoadSite};
use textnlp_orchestrator::state::{Locked, Operator, Place, State, StateError, Store};
use textnlp_provider::component::{Given, Program};
use textnlp_provider::{EnvironmentName, Lineage, Problem, Problems, SiteName};
use uuid::Uuid;

use crate::again::Again;
use crate::clouds;
use crate::commands::running;
use crate::progress::Progress;
use crate::report::{Console, Exit, Failure, size};
use crate::session::{Chosen, Session};
use crate::stores;

/// An environment on its way to run.
pub struct Deployment<'a> {
    /// The session it was asked for in.
    pub session: &'a Session,
    /// The environment.
    pub chosen: Chosen,
    /// Its sites; nothing is wanted there when only what is recorded matters.
    pub sites: BTreeMap<SiteName, RoadSite>,
    /// Those that `--site` leaves alone.
    apart: BTreeSet<SiteName>,
    /// Which bytes run; `None` when only what is recorded matters.
    pub release: Option<Release>,
    /// Where the release lock is.
    pub lock_path: Utf8PathBuf,
    /// Where the state is.
    pub store: Arc<dyn Store>,
}

impl<'a> Deployment<'a> {
    /// With everything that is wanted, lowered by the providers.
    pub async fn wanted(session: &'a Session, chosen: Chosen, console: Console) -> Result<Deployment<'a>, Failure> {
        Self::lowered(session, chosen, true, console).await
    }

    /// The same where nothing is asked of the places and nothing is done there: nobody has to be able to reach them.
    pub async fn described(session: &'a Session, chosen: Chosen, console: Console) -> Result<Deployment<'a>, Failure> {
        Self::lowered(session, chosen, false, console).await
    }

    async fn lowered(
        session: &'a Session,
        chosen: Chosen,
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
        for (PlaceOf { provider, .. }, (mut site, components)) in
            environment::places(environment).into_iter().zip(components)
        {
            if bound {
                site.account = account(environment, &site, &provider)?;
            }
            let mut here = road_site(session, &chosen.folder, &released, &site, &provider)?;
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
            return Err(stands_in_the_way("lower", "not_available", Exit::Usage, &problems));
        }
        let apart = BTreeSet::new();
        Deployment { session, chosen, sites, apart, release: Some(release), lock_path, store }.only_site()
    }

    /// With nothing wanted: for looking at what is recorded and for taking it down.
    pub fn recorded(session: &'a Session, chosen: Chosen) -> Result<Deployment<'a>, Failure> {
        let lock_path = Lock::path(&session.lock_folder(&chosen), &chosen.name);
        let store = stores::of(session, &chosen)?;
        let environment = &chosen.loaded.environment;
        let mut sites = BTreeMap::new();
        for PlaceOf { provider, mut site } in environment::places(environment) {
            site.account = account(environment, &site, &provider)?;
            sites.insert(site.name.clone(), road_site(session, &chosen.folder, environment, &site, &provider)?);
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

    /// The part of each of its places in disaster recovery.
    pub fn roles(&self) -> BTreeMap<SiteName, String> {
        let places = environment::places(&self.chosen.loaded.environment).into_iter();
        places.map(|place| (place.site.name, place.site.role)).collect()
    }

    /// The road of this deployment.
    pub fn road<'r>(&'r self, events: &'r dyn Events) -> Road<'r> {
        Road {
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

    /// What each of its sites is bound to.
    pub fn places(&self) -> BTreeMap<SiteName, Place> {
        self.sites.iter().map(|(name, site)| (name.clone(), site.place.clone())).collect()
    }

    /// The state, under its lock.
    pub async fn locked(&self, places: &BTreeMap<SiteName, Place>) -> Result<Locked, Failure> {
        let state = self.state().await?;
        let locked = state.lock(&operator(self.session), places, Arc::new(SystemClock)).await;
        locked.map_err(|e| state_failed(e, &self.session.again(), &self.chosen.name))
    }

    /// The state, read without a lock.
    pub async fn state(&self) -> Result<State, Failure> {
        State::load(self.store.clone(), &self.chosen.name, Lineage(Uuid::new_v4()))
            .await
            .map_err(|e| state_failed(e, &self.session.again(), &self.chosen.name))
    }
}

/// Sites in one cluster would have one namespace: a cluster is known by its API server, whatever leads there.
fn doubled(environment: &Environment, sites: &BTreeMap<SiteName, RoadSite>) -> Vec<Problem> {
    let mut known: BTreeMap<&str, &SiteName> = BTreeMap::new();
    let clusters = environment.sites.iter().filter(|site| site.is_in_cluster());
    let bound = clusters.filter_map(|site| sites.get(&site.name).map(|here| (&site.name, here.place.account.as_str())));
    let bound = bound.filter(|(_, account)| !account.is_empty());
    let same = |(name, server)| {
        let other = known.insert(server, name)?;
        let cause = format!("its kubeconfig leads to {server}, where site {other} is");
        Some(Problem::new(format!("{name}: cluster"), cause, "write another `context`, or another `kubeconfig`"))
    };
    bound.filter_map(same).collect()
}

fn account(environment: &Environment, site: &textnlp_provider::Site, provider: &str) -> Result<String, Failure> {
    clouds::account_of(environment, site, provider).map_err(|error| {
        // What cannot be reached for want of a file is said before anything is asked.
        let hint = error.downcast_ref::<textnlp_provider::Error>().and_then(|error| error.hint.clone());
        let failure = Failure::usage("no_way_in", error.context(format!("site {} cannot be reached", site.name)));
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })
}

fn road_site(
    session: &Session,
    folder: &Utf8Path,
    environment: &Environment,
    site: &textnlp_provider::Site,
    provider: &str,
) -> Result<RoadSite, Failure> {
    let place = Place {
        provider: provider.to_owned(),
        account: site.account.clone(),
        region: site.region.clone(),
        runtime: site.runtime.clone(),
    };
    let secrets = clouds::secrets(folder);
    let provider = clouds::provider(provider, folder, secrets, environment, &site.name, &session.global.take_ownership)
        .map_err(|e| Failure::usage("not_available", e))?;
    Ok(RoadSite { place, provider, protect_data: site.protect_data, wanted: Vec::new() })
}

/// Which bytes run: what the lock says, or, before the first lock, what is at hand.
async fn resolve(
    session: &Session,
    chosen: &Chosen,
    lock_path: &Utf8Path,
    console: Console,
) -> Result<Release, Failure> {
    let environment = &chosen.loaded.environment;
    let here = artifacts(session, environment, console)?;
    let Some(lock) = Lock::read(lock_path).map_err(|e| broken_lock(e, session, &chosen.name))? else {
        return Ok(Release::resolve(environment, &here));
    };
    // Pods run the program of their image.
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
            // The locked program may still be where the last `up` put it, or was kept when it was replaced.
            let kept =
                running::program(session, &chosen.name, &chosen.folder).await?.filter(|p| p.digest == lock.server);
            let kept = kept.or_else(|| History::at(&chosen.folder).program(&lock.server));
            let Some(program) = kept else {
                let error =
                    anyhow::Error::new(*difference).context("the release lock names a server program that is not here");
                return Err(Failure::refused("locked_program_missing", error).hint(format!(
                    "give it with --server FILE, or release what is here: {}",
                    session.again().command("release set", &chosen.name)
                )));
            };
            console.say(format!(
                "The release lock keeps server {}; another one is here. To roll to it: {}",
                short(&lock.server),
                session.again().command("release set", &chosen.name)
            ));
            let kept = Artifacts { program, ..here };
            Ok(Release::locked(environment, &lock, &kept)?)
        }
    }
}

/// What is at hand to be released.
pub fn artifacts(session: &Session, environment: &Environment, console: Console) -> Result<Artifacts, Failure> {
    let path = server_program(session, console)?;
    let digest = file_digest(&path)?;
    let cache = model_cache(session, environment)?;
    let models = environment
        .models
        .iter()
        .filter_map(|m| Some((m.name.clone(), m.digest.clone().or_else(|| at_hand(&cache, m.source(), console))?)));
    let models = models.collect();
    // Templates are of a release only where something is rendered from them, which local processes are not.
    Ok(Artifacts {
        program: Program { path: path.to_string(), digest },
        models,
        templates: None,
        schema: None,
        given: given(environment),
    })
}

/// A mark of each secret that a person keeps, by its reference. What is not there was refused before anything runs; what only looks at
/// the record needs none of them.
fn given(environment: &Environment) -> BTreeMap<String, String> {
    let database = &environment.database;
    let addresses = database.url.iter().chain(environment.monitoring.receivers.values());
    let addresses = addresses.filter_map(|address| match address {
        Address::Secret(secret) => Some(secret),
        Address::Url(_) => None,
    });
    let key = environment.dns.as_ref().map(|dns| &dns.key.secret);
    let token = environment.rollout.prometheus.as_ref().and_then(|prometheus| prometheus.token.as_ref());
    let marked = addresses.chain(&database.password).chain(key).chain(token).filter_map(|secret| {
        let given = Given { source: secret.to_string(), version: String::new() };
        let value = given.read()?;
        Some((given.source.clone(), given.mark(environment.environment.as_str(), value.expose())))
    });
    marked.collect()
}

/// Whether `up` can deliver a model by its digest: the cache has it, its source holds it, or it is fetched and proven by its digest.
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
    Ok(cached.is_some() || at_hand(&cache, source, console).is_none_or(|found| found == digest))
}

fn model_cache(session: &Session, environment: &Environment) -> Result<Utf8PathBuf, Failure> {
    match clouds::model_folder(environment)? {
        Some(folder) => Ok(folder),
        None => session.model_cache(),
    }
}

/// The digest of a model that this program carries or that lies on this machine, as it is now; of others it is known once they
/// are fetched. What cannot be read is for the preflight to name.
fn at_hand(cache: &Utf8Path, source: &str, console: Console) -> Option<String> {
    let source = match Catalogue::embedded().get(source) {
        Some(entry) => entry.source.clone(),
        None => source.parse().ok()?,
    };
    // The cache remembers what it read; looking makes none.
    let store = cache.is_dir().then(|| ModelStore::open(cache).ok()).flatten();
    let reading = Reading { console, progress: OnceLock::new() };
    let tell = |event| reading.tell(event);
    let remembered = store.and_then(|store| store.local_digest(&source, &tell).ok());
    remembered.or_else(|| local_digest(&source, &tell).ok()).flatten().map(|digest| digest.to_string())
}

/// Tells how far a large file was read.
struct Reading {
    console: Console,
    /// Only a large file is worth a line.
    progress: OnceLock<Progress>,
}

impl Reading {
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

/// Says which models the lock keeps although others are at hand.
fn other_models(session: &Session, environment: &Environment, lock: &Lock, here: &Artifacts, console: Console) {
    for model in environment.models.iter().filter(|m| m.digest.is_none() && lock.holds(&m.name, m.source())) {
        if let (Some(locked), Some(found)) = (lock.models.get(&model.name), here.models.get(&model.name))
            && locked != found
        {
            console.say(format!(
                "The release lock keeps model {} as {}; {} holds {}. To deliver that: {}",
                model.name,
                short(locked),
                model.source(),
                short(found),
                session.again().command("release set", &environment.environment)
            ));
        }
    }
}

/// Says which images the lock keeps although the environment names others.
fn other_images(session: &Session, environment: &Environment, lock: &Lock, console: Console) {
    for (site, said) in images(environment) {
        if let Some(locked) = lock.image(&site, Some(&said)).filter(|locked| **locked != said) {
            console.say(format!(
                "The release lock keeps the image {locked} in {site}; the environment names {said}. To roll to that: {}",
                session.again().command("release set", &environment.environment)
            ));
        }
    }
}

/// The server artifact: `--server`, else `textnlp-server` beside this program if it is of the same version, else this program.
fn server_program(session: &Session, console: Console) -> Result<Utf8PathBuf, Failure> {
    if let Some(path) = &session.global.server {
        let path = session.here.join(path);
        if !path.is_file() {
            return Err(Failure::usage("no_such_file", anyhow::anyhow!("--server {path} is not a file"))
                .hint("leave it out to serve with this program itself"));
        }
        return Ok(path);
    }
    let this =
        Utf8PathBuf::try_from(std::env::current_exe().context("find this program")?).context("find this program")?;
    let beside = this.with_file_name("textnlp-server");
    // In a build folder the one beside may be of another day: cargo builds only what was asked for.
    let is_build_folder = this.with_file_name("deps").is_dir();
    if !beside.is_file() || is_build_folder {
        return Ok(this);
    }
    let wanted = concat!("textnlp-server ", env!("CARGO_PKG_VERSION"));
    match version_of(&beside) {
        Some(version) if version == wanted => Ok(beside),
        version => {
            let version = version.unwrap_or_else(|| "a program that does not tell its version".to_owned());
            console.warn(format!(
                "{beside} is {version}, not {wanted}: this program serves itself (or give --server FILE)"
            ));
            Ok(this)
        }
    }
}

/// What a program says of its version; `None` when it says nothing within a moment.
fn version_of(program: &Utf8Path) -> Option<String> {
    const PATIENCE: Duration = Duration::from_secs(2);
    const LONGEST: u64 = 200;
    let mut child = Command::new(program)
        .arg("--version")
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
            Ok(None) if began.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(1)),
            _ => {
                // It is gone already, or it goes now; what it says does not matter any more.
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
    let mut file = std::fs::File::open(path).with_context(|| format!("read {path}"))?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut buffer).with_context(|| format!("read {path}"))?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
    }
    Ok(format!("sha256:{}", hex::encode(hash.finalize())))
}

/// Who does this, for the journal.
pub fn operator(session: &Session) -> Operator {
    let by =
        ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
    Operator {
        by: by.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw())),
        reason: session.global.reason.clone(),
        tool: concat!("textnlp-deploy ", env!("CARGO_PKG_VERSION")).to_owned(),
        host: clouds::host_name(),
        pid: std::process::id(),
    }
}

/// Errors of the road, for people and programs.
pub fn road_failed(error: RoadError, session: &Session, environment: &EnvironmentName) -> Failure {
    match error {
        RoadError::Preflight(Problems(problems)) => {
            stands_in_the_way("preflight", "preflight", Exit::Failed, &problems)
        }
        RoadError::Wanted(Problems(problems)) => stands_in_the_way("plan", "plan", Exit::Failed, &problems),
        RoadError::Refused(refused) => match refused {
            textnlp_orchestrator::plan::Refused::Undecided(Problems(problems)) => {
                stands_in_the_way("approve the plan", "refused", Exit::Refused, &problems)
            }
            no @ textnlp_orchestrator::plan::Refused::NoConsent => Failure::refused("not_approved", no)
                .hint(format!("look at it with `{}`, agree with --yes", session.again().same("plan", environment))),
        },
        RoadError::Frozen(hold) => {
            let release = session.again().command("hold --release", environment);
            let document = serde_json::json!({ "hold": hold });
            Failure::refused("frozen", RoadError::Frozen(hold))
                .hint(format!("ask that person; to let it be changed again: {release}"))
                .document(document)
        }
        RoadError::State(error) => state_failed(error, &session.again(), environment),
        stale @ (RoadError::Stale { .. } | RoadError::OtherPlanner) => {
            let is_down = matches!(stale, RoadError::Stale { purpose: Purpose::Down, .. });
            let again = session.again().same(if is_down { "plan --down" } else { "plan" }, environment);
            Failure::refused("stale_plan", stale)
                .hint(format!("nothing of it was done; plan again: {again} --out FILE"))
        }
        other => Failure::new(Exit::Failed, "road", other),
    }
}

/// Errors of the state, for people and programs.
pub fn state_failed(error: StateError, again: &Again, environment: &EnvironmentName) -> Failure {
    let (exit, code, hint) = match &error {
        StateError::Held { .. } => (
            Exit::Refused,
            "locked",
            format!(
                "it lets go when it ends, also when it is killed; meanwhile look: {}",
                again.command("status", environment)
            ),
        ),
        StateError::OtherPlace { .. } => (
            Exit::Refused,
            "other_deployment",
            "put `sites` back as it was, or keep another state for the other place with --state-dir DIR".to_owned(),
        ),
        StateError::OtherLineage { .. } | StateError::OtherEnvironment { .. } => (
            Exit::Refused,
            "other_deployment",
            "this folder was copied or mixed up: bring back the right one, or choose another with --state-dir DIR"
                .to_owned(),
        ),
        StateError::Damaged { .. } | StateError::DamagedBody { .. } | StateError::Unreadable { .. } => (
            Exit::Failed,
            "damaged_state",
            format!(
                "nothing was changed, and what runs goes on: see what can be mended with `{}`, else bring the state folder back from a copy",
                again.command("state repair", environment)
            ),
        ),
        StateError::LeaseLost { .. } => (
            Exit::Failed,
            "lease_lost",
            format!("nothing was called after that; what goes on: {}", again.command("status", environment)),
        ),
        StateError::Moved { .. } => (Exit::Refused, "state_elsewhere", error.hint().unwrap_or_default()),
        StateError::Object { .. } | StateError::Unconditional { .. } | StateError::Sealed { .. } => {
            (Exit::Failed, "state_store", error.hint().unwrap_or_default())
        }
        StateError::Io(_) => (
            Exit::Failed,
            "state",
            "state needs a folder that can be read and written: mend this one, or choose another with --state-dir DIR"
                .to_owned(),
        ),
        _ => return Failure::new(Exit::Failed, "state", error),
    };
    Failure::new(exit, code, error).hint(hint)
}

/// A release lock that cannot be read.
pub fn broken_lock(error: impl Into<anyhow::Error>, session: &Session, environment: &EnvironmentName) -> Failure {
    let set = session.again().command("release set", environment);
    Failure::usage("broken_lock", error).hint(format!("mend it, or remove it and release what is here: {set}"))
}

/// One failure that names every problem with its place and cause; the fixes are the hint.
pub fn stands_in_the_way(action: &str, code: &'static str, exit: Exit, problems: &[Problem]) -> Failure {
    let lines: Vec<String> = problems.iter().map(|p| format!("{}: {}", p.place, p.cause)).collect();
    let mut fixes: Vec<&str> = Vec::new();
    for problem in problems {
        if !fixes.contains(&problem.fix.as_str()) {
            fixes.push(&problem.fix);
        }
    }
    let many =
        if problems.len() == 1 { "one thing stands".to_owned() } else { format!("{} things stand", problems.len()) };
    Failure::new(exit, code, anyhow::anyhow!("{}", lines.join("\n")).context(format!("{action}: {many} in the way")))
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
            // Written under another name first: a file that is still open for writing cannot be started.
            let beside = program.with_extension("new");
            std::fs::write(&beside, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::rename(&beside, &program).unwrap();
            version_of(&program)
        };
        assert_eq!(said("echo textnlp-server 9.9.9; echo more").as_deref(), Some("textnlp-server 9.9.9"));
        assert_eq!(said("echo textnlp-server 9.9.9; exit 1"), None);
        assert_eq!(said("exit 0"), None);
        assert_eq!(said("exec sleep 1000"), None);
        assert_eq!(version_of(Utf8Path::new("/nowhere/program")), None);
    }
}
