//! Which fields of an object differ from what is wanted, and what changing them takes. Pure.

use serde_json::Value;
use textnlp_provider::{Effect, FieldChange, Object, Recorded, Spec, Wanted};

use crate::table::Noun;

/// The member of an observed spec that holds what is wrong with the object itself, apart from any wish.
pub(crate) const DRIFT: &str = "drift";

/// The fields in which an object differs from what is wanted.
pub(crate) fn diff(wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
    let Some(noun) = Noun::of(&wanted.kind) else { return Vec::new() };
    let mut changes = Vec::new();
    // What was applied; an object whose marker shows nothing is compared with what we wrote down. A model is what its
    // files are: one that came before its digest was known is the same model once the digest is.
    let applied = |field: &str| match (noun, field) {
        (Noun::Model, "digest") => seen.outputs.get(field),
        _ => seen.spec.get(field).or_else(|| recorded.spec.get(field)),
    };
    for (field, after) in
        wanted.spec.fields().filter(|(field, after)| !is_told_only(noun, field) && !is_any(noun, field, after))
    {
        walk(field, applied(field), Some(after), &mut |path, before, after| {
            let effect = effect(noun, field);
            changes.push(FieldChange { field: path, before: before.cloned(), after: after.cloned(), effect });
        });
    }
    for (field, before) in before_fields(&seen.spec, &recorded.spec) {
        if wanted.spec.get(field).is_none() && !is_told_only(noun, field) && !before.is_null() {
            let change = FieldChange {
                field: field.clone(),
                before: Some(before.clone()),
                after: None,
                effect: effect(noun, field),
            };
            changes.push(change);
        }
    }
    let drift = seen.spec.get(DRIFT).and_then(Value::as_object);
    for (field, before) in drift.into_iter().flatten() {
        if changes.iter().all(|change| change.field != *field) {
            let after = applied(field).cloned().unwrap_or_else(|| Value::from("as applied"));
            changes.push(FieldChange {
                field: field.clone(),
                before: Some(before.clone()),
                after: Some(after),
                effect: Effect::InPlace,
            });
        }
    }
    changes
}

fn before_fields<'a>(seen: &'a Spec, recorded: &'a Spec) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let fields = if seen.fields().next().is_some() { seen } else { recorded };
    fields.fields().filter(|(field, _)| field.as_str() != DRIFT)
}

/// Nobody said which one it must be: any that it is is right.
fn is_any(noun: Noun, field: &str, after: &Value) -> bool {
    match (noun, field) {
        (Noun::Model, "digest") => after.is_null(),
        // Whoever looks now does not know the secret, which changes nothing.
        (Noun::Secret, "given") => after["version"] == "",
        _ => false,
    }
}

/// Fields that say how to get there, not what should be there.
fn is_told_only(noun: Noun, field: &str) -> bool {
    matches!(
        (noun, field),
        // What runs is told by the digest, wherever the file lay.
        (Noun::Program, "source") | (Noun::Model, "max_cache_bytes")
        // A data folder is kept by the version that made it.
        | (Noun::Postgres, "version")
        // Another program brings the schema to where it is, unless it is to be elsewhere.
        | (Noun::Schema | Noun::ApiKey, "program" | "config")
    )
}

fn effect(noun: Noun, field: &str) -> Effect {
    match (noun, field) {
        (Noun::Secret, "given") => Effect::InPlace,
        (Noun::Secret, _) => Effect::Replace,
        (Noun::Authority, "subject" | "key" | "certificate_file") => Effect::Replace,
        (Noun::Certificate, "certificate_file" | "key_file" | "existing") => Effect::Replace,
        (Noun::Model | Noun::Program | Noun::File | Noun::Database | Noun::Postgres | Noun::Control, "path") => {
            Effect::Replace
        }
        (Noun::Schema, "database") => Effect::Replace,
        (Noun::ApiKey, "database" | "public_id") => Effect::Replace,
        (Noun::Process, "unit") => Effect::Replace,
        _ => Effect::InPlace,
    }
}

