//! The providers that are linked into this program: the only place that names them.

#[cfg(feature = "kubernetes")]
mod adapter;
#[cfg(feature = "kubernetes")]
mod cluster;
#[cfg(not(feature = "kubernetes"))]
#[path = "clouds/no_cluster.rs"]
mod cluster;
mod faults;
#[cfg(feature = "kubernetes")]
mod queries;
#[cfg(feature = "kubernetes")]
mod token;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_models::FetchOptions;
pub use textnlp_onprem::{Beside, SiteCopy, archive_socket};
use textnlp_onprem::{FileSecretStore, OnPrem, Options, fault, supervise};
use textnlp_orchestrator::dr::talk::Places;
use textnlp_orchestrator::environment::model::{Address, Environment};
use textnlp_orchestrator::environment::{Catalogue, Offer};
use textnlp_provider::{Lineage, Provider, SecretStore, Site, SiteName, told};

#[cfg(not(feature = "kubernetes"))]
pub use cluster::kube_token;
pub use cluster::{adapter, dump_now, errand, exported, last_dump, pods, rollout, see_to};
pub use faults::{faults, lost_clusters, take_back};
#[cfg(feature = "kubernetes")]
pub use token::kube_token;

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
            "storage.model_folder=none",
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

/// How the servers of a site in a cluster stand.
pub struct Scale {
    /// Pods that there should be now.
    pub wanted: u32,
    /// Pods that are ready.
    pub ready: u32,
    /// What decides how many there are; `None` where nothing does.
    pub autoscaler: Option<Autoscaler>,
}

/// What decides how many pods there are.
pub struct Autoscaler {
    /// The metrics that it reads.
    pub reads: Vec<String>,
    /// How many it was told to read.
    pub told: usize,
    /// Why it does not decide.
    pub blind: Option<String>,
}

/// What a program in a cluster answered.
pub struct Said {
    /// The JSON object that it printed last, if it printed one.
    pub answer: Option<serde_json::Value>,
    /// Why it failed, if it did.
    pub failed: Option<String>,
}

/// Whether dumps of its database are made where its servers run, and not by this program.
pub fn dumps_itself(environment: &Environment) -> bool {
    environment.backup.enabled && environment.primary().is_some_and(|site| site.provider == cluster::NAME)
}

/// Where the watches and the witness of an environment are asked.
pub fn places(folder: &Utf8Path, environment: &Environment) -> anyhow::Result<Places> {
    let home = environment.primary().map(|site| site.name.to_string()).unwrap_or_default();
    let sites = environment.sites.iter();
    let sites = sites.map(|site| (site.name.to_string(), fault::socket(folder, &site.name, "watch"))).collect();
    let witness = fault::socket(folder, &SiteName::new(fault::WITNESS)?, "witness");
    Ok(Places { sites, witness, home })
}

/// What a site of an environment is bound to: a cluster is its API server, whatever it is called; any other what the environment names,
/// else what is found.
pub fn account_of(environment: &Environment, site: &Site, provider: &str) -> anyhow::Result<String> {
    if provider == cluster::NAME {
        return cluster::account(environment, &site.name);
    }
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

    #[test]
    #[cfg(feature = "kubernetes")]
    fn what_a_cluster_does_nothing_with_is_refused_and_not_passed_over() {
        let refused = |set: &str| {
            let overrides = Overrides { sets: vec![set.to_owned()], ..Overrides::default() };
            let loaded = Library::built_in().load("pilot", &overrides, &catalogue()).unwrap();
            loaded.report.refusals().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        assert!(refused("storage.model_folder=/models").contains("`storage.model_folder`"));
        assert!(!refused("network.proxy.https=http://proxy:3128").contains("network.proxy"));
    }
}
