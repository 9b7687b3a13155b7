//! The time from which an error occurs more often.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

/// Intervals kept of one series. When there are more, two neighbours become one.
const INTERVALS_MAX: usize = 2048;
/// The likelihood ratio statistic from which a change is reported. For a fixed place 11 is a chance of one in a thousand;
/// the place is chosen among up to 2,048, hence more.
const SIGNIFICANT: f64 = 25.0;

/// Occurrences in equal intervals of time.
#[derive(Debug, Clone)]
pub(super) struct Series {
    /// The length of an interval in seconds: a power of two.
    seconds: i64,
    counts: BTreeMap<i64, u64>,
}

impl Default for Series {
    fn default() -> Self {
        Self { seconds: 1, counts: BTreeMap::new() }
    }
}

/// A rate that rose.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Change {
    /// From when on.
    pub at: Timestamp,
    /// Occurrences per minute before.
    pub before: f64,
    /// Occurrences per minute since.
    pub since: f64,
}

impl Series {
    pub(super) fn add(&mut self, at: Timestamp, count: u64) {
        *self.counts.entry(at.as_second().div_euclid(self.seconds)).or_default() += count;
        while self.counts.len() > INTERVALS_MAX {
            self.seconds *= 2;
            let mut wider = BTreeMap::new();
            for (interval, count) in std::mem::take(&mut self.counts) {
                *wider.entry(interval.div_euclid(2)).or_default() += count;
            }
            self.counts = wider;
        }
    }

    fn start(&self, interval: i64) -> Option<Timestamp> {
        Timestamp::from_second(interval.checked_mul(self.seconds)?).ok()
    }

    /// The place where a Poisson rate most likely changed, if it rose there significantly. `from` and `to` are the ends of
    /// the whole log.
    ///
    /// Maximum likelihood over all places, see C. R. Loader, "A log-linear model for a Poisson process change point",
    /// Annals of Statistics 20 (1992).
    pub(super) fn change(&self, from: Timestamp, to: Timestamp) -> Option<Change> {
        let seconds = |a: Timestamp, b: Timestamp| SignedDuration::as_secs_f64(&b.duration_since(a));
        let whole = seconds(from, to) + self.seconds as f64;
        let all = self.counts.values().sum::<u64>() as f64;
        let (mut best, mut found) = (SIGNIFICANT, None);
        let mut earlier = 0.0;
        for (interval, count) in &self.counts {
            // A change can only be where an occurrence is the first of many.
            let at = self.start(*interval)?.max(from);
            let before = seconds(from, at);
            if before > 0.0 && before < whole {
                let later = all - earlier;
                let since = whole - before;
                let gain = |n: f64, time: f64| if n > 0.0 { n * (n * whole / (all * time)).ln() } else { 0.0 };
                let statistic = 2.0 * (gain(earlier, before) + gain(later, since));
                if statistic > best && later / since > earlier / before {
                    best = statistic;
                    found = Some(Change { at, before: earlier / before * 60.0, since: later / since * 60.0 });
                }
            }
            earlier += *count as f64;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn rise_is_found_where_it_is_and_a_constant_rate_is_none() {
        let mut series = Series::default();
        for minute in 0..60 {
            series.add(at(minute * 60), 1);
        }
        assert_eq!(series.change(at(0), at(3600)), None);
        for second in 2400..3600 {
            series.add(at(second), 1);
        }
        let change = series.change(at(0), at(3600)).unwrap();
        assert!((change.at.as_second() - at(2400).as_second()).abs() <= 2, "{change:?}");
        assert!(change.before < 1.2 && change.since > 55.0, "{change:?}");
    }

    #[test]
    fn fall_and_a_few_occurrences_are_no_change() {
        let mut falling = Series::default();
        (0..600).for_each(|second| falling.add(at(second), 1));
        assert_eq!(falling.change(at(0), at(3600)), None);
        let mut rare = Series::default();
        [3000, 3300].into_iter().for_each(|second| rare.add(at(second), 1));
        assert_eq!(rare.change(at(0), at(3600)), None);
    }

    #[test]
    fn error_that_never_occurred_before_is_a_change() {
        let mut series = Series::default();
        (3000..3030).for_each(|second| series.add(at(second), 1));
        let change = series.change(at(0), at(3600)).unwrap();
        assert_eq!((change.at, change.before), (at(3000), 0.0));
    }

    #[test]
    fn memory_is_bounded_and_no_occurrence_is_lost() {
        let mut series = Series::default();
        (0..1_000_000).for_each(|n| series.add(at(n * 7), 1));
        assert!(series.counts.len() <= INTERVALS_MAX);
        assert_eq!(series.counts.values().sum::<u64>(), 1_000_000);
    }
}
