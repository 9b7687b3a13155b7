//! Azure Machine Learning: workspaces, environments, online endpoints, their deployments and their traffic
//! (<https://learn.microsoft.com/rest/api/azureml/>), and the autoscaling of a deployment by Azure Monitor.
//!
//! A changed release is another deployment beside the one that answers. The traffic moves to it once it is there, and the old one is
//! deleted then: a deployment that fails leaves the requests where they are
//! (<https://learn.microsoft.com/azure/machine-learning/concept-endpoints-online>).
//!
//! Names of deleted workspaces and endpoints stay taken for a while (Azure/ResourceModules#3397, Azure/mlops-project-template#29), so that
//! each new one ends with a part of the operation's token.

use async_trait::async_trait;
use jiff::SignedDuration;
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_cloud::document::{last, set};
use textnlp_cloud::tags::LINEAGE;
use textnlp_cloud::{Candidate, ObservedObject, State, same};
use textnlp_provider::{Foreign, Identity, Kind, Permission, Pricing, ReplaceOrder, Result, Spec, Verb};

use super::cluster::{identified, identity};
use super::monitoring::INSIGHTS;
use super::{create, delete, external, put, read};
use crate::api::{Api, Call, Reply, tags_at};
use crate::operation::Pending;
use crate::row::{Field, LOCATION, Marks, Rest, RestKind, Table, Update, rewrite};
use crate::table::{MINUTE, Row, kind};