/// Calls `found` for the smallest parts that differ, with dotted paths.
fn walk<'a>(
    path: &str,
    before: Option<&'a Value>,
    after: Option<&'a Value>,
    found: &mut impl FnMut(String, Option<&'a Value>, Option<&'a Value>),
) {
    match (before, after) {
        (Some(before), Some(after)) if before == after => {}
        // An empty member and one that is not there say the same.
        (None, Some(Value::Null)) | (Some(Value::Null), None) | (None, None) => {}
        (Some(Value::Object(old)), Some(Value::Object(new)))
            if !stands_for_something(new) && !stands_for_something(old) =>
        {
            for (name, value) in new {
                walk(&format!("{path}.{name}"), old.get(name), Some(value), found);
            }
            for (name, value) in old.iter().filter(|(name, _)| !new.contains_key(*name)) {
                walk(&format!("{path}.{name}"), Some(value), None, found);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) if old.len() == new.len() => {
            for (place, (old, new)) in old.iter().zip(new).enumerate() {
                walk(&format!("{path}.{place}"), Some(old), Some(new), found);
            }
        }
        (before, after) => found(path.to_owned(), before, after),
    }
}

/// References to outputs and secrets are one value each.
fn stands_for_something(object: &serde_json::Map<String, Value>) -> bool {
    object.contains_key("$output") || object.contains_key("$secret")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use textnlp_provider::{CloudId, Health, Outputs, Ownership, ResourceId, SiteName};

    fn check(noun: Noun, wanted: Value, seen: Value, expect: &[(&str, Effect)]) {
        let id = ResourceId::new("here/a/b").unwrap();
        let site = SiteName::new("here").unwrap();
        let wanted = Wanted {
            id: id.clone(),
            kind: noun.kind(),
            site: site.clone(),
            via: None,
            spec: Spec::of(&wanted),
            needs: Vec::new(),
            ownership: Ownership::Ours,
            protected: false,
        };
        let recorded = Recorded {
            id,
            kind: noun.kind(),
            site,
            via: None,
            spec: Spec::of(&json!({})),
            needs: Vec::new(),
            ownership: Ownership::Ours,
            schema: 1,
            cloud_id: CloudId::new("x").unwrap(),
            outputs: Outputs::new(),
            protected: false,
            tainted: false,
        };
        let seen = Object {
            kind: noun.kind(),
            cloud_id: CloudId::new("x").unwrap(),
            spec: Spec::of(&seen),
            outputs: Outputs::new(),
            lineage: None,
            health: Health::Ready,
            via: None,
            foreign: Vec::new(),
        };
        let got: Vec<(String, Effect)> =
            diff(&wanted, &recorded, &seen).into_iter().map(|change| (change.field, change.effect)).collect();
        let expect: Vec<(String, Effect)> =
            expect.iter().map(|(field, effect)| ((*field).to_owned(), effect.clone())).collect();
        assert_eq!(got, expect);
    }

    #[test]
    fn equal_specs_differ_in_nothing() {
        check(
            Noun::File,
            json!({"path": "a", "document": {"x": [1]}}),
            json!({"path": "a", "document": {"x": [1]}}),
            &[],
        );
    }

    #[test]
    fn the_smallest_field_is_named() {
        let (before, after) = (
            json!({"document": {"a": {"b": 1, "c": 1, "d": 1}}}),
            json!({"document": {"a": {"b": 2, "c": 1, "e": 1}}}),
        );
        let expect =
            [("document.a.b", Effect::InPlace), ("document.a.e", Effect::InPlace), ("document.a.d", Effect::InPlace)];
        check(Noun::File, after, before, &expect);
    }

    #[test]
    fn a_moved_file_is_replaced_and_a_moved_source_is_nothing() {
        check(Noun::File, json!({"path": "b"}), json!({"path": "a"}), &[("path", Effect::Replace)]);
        check(Noun::Program, json!({"source": "/b", "sha256": "d"}), json!({"source": "/a", "sha256": "d"}), &[]);
    }

    #[test]
    fn a_killed_child_and_a_gone_marker_are_named() {
        let seen = json!({"unit": "server-0", "state": "running", "drift": {"state": "stopped", "marker": "gone"}});
        let expect = [("marker", Effect::InPlace), ("state", Effect::InPlace)];
        check(Noun::Process, json!({"unit": "server-0", "state": "running"}), seen, &expect);
    }

    #[test]
    fn a_field_that_nobody_wants_any_more_is_a_change() {
        check(
            Noun::File,
            json!({"path": "a"}),
            json!({"path": "a", "secret": {"$secret": "x", "version": "1"}}),
            &[("secret", Effect::InPlace)],
        );
    }
}
