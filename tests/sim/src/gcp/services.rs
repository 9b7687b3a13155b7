//! Service usage, and the billing account of a project.

use std::time::Duration;

use serde_json::{Value, json};

use super::cloud::{Cloud, Effect, Family};
use super::kinds::{begin, page};
use super::problem::Problem;
use super::{Call, Handler, errors};
use crate::clock::later;
use crate::{Behaviour, Source};

/// The most APIs of one request.
const BATCH: usize = 20;

/// APIs that an API needs, which are enabled with it.
const NEEDS: &[(&str, &[&str])] = &[
    ("compute.googleapis.com", &["oslogin.googleapis.com"]),
    (
        "container.googleapis.com",
        &[
            "compute.googleapis.com",
            "containerregistry.googleapis.com",
            "iam.googleapis.com",
            "iamcredentials.googleapis.com",
        ],
    ),
    ("iam.googleapis.com", &["iamcredentials.googleapis.com"]),
];

/// The accounts of services that appear with their API: <https://cloud.google.com/iam/docs/service-agents>.
const AGENTS: &[(&str, &str)] =
    &[("compute.googleapis.com", "compute-system"), ("container.googleapis.com", "container-engine-robot")];

/// The accounts of services that a request for an identity makes.
const IDENTITIES: &[(&str, &str)] = &[
    ("aiplatform.googleapis.com", "gcp-sa-aiplatform"),
    ("artifactregistry.googleapis.com", "gcp-sa-artifactregistry"),
    ("run.googleapis.com", "serverless-robot-prod"),
    ("sqladmin.googleapis.com", "gcp-sa-cloud-sql"),
    ("secretmanager.googleapis.com", "gcp-sa-secretmanager"),
    ("pubsub.googleapis.com", "gcp-sa-pubsub"),
    ("redis.googleapis.com", "cloud-redis"),
];

pub(crate) const HANDLERS: &[(&str, Handler)] = &[
    ("serviceusage.services.batchEnable", batch_enable),
    ("serviceusage.services.enable", enable),
    ("serviceusage.services.disable", disable),
    ("serviceusage.services.get", get),
    ("serviceusage.services.batchGet", batch_get),
    ("serviceusage.services.list", list),
    ("serviceusage.services.generateServiceIdentity", identity),
    ("serviceusage.services.consumerQuotaMetrics.get", quota_metric),
    ("serviceusage.operations.get", super::kinds::operation),
    ("cloudbilling.projects.getBillingInfo", billing),
    ("storage.projects.serviceAccount.get", storage_agent),
];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "an API that is ENABLED still refuses calls with accessNotConfigured for a while",
        Source::Report("hashicorp/terraform-provider-google#8214"),
    ),
    rule(
        "without the Service Usage API neither listing nor enabling works",
        Source::Report("hashicorp/terraform-provider-google#16883"),
    ),
    rule(
        "an API on which another depends is not disabled unless the flag cascades",
        Source::Report("terraform-google-modules/terraform-google-project-factory#168"),
    ),
    rule(
        "a second enablement during one is refused; one may fail with code 160009",
        Source::Report("hashicorp/terraform-provider-google#14691"),
    ),
    rule(
        "agents of services do not exist before an identity is asked for, or the storage account is looked up",
        Source::Report("hashicorp/terraform-provider-google#15572"),
    ),
    rule("at most 20 APIs in a batch", Source::Model),
    rule(
        "a limit of a quota has a bucket for all regions, and one for each region with another limit",
        Source::Report("openshift/installer#3819"),
    ),
    rule(
        "a new project has the storage APIs and Service Usage enabled",
        Source::Documentation("https://cloud.google.com/service-usage/docs/enabled-service#default"),
    ),
    rule(
        "names carry the project's number",
        Source::Documentation("https://cloud.google.com/service-usage/docs/reference/rest/v1/services"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "serviceusage", what, source }
}

/// The project of a path such as `projects/p/services/s`.
fn number(cloud: &Cloud, call: &Call<'_>) -> String {
    cloud.project(&call.project).map(|project| project.number.clone()).unwrap_or_default()
}

fn shown(cloud: &Cloud, call: &Call<'_>, api: &str) -> Value {
    let number = number(cloud, call);
    let is_on = cloud.project(&call.project).is_some_and(|project| project.services.contains_key(api));
    json!({ "name": format!("projects/{number}/services/{api}"), "parent": format!("projects/{number}"),
        "config": { "name": api, "title": api }, "state": if is_on { "ENABLED" } else { "DISABLED" } })
}