/// The resource provider.
pub(crate) const SERVICE: &str = "Microsoft.MachineLearningServices";
pub(crate) const VERSION: &str = "2024-10-01";
pub(crate) const WORKSPACE: &str = "azure.ml-workspace";
pub(crate) const ENVIRONMENT: &str = "azure.ml-environment";
pub(crate) const ENDPOINT: &str = "azure.ml-endpoint";
pub(crate) const DEPLOYMENT: &str = "azure.ml-deployment";
pub(crate) const TRAFFIC: &str = "azure.ml-traffic";
pub(crate) const AUTOSCALE: &str = "azure.autoscale";
/// What is in a workspace that others made, and what each is called: the workspace would take it away.
const INSIDE: [(&str, &str); 5] = [
    ("onlineEndpoints", "online endpoint"),
    ("batchEndpoints", "batch endpoint"),
    ("computes", "compute"),
    ("models", "registered model"),
    ("data", "data asset"),
];
/// What the id of the traffic of an endpoint has after that of the endpoint: it is a member of it.
const OF_ENDPOINT: &str = ":traffic";
/// The time between two probes of a container, in seconds.
const PROBE_SECONDS: u64 = 10;
/// How often a container may miss probes before it gets no requests, and before it is started again.
const MISSED_BY_READY: u64 = 3;
const MISSED_PROBES: u64 = 30;
/// Where the rights to read the identity of an endpoint are checked: a change of its traffic sends it too.
const ASSIGN: &str = "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action";
/// The course of operations on endpoints and deployments, and the results of those whose answers have `Location` alone: deletions
/// (<https://learn.microsoft.com/rest/api/azureml/online-deployments/delete>).
const OPERATIONS: &str = "Microsoft.MachineLearningServices/locations/mfeOperationsStatus/read";
const RESULTS: &str = "Microsoft.MachineLearningServices/locations/mfeOperationResults/read";
const ALL: &[Verb] = &[Verb::Create, Verb::Update, Verb::Delete];

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            deadline: MINUTE.saturating_mul(30),
            permissions: &[
                read("Microsoft.MachineLearningServices/workspaces/read"),
                put("Microsoft.MachineLearningServices/workspaces/write"),
                delete("Microsoft.MachineLearningServices/workspaces/delete"),
                read("Microsoft.MachineLearningServices/workspaces/onlineEndpoints/read"),
                read("Microsoft.MachineLearningServices/workspaces/computes/read"),
                read("Microsoft.MachineLearningServices/workspaces/models/read"),
                read("Microsoft.MachineLearningServices/workspaces/batchEndpoints/read"),
                read("Microsoft.MachineLearningServices/workspaces/data/read"),
                read("Microsoft.MachineLearningServices/locations/workspaceOperationsStatus/read"),
            ],
            terraform: &[("azurerm_machine_learning_workspace", "id")],
            ..kind(WORKSPACE, "a workspace of Azure Machine Learning", Identity::Token)
        },
        service: SERVICE,
        resource: &Rest::<Workspace>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            // Another image is another version, and a deployment of the old one answers until that of the new one does.
            replace: ReplaceOrder::CreateFirst,
            permissions: &[
                read("Microsoft.MachineLearningServices/workspaces/environments/versions/read"),
                create("Microsoft.MachineLearningServices/workspaces/environments/versions/write"),
            ],
            ..kind(ENVIRONMENT, "an image of the servers, for deployments of Azure Machine Learning", Identity::Part)
        },
        service: SERVICE,
        resource: &Rest::<Environment>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            deadline: MINUTE.saturating_mul(30),
            permissions: &[
                read("Microsoft.MachineLearningServices/workspaces/onlineEndpoints/read"),
                put("Microsoft.MachineLearningServices/workspaces/onlineEndpoints/write"),
                delete("Microsoft.MachineLearningServices/workspaces/onlineEndpoints/delete"),
                read("Microsoft.MachineLearningServices/workspaces/onlineEndpoints/deployments/read"),
                put(ASSIGN),
                read(OPERATIONS),
                read(RESULTS),
            ],
            ..kind(ENDPOINT, "an online endpoint of Azure Machine Learning, which clients call", Identity::Token)
        },
        service: SERVICE,
        resource: &Rest::<Endpoint>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            // It waits for machines, for the image, and for the models that its containers fetch.
            deadline: MINUTE.saturating_mul(130),
            typical: Some(MINUTE.saturating_mul(12)),
            pricing: Pricing::BySpec,
            permissions: &[
                read("Microsoft.MachineLearningServices/workspaces/onlineEndpoints/deployments/read"),
                put("Microsoft.MachineLearningServices/workspaces/onlineEndpoints/deployments/write"),
                delete("Microsoft.MachineLearningServices/workspaces/onlineEndpoints/deployments/delete"),
                // The deployment that gets the requests, for the number of its machines.
                create("Microsoft.MachineLearningServices/workspaces/onlineEndpoints/read"),
                // Requests to the endpoint are those of the identity that deploys.
                read("Microsoft.MachineLearningServices/workspaces/onlineEndpoints/score/action"),
                read("Microsoft.MachineLearningServices/locations/usages/read"),
                read(OPERATIONS),
                read(RESULTS),
            ],
            ..kind(DEPLOYMENT, "machines of an online endpoint with a release of the servers", Identity::Token)
        },
        service: SERVICE,
        resource: &Rest::<Deployment>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            deadline: MINUTE.saturating_mul(30),
            permissions: &[
                read("Microsoft.MachineLearningServices/workspaces/onlineEndpoints/read"),
                Permission::on(ALL, "Microsoft.MachineLearningServices/workspaces/onlineEndpoints/write"),
                Permission::on(ALL, ASSIGN),
                read(OPERATIONS),
            ],
            ..kind(TRAFFIC, "the deployment that gets the requests to an online endpoint", Identity::Part)
        },
        service: SERVICE,
        resource: &Rest::<Traffic>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            permissions: &[
                read("Microsoft.Insights/autoscaleSettings/read"),
                put("Microsoft.Insights/autoscaleSettings/write"),
                delete("Microsoft.Insights/autoscaleSettings/delete"),
            ],
            terraform: &[("azurerm_monitor_autoscale_setting", "id")],
            ..kind(AUTOSCALE, "the autoscaling of a deployment", Identity::Named)
        },
        service: INSIGHTS,
        resource: &Rest::<Autoscale>::kind(),
        refused: &[],
    },
];

/// A workspace whose storage account has no keys: its own identity, to which Azure gives roles on the group, reads and writes it
/// (<https://learn.microsoft.com/azure/machine-learning/how-to-disable-local-auth-storage>). Outputs: `id`, `name`.
struct Workspace;

