//! Vertex AI: models, endpoints, the models that are deployed at them, and the requests that they answer.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::cloud::{Cloud, Effect, Family};
use super::kinds::{KIND, Kind, Update, begin, read, typed};
use super::problem::Problem;
use super::run::{Answered, Container};
use super::{Call, Handler, errors, services};
use crate::aws::protocol::Request;
use crate::{Behaviour, Source};

/// The service in keys.
const SERVICE: &str = "aiplatform";
/// The path of requests to endpoints with names of their own, which all have this one.
pub(crate) const PREDICTIONS: &str = "prediction.vertexai.goog";
/// The permission of requests.
const PREDICT: &str = "aiplatform.endpoints.predict";
/// The longest request to an endpoint with a name of its own.
const MOST_BYTES: usize = 10_000_000;
/// How long an upload, a deployment and any other change take.
const UPLOADS: Duration = Duration::from_secs(30);
const DEPLOYS: Duration = Duration::from_secs(900);
const CHANGES: Duration = Duration::from_secs(10);
/// What a deployment is for itself in a traffic split.
const ITSELF: &str = "0";
/// The quotas of GPUs of deployed models: the GPU, the end of the metric, and the usual limit.
const GPUS: &[(&str, &str, f64)] = &[
    ("NVIDIA_TESLA_T4", "custom_model_serving_nvidia_t4_gpus", 8.0),
    ("NVIDIA_L4", "custom_model_serving_nvidia_l4_gpus", 8.0),
    ("NVIDIA_TESLA_A100", "custom_model_serving_nvidia_a100_gpus", 8.0),
];
/// Members of resources that change.
const MUTABLE: [&str; 3] = ["minReplicaCount", "maxReplicaCount", "autoscalingMetricSpecs"];

pub(crate) const KINDS: &[Kind] = &[
    Kind {
        methods: "aiplatform.projects.locations.models",
        verbs: &["get", "list", "patch"],
        collection: (SERVICE, "models"),
        items: "models",
        update: Update::Mask(&["labels", "displayName", "description"]),
        ..KIND
    },
    Kind {
        methods: "aiplatform.projects.locations.endpoints",
        verbs: &["get", "list", "patch"],
        collection: (SERVICE, "endpoints"),
        items: "endpoints",
        update: Update::Mask(&["labels", "displayName", "description", "trafficSplit"]),
        check_update: |_, _, _, after| check_split(&after["trafficSplit"], &ids(after)),
        ..KIND
    },
];