/// APIs with those that they need.
fn closure(apis: &[String]) -> Vec<String> {
    let mut all = apis.to_vec();
    let mut index = 0;
    while let Some(api) = all.get(index).cloned() {
        let needed = NEEDS.iter().filter(|(one, _)| *one == api).flat_map(|(_, needed)| *needed);
        for one in needed {
            if !all.iter().any(|known| known == one) {
                all.push((*one).to_owned());
            }
        }
        index += 1;
    }
    all
}

fn start(cloud: &mut Cloud, call: &Call<'_>, apis: &[String], is_batch: bool) -> Result<Value, Problem> {
    for api in apis {
        if !api.ends_with(".googleapis.com") {
            let message = format!("Service {api} not found or permission denied.");
            return Err(Problem::new("PERMISSION_DENIED", message));
        }
    }
    let target = format!("serviceusage/projects/{}/enablement", call.project);
    if cloud.running(&target).is_some() {
        let message = "Another activation or deactivation is in progress. Please try again after it is done.";
        return Err(Problem::new("FAILED_PRECONDITION", message));
    }
    let all = closure(apis);
    let (project, asked, number) = (call.project.clone(), apis.to_vec(), number(cloud, call));
    let fails = std::mem::take(&mut cloud.conduct.enablement_fails_once);
    let effect: Effect = Box::new(move |cloud| {
        if fails {
            return Err(Problem::new("INTERNAL", "[160009] an internal error occurred").status());
        }
        for api in &all {
            let lag = cloud.lag(&cloud.conduct.enablement_lag.clone());
            let usable = later(cloud.now(), lag);
            if let Some(project) = cloud.projects.get_mut(&project) {
                project.services.entry(api.clone()).or_insert(usable);
            }
            for (_, agent) in AGENTS.iter().filter(|(one, _)| one == api) {
                cloud.service_agents.insert(format!("service-{number}@{agent}.iam.gserviceaccount.com"));
            }
            if api == "compute.googleapis.com" {
                cloud.service_agents.insert(format!("{number}-compute@developer.gserviceaccount.com"));
                super::compute::catalogue(cloud, &project);
            }
        }
        let service = |api: &String| {
            json!({ "name": format!("projects/{number}/services/{api}"),
            "parent": format!("projects/{number}"), "state": "ENABLED" })
        };
        Ok(match is_batch {
            true => json!({ "@type": "type.googleapis.com/google.api.serviceusage.v1.BatchEnableServicesResponse",
                "services": asked.iter().map(service).collect::<Vec<_>>() }),
            false => json!({ "@type": "type.googleapis.com/google.api.serviceusage.v1.EnableServiceResponse",
                "service": asked.first().map(service) }),
        })
    });
    let metadata = json!({ "@type": "type.googleapis.com/google.api.serviceusage.v1.OperationMetadata" });
    Ok(begin(cloud, call, Family::LongRunning, "enable", &target, Duration::from_secs(20), metadata, effect))
}

fn batch_enable(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let apis = call.body["serviceIds"].as_array().into_iter().flatten();
    let apis: Vec<String> = apis.filter_map(Value::as_str).map(str::to_owned).collect();
    if apis.is_empty() || apis.len() > BATCH {
        let message = format!("A batch holds 1 to {BATCH} services, not {}.", apis.len());
        return Err(Problem::new("INVALID_ARGUMENT", message));
    }
    start(cloud, call, &apis, true)
}

fn api_of(call: &Call<'_>) -> String {
    call.name.rsplit('/').next().unwrap_or_default().to_owned()
}

fn enable(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    start(cloud, call, &[api_of(call)], false)
}

fn disable(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let api = api_of(call);
    let Some(project) = cloud.project(&call.project) else { return Err(errors::not_found("serviceusage", &call.name)) };
    let depends = |one: &&String| **one != api && closure(&[(*one).clone()]).contains(&api);
    let dependants: Vec<String> = project.services.keys().filter(depends).cloned().collect();
    let cascades = call.body["disableDependentServices"] == true;
    if !dependants.is_empty() && !cascades {
        let message =
            format!("The service {api} is depended on by the following active service(s): {}", dependants.join(","));
        return Err(Problem::new("FAILED_PRECONDITION", message));
    }
    let id = project.id.clone();
    let target = format!("serviceusage/projects/{id}/enablement");
    let effect: Effect = Box::new(move |cloud| {
        if let Some(project) = cloud.projects.get_mut(&id) {
            project.services.retain(|one, _| *one != api && !dependants.contains(one));
        }
        Ok(json!({ "@type": "type.googleapis.com/google.api.serviceusage.v1.DisableServiceResponse" }))
    });
    let metadata = json!({ "@type": "type.googleapis.com/google.api.serviceusage.v1.OperationMetadata" });
    Ok(begin(cloud, call, Family::LongRunning, "disable", &target, Duration::from_secs(20), metadata, effect))
}

