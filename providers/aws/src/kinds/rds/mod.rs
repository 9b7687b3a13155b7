//! PostgreSQL of RDS: <https://docs.aws.amazon.com/AmazonRDS/latest/APIReference/Welcome.html>.

mod instance;
mod parameter_group;
mod subnet_group;
pub(crate) mod window;

use aws_sdk_rds::types::Tag;
use textnlp_cloud::REGION;
use textnlp_provider::{DataClass, Identity, Kind, Permission, Pricing, ReplaceOrder, ReplicaFields, Result, Verified};

use self::instance::Instance;
pub(crate) use self::parameter_group::FORCE_SSL;
use self::parameter_group::ParameterGroup;
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
                only(Permission::on(CREATE, "iam:CreateServiceLinkedRole"), OWN_ROLE),
                only(Permission::on(PUT, "rds:AddTagsToResource"), SUBNETS),
                only(Permission::on(CREATE, "rds:CreateDBSubnetGroup"), SUBNETS),
                only(Permission::on(DELETE, "rds:DeleteDBSubnetGroup"), SUBNETS),
                Permission::read("rds:DescribeDBSubnetGroups"),
                only(Permission::read("rds:ListTagsForResource"), SUBNETS),
                only(Permission::on(PUT, "rds:ModifyDBSubnetGroup"), SUBNETS),
                only(Permission::on(PUT, "rds:RemoveTagsFromResource"), SUBNETS),
            ],
            terraform: &[("aws_db_subnet_group", "name")],
            ..kind("aws.db-subnet-group", "the subnets of a database", Identity::Named)
        },
        service: SERVICE,
        resource: &Of::<SubnetGroup>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            // A group of another major version has another name, and the database moves to it before the old one goes.
            replace: ReplaceOrder::CreateFirst,
            permissions: &[
                only(Permission::on(PUT, "rds:AddTagsToResource"), PARAMETERS),
                only(Permission::on(CREATE, "rds:CreateDBParameterGroup"), PARAMETERS),
                only(Permission::on(DELETE, "rds:DeleteDBParameterGroup"), PARAMETERS),
                Permission::read("rds:DescribeDBParameterGroups"),
                Permission::read("rds:DescribeDBParameters"),
                only(Permission::read("rds:ListTagsForResource"), PARAMETERS),
                only(Permission::on(PUT, "rds:ModifyDBParameterGroup"), PARAMETERS),
                only(Permission::on(PUT, "rds:RemoveTagsFromResource"), PARAMETERS),
                only(Permission::on(PUT, "rds:ResetDBParameterGroup"), PARAMETERS),
            ],
            terraform: &[("aws_db_parameter_group", "name")],
            ..kind("aws.db-parameter-group", "the settings of a database", Identity::Named)
        },
        service: SERVICE,
        resource: &Of::<ParameterGroup>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            data: DataClass::Precious,
            pricing: Pricing::BySpec,
            typical: Some(MINUTE.saturating_mul(15)),
            // A copy of a large database in another region, or a final snapshot of one, takes hours.
            deadline: MINUTE.saturating_mul(360),
            permissions: &[
                only(Permission::on(CREATE, "iam:CreateServiceLinkedRole"), OWN_ROLE),
                // RDS makes a grant of the key for itself, as the caller.
                when(FOR_SERVICE, only(Permission::on(PUT, "kms:CreateGrant"), KEYS)),
                Permission::read("kms:DescribeKey"),
                only(Permission::on(PUT, "rds:AddTagsToResource"), SERVER),
                only(Permission::on(CREATE, "rds:CreateDBInstance"), SERVER),
                only(Permission::on(CREATE, "rds:CreateDBInstance"), OWN_SUBNETS),
                only(Permission::on(CREATE, "rds:CreateDBInstance"), OWN_PARAMETERS),
                only(Permission::on(CREATE, "rds:CreateDBInstance"), OPTIONS),
                only(Permission::on(CREATE, "rds:CreateDBInstanceReadReplica"), OWN_SERVERS),
                only(Permission::on(CREATE, "rds:CreateDBInstanceReadReplica"), OWN_SUBNETS),
                only(Permission::on(CREATE, "rds:CreateDBInstanceReadReplica"), OWN_PARAMETERS),
                only(Permission::on(CREATE, "rds:CreateDBInstanceReadReplica"), OPTIONS),
                only(Permission::on(DELETE, "rds:CreateDBSnapshot"), SERVER),
                only(Permission::on(DELETE, "rds:CreateDBSnapshot"), OWN_SNAPSHOTS),
                only(Permission::on(DELETE, "rds:DeleteDBInstance"), SERVER),
                // Preflight: a version that RDS does not have.
                Permission::read("rds:DescribeDBEngineVersions"),
                Permission::read("rds:DescribeDBInstances"),
                only(Permission::change("rds:ModifyDBInstance"), SERVER),
                only(Permission::change("rds:ModifyDBInstance"), OWN_PARAMETERS),
                only(Permission::change("rds:ModifyDBInstance"), OPTIONS),
                only(Permission::on(PUT, "rds:PromoteReadReplica"), SERVER),
                only(Permission::on(PUT, "rds:RebootDBInstance{multi_az=true}"), SERVER),
                only(Permission::on(PUT, "rds:RemoveTagsFromResource"), SERVER),
            ],
            terraform: &[("aws_db_instance", "identifier")],
            replica: Some(ReplicaFields {
                region: REGION,
                source: "source",
                output: "arn",
                inherited: &["backup_days", "backup_window"],
                protection: Some("deletion_protection"),
                verified: Verified::ByRegion,
            }),
            ..kind("aws.db-instance", "a PostgreSQL server", Identity::Named)
        },
        service: SERVICE,
        resource: &Of::<Instance>::kind(),
        refused: &[
            ("database", "a server is created with its database; create another one with SQL"),
            ("key", "a server cannot be encrypted with another key; restore a snapshot with that key as a new one"),
            ("user", "the master user is chosen once; create another role with SQL"),
            (
                "version",
                "upgrade the server with `aws rds modify-db-instance --db-instance-identifier NAME --engine-version VERSION \
                 --allow-major-version-upgrade --db-parameter-group-name default.postgresVERSION --apply-immediately`, then set \
                 `database.version`",
            ),
        ],
    },
];

