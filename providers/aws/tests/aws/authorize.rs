//! What IAM allows: the actions, the resources and the condition keys of a request, held against policies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use serde_json::Value;
use textnlp_sim::aws::ec2;
use textnlp_sim::aws::iam::Iam;
use textnlp_sim::{Call, Fault, Scope, World, is_like};

use crate::ACCOUNT;

/// Operations whose action has another name
/// (<https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazons3.html>,
/// <https://docs.aws.amazon.com/service-authorization/latest/reference/list_awsbudgetservice.html>).
const NAMES: &[(&str, &str)] = &[
    ("budgets:CreateBudget", "budgets:ModifyBudget"),
    ("budgets:CreateNotification", "budgets:ModifyBudget"),
    ("budgets:DeleteBudget", "budgets:ModifyBudget"),
    ("budgets:DeleteNotification", "budgets:ModifyBudget"),
    ("budgets:DescribeBudget", "budgets:ViewBudget"),
    ("budgets:DescribeBudgets", "budgets:ViewBudget"),
    ("budgets:DescribeNotificationsForBudget", "budgets:ViewBudget"),
    ("budgets:DescribeSubscribersForNotification", "budgets:ViewBudget"),
    ("budgets:UpdateBudget", "budgets:ModifyBudget"),
    ("s3:DeleteBucketLifecycle", "s3:PutLifecycleConfiguration"),
    ("s3:DeleteBucketReplication", "s3:PutReplicationConfiguration"),
    ("s3:DeleteBucketTagging", "s3:PutBucketTagging"),
    ("s3:DeleteObjects", "s3:DeleteObjectVersion"),
    ("s3:DeletePublicAccessBlock", "s3:PutBucketPublicAccessBlock"),
    ("s3:GetBucketEncryption", "s3:GetEncryptionConfiguration"),
    ("s3:GetBucketLifecycleConfiguration", "s3:GetLifecycleConfiguration"),
    ("s3:GetBucketReplication", "s3:GetReplicationConfiguration"),
    ("s3:GetPublicAccessBlock", "s3:GetBucketPublicAccessBlock"),
    ("s3:HeadBucket", "s3:ListBucket"),
    ("s3:ListObjectVersions", "s3:ListBucketVersions"),
    ("s3:ListObjectsV2", "s3:ListBucket"),
    ("s3:PutBucketEncryption", "s3:PutEncryptionConfiguration"),
    ("s3:PutBucketLifecycleConfiguration", "s3:PutLifecycleConfiguration"),
    ("s3:PutBucketReplication", "s3:PutReplicationConfiguration"),
    ("s3:PutPublicAccessBlock", "s3:PutBucketPublicAccessBlock"),
];

