//! What would make a plan fail, found by reads: the project, its billing, permissions, services, quotas, zones, DNS zones, budgets, names,
//! existing networks and address ranges. Everything is asked at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::join_all;
use serde_json::{Value, json};
use textnlp_cloud::document::{get, last};
use textnlp_cloud::preflight::{
    Check, LIMIT, Need, PoolNeed, PoolSettings, by_zone, is_new, names, outside, run, unknown,
};
use textnlp_cloud::{Range, machine_names, of_machines};
use textnlp_provider::units::counted;
use textnlp_provider::{
    EnvironmentName, Error, ErrorKind, Ownership, PolicyRequest, PolicyResource, Problem, Result, Spec, Verb, Wanted,
};

use crate::api::{Api, Call, bootstrap_hint, is_disabled};
use crate::kinds::PODS;
use crate::kinds::budgets::{BUDGET, MOST_OF_BUDGET};
use crate::kinds::container::{BLUE_GREEN, SPOT};
use crate::kinds::monitoring::CHANNEL;
use crate::kinds::private::is_connected;
use crate::kinds::redis::REDIS;
use crate::kinds::run::SERVICE;
use crate::kinds::vertex::DEPLOYMENT;
use crate::labels;
use crate::policy;
use crate::row::relative;
use crate::service::Service;
use crate::tables::machines::{self, Machine};
use crate::tables::zones;

/// The most permissions of one test.
const PERMISSIONS_AT_ONCE: usize = 100;
/// The quotas of a project that hold for all regions (gcloudrig/gcloudrig#44).
const ALL_GPUS: &str = "GPUS_ALL_REGIONS";
const ALL_CPUS: &str = "CPUS_ALL_REGIONS";
/// The quota of a region for the processors of all spot machines. Where it is zero, they take of those of other machines
/// (<https://cloud.google.com/compute/docs/instances/create-use-preemptible>).
const SPOT_CPUS: &str = "PREEMPTIBLE_CPUS";
/// The quota of a region for SSDs in GB, and the types of disks that take of it
/// (<https://cloud.google.com/compute/resource-usage#disk_quota>).
const ALL_SSDS: &str = "SSD_TOTAL_GB";
const SSDS: [&str; 2] = ["pd-balanced", "pd-ssd"];
/// The quota of a region for L4 without zonal redundancy, which services have, and how many the first service in a region gets
/// (<https://cloud.google.com/run/docs/configuring/services/gpu>).
const RUN_GPUS: &str = "run.googleapis.com/nvidia_l4_gpu_allocation_no_zonal_redundancy";
const FIRST_RUN_GPUS: u64 = 3;
/// The quotas of a region for the GPUs of models at endpoints, by the GPU
/// (<https://cloud.google.com/vertex-ai/docs/quotas>).
const SERVING_GPUS: &[(&str, &str)] = &[
    ("NVIDIA_TESLA_T4", "aiplatform.googleapis.com/custom_model_serving_nvidia_t4_gpus"),
    ("NVIDIA_L4", "aiplatform.googleapis.com/custom_model_serving_nvidia_l4_gpus"),
    ("NVIDIA_TESLA_A100", "aiplatform.googleapis.com/custom_model_serving_nvidia_a100_gpus"),
    ("NVIDIA_A100_80GB", "aiplatform.googleapis.com/custom_model_serving_nvidia_a100_80gb_gpus"),
    ("NVIDIA_H100_80GB", "aiplatform.googleapis.com/custom_model_serving_nvidia_h100_gpus"),
    ("NVIDIA_H200_141GB", "aiplatform.googleapis.com/custom_model_serving_nvidia_h200_gpus"),
];
/// GPUs whose quota no document names.
const UNNAMED_QUOTAS: [&str; 1] = ["NVIDIA_B200"];
/// Kinds whose objects count against a quota of the project (<https://cloud.google.com/vpc/docs/quota>,
/// <https://cloud.google.com/network-connectivity/docs/router/quotas>, hashicorp/terraform-provider-google#8924).
const COUNTED: &[(&str, &str)] = &[
    ("gcp.address-range", "GLOBAL_INTERNAL_ADDRESSES"),
    ("gcp.network", "NETWORKS"),
    ("gcp.router", "ROUTERS"),
    ("gcp.subnetwork", "SUBNETWORKS"),
];
/// What an operator does about a quota.
const RAISE: &str = "raise it: console, IAM & Admin > Quotas & System Limits";

/// A constraint of organization policies that refuses what a plan creates.
struct Constraint {
    name: &'static str,
    kind: &'static str,
    judge: Judge,
}

/// Which objects of its kind a constraint refuses.
#[derive(Clone, Copy)]
enum Judge {
    /// Of one that is enforced or not: these.
    Enforced(fn(&Spec) -> bool),
    /// Of one that lists values: an object with a value that is denied or not allowed.
    Values(fn(&Spec) -> Vec<String>),
    /// The same, by the denied ones alone: what an allow list has to name is not known of these.
    Denied(fn(&Spec) -> Vec<String>),
    /// Of one that lists values: each object, where all values are denied.
    All,
}

/// Constraints that refuse what a plan creates
/// (<https://cloud.google.com/resource-manager/docs/organization-policy/org-policy-constraints>). Those on uniform bucket-level
/// access, public access and external IP addresses refuse none: all buckets and nodes meet them.
const CONSTRAINTS: &[Constraint] = &[
    Constraint {
        name: "iam.disableServiceAccountCreation",
        kind: "gcp.service-account",
        judge: Judge::Enforced(|_| true),
    },
    Constraint {
        name: "iam.disableWorkloadIdentityClusterCreation",
        kind: crate::table::CLUSTER,
        judge: Judge::Enforced(|_| true),
    },
    Constraint {
        name: "compute.requireShieldedVm",
        kind: "gcp.node-pool",
        judge: Judge::Enforced(|pool| pool.get("secure_boot").and_then(Value::as_bool) == Some(false)),
    },
    // <https://cloud.google.com/dns/docs/configure-routing-policies>
    Constraint {
        name: "compute.disableInternetNetworkEndpointGroup",
        kind: "gcp.health-check",
        judge: Judge::Enforced(|_| true),
    },
    // <https://cloud.google.com/resource-manager/docs/organization-policy/defining-locations>
    Constraint { name: LOCATIONS, kind: crate::table::CLUSTER, judge: Judge::Values(location) },
    Constraint { name: LOCATIONS, kind: "gcp.bucket", judge: Judge::Values(location) },
    Constraint { name: LOCATIONS, kind: SERVICE, judge: Judge::Values(location) },
    Constraint { name: "gcp.restrictServiceUsage", kind: SERVICES_KIND, judge: Judge::Denied(services_of) },
    // <https://cloud.google.com/kms/docs/cmek-org-policy>
    Constraint {
        name: "gcp.restrictNonCmekServices",
        kind: crate::table::CLUSTER,
        judge: Judge::Denied(|cluster| without_key(cluster, "container.googleapis.com")),
    },
    Constraint {
        name: "gcp.restrictNonCmekServices",
        kind: "gcp.bucket",
        judge: Judge::Denied(|bucket| without_key(bucket, "storage.googleapis.com")),
    },
    Constraint { name: "compute.restrictCloudNATUsage", kind: "gcp.router", judge: Judge::All },
    Constraint { name: "compute.restrictVpcPeering", kind: "gcp.service-connection", judge: Judge::All },
    Constraint { name: "run.allowedIngress", kind: SERVICE, judge: Judge::Values(|_| vec!["all".to_owned()]) },
];
const LOCATIONS: &str = "gcp.resourceLocations";
/// The enabled services of the project, which is there before the plan.
const SERVICES_KIND: &str = "gcp.services";