pub(crate) const HANDLERS: &[(&str, Handler)] = &[
    ("aiplatform.projects.locations.models.upload", upload),
    ("aiplatform.projects.locations.models.delete", delete_model),
    ("aiplatform.projects.locations.models.operations.get", super::kinds::operation),
    ("aiplatform.projects.locations.endpoints.create", create),
    ("aiplatform.projects.locations.endpoints.delete", delete_endpoint),
    ("aiplatform.projects.locations.endpoints.update", update),
    ("aiplatform.projects.locations.endpoints.deployModel", deploy),
    ("aiplatform.projects.locations.endpoints.mutateDeployedModel", mutate),
    ("aiplatform.projects.locations.endpoints.undeployModel", undeploy),
    ("aiplatform.projects.locations.endpoints.operations.get", super::kinds::operation),
    ("aiplatform.projects.locations.endpoints.operations.list", super::kinds::operations),
];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule("an upload that names a parent is a new version of it; without one, the id must be free", Source::Model),
    rule("the image of a model is read at the upload", Source::Model),
    rule("a deployed model has the id of the request: 1 to 10 digits", Source::Model),
    rule(
        "in the traffic split of a deployment, 0 is the new deployed model; without a split, the traffic stays",
        Source::Model,
    ),
    rule("an endpoint has its name in DNS once its first model is deployed", Source::Model),
    rule("a traffic split names deployed models and adds up to 100, or is empty", Source::Model),
    rule(
        "a deployment whose container does not become ready fails with code 9, and leaves nothing at the endpoint",
        Source::Report("googleapis/python-aiplatform#4559"),
    ),
    rule(
        "a deployed model with traffic is undeployed if the request moves it, or if it is the last one",
        Source::Report("googleapis/python-aiplatform#898"),
    ),
    rule(
        "the traffic split of an undeployment names no model that is not deployed, nor 0",
        Source::Report("GoogleCloudPlatform/java-docs-samples#8475"),
    ),
    rule(
        "a deployed model without traffic is not in the traffic split, and keeps its endpoint from being deleted",
        Source::Report("googleapis/python-aiplatform#1441"),
    ),
    rule("the endpoint of a failed deployment stays", Source::Report("googleapis/python-aiplatform#1041")),
    rule(
        "a model that is deployed, or was a moment ago, is not deleted",
        Source::Report("googleapis/python-aiplatform#2807"),
    ),
    rule(
        "more GPUs than the quota of the region are 429 RESOURCE_EXHAUSTED that no pause ends",
        Source::Report("GoogleCloudPlatform/stable-diffusion-on-gcp#12"),
    ),
    rule(
        "the most replicas count against quotas of GPUs, and the names in answers have the number of the project",
        Source::Model,
    ),
    rule(
        "mutateDeployedModel changes bounds and metrics of replicas, and update the connection of clients; nothing else",
        Source::Model,
    ),
    rule(
        "operations are read with the permission to read the model or the endpoint; deployments need \
            aiplatform.endpoints.deploy, and undeployments aiplatform.endpoints.undeploy",
        Source::Documentation("https://cloud.google.com/vertex-ai/docs/general/iam-permissions"),
    ),
    rule(
        "lists of operations need aiplatform.operations.list, and mutateDeployedModel needs aiplatform.endpoints.update",
        Source::Model,
    ),
    rule("a container runs as an account as which the caller has to be allowed to act", Source::Model),
    rule(
        "rawPredict needs a token with aiplatform.endpoints.predict, and passes its body to the route of the container",
        Source::Documentation("https://cloud.google.com/vertex-ai/docs/general/iam-permissions"),
    ),
    rule(
        "a request to an endpoint with a name of its own has 10 MB at most",
        Source::Documentation("https://cloud.google.com/vertex-ai/docs/predictions/using-dedicated-endpoints"),
    ),
    rule(
        "an endpoint without a traffic split answers 400 FAILED_PRECONDITION",
        Source::Report("GoogleCloudPlatform/explainable_ai_sdk#3"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: SERVICE, what, source }
}

fn invalid(message: impl Into<String>) -> Problem {
    Problem::new("INVALID_ARGUMENT", message)
}

fn unmet(message: impl Into<String>) -> Problem {
    Problem::new("FAILED_PRECONDITION", message)
}

/// A name as answers have it: with the number of the project.
fn shown(cloud: &Cloud, name: &str) -> String {
    let mut parts: Vec<String> = name.split('/').map(str::to_owned).collect();
    if let Some(project) = parts.get_mut(1)
        && let Some(found) = cloud.project(project)
    {
        project.clone_from(&found.number);
    }
    parts.join("/")
}

/// The key of a name with the number or the id of its project, without a version.
fn key_of(cloud: &Cloud, name: &str) -> String {
    let name = name.split('@').next().unwrap_or_default();
    let mut parts: Vec<String> = name.split('/').map(str::to_owned).collect();
    if let Some(project) = parts.get_mut(1)
        && let Some(found) = cloud.project(project)
    {
        project.clone_from(&found.id);
    }
    format!("{SERVICE}/{}", parts.join("/"))
}

fn metadata(kind: &str) -> Value {
    json!({ "@type": format!("type.googleapis.com/google.cloud.aiplatform.v1.{kind}OperationMetadata") })
}

fn empty() -> Value {
    json!({ "@type": "type.googleapis.com/google.protobuf.Empty" })
}

fn start(cloud: &mut Cloud, call: &Call<'_>, kind: &str, key: &str, takes: Duration, effect: Effect) -> Value {
    begin(cloud, call, Family::LongRunning, kind, key, takes, metadata(kind), effect)
}

/// The deployed models of an endpoint.
fn deployed(endpoint: &Value) -> impl Iterator<Item = &Value> {
    endpoint["deployedModels"].as_array().into_iter().flatten()
}

fn ids(endpoint: &Value) -> Vec<String> {
    deployed(endpoint).filter_map(|one| one["id"].as_str().map(str::to_owned)).collect()
}

/// The endpoints with their keys.
fn endpoints(cloud: &Cloud) -> impl Iterator<Item = (&String, &Value)> {
    let all = cloud.objects.iter().filter(|(key, _)| key.starts_with("aiplatform/") && key.contains("/endpoints/"));
    all.map(|(key, object)| (key, &object.body))
}

