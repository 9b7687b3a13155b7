//! Application Auto Scaling of endpoints.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::sagemaker::SageMaker;
use crate::{Behaviour, Call, Fault, Quota, Service, Source, World, timestamp};

/// The service.
pub const SERVICE: Service = Service {
    name: "application-autoscaling",
    model: "application-autoscaling",
    operations: &[
        ("DeleteScalingPolicy", delete_policy),
        ("DeregisterScalableTarget", deregister),
        ("DescribeScalableTargets", describe),
        ("DescribeScalingPolicies", describe_policies),
        ("ListTagsForResource", list_tags),
        ("PutScalingPolicy", put_policy),
        ("RegisterScalableTarget", register),
        ("TagResource", tag),
        ("UntagResource", untag),
    ],
    quotas: &[POLICIES],
    ledger: LEDGER,
};

/// <https://docs.aws.amazon.com/autoscaling/application/userguide/application-auto-scaling-limits.html>.
const POLICIES: Quota = Quota {
    service: "application-autoscaling",
    code: "L-01D48ADE",
    name: "Scaling policies per scalable target",
    value: 50.0,
    adjustable: false,
};

const REGISTER: Source = Source::Documentation(
    "https://docs.aws.amazon.com/autoscaling/application/APIReference/API_RegisterScalableTarget.html",
);

const LEDGER: &[Behaviour] = &[
    Behaviour {
        service: "application-autoscaling",
        what: "a registered target is changed by another registration, which needs no bounds and takes no tags",
        source: REGISTER,
    },
    Behaviour {
        service: "application-autoscaling",
        what: "a deregistered target takes its policies with it; one that is not registered is ObjectNotFoundException",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/autoscaling/application/APIReference/API_DeregisterScalableTarget.html",
        ),
    },
    Behaviour {
        service: "application-autoscaling",
        what: "a policy needs a registered target, and has a name of its own within the target",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/autoscaling/application/APIReference/API_PutScalingPolicy.html",
        ),
    },
    Behaviour {
        service: "application-autoscaling",
        what: "a target names a variant of an endpoint that is in service: ValidationException",
        source: Source::Assumed,
    },
    Behaviour {
        service: "application-autoscaling",
        what: "policies never act, and alarms of policies are named and not created",
        source: Source::LeftOut("no plan reads what policies do"),
    },
];

/// The scalable targets of a region by their resource ids.
#[derive(Default)]
pub struct ScalableTargets {
    /// The targets.
    pub targets: BTreeMap<String, Target>,
}

/// A scalable target.
pub struct Target {
    /// The fewest and the most instances.
    pub bounds: (i64, i64),
    /// The policies by their names: the input of their last change.
    pub policies: BTreeMap<String, Value>,
    pub(super) arn: String,
    created: Timestamp,
}

const DIMENSION: &str = "sagemaker:variant:DesiredInstanceCount";

fn invalid(message: impl Into<String>) -> Fault {
    Fault::new("ValidationException", message)
}

fn not_found(call: &Call) -> Fault {
    let message = format!(
        "No scalable target registered for service namespace: sagemaker, resource ID: {}, scalable dimension: {DIMENSION}",
        call.text("ResourceId")
    );
    Fault::new("ObjectNotFoundException", message)
}

fn check(call: &Call) -> Result<(), Fault> {
    let dimension = call.str("ScalableDimension").unwrap_or(DIMENSION);
    match call.text("ServiceNamespace") {
        "sagemaker" if dimension == DIMENSION => Ok(()),
        _ => Err(invalid("Unsupported service namespace, resource type or scalable dimension")),
    }
}

fn targets<'a>(world: &'a mut World, call: &Call) -> &'a mut BTreeMap<String, Target> {
    &mut world.state::<ScalableTargets>(&call.scope()).targets
}

fn target<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut Target, Fault> {
    check(call)?;
    targets(world, call).get_mut(call.text("ResourceId")).ok_or_else(|| not_found(call))
}

fn register(world: &mut World, call: &Call) -> Result<Value, Fault> {
    check(call)?;
    let id = call.text("ResourceId").to_owned();
    let mut parts = id.split('/');
    let (endpoint, variant) = match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("endpoint"), Some(endpoint), Some("variant"), Some(variant), None) => (endpoint, variant),
        _ => return Err(invalid(format!("Unsupported resource ID: {id}"))),
    };
    let found = world.find::<SageMaker>(&call.scope()).and_then(|state| state.endpoints.get(endpoint));
    if !found
        .is_some_and(|found| found.status.at(call.now) == "InService" && found.fleet.variants.contains_key(variant))
    {
        return Err(invalid(format!("SageMaker variant does not exist or is not in service: {id}")));
    }
    let known = targets(world, call).get(&id).map(|target| (target.bounds, target.arn.clone()));
    let bound = |member: &str, known: Option<i64>| {
        let missing = || invalid(format!("{member} is required for a new scalable target"));
        call.int(member).or(known).ok_or_else(missing)
    };
    let bounds = (
        bound("MinCapacity", known.as_ref().map(|known| known.0.0))?,
        bound("MaxCapacity", known.as_ref().map(|known| known.0.1))?,
    );
    if bounds.0 < 0 || bounds.0 > bounds.1 {
        return Err(invalid("Maximum capacity cannot be less than minimum capacity"));
    }
    if let Some((_, arn)) = known {
        if call.input.get("Tags").is_some() {
            return Err(invalid("Tags are for a new scalable target only; use TagResource"));
        }
        if let Some(target) = targets(world, call).get_mut(&id) {
            target.bounds = bounds;
        }
        return Ok(json!({ "ScalableTargetARN": arn }));
    }
    let arn = call.arn(&format!("scalable-target/{}", call.random.hex(24)));
    let target = Target { bounds, policies: BTreeMap::new(), arn: arn.clone(), created: call.now };
    targets(world, call).insert(id, target);
    world.tags.set(&arn, pairs(call), call.visible());
    Ok(json!({ "ScalableTargetARN": arn }))
}

