//! The running environment from its journal: address, key, certificate authority and program.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use futures::FutureExt as _;
use textnlp_orchestrator::dr::control_client;
use textnlp_orchestrator::environment::{API_KEY, names};
use textnlp_orchestrator::release::History;
use textnlp_orchestrator::state::{Folder, RecordedObjects, State, StateError};
use textnlp_orchestrator::status;
use textnlp_provider::component::Program;
use textnlp_provider::operations::{EndpointAccess, ServerProgram, ServiceEndpoint, SiteOutputs};
use textnlp_provider::{EnvironmentName, Lineage, Outputs, ResourceId, SecretRef, SiteName};
use uuid::Uuid;

use crate::failure::state_failed;
use crate::{Exit, Failure, Platform, Scope};

/// The recorded facts about a running environment.
#[derive(Debug, Clone)]
pub struct RunningEnvironment {
    /// The address for clients.
    pub address: String,
    /// The CA file, if the address is HTTPS with a certificate from the local CA.
    pub ca_file: Option<Utf8PathBuf>,
    /// The file with the first API key.
    pub key_file: Option<Utf8PathBuf>,
    /// The secret reference of the first API key.
    pub key: Option<SecretRef>,
    /// The public id of the first API key.
    pub key_id: Option<String>,
    /// The sites that serve, the home site first.
    pub servers: Vec<ServerProcess>,
    /// Who authorizes its callers.
    pub access: EndpointAccess,
    /// The namespace of the servers, if they run in a cluster.
    pub namespace: Option<String>,
    /// The state folder.
    pub folder: Utf8PathBuf,
    /// The deployment.
    pub lineage: Lineage,
}

/// The server program of one site.
#[derive(Debug, Clone)]
pub struct ServerProcess {
    /// The site.
    pub site: SiteName,
    /// The server program, and the configuration of its first replica.
    pub server: ServerProgram,
    /// The address of the site agent, if the site replicates.
    pub watch: Option<String>,
    /// Whether the first key was created there.
    is_home: bool,
}

/// Reads an environment's state without a lock.
pub async fn state(scope: &Scope) -> Result<State, Failure> {
    State::load(scope.platform.store(&scope.folder)?, &scope.name, Lineage(Uuid::new_v4()))
        .await
        .map_err(|e| state_failed(e, &scope.again, &scope.name))
}

/// Whether an environment of a state folder was taken down: at most data on machines is left. Data that a cloud or a cluster
/// keeps costs money. False for a state in a bucket, and for one that cannot be read.
pub fn is_down(platform: &dyn Platform, folder: &Utf8Path, name: &EnvironmentName) -> bool {
    let store = Arc::new(Folder::at(folder));
    // A folder is read without waiting.
    let Some(Ok(state)) = State::load(store, name, Lineage(Uuid::new_v4())).now_or_never() else { return false };
    let is_machine = |site: &SiteName| {
        state.places().get(site).is_some_and(|place| platform.is_machine(&place.provider, &place.account))
    };
    state.is_down() && state.sites().all(|site| state.is_empty(site) || is_machine(site))
}

/// The failure of an environment whose last run did not complete. A run in progress is none.
pub async fn unfinished(scope: &Scope, state: &State) -> Result<Option<Failure>, Failure> {
    let failed = |error| state_failed(error, &scope.again, &scope.name);
    let all = status::unfinished(state).await.map_err(failed)?;
    let Some(first) = all.first() else { return Ok(None) };
    if scope.platform.store(&scope.folder)?.holder().await.map_err(failed)?.is_some() {
        return Ok(None);
    }
    let lines: Vec<_> = all.iter().map(ToString::to_string).collect();
    let error = anyhow::anyhow!("{}", lines.join("\n")).context(format!("{} is not complete", scope.name));
    Ok(Some(Failure::new(Exit::Failed, "unfinished", error).hint(scope.completes(first.purpose))))
}

