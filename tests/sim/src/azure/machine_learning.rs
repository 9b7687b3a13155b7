//! Azure Machine Learning: workspaces, environments, online endpoints, their deployments, and the requests that these answer. Azure's
//! library for Python has older versions only, so that members are held against the names of the documentation.

use std::time::Duration;

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::cloud::{Cloud, put, put_missing, text};
use super::identity::ACR_PULL;
use super::kinds::{self, Answer, Call, KIND, Kind, Special, Style, is_name, page, parent};
use super::problem::{Problem, bad, missing};
use super::resources::{REGIONS, get};
use crate::aws::protocol::Request;
use crate::clock::later;
use crate::gcp::run::{Answered, Container};
use crate::{Behaviour, Source};

const SERVICE: &str = "Microsoft.MachineLearningServices";
const VERSION: &str = "2024-10-01";
const WORKSPACE: &str = "Microsoft.MachineLearningServices/workspaces";
const ENVIRONMENT: &str = "Microsoft.MachineLearningServices/workspaces/environments/versions";
const ENDPOINT: &str = "Microsoft.MachineLearningServices/workspaces/onlineEndpoints";
const DEPLOYMENT: &str = "Microsoft.MachineLearningServices/workspaces/onlineEndpoints/deployments";
/// The path of requests to online endpoints, before their names.
pub(crate) const SCORING: &str = "inference.ml.azure.com";
/// The audience of tokens for them.
pub(crate) const AUDIENCE: &str = "ml.azure.com";
/// The action of requests.
pub(crate) const SCORE: &str = "Microsoft.MachineLearningServices/workspaces/onlineEndpoints/score/action";
/// The route of an endpoint without a deployment.
const ROUTE: &str = "/score";
/// The longest request, in bytes and in seconds.
const MOST_BYTES: usize = 1_500_000;
const MOST_SECONDS: i64 = 180;
/// Cores of a family that a subscription has in a region, and those of all families; it has none of those with GPUs at first.
const FAMILY: i64 = 100;
const REGIONAL: i64 = 300;
/// The quota of all families.
const TOTAL: &str = "Total Cluster Dedicated Regional vCPUs";
/// How long a deleted workspace is kept.
const KEPT: Duration = Duration::from_secs(14 * 86_400);
const BLOB_READER: &str = "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1";

/// A size: name, the name of its quota, cores, and whether a fifth more is reserved for upgrades.
type Size = (&'static str, &'static str, u64, bool);

/// <https://learn.microsoft.com/azure/machine-learning/reference-managed-online-endpoints-vm-sku-list>
const SIZES: &[Size] = &[
    ("Standard_DS3_v2", "Standard DSv2 Family Cluster Dedicated vCPUs", 4, true),
    ("Standard_DS4_v2", "Standard DSv2 Family Cluster Dedicated vCPUs", 8, true),
    ("Standard_F8s_v2", "Standard FSv2 Family Cluster Dedicated vCPUs", 8, true),
    ("Standard_NC4as_T4_v3", "Standard NCASv3_T4 Family Cluster Dedicated vCPUs", 4, true),
    ("Standard_NC24ads_A100_v4", "Standard NCADSA100v4 Family Cluster Dedicated vCPUs", 24, false),
];

