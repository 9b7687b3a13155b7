//! A site in a cluster: its objects there, its secrets and its certificate here, where the operator is.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use textnlp_kubernetes::{
    ADAPTER_COMPONENT, Access, Analytics, Ask, BACKUP, CompanyNetwork, Export, FILLED_BY_CERT_MANAGER, Form, Ingress,
    Kubernetes, ModelVolume, Nodes, ORDERS, OwnPostgres, Placement, Scrape, Spot, Wish,
};
use textnlp_models::Catalogue;
use textnlp_onprem::OnPrem;
use textnlp_orchestrator::environment::model::{self, Address, ClusterAccess, Hosting, IngressKind, Strategy};
use textnlp_orchestrator::environment::{Environment, REPLICATION_PASSWORD, saml_settings};
use textnlp_provider::component::Part;
use textnlp_provider::{
    CloudId, Component, FieldChange, Handle, Kind, KindName, Lineage, Object, Observed, Operation, Problem, Problems,
    Progress, Provider, Recorded, ResourceId, Result, Scope, SecretStore, Site, SiteName, Wanted,
};

pub use super::adapter::run as adapter;
use super::faults::{Outage, Way};
use super::queries::{Queries, authority};
use super::{Autoscaler, Exported, Said, Scale, Tool};
use crate::dr_args::TakeBack;

/// Its name in environment files.
pub(super) const NAME: &str = "kubernetes";
/// The deployment of the servers, and the container of theirs that knows the database.
const SERVERS: &str = "textnlp-api";
const SERVER: &str = "api";
/// What decides how many of them there are.
const AUTOSCALER: &str = "textnlp-api-hpa";
/// How the kinds of objects in clusters begin.
const KINDS: &str = "kubernetes.";

/// Nobody but the API server sees the adapter's certificate, and it is told whose it is: that it ends is no use to anybody.
const ADAPTER_DAYS: u32 = 1825;

/// Two providers as one: each kind has its own.
pub(super) struct InCluster {
    cluster: Kubernetes,
    machine: OnPrem,
    /// Whether other sites take over from this one: its watch and its border stand here, outside of what may be lost.
    is_watched: bool,
}

impl InCluster {
    pub(super) fn new(
        machine: OnPrem,
        secrets: Arc<dyn SecretStore>,
        environment: &Environment,
        site: &SiteName,
        take: &[String],
    ) -> anyhow::Result<Self> {
        let access = access(environment, site);
        let (file, context) = way_in(&access)?;
        let settings = environment.sites.iter().find(|one| one.name == *site);
        anyhow::ensure!(
            settings.is_none_or(|settings| settings.account.is_none()),
            "a cluster is known by the address of its API server, which the kubeconfig says: remove `account` of site {site}"
        );
        let port = settings.and_then(|settings| settings.port);
        let by_name = environment.traffic.domain.as_ref();
        let by_name = by_name.map(|name| format!("https://{name}:{}", port.unwrap_or(environment.server.api.port)));
        let ingress = ingress(&access, environment);
        // Whoever ends TLS before the service has the port that browsers take.
        let at = access.ingress.as_ref().and_then(|ingress| ingress.port).filter(|port| *port != 443);
        let at = at.map_or(String::new(), |port| format!(":{port}"));
        let led =
            ingress.is_some().then(|| environment.traffic.domain.as_ref().map(|name| format!("https://{name}{at}")));
        let here = Utf8PathBuf::try_from(std::env::current_dir()?)?;
        let placement = Placement {
            analytics: analytics(&access),
            // A file that is gone keeps nobody from looking, and from removing what was made with it.
            saml: access.saml.as_ref().map(|file| saml_settings(&here.join(file)).map_err(|problem| problem.cause)),
            prometheus_ca: environment
                .rollout
                .prometheus
                .as_ref()
                .and_then(|prometheus| prometheus.ca_file.as_ref())
                .map(|file| authority(&here.join(file))),
            models: model_volume(&access, environment),
            company: company(environment, &here),
            nodes: nodes(&access),
            namespace: environment.cluster.namespace.clone(),
            image: access.image,
            led_by_others: (access.address.is_some() && !access.load_balancer) || ingress.is_some(),
            ingress,
            openshift: access.openshift,
            waf: environment.network.waf,
            model_bytes: model_bytes(environment),
            tls_secret: settings
                .and_then(|settings| settings.existing.certificate.clone())
                .or_else(|| environment.tls.existing.clone()),
            postgres: own_postgres(environment, access.database_image),
            canary: environment.rollout.strategy != Strategy::Rolling,
            weighted: environment.rollout.strategy == Strategy::Canary,
            adapter: environment.scaling.adapter,
            min_nodes: environment.cluster.min_nodes,
            max_nodes: environment.cluster.max_nodes,
            address: access
                .address
                .map(|address| address.trim_end_matches('/').to_owned())
                .or(led.flatten())
                .or(by_name),
        };
        let cluster = Kubernetes::new(Access::Kubeconfig { file, context }, secrets).placed(placement);
        let cluster = cluster.taking(take.iter().cloned().collect());
        Ok(Self { cluster, machine, is_watched: environment.witness_place().is_some() })
    }