fn location(spec: &Spec) -> Vec<String> {
    spec.get("location").and_then(Value::as_str).map(str::to_ascii_lowercase).into_iter().collect()
}

fn services_of(spec: &Spec) -> Vec<String> {
    let names = spec.get("services").and_then(Value::as_array).into_iter().flatten();
    names.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn without_key(spec: &Spec, service: &str) -> Vec<String> {
    let has_key = spec.get("key").is_some_and(|key| !key.is_null());
    if has_key { Vec::new() } else { vec![service.to_owned()] }
}

impl Judge {
    /// Why the effective policy of a constraint refuses an object. Groups of locations are Google's, so that of a value that only an
    /// unknown one may have nothing is said.
    fn refusal(self, policy: &Value, spec: &Spec) -> Option<String> {
        let list = &policy["listPolicy"];
        let is_denied = list["allValues"] == "DENY";
        let (values, allows) = match self {
            Self::Enforced(is_meant) => {
                let is_refused = policy["booleanPolicy"]["enforced"] == true && is_meant(spec);
                return is_refused.then(|| "refuses it in the project".to_owned());
            }
            Self::All => return is_denied.then(|| "refuses it in the project".to_owned()),
            Self::Values(values) => (values(spec), true),
            Self::Denied(values) => (values(spec), false),
        };
        let texts = |member: &str| -> Vec<&str> {
            list[member].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
        };
        let (allowed, denied) = (if allows { texts("allowedValues") } else { Vec::new() }, texts("deniedValues"));
        let is = |entry: &str, value: &str| {
            let entry = entry.trim_start_matches("is:");
            entry == value
                || entry.strip_prefix("in:").and_then(|group| group.strip_suffix("-locations")) == Some(value)
        };
        let is_unknown = |entry: &&str| entry.starts_with("in:") || entry.starts_with("under:");
        let is_refused = |value: &&String| {
            let is_allowed =
                allowed.is_empty() || allowed.iter().any(|entry| is(entry, value)) || allowed.iter().any(is_unknown);
            is_denied || !is_allowed || denied.iter().any(|entry| is(entry, value))
        };
        values.iter().find(is_refused).map(|value| format!("does not allow `{value}`"))
    }
}

/// The addresses that a node takes for its pods (<https://cloud.google.com/kubernetes-engine/docs/how-to/flexible-pod-cidr>).
const ADDRESSES_OF_NODE: u64 = 256;

/// Checks the wanted resources of a site.
pub(crate) async fn preflight(api: &Arc<Api>, wanted: &[Wanted]) -> Vec<Problem> {
    let checks: Vec<Check<'_>> = vec![
        ("the project", project(api).boxed()),
        ("the billing account", billing(api, wanted).boxed()),
        ("the organization policies", constraints(api, wanted).boxed()),
        ("the permissions", permissions(api, wanted).boxed()),
        ("the enabled services", services(api).boxed()),
        ("the names", names(api, wanted).boxed()),
        ("the existing network", existing_network(api, wanted).boxed()),
        ("the existing buckets", buckets(api, wanted).boxed()),
        ("the quotas", quotas(api, wanted).boxed()),
        ("the quota of GPUs of Cloud Run", run_gpus(api, wanted).boxed()),
        ("the quota of GPUs of Vertex AI", serving_gpus(api, wanted).boxed()),
        ("the machines of zones", zones(api, wanted).boxed()),
        ("the DNS zones", dns_zones(api, wanted).boxed()),
        ("the address ranges", overlaps(api, wanted).boxed()),
    ];
    let mut problems = run(checks, LIMIT).await;
    problems.extend(open(wanted));
    problems.extend(beyond_budget(wanted));
    problems
}

/// Mailboxes that get alerts, and no mails of the budget, which has few of them.
fn beyond_budget(wanted: &[Wanted]) -> Option<Problem> {
    let budget = of_kind(wanted, BUDGET).next()?;
    let notified = budget.spec.outputs_needed();
    let others = of_kind(wanted, CHANNEL).filter(|one| !notified.iter().any(|output| output.resource == one.id));
    let others: Vec<&str> = others.filter_map(|one| one.spec.get("email")?.as_str()).collect();
    (!others.is_empty()).then(|| {
        let cause = format!(
            "a budget of Cloud Billing mails to {MOST_OF_BUDGET} channels at most, and not to {}",
            others.join(", ")
        );
        Problem::note(budget.id.as_str(), cause, "use a mailing list if they should get its mails")
    })
}

fn of_kind<'w>(wanted: &'w [Wanted], kind: &'static str) -> impl Iterator<Item = &'w Wanted> {
    wanted.iter().filter(move |one| one.kind.as_str() == kind && one.ownership == Ownership::Ours)
}

/// API servers that every network reaches.
fn open(wanted: &[Wanted]) -> Vec<Problem> {
    let is_open = |one: &&Wanted| one.spec.get("allow_from").is_none_or(Value::is_null);
    let warning = |one: &Wanted| {
        let fix = "set `cluster.allow_from` to the networks that you deploy from";
        Problem::warning(one.id.to_string(), "every network reaches the API server of the cluster", fix)
    };
    of_kind(wanted, crate::table::CLUSTER).filter(is_open).map(warning).collect()
}

/// A check that a service which is not enabled cannot answer says nothing: `up` enables it.
fn unanswered(what: &str, error: &Error) -> Vec<Problem> {
    if is_disabled(error) { Vec::new() } else { vec![unknown(what, error)] }
}

