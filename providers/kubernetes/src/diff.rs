//! The difference between a live object and the wanted one, and what a change takes. Pure.

use std::collections::BTreeSet;

use serde_json::Value;
use textnlp_provider::{Effect, FieldChange, Object, Ownership, Recorded, Spec, Wanted};

use crate::canary;
use crate::fields::{self, FieldOwner, Finding};
use crate::identity;
use crate::manifest;
use crate::table::{self, Row};

/// The lineage label, as a field path.
const LABEL: &str = "metadata.labels.textnlp-lineage";

/// The differences between the wanted and the live object. A field that another manager owns is ignored if its wanted
/// value did not change, unless it is in `taking`.
pub(crate) fn diff(wanted: &Wanted, recorded: &Recorded, seen: &Object, taking: &BTreeSet<String>) -> Vec<FieldChange> {
    let Some(row) = table::row(&wanted.kind) else { return Vec::new() };
    // The temporary changes of a rollout are no drift.
    let plain = canary::without_shares(seen).filter(|_| row.kind == table::HTTP_ROUTE);
    let mut found = findings(&wanted.spec, Some(&recorded.spec), plain.as_ref().unwrap_or(&seen.spec));
    for finding in found.iter_mut().filter(|finding| taking.contains(&finding.field)) {
        finding.is = FieldOwner::Ours;
    }
    let mut changes: Vec<FieldChange> = found.into_iter().filter_map(|finding| change(row, finding)).collect();
    if seen.lineage.is_none() && wanted.ownership == Ownership::Ours {
        let after = Some(Value::from("as applied"));
        changes.push(FieldChange { field: LABEL.to_owned(), before: None, after, effect: Effect::InPlace });
    }
    changes
}

/// Every difference of a live object, whichever manager owns the field.
pub(crate) fn findings(wanted: &Spec, recorded: Option<&Spec>, seen: &Spec) -> Vec<Finding> {
    let (ours, others) = manifest::owners(seen);
    // The project's own labels and annotations are no leftovers.
    let both = |name: &&str| [format!("metadata.labels.{name}"), format!("metadata.annotations.{name}")];
    let kept: Vec<String> = identity::OURS.iter().flat_map(both).collect();
    let kept: Vec<&str> = kept.iter().map(String::as_str).collect();
    let recorded = recorded.map_or(&Value::Null, Spec::as_value);
    fields::compare(wanted.as_value(), recorded, seen.as_value(), ours, &others, &kept)
}

fn change(row: &Row, finding: Finding) -> Option<FieldChange> {
    let Finding { field, before, after, is, .. } = finding;
    let effect = match is {
        FieldOwner::Taken(_) => return None,
        FieldOwner::Contested(owner) => Effect::Refuse(format!(
            "`{owner}` is the field manager that owns it; remove it from the environment, have its owner release it, or take it with `--take-ownership {field}`"
        )),
        FieldOwner::Ours if is_smaller_volume(row, &field, before.as_ref(), after.as_ref()) => {
            Effect::Refuse("a volume cannot be shrunk".to_owned())
        }
        FieldOwner::Ours if row.is_fixed(&field) => Effect::Replace,
        FieldOwner::Ours => Effect::InPlace,
    };
    Some(FieldChange { field, before, after, effect })
}

fn is_smaller_volume(row: &Row, field: &str, before: Option<&Value>, after: Option<&Value>) -> bool {
    let bytes = |value: Option<&Value>| quantity(value?.as_str()?);
    row.kind == table::VOLUME_CLAIM
        && field == "spec.resources.requests.storage"
        && matches!((bytes(before), bytes(after)), (Some(before), Some(after)) if after < before)
}

/// A Kubernetes quantity in bytes: `10Gi`, `500M`, `1e9`.
pub(crate) fn quantity(text: &str) -> Option<f64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic() && c != 'e').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let power =
        |unit: &str| "KMGTPE".find(unit.to_uppercase().trim_end_matches('I')).map(|exponent| exponent as i32 + 1);
    let factor = match unit {
        "" => 1.0,
        binary if binary.ends_with('i') => 1024_f64.powi(power(binary)?),
        decimal => 1000_f64.powi(power(decimal)?),
    };
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_sizes_are_compared_as_numbers() {
        let row = table::ROWS.iter().find(|row| row.kind == "PersistentVolumeClaim").expect("a row");
        let smaller = |before: &str, after: &str| {
            let (before, after) = (Value::from(before), Value::from(after));
            is_smaller_volume(row, "spec.resources.requests.storage", Some(&before), Some(&after))
        };
        assert!(smaller("10Gi", "9Gi") && smaller("1Ti", "1000Gi") && smaller("1Gi", "1G") && smaller("2e9", "1G"));
        assert!(!smaller("10Gi", "10240Mi") && !smaller("1G", "1Gi") && !smaller("banana", "1Gi"));
    }
}
