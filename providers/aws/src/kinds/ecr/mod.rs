//! Image repositories: <https://docs.aws.amazon.com/AmazonECR/latest/APIReference/API_CreateRepository.html>.

use async_trait::async_trait;
use aws_sdk_ecr::types::{
    EncryptionConfiguration, EncryptionType, ImageIdentifier, ImageScanningConfiguration, ImageTagMutability,
    ListImagesFilter, Repository as Answer, Tag, TagStatus,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_cloud::{ImageTarget, has_image, has_images};
use textnlp_provider::{Condition, DataClass, Error, ErrorKind, Identity, Permission, Pricing, Result, Secret};

use super::{CREATE, DELETE, KEYS, PUT, list_by_tag, only};
use crate::api::Api;
use crate::resource::{Filter, Make, ObservedObject, Of, Resource, State, timestamp};
use crate::table::{MINUTE, Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        data: DataClass::Precious,
        pricing: Pricing::BySpec,
        permissions: &[
            only(Permission::on(PUT, "ecr:BatchCheckLayerAvailability"), REPOSITORY),
            only(Permission::on(PUT, "ecr:BatchGetImage"), REPOSITORY),
            only(Permission::on(PUT, "ecr:CompleteLayerUpload"), REPOSITORY),
            only(Permission::on(CREATE, "ecr:CreateRepository"), REPOSITORY),
            only(Permission::on(PUT, "ecr:DeleteLifecyclePolicy"), REPOSITORY),
            only(Permission::on(DELETE, "ecr:DeleteRepository"), REPOSITORY),
            Permission::read("ecr:DescribeRepositories"),
            Permission::on(PUT, "ecr:GetAuthorizationToken"),
            only(Permission::read("ecr:GetLifecyclePolicy"), REPOSITORY),
            only(Permission::on(PUT, "ecr:InitiateLayerUpload"), REPOSITORY),
            only(Permission::read("ecr:ListImages"), REPOSITORY),
            only(Permission::read("ecr:ListTagsForResource"), REPOSITORY),
            only(Permission::on(PUT, "ecr:PutImage"), REPOSITORY),
            only(Permission::on(PUT, "ecr:PutImageScanningConfiguration"), REPOSITORY),
            only(Permission::on(PUT, "ecr:PutImageTagMutability"), REPOSITORY),
            only(Permission::on(PUT, "ecr:PutLifecyclePolicy"), REPOSITORY),
            only(Permission::on(PUT, "ecr:TagResource"), REPOSITORY),
            only(Permission::on(PUT, "ecr:UntagResource"), REPOSITORY),
            only(Permission::on(PUT, "ecr:UploadLayerPart"), REPOSITORY),
            // ECR makes a grant of the key for itself, as the caller.
            via_registry(Permission::on(PUT, "kms:CreateGrant")),
            only(Permission::read("kms:DescribeKey"), KEYS),
            via_registry(Permission::on(PUT, "kms:RetireGrant")),
        ],
        terraform: &[("aws_ecr_repository", "name")],
        // The image of a program is pushed over the operator's own network.
        deadline: MINUTE.saturating_mul(60),
        ..kind("aws.repository", "a repository of container images", Identity::Named)
    },
    service: SERVICE,
    resource: &Of::<Repository>::kind(),
    refused: &[],
}];

/// On calls that ECR makes: <https://docs.aws.amazon.com/AmazonECR/latest/userguide/encryption-at-rest.html>.
const fn via_registry(permission: Permission) -> Permission {
    const VIA: &[Condition] = &[Condition { key: "kms:ViaService", value: "ecr.{$region}.{$dns_suffix}" }];
    Permission { resource: KEYS, conditions: VIA, ..permission }
}

const REPOSITORY: &str = "arn:{$partition}:ecr:{$region}:{$account}:repository/{name}";
/// The signing name.
const SERVICE: &str = "ecr";

/// A repository. Outputs: `name`, `arn`, `uri`.
struct Repository;

