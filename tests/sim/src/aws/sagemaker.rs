//! SageMaker: models, endpoint configurations and endpoints for inference, and their invocation.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::autoscaling::ScalableTargets;
use super::ecr::Ecr;
use super::iam::{Iam, trusts};
use crate::{Behaviour, Call, Fault, Market, Quota, Scope, Service, Source, Stages, World, timestamp};

/// The service.
pub const SERVICE: Service = Service {
    name: "sagemaker",
    model: "sagemaker",
    operations: &[
        ("AddTags", add_tags),
        ("CreateEndpoint", create_endpoint),
        ("CreateEndpointConfig", create_config),
        ("CreateModel", create_model),
        ("DeleteEndpoint", delete_endpoint),
        ("DeleteEndpointConfig", delete_config),
        ("DeleteModel", delete_model),
        ("DeleteTags", delete_tags),
        ("DescribeEndpoint", describe_endpoint),
        ("DescribeEndpointConfig", describe_config),
        ("DescribeModel", describe_model),
        ("ListTags", list_tags),
        ("UpdateEndpoint", update_endpoint),
        ("UpdateEndpointWeightsAndCapacities", update_weights),
    ],
    quotas: &[G6E, M5],
    ledger: LEDGER,
};

/// The service behind `runtime.sagemaker`, which has the same signing name.
pub const RUNTIME: Service = Service {
    name: "sagemaker",
    model: "sagemaker-runtime",
    operations: &[("InvokeEndpoint", invoke)],
    quotas: &[],
    ledger: RUNTIME_LEDGER,
};

/// Whether a request with this path is for the service, where two have one signing name.
pub(crate) fn is_of(service: &Service, path: &str) -> bool {
    service.name != RUNTIME.name || (service.model == RUNTIME.model) == path.starts_with("/endpoints/")
}

/// Each instance type has a quota of its own; one stands for all.
const G6E: Quota = Quota {
    service: "sagemaker",
    code: "L-B0729CB4",
    name: "ml.g6e.xlarge for endpoint usage",
    value: 1.0,
    adjustable: true,
};
const G6E_TYPE: &str = "ml.g6e.xlarge";
/// That of the type that endpoints have by default; it is listed, and limits nothing here.
const M5: Quota = Quota {
    service: "sagemaker",
    code: "L-2F737F8D",
    name: "ml.m5.xlarge for endpoint usage",
    value: 4.0,
    adjustable: true,
};

const ENDPOINT: Source =
    Source::Documentation("https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateEndpoint.html");
const UPDATE: Source =
    Source::Documentation("https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_UpdateEndpoint.html");
const GUARDRAILS: Source =
    Source::Documentation("https://docs.aws.amazon.com/sagemaker/latest/dg/deployment-guardrails-configuration.html");

const ROLLBACK: Source = Source::Recording("https://github.com/hashicorp/terraform-provider-aws/issues/48997");
const DRIVERS: Source =
    Source::Documentation("https://docs.aws.amazon.com/sagemaker/latest/dg/inference-gpu-drivers.html");

