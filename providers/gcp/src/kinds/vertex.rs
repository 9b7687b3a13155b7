//! Vertex AI: models, endpoints, and the models that are deployed at an endpoint
//! (<https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.endpoints>).
//!
//! A model is an image with its variables, and never changes. A changed one is uploaded beside it, and deployed beside the one that
//! answers; the deployment moves all requests once it is complete. One that fails leaves nothing at the endpoint and the requests
//! where they are. Deployed models have no labels: their endpoint tells the deployment, and their display name the operation.

use std::collections::BTreeMap;

use async_trait::async_trait;
use jiff::Timestamp;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use textnlp_cloud::document::{get, last};
use textnlp_cloud::names::hash;
use textnlp_cloud::tags::{ENVIRONMENT, LINEAGE, OPERATION, RESOURCE, Tags};
use textnlp_cloud::{Filter, Make, ObservedObject, Of, Resource, State};
use textnlp_provider::{
    CloudId, Declaration, Declare, Error, ErrorKind, Foreign, Identity, Kind, Permission, Pricing, Result, Tool, Verb,
};

use super::{create, delete, put, read};
use crate::api::{Api, Call};
use crate::labels;
use crate::operation::Family;
use crate::row::{Create, Field, Labelling, Marks, New, Rest, RestKind, Table, invalid, send};
use crate::service::Service;
use crate::table::{MINUTE, Row, kind};

pub(crate) const MODEL: &str = "gcp.vertex-model";
pub(crate) const ENDPOINT: &str = "gcp.vertex-endpoint";
pub(crate) const DEPLOYMENT: &str = "gcp.vertex-deployment";
/// What is between the id of an endpoint and that of a model that is deployed there.
const DEPLOYED: &str = "/deployedModels/";
/// The most bytes of a display name.
const MOST_OF_DISPLAY_NAME: usize = 128;
/// What a deployment is for itself in a traffic split, before it has an id.
const ITSELF: &str = "0";
/// What changes of a deployed model.
const SCALING_MASK: &str = "dedicatedResources.minReplicaCount,dedicatedResources.maxReplicaCount,\
                            dedicatedResources.autoscalingMetricSpecs";
/// The metric that replicas are added by: the requests of each in a minute.
const REQUEST_COUNT: &str = "aiplatform.googleapis.com/prediction/online/request_count";
/// Why no other tool gets a declaration of these objects.
const NOT_EXPORTED: &str = "Terraform has no resources for models that are uploaded to Vertex AI and deployed there";
const ENDPOINT_NOT_EXPORTED: &str = "Terraform's endpoint of Vertex AI cannot have the models that are deployed at it";

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            deadline: MINUTE.saturating_mul(30),
            permissions: &[
                delete("aiplatform.models.delete"),
                read("aiplatform.models.get"),
                read("aiplatform.models.list"),
                Permission::on(&[Verb::Update], "aiplatform.models.update"),
                create("aiplatform.models.upload"),
            ],
            ..kind(MODEL, "an image of the servers, for endpoints of Vertex AI", Identity::Token)
        },
        service: "aiplatform",
        resource: &Rest::<Model>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            permissions: &[
                create("aiplatform.endpoints.create"),
                delete("aiplatform.endpoints.delete"),
                read("aiplatform.endpoints.get"),
                read("aiplatform.endpoints.list"),
                Permission::on(&[Verb::Update], "aiplatform.endpoints.update"),
            ],
            ..kind(ENDPOINT, "an endpoint of Vertex AI, which clients call", Identity::Named)
        },
        service: "aiplatform",
        resource: &Rest::<Endpoint>::kind(),
        // Another endpoint of the name could not be made beside the one that answers.
        refused: &[(
            "key",
            "an endpoint keeps its key, and with it `data`: remove the site with `down`, and run `up` again",
        )],
    },
    Row {
        kind: Kind {
            // The most that a deployment may take, and then its traffic.
            deadline: MINUTE.saturating_mul(130),
            typical: Some(MINUTE.saturating_mul(15)),
            pricing: Pricing::BySpec,
            permissions: &[
                put("aiplatform.endpoints.deploy"),
                read("aiplatform.endpoints.get"),
                read("aiplatform.endpoints.list"),
                // Requests to the endpoint are those of the identity that deploys.
                read("aiplatform.endpoints.predict"),
                delete("aiplatform.endpoints.undeploy"),
                put("aiplatform.endpoints.update"),
                read("aiplatform.operations.list"),
                read("serviceusage.quotas.get"),
                put("iam.serviceAccounts.actAs"),
            ],
            ..kind(DEPLOYMENT, "a model that is deployed at an endpoint of Vertex AI", Identity::Token)
        },
        service: "aiplatform",
        resource: &Of::<Deployment>::kind(),
        refused: &[],
    },
];