fn get(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    Ok(shown(cloud, call, &api_of(call)))
}

fn batch_get(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let names = call.query.iter().filter(|(name, _)| name == "names");
    let apis = names.map(|(_, name)| name.rsplit('/').next().unwrap_or_default().to_owned());
    let services: Vec<Value> = apis.map(|api| shown(cloud, call, &api)).collect();
    Ok(json!({ "services": services }))
}

fn list(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let mut apis: Vec<String> =
        cloud.project(&call.project).into_iter().flat_map(|project| project.services.keys().cloned()).collect();
    let filter = call.parameter("filter").unwrap_or_default();
    if filter != "state:ENABLED" {
        apis.extend(super::SERVICES.iter().map(|service| service.api.to_owned()));
    }
    apis.sort();
    apis.dedup();
    let shown = apis.iter().map(|api| shown(cloud, call, api));
    let is_asked = |one: &Value| filter != "state:DISABLED" || one["state"] == "DISABLED";
    let mut of_page = call.clone();
    of_page.query.retain(|(name, _)| name != "filter");
    Ok(page(&of_page, "services", shown.filter(is_asked).collect()))
}

fn identity(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let api = api_of(call);
    let number = number(cloud, call);
    let Some((_, agent)) = IDENTITIES.iter().find(|(one, _)| *one == api) else {
        return Err(Problem::new("INVALID_ARGUMENT", format!("Service {api} has no identity.")));
    };
    let email = format!("service-{number}@{agent}.iam.gserviceaccount.com");
    cloud.service_agents.insert(email.clone());
    let id = cloud.number();
    let response = json!({ "@type": "type.googleapis.com/google.api.serviceusage.v1beta1.ServiceIdentity",
        "email": email, "uniqueId": id });
    Ok(json!({ "name": "operations/finished.DONE_OPERATION", "done": true, "response": response }))
}

fn quota_metric(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let wanted = call.name.rsplit('/').next().unwrap_or_default().replace("%2F", "/");
    let mut known = super::vertex::quotas(cloud);
    known.push(super::run::quota(cloud));
    let found = known.into_iter().find(|one| one["metric"] == wanted.as_str());
    found.ok_or_else(|| errors::not_found("serviceusage", &call.name))
}

/// What a region allows of a quota, by its name and its usual limit.
pub(crate) fn quota(cloud: &Cloud, region: &str, (name, usual): (&str, f64)) -> f64 {
    cloud.quotas.get(&(region.to_owned(), name.to_owned())).copied().unwrap_or(usual)
}

/// A quota of regions as Service Usage shows it: the limit of all regions, and those of regions that have another one.
pub(crate) fn metric(cloud: &Cloud, own: (&str, f64), metric: &str, title: &str) -> Value {
    let regions = cloud.quotas.keys().filter(|(_, name)| name == own.0).map(|(region, _)| region.as_str());
    let limit = |limit: f64| format!("{limit:.0}");
    let of_region = |region: &str| json!({ "effectiveLimit": limit(quota(cloud, region, own)), "dimensions": { "region": region } });
    let mut buckets = vec![json!({ "effectiveLimit": limit(own.1), "defaultLimit": limit(own.1) })];
    buckets.extend(regions.map(of_region));
    json!({ "metric": metric, "displayName": title,
        "consumerQuotaLimits": [{ "metric": metric, "unit": "1/{project}/{region}", "quotaBuckets": buckets }] })
}

fn storage_agent(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let number = number(cloud, call);
    let email = format!("service-{number}@gs-project-accounts.iam.gserviceaccount.com");
    cloud.service_agents.insert(email.clone());
    Ok(json!({ "kind": "storage#serviceAccount", "email_address": email }))
}

fn billing(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let Some(project) = cloud.project(&call.project) else {
        return Err(errors::denied("cloudbilling", "resourcemanager.projects.get", &call.name));
    };
    let account = project.billing_account.clone().unwrap_or_default();
    let is_enabled = !account.is_empty();
    Ok(json!({ "name": format!("projects/{}/billingInfo", project.id), "projectId": project.id,
        "billingAccountName": account, "billingEnabled": is_enabled }))
}
