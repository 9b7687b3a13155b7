//! Endpoints of SageMaker: <https://docs.aws.amazon.com/sagemaker/latest/APIReference/Welcome.html>.
//!
//! Models and endpoint configurations never change: a changed one is created beside the old one, the endpoint moves to it, and the
//! old one is deleted. Their names are unique, so that each ends with a part of the token of the operation that created it. The
//! same call, repeated, therefore finds the object of the first one.

mod endpoint;
mod endpoint_config;
mod model;

use aws_sdk_sagemaker::types::Tag;
use textnlp_provider::{Condition, Error, ErrorKind, Identity, Kind, Permission, Pricing, Result};

use self::endpoint::Endpoint;
use self::endpoint_config::EndpointConfig;
use self::model::Model;
use super::{CREATE, DELETE, FOR_SERVICE, KEYS, PUT, only, when};
use crate::api::Api;
use crate::resource::{Make, Of};
use crate::table::{MINUTE, Row, kind};
use crate::tags::{self, Tags};

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            // SageMaker pulls the image and reads the model as the execution role; the caller needs neither.
            permissions: &[
                Permission { resource: "{role}", conditions: PASSED, ..Permission::on(CREATE, "iam:PassRole") },
                only(Permission::on(PUT, "sagemaker:AddTags"), MODEL),
                only(Permission::on(CREATE, "sagemaker:CreateModel"), MODEL),
                only(Permission::on(DELETE, "sagemaker:DeleteModel"), MODEL),
                only(Permission::on(PUT, "sagemaker:DeleteTags"), MODEL),
                Permission::read("sagemaker:DescribeModel"),
                Permission::read("sagemaker:ListTags"),
            ],
            terraform: &[("aws_sagemaker_model", "name")],
            ..kind("aws.sagemaker-model", "an image with a model, for endpoints of SageMaker", Identity::Token)
        },
        service: SERVICE,
        resource: &Of::<Model>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            permissions: &[
                // SageMaker makes a grant of the key for its volumes, as the caller.
                when(FOR_SERVICE, only(Permission::on(CREATE, "kms:CreateGrant{?key}"), KEYS)),
                only(Permission::on(CREATE, "kms:DescribeKey{?key}"), KEYS),
                only(Permission::on(PUT, "sagemaker:AddTags"), CONFIG),
                only(Permission::on(CREATE, "sagemaker:CreateEndpointConfig"), CONFIG),
                only(Permission::on(DELETE, "sagemaker:DeleteEndpointConfig"), CONFIG),
                only(Permission::on(PUT, "sagemaker:DeleteTags"), CONFIG),
                Permission::read("sagemaker:DescribeEndpointConfig"),
                Permission::read("sagemaker:ListTags"),
                // The quotas of instance types are known by their names only.
                Permission::read("servicequotas:ListServiceQuotas"),
            ],
            pricing: Pricing::BySpec,
            terraform: &[("aws_sagemaker_endpoint_configuration", "name")],
            ..kind("aws.endpoint-config", "the instances of a SageMaker endpoint", Identity::Token)
        },
        service: SERVICE,
        resource: &Of::<EndpointConfig>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            // A linear update waits up to an hour after each of at most ten steps; SageMaker ends it after eight hours.
            deadline: MINUTE.saturating_mul(9 * 60),
            permissions: &[
                only(Permission::on(PUT, "sagemaker:AddTags"), ENDPOINT),
                only(Permission::on(CREATE, "sagemaker:CreateEndpoint"), ENDPOINT),
                // An endpoint's creation and update need both: <https://docs.aws.amazon.com/sagemaker/latest/dg/api-permissions-reference.html>.
                only(Permission::on(CREATE, "sagemaker:CreateEndpoint"), ANY_CONFIG),
                only(Permission::on(DELETE, "sagemaker:DeleteEndpoint"), ENDPOINT),
                only(Permission::on(PUT, "sagemaker:DeleteTags"), ENDPOINT),
                Permission::read("sagemaker:DescribeEndpoint"),
                Permission::read("sagemaker:DescribeEndpointConfig"),
                // `up` ends with a first text, and `generate` and `chat` ask for more.
                only(Permission::read("sagemaker:InvokeEndpoint"), ENDPOINT),
                Permission::read("sagemaker:ListTags"),
                only(Permission::on(PUT, "sagemaker:UpdateEndpoint"), ENDPOINT),
                only(Permission::on(PUT, "sagemaker:UpdateEndpoint"), ANY_CONFIG),
                only(Permission::on(PUT, "sagemaker:UpdateEndpointWeightsAndCapacities"), ENDPOINT),
            ],
            terraform: &[("aws_sagemaker_endpoint", "name")],
            typical: Some(MINUTE.saturating_mul(8)),
            ..kind("aws.endpoint", "an endpoint of SageMaker, which clients invoke", Identity::Named)
        },
        service: SERVICE,
        resource: &Of::<Endpoint>::kind(),
        refused: &[],
    },
];