/// A model. Outputs: `id`, `name`.
struct Model;

#[async_trait]
impl RestKind for Model {
    const TABLE: &'static Table = &Table {
        service: Service::AiPlatform,
        path: "projects/{project}/locations/{location}/models/{name}",
        collection: "projects/{project}/locations/{location}/models",
        items: "models",
        create: Create::Beside("modelId", "model"),
        constants: &[
            ("/containerSpec/args", r#"["serve"]"#),
            ("/containerSpec/ports", r#"[{"containerPort":8080}]"#),
            ("/containerSpec/healthRoute", r#""/ping""#),
            ("/containerSpec/predictRoute", r#""/invocations""#),
        ],
        fields: &[
            Field::plain("image", "/containerSpec/imageUri"),
            Field::code("variables", "/containerSpec/env", variables, seen_variables),
            Field::code("start_seconds", "/containerSpec/deploymentTimeout", duration, |document| {
                seconds(&document["containerSpec"]["deploymentTimeout"])
            }),
            Field::plain("key", "/encryptionSpec/kmsKeyName"),
        ],
        marks: Marks::Labels("/labels", Labelling::Patch),
        family: Family::LongRunning,
        // A new one is uploaded while the one before it is still deployed.
        suffixed: true,
        ..Table::USUAL
    };

    fn declared(_api: Option<&Api>, _request: &Declare<'_>, _document: &mut Value) -> Result<(), String> {
        Err(NOT_EXPORTED.to_owned())
    }

    /// Names no parent: with one, it would be a version of another model.
    async fn send(api: &Api, mut new: New) -> Result<Option<String>> {
        new.document["displayName"] = json!(new.name);
        new.collection.push_str(":upload");
        send(api, Self::TABLE, new).await
    }
}

/// An endpoint with a name of its own in DNS: on the shared one, requests have 1.5 MB and 60 seconds at most
/// (<https://cloud.google.com/vertex-ai/docs/predictions/choose-endpoint-type>). Outputs: `id`, `name`.
struct Endpoint;

#[async_trait]
impl RestKind for Endpoint {
    const TABLE: &'static Table = &Table {
        service: Service::AiPlatform,
        path: "projects/{project}/locations/{location}/endpoints/{name}",
        collection: "projects/{project}/locations/{location}/endpoints",
        items: "endpoints",
        create: Create::Query("endpointId"),
        constants: &[("/dedicatedEndpointEnabled", "true")],
        fields: &[
            Field::code("timeout_seconds", "/clientConnectionConfig/inferenceTimeout", duration, |document| {
                seconds(&document["clientConnectionConfig"]["inferenceTimeout"])
            }),
            Field::plain("key", "/encryptionSpec/kmsKeyName"),
        ],
        in_place: &["timeout_seconds"],
        marks: Marks::Labels("/labels", Labelling::Patch),
        family: Family::LongRunning,
        ..Table::USUAL
    };

    fn declared(_api: Option<&Api>, _request: &Declare<'_>, _document: &mut Value) -> Result<(), String> {
        Err(ENDPOINT_NOT_EXPORTED.to_owned())
    }

    /// Models that others deployed at it.
    async fn foreign(_api: &Api, id: &str, document: &Value) -> Result<Vec<Foreign>> {
        let theirs = deployed(document).filter(|one| own_tags(one).is_empty());
        let foreign = theirs.filter_map(|one| {
            let cloud_id = CloudId::new(format!("{id}{DEPLOYED}{}", one["id"].as_str()?)).ok()?;
            Some(Foreign { cloud_id, what: "deployed model".to_owned(), swept: false, outlives: false, maker: None })
        });
        Ok(foreign.collect())
    }

    async fn send(api: &Api, mut new: New) -> Result<Option<String>> {
        new.document["displayName"] = json!(new.name);
        send(api, Self::TABLE, new).await
    }

    /// `PATCH` does not change the timeout
    /// (<https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.endpoints/update>).
    async fn put(api: &Api, id: &str, wanted: &Value, field: &str) -> Result<Option<String>> {
        if field != "timeout_seconds" {
            return Err(invalid("change", id, &format!("`{field}` does not change in place")));
        }
        let config = json!({ "inferenceTimeout": duration(wanted) });
        let body = json!({ "endpoint": { "name": id, "clientConnectionConfig": config } });
        let answer = api.send(Call::post(Service::AiPlatform, format!("{id}:update"), body)).await?;
        Ok(Family::LongRunning.started(api, id, &answer))
    }
}

fn duration(value: &Value) -> Value {
    value.as_u64().map_or(Value::Null, |seconds| json!(format!("{seconds}s")))
}

fn seconds(value: &Value) -> Value {
    let whole = value.as_str().and_then(|text| text.trim_end_matches('s').split('.').next()?.parse::<u64>().ok());
    json!(whole)
}

/// Variables as the container gets them: Vertex AI expands references such as `$(NAME)`, and takes two `$` for one.
fn variables(value: &Value) -> Value {
    let all = value.as_object().into_iter().flatten();
    let one = |(name, value): (&String, &Value)| json!({ "name": name, "value": escaped(value.as_str().unwrap_or_default()) });
    all.map(one).collect()
}

fn seen_variables(document: &Value) -> Value {
    let listed = document["containerSpec"]["env"].as_array().into_iter().flatten();
    let one = |one: &Value| Some((one["name"].as_str()?.to_owned(), json!(one["value"].as_str()?.replace("$$", "$"))));
    Value::Object(listed.filter_map(one).collect())
}

/// A text that is the same after its expansion, in which two `$` are one
/// (<https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/>).
fn escaped(text: &str) -> String {
    let mut all = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, run) = rest.split_at(at);
        rest = run.trim_start_matches('$');
        let run = run.len() - rest.len();
        let is_itself = run == 1 && !rest.starts_with('(');
        all.push_str(before);
        all.push_str(&"$".repeat(if is_itself { 1 } else { run * 2 }));
    }
    all + rest
}

