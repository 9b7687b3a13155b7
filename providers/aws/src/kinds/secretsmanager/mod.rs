//! Secrets that programs of AWS read: <https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_CreateSecret.html>.

use async_trait::async_trait;
use aws_sdk_secretsmanager::operation::describe_secret::DescribeSecretOutput;
use aws_sdk_secretsmanager::types::{Filter as Condition, FilterNameStringType, Tag};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use textnlp_provider::{DataClass, Error, ErrorKind, Identity, Permission, Pricing, Result, SecretRef};

use super::{AT_ONCE, CREATE, DELETE, KEYS, PUT, only, secret, when};
use crate::api::Api;
use crate::resource::{Filter, Make, ObservedObject, Of, Resource, State, timestamp};
use crate::table::{Row, kind};
use crate::tags::{self, Tags};

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        data: DataClass::Derived,
        pricing: Pricing::BySpec,
        permissions: &[
            when(VIA, only(Permission::on(PUT, "kms:Decrypt"), KEYS)),
            when(VIA, only(Permission::on(PUT, "kms:GenerateDataKey"), KEYS)),
            only(Permission::on(CREATE, "secretsmanager:CreateSecret"), SECRET),
            only(Permission::on(DELETE, "secretsmanager:DeleteSecret"), SECRET),
            only(Permission::read("secretsmanager:DescribeSecret"), SECRET),
            Permission::read("secretsmanager:ListSecrets"),
            only(Permission::on(PUT, "secretsmanager:PutSecretValue"), SECRET),
            only(Permission::on(PUT, "secretsmanager:TagResource"), SECRET),
            only(Permission::on(PUT, "secretsmanager:UntagResource"), SECRET),
            only(Permission::on(PUT, "secretsmanager:UpdateSecret"), SECRET),
        ],
        terraform: &[("aws_secretsmanager_secret", "name")],
        ..kind("aws.secret", "a secret of Secrets Manager", Identity::Named)
    },
    service: SERVICE,
    resource: &Of::<StoredSecret>::kind(),
    refused: &[],
}];

/// AWS adds a hyphen and six characters to the name.
/// On calls that Secrets Manager makes.
const VIA: &[textnlp_provider::Condition] =
    &[textnlp_provider::Condition { key: "kms:ViaService", value: "secretsmanager.{$region}.{$dns_suffix}" }];
const SECRET: &str = "arn:{$partition}:secretsmanager:{$region}:{$account}:secret:{name}-*";
/// The signing name.
const SERVICE: &str = "secretsmanager";
/// The label of the version that readers get.
const CURRENT: &str = "AWSCURRENT";
/// The output with the id of that version.
const VERSION: &str = "version";

/// A secret. Outputs: `name`, `arn`, `version`.
struct StoredSecret;

