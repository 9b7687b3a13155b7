//! AWS's error codes as [`ErrorKind`]s: a row for each code whose words say too little or something else, rules for the
//! words that AWS's codes are made of, and the HTTP status for the rest.
//!
//! Three kinds must never be mixed up: capacity (another zone, size or hour helps), quota (only an operator helps) and
//! throttling (a pause helps).

use textnlp_cloud::errors::{THROTTLED, Table, by_status};
use textnlp_provider::ErrorKind;

use super::Service;
use super::quotas::{self, Quota};

/// What an error of AWS means, and what an operator does about it.
///
/// `service` is the signing name: `elasticloadbalancing`. `code` may come from a failed call, from a list of errors in an
/// answer (`CreateFleet`), from the state reason of an instance (`Server.InsufficientInstanceCapacity`) or from the health
/// of a node group. Codes that only say that something failed are read by the codes inside `message`; so is the failure
/// reason of an endpoint, with an empty code.
pub fn classify(service: &str, code: &str, status: Option<u16>, message: &str) -> (ErrorKind, Option<String>) {
    let (kind, hint) =
        ERRORS.meaning(Service::signed(service), code, message).unwrap_or_else(|| (by_status(status), Hint::None));
    let denial = DENIALS.iter().find(|(phrase, _)| kind == ErrorKind::Denied && message.contains(*phrase));
    let hint = match (denial, hint) {
        (Some((_, hint)), _) => Some((*hint).to_owned()),
        (None, Hint::Text(hint)) => Some(hint.to_owned()),
        (None, Hint::Raise(quota)) => Some(quota.hint()),
        (None, Hint::None) => None,
    };
    (kind, hint)
}

