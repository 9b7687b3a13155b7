//! Roles, with their policies as fields: <https://docs.aws.amazon.com/IAM/latest/APIReference/API_CreateRole.html>.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::{Condition, Identity, Permission, Result};

use super::{PATH, READ_ROLES, SERVICE};
use crate::api::Api;
use crate::kinds::{CREATE, DELETE, PUT, only};
use crate::resource::{Filter, Make, ObservedObject, Of, Resource, timestamp};
use crate::table::{Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        permissions: &[
            Permission { conditions: ATTACHED, ..bounded(Permission::on(PUT, "iam:AttachRolePolicy{?managed}")) },
            bounded(Permission::on(CREATE, "iam:CreateRole")),
            only(Permission::on(DELETE, "iam:DeleteRole"), ROLE),
            only(Permission::on(PUT, "iam:DeleteRolePermissionsBoundary{!boundary}"), ROLE),
            bounded(Permission::change("iam:DeleteRolePolicy")),
            bounded(Permission::change("iam:DetachRolePolicy")),
            only(Permission::read("iam:GetRole"), READ_ROLES),
            only(Permission::read("iam:GetRolePolicy"), READ_ROLES),
            only(Permission::read("iam:ListAttachedRolePolicies"), READ_ROLES),
            only(Permission::read("iam:ListRolePolicies"), READ_ROLES),
            Permission::read("iam:ListRoles"),
            bounded(Permission::on(PUT, "iam:PutRolePermissionsBoundary")),
            bounded(Permission::on(PUT, "iam:PutRolePolicy")),
            only(Permission::on(PUT, "iam:TagRole"), ROLE),
            only(Permission::on(PUT, "iam:UntagRole"), ROLE),
            only(Permission::on(PUT, "iam:UpdateAssumeRolePolicy"), ROLE),
        ],
        terraform: &[("aws_iam_role", "id")],
        ..kind("aws.role", "a role that AWS's services and pods assume", Identity::Named)
    },
    service: SERVICE,
    resource: &Of::<Role>::kind(),
    refused: &[],
}];

const ROLE: &str = "arn:{$partition}:iam::{$account}:role{path}{name}";

/// A permission on a role with the wanted permissions boundary: without it, an identity with this policy could allow itself more.
const fn bounded(permission: Permission) -> Permission {
    Permission { resource: ROLE, conditions: BOUNDED, ..permission }
}

const BOUNDARY: Condition = Condition { key: "iam:PermissionsBoundary", value: "{boundary}" };
const BOUNDED: &[Condition] = &[BOUNDARY];
/// No other policies than those of the role.
const ATTACHED: &[Condition] = &[BOUNDARY, Condition { key: "iam:PolicyARN", value: "{managed}" }];

/// A role. Outputs: `name`, `arn`.
struct Role;

