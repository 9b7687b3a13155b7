//! IAM, STS, EKS and CloudWatch Logs.

use textnlp_sim::{Options, Simulator};

use crate::boto3;

/// Calls that are refused.
const REFUSED: &str = r#"
import base64, boto3, botocore, json
def refused(code, call, **arguments):
    try:
        call(**arguments)
    except botocore.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == code, error
        return error.response["Error"]["Message"]
    raise AssertionError(code)
iam, sts, eks, ec2, logs = (boto3.client(name) for name in ("iam", "sts", "eks", "ec2", "logs"))
def trust(kind, name, *actions, **condition):
    statement = {"Effect": "Allow", "Principal": {kind: name}, "Action": list(actions or ["sts:AssumeRole"])}
    if condition:
        statement["Condition"] = condition
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})
"#;

#[test]
fn boto3_creates_changes_and_deletes_roles_and_assumes_them() {
    let simulator = Simulator::start(Options::default());
    let script = r#"
role = iam.create_role(RoleName="a", Path="/x/", AssumeRolePolicyDocument=trust("Service", "ec2.amazonaws.com"))["Role"]
assert role["Arn"] == "arn:aws:iam::123456789012:role/x/a", role
assert role["AssumeRolePolicyDocument"]["Statement"][0]["Principal"] == {"Service": "ec2.amazonaws.com"}, role
refused("EntityAlreadyExists", iam.create_role, RoleName="A", AssumeRolePolicyDocument=trust("Service", "x"))
refused("MalformedPolicyDocument", iam.create_role, RoleName="b", AssumeRolePolicyDocument="{")
refused("NoSuchEntity", iam.attach_role_policy, RoleName="a", PolicyArn="arn:aws:iam::aws:policy/Nothing")
iam.attach_role_policy(RoleName="a", PolicyArn="arn:aws:iam::aws:policy/AmazonEKSWorkerNodePolicy")
statement = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
iam.put_role_policy(RoleName="a", PolicyName="p", PolicyDocument=json.dumps({"Statement": statement}))
assert iam.get_role_policy(RoleName="a", PolicyName="p")["PolicyDocument"]["Statement"] == statement
iam.tag_role(RoleName="a", Tags=[{"Key": "k", "Value": "v"}])
assert iam.get_role(RoleName="a")["Role"]["Tags"] == [{"Key": "k", "Value": "v"}]
assert "Tags" not in iam.list_roles(PathPrefix="/x/")["Roles"][0]
iam.create_instance_profile(InstanceProfileName="i")
iam.get_waiter("instance_profile_exists").wait(InstanceProfileName="i")
iam.add_role_to_instance_profile(InstanceProfileName="i", RoleName="a")
refused("DeleteConflict", iam.delete_role, RoleName="a")
iam.detach_role_policy(RoleName="a", PolicyArn="arn:aws:iam::aws:policy/AmazonEKSWorkerNodePolicy")
refused("DeleteConflict", iam.delete_role, RoleName="a")
iam.delete_role_policy(RoleName="a", PolicyName="p")
refused("DeleteConflict", iam.delete_role, RoleName="a")
refused("DeleteConflict", iam.delete_instance_profile, InstanceProfileName="i")
iam.remove_role_from_instance_profile(InstanceProfileName="i", RoleName="a")
iam.delete_instance_profile(InstanceProfileName="i")
iam.delete_role(RoleName="a")
refused("NoSuchEntity", iam.get_role, RoleName="a")
for n in range(5):
    iam.create_role(RoleName=f"r{n}", Path="/many/", AssumeRolePolicyDocument=trust("Service", "x"))
pages = iam.get_paginator("list_roles").paginate(PathPrefix="/many/", PaginationConfig={"PageSize": 2})
assert [len(page["Roles"]) for page in pages] == [2, 2, 1]

condition = {"StringEquals": {"sts:ExternalId": "secret"}}
arn = iam.create_role(RoleName="s", AssumeRolePolicyDocument=trust("AWS", "arn:aws:iam::123456789012:root", **condition))["Role"]["Arn"]
iam.get_waiter("role_exists").wait(RoleName="s")
refused("AccessDenied", sts.assume_role, RoleArn=arn, RoleSessionName="me")
mine = dict(RoleArn=arn, RoleSessionName="me", ExternalId="secret")
refused("ValidationError", sts.assume_role, DurationSeconds=7200, **mine)
refused("AccessDenied", sts.assume_role, SerialNumber="arn:aws:iam::123456789012:mfa/me", TokenCode="000000", **mine)
made = sts.assume_role(**mine)["Credentials"]
names = dict(aws_access_key_id=made["AccessKeyId"], aws_secret_access_key=made["SecretAccessKey"], aws_session_token=made["SessionToken"])
identity = boto3.client("sts", **names).get_caller_identity()
assert identity["Arn"] == "arn:aws:sts::123456789012:assumed-role/s/me", identity

arn = iam.create_open_id_connect_provider(Url="https://issuer.example/id", ClientIDList=["sts.amazonaws.com"])["OpenIDConnectProviderArn"]
assert len(iam.get_open_id_connect_provider(OpenIDConnectProviderArn=arn)["ThumbprintList"]) == 1
equals = {"StringEquals": {"issuer.example/id:sub": "system:serviceaccount:a:b"}}
web = iam.create_role(RoleName="w", AssumeRolePolicyDocument=trust("Federated", arn, "sts:AssumeRoleWithWebIdentity", **equals))["Role"]["Arn"]
iam.get_role(RoleName="w")
def token(**claims):
    claims = {"iss": "https://issuer.example/id", "aud": "sts.amazonaws.com", "exp": 2 ** 40, **claims}
    part = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJSUzI1NiJ9.{part}.c2ln"
identity = dict(RoleArn=web, RoleSessionName="pod")
sts.assume_role_with_web_identity(WebIdentityToken=token(sub="system:serviceaccount:a:b"), **identity)
refused("AccessDenied", sts.assume_role_with_web_identity, WebIdentityToken=token(sub="system:serviceaccount:a:c"), **identity)
refused("InvalidIdentityToken", sts.assume_role_with_web_identity, WebIdentityToken=token(iss="https://other"), **identity)
refused("ExpiredTokenException", sts.assume_role_with_web_identity, WebIdentityToken=token(exp=1), **identity)
iam.delete_open_id_connect_provider(OpenIDConnectProviderArn=arn)
iam.delete_open_id_connect_provider(OpenIDConnectProviderArn=arn)

logs.create_log_group(logGroupName="/a/b", tags={"k": "v"})
refused("ResourceAlreadyExistsException", logs.create_log_group, logGroupName="/a/b")
refused("InvalidParameterException", logs.put_retention_policy, logGroupName="/a/b", retentionInDays=4)
logs.put_retention_policy(logGroupName="/a/b", retentionInDays=30)
group = logs.describe_log_groups(logGroupNamePrefix="/a/")["logGroups"][0]
assert group["retentionInDays"] == 30 and logs.list_tags_for_resource(resourceArn=group["logGroupArn"])["tags"] == {"k": "v"}
logs.delete_log_group(logGroupName="/a/b")
refused("ResourceNotFoundException", logs.delete_log_group, logGroupName="/a/b")
"#;
    boto3(&simulator, &format!("{REFUSED}{script}"));
}