const LEDGER: &[Behaviour] = &[
    Behaviour {
        service: "sagemaker",
        what: "an object that does not exist is ValidationException with `Could not find`, and a taken name with `already existing`",
        source: Source::Recording(
            "https://github.com/hashicorp/terraform-provider-aws/tree/main/internal/service/sagemaker",
        ),
    },
    Behaviour {
        service: "sagemaker",
        what: "an endpoint may not find a new configuration for some seconds",
        source: ENDPOINT,
    },
    Behaviour { service: "sagemaker", what: "a configuration may not find a new model", source: Source::Assumed },
    Behaviour {
        service: "sagemaker",
        what: "a configuration with an instance type that has disks of its own takes no key",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateEndpointConfig.html",
        ),
    },
    Behaviour {
        service: "sagemaker",
        what: "a variant with an instance type that has disks of its own takes no size of a volume",
        source: Source::Report("autogluon/autogluon-cloud#50"),
    },
    Behaviour {
        service: "sagemaker",
        what: "the words that refuse a key or a volume of such a type",
        source: Source::LeftOut("callers read the code of a refusal, not its words"),
    },
    Behaviour {
        service: "sagemaker",
        what: "the driver of GPUs is that of the variant's AMI, else that of the instance family; a container that needs a newer \
               one does not start: CannotStartContainerError",
        source: DRIVERS,
    },
    Behaviour {
        service: "sagemaker",
        what: "no caller may find a role that IAM does not show yet",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot.html#troubleshoot_general_eventual-consistency",
        ),
    },
    Behaviour {
        service: "sagemaker",
        what: "an endpoint without capacity becomes Failed with a reason, and can then only be deleted",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_DescribeEndpoint.html",
        ),
    },
    Behaviour {
        service: "sagemaker",
        what: "an endpoint whose container answers no health check becomes Failed with `did not pass the ping health check`",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html",
        ),
    },
    Behaviour {
        service: "sagemaker",
        what: "an update starts new instances beside the old ones, keeps weights and numbers of variants if asked to, and then deletes \
               the old ones",
        source: UPDATE,
    },
    Behaviour {
        service: "sagemaker",
        what: "an endpoint that is created, changed or deleted refuses changes and deletion: Cannot update in-progress endpoint",
        source: Source::Recording("https://github.com/aws/amazon-sagemaker-operator-for-k8s"),
    },
    Behaviour {
        service: "sagemaker",
        what: "an alarm during an update, or missing capacity, brings the old configuration back",
        source: GUARDRAILS,
    },
    Behaviour {
        service: "sagemaker",
        what: "after a rollback the endpoint is InService with its old configuration, and may show no reason",
        source: ROLLBACK,
    },
    Behaviour {
        service: "sagemaker",
        what: "an endpoint whose configuration was deleted takes no update: Could not find endpoint configuration",
        source: ROLLBACK,
    },
    Behaviour {
        service: "sagemaker",
        what: "a reason is shown where capacity is missing, and none after alarms",
        source: Source::LeftOut("either may be missing after a rollback, and callers need neither"),
    },
    Behaviour {
        service: "sagemaker",
        what: "a canary is at most 50 percent and a linear step 10 to 50, and each has its size",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_TrafficRoutingConfig.html",
        ),
    },
    Behaviour {
        service: "sagemaker",
        what: "the timeout of a deployment is longer than its waits together",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_BlueGreenUpdatePolicy.html",
        ),
    },
    Behaviour {
        service: "sagemaker",
        what: "one call changes the weights of variants or the number of instances of one",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_UpdateEndpointWeightsAndCapacities.html",
        ),
    },
    Behaviour {
        service: "sagemaker",
        what: "a change of a number of instances without capacity is RollingBack, then InService with the old number",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_DescribeEndpoint.html",
        ),
    },
    Behaviour {
        service: "sagemaker",
        what: "a variant that is a scalable target keeps its instance type and is not removed by an update",
        source: Source::Documentation("https://docs.aws.amazon.com/sagemaker/latest/dg/endpoint-scaling-update.html"),
    },
    Behaviour {
        service: "sagemaker",
        what: "models and configurations are deleted also while they are used",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_DeleteEndpointConfig.html",
        ),
    },
    Behaviour {
        service: "sagemaker",
        what: "network interfaces keep the subnets and security groups of an endpoint in use for minutes after its deletion",
        source: Source::Assumed,
    },
    Behaviour {
        service: "sagemaker",
        what: "a deleted endpoint takes its scalable targets with it",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/sagemaker/latest/dg/endpoint-delete-with-scaling.html",
        ),
    },
    Behaviour {
        service: "sagemaker",
        what: "the words that refuse another instance type of a scalable target",
        source: Source::Assumed,
    },
    Behaviour {
        service: "sagemaker",
        what: "the words that refuse an update of a failed endpoint",
        source: Source::LeftOut("callers read the code of a refusal, not its words"),
    },
    Behaviour {
        service: "sagemaker",
        what: "how long each status lasts",
        source: Source::LeftOut("a wait of the simulator: callers poll until the state is there"),
    },
    Behaviour {
        service: "sagemaker",
        what: "keys and alarms are not looked up",
        source: Source::LeftOut("a plan names those that it creates, or that exist"),
    },
];

const INVOKE: Source =
    Source::Documentation("https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html");

const RUNTIME_LEDGER: &[Behaviour] = &[
    Behaviour {
        service: "sagemaker",
        what: "an invocation is the request of a container, and an answer other than 2xx is ModelError with its status and body",
        source: INVOKE,
    },
    Behaviour {
        service: "sagemaker",
        what: "an invocation of an endpoint that is not there is refused with ValidationError",
        source: Source::Report("aws/amazon-sagemaker-examples#293"),
    },
    Behaviour {
        service: "sagemaker",
        what: "the words for an endpoint that is not in service",
        source: Source::LeftOut("callers read the code of a refusal, not its words"),
    },
    Behaviour {
        service: "sagemaker",
        what: "the code and the value of the quota of ml.m5.xlarge",
        source: Source::LeftOut("quotas of endpoints are found by their names"),
    },
];

/// A container as its model describes it.
#[derive(Debug)]
pub struct Container {
    /// The image.
    pub image: String,
    /// Its variables.
    pub environment: BTreeMap<String, String>,
}

/// The containers of a test: given a body for `/invocations`, they give the status and the body of the answer.
pub type Containers = Box<dyn Fn(&Container, &[u8]) -> (u16, Vec<u8>) + Send>;

