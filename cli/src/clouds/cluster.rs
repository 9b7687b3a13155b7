//! A site in a cluster: its objects are in the cluster, its secrets and certificates on the operator's machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_kubernetes::{
    Access, CAPABILITIES, ClusterOperations, Kubernetes, ORDERS, QueryApi, Scrape, endpoint, kubeconfig_files,
    local_part,
};
use textnlp_onprem::OnPrem;
use textnlp_orchestrator::environment::{Environment, places};
use textnlp_provider::cluster::{ClusterAccess, ClusterSite};
use textnlp_provider::operations::{Operations, Outages, RolloutStatus, SiteAccess};
use textnlp_provider::{Combined, Error, ErrorKind, Provider, Site, SiteName};

use super::queries::{Figures, Queries};
use super::{Context, Row};
use crate::dr_args::TakeBack;

/// The entry of this provider.
pub(super) const ROW: Row = Row {
    name: "kubernetes",
    about: "any conformant cluster",
    capabilities: CAPABILITIES,
    missing: None,
    assumed: None,
    is_this_machine: false,
    account: |environment, site| Box::pin(async { account(environment, site) }),
    provider,
    records: None,
    operations,
    endpoint,
    bucket: |_, _| None,
};

/// The provider of a site's objects in its cluster and of its secrets and certificates on this machine.
fn provider(context: &Context<'_>) -> anyhow::Result<Arc<dyn Provider>> {
    let mut options = super::options(context)?;
    options.serves_elsewhere = true;
    let Context { secrets, environment, site, take, .. } = context;
    let settings = environment.sites.iter().find(|one| one.name == **site);
    anyhow::ensure!(
        settings.is_none_or(|settings| settings.account.is_none()),
        "a cluster is identified by the address of its API server in the kubeconfig: remove `account` of site {site}"
    );
    let site = cluster_site(environment, site);
    let (file, context) = kubeconfig(&site.settings)?;
    let cluster = Kubernetes::new(Access::kubeconfig(file, context), secrets.clone()).of_site(site);
    let cluster = cluster.taking(take.iter().cloned().collect());
    Ok(Arc::new(Combined::new(Arc::new(cluster), Arc::new(OnPrem::new(options)), local_part)))
}

fn operations(context: &Context<'_>) -> anyhow::Result<Arc<dyn Operations>> {
    let site = cluster_site(context.environment, context.site);
    let is_autoscaled = context.environment.scaling.max.is_some();
    let access = kubeconfig(&site.settings)?;
    let operations = ClusterOperations::new(access, context.secrets.clone(), site.namespace, is_autoscaled);
    Ok(Arc::new(operations.copying_to(context.environment.dump_copies())))
}

/// The cluster of a site of the environment. `plan` and `up` refuse a witness in a cluster, and a site of this provider
/// with another runtime; other commands read their records with the default access.
pub(super) fn cluster_site(environment: &Environment, name: &SiteName) -> ClusterSite {
    let location = places(environment).into_iter().find(|location| location.site.name == *name);
    if let Some(cluster) = location.and_then(|location| location.site.cluster) {
        return *cluster;
    }
    ClusterSite {
        rollout: environment.rollout.strategy,
        min_nodes: environment.cluster.min_nodes,
        phase_nodes: environment.phase.minimum().nodes,
        max_nodes: environment.cluster.max_nodes,
        ..ClusterSite::of(environment.cluster.namespace.clone())
    }
}

/// The kubeconfig, resolved against the working directory or, after `~`, the home directory, and the context in it.
fn kubeconfig(settings: &ClusterAccess) -> anyhow::Result<(Option<PathBuf>, Option<String>)> {
    let here = Utf8PathBuf::try_from(std::env::current_dir()?)?;
    let file = settings
        .kubeconfig
        .as_ref()
        .map(|file| expand_home(file, std::env::home_dir()).unwrap_or_else(|| here.join(file).into_std_path_buf()));
    refuse_exposed(file.as_deref())?;
    Ok((file, settings.context.clone()))
}

/// A path below `~`, as a shell expands it; `None` for others.
fn expand_home(path: &str, home: Option<PathBuf>) -> Option<PathBuf> {
    let below = path.strip_prefix('~')?;
    match below.strip_prefix('/') {
        Some(below) => Some(home?.join(below.trim_start_matches('/'))),
        // `~ada` is another user's, or the name of a file.
        None => home.filter(|_| below.is_empty()),
    }
}

