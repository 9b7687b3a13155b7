//! The operator's side: the job is made first, and only when it has said that it is there, pods change.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use textnlp_provider::{Error, Operation, Result, Sort};

use super::outside::Outside;
use super::shares::{self, Route};
use super::traffic::Traffic;
use super::{
    ACCOUNT, CONTROLLER, Canary, HELD, ORDERS, Orders, Stage, TELLER, TOLD, Told, call, figures, holder, is_held, note,
    told,
};
use crate::api::Api;
use crate::error::Call;
use crate::ready::{self, Ready};
use crate::{identity, table, trouble};

/// So long nobody calls a new pod available, and Kubernetes goes no further: longer than any rollout.
const HELD_SECONDS: u64 = 30 * 24 * 3600;
/// A pod of the job that is lost is made again so often.
const TRIES: u32 = 20;
/// A job that has not said a word after so long does not begin: its image, a quota, a node.
const SILENT: jiff::SignedDuration = jiff::SignedDuration::from_mins(5);
/// A job that has not ended a rollout so long after its deadline has no pod that could.
const LATE_SECONDS: i64 = 300;
/// Why clients cannot be led to one set of pods.
pub(super) const OTHERS_STAY: &str = "pods of an earlier release are still there, and clients with them";
/// What is known of a rollout that was taken back.
const OLD_RUNS: &str = "the old release runs";
/// How long the job's pods can be read after it.
const KEPT_SECONDS: u32 = 24 * 3600;
/// What one variable may hold on Linux is 128 KiB.
const LONGEST: usize = 120 << 10;
/// Where the job finds its credential.
const FOLDER: &str = "/var/run/secrets/textnlp";

/// Where a rollout stands, for the operation that waits for it.
pub(crate) enum Standing {
    /// It goes on.
    GoesOn(String),
    /// It went well: what was wanted is applied.
    Promoted,
    /// It was taken back, or never began.
    Ended(String),
}

