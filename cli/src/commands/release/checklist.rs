//! `release checklist`: the steps of a release in order, and what a service needs to be ready.

use std::fmt::Write as _;

use textnlp_service::checklist::{self, ReleaseFacts, Step, StepState};
use textnlp_service::checks::{CheckLine, CheckResult};

use super::local_release;
use crate::args::{Checklist, Global};
use crate::commands::prelude::*;
use crate::{check_view, deployment};

/// `release checklist [--production ENV] [--done STEP]`.
pub async fn checklist(
    session: &Session,
    chosen: &ChosenEnvironment,
    args: &Checklist,
    console: Console,
) -> Result<Success, Failure> {
    let name = &chosen.scope.name;
    let production = match &args.production {
        Some(other) if other == name.as_str() => {
            return Err(Failure::usage("usage", anyhow::anyhow!("--production names the environment of --env")));
        }
        Some(other) => {
            let global = Global { env: Some(other.clone()), file: None, ..session.global.clone() };
            Some(Session::new(global)?.load(console)?)
        }
        None => None,
    };
    let here = local_release(session, chosen, chosen.lock()?.as_ref(), console)?;
    let production = production.as_ref();
    let facts = ReleaseFacts { staging: chosen, production, here: &here, folder: &session.here };
    if !args.done.is_empty() {
        checklist::mark(&facts, &args.done, &deployment::operator(session))?;
    }
    let progress = Progress::new(console);
    let list = progress.done(checklist::checklist(&facts, &progress).await)?;
    if let Some(why) = &list.unverified {
        console.warn(format!("{why}; records of --done are not used"));
    }
    let rows: Vec<Value> = list.readiness.iter().map(CheckLine::document).collect();
    let document = json!({
        "environment": name, "production": production.map(|production| &production.scope.name),
        "version": env!("CARGO_PKG_VERSION"), "release": list.release, "steps": list.steps, "readiness": rows,
    });
    let mut success = check_view::states(&list.readiness, &format!("of {}", rows.len()), document, console);
    let is_open = list.steps.iter().any(|step| step.state != StepState::Done)
        || list.readiness.iter().any(|line| line.mark != CheckResult::Well);
    success.exit = is_open.then_some(Exit::GateShut);
    success.text = format!("{}\n\nReadiness\n{}", steps(&list.steps, console), success.text);
    Ok(success)
}

/// A line for each step, and below it what to do.
fn steps(steps: &[Step], console: Console) -> String {
    let done = steps.iter().filter(|step| step.state == StepState::Done).count();
    let mut text = format!("{done} of {} steps are done", steps.len());
    for (number, Step { name, title, state, evidence, next }) in (1..).zip(steps) {
        let mark = match state {
            StepState::Done => console.paint("32", "✓"),
            StepState::Open => console.paint("31", "✗"),
            StepState::Yours => console.paint("33", "?"),
        };
        let _ = write!(text, "\n{number:>3} {mark} {name:<10}  {title}: {evidence}");
        if let Some(next) = next {
            let _ = write!(text, "\n                    → {next}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Output;

    #[test]
    fn each_step_has_a_line_and_what_to_do() {
        let of = |name, state, next: Option<&str>| Step {
            name,
            title: "a title",
            state,
            evidence: "why".to_owned(),
            next: next.map(str::to_owned),
        };
        let list = [of("version", StepState::Done, None), of("tests", StepState::Yours, Some("run them"))];
        let text = steps(&list, Console::new(Output::Text, true));
        assert!(text.starts_with("1 of 2 steps are done\n"), "{text}");
        assert!(text.contains("  2 ? tests       a title: why\n") && text.ends_with("→ run them"), "{text}");
    }
}
