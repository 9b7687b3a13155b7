//! The quotas that a plan is checked against: what Service Quotas calls them, and what a new account has. An account's
//! own value comes from `GetServiceQuota`; the default only explains an account that may not read it.
//!
//! AWS documents each quota at `https://console.aws.amazon.com/servicequotas/home/services/SERVICE/quotas/CODE`, for
//! accounts only. The rows are from what others publish of these lists.

/// A quota of Service Quotas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// The service code of Service Quotas: `vpc`, `ec2`.
    pub service: &'static str,
    /// The quota code: `L-F678F1CE`.
    pub code: &'static str,
    /// AWS's name for it.
    pub name: &'static str,
    /// What a new account has, in `unit`; `None` if that was not found.
    pub default: Option<u64>,
    /// What it counts.
    pub unit: Unit,
    /// Whether one value holds for the account in all regions. Service Quotas has it in the partition's first region
    /// only: `us-east-1`.
    pub global: bool,
    /// Where this row is from.
    pub source: &'static str,
}

/// What a quota counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Objects in the region, or in the account if the quota is global.
    Objects,
    /// Objects inside each parent: subnets of a VPC, NAT gateways of a zone.
    PerParent,
    /// vCPUs of running instances.
    Vcpus,
    /// Tebibytes.
    Tebibytes,
    /// Gigabytes.
    Gigabytes,
}

impl Quota {
    /// How an operator raises it.
    pub fn hint(&self) -> String {
        let region = if self.global { " --region us-east-1" } else { "" };
        format!(
            "raise the quota `{}` ({}): `aws service-quotas request-service-quota-increase --service-code {} \
             --quota-code {} --desired-value NUMBER{region}`",
            self.name, self.code, self.service, self.code
        )
    }
}

/// The name of the quota of SageMaker for endpoints on a machine: `ml.g5.xlarge for endpoint usage`. Its code differs for
/// each machine; `ListServiceQuotas` of the service code `sagemaker` has it by this name.
/// <https://docs.aws.amazon.com/general/latest/gr/sagemaker.html>
pub fn endpoint_name(machine: &str) -> String {
    format!("{machine} for endpoint usage")
}

/// 2026-05-04.
const EKS_PRACTICES: &str =
    "https://docs.aws.amazon.com/eks/latest/best-practices/known_limits_and_service_quotas.html";
/// Codes by instance type; its row of p3.2xlarge is wrong. The defaults: accounts without an increase are refused with
/// `your current vCPU limit of 0`.
const SKYPILOT: &str =
    "https://github.com/skypilot-org/skypilot-catalog/blob/master/catalogs/v5/aws/instance_quota_mapping.csv";
/// `ListAWSDefaultServiceQuotas` as moto 5.2.5 carries it; a test compares every row with it.
const MOTO: &str = "https://github.com/getmoto/moto/blob/5.2.5/moto/servicequotas/resources/default_quotas/vpc.py";
/// Several, which agree; read 2026-11-23.
const EXPORTS: &str = "exports of Service Quotas in public repositories";
/// Read 2026-11-23.
const S3: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/BucketRestrictions.html";

