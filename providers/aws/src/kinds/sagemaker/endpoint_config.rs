//! Endpoint configurations: <https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateEndpointConfig.html>.

use async_trait::async_trait;
use aws_sdk_sagemaker::types::{
    ProductionVariant, ProductionVariantInferenceAmiVersion, ProductionVariantInstanceType,
};
use serde::{Deserialize, Serialize};
use textnlp_provider::Result;

use super::SERVICE;
use crate::api::Api;
use crate::kinds::list_by_tag;
use crate::resource::{Filter, Make, ObservedObject, Resource};
use crate::tags::Tags;

/// The instances of an endpoint. Outputs: `name`, `arn`.
pub(super) struct EndpointConfig;

/// The attributes of an endpoint configuration.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Spec {
    /// The start of its name, at most 50 bytes.
    name: String,
    /// The ARN of the key of the instances' volumes; null is a key of AWS, or that of disks of the instances' own.
    key: Option<String>,
    /// What requests are distributed over.
    variants: Vec<Variant>,
    #[serde(default)]
    tags: Tags,
}

/// A production variant: instances with one model.
#[derive(Debug, Serialize, Deserialize)]
struct Variant {
    name: String,
    /// The name of its model.
    model: String,
    /// `ml.c7i.xlarge`.
    instance_type: String,
    /// The number of its instances at first.
    count: i32,
    /// Its part of the requests, relative to the other variants, at first.
    weight: i32,
    /// The size of each instance's volume; null for types with disks of their own.
    volume_gb: Option<i32>,
    /// How long the download of the model may take, 60 to 3600.
    download_seconds: i32,
    /// How long a container may take until it answers health checks, 60 to 3600.
    startup_seconds: i32,
    /// The AMI of the instances, which has the driver of their GPUs; SageMaker chooses one without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ami: Option<String>,
}

#[async_trait]
impl Resource<Api> for EndpointConfig {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &[];
    const HAS_CLIENT_TOKEN: bool = true;

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let call = api.sagemaker.describe_endpoint_config().endpoint_config_name(id).send();
        let Some(config) = api.find(SERVICE, id, call).await? else { return Ok(None) };
        let arn = config.endpoint_config_arn.unwrap_or_default();
        let Some(tags) = super::tags_of(api, &arn).await? else { return Ok(None) };
        let variant = |one: ProductionVariant| Variant {
            name: one.variant_name.unwrap_or_default(),
            model: one.model_name.unwrap_or_default(),
            instance_type: one.instance_type.map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
            count: one.initial_instance_count.unwrap_or_default(),
            weight: super::whole(one.initial_variant_weight),
            volume_gb: one.volume_size_in_gb,
            download_seconds: one.model_data_download_timeout_in_seconds.unwrap_or_default(),
            startup_seconds: one.container_startup_health_check_timeout_in_seconds.unwrap_or_default(),
            ami: one.inference_ami_version.map(|ami| ami.as_str().to_owned()),
        };
        let spec = Spec {
            name: super::base(id, &tags),
            key: config.kms_key_id,
            variants: config.production_variants.unwrap_or_default().into_iter().map(variant).collect(),
            tags: Tags::new(),
        };
        Ok(Some(ObservedObject::new(id, spec, tags).output("name", Some(id)).output("arn", Some(arn))))
    }

    /// Two calls for each configuration of the deployment, and one for each page of them.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        list_by_tag::<Self>(api, filter, "sagemaker:endpoint-config", super::name_in).await
    }

    async fn create(api: &Api, make: &Make<'_>, spec: &Spec) -> Result<String> {
        let variant = |one: &Variant| {
            ProductionVariant::builder()
                .variant_name(&one.name)
                .model_name(&one.model)
                .instance_type(ProductionVariantInstanceType::from(one.instance_type.as_str()))
                .initial_instance_count(one.count)
                .initial_variant_weight(super::fraction(one.weight))
                .set_volume_size_in_gb(one.volume_gb)
                .model_data_download_timeout_in_seconds(one.download_seconds)
                .container_startup_health_check_timeout_in_seconds(one.startup_seconds)
                .set_inference_ami_version(one.ami.as_deref().map(ProductionVariantInferenceAmiVersion::from))
                .build()
        };
        let name = super::unique(&spec.name, make.token);
        let call = api
            .sagemaker
            .create_endpoint_config()
            .endpoint_config_name(&name)
            .set_kms_key_id(spec.key.clone())
            .set_production_variants(Some(spec.variants.iter().map(variant).collect()))
            .set_tags(Some(super::listed(&make.tags)));
        let outcome = api.call(SERVICE, "create", format!("endpoint configuration {name}"), call.send()).await;
        super::created(api, make, "endpoint-config", name, outcome).await
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, seen.outputs.get("arn"), set, remove).await
    }

    /// SageMaker deletes it also while an endpoint uses it: the engine deletes it once the endpoint moved to another one.
    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.sagemaker.delete_endpoint_config().endpoint_config_name(&seen.id).send();
        api.call(SERVICE, "delete", &seen.id, call).await.map(drop)
    }
}