/// What an operation needs besides its own action: the operation, a member of its input that has to be there and not `false`, and the
/// action.
/// (<https://docs.aws.amazon.com/service-authorization/latest/reference/>, "dependent actions").
const ALSO: &[(&str, &str, &str)] = &[
    ("application-autoscaling:RegisterScalableTarget", "Tags", "application-autoscaling:TagResource"),
    // It creates its role with the first target.
    ("application-autoscaling:RegisterScalableTarget", "Tags", "iam:CreateServiceLinkedRole"),
    ("budgets:CreateBudget", "ResourceTags", "budgets:TagResource"),
    ("cloudwatch:PutDashboard", "Tags", "cloudwatch:TagResource"),
    ("cloudwatch:PutMetricAlarm", "Tags", "cloudwatch:TagResource"),
    ("ec2:CreateFlowLogs", "DeliverLogsPermissionArn", "iam:PassRole"),
    ("ec2:CreateVpcEndpoint", "PrivateDnsEnabled", "route53:AssociateVPCWithHostedZone"),
    // The reference names it for the creation only; a change enables the private names in the same way.
    ("ec2:ModifyVpcEndpoint", "PrivateDnsEnabled", "route53:AssociateVPCWithHostedZone"),
    ("ecr:CreateRepository", "tags", "ecr:TagResource"),
    ("ecr:CreateRepository", "encryptionConfiguration", "kms:CreateGrant"),
    ("ecr:CreateRepository", "encryptionConfiguration", "kms:DescribeKey"),
    ("eks:CreateAccessEntry", "tags", "eks:TagResource"),
    ("eks:CreateAddon", "tags", "eks:TagResource"),
    ("eks:CreateCluster", "encryptionConfig", "kms:CreateGrant"),
    ("eks:CreateCluster", "encryptionConfig", "kms:DescribeKey"),
    ("eks:CreateCluster", "roleArn", "iam:CreateServiceLinkedRole"),
    ("eks:CreateCluster", "roleArn", "iam:PassRole"),
    ("eks:CreateCluster", "tags", "eks:TagResource"),
    ("eks:CreateNodegroup", "nodeRole", "iam:CreateServiceLinkedRole"),
    ("eks:CreateNodegroup", "nodeRole", "iam:GetRole"),
    ("eks:CreateNodegroup", "nodeRole", "iam:PassRole"),
    ("eks:CreateNodegroup", "tags", "eks:TagResource"),
    ("eks:CreatePodIdentityAssociation", "roleArn", "iam:GetRole"),
    ("eks:CreatePodIdentityAssociation", "roleArn", "iam:PassRole"),
    ("eks:CreatePodIdentityAssociation", "tags", "eks:TagResource"),
    ("elasticache:CreateCacheSubnetGroup", "Tags", "elasticache:AddTagsToResource"),
    // The first cache of an account creates the role.
    ("elasticache:CreateReplicationGroup", "Engine", "iam:CreateServiceLinkedRole"),
    ("elasticache:CreateReplicationGroup", "KmsKeyId", "kms:CreateGrant"),
    ("elasticache:CreateReplicationGroup", "KmsKeyId", "kms:DescribeKey"),
    ("elasticache:CreateReplicationGroup", "Tags", "elasticache:AddTagsToResource"),
    ("iam:CreateOpenIDConnectProvider", "Tags", "iam:TagOpenIDConnectProvider"),
    ("iam:CreateRole", "PermissionsBoundary", "iam:PutRolePermissionsBoundary"),
    ("iam:CreateRole", "Tags", "iam:TagRole"),
    ("kms:CreateKey", "Policy", "kms:PutKeyPolicy"),
    ("kms:CreateKey", "Tags", "kms:TagResource"),
    ("logs:CreateLogGroup", "tags", "logs:TagResource"),
    // The first database of an account creates the role.
    ("rds:CreateDBInstance", "Engine", "iam:CreateServiceLinkedRole"),
    ("rds:CreateDBInstance", "KmsKeyId", "kms:CreateGrant"),
    ("rds:CreateDBInstance", "KmsKeyId", "kms:DescribeKey"),
    ("rds:CreateDBInstance", "Tags", "rds:AddTagsToResource"),
    ("rds:CreateDBInstanceReadReplica", "KmsKeyId", "kms:CreateGrant"),
    ("rds:CreateDBInstanceReadReplica", "KmsKeyId", "kms:DescribeKey"),
    ("rds:CreateDBInstanceReadReplica", "Tags", "rds:AddTagsToResource"),
    ("rds:CreateDBParameterGroup", "Tags", "rds:AddTagsToResource"),
    ("rds:CreateDBSubnetGroup", "SubnetIds", "iam:CreateServiceLinkedRole"),
    ("rds:CreateDBSubnetGroup", "Tags", "rds:AddTagsToResource"),
    ("rds:DeleteDBInstance", "FinalDBSnapshotIdentifier", "rds:CreateDBSnapshot"),
    ("s3:CreateBucket", "CreateBucketConfiguration", "s3:TagResource"),
    ("s3:PutBucketReplication", "ReplicationConfiguration.Role", "iam:PassRole"),
    ("sagemaker:CreateEndpoint", "Tags", "sagemaker:AddTags"),
    ("sagemaker:CreateEndpointConfig", "KmsKeyId", "kms:CreateGrant"),
    ("sagemaker:CreateEndpointConfig", "KmsKeyId", "kms:DescribeKey"),
    ("sagemaker:CreateEndpointConfig", "Tags", "sagemaker:AddTags"),
    ("sagemaker:CreateModel", "ExecutionRoleArn", "iam:PassRole"),
    ("sagemaker:CreateModel", "Tags", "sagemaker:AddTags"),
    ("sns:CreateTopic", "Tags", "sns:TagResource"),
];