/// The attributes of a secret.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    name: String,
    description: String,
    /// The ARN of its key; null is a key of AWS.
    key: Option<String>,
    /// The reference to its value.
    value: Option<SecretRef>,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for StoredSecret {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["description", "key", "value"];
    const HAS_CLIENT_TOKEN: bool = true;

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let answer = api.find(SERVICE, id, api.secretsmanager.describe_secret().secret_id(id).send()).await?;
        Ok(answer.and_then(seen))
    }

    /// One call for each page, and one for each secret of the deployment.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let (key, value) = filter.tag();
        let condition = |name, value: String| Condition::builder().key(name).values(value).build();
        let pages = api
            .secretsmanager
            .list_secrets()
            .filters(condition(FilterNameStringType::TagKey, key.to_owned()))
            .filters(condition(FilterNameStringType::TagValue, value))
            .into_paginator();
        let pages: Vec<_> = api.call(SERVICE, "list", "secrets", pages.send().try_collect()).await?;
        let found = pages.into_iter().filter_map(|page| page.secret_list).flatten();
        let names: Vec<String> = found.filter_map(|one| one.name).collect();
        let reads: Vec<_> = names.iter().map(|name| Self::read(api, name)).collect();
        let read: Vec<_> = futures::stream::iter(reads).buffer_unordered(AT_ONCE).collect().await;
        let read = read.into_iter().filter_map(Result::transpose);
        // The values of tags are matched by their starts.
        read.filter(|seen| !matches!(seen, Ok(seen) if !filter.matches(&seen.tags))).collect()
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(spec.name.clone())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let subject = format!("secret {}", spec.name);
        let Some(value) = &spec.value else {
            return Err(Error::new(ErrorKind::Invalid, "create", subject).because("it has no value"));
        };
        let mut tags = make.tags.clone();
        tags.insert(tags::SECRET.to_owned(), secret::tag(value));
        let call = api
            .secretsmanager
            .create_secret()
            .name(&spec.name)
            .client_request_token(version(value))
            .description(&spec.description)
            .set_kms_key_id(spec.key.clone())
            .secret_string(secret::value(api, value).await?)
            .set_tags(Some(listed(&tags)));
        api.call(SERVICE, "create", subject, call.send()).await?;
        Ok(spec.name.clone())
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        let (manager, id) = (&api.secretsmanager, seen.id.as_str());
        match (field, &spec.value) {
            ("value", Some(value)) if seen.outputs.get(VERSION) == Some(&Value::from(version(value))) => {
                let tag = Tags::from([(tags::SECRET.to_owned(), secret::tag(value))]);
                let call = manager.tag_resource().secret_id(id).set_tags(Some(listed(&tag))).send();
                api.call(SERVICE, "set tags of", id, call).await.map(drop)
            }
            ("value", Some(value)) => {
                let call = manager.put_secret_value().secret_id(id).client_request_token(version(value));
                let call = call.secret_string(secret::value(api, value).await?).send();
                api.call(SERVICE, "change", id, call).await.map(drop)
            }
            ("value", None) => Err(Error::new(ErrorKind::Invalid, "change", id).because("it has no value")),
            _ => {
                let call = manager.update_secret().secret_id(id).description(&spec.description);
                // Without a key of ours, that of AWS.
                let key = spec.key.clone().unwrap_or_else(|| "alias/aws/secretsmanager".to_owned());
                api.call(SERVICE, "change", id, call.kms_key_id(key).send()).await.map(drop)
            }
        }
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        let (manager, id) = (&api.secretsmanager, seen.id.as_str());
        if set.is_empty() {
            let call = manager.untag_resource().secret_id(id).set_tag_keys(Some(remove.to_vec())).send();
            return api.call(SERVICE, "remove tags of", id, call).await.map(drop);
        }
        let call = manager.tag_resource().secret_id(id).set_tags(Some(listed(set))).send();
        api.call(SERVICE, "set tags of", id, call).await.map(drop)
    }

    /// Without a time for recovery: the value is in the deployment's own store, and a secret in recovery keeps its name from the
    /// next `up` for a week at least.
    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.secretsmanager.delete_secret().secret_id(&seen.id).force_delete_without_recovery(true).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

fn seen(secret: DescribeSecretOutput) -> Option<ObservedObject<Spec>> {
    let name = secret.name?;
    let pairs = secret.tags.unwrap_or_default().into_iter();
    let tags: Tags = pairs.filter_map(|tag| Some((tag.key?, tag.value.unwrap_or_default()))).collect();
    let stages = secret.version_ids_to_stages.unwrap_or_default();
    let current = stages.into_iter().find(|(_, stages)| stages.iter().any(|stage| stage == CURRENT)).map(|(id, _)| id);
    let value = tags.get(tags::SECRET).and_then(|tag| secret::of_tag(tag));
    let spec = Spec {
        name: name.clone(),
        description: secret.description.unwrap_or_default(),
        key: secret.kms_key_id,
        value: value.filter(|value| current.as_ref() == Some(&version(value))),
        tags: Tags::new(),
    };
    let state = if secret.deleted_date.is_some() { State::Gone } else { State::Ready };
    let seen = ObservedObject::new(&name, spec, tags).output("name", Some(name.clone())).output("arn", secret.arn);
    Some(seen.output(VERSION, current).created(timestamp(secret.created_date)).state(state))
}

/// The id of the version with this value: the client token that AWS takes over. It says nothing about the value.
fn version(value: &SecretRef) -> String {
    hex::encode(Sha256::digest(secret::tag(value).as_bytes()))
}

fn listed(tags: &Tags) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}
