//! The bucket of your own models, the key that a site's data is encrypted with, and the right of pods to read models.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_cloud::REGION;
use textnlp_provider::cluster::{BucketIdentity, IdentityToken, MODELS_ACCOUNT};
use textnlp_provider::component::{Model, ModelReplica, ModelStore};
use textnlp_provider::{CloudId, Component, ComponentName, Ownership, ResourceId, Site};
use textnlp_token::partition;

use super::cluster::PODS;
use super::{Lowering, output};
use crate::kinds::iam::PATH;
use crate::names;
use crate::tables::regions;

/// The component that the key of a site belongs to.
const MODELS: &str = "models";
/// The longest name of a bucket.
const MOST_OF_BUCKET: usize = 63;
/// The longest name of an alias, without `alias/`.
const MOST_OF_ALIAS: usize = 250;
/// Days until a replaced version of a model is removed: an operator can undo an upload for so long.
const OLD_VERSIONS_DAYS: u32 = 30;
/// Days until an incomplete upload is removed.
const UPLOADS_DAYS: u32 = 7;
/// The services that send messages to the encrypted topic of a site
/// (<https://docs.aws.amazon.com/sns/latest/dg/sns-key-management.html>).
pub(crate) const PUBLISHERS: &[&str] = &["cloudwatch.amazonaws.com", "budgets.amazonaws.com"];
/// The part that gives pods the right to read models.
const READER: &str = "reader";
/// The scheme of buckets.
const SCHEME: &str = "s3";
/// The start of an ARN of a bucket.
const BUCKET_ARN: &str = "arn:aws:s3:::";
/// The component of a site's cluster.
const CLUSTER: &str = "cluster";
/// The address of the agent of Pod Identity on each node, and what it answers to:
/// <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>,
/// <https://docs.aws.amazon.com/eks/latest/userguide/pod-id-how-it-works.html>.
const AGENT: ([u8; 4], u16) = ([169, 254, 170, 23], 80);
const AGENT_URL: &str = "http://169.254.170.23/v1/credentials";
const TOKEN_FOLDER: &str = "/var/run/secrets/textnlp-models";
const TOKEN_FILE: &str = "eks-pod-identity-token";
/// EKS's own webhook gives every other container of the pods credentials
/// (<https://github.com/aws/amazon-eks-pod-identity-webhook#eks-pod-identity>).
const SKIP: &str = "eks.amazonaws.com/skip-containers";
/// A day, as EKS's own webhook sets it.
const TOKEN_SECONDS: u32 = 86_400;
/// Days between two rotations of the key: KMS's own period.
const ROTATION_DAYS: u32 = 365;