    fn of(&self, kind: &KindName) -> &dyn Provider {
        if is_there(kind) { &self.cluster } else { &self.machine }
    }
}

/// What is trusted besides the public authorities, and the proxy by which pods fetch models.
fn company(environment: &Environment, here: &Utf8Path) -> CompanyNetwork {
    let network = &environment.network;
    // One that is a secret was refused.
    let url = |address: &Option<Address>| match address {
        Some(Address::Url(url)) => Some(url.clone()),
        _ => None,
    };
    let but_for = Some(network.proxy.no_proxy.join(",")).filter(|hosts| !hosts.is_empty());
    let proxy =
        [("HTTPS_PROXY", url(&network.proxy.https)), ("HTTP_PROXY", url(&network.proxy.http)), ("NO_PROXY", but_for)];
    CompanyNetwork {
        authority: network.private_ca.as_ref().map(|file| authority(&here.join(file))),
        proxy: proxy.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect(),
    }
}

/// What the models weigh together at the most, as numbers of four bytes; `None` where the catalogue does not have one of them.
fn model_bytes(environment: &Environment) -> Option<u64> {
    let catalogue = Catalogue::embedded();
    let of = |source: &str| {
        let entry = catalogue.get(source).or_else(|| {
            let source = source.parse().ok()?;
            catalogue.entries().find(|entry| entry.source == source)
        })?;
        entry.parameters.checked_mul(4)
    };
    environment.models.iter().map(|model| of(model.source())).sum()
}

/// The PostgreSQL that the environment wants beside its servers, if it wants one.
fn own_postgres(environment: &Environment, image: Option<String>) -> Option<OwnPostgres> {
    let database = &environment.database;
    (environment.database_hosting() == Some(Hosting::Cluster)).then(|| OwnPostgres {
        image: image.unwrap_or_else(|| format!("ghcr.io/cloudnative-pg/postgresql:{}", database.version)),
        database: database.name.clone(),
        version: database.version,
        disk_bytes: database.size.0,
        dumps_bytes: environment.backup.size.unwrap_or(database.size).0,
    })
}

/// The job of the operator's, which validation has seen to name an image.
fn analytics(access: &ClusterAccess) -> Option<Analytics> {
    let settings = access.analytics.clone()?;
    Some(Analytics {
        image: settings.image?,
        schedule: settings.schedule,
        command: settings.command,
        deadline_seconds: settings.deadline.as_seconds(),
        memory_bytes: settings.memory.0,
        spot: match settings.spot {
            model::Spot::Never => Spot::Never,
            model::Spot::Prefer => Spot::Prefer,
            model::Spot::Only => Spot::Only,
        },
    })
}