/// The address of requests to an endpoint, by its document: it is not there until the endpoint has its name in DNS.
pub(crate) fn address(id: &str, document: &Value) -> Option<String> {
    let name = document["name"].as_str().unwrap_or(id);
    let dns = document["dedicatedEndpointDns"].as_str().filter(|dns| !dns.is_empty())?;
    // The document of the API shows it with the scheme, and answers leave it out.
    let root = if dns.contains("://") { dns.trim_end_matches('/').to_owned() } else { format!("https://{dns}") };
    Some(format!("{root}/v1/{name}:rawPredict"))
}

/// The models that are deployed at an endpoint.
fn deployed(endpoint: &Value) -> impl Iterator<Item = &Value> {
    endpoint["deployedModels"].as_array().into_iter().flatten()
}

/// What the display name of a deployed model says: empty for one of others.
fn own_tags(deployed: &Value) -> Tags {
    labels::of_description(deployed["displayName"].as_str().unwrap_or_default())
}

/// A model that is deployed at an endpoint. Outputs: `id`, `name`, `url`.
struct Deployment;

/// The attributes of a deployed model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Spec {
    /// The id of its endpoint.
    endpoint: String,
    /// The id of the model.
    model: String,
    /// The address of the account that the servers run as.
    account: String,
    /// The type of its machines.
    machine: String,
    /// The GPUs of each.
    accelerator: Option<Accelerator>,
    scaling: Scaling,
    /// The requests that it gets, in percent.
    traffic: u64,
    #[serde(default)]
    tags: Tags,
}

/// The GPUs of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Accelerator {
    /// As Vertex AI calls it: `NVIDIA_L4`.
    #[serde(rename = "type")]
    kind: String,
    count: u64,
}

/// The bounds of the replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Scaling {
    min: u64,
    max: u64,
    /// The requests of a replica above which there is another one.
    requests_per_minute: Option<u64>,
}

