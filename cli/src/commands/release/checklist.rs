//! `release checklist`: the steps of a release in order, and what a service needs to be ready.

use std::fmt::Write as _;

use textnlp_service::checklist::{self, ReleaseFacts, Step, StepCommand, StepState};
use textnlp_service::checks::{CheckLine, CheckResult};
use textnlp_service::origin;

use super::local_release;
use crate::args::{Checklist, Command, Global, Promote, Release, Up};
use crate::commands::audited;
use crate::commands::prelude::*;
use crate::gate_args::{AuditArgs, Gate};
use crate::{check_view, deployment, signals};

/// The environments of a checklist.
struct Environments<'a> {
    session: &'a Session,
    staging: &'a ChosenEnvironment,
    production: Option<&'a ChosenEnvironment>,
    console: Console,
}

/// What `--run` did.
#[derive(Default)]
struct RunSteps {
    /// The steps with their commands and outcomes.
    ran: Vec<Value>,
    /// The step that failed.
    failed: Option<(&'static str, Failure)>,
}

/// `release checklist [--production ENV] [--done STEP | --run]`.
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
    let environments = Environments { session, staging: chosen, production: production.as_ref(), console };
    let mut list = environments.checklist(&args.done).await?;
    if let Some(why) = &list.unverified {
        console.warn(format!("{why}; records of --done are not used"));
    }
    let run = if args.run { Some(environments.run(&mut list, &args.audit).await?) } else { None };
    let rows: Vec<Value> = list.readiness.iter().map(CheckLine::document).collect();
    let mut document = json!({
        "environment": name, "production": production.as_ref().map(|production| &production.scope.name),
        "version": env!("CARGO_PKG_VERSION"), "release": list.release, "steps": list.steps, "readiness": rows,
    });
    let open = list.first_open();
    if let Some(run) = &run {
        document["ran"] = json!(run.ran);
        document["stopped_at"] = json!(open.map(|step| step.name));
    }
    let mut success = check_view::states(&list.readiness, &format!("of {}", rows.len()), document, console);
    let is_open = open.is_some() || list.readiness.iter().any(|line| line.mark != CheckResult::Well);
    success.exit = is_open.then_some(Exit::GateShut);
    success.text = format!("{}\n\nReadiness\n{}", steps(&list.steps, console), success.text);
    let Some(RunSteps { ran, failed }) = run else { return Ok(success) };
    let again = environments.again();
    if let Some((step, failure)) = failed {
        console.stream(&format!("{}\n\n", success.text));
        let mut document = success.document;
        document.insert("failure".to_owned(), Value::Object(failure.document));
        let hint = failure.hint.into_iter().chain([format!("then continue: {again}")]).collect::<Vec<_>>().join("\n");
        let error = failure.error.context(format!("step `{step}` of the release failed"));
        return Err(Failure { error, document, hint: Some(hint), ..failure });
    }
    let count = ran.len();
    let _ = match open {
        None => write!(success.text, "\nSteps that were run: {count}."),
        Some(Step { name, evidence, next, .. }) => {
            let next = next.as_ref().unwrap_or(evidence);
            write!(
                success.text,
                "\nSteps that were run: {count}. The next one is `{name}`: {next}\nThen continue: {again}"
            )
        }
    };
    Ok(success)
}

