//! Key Management Service.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{Behaviour, Call, Fault, Scope, Service, Source, World, later, timestamp};

/// The service.
pub const SERVICE: Service = Service {
    name: "kms",
    model: "kms",
    operations: &[
        ("CancelKeyDeletion", cancel_key_deletion),
        ("CreateAlias", create_alias),
        ("CreateKey", create_key),
        ("DeleteAlias", delete_alias),
        ("DescribeKey", describe_key),
        ("DisableKey", disable_key),
        ("DisableKeyRotation", disable_key_rotation),
        ("EnableKey", enable_key),
        ("EnableKeyRotation", enable_key_rotation),
        ("GetKeyPolicy", get_key_policy),
        ("GetKeyRotationStatus", get_key_rotation_status),
        ("ListAliases", list_aliases),
        ("ListKeys", list_keys),
        ("ListResourceTags", list_resource_tags),
        ("PutKeyPolicy", put_key_policy),
        ("ScheduleKeyDeletion", schedule_key_deletion),
        ("TagResource", tag_resource),
        ("UntagResource", untag_resource),
        ("UpdateAlias", update_alias),
        ("UpdateKeyDescription", update_key_description),
    ],
    quotas: &[],
    ledger: LEDGER,
};

const LEDGER: &[Behaviour] = &[
    Behaviour {
        service: "kms",
        what: "CreateKey has no client token: a repeated call creates another key",
        source: Source::Model,
    },
    Behaviour {
        service: "kms",
        what: "a key waits 7 to 30 days for its deletion, can be used for nothing, and refuses changes with \
               KMSInvalidStateException",
        source: Source::Documentation("https://docs.aws.amazon.com/kms/latest/developerguide/key-state.html"),
    },
    Behaviour {
        service: "kms",
        what: "aliases stay until the key is deleted, are unique in a region, and may not begin with alias/aws/",
        source: Source::Documentation("https://docs.aws.amazon.com/kms/latest/APIReference/API_CreateAlias.html"),
    },
    Behaviour {
        service: "kms",
        what: "rotation of a disabled key is refused with DisabledException; the period is 90 to 2560 days, at first 365",
        source: Source::Documentation("https://docs.aws.amazon.com/kms/latest/APIReference/API_EnableKeyRotation.html"),
    },
    Behaviour {
        service: "kms",
        what: "a policy that admits nobody of the account to PutKeyPolicy is refused with \
               MalformedPolicyDocumentException",
        source: Source::Documentation("https://docs.aws.amazon.com/kms/latest/APIReference/API_PutKeyPolicy.html"),
    },
    Behaviour {
        service: "kms",
        what: "a policy counts as admitting the account only if it names the account, its root, its caller or *",
        source: Source::LeftOut("policies are not evaluated"),
    },
    Behaviour {
        service: "kms",
        what: "new keys and aliases are seen in ListKeys and ListAliases later",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/kms/latest/developerguide/accessing-kms.html#programming-eventual-consistency",
        ),
    },
    Behaviour {
        service: "kms",
        what: "that takes some seconds, and reads by id or alias show them at once",
        source: Source::LeftOut("a wait of the simulator; lists are where callers depend on it"),
    },
];

/// What KMS holds in a region.
#[derive(Default)]
pub struct Kms {
    /// The keys by their ids.
    pub keys: BTreeMap<String, Key>,
    /// The aliases by their names.
    pub aliases: BTreeMap<String, Alias>,
}

/// A key.
pub struct Key {
    /// Its ARN.
    pub arn: String,
    /// Whether it can be used; not while it waits for its deletion.
    pub enabled: bool,
    /// When it is deleted, if that is scheduled.
    pub deletion: Option<Timestamp>,
    /// Its policy, as text.
    pub policy: String,
    description: String,
    rotation_days: Option<i64>,
    created: Timestamp,
    visible: Timestamp,
}

/// An alias.
pub struct Alias {
    /// The id of its key.
    pub key: String,
    visible: Timestamp,
}

impl Key {
    /// The state as `DescribeKey` names it.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match (self.deletion, self.enabled) {
            (Some(_), _) => "PendingDeletion",
            (None, true) => "Enabled",
            (None, false) => "Disabled",
        }
    }
}

