//! Key vaults, the deleted ones, and keys.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::cloud::{Cloud, Object, put, put_missing, text};
use super::kinds::{Answer, Call, KIND, Kind, Special, Style, is_name, start};
use super::problem::{Problem, bad, conflict};
use super::resources::get;
use super::storage::availability;
use crate::clock::later;
use crate::{Behaviour, Source};

const VAULT: &str = "Microsoft.KeyVault/vaults";
const DELETED: &str = "keyvault.v2023_07_01.models DeletedVault";

pub(crate) const KINDS: &[Kind] = &[
    Kind {
        kind: VAULT,
        version: "2023-07-01",
        models: [
            "keyvault.v2023_07_01.models VaultCreateOrUpdateParameters",
            "keyvault.v2023_07_01.models VaultPatchParameters",
            "keyvault.v2023_07_01.models Vault",
            "keyvault.v2023_07_01.models VaultListResult",
        ],
        styles: [Style::State, Style::Sync, Style::Sync],
        seconds: [20, 0, 0],
        accepted: 200,
        words: ["RegisteringDns", "Succeeded", "Succeeded"],
        is_name: |name| {
            is_name(name, 3..=24, "-") && name.starts_with(|c: char| c.is_ascii_alphabetic()) && !name.ends_with('-')
        },
        kept: &["/properties/vaultUri"],
        defaults: &[
            ("/properties/accessPolicies", "[]"),
            ("/properties/enableSoftDelete", "true"),
            ("/properties/softDeleteRetentionInDays", "90"),
            ("/properties/publicNetworkAccess", "\"Enabled\""),
        ],
        fixed: &["/properties/softDeleteRetentionInDays", "/properties/tenantId"],
        accept: accept_vault,
        end: bury,
        ..KIND
    },
    Kind {
        kind: "Microsoft.KeyVault/vaults/keys",
        version: "2023-07-01",
        models: [
            "keyvault.v2023_07_01.models KeyCreateParameters",
            "",
            "keyvault.v2023_07_01.models Key",
            "keyvault.v2023_07_01.models KeyListResult",
        ],
        accepted: 200,
        has_state: false,
        is_name: |name| is_name(name, 1..=127, "-"),
        accept: accept_key,
        refuse_delete: |_, _| {
            Err(Problem::new(405, "MethodNotAllowed", "The requested resource does not support the method DELETE."))
        },
        ..KIND
    },
];

pub(crate) const SPECIALS: &[Special] = &[
    get("Microsoft.KeyVault/locations/deletedVaults", "2023-07-01", DELETED, deleted),
    get(
        "Microsoft.KeyVault/deletedVaults[]",
        "2023-07-01",
        "keyvault.v2023_07_01.models DeletedVaultListResult",
        all_deleted,
    ),
    Special {
        method: "POST",
        path: "Microsoft.KeyVault/locations/deletedVaults/purge",
        version: "2023-07-01",
        request: "",
        answer: "",
        handler: purge,
    },
    Special {
        method: "POST",
        path: "Microsoft.KeyVault/checkNameAvailability",
        version: "2023-07-01",
        request: "keyvault.v2023_07_01.models VaultCheckNameAvailabilityParameters",
        answer: "keyvault.v2023_07_01.models CheckNameAvailabilityResult",
        handler: |cloud, call| {
            let is_deleted = cloud.deleted_vaults.contains_key(&text(&call.body, "/name").to_lowercase());
            match is_deleted {
                true => Ok(Answer::ok(json!({ "nameAvailable": false, "reason": "AlreadyExists",
                    "message": "A vault with the same name already exists in deleted state." }))),
                false => Ok(availability(cloud, call, VAULT, "AlreadyExists")),
            }
        },
    },
];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "a soft-deleted vault keeps its name: 409 ConflictError",
        Source::Report("alan-turing-institute/data-safe-haven#2523"),
    ),
    rule(
        "recovering what is not there is SoftDeletedVaultDoesNotExist",
        Source::Report("hashicorp/terraform-provider-azurerm#12972"),
    ),
    rule("a name that others have is VaultAlreadyExists", Source::Report("adamdost-0/linux-update-cds#21")),
    rule(
        "a protected vault cannot be purged, and the protection stays",
        Source::Report("Azure/azure-rest-api-specs#9222"),
    ),
    rule(
        "deleted vaults are kept 7 to 90 days",
        Source::Documentation("https://learn.microsoft.com/azure/key-vault/general/soft-delete-overview"),
    ),
    rule(
        "a PUT of a key that is there changes nothing, and keys are not deleted through Resource Manager",
        Source::Documentation("https://learn.microsoft.com/rest/api/keyvault/keyvault/keys/create-if-not-exist"),
    ),
    rule("a new vault is RegisteringDns at first", Source::Model),
    rule(
        "a write of a secret is 403 ForbiddenByRbac for a while after its role was assigned",
        Source::LeftOut(
            "Azure/terraform-azurerm-avm-res-keyvault-vault#78: nothing is written into vaults; keys are created through Resource Manager",
        ),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "Microsoft.KeyVault", what, source }
}

