//! Settings of buckets in two forms: in specs, and in calls.

use aws_sdk_s3::types::{
    AbortIncompleteMultipartUpload, BucketLifecycleConfiguration, DeleteMarkerReplication,
    DeleteMarkerReplicationStatus, Destination, EncryptionConfiguration, ExpirationStatus, LifecycleExpiration,
    LifecycleRule as Rule, LifecycleRuleFilter, Metrics, MetricsStatus, NoncurrentVersionExpiration,
    ReplicationConfiguration, ReplicationRule, ReplicationRuleFilter, ReplicationRuleStatus, ServerSideEncryption,
    ServerSideEncryptionByDefault, ServerSideEncryptionConfiguration, ServerSideEncryptionRule,
    SourceSelectionCriteria, SseKmsEncryptedObjects, SseKmsEncryptedObjectsStatus, Transition, TransitionStorageClass,
};
use serde::{Deserialize, Serialize};

/// How new objects are encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Encryption {
    /// The ARN of the key; null is a key of S3.
    key: Option<String>,
    /// Whether one key of the bucket encrypts many objects, which makes calls of KMS rare.
    bucket_key: bool,
}

impl Encryption {
    pub(super) fn read(configuration: Option<ServerSideEncryptionConfiguration>) -> Self {
        let rule = configuration.and_then(|configuration| configuration.rules.into_iter().next());
        let bucket_key = rule.as_ref().and_then(|rule| rule.bucket_key_enabled).unwrap_or_default();
        let by_default = rule.and_then(|rule| rule.apply_server_side_encryption_by_default);
        Self { key: by_default.and_then(|one| one.kms_master_key_id), bucket_key }
    }

    pub(super) fn write(&self) -> ServerSideEncryptionConfiguration {
        let by_default = match &self.key {
            Some(key) => ServerSideEncryptionByDefault::builder()
                .sse_algorithm(ServerSideEncryption::AwsKms)
                .kms_master_key_id(key),
            None => ServerSideEncryptionByDefault::builder().sse_algorithm(ServerSideEncryption::Aes256),
        };
        let by_default = by_default.build().expect("the algorithm is set");
        let rule = ServerSideEncryptionRule::builder()
            .apply_server_side_encryption_by_default(by_default)
            .bucket_key_enabled(self.bucket_key)
            .build();
        ServerSideEncryptionConfiguration::builder().rules(rule).build().expect("it has a rule")
    }
}

/// What happens to objects as they age.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LifecycleRule {
    id: String,
    enabled: bool,
    /// The start of the keys that it is for; all if empty.
    prefix: String,
    /// Storage classes, with the days after which an object moves there.
    transitions: Vec<ClassAfter>,
    /// Days after which an object expires.
    expire_days: Option<i32>,
    /// Days after which a version expires that a newer one replaced.
    old_versions_expire_days: Option<i32>,
    /// Days after which an incomplete upload is removed.
    abort_uploads_days: Option<i32>,
}

/// A storage class, and the days after which an object moves there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ClassAfter {
    days: i32,
    class: String,
}

impl LifecycleRule {
    pub(super) fn read(rule: Rule) -> Self {
        let prefix = rule.filter.and_then(|filter| filter.prefix);
        let transitions = rule.transitions.unwrap_or_default().into_iter().map(|one| ClassAfter {
            days: one.days.unwrap_or_default(),
            class: one.storage_class.map(|class| class.as_str().to_owned()).unwrap_or_default(),
        });
        Self {
            id: rule.id.unwrap_or_default(),
            enabled: rule.status == ExpirationStatus::Enabled,
            prefix: prefix.unwrap_or_default(),
            transitions: transitions.collect(),
            expire_days: rule.expiration.and_then(|expiration| expiration.days),
            old_versions_expire_days: rule.noncurrent_version_expiration.and_then(|one| one.noncurrent_days),
            abort_uploads_days: rule.abort_incomplete_multipart_upload.and_then(|one| one.days_after_initiation),
        }
    }

