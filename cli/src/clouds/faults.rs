//! What a drill does to sites, and takes back: to local processes, to the links of any site, and to the pods of a cluster. Each fault is written
//! down on this machine, by whose supervisor it ends when the drill died.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_onprem::fault::{self, Elsewhere};
use textnlp_orchestrator::dr::fault::{Fault, FaultKind, Faults};
use textnlp_orchestrator::environment::model::Environment;
use textnlp_provider::{Lineage, SiteName, told};

use super::cluster;
use crate::dr_args::TakeBack;

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
            cluster::way_to_server(&self.environment, &site(&fault.site)?).map_err(worded)?;
        let (state, fault) = (self.folder.clone(), fault.id.clone());
        Ok(Some(TakeBack { state, fault, kubeconfig, context, api_server, look: false }))
    }

    fn begun(&self) -> MutexGuard<'_, BTreeMap<String, TakeBack>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is asked of the cluster of a site.
    async fn outage(&self, name: &str, what: Outage<'_>) -> Result<usize, String> {
        let site = site(name)?;
        let asked = cluster::outage(&self.folder, &self.environment, &site, self.lineage, what).await;
        asked.map_err(|error| format!("{site}: {}", worded(error)))
    }
}

/// What is asked of a cluster in a rehearsal of its loss.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(
    not(feature = "kubernetes"),
    expect(dead_code, reason = "nobody reads what is asked of clusters that there are not")
)]
pub(super) enum Outage<'a> {
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
        let is_of_machines = fault.lose_data || matches!(fault.kind, FaultKind::Freeze | FaultKind::DiskFull);
        if is_of_machines && self.is_in_cluster(&fault.site) {
            return Err(format!(
                "{} is in a cluster, whose nodes are not ours to stop or to fill: `--fault kill` or `blackhole`",
                fault.site
            ));
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
        cluster::find_again(&command).await.map_err(worded)?;
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
    let given = tokio::time::timeout(within, cluster::find_again(args)).await;
    let given = given.map_err(|_| anyhow::anyhow!("the cluster did not do it within {} s", within.as_secs()))??;
    if !args.look {
        faults.forget(&args.fault)?;
    }
    Ok(given)
}

/// Faults of clusters that are not taken back, each as a person is told of it: with the machine of the witness, whoever would do that goes.
pub fn lost_clusters(folder: &Utf8Path) -> anyhow::Result<Vec<String>> {
    let program = Utf8PathBuf::try_from(std::env::current_exe()?)?;
    let open = fault::Faults::new(folder, &program).open()?;
    let of_clusters = open.into_iter().filter(|fault| fault.elsewhere.is_some());
    Ok(of_clusters.map(|fault| format!("fault {} of {}, until {}", fault.id, fault.site, fault.until)).collect())
}

/// How the cluster of a site is reached from anywhere on this machine: its kubeconfig, the context in it, and the API server.
pub(super) type Way = (Option<Utf8PathBuf>, Option<String>, String);

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

/// An error with what to do about it.
fn worded(error: anyhow::Error) -> String {
    match error.downcast_ref::<textnlp_provider::Error>().and_then(|why| why.hint.as_ref()) {
        Some(hint) => format!("{error:#}: {hint}"),
        None => format!("{error:#}"),
    }
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