fn check_split(split: &Value, ids: &[String]) -> Result<(), Problem> {
    let Some(shares) = split.as_object().filter(|shares| !shares.is_empty()) else { return Ok(()) };
    let unknown: Vec<&str> = shares.keys().map(String::as_str).filter(|id| !ids.iter().any(|one| one == id)).collect();
    if !unknown.is_empty() {
        return Err(invalid(format!("The following DeployedModel ID(s) {unknown:?} do not exist.")));
    }
    match shares.values().filter_map(Value::as_u64).sum::<u64>() {
        100 => Ok(()),
        sum => Err(invalid(format!("The traffic split adds up to {sum}, and not to 100."))),
    }
}

/// The GPUs of a kind that the deployed models of a region have at most, without one of them.
fn used(cloud: &Cloud, region: &str, kind: &str, without: &str) -> u64 {
    let here = format!("/locations/{region}/");
    let all = endpoints(cloud).filter(|(key, _)| key.contains(&here)).flat_map(|(_, endpoint)| deployed(endpoint));
    all.filter(|one| one["id"] != without).map(|one| gpus(&one["dedicatedResources"], kind)).sum()
}

fn gpus(resources: &Value, kind: &str) -> u64 {
    let machine = &resources["machineSpec"];
    let each = machine["acceleratorCount"].as_u64().filter(|_| machine["acceleratorType"] == kind);
    each.unwrap_or_default() * resources["maxReplicaCount"].as_u64().unwrap_or_default()
}

/// The quotas of GPUs as Service Usage shows them.
pub(crate) fn quotas(cloud: &Cloud) -> Vec<Value> {
    let all = GPUS.iter().map(|(kind, name, usual)| {
        let title = format!("Custom model serving {kind} GPUs per region");
        services::metric(cloud, (*name, *usual), &format!("aiplatform.googleapis.com/{name}"), &title)
    });
    all.collect()
}

/// Refuses resources that no deployed model has.
fn check_resources(cloud: &Cloud, region: &str, id: &str, resources: &Value) -> Result<(), Problem> {
    if resources["machineSpec"]["machineType"].as_str().is_none_or(str::is_empty) {
        return Err(invalid("dedicated_resources.machine_spec.machine_type is required."));
    }
    let count = |member: &str| resources[member].as_u64().unwrap_or_default();
    if count("minReplicaCount") < 1 || count("maxReplicaCount") < count("minReplicaCount") {
        return Err(invalid("min_replica_count must be at least 1, and max_replica_count not below it."));
    }
    for (kind, name, usual) in GPUS {
        let limit = services::quota(cloud, region, (*name, *usual));
        let wanted = gpus(resources, kind);
        let all = u32::try_from(wanted + used(cloud, region, kind, id)).map_or(f64::INFINITY, f64::from);
        if wanted > 0 && all > limit {
            let metric = format!("aiplatform.googleapis.com/{name}");
            let message = format!("The following quota metrics exceed quota limits: {metric}");
            return Err(Problem::new("RESOURCE_EXHAUSTED", message));
        }
    }
    Ok(())
}

fn upload(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let model = &call.body["model"];
    errors::check_labels(&model["labels"])?;
    if model["displayName"].as_str().is_none_or(|name| name.is_empty() || name.chars().count() > 128) {
        return Err(invalid("model.display_name is required, with at most 128 characters."));
    }
    let image = model["containerSpec"]["imageUri"].as_str().unwrap_or_default().to_owned();
    if image.is_empty() {
        return Err(invalid("model.container_spec.image_uri is required."));
    }
    let parent = call.body["parentModel"].as_str().filter(|parent| !parent.is_empty());
    let key = match (parent, call.body["modelId"].as_str()) {
        (Some(parent), _) => key_of(cloud, parent),
        (None, Some(id)) => format!("{SERVICE}/{}/{id}", call.name),
        (None, None) => format!("{SERVICE}/{}/{}", call.name, cloud.number()),
    };
    let name = key.split_once('/').map_or("", |(_, name)| name).to_owned();
    let id = name.rsplit('/').next().unwrap_or_default();
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    if id.len() > 63 || !id.chars().all(is_inner) || id.starts_with('-') {
        return Err(invalid(format!("Invalid model id `{id}`.")));
    }
    let before = cloud.get(&key).and_then(|one| one["versionId"].as_str()?.parse::<u64>().ok());
    let version = match (parent, before) {
        (Some(parent), None) => return Err(errors::not_found(SERVICE, parent)),
        (Some(_), Some(version)) => version + 1,
        (None, Some(_)) => return Err(errors::already_exists(SERVICE, &name)),
        (None, None) => 1,
    };
    let mut body = model.clone();
    let now = cloud.now().to_string();
    body["name"] = shown(cloud, &name).into();
    for member in ["createTime", "updateTime", "versionCreateTime", "versionUpdateTime"] {
        body[member] = now.clone().into();
    }
    body["etag"] = cloud.fingerprint().into();
    body["versionId"] = version.to_string().into();
    body["versionAliases"] = json!(["default"]);
    body["supportedDeploymentResourcesTypes"] = json!(["DEDICATED_RESOURCES"]);
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        let is_own = image.contains("-docker.pkg.dev/");
        if is_own && !cloud.objects.values().any(|object| object.body["uri"] == image) {
            return Err(Problem::new("NOT_FOUND", format!("Image '{image}' not found.")).status());
        }
        let uploaded = json!({ "model": body["name"], "modelVersionId": body["versionId"] });
        cloud.put(&target, body);
        Ok(typed("google.cloud.aiplatform.v1.UploadModelResponse", &uploaded))
    });
    Ok(start(cloud, call, "UploadModel", &key, UPLOADS, effect))
}