async fn project(api: &Api) -> Vec<Problem> {
    let place = format!("project {}", api.project());
    match api.find(Call::get(Service::ResourceManager, format!("projects/{}", api.project()))).await {
        Ok(Some(found)) if found["lifecycleState"] == "ACTIVE" || found["lifecycleState"].is_null() => Vec::new(),
        Ok(Some(_)) => {
            vec![Problem::new(place, "the project is being deleted", "name another one in `sites[].account`")]
        }
        Ok(None) => {
            vec![Problem::new(place, "there is no such project", "set `sites[].account` to the id of a project")]
        }
        Err(error) if is_disabled(&error) => {
            let cause = "the Resource Manager API is not enabled, and it cannot enable itself";
            vec![Problem::new(place, cause, bootstrap_hint(api.project()))]
        }
        Err(error) if error.kind == ErrorKind::Denied => {
            let cause = format!("{} cannot read it, or it does not exist", api.session.identity.email);
            vec![Problem::new(
                place,
                cause,
                "set `sites[].account` to one of your projects, or ask its owner for a role",
            )]
        }
        Err(error) => vec![unknown(&place, &error)],
    }
}

async fn billing(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let call = Call::get(Service::CloudBilling, format!("projects/{}/billingInfo", api.project()));
    match api.find(call).await {
        Ok(Some(found)) if found["billingEnabled"] == false => {
            let project = api.project();
            let fix = format!("`gcloud billing projects link {project} --billing-account ACCOUNT`");
            vec![Problem::new(format!("project {project}"), "it has no billing account", fix)]
        }
        Ok(found) => {
            let account = found.as_ref().and_then(|found| found["billingAccountName"].as_str());
            match account.zip(of_kind(wanted, BUDGET).next()) {
                Some((account, one)) => budget(api, account, one).await,
                None => Vec::new(),
            }
        }
        // Reading it needs a role on the billing account.
        Err(error) if error.kind == ErrorKind::Denied => Vec::new(),
        Err(error) => unanswered("the billing account", &error),
    }
}

/// Whether organization policies refuse what the plan creates
/// (<https://cloud.google.com/resource-manager/reference/rest/v1/projects/getEffectiveOrgPolicy>).
async fn constraints(api: &Arc<Api>, wanted: &[Wanted]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut answers: BTreeMap<&str, Value> = BTreeMap::new();
    for Constraint { name, kind, judge } in CONSTRAINTS {
        let is_meant = |one: &&Wanted| match judge {
            Judge::Enforced(is_meant) => is_meant(&one.spec),
            Judge::Values(_) | Judge::Denied(_) | Judge::All => one.ownership == Ownership::Ours,
        };
        let objects: Vec<&Wanted> = of_kind(wanted, kind).filter(is_meant).collect();
        if objects.is_empty() {
            continue;
        }
        if !answers.contains_key(name) {
            let path = format!("projects/{}:getEffectiveOrgPolicy", api.project());
            let body = json!({ "constraint": format!("constraints/{name}") });
            let call = Call::post(Service::ResourceManager, path, body).saying("read", "the organization policies");
            match api.send(call).await {
                Ok(found) => drop(answers.insert(name, found)),
                Err(error) => {
                    problems.extend(unanswered("the organization policies", &error));
                    return problems;
                }
            }
        }
        let found = &answers[name];
        let mut refused = objects.iter().filter_map(|one| Some((one, judge.refusal(found, &one.spec)?)));
        if let Some((one, why)) = refused.next() {
            let cause = format!("the organization policy `constraints/{name}` {why}");
            let fix = "ask the organization policy administrator to exempt the project, or use another project";
            // A policy holds for what is created after it.
            let is_kept = !matches!(judge, Judge::Enforced(_)) && is_there(api, one).await;
            problems.push(match is_kept {
                true => Problem::warning(one.id.as_str(), cause, fix),
                false => Problem::new(one.id.as_str(), cause, fix),
            });
        }
    }
    problems
}

/// Whether an object exists. One whose id is not known before the plan runs does not.
async fn is_there(api: &Arc<Api>, one: &Wanted) -> bool {
    let Some(row) = crate::table::row(&one.kind) else { return false };
    match row.resource.id(&one.spec) {
        Some(id) => one.kind.as_str() != SERVICES_KIND && matches!(row.resource.read(api, &id).await, Ok(Some(_))),
        None => false,
    }
}

/// A bare project cannot even tell which services it has (hashicorp/terraform-provider-google#16883).
async fn services(api: &Api) -> Vec<Problem> {
    let call = Call::get(Service::ServiceUsage, format!("projects/{}/services", api.project()));
    match api.send(call.query("filter", "state:ENABLED").query("pageSize", "1")).await {
        Err(error) if is_disabled(&error) => {
            let cause = "the Service Usage API is not enabled, and it cannot enable itself";
            vec![Problem::new(format!("project {}", api.project()), cause, bootstrap_hint(api.project()))]
        }
        Err(error) => vec![unknown("the enabled services", &error)],
        Ok(_) => Vec::new(),
    }
}

