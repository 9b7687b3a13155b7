//! Networks, subnets, addresses, NAT gateways and private DNS zones.

use serde_json::{Value, json};

use super::cloud::{Cloud, Object, put, put_missing, text};
use super::kinds::{Call, KIND, Kind, Special, Style, is_name, kind_of, parent, refuse_use, row, users};
use super::problem::{Problem, bad, conflict};
use crate::{Behaviour, Source};

/// Addresses of a region and subscription:
/// <https://learn.microsoft.com/azure/azure-resource-manager/management/azure-subscription-service-limits>.
const MAX_ADDRESSES: i64 = 1_000;

pub(crate) const SPECIALS: &[Special] = &[];

pub(crate) const KINDS: &[Kind] = &[
    Kind {
        kind: "Microsoft.Network/virtualNetworks",
        version: "2024-05-01",
        models: [
            "network.models VirtualNetwork",
            "network.models TagsObject",
            "network.models VirtualNetwork",
            "network.models VirtualNetworkListResult",
        ],
        styles: [Style::Async, Style::Async, Style::Both],
        words: ["Updating", "Updating", "Deleting"],
        has_etag: true,
        kept: &["/properties/resourceGuid"],
        defaults: &[("/properties/enableDdosProtection", "false")],
        holds: network_of,
        accept: accept_network,
        finish: finish_network,
        refuse_delete: refuse_links,
        show: show_network,
        ..KIND
    },
    Kind {
        kind: "Microsoft.Network/virtualNetworks/subnets",
        version: "2024-05-01",
        models: ["network.models Subnet", "", "network.models Subnet", "network.models SubnetListResult"],
        styles: [Style::Async, Style::Async, Style::Both],
        words: ["Updating", "Updating", "Deleting"],
        tags: 0,
        has_etag: true,
        references: &["/properties/natGateway/id", "/properties/networkSecurityGroup/id", "/properties/routeTable/id"],
        in_use: Some((400, "InUseSubnetCannotBeDeleted")),
        defaults: SUBNET,
        holds: network_of,
        accept: accept_subnet,
        refuse_delete: refuse_links,
        end: |cloud, key| {
            cloud.links.remove(key);
            Ok(())
        },
        show: show_subnet,
        ..KIND
    },
    Kind {
        kind: "Microsoft.Network/virtualNetworks/virtualNetworkPeerings",
        version: "2024-05-01",
        models: [
            "network.models VirtualNetworkPeering",
            "",
            "network.models VirtualNetworkPeering",
            "network.models VirtualNetworkPeeringListResult",
        ],
        styles: [Style::Async, Style::Async, Style::Both],
        words: ["Updating", "Updating", "Deleting"],
        tags: 0,
        has_etag: true,
        references: &["/properties/remoteVirtualNetwork/id"],
        kept: &["/properties/resourceGuid"],
        defaults: &[
            ("/properties/allowVirtualNetworkAccess", "true"),
            ("/properties/allowForwardedTraffic", "false"),
            ("/properties/allowGatewayTransit", "false"),
            ("/properties/useRemoteGateways", "false"),
            ("/properties/peeringSyncLevel", "\"FullyInSync\""),
        ],
        holds: network_of,
        accept: accept_peering,
        finish: |cloud, key, _| {
            connect(cloud, key);
            Ok(())
        },
        end: |cloud, key| {
            if let Some(back) = peering_back(cloud, key) {
                set_peering(cloud, &back, "Disconnected");
            }
            Ok(())
        },
        ..KIND
    },
    Kind {
        kind: "Microsoft.Network/publicIPAddresses",
        version: "2024-05-01",
        models: [
            "network.models PublicIPAddress",
            "network.models TagsObject",
            "network.models PublicIPAddress",
            "network.models PublicIPAddressListResult",
        ],
        styles: [Style::Async, Style::Async, Style::Both],
        words: ["Updating", "Updating", "Deleting"],
        has_etag: true,
        in_use: Some((400, "PublicIPAddressCannotBeDeleted")),
        kept: &["/properties/ipAddress", "/properties/resourceGuid"],
        defaults: &[
            ("/sku/name", "\"Basic\""),
            ("/sku/tier", "\"Regional\""),
            ("/properties/publicIPAddressVersion", "\"IPv4\""),
            ("/properties/publicIPAllocationMethod", "\"Dynamic\""),
            ("/properties/idleTimeoutInMinutes", "4"),
            ("/properties/ipTags", "[]"),
        ],
        accept: accept_address,
        ..KIND
    },
    Kind {
        kind: "Microsoft.Network/natGateways",
        version: "2024-05-01",
        models: [
            "network.models NatGateway",
            "network.models TagsObject",
            "network.models NatGateway",
            "network.models NatGatewayListResult",
        ],
        styles: [Style::Async, Style::Async, Style::Both],
        words: ["Updating", "Updating", "Deleting"],
        has_etag: true,
        references: &["/properties/publicIpAddresses/*/id", "/properties/publicIpPrefixes/*/id"],
        in_use: Some((400, "CannotDeleteNatGatewayAssociatedToSubnet")),
        kept: &["/properties/resourceGuid"],
        defaults: &[("/properties/idleTimeoutInMinutes", "4")],
        accept: accept_gateway,
        show: show_gateway,
        ..KIND
    },
    Kind {
        kind: "Microsoft.Network/routeTables",
        version: "2024-05-01",
        models: [
            "network.models RouteTable",
            "network.models TagsObject",
            "network.models RouteTable",
            "network.models RouteTableListResult",
        ],
        styles: [Style::Async, Style::Async, Style::Both],
        words: ["Updating", "Updating", "Deleting"],
        has_etag: true,
        ..KIND
    },
    Kind {
        kind: "Microsoft.Network/privateEndpoints",
        version: "2024-05-01",
        models: [
            "network.models PrivateEndpoint",
            "network.models TagsObject",
            "network.models PrivateEndpoint",
            "network.models PrivateEndpointListResult",
        ],
        styles: [Style::Async, Style::Async, Style::Both],
        seconds: [60, 20, 60],
        words: ["Updating", "Updating", "Deleting"],
        has_etag: true,
        references: &["/properties/subnet/id", CONNECTED],
        fixed: &["/properties/subnet/id"],
        accept: accept_endpoint,
        ..KIND
    },
    Kind {
        kind: "Microsoft.Network/privateEndpoints/privateDnsZoneGroups",
        version: "2024-05-01",
        models: [
            "network.models PrivateDnsZoneGroup",
            "",
            "network.models PrivateDnsZoneGroup",
            "network.models PrivateDnsZoneGroupListResult",
        ],
        styles: [Style::Async, Style::Async, Style::Both],
        words: ["Updating", "Updating", "Deleting"],
        tags: 0,
        has_etag: true,
        references: &["/properties/privateDnsZoneConfigs/*/properties/privateDnsZoneId"],
        holds: parent,
        // Its model has no type.
        show: |_, _, body| {
            if let Some(members) = body.as_object_mut() {
                members.shift_remove("type");
            }
        },
        ..KIND
    },
    Kind {
        kind: "Microsoft.Network/privateDnsZones",
        version: "2024-06-01",
        models: [
            "privatedns.models PrivateZone",
            "privatedns.models PrivateZone",
            "privatedns.models PrivateZone",
            "privatedns.models PrivateZoneListResult",
        ],
        styles: [Style::Both, Style::Both, Style::Both],
        accepted: 202,
        seconds: [30, 10, 30],
        tags: 15,
        has_etag: true,
        is_name: |name| is_name(name, 1..=253, "-_.") && name.contains('.') && !name.ends_with('.'),
        accept: accept_zone,
        refuse_delete: refuse_nested,
        show: show_zone,
        ..KIND
    },
    Kind {
        kind: "Microsoft.Network/privateDnsZones/virtualNetworkLinks",
        version: "2024-06-01",
        models: [
            "privatedns.models VirtualNetworkLink",
            "privatedns.models VirtualNetworkLink",
            "privatedns.models VirtualNetworkLink",
            "privatedns.models VirtualNetworkLinkListResult",
        ],
        styles: [Style::Both, Style::Both, Style::Both],
        accepted: 202,
        seconds: [30, 10, 60],
        tags: 15,
        has_etag: true,
        references: &["/properties/virtualNetwork/id"],
        defaults: &[
            ("/properties/registrationEnabled", "false"),
            ("/properties/resolutionPolicy", "\"Default\""),
            ("/properties/virtualNetworkLinkState", "\"Completed\""),
        ],
        fixed: &["/properties/virtualNetwork/id"],
        accept: accept_zone,
        ..KIND
    },
];

