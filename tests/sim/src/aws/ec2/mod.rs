//! Elastic Compute Cloud.

mod endpoints;
mod flow_logs;
mod groups;
mod images;
pub mod interfaces;
mod items;
mod nat;
mod network;
mod routes;
mod tags;
mod templates;
pub mod volumes;
mod zones;

pub use endpoints::ENDPOINT;
pub(crate) use endpoints::nodes_reach_eks;
pub use flow_logs::FLOW_LOG;
pub use groups::GROUP;
pub use interfaces::INTERFACE;
pub(crate) use items::place;
pub use items::{Collection, Ec2, Item};
pub use nat::{ADDRESS, GATEWAY as NAT_GATEWAY};
pub use network::{GATEWAY as INTERNET_GATEWAY, SUBNET, VPC};
pub use routes::TABLE;
pub use templates::TEMPLATE;
pub use volumes::VOLUME;
pub use zones::{Disabled, Missing, Zone, zones};

use items::describe;

use crate::{Behaviour, Service, Source};

/// All kinds of resources.
const COLLECTIONS: &[&Collection] = &[
    &ADDRESS,
    &ENDPOINT,
    &FLOW_LOG,
    &GROUP,
    &INTERFACE,
    &INTERNET_GATEWAY,
    &NAT_GATEWAY,
    &SUBNET,
    &TABLE,
    &TEMPLATE,
    &VOLUME,
    &VPC,
];

/// The service.
pub const SERVICE: Service = Service {
    name: "ec2",
    model: "ec2",
    operations: &[
        ("AllocateAddress", nat::allocate),
        ("AssociateRouteTable", routes::associate),
        ("AttachInternetGateway", network::attach_gateway),
        ("AuthorizeSecurityGroupEgress", groups::authorize),
        ("AuthorizeSecurityGroupIngress", groups::authorize),
        ("CreateFlowLogs", flow_logs::create),
        ("CreateInternetGateway", network::create_gateway),
        ("CreateLaunchTemplate", templates::create),
        ("CreateLaunchTemplateVersion", templates::create_version),
        ("CreateNatGateway", nat::create),
        ("CreateRoute", routes::create_route),
        ("CreateRouteTable", routes::create),
        ("CreateSecurityGroup", groups::create),
        ("CreateSubnet", network::create_subnet),
        ("CreateTags", tags::create),
        ("CreateVpc", network::create_vpc),
        ("CreateVpcEndpoint", endpoints::create),
        ("DeleteFlowLogs", flow_logs::delete),
        ("DeleteInternetGateway", network::delete_gateway),
        ("DeleteLaunchTemplate", templates::delete),
        ("DeleteNatGateway", nat::delete),
        ("DeleteNetworkInterface", interfaces::delete),
        ("DeleteRoute", routes::delete_route),
        ("DeleteRouteTable", routes::delete),
        ("DeleteSecurityGroup", groups::delete),
        ("DeleteSubnet", network::delete_subnet),
        ("DeleteTags", tags::delete),
        ("DeleteVolume", volumes::delete),
        ("DeleteVpc", network::delete_vpc),
        ("DeleteVpcEndpoints", endpoints::delete),
        ("DescribeAddresses", |world, call| describe(world, call, &ADDRESS)),
        ("DescribeAvailabilityZones", zones::describe),
        ("DescribeFlowLogs", |world, call| describe(world, call, &FLOW_LOG)),
        ("DescribeImages", images::describe),
        ("DescribeInstanceTypeOfferings", zones::offerings),
        ("DescribeInstances", |_, _| Ok(serde_json::json!({ "Reservations": [] }))),
        ("DescribeInternetGateways", |world, call| describe(world, call, &INTERNET_GATEWAY)),
        ("DescribeLaunchTemplateVersions", templates::describe_versions),
        ("DescribeLaunchTemplates", |world, call| describe(world, call, &TEMPLATE)),
        ("DescribeNatGateways", nat::describe),
        ("DescribeNetworkInterfaces", |world, call| describe(world, call, &INTERFACE)),
        ("DescribeRegions", zones::regions),
        ("DescribeRouteTables", routes::describe),
        ("DescribeSecurityGroups", |world, call| describe(world, call, &GROUP)),
        ("DescribeSubnets", |world, call| describe(world, call, &SUBNET)),
        ("DescribeTags", tags::describe),
        ("DescribeVpcAttribute", network::vpc_attribute),
        ("DescribeVpcEndpoints", |world, call| describe(world, call, &ENDPOINT)),
        ("DescribeVpcs", |world, call| describe(world, call, &VPC)),
        ("DetachInternetGateway", network::detach_gateway),
        ("DisassociateRouteTable", routes::disassociate),
        ("GetEbsDefaultKmsKeyId", volumes::default_key),
        ("ModifyLaunchTemplate", templates::modify),
        ("ModifySubnetAttribute", network::modify_subnet),
        ("ModifyVpcAttribute", network::modify_vpc),
        ("ModifyVpcEndpoint", endpoints::modify),
        ("ReleaseAddress", nat::release),
        ("ReplaceRoute", routes::replace_route),
        ("ReplaceRouteTableAssociation", routes::replace_association),
        ("RevokeSecurityGroupEgress", groups::revoke),
        ("RevokeSecurityGroupIngress", groups::revoke),
        ("UpdateSecurityGroupRuleDescriptionsEgress", groups::describe_rules),
        ("UpdateSecurityGroupRuleDescriptionsIngress", groups::describe_rules),
    ],
    quotas: &[
        nat::ADDRESSES,
        nat::GATEWAYS,
        network::GATEWAYS,
        network::SUBNETS,
        network::VPCS,
        endpoints::INTERFACES,
        groups::GROUPS,
        groups::RULES,
        routes::ROUTES,
    ],
    ledger: LEDGER,
};