fn model_volume(access: &ClusterAccess, environment: &Environment) -> ModelVolume {
    let models = access.models.clone();
    match (models.kind, models.reference) {
        (model::ModelVolume::Claim, _) => {
            let bytes = models.size.unwrap_or(environment.storage.model_cache).0;
            ModelVolume::Claim { bytes, class: models.storage_class }
        }
        (model::ModelVolume::Image, Some(reference)) => ModelVolume::Image { reference },
        // A folder of a node, and an image that nobody names, were refused by validation.
        (model::ModelVolume::Pod | model::ModelVolume::Node | model::ModelVolume::Image, _) => ModelVolume::Pod,
    }
}

fn nodes(access: &ClusterAccess) -> Nodes {
    let bears = |taint: &model::Toleration| {
        let mut bears = json!({ "operator": taint.operator });
        for (field, value) in
            [("key", json!(taint.key)), ("value", json!(taint.value)), ("effect", json!(taint.effect))]
        {
            if !value.is_null() {
                bears[field] = value;
            }
        }
        bears
    };
    Nodes {
        selector: access.node_selector.clone(),
        tolerations: access.tolerations.iter().map(bears).collect(),
        runtime_class: access.runtime_class.clone(),
        priority_class: access.priority_class.clone(),
    }
}

fn ingress(access: &ClusterAccess, environment: &Environment) -> Option<Ingress> {
    let (settings, host) = (access.ingress.clone()?, environment.traffic.domain.clone()?);
    Some(match settings.kind {
        IngressKind::Route => Ingress::Route { host },
        IngressKind::Gateway => {
            let gateway = settings.gateway?;
            let (namespace, name) = gateway.split_once('/')?;
            Ingress::Gateway {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                section: settings.section,
                port: settings.port.unwrap_or(443),
                host,
            }
        }
        IngressKind::Ingress => Ingress::Nginx {
            class: settings.class?,
            host,
            tls_secret: settings.tls_secret.unwrap_or_else(|| FILLED_BY_CERT_MANAGER.to_owned()),
            issuer: settings.issuer,
        },
    })
}

fn is_there(kind: &KindName) -> bool {
    kind.as_str().starts_with(KINDS)
}

fn access(environment: &Environment, site: &SiteName) -> ClusterAccess {
    environment.sites.iter().find(|one| one.name == *site).map(|one| one.cluster.clone()).unwrap_or_default()
}

/// The kubeconfig, from where the command was typed, and the context in it.
fn way_in(access: &ClusterAccess) -> anyhow::Result<(Option<PathBuf>, Option<String>)> {
    let here = Utf8PathBuf::try_from(std::env::current_dir()?)?;
    let file = access.kubeconfig.as_ref().map(|file| here.join(file).into_std_path_buf());
    Ok((file, access.context.clone()))
}

/// Which cluster: another one behind the same names is another place.
pub(super) fn account(environment: &Environment, site: &SiteName) -> anyhow::Result<String> {
    let (file, context) = way_in(&access(environment, site))?;
    Ok(Kubernetes::server(file.as_deref(), context.as_deref())?)
}

/// What is wanted there, for another tool; what is made here for it is not part of that.
pub fn exported(wanted: &[Wanted], environment: &Environment, tool: Tool) -> anyhow::Result<Exported> {
    let form = match tool {
        Tool::Kubectl => Form::Yaml,
        Tool::Kustomize => Form::Kustomize,
        Tool::Helm => Form::Helm,
    };
    let there: Vec<Wanted> = wanted.iter().filter(|one| is_there(&one.kind)).cloned().collect();
    let Export { files, secrets } =
        textnlp_kubernetes::export(&there, environment.environment.as_str(), form).map_err(anyhow::Error::msg)?;
    Ok(Exported {
        files: files.into_iter().map(|file| (file.path, file.text)).collect(),
        secrets: secrets.into_iter().map(|one| (one.name, one.kind, one.keys.into_iter().collect())).collect(),
    })
}

