//! Cloud Storage, by Google's own client over gRPC.

use serde_json::Value;
use textnlp_sim::gcp::{GoogleCloud, Options};
use textnlp_sim::{Disruption, Rule};

use crate::clients::python;

const TOOLS: &str = r#"
import os, grpc
from google.api_core import exceptions
from google.cloud import _storage_v2 as storage
from google.cloud import storage_control_v2 as control
from google.cloud._storage_v2.services.storage.transports import StorageGrpcTransport
from google.cloud.storage_control_v2.services.storage_control.transports import StorageControlGrpcTransport
from google.iam.v1 import iam_policy_pb2, policy_pb2
from google.protobuf import field_mask_pb2
class Token(grpc.UnaryUnaryClientInterceptor):
    def intercept_unary_unary(self, continuation, details, request):
        metadata = list(details.metadata or []) + [("authorization", "Bearer " + os.environ["TOKEN"])]
        return continuation(details._replace(metadata=metadata), request)
authority = os.environ["CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE"].removeprefix("http://").rstrip("/")
channel = grpc.intercept_channel(grpc.insecure_channel(authority), Token())
buckets = storage.StorageClient(transport=StorageGrpcTransport(channel=channel))
policies = control.StorageControlClient(transport=StorageControlGrpcTransport(channel=channel))
PROJECT = "projects/" + os.environ["GOOGLE_CLOUD_PROJECT"]
def create(name, **bucket):
    bucket = storage.Bucket(project=PROJECT, **bucket)
    return buckets.create_bucket(request={"parent": "projects/_", "bucket": bucket, "bucket_id": name}, retry=None)
