//! The gate check of usage analytics: a run of the last hour, and the insights that it wrote.

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::json;
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::gate::Check;
use textnlp_orchestrator::gate::phases::CheckDefinition;

use crate::keys::Admin;
use crate::{ChosenEnvironment, Failure, RunningEnvironment};

/// How long ago the last run may have been: an hour, and the time until the servers run it in place of a job, with its batch.
const MAX_AGE: SignedDuration = SignedDuration::from_mins(70);

/// What the server program answers about the last run.
#[derive(Debug, Clone, Copy, Deserialize)]
struct LastRun {
    /// Whether the servers analyze usage.
    enabled: bool,
    /// Seconds since 1970; `None` before the first run.
    last_run: Option<i64>,
    /// The insights that it wrote.
    count: u64,
}

/// Measures the check.
pub(super) async fn check(check: &CheckDefinition, chosen: &ChosenEnvironment, running: &RunningEnvironment) -> Check {
    let environment = &chosen.loaded.environment;
    if !environment.server.analytics.enabled {
        return check.unknown(environment, "usage analytics is off: set `server.analytics.enabled: true`, then `up`");
    }
    match last_run(Admin::of(chosen, running)).await {
        Ok(last) => judged(check, environment, last, Timestamp::now()),
        Err(failure) => check.unknown(environment, format_args!("the insights were not read: {:#}", failure.error)),
    }
}

async fn last_run(admin: Admin<'_>) -> Result<LastRun, Failure> {
    let site = admin.site(admin.running.serving().await).await?;
    let answer = site.run("analytics", &json!({ "do": "status" })).await?;
    Ok(serde_json::from_value(answer).context("read the last run of usage analytics")?)
}

fn judged(check: &CheckDefinition, environment: &Environment, last: LastRun, now: Timestamp) -> Check {
    let at = last.last_run.and_then(|seconds| Timestamp::from_second(seconds).ok());
    match at {
        _ if !last.enabled => check.unknown(environment, "the running servers do not analyze usage: `up` applies it"),
        None => check.waiting(environment, "no run of usage analytics has ended yet"),
        Some(at) if now.duration_since(at) > MAX_AGE => {
            let note = format!("the last run was at {at:.0}, more than {} minutes ago", MAX_AGE.as_mins());
            check.measured(environment, 0, false).note(note)
        }
        Some(at) => check.measured(environment, last.count, last.count > 0).note(format!("of the run at {at:.0}")),
    }
}

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::environment::model::Phase;
    use textnlp_orchestrator::environment::{Catalogue, Library, Overrides};
    use textnlp_orchestrator::gate::phases::{ANALYTICS, PhaseDefinition};

    use super::*;

    #[test]
    fn insights_of_a_run_of_the_last_hour_open_the_gate() {
        let enterprise = Library::built_in().load("enterprise", &Overrides::default(), &Catalogue::default()).unwrap();
        let environment = enterprise.environment;
        assert!(environment.server.analytics.enabled);
        let check = PhaseDefinition::of(Phase::Enterprise).check(ANALYTICS).unwrap();
        assert!(check.waivable);
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let judge = |last: LastRun| judged(check, &environment, last, now);
        let run =
            |minutes: i64, count| LastRun { enabled: true, last_run: Some(now.as_second() - minutes * 60), count };
        let good = judge(run(70, 3));
        assert!(good.ok && good.measured == 3, "{good}");
        let empty = judge(run(1, 0));
        assert!(!empty.ok && !empty.is_unknown(), "{empty}");
        let old = judge(run(71, 3));
        assert!(
            !old.ok && !old.is_unknown() && old.note.clone().unwrap().contains("more than 70 minutes ago"),
            "{old}"
        );
        let never = judge(LastRun { last_run: None, ..run(0, 0) });
        assert!(never.is_unknown() && never.waits, "{never}");
        let off = judge(LastRun { enabled: false, ..run(0, 3) });
        assert!(off.is_unknown() && !off.waits && off.note.unwrap().contains("`up`"));
    }
}