    fn write(&self) -> Rule {
        let transitions = self.transitions.iter().map(|one| {
            Transition::builder().days(one.days).storage_class(TransitionStorageClass::from(one.class.as_str())).build()
        });
        let status = if self.enabled { ExpirationStatus::Enabled } else { ExpirationStatus::Disabled };
        let mut rule = Rule::builder()
            .id(&self.id)
            .status(status)
            .filter(LifecycleRuleFilter::builder().prefix(&self.prefix).build());
        if !self.transitions.is_empty() {
            rule = rule.set_transitions(Some(transitions.collect()));
        }
        if let Some(days) = self.expire_days {
            rule = rule.expiration(LifecycleExpiration::builder().days(days).build());
        }
        if let Some(days) = self.old_versions_expire_days {
            rule = rule
                .noncurrent_version_expiration(NoncurrentVersionExpiration::builder().noncurrent_days(days).build());
        }
        if let Some(days) = self.abort_uploads_days {
            let abort = AbortIncompleteMultipartUpload::builder().days_after_initiation(days).build();
            rule = rule.abort_incomplete_multipart_upload(abort);
        }
        rule.build().expect("the status is set")
    }
}

/// All rules of a bucket; `None` for none.
pub(super) fn lifecycle(rules: &[LifecycleRule]) -> Option<BucketLifecycleConfiguration> {
    if rules.is_empty() {
        return None;
    }
    let rules = rules.iter().map(LifecycleRule::write).collect();
    BucketLifecycleConfiguration::builder().set_rules(Some(rules)).build().ok()
}

/// A copy of all new objects in another bucket. Deletions are not copied: they reach only one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Replication {
    /// The ARN of the role that S3 assumes.
    role: String,
    /// The ARN of the other bucket.
    bucket: String,
    /// The ARN of the key there; null copies no object that a key of KMS encrypts.
    key: Option<String>,
    /// Whether CloudWatch shows what waits to be copied, and what failed.
    metrics: bool,
}

/// The id of the one rule.
pub(crate) const RULE: &str = "textnlp";

impl Replication {
    pub(super) fn read(configuration: ReplicationConfiguration) -> Self {
        let rule = configuration.rules.into_iter().find(|rule| rule.status == ReplicationRuleStatus::Enabled);
        let destination = rule.and_then(|rule| rule.destination);
        let metrics = destination.as_ref().and_then(|to| to.metrics.as_ref());
        let metrics = metrics.is_some_and(|metrics| metrics.status == MetricsStatus::Enabled);
        let (bucket, encryption) = destination.map(|to| (to.bucket, to.encryption_configuration)).unwrap_or_default();
        Self { role: configuration.role, bucket, key: encryption.and_then(|one| one.replica_kms_key_id), metrics }
    }

    pub(super) fn write(&self) -> ReplicationConfiguration {
        let mut destination = Destination::builder().bucket(&self.bucket);
        if self.metrics {
            let metrics = Metrics::builder().status(MetricsStatus::Enabled).build().expect("the status is set");
            destination = destination.metrics(metrics);
        }
        let mut rule = ReplicationRule::builder()
            .id(RULE)
            .priority(1)
            .status(ReplicationRuleStatus::Enabled)
            .filter(ReplicationRuleFilter::builder().prefix("").build())
            .delete_marker_replication(
                DeleteMarkerReplication::builder().status(DeleteMarkerReplicationStatus::Disabled).build(),
            );
        if let Some(key) = &self.key {
            let encryption = EncryptionConfiguration::builder().replica_kms_key_id(key).build();
            destination = destination.encryption_configuration(encryption);
            let status = SseKmsEncryptedObjectsStatus::Enabled;
            let encrypted = SseKmsEncryptedObjects::builder().status(status).build().expect("the status is set");
            let selected = SourceSelectionCriteria::builder().sse_kms_encrypted_objects(encrypted).build();
            rule = rule.source_selection_criteria(selected);
        }
        let rule = rule.destination(destination.build().expect("the bucket is set"));
        let rule = rule.build().expect("the status is set");
        ReplicationConfiguration::builder().role(&self.role).rules(rule).build().expect("role and rules are set")
    }
}