/// Asks for the permissions that the plan needs at the project. A role on a single object may allow what is missing there.
async fn permissions(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let Some(request) = request(wanted) else { return Vec::new() };
    // Those on the billing account are tested there.
    let needed = policy::permissions(&request).into_iter().filter(|permission| !policy::is_of_account(permission));
    let needed: Vec<String> = needed.collect();
    let mut missing = BTreeSet::new();
    for chunk in needed.chunks(PERMISSIONS_AT_ONCE) {
        let path = format!("projects/{}:testIamPermissions", api.project());
        let call = Call::post(Service::ResourceManager, path, json!({ "permissions": chunk }));
        let answer = match api.send(call.saying("test", "permissions")).await {
            Ok(answer) => answer,
            Err(error) => return unanswered("the permissions", &error),
        };
        let granted: BTreeSet<&str> =
            answer["permissions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        missing.extend(chunk.iter().filter(|one| !granted.contains(one.as_str())).cloned());
    }
    if missing.is_empty() {
        return Vec::new();
    }
    let listed: Vec<String> = missing.into_iter().collect();
    let cause = format!("{} does not have in the project: {}", api.session.identity.email, listed.join(", "));
    let fix = "`textnlp-deploy plan --policy` prints the role that this plan needs";
    vec![Problem::warning("permissions", cause, fix)]
}

/// Who gets the mails of a budget, and whether its billing account admits it: the permissions and the currency.
async fn budget(api: &Api, account: &str, budget: &Wanted) -> Vec<Problem> {
    let place = budget.id.as_str();
    let mut problems = Vec::new();
    if texts(budget, "channels").is_empty() && budget.spec.outputs_needed().is_empty() {
        let cause = "its mails go to the administrators and users of the billing account only";
        let fix = "write a mailbox in `monitoring.receivers`, or grant `roles/billing.user` on the billing account";
        problems.push(Problem::note(place, cause, fix));
    }
    let needed = request(std::slice::from_ref(budget)).map(|request| policy::permissions(&request)).unwrap_or_default();
    let needed: BTreeSet<String> = needed.into_iter().filter(|one| policy::is_of_account(one)).collect();
    let call =
        Call::post(Service::CloudBilling, format!("{account}:testIamPermissions"), json!({ "permissions": needed }));
    match api.send(call.saying("test", "permissions")).await {
        Ok(answer) => {
            let granted = answer["permissions"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let granted: BTreeSet<String> = granted.map(str::to_owned).collect();
            let missing: Vec<String> = needed.difference(&granted).cloned().collect();
            if !missing.is_empty() {
                let who = &api.session.identity.email;
                let cause = format!("{who} does not have on the billing account {account}: {}", missing.join(", "));
                let fix = "`textnlp-deploy plan --policy` prints the role that this plan needs on it";
                problems.push(Problem::warning(place, cause, fix));
            }
        }
        Err(error) => problems.extend(unanswered("the permissions on the billing account", &error)),
    }
    match api.find(Call::get(Service::CloudBilling, account)).await {
        Ok(found) => {
            let billed = found.as_ref().and_then(|found| found["currencyCode"].as_str());
            let own = budget.spec.get("currency").and_then(Value::as_str);
            if let Some((billed, own)) = billed.zip(own).filter(|(billed, own)| billed != own) {
                let cause = format!("the billing account counts in {billed}, and the budget is in {own}");
                let fix = format!("write `budget.monthly` in {billed}, and `budget.currency: {billed}`");
                problems.push(Problem::new(place, cause, fix));
            }
        }
        // The permissions say so.
        Err(error) if error.kind == ErrorKind::Denied => {}
        Err(error) => problems.extend(unanswered("the currency of the billing account", &error)),
    }
    problems
}

/// The request for the permissions to create, change and delete all of these.
fn request(wanted: &[Wanted]) -> Option<PolicyRequest> {
    let resource = |wanted: &Wanted| PolicyResource {
        id: wanted.id.clone(),
        cloud_id: None,
        kind: wanted.kind.clone(),
        spec: wanted.spec.clone(),
        // An existing object is only read.
        verbs: match wanted.ownership {
            Ownership::Ours => BTreeSet::from([Verb::Create, Verb::Update, Verb::Delete]),
            Ownership::External(_) => BTreeSet::new(),
        },
    };
    Some(PolicyRequest {
        lineage: None,
        environment: EnvironmentName::new("any").ok()?,
        site: wanted.first()?.site.clone(),
        resources: wanted.iter().map(resource).collect(),
    })
}

/// The machines that a pool asks for at first.
struct Pool<'w> {
    place: String,
    settings: PoolSettings,
    machine: &'static Machine,
    count: u64,
    /// How many its autoscaler may add.
    more: u64,
    /// How many an upgrade adds for a while.
    spare: u64,
    is_spot: bool,
    has_one_market: bool,
    /// Whether no other machine is tried where this one lacks.
    has_one_machine: bool,
    /// What the disk of a machine takes of the quota of SSDs.
    ssd_gb: u64,
    zones: Vec<&'w str>,
}

fn pools(wanted: &[Wanted]) -> Vec<Pool<'_>> {
    of_kind(wanted, "gcp.node-pool").filter_map(pool).collect()
}

fn pool(one: &Wanted) -> Option<Pool<'_>> {
    // Of several machines the first: another one is tried where it lacks, so that its quota refuses nothing.
    let names = machine_names(one.spec.get("machine"));
    let accelerator = of_machines(one.spec.get("accelerator")).first().and_then(|gpu| gpu["type"].as_str());
    let machine = machines::machine(names.first()?, accelerator)?;
    let (markets, zones) = (texts(one, "markets"), texts(one, "zones"));
    let scaling = |bound: &str| one.spec.get("scaling")?[bound].as_u64();
    let disks = machine_names(one.spec.get("disk_type"));
    let is_ssd = disks.first().is_some_and(|name| SSDS.contains(name));
    let upgrade = one.spec.get("upgrade")?;
    Some(Pool {
        place: one.id.to_string(),
        settings: PoolSettings::of_part(&one.id),
        machine,
        count: scaling("min")?,
        more: scaling("max")?.saturating_sub(scaling("min")?),
        spare: if upgrade["strategy"] == BLUE_GREEN { scaling("max")? } else { upgrade["max_surge"].as_u64()? },
        is_spot: markets.first() == Some(&SPOT),
        has_one_market: markets.len() < 2 && names.len() < 2,
        has_one_machine: names.len() < 2,
        ssd_gb: if is_ssd { one.spec.get("disk_gb")?.as_u64()? } else { 0 },
        zones,
    })
}

fn texts<'w>(one: &'w Wanted, field: &str) -> Vec<&'w str> {
    one.spec.get(field).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

/// What the pools need of each quota: those of the region with its number of zones, and those of the whole project.
fn needs(
    pools: &[Pool<'_>],
    has_spot_cpus: bool,
    zones: u64,
) -> (BTreeMap<&'static str, Need>, BTreeMap<&'static str, Need>) {
    let (mut region, mut project) = (BTreeMap::new(), BTreeMap::new());
    for pool in pools {
        let Pool { place, settings, machine, count, more, spare, is_spot, has_one_market, ssd_gb, .. } = pool;
        // Only the count of nodes without GPUs is rounded up.
        let zones = if *settings == PoolSettings::Nodes { zones } else { 1 };
        let add = |needs: &mut BTreeMap<&'static str, Need>, quota, each: u64, is_only: bool| {
            let own = PoolNeed { settings: *settings, each, count: *count, more: *more, zones };
            needs.entry(quota).or_default().add_pool(own, place.clone(), is_only);
        };
        let vcpus = u64::from(machine.vcpus);
        if *is_spot && has_spot_cpus {
            add(&mut region, SPOT_CPUS, vcpus, *has_one_market);
        } else {
            add(&mut region, machine.quota, vcpus, pool.has_one_machine);
        }
        add(&mut project, ALL_CPUS, vcpus, pool.has_one_machine);
        if *ssd_gb > 0 {
            add(&mut region, ALL_SSDS, *ssd_gb, pool.has_one_machine);
        }
        if let Some((gpu, each)) = machine.gpu {
            let gpus = u64::from(each);
            let quota = if *is_spot { gpu.spot_quota } else { gpu.quota };
            add(&mut region, quota, gpus, *has_one_market);
            add(&mut project, ALL_GPUS, gpus, pool.has_one_machine);
            for (needs, quota) in [(&mut region, quota), (&mut project, ALL_GPUS)] {
                needs.entry(quota).or_default().add_spare(gpus.saturating_mul(*spare));
            }
        }
    }
    (region, project)
}