/// The running environment, or an error if nothing runs.
pub async fn running(scope: &Scope) -> Result<RunningEnvironment, Failure> {
    let state = state(scope).await?;
    let mut sites = Vec::new();
    for site in state.sites() {
        sites.push(Recorded::of(site, state.holdings(site)?));
    }
    let endpoints = endpoints(scope, &state)?;
    let Some(endpoint) = for_clients(&endpoints) else {
        if let Some(lost) = lost_state(&state, scope) {
            return Err(lost);
        }
        if let Some(failure) = unfinished(scope, &state).await? {
            return Err(failure);
        }
        let error = anyhow::anyhow!("environment {} is not deployed from this folder", scope.name);
        return Err(Failure::usage("not_up", error).hint(scope.last_up()));
    };
    let first_key = sites.iter().find_map(|site| site.outputs(&format!("{}/{API_KEY}", names::SECRETS)));
    let secret = first_key.and_then(|outputs| SecretRef::from_value(outputs.get("secret")?));
    let key_file = secret.as_ref().and_then(|secret| scope.platform.secret_file(&scope.folder, secret));
    let deployed = format!("{}/deployment", names::SERVER);
    let in_cluster = sites.iter().find(|site| site.outputs(&deployed).is_some());
    let namespace = in_cluster.and_then(|site| text(site.outputs(&deployed)?, "namespace"));
    let mut servers: Vec<ServerProcess> = sites.iter().filter_map(Recorded::serving).collect();
    // The site with the first key is the home site.
    servers.sort_by_key(|serving| !serving.is_home);
    Ok(RunningEnvironment {
        address: endpoint.url.clone(),
        access: endpoint.access,
        ca_file: endpoint.ca_file.as_deref().map(Utf8PathBuf::from),
        key_file,
        key_id: first_key.and_then(|outputs| text(outputs, "public_id")),
        key: secret,
        servers,
        namespace,
        folder: scope.folder.clone(),
        lineage: state.lineage(),
    })
}

/// The refusal if nothing is recorded although something was deployed, which would be left as it is: objects of another
/// lineage exist here, or releases were applied and the journals are missing.
pub fn lost_state(state: &State, scope: &Scope) -> Option<Failure> {
    if state.has_records() {
        return None;
    }
    let Some(other) = scope.platform.other_lineage(&scope.folder, state.lineage()) else {
        let releases = History::at(&scope.folder).read().ok()?;
        let is_applied = releases.newest().is_ok_and(|newest| newest.is_some());
        let (what, because) = (format!("{}/journal", state.place()), "it is missing, and releases were applied");
        let lost = StateError::Unreadable { what, because: because.to_owned() };
        // An import rebuilds the records without loss; a backup would put earlier data in place of today's.
        let import = scope.same(&format!("state import --lineage {}", state.lineage()));
        let restore = scope.again.bare(&format!("restore FILE --replace {}", scope.name));
        let hint = format!(
            "nothing was changed, and the service keeps running: put the journals back, or record its objects again: {import}; if that fails, in a state in a folder, from a backup: {restore}"
        );
        return (is_applied && !state.is_new()).then(|| state_failed(lost, &scope.again, &scope.name).hint(hint));
    };
    let error = anyhow::anyhow!(
        "objects of deployment {other} exist in {}, and the state does not record them: it was lost",
        scope.folder.join("sites")
    );
    let import = scope.same(&format!("state import --lineage {other}"));
    Some(Failure::refused("lost_state", error).hint(format!("record them again: {import}")))
}

/// The deployment, and its serving sites with the addresses of their metrics; `None` where no address of this machine has
/// them.
pub async fn metrics_addresses(scope: &Scope) -> Result<(Lineage, BTreeMap<SiteName, Option<String>>), Failure> {
    let state = state(scope).await?;
    Ok((state.lineage(), of_servers(endpoints(scope, &state)?)))
}

/// The addresses of metrics. Where the global endpoint runs alone, as beside the witness, there are no servers.
fn of_servers(endpoints: BTreeMap<SiteName, ServiceEndpoint>) -> BTreeMap<SiteName, Option<String>> {
    let has_servers = |endpoint: &ServiceEndpoint| endpoint.metrics.is_some() || !endpoint.is_global;
    let serving = endpoints.into_iter().filter(|(_, endpoint)| has_servers(endpoint));
    serving.map(|(site, endpoint)| (site, endpoint.metrics)).collect()
}

/// The recorded endpoints of the sites that serve.
pub fn endpoints(scope: &Scope, state: &State) -> Result<BTreeMap<SiteName, ServiceEndpoint>, Failure> {
    let mut found = BTreeMap::new();
    for site in state.sites() {
        let recorded = Recorded::of(site, state.holdings(site)?);
        found.extend(scope.platform.endpoint(&recorded.outputs).map(|endpoint| (site.clone(), endpoint)));
    }
    Ok(found)
}

/// The endpoint that clients use: with several sites, the global one.
pub fn for_clients(endpoints: &BTreeMap<SiteName, ServiceEndpoint>) -> Option<&ServiceEndpoint> {
    endpoints.values().find(|endpoint| endpoint.is_global).or_else(|| endpoints.values().next())
}

/// The recorded facts about one site.
struct Recorded {
    site: SiteName,
    outputs: SiteOutputs,
}

impl Recorded {
    fn of(site: &SiteName, holdings: impl IntoIterator<Item = (ResourceId, RecordedObjects)>) -> Recorded {
        let known = holdings.into_iter().filter_map(|(id, holding)| {
            let name = id.as_str().split_once('/')?.1.to_owned();
            Some((name, holding.current?.outputs))
        });
        Recorded { site: site.clone(), outputs: known.collect() }
    }

    /// The outputs of `COMPONENT` or `COMPONENT/PART`.
    fn outputs(&self, id: &str) -> Option<&Outputs> {
        self.outputs.get(id)
    }

