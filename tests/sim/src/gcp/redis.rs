//! Memorystore for Redis: instances. No Redis runs behind their addresses.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};

use super::cloud::{Cloud, Effect, Family, Object, put};
use super::kinds::{KIND, Kind, begin, read, typed};
use super::problem::Problem;
use super::{Call, Handler, errors};
use crate::{Behaviour, Source};

/// The longest name of an instance.
const MOST: usize = 40;
/// How long a creation, a change and a deletion take.
const CREATES: Duration = Duration::from_secs(300);
const CHANGES: Duration = Duration::from_secs(120);
/// The ports without and with TLS.
const PORTS: (u16, u16) = (6379, 6378);
/// The authority of every instance.
const AUTHORITY: &str = include_str!("redis_ca.pem");
/// Members that an update changes: the description of the method, and `authEnabled`, which the client of gcloud changes.
const CHANGEABLE: [&str; 7] =
    ["displayName", "labels", "memorySizeGb", "redisConfigs", "replicaCount", "authEnabled", "maintenancePolicy"];
/// The mode in which an instance has more than one replica.
const READS: &str = "READ_REPLICAS_ENABLED";

pub(crate) const KINDS: &[Kind] = &[Kind {
    methods: "redis.projects.locations.instances",
    verbs: &["get", "list", "delete"],
    collection: ("redis", "instances"),
    items: "instances",
    family: Some(Family::LongRunning),
    message: ("google.cloud.redis.v1.Instance", "google.cloud.redis.v1.OperationMetadata"),
    seconds: (300, 120, 120),
    deleted: |cloud, _, body| super::networking::hold(cloud, body["authorizedNetwork"].as_str().unwrap_or_default()),
    ..KIND
}];

pub(crate) const HANDLERS: &[(&str, Handler)] = &[
    ("redis.projects.locations.instances.create", create),
    ("redis.projects.locations.instances.patch", patch),
    ("redis.projects.locations.instances.getAuthString", auth_string),
    ("redis.projects.locations.operations.get", super::kinds::operation),
];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "the network is one of the project of the instance",
        Source::Report("terraform-google-modules/terraform-google-memorystore#163"),
    ),
    rule(
        "a number of replicas needs READ_REPLICAS_ENABLED, in a creation and in a change",
        Source::Report("hashicorp/terraform-provider-google#14734"),
    ),
    rule(
        "an instance with read replicas has 5 GiB at least, and is not in the tier BASIC",
        Source::Documentation("https://cloud.google.com/memorystore/docs/redis/read-replicas-overview"),
    ),
    rule("an update has one member in its mask", Source::Report("GoogleCloudPlatform/k8s-config-connector#11675")),
    rule(
        "a private address needs the service connection of the network",
        Source::Documentation("https://cloud.google.com/memorystore/docs/redis/networking"),
    ),
    rule(
        "after the last instance the producer holds the connection",
        Source::Report("hashicorp/terraform-provider-google#16275"),
    ),
    rule(
        "with TLS the port is 6378, and the certificate is of an authority of the instance",
        Source::Documentation("https://cloud.google.com/memorystore/docs/redis/in-transit-encryption"),
    ),
    rule("Google generates the AUTH string, and no instance shows it", Source::Model),
    rule(
        "AUTH that is switched on again has another AUTH string",
        Source::Documentation("https://cloud.google.com/memorystore/docs/redis/about-redis-auth"),
    ),
    rule("a name has 40 characters at most", Source::Model),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "redis", what, source }
}

fn invalid(message: impl Into<String>) -> Problem {
    Problem::new("INVALID_ARGUMENT", message)
}

impl Cloud {
    /// The AUTH string of an instance of Memorystore, by its key: it follows from the instance, and how often AUTH was switched on.
    #[must_use]
    pub fn auth_string(&self, key: &str) -> Option<String> {
        let object = self.objects.get(key).filter(|object| object.body["authEnabled"] == true)?;
        let name = key.rsplit('/').next().unwrap_or_default();
        let times = self.auth_switched_on.get(key).copied().unwrap_or_default();
        Some(format!("auth-of-{name}-{}-{times}", object.created.as_millisecond()))
    }
}

fn auth_string(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let key = format!("redis/{}", call.name.trim_end_matches("/authString"));
    if cloud.get(&key).is_none() {
        return Err(errors::not_found("redis", &call.name));
    }
    Ok(cloud.auth_string(&key).map_or_else(|| json!({}), |text| json!({ "authString": text })))
}

/// Refuses members that do not go together.
fn check(sent: &Value, body: &Value) -> Result<(), Problem> {
    let is_read = body["readReplicasMode"] == READS;
    let gib = body["memorySizeGb"].as_i64().unwrap_or_default();
    if !(1..=300).contains(&gib) {
        return Err(invalid("Memory size must be between 1 and 300 GB."));
    }
    if sent.get("replicaCount").is_some_and(|count| *count != 0) && !is_read {
        return Err(invalid("Setting replica count requires read-replicas-mode to be \"READ_REPLICAS_ENABLED\""));
    }
    if is_read && (gib < 5 || body["tier"] != "STANDARD_HA") {
        return Err(invalid("Read replicas need the tier STANDARD_HA and at least 5 GB of memory."));
    }
    if !(0..=5).contains(&body["replicaCount"].as_i64().unwrap_or_default()) {
        return Err(invalid("Replica count must be between 1 and 5."));
    }
    Ok(())
}

