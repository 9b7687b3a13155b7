//! Commands that change a state without an `up`. Each first prints what it would do.

use std::fmt::Write as _;

use anyhow::Context;
use jiff::Timestamp;
use textnlp_orchestrator::import::forget;
use textnlp_orchestrator::state::audit::AUDIT;
use textnlp_orchestrator::state::{Holder, Remedy, State, apply_remedies, check, moved_away, transfer};
use textnlp_orchestrator::status::{self, ResourceHealth};
use textnlp_provider::{Lineage, Observed, SiteName};
use textnlp_service::{Scope, origin};

use super::{agreed, no_such, resource_id};
use crate::commands::prelude::*;
use crate::deployment::{self, operator, state_failed};
use crate::rerun_flags::quoted;
use crate::state_args::{Move, Repair};
use crate::stores::{self, LOCAL, StateLocation};

fn holder(session: &Session) -> Holder {
    let who = operator(session);
    Holder { by: who.by, pid: who.pid, host: who.host, since: Timestamp::now(), tool: who.tool }
}

/// `state adopt`.
pub async fn adopt(session: &Session, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    let Scope { name, folder, .. } = &chosen.scope;
    let document = |adopted: bool| json!({ "environment": name, "folder": folder, "adopted": adopted });
    if origin::is_of_here(folder) {
        return Ok(Success::new(format!("the state of {name} in {folder} is of this machine"), document(false)));
    }
    console.say(format!(
        "The state in {folder} was copied, cloned or unpacked. From then on its records decide which programs run, what `down` \
         removes, and to which servers passwords go. If another copy is in use, both would change the same databases."
    ));
    agreed(session, console, &chosen.scope.command("state adopt"))?;
    origin::record(folder)?;
    Ok(Success::new(format!("the state of {name} is of this machine from now on"), document(true)))
}

/// `state repair`.
pub async fn repair(session: &Session, args: &Repair, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    let name = chosen.scope.name.clone();
    let failed = |error| state_failed(error, &session.again(), &name);
    if let Err(unreadable) = stores::recorded(&chosen.scope.folder)
        && unreadable.code == stores::DAMAGED
    {
        return repair_pointer(session, &chosen, unreadable, console).await;
    }
    let store = stores::of(session, &chosen)?;
    let found = check(&*store, &name).await.map_err(failed)?;
    let document = json!({ "environment": name, "store": store.place(), "findings": found, "mended": 0 });
    if found.is_empty() && store.document("lineage.json").await.map_err(failed)?.is_none() {
        let error = anyhow::anyhow!("environment {name} has no state in {}", store.place());
        return Err(Failure::usage("not_up", error).hint(chosen.scope.last_up()));
    }
    if found.is_empty() {
        return Ok(Success::new(
            format!("{}: intact: every record and every body matches its digest", store.place()),
            document,
        ));
    }
    let mut text = format!("{}:\n", store.place());
    for finding in &found {
        let remedy = match &finding.remedy {
            None => "only a backup restores it".to_owned(),
            Some(Remedy::CutTorn { .. }) => "truncated: no provider call was based on it".to_owned(),
            Some(Remedy::WriteLineage { lineage, .. }) => format!("written again from the journals: lineage {lineage}"),
            Some(Remedy::WriteHead { lost: 0, .. }) => "written again from the journal".to_owned(),
            Some(Remedy::WriteLease { .. }) => "written again: it only counts the locks".to_owned(),
            Some(Remedy::WriteHold) => format!(
                "written again as a freeze, because the environment may have been frozen; to allow changes: {}",
                chosen.scope.command("hold --release")
            ),
            Some(Remedy::WriteHead { lost, .. }) => {
                format!(
                    "the journal continues where it ends, and {lost} records stay lost; `up` finds the objects of this deployment that they recorded"
                )
            }
        };
        let _ = writeln!(text, "  {}: {}\n      → {remedy}", finding.what, finding.because);
    }
    console.say(text.trim_end());
    // A backup is restored into a folder.
    let is_elsewhere = chosen.scope.platform.is_elsewhere(&chosen.scope.folder)?;
    let restore = (!is_elsewhere)
        .then(|| format!("from a backup: {}", session.again().bare(&format!("restore FILE --replace {name}"))));
    let mendable = found.iter().filter(|finding| finding.remedy.is_some()).count();
    if mendable < found.len() {
        let error = anyhow::anyhow!(
            "{} of {} findings cannot be repaired without a backup",
            found.len() - mendable,
            found.len()
        );
        let kept = "nothing was changed, and the service keeps running";
        let hint = restore.as_ref().map_or_else(|| kept.to_owned(), |restore| format!("{kept}; {restore}"));
        return Err(Failure::new(Exit::Failed, "damaged_state", error).hint(hint).document(document));
    }
    let gives_up = found.iter().any(|finding| finding.remedy.as_ref().is_some_and(Remedy::gives_up));
    if gives_up && args.accept_loss.as_deref() != Some(name.as_str()) {
        let error = anyhow::anyhow!("records are missing, and a backup may have them");
        let without = format!("continue without them: {} --accept-loss {name}", chosen.scope.command("state repair"));
        let hint = restore.map_or_else(|| without.clone(), |restore| format!("{restore}; or {without}"));
        return Err(Failure::refused("records_lost", error).hint(hint).document(document));
    }
    let accepted = if gives_up { format!(" --accept-loss {name}") } else { String::new() };
    agreed(session, console, &(chosen.scope.command("state repair") + &accepted))
        .map_err(|failure| failure.document(document.clone()))?;
    apply_remedies(&*store, &name, &found, &holder(session)).await.map_err(failed)?;
    let left = check(&*store, &name).await.map_err(failed)?;
    let mut document = document;
    document["mended"] = json!(found.len() - left.len());
    document["findings"] = json!(left);
    let text = format!("{} repaired. To check the result: {}", found.len() - left.len(), chosen.scope.last("plan"));
    Ok(Success::new(text, document))
}

