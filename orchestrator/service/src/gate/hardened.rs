//! Additional gate checks of a hardened service: its full security audit, and the compliance reports from it.

use textnlp_bundle::scan::Database;
use textnlp_orchestrator::environment::{Environment, Library};
use textnlp_orchestrator::gate::Check;
use textnlp_orchestrator::gate::phases::{COMPLIANCE, CheckDefinition, PhaseDefinition, SECURITY_AUDIT};
use textnlp_provider::units::counted;

use crate::bundle::advisories::AdvisorySources;
use crate::checks::{CheckLine, CheckResult};
use crate::compliance::{ControlState, assess};
use crate::{Deployment, Progress, RunningEnvironment, security};

/// Names that a note lists.
const NAMED: usize = 5;

/// The checks, if the gate of the environment's phase has them. `given`: the advisories that the operator gave.
pub async fn checks(
    deployment: &Deployment,
    running: &RunningEnvironment,
    library: &Library,
    advisories: (&AdvisorySources, Option<&Database>),
    progress: &dyn Progress,
) -> Vec<Check> {
    let environment = &deployment.chosen.loaded.environment;
    let definition = PhaseDefinition::of(environment.phase);
    let Some(audit) = definition.check(SECURITY_AUDIT) else { return Vec::new() };
    let compliance = definition.check(COMPLIANCE);
    match security::audit(deployment, running, library, advisories, true, progress).await {
        Ok(audited) => {
            let complete = compliance.map(|check| compliance_check(check, environment, &audited.lines));
            std::iter::once(audit_check(audit, environment, &audited.lines)).chain(complete).collect()
        }
        Err(failure) => {
            let unknown = |check: &CheckDefinition| check.unknown(environment, format!("{:#}", failure.error));
            std::iter::once(audit).chain(compliance).map(unknown).collect()
        }
    }
}

fn audit_check(definition: &CheckDefinition, environment: &Environment, lines: &[CheckLine]) -> Check {
    let of = |result: CheckResult| -> Vec<String> {
        lines.iter().filter(|line| line.mark == result).map(|line| line.name.clone()).collect()
    };
    let (failed, unknown, warnings) = (of(CheckResult::Problem), of(CheckResult::Unknown), of(CheckResult::Warning));
    if failed.is_empty() && !unknown.is_empty() {
        return definition.unknown(environment, format!("not measured: {}", named(&unknown)));
    }
    let note = match (failed.is_empty(), warnings.is_empty()) {
        (false, _) => named(&failed),
        (true, false) => format!("{}: {}", counted(warnings.len(), "warning"), named(&warnings)),
        (true, true) => counted(lines.len(), "line"),
    };
    definition.measured(environment, failed.len(), failed.is_empty()).note(note)
}

fn compliance_check(definition: &CheckDefinition, environment: &Environment, lines: &[CheckLine]) -> Check {
    let frameworks = environment.gates.compliance.iter();
    let assessed: Vec<_> = frameworks
        .flat_map(|framework| assess(*framework, lines).into_iter().map(move |one| (framework, one)))
        .collect();
    let of = |state: ControlState| -> Vec<String> {
        let those = assessed.iter().filter(|(_, one)| one.state == state);
        those.map(|(framework, one)| format!("{} {}", framework.title(), one.control.id)).collect()
    };
    let (not_met, unknown) = (of(ControlState::NotMet), of(ControlState::Unknown));
    match (not_met.is_empty(), unknown.is_empty()) {
        (false, _) => {
            let measured = format!("{} not met", counted(not_met.len(), "control"));
            definition.measured(environment, measured, false).note(named(&not_met))
        }
        (true, false) => definition.unknown(environment, format!("not measured: {}", named(&unknown))),
        (true, true) => {
            let note = match environment.gates.compliance.as_slice() {
                [] => "`gates.compliance` names no framework".to_owned(),
                _ => format!("{} met", counted(of(ControlState::Met).len(), "control")),
            };
            definition.measured(environment, "complete", true).note(note)
        }
    }
}

fn named(names: &[String]) -> String {
    let mut text = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > NAMED {
        text += &format!(" and {} more", names.len() - NAMED);
    }
    text
}

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::environment::model::Phase;
    use textnlp_orchestrator::environment::{Catalogue, Overrides};

    use super::*;
    use crate::security::{RULES, Rule};

    fn lines(changed: &[(Rule, CheckResult)]) -> Vec<CheckLine> {
        let line = |rule: Rule| {
            let found = changed.iter().find(|(of, _)| *of == rule);
            let mark = found.map_or(CheckResult::Well, |(_, mark)| *mark);
            CheckLine { site: None, rule: Some(rule), name: rule.id().to_owned(), mark, says: String::new(), fix: None }
        };
        RULES.iter().map(|definition| line(definition.rule)).collect()
    }

    #[test]
    fn failed_line_shuts_the_gate_and_an_unmeasured_one_can_be_waived() {
        let loaded = Library::built_in().load("scale-up", &Overrides::default(), &Catalogue::default());
        let environment = loaded.unwrap().environment;
        let definition = PhaseDefinition::of(Phase::ScaleUp);
        let (audit, compliance) = (definition.check(SECURITY_AUDIT).unwrap(), definition.check(COMPLIANCE).unwrap());
        assert!(audit.waivable && compliance.waivable);
        let both = |changed: &[(Rule, CheckResult)]| {
            let lines = lines(changed);
            (audit_check(audit, &environment, &lines), compliance_check(compliance, &environment, &lines))
        };
        let (audited, complete) = both(&[]);
        assert!(audited.ok && complete.ok, "{audited:?} {complete:?}");
        let (audited, complete) = both(&[(Rule::OpenPorts, CheckResult::Unknown)]);
        assert!(audited.is_unknown() && complete.is_unknown(), "{audited:?} {complete:?}");
        let failed = [(Rule::OpenPorts, CheckResult::Unknown), (Rule::BackupEncryption, CheckResult::Problem)];
        let (audited, complete) = both(&failed);
        assert!(!audited.ok && !audited.is_unknown() && audited.measured == 1, "{audited:?}");
        assert!(!complete.ok && !complete.is_unknown(), "{complete:?}");
        assert!(complete.note.as_deref().is_some_and(|note| note.contains("GDPR Art. 32(1)(a)")), "{complete:?}");
        // A documented exemption is a warning of the audit and decides no control.
        let (audited, complete) = both(&[(Rule::Waivers, CheckResult::Warning)]);
        assert!(audited.ok && complete.ok, "{audited:?} {complete:?}");
    }
}