/// What SageMaker holds in a region.
#[derive(Default)]
pub struct SageMaker {
    /// What answers invocations, if anything does.
    pub containers: Option<Containers>,
    /// The models by their names.
    pub models: BTreeMap<String, Object>,
    /// The endpoint configurations by their names.
    pub configs: BTreeMap<String, Object>,
    /// The endpoints by their names.
    pub endpoints: BTreeMap<String, Endpoint>,
    /// Configurations and models that were deleted while an endpoint used them.
    pub deleted_in_use: Vec<String>,
    /// Whether alarms go off during the next updates.
    pub alarmed: bool,
    /// Whether the containers of new endpoints answer no health checks.
    pub mute: bool,
    /// Whether the rollback of the next updates fails too.
    pub rollback_fails: bool,
    /// The driver of NVIDIA that containers need on instances with GPUs.
    pub needs_driver: u32,
}

/// A model or an endpoint configuration: the answer to its description.
pub struct Object {
    shown: Value,
    visible: Timestamp,
}

/// An endpoint.
pub struct Endpoint {
    /// Its status over time.
    pub status: Stages,
    /// Its instances.
    pub fleet: Fleet,
    /// How it moved to its configuration, as it was sent.
    pub deployment: Option<Value>,
    reason: Option<String>,
    created: Timestamp,
    started: Timestamp,
}

/// The instances of an endpoint.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    /// The name of the configuration.
    pub config: String,
    /// The variants by their names.
    pub variants: BTreeMap<String, Variant>,
}

/// The instances of a variant.
#[derive(Clone, Debug)]
pub struct Variant {
    /// The instance type.
    pub kind: String,
    /// The weight.
    pub weight: f64,
    /// The number of instances.
    pub count: u64,
}

const MINUTE: Duration = Duration::from_secs(60);
const NO_CAPACITY: &str = "Unable to provision requested ML compute capacity due to InsufficientInstanceCapacity error. \
                           Please retry using a different ML instance type or after some time.";

const NO_PING: &str = "The primary container for production variant main did not pass the ping health check. \
                       Please check CloudWatch logs for this endpoint.";

const NO_START: &str = "CannotStartContainerError. Please ensure the model container for variant main starts correctly when \
                        invoked with 'docker run <image> serve'";

/// The part of an instance type between `ml.` and the size.
fn family(instance_type: &str) -> &str {
    let name = instance_type.strip_prefix("ml.").unwrap_or(instance_type);
    name.split('.').next().unwrap_or_default()
}

/// Whether instances of the type have disks of their own, and no volumes.
fn has_own_disks(instance_type: &str) -> bool {
    let family = family(instance_type);
    family.contains('d') || ["g5", "g6", "p5"].iter().any(|known| family.starts_with(known))
}

/// The driver of a variant's instances; `None` without GPUs.
fn driver(variant: &Value) -> Option<u32> {
    let default = match family(variant["InstanceType"].as_str().unwrap_or_default()) {
        "g4dn" | "g5" | "p4d" | "p4de" => 470,
        "g6" | "g6e" | "p5" => 535,
        "p5e" | "p5en" => 550,
        _ => return None,
    };
    Some(match variant["InferenceAmiVersion"].as_str() {
        Some("al2-ami-sagemaker-inference-gpu-2" | "al2-ami-sagemaker-inference-gpu-2-1") => 535,
        Some("al2-ami-sagemaker-inference-gpu-3-1") => 550,
        Some("al2023-ami-sagemaker-inference-gpu-4-1") => 580,
        _ => default,
    })
}

/// Whether the containers of a configuration start on their instances.
fn starts(known: &SageMaker, config: &str) -> bool {
    let variants = known.configs.get(config).and_then(|config| config.shown["ProductionVariants"].as_array());
    variants.into_iter().flatten().all(|one| driver(one).is_none_or(|driver| driver >= known.needs_driver))
}

/// The model of SageMaker does not hold this code.
fn invalid(message: impl Into<String>) -> Fault {
    Fault::new("ValidationException", message).status(400)
}

fn arn(call: &Call, kind: &str, name: &str) -> String {
    call.arn(&format!("{kind}/{}", name.to_lowercase()))
}

/// The words of messages for a type in ARNs.
fn words(kind: &str) -> &str {
    if kind == "endpoint-config" { "endpoint configuration" } else { kind }
}

fn no_such(call: &Call, kind: &str, name: &str) -> Fault {
    invalid(format!("Could not find {} \"{}\".", words(kind), arn(call, kind, name)))
}

fn taken(call: &Call, kind: &str, name: &str) -> Fault {
    invalid(format!("Cannot create already existing {} \"{}\".", words(kind), arn(call, kind, name)))
}

fn state<'a>(world: &'a mut World, call: &Call) -> &'a mut SageMaker {
    world.state::<SageMaker>(&call.scope())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn pairs(call: &Call) -> Result<Vec<(String, String)>, Fault> {
    let pairs: Vec<_> = call.list("Tags").iter().map(|tag| (text(&tag["Key"]), text(&tag["Value"]))).collect();
    match pairs.iter().any(|(key, _)| key.starts_with("aws:")) {
        true => Err(invalid("Tag keys that start with aws: are reserved.")),
        false => Ok(pairs),
    }
}

