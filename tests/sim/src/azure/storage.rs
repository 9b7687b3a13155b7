//! Storage accounts with their containers, their lifecycle policies and the replication between them, and registries of images.

use serde_json::{Value, json};

use super::cloud::{Cloud, Object, put, put_missing, text};
use super::kinds::{Answer, Call, KIND, Kind, Special, Style, is_name, parent, write};
use super::problem::{Problem, bad, conflict};
use crate::{Behaviour, Source};

const ACCOUNT: &str = "Microsoft.Storage/storageAccounts";
const POLICY: &str = "Microsoft.Storage/storageAccounts/objectReplicationPolicies";
const POLICY_MODEL: &str = "storage.v2024_01_01.models ObjectReplicationPolicy";
/// The name under which a destination gets a new policy.
const NEW_POLICY: &str = "default";
const LIFECYCLE: &str = "Microsoft.Storage/storageAccounts/managementPolicies";
const LIFECYCLE_MODEL: &str = "storage.v2024_01_01.models ManagementPolicy";
/// The name of an account's lifecycle policy in paths, and the one in answers.
const LIFECYCLE_NAMES: (&str, &str) = ("default", "DefaultManagementPolicy");
/// The code of an invalid rule.
const INVALID_RULE: &str = "InvalidManagementPolicyRule";
/// The most rules of a policy, prefixes of a rule and characters of its name.
const MOST_RULES: usize = 100;
const MOST_PREFIXES: usize = 10;
const MOST_OF_RULE: usize = 256;
const REGISTRY: &str = "Microsoft.ContainerRegistry/registries";

pub(crate) const KINDS: &[Kind] = &[
    Kind {
        kind: ACCOUNT,
        version: "2024-01-01",
        models: [
            "storage.v2024_01_01.models StorageAccountCreateParameters",
            "storage.v2024_01_01.models StorageAccountUpdateParameters",
            "storage.v2024_01_01.models StorageAccount",
            "storage.v2024_01_01.models StorageAccountListResult",
        ],
        styles: [Style::Location, Style::Sync, Style::Sync],
        seconds: [25, 0, 0],
        accepted: 202,
        words: ["Creating", "ResolvingDNS", "Succeeded"],
        is_name: |_| true,
        kept: &["/properties/creationTime", "/properties/primaryEndpoints", "/properties/encryption"],
        defaults: &[
            ("/properties/supportsHttpsTrafficOnly", "true"),
            ("/properties/accessTier", "\"Hot\""),
            ("/properties/statusOfPrimary", "\"available\""),
            (
                "/properties/networkAcls",
                r#"{"bypass":"AzureServices","virtualNetworkRules":[],"ipRules":[],"defaultAction":"Allow"}"#,
            ),
            (
                "/properties/encryption",
                r#"{"services":{"blob":{"keyType":"Account","enabled":true}},"keySource":"Microsoft.Storage"}"#,
            ),
        ],
        fixed: &["/kind"],
        accept: accept_account,
        finish: finish_account,
        end: end_name,
        ..KIND
    },
    Kind {
        kind: "Microsoft.Storage/storageAccounts/blobServices",
        version: "2024-01-01",
        models: [
            "storage.v2024_01_01.models BlobServiceProperties",
            "",
            "storage.v2024_01_01.models BlobServiceProperties",
            "storage.v2024_01_01.models BlobServiceItems",
        ],
        has_state: false,
        tags: 0,
        is_name: |name| name == "default",
        kept: &["/properties/cors", "/properties/deleteRetentionPolicy"],
        accept: accept_blobs,
        ..KIND
    },
    Kind {
        kind: POLICY,
        version: "2024-01-01",
        models: [POLICY_MODEL, "", POLICY_MODEL, "storage.v2024_01_01.models ObjectReplicationPolicies"],
        accepted: 200,
        has_state: false,
        tags: 0,
        accept: accept_policy,
        ..KIND
    },
    Kind {
        kind: LIFECYCLE,
        version: "2024-01-01",
        models: [LIFECYCLE_MODEL, "", LIFECYCLE_MODEL, ""],
        accepted: 200,
        has_state: false,
        tags: 0,
        accept: accept_lifecycle,
        show: show_lifecycle,
        ..KIND
    },
    Kind {
        kind: "Microsoft.Storage/storageAccounts/blobServices/containers",
        version: "2024-01-01",
        models: [
            "storage.v2024_01_01.models BlobContainer",
            "storage.v2024_01_01.models BlobContainer",
            "storage.v2024_01_01.models BlobContainer",
            "storage.v2024_01_01.models ListContainerItems",
        ],
        has_state: false,
        tags: 0,
        has_etag: true,
        is_name: |name| is_name(name, 3..=63, "-") && name.chars().all(|c| !c.is_ascii_uppercase()),
        defaults: &[
            ("/properties/publicAccess", "\"None\""),
            ("/properties/leaseStatus", "\"Unlocked\""),
            ("/properties/leaseState", "\"Available\""),
            ("/properties/hasImmutabilityPolicy", "false"),
            ("/properties/hasLegalHold", "false"),
            ("/properties/defaultEncryptionScope", "\"$account-encryption-key\""),
        ],
        end: end_container,
        ..KIND
    },
    Kind {
        kind: REGISTRY,
        version: "2023-07-01",
        models: [
            "containerregistry.v2023_07_01.models Registry",
            "containerregistry.v2023_07_01.models RegistryUpdateParameters",
            "containerregistry.v2023_07_01.models Registry",
            "containerregistry.v2023_07_01.models RegistryListResult",
        ],
        styles: [Style::Async, Style::Async, Style::Location],
        seconds: [20, 10, 20],
        is_name: |name| is_name(name, 5..=50, ""),
        kept: &["/properties/creationDate"],
        defaults: &[
            ("/properties/adminUserEnabled", "false"),
            ("/properties/publicNetworkAccess", "\"Enabled\""),
            ("/properties/networkRuleBypassOptions", "\"AzureServices\""),
            ("/properties/zoneRedundancy", "\"Disabled\""),
            ("/properties/dataEndpointEnabled", "false"),
            ("/properties/dataEndpointHostNames", "[]"),
        ],
        accept: accept_registry,
        end: end_name,
        ..KIND
    },
];