/// Declares the quotas, and `ALL` of them.
macro_rules! quotas {
    ($($(#[$doc:meta])* $id:ident = $service:literal $code:literal $name:literal $default:tt $unit:ident $($global:ident)?, $source:expr;)*) => {
        $($(#[$doc])* pub const $id: Quota = Quota {
            service: $service,
            code: $code,
            name: $name,
            default: quotas!(@default $default),
            unit: Unit::$unit,
            global: quotas!(@ $($global)?),
            source: $source,
        };)*
        /// All quotas.
        pub const ALL: &[Quota] = &[$($id),*];
    };
    (@default ?) => { None };
    (@default $default:literal) => { Some($default) };
    (@ global) => { true };
    (@) => { false };
}

quotas! {
    /// vCPUs of machines of the families A, C, D, H, I, M, R, T and Z.
    ON_DEMAND_STANDARD = "ec2" "L-1216C47A" "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances" 5 Vcpus, EKS_PRACTICES;
    /// vCPUs of the families G and VT.
    ON_DEMAND_G = "ec2" "L-DB2E81BA" "Running On-Demand G and VT instances" 0 Vcpus, SKYPILOT;
    /// vCPUs of the family P.
    ON_DEMAND_P = "ec2" "L-417A185B" "Running On-Demand P instances" 0 Vcpus, SKYPILOT;
    /// vCPUs of spot instances of the families A, C, D, H, I, M, R, T and Z.
    SPOT_STANDARD = "ec2" "L-34B43A08" "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests" 5 Vcpus, EKS_PRACTICES;
    /// vCPUs of spot instances of the families G and VT.
    SPOT_G = "ec2" "L-3819A6DF" "All G and VT Spot Instance Requests" 0 Vcpus, SKYPILOT;
    /// vCPUs of spot instances of P2, P3 and P4.
    SPOT_P = "ec2" "L-7212CCBC" "All P4, P3 and P2 Spot Instance Requests" 0 Vcpus, SKYPILOT;
    /// vCPUs of spot instances of P5.
    SPOT_P5 = "ec2" "L-C4BD4855" "All P5 Spot Instance Requests" 0 Vcpus, EXPORTS;
    /// Elastic IP addresses.
    ELASTIC_IPS = "ec2" "L-0263D0A3" "EC2-VPC Elastic IPs" 5 Objects, EKS_PRACTICES;
    /// gp3 volumes.
    GP3_STORAGE = "ebs" "L-7A658B76" "Storage for General Purpose SSD (gp3) volumes, in TiB" 50 Tebibytes, EKS_PRACTICES;

    /// VPCs.
    VPCS = "vpc" "L-F678F1CE" "VPCs per Region" 5 Objects, MOTO;
    /// Subnets of a VPC.
    SUBNETS = "vpc" "L-407747CB" "Subnets per VPC" 200 PerParent, MOTO;
    /// Internet gateways.
    INTERNET_GATEWAYS = "vpc" "L-A4707A72" "Internet gateways per Region" 5 Objects, MOTO;
    /// NAT gateways of a zone.
    NAT_GATEWAYS = "vpc" "L-FE5A380F" "NAT gateways per Availability Zone" 5 PerParent, MOTO;
    /// Route tables of a VPC.
    ROUTE_TABLES = "vpc" "L-589F43AA" "Route tables per VPC" 200 PerParent, MOTO;
    /// Routes of a route table.
    ROUTES = "vpc" "L-93826ACB" "Routes per route table" 50 PerParent, MOTO;
    /// Security groups.
    SECURITY_GROUPS = "vpc" "L-E79EC296" "VPC security groups per Region" 2500 Objects, MOTO;
    /// Rules of a security group, in each direction.
    SECURITY_GROUP_RULES = "vpc" "L-0EA8095F" "Inbound or outbound rules per security group" 60 PerParent, MOTO;
    /// Security groups of a network interface.
    INTERFACE_SECURITY_GROUPS = "vpc" "L-2AFB9258" "Security groups per network interface" 5 PerParent, MOTO;
    /// Network interfaces: of nodes, load balancers, databases and clusters.
    NETWORK_INTERFACES = "vpc" "L-DF5E4CA3" "Network interfaces per Region" 5000 Objects, MOTO;
    /// Gateway endpoints.
    GATEWAY_ENDPOINTS = "vpc" "L-1B52E74A" "Gateway VPC endpoints per Region" 20 Objects, MOTO;
    /// Interface endpoints of a VPC.
    INTERFACE_ENDPOINTS = "vpc" "L-29B6F2EB" "Interface VPC endpoints per VPC" 50 PerParent, MOTO;

    /// EKS clusters.
    CLUSTERS = "eks" "L-1194D53C" "Clusters" 100 Objects, EXPORTS;
    /// Node groups of a cluster.
    NODE_GROUPS = "eks" "L-6D54EA21" "Managed node groups per cluster" 30 PerParent, EXPORTS;
    /// Nodes of a node group.
    NODES = "eks" "L-BD136A63" "Nodes per managed node group" 450 PerParent, EXPORTS;

    /// Database instances, replicas included.
    DATABASES = "rds" "L-7B6409FD" "DB instances" 40 Objects, EXPORTS;
    /// Storage of all database instances.
    DATABASE_STORAGE = "rds" "L-7ADDB58A" "Total storage for all DB instances" ? Gigabytes, EXPORTS;
    /// Subnet groups of databases.
    DATABASE_SUBNET_GROUPS = "rds" "L-48C6BF61" "DB subnet groups" 50 Objects, EXPORTS;
    /// Cache nodes.
    CACHE_NODES = "elasticache" "L-DFE45DF3" "Nodes per Region" 300 Objects, EXPORTS;

    /// IAM roles.
    ROLES = "iam" "L-FE177D64" "Roles per account" 1000 Objects global, EKS_PRACTICES;
    /// Managed policies of the account.
    POLICIES = "iam" "L-E95E4862" "Customer managed policies per account" 1500 Objects global, EXPORTS;
    /// Instance profiles.
    INSTANCE_PROFILES = "iam" "L-6E65F664" "Instance profiles per account" 1000 Objects global, EXPORTS;
    /// OIDC providers: one for each cluster that uses IRSA.
    OIDC_PROVIDERS = "iam" "L-858F3967" "OpenId connect providers per account" 100 Objects global, EKS_PRACTICES;

    /// Network load balancers.
    NETWORK_LOAD_BALANCERS = "elasticloadbalancing" "L-69A177A2" "Network Load Balancers per Region" 50 Objects, EKS_PRACTICES;
    /// Application load balancers.
    APPLICATION_LOAD_BALANCERS = "elasticloadbalancing" "L-53DA6B97" "Application Load Balancers per Region" 50 Objects, EKS_PRACTICES;
    /// Target groups.
    TARGET_GROUPS = "elasticloadbalancing" "L-B22855CB" "Target Groups per Region" 3000 Objects, EKS_PRACTICES;
    /// Listeners of a network load balancer.
    NETWORK_LISTENERS = "elasticloadbalancing" "L-57A373D6" "Listeners per Network Load Balancer" 50 PerParent, EKS_PRACTICES;

    /// Buckets.
    BUCKETS = "s3" "L-DC2B2D3D" "Buckets" 10000 Objects global, S3;
    /// Image repositories.
    REPOSITORIES = "ecr" "L-CFEB8E8D" "Registered repositories" 100000 Objects, EKS_PRACTICES;
    /// Secrets.
    SECRETS = "secretsmanager" "L-2F66C23C" "Secrets per Region" 500000 Objects, EKS_PRACTICES;
    /// Keys of the account.
    KEYS = "kms" "L-C2F1777E" "Customer Master Keys (CMKs)" ? Objects, EXPORTS;
    /// Certificates.
    CERTIFICATES = "acm" "L-F141DD1D" "ACM certificates" ? Objects, EXPORTS;
    /// DNS zones.
    ZONES = "route53" "L-4EA4796A" "Hosted zones" 500 Objects global, EXPORTS;
    /// DNS health checks.
    HEALTH_CHECKS = "route53" "L-ACB674F3" "Health checks" 200 Objects global, EXPORTS;
    /// Notification topics.
    TOPICS = "sns" "L-61103206" "Topics per account" 100000 Objects, EXPORTS;
}

#[cfg(test)]
mod tests {
    use super::super::tests::python;
    use super::*;

    #[test]
    fn codes_are_well_formed_and_unique() {
        for (at, quota) in ALL.iter().enumerate() {
            let digits = quota.code.strip_prefix("L-").unwrap();
            assert!(digits.len() == 8 && digits.chars().all(|c| c.is_ascii_digit() || ('A'..='F').contains(&c)));
            assert!(ALL[..at].iter().all(|earlier| earlier.code != quota.code), "{} twice", quota.code);
            assert!(!quota.source.is_empty() && !quota.service.is_empty(), "{}", quota.code);
        }
    }

    #[test]
    fn vpc_quotas_are_as_aws_lists_them() {
        let script = "
import json
from moto.servicequotas.resources.default_quotas.vpc import VPC_DEFAULT_QUOTAS as rows
print(json.dumps({row['QuotaCode']: [row['QuotaName'], int(row['Value']), row['Adjustable']] for row in rows}))";
        let Some(listed) = python(script) else { return };
        let vpc: Vec<_> = ALL.iter().filter(|quota| quota.service == "vpc").collect();
        assert!(vpc.len() > 10);
        for quota in vpc {
            assert_eq!(listed[quota.code], serde_json::json!([quota.name, quota.default, true]), "{}", quota.code);
        }
    }

    #[test]
    fn hint_has_the_whole_command() {
        assert_eq!(
            VPCS.hint(),
            "raise the quota `VPCs per Region` (L-F678F1CE): `aws service-quotas request-service-quota-increase \
             --service-code vpc --quota-code L-F678F1CE --desired-value NUMBER`"
        );
        assert!(ROLES.hint().ends_with("--desired-value NUMBER --region us-east-1`"));
    }
}
