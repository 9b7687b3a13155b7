//! `plan`: what `up` would do, and nothing done.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use camino::Utf8Path;
use jiff::Timestamp;
use serde_json::json;
use textnlp_orchestrator::plan::{Estimate, Purpose, Reach, Saved, Swept, estimate, reach, swept};
use textnlp_orchestrator::road::{Ask, look};

use super::backup::keep;
use super::down::delete_data;
use crate::again::quoted;
use crate::args::{Global, Plan};
use crate::deployment::{Deployment, operator, road_failed};
use crate::plan_view;
use crate::progress::Progress;
use crate::report::{Console, Exit, Failure, Success};
use crate::session::Session;

/// `plan`.
pub async fn plan(session: &Session, args: &Plan, console: Console) -> Result<Success, Failure> {
    let chosen = if args.down { session.load_to_remove(console)? } else { session.load_to_run(console)? };
    let name = chosen.name.clone();
    let delete_data = delete_data(args.delete_data.as_deref(), &name)?;
    let (deployment, purpose) = if args.down {
        (Deployment::recorded(session, chosen)?, Purpose::Down)
    } else {
        (Deployment::wanted(session, chosen, console).await?, Purpose::Up)
    };
    let progress = Progress::new(console);
    let looked = look(&deployment.road(&progress), Ask { purpose, delete_data, gated: args.gated }).await;
    progress.finish();
    let (audited, facts) = looked.map_err(|e| road_failed(e, session, &name))?;
    let plan = audited.plan();
    let reaches = reach(plan, &facts);
    let (estimate, swept) = (estimate(plan, &facts), swept(plan, &facts));
    let mut text = plan_view::text(plan);
    if plan.has_changes() {
        text.push_str(&goes_along(&swept));
        text.push_str(&feels(&reaches, &estimate));
        let typed = args.delete_data.as_ref().map_or_else(String::new, |name| format!(" --delete-data {name}"));
        let verb = if args.down { "down" } else { "up" };
        let does = match &args.out {
            Some(file) => session.again().bare(&format!("apply {}", quoted(file.as_str()))),
            None => session.again().same(verb, &name) + &typed + if args.gated { " --gated" } else { "" },
        };
        let _ = write!(text, "\nTo do it: {does}");
    }
    if let Some(file) = &args.out {
        save(session, file, plan)?;
        let _ = write!(text, "\nSaved as {file}");
    }
    let currency = &deployment.chosen.loaded.environment.budget.currency;
    let mut document = plan_view::document(plan, &facts, currency);
    document["file"] = json!(args.out);
    document["state"] = json!(deployment.chosen.folder);
    document["reaches"] = json!(reaches);
    document["estimate"] = json!(estimate);
    document["swept"] = json!(swept);
    let success = Success::new(text, document);
    Ok(if args.exit_code && plan.has_changes() { success.exit(Exit::ChangesPlanned) } else { success })
}

/// What the controllers of clusters made, where that goes too.
fn goes_along(swept: &[Swept]) -> String {
    let mut text = String::new();
    for Swept { resource, foreign } in swept {
        let names: Vec<_> = foreign.iter().map(|one| format!("{} ({})", one.cloud_id, one.what)).collect();
        let _ = write!(text, "\n  with {resource} goes what its controllers made: {}", names.join(", "));
    }
    text
}

/// Who else feels it, and how long it may take.
fn feels(reaches: &[Reach], estimate: &Estimate) -> String {
    const SHOWN: usize = 4;
    let mut text = String::new();
    // Whoever goes as well feels nothing of it.
    let goes: BTreeSet<_> = reaches.iter().filter(|one| one.does == "delete").map(|one| &one.resource).collect();
    for one in reaches {
        let stay: Vec<_> = one.reaches.iter().filter(|id| !goes.contains(id)).collect();
        let mut names: Vec<_> = stay.iter().take(SHOWN).map(ToString::to_string).collect();
        if stay.len() > SHOWN {
            names.push(format!("{} more", stay.len() - SHOWN));
        }
        if !names.is_empty() {
            let _ = write!(text, "\n  {} of {} is felt by {}", one.does, one.resource, names.join(", "));
        }
    }
    if estimate.seconds > 0.0 {
        let _ = write!(text, "\nBy what earlier runs took, about {:.1} s", estimate.seconds);
        if !estimate.unknown.is_empty() {
            let kinds: Vec<_> = estimate.unknown.iter().map(ToString::to_string).collect();
            let _ = write!(text, ", and what {} take for the first time", kinds.join(", "));
        }
    }
    text
}

fn save(session: &Session, file: &Utf8Path, plan: &textnlp_orchestrator::plan::Plan) -> Result<(), Failure> {
    let operator = operator(session);
    let flags = flags(&session.global);
    let saved = Saved { tool: operator.tool, by: operator.by, at: Timestamp::now(), flags, plan: plan.clone() };
    keep::put(file, &saved.to_bytes()).map_err(|error| {
        Failure::usage("unwritable_plan", anyhow::Error::new(error).context(format!("write plan {file}")))
            .hint("name a file in a folder that can be written")
    })
}

/// The flags that say what to plan, each with its value.
pub fn flags(global: &Global) -> Vec<(String, String)> {
    let others = [
        ("--site", global.site.clone()),
        ("--provider", global.provider.clone()),
        ("--server", global.server.as_ref().map(ToString::to_string)),
        ("--file", global.file.as_ref().map(ToString::to_string)),
    ];
    let sets = global.set.iter().map(|set| ("--set", Some(set.clone())));
    let takes = global.take_ownership.iter().map(|field| ("--take-ownership", Some(field.clone())));
    sets.chain(takes).chain(others).filter_map(|(flag, value)| Some((flag.to_owned(), value?))).collect()
}
