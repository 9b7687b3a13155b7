//! Roles.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{ATTACHED, ROLES, arn, document, iam, is_policy, new_tags, no_such, over, page, tag_list};
use crate::{Call, Fault, World, timestamp};

/// A role.
#[derive(Clone)]
pub struct Role {
    /// Its ARN.
    pub arn: String,
    /// Its unique id: `AROA…`.
    pub id: String,
    /// Who may assume it.
    pub trust: Value,
    /// The ARNs of its attached policies.
    pub managed: BTreeSet<String>,
    /// Its own policies: documents by name.
    pub inline: BTreeMap<String, String>,
    /// The ARN of its boundary.
    pub boundary: Option<String>,
    /// From when on other services see it, with its last trust.
    pub visible: Timestamp,
    path: String,
    trust_text: String,
    description: Option<String>,
    /// The most seconds of a session.
    pub session: i64,
    created: Timestamp,
}

impl Role {
    fn answer(&self, name: &str) -> Value {
        let mut answer = json!({
            "Path": self.path,
            "RoleName": name,
            "RoleId": self.id,
            "Arn": self.arn,
            "CreateDate": timestamp(self.created),
            "AssumeRolePolicyDocument": document::encoded(&self.trust_text),
            "MaxSessionDuration": self.session,
        });
        if let Some(description) = &self.description {
            answer["Description"] = json!(description);
        }
        answer
    }
}

/// The role that an input names.
fn role<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut Role, Fault> {
    let name = call.text("RoleName");
    iam(world, call).roles.get_mut(name).ok_or_else(|| no_such("role", name))
}

fn trust_of(call: &Call, member: &str) -> Result<(Value, String), Fault> {
    let text = call.text(member);
    let trust = document::checked(text, true)?;
    if text.chars().filter(|c| !c.is_whitespace()).count() > 2048 {
        return Err(Fault::new("LimitExceeded", "Cannot exceed quota for ACLSizePerRole: 2048"));
    }
    Ok((trust, text.to_owned()))
}

pub(super) fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("RoleName").to_owned();
    let (trust, trust_text) = trust_of(call, "AssumeRolePolicyDocument")?;
    let boundary = call.str("PermissionsBoundary").map(str::to_owned);
    if let Some(boundary) = boundary.as_deref().filter(|boundary| !is_policy(world, call, boundary)) {
        return Err(Fault::new("NoSuchEntity", format!("Policy {boundary} does not exist or is not attachable.")));
    }
    let tags = new_tags(call)?;
    let path = call.str("Path").unwrap_or("/").to_owned();
    let roles = &iam(world, call).roles;
    if roles.keys().any(|known| known.eq_ignore_ascii_case(&name)) {
        return Err(Fault::new("EntityAlreadyExists", format!("Role with name {name} already exists.")));
    }
    let count = roles.len();
    over(world, call, &ROLES, "RolesPerAccount", count)?;
    let role = Role {
        arn: arn(call, &format!("role{path}{name}")),
        id: super::unique(call, "AROA"),
        trust,
        managed: BTreeSet::new(),
        inline: BTreeMap::new(),
        boundary,
        visible: call.visible(),
        path,
        trust_text,
        description: call.str("Description").map(str::to_owned),
        session: call.int("MaxSessionDuration").unwrap_or(3600),
        created: call.now,
    };
    let (arn, mut answer) = (role.arn.clone(), role.answer(&name));
    iam(world, call).roles.insert(name, role);
    world.tags.set(&arn, tags, call.visible());
    with_details(world, call, &mut answer)?;
    Ok(json!({ "Role": answer }))
}

/// What lists leave out.
fn with_details(world: &mut World, call: &Call, answer: &mut Value) -> Result<(), Fault> {
    let role = role(world, call)?;
    let (arn, boundary) = (role.arn.clone(), role.boundary.clone());
    if let Some(boundary) = boundary {
        answer["PermissionsBoundary"] =
            json!({ "PermissionsBoundaryType": "PermissionsBoundaryPolicy", "PermissionsBoundaryArn": boundary });
    }
    let tags = world.tags.of(&arn);
    if !tags.is_empty() {
        answer["Tags"] = tag_list(&tags);
    }
    Ok(())
}

pub(super) fn get(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let mut answer = role(world, call)?.answer(call.text("RoleName"));
    with_details(world, call, &mut answer)?;
    answer["RoleLastUsed"] = json!({});
    Ok(json!({ "Role": answer }))
}

