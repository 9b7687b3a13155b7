//! Readiness of objects, from their status. Pure.

use serde_json::Value;

/// The readiness of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ready {
    /// Ready.
    Yes,
    /// Not ready yet, for this reason.
    NotYet(String),
    /// Failed: it cannot become ready without a change, for this reason.
    Never(String),
}

/// Kinds without a readiness status.
pub(crate) fn at_once(_: &Value) -> Ready {
    Ready::Yes
}

pub(crate) fn namespace(object: &Value) -> Ready {
    match object["status"]["phase"].as_str() {
        Some("Active") => Ready::Yes,
        phase => Ready::NotYet(format!("its phase is {}", phase.unwrap_or("not known yet"))),
    }
}

/// A volume claim is ready when it is bound, or while it waits for its first consumer, as many storage classes require.
pub(crate) fn volume_claim(object: &Value) -> Ready {
    match object["status"]["phase"].as_str() {
        Some("Bound" | "Pending") => Ready::Yes,
        Some("Lost") => Ready::Never("the volume behind it is lost".to_owned()),
        _ => Ready::NotYet("its volume is being bound".to_owned()),
    }
}

/// A load balancer is ready when the cloud has assigned its address.
pub(crate) fn service(object: &Value) -> Ready {
    let balanced = object["spec"]["type"] == "LoadBalancer";
    let has_address = object["status"]["loadBalancer"]["ingress"].as_array().is_some_and(|all| !all.is_empty());
    if balanced && !has_address {
        return Ready::NotYet("its load balancer has no address yet".to_owned());
    }
    Ready::Yes
}

pub(crate) fn deployment(object: &Value) -> Ready {
    if let Some(why) = not_seen_yet(object) {
        return why;
    }
    let status = &object["status"];
    if let Some(condition) = condition(object, "Progressing")
        && condition["reason"] == "ProgressDeadlineExceeded"
    {
        return Ready::Never(format!(
            "no progress within {} s",
            count(&object["spec"]["progressDeadlineSeconds"], 600)
        ));
    }
    let wanted = count(&object["spec"]["replicas"], 1);
    let (updated, available) = (count(&status["updatedReplicas"], 0), count(&status["availableReplicas"], 0));
    let all = count(&status["replicas"], 0);
    if updated < wanted {
        return Ready::NotYet(failing(object, format!("{updated} of {wanted} pods are updated")));
    }
    if all > updated {
        return Ready::NotYet(format!("{} old pods still exist", all - updated));
    }
    if available < wanted {
        return Ready::NotYet(failing(object, format!("{available} of {wanted} pods are available")));
    }
    Ready::Yes
}

pub(crate) fn stateful_set(object: &Value) -> Ready {
    if let Some(why) = not_seen_yet(object) {
        return why;
    }
    let status = &object["status"];
    let wanted = count(&object["spec"]["replicas"], 1);
    let (updated, ready) = (count(&status["updatedReplicas"], 0), count(&status["readyReplicas"], 0));
    // A partition excludes the pods below it from the update.
    let partition = count(&object["spec"]["updateStrategy"]["rollingUpdate"]["partition"], 0);
    if ready < wanted {
        return Ready::NotYet(format!("{ready} of {wanted} pods are ready"));
    }
    let revised = status["updateRevision"] == status["currentRevision"];
    let by_hand = object["spec"]["updateStrategy"]["type"] == "OnDelete";
    if !revised && !by_hand && updated < wanted.saturating_sub(partition) {
        return Ready::NotYet(format!("{updated} of {} pods are updated", wanted.saturating_sub(partition)));
    }
    Ready::Yes
}

pub(crate) fn daemon_set(object: &Value) -> Ready {
    if let Some(why) = not_seen_yet(object) {
        return why;
    }
    let status = &object["status"];
    let wanted = count(&status["desiredNumberScheduled"], 0);
    let by_hand = object["spec"]["updateStrategy"]["type"] == "OnDelete";
    let updated = count(&status["updatedNumberScheduled"], 0);
    if updated < wanted && !by_hand {
        return Ready::NotYet(format!("{updated} of {wanted} pods are updated"));
    }
    let available = count(&status["numberAvailable"], 0);
    if available < wanted {
        return Ready::NotYet(format!("{available} of {wanted} pods are available"));
    }
    Ready::Yes
}