/// The key that other services would use: by id, ARN, alias or the alias's ARN.
#[must_use]
pub fn key<'a>(world: &'a World, scope: &Scope, id: &str) -> Option<&'a Key> {
    let state = world.find::<Kms>(scope)?;
    let name = if id.starts_with("arn:") { id.splitn(6, ':').nth(5)? } else { id };
    let name = name.strip_prefix("key/").unwrap_or(name);
    let name = state.aliases.get(name).map_or(name, |alias| alias.key.as_str());
    let key = state.keys.get(name)?;
    // An ARN of another region or account names another key.
    (!id.starts_with("arn:aws:kms:") || id.starts_with(key.arn.split(":key/").next()?)).then_some(key)
}

/// The ids of the keys whose aliases a service of AWS has, such as `alias/aws/s3`, are not simulated: what uses none is encrypted
/// without a key of the account.
fn find(world: &World, call: &Call) -> Result<String, Fault> {
    let id = call.text("KeyId");
    let found = key(world, &call.scope(), id).and_then(|key| Some(key.arn.rsplit_once('/')?.1.to_owned()));
    found.ok_or_else(|| {
        let what = if id.contains("alias/") { "Alias" } else { "Key" };
        let name = if id.starts_with("arn:") { id.to_owned() } else { call.arn(id) };
        Fault::new("NotFoundException", format!("{what} {name} is not found."))
    })
}

/// The key of the input, if it can be changed.
fn changeable<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut Key, Fault> {
    let id = find(world, call)?;
    let state = world.state::<Kms>(&call.scope());
    let key = state.keys.get_mut(&id).ok_or_else(|| Fault::new("NotFoundException", "the key is gone"))?;
    if key.deletion.is_some() {
        return Err(Fault::new("KMSInvalidStateException", format!("{} is pending deletion.", key.arn)));
    }
    Ok(key)
}

fn metadata(call: &Call, id: &str, key: &Key) -> Value {
    let mut metadata = json!({
        "AWSAccountId": call.account,
        "KeyId": id,
        "Arn": key.arn,
        "CreationDate": timestamp(key.created),
        "Enabled": key.enabled && key.deletion.is_none(),
        "Description": key.description,
        "KeyUsage": "ENCRYPT_DECRYPT",
        "KeyState": key.state(),
        "Origin": "AWS_KMS",
        "KeyManager": "CUSTOMER",
        "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT",
        "KeySpec": "SYMMETRIC_DEFAULT",
        "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"],
        "MultiRegion": false,
    });
    if let Some(deletion) = key.deletion {
        metadata["DeletionDate"] = timestamp(deletion);
    }
    metadata
}

fn check_policy(call: &Call, policy: &str) -> Result<(), Fault> {
    let malformed = |why: &str| Fault::new("MalformedPolicyDocumentException", why);
    let document: Value =
        serde_json::from_str(policy).map_err(|_| malformed("Policy contains a statement that is not JSON"))?;
    let statements = match &document["Statement"] {
        Value::Array(statements) => statements.clone(),
        Value::Object(_) => vec![document["Statement"].clone()],
        _ => return Err(malformed("The policy has no statement")),
    };
    let texts = |value: &Value| -> Vec<String> {
        match value {
            Value::String(text) => vec![text.clone()],
            Value::Array(all) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => Vec::new(),
        }
    };
    let admits = |statement: &Value| {
        let mut principals = texts(&statement["Principal"]["AWS"]);
        principals.extend(texts(&statement["Principal"]));
        let root = format!("arn:aws:iam::{}:root", call.account);
        let is_of_account =
            principals.iter().any(|one| [root.as_str(), &call.account, &call.identity, "*"].contains(&one.as_str()));
        let allows = texts(&statement["Action"])
            .iter()
            .any(|one| ["kms:*", "*", "kms:PutKeyPolicy", "kms:Put*"].contains(&one.as_str()));
        statement["Effect"] == "Allow" && is_of_account && allows
    };
    if !call.is("BypassPolicyLockoutSafetyCheck") && !statements.iter().any(admits) {
        return Err(malformed("The new key policy will not allow you to update the key policy in the future."));
    }
    Ok(())
}

