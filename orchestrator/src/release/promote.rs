//! The same bytes in the next environment: what was proven there is what runs here.

use super::{Lock, configuration_digest};
use crate::environment::Environment;

/// The lock of `target` with the bytes of `proven`; the configuration is the target's own. The error names every model of the target that was
/// not proven.
pub fn promote(proven: &Lock, target: &Environment) -> Result<Lock, Vec<String>> {
    let mut blockers = Vec::new();
    let mut lock = Lock {
        environment: target.environment.clone(),
        configuration: configuration_digest(target),
        models: Default::default(),
        sources: target.models.iter().map(|m| (m.name.clone(), m.source().to_owned())).collect(),
        ..proven.clone()
    };
    for model in &target.models {
        let (name, from, to) = (&model.name, &proven.environment, &target.environment);
        match proven.models.get(name) {
            None => blockers.push(format!("model {name} of {to} does not run in {from}")),
            Some(_) if !proven.holds(name, model.source()) => {
                blockers.push(format!("model {name} comes from another source in {to} than in {from}"));
            }
            Some(digest) if model.digest.as_ref().is_some_and(|pinned| pinned != digest) => {
                blockers.push(format!("model {name} is pinned to another digest by {to} than runs in {from}"));
            }
            Some(digest) => drop(lock.models.insert(name.clone(), digest.clone())),
        }
    }
    if blockers.is_empty() { Ok(lock) } else { Err(blockers) }
}
