//! A clone of an environment for a drill: the same programs, models and data, with its own folders, ports and lineage.
//! It exists for one drill. After a killed drill its programs exit on their own, and the next drill removes it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use camino::{Utf8Path, Utf8PathBuf};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use textnlp_orchestrator::backup::Content;
use textnlp_orchestrator::dr::control_status::ControlStatus;
use textnlp_orchestrator::release::Lock;
use textnlp_orchestrator::run::RunOptions;
use textnlp_orchestrator::state::LineageFile;
use textnlp_provider::{Lineage, SiteName};
use textnlp_service::Platform;
use textnlp_service::backup::{self, BackupContent};
use textnlp_service::running::RunningEnvironment;
use textnlp_service::workplace;
use uuid::Uuid;

use super::Sites;
use crate::args::{Down, Global};
use crate::clouds::{self, Linked};
use crate::commands::{down, up};
use crate::deployment::{Deployment, operator};
use crate::report::{Console, Failure};
use crate::session::Session;

/// Prefix of a clone's folder, beside the states of the environments. Environments cannot have such a name.
const FOLDER: &str = ".drill-clone-";
/// Timeout for new sites to be in sync.
const SYNC_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Grace period for another run that holds the state lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
/// Lifetime of a clone's programs, even if the drill was killed. It covers the longest drill and its setup.
const LASTS: SignedDuration = SignedDuration::from_mins(20);

/// A clone of an environment.
pub(super) struct ClonedEnvironment {
    /// A session for commands on the clone.
    pub(super) session: Session,
    root: Utf8PathBuf,
    name: String,
}

impl ClonedEnvironment {
    /// Creates a clone and waits until its sites are in sync. Removes it if that fails.
    pub(super) async fn make(session: &Session, sites: &Sites, running: &RunningEnvironment) -> Result<Self, Failure> {
        let parent = session.state_root()?;
        remove_left(&parent, session).await?;
        let root = parent.join(format!("{FOLDER}{}-{}", std::process::id(), &Uuid::new_v4().simple().to_string()[..8]));
        let name = sites.chosen.name.to_string();
        let session = Session::alone(global(session, &root, running))?;
        let clone = Self { session, root, name };
        match clone.fill(sites).await {
            Ok(()) => Ok(clone),
            Err(failure) => {
                let left = clone.remove().await;
                let mut error = failure.error.context("clone the environment");
                if !left.is_empty() {
                    error = error.context(left.join("; "));
                }
                Err(Failure { error, ..failure })
            }
        }
    }

    async fn fill(&self, sites: &Sites) -> Result<(), Failure> {
        let chosen = &sites.chosen;
        if chosen.loaded.environment.state.store != "local" {
            let error = anyhow::anyhow!(
                "the state is in {}, and a clone would write to the same store",
                chosen.loaded.environment.state.store
            );
            return Err(Failure::refused("not_available", error).hint(format!(
                "run the drill on the live service: --live {}, or `dr: {{ drill: live }}` in the environment",
                chosen.name
            )));
        }
        let state = self.root.join(&self.name);
        private(&state)?;
        let until = Timestamp::now() + LASTS;
        let expires = state.join(clouds::EXPIRES);
        std::fs::write(&expires, until.to_string()).with_context(|| format!("write {expires}"))?;
        // The clone shares the model cache, which never changes existing models. Their sources may be unavailable.
        let cache = chosen.folder.parent().unwrap_or(&chosen.folder).join("model-cache");
        for site in &chosen.loaded.environment.sites {
            let site =
                Linked.site_copy(&chosen.folder, &site.name).with_context(|| format!("check site {}", site.name))?;
            for model in site.models.iter().filter(|model| model.folder.is_dir()) {
                backup::into_cache(&cache, &model.name, &model.folder, model.digest.as_deref()).await?;
            }
        }
        let link = self.root.join("model-cache");
        std::os::unix::fs::symlink(&cache, &link).with_context(|| format!("link {link}"))?;
        let lock = chosen.folder.join(format!("{}.lock", self.name));
        if let Some(lock) = [sites.lock_path.clone(), lock].into_iter().find(|path| path.is_file()) {
            let to = Lock::path(&state, &chosen.name);
            std::fs::copy(&lock, &to).with_context(|| format!("copy {lock}"))?;
        }
        self.restore(sites, &state).await?;
        let file = environment_file(&self.root);
        let text = written(&chosen.loaded.to_yaml(false))?;
        std::fs::write(&file, text).with_context(|| format!("write {file}"))?;
        let deployment = Deployment::wanted(&self.session, self.session.load_to_run(quiet())?, quiet()).await?;
        let arrival = up::go(&deployment, RunOptions::UP, None, None, quiet()).await?;
        if !arrival.is_complete() {
            return Err(up::incomplete(&arrival, "up", &self.session, &chosen.name));
        }
        self.until_in_sync().await
    }

