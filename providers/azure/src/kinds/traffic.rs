//! Sites behind one name: a Traffic Manager profile, whose endpoints are the sites
//! (<https://learn.microsoft.com/rest/api/trafficmanager/endpoints/create-or-update>).
//!
//! The resource of a site is its endpoint, so that no site waits for another. The create of the first one makes the profile, and the
//! deletion of the last one deletes it. Endpoints have no tags: those of the profile say whose it is, and which resource each endpoint is.
//! Traffic Manager has no etags, and parallel writes of one profile fail (hashicorp/terraform-provider-azurerm#29191): this process sends
//! one at a time, and the lock of the state excludes other processes.

use std::collections::BTreeSet;

use async_trait::async_trait;
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_cloud::ObservedObject;
use textnlp_cloud::document::last;
use textnlp_cloud::tags::{ENVIRONMENT, LINEAGE, OPERATION, RESOURCE, Tags};
use textnlp_provider::{Error, ErrorKind, Identity, Kind, Permission, Pricing, Result, Spec, Verb};
use tokio::sync::Mutex;

use super::{delete, put, read};
use crate::api::{Api, Call, Reply, tags_at};
use crate::operation::Pending;
use crate::row::{Field, Marks, Rest, RestKind, SECOND_READS, Table, invalid};
use crate::table::{Row, kind};

const VERSION: &str = "2022-04-01";
/// Where a document has the profile of the endpoint, and its tags: no answer of Azure has these members.
const PROFILE: &str = "profile";
const MARKS: &str = "/marks";
/// The start of the tag of a profile that says which resource an endpoint is.
const SITE: &str = "textnlp-site-";

/// Whose turn it is to write, and the profiles that this process made.
static TURN: Mutex<BTreeSet<String>> = Mutex::const_new(BTreeSet::new());

pub(crate) static ROWS: &[Row] = &[Row {
    kind: Kind {
        pricing: Pricing::BySpec,
        permissions: &[
            read("Microsoft.Network/trafficManagerProfiles/read"),
            // Its tags name the sites.
            Permission::on(
                &[Verb::Create, Verb::Update, Verb::Delete],
                "Microsoft.Network/trafficManagerProfiles/write",
            ),
            delete("Microsoft.Network/trafficManagerProfiles/delete"),
            read("Microsoft.Network/trafficManagerProfiles/externalEndpoints/read"),
            put("Microsoft.Network/trafficManagerProfiles/externalEndpoints/write"),
            delete("Microsoft.Network/trafficManagerProfiles/externalEndpoints/delete"),
        ],
        ..kind("azure.traffic-site", "a site in a Traffic Manager profile", Identity::Part)
    },
    service: "Microsoft.Network",
    resource: &Rest::<Site>::kind(),
    refused: &[],
}];

/// A site in a profile. Outputs: `id`, `name`.
struct Site;

