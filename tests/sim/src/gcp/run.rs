//! Cloud Run: services, their revisions, and the requests that they answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::cloud::{Cloud, Effect, Family, put};
use super::kinds::{KIND, Kind, begin, read, typed};
use super::problem::Problem;
use super::tokens::Identity;
use super::{Call, Handler, errors, iam, services};
use crate::aws::protocol::Request;
use crate::clock::later;
use crate::{Behaviour, Source};

/// The role that calls a service.
const INVOKER: &str = "roles/run.invoker";
/// The longest name of a service.
const MOST: usize = 49;
/// How long a revision starts, and a deletion takes.
const STARTS: Duration = Duration::from_secs(40);
const DELETES: Duration = Duration::from_secs(10);
/// The CPUs of an instance, each with its least and its most memory in MiB.
const SIZES: [(&str, u64, u64); 5] =
    [("1", 512, 4096), ("2", 512, 8192), ("4", 2048, 16_384), ("6", 4096, 24_576), ("8", 4096, 32_768)];
/// The quota of GPUs in a region, and its usual limit.
const GPUS: (&str, f64) = ("NvidiaL4GpuAllocNoZonalRedundancyPerProjectRegion", 3.0);
/// The metric of that quota.
const GPU_METRIC: &str = "run.googleapis.com/nvidia_l4_gpu_allocation_no_zonal_redundancy";
/// Members that an update changes.
const CHANGEABLE: [&str; 5] = ["labels", "annotations", "template", "traffic", "ingress"];

/// What an instance runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Container {
    /// The image by its digest.
    pub image: String,
    /// The variables.
    pub environment: BTreeMap<String, String>,
}

/// Answers a request in place of instances, by its method, its path and its body: the status and the body.
pub type Containers = Arc<dyn Fn(&Container, &str, &str, &[u8]) -> (u16, Vec<u8>) + Send + Sync>;

/// What a request to a service comes to.
pub(crate) enum Answered {
    /// Cloud Run refuses it.
    Refused(u16, &'static str),
    /// An instance of this container answers it.
    By(Container, Containers),
}

pub(crate) const KINDS: &[Kind] = &[Kind {
    methods: "run.projects.locations.services",
    verbs: &["get", "list"],
    collection: ("run", "services"),
    items: "services",
    ..KIND
}];

pub(crate) const HANDLERS: &[(&str, Handler)] = &[
    ("run.projects.locations.services.create", create),
    ("run.projects.locations.services.patch", patch),
    ("run.projects.locations.services.delete", delete),
    ("run.projects.locations.operations.get", super::kinds::operation),
];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "a service whose first revision is not ready stays, and its creation fails with code 13",
        Source::Report("hashicorp/terraform-provider-google#17245"),
    ),
    rule(
        "after a failed update the service shows the new template, and the old revision answers",
        Source::Report("hashicorp/terraform-provider-google#16765"),
    ),
    rule(
        "the name of a deleted service is refused for a while, although no read shows it",
        Source::Report("hashicorp/terraform-provider-google#7854"),
    ),
    rule(
        "reconciling and terminalCondition tell whether the newest generation is ready; where it failed, observedGeneration is \
            that of the revision that answers, or none",
        Source::Model,
    ),
    rule(
        "a revision whose image does not exist, or whose container does not listen, is not ready",
        Source::Documentation("https://cloud.google.com/run/docs/troubleshooting"),
    ),
    rule(
        "a forced revision has the template of the one before it",
        Source::Documentation("https://cloud.google.com/run/docs/reference/rest/v2/projects.locations.services/patch"),
    ),
    rule(
        "the CPUs of an instance bound its memory",
        Source::Documentation("https://cloud.google.com/run/docs/configuring/services/cpu"),
    ),
    rule(
        "a service with GPUs has at most as many instances as the quota of the region has GPUs",
        Source::Documentation("https://cloud.google.com/run/docs/configuring/services/gpu"),
    ),
    rule(
        "a request needs an ID token for the address of the service, of a member with run.invoker: else it is 401 or 403",
        Source::Documentation("https://cloud.google.com/run/docs/authenticating/service-to-service"),
    ),
    rule(
        "a revision runs as an account of the project, as which the caller has to be allowed to act",
        Source::Documentation("https://cloud.google.com/run/docs/reference/iam/roles#additional-configuration"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "run", what, source }
}

