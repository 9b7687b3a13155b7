//! Quotas against what a plan needs, and whether AWS has its machines in the region at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use textnlp_cloud::preflight::{Need, PoolNeed, PoolSettings, is_new, missing};
use textnlp_cloud::region_of;
use textnlp_provider::{ErrorKind, Lineage, Ownership, Problem, Result, Wanted};

use super::unknown;
use crate::api::Api;
use crate::tables::machines::{self, Market};
use crate::tables::quotas::{
    CACHE_NODES, CLUSTERS, DATABASES, ELASTIC_IPS, INTERNET_GATEWAYS, Quota, SECURITY_GROUPS, Unit, VPCS, endpoint_name,
};
use crate::tags;

pub(super) const NODE_GROUP: &str = "aws.eks-node-group";
/// Its nodes count: a primary one, and its replicas.
const CACHE: &str = "aws.cache";
/// Kinds whose objects count against a quota of the region.
const COUNTED: &[(&str, &Quota)] = &[
    (CACHE, &CACHE_NODES),
    ("aws.db-instance", &DATABASES),
    ("aws.eks-cluster", &CLUSTERS),
    ("aws.elastic-ip", &ELASTIC_IPS),
    ("aws.internet-gateway", &INTERNET_GATEWAYS),
    ("aws.security-group", &SECURITY_GROUPS),
    ("aws.vpc", &VPCS),
];

/// Compares what is needed and used with the quotas of the account.
pub(super) async fn quotas(api: &Arc<Api>, wanted: &[Wanted], lineage: Option<Lineage>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let is_new = is_new(api, wanted, crate::table::CLUSTER).await;
    for (quota, need) in needs(wanted) {
        let limit = match limit(api, quota).await {
            Ok(Some(limit)) => limit,
            Ok(None) => continue,
            Err(error) => {
                problems.push(unknown(&format!("the quota {}", quota.name), &error));
                continue;
            }
        };
        let used = match used(api, quota, wanted, lineage).await {
            Ok(used) => used,
            Err(error) => {
                problems.push(unknown(&format!("what is used of the quota {}", quota.name), &error));
                continue;
            }
        };
        let unit = if quota.unit == Unit::Vcpus { " vCPUs" } else { "" };
        let name = format!("`{}` ({})", quota.name, quota.code);
        let raise = match is_new && quota.code == ELASTIC_IPS.code && limit > used {
            // A network that is not protected has one NAT gateway.
            true => format!("{}; a new environment without data of value fits with `data: disposable`", quota.hint()),
            false => quota.hint(),
        };
        problems.extend(need.check(&name, unit, limit, used, &raise, is_new));
    }
    problems
}

fn needs(wanted: &[Wanted]) -> Vec<(&'static Quota, Need)> {
    let mut needs = Needs::new();
    // Other regions have quotas of their own, of which a plan needs one or two.
    for one in wanted.iter().filter(|one| one.ownership == Ownership::Ours && region_of(&one.spec).is_none()) {
        if let Some((_, quota)) = COUNTED.iter().find(|(kind, _)| *kind == one.kind.as_str()) {
            let replicas = one.spec.get("replicas").and_then(Value::as_u64).filter(|_| one.kind.as_str() == CACHE);
            need(&mut needs, quota).add(replicas.unwrap_or_default().saturating_add(1), one.id.to_string(), true);
        }
        if let Some(group) = NodeGroup::of(one) {
            let found: Vec<_> = group.types.iter().filter_map(|name| machines::machine(name)).collect();
            let Some(first) = found.first() else { continue };
            let quota = first.quota(group.market);
            let is_the_only_way = found.iter().all(|machine| machine.quota(group.market).code == quota.code);
            let NodeGroup { settings, count, more, .. } = group;
            let pool = PoolNeed { settings, each: u64::from(first.vcpus), count, more, zones: 1 };
            need(&mut needs, quota).add_pool(pool, one.id.to_string(), is_the_only_way);
        }
    }
    needs.into_values().collect()
}

type Needs = BTreeMap<&'static str, (&'static Quota, Need)>;

fn need<'n>(needs: &'n mut Needs, quota: &'static Quota) -> &'n mut Need {
    &mut needs.entry(quota.code).or_insert_with(|| (quota, Need::default())).1
}

/// The machines that a node group asks for.
struct NodeGroup<'a> {
    types: Vec<&'a str>,
    settings: PoolSettings,
    market: Market,
    /// At first.
    count: u64,
    /// How many an autoscaler may add.
    more: u64,
}

impl<'a> NodeGroup<'a> {
    fn of(wanted: &'a Wanted) -> Option<Self> {
        if wanted.kind.as_str() != NODE_GROUP {
            return None;
        }
        let list = |field: &str| -> Vec<&'a str> {
            let items = wanted.spec.get(field).and_then(|value| value.as_array()).into_iter().flatten();
            items.filter_map(|item| item.as_str()).collect()
        };
        let market = if list("capacity").first() == Some(&"SPOT") { Market::Spot } else { Market::OnDemand };
        let scaling =
            |bound: &str| wanted.spec.get("scaling").and_then(|scaling| scaling[bound].as_u64()).unwrap_or_default();
        let count = scaling("desired");
        let more = scaling("max").saturating_sub(count);
        let settings = PoolSettings::of_part(&wanted.id);
        Some(Self { types: list("instance_types"), settings, market, count, more })
    }
}