#[async_trait]
impl RestKind for Workspace {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.MachineLearningServices/workspaces",
        version: VERSION,
        path: "{group}/providers/Microsoft.MachineLearningServices/workspaces/{name}",
        constants: &[
            ("/kind", "\"Default\""),
            ("/sku", "{\"name\":\"Basic\",\"tier\":\"Basic\"}"),
            ("/identity", "{\"type\":\"SystemAssigned\"}"),
            ("/properties/systemDatastoresAuthMode", "\"identity\""),
            ("/properties/publicNetworkAccess", "\"Enabled\""),
        ],
        fields: &[
            LOCATION,
            Field::plain("storage", "/properties/storageAccount"),
            Field::plain("vault", "/properties/keyVault"),
        ],
        update: Update::Patch,
        suffixed: true,
        ..Table::USUAL
    };

    /// Endpoints, computes, models and data of others.
    async fn foreign(api: &Api, id: &str, document: &Value) -> Result<Vec<Foreign>> {
        if !is_container(&Self::state(document)) {
            return Ok(Vec::new());
        }
        let lineage = tags_at(document, "/tags").get(LINEAGE).cloned();
        let mut all = Vec::new();
        for (collection, what) in INSIDE {
            let found = api.list(Call::get(format!("{id}/{collection}"), VERSION)).await?;
            all.extend(others(&found, lineage.as_deref(), what));
        }
        Ok(all)
    }

    /// Purges it: a workspace that is only deleted keeps its name and its data for 14 days, without the storage account that belongs
    /// to it (<https://learn.microsoft.com/azure/machine-learning/concept-soft-delete>, Azure/ResourceModules#3596).
    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<Pending>> {
        let call = Call::new(Method::DELETE, &seen.id, VERSION).query("forceToPurge", "true");
        Ok(api.send(call).await?.pending)
    }
}

/// Whether an object may have others inside it, and can list them: not while it is being created or deleted.
fn is_container(state: &State) -> bool {
    match state {
        State::Pending(word) => word != "creating",
        state => *state != State::Deleting,
    }
}

/// The objects of a list without the tag of a deployment.
fn others<'f>(found: &'f [Value], lineage: Option<&'f str>, what: &'f str) -> impl Iterator<Item = Foreign> + 'f {
    let is_own =
        move |one: &Value| lineage.is_some() && tags_at(one, "/tags").get(LINEAGE).map(String::as_str) == lineage;
    found.iter().filter(move |one| !is_own(one)).filter_map(move |one| external(one["id"].as_str()?, what))
}

/// A version of an environment: an image as it is, and the routes of the servers in it. It never changes, and ends with its workspace.
/// Nothing is built for it (<https://learn.microsoft.com/azure/machine-learning/how-to-deploy-custom-container>). Outputs: `id`, `name`.
struct Environment;

impl RestKind for Environment {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.MachineLearningServices/workspaces/environments/versions",
        version: VERSION,
        path: "{workspace}/environments/{name}/versions/{version}",
        constants: &[
            ("/properties/osType", "\"Linux\""),
            ("/properties/inferenceConfig/livenessRoute", "{\"path\":\"/ping\",\"port\":8080}"),
            ("/properties/inferenceConfig/readinessRoute", "{\"path\":\"/ping\",\"port\":8080}"),
            ("/properties/inferenceConfig/scoringRoute", "{\"path\":\"/invocations\",\"port\":8080}"),
        ],
        fields: &[Field::plain("image", "/properties/image")],
        marks: Marks::Part,
        retained: true,
        ..Table::USUAL
    };
}

/// An endpoint that takes tokens of Microsoft Entra: it has no keys
/// (<https://learn.microsoft.com/azure/machine-learning/concept-endpoints-online-auth>). Its containers have an identity of the site.
/// Outputs: `id`, `name`.
struct Endpoint;

#[async_trait]
impl RestKind for Endpoint {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.MachineLearningServices/workspaces/onlineEndpoints",
        version: VERSION,
        path: "{workspace}/onlineEndpoints/{name}",
        constants: &[
            ("/kind", "\"Managed\""),
            ("/properties/authMode", "\"AADToken\""),
            ("/properties/publicNetworkAccess", "\"Enabled\""),
        ],
        fields: &[LOCATION, Field::code("identity", "/identity", identity, identified)],
        update: Update::Patch,
        suffixed: true,
        without: "its traffic: `az ml online-endpoint update --name ENDPOINT --traffic DEPLOYMENT=100`, once its deployment is there",
        ..Table::USUAL
    };

    /// Deployments of others: they end with the endpoint.
    async fn foreign(api: &Api, id: &str, document: &Value) -> Result<Vec<Foreign>> {
        if !is_container(&Self::state(document)) {
            return Ok(Vec::new());
        }
        let lineage = tags_at(document, "/tags").get(LINEAGE).cloned();
        let found = api.list(Call::get(format!("{id}/deployments"), VERSION)).await?;
        Ok(others(&found, lineage.as_deref(), "deployment").collect())
    }
}