fn invalid(message: impl Into<String>) -> Problem {
    Problem::new("INVALID_ARGUMENT", message)
}

/// The quota of GPUs as Service Usage shows it.
pub(crate) fn quota(cloud: &Cloud) -> Value {
    services::metric(cloud, GPUS, GPU_METRIC, "Total Nvidia L4 GPU allocation without zonal redundancy")
}

/// Refuses a template that no revision can have.
fn check(cloud: &Cloud, call: &Call<'_>, template: &Value) -> Result<(), Problem> {
    let container = &template["containers"][0];
    if container["image"].as_str().is_none_or(str::is_empty) {
        return Err(invalid("template.containers[0].image: must be set."));
    }
    let limits = &container["resources"]["limits"];
    let cpu = limits["cpu"].as_str().unwrap_or("1");
    let Some((_, least, most)) = SIZES.iter().find(|(known, ..)| *known == cpu) else {
        return Err(invalid(format!("template.containers[0].resources.limits.cpu: Invalid value specified: {cpu}.")));
    };
    let memory = limits["memory"].as_str().unwrap_or("512Mi");
    let mib = memory.strip_suffix("Mi").and_then(|number| number.parse::<u64>().ok());
    let mib = mib.or_else(|| Some(memory.strip_suffix("Gi")?.parse::<u64>().ok()? * 1024)).unwrap_or_default();
    if !(*least..=*most).contains(&mib) {
        let message = format!("Invalid value specified for memory: {memory} is not available with {cpu} CPU.");
        return Err(invalid(message));
    }
    if limits.get("nvidia.com/gpu").is_some() {
        let region = call.name.split('/').nth(3).unwrap_or_default();
        let limit = services::quota(cloud, region, GPUS);
        let wanted = template["scaling"]["maxInstanceCount"].as_f64().unwrap_or(100.0);
        if wanted > limit {
            let message = format!("Max instances must be set to {limit:.0} or fewer in order to set GPU requirements.");
            return Err(invalid(message));
        }
    }
    let account = template["serviceAccount"].as_str().unwrap_or_default();
    let of_project = format!("iam/projects/{}/serviceAccounts/{account}", call.project);
    if account.ends_with(".iam.gserviceaccount.com") && cloud.get(&of_project).is_none() {
        return Err(Problem::new("NOT_FOUND", format!("Service account {account} does not exist.")));
    }
    Ok(())
}

/// The name of the revision of a generation.
fn revision(cloud: &Cloud, name: &str, generation: u64) -> String {
    let id = name.rsplit('/').next().unwrap_or_default();
    format!("{name}/revisions/{id}-{generation:05}-{}", cloud.random.hex(3))
}

fn condition(cloud: &Cloud, state: &str, message: Option<&str>) -> Value {
    let mut condition = json!({ "type": "Ready", "state": state, "lastTransitionTime": cloud.now().to_string() });
    if let Some(message) = message {
        condition["message"] = message.into();
        condition["reason"] = "REVISION_FAILED".into();
    }
    condition
}

