//! The status of every site and the witness. Unreachable ones are no failure.

use camino::Utf8PathBuf;
use serde_json::Value;
use textnlp_orchestrator::dr::control_client::ControlClients;
use textnlp_orchestrator::dr::control_status::{ControlStatus, SiteLine};
use textnlp_orchestrator::dr::failover;
use textnlp_orchestrator::environment::Environment;

use super::{Sites, clone};
use crate::Scope;

/// The status of an environment's sites.
pub struct SitesStatus {
    /// The answers of the site agents and of the witness.
    pub control_status: ControlStatus,
    /// One line for each site.
    pub lines: Vec<SiteLine>,
    /// What is unhealthy, empty if nothing is.
    pub warnings: Vec<String>,
    /// Failovers and drills that were not finished.
    pub unfinished: Vec<Value>,
    /// The clones of killed drills.
    pub clones_left: Vec<Utf8PathBuf>,
}

/// The command that ends a planned failover; `None` if none holds, or if no site or witness answers.
pub async fn held_until(scope: &Scope, environment: &Environment) -> Option<String> {
    environment.witness_place()?;
    let places = scope.platform.places(&scope.folder, environment).ok()?;
    let control_status = ControlStatus::take(&ControlClients::at(&places)).await;
    control_status.held().then(|| scope.command("dr failback"))
}

/// Reads the status of every site and the witness.
pub async fn status(sites: &Sites) -> SitesStatus {
    let scope = sites.scope();
    let control_status = ControlStatus::take(&sites.control_clients).await;
    let lines = control_status.lines(sites.max_lag_ms);
    let mut warnings = control_status.warnings(sites.max_lag_ms);
    if control_status.witness.is_err() && control_status.sites.iter().all(|(_, status)| status.is_err()) {
        warnings.insert(0, format!("no site of {} answers: check that it runs: {}", scope.name, scope.last_up()));
    }
    let unfinished = failover::left_open(&scope.folder).unwrap_or_default();
    for left in &unfinished {
        let word = |field: &str| left[field].as_str().unwrap_or_default();
        let next = match word("action") {
            "drill" => format!("to finish it: {}", scope.command("dr drill --finish")),
            _ => "the next `dr failover` finishes it".to_owned(),
        };
        let (action, id, at) = (word("action"), word("id"), word("at"));
        warnings.push(format!("{action} {id} of {at} was not finished; {next}"));
    }
    // Other environments may have states beside this one. Only the clones of this environment are reported.
    let clones_left: Vec<_> =
        clone::left(scope.states()).into_iter().filter(|root| root.join(scope.name.as_str()).exists()).collect();
    for root in &clones_left {
        warnings.push(format!(
            "a killed drill left its clone in {root}; its processes exit on their own; to remove it: {}",
            scope.command("dr drill --finish")
        ));
    }
    SitesStatus { control_status, lines, warnings, unfinished, clones_left }
}
