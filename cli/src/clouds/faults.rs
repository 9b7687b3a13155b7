//! Faults of a drill: in local processes, in the inter-site relays of any site, and outages of sites that run
//! elsewhere. Each fault is recorded on this machine. The supervisor here ends it if the drill process died.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use textnlp_onprem::fault::{self, RevertCommand};
use textnlp_orchestrator::dr::fault::{Fault, FaultKind, Faults};
use textnlp_orchestrator::environment::model::Environment;
use textnlp_provider::operations::{Outages, SiteAccess};
use textnlp_provider::{Error, Lineage, SiteName, error_chain};
use textnlp_service::Platform;

use super::{Linked, end_outage};
use crate::dr_args::TakeBack;

/// The faults of an environment's sites.
pub fn faults(folder: &Utf8Path, environment: &Environment, lineage: Lineage) -> anyhow::Result<SiteFaults> {
    let program = Utf8PathBuf::try_from(std::env::current_exe()?)?;
    let (folder, environment) = (folder.to_owned(), environment.clone());
    let local = fault::Faults::new(&folder, &program);
    Ok(SiteFaults { local, folder, environment, lineage, begun: Mutex::default() })
}

/// See [`faults`].
pub struct SiteFaults {
    local: fault::Faults,
    folder: Utf8PathBuf,
    environment: Environment,
    lineage: Lineage,
    /// The outages that this process began, with the command that ends each. Used if the record is gone.
    begun: Mutex<BTreeMap<String, TakeBack>>,
}

impl SiteFaults {
    /// The outages of a site that runs elsewhere, or `None` if it runs on this machine.
    fn outages(&self, site: &str) -> Result<Option<Arc<dyn Outages>>, String> {
        let platform: &dyn Platform = &Linked;
        let operations = platform.operations_of(&self.folder, &self.environment, site, None).map_err(worded)?;
        Ok(operations.and_then(|site| site.outages()))
    }

    /// The same for a fault, if it is an outage. Other faults, including those of relays, are local.
    fn outage(&self, fault: &Fault) -> Result<Option<Arc<dyn Outages>>, String> {
        if fault.kind == FaultKind::Kill { self.outages(&fault.site) } else { Ok(None) }
    }

    async fn written(&self, fault: &Fault) -> Result<fault::Fault, String> {
        let elsewhere = self
            .taken_back_by(fault)
            .await?
            .map(|command| RevertCommand { arguments: command.arguments(), variables: variables() });
        Ok(fault::Fault { elsewhere, ..local(fault)? })
    }

    /// The command that ends an outage.
    async fn taken_back_by(&self, fault: &Fault) -> Result<Option<TakeBack>, String> {
        let Some(outages) = self.outage(fault)? else { return Ok(None) };
        let mut command = TakeBack { state: self.folder.clone(), fault: fault.id.clone(), ..TakeBack::default() };
        match outages.access().await.map_err(hinted)? {
            SiteAccess::Kubeconfig { kubeconfig, context, api_server } => {
                (command.kubeconfig, command.context, command.api_server) = (kubeconfig, context, Some(api_server));
            }
            SiteAccess::Cloud { api_server } => {
                command.environment = Some(cloud_of(&self.environment, &fault.site)?);
                (command.of, command.api_server) = (Some(fault.site.clone()), Some(api_server));
            }
        }
        Ok(Some(command))
    }

    fn begun(&self) -> MutexGuard<'_, BTreeMap<String, TakeBack>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Faults for SiteFaults {
    async fn check(&self, fault: &Fault) -> Result<(), String> {
        let is_of_machines = fault.lose_data || matches!(fault.kind, FaultKind::Freeze | FaultKind::DiskFull);
        if is_of_machines && self.outages(&fault.site)?.is_some() {
            return Err(format!(
                "site {} does not run on this machine: it supports `--fault kill` and `blackhole` only",
                fault.site
            ));
        }
        if let Some(outages) = self.outage(fault)? {
            outages.check(self.lineage).await.map_err(of_site(&fault.site))?;
        }
        let written = self.written(fault).await?;
        self.local.check(&written).map_err(|e| error_chain(&e))?;
        self.local.rehearse(&written).await.map_err(|e| error_chain(&e))
    }

    async fn inject(&self, fault: &Fault) -> Result<(), String> {
        self.local.inject(&self.written(fault).await?).await.map_err(|e| error_chain(&e))?;
        if let Some(command) = self.taken_back_by(fault).await? {
            self.begun().insert(fault.id.clone(), command);
            if let Some(outages) = self.outage(fault)? {
                outages.begin(self.lineage, &fault.id, fault.until).await.map_err(of_site(&fault.site))?;
            }
        }
        Ok(())
    }

