//! What would make a plan fail, found by reads: the region, permissions, names and address ranges. Everything is asked at once.

mod endpoints;
mod monitoring;
mod network;
mod nodes;
mod quotas;
mod versions;
mod zones;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::FutureExt;
use textnlp_cloud::preflight::{Check, LIMIT, names, run, unknown};
use textnlp_cloud::region_of;
use textnlp_provider::{
    EnvironmentName, ErrorKind, Lineage, Ownership, PolicyRequest, PolicyResource, Problem, SiteName, Verb, Wanted,
};

use crate::api::Api;
use crate::kinds::eks::cluster::Principal;
use crate::policy;
use crate::provider::Own;
use crate::table::CLUSTER;
use crate::tables::machines;

/// The most actions in one simulation: its answer is one page.
const ACTIONS_AT_ONCE: usize = 100;

/// Checks the wanted resources of a site. `lineage` is that of their deployment, if it was observed.
pub(crate) async fn preflight(api: &Arc<Api>, wanted: &[Wanted], lineage: Option<Lineage>) -> Vec<Problem> {
    let checks: Vec<Check<'_>> = vec![
        ("the region", regions(api, wanted).boxed()),
        ("the permissions", permissions(api, wanted).boxed()),
        ("the names", names(api, wanted).boxed()),
        ("the alarms", monitoring::monitoring(api, wanted).boxed()),
        ("the networks", network::network(api, wanted).boxed()),
        ("the nodes", nodes::nodes(api, wanted).boxed()),
        ("the quotas", quotas::quotas(api, wanted, lineage).boxed()),
        ("the quotas of endpoints", quotas::endpoints(api, wanted).boxed()),
        ("the endpoints", endpoints::instance_types(api, wanted).boxed()),
        ("the machines of the region", quotas::offerings(api, wanted).boxed()),
        ("the versions of databases", versions::databases(api, wanted).boxed()),
        ("the DNS zones", zones::zones(api, wanted).boxed()),
    ];
    let mut problems = run(checks, LIMIT).await;
    problems.extend(open(wanted));
    problems.extend(of_gpus(wanted));
    problems.extend(twice(api, wanted));
    problems
}

/// API servers that every network reaches.
fn open(wanted: &[Wanted]) -> Vec<Problem> {
    let is_open = |one: &&Wanted| {
        let networks = one.spec.get("public_cidrs").and_then(|networks| networks.as_array());
        networks.is_some_and(|networks| networks.iter().any(|network| network == "0.0.0.0/0"))
    };
    let warning = |one: &Wanted| {
        let fix = "set `cluster.allow_from` to the networks that you deploy from";
        Problem::warning(one.id.to_string(), "every network reaches the API server of the cluster", fix)
    };
    wanted.iter().filter(is_open).map(warning).collect()
}

/// What an operator may not expect of endpoints with GPUs: disks without the key of the site, and GPUs that nothing uses.
fn of_gpus(wanted: &[Wanted]) -> Vec<Problem> {
    let has_key = wanted.iter().any(|one| one.kind.as_str() == "aws.key");
    let mut problems = Vec::new();
    for one in wanted.iter().filter(|one| one.kind.as_str() == "aws.endpoint-config") {
        for variant in one.spec.get("variants").and_then(|all| all.as_array()).into_iter().flatten() {
            let name = variant["instance_type"].as_str().unwrap_or_default();
            let Some(machine) = machines::of_endpoint(name) else { continue };
            if has_key {
                let cause = format!("`{name}` encrypts its disks by its hardware, not with the key of the site");
                problems.push(Problem::warning(one.id.to_string(), cause, "remove `gpu` if they need that key"));
            }
            if machine.gpus > 1 {
                let cause =
                    format!("`{name}` has {} GPUs, and a server computes on one: the others are idle", machine.gpus);
                let fix = "write an instance with one GPU, such as `sites[].instance_type: ml.g6e.2xlarge`";
                problems.push(Problem::warning(one.id.to_string(), cause, fix));
            }
        }
    }
    problems
}

/// The identity that deploys has an entry of its own, and EKS has one for each identity.
fn twice(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let own = Principal::of(&api.identity.arn);
    let is_own = |one: &&Wanted| {
        let principal = one.spec.get("principal").and_then(|principal| principal.as_str());
        one.kind.as_str() == "aws.eks-access-entry" && principal.is_some_and(|principal| own.is(principal))
    };
    let problem = |one: &Wanted| {
        let cause = format!("{} deploys, and is an administrator of the cluster for that", api.identity.arn);
        Problem::new(one.id.to_string(), cause, "remove it from `cluster.access`")
    };
    wanted.iter().filter(is_own).map(problem).collect()
}

/// A region that is not enabled refuses every call with an error that does not say so.
async fn regions(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let names: BTreeSet<&str> =
        wanted.iter().filter_map(|one| region_of(&one.spec)).chain([api.region.as_str()]).collect();
    futures::future::join_all(names.into_iter().map(|name| region(api, name))).await.into_iter().flatten().collect()
}

async fn region(api: &Api, name: &str) -> Vec<Problem> {
    let call = api.ec2.describe_regions().region_names(name).all_regions(true).send();
    let status = match api.call("ec2", "read", "regions", call).await {
        Ok(answer) => answer.regions.unwrap_or_default().into_iter().next().and_then(|region| region.opt_in_status),
        Err(error) if error.kind == ErrorKind::Invalid => None,
        Err(error) => return vec![unknown("the region", &error)],
    };
    let place = format!("region {name}");
    match status.as_deref() {
        Some("opt-in-not-required" | "opted-in") => Vec::new(),
        Some(_) => {
            let fix = format!("enable it: `aws account enable-region --region-name {name}`");
            vec![Problem::new(place, format!("it is not enabled in account {}", api.identity.account), fix)]
        }
        None => vec![Problem::new(place, "AWS has no such region", "name another one, such as eu-central-1")],
    }
}

