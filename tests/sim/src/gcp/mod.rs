//! Google Cloud.
//!
//! All services answer on one port; the first part of a path names the service, as clients are told by endpoint
//! overrides. Cloud Storage answers gRPC on a second port. Requests for the hosts of objects and of tokens of users, as a
//! proxy passes them on, have the paths of those hosts.

mod bigquery;
mod budgets;
pub mod cloud;
mod compute;
mod container;
mod dns;
pub mod document;
mod errors;
mod google_cloud;
mod iam;
mod kinds;
mod kms;
mod monitoring;
mod networking;
mod objects;
pub mod problem;
mod redis;
mod registry;
pub mod run;
mod services;
mod sql;
mod storage;
mod tokens;
mod vertex;
mod wire;

use std::collections::HashMap;

use serde_json::Value;

use crate::{Behaviour, Source};
pub use bigquery::{export_query, export_table};
pub use cloud::{Cloud, Conduct, Object, Operation, Project};
use document::Document;
pub use google_cloud::{GoogleCloud, Options};
use problem::Problem;

/// A service.
#[derive(Debug)]
pub struct Service {
    /// Its name in paths and in variables of endpoint overrides.
    pub name: &'static str,
    /// The API that a project enables for it.
    pub api: &'static str,
    /// The title in messages.
    pub title: &'static str,
    /// Its discovery documents, and what their paths start with.
    pub documents: &'static [(&'static str, &'static str)],
    /// Whether its errors have no status.
    pub is_older: bool,
}

/// The services that are simulated.
pub const SERVICES: &[Service] = &[
    Service {
        name: "aiplatform",
        api: "aiplatform.googleapis.com",
        title: "Vertex AI API",
        documents: &[("aiplatform.v1", "v1/")],
        is_older: false,
    },
    Service {
        name: "artifactregistry",
        api: "artifactregistry.googleapis.com",
        title: "Artifact Registry API",
        documents: &[("artifactregistry.v1", "v1/")],
        is_older: false,
    },
    Service {
        name: "bigquery",
        api: "bigquery.googleapis.com",
        title: "BigQuery API",
        documents: &[("bigquery.v2", "bigquery/v2/")],
        is_older: false,
    },
    Service {
        name: "billingbudgets",
        api: "billingbudgets.googleapis.com",
        title: "Cloud Billing Budget API",
        documents: &[("billingbudgets.v1", "v1/")],
        is_older: false,
    },
    Service {
        name: "cloudbilling",
        api: "cloudbilling.googleapis.com",
        title: "Cloud Billing API",
        documents: &[("cloudbilling.v1", "v1/")],
        is_older: false,
    },
    Service {
        name: "cloudkms",
        api: "cloudkms.googleapis.com",
        title: "Cloud Key Management Service (KMS) API",
        documents: &[("cloudkms.v1", "v1/")],
        is_older: false,
    },
    Service {
        name: "cloudresourcemanager",
        api: "cloudresourcemanager.googleapis.com",
        title: "Cloud Resource Manager API",
        documents: &[("cloudresourcemanager.v1", "v1/"), ("cloudresourcemanager.v3", "v3/")],
        is_older: false,
    },
    Service {
        name: "compute",
        api: "compute.googleapis.com",
        title: "Compute Engine API",
        documents: &[("compute.v1", "compute/v1/")],
        is_older: true,
    },
    Service {
        name: "container",
        api: "container.googleapis.com",
        title: "Kubernetes Engine API",
        documents: &[("container.v1", "v1/")],
        is_older: false,
    },
    Service {
        name: "dns",
        api: "dns.googleapis.com",
        title: "Cloud DNS API",
        documents: &[("dns.v1", "dns/v1/")],
        is_older: true,
    },
    Service {
        name: "iam",
        api: "iam.googleapis.com",
        title: "Identity and Access Management (IAM) API",
        documents: &[("iam.v1", "v1/")],
        is_older: false,
    },
    Service {
        name: "iamcredentials",
        api: "iamcredentials.googleapis.com",
        title: "IAM Service Account Credentials API",
        documents: &[("iamcredentials.v1", "v1/")],
        is_older: false,
    },
    Service {
        name: "monitoring",
        api: "monitoring.googleapis.com",
        title: "Cloud Monitoring API",
        documents: &[("monitoring.v3", "v3/"), ("monitoring.v1", "v1/")],
        is_older: false,
    },
    Service {
        name: "redis",
        api: "redis.googleapis.com",
        title: "Google Cloud Memorystore for Redis API",
        documents: &[("redis.v1", "v1/")],
        is_older: false,
    },
    Service {
        name: "run",
        api: "run.googleapis.com",
        title: "Cloud Run Admin API",
        documents: &[("run.v2", "v2/")],
        is_older: false,
    },
    Service {
        name: "servicenetworking",
        api: "servicenetworking.googleapis.com",
        title: "Service Networking API",
        documents: &[("servicenetworking.v1", "v1/")],
        is_older: false,
    },
    Service {
        name: "serviceusage",
        api: "serviceusage.googleapis.com",
        title: "Service Usage API",
        documents: &[("serviceusage.v1", "v1/"), ("serviceusage.v1beta1", "v1beta1/")],
        is_older: false,
    },
    Service {
        name: "sql",
        api: "sqladmin.googleapis.com",
        title: "Cloud SQL Admin API",
        documents: &[("sqladmin.v1", "v1/"), ("sqladmin.v1beta4", "sql/v1beta4/")],
        is_older: true,
    },
    Service {
        name: "storage",
        api: "storage.googleapis.com",
        title: "Cloud Storage JSON API",
        documents: &[("storage.v1", "storage/v1/")],
        is_older: true,
    },
];