/// What a private endpoint leads to.
const CONNECTED: &str = "/properties/privateLinkServiceConnections/*/properties/privateLinkServiceId";

/// What the service sets of a subnet.
const SUBNET: &[(&str, &str)] = &[
    ("/properties/delegations", "[]"),
    ("/properties/privateEndpointNetworkPolicies", "\"Disabled\""),
    ("/properties/privateLinkServiceNetworkPolicies", "\"Enabled\""),
];

/// The only group of Azure Managed Redis: Azure-Samples/msdocs-flask-postgresql-sample-app#68.
const REDIS_GROUP: &str = "redisEnterprise";

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "one writer a virtual network and its subnets: 409 AnotherOperationInProgress with the operation's address",
        Source::Report("hashicorp/terraform-provider-azurerm#3780"),
    ),
    rule(
        "a reference to a resource that is not Succeeded is 429 RetryableError with ReferencedResourceNotProvisioned",
        Source::Report("coreos/tectonic-installer#184"),
    ),
    rule("a network cannot be linked while it is updated", Source::Report("Azure-Samples/azuresandbox#25")),
    rule(
        "a network without the member subnets keeps them, and an empty list deletes them",
        Source::Report("Azure/bicep-types-az#1687"),
    ),
    rule("a subnet in use cannot be deleted: 400 InUseSubnetCannotBeDeleted", Source::Report("Azure/bicep#12540")),
    rule(
        "the service's link stays on a delegated subnet when the service is gone, and at times never goes",
        Source::Report("hashicorp/terraform-provider-azurerm#28979"),
    ),
    rule("the range of a subnet in use cannot change", Source::Report("hashicorp/terraform-provider-azurerm#7687")),
    rule(
        "an address in use cannot be deleted: 400 PublicIPAddressCannotBeDeleted",
        Source::Report("hashicorp/terraform-provider-azurerm#6052"),
    ),
    rule(
        "a NAT gateway of a subnet cannot be deleted",
        Source::Report("Azure-Samples/Copilot-Studio-with-Azure-AI-Search#62"),
    ),
    rule("addresses of a region are limited", Source::Report("giantswarm/azure-operator#163")),
    rule("a zone with links cannot be deleted: 409 CannotDeleteResource", Source::Report("Azure/azure-cli#15010")),
    rule(
        "zones and their links have 15 tags with plain names, other resources 50",
        Source::Report("hashicorp/terraform-provider-azurerm#21749"),
    ),
    rule("a Standard address is static", Source::Report("MicrosoftDocs/azure-docs#42889")),
    rule("a NAT gateway takes no Basic address", Source::Report("Azure/bicep#5914")),
    rule(
        "subnets lie in the network's ranges and do not overlap",
        Source::Documentation("https://learn.microsoft.com/azure/virtual-network/virtual-network-manage-subnet"),
    ),
    rule("answers to new zones and links are 202 without a body", Source::Model),
    rule(
        "the connection of a private endpoint is Approved if who creates it may approve it",
        Source::Documentation("https://learn.microsoft.com/azure/private-link/rbac-permissions"),
    ),
    rule(
        "the group of a private endpoint is one of its service: 400 with Invalid groupId",
        Source::Report("hashicorp/terraform-provider-azurerm#11778"),
    ),
    rule(
        "the network interface of a private endpoint, and its records in zones",
        Source::LeftOut("they come and go with the endpoint and its group of zones, and no plan names them"),
    ),
    rule(
        "zones of a group of a private endpoint are not removed in parallel",
        Source::LeftOut("hashicorp/terraform-provider-azurerm#28715 shows no code; a plan has one zone in a group"),
    ),
    rule(
        "a peering is Initiated until the other network has one back, and Disconnected when that is deleted",
        Source::Documentation("https://learn.microsoft.com/azure/virtual-network/virtual-network-manage-peering"),
    ),
    rule(
        "a peering whose remote one is Disconnected is refused until that is sent again: 400 RemotePeeringIsDisconnected",
        Source::Report("hashicorp/terraform-provider-azurerm#14051"),
    ),
    rule(
        "networks with common addresses are not peered",
        Source::Documentation(
            "https://learn.microsoft.com/azure/virtual-network/virtual-network-manage-peering#requirements-and-constraints",
        ),
    ),
    rule(
        "a peering needs the action peer on the other network",
        Source::Documentation(
            "https://learn.microsoft.com/azure/virtual-network/virtual-network-manage-peering#permissions",
        ),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "Microsoft.Network", what, source }
}