const fn row(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "ec2", what, source }
}

const LEDGER: &[Behaviour] = &[
    row("machines of node groups are not shown as instances", Source::LeftOut("no plan reads one by its id")),
    row(
        "images of EKS for nodes are Amazon's, and their names end with the version of Kubernetes and the day of the release",
        Source::Documentation("https://github.com/awslabs/amazon-eks-ami/blob/main/CHANGELOG.md"),
    ),
    row(
        "filters take `*` and `?`, and values are alternatives",
        Source::Documentation("https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Filtering.html"),
    ),
    row(
        "tags of a new resource are set by its TagSpecifications; keys that start with aws: are refused",
        Source::Documentation("https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html"),
    ),
    row(
        "descriptions show new resources and new tags late, also by id",
        Source::Documentation("https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html"),
    ),
    row(
        "how late descriptions show them",
        Source::LeftOut("a wait of the simulator: callers poll until the state is there"),
    ),
    row(
        "a client token returns the first resource, and with other parameters IdempotentParameterMismatch",
        Source::Documentation("https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html"),
    ),
    row(
        "error codes: unknown ids, ranges, limits, duplicates, resources in use",
        Source::Documentation("https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html"),
    ),
    row(
        "a VPC and a subnet are pending at first",
        Source::Documentation("https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_Subnet.html"),
    ),
    row(
        "a VPC has a main route table and a default security group, which end with it",
        Source::Documentation("https://docs.aws.amazon.com/vpc/latest/userguide/default-security-group.html"),
    ),
    row(
        "five addresses of a subnet cannot be used",
        Source::Documentation("https://docs.aws.amazon.com/vpc/latest/userguide/subnet-sizing.html"),
    ),
    row(
        "a subnet, VPC or group with a network interface in it is not deleted: DependencyViolation",
        Source::Documentation("https://docs.aws.amazon.com/vpc/latest/userguide/delete-vpc.html"),
    ),
    row(
        "an internet gateway is not detached while public addresses are mapped",
        Source::Documentation("https://docs.aws.amazon.com/vpc/latest/userguide/delete-igw.html"),
    ),
    row(
        "for some seconds after its NAT gateway ended, the release of an address is AuthFailure",
        Source::Report("hashicorp/terraform-provider-aws#13763"),
    ),
    row(
        "a NAT gateway without internet gateway, or with an address in use, becomes failed with its code",
        Source::Documentation("https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_NatGateway.html"),
    ),
    row(
        "a deleted NAT gateway is shown for about an hour, and has its address until it is deleted",
        Source::Documentation("https://docs.aws.amazon.com/vpc/latest/userguide/nat-gateway-working-with.html"),
    ),
    row(
        "a NAT gateway takes 90 s to become available and 60 s to be deleted",
        Source::LeftOut("a wait of the simulator: callers poll until the state is there"),
    ),
    row(
        "a route whose target is gone is a blackhole",
        Source::Documentation("https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_Route.html"),
    ),
    row(
        "a subnet has one route table; a second association is Resource.AlreadyAssociated",
        Source::Documentation("https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_AssociateRouteTable.html"),
    ),
    row(
        "private DNS of an endpoint needs both DNS attributes of the VPC, and is unique for a service in it",
        Source::Documentation("https://docs.aws.amazon.com/vpc/latest/privatelink/create-interface-endpoint.html"),
    ),
    row(
        "a gateway endpoint adds a route by prefix list to its route tables",
        Source::Documentation("https://docs.aws.amazon.com/vpc/latest/privatelink/gateway-endpoints.html"),
    ),
    row(
        "a deletion of endpoints that fails says so in its answer",
        Source::Documentation("https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DeleteVpcEndpoints.html"),
    ),
    row(
        "a flow log that exists is FlowLogAlreadyExists in the answer to its creation, and an unknown one is named in the answer \
         to its removal",
        Source::Documentation("https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateFlowLogs.html"),
    ),
    row(
        "whether the role and the log group of a flow log exist is not looked at",
        Source::LeftOut("a plan creates both before the flow log"),
    ),
    row(
        "the default key of EBS is `alias/aws/ebs`, unless the account has set one of its own",
        Source::Documentation("https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_GetEbsDefaultKmsKeyId.html"),
    ),
    row(
        "an interface endpoint takes 60 s to become available and 60 s to be deleted",
        Source::LeftOut("a wait of the simulator: callers poll until the state is there"),
    ),
    row(
        "states of endpoints are capitalised as in the model, while the service answers in lower case",
        Source::LeftOut("answers are checked against the model; aws/aws-sdk-go-v2#2864 reports the difference"),
    ),
    row(
        "a new group lets everything out; a rule that exists is InvalidPermission.Duplicate; an unknown one is named in \
         the answer to its removal",
        Source::Documentation(
            "https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RevokeSecurityGroupIngress.html",
        ),
    ),
    row(
        "a group to which a rule of another group refers is not deleted",
        Source::Documentation("https://docs.aws.amazon.com/vpc/latest/userguide/deleting-security-groups.html"),
    ),
    row(
        "versions of launch templates: the default one is what descriptions mean by $Default",
        Source::Documentation(
            "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/manage-launch-template-versions.html",
        ),
    ),
    row(
        "ids of zones are the same in all accounts, and their names are not",
        Source::Documentation("https://docs.aws.amazon.com/global-infrastructure/latest/regions/az-ids.html"),
    ),
    row(
        "names and ids of the zones of a region",
        Source::Double("https://github.com/getmoto/moto/blob/5.2.5/moto/ec2/models/availability_zones_and_regions.py"),
    ),
];
