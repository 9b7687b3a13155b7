//! `hold`: blocks changes to an environment.

use textnlp_orchestrator::state::Hold;

use super::prelude::*;
use crate::args::Global;
use crate::deployment;
use crate::state_args;

/// `hold [--reason TEXT] [--release]`.
pub async fn hold(session: &Session, args: &state_args::Hold, console: Console) -> Result<Success, Failure> {
    let deployment = deployment::recorded(session, session.load(console)?).await?;
    let scope = &deployment.chosen.scope;
    let name = &scope.name;
    let release = || scope.command("hold --release");
    let failed = |error| deployment.failed(error);
    let state = deployment.state().await?;
    if state.is_new() {
        let error = anyhow::anyhow!("environment {name} is not deployed: there is nothing to hold");
        return Err(Failure::usage("not_up", error).hint(scope.last_up()));
    }
    let held = state.held().await.map_err(failed)?;
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
            let text = format!("{name} may be changed again (it was frozen by {}: {})", hold.by, hold.why);
            Ok(Success::new(text, json!({ "environment": name, "hold": null, "was": hold })))
        }
    }
}

fn said(environment: &str, hold: &Hold) -> String {
    let Hold { by, host, since, why, .. } = hold;
    format!("{environment} is frozen by {by} on {host} since {since:.0}: {why}")
}
