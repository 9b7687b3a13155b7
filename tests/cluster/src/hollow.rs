//! Nodes that run nothing: pods bound to them are reported as running and ready at once. Schedulers and autoscalers
//! under test treat them as any other node.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use camino::Utf8PathBuf;
use serde_json::{Value, json};

use crate::api::Api;
use crate::kubelet::{self, names};

/// The label and the taint of these nodes. Only pods that select and tolerate it are bound to one.
pub const HOLLOW: &str = "textnlp.dev/hollow";

/// How often the pods of all hollow nodes are listed.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Registers a node `hollow-N` for each of these numbers, and serves them on a thread of its own until the test program ends.
pub(crate) fn start(kubeconfig: Utf8PathBuf, numbers: std::ops::Range<u32>) {
    let (ready, registered) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start a runtime");
        runtime.block_on(async {
            let api = Api::new(&kubeconfig);
            let taint = json!({ "key": HOLLOW, "value": "true", "effect": "NoSchedule" });
            let mut nodes = Vec::new();
            for number in numbers {
                let node = format!("hollow-{number}");
                let labels = json!({ HOLLOW: "true", "topology.kubernetes.io/zone": format!("zone-{}", number % 3) });
                kubelet::join(&api, &node, 0, &labels, std::slice::from_ref(&taint)).await;
                nodes.push(node);
            }
            ready.send(()).expect("the caller waits");
            let heartbeats = nodes.iter().map(|node| kubelet::heartbeat(api.clone(), node, Default::default()));
            tokio::join!(futures::future::join_all(heartbeats), serve(&api, &nodes));
        });
    });
    registered.recv().expect("the hollow nodes register");
}

/// Reports the pods of these nodes as running, and finishes their deletion.
async fn serve(api: &Api, nodes: &[String]) {
    let scheduled = format!("/api/v1/pods?fieldSelector=spec.nodeName!=,spec.nodeName!={}", kubelet::NODE);
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        // A test may be restarting the API server.
        let Ok(list) = api.call("GET", &scheduled, None).await else { continue };
        for pod in list.body["items"].as_array().into_iter().flatten() {
            if !nodes.iter().any(|node| pod["spec"]["nodeName"] == **node) {
                continue;
            }
            let (namespace, name) = names(pod);
            let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
            let uid = &pod["metadata"]["uid"];
            if pod["metadata"]["deletionTimestamp"].is_string() {
                let body = json!({ "gracePeriodSeconds": 0, "preconditions": { "uid": uid } });
                let _ = api.call("DELETE", &path, Some(&body)).await;
            } else if pod["status"]["phase"] == "Pending" {
                let body = json!({ "metadata": { "uid": uid }, "status": running(pod) });
                let _ = api.call("PATCH", &format!("{path}/status"), Some(&body)).await;
            }
        }
    }
}

/// The status of a pod whose containers all run and are ready.
fn running(pod: &Value) -> Value {
    // The pod network of hollow nodes is 10.200.0.0/16. No connection is ever made to it.
    static ADDRESSES: AtomicU32 = AtomicU32::new(1);
    let [_, _, third, fourth] = ADDRESSES.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let address = format!("10.200.{third}.{fourth}");
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    let conditions: Vec<Value> = ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
        .map(|kind| json!({ "type": kind, "status": "True", "lastTransitionTime": now }))
        .into();
    let containers = |field: &str, state: &Value, ready: bool| -> Vec<Value> {
        let container = |spec: &Value| {
            json!({
                "name": spec["name"], "image": spec["image"], "imageID": spec["image"], "restartCount": 0, "ready": ready,
                "started": ready, "state": state,
            })
        };
        pod["spec"][field].as_array().into_iter().flatten().map(container).collect()
    };
    let done = json!({ "terminated": { "exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now } });
    json!({
        "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }], "hostIP": "127.0.0.1", "startTime": now,
        "conditions": conditions,
        "initContainerStatuses": containers("initContainers", &done, true),
        "containerStatuses": containers("containers", &json!({ "running": { "startedAt": now } }), true),
    })
}