/// The attributes of a repository. What it costs depends on the bytes in it.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    name: String,
    /// Whether a pushed tag never changes.
    immutable: bool,
    /// Whether images are scanned for vulnerabilities when they are pushed.
    scan_on_push: bool,
    /// The ARN of its key; null is a key of AWS.
    key: Option<String>,
    /// Which images expire: a document of ECR; null is none.
    lifecycle: Value,
    /// Images with a tag: `TAG@sha256:…`. There may be more than the wanted ones.
    #[serde(default)]
    images: Vec<String>,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for Repository {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["immutable", "scan_on_push", "lifecycle", "images"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let call = api.ecr.describe_repositories().repository_names(id).send();
        let answer = api.find(SERVICE, id, call).await?;
        match answer.and_then(|answer| answer.repositories.unwrap_or_default().into_iter().next()) {
            Some(repository) => seen(api, repository).await,
            None => Ok(None),
        }
    }

    /// Three calls for each repository of the deployment and one for each thousand images in it, and one for each page of repositories.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        list_by_tag::<Self>(api, filter, "ecr:repository", |arn| arn.split_once(":repository/").map(|(_, name)| name))
            .await
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(spec.name.clone())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let mut encryption = EncryptionConfiguration::builder().encryption_type(EncryptionType::Aes256);
        if let Some(key) = &spec.key {
            encryption = encryption.encryption_type(EncryptionType::Kms).kms_key(key);
        }
        let call = api
            .ecr
            .create_repository()
            .repository_name(&spec.name)
            .image_tag_mutability(mutability(spec.immutable))
            .image_scanning_configuration(scanning(spec.scan_on_push))
            .encryption_configuration(encryption.build().expect("its type is set"))
            .set_tags(Some(listed(&make.tags)));
        api.call(SERVICE, "create", format!("repository {}", spec.name), call.send()).await?;
        Ok(spec.name.clone())
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        let (ecr, name) = (&api.ecr, seen.id.as_str());
        match field {
            "immutable" => {
                let call = ecr.put_image_tag_mutability().repository_name(name);
                let call = call.image_tag_mutability(mutability(spec.immutable)).send();
                api.call(SERVICE, "change", name, call).await.map(drop)
            }
            "scan_on_push" => {
                let call = ecr.put_image_scanning_configuration().repository_name(name);
                let call = call.image_scanning_configuration(scanning(spec.scan_on_push)).send();
                api.call(SERVICE, "change", name, call).await.map(drop)
            }
            _ if spec.lifecycle.is_null() => {
                let call = ecr.delete_lifecycle_policy().repository_name(name).send();
                api.call(SERVICE, "change", name, call).await.map(drop)
            }
            _ => {
                let call = ecr.put_lifecycle_policy().repository_name(name);
                let call = call.lifecycle_policy_text(spec.lifecycle.to_string()).send();
                api.call(SERVICE, "change", name, call).await.map(drop)
            }
        }
    }

    /// The image is sent in the background: it takes longer than a call may.
    async fn start(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<Option<String>> {
        if field != "images" {
            return Self::put(api, seen, spec, field).await.map(|()| None);
        }
        let missing = spec.images.iter().find(|image| !has_image(&seen.spec.images, image));
        match missing.and_then(|image| image.split_once('@')) {
            Some((tag, digest)) => push(api, &seen.id, tag, digest).await.map(Some),
            None => Ok(None),
        }
    }

    /// A push of another process is not known here: the next read decides.
    async fn change(api: &Api, _id: &str, change: &str) -> Result<State> {
        api.images.state(change)
    }

    /// Images of earlier releases and those that others pushed stay.
    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        field == "images" && has_images(seen, wanted)
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        let arn = seen.outputs.get("arn").and_then(Value::as_str).unwrap_or_default();
        if set.is_empty() {
            let call = api.ecr.untag_resource().resource_arn(arn).set_tag_keys(Some(remove.to_vec())).send();
            return api.call(SERVICE, "remove tags of", &seen.id, call).await.map(drop);
        }
        let call = api.ecr.tag_resource().resource_arn(arn).set_tags(Some(listed(set))).send();
        api.call(SERVICE, "set tags of", &seen.id, call).await.map(drop)
    }

    /// With its images: the engine has the consent for data.
    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.ecr.delete_repository().repository_name(&seen.id).force(true).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

