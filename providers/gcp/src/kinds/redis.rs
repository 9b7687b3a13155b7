//! Memorystore for Redis: instances (<https://cloud.google.com/memorystore/docs/redis/reference/rest/v1/projects.locations.instances>).

use async_trait::async_trait;
use serde_json::{Value, json};
use textnlp_provider::{
    Declare, Effect, FieldChange, Identity, Kind, Need, Outputs, Pricing, Recorded, Result, SecretName, SecretRef,
    SecretVersion, Spec, Wanted,
};

use super::{create, delete, put, read};
use crate::api::Api;
use crate::declare::{ID, NAME, Terraform};
use crate::operation::Family;
use crate::row::{Create, Field, Labelling, Marks, Rest, RestKind, States, Table, Update, Word};
use crate::service::Service;
use crate::table::{MINUTE, Row, kind};

pub(crate) const REDIS: &str = "gcp.redis-instance";
/// The start of the name of an AUTH string among the secrets; the id of the instance follows.
pub(crate) const AUTH_STRING: &str = "redis.googleapis.com/";
/// The mode without an address for reads: an instance has one replica, or none in the tier BASIC.
pub(crate) const NO_READ_REPLICAS: &str = "READ_REPLICAS_DISABLED";

/// Why an instance is not connected to the network by another component, and what to do.
const MOVED: &str = "a managed database and a managed cache share the connection to the network, which moves with `database.hosting` and cannot be removed while the cache has an address in it. Write `cache: { kind: memory }` in place of the managed cache, with the old `database.hosting`, and run `up`; then change `database.hosting`, and run `up`; then write the managed cache again. Only vectors are lost";

pub(crate) static ROWS: &[Row] = &[Row {
    kind: Kind {
        deadline: MINUTE.saturating_mul(60),
        typical: Some(MINUTE.saturating_mul(8)),
        pricing: Pricing::BySpec,
        permissions: &[
            create("redis.instances.create"),
            delete("redis.instances.delete"),
            read("redis.instances.get"),
            read("redis.instances.getAuthString"),
            read("redis.instances.list"),
            put("redis.instances.update"),
            read("redis.operations.get"),
        ],
        terraform: &[("google_redis_instance", "id")],
        ..kind(REDIS, "a Redis with its replicas", Identity::Named)
    },
    service: "redis",
    resource: &Rest::<Instance>::kind(),
    refused: &[],
}];

/// An instance. Outputs: `id`, `name`, `host`, `port`, `ca_pem`, `url`: the address without the AUTH string, `login`: the reference to
/// that.
struct Instance;