impl Orders {
    /// What is to be done of an update: `promote` is what is wanted, `revert` what was applied before.
    pub(crate) fn of(
        op: &Operation,
        canary: Canary,
        (namespace, name, uid): (&str, &str, &str),
        manager: &str,
        (promote, revert): (Value, Value),
        route: Option<Value>,
    ) -> Self {
        let metrics_port = figures::port(&promote["spec"]["template"]["spec"]).unwrap_or_default();
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

    /// Whether clients are led to one of two sets of pods, or shared between them.
    pub(super) fn has_two_sets(&self) -> bool {
        self.canary.is_blue_green() || self.route.is_some()
    }

    /// The share of the clients that new pods get, where it is one of clients.
    pub(super) fn share(&self) -> Option<u32> {
        self.route.as_ref().and(self.canary.share)
    }

    /// Makes the job, unless an earlier try has made it. Refused where the rollout could not be ended either way, where another one goes
    /// on, and where this release was put back before.
    pub(crate) async fn send(&self, api: &Api, deployment: &Value) -> Result<()> {
        let name = self.job_name();
        let roll = call("roll", "patch", &self.namespace, Some(&self.name));
        let before = told(deployment);
        let ending = before.as_ref().filter(|told| matches!(told.stage, Stage::Promoting | Stage::Reverting));
        let other = holder(deployment).or(ending.map(|told| told.id.as_str())).filter(|other| *other != self.id);
        if let Some(other) = other
            && goes_on(api, &self.namespace, other).await?
        {
            let hint = "wait for its end (`rollout status`), or `rollout abort`";
            return Err(roll.error(Sort::Conflict).because("another rollout of it goes on").hint(hint));
        }
        if let Some(told) = before.filter(|told| told.stage == Stage::Reverted && told.release == self.release) {
            let hint = "change it, or `rollback`; `rollout retry` lets it be tried once more as it is";
            let why = format!("this release was tried and put back: {}", told.says);
            return Err(roll.error(Sort::Conflict).because(why).hint(hint));
        }
        api.apply(&roll, &self.manager, &self.promote, true).await?;
        let back = api.apply(&roll, &self.manager, &self.revert, true).await?;
        // The field may be somebody else's too, who wrote the same: only other words show it.
        if let Some(route) = &self.traffic(api).route {
            route.could_lead().await?;
        }
        if self.has_two_sets() {
            if !is_one_set(deployment) {
                let hint = "`kubectl rollout status` waits until they are gone; then run the same command again";
                return Err(roll.error(Sort::Conflict).because(OTHERS_STAY).hint(hint));
            }
        } else {
            make_way(api, (&self.namespace, &self.name), deployment, (&self.manager, Some(&self.id))).await?;
        }
        if back.object["spec"]["template"] != deployment["spec"]["template"] {
            let hint = "`drift` shows how; `--set rollout.strategy=rolling` replaces the pods without looking at the first ones";
            let why = "what runs is not what was applied last, so that it could not be put back";
            return Err(roll.error(Sort::Conflict).because(why).hint(hint));
        }
        let call = self.job_call("make", "create", None);
        let Some(job) = self.job(&name, deployment) else {
            let why = format!("the deployment is described by more than {} KiB", LONGEST >> 10);
            let hint = "set `rollout.strategy: rolling`, or name fewer models in one environment";
            return Err(call.error(Sort::Invalid).because(why).hint(hint));
        };
        match api.ask(&call, &call.path(), &job).await {
            Err(error) if error.code.as_deref() != Some("AlreadyExists") => Err(error),
            _ => Ok(()),
        }
    }

    /// One look: begins the rollout when the job is there, ends it when the job is gone, and else says how it goes.
    pub(crate) async fn look(&self, api: &Api, deployment: &Value) -> Result<Standing> {
        let held = is_held(deployment, &self.id);
        let told = told(deployment).filter(|told| told.id == self.id);
        match told.as_ref().map(|told| (told.stage, told.says.clone())) {
            Some((Stage::Promoted, _)) => return Ok(Standing::Promoted),
            Some((Stage::Reverted, says)) => return Ok(Standing::Ended(format!("{says}; {OLD_RUNS}"))),
            _ => {}
        }
        let name = self.job_name();
        let call = self.job_call("wait for", "get", Some(&name));
        let job = api.get(&call).await?;
        let why = match job.as_ref().map(ready::job) {
            Some(Ready::NotYet(why)) => {
                let job = job.unwrap_or_default();
                if told.as_ref().is_some_and(|told| told.stage == Stage::Waiting) && !held {
                    self.apply(api, &self.held()).await?;
                    let made = if self.canary.is_blue_green() { "as many" } else { "the first" };
                    return Ok(Standing::GoesOn(format!("{made} pods of the new release are made")));
                }
                let (within, says) = match &told {
                    Some(told) => (self.ended_within(), told.says.clone()),
                    None => (SILENT, format!("its job begins: {why}")),
                };
                // Without a pod nobody says anything new.
                let says = match job["status"]["ready"].as_u64() {
                    Some(1..) => says,
                    _ => trouble::of_pods(api, call.row, &job, format!("{says} (its job has no pod that runs)")).await,
                };
                let made = job["metadata"]["creationTimestamp"].as_str();
                let made = made.and_then(|at| at.parse::<jiff::Timestamp>().ok());
                if made.is_none_or(|made| jiff::Timestamp::now().duration_since(made) <= within) {
                    return Ok(Standing::GoesOn(says));
                }
                api.delete(&call, identity::uid(&job)).await?;
                format!("its job has not done its work within {} minutes: {says}", within.as_mins())
            }
            Some(Ready::Never(why)) => format!("its job {name} failed, and has not said why: {why}"),
            Some(Ready::Yes) => format!("its job {name} ended, and has not said why"),
            None => format!("somebody removed its job {name}"),
        };
        let stage = told.as_ref().map(|told| told.stage);
        // Nobody else is left who could.
        if held {
            if self.has_two_sets() {
                // Whoever looks next knows what to finish; the release may be tried again, for it is not its fault.
                let told = told.unwrap_or_else(|| self.told(Stage::Reverting, "", 0));
                let told = Told { stage: Stage::Reverting, says: why, release: String::new(), share: None, ..told };
                self.say(api, &told).await?;
                self.put_back(api, &told).await?;
                return Ok(Standing::GoesOn(told.says));
            }
            self.apply(api, &self.revert).await?;
            return Ok(Standing::Ended(format!("{why}; {OLD_RUNS}")));
        }
        match told.filter(|told| matches!(told.stage, Stage::Promoting | Stage::Reverting)) {
            _ if !self.has_two_sets() => {}
            None => self.traffic(api).lead_to_all().await?,
            Some(_) if !self.settle(api, deployment).await? => {
                return Ok(Standing::GoesOn(format!("{why}; pods of the other release leave")));
            }
            Some(told) => self.say(api, &told.ended()).await?,
        }
        match stage {
            // It was done, and only not said any more.
            Some(Stage::Promoting) => Ok(Standing::Promoted),
            Some(Stage::Reverting) => Ok(Standing::Ended(format!("{why}; {OLD_RUNS}"))),
            Some(Stage::Preparing | Stage::Switching | Stage::Baking) => {
                Ok(Standing::Ended("somebody applied something else meanwhile".to_owned()))
            }
            _ => Ok(Standing::Ended(format!("{why}; nothing has changed"))),
        }
    }

    /// The new release for all. Where clients are shared, old pods would have most of them until the last one is gone.
    pub(super) async fn go_on(&self, api: &Api) -> Result<()> {
        if self.route.is_some() {
            self.traffic(api).lead_to_all().await?;
        }
        self.apply(api, &self.promote).await
    }

    /// The old release: clients first, and then the pods.
    pub(super) async fn put_back(&self, api: &Api, told: &Told) -> Result<()> {
        if self.has_two_sets() {
            self.traffic(api).keep(told.sets.as_ref().map(|sets| sets.old.as_str())).await?;
        }
        self.apply(api, &self.revert).await
    }

    /// Whether there is one set of pods left, to all of which clients are led then.
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

    pub(super) fn told(&self, stage: Stage, says: &str, began: u64) -> Told {
        let (id, release) = (self.id.clone(), self.release.clone());
        Told { id, stage, says: says.to_owned(), release, began, share: None, sets: None }
    }

    pub(super) async fn say(&self, api: &Api, told: &Told) -> Result<()> {
        let call = call("annotate", "patch", &self.namespace, Some(&self.name));
        note(api, &call, TELLER, &self.uid, (TOLD, json!(told))).await
    }

    /// From its beginning, the job has ended the rollout so soon.
    fn ended_within(&self) -> jiff::SignedDuration {
        let deadline = i64::try_from(self.canary.deadline_seconds).unwrap_or(i64::MAX);
        jiff::SignedDuration::from_secs(deadline.saturating_add(LATE_SECONDS))
    }

    pub(super) async fn apply(&self, api: &Api, manifest: &Value) -> Result<()> {
        let call = call("apply", "patch", &self.namespace, Some(&self.name));
        match api.apply(&call, &self.manager, manifest, false).await {
            // Somebody said another number of pods meanwhile, and it is theirs: a release ends all the same.
            Err(error) if error.hint.as_deref().is_some_and(|hint| hint.contains("  spec.replicas: ")) => {
                let mut manifest = manifest.clone();
                manifest["spec"].as_object_mut().map(|spec| spec.shift_remove("replicas"));
                api.apply(&call, &self.manager, &manifest, false).await.map(drop)
            }
            done => done.map(drop),
        }
    }

    /// What is wanted, for a few pods.
    fn held(&self) -> Value {
        let mut held = self.promote.clone();
        held["metadata"]["annotations"][HELD] = json!(self.id);
        held["spec"]["minReadySeconds"] = json!(HELD_SECONDS);
        // It has to be the longer one.
        held["spec"]["progressDeadlineSeconds"] = json!(HELD_SECONDS + 3600);
        held["spec"]["strategy"]["rollingUpdate"]["maxSurge"] = json!(format!("{}%", self.canary.share.unwrap_or(100)));
        held
    }

    fn job_name(&self) -> String {
        job_name(&self.id)
    }

    fn job_call<'a>(&'a self, action: &'static str, verb: &'static str, name: Option<&'a str>) -> Call<'a> {
        Call { action, verb, row: table::named("kubernetes.job"), namespace: Some(&self.namespace), name }
    }

    /// The job, which runs the program of the old release: it has proven that it runs.
    fn job(&self, name: &str, deployment: &Value) -> Option<Value> {
        // Kubernetes puts variables in where it finds `$(NAME)`.
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
        // Where the servers may go, and nowhere else.
        for field in ["nodeSelector", "tolerations"] {
            if let Some(chosen) = servers.get(field) {
                pod[field] = chosen.clone();
            }
        }
        // A program that knows nothing of shares does not take the argument: it would lead as many clients there as there are pods.
        if self.route.is_some()
            && let Some(arguments) = pod.pointer_mut("/containers/0/args").and_then(Value::as_array_mut)
        {
            arguments.push(json!("--shares"));
        }
        if let Some(outside) = Outside::of(self).ok()? {
            outside.reached(&mut pod);
        }
        (orders.len() < LONGEST).then(|| {
            json!({
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": { "name": name, "namespace": self.namespace, "labels": labels, "ownerReferences": [owner] },
                "spec": {
                    "backoffLimit": TRIES,
                    "ttlSecondsAfterFinished": KEPT_SECONDS,
                    "template": { "metadata": { "labels": labels }, "spec": pod },
                },
            })
        })
    }
}

/// Before pods change in another way, no service may lead clients to one set of them only. Refused where a job of another rollout than
/// `own` still sees to that.
pub(crate) async fn make_way(
    api: &Api,
    (namespace, name): (&str, &str),
    deployment: &Value,
    (manager, own): (&str, Option<&str>),
) -> Result<()> {
    let Some(told) = told(deployment).filter(|told| own != Some(told.id.as_str())) else { return Ok(()) };
    let mut traffic = Traffic { api, namespace, name, route: None };
    if traffic.led_to().await?.is_none() {
        return Ok(());
    }
    if goes_on(api, namespace, &told.id).await? {
        let hint =
            "wait for its end (`rollout status`), or `rollout abort`; `kubectl delete job` where nothing comes of that";
        let error = call("change", "patch", namespace, Some(name)).error(Sort::Conflict);
        return Err(error.because("a rollout of it goes on, which leads clients to one set of its pods").hint(hint));
    }
    let route = shares::applied(api, (namespace, name), manager).await?;
    traffic.route = route.as_ref().map(|(applied, found)| Route {
        api,
        applied,
        manager,
        id: &told.id,
        share: shares::weights(found).map_or(0, |[_, new]| new),
    });
    traffic.lead_to_all().await
}

/// What a deployment's clients come by, if shares of them are told apart there; refused where it is not as this manager applied it.
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
        // What a rollout left that nobody ended is taken back before the next one.
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
    let why = "the HTTPRoute that shares clients is not there as it was applied";
    let hint = "`drift` shows how; an `up` that changes no pods puts it right, or `--set rollout.strategy=rolling` replaces the pods without it";
    call("roll", "patch", namespace, Some(name)).error(Sort::Conflict).because(why).hint(hint)
}

