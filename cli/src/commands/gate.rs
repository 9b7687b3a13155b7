//! `gate`: measures the running service from outside, and prints the evidence.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde_json::{Value, json};
use textnlp_orchestrator::apply::{Answer, Gates};
use textnlp_orchestrator::clock::{Clock, SystemClock};
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::environment::model::Phase;
use textnlp_orchestrator::gate::{Check, IssuedKey, KeyIssuer, KeyRequest};
use textnlp_orchestrator::load::Key;
use textnlp_provider::{Secret, SiteName};
use textnlp_service::gate::{self, Occasion, StoredEvidence};
use textnlp_service::running::{self, RunningEnvironment};
use tokio_util::sync::CancellationToken;

use super::audit::Audit;
use super::{bundle, key};
use crate::args::{AuditArgs, Gate};
use crate::bundle_args::RUSTSEC;
use crate::deployment::{self, Deployment};
use crate::progress::Progress;
use crate::report::{Console, Failure, Success};
use crate::session::Session;
use crate::signals;

/// Lifetime in minutes of a temporary key, for the case that the gate is killed.
const KEY_MINUTES: i64 = 60;

/// `gate [--again]`.
pub async fn gate(session: &Session, args: &Gate, console: Console) -> Result<Success, Failure> {
    let chosen = session.load_to_run(console)?;
    let deployment = deployment::recorded(session, chosen).await?;
    let running = running::running(&deployment.chosen.scope).await?;
    gate::runs_the_lock(&deployment.chosen).await?;
    let occasion = if args.again { Occasion::Again } else { Occasion::Unmeasured };
    let kept = measure(session, &deployment, &running, (occasion, &args.audit), console).await?;
    let document =
        json!({ "environment": deployment.chosen.scope.name, "gate": document(&kept), "report": kept.report });
    match kept.verdict(&deployment.chosen.scope.command("gate --again")) {
        Ok(()) => Ok(Success::new(text(&kept), document)),
        Err(failure) => {
            console.stream(&format!("{}\n", text(&kept)));
            Err(failure.document(document))
        }
    }
}

/// The `gate` member of JSON documents.
pub fn document(kept: &StoredEvidence) -> Value {
    let gate = kept.gate();
    json!({ "state": gate.state(), "checks": kept.checks, "blockers": gate.blockers(), "at": kept.at, "reused": kept.reused })
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
    for check in &kept.checks {
        let mark = match check {
            Check { ok: false, .. } => "✗",
            Check { warning: true, .. } => "!",
            _ => "✓",
        };
        let note = check.note.as_ref().map_or(String::new(), |n| format!("  {n}"));
        text.push_str(&format!(
            "\n  {mark} {:<30} {:<24} wanted {}{note}",
            check.name,
            check.measured_text(),
            check.demand()
        ));
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
    let environment = &deployment.chosen.loaded.environment;
    let (progress, stop) = (Progress::new(console), signals::stop(console));
    let given = match &args.advisories {
        Some(from) => Some(bundle::advisories::given(session, from, &progress).await?.database),
        None => None,
    };
    // Other advisories are a reason to measure.
    let occasion = if given.is_some() && occasion == Occasion::Unmeasured { Occasion::Again } else { occasion };
    let audit = Audit {
        gates: &environment.gates,
        now: jiff::Timestamp::now(),
        given: given.as_ref(),
        refresh: deployment.chosen.scope.command(&format!("gate --advisories {RUSTSEC}")),
    };
    let recorded = async {
        match environment.phase {
            // The content of an installed site includes the program.
            Phase::AirGapped => bundle::gate::checks(session, deployment, &audit).await,
            _ => vec![audit.check(|| Some(bundle::advisories::on_this_machine(session)?.database))],
        }
    };
    gate::measure(deployment, running, occasion, recorded, &progress, &stop).await
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

/// Creates temporary API keys, with the server program beside the database.
pub struct Issuer {
    /// The running environment.
    pub running: RunningEnvironment,
    /// The environment that it was provisioned from.
    pub environment: Environment,
}

#[async_trait]
impl KeyIssuer for Issuer {
    async fn create(&self, request: KeyRequest) -> Result<IssuedKey, String> {
        let until = SystemClock.now() + jiff::SignedDuration::from_mins(KEY_MINUTES);
        let rate = request.requests_per_hour.map_or("10000000/hour".to_owned(), |n| format!("{n}/hour"));
        let command =
            json!({ "do": "create", "name": request.name, "rate_limit": rate, "expires_at": until.as_millisecond() });
        let made = key::ask(&self.running, &self.environment, &command).await.map_err(|f| format!("{:#}", f.error))?;
        let text = |field: &str| {
            made[field].as_str().map(str::to_owned).ok_or_else(|| format!("the server reported no {field}"))
        };
        let key =
            Key { header: self.environment.server.security.api_key_header.clone(), value: Secret::new(text("key")?) };
        Ok(IssuedKey { public_id: text("public_id")?, key })
    }

    async fn revoke(&self, public_id: &str) -> Result<(), String> {
        key::ask(&self.running, &self.environment, &json!({ "do": "revoke", "public_id": public_id }))
            .await
            .map(|_| ())
            .map_err(|f| format!("{:#}", f.error))
    }
}

/// A clock and a stop signal for measurements without an environment.
pub fn clock_and_stop(console: Console) -> (Arc<SystemClock>, CancellationToken) {
    (Arc::new(SystemClock), signals::stop(console))
}
