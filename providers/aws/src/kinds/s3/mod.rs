//! Buckets: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateBucket.html>.
//!
//! Each call names the account that must own the bucket: after a deletion another account may take the name.

mod rules;

pub(crate) use rules::RULE;

use async_trait::async_trait;
use aws_sdk_s3::types::{
    BucketLocationConstraint, BucketVersioningStatus, CreateBucketConfiguration, Delete, ObjectIdentifier,
    ObjectOwnership, OwnershipControls, OwnershipControlsRule, PublicAccessBlockConfiguration, Tag, Tagging,
    VersioningConfiguration,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::{DataClass, Error, ErrorKind, Identity, Permission, Pricing, Result};
use textnlp_token::partition;

use self::rules::{Encryption, LifecycleRule, Replication};
use super::iam::{ROLES, TO_BUCKETS};
use super::{CREATE, DELETE, PUT, iam, list_by_tag, only};
use crate::api::Api;
use crate::resource::{Filter, Make, ObservedObject, Of, Resource};
use crate::table::{MINUTE, Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        data: DataClass::Precious,
        pricing: Pricing::BySpec,
        // A call deletes a thousand objects.
        deadline: MINUTE.saturating_mul(120),
        permissions: &[
            // S3 takes the role that copies objects, which may be there before the bucket is changed.
            Permission { conditions: TO_BUCKETS, ..only(Permission::on(PUT, "iam:PassRole{?replication}"), ROLES) },
            only(Permission::on(CREATE, "s3:CreateBucket"), BUCKET),
            only(Permission::on(DELETE, "s3:DeleteBucket"), BUCKET),
            only(Permission::on(PUT, "s3:DeleteBucketPolicy"), BUCKET),
            only(Permission::on(DELETE, "s3:DeleteObject"), OBJECTS),
            only(Permission::on(DELETE, "s3:DeleteObjectVersion"), OBJECTS),
            only(Permission::read("s3:GetBucketOwnershipControls"), BUCKET),
            only(Permission::read("s3:GetBucketPolicy"), BUCKET),
            only(Permission::read("s3:GetBucketPublicAccessBlock"), BUCKET),
            only(Permission::read("s3:GetBucketTagging"), BUCKET),
            only(Permission::read("s3:GetBucketVersioning"), BUCKET),
            only(Permission::read("s3:GetEncryptionConfiguration"), BUCKET),
            only(Permission::read("s3:GetLifecycleConfiguration"), BUCKET),
            only(Permission::read("s3:GetReplicationConfiguration"), BUCKET),
            only(Permission::read("s3:ListBucket"), BUCKET),
            only(Permission::read("s3:ListBucketVersions"), BUCKET),
            only(Permission::on(PUT, "s3:PutBucketOwnershipControls"), BUCKET),
            only(Permission::on(PUT, "s3:PutBucketPolicy"), BUCKET),
            only(Permission::on(PUT, "s3:PutBucketPublicAccessBlock"), BUCKET),
            only(Permission::on(PUT, "s3:PutBucketTagging"), BUCKET),
            only(Permission::on(PUT, "s3:PutBucketVersioning"), BUCKET),
            only(Permission::on(PUT, "s3:PutEncryptionConfiguration"), BUCKET),
            only(Permission::on(PUT, "s3:PutLifecycleConfiguration"), BUCKET),
            only(Permission::on(PUT, "s3:PutReplicationConfiguration"), BUCKET),
            only(Permission::on(PUT, "s3:TagResource"), BUCKET),
        ],
        terraform: &[("aws_s3_bucket", "id")],
        ..kind("aws.bucket", "a bucket of objects", Identity::Named)
    },
    service: SERVICE,
    resource: &Of::<Bucket>::kind(),
    refused: &[],
}];

const BUCKET: &str = "arn:{$partition}:s3:::{name}";
const OBJECTS: &str = "arn:{$partition}:s3:::{name}/*";
/// The signing name.
const SERVICE: &str = "s3";
/// The region whose buckets have no location constraint.
const FIRST_REGION: &str = "us-east-1";
/// Versions in one call: the most that S3 lists and deletes at once.
const PAGE: i32 = 1000;

/// A bucket. Outputs: `name`, `arn`, `region`.
struct Bucket;