/// The members of each type, below `properties` after a dot: <https://learn.microsoft.com/rest/api/azureml/>.
const MEMBERS: &[(&str, &[&str])] = &[
    (
        WORKSPACE,
        &[
            "location",
            "tags",
            "kind",
            "sku",
            "identity",
            ".applicationInsights",
            ".containerRegistry",
            ".description",
            ".friendlyName",
            ".keyVault",
            ".managedNetwork",
            ".publicNetworkAccess",
            ".storageAccount",
            ".systemDatastoresAuthMode",
        ],
    ),
    (ENVIRONMENT, &[".description", ".image", ".inferenceConfig", ".osType", ".properties", ".tags"]),
    (
        ENDPOINT,
        &[
            "location",
            "tags",
            "kind",
            "sku",
            "identity",
            ".authMode",
            ".description",
            ".mirrorTraffic",
            ".properties",
            ".publicNetworkAccess",
            ".traffic",
        ],
    ),
    (
        DEPLOYMENT,
        &[
            "location",
            "tags",
            "kind",
            "sku",
            "identity",
            ".appInsightsEnabled",
            ".description",
            ".egressPublicNetworkAccess",
            ".endpointComputeType",
            ".environmentId",
            ".environmentVariables",
            ".instanceType",
            ".livenessProbe",
            ".model",
            ".properties",
            ".readinessProbe",
            ".requestSettings",
            ".scaleSettings",
            ".startupProbe",
        ],
    ),
];
/// Members that the service sets.
const READ_ONLY: &[&str] = &["id", "name", "type", "systemData", ".provisioningState", ".scoringUri", ".swaggerUri"];

pub(crate) const KINDS: &[Kind] = &[
    Kind {
        kind: WORKSPACE,
        version: VERSION,
        styles: [Style::Both, Style::Both, Style::Both],
        seconds: [60, 20, 60],
        accepted: 202,
        is_name: |name| is_name(name, 3..=33, "-_"),
        references: &["/properties/storageAccount", "/properties/keyVault"],
        fixed: &["/properties/storageAccount", "/properties/keyVault"],
        is_rolled_back: true,
        accept: accept_workspace,
        finish: finish_workspace,
        ..KIND
    },
    Kind { kind: ENVIRONMENT, version: VERSION, tags: 0, accept: accept_environment, ..KIND },
    Kind {
        kind: ENDPOINT,
        version: VERSION,
        styles: [Style::Async, Style::Both, Style::Location],
        seconds: [90, 20, 90],
        is_name: is_endpoint_name,
        accept: accept_endpoint,
        end: end_endpoint,
        show: show_endpoint,
        ..KIND
    },
    Kind {
        kind: DEPLOYMENT,
        version: VERSION,
        styles: [Style::Async, Style::Both, Style::Location],
        seconds: [600, 120, 60],
        is_name: is_endpoint_name,
        fixed: &["/properties/instanceType"],
        accept: accept_deployment,
        finish: finish_deployment,
        show: show_deployment,
        ..KIND
    },
];

pub(crate) const SPECIALS: &[Special] = &[
    get("Microsoft.MachineLearningServices/locations/usages[]", VERSION, "", usages),
    get("Microsoft.MachineLearningServices/workspaces/computes[]", VERSION, "", within),
    get("Microsoft.MachineLearningServices/workspaces/models[]", VERSION, "", within),
    get("Microsoft.MachineLearningServices/workspaces/batchEndpoints[]", VERSION, "", within),
    get("Microsoft.MachineLearningServices/workspaces/data[]", VERSION, "", within),
    other("PUT", ENVIRONMENT, put_version),
    other("DELETE", WORKSPACE, delete_workspace),
    // A PATCH has tags, the identity of an endpoint, and the number of machines of a deployment.
    other("PATCH", WORKSPACE, kinds::update),
    other("PATCH", ENDPOINT, kinds::update),
    other("PATCH", DEPLOYMENT, kinds::update),
];

