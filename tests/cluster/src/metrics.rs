//! A fake metrics server (`metrics.k8s.io`) and custom metrics adapter (`custom.metrics.k8s.io`), reached through the
//! aggregation layer of the real API server. The pods of a namespace share the load that a test sets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use camino::Utf8PathBuf;
use futures::FutureExt;
use serde_json::{Value, json};

use crate::api::Api;
use crate::tls::{self, Answer};

/// The load of a namespace: its pods share the requests evenly, and each uses the same resources.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    /// Requests of all pods in thousandths per second: `http_requests_per_second`.
    pub millirequests: u64,
    /// CPU of one pod, in thousandths of a core.
    pub millicores: u64,
    /// Memory of one pod, in bytes.
    pub memory: u64,
}

/// The metrics for autoscalers.
pub struct Metrics {
    loads: Arc<Mutex<BTreeMap<String, Load>>>,
    /// The port.
    pub(crate) port: u16,
}

/// The API groups that it serves: name, version, and the resources for discovery.
pub(crate) const SERVED: [(&str, &str, &[&str]); 2] = [
    ("metrics.k8s.io", "v1beta1", &["pods"]),
    ("custom.metrics.k8s.io", "v1beta2", &["pods/http_requests_per_second"]),
];

impl Metrics {
    pub(crate) fn start(kubeconfig: Utf8PathBuf, trusted: (String, String)) -> Self {
        let loads: Arc<Mutex<BTreeMap<String, Load>>> = Arc::default();
        let (tell, told) = std::sync::mpsc::channel();
        let known = loads.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("start a runtime").block_on(async {
                let api = Api::new(&kubeconfig);
                let port = tls::serve(&trusted, move |target, _| {
                    let (api, known) = (api.clone(), known.clone());
                    async move { answer(&api, &known, &target).await }.boxed()
                });
                tell.send(port.await).expect("somebody waits");
                std::future::pending::<()>().await;
            });
        });
        Self { loads, port: told.recv().expect("the metrics start") }
    }

    /// Sets the load of a namespace.
    pub fn put(&self, namespace: &str, load: Load) {
        self.loads.lock().unwrap_or_else(PoisonError::into_inner).insert(namespace.to_owned(), load);
    }
}

async fn answer(api: &Api, loads: &Mutex<BTreeMap<String, Load>>, target: &str) -> Answer {
    const JSON: &str = "application/json";
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    for (group, version, names) in SERVED {
        if parts == ["apis", group, version] {
            let kinds: Vec<Value> = names.iter().map(|name| resource(name)).collect();
            let list = json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{group}/{version}"), "resources": kinds });
            return ("200 OK", JSON, list.to_string());
        }
    }
    let (namespace, custom) = match parts[..] {
        ["apis", "metrics.k8s.io", _, "namespaces", namespace, "pods"] => (namespace, false),
        [
            "apis",
            "custom.metrics.k8s.io",
            _,
            "namespaces",
            namespace,
            "pods",
            "*" | "%2A",
            "http_requests_per_second",
        ] => (namespace, true),
        _ => return ("404 Not Found", JSON, "{}".to_owned()),
    };
    let selector = query.split('&').find(|pair| pair.starts_with("labelSelector=")).unwrap_or_default();
    let pods = api.get(&format!("/api/v1/namespaces/{namespace}/pods?{selector}")).await.unwrap_or_default();
    let running = |pod: &&Value| pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null();
    let pods: Vec<&Value> = pods["items"].as_array().into_iter().flatten().filter(running).collect();
    let load = loads.lock().unwrap_or_else(PoisonError::into_inner).get(namespace).copied().unwrap_or_default();
    let share = load.millirequests / pods.len().max(1) as u64;
    // Autoscalers ignore metrics from before a pod was ready.
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    let items: Vec<Value> = pods
        .iter()
        .map(|pod| {
            let name = &pod["metadata"]["name"];
            if custom {
                let described = json!({ "kind": "Pod", "namespace": namespace, "name": name, "apiVersion": "v1" });
                let metric = json!({ "name": "http_requests_per_second" });
                return json!({ "describedObject": described, "metric": metric, "timestamp": now, "value": format!("{share}m") });
            }
            let containers: Vec<&Value> = pod["spec"]["containers"].as_array().into_iter().flatten().collect();
            let each = |pod: u64| pod / containers.len().max(1) as u64;
            let usage = json!({ "cpu": format!("{}m", each(load.millicores)), "memory": each(load.memory).to_string() });
            let of: Vec<Value> = containers.iter().map(|one| json!({ "name": one["name"], "usage": usage })).collect();
            let metadata = json!({ "name": name, "namespace": namespace, "labels": pod["metadata"]["labels"] });
            json!({ "metadata": metadata, "timestamp": now, "window": "15s", "containers": of })
        })
        .collect();
    let (kind, version) = if custom {
        ("MetricValueList", "custom.metrics.k8s.io/v1beta2")
    } else {
        ("PodMetricsList", "metrics.k8s.io/v1beta1")
    };
    ("200 OK", JSON, json!({ "kind": kind, "apiVersion": version, "metadata": {}, "items": items }).to_string())
}

fn resource(name: &str) -> Value {
    let kind = if name.contains('/') { "MetricValueList" } else { "PodMetrics" };
    json!({ "name": name, "singularName": "", "namespaced": true, "kind": kind, "verbs": ["get", "list"] })
}
