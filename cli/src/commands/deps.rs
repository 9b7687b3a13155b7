//! `deps`: what an environment depends on outside of its own programs, and whether it answers.

use textnlp_service::checks::CheckLine;
use textnlp_service::dependencies::{Dependency, dependencies};

use super::prelude::*;
use crate::check_view;
use crate::deployment::selection;

/// `deps`.
pub async fn deps(session: &Session, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    let name = chosen.scope.name.clone();
    let progress = Progress::new(console);
    let select = |chosen| selection(session, chosen);
    let found = dependencies(chosen, &select, async || session.target().await, &progress).await?;
    progress.finish();
    let lines: Vec<CheckLine> = found.iter().map(line).collect();
    let document = json!({ "environment": name, "dependencies": found });
    Ok(check_view::states(&lines, &format!("of {}", found.len()), document, console))
}

fn line(found: &Dependency) -> CheckLine {
    let Dependency { name, site, address, result, milliseconds, cause, fix, .. } = found;
    let took = milliseconds.map_or(String::new(), |took| format!("  {took} ms"));
    let cause = cause.as_ref().map_or(String::new(), |cause| format!("\n{cause}"));
    let says = format!("{address}{took}{cause}");
    CheckLine { site: site.clone(), rule: None, name: (*name).to_owned(), mark: *result, says, fix: fix.clone() }
}