/// A job is ready when it is complete. A suspended job counts as ready too, since only an operator resumes it.
pub(crate) fn job(object: &Value) -> Ready {
    if let Some(failed) = held(object, "Failed") {
        let why = failed["message"].as_str().or(failed["reason"].as_str()).unwrap_or("no error output");
        return Ready::Never(why.to_owned());
    }
    if held(object, "Complete").is_some() || object["spec"]["suspend"] == true {
        return Ready::Yes;
    }
    let (done, failed) = (count(&object["status"]["succeeded"], 0), count(&object["status"]["failed"], 0));
    let wanted = count(&object["spec"]["completions"], 1);
    let tries = if failed > 0 { format!(", {failed} attempts failed") } else { String::new() };
    Ready::NotYet(format!("{done} of {wanted} runs are done{tries}"))
}

/// A definition is ready when its names are accepted and it is established.
pub(crate) fn definition(object: &Value) -> Ready {
    let conditions = || object["status"]["conditions"].as_array().into_iter().flatten();
    if let Some(refused) = conditions().find(|one| one["type"] == "NamesAccepted" && one["status"] == "False") {
        return Ready::Never(condition_message(refused, "its names conflict with another definition"));
    }
    match conditions().any(|one| one["type"] == "Established" && one["status"] == "True") {
        true => Ready::Yes,
        false => Ready::NotYet("the API server does not serve it yet".to_owned()),
    }
}

/// A custom resource whose controller reports the condition `Ready`.
pub(crate) fn of_custom_resource(object: &Value) -> Ready {
    by_condition(object, &object["status"]["conditions"], "Ready")
}

/// An API service is ready when the API server reaches its backend.
pub(crate) fn api_service(object: &Value) -> Ready {
    by_condition(object, &object["status"]["conditions"], "Available")
}

pub(crate) fn gateway(object: &Value) -> Ready {
    by_condition(object, &object["status"]["conditions"], "Programmed")
}

/// A route is ready when each Gateway in its spec accepts it. Statuses of Gateways that it named before are ignored.
pub(crate) fn http_route(object: &Value) -> Ready {
    let list = |path: &str| object.pointer(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let (named, statuses) = (list("/spec/parentRefs"), list("/status/parents"));
    let mut taken_by = 0;
    for parent in named {
        let of_it = statuses.iter().filter(|one| is_about(&one["parentRef"], parent));
        let mut states: Vec<Ready> = of_it.map(|one| taken(object, one)).collect();
        // Several controllers may report; the one of the Gateway decides.
        if states.contains(&Ready::Yes) {
            taken_by += 1;
        } else if !states.is_empty() {
            return states.swap_remove(0);
        }
    }
    match taken_by < named.len() {
        true => Ready::NotYet(format!("{taken_by} of {} gateways have accepted it", named.len())),
        false => Ready::Yes,
    }
}

/// A policy exists before any route uses its service, and has no status until then.
pub(crate) fn backend_tls(object: &Value) -> Ready {
    let gateways = object["status"]["ancestors"].as_array().into_iter().flatten();
    let mut states = gateways.map(|gateway| taken(object, gateway));
    states.find(|ready| *ready != Ready::Yes).unwrap_or(Ready::Yes)
}

/// Whether the Gateway of a route enforces the policy for it. Until then it would talk to pods without TLS.
pub(crate) fn in_force(policy: &Value) -> Ready {
    match policy["status"]["ancestors"].as_array().map(Vec::as_slice) {
        None | Some([]) => {
            let why = "no gateway has processed its BackendTLSPolicy: check that the controller supports this kind of Gateway API 1.4";
            Ready::NotYet(why.to_owned())
        }
        Some(_) => backend_tls(policy),
    }
}

/// Whether CloudNativePG has read the Secret of the database's owner as it is now: it reports the version that it has read
/// (`SecretsResourceVersion` in <https://cloudnative-pg.io/documentation/current/cloudnative-pg.v1/>). Its primary then sets
/// the password of the role, which it does not report.
pub(crate) fn has_read(cluster: &Value, secret: &Value) -> Ready {
    let (read, version) = (
        &cluster["status"]["secretsResourceVersion"]["applicationSecretVersion"],
        &secret["metadata"]["resourceVersion"],
    );
    match read.is_null() || read == version {
        true => Ready::Yes,
        false => Ready::NotYet("CloudNativePG has not read the password of the owner yet".to_owned()),
    }
}

fn is_about(statuses: &Value, parent: &Value) -> bool {
    ["namespace", "name", "sectionName"].iter().all(|field| parent[field].is_null() || statuses[field] == parent[field])
}

/// Whether a Gateway accepts an object and resolves its references.
fn taken(object: &Value, gateway: &Value) -> Ready {
    let conditions = &gateway["conditions"];
    let resolved = conditions.as_array().into_iter().flatten().any(|one| one["type"] == "ResolvedRefs");
    match by_condition(object, conditions, "Accepted") {
        // `ResolvedRefs` is not reported by every controller for every kind.
        Ready::Yes if resolved => by_condition(object, conditions, "ResolvedRefs"),
        other => other,
    }
}

pub(crate) fn openshift_route(object: &Value) -> Ready {
    match object["status"]["ingress"][0].get("conditions") {
        Some(conditions) => by_condition(object, conditions, "Admitted"),
        None => Ready::NotYet("no router has processed it yet".to_owned()),
    }
}

/// The readiness by a condition, which must be of the current generation.
fn by_condition(object: &Value, conditions: &Value, name: &str) -> Ready {
    let Some(condition) = conditions.as_array().into_iter().flatten().find(|one| one["type"] == name) else {
        return Ready::NotYet("no controller of the cluster has processed it yet".to_owned());
    };
    let generation = count(&object["metadata"]["generation"], 0);
    if count(&condition["observedGeneration"], generation) < generation {
        return Ready::NotYet("its controller has not processed the change yet".to_owned());
    }
    match condition["status"] == "True" {
        true => Ready::Yes,
        false => Ready::NotYet(condition_message(condition, &format!("it is not {}", name.to_lowercase()))),
    }
}

/// The message of a condition, else its reason.
fn condition_message(condition: &Value, otherwise: &str) -> String {
    let texts = [&condition["message"], &condition["reason"]].into_iter().filter_map(Value::as_str);
    texts.into_iter().find(|texts| !texts.is_empty()).unwrap_or(otherwise).to_owned()
}

/// The controller has not observed the current spec.
fn not_seen_yet(object: &Value) -> Option<Ready> {
    let (generation, seen) =
        (count(&object["metadata"]["generation"], 0), count(&object["status"]["observedGeneration"], 0));
    (seen < generation).then(|| Ready::NotYet("the controllers of the cluster have not processed it yet".to_owned()))
}

/// Why pods cannot be created, such as a quota: only this condition reports it.
pub(crate) fn failing(object: &Value, otherwise: String) -> String {
    match held(object, "ReplicaFailure").and_then(|condition| condition["message"].as_str()) {
        Some(message) => format!("{otherwise}: {message}"),
        None => otherwise,
    }
}

/// The condition of this type, whatever its status.
pub(crate) fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|one| one["type"] == name)
}