/// Writes `store.json` again, if the state is where the environment file says.
async fn repair_pointer(
    session: &Session,
    chosen: &ChosenEnvironment,
    unreadable: Failure,
    console: Console,
) -> Result<Success, Failure> {
    let Scope { name, folder, .. } = &chosen.scope;
    let failed = |error| state_failed(error, &session.again(), name);
    let written = StateLocation::of(&chosen.loaded.environment)?;
    let store = written.open(folder, console)?;
    let state = State::load(store.clone(), name, Lineage(uuid::Uuid::new_v4())).await.map_err(failed)?;
    if state.is_new() {
        let error = unreadable.error.context(format!("there is no state of {name} in {}", store.place()));
        let file = chosen.loaded.own_file();
        let hint = format!("write `state: {{ store: … }}`, where the state is, into {file}\nthen run this again");
        return Err(Failure { error, ..unreadable }.hint(hint));
    }
    let found = json!([{ "what": "store.json", "because": format!("{:#}", unreadable.error) }]);
    let mut document = json!({ "environment": name, "store": store.place(), "findings": found, "mended": 0 });
    console.say(format!("{:#}\n      → written again: the state is in {}", unreadable.error, store.place()));
    agreed(session, console, &chosen.scope.command("state repair"))
        .map_err(|failure| failure.document(document.clone()))?;
    stores::remember(&written, folder)?;
    let text = format!("1 repaired. To check the rest: {}", chosen.scope.command("state repair"));
    (document["mended"], document["findings"]) = (json!(1), json!([]));
    Ok(Success::new(text, document))
}

/// `state move`.
pub async fn move_state(session: &Session, args: &Move, console: Console) -> Result<Success, Failure> {
    match (&args.to, &args.rebind) {
        (Some(to), _) => into(session, to, console).await,
        (None, Some(site)) => rebind(session, site, console).await,
        (None, None) => {
            Err(Failure::usage("usage", anyhow::anyhow!("no destination is given")).hint("--to STORE or --rebind SITE"))
        }
    }
}

