//! Which fields of an object differ from the wanted spec, and what changing them takes. Pure.

use serde_json::Value;
use textnlp_provider::{DRIFT, Effect, FieldChange, Object, Recorded, Spec, Wanted};

/// How the fields of a kind are compared. By default every change is made in place.
#[derive(Debug, Clone, Copy, Default)]
pub struct FieldRules {
    /// A change of one of these replaces the object.
    pub replace: &'static [&'static str],
    /// These say how to create the object, not what it is: their changes are ignored.
    pub creation_only: &'static [&'static str],
    /// These are compared with the object's outputs, because they may become known later.
    pub from_outputs: &'static [&'static str],
    /// Whether this wanted value of this field is unset, so that any value is accepted.
    pub accepts_any: Option<fn(&str, &Value) -> bool>,
}

impl FieldRules {
    fn ignores(&self, field: &str, after: &Value) -> bool {
        self.creation_only.contains(&field) || self.accepts_any.is_some_and(|accepts| accepts(field, after))
    }

    fn effect(&self, field: &str) -> Effect {
        if self.replace.contains(&field) { Effect::Replace } else { Effect::InPlace }
    }
}

/// The fields in which an object differs from the wanted spec.
pub fn diff(wanted: &Wanted, recorded: &Recorded, seen: &Object, rules: &FieldRules) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    // The applied spec; without a spec in the marker, the recorded one.
    let applied = |field: &str| match rules.from_outputs.contains(&field) {
        true => seen.outputs.get(field),
        false => seen.spec.get(field).or_else(|| recorded.spec.get(field)),
    };
    for (field, after) in wanted.spec.fields().filter(|(field, after)| !rules.ignores(field, after)) {
        walk(field, applied(field), Some(after), &mut |path, before, after| {
            let effect = rules.effect(field);
            changes.push(FieldChange { field: path, before: before.cloned(), after: after.cloned(), effect });
        });
    }
    for (field, before) in before_fields(&seen.spec, &recorded.spec) {
        let is_ignored = rules.creation_only.contains(&field.as_str()) || before.is_null();
        if wanted.spec.get(field).is_none() && !is_ignored {
            let effect = rules.effect(field);
            changes.push(FieldChange { field: field.clone(), before: Some(before.clone()), after: None, effect });
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

/// Calls `found` for the smallest differing parts, with dotted paths.
fn walk<'a>(
    path: &str,
    before: Option<&'a Value>,
    after: Option<&'a Value>,
    found: &mut impl FnMut(String, Option<&'a Value>, Option<&'a Value>),
) {
    match (before, after) {
        (Some(before), Some(after)) if before == after => {}
        // A null member equals a missing one.
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
    use textnlp_provider::{CloudId, Health, KindName, Outputs, Ownership, ResourceId, SiteName};

    use crate::KeyKind;

    const RULES: FieldRules = FieldRules {
        replace: &["path"],
        creation_only: &["source"],
        from_outputs: &["digest"],
        accepts_any: Some(|field, after| field == "digest" && after.is_null()),
    };

    fn check(wanted: Value, seen: Value, expect: &[(&str, Effect)]) {
        let id = ResourceId::new("here/a/b").unwrap();
        let site = SiteName::new("here").unwrap();
        let kind = KindName::from(KeyKind::Directory);
        let wanted = Wanted {
            id: id.clone(),
            kind: kind.clone(),
            site: site.clone(),
            via: None,
            spec: Spec::of(&wanted),
            needs: Vec::new(),
            ownership: Ownership::Ours,
            protected: false,
        };
        let recorded = Recorded {
            id,
            kind: kind.clone(),
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
            created: None,
        };
        let seen = Object {
            kind: kind.clone(),
            cloud_id: CloudId::new("x").unwrap(),
            spec: Spec::of(&seen),
            outputs: Outputs::new(),
            lineage: None,
            origin: textnlp_provider::Origin::Untold,
            created: None,
            health: Health::Ready,
            via: None,
            foreign: Vec::new(),
        };
        let got: Vec<(String, Effect)> =
            diff(&wanted, &recorded, &seen, &RULES).into_iter().map(|change| (change.field, change.effect)).collect();
        let expect: Vec<(String, Effect)> =
            expect.iter().map(|(field, effect)| ((*field).to_owned(), effect.clone())).collect();
        assert_eq!(got, expect);
    }

    #[test]
    fn equal_specs_have_no_differences() {
        check(json!({"path": "a", "document": {"x": [1]}}), json!({"path": "a", "document": {"x": [1]}}), &[]);
    }

    #[test]
    fn diff_names_the_smallest_changed_field() {
        let (before, after) = (
            json!({"document": {"a": {"b": 1, "c": 1, "d": 1}}}),
            json!({"document": {"a": {"b": 2, "c": 1, "e": 1}}}),
        );
        let expect =
            [("document.a.b", Effect::InPlace), ("document.a.e", Effect::InPlace), ("document.a.d", Effect::InPlace)];
        check(after, before, &expect);
    }

    #[test]
    fn changed_path_replaces_the_file_and_a_changed_source_does_nothing() {
        check(json!({"path": "b"}), json!({"path": "a"}), &[("path", Effect::Replace)]);
        check(json!({"source": "/b", "sha256": "d"}), json!({"source": "/a", "sha256": "d"}), &[]);
    }

    #[test]
    fn killed_process_and_missing_marker_are_drift() {
        let seen = json!({"unit": "server-0", "state": "running", "drift": {"state": "stopped", "marker": "gone"}});
        let expect = [("marker", Effect::InPlace), ("state", Effect::InPlace)];
        check(json!({"unit": "server-0", "state": "running"}), seen, &expect);
    }

    #[test]
    fn removed_field_is_a_change() {
        check(
            json!({"path": "a"}),
            json!({"path": "a", "secret": {"$secret": "x", "version": "1"}}),
            &[("secret", Effect::InPlace)],
        );
    }
}
