//! Policies of resources, service accounts, projects, and tokens of service accounts.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::cloud::{Cloud, Object, Policy};
use super::kinds::{KIND, Kind, collection, page};
use super::problem::Problem;
use super::{Call, Handler, errors};
use crate::clock::later;
use crate::{Behaviour, Source};

/// How long a deleted service account can be restored.
const RESTORABLE: Duration = Duration::from_secs(30 * 86_400);
/// The role that may make tokens of an account.
const TOKEN_CREATOR: &str = "roles/iam.serviceAccountTokenCreator";
/// The role that may make ID tokens of an account, and its permission.
const ID_TOKEN_CREATOR: &str = "roles/iam.serviceAccountOpenIdTokenCreator";
pub(crate) const OPEN_ID: &str = "iam.serviceAccounts.getOpenIdToken";

pub(crate) const KINDS: &[Kind] =
    &[Kind { methods: "iam.projects.serviceAccounts", verbs: &[], collection: ("iam", "serviceAccounts"), ..KIND }];

pub(crate) const HANDLERS: &[(&str, Handler)] = &[
    ("iam.projects.serviceAccounts.create", create),
    ("iam.projects.serviceAccounts.get", get),
    ("iam.projects.serviceAccounts.list", list),
    ("iam.projects.serviceAccounts.patch", patch),
    ("iam.projects.serviceAccounts.delete", delete),
    ("iam.projects.serviceAccounts.undelete", undelete),
    ("iam.projects.serviceAccounts.getIamPolicy", get_policy),
    ("iam.projects.serviceAccounts.setIamPolicy", set_policy),
    ("iam.projects.serviceAccounts.testIamPermissions", test_permissions),
    ("iamcredentials.projects.serviceAccounts.generateAccessToken", generate_token),
    ("iamcredentials.projects.serviceAccounts.generateIdToken", generate_id_token),
    ("run.projects.locations.services.getIamPolicy", get_policy),
    ("run.projects.locations.services.setIamPolicy", set_policy),
    ("run.projects.locations.services.testIamPermissions", test_permissions),
    ("cloudresourcemanager.projects.get", project),
    ("cloudresourcemanager.projects.getIamPolicy", get_policy),
    ("cloudresourcemanager.projects.setIamPolicy", set_policy),
    ("cloudresourcemanager.projects.testIamPermissions", test_permissions),
    ("cloudresourcemanager.projects.getEffectiveOrgPolicy", org_policy),
    ("artifactregistry.projects.locations.repositories.getIamPolicy", get_policy),
    ("artifactregistry.projects.locations.repositories.setIamPolicy", set_policy),
    ("artifactregistry.projects.locations.repositories.testIamPermissions", test_permissions),
    ("cloudkms.projects.locations.keyRings.getIamPolicy", get_policy),
    ("cloudkms.projects.locations.keyRings.setIamPolicy", set_policy),
    ("cloudkms.projects.locations.keyRings.testIamPermissions", test_permissions),
    ("cloudkms.projects.locations.keyRings.cryptoKeys.getIamPolicy", get_policy),
    ("cloudkms.projects.locations.keyRings.cryptoKeys.setIamPolicy", set_policy),
    ("cloudkms.projects.locations.keyRings.cryptoKeys.testIamPermissions", test_permissions),
];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "a write of a policy with a stale etag is 409 ABORTED, and every write changes the etag",
        Source::Report("hashicorp/terraform-provider-google#12512"),
    ),
    rule(
        "other writers may change a policy between a read and a write",
        Source::Report("hashicorp/terraform-provider-google#10786"),
    ),
    rule(
        "a policy with a condition has version 3: a read or write below it is 400",
        Source::Report("hashicorp/terraform-provider-google#5218"),
    ),
    rule("a write without an etag replaces the policy", Source::Report("hashicorp/vault-plugin-secrets-gcp#88")),
    rule(
        "one member that does not exist refuses the whole policy, and the refusal names it",
        Source::Report("GoogleCloudPlatform/magic-modules#4441"),
    ),
    rule(
        "an agent of a service that was not made yet refuses the policy",
        Source::Report("hashicorp/terraform-provider-google#15572"),
    ),
    rule(
        "the identity pool of a project does not exist before its first cluster with one",
        Source::Report("terraform-google-modules/terraform-google-kubernetes-engine#916"),
    ),
    rule(
        "a new service account is seen by some replicas only; the others answer 403 or 404",
        Source::Report("hashicorp/terraform-provider-google#15042"),
    ),
    rule(
        "an unknown service account is 403 IAM_PERMISSION_DENIED, and lists omit it",
        Source::Report("crossplane-contrib/provider-upjet-gcp#411"),
    ),
    rule(
        "a deleted account stays in policies as deleted:, with its uid",
        Source::Report("hashicorp/terraform-provider-google#10193"),
    ),
    rule(
        "a new account with the old address has another uid and none of the grants; undelete restores both",
        Source::Report("hashicorp/terraform-provider-google#6532"),
    ),
    rule(
        "a grant takes effect late, and reads show it at once",
        Source::Report("GoogleCloudPlatform/kubernetes-engine-samples#468"),
    ),
    rule(
        "domain restricted sharing refuses allUsers with 400 and a PreconditionFailure",
        Source::Report("GoogleCloudPlatform/genai-for-marketing#153"),
    ),
    rule(
        "an owner has no iam.serviceAccounts.getAccessToken",
        Source::Documentation("https://cloud.google.com/iam/docs/service-account-permissions#token-creator-role"),
    ),
    rule(
        "an owner has no iam.serviceAccounts.getOpenIdToken; roles of token creators, and custom ones, have it",
        Source::Documentation("https://cloud.google.com/iam/docs/service-account-permissions#oidc-token-creator-role"),
    ),
    rule(
        "ids of accounts have 6 to 30 characters",
        Source::Documentation("https://cloud.google.com/iam/docs/service-accounts-create"),
    ),
    rule("a display name has at most 100 bytes", Source::Model),
    rule("testIamPermissions answers those of the asked permissions that the caller has", Source::Model),
    rule(
        "an unknown project is 403",
        Source::Documentation("https://cloud.google.com/resource-manager/docs/core_errors"),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "iam", what, source }
}