fn tagged(world: &World, call: &Call) -> Result<String, Fault> {
    let arn = call.text("ResourceArn");
    if world.tags.has(arn) { Ok(arn.to_owned()) } else { Err(invalid(format!("Could not find resource \"{arn}\"."))) }
}

fn tag_list(world: &World, arn: &str) -> Vec<Value> {
    world.tags.of(arn).into_iter().map(|(key, value)| json!({ "Key": key, "Value": value })).collect()
}

fn add_tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (arn, tags) = (tagged(world, call)?, pairs(call)?);
    world.tags.set(&arn, tags, call.visible());
    Ok(json!({ "Tags": tag_list(world, &arn) }))
}

fn delete_tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = tagged(world, call)?;
    world.tags.remove(&arn, call.texts("TagKeys"));
    Ok(json!({}))
}

fn list_tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = tagged(world, call)?;
    call.page("Tags", tag_list(world, &arn), invalid("Invalid NextToken"))
}

fn check_role(world: &World, call: &Call) -> Result<(), Fault> {
    let arn = call.str("ExecutionRoleArn").unwrap_or_default();
    let role = world.find::<Iam>(&call.global()).and_then(|iam| iam.seen_role(arn, call.now));
    let is_service = |name: &str| name == "sagemaker.amazonaws.com";
    match role.is_some_and(|role| trusts(&role.trust, "sts:AssumeRole", "Service", is_service).is_some()) {
        true => Ok(()),
        false => Err(invalid(format!(
            "Could not assume role {arn}. Please ensure that the role exists and allows principal \
             'sagemaker.amazonaws.com' to assume the role."
        ))),
    }
}

/// Images of the account's registry are looked up.
fn check_image(world: &World, call: &Call, image: &str) -> Result<(), Fault> {
    let registry = format!("{}.dkr.ecr.{}.amazonaws.com/", call.account, call.region);
    let Some(path) = image.strip_prefix(&registry) else { return Ok(()) };
    let (name, digest) = path.split_once('@').unwrap_or((path, ""));
    let name = name.split(':').next().unwrap_or_default();
    let found = world.find::<Ecr>(&call.scope()).and_then(|ecr| ecr.repositories.get(name));
    match found.is_some_and(|repository| repository.pushed.images.values().any(|one| one == digest)) {
        true => Ok(()),
        false => Err(invalid(format!("Requested image {image} not found."))),
    }
}

fn check_data(world: &World, call: &Call, container: &Value) -> Result<(), Fault> {
    let Some(uri) = container["ModelDataSource"]["S3DataSource"]["S3Uri"].as_str() else { return Ok(()) };
    let (bucket, prefix) = uri.strip_prefix("s3://").and_then(|rest| rest.split_once('/')).unwrap_or_default();
    let found = super::s3::bucket(world, bucket);
    match found.is_some_and(|bucket| bucket.objects.keys().any(|key| key.starts_with(prefix))) {
        true => Ok(()),
        false => Err(invalid(format!(
            "Could not access model data at {uri}. Please ensure that the role \"{}\" exists and that its trust \
             relationship policy allows the action \"sts:AssumeRole\" for the service principal \
             \"sagemaker.amazonaws.com\".",
            call.text("ExecutionRoleArn")
        ))),
    }
}

fn create_model(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("ModelName").to_owned();
    let tags = pairs(call)?;
    if state(world, call).models.contains_key(&name) {
        return Err(taken(call, "model", &name));
    }
    let container = &call.input["PrimaryContainer"];
    let Some(image) = container["Image"].as_str() else {
        return Err(invalid("A container needs an image or a model package."));
    };
    check_role(world, call)?;
    check_image(world, call, image)?;
    check_data(world, call, container)?;
    let network = call.input.get("VpcConfig");
    for subnet in network.and_then(|network| network["Subnets"].as_array()).into_iter().flatten() {
        let id = subnet.as_str().unwrap_or_default();
        if !world.tags.has(&format!("arn:aws:ec2:{}:{}:subnet/{id}", call.region, call.account)) {
            return Err(invalid(format!("The subnet ID '{id}' does not exist")));
        }
    }
    let arn = arn(call, "model", &name);
    let mut shown = json!({
        "ModelName": name,
        "PrimaryContainer": container,
        "CreationTime": timestamp(call.now),
        "ModelArn": arn,
        "EnableNetworkIsolation": call.is("EnableNetworkIsolation"),
        "ExecutionRoleArn": call.text("ExecutionRoleArn"),
    });
    if let Some(network) = network {
        shown["VpcConfig"] = network.clone();
    }
    state(world, call).models.insert(name, Object { shown, visible: call.visible() });
    world.tags.set(&arn, tags, call.visible());
    Ok(json!({ "ModelArn": arn }))
}