/// Of a pool that is there only what it grows by counts: its machines are among those that are used.
async fn leave_out_running(api: &Arc<Api>, wanted: &[Wanted], pool: &mut Pool<'_>) {
    let Some(one) = wanted.iter().find(|one| one.id.as_str() == pool.place) else { return };
    let Some(row) = crate::table::row(&one.kind) else { return };
    let Some(id) = row.resource.id(&one.spec) else { return };
    let Ok(Some(seen)) = row.resource.read(api, &id).await else { return };
    let running = seen.spec.get("nodes").and_then(Value::as_u64).unwrap_or_default();
    let most = pool.count + pool.more;
    pool.count = pool.count.saturating_sub(running);
    pool.more = most.saturating_sub(running + pool.count);
}

async fn quotas(api: &Arc<Api>, wanted: &[Wanted]) -> Vec<Problem> {
    let created = created(api, wanted).await;
    let mut pools = pools(wanted);
    if pools.is_empty() && created.is_empty() {
        return Vec::new();
    }
    for pool in &mut pools {
        leave_out_running(api, wanted, pool).await;
    }
    let read = |path: String| api.find(Call::get(Service::Compute, path));
    // Only machines take of quotas of the region.
    let region = async {
        match pools.is_empty() {
            true => Ok(Some(Value::Null)),
            false => read(format!("projects/{}/regions/{}", api.project(), api.region)).await,
        }
    };
    let (region, project, is_new) =
        futures::join!(region, read(format!("projects/{}", api.project())), is_new(api, wanted, crate::table::CLUSTER));
    let has_spot_cpus =
        region.as_ref().is_ok_and(|found| found.as_ref().and_then(|found| limit(found, SPOT_CPUS)) > Some(0));
    let zones = zones::zones(&api.region).map_or(1, |zones| u64::try_from(zones.len()).unwrap_or(1));
    let (of_region, mut of_project) = needs(&pools, has_spot_cpus, zones);
    of_project.extend(created);
    let mut problems = Vec::new();
    if matches!(region, Ok(None)) {
        let place = format!("region {}", api.region);
        problems.push(Problem::new(place, "Google Cloud has no such region", "name one such as europe-west4"));
    }
    for (answer, needs) in [(region, of_region), (project, of_project)] {
        match answer {
            Ok(Some(found)) => {
                problems.extend(needs.into_iter().filter_map(|(name, need)| compare(&found, name, need, is_new)))
            }
            // A project that does not exist is reported with the project.
            Ok(None) => {}
            Err(error) => problems.extend(unanswered("the quotas", &error)),
        }
    }
    problems
}

/// What a plan creates of the quotas of [`COUNTED`]: what is there is among what is used.
async fn created(api: &Arc<Api>, wanted: &[Wanted]) -> BTreeMap<&'static str, Need> {
    let counted: Vec<(&'static str, &Wanted)> =
        COUNTED.iter().flat_map(|&(kind, quota)| of_kind(wanted, kind).map(move |one| (quota, one))).collect();
    let checks: Vec<_> = counted.iter().map(|&(_, one)| is_missing(api, one)).collect();
    let are_missing = join_all(checks).await;
    let mut needs: BTreeMap<&'static str, Need> = BTreeMap::new();
    for ((quota, one), is_missing) in counted.into_iter().zip(are_missing) {
        if is_missing {
            needs.entry(quota).or_default().add(1, one.id.to_string(), true);
        }
    }
    needs
}

/// Whether an object is not there. One that cannot be read is reported with the names.
async fn is_missing(api: &Arc<Api>, one: &Wanted) -> bool {
    let Some(row) = crate::table::row(&one.kind) else { return false };
    let Some(id) = row.resource.id(&one.spec) else { return false };
    matches!(row.resource.read(api, &id).await, Ok(None))
}

/// Whether Cloud Run accepts the most instances of services with GPUs. It compares them with the quota, whatever is used of that.
async fn run_gpus(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let most = |one: &Wanted| {
        let template = one.spec.get("template")?;
        let most = template["max"].as_u64()?;
        template["gpu"].is_string().then(|| (one.id.to_string(), most))
    };
    let services: Vec<(String, u64)> = of_kind(wanted, SERVICE).filter_map(most).collect();
    if services.is_empty() {
        return Vec::new();
    }
    let limit = match limit_of(api, Service::Run, RUN_GPUS).await {
        Ok(Some(0)) => FIRST_RUN_GPUS,
        Ok(Some(limit)) => limit,
        Ok(None) => return Vec::new(),
        Err(error) => return unanswered("the quota of GPUs of Cloud Run", &error),
    };
    let problem = |(place, most): (String, u64)| {
        let cause = format!(
            "the quota `{RUN_GPUS}` allows {} with a GPU in {}, and the service may have {most}",
            counted(limit, "instance"),
            api.region
        );
        Problem::new(
            place,
            cause,
            "lower `scaling.max` or `scaling.min`, or raise it: console, IAM & Admin > Quotas & System Limits",
        )
    };
    services.into_iter().filter(|(_, most)| *most > limit).map(problem).collect()
}

/// Whether Vertex AI accepts the GPUs of deployed models: it compares the most of them with the quota, and while a release is deployed
/// those of the one before it count too.
async fn serving_gpus(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for one in of_kind(wanted, DEPLOYMENT) {
        let Some(gpu) = one.spec.get("accelerator").filter(|gpu| gpu.is_object()) else { continue };
        if UNNAMED_QUOTAS.iter().any(|kind| gpu["type"] == *kind) {
            let cause = "the name of the quota of its GPUs is not documented: it is not compared";
            let fix = "look it up before `up`: console, IAM & Admin > Quotas & System Limits, Vertex AI API";
            problems.push(Problem::note(one.id.as_str(), cause, fix));
        }
        let Some((_, quota)) = SERVING_GPUS.iter().find(|(kind, _)| gpu["type"] == *kind) else { continue };
        let most = one.spec.get("scaling").and_then(|scaling| scaling["max"].as_u64()).unwrap_or_default();
        let most = most.saturating_mul(gpu["count"].as_u64().unwrap_or_default());
        let limit = match limit_of(api, Service::AiPlatform, quota).await {
            Ok(Some(limit)) => limit,
            Ok(None) => continue,
            Err(error) => {
                problems.extend(unanswered("the quota of GPUs of Vertex AI", &error));
                continue;
            }
        };
        let place = one.id.as_str();
        let of_region = format!("the quota `{quota}` allows {} in {}", counted(limit, "GPU"), api.region);
        if most > limit {
            let cause = format!("{of_region}, and the replicas may have {most}");
            problems.push(Problem::new(place, cause, format!("lower `scaling.max` or `scaling.min`, or {RAISE}")));
        } else if most.saturating_mul(2) > limit {
            let cause = format!("{of_region}, and a release needs {most} beside those of the one before it");
            problems.push(Problem::warning(place, cause, format!("{RAISE}; until then a changed release fails")));
        }
    }
    problems
}