#[async_trait]
impl RestKind for Instance {
    const TABLE: &'static Table = &Table {
        service: Service::Redis,
        path: "projects/{project}/locations/{location}/instances/{name}",
        collection: "projects/{project}/locations/{location}/instances",
        items: "instances",
        create: Create::Query("instanceId"),
        // A lost vector is computed again.
        constants: &[("/persistenceConfig/persistenceMode", "\"DISABLED\"")],
        fields: &[
            Field::plain("tier", "/tier"),
            Field::plain("version", "/redisVersion"),
            Field::plain("memory_gb", "/memorySizeGb").patched(),
            Field { absent: "0", ..Field::plain("replicas", "/replicaCount") }.patched(),
            Field { absent: "\"READ_REPLICAS_DISABLED\"", ..Field::plain("read_replicas", "/readReplicasMode") },
            Field::link("network", "/authorizedNetwork"),
            Field::plain("connection", "/connectMode"),
            // An answer has the addresses that were taken of it.
            Field::plain("range", "/reservedIpRange").seen_at(""),
            // Google makes another AUTH string when it is switched on again, which the reference to it does not tell
            // (<https://cloud.google.com/memorystore/docs/redis/about-redis-auth>).
            Field::flag("auth", "/authEnabled"),
            Field { absent: "\"DISABLED\"", ..Field::plain("tls", "/transitEncryptionMode") },
        ],
        in_place: &["memory_gb", "replicas"],
        update: Update::Mask,
        marks: Marks::Labels("/labels", Labelling::Patch),
        family: Family::LongRunning,
        states: Some(States {
            member: "/state",
            words: &[
                ("READY", Word::Ready),
                ("CREATING", Word::Pending),
                ("UPDATING", Word::Pending),
                ("MAINTENANCE", Word::Pending),
                ("IMPORTING", Word::Pending),
                ("FAILING_OVER", Word::Pending),
                ("REPAIRING", Word::Degraded),
                ("DELETING", Word::Deleting),
            ],
            reason: "/statusMessage",
        }),
        outputs: &[("host", "/host"), ("port", "/port")],
        terraform: Terraform {
            kind: "google_redis_instance",
            named: &[("project", "/project"), ("location", "/region"), ("name", "/name")],
            outputs: &[ID, NAME],
            settings: &[("memory_gb", "/memory_size_gb")],
            ..Terraform::USUAL
        },
        ..Table::USUAL
    };

    fn outputs(id: &str, document: &Value, outputs: &mut Outputs) {
        let certificates = document["serverCaCerts"].as_array().into_iter().flatten();
        let pem: Vec<&str> = certificates.filter_map(|one| one["cert"].as_str()).map(str::trim_end).collect();
        if !pem.is_empty() {
            outputs.insert("ca_pem".to_owned(), json!(format!("{}\n", pem.join("\n"))));
        }
        if let (Some(host), Some(port)) = (document["host"].as_str(), document["port"].as_u64()) {
            outputs.insert("url".to_owned(), json!(format!("rediss://{host}:{port}")));
        }
        // Another instance of the same name has another AUTH string.
        if let Some(created) = document["createTime"].as_str() {
            let (name, version) = (SecretName(format!("{AUTH_STRING}{id}")), SecretVersion(created.to_owned()));
            outputs.insert("login".to_owned(), json!(SecretRef { name, version }));
        }
    }

    /// What was reserved is not shown.
    fn fits(field: &str, _wanted: &Value, seen: &Value) -> bool {
        field == "range" && seen.is_null()
    }

    async fn prepare(_api: &Api, _spec: &Spec, document: &mut Value, _alternative: usize) -> Result<()> {
        leave_replicas(document);
        Ok(())
    }

    fn declared(_api: Option<&Api>, _request: &Declare<'_>, document: &mut Value) -> Result<(), String> {
        leave_replicas(document);
        Ok(())
    }
}

/// Leaves the number of replicas to the tier where there are no read replicas: Google refuses even the only number that is valid then
/// (hashicorp/terraform-provider-google#14734).
fn leave_replicas(document: &mut Value) {
    let is_left = document["readReplicasMode"] == NO_READ_REPLICAS;
    if let Some(members) = document.as_object_mut().filter(|_| is_left) {
        members.retain(|name, _| name != "replicaCount");
    }
}

/// The refusal of an instance whose connection to the network another component would have: it has the same name and range there, and
/// the old one cannot be removed before.
pub(crate) fn moved(wanted: &Wanted, recorded: &Recorded) -> Option<FieldChange> {
    let (before, after) = (connection(&recorded.needs)?, connection(&wanted.needs)?);
    (wanted.kind.as_str() == REDIS && before != after).then(|| FieldChange {
        field: "connection".to_owned(),
        before: Some(json!(before)),
        after: Some(json!(after)),
        effect: Effect::Refuse(MOVED.to_owned()),
    })
}

/// The connection of private services among the needs of an instance.
fn connection(needs: &[Need]) -> Option<&str> {
    needs.iter().map(|need| need.on.as_str()).find(|id| id.ends_with("/connection"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_have_the_address_all_authorities_and_a_reference_to_the_auth_string() {
        let id = "projects/p/locations/l/instances/i";
        let document = json!({
            "host": "10.0.0.3", "port": 6378, "createTime": "2026-11-30T00:00:00Z",
            "serverCaCerts": [{ "cert": "A\n" }, { "cert": "B" }],
        });
        let mut outputs = Outputs::new();
        Instance::outputs(id, &document, &mut outputs);
        assert_eq!(outputs["url"], "rediss://10.0.0.3:6378");
        assert_eq!(outputs["ca_pem"], "A\nB\n");
        let login = json!({ "$secret": format!("{AUTH_STRING}{id}"), "version": "2026-11-30T00:00:00Z" });
        assert_eq!(outputs["login"], login);
    }
}
