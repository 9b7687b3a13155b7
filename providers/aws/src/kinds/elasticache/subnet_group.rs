//! The subnets of a cache: <https://docs.aws.amazon.com/AmazonElastiCache/latest/APIReference/API_CreateCacheSubnetGroup.html>.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::Result;

use super::SERVICE;
use crate::api::Api;
use crate::kinds::list_by_tag;
use crate::resource::{Filter, Make, ObservedObject, Resource};
use crate::tags::Tags;

/// A subnet group. Outputs: `name`, `arn`.
pub(super) struct SubnetGroup;

/// The attributes of a subnet group.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Spec {
    name: String,
    description: String,
    /// The ids of its subnets, sorted.
    subnets: Vec<String>,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for SubnetGroup {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["description", "subnets"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let answer = api
            .find(SERVICE, id, api.elasticache.describe_cache_subnet_groups().cache_subnet_group_name(id).send())
            .await?;
        let group = answer.and_then(|answer| answer.cache_subnet_groups.unwrap_or_default().into_iter().next());
        let Some(group) = group else { return Ok(None) };
        let arn = group.arn.unwrap_or_default();
        let Some(tags) = super::tags_of(api, &arn).await? else { return Ok(None) };
        let subnets = group.subnets.unwrap_or_default().into_iter().filter_map(|subnet| subnet.subnet_identifier);
        let mut spec = Spec {
            name: id.to_owned(),
            description: group.cache_subnet_group_description.unwrap_or_default(),
            subnets: subnets.collect(),
            tags: Tags::new(),
        };
        spec.subnets.sort();
        Ok(Some(ObservedObject::new(id, spec, tags).output("name", Some(id)).output("arn", Some(arn))))
    }

    /// Two calls for each group of the deployment, and one for each page of them.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        list_by_tag::<Self>(api, filter, "elasticache:subnetgroup", |arn| {
            arn.split_once(":subnetgroup:").map(|(_, name)| name)
        })
        .await
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(spec.name.clone())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let call = api
            .elasticache
            .create_cache_subnet_group()
            .cache_subnet_group_name(&spec.name)
            .cache_subnet_group_description(&spec.description)
            .set_subnet_ids(Some(spec.subnets.clone()))
            .set_tags(Some(super::listed(&make.tags)));
        api.call(SERVICE, "create", format!("subnet group {}", spec.name), call.send()).await?;
        Ok(spec.name.clone())
    }

    /// One call has both fields.
    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, _field: &str) -> Result<()> {
        let call = api
            .elasticache
            .modify_cache_subnet_group()
            .cache_subnet_group_name(&seen.id)
            .cache_subnet_group_description(&spec.description)
            .set_subnet_ids(Some(spec.subnets.clone()));
        api.call(SERVICE, "change", &seen.id, call.send()).await.map(drop)
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, seen.outputs.get("arn").and_then(Value::as_str).unwrap_or_default(), set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.elasticache.delete_cache_subnet_group().cache_subnet_group_name(&seen.id).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}
