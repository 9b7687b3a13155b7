//! Health checks from the internet: <https://docs.aws.amazon.com/Route53/latest/APIReference/API_CreateHealthCheck.html>.

use std::net::Ipv4Addr;

use async_trait::async_trait;
use aws_sdk_route53::types::{HealthCheck as Answer, HealthCheckConfig, HealthCheckType, Tag, TagResourceType};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::{Error, ErrorKind, Identity, Permission, Pricing, Result};

use super::SERVICE;
use crate::api::Api;
use crate::kinds::{CREATE, DELETE, PUT, only};
use crate::resource::{Filter, Make, ObservedObject, Of, Resource};
use crate::table::{Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        pricing: Pricing::BySpec,
        permissions: &[
            only(Permission::on(PUT, "route53:ChangeTagsForResource"), CHECK),
            Permission::on(CREATE, "route53:CreateHealthCheck"),
            only(Permission::on(DELETE, "route53:DeleteHealthCheck"), CHECK),
            only(Permission::read("route53:GetHealthCheck"), CHECK),
            Permission::read("route53:ListHealthChecks"),
            only(Permission::read("route53:ListTagsForResource"), CHECK),
            only(Permission::read("route53:ListTagsForResources"), CHECK),
            only(Permission::on(PUT, "route53:UpdateHealthCheck"), CHECK),
        ],
        terraform: &[("aws_route53_health_check", "id")],
        ..kind("aws.health-check", "a health check from the internet", Identity::Token)
    },
    service: SERVICE,
    resource: &Of::<HealthCheck>::kind(),
    refused: &[],
}];

const CHECK: &str = "arn:{$partition}:route53:::healthcheck/*";
/// The most ids in one call for tags.
const IDS: usize = 10;
/// The output that guards a change against another client's.
const VERSION: &str = "version";

/// A health check over HTTPS. Outputs: `id`, `version`.
struct HealthCheck;

