//! Autoscaling of endpoints: <https://docs.aws.amazon.com/autoscaling/application/APIReference/Welcome.html>.

use std::collections::BTreeMap;

use async_trait::async_trait;
use aws_sdk_applicationautoscaling::types::{
    MetricType, PolicyType, PredefinedMetricSpecification, ScalableDimension, ScalableTarget, ScalingPolicy,
    ServiceNamespace, TargetTrackingScalingPolicyConfiguration,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::{Condition, Identity, Kind, Permission, Pricing, Result};

use super::{CREATE, DELETE, PUT, arns_by_tag, only};
use crate::api::Api;
use crate::resource::{Filter, Make, ObservedObject, Of, Resource};
use crate::table::{Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: Kind {
        permissions: &[
            Permission::on(PUT, "application-autoscaling:DeleteScalingPolicy"),
            Permission::on(DELETE, "application-autoscaling:DeregisterScalableTarget"),
            Permission::read("application-autoscaling:DescribeScalableTargets"),
            Permission::read("application-autoscaling:DescribeScalingPolicies"),
            Permission::read("application-autoscaling:ListTagsForResource"),
            Permission::on(PUT, "application-autoscaling:PutScalingPolicy"),
            Permission::on(PUT, "application-autoscaling:RegisterScalableTarget"),
            Permission::on(PUT, "application-autoscaling:TagResource"),
            Permission::on(PUT, "application-autoscaling:UntagResource"),
            // It reads the endpoint and changes alarms as the caller, and works in a role of its own that the first target creates:
            // <https://docs.aws.amazon.com/autoscaling/application/userguide/security_iam_id-based-policy-examples.html>.
            only(Permission::change("cloudwatch:DeleteAlarms"), ALARMS),
            Permission::on(PUT, "cloudwatch:DescribeAlarms"),
            only(Permission::on(PUT, "cloudwatch:PutMetricAlarm"), ALARMS),
            Permission { conditions: OWN_ROLE, ..Permission::on(CREATE, "iam:CreateServiceLinkedRole") },
            only(Permission::on(PUT, "sagemaker:DescribeEndpoint"), ENDPOINT),
            Permission::on(PUT, "sagemaker:DescribeEndpointConfig"),
            only(Permission::on(PUT, "sagemaker:UpdateEndpointWeightsAndCapacities"), ENDPOINT),
        ],
        pricing: Pricing::BySpec,
        terraform: &[("aws_appautoscaling_target", "resource_id")],
        ..kind("aws.scaling-target", "the autoscaling of an endpoint's variant", Identity::Named)
    },
    service: SERVICE,
    resource: &Of::<Target>::kind(),
    refused: &[],
}];

const ALARMS: &str =
    "arn:{$partition}:cloudwatch:{$region}:{$account}:alarm:TargetTracking-endpoint/{endpoint}/variant/{variant}-*";
const ENDPOINT: &str = "arn:{$partition}:sagemaker:{$region}:{$account}:endpoint/{endpoint}";
const OWN_ROLE: &[Condition] =
    &[Condition { key: "iam:AWSServiceName", value: "sagemaker.application-autoscaling.amazonaws.com" }];

/// The signing name.
const SERVICE: &str = "application-autoscaling";

/// The autoscaling of a variant. Outputs: `arn`.
struct Target;

/// The attributes of a scalable target.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// The name of the endpoint.
    endpoint: String,
    /// The name of its variant.
    variant: String,
    /// The fewest instances.
    min: i32,
    /// The most instances.
    max: i32,
    /// Its scaling policies by their names.
    policies: BTreeMap<String, Policy>,
    #[serde(default)]
    tags: Tags,
}

/// Target tracking of the requests to each instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Policy {
    /// Requests per minute and instance, on average.
    invocations: u32,
    /// How long after an increase the next one may follow.
    scale_out_seconds: i32,
    /// How long after a decrease the next one may follow.
    scale_in_seconds: i32,
}

#[async_trait]
impl Resource<Api> for Target {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["min", "max", "policies"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let call = api.autoscaling.describe_scalable_targets().service_namespace(ServiceNamespace::Sagemaker);
        let call = call.resource_ids(id).scalable_dimension(ScalableDimension::SageMakerVariantDesiredInstanceCount);
        let answer = api.find(SERVICE, id, call.send()).await?;
        match answer.and_then(|answer| answer.scalable_targets.unwrap_or_default().into_iter().next()) {
            Some(target) => seen(api, target).await,
            None => Ok(None),
        }
    }

