//! Azure Managed Redis: a cluster and its one database (<https://learn.microsoft.com/rest/api/redis/redisenterprisecache/>). Azure Cache
//! for Redis takes no new caches since 2026-10-01 (Yellow-Dog-Man/Resonite-Issues#7276).
//!
//! The service generates the keys of a database. A read stores the primary one among the secrets of the deployment, and its output is a
//! reference: states, plans and logs have no key.

use async_trait::async_trait;
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_cloud::document::last;
use textnlp_cloud::names::hash;
use textnlp_cloud::{ObservedObject, State};
use textnlp_provider::{
    Error, ErrorKind, Identity, Kind, Outputs, Pricing, Result, Secret, SecretName, SecretRef, SecretVersion, Spec,
};

use super::{delete, put, read};
use crate::api::{Api, Call};
use crate::operation::Pending;
use crate::row::{Field, Form, LOCATION, Marks, Rest, RestKind, Table, Update, state};
use crate::table::{MINUTE, Row, kind};

/// The first version in which a cluster has no public address.
const VERSION: &str = "2025-07-01";
/// The port of every database: <https://learn.microsoft.com/azure/redis/overview>.
pub(crate) const PORT: u16 = 10_000;
/// The name that the one database of a cluster has.
pub(crate) const DATABASE: &str = "default";
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

/// A database. Outputs: `id`, `name`, `url`: its address without the password, and `password`: a reference to its primary key.
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
            // The servers know no slots, and read several keys at once.
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
            document["$key"] = json!(stored_key(api, id).await?);
        }
        Ok(Some(document))
    }

    fn outputs(_id: &str, document: &Value, outputs: &mut Outputs) {
        if let Some(host) = document["$host"].as_str() {
            outputs.insert("url".to_owned(), json!(format!("rediss://{host}:{PORT}")));
        }
        if let Some(key) = document.get("$key") {
            outputs.insert("password".to_owned(), key.clone());
        }
    }

    /// Replaces the primary key: <https://learn.microsoft.com/rest/api/redis/redisenterprisecache/databases/regenerate-key>.
    async fn put(api: &Api, id: &str, _wanted: &Value, _field: &str) -> Result<Option<Pending>> {
        let which = json!({ "keyType": "Primary" });
        let call = Call::new(Method::POST, format!("{id}/regenerateKey"), VERSION).body(which);
        Ok(api.send(call.saying("replace the key of", last(cluster_of(id)))).await?.pending)
    }

    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<Pending>> {
        api.session.secrets.delete(&secret_name(&seen.id)).await?;
        Ok(api.send(Call::new(Method::DELETE, &seen.id, VERSION)).await?.pending)
    }
}

/// Reads the primary key and stores it. Its version is a short hash, which tells nothing of a key with 256 random bits.
async fn stored_key(api: &Api, id: &str) -> Result<SecretRef> {
    let call = Call::new(Method::POST, format!("{id}/listKeys"), VERSION);
    let mut answer = api.send(call.saying("read the key of", last(cluster_of(id)))).await?.body;
    let Value::String(key) = answer["primaryKey"].take() else {
        let error = Error::new(ErrorKind::Unavailable, "read the key of", last(cluster_of(id)));
        return Err(error.because("the answer has no key"));
    };
    let (name, version) = (secret_name(id), SecretVersion(hash(&key)));
    api.session.secrets.put(&name, &version, &Secret::new(key)).await?;
    Ok(SecretRef { name, version })
}

/// The id of the cluster of a database.
fn cluster_of(id: &str) -> &str {
    id.rsplitn(3, '/').nth(2).unwrap_or(id)
}

/// The name of the key of a database among the secrets of the deployment.
fn secret_name(id: &str) -> SecretName {
    SecretName(format!("azure/{}", last(cluster_of(id)).to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_no_key() {
        let id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Cache/redisEnterprise/R/databases/default";
        assert_eq!(secret_name(id), SecretName("azure/r".to_owned()));
        let mut outputs = Outputs::new();
        let key = SecretRef { name: secret_name(id), version: SecretVersion("1".to_owned()) };
        let document = json!({ "$host": "r.westeurope.redis.azure.net", "$key": key });
        Database::outputs(id, &document, &mut outputs);
        assert_eq!(outputs["url"], json!("rediss://r.westeurope.redis.azure.net:10000"));
        assert_eq!(outputs["password"], json!({ "$secret": "azure/r", "version": "1" }));
    }
}