/// The attributes of a health check.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// The name or the IPv4 address that is probed; a plan has a reference.
    host: Value,
    /// The name that is sent to an address; null for a `host` that is a name itself.
    name: Option<String>,
    /// The port.
    port: i32,
    /// The path: an answer from 200 to 399 is healthy.
    path: String,
    /// Seconds between two requests of one checker: 10 or 30.
    interval: i32,
    /// Failed requests in a row after which it is unhealthy, 1 to 10.
    failures: i32,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for HealthCheck {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["host", "name", "port", "path", "failures"];
    const HAS_CLIENT_TOKEN: bool = true;

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let call = api.route53.get_health_check().health_check_id(id).send();
        let Some(check) = api.find(SERVICE, id, call).await?.and_then(|answer| answer.health_check) else {
            return Ok(None);
        };
        let call = api.route53.list_tags_for_resource().resource_type(TagResourceType::Healthcheck).resource_id(id);
        let answer = api.find(SERVICE, id, call.send()).await?;
        let tags = answer.and_then(|answer| answer.resource_tag_set).and_then(|set| set.tags);
        Ok(Some(seen(check, plain(tags))))
    }

    /// One call for each page, and one for the tags of ten of them.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let pages = api.route53.list_health_checks().into_paginator().items().send();
        let found: Vec<Answer> = api.call(SERVICE, "list", "health checks", pages.try_collect()).await?;
        let mut all = Vec::new();
        for checks in found.chunks(IDS) {
            let ids = checks.iter().map(|check| check.id.clone()).collect();
            let call = api.route53.list_tags_for_resources().resource_type(TagResourceType::Healthcheck);
            let call = call.set_resource_ids(Some(ids)).send();
            // One that was deleted since hides the tags of the others; the next list has them.
            let Some(answer) = api.find(SERVICE, "health checks", call).await? else { continue };
            for set in answer.resource_tag_sets {
                let check = checks.iter().find(|check| set.resource_id.as_ref() == Some(&check.id));
                let tags = plain(set.tags);
                all.extend(check.filter(|_| filter.matches(&tags)).map(|check| seen(check.clone(), tags)));
            }
        }
        Ok(all)
    }

    /// Route 53 takes no tags with this call: they follow at once. The check is there and billed if they cannot be set, so its id is
    /// returned then too: the driver sets what is missing, and reports its failure with the check.
    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let (address, name) = target(spec, "create")?;
        let config = HealthCheckConfig::builder()
            .r#type(HealthCheckType::Https)
            .set_ip_address(address)
            .set_fully_qualified_domain_name(name)
            .port(spec.port)
            .resource_path(&spec.path)
            .request_interval(spec.interval)
            .failure_threshold(spec.failures)
            .enable_sni(true)
            .build()
            .map_err(|error| Error::new(ErrorKind::Invalid, "create", "health check").because(error))?;
        let call = api.route53.create_health_check().caller_reference(make.token).health_check_config(config).send();
        let answer = api.call(SERVICE, "create", "health check", call).await?;
        let id = answer.health_check.map(|check| check.id).unwrap_or_default();
        drop(tag(api, &id, &make.tags, &[]).await);
        Ok(id)
    }

    async fn put(api: &Api, seen: &ObservedObject<Spec>, spec: &Spec, _field: &str) -> Result<()> {
        let (address, name) = target(spec, "change")?;
        // <https://docs.aws.amazon.com/Route53/latest/APIReference/API_UpdateHealthCheck.html>
        if address.is_some() != target(&seen.spec, "change")?.0.is_some() {
            let error = Error::new(ErrorKind::Invalid, "change", seen.id.clone());
            let why = "Route 53 cannot change a health check of an address into one of a name, nor the other way";
            return Err(error.because(why).hint("delete it: the next `up` creates another"));
        }
        let version = seen.outputs.get(VERSION).and_then(Value::as_i64);
        let call = api
            .route53
            .update_health_check()
            .health_check_id(&seen.id)
            .set_health_check_version(version)
            .set_ip_address(address)
            .set_fully_qualified_domain_name(name)
            .port(spec.port)
            .resource_path(&spec.path)
            .failure_threshold(spec.failures);
        api.call(SERVICE, "change", &seen.id, call.send()).await.map(drop)
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        tag(api, &seen.id, set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.route53.delete_health_check().health_check_id(&seen.id).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

async fn tag(api: &Api, id: &str, set: &Tags, remove: &[String]) -> Result<()> {
    let call = api.route53.change_tags_for_resource().resource_type(TagResourceType::Healthcheck).resource_id(id);
    let call = match set.is_empty() {
        true => call.set_remove_tag_keys(Some(remove.to_vec())),
        false => {
            let tags = set.iter().map(|(key, value)| Tag::builder().key(key).value(value).build());
            call.set_add_tags(Some(tags.collect()))
        }
    };
    api.call(SERVICE, "set tags of", id, call.send()).await.map(drop)
}

/// The address that is probed, and the name that is sent to it or, without an address, probed.
fn target(spec: &Spec, action: &str) -> Result<(Option<String>, Option<String>)> {
    let host = spec.host.as_str();
    let host = host.ok_or_else(|| Error::new(ErrorKind::Invalid, action, "health check").because("it has no host"))?;
    Ok(match host.parse::<Ipv4Addr>() {
        Ok(_) => (Some(host.to_owned()), spec.name.clone()),
        Err(_) => (None, Some(host.to_owned())),
    })
}

fn seen(check: Answer, tags: Tags) -> ObservedObject<Spec> {
    let config = check.health_check_config;
    let config = config.as_ref();
    let address = config.and_then(|config| config.ip_address.clone());
    let name = config.and_then(|config| config.fully_qualified_domain_name.clone());
    let (host, name) = if address.is_some() { (address, name) } else { (name, None) };
    let spec = Spec {
        host: host.map_or(Value::Null, Value::from),
        name,
        port: config.and_then(|config| config.port).unwrap_or_default(),
        path: config.and_then(|config| config.resource_path.clone()).unwrap_or_default(),
        interval: config.and_then(|config| config.request_interval).unwrap_or_default(),
        failures: config.and_then(|config| config.failure_threshold).unwrap_or_default(),
        tags: Tags::new(),
    };
    let seen = ObservedObject::new(&check.id, spec, tags).output("id", Some(check.id));
    seen.output(VERSION, Some(check.health_check_version))
}

fn plain(tags: Option<Vec<Tag>>) -> Tags {
    let pairs = tags.unwrap_or_default().into_iter().filter_map(|tag| Some((tag.key?, tag.value.unwrap_or_default())));
    pairs.collect()
}