/// Answers a method: it changes the cloud and gives the answer, or refuses.
type Handler = fn(&mut Cloud, &Call<'_>) -> Result<Value, Problem>;

/// A request, checked by the document.
#[derive(Clone)]
pub(crate) struct Call<'a> {
    service: &'static Service,
    /// The id of the method.
    id: &'a str,
    /// The path without version and custom verb: the name of the object or collection, with the project's id.
    name: String,
    project: String,
    query: Vec<(String, String)>,
    body: Value,
    /// The e-mail address of the caller.
    user: String,
    /// Whether it came by version 3 of Resource Manager.
    is_v3: bool,
    /// The most items of a page.
    page: usize,
}

impl Call<'_> {
    fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(one, _)| one == name).map(|(_, value)| value.as_str())
    }

    fn key(&self) -> String {
        format!("{}/{}", self.service.name, self.name)
    }

    /// The name without its last part.
    fn parent(&self) -> &str {
        self.name.rsplit_once('/').map_or("", |(parent, _)| parent)
    }

    fn parent_key(&self) -> String {
        format!("{}/{}", self.service.name, self.parent())
    }
}

/// What all services share, and where it is known from.
const SHARED: &[Behaviour] = &[
    rule(
        "requests and answers have the parameters, members, types and values of the discovery documents",
        Source::Model,
    ),
    rule(
        "a page has 500 items at most in Compute Engine; 100 accounts, 20 without pageSize; 200 APIs, 50 without pageSize",
        Source::Model,
    ),
    rule(
        "a member or parameter that the document does not have is 400 INVALID_ARGUMENT",
        Source::Documentation("https://cloud.google.com/apis/design/errors#handling_errors"),
    ),
    rule(
        "errors have code, message, status and details; Compute Engine, Cloud SQL and Storage have errors with \
            reasons and no status",
        Source::Documentation("https://cloud.google.com/storage/docs/json_api/v1/status-codes"),
    ),
    rule(
        "a call without a token, or with one that is unknown or ended, is 401 UNAUTHENTICATED",
        Source::Documentation("https://cloud.google.com/docs/authentication/troubleshoot-adc"),
    ),
    rule(
        "a refused permission is 403 with ErrorInfo IAM_PERMISSION_DENIED; Compute Engine names the permission only",
        Source::Documentation("https://cloud.google.com/iam/docs/permission-error-messages"),
    ),
    rule(
        "too many requests are 429 RESOURCE_EXHAUSTED with ErrorInfo RATE_LIMIT_EXCEEDED outside of Compute Engine",
        Source::Report("hashicorp/terraform-provider-google#3782"),
    ),
    rule(
        "an API that is not enabled is 403 accessNotConfigured with ErrorInfo SERVICE_DISABLED",
        Source::Report("hashicorp/terraform-provider-google#2129"),
    ),
    rule(
        "a refresh token that is unknown is invalid_grant",
        Source::Documentation("https://developers.google.com/identity/protocols/oauth2/web-server#offline"),
    ),
    rule(
        "an assertion names an account and ends within an hour",
        Source::Documentation(
            "https://developers.google.com/identity/protocols/oauth2/service-account#authorizingrequests",
        ),
    ),
    rule(
        "tokens end after an hour",
        Source::Documentation("https://cloud.google.com/docs/authentication/token-types#access-tokens"),
    ),
    rule(
        "a permission's name follows from the method's id: insert is create, patch is update, aggregatedList is list; \
            an identity of a service is made with enable",
        Source::Assumed,
    ),
    rule(
        "internal addresses, images and versions of keys that become the primary one have permissions of other names",
        Source::Documentation("https://cloud.google.com/iam/docs/permissions-reference"),
    ),
    rule(
        "an operation of Cloud SQL is read with cloudsql.instances.get",
        Source::Documentation("https://cloud.google.com/sql/docs/postgres/iam-permissions"),
    ),
    rule(
        "the account of Cloud Storage is read with resourcemanager.projects.get",
        Source::Documentation("https://cloud.google.com/storage/docs/access-control/iam-json"),
    ),
    rule(
        "the effective policy of a constraint is read with orgpolicy.policy.get",
        Source::Documentation(
            "https://cloud.google.com/resource-manager/reference/rest/v1/projects/getEffectiveOrgPolicy",
        ),
    ),
    rule(
        "the range of private services needs compute.networks.use",
        Source::Documentation("https://cloud.google.com/vpc/docs/configure-private-services-access"),
    ),
    rule(
        "the deletion of a firewall rule needs compute.networks.updatePolicy",
        Source::Documentation("https://cloud.google.com/compute/docs/reference/rest/v1/firewalls/delete"),
    ),
    rule(
        "nodes with an account need iam.serviceAccounts.actAs",
        Source::Documentation("https://cloud.google.com/kubernetes-engine/docs/how-to/iam"),
    ),
    rule(
        "a call with a quota project needs serviceusage.services.use",
        Source::Documentation("https://cloud.google.com/docs/quotas/set-quota-project"),
    ),
    rule(
        "a service account may do everything in a project as soon as any role is granted to it there",
        Source::Assumed,
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "*", what, source }
}

