//! Access entries.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Cluster, active, bad_token, cluster, in_use, invalid, mismatch, new_tags, not_found, set_tags, texts};
use crate::aws::iam::Iam;
use crate::{Call, Fault, World, timestamp};

/// How many tokens of a new entry are refused.
const REFUSALS: u32 = 2;

/// An access entry.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its ARN.
    pub arn: String,
    /// Its policies: the scopes by ARN, each with its namespaces, if it has any.
    pub policies: BTreeMap<String, Vec<String>>,
    groups: Vec<String>,
    username: String,
    kind: &'static str,
    created: Timestamp,
    /// How many more tokens are refused before it has taken effect.
    refusals: u32,
}

/// Policies of EKS.
const POLICIES: [&str; 6] = [
    "AmazonEKSAdminPolicy",
    "AmazonEKSAdminViewPolicy",
    "AmazonEKSClusterAdminPolicy",
    "AmazonEKSEditPolicy",
    "AmazonEKSSecretReaderPolicy",
    "AmazonEKSViewPolicy",
];

impl Entry {
    fn new(call: &Call, cluster: &str, principal: &str, kind: &'static str) -> Self {
        let (what, name) = if principal.contains(":user/") { ("user", principal) } else { ("role", principal) };
        let name = name.rsplit('/').next().unwrap_or_default();
        let account = &call.account;
        let arn = call.arn(&format!("access-entry/{cluster}/{what}/{account}/{name}/{}", call.random.uuid()));
        let username = principal.to_owned();
        Self { arn, policies: BTreeMap::new(), groups: Vec::new(), username, kind, created: call.now, refusals: 0 }
    }

    /// Whether a token of its principal is one of an administrator. The first tokens come before the entry has taken effect.
    pub fn admits_administrator(&mut self) -> bool {
        if self.refusals > 0 {
            self.refusals -= 1;
            return false;
        }
        self.policies.keys().any(|policy| policy.ends_with("/AmazonEKSClusterAdminPolicy"))
    }

    pub(super) fn administrator(call: &Call, cluster: &str) -> Self {
        let policy = "arn:aws:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy".to_owned();
        Self {
            policies: BTreeMap::from([(policy, Vec::new())]),
            ..Self::new(call, cluster, &call.identity, "STANDARD")
        }
    }

    pub(super) fn of_nodes(call: &Call, cluster: &str, role: &str) -> Self {
        Self { groups: vec!["system:nodes".to_owned()], ..Self::new(call, cluster, role, "EC2_LINUX") }
    }
}

/// The cluster of an input, if it has entries.
fn open<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut Cluster, Fault> {
    let cluster = active(world, call, "clusterName")?;
    if cluster.authentication == "CONFIG_MAP" {
        let message = "The cluster's authentication mode must be set to one of [API, API_AND_CONFIG_MAP] to perform this \
                       operation.";
        return Err(Fault::new("InvalidRequestException", message));
    }
    Ok(cluster)
}

fn entry<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut Entry, Fault> {
    let principal = call.text("principalArn");
    let entries = &mut cluster(world, call, "clusterName")?.entries;
    entries.get_mut(principal).ok_or_else(|| {
        not_found(format!(
            "The specified principalArn could not be found. You can view your available access entries with \
                           'ListAccessEntries': {principal}"
        ))
    })
}

fn answer(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let entry = entry(world, call)?.clone();
    let mut answer = json!({
        "clusterName": call.text("clusterName"),
        "principalArn": call.text("principalArn"),
        "kubernetesGroups": entry.groups,
        "accessEntryArn": entry.arn,
        "createdAt": timestamp(entry.created),
        "modifiedAt": timestamp(entry.created),
        "username": entry.username,
        "type": entry.kind,
    });
    set_tags(world, &entry.arn, &mut answer);
    Ok(json!({ "accessEntry": answer }))
}

