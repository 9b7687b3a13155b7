//! Keys, buckets, repositories, databases, caches and secrets, driven by boto3 with its waiters and paginators.

use textnlp_sim::{Options, Simulator};

use crate::boto3;

#[test]
fn kms_keys_and_aliases() {
    let simulator = Simulator::start(Options::default());
    let script = r#"
import boto3
from botocore.exceptions import ClientError
kms = boto3.client("kms")
key = kms.create_key(Description="a", Tags=[{"TagKey": "a", "TagValue": "b"}])["KeyMetadata"]
id = key["KeyId"]
kms.create_alias(AliasName="alias/mine", TargetKeyId=id)
assert kms.describe_key(KeyId="alias/mine")["KeyMetadata"]["Arn"] == key["Arn"]
kms.enable_key_rotation(KeyId=id, RotationPeriodInDays=90)
assert kms.get_key_rotation_status(KeyId=id)["RotationPeriodInDays"] == 90
try:
    kms.schedule_key_deletion(KeyId=id, PendingWindowInDays=3)
    assert False
except ClientError as e:
    assert e.response["Error"]["Code"] == "ValidationException", e
kms.schedule_key_deletion(KeyId=id, PendingWindowInDays=7)
try:
    kms.put_key_policy(KeyId=id, PolicyName="default", Policy=kms.get_key_policy(KeyId=id)["Policy"])
    assert False
except kms.exceptions.KMSInvalidStateException:
    pass
pages = kms.get_paginator("list_aliases").paginate(PaginationConfig={"PageSize": 1})
assert [a["AliasName"] for p in pages for a in p["Aliases"]] == ["alias/mine"]
"#;
    boto3(&simulator, script);
}