/// The sources of all behaviours, with how many each has.
#[must_use]
pub fn ledger() -> (Vec<Behaviour>, HashMap<&'static str, usize>) {
    let tables = [
        SHARED,
        compute::LEDGER,
        container::LEDGER,
        sql::LEDGER,
        networking::LEDGER,
        services::LEDGER,
        iam::LEDGER,
        registry::LEDGER,
        redis::LEDGER,
        run::LEDGER,
        vertex::LEDGER,
        kms::LEDGER,
        dns::LEDGER,
        monitoring::LEDGER,
        budgets::LEDGER,
        bigquery::LEDGER,
        storage::LEDGER,
        objects::LEDGER,
    ];
    let behaviours: Vec<Behaviour> = tables.into_iter().flatten().copied().collect();
    let mut counts = HashMap::new();
    for behaviour in &behaviours {
        *counts.entry(behaviour.source.kind()).or_default() += 1;
    }
    (behaviours, counts)
}

/// The messages of Cloud Storage that are simulated: the numbers of their fields.
#[must_use]
pub fn storage_messages() -> Value {
    storage::messages()
}

/// The ids of all methods that are simulated, each with its service.
#[must_use]
pub fn methods() -> Vec<(&'static str, String)> {
    let of = |id: &str| id.split('.').next().unwrap_or_default().to_owned();
    let named = handlers().map(|(id, _)| (*id).to_owned());
    let usual = kinds::all().flat_map(|kind| kind.verbs.iter().map(|verb| format!("{}.{verb}", kind.methods)));
    let all = named.chain(usual).filter_map(|id| {
        let service = SERVICES.iter().find(|service| service.name == of(&id))?;
        Some((service.name, id))
    });
    all.collect()
}

