//! Endpoints: <https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateEndpoint.html>.

use std::collections::BTreeMap;

use async_trait::async_trait;
use aws_sdk_sagemaker::operation::describe_endpoint::DescribeEndpointOutput as Answer;
use aws_sdk_sagemaker::types::{
    Alarm, AutoRollbackConfig, BlueGreenUpdatePolicy, CapacitySize, CapacitySizeType, DeploymentConfig,
    DesiredWeightAndCapacity, EndpointStatus, TrafficRoutingConfig, TrafficRoutingConfigType,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::{Error, ErrorKind, Result};

use super::SERVICE;
use crate::api::Api;
use crate::kinds::list_by_tag;
use crate::resource::{Filter, Make, ObservedObject, Resource, State};
use crate::tags::Tags;

/// What clients invoke. Outputs: `name`, `arn`.
pub(super) struct Endpoint;

/// The attributes of an endpoint.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Spec {
    /// Its name, at most 63 bytes.
    name: String,
    /// The name of its configuration. Another one is deployed as `deployment` says.
    config: String,
    /// How the endpoint moves to another configuration. It takes effect with the next update.
    deployment: Deployment,
    /// The weights and the numbers of instances of its variants, which an update of the configuration keeps.
    variants: BTreeMap<String, Capacity>,
    #[serde(default)]
    tags: Tags,
}

/// A blue/green deployment: new instances beside the old ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Deployment {
    /// `ALL_AT_ONCE`, `CANARY` or `LINEAR`.
    routing: String,
    /// The first part of the instances that gets requests, of a canary; the part in each step, of a linear one. In percent, at
    /// most 50; null if all get them at once.
    step_percent: Option<i32>,
    /// How long alarms are observed after each step.
    wait_seconds: i32,
    /// How long the old instances stay afterwards.
    keep_seconds: i32,
    /// The alarms of CloudWatch, by name, each of which makes SageMaker return to the old instances.
    alarms: Vec<String>,
    /// SageMaker returns to the old instances after this time; null if it is all waits and an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_seconds: Option<i32>,
}

/// The number of instances of a variant, and its part of the requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Capacity {
    /// Its part of the requests, relative to the other variants.
    weight: i32,
    /// The number of its instances; null if autoscaling decides.
    count: Option<i32>,
}

/// A change that SageMaker makes in the background: it is over once the endpoint is in service, and made if the endpoint then is as
/// wanted. Nothing else tells an update from one that was rolled back.
#[derive(Debug, Serialize, Deserialize)]
struct Change {
    /// The wanted configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    config: Option<String>,
    /// The wanted variants.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    variants: BTreeMap<String, Capacity>,
    /// When the endpoint had changed the last time before.
    before: String,
}

