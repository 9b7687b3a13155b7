//! Virtual networks with what is in them, and private DNS zones: <https://learn.microsoft.com/rest/api/virtualnetwork/>,
//! <https://learn.microsoft.com/rest/api/dns/privatedns/>.
//!
//! A network tree has one writer (hashicorp/terraform-provider-azurerm#3780): the parts of a site wait for each other, and a conflict with
//! others is waited for.

use async_trait::async_trait;
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_cloud::document::last;
use textnlp_cloud::{Range, State};
use textnlp_provider::{Error, ErrorKind, Foreign, Identity, Kind, Outputs, Pricing, Result};

use super::{create, delete, external, put, read};
use crate::api::{Api, Call, Reply, tags_at};
use crate::operation::Pending;
use crate::row::{Field, LOCATION, Marks, Rest, RestKind, Table, Update, rewrite, state};
use crate::table::{MINUTE, Row, kind};

/// The API version of networks. From 2023-11-01 on a `PUT` without subnets keeps them (pulumi/pulumi-azure-native#74).
pub(crate) const NETWORK: &str = "2024-05-01";
/// The API version of private DNS zones.
const DNS: &str = "2024-06-01";
/// The subnets of the nodes and of the database server.
pub(crate) const NODES: &str = "nodes";
pub(crate) const DATABASE: &str = "database";
/// The peerings of the networks of a database and of its replica in another region, from the former and from the latter.
pub(crate) const TO_REPLICA: &str = "textnlp-replica";
pub(crate) const TO_SOURCE: &str = "textnlp-source";
/// The service that the subnet of the database is delegated to.
pub(crate) const DATABASES: &str = "Microsoft.DBforPostgreSQL/flexibleServers";
const MOVE: &str = "deploy another environment and move to it";

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            permissions: &[
                read("Microsoft.Network/virtualNetworks/read"),
                put("Microsoft.Network/virtualNetworks/write"),
                delete("Microsoft.Network/virtualNetworks/delete"),
                read("Microsoft.Network/locations/operations/read"),
            ],
            terraform: &[("azurerm_virtual_network", "id")],
            ..kind("azure.network", "a virtual network", Identity::Named)
        },
        service: "Microsoft.Network",
        resource: &Rest::<Network>::kind(),
        refused: &[("cidr", MOVE), ("location", MOVE)],
    },
    Row {
        kind: Kind {
            // The link of a database server stays for a while after the server is gone (hashicorp/terraform-provider-azurerm#28979,
            // hashicorp/terraform-provider-azurerm#15728).
            deadline: MINUTE.saturating_mul(60),
            permissions: &[
                read("Microsoft.Network/virtualNetworks/subnets/read"),
                put("Microsoft.Network/virtualNetworks/subnets/write"),
                delete("Microsoft.Network/virtualNetworks/subnets/delete"),
                put("Microsoft.Network/natGateways/join/action"),
            ],
            terraform: &[("azurerm_subnet", "id")],
            ..kind("azure.subnet", "a subnet", Identity::Part)
        },
        service: "Microsoft.Network",
        resource: &Rest::<Subnet>::kind(),
        // hashicorp/terraform-provider-azurerm#7687.
        refused: &[("cidr", MOVE), ("delegation", MOVE)],
    },
    Row {
        kind: Kind {
            pricing: Pricing::Unknown("by use"),
            // <https://learn.microsoft.com/azure/virtual-network/virtual-network-manage-peering#permissions>.
            permissions: &[
                read("Microsoft.Network/virtualNetworks/virtualNetworkPeerings/read"),
                put("Microsoft.Network/virtualNetworks/virtualNetworkPeerings/write"),
                delete("Microsoft.Network/virtualNetworks/virtualNetworkPeerings/delete"),
                put("Microsoft.Network/virtualNetworks/peer/action"),
            ],
            terraform: &[("azurerm_virtual_network_peering", "id")],
            ..kind("azure.peering", "a peering of two virtual networks", Identity::Part)
        },
        service: "Microsoft.Network",
        resource: &Rest::<Peering>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            pricing: Pricing::BySpec,
            permissions: &[
                read("Microsoft.Network/publicIPAddresses/read"),
                put("Microsoft.Network/publicIPAddresses/write"),
                delete("Microsoft.Network/publicIPAddresses/delete"),
            ],
            terraform: &[("azurerm_public_ip", "id")],
            ..kind("azure.address", "a public address", Identity::Named)
        },
        service: "Microsoft.Network",
        resource: &Rest::<Address>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            pricing: Pricing::BySpec,
            permissions: &[
                read("Microsoft.Network/natGateways/read"),
                put("Microsoft.Network/natGateways/write"),
                delete("Microsoft.Network/natGateways/delete"),
                put("Microsoft.Network/publicIPAddresses/join/action"),
            ],
            terraform: &[("azurerm_nat_gateway", "id")],
            ..kind("azure.nat", "a NAT gateway", Identity::Named)
        },
        service: "Microsoft.Network",
        resource: &Rest::<Nat>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            pricing: Pricing::BySpec,
            permissions: &[
                read("Microsoft.Network/privateDnsZones/read"),
                put("Microsoft.Network/privateDnsZones/write"),
                delete("Microsoft.Network/privateDnsZones/delete"),
                read("Microsoft.Network/privateDnsOperationResults/read"),
                read("Microsoft.Network/privateDnsOperationStatuses/read"),
            ],
            terraform: &[("azurerm_private_dns_zone", "id")],
            ..kind("azure.dns-zone", "a private DNS zone", Identity::Named)
        },
        service: "Microsoft.Network",
        resource: &Rest::<Zone>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            permissions: &[
                read("Microsoft.Network/privateDnsZones/virtualNetworkLinks/read"),
                put("Microsoft.Network/privateDnsZones/virtualNetworkLinks/write"),
                delete("Microsoft.Network/privateDnsZones/virtualNetworkLinks/delete"),
                create("Microsoft.Network/virtualNetworks/join/action"),
            ],
            terraform: &[("azurerm_private_dns_zone_virtual_network_link", "id")],
            ..kind("azure.dns-link", "a link of a private DNS zone", Identity::Named)
        },
        service: "Microsoft.Network",
        resource: &Rest::<Link>::kind(),
        refused: &[],
    },
];