fn handlers() -> impl Iterator<Item = &'static (&'static str, Handler)> {
    [
        compute::HANDLERS,
        container::HANDLERS,
        sql::HANDLERS,
        networking::HANDLERS,
        services::HANDLERS,
        iam::HANDLERS,
        registry::HANDLERS,
        redis::HANDLERS,
        run::HANDLERS,
        vertex::HANDLERS,
        kms::HANDLERS,
        dns::HANDLERS,
        monitoring::HANDLERS,
        budgets::HANDLERS,
        bigquery::HANDLERS,
    ]
    .into_iter()
    .flatten()
}

/// Answers a call of a simulated method.
fn dispatch(cloud: &mut Cloud, call: &Call<'_>) -> Option<Result<Value, Problem>> {
    if let Some((_, handler)) = handlers().find(|(id, _)| *id == call.id) {
        return Some(handler(cloud, call));
    }
    let (kind, verb) = kinds::of_method(call.id)?;
    Some(kinds::answer(cloud, call, kind, verb))
}

/// Permissions whose names do not follow from the ids of their methods: see [`SHARED`].
const NAMED: &[(&str, &str)] = &[
    ("aiplatform.projects.locations.endpoints.deployModel", "aiplatform.endpoints.deploy"),
    ("aiplatform.projects.locations.endpoints.mutateDeployedModel", "aiplatform.endpoints.update"),
    ("aiplatform.projects.locations.endpoints.operations.get", "aiplatform.endpoints.get"),
    ("aiplatform.projects.locations.endpoints.undeployModel", "aiplatform.endpoints.undeploy"),
    ("aiplatform.projects.locations.models.operations.get", "aiplatform.models.get"),
    ("artifactregistry.projects.locations.repositories.dockerImages.get", "artifactregistry.dockerimages.get"),
    ("artifactregistry.projects.locations.repositories.dockerImages.list", "artifactregistry.dockerimages.list"),
    ("bigquery.jobs.query", "bigquery.jobs.create"),
    ("cloudbilling.billingAccounts.get", "billing.accounts.get"),
    ("cloudkms.projects.locations.keyRings.cryptoKeys.updatePrimaryVersion", "cloudkms.cryptoKeys.update"),
    ("cloudresourcemanager.projects.getEffectiveOrgPolicy", "orgpolicy.policy.get"),
    ("serviceusage.services.consumerQuotaMetrics.get", "serviceusage.quotas.get"),
    ("serviceusage.services.generateServiceIdentity", "serviceusage.services.enable"),
    ("sql.operations.get", "cloudsql.instances.get"),
    ("sql.operations.list", "cloudsql.instances.list"),
    ("storage.projects.serviceAccount.get", "resourcemanager.projects.get"),
];

/// What a method needs besides: the method, a member of its body that has to be there (none if empty), the permission.
const ALSO: &[(&str, &str, &str)] = &[
    (
        "aiplatform.projects.locations.endpoints.deployModel",
        "/deployedModel/serviceAccount",
        "iam.serviceAccounts.actAs",
    ),
    ("compute.firewalls.delete", "", "compute.networks.updatePolicy"),
    ("compute.globalAddresses.insert", "/network", "compute.networks.use"),
    (
        "container.projects.locations.clusters.create",
        "/cluster/nodePools/0/config/serviceAccount",
        "iam.serviceAccounts.actAs",
    ),
    (
        "container.projects.locations.clusters.nodePools.create",
        "/nodePool/config/serviceAccount",
        "iam.serviceAccounts.actAs",
    ),
    ("run.projects.locations.services.create", "/template/serviceAccount", "iam.serviceAccounts.actAs"),
    ("run.projects.locations.services.patch", "/template/serviceAccount", "iam.serviceAccounts.actAs"),
];

/// The permissions that a call needs.
fn permissions(cloud: &Cloud, call: &Call<'_>) -> Vec<String> {
    let is_internal = call.body["addressType"] == "INTERNAL"
        || cloud.get(&call.key()).is_some_and(|stored| stored["addressType"] == "INTERNAL");
    let has = |pointer: &str| pointer.is_empty() || call.body.pointer(pointer).is_some_and(|value| !value.is_null());
    let mut needed: Vec<String> = permission(call.id).into_iter().collect();
    if is_internal && ["compute.globalAddresses.insert", "compute.globalAddresses.delete"].contains(&call.id) {
        needed = needed.into_iter().map(|one| format!("{one}Internal")).collect();
    }
    let also = ALSO.iter().filter(|(id, pointer, _)| *id == call.id && has(pointer));
    needed.extend(also.map(|(.., permission)| (*permission).to_owned()));
    if call.id == "dns.changes.create" {
        needed.extend(dns::permissions(&call.body));
    }
    needed
}

