//! The providers that are linked into this program: the only place that names them.

#[cfg(feature = "kubernetes")]
mod adapter;
#[cfg(feature = "kubernetes")]
mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_models::FetchOptions;
use textnlp_onprem::fault::Elsewhere;
pub use textnlp_onprem::{Beside, SiteCopy, archive_socket};
use textnlp_onprem::{FileSecretStore, OnPrem, Options, fault, supervise};
use textnlp_orchestrator::dr::fault::{Fault, FaultKind, Faults};
use textnlp_orchestrator::dr::talk::Places;
use textnlp_orchestrator::environment::model::{Address, Environment};
use textnlp_orchestrator::environment::{Catalogue, Offer};
use textnlp_provider::{Lineage, Provider, SecretStore, Site, SiteName, Wanted, told};

use crate::dr_args::TakeBack;

/// One row of `providers`.
pub struct Row {
    /// Its name in environment files.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// How programs run there.
    pub runtimes: &'static [&'static str],
    /// Settings that it can fulfil, `FIELD=VALUE`.
    pub choices: &'static [&'static str],
    /// Whether it is linked in, or why not.
    pub missing: Option<&'static str>,
}

/// Every provider that environment files may name.
pub const PROVIDERS: &[Row] = &[
    Row {
        name: "onprem",
        about: "your own machines: local processes under a supervisor",
        runtimes: &["process"],
        choices: &[
            "database.kind=sqlite",
            "database.kind=postgres/external",
            "database.kind=postgres/cluster",
            "cache.kind=memory",
            "tls.mode=local-ca",
            "tls.mode=existing",
            "tls.mode=off",
            "gpu.size=none",
            "dr.mode=none",
            "dr.mode=manual",
            "dr.mode=automatic",
            "traffic.mode=gateway",
            "monitoring.stack=false",
            "state.store=local",
            "state.store=s3",
            "state.store=gs",
            "state.store=az",
            "network.waf=false",
            "rollout.strategy=rolling",
            // What local processes do nothing with is refused, not ignored.
            "network.policies=false",
            "network.subnets=none",
            "network.open_ports=none",
            "account.permission_boundary=none",
            "account.existing_role=none",
            "backup.enabled=false",
            "backup.enabled=true",
            "backup.destination=folder",
            "backup.size=none",
            "replication.database.mode=none",
            "replication.database.mode=streaming",
            "rollout.bake=none",
            "rollout.deadline=none",
            "traffic.ttl=none",
            "traffic.health_path=none",
            "monitoring.retention=none",
            "monitoring.alerts=none",
            "monitoring.alerts.latency=none",
            "monitoring.alerts.error_rate=none",
            "scaling.max=none",
            "cluster.version=none",
            "cluster.max_nodes=1",
            "cache.max_size=default",
            "storage.archive_after=none",
            "storage.existing_key=none",
            "registry.url=none",
            "features=none",
        ],
        missing: None,
    },
    Row {
        name: "kubernetes",
        about: "any conformant cluster",
        runtimes: &["kubernetes"],
        choices: &[
            "database.kind=postgres/external",
            "database.kind=postgres/cluster",
            "cache.kind=memory",
            "tls.mode=local-ca",
            "tls.mode=existing",
            "gpu.size=none",
            "dr.mode=none",
            "dr.mode=manual",
            "dr.mode=automatic",
            "traffic.mode=gateway",
            "monitoring.stack=false",
            "monitoring.stack=true",
            "state.store=local",
            "state.store=s3",
            "state.store=gs",
            "state.store=az",
            "network.waf=false",
            "network.waf=true",
            "network.policies=false",
            "network.policies=true",
            "network.subnets=none",
            "network.open_ports=none",
            "network.private_ca=none",
            "account.permission_boundary=none",
            "account.existing_role=none",
            "backup.enabled=false",
            "backup.enabled=true",
            "backup.destination=folder",
            "replication.database.mode=none",
            "replication.database.mode=streaming",
            "rollout.strategy=rolling",
            "rollout.strategy=canary",
            "rollout.strategy=blue-green",
            "rollout.bake=none",
            "rollout.deadline=none",
            "traffic.ttl=none",
            "traffic.health_path=none",
            "monitoring.retention=none",
            "monitoring.alerts=none",
            "monitoring.alerts.latency=none",
            "monitoring.alerts.error_rate=none",
            "cluster.version=none",
            "cluster.restricted=true",
            "cache.max_size=default",
            "storage.archive_after=none",
            "storage.existing_key=none",
            "registry.url=none",
            "features=none",
        ],
        missing: if cfg!(feature = "kubernetes") { None } else { Some(FEATURE) },
    },
    Row { name: "aws", about: "Amazon Web Services", runtimes: &["kubernetes"], choices: &[], missing: Some(LATER) },
    Row { name: "gcp", about: "Google Cloud", runtimes: &["kubernetes"], choices: &[], missing: Some(LATER) },
    Row { name: "azure", about: "Microsoft Azure", runtimes: &["kubernetes"], choices: &[], missing: Some(LATER) },
];

