//! Diagnosis of an object that is not ready or not deleted: problems of its pods, their nodes, and blocking finalizers.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::api::Api;
use crate::error::Call;
use crate::ready::{self, condition};
use crate::table::Row;

/// The number of log lines quoted from a crashed container.
const LAST_LINES: u32 = 5;
/// The limit of inspected pods; the others usually have the same problem.
const PODS: usize = 20;
/// The limit of inspected nodes.
const NODES: usize = 3;

/// Pods, read only.
pub(crate) static POD: Row = crate::table::pods();
static NODE: Row = crate::table::nodes();
/// Waiting reasons of a normal startup.
const WAITING_FOR_NOTHING: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// `why`, extended by the problems of the object's pods.
pub(crate) async fn of_pods(api: &Api, row: &Row, object: &Value, why: String) -> String {
    let problem = problem_of_pods(api, row, object).await;
    extended(why, problem.as_deref())
}

/// `why`, extended by a problem.
pub(crate) fn extended(why: String, problem: Option<&str>) -> String {
    match problem {
        Some(problem) => format!("{why}: {problem}"),
        None => why,
    }
}

/// A problem of the object's pods.
pub(crate) async fn problem_of_pods(api: &Api, row: &Row, object: &Value) -> Option<String> {
    if !row.has_pods {
        return None;
    }
    let namespace = object["metadata"]["namespace"].as_str();
    let selector = selector(object);
    if selector.is_empty() {
        return None;
    }
    let call = Call { action: "list", verb: "list", row: &POD, namespace, name: None };
    // A failed diagnosis must not fail the wait.
    let pods = api.list(&call, &selector).await.ok()?;
    let staying = pods.into_iter().filter(|pod| !pod["metadata"]["deletionTimestamp"].is_string());
    let staying: Vec<Value> = staying.take(PODS).collect();
    for pod in &staying {
        if let Some(says) = of_pod(api, pod).await {
            return Some(says);
        }
    }
    let (pod, lost) = on_a_lost_node(api, staying.iter().filter(|pod| !ready::pod(pod))).await?;
    Some(format!("pod {pod} is on {lost}"))
}

/// Why an object is still being deleted, with pods that hang on a lost node.
pub(crate) async fn of_leaving(api: &Api, row: &Row, object: &Value) -> String {
    let (why, name) = (of_ending(object), object["metadata"]["name"].as_str());
    let (namespace, selector) = match row.has_pods {
        true => (object["metadata"]["namespace"].as_str(), selector(object)),
        false => (name.filter(|_| row.kind == "Namespace"), String::new()),
    };
    if namespace.is_none() || (row.has_pods && selector.is_empty()) {
        return why;
    }
    let call = Call { action: "list", verb: "list", row: &POD, namespace, name: None };
    let Ok(pods) = api.list(&call, &selector).await else { return why };
    let leaving = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_string());
    match on_a_lost_node(api, leaving).await {
        Some((pod, lost)) => format!(
            "{why}: pod {pod} stays on {lost}; it is removed when that node runs again, or after `kubectl delete node`"
        ),
        None => why,
    }
}

/// The pod selector of an object; empty if it has none.
pub(crate) fn selector(object: &Value) -> String {
    let labels = object["spec"]["selector"]["matchLabels"].as_object().into_iter().flatten();
    let labels = labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
    labels.collect::<Vec<_>>().join(",")
}

/// Why a pod is not ready.
async fn of_pod(api: &Api, pod: &Value) -> Option<String> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    if let Some(condition) = condition(pod, "PodScheduled").filter(|one| one["status"] == "False") {
        let message = condition["message"].as_str().or(condition["reason"].as_str()).unwrap_or("no node accepts it");
        return Some(format!("pod {name} cannot be scheduled: {message}"));
    }
    let statuses = ["initContainerStatuses", "containerStatuses"].into_iter();
    let statuses: Vec<&Value> = statuses.flat_map(|field| pod["status"][field].as_array()).flatten().collect();
    for status in statuses {
        let container = status["name"].as_str().unwrap_or_default();
        let Some(waiting) = status["state"]["waiting"].as_object() else { continue };
        let reason = waiting.get("reason").and_then(Value::as_str).unwrap_or_default();
        let message = waiting.get("message").and_then(Value::as_str).unwrap_or_default();
        match reason {
            "" => {}
            reason if WAITING_FOR_NOTHING.contains(&reason) => {}
            "CrashLoopBackOff" => return Some(of_crash(api, pod, status).await),
            reason => {
                return Some(format!("container {container} of pod {name}: {reason} {message}").trim().to_owned());
            }
        }
    }
    None
}

