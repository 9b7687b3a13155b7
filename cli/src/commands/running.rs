//! The running environment, as its journal knows it: address, key, certificate authority, program.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use textnlp_orchestrator::dr::talk;
use textnlp_orchestrator::environment::{API_KEY, names};
use textnlp_orchestrator::state::{Holding, State};
use textnlp_provider::component::Program;
use textnlp_provider::{EnvironmentName, Lineage, Outputs, ResourceId, SecretRef, SecretStore};
use uuid::Uuid;

use crate::again::{Again, quoted};
use crate::client::{self, Target};
use crate::clouds;
use crate::deployment::state_failed;
use crate::report::Failure;
use crate::session::Session;
use crate::stores;

/// What the journal says of a running environment.
#[derive(Debug, Clone)]
pub struct Running {
    /// The address that clients use.
    pub address: String,
    /// The address of the metrics.
    pub metrics_address: Option<String>,
    /// The file of the certificate authority, when the address is HTTPS and we signed its certificate.
    pub ca_file: Option<Utf8PathBuf>,
    /// The file that holds the first API key.
    pub key_file: Option<Utf8PathBuf>,
    /// The first API key's reference.
    pub key: Option<SecretRef>,
    /// The first API key's public id.
    pub key_id: Option<String>,
    /// The sites that serve, the home site first.
    pub servers: Vec<Serving>,
    /// The namespace that its servers run in, where that is in a cluster.
    pub namespace: Option<String>,
    /// Where its state is.
    pub folder: Utf8PathBuf,
    /// Which deployment.
    pub lineage: Lineage,
}

/// The server program of one site.
#[derive(Debug, Clone)]
pub struct Serving {
    /// The program that serves, by path.
    pub program: Utf8PathBuf,
    /// The configuration of the first replica.
    pub config: Utf8PathBuf,
    /// Where the site's watch answers, if it replicates.
    pub watch: Option<String>,
    /// Whether the first key was made there.
    is_home: bool,
}

/// Reads the state of an environment without a lock.
pub async fn state(again: &Again, environment: &EnvironmentName, folder: &Utf8Path) -> Result<State, Failure> {
    State::load(stores::of_folder(folder)?, environment, Lineage(Uuid::new_v4()))
        .await
        .map_err(|e| state_failed(e, again, environment))
}

/// What runs, or that nothing does.
pub async fn running(session: &Session, environment: &EnvironmentName, folder: &Utf8Path) -> Result<Running, Failure> {
    let state = state(&session.again(), environment, folder).await?;
    let mut sites = Vec::new();
    for site in state.sites() {
        sites.push(Recorded::of(state.holdings(site)?));
    }
    // Clients of several sites talk to the front; those of one, to its gateway.
    let entrance_of = |component: &str| {
        sites.iter().find_map(|site| {
            let outputs = site.outputs(&format!("{component}/process"))?;
            Some((text(outputs, "address")?, outputs))
        })
    };
    // In a cluster what clients talk to is a service. What they see of TLS is made here, or it is that of an ingress or of whoever else
    // brought a certificate, which machines trust or not.
    let service = || {
        sites.iter().find_map(|site| {
            let service = site.outputs(&format!("{}/service", names::GATEWAY))?;
            let leaf = site.outputs(&format!("{}/leaf", names::CERTIFICATE));
            let led = ["ingress", "http-route"].map(|part| site.outputs(&format!("{}/{part}", names::GATEWAY)));
            let led = led.iter().any(Option::is_some);
            Some((text(service, "url")?, leaf.filter(|_| !led).unwrap_or(service)))
        })
    };
    let entrance = entrance_of(names::FRONT).or_else(|| entrance_of(names::GATEWAY)).or_else(service);
    let Some((address, entrance)) = entrance else {
        return Err(Failure::usage("not_up", anyhow::anyhow!("environment {environment} is not up here"))
            .hint(session.again().command("up", environment)));
    };
    let first_key = sites.iter().find_map(|site| site.outputs(&format!("{}/{API_KEY}", names::SECRETS)));
    let secret = first_key.and_then(|outputs| SecretRef::from_value(outputs.get("secret")?));
    let key_file = match &secret {
        Some(secret) => clouds::secrets(folder).file_of(secret).ok(),
        None => None,
    };
    let deployed = format!("{}/deployment", names::SERVER);
    let in_cluster = sites.iter().find(|site| site.outputs(&deployed).is_some());
    let namespace = in_cluster.and_then(|site| text(site.outputs(&deployed)?, "namespace"));
    let mut servers: Vec<Serving> = sites.iter().filter_map(Recorded::serving).collect();
    // The site that has the first key is at home.
    servers.sort_by_key(|serving| !serving.is_home);
    Ok(Running {
        address,
        // The front's own figures say nothing of what servers do.
        metrics_address: entrance_of(names::GATEWAY).and_then(|(_, gateway)| text(gateway, "metrics_listen")),
        ca_file: text(entrance, "ca_file").map(Utf8PathBuf::from),
        key_file,
        key_id: first_key.and_then(|outputs| text(outputs, "public_id")),
        key: secret,
        servers,
        namespace,
        folder: folder.to_owned(),
        lineage: state.lineage(),
    })
}

