//! STS and VPCs.

use std::time::Duration;

use textnlp_sim::{Options, Scope, Simulator, Timing};

use crate::boto3;

#[test]
fn boto3_creates_finds_tags_and_deletes_vpcs() {
    // Two requests fit in before a tag is listed.
    let timing = Timing { consistency: Duration::from_secs(12), ..Timing::default() };
    let simulator = Simulator::start(Options { timing, ..Options::default() });
    simulator.world().quotas.set(&Scope::new("123456789012", "eu-west-1"), "L-F678F1CE", 7.0);
    let script = r#"
import boto3, botocore
identity = boto3.client("sts").get_caller_identity()
assert identity["Arn"] == "arn:aws:iam::123456789012:user/operator", identity
ec2 = boto3.client("ec2")
def refused(code, call, **arguments):
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == code, error
        return error
    raise AssertionError(code)
tags = [{"ResourceType": "vpc", "Tags": [{"Key": "a", "Value": "b"}]}]
vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16", TagSpecifications=tags)["Vpc"]
assert vpc["State"] == "pending", vpc
ec2.get_waiter("vpc_exists").wait(VpcIds=[vpc["VpcId"]], WaiterConfig={"Delay": 0})
ec2.get_waiter("vpc_available").wait(VpcIds=[vpc["VpcId"]], WaiterConfig={"Delay": 0})
others = [ec2.create_vpc(CidrBlock=f"10.{n}.0.0/16")["Vpc"]["VpcId"] for n in range(1, 7)]
refused("VpcLimitExceeded", ec2.create_vpc, CidrBlock="10.7.0.0/16")
refused("DryRunOperation", ec2.create_vpc, CidrBlock="10.7.0.0/16", DryRun=True)
refused("InvalidVpc.Range", ec2.create_vpc, CidrBlock="10.6.0.0/15")
pages = list(ec2.get_paginator("describe_vpcs").paginate(PaginationConfig={"PageSize": 5}))
assert [len(page["Vpcs"]) for page in pages] == [5, 2], pages
found = ec2.describe_vpcs(Filters=[{"Name": "tag:a", "Values": ["x", "b*"]}])["Vpcs"]
assert [one["VpcId"] for one in found] == [vpc["VpcId"]] and found[0]["Tags"] == tags[0]["Tags"], found
ec2.create_tags(Resources=[vpc["VpcId"], others[0]], Tags=[{"Key": "c", "Value": "d"}, {"Key": "e", "Value": "f"}])
ec2.delete_tags(Resources=[others[0]], Tags=[{"Key": "c"}, {"Key": "e", "Value": "other"}])
# Tags are listed late.
assert not ec2.describe_tags(Filters=[{"Name": "key", "Values": ["e"]}])["Tags"]
found = list(ec2.get_paginator("describe_tags").paginate(PaginationConfig={"PageSize": 1000}))[0]["Tags"]
found = sorted((tag["ResourceId"], tag["Key"], tag["Value"]) for tag in found)
assert found == sorted([(vpc["VpcId"], "a", "b"), (vpc["VpcId"], "c", "d"), (vpc["VpcId"], "e", "f"), (others[0], "e", "f")]), found
refused("InvalidVpcID.NotFound", ec2.create_tags, Resources=["vpc-0123"], Tags=[{"Key": "c", "Value": "d"}])
refused("InvalidParameterValue", ec2.create_tags, Resources=others[:1], Tags=[{"Key": "aws:c", "Value": "d"}])
refused("InvalidParameterValue", ec2.describe_vpcs, Filters=[{"Name": "colour", "Values": ["red"]}])
ec2.delete_vpc(VpcId=vpc["VpcId"])
refused("InvalidVpcID.NotFound", ec2.delete_vpc, VpcId=vpc["VpcId"])
"#;
    boto3(&simulator, script);
    let requests = simulator.requests();
    assert_eq!(requests[0].operation, "GetCallerIdentity");
    assert_eq!(requests[1].input["CidrBlock"], "10.0.0.0/16");
}
