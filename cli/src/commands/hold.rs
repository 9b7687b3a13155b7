//! `hold`: blocks changes to an environment.

use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::state::{Hold, StateError, release_in};

use super::prelude::*;
use crate::args::Global;
use crate::deployment::{self, Deployment};
use crate::state_args;
use crate::stores;

/// `hold [--reason TEXT] [--release]`.
pub async fn hold(session: &Session, args: &state_args::Hold, console: Console) -> Result<Success, Failure> {
    let deployment = deployment::recorded(session, session.load(console)?).await?;
    let scope = &deployment.chosen.scope;
    let name = &scope.name;
    let release = || scope.command("hold --release");
    let failed = |error| deployment.failed(error);
    let state = match deployment.state().await {
        Err(damaged) if args.release && damaged.code == stores::DAMAGED => return release_alone(&deployment).await,
        state => state?,
    };
    let held = match state.held().await {
        Err(StateError::Unreadable { .. }) if args.release => return release_alone(&deployment).await,
        held => held.map_err(failed)?,
    };
    if state.is_new() && held.is_none() {
        let error = anyhow::anyhow!("environment {name} is not deployed: there is nothing to hold");
        return Err(Failure::usage("not_up", error).hint(scope.last_up()));
    }
    let Global { reason, .. } = &session.global;
    match (args.release, held, reason) {
        (false, Some(hold), _) => {
            let text = format!("{}\nTo allow changes: {}", said(name.as_str(), &hold), release());
            Ok(Success::new(text, json!({ "environment": name, "hold": hold })))
        }
        (false, None, None) => {
            let text = format!("{name} is not frozen\nTo freeze it: {} --reason 'why'", scope.command("hold"));
            Ok(Success::new(text, json!({ "environment": name, "hold": null })))
        }
        (false, None, Some(reason)) if reason.trim().is_empty() => {
            let hint = format!("say why, for the operators that it stops: {} --reason 'why'", scope.command("hold"));
            Err(Failure::usage("usage", anyhow::anyhow!("the reason of a freeze is empty")).hint(hint))
        }
        (false, None, Some(_)) => {
            let locked = deployment.locked().await?;
            let hold = locked.hold().await.map_err(failed)?;
            locked.close().await.map_err(failed)?;
            let text = format!("{}\nTo allow changes: {}", said(name.as_str(), &hold), release());
            Ok(Success::new(text, json!({ "environment": name, "hold": hold })))
        }
        (true, None, _) => {
            Ok(Success::new(format!("{name} is not frozen"), json!({ "environment": name, "hold": null })))
        }
        (true, Some(hold), _) => {
            let locked = deployment.locked().await?;
            locked.release().await.map_err(failed)?;
            locked.close().await.map_err(failed)?;
            Ok(released(name.as_str(), Some(&hold)))
        }
    }
}

/// Ends the freeze of a state that cannot be read: a freeze prevents that a backup replaces it.
async fn release_alone(deployment: &Deployment) -> Result<Success, Failure> {
    let released_hold = release_in(&*deployment.store, &deployment.operator, &SystemClock).await;
    let hold = released_hold.map_err(|error| deployment.failed(error))?;
    Ok(released(deployment.chosen.scope.name.as_str(), hold.as_ref()))
}

fn released(environment: &str, was: Option<&Hold>) -> Success {
    let was_frozen = was.map_or_else(String::new, |hold| format!(" (it was frozen by {}: {})", hold.by, hold.why));
    let text = format!("{environment} may be changed again{was_frozen}");
    Success::new(text, json!({ "environment": environment, "hold": null, "was": was }))
}

fn said(environment: &str, hold: &Hold) -> String {
    let Hold { by, host, since, why, .. } = hold;
    format!("{environment} is frozen by {by} on {host} since {since:.0}: {why}")
}
