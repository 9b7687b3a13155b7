//! The forms of all kinds: <https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-template-resource-type-ref.html>.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};
use textnlp_provider::Placeholder;

use super::{Form, New, Object, Part, REF, Source, Tagging, listed};
use crate::tags;

/// The forms, by service.
pub(super) static ALL: &[Form] = &[
    Form {
        kind: "aws.vpc",
        of: "AWS::EC2::VPC",
        fields: &[("cidr", "/CidrBlock"), ("dns_hostnames", "/EnableDnsHostnames")],
        more: |_| json!({ "EnableDnsSupport": true }),
        identifiers: &[("VpcId", Source::Id)],
        outputs: &[("id", "VpcId")],
        without: "the rules of its default security group, which `aws ec2 revoke-security-group-ingress` and \
                  `revoke-security-group-egress` remove, as `up` does",
        ..Form::USUAL
    },
    Form {
        kind: "aws.subnet",
        of: "AWS::EC2::Subnet",
        fields: &[
            ("vpc", "/VpcId"),
            ("cidr", "/CidrBlock"),
            ("zone", "/AvailabilityZoneId"),
            ("public_addresses", "/MapPublicIpOnLaunch"),
        ],
        identifiers: &[("SubnetId", Source::Id)],
        outputs: &[("id", "SubnetId")],
        ..Form::USUAL
    },
    Form {
        kind: "aws.internet-gateway",
        of: "AWS::EC2::InternetGateway",
        identifiers: &[("InternetGatewayId", Source::Id)],
        outputs: &[("id", "InternetGatewayId")],
        parts: attachment,
        ..Form::USUAL
    },
    Form {
        kind: "aws.elastic-ip",
        of: "AWS::EC2::EIP",
        more: |_| json!({ "Domain": "vpc" }),
        identifiers: &[("PublicIp", Source::Output("address")), ("AllocationId", Source::Id)],
        outputs: &[("id", "AllocationId")],
        ..Form::USUAL
    },
    Form {
        kind: "aws.nat-gateway",
        of: "AWS::EC2::NatGateway",
        fields: &[("subnet", "/SubnetId"), ("address", "/AllocationId")],
        identifiers: &[("NatGatewayId", Source::Id)],
        outputs: &[("id", "NatGatewayId")],
        ..Form::USUAL
    },
    Form {
        kind: "aws.route-table",
        of: "AWS::EC2::RouteTable",
        fields: &[("vpc", "/VpcId")],
        identifiers: &[("RouteTableId", Source::Id)],
        outputs: &[("id", "RouteTableId")],
        parts: routes,
        without: "its associations with subnets",
        new: New { parts: associations, without: Some(""), ..New::USUAL },
        ..Form::USUAL
    },
    Form {
        kind: "aws.security-group",
        of: "AWS::EC2::SecurityGroup",
        fields: &[("vpc", "/VpcId"), ("name", "/GroupName"), ("description", "/GroupDescription")],
        more: |one| {
            let rules = |field: &str, side: &str| rules(&one.spec[field], side, one.id);
            let mut egress = rules("egress", "Destination");
            if egress.is_empty() {
                egress.push(no_egress());
            }
            json!({ "SecurityGroupIngress": rules("ingress", "Source"), "SecurityGroupEgress": egress })
        },
        identifiers: &[("Id", Source::Id)],
        outputs: &[("id", "GroupId")],
        ..Form::USUAL
    },
    Form {
        kind: "aws.vpc-endpoint",
        of: "AWS::EC2::VPCEndpoint",
        fields: &[
            ("vpc", "/VpcId"),
            ("service", "/ServiceName"),
            ("kind", "/VpcEndpointType"),
            ("route_tables", "/RouteTableIds"),
            ("subnets", "/SubnetIds"),
            ("groups", "/SecurityGroupIds"),
            ("policy", "/PolicyDocument"),
        ],
        more: |one| json!({ "PrivateDnsEnabled": (one.spec["kind"] == "Interface").then(|| one.spec["private_dns"].clone()) }),
        identifiers: &[("Id", Source::Id)],
        outputs: &[("id", "Id")],
        ..Form::USUAL
    },
    Form {
        kind: "aws.flow-log",
        of: "AWS::EC2::FlowLog",
        fields: &[
            ("vpc", "/ResourceId"),
            ("log_group", "/LogGroupName"),
            ("role", "/DeliverLogsPermissionArn"),
            ("traffic", "/TrafficType"),
            ("interval_seconds", "/MaxAggregationInterval"),
        ],
        more: |_| json!({ "ResourceType": "VPC", "LogDestinationType": "cloud-watch-logs" }),
        identifiers: &[("Id", Source::Id)],
        ..Form::USUAL
    },
    Form {
        kind: "aws.launch-template",
        of: "AWS::EC2::LaunchTemplate",
        fields: &[("name", "/LaunchTemplateName")],
        more: |one| {
            let tags = json!([{ "ResourceType": "launch-template", "Tags": one.listed() }]);
            json!({ "LaunchTemplateData": instance(one.spec), "TagSpecifications": tags })
        },
        tagging: Tagging::None,
        identifiers: &[("LaunchTemplateId", Source::Id)],
        outputs: &[("id", "LaunchTemplateId")],
        // The number of a version is a text that other attributes may have: only a placeholder stands for it alone.
        new: New { outputs: &[("version", "LatestVersionNumber")], ..New::USUAL },
        ..Form::USUAL
    },
    Form {
        kind: "aws.role",
        of: "AWS::IAM::Role",
        fields: &[
            ("name", "/RoleName"),
            ("path", "/Path"),
            ("trust", "/AssumeRolePolicyDocument"),
            ("boundary", "/PermissionsBoundary"),
            ("managed", "/ManagedPolicyArns"),
        ],
        more: |one| {
            let policies = one.spec["inline"].as_object().into_iter().flatten();
            let policy =
                |(name, document): (&String, &Value)| json!({ "PolicyName": name, "PolicyDocument": document });
            json!({ "Policies": policies.map(policy).collect::<Vec<Value>>() })
        },
        identifiers: &[("RoleName", Source::Field("name"))],
        outputs: &[("arn", "Arn"), ("name", REF)],
        ..Form::USUAL
    },
    Form {
        kind: "aws.instance-profile",
        of: "AWS::IAM::InstanceProfile",
        fields: &[("name", "/InstanceProfileName"), ("path", "/Path")],
        more: |one| json!({ "Roles": one.spec["role"].as_str().into_iter().collect::<Vec<_>>() }),
        tagging: Tagging::None,
        identifiers: &[("InstanceProfileName", Source::Field("name"))],
        outputs: &[("arn", "Arn"), ("name", REF)],
        ..Form::USUAL
    },
    Form {
        kind: "aws.oidc-provider",
        of: "AWS::IAM::OIDCProvider",
        fields: &[("url", "/Url"), ("audiences", "/ClientIdList")],
        identifiers: &[("Arn", Source::Output("arn"))],
        outputs: &[("arn", "Arn")],
        ..Form::USUAL
    },
    Form {
        kind: "aws.key",
        of: "AWS::KMS::Key",
        fields: &[("enabled", "/Enabled"), ("description", "/Description"), ("policy", "/KeyPolicy")],
        more: |one| {
            let days = one.spec["rotation_days"].as_i64().filter(|days| *days > 0);
            json!({ "EnableKeyRotation": days.is_some(), "RotationPeriodInDays": days })
        },
        identifiers: &[("KeyId", Source::Id)],
        outputs: &[("id", "KeyId"), ("arn", "Arn")],
        parts: aliases,
        ..Form::USUAL
    },
    Form {
        kind: "aws.log-group",
        of: "AWS::Logs::LogGroup",
        fields: &[("name", "/LogGroupName"), ("retention_days", "/RetentionInDays"), ("key", "/KmsKeyId")],
        identifiers: &[("LogGroupName", Source::Field("name"))],
        outputs: &[("name", REF)],
        ..Form::USUAL
    },
    Form {
        kind: "aws.topic",
        of: "AWS::SNS::Topic",
        fields: &[("name", "/TopicName"), ("key", "/KmsMasterKeyId")],
        identifiers: &[("TopicArn", Source::Output("arn"))],
        outputs: &[("arn", "TopicArn")],
        without: "its policy and its subscriptions",
        new: New { parts: topic, without: Some(""), ..New::USUAL },
        ..Form::USUAL
    },
    Form {
        kind: "aws.alarm",
        of: "AWS::CloudWatch::Alarm",
        fields: &[
            ("name", "/AlarmName"),
            ("description", "/AlarmDescription"),
            ("enabled", "/ActionsEnabled"),
            ("periods", "/EvaluationPeriods"),
            ("datapoints", "/DatapointsToAlarm"),
            ("comparison", "/ComparisonOperator"),
            ("threshold", "/Threshold"),
            ("missing", "/TreatMissingData"),
            ("alarm_actions", "/AlarmActions"),
            ("ok_actions", "/OKActions"),
        ],
        more: |one| json!({ "Metrics": metrics(one.spec) }),
        identifiers: &[("AlarmName", Source::Field("name"))],
        outputs: &[("arn", "Arn")],
        ..Form::USUAL
    },
    Form {
        kind: "aws.dashboard",
        of: "AWS::CloudWatch::Dashboard",
        fields: &[("name", "/DashboardName")],
        more: |one| json!({ "DashboardBody": one.spec["body"].to_string() }),
        identifiers: &[("DashboardName", Source::Field("name"))],
        ..Form::USUAL
    },
    Form {
        kind: "aws.bucket",
        of: "AWS::S3::Bucket",
        fields: &[("name", "/BucketName")],
        more: bucket,
        identifiers: &[("BucketName", Source::Field("name"))],
        outputs: &[("name", REF), ("arn", "Arn")],
        parts: |one| match one.spec["policy"].is_null() {
            true => Vec::new(),
            false => vec![Part {
                of: "AWS::S3::BucketPolicy",
                properties: json!({ "Bucket": one.spec["name"], "PolicyDocument": one.spec["policy"] }),
                identifiers: vec![("Bucket", one.id.to_owned())],
            }],
        },
        ..Form::USUAL
    },
    Form {
        kind: "aws.repository",
        of: "AWS::ECR::Repository",
        fields: &[("name", "/RepositoryName"), ("scan_on_push", "/ImageScanningConfiguration/ScanOnPush")],
        more: |one| {
            let is_kms = !one.spec["key"].is_null();
            let lifecycle = &one.spec["lifecycle"];
            json!({
                "ImageTagMutability": if one.spec["immutable"] == true { "IMMUTABLE" } else { "MUTABLE" },
                "EncryptionConfiguration": {
                    "EncryptionType": if is_kms { "KMS" } else { "AES256" },
                    "KmsKey": one.spec["key"],
                },
                "LifecyclePolicy": { "LifecyclePolicyText": (!lifecycle.is_null()).then(|| lifecycle.to_string()) },
            })
        },
        identifiers: &[("RepositoryName", Source::Field("name"))],
        outputs: &[("name", REF), ("arn", "Arn")],
        without: "its images",
        ..Form::USUAL
    },
    Form {
        kind: "aws.eks-cluster",
        of: "AWS::EKS::Cluster",
        fields: &[
            ("name", "/Name"),
            ("version", "/Version"),
            ("role", "/RoleArn"),
            ("subnets", "/ResourcesVpcConfig/SubnetIds"),
            ("security_groups", "/ResourcesVpcConfig/SecurityGroupIds"),
            ("private_access", "/ResourcesVpcConfig/EndpointPrivateAccess"),
            ("public_cidrs", "/ResourcesVpcConfig/PublicAccessCidrs"),
            ("authentication", "/AccessConfig/AuthenticationMode"),
            ("support", "/UpgradePolicy/SupportType"),
            ("deletion_protection", "/DeletionProtection"),
        ],
        more: |one| {
            let logs = one.spec["logs"].as_array().into_iter().flatten();
            let logs: Vec<Value> = logs.map(|name| json!({ "Type": name })).collect();
            let key = &one.spec["key"];
            let encryption =
                (!key.is_null()).then(|| json!([{ "Provider": { "KeyArn": key }, "Resources": ["secrets"] }]));
            let is_public = one.spec["public_cidrs"].as_array().is_some_and(|cidrs| !cidrs.is_empty());
            json!({
                "Logging": { "ClusterLogging": { "EnabledTypes": logs } },
                "EncryptionConfig": encryption,
                "ResourcesVpcConfig": { "EndpointPublicAccess": is_public },
                "AccessConfig": { "BootstrapClusterCreatorAdminPermissions": false },
                "BootstrapSelfManagedAddons": false,
            })
        },
        identifiers: &[("Name", Source::Field("name"))],
        without: "the access of the identity that deploys, which `aws eks create-access-entry` and `associate-access-policy` give with \
                  the policy `AmazonEKSClusterAdminPolicy` on the whole cluster, as `up` does",
        // No answer shows them, and another value would replace the cluster.
        ignored: &["access_config.bootstrap_cluster_creator_admin_permissions", "bootstrap_self_managed_addons"],
        outputs: &[
            ("name", REF),
            ("arn", "Arn"),
            ("endpoint", "Endpoint"),
            ("oidc_issuer", "OpenIdConnectIssuerUrl"),
            ("security_group", "ClusterSecurityGroupId"),
        ],
        ..Form::USUAL
    },
    Form {
        kind: "aws.eks-node-group",
        of: "AWS::EKS::Nodegroup",
        fields: &[
            ("cluster", "/ClusterName"),
            ("name", "/NodegroupName"),
            ("version", "/Version"),
            ("role", "/NodeRole"),
            ("subnets", "/Subnets"),
            ("instance_types", "/InstanceTypes"),
            ("ami_type", "/AmiType"),
            ("labels", "/Labels"),
            ("max_unavailable", "/UpdateConfig/MaxUnavailable"),
            ("repair", "/NodeRepairConfig/Enabled"),
        ],
        more: |one| {
            let (scaling, template) = (&one.spec["scaling"], &one.spec["launch_template"]);
            let taints = one.spec["taints"].as_array().into_iter().flatten();
            let taint =
                |taint: &Value| json!({ "Key": taint["key"], "Value": taint["value"], "Effect": taint["effect"] });
            json!({
                "CapacityType": one.spec["capacity"][0],
                "ScalingConfig": { "MinSize": scaling["min"], "MaxSize": scaling["max"], "DesiredSize": scaling["desired"] },
                "Taints": taints.map(taint).collect::<Vec<Value>>(),
                "LaunchTemplate": { "Id": template["id"], "Version": template["version"] },
            })
        },
        tagging: Tagging::Map,
        identifiers: &[("Id", Source::Code(|id| id.replacen(':', "/", 1)))],
        outputs: &[("arn", "Arn")],
        // The autoscaler changes the count.
        ignored: &["scaling_config.desired_size"],
        settings: &[("min_nodes", "/scaling_config/min_size"), ("max_nodes", "/scaling_config/max_size")],
        ..Form::USUAL
    },
    Form {
        kind: "aws.eks-addon",
        of: "AWS::EKS::Addon",
        fields: &[("cluster", "/ClusterName"), ("name", "/AddonName"), ("version", "/AddonVersion")],
        more: |one| {
            let configuration = &one.spec["configuration"];
            json!({
                "ConfigurationValues": (!configuration.is_null()).then(|| configuration.to_string()),
                "ResolveConflicts": "OVERWRITE",
            })
        },
        identifiers: &[("ClusterName", Source::Field("cluster")), ("AddonName", Source::Field("name"))],
        // No answer shows it, and an import would reset what an operator changed of an add-on.
        ignored: &["resolve_conflicts"],
        ..Form::USUAL
    },
    Form {
        kind: "aws.eks-access-entry",
        of: "AWS::EKS::AccessEntry",
        fields: &[("cluster", "/ClusterName"), ("principal", "/PrincipalArn"), ("groups", "/KubernetesGroups")],
        more: |one| {
            let policies = one.spec["policies"].as_array().into_iter().flatten();
            let policy = |policy: &Value| {
                let namespaces = policy["namespaces"].as_array().cloned().unwrap_or_default();
                let scope = if namespaces.is_empty() { "cluster" } else { "namespace" };
                json!({ "PolicyArn": policy["arn"], "AccessScope": { "Type": scope, "Namespaces": namespaces } })
            };
            json!({ "AccessPolicies": policies.map(policy).collect::<Vec<Value>>() })
        },
        identifiers: &[("PrincipalArn", Source::Field("principal")), ("ClusterName", Source::Field("cluster"))],
        ..Form::USUAL
    },
    Form {
        kind: "aws.eks-pod-identity-association",
        of: "AWS::EKS::PodIdentityAssociation",
        fields: &[
            ("cluster", "/ClusterName"),
            ("namespace", "/Namespace"),
            ("service_account", "/ServiceAccount"),
            ("role", "/RoleArn"),
        ],
        identifiers: &[("AssociationArn", Source::Output("arn"))],
        ..Form::USUAL
    },
    Form {
        kind: "aws.db-subnet-group",
        of: "AWS::RDS::DBSubnetGroup",
        fields: &[
            ("name", "/DBSubnetGroupName"),
            ("description", "/DBSubnetGroupDescription"),
            ("subnets", "/SubnetIds"),
        ],
        identifiers: &[("DBSubnetGroupName", Source::Field("name"))],
        outputs: &[("name", REF)],
        ..Form::USUAL
    },
    Form {
        kind: "aws.db-parameter-group",
        of: "AWS::RDS::DBParameterGroup",
        fields: &[("name", "/DBParameterGroupName"), ("description", "/Description"), ("family", "/Family")],
        more: |one| {
            let parameters = one.spec["parameters"].as_object().into_iter().flatten();
            let parameters = parameters.map(|(name, parameter)| (name.clone(), parameter["value"].clone()));
            json!({ "Parameters": parameters.collect::<serde_json::Map<_, _>>() })
        },
        identifiers: &[("DBParameterGroupName", Source::Field("name"))],
        outputs: &[("name", REF)],
        ..Form::USUAL
    },
    Form {
        kind: "aws.db-instance",
        of: "AWS::RDS::DBInstance",
        fields: &[
            ("name", "/DBInstanceIdentifier"),
            ("source", "/SourceDBInstanceIdentifier"),
            ("class", "/DBInstanceClass"),
            ("storage_type", "/StorageType"),
            ("key", "/KmsKeyId"),
            ("multi_az", "/MultiAZ"),
            ("subnet_group", "/DBSubnetGroupName"),
            ("security_groups", "/VPCSecurityGroups"),
            ("parameter_group", "/DBParameterGroupName"),
            ("deletion_protection", "/DeletionProtection"),
            ("final_snapshot", "/CopyTagsToSnapshot"),
            ("performance_insights", "/EnablePerformanceInsights"),
            ("minor_upgrades", "/AutoMinorVersionUpgrade"),
            ("public", "/PubliclyAccessible"),
        ],
        more: server,
        identifiers: &[("DBInstanceIdentifier", Source::Field("name"))],
        outputs: &[("arn", "DBInstanceArn"), ("host", "Endpoint.Address")],
        without: "its password",
        new: New {
            // A replica has that of its source.
            more: |one| json!({ "MasterUserPassword": one.spec["source"].is_null().then(|| one.spec["password"].clone()) }),
            without: Some(""),
            ..New::USUAL
        },
        settings: &[("class", "/db_instance_class"), ("storage_gb", "/allocated_storage")],
        ..Form::USUAL
    },
    Form {
        kind: "aws.secret",
        of: "AWS::SecretsManager::Secret",
        fields: &[("name", "/Name"), ("description", "/Description"), ("key", "/KmsKeyId")],
        identifiers: &[("Id", Source::Output("arn"))],
        outputs: &[("arn", "Id")],
        without: "its value",
        new: New { more: |one| json!({ "SecretString": one.spec["value"] }), without: Some(""), ..New::USUAL },
        ..Form::USUAL
    },
    Form {
        kind: "aws.cache-subnet-group",
        of: "AWS::ElastiCache::SubnetGroup",
        fields: &[("name", "/CacheSubnetGroupName"), ("description", "/Description"), ("subnets", "/SubnetIds")],
        identifiers: &[("CacheSubnetGroupName", Source::Field("name"))],
        outputs: &[("name", REF)],
        ..Form::USUAL
    },
    Form {
        kind: "aws.cache",
        of: "AWS::ElastiCache::ReplicationGroup",
        fields: &[
            ("name", "/ReplicationGroupId"),
            ("description", "/ReplicationGroupDescription"),
            ("engine", "/Engine"),
            ("class", "/CacheNodeType"),
            ("multi_az", "/MultiAZEnabled"),
            ("key", "/KmsKeyId"),
            ("subnet_group", "/CacheSubnetGroupName"),
            ("security_groups", "/SecurityGroupIds"),
            ("snapshot_days", "/SnapshotRetentionLimit"),
            ("maintenance_window", "/PreferredMaintenanceWindow"),
            ("tls", "/TransitEncryptionEnabled"),
            ("encrypted", "/AtRestEncryptionEnabled"),
            ("minor_upgrades", "/AutoMinorVersionUpgrade"),
        ],
        more: |one| {
            let replicas = one.spec["replicas"].as_i64().unwrap_or_default();
            let major = one.spec["version"].as_str().unwrap_or_default();
            json!({
                "EngineVersion": format!("{major}.0"),
                "NumCacheClusters": replicas.saturating_add(1),
                "AutomaticFailoverEnabled": one.spec["multi_az"],
            })
        },
        identifiers: &[("ReplicationGroupId", Source::Field("name"))],
        outputs: &[("host", "PrimaryEndPoint.Address")],
        without: "its token",
        new: New { more: |one| json!({ "AuthToken": one.spec["token"] }), without: Some(""), ..New::USUAL },
        // Its minor version is that of ElastiCache.
        ignored: &["engine_version"],
        ..Form::USUAL
    },
    Form {
        kind: "aws.health-check",
        of: "AWS::Route53::HealthCheck",
        more: health_check,
        tagging: Tagging::List("HealthCheckTags"),
        identifiers: &[("HealthCheckId", Source::Id)],
        outputs: &[("id", "HealthCheckId")],
        ..Form::USUAL
    },
    Form {
        kind: "aws.dns-record",
        of: "AWS::Route53::RecordSet",
        fields: &[
            ("zone", "/HostedZoneId"),
            ("name", "/Name"),
            ("type", "/Type"),
            ("set", "/SetIdentifier"),
            ("weight", "/Weight"),
            ("failover", "/Failover"),
            ("health_check", "/HealthCheckId"),
            ("values", "/ResourceRecords"),
        ],
        more: |one| {
            let alias = &one.spec["alias"];
            let target = alias.is_object().then(|| {
                json!({ "DNSName": alias["name"], "HostedZoneId": alias["zone"], "EvaluateTargetHealth": alias["health"] })
            });
            json!({ "TTL": one.spec["ttl"].as_i64().map(|ttl| ttl.to_string()), "AliasTarget": target })
        },
        tagging: Tagging::None,
        identifiers: &[
            ("Name", Source::Field("name")),
            ("HostedZoneId", Source::Field("zone")),
            ("Type", Source::Field("type")),
            ("SetIdentifier", Source::Field("set")),
        ],
        without: "the TXT record with its owner, which `up` creates beside it",
        ..Form::USUAL
    },
    Form {
        kind: "aws.budget",
        of: "AWS::Budgets::Budget",
        has_awscc: false,
        more: budget,
        tagging: Tagging::List("ResourceTags"),
        identifiers: &[("Id", Source::Id)],
        ..Form::USUAL
    },
    Form {
        kind: "aws.certificate",
        of: "AWS::CertificateManager::Certificate",
        has_awscc: false,
        // A stack that creates a certificate writes its records into the zone. Another zone, or another order of the names, which a
        // read sorts, would replace the certificate. The first name is no wildcard.
        more: |one| {
            let zone = one.spec["zone"].as_str().filter(|zone| !zone.is_empty());
            let tags = one.tags.iter().map(|(key, value)| (key.as_str(), value.as_str()));
            let tags = listed(tags.chain(zone.map(|zone| (tags::ZONE, zone))));
            let names: BTreeSet<&str> =
                one.spec["names"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let validated = |name: &&str| json!({ "DomainName": name, "HostedZoneId": zone });
            json!({
                "DomainName": names.iter().find(|name| !name.starts_with('*')),
                "SubjectAlternativeNames": names,
                "ValidationMethod": "DNS",
                "DomainValidationOptions": zone.map(|_| names.iter().map(validated).collect::<Vec<Value>>()),
                "Tags": tags,
            })
        },
        tagging: Tagging::None,
        identifiers: &[("CertificateArn", Source::Output("arn"))],
        outputs: &[("arn", "CertificateArn")],
        ..Form::USUAL
    },
    Form {
        kind: "aws.scaling-target",
        of: "AWS::ApplicationAutoScaling::ScalableTarget",
        fields: &[("min", "/MinCapacity"), ("max", "/MaxCapacity")],
        more: |one| json!({ "ResourceId": one.id, "ScalableDimension": DIMENSION, "ServiceNamespace": "sagemaker" }),
        identifiers: &[
            ("ResourceId", Source::Id),
            ("ScalableDimension", Source::Text(DIMENSION)),
            ("ServiceNamespace", Source::Text("sagemaker")),
        ],
        without: "its scaling policies",
        new: New { parts: policies, without: Some(""), ..New::USUAL },
        ..Form::USUAL
    },
    Form {
        kind: "aws.sagemaker-model",
        of: "AWS::SageMaker::Model",
        fields: &[
            ("role", "/ExecutionRoleArn"),
            ("subnets", "/VpcConfig/Subnets"),
            ("security_groups", "/VpcConfig/SecurityGroupIds"),
            ("isolated", "/EnableNetworkIsolation"),
        ],
        more: |one| {
            let (data, environment) = (&one.spec["data"], &one.spec["environment"]);
            let source = data.is_object().then(|| {
                json!({ "S3DataSource": { "S3Uri": data["uri"], "S3DataType": data["kind"], "CompressionType": data["compression"] } })
            });
            json!({
                "ModelName": one.output("name"),
                "PrimaryContainer": { "Image": one.spec["image"], "Environment": environment, "ModelDataSource": source },
            })
        },
        identifiers: &[("ModelArn", Source::Output("arn"))],
        outputs: &[("arn", "ModelArn")],
        ..Form::USUAL
    },
    Form {
        kind: "aws.endpoint-config",
        of: "AWS::SageMaker::EndpointConfig",
        fields: &[("key", "/KmsKeyId")],
        more: |one| {
            let variants = one.spec["variants"].as_array().into_iter().flatten();
            let variant = |one: &Value| {
                json!({
                    "VariantName": one["name"], "ModelName": one["model"], "InstanceType": one["instance_type"],
                    "InitialInstanceCount": one["count"], "InitialVariantWeight": one["weight"],
                    "VolumeSizeInGB": one["volume_gb"],
                    "ModelDataDownloadTimeoutInSeconds": one["download_seconds"],
                    "ContainerStartupHealthCheckTimeoutInSeconds": one["startup_seconds"],
                    "InferenceAmiVersion": one["ami"],
                })
            };
            let variants: Vec<Value> = variants.map(variant).collect();
            json!({ "EndpointConfigName": one.output("name"), "ProductionVariants": variants })
        },
        identifiers: &[("EndpointConfigArn", Source::Output("arn"))],
        outputs: &[("arn", "EndpointConfigArn")],
        ..Form::USUAL
    },
    Form {
        kind: "aws.endpoint",
        of: "AWS::SageMaker::Endpoint",
        fields: &[("name", "/EndpointName"), ("config", "/EndpointConfigName")],
        // Autoscaling has changed the counts.
        more: |_| json!({ "RetainAllVariantProperties": true }),
        identifiers: &[("EndpointArn", Source::Output("arn"))],
        outputs: &[("arn", "EndpointArn")],
        // No answer shows it, and an import would deploy the endpoint once more.
        ignored: &["retain_all_variant_properties"],
        without: "how it moves to another configuration: add `DeploymentConfig`, and `RetainAllVariantProperties` to what an import has, \
                  before you change that",
        ..Form::USUAL
    },
];

/// What autoscaling changes of an endpoint.
const DIMENSION: &str = "sagemaker:variant:DesiredInstanceCount";

fn attachment(one: &Object<'_>) -> Vec<Part> {
    let Some(vpc) = one.spec["vpc"].as_str().filter(|vpc| !vpc.is_empty()) else { return Vec::new() };
    vec![Part {
        of: "AWS::EC2::VPCGatewayAttachment",
        properties: json!({ "VpcId": vpc, "InternetGatewayId": one.id }),
        identifiers: vec![("AttachmentType", "IGW".to_owned()), ("VpcId", vpc.to_owned())],
    }]
}

fn routes(one: &Object<'_>) -> Vec<Part> {
    let routes = one.spec["routes"].as_array().into_iter().flatten();
    let route = |route: &Value| {
        let (to, via) = (route["to"].as_str()?, route["via"].as_str()?);
        let is_nat = match Placeholder::read(via) {
            Some(planned) => planned.kind == "aws.nat-gateway",
            None => via.starts_with("nat-"),
        };
        let gateway = if is_nat { "NatGatewayId" } else { "GatewayId" };
        Some(Part {
            of: "AWS::EC2::Route",
            properties: json!({ "RouteTableId": one.id, "DestinationCidrBlock": to, (gateway): via }),
            identifiers: vec![("RouteTableId", one.id.to_owned()), ("CidrBlock", to.to_owned())],
        })
    };
    routes.filter_map(route).collect()
}

/// The subnets that use a route table.
fn associations(one: &Object<'_>) -> Vec<Part> {
    let subnets = one.spec["subnets"].as_array().into_iter().flatten();
    let association = |subnet: &Value| Part {
        of: "AWS::EC2::SubnetRouteTableAssociation",
        properties: json!({ "RouteTableId": one.id, "SubnetId": subnet }),
        identifiers: vec![("Id", String::new())],
    };
    subnets.map(association).collect()
}

/// The policy of a topic, and its subscriptions.
fn topic(one: &Object<'_>) -> Vec<Part> {
    let arn = one.output("arn");
    let mut all = vec![Part {
        of: "AWS::SNS::TopicInlinePolicy",
        properties: json!({ "TopicArn": arn, "PolicyDocument": one.spec["policy"] }),
        identifiers: vec![("TopicArn", String::new())],
    }];
    let subscriptions = one.spec["subscriptions"].as_array().into_iter().flatten();
    all.extend(subscriptions.map(|to| Part {
        of: "AWS::SNS::Subscription",
        properties: json!({ "TopicArn": arn, "Protocol": to["protocol"], "Endpoint": to["endpoint"] }),
        identifiers: vec![("Arn", String::new())],
    }));
    all
}

/// The policies of a scaling target.
fn policies(one: &Object<'_>) -> Vec<Part> {
    let policies = one.spec["policies"].as_object().into_iter().flatten();
    let policy = |(name, policy): (&String, &Value)| Part {
        of: "AWS::ApplicationAutoScaling::ScalingPolicy",
        properties: json!({
            "PolicyName": name,
            "PolicyType": "TargetTrackingScaling",
            "ResourceId": one.id,
            "ScalableDimension": DIMENSION,
            "ServiceNamespace": "sagemaker",
            "TargetTrackingScalingPolicyConfiguration": {
                "TargetValue": policy["invocations"],
                "PredefinedMetricSpecification": {
                    "PredefinedMetricType": "SageMakerVariantInvocationsPerInstance",
                },
                "ScaleOutCooldown": policy["scale_out_seconds"],
                "ScaleInCooldown": policy["scale_in_seconds"],
            },
        }),
        identifiers: vec![("Arn", String::new()), ("ScalableDimension", DIMENSION.to_owned())],
    };
    policies.map(policy).collect()
}

/// The rules of a side of a security group with this id.
fn rules(rules: &Value, side: &str, group: &str) -> Vec<Value> {
    let rule = |rule: &Value| {
        let peer = rule["peer"].as_str().unwrap_or_default();
        let mut all = json!({ "IpProtocol": rule["protocol"], "Description": rule["description"] });
        // All protocols have no ports.
        if rule["protocol"] != "-1" {
            all["FromPort"] = rule["from"].clone();
            all["ToPort"] = rule["to"].clone();
        }
        let (name, peer) = match peer {
            "self" => (format!("{side}SecurityGroupId"), group),
            peer if peer.starts_with("sg-") => (format!("{side}SecurityGroupId"), peer),
            // Of what does not exist, only groups are peers.
            peer if Placeholder::read(peer).is_some() => (format!("{side}SecurityGroupId"), peer),
            peer if peer.starts_with("pl-") => (format!("{side}PrefixListId"), peer),
            peer if peer.contains(':') => ("CidrIpv6".to_owned(), peer),
            peer => ("CidrIp".to_owned(), peer),
        };
        all[name] = json!(peer);
        all
    };
    rules.as_array().into_iter().flatten().map(rule).collect()
}

/// The rule of a group from which nothing may go out. Without any, CloudFormation leaves the rule to everywhere that each new group has
/// (<https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-ec2-securitygroup.html>). No message of ICMP has
/// this type, and no host this address.
fn no_egress() -> Value {
    json!({
        "IpProtocol": "icmp", "FromPort": 252, "ToPort": 86, "CidrIp": crate::kinds::NOWHERE,
        "Description": "Nothing may go out",
    })
}

/// What a launch template says of instances: only IMDSv2, and an encrypted root volume.
fn instance(spec: &Value) -> Value {
    let text = |field: &str| spec[field].as_str().filter(|text| !text.is_empty());
    let tags = spec["instance_tags"].as_object().into_iter().flatten();
    let tags = listed(tags.map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default())));
    let tagged = |kind: &str| json!({ "ResourceType": kind, "Tags": tags });
    let has_tags = tags.as_array().is_some_and(|all| !all.is_empty());
    let volume = json!({
        "Encrypted": true, "DeleteOnTermination": true, "VolumeType": "gp3", "VolumeSize": spec["root_gib"],
        "KmsKeyId": text("key"),
    });
    json!({
        "ImageId": text("image"),
        "InstanceType": text("instance_type"),
        "SecurityGroupIds": spec["groups"],
        "BlockDeviceMappings": [{ "DeviceName": spec["root_device"], "Ebs": volume }],
        "MetadataOptions": { "HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": spec["metadata_hops"] },
        "UserData": text("user_data"),
        "TagSpecifications": has_tags.then(|| ["instance", "volume", "network-interface"].map(tagged)),
    })
}

