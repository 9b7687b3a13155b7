//! The gate check of backups: the newest one is restored beside the service and compared with what it recorded.

use std::sync::Arc;

use jiff::Timestamp;
use textnlp_orchestrator::backup::VerificationResult;
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::gate::Check;
use textnlp_orchestrator::gate::phases::CheckDefinition;
use textnlp_provider::Lineage;
use tokio_util::sync::CancellationToken;

use crate::backup::{self, failed, opener_of_state, verify_backup};
use crate::{ChosenEnvironment, Failure, Progress};

/// Measures the check. What prevents the restore is a reason why it is unknown. `running`: the deployment, and when its
/// release was applied.
pub(super) async fn check(
    check: &CheckDefinition,
    chosen: &ChosenEnvironment,
    running: (Lineage, Option<Timestamp>),
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Check {
    let environment = &chosen.loaded.environment;
    let measured = tokio::select! {
        measured = restored(check, chosen, running, progress) => measured,
        () = stop.cancelled() => return check.unknown(environment, "it was stopped"),
    };
    measured.unwrap_or_else(|failure| check.unknown(environment, format_args!("{:#}", failure.error)))
}

async fn restored(
    check: &CheckDefinition,
    chosen: &ChosenEnvironment,
    (lineage, applied): (Lineage, Option<Timestamp>),
    progress: &dyn Progress,
) -> Result<Check, Failure> {
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    let create = scope.command("backup create");
    if let Some(backups) = scope.platform.site_backups(&scope.folder, environment)? {
        let job = JobBackup { last: backups.last(lineage).await?, applied, location: backups.location() };
        return Ok(in_cluster(check, environment, &job, Timestamp::now(), &create));
    }
    let (directory, settings) = backup::directory(scope, environment)?;
    let stored = directory.list().map_err(failed)?;
    let newest = stored.iter().filter_map(|backup| Some((backup, backup.facts.as_ref()?)));
    // The record of a backup is not signed before it is verified below.
    let now = Timestamp::now();
    let newest =
        newest.filter(|(_, facts)| facts.lineage == lineage && facts.at <= now).max_by_key(|(_, facts)| facts.at);
    let Some((newest, facts)) = newest else {
        let why = format!("this deployment has no backup in {}: {create}", directory.folder());
        return Ok(check.waiting(environment, why));
    };
    let most = settings.every.0.saturating_mul(2);
    if now.duration_since(facts.at).unsigned_abs() > most {
        let why = format!("the newest backup is of {:.0}, longer ago than twice `backup.every`: {create}", facts.at);
        return Ok(check.waiting(environment, why));
    }
    progress.doing("restores the newest backup beside the service");
    let opener = Arc::new(opener_of_state(scope.platform, &scope.folder).await?);
    let result = verify_backup(scope.platform, &directory, &newest.file, &opener, &scope.folder, false, None).await?;
    Ok(of_result(check, environment, &result, &format!("{} of {:.0}", newest.file, facts.at)))
}

/// The backups of a cluster.
struct JobBackup {
    /// When its job last succeeded.
    last: Option<Timestamp>,
    /// When the running release was applied: the job may have been another one before.
    applied: Option<Timestamp>,
    location: String,
}

/// The check of a cluster whose backup job restores each dump beside the database and compares the counts of its rows. It
/// fails if they differ.
fn in_cluster(
    check: &CheckDefinition,
    environment: &Environment,
    JobBackup { last, applied, location }: &JobBackup,
    now: Timestamp,
    create: &str,
) -> Check {
    let backup = &environment.backup;
    if !backup.verify {
        return check.unknown(environment, "`backup.verify` is false, so the cluster restores no dump");
    }
    let Some(last) = *last else {
        return check.waiting(environment, format_args!("no backup job of the cluster succeeded yet: {create}"));
    };
    if now.duration_since(last).unsigned_abs() > backup.every.0.saturating_mul(2) {
        let why = format!("the last backup job succeeded at {last:.0}, longer ago than twice `backup.every`: {create}");
        return check.waiting(environment, why);
    }
    // A CronJob does not say when the job that succeeded began: one that ran during `up` counts too.
    if let Some(applied) = applied.filter(|applied| last <= *applied) {
        let why = format!("the last backup job succeeded at {last:.0}, before the last `up` at {applied:.0}: {create}");
        return check.waiting(environment, why);
    }
    let note = format!("newest dump in the {location}, restored by the backup job that succeeded at {last:.0}");
    check.measured(environment, true, true).note(note)
}

/// The check of a backup that was restored.
fn of_result(check: &CheckDefinition, environment: &Environment, result: &VerificationResult, backup: &str) -> Check {
    let note = format!("backup {backup}: {}", result.says);
    if result.ok && result.level == "state" {
        return check.unknown(environment, format_args!("{note}, so there is nothing to compare"));
    }
    check.measured(environment, result.ok, result.ok).note(note)
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use textnlp_orchestrator::environment::{Catalogue, Library, Overrides};
    use textnlp_orchestrator::gate::phases::{PhaseDefinition, RESTORED};

    use super::*;

    #[test]
    fn verified_backup_job_of_a_cluster_counts_for_its_release_and_twice_its_interval() {
        let loaded = Library::built_in().load("pilot", &Overrides::default(), &Catalogue::default()).unwrap();
        let mut environment = loaded.environment;
        let definition = PhaseDefinition::of(environment.phase).check(RESTORED).unwrap();
        let hour = |hours: i64| Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hours);
        let of = |environment: &Environment, last: Option<i64>, hours: i64| {
            let (last, applied) = (last.map(hour), Some(hour(1)));
            let job = JobBackup { last, applied, location: "volume dumps".to_owned() };
            in_cluster(definition, environment, &job, hour(hours), "textnlp-deploy backup create --env pilot")
        };
        let good = of(&environment, Some(8), 56);
        assert!(good.ok && good.note.unwrap().contains("in the volume dumps"));
        for waits in [of(&environment, None, 2), of(&environment, Some(8), 57), of(&environment, Some(1), 8)] {
            assert!(waits.waits && waits.note.unwrap().ends_with("backup create --env pilot"));
        }
        environment.backup.verify = false;
        let unknown = of(&environment, Some(8), 9);
        assert!(unknown.is_unknown() && !unknown.waits, "{unknown}");
    }

    #[test]
    fn restored_backup_counts_only_with_a_database() {
        let loaded = Library::built_in().load("pilot", &Overrides::default(), &Catalogue::default()).unwrap();
        let environment = loaded.environment;
        let definition = PhaseDefinition::of(environment.phase).check(RESTORED).unwrap();
        let of = |ok: bool, level: &str| {
            let result = VerificationResult {
                format: 1,
                at: Timestamp::UNIX_EPOCH,
                sha256: "x".to_owned(),
                ok,
                level: level.to_owned(),
                says: "keys 1, not 2".to_owned(),
                tool: "t".to_owned(),
                milliseconds: 1,
            };
            of_result(definition, &environment, &result, "one.backup")
        };
        assert!(of(true, "answered").ok && of(true, "keys").ok);
        let empty = of(true, "state");
        assert!(empty.is_unknown() && !empty.ok, "{empty}");
        let failed = of(false, "none");
        assert!(!failed.ok && !failed.is_unknown(), "a failure is not waived: {failed}");
        assert_eq!(failed.note.unwrap(), "backup one.backup: keys 1, not 2");
    }
}