/// The variables of a deployment without those that the service adds (ansible-collections/azure#2225).
fn variables(document: &Value) -> Value {
    let all = document["properties"]["environmentVariables"].as_object().into_iter().flatten();
    let own = all.filter(|(name, _)| !name.starts_with("AML_") && !name.starts_with("AZUREML_"));
    Value::Object(own.map(|(name, value)| (name.clone(), value.clone())).collect())
}

/// Machines with a release. It changes in its number of machines only: everything else is another deployment. Outputs: `id`, `name`.
struct Deployment;

#[async_trait]
impl RestKind for Deployment {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.MachineLearningServices/workspaces/onlineEndpoints/deployments",
        version: VERSION,
        path: "{endpoint}/deployments/{name}",
        constants: &[
            ("/kind", "\"Managed\""),
            ("/properties/endpointComputeType", "\"Managed\""),
            ("/properties/scaleSettings", "{\"scaleType\":\"Default\"}"),
            ("/properties/appInsightsEnabled", "false"),
            ("/properties/egressPublicNetworkAccess", "\"Enabled\""),
        ],
        fields: &[
            LOCATION,
            Field::plain("environment", "/properties/environmentId"),
            Field::code("variables", "/properties/environmentVariables", Value::clone, variables),
            Field::plain("machine", "/properties/instanceType"),
            Field::code("instances", "/sku", capacity, instances).changed(),
            Field::code("timeout_seconds", "/properties/requestSettings/requestTimeout", duration, |one| {
                seconds(&one["properties"]["requestSettings"]["requestTimeout"])
            }),
            Field::plain("concurrency", "/properties/requestSettings/maxConcurrentRequestsPerInstance"),
            Field::seen("start_seconds", |one| {
                let probes = one["properties"]["startupProbe"]["failureThreshold"].as_u64();
                probes.map_or(Value::Null, |probes| json!(probes.saturating_mul(PROBE_SECONDS)))
            }),
        ],
        in_place: &["instances"],
        update: Update::Patch,
        suffixed: true,
        // Azure Monitor changes the number of machines.
        ignored: &["body.sku.capacity"],
        ..Table::USUAL
    };

    /// Azure writes sizes in any case. The autoscaler owns the number of machines above the lower bound, and takes what is beyond the
    /// upper one away.
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        match field {
            "machine" => wanted.as_str().zip(seen.as_str()).is_some_and(|(one, other)| one.eq_ignore_ascii_case(other)),
            "instances" => {
                let bound = |name: &str| wanted[name].as_u64();
                match (bound("min"), bound("max"), seen["min"].as_u64()) {
                    (Some(min), Some(max), Some(seen)) => seen == min || seen > min && max > min,
                    _ => false,
                }
            }
            _ => false,
        }
    }

    /// A container has started once `/ping` answers, which it may take all of its start for. It is asked whether it is ready and alive
    /// from then on.
    fn complete(spec: &Spec, document: &mut Value) {
        let start = spec.get("start_seconds").and_then(Value::as_u64).unwrap_or_default();
        let probe = |failures: u64| {
            json!({
                "initialDelay": format!("PT{PROBE_SECONDS}S"),
                "period": format!("PT{PROBE_SECONDS}S"),
                "timeout": "PT2S",
                "successThreshold": 1,
                "failureThreshold": failures,
            })
        };
        set(document, "/properties/startupProbe", probe(start.div_ceil(PROBE_SECONDS)));
        set(document, "/properties/readinessProbe", probe(MISSED_BY_READY));
        set(document, "/properties/livenessProbe", probe(MISSED_PROBES));
    }

    /// It begins with as many machines as the deployment that gets the requests has: another one takes 12 to 18 minutes
    /// (Azure/azureml-examples#3515), and all requests move at once.
    async fn prepare(api: &Api, spec: &Spec, document: &mut Value, _chosen: &Candidate) -> Result<()> {
        let bound = |name: &str| spec.get("instances").and_then(|bounds| bounds[name].as_u64());
        let (Some(min), Some(max)) = (bound("min"), bound("max")) else { return Ok(()) };
        let Some(id) = spec.get("endpoint").and_then(Value::as_str) else { return Ok(()) };
        let Some(endpoint) = api.find(Call::get(id, VERSION)).await? else { return Ok(()) };
        let served = served(&endpoint);
        let Some(served) = served.as_str() else { return Ok(()) };
        let old = api.find(Call::get(served, VERSION)).await?;
        if let Some(count) = old.and_then(|old| old["sku"]["capacity"].as_u64()).filter(|count| *count > min) {
            set(document, "/sku/capacity", json!(count.min(max).max(min)));
        }
        Ok(())
    }
}