    async fn revert(&self, id: &str) -> Result<(), String> {
        let open = match self.local.open() {
            Ok(open) => open,
            Err(_) if self.begun().contains_key(id) => Vec::new(),
            Err(error) => return Err(error_chain(&error)),
        };
        let written = open.into_iter().find(|fault| fault.id == id).and_then(|fault| fault.elsewhere);
        let written = written.map(|elsewhere| TakeBack::parse(&elsewhere.arguments)).transpose()?;
        // Another process may have removed the record meanwhile, and the outage may not have ended completely.
        let Some(command) = written.or_else(|| self.begun().get(id).cloned()) else {
            return self.local.revert(id).await.map_err(|e| error_chain(&e));
        };
        end_outage(&command).await.map_err(worded)?;
        self.local.forget(id).map_err(|e| error_chain(&e))?;
        self.begun().remove(id);
        Ok(())
    }

    async fn open(&self) -> Result<Vec<Fault>, String> {
        let open = self.local.open().map_err(|e| error_chain(&e))?;
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
        if let Ok(Some(outages)) = self.outages(name) {
            let replicas = outages.ready(self.lineage).await.unwrap_or_default();
            ready.extend((1..=replicas).map(|number| format!("pod {number}")));
        }
        ready
    }

    async fn lost_data(&self, fault: &Fault) -> Option<String> {
        self.local.lost_data(&site(&fault.site).ok()?, &fault.id).map(Utf8PathBuf::into_string)
    }

    async fn discard_lost(&self, fault: &Fault) -> Result<(), String> {
        self.local.discard_lost(&site(&fault.site)?, &fault.id).map_err(|e| error_chain(&e))
    }
}

/// What finds the cluster of a site in its cloud, as JSON: the file of the environment may change or be gone when it is needed. It has no
/// secrets: it becomes an argument of a process.
fn cloud_of(environment: &Environment, site: &str) -> Result<String, String> {
    let whole = serde_json::to_value(environment).map_err(|error| error.to_string())?;
    let only = |of: &Value, keys: &[&str]| -> Value {
        let kept = keys.iter().filter_map(|key| Some(((*key).to_owned(), of.get(*key)?.clone())));
        Value::Object(kept.collect())
    };
    let named = whole["sites"].as_array().into_iter().flatten().filter(|one| one["name"] == site);
    let sites: Vec<Value> = named
        .map(|one| {
            let mut kept = only(one, &["name", "role", "provider", "runtime", "region", "account"]);
            kept["existing"] = only(&one["existing"], &["cluster", "role"]);
            kept
        })
        .collect();
    let mut kept = only(&whole, &["environment", "phase", "account"]);
    kept["cluster"] = only(&whole["cluster"], &["namespace", "existing"]);
    kept["sites"] = Value::Array(sites);
    kept["models"] = Value::Array(Vec::new());
    serde_json::from_value::<Environment>(kept.clone()).map_err(|error| error.to_string())?;
    Ok(kept.to_string())
}

/// Ends a drill's outage and removes its record. Returns the number of restored nodes.
pub async fn end_outage_of(args: &TakeBack) -> anyhow::Result<usize> {
    let program = Utf8PathBuf::try_from(std::env::current_exe()?)?;
    let faults = fault::Faults::new(&args.state, &program);
    if !args.look && !faults.is_open(&args.fault)? {
        return Ok(0);
    }
    let timeout = fault::TAKEN_BACK_WITHIN;
    let ended = tokio::time::timeout(timeout, end_outage(args)).await;
    let ended =
        ended.map_err(|_| anyhow::anyhow!("the cluster did not finish it within {} s", timeout.as_secs()))??;
    if !args.look {
        faults.forget(&args.fault)?;
    }
    Ok(ended)
}

/// Outages that have not ended, one line each. The witness's machine must keep running until they end.
pub fn open_outages(folder: &Utf8Path) -> anyhow::Result<Vec<String>> {
    let program = Utf8PathBuf::try_from(std::env::current_exe()?)?;
    let open = fault::Faults::new(folder, &program).open()?;
    let outages = open.into_iter().filter(|fault| fault.elsewhere.is_some());
    Ok(outages.map(|fault| format!("fault {} of {}, until {}", fault.id, fault.site, fault.until)).collect())
}