/// Asks IAM what it would decide. A policy that names resources may allow what a simulation without their names denies, so that only an
/// explicit denial refuses the plan.
async fn permissions(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let Some(source) = source(api).await else {
        let is_own_cluster = |one: &Wanted| one.ownership == Ownership::Ours && one.kind.as_str() == CLUSTER;
        if api.identity.arn.ends_with(":root") && wanted.iter().any(is_own_cluster) {
            let cause = "the root user of the account is signed in, and EKS gives it no access to a cluster";
            return vec![Problem::new("account", cause, "sign in as a role or a user of IAM")];
        }
        let cause = format!("the permissions of {} cannot be simulated", api.identity.arn);
        return vec![Problem::note("permissions", cause, "`textnlp-deploy plan --policy` prints what they must allow")];
    };
    let Some(request) = request(wanted) else { return Vec::new() };
    let needed = policy::permissions(&request, |name| Own::of(api).value(name));
    let mut by_resource: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for permission in &needed {
        // A simulation takes ARNs, and no patterns.
        let resource = if permission.resource.contains('*') { "*" } else { permission.resource.as_str() };
        by_resource.entry(resource).or_default().insert(&permission.action);
    }
    let mut denied: BTreeSet<String> = BTreeSet::new();
    let mut unconfirmed: BTreeSet<String> = BTreeSet::new();
    for (resource, actions) in by_resource {
        let actions: Vec<&str> = actions.into_iter().collect();
        for actions in actions.chunks(ACTIONS_AT_ONCE) {
            let names = actions.iter().map(|action| (*action).to_owned()).collect();
            let mut call = api.iam.simulate_principal_policy().policy_source_arn(&source).set_action_names(Some(names));
            if resource != "*" {
                call = call.resource_arns(resource);
            }
            let answer = match api.call("iam", "simulate", "permissions", call.send()).await {
                Ok(answer) => answer,
                Err(error) => return vec![unknown("the permissions", &error)],
            };
            for result in answer.evaluation_results.unwrap_or_default() {
                let is_denied_by_organization =
                    result.organizations_decision_detail.is_some_and(|detail| !detail.allowed_by_organizations);
                match result.eval_decision.as_str() {
                    "allowed" if !is_denied_by_organization => {}
                    "explicitDeny" => drop(denied.insert(result.eval_action_name)),
                    _ if is_denied_by_organization => drop(denied.insert(result.eval_action_name)),
                    _ => drop(unconfirmed.insert(result.eval_action_name)),
                }
            }
        }
    }
    let fix = "`textnlp-deploy plan --policy` prints the policy that this plan needs";
    let listed = |actions: &BTreeSet<String>| actions.iter().cloned().collect::<Vec<_>>().join(", ");
    let mut problems = Vec::new();
    if !denied.is_empty() {
        let cause = format!("{} may not {}", api.identity.arn, listed(&denied));
        problems.push(Problem::new("permissions", cause, fix));
    }
    if !unconfirmed.is_empty() {
        let cause = format!("IAM does not confirm for {}: {}", api.identity.arn, listed(&unconfirmed));
        problems.push(Problem::warning("permissions", cause, fix));
    }
    problems
}

/// The user or role whose policies are simulated. Roles of IAM Identity Center have a path, which a session does not tell
/// (<https://github.com/serverless/serverless/issues/13652>).
async fn source(api: &Api) -> Option<String> {
    if let Principal::Role(name) = Principal::of(&api.identity.arn) {
        let call = api.iam.get_role().role_name(name).send();
        if let Ok(answer) = api.call("iam", "read", name, call).await
            && let Some(role) = answer.role
        {
            return Some(role.arn);
        }
    }
    principal(&api.identity.arn)
}

/// The same without a call: of an assumed role as if it had no path.
fn principal(arn: &str) -> Option<String> {
    let Some((before, session)) = arn.split_once(":assumed-role/") else {
        return (arn.contains(":user/") || arn.contains(":role/")).then(|| arn.to_owned());
    };
    let role = session.split('/').next()?;
    Some(format!("{}:role/{role}", before.replacen(":sts:", ":iam:", 1)))
}

/// The request for the permissions to create, change and delete all of these.
fn request(wanted: &[Wanted]) -> Option<PolicyRequest> {
    let site: SiteName = wanted.first()?.site.clone();
    let resource = |wanted: &Wanted| PolicyResource {
        id: wanted.id.clone(),
        cloud_id: None,
        kind: wanted.kind.clone(),
        spec: wanted.spec.clone(),
        verbs: BTreeSet::from([Verb::Create, Verb::Update, Verb::Delete]),
    };
    Some(PolicyRequest {
        lineage: None,
        environment: EnvironmentName::new("any").ok()?,
        site,
        resources: wanted.iter().map(resource).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::principal;

    #[test]
    fn policies_of_users_and_roles_are_simulated() {
        for (arn, source) in [
            ("arn:aws:iam::123456789012:user/ops/ann", Some("arn:aws:iam::123456789012:user/ops/ann")),
            ("arn:aws:sts::123456789012:assumed-role/deploy/session", Some("arn:aws:iam::123456789012:role/deploy")),
            ("arn:aws:sts::123456789012:federated-user/ann", None),
            ("arn:aws:iam::123456789012:root", None),
        ] {
            assert_eq!(principal(arn).as_deref(), source, "{arn}");
        }
    }
}