/// The network of a subnet's key or of its own.
pub(crate) fn network_of(key: &str) -> String {
    key.split('/').take(9).collect::<Vec<_>>().join("/")
}

/// The first address of a range and its length in bits.
pub(crate) fn range(text: &str) -> Option<(u32, u32)> {
    let (address, bits) = text.split_once('/')?;
    let (address, bits) = (address.parse::<std::net::Ipv4Addr>().ok()?, bits.parse::<u32>().ok()?);
    (bits <= 32).then(|| (u32::from(address), bits))
}

fn mask(bits: u32) -> u32 {
    u32::MAX.checked_shl(32 - bits).unwrap_or(0)
}

fn contains(outer: (u32, u32), inner: (u32, u32)) -> bool {
    outer.1 <= inner.1 && inner.0 & mask(outer.1) == outer.0 & mask(outer.1)
}

/// The ranges of a network or subnet.
fn ranges(body: &Value, pointers: [&str; 2]) -> Vec<(u32, u32)> {
    let one = body.pointer(pointers[0]).and_then(Value::as_str);
    let many = body.pointer(pointers[1]).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    one.into_iter().chain(many).filter_map(range).collect()
}

/// The ranges of a subnet.
pub(crate) fn subnet_ranges(body: &Value) -> Vec<(u32, u32)> {
    ranges(body, ["/properties/addressPrefix", "/properties/addressPrefixes"])
}

