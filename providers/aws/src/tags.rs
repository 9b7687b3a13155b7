//! The tags that say whose an object is.

use std::collections::BTreeMap;

use textnlp_provider::{EnvironmentName, Lineage, Operation, ResourceId};

/// Tags by key.
pub(crate) type Tags = BTreeMap<String, String>;

/// The lineage of the deployment.
pub(crate) const LINEAGE: &str = "textnlp-lineage";
/// The environment.
pub(crate) const ENVIRONMENT: &str = "textnlp-environment";
/// The resource id.
pub(crate) const RESOURCE: &str = "textnlp-resource";
/// The token of the operation that created the object.
pub(crate) const OPERATION: &str = "textnlp-operation";
/// The version of the secret that an object has.
pub(crate) const SECRET: &str = "textnlp-secret";
/// Tells in a network which cluster's controllers create objects in it; the cluster's name follows. Kubernetes defines it.
pub(crate) const CLUSTER: &str = "kubernetes.io/cluster/";
/// What AWS's console shows.
const NAME: &str = "Name";
/// Tags of AWS's own services, which only they change.
const RESERVED: &str = "aws:";

/// The tags of a new object: those of its spec, and the built-in ones.
pub(crate) fn of_new(op: &Operation, own: &Tags) -> Tags {
    let mut tags = of_object(op.lineage, &op.environment, &op.resource, own);
    tags.insert(OPERATION.to_owned(), op.token.as_str().to_owned());
    tags
}

/// The tags that an object must keep.
fn of_object(lineage: Lineage, environment: &EnvironmentName, resource: &ResourceId, own: &Tags) -> Tags {
    let mut tags = own.clone();
    tags.insert(LINEAGE.to_owned(), lineage.to_string());
    tags.insert(ENVIRONMENT.to_owned(), environment.to_string());
    tags.insert(RESOURCE.to_owned(), resource.to_string());
    tags.insert(NAME.to_owned(), format!("{environment}/{resource}"));
    tags
}

/// The lineage in an object's tags.
pub(crate) fn lineage(tags: &Tags) -> Option<Lineage> {
    tags.get(LINEAGE)?.parse().ok()
}

/// The resource id in an object's tags.
pub(crate) fn resource(tags: &Tags) -> Option<ResourceId> {
    ResourceId::new(tags.get(RESOURCE)?).ok()
}

/// The tags that a spec states: all but the built-in ones and those of AWS.
pub(crate) fn own(tags: &Tags) -> Tags {
    let built_in = [LINEAGE, ENVIRONMENT, RESOURCE, OPERATION, SECRET, NAME];
    let is_own = |key: &str| !built_in.contains(&key) && !key.starts_with(RESERVED);
    tags.iter().filter(|(key, _)| is_own(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// What makes the tags of an object those of `wanted`: the tags to set, and the keys to remove.
pub(crate) fn change(op: &Operation, seen: &Tags, wanted: &Tags) -> (Tags, Vec<String>) {
    let mut set = of_object(op.lineage, &op.environment, &op.resource, wanted);
    set.retain(|key, value| seen.get(key) != Some(value));
    let gone = own(seen).into_keys().filter(|key| !wanted.contains_key(key)).collect();
    (set, gone)
}