pub(super) fn list(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let prefix = call.str("PathPrefix").unwrap_or("/");
    let roles = iam(world, call).roles.iter().filter(|(_, role)| role.path.starts_with(prefix));
    let roles = roles.map(|(name, role)| role.answer(name)).collect();
    page(call, "Roles", roles)
}

pub(super) fn trust(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (trust, text) = trust_of(call, "PolicyDocument")?;
    let role = role(world, call)?;
    (role.trust, role.trust_text, role.visible) = (trust, text, call.visible());
    Ok(json!({}))
}

pub(super) fn bound(world: &mut World, call: &Call) -> Result<Value, Fault> {
    role(world, call)?;
    let boundary = call.text("PermissionsBoundary");
    if !is_policy(world, call, boundary) {
        return Err(Fault::new("NoSuchEntity", format!("Policy {boundary} does not exist or is not attachable.")));
    }
    role(world, call)?.boundary = Some(boundary.to_owned());
    Ok(json!({}))
}

pub(super) fn unbound(world: &mut World, call: &Call) -> Result<Value, Fault> {
    role(world, call)?.boundary = None;
    Ok(json!({}))
}

pub(super) fn attach(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let policy = call.text("PolicyArn");
    let count = role(world, call)?.managed.iter().filter(|known| *known != policy).count();
    if !is_policy(world, call, policy) {
        return Err(Fault::new("NoSuchEntity", format!("Policy {policy} does not exist or is not attachable.")));
    }
    over(world, call, &ATTACHED, "PoliciesPerRole", count)?;
    role(world, call)?.managed.insert(policy.to_owned());
    Ok(json!({}))
}

pub(super) fn detach(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let policy = call.text("PolicyArn");
    if !role(world, call)?.managed.remove(policy) {
        return Err(Fault::new("NoSuchEntity", format!("Policy {policy} was not found.")));
    }
    Ok(json!({}))
}

pub(super) fn attached(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let managed = role(world, call)?
        .managed
        .iter()
        .map(|policy| json!({ "PolicyName": policy.rsplit('/').next(), "PolicyArn": policy }));
    let managed = managed.collect();
    page(call, "AttachedPolicies", managed)
}

pub(super) fn put_policy(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (name, text) = (call.text("PolicyName"), call.text("PolicyDocument"));
    let role = role(world, call)?;
    document::checked(text, false)?;
    let others = role.inline.iter().filter(|(known, _)| *known != name).map(|(_, text)| text.as_str());
    let size: usize = others.chain([text]).map(|text| text.chars().filter(|c| !c.is_whitespace()).count()).sum();
    if size > 10_240 {
        let message = format!("Maximum policy size of 10240 bytes exceeded for role {}", call.text("RoleName"));
        return Err(Fault::new("LimitExceeded", message));
    }
    role.inline.insert(name.to_owned(), text.to_owned());
    Ok(json!({}))
}

fn no_policy(name: &str) -> Fault {
    Fault::new("NoSuchEntity", format!("The role policy with name {name} cannot be found."))
}

pub(super) fn policy(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("PolicyName");
    let text = role(world, call)?.inline.get(name).ok_or_else(|| no_policy(name))?;
    let text = document::encoded(text);
    Ok(json!({ "RoleName": call.text("RoleName"), "PolicyName": name, "PolicyDocument": text }))
}

pub(super) fn policies(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let names = role(world, call)?.inline.keys().map(|name| json!(name)).collect();
    page(call, "PolicyNames", names)
}

pub(super) fn delete_policy(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("PolicyName");
    role(world, call)?.inline.remove(name).ok_or_else(|| no_policy(name))?;
    Ok(json!({}))
}

pub(super) fn tag(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = role(world, call)?.arn.clone();
    super::set_tags(world, call, &arn)
}

pub(super) fn untag(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = role(world, call)?.arn.clone();
    super::remove_tags(world, call, &arn)
}

pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("RoleName");
    let role = role(world, call)?.clone();
    let conflict = |why: &str| Err(Fault::new("DeleteConflict", format!("Cannot delete entity, {why}")));
    if !role.managed.is_empty() {
        return conflict("must detach all policies first.");
    }
    if !role.inline.is_empty() {
        return conflict("must delete policies first.");
    }
    if iam(world, call).profiles.values().any(|profile| profile.role.as_deref() == Some(name)) {
        return conflict("must remove roles from instance profile first.");
    }
    iam(world, call).roles.remove(name);
    world.tags.forget(&role.arn);
    Ok(json!({}))
}

/// The answer of a role in an instance profile.
pub(super) fn in_profile(world: &mut World, call: &Call, name: &str) -> Option<Value> {
    iam(world, call).roles.get(name).map(|role| role.answer(name))
}