const fn other(method: &'static str, path: &'static str, handler: kinds::Handler) -> Special {
    Special { method, path, version: VERSION, request: "", answer: "", handler }
}

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "a deleted workspace is kept for 14 days, and forceToPurge ends it at once",
        Source::Documentation("https://learn.microsoft.com/azure/machine-learning/concept-soft-delete"),
    ),
    rule(
        "a workspace with the name of a deleted one in its group is 400 BadRequest at the end of its creation (also \
            Azure/ResourceModules#3596)",
        Source::Report("Azure/ResourceModules#3397"),
    ),
    rule(
        "a workspace names its storage account and its vault, which never change",
        Source::Documentation("https://learn.microsoft.com/rest/api/azureml/workspaces/create-or-update"),
    ),
    rule(
        "a request with a member that the documentation does not have is 400 BadRequest",
        Source::Documentation("https://learn.microsoft.com/rest/api/azureml/online-deployments/create-or-update"),
    ),
    rule(
        "creations of endpoints and deployments are announced by Azure-AsyncOperation, and deletions by Location alone",
        Source::Documentation("https://learn.microsoft.com/rest/api/azureml/online-deployments/delete"),
    ),
    rule(
        "a version of an environment makes the environment that it is in",
        Source::Documentation("https://learn.microsoft.com/rest/api/azureml/environment-versions/create-or-update"),
    ),
    rule(
        "names of endpoints and deployments have 3 to 32 letters, digits and inner hyphens",
        Source::Documentation("https://learn.microsoft.com/azure/machine-learning/how-to-manage-quotas"),
    ),
    rule(
        "the name of an endpoint is unique in its region: 400 BadRequest (also Azure/azureml-examples#1930)",
        Source::Report("Azure/mlops-project-template#29"),
    ),
    rule("the name of a deleted endpoint stays taken for a while", Source::Report("Azure/azure-cli-extensions#7660")),
    rule(
        "the traffic of an endpoint names its deployments and adds up to 100, or to nothing",
        Source::Documentation(
            "https://learn.microsoft.com/azure/machine-learning/how-to-safely-rollout-online-endpoints",
        ),
    ),
    rule(
        "the deployments of an endpoint end with it",
        Source::Documentation("https://learn.microsoft.com/azure/machine-learning/how-to-deploy-online-endpoints"),
    ),
    rule(
        "cores of deployments have quotas of their own, of which some sizes take a fifth more: 400 \
            InferencingClientCreateDeploymentFailed (also Azure/mlops-v2#124)",
        Source::Report("MicrosoftLearning/mslearn-azure-ml#30"),
    ),
    rule(
        "the cores of all families have a quota too, and the list of usages has those of workspaces under the names of families",
        Source::Documentation("https://learn.microsoft.com/rest/api/azureml/usages/list"),
    ),
    rule("the size of the machines of a deployment does not change", Source::Report("Azure/AML-Kubernetes#247")),
    rule(
        "a deployment is shown with variables of the service beside those of the request",
        Source::Report("ansible-collections/azure#2225"),
    ),
    rule(
        "a request takes 180 seconds and 1.5 MB at most",
        Source::Documentation(
            "https://learn.microsoft.com/azure/machine-learning/how-to-manage-quotas#azure-machine-learning-online-endpoints-and-batch-endpoints",
        ),
    ),
    rule(
        "a deployment needs the namespaces Microsoft.Cdn and Microsoft.PolicyInsights: SubscriptionNotRegistered",
        Source::Report("MicrosoftLearning/mslearn-azure-ml#106"),
    ),
    rule(
        "a deployment whose identity may not pull the image, or read the account of the workspace, fails with BadArgument",
        Source::Documentation(
            "https://learn.microsoft.com/azure/machine-learning/how-to-troubleshoot-online-endpoints#authorization-error",
        ),
    ),
    rule(
        "a deployment whose containers do not answer their probes fails with ResourceNotReady in its message, without a code, and \
            stays (also Azure/data-product-analytics#137)",
        Source::Documentation(
            "https://learn.microsoft.com/azure/machine-learning/how-to-troubleshoot-online-endpoints#error-resourcenotready",
        ),
    ),
    rule(
        "the address of requests has the scoring route of the environment",
        Source::Documentation("https://learn.microsoft.com/azure/machine-learning/how-to-deploy-custom-container"),
    ),
    rule(
        "a request needs a token for https://ml.azure.com of an identity with onlineEndpoints/score/action",
        Source::Documentation("https://learn.microsoft.com/azure/machine-learning/concept-endpoints-online-auth"),
    ),
    rule(
        "an answer of a container with a status other than 200 is 424, with its status in ms-azureml-model-error-statuscode; an identity \
            that may not score gets 401",
        Source::Documentation(
            "https://learn.microsoft.com/azure/machine-learning/how-to-troubleshoot-online-endpoints#http-status-codes",
        ),
    ),
    rule(
        "a deleted workspace may still be listed in the portal",
        Source::LeftOut("Azure/azure-cli#33756: nothing lists deleted workspaces here"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: SERVICE, what, source }
}

