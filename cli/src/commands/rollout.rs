//! `rollout`: shows the status of a rollout in steps, and sends commands to it.

use textnlp_provider::operations::{RolloutCommand, RolloutStatus};

use super::prelude::*;
use crate::args::Rollout;
use crate::clouds;

/// `rollout …`.
pub async fn rollout(session: &Session, command: &Rollout, console: Console) -> Result<Success, Failure> {
    let command = match command {
        Rollout::Watch { account, prometheus, shares: _ } => {
            let ended =
                clouds::control_rollout(account, prometheus.as_deref(), &|message| console.say(message)).await?;
            return Ok(Success::new(line(&ended), ended.document));
        }
        Rollout::Status => None,
        Rollout::Promote => Some(RolloutCommand::Promote),
        Rollout::Abort => Some(RolloutCommand::Abort),
        Rollout::Pause => Some(RolloutCommand::Pause),
        Rollout::Resume => Some(RolloutCommand::Resume),
        Rollout::Retry => Some(RolloutCommand::Retry),
    };
    let (chosen, running) = session.load_running("rollouts that take commands", session.quiet()).await?;
    let environment = &chosen.loaded.environment;
    let site = session.global.site.as_deref();
    let Some(rollouts) = chosen.scope.platform.find(&running.folder, environment, site, |site| site.rollouts())? else {
        let error =
            anyhow::anyhow!("environment {} replaces its servers one by one, without a rollout", chosen.scope.name);
        return Err(Failure::usage("no_rollout", error));
    };
    let Some(command) = command else {
        return Ok(match rollouts.status(running.lineage).await? {
            Some(status) => Success::new(line(&status), json!({ "rollout": status.document })),
            None => Success::new("there was no rollout yet".to_owned(), json!({ "rollout": null })),
        });
    };
    let status = rollouts.command(running.lineage, command).await?;
    let word = command.as_str();
    let text = match command {
        RolloutCommand::Retry => "the next `up` tries the release once more".to_owned(),
        _ => format!("{word}: sent to the rollout, which polls every two seconds; `rollout status` shows the result"),
    };
    Ok(Success::new(text, json!({ "wish": word, "rollout": status.document })))
}

fn line(status: &RolloutStatus) -> String {
    let began = status.began.map(|at| format!(", since {}", at.strftime("%Y-%m-%d %H:%M:%S UTC"))).unwrap_or_default();
    let weight = status.weight.map(|weight| format!(", {weight} % of the clients")).unwrap_or_default();
    format!("{}{began}{weight}: {}", status.stage, status.message)
}