fn subnets<'c>(cloud: &'c Cloud, network: &str) -> impl Iterator<Item = (&'c String, &'c Object)> {
    let below = format!("{network}/subnets/");
    // Assignments of roles at a subnet are no subnets.
    let is_one = move |key: &str| key.strip_prefix(&below).is_some_and(|name| !name.contains('/'));
    cloud.objects.iter().filter(move |(key, _)| is_one(key))
}

/// What keeps a subnet or the subnets of a network in use, beside references.
fn refuse_links(cloud: &Cloud, key: &str) -> Result<(), Problem> {
    let now = cloud.now();
    let counts = |until: jiff::Timestamp| until > now || cloud.conduct.links_stay;
    let own = |subnet: &&String| *subnet == key || subnet.starts_with(&format!("{key}/"));
    if let Some((subnet, _)) = cloud.links.iter().find(|(subnet, until)| own(subnet) && counts(**until)) {
        let message = format!(
            "Subnet {subnet} is in use by {subnet}/serviceAssociationLinks/dbforpostgresql and cannot be deleted."
        );
        return Err(bad("InUseSubnetCannotBeDeleted", message));
    }
    // A network is in use if one of its subnets is.
    for (subnet, _) in subnets(cloud, key) {
        if let Some(kind) = row(&kind_of(subnet)) {
            refuse_use(cloud, kind, subnet)?;
        }
    }
    Ok(())
}