/// The role is for this service only.
const PASSED: &[Condition] = &[Condition { key: "iam:PassedToService", value: "sagemaker.amazonaws.com" }];

const MODEL: &str = "arn:{$partition}:sagemaker:{$region}:{$account}:model/{name}-*";
const CONFIG: &str = "arn:{$partition}:sagemaker:{$region}:{$account}:endpoint-config/{name}-*";
const ANY_CONFIG: &str = "arn:{$partition}:sagemaker:{$region}:{$account}:endpoint-config/*";
const ENDPOINT: &str = "arn:{$partition}:sagemaker:{$region}:{$account}:endpoint/{name}";

/// The signing name.
const SERVICE: &str = "sagemaker";

/// How many digits of the token a name ends with.
const DIGITS: usize = 12;

/// The name of the object that an operation creates. `name` has at most 50 bytes, because names have at most 63.
fn unique(name: &str, token: &str) -> String {
    format!("{name}-{}", token.get(..DIGITS).unwrap_or(token))
}

/// The name in the spec of such an object; the whole name of one that no operation created.
fn base(name: &str, tags: &Tags) -> String {
    let token = tags.get(tags::OPERATION).and_then(|token| token.get(..DIGITS));
    let base = token.and_then(|token| name.strip_suffix(token)).and_then(|name| name.strip_suffix('-'));
    base.unwrap_or(name).to_owned()
}

/// The name of the created object. Its call may be repeated.
async fn created<T>(api: &Api, make: &Make<'_>, kind: &str, name: String, outcome: Result<T>) -> Result<String> {
    match outcome {
        Ok(_) => Ok(name),
        Err(error) if error.kind == ErrorKind::Exists => {
            let arn = api.arn(SERVICE, &api.region, &format!("{kind}/{name}"));
            let tags = tags_of(api, &arn).await?.unwrap_or_default();
            if tags.get(tags::OPERATION).map(String::as_str) == Some(make.token) { Ok(name) } else { Err(error) }
        }
        Err(error) => Err(late(error)),
    }
}

/// The error of a call that names another object: a new one may be found some seconds later.
fn late(error: Error) -> Error {
    if error.kind == ErrorKind::NotFound { Error { kind: ErrorKind::Conflict, ..error } } else { error }
}

/// The name in an ARN.
fn name_in(arn: &str) -> Option<&str> {
    arn.rsplit_once('/').map(|(_, name)| name)
}

/// The tags of an object, which its description does not show; `None` when it is gone.
async fn tags_of(api: &Api, arn: &str) -> Result<Option<Tags>> {
    let pages = api.sagemaker.list_tags().resource_arn(arn).into_paginator().items().send();
    let tags: Option<Vec<Tag>> = api.find(SERVICE, arn, pages.try_collect()).await?;
    let pair = |tag: Tag| Some((tag.key?, tag.value?));
    Ok(tags.map(|tags| tags.into_iter().filter_map(pair).collect()))
}

/// Changes the tags of an object with one call.
async fn tag(api: &Api, arn: Option<&serde_json::Value>, set: &Tags, remove: &[String]) -> Result<()> {
    let (sagemaker, arn) = (&api.sagemaker, arn.and_then(serde_json::Value::as_str).unwrap_or_default());
    if set.is_empty() {
        let call = sagemaker.delete_tags().resource_arn(arn).set_tag_keys(Some(remove.to_vec())).send();
        return api.call(SERVICE, "remove tags of", arn, call).await.map(drop);
    }
    let call = sagemaker.add_tags().resource_arn(arn).set_tags(Some(listed(set))).send();
    api.call(SERVICE, "set tags of", arn, call).await.map(drop)
}

fn listed(tags: &Tags) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}

/// A weight, which SageMaker has as a fraction; -1 for one that is no whole number, which no spec has.
fn whole(weight: Option<f32>) -> i32 {
    let weight = weight.unwrap_or(1.0);
    if weight.fract() == 0.0 && (0.0..16_777_216.0).contains(&weight) { weight as i32 } else { -1 }
}

/// The same weight as SageMaker has it.
fn fraction(weight: i32) -> f32 {
    weight as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_operations_are_told_from_others() {
        let token = "0123456789abcdef0123456789abcdef";
        let name = unique("textnlp-staging-here-gpt2", token);
        assert_eq!(name, "textnlp-staging-here-gpt2-0123456789ab");
        let tags = Tags::from([(tags::OPERATION.to_owned(), token.to_owned())]);
        assert_eq!(base(&name, &tags), "textnlp-staging-here-gpt2");
        assert_eq!(base(&name, &Tags::new()), name, "one that was created by hand");
    }

    #[test]
    fn weights_that_no_spec_has_differ_from_every_spec() {
        assert_eq!([None, Some(0.0), Some(90.0), Some(0.5), Some(-1.0)].map(whole), [1, 0, 90, -1, -1]);
        assert!((fraction(90) - 90.0).abs() < f32::EPSILON);
    }
}
