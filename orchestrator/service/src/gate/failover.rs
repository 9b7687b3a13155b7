//! The gate check of the database: the last rehearsal of a failover lost no acknowledged write.

use jiff::Timestamp;
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::gate::Check;
use textnlp_orchestrator::gate::phases::CheckDefinition;
use textnlp_orchestrator::state::State;
use textnlp_provider::Lineage;

use super::sites::FRESH;
use crate::ChosenEnvironment;
use crate::rehearsal::{FailoverRecord, records, unsupported, verdict};

/// Measures the check. A database whose failover cannot be rehearsed is unknown.
pub(super) fn check(check: &CheckDefinition, chosen: &ChosenEnvironment, lineage: Lineage, state: &State) -> Check {
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    if let Some(why) = unsupported(environment) {
        return check.unknown(environment, why);
    }
    let command = scope.command("db failover");
    match records(&scope.folder) {
        Ok(records) => {
            let counts = |record: &&FailoverRecord| {
                // `down` ends what was measured before it.
                record.lineage == lineage && state.removal().is_none_or(|removal| record.at > removal)
            };
            of_newest(check, environment, records.iter().rfind(counts), Timestamp::now(), &command)
        }
        Err(why) => check.waiting(environment, format_args!("{why}: {command}")),
    }
}

fn of_newest(
    check: &CheckDefinition,
    environment: &Environment,
    newest: Option<&FailoverRecord>,
    now: Timestamp,
    command: &str,
) -> Check {
    let Some(record) = newest.filter(|record| now.duration_since(record.at) < FRESH) else {
        let why = format!("no failover of this deployment was rehearsed in the last 90 days: {command}");
        return check.waiting(environment, why);
    };
    let seconds = record.writes.without_writes_ms as f64 / 1000.0;
    let note = format!(
        "rehearsed at {:.0}: {} acknowledged writes, {seconds:.1} s without writes, {} instances",
        record.at, record.writes.acknowledged, record.instances
    );
    match (verdict(record), record.writes.lost) {
        (Ok(()), Some(lost)) => check.measured(environment, lost, lost == 0).note(note),
        // Failures, which no waiver covers.
        (Err(why), Some(lost)) => check.measured(environment, lost, false).note(format!("{why}; {note}")),
        (Err(why), None) => check.measured(environment, "not recovered", false).note(format!("{why}; {note}")),
        (Ok(()), None) => check.measured(environment, "not recovered", false).note(note),
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use textnlp_orchestrator::environment::{Catalogue, Library, Overrides};
    use textnlp_orchestrator::gate::phases::{FAILOVER, PhaseDefinition};

    use super::*;
    use crate::rehearsal::tests::record;

    #[test]
    fn newest_rehearsal_counts_for_ninety_days() {
        let loaded = Library::built_in().load("pilot", &Overrides::default(), &Catalogue::default());
        let environment = loaded.unwrap().environment;
        let definition = PhaseDefinition::of(environment.phase).check(FAILOVER).unwrap();
        let of = |record: Option<&FailoverRecord>, days: i64| {
            let now = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * days);
            of_newest(definition, &environment, record, now, "textnlp-deploy db failover --env pilot")
        };
        let none = of(None, 0);
        assert!(none.waits && none.is_unknown(), "{none}");
        assert!(none.note.unwrap().ends_with(": textnlp-deploy db failover --env pilot"));
        let good = record(0, Some(0));
        assert!(of(Some(&good), 89).ok && of(Some(&good), 90).waits);
        let lost = of(Some(&record(0, Some(2))), 1);
        assert!(!lost.ok && !lost.is_unknown() && lost.measured == 2, "a loss is not waived: {lost}");
        let incomplete = FailoverRecord { ready_s: None, ..record(0, Some(0)) };
        assert!(!of(Some(&incomplete), 1).ok, "an instance that stays away is a failure");
        let unmeasured = FailoverRecord { unmeasured: Some("the job ended".to_owned()), ..record(0, Some(0)) };
        assert!(!of(Some(&unmeasured), 1).ok, "what was not measured does not pass");
        let never = of(Some(&record(0, None)), 1);
        assert!(!never.ok && !never.is_unknown(), "{never}");
    }
}
