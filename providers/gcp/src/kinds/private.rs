//! Private services access, by which Cloud SQL has addresses in a network: a reserved range, and a peering with Google's network
//! (<https://cloud.google.com/vpc/docs/configure-private-services-access>).

use std::collections::BTreeSet;

use async_trait::async_trait;
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_cloud::document::{get, last};
use textnlp_cloud::{ObservedObject, State};
use textnlp_provider::{Error, ErrorKind, Identity, Kind, Result, Spec};

use super::network::DESCRIPTION;
use super::{create, delete, put, read};
use crate::api::{Api, Call};
use crate::declare::{ID, NAME, NO_DESCRIPTION, Terraform};
use crate::labels;
use crate::operation::Family;
use crate::row::{Field, Marks, New, Rest, RestKind, States, Table, Word, part_of, relative};
use crate::service::Service;
use crate::table::{MINUTE, Row, kind};

/// The producer of Google's own services, and the peering with its network.
const PRODUCER: &str = "services/servicenetworking.googleapis.com";
const PEERING: &str = "servicenetworking-googleapis-com";

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            permissions: &[
                create("compute.globalAddresses.createInternal"),
                delete("compute.globalAddresses.deleteInternal"),
                read("compute.globalAddresses.get"),
                read("compute.globalAddresses.list"),
                create("compute.networks.use"),
                read("compute.globalOperations.get"),
            ],
            terraform: &[("google_compute_global_address", "id")],
            ..kind("gcp.address-range", "the range of private services", Identity::Named)
        },
        service: "compute",
        resource: &Rest::<AddressRange>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            // A producer releases its part of a peering long after its last instance.
            deadline: MINUTE.saturating_mul(60),
            permissions: &[
                put("servicenetworking.services.addPeering"),
                read("servicenetworking.services.get"),
                read("servicenetworking.operations.get"),
                delete("servicenetworking.services.deleteConnection"),
                read("compute.networks.get"),
                create("compute.networks.updatePeering"),
                delete("compute.networks.removePeering"),
                delete("cloudsql.instances.list"),
                delete("redis.instances.list"),
                read("resourcemanager.projects.get"),
            ],
            ..kind("gcp.service-connection", "the peering of private services", Identity::Part)
        },
        service: "servicenetworking",
        resource: &Rest::<Connection>::kind(),
        refused: &[],
    },
];

/// A reserved range, whose addresses Google chooses. Outputs: `id`, `name`, `address`.
struct AddressRange;

impl RestKind for AddressRange {
    const TABLE: &'static Table = &Table {
        service: Service::Compute,
        path: "projects/{project}/global/addresses/{name}",
        collection: "projects/{project}/global/addresses",
        constants: &[("/purpose", "\"VPC_PEERING\""), ("/addressType", "\"INTERNAL\"")],
        fields: &[Field::link("network", "/network"), Field::plain("prefix_length", "/prefixLength")],
        // Its labels can be set only after its creation.
        marks: Marks::Description("/description", DESCRIPTION, false),
        family: Family::Compute,
        states: Some(States {
            member: "/status",
            words: &[("RESERVED", Word::Ready), ("IN_USE", Word::Ready), ("RESERVING", Word::Pending)],
            reason: "/status",
        }),
        created: "/creationTimestamp",
        outputs: &[("address", "/address")],
        terraform: Terraform {
            kind: "google_compute_global_address",
            named: &[("project", "/project"), ("name", "/name")],
            moved: &[NO_DESCRIPTION],
            ignored: &["description"],
            outputs: &[ID, NAME],
            ..Terraform::USUAL
        },
        ..Table::USUAL
    };
}

/// A peering, as the network shows it: the producer's record of it may differ (hashicorp/terraform-provider-google#16275,
/// hashicorp/terraform-provider-google#3294). Outputs: `id`, `name`.
struct Connection;

