//! The operator's side: the job is created first, and pods change only after it has reported.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use textnlp_provider::{Error, ErrorKind, Operation, Result};

use super::queries::QueryConfig;
use super::shares::{self, Route};
use super::traffic::Traffic;
use super::{
    ACCOUNT, CONTROLLER, Canary, HOLD_ANNOTATION, JOB_FIELD_MANAGER, ORDERS, REPORT_ANNOTATION, RolloutOrders,
    RolloutReport, Stage, call, counters, holder, is_held, note, read_report,
};
use crate::api::Api;
use crate::error::Call;
use crate::lower::job_nodes;
use crate::ready::{self, Ready};
use crate::{diagnosis, identity, table};

/// `minReadySeconds` of the new pods: Kubernetes does not proceed within it. It is longer than any rollout.
const MIN_READY_SECONDS: u64 = 30 * 24 * 3600;
/// The `backoffLimit` of the job: how often a lost pod is recreated.
const BACKOFF_LIMIT: u32 = 20;
/// The timeout for the job's first report. It may fail to start because of its image, a quota or a node.
const SILENT: jiff::SignedDuration = jiff::SignedDuration::from_mins(5);
/// The time after the rollout's deadline at which a job without an end is considered lost, in seconds.
const LATE_SECONDS: i64 = 300;
/// Why clients cannot be routed to one set of pods.
pub(super) const OTHERS_STAY: &str = "pods of an earlier release still run and serve clients";
/// The state after a rollback.
const OLD_RUNS: &str = "the old release runs";
/// How long the finished job and its pods are retained, in seconds.
const KEPT_SECONDS: u32 = 24 * 3600;
/// The limit of the orders in bytes; Linux limits one environment variable to 128 KiB.
const MAX_ORDERS_BYTES: usize = 120 << 10;
/// The mount path of the job's credential.
const FOLDER: &str = "/var/run/secrets/textnlp";

/// The status of a rollout, for the operation that waits for it.
pub(crate) enum RolloutState {
    /// In progress.
    GoesOn(String),
    /// Promoted: the wanted manifest is applied.
    Promoted,
    /// Rolled back, or never started.
    Ended(String),
}

impl RolloutOrders {
    /// The orders for an update: `promote` is the wanted manifest, `revert` the one applied before.
    pub(crate) fn of(
        op: &Operation,
        canary: Canary,
        (namespace, name, uid): (&str, &str, &str),
        manager: &str,
        (promote, revert): (Value, Value),
        route: Option<Value>,
    ) -> Self {
        let metrics_port = counters::port(&promote["spec"]["template"]["spec"]).unwrap_or_default();
        let release = hex::encode(&Sha256::digest(promote["spec"]["template"].to_string())[..8]);
        let labels = promote["metadata"]["labels"].as_object().into_iter().flatten();
        let labels = labels.filter(|(name, _)| identity::OURS.contains(&name.as_str()));
        let mut labels: Value = labels.map(|(name, value)| (name.clone(), value.clone())).collect();
        labels["app.kubernetes.io/part-of"] = json!("textnlp");
        labels["app.kubernetes.io/name"] = json!(CONTROLLER);
        Self {
            release,
            labels,
            id: op.token.as_str().to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            manager: manager.to_owned(),
            canary,
            metrics_port,
            promote,
            revert,
            route,
        }
    }

    /// Whether the rollout has two sets of pods with clients routed to one of them or split between them.
    pub(super) fn has_two_sets(&self) -> bool {
        self.canary.is_blue_green() || self.route.is_some()
    }

    /// The traffic weight of the new pods in percent, where a route splits clients.
    pub(super) fn share(&self) -> Option<u32> {
        self.route.as_ref().and(self.canary.share)
    }

