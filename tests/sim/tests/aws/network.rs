//! Subnets, gateways, routes, endpoints and security groups.

use textnlp_sim::aws::elb;
use textnlp_sim::{Options, Scope, Simulator};

use crate::boto3;

#[test]
fn boto3_builds_a_network_and_takes_it_down_in_order() {
    let simulator = Simulator::start(Options::default());
    let script = r#"
import boto3, botocore
ec2 = boto3.client("ec2")
fast = {"Delay": 0, "MaxAttempts": 100}
def refused(code, call, **arguments):
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == code, error
        return
    raise AssertionError(code)
def waits(name, **arguments):
    ec2.get_waiter(name).wait(WaiterConfig=fast, **arguments)

vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
refused("InvalidSubnet.Range", ec2.create_subnet, VpcId=vpc, CidrBlock="10.1.0.0/24")
refused("InvalidVpcID.NotFound", ec2.create_subnet, VpcId="vpc-0", CidrBlock="10.0.0.0/24")
refused("InvalidParameterValue", ec2.create_subnet, VpcId=vpc, CidrBlock="10.0.0.0/24", AvailabilityZone="eu-west-1z")
subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24", AvailabilityZoneId="euw1-az3")["Subnet"]
assert subnet["AvailabilityZone"] == "eu-west-1a" and subnet["AvailableIpAddressCount"] == 251, subnet
subnet = subnet["SubnetId"]
refused("InvalidSubnet.Conflict", ec2.create_subnet, VpcId=vpc, CidrBlock="10.0.0.128/25")

address = ec2.allocate_address(Domain="vpc")["AllocationId"]
failed = ec2.create_nat_gateway(SubnetId=subnet, AllocationId=address)["NatGateway"]["NatGatewayId"]
try:
    waits("nat_gateway_available", NatGatewayIds=[failed])
    raise AssertionError("it is not available")
except botocore.exceptions.WaiterError as error:
    one = error.last_response.get("NatGateways", [{}])[0]
    assert one.get("FailureCode") in ("Gateway.NotAttached", None), error
gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
refused("Resource.AlreadyAssociated", ec2.attach_internet_gateway, InternetGatewayId=gateway, VpcId=vpc)
nat = dict(SubnetId=subnet, AllocationId=address, ClientToken="one")
first = ec2.create_nat_gateway(**nat)["NatGateway"]["NatGatewayId"]
assert ec2.create_nat_gateway(**nat)["NatGateway"]["NatGatewayId"] == first
refused("IdempotentParameterMismatch", ec2.create_nat_gateway, **{**nat, "ConnectivityType": "public"})
ec2.describe_vpcs()  # Two requests later it is listed.
waits("nat_gateway_available", NatGatewayIds=[first])
refused("DependencyViolation", ec2.detach_internet_gateway, InternetGatewayId=gateway, VpcId=vpc)
refused("InvalidIPAddress.InUse", ec2.release_address, AllocationId=address)
refused("DependencyViolation", ec2.delete_subnet, SubnetId=subnet)
refused("DependencyViolation", ec2.delete_vpc, VpcId=vpc)

table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
route = dict(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0")
ec2.create_route(NatGatewayId=first, **route)
refused("RouteAlreadyExists", ec2.create_route, GatewayId=gateway, **route)
association = ec2.associate_route_table(RouteTableId=table, SubnetId=subnet)["AssociationId"]
refused("Resource.AlreadyAssociated", ec2.associate_route_table, RouteTableId=table, SubnetId=subnet)
refused("DependencyViolation", ec2.delete_route_table, RouteTableId=table)

group = ec2.create_security_group(GroupName="a", Description="a", VpcId=vpc)["GroupId"]
refused("InvalidGroup.Duplicate", ec2.create_security_group, GroupName="a", Description="b", VpcId=vpc)
rule = [{"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "IpRanges": [{"CidrIp": "10.0.0.0/16"}]}]
ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=rule)
refused("InvalidPermission.Duplicate", ec2.authorize_security_group_ingress, GroupId=group, IpPermissions=rule)
ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=rule)
assert ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=rule)["UnknownIpPermissions"]
other = ec2.create_security_group(GroupName="b", Description="b", VpcId=vpc)["GroupId"]
pair = {"IpProtocol": "tcp", "FromPort": 5432, "ToPort": 5432, "UserIdGroupPairs": [{"GroupId": group}]}
ec2.authorize_security_group_ingress(GroupId=other, IpPermissions=[pair])
refused("DependencyViolation", ec2.delete_security_group, GroupId=group)
ec2.delete_security_group(GroupId=other)
endpoint = dict(VpcId=vpc, VpcEndpointType="Interface", ServiceName="com.amazonaws.eu-west-1.sts", SubnetIds=[subnet], SecurityGroupIds=[group])
refused("InvalidParameter", ec2.create_vpc_endpoint, **endpoint)
ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": True})
interface = ec2.create_vpc_endpoint(**endpoint)["VpcEndpoint"]["VpcEndpointId"]
storage = ec2.create_vpc_endpoint(VpcId=vpc, ServiceName="com.amazonaws.eu-west-1.s3", RouteTableIds=[table])["VpcEndpoint"]["VpcEndpointId"]
ec2.describe_vpcs()
found = ec2.describe_route_tables(RouteTableIds=[table])["RouteTables"][0]["Routes"]
assert sorted(route.get("GatewayId", "nat") for route in found) == sorted(["local", "nat", storage]), found
refused("DependencyViolation", ec2.delete_security_group, GroupId=group)

answer = ec2.delete_vpc_endpoints(VpcEndpointIds=[interface, storage, "vpce-0"])["Unsuccessful"]
assert [one["ResourceId"] for one in answer] == ["vpce-0"], answer
ec2.delete_nat_gateway(NatGatewayId=first)
waits("nat_gateway_deleted", NatGatewayIds=[first])
found = ec2.describe_route_tables(RouteTableIds=[table])["RouteTables"][0]["Routes"]
assert "blackhole" in [route["State"] for route in found], found
for _ in range(12):
    ec2.describe_vpcs()
ec2.release_address(AllocationId=address)
ec2.disassociate_route_table(AssociationId=association)
ec2.delete_route_table(RouteTableId=table)
ec2.delete_security_group(GroupId=group)
ec2.delete_subnet(SubnetId=subnet)
ec2.detach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
ec2.delete_internet_gateway(InternetGatewayId=gateway)
ec2.delete_vpc(VpcId=vpc)
for left in (ec2.describe_route_tables()["RouteTables"], ec2.describe_security_groups()["SecurityGroups"], ec2.describe_network_interfaces()["NetworkInterfaces"]):
    assert not left, left
"#;
    boto3(&simulator, script);
}

