//! Models: <https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateModel.html>.

use std::collections::BTreeMap;

use async_trait::async_trait;
use aws_sdk_sagemaker::types::{
    ContainerDefinition, ModelCompressionType, ModelDataSource, S3ModelDataSource, S3ModelDataType, VpcConfig,
};
use serde::{Deserialize, Serialize};
use textnlp_provider::{Error, ErrorKind, Result};

use super::SERVICE;
use crate::api::Api;
use crate::kinds::list_by_tag;
use crate::resource::{Filter, Make, ObservedObject, Resource};
use crate::tags::Tags;

/// An image with a model. Outputs: `name`, `arn`.
pub(super) struct Model;

/// The attributes of a model.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Spec {
    /// The start of its name, at most 50 bytes.
    name: String,
    /// The image by its digest: `REGISTRY/NAME@sha256:…`.
    image: String,
    /// Where the model is in S3; null if it is in the image.
    data: Option<Data>,
    /// Environment variables of the container. Every identity that may describe the model reads them: they hold no secrets.
    environment: BTreeMap<String, String>,
    /// The ARN of the execution role.
    role: String,
    /// The subnets of its network interfaces; with none the container is in a network of SageMaker.
    subnets: Vec<String>,
    /// The security groups of its network interfaces.
    security_groups: Vec<String>,
    /// Whether the container can reach no network at all.
    isolated: bool,
    #[serde(default)]
    tags: Tags,
}

/// A model in S3, which SageMaker copies to `/opt/ml/model`.
#[derive(Debug, Serialize, Deserialize)]
struct Data {
    /// `s3://BUCKET/PREFIX/`.
    uri: String,
    /// `S3Prefix` for all objects with that prefix, `S3Object` for one.
    kind: String,
    /// `None` or `Gzip`: an archive, which SageMaker unpacks.
    compression: String,
}

#[async_trait]
impl Resource<Api> for Model {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &[];
    const HAS_CLIENT_TOKEN: bool = true;

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let call = api.sagemaker.describe_model().model_name(id).send();
        let Some(model) = api.find(SERVICE, id, call).await? else { return Ok(None) };
        let arn = model.model_arn.unwrap_or_default();
        let Some(tags) = super::tags_of(api, &arn).await? else { return Ok(None) };
        let container = model.primary_container.unwrap_or_else(|| ContainerDefinition::builder().build());
        let network = model.vpc_config.unwrap_or_else(|| VpcConfig::builder().build());
        let spec = Spec {
            name: super::base(id, &tags),
            data: data(&container),
            image: container.image.unwrap_or_default(),
            environment: container.environment.unwrap_or_default().into_iter().collect(),
            role: model.execution_role_arn.unwrap_or_default(),
            subnets: network.subnets.unwrap_or_default(),
            security_groups: network.security_group_ids.unwrap_or_default(),
            isolated: model.enable_network_isolation.unwrap_or_default(),
            tags: Tags::new(),
        };
        Ok(Some(ObservedObject::new(id, spec, tags).output("name", Some(id)).output("arn", Some(arn))))
    }

    /// Two calls for each model of the deployment, and one for each page of them.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        list_by_tag::<Self>(api, filter, "sagemaker:model", super::name_in).await
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        if !spec.image.contains("@sha256:") {
            let error = Error::new(ErrorKind::Invalid, "create", format!("model {}", spec.name));
            return Err(
                error.because(format!("the image `{}` has no digest: a tag can become another image", spec.image))
            );
        }
        let mut container = ContainerDefinition::builder().image(&spec.image);
        if !spec.environment.is_empty() {
            container = container.set_environment(Some(spec.environment.clone().into_iter().collect()));
        }
        if let Some(data) = &spec.data {
            let source = S3ModelDataSource::builder()
                .s3_uri(&data.uri)
                .s3_data_type(S3ModelDataType::from(data.kind.as_str()))
                .compression_type(ModelCompressionType::from(data.compression.as_str()));
            let source = ModelDataSource::builder().s3_data_source(source.build()).build();
            container = container.model_data_source(source);
        }
        let network = VpcConfig::builder()
            .set_subnets(Some(spec.subnets.clone()))
            .set_security_group_ids(Some(spec.security_groups.clone()));
        let name = super::unique(&spec.name, make.token);
        let call = api
            .sagemaker
            .create_model()
            .model_name(&name)
            .primary_container(container.build())
            .execution_role_arn(&spec.role)
            .set_vpc_config((!spec.subnets.is_empty()).then(|| network.build()))
            .enable_network_isolation(spec.isolated)
            .set_tags(Some(super::listed(&make.tags)));
        let outcome = api.call(SERVICE, "create", format!("model {name}"), call.send()).await;
        super::created(api, make, "model", name, outcome).await
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, seen.outputs.get("arn"), set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.sagemaker.delete_model().model_name(&seen.id).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}

/// The data of a container; the older `ModelDataUrl` always is an archive.
fn data(container: &ContainerDefinition) -> Option<Data> {
    if let Some(source) = container.model_data_source().and_then(ModelDataSource::s3_data_source) {
        return Some(Data {
            uri: source.s3_uri().unwrap_or_default().to_owned(),
            kind: source.s3_data_type().map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
            compression: source.compression_type().map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
        });
    }
    let archive = |uri: &str| Data { uri: uri.to_owned(), kind: "S3Object".to_owned(), compression: "Gzip".to_owned() };
    container.model_data_url().map(archive)
}