/// What the journal says of one site.
struct Recorded {
    outputs: BTreeMap<String, Outputs>,
}

impl Recorded {
    fn of(holdings: impl IntoIterator<Item = (ResourceId, Holding)>) -> Recorded {
        let known = holdings.into_iter().filter_map(|(id, holding)| {
            let name = id.as_str().split_once('/')?.1.to_owned();
            Some((name, holding.current?.outputs))
        });
        Recorded { outputs: known.collect() }
    }

    /// The outputs of `COMPONENT` or `COMPONENT/PART`.
    fn outputs(&self, id: &str) -> Option<&Outputs> {
        self.outputs.get(id)
    }

    fn serving(&self) -> Option<Serving> {
        let of = |part: &str, field: &str| text(self.outputs(&format!("{}/{part}", names::SERVER))?, field);
        Some(Serving {
            program: of("program", "path")?.into(),
            config: of("config-0", "path")?.into(),
            watch: self.outputs(&format!("{}/process", names::WATCH)).and_then(|outputs| text(outputs, "listen")),
            is_home: self.outputs(&format!("{}/{API_KEY}", names::SECRETS)).is_some(),
        })
    }
}

fn text(outputs: &Outputs, field: &str) -> Option<String> {
    outputs.get(field)?.as_str().map(str::to_owned)
}

impl Running {
    /// The server program of a site that can take a command: the home site's, or, where sites replicate and it is lost, that of
    /// another whose watch answers.
    pub async fn serving(&self) -> Option<&Serving> {
        for serving in &self.servers {
            match &serving.watch {
                Some(watch) if !answers(watch).await => {}
                _ => return Some(serving),
            }
        }
        // All are lost as far as can be seen from here: the home site's program says best why.
        self.servers.first()
    }
}

/// Whether whoever listens on a Unix socket does its work.
async fn answers(listen: &str) -> bool {
    match listen.strip_prefix("unix:") {
        Some(socket) => talk::answers(Utf8Path::new(socket)).await,
        None => false,
    }
}

/// The server program that the last `up` put in place; `None` when there was none.
pub async fn program(
    session: &Session,
    environment: &EnvironmentName,
    folder: &Utf8Path,
) -> Result<Option<Program>, Failure> {
    let state = state(&session.again(), environment, folder).await?;
    for site in state.sites() {
        let id = format!("{site}/{}/program", names::SERVER);
        let holdings = state.holdings(site)?;
        let found = holdings.iter().find(|(known, _)| known.as_str() == id).and_then(|(_, holding)| {
            let outputs = &holding.current.as_ref()?.outputs;
            let text = |field: &str| outputs.get(field)?.as_str().map(str::to_owned);
            let digest = text("sha256")?;
            let digest = if digest.starts_with("sha256:") { digest } else { format!("sha256:{digest}") };
            Some(Program { path: text("path")?, digest })
        });
        if let Some(program) = found.filter(|p| Utf8Path::new(&p.path).is_file()) {
            return Ok(Some(program));
        }
    }
    Ok(None)
}