fn describe_model(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("ModelName");
    let model = state(world, call).models.get(name).ok_or_else(|| no_such(call, "model", name))?;
    Ok(model.shown.clone())
}

fn delete_model(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("ModelName");
    let state = state(world, call);
    state.models.remove(name).ok_or_else(|| no_such(call, "model", name))?;
    let is_used = |endpoint: &Endpoint| {
        let config = state.configs.get(&endpoint.fleet.config).map(|config| &config.shown["ProductionVariants"]);
        config.and_then(Value::as_array).into_iter().flatten().any(|variant| variant["ModelName"] == name)
    };
    if state.endpoints.values().any(is_used) {
        state.deleted_in_use.push(name.to_owned());
    }
    world.tags.forget(&arn(call, "model", name));
    Ok(json!({}))
}

fn create_config(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("EndpointConfigName").to_owned();
    let tags = pairs(call)?;
    let known = state(world, call);
    if known.configs.contains_key(&name) {
        return Err(taken(call, "endpoint-config", &name));
    }
    let mut names = BTreeSet::new();
    for variant in call.list("ProductionVariants") {
        if !names.insert(variant["VariantName"].as_str()) {
            return Err(invalid("Variant names must be unique."));
        }
        if variant.get("InstanceType").is_none() || variant.get("InitialInstanceCount").is_none() {
            return Err(invalid("A variant needs an instance type and an initial instance count."));
        }
        let instance_type = variant["InstanceType"].as_str().unwrap_or_default();
        if has_own_disks(instance_type) {
            let is_sized = variant.get("VolumeSizeInGB").is_some();
            let refused = if is_sized { Some("VolumeSizeInGB") } else { call.str("KmsKeyId").map(|_| "KmsKeyId") };
            if let Some(field) = refused {
                return Err(invalid(format!("{field} is not supported for the instance type {instance_type}.")));
            }
        }
        let model = variant["ModelName"].as_str().unwrap_or_default();
        if known.models.get(model).is_none_or(|model| model.visible > call.now) {
            return Err(no_such(call, "model", model));
        }
    }
    let arn = arn(call, "endpoint-config", &name);
    let variants = call.list("ProductionVariants").iter().cloned().map(|mut variant| {
        if variant.get("InitialVariantWeight").is_none() {
            variant["InitialVariantWeight"] = json!(1.0);
        }
        variant
    });
    let mut shown = json!({
        "EndpointConfigName": name,
        "EndpointConfigArn": arn,
        "ProductionVariants": variants.collect::<Vec<_>>(),
        "CreationTime": timestamp(call.now),
        "EnableNetworkIsolation": false,
    });
    if let Some(key) = call.str("KmsKeyId") {
        shown["KmsKeyId"] = key.into();
    }
    known.configs.insert(name, Object { shown, visible: call.visible() });
    world.tags.set(&arn, tags, call.visible());
    Ok(json!({ "EndpointConfigArn": arn }))
}

fn describe_config(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("EndpointConfigName");
    let config = state(world, call).configs.get(name).ok_or_else(|| no_such(call, "endpoint-config", name))?;
    Ok(config.shown.clone())
}

fn delete_config(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("EndpointConfigName");
    let state = state(world, call);
    state.configs.remove(name).ok_or_else(|| no_such(call, "endpoint-config", name))?;
    if state.endpoints.values().any(|endpoint| endpoint.fleet.config == name) {
        state.deleted_in_use.push(name.to_owned());
    }
    world.tags.forget(&arn(call, "endpoint-config", name));
    Ok(json!({}))
}

/// The instances that a configuration asks for.
fn fleet(world: &mut World, call: &Call) -> Result<Fleet, Fault> {
    let name = call.text("EndpointConfigName");
    let config = state(world, call).configs.get(name).filter(|config| config.visible <= call.now);
    let config = config.ok_or_else(|| no_such(call, "endpoint-config", name))?;
    let variants = config.shown["ProductionVariants"].as_array().into_iter().flatten().map(|variant| {
        let one = Variant {
            kind: text(&variant["InstanceType"]),
            weight: variant["InitialVariantWeight"].as_f64().unwrap_or(1.0),
            count: variant["InitialInstanceCount"].as_u64().unwrap_or_default(),
        };
        (text(&variant["VariantName"]), one)
    });
    Ok(Fleet { config: name.to_owned(), variants: variants.collect() })
}