fn delete_model(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    read(cloud, call)?;
    let key = call.key();
    let is_of = |one: &Value| key_of(cloud, one["model"].as_str().unwrap_or_default()) == key;
    let at = endpoints(cloud).find(|(_, endpoint)| deployed(endpoint).any(is_of)).map(|(key, _)| key.clone());
    if let Some(at) = at {
        let message = format!(
            "The Model is deployed or being deployed at the following Endpoint(s): {at}. Please undeploy the model before retry."
        );
        return Err(unmet(message));
    }
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        cloud.objects.remove(&target);
        Ok(empty())
    });
    Ok(start(cloud, call, "Delete", &key, CHANGES, effect))
}

fn create(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    errors::check_labels(&call.body["labels"])?;
    if call.body["displayName"].as_str().is_none_or(str::is_empty) {
        return Err(invalid("endpoint.display_name is required."));
    }
    let id = call.parameter("endpointId").map_or_else(|| cloud.number(), str::to_owned);
    let is_number = id.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number && !errors::is_name(&id, 63) {
        return Err(invalid(format!("Invalid endpoint id `{id}`.")));
    }
    let name = format!("{}/{id}", call.name);
    let key = format!("{SERVICE}/{name}");
    if cloud.objects.contains_key(&key) || cloud.running(&key).is_some() {
        return Err(errors::already_exists(SERVICE, &name));
    }
    let mut body = call.body.clone();
    let now = cloud.now().to_string();
    body["name"] = shown(cloud, &name).into();
    for member in ["createTime", "updateTime"] {
        body[member] = now.clone().into();
    }
    body["etag"] = cloud.fingerprint().into();
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        let response = typed("google.cloud.aiplatform.v1.Endpoint", &json!({ "name": body["name"] }));
        cloud.put(&target, body);
        Ok(response)
    });
    Ok(start(cloud, call, "CreateEndpoint", &key, CHANGES, effect))
}

fn delete_endpoint(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let endpoint = read(cloud, call)?;
    let key = call.key();
    if !ids(&endpoint).is_empty() || cloud.running(&key).is_some() {
        return Err(unmet("Endpoint has deployed or being-deployed DeployedModel(s)."));
    }
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        cloud.objects.remove(&target);
        Ok(empty())
    });
    Ok(start(cloud, call, "Delete", &key, CHANGES, effect))
}

/// Changes an endpoint at the end of an operation.
fn change(cloud: &mut Cloud, key: &str, change: impl FnOnce(&mut Value)) {
    let (now, etag) = (cloud.now().to_string(), cloud.fingerprint());
    if let Some(object) = cloud.objects.get_mut(key) {
        change(&mut object.body);
        object.body["updateTime"] = now.into();
        object.body["etag"] = etag.into();
    }
}

fn update(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    read(cloud, call)?;
    let wanted = call.body["endpoint"].as_object().cloned().unwrap_or_default();
    if let Some(other) = wanted.keys().find(|member| !["name", "clientConnectionConfig"].contains(&member.as_str())) {
        return Err(invalid(format!("endpoint.{other} cannot be updated.")));
    }
    let key = call.key();
    let target = key.clone();
    let config = wanted.get("clientConnectionConfig").cloned().unwrap_or_default();
    let effect: Effect = Box::new(move |cloud| {
        change(cloud, &target, |endpoint| endpoint["clientConnectionConfig"] = config);
        let endpoint = cloud.get(&target).cloned().unwrap_or_default();
        Ok(typed("google.cloud.aiplatform.v1.Endpoint", &endpoint))
    });
    Ok(start(cloud, call, "UpdateEndpoint", &key, CHANGES, effect))
}

