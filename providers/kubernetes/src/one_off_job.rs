//! One-off jobs beside the servers: their program with other arguments, or one run of a CronJob.

use std::time::Duration;

use serde_json::{Map, Value, json};
use textnlp_provider::{Error, ErrorKind, Lineage, Result};
use tokio::time::Instant;

use crate::api::Api;
use crate::diagnosis;
use crate::error::Call;
use crate::identity;
use crate::lower::{ACCOUNT_OF_PODS, SHARED_VOLUME, has_gpu, job_nodes};
use crate::provider::Kubernetes;
use crate::ready::{self, Ready};
use crate::table::{self, Row};

/// The timeout of a one-off job, scheduling of its pod included.
const JOB_TIMEOUT: Duration = Duration::from_secs(180);
/// The poll intervals: at first, and for longer jobs.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
const LATER_POLL_INTERVAL: Duration = Duration::from_secs(2);
/// The interval of progress messages.
const TELL: Duration = Duration::from_secs(15);
/// The limit of the log that is read, in bytes.
const MAX_LOG_BYTES: u32 = 4 << 20;
/// The `ttlSecondsAfterFinished` of the job, for one whose operator was killed.
const LEFT: u32 = 120;
/// The prefix of annotations that a pod mounts as files.
const CARRIED: &str = "textnlp-";

/// The result of a one-off job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobResult {
    /// Whether it succeeded.
    pub succeeded: bool,
    /// Its output (stdout and stderr); empty if the cluster does not return it.
    pub output: String,
}

/// A job that is deleted if its run is dropped, such as by Ctrl-C: its pod gets TERM.
struct RunningJob {
    api: Api,
    namespace: String,
    object: Value,
    has_ended: bool,
}

impl RunningJob {
    fn removal<'a>(namespace: &'a str, object: &'a Value) -> (Call<'a>, &'a str) {
        let name = object["metadata"]["name"].as_str();
        let call = call("remove", "delete", table::named("kubernetes.job"), namespace, name);
        (call, object["metadata"]["uid"].as_str().unwrap_or_default())
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        // Without a runtime, the job ends by its deadline.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.has_ended {
            return;
        }
        let (api, namespace, object) = (self.api.clone(), self.namespace.clone(), self.object.take());
        runtime.spawn(async move {
            let (call, uid) = Self::removal(&namespace, &object);
            let _ = api.delete_in_background(&call, uid).await;
        });
    }
}

impl Kubernetes {
    /// Runs the program of a deployment's container with these arguments, and with the configuration, secrets and user
    /// of the container. Its output is in the cluster's logs: neither output nor arguments may contain secrets.
    ///
    /// An error if the deployment is not of this lineage, if the job could not be created, or if its end was not seen
    /// within three minutes and what it `takes` by design. In the last case the job may have done its work. Dropping the
    /// run deletes the job.
    pub async fn run_job(
        &self,
        (namespace, lineage): (&str, Lineage),
        deployment: &str,
        container: &str,
        arguments: &[String],
        takes: Duration,
    ) -> Result<JobResult> {
        let api = self.api().await?;
        let call = call("read", "get", table::named("kubernetes.deployment"), namespace, Some(deployment));
        let servers = read_own(&api, &call, lineage).await?;
        let within = JOB_TIMEOUT + takes;
        let Some(job) = job(&servers, container, arguments, within) else {
            let why = format!("it has no container `{container}`");
            return Err(call.error(ErrorKind::Invalid).because(why));
        };
        let object = make(&api, namespace, &job).await?;
        let mut running = RunningJob { api: api.clone(), namespace: namespace.to_owned(), object, has_ended: false };
        let done = wait_for_end(&api, namespace, container, &running.object, within, &|_| {}).await;
        // The job has a TTL, so a failed deletion does not matter.
        let (removal, uid) = RunningJob::removal(namespace, &running.object);
        let _ = api.delete(&removal, uid).await;
        running.has_ended = true;
        done
    }

