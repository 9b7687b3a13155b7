//! What is done once beside the servers, in a job of its own: their program with other arguments, or what a schedule does at its time.

use std::time::Duration;

use serde_json::{Map, Value, json};
use textnlp_provider::{Error, Lineage, Result, Sort};
use tokio::time::Instant;

use crate::api::Api;
use crate::error::Call;
use crate::identity;
use crate::lower::SHARED_VOLUME;
use crate::provider::Kubernetes;
use crate::ready::{self, Ready};
use crate::table::{self, Row};
use crate::trouble;

/// What an errand may take, its pod's way to a node included.
const WITHIN: Duration = Duration::from_secs(180);
/// How often it is looked at: at first, and when it turns out to take its time.
const LOOK: Duration = Duration::from_millis(250);
const LOOK_LATER: Duration = Duration::from_secs(2);
/// How often it is told what it waits for.
const TELL: Duration = Duration::from_secs(15);
/// The most that is read of what it said.
const MOST: u32 = 4 << 20;
/// A job that a killed command left goes by itself after so many seconds.
const LEFT: u32 = 120;
/// How annotations begin out of which a pod's files are made.
const CARRIED: &str = "textnlp-";

/// What an errand came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errand {
    /// Whether it ended well.
    pub succeeded: bool,
    /// What it printed, on both of its streams; nothing where the cluster does not hand that over.
    pub said: String,
}

impl Kubernetes {
    /// Runs the program of a deployment's container with these arguments, with the configuration, secrets and user that the container has.
    /// What it prints is in the cluster's logs: nothing that is secret may be printed, and nothing secret may be an argument.
    ///
    /// An error is a deployment that is not of this lineage, a job that could not be made, or one that was not seen to its end within three
    /// minutes, and may have done its work all the same.
    pub async fn errand(
        &self,
        (namespace, lineage): (&str, Lineage),
        deployment: &str,
        container: &str,
        arguments: &[String],
    ) -> Result<Errand> {
        let api = self.api().await?;
        let call = call("read", "get", table::named("kubernetes.deployment"), namespace, Some(deployment));
        let servers = of_ours(&api, &call, lineage).await?;
        let Some(job) = job(&servers, container, arguments) else {
            let why = format!("it has no container `{container}`");
            return Err(call.error(Sort::Invalid).because(why));
        };
        let made = make(&api, namespace, &job).await?;
        let done = to_its_end(&api, namespace, container, &made, WITHIN, &|_| {}).await;
        // It would go by itself; what is wrong with that says nothing of what was done.
        let name = made["metadata"]["name"].as_str();
        let gone = self::call("remove", "delete", table::named("kubernetes.job"), namespace, name);
        let _ = api.delete(&gone, made["metadata"]["uid"].as_str().unwrap_or_default()).await;
        done
    }

    /// Does now what a schedule of this lineage does at its time, as a job of its own that stays for people to read, and waits for its end so
    /// long; meanwhile it tells what keeps it.
    pub async fn run_now(
        &self,
        (namespace, lineage): (&str, Lineage),
        schedule: &str,
        within: Duration,
        tell: &(dyn Fn(&str) + Sync),
    ) -> Result<Errand> {
        let api = self.api().await?;
        let call = call("read", "get", table::named("kubernetes.cron-job"), namespace, Some(schedule));
        let found = of_ours(&api, &call, lineage).await?;
        let owner = json!({
            "apiVersion": "batch/v1", "kind": "CronJob", "name": schedule, "uid": found["metadata"]["uid"],
            // Its controller counts what ended well among its own.
            "controller": true,
        });
        let mut job = found["spec"]["jobTemplate"].clone();
        job["apiVersion"] = json!("batch/v1");
        job["kind"] = json!("Job");
        job["metadata"]["generateName"] = json!(format!("{schedule}-now-"));
        job["metadata"]["ownerReferences"] = json!([owner]);
        job["spec"]["ttlSecondsAfterFinished"] = json!(7 * 24 * 3600);
        let made = make(&api, namespace, &job).await?;
        to_its_end(&api, namespace, schedule, &made, within, tell).await
    }

    /// When the schedule of a name and of this lineage last ended a run well, as the API server writes times; `None` where there was none.
    pub async fn last_success(&self, (namespace, lineage): (&str, Lineage), schedule: &str) -> Result<Option<String>> {
        let call = call("read", "get", table::named("kubernetes.cron-job"), namespace, Some(schedule));
        let found = of_ours(&self.api().await?, &call, lineage).await?;
        Ok(found["status"]["lastSuccessfulTime"].as_str().map(str::to_owned))
    }
}