pub(crate) const SPECIALS: &[Special] = &[
    Special {
        method: "PUT",
        path: POLICY,
        version: "2024-01-01",
        request: POLICY_MODEL,
        answer: POLICY_MODEL,
        handler: write_policy,
    },
    Special {
        method: "GET",
        path: "Microsoft.Storage/storageAccounts/managementPolicies[]",
        version: "2024-01-01",
        request: "",
        answer: "",
        handler: |_, call| Err(no_such_address(call)),
    },
    Special {
        method: "POST",
        path: "Microsoft.Storage/checkNameAvailability",
        version: "2024-01-01",
        request: "storage.v2024_01_01.models StorageAccountCheckNameAvailabilityParameters",
        answer: "storage.v2024_01_01.models CheckNameAvailabilityResult",
        handler: |cloud, call| Ok(availability(cloud, call, ACCOUNT, "AlreadyExists")),
    },
    Special {
        method: "POST",
        path: "Microsoft.ContainerRegistry/checkNameAvailability",
        version: "2023-07-01",
        request: "containerregistry.v2023_07_01.models RegistryNameCheckRequest",
        answer: "containerregistry.v2023_07_01.models RegistryNameStatus",
        handler: |cloud, call| Ok(availability(cloud, call, REGISTRY, "AlreadyExists")),
    },
];

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "the name of a deleted account stays taken for a while though a read is 404",
        Source::Report("hashicorp/terraform#11485"),
    ),
    rule("a taken account name is 409 StorageAccountAlreadyTaken", Source::Report("Azure/azure-cli#13406")),
    rule("a new account has a Location and no body", Source::Model),
    rule(
        "names of accounts have 3 to 24 small letters and digits",
        Source::Documentation(
            "https://learn.microsoft.com/azure/storage/common/storage-account-overview#storage-account-name",
        ),
    ),
    rule(
        "an account has one blob service, which is called default",
        Source::Documentation("https://learn.microsoft.com/rest/api/storagerp/blob-services/set-service-properties"),
    ),
    rule(
        "a replication policy is written to the destination as default, which gives it and its rules ids",
        Source::Report("Azure/bicep#9710"),
    ),
    rule(
        "a policy of the source that the destination has not is 503 ServiceUnavailable",
        Source::Report("Azure/azure-rest-api-specs#11189"),
    ),
    rule(
        "replication needs versions in both accounts and the change feed of the source, and both containers",
        Source::Documentation("https://learn.microsoft.com/azure/storage/blobs/object-replication-configure"),
    ),
    rule(
        "a change of the firewall of an account counts later, and refuses requests for data with 403 AuthorizationFailure",
        Source::LeftOut(
            "MicrosoftDocs/azure-docs#45840, Azure/azure-cli#18415, hashicorp/terraform-provider-azurerm#2977: no plan sets a firewall, and containers are created through Resource Manager",
        ),
    ),
    rule("an account with a replication policy keeps its versions", Source::Report("MicrosoftDocs/azure-docs#123502")),
    rule(
        "an account has one lifecycle policy, called default: another name is 404 HttpResourceNotFound",
        Source::Report("Azure/bicep-types-az#2494"),
    ),
    rule("lifecycle policies of an account are not listed", Source::Report("lawrencegripper/azbrowse#98")),
    rule(
        "the days of a lifecycle rule are answered as decimal numbers",
        Source::Report("hashicorp/terraform-provider-azurerm#18771"),
    ),
    rule(
        "a lifecycle policy is answered with the name DefaultManagementPolicy",
        Source::Documentation("https://learn.microsoft.com/rest/api/storagerp/management-policies/get"),
    ),
    rule(
        "a lifecycle policy is written as a whole",
        Source::Documentation("https://learn.microsoft.com/azure/storage/blobs/lifecycle-management-policy-configure"),
    ),
    rule(
        "a lifecycle policy has 1 to 100 rules with names of their own, and each has an action and at most ten prefixes",
        Source::Documentation("https://learn.microsoft.com/azure/storage/blobs/lifecycle-management-overview"),
    ),
    rule(
        "an invalid rule of a lifecycle policy, such as one without filters, is 400 InvalidManagementPolicyRule",
        Source::Report("Azure/bicep-registry-modules#6359"),
    ),
    rule("the name of a rule may have any characters", Source::Report("hashicorp/terraform-provider-azurerm#17973")),
    rule(
        "accounts with copies in several zones have no archive tier",
        Source::Documentation("https://learn.microsoft.com/azure/storage/blobs/access-tiers-overview"),
    ),
    rule(
        "a lifecycle policy takes effect within a day, and moves blobs",
        Source::LeftOut("lifecycle-management-overview of the documentation: no plan reads the tier of a blob"),
    ),
    rule(
        "policies of accounts without replication across tenants have whole ids",
        Source::Documentation(
            "https://learn.microsoft.com/azure/storage/blobs/object-replication-prevent-cross-tenant-policies",
        ),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "Microsoft.Storage", what, source }
}

