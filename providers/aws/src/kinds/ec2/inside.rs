//! Objects in the network that no operation created: what the controllers of a cluster left behind is swept with the network, and
//! anything else keeps it from being deleted.
//!
//! The tag `kubernetes.io/cluster/NAME` of a subnet or VPC names the cluster whose controllers create objects in it. Those objects
//! name it too:
//!
//! | object | created by | tag |
//! |---|---|---|
//! | load balancer, target group, security group | [AWS Load Balancer Controller](https://kubernetes-sigs.github.io/aws-load-balancer-controller/latest/guide/service/annotations/) | `elbv2.k8s.aws/cluster` |
//! | classic load balancer and its security group | [Cloud provider AWS](https://cloud-provider-aws.sigs.k8s.io/), which EKS runs | `kubernetes.io/cluster/NAME: owned` |
//! | security group of the cluster | [EKS](https://docs.aws.amazon.com/eks/latest/userguide/sec-group-reqs.html) | `kubernetes.io/cluster/NAME: owned` |
//! | network interface | [VPC CNI](https://github.com/aws/amazon-vpc-cni-k8s#cluster_name) | `cluster.k8s.amazonaws.com/name` |
//! | network interface of the control plane | EKS | none; its description is `Amazon EKS NAME` |

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::types::{NetworkInterface, SecurityGroup};
use aws_sdk_elasticloadbalancingv2::types::{LoadBalancer, TargetGroup};
use textnlp_provider::{CloudId, Error, ErrorKind, Foreign, Lineage, Result};

use super::{FILTER_VALUES, SERVICE, named};
use crate::api::Api;
use crate::kinds::elb::{self, Balancing, TAGGED};
use crate::tags::{self, CLUSTER, Tags};

/// How many objects in the way an error names.
const NAMED: usize = 5;
/// A subnet or VPC that this program created.
pub(super) struct Place {
    id: String,
    lineage: Option<Lineage>,
    /// The clusters whose controllers create objects in it.
    clusters: BTreeSet<String>,
}

impl Place {
    pub(super) fn of(id: &str, tags: &Tags) -> Self {
        let clusters = tags.keys().filter_map(|key| key.strip_prefix(CLUSTER)).map(str::to_owned).collect();
        Self { id: id.to_owned(), lineage: tags::lineage(tags), clusters }
    }

    /// An object inside, unless it is one of this deployment's.
    fn foreign(&self, id: Option<&str>, what: &str, description: &str, tags: &Tags) -> Option<Foreign> {
        if tags::lineage(tags).is_some() && tags::lineage(tags) == self.lineage {
            return None;
        }
        let maker = maker(description, tags).filter(|maker| self.clusters.contains(*maker));
        Some(Foreign {
            cloud_id: CloudId::new(id?).ok()?,
            what: what.to_owned(),
            swept: maker.is_some(),
            outlives: false,
            maker: maker.and_then(|maker| CloudId::new(maker).ok()),
        })
    }
}

/// The cluster whose controllers created an object.
fn maker<'a>(description: &'a str, tags: &'a Tags) -> Option<&'a str> {
    let owned = || tags.iter().find(|(key, value)| key.starts_with(CLUSTER) && *value == "owned");
    let by_tag = ["elbv2.k8s.aws/cluster", "cluster.k8s.amazonaws.com/name"].iter().find_map(|key| tags.get(*key));
    let name = by_tag.map(String::as_str);
    name.or_else(|| owned()?.0.strip_prefix(CLUSTER)).or_else(|| description.strip_prefix("Amazon EKS "))
}

/// Load balancers and unused network interfaces in subnets. Used interfaces belong to an object of their own: an instance, a NAT
/// gateway, a load balancer.
pub(super) async fn of_subnets(api: &Api, subnets: &[Place]) -> Result<BTreeMap<String, Vec<Foreign>>> {
    let mut found: BTreeMap<String, Vec<Foreign>> = BTreeMap::new();
    if subnets.is_empty() {
        return Ok(found);
    }
    for (one, tags) in load_balancers(api, subnets).await? {
        let arn = one.load_balancer_arn.as_deref();
        for place in subnets.iter().filter(|place| is_in(&one, &place.id)) {
            let foreign = place.foreign(arn, Balancing::LoadBalancer.word(), "", &tags);
            found.entry(place.id.clone()).or_default().extend(foreign);
        }
    }
    let is_here = |one: &elb::Classic, place: &Place| one.subnets.contains(&place.id);
    let classics = classics(api, subnets).await?;
    let classics: Vec<&elb::Classic> =
        classics.iter().filter(|one| subnets.iter().any(|place| is_here(one, place))).collect();
    let names: Vec<&str> = classics.iter().map(|one| one.name.as_str()).collect();
    let known = elb::classic_tags(api, &names).await?;
    for one in classics {
        // One whose tags are unknown is not judged.
        let Some(tags) = known.get(&one.name) else { continue };
        let arn = one.arn(api);
        for place in subnets.iter().filter(|place| is_here(one, place)) {
            let foreign = place.foreign(Some(&arn), Balancing::Classic.word(), "", tags);
            found.entry(place.id.clone()).or_default().extend(foreign);
        }
    }
    for some in subnets.chunks(FILTER_VALUES) {
        let filter = named("subnet-id", some.iter().map(|place| &place.id));
        for one in interfaces(api, vec![filter, named("status", ["available"])]).await? {
            let Some(place) = some.iter().find(|place| one.subnet_id.as_deref() == Some(&place.id)) else { continue };
            let (id, description) = (one.network_interface_id.as_deref(), one.description.as_deref());
            // Those of AWS's services are removed by the service.
            if one.requester_managed != Some(true) {
                let tags = super::tags(one.tag_set.clone());
                let foreign = place.foreign(id, "network interface", description.unwrap_or_default(), &tags);
                found.entry(place.id.clone()).or_default().extend(foreign);
            }
        }
    }
    Ok(found)
}

