//! The logs of a deployment's pods, read through the API server.

use jiff::Timestamp;
use serde_json::Value;
use textnlp_provider::operations::{LogSource, LogText};
use textnlp_provider::{ErrorKind, Lineage, Result};

use crate::api::{Api, encode};
use crate::diagnosis::{self, POD};
use crate::error::Call;
use crate::provider::Kubernetes;
use crate::{identity, table};

/// The kinds whose pods run for as long as the deployment.
const KINDS: [&str; 3] = ["kubernetes.deployment", "kubernetes.stateful-set", "kubernetes.daemon-set"];
/// The newest lines of a container that are read, and the most bytes of them.
const MAX_LINES: usize = 20_000;
const MAX_BYTES: u32 = 16 << 20;

impl Kubernetes {
    /// The containers of all pods of a lineage's deployments, stateful sets and daemon sets. A container that was
    /// restarted comes twice, its previous run first.
    pub async fn log_sources(&self, (namespace, lineage): (&str, Lineage)) -> Result<Vec<LogSource>> {
        let api = self.api().await?;
        let owned = format!("{}={lineage}", identity::LINEAGE);
        let mut found = Vec::new();
        for kind in KINDS {
            let row = table::named(kind);
            let list = Call { action: "list", verb: "list", row, namespace: Some(namespace), name: None };
            for object in api.list(&list, &owned).await? {
                let selector = diagnosis::selector(&object);
                if selector.is_empty() {
                    continue;
                }
                let pods = Call { row: &POD, ..list };
                found.extend(api.list(&pods, &selector).await?.iter().flat_map(sources));
            }
        }
        Ok(found)
    }

    /// The newest lines of a container since a time, at most this many, each with its time.
    pub async fn log_of(&self, namespace: &str, source: &LogSource, range: (Timestamp, usize)) -> Result<LogText> {
        read(&self.api().await?, namespace, source, range).await
    }
}

/// The containers of a pod that have a log.
fn sources(pod: &Value) -> Vec<LogSource> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let statuses = ["initContainerStatuses", "containerStatuses"].into_iter();
    let statuses = statuses.flat_map(|field| pod["status"][field].as_array()).flatten();
    let mut found = Vec::new();
    for status in statuses {
        let Some(container) = status["name"].as_str() else { continue };
        let source = |is_previous| LogSource { pod: name.to_owned(), container: container.to_owned(), is_previous };
        if status["lastState"]["terminated"].is_object() {
            found.push(source(true));
        }
        if status["state"]["waiting"].is_null() {
            found.push(source(false));
        }
    }
    found
}

/// <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/#get-read-log-of-the-specified-pod>
async fn read(api: &Api, namespace: &str, source: &LogSource, (since, lines): (Timestamp, usize)) -> Result<LogText> {
    let mut lines = lines.min(MAX_LINES);
    let LogSource { pod, container, is_previous } = source;
    let (namespace, name) = (Some(namespace), Some(pod.as_str()));
    let call = Call { action: "read the log of", verb: "get", row: &POD, namespace, name };
    let text = loop {
        let path = format!(
            "{}/log?container={}&sinceTime={}&tailLines={lines}&limitBytes={MAX_BYTES}&timestamps=true&previous={is_previous}",
            call.path(),
            encode(container),
            encode(&format!("{since:.0}"))
        );
        let text = api.text(&call, &path).await.map_err(|error| match error.kind {
            ErrorKind::Denied => {
                error.hint(format!("allow `get` of `pods/log` in namespace {}", namespace.unwrap_or_default()))
            }
            _ => error,
        })?;
        // The bytes are counted from the oldest of these lines, so that the newest ones would be missing.
        if text.len() < MAX_BYTES as usize || lines <= 1 {
            break text;
        }
        lines /= 4;
    };
    let is_cut = text.lines().count() >= lines;
    Ok(LogText { text, is_cut })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    fn source(pod: &str, container: &str, is_previous: bool) -> LogSource {
        LogSource { pod: pod.to_owned(), container: container.to_owned(), is_previous }
    }

    #[test]
    fn restarted_container_has_two_logs_and_a_waiting_one_none() {
        let pod = json!({ "metadata": { "name": "api-1" }, "status": {
            "initContainerStatuses": [{ "name": "schema", "state": { "terminated": {} }, "lastState": {} }],
            "containerStatuses": [
                { "name": "api", "state": { "running": {} }, "lastState": { "terminated": { "exitCode": 137 } } },
                { "name": "gateway", "state": { "waiting": { "reason": "ContainerCreating" } }, "lastState": {} },
            ],
        } });
        let expected = [source("api-1", "schema", false), source("api-1", "api", true), source("api-1", "api", false)];
        assert_eq!(sources(&pod), expected);
        assert!(sources(&json!({})).is_empty());
    }

    #[tokio::test]
    async fn log_is_requested_since_a_time_with_bounds() {
        let asked = Arc::new(Mutex::new(String::new()));
        let seen = asked.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let seen = seen.clone();
            async move {
                let uri = request.uri();
                let is_known = uri.path() == "/api/v1/namespaces/shop/pods/api-1/log";
                *seen.lock().unwrap() = uri.query().unwrap_or_default().to_owned();
                let (status, text) = if is_known { (200, "one\ntwo\n") } else { (403, "{}") };
                let answer = Response::builder().status(status).body(text.to_owned());
                answer.map_err(|error| -> Box<dyn std::error::Error + Send + Sync> { error.into() })
            }
        });
        let api = Api::new(kube::Client::new(service, "here"), None);
        let since = Timestamp::from_second(1_800_000_000).unwrap();
        let found = read(&api, "shop", &source("api-1", "api", true), (since, usize::MAX)).await.unwrap();
        assert_eq!(found, LogText { text: "one\ntwo\n".to_owned(), is_cut: false });
        let query = asked.lock().unwrap().clone();
        let expected = "container=api&sinceTime=2027-01-15T08%3A00%3A00Z&tailLines=20000&limitBytes=16777216";
        assert!(query.starts_with(expected) && query.contains("&previous=true"), "{query}");
        let denied = read(&api, "shop", &source("api-2", "api", false), (since, 9)).await.unwrap_err();
        assert!(denied.hint.as_deref().is_some_and(|hint| hint.contains("`pods/log`")), "{denied:?}");
    }
}