#[test]
fn in_china_nodes_have_a_role_of_its_partition() {
    let simulator = Simulator::start(Options::default());
    let script = r#"
eks, ec2 = (boto3.client(name, region_name="cn-north-1") for name in ("eks", "ec2"))
vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
subnets = [ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{n}.0/24", AvailabilityZone=f"cn-north-1{zone}")["Subnet"]["SubnetId"]
           for n, zone in enumerate("ab")]
def role(name, service):
    return iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust("Service", service))["Role"]["Arn"]
control, other, own = role("c", "eks.amazonaws.com"), role("o", "ec2.amazonaws.com"), role("n", "ec2.amazonaws.com.cn")
iam.get_waiter("role_exists").wait(RoleName="n")
iam.get_role(RoleName="n")
eks.create_cluster(name="one", roleArn=control, resourcesVpcConfig={"subnetIds": subnets})
eks.get_waiter("cluster_active").wait(name="one", WaiterConfig={"Delay": 0, "MaxAttempts": 1000})
message = refused("InvalidParameterException", eks.create_nodegroup, clusterName="one", nodegroupName="g", nodeRole=other, subnets=subnets)
assert "[ec2.amazonaws.com.cn]" in message, message
eks.create_nodegroup(clusterName="one", nodegroupName="g", nodeRole=own, subnets=subnets)
"#;
    boto3(&simulator, &format!("{REFUSED}{script}"));
}