/// The first of these pods on an unready node, and what is known about that node.
async fn on_a_lost_node<'a>(api: &Api, pods: impl Iterator<Item = &'a Value>) -> Option<(&'a str, String)> {
    let names = |pod: &'a Value| Some((pod["spec"]["nodeName"].as_str()?, pod["metadata"]["name"].as_str()?));
    let nodes: BTreeMap<&str, &str> = pods.filter_map(names).collect();
    for (name, pod) in nodes.into_iter().take(NODES) {
        let call = Call { action: "read", verb: "get", row: &NODE, namespace: None, name: Some(name) };
        let lost = match api.get(&call).await {
            Ok(Some(node)) => of_node(&node),
            Ok(None) => Some("is gone".to_owned()),
            // Without permission to read nodes, nothing is reported about them.
            Err(_) => None,
        };
        if let Some(lost) = lost {
            return Some((pod, format!("node {name}, which {lost}")));
        }
    }
    None
}

/// Why a node is not ready.
fn of_node(node: &Value) -> Option<String> {
    let ready = condition(node, "Ready")?;
    let since = ready["lastTransitionTime"].as_str().unwrap_or("some time");
    match ready["status"].as_str() {
        Some("True") => None,
        Some("False") => Some(format!("is not ready since {since}: {}", ready["message"].as_str().unwrap_or_default())),
        _ => Some(format!("is unreachable since {since}")),
    }
}

/// A crash loop, with the end of the container's log.
async fn of_crash(api: &Api, pod: &Value, status: &Value) -> String {
    let (namespace, name) = (pod["metadata"]["namespace"].as_str(), pod["metadata"]["name"].as_str());
    let container = status["name"].as_str().unwrap_or_default();
    let last = &status["lastState"]["terminated"];
    let code = last["exitCode"].as_i64().map_or(String::new(), |code| format!(" with status {code}"));
    let last_message = last["message"].as_str().unwrap_or_default();
    let call = Call { action: "read the log of", verb: "get", row: &POD, namespace, name };
    let log = match last_message.trim() {
        "" => api.log(&call, container, LAST_LINES, true).await.unwrap_or_default(),
        last_message => last_message.to_owned(),
    };
    let mut lines: Vec<&str> = log.lines().rev().take(LAST_LINES as usize).collect();
    lines.reverse();
    let log_text =
        if lines.is_empty() { String::new() } else { format!("; end of its log:\n  {}", lines.join("\n  ")) };
    format!("container {container} of pod {} exited{code} and restarts repeatedly{log_text}", name.unwrap_or_default())
}

/// What the deletion of an object waits for.
pub(crate) fn of_ending(object: &Value) -> String {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    let waits: Vec<&str> = conditions
        .filter(|one| one["status"] == "True" && one["type"].as_str().is_some_and(|kind| kind.starts_with("Namespace")))
        .filter_map(|one| one["message"].as_str())
        .collect();
    if !waits.is_empty() {
        return format!("it is being removed: {}", waits.join("; "));
    }
    let finalizers = object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let finalizers: Vec<&str> = finalizers.collect();
    match finalizers[..] {
        [] => "it is being removed".to_owned(),
        ["foregroundDeletion"] => "it is being removed, after its dependents".to_owned(),
        _ => {
            format!("it is being removed and waits for finalizer {} of its controller", finalizers.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unreachable_node_is_distinguished_from_an_unready_one() {
        let node = |status: &str| {
            json!({ "status": { "conditions": [{ "type": "DiskPressure", "status": "False" }, {
                "type": "Ready", "status": status, "message": "no network", "lastTransitionTime": "2026-01-01T00:00:00Z" }] } })
        };
        assert_eq!(of_node(&node("True")), None);
        assert_eq!(of_node(&json!({})), None, "it has just joined");
        assert!(of_node(&node("Unknown")).unwrap().starts_with("is unreachable since 2026-01-01T00:00:00Z"));
        assert_eq!(of_node(&node("False")).unwrap(), "is not ready since 2026-01-01T00:00:00Z: no network");
    }

    #[test]
    fn blocking_finalizer_is_named() {
        assert_eq!(of_ending(&json!({})), "it is being removed");
        let held = json!({ "metadata": { "finalizers": ["example.com/hold"] } });
        assert_eq!(of_ending(&held), "it is being removed and waits for finalizer example.com/hold of its controller");
        let namespace = json!({ "status": { "conditions": [
            { "type": "NamespaceContentRemaining", "status": "True", "message": "Some resources are remaining: x" }] } });
        assert_eq!(of_ending(&namespace), "it is being removed: Some resources are remaining: x");
    }
}