fn region_of(call: &Call<'_>) -> String {
    call.name.split('/').nth(3).unwrap_or_default().to_owned()
}

fn deploy(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let endpoint = read(cloud, call)?;
    let mut model = call.body["deployedModel"].clone();
    let id = model["id"].as_str().map_or_else(|| cloud.number().chars().take(10).collect(), str::to_owned);
    let is_id = (1..=10).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_digit());
    let known = ids(&endpoint);
    if !is_id || known.contains(&id) {
        return Err(invalid(format!("deployed_model.id `{id}` is taken, or has not 1 to 10 digits.")));
    }
    let named = model["model"].as_str().unwrap_or_default().to_owned();
    let Some(uploaded) = cloud.get(&key_of(cloud, &named)).cloned() else {
        return Err(errors::not_found(SERVICE, &named));
    };
    let account = model["serviceAccount"].as_str().unwrap_or_default();
    let of_project = format!("iam/projects/{}/serviceAccounts/{account}", call.project);
    if account.ends_with(".iam.gserviceaccount.com") && cloud.get(&of_project).is_none() {
        return Err(Problem::new("NOT_FOUND", format!("Service account {account} does not exist.")));
    }
    check_resources(cloud, &region_of(call), &id, &model["dedicatedResources"])?;
    let split = call.body["trafficSplit"].clone();
    check_split(&split, &known.into_iter().chain([ITSELF.to_owned()]).collect::<Vec<_>>())?;
    model["id"] = id.clone().into();
    model["model"] = uploaded["name"].clone();
    model["modelVersionId"] = uploaded["versionId"].clone();
    let key = call.key();
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        if cloud.mute {
            let message = "Model server never became ready. Please validate that your model file or container \
                configuration are valid. Model server logs can be found in Cloud Logging.";
            return Err(unmet(message).status());
        }
        model["createTime"] = cloud.now().to_string().into();
        let response = json!({ "deployedModel": model });
        let dns = format!("{}/{PREDICTIONS}", cloud.front);
        change(cloud, &target, |endpoint| {
            if endpoint["dedicatedEndpointEnabled"] == true {
                endpoint["dedicatedEndpointDns"] = dns.into();
            }
            let mut all: Vec<Value> = deployed(endpoint).cloned().collect();
            all.push(model);
            endpoint["deployedModels"] = all.into();
            if let Some(shares) = split.as_object().filter(|shares| !shares.is_empty()) {
                let named = |(one, share): (&String, &Value)| {
                    (if one == ITSELF { id.clone() } else { one.clone() }, share.clone())
                };
                endpoint["trafficSplit"] = Value::Object(shares.iter().map(named).collect::<Map<_, _>>());
            }
        });
        Ok(typed("google.cloud.aiplatform.v1.DeployModelResponse", &response))
    });
    Ok(start(cloud, call, "DeployModel", &key, DEPLOYS, effect))
}

fn mutate(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let endpoint = read(cloud, call)?;
    let wanted = call.body["deployedModel"].clone();
    let id = wanted["id"].as_str().unwrap_or_default().to_owned();
    let Some(mut model) = deployed(&endpoint).find(|one| one["id"] == id.as_str()).cloned() else {
        return Err(errors::not_found(SERVICE, &format!("{}/deployedModels/{id}", call.name)));
    };
    for path in call.body["updateMask"].as_str().unwrap_or_default().split(',') {
        let member = path.strip_prefix("dedicatedResources.").filter(|member| MUTABLE.contains(member));
        let Some(member) = member else { return Err(invalid(format!("Invalid update mask: {path}"))) };
        model["dedicatedResources"][member] = wanted["dedicatedResources"][member].clone();
    }
    check_resources(cloud, &region_of(call), &id, &model["dedicatedResources"])?;
    let key = call.key();
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        let response = json!({ "deployedModel": model });
        change(cloud, &target, |endpoint| {
            let all: Vec<Value> = deployed(endpoint)
                .map(|one| if one["id"] == id.as_str() { model.clone() } else { one.clone() })
                .collect();
            endpoint["deployedModels"] = all.into();
        });
        Ok(typed("google.cloud.aiplatform.v1.MutateDeployedModelResponse", &response))
    });
    Ok(start(cloud, call, "MutateDeployedModel", &key, CHANGES, effect))
}

