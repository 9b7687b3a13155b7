//! Traffic weights of a canary, set on a Gateway API route.
//!
//! The route has two services; during a rollout the second one selects the new pods. Only the route's own field manager
//! writes it, always as a whole and only while it is as that manager applied it. A change by another manager is left
//! alone.

use serde_json::{Value, json};
use textnlp_provider::{ErrorKind, Object, Result, Spec};

use super::HOLD_ANNOTATION;
use crate::api::Api;
use crate::error::Call;
use crate::identity;
use crate::table;

/// All clients, in percent.
const ALL: u32 = 100;
/// The attempts per change: controllers write the route's status and may come between a read and a write.
const MAX_ATTEMPTS: u32 = 5;

/// The route with the two services.
pub(super) struct Route<'a> {
    pub(super) api: &'a Api,
    /// The complete manifest, as applied.
    pub(super) applied: &'a Value,
    /// Its field manager.
    pub(super) manager: &'a str,
    /// The id of the rollout that holds it.
    pub(super) id: &'a str,
    /// The traffic weight of the new pods, in percent.
    pub(super) share: u32,
}

/// The name of the second service.
pub(super) fn second(name: &str) -> String {
    format!("{name}-new")
}

impl Route<'_> {
    /// The current weight of the second service; `None` if another manager changed the route.
    pub(super) async fn now(&self) -> Result<Option<u32>> {
        let found = self.api.get(&self.call("read", "get")).await?;
        Ok(found.and_then(|found| self.share_of(&found)))
    }

    /// Sets the weight of the second service; returns false if another manager changed the route. Idempotent.
    pub(super) async fn lead(&self, share: u32) -> Result<bool> {
        let call = self.call("route clients with", "patch");
        for _ in 0..MAX_ATTEMPTS {
            let Some(found) = self.api.get(&call).await? else { return Ok(false) };
            match self.share_of(&found) {
                None => return Ok(false),
                Some(now) if now == share && (share > 0 || holder_of_route(&found).is_none()) => return Ok(true),
                Some(_) => {}
            }
            let mut manifest = self.with(share);
            manifest["metadata"]["uid"] = json!(identity::uid(&found));
            // The version makes a concurrent change a conflict.
            manifest["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"].clone();
            match self.api.apply(&call, self.manager, &manifest, false).await {
                Ok(_) => return Ok(true),
                Err(error) if error.kind == ErrorKind::Conflict => {}
                // Another manager owns the same values now, or the permission was withdrawn.
                Err(error) if error.kind == ErrorKind::Denied => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Err(call.error(ErrorKind::Unavailable).because("other clients change it continuously"))
    }

    /// A dry run of the weight: it fails on a field of another manager or on a refusal.
    pub(super) async fn could_lead(&self) -> Result<()> {
        let call = self.call("route clients with", "patch");
        self.api.apply(&call, self.manager, &self.with(self.share), true).await.map(drop)
    }

    /// The complete manifest with this weight.
    fn with(&self, share: u32) -> Value {
        let mut manifest = self.applied.clone();
        if share > 0 {
            manifest["metadata"]["annotations"][HOLD_ANNOTATION] = json!(self.id);
            weigh(&mut manifest, [ALL.saturating_sub(share), share]);
        }
        manifest
    }

    fn share_of(&self, found: &Value) -> Option<u32> {
        let [_, new] = weights(found)?;
        let known = [[ALL, 0], [ALL.saturating_sub(self.share), self.share]];
        let mut plain = found.clone();
        weigh(&mut plain, [ALL, 0]);
        (known.contains(&weights(found)?) && plain["spec"] == self.applied["spec"]).then_some(new)
    }

    fn call(&self, action: &'static str, verb: &'static str) -> Call<'_> {
        let of = |field: &str| self.applied["metadata"][field].as_str();
        Call { action, verb, row: table::named("kubernetes.http-route"), namespace: of("namespace"), name: of("name") }
    }
}

/// The route of this name as its manager applied it, with all clients on the first service, and the live object. `None`
/// if there is none, or not one with two services.
pub(super) async fn applied(
    api: &Api,
    (namespace, name): (&str, &str),
    manager: &str,
) -> Result<Option<(Value, Value)>> {
    let row = table::named("kubernetes.http-route");
    let call = Call { action: "read", verb: "get", row, namespace: Some(namespace), name: Some(name) };
    let Some(found) = api.get(&call).await? else { return Ok(None) };
    Ok(as_applied(&found, manager).map(|manifest| (manifest, found)))
}

