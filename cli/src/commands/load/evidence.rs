//! What loads have shown of a release: kept beside its state, because nobody loads what others work with only to open a gate.

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use serde_json::json;
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::gate::Check;
use textnlp_orchestrator::load::{Held, Load};
use textnlp_provider::Lineage;

use super::growth::Growth;
use crate::clouds;
use crate::commands::gate::{release_of, write_whole};
use crate::commands::running::Running;
use crate::deployment::Deployment;
use crate::report::Failure;

/// The newest of each kind.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Shown {
    /// Sessions that were held.
    sessions: Option<Of<Held>>,
    /// Pods that came under load.
    growth: Option<Of<Growth>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Of<T> {
    /// Which deployment.
    lineage: Lineage,
    /// The digest of what ran.
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
    /// What is kept in a state folder. What cannot be read shows nothing.
    fn read(folder: &Utf8Path) -> Shown {
        let read = std::fs::read(file(folder)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        read.unwrap_or_default()
    }
}

fn file(folder: &Utf8Path) -> Utf8PathBuf {
    folder.join("evidence").join("loads.json")
}

/// Keeps what a load has shown of this release, in the place of what an earlier one did; but for fewer sessions, which were a trial.
pub(super) fn keep(
    folder: &Utf8Path,
    (lineage, release): (Lineage, &str),
    at: jiff::Timestamp,
    held: Option<&Held>,
    growth: Option<&Growth>,
) -> anyhow::Result<()> {
    let mut shown = Shown::read(folder);
    let is_less =
        |held: &Held, kept: &Of<Held>| kept.is_of(lineage, release) && held.sessions.count < kept.what.sessions.count;
    if let Some(held) = held.filter(|held| !shown.sessions.as_ref().is_some_and(|kept| is_less(held, kept))) {
        shown.sessions = Some(Of { lineage, release: release.to_owned(), at, what: held.clone() });
    }
    if let Some(growth) = growth {
        shown.growth = Some(Of { lineage, release: release.to_owned(), at, what: growth.clone() });
    }
    write_whole(&file(folder), &shown)
}

const SESSIONS: &str = "open sessions";
const ANSWERS: &str = "p95 of their answers";
const GROWTH: &str = "more pods under load within";
const METRICS: &str = "metrics";

/// What the gate of phase scale-up asks besides: that so many sessions were held by this very release, that pods came under load, and
/// that what decides of them sees what it decides by.
pub async fn checks(deployment: &Deployment<'_>, running: &Running) -> Result<Vec<Check>, Failure> {
    let environment = &deployment.chosen.loaded.environment;
    let (folder, name) = (&deployment.chosen.folder, &deployment.chosen.name);
    let release = release_of(deployment)?;
    let shown = Shown::read(folder);
    let gates = &environment.gates;
    let again = deployment.session.again();
    let load = |more: &str| again.command(&format!("load {more}"), name);
    let mut checks = Vec::new();

    let sessions = shown.sessions.filter(|kept| kept.is_of(running.lineage, &release)).map(|kept| kept.what);
    // Held for as long as the gate says, and each of them asked while all were there.
    let counts = |held: &Held| {
        let asked = held.answers.count + held.errors;
        held.sessions.count >= gates.sessions && held.sessions.hold >= gates.hold.0 && asked >= gates.sessions.into()
    };
    match sessions.filter(counts) {
        Some(held) => checks.extend(held_sessions(&held, environment)),
        None => {
            let seconds = gates.hold.0.as_secs().max(1);
            let command = load(&format!("--sessions {} --seconds {seconds}", gates.sessions));
            let why = format!("nobody has held so many of this release for {seconds} s: {command}");
            checks.push(Check::waiting(SESSIONS, gates.sessions, "", why));
        }
    }

    let limit = gates.scaling.0.as_secs_f64();
    checks.push(match shown.growth.filter(|kept| kept.is_of(running.lineage, &release)).map(|kept| kept.what) {
        Some(growth) => grew(&growth, limit),
        None => {
            let why = format!("no load of this release made pods come: {}", load("--users 200"));
            Check::waiting(GROWTH, limit, "s", why)
        }
    });

    let scale = match clouds::pods(folder, environment, running.lineage) {
        Ok(pods) => pods.scale().await,
        Err(error) => Err(error),
    };
    checks.push(match scale {
        Ok(scale) => match scale.autoscaler {
            Some(autoscaler) => {
                let (read, told) = (autoscaler.reads.len(), autoscaler.told);
                let check = Check::new(METRICS, read, told, "read", autoscaler.blind.is_none() && read == told);
                let names = autoscaler.reads.join(", ");
                check.note(autoscaler.blind.unwrap_or(format!("the autoscaler reads {names}")))
            }
            None => {
                Check::unmeasured(METRICS, "read", "", "no autoscaler decides how many pods there are: `scaling.max`")
            }
        },
        Err(error) => Check::unmeasured(METRICS, "read", "", format!("{error:#}")),
    });
    Ok(checks)
}

fn held_sessions(held: &Held, environment: &Environment) -> [Check; 2] {
    let gates = &environment.gates;
    // What clients of the staging gate would ask for in such numbers is far beyond most machines: it is reckoned, and not measured.
    let all = Load { users: held.sessions.count, ..Load::of(gates) };
    let needed = all.tokens_per_second_needed(Duration::from_millis(gates.p95_ms.into()));
    let refused: u64 = held.refused.values().sum();
    let mut note = format!(
        "{} dropped, {refused} refused, {} of {} questions failed; were each of them as busy as in the staging gate, they would need {needed:.0} tokens/s (extrapolated; {:.0} measured)",
        held.dropped, held.errors, held.requests, held.tokens_per_second
    );
    if !held.errors_by_kind.is_empty() {
        note.push_str(&format!("; {}", json!(held.errors_by_kind)));
    }
    let ok = held.kept_all() && held.error_rate() <= gates.error_rate;
    let p95 = (held.answers.p95_ms * 10.0).round() / 10.0;
    [
        Check::new(SESSIONS, held.open, gates.sessions, "", ok).note(note),
        Check::new(ANSWERS, p95, gates.p95_ms, "ms", held.answers.count > 0 && p95 <= f64::from(gates.p95_ms)),
    ]
}

fn grew(growth: &Growth, limit: f64) -> Check {
    let note = format!("{} to {} pods", growth.from, growth.to);
    match growth.seconds {
        Some(seconds) => {
            let rounded = (seconds * 10.0).round() / 10.0;
            Check::new(GROWTH, rounded, limit, "s", seconds <= limit).note(note)
        }
        None => Check::unmeasured(GROWTH, limit, "s", format!("{note}: they were never all ready")),
    }
}
