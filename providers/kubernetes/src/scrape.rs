//! The metrics of a deployment's pods, read through the API server: from each pod, or from the cluster's Prometheus.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use serde_json::Value;
use textnlp_provider::{ErrorKind, Lineage, Result};

use crate::api::{Api, encode};
use crate::canary::counters;
use crate::diagnosis::POD;
use crate::error::Call;
use crate::outage::pods;
use crate::provider::Kubernetes;
use crate::{ready, table};

/// Pods that are read at the same time.
const AT_ONCE: usize = 16;
/// The label of the service that the Prometheus operator creates for each namespace with a Prometheus.
const PROMETHEUS: &str = "operated-prometheus=true";
/// The port of that service.
const PROMETHEUS_PORT: &str = "web";
/// The namespace beside a site's own whose Prometheus is believed: network policies admit it to the metrics. Any client of the
/// cluster can label a service of another namespace.
const MONITORING: &str = "monitoring";

impl Kubernetes {
    /// The metrics of each ready pod of a deployment, by its name; `None` for a pod that did not answer, as one that ends
    /// meanwhile. An error when none answered, or when the access is denied.
    pub async fn scrape(
        &self,
        (namespace, lineage): (&str, Lineage),
        deployment: &str,
    ) -> Result<BTreeMap<String, Option<String>>> {
        let api = self.api().await?;
        let pods = pods(&api, namespace, lineage, deployment).await?;
        let mut asked = Vec::new();
        for pod in pods.iter().filter(|pod| ready::pod(pod)) {
            if let (Some(name), Some(port)) = (pod["metadata"]["name"].as_str(), counters::port(&pod["spec"])) {
                asked.push(metrics(&api, namespace, name, port));
            }
        }
        answered(futures::stream::iter(asked).buffer_unordered(AT_ONCE).collect().await)
    }

    /// The answer to a PromQL query of the Prometheus operator's Prometheus in a site's namespace or in namespace `monitoring`;
    /// `None` if there is none, or without series. An error if there are several.
    pub async fn ask_prometheus(&self, namespace: &str, query: &str) -> Result<Option<Value>> {
        ask(&self.api().await?, namespace, query).await
    }
}

async fn ask(api: &Api, own: &str, query: &str) -> Result<Option<Value>> {
    let row = table::named("kubernetes.service");
    let mut found = Vec::new();
    for namespace in BTreeSet::from([own, MONITORING]) {
        let list = Call { action: "list", verb: "list", row, namespace: Some(namespace), name: None };
        let services = api.list(&list, PROMETHEUS).await.map_err(|error| match error.kind {
            ErrorKind::Denied => error.hint(format!("allow `list` of `services` in namespace {namespace}")),
            _ => error,
        })?;
        let name = |service: &Value| service["metadata"]["name"].as_str().map(str::to_owned);
        found.extend(services.iter().filter_map(name).map(|name| (namespace, name)));
    }
    let call =
        |(namespace, name)| Call { action: "query", verb: "get", row, namespace: Some(namespace), name: Some(name) };
    match found.as_slice() {
        [] => Ok(None),
        [(namespace, name)] => {
            let answer = evaluate(api, &call((*namespace, name.as_str())), query).await?;
            let has_series = answer["data"]["result"].as_array().is_some_and(|series| !series.is_empty());
            Ok(has_series.then_some(answer))
        }
        several @ [(namespace, name), ..] => {
            let names: Vec<_> = several.iter().map(|(namespace, name)| format!("{namespace}/{name}")).collect();
            let why = format!("services {} have the label `{PROMETHEUS}`", names.join(", "));
            let hint =
                format!("leave one Prometheus in namespaces {own} and {MONITORING}, or remove the label of the others");
            Err(call((*namespace, name.as_str())).error(ErrorKind::Invalid).because(why).hint(hint))
        }
    }
}

fn answered(read: Vec<(String, Result<String>)>) -> Result<BTreeMap<String, Option<String>>> {
    let (mut texts, mut failed) = (BTreeMap::new(), None);
    for (name, text) in read {
        let text = match text {
            Ok(text) => Some(text),
            Err(error) if error.kind == ErrorKind::Denied => return Err(error),
            Err(error) => {
                failed = Some(error);
                None
            }
        };
        texts.insert(name, text);
    }
    match failed {
        Some(error) if texts.values().all(Option::is_none) => Err(error),
        _ => Ok(texts),
    }
}

async fn metrics(api: &Api, namespace: &str, name: &str, port: u16) -> (String, Result<String>) {
    let call = Call { action: "read metrics of", verb: "get", row: &POD, namespace: Some(namespace), name: Some(name) };
    let read = api.text(&call, &format!("{}:{port}/proxy/metrics", call.path())).await;
    let read = read.map_err(|error| match error.kind {
        ErrorKind::Denied => error.hint(format!("allow `get` of `pods/proxy` in namespace {namespace}")),
        _ => error.hint(format!(
            "with `network.policies`, admit the API server to port {port} of the pods, or set `monitoring.stack: true`: \
             docs/guide/metrics.md#network-policies"
        )),
    });
    (name.to_owned(), read)
}

