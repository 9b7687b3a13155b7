//! The Resource Groups Tagging API: what has a tag, across services.

use serde_json::{Value, json};

use crate::{Behaviour, Call, Fault, Service, Source, World};

/// The service.
pub const SERVICE: Service = Service {
    name: "tagging",
    model: "resourcegroupstaggingapi",
    operations: &[("GetResources", get_resources)],
    quotas: &[],
    ledger: LEDGER,
};

const LEDGER: &[Behaviour] = &[
    Behaviour {
        service: "tagging",
        what: "all filters must match, the values of a filter are alternatives, and a resource type is SERVICE or SERVICE:TYPE",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/resourcegroupstagging/latest/APIReference/API_GetResources.html",
        ),
    },
    Behaviour {
        service: "tagging",
        what: "a page has a hundred resources at most",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/resourcegroupstagging/latest/APIReference/API_GetResources.html",
        ),
    },
    Behaviour { service: "tagging", what: "tags are seen there after some seconds", source: Source::Assumed },
    Behaviour {
        service: "tagging",
        what: "it shows the region's resources and buckets",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/resourcegroupstagging/latest/APIReference/API_GetResources.html",
        ),
    },
    Behaviour {
        service: "tagging",
        what: "those of IAM are shown in us-east-1",
        source: Source::Report("cloud-custodian/cloud-custodian#2729"),
    },
    Behaviour {
        service: "tagging",
        what: "it shows neither users nor roles",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/resourcegroupstagging/latest/APIReference/supported-services.html",
        ),
    },
];

fn get_resources(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let filters: Vec<(&str, Vec<&str>)> = call
        .list("TagFilters")
        .iter()
        .map(|filter| {
            let values = filter["Values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            (filter["Key"].as_str().unwrap_or_default(), values)
        })
        .collect();
    let types = call.texts("ResourceTypeFilters");
    let place = format!(":{}:{}:", call.region, call.account);
    let mut found = Vec::new();
    for (arn, tags) in world.tags.listed("arn:aws:", call.now) {
        let is_here = arn.contains(&place) || is_bucket_of(world, call, arn) || is_global(call, arn);
        let is_of_type = types.is_empty() || types.iter().any(|wanted| is_of_type(arn, wanted));
        let matches = filters.iter().all(|(key, values)| {
            tags.get(*key).is_some_and(|value| values.is_empty() || values.contains(&value.as_str()))
        });
        if is_here && is_of_type && matches && !tags.is_empty() {
            let tags: Vec<Value> = tags.iter().map(|(key, value)| json!({ "Key": key, "Value": value })).collect();
            found.push(json!({ "ResourceARN": arn, "Tags": tags }));
        }
    }
    let mut call = call.clone();
    call.timing.page = call.timing.page.min(100);
    call.page("ResourceTagMappingList", found, Fault::new("PaginationTokenExpiredException", "The token has expired."))
}

fn is_bucket_of(world: &World, call: &Call, arn: &str) -> bool {
    let bucket = arn.strip_prefix("arn:aws:s3:::").and_then(|name| super::s3::bucket(world, name));
    bucket.is_some_and(|bucket| bucket.account == call.account && bucket.region == call.region)
}

fn is_global(call: &Call, arn: &str) -> bool {
    let resource = arn.strip_prefix(&format!("arn:aws:iam::{}:", call.account));
    call.region == "us-east-1"
        && resource.is_some_and(|resource| !resource.starts_with("role/") && !resource.starts_with("user/"))
}

/// Whether an ARN is of a type such as `rds`, `rds:pg` or `ecr:repository`.
fn is_of_type(arn: &str, wanted: &str) -> bool {
    let mut parts = arn.splitn(6, ':').skip(2);
    let (service, resource) = (parts.next().unwrap_or_default(), parts.nth(2).unwrap_or_default());
    let kind = resource.split(['/', ':']).next().unwrap_or_default();
    match wanted.split_once(':') {
        Some((wanted_service, wanted_kind)) => service == wanted_service && kind == wanted_kind,
        None => service == wanted,
    }
}
