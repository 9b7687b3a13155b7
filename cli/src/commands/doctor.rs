//! `doctor`: checks everything that this program needs, and suggests a fix for each problem. Read-only.

use textnlp_service::checks::Checks;

use super::prelude::*;
use crate::check_view;
use crate::deployment::selection;

/// `doctor`: exits with 1 if a check fails.
pub async fn doctor(session: &Session, console: Console) -> Result<Success, Failure> {
    let mut checks = Checks::default();
    checks.well("program", format!("textnlp-deploy {}", env!("CARGO_PKG_VERSION")));
    checks.clock();
    let mut name = None;
    match session.load(console) {
        Ok(chosen) => {
            name = Some(chosen.scope.name.clone());
            let quiet = Progress::new(session.quiet());
            checks.environment(chosen, &|chosen| selection(session, chosen), &quiet).await?;
        }
        Err(failure) => {
            if failure.code == "no_environment" {
                checks.well("environment", "none is up here; to check one: --env NAME");
            } else {
                let causes: Vec<String> = failure.error.chain().map(ToString::to_string).collect();
                checks.problem("environment", causes.join(": "), failure.hint.unwrap_or_default());
            }
            if let Ok(root) = session.state_root() {
                checks.disk(&root);
            }
        }
    }
    Ok(check_view::problems(checks, name, true, console))
}