/// Refuses instances beyond the quota.
fn check_quota(world: &World, call: &Call, new: &Fleet) -> Result<(), Fault> {
    let count = |fleet: &Fleet| -> u64 {
        fleet.variants.values().filter(|variant| variant.kind == G6E_TYPE).map(|variant| variant.count).sum()
    };
    let endpoints = world.find::<SageMaker>(&call.scope()).into_iter().flat_map(|state| state.endpoints.values());
    let used: u64 = endpoints.map(|endpoint| count(&endpoint.fleet)).sum();
    let (more, limit) = (count(new), world.quotas.of(&call.scope(), &G6E));
    if more == 0 || (used + more) as f64 <= limit {
        return Ok(());
    }
    Err(Fault::new(
        "ResourceLimitExceeded",
        format!(
            "The account-level service limit '{}' is {limit} Instances, with current utilization of {used} Instances and a \
             request delta of {more} Instances. Please use AWS Service Quotas to request an increase for this quota.",
            G6E.name
        ),
    ))
}

/// Takes instances, all or none.
fn take(world: &mut World, scope: &Scope, fleet: &Fleet) -> bool {
    let zone = format!("{}a", scope.region);
    for (n, variant) in fleet.variants.values().enumerate() {
        if !world.capacity.take(&zone, &variant.kind, Market::OnDemand, variant.count) {
            for taken in fleet.variants.values().take(n) {
                world.capacity.give(&zone, &taken.kind, Market::OnDemand, taken.count);
            }
            return false;
        }
    }
    true
}

fn give(world: &mut World, scope: &Scope, fleet: &Fleet) {
    let zone = format!("{}a", scope.region);
    for variant in fleet.variants.values() {
        world.capacity.give(&zone, &variant.kind, Market::OnDemand, variant.count);
    }
}

/// The subnets and security groups of the models of a configuration.
fn networks(world: &mut World, call: &Call, config: &str) -> Vec<String> {
    let state = state(world, call);
    let variants = state.configs.get(config).and_then(|config| config.shown["ProductionVariants"].as_array());
    let models = variants.into_iter().flatten().filter_map(|variant| variant["ModelName"].as_str());
    let networks = models.filter_map(|model| state.models.get(model)).map(|model| &model.shown["VpcConfig"]);
    let lists = networks.flat_map(|network| [&network["Subnets"], &network["SecurityGroupIds"]]);
    lists.filter_map(Value::as_array).flatten().map(text).collect()
}

fn create_endpoint(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("EndpointName").to_owned();
    let tags = pairs(call)?;
    if state(world, call).endpoints.contains_key(&name) {
        return Err(taken(call, "endpoint", &name));
    }
    let fleet = fleet(world, call)?;
    check_quota(world, call, &fleet)?;
    let arn = arn(call, "endpoint", &name);
    networks(world, call, &fleet.config).iter().for_each(|used| world.uses.add(&arn, used));
    let has_capacity = take(world, &call.scope(), &fleet);
    let known = state(world, call);
    let (takes, reason) = match (has_capacity, starts(known, &fleet.config), known.mute) {
        (true, true, false) => (7 * MINUTE, None),
        (true, true, true) => (24 * MINUTE, Some(NO_PING)),
        (true, false, _) => (7 * MINUTE, Some(NO_START)),
        (false, ..) => (7 * MINUTE, Some(NO_CAPACITY)),
    };
    let end = if reason.is_none() { "InService" } else { "Failed" };
    let fleet = if has_capacity { fleet } else { Fleet { variants: BTreeMap::new(), ..fleet } };
    let reason = reason.map(str::to_owned);
    let endpoint = Endpoint {
        status: call.stages("Creating", &[(takes, end)]),
        fleet,
        reason,
        deployment: None,
        created: call.now,
        started: call.now,
    };
    state(world, call).endpoints.insert(name, endpoint);
    world.tags.set(&arn, tags, call.visible());
    Ok(json!({ "EndpointArn": arn }))
}

fn describe_endpoint(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("EndpointName");
    let endpoint = state(world, call).endpoints.get(name).ok_or_else(|| no_such(call, "endpoint", name))?;
    let status = endpoint.status.at(call.now);
    let ended = endpoint.status.last().1.filter(|ended| *ended <= call.now);
    let mut shown = json!({
        "EndpointName": name,
        "EndpointArn": arn(call, "endpoint", name),
        "EndpointConfigName": endpoint.fleet.config,
        "EndpointStatus": status,
        "CreationTime": timestamp(endpoint.created),
        "LastModifiedTime": timestamp(ended.unwrap_or(endpoint.started)),
    });
    // The model allows no empty list.
    if status != "Creating" && !endpoint.fleet.variants.is_empty() {
        let variants = endpoint.fleet.variants.iter().map(|(name, variant)| {
            json!({
                "VariantName": name,
                "CurrentWeight": variant.weight,
                "DesiredWeight": variant.weight,
                "CurrentInstanceCount": variant.count,
                "DesiredInstanceCount": variant.count,
            })
        });
        shown["ProductionVariants"] = variants.collect();
    }
    if let (Some(reason), true) = (&endpoint.reason, ended.is_some()) {
        shown["FailureReason"] = reason.as_str().into();
    }
    if let Some(deployment) = &endpoint.deployment {
        shown["LastDeploymentConfig"] = deployment.clone();
    }
    Ok(shown)
}

