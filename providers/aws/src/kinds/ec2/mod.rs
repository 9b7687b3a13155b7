//! What the kinds of EC2 share: tags, filters, and what controllers of a cluster leave behind.

pub(super) mod address;
pub(super) mod endpoint;
pub(super) mod flow_log;
pub(super) mod gateway;
mod inside;
pub(super) mod launch_template;
pub(super) mod nat;
pub(super) mod route_table;
pub(super) mod security_group;
pub(super) mod subnet;
pub(super) mod vpc;

use std::time::Duration;

use aws_sdk_ec2::types::{self, ResourceType, TagSpecification};
use textnlp_provider::{Condition, Error, ErrorKind, Permission, Result, Verb};

use crate::api::Api;
use crate::kinds::OURS;
use crate::resource::{Filter, Make, State};
use crate::tags::Tags;

/// The signing name.
pub(super) const SERVICE: &str = "ec2";

/// The most values of one filter: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Filtering.html>.
const FILTER_VALUES: usize = 200;

/// A permission to create: a new object has no tags to be told by.
const fn creates(action: &'static str) -> Permission {
    Permission::on(&[Verb::Create], action)
}

/// A permission to change objects of this deployment.
const fn changes(action: &'static str) -> Permission {
    Permission { conditions: OURS, ..Permission::on(&[Verb::Create, Verb::Update], action) }
}

/// A permission to delete objects of this deployment.
const fn deletes(action: &'static str) -> Permission {
    Permission { conditions: OURS, ..Permission::on(&[Verb::Delete], action) }
}

/// A permission to delete what controllers of the cluster created.
const fn sweeps(conditions: &'static [Condition], action: &'static str) -> Permission {
    Permission { conditions, ..Permission::on(&[Verb::Delete], action) }
}

/// To set tags with a create: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/supported-iam-actions-tagging.html>.
const CREATE_TAGS: Permission = Permission {
    conditions: &[Condition { key: "ec2:CreateAction", value: "*" }],
    ..Permission::on(&[Verb::Create, Verb::Update], "ec2:CreateTags")
};
/// To set tags on their own.
const TAGS: Permission = changes("ec2:CreateTags");
/// To remove tags.
const UNTAGS: Permission = Permission { conditions: OURS, ..Permission::on(&[Verb::Update], "ec2:DeleteTags") };

/// How long AWS takes for what it does at once.
const QUICK: Option<Duration> = Some(Duration::from_secs(5));

/// The tags of an answer.
pub(crate) fn tags(tags: Option<Vec<types::Tag>>) -> Tags {
    let pair = |tag: types::Tag| Some((tag.key?, tag.value.unwrap_or_default()));
    tags.unwrap_or_default().into_iter().filter_map(pair).collect()
}

/// The tags of a new object.
pub(super) fn specification(make: &Make<'_>, kind: ResourceType) -> TagSpecification {
    TagSpecification::builder().resource_type(kind).set_tags(Some(listed(&make.tags))).build()
}

pub(super) fn listed(tags: &Tags) -> Vec<types::Tag> {
    tags.iter().map(|(key, value)| types::Tag::builder().key(key).value(value).build()).collect()
}

/// The filter of a list.
pub(super) fn filter(filter: &Filter) -> types::Filter {
    let (key, value) = filter.tag();
    named(&format!("tag:{key}"), [value])
}

/// A filter by any of these values.
pub(super) fn named(name: &str, values: impl IntoIterator<Item = impl Into<String>>) -> types::Filter {
    let values = values.into_iter().map(Into::into).collect();
    types::Filter::builder().name(name).set_values(Some(values)).build()
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
    id.ok_or_else(|| Error::new(ErrorKind::Unavailable, "create", what).because("AWS's answer has no id"))
}

/// Ready in this one of AWS's words, else pending.
fn ready_in(ready: &str, state: Option<&str>) -> State {
    match state {
        Some(state) if state.eq_ignore_ascii_case(ready) => State::Ready,
        state => State::Pending(state.unwrap_or("in no known state").to_owned()),
    }
}

/// The values to add and to remove to get from one list to another.
fn change(seen: &[String], wanted: &[String]) -> (Option<Vec<String>>, Option<Vec<String>>) {
    let without = |list: &[String], other: &[String]| {
        let rest: Vec<String> = list.iter().filter(|one| !other.contains(one)).cloned().collect();
        (!rest.is_empty()).then_some(rest)
    };
    (without(wanted, seen), without(seen, wanted))
}