    fn serving(&self) -> Option<ServerProcess> {
        let of = |part: &str, field: &str| text(self.outputs(&format!("{}/{part}", names::SERVER))?, field);
        Some(ServerProcess {
            site: self.site.clone(),
            server: ServerProgram { program: of("program", "path")?.into(), config: of("config-0", "path")?.into() },
            watch: self.outputs(&format!("{}/process", names::WATCH)).and_then(|outputs| text(outputs, "listen")),
            is_home: self.outputs(&format!("{}/{API_KEY}", names::SECRETS)).is_some(),
        })
    }
}

fn text(outputs: &Outputs, field: &str) -> Option<String> {
    outputs.get(field)?.as_str().map(str::to_owned)
}

impl RunningEnvironment {
    /// Whether it is an inference endpoint that the cloud runs, and whose callers the cloud authorizes.
    pub fn is_endpoint(&self) -> bool {
        self.access != EndpointAccess::Keys
    }

    /// Refuses a command that needs what an inference endpoint does not have.
    pub fn has_api(&self, scope: &Scope, what: &str) -> Result<(), Failure> {
        if !self.is_endpoint() {
            return Ok(());
        }
        let error = anyhow::anyhow!("{} is an inference endpoint, which has no {what}", scope.name);
        Err(Failure::usage("inference_endpoint", error).hint(scope.command("generate \"…\"")))
    }

    /// A site whose server program can run a command: the home site, or, if sites replicate and it is lost, another one
    /// whose site agent responds.
    pub async fn serving(&self) -> Option<&ServerProcess> {
        for serving in &self.servers {
            match &serving.watch {
                Some(watch) if !answers(watch).await => {}
                _ => return Some(serving),
            }
        }
        // No site responds. The home site's program gives the best error message.
        self.servers.first()
    }
}

/// Whether the listener on a Unix socket responds.
async fn answers(listen: &str) -> bool {
    match listen.strip_prefix("unix:") {
        Some(socket) => control_client::answers(Utf8Path::new(socket)).await,
        None => false,
    }
}

/// The server program of the last `up`, or `None` if there was none.
pub async fn program(scope: &Scope) -> Result<Option<Program>, Failure> {
    let state = state(scope).await?;
    for site in state.sites() {
        let known = Recorded::of(site, state.holdings(site)?);
        let found = known.outputs(&format!("{}/program", names::SERVER)).and_then(|outputs| {
            let digest = text(outputs, "sha256")?;
            let digest = if digest.starts_with("sha256:") { digest } else { format!("sha256:{digest}") };
            Some(Program { path: text(outputs, "path")?, digest })
        });
        if let Some(program) = found.filter(|p| Utf8Path::new(&p.path).is_file()) {
            return Ok(Some(program));
        }
    }
    Ok(None)
}

/// The schema version of the running database, the newest of several sites. `None` without a local database.
pub async fn schema(scope: &Scope) -> Result<Option<u32>, Failure> {
    let state = state(scope).await?;
    let mut newest = None;
    for site in state.sites() {
        let known = Recorded::of(site, state.holdings(site)?);
        let version =
            known.outputs(&format!("{}/schema", names::SERVER)).and_then(|outputs| outputs.get("version")?.as_u64());
        newest = newest.max(version.and_then(|version| u32::try_from(version).ok()));
    }
    Ok(newest)
}

/// The digests of the delivered models.
pub async fn models(scope: &Scope) -> Result<BTreeSet<String>, Failure> {
    let state = state(scope).await?;
    let mut found = BTreeSet::new();
    for site in state.sites() {
        let holdings = state.holdings(site)?;
        let models = holdings.iter().filter(|(id, _)| id.component() == names::MODELS);
        found.extend(models.filter_map(|(_, holding)| text(&holding.current.as_ref()?.outputs, "digest")));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn global_endpoint_beside_the_witness_has_no_metrics_of_servers() {
        let endpoint = |metrics: Option<&str>, is_global| ServiceEndpoint {
            url: "https://a.example".to_owned(),
            ca_file: None,
            metrics: metrics.map(str::to_owned),
            is_global,
            access: EndpointAccess::Keys,
        };
        let sites = [
            ("cluster", endpoint(None, false)),
            ("home", endpoint(Some("http://127.0.0.1:9090"), true)),
            ("witness", endpoint(None, true)),
        ];
        let sites = sites.map(|(name, endpoint)| (SiteName::new(name).unwrap(), endpoint));
        let found = of_servers(BTreeMap::from(sites));
        let names: Vec<(&str, Option<&str>)> =
            found.iter().map(|(site, address)| (site.as_str(), address.as_deref())).collect();
        assert_eq!(names, [("cluster", None), ("home", Some("http://127.0.0.1:9090"))]);
    }
}
