//! A site in a cluster that its cloud creates: resources of the cloud, objects in the cluster, secrets and certificates on the operator's
//! machine. The same for every cloud.

use std::sync::Arc;

use async_trait::async_trait;
use textnlp_kubernetes::{ClusterOperations, Kubernetes, local_part};
use textnlp_onprem::OnPrem;
use textnlp_orchestrator::environment::{Environment, places};
use textnlp_provider::cluster::{Capacity, ClusterSite};
use textnlp_provider::component::{CACHE_PASSWORD, ComponentSpec, Model};
use textnlp_provider::connect::{Connect, HostEndpoint, Locate};
use textnlp_provider::operations::Operations;
use textnlp_provider::{
    CloudId, Combined, Component, ComponentName, Error, ErrorKind, KindName, Observed, Provider, Result, SecondPart,
    Site, SiteName, Through,
};

use super::{Context, cluster};

/// The component whose resource is the cluster.
const HOST: &str = "cluster";
/// The supervisor on the operator's machine, where sites fail over to each other.
const SUPERVISOR: &str = "supervisor";

/// The clusters of a cloud.
pub(super) struct ManagedClusters {
    /// Their kind.
    pub kind: KindName,
    /// How one is signed in to.
    pub connect: Arc<dyn Connect>,
    /// Whether the cloud generates the password of a cache that it runs, so that none is generated here.
    pub generates_cache_password: bool,
}

/// What the provider of objects in a cluster expands.
type Inside = fn(&Component, &Site) -> Option<(Component, Site)>;

/// The provider of a site: `outer` has the resources of the cloud.
pub(super) fn provider(
    context: &Context<'_>,
    outer: Arc<dyn Provider>,
    inside: Inside,
    clusters: ManagedClusters,
) -> anyhow::Result<Arc<dyn Provider>> {
    let Context { secrets, environment, site, take, .. } = context;
    let mut options = super::options(context)?;
    options.serves_elsewhere = true;
    let settings = cluster::cluster_site(environment, site);
    let pod = server_pod(environment, site, &settings);
    let here: SecondPart = if clusters.generates_cache_password { without_cache_password } else { on_this_machine };
    let inner = Kubernetes::of_clusters(secrets.clone()).of_site(settings).taking(take.iter().cloned().collect());
    let inner = Arc::new(inner);
    let reach = {
        let inner = inner.clone();
        Box::new(move |endpoint| Arc::new(inner.through(endpoint)) as Arc<dyn Provider>)
    };
    let through =
        Through::new(outer, inner, reach, HOST.parse()?).expanding(inside).connecting(clusters.kind, clusters.connect);
    let through = through.sizing(pod);
    Ok(Arc::new(Combined::new(Arc::new(through), Arc::new(OnPrem::new(options)), here)))
}

/// What a pod of the servers of a site requests, if the site has servers.
fn server_pod(environment: &Environment, name: &SiteName, site: &ClusterSite) -> Option<Capacity> {
    environment.sites.iter().find(|one| one.name == *name && one.serves())?;
    let models = environment.models.iter().map(|model| Model {
        quantize: model.quantize,
        context: model.context,
        ..Model::of(&model.id(), model.source())
    });
    Some(textnlp_kubernetes::server_pod(&site.settings.resources, &models.collect::<Vec<_>>(), site.gpu.is_some()))
}

/// The part of a component on the operator's machine. The cloud's cluster has the name of its component, so the supervisor of the site agent
/// has another one.
fn on_this_machine(component: &Component, site: &Site) -> Option<(Component, Site)> {
    let (mut component, site) = local_part(component, site)?;
    let supervisor = || ComponentName::new(SUPERVISOR).expect("the constant is a label");
    match &mut component.part {
        ComponentSpec::Cluster(_) => component.name = supervisor(),
        ComponentSpec::Relay(relay) => relay.cluster = supervisor(),
        ComponentSpec::SiteAgent(agent) => agent.cluster = supervisor(),
        _ => {}
    }
    Some((component, site))
}

/// The same without the password of a cache.
fn without_cache_password(component: &Component, site: &Site) -> Option<(Component, Site)> {
    let (mut component, site) = on_this_machine(component, site)?;
    if let ComponentSpec::Secrets(secrets) = &mut component.part {
        secrets.generate.remove(CACHE_PASSWORD);
    }
    Some((component, site))
}

/// The operations of a site. `cloud` reads its cluster: the environment's existing one, or the one with the name of the site. `id` is the
/// id of a cluster's name.
pub(super) fn operations(
    context: &Context<'_>,
    cloud: Arc<dyn Provider>,
    clusters: ManagedClusters,
    name: fn(&Site) -> String,
    id: impl FnOnce(String) -> anyhow::Result<CloudId>,
) -> anyhow::Result<Arc<dyn Operations>> {
    let Context { environment, site, secrets, .. } = context;
    let location = places(environment).into_iter().find(|location| location.site.name == **site);
    let existing = environment.sites.iter().find(|one| one.name == **site).and_then(|one| one.existing.cluster.clone());
    let existing = existing.or_else(|| environment.cluster.existing.clone());
    let name = match (existing, location) {
        (Some(name), _) => name,
        (None, Some(location)) => name(&location.site),
        (None, None) => anyhow::bail!("the environment has no site {site}"),
    };
    let host = SiteCluster { cloud, clusters, id: id(name)? };
    let settings = cluster::cluster_site(environment, site);
    let kubernetes = Kubernetes::located(Arc::new(host), secrets.clone());
    let operations = ClusterOperations::of(kubernetes, settings.namespace, environment.scaling.max.is_some());
    Ok(Arc::new(operations.copying_to(environment.dump_copies())))
}

/// The cluster of a site, for commands that have no outputs at hand.
struct SiteCluster {
    cloud: Arc<dyn Provider>,
    clusters: ManagedClusters,
    id: CloudId,
}

#[async_trait]
impl Locate for SiteCluster {
    async fn locate(&self) -> Result<HostEndpoint> {
        match self.cloud.read(&self.clusters.kind, &self.id).await? {
            Observed::Present(object) => self.clusters.connect.connect(&object.outputs).await,
            Observed::Absent => Err(Error::new(ErrorKind::NotFound, "find cluster", self.id.to_string())),
            Observed::Unknown(why) => {
                Err(Error::new(ErrorKind::Unavailable, "find cluster", self.id.to_string()).because(why.0))
            }
        }
    }
}

/// The region of a site; `cloud` and `example` are for the message when there is none.
pub(super) fn region(environment: &Environment, name: &SiteName, cloud: &str, example: &str) -> anyhow::Result<String> {
    let settings = environment.sites.iter().find(|site| site.name == *name);
    let region = settings.map(|settings| settings.region.clone()).unwrap_or_default();
    anyhow::ensure!(
        !region.is_empty() && region != "local",
        "site {name} has no region of {cloud}: set `sites[].region`, such as {example}"
    );
    Ok(region)
}
