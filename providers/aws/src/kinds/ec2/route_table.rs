//! Route tables with their routes and subnets: <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateRouteTable.html>.

use async_trait::async_trait;
use aws_sdk_ec2::types::{
    ResourceType, Route as RouteAnswer, RouteOrigin, RouteTable as Answer, RouteTableAssociation,
};
use serde::{Deserialize, Serialize};
use textnlp_provider::{Identity, Permission, Result};

use super::{CREATE_TAGS, QUICK, SERVICE, TAGS, UNTAGS, changes, creates, deletes, named};
use crate::api::Api;
use crate::resource::{Filter, Make, ObservedObject, Of, Resource};
use crate::table::{Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        permissions: &[
            changes("ec2:AssociateRouteTable"),
            changes("ec2:CreateRoute"),
            creates("ec2:CreateRouteTable"),
            CREATE_TAGS,
            TAGS,
            changes("ec2:DeleteRoute"),
            deletes("ec2:DeleteRouteTable"),
            UNTAGS,
            Permission::read("ec2:DescribeRouteTables"),
            changes("ec2:DisassociateRouteTable"),
            deletes("ec2:DisassociateRouteTable"),
            changes("ec2:ReplaceRoute"),
            changes("ec2:ReplaceRouteTableAssociation"),
        ],
        typical: QUICK,
        terraform: &[("aws_route_table", "id")],
        ..kind("aws.route-table", "the routes of subnets", Identity::Token)
    },
    service: SERVICE,
    resource: &Of::<RouteTable>::kind(),
    refused: &[],
}];

/// A route table. Output: `id`.
struct RouteTable;

/// The attributes of a route table.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    vpc: String,
    /// Its routes, without those that AWS adds: to the VPC itself, of gateway endpoints, and propagated ones.
    routes: Vec<Route>,
    /// The subnets that use it.
    subnets: Vec<String>,
    #[serde(default)]
    tags: Tags,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Route {
    /// The IPv4 destination: `0.0.0.0/0`.
    to: String,
    /// The id of a gateway.
    via: String,
}

#[async_trait]
impl Resource<Api> for RouteTable {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["routes", "subnets"];
    const HAS_CLIENT_TOKEN: bool = true;

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let answer = api.find(SERVICE, id, api.ec2.describe_route_tables().route_table_ids(id).send()).await?;
        Ok(answer.and_then(|answer| answer.route_tables.unwrap_or_default().into_iter().find_map(seen)))
    }

    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let found = tables(api, super::filter(filter)).await?;
        Ok(found.into_iter().filter_map(seen).collect())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let tags = super::specification(make, ResourceType::RouteTable);
        let call = api.ec2.create_route_table().vpc_id(&spec.vpc).client_token(make.token).tag_specifications(tags);
        let answer = api.call(SERVICE, "create", "route table", call.send()).await?;
        super::id_in(answer.route_table.and_then(|one| one.route_table_id), "route table")
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        if field == "subnets" { put_subnets(api, seen, spec).await } else { put_routes(api, seen, spec).await }
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, &seen.id, set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        if let Some(subnet) = seen.spec.subnets.first() {
            return disassociate(api, &seen.id, subnet).await;
        }
        let call = api.ec2.delete_route_table().route_table_id(&seen.id).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

async fn tables(api: &Api, filter: aws_sdk_ec2::types::Filter) -> Result<Vec<Answer>> {
    let pages = api.ec2.describe_route_tables().filters(filter).into_paginator().items().send();
    api.call(SERVICE, "list", "route tables", pages.try_collect()).await
}

