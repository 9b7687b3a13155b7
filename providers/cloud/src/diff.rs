//! The fields in which an object differs from its spec. Pure.

use serde_json::{Value, json};
use textnlp_provider::{Effect, FieldChange, Object, Recorded, Wanted};

use crate::cloud::Cloud;
use crate::resource::{TAGS, same_hidden};
use crate::table::Row;
use crate::tags;

/// Why a server of its own becomes no replica, and what to do.
pub const PROMOTED: &str = "a promoted server becomes no replica again. It stays if you remove `database.replica_region`; or delete it yourself, and the next `up` creates a replica";
/// Why a replica follows no other server.
const OF_ANOTHER: &str = "a replica stays one of its server: remove it, and the next `up` creates another";

/// Compares what the spec states; the cloud's defaults for what it leaves open are no differences, because a spec leaves nothing out.
pub fn diff<C: Cloud>(row: &Row<C>, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
    // In the plan, and not only by the call: until then other changes would be made, such as one that takes away the access to a
    // promoted server that is used already.
    let refused = |field: &str, after: &Value| {
        if let Some(why) = seen.spec.get(field).and_then(|seen| row.resource.refuses(field, after, seen)) {
            return Some(Effect::Refuse(why));
        }
        if after.is_null() || row.kind.replica.is_none_or(|replica| replica.source != field) {
            return None;
        }
        let is_own = seen.spec.get(field).is_none_or(Value::is_null);
        let why = if is_own { PROMOTED } else { after.as_str().map(|_| OF_ANOTHER)? };
        Some(Effect::Refuse(why.to_owned()))
    };
    let mut changes: Vec<FieldChange> = wanted
        .spec
        .fields()
        .filter(|(field, after)| match field.as_str() {
            TAGS => !tags::fit(&wanted.spec, &recorded.spec, &seen.spec),
            field if row.resource.is_hidden(field) => !same_hidden(Some(after), recorded.spec.get(field)),
            field => !row.resource.fits(field, Some(after), seen.spec.get(field)),
        })
        .map(|(field, after)| {
            let shown = if row.resource.is_hidden(field) { &recorded.spec } else { &seen.spec };
            FieldChange {
                field: field.clone(),
                before: shown.get(field).cloned().filter(|value| *value != Value::Null),
                after: Some(after.clone()),
                effect: refused(field, after).unwrap_or_else(|| row.effect(field)),
            }
        })
        .collect();
    if row.resource.carries_tags() && seen.lineage.is_none() && !changes.iter().any(|change| change.field == TAGS) {
        let (field, after) = (format!("{TAGS}.{}", tags::LINEAGE), Some(json!("this deployment")));
        changes.push(FieldChange { field, before: None, after, effect: Effect::InPlace });
    }
    changes
}
