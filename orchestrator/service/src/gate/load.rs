//! Evidence from load tests of a release, stored beside its state. A gate reads it, because a load test only for a gate
//! would disturb users.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use serde_json::json;
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::gate::Check;
use textnlp_orchestrator::gate::phases::{ANSWERS, GROWTH, METRICS, SESSIONS};
use textnlp_orchestrator::load::{Load, SessionResult};
use textnlp_orchestrator::state::State;
use textnlp_provider::{Lineage, error_chain};

use super::growth::ScaleUp;
use super::{read_signed, release_of, sha256, write_signed};
use crate::{ChosenEnvironment, Failure, RunningEnvironment};

/// The newest evidence of each kind.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Shown {
    /// The sessions that were held.
    sessions: Option<Of<SessionResult>>,
    /// The scale-up under load.
    growth: Option<Of<ScaleUp>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Of<T> {
    /// The deployment.
    lineage: Lineage,
    /// The digest of the release that ran.
    release: String,
    at: jiff::Timestamp,
    what: T,
}

impl<T> Of<T> {
    fn is_of(&self, lineage: Lineage, release: &str) -> bool {
        self.lineage == lineage && self.release == release
    }
}

impl Shown {
    /// Reads the evidence in a state folder, if this environment signed it. Else why it is not used.
    fn read(folder: &Utf8Path) -> Result<Shown, String> {
        Ok(read_signed(folder, &file(folder), what)?.unwrap_or_default())
    }
}

/// What the signature of these bytes says.
fn what(bytes: &[u8]) -> String {
    format!("textnlp load tests, sha256 {}", sha256(bytes))
}

fn file(folder: &Utf8Path) -> Utf8PathBuf {
    folder.join("evidence").join("loads.json")
}

/// Replaces the evidence of earlier load tests of this release. A test with fewer sessions was a trial and replaces
/// nothing.
pub fn keep(
    folder: &Utf8Path,
    (lineage, release): (Lineage, &str),
    at: jiff::Timestamp,
    held: Option<&SessionResult>,
    growth: Option<&ScaleUp>,
) -> anyhow::Result<()> {
    // A file without a signature is not signed afterwards.
    let mut shown = Shown::read(folder).unwrap_or_default();
    let is_less = |held: &SessionResult, kept: &Of<SessionResult>| {
        kept.is_of(lineage, release) && held.sessions.count < kept.what.sessions.count
    };
    if let Some(held) = held.filter(|held| !shown.sessions.as_ref().is_some_and(|kept| is_less(held, kept))) {
        shown.sessions = Some(Of { lineage, release: release.to_owned(), at, what: held.clone() });
    }
    if let Some(growth) = growth {
        shown.growth = Some(Of { lineage, release: release.to_owned(), at, what: growth.clone() });
    }
    let bytes = serde_json::to_vec_pretty(&shown)?;
    write_signed(folder, &file(folder), &bytes, &what(&bytes))
}

/// Additional checks of gates from scale-up on: this release held the required sessions, pods were added under load, and the
/// autoscaler sees its metrics.
pub(super) async fn checks(
    chosen: &ChosenEnvironment,
    running: &RunningEnvironment,
    state: &State,
) -> Result<Vec<Check>, Failure> {
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    let folder = &scope.folder;
    let release = release_of(chosen)?;
    let (shown, refused) = match Shown::read(folder) {
        Ok(shown) => (shown, String::new()),
        Err(why) => (Shown::default(), format!("{why}; ")),
    };
    // `down` ends what was measured before it.
    let counts_at = |at: jiff::Timestamp| state.removal().is_none_or(|removal| at > removal);
    let gates = &environment.gates;
    let load = |more: &str| scope.last(&format!("load {more}"));
    let mut checks = Vec::new();

    let sessions = shown.sessions.filter(|kept| kept.is_of(running.lineage, &release) && counts_at(kept.at));
    let sessions = sessions.map(|kept| kept.what);
    // Held for the gate's duration, and every session was used while all were open.
    let counts = |held: &SessionResult| {
        let sent = held.answers.count + held.errors;
        held.sessions.count >= gates.sessions && held.sessions.hold >= gates.hold.0 && sent >= gates.sessions.into()
    };
    match sessions.filter(counts) {
        Some(held) => checks.extend(held_sessions(&held, environment)),
        None => {
            let seconds = gates.hold.0.as_secs().max(1);
            let command = load(&format!("--sessions {} --seconds {seconds}", gates.sessions));
            let why = format!("{refused}no load test held that number on this release for {seconds} s: {command}");
            checks.push(Check::waiting(SESSIONS, gates.sessions, "", why));
        }
    }

    let autoscaler = match scope.platform.find(folder, environment, None, |site| site.scaling()) {
        Ok(Some(scaling)) => match scaling.scale(running.lineage).await {
            Ok(scale) => Ok(scale.autoscaler.ok_or("no autoscaler is configured: set `scaling.max`")),
            Err(error) => Err(error_chain(&error)),
        },
        Ok(None) => Ok(Err("the number of replicas is fixed")),
        Err(error) => Err(format!("{error:#}")),
    };
    let limit = gates.scaling.0.as_secs_f64();
    let growth = shown.growth.filter(|kept| kept.is_of(running.lineage, &release) && counts_at(kept.at));
    checks.push(match (growth.map(|kept| kept.what), &autoscaler) {
        (Some(growth), _) => grew(&growth, limit),
        // No load test adds pods here.
        (None, Ok(Err(why))) => Check::unmeasured(GROWTH, limit, "s", format!("{refused}{why}")).at_most(),
        (None, _) => {
            let why = format!("{refused}no load test of this release triggered a scale-up: {}", load("--users 200"));
            Check::waiting(GROWTH, limit, "s", why).at_most()
        }
    });
    checks.push(match autoscaler {
        Ok(Ok(autoscaler)) => {
            let (read, expected) = (autoscaler.metrics.len(), autoscaler.configured);
            let check = Check::new(METRICS, read, expected, "read", autoscaler.problem.is_none() && read == expected);
            let names = autoscaler.metrics.join(", ");
            check.note(autoscaler.problem.unwrap_or(format!("the autoscaler reads {names}")))
        }
        Ok(Err(why)) => Check::unmeasured(METRICS, "read", "", why),
        Err(why) => Check::unmeasured(METRICS, "read", "", why),
    });
    Ok(checks)
}