#[test]
fn boto3_waits_for_clusters_and_what_is_in_them() {
    let simulator = Simulator::start(Options::default());
    let script = r#"
AT_ONCE = {"Delay": 0, "MaxAttempts": 1000}
vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
def subnet(n, zone):
    return ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{n}.0/24", AvailabilityZone=zone)["Subnet"]["SubnetId"]
subnets = [subnet(1, "eu-west-1a"), subnet(2, "eu-west-1b")]
same = [subnets[0], subnet(3, "eu-west-1a")]
def role(name, service, *policies):
    arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust("Service", service))["Role"]["Arn"]
    for policy in policies:
        iam.attach_role_policy(RoleName=name, PolicyArn=f"arn:aws:iam::aws:policy/{policy}")
    iam.get_role(RoleName=name)
    return arn
control, nodes = role("c", "eks.amazonaws.com"), role("n", "ec2.amazonaws.com", "AmazonEKSWorkerNodePolicy")
new = dict(name="one", roleArn=control, resourcesVpcConfig={"subnetIds": subnets}, version="1.33",
           accessConfig={"authenticationMode": "API", "bootstrapClusterCreatorAdminPermissions": False}, clientRequestToken="t1")
def wrong(**other):
    return {**new, "clientRequestToken": "t2", "name": "two", **other}
refused("InvalidParameterException", eks.create_cluster, **wrong(roleArn=nodes))
refused("InvalidParameterException", eks.create_cluster, **wrong(version="9.99"))
refused("InvalidParameterException", eks.create_cluster, **wrong(resourcesVpcConfig={"subnetIds": same}))
refused("InvalidParameterException", eks.create_cluster, **wrong(resourcesVpcConfig={"subnetIds": ["subnet-0", subnets[0]]}))
one = eks.create_cluster(**new)["cluster"]
assert one["status"] == "CREATING" and "endpoint" not in one, one
assert eks.create_cluster(**new)["cluster"]["arn"] == one["arn"]
refused("InvalidParameterException", eks.create_cluster, **{**new, "version": "1.34"})
refused("ResourceInUseException", eks.create_cluster, **{**new, "clientRequestToken": "t3"})
eks.get_waiter("cluster_active").wait(name="one", WaiterConfig=AT_ONCE)
one = eks.describe_cluster(name="one")["cluster"]
assert base64.b64decode(one["certificateAuthority"]["data"]).startswith(b"-----BEGIN"), one
assert not eks.list_access_entries(clusterName="one")["accessEntries"]
refused("DependencyViolation", ec2.delete_subnet, SubnetId=subnets[0])

both = {"endpointPrivateAccess": True, "subnetIds": subnets}
refused("InvalidParameterException", eks.update_cluster_config, name="one", resourcesVpcConfig=both)
refused("InvalidParameterException", eks.update_cluster_config, name="one", deletionProtection=False)
refused("InvalidParameterException", eks.update_cluster_version, name="one", version="1.35")
update = eks.update_cluster_version(name="one", version="1.34")["update"]
assert update["status"] == "InProgress", update
refused("ResourceInUseException", eks.update_cluster_config, name="one", deletionProtection=True)
eks.get_waiter("cluster_active").wait(name="one", WaiterConfig=AT_ONCE)
assert eks.describe_update(name="one", updateId=update["id"])["update"]["status"] == "Successful"
assert eks.describe_cluster(name="one")["cluster"]["version"] == "1.34"

group = dict(clusterName="one", nodegroupName="g", nodeRole=nodes, subnets=subnets, instanceTypes=["m7i.xlarge"],
             scalingConfig={"minSize": 1, "maxSize": 3, "desiredSize": 2})
refused("InvalidParameterException", eks.create_nodegroup, **{**group, "instanceTypes": ["x9.huge"]})
refused("InvalidParameterException", eks.create_nodegroup, **{**group, "nodeRole": control})
refused("InvalidParameterException", eks.create_nodegroup, **{**group, "version": "1.35"})
refused("InvalidParameterException", eks.create_nodegroup, **{**group, "scalingConfig": {"minSize": 3, "maxSize": 3, "desiredSize": 2}})
eks.create_nodegroup(**{**group, "nodegroupName": "alone"})
try:
    eks.get_waiter("nodegroup_active").wait(clusterName="one", nodegroupName="alone", WaiterConfig=AT_ONCE)
    raise AssertionError("nodes without a network are ready")
