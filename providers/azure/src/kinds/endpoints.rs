//! Private endpoints, and their names in private zones: <https://learn.microsoft.com/rest/api/virtualnetwork/private-endpoints>.

use serde_json::{Value, json};
use textnlp_cloud::State;
use textnlp_provider::{Identity, Kind, Pricing};

use super::network::NETWORK;
use super::{create, delete, put, read};
use crate::row::{Field, LOCATION, Marks, Rest, RestKind, Table, state};
use crate::table::{Row, kind};

const STAYS: &str = "an endpoint stays where it is: remove what it leads to, run `up`, and add it again";
/// Its connection, of which it has one.
const CONNECTIONS: &str = "/properties/privateLinkServiceConnections";

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            pricing: Pricing::BySpec,
            // <https://learn.microsoft.com/azure/private-link/rbac-permissions>.
            permissions: &[
                read("Microsoft.Network/privateEndpoints/read"),
                put("Microsoft.Network/privateEndpoints/write"),
                delete("Microsoft.Network/privateEndpoints/delete"),
                create("Microsoft.Network/virtualNetworks/subnets/join/action"),
                create("Microsoft.Cache/redisEnterprise/PrivateEndpointConnectionsApproval/action"),
            ],
            terraform: &[("azurerm_private_endpoint", "id")],
            ..kind("azure.endpoint", "a private endpoint", Identity::Named)
        },
        service: "Microsoft.Network",
        resource: &Rest::<Endpoint>::kind(),
        refused: &[("subnet", STAYS), ("redis", STAYS), ("location", STAYS)],
    },
    Row {
        kind: Kind {
            permissions: &[
                read("Microsoft.Network/privateEndpoints/privateDnsZoneGroups/read"),
                create("Microsoft.Network/privateEndpoints/privateDnsZoneGroups/write"),
                delete("Microsoft.Network/privateEndpoints/privateDnsZoneGroups/delete"),
                create("Microsoft.Network/privateDnsZones/join/action"),
            ],
            ..kind("azure.endpoint-names", "the names of a private endpoint", Identity::Part)
        },
        service: "Microsoft.Network",
        resource: &Rest::<Names>::kind(),
        refused: &[],
    },
];

/// An address in a subnet that leads to a Redis. Outputs: `id`, `name`.
struct Endpoint;

impl RestKind for Endpoint {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Network/privateEndpoints",
        version: NETWORK,
        path: "{group}/providers/Microsoft.Network/privateEndpoints/{name}",
        fields: &[
            LOCATION,
            Field::plain("subnet", "/properties/subnet/id"),
            Field::code("redis", CONNECTIONS, connections, |one| {
                one["properties"]["privateLinkServiceConnections"][0]["properties"]["privateLinkServiceId"].clone()
            }),
        ],
        ..Table::USUAL
    };

    /// The owner of a service may reject it later.
    fn state(document: &Value) -> State {
        let connection = &document["properties"]["privateLinkServiceConnections"][0]["properties"];
        match connection["privateLinkServiceConnectionState"]["status"].as_str() {
            Some(said @ ("Rejected" | "Disconnected")) => State::Degraded(format!("its connection is {said}")),
            _ => state(Self::TABLE, document),
        }
    }
}

fn connections(redis: &Value) -> Value {
    let properties = json!({ "privateLinkServiceId": redis, "groupIds": ["redisEnterprise"] });
    json!([{ "name": "redis", "properties": properties }])
}

/// The records of an endpoint in a zone, which Azure keeps. Outputs: `id`, `name`.
struct Names;

impl RestKind for Names {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Network/privateEndpoints/privateDnsZoneGroups",
        version: NETWORK,
        path: "{endpoint}/privateDnsZoneGroups/{name}",
        fields: &[Field::code(
            "zone",
            "/properties/privateDnsZoneConfigs",
            |zone| json!([{ "name": "redis", "properties": { "privateDnsZoneId": zone } }]),
            |one| one["properties"]["privateDnsZoneConfigs"][0]["properties"]["privateDnsZoneId"].clone(),
        )],
        marks: Marks::Part,
        ..Table::USUAL
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_as_they_are_written() {
        let (endpoint, names) = (Endpoint::TABLE.field("redis").unwrap(), Names::TABLE.field("zone").unwrap());
        for field in [endpoint, names] {
            let mut document = json!({});
            textnlp_cloud::document::set(&mut document, field.member, field.write(&json!("an id")));
            assert_eq!(field.read(&document), json!("an id"));
        }
    }

    #[test]
    fn a_rejected_connection_is_no_good_one() {
        let of = |status: &str| {
            let properties = json!({ "privateLinkServiceConnectionState": { "status": status } });
            Endpoint::state(
                &json!({ "properties": { "privateLinkServiceConnections": [{ "properties": properties }] } }),
            )
        };
        assert_eq!(of("Approved"), State::Ready);
        assert!(matches!(of("Rejected"), State::Degraded(_)));
    }
}