/// A way into the cluster of a site, left out of the home site, or of the first that is in one: for what is asked beside plans.
fn beside(folder: &Utf8Path, environment: &Environment, site: Option<&str>) -> anyhow::Result<Kubernetes> {
    let clusters = || environment.sites.iter().filter(|site| site.provider == NAME);
    let named = clusters().find(|one| site.is_some_and(|site| one.name.as_str() == site));
    let home = || environment.primary().filter(|home| home.provider == NAME);
    let site = named.or_else(home).or_else(|| clusters().next());
    way_to(folder, &site.map(|site| site.cluster.clone()).unwrap_or_default())
}

fn way_to(folder: &Utf8Path, access: &ClusterAccess) -> anyhow::Result<Kubernetes> {
    let (file, context) = way_in(access)?;
    Ok(Kubernetes::new(Access::Kubeconfig { file, context }, super::secrets(folder)))
}

/// Has the servers of an environment in a cluster, of this site where it is named, run their program once with other arguments; see [`Said`].
pub async fn errand(
    folder: &Utf8Path,
    environment: &Environment,
    site: Option<&str>,
    within: (&str, Lineage),
    arguments: &[String],
) -> anyhow::Result<Said> {
    let done = beside(folder, environment, site)?.errand(within, SERVERS, SERVER, arguments).await?;
    Ok(Said { answer: done.answer(), failed: (!done.succeeded).then(|| done.failure().to_string()) })
}