    /// Creates a new lineage, with current copies of the running sites' databases.
    async fn restore(&self, sites: &Sites, state: &Utf8Path) -> Result<(), Failure> {
        let (chosen, lineage) = (&sites.chosen, Lineage(Uuid::new_v4()));
        let by = operator(&self.session);
        let gathered = backup::gather(&sites.scope(), false, &by, LOCK_TIMEOUT).await?;
        let BackupContent { manifest, items, .. } = &gathered;
        let (environment, sites) = (chosen.name.clone(), BTreeMap::new());
        let file = LineageFile { format: 1, lineage, environment, sites, moved: None };
        let path = state.join("lineage.json");
        let text = serde_json::to_vec_pretty(&file).context("write the lineage")?;
        std::fs::write(&path, text).with_context(|| format!("write {path}"))?;
        for (site, database) in &manifest.databases {
            let dump = items.iter().find(|item| item.path == database.member);
            let Some(Content::File(dump)) = dump.map(|item| &item.content) else { continue };
            if Utf8Path::new(&database.path).extension() == Some("dump") {
                // The clone's server loads this dump on creation, as after a restore. The other sites replicate from
                // it.
                let to = state.join(&database.path);
                to.parent().map_or(Ok(()), private)?;
                std::fs::copy(dump, &to).with_context(|| format!("write {to}"))?;
                continue;
            }
            clouds::seed(&chosen.folder, state, site, lineage, dump)
                .with_context(|| format!("copy the data of site {site} into the clone"))?;
        }
        Ok(())
    }

