//! The tags that say whose an object is.

use std::collections::BTreeMap;

use textnlp_provider::{EnvironmentName, Lineage, Operation, Origin, ResourceId, Spec, Verb};

use crate::cloud::Cloud;
use crate::resource::TAGS;

/// Tags by key.
pub type Tags = BTreeMap<String, String>;

/// The lineage of the deployment.
pub const LINEAGE: &str = "textnlp-lineage";
/// The environment.
pub const ENVIRONMENT: &str = "textnlp-environment";
/// The resource id.
pub const RESOURCE: &str = "textnlp-resource";
/// The token of the operation that created the object.
pub const OPERATION: &str = "textnlp-operation";

/// The tags of a new object: those of its spec, and the built-in ones.
pub fn of_new<C: Cloud>(op: &Operation, own: &Tags) -> Tags {
    let mut tags = of_object::<C>(op.lineage, &op.environment, &op.resource, own);
    tags.insert(OPERATION.to_owned(), op.token.as_str().to_owned());
    tags
}

/// The tags that an object must keep.
pub fn of_object<C: Cloud>(lineage: Lineage, environment: &EnvironmentName, resource: &ResourceId, own: &Tags) -> Tags {
    let mut tags = own.clone();
    tags.insert(LINEAGE.to_owned(), lineage.to_string());
    tags.insert(ENVIRONMENT.to_owned(), environment.to_string());
    tags.insert(RESOURCE.to_owned(), resource.to_string());
    if let Some(name) = C::NAME_TAG {
        tags.insert(name.to_owned(), format!("{environment}/{resource}"));
    }
    tags
}

/// The lineage in an object's tags.
pub fn lineage(tags: &Tags) -> Option<Lineage> {
    tags.get(LINEAGE)?.parse().ok()
}

/// The operation in an object's tags: its create sets it, and nothing sets it later.
pub fn origin(tags: &Tags) -> Origin {
    Origin::of_mark(tags.get(OPERATION).map(String::as_str))
}

/// The resource id in an object's tags.
pub fn resource(tags: &Tags) -> Option<ResourceId> {
    ResourceId::new(tags.get(RESOURCE)?).ok()
}

/// The tags that a spec states: all but the built-in ones and those of the cloud.
pub fn own<C: Cloud>(tags: &Tags) -> Tags {
    let built_in = [LINEAGE, ENVIRONMENT, RESOURCE, OPERATION];
    let is_own = |key: &str| !built_in.contains(&key) && C::NAME_TAG != Some(key) && !C::is_reserved(key);
    tags.iter().filter(|(key, _)| is_own(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// What makes the tags of an object those of `wanted`: the tags to set, and the keys to remove. Only keys that this program set before
/// are removed: companies tag what is in their accounts.
pub fn change<C: Cloud>(op: &Operation, seen: &Tags, wanted: &Tags) -> (Tags, Vec<String>) {
    let mut set = of_object::<C>(op.lineage, &op.environment, &op.resource, wanted);
    if op.verb == Verb::Create {
        // A kind whose create takes no tags.
        set.insert(OPERATION.to_owned(), op.token.as_str().to_owned());
    }
    set.retain(|key, value| seen.get(key) != Some(value));
    let recorded = op.recorded.as_ref().map(|recorded| in_spec(&recorded.spec)).unwrap_or_default();
    let gone = recorded.into_keys().filter(|key| !wanted.contains_key(key) && seen.contains_key(key)).collect();
    (set, gone)
}

/// The tags that a spec states.
pub fn in_spec(spec: &Spec) -> Tags {
    spec.get(TAGS).and_then(|tags| serde_json::from_value(tags.clone()).ok()).unwrap_or_default()
}

/// Whether an object has the tags of a spec, and none of a recorded spec that the spec has no longer.
pub fn fit(wanted: &Spec, recorded: &Spec, seen: &Spec) -> bool {
    let (wanted, recorded, seen) = (in_spec(wanted), in_spec(recorded), in_spec(seen));
    wanted.iter().all(|(key, value)| seen.get(key) == Some(value))
        && !recorded.keys().any(|key| !wanted.contains_key(key) && seen.contains_key(key))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tags_of_others_are_left_alone() {
        let spec = |tags: serde_json::Value| Spec::of(&json!({ "tags": tags }));
        let recorded = spec(json!({ "team": "text", "old": "1" }));
        let fits = |wanted: serde_json::Value, seen: serde_json::Value| fit(&spec(wanted), &recorded, &spec(seen));
        assert!(fits(json!({ "team": "text" }), json!({ "team": "text", "cost-center": "7" })), "a tag of the company");
        assert!(!fits(json!({ "team": "text" }), json!({ "team": "other" })), "a changed value");
        assert!(!fits(json!({ "team": "text" }), json!({})), "a missing tag");
        assert!(
            !fits(json!({ "team": "text" }), json!({ "team": "text", "old": "1" })),
            "a tag that is not wanted any more"
        );
    }
}