fn capacity(bounds: &Value) -> Value {
    json!({ "name": "Default", "capacity": bounds["min"] })
}

fn instances(document: &Value) -> Value {
    let count = &document["sku"]["capacity"];
    json!({ "min": count, "max": count })
}

fn duration(value: &Value) -> Value {
    value.as_u64().map_or(Value::Null, |seconds| json!(format!("PT{seconds}S")))
}

/// The seconds of a duration, which Azure may write in other units: `PT3M`.
fn seconds(value: &Value) -> Value {
    let duration = value.as_str().and_then(|text| text.parse::<SignedDuration>().ok());
    duration.map_or(Value::Null, |one| json!(one.as_secs()))
}

/// The traffic of an endpoint, which is a member of it: it names deployments, and these their endpoint. There is none until it was
/// given to a deployment once. Outputs: `id`, `name`, `url`.
struct Traffic;

#[async_trait]
impl RestKind for Traffic {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.MachineLearningServices/workspaces/onlineEndpoints",
        version: VERSION,
        path: "{endpoint}:traffic",
        fields: &[Field::seen("deployment", served)],
        in_place: &["deployment"],
        marks: Marks::Part,
        outputs: &[("url", "/properties/scoringUri")],
        undeclared: Some(
            "the traffic is a member of the endpoint, which has to be there before the deployment that it names",
        ),
        ..Table::USUAL
    };

    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        let document = api.find(Call::get(endpoint(id), VERSION)).await?;
        let has_traffic = |one: &Value| {
            let mut shares = one["properties"]["traffic"].as_object().into_iter().flatten();
            shares.any(|(_, share)| share.as_u64().unwrap_or_default() > 0)
        };
        Ok(document.filter(has_traffic))
    }

    fn complete(spec: &Spec, document: &mut Value) {
        document["deployment"] = spec.get("deployment").cloned().unwrap_or_default();
    }

    async fn send(api: &Api, id: &str, document: Value) -> Result<Reply> {
        let pending = direct(api, id, &document["deployment"]).await?;
        Ok(Reply { status: 202, body: Value::Null, pending })
    }

    async fn put(api: &Api, id: &str, wanted: &Value, _field: &str) -> Result<Option<Pending>> {
        direct(api, id, wanted).await
    }

    /// The shares add up to 100 or to nothing
    /// (<https://learn.microsoft.com/azure/machine-learning/how-to-safely-rollout-online-endpoints>).
    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<Pending>> {
        direct(api, &seen.id, &Value::Null).await
    }
}

/// The id of the endpoint in that of its traffic.
fn endpoint(id: &str) -> &str {
    id.strip_suffix(OF_ENDPOINT).unwrap_or(id)
}

/// The deployment that gets all requests; null if they are split.
fn served(document: &Value) -> Value {
    let mut shares = document["properties"]["traffic"].as_object().into_iter().flatten();
    let one = shares.find(|(_, share)| share.as_u64() == Some(100));
    match one.zip(document["id"].as_str()) {
        Some(((name, _), id)) => json!(format!("{id}/deployments/{name}")),
        None => Value::Null,
    }
}

/// Gives all requests to a deployment, or to none. A change of the traffic is one of the whole endpoint.
async fn direct(api: &Api, id: &str, deployment: &Value) -> Result<Option<Pending>> {
    let traffic = deployment.as_str().map_or_else(|| json!({}), |id| json!({ (last(id)): 100 }));
    rewrite::<Endpoint>(api, endpoint(id), |document| {
        if let Some(properties) = document["properties"].as_object_mut() {
            properties.retain(|name, _| !["scoringUri", "swaggerUri"].contains(&name.as_str()));
        }
        set(document, "/properties/traffic", traffic);
    })
    .await
}

/// The autoscaling of a deployment (<https://learn.microsoft.com/azure/machine-learning/how-to-autoscale-endpoints>). Outputs: `id`,
/// `name`.
struct Autoscale;