/// Begins a new generation; `is_new` if it has a revision of its own.
fn reconcile(cloud: &mut Cloud, call: &Call<'_>, key: &str, mut body: Value, is_new: bool, kind: &str) -> Value {
    let name = key.split_once('/').map_or("", |(_, name)| name).to_owned();
    let generation = body["generation"].as_str().and_then(|text| text.parse::<u64>().ok()).unwrap_or_default() + 1;
    body["generation"] = generation.to_string().into();
    body["updateTime"] = cloud.now().to_string().into();
    body["etag"] = format!("\"{}\"", cloud.fingerprint()).into();
    body["reconciling"] = true.into();
    body["terminalCondition"] = condition(cloud, "CONDITION_RECONCILING", None);
    if is_new {
        body["latestCreatedRevision"] = revision(cloud, &name, generation).into();
    }
    let created = cloud.objects.get(key).map(|object| object.created);
    cloud.put(key, body);
    if let (Some(created), Some(object)) = (created, cloud.objects.get_mut(key)) {
        object.created = created;
    }
    let target = key.to_owned();
    let effect: Effect = Box::new(move |cloud| settle(cloud, &target, is_new));
    let metadata = json!({ "@type": "type.googleapis.com/google.cloud.run.v2.Service" });
    begin(cloud, call, Family::LongRunning, kind, key, if is_new { STARTS } else { Duration::ZERO }, metadata, effect)
}

/// Why a revision of this template does not become ready.
fn fault(cloud: &Cloud, template: &Value) -> Option<String> {
    let image = template["containers"][0]["image"].as_str().unwrap_or_default();
    let is_own = image.contains("-docker.pkg.dev/");
    if is_own && !cloud.objects.values().any(|object| object.body["uri"] == image) {
        return Some(format!("Image '{image}' not found."));
    }
    cloud.mute.then(|| {
        "The user-provided container failed to start and listen on the port defined provided by the PORT=8080 environment \
         variable within the allocated timeout."
            .to_owned()
    })
}

/// Ends a generation.
fn settle(cloud: &mut Cloud, key: &str, is_new: bool) -> Result<Value, Value> {
    let Some(mut body) = cloud.get(key).cloned() else { return Ok(Value::Null) };
    let template = body["template"].clone();
    let why = if is_new { fault(cloud, &template) } else { None };
    body["reconciling"] = false.into();
    let created = body["latestCreatedRevision"].clone();
    let message = why.map(|why| {
        let id = created.as_str().and_then(|name| name.rsplit('/').next()).unwrap_or_default();
        format!("Revision '{id}' is not ready and cannot serve traffic. {why}")
    });
    match &message {
        Some(message) => body["terminalCondition"] = condition(cloud, "CONDITION_FAILED", Some(message)),
        None if is_new || body["latestReadyRevision"] == created => {
            body["terminalCondition"] = condition(cloud, "CONDITION_SUCCEEDED", None);
            body["observedGeneration"] = body["generation"].clone();
            body["latestReadyRevision"] = created;
            let latest = json!({ "type": "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST", "percent": 100 });
            body["trafficStatuses"] = json!([latest]);
            cloud.serving.insert(key.to_owned(), template);
        }
        // A change of labels repairs nothing.
        None => body["terminalCondition"] = condition(cloud, "CONDITION_FAILED", Some("The revision is not ready.")),
    }
    let shown = typed("google.cloud.run.v2.Service", &body);
    if let Some(object) = cloud.objects.get_mut(key) {
        object.body = body;
    }
    message.map_or(Ok(shown), |message| Err(Problem::new("INTERNAL", message).status()))
}

fn create(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let id = call.parameter("serviceId").unwrap_or_default();
    if !errors::is_name(id, MOST) {
        return Err(invalid(format!("Invalid service name '{id}': it has at most {MOST} characters.")));
    }
    errors::check_labels(&call.body["labels"])?;
    let name = format!("{}/{id}", call.name);
    let key = format!("run/{name}");
    let is_burnt = cloud.burnt.get(&key).is_some_and(|until| *until > cloud.now());
    if is_burnt || cloud.objects.contains_key(&key) {
        return Err(errors::already_exists("run", &name));
    }
    check(cloud, call, &call.body["template"])?;
    let mut body = call.body.clone();
    body["name"] = name.clone().into();
    body["uid"] = cloud.random.uuid().into();
    body["createTime"] = cloud.now().to_string().into();
    body["creator"] = call.user.clone().into();
    let parts: Vec<&str> = name.split('/').collect();
    if let [_, project, _, location, ..] = parts[..] {
        body["uri"] = format!("{}/run.app/{project}/{location}/{id}", cloud.front).into();
    }
    Ok(reconcile(cloud, call, &key, body, true, "create"))
}