fn is_endpoint_name(name: &str) -> bool {
    is_name(name, 3..=32, "-") && name.starts_with(|c: char| c.is_ascii_alphabetic()) && !name.ends_with('-')
}

fn invalid(message: impl Into<String>) -> Problem {
    bad("BadRequest", message)
}

/// Refuses members that a type does not have.
fn check_members(kind: &str, body: &Value) -> Result<(), Problem> {
    let known = MEMBERS.iter().find(|(one, _)| *one == kind).map_or(&[][..], |(_, members)| *members);
    let names = |value: &Value, mark: &str| -> Vec<String> {
        let members = value.as_object().into_iter().flatten();
        members
            .filter(|(name, _)| *name != "properties" || !mark.is_empty())
            .map(|(name, _)| format!("{mark}{name}"))
            .collect()
    };
    let mut all = names(body, "").into_iter().chain(names(&body["properties"], "."));
    let is_known = |name: &str| known.contains(&name) || READ_ONLY.contains(&name);
    match all.find(|name| !is_known(name)) {
        Some(name) => Err(invalid(format!("The request is invalid: Could not find member '{name}' on object."))),
        None => Ok(()),
    }
}

fn accept_workspace(_: &mut Cloud, _: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    check_members(WORKSPACE, body)?;
    if ["/properties/storageAccount", "/properties/keyVault"].iter().any(|member| text(body, member).is_empty()) {
        return Err(bad("ValidationError", "Missing dependent resources in workspace json"));
    }
    Ok(())
}

fn finish_workspace(cloud: &mut Cloud, key: &str, is_new: bool) -> Result<(), Value> {
    let is_kept = cloud.deleted_workspaces.get(key).is_some_and(|until| *until > cloud.now());
    match is_new && is_kept {
        true => {
            Err(invalid("Soft-deleted workspace exists. Please purge or recover it. https://aka.ms/wsoftdelete")
                .error())
        }
        false => Ok(()),
    }
}

fn delete_workspace(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let purges = call.parameter("forceToPurge").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let answer = kinds::delete(cloud, call)?;
    if purges {
        cloud.deleted_workspaces.remove(&call.key);
    } else if answer.status != 204 {
        let until = later(cloud.now(), KEPT);
        cloud.deleted_workspaces.insert(call.key.clone(), until);
    }
    Ok(answer)
}

/// What is in a workspace of a type without a row.
fn within(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let workspace = call.key.rsplit_once('/').map_or("", |(workspace, _)| workspace).to_owned();
    if !cloud.objects.contains_key(&workspace) {
        return Err(missing(&workspace));
    }
    let rows = kinds::listed(cloud, &format!("{}/", call.key)).into_iter().map(|(_, one)| one.body.clone()).collect();
    Ok(page(cloud, call, rows))
}

fn put_version(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let container = parent(call.id());
    let workspace = parent(&container);
    if !cloud.objects.contains_key(&workspace.to_lowercase()) {
        return Err(missing(&workspace));
    }
    if !cloud.objects.contains_key(&container.to_lowercase()) {
        let name = container.rsplit('/').next().unwrap_or_default().to_owned();
        cloud.put(&container, json!({ "id": container, "name": name, "properties": {} }));
    }
    kinds::write(cloud, call)
}

fn accept_environment(_: &mut Cloud, _: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    check_members(ENVIRONMENT, body)?;
    match text(body, "/properties/image").is_empty() {
        true => Err(invalid("An environment needs an image.")),
        false => Ok(()),
    }
}

/// The endpoints with their keys.
fn endpoints(cloud: &Cloud) -> impl Iterator<Item = (&String, &Value)> {
    let is_one = |key: &str| parent(key).contains("/workspaces/") && parent(key) + "/onlineendpoints/" == start(key);
    cloud.objects.iter().filter(move |(key, _)| is_one(key)).map(|(key, object)| (key, &object.body))
}

