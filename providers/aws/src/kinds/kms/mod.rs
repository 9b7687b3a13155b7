//! Encryption keys: <https://docs.aws.amazon.com/kms/latest/APIReference/API_CreateKey.html>.

use std::collections::BTreeMap;

use async_trait::async_trait;
use aws_sdk_kms::types::{AliasListEntry, KeyListEntry, KeyState, Tag};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::{Condition, DataClass, Error, ErrorKind, Identity, Permission, Pricing, Result, Verb};

use super::{CREATE, DELETE, KEYS, OURS, PUT, iam, only, when};
use crate::api::Api;
use crate::resource::{Filter, Make, ObservedObject, Of, Resource, State, timestamp};
use crate::table::{Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        data: DataClass::Precious,
        pricing: Pricing::BySpec,
        permissions: &[
            only(Permission::on(PUT, "kms:CreateAlias"), ALIAS),
            ours(Permission::on(PUT, "kms:CreateAlias")),
            when(NEW, Permission::on(CREATE, "kms:CreateKey")),
            only(Permission::change("kms:DeleteAlias"), ALIAS),
            ours(Permission::change("kms:DeleteAlias")),
            Permission::read("kms:DescribeKey"),
            recorded(Permission::on(UPDATE, "kms:DisableKey")),
            recorded(Permission::on(UPDATE, "kms:DisableKeyRotation")),
            recorded(Permission::on(UPDATE, "kms:EnableKey")),
            ours(Permission::on(PUT, "kms:EnableKeyRotation")),
            Permission::read("kms:GetKeyPolicy"),
            Permission::read("kms:GetKeyRotationStatus"),
            Permission::read("kms:ListAliases"),
            Permission::read("kms:ListKeys"),
            Permission::read("kms:ListResourceTags"),
            // With a create, and for the recorded key.
            when(NEW, only(Permission::on(CREATE, "kms:PutKeyPolicy"), KEYS)),
            recorded(Permission::on(UPDATE, "kms:PutKeyPolicy")),
            recorded(Permission::on(DELETE, "kms:ScheduleKeyDeletion")),
            when(NEW, only(Permission::on(CREATE, "kms:TagResource"), KEYS)),
            recorded(Permission::on(UPDATE, "kms:TagResource")),
            recorded(Permission::on(UPDATE, "kms:UntagResource")),
            only(Permission::on(PUT, "kms:UpdateAlias"), ALIAS),
            ours(Permission::on(PUT, "kms:UpdateAlias")),
            recorded(Permission::on(UPDATE, "kms:UpdateKeyDescription")),
        ],
        terraform: &[("aws_kms_key", "key_id")],
        ..kind("aws.key", "an encryption key", Identity::Token)
    },
    service: SERVICE,
    resource: &Of::<Key>::kind(),
    refused: &[],
}];

const ALIAS: &str = "arn:{$partition}:kms:{$region}:{$account}:alias/textnlp-*";
/// On a request that gives a key the tag of the deployment.
const NEW: &[Condition] = &[Condition { key: "aws:RequestTag/textnlp-lineage", value: "{$lineage}" }];

/// A permission on the deployment's keys only.
const fn ours(permission: Permission) -> Permission {
    Permission { resource: KEYS, conditions: OURS, ..permission }
}

/// A permission on the key that is recorded. Who can tag keys can give another one the tag of the deployment: KMS does not tell that
/// from the tags of a new key.
const fn recorded(permission: Permission) -> Permission {
    const KEY: &str = "arn:{$partition}:kms:{$region}:{$account}:key/{$id}";
    Permission { resource: KEY, ..ours(permission) }
}

const UPDATE: &[Verb] = &[Verb::Update];
/// The signing name.
const SERVICE: &str = "kms";
/// A key has one policy, of this name.
const POLICY: &str = "default";
/// The start of the aliases that this provider sets; others are the operator's.
const OWN_ALIASES: &str = "alias/textnlp-";
/// Until the end of it an operator can undo the deletion: the longest that KMS allows, because data that was encrypted with the key
/// is lost with it. A key costs nothing meanwhile.
const WINDOW_DAYS: i32 = 30;
/// Keys whose tags are read at the same time.
const AT_ONCE: usize = 8;

/// A symmetric key. Outputs: `id`, `arn`.
struct Key;