fn describe_subnet(cloud: &Cloud, id: &str, body: &mut Value) {
    let etag = cloud.etag();
    put(body, "/etag", etag.clone().into());
    for (pointer, default) in SUBNET {
        put_missing(body, pointer, serde_json::from_str(default).unwrap_or_default());
    }
    for one in body.pointer_mut("/properties/delegations").and_then(Value::as_array_mut).into_iter().flatten() {
        let name = text(one, "/name").to_owned();
        put(one, "/id", format!("{id}/delegations/{name}").into());
        put(one, "/type", "Microsoft.Network/virtualNetworks/subnets/delegations".into());
        put(one, "/etag", etag.clone().into());
        put(one, "/properties/provisioningState", "Succeeded".into());
        put_missing(one, "/properties/actions", json!(["Microsoft.Network/virtualNetworks/subnets/join/action"]));
    }
}

/// Refuses a subnet that does not fit its network, or that changes while it is used.
fn check_subnet(cloud: &Cloud, network: &Value, key: &str, body: &Value) -> Result<(), Problem> {
    let own = subnet_ranges(body);
    let name = key.rsplit('/').next().unwrap_or_default();
    let outer = ranges(network, ["", "/properties/addressSpace/addressPrefixes"]);
    if own.is_empty() || !own.iter().all(|one| outer.iter().any(|outer| contains(*outer, *one))) {
        return Err(bad(
            "NetcfgInvalidSubnet",
            format!("Subnet '{name}' is not valid in virtual network '{}'.", text(network, "/name")),
        ));
    }
    for (other, object) in subnets(cloud, &parent(key)).filter(|(other, _)| *other != key) {
        let theirs = subnet_ranges(&object.body);
        let overlaps = |one: &(u32, u32)| theirs.iter().any(|other| contains(*one, *other) || contains(*other, *one));
        if own.iter().any(overlaps) {
            let other = other.rsplit('/').next().unwrap_or_default();
            let message = format!(
                "Subnet '{name}' is not valid because its IP address range overlaps with that of an existing subnet \
                 '{other}'."
            );
            return Err(bad("NetcfgSubnetRangesOverlap", message));
        }
    }
    let Some(before) = cloud.objects.get(key).map(|one| &one.body) else { return Ok(()) };
    let (used, now) = (users(cloud, key), cloud.now());
    let linked = cloud.links.get(key).is_some_and(|until| *until > now || cloud.conduct.links_stay);
    if subnet_ranges(before) != own && (!used.is_empty() || linked) {
        return Err(bad("InUseSubnetCannotBeUpdated", format!("Subnet {name} is in use and cannot be updated.")));
    }
    let delegated = |body: &Value| -> Vec<String> {
        let list = body.pointer("/properties/delegations").and_then(Value::as_array).into_iter().flatten();
        list.map(|one| text(one, "/properties/serviceName").to_lowercase()).collect()
    };
    if delegated(before) != delegated(body) && linked {
        let message = format!(
            "Delegations of subnet {name} cannot be changed because it is being used by serviceAssociationLinks."
        );
        return Err(bad("SubnetDelegationsCannotChangeWhenSubnetUsedByResource", message));
    }
    Ok(())
}