/// The account's own value, else what a new account has.
async fn limit(api: &Api, quota: &Quota) -> Result<Option<u64>> {
    let call = api.quotas.get_service_quota().service_code(quota.service).quota_code(quota.code).send();
    let answer = match api.call("servicequotas", "read", quota.name, call).await {
        Ok(answer) => answer.quota.and_then(|quota| quota.value),
        // An account that never asked for another value may have none of its own.
        Err(error) if error.kind == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    // Quotas are whole numbers, in an API that has only floats.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(answer.filter(|value| *value >= 0.0).map(|value| value as u64).or(quota.default))
}

/// How much of a quota is in use by what this plan does not already count: objects that `wanted` made before are needed, not used.
/// Other environments of the account may have resources of the same ids: the lineage tells them apart.
async fn used(api: &Api, quota: &Quota, wanted: &[Wanted], lineage: Option<Lineage>) -> Result<u64> {
    let is_ours = |found: Option<Vec<aws_sdk_ec2::types::Tag>>| {
        let tags = crate::kinds::ec2::tags(found);
        (lineage.is_none() || tags::lineage(&tags) == lineage)
            && tags::resource(&tags).is_some_and(|id| wanted.iter().any(|one| one.id == id))
    };
    let count = |all: Vec<Option<Vec<aws_sdk_ec2::types::Tag>>>| {
        u64::try_from(all.into_iter().filter(|tags| !is_ours(tags.clone())).count()).unwrap_or(u64::MAX)
    };
    Ok(match quota.code {
        code if code == VPCS.code => {
            let pages = api.ec2.describe_vpcs().into_paginator().items().send();
            let all = api.call("ec2", "list", "VPCs", pages.try_collect()).await?;
            count(all.into_iter().map(|vpc| vpc.tags).collect())
        }
        code if code == INTERNET_GATEWAYS.code => {
            let pages = api.ec2.describe_internet_gateways().into_paginator().items().send();
            let all = api.call("ec2", "list", "internet gateways", pages.try_collect()).await?;
            count(all.into_iter().map(|gateway| gateway.tags).collect())
        }
        code if code == ELASTIC_IPS.code => {
            let answer = api.call("ec2", "list", "addresses", api.ec2.describe_addresses().send()).await?;
            count(answer.addresses.unwrap_or_default().into_iter().map(|address| address.tags).collect())
        }
        _ if quota.unit == Unit::Vcpus => vcpus(api, quota, wanted).await?,
        // Their quotas are in the hundreds: only the plan's own need is compared.
        _ => 0,
    })
}

/// The vCPUs of running instances that count against a quota, without those of this plan's node groups. A plan that changes only a node
/// group has its cluster in the spec of that.
async fn vcpus(api: &Api, quota: &Quota, wanted: &[Wanted]) -> Result<u64> {
    let named = |kind: &str, field: &str| -> BTreeSet<&str> {
        let of_kind = wanted.iter().filter(|one| one.kind.as_str() == kind);
        of_kind.filter_map(|one| one.spec.get(field)?.as_str()).collect()
    };
    let mut clusters = named(crate::table::CLUSTER, "name");
    clusters.extend(named(NODE_GROUP, "cluster"));
    let groups = named(NODE_GROUP, "name");
    let running =
        aws_sdk_ec2::types::Filter::builder().name("instance-state-name").values("pending").values("running").build();
    let pages = api.ec2.describe_instances().filters(running).into_paginator().items().send();
    let reservations = api.call("ec2", "list", "instances", pages.try_collect()).await?;
    let mut sum = 0_u64;
    for instance in reservations.into_iter().flat_map(|reservation| reservation.instances.unwrap_or_default()) {
        let tags = crate::kinds::ec2::tags(instance.tags.clone());
        let is_of = |tag: &str, names: &BTreeSet<&str>| tags.get(tag).is_some_and(|name| names.contains(name.as_str()));
        if is_of("eks:cluster-name", &clusters) && is_of("eks:nodegroup-name", &groups) {
            continue;
        }
        let market = match instance.instance_lifecycle {
            Some(aws_sdk_ec2::types::InstanceLifecycleType::Spot) => Market::Spot,
            _ => Market::OnDemand,
        };
        let name = instance.instance_type.as_ref().map(|name| name.as_str()).unwrap_or_default();
        let machine = machines::machine(name);
        if machine.is_some_and(|machine| machine.quota(market).code == quota.code) {
            sum = sum.saturating_add(machine.map_or(0, |machine| u64::from(machine.vcpus)));
        }
    }
    Ok(sum)
}

/// The instances of one type that endpoints need.
struct Instances<'a> {
    /// At first.
    initial: u64,
    /// The most that autoscaling starts.
    most: u64,
    config: &'a Wanted,
}