def refused(error, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except error as found:
        return found.message
    raise AssertionError(f"{error} was not raised")
"#;

fn run(cloud: &GoogleCloud, script: &str) {
    python(cloud, &format!("{TOOLS}{script}"));
}

#[test]
fn a_bucket_has_defaults_and_is_changed_by_masks() {
    let cloud = GoogleCloud::start(Options::zero_latency());
    run(
        &cloud,
        r#"
made = create("models", location="europe-west4", labels={"a": "b"})
assert (made.name, made.location, made.location_type) == ("projects/_/buckets/models", "EUROPE-WEST4", "region"), made
assert made.storage_class == "STANDARD" and made.metageneration == 1, made
assert made.soft_delete_policy.retention_duration.total_seconds() == 604800, made
assert buckets.get_bucket(name=made.name) == made
assert [one.bucket_id for one in buckets.list_buckets(parent=PROJECT)] == ["models"]
mask = field_mask_pb2.FieldMask(paths=["labels", "versioning"])
changed = storage.Bucket(name=made.name, labels={"a": "c"}, versioning={"enabled": True})
after = buckets.update_bucket(request={"bucket": changed, "update_mask": mask, "if_metageneration_match": 1})
assert after.labels == {"a": "c"} and after.versioning.enabled and after.metageneration == 2, after
stale = {"bucket": changed, "update_mask": mask, "if_metageneration_match": 1}
refused(exceptions.FailedPrecondition, buckets.update_bucket, request=stale)
refused(exceptions.InvalidArgument, buckets.update_bucket, request={"bucket": changed})
refused(exceptions.AlreadyExists, create, "models")
refused(exceptions.InvalidArgument, create, "Models")
refused(exceptions.InvalidArgument, create, "other", soft_delete_policy={"retention_duration": {"seconds": 60}})
off = create("other", soft_delete_policy={"retention_duration": {"seconds": 0}})
assert off.soft_delete_policy.retention_duration.total_seconds() == 0, off
"#,
    );
}

#[test]
fn a_bucket_in_two_regions_has_a_location_a_replication_and_a_key_that_fit() {
    let cloud = GoogleCloud::start(Options::zero_latency());
    run(
        &cloud,
        r#"
def place(*regions):
    return {"data_locations": list(regions)}
key = "projects/p/locations/%s/keyRings/r/cryptoKeys/k"
two = place("EUROPE-WEST1", "EUROPE-WEST4")
made = create("models", location="eu", custom_placement_config=two, rpo="ASYNC_TURBO", encryption={"default_kms_key": key % "europe"})
assert (made.location, made.location_type, made.rpo) == ("EU", "dual-region", "ASYNC_TURBO"), made
pair = create("pair", location="eur4", rpo="ASYNC_TURBO", encryption={"default_kms_key": key % "eur4"})
assert (pair.location, pair.location_type, pair.rpo) == ("EUR4", "dual-region", "ASYNC_TURBO"), pair
assert not pair.custom_placement_config.data_locations, pair
refused(exceptions.InvalidArgument, create, "other", location="eur4", encryption={"default_kms_key": key % "europe"})
assert create("default", location="us").rpo == "DEFAULT" and create("one", location="us-east1").rpo == ""
for location, placement in [("EU", place("EUROPE-WEST1")), ("EU", place("EUROPE-WEST1", "EUROPE-WEST1")), ("EU", place("EUROPE-WEST1", "US-EAST1")),
                            ("EU", place("EUROPE-WEST1", "EUROPE-WEST2")), ("EU", place("EUROPE-NORTH1", "EUROPE-WEST4")),
                            ("EU", place("EUROPE-WEST10", "EUROPE-WEST3")), ("US", place("US-CENTRAL1", "US-EAST1")),
                            ("ASIA", place("ASIA-EAST1", "ASIA-NORTHEAST1")), ("EUROPE-WEST1", two)]:
    refused(exceptions.InvalidArgument, create, "other", location=location, custom_placement_config=placement)
for location in ["eu", "europe-west1"]:
    refused(exceptions.InvalidArgument, create, "other", location=location, rpo="ASYNC_TURBO")
    refused(exceptions.InvalidArgument, create, "other", location=location, encryption={"default_kms_key": key % "us"})
def update(mask, **bucket):
    return buckets.update_bucket(request={"bucket": storage.Bucket(name=made.name, **bucket), "update_mask": field_mask_pb2.FieldMask(paths=[mask])})
assert update("rpo", rpo="DEFAULT").rpo == "DEFAULT"
refused(exceptions.InvalidArgument, update, "custom_placement_config", custom_placement_config=place("EUROPE-WEST1", "EUROPE-WEST3"))
refused(exceptions.InvalidArgument, update, "encryption", encryption={"default_kms_key": key % "europe-west1"})
"#,
    );
}

#[test]
fn a_bucket_with_objects_stays_and_names_are_shared() {
    let cloud = GoogleCloud::start(Options::default());
    {
        let mut world = cloud.world();
        world.conduct.bucket_hold = 60..61;
        world.foreign_buckets.insert("taken".to_owned());
        world.put_blob("models", "a/weights", 5);
    }
    run(
        &cloud,
        r#"
refused(exceptions.AlreadyExists, create, "taken")
refused(exceptions.PermissionDenied, buckets.get_bucket, name="projects/_/buckets/taken")
name = create("models").name
assert "not empty" in refused(exceptions.FailedPrecondition, buckets.delete_bucket, name=name)
[one] = buckets.list_objects(parent=name)
assert (one.name, one.size) == ("a/weights", 5), one
assert buckets.get_object(bucket=name, object_="a/weights").size == 5
buckets.delete_object(bucket=name, object_="a/weights")
buckets.delete_bucket(name=name)
refused(exceptions.NotFound, buckets.get_bucket, name=name)
refused(exceptions.AlreadyExists, create, "models")
"#,
    );
    cloud.advance(std::time::Duration::from_secs(60));
    run(&cloud, "create('models')\n");
}

#[test]
fn policies_of_buckets_have_etags() {
    let cloud = GoogleCloud::start(Options::zero_latency());
    run(
        &cloud,
        r#"
name = create("models").name
policy = policies.get_iam_policy(request=iam_policy_pb2.GetIamPolicyRequest(resource=name))
policy.bindings.append(policy_pb2.Binding(role="roles/storage.objectViewer", members=["user:a@example.com"]))
policies.set_iam_policy(request=iam_policy_pb2.SetIamPolicyRequest(resource=name, policy=policy))
refused(exceptions.Aborted, policies.set_iam_policy, request=iam_policy_pb2.SetIamPolicyRequest(resource=name, policy=policy))
read = policies.get_iam_policy(request=iam_policy_pb2.GetIamPolicyRequest(resource=name))
assert [one.role for one in read.bindings] == ["roles/storage.objectViewer"], read
asked = iam_policy_pb2.TestIamPermissionsRequest(resource=name, permissions=["storage.objects.get"])
assert list(policies.test_iam_permissions(request=asked).permissions) == ["storage.objects.get"]
"#,
    );
}

#[test]
fn faults_constraints_and_tokens_are_those_of_the_other_services() {
    let cloud = GoogleCloud::start(Options::zero_latency());
    let project = cloud.project().to_owned();
    cloud.world().enforce(&project, "storage.uniformBucketLevelAccess");
    cloud.faults().add(Rule::nth("storage", "google.storage.v2.Storage.GetBucket", 1, Disruption::Unavailable));
    run(
        &cloud,
        r#"
assert "uniformBucketLevelAccess" in refused(exceptions.FailedPrecondition, create, "models")
name = create("models", iam_config={"uniform_bucket_level_access": {"enabled": True}}).name
refused(exceptions.ServiceUnavailable, buckets.get_bucket, name=name, retry=None)
buckets.get_bucket(name=name)
os.environ["TOKEN"] = "x"
refused(exceptions.Unauthenticated, buckets.get_bucket, name=name)
"#,
    );
    let requests = cloud.requests();
    assert!(
        requests.iter().any(|one| one.operation == "google.storage.v2.Storage.CreateBucket" && one.account == project)
    );
}

/// The tables of messages are held against the descriptors of Google's own packages.
#[test]
fn messages_have_the_fields_of_the_descriptors() {
    let cloud = GoogleCloud::start(Options::zero_latency());
    let script = r#"
import json
from google.cloud import _storage_v2 as storage
from google.iam.v1 import iam_policy_pb2, policy_pb2
def fields(descriptor, depth=0):
    return {field.name.rstrip("_"): [field.number, fields(field.message_type, depth + 1) if field.message_type and depth < 5 and not field.message_type.GetOptions().map_entry and not field.message_type.full_name.startswith("google.protobuf.") else None] for field in descriptor.fields}
names = ["CreateBucketRequest", "GetBucketRequest", "ListBucketsRequest", "ListBucketsResponse", "UpdateBucketRequest", "DeleteBucketRequest",
         "ListObjectsRequest", "ListObjectsResponse", "GetObjectRequest", "DeleteObjectRequest", "Bucket", "Object"]
all = {name: fields(getattr(storage, name).pb().DESCRIPTOR) for name in names}
for name in ["GetIamPolicyRequest", "SetIamPolicyRequest", "TestIamPermissionsRequest", "TestIamPermissionsResponse"]:
    all[name] = fields(getattr(iam_policy_pb2, name).DESCRIPTOR)
all["Policy"] = fields(policy_pb2.Policy.DESCRIPTOR)
print(json.dumps(all))
"#;
    let known: Value = serde_json::from_str(&python(&cloud, script)).unwrap();
    let mut wrong = Vec::new();
    for (message, fields) in textnlp_sim::gcp::storage_messages().as_object().unwrap() {
        compare(message, fields, &known[message.as_str()], &mut wrong);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn compare(path: &str, ours: &Value, theirs: &Value, wrong: &mut Vec<String>) {
    for (name, field) in ours.as_object().unwrap() {
        let other = &theirs[name.as_str()];
        if field[0] != other[0] {
            wrong.push(format!("{path}.{name}: {} is {other}", field[0]));
        } else if field[1].is_object() && other[1].is_object() {
            compare(&format!("{path}.{name}"), &field[1], &other[1], wrong);
        }
    }
}