#[async_trait]
impl Resource<Api> for Endpoint {
    type Spec = Spec;
    // `deployment` is never sent alone: see `fits`.
    const IN_PLACE: &'static [&'static str] = &["config", "deployment", "variants"];
    const DELETES_PENDING: bool = false;

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let Some(answer) = described(api, id).await? else { return Ok(None) };
        let arn = answer.endpoint_arn.clone().unwrap_or_default();
        let Some(tags) = super::tags_of(api, &arn).await? else { return Ok(None) };
        let spec = Spec {
            name: id.to_owned(),
            config: answer.endpoint_config_name.clone().unwrap_or_default(),
            deployment: Deployment::of(answer.last_deployment_config.as_ref()),
            variants: variants(&answer),
            tags: Tags::new(),
        };
        let seen = ObservedObject::new(id, spec, tags).output("name", Some(id)).output("arn", Some(arn));
        Ok(Some(seen.state(state(&answer))))
    }

    /// Two calls for each endpoint of the deployment, and one for each page of them.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        list_by_tag::<Self>(api, filter, "sagemaker:endpoint", super::name_in).await
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(spec.name.clone())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let call = api
            .sagemaker
            .create_endpoint()
            .endpoint_name(&spec.name)
            .endpoint_config_name(&spec.config)
            .set_tags(Some(super::listed(&make.tags)));
        let created = api.call(SERVICE, "create", format!("endpoint {}", spec.name), call.send()).await;
        created.map(|_| spec.name.clone()).map_err(super::late)
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<()> {
        Self::start(api, seen, spec, field).await.map(drop)
    }

    async fn start(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, field: &str) -> Result<Option<String>> {
        let (sagemaker, id) = (&api.sagemaker, seen.id.as_str());
        let Some(now) = described(api, id).await? else {
            return Err(Error::new(ErrorKind::NotFound, "change", id));
        };
        let mut change = Change { config: None, variants: BTreeMap::new(), before: modified(&now) };
        if field == "config" {
            change.config = Some(spec.config.clone());
            let call = sagemaker
                .update_endpoint()
                .endpoint_name(id)
                .endpoint_config_name(&spec.config)
                .retain_all_variant_properties(true)
                .deployment_config(spec.deployment.given());
            if let Err(error) = api.call(SERVICE, "update", id, call.send()).await {
                return Err(explained(api, error, &now).await);
            }
        } else {
            let Some(wanted) = next(&seen.spec.variants, &spec.variants) else { return Ok(None) };
            change.variants = wanted.1;
            let call = sagemaker.update_endpoint_weights_and_capacities().endpoint_name(id);
            let call = call.set_desired_weights_and_capacities(Some(wanted.0));
            api.call(SERVICE, "change", id, call.send()).await?;
        }
        let change = serde_json::to_string(&change);
        change.map(Some).map_err(|source| Error::new(ErrorKind::Invalid, "change", id).because(source))
    }

    async fn change(api: &Api, id: &str, change: &str) -> Result<State> {
        let change: Change = serde_json::from_str(change)
            .map_err(|source| Error::new(ErrorKind::Invalid, "resume", id).because(source))?;
        let Some(answer) = described(api, id).await? else { return Ok(State::Gone) };
        if let State::Pending(says) = state(&answer) {
            return Ok(State::Pending(says));
        }
        let seen = variants(&answer);
        let is_made = change.config.is_none_or(|wanted| answer.endpoint_config_name() == Some(wanted.as_str()))
            && change.variants.iter().all(|(name, wanted)| seen.get(name).is_some_and(|seen| seen.is_as(wanted)));
        let why = answer
            .failure_reason()
            .unwrap_or("SageMaker returned to the old instances, and gives no reason")
            .to_owned();
        Ok(match (is_made, modified(&answer) == change.before) {
            (true, _) => State::Ready,
            (false, true) => State::Pending("accepted".to_owned()),
            (false, false) => State::Failed { code: "RolledBack".to_owned(), why },
        })
    }

    fn fits(field: &str, wanted: &Value, seen: &Value) -> bool {
        match (field, wanted) {
            ("deployment", _) => true,
            ("variants", Value::Object(all)) => all.iter().all(|(name, wanted)| {
                let (count, seen) = (&wanted["count"], &seen[name]);
                wanted["weight"] == seen["weight"] && (count.is_null() || *count == seen["count"])
            }),
            _ => false,
        }
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, seen.outputs.get("arn"), set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.sagemaker.delete_endpoint().endpoint_name(&seen.id).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

/// SageMaker updates no endpoint whose present configuration was deleted. Otherwise it does not find the new one yet.
async fn explained(api: &Api, error: Error, now: &Answer) -> Error {
    let config = now.endpoint_config_name().unwrap_or_default();
    if error.kind != ErrorKind::NotFound {
        return error;
    }
    let call = api.sagemaker.describe_endpoint_config().endpoint_config_name(config).send();
    match api.find(SERVICE, config, call).await {
        Ok(None) => {
            let hint = format!("its configuration `{config}` was deleted: delete the endpoint, and apply again");
            Error { kind: ErrorKind::Invalid, ..error }.hint(hint)
        }
        _ => super::late(error),
    }
}

async fn described(api: &Api, id: &str) -> Result<Option<Answer>> {
    api.find(SERVICE, id, api.sagemaker.describe_endpoint().endpoint_name(id).send()).await
}

fn modified(answer: &Answer) -> String {
    answer.last_modified_time.map(|time| time.as_nanos().to_string()).unwrap_or_default()
}

fn state(answer: &Answer) -> State {
    let why = || answer.failure_reason().unwrap_or("SageMaker gives no reason").to_owned();
    match &answer.endpoint_status {
        Some(EndpointStatus::InService) => State::Ready,
        Some(EndpointStatus::Deleting) => State::Deleting,
        Some(EndpointStatus::Failed) => State::Failed { code: String::new(), why: why() },
        // Another update can repair it.
        Some(EndpointStatus::UpdateRollbackFailed) => {
            State::Degraded(format!("an update and its rollback failed: {}", why()))
        }
        Some(EndpointStatus::OutOfService) => State::Degraded("it takes no requests".to_owned()),
        status => State::Pending(status.as_ref().map_or("in no known state", EndpointStatus::as_str).to_owned()),
    }
}

/// The variants that are there or will be.
fn variants(answer: &Answer) -> BTreeMap<String, Capacity> {
    let all = answer.production_variants().iter().filter_map(|one| {
        let weight = super::whole(one.desired_weight.or(one.current_weight));
        let count = one.desired_instance_count.or(one.current_instance_count);
        Some((one.variant_name.clone()?, Capacity { weight, count }))
    });
    all.collect()
}

/// The next change of variants: one call takes the weights of all of them, or the number of instances of one.
fn next(
    seen: &BTreeMap<String, Capacity>,
    wanted: &BTreeMap<String, Capacity>,
) -> Option<(Vec<DesiredWeightAndCapacity>, BTreeMap<String, Capacity>)> {
    let change = |name: &str| DesiredWeightAndCapacity::builder().variant_name(name);
    let is_weighted =
        |(name, wanted): (&String, &Capacity)| seen.get(name).is_some_and(|one| one.weight == wanted.weight);
    if !wanted.iter().all(is_weighted) {
        let calls = wanted.iter().map(|(name, one)| change(name).desired_weight(super::fraction(one.weight)).build());
        let weights = wanted.iter().map(|(name, one)| (name.clone(), Capacity { count: None, ..one.clone() }));
        return Some((calls.collect(), weights.collect()));
    }
    let (name, one) = wanted.iter().find(|(name, one)| !seen.get(*name).is_some_and(|seen| seen.is_as(one)))?;
    let call = change(name).set_desired_instance_count(one.count).build();
    Some((vec![call], BTreeMap::from([(name.clone(), one.clone())])))
}

impl Capacity {
    fn is_as(&self, wanted: &Self) -> bool {
        self.weight == wanted.weight && (wanted.count.is_none() || self.count == wanted.count)
    }
}

impl Deployment {
    fn given(&self) -> DeploymentConfig {
        let size =
            |percent: i32| CapacitySize::builder().r#type(CapacitySizeType::CapacityPercent).value(percent).build();
        let kind = TrafficRoutingConfigType::from(self.routing.as_str());
        let step = self.step_percent.map(size);
        let routing = TrafficRoutingConfig::builder().wait_interval_in_seconds(self.wait_seconds);
        let routing = match kind {
            TrafficRoutingConfigType::Linear => routing.set_linear_step_size(step),
            _ => routing.set_canary_size(step),
        };
        let policy = BlueGreenUpdatePolicy::builder()
            .traffic_routing_configuration(routing.r#type(kind).build())
            .termination_wait_in_seconds(self.keep_seconds)
            .maximum_execution_timeout_in_seconds(self.timeout_seconds());
        let alarm = |name: &String| Alarm::builder().alarm_name(name).build();
        let rollback = AutoRollbackConfig::builder().set_alarms(Some(self.alarms.iter().map(alarm).collect())).build();
        DeploymentConfig::builder()
            .blue_green_update_policy(policy.build())
            .set_auto_rollback_configuration((!self.alarms.is_empty()).then_some(rollback))
            .build()
    }

    /// How long the deployment may take. SageMaker allows ten minutes to eight hours.
    fn timeout_seconds(&self) -> i32 {
        if let Some(seconds) = self.timeout_seconds {
            return seconds;
        }
        let steps = match (self.routing.as_str(), self.step_percent) {
            ("LINEAR", Some(step)) if step > 0 => 100 / step + i32::from(100 % step != 0),
            ("CANARY", _) => 2,
            _ => 1,
        };
        let waits = steps.saturating_mul(self.wait_seconds).saturating_add(self.keep_seconds);
        waits.saturating_add(3_600).clamp(600, 28_800)
    }

    fn of(config: Option<&DeploymentConfig>) -> Self {
        let policy = config.and_then(DeploymentConfig::blue_green_update_policy);
        let routing = policy.and_then(BlueGreenUpdatePolicy::traffic_routing_configuration);
        let step = routing.and_then(|routing| routing.canary_size().or(routing.linear_step_size()));
        let alarms = config.and_then(DeploymentConfig::auto_rollback_configuration).map(AutoRollbackConfig::alarms);
        Self {
            routing: routing
                .and_then(TrafficRoutingConfig::r#type)
                .map_or("ALL_AT_ONCE", TrafficRoutingConfigType::as_str)
                .to_owned(),
            step_percent: step.and_then(CapacitySize::value),
            wait_seconds: routing.and_then(TrafficRoutingConfig::wait_interval_in_seconds).unwrap_or_default(),
            keep_seconds: policy.and_then(BlueGreenUpdatePolicy::termination_wait_in_seconds).unwrap_or_default(),
            alarms: alarms.unwrap_or_default().iter().filter_map(|one| one.alarm_name.clone()).collect(),
            timeout_seconds: policy.and_then(BlueGreenUpdatePolicy::maximum_execution_timeout_in_seconds),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_has_time_for_all_of_its_waits() {
        let deployment = |routing: &str, step: Option<i32>, wait: i32| Deployment {
            routing: routing.to_owned(),
            step_percent: step,
            wait_seconds: wait,
            keep_seconds: 100,
            alarms: Vec::new(),
            timeout_seconds: None,
        };
        let timeout = |routing: &str, step: Option<i32>, wait: i32| deployment(routing, step, wait).timeout_seconds();
        assert_eq!(timeout("ALL_AT_ONCE", None, 300), 4_000);
        assert_eq!(timeout("CANARY", Some(10), 300), 4_300);
        assert_eq!(timeout("LINEAR", Some(30), 300), 4_900, "four steps");
        assert_eq!(timeout("LINEAR", Some(10), 3_600), 28_800, "SageMaker refuses what takes longer");
        assert_eq!(timeout("LINEAR", Some(0), i32::MAX), 28_800);
        let limited = Deployment { timeout_seconds: Some(900), ..deployment("CANARY", Some(10), 300) };
        assert_eq!(limited.timeout_seconds(), 900);
    }
}
