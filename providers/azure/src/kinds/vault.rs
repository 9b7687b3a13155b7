//! Key vaults and keys: <https://learn.microsoft.com/rest/api/keyvault/>.
//!
//! A deleted vault keeps its name for days (hashicorp/terraform-provider-azurerm#12972, adamdost-0/linux-update-cds#21), so that the name
//! of each new one ends with a part of the operation's token.
//! Purge protection is never enabled: it could not be disabled, and it keeps a vault from being removed.

use async_trait::async_trait;
use serde_json::Value;
use textnlp_cloud::Candidate;
use textnlp_provider::{DataClass, Declare, Identity, Kind, Pricing, Result, Spec};

use super::{create, delete, put, read};
use crate::api::Api;
use crate::row::{Field, LOCATION, Marks, Rest, RestKind, Table, Update};
use crate::table::{Row, kind};

const VERSION: &str = "2023-07-01";

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            data: DataClass::Precious,
            permissions: &[
                read("Microsoft.KeyVault/vaults/read"),
                put("Microsoft.KeyVault/vaults/write"),
                delete("Microsoft.KeyVault/vaults/delete"),
                read("Microsoft.KeyVault/deletedVaults/read"),
            ],
            terraform: &[("azurerm_key_vault", "id")],
            ..kind("azure.vault", "a key vault", Identity::Token)
        },
        service: "Microsoft.KeyVault",
        resource: &Rest::<Vault>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            data: DataClass::Precious,
            pricing: Pricing::BySpec,
            permissions: &[read("Microsoft.KeyVault/vaults/keys/read"), create("Microsoft.KeyVault/vaults/keys/write")],
            terraform: &[("azurerm_key_vault_key", "resource_id")],
            ..kind("azure.key", "a key", Identity::Part)
        },
        service: "Microsoft.KeyVault",
        resource: &Rest::<Key>::kind(),
        refused: &[],
    },
];

/// A vault whose users have roles. Outputs: `id`, `name`, `uri`.
struct Vault;

#[async_trait]
impl RestKind for Vault {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.KeyVault/vaults",
        version: VERSION,
        path: "{group}/providers/Microsoft.KeyVault/vaults/{name}",
        constants: &[
            ("/properties/sku", "{\"family\":\"A\",\"name\":\"standard\"}"),
            ("/properties/enableRbacAuthorization", "true"),
            ("/properties/enableSoftDelete", "true"),
        ],
        fields: &[LOCATION, Field::plain("soft_delete_days", "/properties/softDeleteRetentionInDays")],
        update: Update::Patch,
        outputs: &[("uri", "/properties/vaultUri")],
        suffixed: true,
        ..Table::USUAL
    };

    async fn prepare(api: &Api, _spec: &Spec, document: &mut Value, _chosen: &Candidate) -> Result<()> {
        document["properties"]["tenantId"] = api.session.identity.tenant.as_str().into();
        Ok(())
    }

    fn declared(api: Option<&Api>, _request: &Declare<'_>, document: &mut Value) -> Result<(), String> {
        let api = api.ok_or_else(|| "the tenant of the subscription is not known".to_owned())?;
        document["properties"]["tenantId"] = api.session.identity.tenant.as_str().into();
        Ok(())
    }
}

/// A key. Resource Manager has no way to delete one: it ends with its vault. Outputs: `id`, `name`, `uri`: its address with its version.
struct Key;

impl RestKind for Key {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.KeyVault/vaults/keys",
        version: VERSION,
        path: "{vault}/keys/{name}",
        constants: &[("/properties/kty", "\"RSA\"")],
        fields: &[Field::plain("bits", "/properties/keySize")],
        marks: Marks::Part,
        outputs: &[("uri", "/properties/keyUriWithVersion")],
        retained: true,
        ..Table::USUAL
    };
}