pub(super) fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    world.once(call, "clientRequestToken", mismatch(), |world| {
        let (name, principal) = (call.text("clusterName").to_owned(), call.text("principalArn").to_owned());
        if open(world, call)?.entries.contains_key(&principal) {
            return Err(in_use("The specified access entry resource is already in use on this cluster."));
        }
        let is_seen =
            world.find::<Iam>(&call.global()).is_some_and(|iam| iam.seen_role(&principal, call.now).is_some());
        if !principal.contains(":user/") && !is_seen {
            return Err(invalid("The specified principalArn is invalid: invalid principal"));
        }
        let groups = texts(&call.input["kubernetesGroups"]);
        if groups.iter().any(|group| group.starts_with("system:")) {
            return Err(invalid("The kubernetes group name must not start with system:"));
        }
        let tags = new_tags(call)?;
        let entry = Entry { groups, refusals: REFUSALS, ..Entry::new(call, &name, &principal, "STANDARD") };
        world.tags.set(&entry.arn, tags, call.visible());
        open(world, call)?.entries.insert(principal.clone(), entry);
        Ok(principal)
    })?;
    answer(world, call)
}

pub(super) fn describe(world: &mut World, call: &Call) -> Result<Value, Fault> {
    answer(world, call)
}

pub(super) fn list(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let principals = cluster(world, call, "clusterName")?.entries.keys().map(|principal| json!(principal)).collect();
    call.page("accessEntries", principals, bad_token())
}

pub(super) fn update(world: &mut World, call: &Call) -> Result<Value, Fault> {
    open(world, call)?;
    let entry = entry(world, call)?;
    if call.input.get("kubernetesGroups").is_some() {
        entry.groups = texts(&call.input["kubernetesGroups"]);
    }
    answer(world, call)
}

pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = entry(world, call)?.arn.clone();
    open(world, call)?.entries.remove(call.text("principalArn"));
    world.tags.forget(&arn);
    Ok(json!({}))
}

fn associated(arn: &str, namespaces: &[String], now: Timestamp) -> Value {
    let scope = match namespaces {
        [] => json!({ "type": "cluster", "namespaces": [] }),
        all => json!({ "type": "namespace", "namespaces": all }),
    };
    json!({ "policyArn": arn, "accessScope": scope, "associatedAt": timestamp(now), "modifiedAt": timestamp(now) })
}

pub(super) fn associate(world: &mut World, call: &Call) -> Result<Value, Fault> {
    open(world, call)?;
    let arn = call.text("policyArn").to_owned();
    let name = arn.strip_prefix("arn:aws:eks::aws:cluster-access-policy/");
    if !name.is_some_and(|name| POLICIES.contains(&name)) {
        return Err(invalid("The policyArn parameter format is not valid"));
    }
    let scope = &call.input["accessScope"];
    let namespaces = texts(&scope["namespaces"]);
    if (scope["type"] == "namespace") == namespaces.is_empty() {
        return Err(invalid("Namespaces are given if and only if the type of the access scope is namespace"));
    }
    let entry = entry(world, call)?;
    if entry.kind != "STANDARD" {
        return Err(Fault::new(
            "InvalidRequestException",
            "Access policies can be associated with STANDARD entries only",
        ));
    }
    let answer = associated(&arn, &namespaces, call.now);
    entry.policies.insert(arn, namespaces);
    Ok(json!({
        "clusterName": call.text("clusterName"),
        "principalArn": call.text("principalArn"),
        "associatedAccessPolicy": answer,
    }))
}

pub(super) fn disassociate(world: &mut World, call: &Call) -> Result<Value, Fault> {
    open(world, call)?;
    let arn = call.text("policyArn");
    if entry(world, call)?.policies.remove(arn).is_none() {
        return Err(not_found("The specified policyArn is not associated with the access entry"));
    }
    Ok(json!({}))
}

pub(super) fn policies(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let entry = entry(world, call)?;
    let all = entry.policies.iter().map(|(arn, namespaces)| associated(arn, namespaces, entry.created)).collect();
    let mut output = call.page("associatedAccessPolicies", all, bad_token())?;
    output["clusterName"] = json!(call.text("clusterName"));
    output["principalArn"] = json!(call.text("principalArn"));
    Ok(output)
}