async fn into(session: &Session, to: &str, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    let name = chosen.scope.name.clone();
    let failed = |error| state_failed(error, &session.again(), &name);
    let written = StateLocation::of(&chosen.loaded.environment)?;
    // The environment may name either the new or the old location.
    let is = stores::recorded(&chosen.scope.folder)?;
    let is_local = chosen.scope.folder.join("lineage.json").exists();
    let from = match is {
        Some(is) => is,
        None if is_local => written.moved_to(LOCAL),
        None => written.clone(),
    };
    let target = if written.state.store == to { written.clone() } else { written.moved_to(to) };
    if from.state.store == target.state.store {
        let error = anyhow::anyhow!("the state of {name} is already in {to}");
        return Err(Failure::usage("already_there", error).hint(chosen.scope.command("state list")));
    }
    let (old, new) = (from.open(&chosen.scope.folder, console)?, target.open(&chosen.scope.folder, console)?);
    let state = State::load(old.clone(), &name, Lineage(uuid::Uuid::new_v4())).await.map_err(failed)?;
    if state.is_new() {
        let error = anyhow::anyhow!("there is no state of {name} in {}", old.place());
        return Err(Failure::usage("not_up", error).hint(chosen.scope.last_up()));
    }
    let document = json!({ "environment": name, "lineage": state.lineage(), "from": old.place(), "to": new.place() });
    console.say(format!(
        "The state of {name} moves from {} to {}; the service keeps running.",
        old.place(),
        new.place()
    ));
    agreed(session, console, &chosen.scope.same(&format!("state move --to {to}")))
        .map_err(|failure| failure.document(document.clone()))?;
    let who = holder(session);
    let lock = old.lock(&who).await.map_err(failed)?;
    let copied = transfer(&*old, &*new, &who).await;
    old.unlock(lock).await.map_err(failed)?;
    copied.map_err(failed)?;
    // Loaded with all its checks before the old state is closed.
    let there = State::load(new.clone(), &name, state.lineage()).await.map_err(failed)?;
    if there.heads() != state.heads() || there.lineage() != state.lineage() {
        let error = anyhow::anyhow!("another run wrote to {} at the same time", old.place());
        return Err(Failure::refused("stale", error).hint("empty the destination, then run this again"));
    }
    if from.state.store == LOCAL {
        set_aside(&chosen.scope.folder)?;
    } else {
        moved_away(&*old, &name, &target.state.store, &who).await.map_err(failed)?;
    }
    stores::remember(&target, &chosen.scope.folder)?;
    let mut text = format!("The state of {name} is in {} now; the old copy is kept and marked as moved.", new.place());
    if written.state.store != to {
        let file = chosen.loaded.own_file();
        let _ = write!(text, "\nBefore the next `up`, write `state: {{ store: {to} }}` into {file}");
    }
    Ok(Success::new(text, document))
}

/// Moves the old state into a subfolder, where no command uses it.
fn set_aside(folder: &camino::Utf8Path) -> Result<(), Failure> {
    let aside = folder.join(format!("moved-{}", Timestamp::now().strftime("%Y%m%dT%H%M%SZ")));
    std::fs::create_dir(&aside).with_context(|| format!("make {aside}"))?;
    // `lineage.json` is last, because a folder with it counts as the state.
    for part in [AUDIT, "journal", "hold.json", "lineage.json"] {
        let path = folder.join(part);
        if path.exists() {
            std::fs::rename(&path, aside.join(part)).with_context(|| format!("put {path} into {aside}"))?;
        }
    }
    Ok(())
}

async fn rebind(session: &Session, site: &str, console: Console) -> Result<Success, Failure> {
    let deployment = deployment::recorded(session, session.load(console)?).await?;
    let name = &deployment.chosen.scope.name;
    let failed = |error| deployment.failed(error);
    let site = SiteName::new(site).map_err(|error| Failure::usage("invalid_name", error))?;
    let state = deployment.state().await?;
    let (Some(is), Some(wanted)) = (state.places().get(&site), deployment.places().remove(&site)) else {
        let error = anyhow::anyhow!("environment {name} has no recorded site `{site}`");
        return Err(Failure::usage("no_such_site", error).hint(deployment.chosen.scope.command("state list")));
    };
    if *is == wanted {
        let text = format!("site `{site}` is already bound to {is}, as in the environment file");
        return Ok(Success::new(text, json!({ "environment": name, "site": site, "place": is })));
    }
    // If the new account has objects with the recorded ids, they are the same objects, and only the account's name
    // changed.
    let facts = deployment.facts(&state).await?;
    let here = facts.sites.get(&site);
    let missing: Vec<String> = here
        .into_iter()
        .flat_map(|here| here.holdings.iter().map(move |(id, holding)| (here, id, holding)))
        .filter_map(|(here, id, holding)| {
            let recorded = holding.current.as_ref()?;
            let shown = here.observed.iter().any(|(seen, what)| {
                seen == id && matches!(what, Observed::Present(object) if object.cloud_id == recorded.cloud_id)
            });
            (!shown).then(|| id.to_string())
        })
        .collect();
    let document = json!({ "environment": name, "site": site, "was": is, "place": wanted, "missing": missing });
    if !missing.is_empty() {
        let error = anyhow::anyhow!("{wanted} does not show {} of its objects: {}", missing.len(), missing.join(", "));
        return Err(Failure::refused("other_place", error)
            .hint(
                "the objects are in another account or cluster: restore the old values, or run `down` with them first",
            )
            .document(document));
    }
    console.say(format!(
        "Site `{site}` is bound to {is}.\nIt will be bound to {wanted}, where all of its objects were found."
    ));
    agreed(session, console, &deployment.chosen.scope.command(&format!("state move --rebind {site}")))
        .map_err(|failure| failure.document(document.clone()))?;
    let mut locked = deployment.locked().await?;
    locked.rebind(&site, &wanted).await.map_err(failed)?;
    locked.close().await.map_err(failed)?;
    Ok(Success::new(format!("site `{site}` is bound to {wanted}"), document))
}

