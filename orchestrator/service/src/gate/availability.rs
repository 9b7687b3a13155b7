//! The gate check of availability: the record of the outside prober, and the usage records of the same time.

use jiff::Timestamp;
use textnlp_orchestrator::availability::{ProbeRecord, combined, enough, over};
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::environment::model::Gates;
use textnlp_orchestrator::gate::Check;
use textnlp_orchestrator::gate::phases::CheckDefinition;
use textnlp_orchestrator::monthly::RequestSum;
use textnlp_orchestrator::state::State;

use crate::availability::own_record;
use crate::keys::Admin;
use crate::{ChosenEnvironment, RunningEnvironment};

/// Measures the check. Without enough of a record it waits.
pub(super) async fn check(
    check: &CheckDefinition,
    chosen: &ChosenEnvironment,
    running: &RunningEnvironment,
    state: &State,
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
    // `down` ends what was measured before it.
    let summary = match enough(over(&probes, window.0, state.removal()), window, Timestamp::now()) {
        Ok(summary) => summary,
        Err(why) => {
            let command = scope.command(&format!("probe --for {window}"));
            return check.waiting(environment, format_args!("{why}: {command}"));
        }
    };
    let own = own_record(Admin::of(chosen, running), (summary.from, summary.until)).await;
    let own: Result<RequestSum, String> = own.map_err(|failure| format!("{:#}", failure.error));
    let (share, note) = combined(&summary, &own);
    judged(check, environment, share, note)
}

/// The check of a share. A window that is shorter than that of the phase is named.
fn judged(check: &CheckDefinition, environment: &Environment, share: f64, note: String) -> Check {
    let gates = &environment.gates;
    let usual = Gates::default().availability_window;
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
        let judge = |environment: &Environment, share: f64| {
            let check = PhaseDefinition::of(environment.phase).check(AVAILABILITY).unwrap();
            assert!(check.waivable);
            judged(check, environment, share, "3 probes".to_owned())
        };
        let pilot = of("pilot", &[]);
        assert!(judge(&pilot, 0.999).ok);
        let failed = judge(&pilot, 0.998_999);
        assert!(!failed.ok && !failed.is_unknown(), "a failure is not waived: {failed}");
        assert_eq!(failed.to_string(), "availability: 0.998999 share, wanted at least 0.999 (over 1d: 3 probes)");
        let optimized = of("optimized", &[]);
        assert_eq!(optimized.phase, Phase::Optimized);
        assert!(!judge(&optimized, 0.9998).ok && judge(&optimized, 0.9999).ok);
        let short = judge(&of("pilot", &["gates.availability_window=10s", "gates.availability=0.9"]), 0.95);
        assert!(short.ok && short.note.unwrap().starts_with("over 10s instead of 1d: "));
    }
}