    /// Creates the job unless an earlier attempt has. Refused if the rollout could not be ended in both directions, if
    /// another one is in progress, or if this release was rolled back before.
    pub(crate) async fn send(&self, api: &Api, deployment: &Value) -> Result<()> {
        let name = self.job_name();
        let roll = call("roll", "patch", &self.namespace, Some(&self.name));
        let before = read_report(deployment);
        let ending = before.as_ref().filter(|report| matches!(report.stage, Stage::Promoting | Stage::Reverting));
        let other = holder(deployment).or(ending.map(|report| report.id.as_str())).filter(|other| *other != self.id);
        if let Some(other) = other
            && is_running(api, &self.namespace, other).await?
        {
            let hint = "wait for its end (`rollout status`), or run `rollout abort`";
            return Err(roll.error(ErrorKind::Conflict).because("another rollout is in progress").hint(hint));
        }
        if let Some(report) = before.filter(|report| report.stage == Stage::Reverted && report.release == self.release)
        {
            let hint = "change it, or run `rollback`; `rollout retry` tries the same release again";
            let why = format!("this release was tried and rolled back: {}", report.says);
            return Err(roll.error(ErrorKind::Conflict).because(why).hint(hint));
        }
        api.apply(&roll, &self.manager, &self.promote, true).await?;
        let back = api.apply(&roll, &self.manager, &self.revert, true).await?;
        // Another field manager may own the field with the same value: only a different value shows it.
        if let Some(route) = &self.traffic(api).route {
            route.could_lead().await?;
        }
        if self.has_two_sets() {
            if !is_one_set(deployment) {
                let hint = "`kubectl rollout status` waits until they are gone; then run the same command again";
                return Err(roll.error(ErrorKind::Conflict).because(OTHERS_STAY).hint(hint));
            }
        } else {
            route_to_all(api, (&self.namespace, &self.name), deployment, (&self.manager, Some(&self.id))).await?;
        }
        if back.object["spec"]["template"] != deployment["spec"]["template"] {
            let hint =
                "`drift` shows the difference; `--set rollout.strategy=rolling` replaces the pods without a canary";
            let why = "the running release is not the last applied one, so a rollback is impossible";
            return Err(roll.error(ErrorKind::Conflict).because(why).hint(hint));
        }
        let call = self.job_call("make", "create", None);
        let Some(job) = self.job(&name, deployment) else {
            let why = format!("the deployment is described by more than {} KiB", MAX_ORDERS_BYTES >> 10);
            let hint = "set `rollout.strategy: rolling`, or name fewer models in one environment";
            return Err(call.error(ErrorKind::Invalid).because(why).hint(hint));
        };
        match api.ask(&call, &call.path(), &job).await {
            Err(error) if error.code.as_deref() != Some("AlreadyExists") => Err(error),
            _ => Ok(()),
        }
    }