/// The types of EC2's resources in their ARNs, by the prefix of their ids.
const TYPES: &[(&str, &str)] = &[
    ("eipalloc", "elastic-ip"),
    ("eni", "network-interface"),
    ("fl", "vpc-flow-log"),
    ("igw", "internet-gateway"),
    ("lt", "launch-template"),
    ("nat", "natgateway"),
    ("rtb", "route-table"),
    ("sg", "security-group"),
    ("subnet", "subnet"),
    ("vol", "volume"),
    ("vpc", "vpc"),
    ("vpce", "vpc-endpoint"),
];

/// The statements that are in force, and what was allowed.
#[derive(Default)]
pub(crate) struct Allowed {
    pub(crate) statements: Vec<Value>,
    pub(crate) used: Mutex<BTreeSet<String>>,
    pub(crate) denied: Mutex<BTreeSet<String>>,
}

/// An action that a call needs.
struct Need {
    action: String,
    resource: String,
    /// The condition keys of the request.
    keys: BTreeMap<String, String>,
}

/// Where a world holds them.
pub(crate) fn place() -> Scope {
    Scope::new("policies", "")
}

/// Allows what the statements allow.
pub(crate) fn authorize(world: &World, call: &Call) -> Result<(), Fault> {
    // Sign-in needs no permission of these policies.
    if call.service == "sts" {
        return Ok(());
    }
    let Some(allowed) = world.find::<Allowed>(&place()) else { return Ok(()) };
    for need in needed(world, call) {
        if !allowed.statements.iter().any(|statement| allows(world, statement, &need)) {
            allowed.denied.lock().unwrap().insert(format!("{} on {} {:?}", need.action, need.resource, need.keys));
            return Err(call.denied(&need.action, &need.resource));
        }
        allowed.used.lock().unwrap().insert(need.action);
    }
    Ok(())
}

/// Whether statements allow an action on a resource, for a request with these condition keys.
pub(crate) fn is_allowed(
    world: &World,
    statements: &[Value],
    (action, resource): (&str, &str),
    keys: &[(&str, &str)],
) -> bool {
    let keys = keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let need = Need { action: action.to_owned(), resource: resource.to_owned(), keys };
    statements.iter().any(|statement| allows(world, statement, &need))
}

