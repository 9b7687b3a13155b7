//! The request rates of pods, from their counters of the last 30 s. Pure: the time is an argument.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::canary::counters::Totals;

/// The window over which a rate is calculated.
const WINDOW: Duration = Duration::from_secs(30);
/// The age after which a rate is stale: it describes a load that may be gone.
const STALE: Duration = Duration::from_secs(15);
/// The limit of samples per pod, however short the poll interval is.
const MAX_SAMPLES: usize = 64;

/// The samples of all pods.
#[derive(Debug, Default)]
pub(super) struct Rates {
    /// By pod name, because requests name pods.
    pods: BTreeMap<String, PodSamples>,
}

/// The samples of one pod.
#[derive(Debug)]
struct PodSamples {
    uid: String,
    last: Totals,
    /// All requests since the first poll, also those of restarted containers.
    sum: u64,
    looks: VecDeque<(Instant, u64)>,
}

/// The request rate of one pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    /// Thousandths of a request per second.
    pub(super) millis: u64,
    /// The window over which it was measured.
    pub(super) over: Duration,
    /// The age of the last sample.
    pub(super) ago: Duration,
}

impl Rates {
    /// Adds a sample of a pod.
    pub(super) fn look(&mut self, name: &str, uid: &str, totals: Totals, at: Instant) {
        let fresh = || PodSamples { uid: uid.to_owned(), last: totals, sum: 0, looks: VecDeque::new() };
        let pod = self.pods.entry(name.to_owned()).or_insert_with(fresh);
        // A new pod with the same name: StatefulSets reuse names.
        if pod.uid != uid {
            *pod = fresh();
        }
        pod.sum = pod.sum.saturating_add(totals.since(pod.last).answers);
        pod.last = totals;
        pod.looks.push_back((at, pod.sum));
        while pod.looks.len() > MAX_SAMPLES
            || pod.looks.front().is_some_and(|(first, _)| at.duration_since(*first) > WINDOW)
        {
            pod.looks.pop_front();
        }
    }

    /// Removes all pods whose uid is not in the list.
    pub(super) fn keep(&mut self, there: &BTreeSet<&str>) {
        self.pods.retain(|_, pod| there.contains(pod.uid.as_str()));
    }

    /// The rate of a pod; `None` with fewer than two samples or with stale ones.
    pub(super) fn of(&self, name: &str, now: Instant) -> Option<Rate> {
        let looks = &self.pods.get(name)?.looks;
        let ((began, before), (ended, after)) = (looks.front()?, looks.back()?);
        let (over, ago) = (ended.duration_since(*began), now.duration_since(*ended));
        let span = u64::try_from(over.as_millis()).unwrap_or(u64::MAX);
        if span == 0 || ago > STALE {
            return None;
        }
        Some(Rate { millis: after.saturating_sub(*before).saturating_mul(1_000_000) / span, over, ago })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(answers: u64) -> Totals {
        Totals { answers, ..Totals::default() }
    }

    /// A pod with these `(second, count)` samples.
    fn looked(at: Instant, looks: &[(u64, u64)]) -> Rates {
        let mut rates = Rates::default();
        for (second, count) in looks {
            rates.look("a", "1", answers(*count), at + Duration::from_secs(*second));
        }
        rates
    }

    #[test]
    fn request_rate_covers_the_last_half_minute() {
        let at = Instant::now();
        let rate = |looks: &[(u64, u64)], now: u64| looked(at, looks).of("a", at + Duration::from_secs(now));
        // Requests before the first sample say nothing about the current rate.
        assert_eq!(rate(&[(0, 1000)], 0), None);
        let told = rate(&[(0, 1000), (5, 1010)], 6).expect("a rate");
        assert_eq!((told.millis, told.over.as_secs(), told.ago.as_secs()), (2000, 5, 1));
        // A load that ended long ago is outside of the window.
        let looks: Vec<(u64, u64)> = (0..20).map(|n| (n * 5, 100 * n.min(4))).collect();
        assert_eq!(rate(&looks, 95).map(|told| told.millis), Some(0));
        assert_eq!(rate(&looks[..5], 20).map(|told| (told.millis, told.over.as_secs())), Some((20_000, 20)));
        // A rate below one per second is not rounded down to zero.
        assert_eq!(rate(&[(0, 0), (10, 1)], 10).map(|told| told.millis), Some(100));
    }

    #[test]
    fn restarted_pod_keeps_its_rate_and_a_silent_one_is_omitted() {
        let at = Instant::now();
        let rates = looked(at, &[(0, 100), (5, 150), (10, 20)]);
        assert_eq!(
            rates.of("a", at + Duration::from_secs(10)).map(|told| told.millis),
            Some(7000),
            "50 and 20 in 10 s"
        );
        assert!(rates.of("a", at + Duration::from_secs(25)).is_some());
        assert_eq!(rates.of("a", at + Duration::from_secs(26)), None);
        assert_eq!(rates.of("b", at), None);
    }

    #[test]
    fn removed_pods_are_forgotten_and_a_same_named_pod_starts_from_zero() {
        let at = Instant::now();
        let mut rates = looked(at, &[(0, 0), (5, 500)]);
        rates.look("a", "2", answers(9000), at + Duration::from_secs(6));
        assert_eq!(rates.of("a", at + Duration::from_secs(6)), None);
        rates.keep(&BTreeSet::from(["1"]));
        assert!(rates.pods.is_empty());
    }

    #[test]
    fn rate_samples_are_bounded_regardless_of_poll_frequency() {
        let (at, mut rates) = (Instant::now(), Rates::default());
        for n in 0..1000 {
            rates.look("a", "1", answers(n), at + Duration::from_millis(n));
        }
        assert_eq!(rates.pods["a"].looks.len(), MAX_SAMPLES);
        assert_eq!(rates.of("a", at + Duration::from_secs(1)).map(|told| told.millis), Some(1_000_000));
    }
}
