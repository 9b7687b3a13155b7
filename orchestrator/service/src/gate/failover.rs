//! The gate check of the database: the last rehearsal of a failover lost no acknowledged write, and was of what runs now.

use jiff::Timestamp;
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::gate::Check;
use textnlp_orchestrator::gate::phases::CheckDefinition;
use textnlp_orchestrator::state::State;
use textnlp_provider::Lineage;

use super::sites::FRESH;
use crate::rehearsal::{FailoverRecord, RunningDatabase, is_unknown_command, outdated, records, unsupported, verdict};
use crate::{ChosenEnvironment, RunningEnvironment};

/// Measures the check. A database whose failover cannot be rehearsed is unknown.
pub(super) async fn check(
    check: &CheckDefinition,
    chosen: &ChosenEnvironment,
    running: &RunningEnvironment,
    state: &State,
) -> Check {
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    if let Some(why) = unsupported(environment) {
        return check.unknown(environment, why);
    }
    let command = scope.command("db failover");
    let records = match records(&scope.folder) {
        Ok(records) => records,
        Err(why) => return check.waiting(environment, format_args!("{why}: {command}")),
    };
    let counts = |record: &&FailoverRecord| counts(record, running.lineage, state);
    let newest = match of_newest(check, environment, records.iter().rfind(counts), Timestamp::now(), &command) {
        Ok(newest) => newest,
        Err(check) => return check,
    };
    match RunningDatabase::of(chosen, running).await {
        Ok(now) => compared(check, environment, newest, &now, &command),
        // Before the next `up`, and after a rollback.
        Err(failure) if is_unknown_command(&failure) => {
            let why = "the running release does not report its database: deploy a release with this command";
            check.waiting(environment, format_args!("{why}: {}", scope.last_up()))
        }
        Err(failure) => {
            check.unknown(environment, format_args!("the running database was not read: {:#}", failure.error))
        }
    }
}

/// When the newest rehearsal of this deployment began; `None` also if the records cannot be read.
pub(super) fn newest(chosen: &ChosenEnvironment, state: &State) -> Option<Timestamp> {
    let records = records(&chosen.scope.folder).ok()?;
    records.iter().rfind(|record| counts(record, state.lineage(), state)).map(|record| record.at)
}

/// Whether a rehearsal was of this deployment: `down` ends what was measured before it.
fn counts(record: &FailoverRecord, lineage: Lineage, state: &State) -> bool {
    record.lineage == lineage && state.removal().is_none_or(|removal| record.at > removal)
}

/// The newest rehearsal, if it met its target and is not too old.
fn of_newest<'r>(
    check: &CheckDefinition,
    environment: &Environment,
    newest: Option<&'r FailoverRecord>,
    now: Timestamp,
    command: &str,
) -> Result<&'r FailoverRecord, Check> {
    let Some(record) = newest.filter(|record| now.duration_since(record.at) < FRESH) else {
        let why = format!("no failover of this deployment was rehearsed in the last 90 days: {command}");
        return Err(check.waiting(environment, why));
    };
    let Err(why) = verdict(record) else { return Ok(record) };
    let note = format!("{why}; {}", note(record));
    // Failures, which no waiver covers.
    Err(match record.writes.lost {
        Some(lost) => check.measured(environment, lost, false).note(note),
        None => check.measured(environment, "not recovered", false).note(note),
    })
}

/// Compares a rehearsal that met its target with what runs now.
fn compared(
    check: &CheckDefinition,
    environment: &Environment,
    record: &FailoverRecord,
    now: &RunningDatabase,
    command: &str,
) -> Check {
    match outdated(record, now) {
        Some(why) => check
            .waiting(environment, format_args!("the rehearsal at {:.0} does not count: {why}: {command}", record.at)),
        None => check.measured(environment, 0, true).note(note(record)),
    }
}

fn note(record: &FailoverRecord) -> String {
    let FailoverRecord { at, writes, instances, .. } = record;
    let seconds = writes.without_writes_ms as f64 / 1000.0;
    let acknowledged = writes.acknowledged;
    format!(
        "rehearsed at {at:.0}: {acknowledged} acknowledged writes, {seconds:.1} s without writes, {instances} instances"
    )
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use textnlp_orchestrator::environment::{Catalogue, Library, Overrides};
    use textnlp_orchestrator::gate::phases::{FAILOVER, PhaseDefinition};

    use super::*;
    use crate::rehearsal::tests::{record, running};

    #[test]
    fn newest_rehearsal_counts_for_ninety_days_and_for_what_it_was_of() {
        let loaded = Library::built_in().load("pilot", &Overrides::default(), &Catalogue::default());
        let environment = loaded.unwrap().environment;
        let definition = PhaseDefinition::of(environment.phase).check(FAILOVER).unwrap();
        let command = "textnlp-deploy db failover --env pilot";
        let compare =
            |record: &FailoverRecord, now: &RunningDatabase| compared(definition, &environment, record, now, command);
        let of = |record: Option<&FailoverRecord>, days: i64| {
            let now = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * days);
            of_newest(definition, &environment, record, now, command)
                .map_or_else(|check| check, |record| compare(record, &running()))
        };
        let none = of(None, 0);
        assert!(none.waits && none.is_unknown(), "{none}");
        assert!(none.note.unwrap().ends_with(": textnlp-deploy db failover --env pilot"));
        let good = record(0, Some(0));
        assert!(of(Some(&good), 89).ok && of(Some(&good), 90).waits);
        let changed = compare(&good, &RunningDatabase { instances: 2, ..running() });
        assert!(changed.waits && !changed.ok, "{changed}");
        assert!(changed.note.unwrap().ends_with("has 2 now: textnlp-deploy db failover --env pilot"));
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
