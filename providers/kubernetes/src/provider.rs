//! [`Kubernetes`]: the provider's face.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;
use textnlp_provider::connect::Endpoint;
use textnlp_provider::{
    CloudId, Component, Error, FieldChange, Handle, Kind, KindName, Object, Observed, Operation, Problem, Problems,
    Progress, Provider, Recorded, ResourceId, Result, Scope, SecretStore, Site, Sort, Wanted,
};
use tokio::sync::Mutex;

use crate::api::Api;
use crate::credential::Tokens;
use crate::lower::{self, ADAPTER, Ingress, Placement};
use crate::verbs::Work;
use crate::{credential, diff, observe, preflight, table};

/// How a cluster is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// By a kubeconfig: this file, else `KUBECONFIG`, else `~/.kube/config`; this context of it, else its current one.
    Kubeconfig {
        /// The file.
        file: Option<PathBuf>,
        /// The context.
        context: Option<String>,
    },
    /// As a service account, whose `token` and `ca.crt` lie in this folder of the pod that this runs in.
    Account(PathBuf),
}

/// The way in.
enum Way {
    By(Access),
    /// Through the cluster's own resource. It has no `Debug`: it leads to a credential.
    Through(Endpoint),
    /// Through a cluster that nobody named yet.
    None,
}

/// One cluster as a provider.
///
/// Every object carries its lineage as a label and is applied under a field manager of the lineage's own. Nothing is forced but what
/// [`Kubernetes::taking`] names: a field that another manager holds is left to it, or named as what stands in the way.
pub struct Kubernetes {
    way: Way,
    secrets: Arc<dyn SecretStore>,
    taking: BTreeSet<String>,
    placement: Option<Placement>,
    connected: Mutex<Option<Connected>>,
}

/// The way to the API server, and until when its credential is good where that is known.
struct Connected {
    api: Api,
    until: Option<SystemTime>,
}

impl Kubernetes {
    /// The provider for one cluster; it is not called before it is asked. Secrets that objects hold are read from `secrets`.
    pub fn new(access: Access, secrets: Arc<dyn SecretStore>) -> Self {
        Self::by(Way::By(access), secrets)
    }

    /// The provider for clusters that may not be there yet: it is asked what is pure, and [`through`](Self::through) makes the one for each
    /// cluster.
    pub fn of_clusters(secrets: Arc<dyn SecretStore>) -> Self {
        Self::by(Way::None, secrets)
    }

    /// The same provider for the cluster at an endpoint, with nothing of any other cluster.
    #[must_use]
    pub fn through(&self, endpoint: Endpoint) -> Self {
        let (taking, placement) = (self.taking.clone(), self.placement.clone());
        Self { taking, placement, ..Self::by(Way::Through(endpoint), self.secrets.clone()) }
    }

    fn by(way: Way, secrets: Arc<dyn SecretStore>) -> Self {
        Self { way, secrets, taking: BTreeSet::new(), placement: None, connected: Mutex::default() }
    }

    /// The same with where a site's objects go: what components are made into needs it.
    #[must_use]
    pub fn placed(self, placement: Placement) -> Self {
        Self { placement: Some(placement), ..self }
    }

    /// The name by which the API server asks the adapter, where there is one: its certificate is made elsewhere.
    pub fn asked_as(&self) -> Option<String> {
        let place = self.placement.as_ref().filter(|place| place.adapter)?;
        Some(format!("{ADAPTER}.{}.svc", place.namespace))
    }

    /// The context of a kubeconfig that is taken where none is named.
    pub fn current_context(file: Option<&Path>) -> Option<String> {
        file.map(Kubeconfig::read_from).unwrap_or_else(Kubeconfig::read).ok()?.current_context
    }