    /// One poll: starts the rollout when the job has reported, ends it when the job is gone, otherwise returns its
    /// status.
    pub(crate) async fn look(&self, api: &Api, deployment: &Value) -> Result<RolloutState> {
        let held = is_held(deployment, &self.id);
        let report = read_report(deployment).filter(|report| report.id == self.id);
        match report.as_ref().map(|report| (report.stage, report.says.clone())) {
            Some((Stage::Promoted, _)) => return Ok(RolloutState::Promoted),
            Some((Stage::Reverted, says)) => return Ok(RolloutState::Ended(format!("{says}; {OLD_RUNS}"))),
            _ => {}
        }
        let name = self.job_name();
        let call = self.job_call("wait for", "get", Some(&name));
        let job = api.get(&call).await?;
        let why = match job.as_ref().map(ready::job) {
            Some(Ready::NotYet(why)) => {
                let job = job.unwrap_or_default();
                if report.as_ref().is_some_and(|report| report.stage == Stage::Waiting) && !held {
                    self.apply(api, &self.held()).await?;
                    let made = if self.canary.is_blue_green() { "as many" } else { "the first" };
                    return Ok(RolloutState::GoesOn(format!("{made} pods of the new release are created")));
                }
                let (within, says) = match &report {
                    Some(report) => (self.ended_within(), report.says.clone()),
                    None => (SILENT, format!("starting its job: {why}")),
                };
                // Without a running pod the last report is out of date.
                let says = match job["status"]["ready"].as_u64() {
                    Some(1..) => says,
                    _ => diagnosis::of_pods(api, call.row, &job, format!("{says} (its job has no running pod)")).await,
                };
                let made = job["metadata"]["creationTimestamp"].as_str();
                let made = made.and_then(|at| at.parse::<jiff::Timestamp>().ok());
                if made.is_none_or(|made| jiff::Timestamp::now().duration_since(made) <= within) {
                    return Ok(RolloutState::GoesOn(says));
                }
                api.delete(&call, identity::uid(&job)).await?;
                format!("its job did not finish within {} minutes: {says}", within.as_mins())
            }
            Some(Ready::Never(why)) => format!("its job {name} failed without a reason: {why}"),
            Some(Ready::Yes) => format!("its job {name} ended without a reason"),
            None => format!("its job {name} was removed"),
        };
        let stage = report.as_ref().map(|report| report.stage);
        // The job is gone, so the operator ends the rollout.
        if held {
            if self.has_two_sets() {
                // Recorded for the next poll, which finishes the rollback. The release may be retried, because it did
                // not fail.
                let report = report.unwrap_or_else(|| self.report(Stage::Reverting, "", 0));
                let report =
                    RolloutReport { stage: Stage::Reverting, says: why, release: String::new(), share: None, ..report };
                self.say(api, &report).await?;
                self.put_back(api, &report).await?;
                return Ok(RolloutState::GoesOn(report.says));
            }
            self.apply(api, &self.revert).await?;
            return Ok(RolloutState::Ended(format!("{why}; {OLD_RUNS}")));
        }
        match report.filter(|report| matches!(report.stage, Stage::Promoting | Stage::Reverting)) {
            _ if !self.has_two_sets() => {}
            None => self.traffic(api).lead_to_all().await?,
            Some(_) if !self.settle(api, deployment).await? => {
                return Ok(RolloutState::GoesOn(format!("{why}; removing the pods of the other release")));
            }
            Some(report) => self.say(api, &report.ended()).await?,
        }
        match stage {
            // The promotion was done, only its report is missing.
            Some(Stage::Promoting) => Ok(RolloutState::Promoted),
            Some(Stage::Reverting) => Ok(RolloutState::Ended(format!("{why}; {OLD_RUNS}"))),
            Some(Stage::Preparing | Stage::Switching | Stage::Baking) => {
                Ok(RolloutState::Ended("another change was applied in the meantime".to_owned()))
            }
            _ => Ok(RolloutState::Ended(format!("{why}; nothing has changed"))),
        }
    }

    /// Applies the new release to all pods. Where clients are split, old pods would get most of them until the last one
    /// is gone.
    pub(super) async fn go_on(&self, api: &Api) -> Result<()> {
        if self.route.is_some() {
            self.traffic(api).lead_to_all().await?;
        }
        self.apply(api, &self.promote).await
    }

    /// Restores the old release: first the routing of clients, then the pods.
    pub(super) async fn put_back(&self, api: &Api, report: &RolloutReport) -> Result<()> {
        if self.has_two_sets() {
            self.traffic(api).keep(report.sets.as_ref().map(|sets| sets.old.as_str())).await?;
        }
        self.apply(api, &self.revert).await
    }

    /// Routes clients to all pods if only one set is left; returns whether that is so.
    pub(super) async fn settle(&self, api: &Api, deployment: &Value) -> Result<bool> {
        self.traffic(api).settle(deployment).await
    }

    pub(super) fn traffic<'a>(&'a self, api: &'a Api) -> Traffic<'a> {
        let route = self.route.as_ref().map(|applied| Route {
            api,
            applied,
            manager: &self.manager,
            id: &self.id,
            share: self.share().unwrap_or_default(),
        });
        Traffic { api, namespace: &self.namespace, name: &self.name, route }
    }

    pub(super) fn report(&self, stage: Stage, says: &str, began: u64) -> RolloutReport {
        let (id, release) = (self.id.clone(), self.release.clone());
        RolloutReport { id, stage, says: says.to_owned(), release, began, share: None, sets: None }
    }

