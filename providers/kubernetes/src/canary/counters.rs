//! The request counters of one set of pods, summed while pods come, go and restart.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use textnlp_provider::exposition;

/// Requests under `/v1`, as pods count them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Answered requests.
    pub(crate) answers: u64,
    /// Answers with a server error.
    pub(crate) failures: u64,
    /// Answers slower than the limit.
    pub(crate) slow: u64,
}

impl Totals {
    /// The requests since an earlier sample. A restarted pod counts from zero.
    pub(crate) fn since(self, before: Self) -> Self {
        if self.answers < before.answers || self.failures < before.failures {
            return self;
        }
        Self {
            answers: self.answers.saturating_sub(before.answers),
            failures: self.failures.saturating_sub(before.failures),
            slow: self.slow.saturating_sub(before.slow),
        }
    }

    /// The sum of both.
    pub(super) fn and(self, more: Self) -> Self {
        Self {
            answers: self.answers.saturating_add(more.answers),
            failures: self.failures.saturating_add(more.failures),
            slow: self.slow.saturating_add(more.slow),
        }
    }
}

/// The counters of one set of pods.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pods: BTreeMap<String, Totals>,
    /// All requests since the first sample.
    pub(crate) totals: Totals,
}

impl Group {
    /// Adds a sample of a pod. Requests before its first sample count only with `whole`, which says that the rollout
    /// created the pod.
    pub(crate) fn look(&mut self, uid: &str, now: Totals, whole: bool) {
        let before = self.pods.insert(uid.to_owned(), now);
        let fresh = match before {
            Some(before) => now.since(before),
            None if whole => now,
            None => Totals::default(),
        };
        self.totals = self.totals.and(fresh);
    }
}

/// The metrics port in a pod spec.
pub(crate) fn port(spec: &Value) -> Option<u16> {
    let containers = spec["containers"].as_array().into_iter().flatten();
    let mut ports = containers.flat_map(|one| one["ports"].as_array().into_iter().flatten());
    ports.find(|port| port["name"] == "metrics")?["containerPort"].as_u64()?.try_into().ok()
}

/// Parses Prometheus text; lines about other metrics are skipped. An answer is slow above the first histogram bound
/// that is not below `slow_ms`.
pub(crate) fn read(text: &str, slow_ms: u32) -> Totals {
    let (mut totals, mut within, mut all) = (Totals::default(), BTreeMap::<u64, u64>::new(), 0);
    for sample in exposition::samples(text) {
        // The server sets the route label; it is never client input.
        if !sample.label("route").is_some_and(|route| route.starts_with("/v1/")) {
            continue;
        }
        let count = sample.value as u64;
        match sample.name {
            "http_requests_total" => {
                totals.answers = totals.answers.saturating_add(count);
                if sample.label("status").is_some_and(|status| status.starts_with('5')) {
                    totals.failures = totals.failures.saturating_add(count);
                }
            }
            "http_request_duration_seconds_bucket" => match sample.label("le") {
                Some("+Inf") => all = u64::saturating_add(all, count),
                Some(bound) => {
                    let bound = (bound.parse::<f64>().unwrap_or_default() * 1000.0).round() as u64;
                    let at = within.entry(bound).or_default();
                    *at = at.saturating_add(count);
                }
                None => {}
            },
            _ => {}
        }
    }
    if let Some((_, in_time)) = within.range(u64::from(slow_ms)..).next() {
        totals.slow = all.saturating_sub(*in_time);
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_outcome() {
        let text = "# TYPE http_requests counter\n\
            http_requests_total{method=\"POST\",route=\"/v1/generate\",status=\"200\"} 90\n\
            http_requests_total{method=\"POST\",route=\"/v1/generate\",status=\"503\"} 10\n\
            http_requests_total{method=\"GET\",route=\"/health\",status=\"500\"} 1000\n\
            http_request_duration_seconds_bucket{le=\"0.25\",method=\"POST\",route=\"/v1/generate\"} 80\n\
            http_request_duration_seconds_bucket{le=\"0.5\",method=\"POST\",route=\"/v1/generate\"} 95\n\
            http_request_duration_seconds_bucket{le=\"+Inf\",method=\"POST\",route=\"/v1/generate\"} 100\n\
            textnlp_ready 1\nnonsense\n";
        assert_eq!(read(text, 500), Totals { answers: 100, failures: 10, slow: 5 });
        assert_eq!(read(text, 300), Totals { answers: 100, failures: 10, slow: 5 }, "the next bound above");
        assert_eq!(read(text, 200).slow, 20);
        assert_eq!(read(text, 9000).slow, 0, "no bound says so much");
        assert_eq!(read("", 500), Totals::default());
    }

    #[test]
    fn counters_handle_existing_and_restarted_pods() {
        let count = |answers| Totals { answers, ..Totals::default() };
        let (mut old, mut new) = (Group::default(), Group::default());
        old.look("a", count(1000), false);
        old.look("a", count(1010), false);
        old.look("b", count(500), false);
        assert_eq!(old.totals.answers, 10);
        new.look("c", count(7), true);
        new.look("c", count(9), true);
        new.look("c", count(2), true);
        assert_eq!(new.totals.answers, 11);
    }
}
