//! [`Kubernetes`]: the implementation of the provider contract.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper_util::client::proxy::matcher::Matcher;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig, KubeconfigError};
use serde_json::json;
use textnlp_net::client::{ProxySettings, is_loopback};
use textnlp_provider::cluster::ClusterSite;
use textnlp_provider::connect::{HostEndpoint, Locate};
use textnlp_provider::units::quoted;
use textnlp_provider::{
    CloudId, Component, CostLine, DatabasePart, Error, ErrorKind, FieldChange, Handle, Kind, KindName, Object,
    Observed, Operation, PolicyDocument, PolicyRequest, Problem, Problems, Progress, Provider, Recorded, ResourceId,
    Result, Scope, SecretStore, Site, Spec, Wanted,
};
use tokio::sync::Mutex;

use crate::api::Api;
use crate::credential::Tokens;
use crate::lower;
use crate::verbs::Work;
use crate::{credential, diff, manifest, observe, policy, preflight, table};

/// The source of the connection to a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// A kubeconfig: this file, else `KUBECONFIG`, else `~/.kube/config`; and this context, else the current one.
    Kubeconfig {
        /// The file.
        file: Option<PathBuf>,
        /// The context.
        context: Option<String>,
        /// Whether programs that it names for credentials (`exec`) may run.
        programs: bool,
    },
    /// A service account, with `token` and `ca.crt` in this folder of the pod that runs the program.
    Account(PathBuf),
}

impl Access {
    /// Access by a kubeconfig that names no programs, unless it is one of the caller's own: in `KUBECONFIG` or in `~/.kube`. Another
    /// one was named by an environment file, whose author would choose what runs here.
    pub fn kubeconfig(file: Option<PathBuf>, context: Option<String>) -> Self {
        let programs = file.as_deref().is_none_or(is_own);
        Self::Kubeconfig { file, context, programs }
    }

    /// The flags with which `kubectl` reaches the same cluster: ` --context staging`.
    pub(crate) fn kubectl_flags(&self) -> String {
        let Self::Kubeconfig { file, context, .. } = self else { return String::new() };
        let file = file.as_ref().map(|file| file.to_string_lossy());
        let flags = [("--kubeconfig", file.as_deref()), ("--context", context.as_deref())];
        flags.into_iter().filter_map(|(flag, value)| Some(format!(" {flag} {}", quoted(value?)))).collect()
    }
}

fn is_own(file: &Path) -> bool {
    let listed = std::env::var_os("KUBECONFIG").unwrap_or_default();
    let folder = std::env::home_dir().map(|home| home.join(".kube"));
    let Ok(file) = file.canonicalize() else { return false };
    let is_listed = std::env::split_paths(&listed).any(|own| own.canonicalize().is_ok_and(|own| own == file));
    is_listed || folder.and_then(|folder| folder.canonicalize().ok()).is_some_and(|folder| file.starts_with(folder))
}

/// The access mode.
enum AccessMode {
    By(Access),
    /// A cluster that is a resource of the deployment. No `Debug`, because it leads to a credential.
    Through(HostEndpoint),
    /// The same, where the outputs of that resource are not at hand.
    Located(Arc<dyn Locate>),
    /// No cluster yet.
    None,
}

/// The provider for one cluster.
///
/// Every object carries its lineage as a label and is applied under the field manager of the lineage. Apply is forced
/// only for the fields of [`Kubernetes::taking`]. Any other field of another manager is left alone or reported as a
/// conflict.
pub struct Kubernetes {
    way: AccessMode,
    secrets: Arc<dyn SecretStore>,
    taking: BTreeSet<String>,
    site: Option<ClusterSite>,
    connected: Mutex<Option<Connection>>,
}

/// A connection to the API server, and the expiry of its credential if known.
struct Connection {
    api: Api,
    until: Option<SystemTime>,
}

impl Kubernetes {
    /// Creates the provider for one cluster, which is not called before the first operation. `secrets` resolves secret
    /// references.
    pub fn new(access: Access, secrets: Arc<dyn SecretStore>) -> Self {
        Self::by(AccessMode::By(access), secrets)
    }

    /// The provider for clusters that may not exist yet: it supports pure operations, and [`through`](Self::through)
    /// creates the one for each cluster.
    pub fn of_clusters(secrets: Arc<dyn SecretStore>) -> Self {
        Self::by(AccessMode::None, secrets)
    }

