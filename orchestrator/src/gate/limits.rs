//! Settings of a gate that differ from those of the environment that ships for its phase.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::P95;
use super::phases::{
    AVAILABILITY, COMPLIANCE, GENERATION_RATE, GROWTH, MODEL_LOAD, PhaseDefinition, SERVER_MEMORY, SESSIONS,
    VULNERABILITIES,
};
use crate::environment::model::Environment;
use crate::environment::{Catalogue, Library, Overrides};

/// A setting of the gate that is not the one of the shipped environment. The gate shows it, because it decides what an open
/// gate says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChangedLimit {
    /// The setting: `gates.sessions`.
    pub setting: String,
    /// Its value.
    pub value: Value,
    /// The value of the shipped environment.
    pub shipped: Value,
}

/// `gates.sessions: 20 instead of 10000`.
impl fmt::Display for ChangedLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Value| match value {
            Value::Null => "off".to_owned(),
            Value::String(text) => text.clone(),
            Value::Array(items) if items.is_empty() => "none".to_owned(),
            Value::Array(items) => {
                items.iter().map(|item| item.as_str().unwrap_or_default()).collect::<Vec<_>>().join(", ")
            }
            other => other.to_string(),
        };
        write!(f, "{}: {} instead of {}", self.setting, text(&self.value), text(&self.shipped))
    }
}

/// The check that each setting below `gates` belongs to. Those of a load test belong to sessions, too.
const CHECKS: [(&str, &[&str]); 19] = [
    ("p95_ms", &[P95, SESSIONS]),
    ("error_rate", &[P95, SESSIONS]),
    ("users", &[P95]),
    ("ramp", &[P95]),
    ("think_min", &[P95]),
    ("think_max", &[P95]),
    ("hold", &[P95, SESSIONS]),
    ("tokens_min", &[P95]),
    ("tokens_max", &[P95]),
    ("availability", &[AVAILABILITY]),
    ("availability_window", &[AVAILABILITY]),
    ("sessions", &[SESSIONS]),
    ("scaling", &[GROWTH]),
    ("model_load_time", &[MODEL_LOAD]),
    ("server_memory", &[SERVER_MEMORY]),
    ("tokens_per_second", &[GENERATION_RATE]),
    ("advisories", &[VULNERABILITIES]),
    ("advisories_max_age", &[VULNERABILITIES]),
    ("compliance", &[COMPLIANCE]),
];

/// The settings of the phase's gate that differ from those of every shipped environment of that phase. The value of the one
/// that has the name of the phase is compared.
pub fn changed_limits(environment: &Environment) -> Vec<ChangedLimit> {
    let phase = environment.phase;
    let library = Library::built_in();
    let of_phase = |name: &str| {
        let loaded = library.load(name, &Overrides::default(), &Catalogue::default()).ok()?.environment;
        (loaded.phase == phase).then(|| serde_json::to_value(&loaded.gates).ok()).flatten()
    };
    let Some(shipped) = of_phase(phase.as_str()) else { return Vec::new() };
    let others: Vec<Value> = library.list().iter().filter_map(|listed| of_phase(&listed.name)).collect();
    let Ok(own) = serde_json::to_value(&environment.gates) else { return Vec::new() };
    let definition = PhaseDefinition::of(phase);
    let is_used = |checks: &[&str]| checks.iter().any(|check| definition.check(check).is_some());
    let is_shipped = |name: &str| others.iter().any(|other| other[name] == own[name]);
    let differing = CHECKS.iter().filter(|(name, checks)| is_used(checks) && !is_shipped(name));
    let limit = |(name, _): &(&str, &[&str])| ChangedLimit {
        setting: format!("gates.{name}"),
        value: own[*name].clone(),
        shipped: shipped[*name].clone(),
    };
    differing.map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::model::{Gates, Phase};
    use crate::gate::phases;

    #[test]
    fn every_setting_of_a_gate_belongs_to_a_check_of_some_phase() {
        let gates = serde_json::to_value(Gates::default()).unwrap();
        let mut names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        // The client that signs in is no limit.
        let mut all: Vec<&String> =
            gates.as_object().unwrap().keys().filter(|name| !name.starts_with("sign_on_")).collect();
        all.sort_unstable();
        assert_eq!(names, all);
        for (name, checks) in CHECKS {
            let known = |check: &&str| phases::PHASES.iter().any(|phase| phase.check(check).is_some());
            assert!(checks.iter().all(known), "{name}");
        }
    }

    #[test]
    fn shipped_environments_change_no_limit_and_others_say_which() {
        let load = |phase: Phase, sets: &[&str]| {
            let sets = sets.iter().map(|set| (*set).to_owned()).collect();
            let overrides = Overrides { sets, ..Overrides::default() };
            Library::built_in().load(phase.as_str(), &overrides, &Catalogue::default()).unwrap().environment
        };
        for listed in Library::built_in().list() {
            let loaded = Library::built_in().load(&listed.name, &Overrides::default(), &Catalogue::default()).unwrap();
            assert_eq!(changed_limits(&loaded.environment), [], "{}", listed.name);
        }
        let said = |phase: Phase, sets: &[&str]| -> Vec<String> {
            changed_limits(&load(phase, sets)).iter().map(ToString::to_string).collect()
        };
        let sets = ["gates.sessions=20", "gates.availability_window=5s", "gates.compliance=[]"];
        assert_eq!(
            said(Phase::ScaleUp, &sets),
            ["gates.sessions: 20 instead of 10000", "gates.compliance: none instead of gdpr, hipaa, soc2"]
        );
        assert_eq!(said(Phase::Pilot, &sets), ["gates.availability_window: 5s instead of 1d"]);
        assert_eq!(said(Phase::Staging, &["gates.p95_ms=100"]), ["gates.p95_ms: 100 instead of 500"]);
        assert_eq!(said(Phase::Development, &sets), [""; 0]);
        assert_eq!(said(Phase::Pilot, &["gates.server_memory=8GB"]), ["gates.server_memory: 8GB instead of off"]);
        assert_eq!(said(Phase::Pilot, &["gates.tokens_per_second=10"]), [""; 0], "its gate does not measure it");
    }
}
