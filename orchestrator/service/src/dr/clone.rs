//! A clone of an environment for a drill: the same programs, models and data, with its own folders, ports and lineage.
//! It exists for one drill. After a killed drill its programs exit on their own, and the next drill removes it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use textnlp_orchestrator::backup::Content;
use textnlp_orchestrator::dr::control_status::ControlStatus;
use textnlp_orchestrator::release::Lock;
use textnlp_orchestrator::state::{LineageFile, Operator};
use textnlp_provider::{Lineage, SiteName};
use uuid::Uuid;

use super::Sites;
use crate::backup::{self, BackupContent};
use crate::{ChosenEnvironment, Failure, Platform, RunningEnvironment, Scope, workplace};

/// Prefix of a clone's folder, beside the states of the environments. Environments cannot have such a name.
const FOLDER: &str = ".drill-clone-";
/// Timeout for new sites to be in sync: each copies the whole database of its primary.
const SYNC_TIMEOUT: Duration = Duration::from_secs(300);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Grace period for another run that holds the state lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);
/// Lifetime of a clone's programs, even if the drill was killed. It covers the longest drill and its setup.
const LASTS: SignedDuration = SignedDuration::from_mins(20);

/// Runs `up` and `down` for a clone: its environment is [`environment_file`], and `root` is the folder of its state.
#[async_trait(?Send)]
pub trait CloneRunner {
    /// Deploys the clone. `server` is the server program, if it is not the local one.
    async fn up(&self, root: &Utf8Path, server: Option<Utf8PathBuf>) -> Result<ChosenEnvironment, Failure>;

    /// Deletes the clone with its data.
    async fn down(&self, root: &Utf8Path, name: &str) -> Result<(), Failure>;
}

/// The environment file of a clone in this folder.
pub fn environment_file(root: &Utf8Path) -> Utf8PathBuf {
    root.join("environment.yaml")
}

/// Creates a clone and waits until its sites are in sync. Removes it if that fails.
pub(super) async fn make(
    of: &Sites,
    running: &RunningEnvironment,
    operator: &Operator,
    runner: &dyn CloneRunner,
) -> Result<Sites, Failure> {
    let Scope { platform, name, .. } = of.scope();
    let parent = of.scope().states();
    remove_left(parent, *platform, runner).await?;
    let root = parent.join(format!("{FOLDER}{}-{}", std::process::id(), &Uuid::new_v4().simple().to_string()[..8]));
    let failure = match fill(&root, of, running, operator, runner).await {
        Ok(clone) => return Ok(clone),
        Err(failure) => failure,
    };
    let left = take_away(*platform, runner, &root, name.as_str()).await;
    let mut error = failure.error.context("clone the environment");
    if !left.is_empty() {
        error = error.context(left.join("; "));
    }
    Err(Failure { error, ..failure })
}

/// Deletes a clone with its data. Returns what could not be removed.
pub(super) async fn remove(clone: &Sites, runner: &dyn CloneRunner) -> Vec<String> {
    let Scope { platform, name, .. } = clone.scope();
    take_away(*platform, runner, clone.scope().states(), name.as_str()).await
}

async fn fill(
    root: &Utf8Path,
    of: &Sites,
    running: &RunningEnvironment,
    operator: &Operator,
    runner: &dyn CloneRunner,
) -> Result<Sites, Failure> {
    let (source, environment) = (of.scope(), of.environment());
    let store = &environment.state.store;
    if store != "local" {
        let error = anyhow!("the state is in {store}, and a clone would write to the same store");
        return Err(Failure::refused("not_available", error).hint(format!(
            "run the drill on the live service: --live {}, or `dr: {{ drill: live }}` in the environment",
            source.name
        )));
    }
    let state = root.join(source.name.as_str());
    private(&state)?;
    let until = Timestamp::now() + LASTS;
    let expires = state.join(source.platform.expiry_file());
    std::fs::write(&expires, until.to_string()).with_context(|| format!("write {expires}"))?;
    // The clone shares the model cache, which never changes existing models. Their sources may be unavailable.
    let cache = source.states().join("model-cache");
    for site in &environment.sites {
        let copy = source.platform.site_copy(&source.folder, &site.name);
        let copy = copy.with_context(|| format!("check site {}", site.name))?;
        for model in copy.models.iter().filter(|model| model.folder.is_dir()) {
            backup::into_cache(&cache, &model.name, &model.folder, model.digest.as_deref()).await?;
        }
    }
    let link = root.join("model-cache");
    std::os::unix::fs::symlink(&cache, &link).with_context(|| format!("link {link}"))?;
    let beside = Lock::path(&source.folder, &source.name);
    if let Some(lock) = [&of.chosen.lock_path, &beside].into_iter().find(|path| path.is_file()) {
        std::fs::copy(lock, Lock::path(&state, &source.name)).with_context(|| format!("copy {lock}"))?;
    }
    restore(source, &state, operator).await?;
    let file = environment_file(root);
    let text = written(&of.chosen.loaded.to_yaml(false))?;
    std::fs::write(&file, text).with_context(|| format!("write {file}"))?;
    // The running server program, even if a newer one was built.
    let server = running.servers.first().map(|serving| serving.server.program.clone());
    let chosen = runner.up(root, server.filter(|program| program.is_file())).await?;
    let sites = Sites::of(chosen)?;
    until_in_sync(&sites).await?;
    Ok(sites)
}

