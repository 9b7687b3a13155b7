//! The gate check of availability: the record of the outside prober, and the usage records of the same time.

use jiff::Timestamp;
use textnlp_orchestrator::availability::{ProbeRecord, WindowSummary, combined, enough, over};
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::gate::Check;
use textnlp_orchestrator::gate::phases::CheckDefinition;
use textnlp_orchestrator::monthly::RequestSum;

use crate::availability::own_record;
use crate::keys::Admin;
use crate::{ChosenEnvironment, RunningEnvironment};

/// Measures the check. Without enough of a record it waits. `since`: when the running release was applied, before which
/// no probe counts.
pub(super) async fn check(
    check: &CheckDefinition,
    chosen: &ChosenEnvironment,
    running: &RunningEnvironment,
    since: Option<Timestamp>,
) -> Check {
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    let window = environment.gates.availability_window;
    let record = ProbeRecord::at(&scope.folder, running.lineage);
    let probes = match record.read(window.0, Timestamp::now()) {
        Ok(probes) => probes,
        Err(error) => {
            let why = format!("the record in {} was not read: {error}", record.folder());
            return check.unknown(environment, why);
        }
    };
    let summary = match enough(over(&probes, window.0, since), window, Timestamp::now()) {
        Ok(summary) => summary,
        Err(why) => {
            let command = scope.command(&format!("probe --for {window}"));
            let since = since.map_or_else(String::new, |since| format!(", counted from the last change at {since:.0}"));
            return check.waiting(environment, format_args!("{why}{since}: {command}"));
        }
    };
    let own = own_record(Admin::of(chosen, running), (summary.from, summary.until)).await;
    judged(check, environment, &summary, own.map_err(|failure| format!("{:#}", failure.error)))
}

/// The check of both records. A window that is shorter than that of the phase is named.
fn judged(
    check: &CheckDefinition,
    environment: &Environment,
    summary: &WindowSummary,
    own: Result<RequestSum, String>,
) -> Check {
    let gates = &environment.gates;
    let (share, note) = match &own {
        // Probes below the limit fail in any case, and a failure is not waived.
        Err(why) if combined(summary, None).0 >= gates.availability => {
            return check.unknown(environment, format_args!("the service's own record was not read: {why}"));
        }
        own => combined(summary, own.as_ref().ok()),
    };
    let usual = environment.phase.gates().availability_window;
    let window = match gates.availability_window {
        window if window < usual => format!("over {window} instead of {usual}"),
        window => format!("over {window}"),
    };
    check.measured(environment, share, share >= gates.availability).note(format!("{window}: {note}"))
}

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::environment::model::Phase;
    use textnlp_orchestrator::environment::{Catalogue, Library, Overrides};
    use textnlp_orchestrator::gate::phases::{AVAILABILITY, PhaseDefinition};

    use super::*;

    #[test]
    fn share_is_compared_with_the_limit_of_the_environment() {
        let of = |name: &str, sets: &[&str]| {
            let sets = sets.iter().map(|set| (*set).to_owned()).collect();
            let overrides = Overrides { sets, ..Overrides::default() };
            Library::built_in().load(name, &overrides, &Catalogue::default()).unwrap().environment
        };
        let summary = |share: f64| WindowSummary {
            from: Timestamp::UNIX_EPOCH,
            until: Timestamp::UNIX_EPOCH,
            probes: 3,
            unavailable: 0,
            refused: 0,
            covered: 1.0,
            available: Some(share),
        };
        let judge_with = |environment: &Environment, share: f64, own| {
            let check = PhaseDefinition::of(environment.phase).check(AVAILABILITY).unwrap();
            assert!(check.waivable);
            judged(check, environment, &summary(share), own)
        };
        let judge = |environment: &Environment, share| judge_with(environment, share, Ok(RequestSum::default()));
        let pilot = of("pilot", &[]);
        assert!(judge(&pilot, 0.999).ok);
        let failed = judge(&pilot, 0.998_999);
        assert!(!failed.ok && !failed.is_unknown(), "a failure is not waived: {failed}");
        assert!(
            failed.to_string().starts_with("availability: 0.998999 share, wanted at least 0.999 (over 1d: 3 probes")
        );
        let unread = |share| judge_with(&pilot, share, Err("no job ran".to_owned()));
        let unknown = unread(1.0);
        assert!(unknown.is_unknown() && !unknown.waits && unknown.note.unwrap().ends_with("not read: no job ran"));
        assert!(!unread(0.9).is_unknown(), "the probes alone fail");
        let edge = unread(0.999 - 1e-13);
        assert!(edge.is_unknown() && !edge.ok, "it is rounded as the share of the check: {edge}");
        let optimized = of("optimized", &[]);
        assert_eq!(optimized.phase, Phase::Optimized);
        assert!(!judge(&optimized, 0.9998).ok && judge(&optimized, 0.9999).ok);
        let starts = |environment: &Environment, expect: &str| {
            let note = judge(environment, 1.0).note.unwrap();
            assert!(note.starts_with(expect), "{note}");
        };
        starts(&of("pilot", &["gates.availability_window=10s"]), "over 10s instead of 1d: ");
        starts(&optimized, "over 7d: ");
        starts(&of("optimized", &["gates.availability_window=1d"]), "over 1d instead of 7d: ");
    }
}
