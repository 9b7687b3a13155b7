//! The autoscaler of a site on the real controllers: from three pods to twenty and back, by what a stand-in for the metrics says of its pods.

use std::time::{Duration, Instant};

use serde_json::json;
use textnlp_cluster::Cluster as ControlPlane;
use textnlp_cluster::hollow::HOLLOW;
use textnlp_cluster::metrics::Load;
use textnlp_kubernetes::{Access, Kubernetes};
use textnlp_provider::Provider;

use crate::parts::*;

/// What a pod asks for of the processor: 2 cores, and 100 thousandths for its gateway.
const POD_MILLICORES: u64 = 2100;

/// A site whose pods run on hollow nodes, with the autoscaler as it is applied.
fn put(control: &ControlPlane, namespace: &str) {
    control.hollow_nodes(6);
    for one in objects(&Fixture { namespace: namespace.to_owned(), ..fixture() }) {
        let (version, kind) = match one.kind.as_str() {
            "kubernetes.deployment" => ("apps/v1", "Deployment"),
            "kubernetes.horizontal-pod-autoscaler" => ("autoscaling/v2", "HorizontalPodAutoscaler"),
            "kubernetes.service-account" => ("v1", "ServiceAccount"),
            _ => continue,
        };
        let mut object = one.spec.as_value().clone();
        (object["apiVersion"], object["kind"]) = (json!(version), json!(kind));
        if let Some(template) = object.pointer_mut("/spec/template") {
            // Nothing is read there, and nothing has a digest.
            template["metadata"]["annotations"] = json!({});
            template["spec"]["nodeSelector"] = json!({ HOLLOW: "true" });
            template["spec"]["tolerations"] = json!([{ "key": HOLLOW, "operator": "Exists" }]);
        }
        control.feed(&["apply", "--server-side"], &object);
    }
}

async fn until(control: &ControlPlane, namespace: &str, replicas: u64) -> Duration {
    let begun = Instant::now();
    let (api, path) = (control.api(), format!("/apis/apps/v1/namespaces/{namespace}/deployments/textnlp-api"));
    loop {
        let status = api.get(&path).await.unwrap()["status"].clone();
        if status["replicas"] == replicas && status["readyReplicas"] == replicas {
            return begun.elapsed();
        }
        if begun.elapsed() > Duration::from_secs(240) {
            let said = control.kubectl(&["describe", "hpa", "-n", namespace]);
            panic!("not {replicas} pods: {status:#}\n{}", String::from_utf8_lossy(&said.stdout));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The groups that preflight misses for the autoscaler.
async fn told_before(control: &ControlPlane) -> Vec<&'static str> {
    let access = Access::kubeconfig(Some(control.admin().into()), None);
    let kubernetes = Kubernetes::new(access, std::sync::Arc::new(crate::world::Vault::default()));
    let mut scaler = objects(&fixture());
    scaler.retain(|one| one.kind.as_str() == "kubernetes.horizontal-pod-autoscaler");
    let found = kubernetes.preflight(&scaler).await.unwrap();
    let found: Vec<_> = found.iter().filter(|problem| problem.place == "scaling").collect();
    assert!(found.iter().all(|problem| problem.warning), "{found:?}");
    let groups = ["custom.metrics.k8s.io", "metrics.k8s.io"];
    groups
        .into_iter()
        .filter(|group| found.iter().any(|problem| problem.cause.contains(&format!("needs {group},"))))
        .collect()
}

/// What preflight says of an adapter of ours.
async fn told_of_adapter(control: &ControlPlane) -> Vec<textnlp_provider::Problem> {
    let access = Access::kubeconfig(Some(control.admin().into()), None);
    let kubernetes = Kubernetes::new(access, std::sync::Arc::new(crate::world::Vault::default()));
    let made = objects(&Fixture { adapter: true, ..fixture() });
    let asked: Vec<_> = made
        .into_iter()
        .filter(|one| one.id.as_str().ends_with("/registration") || one.id.as_str().ends_with("/autoscaler"))
        .collect();
    assert_eq!(asked.len(), 2);
    kubernetes.preflight(&asked).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn autoscaler_scales_three_pods_to_twenty_and_back_to_three() {
    let Some(control) = ControlPlane::shared() else { return };
    let namespace = control.namespace("scaled");
    let load =
        |requests: u64| Load { millirequests: requests * 1000, millicores: POD_MILLICORES / 10, memory: 200 << 20 };
    // An autoscaler that would know nothing is told of before it is made.
    assert_eq!(told_before(control).await, ["custom.metrics.k8s.io", "metrics.k8s.io"]);
    // One that comes with the rest is not missed, and takes no other's place: neither his very object, nor his clients.
    let asks =
        |found: &[textnlp_provider::Problem]| found.iter().any(|one| one.cause.contains("asks custom.metrics.k8s.io"));
    assert!(!asks(&told_of_adapter(control).await));
    let other = |version: &str| {
        let spec = json!({ "group": "custom.metrics.k8s.io", "version": version, "groupPriorityMinimum": 10, "versionPriority": 10 });
        json!({ "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": { "name": format!("{version}.custom.metrics.k8s.io") }, "spec": spec })
    };
    for version in ["v1beta1", "v1beta2"] {
        control.feed(&["apply"], &other(version));
        let found = told_of_adapter(control).await;
        let name = format!("{version}.custom.metrics.k8s.io");
        let refused = |one: &&textnlp_provider::Problem| {
            !one.warning && one.cause.contains(&name) && one.cause.contains("another client created it")
        };
        assert_eq!(found.iter().filter(refused).count(), 1, "{found:#?}");
        assert!(control.kubectl(&["delete", "apiservice", &name]).status.success());
    }
    let metrics = control.metrics();
    let begun = Instant::now();
    while !told_before(control).await.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(120), "the API server does not lead to the stand-in");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    metrics.put(&namespace, load(300));
    put(control, &namespace);
    until(control, &namespace, 3).await;
    // A thousand a second for each pod is what it is told to hold.
    metrics.put(&namespace, load(20_000));
    let up = until(control, &namespace, 20).await;
    metrics.put(&namespace, load(300));
    let down = until(control, &namespace, 3).await;
    eprintln!("3 to 20 pods in {} s, 20 to 3 in {} s", up.as_secs(), down.as_secs());
}