/// What was left out when this program was built.
const FEATURE: &str = "it was left out when this program was built: build it with `--features kubernetes`";

const LATER: &str = "not in this version: it comes with a later release";

/// What environment files may ask for in this program.
pub fn catalogue() -> Catalogue {
    let offer = |row: &Row| Offer {
        linked: row.missing.is_none(),
        how_to_get: row.missing.unwrap_or_default().to_owned(),
        runtimes: row.runtimes.iter().map(ToString::to_string).collect(),
        choices: row.choices.iter().map(ToString::to_string).collect::<BTreeSet<_>>(),
    };
    Catalogue {
        providers: PROVIDERS.iter().map(|row| (row.name.to_owned(), offer(row))).collect::<BTreeMap<_, _>>(),
        detected: Some(("onprem".to_owned(), "no cloud provider is linked in".to_owned())),
    }
}

/// The folder of an environment's secrets, within that of its state.
pub const SECRETS: &str = "secrets";

/// Where the secrets of an environment are.
pub fn secrets(folder: &Utf8Path) -> Arc<FileSecretStore> {
    Arc::new(FileSecretStore::new(folder.join(SECRETS)))
}

/// The provider of a name, for an environment whose state lies in `folder`; `take` are the fields that it takes from whoever owns them.
pub fn provider(
    name: &str,
    folder: &Utf8Path,
    secrets: Arc<dyn SecretStore>,
    environment: &Environment,
    site: &SiteName,
    take: &[String],
) -> anyhow::Result<Arc<dyn Provider>> {
    let program = Utf8PathBuf::try_from(std::env::current_exe()?)?;
    let mut options = Options::new(folder.to_owned(), program)?;
    options.secrets = secrets.clone();
    #[cfg(feature = "kubernetes")]
    if name == cluster::NAME {
        // Nothing is served by this machine: it keeps the site's secrets and issues its certificate.
        options.serves_elsewhere = true;
        return Ok(Arc::new(cluster::InCluster::new(OnPrem::new(options), secrets, environment, site, take)?));
    }
    anyhow::ensure!(name == "onprem", "provider `{name}` is not linked into this program");
    anyhow::ensure!(take.is_empty(), "--take-ownership is of objects in clusters, and site {site} is in none");
    // A machine that only looks after clusters serves nothing.
    if environment.sites.iter().any(|site| site.provider == name) {
        options.minimum = environment.phase.minimum();
        options.minimum.blocks &= !environment.prerequisites.allow_below_minimum;
    }
    options.models = fetching(environment)?;
    if let Some(cache) = model_folder(environment)? {
        options.model_cache = cache;
    }
    Ok(Arc::new(OnPrem::new(options)))
}