/// Has the cluster of an environment make a dump of its database now, waits for it so long and tells what keeps it, and gives its report in a
/// line.
pub async fn dump_now(
    folder: &Utf8Path,
    environment: &Environment,
    lineage: Lineage,
    within: Duration,
    tell: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<String> {
    let place = (environment.cluster.namespace.as_str(), lineage);
    let done = beside(folder, environment, None)?.run_now(place, BACKUP, within, tell).await?;
    anyhow::ensure!(done.succeeded, done.failure());
    Ok(done.said.lines().last().unwrap_or("the cluster does not say what came of it").to_owned())
}

/// When the cluster of an environment last ended a dump of its database well; `None` where none was yet.
pub async fn last_dump(
    folder: &Utf8Path,
    environment: &Environment,
    lineage: Lineage,
) -> anyhow::Result<Option<jiff::Timestamp>> {
    let place = (environment.cluster.namespace.as_str(), lineage);
    let last = beside(folder, environment, None)?.last_success(place, BACKUP).await?;
    Ok(last.and_then(|last| last.parse().ok()))
}

/// What the job that rolls the pods of an environment in a cluster says, and whether it goes on; a wish (`promote`, `abort`, `pause`,
/// `resume`, `retry`) is told to it. `None` where there was no rollout.
pub async fn rollout(
    folder: &Utf8Path,
    environment: &Environment,
    site: Option<&str>,
    lineage: Lineage,
    wish: Option<&str>,
) -> anyhow::Result<Option<Value>> {
    let place = (environment.cluster.namespace.as_str(), lineage);
    let cluster = beside(folder, environment, site)?;
    let found = match wish {
        Some("retry") => Some((cluster.retry(place, SERVERS).await?, false)),
        Some(wish) => {
            let wish: Wish = serde_json::from_value(json!(wish))?;
            Some((cluster.wish(place, SERVERS, wish).await?, true))
        }
        None => cluster.rollout(place, SERVERS).await?,
    };
    Ok(found.map(|(told, goes_on)| {
        let mut told = json!(told);
        told["goes_on"] = json!(goes_on);
        told
    }))
}

/// The servers of an environment in a cluster, looked at by one way in.
pub struct Pods {
    cluster: Kubernetes,
    namespace: String,
    lineage: Lineage,
    autoscaler: Option<&'static str>,
}

/// See [`Pods`]. Nothing is asked yet.
pub fn pods(folder: &Utf8Path, environment: &Environment, lineage: Lineage) -> anyhow::Result<Pods> {
    Ok(Pods {
        cluster: beside(folder, environment, None)?,
        namespace: environment.cluster.namespace.clone(),
        lineage,
        autoscaler: environment.scaling.max.map(|_| AUTOSCALER),
    })
}

impl Pods {
    /// How many there are, as their autoscaler sees them; see [`Scale`].
    pub async fn scale(&self) -> anyhow::Result<Scale> {
        let place = (self.namespace.as_str(), self.lineage);
        let found = self.cluster.scale(place, SERVERS, self.autoscaler).await?;
        let autoscaler = found.autoscaler.map(|one| Autoscaler { reads: one.reads, told: one.told, blind: one.blind });
        Ok(Scale { wanted: found.wanted, ready: found.ready, autoscaler })
    }
}

/// What the job itself does: sees a rollout to its end, by the account in a folder and the orders of its variable.
/// What else it asks with is in a folder of its own.
pub async fn see_to(
    account: &Utf8Path,
    prometheus: Option<&Utf8Path>,
    tell: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<Value> {
    let orders = std::env::var(ORDERS).map_err(|_| anyhow::anyhow!("{ORDERS} is not set: only `up` gives it"))?;
    let access = Access::Account(account.into());
    let secrets = super::secrets(account);
    let judges: (&dyn Scrape, &dyn Ask) = (&Figures::new()?, &Queries::new(prometheus));
    Ok(json!(Kubernetes::new(access, secrets).see_to(&orders, judges, tell).await?))
}

/// Asks the cluster of a site; see [`Outage`].
pub(super) async fn outage(
    folder: &Utf8Path,
    environment: &Environment,
    site: &SiteName,
    lineage: Lineage,
    what: Outage<'_>,
) -> anyhow::Result<usize> {
    let cluster = way_to(folder, &access(environment, site))?;
    let place = (environment.cluster.namespace.as_str(), lineage);
    Ok(match what {
        Outage::May => cluster.may_lose(place, SERVERS).await.map(|()| 0)?,
        Outage::Begin(id, until) => cluster.lose(place, SERVERS, (id, until)).await.map(|()| 0)?,
        Outage::Ready => cluster.ready_pods(place, SERVERS).await?,
    })
}

/// Gives back what a fault took. A cluster is known by its API server: contexts are chosen anew, and kubeconfigs written anew.
pub(super) async fn find_again(args: &TakeBack) -> anyhow::Result<usize> {
    let (file, context) = (args.kubeconfig.as_ref().map(|file| file.as_std_path()), args.context.as_deref());
    let server = Kubernetes::server(file, context)?;
    anyhow::ensure!(
        server == args.api_server,
        "the kubeconfig leads to {server}, and the fault is of {}: give it that context, or that kubeconfig, again",
        args.api_server
    );
    let access = Access::Kubeconfig { file: file.map(Into::into), context: context.map(str::to_owned) };
    let cluster = Kubernetes::new(access, super::secrets(&args.state));
    Ok(if args.look { cluster.sees_nodes().await? } else { cluster.find_again(&args.fault).await? })
}

/// See [`Way`].
pub(super) fn way_to_server(environment: &Environment, site: &SiteName) -> anyhow::Result<Way> {
    let (file, context) = way_in(&access(environment, site))?;
    let context = context.or_else(|| Kubernetes::current_context(file.as_deref()));
    let server = Kubernetes::server(file.as_deref(), context.as_deref())?;
    Ok((file.map(Utf8PathBuf::try_from).transpose()?, context, server))
}

/// How long a pod may take to tell its figures.
const SCRAPED_WITHIN: Duration = Duration::from_secs(2);
/// The longest text of figures that is read.
const FIGURES_MAX: usize = 4 << 20;

/// Fetches figures as a Prometheus would.
pub(super) struct Figures(reqwest::Client);

impl Figures {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self(reqwest::Client::builder().timeout(SCRAPED_WITHIN).build()?))
    }
}

#[async_trait]
impl Scrape for Figures {
    async fn scrape(&self, address: IpAddr, port: u16) -> Result<String, String> {
        let url = format!("http://{}/metrics", SocketAddr::new(address, port));
        let asked = async {
            let mut answer = self.0.get(url).send().await?.error_for_status()?;
            let mut read = Vec::new();
            while let Some(part) = answer.chunk().await?.filter(|part| read.len() + part.len() <= FIGURES_MAX) {
                read.extend_from_slice(&part);
            }
            Ok::<_, reqwest::Error>(String::from_utf8_lossy(&read).into_owned())
        };
        asked.await.map_err(|error| error.to_string())
    }
}

