//! A histogram of latencies with a bounded error, in a bounded size.

use std::time::Duration;

use serde::Serialize;

/// Each power of two has 256 buckets, so a percentile is at most 0.4 % above the measured value, and never below it.
const BITS: u32 = 8;
/// The largest value in microseconds: twelve days.
const MOST: u64 = 1 << 40;

/// Counts of latencies in log-linear buckets of microseconds, as in HdrHistogram.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    sum: u64,
    max: u64,
}

/// Percentiles in milliseconds, at most 0.4 % above the measured values. The maximum is exact.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// The count of values.
    pub count: u64,
    /// The mean.
    pub mean_ms: f64,
    /// The median.
    pub p50_ms: f64,
    /// The 90th percentile.
    pub p90_ms: f64,
    /// The 95th percentile.
    pub p95_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// The 99.9th percentile.
    pub p99_9_ms: f64,
    /// The maximum.
    pub max_ms: f64,
}

impl Histogram {
    pub(super) fn add(&mut self, latency: Duration) {
        let value = u64::try_from(latency.as_nanos().div_ceil(1000)).unwrap_or(MOST).min(MOST);
        let bucket = bucket_of(value);
        if self.buckets.len() <= bucket {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += 1;
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
        self.max = self.max.max(value);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The smallest value that at least this share of all values does not exceed, in milliseconds.
    fn quantile(&self, share: f64) -> f64 {
        let rank = ((share * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut counted = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            counted += count;
            if counted >= rank {
                return milliseconds(upper_bound(bucket).min(self.max));
            }
        }
        0.0
    }

    pub(super) fn percentiles(&self) -> Percentiles {
        Percentiles {
            count: self.count,
            mean_ms: if self.count == 0 { 0.0 } else { milliseconds(self.sum) / self.count as f64 },
            p50_ms: self.quantile(0.50),
            p90_ms: self.quantile(0.90),
            p95_ms: self.quantile(0.95),
            p99_ms: self.quantile(0.99),
            p99_9_ms: self.quantile(0.999),
            max_ms: milliseconds(self.max),
        }
    }

    /// The buckets that are not empty: (upper bound in ms, count).
    pub(super) fn buckets(&self) -> Vec<(f64, u64)> {
        let counted = self.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
        counted.map(|(bucket, count)| (milliseconds(upper_bound(bucket).min(self.max)), *count)).collect()
    }
}

/// Values below 512 have a bucket each.
fn bucket_of(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(BITS + 1);
    ((u64::from(shift) << BITS) + (value >> shift)) as usize
}

/// The largest value of a bucket.
fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket >> BITS).saturating_sub(1);
    ((bucket - (shift << BITS) + 1) << shift) - 1
}

fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_adjacent_and_their_error_is_bounded() {
        for bucket in 0..8_000 {
            let last = upper_bound(bucket);
            assert_eq!((bucket_of(last), bucket_of(last + 1)), (bucket, bucket + 1));
        }
        let mut value = 1;
        while value < MOST {
            let error = (upper_bound(bucket_of(value)) - value) as f64 / value as f64;
            assert!((0.0..1.0 / 256.0).contains(&error), "{value}: {error}");
            value += value / 3 + 1;
        }
    }

    #[test]
    fn percentiles_are_near_the_measured_values() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentiles(), Percentiles::default());
        (1..=100_000_u64).for_each(|n| histogram.add(Duration::from_micros(n * 37)));
        let found = histogram.percentiles();
        let exact = [(found.p50_ms, 1850.0), (found.p90_ms, 3330.0), (found.p95_ms, 3515.0), (found.p99_ms, 3663.0)];
        for (found, exact) in exact.into_iter().chain([(found.p99_9_ms, 3696.3)]) {
            assert!((exact..=exact * (1.0 + 1.0 / 256.0)).contains(&found), "{found} {exact}");
        }
        assert_eq!((found.count, found.max_ms), (100_000, 3700.0));
        assert!((found.mean_ms - 1850.0185).abs() < 0.001, "{}", found.mean_ms);
        assert_eq!(histogram.buckets().iter().map(|(_, count)| count).sum::<u64>(), 100_000);
        histogram.add(Duration::MAX);
        assert_eq!(histogram.percentiles().max_ms, MOST as f64 / 1000.0);
    }
}
