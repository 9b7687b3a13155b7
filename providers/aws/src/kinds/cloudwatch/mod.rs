//! What the kinds of CloudWatch share: tags.

pub(super) mod alarm;
pub(super) mod dashboard;

use aws_sdk_cloudwatch::types::Tag;
use textnlp_provider::Result;

use crate::api::Api;
use crate::tags::Tags;

/// The signing name.
const SERVICE: &str = "monitoring";

/// The tags of an object; `None` when there is no such object.
async fn tags_of(api: &Api, id: &str, arn: &str) -> Result<Option<Tags>> {
    let call = api.cloudwatch.list_tags_for_resource().resource_arn(arn).send();
    let answer = api.find(SERVICE, id, call).await?;
    let pair = |tag: Tag| Some((tag.key?, tag.value.unwrap_or_default()));
    Ok(answer.map(|answer| answer.tags.unwrap_or_default().into_iter().filter_map(pair).collect()))
}

/// Changes the tags of an object with one call.
async fn tag(api: &Api, id: &str, arn: &str, set: &Tags, remove: &[String]) -> Result<()> {
    if set.is_empty() {
        let call = api.cloudwatch.untag_resource().resource_arn(arn).set_tag_keys(Some(remove.to_vec())).send();
        return api.call(SERVICE, "remove tags of", id, call).await.map(drop);
    }
    let call = api.cloudwatch.tag_resource().resource_arn(arn).set_tags(Some(listed(set))).send();
    api.call(SERVICE, "set tags of", id, call).await.map(drop)
}

fn listed(tags: &Tags) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}