fn as_applied(found: &Value, manager: &str) -> Option<Value> {
    let of = &found["metadata"];
    let mut entries = of["managedFields"].as_array()?.iter();
    let ours = entries.find(|one| one["manager"] == manager && one["operation"] == "Apply")?;
    let owned = &ours["fieldsV1"]["f:metadata"];
    let mut metadata = json!({ "name": of["name"], "namespace": of["namespace"], "annotations": {} });
    for texts in ["labels", "annotations"] {
        for (name, _) in owned[format!("f:{texts}")].as_object().into_iter().flatten() {
            if let Some(name) = name.strip_prefix("f:").filter(|name| *name != HOLD_ANNOTATION) {
                metadata[texts][name] = of[texts][name].clone();
            }
        }
    }
    let mut manifest = json!({
        "apiVersion": found["apiVersion"], "kind": found["kind"], "metadata": metadata, "spec": found["spec"],
    });
    weights(&manifest)?;
    weigh(&mut manifest, [ALL, 0]);
    Some(manifest)
}

/// The weights of the two services.
pub(super) fn weights(route: &Value) -> Option<[u32; 2]> {
    let backends = route.pointer("/spec/rules/0/backendRefs")?.as_array()?;
    let [old, new] = &backends[..] else { return None };
    let is_second = new["name"].as_str()? == second(old["name"].as_str()?);
    let weight = |backend: &Value| backend["weight"].as_u64()?.try_into().ok();
    is_second.then_some([weight(old)?, weight(new)?])
}

fn weigh(route: &mut Value, weights: [u32; 2]) {
    let backends = route.pointer_mut("/spec/rules/0/backendRefs").and_then(Value::as_array_mut);
    for (backend, weight) in backends.into_iter().flatten().zip(weights) {
        backend["weight"] = json!(weight);
    }
}

/// The id of the rollout that holds the route.
pub(super) fn holder_of_route(route: &Value) -> Option<&str> {
    route["metadata"]["annotations"][HOLD_ANNOTATION].as_str()
}

/// A live route without the temporary changes of a rollout: no plan has to revert them.
pub(crate) fn without_shares(seen: &Object) -> Option<Spec> {
    let spec = seen.spec.as_value();
    holder_of_route(spec)?;
    weights(spec)?;
    // A change by another manager is for the plan to report.
    spec.pointer("/fields/ours/f:spec/f:rules")?;
    let mut plain = spec.clone();
    weigh(&mut plain, [ALL, 0]);
    plain["metadata"]["annotations"].as_object_mut()?.shift_remove(HOLD_ANNOTATION);
    if let Some(owned) = plain.pointer_mut("/fields/ours/f:metadata/f:annotations").and_then(Value::as_object_mut) {
        owned.shift_remove(&format!("f:{HOLD_ANNOTATION}"));
    }
    Some(Spec::of(&plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(weights: [u32; 2]) -> Value {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {
                "name": "web", "namespace": "here",
                "labels": { "app": "web", "theirs": "x" },
                "annotations": { "textnlp-rollout": "1", "textnlp-resource": "a" },
                "managedFields": [{ "manager": "m", "operation": "Apply", "fieldsV1": { "f:metadata": {
                    "f:labels": { "f:app": {} }, "f:annotations": { "f:textnlp-rollout": {}, "f:textnlp-resource": {} },
                }, "f:spec": { "f:rules": {} } } }],
            },
            "spec": { "rules": [{ "backendRefs": [
                { "name": "web", "weight": weights[0] }, { "name": "web-new", "weight": weights[1] },
            ] }] },
        })
    }

    #[test]
    fn applied_route_is_reconstructed_with_all_weight_on_the_first_service() {
        let applied = as_applied(&route([90, 10]), "m").expect("it is of two services");
        assert_eq!(applied["metadata"]["labels"], json!({ "app": "web" }));
        assert_eq!(applied["metadata"]["annotations"], json!({ "textnlp-resource": "a" }));
        assert_eq!(weights(&applied), Some([100, 0]));
        assert_eq!(as_applied(&route([90, 10]), "somebody"), None);
        let mut one = route([90, 10]);
        one["spec"]["rules"][0]["backendRefs"].as_array_mut().expect("a list").pop();
        assert_eq!(as_applied(&one, "m"), None);
    }

    #[test]
    fn traffic_weight_is_accepted_only_on_our_own_route() {
        let applied = as_applied(&route([100, 0]), "m").expect("it is of two services");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("start a runtime");
        let _within = runtime.enter();
        let client = kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().expect("an address")));
        let api = Api::new(client.expect("make a client"), None);
        let shared = Route { api: &api, applied: &applied, manager: "m", id: "1", share: 10 };
        assert_eq!(shared.share_of(&route([100, 0])), Some(0));
        assert_eq!(shared.share_of(&route([90, 10])), Some(10));
        assert_eq!(shared.share_of(&route([50, 50])), None);
        let mut other = route([90, 10]);
        other["spec"]["hostnames"] = json!(["other"]);
        assert_eq!(shared.share_of(&other), None);
    }
}