/// A virtual network. Outputs: `id`, `name`, and what a cluster beside it uses: `pods`, `services`, `dns`.
struct Network;

#[async_trait]
impl RestKind for Network {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Network/virtualNetworks",
        version: NETWORK,
        path: "{group}/providers/Microsoft.Network/virtualNetworks/{name}",
        fields: &[
            LOCATION,
            Field::code(
                "cidr",
                "/properties/addressSpace/addressPrefixes",
                |cidr| json!([cidr]),
                |one| one["properties"]["addressSpace"]["addressPrefixes"][0].clone(),
            ),
        ],
        ..Table::USUAL
    };

    fn outputs(_id: &str, document: &Value, outputs: &mut Outputs) {
        let cidr = document["properties"]["addressSpace"]["addressPrefixes"][0].as_str();
        for (name, value) in cidr.and_then(beside).into_iter().flatten() {
            outputs.insert(name.to_owned(), json!(value));
        }
    }

    /// Subnets of others, and peerings with other networks: they would end with it.
    async fn foreign(_api: &Api, _id: &str, document: &Value) -> Result<Vec<Foreign>> {
        // An existing network is not reported on.
        if textnlp_cloud::tags::lineage(&tags_at(document, "/tags")).is_none() {
            return Ok(Vec::new());
        }
        let others = |member: &str, own: [&str; 2], what: &str| -> Vec<Foreign> {
            let parts = document["properties"][member].as_array().into_iter().flatten();
            let others = parts.filter(|one| !own.map(Value::from).contains(&one["name"]));
            others.filter_map(|one| external(one["id"].as_str()?, what)).collect()
        };
        let mut foreign = others("subnets", [NODES, DATABASE], "subnet");
        foreign.extend(others("virtualNetworkPeerings", [TO_REPLICA, TO_SOURCE], "peering"));
        Ok(foreign)
    }
}

/// The ranges after that of a network: pods get half as much, services an eighth. The tenth service is the cluster's DNS.
fn beside(cidr: &str) -> Option<[(&'static str, String); 3]> {
    let network = Range::read(cidr)?;
    let services = network.part(3, 12).to_string();
    let dns = format!("{}.10", services.split('/').next()?.rsplit_once('.')?.0);
    Some([("pods", network.part(1, 2).to_string()), ("services", services), ("dns", dns)])
}

/// A subnet. Outputs: `id`, `name`.
struct Subnet;

impl RestKind for Subnet {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Network/virtualNetworks/subnets",
        version: NETWORK,
        path: "{network}/subnets/{name}",
        // What is in it reaches other networks through the NAT gateway only.
        constants: &[("/properties/defaultOutboundAccess", "false")],
        fields: &[
            Field::plain("cidr", "/properties/addressPrefix"),
            Field::plain("nat", "/properties/natGateway/id").changed(),
            Field::code("delegation", "/properties/delegations", delegations, |one| {
                one["properties"]["delegations"][0]["properties"]["serviceName"].clone()
            }),
        ],
        in_place: &["nat"],
        marks: Marks::Part,
        ..Table::USUAL
    };
}

fn delegations(service: &Value) -> Value {
    match service {
        Value::Null => Value::Null,
        service => json!([{ "name": "delegation", "properties": { "serviceName": service } }]),
    }
}

/// A peering, from one network to another one: traffic flows once there is one in each direction. Outputs: `id`, `name`.
struct Peering;