/// The endpoint of the input, if it takes changes.
fn changeable<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut Endpoint, Fault> {
    let name = call.text("EndpointName");
    let endpoint = state(world, call).endpoints.get_mut(name).ok_or_else(|| no_such(call, "endpoint", name))?;
    match endpoint.status.at(call.now) {
        "InService" | "UpdateRollbackFailed" => Ok(endpoint),
        "Failed" => Err(invalid(format!("Cannot update failed endpoint \"{}\".", arn(call, "endpoint", name)))),
        _ => Err(invalid(format!("Cannot update in-progress endpoint \"{}\".", arn(call, "endpoint", name)))),
    }
}

/// How long a deployment waits between its steps.
fn waits(deployment: &Value) -> Result<Duration, Fault> {
    let policy = &deployment["BlueGreenUpdatePolicy"];
    let routing = &policy["TrafficRoutingConfiguration"];
    let percent = |size: &str| {
        let size = &routing[size];
        size["Value"].as_u64().filter(|_| size["Type"] == "CAPACITY_PERCENT")
    };
    let steps = match (routing["Type"].as_str(), percent("CanarySize"), percent("LinearStepSize")) {
        (None | Some("ALL_AT_ONCE"), None, None) => 1,
        (Some("CANARY"), Some(1..=50), None) => 2,
        (Some("LINEAR"), None, Some(step @ 10..=50)) => 100_u64.div_ceil(step),
        _ => return Err(invalid("The size of a step does not fit the type of traffic routing.")),
    };
    let seconds = |of: &Value| of.as_u64().unwrap_or_default();
    let waits = steps * seconds(&routing["WaitIntervalInSeconds"]) + seconds(&policy["TerminationWaitInSeconds"]);
    if policy["MaximumExecutionTimeoutInSeconds"].as_u64().is_some_and(|most| most <= waits) {
        return Err(invalid("The maximum execution timeout must be longer than all waits."));
    }
    Ok(Duration::from_secs(waits))
}

fn update_endpoint(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("EndpointName").to_owned();
    let old = changeable(world, call)?.fleet.clone();
    if !state(world, call).configs.contains_key(&old.config) {
        return Err(no_such(call, "endpoint-config", &old.config));
    }
    let mut new = fleet(world, call)?;
    if call.is("RetainAllVariantProperties") {
        for (name, variant) in &mut new.variants {
            if let Some(old) = old.variants.get(name) {
                (variant.weight, variant.count) = (old.weight, old.count);
            }
        }
    }
    let scaled = world.find::<ScalableTargets>(&call.scope()).map(|state| &state.targets);
    let is_changed =
        |(variant, old): &(&String, &Variant)| new.variants.get(*variant).is_none_or(|new| new.kind != old.kind);
    let is_scaled = |(variant, _): &(&String, &Variant)| {
        scaled.is_some_and(|targets| targets.contains_key(&format!("endpoint/{name}/variant/{variant}")))
    };
    if let Some((variant, _)) = old.variants.iter().find(|one| is_changed(one) && is_scaled(one)) {
        return Err(invalid(format!(
            "The variant(s) \"{variant}\" must be deregistered as scalable targets with AWS Auto Scaling before they can be \
             removed or have their instance type updated."
        )));
    }
    let deployment = call.input.get("DeploymentConfig").cloned().unwrap_or(json!({}));
    let takes = 7 * MINUTE + waits(&deployment)?;
    check_quota(world, call, &new)?;
    let (scope, arn) = (call.scope(), arn(call, "endpoint", &name));
    let has_capacity = take(world, &scope, &new);
    let known = state(world, call);
    let is_alarmed = known.alarmed && deployment.get("AutoRollbackConfiguration").is_some();
    let starts = starts(known, &new.config);
    let (is_made, fails) = (has_capacity && starts && !is_alarmed, known.rollback_fails);
    let end = if fails { "UpdateRollbackFailed" } else { "InService" };
    let status = call.stages("Updating", &[(takes, if is_made { "InService" } else { end })]);
    let reason = (!has_capacity).then(|| NO_CAPACITY.to_owned());
    if let Some(endpoint) = known.endpoints.get_mut(&name) {
        (endpoint.status, endpoint.reason, endpoint.started) = (status, reason, call.now);
        if call.input.get("DeploymentConfig").is_some() {
            endpoint.deployment = Some(deployment);
        }
    }
    let used = networks(world, call, &new.config);
    used.iter().for_each(|used| world.uses.add(&arn, used));
    world.defer(call.due(takes), move |world| {
        if is_made {
            give(world, &scope, &old);
        } else if has_capacity {
            give(world, &scope, &new);
        }
        if let (true, Some(endpoint)) = (is_made, world.state::<SageMaker>(&scope).endpoints.get_mut(&name)) {
            endpoint.fleet = new;
        }
    });
    Ok(json!({ "EndpointArn": arn }))
}

