//! `rollback`: restores the release lock of an earlier release, if that release can still run.

use std::fmt::Write as _;

use textnlp_service::artifacts::LocalArtifacts;
use textnlp_service::release::{self, RolledBack};

use super::{configuration, recorded};
use crate::args::Rollback;
use crate::commands::prelude::*;
use crate::deployment::short;

/// `rollback [--to N]`, `rollback --config [--to COMMIT]`.
pub async fn rollback(session: &Session, args: &Rollback, console: Console) -> Result<Success, Failure> {
    if args.config {
        return configuration::rollback(session, args.to.as_deref(), console).await;
    }
    let number = args.to.as_deref().map(str::parse::<u64>).transpose().map_err(|_| {
        let error = anyhow::anyhow!("--to is not the number of a release");
        Failure::usage("usage", error).hint("`release history` lists the numbers; a commit needs --config")
    })?;
    let chosen = session.load(console)?;
    let (path, progress) = (&chosen.lock_path, Progress::new(console));
    let history = recorded(&chosen.scope, console)?;
    let local = LocalArtifacts { chosen: &chosen, server: session.server(), progress: &progress };
    let done = release::rollback(&chosen, &history, number, &local).await?;
    let RolledBack { number, at, before, lock, changed, other_configuration } = done;
    let next = chosen.scope.up_of_lock();
    let at = at.strftime("%Y-%m-%d %H:%M");
    let mut text = format!("wrote {path}: release {} of {at}", number);
    for difference in &changed {
        let say = |digest: &Option<String>| digest.as_deref().map_or_else(|| "none".to_owned(), short);
        let _ = write!(text, "\n  {}: {} → {}", difference.what, say(&difference.locked), say(&difference.here));
    }
    if other_configuration {
        text.push_str("\nThat release ran with other settings: the environment file has changed since, or other `--set` options were given. `up` uses the current ones.");
        let _ = write!(text, " Its commits: {}", chosen.scope.command("rollback --config"));
    }
    let _ = write!(text, "\nTo deploy it: {next}");
    let document = json!({
        "environment": chosen.scope.name, "to": number, "lock": path, "before": before, "release": lock, "changed": changed, "next": next,
    });
    Ok(Success::new(text, document))
}