fn patch(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let mut body = read(cloud, call)?;
    let before = body["template"].clone();
    let mask = call.parameter("updateMask").unwrap_or_default().to_owned();
    for path in mask.split(',').filter(|path| !path.is_empty()) {
        if !CHANGEABLE.contains(&path) {
            return Err(invalid(format!("Invalid update mask: {path}")));
        }
        put(&mut body, &format!("/{path}"), call.body[path].clone());
    }
    if mask.is_empty() {
        return Err(Problem::new("UNIMPLEMENTED", "an update without a mask is not simulated"));
    }
    errors::check_labels(&body["labels"])?;
    check(cloud, call, &body["template"])?;
    let is_new = before != body["template"] || call.parameter("forceNewRevision") == Some("true");
    Ok(reconcile(cloud, call, &call.key(), body, is_new, "update"))
}

fn delete(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    read(cloud, call)?;
    let key = call.key();
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        let held = cloud.lag(&cloud.conduct.service_hold.clone());
        cloud.burnt.insert(target.clone(), later(cloud.now(), held));
        cloud.policies.remove(&target);
        cloud.serving.remove(&target);
        let body = cloud.objects.remove(&target).map(|object| object.body).unwrap_or_default();
        Ok(typed("google.cloud.run.v2.Service", &body))
    });
    let metadata = json!({ "@type": "type.googleapis.com/google.cloud.run.v2.Service" });
    Ok(begin(cloud, call, Family::LongRunning, "delete", &key, DELETES, metadata, effect))
}

/// What a request to a service comes to: `PROJECT/LOCATION/NAME/…`. `who` tells what an ID token is.
pub(crate) fn answer(
    cloud: &Cloud,
    request: &Request,
    path: &str,
    who: impl Fn(&str) -> Option<Identity>,
) -> (Answered, String) {
    let mut parts = path.splitn(4, '/');
    let mut part = || parts.next().unwrap_or_default();
    let (project, location, name, rest) = (part(), part(), part(), part());
    let key = format!("run/projects/{project}/locations/{location}/services/{name}");
    let query = if request.raw_query.is_empty() { String::new() } else { format!("?{}", request.raw_query) };
    let rest = format!("/{rest}{query}");
    let Some(body) = cloud.get(&key) else { return (Answered::Refused(404, "Page not found"), rest) };
    let header = request.header("x-serverless-authorization").or_else(|| request.header("authorization"));
    let token = header.and_then(|value| value.strip_prefix("Bearer "));
    let identity = token.map(|token| who(token).filter(|identity| body["uri"] == identity.audience));
    let refused = match identity {
        // A request without a token is one of all users.
        None => (!iam::grants(cloud, &key, INVOKER, "allUsers")).then_some(403),
        Some(None) => Some(401),
        Some(Some(identity)) => (!iam::grants(cloud, &key, INVOKER, &super::member(&identity.email))).then_some(403),
    };
    if let Some(status) = refused {
        return (
            Answered::Refused(status, "Your client does not have permission to get this URL from this server."),
            rest,
        );
    }
    let (Some(template), Some(containers)) = (cloud.serving.get(&key), &cloud.containers) else {
        return (Answered::Refused(503, "Service Unavailable"), rest);
    };
    let container = &template["containers"][0];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let variables = container["env"].as_array().into_iter().flatten();
    let environment = variables.map(|one| (text(&one["name"]), text(&one["value"]))).collect();
    (Answered::By(Container { image: text(&container["image"]), environment }, containers.clone()), rest)
}