    pub(super) async fn say(&self, api: &Api, report: &RolloutReport) -> Result<()> {
        let call = call("annotate", "patch", &self.namespace, Some(&self.name));
        note(api, &call, JOB_FIELD_MANAGER, &self.uid, (REPORT_ANNOTATION, json!(report))).await
    }

    /// The limit for the job from its start to the end of the rollout.
    fn ended_within(&self) -> jiff::SignedDuration {
        let deadline = i64::try_from(self.canary.deadline_seconds).unwrap_or(i64::MAX);
        jiff::SignedDuration::from_secs(deadline.saturating_add(LATE_SECONDS))
    }

    pub(super) async fn apply(&self, api: &Api, manifest: &Value) -> Result<()> {
        let call = call("apply", "patch", &self.namespace, Some(&self.name));
        match api.apply(&call, &self.manager, manifest, false).await {
            // An autoscaler or another field manager owns `spec.replicas`: the rollout ends without setting it.
            Err(error) if error.contested.iter().any(|field| field.path == "spec.replicas") => {
                let mut manifest = manifest.clone();
                manifest["spec"].as_object_mut().map(|spec| spec.shift_remove("replicas"));
                api.apply(&call, &self.manager, &manifest, false).await.map(drop)
            }
            done => done.map(drop),
        }
    }

    /// The wanted manifest, held after the first few pods.
    fn held(&self) -> Value {
        let mut held = self.promote.clone();
        held["metadata"]["annotations"][HOLD_ANNOTATION] = json!(self.id);
        held["spec"]["minReadySeconds"] = json!(MIN_READY_SECONDS);
        // Kubernetes requires `progressDeadlineSeconds` to exceed `minReadySeconds`.
        held["spec"]["progressDeadlineSeconds"] = json!(MIN_READY_SECONDS + 3600);
        held["spec"]["strategy"]["rollingUpdate"]["maxSurge"] = json!(format!("{}%", self.canary.share.unwrap_or(100)));
        held
    }

    fn job_name(&self) -> String {
        job_name(&self.id)
    }

    fn job_call<'a>(&'a self, action: &'static str, verb: &'static str, name: Option<&'a str>) -> Call<'a> {
        Call { action, verb, row: table::named("kubernetes.job"), namespace: Some(&self.namespace), name }
    }

    /// The job. It runs the program of the old release, which is known to work.
    fn job(&self, name: &str, deployment: &Value) -> Option<Value> {
        // Kubernetes expands `$(NAME)` in variables.
        let orders = json!(self).to_string().replace('$', "$$");
        let servers = &self.revert["spec"]["template"]["spec"];
        let server = &servers["containers"][0];
        let labels = &self.labels;
        let owner = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "name": self.name, "uid": identity::uid(deployment),
        });
        let account = json!([
            { "serviceAccountToken": { "path": "token", "expirationSeconds": 3600 } },
            { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
        ]);
        let mut pod = json!({
            "restartPolicy": "OnFailure",
            "serviceAccountName": ACCOUNT,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "securityContext": servers["securityContext"],
            "containers": [{
                "name": "rollout",
                "image": server["image"],
                "command": server["command"],
                "args": ["rollout", "watch", "--account", FOLDER],
                "env": [{ "name": ORDERS, "value": orders }],
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "resources": {
                    "requests": { "cpu": "50m", "memory": "64Mi" },
                    "limits": { "cpu": "500m", "memory": "256Mi" },
                },
                "securityContext": server["securityContext"],
                "volumeMounts": [{ "name": "account", "mountPath": FOLDER, "readOnly": true }],
            }],
            "volumes": [{ "name": "account", "projected": { "sources": account, "defaultMode": 288 } }],
        });
        // The job may run only on the nodes that are chosen for the site, and needs no GPU.
        for (field, chosen) in job_nodes(servers) {
            pod[field] = chosen;
        }
        // An older program without traffic weights rejects the argument. Otherwise it would split clients by the number
        // of pods.
        if self.route.is_some()
            && let Some(arguments) = pod.pointer_mut("/containers/0/args").and_then(Value::as_array_mut)
        {
            arguments.push(json!("--shares"));
        }
        if let Some(outside) = QueryConfig::of(self).ok()? {
            outside.reached(&mut pod);
        }
        (orders.len() < MAX_ORDERS_BYTES).then(|| {
            json!({
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": { "name": name, "namespace": self.namespace, "labels": labels, "ownerReferences": [owner] },
                "spec": {
                    "backoffLimit": BACKOFF_LIMIT,
                    "ttlSecondsAfterFinished": KEPT_SECONDS,
                    "template": { "metadata": { "labels": labels }, "spec": pod },
                },
            })
        })
    }
}