/// How models are fetched: as the variables of whoever runs the command say, and as the environment says where it does.
pub fn fetching(environment: &Environment) -> anyhow::Result<FetchOptions> {
    let mut options = FetchOptions::from_env();
    let network = &environment.network;
    // What is not there was refused before anything runs; what only looks at the record needs no proxy.
    if let Some(proxy) = network.proxy.https.as_ref().and_then(Address::read) {
        options.proxy.https = Some(proxy);
    }
    if let Some(proxy) = network.proxy.http.as_ref().and_then(Address::read) {
        options.proxy.http = Some(proxy);
    }
    if !network.proxy.no_proxy.is_empty() {
        options.proxy.no_proxy = Some(network.proxy.no_proxy.join(","));
    }
    if let Some(file) = &network.private_ca {
        options.ca_file = Some(absolute(file)?);
    }
    Ok(options)
}

/// The folder that the environment gives to models, if it gives one.
pub fn model_folder(environment: &Environment) -> anyhow::Result<Option<Utf8PathBuf>> {
    environment.storage.model_folder.as_deref().map(absolute).transpose()
}

/// A relative path begins where the program was started.
fn absolute(path: &str) -> anyhow::Result<Utf8PathBuf> {
    Ok(Utf8PathBuf::try_from(std::env::current_dir()?)?.join(path))
}

/// What of a site belongs into a copy that brings it back.
pub fn copied(folder: &Utf8Path, site: &SiteName) -> anyhow::Result<SiteCopy> {
    Ok(SiteCopy::of(folder, site)?)
}

pub use textnlp_onprem::supervise::EXPIRES;

/// Puts a copied database where a site of another deployment finds it as its own.
pub fn seed(
    from: &Utf8Path,
    to: &Utf8Path,
    site: &SiteName,
    lineage: Lineage,
    database: &Utf8Path,
) -> anyhow::Result<()> {
    Ok(textnlp_onprem::seed(from, to, site, lineage, database)?)
}

/// An empty PostgreSQL on this machine, to prove a dump on; `place` is a folder that goes after it.
pub fn postgres_beside(place: &Utf8Path) -> anyhow::Result<Beside> {
    Beside::make(place).map_err(anyhow::Error::msg)
}

/// A folder for the files of a PostgreSQL of this very version, with its programs; see [`postgres_beside`].
pub fn postgres_files_beside(place: &Utf8Path, version: u32) -> anyhow::Result<Beside> {
    Beside::empty(place, version).map_err(anyhow::Error::msg)
}

/// What is missing on this machine to read the files of a PostgreSQL of this version.
pub fn postgres_lacks(version: u32) -> Option<String> {
    Beside::lacks(version)
}

/// The processes that a site's service is made of, as far as they run on this machine.
pub async fn processes(folder: &Utf8Path, site: &SiteName) -> Vec<u32> {
    match supervise::status(&folder.join("sites").join(site.as_str())).await {
        Ok(Some(status)) => status.units.iter().filter_map(|unit| unit.pid).chain([status.pid]).collect(),
        Ok(None) | Err(_) => Vec::new(),
    }
}

/// What keeps a site's programs running on this machine; `None` when nothing does.
pub async fn keeper(folder: &Utf8Path, site: &SiteName) -> Result<Option<Keeper>, String> {
    let status = supervise::status(&folder.join("sites").join(site.as_str())).await.map_err(|e| told(&e))?;
    Ok(status.map(|status| Keeper {
        pid: status.pid,
        version: status.version,
        rejected: status.rejected.iter().map(|unit| format!("{unit:?}")).collect(),
        failing: status
            .units
            .iter()
            .filter(|unit| unit.failures > 0)
            .map(|unit| format!("{} ended by itself {} times since it was last ready", unit.name, unit.failures))
            .collect(),
    }))
}

/// What keeps a site's programs running.
pub struct Keeper {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// Unit files that it did not believe.
    pub rejected: Vec<String>,
    /// Programs that keep ending.
    pub failing: Vec<String>,
}

/// A site's objects as files for another tool, and what they lack.
pub struct Exported {
    /// Path below the folder, and text.
    pub files: Vec<(String, String)>,
    /// The Secrets that somebody has to bring: name, type, keys; no keys where others make it.
    pub secrets: Vec<(String, String, Vec<String>)>,
}