fn pairs(call: &Call) -> Result<Vec<(String, String)>, Fault> {
    let text = |tag: &Value, member: &str| tag[member].as_str().unwrap_or_default().to_owned();
    let pairs: Vec<_> = call.list("Tags").iter().map(|tag| (text(tag, "TagKey"), text(tag, "TagValue"))).collect();
    if pairs.iter().any(|(key, _)| key.starts_with("aws:")) {
        return Err(Fault::new("TagException", "Tag keys may not begin with aws:"));
    }
    Ok(pairs)
}

fn create_key(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let tags = pairs(call)?;
    let root = json!({ "Version": "2012-10-17", "Statement": [{
        "Sid": "Enable IAM User Permissions", "Effect": "Allow", "Action": "kms:*", "Resource": "*",
        "Principal": { "AWS": format!("arn:aws:iam::{}:root", call.account) },
    }] });
    let policy = call.str("Policy").map_or_else(|| root.to_string(), str::to_owned);
    check_policy(call, &policy)?;
    let id = call.random.uuid();
    let key = Key {
        arn: call.arn(&format!("key/{id}")),
        enabled: true,
        deletion: None,
        policy,
        description: call.str("Description").unwrap_or_default().to_owned(),
        rotation_days: None,
        created: call.now,
        visible: call.visible(),
    };
    world.tags.set(&key.arn, tags, call.visible());
    let answer = json!({ "KeyMetadata": metadata(call, &id, &key) });
    world.state::<Kms>(&call.scope()).keys.insert(id, key);
    Ok(answer)
}

fn describe_key(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = find(world, call)?;
    let key = key(world, &call.scope(), &id).ok_or_else(|| Fault::new("NotFoundException", "the key is gone"))?;
    Ok(json!({ "KeyMetadata": metadata(call, &id, key) }))
}

fn list_keys(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let keys = &world.state::<Kms>(&call.scope()).keys;
    let seen = keys.iter().filter(|(_, key)| key.visible <= call.now);
    let all = seen.map(|(id, key)| json!({ "KeyId": id, "KeyArn": key.arn })).collect();
    call.page("Keys", all, invalid_marker())
}

fn invalid_marker() -> Fault {
    Fault::new("InvalidMarkerException", "The marker is not valid.")
}

fn list_aliases(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let of = match call.str("KeyId") {
        Some(_) => Some(find(world, call)?),
        None => None,
    };
    let aliases = &world.state::<Kms>(&call.scope()).aliases;
    // An alias is asked for by its key at once, as by its name.
    let seen = aliases.iter().filter(|(_, alias)| match &of {
        Some(key) => alias.key == *key,
        None => alias.visible <= call.now,
    });
    let all =
        seen.map(|(name, alias)| json!({ "AliasName": name, "AliasArn": call.arn(name), "TargetKeyId": alias.key }));
    call.page("Aliases", all.collect(), invalid_marker())
}

fn alias_target(world: &mut World, call: &Call) -> Result<String, Fault> {
    let target = Call { input: json!({ "KeyId": call.text("TargetKeyId") }), ..call.clone() };
    let key = changeable(world, &target)?;
    Ok(key.arn.rsplit_once('/').map(|(_, id)| id.to_owned()).unwrap_or_default())
}

fn create_alias(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("AliasName");
    if !name.starts_with("alias/") || name.starts_with("alias/aws/") || name == "alias/" {
        return Err(Fault::new("InvalidAliasNameException", "Alias must start with the prefix \"alias/\"."));
    }
    let key = alias_target(world, call)?;
    let visible = call.visible();
    let aliases = &mut world.state::<Kms>(&call.scope()).aliases;
    if aliases.contains_key(name) {
        let message = format!("An alias with the name {} already exists", call.arn(name));
        return Err(Fault::new("AlreadyExistsException", message));
    }
    aliases.insert(name.to_owned(), Alias { key, visible });
    Ok(json!({}))
}

fn alias_not_found(call: &Call) -> Fault {
    Fault::new("NotFoundException", format!("Alias {} is not found.", call.arn(call.text("AliasName"))))
}

fn update_alias(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let key = alias_target(world, call)?;
    let alias = world.state::<Kms>(&call.scope()).aliases.get_mut(call.text("AliasName"));
    alias.ok_or_else(|| alias_not_found(call))?.key = key;
    Ok(json!({}))
}

fn delete_alias(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let removed = world.state::<Kms>(&call.scope()).aliases.remove(call.text("AliasName"));
    removed.map(|_| json!({})).ok_or_else(|| alias_not_found(call))
}

