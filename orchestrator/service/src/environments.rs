//! Why an environment file cannot be used.

use textnlp_models::Source;
use textnlp_orchestrator::environment::{LoadError, Loaded, Origin, Problem, Severity};

use crate::{Failure, RerunFlags};

/// Rejects unknown model sources, all of them at once, before anything changes.
pub fn known_models(loaded: &Loaded, again: &RerunFlags) -> Result<(), Failure> {
    let wrong: Vec<String> = loaded
        .environment
        .models
        .iter()
        .enumerate()
        .filter_map(|(i, m)| {
            let why = Source::check(m.source()).err()?;
            let path = format!("models[{i}].source");
            // Without a source, the name is the source.
            let facts = [loaded.explain(&path), loaded.explain(&format!("models[{i}].name"))].concat();
            let origin = facts.first().map(|fact| format!("{}: ", fact.origin)).unwrap_or_default();
            Some(format!("{origin}error: `{path}`: {why}"))
        })
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    let error = anyhow::anyhow!("{}", wrong.join("\n")).context("the environment names models that do not exist");
    Err(Failure::usage("no_such_model", error).hint(again.bare("model list")))
}

/// Converts an error of loading an environment.
pub fn invalid(error: LoadError, again: &RerunFlags) -> Failure {
    match error {
        LoadError::NoSuch(no) => {
            let hint = no.fix();
            Failure::usage("no_such_environment", no).hint(hint)
        }
        LoadError::Invalid(report) => {
            let problems = serde_json::to_value(&report.0).unwrap_or_default();
            let count = report.count(Severity::Error) + report.count(Severity::Refusal);
            let error = anyhow::anyhow!("{report}").context(match count {
                1 => "the environment has a mistake".to_owned(),
                _ => format!("the environment has {count} mistakes"),
            });
            // A check would repeat the wrong option.
            let is_typed = |problem: &Problem| matches!(problem.origin, Origin::Set { .. } | Origin::Flag { .. });
            let hint = match report.0.iter().find(|problem| problem.severity == Severity::Error && is_typed(problem)) {
                Some(problem) => format!("correct the option {}, then run the command again", problem.origin),
                None => format!("fix it, then check again: {}", again.check("")),
            };
            Failure::usage("invalid_environment", error)
                .hint(hint)
                .document(serde_json::json!({ "problems": problems }))
        }
        other => Failure::usage("unreadable_environment", other)
            .hint("choose an existing one: textnlp-deploy env list, or --file PATH"),
    }
}
