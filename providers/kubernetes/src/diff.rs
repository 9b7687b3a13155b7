//! The difference between a live object and the wanted one, and what a change takes. Pure.

use std::collections::BTreeSet;

use serde_json::Value;
use textnlp_provider::{Effect, FieldChange, Object, Ownership, Problem, Recorded, Spec, Wanted};

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

/// See [`textnlp_provider::Provider::interruption`]. Only where no GPU is left over does a pod end before its replacement
/// starts.
pub(crate) fn interruption(wanted: &Wanted, changes: &[FieldChange], among: &[Wanted]) -> Option<Problem> {
    let spec = wanted.spec.get("spec")?;
    let is_surging = spec["strategy"]["rollingUpdate"]["maxSurge"] != 0;
    let of_pods = |change: &FieldChange| change.field.starts_with("spec.template");
    if is_surging || !changes.iter().any(of_pods) {
        return None;
    }
    let name = &wanted.spec.get("metadata")?["name"];
    let autoscaled = among.iter().find_map(|one| {
        table::row(&one.kind).filter(|row| row.kind == table::AUTOSCALER)?;
        let spec = one.spec.get("spec").filter(|spec| spec["scaleTargetRef"]["name"] == *name)?;
        spec["minReplicas"].as_u64()
    });
    let replicas = spec["replicas"].as_u64().or(autoscaled).unwrap_or(1);
    let cause = "no GPU is left over beside its only pod: requests fail until the replacement is ready";
    let fix = "to serve without an interruption, set `scaling.min: 2` with a GPU for each pod, or add a GPU";
    (replicas < 2).then(|| Problem::warning(wanted.id.as_str(), cause, fix))
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
    use serde_json::json;
    use textnlp_provider::{KindName, ResourceId, SiteName};

    use super::*;

    fn object(noun: &str, spec: &Value) -> Wanted {
        Wanted {
            id: ResourceId::new(format!("main/server/{noun}")).unwrap(),
            kind: KindName::new(format!("kubernetes.{noun}")).unwrap(),
            site: SiteName::new("main").unwrap(),
            via: None,
            spec: Spec::of(spec),
            needs: Vec::new(),
            ownership: Ownership::Ours,
            protected: false,
        }
    }

    #[test]
    fn only_pod_that_ends_before_its_replacement_interrupts_requests() {
        let deployment = |surge: u32, replicas: Option<u32>| {
            let strategy = json!({ "rollingUpdate": { "maxSurge": surge } });
            let spec = json!({ "strategy": strategy, "replicas": replicas });
            object("deployment", &json!({ "metadata": { "name": "textnlp-api" }, "spec": spec }))
        };
        let autoscaler = |least: u32| {
            let spec = json!({ "scaleTargetRef": { "name": "textnlp-api" }, "minReplicas": least });
            object("horizontal-pod-autoscaler", &json!({ "spec": spec }))
        };
        let change =
            |field: &str| [FieldChange { field: field.to_owned(), before: None, after: None, effect: Effect::InPlace }];
        let (pods, others) = (change("spec.template.metadata.annotations.config"), change("spec.replicas"));
        assert!(interruption(&deployment(0, Some(1)), &pods, &[]).is_some_and(|found| found.warning));
        assert!(interruption(&deployment(0, None), &pods, &[autoscaler(1)]).is_some());
        assert_eq!(interruption(&deployment(0, None), &pods, &[autoscaler(2)]), None);
        assert_eq!(interruption(&deployment(0, Some(2)), &pods, &[]), None);
        assert_eq!(interruption(&deployment(1, Some(1)), &pods, &[]), None, "the new pod starts first");
        assert_eq!(interruption(&deployment(0, Some(1)), &others, &[]), None, "no pod is replaced");
    }

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