async fn holder_is_gone(api: &Api, namespace: &str, route: &Value) -> Result<bool> {
    Ok(match shares::holder_of_route(route) {
        Some(id) => !goes_on(api, namespace, id).await?,
        None => false,
    })
}

/// Refuses a change of the route by which a rollout that goes on shares clients.
pub(crate) async fn leave_shares(api: &Api, namespace: &str, route: &Value) -> Result<()> {
    let Some(id) = shares::holder_of_route(route) else { return Ok(()) };
    if !goes_on(api, namespace, id).await? {
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
    let hint = "wait for its end (`rollout status`), or `rollout abort`";
    Err(call.error(Sort::Conflict).because("a rollout goes on, which shares clients by its weights").hint(hint))
}

/// Whether all pods of a deployment are of one template.
pub(super) fn is_one_set(deployment: &Value) -> bool {
    deployment["status"]["updatedReplicas"] == deployment["status"]["replicas"]
}

/// Whether the job of a rollout is there and has not ended.
async fn goes_on(api: &Api, namespace: &str, id: &str) -> Result<bool> {
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
    use textnlp_provider::component;

    use super::*;

    fn orders() -> Orders {
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
        Orders {
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

    #[test]
    fn a_held_deployment_is_what_is_wanted_for_a_few_pods() {
        let held = orders().held();
        assert_eq!(
            (&held["spec"]["release"], &held["metadata"]["annotations"][HELD]),
            (&json!("new"), &json!("0123456789abcdef"))
        );
        assert_eq!(held["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "10%");
        let both = Orders { canary: Canary { share: None, ..orders().canary }, ..orders() };
        assert_eq!(both.held()["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "100%", "a second set");
        // `progressDeadlineSeconds` has to be the longer one, and both are numbers of 32 bits.
        let (ready, progress) = (&held["spec"]["minReadySeconds"], &held["spec"]["progressDeadlineSeconds"]);
        assert!(ready.as_u64() < progress.as_u64() && progress.as_u64() < Some(u64::from(u32::MAX >> 1)));
    }

    #[test]
    fn the_job_runs_the_program_that_is_there_and_no_variable_is_put_into_its_orders() {
        let deployment = json!({ "metadata": { "uid": "1" } });
        let mut orders = orders();
        orders.revert["spec"]["template"] = json!({ "spec": {
            "securityContext": { "runAsNonRoot": true },
            "nodeSelector": { "pool": "text" },
            "containers": [{ "name": "api", "image": "old", "command": ["p"], "securityContext": { "readOnlyRootFilesystem": true } }],
        } });
        let job = orders.job("rollout", &deployment).unwrap();
        let pod = &job["spec"]["template"]["spec"];
        let one = &pod["containers"][0];
        assert_eq!(
            (&one["image"], &one["command"], &pod["serviceAccountName"]),
            (&json!("old"), &json!(["p"]), &json!(ACCOUNT))
        );
        assert!(pod["nodeSelector"]["pool"] == "text" && pod.get("tolerations").is_none(), "{pod:#}");
        let value = one["env"][0]["value"].as_str().unwrap();
        assert!(value.contains("$$(OLD)"));
        let read: Orders = serde_json::from_str(&value.replace("$$", "$")).unwrap();
        assert_eq!(read.revert["spec"]["release"], "$(OLD)");
        assert_eq!(one["args"].as_array().map(Vec::len), Some(4), "a program of before knows no more of them");
        let shared = Orders { route: Some(json!({})), ..orders.clone() }.job("rollout", &deployment).unwrap();
        assert_eq!(
            shared["spec"]["template"]["spec"]["containers"][0]["args"][4], "--shares",
            "nor of shares of clients"
        );
        for secret in [true, false] {
            let asked = component::Outside { url: "http://p".to_owned(), token: secret, queries: Vec::new() };
            let mut orders = orders.clone();
            orders.promote["metadata"]["annotations"]["textnlp-rollout-queries"] =
                json!(Outside::written(&asked, secret));
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
        let many = Orders { promote: json!("x".repeat(LONGEST)), ..orders };
        assert_eq!(many.job("rollout", &deployment), None, "no pod could begin with it");
    }
}