    /// The address of the API server that a kubeconfig leads to, which is what a deployment is bound to. Nothing is asked.
    pub fn server(file: Option<&Path>, context: Option<&str>) -> Result<String> {
        let what = file.map_or("the kubeconfig".to_owned(), |file| format!("kubeconfig {}", file.display()));
        let refused = |why: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(Sort::Denied, "read", what.clone()).because(why).hint(WAY_IN)
        };
        let read = file.map(Kubeconfig::read_from).unwrap_or_else(Kubeconfig::read).map_err(|e| refused(boxed(e)))?;
        let wanted = context.or(read.current_context.as_deref());
        let named = wanted.and_then(|wanted| read.contexts.iter().find(|one| one.name == wanted));
        let Some(cluster) = named.and_then(|named| Some(&named.context.as_ref()?.cluster)) else {
            let why =
                wanted.map_or("it has no current context".to_owned(), |wanted| format!("it has no context `{wanted}`"));
            return Err(refused(why.into()));
        };
        let found =
            read.clusters.iter().find(|one| one.name == *cluster).and_then(|one| one.cluster.as_ref()?.server.clone());
        found.ok_or_else(|| refused(format!("it does not say where cluster `{cluster}` is").into()))
    }

    /// The same provider, which takes these fields from whoever owns them, as refusals name them: `spec.replicas`. What a person agreed
    /// to take, and nothing else, is forced.
    #[must_use]
    pub fn taking(self, fields: BTreeSet<String>) -> Self {
        Self { taking: fields, ..self }
    }

    /// The provider for the API server that a client talks to; the client must not repeat calls by itself.
    pub fn with_client(client: kube::Client, secrets: Arc<dyn SecretStore>) -> Self {
        let connected = Connected { api: Api::new(client, None), until: None };
        Self { connected: Mutex::new(Some(connected)), ..Self::by(Way::None, secrets) }
    }

    /// What the pods run.
    pub(crate) fn image(&self) -> Option<&str> {
        self.placement.as_ref()?.image.as_deref()
    }

    /// The port of a Gateway that clients come by, where they come by one.
    pub(crate) fn gateway_port(&self) -> Option<u16> {
        match self.placement.as_ref()?.ingress {
            Some(Ingress::Gateway { port, .. }) => Some(port),
            _ => None,
        }
    }

    /// How many nodes the cluster should have at least.
    pub(crate) fn min_nodes(&self) -> u32 {
        self.placement.as_ref().map_or(0, |placement| placement.min_nodes)
    }

    /// Whether it is said to be one, besides by a Route.
    pub(crate) fn is_told_of_openshift(&self) -> bool {
        self.placement.as_ref().is_some_and(|placement| placement.openshift)
    }

    /// How many it may have at most, where that is more.
    pub(crate) fn max_nodes(&self) -> Option<u32> {
        let placement = self.placement.as_ref()?;
        placement.max_nodes.filter(|most| *most > placement.min_nodes)
    }

    /// The fields that are taken from their owners.
    pub(crate) fn taken(&self) -> &BTreeSet<String> {
        &self.taking
    }

    pub(crate) fn secrets(&self) -> &dyn SecretStore {
        &*self.secrets
    }

    /// The way to the API server, with a credential that has not ended.
    pub(crate) async fn api(&self) -> Result<Api> {
        let mut connected = self.connected.lock().await;
        let api = match &*connected {
            Some(Connected { api, until }) if until.is_none_or(|until| SystemTime::now() < until) => api.clone(),
            _ => connected.insert(connect(&self.way).await?).api.clone(),
        };
        drop(connected);
        // Where no token can be had nothing is asked: its cause is better than that of each call.
        api.signed_in().await?;
        Ok(api)
    }
}

const WAY_IN: &str =
    "`kubectl config view --minify` shows what is used; set KUBECONFIG or name the file and the context";

/// What is said of the way in.
async fn configured(access: &Access) -> Result<kube::Config> {
    let (what, config) = match access {
        Access::Account(folder) => {
            let what = "the service account of this pod".to_owned();
            let options = KubeConfigOptions::default();
            let config = match from_within(folder) {
                Ok(read) => kube::Config::from_custom_kubeconfig(read, &options).await.map_err(boxed),
                Err(why) => Err(why.into()),
            };
            (what, config)
        }
        Access::Kubeconfig { file, context } => {
            let what =
                file.as_ref().map_or("the kubeconfig".to_owned(), |file| format!("kubeconfig {}", file.display()));
            let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
            let config = match file.as_ref().map(Kubeconfig::read_from).unwrap_or_else(Kubeconfig::read) {
                Ok(read) => kube::Config::from_custom_kubeconfig(read, &options).await.map_err(boxed),
                Err(error) => Err(boxed(error)),
            };
            (what, config)
        }
    };
    config.map_err(|source| Error::new(Sort::Denied, "read", what).because(source).hint(WAY_IN))
}