fn accept_vault(cloud: &mut Cloud, call: &Call, before: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let name = call.name().to_lowercase();
    let mode = body["properties"].as_object_mut().and_then(|members| members.shift_remove("createMode"));
    let is_recovery = mode.as_ref().and_then(Value::as_str) == Some("recover");
    let days = body.pointer("/properties/softDeleteRetentionInDays").and_then(Value::as_i64).unwrap_or(90);
    if !(7..=90).contains(&days) {
        return Err(bad(
            "BadRequest",
            "The value of the property softDeleteRetentionInDays has to be between 7 and 90.",
        ));
    }
    // It is true or absent.
    if body.pointer("/properties/enablePurgeProtection") == Some(&json!(false)) {
        let message = "The property \"enablePurgeProtection\" cannot be set to false. Enabling the purge protection \
        for a vault is an irreversible action.";
        return Err(bad("BadRequest", message));
    }
    if before.is_some_and(|before| before.pointer("/properties/enablePurgeProtection") == Some(&json!(true))) {
        put(body, "/properties/enablePurgeProtection", true.into());
    }
    if before.is_none() {
        match (cloud.deleted_vaults.remove(&name), is_recovery) {
            (Some((object, _)), true) => {
                *body = object.body;
                let keys = cloud.deleted_keys.remove(&name).unwrap_or_default();
                cloud.objects.extend(keys);
            }
            (Some(kept), false) => {
                cloud.deleted_vaults.insert(name, kept);
                let message = "A vault with the same name already exists in deleted state. You need to either recover \
                or purge existing key vault.";
                return Err(conflict("ConflictError", message));
            }
            (None, true) => {
                let message = "A soft deleted vault with the given name does not exist.";
                return Err(Problem::new(404, "SoftDeletedVaultDoesNotExist", message));
            }
            (None, false) if super::storage::is_taken(cloud, VAULT, &name) => {
                return Err(conflict("VaultAlreadyExists", format!("The vault name '{name}' is already in use.")));
            }
            (None, false) => {}
        }
    }
    put(body, "/properties/vaultUri", format!("https://{name}.vault.azure.net/").into());
    Ok(())
}

/// Moves a vault to the deleted ones.
fn bury(cloud: &mut Cloud, key: &str) -> Result<(), Value> {
    let Some(object) = cloud.objects.get(key).cloned() else { return Ok(()) };
    let days = object.body.pointer("/properties/softDeleteRetentionInDays").and_then(Value::as_u64).unwrap_or(90);
    let until = later(cloud.now(), std::time::Duration::from_secs(days * 86_400));
    let name = key.rsplit('/').next().unwrap_or_default().to_owned();
    // Its keys end with it, and come back with it.
    let inside = format!("{key}/");
    let keys = cloud.objects.iter().filter(|(one, _)| one.starts_with(&inside));
    let keys: BTreeMap<String, Object> = keys.map(|(one, object)| (one.clone(), object.clone())).collect();
    cloud.objects.retain(|one, _| !keys.contains_key(one));
    cloud.deleted_keys.insert(name.clone(), keys);
    cloud.deleted_vaults.insert(name, (object, until));
    Ok(())
}