fn instances(wanted: &[Wanted]) -> BTreeMap<&str, Instances<'_>> {
    let mut needed: BTreeMap<&str, Instances<'_>> = BTreeMap::new();
    for config in wanted.iter().filter(|one| one.kind.as_str() == "aws.endpoint-config") {
        let variants = config.spec.get("variants").and_then(|variants| variants.as_array());
        for variant in variants.into_iter().flatten() {
            let instance_type = variant["instance_type"].as_str().unwrap_or_default();
            let initial = variant["count"].as_u64().unwrap_or_default();
            let most = scaled_to(wanted, config, &variant["name"]).unwrap_or_default().max(initial);
            let sum = needed.entry(instance_type).or_insert(Instances { initial: 0, most: 0, config });
            sum.initial = sum.initial.saturating_add(initial);
            sum.most = sum.most.saturating_add(most);
        }
    }
    needed
}

/// The maximum of the autoscaling of a variant.
fn scaled_to(wanted: &[Wanted], config: &Wanted, variant: &Value) -> Option<u64> {
    let needs = |one: &Wanted, other: &Wanted| one.needs.iter().any(|need| need.on == other.id);
    let of_kind = |kind: &'static str| wanted.iter().filter(move |one| one.kind.as_str() == kind);
    let endpoints = || of_kind("aws.endpoint").filter(|endpoint| needs(endpoint, config));
    let targets = of_kind("aws.scaling-target").filter(|target| endpoints().any(|endpoint| needs(target, endpoint)));
    let targets = targets.filter(|target| target.spec.get("variant") == Some(variant));
    targets.filter_map(|target| target.spec.get("max")?.as_u64()).max()
}

/// Compares the instances of endpoints with their quotas. What other endpoints use is not read.
pub(super) async fn endpoints(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let needed = instances(wanted);
    if needed.is_empty() {
        return Vec::new();
    }
    let pages = api.quotas.list_service_quotas().service_code("sagemaker").into_paginator().page_size(100);
    let listed = match api.call("servicequotas", "list", "quotas", pages.items().send().try_collect()).await {
        Ok(listed) => listed,
        Err(error) => return vec![unknown("the quotas for endpoints", &error)],
    };
    let mut problems = Vec::new();
    for (instance_type, Instances { initial, most, config }) in needed {
        let (place, name) = (config.id.to_string(), endpoint_name(instance_type));
        let Some(quota) = listed.iter().find(|quota| quota.quota_name() == Some(name.as_str())) else {
            let cause =
                format!("Service Quotas lists no `{name}`, so SageMaker may not have this type in {}", api.region);
            problems.push(Problem::warning(place, cause, "choose another `sites[].instance_type`, or ignore this"));
            continue;
        };
        let (code, limit) = (quota.quota_code().unwrap_or_default(), quota.value().unwrap_or_default().max(0.0) as u64);
        // A new release starts as many beside those that run
        // (<https://docs.aws.amazon.com/sagemaker/latest/dg/deployment-guardrails-blue-green.html>).
        let both = most.saturating_mul(2);
        let fix = format!(
            "raise it: `aws service-quotas request-service-quota-increase --service-code sagemaker --quota-code {code} \
             --desired-value {both}`"
        );
        if limit < initial {
            let cause = format!("`{name}` ({code}) allows {limit}, and this plan needs {initial}");
            problems.push(Problem::new(place, cause, fix));
        } else if limit < both {
            let cause = format!(
                "`{name}` ({code}) allows {limit}, and up to {most} run: a new release starts as many instances beside them"
            );
            problems.push(Problem::warning(place, cause, fix));
        }
    }
    problems
}

/// Whether the region has the machines of node groups.
pub(super) async fn offerings(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let groups: Vec<(&Wanted, NodeGroup<'_>)> =
        wanted.iter().filter_map(|one| Some((one, NodeGroup::of(one)?))).collect();
    let types: BTreeSet<&str> = groups.iter().flat_map(|(_, group)| group.types.iter().copied()).collect();
    if types.is_empty() {
        return Vec::new();
    }
    let values = types.iter().map(|name| (*name).to_owned()).collect();
    let filter = aws_sdk_ec2::types::Filter::builder().name("instance-type").set_values(Some(values)).build();
    let pages = api.ec2.describe_instance_type_offerings().filters(filter).into_paginator().items().send();
    let offered = match api.call("ec2", "list", "machines", pages.try_collect()).await {
        Ok(offered) => offered,
        Err(error) => return vec![unknown("the machines of the region", &error)],
    };
    let offered: BTreeSet<String> =
        offered.into_iter().filter_map(|offering| Some(offering.instance_type?.as_str().to_owned())).collect();
    let mut problems = Vec::new();
    for (one, group) in groups {
        problems.extend(missing(api, one.id.to_string(), &group.types, &offered));
    }
    problems
}