/// The way that every pod is told: variables say where the API server is (<https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/>).
fn from_within(folder: &Path) -> std::result::Result<Kubeconfig, String> {
    let variable = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set: this is no pod"));
    let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let read = serde_json::from_value(json!({
        "clusters": [{ "name": "here", "cluster": {
            "server": format!("https://{host}:{port}"), "certificate-authority": folder.join("ca.crt"),
        } }],
        "users": [{ "name": "me", "user": { "tokenFile": folder.join("token") } }],
        "contexts": [{ "name": "here", "context": { "cluster": "here", "user": "me" } }],
        "current-context": "here",
    }));
    read.map_err(|error| error.to_string())
}

async fn connect(way: &Way) -> Result<Connected> {
    match way {
        Way::By(access) => {
            let mut config = configured(access).await?;
            let until = credential::resolve(&mut config.auth_info, credential::DEADLINE).await?;
            Ok(Connected { api: Api::new(client(config, WAY_IN)?, None), until })
        }
        Way::Through(endpoint) => {
            let config = pointed_at(endpoint).await?;
            let tokens = endpoint.token.clone().map(|source| Arc::new(Tokens::new(&endpoint.url, source)));
            Ok(Connected { api: Api::new(client(config, WAY_THROUGH)?, tokens), until: None })
        }
        Way::None => {
            let error = Error::new(Sort::Unavailable, "reach", "the cluster");
            Err(error.because("nobody said where it is"))
        }
    }
}

const WAY_THROUGH: &str = "look at the outputs of the resource through which the cluster is reached";

/// What the outputs of a cluster say of the way in. The token comes with each call.
async fn pointed_at(endpoint: &Endpoint) -> Result<kube::Config> {
    let refused = |why: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(Sort::Invalid, "use", endpoint.url.clone()).because(why).hint(WAY_THROUGH)
    };
    if !endpoint.url.starts_with("https://") {
        return Err(refused("a token is shown to nobody but who proves whom he is: it is no https address".into()));
    }
    let mut cluster = json!({ "server": endpoint.url });
    if let Some(pem) = &endpoint.ca_pem {
        cluster["certificate-authority-data"] = STANDARD.encode(pem).into();
    }
    let read = serde_json::from_value(json!({
        "clusters": [{ "name": "there", "cluster": cluster }],
        "users": [{ "name": "me", "user": {} }],
        "contexts": [{ "name": "there", "context": { "cluster": "there", "user": "me" } }],
        "current-context": "there",
    }));
    let read: Kubeconfig = read.map_err(|error| refused(boxed(error)))?;
    let config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
    config.map_err(|error| refused(boxed(error)))
}

fn client(mut config: kube::Config, hint: &str) -> Result<kube::Client> {
    let what = config.cluster_url.to_string();
    // Each call is journaled, and made again by whoever journaled it.
    config.default_retry = false;
    kube::Client::try_from(config).map_err(|error| Error::new(Sort::Denied, "use", what).because(error).hint(hint))
}

fn boxed(error: impl std::error::Error + Send + Sync + 'static) -> Box<dyn std::error::Error + Send + Sync> {
    Box::new(error)
}

#[async_trait]
impl Provider for Kubernetes {
    fn kinds(&self) -> &'static [Kind] {
        table::kinds()
    }

    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        match &self.placement {
            Some(placement) => lower::lower(component, site, placement),
            None => {
                let cause = "nobody said where in the cluster its objects go";
                let fix = "this is a fault of the program: tell its makers";
                Err(Problems(vec![Problem::new(component.name.to_string(), cause, fix)]))
            }
        }
    }

    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        diff::diff(wanted, recorded, seen, &self.taking)
    }

    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>> {
        preflight::preflight(self, wanted).await
    }

    async fn observe(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        observe::observe(&self.api().await?, scope).await
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        observe::read(&self.api().await?, kind, id).await
    }

    async fn begin(&self, op: &Operation) -> Result<Progress> {
        Work::on(self, op).await?.begin().await
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress> {
        Work::on(self, op).await?.advance(handle).await
    }
}