/// A key without its last part.
fn start(key: &str) -> String {
    key.rfind('/').map_or_else(String::new, |at| key[..=at].to_owned())
}

fn accept_endpoint(cloud: &mut Cloud, call: &Call, before: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    check_members(ENDPOINT, body)?;
    if !["Key", "AMLToken", "AADToken"].contains(&text(body, "/properties/authMode")) {
        return Err(invalid("The authMode of an endpoint is Key, AMLToken or AADToken."));
    }
    let own = place(body, call.name());
    let end = format!("/{}", call.name().to_lowercase());
    let is_other =
        |(key, one): (&String, &Value)| *key != call.key && key.ends_with(&end) && place(one, call.name()) == own;
    let is_held = cloud.taken.get(&own).is_some_and(|until| *until > cloud.now());
    if before.is_none() && (is_held || endpoints(cloud).any(is_other)) {
        return Err(invalid(format!("Endpoint name {} needs to be unique within a region.", call.name())));
    }
    put_missing(body, "/properties/traffic", json!({}));
    let traffic = body["properties"]["traffic"].as_object().into_iter().flatten();
    let shares: Vec<(&String, u64)> = traffic.map(|(name, share)| (name, share.as_u64().unwrap_or_default())).collect();
    let is_there =
        |name: &str| cloud.objects.contains_key(&format!("{}/deployments/{}", call.key, name.to_lowercase()));
    if let Some((name, _)) = shares.iter().find(|(name, _)| !is_there(name)) {
        return Err(invalid(format!("The traffic names deployment {name}, which does not exist.")));
    }
    match shares.iter().map(|(_, share)| share).sum::<u64>() {
        0 | 100 => Ok(()),
        sum => Err(invalid(format!("The traffic adds up to {sum}, and not to 0 or 100."))),
    }
}

/// The place of an endpoint's name among those that are taken.
fn place(body: &Value, name: &str) -> (String, String) {
    (ENDPOINT.to_owned(), format!("{}/{}", text(body, "/location").to_lowercase(), name.to_lowercase()))
}

fn end_endpoint(cloud: &mut Cloud, key: &str) -> Result<(), Value> {
    let until = cloud.lagged(&cloud.conduct.name_hold);
    if let Some(object) = cloud.objects.get(key) {
        let name = place(&object.body, key.rsplit('/').next().unwrap_or_default());
        cloud.taken.insert(name, until);
    }
    Ok(())
}

/// The deployment with the greatest share of the traffic of an endpoint, and its environment.
fn served<'c>(cloud: &'c Cloud, key: &str, endpoint: &Value) -> Option<(&'c Value, &'c Value)> {
    let traffic = endpoint["properties"]["traffic"].as_object()?;
    let shares = traffic.iter().filter_map(|(name, share)| Some((name, share.as_u64().filter(|share| *share > 0)?)));
    let (name, _) = shares.max_by_key(|(_, share)| *share)?;
    let deployment = &cloud.objects.get(&format!("{key}/deployments/{}", name.to_lowercase()))?.body;
    let environment = text(deployment, "/properties/environmentId").to_lowercase();
    Some((deployment, &cloud.objects.get(&environment)?.body))
}

fn route(environment: &Value) -> &str {
    text(environment, "/properties/inferenceConfig/scoringRoute/path")
}

fn show_endpoint(cloud: &Cloud, key: &str, body: &mut Value) {
    let route = served(cloud, key, body).map_or(ROUTE, |(_, environment)| route(environment));
    let name = key.rsplit('/').next().unwrap_or_default();
    let url = format!("{}/{SCORING}/{name}{route}", cloud.front);
    put(body, "/properties/scoringUri", url.into());
}

/// The service adds variables to those of a request.
fn show_deployment(_: &Cloud, _: &str, body: &mut Value) {
    put_missing(body, "/properties/environmentVariables/AML_APP_ROOT", "/var/azureml-app".into());
}

