//! Elastic IP addresses: <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_AllocateAddress.html>.

use async_trait::async_trait;
use aws_sdk_ec2::types::{Address as Answer, DomainType, ResourceType};
use serde::{Deserialize, Serialize};
use textnlp_provider::{Error, ErrorKind, Identity, Permission, Result};

use super::{CREATE_TAGS, QUICK, SERVICE, TAGS, UNTAGS, creates, deletes};
use crate::api::Api;
use crate::resource::{Filter, Make, ObservedObject, Of, Resource};
use crate::table::{Row, kind};
use crate::tags::Tags;

pub(crate) static ROWS: &[Row] = &[Row {
    // Its cost: an hour each, in use or not.
    kind: textnlp_provider::Kind {
        permissions: &[
            creates("ec2:AllocateAddress"),
            CREATE_TAGS,
            TAGS,
            UNTAGS,
            Permission::read("ec2:DescribeAddresses"),
            deletes("ec2:ReleaseAddress"),
        ],
        typical: QUICK,
        terraform: &[("aws_eip", "id")],
        pricing: textnlp_provider::Pricing::BySpec,
        ..kind("aws.elastic-ip", "a public IPv4 address", Identity::Token)
    },
    service: SERVICE,
    resource: &Of::<Address>::kind(),
    refused: &[],
}];

/// An Elastic IP address. Outputs: `id`, `address`.
struct Address;

/// The attributes of an address.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    #[serde(default)]
    tags: Tags,
}

#[async_trait]
impl Resource<Api> for Address {
    type Spec = Spec;
    const IN_PLACE: &'static [&'static str] = &[];

    async fn read(api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        let answer = api.find(SERVICE, id, api.ec2.describe_addresses().allocation_ids(id).send()).await?;
        Ok(answer.and_then(|answer| answer.addresses.unwrap_or_default().into_iter().find_map(seen)))
    }

    /// One call: the answer has no pages.
    async fn list(api: &Api, filter: &Filter) -> Result<Vec<ObservedObject<Spec>>> {
        let call = api.ec2.describe_addresses().filters(super::filter(filter)).send();
        let answer = api.call(SERVICE, "list", "addresses", call).await?;
        Ok(answer.addresses.unwrap_or_default().into_iter().filter_map(seen).collect())
    }

    async fn create(api: &Api, make: &Make<'_>, _spec: &Spec) -> Result<String> {
        let tags = super::specification(make, ResourceType::ElasticIp);
        let call = api.ec2.allocate_address().domain(DomainType::Vpc).tag_specifications(tags).send();
        super::id_in(api.call(SERVICE, "allocate", "address", call).await?.allocation_id, "address")
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, set: &Tags, remove: &[String]) -> Result<()> {
        super::tag(api, &seen.id, set, remove).await
    }

    async fn delete(api: &Api, seen: &ObservedObject<Spec>) -> Result<()> {
        let call = api.ec2.release_address().allocation_id(&seen.id).send();
        // A credential that EC2 refuses would have failed the read before. Right after the end of its NAT gateway an address is
        // refused so (<https://github.com/hashicorp/terraform-provider-aws/issues/13763>).
        api.call(SERVICE, "release", &seen.id, call).await.map(drop).map_err(|error| match error.code.as_deref() {
            Some("AuthFailure") => Error { kind: ErrorKind::Conflict, hint: None, ..error },
            _ => error,
        })
    }
}

fn seen(one: Answer) -> Option<ObservedObject<Spec>> {
    let id = one.allocation_id?;
    let seen =
        ObservedObject::new(&id, Spec { tags: Tags::new() }, super::tags(one.tags)).output("id", Some(id.clone()));
    Some(seen.output("address", one.public_ip))
}
