//! `providers` and `preflight`: list the available providers and all preflight problems.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use textnlp_provider::{Capability, RuntimeSupport};

use super::prelude::*;
use crate::clouds;
use crate::deployment::{self, preflight_failure};
use crate::plan_view;

/// `providers`.
pub fn providers() -> Success {
    let listed = |names: &[&str]| if names.is_empty() { "-".to_owned() } else { names.join(", ") };
    let runtimes = clouds::PROVIDERS.iter().map(|row| listed(&row.capabilities.names()).len());
    let width = runtimes.max().unwrap_or_default();
    let mut text = format!("{:<12} {:<width$} {:<24} ABOUT\n", "NAME", "RUNTIMES", "STATUS");
    let mut rows = Vec::new();
    for row in clouds::PROVIDERS {
        let runtimes = row.capabilities.names();
        let status = if row.missing.is_none() { "available" } else { "not part of this build" };
        let _ = writeln!(text, "{:<12} {:<width$} {status:<24} {}", row.name, listed(&runtimes), row.about);
        let offers = |support: &RuntimeSupport| -> Vec<String> {
            let name = |capability: &Capability| match capability {
                Capability::Optional(setting) => setting.path().to_owned(),
                choice => format!("{}={choice}", choice.path()),
            };
            support.supported.iter().map(name).collect()
        };
        let by_runtime: BTreeMap<&str, Vec<String>> =
            row.capabilities.runtimes.iter().map(|one| (one.runtime.as_str(), offers(one))).collect();
        rows.push(json!({
            "name": row.name, "about": row.about, "available": row.missing.is_none(), "why_not": row.missing,
            "runtimes": runtimes, "offers": row.capabilities.runtimes.first().map(offers).unwrap_or_default(),
            "offers_by_runtime": by_runtime,
        }));
    }
    for row in clouds::PROVIDERS {
        if let Some(how) = row.missing {
            let _ = write!(text, "\n{}: {how}", row.name);
        }
    }
    let catalogue = clouds::catalogue();
    let detected = catalogue.detect(None);
    let _ = match &detected {
        Ok(found) => write!(text, "\n`provider: auto` is {}: {}", found.provider, found.because),
        Err(why) => write!(text, "\n`provider: auto` is refused here: {}", why.cause),
    };
    let seen = catalogue.surroundings.map(|surroundings| surroundings.evidence).unwrap_or_default();
    let document = match &detected {
        Ok(found) => json!({ "provider": found.provider, "because": found.because, "seen": seen }),
        Err(why) => json!({ "provider": null, "because": why.cause, "seen": seen }),
    };
    for row in clouds::PROVIDERS.iter().filter(|row| row.missing.is_none()) {
        for support in row.capabilities.runtimes {
            let _ = write!(text, "\n\n{}, {}", row.name, support.runtime);
            for (setting, values) in choices(support) {
                let _ = write!(text, "\n  {setting:<26} {}", values.join(", "));
            }
        }
    }
    text.push_str("\n\nSupported optional settings: textnlp-deploy providers --output json");
    Success::new(text, json!({ "providers": rows, "detected": document }))
}

/// The values of each setting that has a choice, in the order in which the provider lists them.
fn choices(support: &RuntimeSupport) -> Vec<(&'static str, Vec<String>)> {
    let mut choices: Vec<(&str, Vec<String>)> = Vec::new();
    for capability in support.supported.iter().filter(|one| !matches!(one, Capability::Optional(_))) {
        let (path, value) = (capability.path(), capability.to_string());
        match choices.iter_mut().find(|(known, _)| *known == path) {
            Some((_, values)) => values.push(value),
            None => choices.push((path, vec![value])),
        }
    }
    choices
}

/// `preflight`: reports all problems at once, and exits with 1 if any must be fixed.
pub async fn preflight(session: &Session, console: Console) -> Result<Success, Failure> {
    let chosen = session.load_to_deploy(console)?;
    let name = chosen.scope.name.clone();
    let deployment = deployment::wanted(session, chosen, console).await?;
    let (warnings, problems): (Vec<_>, Vec<_>) = deployment.preflight().await?.into_iter().partition(|p| p.warning);
    let mut text = String::new();
    for warning in &warnings {
        let _ = writeln!(text, "{}: {}: {}\n         {}", warning.word(), warning.place, warning.cause, warning.fix);
    }
    if problems.is_empty() {
        let found = match warnings.iter().filter(|warning| !warning.note).count() {
            0 => "no problems found".to_owned(),
            count => format!("{}, and nothing that must be fixed first", counted(count, "warning")),
        };
        let _ = write!(text, "{name}: {found}");
        return Ok(Success::new(
            text,
            json!({ "environment": name, "problems": [], "warnings": plan_view::problems(&warnings) }),
        ));
    }
    warnings.iter().filter(|w| !w.note).for_each(|w| console.warn(w.to_string()));
    Err(preflight_failure("preflight", "preflight", Exit::Failed, &problems))
}
