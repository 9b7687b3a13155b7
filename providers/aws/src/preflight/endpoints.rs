//! Endpoints of SageMaker as they are.

use std::collections::BTreeMap;

use aws_sdk_applicationautoscaling::types::{ScalableDimension, ServiceNamespace};
use textnlp_cloud::preflight::unknown;
use textnlp_provider::{Problem, Result, Wanted};

use crate::api::Api;

const SERVICE: &str = "sagemaker";

/// Variants with autoscaling whose instances would be of another type: SageMaker refuses the update
/// (<https://docs.aws.amazon.com/sagemaker/latest/dg/endpoint-scaling.html>), after the new model and configuration were created.
/// Autoscaling that the same plan removes counts too: it ends after the update.
pub(super) async fn instance_types(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let needs = |one: &Wanted, other: &Wanted| one.needs.iter().any(|need| need.on == other.id);
    for config in wanted.iter().filter(|one| one.kind.as_str() == "aws.endpoint-config") {
        let endpoint = wanted.iter().find(|one| one.kind.as_str() == "aws.endpoint" && needs(one, config));
        let name = endpoint.and_then(|one| one.spec.get("name")?.as_str());
        let Some((endpoint, name)) = endpoint.zip(name) else { continue };
        match changed(api, name, config).await {
            Ok(Some((old, new))) => {
                let cause = format!("SageMaker does not change {old} to {new} while the endpoint has autoscaling");
                let fix =
                    "remove `scaling.max` and run `up`, change `sites[].instance_type` and run `up`, then set it again";
                problems.push(Problem::new(endpoint.id.to_string(), cause, fix));
            }
            Ok(None) => {}
            Err(error) => problems.push(unknown("the endpoint", &error)),
        }
    }
    problems
}

/// The present and the wanted instance type of a variant with autoscaling, if they differ.
async fn changed(api: &Api, name: &str, config: &Wanted) -> Result<Option<(String, String)>> {
    let present = present(api, name).await?;
    let variants = config.spec.get("variants").and_then(|variants| variants.as_array()).into_iter().flatten();
    for variant in variants {
        let text = |field: &str| variant[field].as_str().unwrap_or_default();
        let (variant, new) = (text("name"), text("instance_type"));
        let Some(old) = present.get(variant).filter(|old| *old != new) else { continue };
        let call = api.autoscaling.describe_scalable_targets().service_namespace(ServiceNamespace::Sagemaker);
        let call = call.resource_ids(format!("endpoint/{name}/variant/{variant}"));
        let call = call.scalable_dimension(ScalableDimension::SageMakerVariantDesiredInstanceCount).send();
        let found = api.find("application-autoscaling", name, call).await?;
        if found.is_some_and(|found| found.scalable_targets.is_some_and(|targets| !targets.is_empty())) {
            return Ok(Some((old.clone(), new.to_owned())));
        }
    }
    Ok(None)
}

/// The instance types of an endpoint by its variants; none where it is not there.
async fn present(api: &Api, name: &str) -> Result<BTreeMap<String, String>> {
    let call = api.sagemaker.describe_endpoint().endpoint_name(name).send();
    let config = api.find(SERVICE, name, call).await?.and_then(|endpoint| endpoint.endpoint_config_name);
    let Some(config) = config else { return Ok(BTreeMap::new()) };
    let call = api.sagemaker.describe_endpoint_config().endpoint_config_name(&config).send();
    let variants = api.find(SERVICE, &config, call).await?.and_then(|config| config.production_variants);
    let of =
        |one: aws_sdk_sagemaker::types::ProductionVariant| Some((one.variant_name?, one.instance_type?.to_string()));
    Ok(variants.unwrap_or_default().into_iter().filter_map(of).collect())
}
