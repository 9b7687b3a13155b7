//! Instance profiles.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{PROFILES, arn, iam, new_tags, no_such, over, page, role, tag_list};
use crate::{Call, Fault, World, timestamp};

/// An instance profile.
#[derive(Clone)]
pub struct Profile {
    /// Its ARN.
    pub arn: String,
    /// The name of its role.
    pub role: Option<String>,
    /// From when on other services see it, with its role.
    pub visible: Timestamp,
    id: String,
    path: String,
    created: Timestamp,
}

fn profile<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut Profile, Fault> {
    let name = call.text("InstanceProfileName");
    let not_found = || no_such("instance profile", name);
    iam(world, call).profiles.get_mut(name).ok_or_else(not_found)
}

fn answer(world: &mut World, call: &Call, name: &str) -> Value {
    let Some(profile) = iam(world, call).profiles.get(name).cloned() else { return Value::Null };
    let roles: Vec<Value> =
        profile.role.as_deref().and_then(|name| role::in_profile(world, call, name)).into_iter().collect();
    json!({
        "Path": profile.path,
        "InstanceProfileName": name,
        "InstanceProfileId": profile.id,
        "Arn": profile.arn,
        "CreateDate": timestamp(profile.created),
        "Roles": roles,
    })
}

pub(super) fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("InstanceProfileName").to_owned();
    let tags = new_tags(call)?;
    let path = call.str("Path").unwrap_or("/").to_owned();
    let profiles = &iam(world, call).profiles;
    if profiles.keys().any(|known| known.eq_ignore_ascii_case(&name)) {
        return Err(Fault::new("EntityAlreadyExists", format!("Instance Profile {name} already exists.")));
    }
    let count = profiles.len();
    over(world, call, &PROFILES, "InstanceProfilesPerAccount", count)?;
    let arn = arn(call, &format!("instance-profile{path}{name}"));
    let id = super::unique(call, "AIPA");
    let profile = Profile { arn: arn.clone(), role: None, visible: call.visible(), id, path, created: call.now };
    iam(world, call).profiles.insert(name.clone(), profile);
    world.tags.set(&arn, tags, call.visible());
    let answer = with_tags(world, call, &name);
    Ok(json!({ "InstanceProfile": answer }))
}

/// The answer with the tags, which lists leave out.
fn with_tags(world: &mut World, call: &Call, name: &str) -> Value {
    let mut answer = answer(world, call, name);
    let tags = world.tags.of(answer["Arn"].as_str().unwrap_or_default());
    if !tags.is_empty() {
        answer["Tags"] = tag_list(&tags);
    }
    answer
}

pub(super) fn get(world: &mut World, call: &Call) -> Result<Value, Fault> {
    profile(world, call)?;
    let answer = with_tags(world, call, call.text("InstanceProfileName"));
    Ok(json!({ "InstanceProfile": answer }))
}

pub(super) fn list(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let prefix = call.str("PathPrefix").unwrap_or("/");
    let profiles = iam(world, call).profiles.iter().filter(|(_, profile)| profile.path.starts_with(prefix));
    let names: Vec<String> = profiles.map(|(name, _)| name.clone()).collect();
    let all = names.iter().map(|name| answer(world, call, name)).collect();
    page(call, "InstanceProfiles", all)
}

pub(super) fn tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = profile(world, call)?.arn.clone();
    let tags = world.tags.of(&arn);
    page(call, "Tags", tags.iter().map(|(key, value)| json!({ "Key": key, "Value": value })).collect())
}

pub(super) fn add_role(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("RoleName");
    profile(world, call)?;
    if !iam(world, call).roles.contains_key(name) {
        return Err(no_such("role", name));
    }
    let profile = profile(world, call)?;
    if profile.role.is_some() {
        let message = "Cannot exceed quota for InstanceSessionsPerInstanceProfile: 1";
        return Err(Fault::new("LimitExceeded", message));
    }
    (profile.role, profile.visible) = (Some(name.to_owned()), call.visible());
    Ok(json!({}))
}

pub(super) fn remove_role(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("RoleName");
    let profile = profile(world, call)?;
    if profile.role.as_deref() != Some(name) {
        return Err(no_such("role", name));
    }
    profile.role = None;
    Ok(json!({}))
}

pub(super) fn tag(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = profile(world, call)?.arn.clone();
    super::set_tags(world, call, &arn)
}

pub(super) fn untag(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = profile(world, call)?.arn.clone();
    super::remove_tags(world, call, &arn)
}

pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let profile = profile(world, call)?.clone();
    if profile.role.is_some() {
        let message = "Cannot delete entity, must remove roles from instance profile first.";
        return Err(Fault::new("DeleteConflict", message));
    }
    iam(world, call).profiles.remove(call.text("InstanceProfileName"));
    world.tags.forget(&profile.arn);
    Ok(json!({}))
}