/// The limit of a quota of a service in the region. Only this quota is asked for: Vertex AI has thousands.
async fn limit_of(api: &Api, service: Service, quota: &str) -> Result<Option<u64>> {
    // Its name is one part of the path.
    let part = quota.replace('/', "%2F");
    let path = format!("projects/{}/services/{}/consumerQuotaMetrics/{part}", api.project(), service.api());
    let call = Call::get(Service::ServiceUsageBeta, path).query("view", "FULL");
    let metric = api.find_enabled(call.saying("read", format!("quota {quota}"))).await?;
    Ok(metric.and_then(|metric| limit_in(&metric, &api.region)))
}

/// The limit of a quota in a region: its own, else that of all regions. A negative one is none.
fn limit_in(metric: &Value, region: &str) -> Option<u64> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let buckets: Vec<Value> =
        list(&metric["consumerQuotaLimits"]).iter().flat_map(|limit| list(&limit["quotaBuckets"])).collect();
    let own = buckets.iter().find(|bucket| bucket["dimensions"]["region"] == region);
    let bucket = own.or_else(|| buckets.iter().find(|bucket| bucket["dimensions"].is_null()))?;
    // Answers leave out zeros.
    bucket["effectiveLimit"].as_str().unwrap_or("0").parse().ok()
}

/// A quota that is not listed has no limit (gcloudrig/gcloudrig#44).
fn compare(document: &Value, name: &str, need: Need, is_new: bool) -> Option<Problem> {
    let quota = quota(document, name)?;
    let of_gpus = if name.contains("GPUS") { "; a new project has no GPUs until then" } else { "" };
    let raise = format!("{RAISE}{of_gpus}");
    need.check(&format!("the quota `{name}`"), "", amount(quota, "limit")?, amount(quota, "usage")?, &raise, is_new)
}

fn quota<'d>(document: &'d Value, name: &str) -> Option<&'d Value> {
    document["quotas"].as_array()?.iter().find(|one| one["metric"] == name)
}

fn limit(document: &Value, name: &str) -> Option<u64> {
    amount(quota(document, name)?, "limit")
}

/// Amounts are numbers with fractions, and far below what an exact one holds.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn amount(quota: &Value, member: &str) -> Option<u64> {
    quota[member].as_f64().map(|number| number.max(0.0) as u64)
}

/// Existing buckets that pods cannot read by a role: their identity needs uniform access
/// (<https://cloud.google.com/iam/docs/federated-identity-supported-services>).
async fn buckets(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for one in of_kind(wanted, "gcp.bucket-binding") {
        // The id of a bucket that `up` creates is a reference, and servers of Cloud Run have an account of the project.
        let text = |field: &str| one.spec.get(field).and_then(Value::as_str);
        let is_of_pods = text("member").is_some_and(|member| member.starts_with(PODS));
        let Some(bucket) = text("target").filter(|_| is_of_pods) else { continue };
        let found = match api.buckets().await {
            Ok(buckets) => buckets.get(bucket).await,
            Err(error) => Err(error),
        };
        match found {
            Ok(Some(found)) if found["iamConfig"]["uniformBucketLevelAccess"]["enabled"] != true => {
                let name = last(bucket);
                let cause = format!("the bucket `{name}` has no uniform bucket-level access, which roles of pods need");
                let fix = format!("`gcloud storage buckets update gs://{name} --uniform-bucket-level-access`");
                problems.push(Problem::new(one.id.as_str(), cause, fix));
            }
            Ok(_) => {}
            Err(error) => problems.extend(unanswered(bucket, &error)),
        }
    }
    problems
}

/// Whether the zones of each pool have its machine and its GPU at all.
async fn zones(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for pool in pools(wanted).into_iter().filter(|pool| !pool.zones.is_empty()) {
        let mut has = Vec::new();
        for zone in &pool.zones {
            let path = |kind: &str, name: &str| format!("projects/{}/zones/{zone}/{kind}/{name}", api.project());
            let mut paths = vec![path("machineTypes", pool.machine.name)];
            paths.extend(pool.machine.gpu.map(|(gpu, _)| path("acceleratorTypes", gpu.accelerator)));
            let asked = paths.len();
            match api.read_all(Service::Compute, paths).await {
                Ok(found) if found.len() == asked => has.push(*zone),
                Ok(_) => {}
                Err(error) => return unanswered("the machines of zones", &error),
            }
        }
        let name = pool.machine.name;
        if has.is_empty() && !is_unanswered(api).await {
            let cause = format!("no zone of {} has {name} with its GPU", api.region);
            problems.push(match pool.has_one_machine {
                true => Problem::new(pool.place, cause, "choose another `gpu.size`, or another region"),
                false => Problem::warning(pool.place, cause, "the next one of `gpu.machines` is tried"),
            });
        } else if !has.is_empty() && has.len() < pool.zones.len() {
            problems.push(Problem::note(
                pool.place,
                format!("{name} is only in {}", has.join(", ")),
                "these zones are used",
            ));
        }
    }
    problems
}

/// Whether Compute Engine is not enabled yet, so that no zone shows its machines.
async fn is_unanswered(api: &Api) -> bool {
    let call = Call::get(Service::Compute, format!("projects/{}/regions/{}", api.project(), api.region));
    !matches!(api.find_enabled(call).await, Ok(Some(_)))
}

