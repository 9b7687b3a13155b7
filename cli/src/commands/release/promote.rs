//! `promote`: copies a verified release to the next environment, with the same digests.

use std::fmt::Write as _;

use serde_json::json;
use textnlp_service::artifacts::LocalArtifacts;
use textnlp_service::release;

use super::recorded;
use crate::args::{Global, Promote};
use crate::deployment::short;
use crate::progress::Progress;
use crate::report::{Console, Failure, Success};
use crate::rerun_flags::{self, quoted};
use crate::session::Session;

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
    let release::Promoted { lock, changed } = release::promote(&source, &target, &history).await?;
    let path = &target.lock_path;
    let (server, progress) = (to.server(), Progress::new(console));
    let here = LocalArtifacts { chosen: &target, server, progress: &progress }.read()?.program;
    let serves_here = target.loaded.environment.runs_here();
    let next = if here.digest == lock.server || !serves_here {
        target.scope.same("up")
    } else {
        let file =
            release::program_of(&source.scope, &lock).await?.map_or_else(|| "FILE".to_owned(), |p| quoted(&p.path));
        let again = rerun_flags::of(&Global { server: None, ..to.global.clone() });
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
    let _ = write!(text, "\nTo deploy it: {next}");
    let document = json!({
        "from": source.scope.name, "to": target.scope.name, "lock": path, "release": lock, "changed": changed, "next": next,
    });
    Ok(Success::new(text, document))
}