/// Tools that read the objects of a cluster from files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// One stream.
    Kubectl,
    /// A base.
    Kustomize,
    /// A chart.
    Helm,
}

impl std::fmt::Display for Tool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kubectl => "kubectl",
            Self::Kustomize => "kustomize",
            Self::Helm => "helm",
        })
    }
}

/// What is wanted of a site in a cluster, for another tool.
#[cfg(feature = "kubernetes")]
pub fn exported(wanted: &[Wanted], environment: &Environment, tool: Tool) -> anyhow::Result<Exported> {
    cluster::exported(wanted, environment.environment.as_str(), tool)
}

/// What is wanted of a site in a cluster, for another tool.
#[cfg(not(feature = "kubernetes"))]
pub fn exported(_wanted: &[Wanted], _environment: &Environment, _tool: Tool) -> anyhow::Result<Exported> {
    anyhow::bail!("provider `kubernetes`: {FEATURE}")
}

/// Has the servers of an environment in a cluster, of this site where it is named, run their program once with other arguments; see [`Said`].
#[cfg(feature = "kubernetes")]
pub async fn errand(
    folder: &Utf8Path,
    environment: &Environment,
    site: Option<&str>,
    within: (&str, Lineage),
    arguments: &[String],
) -> anyhow::Result<Said> {
    cluster::errand(folder, environment, site, within, arguments).await
}

/// Has the servers of an environment in a cluster run their program once with other arguments; there are no clusters in this build.
#[cfg(not(feature = "kubernetes"))]
pub async fn errand(
    _: &Utf8Path,
    _: &Environment,
    _: Option<&str>,
    _: (&str, Lineage),
    _: &[String],
) -> anyhow::Result<Said> {
    anyhow::bail!("provider `kubernetes`: {FEATURE}")
}

/// What a program in a cluster answered.
pub struct Said {
    /// The JSON object that it printed last, if it printed one.
    pub answer: Option<serde_json::Value>,
    /// Why it failed, if it did.
    pub failed: Option<String>,
}

/// What the job that rolls the pods of an environment in a cluster says, and whether it goes on; a wish (`promote`, `abort`, `pause`,
/// `resume`, `retry`) is told to it. `None` where there was no rollout.
#[cfg(feature = "kubernetes")]
pub async fn rollout(
    folder: &Utf8Path,
    environment: &Environment,
    site: Option<&str>,
    lineage: Lineage,
    wish: Option<&str>,
) -> anyhow::Result<Option<serde_json::Value>> {
    cluster::rollout(folder, environment, site, lineage, wish).await
}

/// What the job that rolls the pods of an environment in a cluster says; there are no clusters in this build.
#[cfg(not(feature = "kubernetes"))]
pub async fn rollout(
    _: &Utf8Path,
    _: &Environment,
    _: Option<&str>,
    _: Lineage,
    _: Option<&str>,
) -> anyhow::Result<Option<serde_json::Value>> {
    anyhow::bail!("provider `kubernetes`: {FEATURE}")
}

/// What the job itself does: sees a rollout to its end, by the account in a folder and the orders of its variable.
#[cfg(feature = "kubernetes")]
pub async fn see_to(account: &Utf8Path, tell: &(dyn Fn(&str) + Sync)) -> anyhow::Result<serde_json::Value> {
    let orders = std::env::var(textnlp_kubernetes::ORDERS);
    let orders =
        orders.map_err(|_| anyhow::anyhow!("{} is not set: only `up` gives it", textnlp_kubernetes::ORDERS))?;
    cluster::see_to(account, &orders, tell).await
}

/// What the job itself does; there are no clusters in this build.
#[cfg(not(feature = "kubernetes"))]
pub async fn see_to(_: &Utf8Path, _: &(dyn Fn(&str) + Sync)) -> anyhow::Result<serde_json::Value> {
    anyhow::bail!("provider `kubernetes`: {FEATURE}")
}

/// What the adapter's pod runs until it is told to end: tells autoscalers how many requests there are.
#[cfg(feature = "kubernetes")]
pub async fn adapter(args: &crate::args::Adapter, tell: &(dyn Fn(&str) + Sync)) -> anyhow::Result<()> {
    adapter::run(args, tell).await
}

