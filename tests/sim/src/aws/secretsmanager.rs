//! Secrets Manager.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::kms;
use crate::{Behaviour, Call, Fault, Service, Source, World, later, timestamp};

/// The service.
pub const SERVICE: Service = Service {
    name: "secretsmanager",
    model: "secretsmanager",
    operations: &[
        ("CreateSecret", create),
        ("DeleteSecret", delete),
        ("DescribeSecret", describe),
        ("GetSecretValue", get_value),
        ("ListSecrets", list),
        ("PutSecretValue", put_value),
        ("RestoreSecret", restore),
        ("TagResource", tag),
        ("UntagResource", untag),
        ("UpdateSecret", update),
    ],
    quotas: &[],
    ledger: LEDGER,
};

const LEDGER: &[Behaviour] = &[
    Behaviour {
        service: "secretsmanager",
        what: "a client token is the id of the version that it makes: repeated with the same value it does nothing, with another \
               one it is refused with ResourceExistsException",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_PutSecretValue.html",
        ),
    },
    Behaviour {
        service: "secretsmanager",
        what: "a deleted secret keeps its name for 7 to 30 days and is neither read nor changed: InvalidRequestException; without \
               recovery it is gone at once",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_DeleteSecret.html",
        ),
    },
    Behaviour {
        service: "secretsmanager",
        what: "a value is written only with a key that can be used: EncryptionFailure",
        source: Source::Documentation("https://docs.aws.amazon.com/kms/latest/developerguide/key-state.html"),
    },
    Behaviour {
        service: "secretsmanager",
        what: "filters of lists match the start of a word",
        source: Source::Documentation("https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_Filter.html"),
    },
    Behaviour {
        service: "secretsmanager",
        what: "new secrets are listed some seconds later",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_ListSecrets.html",
        ),
    },
];

/// What Secrets Manager holds in a region.
#[derive(Default)]
pub struct SecretsManager {
    /// The secrets by their names.
    pub secrets: BTreeMap<String, Secret>,
}

/// A secret.
pub struct Secret {
    /// Its ARN.
    pub arn: String,
    /// Its values by the ids of their versions.
    pub versions: BTreeMap<String, String>,
    current: String,
    previous: Option<String>,
    description: Option<String>,
    key: Option<String>,
    deleted: Option<Timestamp>,
    created: Timestamp,
    visible: Timestamp,
}

fn not_found() -> Fault {
    Fault::new("ResourceNotFoundException", "Secrets Manager can't find the specified secret.")
}

/// The name that an id stands for: a name, or an ARN.
fn name(world: &World, call: &Call) -> Result<String, Fault> {
    let id = call.text("SecretId");
    let state = world.find::<SecretsManager>(&call.scope()).ok_or_else(not_found)?;
    let found = state.secrets.iter().find(|(name, secret)| *name == id || secret.arn == id);
    found.map(|(name, _)| name.clone()).ok_or_else(not_found)
}

fn changeable<'a>(world: &'a mut World, call: &Call) -> Result<(String, &'a mut Secret), Fault> {
    let name = name(world, call)?;
    let secret = world.state::<SecretsManager>(&call.scope()).secrets.get_mut(&name).ok_or_else(not_found)?;
    if secret.deleted.is_some() {
        let message = "You can't perform this operation on the secret because it was marked for deletion.";
        return Err(Fault::new("InvalidRequestException", message));
    }
    Ok((name, secret))
}

fn check_key(world: &World, call: &Call, key: Option<&str>) -> Result<(), Fault> {
    let Some(id) = key.filter(|id| !id.starts_with("alias/aws/")) else { return Ok(()) };
    match kms::key(world, &call.scope(), id).map(kms::Key::state) {
        Some("Enabled") => Ok(()),
        _ => Err(Fault::new("EncryptionFailure", format!("The key {id} cannot be used."))),
    }
}