/// The permission that a method needs, if it needs one.
///
/// <https://cloud.google.com/iam/docs/permissions-reference>
fn permission(id: &str) -> Option<String> {
    if let Some((_, named)) = NAMED.iter().find(|(method, _)| *method == id) {
        return Some((*named).to_owned());
    }
    let parts: Vec<&str> = id.split('.').collect();
    let (service, resource, verb) = match parts[..] {
        [service, .., resource, verb] => (service, resource, verb),
        _ => return None,
    };
    // No permission is known for operations of Artifact Registry, and the creator of a job of BigQuery may read it.
    let is_free = (service, resource) == ("artifactregistry", "operations") || id == "bigquery.jobs.getQueryResults";
    if is_free || ["testIamPermissions", "generateAccessToken", "generateIdToken"].contains(&verb) {
        return None;
    }
    let verb = match verb {
        "insert" => "create",
        "patch" => "update",
        "aggregatedList" => "list",
        "batchEnable" => "enable",
        "batchGet" | "wait" => "get",
        verb => verb,
    };
    Some(match (service, resource) {
        ("container", "nodePools") => match verb {
            "get" | "list" => "container.clusters.get".to_owned(),
            _ => "container.clusters.update".to_owned(),
        },
        ("container", "clusters") if !["create", "get", "list", "delete"].contains(&verb) => {
            "container.clusters.update".to_owned()
        }
        ("container", "locations") => "container.clusters.list".to_owned(),
        ("servicenetworking", "connections") => match verb {
            "list" => "servicenetworking.services.get".to_owned(),
            "deleteConnection" => "servicenetworking.services.deleteConnection".to_owned(),
            _ => "servicenetworking.services.addPeering".to_owned(),
        },
        ("sql", resource) => format!("cloudsql.{resource}.{verb}"),
        ("cloudresourcemanager", resource) => format!("resourcemanager.{resource}.{verb}"),
        ("billingbudgets", resource) => format!("billing.{resource}.{verb}"),
        ("cloudbilling", _) => "resourcemanager.projects.get".to_owned(),
        (service, resource) => format!("{service}.{resource}.{verb}"),
    })
}

/// Whether a caller has a permission in a project.
fn may(cloud: &Cloud, user: &str, project: &str, permission: &str) -> bool {
    if permission == iam::OPEN_ID && !cloud.denied.contains(permission) {
        return iam::identifies(cloud, user, &[&format!("cloudresourcemanager/projects/{project}")]);
    }
    if user == cloud.operator {
        let is_allowed = cloud.allowed.as_ref().is_none_or(|all| all.contains(permission));
        // An owner makes no tokens of accounts.
        let is_held = permission != "iam.serviceAccounts.getAccessToken" && !cloud.denied.contains(permission);
        return is_allowed && is_held;
    }
    let key = format!("cloudresourcemanager/projects/{project}");
    iam::grants(cloud, &key, "", &member(user)) && !cloud.denied.contains(permission)
}

/// The member of policies that an e-mail address means.
fn member(user: &str) -> String {
    match user.ends_with(".gserviceaccount.com") {
        true => format!("serviceAccount:{user}"),
        // Pods, by workload identity.
        false if user.starts_with("principal://") => user.to_owned(),
        false => format!("user:{user}"),
    }
}

/// The name in an address of Compute Engine.
fn name_of(link: &Value) -> String {
    let link = link.as_str().unwrap_or_default();
    link.find("projects/").map_or("", |start| &link[start..]).to_owned()
}

/// The document and the method of a path, and what the path starts with.
fn route<'p>(
    service: &Service,
    http: &str,
    path: &'p str,
) -> Result<Option<(&'static Document, &'static document::Method, &'p str, &'static str)>, String> {
    for &(name, prefix) in service.documents {
        if path.starts_with(prefix) {
            let document = Document::of(name)?;
            if let Some((method, plain)) = document.route(http, path) {
                return Ok(Some((document, method, plain, prefix)));
            }
        }
    }
    Ok(None)
}
