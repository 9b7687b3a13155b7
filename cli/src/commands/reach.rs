//! How a client reaches a running environment.

use anyhow::Context;
use camino::Utf8PathBuf;
use serde_json::Value;
use textnlp_orchestrator::environment::Environment;
use textnlp_provider::SecretStore;
use textnlp_service::Scope;
use textnlp_service::running::{self, RunningEnvironment};

use crate::client::Target;
use crate::report::Failure;
use crate::rerun_flags::quoted;
use crate::{clouds, network};

/// The address and credentials of the running service.
pub async fn target(scope: &Scope, environment: Option<&Environment>) -> Result<Target, Failure> {
    let running = running::running(scope).await?;
    let key = match &running.key {
        Some(secret) => Some(clouds::secrets(&scope.folder).get(secret).await.context("read the first API key")?),
        None => None,
    };
    let trust = network::trust(running.ca_file.as_deref(), environment)?;
    Ok(Target {
        address: running.address,
        key,
        trust,
        environment: Some(scope.name.clone()),
        again: scope.again.clone(),
    })
}

/// A `curl` command for a POSIX shell.
pub fn curl(running: &RunningEnvironment, prompt: &str) -> String {
    let mut line = String::from("curl");
    if let Some(ca) = &running.ca_file {
        line.push_str(&format!(" --cacert {}", quoted(ca.as_str())));
    }
    if let Some(key) = &running.key_file {
        // `$(…)` starts a new quoting context, so the inner quotes need no escapes.
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

/// A path as a JSON value, null if unknown.
pub fn path_or_null(path: Option<&Utf8PathBuf>) -> Value {
    path.map_or(Value::Null, |p| Value::String(p.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use textnlp_provider::Lineage;
    use uuid::Uuid;

    #[test]
    fn printed_curl_command_quotes_paths_with_blanks() {
        let running = RunningEnvironment {
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
