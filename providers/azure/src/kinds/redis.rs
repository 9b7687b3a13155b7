//! Azure Managed Redis: a cluster and its one database (<https://learn.microsoft.com/rest/api/redis/redisenterprisecache/>). Azure Cache
//! for Redis takes no new caches since 2026-10-01 (Yellow-Dog-Man/Resonite-Issues#7276).
//!
//! The service generates the keys of a database. Its output is a reference to the primary one, which is read again when it is used:
//! states, plans, logs and the folder of an environment have no key.

use async_trait::async_trait;
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_cloud::State;
use textnlp_cloud::document::last;
use textnlp_cloud::names::hash;
use textnlp_provider::{
    Error, ErrorKind, Identity, Kind, Outputs, Pricing, Result, Secret, SecretName, SecretRef, SecretVersion,
};

use super::{delete, put, read};
use crate::api::{Api, Call};
use crate::operation::Pending;
use crate::row::{Field, Form, LOCATION, Marks, Rest, RestKind, Table, Update, state};
use crate::table::{MINUTE, Row, kind};

/// The first version that keeps a cluster from having a public address (MicrosoftLearning/mslearn-azure-ai#200).
const VERSION: &str = "2025-07-01";
/// The port of every database: <https://learn.microsoft.com/azure/redis/overview>.
pub(crate) const PORT: u16 = 10_000;
/// The name that the one database of a cluster has.
pub(crate) const DATABASE: &str = "default";
/// The start of the name of a key among secrets; the id of the database follows.
pub(crate) const SECRETS: &str = "azure-redis:";
const AGAIN: &str =
    "write `cache.kind: none`, run `up`, and write the new setting then: what the cache holds is computed again";

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            deadline: MINUTE.saturating_mul(60),
            typical: Some(MINUTE.saturating_mul(10)),
            pricing: Pricing::BySpec,
            permissions: &[
                read("Microsoft.Cache/redisEnterprise/read"),
                put("Microsoft.Cache/redisEnterprise/write"),
                delete("Microsoft.Cache/redisEnterprise/delete"),
                read("Microsoft.Cache/locations/operationsStatus/read"),
            ],
            terraform: &[("azurerm_managed_redis", "id")],
            ..kind("azure.redis", "a Redis", Identity::Named)
        },
        service: "Microsoft.Cache",
        resource: &Rest::<Cluster>::kind(),
        refused: &[("high_availability", AGAIN), ("location", AGAIN)],
    },
    Row {
        kind: Kind {
            deadline: MINUTE.saturating_mul(30),
            permissions: &[
                read("Microsoft.Cache/redisEnterprise/databases/read"),
                put("Microsoft.Cache/redisEnterprise/databases/write"),
                delete("Microsoft.Cache/redisEnterprise/databases/delete"),
                read("Microsoft.Cache/redisEnterprise/databases/listKeys/action"),
                put("Microsoft.Cache/redisEnterprise/databases/regenerateKey/action"),
            ],
            ..kind("azure.redis-database", "the database of a Redis", Identity::Part)
        },
        service: "Microsoft.Cache",
        resource: &Rest::<Database>::kind(),
        refused: &[],
    },
];

/// A cluster. Outputs: `id`, `name`, `host`.
struct Cluster;

impl RestKind for Cluster {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Cache/redisEnterprise",
        version: VERSION,
        path: "{group}/providers/Microsoft.Cache/redisEnterprise/{name}",
        constants: &[("/properties/minimumTlsVersion", "\"1.2\"")],
        fields: &[
            LOCATION,
            Field::code("sku", "/sku", |name| json!({ "name": name }), |one| one["sku"]["name"].clone()).changed(),
            Field::plain("high_availability", "/properties/highAvailability"),
            Field::plain("public_access", "/properties/publicNetworkAccess").changed(),
        ],
        in_place: &["sku", "public_access"],
        update: Update::Patch,
        outputs: &[("host", "/properties/hostName")],
        ..Table::USUAL
    };
}

/// A database. Outputs: `id`, `name`, `url`: its address without the password, and `login`: a reference to its primary key.
struct Database;