fn pairs(call: &Call) -> Result<Vec<(String, String)>, Fault> {
    let text = |tag: &Value, member: &str| tag[member].as_str().unwrap_or_default().to_owned();
    let pairs: Vec<_> = call.list("Tags").iter().map(|tag| (text(tag, "Key"), text(tag, "Value"))).collect();
    match pairs.iter().any(|(key, _)| key.is_empty() || key.starts_with("aws:")) {
        true => Err(Fault::new("InvalidParameterException", "Tag keys may not begin with aws:")),
        false => Ok(pairs),
    }
}

fn token(call: &Call) -> String {
    call.str("ClientRequestToken").map_or_else(|| call.random.uuid(), str::to_owned)
}

fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("Name");
    let is_valid = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_+=.@-".contains(&b));
    if !is_valid {
        let message =
            "Invalid name. Must be a valid name containing alphanumeric characters, or any of the following: -/_+=.@!";
        return Err(Fault::new("ValidationException", message).status(400));
    }
    let tags = pairs(call)?;
    let (token, value) = (token(call), call.text("SecretString").to_owned());
    if let Some(known) = world.state::<SecretsManager>(&call.scope()).secrets.get(name) {
        if known.deleted.is_some() {
            let message =
                "You can't create this secret because a secret with this name is already scheduled for deletion.";
            return Err(Fault::new("InvalidRequestException", message));
        }
        if known.versions.get(&token) != Some(&value) {
            let message = format!("The operation failed because the secret {name} already exists.");
            return Err(Fault::new("ResourceExistsException", message));
        }
        return Ok(json!({ "ARN": known.arn, "Name": name, "VersionId": token }));
    }
    check_key(world, call, call.str("KmsKeyId"))?;
    let secret = Secret {
        arn: call.arn(&format!("secret:{name}-{}", call.random.hex(6))),
        versions: BTreeMap::from([(token.clone(), value)]),
        current: token.clone(),
        previous: None,
        description: call.str("Description").map(str::to_owned),
        key: call.str("KmsKeyId").map(str::to_owned),
        deleted: None,
        created: call.now,
        visible: call.visible(),
    };
    world.tags.set(&secret.arn, tags, call.visible());
    let answer = json!({ "ARN": secret.arn, "Name": name, "VersionId": token });
    world.state::<SecretsManager>(&call.scope()).secrets.insert(name.to_owned(), secret);
    Ok(answer)
}

fn shown(world: &World, name: &str, secret: &Secret, stages: &str) -> Value {
    let tags = world.tags.of(&secret.arn).into_iter().map(|(key, value)| json!({ "Key": key, "Value": value }));
    let mut shown = json!({
        "ARN": secret.arn, "Name": name, "CreatedDate": timestamp(secret.created), "Tags": tags.collect::<Vec<_>>(),
    });
    let mut versions = Map::from_iter([(secret.current.clone(), json!(["AWSCURRENT"]))]);
    versions.extend(secret.previous.clone().map(|id| (id, json!(["AWSPREVIOUS"]))));
    shown[stages] = versions.into();
    for (member, value) in [("Description", &secret.description), ("KmsKeyId", &secret.key)] {
        if let Some(value) = value {
            shown[member] = value.as_str().into();
        }
    }
    if let Some(deleted) = secret.deleted {
        shown["DeletedDate"] = timestamp(deleted);
    }
    shown
}

fn describe(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = name(world, call)?;
    let state = world.find::<SecretsManager>(&call.scope());
    let secret = state.and_then(|state| state.secrets.get(&name)).ok_or_else(not_found)?;
    Ok(shown(world, &name, secret, "VersionIdsToStages"))
}