fn accept_endpoint(_: &mut Cloud, _: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let connections = body.pointer_mut("/properties/privateLinkServiceConnections").and_then(Value::as_array_mut);
    let Some([connection]) = connections.map(Vec::as_mut_slice) else {
        return Err(bad("InvalidRequestFormat", "A private endpoint has one connection."));
    };
    let target = text(connection, "/properties/privateLinkServiceId").to_ascii_lowercase();
    let is_redis = target.contains("/providers/microsoft.cache/redisenterprise/");
    if is_redis && connection["properties"]["groupIds"] != json!([REDIS_GROUP]) {
        let message = "Call to Microsoft.Cache/redisEnterprise failed. Error message: Invalid groupId";
        return Err(bad("BadRequest", message));
    }
    let state = json!({ "status": "Approved", "description": "Auto-Approved", "actionsRequired": "None" });
    put(connection, "/properties/privateLinkServiceConnectionState", state);
    put(connection, "/properties/provisioningState", "Succeeded".into());
    Ok(())
}

fn accept_subnet(cloud: &mut Cloud, call: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let network = cloud.objects.get(&call.parent()).map(|one| one.body.clone()).unwrap_or_default();
    check_subnet(cloud, &network, &call.key, body)?;
    describe_subnet(cloud, call.id(), body);
    Ok(())
}

fn accept_network(cloud: &mut Cloud, call: &Call, before: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let outer = ranges(body, ["", "/properties/addressSpace/addressPrefixes"]);
    if outer.is_empty() {
        return Err(bad("InvalidRequestFormat", "The address space of the virtual network has no range."));
    }
    put_missing(body, "/properties/resourceGuid", cloud.random.uuid().into());
    // They are resources of their own.
    body["properties"].as_object_mut().map(|members| members.shift_remove("virtualNetworkPeerings"));
    let sent = body["properties"].as_object_mut().and_then(|members| members.shift_remove("subnets"));
    let kept: Vec<String> = subnets(cloud, &call.key).map(|(key, _)| key.clone()).collect();
    let Some(sent) = sent.as_ref().and_then(Value::as_array) else {
        for key in kept {
            let subnet = cloud.objects.get(&key).map(|one| one.body.clone()).unwrap_or_default();
            check_subnet(cloud, body, &key, &subnet)?;
        }
        return Ok(());
    };
    let key_of = |subnet: &Value| format!("{}/subnets/{}", call.key, text(subnet, "/name").to_lowercase());
    for key in kept.iter().filter(|key| before.is_some() && !sent.iter().any(|one| key_of(one) == **key)) {
        if let Some(kind) = row(&kind_of(key)) {
            refuse_links(cloud, key)?;
            refuse_use(cloud, kind, key)?;
        }
    }
    cloud.objects.retain(|key, _| !kept.contains(key) || sent.iter().any(|one| key_of(one) == *key));
    for subnet in sent {
        let (key, mut subnet) = (key_of(subnet), subnet.clone());
        check_subnet(cloud, body, &key, &subnet)?;
        let id = format!("{}/subnets/{}", call.id(), text(&subnet, "/name"));
        describe_subnet(cloud, &id, &mut subnet);
        put(&mut subnet, "/id", id.as_str().into());
        put(&mut subnet, "/type", "Microsoft.Network/virtualNetworks/subnets".into());
        put(&mut subnet, "/properties/provisioningState", "Updating".into());
        let lag = cloud.objects.get(&key).map_or((cloud.now(), cloud.now()), |one| one.lag);
        cloud.objects.insert(key, Object { id, body: subnet, lag, ghost_until: None });
    }
    Ok(())
}

fn finish_network(cloud: &mut Cloud, key: &str, _: bool) -> Result<(), Value> {
    let below: Vec<String> = subnets(cloud, key).map(|(key, _)| key.clone()).collect();
    below.iter().for_each(|subnet| cloud.set_state(subnet, "Succeeded"));
    Ok(())
}