fn held_sessions(held: &SessionResult, environment: &Environment) -> [Check; 2] {
    let gates = &environment.gates;
    // The staging gate's request rate for this number of clients exceeds most machines. It is estimated, not measured.
    let all = Load { users: held.sessions.count, ..Load::of(gates) };
    let needed = all.tokens_per_second_needed(Duration::from_millis(gates.p95_ms.into()));
    let refused: u64 = held.refused.values().sum();
    let mut note = format!(
        "{} dropped, {refused} not opened, {} of {} requests failed; at the request rate of the staging gate, these sessions would need {needed:.0} tokens/s (extrapolated; {:.0} measured)",
        held.dropped, held.errors, held.requests, held.tokens_per_second
    );
    if !held.errors_by_kind.is_empty() {
        note.push_str(&format!("; {}", json!(held.errors_by_kind)));
    }
    let ok = held.kept_all() && held.error_rate() <= gates.error_rate;
    let p95 = (held.answers.p95_ms * 10.0).round() / 10.0;
    [
        Check::new(SESSIONS, held.open, gates.sessions, "", ok).note(note),
        Check::new(ANSWERS, p95, gates.p95_ms, "ms", held.answers.count > 0 && p95 <= f64::from(gates.p95_ms))
            .at_most(),
    ]
}

fn grew(growth: &ScaleUp, limit: f64) -> Check {
    let note = format!("{} to {} pods", growth.from, growth.to);
    match growth.seconds {
        Some(seconds) => {
            let rounded = (seconds * 10.0).round() / 10.0;
            Check::new(GROWTH, rounded, limit, "s", seconds <= limit).at_most().note(note)
        }
        // A failure, which no waiver covers.
        None => Check::new(GROWTH, "never all ready", limit, "s", false).at_most().note(note),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn load_evidence_counts_only_as_it_was_signed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(folder.path()).unwrap();
        let (lineage, at) = (Lineage(Uuid::nil()), jiff::Timestamp::UNIX_EPOCH);
        let grew = |to| {
            let growth = ScaleUp { from: 3, to, seconds: Some(40.0) };
            keep(folder, (lineage, "release"), at, None, Some(&growth)).unwrap();
        };
        let shown = || Shown::read(folder).map(|shown| shown.growth.map(|growth| growth.what.to));
        assert_eq!(shown(), Ok(None), "nothing was measured");
        grew(5);
        assert_eq!(shown(), Ok(Some(5)));
        let written = std::fs::read_to_string(file(folder)).unwrap();
        std::fs::write(file(folder), written.replace("\"to\": 5", "\"to\": 50")).unwrap();
        assert!(shown().unwrap_err().contains("loads.json is not verified"));
        std::fs::write(file(folder), &written).unwrap();
        assert_eq!(shown(), Ok(Some(5)));
        std::fs::remove_file(format!("{}.minisig", file(folder))).unwrap();
        assert!(shown().unwrap_err().contains("loads.json.minisig"));
        grew(6);
        assert_eq!(shown(), Ok(Some(6)));
    }
}