#[async_trait]
impl RestKind for Site {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Network/trafficManagerProfiles/externalEndpoints",
        version: VERSION,
        path: "{profile}/externalEndpoints/{name}",
        fields: &[
            Field::plain("value", "/properties/target"),
            Field::plain("weight", "/properties/weight"),
            Field::plain("priority", "/properties/priority"),
            Field::plain("status", "/properties/endpointStatus"),
            Field::plain("method", "/profile/trafficRoutingMethod"),
            Field::plain("dns", "/profile/dnsConfig/relativeName"),
            Field::plain("ttl", "/profile/dnsConfig/ttl"),
            Field::code("probe", "/profile/monitorConfig", probe, probed),
        ],
        in_place: &["method", "value", "weight", "priority", "status", "ttl", "probe"],
        marks: Marks::Beside(MARKS),
        undeclared: Some("it is a part of the profile of several sites, which is not exported"),
        ..Table::USUAL
    };

    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        let Some(mut endpoint) = api.find(Call::get(id, VERSION)).await? else { return Ok(None) };
        let Some(profile) = profile(api, profile_of(id)).await? else {
            return Err(Error::new(ErrorKind::Unavailable, "read", id).because("its profile is not shown yet"));
        };
        endpoint["marks"] = json!(marks(&profile, last(id)));
        endpoint[PROFILE] = profile["properties"].clone();
        Ok(Some(endpoint))
    }

    async fn send(api: &Api, id: &str, document: Value) -> Result<Reply> {
        let mut made = TURN.lock().await;
        let wanted = tags_at(&document, MARKS);
        let (profile, site) = (profile_of(id), last(id));
        let mut tags: Tags = [LINEAGE, ENVIRONMENT].map(|key| (key.to_owned(), value(&wanted, key))).into();
        tags.insert(mark(site), format!("{} {}", value(&wanted, RESOURCE), value(&wanted, OPERATION)));
        let Some(found) = self::profile(api, profile).await? else {
            if made.contains(profile) {
                return Err(Error::new(ErrorKind::Conflict, "create", site).because("its profile is not shown yet"));
            }
            // Both in one write: a profile without the endpoint would belong to no resource.
            let endpoint = json!({ "name": site, "type": Self::TABLE.arm, "properties": document["properties"] });
            let mut properties = document[PROFILE].clone();
            (properties["profileStatus"], properties["endpoints"]) = ("Enabled".into(), json!([endpoint]));
            let body = json!({ "location": "global", "tags": tags, "properties": properties });
            let sent = api.send(Call::new(Method::PUT, profile, VERSION).body(body).new_only()).await;
            // A request that was lost is sent again, and refused (`If-None-Match`) where only its answer was lost.
            if sent.is_ok() {
                made.insert(profile.to_owned());
            }
            return sent.map_err(|error| match error.code.as_deref() {
                // One that reads do not show yet is read again.
                Some("PreconditionFailed") => Error { kind: ErrorKind::Conflict, refused: false, ..error },
                _ => error,
            });
        };
        let before = tags_at(&found, "/tags");
        if before.get(LINEAGE) != wanted.get(LINEAGE) {
            let why = format!("the Traffic Manager profile {} is not of this deployment", last(profile));
            return Err(invalid("create", site, &why).hint("remove it, or choose another `traffic.domain`"));
        }
        let all: Tags = before.clone().into_iter().chain(tags).collect();
        if all != before {
            retag(api, profile, &all).await?;
        }
        let body = json!({ "properties": document["properties"] });
        api.send(Call::new(Method::PUT, id, VERSION).body(body)).await
    }

    async fn put(api: &Api, id: &str, wanted: &Value, field: &str) -> Result<Option<Pending>> {
        let _turn = TURN.lock().await;
        let profile = profile_of(id);
        if let Some(member) = Self::TABLE.field(field).and_then(|row| row.member.strip_prefix("/properties/")) {
            let body = json!({ "properties": { member: wanted } });
            return Ok(api.send(Call::new(Method::PATCH, id, VERSION).body(body)).await?.pending);
        }
        let properties = match field {
            "method" => json!({ "trafficRoutingMethod": wanted }),
            "probe" => json!({ "monitorConfig": probe(wanted) }),
            "ttl" => {
                let found = api.send(Call::get(profile, VERSION)).await?.body;
                let name = &found["properties"]["dnsConfig"]["relativeName"];
                json!({ "dnsConfig": { "relativeName": name, "ttl": wanted } })
            }
            _ => return Err(invalid("change", id, &format!("`{field}` does not change in place"))),
        };
        let call = Call::new(Method::PATCH, profile, VERSION).body(json!({ "properties": properties }));
        Ok(api.send(call).await?.pending)
    }

    /// The profile of the last site goes with it. One that has endpoints of others stays.
    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<Pending>> {
        let mut made = TURN.lock().await;
        let (profile, site) = (profile_of(&seen.id), last(&seen.id));
        let Some(found) = self::profile(api, profile).await? else { return Ok(None) };
        if marks(&found, site) != seen.tags {
            let error = Error::new(ErrorKind::Conflict, "delete", seen.id.clone());
            return Err(error.because("another client changed its owner"));
        }
        let endpoints = found["properties"]["endpoints"].as_array().into_iter().flatten();
        let is_other = |one: &Value| !one["name"].as_str().is_some_and(|name| name.eq_ignore_ascii_case(site));
        let mut has_others = endpoints.into_iter().any(is_other);
        let mut tags = tags_at(&found, "/tags");
        tags.remove(&mark(site));
        // A site that was just added may be in its tags only.
        for other in tags.keys().filter_map(|key| key.strip_prefix(SITE)) {
            let id = format!("{profile}/externalEndpoints/{other}");
            has_others = has_others || api.find(Call::get(id, VERSION)).await?.is_some();
        }
        if !has_others {
            let pending = api.send(Call::new(Method::DELETE, profile, VERSION)).await?.pending;
            made.remove(profile);
            return Ok(pending);
        }
        let pending = api.send(Call::new(Method::DELETE, &seen.id, VERSION)).await?.pending;
        retag(api, profile, &tags).await?;
        Ok(pending)
    }
}