impl Lowering<'_> {
    pub(super) fn models(&mut self, store: &ModelStore) {
        if self.site.account.is_empty() {
            let cause = "the names of buckets are unique in all of AWS, and the account in them is not known";
            return self.problem("account", cause, "set `sites[].account` to its twelve digits");
        }
        let description = format!("data of {} at {}", self.site.environment, self.site.name);
        let ownership = store.key.clone().map_or(Ownership::Ours, Ownership::External);
        self.key("data", &description, ownership, PUBLISHERS);
        let existing = self.component.existing.clone();
        let name = existing.as_ref().map_or_else(
            || models_bucket(self.site),
            |bucket| bucket.as_str().trim_start_matches(BUCKET_ARN).to_owned(),
        );
        if existing.is_some() && store.archive_after_days.is_some() {
            let cause = "an existing bucket is never changed, and its lifecycle is one of its settings";
            self.problem("archive_after", cause, "remove it, and add a lifecycle rule to that bucket yourself");
        }
        let arn = self.bucket_arn(&name);
        // The files of a model are read when a pod starts, at times that are not known before: S3 chooses the class by use, without a fee for
        // reading. An operator who knows better says so.
        let (days, class) = match store.archive_after_days {
            Some(days) => (days, "GLACIER_IR"),
            None => (0, "INTELLIGENT_TIERING"),
        };
        let replication =
            store.replica.as_ref().map_or(Value::Null, |replica| self.replica(replica, &arn, (days, class)));
        let bucket = self.bucket(&name, &self.data_key(), (days, class), &replication);
        let ownership = existing.map_or(Ownership::Ours, |_| bucket_id(&name));
        self.owned_part("bucket", "aws.bucket", &bucket, ownership);
        self.reader(store, &name);
    }

    /// The role that pods fetch models of buckets with; `own` is the bucket of the site.
    fn reader(&mut self, store: &ModelStore, own: &str) {
        let Some(site) = self.site.cluster.as_deref() else { return };
        let statements = self.may_read(&store.models, own);
        // An existing cluster is never changed; the provider of the objects in it says so for each model.
        if statements.is_empty() || site.existing {
            return;
        }
        let inline = json!({ "models": { "Version": "2012-10-17", "Statement": statements } });
        let Some(role) = self.role("reader-role", PODS, &[], store.permission_boundary.as_deref(), inline) else {
            return;
        };
        let cluster = ResourceId::of(&self.site.name, &CLUSTER.parse::<ComponentName>().expect("it is a label"));
        self.pod_identity(READER, &cluster, (&site.namespace, MODELS_ACCOUNT), &role);
    }

    /// What reads the models that are in buckets, of which `own` is that of the site.
    pub(super) fn may_read(&self, models: &[Model], own: &str) -> Vec<Value> {
        let mut places: Vec<(&str, &str)> = models
            .iter()
            .filter_map(|model| match model.source.strip_prefix("bucket:") {
                Some(path) => Some((own, path)),
                None => model.source.strip_prefix("s3://").map(|rest| rest.split_once('/').unwrap_or((rest, ""))),
            })
            .map(|(bucket, path)| (bucket, path.trim_end_matches('/')))
            .collect();
        places.sort_unstable();
        places.dedup();
        let mut buckets: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (bucket, path) in places {
            buckets.entry(bucket).or_default().push(match path {
                "" => "*".to_owned(),
                file if file.ends_with(".gguf") => file.to_owned(),
                folder => format!("{folder}/*"),
            });
        }
        let mut statements = Vec::new();
        // A role has 10,240 characters of policies (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html>).
        for (number, (bucket, paths)) in buckets.into_iter().enumerate() {
            let arn = self.bucket_arn(bucket);
            let objects: Vec<String> = paths.iter().map(|path| format!("{arn}/{path}")).collect();
            // An existing bucket has another key, which may be one of another account.
            let key = match bucket == own && self.component.existing.is_none() {
                true => self.data_key(),
                false => json!(format!("arn:{}:kms:*:*:key/*", partition(&self.site.region).name)),
            };
            // The ARN is that of the bucket where it has a key of its own, else that of the object.
            let of_bucket = json!({ "StringLike": {
                "kms:ViaService": format!("s3.*.{}", partition(&self.site.region).dns_suffix),
                "kms:EncryptionContext:aws:s3:arn": [arn, format!("{arn}/*")],
            } });
            let may = |what: &str, action: &str, resource: Value| json!({ "Sid": format!("{what}{number}"), "Effect": "Allow", "Action": [action], "Resource": resource });
            // Without the right to list, S3 denies what does not exist:
            // <https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html>. A list of a whole bucket has no prefix.
            let mut list = may("List", "s3:ListBucket", json!(arn));
            if !paths.iter().any(|path| path == "*") {
                list["Condition"] = json!({ "StringLike": { "s3:prefix": paths } });
            }
            let mut decrypt = may("Decrypt", "kms:Decrypt", key);
            decrypt["Condition"] = of_bucket;
            statements.extend([list, may("Read", "s3:GetObject", json!(objects)), decrypt]);
        }
        statements
    }

    /// The attributes of a bucket of models, with the storage class that objects move to after some days.
    fn bucket(&self, name: &str, key: &Value, (days, class): (u32, &str), replication: &Value) -> Value {
        let arn = self.bucket_arn(name);
        json!({
            "name": name,
            "owner_enforced": true,
            "public_access_blocked": true,
            "encryption": { "key": key, "bucket_key": true },
            "versioned": true,
            "policy": {
                "Version": "2012-10-17",
                "Statement": [{
                    "Sid": "OnlyTls",
                    "Effect": "Deny",
                    "Principal": "*",
                    "Action": "s3:*",
                    "Resource": [arn, format!("{arn}/*")],
                    "Condition": { "Bool": { "aws:SecureTransport": "false" } },
                }],
            },
            "lifecycle": [{
                "id": "models",
                "enabled": true,
                "prefix": "",
                "transitions": [{ "days": days, "class": class }],
                "expire_days": null,
                "old_versions_expire_days": OLD_VERSIONS_DAYS,
                "abort_uploads_days": UPLOADS_DAYS,
            }],
            "replication": replication,
        })
    }

    fn bucket_arn(&self, name: &str) -> String {
        format!("arn:{}:s3:::{name}", partition(&self.site.region).name)
    }

    /// The bucket in another region, its key, and the role that copies objects of the bucket `source` there.
    fn replica(&mut self, replica: &ModelReplica, source: &str, class: (u32, &str)) -> Value {
        let region = replica.region.as_str();
        let own = partition(&self.site.region);
        let is_there = regions::region(region).is_some_and(|region| region.partition() == own);
        if self.component.existing.is_some() {
            let cause = "an existing bucket is never changed, and its copies are one of its settings";
            self.problem("replicate_to", cause, "remove it, and set up the copies of that bucket yourself");
        } else if !is_there || region == self.site.region {
            let cause = format!("`{region}` is not another region that {} can be copied to", self.site.region);
            self.problem("replicate_to", cause, regions::another("storage.replicate_to", &self.site.region));
        }
        let name = names::global(self.site, "models-replica", MOST_OF_BUCKET);
        let arn = self.bucket_arn(&name);
        let description = format!("copies of the models of {} at {}", self.site.environment, self.site.name);
        let mut key = self.key_spec("replica", &description, &[]);
        key[REGION] = json!(region);
        let Some(key) = self.part("replica-key", "aws.key", &key) else { return Value::Null };
        let key = output(&key, "arn");
        let mut bucket = self.bucket(&name, &key, class, &Value::Null);
        bucket[REGION] = json!(region);
        let bucket = self.part("replica-bucket", "aws.bucket", &bucket);
        let through =
            |region: &str| json!({ "StringEquals": { "kms:ViaService": format!("s3.{region}.{}", own.dns_suffix) } });
        let may = |sid: &str, actions: &[&str], resource: Value, condition: Value| {
            let mut statement = json!({ "Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resource });
            if !condition.is_null() {
                statement["Condition"] = condition;
            }
            statement
        };
        // <https://docs.aws.amazon.com/AmazonS3/latest/userguide/replication-config-for-kms-objects.html>
        let statements = [
            may("Source", &["s3:GetReplicationConfiguration", "s3:ListBucket"], json!(source), Value::Null),
            may(
                "Read",
                &["s3:GetObjectVersionAcl", "s3:GetObjectVersionForReplication", "s3:GetObjectVersionTagging"],
                json!(format!("{source}/*")),
                Value::Null,
            ),
            may("Write", &["s3:ReplicateObject", "s3:ReplicateTags"], json!(format!("{arn}/*")), Value::Null),
            may("Decrypt", &["kms:Decrypt"], self.data_key(), through(&self.site.region)),
            may("Encrypt", &["kms:Encrypt", "kms:GenerateDataKey"], key.clone(), through(region)),
        ];
        let mut trust = json!({ "Effect": "Allow", "Principal": { "Service": ["s3.amazonaws.com"] }, "Action": ["sts:AssumeRole"] });
        // Buckets of another account do not use the role:
        // <https://docs.aws.amazon.com/AmazonS3/latest/userguide/setting-repl-config-perm-overview.html>.
        if !self.site.account.is_empty() {
            let from = json!({ "aws:SourceAccount": [self.site.account] });
            trust["Condition"] = json!({ "StringEquals": from, "ArnLike": { "aws:SourceArn": [source] } });
        }
        let role = self.part(
            "replica-role",
            "aws.role",
            &json!({
                "name": names::of(self.site, "models-replica", names::MOST_OF_ROLE),
                "path": PATH,
                "trust": { "Version": "2012-10-17", "Statement": [trust] },
                "boundary": replica.permission_boundary,
                "managed": [],
                "inline": { "replica": { "Version": "2012-10-17", "Statement": statements } },
            }),
        );
        let (Some(bucket), Some(role)) = (bucket, role) else { return Value::Null };
        json!({ "role": output(&role, "arn"), "bucket": output(&bucket, "arn"), "key": key, "metrics": true })
    }

    /// The key of a component: `name` is in its alias. `services` may encrypt with it what they send for this account.
    pub(super) fn key(
        &mut self,
        name: &str,
        description: &str,
        ownership: Ownership,
        services: &[&str],
    ) -> Option<ResourceId> {
        let key = self.key_spec(name, description, services);
        self.owned_part("key", "aws.key", &key, ownership)
    }

    /// The attributes of a key.
    pub(super) fn key_spec(&self, name: &str, description: &str, services: &[&str]) -> Value {
        let alias = format!("alias/{}", names::of(self.site, name, MOST_OF_ALIAS));
        let account = format!("arn:{}:iam::{}:root", partition(&self.site.region).name, self.site.account);
        // IAM decides who of the account may use it; no other account may.
        let mut statements = vec![json!({
            "Sid": "Account",
            "Effect": "Allow",
            "Principal": { "AWS": account },
            "Action": "kms:*",
            "Resource": "*",
        })];
        if !services.is_empty() {
            statements.push(json!({
                "Sid": "Messages",
                "Effect": "Allow",
                "Principal": { "Service": services },
                "Action": ["kms:Decrypt", "kms:GenerateDataKey*"],
                "Resource": "*",
                "Condition": { "StringEquals": { "aws:SourceAccount": self.site.account } },
            }));
        }
        json!({
            "enabled": true,
            "description": description,
            "policy": { "Version": "2012-10-17", "Statement": statements },
            "rotation_days": ROTATION_DAYS,
            "aliases": [alias],
        })
    }

    /// The ARN of the key that data of the site is encrypted with: one key, because each costs the same whatever it encrypts.
    pub(super) fn data_key(&self) -> Value {
        let id = ResourceId::new(format!("{}/{MODELS}/key", self.site.name)).expect("the parts are labels");
        output(&id, "arn")
    }

    /// Adds the resource `SITE/COMPONENT/PART`, which may be an existing object.
    pub(super) fn owned_part(
        &mut self,
        part: &str,
        kind: &'static str,
        spec: &Value,
        ownership: Ownership,
    ) -> Option<ResourceId> {
        let id = self.part(part, kind, spec)?;
        if let Some(wanted) = self.wanted.last_mut() {
            wanted.ownership = ownership;
        }
        Some(id)
    }
}

/// The name of a site's bucket, unless it has an existing one.
pub fn models_bucket(site: &Site) -> String {
    names::global(site, MODELS, MOST_OF_BUCKET)
}

/// How pods of a cluster that EKS runs sign in to buckets.
pub(crate) fn bucket_identity(component: &Component, site: &Site) -> BucketIdentity {
    // Only the model store has the existing bucket, and only its models have sources.
    let existing = component.existing.as_ref().map(|bucket| bucket.as_str().trim_start_matches(BUCKET_ARN));
    let own = existing.map_or_else(|| models_bucket(site), str::to_owned);
    let variables = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", AGENT_URL.to_owned()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", format!("{TOKEN_FOLDER}/{TOKEN_FILE}")),
        ("AWS_REGION", site.region.clone()),
    ];
    BucketIdentity {
        scheme: SCHEME.to_owned(),
        own: format!("{SCHEME}://{own}/"),
        variables: variables.map(|(name, value)| (name.to_owned(), value.into())).into(),
        token: Some(IdentityToken {
            audience: PODS.to_owned(),
            folder: TOKEN_FOLDER.to_owned(),
            file: TOKEN_FILE.to_owned(),
            seconds: TOKEN_SECONDS,
        }),
        services: vec![AGENT.into()],
        part: READER.to_owned(),
        skip_annotation: Some(SKIP.to_owned()),
    }
}

fn bucket_id(name: &str) -> Ownership {
    CloudId::new(name).map_or(Ownership::Ours, Ownership::External)
}