impl RestKind for Autoscale {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Insights/autoscaleSettings",
        version: "2022-10-01",
        path: "{group}/providers/Microsoft.Insights/autoscaleSettings/{name}",
        fields: &[
            LOCATION,
            Field::plain("target", "/properties/targetResourceUri").changed(),
            Field::code("scaling", "/properties/profiles", profiles, scaling).changed(),
            Field::plain("enabled", "/properties/enabled").changed(),
        ],
        in_place: &["target", "scaling", "enabled"],
        ..Table::USUAL
    };

    /// A number may be written with and without a fraction, and Azure writes ids in any case (Azure/azure-rest-api-specs#24337).
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        let lower = |scaling: &Value| {
            let mut one = scaling.clone();
            set(&mut one, "/resource", json!(scaling["resource"].as_str().map(str::to_ascii_lowercase)));
            profiles(&one)
        };
        let wanted = lower(wanted);
        field == "scaling" && !wanted.is_null() && same(Some(&wanted), Some(&lower(seen)))
    }
}

/// When there is a machine more, and when one less.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Scaling {
    min: u64,
    max: u64,
    /// The metric, and what it is of.
    metric: String,
    resource: String,
    /// Whether its value is divided by the number of machines.
    divided: bool,
    /// Its average of five minutes above which there is another machine, and below which there is one less.
    above: f64,
    below: f64,
}

/// The profiles of a setting; null while the resource is not known.
fn profiles(value: &Value) -> Value {
    let Ok(one) = serde_json::from_value::<Scaling>(value.clone()) else { return Value::Null };
    let rule = |operator: &str, threshold: f64, direction: &str, pause: &str| {
        json!({
            "metricTrigger": {
                "metricName": one.metric,
                "metricResourceUri": one.resource,
                "timeGrain": "PT1M",
                "statistic": "Average",
                "timeWindow": "PT5M",
                "timeAggregation": "Average",
                "operator": operator,
                "threshold": threshold,
                "dividePerInstance": one.divided,
            },
            "scaleAction": { "direction": direction, "type": "ChangeCount", "value": "1", "cooldown": pause },
        })
    };
    json!([{
        "name": "servers",
        "capacity": { "minimum": one.min.to_string(), "maximum": one.max.to_string(), "default": one.min.to_string() },
        "rules": [
            // A machine starts in 12 to 18 minutes (Azure/azureml-examples#3515).
            rule("GreaterThan", one.above, "Increase", "PT20M"),
            rule("LessThan", one.below, "Decrease", "PT10M"),
        ],
    }])
}