impl Spec {
    fn resources(&self) -> Value {
        let mut machine = json!({ "machineType": self.machine });
        if let Some(Accelerator { kind, count }) = &self.accelerator {
            machine["acceleratorType"] = json!(kind);
            machine["acceleratorCount"] = json!(count);
        }
        let by_requests = |target: &u64| json!({ "metricName": REQUEST_COUNT, "target": target });
        let metrics: Vec<Value> = self.scaling.requests_per_minute.iter().map(by_requests).collect();
        json!({
            "machineSpec": machine,
            "minReplicaCount": self.scaling.min,
            "maxReplicaCount": self.scaling.max,
            "autoscalingMetricSpecs": metrics,
        })
    }
}

/// The endpoint and the id in the id of a deployed model.
fn parts(id: &str) -> Result<(&str, &str)> {
    id.split_once(DEPLOYED).ok_or_else(|| invalid("read", id, "it is no id of a deployed model"))
}

/// The id of a new deployed model: the same for a repeated operation. It has ten digits at most.
fn new_id(token: &str) -> String {
    u32::from_str_radix(&hash(token), 16).unwrap_or_default().max(1).to_string()
}

/// A deployed model as its endpoint shows it.
fn observed(endpoint: &str, document: &Value, deployed: &Value) -> Option<ObservedObject<Spec>> {
    let own = deployed["id"].as_str()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let count = |value: &Value| value.as_u64().unwrap_or_default();
    // The answer has the number of the project in place of its id, and may name the version.
    let model = last(deployed["model"].as_str().unwrap_or_default()).split('@').next().unwrap_or_default();
    let (location, _) = endpoint.split_once("/endpoints/")?;
    let resources = &deployed["dedicatedResources"];
    let machine = &resources["machineSpec"];
    let accelerator = get(machine, "/acceleratorType").and_then(Value::as_str);
    let mut metrics = resources["autoscalingMetricSpecs"].as_array().into_iter().flatten();
    let by_requests = metrics.find(|one| one["metricName"] == REQUEST_COUNT);
    let mut tags = own_tags(deployed);
    if !tags.is_empty() {
        let of_endpoint = labels::decode(&document["labels"]);
        let inherited = of_endpoint.into_iter().filter(|(key, _)| [LINEAGE, ENVIRONMENT].contains(&key.as_str()));
        tags.extend(inherited);
    }
    let spec = Spec {
        endpoint: endpoint.to_owned(),
        model: format!("{location}/models/{model}"),
        account: text(&deployed["serviceAccount"]),
        machine: text(&machine["machineType"]),
        accelerator: accelerator
            .map(|kind| Accelerator { kind: kind.to_owned(), count: count(&machine["acceleratorCount"]) }),
        scaling: Scaling {
            min: count(&resources["minReplicaCount"]),
            max: count(&resources["maxReplicaCount"]),
            requests_per_minute: by_requests.map(|one| count(&one["target"])),
        },
        traffic: count(&document["trafficSplit"][own]),
        tags: Tags::new(),
    };
    let created = deployed["createTime"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let created = created.and_then(|at| Timestamp::from_second(at.as_second()).ok());
    let id = format!("{endpoint}{DEPLOYED}{own}");
    let seen = ObservedObject::new(id.clone(), spec, tags).created(created);
    let seen = seen.output("id", Some(id)).output("name", Some(own));
    let url = address(endpoint, document);
    let state = match url {
        Some(_) => State::Ready,
        None => State::Pending("without a name in DNS".to_owned()),
    };
    Some(seen.state(state).output("url", url))
}

/// The traffic of the other models, if one that is undeployed has any: Vertex AI undeploys none that has, unless it is the last
/// (googleapis/python-aiplatform#898). Without any, the newest of this program gets it, else the newest.
fn without(endpoint: &Value, id: &str) -> Option<Value> {
    let share = |id: &str| endpoint["trafficSplit"][id].as_u64().unwrap_or_default();
    let others: Vec<&Value> = deployed(endpoint).filter(|one| one["id"] != id).collect();
    let rank = |one: &Value| (!own_tags(one).is_empty(), one["createTime"].as_str().map(str::to_owned));
    let heir = others.iter().copied().max_by_key(|&one| rank(one))?["id"].as_str()?;
    if share(id) == 0 {
        return None;
    }
    let mut shares: BTreeMap<&str, u64> =
        others.iter().copied().filter_map(|one| one["id"].as_str()).map(|id| (id, share(id))).collect();
    let sum: u64 = shares.values().sum();
    shares.values_mut().for_each(|share| *share = (*share * 100).checked_div(sum).unwrap_or_default());
    // What is left of the rounding, or all of it.
    let rest = 100_u64.saturating_sub(shares.values().sum());
    *shares.entry(heir).or_default() += rest;
    let split = shares.into_iter().filter(|(_, share)| *share > 0);
    Some(Value::Object(split.map(|(id, share)| (id.to_owned(), json!(share))).collect::<Map<_, _>>()))
}

/// Refuses while an endpoint is still doing something: a deployment shows at its end only, and one whose answer was lost would be
/// repeated beside it.
async fn idle(api: &Api, kind: ErrorKind, action: &'static str, endpoint: &str) -> Result<()> {
    let all = api.list(Service::AiPlatform, &format!("{endpoint}/operations"), "operations", &[]).await?;
    match all.iter().find(|one| one["done"] != true) {
        None => Ok(()),
        Some(one) => {
            let name = last(one["name"].as_str().unwrap_or_default()).to_owned();
            let error = Error::new(kind, action, last(endpoint).to_owned());
            Err(error.because(format!("operation {name} of the endpoint is not over")))
        }
    }
}

/// Whether an endpoint has the deployed model of an operation already: its deployment may end while lists are read.
async fn has(api: &Api, endpoint: &str, id: &str, name: &str) -> Result<bool> {
    let document = api.find_enabled(Call::get(Service::AiPlatform, endpoint)).await?.unwrap_or_default();
    let is_there = deployed(&document).any(|one| one["id"] == id && one["displayName"] == name);
    Ok(is_there)
}

#[async_trait]
impl Resource<Api> for Deployment {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["scaling", "traffic"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let (endpoint, own) = parts(id)?;
        let document = api.find_enabled(Call::get(Service::AiPlatform, endpoint)).await?;
        Ok(document.and_then(|document| {
            let found = deployed(&document).find(|one| one["id"] == own)?;
            observed(endpoint, &document, found)
        }))
    }

    async fn list(api: &Api, filter: &Filter<Api>) -> Result<Vec<ObservedObject<Spec>>> {
        let collection = api.path(Endpoint::TABLE.collection);
        let endpoints = api.list(Service::AiPlatform, &collection, Endpoint::TABLE.items, &[]).await?;
        let all = endpoints.iter().flat_map(|endpoint| {
            let id = format!("{collection}/{}", last(endpoint["name"].as_str().unwrap_or_default()));
            deployed(endpoint).filter_map(move |one| observed(&id, endpoint, one))
        });
        Ok(all.filter(|seen| filter.matches(&seen.tags)).collect())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        Self::begin(api, make, spec).await.map(|(id, _)| id)
    }

    /// Deploys the model. All requests go to it once that is done.
    async fn begin(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<(String, Option<String>)> {
        let tags: Tags =
            make.tags.clone().into_iter().filter(|(key, _)| [RESOURCE, OPERATION].contains(&key.as_str())).collect();
        let name = labels::describe(&tags, MOST_OF_DISPLAY_NAME)
            .ok_or_else(|| invalid("deploy", last(&spec.model), "its name is too long for a display name"))?;
        let own = new_id(make.token);
        let id = format!("{}{DEPLOYED}{own}", spec.endpoint);
        // Unlike after a conflict, the operation waits as long as a deployment may take.
        idle(api, ErrorKind::Unavailable, "deploy at", &spec.endpoint).await?;
        if has(api, &spec.endpoint, &own, &name).await? {
            return Ok((id, None));
        }
        let body = json!({
            "deployedModel": {
                "id": own,
                "model": spec.model,
                "displayName": name,
                "serviceAccount": spec.account,
                "dedicatedResources": spec.resources(),
            },
            "trafficSplit": { ITSELF: spec.traffic },
        });
        let call = Call::post(Service::AiPlatform, format!("{}:deployModel", spec.endpoint), body);
        let answer = api.send(call.saying("deploy", format!("model {}", last(&spec.model)))).await?;
        let operation = Family::LongRunning.started(api, &id, &answer);
        Ok((id, operation))
    }

    async fn start(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<Option<String>> {
        let (endpoint, own) = parts(&seen.id)?;
        // Requests must not go to a model that is still being deployed.
        idle(api, ErrorKind::Conflict, "change", endpoint).await?;
        let call = match field {
            "traffic" => {
                let call = Call::new(Service::AiPlatform, Method::PATCH, endpoint).query("updateMask", "trafficSplit");
                call.body(json!({ "trafficSplit": { own: spec.traffic } }))
                    .saying("move the traffic of", last(endpoint))
            }
            _ => {
                let changed = json!({ "id": own, "dedicatedResources": spec.resources() });
                let body = json!({ "deployedModel": changed, "updateMask": SCALING_MASK });
                let call = Call::post(Service::AiPlatform, format!("{endpoint}:mutateDeployedModel"), body);
                call.saying("change", format!("deployed model {own}"))
            }
        };
        let answer = api.send(call).await?;
        Ok(Family::LongRunning.started(api, &seen.id, &answer))
    }

    /// An operation that is not shown to this identity is not over: its model shows at its end only.
    async fn change(api: &Api, _id: &str, change: &str) -> Result<State> {
        Family::LongRunning.shown(api, Service::AiPlatform, change).await
    }

    async fn tag(_api: &Api, seen: &ObservedObject<Spec>, _set: &Tags, _remove: &[String]) -> Result<()> {
        let error = invalid("set tags of", &seen.id, "its display name, which has them, does not change");
        Err(error.hint("`up` deploys a model of its own at the endpoint: undeploy this one once that answers"))
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        Self::end(api, seen).await.map(drop)
    }

    /// Undeploys it, without its traffic.
    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<String>> {
        let (endpoint, own) = parts(&seen.id)?;
        idle(api, ErrorKind::Conflict, "undeploy from", endpoint).await?;
        let Some(document) = api.find_enabled(Call::get(Service::AiPlatform, endpoint)).await? else {
            return Ok(None);
        };
        let mut body = json!({ "deployedModelId": own });
        if let Some(split) = without(&document, own) {
            body["trafficSplit"] = split;
        }
        let call = Call::post(Service::AiPlatform, format!("{endpoint}:undeployModel"), body);
        let answer = api.send(call.saying("undeploy", format!("deployed model {own}"))).await?;
        Ok(Family::LongRunning.started(api, &seen.id, &answer))
    }

    fn declare(_api: Option<&Api>, request: &Declare<'_>) -> Option<Result<Vec<Declaration>, String>> {
        (request.tool == Tool::Terraform).then(|| Err(NOT_EXPORTED.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_as_they_are_written_and_never_expanded() {
        let all = json!({ "A_0": "{\"price\":\"$(HOME) $5\"}", "A_1": "b", "A_2": "$$(A_0)$ ($$$()$$" });
        let written = variables(&all);
        assert_eq!(written[0]["value"], "{\"price\":\"$$(HOME) $5\"}");
        assert_eq!(written[2]["value"], "$$$$(A_0)$ ($$$$$$()$$$$");
        assert_eq!(seen_variables(&json!({ "containerSpec": { "env": written } })), all);
        assert_eq!(
            (duration(&json!(300)), seconds(&json!("300s")), seconds(&json!("300.5s"))),
            (json!("300s"), json!(300), json!(300))
        );
        assert_eq!((duration(&Value::Null), seconds(&Value::Null)), (Value::Null, Value::Null));
    }

    #[test]
    fn ids_of_deployed_models_have_ten_digits_at_most_and_follow_from_the_operation() {
        for token in ["0123456789abcdef0123456789abcdef", "a", ""] {
            let id = new_id(token);
            assert!(id.len() <= 10 && id.bytes().all(|byte| byte.is_ascii_digit()) && id != ITSELF, "{id}");
            assert_eq!(id, new_id(token));
        }
        assert_ne!(new_id("a"), new_id("b"));
    }

    #[test]
    fn traffic_of_an_undeployed_model_goes_to_the_others() {
        let endpoint = |split: Value, ids: &[&str]| {
            let models: Vec<Value> = ids
                .iter()
                .enumerate()
                .map(|(hour, id)| json!({ "id": id, "createTime": format!("2026-01-01T{hour:02}:00:00Z") }))
                .collect();
            json!({ "trafficSplit": split, "deployedModels": models })
        };
        assert_eq!(without(&endpoint(json!({ "1": 100 }), &["1"]), "1"), None, "the last one");
        assert_eq!(without(&endpoint(json!({ "2": 100 }), &["1", "2"]), "1"), None, "it has none");
        assert_eq!(without(&endpoint(json!({ "1": 100 }), &["1", "2", "3"]), "1"), Some(json!({ "3": 100 })));
        assert_eq!(without(&endpoint(json!({ "1": 40, "2": 60 }), &["1", "2"]), "1"), Some(json!({ "2": 100 })));
        let three = endpoint(json!({ "1": 40, "2": 20, "3": 40 }), &["1", "2", "3"]);
        assert_eq!(without(&three, "1"), Some(json!({ "2": 33, "3": 67 })));
        let mut with_theirs = endpoint(json!({ "1": 100 }), &["1", "2", "3"]);
        with_theirs["deployedModels"][1]["displayName"] =
            json!("textnlp r=main/server/deployment o=0123456789abcdef0123456789abcdef");
        assert_eq!(without(&with_theirs, "1"), Some(json!({ "2": 100 })), "the newest is of others");
        let all = without(&endpoint(json!({ "1": 97, "2": 1, "3": 2 }), &["1", "2", "3"]), "1").unwrap();
        assert_eq!(all.as_object().unwrap().values().filter_map(Value::as_u64).sum::<u64>(), 100);
    }

    #[test]
    fn requests_go_to_the_name_of_the_endpoint() {
        let id = "projects/p/locations/europe-west4/endpoints/e";
        let name = "projects/123/locations/europe-west4/endpoints/e";
        let of = |dns: Value| address(id, &json!({ "name": name, "dedicatedEndpointDns": dns }));
        let dns = "e.europe-west4-123.prediction.vertexai.goog";
        for shown in [dns.to_owned(), format!("https://{dns}")] {
            assert_eq!(of(json!(shown)), Some(format!("https://{dns}/v1/{name}:rawPredict")));
        }
        assert_eq!((of(json!("")), of(Value::Null)), (None, None), "it has none yet");
    }

    #[test]
    fn a_deployed_model_has_the_names_of_this_program() {
        let endpoint = "projects/p/locations/europe-west4/endpoints/e";
        let mut document = json!({
            "name": "projects/123/locations/europe-west4/endpoints/e",
            "labels": { "textnlp-lineage": "0198c0de-0000-7000-8000-000000000001", "textnlp-environment": "staging",
                "textnlp-resource": "main_server_endpoint" },
            "trafficSplit": { "7": 100 },
            "deployedModels": [
                { "id": "7", "model": "projects/123/locations/europe-west4/models/m-0a1b2c3d@1",
                  "displayName": "textnlp r=main/server/deployment o=0123456789abcdef0123456789abcdef" },
                { "id": "8", "model": "projects/123/locations/europe-west4/models/other", "displayName": "theirs" },
            ],
        });
        let all: Vec<_> = deployed(&document).filter_map(|one| observed(endpoint, &document, one)).collect();
        assert_eq!(all[0].id, format!("{endpoint}/deployedModels/7"));
        assert_eq!(all[0].spec.model, "projects/p/locations/europe-west4/models/m-0a1b2c3d");
        assert_eq!((all[0].spec.traffic, all[1].spec.traffic), (100, 0));
        assert_eq!(all[0].tags.get(RESOURCE).map(String::as_str), Some("main/server/deployment"));
        assert!(all[0].tags.contains_key(LINEAGE) && all[1].tags.is_empty(), "{:?}", all[1].tags);
        assert!(matches!(all[0].state, State::Pending(_)) && !all[0].outputs.contains_key("url"), "{:?}", all[0].state);
        document["dedicatedEndpointDns"] = json!("e.europe-west4-123.prediction.vertexai.goog");
        let shown = observed(endpoint, &document, &document["deployedModels"][0]).unwrap();
        assert!(shown.state == State::Ready && shown.outputs.contains_key("url"), "{:?}", shown.state);
    }
}