/// What an operator does about an error.
#[derive(Debug, Clone, Copy, Default)]
enum Hint {
    #[default]
    None,
    Text(&'static str),
    Raise(&'static Quota),
}

type Row = textnlp_cloud::errors::Row<Service, Hint>;

static ERRORS: Table<Service, Hint> = Table { rows: ROWS, rules: RULES, base, common: Some(Service::Ec2) };

/// The code without what differs between protocols and places: a namespace, the side of a state reason, `Exception` and
/// `Fault`.
fn base(code: &str) -> &str {
    let code = code.rsplit('#').next().unwrap_or(code);
    let code = code.strip_prefix("Client.").or_else(|| code.strip_prefix("Server.")).unwrap_or(code);
    let code = code.strip_suffix("Exception").unwrap_or(code);
    code.strip_suffix("Fault").unwrap_or(code)
}

use ErrorKind::{Capacity, Conflict, Denied, Exists, Invalid, NotFound, Quota as Limit, Unavailable};

/// Which policy denied a call, in AWS's words, and who can change it.
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_access-denied.html>
const DENIALS: &[(&str, &str)] = &[
    (
        "ncoded authorization failure message",
        "decode the reason: `aws sts decode-authorization-message --query DecodedMessage --output text \
         --encoded-message MESSAGE`",
    ),
    (
        "service control policy",
        "a service control policy of the organization denies this: ask an administrator of its management account \
         (console: AWS Organizations > Policies)",
    ),
    (
        "resource control policy",
        "a resource control policy of the organization denies this: ask an administrator of its management account \
         (console: AWS Organizations > Policies)",
    ),
    ("permissions boundary", "the permissions boundary of this identity must allow the action too"),
    ("session policy", "the session policy of this sign-in must allow the action too"),
    ("VPC endpoint policy", "the policy of the VPC endpoint that the call went through must allow the action too"),
    ("resource-based policy", "the policy of the resource must allow this identity"),
    ("identity-based policy", "add the action to a policy of this identity (console: IAM > Policies)"),
];

/// The meaning of the words that AWS's codes are made of. The first rule that applies wins. A test applies them to every
/// error in AWS's models of the services, and to the codes that EC2 documents.
const RULES: &[(&str, ErrorKind)] = &[
    ("*Throttl*", THROTTLED),
    ("*TooManyRequests*", THROTTLED),
    ("*CallRate*", THROTTLED),
    ("*RateExceeded", THROTTLED),
    ("*NotFound*", NotFound),
    ("*NotExist*", NotFound),
    ("NoSuch*", NotFound),
    ("Duplicate*", Exists),
    ("*.Duplicate*", Exists),
    ("*Already*", Exists),
    ("*Exists", Exists),
    ("Insufficient*Capacity", Capacity),
    ("*LimitExceeded*", Limit),
    ("*LimitsExceeded", Limit),
    ("*LimitReached", Limit),
    ("*Limit", Limit),
    ("*Quota*Exceeded*", Limit),
    ("*CountExceeded", Limit),
    ("TooMany*", Limit),
    ("*AccessDenied*", Denied),
    ("*Unauthorized*", Denied),
    ("*NotAuthorized*", Denied),
    ("*NoAuthorization*", Denied),
    ("*AuthorizationError*", Denied),
    ("*NotPermitted*", Denied),
    ("*OptInRequired*", Denied),
    ("*MissingPermissions", Denied),
    ("*Concurrent*", Conflict),
    ("*Conflict*", Conflict),
    ("*InProgress*", Conflict),
    ("*InUse*", Conflict),
    ("*NotEmpty", Conflict),
    ("*NotReady", Conflict),
    ("*NotActive", Conflict),
    ("*Pending", Conflict),
    ("*PropagationDelay", Conflict),
    ("*Temporarily*", Conflict),
    ("*Locked", Conflict),
    ("*Modified", Conflict),
    ("*VersionMismatch", Conflict),
    ("*UnderMigration", Conflict),
    ("*OperationAborted*", Conflict),
    ("*Incorrect*State", Conflict),
    ("*Invalid*State", Conflict),
    ("*Invalid*Status", Conflict),
    ("Stale*", Conflict),
    ("*Internal*", Unavailable),
    ("*Unavailable*", Unavailable),
    ("*Timeout", Unavailable),
    ("*Unreachable", Unavailable),
    ("*CommunicationError", Unavailable),
    ("*Failure", Unavailable),
    ("UnableTo*", Unavailable),
    ("*Invalid*", Invalid),
    ("*Malformed*", Invalid),
    ("*Mismatch*", Invalid),
    ("*Unsupported*", Invalid),
    ("*Violation", Invalid),
    ("*Policy", Invalid),
    ("*Disabled", Invalid),
    ("*Enabled", Invalid),
    ("*Expired*", Invalid),
    ("*Too*", Invalid),
    ("*SizeExceeded", Invalid),
    ("*Not*", Invalid),
    ("Bad*", Invalid),
    ("Empty*", Invalid),
    ("Illegal*", Invalid),
    ("Incompatible*", Invalid),
    ("Incorrect*", Invalid),
    ("Missing*", Invalid),
    ("Unknown*", Invalid),
    ("Unmodifiable*", Invalid),
    ("Unrecognized*", Invalid),
    ("Validation*", Invalid),
    ("*Required", Invalid),
];

/// Rows of one service with one source.
macro_rules! rows {
    ($($(#[$doc:meta])* $service:tt { $($code:literal $([$phrase:literal])? => $kind:tt $(, $hint:expr)?;)* })*) => {
        static ROWS: &[Row] = &[$($(Row {
            service: rows!(@service $service),
            code: $code,
            phrase: concat!($($phrase)?),
            kind: rows!(@kind $kind),
            hint: rows!(@hint $($hint)?),
        },)*)*];
    };
    (@service *) => { None };
    (@service $service:ident) => { Some(Service::$service) };
    (@kind inside) => { None };
    (@kind $kind:ident) => { Some($kind) };
    (@hint) => { Hint::None };
    (@hint $hint:expr) => { $hint };
}

const VCPUS: &str = "raise the quota of the machine's family, in vCPUs: `aws service-quotas \
    request-service-quota-increase --service-code ec2 --desired-value NUMBER --quota-code CODE`; on demand, CODE is \
    L-DB2E81BA for G, L-417A185B for P and L-1216C47A for other machines, on spot L-3819A6DF, L-7212CCBC (P5: L-C4BD4855) \
    and L-34B43A08";
const CLOCK: &str = "set the clock of this machine: AWS accepts no more than 5 minutes of difference";
const EXPIRED: &str = "sign in again: `aws sso login`, or renew the temporary credentials";
const KEYS: &str = "check the credentials: `aws sts get-caller-identity` shows the identity they belong to";
const ADDRESSES: &str = "the subnet has no free addresses: `aws ec2 describe-subnets` shows how many each has; use larger \
    subnets, or remove what holds their addresses";
const ZONE: &str = "`aws ec2 describe-instance-type-offerings --location-type availability-zone --filters \
    Name=instance-type,Values=TYPE` lists the zones that offer a machine";
const ROLE: &str = "AWS copies a new role within a minute; if this lasts, check the role's trust policy: `aws iam get-role \
    --role-name NAME`";
const KMS: &str = "the policy of the key must allow this identity, and the key must be enabled: `aws kms get-key-policy \
    --key-id ID`, `aws kms describe-key --key-id ID`";
/// <https://docs.aws.amazon.com/autoscaling/ec2/userguide/key-policy-requirements-EBS-encryption.html>.
const DISK_KEY: &str = "Auto Scaling needs a grant for the key of the disk, mostly the account's default one: `aws ec2 \
    get-ebs-default-kms-key-id` shows it, and `aws kms create-grant` lets the role AWSServiceRoleForAutoScaling use it";
const DATABASE_ROLE: &str = "the account's first database creates the role AWSServiceRoleForRDS; if this lasts, an identity that \
    may call iam:CreateServiceLinkedRole creates it: `aws iam create-service-linked-role --aws-service-name rds.amazonaws.com`";
const RECORD: &str = "another client made the record: delete it, or set another `traffic.domain`";
const REGION: &str = "an account enables this region once: `aws account enable-region --region-name REGION` (console: \
    Account > AWS Regions), or use another region";
const SUPPORT: &str = "AWS limits this account: open the AWS Support Center, <https://console.aws.amazon.com/support>";

rows! {
    // Codes of all services:
    // <https://docs.aws.amazon.com/IAM/latest/APIReference/CommonErrors.html>,
    // <https://github.com/boto/botocore/blob/1.44.5/botocore/retries/standard.py>.
    * {
        "RequestLimitExceeded" => THROTTLED;
        "BandwidthLimitExceeded" => THROTTLED;
        "ProvisionedThroughputExceeded" => THROTTLED;
        "TransactionInProgress" => THROTTLED;
        "SlowDown" => THROTTLED;
        "PriorRequestNotComplete" => THROTTLED;
        "RequestTimeout" => Unavailable;
        "InternalError" => Unavailable;
        "InternalFailure" => Unavailable;
        "ServiceUnavailable" => Unavailable;
        "AccessDenied" => Denied;
        "OptInRequired" => Denied, Hint::Text(REGION);
        "ExpiredToken" => Denied, Hint::Text(EXPIRED);
        "ExpiredTokenId" => Denied, Hint::Text(EXPIRED);
        "RequestExpired" => Denied, Hint::Text(CLOCK);
        "RequestTimeTooSkewed" => Denied, Hint::Text(CLOCK);
        "RequestInTheFuture" => Denied, Hint::Text(CLOCK);
        "InvalidSignature" ["Signature expired"] => Denied, Hint::Text(CLOCK);
        "InvalidSignature" ["Signature not yet current"] => Denied, Hint::Text(CLOCK);
        "InvalidSignature" => Denied, Hint::Text(KEYS);
        "SignatureDoesNotMatch" ["Signature expired"] => Denied, Hint::Text(CLOCK);
        "SignatureDoesNotMatch" ["Signature not yet current"] => Denied, Hint::Text(CLOCK);
        "SignatureDoesNotMatch" => Denied, Hint::Text(KEYS);
        "IncompleteSignature" => Denied, Hint::Text(KEYS);
        // A region that is not enabled does not know the account's keys.
        "InvalidClientTokenId" => Denied, Hint::Text(KEYS_OR_REGION);
        "UnrecognizedClient" => Denied, Hint::Text(KEYS_OR_REGION);
        "MissingAuthenticationToken" => Denied, Hint::Text(KEYS);
        "InvalidAccessKeyId" => Denied, Hint::Text(KEYS);
        "AuthFailure" => Denied, Hint::Text(KEYS_OR_REGION);
        // The limit of tags is fixed.
        "TooManyTags" => Invalid;
        "TagLimitExceeded" => Invalid;
        "ServiceLinkedRoleLock" => Conflict;
    }
    // <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>;
    // <https://github.com/aws/karpenter-provider-aws/blob/main/pkg/errors/errors.go> for fleets.
    Ec2 {
        "InsufficientInstanceCapacity" => Capacity;
        "InsufficientHostCapacity" => Capacity;
        "InsufficientCapacityOnHost" => Capacity;
        "InsufficientCapacityOnOutpost" => Capacity;
        "InsufficientReservedInstancesCapacity" => Capacity;
        "InsufficientVolumeCapacity" => Capacity;
        "InsufficientAddressCapacity" => Capacity;
        "InsufficientCapacity" => Capacity;
        "UnfulfillableCapacity" => Capacity;
        "ReservationCapacityExceeded" => Capacity;
        "SpotMaxPriceTooLow" => Capacity;
        "VolumeTypeNotAvailableInZone" => Capacity;
        // The zone has constraints on the machine, or does not offer it: others may.
        "Unsupported" => Capacity, Hint::Text(ZONE);
        "VcpuLimitExceeded" => Limit, Hint::Text(VCPUS);
        "InstanceLimitExceeded" => Limit, Hint::Text(VCPUS);
        "MaxSpotInstanceCountExceeded" => Limit, Hint::Text(VCPUS);
        "MaxFleetCountExceeded" => Limit;
        "InsufficientFreeAddressesInSubnet" => Limit, Hint::Text(ADDRESSES);
        "VpcLimitExceeded" => Limit, Hint::Raise(&quotas::VPCS);
        "SubnetLimitExceeded" => Limit, Hint::Raise(&quotas::SUBNETS);
        "AddressLimitExceeded" => Limit, Hint::Raise(&quotas::ELASTIC_IPS);
        "NatGatewayLimitExceeded" => Limit, Hint::Raise(&quotas::NAT_GATEWAYS);
        "InternetGatewayLimitExceeded" => Limit, Hint::Raise(&quotas::INTERNET_GATEWAYS);
        "RouteTableLimitExceeded" => Limit, Hint::Raise(&quotas::ROUTE_TABLES);
        "RouteLimitExceeded" => Limit, Hint::Raise(&quotas::ROUTES);
        "SecurityGroupLimitExceeded" => Limit, Hint::Raise(&quotas::SECURITY_GROUPS);
        "RulesPerSecurityGroupLimitExceeded" => Limit, Hint::Raise(&quotas::SECURITY_GROUP_RULES);
        "SecurityGroupsPerInterfaceLimitExceeded" => Limit, Hint::Raise(&quotas::INTERFACE_SECURITY_GROUPS);
        "NetworkInterfaceLimitExceeded" => Limit, Hint::Raise(&quotas::NETWORK_INTERFACES);
        "VolumeLimitExceeded" => Limit, Hint::Raise(&quotas::GP3_STORAGE);
        "FilterLimitExceeded" => Invalid;
        "RequestResourceCountExceeded" => Invalid;
        "ResourceCountExceeded" => Invalid;
        "ConcurrentSnapshotLimitExceeded" => THROTTLED;
        "SnapshotCreationPerVolumeRateExceeded" => THROTTLED;
        "UpdateLimitExceeded" => THROTTLED;
        "UnauthorizedOperation" => Denied;
        "AuthFailure.ServiceLinkedRoleCreationNotPermitted" => Denied, Hint::Text(
            "an identity that may call iam:CreateServiceLinkedRole creates it once: `aws iam \
             create-service-linked-role --aws-service-name spot.amazonaws.com`"
        );
        "Blocked" => Denied, Hint::Text(SUPPORT);
        "PendingVerification" => Denied, Hint::Text(SUPPORT);
        "CannotDelete" => Denied;
        "DependencyViolation" => Conflict;
        "VPCIdNotSpecified" => Invalid;
        "InvalidRoute.InvalidState" => Invalid;
        "InvalidAddress.Locked" => Conflict;
        "InvalidSubnet.Conflict" => Invalid, Hint::Text("another subnet of the VPC has these addresses: set another CIDR");
        "InvalidVpc.Range" => Invalid;
        "InvalidPlacementGroup.Unknown" => NotFound;
        "InvalidAMIID.Unavailable" => NotFound;
        "Gateway.NotAttached" => NotFound;
        "DryRunOperation" => Invalid;
        // The instance of this client token is gone: another token is needed.
        "IdempotentInstanceTerminated" => Invalid;
        "CustomerKeyHasBeenRevoked" => Denied, Hint::Text(KMS);
        // The key of an encrypted volume.
        "InternalError" ["Client error on launch"] => Denied, Hint::Text(DISK_KEY);
        "InvalidKMSKey.InvalidState" => Denied, Hint::Text(KMS);
        "DuplicateSubnetsInSameZone" => Invalid;
        "ExistingVpcEndpointConnections" => Conflict;
        "InvalidSecurity.RequestHasExpired" => Denied, Hint::Text(CLOCK);
        "InvalidParameterValue" ["Invalid IAM Instance Profile"] => Conflict, Hint::Text(ROLE);
        // New accounts on the free plan.
        "InvalidParameterCombination" ["not eligible for Free Tier"] => Invalid, Hint::Text(
            "the free plan of this account has no such machine: upgrade the plan (console: Billing and Cost Management)"
        );
    }
    // The errors and the health issues in botocore's model; messages of launches as Auto Scaling writes them; the phrases:
    // <https://github.com/hashicorp/terraform-provider-aws/blob/main/internal/service/eks/cluster.go>.
    Eks {
        "AsgInstanceLaunchFailures" ["Unsupported - "] => Capacity, Hint::Text(ZONE);
        "AsgInstanceLaunchFailures" ["not eligible for Free Tier"] => Invalid, Hint::Text(
            "the free plan of this account has no such machine: upgrade the plan (console: Billing and Cost Management)"
        );
        "AsgInstanceLaunchFailures" => inside;
        "NodeCreationFailure" => inside;
        "Unknown" => inside;
        "Other" => inside;
        "InstanceLimitExceeded" => Limit, Hint::Text(VCPUS);
        "InsufficientFreeAddresses" => Limit, Hint::Text(ADDRESSES);
        "IpNotAvailable" => Limit, Hint::Text(ADDRESSES);
        "EniLimitReached" => Limit, Hint::Raise(&quotas::NETWORK_INTERFACES);
        "AutoScalingGroupRateLimitExceeded" => THROTTLED;
        "AutoScalingGroupInstanceRefreshActive" => Conflict;
        "Ec2InstanceTypeDoesNotExist" => Invalid, Hint::Text(ZONE);
        "ClusterUnreachable" => Unavailable;
        "InsufficientNumberOfReplicas" => Conflict, Hint::Text(
            "the add-on's pods do not run, mostly because no node has room: `kubectl get pods -n kube-system`"
        );
        "AdmissionRequestDenied" => Denied, Hint::Text(
            "an admission policy of the cluster denies the add-on: `kubectl get validatingwebhookconfigurations`"
        );
        "AddonSubscriptionNeeded" => Denied, Hint::Text("subscribe to the add-on in the AWS Marketplace");
        "AddonPermissionFailure" => Denied;
        "Ec2ServiceNotSubscribed" => Denied, Hint::Text(SUPPORT);
        "KmsGrantRevoked" => Denied, Hint::Text(KMS);
        "KmsKeyMarkedForDeletion" => Denied, Hint::Text("keep the key: `aws kms cancel-key-deletion --key-id ID`");
        "KmsKeyDisabled" => Denied, Hint::Text("enable the key: `aws kms enable-key --key-id ID`");
        "StsRegionalEndpointDisabled" => Denied, Hint::Text(
            "enable the endpoint of STS in this region (console: IAM > Account settings > Endpoints)"
        );
        "PodEvictionFailure" => Conflict, Hint::Text(
            "a pod disruption budget or a pod without a controller keeps a node: `kubectl get pdb -A` shows the budgets"
        );
        "Ec2SecurityGroupDeletionFailure" => Conflict;
        "Ec2LaunchTemplateDeletionFailure" => Conflict;
        "Ec2SubnetMissingIpv6Assignment" => Invalid;
        "Ec2SubnetListTooLong" => Invalid;
        "ResourceLimitExceeded" => Limit, Hint::Text(
            "raise the quota that the message names: `aws service-quotas request-service-quota-increase --service-code eks \
             --desired-value NUMBER --quota-code CODE`; CODE is L-1194D53C for clusters, L-6D54EA21 for node groups of a \
             cluster and L-BD136A63 for nodes of a group"
        );
        // A cluster of that name.
        "ResourceInUse" ["already exists"] => Exists;
        // The state of the cluster does not allow it now.
        "InvalidRequest" => Conflict;
        // Findings that block an upgrade, which `force` overrides.
        "InvalidState" => Invalid, Hint::Text(
            "`aws eks list-insights --cluster-name NAME` shows what blocks the upgrade"
        );
        "UnsupportedAvailabilityZone" => Capacity, Hint::Text("use subnets in the zones that the message names");
        "Client" ["No cluster found"] => NotFound;
        "Client" => Invalid;
        "Server" => Unavailable;
        "InvalidParameter" ["Error in role params"] => Conflict, Hint::Text(ROLE);
        "InvalidParameter" ["Role could not be assumed because the trusted entity is not correct"] => Conflict, Hint::Text(ROLE);
        "InvalidParameter" ["doesn't have the Amazon EKS Managed Policies"] => Conflict, Hint::Text(ROLE);
        "InvalidParameter" ["role's policy must include"] => Conflict, Hint::Text(ROLE);
        // An upgrade before this one ended without its nodes: <https://github.com/hashicorp/terraform-provider-aws/issues/19478>.
        "InvalidParameter" ["must be updated to match cluster version"] => Invalid, Hint::Text(
            "set `cluster.version` to the version that the message names and run `up`, which updates the nodes; then raise it"
        );
    }
    // The failure reason of an endpoint: <https://github.com/aws/sagemaker-python-sdk>; phrases of the API:
    // <https://github.com/hashicorp/terraform-provider-aws/tree/main/internal/service/sagemaker>.
    SageMaker {
        "CapacityError" => Capacity;
        "InsufficientInstanceCapacity" => Capacity;
        "" ["did not pass the ping health check"] => Invalid, Hint::Text(
            "the container does not answer `GET /ping` on port 8080: the log group `/aws/sagemaker/Endpoints/NAME` shows why"
        );
        "" ["CannotStartContainerError"] => Invalid, Hint::Text(
            "the image must run with `serve` as its only argument, on the instance's processor and, with CUDA, with the driver \
             of its GPUs: the log group `/aws/sagemaker/Endpoints/NAME` shows what it printed"
        );
        "" ["Failed to download model data"] => Invalid, Hint::Text(
            "the execution role needs `s3:GetObject` and `s3:ListBucket` for the model, and `kms:Decrypt` for its key"
        );
        // An update of an endpoint, as its kind reports it.
        "RolledBack" ["CapacityError"] => Capacity;
        "RolledBack" ["InsufficientInstanceCapacity"] => Capacity;
        "RolledBack" => Invalid, Hint::Text(
            "the alarms of the update and the log group `/aws/sagemaker/Endpoints/NAME` show why: `aws cloudwatch \
             describe-alarm-history --alarm-name NAME`"
        );
        "ResourceLimitExceeded" => Limit, Hint::Text(
            "raise the quota that the message names: `aws service-quotas list-service-quotas --service-code sagemaker \
             --query \"Quotas[?ends_with(QuotaName, 'for endpoint usage')]\"` has its code for `aws service-quotas \
             request-service-quota-increase`"
        );
        // Calls for objects that do not exist, and roles that are not copied yet, come with this code.
        "Validation" ["Could not find"] => NotFound;
        "Validation" ["ould not assume role"] => Conflict, Hint::Text(ROLE);
        "Validation" ["already existing"] => Exists;
        // The endpoint is being created or changed.
        "Validation" ["in-progress endpoint"] => Conflict;
        "Validation" ["must be deregistered as scalable targets"] => Invalid, Hint::Text(
            "remove the autoscaling of the endpoint, apply, change the instance type, and add the autoscaling again"
        );
    }
    // The services below: the errors in botocore's models and their documentation, unless a row says more.
    Rds {
        // The first database of an account: its service-linked role takes effect some seconds later
        // (<https://github.com/terraform-aws-modules/terraform-aws-rds/issues/364>).
        "InvalidParameterValue" ["create service linked role"] => Conflict, Hint::Text(DATABASE_ROLE);
        // The same by a subnet group (<https://github.com/crossplane-contrib/provider-aws/issues/479>).
        "InvalidParameterValue" ["Missing necessary credentials"] => Conflict, Hint::Text(DATABASE_ROLE);
        "InsufficientAvailableIPsInSubnet" => Limit, Hint::Text(ADDRESSES);
        "ProvisionedIopsNotAvailableInAZ" => Capacity;
        "InstanceQuotaExceeded" => Limit, Hint::Raise(&quotas::DATABASES);
        "StorageQuotaExceeded" => Limit, Hint::Raise(&quotas::DATABASE_STORAGE);
        "DBSubnetGroupQuotaExceeded" => Limit, Hint::Raise(&quotas::DATABASE_SUBNET_GROUPS);
        "KMSKeyNotAccessible" => Denied, Hint::Text(KMS);
        "DBUpgradeDependencyFailure" => Invalid;
        "CreateCustomDBEngineVersion" => Invalid;
        // The subnets of the group changed.
        "InvalidVPCNetworkState" => Invalid;
        // A type of capacity, of Aurora Serverless.
        "InvalidDBClusterCapacity" => Invalid;
    }
    ElastiCache {
        "NodeQuotaForCustomerExceeded" => Limit, Hint::Raise(&quotas::CACHE_NODES);
        "ClusterQuotaForCustomerExceeded" => Limit, Hint::Raise(&quotas::CACHE_NODES);
        "InvalidVPCNetworkState" => Invalid;
        "InvalidCredentials" => Denied, Hint::Text(KEYS);
        "NoOperation" => Exists;
        "DefaultUserAssociatedToUserGroup" => Invalid;
        "MigrationHealth" => Conflict;
        "ServerlessCacheNotUnderMigration" => Invalid;
        "ReplicationGroupNotUnderMigration" => Invalid;
        "TagQuotaPerResourceExceeded" => Invalid;
    }
    Elb {
        "TooManyLoadBalancers" => Limit, Hint::Raise(&quotas::NETWORK_LOAD_BALANCERS);
        "TooManyTargetGroups" => Limit, Hint::Raise(&quotas::TARGET_GROUPS);
        "TooManyListeners" => Limit, Hint::Raise(&quotas::NETWORK_LISTENERS);
        "DuplicateTagKeys" => Invalid;
        "DeleteAssociationSameAccount" => Invalid;
        // Deletion protection, mostly.
        "OperationNotPermitted" => Denied, Hint::Text(
            "deletion protection is on, or another service owns it: `aws elbv2 describe-load-balancer-attributes \
             --load-balancer-arn ARN`"
        );
    }
    Iam {
        "LimitExceeded" ["RolesPerAccount"] => Limit, Hint::Raise(&quotas::ROLES);
        "LimitExceeded" ["PoliciesPerAccount"] => Limit, Hint::Raise(&quotas::POLICIES);
        "LimitExceeded" ["InstanceProfilesPerAccount"] => Limit, Hint::Raise(&quotas::INSTANCE_PROFILES);
        "LimitExceeded" ["OpenIdConnectProvidersPerAccount"] => Limit, Hint::Raise(&quotas::OIDC_PROVIDERS);
        "MalformedPolicyDocument" ["nvalid principal"] => Conflict, Hint::Text(ROLE);
        "DeleteConflict" => Conflict;
        "PolicyEvaluation" => Unavailable;
        "InvalidAuthenticationCode" => Denied;
        "FeatureDisabled" => NotFound;
        "FeatureEnabled" => Exists;
        "NotSupportedService" => NotFound;
        "ServiceNotSupported" => NotFound;
        "ReportExpired" => NotFound;
        "CredentialReportExpired" => NotFound;
        "ReportNotPresent" => NotFound;
        "CredentialReportNotPresent" => NotFound;
        "AccountNotManagementOrDelegatedAdministrator" => Denied;
        "CallerIsNotManagementAccount" => Denied;
        "NameConflict" => Exists;
    }
    Kms {
        "LimitExceeded" => Limit, Hint::Raise(&quotas::KEYS);
        "MalformedPolicyDocument" ["nvalid principal"] => Conflict, Hint::Text(ROLE);
        "CustomKeyStoreHasCMKs" => Conflict;
        "DryRunOperation" => Invalid;
        "Tag" => Invalid;
        "XksProxyIncorrectAuthenticationCredential" => Invalid;
    }
    S3 {
        "BucketAlreadyExists" => Exists, Hint::Text(
            "names of buckets are unique among all accounts, and another account has this one: set another name"
        );
        // Also a create of a bucket that was deleted within the last hour (aws/aws-cli#2593).
        "OperationAborted" => Conflict, Hint::Text(
            "S3 may need an hour until the name of a deleted bucket is free: run `up` again then"
        );
        "TooManyBuckets" => Limit, Hint::Raise(&quotas::BUCKETS);
        "MalformedPolicy" ["nvalid principal"] => Conflict, Hint::Text(ROLE);
        "AllAccessDisabled" => Denied, Hint::Text(SUPPORT);
        "AccountProblem" => Denied, Hint::Text(SUPPORT);
        "NotSignedUp" => Denied, Hint::Text(SUPPORT);
        // An object in an archive.
        "InvalidObjectState" => Denied;
        "ObjectAlreadyInActiveTierError" => Denied;
        "ObjectNotInActiveTierError" => Denied;
        "TooManyParts" => Invalid;
        "PermanentRedirect" => Invalid, Hint::Text("the bucket is in another region: `aws s3api get-bucket-location`");
        "IllegalLocationConstraint" => Invalid, Hint::Text("the bucket is in another region: `aws s3api get-bucket-location`");
        "AuthorizationHeaderMalformed" => Invalid, Hint::Text("the bucket is in another region: `aws s3api get-bucket-location`");
    }
    Route53 {
        "InvalidChangeBatch" ["it already exists"] => Exists, Hint::Text(RECORD);
        "InvalidChangeBatch" ["already exists in zone"] => Exists, Hint::Text(RECORD);
        "InvalidChangeBatch" ["conflicts with other records"] => Exists, Hint::Text(RECORD);
        // Another client changed or deleted the record.
        "InvalidChangeBatch" ["do not match the current values"] => Conflict;
        "InvalidChangeBatch" ["it was not found"] => Conflict;
        "HealthCheckVersionMismatch" => Conflict;
        "TooManyHostedZones" => Limit, Hint::Raise(&quotas::ZONES);
        "TooManyHealthChecks" => Limit, Hint::Raise(&quotas::HEALTH_CHECKS);
        // Too many zones have this name.
        "DelegationSetNotAvailable" => Limit;
        "LastVPCAssociation" => Conflict;
        "PublicZoneVPCAssociation" => Invalid;
        "HostedZonePartiallyDelegated" => Invalid;
        "KeySigningKeyInParentDSRecord" => Conflict;
        "InsufficientCloudWatchLogsResourcePolicy" => Denied;
    }
    Ecr {
        "Server" => Unavailable;
        "Kms" => Denied, Hint::Text(KMS);
        "BlockedByOrganizationPolicy" => Denied;
        "UnableToAccessSecret" => Denied;
        "UnableToDecryptSecretValue" => Denied, Hint::Text(KMS);
        "LayerInaccessible" => NotFound;
        "ImageArchived" => Invalid;
        "ImageDigestDoesNotMatch" => Invalid;
    }
    SecretsManager {
        "LimitExceeded" => Limit, Hint::Raise(&quotas::SECRETS);
        "InvalidRequest" ["scheduled for deletion"] => Exists, Hint::Text(
            "a deleted secret keeps its name until AWS removes it: `aws secretsmanager restore-secret --secret-id NAME`, \
             or `delete-secret --force-delete-without-recovery`"
        );
        "DecryptionFailure" => Denied, Hint::Text(KMS);
        "EncryptionFailure" => Denied, Hint::Text(KMS);
    }
    Acm {
        "LimitExceeded" => Limit, Hint::Raise(&quotas::CERTIFICATES);
    }
    Sns {
        "TopicLimitExceeded" => Limit, Hint::Raise(&quotas::TOPICS);
        "InvalidSecurity" => Denied, Hint::Text(KEYS);
        "TooManyEntriesInBatchRequest" => Invalid;
        "BatchEntryIdsNotDistinct" => Invalid;
        "BatchRequestTooLong" => Invalid;
        "KMSNotFound" => Invalid;
        "KMSOptInRequired" => Denied, Hint::Text(KMS);
        "KMSAccessDenied" => Denied, Hint::Text(KMS);
        "OptedOut" => Invalid;
        "UserError" => Invalid;
        "Verification" => Invalid;
    }
    Logs {
        "SessionStreaming" => Unavailable;
    }
    CloudWatch {
        "KmsAccessDenied" => Denied, Hint::Text(KMS);
        "Conflict" => Exists;
    }
    ApplicationAutoScaling {
        "FailedResourceAccess" => Invalid;
    }
    Budgets {
        "BillingViewHealthStatus" => Conflict;
    }
    ServiceQuotas {
        "Service" => Unavailable;
        "NoAvailableOrganization" => Invalid;
        "AWSServiceAccessNotEnabled" => Denied;
        "ServiceQuotaTemplateNotInUse" => Invalid;
    }
    Sts {
        "RegionDisabled" => Denied, Hint::Text(REGION);
        "ExpiredTradeInToken" => Denied, Hint::Text(EXPIRED);
        "InvalidIdentityToken" => Denied, Hint::Text(
            "the role must trust the issuer of the token: `aws iam list-open-id-connect-providers`"
        );
        "IDPRejectedClaim" => Denied;
        "SessionDurationEscalation" => Denied;
        "OutboundWebIdentityFederationDisabled" => Denied;
    }
}

const KEYS_OR_REGION: &str = "check the credentials with `aws sts get-caller-identity`, and that the account has enabled \
    the region: `aws account get-region-opt-status --region-name REGION`";

#[cfg(test)]
mod tests {
    use super::super::tests::python;
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::LazyLock;
    use textnlp_cloud::errors::matches;

    fn kind(service: Service, code: &str) -> Option<ErrorKind> {
        ERRORS.meaning(Some(service), code, "").map(|(kind, _)| kind)
    }

    type Declared = (Service, String, Option<u16>);

    /// The errors that AWS's models declare: service, code and status. Codes are those of the wire and the names of shapes,
    /// as the SDK gives one or the other.
    static DECLARED: LazyLock<Option<Vec<Declared>>> = LazyLock::new(|| {
        let script = "
import json, sys, botocore.loaders
loader, found = botocore.loaders.Loader(), []
for service in SERVICES:
    for name, shape in loader.load_service_model(service, 'service-2')['shapes'].items():
        if shape.get('exception') or 'error' in shape:
            error = shape.get('error', {})
            for code in {name, error.get('code', name)}:
                found.append([service, code, error.get('httpStatusCode')])
print(json.dumps(found))";
        let services: Vec<_> = Service::ALL.iter().map(|service| service.id()).collect();
        let script = script.replace("SERVICES", &serde_json::to_string(&services).unwrap());
        let found: Vec<(String, String, Option<u16>)> = serde_json::from_value(python(&script)?).unwrap();
        let service = |id: &str| *Service::ALL.iter().find(|service| service.id() == id).unwrap();
        Some(found.into_iter().map(|(id, code, status)| (service(&id), code, status)).collect())
    });

    #[test]
    fn every_declared_error_is_classified_by_its_code() {
        let Some(declared) = &*DECLARED else { return };
        assert!(declared.len() > 600, "{}", declared.len());
        let missing: Vec<_> = declared.iter().filter(|(service, code, _)| kind(*service, code).is_none()).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn kinds_agree_with_the_statuses_that_aws_declares() {
        let Some(declared) = &*DECLARED else { return };
        let mut odd = BTreeSet::new();
        for (service, code, status) in declared {
            let (Some(kind), Some(status)) = (kind(*service, code), status) else { continue };
            let fits = match status {
                401 | 403 => kind == Denied,
                404 | 410 => kind == NotFound,
                409 => matches!(kind, Exists | Conflict),
                428 | 429 => matches!(kind, ErrorKind::Throttled { .. } | Conflict),
                500.. => matches!(kind, Unavailable | Capacity),
                // AWS uses it for all kinds but failures of its own.
                _ => {
                    kind != Unavailable
                        || matches!(code.as_str(), "IDPCommunicationError" | "IDPCommunicationErrorException")
                }
            };
            if !fits {
                odd.insert(format!("{} {} {status}", service.id(), base(code)));
            }
        }
        let expected = [
            "elasticache ReservedCacheNodeAlreadyExists 404",
            "iam CredentialReportNotReady 404",
            "iam LimitExceeded 409",
            "iam OpenIdIdpCommunicationError 400",
            "iam ReportGenerationLimitExceeded 409",
            "iam ReportInProgress 404",
            "rds DBClusterEndpointQuotaExceeded 403",
            "rds DBClusterQuotaExceeded 403",
            "rds InsufficientDBClusterCapacity 403",
            "rds ReservedDBInstanceAlreadyExists 404",
            "sns FilterPolicyLimitExceeded 403",
            "sns ReplayLimitExceeded 403",
            "sns SubscriptionLimitExceeded 403",
            "sns TopicLimitExceeded 403",
        ];
        assert_eq!(odd.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn capacity_quota_and_throttling_are_told_apart() {
        let Some(declared) = &*DECLARED else { return };
        let mut found: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for (service, code, _) in declared {
            let name = match kind(*service, code).unwrap() {
                Capacity => "capacity",
                ErrorKind::Throttled { .. } => "throttled",
                Limit => "quota",
                _ => "other",
            };
            found.entry(name).or_default().insert(format!("{} {}", service.id(), base(code)));
        }
        let of = |name: &str| found[name].iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!(
            of("capacity"),
            [
                "eks UnsupportedAvailabilityZone",
                "elasticache InsufficientCacheClusterCapacity",
                "elbv2 InsufficientCapacity",
                "rds InsufficientDBClusterCapacity",
                "rds InsufficientDBInstanceCapacity",
                "rds InsufficientStorageClusterCapacity",
                "rds ProvisionedIopsNotAvailableInAZ",
            ]
        );
        assert_eq!(
            of("throttled"),
            [
                "acm Throttling",
                "budgets Throttling",
                "eks Throttling",
                "elasticache APICallRateForCustomerExceeded",
                "elbv2 PriorRequestNotComplete",
                "logs Throttling",
                "resourcegroupstaggingapi Throttled",
                "route53 PriorRequestNotComplete",
                "route53 Throttling",
                "service-quotas TooManyRequests",
                "sns KMSThrottling",
                "sns Throttled",
            ]
        );
        for name in ["throttled", "capacity", "other"] {
            for code in &found[name] {
                // Limits that no quota raises: on tags, and on the parts of one request.
                let fixed = ["Tag", "TooManyParts", "TooManyEntries"].iter().any(|word| code.contains(word));
                let quota = ["LimitExceeded", "QuotaExceeded", " TooMany"].iter().any(|word| code.contains(word));
                assert!(!quota || fixed || code.ends_with(" TooManyRequests"), "{name}: {code}");
            }
        }
        assert!(found["quota"].len() > 70, "{}", found["quota"].len());
    }

    #[test]
    fn health_issues_of_clusters_are_classified() {
        let script = "
import json, botocore.loaders
shapes = botocore.loaders.Loader().load_service_model('eks', 'service-2')['shapes']
print(json.dumps([code for name, shape in shapes.items() if name == 'ErrorCode' or name.endswith('IssueCode')
    for code in shape['enum']]))";
        let Some(codes) = python(script) else { return };
        let codes: BTreeSet<String> = serde_json::from_value(codes).unwrap();
        assert!(codes.len() > 50);
        let missing: Vec<_> = codes.iter().filter(|code| kind(Service::Eks, code).is_none()).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn codes_that_botocore_retries_as_throttled_are_throttled() {
        let script = "
import json
from botocore.retries.standard import ThrottledRetryableChecker, TransientRetryableChecker
print(json.dumps([ThrottledRetryableChecker._THROTTLED_ERROR_CODES, TransientRetryableChecker._TRANSIENT_ERROR_CODES]))";
        let Some(codes) = python(script) else { return };
        let [throttled, transient]: [Vec<String>; 2] = serde_json::from_value(codes).unwrap();
        for code in throttled {
            // A quota in all of our services but Kinesis.
            let expected = if code == "LimitExceededException" { Limit } else { THROTTLED };
            assert_eq!(kind(Service::Ec2, &code), Some(expected), "{code}");
        }
        for code in transient {
            assert!(kind(Service::Ec2, &code).unwrap().may_pass(), "{code}");
        }
    }

    #[test]
    fn rows_are_reachable() {
        for (at, row) in ROWS.iter().enumerate() {
            assert_eq!(base(row.code), row.code);
            let found = ERRORS.row(&[row.service], row.code, row.phrase).unwrap();
            assert!(std::ptr::eq(found, row), "row {at} {} is hidden by {}", row.code, found.code);
        }
    }

    #[test]
    fn rules_are_used() {
        let Some(declared) = &*DECLARED else { return };
        let codes: Vec<_> =
            declared.iter().map(|(_, code, _)| base(code)).chain(EC2.iter().map(|(code, _)| *code)).collect();
        for (at, (pattern, _)) in RULES.iter().enumerate() {
            let first = |code: &str| RULES.iter().position(|(pattern, _)| matches(pattern, code)) == Some(at);
            assert!(codes.iter().any(|code| first(code)), "{pattern}");
        }
    }

    /// Codes that EC2 documents, of what the provider creates:
    /// <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html>.
    const EC2: &[(&str, ErrorKind)] = &[
        ("AddressLimitExceeded", Limit),
        ("AttachmentLimitExceeded", Limit),
        ("AuthFailure", Denied),
        ("Blocked", Denied),
        ("CannotDelete", Denied),
        ("ConcurrentTagAccess", Conflict),
        ("CustomerKeyHasBeenRevoked", Denied),
        ("DefaultVpcDoesNotExist", NotFound),
        ("DependencyViolation", Conflict),
        ("DuplicateSubnetsInSameZone", Invalid),
        ("EncryptedVolumesNotSupported", Invalid),
        ("ExistingVpcEndpointConnections", Conflict),
        ("FilterLimitExceeded", Invalid),
        ("FlowLogAlreadyExists", Exists),
        ("FlowLogsLimitExceeded", Limit),
        ("Gateway.NotAttached", NotFound),
        ("IdempotentInstanceTerminated", Invalid),
        ("IdempotentParameterMismatch", Invalid),
        ("IncorrectInstanceState", Conflict),
        ("IncorrectModificationState", Conflict),
        ("IncorrectState", Conflict),
        ("InstanceLimitExceeded", Limit),
        ("InsufficientAddressCapacity", Capacity),
        ("InsufficientCapacityOnHost", Capacity),
        ("InsufficientFreeAddressesInSubnet", Limit),
        ("InsufficientHostCapacity", Capacity),
        ("InsufficientInstanceCapacity", Capacity),
        ("InsufficientReservedInstanceCapacity", Capacity),
        ("InsufficientReservedInstancesCapacity", Capacity),
        ("InsufficientVolumeCapacity", Capacity),
        ("InternalError", Unavailable),
        ("InternalFailure", Unavailable),
        ("InternetGatewayLimitExceeded", Limit),
        ("InvalidAMIID.NotFound", NotFound),
        ("InvalidAMIID.Unavailable", NotFound),
        ("InvalidAddress.NotFound", NotFound),
        ("InvalidAllocationID.NotFound", NotFound),
        ("InvalidAssociationID.NotFound", NotFound),
        ("InvalidAttachment.NotFound", NotFound),
        ("InvalidAvailabilityZone", Invalid),
        ("InvalidBlockDeviceMapping", Invalid),
        ("InvalidClientTokenId", Denied),
        ("InvalidGatewayID.NotFound", NotFound),
        ("InvalidGroup.Duplicate", Exists),
        ("InvalidGroup.InUse", Conflict),
        ("InvalidGroup.NotFound", NotFound),
        ("InvalidGroup.Reserved", Invalid),
        ("InvalidGroupId.Malformed", Invalid),
        ("InvalidIPAddress.InUse", Conflict),
        ("InvalidInstanceID.NotFound", NotFound),
        ("InvalidInternetGatewayID.NotFound", NotFound),
        ("InvalidKeyPair.Duplicate", Exists),
        ("InvalidKeyPair.NotFound", NotFound),
        ("InvalidLaunchTemplateId.NotFound", NotFound),
        ("InvalidLaunchTemplateId.VersionNotFound", NotFound),
        ("InvalidLaunchTemplateName.AlreadyExistsException", Exists),
        ("InvalidLaunchTemplateName.NotFoundException", NotFound),
        ("InvalidNatGatewayID.NotFound", NotFound),
        ("InvalidNetworkInterface.InUse", Conflict),
        ("InvalidNetworkInterfaceID.NotFound", NotFound),
        ("InvalidParameterCombination", Invalid),
        ("InvalidParameterValue", Invalid),
        ("InvalidPermission.Duplicate", Exists),
        ("InvalidPermission.NotFound", NotFound),
        ("InvalidRoute.NotFound", NotFound),
        ("InvalidRouteTableID.NotFound", NotFound),
        ("InvalidSecurity.RequestHasExpired", Denied),
        ("InvalidSecurityGroupID.NotFound", NotFound),
        ("InvalidServiceName", Invalid),
        ("InvalidSpotInstanceRequestID.NotFound", NotFound),
        ("InvalidState", Conflict),
        ("InvalidSubnet.Conflict", Invalid),
        ("InvalidSubnet.Range", Invalid),
        ("InvalidSubnetID.NotFound", NotFound),
        ("InvalidVolume.NotFound", NotFound),
        ("InvalidVolume.ZoneMismatch", Invalid),
        ("InvalidVpc.Range", Invalid),
        ("InvalidVpcEndpointId.NotFound", NotFound),
        ("InvalidVpcID.NotFound", NotFound),
        ("InvalidVpcRange", Invalid),
        ("InvalidZone.NotFound", NotFound),
        ("MaxIOPSLimitExceeded", Limit),
        ("MaxSpotFleetRequestCountExceeded", Limit),
        ("MaxSpotInstanceCountExceeded", Limit),
        ("MaxTemplateLimitExceeded", Limit),
        ("MaxTemplateVersionLimitExceeded", Limit),
        ("MissingParameter", Invalid),
        ("NatGatewayLimitExceeded", Limit),
        ("NatGatewayMalformed", Invalid),
        ("NatGatewayNotFound", NotFound),
        ("NetworkInterfaceLimitExceeded", Limit),
        ("OperationNotPermitted", Denied),
        ("OptInRequired", Denied),
        ("PendingSnapshotLimitExceeded", Limit),
        ("PendingVerification", Denied),
        ("PrivateIpAddressLimitExceeded", Limit),
        ("RequestExpired", Denied),
        ("RequestLimitExceeded", THROTTLED),
        ("RequestResourceCountExceeded", Invalid),
        ("ReservationCapacityExceeded", Capacity),
        ("Resource.AlreadyAssociated", Exists),
        ("ResourceCountExceeded", Invalid),
        ("ResourceCountLimitExceeded", Limit),
        ("ResourceLimitExceeded", Limit),
        ("RouteAlreadyExists", Exists),
        ("RouteLimitExceeded", Limit),
        ("RouteTableLimitExceeded", Limit),
        ("RulesPerSecurityGroupLimitExceeded", Limit),
        ("SecurityGroupLimitExceeded", Limit),
        ("SecurityGroupsPerInstanceLimitExceeded", Limit),
        ("SecurityGroupsPerInterfaceLimitExceeded", Limit),
        ("ServiceUnavailable", Unavailable),
        ("SignatureDoesNotMatch", Denied),
        ("SnapshotCreationPerVolumeRateExceeded", THROTTLED),
        ("SubnetLimitExceeded", Limit),
        ("TagLimitExceeded", Invalid),
        ("UnauthorizedOperation", Denied),
        ("Unavailable", Unavailable),
        ("UnfulfillableCapacity", Capacity),
        ("UnknownParameter", Invalid),
        ("Unsupported", Capacity),
        ("UnsupportedOperation", Invalid),
        ("VPCIdNotSpecified", Invalid),
        ("ValidationError", Invalid),
        ("VcpuLimitExceeded", Limit),
        ("VolumeIOPSLimit", Limit),
        ("VolumeInUse", Conflict),
        ("VolumeLimitExceeded", Limit),
        ("VolumeTypeNotAvailableInZone", Capacity),
        ("VpcEndpointLimitExceeded", Limit),
        ("VpcLimitExceeded", Limit),
        ("ZonesMismatched", Invalid),
    ];

    #[test]
    fn codes_of_ec2_are_classified() {
        for (code, expected) in EC2 {
            assert_eq!(kind(Service::Ec2, code).as_ref(), Some(expected), "{code}");
            // The state reason of an instance names the side.
            for side in ["Client", "Server"] {
                assert_eq!(kind(Service::Ec2, &format!("{side}.{code}")).as_ref(), Some(expected), "{side}.{code}");
            }
        }
    }

    #[test]
    fn codes_of_s3_are_classified() {
        // <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>
        for (code, expected) in [
            ("AccessDenied", Denied),
            ("AuthorizationHeaderMalformed", Invalid),
            ("BucketAlreadyExists", Exists),
            ("BucketAlreadyOwnedByYou", Exists),
            ("BucketNotEmpty", Conflict),
            ("InvalidAccessKeyId", Denied),
            ("InvalidBucketName", Invalid),
            ("InvalidBucketState", Conflict),
            ("MalformedPolicy", Invalid),
            ("NoSuchBucket", NotFound),
            ("NoSuchBucketPolicy", NotFound),
            ("NoSuchLifecycleConfiguration", NotFound),
            ("NoSuchPublicAccessBlockConfiguration", NotFound),
            ("NoSuchTagSet", NotFound),
            ("NotFound", NotFound),
            ("OperationAborted", Conflict),
            ("OwnershipControlsNotFoundError", NotFound),
            ("PermanentRedirect", Invalid),
            ("ReplicationConfigurationNotFoundError", NotFound),
            ("RequestTimeTooSkewed", Denied),
            ("RequestTimeout", Unavailable),
            ("ServerSideEncryptionConfigurationNotFoundError", NotFound),
            ("SlowDown", THROTTLED),
            ("TooManyBuckets", Limit),
        ] {
            assert_eq!(kind(Service::S3, code), Some(expected), "{code}");
        }
    }

    #[test]
    fn a_message_tells_the_cause() {
        let launch = "AsgInstanceLaunchFailures";
        for (service, code, message, expected, hint) in [
            (
                "eks",
                launch,
                "Could not launch On-Demand Instances. VcpuLimitExceeded - You have requested more vCPU capacity than your \
                 current vCPU limit of 8 allows for the instance bucket that the specified instance type belongs to.",
                Limit,
                "L-DB2E81BA",
            ),
            (
                "eks",
                launch,
                "Could not launch Spot Instances. UnfulfillableCapacity - Unable to fulfill capacity due to your request \
                 configuration. Launching EC2 instance failed.",
                Capacity,
                "",
            ),
            (
                "eks",
                launch,
                "Could not launch On-Demand Instances. InsufficientInstanceCapacity - We currently do not have sufficient \
                 p3dn.24xlarge capacity in the Availability Zone you requested (us-west-2c).",
                Capacity,
                "",
            ),
            (
                "eks",
                launch,
                "Could not launch On-Demand Instances. InvalidParameterCombination - The specified instance type is not \
                 eligible for Free Tier. Launching EC2 instance failed.",
                Invalid,
                "upgrade the plan",
            ),
            (
                "eks",
                launch,
                "Could not launch On-Demand Instances. Unsupported - Your requested instance type (p5.48xlarge) is not \
                 supported in your requested Availability Zone (us-east-1d).",
                Capacity,
                "describe-instance-type-offerings",
            ),
            ("eks", launch, "Instances failed to launch", Unavailable, ""),
            (
                "eks",
                launch,
                "Instance became unhealthy while waiting for instance to be in InService state. Termination Reason: \
                 Client.InternalError: Client error on launch",
                Denied,
                "kms create-grant",
            ),
            ("ec2", "Client.InternalError", "Client error on launch", Denied, "kms create-grant"),
            ("ec2", "Server.InternalError", "Internal error on launch", Unavailable, ""),
            ("eks", "ResourceInUseException", "Cluster already exists with name: one", Exists, ""),
            ("eks", "ResourceInUseException", "Cluster has nodegroups attached", Conflict, ""),
            ("eks", "ClientException", "No cluster found for name: one.", NotFound, ""),
            (
                "sagemaker",
                "",
                "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML \
                 instance type.",
                Capacity,
                "",
            ),
            (
                "sagemaker",
                "",
                "Unable to provision requested ML compute capacity due to InsufficientInstanceCapacity error. Please \
                 retry using a different ML instance type or after some time.",
                Capacity,
                "",
            ),
            (
                "sagemaker",
                "",
                "The primary container for production variant main did not pass the ping health check. Please check CloudWatch logs.",
                Invalid,
                "/ping",
            ),
            ("sagemaker", "", "Failed to download model data for container \"container_1\"", Invalid, "s3:GetObject"),
            ("sagemaker", "RolledBack", "SageMaker returned to the old instances", Invalid, "describe-alarm-history"),
            ("sagemaker", "RolledBack", "due to InsufficientInstanceCapacity error", Capacity, ""),
            ("sagemaker", "ValidationException", "Cannot update in-progress endpoint \"arn\".", Conflict, ""),
            (
                "sagemaker",
                "ResourceLimitExceeded",
                "The account-level service limit 'ml.g5.2xlarge for endpoint usage' is 0 Instances",
                Limit,
                "list-service-quotas",
            ),
            (
                "ec2",
                "InvalidParameterValue",
                "Value (one) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance Profile name",
                Conflict,
                "trust policy",
            ),
            (
                "rds",
                "InvalidParameterValue",
                "Unable to create the resource. Verify that you have permission to create service linked role. Otherwise wait \
                 and try again later",
                Conflict,
                "create-service-linked-role",
            ),
            ("rds", "InvalidParameterValue", "Missing necessary credentials.", Conflict, "create-service-linked-role"),
            ("iam", "LimitExceeded", "Cannot exceed quota for RolesPerAccount: 1000", Limit, "L-FE177D64"),
            ("ec2", "VpcLimitExceeded", "", Limit, "--quota-code L-F678F1CE"),
            (
                "ec2",
                "UnauthorizedOperation",
                "You are not authorized to perform this operation. Encoded authorization failure message: 4OLWvT",
                Denied,
                "decode-authorization-message",
            ),
            (
                "iam",
                "AccessDenied",
                "User: arn:aws:iam::1:user/a is not authorized to perform: iam:CreateRole on resource: b with an explicit \
                 deny in a service control policy",
                Denied,
                "management account",
            ),
            (
                "iam",
                "AccessDenied",
                "User: arn:aws:iam::1:user/a is not authorized to perform: iam:CreateRole on resource: b because no \
                 permissions boundary allows the iam:CreateRole action",
                Denied,
                "permissions boundary",
            ),
            (
                "sts",
                "SignatureDoesNotMatch",
                "Signature expired: 20261123T080000Z is now earlier than 20261123T081500Z",
                Denied,
                "clock",
            ),
        ] {
            let (found, text) = classify(service, code, Some(400), message);
            assert_eq!(found, expected, "{code} {message}");
            assert!(hint.is_empty() == text.is_none(), "{code}: {text:?}");
            assert!(text.clone().unwrap_or_default().contains(hint), "{code}: {text:?}");
        }
    }

    #[test]
    fn unknown_codes_go_by_their_status() {
        for (status, expected) in [
            (Some(400), Invalid),
            (Some(403), Denied),
            (Some(404), NotFound),
            (Some(409), Conflict),
            (Some(429), THROTTLED),
            (Some(500), Unavailable),
            (Some(503), Unavailable),
            (None, Unavailable),
        ] {
            assert_eq!(classify("ec2", "Surprise", status, "a surprise").0, expected, "{status:?}");
        }
    }
}