/// Begins to push an image with the credentials that ECR gives for twelve hours.
async fn push(api: &Api, repository: &str, tag: &str, digest: &str) -> Result<String> {
    let call = api.ecr.get_authorization_token().send();
    let answer = api.call(SERVICE, "push to", format!("repository {repository}"), call).await?;
    let data = answer.authorization_data.unwrap_or_default().into_iter().next();
    let found = data.and_then(|data| {
        // `AWS:PASSWORD`.
        let pair = aws_smithy_types::base64::decode(data.authorization_token?).ok().map(Secret::new)?;
        let (user, password) = pair.expose_text()?.split_once(':')?;
        Some((data.proxy_endpoint?, user.to_owned(), Secret::new(password)))
    });
    let (registry, user, password) = found.ok_or_else(|| {
        Error::new(ErrorKind::Unavailable, "push to", format!("repository {repository}"))
            .because("ECR answered without a token")
    })?;
    let target = ImageTarget {
        registry,
        user,
        password,
        repository: repository.to_owned(),
        tag: tag.to_owned(),
        digest: digest.to_owned(),
    };
    api.images.push(target)
}

async fn seen(api: &Api, repository: Answer) -> Result<Option<ObservedObject<Spec>>> {
    let (Some(name), Some(arn)) = (repository.repository_name, repository.repository_arn) else { return Ok(None) };
    let call = api.ecr.list_tags_for_resource().resource_arn(&arn).send();
    let Some(tags) = api.find(SERVICE, &name, call).await? else { return Ok(None) };
    let tags = tags.tags.unwrap_or_default().into_iter().map(|tag| (tag.key, tag.value)).collect();
    let call = api.ecr.get_lifecycle_policy().repository_name(&name).send();
    let lifecycle = api.find(SERVICE, &name, call).await?.and_then(|answer| answer.lifecycle_policy_text);
    let filter = ListImagesFilter::builder().tag_status(TagStatus::Tagged).build();
    let pages = api.ecr.list_images().repository_name(&name).filter(filter).into_paginator();
    let listed = api.find(SERVICE, &name, pages.items().send().try_collect()).await?.unwrap_or_default();
    let image = |one: ImageIdentifier| Some(format!("{}@{}", one.image_tag?, one.image_digest?));
    let mut images: Vec<String> = listed.into_iter().filter_map(image).collect();
    images.sort();
    let encryption = repository.encryption_configuration;
    let spec = Spec {
        name: name.clone(),
        immutable: repository.image_tag_mutability == Some(ImageTagMutability::Immutable),
        scan_on_push: repository.image_scanning_configuration.is_some_and(|scanning| scanning.scan_on_push),
        key: encryption.filter(|one| one.encryption_type == EncryptionType::Kms).and_then(|one| one.kms_key),
        lifecycle: lifecycle.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
        images,
        tags: Tags::new(),
    };
    let seen = ObservedObject::new(&name, spec, tags).output("name", Some(name.clone())).output("arn", Some(arn));
    Ok(Some(seen.output("uri", repository.repository_uri).created(timestamp(repository.created_at))))
}

fn mutability(immutable: bool) -> ImageTagMutability {
    if immutable { ImageTagMutability::Immutable } else { ImageTagMutability::Mutable }
}

fn scanning(scan_on_push: bool) -> ImageScanningConfiguration {
    ImageScanningConfiguration::builder().scan_on_push(scan_on_push).build()
}

fn listed(tags: &Tags) -> Vec<Tag> {
    let tag = |(key, value)| Tag::builder().key(key).value(value).build().expect("both members are set");
    tags.iter().map(tag).collect()
}