except botocore.exceptions.WaiterError as error:
    issues = error.last_response["nodegroup"]["health"]["issues"]
    assert issues[0]["code"] == "NodeCreationFailure", issues
eks.create_addon(clusterName="one", addonName="vpc-cni")
eks.get_waiter("addon_active").wait(clusterName="one", addonName="vpc-cni", WaiterConfig=AT_ONCE)
eks.create_addon(clusterName="one", addonName="coredns", addonVersion="v1.12.4-eksbuild.1")
refused("InvalidParameterException", eks.create_addon, clusterName="one", addonName="kube-proxy", addonVersion="v1.33.5-eksbuild.2")
eks.create_nodegroup(**group)
eks.get_waiter("nodegroup_active").wait(clusterName="one", nodegroupName="g", WaiterConfig=AT_ONCE)
eks.get_waiter("addon_active").wait(clusterName="one", addonName="coredns", WaiterConfig=AT_ONCE)
assert eks.list_access_entries(clusterName="one")["accessEntries"] == [nodes]
update = eks.update_nodegroup_config(clusterName="one", nodegroupName="g", labels={"addOrUpdateLabels": {"a": "b"}})["update"]
refused("ResourceInUseException", eks.update_nodegroup_config, clusterName="one", nodegroupName="g", labels={"addOrUpdateLabels": {"a": "c"}})
eks.get_waiter("nodegroup_active").wait(clusterName="one", nodegroupName="g", WaiterConfig=AT_ONCE)
assert eks.describe_update(name="one", nodegroupName="g", updateId=update["id"])["update"]["status"] == "Successful"
assert eks.describe_nodegroup(clusterName="one", nodegroupName="g")["nodegroup"]["labels"] == {"a": "b"}

def images(*owners):
    names = [{"Name": "name", "Values": ["amazon-eks-node-al2023-x86_64-standard-1.34-v*"]}]
    return sorted(image["Name"] for image in ec2.describe_images(Owners=list(owners), Filters=names)["Images"])
assert not images("self")
older, newest = (name.rsplit("-v")[-1] for name in images("amazon")[-2:])
def release():
    return eks.describe_nodegroup(clusterName="one", nodegroupName="g")["nodegroup"]["releaseVersion"]
assert release() == f"1.34.1-{newest}", release()
nodes_of = dict(clusterName="one", nodegroupName="g", version="1.34")
message = refused("InvalidParameterException", eks.update_nodegroup_version, releaseVersion=f"1.33.1-{newest}", **nodes_of)
assert message == f"Requested release version 1.33.1-{newest} is not valid for kubernetes version 1.34.", message
refused("InvalidParameterException", eks.update_nodegroup_version, releaseVersion=f"1.34.1-{older}", **nodes_of)
update = eks.update_nodegroup_version(**nodes_of)["update"]
refused("ResourceInUseException", eks.update_nodegroup_version, **nodes_of)
eks.get_waiter("nodegroup_active").wait(clusterName="one", nodegroupName="g", WaiterConfig=AT_ONCE)
assert eks.describe_update(name="one", nodegroupName="g", updateId=update["id"])["update"]["status"] == "Successful"

me = sts.get_caller_identity()["Arn"]
eks.create_access_entry(clusterName="one", principalArn=me)
admin = "arn:aws:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy"
eks.associate_access_policy(clusterName="one", principalArn=me, policyArn=admin, accessScope={"type": "cluster"})
found = eks.list_associated_access_policies(clusterName="one", principalArn=me)["associatedAccessPolicies"]
assert [policy["policyArn"] for policy in found] == [admin], found
refused("InvalidParameterException", eks.create_pod_identity_association, clusterName="one", namespace="a", serviceAccount="b", roleArn=nodes)

refused("ResourceInUseException", eks.delete_cluster, name="one")
for name in ("g", "alone"):
    eks.delete_nodegroup(clusterName="one", nodegroupName=name)
    eks.get_waiter("nodegroup_deleted").wait(clusterName="one", nodegroupName=name, WaiterConfig=AT_ONCE)
eks.delete_cluster(name="one")
eks.get_waiter("cluster_deleted").wait(name="one", WaiterConfig=AT_ONCE)
for one in subnets:
    ec2.delete_subnet(SubnetId=one)
"#;
    boto3(&simulator, &format!("{REFUSED}{script}"));
}