#[async_trait]
impl RestKind for Connection {
    const TABLE: &'static Table = &Table {
        service: Service::ServiceNetworking,
        path: "{network}/connections/{name}",
        collection: "{network}/connections",
        fields: &[Field { absent: "[]", ..Field::plain("ranges", "/reservedPeeringRanges") }],
        in_place: &["ranges"],
        family: Family::LongRunning,
        // A peering whose producer is gone stays inactive.
        deletes_pending: true,
        terraform: Terraform {
            kind: "google_service_networking_connection",
            named: &[("network", "/network")],
            constants: &[("/service", "\"servicenetworking.googleapis.com\"")],
            import: |id, _| format!("{}:servicenetworking.googleapis.com", network_of(id)),
            ..Terraform::USUAL
        },
        ..Table::USUAL
    };

    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        let network = network_of(id);
        let Some(found) = api.find_enabled(Call::get(Service::Compute, network)).await? else { return Ok(None) };
        let Some(peering) = peering(&found) else { return Ok(None) };
        let query = [("network", by_number(api, network).await?)];
        let path = format!("{PRODUCER}/connections");
        let shown = api.list(Service::ServiceNetworking, &path, "connections", &query).await?;
        let shown = shown.into_iter().find(|one| one["peering"] == PEERING);
        // Without its ranges a change would remove those of others. A producer that is gone has none.
        if shown.is_none() && peering["state"] == "ACTIVE" {
            let error = Error::new(ErrorKind::Conflict, "read", "the peering of private services");
            return Err(error.because(format!("`{network}` shows it, and its producer does not list it")));
        }
        let shown = shown.unwrap_or_default();
        let tags = labels::of_description(get(&found, "/description").and_then(Value::as_str).unwrap_or_default());
        let document = json!({ "reservedPeeringRanges": shown["reservedPeeringRanges"], "state": peering["state"] });
        Ok(Some(part_of(&tags, document)))
    }

    fn state(document: &Value) -> State {
        match document["state"].as_str() {
            Some("ACTIVE") | None => State::Ready,
            Some(other) => State::Pending(other.to_ascii_lowercase()),
        }
    }

    async fn send(api: &Api, new: New) -> Result<Option<String>> {
        let network = by_number(api, network_of(&new.id)).await?;
        let body = json!({ "network": network, "reservedPeeringRanges": new.document["reservedPeeringRanges"] });
        let call = Call::post(Service::ServiceNetworking, format!("{PRODUCER}/connections"), body);
        let answer = api.send(call.saying("create", "the peering of private services")).await?;
        Ok(Family::LongRunning.started(api, &new.id, &answer))
    }

    /// Ranges of others in the network are theirs.
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        field == "ranges" && names(wanted).is_subset(&names(seen))
    }

    /// Adds the missing ranges: servers have addresses in the others.
    async fn put(api: &Api, id: &str, wanted: &Value, field: &str) -> Result<Option<String>> {
        if field != "ranges" {
            return Err(crate::row::invalid("change", id, &format!("`{field}` does not change in place")));
        }
        let seen = Self::fetch(api, id).await?.unwrap_or_default();
        let mut ranges = names(&seen["reservedPeeringRanges"]);
        ranges.append(&mut names(wanted));
        let network = by_number(api, network_of(id)).await?;
        let call = Call::new(Service::ServiceNetworking, Method::PATCH, format!("{PRODUCER}/connections/{PEERING}"))
            .query("updateMask", "reservedPeeringRanges")
            .query("force", "true")
            .body(json!({ "network": network, "reservedPeeringRanges": ranges }));
        let answer = api.send(call.saying("change", "the peering of private services")).await?;
        Ok(Family::LongRunning.started(api, id, &answer))
    }

    /// The producer may hold the connection for days after its last instance. The peering itself can be removed, as the console
    /// does; the producer finds out afterwards (hashicorp/terraform-provider-google#16275).
    async fn change(api: &Api, id: &str, change: &str) -> Result<State> {
        if change.starts_with("projects/") {
            return Family::Compute.state(api, Service::Compute, change).await;
        }
        let state = Family::LongRunning.state(api, Service::ServiceNetworking, change).await?;
        let is_held = matches!(&state, State::Failed { why, .. } if why.contains("still using"));
        if !is_held {
            return Ok(state);
        }
        let network = network_of(id);
        let found = api.find(Call::get(Service::Compute, network)).await?.unwrap_or_default();
        if peering(&found).is_none() {
            return Ok(State::Ready);
        }
        no_external_range(api, network, &found).await?;
        no_server(api, network).await?;
        remove_peering(api, network).await?;
        Ok(State::Pending("removing the peering".to_owned()))
    }

    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<String>> {
        // The producer of an inactive one has deleted its network, so that it has no connection to delete.
        if matches!(seen.state, State::Pending(_)) {
            return remove_peering(api, network_of(&seen.id)).await;
        }
        let network = by_number(api, network_of(&seen.id)).await?;
        let path = format!("{PRODUCER}/connections/{PEERING}");
        let call = Call::post(Service::ServiceNetworking, path, json!({ "consumerNetwork": network }));
        let answer = api.send(call.saying("delete", "the peering of private services")).await?;
        Ok(Family::LongRunning.started(api, &seen.id, &answer))
    }
}