/// The bounds in a document; null if it has others than profiles of this form.
fn scaling(document: &Value) -> Value {
    let read = || {
        let all = &document["properties"]["profiles"];
        let [profile] = all.as_array()?.as_slice() else { return None };
        let bound = |name: &str| profile["capacity"][name].as_str()?.parse::<u64>().ok();
        let trigger = |place: usize| &profile["rules"][place]["metricTrigger"];
        let first = trigger(0);
        let one = Scaling {
            min: bound("minimum")?,
            max: bound("maximum")?,
            metric: first["metricName"].as_str()?.to_owned(),
            resource: first["metricResourceUri"].as_str()?.to_owned(),
            divided: first["dividePerInstance"] == true,
            above: first["threshold"].as_f64()?,
            below: trigger(1)["threshold"].as_f64()?,
        };
        // What Azure adds to a profile says nothing.
        let rules = |profiles: &Value| {
            let all = profiles[0]["rules"].as_array().into_iter().flatten();
            let part = |rule: &Value| {
                let (trigger, action) = (&rule["metricTrigger"], &rule["scaleAction"]);
                [&trigger["operator"], &trigger["metricName"], &action["direction"], &action["value"]].map(Value::clone)
            };
            all.map(part).collect::<Vec<_>>()
        };
        (rules(&profiles(&json!(one))) == rules(all)).then_some(one)
    };
    read().map(|one| json!(one)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_that_of_one_deployment_and_null_if_it_is_split() {
        let of = |traffic: Value| served(&json!({ "id": "/subscriptions/s/e", "properties": { "traffic": traffic } }));
        assert_eq!(of(json!({ "a": 0, "b": 100 })), "/subscriptions/s/e/deployments/b");
        assert_eq!((of(json!({ "a": 40, "b": 60 })), of(json!({}))), (Value::Null, Value::Null));
        assert_eq!(endpoint("/subscriptions/s/e:traffic"), "/subscriptions/s/e");
    }

    #[test]
    fn durations_are_read_in_any_unit() {
        assert_eq!((duration(&json!(180)), duration(&Value::Null)), (json!("PT180S"), Value::Null));
        assert_eq!((seconds(&json!("PT180S")), seconds(&json!("PT3M"))), (json!(180), json!(180)));
        assert_eq!((seconds(&json!("soon")), seconds(&Value::Null)), (Value::Null, Value::Null));
    }

    #[test]
    fn the_autoscaler_owns_the_number_of_machines_between_its_bounds() {
        let fits = |min: u64, max: u64, count: u64| {
            let seen = instances(&json!({ "sku": capacity(&json!({ "min": count })) }));
            Deployment::fits("instances", &json!({ "min": min, "max": max }), &seen)
        };
        assert!(fits(1, 4, 1) && fits(1, 4, 3) && fits(2, 2, 2));
        assert!(!fits(2, 4, 1) && !fits(2, 2, 3), "below the lower bound, and without an autoscaler");
        assert!(Deployment::fits("machine", &json!("Standard_DS3_v2"), &json!("STANDARD_DS3_V2")));
    }

    #[test]
    fn variables_of_the_service_are_not_read_and_those_of_others_are() {
        let of = |all: Value| variables(&json!({ "properties": { "environmentVariables": all } }));
        let seen = json!({ "A": "1", "AML_APP_ROOT": "/var/azureml-app", "AZUREML_MODEL_DIR": "/m" });
        assert_eq!(of(seen), json!({ "A": "1" }));
        assert_eq!(of(json!({ "A": "1", "B": "2" })), json!({ "A": "1", "B": "2" }));
        assert_eq!(of(Value::Null), json!({}));
    }

    #[test]
    fn nothing_is_listed_in_what_is_being_created_or_deleted() {
        for (state, expected) in
            [("Creating", false), ("Deleting", false), ("Updating", true), ("Succeeded", true), ("Failed", true)]
        {
            let document = json!({ "properties": { "provisioningState": state } });
            assert_eq!(is_container(&Workspace::state(&document)), expected, "{state}");
        }
    }

    #[test]
    fn a_container_has_all_of_its_start_to_be_ready() {
        let mut document = json!({});
        Deployment::complete(&Spec::of(&json!({ "start_seconds": 605 })), &mut document);
        let properties = &document["properties"];
        let misses =
            ["startupProbe", "readinessProbe", "livenessProbe"].map(|probe| &properties[probe]["failureThreshold"]);
        assert_eq!(misses, [&json!(61), &json!(3), &json!(30)]);
        let read = Deployment::TABLE.field("start_seconds").unwrap().read(&document);
        assert_eq!(read, 610);
    }

    #[test]
    fn autoscaling_is_read_as_it_is_written() {
        let wanted = json!({ "min": 1, "max": 4, "metric": "RequestsPerMinute", "resource": "/subscriptions/S/e",
            "divided": true, "above": 300, "below": 150 });
        let mut document = json!({ "properties": { "profiles": profiles(&wanted) } });
        assert!(Autoscale::fits("scaling", &wanted, &scaling(&document)), "{document}");
        document["properties"]["profiles"][0]["rules"][0]["metricTrigger"]["metricResourceUri"] =
            json!("/subscriptions/s/E");
        assert!(Autoscale::fits("scaling", &wanted, &scaling(&document)), "{document}");
        document["properties"]["profiles"][0]["capacity"]["maximum"] = json!("9");
        assert!(!Autoscale::fits("scaling", &wanted, &scaling(&document)), "{document}");
        document["properties"]["profiles"][0]["rules"] = json!([]);
        assert_eq!(scaling(&document), Value::Null);
        let unknown = json!({ "min": 1, "max": 4, "resource": { "$output": "a/b#c" } });
        assert!(!Autoscale::fits("scaling", &unknown, &Value::Null));
        assert!(!Autoscale::fits("target", &json!("/subscriptions/s/a"), &json!("/subscriptions/s/b")));
        assert!(!Autoscale::fits("enabled", &json!(true), &json!(false)));
    }

    #[test]
    fn what_others_made_inside_is_told_by_its_tags() {
        let one = |id: &str, lineage: Value| json!({ "id": id, "tags": { (LINEAGE): lineage } });
        let found = [one("/a", json!("l")), one("/b", json!("other")), json!({ "id": "/c" })];
        let ids: Vec<String> = others(&found, Some("l"), "deployment").map(|one| one.cloud_id.to_string()).collect();
        assert_eq!(ids, ["/b", "/c"]);
    }
}