    async fn until_in_sync(&self) -> Result<(), Failure> {
        let sites = Sites::of(&self.session)?;
        let began = Instant::now();
        loop {
            let control_status = ControlStatus::take(&sites.control_clients).await;
            let away: Vec<String> = control_status
                .lines(sites.max_lag_ms)
                .into_iter()
                .filter(|line| !line.in_sync)
                .map(|line| line.site)
                .collect();
            if away.is_empty() && control_status.witness.is_ok() {
                return Ok(());
            }
            if began.elapsed() > SYNC_TIMEOUT {
                let error =
                    anyhow::anyhow!("{} did not reach sync within {} s", away.join(", "), SYNC_TIMEOUT.as_secs());
                return Err(error.into());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Deletes the clone with its data. Returns what could not be removed.
    pub(super) async fn remove(&self) -> Vec<String> {
        take_away(&self.session, &self.root, &self.name).await
    }
}

/// The clones of killed drills in the folder of the states.
pub(super) fn left(parent: &Utf8Path) -> Vec<Utf8PathBuf> {
    workplace::left(parent, FOLDER)
}

/// Removes the clones of killed drills.
async fn remove_left(parent: &Utf8Path, session: &Session) -> Result<(), Failure> {
    for root in left(parent) {
        let names = root.read_dir_utf8().into_iter().flatten().flatten();
        let state =
            names.filter(|entry| entry.path().join(clouds::EXPIRES).is_file()).map(|e| e.file_name().to_owned());
        let mut left = Vec::new();
        for name in state.collect::<Vec<_>>() {
            let global = Global { file: Some(environment_file(&root)), ..global_of(session, &root) };
            left.extend(take_away(&Session::alone(global)?, &root, &name).await);
        }
        let _ = std::fs::remove_dir_all(&root);
        if root.exists() || !left.is_empty() {
            let error = anyhow::anyhow!("the clone of an earlier drill cannot be removed: {}", left.join("; "));
            return Err(Failure::refused("clone_left", error).hint(format!("stop its processes, then remove {root}")));
        }
    }
    Ok(())
}

async fn take_away(session: &Session, root: &Utf8Path, name: &str) -> Vec<String> {
    let mut left = Vec::new();
    let state = root.join(name);
    // Without a journal, no site was created.
    if state.join("journal").is_dir() {
        let args = Down { delete_data: Some(name.to_owned()) };
        if let Err(failure) = down::down(session, &args, quiet()).await {
            left.push(format!("the clone in {root}: {:#}", failure.error));
        }
    }
    for site in state.join("sites").read_dir_utf8().into_iter().flatten().flatten() {
        let Ok(site) = SiteName::new(site.file_name()) else { continue };
        let running = clouds::processes(&state, &site).await;
        if !running.is_empty() {
            left.push(format!("processes of the clone's site {site}: {running:?}"));
        }
    }
    if left.is_empty()
        && let Err(error) = std::fs::remove_dir_all(root)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        left.push(format!("{root}: {error}"));
    }
    left
}

fn environment_file(root: &Utf8Path) -> Utf8PathBuf {
    root.join("environment.yaml")
}

/// The flags for the clone. It uses the running server program, even if a newer one was built.
fn global(session: &Session, root: &Utf8Path, running: &RunningEnvironment) -> Global {
    let server =
        running.servers.first().map(|serving| serving.server.program.clone()).filter(|program| program.is_file());
    Global { file: Some(environment_file(root)), server, ..global_of(session, root) }
}

fn global_of(session: &Session, root: &Utf8Path) -> Global {
    Global {
        env: None,
        set: Vec::new(),
        site: None,
        provider: None,
        state_dir: Some(root.to_owned()),
        yes: true,
        ..session.global.clone()
    }
}

/// Progress on the clone is not printed. Failures become errors.
fn quiet() -> Console {
    Console::new(crate::args::Output::Text, true)
}

fn private(folder: &Utf8Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    Ok(made.with_context(|| format!("make {folder}"))?)
}

/// The environment as provisioned, with other ports and without DNS zones and backups.
fn written(text: &str) -> Result<String, Failure> {
    let mut tree: Value = serde_yaml::from_str(text).context("read the environment as it is shown")?;
    let sites = tree["sites"].as_array().map_or(0, Vec::len);
    let mut ports = free_ports(2 * sites + 2)?.into_iter().map(|port| json!(port));
    let mut next = || ports.next().unwrap_or_default();
    for site in tree["sites"].as_array_mut().into_iter().flatten() {
        (site["port"], site["metrics_port"]) = (next(), next());
    }
    (tree["traffic"]["port"], tree["traffic"]["metrics_port"]) = (next(), next());
    // Without backups there is no base backup for a log to continue from.
    (tree["backup"]["enabled"], tree["backup"]["point_in_time"]) = (json!(false), Value::Null);
    tree["dr"]["drill"] = json!("live");
    if let Some(tree) = tree.as_object_mut() {
        tree.remove("dns");
    }
    Ok(serde_yaml::to_string(&tree).context("write the environment of the clone")?)
}

/// Distinct unused ports, below the kernel's ephemeral range. The clone's programs bind them seconds later, and
/// outgoing connections must not take them before.
fn free_ports(count: usize) -> Result<Vec<u16>, Failure> {
    const FIRST: u16 = 26_000;
    const COUNT: u16 = 6_000;
    // Concurrent drills start at different ports.
    let start = (std::process::id() % u32::from(COUNT)) as u16;
    let candidates = (0..COUNT).map(|n| FIRST + (start + n) % COUNT);
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok();
    let free: Vec<u16> = candidates.filter(is_free).take(count).collect();
    if free.len() < count {
        let error = anyhow!(
            "the clone needs {count} ports, and only {} of the {COUNT} ports from {FIRST} are free",
            free.len()
        );
        return Err(error.into());
    }
    Ok(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clones_of_drills_that_died_are_left() {
        let folder = tempfile::tempdir().unwrap();
        let parent = Utf8Path::from_path(folder.path()).unwrap();
        // No process has such a high id.
        let (dead, alive) = (format!("{FOLDER}4194305-a"), format!("{FOLDER}{}-b", std::process::id()));
        for name in [&dead, &alive, "staging", ".drill-clone-odd", ".drill-clone-"] {
            std::fs::create_dir(parent.join(name)).unwrap();
        }
        assert_eq!(left(parent), [parent.join(&dead)]);
        assert!(left(&parent.join("nothing")).is_empty());
    }

    #[test]
    fn a_clone_has_ports_of_its_own_and_reaches_nothing_outside() {
        let text = "sites:\n- { name: a, port: 1 }\n- { name: b, port: 2 }\ntraffic: { port: 3, domain: x }\nbackup: { enabled: true }\n\
                    dns: { zone: x }\ndr: { mode: automatic, drill: clone }\n";
        let tree: Value = serde_yaml::from_str(&written(text).unwrap()).unwrap();
        let mut ports: Vec<u64> = tree["sites"]
            .as_array()
            .unwrap()
            .iter()
            .chain([&tree["traffic"]])
            .flat_map(|place| [place["port"].as_u64().unwrap(), place["metrics_port"].as_u64().unwrap()])
            .collect();
        ports.sort_unstable();
        ports.dedup();
        assert!(ports.len() == 6 && ports[0] > 1023, "{ports:?}");
        assert!(tree.get("dns").is_none());
        assert_eq!((&tree["backup"]["enabled"], &tree["dr"]["mode"]), (&json!(false), &json!("automatic")));
    }
}
