//! Endpoints of SageMaker, driven by boto3 with its waiters.

use textnlp_sim::aws::sagemaker::SageMaker;
use textnlp_sim::{Options, Scope, Simulator};

use crate::boto3;

#[test]
fn an_endpoint_is_created_updated_scaled_and_deleted() {
    let simulator = Simulator::start(Options::default());
    let scope = Scope::new("123456789012", "eu-west-1");
    let echo = |container: &textnlp_sim::aws::sagemaker::Container, body: &[u8]| match body {
        b"{}" => (400, b"empty".to_vec()),
        body => (200, [container.image.as_bytes(), body].concat()),
    };
    simulator.world().state::<SageMaker>(&scope).containers = Some(Box::new(echo));
    let script = r#"
import boto3, json
from botocore.exceptions import ClientError
iam, sm, scaling = boto3.client("iam"), boto3.client("sagemaker"), boto3.client("application-autoscaling")
def refused(call, **arguments):
    try:
        call(**arguments)
    except ClientError as e:
        return e.response["Error"]["Code"] + ": " + e.response["Error"]["Message"]
    raise AssertionError("it is not refused")
def model(name, role):
    sm.create_model(ModelName=name, ExecutionRoleArn=role, PrimaryContainer={"Image": "registry.example/a@sha256:1"})
trust = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "sagemaker.amazonaws.com"}}}
role = iam.create_role(RoleName="endpoint", AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
# IAM shows the role to other services later.
assert "Could not assume role" in refused(model, name="first", role=role)
for _ in range(3):
    iam.get_role(RoleName="endpoint")
model("first", role)
assert "already existing model" in refused(model, name="first", role=role)
def config(name, **variant):
    variant = {"VariantName": "main", "ModelName": "first", "InstanceType": "ml.c7i.xlarge", "InitialInstanceCount": 1, **variant}
    sm.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
assert "Could not find model" in refused(config, name="none", ModelName="none")
for _ in range(3):
    sm.describe_model(ModelName="first")
config("one")
config("two", InitialInstanceCount=4)
assert "Could not find endpoint configuration" in refused(sm.create_endpoint, EndpointName="e", EndpointConfigName="two"), "too early"
for _ in range(3):
    sm.describe_model(ModelName="first")
sm.create_endpoint(EndpointName="e", EndpointConfigName="one", Tags=[{"Key": "a", "Value": "b"}])
assert "Cannot update in-progress endpoint" in refused(sm.delete_endpoint, EndpointName="e")
quick = {"Delay": 0, "MaxAttempts": 500}
sm.get_waiter("endpoint_in_service").wait(EndpointName="e", WaiterConfig=quick)
runtime = boto3.client("sagemaker-runtime")
said = runtime.invoke_endpoint(EndpointName="e", Body=b'{"a":1}', ContentType="application/json")
assert (said["Body"].read(), said["InvokedProductionVariant"]) == (b'registry.example/a@sha256:1{"a":1}', "main"), said
assert "ModelError" in refused(runtime.invoke_endpoint, EndpointName="e", Body=b"{}")
assert "not found" in refused(runtime.invoke_endpoint, EndpointName="other", Body=b"{}")
quotas = boto3.client("service-quotas").get_paginator("list_service_quotas").paginate(ServiceCode="sagemaker")
assert {q["QuotaName"] for page in quotas for q in page["Quotas"]} >= {"ml.m5.xlarge for endpoint usage"}
scaled = {"ServiceNamespace": "sagemaker", "ResourceId": "endpoint/e/variant/main", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}
assert "ObjectNotFoundException" in refused(scaling.deregister_scalable_target, **scaled)
arn = scaling.register_scalable_target(MinCapacity=1, MaxCapacity=3, Tags={"a": "b"}, **scaled)["ScalableTargetARN"]
assert scaling.list_tags_for_resource(ResourceARN=arn)["Tags"] == {"a": "b"}
policy = {"TargetValue": 100.0, "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}}
scaling.put_scaling_policy(PolicyName="p", PolicyType="TargetTrackingScaling", TargetTrackingScalingPolicyConfiguration=policy, **scaled)
pages = scaling.get_paginator("describe_scaling_policies").paginate(ServiceNamespace="sagemaker")
assert [p["PolicyName"] for page in pages for p in page["ScalingPolicies"]] == ["p"]
def update(routing, wait=60, **more):
    routing = {"WaitIntervalInSeconds": wait, **routing}
    policy = {"TrafficRoutingConfiguration": routing, "MaximumExecutionTimeoutInSeconds": 1800}
    sm.update_endpoint(EndpointName="e", EndpointConfigName="two", DeploymentConfig={"BlueGreenUpdatePolicy": policy}, **more)
size = lambda percent: {"Type": "CAPACITY_PERCENT", "Value": percent}
assert "ValidationException" in refused(update, routing={"Type": "CANARY"})
assert "ValidationException" in refused(update, routing={"Type": "LINEAR", "LinearStepSize": size(5)})
assert "timeout" in refused(update, routing={"Type": "LINEAR", "LinearStepSize": size(20)}, wait=600)
update({"Type": "LINEAR", "LinearStepSize": size(20)}, RetainAllVariantProperties=True)
assert sm.describe_endpoint(EndpointName="e")["EndpointStatus"] == "Updating"
sm.get_waiter("endpoint_in_service").wait(EndpointName="e", WaiterConfig=quick)
seen = sm.describe_endpoint(EndpointName="e")
assert (seen["EndpointConfigName"], seen["ProductionVariants"][0]["CurrentInstanceCount"]) == ("two", 1), seen
sm.update_endpoint_weights_and_capacities(EndpointName="e", DesiredWeightsAndCapacities=[{"VariantName": "main", "DesiredInstanceCount": 2}])
sm.get_waiter("endpoint_in_service").wait(EndpointName="e", WaiterConfig=quick)
assert sm.describe_endpoint(EndpointName="e")["ProductionVariants"][0]["DesiredInstanceCount"] == 2
scaling.deregister_scalable_target(**scaled)
assert scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"] == []
sm.delete_endpoint(EndpointName="e")
sm.get_waiter("endpoint_deleted").wait(EndpointName="e", WaiterConfig=quick)
# Disks of an instance's own take no key and have no size.
ami = "al2023-ami-sagemaker-inference-gpu-4-1"
def gpus(key=None, **variant):
    variant = {"VariantName": "main", "ModelName": "first", "InstanceType": "ml.g5.xlarge", "InitialInstanceCount": 1, "InferenceAmiVersion": ami, **variant}
    sm.create_endpoint_config(EndpointConfigName="gpu", ProductionVariants=[variant], **({"KmsKeyId": key} if key else {}))
assert "ValidationException: KmsKeyId" in refused(gpus, key="alias/a")
assert "ValidationException: VolumeSizeInGB" in refused(gpus, VolumeSizeInGB=30)
gpus()
assert sm.describe_endpoint_config(EndpointConfigName="gpu")["ProductionVariants"][0]["InferenceAmiVersion"] == ami
for name in ["one", "two", "gpu"]:
    sm.delete_endpoint_config(EndpointConfigName=name)
sm.delete_model(ModelName="first")
assert "Could not find" in refused(sm.describe_model, ModelName="first")
"#;
    boto3(&simulator, script);
}