/// `state remove RESOURCE…`.
pub async fn remove(session: &Session, resources: &[String], console: Console) -> Result<Success, Failure> {
    let deployment = deployment::recorded(session, session.load(console)?).await?;
    let name = &deployment.chosen.scope.name;
    let failed = |error| deployment.failed(error);
    let resources: Vec<_> = resources.iter().map(|text| resource_id(session, text)).collect::<Result<_, _>>()?;
    let state = deployment.state().await?;
    let facts = deployment.facts(&state).await?;
    let standing = status::status(&facts, state.places(), Vec::new()).resources;
    let mut text = String::new();
    let mut removed = Vec::new();
    for resource in &resources {
        let Some(known) = standing.iter().find(|known| known.resource == *resource) else {
            return Err(no_such(session, name, resource));
        };
        let open = facts.sites.values().flat_map(|site| site.open.values()).map(|open| &open.intent.operation);
        if open.clone().any(|operation| operation.resource == *resource) {
            let error = anyhow::anyhow!("an operation on `{resource}` is open");
            return Err(Failure::refused("operation_open", error)
                .hint(format!("finish it first: {}", deployment.chosen.scope.last_up())));
        }
        let stays = match &known.standing {
            ResourceHealth::Gone => "its object no longer exists".to_owned(),
            ResourceHealth::Unknown(why) => {
                format!("the provider does not report whether its object exists ({why}); if it does, it is kept")
            }
            _ => {
                let import = format!("state import {resource}={}", quoted(known.cloud_id.as_str()));
                format!(
                    "its object exists and is kept; the next `up` adopts it if it has the label of this lineage; to record it: {}",
                    deployment.chosen.scope.same(&import)
                )
            }
        };
        let _ = writeln!(text, "  - {resource} (`{}`): {stays}", known.cloud_id);
        for inside in open.filter(|operation| operation.via.as_ref().is_some_and(|host| host.0 == *resource)) {
            let _ = writeln!(
                text,
                "    the next `down` gives up the open {} of `{}` inside it, and what that created may be left",
                inside.verb, inside.resource
            );
        }
        removed.push((known.site.clone(), resource.clone()));
    }
    console.say(format!("These records will be removed:\n{}", text.trim_end()));
    let listed: Vec<String> = resources.iter().map(ToString::to_string).collect();
    let document = json!({ "environment": name, "removed": listed });
    agreed(session, console, &session.again().command(&format!("state remove {}", listed.join(" ")), name))?;
    let mut locked = deployment.locked().await?;
    if locked.heads() != state.heads() {
        locked.close().await.map_err(failed)?;
        let error = anyhow::anyhow!("another run wrote to the state at the same time");
        return Err(Failure::refused("stale", error).hint("run the same command again"));
    }
    for (site, resource) in &removed {
        forget(&mut locked, site, resource, "removed by the operator").await.map_err(failed)?;
    }
    locked.close().await.map_err(failed)?;
    Ok(Success::new(format!("{} removed", counted(removed.len(), "record")), document))
}
