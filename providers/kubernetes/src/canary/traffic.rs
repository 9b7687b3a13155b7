//! Routing of clients while a deployment has two sets of pods.
//!
//! Kubernetes labels the pods of each template. During a rollout the service selects that label too, and so does the
//! pod disruption budget. Afterwards both select all pods again, as they were applied. No applied manifest contains the
//! label, so nothing remains between rollouts.

use serde_json::{Value, json};
use textnlp_provider::{ErrorKind, Result};

use super::monitor::is_of;
use super::shares::{Route, second};
use super::{HASH, JOB_FIELD_MANAGER};
use crate::api::Api;
use crate::diagnosis::{self, POD};
use crate::error::Call;
use crate::identity;
use crate::table::{self, Row};

/// The annotation with the revision of a deployment or replica set; the highest one is the newest.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// Replica sets, read only; the deployment controller owns them.
static REPLICA_SETS: Row = table::replica_sets();

/// The kinds with a pod selector, by the name of the deployment. The service always exists, the budget may not.
const SELECTING: [&str; 2] = ["Service", "PodDisruptionBudget"];

/// The routing of clients to the pods of one deployment.
pub(super) struct Traffic<'a> {
    pub(super) api: &'a Api,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    /// The route with the traffic weights, where clients are split.
    pub(super) route: Option<Route<'a>>,
}

impl Traffic<'_> {
    /// Routes clients to the old pods alone, or to all pods if the old ones are not known. Returns false if another
    /// manager changed the route; both of its services select old pods even then.
    pub(super) async fn keep(&self, old: Option<&str>) -> Result<bool> {
        let Some(route) = &self.route else {
            self.lead_to(old).await?;
            return Ok(true);
        };
        // With both services on the old pods, no client reaches new ones, whatever the weights.
        self.ask(SELECTING[0], self.name, old).await?;
        self.ask(SELECTING[0], &second(self.name), old).await?;
        route.lead(0).await
    }

    /// Routes all clients, or their share, to the new pods; returns whether that was possible.
    pub(super) async fn show(&self, old: &str, new: Option<&str>) -> Result<bool> {
        let (Some(route), Some(_)) = (&self.route, new) else {
            self.lead_to(new).await?;
            return Ok(true);
        };
        self.ask(SELECTING[0], self.name, Some(old)).await?;
        Ok(self.ask(SELECTING[0], &second(self.name), new).await? && route.lead(route.share).await?)
    }

    /// Whether clients are routed to the new pods.
    pub(super) async fn shows(&self, new: &str) -> Result<bool> {
        match &self.route {
            Some(route) => Ok(route.now().await? == Some(route.share)),
            None => Ok(self.led_to().await?.as_deref() == Some(new)),
        }
    }

    /// Routes clients to all pods, as applied.
    pub(super) async fn lead_to_all(&self) -> Result<()> {
        let Some(route) = &self.route else { return self.lead_to(None).await };
        // A change by another manager is left alone; both services select the same pods then.
        route.lead(0).await?;
        self.ask(SELECTING[0], &second(self.name), None).await?;
        self.ask(SELECTING[1], self.name, None).await?;
        // The service comes last: it records the progress.
        self.ask(SELECTING[0], self.name, None).await.map(drop)
    }

    /// The set of pods that clients are routed to; `None` if all pods are selected.
    pub(super) async fn led_to(&self) -> Result<Option<String>> {
        let service = self.api.get(&self.call("read", "get", SELECTING[0])).await?;
        Ok(service.and_then(|service| labels(&service)[HASH].as_str().map(str::to_owned)))
    }

    /// Routes clients to one set of pods, or to all of them. Idempotent.
    async fn lead_to(&self, set: Option<&str>) -> Result<()> {
        let mut kinds = SELECTING;
        // The service comes last: it records the progress.
        if set.is_none() {
            kinds.reverse();
        }
        for kind in kinds {
            self.ask(kind, self.name, set).await?;
        }
        Ok(())
    }

    /// Sets the selector of an object to one set of pods, or to all; returns whether the object exists. The service
    /// must exist.
    async fn ask(&self, kind: &str, name: &str, set: Option<&str>) -> Result<bool> {
        let call = Call { name: Some(name), ..self.call("route clients with", "patch", kind) };
        let Some(object) = self.api.get(&call).await? else {
            return match kind == SELECTING[0] && name == self.name {
                true => Err(call.error(ErrorKind::Unavailable).because("it is gone: no traffic is routed to any pod")),
                false => Ok(false),
            };
        };
        if !labels(&object).is_object() {
            let why = "it has no pod selector: its endpoints are managed externally";
            return Err(call.error(ErrorKind::Conflict).because(why));
        }
        let Some(selector) = selecting(&object, set) else { return Ok(true) };
        // The version makes a concurrent change a conflict.
        let manifest = json!({
            "apiVersion": call.row.api_version(),
            "kind": kind,
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "uid": identity::uid(&object),
                "resourceVersion": object["metadata"]["resourceVersion"],
            },
            "spec": { "selector": selector },
        });
        self.api.force(&call, JOB_FIELD_MANAGER, &manifest).await?;
        Ok(true)
    }

    /// Routes clients to all pods if the selected set is the only one or is being removed; returns whether that is so.
    pub(super) async fn settle(&self, deployment: &Value) -> Result<bool> {
        let Some(set) = self.led_to().await? else { return Ok(true) };
        if !is_seen(deployment) {
            return Ok(false);
        }
        let newest = newest(self.api, self.namespace, deployment).await?;
        // Just after a rollback the highest revision is still that of the removed template.
        let newest = newest.filter(|newest| is_of(&newest["spec"]["template"], &deployment["spec"]["template"]));
        let is_to_go = newest.is_some_and(|newest| newest["metadata"]["labels"][HASH] != set.as_str());
        let call = Call { action: "list", verb: "list", row: &POD, namespace: Some(self.namespace), name: None };
        let pods = self.api.list(&call, &diagnosis::selector(deployment)).await?;
        let mut staying = pods.iter().filter(|pod| !pod["metadata"]["deletionTimestamp"].is_string());
        let is_over = is_to_go || staying.all(|pod| pod["metadata"]["labels"][HASH] == set.as_str());
        if is_over {
            self.lead_to_all().await?;
        }
        Ok(is_over)
    }

    fn call(&self, action: &'static str, verb: &'static str, kind: &str) -> Call<'_> {
        Call { action, verb, row: row(kind), namespace: Some(self.namespace), name: Some(self.name) }
    }
}

