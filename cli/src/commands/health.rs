//! `health` and `health check`: whether the service answers, and the state of each of its components.

use textnlp_service::{health, running};

use super::inference;
use super::prelude::*;
use crate::check_view;
use crate::deployment;
use crate::operations_args::{Health, HealthCheck, HealthCommand};

/// `health`.
pub async fn health(session: &Session, args: &Health, console: Console) -> Result<Success, Failure> {
    match &args.command {
        None => inference::health(session).await,
        Some(HealthCommand::Check(args)) => check(session, args, console).await,
    }
}

async fn check(session: &Session, args: &HealthCheck, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    // Nothing that runs is nothing to check.
    running::running(&chosen.scope).await?;
    let deployment = deployment::recorded(session, chosen).await?;
    let checks = health::check(&deployment, session.target().await?).await?;
    Ok(check_view::problems(checks, Some(deployment.chosen.scope.name), args.all, console))
}