fn deleted_body(cloud: &Cloud, object: &Object, until: jiff::Timestamp) -> Value {
    let body = &object.body;
    let (name, location) = (text(body, "/name"), text(body, "/location"));
    let base = format!(
        "/subscriptions/{}/providers/Microsoft.KeyVault/locations/{location}/deletedVaults",
        cloud.subscription
    );
    let mut shown = json!({ "id": format!("{base}/{name}"), "name": name, "type": "Microsoft.KeyVault/deletedVaults",
        "properties": { "vaultId": object.id, "location": location, "tags": body["tags"],
            "scheduledPurgeDate": until.to_string(), "deletionDate": cloud.now().to_string() } });
    if body.pointer("/properties/enablePurgeProtection") == Some(&json!(true)) {
        put(&mut shown, "/properties/purgeProtectionEnabled", true.into());
    }
    if body["tags"].is_null() {
        put(&mut shown, "/properties/tags", json!({}));
    }
    shown
}

fn not_deleted(call: &Call) -> Problem {
    let message = format!("The specified deleted vault '{}' does not exist.", call.name());
    Problem::new(404, "DeletedVaultNotFound", message)
}

fn deleted(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let (object, until) = cloud.deleted_vaults.get(&call.name().to_lowercase()).ok_or_else(|| not_deleted(call))?;
    Ok(Answer::ok(deleted_body(cloud, object, *until)))
}

fn all_deleted(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let rows = cloud.deleted_vaults.values().map(|(object, until)| deleted_body(cloud, object, *until)).collect();
    Ok(super::kinds::page(cloud, call, rows))
}

fn purge(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let name = call.name().to_lowercase();
    let (object, _) = cloud.deleted_vaults.get(&name).ok_or_else(|| not_deleted(call))?;
    if object.body.pointer("/properties/enablePurgeProtection") == Some(&json!(true)) {
        return Err(Problem::new(405, "MethodNotAllowed", "Operation 'DeletedVaultPurge' is not allowed."));
    }
    let effect = move |cloud: &mut Cloud| {
        cloud.deleted_vaults.remove(&name);
        Ok(())
    };
    let takes = std::time::Duration::from_secs(20);
    let headers = start(cloud, call, Style::Location, &call.key.clone(), true, Some(takes), Box::new(effect));
    Ok(Answer { status: 202, body: Value::Null, headers })
}

fn accept_key(cloud: &mut Cloud, call: &Call, before: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    if let Some(before) = before {
        *body = before.clone();
        return Ok(());
    }
    let vault = call.names.first().map_or("", String::as_str).to_lowercase();
    let uri = format!("https://{vault}.vault.azure.net/keys/{}", call.name());
    put(body, "/properties/keyUri", uri.clone().into());
    put(body, "/properties/keyUriWithVersion", format!("{uri}/{}", cloud.random.hex(32)).into());
    put_missing(body, "/properties/keyOps", json!(["encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"]));
    if text(body, "/properties/kty").starts_with("RSA") {
        put_missing(body, "/properties/keySize", 2048.into());
    }
    let now = cloud.now().as_second();
    for (name, value) in [("created", json!(now)), ("updated", json!(now)), ("enabled", json!(true))] {
        put_missing(body, &format!("/properties/attributes/{name}"), value);
    }
    put(body, "/properties/attributes/recoveryLevel", "Recoverable+Purgeable".into());
    if let Some(location) = cloud.objects.get(&call.parent()).map(|one| one.body["location"].clone()) {
        put(body, "/location", location);
    }
    Ok(())
}