fn undeploy(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let endpoint = read(cloud, call)?;
    let id = call.body["deployedModelId"].as_str().unwrap_or_default().to_owned();
    let others: Vec<String> = ids(&endpoint).into_iter().filter(|one| *one != id).collect();
    if others.len() == ids(&endpoint).len() {
        return Err(errors::not_found(SERVICE, &format!("{}/deployedModels/{id}", call.name)));
    }
    let split = call.body["trafficSplit"].clone();
    check_split(&split, &others)?;
    let has_traffic = endpoint["trafficSplit"][id.as_str()].as_u64().unwrap_or_default() > 0;
    if has_traffic && !others.is_empty() && !split.is_object() {
        let message = format!("DeployedModel {id} has traffic assigned: undeploy it with a traffic split without it.");
        return Err(unmet(message));
    }
    let key = call.key();
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        change(cloud, &target, |endpoint| {
            let all: Vec<Value> = deployed(endpoint).filter(|one| one["id"] != id.as_str()).cloned().collect();
            let is_last = all.is_empty();
            endpoint["deployedModels"] = all.into();
            if is_last {
                endpoint["trafficSplit"] = json!({});
            } else if split.is_object() {
                endpoint["trafficSplit"] = split;
            }
        });
        Ok(typed("google.cloud.aiplatform.v1.UndeployModelResponse", &json!({})))
    });
    Ok(start(cloud, call, "UndeployModel", &key, CHANGES, effect))
}

/// What a request to an endpoint with a name of its own comes to, and the route of its container: `v1/projects/…:rawPredict`.
pub(crate) fn answer(cloud: &mut Cloud, request: &Request, path: &str, user: Option<&str>) -> (Answered, String) {
    let refused = |status: u16, why: &'static str| (Answered::Refused(status, why), String::new());
    let name = path.strip_prefix("v1/").and_then(|name| name.strip_suffix(":rawPredict"));
    let (Some(name), "POST") = (name, request.method.as_str()) else { return refused(404, NOT_FOUND) };
    let Some(user) = user else { return refused(401, UNAUTHENTICATED) };
    let key = key_of(cloud, name);
    let project = key.split('/').nth(2).unwrap_or_default().to_owned();
    if !cloud.authorize(user, &project, PREDICT) {
        return refused(403, DENIED);
    }
    if request.body.len() > MOST_BYTES {
        return refused(400, TOO_LONG);
    }
    let Some(endpoint) = cloud.get(&key) else { return refused(404, NOT_FOUND) };
    let share = |one: &Value| endpoint["trafficSplit"][one["id"].as_str().unwrap_or_default()].as_u64();
    let chosen = deployed(endpoint).filter(|one| share(one) > Some(0)).max_by_key(|one| share(one));
    let model = chosen.and_then(|one| cloud.get(&key_of(cloud, one["model"].as_str().unwrap_or_default())));
    let (Some(model), Some(containers)) = (model, &cloud.containers) else { return refused(400, NO_TRAFFIC) };
    let container = &model["containerSpec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let variables = container["env"].as_array().into_iter().flatten();
    // No variable of the servers refers to another one.
    let environment = variables.map(|one| (text(&one["name"]), text(&one["value"]).replace("$$", "$"))).collect();
    let route = text(&container["predictRoute"]);
    (Answered::By(Container { image: text(&container["imageUri"]), environment }, containers.clone()), route)
}

const NOT_FOUND: &str = r#"{"error":{"code":404,"message":"Requested entity was not found.","status":"NOT_FOUND"}}"#;
const UNAUTHENTICATED: &str =
    r#"{"error":{"code":401,"message":"Request had invalid authentication credentials.","status":"UNAUTHENTICATED"}}"#;
const DENIED: &str = r#"{"error":{"code":403,"message":"Permission 'aiplatform.endpoints.predict' denied on resource (or it may not exist).","status":"PERMISSION_DENIED"}}"#;
const TOO_LONG: &str =
    r#"{"error":{"code":400,"message":"Request payload size exceeds the limit.","status":"INVALID_ARGUMENT"}}"#;
const NO_TRAFFIC: &str =
    r#"{"error":{"code":400,"message":"Endpoint doesn't have traffic_split.","status":"FAILED_PRECONDITION"}}"#;