fn enable_key(world: &mut World, call: &Call) -> Result<Value, Fault> {
    changeable(world, call)?.enabled = true;
    Ok(json!({}))
}

fn disable_key(world: &mut World, call: &Call) -> Result<Value, Fault> {
    changeable(world, call)?.enabled = false;
    Ok(json!({}))
}

fn enable_key_rotation(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let days = call.int("RotationPeriodInDays").unwrap_or(365);
    let key = changeable(world, call)?;
    if !key.enabled {
        return Err(Fault::new("DisabledException", format!("{} is disabled.", key.arn)));
    }
    key.rotation_days = Some(days);
    Ok(json!({}))
}

fn disable_key_rotation(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let key = changeable(world, call)?;
    if !key.enabled {
        return Err(Fault::new("DisabledException", format!("{} is disabled.", key.arn)));
    }
    key.rotation_days = None;
    Ok(json!({}))
}

fn get_key_rotation_status(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let key = changeable(world, call)?;
    let mut status = json!({ "KeyId": key.arn, "KeyRotationEnabled": key.rotation_days.is_some() });
    if let Some(days) = key.rotation_days {
        status["RotationPeriodInDays"] = days.into();
    }
    Ok(status)
}

fn get_key_policy(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = find(world, call)?;
    let key = key(world, &call.scope(), &id).ok_or_else(|| Fault::new("NotFoundException", "the key is gone"))?;
    Ok(json!({ "Policy": key.policy, "PolicyName": "default" }))
}

fn put_key_policy(world: &mut World, call: &Call) -> Result<Value, Fault> {
    check_policy(call, call.text("Policy"))?;
    changeable(world, call)?.policy = call.text("Policy").to_owned();
    Ok(json!({}))
}

fn update_key_description(world: &mut World, call: &Call) -> Result<Value, Fault> {
    changeable(world, call)?.description = call.text("Description").to_owned();
    Ok(json!({}))
}

fn list_resource_tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = find(world, call)?;
    let tags = world.tags.of(&call.arn(&format!("key/{id}")));
    let tags = tags.into_iter().map(|(key, value)| json!({ "TagKey": key, "TagValue": value })).collect();
    call.page("Tags", tags, invalid_marker())
}

fn tag_resource(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let tags = pairs(call)?;
    let arn = changeable(world, call)?.arn.clone();
    world.tags.set(&arn, tags, call.visible());
    Ok(json!({}))
}

fn untag_resource(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = changeable(world, call)?.arn.clone();
    world.tags.remove(&arn, call.texts("TagKeys"));
    Ok(json!({}))
}

const DAY: Duration = Duration::from_secs(86_400);

fn schedule_key_deletion(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let days = call.int("PendingWindowInDays").unwrap_or(30);
    if !(7..=30).contains(&days) {
        let message = "PendingWindowInDays must be between 7 and 30 (inclusive)";
        return Err(Fault::new("ValidationException", message).status(400));
    }
    let window = DAY * u32::try_from(days).unwrap_or_default();
    let key = changeable(world, call)?;
    key.deletion = Some(later(call.now, window));
    let arn = key.arn.clone();
    let (scope, deleted) = (call.scope(), arn.clone());
    // A window of days passes by no request: what is gone after it was pending before.
    world.defer(later(call.now, window), move |world| {
        let id = deleted.rsplit_once('/').map(|(_, id)| id.to_owned()).unwrap_or_default();
        let state = world.state::<Kms>(&scope);
        if state.keys.get(&id).is_some_and(|key| key.deletion.is_some()) {
            state.keys.remove(&id);
            state.aliases.retain(|_, alias| alias.key != id);
            world.tags.forget(&deleted);
        }
    });
    let date = timestamp(later(call.now, window));
    Ok(json!({ "KeyId": arn, "DeletionDate": date, "KeyState": "PendingDeletion", "PendingWindowInDays": days }))
}

fn cancel_key_deletion(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let id = find(world, call)?;
    let state = world.state::<Kms>(&call.scope());
    let key = state.keys.get_mut(&id).filter(|key| key.deletion.is_some());
    let key = key.ok_or_else(|| Fault::new("KMSInvalidStateException", format!("{id} is not pending deletion.")))?;
    key.deletion = None;
    key.enabled = false;
    Ok(json!({ "KeyId": key.arn }))
}