/// The actions that a call needs.
fn needed(world: &World, call: &Call) -> Vec<Need> {
    let prefix = match call.service {
        "monitoring" => "cloudwatch",
        "tagging" => "tag",
        service => service,
    };
    let operation = format!("{prefix}:{}", call.operation);
    let named = NAMES.iter().find(|(name, _)| *name == operation).map(|(_, action)| (*action).to_owned());
    let keys = condition_keys(world, call);
    let need = |action: &str, resource: String| Need { action: action.to_owned(), resource, keys: keys.clone() };
    let action = named.unwrap_or_else(|| operation.clone());
    let mut all: Vec<Need> = resources(world, call).into_iter().map(|resource| need(&action, resource)).collect();
    if call.service == "ec2" && !call.list("TagSpecifications").is_empty() {
        let mut tags = need("ec2:CreateTags", call.arn("*"));
        tags.keys.insert("ec2:CreateAction".to_owned(), call.operation.clone());
        all.push(tags);
    }
    let member = |path: &str| path.split('.').fold(&call.input, |value, name| &value[name]);
    let is_there = |path: &str| !member(path).is_null() && *member(path) != "" && *member(path) != false;
    let also = ALSO.iter().filter(|(name, path, _)| *name == operation && is_there(path));
    for (_, path, action) in also {
        match *action {
            "iam:CreateServiceLinkedRole" => {
                let service = match call.operation.as_str() {
                    "CreateDBInstance" | "CreateDBSubnetGroup" => "rds.amazonaws.com",
                    "CreateNodegroup" => "eks-nodegroup.amazonaws.com",
                    "CreateReplicationGroup" => "elasticache.amazonaws.com",
                    "RegisterScalableTarget" => "sagemaker.application-autoscaling.amazonaws.com",
                    _ => "eks.amazonaws.com",
                };
                let role = format!("arn:aws:iam::{ACCOUNT}:role/aws-service-role/{service}/AWSServiceRole");
                let mut created = need(action, role);
                created.keys.insert("iam:AWSServiceName".to_owned(), service.to_owned());
                all.push(created);
            }
            "iam:GetRole" => all.push(need(action, member(path).as_str().unwrap_or_default().to_owned())),
            "iam:PassRole" => {
                let service = if call.service == "ec2" { "vpc-flow-logs" } else { call.service };
                let mut passed = need(action, member(path).as_str().unwrap_or_default().to_owned());
                passed.keys.insert("iam:PassedToService".to_owned(), format!("{service}.amazonaws.com"));
                all.push(passed);
            }
            // A zone of AWS.
            "route53:AssociateVPCWithHostedZone" => {
                all.push(need(action, "arn:aws:route53:::hostedzone/Z0PRIVATE".to_owned()));
            }
            _ if action.starts_with("kms:") && call.service != "kms" => {
                let key =
                    key_in(&call.input).unwrap_or_else(|| format!("arn:aws:kms:{}:{ACCOUNT}:key/any", call.region));
                let mut key = need(action, key);
                let via = format!("{}.{}.amazonaws.com", call.service, call.region);
                key.keys.insert("kms:ViaService".to_owned(), via);
                // EKS does not set it.
                if call.service != "eks" {
                    key.keys.insert("kms:GrantIsForAWSResource".to_owned(), "true".to_owned());
                }
                all.push(key);
            }
            // On the new object, whose tags are in the request.
            _ => all.extend(resources(world, call).into_iter().next().map(|resource| need(action, resource))),
        }
    }
    all
}

/// The first ARN of a key in an input.
fn key_in(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => text.starts_with("arn:aws:kms:").then(|| text.clone()),
        Value::Array(items) => items.iter().find_map(key_in),
        Value::Object(members) => members.values().find_map(key_in),
        _ => None,
    }
}