#[async_trait]
impl RestKind for Database {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Cache/redisEnterprise/databases",
        version: VERSION,
        path: "{cluster}/databases/{name}",
        constants: &[
            ("/properties/port", "10000"),
            ("/properties/clientProtocol", "\"Encrypted\""),
            // One address for all keys: the servers know no slots.
            ("/properties/clusteringPolicy", "\"EnterpriseCluster\""),
        ],
        fields: &[
            Field::plain("eviction", "/properties/evictionPolicy").changed(),
            Field::plain("access_keys", "/properties/accessKeysAuthentication").changed(),
            // Another value is a request for another key.
            Field { form: Form::Secret, ..Field::plain("rotation", "") },
        ],
        in_place: &["eviction", "access_keys", "rotation"],
        update: Update::Patch,
        marks: Marks::Part,
        ..Table::USUAL
    };

    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        let Some(mut document) = api.find(Call::get(id, VERSION)).await? else { return Ok(None) };
        let Some(cluster) = api.find(Call::get(cluster_of(id), VERSION)).await? else { return Ok(None) };
        document["$host"] = cluster["properties"]["hostName"].clone();
        let has_keys = document["properties"]["accessKeysAuthentication"] == "Enabled";
        if has_keys && state(Self::TABLE, &document) == State::Ready {
            match primary_key(api, id).await {
                Ok(key) => document["$login"] = json!(login(id, &key)),
                // Who may only read sees the database without a reference to its key.
                Err(error) if error.kind == ErrorKind::Denied => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(document))
    }

    fn outputs(_id: &str, document: &Value, outputs: &mut Outputs) {
        if let Some(host) = document["$host"].as_str() {
            outputs.insert("url".to_owned(), json!(format!("rediss://{host}:{PORT}")));
        }
        if let Some(login) = document.get("$login") {
            outputs.insert("login".to_owned(), login.clone());
        }
    }

    /// Replaces the primary key: <https://learn.microsoft.com/rest/api/redis/redisenterprisecache/databases/regenerate-key>.
    async fn put(api: &Api, id: &str, _wanted: &Value, _field: &str) -> Result<Option<Pending>> {
        let which = json!({ "keyType": "Primary" });
        let call = Call::new(Method::POST, format!("{id}/regenerateKey"), VERSION).body(which);
        Ok(api.send(call.saying("replace the key of", last(cluster_of(id)))).await?.pending)
    }
}

/// The primary key of a database.
pub(crate) async fn primary_key(api: &Api, id: &str) -> Result<Secret> {
    let call = Call::new(Method::POST, format!("{id}/listKeys"), VERSION);
    match api.send(call.saying("read the key of", last(cluster_of(id)))).await?.body["primaryKey"].take() {
        Value::String(key) => Ok(Secret::new(key)),
        _ => {
            let error = Error::new(ErrorKind::Unavailable, "read the key of", last(cluster_of(id)));
            Err(error.because("the answer has no key"))
        }
    }
}

/// The reference to a key. Its version is a short hash, which tells nothing of a key with 256 random bits.
fn login(id: &str, key: &Secret) -> SecretRef {
    let version = SecretVersion(hash(key.expose_text().unwrap_or_default()));
    SecretRef { name: SecretName(format!("{SECRETS}{id}")), version }
}

/// The id of the cluster of a database.
fn cluster_of(id: &str) -> &str {
    id.rsplitn(3, '/').nth(2).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_have_the_address_and_a_reference_to_the_key() {
        let id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Cache/redisEnterprise/r/databases/default";
        let [first, second] = ["a key", "another key"].map(|key| login(id, &Secret::new(key)));
        assert!(first.name == second.name && first.version != second.version, "a replaced key has another version");
        let mut outputs = Outputs::new();
        let document = json!({ "$host": "r.westeurope.redis.azure.net", "$login": first });
        Database::outputs(id, &document, &mut outputs);
        assert_eq!(outputs["url"], json!("rediss://r.westeurope.redis.azure.net:10000"));
        assert_eq!(outputs["login"]["$secret"], json!(format!("{SECRETS}{id}")));
        assert!(!outputs["login"].to_string().contains("a key"), "{outputs:?}");
    }
}