fn list(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let Some(state) = world.find::<SecretsManager>(&call.scope()) else { return Ok(json!({ "SecretList": [] })) };
    let mut found = Vec::new();
    for (name, secret) in state.secrets.iter().filter(|(_, one)| one.visible <= call.now && one.deleted.is_none()) {
        let tags = world.tags.of(&secret.arn);
        let passes = call.list("Filters").iter().all(|filter| {
            let values: Vec<&str> =
                filter["Values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let any = |text: &str| values.iter().any(|value| text.starts_with(value));
            match filter["Key"].as_str() {
                Some("name") => any(name),
                Some("tag-key") => tags.keys().any(|key| any(key)),
                Some("tag-value") => tags.values().any(|value| any(value)),
                _ => true,
            }
        });
        if passes {
            found.push(shown(world, name, secret, "SecretVersionsToStages"));
        }
    }
    call.page("SecretList", found, Fault::new("InvalidNextTokenException", "The token is not valid."))
}

fn put_value(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (token, value) = (token(call), call.text("SecretString").to_owned());
    let (_, secret) = changeable(world, call)?;
    let key = secret.key.clone();
    check_key(world, call, key.as_deref())?;
    let (name, secret) = changeable(world, call)?;
    match secret.versions.get(&token) {
        Some(known) if *known != value => {
            let message = "You can't use ClientRequestToken again with another value.";
            return Err(Fault::new("ResourceExistsException", message));
        }
        Some(_) => {}
        None => {
            secret.versions.insert(token.clone(), value);
            secret.previous = Some(std::mem::replace(&mut secret.current, token.clone()));
        }
    }
    Ok(json!({ "ARN": secret.arn, "Name": name, "VersionId": token, "VersionStages": ["AWSCURRENT"] }))
}

fn get_value(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (_, secret) = changeable(world, call)?;
    let key = secret.key.clone();
    check_key(world, call, key.as_deref()).map_err(|_| Fault::new("DecryptionFailure", "The key cannot be used."))?;
    let (name, secret) = changeable(world, call)?;
    let value = secret.versions.get(&secret.current).cloned().unwrap_or_default();
    Ok(
        json!({ "ARN": secret.arn, "Name": name, "VersionId": secret.current, "SecretString": value, "VersionStages": ["AWSCURRENT"] }),
    )
}

fn update(world: &mut World, call: &Call) -> Result<Value, Fault> {
    check_key(world, call, call.str("KmsKeyId"))?;
    let (name, secret) = changeable(world, call)?;
    if let Some(description) = call.str("Description") {
        secret.description = Some(description.to_owned());
    }
    if let Some(key) = call.str("KmsKeyId") {
        secret.key = (key != "alias/aws/secretsmanager").then(|| key.to_owned());
    }
    Ok(json!({ "ARN": secret.arn, "Name": name }))
}

const DAY: Duration = Duration::from_secs(86_400);

fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let is_forced = call.is("ForceDeleteWithoutRecovery");
    let days = call.int("RecoveryWindowInDays");
    if is_forced && days.is_some() {
        let message = "You can't use ForceDeleteWithoutRecovery in conjunction with RecoveryWindowInDays.";
        return Err(Fault::new("InvalidParameterException", message));
    }
    let days = days.unwrap_or(30);
    if !(7..=30).contains(&days) {
        let message = "The RecoveryWindowInDays value must be between 7 and 30 days (inclusive).";
        return Err(Fault::new("InvalidParameterException", message));
    }
    let (name, secret) = changeable(world, call)?;
    let arn = secret.arn.clone();
    let after = if is_forced { Duration::ZERO } else { DAY * u32::try_from(days).unwrap_or_default() };
    let end = later(call.now, after);
    secret.deleted = Some(end);
    let answer = json!({ "ARN": arn, "Name": name, "DeletionDate": timestamp(end) });
    let scope = call.scope();
    let remove = move |world: &mut World| {
        let secrets = &mut world.state::<SecretsManager>(&scope).secrets;
        if secrets.get(&name).is_some_and(|secret| secret.deleted == Some(end)) {
            secrets.remove(&name);
            world.tags.forget(&arn);
        }
    };
    if is_forced {
        remove(world)
    } else {
        world.defer(end, remove)
    }
    Ok(answer)
}

fn restore(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = name(world, call)?;
    let secret = world.state::<SecretsManager>(&call.scope()).secrets.get_mut(&name).ok_or_else(not_found)?;
    secret.deleted = None;
    Ok(json!({ "ARN": secret.arn, "Name": name }))
}

fn tag(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let tags = pairs(call)?;
    let arn = changeable(world, call)?.1.arn.clone();
    world.tags.set(&arn, tags, call.visible());
    Ok(json!({}))
}

fn untag(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = changeable(world, call)?.1.arn.clone();
    world.tags.remove(&arn, call.texts("TagKeys"));
    Ok(json!({}))
}