// What calls about a server also name.

/// A replica and its source, which may be in another region: the caller needs the action for both
/// (<https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/USER_ReadRepl.XRgn.html>).
const OWN_SERVERS: &str = "arn:{$partition}:rds:*:{$account}:db:textnlp-*";
const OWN_SNAPSHOTS: &str = "arn:{$partition}:rds:{$region}:{$account}:snapshot:textnlp-*";
const OWN_SUBNETS: &str = "arn:{$partition}:rds:{$region}:{$account}:subgrp:textnlp-*";
const OWN_PARAMETERS: &str = "arn:{$partition}:rds:{$region}:{$account}:pg:textnlp-*";
const OPTIONS: &str = "arn:{$partition}:rds:{$region}:{$account}:og:default*";
/// The role that the first database of an account creates, as the caller:
/// <https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.IAM.ServiceLinkedRoles.html>.
const OWN_ROLE: &str = "arn:{$partition}:iam::{$account}:role/aws-service-role/rds.amazonaws.com/*";
const SUBNETS: &str = "arn:{$partition}:rds:{$region}:{$account}:subgrp:{name}";
const PARAMETERS: &str = "arn:{$partition}:rds:{$region}:{$account}:pg:{name}";
const SERVER: &str = "arn:{$partition}:rds:{$region}:{$account}:db:{name}";
/// The signing name.
const SERVICE: &str = "rds";

/// Changes the tags of an object with one call.
async fn tag(api: &Api, arn: &str, set: &Tags, remove: &[String]) -> Result<()> {
    if set.is_empty() {
        let call = api.rds.remove_tags_from_resource().resource_name(arn).set_tag_keys(Some(remove.to_vec())).send();
        return api.call(SERVICE, "remove tags of", arn, call).await.map(drop);
    }
    let call = api.rds.add_tags_to_resource().resource_name(arn).set_tags(Some(listed(set))).send();
    api.call(SERVICE, "set tags of", arn, call).await.map(drop)
}

/// The tags of a group, which its description does not show; `None` when it is gone.
async fn tags_of(api: &Api, arn: &str) -> Result<Option<Tags>> {
    let answer = api.find(SERVICE, arn, api.rds.list_tags_for_resource().resource_name(arn).send()).await?;
    Ok(answer.map(|answer| tags(answer.tag_list)))
}

fn tags(tags: Option<Vec<Tag>>) -> Tags {
    let pair = |tag: Tag| Some((tag.key?, tag.value.unwrap_or_default()));
    tags.unwrap_or_default().into_iter().filter_map(pair).collect()
}

fn listed(tags: &Tags) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}