#[async_trait]
impl Provider for InCluster {
    fn kinds(&self) -> &'static [Kind] {
        static BOTH: OnceLock<Vec<Kind>> = OnceLock::new();
        BOTH.get_or_init(|| self.cluster.kinds().iter().chain(self.machine.kinds()).cloned().collect())
    }

    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        let mut wanted = self.cluster.lower(component, site)?;
        let here = match &component.part {
            Part::Network(network) => {
                // The folder that secrets and certificates of the site lie in.
                let network = Part::Network(textnlp_provider::component::Network { cidr: None, ..network.clone() });
                Some(Component { existing: None, part: network, ..component.clone() })
            }
            // A certificate that exists is a Secret there.
            Part::Certificate(_) if component.existing.is_some() => None,
            // Instances of one database know one another by certificates there.
            Part::Secrets(secrets) => {
                let mut secrets = secrets.clone();
                secrets.generate.remove(REPLICATION_PASSWORD);
                Some(Component { part: Part::Secrets(secrets), ..component.clone() })
            }
            // Whom the API server asks shows it a certificate of its own.
            Part::Workload(_) => self.cluster.asked_as().map(|name| Component {
                name: ADAPTER_COMPONENT.parse().expect("the constant is a label"),
                existing: None,
                part: Part::Certificate(textnlp_provider::component::Certificate {
                    mode: "local-ca".to_owned(),
                    names: vec![name],
                    days: ADAPTER_DAYS,
                }),
            }),
            // One that runs there has nothing here but its password.
            Part::Database(database) if database.postgres.as_ref().is_some_and(|one| one.address.is_none()) => None,
            Part::Certificate(_) | Part::Database(_) => Some(component.clone()),
            // The supervisor of the watch.
            Part::Cluster(of) if self.is_watched => {
                let of = textnlp_provider::component::Cluster { gpu: None, ..of.clone() };
                Some(Component { existing: None, part: Part::Cluster(of), ..component.clone() })
            }
            Part::Border(_) | Part::Watch(_) => Some(component.clone()),
            _ => None,
        };
        if let Some(here) = here {
            let local = Site { runtime: "process".to_owned(), ..site.clone() };
            let made = self.machine.lower(&here, &local)?;
            // Files that programs would read here, where none does.
            wanted.extend(made.into_iter().filter(|one| self.is_watched || one.kind.as_str() != "onprem.file"));
        }
        Ok(wanted)
    }

    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        self.of(&wanted.kind).diff(wanted, recorded, seen)
    }

    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>> {
        let (there, here): (Vec<_>, Vec<_>) = wanted.iter().cloned().partition(|one| is_there(&one.kind));
        let mut problems = self.cluster.preflight(&there).await?;
        problems.extend(self.machine.preflight(&here).await?);
        Ok(problems)
    }

    async fn observe(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        let (wanted_there, wanted_here): (Vec<_>, Vec<_>) =
            scope.wanted.iter().cloned().partition(|one| is_there(&one.kind));
        let (recorded_there, recorded_here): (Vec<_>, Vec<_>) =
            scope.recorded.iter().cloned().partition(|one| is_there(&one.kind));
        let there = Scope { wanted: &wanted_there, recorded: &recorded_there, ..*scope };
        let here = Scope { wanted: &wanted_here, recorded: &recorded_here, ..*scope };
        let mut seen = self.cluster.observe(&there).await?;
        seen.extend(self.machine.observe(&here).await?);
        Ok(seen)
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        self.of(kind).read(kind, id).await
    }

    async fn begin(&self, op: &Operation) -> Result<Progress> {
        self.of(&op.kind).begin(op).await
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress> {
        self.of(&op.kind).advance(op, handle).await
    }
}