fn aliases(one: &Object<'_>) -> Vec<Part> {
    let aliases = one.spec["aliases"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let alias = |alias: &str| Part {
        of: "AWS::KMS::Alias",
        properties: json!({ "AliasName": alias, "TargetKeyId": one.id }),
        identifiers: vec![("AliasName", alias.to_owned())],
    };
    aliases.map(alias).collect()
}

/// The metrics of an alarm, and the expression that is compared: without one, the only metric is.
fn metrics(spec: &Value) -> Vec<Value> {
    let expression = &spec["expression"];
    let metric = |(id, metric): (&String, &Value)| {
        let dimensions = metric["dimensions"].as_object().into_iter().flatten();
        let dimensions: Vec<Value> = dimensions.map(|(name, value)| json!({ "Name": name, "Value": value })).collect();
        let of = json!({ "Namespace": metric["namespace"], "MetricName": metric["name"], "Dimensions": dimensions });
        let stat = json!({ "Metric": of, "Period": spec["period_seconds"], "Stat": metric["statistic"] });
        json!({ "Id": id, "MetricStat": stat, "ReturnData": expression.is_null() })
    };
    let mut all: Vec<Value> = spec["metrics"].as_object().into_iter().flatten().map(metric).collect();
    if !expression.is_null() {
        all.push(json!({ "Id": crate::kinds::RESULT, "Expression": expression, "ReturnData": true }));
    }
    all
}

fn bucket(one: &Object<'_>) -> Value {
    let spec = one.spec;
    let (key, blocked) = (&spec["encryption"]["key"], &spec["public_access_blocked"]);
    let algorithm = if key.is_null() { "AES256" } else { "aws:kms" };
    let encryption = json!([{
        "BucketKeyEnabled": spec["encryption"]["bucket_key"],
        "ServerSideEncryptionByDefault": { "SSEAlgorithm": algorithm, "KMSMasterKeyID": key },
    }]);
    let rule = |rule: &Value| {
        let transitions = rule["transitions"].as_array().into_iter().flatten();
        let transition = |to: &Value| json!({ "StorageClass": to["class"], "TransitionInDays": to["days"] });
        json!({
            "Id": rule["id"],
            "Status": if rule["enabled"] == true { "Enabled" } else { "Disabled" },
            "Prefix": rule["prefix"],
            "Transitions": transitions.map(transition).collect::<Vec<Value>>(),
            "ExpirationInDays": rule["expire_days"],
            "NoncurrentVersionExpiration": { "NoncurrentDays": rule["old_versions_expire_days"] },
            "AbortIncompleteMultipartUpload": { "DaysAfterInitiation": rule["abort_uploads_days"] },
        })
    };
    let rules = spec["lifecycle"].as_array().into_iter().flatten().map(rule).collect::<Vec<Value>>();
    let owner = if spec["owner_enforced"] == true { "BucketOwnerEnforced" } else { "BucketOwnerPreferred" };
    json!({
        "OwnershipControls": { "Rules": [{ "ObjectOwnership": owner }] },
        "PublicAccessBlockConfiguration": {
            "BlockPublicAcls": blocked, "BlockPublicPolicy": blocked, "IgnorePublicAcls": blocked,
            "RestrictPublicBuckets": blocked,
        },
        "BucketEncryption": { "ServerSideEncryptionConfiguration": encryption },
        "VersioningConfiguration": { "Status": if spec["versioned"] == true { "Enabled" } else { "Suspended" } },
        "LifecycleConfiguration": { "Rules": rules },
        "ReplicationConfiguration": replication(&spec["replication"]),
    })
}

fn replication(spec: &Value) -> Value {
    if !spec.is_object() {
        return Value::Null;
    }
    let key = &spec["key"];
    let encryption = (!key.is_null()).then(|| json!({ "ReplicaKmsKeyID": key }));
    let selected = (!key.is_null()).then(|| json!({ "SseKmsEncryptedObjects": { "Status": "Enabled" } }));
    let metrics = (spec["metrics"] == true).then(|| json!({ "Status": "Enabled" }));
    json!({ "Role": spec["role"], "Rules": [{
        "Id": crate::kinds::REPLICATION,
        "Priority": 1,
        "Status": "Enabled",
        "Filter": { "Prefix": "" },
        "DeleteMarkerReplication": { "Status": "Disabled" },
        "SourceSelectionCriteria": selected,
        "Destination": { "Bucket": spec["bucket"], "EncryptionConfiguration": encryption, "Metrics": metrics },
    }] })
}

/// What only a server of its own has, not a replica.
fn server(one: &Object<'_>) -> Value {
    let spec = one.spec;
    let port = spec["port"].as_i64().map(|port| port.to_string());
    if !spec["source"].is_null() {
        return json!({ "Port": port });
    }
    json!({
        "Port": port,
        "Engine": "postgres",
        "EngineVersion": spec["version"],
        "AllocatedStorage": spec["storage_gb"].as_i64().map(|size| size.to_string()),
        "StorageEncrypted": true,
        "DBName": spec["database"],
        "MasterUsername": spec["user"],
        "BackupRetentionPeriod": spec["backup_days"],
        "PreferredBackupWindow": spec["backup_window"],
        "PreferredMaintenanceWindow": spec["maintenance_window"],
    })
}

/// An address is probed with the name that is sent to it.
fn health_check(one: &Object<'_>) -> Value {
    let (host, name) = (&one.spec["host"], &one.spec["name"]);
    let is_address = host.as_str().is_some_and(|host| host.parse::<IpAddr>().is_ok());
    let (address, name) = if is_address { (host, name) } else { (&Value::Null, host) };
    json!({ "HealthCheckConfig": {
        "Type": "HTTPS",
        "IPAddress": address,
        "FullyQualifiedDomainName": name,
        "EnableSNI": true,
        "Port": one.spec["port"],
        "ResourcePath": one.spec["path"],
        "RequestInterval": one.spec["interval"],
        "FailureThreshold": one.spec["failures"],
    } })
}

fn budget(one: &Object<'_>) -> Value {
    let spec = one.spec;
    let filter = spec["filter"].as_object().and_then(|all| all.iter().next());
    let filter = filter.map(|(key, values)| json!({ "Tags": { "Key": key, "Values": values } }));
    let notification = |one: &Value| {
        let topics = one["topics"].as_array().into_iter().flatten();
        let subscriber = |topic: &Value| json!({ "SubscriptionType": "SNS", "Address": topic });
        json!({
            "Notification": {
                "NotificationType": one["about"], "ComparisonOperator": "GREATER_THAN", "Threshold": one["percent"],
                "ThresholdType": "PERCENTAGE",
            },
            "Subscribers": topics.map(subscriber).collect::<Vec<Value>>(),
        })
    };
    let notifications = spec["notifications"].as_array().into_iter().flatten();
    json!({
        "Budget": {
            "BudgetName": spec["name"], "BudgetType": "COST", "TimeUnit": "MONTHLY", "Metrics": ["UnblendedCost"],
            "BudgetLimit": { "Amount": spec["limit"], "Unit": spec["unit"] }, "FilterExpression": filter,
        },
        "NotificationsWithSubscribers": notifications.map(notification).collect::<Vec<Value>>(),
    })
}