    /// The provider for a cluster that is found when it is called.
    pub fn located(host: Arc<dyn Locate>, secrets: Arc<dyn SecretStore>) -> Self {
        Self::by(AccessMode::Located(host), secrets)
    }

    /// The same provider for the cluster at an endpoint, without any state of another cluster.
    #[must_use]
    pub fn through(&self, endpoint: HostEndpoint) -> Self {
        let (taking, site) = (self.taking.clone(), self.site.clone());
        Self { taking, site, ..Self::by(AccessMode::Through(endpoint), self.secrets.clone()) }
    }

    fn by(way: AccessMode, secrets: Arc<dyn SecretStore>) -> Self {
        Self { way, secrets, taking: BTreeSet::new(), site: None, connected: Mutex::default() }
    }

    /// The same provider for a site, whose settings preflight compares with the cluster.
    #[must_use]
    pub fn of_site(self, site: ClusterSite) -> Self {
        Self { site: Some(site), ..self }
    }

    /// The current context of a kubeconfig.
    pub fn current_context(file: Option<&Path>) -> Option<String> {
        read_kubeconfig(file).ok()?.current_context
    }

    /// The API server's address in a kubeconfig, to which a deployment is bound. No call is made.
    pub fn server(file: Option<&Path>, context: Option<&str>) -> Result<String> {
        let what = file.map_or("the kubeconfig".to_owned(), |file| format!("kubeconfig {}", file.display()));
        let refused = |why: Box<dyn std::error::Error + Send + Sync>| {
            Error::new(ErrorKind::Denied, "read", what.clone()).because(why).hint(WAY_IN)
        };
        let read = read_kubeconfig(file).map_err(refused)?;
        let wanted = context.or(read.current_context.as_deref());
        let named = wanted.and_then(|wanted| read.contexts.iter().find(|one| one.name == wanted));
        let Some(cluster) = named.and_then(|named| Some(&named.context.as_ref()?.cluster)) else {
            let why =
                wanted.map_or("it has no current context".to_owned(), |wanted| format!("it has no context `{wanted}`"));
            return Err(refused(why.into()));
        };
        let found =
            read.clusters.iter().find(|one| one.name == *cluster).and_then(|one| one.cluster.as_ref()?.server.clone());
        found.ok_or_else(|| refused(format!("it has no address of cluster `{cluster}`").into()))
    }

    /// The API server's address of a cluster that is found in its cloud.
    pub async fn located_server(&self) -> Result<String> {
        match &self.way {
            AccessMode::Located(host) => Ok(host.locate().await?.url),
            _ => Err(Error::new(ErrorKind::Invalid, "find", "the cluster").because("no cloud made it")),
        }
    }

    /// The same provider with forced ownership of these fields, named as in conflicts: `spec.replicas`. Only fields
    /// that the operator agreed to are forced.
    #[must_use]
    pub fn taking(self, fields: BTreeSet<String>) -> Self {
        Self { taking: fields, ..self }
    }

    /// The provider for the API server of a client. The client must not retry calls on its own.
    pub fn with_client(client: kube::Client, secrets: Arc<dyn SecretStore>) -> Self {
        let connected = Connection { api: Api::new(client, None), until: None };
        Self { connected: Mutex::new(Some(connected)), ..Self::by(AccessMode::None, secrets) }
    }

    /// A command that `kubectl` runs in the same cluster.
    pub(crate) fn kubectl(&self, words: &str) -> String {
        format!("kubectl{} {words}", self.kubectl_flags())
    }

    fn kubectl_flags(&self) -> String {
        match &self.way {
            AccessMode::By(access) => access.kubectl_flags(),
            AccessMode::Through(_) | AccessMode::Located(_) | AccessMode::None => String::new(),
        }
    }

    /// A hint whose `kubectl` commands reach the same cluster.
    fn complete(&self, hint: &str) -> String {
        with_flags(hint, &self.kubectl_flags())
    }

