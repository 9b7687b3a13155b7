//! The simulated AWS, driven by its own Python client.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use textnlp_sim::{Options, Simulator, aws};

fn boto3(simulator: &Simulator, script: &str) {
    let output = Command::new(aws::model::python().unwrap())
        .args(["-c", script])
        .env("AWS_ENDPOINT_URL", simulator.url())
        .env("AWS_ACCESS_KEY_ID", Simulator::ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", Simulator::SECRET_KEY)
        .env("AWS_DEFAULT_REGION", "eu-west-1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn boto3_creates_and_deletes_a_vpc() {
    let simulator = Simulator::start(Options::default());
    let script = r#"
import boto3
print(boto3.client("sts").get_caller_identity())
ec2 = boto3.client("ec2")
vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16", TagSpecifications=[{"ResourceType": "vpc", "Tags": [{"Key": "a", "Value": "b"}]}])["Vpc"]
assert vpc["State"] == "pending", vpc
ec2.get_waiter("vpc_available").wait(VpcIds=[vpc["VpcId"]], WaiterConfig={"Delay": 0})
assert ec2.describe_vpcs(Filters=[{"Name": "tag:a", "Values": ["b*"]}])["Vpcs"][0]["VpcId"] == vpc["VpcId"]
ec2.delete_vpc(VpcId=vpc["VpcId"])
"#;
    boto3(&simulator, script);
}