/// An object that is this deployment's: names say nothing of which cluster a kubeconfig leads to today.
pub(crate) async fn of_ours(api: &Api, call: &Call<'_>, lineage: Lineage) -> Result<Value> {
    let Some(found) = api.get(call).await? else {
        return Err(call.error(Sort::NotFound).hint("`up` makes it; or does the kubeconfig lead to another cluster?"));
    };
    if identity::lineage(&found) == Some(lineage) {
        return Ok(found);
    }
    let why = format!("it is not of this deployment, {lineage}");
    let hint = "the kubeconfig leads to another cluster, or another deployment has this namespace: `kubectl config current-context`";
    Err(call.error(Sort::Conflict).because(why).hint(hint))
}

/// A job with the pod of a deployment, of which only one container is left. It goes with the deployment.
fn job(servers: &Value, container: &str, arguments: &[String]) -> Option<Value> {
    let mut spec = servers["spec"]["template"]["spec"].clone();
    let containers = spec["containers"].as_array()?;
    let mut one = containers.iter().find(|one| one["name"] == container)?.clone();
    let fields = one.as_object_mut()?;
    for of_a_server in ["ports", "startupProbe", "livenessProbe", "readinessProbe", "lifecycle"] {
        fields.shift_remove(of_a_server);
    }
    // No model is asked: a node need not pull them for it.
    if let Some(mounts) = fields.get_mut("volumeMounts").and_then(Value::as_array_mut) {
        mounts.retain(|mount| mount["name"] != SHARED_VOLUME);
    }
    // Kubernetes puts variables in: `$(NAME)` is what somebody typed, and stays so.
    one["args"] = arguments.iter().map(|argument| argument.replace('$', "$$")).collect();
    one["resources"] =
        json!({ "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "cpu": "1", "memory": "512Mi" } });
    let mounted: Vec<Value> =
        one["volumeMounts"].as_array().into_iter().flatten().map(|mount| mount["name"].clone()).collect();
    let volumes: Vec<Value> = spec["volumes"].as_array().into_iter().flatten().cloned().collect();
    let pod = spec.as_object_mut()?;
    for of_a_server in ["initContainers", "topologySpreadConstraints", "terminationGracePeriodSeconds"] {
        pod.shift_remove(of_a_server);
    }
    spec["volumes"] = volumes.into_iter().filter(|volume| mounted.contains(&volume["name"])).collect();
    spec["containers"] = json!([one]);
    spec["restartPolicy"] = json!("Never");
    let metadata = &servers["metadata"];
    let owner = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"], "uid": metadata["uid"],
    });
    let labels = json!({ "app.kubernetes.io/part-of": "textnlp", "app.kubernetes.io/name": "textnlp-errand" });
    // Where a rollout tells pods apart, each carries its own configuration.
    let carried: Map<String, Value> = servers["spec"]["template"]["metadata"]["annotations"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| name.starts_with(CARRIED))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    Some(json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "generateName": "textnlp-errand-", "namespace": metadata["namespace"], "labels": labels, "ownerReferences": [owner],
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": WITHIN.as_secs(),
            "ttlSecondsAfterFinished": LEFT,
            "template": { "metadata": { "labels": labels, "annotations": carried }, "spec": spec },
        },
    }))
}

async fn make(api: &Api, namespace: &str, job: &Value) -> Result<Value> {
    let jobs = call("make", "create", table::named("kubernetes.job"), namespace, None);
    api.ask(&jobs, &jobs.path(), job).await
}