impl Environments<'_> {
    /// The checklist as it is now, after these steps were recorded as done.
    async fn checklist(&self, done: &[String]) -> Result<checklist::Checklist, Failure> {
        let Self { session, staging, production, console } = *self;
        let here = local_release(session, staging, staging.lock()?.as_ref(), console)?;
        let facts = ReleaseFacts { staging, production, here: &here, folder: &session.here };
        if !done.is_empty() {
            checklist::mark(&facts, done, &deployment::operator(session))?;
        }
        let progress = Progress::new(console);
        progress.done(checklist::checklist(&facts, &progress).await)
    }

    /// The command that continues.
    fn again(&self) -> String {
        let production = self.production.map(|production| format!(" --production {}", production.scope.name));
        self.staging.scope.same(&format!("release checklist --run{}", production.unwrap_or_default()))
    }

    /// Runs the commands of open steps in order, each once, and brings the list up to date after each. A command that was not in the
    /// question, such as those that follow from records of a locked release, is asked for.
    async fn run(&self, list: &mut checklist::Checklist, audit: &AuditArgs) -> Result<RunSteps, Failure> {
        let (mut run, mut tried, mut approved) = (RunSteps::default(), Vec::new(), Vec::new());
        while let Some((step, command)) = list.next_command().filter(|(_, command)| !tried.contains(command)) {
            let (name, next) = (step.name, step.next.clone());
            if !approved.contains(&command) {
                self.approve(list)?;
                approved = list.steps.iter().filter_map(|step| step.command).collect();
                if approved.contains(&StepCommand::Promote) {
                    // A promoted release is applied next.
                    approved.push(StepCommand::UpProduction);
                }
            }
            tried.push(command);
            self.console.say(format!("step {name}: {}", next.as_deref().unwrap_or_default()));
            let failed = self.run_command(command, audit).await.err();
            let outcome = if failed.is_some() { "failed" } else { "done" };
            run.ran.push(json!({ "step": name, "command": next, "outcome": outcome }));
            match (self.checklist(&[]).await, failed) {
                (Ok(after), None) => *list = after,
                (Err(failure), None) => return Err(failure),
                (after, Some(failure)) => {
                    if let Ok(after) = after {
                        *list = after;
                    }
                    run.failed = Some((name, failure));
                    break;
                }
            }
        }
        Ok(run)
    }

    /// Asks for all steps that have a command.
    fn approve(&self, list: &checklist::Checklist) -> Result<(), Failure> {
        let Self { session, staging, production, console } = *self;
        if session.global.yes {
            return Ok(());
        }
        // `up` would ask for more than its plan with such a state.
        for environment in std::iter::once(staging).chain(production) {
            origin::check(&environment.scope)?;
        }
        console.say(steps(&list.steps, console));
        let names: Vec<_> = list.steps.iter().filter(|step| step.command.is_some()).map(|step| step.name).collect();
        signals::stop(console);
        let question = "Run these steps in order, with the plans of `up` as they will be";
        if console.confirm(&format!("{question}: {}?", names.join(", "))) {
            return Ok(());
        }
        if signals::is_stopped() {
            return Err(signals::stopped_at_question(self.again()));
        }
        let error = anyhow::anyhow!("the steps {} were not approved, so they were not run", names.join(", "));
        Err(Failure::refused("not_approved", error).hint(format!("approve them with --yes: {} --yes", self.again())))
    }

    /// Runs a command as the command line would, with its own record in the audit log.
    async fn run_command(&self, command: StepCommand, audit: &AuditArgs) -> Result<Success, Failure> {
        let global = &self.session.global;
        let name = |environment: &ChosenEnvironment| environment.scope.name.to_string();
        let from = name(self.staging);
        let env = global.file.is_none().then(|| from.clone());
        let staging = Global { env, yes: true, ..global.clone() };
        // Without one, no step has a command for it.
        let to = self.production.map(name).unwrap_or_default();
        let up = || Command::Up(Up { audit: audit.clone(), ..Up::default() });
        let (global, command, words, arguments) = match command {
            StepCommand::SetRelease => (staging, Command::Release(Release::Set), "release set", Vec::new()),
            StepCommand::UpStaging => (staging, up(), "up", Vec::new()),
            StepCommand::UpProduction => (Global { env: Some(to), file: None, ..staging }, up(), "up", Vec::new()),
            StepCommand::MeasureStaging => {
                let gate = Gate { again: true, waive: Vec::new(), until: None, audit: audit.clone() };
                (staging, Command::Gate(gate), "gate", vec!["--again".to_owned()])
            }
            StepCommand::Promote => {
                let arguments = vec![format!("--from={from}"), format!("--to={to}")];
                (staging, Command::Promote(Promote { from, to }), "promote", arguments)
            }
        };
        let session = Session::new(global)?;
        audited::run_within(&session, command, (words, arguments), self.console).await
    }
}

/// A line for each step, and below it what to do.
fn steps(steps: &[Step], console: Console) -> String {
    let done = steps.iter().filter(|step| step.state == StepState::Done).count();
    let mut text = format!("{done} of {} steps are done", steps.len());
    for (number, Step { name, title, state, evidence, next, .. }) in (1..).zip(steps) {
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
            command: None,
        };
        let list = [of("version", StepState::Done, None), of("tests", StepState::Yours, Some("run them"))];
        let text = steps(&list, Console::new(Output::Text, true));
        assert!(text.starts_with("1 of 2 steps are done\n"), "{text}");
        assert!(text.contains("  2 ? tests       a title: why\n") && text.ends_with("→ run them"), "{text}");
    }
}