/// Creates a new lineage in `state`, with current copies of the running sites' databases.
async fn restore(source: &Scope, state: &Utf8Path, operator: &Operator) -> Result<(), Failure> {
    let lineage = Lineage(Uuid::new_v4());
    let gathered = backup::gather(source, false, operator, LOCK_TIMEOUT).await?;
    let BackupContent { manifest, items, .. } = &gathered;
    let (environment, sites) = (source.name.clone(), BTreeMap::new());
    let file = LineageFile { format: 1, lineage, environment, sites, moved: None };
    let path = state.join("lineage.json");
    let text = serde_json::to_vec_pretty(&file).context("write the lineage")?;
    std::fs::write(&path, text).with_context(|| format!("write {path}"))?;
    for (site, database) in &manifest.databases {
        let dump = items.iter().find(|item| item.path == database.member);
        let Some(Content::File(dump)) = dump.map(|item| &item.content) else { continue };
        if Utf8Path::new(&database.path).extension() == Some("dump") {
            // The clone's server loads this dump on creation, as after a restore. The other sites replicate from it.
            let to = state.join(&database.path);
            to.parent().map_or(Ok(()), private)?;
            std::fs::copy(dump, &to).with_context(|| format!("write {to}"))?;
            continue;
        }
        let seeded = source.platform.seed(&source.folder, state, site, lineage, dump);
        seeded.with_context(|| format!("copy the data of site {site} into the clone"))?;
    }
    Ok(())
}

async fn until_in_sync(sites: &Sites) -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        let control_status = ControlStatus::take(&sites.control_clients).await;
        let lines = control_status.lines(sites.max_lag_ms).into_iter();
        let away: Vec<String> = lines.filter(|line| !line.in_sync).map(|line| line.site).collect();
        if away.is_empty() && control_status.witness.is_ok() {
            return Ok(());
        }
        if began.elapsed() > SYNC_TIMEOUT {
            let error = anyhow!("{} did not reach sync within {} s", away.join(", "), SYNC_TIMEOUT.as_secs());
            return Err(error.into());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// The clones of killed drills in the folder of the states.
pub(super) fn left(parent: &Utf8Path) -> Vec<Utf8PathBuf> {
    workplace::left(parent, FOLDER)
}

/// Removes the clones of killed drills.
pub(super) async fn remove_left(
    parent: &Utf8Path,
    platform: &dyn Platform,
    runner: &dyn CloneRunner,
) -> Result<(), Failure> {
    for root in left(parent) {
        let names = root.read_dir_utf8().into_iter().flatten().flatten();
        let states = names.filter(|entry| entry.path().join(platform.expiry_file()).is_file());
        let mut left = Vec::new();
        for name in states.map(|entry| entry.file_name().to_owned()).collect::<Vec<_>>() {
            left.extend(take_away(platform, runner, &root, &name).await);
        }
        let _ = std::fs::remove_dir_all(&root);
        if root.exists() || !left.is_empty() {
            let error = anyhow!("the clone of an earlier drill cannot be removed: {}", left.join("; "));
            return Err(Failure::refused("clone_left", error).hint(format!("stop its processes, then remove {root}")));
        }
    }
    Ok(())
}

async fn take_away(platform: &dyn Platform, runner: &dyn CloneRunner, root: &Utf8Path, name: &str) -> Vec<String> {
    let mut left = Vec::new();
    let state = root.join(name);
    // Without a journal, no site was created.
    if state.join("journal").is_dir()
        && let Err(failure) = runner.down(root, name).await
    {
        left.push(format!("the clone in {root}: {:#}", failure.error));
    }
    for site in state.join("sites").read_dir_utf8().into_iter().flatten().flatten() {
        let Ok(site) = SiteName::new(site.file_name()) else { continue };
        match platform.processes(&state, &site) {
            Ok(running) if running.is_empty() => {}
            Ok(running) => left.push(format!("processes of the clone's site {site}: {running:?}")),
            Err(error) => left.push(format!("find the processes of the clone's site {site}: {error}")),
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

fn private(folder: &Utf8Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    Ok(made.with_context(|| format!("make {folder}"))?)
}

/// The environment as provisioned, with other ports and without DNS zones, backups, webhooks, cache and export of traces.
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
        // Of the service: the clone would read its vectors instead of computing, and write its own.
        tree.remove("cache");
    }
    if let Some(batch) = tree.pointer_mut("/server/batch").and_then(Value::as_object_mut) {
        batch.remove("webhooks");
    }
    if let Some(monitoring) = tree.pointer_mut("/server/monitoring").and_then(Value::as_object_mut) {
        monitoring.remove("traces");
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
    fn only_clones_of_dead_drills_are_listed_as_leftovers() {
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
    fn drill_clone_has_its_own_ports_and_no_external_access() {
        let text = "sites:\n- { name: a, port: 1 }\n- { name: b, port: 2 }\ntraffic: { port: 3, domain: x }\nbackup: { enabled: true }\n\
                    dns: { zone: x }\ncache: { kind: redis, url: x }\ndr: { mode: automatic, drill: clone }\nserver: { batch: { enabled: true, webhooks: [{ url: x }] }, monitoring: { enable_tracing: true, traces: { endpoint: x } } }\n";
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
        assert!(tree.get("cache").is_none());
        assert_eq!(tree["server"]["batch"], json!({ "enabled": true }));
        assert_eq!(tree["server"]["monitoring"], json!({ "enable_tracing": true }));
        assert_eq!((&tree["backup"]["enabled"], &tree["dr"]["mode"]), (&json!(false), &json!("automatic")));
    }
}