/// Registries' own rules.
pub(crate) const REGISTRIES: &[Behaviour] = &[Behaviour {
    service: "Microsoft.ContainerRegistry",
    what: "names of registries are taken in all of Azure: 409 AlreadyInUse",
    source: Source::Report("hashicorp/terraform-provider-azurerm#2940"),
}];

/// Whether a name of a type is taken, by a resource or otherwise.
pub(crate) fn is_taken(cloud: &Cloud, kind: &str, name: &str) -> bool {
    let end = format!("/{}/{}", kind.to_lowercase(), name.to_lowercase());
    let held = cloud.taken.get(&(kind.to_owned(), name.to_lowercase()));
    held.is_some_and(|until| *until > cloud.now()) || cloud.objects.keys().any(|key| key.ends_with(&end))
}

/// The answer of a check of names.
pub(crate) fn availability(cloud: &Cloud, call: &Call, kind: &str, reason: &str) -> Answer {
    let name = text(&call.body, "/name");
    Answer::ok(match is_taken(cloud, kind, name) {
        true => {
            let message = format!("The name '{name}' is already taken.");
            json!({ "nameAvailable": false, "reason": reason, "message": message })
        }
        false => json!({ "nameAvailable": true }),
    })
}

/// Keeps the name of what is deleted for a while.
pub(crate) fn end_name(cloud: &mut Cloud, key: &str) -> Result<(), Value> {
    let kind = super::kinds::kind_of(key);
    let until = cloud.lagged(&cloud.conduct.name_hold);
    let name = key.rsplit('/').next().unwrap_or_default().to_owned();
    // The images of a registry end with it.
    let host = format!("{name}.azurecr.io/");
    cloud.registry.repositories.retain(|one, _| kind != REGISTRY || !one.starts_with(&host));
    if kind == ACCOUNT {
        cloud.blobs.clear(|bucket| bucket.split('/').next() == Some(name.as_str()));
    }
    cloud.taken.insert((kind, name), until);
    Ok(())
}

/// The blobs of a container end with it.
fn end_container(cloud: &mut Cloud, key: &str) -> Result<(), Value> {
    let parts: Vec<&str> = key.split('/').collect();
    if let [.., account, _, _, _, container] = parts[..] {
        let bucket = format!("{account}/{container}");
        cloud.blobs.clear(|one| one == bucket);
    }
    Ok(())
}