fn update_weights(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("EndpointName").to_owned();
    let old = changeable(world, call)?.fleet.clone();
    let changes = call.list("DesiredWeightsAndCapacities");
    if changes.iter().filter(|change| change.get("DesiredInstanceCount").is_some()).count() > 1 {
        return Err(invalid("The capacity of one variant can be changed at a time."));
    }
    let (mut new, mut more) = (old, Fleet::default());
    for change in changes {
        let variant = change["VariantName"].as_str().unwrap_or_default();
        let Some(one) = new.variants.get_mut(variant) else {
            return Err(invalid(format!("Could not find variant \"{variant}\".")));
        };
        one.weight = change["DesiredWeight"].as_f64().unwrap_or(one.weight);
        if let Some(count) = change["DesiredInstanceCount"].as_u64() {
            let added = Variant { count: count.saturating_sub(one.count), ..one.clone() };
            more.variants.insert(variant.to_owned(), added);
            one.count = count;
        }
    }
    check_quota(world, call, &more)?;
    let scope = call.scope();
    let has_capacity = take(world, &scope, &more);
    let stages = match has_capacity {
        true => vec![(3 * MINUTE, "InService")],
        false => vec![(3 * MINUTE, "RollingBack"), (5 * MINUTE, "InService")],
    };
    if let Some(endpoint) = state(world, call).endpoints.get_mut(&name) {
        endpoint.status = call.stages("Updating", &stages);
        endpoint.started = call.now;
        endpoint.reason = (!has_capacity).then(|| NO_CAPACITY.to_owned());
        if has_capacity {
            endpoint.fleet = new;
        }
    }
    Ok(json!({ "EndpointArn": arn(call, "endpoint", &name) }))
}

fn delete_endpoint(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("EndpointName").to_owned();
    let arn = arn(call, "endpoint", &name);
    let endpoint = state(world, call).endpoints.get_mut(&name).ok_or_else(|| no_such(call, "endpoint", &name))?;
    if !matches!(endpoint.status.at(call.now), "InService" | "Failed" | "UpdateRollbackFailed") {
        return Err(invalid(format!("Cannot update in-progress endpoint \"{arn}\".")));
    }
    endpoint.status = Stages::settled("Deleting");
    let (fleet, scope, user) = (endpoint.fleet.clone(), call.scope(), arn.clone());
    let variants = format!("endpoint/{name}/variant/");
    let scaled = &mut world.state::<ScalableTargets>(&scope).targets;
    let gone: Vec<String> =
        scaled.iter().filter(|(id, _)| id.starts_with(&variants)).map(|(_, target)| target.arn.clone()).collect();
    scaled.retain(|id, _| !id.starts_with(&variants));
    gone.iter().for_each(|target| world.tags.forget(target));
    world.defer(call.due(3 * MINUTE), move |world| {
        world.state::<SageMaker>(&scope).endpoints.remove(&name);
        world.tags.forget(&user);
        give(world, &scope, &fleet);
    });
    world.defer(call.due(6 * MINUTE), move |world| world.uses.forget(&arn));
    Ok(json!({}))
}

/// The container of an endpoint's first variant, and the name of the variant.
fn container(known: &SageMaker, endpoint: &Endpoint) -> Option<(Container, String)> {
    let variant = &known.configs.get(&endpoint.fleet.config)?.shown["ProductionVariants"][0];
    let shown = &known.models.get(variant["ModelName"].as_str()?)?.shown["PrimaryContainer"];
    let variables = shown["Environment"].as_object().into_iter().flatten();
    let environment = variables.map(|(name, value)| (name.clone(), text(value))).collect();
    Some((Container { image: text(&shown["Image"]), environment }, text(&variant["VariantName"])))
}

fn invoke(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("EndpointName").to_owned();
    let body = STANDARD.decode(call.text("Body")).unwrap_or_default();
    let known = state(world, call);
    let endpoint = known.endpoints.get(&name).filter(|endpoint| {
        // An update goes on beside the instances that answer.
        matches!(endpoint.status.at(call.now), "InService" | "Updating")
    });
    let found = endpoint.and_then(|endpoint| container(known, endpoint));
    let (Some((container, variant)), Some(containers)) = (found, &known.containers) else {
        let message = format!("Endpoint {name} of account {} not found.", call.account);
        return Err(Fault::new("ValidationError", message));
    };
    let (status, answer) = containers(&container, &body);
    if (200..300).contains(&status) {
        return Ok(json!({
            "Body": STANDARD.encode(answer), "ContentType": "application/json", "InvokedProductionVariant": variant,
        }));
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let message = format!("Received an error ({status}) from {variant} with message \"{answer}\".");
    let fault = Fault::new("ModelError", message).with("OriginalStatusCode", status);
    Err(fault.with("OriginalMessage", answer))
}