/// <https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries>, through
/// <https://kubernetes.io/docs/tasks/access-application-cluster/access-cluster-services/#manually-constructing-apiserver-proxy-urls>.
async fn evaluate(api: &Api, call: &Call<'_>, query: &str) -> Result<Value> {
    let path = format!("{}:{PROMETHEUS_PORT}/proxy/api/v1/query?query={}", call.path(), encode(query));
    match api.document(call, &path).await {
        Ok(answer) if answer["status"] == "success" => Ok(answer),
        Ok(answer) => {
            let why = answer["error"].as_str().unwrap_or("it gives no reason").to_owned();
            Err(call.error(ErrorKind::Unavailable).because(why))
        }
        Err(error) if error.kind == ErrorKind::Denied => {
            Err(error.hint("allow `get` of `services/proxy` in the namespace of Prometheus"))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::client::Body;

    use super::*;

    const METRICS: &str = "/api/v1/namespaces/shop/pods/api-1:9090/proxy/metrics";
    const QUERY: &str = "/api/v1/namespaces/monitoring/services/prometheus-operated:web/proxy/api/v1/query";

    /// An API server that answers one path with this text, and refuses others.
    fn serving(path: &'static str, text: &'static str) -> Api {
        answering(BTreeMap::from([(path, text)]))
    }

    /// The same with several paths.
    fn answering(texts: BTreeMap<&'static str, &'static str>) -> Api {
        let service = tower::service_fn(move |request: Request<Body>| {
            let text = texts.get(request.uri().path()).copied();
            let answer = Response::builder().status(if text.is_some() { 200 } else { 403 });
            let answer = answer.body(text.unwrap_or("{}").to_owned());
            async move { answer.map_err(|error| -> Box<dyn std::error::Error + Send + Sync> { error.into() }) }
        });
        Api::new(kube::Client::new(service, "here"), None)
    }

    /// Only the Prometheus of the site's namespace or of `monitoring` is asked, which is the only one there.
    #[tokio::test]
    async fn prometheus_of_another_namespace_is_not_asked() {
        const NONE: &str = r#"{"items":[]}"#;
        const ONE: &str = r#"{"items":[{"metadata":{"name":"prometheus-operated"}}]}"#;
        const FOREIGN: &str = r#"{"items":[{"metadata":{"name":"prometheus-operated","namespace":"attacker"}}]}"#;
        let series = r#"{"status":"success","data":{"result":[{"value":[0,"1"]}]}}"#;
        let cluster = |shop, monitoring| {
            answering(BTreeMap::from([
                ("/api/v1/services", FOREIGN),
                ("/api/v1/namespaces/attacker/services/prometheus-operated:web/proxy/api/v1/query", series),
                ("/api/v1/namespaces/shop/services", shop),
                ("/api/v1/namespaces/monitoring/services", monitoring),
                (QUERY, series),
            ]))
        };
        assert_eq!(ask(&cluster(NONE, NONE), "shop", "up").await.unwrap(), None);
        assert!(ask(&cluster(NONE, ONE), "shop", "up").await.unwrap().is_some());
        assert!(ask(&cluster(NONE, ONE), "monitoring", "up").await.unwrap().is_some());
        let several = ask(&cluster(ONE, ONE), "shop", "up").await.unwrap_err();
        let why = textnlp_provider::error_chain(&several);
        assert!(why.contains("monitoring/prometheus-operated, shop/prometheus-operated have the label"), "{why}");
        assert!(
            several.hint.is_some_and(|hint| hint.contains("leave one Prometheus in namespaces shop and monitoring"))
        );
    }

    #[tokio::test]
    async fn pods_are_scraped_through_the_api_server() {
        let (name, found) = metrics(&serving(METRICS, "up 1\n"), "shop", "api-1", 9090).await;
        assert_eq!((name.as_str(), found.unwrap().as_str()), ("api-1", "up 1\n"));
        let denied = metrics(&serving(METRICS, "{}"), "shop", "api-2", 9090).await.1.unwrap_err();
        assert!(denied.hint.as_deref().is_some_and(|hint| hint.contains("`pods/proxy`")), "{denied:?}");
    }

    #[test]
    fn pod_that_does_not_answer_leaves_the_others() {
        let failed = |kind| Err(textnlp_provider::Error::new(kind, "read metrics of", "api-2"));
        let read = |name: &str, text: Result<&str>| (name.to_owned(), text.map(str::to_owned));
        let found = answered(vec![read("api-1", Ok("up 1")), read("api-2", failed(ErrorKind::Unavailable))]).unwrap();
        let expected = [("api-1".to_owned(), Some("up 1".to_owned())), ("api-2".to_owned(), None)];
        assert_eq!(found, BTreeMap::from(expected));
        answered(vec![read("api-2", failed(ErrorKind::Unavailable))]).unwrap_err();
        answered(vec![read("api-1", Ok("up 1")), read("api-2", failed(ErrorKind::Denied))]).unwrap_err();
        assert!(answered(Vec::new()).unwrap().is_empty());
    }

    #[tokio::test]
    async fn failed_query_of_prometheus_has_its_reason() {
        let row = table::named("kubernetes.service");
        let (namespace, name) = (Some("monitoring"), Some("prometheus-operated"));
        let call = Call { action: "query", verb: "get", row, namespace, name };
        let answer = r#"{"status":"success","data":{"result":[]}}"#;
        assert_eq!(evaluate(&serving(QUERY, answer), &call, "up{a=\"b c\"}").await.unwrap()["status"], "success");
        let failed = evaluate(&serving(QUERY, r#"{"status":"error","error":"parse error"}"#), &call, "up").await;
        assert!(textnlp_provider::error_chain(&failed.unwrap_err()).contains("parse error"));
        let denied = evaluate(&serving("/", "{}"), &call, "up").await.unwrap_err();
        assert!(denied.hint.as_deref().is_some_and(|hint| hint.contains("`services/proxy`")), "{denied:?}");
    }
}
