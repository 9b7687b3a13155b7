//! Whether more pods came while a service was under load, and how soon.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use textnlp_orchestrator::clock::Clock;
use tokio_util::sync::CancellationToken;

use super::Own;
use crate::clouds;
use crate::progress::Progress;
use crate::report::Console;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// How long pods that are on their way are waited for at least when the load is over.
const ON_THEIR_WAY: Duration = Duration::from_secs(120);
/// Looks in a row that may fail.
const BLIND: u32 = 10;

/// More pods than before, all of them ready.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Growth {
    /// Pods when the load began, with those that were on their way.
    pub from: u32,
    /// The most that were wanted under it.
    pub to: u32,
    /// Seconds from the first request until so many were ready; `None` where they never were.
    pub seconds: Option<f64>,
}

/// Watches an environment whose pods an autoscaler adds, until the load is over and what was on its way is there. `None` where nothing
/// adds any, where it added none, and where nobody could say.
pub(super) async fn watch(
    own: &Own,
    clock: &dyn Clock,
    (over, stop): (&CancellationToken, &CancellationToken),
    console: Console,
    progress: &Progress,
) -> Option<Growth> {
    let environment = &own.environment;
    environment.scaling.max?;
    environment.sites.iter().find(|site| site.is_in_cluster())?;
    let pods = match clouds::pods(&own.folder, environment, own.lineage) {
        Ok(pods) => pods,
        Err(error) => {
            console.warn(format!("nobody can say how many pods there are: {error:#}"));
            return None;
        }
    };
    let (begun, mut ended, mut failed) = (clock.steady(), None, 0);
    let mut growth: Option<Growth> = None;
    loop {
        let now = clock.steady();
        if over.is_cancelled() {
            ended.get_or_insert(now);
        }
        match pods.scale().await {
            Ok(scale) => {
                failed = 0;
                let growth = growth.get_or_insert_with(|| Growth::begun(scale.wanted, scale.ready));
                if growth.saw(scale.wanted, scale.ready, now.saturating_sub(begun)) {
                    console.event(&json!({ "event": "scaling", "wanted": scale.wanted, "ready": scale.ready }));
                    progress.line(format!("{} pods are wanted, {} are ready", scale.wanted, scale.ready));
                }
            }
            Err(error) => {
                failed += 1;
                if failed == BLIND {
                    console.warn(format!("nobody could say how many pods there are: {error:#}"));
                    return growth.filter(|growth| growth.seconds.is_some());
                }
            }
        }
        let waits = growth.as_ref().is_some_and(|growth| growth.to > growth.from && growth.seconds.is_none());
        let patience = |ended: Duration| (ended + ON_THEIR_WAY).max(begun + environment.gates.scaling.0);
        if stop.is_cancelled() || ended.is_some_and(|ended| !waits || now > patience(ended)) {
            return growth.filter(|growth| growth.to > growth.from);
        }
        tokio::select! {
            () = clock.sleep(EVERY) => {}
            () = over.cancelled(), if ended.is_none() => {}
            () = stop.cancelled() => {}
        }
    }
}

impl Growth {
    /// Pods that come back, or that were on their way before, are no growth.
    fn begun(wanted: u32, ready: u32) -> Self {
        let there = wanted.max(ready);
        Self { from: there, to: there, seconds: None }
    }

    /// One look; says whether it is news.
    fn saw(&mut self, wanted: u32, ready: u32, at: Duration) -> bool {
        let more = wanted > self.to;
        if more {
            (self.to, self.seconds) = (wanted, None);
        }
        let there = self.to > self.from && self.seconds.is_none() && ready >= self.to;
        if there {
            self.seconds = Some(at.as_secs_f64());
        }
        more || there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_took_as_long_as_until_the_most_that_were_wanted_were_ready() {
        let mut growth = Growth::begun(3, 3);
        let looks = [
            (3, 3, false),
            (6, 3, true),
            (6, 5, false),
            (6, 6, true),
            (20, 6, true),
            (20, 19, false),
            (20, 20, true),
            (20, 20, false),
            (3, 3, false),
        ];
        for (second, (wanted, ready, news)) in looks.into_iter().enumerate() {
            assert_eq!(growth.saw(wanted, ready, Duration::from_secs(second as u64)), news, "second {second}");
        }
        assert_eq!(growth, Growth { from: 3, to: 20, seconds: Some(6.0) });
    }

    #[test]
    fn pods_that_come_back_are_no_growth() {
        let mut growth = Growth::begun(3, 2);
        assert!(!growth.saw(3, 3, Duration::from_secs(5)));
        assert_eq!(growth, Growth { from: 3, to: 3, seconds: None });
    }

    #[test]
    fn pods_that_are_wanted_and_never_ready_are_no_growth() {
        let mut growth = Growth::begun(3, 3);
        growth.saw(5, 4, Duration::from_secs(1));
        growth.saw(5, 3, Duration::from_secs(100));
        assert_eq!(growth, Growth { from: 3, to: 5, seconds: None });
    }
}
