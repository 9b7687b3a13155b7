//! The settings of a database: <https://docs.aws.amazon.com/AmazonRDS/latest/APIReference/API_CreateDBParameterGroup.html>.

use std::collections::BTreeMap;

use async_trait::async_trait;
use aws_sdk_rds::types::{ApplyMethod, Filter as Condition, Parameter as Answer};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::Result;

use super::SERVICE;
use crate::api::Api;
use crate::kinds::list_by_tag;
use crate::resource::{Filter, Make, ObservedObject, Resource};
use crate::tags::Tags;

/// A parameter group. Outputs: `name`, `arn`.
pub(super) struct ParameterGroup;

/// The attributes of a parameter group.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Spec {
    name: String,
    description: String,
    /// The engine and its major version: `postgres16`.
    family: String,
    /// The parameters that are not at their defaults.
    parameters: BTreeMap<String, Parameter>,
    #[serde(default)]
    tags: Tags,
}

/// One parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Parameter {
    value: String,
    /// Whether servers take it over only when they restart.
    at_restart: bool,
}

/// The parameters that plans set. One with the value of its default is not listed among the changed ones
/// (<https://github.com/hashicorp/terraform-provider-aws/issues/3182>).
pub(crate) const FORCE_SSL: &str = "rds.force_ssl";

/// Parameters in one call: the most that RDS takes.
const AT_ONCE: usize = 20;

#[async_trait]
impl Resource<Api> for ParameterGroup {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["parameters"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let call = api.rds.describe_db_parameter_groups().db_parameter_group_name(id).send();
        let answer = api.find(SERVICE, id, call).await?;
        let group = answer.and_then(|answer| answer.db_parameter_groups.unwrap_or_default().into_iter().next());
        let Some(group) = group else { return Ok(None) };
        let arn = group.db_parameter_group_arn.unwrap_or_default();
        let Some(tags) = super::tags_of(api, &arn).await? else { return Ok(None) };
        let pages = api.rds.describe_db_parameters().db_parameter_group_name(id).source("user").into_paginator();
        let changed: Option<Vec<Answer>> = api.find(SERVICE, id, pages.items().send().try_collect()).await?;
        let named = Condition::builder().name("parameter-name").values(FORCE_SSL).build();
        let call = api.rds.describe_db_parameters().db_parameter_group_name(id).filters(named).send();
        let named = api.find(SERVICE, id, call).await?;
        let (Some(changed), Some(named)) = (changed, named) else { return Ok(None) };
        let parameters = changed.into_iter().chain(named.parameters.unwrap_or_default()).filter_map(|one| {
            let at_restart = one.apply_method == Some(ApplyMethod::PendingReboot);
            Some((one.parameter_name?, Parameter { value: one.parameter_value?, at_restart }))
        });
        let spec = Spec {
            name: id.to_owned(),
            description: group.description.unwrap_or_default(),
            family: group.db_parameter_group_family.unwrap_or_default(),
            parameters: parameters.collect(),
            tags: Tags::new(),
        };
        Ok(Some(ObservedObject::new(id, spec, tags).output("name", Some(id)).output("arn", Some(arn))))
    }

    /// By value: RDS keeps the method of a parameter that has its default.
    fn fits(_field: &str, wanted: &Value, seen: &Value) -> bool {
        let (Some(wanted), Some(mut seen)) = (values(wanted), values(seen)) else { return false };
        seen.retain(|name, value| wanted.contains_key(name) || !is_default(name, value));
        seen == wanted
    }

    /// Four calls for each group of the deployment, and one for each page of them.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        list_by_tag::<Self>(api, filter, "rds:pg", |arn| arn.split_once(":pg:").map(|(_, name)| name)).await
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(spec.name.clone())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let call = api
            .rds
            .create_db_parameter_group()
            .db_parameter_group_name(&spec.name)
            .db_parameter_group_family(&spec.family)
            .description(&spec.description)
            .set_tags(Some(super::listed(&make.tags)));
        api.call(SERVICE, "create", format!("parameter group {}", spec.name), call.send()).await?;
        Ok(spec.name.clone())
    }

    /// Sets what differs, then resets what is in no spec any more.
    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, _field: &str) -> Result<()> {
        let method = |at_restart| if at_restart { ApplyMethod::PendingReboot } else { ApplyMethod::Immediate };
        let written = |name: &String, one: &Parameter| {
            Answer::builder().parameter_name(name).apply_method(method(one.at_restart))
        };
        let (wanted, seen_ones) = (&spec.parameters, &seen.spec.parameters);
        let is_there = |name: &String, one: &Parameter| seen_ones.get(name).is_some_and(|seen| seen.value == one.value);
        let different = wanted.iter().filter(|(name, one)| !is_there(name, one));
        let set: Vec<Answer> =
            different.take(AT_ONCE).map(|(name, one)| written(name, one).parameter_value(&one.value).build()).collect();
        if !set.is_empty() {
            let call = api.rds.modify_db_parameter_group().db_parameter_group_name(&seen.id).set_parameters(Some(set));
            return api.call(SERVICE, "change", &seen.id, call.send()).await.map(drop);
        }
        let gone = seen_ones.iter().filter(|(name, one)| !wanted.contains_key(*name) && !is_default(name, &one.value));
        let reset: Vec<Answer> = gone.take(AT_ONCE).map(|(name, one)| written(name, one).build()).collect();
        let call = api.rds.reset_db_parameter_group().db_parameter_group_name(&seen.id).set_parameters(Some(reset));
        api.call(SERVICE, "change", &seen.id, call.send()).await.map(drop)
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, seen.outputs.get("arn").and_then(Value::as_str).unwrap_or_default(), set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.rds.delete_db_parameter_group().db_parameter_group_name(&seen.id).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

/// Whether a value is the default of every version that an environment may have: from PostgreSQL 15 on, TLS is required
/// (<https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/PostgreSQL.Concepts.General.SSL.html>).
fn is_default(name: &str, value: &str) -> bool {
    name == FORCE_SSL && value == "1"
}

/// The values of parameters by name; `None` for another field.
fn values(parameters: &Value) -> Option<BTreeMap<&str, &str>> {
    let parameters = parameters.as_object()?.iter();
    parameters.map(|(name, one)| Some((name.as_str(), one["value"].as_str()?))).collect()
}