/// The attributes of a role.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// Its name, at most 64 bytes, the same for no other role of the account.
    name: String,
    /// Its path: `/textnlp/`.
    path: String,
    /// Who may assume it: a policy document.
    trust: Value,
    /// The most that its policies can allow: the ARN of a policy.
    boundary: Option<String>,
    /// Attached policies by their ARNs.
    managed: BTreeSet<String>,
    /// Its own policies: documents by name.
    inline: BTreeMap<String, Value>,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for Role {
    type Spec = Spec;
    // What a role can do at most is set before what it can do.
    const IN_PLACE: &'static [&'static str] = &["boundary", "trust", "managed", "inline"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let answer = api.find(SERVICE, id, api.iam.get_role().role_name(id).send()).await?;
        let Some(role) = answer.and_then(|answer| answer.role) else { return Ok(None) };
        policies(api, role).await
    }

    /// One call for all roles of our path, one for the tags of each, and two and one for each policy of its own for each that
    /// passes the filter.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let pages = api.iam.list_roles().path_prefix(PATH).into_paginator().items().send();
        let found: Vec<_> = api.call(SERVICE, "list", "roles", pages.try_collect()).await?;
        let mut all = Vec::new();
        for role in found {
            // The answer to the list has neither tags nor the boundary.
            let name = role.role_name;
            let answer = api.find(SERVICE, &name, api.iam.get_role().role_name(&name).send()).await?;
            let Some(role) = answer.and_then(|answer| answer.role) else { continue };
            if filter.matches(&super::tags(role.tags.clone())) {
                all.extend(policies(api, role).await?);
            }
        }
        Ok(all)
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(spec.name.clone())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let call = api
            .iam
            .create_role()
            .role_name(&spec.name)
            .path(&spec.path)
            .assume_role_policy_document(spec.trust.to_string())
            .set_permissions_boundary(spec.boundary.clone())
            .set_tags(Some(super::listed(&make.tags)))
            .send();
        api.call(SERVICE, "create", format!("role {}", spec.name), call).await?;
        Ok(spec.name.clone())
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        let (iam, id) = (&api.iam, seen.id.as_str());
        match field {
            "boundary" => match &spec.boundary {
                Some(boundary) => {
                    let call = iam.put_role_permissions_boundary().role_name(id).permissions_boundary(boundary).send();
                    api.call(SERVICE, "bound", id, call).await.map(drop)
                }
                None => {
                    let call = iam.delete_role_permissions_boundary().role_name(id).send();
                    api.call(SERVICE, "unbound", id, call).await.map(drop)
                }
            },
            "trust" => {
                let call = iam.update_assume_role_policy().role_name(id).policy_document(spec.trust.to_string()).send();
                api.call(SERVICE, "change the trust of", id, call).await.map(drop)
            }
            "managed" => {
                // What a role may no longer do is taken away first.
                if let Some(gone) = seen.spec.managed.difference(&spec.managed).next() {
                    return detach(api, id, gone).await;
                }
                let Some(new) = spec.managed.difference(&seen.spec.managed).next() else { return Ok(()) };
                let call = iam.attach_role_policy().role_name(id).policy_arn(new).send();
                api.call(SERVICE, format!("attach {new} to").as_str(), id, call).await.map(drop)
            }
            _ => {
                if let Some(gone) = seen.spec.inline.keys().find(|name| !spec.inline.contains_key(*name)) {
                    return remove(api, id, gone).await;
                }
                let differs = |name: &String, document: &Value| {
                    seen.spec.inline.get(name) != Some(&super::normal(document.clone()))
                };
                let Some((name, document)) = spec.inline.iter().find(|(name, document)| differs(name, document)) else {
                    return Ok(());
                };
                let call = iam.put_role_policy().role_name(id).policy_name(name).policy_document(document.to_string());
                api.call(SERVICE, format!("put policy {name} of").as_str(), id, call.send()).await.map(drop)
            }
        }
    }

    /// Documents say the same in several forms.
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        match (field, wanted) {
            ("trust", _) => super::is_same(wanted, seen),
            ("inline", Value::Object(all)) => {
                let normal: Value =
                    all.iter().map(|(name, document)| (name.clone(), super::normal(document.clone()))).collect();
                normal == *seen
            }
            _ => false,
        }
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        if set.is_empty() {
            let call = api.iam.untag_role().role_name(&seen.id).set_tag_keys(Some(remove.to_vec())).send();
            return api.call(SERVICE, "remove tags of", &seen.id, call).await.map(drop);
        }
        let call = api.iam.tag_role().role_name(&seen.id).set_tags(Some(super::listed(set))).send();
        api.call(SERVICE, "set tags of", &seen.id, call).await.map(drop)
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        if let Some(policy) = seen.spec.managed.first() {
            return detach(api, &seen.id, policy).await;
        }
        if let Some(name) = seen.spec.inline.keys().next() {
            return remove(api, &seen.id, name).await;
        }
        api.call(SERVICE, "delete", &seen.id, api.iam.delete_role().role_name(&seen.id).send()).await.map(drop)
    }
}

async fn detach(api: &Api, role: &str, policy: &str) -> Result<()> {
    let call = api.iam.detach_role_policy().role_name(role).policy_arn(policy).send();
    api.call(SERVICE, format!("detach {policy} from").as_str(), role, call).await.map(drop)
}

async fn remove(api: &Api, role: &str, policy: &str) -> Result<()> {
    let call = api.iam.delete_role_policy().role_name(role).policy_name(policy).send();
    api.call(SERVICE, format!("delete policy {policy} of").as_str(), role, call).await.map(drop)
}

/// The role with its policies; `None` if it was deleted since it was read.
async fn policies(api: &Api, role: aws_sdk_iam::types::Role) -> Result<Option<ObservedObject<Spec>>> {
    let name = role.role_name;
    let pages = api.iam.list_attached_role_policies().role_name(&name).into_paginator().items().send();
    let attached: Option<Vec<_>> = api.find(SERVICE, &name, pages.try_collect()).await?;
    let pages = api.iam.list_role_policies().role_name(&name).into_paginator().items().send();
    let own: Option<Vec<_>> = api.find(SERVICE, &name, pages.try_collect()).await?;
    let Some((attached, own)) = attached.zip(own) else { return Ok(None) };
    let mut inline = BTreeMap::new();
    for policy in own {
        let call = api.iam.get_role_policy().role_name(&name).policy_name(&policy).send();
        if let Some(answer) = api.find(SERVICE, &name, call).await? {
            inline.insert(policy, super::document(&answer.policy_document));
        }
    }
    let spec = Spec {
        name: name.clone(),
        path: role.path,
        trust: role.assume_role_policy_document.as_deref().map(super::document).unwrap_or_default(),
        boundary: role.permissions_boundary.and_then(|boundary| boundary.permissions_boundary_arn),
        managed: attached.into_iter().filter_map(|policy| policy.policy_arn).collect(),
        inline,
        tags: Tags::new(),
    };
    let seen = ObservedObject::new(&name, spec, super::tags(role.tags)).created(timestamp(Some(role.create_date)));
    Ok(Some(seen.output("name", Some(name.clone())).output("arn", Some(role.arn))))
}
