//! Additional gate checks for several sites: replication is healthy now, and a drill of a site failure met the targets.

use jiff::{SignedDuration, Timestamp};
use textnlp_orchestrator::dr::control_client::ControlClients;
use textnlp_orchestrator::dr::control_status::ControlStatus;
use textnlp_orchestrator::dr::report::{self, Report, Targets};
use textnlp_orchestrator::gate::Check;
use textnlp_orchestrator::gate::phases::{HOME, IN_SYNC, LAG, LOST, RPO, RTO, WITNESS};

use crate::{ChosenEnvironment, Failure};

/// Maximum age of a drill or rehearsal, because people, data and programs change.
pub(super) const FRESH: SignedDuration = SignedDuration::from_hours(24 * 90);

/// The checks of an environment of several sites.
pub(super) async fn checks(chosen: &ChosenEnvironment) -> Result<Vec<Check>, Failure> {
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    let folder = &scope.folder;
    let control_clients = ControlClients::at(&scope.platform.places(folder, environment)?);
    let max_lag_ms = environment.replication.database.max_lag.0.as_millis() as u64;
    let mut checks = now(&ControlStatus::take(&control_clients).await, control_clients.watches.len(), max_lag_ms);
    let drill = scope.command("dr drill");
    let dr = &environment.dr;
    let promised = Targets { rto_s: dr.rto.0.as_secs_f64(), rpo_s: dr.rpo.0.as_secs_f64() };
    let (drills, unread) = report::history(folder);
    let drill = match unread.is_empty() {
        true => drill,
        false => format!("{drill}; not counted: {}", unread.join("; ")),
    };
    checks.extend(rehearsed(&drills, &control_clients.home, promised, Timestamp::now(), &drill));
    Ok(checks)
}

/// When the newest drill of a failure of the home site began.
pub(super) fn newest(chosen: &ChosenEnvironment) -> Result<Option<Timestamp>, Failure> {
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    let control_clients = ControlClients::at(&scope.platform.places(&scope.folder, environment)?);
    let (drills, _) = report::history(&scope.folder);
    Ok(drills.iter().rev().find(|report| report.site == control_clients.home).map(|report| report.began))
}

fn now(control_status: &ControlStatus, sites: usize, max_lag_ms: u64) -> Vec<Check> {
    let lines = control_status.lines(max_lag_ms);
    let in_sync = lines.iter().filter(|line| line.in_sync).count();
    let mut sync = Check::new(IN_SYNC, in_sync, sites, "sites", in_sync == sites);
    if let Some(line) = lines.iter().find(|line| !line.in_sync) {
        let why = line.why.as_deref().unwrap_or("it is still catching up");
        sync = sync.note(format!("{}: {why}", line.site));
    }
    let lag = lines.iter().filter_map(|line| line.lag_ms).max();
    let lag = match lag {
        Some(ms) => Check::new(LAG, ms, max_lag_ms, "ms", ms <= max_lag_ms).at_most(),
        None => Check::unmeasured(LAG, max_lag_ms, "ms", "no site reports its lag"),
    };
    let witness = match &control_status.witness {
        Ok(_) => Check::new(WITNESS, "answers", "answers", "", true),
        Err(error) => Check::unmeasured(WITNESS, "answers", "", error),
    };
    vec![sync, lag, witness]
}

/// The last drill of a failure of the home site, compared with the current targets, which may be stricter than those of
/// then.
fn rehearsed(drills: &[Report], home: &str, promised: Targets, now: Timestamp, drill: &str) -> Vec<Check> {
    let fresh = |report: &&Report| report.site == home && now.duration_since(report.began) < FRESH;
    let Some(last) = drills.iter().rev().find(fresh) else {
        let why = format!("no drill of a failure of {home} in the last 90 days: {drill}");
        return vec![Check::waiting(RTO, "measured", "", why)];
    };
    let note = format!("drill {}{}", last.id, if last.facts.live { "" } else { ", on a clone" });
    let within = |name: &str, measured: Option<f64>, promised: f64| match measured {
        Some(seconds) => {
            let rounded = (seconds * 100.0).round() / 100.0;
            Check::new(name, rounded, promised, "s", seconds <= promised).at_most().note(note.clone())
        }
        // A failure, which no waiver covers.
        None => Check::new(name, "not recovered", promised, "s", false).at_most().note(note.clone()),
    };
    let lost = last.figures.findings.lost;
    // A drill whose home site does not become primary again fails and writes no report.
    vec![
        within(RTO, last.rto_s(), promised.rto_s),
        within(RPO, Some(last.figures.findings.rpo_ms / 1000.0), promised.rpo_s),
        Check::new(LOST, lost, 0, "acknowledged writes", lost == 0).note(note.clone()),
        Check::new(HOME, last.figures.failback.as_str(), "yes", "", true).note(note),
    ]
}
