//! Storage accounts and containers of blobs: <https://learn.microsoft.com/rest/api/storagerp/>.

use async_trait::async_trait;
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_provider::{DataClass, Declare, Identity, Kind, Outputs, Pricing, Result, Spec};

use super::{create, delete, put, read};
use crate::api::{Api, Call};
use crate::operation::Pending;
use crate::row::{Field, LOCATION, Marks, Part, Rest, RestKind, Table, Update, invalid};
use crate::table::{Row, kind};

const VERSION: &str = "2024-01-01";
/// The blobs of an account, after its id.
const BLOBS: &str = "/blobServices/default";
/// The output of a container with the name of its account.
pub(crate) const ACCOUNT_NAME: &str = "account";

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            data: DataClass::Precious,
            pricing: Pricing::BySpec,
            permissions: &[
                read("Microsoft.Storage/storageAccounts/read"),
                put("Microsoft.Storage/storageAccounts/write"),
                delete("Microsoft.Storage/storageAccounts/delete"),
                read("Microsoft.Storage/storageAccounts/blobServices/read"),
                put("Microsoft.Storage/storageAccounts/blobServices/write"),
                read("Microsoft.Storage/checkNameAvailability/read"),
                read("Microsoft.Storage/operations/read"),
            ],
            terraform: &[("azurerm_storage_account", "id")],
            ..kind("azure.storage", "a storage account", Identity::Named)
        },
        service: "Microsoft.Storage",
        resource: &Rest::<Account>::kind(),
        refused: &[("location", "an account stays where it is: copy its blobs to another one")],
    },
    Row {
        kind: Kind {
            data: DataClass::Precious,
            permissions: &[
                read("Microsoft.Storage/storageAccounts/blobServices/containers/read"),
                create("Microsoft.Storage/storageAccounts/blobServices/containers/write"),
                delete("Microsoft.Storage/storageAccounts/blobServices/containers/delete"),
            ],
            terraform: &[("azurerm_storage_container", "id")],
            ..kind("azure.container", "a container of blobs", Identity::Part)
        },
        service: "Microsoft.Storage",
        resource: &Rest::<Container>::kind(),
        refused: &[],
    },
];

/// An account without keys: identities have roles. Outputs: `id`, `name`, `url`.
struct Account;

#[async_trait]
impl RestKind for Account {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Storage/storageAccounts",
        version: VERSION,
        path: "{group}/providers/Microsoft.Storage/storageAccounts/{name}",
        constants: &[
            ("/kind", "\"StorageV2\""),
            ("/properties/allowSharedKeyAccess", "false"),
            ("/properties/allowBlobPublicAccess", "false"),
            ("/properties/allowCrossTenantReplication", "false"),
            ("/properties/minimumTlsVersion", "\"TLS1_2\""),
            ("/properties/supportsHttpsTrafficOnly", "true"),
        ],
        fields: &[
            LOCATION,
            Field::plain("sku", "/sku/name").changed(),
            Field::seen("shared_key", |one| json!(one["properties"]["allowSharedKeyAccess"] != false)),
            // The blobs of an account have settings of their own: see `fetch`.
            Field::seen("versioned", |one| json!(one["$blobs"]["isVersioningEnabled"] == true)),
            Field::seen("soft_delete_days", |one| {
                let policy = &one["$blobs"]["deleteRetentionPolicy"];
                json!(if policy["enabled"] == true { policy["days"].as_u64().unwrap_or_default() } else { 0 })
            }),
        ],
        in_place: &["sku", "shared_key", "versioned", "soft_delete_days"],
        update: Update::Patch,
        outputs: &[("url", "/properties/primaryEndpoints/blob")],
        ..Table::USUAL
    };

    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        let Some(mut document) = api.find(Call::get(id, VERSION)).await? else { return Ok(None) };
        if let Some(blobs) = api.find(Call::get(blobs(id), VERSION)).await? {
            document["$blobs"] = blobs["properties"].clone();
        }
        Ok(Some(document))
    }

    fn declared(_api: Option<&Api>, request: &Declare<'_>, document: &mut Value) -> Result<(), String> {
        if let Some(shared) = request.object.spec.get("shared_key") {
            document["properties"]["allowSharedKeyAccess"] = shared.clone();
        }
        Ok(())
    }

    fn parts(spec: &Spec) -> Vec<Part> {
        let policy = retention(spec.get("soft_delete_days").unwrap_or(&Value::Null));
        let document = json!({ "properties": {
            "isVersioningEnabled": spec.get("versioned").is_some_and(|on| *on == true),
            "deleteRetentionPolicy": policy,
            "containerDeleteRetentionPolicy": policy,
        } });
        vec![Part { arm: "Microsoft.Storage/storageAccounts/blobServices", end: BLOBS, document }]
    }

    async fn put(api: &Api, id: &str, wanted: &Value, field: &str) -> Result<Option<Pending>> {
        if field == "shared_key" {
            let body = json!({ "properties": { "allowSharedKeyAccess": wanted } });
            return Ok(api.send(Call::new(Method::PATCH, id, VERSION).body(body)).await?.pending);
        }
        let mut properties = api.send(Call::get(blobs(id), VERSION)).await?.body["properties"].clone();
        match field {
            "versioned" => properties["isVersioningEnabled"] = wanted.clone(),
            "soft_delete_days" => {
                let policy = retention(wanted);
                properties["deleteRetentionPolicy"] = policy.clone();
                properties["containerDeleteRetentionPolicy"] = policy;
            }
            _ => return Err(invalid("change", id, &format!("`{field}` does not change in place"))),
        }
        let call = Call::new(Method::PUT, blobs(id), VERSION).body(json!({ "properties": properties }));
        Ok(api.send(call.saying("change", "the blob service")).await?.pending)
    }
}

/// How long deleted blobs are retained.
fn retention(days: &Value) -> Value {
    match days.as_u64() {
        Some(days) if days > 0 => json!({ "enabled": true, "days": days }),
        _ => json!({ "enabled": false }),
    }
}

fn blobs(id: &str) -> String {
    format!("{id}{BLOBS}")
}

/// A container, which only identities with a role read. Outputs: `id`, `name`, `account`.
struct Container;

impl RestKind for Container {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Storage/storageAccounts/blobServices/containers",
        version: VERSION,
        path: "{account}/blobServices/default/containers/{name}",
        constants: &[("/properties/publicAccess", "\"None\"")],
        marks: Marks::Part,
        ..Table::USUAL
    };

    fn outputs(id: &str, _document: &Value, outputs: &mut Outputs) {
        // ACCOUNT/blobServices/default/containers/NAME
        if let Some(account) = id.rsplit('/').nth(4) {
            outputs.insert(ACCOUNT_NAME.to_owned(), json!(account));
        }
    }
}