async fn to_its_end(
    api: &Api,
    namespace: &str,
    container: &str,
    made: &Value,
    within: Duration,
    tell: &(dyn Fn(&str) + Sync),
) -> Result<Errand> {
    let row = table::named("kubernetes.job");
    let call = call("wait for", "get", row, namespace, made["metadata"]["name"].as_str());
    let (began, mut told) = (Instant::now(), Instant::now());
    loop {
        let is_late = began.elapsed() >= within;
        let job = match api.get(&call).await {
            Ok(Some(job)) => job,
            Ok(None) => return Err(call.error(Sort::NotFound).because("somebody removed it")),
            // The job goes on without us: an API server that is restarted, a token that is renewed.
            Err(error) if !is_late && matches!(error.sort, Sort::Unavailable | Sort::Throttled { .. }) => {
                tokio::time::sleep(LOOK_LATER).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let succeeded = match ready::job(&job) {
            Ready::Yes => true,
            Ready::Never(_) => false,
            Ready::NotYet(why) if is_late => {
                return Err(call.error(Sort::Unavailable).because(trouble::of_pods(api, row, &job, why).await));
            }
            Ready::NotYet(why) => {
                if told.elapsed() >= TELL {
                    tell(&trouble::of_pods(api, row, &job, why).await);
                    told = Instant::now();
                }
                tokio::time::sleep(if began.elapsed() < TELL { LOOK } else { LOOK_LATER }).await;
                continue;
            }
        };
        // What was done is done, whether its words can be had or not.
        let said = said(api, namespace, container, &job).await;
        return match (said, succeeded) {
            (Ok(said), _) => Ok(Errand { succeeded, said }),
            (Err(_), true) => Ok(Errand { succeeded, said: String::new() }),
            (Err(error), false) => Err(error),
        };
    }
}

/// What its pod printed, that of its last try; a pod that never began has said nothing.
async fn said(api: &Api, namespace: &str, container: &str, job: &Value) -> Result<String> {
    let pods = call("list", "list", &trouble::POD, namespace, None);
    let uid = job["metadata"]["uid"].as_str().unwrap_or_default();
    let mut pods = api.list(&pods, &format!("batch.kubernetes.io/controller-uid={uid}")).await?;
    pods.sort_by_key(|pod| {
        (pod["status"]["phase"] == "Succeeded", pod["metadata"]["creationTimestamp"].as_str().map(str::to_owned))
    });
    let Some(pod) = pods.last().and_then(|pod| pod["metadata"]["name"].as_str()) else { return Ok(String::new()) };
    let call = call("read the log of", "get", &trouble::POD, namespace, Some(pod));
    api.whole_log(&call, container, MOST).await
}

fn call<'a>(
    action: &'static str,
    verb: &'static str,
    row: &'static Row,
    namespace: &'a str,
    name: Option<&'a str>,
) -> Call<'a> {
    Call { action, verb, row, namespace: Some(namespace), name }
}

impl Errand {
    /// The last line that is a JSON object: an answer, among what a program tells of its work.
    pub fn answer(&self) -> Option<Value> {
        let objects = self.said.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line.trim()).ok());
        objects.into_iter().find(Value::is_object)
    }

    /// The same as an error, with the end of what was said.
    pub fn failure(&self) -> Error {
        let lines: Vec<&str> = self.said.lines().rev().take(5).collect();
        let end: Vec<&str> = lines.into_iter().rev().collect();
        Error::new(Sort::Invalid, "run", "a job in the cluster").because(end.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_the_one_container_and_what_it_needs() {
        let servers = json!({
            "metadata": { "name": "api", "namespace": "here", "uid": "1" },
            "spec": { "template": { "metadata": { "annotations": { "textnlp-config": "c", "mesh/inject": "true" } }, "spec": {
                "serviceAccountName": "api",
                "securityContext": { "runAsNonRoot": true },
                "terminationGracePeriodSeconds": 60,
                "initContainers": [{ "name": "models" }],
                "containers": [
                    { "name": "api", "image": "a", "command": ["p"], "args": ["serve"], "readinessProbe": {}, "ports": [],
                      "env": [{ "name": "A", "value": "1" }], "volumeMounts": [{ "name": "config" }, { "name": "shared-models" }] },
                    { "name": "gateway", "image": "a" },
                ],
                "volumes": [{ "name": "config" }, { "name": "models" }, { "name": "shared-models" }],
            } } },
        });
        let made = job(&servers, "api", &["serve".to_owned(), "a$(B)$$".to_owned()]).unwrap();
        let pod = &made["spec"]["template"]["spec"];
        assert_eq!(pod["volumes"], json!([{ "name": "config" }]));
        assert_eq!(made["spec"]["template"]["metadata"]["annotations"], json!({ "textnlp-config": "c" }));
        assert_eq!((&pod["restartPolicy"], &pod["serviceAccountName"]), (&json!("Never"), &json!("api")));
        assert!(pod.get("initContainers").is_none() && pod["securityContext"]["runAsNonRoot"] == true);
        let [one] = &pod["containers"].as_array().unwrap()[..] else { panic!("{pod:#}") };
        assert_eq!(one["args"], json!(["serve", "a$$(B)$$$$"]), "no variable is put in");
        assert!(one.get("readinessProbe").is_none() && one["env"][0]["value"] == "1");
        assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], "1");
        assert_eq!(job(&servers, "other", &[]), None);
    }

    #[test]
    fn an_answer_is_found_among_what_else_is_said() {
        let errand = |said: &str| Errand { succeeded: true, said: said.to_owned() };
        assert_eq!(errand("began\n{\"keys\":[]}\nwarning: slow\n").answer(), Some(json!({ "keys": [] })));
        assert_eq!(errand("error: x\n[1]").answer(), None);
    }
}