/// The newest replica set of a deployment; `None` until its controller has observed the spec.
pub(super) async fn newest(api: &Api, namespace: &str, deployment: &Value) -> Result<Option<Value>> {
    if !is_seen(deployment) {
        return Ok(None);
    }
    let call = Call { action: "list", verb: "list", row: &REPLICA_SETS, namespace: Some(namespace), name: None };
    let sets = api.list(&call, &diagnosis::selector(deployment)).await?;
    let revision = &deployment["metadata"]["annotations"][REVISION];
    Ok(sets.into_iter().find(|set| {
        let mut owners = set["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        owners.any(|owner| owner["uid"] == identity::uid(deployment))
            && set["metadata"]["annotations"][REVISION] == *revision
    }))
}

/// Whether the controller has observed the last spec of a deployment.
fn is_seen(deployment: &Value) -> bool {
    deployment["status"]["observedGeneration"].as_u64() >= deployment["metadata"]["generation"].as_u64()
}

fn row(kind: &str) -> &'static Row {
    table::named(if kind == SELECTING[0] { "kubernetes.service" } else { "kubernetes.pod-disruption-budget" })
}

/// The pod selector of an object: a service has it directly, other kinds under `matchLabels`.
fn labels(object: &Value) -> &Value {
    let selector = &object["spec"]["selector"];
    selector.get("matchLabels").filter(|labels| labels.is_object()).unwrap_or(selector)
}

/// The selector for one set of pods, or for all; `None` if the object has it already.
fn selecting(object: &Value, set: Option<&str>) -> Option<Value> {
    let before = &object["spec"]["selector"];
    let mut selector = before.clone();
    let labels = match selector.get("matchLabels").is_some_and(Value::is_object) {
        true => selector.get_mut("matchLabels")?.as_object_mut()?,
        false => selector.as_object_mut()?,
    };
    match set {
        Some(set) => drop(labels.insert(HASH.to_owned(), json!(set))),
        None => drop(labels.shift_remove(HASH)),
    }
    (selector != *before).then_some(selector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_template_hash_is_added_to_the_existing_selector() {
        let service = |selector: Value| json!({ "spec": { "selector": selector } });
        let (all, old) = (json!({ "app": "a" }), json!({ "app": "a", "pod-template-hash": "1" }));
        let new = json!({ "app": "a", "pod-template-hash": "2" });
        assert_eq!(selecting(&service(all.clone()), Some("1")), Some(old.clone()));
        assert_eq!(selecting(&service(old.clone()), Some("2")), Some(new.clone()));
        assert_eq!(selecting(&service(new.clone()), None), Some(all.clone()));
        for (selector, set) in [(&all, None), (&new, Some("2"))] {
            assert_eq!(selecting(&service(selector.clone()), set), None, "it is so already");
        }
        assert_eq!(labels(&service(old))[HASH], "1");
        let budget = service(json!({ "matchLabels": all }));
        assert_eq!(selecting(&budget, Some("2")), Some(json!({ "matchLabels": new })));
        assert_eq!(selecting(&service(Value::Null), Some("2")), None, "what asks for no labels leads nowhere");
    }
}
