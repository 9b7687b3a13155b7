# Scenarios of behaviours that moto has right, against the simulator or moto: prints the result of each call, without ids and times.
import json
import os
import sys

import boto3
import botocore

results = []


def tried(what, call, show=lambda answer: None, **arguments):
    """Makes a call; what it gives, or its error's code, is a result."""
    try:
        answer = call(**arguments)
    except botocore.exceptions.ClientError as error:
        results.append([what, "refused", error.response["Error"]["Code"]])
        return None
    results.append([what, "done", show(answer)])
    return answer


def bucket_settings():
    s3 = boto3.client("s3")
    name = "textnlp-moto"
    tried("create", s3.create_bucket, Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    tried("unversioned", s3.get_bucket_versioning, lambda a: a.get("Status"), Bucket=name)
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    tried("versioned", s3.get_bucket_versioning, lambda a: a["Status"], Bucket=name)
    block = {member: True for member in ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")}
    s3.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=block)
    tried("blocked", s3.get_public_access_block, lambda a: a["PublicAccessBlockConfiguration"], Bucket=name)
    tried("no tags", s3.get_bucket_tagging, Bucket=name)
    s3.put_bucket_tagging(Bucket=name, Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
    tried("tags", s3.get_bucket_tagging, lambda a: a["TagSet"], Bucket=name)
    # Before the policy: moto does not look at conditions.
    s3.put_object(Bucket=name, Key="weights", Body=b"1")
    tried("no policy", s3.get_bucket_policy, Bucket=name)
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Principal": "*", "Action": "s3:*",
              "Resource": f"arn:aws:s3:::{name}/*", "Condition": {"Bool": {"aws:SecureTransport": "false"}}}]}
    s3.put_bucket_policy(Bucket=name, Policy=json.dumps(policy))
    tried("policy", s3.get_bucket_policy, lambda a: json.loads(a["Policy"]), Bucket=name)
    tried("no rules", s3.get_bucket_lifecycle_configuration, Bucket=name)
    rules = [{"ID": "old", "Status": "Enabled", "Filter": {"Prefix": ""}, "NoncurrentVersionExpiration": {"NoncurrentDays": 30},
              "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}}]
    s3.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": rules})
    tried("rules", s3.get_bucket_lifecycle_configuration, lambda a: a["Rules"], Bucket=name)
    tried("not empty", s3.delete_bucket, Bucket=name)
    tried("no bucket", s3.get_bucket_versioning, Bucket="textnlp-moto-other")


def conditional_writes():
    s3 = boto3.client("s3")
    name = "textnlp-moto-locks"
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    first = tried("first", s3.put_object, Bucket=name, Key="lock", Body=b"1", IfNoneMatch="*")
    tried("second", s3.put_object, Bucket=name, Key="lock", Body=b"2", IfNoneMatch="*")
    tried("still the first", s3.get_object, lambda a: a["Body"].read().decode(), Bucket=name, Key="lock")
    tried("successor", s3.put_object, Bucket=name, Key="lock", Body=b"3", IfMatch=first["ETag"])
    tried("late successor", s3.put_object, Bucket=name, Key="lock", Body=b"4", IfMatch=first["ETag"])
    tried("the successor", s3.get_object, lambda a: a["Body"].read().decode(), Bucket=name, Key="lock")


def network_errors():
    ec2 = boto3.client("ec2")
    tags = [{"ResourceType": "vpc", "Tags": [{"Key": "lineage", "Value": "one"}]}]
    vpc = tried("VPC", ec2.create_vpc, lambda a: a["Vpc"]["CidrBlock"], CidrBlock="10.0.0.0/16", TagSpecifications=tags)["Vpc"]["VpcId"]
    ec2.create_vpc(CidrBlock="10.1.0.0/16")
    tried("too large", ec2.create_vpc, CidrBlock="10.0.0.0/15")
    subnet = tried("subnet", ec2.create_subnet, lambda a: a["Subnet"]["CidrBlock"], VpcId=vpc, CidrBlock="10.0.1.0/24")
    tried("overlap", ec2.create_subnet, VpcId=vpc, CidrBlock="10.0.1.0/25")
    tried("outside", ec2.create_subnet, VpcId=vpc, CidrBlock="10.9.0.0/24")
    tried("no VPC", ec2.create_subnet, VpcId="vpc-0123456789abcdef0", CidrBlock="10.0.2.0/24")
    tried("by tag", ec2.describe_vpcs, lambda a: [one["CidrBlock"] for one in a["Vpcs"]],
          Filters=[{"Name": "tag:lineage", "Values": ["one"]}])
    tried("by another tag", ec2.describe_vpcs, lambda a: a["Vpcs"], Filters=[{"Name": "tag:lineage", "Values": ["two"]}])
    group = ec2.create_security_group(VpcId=vpc, GroupName="web", Description="web")["GroupId"]
    tried("same name", ec2.create_security_group, VpcId=vpc, GroupName="web", Description="web")
    rule = [{"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "IpRanges": [{"CidrIp": "10.0.0.0/16"}]}]
    tried("rule", ec2.authorize_security_group_ingress, GroupId=group, IpPermissions=rule)
    tried("same rule", ec2.authorize_security_group_ingress, GroupId=group, IpPermissions=rule)
    table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    tried("attach", ec2.attach_internet_gateway, InternetGatewayId=gateway, VpcId=vpc)
    tried("attach again", ec2.attach_internet_gateway, InternetGatewayId=gateway, VpcId=vpc)
    tried("route", ec2.create_route, RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    tried("same route", ec2.create_route, RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    tried("no subnet", ec2.delete_subnet, SubnetId="subnet-0123456789abcdef0")
    tried("delete subnet", ec2.delete_subnet, SubnetId=subnet["Subnet"]["SubnetId"])


def role_conflicts():
    iam = boto3.client("iam")
    trust = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]}
    policy = "arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryPullOnly"
    make = {"RoleName": "nodes", "Path": "/textnlp/", "AssumeRolePolicyDocument": json.dumps(trust)}
    tried("role", iam.create_role, lambda a: [a["Role"]["RoleName"], a["Role"]["Path"]], **make)
    tried("same role", iam.create_role, **make)
    tried("attach", iam.attach_role_policy, RoleName="nodes", PolicyArn=policy)
    tried("attached", iam.list_attached_role_policies, lambda a: [one["PolicyArn"] for one in a["AttachedPolicies"]], RoleName="nodes")
    tried("delete with a policy", iam.delete_role, RoleName="nodes")
    tried("detach", iam.detach_role_policy, RoleName="nodes", PolicyArn=policy)
    tried("detach again", iam.detach_role_policy, RoleName="nodes", PolicyArn=policy)
    tried("delete", iam.delete_role, RoleName="nodes")
    tried("no role", iam.get_role, RoleName="nodes")


def immutable_tags():
    ecr = boto3.client("ecr")
    tried("repository", ecr.create_repository, lambda a: a["repository"]["imageTagMutability"], repositoryName="textnlp", imageTagMutability="IMMUTABLE")
    tried("same repository", ecr.create_repository, repositoryName="textnlp")
    tried("mutable", ecr.put_image_tag_mutability, lambda a: a["imageTagMutability"], repositoryName="textnlp", imageTagMutability="MUTABLE")
    tried("no repository", ecr.put_image_tag_mutability, repositoryName="other", imageTagMutability="MUTABLE")
    tried("no rules", ecr.get_lifecycle_policy, repositoryName="textnlp")
    tried("delete", ecr.delete_repository, repositoryName="textnlp")
    tried("delete again", ecr.delete_repository, repositoryName="textnlp")


def secret_tokens():
    secrets = boto3.client("secretsmanager")
    token = "0f0e0d0c-0b0a-4908-8706-050403020100"
    tried("secret", secrets.create_secret, lambda a: a["Name"], Name="key", SecretString="1", ClientRequestToken=token)
    tried("same name", secrets.create_secret, Name="key", SecretString="2")
    tried("same value", secrets.put_secret_value, lambda a: a["VersionId"] == token, SecretId="key", SecretString="1", ClientRequestToken=token)
    tried("another value", secrets.put_secret_value, SecretId="key", SecretString="3", ClientRequestToken=token)
    tried("value", secrets.get_secret_value, lambda a: [a["SecretString"], a["VersionStages"]], SecretId="key")
    tried("no secret", secrets.describe_secret, SecretId="other")


def cluster_with_nodes():
    ec2, eks, iam = (boto3.client(name) for name in ("ec2", "eks", "iam"))

    def role(name, service):
        trust = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}]}
        return iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]

    vpc = ec2.create_vpc(CidrBlock="10.2.0.0/16")["Vpc"]["VpcId"]
    zones = ["eu-west-1a", "eu-west-1b"]
    subnets = [ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.2.{n}.0/24", AvailabilityZone=zone)["Subnet"]["SubnetId"] for n, zone in enumerate(zones)]
    control, node = role("control", "eks.amazonaws.com"), role("node", "ec2.amazonaws.com")
    for name, policy in [("control", "AmazonEKSClusterPolicy"), ("node", "AmazonEKSWorkerNodePolicy"), ("node", "AmazonEC2ContainerRegistryPullOnly")]:
        iam.attach_role_policy(RoleName=name, PolicyArn=f"arn:aws:iam::aws:policy/{policy}")
    make = {"name": "one", "roleArn": control, "resourcesVpcConfig": {"subnetIds": subnets}}
    tried("cluster", eks.create_cluster, lambda a: a["cluster"]["name"], **make)
    tried("same cluster", eks.create_cluster, **make)
    eks.get_waiter("cluster_active").wait(name="one", WaiterConfig={"Delay": 0, "MaxAttempts": 400})
    tried("nodes", eks.create_nodegroup, lambda a: a["nodegroup"]["nodegroupName"], clusterName="one", nodegroupName="nodes",
          subnets=subnets, nodeRole=node, instanceTypes=["m6i.large"])
    tried("same nodes", eks.create_nodegroup, clusterName="one", nodegroupName="nodes", subnets=subnets, nodeRole=node)
    tried("delete with nodes", eks.delete_cluster, name="one")
    tried("no cluster", eks.describe_cluster, name="two")
    tried("no nodes", eks.describe_nodegroup, clusterName="one", nodegroupName="other")


def change_batches():
    dns = boto3.client("route53")
    # The simulator creates no zones, and has one.
    zone = os.environ.get("ZONE") or dns.create_hosted_zone(Name="example.com", CallerReference="one")["HostedZone"]["Id"]

    def record(name, value):
        return {"Name": name, "Type": "A", "TTL": 60, "ResourceRecords": [{"Value": value}]}

    def change(what, *changes, zone=zone):
        changes = [{"Action": action, "ResourceRecordSet": one} for action, one in changes]
        tried(what, dns.change_resource_record_sets, HostedZoneId=zone, ChangeBatch={"Changes": changes})

    def listed(what):
        def values(answer):
            found = [one for one in answer["ResourceRecordSets"] if one["Type"] == "A"]
            return [[one["Name"], one["TTL"], [value["Value"] for value in one["ResourceRecords"]]] for one in found]

        tried(what, dns.list_resource_record_sets, values, HostedZoneId=zone)

    first, second = record("a.example.com", "192.0.2.1"), record("b.example.com", "192.0.2.2")
    change("create", ("CREATE", first))
    change("create again", ("CREATE", first))
    change("create again, with another", ("CREATE", second), ("CREATE", first))
    listed("no part of a refused batch")
    change("outside of the zone", ("CREATE", record("a.example.org", "192.0.2.1")))
    changed = record("a.example.com", "192.0.2.3")
    change("replace, with another", ("UPSERT", changed), ("CREATE", second))
    listed("both")
    change("delete", ("DELETE", changed), ("DELETE", second))
    listed("none")
    change("no zone", ("CREATE", first), zone="Z0123456789ABCDEFGHIJ")


if "AWS_ENDPOINT_URL" in os.environ:
    globals()[sys.argv[1]]()
else:
    import moto

    with moto.mock_aws():
        globals()[sys.argv[1]]()
print(json.dumps(results))