    /// One call for each page of tagged targets and of all targets for SageMaker, and two for each target of the deployment.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let arns = arns_by_tag(api, filter, "application-autoscaling:scalable-target").await?;
        if arns.is_empty() {
            return Ok(Vec::new());
        }
        let call = api.autoscaling.describe_scalable_targets().service_namespace(ServiceNamespace::Sagemaker);
        let call = call.scalable_dimension(ScalableDimension::SageMakerVariantDesiredInstanceCount);
        let pages = call.into_paginator().items().send();
        let found: Vec<ScalableTarget> = api.call(SERVICE, "list", "scalable targets", pages.try_collect()).await?;
        let mut all = Vec::new();
        for target in found {
            if target.scalable_target_arn.as_ref().is_some_and(|arn| arns.contains(arn)) {
                all.extend(seen(api, target).await?);
            }
        }
        Ok(all)
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(format!("endpoint/{}/variant/{}", spec.endpoint, spec.variant))
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let id = Self::id(spec).unwrap_or_default();
        let tags = make.tags.clone().into_iter().collect();
        let call = register(api, &id, spec).set_tags(Some(tags)).send();
        api.call(SERVICE, "create", format!("autoscaling of {id}"), call).await.map(|_| id)
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        let id = seen.id.as_str();
        if field != "policies" {
            return api.call(SERVICE, "change", id, register(api, id, spec).send()).await.map(drop);
        }
        let (autoscaling, seen) = (&api.autoscaling, &seen.spec.policies);
        if let Some((name, policy)) = spec.policies.iter().find(|(name, policy)| seen.get(*name) != Some(*policy)) {
            let call = autoscaling
                .put_scaling_policy()
                .policy_name(name)
                .service_namespace(ServiceNamespace::Sagemaker)
                .resource_id(id)
                .scalable_dimension(ScalableDimension::SageMakerVariantDesiredInstanceCount)
                .policy_type(PolicyType::TargetTrackingScaling)
                .target_tracking_scaling_policy_configuration(policy.given());
            return api.call(SERVICE, "put a policy of", id, call.send()).await.map(drop);
        }
        let Some(gone) = seen.keys().find(|name| !spec.policies.contains_key(*name)) else { return Ok(()) };
        let call = autoscaling
            .delete_scaling_policy()
            .policy_name(gone)
            .service_namespace(ServiceNamespace::Sagemaker)
            .resource_id(id)
            .scalable_dimension(ScalableDimension::SageMakerVariantDesiredInstanceCount);
        api.call(SERVICE, "delete a policy of", id, call.send()).await.map(drop)
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        let arn = seen.outputs.get("arn").and_then(Value::as_str).unwrap_or_default();
        if set.is_empty() {
            let call = api.autoscaling.untag_resource().resource_arn(arn).set_tag_keys(Some(remove.to_vec())).send();
            return api.call(SERVICE, "remove tags of", &seen.id, call).await.map(drop);
        }
        let tags = set.clone().into_iter().collect();
        let call = api.autoscaling.tag_resource().resource_arn(arn).set_tags(Some(tags)).send();
        api.call(SERVICE, "set tags of", &seen.id, call).await.map(drop)
    }

    /// With its policies and their alarms.
    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api
            .autoscaling
            .deregister_scalable_target()
            .service_namespace(ServiceNamespace::Sagemaker)
            .resource_id(&seen.id)
            .scalable_dimension(ScalableDimension::SageMakerVariantDesiredInstanceCount);
        api.call(SERVICE, "delete", &seen.id, call.send()).await.map(drop)
    }
}

/// The call that creates a target, and that changes the bounds of one.
fn register(
    api: &Api,
    id: &str,
    spec: &Spec,
) -> aws_sdk_applicationautoscaling::operation::register_scalable_target::builders::RegisterScalableTargetFluentBuilder
{
    api.autoscaling
        .register_scalable_target()
        .service_namespace(ServiceNamespace::Sagemaker)
        .resource_id(id)
        .scalable_dimension(ScalableDimension::SageMakerVariantDesiredInstanceCount)
        .min_capacity(spec.min)
        .max_capacity(spec.max)
}

async fn seen(api: &Api, target: ScalableTarget) -> Result<Option<ObservedObject<Spec>>> {
    let (id, arn) = (target.resource_id, target.scalable_target_arn.unwrap_or_default());
    let Some(tags) = api.find(SERVICE, &id, api.autoscaling.list_tags_for_resource().resource_arn(&arn).send()).await?
    else {
        return Ok(None);
    };
    let call = api.autoscaling.describe_scaling_policies().service_namespace(ServiceNamespace::Sagemaker);
    let pages = call.resource_id(&id).into_paginator().items().send();
    let policies: Vec<ScalingPolicy> = api.call(SERVICE, "list the policies of", &id, pages.try_collect()).await?;
    let mut parts = id.split('/').skip(1).step_by(2).map(str::to_owned);
    let spec = Spec {
        endpoint: parts.next().unwrap_or_default(),
        variant: parts.next().unwrap_or_default(),
        min: target.min_capacity,
        max: target.max_capacity,
        policies: policies.into_iter().map(|one| (one.policy_name.clone(), Policy::of(&one))).collect(),
        tags: Tags::new(),
    };
    let tags = tags.tags.unwrap_or_default().into_iter().collect();
    Ok(Some(ObservedObject::new(&id, spec, tags).output("arn", Some(arn))))
}

impl Policy {
    fn given(&self) -> TargetTrackingScalingPolicyConfiguration {
        let metric = PredefinedMetricSpecification::builder()
            .predefined_metric_type(MetricType::SageMakerVariantInvocationsPerInstance)
            .build()
            .expect("its type is set");
        TargetTrackingScalingPolicyConfiguration::builder()
            .target_value(f64::from(self.invocations))
            .predefined_metric_specification(metric)
            .scale_out_cooldown(self.scale_out_seconds)
            .scale_in_cooldown(self.scale_in_seconds)
            .build()
            .expect("its target is set")
    }

    /// With zero requests, which no spec has, for a policy of another kind.
    fn of(policy: &ScalingPolicy) -> Self {
        let tracking = policy.target_tracking_scaling_policy_configuration.as_ref();
        let is_ours = |config: &&TargetTrackingScalingPolicyConfiguration| {
            let metric = config.predefined_metric_specification().map(|one| &one.predefined_metric_type);
            metric == Some(&MetricType::SageMakerVariantInvocationsPerInstance)
                && config.disable_scale_in != Some(true)
                && config.target_value.fract() == 0.0
                && (0.0..=f64::from(u32::MAX)).contains(&config.target_value)
        };
        let invocations = tracking.filter(is_ours).map_or(0, |config| config.target_value as u32);
        Self {
            invocations,
            scale_out_seconds: tracking.and_then(|config| config.scale_out_cooldown).unwrap_or_default(),
            scale_in_seconds: tracking.and_then(|config| config.scale_in_cooldown).unwrap_or_default(),
        }
    }
}
