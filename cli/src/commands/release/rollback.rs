//! `rollback`: restores the release lock of an earlier release, if that release can still run.

use std::fmt::Write as _;

use serde_json::json;
use textnlp_orchestrator::environment::Environment;
use textnlp_provider::component::Program;
use textnlp_service::release::{self, Local, RolledBack};

use super::recorded;
use crate::args::Rollback;
use crate::deployment::{artifacts, model_can_come, short};
use crate::report::{Console, Failure, Success};
use crate::session::Session;

/// `rollback [--to N]`.
pub async fn rollback(session: &Session, args: &Rollback, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    let (scope, path) = (session.scope(&chosen), session.lock_path(&chosen));
    let history = recorded(&scope, console)?;
    let local = Artifacts { session, environment: &chosen.loaded.environment, console };
    let done = release::rollback(chosen.subject(&scope, &path), &history, args.to, &local).await?;
    let RolledBack { number, at, before, lock, changed, other_configuration } = done;
    let next = session.again().same("up", &chosen.name);
    let at = at.strftime("%Y-%m-%d %H:%M");
    let mut text = format!("wrote {path}: release {} of {at}", number);
    for difference in &changed {
        let say = |digest: &Option<String>| digest.as_deref().map_or_else(|| "none".to_owned(), short);
        let _ = write!(text, "\n  {}: {} → {}", difference.what, say(&difference.locked), say(&difference.here));
    }
    if other_configuration {
        text.push_str("\nThe environment file has changed since that release; `up` uses the current file.");
    }
    let _ = write!(text, "\nTo deploy it: {next}");
    let document = json!({
        "environment": chosen.name, "to": number, "lock": path, "before": before, "release": lock, "changed": changed, "next": next,
    });
    Ok(Success::new(text, document))
}

/// The artifacts on this machine.
struct Artifacts<'a> {
    session: &'a Session,
    environment: &'a Environment,
    console: Console,
}

impl Local for Artifacts<'_> {
    fn program(&self) -> Result<Program, Failure> {
        Ok(artifacts(self.session, self.environment, self.console)?.program)
    }

    fn has_model(&self, source: &str, digest: &str) -> Result<bool, Failure> {
        model_can_come(self.session, self.environment, source, digest, self.console)
    }
}