/// Adds or replaces the first route that is missing or leads elsewhere, else deletes the first one too many.
async fn put_routes(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec) -> Result<()> {
    let there = &seen.spec.routes;
    let Some(route) = spec.routes.iter().find(|route| !there.contains(route)) else {
        let Some(extra) = there.iter().find(|route| !spec.routes.contains(route)) else { return Ok(()) };
        let call = api.ec2.delete_route().route_table_id(&seen.id).destination_cidr_block(&extra.to).send();
        return api.call(SERVICE, "delete a route of", &seen.id, call).await.map(drop);
    };
    let (gateway, nat) = match route.via.starts_with("nat-") {
        true => (None, Some(route.via.clone())),
        false => (Some(route.via.clone()), None),
    };
    if there.iter().any(|other| other.to == route.to) {
        let call = api.ec2.replace_route().route_table_id(&seen.id).destination_cidr_block(&route.to);
        let call = call.set_gateway_id(gateway).set_nat_gateway_id(nat).send();
        return api.call(SERVICE, "replace a route of", &seen.id, call).await.map(drop);
    }
    let call = api.ec2.create_route().route_table_id(&seen.id).destination_cidr_block(&route.to);
    let call = call.set_gateway_id(gateway).set_nat_gateway_id(nat).send();
    api.call(SERVICE, "create a route of", &seen.id, call).await.map(drop)
}

/// Adds the first subnet that is missing, else removes the first one too many.
async fn put_subnets(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec) -> Result<()> {
    let (add, remove) = super::change(&seen.spec.subnets, &spec.subnets);
    let Some(subnet) = add.iter().flatten().next() else {
        let Some(subnet) = remove.iter().flatten().next() else { return Ok(()) };
        return disassociate(api, &seen.id, subnet).await;
    };
    // A subnet has one table; moving it leaves no time without routes.
    if let Some(association) = association(api, subnet).await? {
        let call = api.ec2.replace_route_table_association().association_id(association).route_table_id(&seen.id);
        return api.call(SERVICE, "move a subnet to", &seen.id, call.send()).await.map(drop);
    }
    let call = api.ec2.associate_route_table().route_table_id(&seen.id).subnet_id(subnet).send();
    api.call(SERVICE, "add a subnet to", &seen.id, call).await.map(drop)
}

async fn disassociate(api: &Api, table: &str, subnet: &str) -> Result<()> {
    let Some(association) = association(api, subnet).await? else { return Ok(()) };
    let call = api.ec2.disassociate_route_table().association_id(association).send();
    api.call(SERVICE, "remove a subnet from", table, call).await.map(drop)
}

/// The id of the association of a subnet with whatever table.
async fn association(api: &Api, subnet: &str) -> Result<Option<String>> {
    let found = tables(api, named("association.subnet-id", [subnet])).await?;
    let mut all = found.into_iter().flat_map(|table| table.associations.unwrap_or_default());
    let of_subnet = |one: &RouteTableAssociation| one.subnet_id.as_deref() == Some(subnet);
    Ok(all.find(of_subnet).and_then(|one| one.route_table_association_id))
}

fn seen(one: Answer) -> Option<ObservedObject<Spec>> {
    let id = one.route_table_id?;
    let spec = Spec {
        vpc: one.vpc_id.unwrap_or_default(),
        routes: one.routes.unwrap_or_default().into_iter().filter_map(route).collect(),
        subnets: one.associations.unwrap_or_default().into_iter().filter_map(|one| one.subnet_id).collect(),
        tags: Tags::new(),
    };
    Some(ObservedObject::new(&id, spec, super::tags(one.tags)).output("id", Some(id.clone())))
}

/// A created route, not one that AWS added. Gateway endpoints have prefix lists for destinations.
fn route(one: RouteAnswer) -> Option<Route> {
    let to = one.destination_cidr_block.filter(|_| one.origin == Some(RouteOrigin::CreateRoute))?;
    let targets = [
        one.nat_gateway_id,
        one.gateway_id,
        one.transit_gateway_id,
        one.vpc_peering_connection_id,
        one.network_interface_id,
        one.local_gateway_id,
        one.carrier_gateway_id,
        one.core_network_arn,
    ];
    Some(Route { to, via: targets.into_iter().flatten().next().unwrap_or_default() })
}
