//! Security Token Service.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};

use super::iam::{Iam, Role, trusts};
use crate::{Behaviour, Call, Credential, Fault, Scope, Service, Source, World, later, timestamp};

/// The service.
pub const SERVICE: Service = Service {
    name: "sts",
    model: "sts",
    operations: &[
        ("AssumeRole", assume_role),
        ("AssumeRoleWithWebIdentity", assume_role_with_web_identity),
        ("GetCallerIdentity", get_caller_identity),
    ],
    quotas: &[],
    ledger: LEDGER,
};

const LEDGER: &[Behaviour] = &[
    Behaviour {
        service: "sts",
        what: "GetCallerIdentity needs no permission, and gives account, ARN and unique id of the signer",
        source: Source::Documentation("https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html"),
    },
    Behaviour {
        service: "sts",
        what: "AssumeRole needs a trust that names the caller or its account, and the external id and MFA of its conditions",
        source: Source::Documentation("https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html"),
    },
    Behaviour {
        service: "sts",
        what: "a session lasts an hour, or DurationSeconds up to the MaxSessionDuration of the role",
        source: Source::Documentation("https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html"),
    },
    Behaviour {
        service: "sts",
        what: "a code of an MFA device is accepted once, and a wrong one is AccessDenied",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/IAM/latest/UserGuide/id_credentials_mfa_sample-code.html",
        ),
    },
    Behaviour {
        service: "sts",
        what: "AssumeRoleWithWebIdentity needs a token of a registered provider, with its audience, that has not expired",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html",
        ),
    },
    Behaviour {
        service: "sts",
        what: "the signature of a web identity token is not verified",
        source: Source::LeftOut("no test forges one"),
    },
];

/// What STS holds of an account.
#[derive(Default)]
pub struct Sts {
    /// The codes that each MFA device shows, by its serial number. Each is accepted once.
    pub devices: BTreeMap<String, BTreeSet<String>>,
}

fn get_caller_identity(_: &mut World, call: &Call) -> Result<Value, Fault> {
    Ok(json!({ "Account": call.account, "Arn": call.identity, "UserId": call.identity_id }))
}

/// The account and the role of an ARN, as STS sees it.
fn role(world: &World, call: &Call, arn: &str) -> Option<(String, Role)> {
    let account = arn.split(':').nth(4)?.to_owned();
    let role = world.find::<Iam>(&Scope::global(&account))?.seen_role(arn, call.now)?.clone();
    Some((account, role))
}

fn assume_role(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = call.text("RoleArn");
    let denied = || {
        let message =
            format!("User: {} is not authorized to perform: sts:AssumeRole on resource: {arn}", call.identity);
        Fault::new("AccessDenied", message).status(403)
    };
    let (account, role) = role(world, call, arn).ok_or_else(denied)?;
    let root = format!("arn:aws:iam::{}:root", call.account);
    let is_caller = |name: &str| name == root || name == call.account || name == call.identity;
    let statement = trusts(&role.trust, "sts:AssumeRole", "AWS", is_caller).ok_or_else(denied)?;
    let condition = &statement["Condition"];
    let external = &condition["StringEquals"]["sts:ExternalId"];
    let is_given = |wanted: &Value| match wanted {
        Value::Array(all) => all.iter().any(|one| one.as_str() == call.str("ExternalId")),
        one => one.as_str() == call.str("ExternalId"),
    };
    if !external.is_null() && !is_given(external) {
        return Err(denied());
    }
    let mfa = &condition["Bool"]["aws:MultiFactorAuthPresent"];
    let code = call.str("SerialNumber").zip(call.str("TokenCode"));
    if (*mfa == "true" || *mfa == true) && code.is_none() {
        return Err(denied());
    }
    let seconds = call.int("DurationSeconds").unwrap_or(3600);
    if seconds > role.session {
        let message = "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.";
        return Err(Fault::new("ValidationError", message).status(400));
    }
    if let Some((serial, code)) = code {
        let devices = &mut world.state::<Sts>(&call.global()).devices;
        let is_valid = devices.get_mut(serial).is_some_and(|codes| codes.remove(code));
        if !is_valid {
            let message = "MultiFactorAuthentication failed with invalid MFA one time pass code. ";
            return Err(Fault::new("AccessDenied", message).status(403));
        }
    }
    session(world, call, &account, &role)
}

fn assume_role_with_web_identity(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let invalid = |why: &str| Fault::new("InvalidIdentityToken", why);
    let claims = call.text("WebIdentityToken").split('.').nth(1).and_then(|part| {
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).ok()?;
        serde_json::from_slice::<Value>(&bytes).ok()
    });
    let claims = claims.ok_or_else(|| invalid("The ID Token provided is not a valid JWT."))?;
    let arn = call.text("RoleArn");
    let denied = || Fault::new("AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity").status(403);
    let (account, role) = role(world, call, arn).ok_or_else(denied)?;
    let issuer = claims["iss"].as_str().unwrap_or_default().trim_start_matches("https://").to_owned();
    let provider = world.find::<Iam>(&Scope::global(&account)).and_then(|iam| iam.providers.get(&issuer)).cloned();
    let provider = provider
        .ok_or_else(|| invalid(&format!("No OpenIDConnect provider found in your account for https://{issuer}")))?;
    if claims["exp"].as_i64().is_none_or(|ends| ends <= call.now.as_second()) {
        return Err(Fault::new("ExpiredTokenException", "Token expired"));
    }
    let audiences = match &claims["aud"] {
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect::<Vec<_>>(),
    };
    if !audiences.iter().any(|audience| provider.audiences.iter().any(|known| known == audience)) {
        return Err(invalid("Incorrect token audience"));
    }
    let action = "sts:AssumeRoleWithWebIdentity";
    let statement = trusts(&role.trust, action, "Federated", |name| name == provider.arn).ok_or_else(denied)?;
    for (key, wanted) in statement["Condition"]["StringEquals"].as_object().into_iter().flatten() {
        let claim = key.strip_prefix(&format!("{issuer}:")).map(|name| &claims[name]);
        let is_met = claim.is_some_and(|claim| match wanted {
            Value::Array(all) => all.contains(claim),
            one => one == claim,
        });
        if !is_met {
            return Err(denied());
        }
    }
    session(world, call, &account, &role)
}

/// The credentials of a session of a role.
fn session(world: &mut World, call: &Call, account: &str, role: &Role) -> Result<Value, Fault> {
    let name = role.arn.rsplit('/').next().unwrap_or_default();
    let session = call.text("RoleSessionName");
    let identity = format!("arn:aws:sts::{account}:assumed-role/{name}/{session}");
    let id = format!("{}:{session}", role.id);
    let seconds = u64::try_from(call.int("DurationSeconds").unwrap_or(3600)).unwrap_or(3600);
    let expires = later(call.now, Duration::from_secs(seconds));
    let access_key = format!("ASIA{}", call.random.base32(16));
    let (secret, token) = (call.random.hex(40), call.random.hex(200));
    let credential = Credential {
        secret: secret.clone(),
        token: Some(token.clone()),
        account: account.to_owned(),
        identity: identity.clone(),
        id: id.clone(),
        expires: Some(expires),
    };
    world.credentials.insert(&access_key, credential);
    Ok(json!({
        "Credentials": {
            "AccessKeyId": access_key,
            "SecretAccessKey": secret,
            "SessionToken": token,
            "Expiration": timestamp(expires),
        },
        "AssumedRoleUser": { "AssumedRoleId": id, "Arn": identity },
    }))
}
