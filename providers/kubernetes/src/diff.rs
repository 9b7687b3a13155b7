//! Which fields of an object differ from what is wanted, and what changing them takes. Pure.

use std::collections::BTreeSet;

use serde_json::Value;
use textnlp_provider::{Effect, FieldChange, Object, Ownership, Recorded, Spec, Wanted};

use crate::canary;
use crate::fields::{self, Finding, Is};
use crate::identity;
use crate::manifest;
use crate::table::{self, Row};

/// The label by which we find what is ours, as a field.
const LABEL: &str = "metadata.labels.textnlp-lineage";

/// What a wanted object differs in from what is seen; what others own and nobody here changed his mind about is theirs, unless it is to be
/// taken from them.
pub(crate) fn diff(wanted: &Wanted, recorded: &Recorded, seen: &Object, taking: &BTreeSet<String>) -> Vec<FieldChange> {
    let Some(row) = table::row(&wanted.kind) else { return Vec::new() };
    // What a rollout does while it goes on is no drift.
    let plain = canary::without_shares(seen).filter(|_| row.kind == table::HTTP_ROUTE);
    let mut found = findings(&wanted.spec, Some(&recorded.spec), plain.as_ref().unwrap_or(&seen.spec));
    for finding in found.iter_mut().filter(|finding| taking.contains(&finding.field)) {
        finding.is = Is::Ours;
    }
    let mut changes: Vec<FieldChange> = found.into_iter().filter_map(|finding| change(row, finding)).collect();
    if seen.lineage.is_none() && wanted.ownership == Ownership::Ours {
        let after = Some(Value::from("as applied"));
        changes.push(FieldChange { field: LABEL.to_owned(), before: None, after, effect: Effect::InPlace });
    }
    changes
}

/// Every difference of a seen object, whosever it is.
pub(crate) fn findings(wanted: &Spec, recorded: Option<&Spec>, seen: &Spec) -> Vec<Finding> {
    let (ours, others) = manifest::owners(seen);
    // Labels and annotations of ours are no leftovers.
    let both = |name: &&str| [format!("metadata.labels.{name}"), format!("metadata.annotations.{name}")];
    let kept: Vec<String> = identity::OURS.iter().flat_map(both).collect();
    let kept: Vec<&str> = kept.iter().map(String::as_str).collect();
    let recorded = recorded.map_or(&Value::Null, Spec::as_value);
    fields::compare(wanted.as_value(), recorded, seen.as_value(), ours, &others, &kept)
}

fn change(row: &Row, finding: Finding) -> Option<FieldChange> {
    let Finding { field, before, after, is, .. } = finding;
    let effect = match is {
        Is::Taken(_) => return None,
        Is::Contested(owner) => Effect::Refuse(format!(
            "`{owner}` set it, and it is theirs; take it out of the environment, have them give it up, or take it with \
             `--take-ownership {field}`"
        )),
        Is::Ours if is_smaller_volume(row, &field, before.as_ref(), after.as_ref()) => {
            Effect::Refuse("a volume does not become smaller".to_owned())
        }
        Is::Ours if row.is_fixed(&field) => Effect::Replace,
        Is::Ours => Effect::InPlace,
    };
    Some(FieldChange { field, before, after, effect })
}

fn is_smaller_volume(row: &Row, field: &str, before: Option<&Value>, after: Option<&Value>) -> bool {
    let bytes = |value: Option<&Value>| quantity(value?.as_str()?);
    row.kind == "PersistentVolumeClaim"
        && field == "spec.resources.requests.storage"
        && matches!((bytes(before), bytes(after)), (Some(before), Some(after)) if after < before)
}

/// `10Gi`, `500M`, `1e9`: how many bytes.
fn quantity(text: &str) -> Option<f64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic() && c != 'e').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let power = |unit: &str| "KMGTPE".find(unit.to_uppercase().trim_end_matches('I')).map(|place| place as i32 + 1);
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
    fn sizes_are_compared_as_numbers() {
        let row = table::ROWS.iter().find(|row| row.kind == "PersistentVolumeClaim").expect("a row");
        let smaller = |before: &str, after: &str| {
            let (before, after) = (Value::from(before), Value::from(after));
            is_smaller_volume(row, "spec.resources.requests.storage", Some(&before), Some(&after))
        };
        assert!(smaller("10Gi", "9Gi") && smaller("1Ti", "1000Gi") && smaller("1Gi", "1G") && smaller("2e9", "1G"));
        assert!(!smaller("10Gi", "10240Mi") && !smaller("1G", "1Gi") && !smaller("banana", "1Gi"));
    }
}
