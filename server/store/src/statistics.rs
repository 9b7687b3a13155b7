//! How unusual a number is among earlier ones. Pure.

/// Makes the median absolute deviation of a normal distribution its standard deviation: the 0.75 quantile.
const OF_MEDIAN_DEVIATION: f64 = 0.6745;

/// The same for the mean absolute deviation, as a factor of it: the square root of half of pi.
const OF_MEAN_DEVIATION: f64 = 1.253_314;

/// From this score on, a number is an outlier.
pub(super) const THRESHOLD: f64 = 3.5;

/// The middle and the spread of earlier numbers. A few unusual ones among them do not change it much.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Baseline {
    pub(super) median: f64,
    /// The deviation that has a score of 1.
    spread: f64,
}

impl Baseline {
    /// `None` without numbers.
    pub(super) fn of(mut values: Vec<f64>) -> Option<Self> {
        let middle = median(&mut values)?;
        let mut deviations: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
        let mean = deviations.iter().sum::<f64>() / deviations.len() as f64;
        let spread = match median(&mut deviations)? {
            // More than half of the numbers are the same.
            0.0 => OF_MEAN_DEVIATION * mean,
            deviation => deviation / OF_MEDIAN_DEVIATION,
        };
        Some(Self { median: middle, spread })
    }

    /// The modified z-score of Iglewicz and Hoaglin, "How to Detect and Handle Outliers" (ASQC, 1993), which calls numbers
    /// with an absolute score above 3.5 outliers. Where the median absolute deviation is 0, the mean absolute deviation
    /// takes its place. Without any deviation, every other number is infinitely far away.
    pub(super) fn score(&self, value: f64) -> f64 {
        let distance = value - self.median;
        if distance == 0.0 { 0.0 } else { distance / self.spread }
    }
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let is_even = values.len().is_multiple_of(2);
    Some(if is_even { f64::midpoint(values[values.len() / 2 - 1], upper) } else { upper })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64]) -> Baseline {
        Baseline::of(values.to_vec()).unwrap()
    }

    #[test]
    fn scores_are_those_of_the_definition() {
        // The deviations from the median 3 are 2, 1, 0, 1 and 97.
        let five = of(&[100.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!(five.median, 3.0);
        assert!((five.score(100.0) - 0.6745 * 97.0).abs() < 1e-9);
        assert!((five.score(1.0) + 0.6745 * 2.0).abs() < 1e-9);
        assert_eq!(of(&[1.0, 2.0, 4.0, 9.0]).median, 3.0);
    }

    #[test]
    fn one_outlier_among_earlier_numbers_hides_no_other() {
        let mut usual: Vec<f64> = (0..30).map(|n| 100.0 + f64::from(n % 5)).collect();
        let before = of(&usual).score(200.0);
        usual.push(10_000.0);
        let after = of(&usual).score(200.0);
        assert!(before > THRESHOLD && after > THRESHOLD, "{before} {after}");
        assert!(of(&usual).score(103.0).abs() < THRESHOLD);
    }

    #[test]
    fn mean_deviation_is_used_where_most_numbers_are_the_same() {
        // One of ten hours has 100 requests: the mean absolute deviation is 10.
        let mut mostly_zero = vec![0.0; 9];
        mostly_zero.push(100.0);
        assert!((of(&mostly_zero).score(100.0) - 100.0 / (1.253_314 * 10.0)).abs() < 1e-9);
        let constant = of(&[5.0; 10]);
        assert_eq!((constant.score(5.0), constant.score(6.0)), (0.0, f64::INFINITY));
        assert_eq!(constant.score(4.0), f64::NEG_INFINITY);
        assert_eq!(Baseline::of(Vec::new()), None);
    }
}
