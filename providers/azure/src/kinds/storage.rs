//! Storage accounts, containers of blobs, their replication and their lifecycle: <https://learn.microsoft.com/rest/api/storagerp/>.

use async_trait::async_trait;
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_cloud::ObservedObject;
use textnlp_cloud::document::{last, set};
use textnlp_provider::{
    DataClass, Declare, Error, ErrorKind, Identity, Kind, Outputs, Permission, Pricing, Result, Spec, Verb,
};

use super::{create, delete, put, read};
use crate::api::{Api, Call, Reply};
use crate::operation::Pending;
use crate::row::{Field, LOCATION, Marks, Part, Rest, RestKind, SECOND_READS, Table, Update, invalid};
use crate::table::{Row, kind};

const VERSION: &str = "2024-01-01";
/// The blobs of an account, after its id.
const BLOBS: &str = "/blobServices/default";
/// The output of a container with the name of its account.
pub(crate) const ACCOUNT_NAME: &str = "account";
/// The policy with which a replication begins: Azure gives it another id
/// (<https://learn.microsoft.com/azure/storage/blobs/object-replication-configure>).
pub(crate) const NEW_POLICY: &str = "default";
/// The outputs of a policy with its id and that of its rule.
pub(crate) const POLICY_ID: &str = "policy";
pub(crate) const RULE_ID: &str = "rule";
/// The name of our rule in the lifecycle policy of an account.
const LIFECYCLE_RULE: &str = "textnlp";
/// The days of a rule that moves blobs to the tier Cold.
const COLD_DAYS: &str = "/definition/actions/baseBlob/tierToCold/daysAfterModificationGreaterThan";

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
    Row {
        kind: Kind {
            pricing: Pricing::Unknown("by use"),
            permissions: &[
                read("Microsoft.Storage/storageAccounts/objectReplicationPolicies/read"),
                create("Microsoft.Storage/storageAccounts/objectReplicationPolicies/write"),
                delete("Microsoft.Storage/storageAccounts/objectReplicationPolicies/delete"),
            ],
            ..kind("azure.replication-policy", "an object replication policy", Identity::Part)
        },
        service: "Microsoft.Storage",
        resource: &Rest::<Replication>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            pricing: Pricing::Unknown("by use"),
            permissions: &[
                read("Microsoft.Storage/storageAccounts/managementPolicies/read"),
                // A deletion keeps the rules of other clients by a write.
                Permission::on(
                    &[Verb::Create, Verb::Update, Verb::Delete],
                    "Microsoft.Storage/storageAccounts/managementPolicies/write",
                ),
                delete("Microsoft.Storage/storageAccounts/managementPolicies/delete"),
            ],
            terraform: &[("azurerm_storage_management_policy", "id")],
            ..kind("azure.lifecycle", "a lifecycle rule of a storage account", Identity::Part)
        },
        service: "Microsoft.Storage",
        resource: &Rest::<Lifecycle>::kind(),
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
            Field::seen("change_feed", |one| json!(one["$blobs"]["changeFeed"]["enabled"] == true)),
        ],
        in_place: &["sku", "shared_key", "versioned", "soft_delete_days", "change_feed"],
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

    /// A change feed stays: an update comes before the deletion of the replication that reads it.
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        field == "change_feed" && *wanted == false && *seen == true
    }

    fn declared(_api: Option<&Api>, request: &Declare<'_>, document: &mut Value) -> Result<(), String> {
        if let Some(shared) = request.object.spec.get("shared_key") {
            document["properties"]["allowSharedKeyAccess"] = shared.clone();
        }
        Ok(())
    }

    fn parts(spec: &Spec) -> Vec<Part> {
        let policy = retention(spec.get("soft_delete_days").unwrap_or(&Value::Null));
        let mut document = json!({ "properties": {
            "isVersioningEnabled": spec.get("versioned").is_some_and(|on| *on == true),
            "deleteRetentionPolicy": policy,
            "containerDeleteRetentionPolicy": policy,
        } });
        if spec.get("change_feed").is_some_and(|on| *on == true) {
            document["properties"]["changeFeed"] = json!({ "enabled": true });
        }
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
            "change_feed" => properties["changeFeed"] = json!({ "enabled": wanted }),
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

/// What copies the new blobs of a container into one of the same name in another account: a policy of the account that gets them, created
/// first as [`NEW_POLICY`], and one of the account that has them, with the ids of the first one (Azure/azure-rest-api-specs#11189,
/// Azure/bicep#9710). Outputs: `id`, `name`, `policy`, `rule`.
struct Replication;

#[async_trait]
impl RestKind for Replication {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Storage/storageAccounts/objectReplicationPolicies",
        version: VERSION,
        path: "{account}/objectReplicationPolicies/{policy}",
        fields: &[
            // Whole ids, because accounts of other tenants are not allowed
            // (<https://learn.microsoft.com/azure/storage/blobs/object-replication-prevent-cross-tenant-policies>).
            Field::plain("source", "/properties/sourceAccount"),
            Field::plain("destination", "/properties/destinationAccount"),
            Field::seen("container", |one| one["properties"]["rules"][0]["sourceContainer"].clone()),
            Field::seen("rule", |one| one["properties"]["rules"][0]["ruleId"].clone()),
        ],
        marks: Marks::Part,
        outputs: &[(POLICY_ID, "/properties/policyId")],
        undeclared: Some("Azure gives the policy an id that the policy of the other account needs"),
        ..Table::USUAL
    };

    /// The policy of an account that gets blobs is its only one: this program creates that account.
    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        let Some(policies) = id.strip_suffix(NEW_POLICY).and_then(|start| start.strip_suffix('/')) else {
            return api.find(Call::get(id, VERSION)).await;
        };
        let mut all = api.list(Call::get(policies, VERSION)).await?;
        if all.len() > 1 {
            return Err(invalid("read", id, "its account has more than one policy"));
        }
        Ok(all.pop())
    }

    fn outputs(_id: &str, document: &Value, outputs: &mut Outputs) {
        let rule = document["properties"]["rules"][0]["ruleId"].clone();
        if rule.is_string() {
            outputs.insert(RULE_ID.to_owned(), rule);
        }
    }

    /// Azure gives the rule of a new policy its id.
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        let account = |id: &Value| id.as_str().map(|id| last(id).to_owned());
        match field {
            "rule" => wanted.is_null(),
            // Names of accounts are unique, and may be answered instead of ids.
            "source" | "destination" => account(wanted).is_some() && account(wanted) == account(seen),
            _ => false,
        }
    }

    fn complete(spec: &Spec, document: &mut Value) {
        let container = spec.get("container");
        let mut rule = json!({ "sourceContainer": container, "destinationContainer": container });
        if let Some(id) = spec.get("rule").filter(|id| id.is_string()) {
            rule["ruleId"] = id.clone();
        }
        document["properties"]["rules"] = json!([rule]);
    }

    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<Pending>> {
        let policy = seen.outputs.get(POLICY_ID).and_then(Value::as_str).unwrap_or_else(|| last(&seen.id));
        let policies = seen.id.rsplit_once('/').map_or(seen.id.as_str(), |(policies, _)| policies);
        let id = format!("{policies}/{policy}");
        Ok(api.send(Call::new(Method::DELETE, id, VERSION)).await?.pending)
    }
}