    /// Runs a CronJob of this lineage now, as a job that is removed as its others are, and waits for its end up to the
    /// timeout. Progress goes to `tell`.
    pub async fn run_now(
        &self,
        (namespace, lineage): (&str, Lineage),
        schedule: &str,
        within: Duration,
        tell: &(dyn Fn(&str) + Sync),
    ) -> Result<JobResult> {
        let api = self.api().await?;
        let call = call("read", "get", table::named("kubernetes.cron-job"), namespace, Some(schedule));
        let found = read_own(&api, &call, lineage).await?;
        let owner = json!({
            "apiVersion": "batch/v1", "kind": "CronJob", "name": schedule, "uid": found["metadata"]["uid"],
            // The CronJob controller counts the job among its own.
            "controller": true,
        });
        let mut job = found["spec"]["jobTemplate"].clone();
        job["apiVersion"] = json!("batch/v1");
        job["kind"] = json!("Job");
        job["metadata"]["generateName"] = json!(format!("{schedule}-now-"));
        job["metadata"]["ownerReferences"] = json!([owner]);
        let made = make(&api, namespace, &job).await?;
        wait_for_end(&api, namespace, schedule, &made, within, tell).await
    }

    /// The last successful run of a CronJob of this lineage, as the API server writes times; `None` if there was none.
    pub async fn last_success(&self, (namespace, lineage): (&str, Lineage), schedule: &str) -> Result<Option<String>> {
        let call = call("read", "get", table::named("kubernetes.cron-job"), namespace, Some(schedule));
        let found = read_own(&self.api().await?, &call, lineage).await?;
        Ok(found["status"]["lastSuccessfulTime"].as_str().map(str::to_owned))
    }
}

/// Reads an object and checks its lineage: a kubeconfig may lead to another cluster than before.
pub(crate) async fn read_own(api: &Api, call: &Call<'_>, lineage: Lineage) -> Result<Value> {
    let Some(found) = api.get(call).await? else {
        return Err(call
            .error(ErrorKind::NotFound)
            .hint("`up` creates it; or check whether the kubeconfig is for another cluster"));
    };
    if identity::lineage(&found) == Some(lineage) {
        return Ok(found);
    }
    let why = format!("it does not belong to this deployment, {lineage}");
    let hint = "the kubeconfig is for another cluster, or another deployment has this namespace: `kubectl config current-context`";
    Err(call.error(ErrorKind::Conflict).because(why).hint(hint))
}

/// A job with a deployment's pod, reduced to one container, that ends within this time. Its owner is the deployment.
fn job(servers: &Value, container: &str, arguments: &[String], within: Duration) -> Option<Value> {
    let mut spec = servers["spec"]["template"]["spec"].clone();
    let containers = spec["containers"].as_array()?;
    let mut one = containers.iter().find(|one| one["name"] == container)?.clone();
    let fields = one.as_object_mut()?;
    for of_a_server in ["ports", "startupProbe", "livenessProbe", "readinessProbe", "lifecycle"] {
        fields.shift_remove(of_a_server);
    }
    // The job needs no model, so the node does not pull any.
    if let Some(mounts) = fields.get_mut("volumeMounts").and_then(Value::as_array_mut) {
        mounts.retain(|mount| mount["name"] != SHARED_VOLUME);
    }
    // Kubernetes expands `$(NAME)` in arguments; user input must stay as typed.
    one["args"] = arguments.iter().map(|argument| argument.replace('$', "$$")).collect();
    one["resources"] =
        json!({ "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "cpu": "1", "memory": "512Mi" } });
    let mounted: Vec<Value> =
        one["volumeMounts"].as_array().into_iter().flatten().map(|mount| mount["name"].clone()).collect();
    let volumes: Vec<Value> = spec["volumes"].as_array().into_iter().flatten().cloned().collect();
    let pod = spec.as_object_mut()?;
    let of_a_server =
        ["initContainers", "topologySpreadConstraints", "terminationGracePeriodSeconds", "nodeSelector", "tolerations"];
    for field in of_a_server {
        pod.shift_remove(field);
    }
    let server = &servers["spec"]["template"]["spec"];
    pod.extend(job_nodes(server));
    if has_gpu(server) {
        // Nodes without a GPU may not have the runtime of those with one.
        pod.shift_remove("runtimeClassName");
    }
    spec["volumes"] = volumes.into_iter().filter(|volume| mounted.contains(&volume["name"])).collect();
    spec["containers"] = json!([one]);
    spec["restartPolicy"] = json!("Never");
    // That of the servers may sign in to buckets.
    spec["serviceAccountName"] = json!(ACCOUNT_OF_PODS);
    let metadata = &servers["metadata"];
    let owner = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"], "uid": metadata["uid"],
    });
    let labels = json!({ "app.kubernetes.io/part-of": "textnlp", "app.kubernetes.io/name": "textnlp-errand" });
    // With canary rollouts, each pod carries its configuration in annotations.
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
            "activeDeadlineSeconds": within.as_secs(),
            "ttlSecondsAfterFinished": LEFT,
            "template": { "metadata": { "labels": labels, "annotations": carried }, "spec": spec },
        },
    }))
}