/// Whether each DNS zone exists, has the names of its records, and answers clients on the internet.
async fn dns_zones(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (id, records) in by_zone(wanted, "gcp.dns-record") {
        let place = format!("zone {id}");
        let zone = match api.find(Call::get(Service::Dns, id)).await {
            Ok(zone) => zone,
            // `up` does not enable it: an existing zone may be in another project.
            Err(error) if is_disabled(&error) => {
                let (api, project) = (Service::Dns.api(), id.split('/').nth(1).unwrap_or_default());
                let cause = format!("the zone cannot be read: {api} is not enabled in project {project}");
                let fix =
                    format!("`gcloud services enable {api} --project {project}`, and try again some minutes later");
                problems.push(Problem::new(place, cause, fix));
                continue;
            }
            Err(error) => {
                problems.push(unknown(&place, &error));
                continue;
            }
        };
        let Some(zone) = zone else {
            let fix = "set `traffic.existing` to the name of a zone: `gcloud dns managed-zones list`";
            problems.push(Problem::new(place, "there is no such zone in the project", fix));
            continue;
        };
        problems.extend(outside(&records, zone["dnsName"].as_str().unwrap_or_default()));
        if zone["visibility"] == "private" {
            let fix = "set the name of a public zone if clients are elsewhere";
            problems.push(Problem::warning(place, "it answers inside of its networks only", fix));
        }
    }
    problems
}

