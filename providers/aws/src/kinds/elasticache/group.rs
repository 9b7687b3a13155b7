//! Replication groups: <https://docs.aws.amazon.com/AmazonElastiCache/latest/APIReference/API_CreateReplicationGroup.html>.

use async_trait::async_trait;
use aws_sdk_elasticache::types::{
    AuthTokenUpdateStrategyType, CacheCluster, MultiAzStatus, ReplicationGroup as Answer,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::{Error, ErrorKind, Result, SecretRef};

use super::SERVICE;
use crate::api::Api;
use crate::kinds::{list_by_tag, secret};
use crate::resource::{Filter, Make, ObservedObject, Resource, State};
use crate::tags::{self, Tags};

/// A primary node and its replicas. Outputs: `name`, `arn`, `host`, `reader_host`, `port`,
/// `url`: the address without the token, `node_1` and so on: the ids of its nodes.
pub(super) struct Group;

/// The attributes of a cache. Its price depends on the class and the count of nodes, and on snapshots.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Spec {
    name: String,
    description: String,
    /// `valkey` or `redis`.
    engine: String,
    /// The major version. Minor versions are those of ElastiCache.
    version: String,
    class: String,
    /// Replicas of the primary node.
    replicas: i32,
    /// Whether a replica in another zone takes over.
    multi_az: bool,
    /// The ARN of its key; null is a key of AWS.
    key: Option<String>,
    /// The reference to the token of clients. A change keeps the old one valid beside the new one, until the next change.
    token: Option<SecretRef>,
    subnet_group: String,
    /// The ids of its security groups, sorted.
    security_groups: Vec<String>,
    /// Days for which snapshots are kept; 0 is none.
    snapshot_days: i32,
    /// When ElastiCache may restart nodes, in UTC: `sun:04:00-sun:08:00`. None leaves the window as it is.
    maintenance_window: Option<String>,
    /// Whether only TLS connections are accepted.
    tls: bool,
    /// Whether disks and snapshots are encrypted.
    encrypted: bool,
    minor_upgrades: bool,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for Group {
    type Spec = Spec;
    // Automatic failover needs a replica, and is switched off before the last one goes.
    const IN_PLACE: &'static [&'static str] = &[
        "description",
        "security_groups",
        "version",
        "class",
        "replicas",
        "multi_az",
        "snapshot_days",
        "maintenance_window",
        "minor_upgrades",
        "token",
    ];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let call = api.elasticache.describe_replication_groups().replication_group_id(id).send();
        let answer = api.find(SERVICE, id, call).await?;
        let group = answer.and_then(|answer| answer.replication_groups.unwrap_or_default().into_iter().next());
        let Some(group) = group else { return Ok(None) };
        let arn = group.arn.clone().unwrap_or_default();
        let Some(tags) = super::tags_of(api, &arn).await? else { return Ok(None) };
        // Networks and versions are shown by the nodes only.
        let mut node = None;
        if let Some(member) = group.member_clusters.as_ref().and_then(|members| members.first()) {
            let call = api.elasticache.describe_cache_clusters().cache_cluster_id(member).send();
            let answer = api.find(SERVICE, member, call).await?;
            node = answer.and_then(|answer| answer.cache_clusters.unwrap_or_default().into_iter().next());
        }
        Ok(Some(seen(id, arn, group, node, tags)))
    }

    /// Three calls for each cache of the deployment, and one for each page of them.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let kind = "elasticache:replicationgroup";
        list_by_tag::<Self>(api, filter, kind, |arn| arn.split_once(":replicationgroup:").map(|(_, name)| name)).await
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(spec.name.clone())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let mut tags = make.tags.clone();
        let mut call = api.elasticache.create_replication_group();
        if let Some(token) = &spec.token {
            tags.insert(tags::SECRET.to_owned(), TokenTag { secret: token.clone(), changed: 0, is_next: true }.write());
            call = call.auth_token(secret::value(api, token).await?);
        }
        let call = call
            .replication_group_id(&spec.name)
            .replication_group_description(&spec.description)
            .engine(&spec.engine)
            .engine_version(version(&spec.version))
            .cache_node_type(&spec.class)
            .num_cache_clusters(spec.replicas.saturating_add(1))
            .multi_az_enabled(spec.multi_az)
            .automatic_failover_enabled(spec.multi_az)
            .set_kms_key_id(spec.key.clone())
            .cache_subnet_group_name(&spec.subnet_group)
            .set_security_group_ids(Some(spec.security_groups.clone()))
            .snapshot_retention_limit(spec.snapshot_days)
            .set_preferred_maintenance_window(spec.maintenance_window.clone())
            .transit_encryption_enabled(spec.tls)
            .at_rest_encryption_enabled(spec.encrypted)
            .auto_minor_version_upgrade(spec.minor_upgrades)
            .set_tags(Some(super::listed(&tags)));
        api.call(SERVICE, "create", format!("cache {}", spec.name), call.send()).await?;
        Ok(spec.name.clone())
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        let (elasticache, id) = (&api.elasticache, seen.id.as_str());
        let change = elasticache.modify_replication_group().replication_group_id(id).apply_immediately(true);
        let change = match field {
            // Automatic failover is on with a replica only.
            "replicas" if spec.replicas == 0 && seen.spec.multi_az => {
                change.multi_az_enabled(false).automatic_failover_enabled(false)
            }
            "replicas" if spec.replicas > seen.spec.replicas => {
                let call = elasticache.increase_replica_count().replication_group_id(id).apply_immediately(true);
                let call = call.new_replica_count(spec.replicas).send();
                return api.call(SERVICE, "change", id, call).await.map(drop);
            }
            "replicas" => {
                let call = elasticache.decrease_replica_count().replication_group_id(id).apply_immediately(true);
                let call = call.new_replica_count(spec.replicas).send();
                return api.call(SERVICE, "change", id, call).await.map(drop);
            }
            "description" => change.replication_group_description(&spec.description),
            "security_groups" => change.set_security_group_ids(Some(spec.security_groups.clone())),
            "version" => change.engine_version(version(&spec.version)),
            "class" => change.cache_node_type(&spec.class),
            "multi_az" => change.multi_az_enabled(spec.multi_az).automatic_failover_enabled(spec.multi_az),
            "snapshot_days" => change.snapshot_retention_limit(spec.snapshot_days),
            "maintenance_window" => change.set_preferred_maintenance_window(spec.maintenance_window.clone()),
            "minor_upgrades" => change.auto_minor_version_upgrade(spec.minor_upgrades),
            _ => {
                let Some(token) = &spec.token else {
                    let error = Error::new(ErrorKind::Invalid, "change", id).because("a cache keeps a token");
                    return Err(error.hint("delete the cache, and let the next `up` create one without"));
                };
                let changed = seen.outputs.get(CHANGED).and_then(Value::as_i64).unwrap_or_default();
                let tag = seen.tags.get(tags::SECRET).and_then(|tag| TokenTag::read(tag));
                match tag.filter(|tag| tag.is_next && tag.secret == *token) {
                    Some(tag) if tag.changed == changed => change
                        .auth_token(secret::value(api, token).await?)
                        .auth_token_update_strategy(AuthTokenUpdateStrategyType::Rotate),
                    tag => {
                        let tag = TokenTag { secret: token.clone(), changed, is_next: tag.is_none() };
                        let tag = Tags::from([(tags::SECRET.to_owned(), tag.write())]);
                        return super::tag(api, arn(seen), &tag, &[]).await;
                    }
                }
            }
        };
        api.call(SERVICE, "change", id, change.send()).await.map(drop)
    }

    fn fits(field: &str, wanted: &Value, _seen: &Value) -> bool {
        field == "maintenance_window" && wanted.is_null()
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, arn(seen), set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.elasticache.delete_replication_group().replication_group_id(&seen.id).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

/// The output with the time of the last change of the token, in seconds since 1970.
const CHANGED: &str = "token_changed";

/// The tag that says which token a cache has. ElastiCache shows when the token last changed, so a change has three steps, of one call
/// each: the tag names the next token and that time, the token changes, the tag names it with the new time.
struct TokenTag {
    secret: SecretRef,
    /// The last change that the tag knows of; 0 before the creation.
    changed: i64,
    /// Whether the token changes after that.
    is_next: bool,
}

const NEXT: &str = ":next";

impl TokenTag {
    fn read(tag: &str) -> Option<Self> {
        let (tag, is_next) = tag.strip_suffix(NEXT).map_or((tag, false), |tag| (tag, true));
        let (secret, changed) = tag.rsplit_once(':')?;
        Some(Self { secret: secret::of_tag(secret)?, changed: changed.parse().ok()?, is_next })
    }

    fn write(&self) -> String {
        format!("{}:{}{}", secret::tag(&self.secret), self.changed, if self.is_next { NEXT } else { "" })
    }
}

fn seen(id: &str, arn: String, group: Answer, node: Option<CacheCluster>, tags: Tags) -> ObservedObject<Spec> {
    let changed = group.auth_token_last_modified_date.map_or(0, |date| date.secs());
    let is_rotating = group.pending_modified_values.as_ref().is_some_and(|next| next.auth_token_status.is_some());
    let token = tags.get(tags::SECRET).and_then(|tag| TokenTag::read(tag));
    let token = token.filter(|tag| changed == 0 || !tag.is_next && tag.changed == changed);
    let mut members = group.member_clusters.unwrap_or_default();
    members.sort();
    let node = node.unwrap_or_else(|| CacheCluster::builder().build());
    let mut spec = Spec {
        name: id.to_owned(),
        description: group.description.unwrap_or_default(),
        engine: group.engine.unwrap_or_default(),
        version: node.engine_version.as_deref().and_then(|all| all.split('.').next()).unwrap_or_default().to_owned(),
        class: group.cache_node_type.unwrap_or_default(),
        replicas: i32::try_from(members.len().saturating_sub(1)).unwrap_or(i32::MAX),
        multi_az: group.multi_az == Some(MultiAzStatus::Enabled),
        key: group.kms_key_id,
        token: token.map(|tag| tag.secret),
        subnet_group: node.cache_subnet_group_name.unwrap_or_default(),
        security_groups: Vec::new(),
        snapshot_days: group.snapshot_retention_limit.unwrap_or_default(),
        maintenance_window: node.preferred_maintenance_window,
        tls: group.transit_encryption_enabled.unwrap_or_default(),
        encrypted: group.at_rest_encryption_enabled.unwrap_or_default(),
        minor_upgrades: group.auto_minor_version_upgrade.unwrap_or_default(),
        tags: Tags::new(),
    };
    let groups = node.security_groups.unwrap_or_default().into_iter().filter_map(|group| group.security_group_id);
    spec.security_groups = groups.collect();
    spec.security_groups.sort();
    let state = match group.status.as_deref().unwrap_or_default() {
        "available" if is_rotating => State::Pending("changing its token".to_owned()),
        "available" | "snapshotting" => State::Ready,
        "deleting" => State::Deleting,
        "create-failed" => {
            State::Failed { code: "create-failed".to_owned(), why: "ElastiCache could not create the cache".to_owned() }
        }
        status => State::Pending(status.to_owned()),
    };
    let shard = group.node_groups.unwrap_or_default().into_iter().next();
    let (primary, reader) = shard.map(|shard| (shard.primary_endpoint, shard.reader_endpoint)).unwrap_or_default();
    let port = primary.as_ref().and_then(|to| to.port);
    let host = primary.and_then(|to| to.address);
    let scheme = if spec.tls { "rediss" } else { "redis" };
    let url = host.as_ref().zip(port).map(|(host, port)| format!("{scheme}://{host}:{port}"));
    let object = ObservedObject::new(id, spec, tags);
    let nodes = members.iter().enumerate();
    let object = nodes.fold(object, |object, (n, node)| object.output(&format!("node_{}", n + 1), Some(node.as_str())));
    object
        .output("name", Some(id))
        .output("arn", Some(arn))
        .output("host", host)
        .output("reader_host", reader.and_then(|to| to.address))
        .output("port", port)
        .output("url", url)
        .output(CHANGED, (changed != 0).then_some(changed))
        .state(state)
}

/// The first minor version: later ones follow by themselves.
fn version(major: &str) -> String {
    format!("{major}.0")
}

fn arn(seen: &ObservedObject<Spec>) -> &str {
    seen.outputs.get("arn").and_then(Value::as_str).unwrap_or_default()
}