/// See the other one.
#[cfg(not(feature = "kubernetes"))]
pub async fn adapter(_: &crate::args::Adapter, _: &(dyn Fn(&str) + Sync)) -> anyhow::Result<()> {
    anyhow::bail!("provider `kubernetes`: {FEATURE}")
}

/// When the cluster of an environment last ended a dump of its database well; `None` where none was yet.
#[cfg(feature = "kubernetes")]
pub async fn last_dump(
    folder: &Utf8Path,
    environment: &Environment,
    lineage: Lineage,
) -> anyhow::Result<Option<jiff::Timestamp>> {
    cluster::last_dump(folder, environment, lineage).await
}

/// When the cluster of an environment last ended a dump of its database well; `None` where none was yet.
#[cfg(not(feature = "kubernetes"))]
pub async fn last_dump(_: &Utf8Path, _: &Environment, _: Lineage) -> anyhow::Result<Option<jiff::Timestamp>> {
    anyhow::bail!("provider `kubernetes`: {FEATURE}")
}

/// Has the cluster of an environment make a dump of its database now, waits for it so long and tells what keeps it, and gives its report in a
/// line.
#[cfg(feature = "kubernetes")]
pub async fn dump_now(
    folder: &Utf8Path,
    environment: &Environment,
    lineage: Lineage,
    within: Duration,
    tell: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<String> {
    cluster::dump_now(folder, environment, lineage, within, tell).await
}

/// Has the cluster of an environment make a dump of its database now, waits for it so long and tells what keeps it, and gives its report in a
/// line.
#[cfg(not(feature = "kubernetes"))]
pub async fn dump_now(
    _: &Utf8Path,
    _: &Environment,
    _: Lineage,
    _: Duration,
    _: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<String> {
    anyhow::bail!("provider `kubernetes`: {FEATURE}")
}

/// Whether dumps of its database are made where its servers run, and not by this program.
pub fn dumps_itself(environment: &Environment) -> bool {
    environment.backup.enabled && environment.primary().is_some_and(|site| site.provider == "kubernetes")
}

/// Where the watches and the witness of an environment are asked.
pub fn places(folder: &Utf8Path, environment: &Environment) -> anyhow::Result<Places> {
    let home = environment.primary().map(|site| site.name.to_string()).unwrap_or_default();
    let sites = environment.sites.iter();
    let sites = sites.map(|site| (site.name.to_string(), fault::socket(folder, &site.name, "watch"))).collect();
    let witness = fault::socket(folder, &SiteName::new(fault::WITNESS)?, "witness");
    Ok(Places { sites, witness, home })
}

/// Whoever can take a site of this environment away.
pub fn faults(folder: &Utf8Path, environment: &Environment, lineage: Lineage) -> anyhow::Result<SiteFaults> {
    let program = Utf8PathBuf::try_from(std::env::current_exe()?)?;
    let (folder, environment) = (folder.to_owned(), environment.clone());
    let local = fault::Faults::new(&folder, &program);
    Ok(SiteFaults { local, folder, environment, lineage, begun: Mutex::default() })
}

/// Faults of sites, each written down on this machine: of local processes, of the links of any site, and of the pods of a cluster.
pub struct SiteFaults {
    local: fault::Faults,
    folder: Utf8PathBuf,
    environment: Environment,
    lineage: Lineage,
    /// What was done to clusters from here, and how it is taken back, whatever became of what is written down.
    begun: Mutex<BTreeMap<String, TakeBack>>,
}

impl SiteFaults {
    /// Whether this is done to the pods of a cluster; all else is done here, where the links of a site are too.
    fn is_of_pods(&self, fault: &Fault) -> bool {
        fault.kind == FaultKind::Kill && self.is_in_cluster(&fault.site)
    }

    fn is_in_cluster(&self, name: &str) -> bool {
        self.environment.sites.iter().any(|site| site.name.as_str() == name && site.is_in_cluster())
    }

    fn written(&self, fault: &Fault) -> Result<fault::Fault, String> {
        let elsewhere = self
            .taken_back_by(fault)?
            .map(|command| Elsewhere { arguments: command.arguments(), variables: variables() });
        Ok(fault::Fault { elsewhere, ..local(fault)? })
    }

    /// What takes a fault back that is done to pods.
    fn taken_back_by(&self, fault: &Fault) -> Result<Option<TakeBack>, String> {
        if !self.is_of_pods(fault) {
            return Ok(None);
        }
        let (kubeconfig, context, api_server) =
            way_to(&self.environment, &site(&fault.site)?).map_err(|error| format!("{error:#}"))?;
        let (state, fault) = (self.folder.clone(), fault.id.clone());
        Ok(Some(TakeBack { state, fault, kubeconfig, context, api_server, look: false }))
    }

    fn begun(&self) -> MutexGuard<'_, BTreeMap<String, TakeBack>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is asked of the cluster of a site.
    async fn outage(&self, name: &str, what: Outage<'_>) -> Result<usize, String> {
        let site = site(name)?;
        let asked = outage(&self.folder, &self.environment, &site, self.lineage, what).await;
        asked.map_err(|error| match error.downcast_ref::<textnlp_provider::Error>().and_then(|why| why.hint.as_ref()) {
            Some(hint) => format!("{site}: {error:#}: {hint}"),
            None => format!("{site}: {error:#}"),
        })
    }
}

/// What is asked of a cluster in a rehearsal of its loss.
#[derive(Debug, Clone, Copy)]
enum Outage<'a> {
    /// Whether it could be lost.
    May,
    /// To be lost, in the name of a fault, which ends then.
    Begin(&'a str, jiff::Timestamp),
    /// How many pods of the service are ready.
    Ready,
}

#[async_trait]
impl Faults for SiteFaults {
    async fn check(&self, fault: &Fault) -> Result<(), String> {
        if self.is_in_cluster(&fault.site) {
            if fault.lose_data || matches!(fault.kind, FaultKind::Freeze | FaultKind::DiskFull) {
                return Err(format!(
                    "{} is in a cluster, whose nodes are not ours to stop or to fill: `--fault kill` or `blackhole`",
                    fault.site
                ));
            }
            self.outage(&fault.site, Outage::Ready).await?;
        }
        if self.is_of_pods(fault) {
            self.outage(&fault.site, Outage::May).await?;
        }
        let written = self.written(fault)?;
        self.local.check(&written).map_err(|e| told(&e))?;
        self.local.rehearse(&written).await.map_err(|e| told(&e))
    }

    async fn inject(&self, fault: &Fault) -> Result<(), String> {
        self.local.inject(&self.written(fault)?).await.map_err(|e| told(&e))?;
        if let Some(command) = self.taken_back_by(fault)? {
            self.begun().insert(fault.id.clone(), command);
            self.outage(&fault.site, Outage::Begin(&fault.id, fault.until)).await?;
        }
        Ok(())
    }

    async fn revert(&self, id: &str) -> Result<(), String> {
        let open = self.local.open().map_err(|e| told(&e))?;
        let written = open.into_iter().find(|fault| fault.id == id).and_then(|fault| fault.elsewhere);
        let written = written.map(|elsewhere| TakeBack::of(&elsewhere.arguments)).transpose()?;
        // Where somebody else forgot it while we were at it, there may be more to give back.
        let Some(command) = written.or_else(|| self.begun().get(id).cloned()) else {
            return self.local.revert(id).await.map_err(|e| told(&e));
        };
        find_again(&command).await.map_err(|error| format!("{error:#}"))?;
        self.local.forget(id).map_err(|e| told(&e))?;
        self.begun().remove(id);
        Ok(())
    }

    async fn open(&self) -> Result<Vec<Fault>, String> {
        let open = self.local.open().map_err(|e| told(&e))?;
        Ok(open
            .into_iter()
            .map(|fault| Fault {
                id: fault.id,
                site: fault.site.to_string(),
                kind: match fault.kind {
                    fault::Kind::Kill => FaultKind::Kill,
                    fault::Kind::Freeze => FaultKind::Freeze,
                    fault::Kind::Blackhole => FaultKind::Blackhole,
                    fault::Kind::DiskFull => FaultKind::DiskFull,
                },
                until: fault.until,
                lose_data: fault.lose_data,
            })
            .collect())
    }

    async fn ready_units(&self, name: &str) -> Vec<String> {
        let Ok(site) = site(name) else { return Vec::new() };
        let mut ready = self.local.ready_units(&site).await;
        if self.is_in_cluster(name) {
            let pods = self.outage(name, Outage::Ready).await.unwrap_or_default();
            ready.extend((1..=pods).map(|number| format!("pod {number}")));
        }
        ready
    }

    async fn lost_data(&self, fault: &Fault) -> Option<String> {
        self.local.lost_data(&site(&fault.site).ok()?, &fault.id).map(Utf8PathBuf::into_string)
    }

    async fn discard_lost(&self, fault: &Fault) -> Result<(), String> {
        self.local.discard_lost(&site(&fault.site)?, &fault.id).map_err(|e| told(&e))
    }
}

/// Gives back what a drill took of a cluster, and forgets the fault. Says how many nodes that were.
pub async fn take_back(args: &TakeBack) -> anyhow::Result<usize> {
    let program = Utf8PathBuf::try_from(std::env::current_exe()?)?;
    let faults = fault::Faults::new(&args.state, &program);
    if !args.look && !faults.is_open(&args.fault)? {
        return Ok(0);
    }
    let within = fault::TAKEN_BACK_WITHIN;
    let given = tokio::time::timeout(within, find_again(args)).await;
    let given = given.map_err(|_| anyhow::anyhow!("the cluster did not do it within {} s", within.as_secs()))??;
    if !args.look {
        faults.forget(&args.fault)?;
    }
    Ok(given)
}

#[cfg(feature = "kubernetes")]
async fn find_again(args: &TakeBack) -> anyhow::Result<usize> {
    cluster::find_again(args).await
}

#[cfg(not(feature = "kubernetes"))]
async fn find_again(_: &TakeBack) -> anyhow::Result<usize> {
    anyhow::bail!("provider `kubernetes`: {FEATURE}")
}

/// Faults of clusters that are not taken back, each as a person is told of it: with the machine of the witness, whoever would do that goes.
pub fn lost_clusters(folder: &Utf8Path) -> anyhow::Result<Vec<String>> {
    let program = Utf8PathBuf::try_from(std::env::current_exe()?)?;
    let open = fault::Faults::new(folder, &program).open()?;
    let of_clusters = open.into_iter().filter(|fault| fault.elsewhere.is_some());
    Ok(of_clusters.map(|fault| format!("fault {} of {}, until {}", fault.id, fault.site, fault.until)).collect())
}

#[cfg(feature = "kubernetes")]
async fn outage(
    folder: &Utf8Path,
    environment: &Environment,
    site: &SiteName,
    lineage: Lineage,
    what: Outage<'_>,
) -> anyhow::Result<usize> {
    cluster::outage(folder, environment, site, lineage, what).await
}

#[cfg(not(feature = "kubernetes"))]
async fn outage(_: &Utf8Path, _: &Environment, _: &SiteName, _: Lineage, _: Outage<'_>) -> anyhow::Result<usize> {
    anyhow::bail!("provider `kubernetes`: {FEATURE}")
}

/// How the cluster of a site is reached from anywhere on this machine: its kubeconfig, the context in it, and the API server.
type Way = (Option<Utf8PathBuf>, Option<String>, String);

#[cfg(feature = "kubernetes")]
fn way_to(environment: &Environment, site: &SiteName) -> anyhow::Result<Way> {
    cluster::way_to_server(environment, site)
}

#[cfg(not(feature = "kubernetes"))]
fn way_to(_: &Environment, _: &SiteName) -> anyhow::Result<Way> {
    anyhow::bail!("provider `kubernetes`: {FEATURE}")
}

/// What says where credentials are, and is none, and whether it is a path.
const WAYS: [(&str, bool); 12] = [
    ("KUBECONFIG", true),
    ("AWS_CONFIG_FILE", true),
    ("AWS_SHARED_CREDENTIALS_FILE", true),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", true),
    ("CLOUDSDK_CONFIG", true),
    ("GOOGLE_APPLICATION_CREDENTIALS", true),
    ("AZURE_CONFIG_DIR", true),
    ("AWS_PROFILE", false),
    ("AWS_REGION", false),
    ("AWS_DEFAULT_REGION", false),
    ("AWS_ROLE_ARN", false),
    ("CLOUDSDK_ACTIVE_CONFIG_NAME", false),
];

/// Those that are set here, with paths that are whole.
fn variables() -> BTreeMap<String, String> {
    let here = std::env::current_dir().ok().and_then(|here| Utf8PathBuf::try_from(here).ok()).unwrap_or_default();
    let whole = |paths: &str| {
        let paths = paths.split(':').filter(|path| !path.is_empty());
        paths.map(|path| here.join(path).into_string()).collect::<Vec<_>>().join(":")
    };
    let set = WAYS.iter().filter_map(|(name, is_path)| Some((*name, *is_path, std::env::var(name).ok()?)));
    set.map(|(name, is_path, value)| (name.to_owned(), if is_path { whole(&value) } else { value })).collect()
}

fn local(fault: &Fault) -> Result<fault::Fault, String> {
    Ok(fault::Fault {
        id: fault.id.clone(),
        site: site(&fault.site)?,
        kind: fault.kind.word().parse().map_err(|e: fault::Error| told(&e))?,
        until: fault.until,
        lose_data: fault.lose_data,
        elsewhere: None,
    })
}

fn site(name: &str) -> Result<SiteName, String> {
    SiteName::new(name).map_err(|e| told(&e))
}

/// What a site of an environment is bound to: a cluster is its API server, whatever it is called; any other what the environment names,
/// else what is found.
pub fn account_of(environment: &Environment, site: &Site, provider: &str) -> anyhow::Result<String> {
    #[cfg(feature = "kubernetes")]
    if provider == cluster::NAME {
        return cluster::account(environment, &site.name);
    }
    let _ = environment;
    Ok(if site.account.is_empty() { account(provider) } else { site.account.clone() })
}

/// What a site's lineage is bound to when the environment names no account: for machines of one's own, the machine.
pub fn account(provider: &str) -> String {
    if provider != "onprem" {
        return String::new();
    }
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let id: String = id.trim().chars().filter(char::is_ascii_hexdigit).take(12).collect();
    if id.is_empty() { format!("host-{}", host_name()) } else { format!("machine-{id}") }
}

/// Whether a lineage is bound to a machine of one's own, as [`account`] names it.
pub fn is_machine(provider: &str, account: &str) -> bool {
    provider == "onprem" && (account.starts_with("machine-") || account.starts_with("host-"))
}

/// The name of this machine.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use textnlp_orchestrator::environment::{Library, Overrides};

    #[test]
    fn models_are_fetched_the_way_the_environment_says() {
        let sets = [
            "network.proxy.https=http://proxy:3128",
            "network.proxy.no_proxy=[a.example, b.example]",
            "network.private_ca=/etc/hosts",
            "storage.model_folder=models here",
        ];
        let overrides = Overrides { sets: sets.map(str::to_owned).into(), ..Overrides::default() };
        let environment = Library::built_in().load("staging", &overrides, &catalogue()).unwrap().environment;
        let options = fetching(&environment).unwrap();
        assert_eq!(options.proxy.https.as_deref(), Some("http://proxy:3128"));
        assert_eq!(options.proxy.no_proxy.as_deref(), Some("a.example,b.example"));
        assert_eq!(options.ca_file.as_deref(), Some(Utf8Path::new("/etc/hosts")));
        let folder = model_folder(&environment).unwrap().unwrap();
        assert!(folder.is_absolute() && folder.ends_with("models here"), "{folder}");
    }
}
