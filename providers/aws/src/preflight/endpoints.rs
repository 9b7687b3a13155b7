//! Endpoints of SageMaker as they are.

use std::collections::BTreeMap;

use textnlp_cloud::preflight::unknown;
use textnlp_provider::{Problem, Result, Wanted};

use super::quotas::scaled_to;
use crate::api::Api;

const SERVICE: &str = "sagemaker";

/// Variants with autoscaling whose instances would be of another type: SageMaker refuses the update
/// (<https://docs.aws.amazon.com/sagemaker/latest/dg/endpoint-scaling.html>), after the new model and configuration were created.
pub(super) async fn instance_types(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let needs = |one: &Wanted, other: &Wanted| one.needs.iter().any(|need| need.on == other.id);
    for config in wanted.iter().filter(|one| one.kind.as_str() == "aws.endpoint-config") {
        let variants = config.spec.get("variants").and_then(|variants| variants.as_array()).into_iter().flatten();
        let scaled: Vec<_> = variants.filter(|one| scaled_to(wanted, config, &one["name"]).is_some()).collect();
        let endpoint = wanted.iter().find(|one| one.kind.as_str() == "aws.endpoint" && needs(one, config));
        let name = endpoint.and_then(|one| one.spec.get("name")?.as_str()).filter(|_| !scaled.is_empty());
        let Some((endpoint, name)) = endpoint.zip(name) else { continue };
        let present = match present(api, name).await {
            Ok(present) => present,
            Err(error) => {
                problems.push(unknown("the endpoint", &error));
                continue;
            }
        };
        for variant in scaled {
            let text = |field: &str| variant[field].as_str().unwrap_or_default();
            let (name, new) = (text("name"), text("instance_type"));
            let Some(old) = present.get(name).filter(|old| *old != new) else { continue };
            let cause = format!("SageMaker does not change {old} to {new} while the endpoint has autoscaling");
            let fix =
                "remove `scaling.max` and run `up`, change `sites[].instance_type` and run `up`, then set it again";
            problems.push(Problem::new(endpoint.id.to_string(), cause, fix));
        }
    }
    problems
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