/// Variables that locate credentials without being secret, and whether each one is a path.
const WAYS: [(&str, bool); 22] = [
    ("KUBECONFIG", true),
    ("AWS_CONFIG_FILE", true),
    ("AWS_SHARED_CREDENTIALS_FILE", true),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", true),
    ("AWS_CA_BUNDLE", true),
    ("CLOUDSDK_CONFIG", true),
    ("GOOGLE_APPLICATION_CREDENTIALS", true),
    ("AZURE_CONFIG_DIR", true),
    ("AZURE_FEDERATED_TOKEN_FILE", true),
    ("TEXTNLP_CA_FILE", true),
    ("AWS_PROFILE", false),
    ("AWS_REGION", false),
    ("AWS_DEFAULT_REGION", false),
    ("AWS_ROLE_ARN", false),
    ("AWS_EC2_METADATA_DISABLED", false),
    ("CLOUDSDK_ACTIVE_CONFIG_NAME", false),
    ("CLOUDSDK_CORE_PROJECT", false),
    ("GOOGLE_CLOUD_PROJECT", false),
    ("AZURE_AUTHORITY_HOST", false),
    ("AZURE_CLIENT_ID", false),
    ("AZURE_SUBSCRIPTION_ID", false),
    ("AZURE_TENANT_ID", false),
];

/// Those variables that are set here, with absolute paths.
fn variables() -> BTreeMap<String, String> {
    let here = std::env::current_dir().ok().and_then(|here| Utf8PathBuf::try_from(here).ok()).unwrap_or_default();
    let absolute_paths = |paths: &str| {
        let paths = paths.split(':').filter(|path| !path.is_empty());
        paths.map(|path| here.join(path).into_string()).collect::<Vec<_>>().join(":")
    };
    let set = WAYS.iter().filter_map(|(name, is_path)| Some((*name, *is_path, std::env::var(name).ok()?)));
    set.map(|(name, is_path, value)| (name.to_owned(), if is_path { absolute_paths(&value) } else { value })).collect()
}

/// An error with its hint on one line.
fn worded(error: anyhow::Error) -> String {
    match error.downcast::<Error>() {
        Ok(error) => hinted(error),
        Err(error) => format!("{error:#}"),
    }
}

fn hinted(error: Error) -> String {
    match &error.hint {
        Some(hint) => format!("{}: {hint}", error_chain(&error)),
        None => error_chain(&error),
    }
}

fn of_site(site: &str) -> impl Fn(Error) -> String {
    move |error| format!("{site}: {}", hinted(error))
}

fn local(fault: &Fault) -> Result<fault::Fault, String> {
    Ok(fault::Fault {
        id: fault.id.clone(),
        site: site(&fault.site)?,
        kind: fault.kind.word().parse().map_err(|e: fault::Error| error_chain(&e))?,
        until: fault.until,
        lose_data: fault.lose_data,
        elsewhere: None,
    })
}

fn site(name: &str) -> Result<SiteName, String> {
    SiteName::new(name).map_err(|e| error_chain(&e))
}

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::environment::{Library, Overrides, places};

    use super::*;

    #[test]
    fn a_site_of_a_cloud_is_found_again_by_what_its_fault_records() {
        let sets = [
            "sites[0].account='111122223333'",
            "sites[0].existing.role=arn:aws:iam::111122223333:role/deployer",
            "cluster.namespace=texts",
            "database.url=postgres://db.example.com/x?application_name=hunter2",
        ];
        let overrides = Overrides { sets: sets.map(str::to_owned).into(), ..Overrides::default() };
        let loaded = Library::built_in().load("multi-region-clouds", &overrides, &super::super::catalogue()).unwrap();
        for site in ["primary", "secondary", "tertiary"] {
            let record = cloud_of(&loaded.environment, site).unwrap();
            assert!(record.len() < 1500 && !record.contains("hunter2"), "{record}");
            let again: Environment = serde_json::from_str(&record).unwrap();
            let found = |environment: &Environment| {
                let place = places(environment).into_iter().find(|one| one.site.name.as_str() == site).unwrap();
                let settings = environment.sites.iter().find(|one| one.name.as_str() == site).unwrap();
                let name = (place.site.environment, place.site.name, place.site.account, place.site.region);
                let namespace = place.site.cluster.map(|cluster| cluster.namespace);
                (place.provider, name, namespace, settings.existing.cluster.clone(), settings.existing.role.clone())
            };
            assert_eq!(found(&again), found(&loaded.environment));
        }
    }
}
