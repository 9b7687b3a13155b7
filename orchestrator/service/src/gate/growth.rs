//! Measures whether an autoscaler adds pods under load, and how fast.

use std::time::Duration;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use serde_json::json;
use textnlp_orchestrator::clock::Clock;
use textnlp_orchestrator::environment::Environment;
use textnlp_provider::{Lineage, error_chain};
use tokio_util::sync::CancellationToken;

use crate::{Platform, Progress};

/// Poll interval.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum grace period for pending pods after the load.
const ON_THEIR_WAY: Duration = Duration::from_secs(120);
/// Limit of consecutive failed polls.
const BLIND: u32 = 10;

/// Pods that were added under load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScaleUp {
    /// The count of pods when the load started, pending ones included.
    pub from: u32,
    /// The highest wanted count of pods under load.
    pub to: u32,
    /// Seconds from the first request until that count was ready. `None` if it never was.
    pub seconds: Option<f64>,
}

/// The environment under load.
#[derive(Clone, Copy)]
pub struct Own<'a> {
    /// The environment.
    pub environment: &'a Environment,
    /// Its state folder.
    pub folder: &'a Utf8Path,
    /// The deployment.
    pub lineage: Lineage,
}

/// Polls an autoscaled environment until the load is over and pending pods are ready. `None` without an autoscaler,
/// without added pods, or if the polls fail.
pub async fn watch(
    platform: &dyn Platform,
    own: Own<'_>,
    clock: &dyn Clock,
    (over, stop): (&CancellationToken, &CancellationToken),
    progress: &dyn Progress,
) -> Option<ScaleUp> {
    let Own { environment, folder, lineage } = own;
    environment.scaling.max?;
    let scaling = match platform.find(folder, environment, None, |site| site.scaling()) {
        Ok(scaling) => scaling?,
        Err(error) => {
            progress.warn(&format!("the number of pods is unknown: {error:#}"));
            return None;
        }
    };
    let (start, mut ended, mut failed) = (clock.steady(), None, 0);
    let mut growth: Option<ScaleUp> = None;
    loop {
        let now = clock.steady();
        if over.is_cancelled() {
            ended.get_or_insert(now);
        }
        match scaling.scale(lineage).await {
            Ok(scale) => {
                failed = 0;
                let growth = growth.get_or_insert_with(|| ScaleUp::new(scale.wanted, scale.ready));
                if growth.saw(scale.wanted, scale.ready, now.saturating_sub(start)) {
                    progress.event(&json!({ "event": "scaling", "wanted": scale.wanted, "ready": scale.ready }));
                    progress.line(&format!("{} pods desired, {} ready", scale.wanted, scale.ready));
                }
            }
            Err(error) => {
                failed += 1;
                if failed == BLIND {
                    progress.warn(&format!("the number of pods is unknown: {}", error_chain(&error)));
                    return growth.filter(|growth| growth.seconds.is_some());
                }
            }
        }
        let waits = growth.as_ref().is_some_and(|growth| growth.to > growth.from && growth.seconds.is_none());
        let timeout_after = |ended: Duration| (ended + ON_THEIR_WAY).max(start + environment.gates.scaling.0);
        if stop.is_cancelled() || ended.is_some_and(|ended| !waits || now > timeout_after(ended)) {
            return growth.filter(|growth| growth.to > growth.from);
        }
        tokio::select! {
            () = clock.sleep(POLL_INTERVAL) => {}
            () = over.cancelled(), if ended.is_none() => {}
            () = stop.cancelled() => {}
        }
    }
}

impl ScaleUp {
    /// Pods that return or were pending before are not counted.
    fn new(wanted: u32, ready: u32) -> Self {
        let there = wanted.max(ready);
        Self { from: there, to: there, seconds: None }
    }

    /// Records one poll. Returns whether anything changed.
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
    fn scale_up_time_ends_when_all_desired_pods_are_ready() {
        let mut growth = ScaleUp::new(3, 3);
        let observations = [
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
        for (second, (wanted, ready, news)) in observations.into_iter().enumerate() {
            assert_eq!(growth.saw(wanted, ready, Duration::from_secs(second as u64)), news, "second {second}");
        }
        assert_eq!(growth, ScaleUp { from: 3, to: 20, seconds: Some(6.0) });
    }

    #[test]
    fn recovering_pods_do_not_count_as_scale_up() {
        let mut growth = ScaleUp::new(3, 2);
        assert!(!growth.saw(3, 3, Duration::from_secs(5)));
        assert_eq!(growth, ScaleUp { from: 3, to: 3, seconds: None });
    }

    #[test]
    fn desired_but_unready_pods_do_not_count_as_scale_up() {
        let mut growth = ScaleUp::new(3, 3);
        growth.saw(5, 4, Duration::from_secs(1));
        growth.saw(5, 3, Duration::from_secs(100));
        assert_eq!(growth, ScaleUp { from: 3, to: 5, seconds: None });
    }
}