/// The condition of this type, if it is true.
fn held<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    condition(object, name).filter(|one| one["status"] == "True")
}

/// Whether a pod is ready.
pub(crate) fn pod(pod: &Value) -> bool {
    held(pod, "Ready").is_some()
}

fn count(value: &Value, otherwise: u64) -> u64 {
    value.as_u64().unwrap_or(otherwise)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(look: fn(&Value) -> Ready, object: Value, expect: Ready) {
        assert_eq!(look(&object), expect, "{object}");
    }

    #[test]
    fn unready_deployment_reports_its_reason() {
        let not_yet = |why: &str| Ready::NotYet(why.to_owned());
        let status = |generation: u64, status: Value| json!({ "metadata": { "generation": generation }, "spec": { "replicas": 3 }, "status": status });
        check(
            deployment,
            status(2, json!({ "observedGeneration": 1 })),
            not_yet("the controllers of the cluster have not processed it yet"),
        );
        let seen = json!({ "observedGeneration": 2, "updatedReplicas": 1, "replicas": 4, "availableReplicas": 3 });
        check(deployment, status(2, seen), not_yet("1 of 3 pods are updated"));
        let old = json!({ "observedGeneration": 2, "updatedReplicas": 3, "replicas": 4, "availableReplicas": 3 });
        check(deployment, status(2, old), not_yet("1 old pods still exist"));
        let quota = json!({ "observedGeneration": 2, "conditions": [
            { "type": "ReplicaFailure", "status": "True", "message": "exceeded quota: q" }] });
        check(deployment, status(2, quota), not_yet("0 of 3 pods are updated: exceeded quota: q"));
        let done = json!({ "observedGeneration": 2, "updatedReplicas": 3, "replicas": 3, "availableReplicas": 3 });
        check(deployment, status(2, done), Ready::Yes);
        let late = json!({ "observedGeneration": 2, "conditions": [
            { "type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded" }] });
        check(deployment, status(2, late), Ready::Never("no progress within 600 s".to_owned()));
    }

    #[test]
    fn database_is_not_ready_before_its_operator_has_read_the_password() {
        let secret = json!({ "metadata": { "resourceVersion": "12" } });
        let status = |read: Value| json!({ "status": { "secretsResourceVersion": read } });
        let of = |read: Value| has_read(&status(read), &secret);
        assert_eq!(of(json!({ "applicationSecretVersion": "12" })), Ready::Yes);
        assert!(matches!(of(json!({ "applicationSecretVersion": "9" })), Ready::NotYet(_)));
        // Without a report there is nothing to wait for.
        assert_eq!(of(Value::Null), Ready::Yes);
    }

    #[test]
    fn job_is_ready_when_it_is_complete() {
        check(
            job,
            json!({ "status": { "failed": 1 } }),
            Ready::NotYet("0 of 1 runs are done, 1 attempts failed".to_owned()),
        );
        check(job, json!({ "status": { "conditions": [{ "type": "Complete", "status": "True" }] } }), Ready::Yes);
        let failed =
            json!({ "status": { "conditions": [{ "type": "Failed", "status": "True", "message": "too often" }] } });
        check(job, failed, Ready::Never("too often".to_owned()));
    }

    #[test]
    fn external_controller_status_counts_only_for_the_current_generation() {
        let not_yet = |why: &str| Ready::NotYet(why.to_owned());
        let object = |status: Value| json!({ "metadata": { "generation": 2 }, "spec": { "parentRefs": [{ "name": "a" }] }, "status": status });
        check(gateway, object(json!({})), not_yet("no controller of the cluster has processed it yet"));
        let condition = |kind: &str, status: &str, seen: u64| json!([{ "type": kind, "status": status, "observedGeneration": seen, "message": "no address" }]);
        let says = |conditions: Value| object(json!({ "conditions": conditions }));
        check(
            gateway,
            says(condition("Programmed", "True", 1)),
            not_yet("its controller has not processed the change yet"),
        );
        check(gateway, says(condition("Programmed", "False", 2)), not_yet("no address"));
        check(gateway, says(condition("Programmed", "True", 2)), Ready::Yes);
        check(
            of_custom_resource,
            says(json!([{ "type": "Ready", "status": "False", "reason": "Issuing" }])),
            not_yet("Issuing"),
        );
        check(http_route, object(json!({})), not_yet("0 of 1 gateways have accepted it"));
        let taken = |accepted: &str, resolved: &str| {
            let mut conditions = condition("Accepted", accepted, 2);
            let found = json!({ "type": "ResolvedRefs", "status": resolved, "observedGeneration": 2, "reason": "BackendNotFound", "message": "" });
            conditions.as_array_mut().expect("a list").push(found);
            let of = |name: &str| json!({ "parentRef": { "name": name }, "conditions": conditions });
            // An outdated status of another Gateway.
            let stale = json!({ "parentRef": { "name": "b" }, "conditions": condition("Accepted", "False", 1) });
            object(json!({ "parents": [stale, of("a")], "ancestors": [of("a")] }))
        };
        for look in [http_route, backend_tls, in_force] {
            check(look, taken("True", "True"), Ready::Yes);
            check(look, taken("False", "True"), not_yet("no address"));
            check(look, taken("True", "False"), not_yet("BackendNotFound"));
        }
        check(backend_tls, object(json!({})), Ready::Yes);
        let unprocessed = "no gateway has processed its BackendTLSPolicy: check that the controller supports this kind of Gateway API 1.4";
        check(in_force, object(json!({})), not_yet(unprocessed));
        check(openshift_route, object(json!({})), not_yet("no router has processed it yet"));
        check(definition, says(condition("Established", "False", 2)), not_yet("the API server does not serve it yet"));
        check(definition, says(condition("NamesAccepted", "False", 2)), Ready::Never("no address".to_owned()));
        check(definition, says(condition("Established", "True", 2)), Ready::Yes);
    }

    #[test]
    fn load_balancer_without_an_address_is_not_ready() {
        check(service, json!({ "spec": { "type": "ClusterIP" } }), Ready::Yes);
        let waits = Ready::NotYet("its load balancer has no address yet".to_owned());
        check(service, json!({ "spec": { "type": "LoadBalancer" }, "status": { "loadBalancer": {} } }), waits);
    }
}
