//! Elastic Compute Cloud.

mod tags;
mod vpc;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{Behaviour, Call, Fault, Service, Source};

/// The service.
pub const SERVICE: Service = Service {
    name: "ec2",
    model: "ec2",
    operations: &[
        ("CreateTags", tags::create),
        ("CreateVpc", vpc::create),
        ("DeleteTags", tags::delete),
        ("DeleteVpc", vpc::delete),
        ("DescribeTags", tags::describe),
        ("DescribeVpcs", vpc::describe),
    ],
    quotas: &[vpc::VPCS],
    ledger: LEDGER,
};

const LEDGER: &[Behaviour] = &[
    Behaviour {
        service: "ec2",
        what: "filters take `*` and `?`, and values are alternatives",
        source: Source::Documentation("https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Filtering.html"),
    },
    Behaviour {
        service: "ec2",
        what: "tags of a new resource are set by its TagSpecifications; keys that start with aws: are refused",
        source: Source::Documentation("https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html"),
    },
    Behaviour {
        service: "ec2",
        what: "InvalidVpcID.NotFound, InvalidVpc.Range, VpcLimitExceeded and DependencyViolation of VPCs",
        source: Source::Documentation("https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html"),
    },
    Behaviour { service: "ec2", what: "a VPC is pending for some seconds", source: Source::Assumed },
];

/// What EC2 holds in a region.
#[derive(Default)]
pub struct Ec2 {
    /// The VPCs by their ids.
    pub vpcs: BTreeMap<String, vpc::Vpc>,
}

/// The tags that an input sets on a new resource of a type such as `vpc`.
pub(crate) fn new_tags(call: &Call, resource_type: &str) -> Result<Vec<(String, String)>, Fault> {
    let mut tags = Vec::new();
    for specification in call.list("TagSpecifications") {
        let given = specification["ResourceType"].as_str().unwrap_or_default();
        if given != resource_type {
            let message = format!("'{given}' is not a valid taggable resource type for this operation.");
            return Err(Fault::new("InvalidParameterValue", message));
        }
        tags.extend(tags::pairs(specification["Tags"].as_array().map_or(&[], Vec::as_slice))?);
    }
    Ok(tags)
}

/// Tags as outputs hold them.
pub(crate) fn tag_list(tags: &BTreeMap<String, String>) -> Value {
    tags.iter().map(|(key, value)| json!({ "Key": key, "Value": value })).collect()
}