fn show_network(cloud: &Cloud, key: &str, body: &mut Value) {
    let below: Vec<Value> = subnets(cloud, key).map(|(key, one)| super::kinds::shown(cloud, key, one)).collect();
    put(body, "/properties/subnets", below.into());
    let made = body.pointer("/properties/virtualNetworkPeerings").and_then(Value::as_array).cloned();
    let own = peerings_of(cloud, key).map(|(_, one)| one.body.clone());
    let peerings: Vec<Value> = made.into_iter().flatten().chain(own).collect();
    put(body, "/properties/virtualNetworkPeerings", peerings.into());
}

fn peerings_of<'c>(cloud: &'c Cloud, network: &str) -> impl Iterator<Item = (&'c String, &'c Object)> {
    let below = format!("{network}/virtualnetworkpeerings/");
    cloud.objects.iter().filter(move |(key, _)| key.starts_with(&below))
}

/// The key of the network that a peering leads to.
fn other_network(body: &Value) -> String {
    text(body, "/properties/remoteVirtualNetwork/id").to_lowercase()
}

/// The peering that leads back.
fn peering_back(cloud: &Cloud, key: &str) -> Option<String> {
    let other = other_network(&cloud.objects.get(key)?.body);
    let own = network_of(key);
    let back = peerings_of(cloud, &other).find(|(_, one)| other_network(&one.body) == own);
    back.map(|(back, _)| back.clone())
}

fn set_peering(cloud: &mut Cloud, key: &str, state: &str) {
    if let Some(object) = cloud.objects.get_mut(key) {
        put(&mut object.body, "/properties/peeringState", state.into());
    }
}

/// Connects two networks once each of them has a peering with the other one.
fn connect(cloud: &mut Cloud, key: &str) {
    let back = peering_back(cloud, key);
    let state = if back.is_some() { "Connected" } else { "Initiated" };
    for one in std::iter::once(key.to_owned()).chain(back) {
        set_peering(cloud, &one, state);
    }
}

/// Whether there are connected peerings of two networks.
pub(crate) fn is_peered(cloud: &Cloud, network: &str, other: &str) -> bool {
    let leads = |(_, one): (&String, &Object)| {
        other_network(&one.body) == other && text(&one.body, "/properties/peeringState") == "Connected"
    };
    network == other || peerings_of(cloud, network).any(leads)
}

fn accept_peering(cloud: &mut Cloud, call: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let space = |key: &str| {
        let network = cloud.objects.get(key).map(|one| &one.body);
        network.and_then(|body| body.pointer("/properties/addressSpace")).cloned().unwrap_or_default()
    };
    let (own, other) = (space(&call.parent()), space(&other_network(body)));
    let read = |space: &Value| ranges(space, ["", "/addressPrefixes"]);
    let theirs = read(&other);
    let overlaps = |one: &(u32, u32)| theirs.iter().any(|other| contains(*one, *other) || contains(*other, *one));
    if read(&own).iter().any(overlaps) {
        let message =
            format!("Cannot create or update peering {}. The address spaces of the networks overlap.", call.id());
        return Err(bad("VnetAddressSpacesOverlap", message));
    }
    let back = peerings_of(cloud, &other_network(body)).find(|(_, one)| other_network(&one.body) == call.parent());
    if let Some((back, _)) = back.filter(|(_, one)| text(&one.body, "/properties/peeringState") == "Disconnected") {
        let message = format!(
            "Cannot create or update peering {}, because the remote peering {back} is in Disconnected state.",
            call.id()
        );
        return Err(bad("RemotePeeringIsDisconnected", message));
    }
    for (member, space) in [("local", &own), ("remote", &other)] {
        put(body, &format!("/properties/{member}AddressSpace"), space.clone());
        put(body, &format!("/properties/{member}VirtualNetworkAddressSpace"), space.clone());
    }
    put_missing(body, "/properties/peeringState", "Initiated".into());
    put_missing(body, "/properties/resourceGuid", cloud.random.uuid().into());
    Ok(())
}

