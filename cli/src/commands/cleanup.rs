//! `cleanup`: shows the files that nothing needs any more, and removes them after an approval.

use std::fmt::Write as _;

use jiff::Timestamp;
use textnlp_provider::EnvironmentName;
use textnlp_service::cleanup::{self, Found, Item, Search};
use textnlp_service::origin;
use textnlp_service::up::confirmed;

use super::prelude::*;
use crate::deployment;
use crate::operations_args::Cleanup;

/// `cleanup --older-than DURATION`.
pub async fn cleanup(session: &Session, args: &Cleanup, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    let replaced_states = confirmed("--replaced-states", args.replaced_states.as_deref(), &chosen.scope.name)?;
    origin::check(&chosen.scope)?;
    let before = Timestamp::now().checked_sub(args.older_than.0).map_err(|error| Failure::usage("usage", error))?;
    let deployment = deployment::recorded(session, chosen).await?;
    let model_cache = session.model_cache()?;
    let search = Search {
        chosen: &deployment.chosen,
        site: session.global.site.as_deref(),
        model_cache: &model_cache,
        here: &session.here,
        before,
        replaced_states,
    };
    let name = &deployment.chosen.scope.name;
    let found = cleanup::find(&search)?;
    if found.items.is_empty() {
        let text = format!("{}{name}: nothing older than {} to remove", notes(&found), args.older_than);
        return Ok(Success::new(text, document(name, &found, &[])));
    }
    if args.dry_run {
        return Ok(Success::new(format!("{}\nNothing was removed.", list(&found)), document(name, &found, &[])));
    }
    console.say(list(&found));
    if !session.global.yes && !console.confirm("Remove these files?") {
        let error = anyhow::anyhow!("not approved, so nothing was removed");
        return Err(Failure::refused("not_approved", error)
            .hint("approve it with --yes, or only show the files with --dry-run")
            .document(document(name, &found, &[])));
    }
    // A run may need what is about to be removed.
    let locked = match deployment.state().await?.is_new() {
        true => None,
        false => Some(deployment.locked().await?),
    };
    let progress = Progress::new(console);
    let outcome = cleanup::find(&search).map(|current| {
        let (mut removed, mut failed) = (Vec::new(), Vec::new());
        for item in found.items.iter().filter(|item| current.items.contains(item)) {
            progress.doing(&format!("removing {}", item.path));
            match cleanup::remove(item, &model_cache) {
                Ok(()) => removed.push(item.clone()),
                Err(why) => failed.push(format!("{}: {why}", item.path)),
            }
        }
        (removed, failed)
    });
    progress.finish();
    if let Some(locked) = locked {
        locked.close().await.map_err(|error| deployment.failed(error))?;
    }
    let (removed, failed) = outcome?;
    let freed = removed.iter().map(|item: &Item| item.bytes).sum();
    let mut text = format!("{} of {} removed, {}", removed.len(), found.items.len(), size(freed));
    failed.iter().for_each(|why| {
        let _ = write!(text, "\n  ✗ {why}");
    });
    let mut described = document(name, &found, &removed);
    described["failed"] = json!(failed);
    let success = Success::new(text, described);
    Ok(if failed.is_empty() { success } else { success.exit(Exit::Failed) })
}

fn document(name: &EnvironmentName, found: &Found, removed: &[Item]) -> Value {
    json!({
        "environment": name,
        "found": found.items,
        "removed": removed.iter().map(|item| &item.path).collect::<Vec<_>>(),
        "removed_bytes": removed.iter().map(|item| item.bytes).sum::<u64>(),
        "notes": found.notes,
    })
}

fn list(found: &Found) -> String {
    let mut text = notes(found);
    for Item { kind, path, bytes, used, .. } in &found.items {
        let _ = writeln!(text, "  {kind:<14} {:>9}  {}  {path}", size(*bytes), used.strftime("%Y-%m-%d"));
    }
    let bytes = found.items.iter().map(|item| item.bytes).sum();
    let _ = write!(text, "{} to remove, {}", found.items.len(), size(bytes));
    text
}

fn notes(found: &Found) -> String {
    found.notes.iter().map(|note| format!("  {note}\n")).collect()
}
