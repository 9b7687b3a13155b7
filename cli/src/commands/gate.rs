//! `gate`: measures the running service from outside, and prints the evidence.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use textnlp_orchestrator::apply::{Answer, Gates};
use textnlp_orchestrator::gate::Check;
use textnlp_provider::SiteName;
use textnlp_service::audit;
use textnlp_service::bundle::advisories::RUSTSEC;
use textnlp_service::client::{Client, Target};
use textnlp_service::gate::{self, Occasion, StoredEvidence, hardened};
use textnlp_service::running::{self, RunningEnvironment};

use super::prelude::*;
use super::reach;
use crate::deployment::{self, Deployment};
use crate::gate_args::{AuditArgs, Gate};
use crate::signals;

/// `gate [--again] [--waive CHECK --until DATE]`.
pub async fn gate(session: &Session, args: &Gate, console: Console) -> Result<Success, Failure> {
    let chosen = session.load_to_run(console)?;
    let deployment = deployment::recorded(session, chosen).await?;
    let running = running::running(&deployment.chosen.scope).await?;
    const REASON: &str = "gate of this phase: it has no API keys, limits and metrics of its own; only that of development can be measured";
    if gate::unmeasured(&deployment.chosen.loaded.environment).is_some() {
        running.has_api(&deployment.chosen.scope, REASON)?;
    }
    gate::runs_the_lock(&deployment.chosen).await?;
    gate::runs_the_configuration(&deployment.chosen)?;
    if let Some(until) = args.until {
        gate::waive(&deployment, &args.waive, until).await?;
    }
    let kept = measure(session, &deployment, &running, (occasion(args), &args.audit), console).await?;
    let document =
        json!({ "environment": deployment.chosen.scope.name, "gate": document(&kept), "report": kept.report });
    match kept.verdict(&deployment.chosen.scope.last("gate --again")) {
        Ok(()) => Ok(Success::new(text(&kept), document)),
        Err(failure) => {
            console.stream(&format!("{}\n", text(&kept)));
            Err(failure.document(document))
        }
    }
}

fn occasion(args: &Gate) -> Occasion {
    // Stored evidence has only the earlier waivers.
    if args.again || args.until.is_some() { Occasion::Again } else { Occasion::Unmeasured }
}

/// The `gate` member of JSON documents.
pub fn document(kept: &StoredEvidence) -> Value {
    let gate = kept.gate();
    json!({ "state": gate.state(), "checks": kept.checks, "blockers": gate.blockers(), "exemptions": kept.exemptions, "changed_limits": kept.changed_limits, "at": kept.at, "reused": kept.reused })
}

/// The evidence as text.
pub fn text(kept: &StoredEvidence) -> String {
    let mut text = format!("The {} gate {}", kept.phase, kept.gate().verdict());
    if kept.reused {
        text.push_str(&format!(
            " (evidence of {}; release and resources are the same; `gate --again` measures again)",
            kept.at.strftime("%Y-%m-%d %H:%M")
        ));
    }
    let now = jiff::Timestamp::now();
    for check in &kept.checks {
        let mark = match check {
            check if check.is_waived(now) => "~",
            Check { ok: false, .. } => "✗",
            Check { warning: true, .. } => "!",
            _ => "✓",
        };
        let note = check.note.as_ref().map_or(String::new(), |n| format!("  {n}"));
        text.push_str(&format!(
            "\n  {mark} {:<30}  {:<24}  wanted {}{note}",
            check.name,
            check.measured_text(),
            check.demand()
        ));
        if let Some(until) = check.waived_until {
            text.push_str(&format!("  waived until {until}"));
        }
    }
    for recorded in &kept.exemptions {
        text.push_str(&format!("\n  ~ {}", recorded.text(now)));
    }
    for limit in &kept.changed_limits {
        text.push_str(&format!("\n  ~ {limit}, as shipped for phase {}", kept.phase));
    }
    text.push_str(&format!("\n  report {}", kept.report));
    text
}

/// Measures the gate of a deployment, with its progress.
pub async fn measure(
    session: &Session,
    deployment: &Deployment,
    running: &RunningEnvironment,
    (occasion, args): (Occasion, &AuditArgs),
    console: Console,
) -> Result<StoredEvidence, Failure> {
    let (progress, stop) = (Progress::new(console), signals::stop(console));
    let sources = session.advisories();
    let given = match &args.advisories {
        Some(from) => Some(sources.given(from, &progress).await?.database),
        None => None,
    };
    // Other advisories are a reason to measure.
    let occasion = if given.is_some() && occasion == Occasion::Unmeasured { Occasion::Again } else { occasion };
    let refresh = deployment.chosen.scope.last(&format!("gate --advisories {RUSTSEC}"));
    let checks = async {
        let advisories = (&sources, given.as_ref());
        let mut checks = audit::checks(deployment, &session.library, advisories.0, advisories.1, &refresh).await;
        checks.extend(hardened::checks(deployment, running, &session.library, advisories, &progress).await);
        checks
    };
    gate::measure(deployment, running, occasion, checks, &progress, &stop).await
}

/// The gate within a run, measured while the old release still runs.
pub struct WithinRun<'a> {
    session: &'a Session,
    deployment: &'a Deployment,
    args: &'a AuditArgs,
    console: Console,
    measured: Mutex<Option<StoredEvidence>>,
}

impl<'a> WithinRun<'a> {
    /// Creates the gate of a deployment in progress.
    pub fn new(session: &'a Session, deployment: &'a Deployment, args: &'a AuditArgs, console: Console) -> Self {
        Self { session, deployment, args, console, measured: Mutex::default() }
    }

    /// The last measurement.
    pub fn evidence(self) -> Option<StoredEvidence> {
        self.measured.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    async fn measure(&self) -> Result<StoredEvidence, Failure> {
        let running = running::running(&self.deployment.chosen.scope).await?;
        let environment = &self.deployment.chosen.loaded.environment;
        let client = Client::new(Target::of(&self.deployment.chosen.scope, Some(environment)).await?)?;
        if !client.is_invoked() {
            reach::until_ready(environment, &client, true, self.console).await?;
        }
        // Earlier evidence does not cover the current change.
        measure(self.session, self.deployment, &running, (Occasion::WithinRun, self.args), self.console).await
    }
}

#[async_trait]
impl Gates for WithinRun<'_> {
    async fn ask(&self, _site: &SiteName) -> Answer {
        match self.measure().await {
            Ok(kept) => {
                let blockers = kept.blockers();
                *self.measured.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
                if blockers.is_empty() { Answer::Open } else { Answer::Shut(blockers) }
            }
            Err(failure) => Answer::Shut(vec![format!("not measured: {:#}", failure.error)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn new_waiver_and_again_measure_in_any_case() {
        let occasion = |more: &[&str]| {
            let cli = Cli::try_parse_from([&["textnlp-deploy", "gate"][..], more].concat()).unwrap();
            let Command::Gate(args) = cli.command else { panic!("it is another command") };
            super::occasion(&args)
        };
        assert_eq!(occasion(&[]), Occasion::Unmeasured);
        assert_eq!(occasion(&["--again"]), Occasion::Again);
        assert_eq!(occasion(&["--waive", "metrics", "--until", "2026-12-31"]), Occasion::Again);
    }
}