/// The condition keys of a request: the tags that it sets, the boundary of its role, and the names and types of its records.
fn condition_keys(world: &World, call: &Call) -> BTreeMap<String, String> {
    let mut tags = BTreeMap::new();
    let role = call.str("RoleName").and_then(|name| world.find::<Iam>(&call.global())?.roles.get(name));
    let boundary = call.str("PermissionsBoundary").or_else(|| role?.boundary.as_deref());
    tags.extend(boundary.map(|boundary| ("iam:PermissionsBoundary".to_owned(), boundary.to_owned())));
    tags.extend(call.str("PolicyArn").map(|policy| ("iam:PolicyARN".to_owned(), policy.to_owned())));
    let group = call.str("GroupId").and_then(|id| world.find::<ec2::Ec2>(&call.scope())?.get(id));
    let vpc = group.and_then(|group| group.value["VpcId"].as_str());
    tags.extend(vpc.map(|vpc| ("ec2:Vpc".to_owned(), call.arn(&format!("vpc/{vpc}")))));
    let changes = call.input["ChangeBatch"]["Changes"].as_array().into_iter().flatten();
    let records = changes.map(|change| &change["ResourceRecordSet"]);
    let records = records.filter_map(|record| Some((record["Name"].as_str()?, record["Type"].as_str()?)));
    let (names, types): (Vec<String>, Vec<&str>) =
        records.map(|(name, kind)| (name.trim_end_matches('.').replace('*', "\\052"), kind)).unzip();
    if !names.is_empty() {
        tags.insert("route53:ChangeResourceRecordSetsNormalizedRecordNames".to_owned(), names.join(","));
        tags.insert("route53:ChangeResourceRecordSetsRecordTypes".to_owned(), types.join(","));
    }
    for one in call.list("Tags") {
        let text = |members: [&str; 2]| members.iter().find_map(|member| one[*member].as_str().map(str::to_owned));
        if let (Some(key), Some(value)) = (text(["Key", "TagKey"]), text(["Value", "TagValue"])) {
            tags.insert(format!("aws:RequestTag/{key}"), value);
        }
    }
    for (key, value) in call.input["tags"].as_object().into_iter().flatten() {
        tags.insert(format!("aws:RequestTag/{key}"), value.as_str().unwrap_or_default().to_owned());
    }
    tags
}