/// The tag of a profile that says which resource the endpoint of a site is.
fn mark(site: &str) -> String {
    format!("{SITE}{site}")
}

/// A profile. An answer that it does not exist is repeated: a new one is not in all answers yet.
async fn profile(api: &Api, id: &str) -> Result<Option<Value>> {
    for _ in 0..=SECOND_READS {
        let found = api.find(Call::get(id, VERSION)).await?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The profile of an endpoint.
fn profile_of(id: &str) -> &str {
    let lower = id.to_ascii_lowercase();
    lower.rfind("/externalendpoints/").map_or(id, |at| &id[..at])
}

async fn retag(api: &Api, profile: &str, tags: &Tags) -> Result<Reply> {
    let call = Call::new(Method::PATCH, profile, VERSION).body(json!({ "tags": tags }));
    api.send(call.saying("set tags of", last(profile))).await
}

fn value(tags: &Tags, key: &str) -> String {
    tags.get(key).cloned().unwrap_or_default()
}

/// The tags of an endpoint, from those of its profile; none where they name no resource for it.
fn marks(profile: &Value, site: &str) -> Tags {
    let tags = tags_at(profile, "/tags");
    let of_site = tags.get(&mark(site)).and_then(|mark| mark.split_once(' '));
    let Some((resource, operation)) = of_site else { return Tags::new() };
    let named = [(RESOURCE, resource), (OPERATION, operation)].map(|(key, value)| (key.to_owned(), value.to_owned()));
    let shared = [LINEAGE, ENVIRONMENT].into_iter().filter_map(|key| Some((key.to_owned(), tags.get(key)?.clone())));
    shared.chain(named.into_iter().filter(|(_, value)| !value.is_empty())).collect()
}

fn probe(wanted: &Value) -> Value {
    json!({
        "protocol": wanted["protocol"],
        "port": wanted["port"],
        "path": wanted["path"],
        "intervalInSeconds": wanted["interval"],
        "timeoutInSeconds": wanted["timeout"],
        "toleratedNumberOfFailures": wanted["tolerated"],
        "customHeaders": [{ "name": "host", "value": wanted["host"] }],
    })
}

fn probed(document: &Value) -> Value {
    let found = &document[PROFILE]["monitorConfig"];
    let headers = found["customHeaders"].as_array().into_iter().flatten();
    let is_host = |one: &&Value| one["name"].as_str().is_some_and(|name| name.eq_ignore_ascii_case("host"));
    json!({
        "protocol": found["protocol"],
        "port": found["port"],
        "path": found["path"],
        "interval": found["intervalInSeconds"],
        "timeout": found["timeoutInSeconds"],
        "tolerated": found["toleratedNumberOfFailures"],
        "host": headers.into_iter().find(is_host).map_or(Value::Null, |one| one["value"].clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_read_as_it_is_written() {
        let wanted = json!({ "protocol": "HTTPS", "port": 8443, "path": "/health", "interval": 10, "timeout": 5,
            "tolerated": 2, "host": "text.example.com" });
        assert_eq!(probed(&json!({ "profile": { "monitorConfig": probe(&wanted) } })), wanted);
    }

    #[test]
    fn tags_of_a_profile_name_the_resource_of_each_site() {
        let tags =
            json!({ LINEAGE: "l", ENVIRONMENT: "staging", format!("{SITE}a"): "a/gateway/traffic t1", "team": "x" });
        let found = marks(&json!({ "tags": tags }), "a");
        assert_eq!((value(&found, RESOURCE).as_str(), value(&found, OPERATION).as_str()), ("a/gateway/traffic", "t1"));
        assert_eq!((value(&found, LINEAGE).as_str(), found.len()), ("l", 4));
        assert_eq!(marks(&json!({ "tags": tags }), "b"), Tags::new());
        let id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/trafficManagerProfiles/p";
        assert_eq!(profile_of(&format!("{id}/externalEndpoints/a")), id);
    }
}