/// An address for an instance in the ranges of a connection.
fn address(cloud: &Cloud, project: &str, ranges: &[String]) -> Option<String> {
    let taken = u32::try_from(cloud.objects.keys().filter(|key| key.starts_with("redis/")).count()).ok()?;
    ranges.iter().find_map(|range| {
        let reserved = cloud.get(&format!("compute/projects/{project}/global/addresses/{range}"))?;
        let (address, length) = (reserved["address"].as_str()?, reserved["prefixLength"].as_i64()?);
        let (first, size) = super::compute::range(&format!("{address}/{length}"))?;
        // From the end: servers of Cloud SQL are at the beginning.
        let offset = u32::try_from(size).ok()?.checked_sub(8_u32.checked_mul(taken.checked_add(1)?)?)?;
        Some(Ipv4Addr::from(first.checked_add(offset)?.checked_add(3)?).to_string())
    })
}

fn create(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let id = call.parameter("instanceId").unwrap_or_default();
    if !errors::is_name(id, MOST) {
        return Err(invalid(format!("Invalid instance id '{id}': it has at most {MOST} characters.")));
    }
    errors::check_labels(&call.body["labels"])?;
    let name = format!("{}/{id}", call.name);
    let key = format!("redis/{name}");
    if cloud.objects.contains_key(&key) {
        return Err(errors::already_exists("redis", &name));
    }
    let mut body = call.body.clone();
    check(&call.body, &body)?;
    let network = body["authorizedNetwork"].as_str().unwrap_or_default().to_owned();
    if !network.contains(&format!("projects/{}/", call.project)) {
        return Err(invalid("authorized_network must exist in the same project as redis instance"));
    }
    let ranges = super::sql::connection(cloud, &network);
    let host = ranges.and_then(|ranges| address(cloud, &call.project, &ranges));
    let Some(host) = host.filter(|_| body["connectMode"] == "PRIVATE_SERVICE_ACCESS") else {
        let message = format!("Google private service access is not enabled for the network {network}.");
        return Err(Problem::new("FAILED_PRECONDITION", message));
    };
    let is_tls = body["transitEncryptionMode"] == "SERVER_AUTHENTICATION";
    let port = if is_tls { PORTS.1 } else { PORTS.0 };
    let region = call.name.split('/').nth(3).unwrap_or_default();
    let replicas = match body["tier"] == "STANDARD_HA" {
        true if body["readReplicasMode"] == READS => 2,
        is_standard => i32::from(is_standard),
    };
    for (member, value) in [
        ("tier", json!("BASIC")),
        ("redisVersion", json!("REDIS_7_0")),
        ("replicaCount", json!(replicas)),
        ("readReplicasMode", json!("READ_REPLICAS_DISABLED")),
        ("transitEncryptionMode", json!("DISABLED")),
        ("authEnabled", json!(false)),
    ] {
        if body.get(member).is_none() {
            body[member] = value;
        }
    }
    body["name"] = name.into();
    body["state"] = "CREATING".into();
    body["createTime"] = cloud.now().to_string().into();
    body["locationId"] = format!("{region}-b").into();
    body["currentLocationId"] = format!("{region}-b").into();
    let now = cloud.now();
    cloud.objects.insert(key.clone(), Object { body, busy_until: now, is_hidden: false, created: now });
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        let now = cloud.now().to_string();
        let Some(object) = cloud.objects.get_mut(&target) else { return Ok(Value::Null) };
        let body = &mut object.body;
        body["state"] = "READY".into();
        // The addresses that were taken of the range.
        body["reservedIpRange"] = format!("{host}/29").into();
        body["host"] = host.into();
        body["port"] = json!(port);
        if is_tls {
            body["serverCaCerts"] = json!([{ "serialNumber": "0", "cert": AUTHORITY, "createTime": now }]);
        }
        Ok(typed("google.cloud.redis.v1.Instance", body))
    });
    Ok(start(cloud, call, "create", &key, CREATES, effect))
}

fn start(cloud: &mut Cloud, call: &Call<'_>, verb: &str, key: &str, takes: Duration, effect: Effect) -> Value {
    let metadata = typed("google.cloud.redis.v1.OperationMetadata", &json!({}));
    begin(cloud, call, Family::LongRunning, verb, key, takes, metadata, effect)
}

fn patch(cloud: &mut Cloud, call: &Call<'_>) -> Result<Value, Problem> {
    let mut body = read(cloud, call)?;
    let mask = call.parameter("updateMask").unwrap_or_default().to_owned();
    if mask.is_empty() || mask.contains(',') {
        return Err(invalid("exactly 1 update_mask field must be specified per update request"));
    }
    if !CHANGEABLE.contains(&mask.as_str()) {
        return Err(invalid(format!("unsupported update mask: {mask}")));
    }
    if body["state"] != "READY" {
        return Err(Problem::new("FAILED_PRECONDITION", "The instance is not ready."));
    }
    errors::check_labels(&call.body["labels"])?;
    let had_auth = body["authEnabled"] == true;
    put(&mut body, &format!("/{mask}"), call.body[mask.as_str()].clone());
    check(&call.body, &body)?;
    let key = call.key();
    if let Some(object) = cloud.objects.get_mut(&key) {
        object.body["state"] = "UPDATING".into();
    }
    let target = key.clone();
    let effect: Effect = Box::new(move |cloud| {
        if !had_auth && body["authEnabled"] == true {
            *cloud.auth_switched_on.entry(target.clone()).or_default() += 1;
        }
        let Some(object) = cloud.objects.get_mut(&target) else { return Ok(Value::Null) };
        object.body = body;
        Ok(typed("google.cloud.redis.v1.Instance", &object.body))
    });
    Ok(start(cloud, call, "update", &key, CHANGES, effect))
}
