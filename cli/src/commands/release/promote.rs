//! `promote`: copies a verified release to the next environment, with the same digests.

use std::fmt::Write as _;

use textnlp_service::artifacts::LocalArtifacts;
use textnlp_service::{RerunFlags, Scope, release};

use super::recorded;
use crate::args::{Global, Promote};
use crate::commands::prelude::*;
use crate::deployment::short;
use crate::rerun_flags::{self, quoted};

/// `promote --from ENV --to ENV`.
pub async fn promote(session: &Session, args: &Promote, console: Console) -> Result<Success, Failure> {
    if args.from == args.to {
        return Err(Failure::usage("usage", anyhow::anyhow!("--from and --to name the same environment")));
    }
    let named = |name: &String| {
        let global = Global { env: Some(name.clone()), file: None, ..session.global.clone() };
        Session::new(global)
    };
    let (from, to) = (named(&args.from)?, named(&args.to)?);
    let (source, target) = (from.load(console)?, to.load(console)?);
    let history = recorded(&source.scope, console)?;
    let release::Promoted { lock, changed, baseline, changed_limits } =
        release::promote(&source, &target, &history).await?;
    let path = &target.lock_path;
    let (server, progress) = (to.server(), Progress::new(console));
    let here = LocalArtifacts { chosen: &target, server, progress: &progress }.read()?.program;
    let serves_here = target.loaded.environment.runs_here();
    let next = if here.digest == lock.server || !serves_here {
        Scope { again: of_target(target.scope.again.clone()), ..target.scope.clone() }.up_of_lock()
    } else {
        let file =
            release::program_of(&source.scope, &lock).await?.map_or_else(|| "FILE".to_owned(), |p| quoted(&p.path));
        let again = of_target(rerun_flags::of(&Global { server: None, ..to.global.clone() }));
        format!("{} --server {file}", again.same("up", &target.scope.name))
    };
    let mut text = format!("wrote {path}: the verified release of {}", source.scope.name);
    if serves_here {
        let _ = write!(text, "\n  server {}", short(&lock.server));
    }
    for (site, image) in &lock.images {
        let _ = write!(text, "\n  image {site} {image}");
    }
    for (name, digest) in &lock.models {
        let _ = write!(text, "\n  model {name} {}", short(digest));
    }
    match &baseline {
        Ok(true) => {
            let _ = write!(text, "\n  baseline of {}", source.scope.name);
        }
        Ok(false) => {}
        Err(why) => console.warn(format!("the baseline of {} was not copied: {why}", source.scope.name)),
    }
    for limit in &changed_limits {
        let _ = write!(text, "\n  ~ its gate was measured with {limit}");
    }
    let _ = write!(text, "\nTo deploy it: {next}");
    let document = json!({
        "from": source.scope.name, "to": target.scope.name, "lock": path, "release": lock, "changed": changed, "next": next,
        "changed_limits": changed_limits, "baseline_copied": baseline.is_ok_and(|copied| copied),
    });
    Ok(Success::new(text, document))
}

/// The flags for the target: values that were set in this session are those of the source.
fn of_target(mut flags: RerunFlags) -> RerunFlags {
    flags.changes.retain(|(flag, _)| flag != "--set");
    flags
}