/// The classic load balancers of the region. Where their API does not answer, the interfaces in the subnets tell whether there is one:
/// each has one in each of its subnets, with the description `ELB NAME`
/// (<https://aws.amazon.com/premiumsupport/knowledge-center/elb-find-load-balancer-IP/>).
async fn classics(api: &Api, subnets: &[Place]) -> Result<Vec<elb::Classic>> {
    let error = match elb::classics(api).await {
        Err(error) if matches!(error.kind, ErrorKind::Denied | ErrorKind::Unavailable) => error,
        found => return found,
    };
    for some in subnets.chunks(FILTER_VALUES) {
        let filter = named("subnet-id", some.iter().map(|place| &place.id));
        let here = interfaces(api, vec![filter]).await?;
        if here.iter().any(|one| one.description.as_deref().is_some_and(is_of_classic)) {
            return Err(error);
        }
    }
    Ok(Vec::new())
}

/// Whether an interface with this description is one of a classic load balancer: the names of the others have slashes.
fn is_of_classic(description: &str) -> bool {
    description.strip_prefix("ELB ").is_some_and(|name| !name.contains('/'))
}

fn is_in(one: &LoadBalancer, subnet: &str) -> bool {
    one.availability_zones().iter().any(|zone| zone.subnet_id() == Some(subnet))
}

/// The load balancers in these subnets with their tags. They are listed for the whole region, because no filter is offered.
async fn load_balancers(api: &Api, subnets: &[Place]) -> Result<Vec<(LoadBalancer, Tags)>> {
    let pages = api.elb.describe_load_balancers().into_paginator().items().send();
    let all: Vec<LoadBalancer> = api.call(elb::SERVICE, "list", "load balancers", pages.try_collect()).await?;
    let here = all.into_iter().filter(|one| subnets.iter().any(|place| is_in(one, &place.id))).collect();
    tagged(api, here, |one: &LoadBalancer| one.load_balancer_arn.clone()).await
}

/// Target groups and security groups of a VPC, of which `groups` are all.
pub(super) async fn of_vpc(api: &Api, place: &Place, groups: Vec<SecurityGroup>) -> Result<Vec<Foreign>> {
    let pages = api.elb.describe_target_groups().into_paginator().items().send();
    let all: Vec<TargetGroup> = api.call(elb::SERVICE, "list", "target groups", pages.try_collect()).await?;
    let here = all.into_iter().filter(|one| one.vpc_id.as_deref() == Some(&place.id)).collect();
    let mut found = Vec::new();
    for (one, tags) in tagged(api, here, |one: &TargetGroup| one.target_group_arn.clone()).await? {
        // They do not keep a VPC from being deleted, so that only those of the cluster matter.
        let foreign = place.foreign(one.target_group_arn.as_deref(), Balancing::TargetGroup.word(), "", &tags);
        found.extend(foreign.filter(|foreign| foreign.swept));
    }
    for group in groups.into_iter().filter(|group| group.group_name.as_deref() != Some("default")) {
        let tags = super::tags(group.tags.clone());
        found.extend(place.foreign(group.group_id.as_deref(), "security group", "", &tags));
    }
    Ok(found)
}

/// Objects of Elastic Load Balancing with their tags.
async fn tagged<T>(api: &Api, all: Vec<T>, arn: impl Fn(&T) -> Option<String>) -> Result<Vec<(T, Tags)>> {
    let arns: Vec<String> = all.iter().filter_map(&arn).collect();
    let mut tags: BTreeMap<String, Tags> = BTreeMap::new();
    for some in arns.chunks(TAGGED) {
        let call = api.elb.describe_tags().set_resource_arns(Some(some.to_vec())).send();
        // One of them was deleted since it was listed: the next read shows the rest.
        let Some(answer) = api.find(elb::SERVICE, "tags of load balancers", call).await? else { continue };
        for one in answer.tag_descriptions.unwrap_or_default() {
            let pairs = one.tags.unwrap_or_default().into_iter();
            let pairs = pairs.filter_map(|tag| Some((tag.key?, tag.value.unwrap_or_default())));
            tags.insert(one.resource_arn.unwrap_or_default(), pairs.collect());
        }
    }
    // An object whose tags are unknown is not judged.
    let known = all.into_iter().filter_map(|one| {
        let tags = tags.get(&arn(&one)?)?.clone();
        Some((one, tags))
    });
    Ok(known.collect())
}