/// The etag of a policy.
fn etag(policy: &Policy, key: &str) -> String {
    use base64::Engine;
    let text = format!("{}{}", &super::cloud::hash(key)[..6], policy.writes);
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// Reads a policy.
pub(crate) fn read(cloud: &mut Cloud, key: &str, version: i64) -> Result<Value, Problem> {
    let policy = cloud.policies.entry(key.to_owned()).or_insert_with(|| Policy {
        body: json!({}),
        writes: 0,
        effective: BTreeMap::new(),
    });
    let has_conditions = has_conditions(&policy.body);
    if has_conditions && version < 3 {
        let message = format!(
            "Requested policy version ({version}) cannot be less than the existing policy version (3). For more \
                information, please refer to https://cloud.google.com/iam/docs/policies#versions."
        );
        return Err(Problem::new("INVALID_ARGUMENT", message));
    }
    let mut body = policy.body.clone();
    body["etag"] = etag(policy, key).into();
    if policy.writes > 0 {
        body["version"] = if has_conditions { 3 } else { 1 }.into();
    }
    Ok(body)
}

fn has_conditions(body: &Value) -> bool {
    body["bindings"].as_array().is_some_and(|bindings| bindings.iter().any(|one| one.get("condition").is_some()))
}

/// Writes a policy.
pub(crate) fn write(cloud: &mut Cloud, key: &str, project: &str, wanted: &Value) -> Result<Value, Problem> {
    // Another writer comes first.
    if cloud.conduct.foreign_writers > 0 {
        cloud.conduct.foreign_writers -= 1;
        if let Some(policy) = cloud.policies.get_mut(key) {
            policy.writes += 1;
        }
    }
    let current = cloud.policies.get(key).map(|policy| etag(policy, key)).unwrap_or_default();
    let had_conditions = cloud.policies.get(key).is_some_and(|policy| has_conditions(&policy.body));
    if let Some(sent) = wanted["etag"].as_str().filter(|sent| !sent.is_empty())
        && sent != current
    {
        let message = format!(
            "There were concurrent policy changes. Please retry the whole read-modify-write with exponential backoff. \
             The request's ETag '{sent}' did not match the current policy's ETag '{current}'."
        );
        return Err(Problem::new("ABORTED", message));
    }
    let version = wanted["version"].as_i64().unwrap_or(1);
    if version < 3 && (has_conditions(wanted) || (had_conditions && wanted.get("etag").is_some())) {
        let message =
            format!("Requested policy version ({version}) cannot be less than the existing policy version (3).");
        return Err(Problem::new("INVALID_ARGUMENT", message));
    }
    check_members(cloud, project, wanted)?;
    let now = cloud.now();
    let mut bindings: Vec<Value> = wanted["bindings"].as_array().cloned().unwrap_or_default();
    bindings.retain(|one| one["members"].as_array().is_some_and(|members| !members.is_empty()));
    let mut effective = BTreeMap::new();
    let old = cloud.policies.get(key).map(|policy| policy.effective.clone()).unwrap_or_default();
    for binding in &bindings {
        let role = binding["role"].as_str().unwrap_or_default().to_owned();
        for member in binding["members"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let grant = (role.clone(), member.to_owned());
            let lag = cloud.lag(&cloud.conduct.grant_lag.clone());
            let from = old.get(&grant).copied().unwrap_or_else(|| later(now, lag));
            effective.insert(grant, from);
        }
    }
    let writes = cloud.policies.get(key).map_or(0, |policy| policy.writes) + 1;
    let body = if bindings.is_empty() { json!({}) } else { json!({ "bindings": bindings }) };
    let policy = Policy { body, writes, effective };
    cloud.policies.insert(key.to_owned(), policy);
    read(cloud, key, 3)
}

fn missing_pool(pool: &str) -> Problem {
    let message = format!(
        "Identity Pool does not exist ({pool}.svc.id.goog). Please check that you specified a valid resource name as \
         returned in the `name` attribute in the configuration API."
    );
    Problem::new("INVALID_ARGUMENT", message)
}

fn check_members(cloud: &Cloud, project: &str, policy: &Value) -> Result<(), Problem> {
    let bindings = policy["bindings"].as_array().into_iter().flatten();
    let members = bindings.flat_map(|one| one["members"].as_array().into_iter().flatten());
    for member in members.filter_map(Value::as_str) {
        let public = ["allUsers", "allAuthenticatedUsers"].contains(&member);
        if public && cloud.enforces(project, "iam.allowedPolicyMemberDomains") {
            let message = "One or more users named in the policy do not belong to a permitted customer.";
            let violation = json!({ "type": "constraints/iam.allowedPolicyMemberDomains", "subject": "orgpolicy",
                "description": message });
            let detail =
                json!({ "@type": "type.googleapis.com/google.rpc.PreconditionFailure", "violations": [violation] });
            return Err(Problem::new("FAILED_PRECONDITION", message).detail(detail));
        }
        if cloud.missing_members.contains(member) {
            return Err(missing_member(member));
        }
        let Some(address) = member.strip_prefix("serviceAccount:") else {
            let kinds = [
                "user:",
                "group:",
                "domain:",
                "principal:",
                "principalSet:",
                "deleted:",
                "projectOwner:",
                "projectEditor:",
                "projectViewer:",
            ];
            // The pool of a project's clusters is that of its first one with workload identity.
            let pool = member.strip_prefix("principal://").and_then(|rest| rest.split_once("/workloadIdentityPools/"));
            let pool = pool.and_then(|(_, rest)| rest.split_once(".svc.id.goog/")).map(|(pool, _)| pool);
            if let Some(pool) =
                pool.filter(|pool| !cloud.project(pool).is_some_and(|project| project.has_identity_pool))
            {
                return Err(missing_pool(pool));
            }
            if !public && !kinds.iter().any(|kind| member.starts_with(kind)) {
                let message = format!("Invalid argument: Invalid member '{member}': it needs a type.");
                return Err(Problem::new("INVALID_ARGUMENT", message));
            }
            continue;
        };
        if let Some((pool, _)) = address.split_once(".svc.id.goog[") {
            if !cloud.project(pool).is_some_and(|project| project.has_identity_pool) {
                return Err(missing_pool(pool));
            }
            continue;
        }
        if !exists(cloud, address) {
            return Err(missing_member(address));
        }
    }
    Ok(())
}

fn missing_member(member: &str) -> Problem {
    let member = member.rsplit(':').next().unwrap_or_default();
    Problem::new("INVALID_ARGUMENT", format!("Service account {member} does not exist."))
}

/// Whether an account of this project exists. Of accounts of other projects that is not known.
fn exists(cloud: &Cloud, address: &str) -> bool {
    let own = address.split_once('@').and_then(|(_, domain)| domain.strip_suffix(".iam.gserviceaccount.com"));
    match own {
        Some(project) if cloud.projects.contains_key(project) => {
            let key = format!("iam/projects/{project}/serviceAccounts/{address}");
            cloud.objects.contains_key(&key) && cloud.visible_from.get(&key).is_none_or(|from| *from <= cloud.now())
        }
        Some(_) => {
            let is_agent = cloud.projects.values().any(|project| address.contains(&format!("-{}@", project.number)));
            !is_agent || cloud.service_agents.contains(address)
        }
        None => true,
    }
}

/// Whether a policy grants a role to a member, in effect.
pub(crate) fn grants(cloud: &Cloud, key: &str, role: &str, member: &str) -> bool {
    let now = cloud.now();
    let grants = |policy: &Policy| {
        let is_one = |((one, holder), from): (&(String, String), &Timestamp)| {
            (role.is_empty() || one == role) && holder == member && *from <= now
        };
        policy.effective.iter().any(is_one)
    };
    cloud.policies.get(key).is_some_and(grants)
}

fn policy_version(call: &Call<'_>) -> i64 {
    let of_query = call.parameter("options.requestedPolicyVersion").and_then(|text| text.parse().ok());
    of_query.or_else(|| call.body.pointer("/options/requestedPolicyVersion")?.as_i64()).unwrap_or(1)
}

fn resource(cloud: &Cloud, call: &Call<'_>) -> Result<String, Problem> {
    let key = account_key(call);
    let is_there = key.starts_with("cloudresourcemanager/") || cloud.get(&key).is_some();
    match is_there {
        true => Ok(key),
        false => Err(errors::not_found(call.service.name, &call.name)),
    }
}

fn get_policy(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let key = resource(cloud, call)?;
    read(cloud, &key, policy_version(call))
}

fn set_policy(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let key = resource(cloud, call)?;
    write(cloud, &key, &call.project, &call.body["policy"])
}

pub(crate) fn test_permissions(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let asked = call.body["permissions"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let held: Vec<&str> = asked.filter(|one| super::may(cloud, &call.user, &call.project, one)).collect();
    Ok(if held.is_empty() { json!({}) } else { json!({ "permissions": held }) })
}

/// The key of an account whose path may have `-` for the project.
fn account_key(call: &Call<'_>) -> String {
    let key = call.key();
    match (key.strip_prefix("iam/projects/-/serviceAccounts/"), key.strip_prefix("iamcredentials/")) {
        (Some(address), _) => {
            let project = address.split_once('@').and_then(|(_, domain)| domain.split('.').next()).unwrap_or("-");
            format!("iam/projects/{project}/serviceAccounts/{address}")
        }
        (None, _) => key,
    }
}

fn unseen(cloud: &Cloud, call: &Call<'_>) -> Problem {
    match cloud.random.number() % 2 {
        0 => errors::denied("iam", "iam.serviceAccounts.get", &call.name),
        _ => errors::not_found("iam", &call.name),
    }
}

/// An account, if the replica that is asked knows it.
fn account(cloud: &Cloud, call: &Call<'_>) -> Result<(String, Value), Problem> {
    let mut key = account_key(call);
    // Unique ids are names too.
    if let Some((collection_key, id)) = key.clone().rsplit_once('/')
        && id.chars().all(|c| c.is_ascii_digit())
    {
        let all = collection(cloud, collection_key);
        if let Some(found) = all.into_iter().find(|one| cloud.get(one).is_some_and(|body| body["uniqueId"] == id)) {
            key = found;
        }
    }
    let Some(body) = cloud.get(&key).cloned() else {
        return Err(errors::denied("iam", "iam.serviceAccounts.get", &call.name));
    };
    if let Some(from) = cloud.visible_from.get(&key).filter(|from| **from > cloud.now()) {
        // The chance that a replica knows it rises until all do.
        let created = cloud.objects.get(&key).map_or(*from, |object| object.created);
        let all = from.duration_since(created).as_secs_f64().max(1.0);
        let passed = cloud.now().duration_since(created).as_secs_f64();
        if cloud.random.fraction() > passed / all {
            return Err(unseen(cloud, call));
        }
    }
    Ok((key, body))
}

fn create(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let id = call.body["accountId"].as_str().unwrap_or_default();
    if !(6..=30).contains(&id.len()) || !errors::is_name(id, 30) {
        let message = format!("{id:?} is no id of a service account: 6 to 30 lower case letters, digits and hyphens.");
        return Err(Problem::new("INVALID_ARGUMENT", message));
    }
    let address = format!("{id}@{}.iam.gserviceaccount.com", call.project);
    let name = format!("projects/{}/serviceAccounts/{address}", call.project);
    let key = format!("iam/{name}");
    if cloud.objects.contains_key(&key) {
        return Err(errors::already_exists("iam", &name));
    }
    let mut body = json!({ "name": name, "projectId": call.project, "uniqueId": format!("1{:020}",
        cloud.random.number()),
        "email": address, "etag": "MDEwMjE5MjA=", "oauth2ClientId": cloud.number() });
    for member in ["displayName", "description"] {
        if let Some(value) = call.body["serviceAccount"].get(member) {
            body[member] = value.clone();
        }
    }
    if body["displayName"].as_str().is_some_and(|name| name.len() > 100) {
        return Err(Problem::new("INVALID_ARGUMENT", "The display name has more than 100 bytes."));
    }
    cloud.put(&key, body.clone());
    let lag = cloud.lag(&cloud.conduct.account_lag.clone());
    cloud.visible_from.insert(key, later(cloud.now(), lag));
    Ok(body)
}

fn get(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    account(cloud, call).map(|(_, body)| body)
}

fn list(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let keys = collection(cloud, &call.key());
    let seen = keys.iter().filter(|key| cloud.visible_from.get(*key).is_none_or(|from| *from <= cloud.now()));
    Ok(page(call, "accounts", seen.filter_map(|key| cloud.get(key).cloned()).collect()))
}

fn patch(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let (key, _) = account(cloud, call)?;
    let mask = call.body["updateMask"].as_str().unwrap_or_default().to_owned();
    if mask.is_empty() {
        return Err(Problem::new("INVALID_ARGUMENT", "The update mask is missing."));
    }
    let Some(object) = cloud.objects.get_mut(&key) else { return Err(errors::not_found("iam", &call.name)) };
    for path in mask.split(',').map(str::trim) {
        let member = match path {
            "displayName" | "display_name" => "displayName",
            "description" => "description",
            other => return Err(Problem::new("INVALID_ARGUMENT", format!("Invalid update mask: {other}"))),
        };
        let value = call.body["serviceAccount"][member].as_str().unwrap_or_default();
        object.body[member] = value.into();
    }
    Ok(object.body.clone())
}

/// Replaces a member in all policies.
fn rename(cloud: &mut Cloud, from: &str, to: &str) {
    for policy in cloud.policies.values_mut() {
        let mut is_changed = false;
        for binding in policy.body["bindings"].as_array_mut().into_iter().flatten() {
            for member in binding["members"].as_array_mut().into_iter().flatten().filter(|member| *member == from) {
                *member = to.into();
                is_changed = true;
            }
        }
        if is_changed {
            policy.writes += 1;
            let moved: Vec<_> = policy
                .effective
                .iter()
                .filter(|((_, member), _)| member == from)
                .map(|(k, v)| (k.clone(), *v))
                .collect();
            for ((role, member), time) in moved {
                policy.effective.remove(&(role.clone(), member));
                policy.effective.insert((role, to.to_owned()), time);
            }
        }
    }
}

fn member_names(body: &Value) -> (String, String) {
    let address = body["email"].as_str().unwrap_or_default();
    let uid = body["uniqueId"].as_str().unwrap_or_default();
    (format!("serviceAccount:{address}"), format!("deleted:serviceAccount:{address}?uid={uid}"))
}

fn delete(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let (key, body) = account(cloud, call)?;
    let Some(object) = cloud.objects.remove(&key) else { return Err(errors::not_found("iam", &call.name)) };
    let until = later(cloud.now(), RESTORABLE);
    let uid = body["uniqueId"].as_str().unwrap_or_default().to_owned();
    cloud.deleted_accounts.insert(uid, (object, until));
    cloud.policies.remove(&key);
    let (live, deleted) = member_names(&body);
    rename(cloud, &live, &deleted);
    Ok(json!({}))
}

fn undelete(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let uid = call.name.rsplit('/').next().unwrap_or_default().to_owned();
    let now = cloud.now();
    let Some((object, _)) = cloud.deleted_accounts.get(&uid).filter(|(_, until)| *until > now).cloned() else {
        return Err(errors::not_found("iam", &call.name));
    };
    let body = object.body.clone();
    let key = format!("iam/{}", body["name"].as_str().unwrap_or_default());
    if cloud.objects.contains_key(&key) {
        return Err(errors::already_exists("iam", &call.name));
    }
    cloud.deleted_accounts.remove(&uid);
    cloud.objects.insert(key, Object { busy_until: now, ..object });
    let (live, deleted) = member_names(&body);
    rename(cloud, &deleted, &live);
    Ok(json!({ "restoredAccount": body }))
}

fn generate_token(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let address = call.name.rsplit('/').next().unwrap_or_default().to_owned();
    let project = address.split_once('@').and_then(|(_, domain)| domain.split('.').next()).unwrap_or_default();
    let key = format!("iam/projects/{project}/serviceAccounts/{address}");
    let of_project = format!("cloudresourcemanager/projects/{project}");
    let member = super::member(&call.user);
    let may = [&key, &of_project].iter().any(|key| grants(cloud, key, TOKEN_CREATOR, &member));
    if cloud.get(&key).is_none() || !may {
        let message = "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist).";
        let metadata = json!({ "permission": "iam.serviceAccounts.getAccessToken" });
        return Err(Problem::new("PERMISSION_DENIED", message).info(
            "IAM_PERMISSION_DENIED",
            "iam.googleapis.com",
            metadata,
        ));
    }
    let seconds = call.body["lifetime"].as_str().and_then(|text| text.strip_suffix('s')?.parse::<u64>().ok());
    let seconds = seconds.unwrap_or(3600);
    if !(1..=3600).contains(&seconds) {
        return Err(Problem::new("INVALID_ARGUMENT", "The token lifetime is out of bounds: at most 3600s."));
    }
    // The server knows tokens; it fills this one in.
    Ok(json!({ "accessToken": address, "expireTime": seconds.to_string() }))
}

/// Whether a caller makes ID tokens of accounts, by a custom role or by policies.
pub(crate) fn identifies(cloud: &Cloud, user: &str, keys: &[&str]) -> bool {
    let is_allowed = user == cloud.operator && cloud.allowed.as_ref().is_some_and(|all| all.contains(OPEN_ID));
    let member = super::member(user);
    let holds = |key: &&str| [TOKEN_CREATOR, ID_TOKEN_CREATOR].iter().any(|role| grants(cloud, key, role, &member));
    is_allowed || keys.iter().any(holds)
}

fn generate_id_token(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let address = call.name.rsplit('/').next().unwrap_or_default().to_owned();
    let project = address.split_once('@').and_then(|(_, domain)| domain.split('.').next()).unwrap_or_default();
    let key = format!("iam/projects/{project}/serviceAccounts/{address}");
    let of_project = format!("cloudresourcemanager/projects/{project}");
    if cloud.get(&key).is_none() || !identifies(cloud, &call.user, &[&key, &of_project]) {
        let message = format!("Permission '{OPEN_ID}' denied on resource (or it may not exist).");
        let metadata = json!({ "permission": OPEN_ID });
        let problem = Problem::new("PERMISSION_DENIED", message);
        return Err(problem.info("IAM_PERMISSION_DENIED", "iam.googleapis.com", metadata));
    }
    if call.user == cloud.operator {
        cloud.needed.insert(OPEN_ID.to_owned(), true);
    }
    // The server knows tokens; it makes this one.
    Ok(json!({ "token": format!("{address} {}", call.body["audience"].as_str().unwrap_or_default()) }))
}

fn project(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let Some(project) = cloud.project(&call.project) else {
        return Err(Problem::new("PERMISSION_DENIED", "The caller does not have permission"));
    };
    let created = "2026-01-01T00:00:00Z";
    Ok(match call.is_v3 {
        true => json!({ "name": format!("projects/{}", project.number), "projectId": project.id, "state": "ACTIVE",
            "displayName": project.id, "parent": "organizations/1", "createTime": created, "updateTime": created,
                "etag": "W/\"1\"" }),
        false => json!({ "projectNumber": project.number, "projectId": project.id, "lifecycleState": "ACTIVE",
            "name": project.id, "createTime": created, "parent": { "type": "organization", "id": "1" } }),
    })
}

/// Constraints that list values.
const LISTS: &[&str] = &[
    "compute.restrictCloudNATUsage",
    "compute.restrictVpcPeering",
    "compute.vmExternalIpAccess",
    "gcp.resourceLocations",
    "gcp.restrictNonCmekServices",
    "gcp.restrictServiceUsage",
    "iam.allowedPolicyMemberDomains",
    "run.allowedIngress",
];

fn org_policy(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let constraint = call.body["constraint"].as_str().unwrap_or_default();
    let short = constraint.trim_start_matches("constraints/");
    let is_enforced = cloud.enforces(&call.project, short);
    let list = cloud.project(&call.project).and_then(|project| project.lists.get(short)).cloned();
    let policy = match (LISTS.contains(&short), is_enforced) {
        _ if list.is_some() => json!({ "listPolicy": list }),
        (true, true) => json!({ "listPolicy": { "allValues": "DENY" } }),
        (true, false) => json!({ "listPolicy": { "allValues": "ALLOW" } }),
        (false, true) => json!({ "booleanPolicy": { "enforced": true } }),
        (false, false) => json!({ "booleanPolicy": {} }),
    };
    let mut answer = policy;
    answer["constraint"] = format!("constraints/{short}").into();
    Ok(answer)
}