/// The ARNs that a call is about; that of all objects of the service where its input names none.
fn resources(world: &World, call: &Call) -> Vec<String> {
    let arn = |kind: &str, member: &str| call.str(member).map(|name| call.arn(&format!("{kind}{name}")));
    let as_is = |member: &str| call.str(member).map(str::to_owned);
    let found = match call.service {
        "ec2" => {
            let mut ids = Vec::new();
            // A rule's other group needs no permission.
            let is_rule =
                call.operation.ends_with("SecurityGroupIngress") || call.operation.ends_with("SecurityGroupEgress");
            ids_in(if is_rule { &call.input["GroupId"] } else { &call.input }, &mut ids);
            let is_read = call.operation.starts_with("Describe");
            let of_association = call.str("AssociationId").and_then(|id| route_table(world, call, id));
            let named = ids.into_iter().filter(|_| !is_read).map(|(kind, id)| call.arn(&format!("{kind}/{id}")));
            named.chain(of_association).collect()
        }
        "ecr" => arn("repository/", "repositoryName").or_else(|| as_is("resourceArn")).into_iter().collect(),
        "eks" => {
            let name = call.str("clusterName").or_else(|| call.str("name"));
            name.map(|name| call.arn(&format!("cluster/{name}"))).or_else(|| as_is("resourceArn")).into_iter().collect()
        }
        "elasticache" => {
            let group = arn("replicationgroup:", "ReplicationGroupId");
            let subnets = || arn("subnetgroup:", "CacheSubnetGroupName");
            group.or_else(subnets).or_else(|| as_is("ResourceName")).into_iter().collect()
        }
        "elasticloadbalancing" => {
            let classic = || arn("loadbalancer/", "LoadBalancerName");
            as_is("LoadBalancerArn").or_else(|| as_is("TargetGroupArn")).or_else(classic).into_iter().collect()
        }
        "iam" if call.operation.contains("OpenIDConnectProvider") => {
            let url = call.text("Url").trim_start_matches("https://");
            let new = format!("arn:aws:iam::{ACCOUNT}:oidc-provider/{url}");
            let named = as_is("OpenIDConnectProviderArn");
            named.or((call.operation == "CreateOpenIDConnectProvider").then_some(new)).into_iter().collect()
        }
        "logs" => arn("log-group:", "logGroupName").or_else(|| as_is("resourceArn")).into_iter().collect(),
        "iam" => {
            let name = call.str("RoleName").filter(|_| !call.operation.contains("InstanceProfile"));
            let of_new = |name: &str| format!("arn:aws:iam::{ACCOUNT}:role{}{name}", call.str("Path").unwrap_or("/"));
            // The name of a role does not tell its path.
            let known = |name: &str| {
                let roles = format!("arn:aws:iam::{ACCOUNT}:role/");
                let end = format!("/{name}");
                let mut all = world.tags.listed(&roles, call.now).map(|(arn, _)| arn.to_owned());
                all.find(|arn| arn.ends_with(&end))
            };
            name.map(|name| known(name).unwrap_or_else(|| of_new(name))).into_iter().collect()
        }
        "monitoring" => {
            let alarms = call.str("AlarmName").into_iter().chain(call.texts("AlarmNames"));
            let dashboards = call.str("DashboardName").into_iter().chain(call.texts("DashboardNames"));
            let alarms = alarms.map(|name| format!("arn:aws:cloudwatch:{}:{ACCOUNT}:alarm:{name}", call.region));
            let dashboards = dashboards.map(|name| format!("arn:aws:cloudwatch::{ACCOUNT}:dashboard/{name}"));
            alarms.chain(dashboards).chain(as_is("ResourceARN")).collect()
        }
        "budgets" => {
            let name = ["Budget", "NewBudget"].iter().find_map(|budget| call.input[*budget]["BudgetName"].as_str());
            let name = call.str("BudgetName").or(name);
            name.map(|name| format!("arn:aws:budgets::{ACCOUNT}:budget/{name}"))
                .or_else(|| as_is("ResourceARN"))
                .into_iter()
                .collect()
        }
        "sns" => as_is("TopicArn").or_else(|| as_is("ResourceArn")).or_else(|| arn("", "Name")).into_iter().collect(),
        "route53" => {
            let of = |kind: &str, member: &str| {
                let id = call.str(member)?.rsplit('/').next()?;
                Some(format!("arn:aws:route53:::{kind}/{id}"))
            };
            let of_id = if call.operation == "GetHostedZone" { "hostedzone" } else { "change" };
            let zone = of("hostedzone", "HostedZoneId").or_else(|| of(of_id, "Id"));
            let check = of("healthcheck", "HealthCheckId").or_else(|| of("healthcheck", "ResourceId"));
            let checks = call.texts("ResourceIds").into_iter().map(|id| format!("arn:aws:route53:::healthcheck/{id}"));
            zone.into_iter().chain(check).chain(checks).collect()
        }
        "kms" => {
            let key = call.str("KeyId").or_else(|| call.str("TargetKeyId"));
            let key =
                key.map(|key| if key.starts_with("arn:") { key.to_owned() } else { call.arn(&format!("key/{key}")) });
            let new = (call.operation == "CreateKey").then(|| call.arn("key/new"));
            arn("", "AliasName").into_iter().chain(key).chain(new).collect()
        }
        "rds" => {
            let server = arn("db:", "DBInstanceIdentifier");
            let group = || arn("subgrp:", "DBSubnetGroupName").or_else(|| arn("pg:", "DBParameterGroupName"));
            // What is copied, maybe from another region.
            let source = as_is("SourceDBInstanceIdentifier");
            let source = source.map(|id| if id.starts_with("arn:") { id } else { call.arn(&format!("db:{id}")) });
            server.or_else(group).or_else(|| as_is("ResourceName")).into_iter().chain(source).collect()
        }
        "s3" => {
            let objects = if call.operation == "DeleteObjects" { "/*" } else { "" };
            call.str("Bucket").map(|name| format!("arn:aws:s3:::{name}{objects}")).into_iter().collect()
        }
        "sagemaker" => {
            let named =
                [("endpoint", "EndpointName"), ("endpoint-config", "EndpointConfigName"), ("model", "ModelName")];
            let named = named.iter().filter_map(|(kind, member)| arn(&format!("{kind}/"), member));
            named.chain(as_is("ResourceArn")).collect()
        }
        "secretsmanager" => {
            let id = call.str("SecretId").or_else(|| call.str("Name"));
            let arn = |id: &str| {
                if id.starts_with("arn:") { id.to_owned() } else { call.arn(&format!("secret:{id}-AbCdEf")) }
            };
            id.map(arn).into_iter().collect()
        }
        _ => Vec::new(),
    };
    match call.service {
        _ if !found.is_empty() => found,
        "iam" => vec![format!("arn:aws:iam::{ACCOUNT}:*")],
        "s3" => vec!["arn:aws:s3:::*".to_owned()],
        _ => vec![call.arn("*")],
    }
}