/// Whether an existing network and its subnetwork have what a cluster and a managed database need.
async fn existing_network(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let external = |kind: &str| {
        wanted.iter().find_map(|one| match &one.ownership {
            Ownership::External(id) if one.kind.as_str() == kind => Some((one.id.as_str(), id.as_str())),
            _ => None,
        })
    };
    let (Some((of_network, network)), Some((place, subnetwork))) =
        (external("gcp.network"), external("gcp.subnetwork"))
    else {
        return Vec::new();
    };
    let routers = format!("projects/{}/regions/{}/routers", api.project(), api.region);
    let (found, subnet, routers) = futures::join!(
        api.find(Call::get(Service::Compute, network)),
        api.find(Call::get(Service::Compute, subnetwork)),
        api.list(Service::Compute, &routers, "items", &[])
    );
    let mut problems = Vec::new();
    let served = [("gcp.sql-instance", "Cloud SQL", "database"), (REDIS, "Memorystore", "cache")];
    let served = served.into_iter().filter(|&(kind, ..)| of_kind(wanted, kind).next().is_some());
    // What cannot be read is told with the names.
    let unconnected = found.ok().flatten().filter(|found| !is_connected(found));
    for (_, which, setting) in served.filter(|_| unconnected.is_some()) {
        let name = last(network);
        let cause = format!("`{name}` has no private services access, so that {which} has no addresses in it");
        let fix = format!(
            "`gcloud services vpc-peerings connect --service servicenetworking.googleapis.com --network {name} --ranges RANGE --project {}`, or write `{setting}.hosting: external`",
            api.project()
        );
        problems.push(Problem::new(of_network, cause, fix));
    }
    let Ok(Some(subnet)) = subnet else { return problems };
    let of = subnet["network"].as_str().map(relative).unwrap_or_default();
    if of != network {
        let cause = format!("`{}` is in the network `{}`, not in `{}`", last(subnetwork), last(of), last(network));
        problems.push(Problem::new(place, cause, "name a subnetwork of the existing network"));
    }
    // The operator of an existing cluster has seen to the rest.
    let Some(cluster) = of_kind(wanted, crate::table::CLUSTER).next() else { return problems };
    let ranges = subnet["secondaryIpRanges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let range = |name: &str| ranges.iter().find(|one| one["rangeName"] == name);
    let [pods, services] =
        ["pods", "services"].map(|field| cluster.spec.get(field).and_then(Value::as_str).unwrap_or_default());
    let missing: Vec<&str> = [pods, services].into_iter().filter(|&name| range(name).is_none()).collect();
    let name = last(subnetwork);
    let others = format!("`sites[].existing.subnets: [{name}:PODS:SERVICES]`");
    let update =
        format!("gcloud compute networks subnets update {name} --region {} --project {}", api.region, api.project());
    if !missing.is_empty() {
        let cause = format!("`{name}` has no secondary range named {}", missing.join(", and none named "));
        let added: Vec<String> = missing.iter().map(|name| format!("{name}=RANGE")).collect();
        let fix = format!(
            "name those that it has, {others}, or add them: `{update} --add-secondary-ranges {}`",
            added.join(",")
        );
        problems.push(Problem::new(place, cause, fix));
    }
    let nodes: u64 = pools(wanted).iter().map(|pool| pool.count + pool.more + pool.spare).sum();
    let has = range(pods).and_then(|one| one["ipCidrRange"].as_str()).and_then(Range::read);
    if let Some(has) = has.filter(|has| has.addresses() / ADDRESSES_OF_NODE < nodes) {
        let cause = format!(
            "the range `{pods}` of `{name}` is {has} and has room for the pods of {}; the cluster may have {nodes}, with those that upgrades add",
            counted(has.addresses() / ADDRESSES_OF_NODE, "node")
        );
        let fix = format!("name a larger range, {others}, or lower `cluster.max_nodes` or `gpu.max`");
        problems.push(Problem::new(place, cause, fix));
    }
    match routers {
        Ok(routers) if !routers.iter().any(|router| translates(router, network, subnetwork)) => {
            problems.push(match subnet["privateIpGoogleAccess"] == true {
                true => {
                    let cause = format!(
                        "no Cloud NAT has `{name}`: without another way out, images and models from outside of Google are not pulled"
                    );
                    Problem::warning(place, cause, "add one: `gcloud compute routers nats create`")
                }
                false => {
                    let cause = format!(
                        "`{name}` has no private Google access, and no Cloud NAT has it: without another way out, nodes pull no image"
                    );
                    Problem::warning(place, cause, format!("`{update} --enable-private-ip-google-access`"))
                }
            });
        }
        Ok(_) => {}
        Err(error) => problems.extend(unanswered("the NAT of the existing network", &error)),
    }
    problems
}

/// Whether a NAT of a router translates the addresses of a subnetwork.
fn translates(router: &Value, network: &str, subnetwork: &str) -> bool {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let has = |nat: &Value| {
        let is_listed = |one: &Value| one["name"].as_str().map(relative) == Some(subnetwork);
        nat["sourceSubnetworkIpRangesToNat"] != "LIST_OF_SUBNETWORKS" || list(&nat["subnetworks"]).iter().any(is_listed)
    };
    router["network"].as_str().map(relative) == Some(network) && list(&router["nats"]).iter().any(has)
}

/// Networks that overlap can never be connected.
async fn overlaps(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for one in of_kind(wanted, "gcp.subnetwork") {
        let text = |field: &str| one.spec.get(field).and_then(Value::as_str);
        let ranges = one.spec.get("ranges").and_then(Value::as_object).into_iter().flatten();
        let own = ranges.filter_map(|(_, range)| range.as_str()).chain(text("cidr"));
        let own: Vec<Range> = own.filter_map(Range::read).collect();
        let path = api.path("projects/{project}/aggregated/subnetworks");
        let others = match api.list(Service::Compute, &path, "items", &[]).await {
            Ok(others) => others,
            Err(error) => return unanswered("the address ranges", &error),
        };
        for other in others {
            let tags = labels::of_description(get(&other, "/description").and_then(Value::as_str).unwrap_or_default());
            let is_own = tags.get(textnlp_cloud::tags::RESOURCE).map(String::as_str) == Some(one.id.as_str());
            let cidr = other["ipCidrRange"].as_str().unwrap_or_default();
            let Some(range) = Range::read(cidr).filter(|_| !is_own) else { continue };
            if own.iter().any(|own| own.overlaps(range)) {
                let name = last(relative(other["selfLink"].as_str().unwrap_or_default()));
                let cause = format!("its range overlaps with that of `{name}`, {cidr}: they can never be connected");
                let fix = "set another `network.cidr` if they ever should be";
                problems.push(Problem::note(one.id.as_str(), cause, fix));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use textnlp_provider::component::{Cluster, ComponentSpec, GpuPool};
    use textnlp_provider::settings::{GpuSize, NodeUpgrade, Spot};

    use super::*;
    use crate::lower::{lower, tests};

    #[test]
    fn gpus_count_against_two_quotas() {
        let pool = GpuPool::of(GpuSize::Small, 2);
        let cluster = Cluster { gpu: Some(pool), ..Cluster::of("network".parse().unwrap()) };
        let component = tests::component("cluster", ComponentSpec::Cluster(cluster));
        let wanted = lower(&component, &tests::site(false)).unwrap();
        let (mut region, mut project) = needs(&pools(&wanted), true, 3);
        let quotas =
            |metric: &str, limit: f64| json!({ "quotas": [{ "metric": metric, "limit": limit, "usage": 0.0 }] });
        let found =
            compare(&quotas("NVIDIA_T4_GPUS", 1.0), "NVIDIA_T4_GPUS", region.remove("NVIDIA_T4_GPUS").unwrap(), true);
        assert!(found.is_some_and(|problem| !problem.warning && problem.cause.contains("allows 1")));
        let found = compare(&quotas(ALL_GPUS, 0.0), ALL_GPUS, project.remove(ALL_GPUS).unwrap(), true);
        assert!(found.is_some_and(|problem| problem.fix.contains("Quotas")));
        let unlimited = compare(&quotas("CPUS", 0.0), ALL_CPUS, project.remove(ALL_CPUS).unwrap(), true);
        assert!(unlimited.is_none(), "a quota that is not listed has no limit");
        assert!(region.contains_key("CPUS") && region.contains_key(ALL_SSDS));
        assert!(!region.contains_key(SPOT_CPUS), "no machine is a spot machine");
    }

    #[test]
    fn each_gpu_has_a_quota_for_models_or_none_that_is_documented() {
        for (gpu, _) in machines::MACHINES.iter().filter_map(|machine| machine.gpu) {
            let kind = gpu.vertex_name();
            let has_quota = SERVING_GPUS.iter().any(|(known, _)| *known == kind);
            assert!(has_quota != UNNAMED_QUOTAS.contains(&kind.as_str()), "{kind}");
        }
    }

    #[test]
    fn the_limit_of_a_region_is_its_own_or_that_of_all() {
        let bucket = |limit: &str, region: Option<&str>| match region {
            Some(region) => json!({ "effectiveLimit": limit, "dimensions": { "region": region } }),
            None => json!({ "effectiveLimit": limit }),
        };
        let of = |buckets: Vec<Value>| {
            let metric = json!({ "metric": RUN_GPUS, "consumerQuotaLimits": [{ "quotaBuckets": buckets }] });
            limit_in(&metric, "europe-west4")
        };
        assert_eq!(of(vec![bucket("5", None), bucket("1", Some("us-central1"))]), Some(5));
        assert_eq!(of(vec![bucket("5", None), bucket("1", Some("europe-west4"))]), Some(1));
        assert_eq!(of(vec![json!({})]), Some(0), "answers leave out zeros");
        assert_eq!((of(vec![bucket("-1", None)]), of(Vec::new())), (None, None));
    }

    #[test]
    fn an_upgrade_that_adds_machines_needs_quota_for_their_gpus() {
        let spare = |upgrade: Option<NodeUpgrade>| {
            let pool = GpuPool { upgrade, ..GpuPool::of(GpuSize::Small, 2) };
            let cluster = Cluster { gpu: Some(pool), ..Cluster::of("network".parse().unwrap()) };
            let component = tests::component("cluster", ComponentSpec::Cluster(cluster));
            let wanted = lower(&component, &tests::site(false)).unwrap();
            let need = needs(&pools(&wanted), true, 3).1.remove(ALL_GPUS).unwrap();
            compare(&json!({ "quotas": [{ "metric": ALL_GPUS, "limit": 2.0, "usage": 0.0 }] }), ALL_GPUS, need, true)
        };
        assert!(spare(None).is_none(), "no machine is added");
        for (upgrade, count) in [(NodeUpgrade::Surge, 1), (NodeUpgrade::BlueGreen, 2)] {
            let problem = spare(Some(upgrade)).unwrap();
            let says = format!("needs 2 more, and {count} for an upgrade of machines");
            assert!(problem.warning && problem.cause.ends_with(&says), "{problem:?}");
        }
    }

    #[test]
    fn processors_of_spot_machines_count_where_the_region_counts_them() {
        let pool = GpuPool { spot: Spot::Only, ..GpuPool::of(GpuSize::Small, 1) };
        let cluster = Cluster { gpu: Some(pool), ..Cluster::of("network".parse().unwrap()) };
        let wanted = lower(&tests::component("cluster", ComponentSpec::Cluster(cluster)), &tests::site(false)).unwrap();
        let gpus = |one: &Pool<'_>| one.machine.gpu.is_some();
        let pools: Vec<Pool<'_>> = pools(&wanted).into_iter().filter(gpus).collect();
        let mut own = needs(&pools, true, 3).0;
        let found = json!({ "quotas": [{ "metric": SPOT_CPUS, "limit": 1.0, "usage": 0.0 }] });
        assert!(!own.contains_key("CPUS") && limit(&found, SPOT_CPUS) == Some(1));
        let problem = compare(&found, SPOT_CPUS, own.remove(SPOT_CPUS).unwrap(), true);
        assert!(problem.is_some_and(|problem| !problem.warning && problem.cause.contains("allows 1")));
        let shared = needs(&pools, false, 3).0;
        assert!(shared.contains_key("CPUS") && !shared.contains_key(SPOT_CPUS));
    }
}
