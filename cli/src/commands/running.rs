//! The running environment, as its journal knows it: address, key, certificate authority, program.

use std::sync::Arc;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use textnlp_orchestrator::environment::{API_KEY, names};
use textnlp_orchestrator::state::{Folder, State};
use textnlp_provider::component::Program;
use textnlp_provider::{EnvironmentName, Lineage, Outputs, SecretRef, SecretStore};
use uuid::Uuid;

use crate::again::quoted;
use crate::client::{self, Target};
use crate::clouds;
use crate::deployment::state_failed;
use crate::report::Failure;
use crate::session::Session;

/// What the journal says of a running environment's primary site.
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
    /// The program that serves, by path.
    pub program: Option<Utf8PathBuf>,
    /// The configuration of the first replica.
    pub config: Option<Utf8PathBuf>,
    /// Which deployment.
    pub lineage: Lineage,
}

/// Reads the state of an environment without a lock.
pub async fn state(session: &Session, environment: &EnvironmentName, folder: &Utf8Path) -> Result<State, Failure> {
    let store = Arc::new(Folder::at(folder));
    State::load(store, environment, Lineage(Uuid::new_v4())).await.map_err(|e| state_failed(e, session, environment))
}

/// What runs, or that nothing does.
pub async fn running(session: &Session, environment: &EnvironmentName, folder: &Utf8Path) -> Result<Running, Failure> {
    let state = state(session, environment, folder).await?;
    for site in state.sites() {
        let holdings = state.holdings(site)?;
        let outputs = |id: &str| -> Option<Outputs> {
            let id = format!("{site}/{id}");
            let (_, holding) = holdings.iter().find(|(known, _)| known.as_str() == id)?;
            Some(holding.current.as_ref()?.outputs.clone())
        };
        let text = |outputs: &Option<Outputs>, field: &str| outputs.as_ref()?.get(field)?.as_str().map(str::to_owned);
        let gateway = outputs(&format!("{}/process", names::GATEWAY));
        let Some(address) = text(&gateway, "address") else { continue };
        let first_key = outputs(&format!("{}/{API_KEY}", names::SECRETS));
        let secret = first_key.as_ref().and_then(|o| SecretRef::from_value(o.get("secret")?));
        let program = outputs(&format!("{}/program", names::SERVER));
        let config = outputs(&format!("{}/config-0", names::SERVER));
        let key_file = match &secret {
            Some(secret) => clouds::secrets(folder).file_of(secret).ok(),
            None => None,
        };
        return Ok(Running {
            address,
            metrics_address: text(&gateway, "metrics_listen"),
            ca_file: text(&gateway, "ca_file").map(Utf8PathBuf::from),
            key_file,
            key: secret,
            key_id: text(&first_key, "public_id"),
            program: text(&program, "path").map(Utf8PathBuf::from),
            config: text(&config, "path").map(Utf8PathBuf::from),
            lineage: state.lineage(),
        });
    }
    Err(Failure::usage("not_up", anyhow::anyhow!("environment {environment} is not up here"))
        .hint(session.again().command("up", environment)))
}

/// The server program that the last `up` put in place; `None` when there was none.
pub async fn program(
    session: &Session,
    environment: &EnvironmentName,
    folder: &Utf8Path,
) -> Result<Option<Program>, Failure> {
    let state = state(session, environment, folder).await?;
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
            program: None,
            config: None,
            lineage: Lineage(Uuid::nil()),
        };
        assert_eq!(
            curl(&running, "It's"),
            "curl --cacert '/a b/ca.pem' -H \"Authorization: Bearer $(cat '/a b/key')\" \
             -H 'Content-Type: application/json' -d '{\"prompt\":\"It'\\''s\",\"max_tokens\":60}' https://127.0.0.1:8443/v1/generate"
        );
    }
}
