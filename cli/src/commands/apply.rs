//! `apply PLAN`: applies exactly the saved plan that was approved, or nothing.

use anyhow::Context;
use camino::Utf8Path;
use textnlp_orchestrator::plan::{DeleteData, MOST_BYTES, Purpose, Saved, SavedPlanError};

use super::prelude::*;
use super::{down, plan, up};
use crate::args::{Apply, Down, Up};

/// `apply PLAN`.
pub async fn apply(session: &Session, args: &Apply, console: Console) -> Result<Success, Failure> {
    let saved = read(&args.plan)?;
    let session = as_planned(session, &saved, &args.plan)?;
    let planned = &saved.plan;
    console.say(format!("{} was planned by {} at {:.0}", args.plan, saved.by, saved.at));
    for (flag, value) in &saved.flags {
        console.say(format!("  with {flag} {value}"));
    }
    match planned.purpose {
        Purpose::Up => {
            let up = Up { no_gate: args.no_gate, from_scratch: args.from_scratch, ..Up::default() };
            up::run(&session, &up, Some(planned), console).await
        }
        Purpose::Down => {
            let typed = |data: DeleteData| (planned.delete_data == data).then(|| planned.environment.to_string());
            let down = Down { delete_data: typed(DeleteData::All), delete_dumps: typed(DeleteData::Dumps) };
            down::run(&session, &down, Some(planned), console).await
        }
    }
}

/// The session in which a saved plan is applied.
pub fn planned_session(session: &Session, args: &Apply) -> Result<Session, Failure> {
    as_planned(session, &read(&args.plan)?, &args.plan)
}

fn read(file: &Utf8Path) -> Result<Saved, Failure> {
    let unreadable = |error: std::io::Error| {
        Failure::usage("unreadable_plan", anyhow::Error::new(error).context(format!("read plan {file}")))
            .hint("give a file that `textnlp-deploy plan --out FILE` wrote")
    };
    let about = std::fs::metadata(file).map_err(unreadable)?;
    trusted(file, "plan")?;
    if about.len() > MOST_BYTES {
        return Err(Failure::usage("unreadable_plan", anyhow::anyhow!("{file} is too large to be a plan")));
    }
    let bytes = std::fs::read(file).map_err(unreadable)?;
    Saved::read(&bytes).map_err(|error| {
        let (code, hint) = match error {
            SavedPlanError::Other(_) => ("unreadable_plan", "give a file that `textnlp-deploy plan --out FILE` wrote"),
            SavedPlanError::Future { .. } => {
                ("newer_plan", "apply it with the program that saved it, or plan again with this one")
            }
            SavedPlanError::Changed => ("changed_plan", "plan again, and have the new plan reviewed"),
        };
        Failure::refused(code, anyhow::Error::new(error).context(format!("read plan {file}"))).hint(hint)
    })
}

/// Refuses a file that another user controls: a plan decides which programs run, before anything is compared with it.
fn trusted(file: &Utf8Path, what: &str) -> Result<(), Failure> {
    let exposed = textnlp_files::check_instructions(file).with_context(|| format!("check {what} {file}"))?;
    let Some(exposed) = exposed else { return Ok(()) };
    let error =
        anyhow::Error::msg(exposed.to_string()).context(format!("{what} {file} is in the hands of another user"));
    Err(Failure::refused("exposed_plan", error)
        .hint(format!("review it, make a copy that only you can write to, and use that: cp {file} COPY")))
}

/// The session of the saved plan: the same environment with the same changed values. Flags that contradict it are an
/// error.
fn as_planned(session: &Session, saved: &Saved, file: &Utf8Path) -> Result<Session, Failure> {
    let mut global = session.global.clone();
    let environment = &saved.plan.environment;
    if let Some(other) = global.env.as_deref().filter(|typed| *typed != environment.as_str()) {
        let error = anyhow::anyhow!("{file} is a plan for `{environment}`, but --env is `{other}`");
        return Err(Failure::refused("other_environment", error).hint("omit --env: the plan names its environment"));
    }
    let flags = plan::flags(&global);
    if let Some((flag, value)) = flags.iter().find(|typed| typed.0 != "--file" && !saved.flags.contains(typed)) {
        let error =
            anyhow::anyhow!("{file} was planned without {flag} {value}: `apply` uses the options of the saved plan");
        return Err(Failure::usage("usage", error).hint(format!("omit {flag}, or plan again with it")));
    }
    global.set.clear();
    global.take_ownership.clear();
    for (flag, value) in &saved.flags {
        match flag.as_str() {
            "--set" => global.set.push(value.clone()),
            "--take-ownership" => global.take_ownership.push(value.clone()),
            "--site" => global.site = Some(value.clone()),
            "--provider" => global.provider = Some(value.clone()),
            "--server" => {
                trusted(Utf8Path::new(value), "server program")?;
                global.server = Some(value.into());
            }
            "--file" if global.file.is_none() && global.env.is_none() => global.file = Some(value.into()),
            _ => {}
        }
    }
    if global.file.is_none() {
        global.env = Some(environment.to_string());
    }
    Session::new(global)
}