    fn completed(&self, error: Error) -> Error {
        match error.hint.as_deref().map(|hint| self.complete(hint)) {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }

    fn completed_progress(&self, progress: Result<Progress>) -> Result<Progress> {
        match progress {
            Ok(Progress::Failed { left, error }) => Ok(Progress::Failed { left, error: self.completed(error) }),
            progress => progress.map_err(|error| self.completed(error)),
        }
    }

    /// The site, if it is known.
    pub(crate) fn site(&self) -> Option<&ClusterSite> {
        self.site.as_ref()
    }

    /// The fields whose ownership is forced.
    pub(crate) fn taken(&self) -> &BTreeSet<String> {
        &self.taking
    }

    pub(crate) fn secrets(&self) -> &dyn SecretStore {
        &*self.secrets
    }

    /// A connection with a valid credential.
    pub(crate) async fn api(&self) -> Result<Api> {
        let mut connected = self.connected.lock().await;
        let api = match &*connected {
            Some(Connection { api, until }) if until.is_none_or(|until| SystemTime::now() < until) => api.clone(),
            _ => connected.insert(connect(&self.way).await?).api.clone(),
        };
        drop(connected);
        // Without a token no call is made: its error is clearer than that of each call.
        api.signed_in().await?;
        Ok(api)
    }
}

/// A hint whose `kubectl` commands have these flags.
fn with_flags(hint: &str, flags: &str) -> String {
    hint.replace("`kubectl ", &format!("`kubectl{flags} "))
}

const WAY_IN: &str =
    "`kubectl config view --minify` shows the current settings; set KUBECONFIG, or configure the file and the context";

/// The longest kubeconfig that is read, in bytes.
const KUBECONFIG_MAX: u64 = 16 << 20;

/// The files of a kubeconfig: this one, else those of `KUBECONFIG` that exist, else `~/.kube/config`. Like `kubectl`, a list skips
/// empty entries and missing files.
pub fn kubeconfig_files(file: Option<&Path>) -> Vec<PathBuf> {
    files_of(file, std::env::var_os("KUBECONFIG").unwrap_or_default(), std::env::home_dir())
}

fn files_of(file: Option<&Path>, list: OsString, home: Option<PathBuf>) -> Vec<PathBuf> {
    if let Some(file) = file {
        return vec![file.to_owned()];
    }
    let listed: Vec<PathBuf> = std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).collect();
    if listed.is_empty() {
        return home.map(|home| home.join(".kube/config")).into_iter().collect();
    }
    let there: Vec<PathBuf> = listed.iter().filter(|path| !is_missing(path)).cloned().collect();
    // With none of them, the error names the first.
    if there.is_empty() { listed.into_iter().take(1).collect() } else { there }
}

fn is_missing(path: &Path) -> bool {
    path.metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// Reads a kubeconfig: this file, else those of `KUBECONFIG`, else `~/.kube/config`.
fn read_kubeconfig(file: Option<&Path>) -> std::result::Result<Kubeconfig, Box<dyn std::error::Error + Send + Sync>> {
    let files = kubeconfig_files(file);
    if let Some(odd) = files.iter().find(|file| file.metadata().is_ok_and(|found| !is_kubeconfig(&found))) {
        return Err(format!("{} is no regular file of at most {} MiB", odd.display(), KUBECONFIG_MAX >> 20).into());
    }
    // kube panics on a UTF-16 file with half a character at its end.
    if let Some(cut) = files.iter().find(|file| is_cut_utf16(file)) {
        return Err(format!("{} is UTF-16 and ends within a character", cut.display()).into());
    }
    match file {
        // An environment file names it: any private file may be meant, and the cause would show its first lines.
        Some(file) => Kubeconfig::read_from(file).map_err(|error| match error {
            KubeconfigError::Parse(_) => "it is not a kubeconfig in YAML".into(),
            other => boxed(other),
        }),
        None if files.is_empty() => Err(boxed(KubeconfigError::FindPath)),
        None => {
            let merge =
                |merged: Kubeconfig, file: &PathBuf| Kubeconfig::read_from(file).and_then(|next| merged.merge(next));
            files.iter().try_fold(Kubeconfig::default(), merge).map_err(boxed)
        }
    }
}

/// Whether a file can be read whole: a device or a pipe may have no end.
fn is_kubeconfig(found: &std::fs::Metadata) -> bool {
    found.is_file() && found.len() <= KUBECONFIG_MAX
}

fn is_cut_utf16(file: &Path) -> bool {
    let mut start = [0; 2];
    let read = |start: &mut [u8; 2]| {
        let mut opened = std::fs::File::open(file)?;
        opened.read_exact(start)?;
        Ok::<u64, std::io::Error>(opened.metadata()?.len())
    };
    read(&mut start).is_ok_and(|length| length % 2 == 1) && matches!(start, [0xFF, 0xFE] | [0xFE, 0xFF])
}

/// Refuses a kubeconfig that takes credentials from elsewhere: from programs, or from files outside of its own folder. The author of an
/// environment file that names it would run a program here, or get the contents of a file sent to a server.
fn inline_only(file: &Path, credentials: &AuthInfo) -> Result<()> {
    let folder = file.canonicalize().ok().and_then(|file| file.parent().map(Path::to_owned));
    let is_inside = |path: &&String| {
        let path = Path::new(path).canonicalize();
        path.is_ok_and(|path| folder.as_ref().is_some_and(|folder| path.starts_with(folder)))
    };
    let program = credentials.exec.as_ref().map(|exec| exec.command.clone().unwrap_or_default());
    let program = program.or_else(|| credentials.auth_provider.as_ref().map(|provider| provider.name.clone()));
    let files = [&credentials.token_file, &credentials.client_certificate, &credentials.client_key];
    let outside = files.into_iter().flatten().find(|path| !is_inside(path));
    let (action, subject) = match (program, outside) {
        (Some(program), _) => ("run", program),
        (None, Some(path)) => ("read", path.clone()),
        (None, None) => return Ok(()),
    };
    let why = format!("{} names it for credentials, and is not your own kubeconfig", file.display());
    let hint = format!("look at the file; to trust it, run `export KUBECONFIG={}`", file.display());
    Err(Error::new(ErrorKind::Denied, action, subject).because(why).hint(hint))
}

/// The client configuration of an access mode.
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
        Access::Kubeconfig { file, context, .. } => {
            let what =
                file.as_ref().map_or("the kubeconfig".to_owned(), |file| format!("kubeconfig {}", file.display()));
            let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
            let config = match read_kubeconfig(file.as_deref()) {
                Ok(read) => kube::Config::from_custom_kubeconfig(read, &options).await.map_err(boxed),
                Err(error) => Err(error),
            };
            (what, config)
        }
    };
    config.map_err(|source| Error::new(ErrorKind::Denied, "read", what).because(source).hint(WAY_IN))
}

