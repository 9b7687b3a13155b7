//! Dashboards: <https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_PutDashboard.html>.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::{Identity, Permission, Pricing, Result};

use super::SERVICE;
use crate::api::Api;
use crate::kinds::{CREATE, DELETE, PUT, only};
use crate::names;
use crate::resource::{Filter, Make, ObservedObject, Of, Resource};
use crate::table::{Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    kind: textnlp_provider::Kind {
        pricing: Pricing::BySpec,
        permissions: &[
            only(Permission::on(DELETE, "cloudwatch:DeleteDashboards"), DASHBOARDS),
            Permission::read("cloudwatch:GetDashboard"),
            Permission::read("cloudwatch:ListDashboards"),
            Permission::read("cloudwatch:ListTagsForResource"),
            only(Permission::on(PUT, "cloudwatch:PutDashboard"), DASHBOARDS),
            only(Permission::on(CREATE, "cloudwatch:TagResource"), DASHBOARDS),
            only(Permission::change("cloudwatch:TagResource"), DASHBOARDS),
            only(Permission::change("cloudwatch:UntagResource"), DASHBOARDS),
        ],
        terraform: &[("aws_cloudwatch_dashboard", "dashboard_name")],
        ..kind("aws.dashboard", "a dashboard of metrics", Identity::Named)
    },
    service: SERVICE,
    resource: &Of::<Dashboard>::kind(),
    refused: &[],
}];

/// The dashboards of this program: they are the account's, in no region.
const DASHBOARDS: &str = "arn:{$partition}:cloudwatch::{$account}:dashboard/textnlp-*";

/// A dashboard. Outputs: `name`, `arn`.
struct Dashboard;

/// The attributes of a dashboard.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    /// Its name, which no other dashboard of the account has.
    name: String,
    /// Its widgets
    /// (<https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/CloudWatch-Dashboard-Body-Structure.html>).
    body: Value,
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for Dashboard {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &["body"];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let arn = arn(api, id);
        let answer = api.find(SERVICE, id, api.cloudwatch.get_dashboard().dashboard_name(id).send()).await?;
        let Some(text) = answer.and_then(|answer| answer.dashboard_body) else { return Ok(None) };
        let Some(tags) = super::tags_of(api, id, &arn).await? else { return Ok(None) };
        // A body that is no JSON differs from every wanted one.
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        let spec = Spec { name: id.to_owned(), body, tags: Tags::new() };
        Ok(Some(ObservedObject::new(id, spec, tags).output("name", Some(id)).output("arn", Some(arn))))
    }

    /// One call for each thousand dashboards with our prefix, and two for each of them.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let pages = api.cloudwatch.list_dashboards().dashboard_name_prefix(names::PREFIX).into_paginator();
        let found: Vec<_> = api.call(SERVICE, "list", "dashboards", pages.items().send().try_collect()).await?;
        let mut all = Vec::new();
        for name in found.into_iter().filter_map(|one| one.dashboard_name) {
            all.extend(Self::read(api, &name).await?.filter(|seen| filter.matches(&seen.tags)));
        }
        Ok(all)
    }

    fn id(spec: &Spec) -> Option<String> {
        Some(spec.name.clone())
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        put(api, spec, Some(&make.tags)).await?;
        Ok(spec.name.clone())
    }

    async fn put(api: &Api, _seen: &ObservedObject<Spec>, spec: &Spec, _field: &str) -> Result<()> {
        put(api, spec, None).await
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, &seen.id, &arn(api, &seen.id), set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.cloudwatch.delete_dashboards().dashboard_names(&seen.id).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

async fn put(api: &Api, spec: &Spec, tags: Option<&Tags>) -> Result<()> {
    let call = api.cloudwatch.put_dashboard().dashboard_name(&spec.name).dashboard_body(spec.body.to_string());
    let call = call.set_tags(tags.map(super::listed)).send();
    api.call(SERVICE, "put", format!("dashboard {}", spec.name), call).await.map(drop)
}

/// The ARN of a dashboard of this account.
fn arn(api: &Api, name: &str) -> String {
    api.arn("cloudwatch", "", &format!("dashboard/{name}"))
}
