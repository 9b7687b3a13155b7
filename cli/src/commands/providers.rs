//! `providers` and `preflight`: what is there, and what would stand in the way.

use std::fmt::Write as _;

use serde_json::json;

use crate::clouds;
use crate::deployment::{Deployment, stands_in_the_way};
use crate::plan_view;
use crate::report::{Console, Exit, Failure, Success};
use crate::session::Session;

/// `providers`.
pub fn providers() -> Success {
    let (mut text, mut rows) = (String::new(), Vec::new());
    for row in clouds::PROVIDERS {
        let state = row.missing.unwrap_or("available");
        let _ = writeln!(text, "{:<12} {:<52} {state}", row.name, row.about);
        if row.missing.is_none() {
            let _ = writeln!(text, "{:<12} runtimes: {}", "", row.runtimes.join(", "));
            let _ = writeln!(text, "{:<12} offers:   {}", "", row.choices.join(", "));
        }
        rows.push(json!({
            "name": row.name, "about": row.about, "available": row.missing.is_none(), "why_not": row.missing,
            "runtimes": row.runtimes, "offers": row.choices,
        }));
    }
    Success::new(text, json!({ "providers": rows }))
}

/// `preflight`: all findings at once; exits with 1 when something must be mended.
pub async fn preflight(session: &Session, console: Console) -> Result<Success, Failure> {
    let chosen = session.load_to_run(console)?;
    let name = chosen.name.clone();
    let deployment = Deployment::wanted(session, chosen, console).await?;
    let mut found = Vec::new();
    for site in deployment.sites.values() {
        found.extend(site.provider.preflight(&site.wanted).await?);
    }
    let (warnings, problems): (Vec<_>, Vec<_>) = found.into_iter().partition(|p| p.warning);
    let mut text = String::new();
    for warning in &warnings {
        let _ = writeln!(text, "{}: {}: {}\n         {}", warning.word(), warning.place, warning.cause, warning.fix);
    }
    if problems.is_empty() {
        let _ = write!(text, "{name}: nothing stands in the way");
        return Ok(Success::new(
            text,
            json!({ "environment": name, "problems": [], "warnings": plan_view::problems(&warnings) }),
        ));
    }
    warnings.iter().filter(|w| !w.note).for_each(|w| console.warn(w.to_string()));
    Err(stands_in_the_way("preflight", "preflight", Exit::Failed, &problems))
}
