//! OIDC providers.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{PROVIDERS, arn, iam, new_tags, over, page, tag_list};
use crate::{Call, Fault, World, timestamp};

/// An OIDC provider.
#[derive(Clone)]
pub struct Provider {
    /// Its ARN.
    pub arn: String,
    /// The audiences that it accepts.
    pub audiences: Vec<String>,
    thumbprints: Vec<String>,
    created: Timestamp,
}

fn provider<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut Provider, Fault> {
    let arn = call.text("OpenIDConnectProviderArn");
    let found = iam(world, call).providers.values_mut().find(|provider| provider.arn == arn);
    found.ok_or_else(|| Fault::new("NoSuchEntity", format!("OpenIDConnect Provider not found for arn {arn}")))
}

pub(super) fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let invalid = |why: &str| Err(Fault::new("InvalidInput", why));
    let Some(host) = call.text("Url").strip_prefix("https://").filter(|host| !host.is_empty()) else {
        return invalid("Invalid Open ID Connect Provider URL");
    };
    let audiences: Vec<String> = call.texts("ClientIDList").into_iter().map(str::to_owned).collect();
    if audiences.len() > 100 {
        return Err(Fault::new("LimitExceeded", "Cannot exceed quota for ClientIdsPerOpenIdConnectProvider: 100"));
    }
    let tags = new_tags(call)?;
    let providers = &iam(world, call).providers;
    if providers.contains_key(host) {
        return Err(Fault::new("EntityAlreadyExists", format!("Provider with url https://{host} already exists.")));
    }
    let count = providers.len();
    over(world, call, &PROVIDERS, "OpenIdConnectProvidersPerAccount", count)?;
    let arn = arn(call, &format!("oidc-provider/{host}"));
    // Without one in the request, that of the issuer's certificate authority.
    let given: Vec<String> = call.texts("ThumbprintList").into_iter().map(str::to_owned).collect();
    let thumbprints = if given.is_empty() { vec![call.random.hex(40)] } else { given };
    let provider = Provider { arn: arn.clone(), audiences, thumbprints, created: call.now };
    iam(world, call).providers.insert(host.to_owned(), provider);
    world.tags.set(&arn, tags.clone(), call.visible());
    let mut answer = json!({ "OpenIDConnectProviderArn": arn });
    if !tags.is_empty() {
        answer["Tags"] = tag_list(&tags.into_iter().collect());
    }
    Ok(answer)
}

pub(super) fn get(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let provider = provider(world, call)?.clone();
    let host = provider.arn.split_once(":oidc-provider/").map_or("", |(_, host)| host);
    Ok(json!({
        "Url": host,
        "ClientIDList": provider.audiences,
        "ThumbprintList": provider.thumbprints,
        "CreateDate": timestamp(provider.created),
        "Tags": tag_list(&world.tags.of(&provider.arn)),
    }))
}

pub(super) fn list(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let all: Vec<Value> = iam(world, call).providers.values().map(|provider| json!({ "Arn": provider.arn })).collect();
    Ok(json!({ "OpenIDConnectProviderList": all }))
}

pub(super) fn tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = provider(world, call)?.arn.clone();
    let tags = world.tags.of(&arn);
    page(call, "Tags", tags.iter().map(|(key, value)| json!({ "Key": key, "Value": value })).collect())
}

pub(super) fn add_audience(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let audience = call.text("ClientID");
    let provider = provider(world, call)?;
    if !provider.audiences.iter().any(|known| known == audience) {
        provider.audiences.push(audience.to_owned());
    }
    Ok(json!({}))
}

pub(super) fn remove_audience(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let audience = call.text("ClientID");
    provider(world, call)?.audiences.retain(|known| known != audience);
    Ok(json!({}))
}

pub(super) fn tag(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = provider(world, call)?.arn.clone();
    super::set_tags(world, call, &arn)
}

pub(super) fn untag(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = provider(world, call)?.arn.clone();
    super::remove_tags(world, call, &arn)
}

/// Also of one that is not there: the call is idempotent.
pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = call.text("OpenIDConnectProviderArn");
    iam(world, call).providers.retain(|_, provider| provider.arn != arn);
    world.tags.forget(arn);
    Ok(json!({}))
}