fn deregister(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = target(world, call)?.arn.clone();
    targets(world, call).remove(call.text("ResourceId"));
    world.tags.forget(&arn);
    Ok(json!({}))
}

fn no_token() -> Fault {
    Fault::new("InvalidNextTokenException", "The next token supplied was invalid.")
}

fn describe(world: &mut World, call: &Call) -> Result<Value, Fault> {
    check(call)?;
    let asked = call.texts("ResourceIds");
    let role = format!(
        "arn:aws:iam::{}:role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com/\
         AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint",
        call.account
    );
    let all = targets(world, call).iter().filter(|(id, _)| asked.is_empty() || asked.contains(&id.as_str()));
    let all = all.map(|(id, target)| {
        json!({
            "ServiceNamespace": "sagemaker",
            "ResourceId": id,
            "ScalableDimension": DIMENSION,
            "MinCapacity": target.bounds.0,
            "MaxCapacity": target.bounds.1,
            "RoleARN": role,
            "CreationTime": timestamp(target.created),
            "SuspendedState": {
                "DynamicScalingInSuspended": false,
                "DynamicScalingOutSuspended": false,
                "ScheduledScalingSuspended": false,
            },
            "ScalableTargetARN": target.arn,
        })
    });
    call.page("ScalableTargets", all.collect(), no_token())
}

fn alarms(call: &Call, name: &str) -> Value {
    let alarm = |kind: &str| {
        let name = format!("TargetTracking-{}-{kind}-{name}", call.text("ResourceId"));
        json!({ "AlarmName": name, "AlarmARN": format!("arn:aws:cloudwatch:{}:{}:alarm:{name}", call.region, call.account) })
    };
    json!([alarm("AlarmHigh"), alarm("AlarmLow")])
}

fn policy_arn(call: &Call, name: &str) -> String {
    format!(
        "arn:aws:autoscaling:{}:{}:scalingPolicy:00000000-0000-4000-8000-000000000000:resource/sagemaker/{}:policyName/{name}",
        call.region,
        call.account,
        call.text("ResourceId")
    )
}

fn put_policy(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let limit = world.quotas.of(&call.scope(), &POLICIES);
    let name = call.text("PolicyName").to_owned();
    let target = target(world, call)?;
    let config = &call.input["TargetTrackingScalingPolicyConfiguration"];
    let metrics = ["PredefinedMetricSpecification", "CustomizedMetricSpecification"];
    let is_tracking = call.text("PolicyType") == "TargetTrackingScaling"
        && metrics.iter().filter(|metric| config.get(**metric).is_some()).count() == 1
        && config["TargetValue"].as_f64().is_some_and(|value| value > 0.0);
    if !is_tracking {
        return Err(invalid("A policy of this type needs one metric and a target value above zero."));
    }
    if !target.policies.contains_key(&name) && target.policies.len() as f64 >= limit {
        return Err(Fault::new("LimitExceededException", "The number of scaling policies reached its limit."));
    }
    target.policies.insert(name.clone(), config.clone());
    Ok(json!({ "PolicyARN": policy_arn(call, &name), "Alarms": alarms(call, &name) }))
}

fn describe_policies(world: &mut World, call: &Call) -> Result<Value, Fault> {
    check(call)?;
    let (asked, mut all) = (call.str("ResourceId"), Vec::new());
    for (id, target) in targets(world, call).iter().filter(|(id, _)| asked.is_none_or(|asked| asked == *id)) {
        for (name, config) in &target.policies {
            all.push(json!({
                "PolicyARN": policy_arn(call, name),
                "PolicyName": name,
                "ServiceNamespace": "sagemaker",
                "ResourceId": id,
                "ScalableDimension": DIMENSION,
                "PolicyType": "TargetTrackingScaling",
                "TargetTrackingScalingPolicyConfiguration": config,
                "Alarms": alarms(call, name),
                "CreationTime": timestamp(target.created),
            }));
        }
    }
    call.page("ScalingPolicies", all, no_token())
}

fn delete_policy(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("PolicyName");
    let message = format!("No scaling policy found for resource ID: {} and policy {name}", call.text("ResourceId"));
    match target(world, call)?.policies.remove(name) {
        Some(_) => Ok(json!({})),
        None => Err(Fault::new("ObjectNotFoundException", message)),
    }
}

fn pairs(call: &Call) -> Vec<(String, String)> {
    let tags = call.input.get("Tags").and_then(Value::as_object).into_iter().flatten();
    tags.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

fn tagged<'a>(world: &World, call: &'a Call) -> Result<&'a str, Fault> {
    let arn = call.text("ResourceARN");
    match world.tags.has(arn) {
        true => Ok(arn),
        false => Err(Fault::new("ResourceNotFoundException", format!("The resource {arn} does not exist"))),
    }
}

fn list_tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = tagged(world, call)?;
    let tags: Map<String, Value> = world.tags.of(arn).into_iter().map(|(key, value)| (key, json!(value))).collect();
    Ok(json!({ "Tags": tags }))
}

fn tag(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = tagged(world, call)?;
    world.tags.set(arn, pairs(call), call.visible());
    Ok(json!({}))
}

fn untag(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = tagged(world, call)?;
    world.tags.remove(arn, call.texts("TagKeys"));
    Ok(json!({}))
}