/// A rule that moves the blobs of a container to the tier Cold, which is read at once. The tier Archive is not: and accounts with copies in
/// several zones do not have it (<https://learn.microsoft.com/azure/storage/blobs/access-tiers-overview>). An account has one policy for
/// all rules, which is written as a whole (<https://learn.microsoft.com/azure/storage/blobs/lifecycle-management-policy-configure>): rules
/// of other clients stay. Outputs: `id`, `name`.
struct Lifecycle;

#[async_trait]
impl RestKind for Lifecycle {
    const TABLE: &'static Table = &Table {
        arm: "Microsoft.Storage/storageAccounts/managementPolicies",
        version: VERSION,
        // Every other name is refused (Azure/bicep-types-az#2494).
        path: "{account}/managementPolicies/default",
        fields: &[Field::seen("rule", lifecycle_rule)],
        in_place: &["rule"],
        marks: Marks::Part,
        without: "the rules of other clients in the policy, which is written as a whole: add them to the declaration before you apply it",
        ..Table::USUAL
    };

    /// A policy without our rule is that of other clients.
    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        let found = api.find(Call::get(id, VERSION)).await?;
        Ok(found.filter(|policy| rules(policy).any(is_own_rule)))
    }

    fn complete(spec: &Spec, document: &mut Value) {
        let rule = lifecycle_document(spec.get("rule").unwrap_or(&Value::Null));
        document["properties"]["policy"] = json!({ "rules": [rule] });
    }

    /// An account has no policy at first.
    async fn send(api: &Api, id: &str, document: Value) -> Result<Reply> {
        let others = other_rules(api, id).await?.unwrap_or_default();
        write_rules(api, id, others.into_iter().chain(rules(&document).cloned()).collect()).await
    }

    async fn put(api: &Api, id: &str, wanted: &Value, _field: &str) -> Result<Option<Pending>> {
        let Some(mut all) = other_rules(api, id).await? else {
            return Err(Error::new(ErrorKind::Conflict, "change", "the lifecycle policy").because("no read shows it"));
        };
        all.push(lifecycle_document(wanted));
        Ok(write_rules(api, id, all).await?.pending)
    }

    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<Pending>> {
        let reply = match other_rules(api, &seen.id).await? {
            // The next read decides.
            None => return Ok(None),
            Some(others) if others.is_empty() => api.send(Call::new(Method::DELETE, &seen.id, VERSION)).await?,
            Some(others) => write_rules(api, &seen.id, others).await?,
        };
        Ok(reply.pending)
    }
}