fn accept_account(cloud: &mut Cloud, call: &Call, before: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let name = call.name();
    let is_right = (3..=24).contains(&name.len()) && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if !is_right {
        let message = format!(
            "{name} is not a valid storage account name. Storage account name must be between 3 and 24 characters in \
             length and use numbers and lower-case letters only."
        );
        return Err(bad("AccountNameInvalid", message));
    }
    if before.is_some() {
        return Ok(());
    }
    if is_taken(cloud, ACCOUNT, name) {
        return Err(conflict(
            "StorageAccountAlreadyTaken",
            format!("The storage account named {name} is already taken."),
        ));
    }
    let at = |service: &str| format!("https://{name}.{service}.core.windows.net/");
    let endpoints =
        json!({ "blob": at("blob"), "dfs": at("dfs"), "file": at("file"), "queue": at("queue"), "table": at("table") });
    put(body, "/properties/primaryEndpoints", endpoints);
    put(body, "/properties/primaryLocation", text(body, "/location").to_owned().into());
    put(body, "/properties/creationTime", cloud.now().to_string().into());
    put_missing(body, "/sku/tier", "Standard".into());
    Ok(())
}

/// A new account has its blob service.
fn finish_account(cloud: &mut Cloud, key: &str, is_new: bool) -> Result<(), Value> {
    let Some(account) = cloud.objects.get(key).filter(|_| is_new).map(|one| one.id.clone()) else { return Ok(()) };
    let id = format!("{account}/blobServices/default");
    let body = json!({ "id": id, "name": "default", "type": "Microsoft.Storage/storageAccounts/blobServices",
        "properties": { "cors": { "corsRules": [] }, "deleteRetentionPolicy": { "enabled": false } } });
    let now = cloud.now();
    let object = Object { id: id.clone(), body, lag: (now, now), ghost_until: None };
    cloud.objects.insert(id.to_lowercase(), object);
    Ok(())
}

fn accept_registry(cloud: &mut Cloud, call: &Call, before: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let name = call.name().to_lowercase();
    if before.is_none() && is_taken(cloud, REGISTRY, &name) {
        return Err(conflict("AlreadyInUse", format!("The registry DNS name {name}.azurecr.io is already in use.")));
    }
    put(body, "/properties/loginServer", format!("{name}.azurecr.io").into());
    put_missing(body, "/properties/creationDate", cloud.now().to_string().into());
    let tier = text(body, "/sku/name").to_owned();
    put(body, "/sku/tier", tier.into());
    Ok(())
}

/// The member of the blob service of an account.
fn has_blob_setting(cloud: &Cloud, account: &str, pointer: &str) -> bool {
    let blobs = cloud.objects.get(&format!("{}/blobservices/default", account.to_lowercase()));
    blobs.and_then(|one| one.body.pointer(pointer)).is_some_and(|value| *value == true)
}

fn accept_blobs(cloud: &mut Cloud, call: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let policies = format!("{}/objectreplicationpolicies/", parent(&call.key));
    let is_versioned = body.pointer("/properties/isVersioningEnabled").is_some_and(|on| *on == true);
    if !is_versioned && cloud.objects.keys().any(|key| key.starts_with(&policies)) {
        return Err(bad("BadRequest", "Versioning cannot be disabled while the account has a replication policy."));
    }
    Ok(())
}

/// Writes a policy: a new one of a destination gets an id. Lists of the service have it at once.
fn write_policy(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let mut call = call.clone();
    if call.name() == NEW_POLICY {
        let policy = cloud.random.uuid();
        for path in [&mut call.id, &mut call.path] {
            *path = format!("{}/{policy}", path.rsplit_once('/').map_or("", |(policies, _)| policies));
        }
        call.key = call.id.to_lowercase();
        if let Some(name) = call.names.last_mut() {
            name.clone_from(&policy);
        }
    }
    let answer = write(cloud, &call)?;
    let now = cloud.now();
    if let Some(object) = cloud.objects.get_mut(&call.key) {
        object.lag = (now, now);
    }
    Ok(answer)
}

/// An address that the service does not have.
fn no_such_address(call: &Call) -> Problem {
    Problem::new(404, "HttpResourceNotFound", format!("The request url {} is not found.", call.path))
}