/// Routes clients to all pods before the pods change outside of a rollout. Refused while the job of a rollout other
/// than `own` is in progress.
pub(crate) async fn route_to_all(
    api: &Api,
    (namespace, name): (&str, &str),
    deployment: &Value,
    (manager, own): (&str, Option<&str>),
) -> Result<()> {
    let Some(report) = read_report(deployment).filter(|report| own != Some(report.id.as_str())) else { return Ok(()) };
    let mut traffic = Traffic { api, namespace, name, route: None };
    if traffic.led_to().await?.is_none() {
        return Ok(());
    }
    if is_running(api, namespace, &report.id).await? {
        let hint = "wait for its end (`rollout status`), or run `rollout abort`; if that has no effect, run `kubectl delete job`";
        let error = call("change", "patch", namespace, Some(name)).error(ErrorKind::Conflict);
        return Err(error.because("a rollout is in progress, which routes clients to one set of its pods").hint(hint));
    }
    let route = shares::applied(api, (namespace, name), manager).await?;
    traffic.route = route.as_ref().map(|(applied, found)| Route {
        api,
        applied,
        manager,
        id: &report.id,
        share: shares::weights(found).map_or(0, |[_, new]| new),
    });
    traffic.lead_to_all().await
}

/// The route of a deployment if it supports traffic weights. An error if it is not as this manager applied it.
pub(crate) async fn route_of(
    api: &Api,
    (namespace, name): (&str, &str),
    manager: &str,
    canary: Canary,
) -> Result<Option<Value>> {
    if !canary.weighted {
        return Ok(None);
    }
    match shares::applied(api, (namespace, name), manager).await? {
        Some((applied, found)) if applied["spec"] == found["spec"] => Ok(Some(applied)),
        // The weights that an abandoned rollout left are reset before the next one.
        Some((applied, found)) if holder_is_gone(api, namespace, &found).await? => {
            let share = shares::weights(&found).map_or(0, |[_, new]| new);
            match (Route { api, applied: &applied, manager, id: "", share }).lead(0).await? {
                true => Ok(Some(applied)),
                false => Err(is_another(namespace, name)),
            }
        }
        _ => Err(is_another(namespace, name)),
    }
}

fn is_another(namespace: &str, name: &str) -> Error {
    let why = "the HTTPRoute with the traffic weights is missing or was changed";
    let hint = "`drift` shows the difference; an `up` that changes no pods repairs it, or `--set rollout.strategy=rolling` replaces the pods without it";
    call("roll", "patch", namespace, Some(name)).error(ErrorKind::Conflict).because(why).hint(hint)
}

async fn holder_is_gone(api: &Api, namespace: &str, route: &Value) -> Result<bool> {
    Ok(match shares::holder_of_route(route) {
        Some(id) => !is_running(api, namespace, id).await?,
        None => false,
    })
}

/// Refuses to change a route whose weights belong to a rollout in progress.
pub(crate) async fn leave_shares(api: &Api, namespace: &str, route: &Value) -> Result<()> {
    let Some(id) = shares::holder_of_route(route) else { return Ok(()) };
    if !is_running(api, namespace, id).await? {
        return Ok(());
    }
    let row = table::named("kubernetes.http-route");
    let call = Call {
        action: "update",
        verb: "patch",
        row,
        namespace: Some(namespace),
        name: route["metadata"]["name"].as_str(),
    };
    let hint = "wait for its end (`rollout status`), or run `rollout abort`";
    Err(call.error(ErrorKind::Conflict).because("a rollout is in progress, which uses its weights").hint(hint))
}

