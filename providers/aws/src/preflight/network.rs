//! Existing networks are fit for a cluster, and new ones do not overlap with what the account has.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::types::{Filter, RouteTable, Subnet, Vpc, VpcEndpoint};
use textnlp_cloud::{Range, region_of};
use textnlp_provider::{ErrorKind, Ownership, Problem, Result, Wanted};

use crate::api::Api;

const EC2: &str = "ec2";
/// The free addresses that EKS recommends for each of its subnets:
/// <https://docs.aws.amazon.com/eks/latest/userguide/network-reqs.html>.
const FREE_ADDRESSES: i32 = 16;
/// The fewest zones of a cluster.
const MIN_ZONES: usize = 2;
/// What nodes without a way to the internet need: the last parts of the names of services with endpoints. The network add-on gets its
/// role from `eks-auth`: <https://docs.aws.amazon.com/eks/latest/userguide/private-clusters.html>.
const NEEDED: [&str; 6] = ["ec2", "ecr.api", "ecr.dkr", "eks-auth", "s3", "sts"];

/// Checks the network of a site.
pub(super) async fn network(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let is_here = |one: &&Wanted| region_of(&one.spec).is_none();
    let of_kind =
        |kind: &str| wanted.iter().filter(|one| one.kind.as_str() == kind).filter(is_here).collect::<Vec<_>>();
    let (vpcs, subnets) = (of_kind("aws.vpc"), of_kind("aws.subnet"));
    let Some(vpc) = vpcs.first() else { return Vec::new() };
    let checked = match &vpc.ownership {
        Ownership::Ours => overlaps(api, vpc).await,
        Ownership::External(id) => existing(api, vpc, id.as_str(), &subnets).await,
    };
    checked.unwrap_or_else(|error| vec![super::unknown(vpc.id.as_str(), &error)])
}

/// Networks that overlap can never be connected.
async fn overlaps(api: &Api, wanted: &Wanted) -> Result<Vec<Problem>> {
    let Some(own) = wanted.spec.get("cidr").and_then(|cidr| Range::read(cidr.as_str()?)) else { return Ok(Vec::new()) };
    let pages = api.ec2.describe_vpcs().into_paginator().items().send();
    let all: Vec<Vpc> = api.call(EC2, "list", "VPCs", pages.try_collect()).await?;
    let mut problems = Vec::new();
    for vpc in all {
        let tag = vpc.tags().iter().find(|tag| tag.key() == Some(crate::tags::RESOURCE)).and_then(|tag| tag.value());
        let (id, cidr) = (vpc.vpc_id().unwrap_or_default(), vpc.cidr_block().unwrap_or_default());
        // An own network is no other one.
        if tag != Some(wanted.id.as_str()) && Range::read(cidr).is_some_and(|other| own.overlaps(other)) {
            let cause = format!("its range overlaps with that of {id}, {cidr}: they can never be connected");
            let fix = "set another `network.cidr` if they ever should be";
            problems.push(Problem::note(wanted.id.as_str(), cause, fix));
        }
    }
    Ok(problems)
}

async fn existing(api: &Api, wanted: &Wanted, vpc: &str, subnets: &[&Wanted]) -> Result<Vec<Problem>> {
    let external = subnets.iter().filter_map(|one| match &one.ownership {
        Ownership::External(id) => Some((id.as_str(), one.id.as_str())),
        Ownership::Ours => None,
    });
    // Places of problems by subnet.
    let places: BTreeMap<&str, &str> = external.collect();
    let ids = places.keys().map(|id| (*id).to_owned()).collect();
    let call = api.ec2.describe_subnets().set_subnet_ids(Some(ids)).send();
    let found: Vec<Subnet> = match api.call(EC2, "read", "subnets", call).await {
        Ok(answer) => answer.subnets.unwrap_or_default(),
        Err(error) if error.kind == ErrorKind::NotFound => {
            let cause = textnlp_provider::error_chain(&error);
            return Ok(vec![Problem::new(wanted.id.as_str(), cause, "correct `sites[].existing.subnets`")]);
        }
        Err(error) => return Err(error),
    };
    let mut problems = Vec::new();
    let zones: BTreeSet<&str> = found.iter().filter_map(Subnet::availability_zone_id).collect();
    if zones.len() < MIN_ZONES {
        let cause = format!("its subnets are in {} zone", zones.len());
        problems.push(Problem::new(wanted.id.as_str(), cause, "list subnets in two zones or more"));
    }
    let tables = tables(api, vpc).await?;
    let mut isolated = Vec::new();
    for subnet in &found {
        let id = subnet.subnet_id().unwrap_or_default();
        let place = places.get(id).copied().unwrap_or(wanted.id.as_str());
        if subnet.vpc_id() != Some(vpc) {
            let cause = format!("{id} is in {}, not in {vpc}", subnet.vpc_id().unwrap_or_default());
            problems.push(Problem::new(place, cause, "list subnets of the existing network"));
        }
        let free = subnet.available_ip_address_count().unwrap_or_default();
        if free < FREE_ADDRESSES {
            let cause = format!("{id} has {free} free addresses, and a cluster needs {FREE_ADDRESSES} in each subnet");
            problems.push(Problem::new(place, cause, "list a larger subnet"));
        }
        if !leads_out(&tables, id) {
            isolated.push(id);
        }
    }
    if !isolated.is_empty() {
        problems.extend(without_endpoints(api, wanted, vpc, &isolated).await?);
    }
    Ok(problems)
}

async fn tables(api: &Api, vpc: &str) -> Result<Vec<RouteTable>> {
    let filter = Filter::builder().name("vpc-id").values(vpc).build();
    let pages = api.ec2.describe_route_tables().filters(filter).into_paginator().items().send();
    api.call(EC2, "list", "route tables", pages.try_collect()).await
}

/// Whether the table of a subnet, its own or the main one, has a default route.
fn leads_out(tables: &[RouteTable], subnet: &str) -> bool {
    let has = |table: &&RouteTable, is: &dyn Fn(&aws_sdk_ec2::types::RouteTableAssociation) -> bool| {
        table.associations().iter().any(is)
    };
    let own = tables.iter().find(|table| has(table, &|one| one.subnet_id() == Some(subnet)));
    let table = own.or_else(|| tables.iter().find(|table| has(table, &|one| one.main() == Some(true))));
    table.is_some_and(|table| table.routes().iter().any(|route| route.destination_cidr_block() == Some("0.0.0.0/0")))
}

/// Nodes in subnets without a default route reach AWS by endpoints only.
async fn without_endpoints(api: &Api, wanted: &Wanted, vpc: &str, isolated: &[&str]) -> Result<Vec<Problem>> {
    let filter = Filter::builder().name("vpc-id").values(vpc).build();
    let pages = api.ec2.describe_vpc_endpoints().filters(filter).into_paginator().items().send();
    let there: Vec<VpcEndpoint> = api.call(EC2, "list", "VPC endpoints", pages.try_collect()).await?;
    let has = |service: &str| {
        let name = format!(".{}.{service}", api.region);
        there.iter().any(|one| one.service_name().is_some_and(|known| known.ends_with(&name)))
    };
    let missing: Vec<&str> = NEEDED.into_iter().filter(|service| !has(service)).collect();
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let cause = format!(
        "{} have no default route, and {vpc} has no endpoint of {}: nodes cannot join a cluster",
        isolated.join(", "),
        missing.join(", ")
    );
    Ok(vec![Problem::new(wanted.id.as_str(), cause, "add a route to a NAT gateway, or these endpoints")])
}