async fn interfaces(api: &Api, filters: Vec<aws_sdk_ec2::types::Filter>) -> Result<Vec<NetworkInterface>> {
    let pages = api.ec2.describe_network_interfaces().set_filters(Some(filters)).into_paginator().items().send();
    api.call(SERVICE, "list", "network interfaces", pages.try_collect()).await
}

/// Deletes the first object that is swept, with one call; `false` if there is none.
pub(super) async fn sweep(api: &Api, foreign: &[Foreign]) -> Result<bool> {
    let Some(one) = foreign.iter().find(|foreign| foreign.swept) else { return Ok(false) };
    let id = one.cloud_id.as_str();
    let swept = if let Some(balancing) = Balancing::of(id) {
        balancing.delete(api, id).await
    } else if id.starts_with("eni-") {
        let call = api.ec2.delete_network_interface().network_interface_id(id).send();
        api.call(SERVICE, "delete network interface", id, call).await.map(drop)
    } else {
        sweep_group(api, id).await
    };
    // A network that is gone too is found out by the next read; this one is.
    match swept {
        Err(error) if error.kind == ErrorKind::NotFound => Ok(true),
        swept => swept.map(|()| true),
    }
}

/// Deletes a security group, or a rule of another group that refers to it and keeps it from being deleted.
async fn sweep_group(api: &Api, id: &str) -> Result<()> {
    for (name, is_egress) in [("ip-permission.group-id", false), ("egress.ip-permission.group-id", true)] {
        let pages = api.ec2.describe_security_groups().filters(named(name, [id])).into_paginator().items().send();
        let users: Vec<SecurityGroup> = api.call(SERVICE, "list", "security groups", pages.try_collect()).await?;
        let Some(user) = users.into_iter().find(|user| user.group_id.as_deref() != Some(id)) else { continue };
        let rules = if is_egress { user.ip_permissions_egress } else { user.ip_permissions };
        let rules = rules.unwrap_or_default().into_iter().filter_map(|mut rule| {
            let pairs = rule.user_id_group_pairs.take().unwrap_or_default();
            let pairs: Vec<_> = pairs.into_iter().filter(|pair| pair.group_id.as_deref() == Some(id)).collect();
            (rule.ip_ranges, rule.ipv6_ranges, rule.prefix_list_ids) = (None, None, None);
            rule.user_id_group_pairs = (!pairs.is_empty()).then_some(pairs);
            rule.user_id_group_pairs.is_some().then_some(rule)
        });
        let (rules, user) = (Some(rules.collect()), user.group_id.unwrap_or_default());
        let action = "remove the rules of";
        return if is_egress {
            let call = api.ec2.revoke_security_group_egress().group_id(&user).set_ip_permissions(rules).send();
            api.call(SERVICE, action, &user, call).await.map(drop)
        } else {
            let call = api.ec2.revoke_security_group_ingress().group_id(&user).set_ip_permissions(rules).send();
            api.call(SERVICE, action, &user, call).await.map(drop)
        };
    }
    let call = api.ec2.delete_security_group().group_id(id).send();
    let deleted = api.call(SERVICE, "delete security group", id, call).await;
    explained(api, deleted.map(drop), "group-id", id).await
}

/// Names the network interfaces that keep an object from being deleted: AWS only says that something depends on it.
pub(super) async fn explained(api: &Api, deleted: Result<()>, filter: &str, id: &str) -> Result<()> {
    let Err(mut error) = deleted else { return Ok(()) };
    if error.kind != ErrorKind::Conflict {
        return Err(error);
    }
    // Without permission for this list the error stays as it is.
    let users = interfaces(api, vec![named(filter, [id])]).await.unwrap_or_default();
    if users.is_empty() {
        return Err(error);
    }
    let names = users.iter().take(NAMED).map(|one| {
        let id = one.network_interface_id.as_deref().unwrap_or_default();
        format!("`{id}` ({})", one.description.as_deref().filter(|text| !text.is_empty()).unwrap_or("no description"))
    });
    let names = names.collect::<Vec<_>>().join(", ");
    let more = if users.len() > NAMED { format!(", and {} more", users.len() - NAMED) } else { String::new() };
    let why = error.source.take().map(|source| source.to_string()).unwrap_or_default();
    let explained = Error { source: None, ..error };
    Err(explained.because(format!("{why}: network interfaces use it: {names}{more}")))
}
