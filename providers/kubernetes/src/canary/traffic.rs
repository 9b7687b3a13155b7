//! To which pods clients are led while two sets of them are there.
//!
//! Kubernetes gives the pods of each template a label of their own. As long as a rollout goes on, the service asks for that label too, and
//! so does what keeps nodes from being emptied; when it is over, both ask for all pods again, as they were applied. Nothing that is applied
//! says anything of it: between rollouts there is nothing to be found, and nothing to be left behind.

use serde_json::{Value, json};
use textnlp_provider::{Result, Sort};

use super::shares::{Route, second};
use super::watch::is_of;
use super::{HASH, TELLER};
use crate::api::Api;
use crate::error::Call;
use crate::identity;
use crate::table::{self, Row};
use crate::trouble::{self, POD};

/// Where a deployment says which of its sets of pods is the newest.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// Sets of pods, as far as they are asked for here; they are the deployment controller's.
static REPLICA_SETS: Row = table::replica_sets();

/// What selects pods for whom, by the name of the deployment: a service is there, and a budget may be.
const SELECTING: [&str; 2] = ["Service", "PodDisruptionBudget"];

/// The way clients take to the pods of one deployment.
pub(super) struct Traffic<'a> {
    pub(super) api: &'a Api,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    /// What leads a share of them to the new pods, where they are not all led at once.
    pub(super) route: Option<Route<'a>>,
}

impl Traffic<'_> {
    /// Leads clients to the old pods alone, or to all where those are not known; whether what shares clients is still ours. Whoever has made
    /// something else of that finds nothing but old pods behind it.
    pub(super) async fn keep(&self, old: Option<&str>) -> Result<bool> {
        let Some(route) = &self.route else {
            self.lead_to(old).await?;
            return Ok(true);
        };
        // Whatever becomes of the weights, no client is led to new pods any more.
        self.ask(SELECTING[0], self.name, old).await?;
        self.ask(SELECTING[0], &second(self.name), old).await?;
        route.lead(0).await
    }

    /// Leads clients to the new pods: all of them, or their share; whether that could be done.
    pub(super) async fn show(&self, old: &str, new: Option<&str>) -> Result<bool> {
        let (Some(route), Some(_)) = (&self.route, new) else {
            self.lead_to(new).await?;
            return Ok(true);
        };
        self.ask(SELECTING[0], self.name, Some(old)).await?;
        Ok(self.ask(SELECTING[0], &second(self.name), new).await? && route.lead(route.share).await?)
    }

    /// Whether clients are led to the new pods.
    pub(super) async fn shows(&self, new: &str) -> Result<bool> {
        match &self.route {
            Some(route) => Ok(route.now().await? == Some(route.share)),
            None => Ok(self.led_to().await?.as_deref() == Some(new)),
        }
    }

    /// Leads clients to all pods, as it was applied.
    pub(super) async fn lead_to_all(&self) -> Result<()> {
        let Some(route) = &self.route else { return self.lead_to(None).await };
        // What somebody has made of it stays; it leads to the same pods then, whatever its weights.
        route.lead(0).await?;
        self.ask(SELECTING[0], &second(self.name), None).await?;
        self.ask(SELECTING[1], self.name, None).await?;
        // The service is what says how far it is.
        self.ask(SELECTING[0], self.name, None).await.map(drop)
    }

    /// The set that clients are led to; `None` where they are led to all pods.
    pub(super) async fn led_to(&self) -> Result<Option<String>> {
        let service = self.api.get(&self.call("read", "get", SELECTING[0])).await?;
        Ok(service.and_then(|service| labels(&service)[HASH].as_str().map(str::to_owned)))
    }

    /// Leads clients to one set of pods, or to all of them. Done again it changes nothing.
    async fn lead_to(&self, set: Option<&str>) -> Result<()> {
        let mut kinds = SELECTING;
        // The service is what says how far it is.
        if set.is_none() {
            kinds.reverse();
        }
        for kind in kinds {
            self.ask(kind, self.name, set).await?;
        }
        Ok(())
    }

    /// Has an object ask for one set of pods, or for all of them; whether it is there, which the service has to be.
    async fn ask(&self, kind: &str, name: &str, set: Option<&str>) -> Result<bool> {
        let call = Call { name: Some(name), ..self.call("lead clients by", "patch", kind) };
        let Some(object) = self.api.get(&call).await? else {
            return match kind == SELECTING[0] && name == self.name {
                true => Err(call.error(Sort::Unavailable).because("it is gone: nobody is led to any pod")),
                false => Ok(false),
            };
        };
        if !labels(&object).is_object() {
            let why = "it asks for no label of pods: who it leads to is somebody else's";
            return Err(call.error(Sort::Conflict).because(why));
        }
        let Some(selector) = selecting(&object, set) else { return Ok(true) };
        // Whoever changed it since it was read is not overruled unseen.
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
        self.api.force(&call, TELLER, &manifest).await?;
        Ok(true)
    }

    /// Leads clients to all pods when those that they are led to are the only ones, or are to go themselves; whether it is so.
    pub(super) async fn settle(&self, deployment: &Value) -> Result<bool> {
        let Some(set) = self.led_to().await? else { return Ok(true) };
        if !is_seen(deployment) {
            return Ok(false);
        }
        let newest = newest(self.api, self.namespace, deployment).await?;
        // Just after a template is back, the revision is still that of the one that goes.
        let newest = newest.filter(|newest| is_of(&newest["spec"]["template"], &deployment["spec"]["template"]));
        let is_to_go = newest.is_some_and(|newest| newest["metadata"]["labels"][HASH] != set.as_str());
        let call = Call { action: "list", verb: "list", row: &POD, namespace: Some(self.namespace), name: None };
        let pods = self.api.list(&call, &trouble::selector(deployment)).await?;
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

/// The set of pods that a deployment is becoming; `None` as long as its controller has not looked at it.
pub(super) async fn newest(api: &Api, namespace: &str, deployment: &Value) -> Result<Option<Value>> {
    if !is_seen(deployment) {
        return Ok(None);
    }
    let call = Call { action: "list", verb: "list", row: &REPLICA_SETS, namespace: Some(namespace), name: None };
    let sets = api.list(&call, &trouble::selector(deployment)).await?;
    let revision = &deployment["metadata"]["annotations"][REVISION];
    Ok(sets.into_iter().find(|set| {
        let mut owners = set["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        owners.any(|owner| owner["uid"] == identity::uid(deployment))
            && set["metadata"]["annotations"][REVISION] == *revision
    }))
}

/// Whether the controller of a deployment has looked at what was applied last.
fn is_seen(deployment: &Value) -> bool {
    deployment["status"]["observedGeneration"].as_u64() >= deployment["metadata"]["generation"].as_u64()
}

fn row(kind: &str) -> &'static Row {
    table::named(if kind == SELECTING[0] { "kubernetes.service" } else { "kubernetes.pod-disruption-budget" })
}

/// The labels that an object asks of pods: a service names them itself, others within a selector.
fn labels(object: &Value) -> &Value {
    let selector = &object["spec"]["selector"];
    selector.get("matchLabels").filter(|labels| labels.is_object()).unwrap_or(selector)
}

/// The selector by which an object asks for one set of pods, or for all; `None` where it does so already.
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
    fn a_set_is_asked_for_beside_what_is_asked_for_anyway() {
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