/// The attributes of a key. What a key costs depends on nothing but the count of keys and of its rotations.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// Whether it can be used.
    enabled: bool,
    /// What it is for.
    description: String,
    /// Who may use it: an IAM policy document.
    policy: Value,
    /// Days between two rotations, 90 to 2560; 0 is no rotation.
    rotation_days: i32,
    /// Its aliases of this provider.
    aliases: Vec<String>,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for Key {
    type Spec = Spec;
    // A disabled key accepts no rotation.
    const IN_PLACE: &'static [&'static str] = &["enabled", "description", "policy", "aliases", "rotation_days"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let answer = api.find(SERVICE, id, api.kms.describe_key().key_id(id).send()).await?;
        let Some(key) = answer.and_then(|answer| answer.key_metadata) else { return Ok(None) };
        let id = key.key_id.clone();
        let state = match &key.key_state {
            Some(KeyState::Enabled | KeyState::Disabled) => State::Ready,
            Some(KeyState::PendingDeletion | KeyState::PendingReplicaDeletion) => State::Gone,
            Some(KeyState::Creating | KeyState::Updating) => State::Pending(word(key.key_state.as_ref())),
            state => State::Degraded(format!("the key is {}", word(state.as_ref()))),
        };
        let mut spec = Spec {
            enabled: key.enabled,
            description: key.description.unwrap_or_default(),
            policy: Value::Null,
            rotation_days: 0,
            aliases: Vec::new(),
            tags: Tags::new(),
        };
        let mut tags = Tags::new();
        // Only the owner of a key may read the rest. An existing key of another account is used and never changed.
        let is_of_this_account = key.aws_account_id.as_ref().is_none_or(|account| *account == api.identity.account);
        if is_of_this_account && !matches!(state, State::Gone) {
            let call = api.kms.get_key_policy().key_id(&id).policy_name(POLICY).send();
            let Some(policy) = api.find(SERVICE, &id, call).await? else { return Ok(None) };
            spec.policy = serde_json::from_str(policy.policy.as_deref().unwrap_or("null")).unwrap_or_default();
            let call = api.kms.get_key_rotation_status().key_id(&id).send();
            if let Some(rotation) = api.find(SERVICE, &id, call).await?.filter(|rotation| rotation.key_rotation_enabled)
            {
                spec.rotation_days = rotation.rotation_period_in_days.unwrap_or(365);
            }
            let pages = api.kms.list_aliases().key_id(&id).into_paginator().items().send();
            let aliases: Vec<AliasListEntry> = api.call(SERVICE, "read", &id, pages.try_collect()).await?;
            let names = aliases.into_iter().filter_map(|alias| alias.alias_name);
            spec.aliases = names.filter(|name| name.starts_with(OWN_ALIASES)).collect();
            spec.aliases.sort();
            tags = tags_of(api, &id).await?.unwrap_or_default();
        }
        let seen = ObservedObject::new(&id, spec, tags).output("id", Some(id.clone())).output("arn", key.arn);
        Ok(Some(seen.created(timestamp(key.creation_date)).state(state)))
    }

    /// Lists of keys show no tags: one call for each page of keys and of aliases, one for the tags of each key with one of our aliases
    /// or without any, and four for each key of the deployment. A key without an alias may be ours: the reply of its creation may be
    /// lost.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let pages = api.kms.list_aliases().into_paginator().items().send();
        let entries: Vec<AliasListEntry> = api.call(SERVICE, "list", "aliases", pages.try_collect()).await?;
        let mut aliases: BTreeMap<String, bool> = BTreeMap::new();
        for entry in entries {
            if let (Some(key), Some(name)) = (entry.target_key_id, entry.alias_name) {
                *aliases.entry(key).or_default() |= name.starts_with(OWN_ALIASES);
            }
        }
        let pages = api.kms.list_keys().into_paginator().items().send();
        let keys: Vec<KeyListEntry> = api.call(SERVICE, "list", "keys", pages.try_collect()).await?;
        let candidates = keys.into_iter().filter_map(|key| key.key_id);
        let candidates = candidates.filter_map(|id| match aliases.get(&id) {
            Some(false) => None,
            Some(true) => Some((id, true)),
            None => Some((id, false)),
        });
        let reads: Vec<_> = candidates
            .map(|(id, has_our_alias)| async move {
                match tags_of(api, &id).await {
                    Ok(Some(tags)) if filter.matches(&tags) => Key::read(api, &id).await,
                    Ok(_) => Ok(None),
                    // A key whose policy admits other identities only.
                    Err(error) if error.kind == ErrorKind::Denied && !has_our_alias => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .collect();
        let read: Vec<_> = futures::stream::iter(reads).buffer_unordered(AT_ONCE).collect().await;
        read.into_iter().filter_map(Result::transpose).collect()
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let call = api.kms.create_key().description(&spec.description).policy(spec.policy.to_string());
        let answer = api.call(SERVICE, "create", "key", call.set_tags(Some(listed(&make.tags))).send()).await?;
        answer
            .key_metadata
            .map(|key| key.key_id)
            .ok_or_else(|| Error::new(ErrorKind::Unavailable, "create", "key").because("AWS's answer has no id"))
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        let (kms, id) = (&api.kms, seen.id.as_str());
        let action = "change";
        match field {
            "enabled" if spec.enabled => {
                api.call(SERVICE, action, id, kms.enable_key().key_id(id).send()).await.map(drop)
            }
            "enabled" => api.call(SERVICE, action, id, kms.disable_key().key_id(id).send()).await.map(drop),
            "description" => {
                let call = kms.update_key_description().key_id(id).description(&spec.description).send();
                api.call(SERVICE, action, id, call).await.map(drop)
            }
            "policy" => {
                let call = kms.put_key_policy().key_id(id).policy_name(POLICY).policy(spec.policy.to_string()).send();
                api.call(SERVICE, action, id, call).await.map(drop)
            }
            "rotation_days" if spec.rotation_days == 0 => {
                api.call(SERVICE, action, id, kms.disable_key_rotation().key_id(id).send()).await.map(drop)
            }
            "rotation_days" => {
                let call = kms.enable_key_rotation().key_id(id).rotation_period_in_days(spec.rotation_days).send();
                api.call(SERVICE, action, id, call).await.map(drop)
            }
            _ => match spec.aliases.iter().find(|alias| !seen.spec.aliases.contains(alias)) {
                Some(missing) => set_alias(api, id, missing).await,
                None => {
                    let gone = seen.spec.aliases.iter().find(|alias| !spec.aliases.contains(alias));
                    let Some(gone) = gone else { return Ok(()) };
                    api.call(SERVICE, "delete", gone, kms.delete_alias().alias_name(gone).send()).await.map(drop)
                }
            },
        }
    }

    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        field == "policy" && iam::is_same(wanted, seen)
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        if set.is_empty() {
            let call = api.kms.untag_resource().key_id(&seen.id).set_tag_keys(Some(remove.to_vec())).send();
            return api.call(SERVICE, "remove tags of", &seen.id, call).await.map(drop);
        }
        let call = api.kms.tag_resource().key_id(&seen.id).set_tags(Some(listed(set))).send();
        api.call(SERVICE, "set tags of", &seen.id, call).await.map(drop)
    }

    /// The alias goes first: KMS keeps it until the key is deleted, and the next environment of this name needs it.
    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        if let Some(alias) = seen.spec.aliases.first() {
            let call = api.kms.delete_alias().alias_name(alias).send();
            return api.call(SERVICE, "delete", alias, call).await.map(drop);
        }
        let call = api.kms.schedule_key_deletion().key_id(&seen.id).pending_window_in_days(WINDOW_DAYS).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

/// Points an alias to a key. One that a key in deletion still has is moved.
async fn set_alias(api: &Api, id: &str, alias: &str) -> Result<()> {
    let holder = api.find(SERVICE, alias, api.kms.describe_key().key_id(alias).send()).await?;
    let holder = holder.and_then(|answer| answer.key_metadata);
    let Some(holder) = holder else {
        let call = api.kms.create_alias().alias_name(alias).target_key_id(id).send();
        return api.call(SERVICE, "create", alias, call).await.map(drop);
    };
    if holder.key_id != id && holder.key_state != Some(KeyState::PendingDeletion) {
        let error = Error::new(ErrorKind::Exists, "create", alias);
        return Err(error.because(format!("the alias points to the key `{}`", holder.key_id)).hint(format!(
            "delete it with `aws kms delete-alias --alias-name {alias}`, or give the environment another name"
        )));
    }
    let call = api.kms.update_alias().alias_name(alias).target_key_id(id).send();
    api.call(SERVICE, "change", alias, call).await.map(drop)
}

async fn tags_of(api: &Api, id: &str) -> Result<Option<Tags>> {
    let pages = api.kms.list_resource_tags().key_id(id).into_paginator().items().send();
    let tags: Option<Vec<Tag>> = api.find(SERVICE, id, pages.try_collect()).await?;
    Ok(tags.map(|tags| tags.into_iter().map(|tag| (tag.tag_key, tag.tag_value)).collect()))
}

fn listed(tags: &Tags) -> Vec<Tag> {
    let tag = |(key, value)| Tag::builder().tag_key(key).tag_value(value).build().expect("both members are set");
    tags.iter().map(tag).collect()
}

fn word(state: Option<&KeyState>) -> String {
    state.map_or("in no known state", KeyState::as_str).to_owned()
}