fn accept_lifecycle(cloud: &mut Cloud, call: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    if call.name() != LIFECYCLE_NAMES.0 {
        return Err(no_such_address(call));
    }
    let account = cloud.objects.get(&parent(&call.key)).map_or("", |one| text(&one.body, "/sku/name"));
    let rules = body["properties"]["policy"]["rules"].as_array().cloned().unwrap_or_default();
    if rules.is_empty() || rules.len() > MOST_RULES {
        return Err(bad("BadRequest", format!("A policy has 1 to {MOST_RULES} rules, and this one {}.", rules.len())));
    }
    for (place, rule) in rules.iter().enumerate() {
        let name = text(rule, "/name");
        let is_new = rules.iter().take(place).all(|other| text(other, "/name") != name);
        let invalid = |why: &str| bad(INVALID_RULE, format!("ManagementPolicy rule {name} is invalid. {why}"));
        if !is_new || name.is_empty() || name.len() > MOST_OF_RULE {
            return Err(invalid("Its name is taken, or has not 1 to 256 characters."));
        }
        let filters = &rule["definition"]["filters"];
        let count = |filter: &str| filters[filter].as_array().map_or(0, Vec::len);
        if count("blobTypes") == 0 || count("prefixMatch") > MOST_PREFIXES {
            return Err(invalid("Invalid value for parameter : filter is required, with at most ten prefixes."));
        }
        let actions = rule["definition"]["actions"].as_object();
        let of_blobs = actions.into_iter().flat_map(|of| of.values()).filter_map(Value::as_object);
        let actions: Vec<&str> = of_blobs.flat_map(|of| of.keys()).map(String::as_str).collect();
        if actions.is_empty() {
            return Err(invalid("It has no action."));
        }
        if actions.contains(&"tierToArchive") && account.contains("ZRS") {
            return Err(invalid(&format!("The account is {account}, which has no archive tier.")));
        }
    }
    let now = cloud.now().to_string();
    put(body, "/properties/lastModifiedTime", now.into());
    Ok(())
}

fn show_lifecycle(_: &Cloud, _: &str, body: &mut Value) {
    body["name"] = LIFECYCLE_NAMES.1.into();
    let rules = body["properties"]["policy"]["rules"].as_array_mut();
    for rule in rules.into_iter().flatten() {
        let kinds = rule["definition"]["actions"].as_object_mut().into_iter().flat_map(|of| of.values_mut());
        let conditions = kinds.filter_map(Value::as_object_mut).flat_map(|of| of.values_mut());
        for days in conditions.filter_map(Value::as_object_mut).flat_map(|of| of.values_mut()) {
            if let Some(number) = days.as_f64() {
                *days = number.into();
            }
        }
    }
}

fn accept_policy(cloud: &mut Cloud, call: &Call, _: Option<&Value>, body: &mut Value) -> Result<(), Problem> {
    let cloud: &Cloud = cloud;
    let own = parent(&call.key);
    let [source, destination] =
        ["/properties/sourceAccount", "/properties/destinationAccount"].map(|member| text(body, member).to_lowercase());
    let is_open = |account: &str| {
        let account = cloud.objects.get(account).map(|one| &one.body["properties"]["allowCrossTenantReplication"]);
        account.is_some_and(|allowed| *allowed == true)
    };
    let are_ids = [&source, &destination].iter().all(|id| id.starts_with('/'));
    if !is_open(&own) && !are_ids {
        return Err(bad("BadRequest", "The accounts of the policy must be resource ids."));
    }
    let policy = call.name().to_owned();
    let (is_source, is_destination) = (own == source, own == destination);
    if is_source && !cloud.objects.contains_key(&format!("{destination}/objectreplicationpolicies/{policy}")) {
        let message = "The service is unavailable now. Please retry the request later.";
        return Err(Problem::new(503, "ServiceUnavailable", message));
    }
    if is_source == is_destination {
        return Err(bad("BadRequest", "The policy is of neither account, or of one account."));
    }
    let lacks = |account: &str, setting: &str| !has_blob_setting(cloud, account, &format!("/properties/{setting}"));
    if lacks(&source, "changeFeed/enabled")
        || lacks(&source, "isVersioningEnabled")
        || lacks(&destination, "isVersioningEnabled")
    {
        return Err(bad("BadRequest", "Versioning or the change feed is not enabled."));
    }
    let mut rules = body["properties"]["rules"].as_array().cloned().unwrap_or_default();
    for rule in &mut rules {
        for (account, member) in [(&source, "sourceContainer"), (&destination, "destinationContainer")] {
            let container = text(rule, &format!("/{member}"));
            if !cloud.objects.contains_key(&format!("{account}/blobservices/default/containers/{container}")) {
                return Err(bad("BadRequest", format!("There is no container '{container}'.")));
            }
        }
        if is_source && text(rule, "/ruleId").is_empty() {
            return Err(bad("BadRequest", "A rule of the source has the id that the destination gave it."));
        }
        put_missing(rule, "/ruleId", cloud.random.uuid().into());
    }
    put(body, "/properties/rules", rules.into());
    put(body, "/properties/policyId", policy.into());
    if is_source {
        put(body, "/properties/enabledTime", cloud.now().to_string().into());
    }
    Ok(())
}