/// The attributes of a bucket. What it costs depends on the bytes in it and their storage class, and on requests.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    name: String,
    /// Whether the bucket owns all objects, so that access lists count for nothing.
    owner_enforced: bool,
    /// Whether no policy and no access list can open it to the public.
    public_access_blocked: bool,
    encryption: Encryption,
    versioned: bool,
    /// The bucket policy; null is none.
    policy: Value,
    lifecycle: Vec<LifecycleRule>,
    replication: Option<Replication>,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for Bucket {
    type Spec = Spec;
    // Public access is blocked before there is a policy, and objects have versions before they are replicated.
    const IN_PLACE: &'static [&'static str] =
        &["public_access_blocked", "owner_enforced", "encryption", "policy", "versioned", "lifecycle", "replication"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let (s3, owner) = (&api.s3, api.identity.account.as_str());
        let call = s3.head_bucket().bucket(id).expected_bucket_owner(owner).send();
        let Some(head) = api.find(SERVICE, id, call).await? else { return Ok(None) };
        let call = s3.get_bucket_tagging().bucket(id).expected_bucket_owner(owner).send();
        let tags = api.find(SERVICE, id, call).await?.map(|tags| tags.tag_set).unwrap_or_default();
        let call = s3.get_bucket_ownership_controls().bucket(id).expected_bucket_owner(owner).send();
        let ownership = api.find(SERVICE, id, call).await?.and_then(|answer| answer.ownership_controls);
        let call = s3.get_public_access_block().bucket(id).expected_bucket_owner(owner).send();
        let block = api.find(SERVICE, id, call).await?.and_then(|answer| answer.public_access_block_configuration);
        let call = s3.get_bucket_encryption().bucket(id).expected_bucket_owner(owner).send();
        let encryption = api.find(SERVICE, id, call).await?;
        let call = s3.get_bucket_versioning().bucket(id).expected_bucket_owner(owner).send();
        let versioning = api.find(SERVICE, id, call).await?;
        let call = s3.get_bucket_policy().bucket(id).expected_bucket_owner(owner).send();
        let policy = api.find(SERVICE, id, call).await?.and_then(|answer| answer.policy);
        let call = s3.get_bucket_lifecycle_configuration().bucket(id).expected_bucket_owner(owner).send();
        let lifecycle = api.find(SERVICE, id, call).await?.and_then(|answer| answer.rules).unwrap_or_default();
        let call = s3.get_bucket_replication().bucket(id).expected_bucket_owner(owner).send();
        let replication = api.find(SERVICE, id, call).await?.and_then(|answer| answer.replication_configuration);

        let spec = Spec {
            name: id.to_owned(),
            owner_enforced: ownership.is_some_and(|all| {
                all.rules.iter().any(|rule| rule.object_ownership == ObjectOwnership::BucketOwnerEnforced)
            }),
            public_access_blocked: block.is_some_and(|block| is_blocked(&block)),
            encryption: Encryption::read(encryption.and_then(|answer| answer.server_side_encryption_configuration)),
            versioned: versioning.and_then(|answer| answer.status) == Some(BucketVersioningStatus::Enabled),
            policy: policy.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
            lifecycle: lifecycle.into_iter().map(LifecycleRule::read).collect(),
            replication: replication.map(Replication::read),
            tags: Tags::new(),
        };
        let tags = tags.into_iter().map(|tag| (tag.key, tag.value)).collect();
        let region = head.bucket_region.unwrap_or_else(|| api.region.clone());
        let seen = ObservedObject::new(id, spec, tags)
            .output("name", Some(id))
            .output("arn", Some(format!("arn:{}:s3:::{id}", partition(&api.region).name)));
        Ok(Some(seen.output("region", Some(region))))
    }

    /// Nine calls for each bucket of the deployment, of which a site has one or two: each setting has its own.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        list_by_tag::<Self>(api, filter, "s3", |arn| arn.split_once(":s3:::").map(|(_, name)| name)).await
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(spec.name.clone())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let mut configuration = CreateBucketConfiguration::builder().set_tags(Some(listed(&make.tags)));
        if api.region != FIRST_REGION {
            configuration = configuration.location_constraint(BucketLocationConstraint::from(api.region.as_str()));
        }
        let call = api
            .s3
            .create_bucket()
            .bucket(&spec.name)
            .object_ownership(ObjectOwnership::BucketOwnerEnforced)
            .create_bucket_configuration(configuration.build())
            .send();
        api.call(SERVICE, "create", format!("bucket {}", spec.name), call).await?;
        Ok(spec.name.clone())
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        let (s3, id, owner) = (&api.s3, seen.id.as_str(), api.identity.account.as_str());
        let action = "change";
        match field {
            "public_access_blocked" => {
                let on = spec.public_access_blocked;
                let block = PublicAccessBlockConfiguration::builder().block_public_acls(on).ignore_public_acls(on);
                let block = block.block_public_policy(on).restrict_public_buckets(on).build();
                let call = s3.put_public_access_block().bucket(id).expected_bucket_owner(owner);
                api.call(SERVICE, action, id, call.public_access_block_configuration(block).send()).await.map(drop)
            }
            "owner_enforced" => {
                let ownership = match spec.owner_enforced {
                    true => ObjectOwnership::BucketOwnerEnforced,
                    false => ObjectOwnership::BucketOwnerPreferred,
                };
                let rule = OwnershipControlsRule::builder().object_ownership(ownership).build().expect("it is set");
                let controls = OwnershipControls::builder().rules(rule).build().expect("it has a rule");
                let call = s3.put_bucket_ownership_controls().bucket(id).expected_bucket_owner(owner);
                api.call(SERVICE, action, id, call.ownership_controls(controls).send()).await.map(drop)
            }
            "encryption" => {
                let call = s3.put_bucket_encryption().bucket(id).expected_bucket_owner(owner);
                let call = call.server_side_encryption_configuration(spec.encryption.write()).send();
                api.call(SERVICE, action, id, call).await.map(drop)
            }
            "versioned" => {
                // Versions that exist stay: they can only be suspended.
                let status = match spec.versioned {
                    true => BucketVersioningStatus::Enabled,
                    false => BucketVersioningStatus::Suspended,
                };
                let versioning = VersioningConfiguration::builder().status(status).build();
                let call = s3.put_bucket_versioning().bucket(id).expected_bucket_owner(owner);
                api.call(SERVICE, action, id, call.versioning_configuration(versioning).send()).await.map(drop)
            }
            "policy" if spec.policy.is_null() => {
                let call = s3.delete_bucket_policy().bucket(id).expected_bucket_owner(owner).send();
                api.call(SERVICE, action, id, call).await.map(drop)
            }
            "policy" => {
                let call = s3.put_bucket_policy().bucket(id).expected_bucket_owner(owner);
                api.call(SERVICE, action, id, call.policy(spec.policy.to_string()).send()).await.map(drop)
            }
            "lifecycle" => match rules::lifecycle(&spec.lifecycle) {
                Some(lifecycle) => {
                    let call = s3.put_bucket_lifecycle_configuration().bucket(id).expected_bucket_owner(owner);
                    api.call(SERVICE, action, id, call.lifecycle_configuration(lifecycle).send()).await.map(drop)
                }
                None => {
                    let call = s3.delete_bucket_lifecycle().bucket(id).expected_bucket_owner(owner).send();
                    api.call(SERVICE, action, id, call).await.map(drop)
                }
            },
            _ => match &spec.replication {
                Some(replication) => {
                    let call = s3.put_bucket_replication().bucket(id).expected_bucket_owner(owner);
                    api.call(SERVICE, action, id, call.replication_configuration(replication.write()).send())
                        .await
                        .map(drop)
                }
                None => {
                    let call = s3.delete_bucket_replication().bucket(id).expected_bucket_owner(owner).send();
                    api.call(SERVICE, action, id, call).await.map(drop)
                }
            },
        }
    }

    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        field == "policy" && iam::is_same(wanted, seen)
    }

    /// S3 replaces all tags of a bucket at once, so a change and a removal are one call.
    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        let mut tags = seen.tags.clone();
        tags.extend(set.clone());
        tags.retain(|key, _| !remove.contains(key));
        let tagging = Tagging::builder().set_tag_set(Some(listed(&tags))).build().expect("its tags are set");
        let owner = api.identity.account.as_str();
        let call = api.s3.put_bucket_tagging().bucket(&seen.id).expected_bucket_owner(owner).tagging(tagging).send();
        api.call(SERVICE, "set tags of", &seen.id, call).await.map(drop)
    }

    /// Deletes a page of versions and delete markers, and an empty bucket itself. The engine has the consent for data.
    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let (s3, id, owner) = (&api.s3, seen.id.as_str(), api.identity.account.as_str());
        let call = s3.list_object_versions().bucket(id).expected_bucket_owner(owner).max_keys(PAGE).send();
        let page = api.call(SERVICE, "list", format!("versions in {id}"), call).await?;
        let versions = page.versions.unwrap_or_default().into_iter().map(|one| (one.key, one.version_id));
        let markers = page.delete_markers.unwrap_or_default().into_iter().map(|one| (one.key, one.version_id));
        let object = |(key, version): (Option<String>, Option<String>)| {
            ObjectIdentifier::builder().key(key?).set_version_id(version).build().ok()
        };
        let objects: Vec<ObjectIdentifier> = versions.chain(markers).filter_map(object).collect();
        if objects.is_empty() {
            let call = s3.delete_bucket().bucket(id).expected_bucket_owner(owner).send();
            return api.call(SERVICE, "delete", id, call).await.map(drop);
        }
        let delete = Delete::builder().set_objects(Some(objects)).quiet(true).build().expect("it names objects");
        let call = s3.delete_objects().bucket(id).expected_bucket_owner(owner).delete(delete).send();
        let answer = api.call(SERVICE, "delete", format!("objects in {id}"), call).await?;
        // S3 answers 200 for a page of which it refused a part.
        let Some(refused) = answer.errors.unwrap_or_default().into_iter().next() else { return Ok(()) };
        let code = refused.code.unwrap_or_default();
        let kind = match code.as_str() {
            "AccessDenied" => ErrorKind::Denied,
            _ => ErrorKind::Unavailable,
        };
        let subject = format!("{} in {id}", refused.key.unwrap_or_default());
        Err(Error::new(kind, "delete", subject).code(code).because(refused.message.unwrap_or_default()))
    }
}

fn is_blocked(block: &PublicAccessBlockConfiguration) -> bool {
    let all =
        [block.block_public_acls, block.ignore_public_acls, block.block_public_policy, block.restrict_public_buckets];
    all.into_iter().all(|on| on == Some(true))
}

fn listed(tags: &Tags) -> Vec<Tag> {
    let tag = |(key, value)| Tag::builder().key(key).value(value).build().expect("both members are set");
    tags.iter().map(tag).collect()
}