/// The schema that the database of what runs has; the newest of several sites'. `None` when there is no database here.
pub async fn schema(
    session: &Session,
    environment: &EnvironmentName,
    folder: &Utf8Path,
) -> Result<Option<u32>, Failure> {
    let state = state(&session.again(), environment, folder).await?;
    let mut newest = None;
    for site in state.sites() {
        let known = Recorded::of(state.holdings(site)?);
        let version =
            known.outputs(&format!("{}/schema", names::SERVER)).and_then(|outputs| outputs.get("version")?.as_u64());
        newest = newest.max(version.and_then(|version| u32::try_from(version).ok()));
    }
    Ok(newest)
}

/// The digests of the models that were delivered.
pub async fn models(
    session: &Session,
    environment: &EnvironmentName,
    folder: &Utf8Path,
) -> Result<BTreeSet<String>, Failure> {
    let state = state(&session.again(), environment, folder).await?;
    let mut found = BTreeSet::new();
    for site in state.sites() {
        let holdings = state.holdings(site)?;
        let models = holdings.iter().filter(|(id, _)| id.component() == names::MODELS);
        found.extend(models.filter_map(|(_, holding)| text(&holding.current.as_ref()?.outputs, "digest")));
    }
    Ok(found)
}

/// How clients reach what runs.
pub async fn target(session: &Session, environment: &EnvironmentName, folder: &Utf8Path) -> Result<Target, Failure> {
    let running = running(session, environment, folder).await?;
    let key = match &running.key {
        Some(secret) => Some(clouds::secrets(folder).get(secret).await.context("read the first API key")?),
        None => None,
    };
    let ca_pem = running.ca_file.as_deref().map(client::read_ca).transpose()?;
    Ok(Target { address: running.address, key, ca_pem, environment: Some(environment.clone()), again: session.again() })
}

/// A line that works when pasted into a shell.
pub fn curl(running: &Running, prompt: &str) -> String {
    let mut line = String::from("curl");
    if let Some(ca) = &running.ca_file {
        line.push_str(&format!(" --cacert {}", quoted(ca.as_str())));
    }
    if let Some(key) = &running.key_file {
        // Quotes begin anew inside `$(…)`.
        line.push_str(&format!(" -H \"Authorization: Bearer $(cat {})\"", quoted(key.as_str())));
    }
    let body = serde_json::json!({ "prompt": prompt, "max_tokens": 60 }).to_string();
    line.push_str(&format!(
        " -H 'Content-Type: application/json' -d {} {}/v1/generate",
        quoted(&body),
        running.address
    ));
    line
}

/// A member of a JSON document that is left out when it is not known.
pub fn path_or_null(path: Option<&Utf8PathBuf>) -> Value {
    path.map_or(Value::Null, |p| Value::String(p.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curl_line_survives_paths_with_blanks() {
        let running = Running {
            address: "https://127.0.0.1:8443".into(),
            metrics_address: None,
            ca_file: Some("/a b/ca.pem".into()),
            key_file: Some("/a b/key".into()),
            key: None,
            key_id: None,
            servers: Vec::new(),
            namespace: None,
            folder: Utf8PathBuf::new(),
            lineage: Lineage(Uuid::nil()),
        };
        assert_eq!(
            curl(&running, "It's"),
            "curl --cacert '/a b/ca.pem' -H \"Authorization: Bearer $(cat '/a b/key')\" \
             -H 'Content-Type: application/json' -d '{\"prompt\":\"It'\\''s\",\"max_tokens\":60}' https://127.0.0.1:8443/v1/generate"
        );
    }
}
