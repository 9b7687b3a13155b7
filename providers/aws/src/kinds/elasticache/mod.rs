//! Caches of ElastiCache: <https://docs.aws.amazon.com/AmazonElastiCache/latest/APIReference/Welcome.html>.

mod group;
mod subnet_group;

use aws_sdk_elasticache::types::Tag;
use textnlp_provider::{DataClass, Identity, Kind, Permission, Pricing, Result};

use self::group::Group;
use self::subnet_group::SubnetGroup;
use super::{CREATE, DELETE, FOR_SERVICE, KEYS, PUT, only, when};
use crate::api::Api;
use crate::resource::Of;
use crate::table::{MINUTE, Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            permissions: &[
                only(Permission::on(PUT, "elasticache:AddTagsToResource"), NAMED),
                only(Permission::on(CREATE, "elasticache:CreateCacheSubnetGroup"), HERE),
                only(Permission::on(DELETE, "elasticache:DeleteCacheSubnetGroup"), NAMED),
                Permission::read("elasticache:DescribeCacheSubnetGroups"),
                only(Permission::read("elasticache:ListTagsForResource"), HERE),
                only(Permission::on(PUT, "elasticache:ModifyCacheSubnetGroup"), HERE),
                only(Permission::on(PUT, "elasticache:RemoveTagsFromResource"), NAMED),
            ],
            terraform: &[("aws_elasticache_subnet_group", "name")],
            ..kind("aws.cache-subnet-group", "the subnets of a cache", Identity::Named)
        },
        service: SERVICE,
        resource: &Of::<SubnetGroup>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            data: DataClass::Derived,
            pricing: Pricing::BySpec,
            deadline: MINUTE.saturating_mul(90),
            typical: Some(MINUTE.saturating_mul(12)),
            permissions: &[
                only(Permission::on(PUT, "elasticache:AddTagsToResource"), TAGGED),
                only(Permission::on(CREATE, "elasticache:CreateReplicationGroup"), HERE),
                only(Permission::on(PUT, "elasticache:DecreaseReplicaCount"), HERE),
                only(Permission::on(DELETE, "elasticache:DeleteReplicationGroup"), NAMED),
                Permission::read("elasticache:DescribeCacheClusters"),
                Permission::read("elasticache:DescribeReplicationGroups"),
                only(Permission::on(PUT, "elasticache:IncreaseReplicaCount"), HERE),
                only(Permission::read("elasticache:ListTagsForResource"), HERE),
                only(Permission::on(PUT, "elasticache:ModifyReplicationGroup"), HERE),
                only(Permission::on(PUT, "elasticache:RemoveTagsFromResource"), NAMED),
                // The first cache of an account creates it.
                only(Permission::on(CREATE, "iam:CreateServiceLinkedRole"), OWN_ROLE),
                // ElastiCache makes a grant of the key for itself, as the caller.
                when(FOR_SERVICE, only(Permission::on(CREATE, "kms:CreateGrant"), KEYS)),
                only(Permission::on(CREATE, "kms:DescribeKey"), KEYS),
            ],
            terraform: &[("aws_elasticache_replication_group", "replication_group_id")],
            ..kind("aws.cache", "a cache with its replicas", Identity::Named)
        },
        service: SERVICE,
        resource: &Of::<Group>::kind(),
        refused: &[],
    },
];

/// The object itself: `replicationgroup:NAME`.
const NAMED: &str = "arn:{$partition}:elasticache:{$region}:{$account}:*:{name}";
/// A replication group and its nodes, `cluster:NAME-001`, which get its tags.
const TAGGED: &str = "arn:{$partition}:elasticache:{$region}:{$account}:*:{name}*";
/// An object, and the groups that the call also names.
const HERE: &str = "arn:{$partition}:elasticache:{$region}:{$account}:*";
/// The service-linked role of ElastiCache
/// (<https://docs.aws.amazon.com/AmazonElastiCache/latest/dg/using-service-linked-roles.html>).
const OWN_ROLE: &str = "arn:{$partition}:iam::{$account}:role/aws-service-role/elasticache.amazonaws.com/*";
/// The signing name.
const SERVICE: &str = "elasticache";

/// Changes the tags of an object with one call.
async fn tag(api: &Api, arn: &str, set: &Tags, remove: &[String]) -> Result<()> {
    let elasticache = &api.elasticache;
    if set.is_empty() {
        let call =
            elasticache.remove_tags_from_resource().resource_name(arn).set_tag_keys(Some(remove.to_vec())).send();
        return api.call(SERVICE, "remove tags of", arn, call).await.map(drop);
    }
    let call = elasticache.add_tags_to_resource().resource_name(arn).set_tags(Some(listed(set))).send();
    api.call(SERVICE, "set tags of", arn, call).await.map(drop)
}

/// The tags of an object, which its description does not show; `None` when it is gone.
async fn tags_of(api: &Api, arn: &str) -> Result<Option<Tags>> {
    let answer = api.find(SERVICE, arn, api.elasticache.list_tags_for_resource().resource_name(arn).send()).await?;
    let pair = |tag: Tag| Some((tag.key?, tag.value.unwrap_or_default()));
    Ok(answer.map(|answer| answer.tag_list.unwrap_or_default().into_iter().filter_map(pair).collect()))
}

fn listed(tags: &Tags) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}
