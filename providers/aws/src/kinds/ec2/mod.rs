//! What the kinds of EC2 share: tags and filters.

pub(super) mod vpc;

use aws_sdk_ec2::types::{self, ResourceType, TagSpecification};
use textnlp_provider::Result;

use crate::api::Api;
use crate::resource::{Filter, Make};
use crate::tags::Tags;

/// The signing name.
pub(super) const SERVICE: &str = "ec2";

/// The tags of an answer.
pub(super) fn tags(tags: Option<Vec<types::Tag>>) -> Tags {
    let pair = |tag: types::Tag| Some((tag.key?, tag.value.unwrap_or_default()));
    tags.unwrap_or_default().into_iter().filter_map(pair).collect()
}

/// The tags of a new object.
pub(super) fn specification(make: &Make<'_>, kind: ResourceType) -> TagSpecification {
    TagSpecification::builder().resource_type(kind).set_tags(Some(listed(&make.tags))).build()
}

fn listed(tags: &Tags) -> Vec<types::Tag> {
    tags.iter().map(|(key, value)| types::Tag::builder().key(key).value(value).build()).collect()
}

/// The filter of a list.
pub(super) fn filter(filter: &Filter) -> types::Filter {
    let (key, value) = filter.tag();
    types::Filter::builder().name(format!("tag:{key}")).values(value).build()
}

/// Changes the tags of an object with one call.
pub(super) async fn tag(api: &Api, id: &str, set: &Tags, remove: &[String]) -> Result<()> {
    if set.is_empty() {
        let gone = remove.iter().map(|key| types::Tag::builder().key(key).build()).collect();
        let call = api.ec2.delete_tags().resources(id).set_tags(Some(gone)).send();
        return api.call(SERVICE, "remove tags of", id, call).await.map(drop);
    }
    let call = api.ec2.create_tags().resources(id).set_tags(Some(listed(set))).send();
    api.call(SERVICE, "set tags of", id, call).await.map(drop)
}

/// The id in the answer to a create.
pub(super) fn id_in(id: Option<String>, what: &str) -> Result<String> {
    id.ok_or_else(|| {
        let error = textnlp_provider::Error::new(textnlp_provider::ErrorKind::Unavailable, "create", what);
        error.because("AWS's answer has no id")
    })
}