/// Refuses a kubeconfig that other users have access to. It holds credentials, and may name programs that run.
fn refuse_exposed(file: Option<&Path>) -> Result<(), Error> {
    // A missing file is reported where it is read.
    match kubeconfig_files(file).iter().find_map(|file| textnlp_files::check_secret(file).ok().flatten()) {
        Some(exposed) => {
            let error = Error::new(ErrorKind::Denied, "read", format!("kubeconfig {}", exposed.path.display()));
            Err(error.because(exposed.to_string()).hint(exposed.fix()))
        }
        None => Ok(()),
    }
}

/// The account that identifies the cluster. Another cluster behind the same names is another account.
fn account(environment: &Environment, site: &Site) -> anyhow::Result<String> {
    let (file, context) = kubeconfig(&cluster_site(environment, &site.name).settings)?;
    Ok(Kubernetes::server(file.as_deref(), context.as_deref())?)
}

/// Runs the controller of a rollout until it ends, in the pod of its job. Uses the service account in a folder and the
/// commands in its variable. The credentials of an external Prometheus are in a separate folder.
pub(super) async fn control_rollout(
    account: &Utf8Path,
    prometheus: Option<&Utf8Path>,
    report: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<RolloutStatus> {
    let orders = std::env::var(ORDERS).map_err(|_| anyhow::anyhow!("{ORDERS} is not set: only `up` sets it"))?;
    let access = Access::Account(account.into());
    let secrets = super::secrets(account);
    let judges: (&dyn Scrape, &dyn QueryApi) = (&Figures::new()?, &Queries::new(prometheus));
    Ok(Kubernetes::new(access, secrets).run_rollout(&orders, judges, report).await?.status(None))
}

/// Ends an outage in the cluster of a kubeconfig. It may have changed since the outage began, so the API server identifies the cluster.
pub(super) async fn end_outage(args: &TakeBack) -> anyhow::Result<usize> {
    let file = args.kubeconfig.clone().map(Utf8PathBuf::into_std_path_buf);
    refuse_exposed(file.as_deref())?;
    let secrets = super::secrets(&args.state);
    let cluster = ClusterOperations::new((file, args.context.clone()), secrets, String::new(), false);
    let there = args.api_server.as_deref().unwrap_or_default();
    if let SiteAccess::Kubeconfig { api_server, .. } = cluster.access().await? {
        anyhow::ensure!(
            api_server == there,
            "the kubeconfig points to {api_server}, but the fault was injected in {there}: restore that context or that kubeconfig"
        );
    }
    Ok(if args.look { cluster.nodes().await? } else { cluster.end(&args.fault).await? })
}

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::environment::{Catalogue, Library, Overrides, Source};

    use super::*;

    #[test]
    fn kubeconfig_that_others_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        std::fs::write(&file, "{}").unwrap();
        let settings = ClusterAccess { kubeconfig: file.to_str().map(str::to_owned), ..ClusterAccess::default() };
        for (mode, is_refused) in [(0o644, true), (0o600, false)] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            let read = kubeconfig(&settings);
            assert_eq!(read.is_err(), is_refused, "{mode:o}");
            let hint = read.err().and_then(|error| error.downcast_ref::<Error>().and_then(|error| error.hint.clone()));
            assert!(!is_refused || hint.is_some_and(|hint| hint.starts_with("chmod 600 ")));
        }
    }

    #[test]
    fn home_directory_of_a_kubeconfig_is_expanded() {
        let expand = |path: &str| expand_home(path, Some(PathBuf::from("/home/ada")));
        assert_eq!(expand("~/.kube/lab"), Some(PathBuf::from("/home/ada/.kube/lab")));
        assert_eq!(expand("~"), Some(PathBuf::from("/home/ada")));
        for other in ["/a", "a/~", "~bob/config", ""] {
            assert_eq!(expand(other), None, "{other}");
        }
        assert_eq!(expand_home("~/a", None), None);
    }

    #[test]
    fn site_outside_a_cluster_has_default_cluster_access() {
        let text = "extends: base\nenvironment: mine\nphase: staging\nsites: [{ name: here, provider: onprem }]\n";
        let source = Source { label: "mine.yaml".to_owned(), bytes: text.as_bytes().to_vec() };
        let loaded = Library::built_in().load_source(source, &Overrides::default(), &Catalogue::default()).unwrap();
        let site = cluster_site(&loaded.environment, &SiteName::new("here").unwrap());
        assert_eq!((site.namespace, site.settings), (loaded.environment.cluster.namespace, ClusterAccess::default()));
    }
}