fn show_subnet(cloud: &Cloud, key: &str, body: &mut Value) {
    if cloud.links.get(key).is_some_and(|until| *until > cloud.now() || cloud.conduct.links_stay) {
        let link = json!({ "name": "dbforpostgresql", "properties": {
            "linkedResourceType": "Microsoft.DBforPostgreSQL/flexibleServers", "provisioningState": "Succeeded" } });
        put(body, "/properties/serviceAssociationLinks", json!([link]));
    }
}

fn accept_address(cloud: &mut Cloud, call: &Call, before: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let location = text(body, "/location").to_lowercase();
    let is_one = |(key, one): &(&String, &Object)| {
        key.contains("/microsoft.network/publicipaddresses/")
            && text(&one.body, "/location").eq_ignore_ascii_case(&location)
    };
    let count = i64::try_from(cloud.objects.iter().filter(is_one).count()).unwrap_or(i64::MAX);
    let name = (location.clone(), "PublicIPAddresses".to_owned());
    let limit = cloud.quotas.get(&name).copied().unwrap_or(MAX_ADDRESSES);
    if before.is_none() && count >= limit {
        let message =
            format!("Cannot create more than {limit} public IP addresses for this subscription in this region.");
        return Err(bad("StaticPublicIPCountLimitReached", message));
    }
    if text(body, "/sku/name") == "Standard" && text(body, "/properties/publicIPAllocationMethod") != "Static" {
        let message = format!("Standard sku publicIp {} must have AllocationMethod set to Static.", call.id());
        return Err(bad("StandardSkuPublicIPAddressesMustBeStatic", message));
    }
    let digits = cloud.random.number();
    put_missing(
        body,
        "/properties/ipAddress",
        format!("20.{}.{}.{}", digits % 200, digits / 200 % 250, digits / 50_000 % 250).into(),
    );
    put_missing(body, "/properties/resourceGuid", cloud.random.uuid().into());
    Ok(())
}

fn accept_gateway(cloud: &mut Cloud, _: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    put_missing(body, "/properties/resourceGuid", cloud.random.uuid().into());
    let ids = body.pointer("/properties/publicIpAddresses").and_then(Value::as_array).into_iter().flatten();
    for id in ids.map(|one| text(one, "/id")) {
        let sku = cloud.objects.get(&id.to_lowercase()).map(|one| text(&one.body, "/sku/name"));
        if sku != Some("Standard") {
            let message =
                format!("NAT gateway cannot use the public IP address {id}, because its sku is not Standard.");
            return Err(bad("BadRequest", message));
        }
    }
    Ok(())
}

fn show_gateway(cloud: &Cloud, key: &str, body: &mut Value) {
    let ids: Vec<Value> = users(cloud, key).into_iter().map(|id| json!({ "id": id })).collect();
    if !ids.is_empty() {
        put(body, "/properties/subnets", ids.into());
    }
}

pub(crate) fn accept_zone(_: &mut Cloud, call: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    if text(body, "/location") != "global" {
        let message = format!("The location of {} has to be 'global'.", call.name());
        return Err(bad("LocationNotAvailableForResourceType", message));
    }
    Ok(())
}

fn refuse_nested(cloud: &Cloud, key: &str) -> Result<(), Problem> {
    let below = format!("{key}/");
    match cloud.objects.keys().any(|one| one.starts_with(&below)) {
        false => Ok(()),
        true => Err(conflict("CannotDeleteResource", "Can not delete resource before nested resources are deleted.")),
    }
}

fn show_zone(cloud: &Cloud, key: &str, body: &mut Value) {
    let below = format!("{key}/virtualnetworklinks/");
    let count = cloud.objects.keys().filter(|one| one.starts_with(&below)).count();
    put(body, "/properties/numberOfVirtualNetworkLinks", count.into());
    put(body, "/properties/maxNumberOfVirtualNetworkLinks", 1000.into());
    put(body, "/properties/numberOfRecordSets", 1.into());
    put(body, "/properties/maxNumberOfRecordSets", 25_000.into());
}
