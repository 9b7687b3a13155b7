//! Why an environment file cannot be used.

use camino::Utf8Path;
use textnlp_models::{Catalogue, Source, Store, inspect};
use textnlp_orchestrator::environment::model::ModelSettings;
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
            // Without a source, the name is the source.
            Some(mistake(loaded, &[&format!("models[{i}].source"), &format!("models[{i}].name")], &why.to_string()))
        })
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    let error = anyhow::anyhow!("{}", wrong.join("\n")).context("the environment names models that do not exist");
    Err(Failure::usage("no_such_model", error).hint(again.bare("model list")))
}

/// Rejects contexts above what the models support, all of them at once. Those of models that are not on this machine are
/// known when they are loaded. `cache`: where models of the environment are fetched into.
pub fn supported_contexts(loaded: &Loaded, cache: Option<&Utf8Path>) -> Result<(), Failure> {
    let of_model = |(i, model): (usize, &ModelSettings)| {
        let wanted = u64::from(model.context?);
        let supported = supported_context(model.source(), cache).filter(|supported| wanted > *supported)?;
        let why = format!("it is {wanted} tokens, and the model `{}` supports {supported}", model.id());
        Some(mistake(loaded, &[&format!("models[{i}].context")], &why))
    };
    let wrong: Vec<String> = loaded.environment.models.iter().enumerate().filter_map(of_model).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    let error =
        anyhow::anyhow!("{}", wrong.join("\n")).context("the environment sets contexts that models do not support");
    Err(Failure::usage("context_too_long", error)
        .hint("lower `models[].context`, or leave it out for the longest context of the model"))
}

/// The longest context of a model of the catalogue, in a folder or in the cache. The preflight reports one that cannot be
/// read.
fn supported_context(source: &str, cache: Option<&Utf8Path>) -> Option<u64> {
    let source = source.parse::<Source>().ok()?.resolve().ok()?;
    if let Source::File(path) = &source {
        return inspect(path).ok().map(|found| found.context);
    }
    if let Some(entry) = Catalogue::embedded().entries().find(|entry| entry.source == source) {
        return Some(entry.context);
    }
    let store = Store::existing(cache?).ok()??;
    let folder = store.model_folder(&store.recorded(&source).ok()??).ok()??;
    inspect(&folder).ok().map(|found| found.context)
}

/// A mistake with its place: the first of these settings that the environment has.
fn mistake(loaded: &Loaded, settings: &[&str], why: &str) -> String {
    let fact = settings.iter().flat_map(|setting| loaded.explain(setting)).next();
    let origin = fact.map(|fact| format!("{}: ", fact.origin)).unwrap_or_default();
    format!("{origin}error: `{}`: {why}", settings.first().copied().unwrap_or_default())
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