/// The ARN of the route table that has an association.
fn route_table(world: &World, call: &Call, association: &str) -> Option<String> {
    let mut tables = world.find::<ec2::Ec2>(&call.scope())?.all(&ec2::TABLE);
    let has = |item: &ec2::Item| {
        let all = item.value["Associations"].as_array().into_iter().flatten();
        all.into_iter().any(|one| one["RouteTableAssociationId"] == association)
    };
    tables.find(|(_, item)| has(item)).map(|(id, _)| call.arn(&format!("route-table/{id}")))
}

/// EC2's ids in an input, with the types of their resources.
fn ids_in(value: &Value, found: &mut Vec<(&'static str, String)>) {
    match value {
        Value::String(text) => {
            let (prefix, rest) = text.split_once('-').unwrap_or_default();
            let kind = TYPES.iter().find(|(known, _)| *known == prefix).map(|(_, kind)| *kind);
            if let Some(kind) = kind.filter(|_| rest.len() == 17 && rest.bytes().all(|byte| byte.is_ascii_hexdigit())) {
                found.push((kind, text.clone()));
            }
        }
        Value::Array(items) => items.iter().for_each(|item| ids_in(item, found)),
        Value::Object(members) => {
            let is_tags = |name: &str| name == "TagSpecifications" || name == "Tags";
            members.iter().filter(|(name, _)| !is_tags(name)).for_each(|(_, value)| ids_in(value, found));
        }
        _ => {}
    }
}

fn allows(world: &World, statement: &Value, need: &Need) -> bool {
    let texts = |member: &str| -> Vec<String> {
        match &statement[member] {
            Value::Array(items) => items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect(),
            one => one.as_str().map(str::to_owned).into_iter().collect(),
        }
    };
    if !texts("Action").iter().any(|pattern| is_like(pattern, &need.action))
        || !texts("Resource").iter().any(|pattern| is_like(pattern, &need.resource))
    {
        return false;
    }
    let operators = statement.get("Condition").and_then(Value::as_object);
    let mut keys = operators.into_iter().flatten().flat_map(|(operator, keys)| {
        keys.as_object().into_iter().flatten().map(move |(key, value)| (operator.as_str(), key.as_str(), value))
    });
    keys.all(|(operator, key, wanted)| {
        let wanted: Vec<&str> = wanted
            .as_array()
            .map_or_else(|| vec![wanted], |all| all.iter().collect())
            .into_iter()
            .filter_map(Value::as_str)
            .collect();
        let tag = ["aws:ResourceTag/", "ec2:ResourceTag/"].iter().find_map(|prefix| key.strip_prefix(prefix));
        let value = match tag {
            Some(tag) => world.tags.of(&need.resource).get(tag).cloned(),
            None => need.keys.get(key).cloned(),
        };
        if operator == "Null" {
            return wanted == [if value.is_none() { "true" } else { "false" }];
        }
        value.is_some_and(|value| match operator {
            "ForAnyValue:StringEquals" => value.split(',').any(|value| wanted.contains(&value)),
            "ForAllValues:StringLike" => {
                value.split(',').all(|value| wanted.iter().any(|wanted| is_like(wanted, value)))
            }
            "ForAllValues:StringEquals" => value.split(',').all(|value| wanted.contains(&value)),
            "StringLike" => wanted.iter().any(|wanted| is_like(wanted, &value)),
            "StringEquals" | "Bool" => wanted.contains(&value.as_str()),
            _ => panic!("the operator {operator} is unknown"),
        })
    })
}