#[test]
fn s3_buckets_versions_and_conditions() {
    let simulator = Simulator::start(Options::default());
    let script = r#"
import boto3, json
from botocore.config import Config
from botocore.exceptions import ClientError
s3 = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
def code(call, **arguments):
    try:
        call(**arguments)
    except ClientError as e:
        return e.response["Error"]["Code"]
    return None
place = {"LocationConstraint": "eu-west-1"}
assert code(s3.create_bucket, Bucket="a_b", CreateBucketConfiguration=place) == "InvalidBucketName"
assert code(s3.create_bucket, Bucket="mine") == "IllegalLocationConstraintException"
s3.create_bucket(Bucket="mine", CreateBucketConfiguration=place)
assert code(s3.create_bucket, Bucket="mine", CreateBucketConfiguration=place) == "BucketAlreadyOwnedByYou"
s3.get_waiter("bucket_exists").wait(Bucket="mine")
assert code(s3.head_bucket, Bucket="other") == "404"
assert code(s3.head_bucket, Bucket="mine", ExpectedBucketOwner="210987654321") == "403"
rule = {"ID": "a", "Status": "Enabled", "Filter": {"Prefix": ""}}
rare = {**rule, "Transitions": [{"Days": 3, "StorageClass": "STANDARD_IA"}]}
assert code(s3.put_bucket_lifecycle_configuration, Bucket="mine", LifecycleConfiguration={"Rules": [rare]}) == "InvalidArgument"
everybody = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::mine/*"}
assert code(s3.put_bucket_policy, Bucket="mine", Policy=json.dumps({"Statement": [everybody]})) == "AccessDenied"
replication = {"Role": "arn:aws:iam::123456789012:role/r", "Rules": [{"Status": "Enabled", "Prefix": "", "Destination": {"Bucket": "arn:aws:s3:::mine"}}]}
assert code(s3.put_bucket_replication, Bucket="mine", ReplicationConfiguration=replication) == "InvalidRequest"
s3.put_bucket_versioning(Bucket="mine", VersioningConfiguration={"Status": "Enabled"})
first = s3.put_object(Bucket="mine", Key="k", Body=b"one", IfNoneMatch="*")
assert code(s3.put_object, Bucket="mine", Key="k", Body=b"two", IfNoneMatch="*") == "PreconditionFailed"
assert code(s3.put_object, Bucket="mine", Key="k", Body=b"two", IfMatch='"x"') == "PreconditionFailed"
s3.put_object(Bucket="mine", Key="k", Body=b"two", IfMatch=first["ETag"])
assert s3.get_object(Bucket="mine", Key="k")["Body"].read() == b"two"
s3.put_object(Bucket="mine", Key="l", Body=b"")
pages = s3.get_paginator("list_objects_v2").paginate(Bucket="mine", PaginationConfig={"PageSize": 1})
assert [(o["Key"], o["Size"]) for p in pages for o in p["Contents"]] == [("k", 3), ("l", 0)]
assert s3.list_objects_v2(Bucket="mine", Prefix="m")["KeyCount"] == 0
assert s3.get_object(Bucket="mine", Key="k", VersionId=first["VersionId"])["Body"].read() == b"one"
s3.delete_object(Bucket="mine", Key="k")
assert code(s3.get_object, Bucket="mine", Key="k") == "NoSuchKey"
assert code(s3.delete_bucket, Bucket="mine") == "BucketNotEmpty"
pages = s3.get_paginator("list_object_versions").paginate(Bucket="mine", PaginationConfig={"PageSize": 1})
all = [(v["Key"], v["VersionId"]) for p in pages for v in p.get("Versions", []) + p.get("DeleteMarkers", [])]
assert len(all) == 4, all
s3.delete_objects(Bucket="mine", Delete={"Objects": [{"Key": k, "VersionId": v} for k, v in all]})
s3.delete_bucket(Bucket="mine")
s3.get_waiter("bucket_not_exists").wait(Bucket="mine")
"#;
    boto3(&simulator, script);
}

#[test]
fn ecr_repositories_keep_pushed_tags() {
    let simulator = Simulator::start(Options::default());
    let script = r#"
import boto3
ecr = boto3.client("ecr")
ecr.create_repository(repositoryName="a/b", imageTagMutability="IMMUTABLE", tags=[{"Key": "team", "Value": "nlp"}])
ecr.put_image(repositoryName="a/b", imageManifest="{}", imageTag="1")
try:
    ecr.put_image(repositoryName="a/b", imageManifest="{ }", imageTag="1")
    assert False
except ecr.exceptions.ImageTagAlreadyExistsException:
    pass
try:
    ecr.delete_repository(repositoryName="a/b")
    assert False
except ecr.exceptions.RepositoryNotEmptyException:
    pass
tagging = boto3.client("resourcegroupstaggingapi")
found = []
while not found:
    pages = tagging.get_paginator("get_resources").paginate(TagFilters=[{"Key": "team", "Values": ["nlp"]}], ResourceTypeFilters=["ecr:repository"])
    found = [r["ResourceARN"] for p in pages for r in p["ResourceTagMappingList"]]
assert found[0].endswith(":repository/a/b"), found
import base64, hashlib, json, urllib.error, urllib.request
data = ecr.get_authorization_token()["authorizationData"][0]
assert base64.b64decode(data["authorizationToken"]).startswith(b"AWS:") and data["expiresAt"], data
def registry(method, path, body=None, token=data["authorizationToken"], **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(data["proxyEndpoint"] + path, body, headers, method=method)
    if token:
        request.add_header("Authorization", "Basic " + token)
    try:
        answer = urllib.request.urlopen(request)
        return answer.status, answer.headers.get("location"), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("www-authenticate"), json.loads(error.read() or b"null")
def digest(body):
    return "sha256:" + hashlib.sha256(body).hexdigest()
status, challenge, _ = registry("HEAD", "/v2/a/b/blobs/" + digest(b"x"), token=None)
assert status == 401 and challenge.startswith("Basic "), (status, challenge)
assert registry("HEAD", "/v2/a/b/blobs/" + digest(b"x"), token=base64.b64encode(b"AWS:guess").decode())[0] == 401
assert registry("HEAD", "/v2/a/b/blobs/" + digest(b"x"))[0] == 404
assert registry("POST", "/v2/a/c/blobs/uploads/")[2]["errors"][0]["code"] == "NAME_UNKNOWN"
status, at, _ = registry("POST", "/v2/a/b/blobs/uploads/")
assert status == 202, status
assert registry("PUT", at + "&digest=" + digest(b"y"), b"x")[2]["errors"][0]["code"] == "DIGEST_INVALID"
manifest = json.dumps({"config": {"digest": digest(b"x")}, "layers": []}).encode()
kind = dict(content_type="application/vnd.oci.image.manifest.v1+json")
assert registry("PUT", "/v2/a/b/manifests/2", manifest, **kind)[2]["errors"][0]["code"] == "MANIFEST_BLOB_UNKNOWN"
assert registry("PUT", at + "&digest=" + digest(b"x"), b"x")[0] == 201
assert registry("HEAD", "/v2/a/b/blobs/" + digest(b"x"))[0] == 200
assert registry("PUT", "/v2/a/b/manifests/2", manifest, **kind)[0] == 201
assert registry("PUT", "/v2/a/b/manifests/2", manifest + b" ", **kind)[2]["errors"][0]["code"] == "TAG_INVALID"
assert registry("GET", "/v2/a/b/manifests/2")[2] == manifest
pages = ecr.get_paginator("list_images").paginate(repositoryName="a/b", filter={"tagStatus": "TAGGED"}, PaginationConfig={"PageSize": 1})
images = {image["imageTag"]: image["imageDigest"] for page in pages for image in page["imageIds"]}
assert images["2"] == digest(manifest) and len(images) == 2, images
ecr.delete_repository(repositoryName="a/b", force=True)
"#;
    boto3(&simulator, script);
}

#[test]
fn rds_servers_replicas_and_snapshots() {
    let simulator = Simulator::start(Options::default());
    let mut world = simulator.world();
    let now = world.now();
    for subnet in ["subnet-0a", "subnet-0b"] {
        let arn = format!("arn:aws:ec2:eu-west-1:123456789012:subnet/{subnet}");
        world.tags.set(&arn, [("a".to_owned(), "b".to_owned())], now);
    }
    drop(world);
    let script = r#"
import boto3
from botocore.exceptions import ClientError
rds = boto3.client("rds")
def code(call, **arguments):
    try:
        call(**arguments)
    except ClientError as e:
        return e.response["Error"]["Code"]
    return None
wait = {"Delay": 0, "MaxAttempts": 1000}
group = {"DBSubnetGroupName": "g", "DBSubnetGroupDescription": "g"}
assert code(rds.create_db_subnet_group, **group, SubnetIds=["subnet-0a"]) == "DBSubnetGroupDoesNotCoverEnoughAZs"
assert code(rds.create_db_subnet_group, **group, SubnetIds=["subnet-0a", "subnet-0x"]) == "InvalidSubnet"
rds.create_db_subnet_group(**group, SubnetIds=["subnet-0a", "subnet-0b"])
server = dict(DBInstanceIdentifier="one", Engine="postgres", DBInstanceClass="db.t4g.medium", AllocatedStorage=20, StorageType="gp3",
    MasterUsername="me", MasterUserPassword="long-enough-1", DBSubnetGroupName="g", BackupRetentionPeriod=1)
assert code(rds.create_db_instance, **{**server, "MasterUserPassword": "short"}) == "InvalidParameterValue"
assert code(rds.create_db_instance, **{**server, "EngineVersion": "9.99"}) == "InvalidParameterCombination"
assert code(rds.create_db_instance, **{**server, "DBInstanceIdentifier": "a--b"}) == "InvalidParameterValue"
for window in ("sun:03:00-sun:03:20", "sun:03:10-sun:07:00", "sun:05:00-mon:05:00", "sunday"):
    assert code(rds.create_db_instance, **{**server, "PreferredMaintenanceWindow": window}) == "InvalidParameterValue", window
assert rds.create_db_instance(**server)["DBInstance"]["DBInstanceStatus"] == "creating"
assert code(rds.modify_db_instance, DBInstanceIdentifier="one", AllocatedStorage=40) == "InvalidDBInstanceState"
rds.get_waiter("db_instance_available").wait(DBInstanceIdentifier="one", WaiterConfig=wait)
rds.create_db_instance_read_replica(DBInstanceIdentifier="two", SourceDBInstanceIdentifier="one", DBInstanceClass="db.t4g.medium")
rds.get_waiter("db_instance_available").wait(DBInstanceIdentifier="two", WaiterConfig=wait)
rds.promote_read_replica(DBInstanceIdentifier="two", BackupRetentionPeriod=1)
one = lambda id: rds.describe_db_instances(DBInstanceIdentifier=id)["DBInstances"][0]
while one("two").get("ReadReplicaSourceDBInstanceIdentifier"):
    pass
rds.get_waiter("db_instance_available").wait(DBInstanceIdentifier="two", WaiterConfig=wait)
assert not one("one").get("ReadReplicaDBInstanceIdentifiers")
assert code(rds.delete_db_subnet_group, DBSubnetGroupName="g") == "InvalidDBSubnetGroupStateFault"
assert code(rds.delete_db_instance, DBInstanceIdentifier="one") == "InvalidParameterCombination"
rds.modify_db_instance(DBInstanceIdentifier="one", DeletionProtection=True)
assert code(rds.modify_db_instance, DBInstanceIdentifier="one", PreferredMaintenanceWindow="sun:23:30-mon:03:30") == "InvalidParameterValue"
rds.modify_db_instance(DBInstanceIdentifier="one", PreferredMaintenanceWindow="Sun:22:30-Mon:02:30")
assert rds.describe_db_instances(DBInstanceIdentifier="one")["DBInstances"][0]["PreferredMaintenanceWindow"] == "sun:22:30-mon:02:30"
assert code(rds.delete_db_instance, DBInstanceIdentifier="one", SkipFinalSnapshot=True) == "InvalidParameterCombination"
rds.modify_db_instance(DBInstanceIdentifier="one", DeletionProtection=False)
rds.delete_db_instance(DBInstanceIdentifier="one", FinalDBSnapshotIdentifier="last")
assert code(rds.delete_db_instance, DBInstanceIdentifier="two", FinalDBSnapshotIdentifier="last") == "DBSnapshotAlreadyExists"
rds.delete_db_instance(DBInstanceIdentifier="two", SkipFinalSnapshot=True)
for id in ["one", "two"]:
    rds.get_waiter("db_instance_deleted").wait(DBInstanceIdentifier=id, WaiterConfig=wait)
rds.delete_db_subnet_group(DBSubnetGroupName="g")
"#;
    boto3(&simulator, script);
}

#[test]
fn elasticache_groups_need_a_replica_for_failover() {
    let simulator = Simulator::start(Options::default());
    let mut world = simulator.world();
    let now = world.now();
    world.tags.set("arn:aws:ec2:eu-west-1:123456789012:subnet/subnet-0a", [("a".to_owned(), "b".to_owned())], now);
    drop(world);
    let script = r#"
import boto3
from botocore.exceptions import ClientError
cache = boto3.client("elasticache")
cache.create_cache_subnet_group(CacheSubnetGroupName="g", CacheSubnetGroupDescription="g", SubnetIds=["subnet-0a"])
group = dict(ReplicationGroupId="one", ReplicationGroupDescription="one", CacheNodeType="cache.t4g.small", CacheSubnetGroupName="g",
    Engine="valkey", TransitEncryptionEnabled=True, AuthToken="a-token-of-sixteen")
def code(call, **arguments):
    try:
        call(**arguments)
    except ClientError as e:
        return e.response["Error"]["Code"]
    return None
assert code(cache.create_replication_group, **group, AutomaticFailoverEnabled=True, NumCacheClusters=1) == "InvalidParameterCombination"
assert code(cache.create_replication_group, **{**group, "AuthToken": "short"}) == "InvalidParameterValue"
cache.create_replication_group(**group, NumCacheClusters=2)
assert code(cache.delete_cache_subnet_group, CacheSubnetGroupName="g") == "CacheSubnetGroupInUse"
assert code(cache.modify_replication_group, ReplicationGroupId="one", SnapshotRetentionLimit=1) == "InvalidReplicationGroupState"
wait = {"Delay": 0, "MaxAttempts": 1000}
cache.get_waiter("replication_group_available").wait(ReplicationGroupId="one", WaiterConfig=wait)
assert cache.describe_replication_groups()["ReplicationGroups"][0]["NodeGroups"][0]["PrimaryEndpoint"]["Port"] == 6379
cache.delete_replication_group(ReplicationGroupId="one")
cache.get_waiter("replication_group_deleted").wait(ReplicationGroupId="one", WaiterConfig=wait)
cache.delete_cache_subnet_group(CacheSubnetGroupName="g")
"#;
    boto3(&simulator, script);
}

#[test]
fn secretsmanager_tokens_are_versions() {
    let simulator = Simulator::start(Options::default());
    let script = r#"
import boto3
sm = boto3.client("secretsmanager")
token = "0" * 32
first = sm.create_secret(Name="a/b", SecretString="one", ClientRequestToken=token)
assert sm.create_secret(Name="a/b", SecretString="one", ClientRequestToken=token)["ARN"] == first["ARN"]
try:
    sm.create_secret(Name="a/b", SecretString="two", ClientRequestToken=token)
    assert False
except sm.exceptions.ResourceExistsException:
    pass
sm.put_secret_value(SecretId="a/b", SecretString="two", ClientRequestToken="1" * 32)
assert sm.get_secret_value(SecretId=first["ARN"])["SecretString"] == "two"
assert sm.describe_secret(SecretId="a/b")["VersionIdsToStages"] == {token: ["AWSPREVIOUS"], "1" * 32: ["AWSCURRENT"]}
sm.delete_secret(SecretId="a/b", RecoveryWindowInDays=7)
try:
    sm.create_secret(Name="a/b", SecretString="three")
    assert False
except sm.exceptions.InvalidRequestException:
    pass
sm.restore_secret(SecretId="a/b")
sm.delete_secret(SecretId="a/b", ForceDeleteWithoutRecovery=True)
sm.create_secret(Name="a/b", SecretString="three")
"#;
    boto3(&simulator, script);
}
