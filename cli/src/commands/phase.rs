//! `phase list|show`: what each phase needs, its steps, what to watch, what it checks and delivers, and how it is rolled back.

use std::fmt::Write as _;

use textnlp_orchestrator::environment::model::Phase;
use textnlp_orchestrator::environment::{Catalogue, Environment, Library, Overrides};
use textnlp_orchestrator::gate::phases::{PHASES, PhaseDefinition};

use super::prelude::*;
use crate::gate_args::Phase as PhaseCommand;

/// `phase …`.
pub fn phase(session: &Session, command: &PhaseCommand, console: Console) -> Result<Success, Failure> {
    match command {
        PhaseCommand::List => list(),
        PhaseCommand::Show { phase: Some(phase) } => Ok(show(&shipped(*phase)?)),
        PhaseCommand::Show { phase: None } => Ok(show(&session.load(console)?.loaded.environment)),
    }
}

/// The environment that ships for a phase.
fn shipped(phase: Phase) -> Result<Environment, Failure> {
    let loaded = Library::built_in().load(phase.as_str(), &Overrides::default(), &Catalogue::default());
    let loaded = loaded.map_err(|error| Failure::new(Exit::Failed, "internal", error))?;
    Ok(loaded.environment)
}

fn list() -> Result<Success, Failure> {
    let (mut lines, mut documents) = (Vec::new(), Vec::new());
    for (number, definition) in (1..).zip(&PHASES) {
        lines.push(format!("{number}  {:<14} {}", definition.phase, definition.objective));
        documents.push(document(definition, &shipped(definition.phase)?));
    }
    lines.push("\nSteps, monitoring, checks and rollback of one: textnlp-deploy phase show PHASE".to_owned());
    Ok(Success::new(lines.join("\n"), json!({ "phases": documents })))
}

fn show(environment: &Environment) -> Success {
    let definition = PhaseDefinition::of(environment.phase);
    let PhaseDefinition { phase, objective, prerequisites, deliverables, rollback, .. } = definition;
    let mut text = format!("{phase}: {objective} (planned: {})\n", definition.length());
    let _ = write!(text, "\nNeeds\n  {}", definition.hardware());
    for one in *prerequisites {
        let _ = write!(text, "\n  {one}");
    }
    let _ = write!(text, "\n\nStarts after\n  {}", definition.starts_after());
    let name = environment.environment.as_str();
    text.push_str("\n\nSteps");
    for (number, step) in (1..).zip(definition.steps) {
        let _ = write!(text, "\n  {number:>2}. {}\n      {}", step.command.line(name), step.expect);
    }
    text.push_str("\n\nGate");
    for check in definition.checks() {
        let _ = write!(text, "\n  {:<30}  {:<24}  ", check.name, check.demand(environment));
        text.push_str(check.how);
        text.push_str(if check.waivable { "; can be waived" } else { "" });
    }
    text.push_str("\n\nMonitoring");
    for indicator in definition.indicators() {
        let _ = write!(text, "\n  {:<24}  {}", indicator.name, indicator.source.text(name));
        let _ = write!(text, "\n  {:<24}  act when: {}", "", indicator.act_when);
    }
    for (heading, all) in [("Delivers", deliverables), ("Rollback", rollback)] {
        let _ = write!(text, "\n\n{heading}");
        for one in *all {
            let _ = write!(text, "\n  {one}");
        }
    }
    Success::new(text, json!({ "environment": environment.environment, "phase": document(definition, environment) }))
}

fn document(definition: &PhaseDefinition, environment: &Environment) -> Value {
    let PhaseDefinition { phase, objective, weeks, prerequisites, deliverables, rollback, .. } = definition;
    let checks = definition.checks().map(|check| {
        json!({
            "name": check.name, "limit": check.limit(environment), "requires": check.demand(environment),
            "setting": check.setting(), "measured_by": check.how, "can_be_waived": check.waivable,
        })
    });
    let name = environment.environment.as_str();
    let steps =
        definition.steps.iter().map(|step| json!({ "command": step.command.line(name), "expect": step.expect }));
    let monitoring = definition.indicators().map(|indicator| {
        let (kind, source) = indicator.source.parts(name);
        json!({ "name": indicator.name, kind: source, "act_when": indicator.act_when })
    });
    json!({
        "phase": phase, "objective": objective, "weeks": { "min": weeks.0, "max": weeks.1 },
        "starts_after": definition.starts_after(), "machine": definition.hardware(), "needs": prerequisites,
        "steps": steps.collect::<Vec<_>>(), "monitoring": monitoring.collect::<Vec<_>>(), "checks": checks.collect::<Vec<_>>(),
        "delivers": deliverables, "rollback": rollback,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_checks_never_touch() {
        for definition in &PHASES {
            let environment = shipped(definition.phase).unwrap_or_else(|_| panic!("{} is shipped", definition.phase));
            let text = show(&environment).text;
            for check in definition.checks() {
                let (name, demand) = (check.name, check.demand(&environment));
                let is_row = |line: &&str| line.trim_start().starts_with(&format!("{name}  "));
                let row = text.lines().find(is_row).unwrap_or_else(|| panic!("{name} has a row"));
                assert!(row.contains(&format!("  {demand}  ")), "{row}");
            }
        }
    }
}