/// Whether all pods of a deployment have the same template.
pub(super) fn is_one_set(deployment: &Value) -> bool {
    deployment["status"]["updatedReplicas"] == deployment["status"]["replicas"]
}

/// Whether the job of a rollout exists and has not ended.
async fn is_running(api: &Api, namespace: &str, id: &str) -> Result<bool> {
    let name = job_name(id);
    let call = Call {
        action: "read",
        verb: "get",
        row: table::named("kubernetes.job"),
        namespace: Some(namespace),
        name: Some(&name),
    };
    Ok(api.get(&call).await?.is_some_and(|job| matches!(ready::job(&job), Ready::NotYet(_))))
}

fn job_name(id: &str) -> String {
    format!("textnlp-rollout-{}", id.get(..12).unwrap_or(id))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use textnlp_provider::component;

    use super::*;

    fn orders() -> RolloutOrders {
        let canary = Canary {
            share: Some(10),
            weighted: false,
            bake_seconds: 60,
            deadline_seconds: 600,
            slow_ms: 500,
            error_rate: 0.01,
        };
        let manifest = |of: &str| {
            json!({
                "metadata": { "name": "api", "annotations": {} },
                "spec": { "strategy": { "rollingUpdate": { "maxSurge": 1 } }, "progressDeadlineSeconds": 600, "release": of },
            })
        };
        RolloutOrders {
            id: "0123456789abcdef".to_owned(),
            namespace: "here".to_owned(),
            name: "api".to_owned(),
            uid: "1".to_owned(),
            manager: "m".to_owned(),
            canary,
            metrics_port: 9090,
            promote: manifest("new"),
            revert: manifest("$(OLD)"),
            route: None,
            release: "r".to_owned(),
            labels: json!({}),
        }
    }

    /// An API server on which another field manager owns a field. It answers each apply that sets the field with a
    /// conflict whose message must not matter, and keeps every manifest.
    fn owned_by_another(field: &'static str) -> (Api, Arc<Mutex<Vec<Value>>>) {
        let applied = Arc::new(Mutex::new(Vec::new()));
        let kept = applied.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let kept = kept.clone();
            async move {
                let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
                let manifest: Value = serde_json::from_slice(&body).unwrap();
                let sets = manifest.pointer(&format!("/{}", field.replace('.', "/"))).is_some();
                let answer = match sets {
                    true => {
                        json!({ "kind": "Status", "reason": "Conflict", "message": "other words", "details": { "causes": [
                        { "reason": "FieldManagerConflict", "field": format!(".{field}"), "message": "quite other words" },
                    ] } })
                    }
                    false => manifest.clone(),
                };
                kept.lock().unwrap().push(manifest);
                let answer = http::Response::builder().status(if sets { 409 } else { 200 }).body(answer.to_string());
                answer.map_err(|error| -> Box<dyn std::error::Error + Send + Sync> { error.into() })
            }
        });
        (Api::new(kube::Client::new(service, "here"), None), applied)
    }

    #[tokio::test]
    async fn rollout_yields_replicas_to_an_autoscaler_and_no_other_conflict() {
        let mut manifest = orders().promote;
        manifest["spec"]["replicas"] = json!(3);
        let (api, applied) = owned_by_another("spec.replicas");
        orders().apply(&api, &manifest).await.unwrap();
        let replicas: Vec<_> = applied.lock().unwrap().iter().map(|sent| sent["spec"]["replicas"].clone()).collect();
        assert_eq!(replicas, [json!(3), Value::Null]);
        assert_eq!(applied.lock().unwrap()[1]["spec"]["release"], "new", "the rest is applied");

        let (api, applied) = owned_by_another("spec.release");
        let error = orders().apply(&api, &manifest).await.unwrap_err();
        assert_eq!(error.contested[0].path, "spec.release");
        assert_eq!(applied.lock().unwrap().len(), 1);
    }

    #[test]
    fn held_deployment_equals_the_wanted_one_for_a_few_pods() {
        let held = orders().held();
        assert_eq!(
            (&held["spec"]["release"], &held["metadata"]["annotations"][HOLD_ANNOTATION]),
            (&json!("new"), &json!("0123456789abcdef"))
        );
        assert_eq!(held["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "10%");
        let both = RolloutOrders { canary: Canary { share: None, ..orders().canary }, ..orders() };
        assert_eq!(both.held()["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "100%", "a second set");
        // Kubernetes requires `progressDeadlineSeconds` to be the larger one; both are 32-bit integers.
        let (ready, progress) = (&held["spec"]["minReadySeconds"], &held["spec"]["progressDeadlineSeconds"]);
        assert!(ready.as_u64() < progress.as_u64() && progress.as_u64() < Some(u64::from(u32::MAX >> 1)));
    }

    #[test]
    fn rollout_job_uses_the_existing_image_without_expanding_variables() {
        let deployment = json!({ "metadata": { "uid": "1" } });
        let mut orders = orders();
        orders.revert["spec"]["template"] = json!({ "spec": {
            "securityContext": { "runAsNonRoot": true },
            "nodeSelector": { "pool": "text", "textnlp/pool": "gpu" },
            "containers": [{ "name": "api", "image": "old", "command": ["p"], "securityContext": { "readOnlyRootFilesystem": true } }],
        } });
        let job = orders.job("rollout", &deployment).unwrap();
        let pod = &job["spec"]["template"]["spec"];
        let one = &pod["containers"][0];
        assert_eq!(
            (&one["image"], &one["command"], &pod["serviceAccountName"]),
            (&json!("old"), &json!(["p"]), &json!(ACCOUNT))
        );
        assert_eq!((&pod["nodeSelector"], pod.get("tolerations")), (&json!({ "pool": "text" }), None), "{pod:#}");
        let value = one["env"][0]["value"].as_str().unwrap();
        assert!(value.contains("$$(OLD)"));
        let read: RolloutOrders = serde_json::from_str(&value.replace("$$", "$")).unwrap();
        assert_eq!(read.revert["spec"]["release"], "$(OLD)");
        assert_eq!(one["args"].as_array().map(Vec::len), Some(4), "a program of before knows no more of them");
        let shared = RolloutOrders { route: Some(json!({})), ..orders.clone() }.job("rollout", &deployment).unwrap();
        assert_eq!(
            shared["spec"]["template"]["spec"]["containers"][0]["args"][4], "--shares",
            "nor of shares of clients"
        );
        for secret in [true, false] {
            let settings = component::PrometheusQueries {
                url: "http://p".to_owned(),
                token: secret,
                ca: None,
                queries: Vec::new(),
            };
            let mut orders = orders.clone();
            orders.promote["metadata"]["annotations"]["textnlp-rollout-queries"] =
                json!(QueryConfig::written(&settings, secret));
            let job = orders.job("rollout", &deployment).unwrap();
            let pod = &job["spec"]["template"]["spec"];
            let one = &pod["containers"][0];
            assert_eq!(one["args"][4], "--prometheus", "a program that does not ask does not begin");
            let (mounts, volumes) = (one["volumeMounts"].as_array().unwrap(), pod["volumes"].as_array().unwrap());
            assert_eq!((mounts.len(), volumes.len()), (1 + usize::from(secret), 1 + usize::from(secret)));
            assert!(
                !secret
                    || (mounts[1]["mountPath"] == one["args"][5]
                        && volumes[1]["secret"]["secretName"] == "textnlp-prometheus")
            );
        }
        let many = RolloutOrders { promote: json!("x".repeat(MAX_ORDERS_BYTES)), ..orders };
        assert_eq!(many.job("rollout", &deployment), None, "no pod could begin with it");
    }
}
