//! Instance profiles, which give a machine its role:
//! <https://docs.aws.amazon.com/IAM/latest/APIReference/API_CreateInstanceProfile.html>.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use textnlp_provider::{Identity, Permission, Result};

use super::{PATH, SERVICE, TO_MACHINES, passes};
use crate::api::Api;
use crate::kinds::{CREATE, DELETE, PUT, only};
use crate::resource::{Filter, Make, ObservedObject, Of, Resource};
use crate::table::{Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        permissions: &[
            only(Permission::on(PUT, "iam:AddRoleToInstanceProfile"), PROFILE),
            only(Permission::on(CREATE, "iam:CreateInstanceProfile"), PROFILE),
            only(Permission::on(DELETE, "iam:DeleteInstanceProfile"), PROFILE),
            only(Permission::read("iam:GetInstanceProfile"), PROFILES),
            only(Permission::read("iam:ListInstanceProfileTags"), PROFILES),
            Permission::read("iam:ListInstanceProfiles"),
            passes(PUT, TO_MACHINES),
            only(Permission::change("iam:RemoveRoleFromInstanceProfile"), PROFILE),
            only(Permission::on(PUT, "iam:TagInstanceProfile"), PROFILE),
            only(Permission::on(PUT, "iam:UntagInstanceProfile"), PROFILE),
        ],
        terraform: &[("aws_iam_instance_profile", "id")],
        ..kind("aws.instance-profile", "the role of a machine", Identity::Named)
    },
    service: SERVICE,
    resource: &Of::<Profile>::kind(),
    refused: &[],
}];

const PROFILE: &str = "arn:{$partition}:iam::{$account}:instance-profile{path}{name}";
/// All instance profiles on our path: their tags are read to find those of the deployment.
const PROFILES: &str = "arn:{$partition}:iam::{$account}:instance-profile/textnlp/*";

/// An instance profile. Outputs: `name`, `arn`.
struct Profile;

/// The attributes of an instance profile.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// Its name, at most 128 bytes.
    name: String,
    /// Its path: `/textnlp/`.
    path: String,
    /// The name of its role.
    role: Option<String>,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for Profile {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["role"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let answer = api.find(SERVICE, id, api.iam.get_instance_profile().instance_profile_name(id).send()).await?;
        let Some(profile) = answer.and_then(|answer| answer.instance_profile) else { return Ok(None) };
        let tags = super::tags(profile.tags.clone());
        Ok(Some(seen(profile, tags)))
    }

    /// One call for all profiles of our path, and one for the tags of each.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let pages = api.iam.list_instance_profiles().path_prefix(PATH).into_paginator().items().send();
        let found: Vec<_> = api.call(SERVICE, "list", "instance profiles", pages.try_collect()).await?;
        let mut all = Vec::new();
        for profile in found {
            let name = &profile.instance_profile_name;
            let pages =
                api.iam.list_instance_profile_tags().instance_profile_name(name).into_paginator().items().send();
            let found: Option<Vec<_>> = api.find(SERVICE, name, pages.try_collect()).await?;
            let Some(tags) = found.map(|tags| super::tags(Some(tags))) else { continue };
            if filter.matches(&tags) {
                all.push(seen(profile, tags));
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
            .create_instance_profile()
            .instance_profile_name(&spec.name)
            .path(&spec.path)
            .set_tags(Some(super::listed(&make.tags)))
            .send();
        api.call(SERVICE, "create", format!("instance profile {}", spec.name), call).await?;
        Ok(spec.name.clone())
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, _field: &str) -> Result<()> {
        // A profile holds one role.
        if let Some(role) = &seen.spec.role {
            return remove(api, &seen.id, role).await;
        }
        let Some(role) = &spec.role else { return Ok(()) };
        let call = api.iam.add_role_to_instance_profile().instance_profile_name(&seen.id).role_name(role).send();
        api.call(SERVICE, "add the role to", &seen.id, call).await.map(drop)
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        let id = &seen.id;
        if set.is_empty() {
            let gone = Some(remove.to_vec());
            let call = api.iam.untag_instance_profile().instance_profile_name(id).set_tag_keys(gone).send();
            return api.call(SERVICE, "remove tags of", id, call).await.map(drop);
        }
        let call = api.iam.tag_instance_profile().instance_profile_name(id).set_tags(Some(super::listed(set))).send();
        api.call(SERVICE, "set tags of", id, call).await.map(drop)
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        if let Some(role) = &seen.spec.role {
            return remove(api, &seen.id, role).await;
        }
        let call = api.iam.delete_instance_profile().instance_profile_name(&seen.id).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

async fn remove(api: &Api, profile: &str, role: &str) -> Result<()> {
    let call = api.iam.remove_role_from_instance_profile().instance_profile_name(profile).role_name(role).send();
    api.call(SERVICE, "remove the role from", profile, call).await.map(drop)
}

fn seen(profile: aws_sdk_iam::types::InstanceProfile, tags: Tags) -> ObservedObject<Spec> {
    let name = profile.instance_profile_name;
    let role = profile.roles.into_iter().next().map(|role| role.role_name);
    let spec = Spec { name: name.clone(), path: profile.path, role, tags: Tags::new() };
    ObservedObject::new(&name, spec, tags).output("name", Some(name.clone())).output("arn", Some(profile.arn))
}