#[async_trait]
impl RestKind for Peering {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Network/virtualNetworks/virtualNetworkPeerings",
        version: NETWORK,
        path: "{network}/virtualNetworkPeerings/{name}",
        constants: &[
            ("/properties/allowVirtualNetworkAccess", "true"),
            ("/properties/allowForwardedTraffic", "false"),
            ("/properties/allowGatewayTransit", "false"),
            ("/properties/useRemoteGateways", "false"),
        ],
        fields: &[
            Field::plain("remote", "/properties/remoteVirtualNetwork/id"),
            Field::seen("connected", |one| json!(one["properties"]["peeringState"] != "Disconnected")),
        ],
        in_place: &["connected"],
        marks: Marks::Part,
        ..Table::USUAL
    };

    /// The first of two stays initiated until the other one is there.
    fn state(document: &Value) -> State {
        match document["properties"]["peeringState"].as_str() {
            Some("Disconnected") => State::Degraded("the peering from the other network is gone".to_owned()),
            _ => state(Self::TABLE, document),
        }
    }

    /// Creates a peering. The one from the other network refuses it if it is left from an earlier pair: it is initiated again, and the
    /// create is repeated (hashicorp/terraform-provider-azurerm#14051).
    async fn send(api: &Api, id: &str, document: Value) -> Result<Reply> {
        let name = if last(id) == TO_REPLICA { TO_SOURCE } else { TO_REPLICA };
        let remote = document["properties"]["remoteVirtualNetwork"]["id"].as_str().unwrap_or_default();
        let back = format!("{remote}/virtualNetworkPeerings/{name}");
        let is_refused = |error: &Error| error.code.as_deref() == Some("RemotePeeringIsDisconnected");
        match api.send(Call::new(Method::PUT, id, NETWORK).body(document)).await {
            Err(error) if is_refused(&error) => match initiate(api, &back).await {
                Ok(_) => Err(Error { kind: ErrorKind::Conflict, refused: false, ..error }),
                // Others gave it another name.
                Err(missing) if missing.kind == ErrorKind::NotFound => Err(error),
                Err(other) => Err(other),
            },
            sent => sent,
        }
    }

    async fn put(api: &Api, id: &str, _wanted: &Value, _field: &str) -> Result<Option<Pending>> {
        initiate(api, id).await
    }
}

/// Initiates a peering again: it is sent without its state.
async fn initiate(api: &Api, id: &str) -> Result<Option<Pending>> {
    let edit = |document: &mut Value| {
        if let Some(properties) = document["properties"].as_object_mut() {
            properties.retain(|member, _| !["peeringState", "peeringSyncLevel"].contains(&member.as_str()));
        }
    };
    rewrite::<Peering>(api, id, edit).await
}

/// A public address. Outputs: `id`, `name`, `ip`.
struct Address;

impl RestKind for Address {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Network/publicIPAddresses",
        version: NETWORK,
        path: "{group}/providers/Microsoft.Network/publicIPAddresses/{name}",
        constants: &[
            ("/sku/name", "\"Standard\""),
            ("/properties/publicIPAllocationMethod", "\"Static\""),
            ("/properties/publicIPAddressVersion", "\"IPv4\""),
        ],
        fields: &[LOCATION],
        outputs: &[("ip", "/properties/ipAddress")],
        ..Table::USUAL
    };
}

/// A NAT gateway with one address. Outputs: `id`, `name`.
struct Nat;

impl RestKind for Nat {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Network/natGateways",
        version: NETWORK,
        path: "{group}/providers/Microsoft.Network/natGateways/{name}",
        constants: &[("/sku/name", "\"Standard\"")],
        fields: &[
            LOCATION,
            Field::code(
                "address",
                "/properties/publicIpAddresses",
                |id| json!([{ "id": id }]),
                |one| one["properties"]["publicIpAddresses"][0]["id"].clone(),
            )
            .changed(),
        ],
        in_place: &["address"],
        ..Table::USUAL
    };
}

/// A private DNS zone. Outputs: `id`, `name`.
struct Zone;

impl RestKind for Zone {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Network/privateDnsZones",
        version: DNS,
        path: "{group}/providers/Microsoft.Network/privateDnsZones/{name}",
        constants: &[("/location", "\"global\"")],
        update: Update::Patch,
        ..Table::USUAL
    };
}

/// The link of a zone with a network, in which its names are resolved. Outputs: `id`, `name`.
struct Link;

impl RestKind for Link {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Network/privateDnsZones/virtualNetworkLinks",
        version: DNS,
        path: "{zone}/virtualNetworkLinks/{name}",
        constants: &[("/location", "\"global\""), ("/properties/registrationEnabled", "false")],
        fields: &[Field::plain("network", "/properties/virtualNetwork/id")],
        update: Update::Patch,
        ..Table::USUAL
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_and_services_are_beside_the_network() {
        let found = beside("10.42.0.0/17").unwrap().map(|(_, value)| value);
        assert_eq!(found, ["10.42.128.0/18", "10.42.192.0/20", "10.42.192.10"]);
    }

    #[test]
    fn members_are_read_as_they_are_written() {
        for wanted in [Value::Null, json!("Microsoft.DBforPostgreSQL/flexibleServers")] {
            let document = json!({ "properties": { "delegations": delegations(&wanted) } });
            assert_eq!(Subnet::TABLE.field("delegation").unwrap().read(&document), wanted);
        }
    }
}