async fn make(api: &Api, namespace: &str, job: &Value) -> Result<Value> {
    let jobs = call("make", "create", table::named("kubernetes.job"), namespace, None);
    api.ask(&jobs, &jobs.path(), job).await
}

async fn wait_for_end(
    api: &Api,
    namespace: &str,
    container: &str,
    made: &Value,
    within: Duration,
    tell: &(dyn Fn(&str) + Sync),
) -> Result<JobResult> {
    let row = table::named("kubernetes.job");
    let call = call("wait for", "get", row, namespace, made["metadata"]["name"].as_str());
    let (began, mut last_report) = (Instant::now(), Instant::now());
    loop {
        let is_late = began.elapsed() >= within;
        let job = match api.get(&call).await {
            Ok(Some(job)) => job,
            Ok(None) => return Err(call.error(ErrorKind::NotFound).because("it was removed")),
            // The job continues while the API server restarts or a token is renewed.
            Err(error) if !is_late && matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Throttled { .. }) => {
                tokio::time::sleep(LATER_POLL_INTERVAL).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let succeeded = match ready::job(&job) {
            Ready::Yes => true,
            Ready::Never(_) => false,
            Ready::NotYet(why) if is_late => {
                return Err(call.error(ErrorKind::Unavailable).because(diagnosis::of_pods(api, row, &job, why).await));
            }
            Ready::NotYet(why) => {
                if last_report.elapsed() >= TELL {
                    tell(&diagnosis::of_pods(api, row, &job, why).await);
                    last_report = Instant::now();
                }
                tokio::time::sleep(if began.elapsed() < TELL { POLL_INTERVAL } else { LATER_POLL_INTERVAL }).await;
                continue;
            }
        };
        // The result counts, also if the log cannot be read.
        let output = job_log(api, namespace, container, &job).await;
        return match (output, succeeded) {
            (Ok(output), _) => Ok(JobResult { succeeded, output }),
            (Err(_), true) => Ok(JobResult { succeeded, output: String::new() }),
            (Err(error), false) => Err(error),
        };
    }
}

/// The log of the job's last pod; empty if it never started.
async fn job_log(api: &Api, namespace: &str, container: &str, job: &Value) -> Result<String> {
    let pods = call("list", "list", &diagnosis::POD, namespace, None);
    let uid = job["metadata"]["uid"].as_str().unwrap_or_default();
    let mut pods = api.list(&pods, &format!("batch.kubernetes.io/controller-uid={uid}")).await?;
    pods.sort_by_key(|pod| {
        (pod["status"]["phase"] == "Succeeded", pod["metadata"]["creationTimestamp"].as_str().map(str::to_owned))
    });
    let Some(pod) = pods.last() else { return Ok(String::new()) };
    let call = call("read the log of", "get", &diagnosis::POD, namespace, pod["metadata"]["name"].as_str());
    api.whole_log(&call, failed_step(pod).unwrap_or(container), MAX_LOG_BYTES).await
}

/// The first step that failed before the container of the job started.
fn failed_step(pod: &Value) -> Option<&str> {
    let steps = pod["status"]["initContainerStatuses"].as_array()?;
    let failed =
        steps.iter().find(|step| step["state"]["terminated"]["exitCode"].as_i64().is_some_and(|code| code != 0));
    failed?["name"].as_str()
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

impl JobResult {
    /// The last line that is a JSON object: the result, which follows the program's progress messages.
    pub fn answer(&self) -> Option<Value> {
        let objects = self.output.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line.trim()).ok());
        objects.into_iter().find(Value::is_object)
    }

    /// The result as an error, with the end of the output.
    pub fn failure(&self) -> Error {
        let lines: Vec<&str> = self.output.lines().rev().take(5).collect();
        let end: Vec<&str> = lines.into_iter().rev().collect();
        Error::new(ErrorKind::Invalid, "run", "a job in the cluster").because(end.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use textnlp_provider::cluster::GPU;

    use super::*;

    #[test]
    fn one_off_job_has_one_container_and_what_it_needs() {
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
        let made = job(&servers, "api", &["serve".to_owned(), "a$(B)$$".to_owned()], JOB_TIMEOUT * 2).unwrap();
        let pod = &made["spec"]["template"]["spec"];
        assert_eq!(pod["volumes"], json!([{ "name": "config" }]));
        assert_eq!(made["spec"]["template"]["metadata"]["annotations"], json!({ "textnlp-config": "c" }));
        assert_eq!((&pod["restartPolicy"], &pod["serviceAccountName"]), (&json!("Never"), &json!("textnlp-api")));
        assert!(pod.get("initContainers").is_none() && pod["securityContext"]["runAsNonRoot"] == true);
        let [one] = &pod["containers"].as_array().unwrap()[..] else { panic!("{pod:#}") };
        assert_eq!(one["args"], json!(["serve", "a$$(B)$$$$"]), "no variable is put in");
        assert!(one.get("readinessProbe").is_none() && one["env"][0]["value"] == "1");
        assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], "1");
        assert_eq!(made["spec"]["activeDeadlineSeconds"], 360);
        assert_eq!(job(&servers, "other", &[], JOB_TIMEOUT), None);
    }

    #[tokio::test]
    async fn job_of_a_dropped_run_is_deleted() {
        let (sender, mut requests) = tokio::sync::mpsc::unbounded_channel();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let _ = sender.send(format!("{} {}", request.method(), request.uri().path()));
            async {
                let answer = http::Response::builder().body("{}".to_owned());
                answer.map_err(|error| -> Box<dyn std::error::Error + Send + Sync> { error.into() })
            }
        });
        let api = Api::new(kube::Client::new(service, "here"), None);
        let run = |name: &str, has_ended| {
            let object = json!({ "metadata": { "name": name, "uid": "1" } });
            RunningJob { api: api.clone(), namespace: "here".to_owned(), object, has_ended }
        };
        drop(run("ended", true));
        drop(run("dropped", false));
        let request = requests.recv().await.unwrap();
        assert_eq!(request, "DELETE /apis/batch/v1/namespaces/here/jobs/dropped");
    }

    #[test]
    fn one_off_job_of_servers_with_gpus_needs_none() {
        let mut servers = json!({ "metadata": { "name": "api", "namespace": "here", "uid": "1" } });
        servers["spec"]["template"]["spec"] = json!({
            "nodeSelector": { "textnlp/pool": "gpu" },
            "tolerations": [{ "key": GPU, "operator": "Exists", "effect": "NoSchedule" }],
            "runtimeClassName": "nvidia",
            "containers": [{ "name": "api", "resources": { "limits": { "cpu": "4", GPU: 1 } } }],
        });
        let pod =
            |servers: &Value| job(servers, "api", &[], JOB_TIMEOUT).unwrap()["spec"]["template"]["spec"].to_string();
        assert!(
            !["nvidia", "textnlp/pool"].iter().any(|of_a_gpu| pod(&servers).contains(of_a_gpu)),
            "{}",
            pod(&servers)
        );
        servers["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({});
        servers["spec"]["template"]["spec"]["runtimeClassName"] = json!("gvisor");
        assert!(pod(&servers).contains("gvisor"), "{}", pod(&servers));
    }

    #[test]
    fn log_of_a_failed_job_is_that_of_its_failed_step() {
        let pod = |code: i32| {
            let state = json!({ "terminated": { "exitCode": code } });
            json!({ "status": { "initContainerStatuses": [{ "name": "dump", "state": state }] } })
        };
        assert_eq!((failed_step(&pod(1)), failed_step(&pod(0)), failed_step(&json!({}))), (Some("dump"), None, None));
    }

    #[test]
    fn job_answer_is_found_among_other_output() {
        let result = |output: &str| JobResult { succeeded: true, output: output.to_owned() };
        assert_eq!(result("began\n{\"keys\":[]}\nwarning: slow\n").answer(), Some(json!({ "keys": [] })));
        assert_eq!(result("error: x\n[1]").answer(), None);
    }
}