/// The limit of a quota.
fn limit_of(cloud: &Cloud, region: &str, name: &str) -> i64 {
    let usual = match name {
        TOTAL => REGIONAL,
        name if name.contains(" NC") => 0,
        _ => FAMILY,
    };
    cloud.quotas.get(&(region.to_owned(), name.to_owned())).copied().unwrap_or(usual)
}

fn size(name: &str) -> Option<&'static Size> {
    SIZES.iter().find(|row| row.0.eq_ignore_ascii_case(name))
}

/// The cores that a deployment counts with.
fn cores((_, _, cores, is_reserved): &Size, body: &Value) -> u64 {
    let count = body.pointer("/sku/capacity").and_then(Value::as_u64).unwrap_or_default();
    cores * if *is_reserved { (count * 6).div_ceil(5) } else { count }
}

/// The cores of a quota, or of all families, that the deployments of a region use, without one.
fn used(cloud: &Cloud, region: &str, quota: &str, without: &str) -> u64 {
    let is_other = |key: &str| key.contains("/onlineendpoints/") && key.contains("/deployments/") && key != without;
    let all = cloud.objects.iter().filter(|(key, _)| is_other(key)).map(|(_, object)| &object.body);
    let here = all.filter(|body| text(body, "/location").eq_ignore_ascii_case(region));
    here.filter_map(|body| size(text(body, "/properties/instanceType")).map(|row| (row, body)))
        .filter(|(row, _)| quota == TOTAL || row.1 == quota)
        .map(|(row, body)| cores(row, body))
        .sum()
}

fn usages(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let region = call.name().to_lowercase();
    if !REGIONS.iter().any(|row| row.0 == region) {
        return Err(bad("NoRegisteredProviderFound", format!("No registered resource provider found for '{region}'.")));
    }
    let mut names: Vec<&str> = SIZES.iter().map(|row| row.1).collect();
    names.dedup();
    let one = |kind: &str, name: &str, limit: i64| {
        json!({ "type": format!("{SERVICE}/{kind}/usages"), "unit": "Count", "currentValue": used(cloud, &region, name, ""),
            "limit": limit, "name": { "value": name, "localizedValue": name } })
    };
    let mut rows =
        vec![one("workspaces", SIZES[0].1, 0), one("dedicatedCores", TOTAL, limit_of(cloud, &region, TOTAL))];
    rows.extend(names.into_iter().map(|name| one("vmFamily", name, limit_of(cloud, &region, name))));
    Ok(page(cloud, call, rows))
}

fn accept_deployment(cloud: &mut Cloud, call: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    check_members(DEPLOYMENT, body)?;
    let lacking = ["Microsoft.Cdn", "Microsoft.PolicyInsights"].into_iter().find(|name| !cloud.is_registered(name));
    if let Some(name) = lacking {
        let message = format!("Resource provider [{name}] isn't registered with the subscription.");
        return Err(bad("SubscriptionNotRegistered", message));
    }
    if !cloud.objects.contains_key(&text(body, "/properties/environmentId").to_lowercase()) {
        return Err(invalid("The environment of the deployment does not exist."));
    }
    let name = text(body, "/properties/instanceType");
    let Some(row) = size(name) else { return Err(invalid(format!("The instance type {name} is not supported."))) };
    if body.pointer("/sku/capacity").and_then(Value::as_u64).is_none_or(|count| count < 1) {
        return Err(invalid("The capacity of a deployment has to be at least 1."));
    }
    let timeout = text(body, "/properties/requestSettings/requestTimeout").parse::<SignedDuration>();
    if !timeout.is_ok_and(|one| (1..=MOST_SECONDS).contains(&one.as_secs())) {
        return Err(invalid("The requestTimeout of a deployment has to be 180 seconds or less."));
    }
    let region = text(body, "/location").to_lowercase();
    let wanted = cores(row, body);
    for quota in [row.1, TOTAL] {
        let (used, limit) = (used(cloud, &region, quota, &call.key), limit_of(cloud, &region, quota));
        if i64::try_from(used + wanted).is_ok_and(|all| all <= limit) {
            continue;
        }
        let message = format!(
            "Not enough quota available for {name} in SubscriptionId {}. Current usage/limit: {used}/{limit}. Additional \
             needed: {wanted}.",
            cloud.subscription
        );
        return Err(bad("InferencingClientCreateDeploymentFailed", message));
    }
    Ok(())
}

