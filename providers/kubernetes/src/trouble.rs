//! Why something does not do its work, in the words that a person needs: of its pods, of what keeps it from going.

use serde_json::Value;

use crate::api::Api;
use crate::error::Call;
use crate::table::Row;

/// How many lines of a crashed container are told.
const LAST_LINES: u32 = 5;
/// How many pods are looked at: the others have the same trouble.
const PODS: usize = 20;

/// Pods as far as they are asked for here; they are nobody's to apply.
pub(crate) static POD: Row = crate::table::pods();
/// Containers that wait for these are on their way.
const WAITING_FOR_NOTHING: [&str; 2] = ["ContainerCreating", "PodInitializing"];

/// `why`, with what the object's pods say of it.
pub(crate) async fn of_pods(api: &Api, row: &Row, object: &Value, why: String) -> String {
    if !row.has_pods {
        return why;
    }
    let namespace = object["metadata"]["namespace"].as_str();
    let selector = selector(object);
    if selector.is_empty() {
        return why;
    }
    let call = Call { action: "list", verb: "list", row: &POD, namespace, name: None };
    // What cannot be looked at makes no wait fail.
    let Ok(pods) = api.list(&call, &selector).await else { return why };
    let staying = pods.into_iter().filter(|pod| !pod["metadata"]["deletionTimestamp"].is_string());
    for pod in &staying.take(PODS).collect::<Vec<_>>() {
        if let Some(says) = of_pod(api, pod).await {
            return format!("{why}: {says}");
        }
    }
    why
}

/// The labels by which an object finds its pods; empty where it has none.
pub(crate) fn selector(object: &Value) -> String {
    let labels = object["spec"]["selector"]["matchLabels"].as_object().into_iter().flatten();
    let labels = labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
    labels.collect::<Vec<_>>().join(",")
}

/// What keeps a pod from being ready.
async fn of_pod(api: &Api, pod: &Value) -> Option<String> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let mut unscheduled = conditions.filter(|one| one["type"] == "PodScheduled" && one["status"] == "False");
    if let Some(condition) = unscheduled.next() {
        let message = condition["message"].as_str().or(condition["reason"].as_str()).unwrap_or("no node takes it");
        return Some(format!("pod {name} finds no node: {message}"));
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

/// A container that ends again and again, with the last that it said.
async fn of_crash(api: &Api, pod: &Value, status: &Value) -> String {
    let (namespace, name) = (pod["metadata"]["namespace"].as_str(), pod["metadata"]["name"].as_str());
    let container = status["name"].as_str().unwrap_or_default();
    let last = &status["lastState"]["terminated"];
    let code = last["exitCode"].as_i64().map_or(String::new(), |code| format!(" with status {code}"));
    let told = last["message"].as_str().unwrap_or_default();
    let call = Call { action: "read the log of", verb: "get", row: &POD, namespace, name };
    let log = match told.trim() {
        "" => api.log(&call, container, LAST_LINES, true).await.unwrap_or_default(),
        told => told.to_owned(),
    };
    let mut lines: Vec<&str> = log.lines().rev().take(LAST_LINES as usize).collect();
    lines.reverse();
    let said = if lines.is_empty() { String::new() } else { format!(", and said last:\n  {}", lines.join("\n  ")) };
    format!(
        "container {container} of pod {} ended{code} and is restarted again and again{said}",
        name.unwrap_or_default()
    )
}

/// What an object that is to go still waits for.
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
        ["foregroundDeletion"] => "it is being removed, after what it made".to_owned(),
        _ => {
            format!("it is being removed and waits for {}, which its controller must take away", finalizers.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_keeps_an_object_is_named() {
        assert_eq!(of_ending(&json!({})), "it is being removed");
        let held = json!({ "metadata": { "finalizers": ["example.com/hold"] } });
        assert_eq!(
            of_ending(&held),
            "it is being removed and waits for example.com/hold, which its controller must take away"
        );
        let namespace = json!({ "status": { "conditions": [
            { "type": "NamespaceContentRemaining", "status": "True", "message": "Some resources are remaining: x" }] } });
        assert_eq!(of_ending(&namespace), "it is being removed: Some resources are remaining: x");
    }
}