/// The peering that a network shows.
fn peering(network: &Value) -> Option<&Value> {
    network["peerings"].as_array()?.iter().find(|one| one["name"] == PEERING)
}

/// Whether servers of Cloud SQL can have addresses in a network.
pub(crate) fn is_connected(network: &Value) -> bool {
    peering(network).is_some_and(|one| one["state"] == "ACTIVE")
}

/// Removes the peering from a network, and returns the operation; `None` if it is gone or is being removed.
async fn remove_peering(api: &Api, network: &str) -> Result<Option<String>> {
    let call = Call::post(Service::Compute, format!("{network}/removePeering"), json!({ "name": PEERING }));
    let error = match api.send(call.saying("remove", "the peering of private services")).await {
        Ok(answer) => return Ok(Family::Compute.started(api, network, &answer)),
        Err(error) if error.kind == ErrorKind::Conflict => return Ok(None),
        Err(error) => error,
    };
    let found = api.find(Call::get(Service::Compute, network)).await?.unwrap_or_default();
    if peering(&found).is_none() { Ok(None) } else { Err(error) }
}

/// Refuses to cut off what has addresses in ranges that this deployment did not reserve. `found` is the network's document.
async fn no_external_range(api: &Api, network: &str, found: &Value) -> Result<()> {
    let lineage = |document: &Value| {
        let description = get(document, "/description").and_then(Value::as_str).unwrap_or_default();
        textnlp_cloud::tags::lineage(&labels::of_description(description))
    };
    let query = [("network", by_number(api, network).await?)];
    let shown = api.list(Service::ServiceNetworking, &format!("{PRODUCER}/connections"), "connections", &query).await?;
    let shown = shown.into_iter().find(|one| one["peering"] == PEERING).unwrap_or_default();
    for name in names(&shown["reservedPeeringRanges"]) {
        let path = api.path(&format!("projects/{{project}}/global/addresses/{name}"));
        // Nothing can be in a range whose address is deleted.
        let Some(range) = api.find(Call::get(Service::Compute, path)).await? else { continue };
        if lineage(&range).is_none() || lineage(&range) != lineage(found) {
            let error = Error::new(ErrorKind::Conflict, "remove", "the peering of private services");
            return Err(error.because(format!("the external range `{name}` is a part of it")));
        }
    }
    Ok(())
}

/// Refuses to cut servers off that have addresses in a network.
async fn no_server(api: &Api, network: &str) -> Result<()> {
    let servers = api.list(Service::Sql, &api.path("projects/{project}/instances"), "items", &[]).await?;
    let address = |one: &Value| {
        let of = get(one, "/settings/ipConfiguration/privateNetwork")?.as_str()?;
        (relative(of) == network).then(|| one["name"].as_str().unwrap_or_default().to_owned())
    };
    if let Some(server) = servers.iter().find_map(address) {
        let error = Error::new(ErrorKind::Conflict, "remove", "the peering of private services");
        return Err(error.because(format!("the server `{server}` of Cloud SQL has an address in `{network}`")));
    }
    let path = api.path("projects/{project}/locations/-/instances");
    let instances = api.list(Service::Redis, &path, "instances", &[]).await?;
    let is_there = |one: &&Value| one["authorizedNetwork"].as_str().is_some_and(|of| relative(of) == network);
    let Some(instance) = instances.iter().find(is_there) else { return Ok(()) };
    let name = last(instance["name"].as_str().unwrap_or_default());
    let error = Error::new(ErrorKind::Conflict, "remove", "the peering of private services");
    Err(error.because(format!("the instance `{name}` of Memorystore has an address in `{network}`")))
}

fn names(list: &Value) -> BTreeSet<String> {
    list.as_array().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

fn network_of(id: &str) -> &str {
    id.split_once("/connections/").map_or(id, |(network, _)| network)
}

/// A network with the number of its project, as producers name it.
async fn by_number(api: &Api, network: &str) -> Result<String> {
    Ok(format!("projects/{}/global/networks/{}", api.project_number().await?, last(network)))
}