/// The rules of a lifecycle policy.
fn rules(policy: &Value) -> impl Iterator<Item = &Value> {
    policy["properties"]["policy"]["rules"].as_array().into_iter().flatten()
}

fn is_own_rule(rule: &Value) -> bool {
    rule["name"] == LIFECYCLE_RULE
}

/// The rules of other clients; `None` if no read shows the policy, which is no proof that there is none.
async fn other_rules(api: &Api, id: &str) -> Result<Option<Vec<Value>>> {
    for _ in 0..=SECOND_READS {
        if let Some(policy) = api.find(Call::get(id, VERSION)).await? {
            return Ok(Some(rules(&policy).filter(|rule| !is_own_rule(rule)).cloned().collect()));
        }
    }
    Ok(None)
}

/// Writes the policy of an account. It has no etag: another client may change it between the read and this.
async fn write_rules(api: &Api, id: &str, all: Vec<Value>) -> Result<Reply> {
    let body = json!({ "properties": { "policy": { "rules": all } } });
    api.send(Call::new(Method::PUT, id, VERSION).body(body).saying("change", "the lifecycle policy")).await
}

/// A rule of a spec as a policy has it. The prefix ends with a slash, because containers may begin alike.
fn lifecycle_document(rule: &Value) -> Value {
    let container = rule["container"].as_str().unwrap_or_default();
    let mut document = json!({
        "name": LIFECYCLE_RULE,
        "enabled": true,
        "type": "Lifecycle",
        "definition": {
            "filters": { "blobTypes": ["blockBlob"], "prefixMatch": [format!("{container}/")] },
            "actions": { "baseBlob": { "tierToCold": { "daysAfterModificationGreaterThan": null } } },
        },
    });
    set(&mut document, COLD_DAYS, rule["cold_after_days"].clone());
    document
}

/// Our rule in a policy as a spec has it; one that was changed to another form as it is, which no spec has.
fn lifecycle_rule(policy: &Value) -> Value {
    let Some(mut found) = rules(policy).find(|rule| is_own_rule(rule)).cloned() else { return Value::Null };
    let prefix = found.pointer("/definition/filters/prefixMatch/0").and_then(Value::as_str);
    let container = prefix.and_then(|prefix| prefix.strip_suffix('/')).map(str::to_owned);
    // Days are answered as decimal numbers (hashicorp/terraform-provider-azurerm#18771).
    let days = found.pointer(COLD_DAYS);
    let days = days.and_then(|days| days.as_u64().or_else(|| days.as_f64()?.to_string().parse::<u64>().ok()));
    if let Some(days) = days {
        set(&mut found, COLD_DAYS, json!(days));
    }
    let rule = json!({ "container": container, "cold_after_days": days });
    if found == lifecycle_document(&rule) { rule } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_of_another_form_is_no_rule_of_a_spec() {
        let wanted = json!({ "container": "models", "cold_after_days": 90 });
        let policy = |rules: Value| json!({ "properties": { "policy": { "rules": rules } } });
        let mut rule = lifecycle_document(&wanted);
        assert_eq!(rule["definition"]["filters"]["prefixMatch"], json!(["models/"]));
        assert_eq!(lifecycle_rule(&policy(json!([{ "name": "other" }]))), Value::Null);
        set(&mut rule, COLD_DAYS, json!(90.0));
        assert_eq!(lifecycle_rule(&policy(json!([{ "name": "other" }, rule]))), wanted);
        for (place, value) in [
            ("/enabled", json!(false)),
            ("/definition/filters/prefixMatch", json!(["models/", "texts/"])),
            ("/definition/filters/prefixMatch", json!(["models"])),
            (COLD_DAYS, json!(90.5)),
            ("/definition/actions/baseBlob/delete", json!({ "daysAfterModificationGreaterThan": 365 })),
        ] {
            let mut other = rule.clone();
            set(&mut other, place, value);
            let read = lifecycle_rule(&policy(json!([other])));
            assert_eq!(read["name"], LIFECYCLE_RULE, "{place}");
        }
    }
}