/// The in-cluster configuration: variables contain the API server's address
/// (<https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/>).
fn from_within(folder: &Path) -> std::result::Result<Kubeconfig, String> {
    let variable =
        |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set: this process is not in a pod"));
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

async fn connect(way: &AccessMode) -> Result<Connection> {
    match way {
        AccessMode::By(access) => {
            let mut config = configured(access).await?;
            if let Access::Kubeconfig { file: Some(file), programs: false, .. } = access {
                inline_only(file, &config.auth_info)?;
            }
            let until = credential::resolve(&mut config.auth_info, credential::DEADLINE).await?;
            let until = credential::trim_token(&mut config.auth_info)?.or(until);
            Ok(Connection { api: Api::new(client(config, WAY_IN)?, None), until })
        }
        AccessMode::Through(endpoint) => connect_to(endpoint).await,
        AccessMode::Located(host) => connect_to(&host.locate().await?).await,
        AccessMode::None => {
            let error = Error::new(ErrorKind::Unavailable, "reach", "the cluster");
            Err(error.because("its address is not configured"))
        }
    }
}

async fn connect_to(endpoint: &HostEndpoint) -> Result<Connection> {
    let config = pointed_at(endpoint).await?;
    let tokens = endpoint.token.clone().map(|source| Arc::new(Tokens::new(&endpoint.url, source)));
    Ok(Connection { api: Api::new(client(config, WAY_THROUGH)?, tokens), until: None })
}

const WAY_THROUGH: &str = "check the outputs of the resource that provides the cluster";

/// The client configuration of a cluster's outputs. Each call adds the token.
async fn pointed_at(endpoint: &HostEndpoint) -> Result<kube::Config> {
    let refused = |why: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(ErrorKind::Invalid, "use", endpoint.url.clone()).because(why).hint(WAY_THROUGH)
    };
    if !endpoint.url.starts_with("https://") {
        return Err(refused("a token is sent only over TLS: the address is not https".into()));
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
    // Each call is journaled, and only the journal's owner retries it.
    config.default_retry = false;
    config.proxy_url = proxy(&config.cluster_url, config.proxy_url, ProxySettings::from_env());
    kube::Client::try_from(config).map_err(|error| Error::new(ErrorKind::Denied, "use", what).because(error).hint(hint))
}

/// The proxy to a cluster, as `kubectl` finds it: the kubeconfig's, else that of the variables, but never to this
/// machine. `kube` compares `NO_PROXY` with the proxy's address instead of the cluster's.
fn proxy(cluster: &http::Uri, found: Option<http::Uri>, variables: ProxySettings) -> Option<http::Uri> {
    let by_variable = variables.https.as_deref().and_then(|url| url.parse::<http::Uri>().ok());
    if found.is_some() && found != by_variable {
        return found;
    }
    let matcher = Matcher::builder().https("http://proxy").no(variables.no_proxy.unwrap_or_default()).build();
    let is_local = cluster.to_string().parse().is_ok_and(|url| is_loopback(&url));
    by_variable.filter(|_| !is_local && matcher.intercept(cluster).is_some())
}

fn boxed(error: impl std::error::Error + Send + Sync + 'static) -> Box<dyn std::error::Error + Send + Sync> {
    Box::new(error)
}

#[async_trait]
impl Provider for Kubernetes {
    fn kinds(&self) -> &'static [Kind] {
        table::kinds()
    }

    fn costs(&self, kind: &KindName, spec: &Spec) -> Vec<CostLine> {
        table::costs(kind, spec)
    }

    fn policies(&self, request: &PolicyRequest) -> Vec<PolicyDocument> {
        policy::document(request).into_iter().collect()
    }

    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        lower::lower(component, site)
    }

    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        diff::diff(wanted, recorded, seen, &self.taking)
    }

    fn interruption(&self, wanted: &Wanted, changes: &[FieldChange], among: &[Wanted]) -> Option<Problem> {
        diff::interruption(wanted, changes, among)
    }

    fn controller(&self, seen: &Object) -> Option<String> {
        manifest::controller(&seen.spec)
    }

    fn database_part(&self, recorded: &Recorded) -> Option<DatabasePart> {
        let is_dumps = || recorded.spec.get("metadata").is_some_and(|metadata| metadata["name"] == lower::DUMPS_CLAIM);
        match table::row(&recorded.kind)?.kind {
            table::POSTGRES_CLUSTER => Some(DatabasePart::Data),
            table::VOLUME_CLAIM => is_dumps().then_some(DatabasePart::Dumps),
            _ => None,
        }
    }

    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>> {
        let found = preflight::preflight(self, wanted).await.map_err(|error| self.completed(error))?;
        Ok(found.into_iter().map(|problem| Problem { fix: self.complete(&problem.fix), ..problem }).collect())
    }

    async fn observe(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        observe::observe(&self.api().await?, scope).await
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        observe::read(&self.api().await?, kind, id).await
    }

    async fn begin(&self, op: &Operation) -> Result<Progress> {
        let begun = async { Work::on(self, op).await?.begin().await };
        self.completed_progress(begun.await)
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress> {
        self.completed_progress(Work::advance(self, op, handle).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_of_hints_reaches_the_cluster_of_the_environment() {
        let flags = |file: Option<&str>, context: Option<&str>| {
            Access::kubeconfig(file.map(PathBuf::from), context.map(str::to_owned)).kubectl_flags()
        };
        assert_eq!(flags(None, None), "", "those of kubectl itself");
        let own = flags(Some("/home/ada/lab config"), Some("lab"));
        assert_eq!(own, " --kubeconfig '/home/ada/lab config' --context lab");
        let hint = "`kubectl get pdb -A` shows them; without kubectl: ask";
        assert_eq!(
            with_flags(hint, &flags(None, Some("lab"))),
            "`kubectl --context lab get pdb -A` shows them; without kubectl: ask"
        );
    }

    #[test]
    fn error_of_a_named_file_that_is_no_kubeconfig_has_none_of_its_text() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("credentials");
        for text in ["[default]\naws_secret_access_key = CANARY\n", "CANARY", "clusters: CANARY\n", "CANARY: 1\n"] {
            std::fs::write(&file, text).unwrap();
            let error = Kubernetes::server(Some(&file), None).unwrap_err();
            let error = format!("{} {error:?}", textnlp_provider::error_chain(&error));
            assert!(!error.contains("CANARY") && error.contains("credentials"), "{error}");
        }
    }

    #[test]
    fn missing_files_of_a_list_are_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let (there, missing) = (folder.path().join("there"), folder.path().join("missing"));
        std::fs::write(&there, "{}").unwrap();
        let list = |paths: &[&Path]| std::env::join_paths(paths).unwrap();
        let home = || Some(PathBuf::from("/home/ada"));
        let empty = Path::new("");
        assert_eq!(files_of(None, list(&[&missing, empty, &there]), home()), std::slice::from_ref(&there));
        assert_eq!(files_of(None, list(&[&missing]), home()), std::slice::from_ref(&missing));
        assert_eq!(files_of(None, list(&[empty]), home()), [Path::new("/home/ada/.kube/config")]);
        assert_eq!(files_of(Some(&missing), list(&[&there]), home()), [missing]);
        assert!(files_of(None, OsString::new(), None).is_empty());
    }

    #[test]
    fn kubeconfig_in_half_a_character_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        for bytes in [&b"\xff\xfea\0b"[..], b"\xfe\xff\0a\0", b"\xff\xfea"] {
            std::fs::write(&file, bytes).unwrap();
            let error = Kubernetes::server(Some(&file), None).unwrap_err();
            assert!(textnlp_provider::error_chain(&error).contains("ends within a character"), "{error:?}");
        }
    }

    #[test]
    fn kubeconfig_without_an_end_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("config");
        std::fs::File::create(&long).unwrap().set_len(KUBECONFIG_MAX + 1).unwrap();
        for file in [Path::new("/dev/zero"), long.as_path()] {
            let error = Kubernetes::server(Some(file), None).unwrap_err();
            assert!(textnlp_provider::error_chain(&error).contains("no regular file"), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_kubeconfig_of_an_environment_file_runs_no_program() {
        let folder = tempfile::tempdir().unwrap();
        let (file, trace) = (folder.path().join("config"), folder.path().join("trace"));
        let config = json!({
            "clusters": [{ "name": "c", "cluster": { "server": "https://127.0.0.1:1" } }],
            "users": [{ "name": "u", "user": { "exec": {
                "apiVersion": "client.authentication.k8s.io/v1", "command": "touch", "args": [trace], "interactiveMode": "Never",
            } } }],
            "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
            "current-context": "x",
        });
        std::fs::write(&file, config.to_string()).unwrap();
        let access = Access::kubeconfig(Some(file.clone()), None);
        let error = connect(&AccessMode::By(access)).await.map(drop).unwrap_err();
        assert!(textnlp_provider::error_chain(&error).contains("not your own kubeconfig"), "{error:?}");
        assert!(!trace.exists());
        let secret = tempfile::NamedTempFile::new().unwrap();
        let reading = AuthInfo { token_file: Some(secret.path().display().to_string()), ..AuthInfo::default() };
        assert!(inline_only(&file, &reading).is_err());
        let inside = folder.path().join("token");
        std::fs::write(&inside, "token").unwrap();
        let reading = AuthInfo { token_file: Some(inside.display().to_string()), ..AuthInfo::default() };
        inline_only(&file, &reading).unwrap();
        let trusted = Access::Kubeconfig { file: Some(file), context: None, programs: true };
        let error = connect(&AccessMode::By(trusted)).await.map(drop).unwrap_err();
        assert!(trace.exists(), "it runs, and prints no credential: {error:?}");
    }

    #[tokio::test]
    async fn a_cluster_is_reached_through_the_proxy_that_kubectl_uses() {
        let variables = ProxySettings {
            https: Some("http://proxy.corp:3128".to_owned()),
            no_proxy: Some(".corp,10.0.0.0/8".to_owned()),
            ..ProxySettings::default()
        };
        for (cluster, found, expected) in [
            ("https://api.example:6443", Some("http://proxy.corp:3128"), Some("http://proxy.corp:3128/")),
            // The proxy's own address is in `NO_PROXY`, the cluster's is not.
            ("https://api.example:6443", None, Some("http://proxy.corp:3128/")),
            ("https://api.corp:6443", Some("http://proxy.corp:3128"), None),
            ("https://10.1.2.3", Some("http://proxy.corp:3128"), None),
            ("https://127.0.0.1:6443", Some("http://proxy.corp:3128"), None),
            ("https://api.corp:6443", Some("http://of.kubeconfig:1"), Some("http://of.kubeconfig:1/")),
        ] {
            let found = found.map(|url| url.parse().unwrap());
            let chosen = proxy(&cluster.parse().unwrap(), found, variables.clone());
            assert_eq!(chosen.map(|url| url.to_string()).as_deref(), expected, "{cluster}");
        }
        let mut config = kube::Config::new("https://api.example:6443".parse().unwrap());
        config.proxy_url = Some("http://of.kubeconfig:1".parse().unwrap());
        client(config, WAY_IN).unwrap();
    }
}