#[test]
fn classic_load_balancers_have_an_api_of_their_own() {
    let simulator = Simulator::start(Options::default());
    {
        let (mut world, scope) = (simulator.world(), Scope::new("123456789012", "eu-west-1"));
        for _ in 0..3 {
            elb::leave_classic_behind(&mut world, &scope, "text", "vpc-0", &[]);
        }
    }
    let script = r#"
import boto3, botocore
elb = boto3.client("elb")
def listed():
    pages = elb.get_paginator("describe_load_balancers").paginate(PaginationConfig={"PageSize": 2})
    return [one for page in pages for one in page["LoadBalancerDescriptions"]]
one, *others = listed()
assert len(others) == 2 and one["VPCId"] == "vpc-0", one
name = one["LoadBalancerName"]
tags = elb.describe_tags(LoadBalancerNames=[name])["TagDescriptions"]
assert tags == [{"LoadBalancerName": name, "Tags": [{"Key": "kubernetes.io/cluster/text", "Value": "owned"}]}], tags
for names in [["unknown"], [name, "unknown"]]:
    for call in [elb.describe_load_balancers, elb.describe_tags]:
        try:
            call(LoadBalancerNames=names)
            raise AssertionError(names)
        except botocore.exceptions.ClientError as error:
            assert error.response["Error"]["Code"] == "LoadBalancerNotFound", error
# The other API does not list them.
assert boto3.client("elbv2").describe_load_balancers()["LoadBalancers"] == []
for name in [name, name, "unknown"]:
    elb.delete_load_balancer(LoadBalancerName=name)
assert listed() == others
"#;
    boto3(&simulator, script);
}