/// The machines pull the image and read the account of the workspace with the identity of the endpoint.
fn finish_deployment(cloud: &mut Cloud, key: &str, is_new: bool) -> Result<(), Value> {
    if !is_new {
        return Ok(());
    }
    let failed = |code: &str, message: &str| Err(bad(code, message).error());
    let endpoint = parent(key);
    let body = |key: &str| cloud.objects.get(&key.to_lowercase()).map(|one| &one.body);
    let (Some(deployment), Some(owner), Some(workspace)) = (body(key), body(&endpoint), body(&parent(&endpoint)))
    else {
        return failed("NotFound", "The endpoint does not exist.");
    };
    let assigned = owner.pointer("/identity/userAssignedIdentities").and_then(Value::as_object);
    let identity = assigned.and_then(|all| all.keys().next()).and_then(|id| body(id));
    let principal = identity.map_or("", |one| text(one, "/properties/principalId"));
    let image = body(text(deployment, "/properties/environmentId")).map_or("", |one| text(one, "/properties/image"));
    if let Some((host, rest)) = image.split_once('/')
        && let Some(registry) = super::registry::id_of(cloud, host)
    {
        if !cloud.has_role(principal, &registry, &[ACR_PULL]) {
            return failed(
                "BadArgument",
                "Startup task failed due to authorization error: the image cannot be pulled.",
            );
        }
        let (repository, digest) = rest.split_once('@').unwrap_or((rest, ""));
        let pushed = cloud.registry.repositories.get(&format!("{host}/{repository}"));
        if !pushed.is_some_and(|one| one.images.values().any(|known| known == digest)) {
            return failed("BadArgument", "Unable to download user container image: it does not exist.");
        }
    }
    if !cloud.has_role(principal, text(workspace, "/properties/storageAccount"), &[BLOB_READER]) {
        return failed(
            "BadArgument",
            "Startup task failed due to authorization error: the storage account cannot be read.",
        );
    }
    match cloud.mute {
        true => Err(json!({ "code": null,
            "message": "ResourceNotReady: User container has crashed or terminated: its probes are not answered." })),
        false => Ok(()),
    }
}

/// What a request to an endpoint comes to, and the route of its container: `NAME/invocations`.
pub(crate) fn answer(cloud: &mut Cloud, request: &Request, path: &str, user: Option<&str>) -> (Answered, String) {
    let refused = |status: u16, why: &'static str| (Answered::Refused(status, why), String::new());
    let (name, path) = path.split_once('/').map_or((path, String::new()), |(name, rest)| (name, format!("/{rest}")));
    let Some(user) = user else { return refused(401, r#"{"error":"The token is missing or not valid."}"#) };
    if !cloud.authorize(user, SCORE) {
        return refused(401, r#"{"error":"The identity may not score."}"#);
    }
    if request.body.len() > MOST_BYTES {
        return refused(413, r#"{"error":"The payload is too large."}"#);
    }
    let cloud: &Cloud = cloud;
    let end = format!("/{}", name.to_lowercase());
    let found = endpoints(cloud).find(|(key, _)| key.ends_with(&end));
    let Some((deployment, environment)) = found.and_then(|(key, endpoint)| served(cloud, key, endpoint)) else {
        return refused(404, r#"{"error":"No deployment has traffic."}"#);
    };
    let (true, Some(containers)) = (path == route(environment), &cloud.containers) else {
        return refused(404, r#"{"error":"There is no such route."}"#);
    };
    let variables = deployment["properties"]["environmentVariables"].as_object().into_iter().flatten();
    let environment_of =
        variables.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect();
    let container = Container { image: text(environment, "/properties/image").to_owned(), environment: environment_of };
    (Answered::By(container, containers.clone()), path)
}
